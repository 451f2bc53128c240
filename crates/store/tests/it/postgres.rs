//! PostgreSQL against the contract, and what replicas of several processes promise each other.

use std::sync::Arc;

use async_trait::async_trait;
use engine::contract::histories::folds_to_its_snapshot;
use engine::contract::story::{Phrase as _, Story, beat, claimed_session, pass, registered};
use engine::contract::{Store, Subject};
use engine::memory::MemoryBlobs;
use engine::port::{Blobs, EventLog as _, Leases as _, StoreError, Tracks};
use proptest::prelude::any;
use proptest::test_runner::{Config, TestRunner};
use store::testing::{Cluster, Database};
use store::{PostgresOptions, PostgresStore};

pub(crate) struct Postgres {
    pub(crate) store: Arc<PostgresStore>,
    pub(crate) database: Database,
    bytes: MemoryBlobs,
}

pub(crate) async fn subject() -> Option<Postgres> {
    let database = Cluster::shared().await?.database().await;
    database.take_the_clock().await;
    Some(Postgres::with(database, MemoryBlobs::new()))
}

impl Postgres {
    fn with(database: Database, bytes: MemoryBlobs) -> Self {
        let options = PostgresOptions { blobs: Some(Arc::new(bytes.clone())), ..database.store_options() };
        let store = PostgresStore::new(&options).expect("the address is right");
        Self { store: Arc::new(store), database, bytes }
    }

    /// The same database as another process sees it.
    fn neighbour(&self) -> Self {
        Self::with(Database::at(&self.database.url), self.bytes.clone())
    }
}

#[async_trait]
impl Subject for Postgres {
    fn store(&self) -> Arc<dyn Store> {
        self.store.clone()
    }

    fn blobs(&self) -> Arc<dyn Blobs> {
        self.store.blobs().expect("it was given some")
    }

    async fn advance(&self, millis: i64) {
        self.database.advance(millis).await;
    }

    async fn spoil_snapshots(&self) -> bool {
        self.database.execute("UPDATE sessions SET snapshot_format = 999, snapshot = 'from the future'").await;
        true
    }

    fn tracks(&self) -> Option<Arc<dyn Tracks>> {
        Some(self.store.clone())
    }

    fn silence_is_death(&self) -> bool {
        true
    }
}

engine::contract_tests!(crate::postgres::subject);

#[tokio::test]
async fn a_process_that_is_gone_is_dead_at_once() {
    let Some(first) = subject().await else { return };
    let second = first.neighbour();
    let judge = registered(&*second.store, "judge").await;
    let gone = registered(&*first.store, "gone").await;
    let (_, lost) = claimed_session(&*first.store, &gone, 1).await;
    for _ in 0..20 {
        beat(&*first.store, &gone).await;
        pass(&second, &judge, 200).await;
    }
    first.store.close().await;
    second.database.await_no_other_locks().await;
    assert!(second.store.claim(&judge, 1).await.expect("it answers").is_empty(), "it may come back in a moment");
    pass(&second, &judge, 600).await;
    let claimed = second.store.claim(&judge, 1).await.expect("it answers");
    assert_eq!((claimed.len(), claimed[0].taken_over, claimed[0].claim.epoch), (1, true, lost.epoch + 1));
}

#[tokio::test]
async fn a_broken_connection_is_no_death() {
    let Some(first) = subject().await else { return };
    let second = first.neighbour();
    let judge = registered(&*second.store, "judge").await;
    let cut = registered(&*first.store, "cut").await;
    claimed_session(&*first.store, &cut, 1).await;
    for _ in 0..20 {
        beat(&*first.store, &cut).await;
        pass(&second, &judge, 200).await;
    }
    // Every connection but the asker's breaks, as in a restart of the database.
    first
        .database
        .execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
             WHERE datname = current_database() AND pid <> pg_backend_pid()",
        )
        .await;
    beat(&*second.store, &judge).await;
    pass(&second, &judge, 2_000).await;
    assert!(second.store.claim(&judge, 1).await.expect("it answers").is_empty(), "the judge was away itself");
    beat(&*first.store, &cut).await;
    pass(&second, &judge, 400).await;
    assert!(second.store.claim(&judge, 1).await.expect("it answers").is_empty(), "the lock is held again");
}

#[tokio::test]
async fn a_database_that_comes_back_is_used_again() {
    let Some(postgres) = subject().await else { return };
    let story = engine::contract::story::due_session(&*postgres.store, 1).await;
    postgres
        .database
        .execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
             WHERE datname = current_database() AND pid <> pg_backend_pid()",
        )
        .await;
    let mut refused = 0;
    while let Err(error) = postgres.store.load(story.id()).await {
        assert!(matches!(error, StoreError::Unavailable(_)), "{error:?}");
        refused += 1;
        assert!(refused <= 8, "a broken connection is found out once and thrown away");
    }
}

#[tokio::test]
async fn acknowledged_appends_are_durable_whatever_the_default() {
    let Some(postgres) = subject().await else { return };
    let (_, name) = postgres.database.url.split_once("localhost/").expect("the address has a database");
    let name = name.split_once('?').expect("the address has a folder").0;
    postgres.database.execute(&format!("ALTER DATABASE {name} SET synchronous_commit = off")).await;
    let (_, created) = Story::begin(1);
    postgres.store.append(created).await.expect("the session is new");
    postgres
        .database
        .execute(
            "CREATE TABLE witness (setting TEXT); \
             CREATE FUNCTION witness() RETURNS trigger LANGUAGE plpgsql AS \
             $$ BEGIN INSERT INTO witness VALUES (current_setting('synchronous_commit')); RETURN NEW; END $$; \
             CREATE TRIGGER witness AFTER INSERT ON records FOR EACH ROW EXECUTE FUNCTION witness()",
        )
        .await;
    let (_, created) = Story::begin(2);
    postgres.store.append(created).await.expect("the session is new");
    postgres
        .database
        .execute("DO $$ BEGIN ASSERT (SELECT bool_and(setting = 'on') FROM witness), 'not durable'; END $$")
        .await;
}

#[tokio::test]
async fn migrations_are_told_and_may_be_run_by_everybody_at_once() {
    let Some(cluster) = Cluster::shared().await else { return };
    let database = cluster.bare_database().await;
    let stores: Vec<_> =
        (0..4).map(|_| PostgresStore::new(&database.store_options()).expect("the address is right")).collect();
    let before = stores[0].migration_status().await.expect("it answers");
    assert!(!before.is_empty() && before.iter().all(|migration| !migration.applied), "{before:?}");
    let migrated = tokio::join!(stores[0].migrate(), stores[1].migrate(), stores[2].migrate(), stores[3].migrate());
    for done in [migrated.0, migrated.1, migrated.2, migrated.3] {
        done.expect("one after the other");
    }
    let after = stores[0].migration_status().await.expect("it answers");
    assert!(after.iter().all(|migration| migration.applied), "{after:?}");
}

#[tokio::test]
async fn an_address_is_never_told() {
    for url in ["postgres://user:hunter2@nowhere.invalid/db", "postgres://user:hunter2@[bad/db", "hunter2"] {
        let options = PostgresOptions { url: url.to_owned(), direct_url: None, connections_max: 1, blobs: None };
        let error = match PostgresStore::new(&options) {
            Ok(store) => store.load(&"sesn_none".into()).await.expect_err("nobody is there"),
            Err(error) => error,
        };
        assert!(matches!(error, StoreError::Unavailable(_)), "{error:?}");
        assert!(!format!("{error} {error:?}").contains("hunter2"), "{error:?}");
    }
}

#[test]
fn any_history_folds_to_its_snapshot() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let Some(postgres) = runtime.block_on(subject()) else { return };
    let next = std::cell::Cell::new(0_u32);
    let mut runner = TestRunner::new(Config { cases: 24, ..Config::default() });
    runner
        .run(&any::<u64>(), |seed| {
            next.set(next.get() + 1);
            runtime.block_on(folds_to_its_snapshot(&postgres, next.get(), seed));
            Ok(())
        })
        .expect("every history folds to its snapshot");
}

#[tokio::test]
async fn a_claim_and_a_worker_do_not_stop_each_other() {
    use engine::contract::story::{Setting, queued_session, work_id};
    use engine::port::work_queue::{Pool, WorkQueue as _};

    let Some(postgres) = subject().await else { return };
    let replica = registered(&*postgres.store, "a").await;
    let mut story = queued_session(&*postgres.store, 1, Setting::default()).await;
    postgres.store.poll(&Pool::Cloud, "worker", 5_000, "token").await.expect("it answers").expect("it is queued");
    for round in 0..20 {
        let result = story.message(&format!("result {round}")).under(&work_id(1), "token").waking();
        let (appended, claimed) = tokio::join!(postgres.store.append(result), postgres.store.claim(&replica, 1));
        appended.expect("a claim moves no position and ends no token");
        for won in claimed.expect("it answers") {
            postgres.store.release(&won.claim, false).await.expect("it answers");
        }
    }
}

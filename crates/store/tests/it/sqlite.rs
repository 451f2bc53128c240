//! SQLite against the contract, and what a data folder promises besides.

use std::sync::Arc;

use async_trait::async_trait;
use engine::contract::histories::folds_to_its_snapshot;
use engine::contract::story::{Phrase as _, Story, claimed_session, due_session, registered};

use engine::contract::{Store, Subject};
use engine::port::{BlobRegistry as _, Blobs, EventLog as _, Leases as _, StoreError, Wake};
use proptest::prelude::any;
use proptest::test_runner::{Config, TestRunner};
use sqlx::Connection as _;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use store::{OpenError, SqliteStore};
use tempfile::TempDir;

use crate::clock::HandClock;

struct Sqlite {
    store: Arc<SqliteStore>,
    clock: Arc<HandClock>,
    folder: TempDir,
}

async fn subject() -> Option<Sqlite> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let clock = Arc::new(HandClock::default());
    let store = SqliteStore::open(folder.path(), clock.clone()).await.expect("a fresh folder opens");
    Some(Sqlite { store: Arc::new(store), clock, folder })
}

impl Sqlite {
    async fn execute(&self, sql: &'static str) {
        let file = SqliteConnectOptions::new().filename(self.folder.path().join("agent-service.sqlite"));
        let mut connection = SqliteConnection::connect_with(&file).await.expect("the file is there");
        sqlx::query(sql).execute(&mut connection).await.expect("the statement is right");
        connection.close().await.expect("nothing is open");
    }

    /// Closes the store and opens its folder again, as a restart does.
    async fn restart(self) -> Self {
        let Self { store, clock, folder } = self;
        store.close().await;
        drop(store);
        let store = SqliteStore::open(folder.path(), clock.clone()).await.expect("the folder is free");
        Self { store: Arc::new(store), clock, folder }
    }

    fn blob_files(&self) -> usize {
        let shelves = std::fs::read_dir(self.folder.path().join("blobs")).expect("the folder of blobs");
        let names = shelves.flat_map(|shelf| std::fs::read_dir(shelf.expect("a shelf").path()).expect("its blobs"));
        names.count()
    }
}

#[async_trait]
impl Subject for Sqlite {
    fn store(&self) -> Arc<dyn Store> {
        self.store.clone()
    }

    fn blobs(&self) -> Arc<dyn Blobs> {
        self.store.blobs().expect("a folder has blobs")
    }

    async fn advance(&self, millis: i64) {
        self.clock.advance(millis);
    }

    async fn spoil_snapshots(&self) -> bool {
        self.execute("UPDATE sessions SET snapshot_format = 999, snapshot = 'from the future'").await;
        true
    }

    fn silence_is_death(&self) -> bool {
        false
    }
}

engine::contract_tests!(crate::sqlite::subject);

#[tokio::test]
async fn what_was_acknowledged_is_there_after_a_restart() {
    let sqlite = subject().await.expect("SQLite is always there");
    let replica_id = registered(&*sqlite.store, "before").await;
    let (mut story, held) = claimed_session(&*sqlite.store, &replica_id, 1).await;
    for append in story.answer("done") {
        sqlite.store.append(append.by(&held)).await.expect("the claim is good");
    }
    let sqlite = sqlite.restart().await;
    let loaded = sqlite.store.load(story.id()).await.expect("it answers").expect("it is there");
    assert_eq!((loaded.state, loaded.claim), (story.state, Some(held)));
    let records = sqlite.store.read(&"sesn_00000001".into(), 0, 100).await.expect("it answers");
    assert_eq!(records.into_iter().map(|stored| stored.record).collect::<Vec<_>>(), story.records);
}

#[tokio::test]
async fn every_owner_of_an_earlier_start_is_dead() {
    let sqlite = subject().await.expect("SQLite is always there");
    let before = registered(&*sqlite.store, "before").await;
    let (story, held) = claimed_session(&*sqlite.store, &before, 1).await;
    let sqlite = sqlite.restart().await;
    let after = registered(&*sqlite.store, "after").await;
    let claimed = sqlite.store.claim(&after, 10).await.expect("it answers");
    assert_eq!((claimed.len(), claimed[0].taken_over, claimed[0].claim.epoch), (1, true, held.epoch + 1));
    assert_eq!(&claimed[0].claim.session_id, story.id());
}

#[tokio::test]
async fn a_folder_has_one_process() {
    let sqlite = subject().await.expect("SQLite is always there");
    let second = SqliteStore::open(sqlite.folder.path(), sqlite.clock.clone()).await;
    assert!(matches!(second, Err(OpenError::InUse(_))), "the folder is in use");
}

#[tokio::test]
async fn a_closed_store_says_so() {
    let sqlite = subject().await.expect("SQLite is always there");
    let story = due_session(&*sqlite.store, 1).await;
    sqlite.store.close().await;
    let release = story.aside().with(Wake::Release { wake_at: None });
    let refused = sqlite.store.append(release).await;
    assert!(matches!(refused, Err(engine::port::AppendError::Store(StoreError::Unavailable(_)))), "{refused:?}");
    assert!(matches!(sqlite.store.load(story.id()).await, Err(StoreError::Unavailable(_))));
}

#[tokio::test]
async fn a_snapshot_is_completed_by_the_records_behind_it() {
    let sqlite = subject().await.expect("SQLite is always there");
    let (mut story, created) = Story::begin(1);
    sqlite.store.append(created).await.expect("the session is new");
    sqlite.execute("CREATE TABLE kept AS SELECT id, snapshot FROM sessions").await;
    sqlite.store.append(story.message("later")).await.expect("nobody else appends");
    sqlite.execute("UPDATE sessions SET snapshot = (SELECT snapshot FROM kept WHERE kept.id = sessions.id)").await;
    let loaded = sqlite.store.load(story.id()).await.expect("it answers").expect("it is there");
    assert_eq!(loaded.state, story.state);
}

#[tokio::test]
async fn a_record_of_a_newer_format_is_not_guessed_at() {
    let sqlite = subject().await.expect("SQLite is always there");
    let story = due_session(&*sqlite.store, 1).await;
    sqlite.execute("UPDATE records SET version = 2 WHERE position = 2").await;
    let read = sqlite.store.read(story.id(), 0, 10).await;
    assert!(matches!(&read, Err(StoreError::Corrupt(what)) if what.contains("format 2")), "{read:?}");
}

#[tokio::test]
async fn large_bodies_are_kept_once_and_go_a_day_after_their_last_session() {
    let sqlite = subject().await.expect("SQLite is always there");
    let text = "x".repeat(100_000);
    let mut stories = Vec::new();
    for number in [1, 2] {
        let (mut story, created) = Story::begin(number);
        sqlite.store.append(created).await.expect("the session is new");
        sqlite.store.append(story.message("go on")).await.expect("nobody else appends");
        for append in story.answer(&text) {
            sqlite.store.append(append).await.expect("nobody else appends");
        }
        stories.push(story);
    }
    assert_eq!(sqlite.blob_files(), 2, "each answer has an id of its own");
    for (story, left) in stories.iter_mut().zip([1, 0]) {
        sqlite.store.append(story.tell(session::Command::Delete)).await.expect("nobody else appends");
        let purged = sqlite.store.purge(story.state.last_at.successor(), 1).await.expect("it answers");
        assert_eq!((purged, sqlite.blob_files()), (1, left + 1));
        sqlite.clock.advance(24 * 60 * 60 * 1_000);
        assert_eq!(sqlite.store.collect(10).await.expect("it answers"), 1);
        assert_eq!(sqlite.blob_files(), left);
    }
}

#[tokio::test]
async fn migrations_are_told() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let before = SqliteStore::migration_status(folder.path()).await.expect("nothing is there");
    assert!(!before.is_empty() && before.iter().all(|migration| !migration.applied), "{before:?}");
    let sqlite = subject().await.expect("SQLite is always there");
    let after = SqliteStore::migration_status(sqlite.folder.path()).await.expect("it answers");
    assert!(after.iter().all(|migration| migration.applied), "{after:?}");
    let unknown = "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
                   VALUES (999, 'of a later release', TRUE, x'00', 0)";
    sqlite.execute(unknown).await;
    sqlite.restart().await;
}

#[test]
fn any_history_folds_to_its_snapshot() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let sqlite = runtime.block_on(subject()).expect("SQLite is always there");
    let mut runner = TestRunner::new(Config { cases: 24, ..Config::default() });
    let next = std::cell::Cell::new(0_u32);
    runner
        .run(&any::<u64>(), |seed| {
            next.set(next.get() + 1);
            runtime.block_on(folds_to_its_snapshot(&sqlite, next.get(), seed));
            Ok(())
        })
        .expect("every history folds to its snapshot");
}

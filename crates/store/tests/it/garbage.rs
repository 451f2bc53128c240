//! The collector of garbage and new references in each other's way, on PostgreSQL.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use engine::contract::Subject as _;
use engine::contract::story::Story;
use engine::memory::MemoryBlobs;
use engine::port::{AppendError, BlobHash, BlobRegistry as _, BlobWriter, Blobs, EventLog as _, OpenBlob, StoreError};
use store::testing::{Cluster, Database};
use store::{PostgresOptions, PostgresStore};
use tokio::sync::Semaphore;

const DAY: i64 = 24 * 60 * 60 * 1_000;

/// Blobs that tell when one is to be removed, and wait to be let.
struct Gated {
    blobs: MemoryBlobs,
    asked: Semaphore,
    allowed: Semaphore,
    is_away: AtomicBool,
}

impl Gated {
    fn new() -> Arc<Self> {
        let (asked, allowed) = (Semaphore::new(0), Semaphore::new(0));
        Arc::new(Self { blobs: MemoryBlobs::new(), asked, allowed, is_away: AtomicBool::new(false) })
    }
}

#[async_trait]
impl Blobs for Gated {
    async fn put(&self, bytes: Vec<u8>) -> Result<BlobHash, StoreError> {
        if self.is_away.load(Ordering::SeqCst) {
            return Err(StoreError::Unavailable("away".to_owned()));
        }
        self.blobs.put(bytes).await
    }

    async fn begin(&self) -> Result<Box<dyn BlobWriter>, StoreError> {
        self.blobs.begin().await
    }

    async fn open(&self, hash: &BlobHash) -> Result<Option<OpenBlob>, StoreError> {
        self.blobs.open(hash).await
    }

    async fn remove(&self, hash: &BlobHash) -> Result<(), StoreError> {
        self.asked.add_permits(1);
        self.allowed.acquire().await.expect("it is never closed").forget();
        self.blobs.remove(hash).await
    }

    async fn ping(&self) -> Result<(), StoreError> {
        Ok(())
    }
}

async fn database() -> Option<Database> {
    let database = Cluster::shared().await?.database().await;
    database.take_the_clock().await;
    Some(database)
}

fn store(database: &Database, blobs: Arc<dyn Blobs>) -> Arc<PostgresStore> {
    let options = PostgresOptions { blobs: Some(blobs), ..database.store_options() };
    Arc::new(PostgresStore::new(&options).expect("the address is right"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_announces_during_a_collection_puts_after_it() {
    let Some(database) = database().await else { return };
    let gated = Gated::new();
    let (first, second) = (store(&database, gated.clone()), store(&database, gated.clone()));
    let hash = first.blobs().expect("it has some").put(b"content".to_vec()).await.expect("it is kept");
    database.advance(DAY).await;

    let collector = tokio::spawn(async move { first.collect(10).await });
    gated.asked.acquire().await.expect("it is never closed").forget();
    assert_eq!(second.collect(10).await.expect("it answers"), 0, "one replica collects at a time");
    let blobs = second.blobs().expect("it has some");
    let putting = tokio::spawn(async move { blobs.put(b"content".to_vec()).await });
    database.await_a_waiting_statement().await;
    assert!(!putting.is_finished(), "it waits for the row");
    gated.allowed.add_permits(1);

    assert_eq!(collector.await.expect("it ends").expect("it answers"), 1);
    assert_eq!(putting.await.expect("it ends").expect("it is kept"), hash);
    assert_eq!(gated.blobs.get(&hash).await.expect("it answers"), Some(b"content".to_vec()), "it came after");
    assert_eq!(second.collect(10).await.expect("it answers"), 0, "and is young again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_that_fails_leaves_a_row_that_heals() {
    let Some(database) = database().await else { return };
    let gated = Gated::new();
    let (first, second) = (store(&database, gated.clone()), store(&database, gated.clone()));
    let hash = first.blobs().expect("it has some").put(b"content".to_vec()).await.expect("it is kept");
    database.advance(DAY).await;
    let collector = tokio::spawn(async move { first.collect(10).await });
    gated.asked.acquire().await.expect("it is never closed").forget();
    // Its process dies after the bytes have gone and before it could say so.
    gated.blobs.remove(&hash).await.expect("it is there");
    collector.abort();
    assert!(collector.await.expect_err("it was stopped").is_cancelled());
    let blobs = second.blobs().expect("it has some");
    assert_eq!(blobs.put(b"content".to_vec()).await.expect("it is kept"), hash);
    assert_eq!(blobs.get(&hash).await.expect("it answers"), Some(b"content".to_vec()));
}

/// Blobs that are collected between being put and being referred to, once.
struct Overtaken {
    subject: crate::postgres::Postgres,
    blobs: MemoryBlobs,
    is_next: AtomicBool,
}

#[async_trait]
impl Blobs for Overtaken {
    async fn put(&self, bytes: Vec<u8>) -> Result<BlobHash, StoreError> {
        let hash = self.blobs.put(bytes).await?;
        if self.is_next.swap(false, Ordering::SeqCst) {
            self.subject.advance(DAY).await;
            assert_eq!(self.subject.store.collect(10).await?, 1);
            self.blobs.remove(&hash).await?;
        }
        Ok(hash)
    }

    async fn begin(&self) -> Result<Box<dyn BlobWriter>, StoreError> {
        self.blobs.begin().await
    }

    async fn open(&self, hash: &BlobHash) -> Result<Option<OpenBlob>, StoreError> {
        self.blobs.open(hash).await
    }

    async fn remove(&self, hash: &BlobHash) -> Result<(), StoreError> {
        self.blobs.remove(hash).await
    }

    async fn ping(&self) -> Result<(), StoreError> {
        Ok(())
    }
}

#[tokio::test]
async fn an_append_that_slept_for_a_day_refers_to_nothing_that_went() {
    let Some(subject) = crate::postgres::subject().await else { return };
    let database = Database::at(&subject.database.url);
    let overtaken = Overtaken { subject, blobs: MemoryBlobs::new(), is_next: AtomicBool::new(true) };
    let store = store(&database, Arc::new(overtaken));
    let (mut story, created) = Story::begin(1);
    store.append(created).await.expect("the session is new");
    let append = story.message(&"0123456789abcdef".repeat(10_000));
    let refused = store.append(append.clone()).await;
    assert!(matches!(refused, Err(AppendError::Conflict)), "{refused:?}");
    store.append(append).await.expect("it is put again");
    let records = store.read(story.id(), 0, 10).await.expect("it answers");
    assert!(records.into_iter().map(|stored| stored.record).eq(story.records));
}

#[tokio::test]
async fn a_large_body_stays_in_its_row_while_the_blobs_are_away() {
    let Some(database) = database().await else { return };
    let gated = Gated::new();
    gated.is_away.store(true, Ordering::SeqCst);
    let store = store(&database, gated.clone());
    let (mut story, created) = Story::begin(1);
    store.append(created).await.expect("the session is new");
    store.append(story.message(&"0123456789abcdef".repeat(10_000))).await.expect("the turn goes on");
    database
        .execute("DO $$ BEGIN ASSERT (SELECT bool_and(blob IS NULL) FROM records), 'a body is not there'; END $$")
        .await;
    let records = store.read(story.id(), 0, 10).await.expect("it answers");
    assert!(records.into_iter().map(|stored| stored.record).eq(story.records));
}

#[tokio::test]
async fn without_blobs_every_body_stays_in_its_row() {
    let Some(database) = database().await else { return };
    let store = PostgresStore::new(&database.store_options()).expect("the address is right");
    let (mut story, created) = Story::begin(1);
    store.append(created).await.expect("the session is new");
    store.append(story.message(&"0123456789abcdef".repeat(10_000))).await.expect("nobody else appends");
    assert!(store.blobs().is_none());
    assert_eq!(store.collect(10).await.expect("it answers"), 0);
    let records = store.read(story.id(), 0, 10).await.expect("it answers");
    assert!(records.into_iter().map(|stored| stored.record).eq(story.records));
}

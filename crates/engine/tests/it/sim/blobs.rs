//! The object store as one process reaches it, the collector of garbage, and what must be left of it all.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use engine::memory::MemoryBlobs;
use engine::port::blobs::UNREFERENCED_KEPT_MICROS;
use engine::port::{Blob, BlobHash, BlobRegistry, BlobWriter, Blobs, EventLog, OpenBlob, StoreError};
use session::State;
use session::manifest::Manifest;
use tokio::time::{Duration, sleep};

use super::Shared;
use super::cluster::Node;
use super::counts::Count;
use super::weather::Process;

/// Blobs that a hasty collector leaves alone.
const HASTE_MICROS: i64 = 8_000_000;

/// What one collection takes at most.
const BATCH: usize = 20;

/// How long what nothing refers to is kept in this simulation.
pub(crate) fn unreferenced_kept_micros(hasty: bool) -> i64 {
    if hasty { HASTE_MICROS } else { UNREFERENCED_KEPT_MICROS }
}

/// Blobs as one process reaches them.
pub(crate) struct FaultyBlobs {
    pub(crate) process: Arc<Process>,
    pub(crate) blobs: MemoryBlobs,
}

#[async_trait]
impl Blobs for FaultyBlobs {
    async fn put(&self, bytes: Vec<u8>) -> Result<BlobHash, StoreError> {
        self.process.blob_call(self.blobs.put(bytes)).await
    }
    async fn begin(&self) -> Result<Box<dyn BlobWriter>, StoreError> {
        let writer = self.process.blob_call(self.blobs.begin()).await?;
        Ok(Box::new(FaultyWriter { process: Arc::clone(&self.process), writer }))
    }
    async fn open(&self, hash: &BlobHash) -> Result<Option<OpenBlob>, StoreError> {
        self.process.blob_call(self.blobs.open(hash)).await
    }
    async fn remove(&self, hash: &BlobHash) -> Result<(), StoreError> {
        self.process.blob_call(self.blobs.remove(hash)).await
    }
    async fn ping(&self) -> Result<(), StoreError> {
        self.process.blob_call(self.blobs.ping()).await
    }
}

struct FaultyWriter {
    process: Arc<Process>,
    writer: Box<dyn BlobWriter>,
}

#[async_trait]
impl BlobWriter for FaultyWriter {
    async fn write(&mut self, piece: Bytes) -> Result<(), StoreError> {
        self.process.blob_call(self.writer.write(piece)).await
    }
    async fn seal(&mut self) -> Result<Blob, StoreError> {
        self.writer.seal().await
    }
    async fn keep(self: Box<Self>) -> Result<(), StoreError> {
        self.process.blob_call(self.writer.keep()).await
    }
}

/// Takes the object store away from everybody now and then.
pub(crate) async fn take_blobs_away(shared: Arc<Shared>) {
    for _ in 0..shared.weather.blob_outages {
        sleep(Duration::from_millis(1_000 + shared.dice.below(15_000))).await;
        shared.weather.set_blobs_away(true);
        shared.count(Count::Outage, 1);
        sleep(Duration::from_millis(200 + shared.dice.below(20_000))).await;
        shared.weather.set_blobs_away(false);
    }
}

/// What every server does besides: collects garbage.
pub(crate) async fn sweep(shared: Arc<Shared>, node: Arc<Node>, registry: Arc<dyn BlobRegistry>) {
    loop {
        sleep(Duration::from_millis(1_000 + shared.dice.below(10_000))).await;
        if let Ok(Ok(collected)) = node.request(registry.collect(BATCH)).await {
            shared.count(Count::BlobCollected, collected);
        }
    }
}

/// When everybody has gone and everything that is garbage was collected, what is needed is there and right, and
/// nothing else.
pub(crate) async fn judge(shared: &Shared, sessions: &[State]) -> Vec<String> {
    const ANSWERS: &str = "the store in memory answers";
    let store = &shared.store;
    sleep(Duration::from_micros(UNREFERENCED_KEPT_MICROS.unsigned_abs() + 1)).await;
    let now = shared.now();
    while store.purge(now, BATCH).await.expect(ANSWERS) > 0 {}
    sleep(Duration::from_micros(UNREFERENCED_KEPT_MICROS.unsigned_abs() + 1)).await;
    while store.collect(BATCH).await.expect(ANSWERS) > 0 {}

    let mut violations = Vec::new();
    let mut needed = store.referenced_blobs();
    let there = store.bytes().hashes();
    for state in sessions.iter().filter(|state| !state.deleted) {
        let Some(saved) = &state.workspace.saved else { continue };
        let manifest = BlobHash::parse(saved.manifest.as_str()).expect("both are SHA-256");
        needed.insert(manifest.clone());
        match store.bytes().get(&manifest).await {
            Ok(Some(text)) => {
                let chunks = Manifest::read(&text).expect("only what can be read was taken").chunks;
                needed.extend(chunks.iter().filter_map(|chunk| BlobHash::parse(chunk.hash.as_str())));
            }
            other => violations.push(format!("{}: its manifest {manifest} is {other:?}", state.session_id)),
        }
    }
    violations.extend(needed.difference(&there).map(|hash| format!("blob {hash} is needed and not there")));
    for hash in &there {
        if let Err(error) = store.bytes().get(hash).await {
            violations.push(format!("blob {hash}: {error}"));
        }
    }
    // A hasty collector may come between announcing and putting: then bytes can stay of which the registry knows nothing.
    if !shared.weather.hasty_collector {
        violations.extend(there.difference(&needed).map(|hash| format!("blob {hash} is there and nothing needs it")));
    }
    violations
}

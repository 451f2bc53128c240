//! The store in memory, which tests and the simulator trust, against the same contract.

use std::sync::Arc;

use async_trait::async_trait;
use engine::contract::blobs::BlobSubject;
use engine::contract::{Store, Subject};
use engine::memory::{MemoryBlobs, MemoryStore};
use engine::port::{BlobHash, Blobs, Tracks};

use crate::clock::HandClock;

struct Memory {
    store: Arc<MemoryStore>,
    clock: Arc<HandClock>,
}

async fn subject() -> Option<impl Subject> {
    let clock = Arc::new(HandClock::default());
    Some(Memory { store: Arc::new(MemoryStore::new(clock.clone())), clock })
}

#[async_trait]
impl Subject for Memory {
    fn store(&self) -> Arc<dyn Store> {
        self.store.clone()
    }

    fn blobs(&self) -> Arc<dyn Blobs> {
        self.store.blobs()
    }

    async fn advance(&self, millis: i64) {
        self.clock.advance(millis);
    }

    async fn spoil_snapshots(&self) -> bool {
        false
    }

    fn tracks(&self) -> Option<Arc<dyn Tracks>> {
        Some(self.store.clone())
    }

    fn silence_is_death(&self) -> bool {
        true
    }
}

engine::contract_tests!(crate::memory::subject);

struct Bytes(MemoryBlobs);

#[async_trait]
impl BlobSubject for Bytes {
    fn blobs(&self) -> Arc<dyn Blobs> {
        Arc::new(self.0.clone())
    }

    async fn spoil(&self, hash: &BlobHash, bytes: Vec<u8>) {
        self.0.spoil(hash, bytes);
    }
}

async fn bytes() -> Option<impl BlobSubject> {
    Some(Bytes(MemoryBlobs::new()))
}

engine::blob_contract_tests!(crate::memory::bytes);

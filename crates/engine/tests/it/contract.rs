//! The ports in memory, held to the contract of every store.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use async_trait::async_trait;
use engine::contract::{Store, Subject};
use engine::memory::MemoryStore;
use engine::port::{Blobs, Clock, Tracks};
use session::Timestamp;

/// Stands still until it is moved by hand.
struct HandClock(AtomicI64);

impl Clock for HandClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_micros(self.0.load(Ordering::SeqCst))
    }
}

struct InMemory {
    clock: Arc<HandClock>,
    store: Arc<MemoryStore>,
}

#[async_trait]
impl Subject for InMemory {
    fn store(&self) -> Arc<dyn Store> {
        self.store.clone()
    }

    fn blobs(&self) -> Arc<dyn Blobs> {
        self.store.blobs()
    }

    async fn advance(&self, millis: i64) {
        self.clock.0.fetch_add(millis * 1_000, Ordering::SeqCst);
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

async fn in_memory() -> Option<InMemory> {
    let clock = Arc::new(HandClock(AtomicI64::new(1_800_000_000_000_000)));
    let store = Arc::new(MemoryStore::new(clock.clone()));
    Some(InMemory { clock, store })
}

engine::contract_tests!(crate::contract::in_memory);

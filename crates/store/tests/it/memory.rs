//! The store in memory, which tests and the simulator trust, against the same contract.

use std::sync::Arc;

use async_trait::async_trait;
use engine::contract::{Store, Subject};
use engine::memory::MemoryStore;

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

    async fn advance(&self, millis: i64) {
        self.clock.advance(millis);
    }

    async fn spoil_snapshots(&self) -> bool {
        false
    }

    fn silence_is_death(&self) -> bool {
        true
    }
}

engine::contract_tests!(crate::memory::subject);

//! A clock that stands still until it is moved.

use std::sync::atomic::{AtomicI64, Ordering};

use engine::contract::story::DAWN;
use engine::port::Clock;
use session::Timestamp;

/// Starts an hour after the stories of the contract begin.
pub(crate) struct HandClock(AtomicI64);

impl HandClock {
    pub(crate) fn advance(&self, millis: i64) {
        self.0.fetch_add(millis * 1000, Ordering::SeqCst);
    }
}

impl Default for HandClock {
    fn default() -> Self {
        Self(AtomicI64::new(DAWN.plus_millis(3_600_000).as_micros()))
    }
}

impl Clock for HandClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_micros(self.0.load(Ordering::SeqCst))
    }
}

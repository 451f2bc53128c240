//! Rate limits of one process.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;

use crate::port::Clock;
use crate::port::rate_limits::{Rate, RateLimits, Taken};

/// Counters above which those that are full again are dropped.
const COUNTERS_KEPT: usize = 10_000;

/// Counters that end with the process.
pub struct MemoryRateLimits {
    clock: Arc<dyn Clock>,
    /// When each bucket will be full again.
    full_at: Mutex<BTreeMap<String, i64>>,
}

impl MemoryRateLimits {
    /// Nobody has asked for anything yet.
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock, full_at: Mutex::default() }
    }
}

#[async_trait]
impl RateLimits for MemoryRateLimits {
    async fn take(&self, key: &str, rate: Rate) -> Taken {
        let now = self.clock.now().as_micros();
        let mut counters = self.full_at.lock().unwrap_or_else(PoisonError::into_inner);
        if counters.len() > COUNTERS_KEPT {
            counters.retain(|_, full_at| *full_at > now);
        }
        let full_at = counters.entry(key.to_owned()).or_insert(now);
        let (taken, after) = rate.take(*full_at, now);
        *full_at = after;
        taken
    }
}

//! What both dialects know of the work queue: its times, and what a heartbeat is answered without touching the item.

use engine::port::work_queue::{ExpectedHeartbeat, Heartbeat, Pool, QueueStats};
use engine::port::{StoreError, WorkItem, WorkState};

use crate::row::Columns;

/// How long a lease runs unless its holder asks for another time.
pub(crate) const LEASE_TTL_SECONDS: i64 = 30;

/// The shortest and the longest lease that a holder may ask for, in seconds.
const LEASE_TTL_SECONDS_MIN: u32 = 3;
const LEASE_TTL_SECONDS_MAX: u32 = 300;

/// How long a worker that polled counts as polling.
pub(crate) const POLLING_MICROS: i64 = 30_000_000;

/// A worker that polls again within this time is not noted again: most polls write nothing.
pub(crate) const POLL_NOTED_MICROS: i64 = 5_000_000;

/// How long rows that only say who was there are kept.
pub(crate) const PRESENCE_KEPT_MICROS: i64 = 86_400_000_000;

/// What the table of polls calls the pool of every cloud environment.
pub(crate) const CLOUD_POOL: &str = "cloud";

/// The environment that a pool is, or `None` for the cloud's.
pub(crate) fn environment_of(pool: &Pool) -> Option<&str> {
    match pool {
        Pool::Cloud => None,
        Pool::Environment(id) => Some(id.as_str()),
    }
}

/// The length of lease that a holder gets who asks for `wished` seconds.
pub(crate) fn lease_ttl(wished: Option<u32>) -> Option<i64> {
    wished.map(|seconds| seconds.clamp(LEASE_TTL_SECONDS_MIN, LEASE_TTL_SECONDS_MAX).into())
}

/// The answer to a heartbeat that changes nothing; `None` if the lease is to be extended.
pub(crate) fn unbeaten(item: &WorkItem, expected: &ExpectedHeartbeat) -> Option<Heartbeat> {
    let held = match item.state {
        WorkState::Stopping | WorkState::Stopped => {
            return Some(Heartbeat::Beat { item: item.clone(), lease_extended: false });
        }
        WorkState::Starting | WorkState::Active => true,
        WorkState::Queued => false,
    };
    let as_expected = match expected {
        ExpectedHeartbeat::Any => true,
        ExpectedHeartbeat::None => item.latest_heartbeat_at.is_none(),
        ExpectedHeartbeat::At(last) => item.latest_heartbeat_at == Some(*last),
    };
    if held && as_expected { None } else { Some(Heartbeat::Mismatch { item: item.clone() }) }
}

/// Reads the figures of a queue.
pub(crate) fn stats(row: &impl Columns) -> Result<QueueStats, StoreError> {
    Ok(QueueStats {
        depth: row.counter("depth")?,
        pending: row.counter("pending")?,
        oldest_queued_at: row.time_or_null("oldest_queued_at")?,
        workers_polling: row.counter("workers_polling")?,
    })
}

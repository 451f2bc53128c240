//! Ends the leases of workers that gave no sign of life.
//!
//! The store says whose lease ran out; the judge believes it only when its own heartbeats have come through for a
//! whole lease, so that nobody is judged by somebody who was away.

use std::sync::Arc;

use tokio::time::{Duration, sleep};

use super::pulse::Pulse;
use crate::observer::Observer;
use crate::port::{Frame, WorkItem};
use crate::sessions::{CommandError, Sessions};
use crate::world::World;

/// Time between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Time between two searches for lost turns.
const SEARCH_EVERY: Duration = Duration::from_secs(10);

/// Leases looked at in one go.
const BATCH: usize = 32;

/// How often ending the lease of a worker that is known to be dead is tried.
const ORPHAN_TRIES: u32 = 5;

/// Judges until it is dropped.
pub(super) async fn judge(world: World, sessions: Sessions, pulse: Pulse, embedded: bool) {
    if embedded {
        end_orphaned(&world, &sessions).await;
    }
    loop {
        sleep(LOOK_EVERY).await;
        let expired = match world.work.expired(BATCH).await {
            Ok(expired) => expired,
            Err(error) => {
                tracing::debug!(%error, "the leases could not be looked at");
                continue;
            }
        };
        for item in expired {
            if pulse.unbroken() >= Duration::from_secs(u64::from(item.lease_ttl_seconds)) {
                end(&sessions, &item).await;
            }
        }
    }
}

/// Looks for turns that were lost, and has them gone on with. There is none to find: whoever sees one has found a
/// fault of this server or of its database.
pub(super) async fn find_lost_turns(world: World, observer: Arc<dyn Observer>) {
    loop {
        sleep(SEARCH_EVERY).await;
        match world.leases.wake_lost(BATCH).await {
            Ok(0) => {}
            Ok(turns) => {
                tracing::error!(turns, "turns were found that nobody drove and nothing would have woken");
                observer.turns_lost(turns);
                world.bell.ring(Frame::Claimable);
            }
            Err(error) => tracing::debug!(%error, "lost turns could not be looked for"),
        }
    }
}

/// The embedded server's worker died with it: whatever it held ends at once.
async fn end_orphaned(world: &World, sessions: &Sessions) {
    let held = loop {
        match world.work.held_cloud_items().await {
            Ok(held) => break held,
            Err(error) => {
                tracing::warn!(%error, "the leases of the last start could not be read; trying again");
                sleep(LOOK_EVERY).await;
            }
        }
    };
    for item in held {
        // A conflict only says that the session moved; what stays unsettled is judged by its lease, later.
        for _ in 0..ORPHAN_TRIES {
            if end(sessions, &item).await {
                break;
            }
            sleep(LOOK_EVERY).await;
        }
    }
}

/// Ends one lease; whether it is settled.
async fn end(sessions: &Sessions, item: &WorkItem) -> bool {
    match sessions.end_lease(item).await {
        Ok(ended) => {
            if ended {
                tracing::info!(work_id = %item.id, session_id = %item.session_id, "a worker's lease ended");
            }
            ended
        }
        Err(CommandError::Store(error)) => {
            tracing::warn!(work_id = %item.id, %error, "a worker's lease could not be ended");
            false
        }
        Err(error) => {
            tracing::warn!(work_id = %item.id, %error, "a worker's lease could not be ended");
            true
        }
    }
}

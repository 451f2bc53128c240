//! Removes what nobody needs any more: deleted sessions, content that has expired, and blobs that nothing refers to.
//!
//! Every replica tries; the store lets one at a time collect. A pass works in small batches until a batch is not full.

use std::sync::Arc;
use std::time::Duration;

use engine::World;
use engine::port::{BlobRegistry, StoreError};
use tokio_util::sync::CancellationToken;

/// Between two passes.
const PASS_EVERY: Duration = Duration::from_secs(5 * 60);

/// How long a deleted session leaves its log to the streams that are open on it.
const TOMBSTONE_KEPT_MILLIS: i64 = 60 * 60 * 1_000;

/// What one transaction removes.
const BATCH: usize = 100;

/// Sweeps until `stop`.
pub(super) async fn run(world: World, registry: Arc<dyn BlobRegistry>, stop: CancellationToken) {
    let mut passes = tokio::time::interval(PASS_EVERY);
    passes.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    // The first tick comes at once, in the middle of a start.
    passes.tick().await;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = passes.tick() => {}
        }
        tokio::select! {
            () = stop.cancelled() => return,
            swept = pass(&world, &*registry) => match swept {
                Ok((0, 0)) => {}
                Ok((sessions, blobs)) => tracing::info!(sessions, blobs, "removed what nobody needs any more"),
                Err(error) => tracing::warn!(%error, "what nobody needs any more stays for now"),
            }
        }
    }
}

async fn pass(world: &World, registry: &dyn BlobRegistry) -> Result<(usize, usize), StoreError> {
    let now = world.clock.now();
    let deleted_before = now.plus_millis(-TOMBSTONE_KEPT_MILLIS);
    let (mut sessions, mut blobs) = (0, 0);
    loop {
        let purged = world.log.purge(deleted_before, BATCH).await?;
        sessions += purged;
        if purged < BATCH {
            break;
        }
    }
    while world.files.expire_files(now, BATCH).await? == BATCH {}
    loop {
        let collected = registry.collect(BATCH).await?;
        blobs += collected;
        if collected < BATCH {
            return Ok((sessions, blobs));
        }
    }
}

//! Forgets the answers to keyed requests that were kept long enough. Every replica does it; they do not get in each
//! other's way.

use tokio::time::{Duration, sleep};

use crate::world::World;

const PURGE_EVERY: Duration = Duration::from_secs(600);

/// Answers that one transaction removes, so that none of them is long.
const BATCH: usize = 500;

/// Purges until it is cancelled.
pub(super) async fn purge(world: World) {
    loop {
        sleep(PURGE_EVERY).await;
        loop {
            match world.idempotency.purge_kept(BATCH).await {
                Ok(BATCH) => {}
                Ok(_) => break,
                Err(error) => {
                    tracing::warn!(%error, "old answers to keyed requests could not be purged");
                    break;
                }
            }
        }
    }
}

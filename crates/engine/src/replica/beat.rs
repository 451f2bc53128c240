//! Says that the replica lives.

use session::id::ReplicaId;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};

use super::ReplicaConfig;
use super::pulse::{BEAT_EVERY, Pulse};
use crate::world::World;

/// A heartbeat that takes longer than this many intervals has failed.
const BEAT_INTERVALS_MAX: u32 = 5;

/// Registers the replica, however long that takes.
pub(super) async fn register(world: &World, config: &ReplicaConfig, pulse: &Pulse) {
    let replica_id = &config.replica_id;
    loop {
        let sent = Instant::now();
        match world.leases.register(replica_id, config.track).await {
            Ok(()) => return pulse.beat(sent),
            Err(error) => {
                tracing::warn!(%replica_id, %error, "the replica could not be registered; trying again");
                sleep(BEAT_EVERY).await;
            }
        }
    }
}

/// Beats until it is dropped.
pub(super) async fn beat(world: World, replica_id: ReplicaId, pulse: Pulse) {
    let mut ticks = interval(BEAT_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let sent = Instant::now();
        match timeout(BEAT_EVERY * BEAT_INTERVALS_MAX, world.leases.heartbeat(&replica_id)).await {
            Ok(Ok(())) => pulse.beat(sent),
            Ok(Err(error)) => {
                tracing::debug!(%replica_id, %error, "a heartbeat failed");
                pulse.missed();
            }
            Err(_) => pulse.missed(),
        }
    }
}

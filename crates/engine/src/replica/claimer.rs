//! Claims sessions that are due, as far as there is room.
//!
//! A pass is made when the bell says that something became claimable, when the next known wake-up comes, when there is
//! room again after one that was cut short, and twice a second anyway. A pass whose answer was lost may have claimed
//! sessions that nobody knows of: they are looked up.

use std::sync::Arc;

use tokio::time::{Duration, Instant, sleep, sleep_until};

use crate::claims::{LocalClaims, Won};
use crate::observer::{HandOver, Observer};
use crate::port::leases::Claimed;
use crate::port::{StoreError, Topic};
use crate::world::World;

/// A pass is made at least this often.
const PASS_EVERY: Duration = Duration::from_millis(500);

/// Between two passes that a freed slot asks for. A session whose wake-up has come by the store's clock and not yet by
/// this process's is let go at once and is due at once: it must not be claimed as fast as that can be said.
const ROOM_PAUSE: Duration = Duration::from_millis(2);

/// Claims that nobody knows of are looked for at least this often.
const RECONCILE_EVERY: Duration = Duration::from_secs(5);

/// Sessions claimed at once.
const BATCH: usize = 32;

/// Claims until it is dropped.
pub(super) async fn claim_due(world: World, claims: LocalClaims, observer: Arc<dyn Observer>) {
    let mut claimable = world.bell.listen(Topic::Claimable);
    let mut reconcile_at = Instant::now() + RECONCILE_EVERY;
    // Sessions may have waited for this process to start.
    let mut pause = Duration::ZERO;
    let mut passed_at = Instant::now();
    loop {
        tokio::select! {
            biased;
            () = claims.doubted() => reconcile_at = Instant::now(),
            () = claims.room() => sleep_until(passed_at + ROOM_PAUSE).await,
            _ = claimable.hear() => {}
            () = sleep(pause) => {}
            () = sleep_until(reconcile_at) => {}
        }
        if reconcile_at <= Instant::now() {
            reconcile_at = Instant::now() + RECONCILE_EVERY;
            if let Err(error) = reconcile(&world, &claims).await {
                tracing::debug!(%error, "the claims held could not be looked up");
                reconcile_at = Instant::now() + PASS_EVERY;
            }
        }
        passed_at = Instant::now();
        pause = match pass(&world, &claims, &*observer).await {
            Ok(pause) => pause,
            Err(error) => {
                tracing::debug!(%error, "a claiming pass failed");
                reconcile_at = Instant::now();
                // Slots that come back from here are no room: the next pass is one of time.
                claims.set_crowded(false);
                PASS_EVERY
            }
        };
    }
}

/// Claims what is due and says how long to sleep.
async fn pass(world: &World, claims: &LocalClaims, observer: &dyn Observer) -> Result<Duration, StoreError> {
    loop {
        let mut slots = Vec::new();
        while slots.len() < BATCH
            && let Some(slot) = claims.slot()
        {
            slots.push(slot);
        }
        if slots.is_empty() {
            claims.set_crowded(true);
            observer.admission_cut_short();
            return Ok(PASS_EVERY);
        }
        let room = slots.len();
        let claimed = world.leases.claim(claims.replica_id(), room).await?;
        let filled = claimed.len() == room;
        for (claimed, slot) in claimed.into_iter().zip(slots) {
            let from = match claimed {
                Claimed { taken_over: true, .. } => Some(HandOver::Crash),
                Claimed { handed_over: true, .. } => Some(HandOver::Drain),
                Claimed { .. } => None,
            };
            claims.hand_in(Won { claim: claimed.claim, from, slot: Some(slot), start: None });
        }
        if !filled {
            claims.set_crowded(false);
            break;
        }
    }
    let Some(next) = world.leases.next_wake().await? else {
        return Ok(PASS_EVERY);
    };
    let until_micros = next.as_micros().saturating_sub(world.clock.now().as_micros());
    let until = Duration::from_micros(u64::try_from(until_micros).unwrap_or(0));
    Ok(until.clamp(Duration::from_millis(1), PASS_EVERY))
}

/// Hands in every claim that the store knows; the scheduler drops those that it knows too.
async fn reconcile(world: &World, claims: &LocalClaims) -> Result<(), StoreError> {
    for claim in world.leases.held(claims.replica_id()).await? {
        claims.hand_in(Won { claim, from: None, slot: None, start: None });
    }
    Ok(())
}

//! One process's share of driving sessions: it says that it lives, claims sessions that are due, gives each a
//! driver, ends the leases of dead workers, and hands everything over when it is told to stop.
//!
//! A replica is a handful of tasks under one future; dropping that future drops them all, which is what a crash
//! looks like to the others. [`Replica::run`] is the scheduler; the rest is in the modules below.

mod beat;
mod claimer;
mod drain;
mod judge;
pub(crate) mod pulse;
mod purge;

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures::FutureExt;
use session::id::{ReplicaId, SessionId};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Duration, Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

pub use self::drain::Hurry;
pub use self::pulse::Heartbeats;
use self::pulse::Pulse;
use crate::claims::{LocalClaims, Won};
use crate::driver::{Shared, Stop, drive};
use crate::observer::{HandOver, Observer};
use crate::port::{Claim, Frame, Track};
use crate::sessions::Sessions;
use crate::world::World;

/// How often the followed sessions are looked up: in case the bell was not heard, and when nobody can hear it.
const POLL_EVERY: Duration = Duration::from_millis(800);
const POLL_EVERY_UNHEARD: Duration = Duration::from_millis(500);

/// The least pause between two looks that followers asked for, which are gathered meanwhile.
const LOOK_PAUSE: Duration = Duration::from_millis(20);

/// How long the store may take to hear that the replica leaves.
const GOODBYE_PATIENCE: Duration = Duration::from_secs(1);

/// The first and the longest pause after a driver failed.
const FAILED_PAUSE_MIN: Duration = Duration::from_millis(100);
const FAILED_PAUSE_MAX: Duration = Duration::from_secs(30);

/// How a replica runs.
#[derive(Clone, Debug)]
pub struct ReplicaConfig {
    /// Drawn at each start of a process.
    pub replica_id: ReplicaId,
    /// The release that this process runs.
    pub track: Track,
    /// Sessions held at once.
    pub max_agents: usize,
    /// How long a drain may take before the model requests that are still open are cut.
    pub drain_timeout: Duration,
    /// Whether the server runs its own worker, whose leases from an earlier start are ended at once.
    pub embedded: bool,
}

/// A replica that is about to run.
pub struct Replica {
    world: World,
    config: ReplicaConfig,
    observer: Arc<dyn Observer>,
    claims: LocalClaims,
    won: mpsc::UnboundedReceiver<Won>,
    hurry: Hurry,
    pulse: Pulse,
}

impl Replica {
    /// A replica that does nothing yet.
    pub fn new(world: World, config: ReplicaConfig, observer: Arc<dyn Observer>) -> Self {
        let (claims, won) = LocalClaims::new(config.replica_id.clone());
        Self { world, config, observer, claims, won, hurry: Hurry::default(), pulse: Pulse::new() }
    }

    /// Through which a drain is told not to take its time.
    pub fn hurry(&self) -> Hurry {
        self.hurry.clone()
    }

    /// How client appends of this process hand it the claims that they win ([`Sessions::new`]).
    pub fn local_claims(&self) -> LocalClaims {
        self.claims.clone()
    }

    /// Whether the store takes its heartbeats.
    pub fn heartbeats(&self) -> Heartbeats {
        self.pulse.heartbeats()
    }

    /// Runs until `shutdown` is cancelled and the drain is over.
    pub async fn run(self, shutdown: CancellationToken) {
        let Self { world, config, observer, claims, won, hurry, pulse } = self;
        let mut alive = JoinSet::new();
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            () = beat::register(&world, &config, &pulse) => {}
        }
        claims.open(config.max_agents);
        alive.spawn(beat::beat(world.clone(), config.replica_id.clone(), pulse.clone()));
        alive.spawn(poll(world.clone()));
        let mut working = JoinSet::new();
        let sessions = Sessions::new(world.clone(), Some(claims.clone())).with_observer(Arc::clone(&observer));
        working.spawn(judge::judge(world.clone(), sessions, pulse.clone(), config.embedded));
        working.spawn(purge::purge(world.clone()));
        working.spawn(judge::find_lost_turns(world.clone(), Arc::clone(&observer)));
        working.spawn(claimer::claim_due(world.clone(), claims.clone(), Arc::clone(&observer)));

        let shared = Shared {
            world: world.clone(),
            observer: Arc::clone(&observer),
            pulse,
            transcripts: Arc::default(),
            draining: CancellationToken::new(),
            cut: CancellationToken::new(),
        };
        let mut scheduler =
            Scheduler { shared, claims: claims.clone(), held: BTreeMap::new(), drivers: JoinSet::new(), won };
        tokio::select! {
            biased;
            () = shutdown.cancelled() => {}
            () = scheduler.run() => {}
        }

        let began = Instant::now();
        observer.draining();
        claims.close();
        working.shutdown().await;
        scheduler.drain(config.drain_timeout, &hurry).await;
        // Unless it says so, the others find out by its silence.
        match timeout(GOODBYE_PATIENCE, world.leases.retire(&config.replica_id)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the replica could not say goodbye"),
            Err(_) => tracing::warn!("the replica could not say goodbye in time"),
        }
        observer.drained(began.elapsed().as_secs_f64());
    }
}

/// Tells the followers of this process what the bell did not.
async fn poll(world: World) {
    let mut poll_at = Instant::now();
    loop {
        let every = if world.bell.reaches_others() { POLL_EVERY } else { POLL_EVERY_UNHEARD };
        let polled = tokio::select! {
            biased;
            () = sleep_until(poll_at + every) => {
                let polled = world.watch.poll(&*world.log).await;
                poll_at = Instant::now();
                polled
            }
            () = world.watch.wanted() => {
                let polled = world.watch.poll_wanted(&*world.log).await;
                sleep(LOOK_PAUSE).await;
                polled
            }
        };
        if let Err(error) = polled {
            tracing::debug!(%error, "the followed sessions could not be looked up");
        }
    }
}

/// Gives every claim a driver, and takes note when it stops.
struct Scheduler {
    shared: Shared,
    claims: LocalClaims,
    held: BTreeMap<SessionId, Held>,
    drivers: JoinSet<(Claim, Stop)>,
    won: mpsc::UnboundedReceiver<Won>,
}

/// A session that this replica drives.
struct Held {
    epoch: u64,
    driver: AbortHandle,
}

impl Scheduler {
    async fn run(&mut self) {
        loop {
            tokio::select! {
                biased;
                Some(ended) = self.drivers.join_next() => self.ended(ended.ok()),
                Some(won) = self.won.recv() => self.start(won),
                else => return,
            }
        }
    }

    /// Starts a driver, unless the claim is known already.
    fn start(&mut self, mut won: Won) {
        let session_id = won.claim.session_id.clone();
        let epoch = won.claim.epoch;
        if let Some(held) = self.held.get(&session_id) {
            if held.epoch >= epoch {
                return;
            }
            // Somebody judged this replica dead and it won the session anew: the old driver is fenced.
            held.driver.abort();
        }
        won.slot = won.slot.or_else(|| self.claims.slot());
        if won.slot.is_none() {
            self.drivers.spawn(let_go(self.shared.clone(), won.claim));
            return;
        }
        let driver = self.drivers.spawn(supervise(self.shared.clone(), won));
        self.held.insert(session_id, Held { epoch, driver });
        self.shared.observer.active(self.held.len());
    }

    fn ended(&mut self, ended: Option<(Claim, Stop)>) {
        // A driver that was aborted has a successor under the same session.
        let Some((claim, stop)) = ended else { return };
        tracing::debug!(session_id = %claim.session_id, epoch = claim.epoch, ?stop, "a driver stopped");
        if self.held.get(&claim.session_id).is_some_and(|held| held.epoch == claim.epoch) {
            self.held.remove(&claim.session_id);
        }
        self.shared.observer.active(self.held.len());
    }

    async fn until_none_is_held(&mut self) {
        while let Some(ended) = self.drivers.join_next().await {
            self.ended(ended.ok());
        }
    }
}

/// Gives up a claim that was found again and for which there is no room.
async fn let_go(shared: Shared, claim: Claim) -> (Claim, Stop) {
    if let Err(error) = shared.world.leases.release(&claim, false).await {
        tracing::debug!(session_id = %claim.session_id, %error, "a claim could not be released");
    }
    shared.world.bell.ring(Frame::Claimable);
    (claim, Stop::HandedOver)
}

/// Drives one session, and again after a fault of the driver itself; its slot is taken for as long.
///
/// A fault counts as the death of an owner, so that the rules give the turn up when it comes back too often.
async fn supervise(shared: Shared, won: Won) -> (Claim, Stop) {
    let Won { claim, mut from, slot, mut start } = won;
    let mut pause = FAILED_PAUSE_MIN;
    let stop = loop {
        // In a box, since it would lie here twice otherwise.
        let driving = Box::pin(drive(shared.clone(), claim.clone(), from, start.take()));
        let fault = match AssertUnwindSafe(driving).catch_unwind().await {
            Ok(Stop::Broken(fault)) => fault,
            Ok(stop) => break stop,
            Err(_) => "the driver panicked".to_owned(),
        };
        tracing::error!(session_id = %claim.session_id, epoch = claim.epoch, fault, "a driver failed");
        shared.observer.driver_failed();
        tokio::select! {
            biased;
            () = shared.draining.cancelled() => break Stop::Broken(fault),
            () = sleep(pause) => {}
        }
        pause = (pause * 2).min(FAILED_PAUSE_MAX);
        from = Some(HandOver::Crash);
    };
    drop(slot);
    (claim, stop)
}

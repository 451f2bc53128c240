//! How rough a simulation is, and what befalls one process: it is slow, cut off, paused, deaf to the bell, killed.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use engine::port::{Caps, KeyLimits, StoreError};
use tokio::time::{Duration, Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::rig::Dice;

/// Which faults a simulation has, and how often. Chances are per mille; those that end in `_each` are for each call.
pub(crate) struct Weather {
    rough: AtomicBool,
    /// Time after which the weather clears, so that everything can settle.
    pub(crate) storm: Duration,
    /// The longest pause of a client between two things that it does.
    pub(crate) pause_ms: u64,
    /// The store is away for everybody.
    store_away: AtomicBool,
    /// The object store is away for everybody.
    blobs_away: AtomicBool,
    /// A process is killed around a call.
    crash_each: u64,
    /// The store does not answer; the call took place or not.
    unavailable_each: u64,
    /// A call to the store takes long.
    delay_each: u64,
    /// One process loses the store for seconds.
    partition_each: u64,
    /// A process stops for seconds and wakes up, as by SIGSTOP and SIGCONT.
    pause_each: u64,
    /// A frame of the bell is lost, doubled, late or stripped of its records.
    bell_each: u64,
    /// One process hears and is heard by nobody for seconds.
    deaf_each: u64,
    /// The provider fails a request: overloaded, limited, hanging, cut in the middle of the answer.
    pub(crate) model_each: u64,
    /// The store is away for everybody, so often in one simulation.
    pub(crate) outages: u64,
    /// The object store does not answer; the call took place or not.
    blobs_each: u64,
    /// The object store is away for everybody, so often in one simulation.
    pub(crate) blob_outages: u64,
    pub(crate) has_object_store: bool,
    /// Whatever nothing refers to is collected within seconds, and not after a day.
    pub(crate) hasty_collector: bool,
    /// Workers are killed, some seconds after they started.
    pub(crate) kills_workers: bool,
    /// A worker may come back without the disk that it had.
    pub(crate) disks_lost: bool,
    /// Servers are killed at the end of their lives, and not only drained.
    pub(crate) kills: bool,
    /// Every server in turn is replaced, so often in one simulation.
    pub(crate) rollouts: u64,
    /// What the one API key of all sessions may use.
    pub(crate) key_limits: KeyLimits,
    /// Milliseconds by which the clocks of two servers may differ.
    pub(crate) skew_ms: u64,
}

/// Caps that are never met, or soon: a request of a simulation reserves some thousand tokens.
fn caps(dice: &Dice) -> Caps {
    let cap = |few: u64| if dice.chance(500) { 1 << 40 } else { few + dice.below(3 * few) };
    Caps { tokens_per_day: Some(cap(5_000)), micro_usd_per_day: dice.chance(500).then(|| cap(20_000)) }
}

impl Weather {
    /// Some simulations have next to no faults, some have few kinds, most have many.
    pub(crate) fn drawn(dice: &Dice) -> Self {
        let kinds = [0, 150, 150, 600, 600, 600][dice.below(6) as usize];
        let kind = |most: u64| if dice.chance(kinds) { 1 + dice.below(most) } else { 0 };
        // What is remembered for a minute is forgotten in a long one.
        let is_long = dice.chance(80);
        Self {
            rough: AtomicBool::new(true),
            storm: Duration::from_secs(if is_long { 240 } else { 40 }),
            pause_ms: if is_long { 60_000 } else { 3_000 },
            store_away: AtomicBool::new(false),
            blobs_away: AtomicBool::new(false),
            crash_each: kind(12),
            unavailable_each: kind(60),
            delay_each: kind(400),
            partition_each: kind(3),
            pause_each: kind(2),
            bell_each: kind(300),
            deaf_each: kind(10),
            model_each: kind(150),
            outages: kind(3),
            blobs_each: kind(60),
            blob_outages: kind(3),
            has_object_store: dice.chance(850),
            hasty_collector: dice.chance(500),
            kills_workers: kind(1) > 0,
            disks_lost: kind(1) > 0,
            kills: kind(1) > 0,
            rollouts: if dice.chance(400) { 1 + dice.below(2) } else { 0 },
            key_limits: KeyLimits {
                concurrent_sessions: dice.chance(300).then(|| 1 + dice.below(3) as u32),
                caps: if dice.chance(500) { caps(dice) } else { Caps::default() },
            },
            skew_ms: [1, 400, 400, 5_000][dice.below(4) as usize],
        }
    }

    pub(crate) fn clear(&self) {
        self.rough.store(false, Ordering::Relaxed);
        self.store_away.store(false, Ordering::Relaxed);
        self.blobs_away.store(false, Ordering::Relaxed);
    }

    pub(crate) fn is_rough(&self) -> bool {
        self.rough.load(Ordering::Relaxed)
    }

    pub(crate) fn set_store_away(&self, away: bool) {
        self.store_away.store(away && self.is_rough(), Ordering::Relaxed);
    }

    pub(crate) fn set_blobs_away(&self, away: bool) {
        self.blobs_away.store(away && self.is_rough(), Ordering::Relaxed);
    }

    /// No process is ever slow, cut off or paused by itself: who is not heard of is dead, or the store is away.
    pub(crate) fn processes_are_prompt(&self) -> bool {
        self.unavailable_each + self.delay_each + self.partition_each + self.pause_each == 0
    }

    /// Nothing goes wrong but that servers are replaced in good order.
    pub(crate) fn is_orderly(&self) -> bool {
        self.processes_are_prompt() && self.crash_each + self.outages + self.model_each == 0 && !self.kills
    }
}

/// One process: alive until it is not.
pub(crate) struct Process {
    pub(crate) dice: Arc<Dice>,
    pub(crate) weather: Arc<Weather>,
    died: CancellationToken,
    troubles: Mutex<Troubles>,
}

/// Until when a process is in which trouble.
#[derive(Default)]
struct Troubles {
    cut_off: Option<Instant>,
    paused: Option<Instant>,
    deaf: Option<Instant>,
}

impl Process {
    pub(crate) fn new(dice: Arc<Dice>, weather: Arc<Weather>) -> Arc<Self> {
        Arc::new(Self { dice, weather, died: CancellationToken::new(), troubles: Mutex::default() })
    }

    pub(crate) fn die(&self) {
        self.died.cancel();
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.died.is_cancelled()
    }

    pub(crate) async fn death(&self) {
        self.died.cancelled().await;
    }

    pub(crate) fn happens(&self, chance: u64) -> bool {
        chance > 0 && self.weather.is_rough() && self.dice.chance(chance)
    }

    /// A place at which the process may be killed or stopped. `weight` is how likely that is, 10 being the ordinary.
    pub(crate) async fn step(&self, weight: u64) {
        if self.happens(self.weather.crash_each * weight / 10) {
            self.die();
        }
        if weight > 0 && self.happens(self.weather.pause_each) {
            let until = Instant::now() + Duration::from_millis(500 + self.dice.below(15_000));
            self.troubles.lock().unwrap().paused = Some(until);
        }
        self.go_on().await;
    }

    /// Returns when the process runs: not while it is stopped, never when it is dead.
    pub(crate) async fn go_on(&self) {
        while let Some(until) = self.paused_until() {
            sleep_until(until).await;
        }
        if self.is_dead() {
            std::future::pending::<()>().await;
        }
    }

    fn paused_until(&self) -> Option<Instant> {
        self.troubles.lock().unwrap().paused.filter(|until| Instant::now() < *until)
    }

    async fn dawdle(&self) {
        if self.happens(self.weather.delay_each) {
            let most_ms = if self.dice.chance(30) { 4_000 } else { 30 };
            sleep(Duration::from_millis(self.dice.below(most_ms))).await;
        }
    }

    /// Whether the store cannot be reached from here now.
    fn is_cut_off(&self) -> bool {
        if self.weather.store_away.load(Ordering::Relaxed) {
            return true;
        }
        let mut troubles = self.troubles.lock().unwrap();
        if self.happens(self.weather.partition_each) {
            troubles.cut_off = Some(Instant::now() + Duration::from_millis(200 + self.dice.below(7_000)));
        }
        self.weather.is_rough() && troubles.cut_off.is_some_and(|until| Instant::now() < until)
    }

    /// Whether the bell reaches this process now.
    pub(crate) fn is_deaf(&self) -> bool {
        let mut troubles = self.troubles.lock().unwrap();
        if self.happens(self.weather.deaf_each) {
            troubles.deaf = Some(Instant::now() + Duration::from_millis(500 + self.dice.below(10_000)));
        }
        self.weather.is_rough() && troubles.deaf.is_some_and(|until| Instant::now() < until)
    }

    /// Milliseconds by which a frame of the bell comes late here, once and again; nothing for one that is lost.
    pub(crate) fn frame_delays(&self) -> Vec<u64> {
        let chance = self.weather.bell_each / 4;
        let mut delays = Vec::new();
        if !self.happens(chance) {
            delays.push(if self.happens(chance) { self.dice.below(2_000) } else { 0 });
            delays.extend(self.happens(chance).then_some(0));
        }
        delays
    }

    /// Whether the bell delivers a frame without the records that it could carry.
    pub(crate) fn strips_records(&self) -> bool {
        self.happens(self.weather.bell_each)
    }

    /// Whether a listener is told that it missed something, be it true or not.
    pub(crate) fn loses_frames(&self) -> bool {
        self.happens(self.weather.bell_each / 20)
    }

    /// Whether a collection of garbage ends in the middle.
    pub(crate) fn fails_halfway(&self) -> bool {
        self.happens(self.weather.unavailable_each)
    }

    /// One call to the object store, with everything that may befall it.
    pub(crate) async fn blob_call<T>(
        &self,
        effect: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let away = || self.weather.blobs_away.load(Ordering::Relaxed) || self.happens(self.weather.blobs_each / 2);
        let unavailable = || Err(StoreError::Unavailable("simulated: no object store".to_owned()));
        self.step(5).await;
        self.dawdle().await;
        if away() {
            sleep(Duration::from_millis(self.dice.below(500))).await;
            return unavailable();
        }
        self.step(0).await;
        let result = effect.await;
        self.step(5).await;
        self.dawdle().await;
        if away() { unavailable() } else { result }
    }

    /// One call to the store, with everything that may befall it. `weight` is how likely a crash is around it.
    pub(crate) async fn call<T, E: From<StoreError>>(
        &self,
        weight: u64,
        effect: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        let unavailable = || E::from(StoreError::Unavailable("simulated".to_owned()));
        self.step(weight).await;
        self.dawdle().await;
        if self.is_cut_off() || self.happens(self.weather.unavailable_each / 2) {
            sleep(Duration::from_millis(self.dice.below(50))).await;
            return Err(unavailable());
        }
        self.step(0).await;
        let result = effect.await;
        self.step(weight).await;
        self.dawdle().await;
        self.step(0).await;
        if self.is_cut_off() || self.happens(self.weather.unavailable_each / 2) {
            return Err(unavailable());
        }
        result
    }
}

//! Whether this replica lives, as far as it knows: the heartbeats that the store took.
//!
//! Others take the sessions of a replica that was silent for three seconds. So a replica that could not beat for as
//! long starts nothing new until it beats again, and judges nobody before it has beaten for a while without a pause.

use tokio::sync::watch;
use tokio::time::{Duration, Instant};

/// Time between two heartbeats.
pub(crate) const BEAT_EVERY: Duration = Duration::from_millis(200);

/// A replica that could not beat for this long starts no new effect.
const SILENT_MAX: Duration = Duration::from_secs(3);

/// A longer pause between two beats ends an unbroken run.
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// Somebody who asks the store for something is told that it is away when it took no heartbeat for this long.
const AWAY_AFTER: Duration = Duration::from_secs(1);

#[derive(Clone, Copy)]
struct Run {
    since: Instant,
    last: Instant,
    /// A heartbeat failed after the last one that came through.
    broken: bool,
}

/// The replica's own heartbeats; written by the one task that beats.
#[derive(Clone)]
pub(crate) struct Pulse {
    run: watch::Sender<Option<Run>>,
}

impl Pulse {
    pub(crate) fn new() -> Self {
        Self { run: watch::Sender::new(None) }
    }

    /// What others may see of it.
    pub(crate) fn heartbeats(&self) -> Heartbeats {
        Heartbeats { run: self.run.subscribe() }
    }

    /// The store took a heartbeat that was sent at `sent`.
    pub(crate) fn beat(&self, sent: Instant) {
        self.run.send_modify(|run| {
            let since = match run {
                Some(run) if !run.broken && sent.duration_since(run.last) <= PAUSE_MAX => run.since,
                _ => sent,
            };
            *run = Some(Run { since, last: sent, broken: false });
        });
    }

    /// A heartbeat failed.
    pub(crate) fn missed(&self) {
        self.run.send_modify(|run| {
            if let Some(run) = run {
                run.broken = true;
            }
        });
    }

    /// Returns as soon as the replica may start an effect.
    pub(crate) async fn alive(&self) {
        let mut run = self.run.subscribe();
        loop {
            if let Some(run) = *run.borrow_and_update()
                && run.last.elapsed() < SILENT_MAX
            {
                return;
            }
            if run.changed().await.is_err() {
                return;
            }
        }
    }

    /// For how long the replica has beaten without a pause.
    pub(crate) fn unbroken(&self) -> Duration {
        match *self.run.borrow() {
            Some(run) if !run.broken && run.last.elapsed() <= PAUSE_MAX => {
                run.last.saturating_duration_since(run.since)
            }
            _ => Duration::ZERO,
        }
    }
}

/// Whether the store takes this replica's heartbeats: for those who want to know whether it is worth asking.
#[derive(Clone)]
pub struct Heartbeats {
    run: watch::Receiver<Option<Run>>,
}

impl Heartbeats {
    /// Whether heartbeats come through, or have failed for a moment only. True until the first one has.
    pub fn come_through(&self) -> bool {
        self.run.borrow().is_none_or(|run| !run.broken || run.last.elapsed() < AWAY_AFTER)
    }
}

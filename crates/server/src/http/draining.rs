//! What the API does while the process drains.
//!
//! Requests are answered to the end, each on a connection that closes after it, so that the next one finds another
//! replica. Streams that are open end one after the other, in an order left to chance and spread over a while, so
//! that their clients do not all come back in the same moment; new ones are refused until somebody else takes them.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use engine::port::Entropy;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

/// Whether the process drains, and the streams that are to end for it.
#[derive(Clone)]
pub struct Draining {
    begun: CancellationToken,
    inner: Arc<Inner>,
}

struct Inner {
    /// Set before `begun` is cancelled.
    began_at: OnceLock<Instant>,
    /// How long the ends of streams are spread over.
    spread: Duration,
    streams: TaskTracker,
}

impl Draining {
    /// A process that does not drain yet, and will spread the ends of its streams over this time.
    pub fn new(spread: Duration) -> Self {
        let inner = Inner { began_at: OnceLock::new(), spread, streams: TaskTracker::new() };
        Self { begun: CancellationToken::new(), inner: Arc::new(inner) }
    }

    /// The drain begins.
    pub fn begin(&self) {
        self.inner.began_at.get_or_init(Instant::now);
        self.begun.cancel();
    }

    /// Cancelled when the drain begins.
    pub fn begun(&self) -> &CancellationToken {
        &self.begun
    }

    /// Whether it has begun.
    pub fn is_draining(&self) -> bool {
        self.begun.is_cancelled()
    }

    /// Waits until no stream is open, for no longer than the ends of streams are spread over.
    pub async fn streams_ended(&self) {
        self.inner.streams.close();
        let began_at = *self.inner.began_at.get_or_init(Instant::now);
        tokio::select! {
            () = self.inner.streams.wait() => {}
            () = sleep_until(began_at + self.inner.spread) => {}
        }
    }

    /// The place of a stream that has just been opened.
    pub(super) fn place(&self, entropy: &dyn Entropy) -> Place {
        let chance = (entropy.draw() % 1_000) as u32;
        let after = self.inner.spread * chance / 1_000;
        Place { draining: self.clone(), after, open: self.inner.streams.token() }
    }
}

/// When in a drain one stream ends. Dropping it says that the stream has ended.
pub(super) struct Place {
    draining: Draining,
    after: Duration,
    #[expect(dead_code, reason = "counts the stream as open until it is dropped")]
    open: TaskTrackerToken,
}

impl Place {
    /// Waits until the stream has to end.
    pub(super) async fn comes(&self) {
        self.draining.begun.cancelled().await;
        let began_at = self.draining.inner.began_at.get().copied().unwrap_or_else(Instant::now);
        sleep_until(began_at + self.after).await;
    }
}

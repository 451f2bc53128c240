//! Keeps the lease of one work item alive and says when, and how, it ended.
//!
//! The worker never judges a lease lost by its own clock: through refused connections and server errors it goes on
//! beating, keeps the running call and its token, and waits to be told 409 or 412.

use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

use super::backoff::Backoff;
use super::client::{ApiError, Client};
use crate::secret::Secret;

const INTERVAL_MIN: Duration = Duration::from_millis(500);
const INTERVAL_MAX: Duration = Duration::from_secs(30);

/// How a lease ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LeaseEnd {
    /// The item belongs to somebody else or to nobody: leave it alone.
    Lost,
    /// The server asks for the item back: end in good order and stop it.
    AskedToStop,
}

/// One item's lease, shared by the task that beats and the task that works.
#[derive(Debug, Clone, Default)]
pub(crate) struct Lease {
    ended: CancellationToken,
    end: Arc<OnceLock<LeaseEnd>>,
}

impl Lease {
    /// Resolves when the lease has ended.
    pub(crate) async fn ended(&self) -> LeaseEnd {
        self.ended.cancelled().await;
        self.end.get().copied().unwrap_or(LeaseEnd::Lost)
    }

    /// The first reason stands.
    pub(crate) fn end(&self, end: LeaseEnd) {
        let _ = self.end.set(end);
        self.ended.cancel();
    }
}

/// Beats until the lease ends. `on_first` is cancelled, as a signal, once the server knows the lease.
pub(crate) async fn keep(
    client: Arc<Client>,
    work_id: String,
    token: Secret,
    lease: Lease,
    on_first: CancellationToken,
) {
    let mut last: Option<String> = None;
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(1));
    loop {
        let beat = tokio::select! {
            beat = client.heartbeat(&work_id, &token, last.as_deref()) => beat,
            _ = lease.ended() => return,
        };
        match beat {
            Ok(beat) if beat.asks_to_stop() => {
                tracing::info!(work_id, state = beat.state, "the server asks for the work item back");
                return lease.end(LeaseEnd::AskedToStop);
            }
            Ok(beat) => {
                backoff.reset();
                on_first.cancel();
                last = Some(beat.last_heartbeat);
                let third = Duration::try_from_secs_f64(beat.ttl_seconds / 3.0).unwrap_or(INTERVAL_MIN);
                tokio::select! {
                    () = tokio::time::sleep(third.clamp(INTERVAL_MIN, INTERVAL_MAX)) => {}
                    _ = lease.ended() => return,
                }
            }
            Err(error) if error.is_transient() => {
                tracing::debug!(work_id, %error, "heartbeat failed and is repeated");
                backoff.wait().await;
            }
            Err(error) => {
                log_end(&work_id, &error);
                return lease.end(LeaseEnd::Lost);
            }
        }
    }
}

fn log_end(work_id: &str, error: &ApiError) {
    match error.status() {
        Some(409 | 412) => tracing::info!(work_id, "the lease is gone: the work item is abandoned"),
        _ => tracing::warn!(work_id, %error, "heartbeat refused: the work item is abandoned"),
    }
}

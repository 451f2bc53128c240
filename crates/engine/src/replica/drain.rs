//! The drain: how a replica that was told to stop gives away what it holds.
//!
//! A driver hands its session over at the next safe point: before a model request, or while a call waits for its
//! worker, for whom nothing changes. Whatever waits for a client is not held at all. So what takes time are open
//! model requests, and for them the budget has two marks. At the first it is said how many are left; at the second
//! they are cut, which the session tells its clients as rescheduled, and another replica makes them again.

use tokio::time::{Duration, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::{Scheduler, let_go};

/// The share of the budget after which the rest is told of.
const LAST_CALL_PERCENT: u32 = 80;

/// How long cut sessions may take to be handed over.
const CUT_GRACE: Duration = Duration::from_secs(2);

/// Makes a drain skip what is left of its budget, one mark at a time.
#[derive(Clone, Default)]
pub struct Hurry {
    last_call: CancellationToken,
    cut: CancellationToken,
}

impl Hurry {
    /// Goes to the next mark: first only the last fifth of the budget is left, then nothing.
    pub fn hurry(&self) {
        if self.last_call.is_cancelled() {
            self.cut.cancel();
        }
        self.last_call.cancel();
    }
}

impl Scheduler {
    /// Lets every driver come to a safe point, cuts those that take too long.
    pub(super) async fn drain(&mut self, budget: Duration, hurry: &Hurry) {
        self.shared.draining.cancel();
        self.won.close();
        // What was won and not yet begun is handed over by a driver too.
        while let Some(won) = self.won.recv().await {
            self.start(won);
        }
        let last_call = budget * LAST_CALL_PERCENT / 100;
        if !self.is_empty_within(last_call, &hurry.last_call).await {
            let left = budget - last_call;
            tracing::warn!(
                sessions = self.held.len(),
                cut_in_ms = left.as_millis() as u64,
                "the drain waits for the answers of models"
            );
            if !self.is_empty_within(left, &hurry.cut).await {
                tracing::warn!(sessions = self.held.len(), "the drain takes too long: open model requests are cut");
                self.shared.cut.cancel();
                let _ = timeout(CUT_GRACE, self.until_none_is_held()).await;
            }
        }
        // A claiming pass that was stopped midway may have won what nobody here knows of.
        let _ = timeout(CUT_GRACE, self.let_go_of_unknown()).await;
    }

    /// Whether nothing is held any more, within this time or until somebody is in a hurry.
    async fn is_empty_within(&mut self, patience: Duration, hurry: &CancellationToken) -> bool {
        tokio::select! {
            biased;
            () = self.until_none_is_held() => true,
            () = hurry.cancelled() => false,
            () = sleep(patience) => false,
        }
    }

    async fn let_go_of_unknown(&mut self) {
        if let Ok(unknown) = self.shared.world.leases.held(self.claims.replica_id()).await {
            for claim in unknown {
                let_go(self.shared.clone(), claim).await;
            }
        }
    }
}

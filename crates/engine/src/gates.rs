//! Where those wait who append to the same session from this process.
//!
//! An append that finds the log moved on is decided again, and as long as few do so at once that is all it takes. Where
//! many do, each disturbs all others. So whoever was disturbed goes on one at a time, in the order in which they came,
//! and whoever comes then queues behind them; a session that nobody crowds has no gate. The session's owner queues as
//! well: it has no more rivals than there are replicas, however many clients post.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use session::id::SessionId;
use tokio::sync::OwnedMutexGuard;
use tokio::time::{Duration, timeout};

/// Who has waited for so long goes on as if nobody was there: the one in front may be waiting for the store, and then it
/// is the store that has to refuse whoever comes.
const PATIENCE: Duration = Duration::from_secs(2);

type Turn = Arc<tokio::sync::Mutex<()>>;

/// The gates of one process, by the session that is crowded.
#[derive(Debug, Default)]
pub struct Gates {
    crowded: Mutex<BTreeMap<SessionId, Turn>>,
}

/// Somebody's turn, until it is dropped.
#[derive(Debug)]
pub(crate) struct Passage {
    // Dropped first: only then can the gate be seen to be left.
    _turn: Option<OwnedMutexGuard<()>>,
    _place: Place,
}

/// A place in the queue. The last one to leave closes the gate.
#[derive(Debug)]
struct Place {
    gates: Arc<Gates>,
    session_id: SessionId,
    turn: Turn,
}

impl Gates {
    /// Waits for a turn.
    pub(crate) async fn pass(self: &Arc<Self>, session_id: &SessionId) -> Passage {
        let turn = Arc::clone(self.crowded().entry(session_id.clone()).or_default());
        self.queue(session_id, turn).await
    }

    /// The same, if somebody else has come to the gate.
    pub(crate) async fn pass_if_crowded(self: &Arc<Self>, session_id: &SessionId) -> Option<Passage> {
        let turn = self.crowded().get(session_id).map(Arc::clone)?;
        Some(self.queue(session_id, turn).await)
    }

    async fn queue(self: &Arc<Self>, session_id: &SessionId, turn: Turn) -> Passage {
        let place = Place { gates: Arc::clone(self), session_id: session_id.clone(), turn };
        let turn = timeout(PATIENCE, Arc::clone(&place.turn).lock_owned()).await.ok();
        Passage { _turn: turn, _place: place }
    }

    fn crowded(&self) -> MutexGuard<'_, BTreeMap<SessionId, Turn>> {
        self.crowded.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut crowded = self.gates.crowded();
        // The map's and this one: nobody else can come by another while the map is locked.
        if Arc::strong_count(&self.turn) == 2 {
            crowded.remove(&self.session_id);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn whoever_waits_passes_in_order_and_the_last_one_closes_the_gate() {
        let (gates, id) = (Arc::new(Gates::default()), SessionId::from("sesn_1"));
        assert!(gates.pass_if_crowded(&id).await.is_none(), "nobody is there");
        let first = gates.pass(&id).await;
        let mut second = Box::pin(gates.pass_if_crowded(&id));
        assert!(second.as_mut().now_or_never().is_none());
        let mut third = Box::pin(gates.pass(&id));
        assert!(third.as_mut().now_or_never().is_none());
        drop(first);
        assert!(third.as_mut().now_or_never().is_none(), "the second comes first");
        let second = second.now_or_never().expect("it is its turn");
        drop(third);
        drop(second);
        assert!(gates.crowded().is_empty());
        assert!(gates.pass_if_crowded(&id).await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_ever_behind_one_who_is_stuck() {
        let (gates, id) = (Arc::new(Gates::default()), SessionId::from("sesn_1"));
        let stuck = gates.pass(&id).await;
        let passed = gates.pass(&id).await;
        drop((passed, stuck));
        assert!(gates.crowded().is_empty());
    }

    #[tokio::test]
    async fn another_session_has_another_gate() {
        let gates = Arc::new(Gates::default());
        let _passage = gates.pass(&SessionId::from("sesn_1")).await;
        assert!(gates.pass(&SessionId::from("sesn_2")).now_or_never().is_some());
    }
}

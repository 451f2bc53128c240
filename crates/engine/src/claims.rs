//! How a claim that was won reaches the scheduler of this process, and how many it may hold.
//!
//! A claim is won by the scheduler's own passes or inside a client's append on this replica. Either way a slot is
//! taken first, so that the limit holds without asking; a slot goes with its claim and is free again when the
//! session is let go. A claim whose winner vanished (an answer lost, a request dropped in mid-append) is found
//! again by [`Leases::held`](crate::port::Leases::held), which [`LocalClaims`] asks for by raising a flag.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use session::State;
use session::id::ReplicaId;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc};

use crate::observer::HandOver;
use crate::port::{Claim, StoredRecord};

/// The right to hold one more session; given back when it is dropped.
pub(crate) struct Slot {
    permit: Option<OwnedSemaphorePermit>,
    freed: Arc<Notify>,
}

impl Drop for Slot {
    fn drop(&mut self) {
        // Whoever is told finds the slot free.
        drop(self.permit.take());
        self.freed.notify_one();
    }
}

/// A claim that somebody has to drive from now on.
pub(crate) struct Won {
    pub(crate) claim: Claim,
    /// How the last owner left the session, if it left in mid-turn.
    pub(crate) from: Option<HandOver>,
    /// `None` for a claim that was found again: the scheduler may know it already.
    pub(crate) slot: Option<Slot>,
    pub(crate) start: Option<Start>,
}

/// What the winner already knows of the session, to spare the driver the reads.
pub(crate) struct Start {
    pub(crate) state: State,
    /// The last records, ending at `state.position`.
    pub(crate) tail: Arc<[StoredRecord]>,
}

/// Through which client appends of this process claim sessions for its scheduler.
#[derive(Clone)]
pub struct LocalClaims {
    replica_id: ReplicaId,
    slots: Arc<Semaphore>,
    won: mpsc::UnboundedSender<Won>,
    doubt: Arc<Notify>,
    freed: Arc<Notify>,
    /// The last claiming pass found more sessions than slots, or no slot to look with.
    crowded: Arc<AtomicBool>,
}

impl LocalClaims {
    /// Claims for a replica that nobody knows yet: no slot is given before [`LocalClaims::open`].
    pub(crate) fn new(replica_id: ReplicaId) -> (Self, mpsc::UnboundedReceiver<Won>) {
        let (won, receiver) = mpsc::unbounded_channel();
        let claims = Self {
            replica_id,
            slots: Arc::new(Semaphore::new(0)),
            won,
            doubt: Arc::default(),
            freed: Arc::default(),
            // Until the first pass has looked.
            crowded: Arc::new(AtomicBool::new(true)),
        };
        (claims, receiver)
    }

    pub(crate) fn replica_id(&self) -> &ReplicaId {
        &self.replica_id
    }

    /// The replica is registered and may hold this many sessions.
    pub(crate) fn open(&self, sessions_max: usize) {
        self.slots.add_permits(sessions_max.min(Semaphore::MAX_PERMITS));
    }

    /// A slot, while there is room and the replica is not draining.
    pub(crate) fn slot(&self) -> Option<Slot> {
        let permit = Arc::clone(&self.slots).try_acquire_owned().ok()?;
        Some(Slot { permit: Some(permit), freed: Arc::clone(&self.freed) })
    }

    /// The same for a session that has just become due: `None` also while others may have waited for longer.
    pub(crate) fn slot_for_newcomer(&self) -> Option<Slot> {
        if self.crowded.load(Ordering::Relaxed) { None } else { self.slot() }
    }

    /// Whether sessions wait that there is no room for, as far as the last claiming pass saw.
    pub(crate) fn set_crowded(&self, crowded: bool) {
        self.crowded.store(crowded, Ordering::Relaxed);
    }

    /// Waits until there is room for a session that waits.
    pub(crate) async fn room(&self) {
        if !self.crowded.load(Ordering::Relaxed) {
            return std::future::pending().await;
        }
        self.freed.notified().await;
    }

    /// Hands a claim to the scheduler.
    pub(crate) fn hand_in(&self, won: Won) {
        // A scheduler that is gone has retired its replica: the claim is anybody's.
        let _ = self.won.send(won);
    }

    /// No slot is given from now on.
    pub(crate) fn close(&self) {
        self.slots.close();
    }

    /// A claim may have been won that nobody knows of.
    pub(crate) fn doubt(&self) -> Doubt {
        Doubt { notify: Arc::clone(&self.doubt), raised: true }
    }

    /// Waits until somebody doubts.
    pub(crate) async fn doubted(&self) {
        self.doubt.notified().await;
    }
}

/// Tells the scheduler, when dropped, to look for claims that nobody knows of; unless it was settled.
pub(crate) struct Doubt {
    notify: Arc<Notify>,
    raised: bool,
}

impl Doubt {
    pub(crate) fn settle(mut self) {
        self.raised = false;
    }
}

impl Drop for Doubt {
    fn drop(&mut self) {
        if self.raised {
            self.notify.notify_one();
        }
    }
}

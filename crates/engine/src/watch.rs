//! Which sessions this process follows, so that one batched query finds what the bell did not tell.
//!
//! Feeds and drivers register the sessions they wait on; the replica's poller asks the log for all their positions
//! at once ([`Watch::poll`]) and wakes those whose session moved. Hearing it from the bell first is the ordinary case.
//! A follower that knows it missed something asks for a look ([`Watched::look`]) and gets it with the next batch, so
//! that a bell which lost frames for ten thousand followers costs ten queries.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use session::id::SessionId;
use tokio::sync::{Notify, watch};

use crate::port::{EventLog, StoreError};

/// Positions asked for in one query.
const BATCH: usize = 1_000;

/// The sessions that this process follows, with the last position that the poller saw of each.
#[derive(Default)]
pub struct Watch {
    sessions: Mutex<BTreeMap<SessionId, Entry>>,
    /// Sessions to look up before the next round.
    wanted: Mutex<BTreeSet<SessionId>>,
    is_wanted: Notify,
}

struct Entry {
    followers: usize,
    position: watch::Sender<u64>,
}

/// One follower's registration; dropping it ends it.
pub struct Watched {
    watch: Arc<Watch>,
    session_id: SessionId,
    position: watch::Receiver<u64>,
}

impl Watch {
    /// Follows a session until the returned value is dropped.
    pub fn follow(self: &Arc<Self>, session_id: &SessionId) -> Watched {
        let mut sessions = self.lock();
        let entry = sessions
            .entry(session_id.clone())
            .or_insert_with(|| Entry { followers: 0, position: watch::Sender::new(0) });
        entry.followers += 1;
        Watched { watch: Arc::clone(self), session_id: session_id.clone(), position: entry.position.subscribe() }
    }

    /// How many sessions are followed.
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    /// Whether no session is followed.
    pub fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    /// Asks the log where every followed session stands, and wakes the followers of those that moved.
    pub async fn poll(&self, log: &dyn EventLog) -> Result<(), StoreError> {
        let followed: Vec<SessionId> = self.lock().keys().cloned().collect();
        self.look_up(log, &followed).await
    }

    /// Waits until a follower asks for a look.
    pub async fn wanted(&self) {
        self.is_wanted.notified().await;
    }

    /// The same as [`Self::poll`] for those sessions alone whose followers asked.
    pub async fn poll_wanted(&self, log: &dyn EventLog) -> Result<(), StoreError> {
        let wanted: Vec<SessionId> = std::mem::take(&mut *lock(&self.wanted)).into_iter().collect();
        self.look_up(log, &wanted).await
    }

    async fn look_up(&self, log: &dyn EventLog, followed: &[SessionId]) -> Result<(), StoreError> {
        for batch in followed.chunks(BATCH) {
            let positions = log.positions(batch).await?;
            let sessions = self.lock();
            for (session_id, position) in positions {
                if let Some(entry) = sessions.get(&session_id) {
                    entry.position.send_if_modified(|known| {
                        let moved = position > *known;
                        *known = position.max(*known);
                        moved
                    });
                }
            }
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<SessionId, Entry>> {
        lock(&self.sessions)
    }
}

/// What is behind these locks is whole between any two statements.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Watched {
    /// Asks the poller to look this session up now; what it finds is told by [`Self::moved_beyond`].
    pub fn look(&self) {
        lock(&self.watch.wanted).insert(self.session_id.clone());
        self.watch.is_wanted.notify_one();
    }

    /// Waits until the poller has seen the session beyond `position`.
    pub async fn moved_beyond(&mut self, position: u64) -> u64 {
        let seen = self.position.wait_for(|seen| *seen > position).await.map(|seen| *seen);
        match seen {
            Ok(seen) => seen,
            // The sender lives in the entry, which this registration keeps.
            Err(_) => std::future::pending().await,
        }
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        let mut sessions = self.watch.lock();
        if let Some(entry) = sessions.get_mut(&self.session_id) {
            entry.followers -= 1;
            if entry.followers == 0 {
                sessions.remove(&self.session_id);
            }
        }
    }
}

//! Which sessions this process follows, so that one batched query finds what the bell did not tell.
//!
//! Feeds and drivers register the sessions they wait on; the replica's poller asks the log for all their positions
//! at once ([`Watch::poll`]) and wakes those whose session moved. Hearing it from the bell first is the ordinary case.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use session::id::SessionId;
use tokio::sync::watch;

use crate::port::{EventLog, StoreError};

/// Positions asked for in one query.
const BATCH: usize = 1_000;

/// The sessions that this process follows, with the last position that the poller saw of each.
#[derive(Default)]
pub struct Watch {
    sessions: Mutex<BTreeMap<SessionId, Entry>>,
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
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Watched {
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

//! Who drives which session: replicas, their heartbeats and their claims.

use async_trait::async_trait;
use session::id::{ReplicaId, SessionId};

use super::{StoreError, Track};

/// A replica's right to append as owner, until somebody else gets a higher epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    pub session_id: SessionId,
    pub replica_id: ReplicaId,
    pub epoch: u64,
}

/// A claim just taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claimed {
    pub claim: Claim,
    /// The session was taken from an owner that is dead, not from nobody.
    pub taken_over: bool,
    /// Its last owner gave it away in mid-turn, and nobody had it since.
    pub handed_over: bool,
}

/// Claims over sessions.
#[async_trait]
pub trait Leases: Send + Sync + 'static {
    /// Makes the replica known as alive. Called once at start, before any claim. Where one process is all there is,
    /// its track decides nothing.
    async fn register(&self, replica_id: &ReplicaId, track: Track) -> Result<(), StoreError>;

    /// Says that the replica lives. Called every 200 ms.
    async fn heartbeat(&self, replica_id: &ReplicaId) -> Result<(), StoreError>;

    /// Takes up to `limit` sessions that are due (their wake-up has come) and have no living owner, longest waiting
    /// first. Each gets its epoch raised by one. In time of the store. Only sessions of the replica's own track, and
    /// those of one of which it has seen no living replica for [`TRACK_ABANDONED_MS`].
    ///
    /// [`TRACK_ABANDONED_MS`]: super::tracks::TRACK_ABANDONED_MS
    async fn claim(&self, replica_id: &ReplicaId, limit: usize) -> Result<Vec<Claimed>, StoreError>;

    /// Gives up a claim without appending, leaving the wake-up as it is; a lost claim is no error. `handed_over` is
    /// told to whoever claims the session next.
    async fn release(&self, claim: &Claim, handed_over: bool) -> Result<(), StoreError>;

    /// Every claim in force of this replica: so it finds one that it won in a call or an append whose answer was lost.
    async fn held(&self, replica_id: &ReplicaId) -> Result<Vec<Claim>, StoreError>;

    /// When the next wake-up that lies in the future comes, for replicas that sleep until then.
    async fn next_wake(&self) -> Result<Option<session::Timestamp>, StoreError>;

    /// Makes claimable what the rules of this port never leave behind: sessions in mid-turn without an owner that
    /// nothing would wake. How many there were, at most `limit`.
    async fn wake_lost(&self, limit: usize) -> Result<usize, StoreError>;

    /// Says goodbye: the replica is dead from now on.
    async fn retire(&self, replica_id: &ReplicaId) -> Result<(), StoreError>;
}

//! Who drives which session: replicas, their heartbeats and their claims.

use async_trait::async_trait;
use session::id::{ReplicaId, SessionId};

use super::StoreError;

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
}

/// Claims over sessions.
#[async_trait]
pub trait Leases: Send + Sync + 'static {
    /// Makes the replica known as alive. Called once at start, before any claim.
    async fn register(&self, replica_id: &ReplicaId) -> Result<(), StoreError>;

    /// Says that the replica lives. Called every 200 ms.
    async fn heartbeat(&self, replica_id: &ReplicaId) -> Result<(), StoreError>;

    /// Takes up to `limit` sessions that are due (their wake-up has come) and have no living owner, longest waiting
    /// first. Each gets its epoch raised by one. In time of the store.
    async fn claim(&self, replica_id: &ReplicaId, limit: usize) -> Result<Vec<Claimed>, StoreError>;

    /// Gives up a claim without appending, leaving the wake-up as it is; a lost claim is no error.
    async fn release(&self, claim: &Claim) -> Result<(), StoreError>;

    /// Every claim in force of this replica: so it finds one that it won in a call or an append whose answer was lost.
    async fn held(&self, replica_id: &ReplicaId) -> Result<Vec<Claim>, StoreError>;

    /// When the next wake-up that lies in the future comes, for replicas that sleep until then.
    async fn next_wake(&self) -> Result<Option<session::Timestamp>, StoreError>;

    /// Says goodbye: the replica is dead from now on.
    async fn retire(&self, replica_id: &ReplicaId) -> Result<(), StoreError>;
}

//! The work queue of api.md section 5: sessions waiting for a worker.
//!
//! Items are queued by appends ([`WorkChange`]) and handed out here. Times, leases included, are the store's.
//! A store keeps only the hash of an item's token.

use std::collections::BTreeMap;

use async_trait::async_trait;
use session::Timestamp;
use session::event::EnvironmentKind;
use session::id::{EnvironmentId, SessionId, WorkId};

use super::{After, Keep, KeepError, StoreError};

/// What an append does to the session's work item.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum WorkChange {
    #[default]
    None,
    /// Queues an item with this id, unless the session has one that is not stopped.
    Ensure { work_id: WorkId },
    /// Ends the lease on this item, or ends it in the queue: token and heartbeat are cleared.
    /// `seen` is the [`WorkItem::last_sign_at`] of the item that was judged, `None` for one in the queue: an item whose
    /// lease was revived, ended or begun meanwhile has another one, and the append fails with `Conflict`.
    EndLease { work_id: WorkId, seen: Option<Timestamp>, then: AfterLease },
    /// The session is over: its item, if any, goes to `stopping` when held and to `stopped` otherwise.
    Stop,
}

/// What becomes of an item whose lease ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AfterLease {
    /// It waits for another worker.
    Requeue,
    /// It is over.
    Stop,
    /// It is over, and another one is queued for what its session still has to run.
    Replace { work_id: WorkId },
}

/// Where an item is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WorkState {
    Queued,
    Starting,
    Active,
    Stopping,
    Stopped,
}

/// An item of the queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkItem {
    pub id: WorkId,
    pub session_id: SessionId,
    pub environment_id: EnvironmentId,
    pub environment_kind: EnvironmentKind,
    pub state: WorkState,
    pub metadata: BTreeMap<String, String>,
    pub created_at: Timestamp,
    pub acknowledged_at: Option<Timestamp>,
    pub started_at: Option<Timestamp>,
    pub latest_heartbeat_at: Option<Timestamp>,
    pub stop_requested_at: Option<Timestamp>,
    pub stopped_at: Option<Timestamp>,
    /// Length of the lease, from the latest heartbeat or, before the first, from the acknowledgement.
    pub lease_ttl_seconds: u32,
}

impl WorkItem {
    /// Whether it is not stopped.
    pub fn lives(&self) -> bool {
        self.state != WorkState::Stopped
    }

    /// When the holder last gave a sign of life, from which its lease counts; `None` for an item nobody holds.
    pub fn last_sign_at(&self) -> Option<Timestamp> {
        match self.state {
            WorkState::Queued | WorkState::Stopped => None,
            WorkState::Starting | WorkState::Active | WorkState::Stopping => {
                self.latest_heartbeat_at.or(self.acknowledged_at)
            }
        }
    }
}

/// Whose items are meant: no other item is visible to the call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pool {
    /// Every cloud environment (`env_pool`).
    Cloud,
    /// One self-hosted environment.
    Environment(EnvironmentId),
}

/// A heartbeat's precondition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExpectedHeartbeat {
    /// None: beat unconditionally.
    Any,
    /// `NO_HEARTBEAT`: the lease must be unclaimed.
    None,
    /// The last heartbeat, exactly.
    At(Timestamp),
}

/// What came of a heartbeat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heartbeat {
    /// The lease runs on (or, for an item that is stopping or stopped, does not).
    Beat {
        item: WorkItem,
        lease_extended: bool,
    },
    /// The precondition does not hold; nothing changed.
    Mismatch {
        item: WorkItem,
    },
    NotFound,
}

/// What came of an acknowledgement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Acknowledged {
    Yes(WorkItem),
    /// Somebody else has it, or it has ended.
    Lost,
    NotFound,
}

/// Figures of one environment's queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueStats {
    /// Items queued and not handed out.
    pub depth: u64,
    /// Items handed out and not acknowledged.
    pub pending: u64,
    /// When the oldest queued item was queued.
    pub oldest_queued_at: Option<Timestamp>,
    /// Distinct workers that polled in the last 30 s.
    pub workers_polling: u64,
}

/// The queue.
#[async_trait]
pub trait WorkQueue: Send + Sync + 'static {
    /// Hands out the oldest item that is queued and was not handed out within `reclaim_older_than_ms`, with a new
    /// token of which the store keeps `token_hash`. Notes that `worker_id` polled.
    async fn poll(
        &self,
        pool: &Pool,
        worker_id: &str,
        reclaim_older_than_ms: u32,
        token_hash: &str,
    ) -> Result<Option<WorkItem>, StoreError>;

    /// `queued` and handed out becomes `starting`; the lease begins, of `ttl_seconds` where given.
    async fn acknowledge(
        &self,
        pool: &Pool,
        work_id: &WorkId,
        ttl_seconds: Option<u32>,
    ) -> Result<Acknowledged, StoreError>;

    /// `starting` becomes `active`; the lease is extended from now, by `ttl_seconds` where given.
    async fn heartbeat(
        &self,
        pool: &Pool,
        work_id: &WorkId,
        expected: &ExpectedHeartbeat,
        ttl_seconds: Option<u32>,
    ) -> Result<Heartbeat, StoreError>;

    /// Asks the holder to stop (`stopping`); `None` if nobody holds such an item. What its session still needs is not
    /// looked at here: an item ends with an append of its session ([`WorkChange::EndLease`]).
    async fn ask_to_stop(&self, pool: &Pool, work_id: &WorkId) -> Result<Option<WorkItem>, StoreError>;

    async fn item(&self, pool: &Pool, work_id: &WorkId) -> Result<Option<WorkItem>, StoreError>;

    /// Newest first.
    async fn list_items(&self, pool: &Pool, after: Option<&After>, limit: usize) -> Result<Vec<WorkItem>, StoreError>;

    /// Replaces the metadata, and keeps the answer as the writes of definitions do.
    async fn set_metadata(
        &self,
        pool: &Pool,
        work_id: &WorkId,
        metadata: &BTreeMap<String, String>,
        keep: Option<Keep<WorkItem>>,
    ) -> Result<Option<WorkItem>, KeepError>;

    async fn stats(&self, pool: &Pool) -> Result<QueueStats, StoreError>;

    /// The item whose current token has this hash.
    async fn item_by_token(&self, token_hash: &str) -> Result<Option<WorkItem>, StoreError>;

    /// Items whose lease has run out by the store's clock, and held items whose session has ended, at most `limit`.
    /// The engine ends each with an append that carries [`WorkChange::EndLease`].
    async fn expired(&self, limit: usize) -> Result<Vec<WorkItem>, StoreError>;

    /// Every held item of cloud environments: what the embedded server ends when it starts.
    async fn held_cloud_items(&self) -> Result<Vec<WorkItem>, StoreError>;
}

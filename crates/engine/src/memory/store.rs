//! What the memory store holds, and how its ports get at it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use session::id::{
    AgentId, ApiKeyId, EnvironmentId, EnvironmentKeyId, EventId, FileId, ReplicaId, ResourceId, SessionId, WorkId,
};
use session::{State, Timestamp};

use super::MemoryBlobs;
use super::ledger::Reservation;
use crate::port::blobs::UNREFERENCED_KEPT_MICROS;
use crate::port::{
    After, Agent, Amount, BlobHash, Clock, Environment, EnvironmentKey, File, FileResource, Kept, Order, RolloutWeight,
    StoredRecord, TimeRange, Track, WorkItem,
};

/// A database in memory, implementing every port that a real store implements.
///
/// It outlives the replicas that use it. Its time is the clock it was made with.
pub struct MemoryStore {
    clock: Arc<dyn Clock>,
    tables: Mutex<Tables>,
    pub(super) bytes: MemoryBlobs,
    pub(super) unreferenced_kept_micros: i64,
}

#[derive(Default)]
pub(super) struct Tables {
    pub(super) sessions: BTreeMap<SessionId, SessionRow>,
    pub(super) replicas: BTreeMap<ReplicaId, ReplicaRow>,
    pub(super) items: BTreeMap<WorkId, ItemRow>,
    /// Counts items, so that equal times still have an order.
    pub(super) items_made: u64,
    /// When each worker last polled, by pool and worker id.
    pub(super) polls: BTreeMap<(String, String), Timestamp>,
    /// Versions of each agent, oldest first.
    pub(super) agents: BTreeMap<AgentId, Vec<Agent>>,
    pub(super) environments: BTreeMap<EnvironmentId, Environment>,
    /// When each session began to refer to each chunk.
    pub(super) chunks: BTreeMap<(SessionId, BlobHash), Timestamp>,
    pub(super) keys: BTreeMap<EnvironmentKeyId, EnvironmentKey>,
    /// When each blob was last touched.
    pub(super) blobs: BTreeMap<BlobHash, Timestamp>,
    /// Answers by the hash of the credential and the key, and since when.
    pub(super) kept: BTreeMap<(String, String), (Kept, Timestamp)>,
    pub(super) files: BTreeMap<FileId, File>,
    /// What each key used on each day, and the part of it that is estimated.
    pub(super) key_usage: BTreeMap<(ApiKeyId, i64), (Amount, Amount)>,
    /// By the request.
    pub(super) reservations: BTreeMap<EventId, Reservation>,
    pub(super) resources: BTreeMap<ResourceId, FileResource>,
    /// The file and the content that each path of a session had last.
    pub(super) outputs: BTreeMap<(SessionId, String), (FileId, BlobHash)>,
    pub(super) rollout_weight: Option<RolloutWeight>,
}

pub(super) struct SessionRow {
    pub(super) records: Vec<StoredRecord>,
    pub(super) state: State,
    pub(super) api_key_id: Option<ApiKeyId>,
    pub(super) owner: Option<ReplicaId>,
    pub(super) epoch: u64,
    pub(super) wake_at: Option<Timestamp>,
    pub(super) handed_over: bool,
    /// The item that is not stopped.
    pub(super) item: Option<WorkId>,
    pub(super) resources_version: u64,
}

pub(super) struct ReplicaRow {
    pub(super) track: Track,
    pub(super) last_beat: Timestamp,
    /// Since when it has beaten without a pause.
    pub(super) beating_since: Timestamp,
    pub(super) retired: bool,
    /// Its connection was seen to break.
    pub(super) disconnected: bool,
}

pub(super) struct ItemRow {
    pub(super) item: WorkItem,
    pub(super) order: u64,
    pub(super) handed_out_at: Option<Timestamp>,
    pub(super) token_hash: Option<String>,
}

impl ReplicaRow {
    fn lives(&self, now: Timestamp) -> bool {
        !self.retired && now < self.last_beat.plus_millis(1_000)
    }
}

impl MemoryStore {
    /// An empty store whose time is `clock`'s.
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        let (tables, bytes) = (Mutex::default(), MemoryBlobs::default());
        Self { clock, tables, bytes, unreferenced_kept_micros: UNREFERENCED_KEPT_MICROS }
    }

    /// The same, in which what nothing refers to is garbage after another time than a day.
    #[must_use]
    pub fn keeping_unreferenced_micros(self, unreferenced_kept_micros: i64) -> Self {
        Self { unreferenced_kept_micros, ..self }
    }

    /// Notes that a replica's connection broke: it counts as dead after half a second without a heartbeat.
    pub fn disconnect(&self, replica_id: &ReplicaId) {
        if let Some(replica) = self.tables().replicas.get_mut(replica_id) {
            replica.disconnected = true;
        }
    }

    /// Sessions that are due and that no replica drives which gave a sign of life lately.
    pub fn unattended(&self) -> BTreeSet<SessionId> {
        let now = self.now();
        let tables = self.tables();
        let is_due = |row: &SessionRow| row.wake_at.is_some_and(|at| at <= now);
        let lives = |owner: &ReplicaId| tables.replicas.get(owner).is_some_and(|row| row.lives(now));
        let unattended =
            tables.sessions.iter().filter(|(_, row)| is_due(row) && !row.owner.as_ref().is_some_and(lives));
        unattended.map(|(id, _)| id.clone()).collect()
    }

    pub(super) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    pub(super) fn tables(&self) -> MutexGuard<'_, Tables> {
        // Every call checks before it changes anything, so a panic leaves the tables whole.
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether `at` lies in the range.
pub(super) fn in_range(range: TimeRange, at: Timestamp) -> bool {
    range.from.is_none_or(|from| from <= at) && range.before.is_none_or(|before| at < before)
}

/// One page of resources ordered by creation and id.
pub(super) fn page<T>(
    found: impl Iterator<Item = T>,
    key: impl Fn(&T) -> (Timestamp, String),
    order: Order,
    after: Option<&After>,
    limit: usize,
) -> Vec<T> {
    let mut rows: Vec<((Timestamp, String), T)> = found.map(|row| (key(&row), row)).collect();
    rows.sort_by(|left, right| left.0.cmp(&right.0));
    if order == Order::Descending {
        rows.reverse();
    }
    let behind = |key: &(Timestamp, String)| {
        after.is_none_or(|after| {
            let mark = (after.created_at, after.id.clone());
            match order {
                Order::Ascending => *key > mark,
                Order::Descending => *key < mark,
            }
        })
    };
    rows.into_iter().filter(|(key, _)| behind(key)).take(limit).map(|(_, row)| row).collect()
}

//! The event log: the truth of every session.
//!
//! What belongs together commits together: one [`EventLog::append`] takes the records, the snapshot after them and
//! the side rows (wake-up, claim, work item, kept answer, ledger, resources), or nothing. One that deletes the session
//! takes its files and resources with it. Its guard is the position before the first record;
//! an owner's append is guarded by its claim too, a worker's by its item token.

use std::collections::BTreeSet;

use async_trait::async_trait;
use serde_json::{Map, Value};
use session::id::{AgentId, ReplicaId, SessionId, WorkId};
use session::state::Status;
use session::{Event, Record, State, Timestamp};

use super::{
    After, Claim, FileResource, KeepError, Kept, KeyUsed, LedgerChange, Order, OverCap, StoreError, TimeRange,
    WorkChange,
};

/// A record as it is read: an [`Event::Processed`] comes with the event that it names.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredRecord {
    pub record: Record,
    /// The received event, for [`Event::Processed`] alone.
    pub received: Option<Event>,
}

impl StoredRecord {
    /// The event as clients see it; `None` for the server's own records.
    pub fn to_api(&self) -> Option<Map<String, Value>> {
        self.record.to_api(self.received.as_ref())
    }

    /// The API's `type` of what clients see: that of the received event for [`Event::Processed`].
    pub fn kind(&self) -> &'static str {
        self.received.as_ref().unwrap_or(&self.record.event).kind()
    }
}

/// Who may append.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fence {
    /// Anyone who saw the position.
    Client,
    /// The owner, while its claim is the session's current one.
    Owner(Claim),
    /// The holder of a work item, while this is the item's current token.
    ItemToken { work_id: WorkId, token_hash: String },
}

/// What an append does to the session's wake-up and claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wake {
    /// Nothing.
    Keep,
    /// Work is due: a session without owner becomes claimable now. If `claim_for` names a replica of the session's
    /// track and nobody owns the session, that replica gets the claim in the same transaction ([`Appended::claim`]).
    Now { claim_for: Option<ReplicaId> },
    /// The owner lets go. The session becomes claimable again at this time, or when someone wakes it.
    Release { wake_at: Option<Timestamp> },
}

/// One transaction on one session.
#[derive(Clone, Debug)]
pub struct Append {
    /// At least one record, unless only side rows change; positions follow the guard without a gap.
    pub records: Vec<Record>,
    /// The state after `records`: the new snapshot. The guard is `state.position - records.len()`.
    pub state: State,
    pub fence: Fence,
    pub wake: Wake,
    pub work: WorkChange,
    /// The answer to a client's request that names an idempotency key.
    pub kept: Option<Kept>,
    /// Set where the append has the session run by its client's wish: with as many other sessions of the key that
    /// created it running, it is refused. A session that names no key is never refused.
    pub running_max: Option<u32>,
    pub ledger: LedgerChange,
    /// What the session is given from the start: of a first append alone.
    pub resources: Vec<FileResource>,
}

/// What an append did besides.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Appended {
    /// The claim that [`Wake::Now`] asked for and got.
    pub claim: Option<Claim>,
    /// Whether an item was queued: a new one by [`WorkChange::Ensure`], or one whose lease ended.
    pub queued: bool,
}

/// Why an append did nothing.
#[derive(Debug, thiserror::Error)]
pub enum AppendError {
    /// Somebody appended first: read the tail, decide again.
    #[error("the session has moved on")]
    Conflict,
    /// The claim is no longer the session's; its holder stops at once.
    #[error("the claim is lost")]
    Fenced,
    /// The token is no longer its item's; its holder stops at once.
    #[error("the work item's token has ended")]
    TokenEnded,
    /// The session's API key has [`Append::running_max`] others running.
    #[error("the session's API key already has {0} sessions running")]
    TooManyRunning(u32),
    /// The reservation does not fit in what the session's API key may use today.
    #[error("{0}")]
    OverCap(OverCap),
    #[error(transparent)]
    KeyUsed(#[from] KeyUsed),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<OverCap> for AppendError {
    fn from(over: OverCap) -> Self {
        Self::OverCap(over)
    }
}

impl From<KeepError> for AppendError {
    fn from(error: KeepError) -> Self {
        match error {
            KeepError::KeyUsed(used) => used.into(),
            KeepError::Store(error) => error.into(),
        }
    }
}

/// A session as it is loaded.
#[derive(Clone, Debug)]
pub struct Loaded {
    pub state: State,
    /// The claim in force, if any; whether its owner lives is not said.
    pub claim: Option<Claim>,
    /// The last owner gave the session away in mid-turn, and nobody had it since.
    pub handed_over: bool,
}

/// Which events of a session to list. Only [`session::Form::Final`] records are listed by position.
#[derive(Clone, Debug)]
pub struct ListEvents {
    pub session_id: SessionId,
    /// API types as in [`StoredRecord::kind`]; empty for all.
    pub types: BTreeSet<String>,
    /// Bounds on `processed_at`.
    pub processed: TimeRange,
    pub order: Order,
    /// Records strictly behind this position, in the direction of `order`.
    pub after: Option<u64>,
    pub limit: usize,
}

/// Which sessions to list, ordered by creation.
#[derive(Clone, Debug)]
pub struct ListSessions {
    pub agent_id: Option<AgentId>,
    pub agent_version: Option<u32>,
    pub created: TimeRange,
    pub include_archived: bool,
    /// Empty for all.
    pub statuses: Vec<Status>,
    pub order: Order,
    pub after: Option<After>,
    pub limit: usize,
}

/// The log of every session.
#[async_trait]
pub trait EventLog: Send + Sync + 'static {
    /// Commits one append whole, or says why not. A first append (guard 0) creates the session.
    async fn append(&self, append: Append) -> Result<Appended, AppendError>;

    /// The session's state: the snapshot, with whatever was appended behind it folded in. Deleted sessions load too.
    async fn load(&self, session_id: &SessionId) -> Result<Option<Loaded>, StoreError>;

    /// Records behind `after` in order of position, at most `limit`, of every form.
    async fn read(&self, session_id: &SessionId, after: u64, limit: usize) -> Result<Vec<StoredRecord>, StoreError>;

    /// Final records that match, in the asked order.
    async fn list(&self, list: &ListEvents) -> Result<Vec<StoredRecord>, StoreError>;

    /// The states of matching sessions that are not deleted.
    async fn list_sessions(&self, list: &ListSessions) -> Result<Vec<State>, StoreError>;

    /// The present positions of these sessions, in one query; unknown ones are left out.
    async fn positions(&self, sessions: &[SessionId]) -> Result<Vec<(SessionId, u64)>, StoreError>;

    /// Removes what sessions deleted before `before` left behind, at most `limit` of them; how many.
    async fn purge(&self, before: Timestamp, limit: usize) -> Result<usize, StoreError>;
}

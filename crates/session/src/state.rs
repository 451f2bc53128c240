//! The state of a session: the fold of its log, and small.
//!
//! It holds positions, ids, hashes, counters and settings, never the content of events, so its size does not grow
//! with the session. Its serialised form is the snapshot that stores keep beside the log; a snapshot whose
//! `format` is unknown is thrown away and the log folded again.

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};

use crate::agent::ToolPolicies;
use crate::event::{CacheCreation, EnvironmentKind, ModelUsage, RequestPurpose, StopReason, UsageSnapshot};
use crate::id::{AgentId, EnvironmentId, EventId, SessionId, ThreadId};
use crate::time::Timestamp;
use crate::workspace::Workspace;

/// The version of [`State`]'s serialised form that this build writes and reads.
pub const SNAPSHOT_FORMAT: u16 = 1;

/// How many answered calls are remembered, so that a client's repeated answer is recognised.
pub(crate) const REMEMBERED_ANSWERS: usize = 32;

/// A session as its log tells it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct State {
    pub format: u16,
    /// Position of the last record folded.
    pub position: u64,
    /// Time of the last record folded.
    pub last_at: Timestamp,
    pub session_id: SessionId,
    pub thread_id: ThreadId,
    pub environment_id: EnvironmentId,
    pub environment_kind: EnvironmentKind,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
    pub archived_at: Option<Timestamp>,
    pub deleted: bool,
    pub status: Status,
    /// Why the session is idle; `None` before its first turn.
    pub stop_reason: Option<StopReason>,
    pub title: Option<String>,
    pub metadata: BTreeMap<String, String>,
    pub agent: AgentState,
    /// Messages received and not yet processed, oldest first.
    pub queue: VecDeque<Waiting>,
    /// An interrupt received and not yet applied.
    pub interrupt: Option<Waiting>,
    /// The turn under way.
    pub turn: Option<Turn>,
    /// Answers given lately, oldest first.
    pub answers: VecDeque<Answer>,
    pub context: Context,
    pub usage: ModelUsage,
    pub cache_creation: CacheCreation,
    pub activity: Activity,
    /// What is known of the session's files.
    #[serde(default)]
    pub workspace: Workspace,
}

/// The API's session status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    Idle,
    Running,
    Rescheduling,
    Terminated,
}

/// What decisions and views need of the agent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AgentState {
    pub id: AgentId,
    pub version: u32,
    pub name: String,
    /// Position of the record that holds the effective snapshot.
    pub position: u64,
    pub tools: ToolPolicies,
}

/// A client event that waits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waiting {
    pub id: EventId,
    /// Position of the record that holds its content.
    pub position: u64,
}

/// A turn: one message and everything done for it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Turn {
    pub started_at: Timestamp,
    /// Whether the turn's message has been taken from the queue.
    pub processed: bool,
    /// The model request under way.
    pub request: Option<OpenRequest>,
    /// Failed attempts at the present request.
    pub attempts: u32,
    /// Until when a failed request waits before it is tried again.
    pub retry_at: Option<Timestamp>,
    /// Model requests answered.
    pub requests: u32,
    /// The calls of the model's last answer.
    pub calls: Vec<Call>,
    /// Takeovers from dead owners since something was achieved.
    pub takeovers: u32,
}

/// A model request that was begun and has no outcome yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenRequest {
    pub span_id: EventId,
    pub message_id: EventId,
    pub thinking_id: EventId,
    /// Position of the intent.
    pub position: u64,
    pub purpose: RequestPurpose,
}

/// A tool call of the model's last answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Call {
    pub id: EventId,
    pub runner: Runner,
    /// It may run only after `user.tool_confirmation`, which has not come.
    pub unconfirmed: bool,
    /// A worker may have begun it.
    pub exposed: bool,
    /// Running it twice changes nothing.
    pub read_only: bool,
    pub answered: bool,
}

/// Who runs a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Runner {
    /// The worker that holds the session's work item.
    Worker,
    /// The application.
    Application,
}

/// An answer that was given to a call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    pub call: EventId,
    /// Position of the stored answer.
    pub position: u64,
    /// Hash of everything the client sent.
    pub digest: String,
}

/// What the next model request will see.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Context {
    /// Position of the last compaction; 0 before the first.
    pub from: u64,
    /// Size of the context at the last answer, in the provider's tokens.
    pub tokens: u64,
    /// Compactions since the last answer of a turn.
    pub compactions: u32,
}

/// How long the session has been running.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Activity {
    pub finished_micros: i64,
    pub running_since: Option<Timestamp>,
}

impl State {
    /// The calls of the last answer that nothing has answered yet.
    pub fn open_calls(&self) -> impl Iterator<Item = &Call> {
        self.turn.iter().flat_map(|turn| &turn.calls).filter(|call| !call.answered)
    }

    /// The calls that a worker may run now.
    pub fn runnable_calls(&self) -> impl Iterator<Item = &Call> {
        self.open_calls().filter(|call| call.runner == Runner::Worker && !call.unconfirmed)
    }

    /// The calls that only a client's event can move on.
    pub fn blocking_calls(&self) -> impl Iterator<Item = &Call> {
        let self_hosted = self.environment_kind == EnvironmentKind::SelfHosted;
        self.open_calls().filter(move |call| call.unconfirmed || call.runner == Runner::Application || self_hosted)
    }

    /// Cumulative usage as of `now`.
    pub fn usage_snapshot(&self, now: Timestamp) -> UsageSnapshot {
        UsageSnapshot {
            input_tokens: self.usage.input_tokens,
            output_tokens: self.usage.output_tokens,
            cache_read_input_tokens: self.usage.cache_read_input_tokens,
            cache_creation: self.cache_creation,
            active_seconds: self.active_seconds(now),
        }
    }

    /// Seconds spent running, up to `now`.
    pub fn active_seconds(&self, now: Timestamp) -> f64 {
        let finished = Timestamp::from_micros(self.activity.finished_micros).seconds_since(Timestamp::EPOCH);
        finished + self.activity.running_since.map_or(0.0, |since| now.seconds_since(since))
    }
}

//! What happens in a session: the records of its log.
//!
//! A [`Record`] is an [`Event`] at a position. Most events are the API's own and reach clients through
//! [`Record::to_api`]; those whose name starts with `log.` are the server's and never leave it.
//! Stored bodies carry [`FORMAT_VERSION`]; a reader that meets a newer one says so instead of guessing.
//!
//! A client event that waits is recorded when it is received, with `queued: true`, and again by
//! [`Event::Processed`] when it is handled. The second record names the first instead of repeating its content.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::agent::AgentSnapshot;
use crate::content::ContentBlock;
use crate::id::{ApiKeyId, EnvironmentId, EventId, SessionId, ThreadId, WorkId};
use crate::manifest::ContentHash;
use crate::time::Timestamp;

/// The version of [`Event`]'s stored form that this build writes.
pub const FORMAT_VERSION: u16 = 1;

/// One entry of a session's log.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// Counted from 1 without gaps.
    pub position: u64,
    /// When it happened; strictly later than the record before.
    pub at: Timestamp,
    pub event: Event,
}

/// How a record takes part in event lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// The server's own; never listed nor streamed.
    Internal,
    /// A client event that waits: streamed with `processed_at` null, listed only until it is processed.
    Received,
    /// Everything else: streamed, and listed at its own position.
    Final,
}

/// What happened. The `type` of the stored form is the API's name of the event.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type")]
pub enum Event {
    #[serde(rename = "user.message")]
    UserMessage { id: EventId, content: Vec<ContentBlock>, queued: bool },
    #[serde(rename = "user.interrupt")]
    UserInterrupt {
        id: EventId,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        session_thread_id: Option<ThreadId>,
        queued: bool,
    },
    #[serde(rename = "user.tool_confirmation")]
    UserToolConfirmation {
        id: EventId,
        tool_use_id: EventId,
        result: Confirmation,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        deny_message: Option<String>,
    },
    #[serde(rename = "user.custom_tool_result")]
    UserCustomToolResult { id: EventId, custom_tool_use_id: EventId, content: Vec<ContentBlock>, is_error: bool },
    #[serde(rename = "user.tool_result")]
    UserToolResult { id: EventId, tool_use_id: EventId, content: Vec<ContentBlock>, is_error: bool },

    #[serde(rename = "agent.message")]
    AgentMessage { id: EventId, content: Vec<ContentBlock> },
    /// `internal` is the provider's own block, which it wants back unchanged in the next request.
    #[serde(rename = "agent.thinking")]
    AgentThinking { id: EventId, internal: Value },
    #[serde(rename = "agent.tool_use")]
    AgentToolUse {
        id: EventId,
        name: String,
        input: Map<String, Value>,
        evaluated_permission: EvaluatedPermission,
        /// Absent only when the call was refused before any policy applied.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        evaluation: Option<Evaluation>,
    },
    #[serde(rename = "agent.tool_result")]
    AgentToolResult { id: EventId, tool_use_id: EventId, content: Vec<ContentBlock>, is_error: bool },
    #[serde(rename = "agent.custom_tool_use")]
    AgentCustomToolUse { id: EventId, name: String, input: Map<String, Value> },
    /// `internal` is what later model requests see instead of everything before.
    #[serde(rename = "agent.thread_context_compacted")]
    ContextCompacted { id: EventId, internal: CompactedContext },

    #[serde(rename = "session.status_running")]
    StatusRunning { id: EventId },
    #[serde(rename = "session.status_idle")]
    StatusIdle { id: EventId, stop_reason: StopReason, stop_details: Option<StopDetails> },
    /// `internal` says until when the failed request waits.
    #[serde(rename = "session.status_rescheduled")]
    StatusRescheduled { id: EventId, internal: Backoff },
    #[serde(rename = "session.status_terminated")]
    StatusTerminated { id: EventId },
    #[serde(rename = "session.thread_status_running")]
    ThreadStatusRunning { id: EventId, session_thread_id: ThreadId, agent_name: String },
    #[serde(rename = "session.thread_status_idle")]
    ThreadStatusIdle {
        id: EventId,
        session_thread_id: ThreadId,
        agent_name: String,
        stop_reason: StopReason,
        stop_details: Option<StopDetails>,
    },
    #[serde(rename = "session.thread_status_rescheduled")]
    ThreadStatusRescheduled { id: EventId, session_thread_id: ThreadId, agent_name: String },
    #[serde(rename = "session.thread_status_terminated")]
    ThreadStatusTerminated { id: EventId, session_thread_id: ThreadId, agent_name: String },
    #[serde(rename = "session.error")]
    Error { id: EventId, error: SessionError },
    #[serde(rename = "session.usage")]
    Usage { id: EventId, usage: UsageSnapshot, budget: Option<Value> },
    #[serde(rename = "session.updated")]
    Updated {
        id: EventId,
        /// Present when the title changed; `null` when it was cleared.
        #[serde(default, skip_serializing_if = "Option::is_none", with = "double_option")]
        title: Option<Option<String>>,
        /// The whole bag after the change.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        metadata: Option<BTreeMap<String, String>>,
        /// The whole snapshot after the change.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        agent: Option<Box<AgentSnapshot>>,
    },
    #[serde(rename = "session.deleted")]
    Deleted { id: EventId },
    /// The intent of a model request: recorded before the provider hears of it.
    /// `internal` says what was intended.
    #[serde(rename = "span.model_request_start")]
    ModelRequestStart { id: EventId, internal: ModelRequestIntent },
    #[serde(rename = "span.model_request_end")]
    ModelRequestEnd { id: EventId, model_request_start_id: EventId, is_error: bool, model_usage: ModelUsage },

    /// The first record of every session.
    #[serde(rename = "log.created")]
    Created(Box<Created>),
    /// A waiting client event is handled now; `received` is the position of its content.
    #[serde(rename = "log.processed")]
    Processed { id: EventId, received: u64 },
    /// A client archived the session; it takes no more events.
    #[serde(rename = "log.archived")]
    Archived {},
    /// A turn is over: one for each turn, whatever its outcome.
    #[serde(rename = "log.turn_ended")]
    TurnEnded { outcome: TurnOutcome },
    /// A worker may run this call from now on: ours is about to, or a client's is about to be shown that it may.
    /// `work_id` is the item that it holds, where its credential tells, and `tip` what it calls the files that the call
    /// will leave, if it changes any.
    #[serde(rename = "log.tool_started")]
    ToolStarted {
        tool_use_id: EventId,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        work_id: Option<WorkId>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        tip: Option<EventId>,
    },
    /// The lease on the session's work item ended, and with it its token.
    #[serde(rename = "log.lease_ended")]
    LeaseEnded { work_id: WorkId },
    /// The session's files are kept as this manifest has them. Its chunks are durable; `tool_use_id` is the last call
    /// whose changes it holds, and its result came before.
    #[serde(rename = "log.workspace_saved")]
    WorkspaceSaved {
        manifest: ContentHash,
        bytes: u64,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        tip: Option<EventId>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        tool_use_id: Option<EventId>,
    },
    /// A worker made the session's files anew from the last snapshot, or found that there is none. From now on `tip`
    /// names the folder that is the session's.
    #[serde(rename = "log.workspace_restored")]
    WorkspaceRestored {
        tip: EventId,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        manifest: Option<ContentHash>,
    },
    /// A replica took the session from a dead one in the middle of a turn.
    #[serde(rename = "log.taken_over")]
    TakenOver { epoch: u64 },
}

/// What a session is created with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Created {
    pub session_id: SessionId,
    pub thread_id: ThreadId,
    pub environment_id: EnvironmentId,
    pub environment_kind: EnvironmentKind,
    pub agent: AgentSnapshot,
    pub title: Option<String>,
    pub metadata: BTreeMap<String, String>,
    /// The API key that the session was created with, and whose limits it counts towards. Sessions of releases that
    /// did not record it have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_key_id: Option<ApiKeyId>,
}

/// Who runs the tools of an environment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EnvironmentKind {
    /// This installation's own workers.
    Cloud,
    /// Workers of the client, over the public protocol.
    SelfHosted,
}

/// A client's answer to a call that asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Confirmation {
    Allow,
    Deny,
}

/// What the policy made of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EvaluatedPermission {
    Allow,
    Ask,
    Deny,
}

/// Which policy decided about a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Evaluation {
    AlwaysAllow,
    AlwaysAsk,
}

/// Why a session or thread went idle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum StopReason {
    EndTurn,
    RequiresAction { event_ids: Vec<EventId> },
    RetriesExhausted,
    Refusal,
}

/// What is known of a refusal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum StopDetails {
    Refusal { category: Option<String>, explanation: Option<String> },
}

/// A problem as clients see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionError {
    #[serde(rename = "type")]
    pub kind: SessionErrorKind,
    pub message: String,
    pub retry_status: RetryStatus,
}

/// The API's names of problems.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SessionErrorKind {
    #[serde(rename = "unknown_error")]
    Unknown,
    #[serde(rename = "model_overloaded_error")]
    ModelOverloaded,
    #[serde(rename = "model_rate_limited_error")]
    ModelRateLimited,
    #[serde(rename = "model_request_failed_error")]
    ModelRequestFailed,
    #[serde(rename = "billing_error")]
    Billing,
    #[serde(rename = "tool_use_limit_reached_error")]
    ToolUseLimitReached,
    #[serde(rename = "compaction_limit_reached_error")]
    CompactionLimitReached,
}

/// What the server does about a problem.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum RetryStatus {
    /// Tries again by itself.
    Retrying,
    /// The turn is over; the session takes the next message.
    Exhausted,
    /// The session is over.
    Terminal,
}

/// How a turn ended; also a label of `agent_turns_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TurnOutcome {
    Completed,
    /// By `user.interrupt`.
    Cancelled,
    /// By errors that outlasted every retry.
    Failed,
    /// By the model.
    Refused,
}

/// What a recorded model request is for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelRequestIntent {
    /// The id that the answer's `agent.message` will have; previews carry it beforehand.
    pub message_id: EventId,
    /// The id that the answer's first `agent.thinking` will have.
    pub thinking_id: EventId,
    pub purpose: RequestPurpose,
}

/// Why the model is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RequestPurpose {
    /// To go on with the turn.
    Turn,
    /// To summarise the context, which has grown too large.
    Compaction,
}

/// How long a failed model request waits before it is made again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backoff {
    pub retry_at: Timestamp,
}

/// What stands in for the context before it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CompactedContext {
    pub summary: String,
}

/// Tokens of one model request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelUsage {
    pub input_tokens: u64,
    pub output_tokens: u64,
    pub cache_read_input_tokens: u64,
    pub cache_creation_input_tokens: u64,
}

/// Cumulative usage, in the shape of the API's `usage` objects.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct UsageSnapshot {
    pub input_tokens: u64,
    pub output_tokens: u64,
    pub cache_read_input_tokens: u64,
    pub cache_creation: CacheCreation,
    pub active_seconds: f64,
}

/// Tokens written to the provider's prompt cache, by how long they are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheCreation {
    pub ephemeral_5m_input_tokens: u64,
    pub ephemeral_1h_input_tokens: u64,
}

impl Event {
    /// The event's own id; server records have none, save that [`Event::Processed`] carries its subject's.
    pub fn id(&self) -> Option<&EventId> {
        match self {
            Self::UserMessage { id, .. }
            | Self::UserInterrupt { id, .. }
            | Self::UserToolConfirmation { id, .. }
            | Self::UserCustomToolResult { id, .. }
            | Self::UserToolResult { id, .. }
            | Self::AgentMessage { id, .. }
            | Self::AgentThinking { id, .. }
            | Self::AgentToolUse { id, .. }
            | Self::AgentToolResult { id, .. }
            | Self::AgentCustomToolUse { id, .. }
            | Self::ContextCompacted { id, .. }
            | Self::StatusRunning { id }
            | Self::StatusIdle { id, .. }
            | Self::StatusRescheduled { id, .. }
            | Self::StatusTerminated { id }
            | Self::ThreadStatusRunning { id, .. }
            | Self::ThreadStatusIdle { id, .. }
            | Self::ThreadStatusRescheduled { id, .. }
            | Self::ThreadStatusTerminated { id, .. }
            | Self::Error { id, .. }
            | Self::Usage { id, .. }
            | Self::Updated { id, .. }
            | Self::Deleted { id }
            | Self::ModelRequestStart { id, .. }
            | Self::ModelRequestEnd { id, .. }
            | Self::Processed { id, .. } => Some(id),
            Self::Created(_)
            | Self::Archived {}
            | Self::TurnEnded { .. }
            | Self::ToolStarted { .. }
            | Self::LeaseEnded { .. }
            | Self::WorkspaceSaved { .. }
            | Self::WorkspaceRestored { .. }
            | Self::TakenOver { .. } => None,
        }
    }

    /// The stored `type`: the API's name, or `log.*` for the server's own.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::UserMessage { .. } => "user.message",
            Self::UserInterrupt { .. } => "user.interrupt",
            Self::UserToolConfirmation { .. } => "user.tool_confirmation",
            Self::UserCustomToolResult { .. } => "user.custom_tool_result",
            Self::UserToolResult { .. } => "user.tool_result",
            Self::AgentMessage { .. } => "agent.message",
            Self::AgentThinking { .. } => "agent.thinking",
            Self::AgentToolUse { .. } => "agent.tool_use",
            Self::AgentToolResult { .. } => "agent.tool_result",
            Self::AgentCustomToolUse { .. } => "agent.custom_tool_use",
            Self::ContextCompacted { .. } => "agent.thread_context_compacted",
            Self::StatusRunning { .. } => "session.status_running",
            Self::StatusIdle { .. } => "session.status_idle",
            Self::StatusRescheduled { .. } => "session.status_rescheduled",
            Self::StatusTerminated { .. } => "session.status_terminated",
            Self::ThreadStatusRunning { .. } => "session.thread_status_running",
            Self::ThreadStatusIdle { .. } => "session.thread_status_idle",
            Self::ThreadStatusRescheduled { .. } => "session.thread_status_rescheduled",
            Self::ThreadStatusTerminated { .. } => "session.thread_status_terminated",
            Self::Error { .. } => "session.error",
            Self::Usage { .. } => "session.usage",
            Self::Updated { .. } => "session.updated",
            Self::Deleted { .. } => "session.deleted",
            Self::ModelRequestStart { .. } => "span.model_request_start",
            Self::ModelRequestEnd { .. } => "span.model_request_end",
            Self::Created(_) => "log.created",
            Self::Processed { .. } => "log.processed",
            Self::Archived {} => "log.archived",
            Self::TurnEnded { .. } => "log.turn_ended",
            Self::ToolStarted { .. } => "log.tool_started",
            Self::LeaseEnded { .. } => "log.lease_ended",
            Self::WorkspaceSaved { .. } => "log.workspace_saved",
            Self::WorkspaceRestored { .. } => "log.workspace_restored",
            Self::TakenOver { .. } => "log.taken_over",
        }
    }

    /// How the event takes part in lists and streams.
    pub fn form(&self) -> Form {
        match self {
            Self::UserMessage { queued: true, .. } | Self::UserInterrupt { queued: true, .. } => Form::Received,
            Self::Created(_)
            | Self::Archived {}
            | Self::TurnEnded { .. }
            | Self::ToolStarted { .. }
            | Self::LeaseEnded { .. }
            | Self::WorkspaceSaved { .. }
            | Self::WorkspaceRestored { .. }
            | Self::TakenOver { .. } => Form::Internal,
            _ => Form::Final,
        }
    }
}

impl Record {
    /// The event as clients see it, or `None` for the server's own records.
    ///
    /// `received` is the event that an [`Event::Processed`] names; other records ignore it.
    pub fn to_api(&self, received: Option<&Event>) -> Option<Map<String, Value>> {
        let (shown, processed_at) = match (&self.event, self.event.form()) {
            (_, Form::Internal) => return None,
            (Event::Processed { .. }, _) => (received?, Some(self.at)),
            (event, Form::Received) => (event, None),
            (event, Form::Final) => (event, Some(self.at)),
        };
        let Ok(Value::Object(mut fields)) = serde_json::to_value(shown) else {
            return None;
        };
        fields.remove("internal");
        fields.remove("queued");
        if let Event::Updated { metadata: Some(metadata), .. } = shown
            && metadata.is_empty()
        {
            fields.remove("metadata");
        }
        if let Event::Updated { agent: Some(agent), .. } = shown {
            fields.insert("agent".to_owned(), crate::view::agent(agent));
        }
        let processed_at = processed_at.map_or(Value::Null, |at| Value::String(at.to_string()));
        fields.insert("processed_at".to_owned(), processed_at);
        Some(fields)
    }
}

/// Tells an absent field from one that is `null`.
mod double_option {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(value: &Option<Option<String>>, serializer: S) -> Result<S::Ok, S::Error> {
        value.as_ref().and_then(Option::as_ref).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Option<String>>, D::Error> {
        Option::<String>::deserialize(deserializer).map(Some)
    }
}

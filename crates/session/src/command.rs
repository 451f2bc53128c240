//! What can be asked of a session: by clients, by the worker that runs its tools, and by the replica that owns it.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::agent::AgentSnapshot;
use crate::content::ContentBlock;
use crate::event::{Confirmation, Created, ModelUsage, SessionErrorKind, StopDetails};
use crate::id::{EventId, ThreadId, WorkId};
use crate::manifest::ContentHash;

/// A request to change a session; [`crate::decide`] says what comes of it.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// The first command of every session; `initial_events` holds messages only.
    Create {
        created: Box<Created>,
        initial_events: Vec<ClientEvent>,
    },
    /// A client or a worker sends events: all of them are taken, or none.
    Post {
        events: Vec<ClientEvent>,
        poster: Poster,
    },
    /// Settings of the session change; `None` keeps a field.
    Update {
        title: Option<Option<String>>,
        metadata: BTreeMap<String, Option<String>>,
        agent: Option<Box<AgentSnapshot>>,
    },
    Archive,
    Delete,

    /// A worker is about to run a call that it holds the work item for.
    StartTool {
        tool_use_id: EventId,
        work_id: WorkId,
    },
    /// The same, by a worker that keeps the session's files and will call them `tip` from now on. It draws the name for
    /// each start anew: another worker that starts the same call has other files.
    StartToolAt {
        tool_use_id: EventId,
        work_id: WorkId,
        tip: EventId,
    },
    /// These calls are about to be shown to a worker of the client's, which may run at once what is free to run.
    Expose {
        calls: Vec<EventId>,
        work_id: Option<WorkId>,
    },
    /// The lease on the session's work item ended: what was exposed to its holder has an unknown outcome.
    EndLease {
        work_id: WorkId,
    },

    /// A worker has kept the session's files; `tip` is what named them when it read them.
    SaveWorkspace {
        manifest: ContentHash,
        bytes: u64,
        tip: Option<EventId>,
    },
    /// A worker has made the session's files anew from `manifest`, because its own folder was not the one that `tip`
    /// names.
    RestoreWorkspace {
        manifest: Option<ContentHash>,
        tip: Option<EventId>,
    },

    /// The owner is about to ask the model.
    BeginModelRequest,
    /// The request that is due is one that the session's API key cannot pay for.
    RefuseModelRequest {
        message: String,
    },
    /// The owner reports what came of the request whose span is `span_id`.
    FinishModelRequest {
        span_id: EventId,
        outcome: ModelOutcome,
        usage: ModelUsage,
    },
    /// The owner obeys a waiting interrupt; an open model request was aborted with `usage`.
    ApplyInterrupt {
        usage: ModelUsage,
    },
    /// The back-off after a transient error is over.
    Resume,
    /// A replica took the session over from a dead one.
    TakeOver {
        epoch: u64,
    },
}

/// Under whose credential events are posted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Poster {
    /// An application (API key).
    Application,
    /// A worker of a self-hosted environment (environment key or item token).
    SelfHostedWorker,
    /// One of our own workers, holding the session's work item.
    CloudWorker,
}

/// An event as a client sends it, checked and complete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientEvent {
    Message { content: Vec<ContentBlock> },
    Interrupt { session_thread_id: Option<ThreadId> },
    ToolConfirmation { tool_use_id: EventId, result: Confirmation, deny_message: Option<String> },
    CustomToolResult { custom_tool_use_id: EventId, content: Vec<ContentBlock>, is_error: bool },
    ToolResult { tool_use_id: EventId, content: Vec<ContentBlock>, is_error: bool },
}

/// What came of a model request.
#[derive(Clone, Debug, PartialEq)]
pub enum ModelOutcome {
    /// An answer, complete.
    Answered { blocks: Vec<AnswerBlock>, stop: ModelStop },
    /// No answer; the provider's problem in the API's words. `retry_after_ms` is the provider's own wish.
    Failed { kind: SessionErrorKind, message: String, retryable: bool, retry_after_ms: Option<u64> },
    /// The replica that made the request is gone; what the provider did is unknown.
    Lost,
    /// The replica that made the request has to leave before the answer came: another one makes it again.
    Cut,
}

/// A block of a model's answer, in the order in which the model gave it.
#[derive(Clone, Debug, PartialEq)]
pub enum AnswerBlock {
    /// The provider's block, to be sent back unchanged.
    Thinking(Value),
    Text(String),
    /// `problem` says what is wrong with an input that could not be read; such a call is answered with it and not run.
    ToolUse {
        name: String,
        input: Map<String, Value>,
        problem: Option<String>,
    },
}

/// Why the model stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelStop {
    /// It had said all, wants tools run, or ran out of output tokens.
    EndTurn,
    Refusal(StopDetails),
}

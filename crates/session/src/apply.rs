//! How a record changes the state. It never fails: the log already happened.
//!
//! The rules that keep impossible records out of the log are [`crate::decide`]'s. Records that cannot be, such as
//! a second creation, change nothing but the position.

use std::collections::VecDeque;

use sha2::{Digest, Sha256};

use crate::content::ContentBlock;
use crate::event::{
    Confirmation, Created, EvaluatedPermission, Event, ModelUsage, Record, RequestPurpose, RetryStatus,
};
use crate::id::EventId;
use crate::state::{
    Activity, AgentState, Answer, Call, Context, OpenRequest, REMEMBERED_ANSWERS, Runner, SNAPSHOT_FORMAT, State,
    Status, Turn, Waiting,
};
use crate::time::Timestamp;
use crate::workspace::{self, Workspace};

/// The state after `record`. `None` is the session before its first record.
pub fn apply(state: Option<State>, record: &Record) -> Option<State> {
    match (state, &record.event) {
        (None, Event::Created(created)) => Some(State::created(created, record)),
        (None, _) => None,
        (Some(mut state), _) => {
            state.apply(record);
            Some(state)
        }
    }
}

/// The state after `records`, from `state` on.
pub fn fold<'r>(state: Option<State>, records: impl IntoIterator<Item = &'r Record>) -> Option<State> {
    records.into_iter().fold(state, apply)
}

impl State {
    fn created(created: &Created, record: &Record) -> Self {
        Self {
            format: SNAPSHOT_FORMAT,
            position: record.position,
            last_at: record.at,
            session_id: created.session_id.clone(),
            thread_id: created.thread_id.clone(),
            environment_id: created.environment_id.clone(),
            environment_kind: created.environment_kind,
            created_at: record.at,
            updated_at: record.at,
            archived_at: None,
            deleted: false,
            status: Status::Idle,
            stop_reason: None,
            title: created.title.clone(),
            metadata: created.metadata.clone(),
            agent: AgentState {
                id: created.agent.id.clone(),
                version: created.agent.version,
                name: created.agent.name.clone(),
                position: record.position,
                tools: created.agent.tool_policies(),
            },
            queue: VecDeque::new(),
            interrupt: None,
            turn: None,
            answers: VecDeque::new(),
            context: Context::default(),
            usage: ModelUsage::default(),
            cache_creation: Default::default(),
            activity: Activity::default(),
            workspace: Workspace::default(),
        }
    }

    /// Folds in one record behind the present position.
    pub(crate) fn apply(&mut self, record: &Record) {
        let (position, at) = (record.position, record.at);
        self.position = position;
        self.last_at = at;
        self.updated_at = at;
        match &record.event {
            Event::UserMessage { id, queued: true, .. } => {
                self.queue.push_back(Waiting { id: id.clone(), position });
            }
            Event::UserInterrupt { id, queued: true, .. } => {
                self.interrupt = Some(Waiting { id: id.clone(), position });
            }
            Event::Processed { id, .. } => self.process(id),
            Event::UserToolConfirmation { tool_use_id, result, deny_message, .. } => {
                let digest = confirmation_digest(*result, deny_message.as_deref());
                self.remember(tool_use_id, position, digest);
                if let (Some(call), Confirmation::Allow) = (self.call_mut(tool_use_id), result) {
                    call.unconfirmed = false;
                }
            }
            Event::UserCustomToolResult { custom_tool_use_id: call, content, is_error, .. }
            | Event::UserToolResult { tool_use_id: call, content, is_error, .. }
            | Event::AgentToolResult { tool_use_id: call, content, is_error, .. } => {
                self.remember(call, position, result_digest(content, *is_error));
                if let Some(call) = self.call_mut(call) {
                    call.answered = true;
                }
                if let Some(turn) = &mut self.turn {
                    turn.takeovers = 0;
                }
                self.workspace.hear(content);
            }
            Event::AgentToolUse { id, name, evaluated_permission, .. } => self.open_call(Call {
                id: id.clone(),
                runner: Runner::Worker,
                unconfirmed: *evaluated_permission != EvaluatedPermission::Allow,
                exposed: false,
                read_only: crate::toolset::is_read_only(name),
                answered: false,
            }),
            Event::AgentCustomToolUse { id, .. } => self.open_call(Call {
                id: id.clone(),
                runner: Runner::Application,
                unconfirmed: false,
                exposed: false,
                read_only: false,
                answered: false,
            }),
            Event::ToolStarted { tool_use_id, tip, .. } => {
                let Some(call) = self.call_mut(tool_use_id) else { return };
                call.exposed = true;
                if !call.read_only {
                    self.workspace.change(tool_use_id, tip.as_ref());
                }
            }
            Event::WorkspaceSaved { manifest, bytes, tip, .. } => {
                self.workspace.save(manifest, *bytes, tip.as_ref(), at);
            }
            Event::WorkspaceRestored { tip, .. } => self.workspace.restore(tip),
            Event::ModelRequestStart { id, internal } => {
                if let Some(turn) = &mut self.turn {
                    turn.calls.clear();
                    turn.request = Some(OpenRequest {
                        span_id: id.clone(),
                        message_id: internal.message_id.clone(),
                        thinking_id: internal.thinking_id.clone(),
                        position,
                        purpose: internal.purpose,
                    });
                }
            }
            Event::ModelRequestEnd { is_error, model_usage, .. } => self.close_request(*is_error, model_usage),
            Event::ContextCompacted { .. } => {
                self.context.from = position;
                self.context.compactions += 1;
            }
            Event::Error { error, .. } => {
                if let (Some(turn), RetryStatus::Retrying) = (&mut self.turn, error.retry_status) {
                    turn.attempts += 1;
                }
            }
            Event::StatusRunning { .. } => {
                self.enter(Status::Running, at);
                self.stop_reason = None;
                self.turn.get_or_insert_with(|| Turn::begun(at)).retry_at = None;
            }
            Event::StatusRescheduled { internal, .. } => {
                self.enter(Status::Rescheduling, at);
                if let Some(turn) = &mut self.turn {
                    turn.retry_at = Some(internal.retry_at);
                }
            }
            Event::StatusIdle { stop_reason, .. } => {
                self.enter(Status::Idle, at);
                self.stop_reason = Some(stop_reason.clone());
            }
            Event::StatusTerminated { .. } => {
                self.enter(Status::Terminated, at);
                self.turn = None;
            }
            Event::TurnEnded { .. } => {
                let goes_on = self.status == Status::Running && !self.queue.is_empty();
                self.turn = goes_on.then(|| Turn::begun(at));
            }
            Event::Updated { title, metadata, agent, .. } => {
                if let Some(title) = title {
                    self.title.clone_from(title);
                }
                if let Some(metadata) = metadata {
                    self.metadata.clone_from(metadata);
                }
                if let Some(agent) = agent {
                    self.agent.position = position;
                    self.agent.tools = agent.tool_policies();
                }
            }
            Event::Archived {} => self.archived_at = Some(at),
            Event::Deleted { .. } => {
                self.deleted = true;
                self.turn = None;
                self.queue.clear();
                self.interrupt = None;
            }
            Event::TakenOver { .. } => {
                if let Some(turn) = &mut self.turn {
                    turn.takeovers += 1;
                }
            }
            Event::UserMessage { .. }
            | Event::UserInterrupt { .. }
            | Event::AgentMessage { .. }
            | Event::AgentThinking { .. }
            | Event::ThreadStatusRunning { .. }
            | Event::ThreadStatusIdle { .. }
            | Event::ThreadStatusRescheduled { .. }
            | Event::ThreadStatusTerminated { .. }
            | Event::Usage { .. }
            | Event::LeaseEnded { .. }
            | Event::Created(_) => {}
        }
    }

    /// A waiting event is handled: it leaves the queue, and a message becomes the turn's.
    fn process(&mut self, id: &EventId) {
        if self.interrupt.as_ref().is_some_and(|waiting| waiting.id == *id) {
            self.interrupt = None;
        } else if let Some(index) = self.queue.iter().position(|waiting| waiting.id == *id) {
            self.queue.remove(index);
            if let Some(turn) = &mut self.turn {
                turn.processed = true;
            }
        }
    }

    fn close_request(&mut self, is_error: bool, usage: &ModelUsage) {
        self.usage.input_tokens += usage.input_tokens;
        self.usage.output_tokens += usage.output_tokens;
        self.usage.cache_read_input_tokens += usage.cache_read_input_tokens;
        self.usage.cache_creation_input_tokens += usage.cache_creation_input_tokens;
        self.cache_creation.ephemeral_5m_input_tokens += usage.cache_creation_input_tokens;
        let Some(turn) = &mut self.turn else { return };
        let request = turn.request.take();
        if is_error {
            return;
        }
        turn.attempts = 0;
        turn.takeovers = 0;
        match request.map(|request| request.purpose) {
            Some(RequestPurpose::Compaction) => self.context.tokens = usage.output_tokens,
            _ => {
                turn.requests += 1;
                self.context.compactions = 0;
                self.context.tokens = usage.input_tokens
                    + usage.cache_read_input_tokens
                    + usage.cache_creation_input_tokens
                    + usage.output_tokens;
            }
        }
    }

    fn enter(&mut self, status: Status, at: Timestamp) {
        if status == Status::Running {
            self.activity.running_since.get_or_insert(at);
        } else if let Some(since) = self.activity.running_since.take() {
            self.activity.finished_micros += at.as_micros() - since.as_micros();
        }
        self.status = status;
    }

    fn open_call(&mut self, call: Call) {
        if let Some(turn) = &mut self.turn {
            turn.calls.push(call);
        }
    }

    fn call_mut(&mut self, id: &EventId) -> Option<&mut Call> {
        self.turn.as_mut()?.calls.iter_mut().find(|call| call.id == *id)
    }

    fn remember(&mut self, call: &EventId, position: u64, digest: String) {
        if self.answers.len() == REMEMBERED_ANSWERS {
            self.answers.pop_front();
        }
        self.answers.push_back(Answer { call: call.clone(), position, digest });
    }
}

impl Turn {
    fn begun(at: Timestamp) -> Self {
        Self {
            started_at: at,
            processed: false,
            request: None,
            attempts: 0,
            retry_at: None,
            requests: 0,
            calls: Vec::new(),
            takeovers: 0,
        }
    }
}

/// What identifies a confirmation beside its call. The prefix keeps it apart from the call's result.
pub(crate) fn confirmation_digest(result: Confirmation, deny_message: Option<&str>) -> String {
    digest("confirmation", &(result, deny_message))
}

/// What identifies a result beside its call.
pub(crate) fn result_digest(content: &[ContentBlock], is_error: bool) -> String {
    digest("result", &(workspace::without_notice(content), is_error))
}

fn digest(kind: &str, value: &impl serde::Serialize) -> String {
    let text = serde_json::to_vec(value).expect("answers have string keys only");
    let hash = Sha256::digest(text);
    let mut digest = String::with_capacity(kind.len() + 33);
    digest.push_str(kind);
    digest.push(':');
    for byte in &hash[..16] {
        digest.push_str(&format!("{byte:02x}"));
    }
    digest
}

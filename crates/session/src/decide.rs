//! The rules: what a command does to a session, as records, or why it is refused.
//!
//! A decision is drafted: each record is applied to a copy of the state as it is emitted, so that every later rule of
//! the same decision sees what the earlier ones did. [`client`] holds the commands of clients and workers, [`owner`]
//! those of the replica that drives the session, [`workspace`] those about its files; the transitions that both need are here.

mod client;
mod owner;
mod workspace;

use crate::command::Command;
use crate::content::ContentBlock;
use crate::event::{Event, Record, RetryStatus, SessionError, SessionErrorKind, StopDetails, StopReason, TurnOutcome};
use crate::id::{EventId, Ids, SessionId};
use crate::state::{State, Status};
use crate::time::Timestamp;

/// What a command does: the records to append, and the state after them.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    /// May be empty: some commands find that everything is as asked.
    pub records: Vec<Record>,
    pub state: State,
    /// For each client event of the command, in order, the position of the record that stores it.
    /// A repeated answer has the position of the first one, which may lie before `records`.
    pub posted: Vec<u64>,
}

/// Bounds that an operator sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Size of the context, in tokens, at which it is summarised before the next request.
    pub compact_at_tokens: u64,
    /// Attempts at one model request before the turn fails.
    pub model_attempts: u32,
    /// Wait before the second attempt, in milliseconds; doubled for each further one.
    pub backoff_ms: u64,
    /// Model requests in one turn.
    pub requests_per_turn: u32,
    /// Takeovers from dead owners in a row before the turn fails.
    pub takeovers: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self { compact_at_tokens: 150_000, model_attempts: 5, backoff_ms: 1_000, requests_per_turn: 500, takeovers: 3 }
    }
}

/// Why a command does nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The request is wrong, or wrong in this state (HTTP 400).
    #[error("{message}")]
    Invalid { message: String, code: Option<&'static str> },
    /// The request contradicts what already happened (HTTP 409, not to be retried).
    #[error("{message}")]
    Conflict { message: String },
    /// The session is gone (HTTP 404).
    #[error("session {0} does not exist")]
    Gone(SessionId),
    /// An owner's command that the log has overtaken; look at what is due again.
    #[error("no longer due")]
    Overtaken,
}

impl Refusal {
    fn invalid(message: impl Into<String>) -> Self {
        Self::Invalid { message: message.into(), code: None }
    }

    fn conflict(message: impl Into<String>) -> Self {
        Self::Conflict { message: message.into() }
    }
}

/// What `command` does to the session `state`, or `None` before its first command.
pub fn decide(
    state: Option<&State>,
    command: Command,
    limits: &Limits,
    now: Timestamp,
    ids: &mut Ids,
) -> Result<Decision, Refusal> {
    let (state, command) = match (state, command) {
        (None, Command::Create { created, initial_events }) => {
            return client::create(*created, initial_events, limits, now, ids);
        }
        (None, _) | (Some(_), Command::Create { .. }) => return Err(Refusal::Overtaken),
        (Some(state), command) => (state, command),
    };
    if state.deleted {
        return Err(Refusal::Gone(state.session_id.clone()));
    }
    let mut draft = Draft::new(state.clone(), limits, now, ids);
    match command {
        Command::Create { .. } => unreachable!("a creation returned above"),
        Command::Post { events, poster } => draft.post(events, poster)?,
        Command::Update { title, metadata, agent } => draft.update(title, metadata, agent)?,
        Command::Archive => draft.archive()?,
        Command::Delete => draft.delete()?,
        Command::StartTool { tool_use_id, work_id } => draft.start_tool(tool_use_id, work_id, None)?,
        Command::StartToolAt { tool_use_id, work_id, tip } => draft.start_tool(tool_use_id, work_id, Some(tip))?,
        Command::Expose { calls, work_id } => draft.expose(&calls, work_id.as_ref()),
        Command::EndLease { work_id } => draft.end_lease(work_id),
        Command::SaveWorkspace { manifest, bytes, tip } => draft.save_workspace(manifest, bytes, tip)?,
        Command::RestoreWorkspace { manifest, tip } => draft.restore_workspace(manifest, tip)?,
        Command::BeginModelRequest => draft.begin_model_request()?,
        Command::RefuseModelRequest { message } => draft.refuse_model_request(message)?,
        Command::FinishModelRequest { span_id, outcome, usage } => {
            draft.finish_model_request(&span_id, outcome, usage)?;
        }
        Command::ApplyInterrupt { usage } => draft.apply_interrupt(usage)?,
        Command::Resume => draft.resume()?,
        Command::TakeOver { epoch } => draft.take_over(epoch)?,
    }
    Ok(draft.finish())
}

/// A decision in the making.
struct Draft<'d> {
    state: State,
    records: Vec<Record>,
    posted: Vec<u64>,
    limits: &'d Limits,
    now: Timestamp,
    ids: &'d mut Ids,
}

impl<'d> Draft<'d> {
    fn new(state: State, limits: &'d Limits, now: Timestamp, ids: &'d mut Ids) -> Self {
        Self { state, records: Vec::new(), posted: Vec::new(), limits, now, ids }
    }

    fn finish(self) -> Decision {
        Decision { records: self.records, state: self.state, posted: self.posted }
    }

    fn id(&mut self) -> EventId {
        self.ids.next()
    }

    /// Adds a record and applies it; returns its position. Times strictly rise even where clocks do not.
    fn emit(&mut self, event: Event) -> u64 {
        let record =
            Record { position: self.state.position + 1, at: self.now.max(self.state.last_at.successor()), event };
        self.state.apply(&record);
        self.records.push(record);
        self.state.position
    }

    /// Session and primary thread start to run.
    fn run(&mut self) {
        let id = self.id();
        self.emit(Event::StatusRunning { id });
        let (id, session_thread_id, agent_name) = self.thread_event();
        self.emit(Event::ThreadStatusRunning { id, session_thread_id, agent_name });
    }

    /// Session and primary thread go idle.
    fn rest(&mut self, stop_reason: StopReason, stop_details: Option<StopDetails>) {
        let (id, session_thread_id, agent_name) = self.thread_event();
        self.emit(Event::ThreadStatusIdle {
            id,
            session_thread_id,
            agent_name,
            stop_reason: stop_reason.clone(),
            stop_details: stop_details.clone(),
        });
        self.rest_session(stop_reason, stop_details);
    }

    /// The session says that it is idle, usage first.
    fn rest_session(&mut self, stop_reason: StopReason, stop_details: Option<StopDetails>) {
        let usage = self.state.usage_snapshot(self.now.max(self.state.last_at.successor()));
        let id = self.id();
        self.emit(Event::Usage { id, usage, budget: None });
        let id = self.id();
        self.emit(Event::StatusIdle { id, stop_reason, stop_details });
    }

    fn thread_event(&mut self) -> (EventId, crate::id::ThreadId, String) {
        (self.id(), self.state.thread_id.clone(), self.state.agent.name.clone())
    }

    /// The turn is over; with more messages waiting the session runs on, else it goes idle.
    fn end_turn(&mut self, outcome: TurnOutcome, stop_reason: StopReason, stop_details: Option<StopDetails>) {
        self.settle_interrupt();
        let runs_on = outcome == TurnOutcome::Completed && !self.state.queue.is_empty();
        if !runs_on {
            self.rest(stop_reason, stop_details);
        }
        self.emit(Event::TurnEnded { outcome });
        if !runs_on && !self.state.queue.is_empty() {
            self.run();
        }
    }

    /// A waiting interrupt has nothing left to stop.
    fn settle_interrupt(&mut self) {
        if let Some(waiting) = self.state.interrupt.clone() {
            self.emit(Event::Processed { id: waiting.id, received: waiting.position });
        }
    }

    /// The turn is lost: every waiting message is flushed with it.
    fn fail_turn(&mut self, kind: SessionErrorKind, message: String) {
        let id = self.id();
        self.emit(Event::Error { id, error: SessionError { kind, message, retry_status: RetryStatus::Exhausted } });
        self.flush_queue();
        self.end_turn(TurnOutcome::Failed, StopReason::RetriesExhausted, None);
    }

    /// Marks every waiting message as processed without acting on it.
    fn flush_queue(&mut self) {
        while let Some(waiting) = self.state.queue.front().cloned() {
            self.emit(Event::Processed { id: waiting.id, received: waiting.position });
        }
    }

    /// Answers a call on behalf of whoever did not.
    fn answer_call(&mut self, tool_use_id: EventId, text: &str) {
        let id = self.id();
        self.emit(Event::AgentToolResult { id, tool_use_id, content: vec![ContentBlock::text(text)], is_error: true });
    }

    /// After calls were made or answered: runs, pauses, or goes on as it is.
    fn settle_calls(&mut self) {
        if self.state.turn.is_none() {
            return;
        }
        let blocking: Vec<EventId> = self.state.blocking_calls().map(|call| call.id.clone()).collect();
        let worker_busy = self.state.runnable_calls().any(|call| !blocking.contains(&call.id));
        match self.state.status {
            Status::Idle if blocking.is_empty() => self.run(),
            Status::Idle => self.rest_session(StopReason::RequiresAction { event_ids: blocking }, None),
            Status::Running if !blocking.is_empty() && !worker_busy => {
                self.rest(StopReason::RequiresAction { event_ids: blocking }, None);
            }
            Status::Running | Status::Rescheduling | Status::Terminated => {}
        }
    }
}

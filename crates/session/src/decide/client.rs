//! Commands of clients and of the workers that run tools.

use std::collections::BTreeMap;

use super::{Decision, Draft, Limits, Refusal};
use crate::agent::AgentSnapshot;
use crate::apply::{apply, confirmation_digest, result_digest};
use crate::command::{ClientEvent, Poster};
use crate::content::ContentBlock;
use crate::event::{Confirmation, Created, EnvironmentKind, Event, Record, StopReason, TurnOutcome};
use crate::id::{EventId, Ids, ThreadId, WorkId};
use crate::state::{Call, Runner, Status};
use crate::time::Timestamp;

/// At most this many metadata pairs, as on every resource of the API.
const METADATA_PAIRS_MAX: usize = 16;

/// What the model is told of a call that an interrupt closed.
const INTERRUPTED: &str =
    "The call was interrupted by the user before it finished. Please retry if it is still needed.";

/// What the model is told of a call whose worker was lost while it ran.
const OUTCOME_UNKNOWN: &str = "The call was interrupted: its worker was lost while it ran, and its outcome is unknown. \
    Check what it did before running it again.";

/// The first decision of a session.
pub(super) fn create(
    created: Created,
    initial_events: Vec<ClientEvent>,
    limits: &Limits,
    now: Timestamp,
    ids: &mut Ids,
) -> Result<Decision, Refusal> {
    let first = Record { position: 1, at: now, event: Event::Created(Box::new(created)) };
    let state = apply(None, &first).expect("a creation creates");
    let mut draft = Draft::new(state, limits, now, ids);
    draft.records.push(first);
    draft.post(initial_events, Poster::Application)?;
    Ok(draft.finish())
}

impl Draft<'_> {
    pub(super) fn post(&mut self, events: Vec<ClientEvent>, poster: Poster) -> Result<(), Refusal> {
        if self.state.status == Status::Terminated {
            return Err(Refusal::conflict(format!(
                "session {} is terminated and takes no more events",
                self.state.session_id
            )));
        }
        let mut answered = false;
        for event in events {
            let position = match event {
                ClientEvent::Message { content } => self.message(content),
                ClientEvent::Interrupt { session_thread_id } => self.interrupt(session_thread_id)?,
                ClientEvent::ToolConfirmation { tool_use_id, result, deny_message } => {
                    self.confirmation(tool_use_id, result, deny_message, &mut answered)?
                }
                ClientEvent::CustomToolResult { custom_tool_use_id, content, is_error } => {
                    self.custom_tool_result(custom_tool_use_id, content, is_error, &mut answered)?
                }
                ClientEvent::ToolResult { tool_use_id, content, is_error } => {
                    self.tool_result(tool_use_id, content, is_error, poster, &mut answered)?
                }
            };
            self.posted.push(position);
        }
        if answered {
            self.settle_calls();
        }
        Ok(())
    }

    fn message(&mut self, content: Vec<ContentBlock>) -> u64 {
        let id = self.id();
        let position = self.emit(Event::UserMessage { id, content, queued: true });
        if self.state.status == Status::Idle && self.state.turn.is_none() {
            self.run();
        }
        position
    }

    fn interrupt(&mut self, session_thread_id: Option<ThreadId>) -> Result<u64, Refusal> {
        if let Some(thread) = &session_thread_id
            && *thread != self.state.thread_id
        {
            return Err(Refusal::invalid(format!("session_thread_id: session has no thread {thread}")));
        }
        let id = self.id();
        let stops_something = self.state.turn.is_some() && self.state.interrupt.is_none();
        let position = self.emit(Event::UserInterrupt { id, session_thread_id, queued: stops_something });
        // A model request is the owner's to abort; everything else can be stopped here and now.
        let model_busy = self.state.turn.as_ref().is_some_and(|turn| turn.request.is_some());
        if stops_something && !model_busy {
            self.stop_turn();
        }
        Ok(position)
    }

    /// Ends the turn as interrupted: open calls are answered, then idle, then the next message if one waits.
    pub(super) fn stop_turn(&mut self) {
        self.settle_interrupt();
        let open: Vec<EventId> = self.state.open_calls().map(|call| call.id.clone()).collect();
        for call in open {
            self.answer_call(call, INTERRUPTED);
        }
        self.end_turn(TurnOutcome::Cancelled, StopReason::EndTurn, None);
    }

    fn confirmation(
        &mut self,
        tool_use_id: EventId,
        result: Confirmation,
        deny_message: Option<String>,
        answered: &mut bool,
    ) -> Result<u64, Refusal> {
        let pending = |call: &Call| call.unconfirmed;
        let digest = confirmation_digest(result, deny_message.as_deref());
        if let Some(position) = self.answer_to(&tool_use_id, &digest, pending, "waits for a confirmation")? {
            return Ok(position);
        }
        *answered = true;
        let refusal = (result == Confirmation::Deny).then(|| match &deny_message {
            Some(reason) => format!("The user refused this call: {reason}"),
            None => "The user refused this call.".to_owned(),
        });
        let id = self.id();
        let position =
            self.emit(Event::UserToolConfirmation { id, tool_use_id: tool_use_id.clone(), result, deny_message });
        if let Some(refusal) = refusal {
            self.answer_call(tool_use_id, &refusal);
        }
        Ok(position)
    }

    fn custom_tool_result(
        &mut self,
        custom_tool_use_id: EventId,
        content: Vec<ContentBlock>,
        is_error: bool,
        answered: &mut bool,
    ) -> Result<u64, Refusal> {
        let pending = |call: &Call| call.runner == Runner::Application;
        let digest = result_digest(&content, is_error);
        if let Some(position) =
            self.answer_to(&custom_tool_use_id, &digest, pending, "is a pending custom tool call")?
        {
            return Ok(position);
        }
        *answered = true;
        let id = self.id();
        Ok(self.emit(Event::UserCustomToolResult { id, custom_tool_use_id, content, is_error }))
    }

    fn tool_result(
        &mut self,
        tool_use_id: EventId,
        content: Vec<ContentBlock>,
        is_error: bool,
        poster: Poster,
        answered: &mut bool,
    ) -> Result<u64, Refusal> {
        let cloud = self.state.environment_kind == EnvironmentKind::Cloud;
        if cloud != (poster == Poster::CloudWorker) {
            return Err(Refusal::invalid(
                "user.tool_result: built-in tools of this session are run by the server's own workers; \
                 results are accepted on self_hosted environments only",
            ));
        }
        let pending = |call: &Call| call.runner == Runner::Worker && !call.unconfirmed;
        let digest = result_digest(&content, is_error);
        if let Some(position) = self.answer_to(&tool_use_id, &digest, pending, "is a pending tool call")? {
            return Ok(position);
        }
        *answered = true;
        let id = self.id();
        let content = self.state.workspace.with_notice(content);
        Ok(self.emit(if cloud {
            Event::AgentToolResult { id, tool_use_id, content, is_error }
        } else {
            Event::UserToolResult { id, tool_use_id, content, is_error }
        }))
    }

    /// `None` when the call is pending; the position of the first answer when this one repeats it.
    fn answer_to(
        &self,
        call_id: &EventId,
        digest: &str,
        pending: impl Fn(&Call) -> bool,
        expected: &str,
    ) -> Result<Option<u64>, Refusal> {
        if self.state.open_calls().any(|call| call.id == *call_id && pending(call)) {
            return Ok(None);
        }
        let kind = |digest: &str| digest.split(':').next().map(str::to_owned);
        let earlier = self
            .state
            .answers
            .iter()
            .rev()
            .find(|answer| answer.call == *call_id && kind(&answer.digest) == kind(digest));
        match earlier {
            Some(answer) if answer.digest == digest => Ok(Some(answer.position)),
            Some(_) => Err(Refusal::conflict(format!("{call_id} was already answered, and differently"))),
            None => Err(Refusal::invalid(format!("no event {call_id} of this session {expected}"))),
        }
    }

    pub(super) fn update(
        &mut self,
        title: Option<Option<String>>,
        metadata: BTreeMap<String, Option<String>>,
        agent: Option<Box<AgentSnapshot>>,
    ) -> Result<(), Refusal> {
        if self.state.status == Status::Terminated {
            return Err(Refusal::invalid(format!("session {} is terminated", self.state.session_id)));
        }
        if agent.is_some() && self.state.status != Status::Idle {
            return Err(Refusal::invalid(
                "agent: the session is running; send user.interrupt and wait until it is idle",
            ));
        }
        let mut merged = self.state.metadata.clone();
        for (key, value) in metadata {
            match value {
                Some(value) => merged.insert(key, value),
                None => merged.remove(&key),
            };
        }
        if merged.len() > METADATA_PAIRS_MAX {
            return Err(Refusal::invalid(format!(
                "metadata: {} pairs after the update; at most {METADATA_PAIRS_MAX} are allowed",
                merged.len()
            )));
        }
        let title = title.filter(|title| *title != self.state.title);
        let metadata = (merged != self.state.metadata).then_some(merged);
        if title.is_some() || metadata.is_some() || agent.is_some() {
            let id = self.id();
            self.emit(Event::Updated { id, title, metadata, agent });
        }
        Ok(())
    }

    pub(super) fn archive(&mut self) -> Result<(), Refusal> {
        self.require_at_rest("archived")?;
        if self.state.archived_at.is_some() {
            return Ok(());
        }
        self.emit(Event::Archived {});
        if self.state.status != Status::Terminated {
            self.flush_queue();
            let (id, session_thread_id, agent_name) = self.thread_event();
            self.emit(Event::ThreadStatusTerminated { id, session_thread_id, agent_name });
            let id = self.id();
            self.emit(Event::StatusTerminated { id });
        }
        Ok(())
    }

    pub(super) fn delete(&mut self) -> Result<(), Refusal> {
        self.require_at_rest("deleted")?;
        let id = self.id();
        self.emit(Event::Deleted { id });
        Ok(())
    }

    fn require_at_rest(&self, verb: &str) -> Result<(), Refusal> {
        match self.state.status {
            Status::Idle | Status::Terminated => Ok(()),
            Status::Running | Status::Rescheduling => Err(Refusal::invalid(format!(
                "session {} is running and cannot be {verb}; send user.interrupt and wait until it is idle",
                self.state.session_id
            ))),
        }
    }

    pub(super) fn start_tool(
        &mut self,
        tool_use_id: EventId,
        work_id: WorkId,
        tip: Option<EventId>,
    ) -> Result<(), Refusal> {
        let Some(call) = self.state.runnable_calls().find(|call| call.id == tool_use_id) else {
            return Err(Refusal::conflict(format!("{tool_use_id} is not a call that may run now")));
        };
        if !call.exposed {
            self.emit(Event::ToolStarted { tool_use_id, work_id: Some(work_id), tip });
        }
        Ok(())
    }

    /// Records which of `calls` may be begun by whoever is about to see them. One that waits for its confirmation
    /// may not, one that reads is safe to run again, and an answered one is history.
    pub(super) fn expose(&mut self, calls: &[EventId], work_id: Option<&WorkId>) {
        let exposed: Vec<EventId> = self
            .state
            .runnable_calls()
            .filter(|call| !call.exposed && !call.read_only && calls.contains(&call.id))
            .map(|call| call.id.clone())
            .collect();
        for tool_use_id in exposed {
            self.emit(Event::ToolStarted { tool_use_id, work_id: work_id.cloned(), tip: None });
        }
    }

    /// Closes what the holder of the ended lease may have begun; what was never begun, or changes nothing, is run again.
    pub(super) fn end_lease(&mut self, work_id: WorkId) {
        if self.state.status == Status::Terminated {
            return;
        }
        self.emit(Event::LeaseEnded { work_id });
        let cloud = self.state.environment_kind == EnvironmentKind::Cloud;
        let lost: Vec<EventId> = self
            .state
            .runnable_calls()
            .filter(|call| call.exposed && !call.read_only)
            .map(|call| call.id.clone())
            .collect();
        if lost.is_empty() {
            return;
        }
        for tool_use_id in lost {
            let id = self.id();
            let content = vec![ContentBlock::text(OUTCOME_UNKNOWN)];
            self.emit(if cloud {
                Event::AgentToolResult { id, tool_use_id, content, is_error: true }
            } else {
                Event::UserToolResult { id, tool_use_id, content, is_error: true }
            });
        }
        self.settle_calls();
    }
}

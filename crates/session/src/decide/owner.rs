//! Commands of the replica that drives the session.

use super::{Draft, Refusal};
use crate::agent::PermissionPolicy;
use crate::agent::ToolKind;
use crate::command::{AnswerBlock, ModelOutcome, ModelStop};
use crate::content::ContentBlock;
use crate::due::{Work, due};
use crate::event::{
    Backoff, CompactedContext, EvaluatedPermission, Evaluation, Event, ModelRequestIntent, ModelUsage, RequestPurpose,
    RetryStatus, SessionError, SessionErrorKind, StopReason, TurnOutcome,
};
use crate::id::EventId;
use crate::state::{OpenRequest, Status};
use crate::time::Timestamp;

/// Compactions in a row, without an answer in between, after which the turn fails.
const COMPACTIONS_IN_A_ROW_MAX: u32 = 3;

/// No wait before another attempt is longer than this, in milliseconds, unless the provider asks for it.
const BACKOFF_MS_MAX: u64 = 60_000;

/// No wait is longer than this, in milliseconds, whatever the provider asks for.
const RETRY_AFTER_MS_MAX: u64 = 600_000;

impl Draft<'_> {
    pub(super) fn begin_model_request(&mut self) -> Result<(), Refusal> {
        if due(&self.state, self.now).first() != Some(&Work::BeginModelRequest) {
            return Err(Refusal::Overtaken);
        }
        let turn = self.state.turn.as_ref().ok_or(Refusal::Overtaken)?;
        if turn.requests >= self.limits.requests_per_turn {
            let message = format!("the turn reached its limit of {} model requests", self.limits.requests_per_turn);
            self.fail_turn(SessionErrorKind::ToolUseLimitReached, message);
            return Ok(());
        }
        let takes_message = !turn.processed;
        let purpose = if self.state.context.tokens < self.limits.compact_at_tokens {
            RequestPurpose::Turn
        } else if self.state.context.compactions < COMPACTIONS_IN_A_ROW_MAX {
            RequestPurpose::Compaction
        } else {
            let message = "the context stays above its limit however often it is summarised".to_owned();
            self.fail_turn(SessionErrorKind::CompactionLimitReached, message);
            return Ok(());
        };
        // A summary is of what went before; the turn's own message is taken after it, whole.
        if takes_message
            && purpose == RequestPurpose::Turn
            && let Some(waiting) = self.state.queue.front().cloned()
        {
            self.emit(Event::Processed { id: waiting.id, received: waiting.position });
        }
        let internal = ModelRequestIntent { message_id: self.id(), thinking_id: self.id(), purpose };
        let id = self.id();
        self.emit(Event::ModelRequestStart { id, internal });
        Ok(())
    }

    /// The turn ends without the request, and its message is flushed: the client sends again when there is room.
    pub(super) fn refuse_model_request(&mut self, message: String) -> Result<(), Refusal> {
        if due(&self.state, self.now).first() != Some(&Work::BeginModelRequest) {
            return Err(Refusal::Overtaken);
        }
        self.fail_turn(SessionErrorKind::Billing, message);
        Ok(())
    }

    pub(super) fn finish_model_request(
        &mut self,
        span_id: &EventId,
        outcome: ModelOutcome,
        usage: ModelUsage,
    ) -> Result<(), Refusal> {
        let request = self.open_request().filter(|request| request.span_id == *span_id).ok_or(Refusal::Overtaken)?;
        match outcome {
            ModelOutcome::Answered { blocks, stop } if request.purpose == RequestPurpose::Turn => {
                self.answer(&request, blocks, stop, usage);
            }
            ModelOutcome::Answered { blocks, .. } => self.compact(&request, blocks, usage),
            ModelOutcome::Failed { kind, message, retryable, retry_after_ms } => {
                self.end_span(&request, true, usage);
                if self.state.interrupt.is_some() {
                    self.stop_turn();
                } else if retryable && self.attempts() + 1 < self.limits.model_attempts {
                    self.reschedule(kind, message, retry_after_ms);
                } else {
                    self.fail_turn(kind, message);
                }
            }
            ModelOutcome::Lost => self.end_span(&request, true, usage),
            ModelOutcome::Cut => {
                self.end_span(&request, true, usage);
                if self.state.interrupt.is_some() {
                    self.stop_turn();
                } else {
                    self.wait_until(self.now);
                }
            }
        }
        Ok(())
    }

    /// Records an answer and goes on: with its calls, or to the end of the turn.
    fn answer(&mut self, request: &OpenRequest, blocks: Vec<AnswerBlock>, stop: ModelStop, usage: ModelUsage) {
        let mut text = Vec::new();
        let mut calls = Vec::new();
        let mut thinking_id = Some(request.thinking_id.clone());
        for block in blocks {
            match block {
                AnswerBlock::Thinking(internal) => {
                    let id = thinking_id.take().unwrap_or_else(|| self.id());
                    self.emit(Event::AgentThinking { id, internal });
                }
                AnswerBlock::Text(part) => text.push(ContentBlock::text(part)),
                AnswerBlock::ToolUse { name, input, problem } => calls.push((name, input, problem)),
            }
        }
        if !text.is_empty() {
            self.emit(Event::AgentMessage { id: request.message_id.clone(), content: text });
        }
        let called = !calls.is_empty();
        let mut refusals = Vec::new();
        for (name, input, problem) in calls {
            let (id, refusal) = self.call(name, input, problem);
            refusals.extend(refusal.map(|text| (id, text)));
        }
        self.end_span(request, false, usage);
        for (call, text) in refusals {
            self.answer_call(call, &text);
        }
        match stop {
            _ if called => self.settle_calls(),
            ModelStop::EndTurn => self.end_turn(TurnOutcome::Completed, StopReason::EndTurn, None),
            ModelStop::Refusal(details) => {
                self.end_turn(TurnOutcome::Refused, StopReason::Refusal, Some(details));
            }
        }
    }

    /// Records one call; the text is why it will not run, if so.
    fn call(
        &mut self,
        name: String,
        input: serde_json::Map<String, serde_json::Value>,
        problem: Option<String>,
    ) -> (EventId, Option<String>) {
        let id = self.id();
        let use_of = |permission, evaluation| Event::AgentToolUse {
            id: id.clone(),
            name: name.clone(),
            input: input.clone(),
            evaluated_permission: permission,
            evaluation,
        };
        let event = match (self.state.agent.tools.get(&name), problem) {
            (None, _) => {
                let event = use_of(EvaluatedPermission::Deny, None);
                let text = format!("{name}: no such tool is enabled in this session");
                self.emit(event);
                return (id, Some(text));
            }
            (Some(ToolKind::Custom), None) => Event::AgentCustomToolUse { id: id.clone(), name: name.clone(), input },
            (Some(_), Some(problem)) => {
                let event = use_of(EvaluatedPermission::Deny, None);
                let text = format!("{name}: the input could not be read: {problem}");
                self.emit(event);
                return (id, Some(text));
            }
            (Some(ToolKind::Builtin(PermissionPolicy::AlwaysAllow)), None) => {
                use_of(EvaluatedPermission::Allow, Some(Evaluation::AlwaysAllow))
            }
            (Some(ToolKind::Builtin(PermissionPolicy::AlwaysAsk)), None) => {
                use_of(EvaluatedPermission::Ask, Some(Evaluation::AlwaysAsk))
            }
        };
        self.emit(event);
        (id, None)
    }

    /// Replaces the context by its summary.
    fn compact(&mut self, request: &OpenRequest, blocks: Vec<AnswerBlock>, usage: ModelUsage) {
        let summary = blocks
            .into_iter()
            .filter_map(|block| match block {
                AnswerBlock::Text(text) => Some(text),
                AnswerBlock::Thinking(_) | AnswerBlock::ToolUse { .. } => None,
            })
            .collect::<Vec<_>>()
            .join("\n");
        if summary.trim().is_empty() {
            self.end_span(request, true, usage);
            let message = "the model gave no summary of a context that has grown too large".to_owned();
            self.fail_turn(SessionErrorKind::CompactionLimitReached, message);
            return;
        }
        let id = self.id();
        self.emit(Event::ContextCompacted { id, internal: CompactedContext { summary } });
        self.end_span(request, false, usage);
    }

    fn reschedule(&mut self, kind: SessionErrorKind, message: String, retry_after_ms: Option<u64>) {
        let wait_ms = match retry_after_ms {
            Some(asked) => asked.min(RETRY_AFTER_MS_MAX),
            None => {
                let doubled = self.limits.backoff_ms.saturating_mul(1 << self.attempts().min(16));
                let longest = doubled.min(BACKOFF_MS_MAX);
                self.ids.between(longest / 2, longest)
            }
        };
        let id = self.id();
        self.emit(Event::Error { id, error: SessionError { kind, message, retry_status: RetryStatus::Retrying } });
        self.wait_until(self.now.plus_millis(i64::try_from(wait_ms).unwrap_or(i64::MAX)));
    }

    /// The request is made again no earlier than `retry_at`.
    fn wait_until(&mut self, retry_at: Timestamp) {
        let (id, session_thread_id, agent_name) = self.thread_event();
        self.emit(Event::ThreadStatusRescheduled { id, session_thread_id, agent_name });
        let id = self.id();
        self.emit(Event::StatusRescheduled { id, internal: Backoff { retry_at } });
    }

    pub(super) fn apply_interrupt(&mut self, usage: ModelUsage) -> Result<(), Refusal> {
        if self.state.interrupt.is_none() {
            return Err(Refusal::Overtaken);
        }
        if let Some(request) = self.open_request() {
            self.end_span(&request, true, usage);
        }
        if self.state.turn.is_some() {
            self.stop_turn();
        } else {
            self.settle_interrupt();
        }
        Ok(())
    }

    pub(super) fn resume(&mut self) -> Result<(), Refusal> {
        let retry_at = self.state.turn.as_ref().and_then(|turn| turn.retry_at);
        match (self.state.status, retry_at) {
            (Status::Rescheduling, Some(at)) if at <= self.now => {
                self.run();
                Ok(())
            }
            _ => Err(Refusal::Overtaken),
        }
    }

    pub(super) fn take_over(&mut self, epoch: u64) -> Result<(), Refusal> {
        let owner_was_needed = matches!(
            due(&self.state, self.now).first(),
            Some(Work::BeginModelRequest | Work::AwaitModel(_) | Work::ApplyInterrupt)
        );
        if !owner_was_needed {
            return Err(Refusal::Overtaken);
        }
        self.emit(Event::TakenOver { epoch });
        let takeovers = self.state.turn.as_ref().map_or(0, |turn| turn.takeovers);
        if takeovers >= self.limits.takeovers {
            if let Some(request) = self.open_request() {
                self.end_span(&request, true, ModelUsage::default());
            }
            let message = format!("the turn was given up: {takeovers} servers in a row were lost while they drove it");
            self.fail_turn(SessionErrorKind::Unknown, message);
        }
        Ok(())
    }

    fn open_request(&self) -> Option<OpenRequest> {
        self.state.turn.as_ref()?.request.clone()
    }

    fn attempts(&self) -> u32 {
        self.state.turn.as_ref().map_or(0, |turn| turn.attempts)
    }

    fn end_span(&mut self, request: &OpenRequest, is_error: bool, model_usage: ModelUsage) {
        let id = self.id();
        let model_request_start_id = request.span_id.clone();
        self.emit(Event::ModelRequestEnd { id, model_request_start_id, is_error, model_usage });
    }
}

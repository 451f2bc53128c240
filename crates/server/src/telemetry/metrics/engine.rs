//! What the engine reports, as metrics.

use engine::observer::{Basis, CacheOutcome, CallEnd, Failure, HandOver, Observer, RequestEnd, ToolOutcome, TurnEnd};
use engine::port::Cap;
use session::event::{SessionErrorKind, TurnOutcome};

use super::Metrics;
use super::labels::{
    AgentLabels, CacheLabels, ExecutedToolLabels, OperationLabels, RetryLabels, TOOL_ERROR, TURN_FAILED, TokenLabels,
    ToolLabels, UsageLabels,
};

impl Observer for Metrics {
    /// A session is driven while it has something due, so what is driven is what is in flight.
    fn active(&self, sessions: usize) {
        let sessions = i64::try_from(sessions).unwrap_or(i64::MAX);
        self.active.set(sessions);
        self.turns_in_flight.set(sessions);
    }

    fn session_created(&self) {
        self.sessions_created.inc();
    }

    fn cache_request(&self, op: &'static str, outcome: CacheOutcome, duration_seconds: f64) {
        let outcome = match outcome {
            CacheOutcome::Hit => "hit",
            CacheOutcome::Miss => "miss",
            CacheOutcome::Error => "error",
        };
        self.cache_requests.get_or_create(&CacheLabels { op, outcome }).inc();
        self.cache_duration.get_or_create(&[("op", op)]).observe(duration_seconds);
    }

    fn turn_started(&self) {
        self.turns_started.get_or_create(&[("source", "user")]).inc();
    }

    fn turn_ended(&self, end: &TurnEnd<'_>) {
        let outcome = match (end.outcome, end.failure) {
            (TurnOutcome::Completed, _) => "completed",
            (TurnOutcome::Cancelled, _) => "cancelled",
            // What a cap refuses says nothing of the release, whose turns that failed are held against those completed.
            (TurnOutcome::Refused, _) | (TurnOutcome::Failed, Some(Failure::Cap)) => "refused",
            (TurnOutcome::Failed, _) => "failed",
        };
        if let Some(failure) = end.failure {
            self.error(match failure {
                Failure::Model => "upstream",
                Failure::Cap => "client",
                Failure::Owners => "internal",
            });
        }
        self.turns.get_or_create(&[("outcome", outcome)]).inc();
        self.turn_duration.get_or_create(&[("outcome", outcome)]).observe(end.duration_seconds);
        self.turn_iterations.observe(f64::from(end.requests));
        let error_type = if outcome == "failed" { TURN_FAILED } else { "" };
        // Agents are made by clients: those that the settings name have series of their own.
        let labels = AgentLabels { gen_ai_agent_name: self.names.agent(end.agent).to_owned(), error_type };
        self.observe(&self.invoke_agent, &labels, end.duration_seconds);
    }

    fn time_to_first_token(&self, seconds: f64) {
        self.time_to_first_token.observe(seconds);
    }

    fn model_request_ended(&self, end: &RequestEnd<'_>) {
        let (model, provider) = self.names.model(end.model);
        let kinds = [
            ("input", end.usage.input_tokens),
            ("output", end.usage.output_tokens),
            ("cache_read", end.usage.cache_read_input_tokens),
            ("cache_write", end.usage.cache_creation_input_tokens),
        ];
        for (kind, tokens) in kinds {
            self.tokens.get_or_create(&TokenLabels { r#type: kind, model: model.to_owned() }).inc_by(tokens);
        }
        let labels = OperationLabels {
            gen_ai_operation_name: "chat",
            gen_ai_provider_name: provider,
            gen_ai_request_model: model.to_owned(),
            error_type: end.error.map_or("", error_type),
        };
        self.observe(&self.operation_duration, &labels, end.duration_seconds);
        if let Some(seconds) = end.first_chunk_seconds {
            self.observe(&self.time_to_first_chunk, &labels, seconds);
        }
        for (kind, tokens) in &kinds[..2] {
            let labels = UsageLabels {
                gen_ai_operation_name: "chat",
                gen_ai_provider_name: provider,
                gen_ai_request_model: model.to_owned(),
                gen_ai_token_type: kind,
            };
            self.observe(&self.token_usage, &labels, *tokens as f64);
        }
    }

    fn tool_call_ended(&self, end: &CallEnd<'_>) {
        let (outcome, error_type) = match end.outcome {
            ToolOutcome::Succeeded => ("succeeded", ""),
            ToolOutcome::Failed => ("failed", TOOL_ERROR),
        };
        let tool = self.names.tool(end.tool);
        self.tool_calls.get_or_create(&ToolLabels { tool, outcome }).inc();
        let labels = ExecutedToolLabels { gen_ai_tool_name: tool, error_type };
        self.observe(&self.execute_tool, &labels, end.duration_seconds);
    }

    fn request_settled(&self, basis: Basis) {
        let basis = match basis {
            Basis::Usage => "usage",
            Basis::Estimate => "estimate",
            Basis::Nothing => "nothing",
        };
        self.ledger_settlements.get_or_create(&[("basis", basis)]).inc();
    }

    fn cap_refused(&self, cap: Cap) {
        let cap = match cap {
            Cap::Tokens => "tokens",
            Cap::Spend => "spend",
        };
        self.ledger_refusals.get_or_create(&[("cap", cap)]).inc();
    }

    fn admission_cut_short(&self) {
        self.rejections.get_or_create(&[("reason", "max_agents")]).inc();
    }

    fn turns_lost(&self, turns: usize) {
        self.turns_lost.get_or_create(&[("cause", "no_wake_up")]).inc_by(turns as u64);
    }

    fn handed_over(&self, reason: HandOver) {
        self.turns.get_or_create(&[("outcome", "handed_off")]).inc();
        self.handed_off.get_or_create(&[("reason", hand_over(reason))]).inc();
    }

    fn resumed(&self, reason: HandOver) {
        self.turns_started.get_or_create(&[("source", "resume")]).inc();
        self.resumed.get_or_create(&[("reason", hand_over(reason))]).inc();
    }

    fn driver_failed(&self) {
        self.error("internal");
    }

    fn draining(&self) {
        self.draining.set(1);
    }

    fn drained(&self, seconds: f64) {
        self.drain_duration.observe(seconds);
    }
}

impl Metrics {
    /// A model request was sent again within one call.
    pub fn provider_retried(&self, provider: &'static str, reason: SessionErrorKind) {
        self.provider_retries.get_or_create(&RetryLabels { provider, reason: error_type(reason) }).inc();
    }
}

fn hand_over(reason: HandOver) -> &'static str {
    match reason {
        HandOver::Drain => "drain",
        HandOver::Crash => "crash",
    }
}

/// The value of `error_type`: the API's own word for the error.
fn error_type(kind: SessionErrorKind) -> &'static str {
    match kind {
        SessionErrorKind::Unknown => "unknown_error",
        SessionErrorKind::ModelOverloaded => "model_overloaded_error",
        SessionErrorKind::ModelRateLimited => "model_rate_limited_error",
        SessionErrorKind::ModelRequestFailed => "model_request_failed_error",
        SessionErrorKind::Billing => "billing_error",
        SessionErrorKind::ToolUseLimitReached => "tool_use_limit_reached_error",
        SessionErrorKind::CompactionLimitReached => "compaction_limit_reached_error",
    }
}

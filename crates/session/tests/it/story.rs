//! Given a session, when something is asked of it, then these records follow.
//!
//! A story holds one session and checks after every step that the log alone gives the same state.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use session::agent::{AgentSnapshot, Effort, ModelConfig, PermissionPolicy, Speed, Tool, ToolConfig, ToolDefaults};
use session::command::{AnswerBlock, ClientEvent, Command, ModelOutcome, ModelStop, Poster};
use session::content::ContentBlock;
use session::event::{Confirmation, Created, EnvironmentKind, Event, ModelUsage, SessionErrorKind, StopReason};
use session::id::EventId;
use session::{Ids, Limits, Record, Refusal, State, Timestamp, Work, decide, due, fold};

pub(crate) struct Story {
    pub(crate) records: Vec<Record>,
    pub(crate) state: State,
    pub(crate) limits: Limits,
    pub(crate) now: Timestamp,
    step: u128,
    last: Vec<Record>,
    pub(crate) posted: Vec<u64>,
}

/// A session on an environment of this kind: `bash` asks, `read` and `write` are allowed, `lookup` is the application's.
pub(crate) fn given(environment_kind: EnvironmentKind) -> Story {
    given_created(environment_kind, Vec::new())
}

pub(crate) fn given_created(environment_kind: EnvironmentKind, initial_events: Vec<ClientEvent>) -> Story {
    let mut ids = Ids::from_seed(1);
    let created = Box::new(Created {
        session_id: ids.next(),
        thread_id: ids.next(),
        environment_id: ids.next(),
        environment_kind,
        agent: agent(&mut ids),
        title: None,
        metadata: BTreeMap::new(),
        api_key_id: Some(ids.next()),
    });
    let limits = Limits { backoff_ms: 1_000, ..Limits::default() };
    let now = Timestamp::from_micros(1_000_000);
    let decision = decide(None, Command::Create { created, initial_events }, &limits, now, &mut ids).unwrap();
    Story {
        last: decision.records.clone(),
        records: decision.records,
        state: decision.state,
        limits,
        now,
        step: 1,
        posted: decision.posted,
    }
}

pub(crate) fn agent(ids: &mut Ids) -> AgentSnapshot {
    let asks = ToolConfig {
        kind: "bash".into(),
        name: "bash".into(),
        enabled: true,
        permission_policy: PermissionPolicy::AlwaysAsk,
    };
    let disabled = ToolConfig {
        kind: "glob".into(),
        name: "glob".into(),
        enabled: false,
        permission_policy: PermissionPolicy::AlwaysAllow,
    };
    AgentSnapshot {
        id: ids.next(),
        version: 1,
        name: "tester".into(),
        description: None,
        system: None,
        model: ModelConfig { id: "demo".into(), effort: Effort::High, speed: Speed::Standard, inference_geo: None },
        tools: vec![
            Tool::Toolset {
                default_config: ToolDefaults { enabled: true, permission_policy: PermissionPolicy::AlwaysAllow },
                configs: vec![asks, disabled],
            },
            Tool::Custom { name: "lookup".into(), description: "Looks up.".into(), input_schema: Map::new() },
        ],
    }
}

impl Story {
    pub(crate) fn attempt(&mut self, command: Command) -> Result<(), Refusal> {
        self.step += 1;
        let mut ids = Ids::from_seed(self.step << 64 | self.step);
        let decision = decide(Some(&self.state), command, &self.limits, self.now, &mut ids)?;
        self.records.extend(decision.records.iter().cloned());
        self.last = decision.records;
        self.state = decision.state;
        self.posted = decision.posted;
        assert_eq!(fold(None, &self.records).as_ref(), Some(&self.state), "the log gives the same state");
        Ok(())
    }

    pub(crate) fn when(mut self, command: Command) -> Self {
        self.attempt(command).expect("the command is taken");
        self
    }

    /// The client posts these events.
    pub(crate) fn posts(self, events: Vec<ClientEvent>) -> Self {
        self.when(Command::Post { events, poster: Poster::Application })
    }

    /// The cloud worker posts a result for the latest open call by index.
    pub(crate) fn worker_answers(self, index: usize, text: &str) -> Self {
        let events = vec![tool_result(self.call(index), text)];
        self.when(Command::Post { events, poster: Poster::CloudWorker })
    }

    pub(crate) fn begins(self) -> Self {
        self.when(Command::BeginModelRequest)
    }

    pub(crate) fn model(self, outcome: ModelOutcome) -> Self {
        self.model_uses(outcome, ModelUsage { input_tokens: 10, output_tokens: 5, ..ModelUsage::default() })
    }

    pub(crate) fn model_uses(self, outcome: ModelOutcome, usage: ModelUsage) -> Self {
        let span_id = self.span();
        self.when(Command::FinishModelRequest { span_id, outcome, usage })
    }

    pub(crate) fn span(&self) -> EventId {
        self.state.turn.as_ref().unwrap().request.as_ref().expect("a request is open").span_id.clone()
    }

    /// The id of a call of the model's last answer.
    pub(crate) fn call(&self, index: usize) -> EventId {
        self.state.turn.as_ref().unwrap().calls[index].id.clone()
    }

    pub(crate) fn later(mut self, millis: i64) -> Self {
        self.now = self.now.plus_millis(millis);
        self
    }

    pub(crate) fn limits(mut self, change: impl FnOnce(&mut Limits)) -> Self {
        change(&mut self.limits);
        self
    }

    #[track_caller]
    pub(crate) fn then(self, expected: &[&str]) -> Self {
        let told: Vec<String> = self.last.iter().map(tell).collect();
        assert_eq!(told, expected);
        self
    }

    #[track_caller]
    pub(crate) fn then_refused(mut self, command: Command, expected: &str) -> Self {
        let before = self.state.clone();
        let refusal = self.attempt(command).expect_err("the command is refused").to_string();
        assert!(refusal.contains(expected), "{refusal:?} should contain {expected:?}");
        assert_eq!(self.state, before, "a refusal changes nothing");
        self
    }

    #[track_caller]
    pub(crate) fn then_due(self, expected: &str) -> Self {
        let work: Vec<&str> = due(&self.state, self.now)
            .iter()
            .map(|work| match work {
                Work::BeginModelRequest => "begin",
                Work::AwaitModel(_) => "model",
                Work::ApplyInterrupt => "interrupt",
                Work::Resume { .. } => "resume",
                Work::AwaitWorker { .. } => "worker",
            })
            .collect();
        assert_eq!(work.join(" "), expected);
        self
    }
}

/// A record in a few words.
fn tell(record: &Record) -> String {
    let kind = record.event.kind().trim_start_matches("session.");
    match &record.event {
        Event::UserMessage { queued: true, .. } | Event::UserInterrupt { queued: true, .. } => format!("{kind} waits"),
        Event::AgentToolUse { name, evaluated_permission, .. } => {
            format!("{kind} {name} {}", json!(evaluated_permission).as_str().unwrap())
        }
        Event::AgentCustomToolUse { name, .. } => format!("{kind} {name}"),
        Event::AgentToolResult { is_error: true, .. } | Event::UserToolResult { is_error: true, .. } => {
            format!("{kind} error")
        }
        Event::ModelRequestEnd { is_error: true, .. } => format!("{kind} error"),
        Event::StatusIdle { stop_reason, .. } | Event::ThreadStatusIdle { stop_reason, .. } => match stop_reason {
            StopReason::RequiresAction { event_ids } => format!("{kind} requires_action {}", event_ids.len()),
            other => format!("{kind} {}", json!(other)["type"].as_str().unwrap()),
        },
        Event::Error { error, .. } => {
            format!(
                "{kind} {} {}",
                json!(error.kind).as_str().unwrap(),
                json!(error.retry_status)["type"].as_str().unwrap()
            )
        }
        Event::TurnEnded { outcome } => format!("{kind} {}", json!(outcome).as_str().unwrap()),
        _ => kind.to_owned(),
    }
}

pub(crate) fn message(text: &str) -> ClientEvent {
    ClientEvent::Message { content: vec![ContentBlock::text(text)] }
}

pub(crate) fn interrupt() -> ClientEvent {
    ClientEvent::Interrupt { session_thread_id: None }
}

pub(crate) fn confirm(tool_use_id: EventId, result: Confirmation, deny_message: Option<&str>) -> ClientEvent {
    ClientEvent::ToolConfirmation { tool_use_id, result, deny_message: deny_message.map(str::to_owned) }
}

pub(crate) fn custom_result(custom_tool_use_id: EventId, text: &str) -> ClientEvent {
    ClientEvent::CustomToolResult { custom_tool_use_id, content: vec![ContentBlock::text(text)], is_error: false }
}

pub(crate) fn tool_result(tool_use_id: EventId, text: &str) -> ClientEvent {
    ClientEvent::ToolResult { tool_use_id, content: vec![ContentBlock::text(text)], is_error: false }
}

pub(crate) fn says(text: &str) -> ModelOutcome {
    ModelOutcome::Answered { blocks: vec![AnswerBlock::Text(text.into())], stop: ModelStop::EndTurn }
}

pub(crate) fn calls(names: &[&str]) -> ModelOutcome {
    let blocks = names
        .iter()
        .map(|name| AnswerBlock::ToolUse { name: (*name).into(), input: Map::new(), problem: None })
        .collect();
    ModelOutcome::Answered { blocks, stop: ModelStop::EndTurn }
}

pub(crate) fn thinks(text: &str) -> ModelOutcome {
    let blocks = vec![AnswerBlock::Thinking(Value::Null), AnswerBlock::Text(text.into())];
    ModelOutcome::Answered { blocks, stop: ModelStop::EndTurn }
}

pub(crate) fn fails(retryable: bool) -> ModelOutcome {
    ModelOutcome::Failed {
        kind: SessionErrorKind::ModelOverloaded,
        message: "overloaded".into(),
        retryable,
        retry_after_ms: None,
    }
}

//! Random histories: whatever is asked of a session in whatever order, its log stays a history that makes sense.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use session::command::{Command, Poster};
use session::event::{Confirmation, EnvironmentKind, Event, ModelUsage};
use session::id::EventId;
use session::manifest::ContentHash;
use session::state::{Runner, Status};
use session::{Form, Ids, Record, State, Work, due};

use crate::story::{Story, calls, confirm, custom_result, fails, given, interrupt, message, says, thinks, tool_result};

/// Something that the world may do next. Numbers choose among what is possible.
#[derive(Clone, Debug)]
enum Step {
    Message,
    Interrupt,
    InterruptAndMessage,
    Own(u8),
    Worker(u8),
    Application(u8),
    Confirm(u8, bool),
    StartTool(u8),
    Show(u8),
    EndLease,
    SaveWorkspace,
    RestoreWorkspace,
    TakeOver,
    Later(u16),
    Archive,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => Just(Step::Message),
        2 => Just(Step::Interrupt),
        1 => Just(Step::InterruptAndMessage),
        14 => any::<u8>().prop_map(Step::Own),
        6 => any::<u8>().prop_map(Step::Worker),
        4 => any::<u8>().prop_map(Step::Application),
        4 => (any::<u8>(), any::<bool>()).prop_map(|(call, allow)| Step::Confirm(call, allow)),
        3 => any::<u8>().prop_map(Step::StartTool),
        3 => any::<u8>().prop_map(Step::Show),
        1 => Just(Step::EndLease),
        1 => Just(Step::SaveWorkspace),
        1 => Just(Step::RestoreWorkspace),
        1 => Just(Step::TakeOver),
        2 => any::<u16>().prop_map(Step::Later),
        1 => Just(Step::Archive),
    ]
}

fn kind() -> impl Strategy<Value = EnvironmentKind> {
    prop_oneof![Just(EnvironmentKind::Cloud), Just(EnvironmentKind::SelfHosted)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn every_history_makes_sense(kind in kind(), steps in prop::collection::vec(step(), 1..80)) {
        let mut story = given(kind).limits(|limits| limits.compact_at_tokens = 60);
        for step in steps {
            take(&mut story, &step);
            story.now = story.now.plus_millis(1);
        }
        check(&story.records);
        quiesce(&mut story);
        check(&story.records);
        prop_assert!(story.state.queue.is_empty(), "everything received is processed in the end");
        prop_assert!(story.state.interrupt.is_none());
        prop_assert!(matches!(story.state.status, Status::Idle | Status::Terminated));
    }

    #[test]
    fn stored_forms_read_back(kind in kind(), steps in prop::collection::vec(step(), 1..40)) {
        let mut story = given(kind);
        for step in steps {
            take(&mut story, &step);
        }
        let snapshot = serde_json::to_string(&story.state).unwrap();
        prop_assert_eq!(serde_json::from_str::<State>(&snapshot).unwrap(), story.state);
        for record in &story.records {
            let stored = serde_json::to_value(&record.event).unwrap();
            prop_assert_eq!(stored["type"].as_str(), Some(record.event.kind()));
            prop_assert_eq!(&serde_json::from_value::<Event>(stored).unwrap(), &record.event);
        }
    }
}

/// Tries the step; the world often asks for what cannot be, and is refused.
fn take(story: &mut Story, step: &Step) {
    let commands = match step {
        Step::Message => vec![post(message("m"), Poster::Application)],
        Step::Interrupt => vec![post(interrupt(), Poster::Application)],
        Step::InterruptAndMessage => {
            vec![Command::Post { events: vec![interrupt(), message("m")], poster: Poster::Application }]
        }
        Step::Own(choice) => own(story, *choice).into_iter().collect(),
        Step::Worker(choice) => pick(story, *choice, |call| call.runner == Runner::Worker)
            .map(|call| vec![post(tool_result(call, "done"), worker(story))])
            .unwrap_or_default(),
        Step::Application(choice) => pick(story, *choice, |call| call.runner == Runner::Application)
            .map(|call| vec![post(custom_result(call, "done"), Poster::Application)])
            .unwrap_or_default(),
        Step::Confirm(choice, allow) => pick(story, *choice, |call| call.unconfirmed)
            .map(|call| {
                let result = if *allow { Confirmation::Allow } else { Confirmation::Deny };
                vec![post(confirm(call, result, None), Poster::Application)]
            })
            .unwrap_or_default(),
        Step::StartTool(choice) => pick(story, *choice, |_| true)
            .map(|tool_use_id| vec![Command::StartTool { tool_use_id, work_id: Ids::from_seed(1).next() }])
            .unwrap_or_default(),
        Step::Show(choice) => pick(story, *choice, |_| true)
            .map(|call| vec![Command::Expose { calls: vec![call], work_id: None }])
            .unwrap_or_default(),
        Step::EndLease => vec![Command::EndLease { work_id: Ids::from_seed(1).next() }],
        Step::SaveWorkspace => {
            let manifest = ContentHash::of(story.state.position.to_string().as_bytes());
            vec![Command::SaveWorkspace { manifest, bytes: 1, tip: story.state.workspace.tip.clone() }]
        }
        Step::RestoreWorkspace => {
            let workspace = &story.state.workspace;
            let manifest = workspace.saved.as_ref().map(|saved| saved.manifest.clone());
            vec![Command::RestoreWorkspace { manifest, tip: workspace.tip.clone() }]
        }
        Step::TakeOver => vec![Command::TakeOver { epoch: 2 }],
        Step::Later(millis) => {
            story.now = story.now.plus_millis(i64::from(*millis));
            Vec::new()
        }
        Step::Archive => vec![Command::Archive],
    };
    for command in commands {
        let _ = story.attempt(command);
    }
}

fn post(event: session::ClientEvent, poster: Poster) -> Command {
    Command::Post { events: vec![event], poster }
}

fn worker(story: &Story) -> Poster {
    match story.state.environment_kind {
        EnvironmentKind::Cloud => Poster::CloudWorker,
        EnvironmentKind::SelfHosted => Poster::SelfHostedWorker,
    }
}

fn pick(story: &Story, choice: u8, want: impl Fn(&session::state::Call) -> bool) -> Option<EventId> {
    let calls: Vec<_> = story.state.open_calls().filter(|call| want(call)).collect();
    (!calls.is_empty()).then(|| calls[usize::from(choice) % calls.len()].id.clone())
}

/// What the owner would do next; the number chooses what comes of a model request.
fn own(story: &Story, choice: u8) -> Option<Command> {
    let usage = ModelUsage { input_tokens: 20, output_tokens: 4, ..ModelUsage::default() };
    Some(match due(&story.state, story.now).into_iter().next()? {
        Work::BeginModelRequest => Command::BeginModelRequest,
        Work::AwaitModel(request) => {
            let outcome = match choice % 11 {
                0 => fails(true),
                1 => fails(false),
                2 => calls(&["write", "bash", "lookup"]),
                3 => calls(&["read", "write"]),
                4 => calls(&["lookup", "nonsense"]),
                5 => session::command::ModelOutcome::Lost,
                6 => thinks("hm"),
                7 => session::command::ModelOutcome::Cut,
                _ => says("so"),
            };
            Command::FinishModelRequest { span_id: request.span_id, outcome, usage }
        }
        Work::ApplyInterrupt => Command::ApplyInterrupt { usage },
        Work::Resume { at } if at <= story.now => Command::Resume,
        Work::Resume { .. } | Work::AwaitWorker { .. } => return None,
    })
}

/// Lets the session come to rest with a friendly world.
fn quiesce(story: &mut Story) {
    for _ in 0..400 {
        let calls: Vec<_> = story.state.open_calls().cloned().collect();
        if let Some(command) = own(story, 9) {
            story.attempt(command).unwrap();
        } else if let Some(call) = calls.first() {
            let event = match (call.unconfirmed, call.runner) {
                (true, _) => post(confirm(call.id.clone(), Confirmation::Allow, None), Poster::Application),
                (_, Runner::Application) => post(custom_result(call.id.clone(), "end"), Poster::Application),
                (_, Runner::Worker) => post(tool_result(call.id.clone(), "end"), worker(story)),
            };
            story.attempt(event).unwrap();
        } else if story.state.status == Status::Rescheduling {
            story.now = story.now.plus_millis(60_000);
        } else {
            return;
        }
    }
    panic!("the session never comes to rest: {:?}", story.state);
}

/// What holds of every history.
fn check(records: &[Record]) {
    let mut open_span = None;
    let mut open_calls: BTreeSet<EventId> = BTreeSet::new();
    let mut received: BTreeMap<EventId, u64> = BTreeMap::new();
    let mut ids = BTreeSet::new();
    let mut running = false;
    for (index, record) in records.iter().enumerate() {
        assert_eq!(record.position, index as u64 + 1, "positions have no gap");
        assert!(index == 0 || records[index - 1].at < record.at, "times rise");
        if let Some(id) = record.event.id()
            && !matches!(record.event, Event::Processed { .. })
        {
            assert!(ids.insert(id.clone()), "ids are unique");
        }
        if record.event.form() == Form::Received {
            received.insert(record.event.id().unwrap().clone(), record.position);
        }
        match &record.event {
            Event::Processed { id, received: position } => {
                assert_eq!(received.remove(id), Some(*position), "what is processed was received, once");
            }
            Event::ModelRequestStart { id, .. } => {
                assert!(running, "the model is asked by a running session");
                assert!(open_span.replace(id.clone()).is_none(), "one model request at a time");
                assert!(open_calls.is_empty(), "every call is answered before the next request");
            }
            Event::ModelRequestEnd { model_request_start_id, .. } => {
                assert_eq!(open_span.take().as_ref(), Some(model_request_start_id), "every span ends once");
            }
            Event::AgentToolUse { id, .. } | Event::AgentCustomToolUse { id, .. } => {
                open_calls.insert(id.clone());
            }
            Event::AgentToolResult { tool_use_id: call, .. }
            | Event::UserToolResult { tool_use_id: call, .. }
            | Event::UserCustomToolResult { custom_tool_use_id: call, .. } => {
                assert!(open_calls.remove(call), "every call is answered once");
            }
            Event::StatusRunning { .. } => {
                assert!(!running, "a session that runs does not start to run");
                running = true;
            }
            Event::StatusIdle { .. } | Event::StatusRescheduled { .. } | Event::StatusTerminated { .. } => {
                running = false;
                assert!(open_span.is_none(), "no model request is open at rest");
            }
            _ => {}
        }
    }
}

//! One story a rule.

use std::collections::BTreeMap;

use session::command::{AnswerBlock, Command, ModelOutcome, ModelStop, Poster};
use session::event::{Confirmation, EnvironmentKind, ModelUsage, StopDetails};
use session::state::Status;
use session::{Identifier, Ids};

use crate::story::{
    agent, calls, confirm, custom_result, fails, given, given_created, interrupt, message, says, thinks, tool_result,
};

const CLOUD: EnvironmentKind = EnvironmentKind::Cloud;
const SELF_HOSTED: EnvironmentKind = EnvironmentKind::SelfHosted;

const STARTS: [&str; 3] = ["user.message waits", "status_running", "thread_status_running"];
const ENDS_TURN: [&str; 4] =
    ["thread_status_idle end_turn", "usage", "status_idle end_turn", "log.turn_ended completed"];
const NO_USAGE: ModelUsage =
    ModelUsage { input_tokens: 0, output_tokens: 0, cache_read_input_tokens: 0, cache_creation_input_tokens: 0 };

fn with<'s>(first: &[&'s str], rest: &[&'s str]) -> Vec<&'s str> {
    [first, rest].concat()
}

#[test]
fn a_plain_turn() {
    given(CLOUD)
        .then(&["log.created"])
        .then_due("")
        .posts(vec![message("hello")])
        .then(&STARTS)
        .then_due("begin")
        .begins()
        .then(&["log.processed", "span.model_request_start"])
        .then_due("model")
        .model(thinks("hi"))
        .then(&with(&["agent.thinking", "agent.message", "span.model_request_end"], &ENDS_TURN))
        .then_due("");
}

#[test]
fn a_request_that_nobody_pays_for_ends_the_turn() {
    let refuse = || Command::RefuseModelRequest { message: "no more today".to_owned() };
    given(CLOUD)
        .then_refused(refuse(), "no longer due")
        .posts(vec![message("hello"), message("more")])
        .when(refuse())
        .then(&[
            "error billing_error exhausted",
            "log.processed",
            "log.processed",
            "thread_status_idle retries_exhausted",
            "usage",
            "status_idle retries_exhausted",
            "log.turn_ended failed",
        ])
        .then_due("")
        .posts(vec![message("again")])
        .then(&STARTS)
        .then_due("begin");
}

#[test]
fn initial_events_start_the_session() {
    let story = given_created(CLOUD, vec![message("hello"), message("more")]);
    assert_eq!(story.state.status, Status::Running);
    story.then(&["log.created", "user.message waits", "status_running", "thread_status_running", "user.message waits"]);
}

#[test]
fn messages_are_taken_in_order_one_turn_each_without_going_idle() {
    let story = given(CLOUD)
        .posts(vec![message("one"), message("two")])
        .then(&with(&STARTS, &["user.message waits"]))
        .begins()
        .model(says("first"))
        .then(&["agent.message", "span.model_request_end", "log.turn_ended completed"])
        .then_due("begin")
        .begins()
        .then(&["log.processed", "span.model_request_start"])
        .model(says("second"))
        .then(&with(&["agent.message", "span.model_request_end"], &ENDS_TURN));
    assert!(story.state.queue.is_empty());
}

#[test]
fn an_allowed_call_goes_to_the_worker_and_its_result_to_the_model() {
    given(CLOUD)
        .posts(vec![message("go")])
        .begins()
        .model(calls(&["write", "read"]))
        .then(&["agent.tool_use write allow", "agent.tool_use read allow", "span.model_request_end"])
        .then_due("worker")
        .worker_answers(0, "wrote")
        .then(&["agent.tool_result"])
        .then_due("worker")
        .worker_answers(1, "text")
        .then_due("begin")
        .begins()
        .then(&["span.model_request_start"]);
}

#[test]
fn a_tool_that_is_not_enabled_is_refused_and_the_model_goes_on() {
    given(CLOUD)
        .posts(vec![message("go")])
        .begins()
        .model(calls(&["glob", "rm"]))
        .then(&[
            "agent.tool_use glob deny",
            "agent.tool_use rm deny",
            "span.model_request_end",
            "agent.tool_result error",
            "agent.tool_result error",
        ])
        .then_due("begin");
}

#[test]
fn an_input_that_cannot_be_read_is_answered_and_not_run() {
    let unread =
        AnswerBlock::ToolUse { name: "write".into(), input: Default::default(), problem: Some("not an object".into()) };
    given(CLOUD)
        .posts(vec![message("go")])
        .begins()
        .model(ModelOutcome::Answered { blocks: vec![unread], stop: ModelStop::EndTurn })
        .then(&["agent.tool_use write deny", "span.model_request_end", "agent.tool_result error"])
        .then_due("begin");
}

#[test]
fn two_custom_calls_answered_one_by_one() {
    let story = given(CLOUD).posts(vec![message("go")]).begins().model(calls(&["lookup", "lookup"])).then(&[
        "agent.custom_tool_use lookup",
        "agent.custom_tool_use lookup",
        "span.model_request_end",
        "thread_status_idle requires_action 2",
        "usage",
        "status_idle requires_action 2",
    ]);
    let (first, second) = (story.call(0), story.call(1));
    story
        .then_due("")
        .posts(vec![custom_result(first, "a")])
        .then(&["user.custom_tool_result", "usage", "status_idle requires_action 1"])
        .posts(vec![custom_result(second, "b")])
        .then(&["user.custom_tool_result", "status_running", "thread_status_running"])
        .then_due("begin");
}

#[test]
fn a_custom_result_before_the_worker_is_done_needs_no_idle() {
    let story = given(CLOUD).posts(vec![message("go")]).begins().model(calls(&["write", "lookup"]));
    assert_eq!(story.state.status, Status::Running);
    let custom = story.call(1);
    story
        .posts(vec![custom_result(custom, "a")])
        .then(&["user.custom_tool_result"])
        .worker_answers(0, "wrote")
        .then(&["agent.tool_result"])
        .then_due("begin");
}

#[test]
fn the_worker_done_first_leaves_the_session_waiting_for_the_client() {
    given(CLOUD)
        .posts(vec![message("go")])
        .begins()
        .model(calls(&["write", "bash"]))
        .worker_answers(0, "wrote")
        .then(&["agent.tool_result", "thread_status_idle requires_action 1", "usage", "status_idle requires_action 1"]);
}

#[test]
fn a_call_that_asks_is_allowed() {
    let story = given(CLOUD).posts(vec![message("go")]).begins().model(calls(&["bash"])).then(&[
        "agent.tool_use bash ask",
        "span.model_request_end",
        "thread_status_idle requires_action 1",
        "usage",
        "status_idle requires_action 1",
    ]);
    let call = story.call(0);
    story
        .then_refused(
            Command::Post { events: vec![tool_result(call.clone(), "early")], poster: Poster::CloudWorker },
            "is a pending tool call",
        )
        .posts(vec![confirm(call.clone(), Confirmation::Allow, None)])
        .then(&["user.tool_confirmation", "status_running", "thread_status_running"])
        .then_due("worker")
        .worker_answers(0, "ran")
        .then_due("begin");
}

#[test]
fn a_call_that_asks_is_denied() {
    let story = given(CLOUD).posts(vec![message("go")]).begins().model(calls(&["bash"]));
    let call = story.call(0);
    let story = story.posts(vec![confirm(call, Confirmation::Deny, Some("too risky"))]).then(&[
        "user.tool_confirmation",
        "agent.tool_result error",
        "status_running",
        "thread_status_running",
    ]);
    let told = format!("{:?}", story.records);
    assert!(told.contains("too risky"));
    story.then_due("begin");
}

#[test]
fn an_answer_given_twice_is_recognised_and_a_different_one_refused() {
    let story = given(CLOUD).posts(vec![message("go")]).begins().model(calls(&["lookup"]));
    let call = story.call(0);
    let story = story.posts(vec![custom_result(call.clone(), "a")]);
    let first = story.posted.clone();
    let story = story.posts(vec![custom_result(call.clone(), "a")]).then(&[]);
    assert_eq!(story.posted, first);
    story.then_refused(
        Command::Post { events: vec![custom_result(call, "b")], poster: Poster::Application },
        "already answered",
    );
}

#[test]
fn answers_to_nothing_are_refused_whole() {
    let unknown = || Ids::from_seed(99).next();
    let post = |event| Command::Post { events: vec![message("first"), event], poster: Poster::Application };
    given(SELF_HOSTED)
        .then_refused(post(confirm(unknown(), Confirmation::Allow, None)), "waits for a confirmation")
        .then_refused(post(custom_result(unknown(), "a")), "pending custom tool call")
        .then_refused(post(tool_result(unknown(), "a")), "pending tool call");
    given(CLOUD).then_refused(post(tool_result(unknown(), "a")), "self_hosted environments only");
}

#[test]
fn self_hosted_calls_wait_for_the_client_worker() {
    let story = given(SELF_HOSTED).posts(vec![message("go")]).begins().model(calls(&["write"])).then(&[
        "agent.tool_use write allow",
        "span.model_request_end",
        "thread_status_idle requires_action 1",
        "usage",
        "status_idle requires_action 1",
    ]);
    let call = story.call(0);
    story.when(Command::Post { events: vec![tool_result(call, "wrote")], poster: Poster::SelfHostedWorker }).then(&[
        "user.tool_result",
        "status_running",
        "thread_status_running",
    ]);
}

#[test]
fn a_self_hosted_call_that_asks_needs_both_answers() {
    let story = given(SELF_HOSTED).posts(vec![message("go")]).begins().model(calls(&["bash"]));
    let call = story.call(0);
    story
        .posts(vec![confirm(call.clone(), Confirmation::Allow, None)])
        .then(&["user.tool_confirmation", "usage", "status_idle requires_action 1"])
        .posts(vec![tool_result(call, "ran")])
        .then(&["user.tool_result", "status_running", "thread_status_running"]);
}

#[test]
fn a_message_waits_while_calls_are_pending() {
    let story = given(CLOUD)
        .posts(vec![message("go")])
        .begins()
        .model(calls(&["lookup"]))
        .posts(vec![message("and then")])
        .then(&["user.message waits"])
        .then_due("");
    let call = story.call(0);
    story
        .posts(vec![custom_result(call, "a")])
        .begins()
        .then(&["span.model_request_start"])
        .model(says("done"))
        .then(&["agent.message", "span.model_request_end", "log.turn_ended completed"])
        .begins()
        .then(&["log.processed", "span.model_request_start"]);
}

#[test]
fn an_interrupt_aborts_the_model() {
    given(CLOUD)
        .posts(vec![message("go")])
        .begins()
        .posts(vec![interrupt(), message("instead")])
        .then(&["user.interrupt waits", "user.message waits"])
        .then_due("interrupt")
        .when(Command::ApplyInterrupt { usage: NO_USAGE })
        .then(&[
            "span.model_request_end error",
            "log.processed",
            "thread_status_idle end_turn",
            "usage",
            "status_idle end_turn",
            "log.turn_ended cancelled",
            "status_running",
            "thread_status_running",
        ])
        .begins()
        .then(&["log.processed", "span.model_request_start"]);
}

#[test]
fn an_interrupt_closes_running_calls_at_once() {
    given(CLOUD).posts(vec![message("go")]).begins().model(calls(&["write"])).posts(vec![interrupt()]).then(&[
        "user.interrupt waits",
        "log.processed",
        "agent.tool_result error",
        "thread_status_idle end_turn",
        "usage",
        "status_idle end_turn",
        "log.turn_ended cancelled",
    ]);
}

#[test]
fn an_interrupt_closes_pending_calls_without_asking_the_model() {
    given(CLOUD)
        .posts(vec![message("go")])
        .begins()
        .model(calls(&["lookup"]))
        .posts(vec![interrupt()])
        .then(&[
            "user.interrupt waits",
            "log.processed",
            "agent.tool_result error",
            "thread_status_idle end_turn",
            "usage",
            "status_idle end_turn",
            "log.turn_ended cancelled",
        ])
        .then_due("");
}

#[test]
fn an_interrupt_of_nothing_is_recorded_and_does_nothing() {
    given(CLOUD).posts(vec![interrupt()]).then(&["user.interrupt"]).then_due("");
    let stranger = session::command::ClientEvent::Interrupt { session_thread_id: Some("sthr_other".into()) };
    given(CLOUD).then_refused(Command::Post { events: vec![stranger], poster: Poster::Application }, "no thread");
}

#[test]
fn an_answer_that_beats_the_interrupt_is_kept() {
    given(CLOUD)
        .posts(vec![message("go")])
        .begins()
        .posts(vec![interrupt()])
        .model(says("done"))
        .then(&with(&["agent.message", "span.model_request_end", "log.processed"], &ENDS_TURN));
}

#[test]
fn a_transient_error_waits_and_tries_again() {
    given(CLOUD)
        .posts(vec![message("go")])
        .begins()
        .model(fails(true))
        .then(&[
            "span.model_request_end error",
            "error model_overloaded_error retrying",
            "thread_status_rescheduled",
            "status_rescheduled",
        ])
        .then_due("resume")
        .then_refused(Command::Resume, "no longer due")
        .later(1_000)
        .when(Command::Resume)
        .then(&["status_running", "thread_status_running"])
        .begins()
        .then(&["span.model_request_start"])
        .model(says("hi"))
        .then(&with(&["agent.message", "span.model_request_end"], &ENDS_TURN));
}

#[test]
fn the_providers_wish_is_obeyed() {
    let busy = ModelOutcome::Failed {
        kind: session::event::SessionErrorKind::ModelRateLimited,
        message: "slow down".into(),
        retryable: true,
        retry_after_ms: Some(30_000),
    };
    given(CLOUD)
        .posts(vec![message("go")])
        .begins()
        .model(busy)
        .later(29_999)
        .then_refused(Command::Resume, "no longer due")
        .later(1)
        .when(Command::Resume)
        .then_due("begin");
}

#[test]
fn errors_that_last_end_the_turn_and_flush_what_waits() {
    let exhausted = [
        "span.model_request_end error",
        "error model_overloaded_error exhausted",
        "log.processed",
        "thread_status_idle retries_exhausted",
        "usage",
        "status_idle retries_exhausted",
        "log.turn_ended failed",
    ];
    given(CLOUD)
        .limits(|limits| limits.model_attempts = 2)
        .posts(vec![message("go"), message("lost")])
        .begins()
        .model(fails(true))
        .later(60_000)
        .when(Command::Resume)
        .begins()
        .model(fails(true))
        .then(&exhausted)
        .then_due("")
        .posts(vec![message("again")])
        .then(&STARTS);
    given(CLOUD).posts(vec![message("go"), message("lost")]).begins().model(fails(false)).then(&exhausted);
}

#[test]
fn an_interrupt_ends_the_wait_for_another_attempt() {
    given(CLOUD).posts(vec![message("go")]).begins().model(fails(true)).posts(vec![interrupt()]).then(&[
        "user.interrupt waits",
        "log.processed",
        "thread_status_idle end_turn",
        "usage",
        "status_idle end_turn",
        "log.turn_ended cancelled",
    ]);
}

#[test]
fn a_refusal_of_the_model_ends_the_turn() {
    let details = StopDetails::Refusal { category: None, explanation: Some("no".into()) };
    given(CLOUD)
        .posts(vec![message("go")])
        .begins()
        .model(ModelOutcome::Answered { blocks: Vec::new(), stop: ModelStop::Refusal(details) })
        .then(&[
            "span.model_request_end",
            "thread_status_idle refusal",
            "usage",
            "status_idle refusal",
            "log.turn_ended refused",
        ]);
}

#[test]
fn a_context_above_its_limit_is_summarised_first() {
    let large = ModelUsage { input_tokens: 900, output_tokens: 100, ..NO_USAGE };
    let story = given(CLOUD)
        .limits(|limits| limits.compact_at_tokens = 1_000)
        .posts(vec![message("go")])
        .begins()
        .model_uses(says("long"), large)
        .posts(vec![message("more")])
        .begins()
        .then(&["span.model_request_start"])
        .model(says("summary"))
        .then(&["agent.thread_context_compacted", "span.model_request_end"])
        .then_due("begin")
        .begins()
        .then(&["log.processed", "span.model_request_start"]);
    assert!(story.state.context.from > 0);
    assert_eq!(story.state.usage.input_tokens, 910);
}

#[test]
fn summaries_that_do_not_help_end_the_turn() {
    let large = ModelUsage { input_tokens: 900, output_tokens: 2_000, ..NO_USAGE };
    let mut story = given(CLOUD)
        .limits(|limits| limits.compact_at_tokens = 1_000)
        .posts(vec![message("go")])
        .begins()
        .model_uses(says("long"), large)
        .posts(vec![message("more")]);
    for _ in 0..3 {
        story = story.begins().model_uses(says("a summary as long as the text"), large);
    }
    story.begins().then(&[
        "error compaction_limit_reached_error exhausted",
        "log.processed",
        "thread_status_idle retries_exhausted",
        "usage",
        "status_idle retries_exhausted",
        "log.turn_ended failed",
    ]);
}

#[test]
fn a_turn_has_a_limited_number_of_requests() {
    given(CLOUD)
        .limits(|limits| limits.requests_per_turn = 1)
        .posts(vec![message("go")])
        .begins()
        .model(calls(&["write"]))
        .worker_answers(0, "wrote")
        .begins()
        .then(&[
            "error tool_use_limit_reached_error exhausted",
            "thread_status_idle retries_exhausted",
            "usage",
            "status_idle retries_exhausted",
            "log.turn_ended failed",
        ]);
}

#[test]
fn a_lost_request_is_made_again_as_a_new_one() {
    let story = given(CLOUD).posts(vec![message("go")]).begins();
    let lost = story.span();
    let story = story
        .model_uses(ModelOutcome::Lost, NO_USAGE)
        .then(&["span.model_request_end error"])
        .then_due("begin")
        .begins()
        .then(&["span.model_request_start"]);
    assert_ne!(story.span(), lost);
    story.then_refused(
        Command::FinishModelRequest { span_id: lost, outcome: says("late"), usage: NO_USAGE },
        "no longer due",
    );
}

#[test]
fn a_request_that_is_cut_waits_for_no_time_and_counts_as_no_attempt() {
    let story = given(CLOUD).posts(vec![message("go")]).begins().model_uses(ModelOutcome::Cut, NO_USAGE).then(&[
        "span.model_request_end error",
        "thread_status_rescheduled",
        "status_rescheduled",
    ]);
    assert_eq!(story.state.turn.as_ref().map(|turn| (turn.attempts, turn.takeovers)), Some((0, 0)));
    story.when(Command::Resume).then(&["status_running", "thread_status_running"]).then_due("begin");
}

#[test]
fn an_interrupt_that_met_a_cut_request_ends_the_turn() {
    given(CLOUD)
        .posts(vec![message("go")])
        .begins()
        .posts(vec![interrupt()])
        .model_uses(ModelOutcome::Cut, NO_USAGE)
        .then_due("");
}

#[test]
fn a_session_that_kills_its_owners_is_given_up() {
    given(CLOUD)
        .posts(vec![message("go")])
        .begins()
        .when(Command::TakeOver { epoch: 2 })
        .then(&["log.taken_over"])
        .when(Command::TakeOver { epoch: 3 })
        .when(Command::TakeOver { epoch: 4 })
        .then(&[
            "log.taken_over",
            "span.model_request_end error",
            "error unknown_error exhausted",
            "thread_status_idle retries_exhausted",
            "usage",
            "status_idle retries_exhausted",
            "log.turn_ended failed",
        ]);
    given(CLOUD)
        .posts(vec![message("go")])
        .begins()
        .model(calls(&["write"]))
        .then_refused(Command::TakeOver { epoch: 2 }, "no longer due");
}

#[test]
fn what_a_lost_worker_had_begun_is_reported_and_the_rest_run_again() {
    let work_id = || Ids::from_seed(5).next();
    let story = given(CLOUD).posts(vec![message("go")]).begins().model(calls(&["write", "read", "write"]));
    let (write, read) = (story.call(0), story.call(1));
    let story = story
        .when(Command::StartTool { tool_use_id: write.clone(), work_id: work_id() })
        .then(&["log.tool_started"])
        .when(Command::StartTool { tool_use_id: write, work_id: work_id() })
        .then(&[])
        .when(Command::StartTool { tool_use_id: read, work_id: work_id() })
        .when(Command::EndLease { work_id: work_id() })
        .then(&["log.lease_ended", "agent.tool_result error"])
        .then_due("worker");
    assert_eq!(story.state.runnable_calls().count(), 2);
    story.when(Command::EndLease { work_id: work_id() }).then(&["log.lease_ended"]);
}

#[test]
fn what_a_clients_worker_was_shown_is_reported_and_the_rest_run_again() {
    let work_id = || Ids::from_seed(5).next();
    let story = given(SELF_HOSTED).posts(vec![message("go")]).begins().model(calls(&["write", "read", "write"]));
    let (write, read, unseen) = (story.call(0), story.call(1), story.call(2));
    let show = |work_id| Command::Expose { calls: vec![write.clone(), read.clone()], work_id };
    let story = story
        .when(show(Some(work_id())))
        .then(&["log.tool_started"])
        .when(show(None))
        .then(&[])
        .when(Command::EndLease { work_id: work_id() })
        .then(&["log.lease_ended", "user.tool_result error", "usage", "status_idle requires_action 2"]);
    let left: Vec<_> = story.state.runnable_calls().map(|call| call.id.clone()).collect();
    assert_eq!(left, [read.clone(), unseen]);
    story.when(show(None)).then(&[]);
}

#[test]
fn a_call_that_waits_is_exposed_by_the_confirmation_that_frees_it() {
    let work_id = || Ids::from_seed(5).next();
    let story = given(SELF_HOSTED).posts(vec![message("go")]).begins().model(calls(&["bash"]));
    let call = story.call(0);
    let show = Command::Expose { calls: vec![call.clone()], work_id: Some(work_id()) };
    let story = story
        .when(show.clone())
        .then(&[])
        .when(Command::EndLease { work_id: work_id() })
        .then(&["log.lease_ended"])
        .posts(vec![confirm(call, Confirmation::Allow, None)])
        .when(show)
        .then(&["log.tool_started"])
        .when(Command::EndLease { work_id: work_id() });
    assert_eq!(story.state.open_calls().count(), 0, "it may have been run");
}

#[test]
fn a_call_that_waits_for_its_confirmation_cannot_be_started() {
    let story = given(CLOUD).posts(vec![message("go")]).begins().model(calls(&["bash"]));
    let call = story.call(0);
    story.then_refused(
        Command::StartTool { tool_use_id: call, work_id: Ids::from_seed(5).next() },
        "not a call that may run now",
    );
}

#[test]
fn settings_change_and_only_real_changes_are_told() {
    let update = |title: Option<Option<&str>>, pairs: &[(&str, Option<&str>)]| Command::Update {
        title: title.map(|title| title.map(str::to_owned)),
        metadata: pairs.iter().map(|(key, value)| ((*key).to_owned(), value.map(str::to_owned))).collect(),
        agent: None,
    };
    let story = given(CLOUD)
        .when(update(Some(Some("title")), &[("a", Some("1"))]))
        .then(&["updated"])
        .when(update(Some(Some("title")), &[("a", Some("1")), ("b", None)]))
        .then(&[])
        .when(update(Some(None), &[("a", None)]))
        .then(&["updated"]);
    assert_eq!((story.state.title.as_deref(), story.state.metadata.len()), (None, 0));
    let many: BTreeMap<_, _> = (0..17).map(|key| (key.to_string(), Some(String::new()))).collect();
    story.then_refused(Command::Update { title: None, metadata: many, agent: None }, "at most 16");
}

#[test]
fn tools_change_only_while_idle() {
    let mut tools = agent(&mut Ids::from_seed(1));
    tools.tools.clear();
    let update = || Command::Update { title: None, metadata: BTreeMap::new(), agent: Some(Box::new(tools.clone())) };
    let story = given(CLOUD).when(update()).then(&["updated"]);
    assert!(story.state.agent.tools.is_empty());
    story.posts(vec![message("go")]).then_refused(update(), "is running");
}

#[test]
fn archive_and_delete_wait_for_rest() {
    given(CLOUD)
        .posts(vec![message("go")])
        .then_refused(Command::Archive, "is running")
        .then_refused(Command::Delete, "is running")
        .begins()
        .model(says("hi"))
        .when(Command::Archive)
        .then(&["log.archived", "thread_status_terminated", "status_terminated"])
        .when(Command::Archive)
        .then(&[])
        .then_refused(Command::Post { events: vec![message("more")], poster: Poster::Application }, "is terminated")
        .when(Command::Delete)
        .then(&["deleted"])
        .then_refused(Command::Archive, "does not exist");
}

#[test]
fn archiving_settles_messages_that_wait_behind_a_call() {
    let story = given(CLOUD)
        .posts(vec![message("go")])
        .begins()
        .model(calls(&["lookup"]))
        .posts(vec![message("never")])
        .when(Command::Archive)
        .then(&["log.archived", "log.processed", "thread_status_terminated", "status_terminated"]);
    assert!(story.state.queue.is_empty());
}

#[test]
fn ids_name_their_kind() {
    let story = given(CLOUD);
    assert!(story.state.session_id.as_str().starts_with(session::id::SessionId::PREFIX));
}

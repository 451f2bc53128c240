//! Turns from end to end, on one replica or several.

use std::sync::{Arc, Mutex};

use engine::observer::{CallEnd, RequestEnd, TurnEnd};
use engine::port::model::{AssistantBlock, Message, UserBlock};
use engine::port::work_queue::{ExpectedHeartbeat, Pool};
use engine::port::{Fence, WorkItem, WorkQueue, WorkState};
use engine::{CommandError, FeedItem, Observer};
use session::command::Poster;
use session::content::ContentBlock;
use session::event::{Confirmation, EnvironmentKind, StopReason};
use session::{ClientEvent, Command, Event};
use tokio::time::{Duration, sleep};

use crate::rig::{Rig, calls, is_idle, message, overloaded, post, quiet_simulated_panics, says, until};

#[tokio::test(start_paused = true)]
async fn a_plain_turn_runs_and_lets_the_session_go() {
    let rig = Rig::new();
    let replica = rig.replica(4);
    let id = rig.session(&replica.sessions, EnvironmentKind::Cloud).await;
    let mut feed = rig.follow(&id).await;
    rig.model.then(says(&["Good ", "morning."]));
    post(&replica.sessions, &id, vec![message("Hello")]).await;
    let seen = until(&mut feed, is_idle).await;

    assert_eq!(
        rig.kinds(&id).await,
        [
            "log.created",
            "user.message",
            "session.status_running",
            "session.thread_status_running",
            "log.processed",
            "span.model_request_start",
            "agent.message",
            "span.model_request_end",
            "session.thread_status_idle",
            "session.usage",
            "session.status_idle",
            "log.turn_ended",
        ]
    );
    let previews = seen.iter().filter(|item| matches!(item, FeedItem::Preview(_))).count();
    assert_eq!(previews, 3, "a start and two chunks");
    let asked = rig.model.asked();
    assert_eq!(**asked[0].messages, [Message::User(vec![UserBlock::Content(ContentBlock::text("Hello"))])]);
    assert_eq!(asked[0].system.as_deref(), Some("You are tested."));
    assert_eq!(asked[0].tools.len(), 7);
    let loaded = rig.world.log.load(&id).await.unwrap().unwrap();
    assert_eq!(loaded.claim, None);
}

#[tokio::test(start_paused = true)]
async fn a_message_posted_where_no_scheduler_runs_is_claimed_elsewhere() {
    let rig = Rig::new();
    let _replica = rig.replica(4);
    let id = rig.session(&rig.sessions, EnvironmentKind::Cloud).await;
    let mut feed = rig.follow(&id).await;
    rig.model.then(says(&["One."]));
    rig.model.then(says(&["Two."]));
    post(&rig.sessions, &id, vec![message("1"), message("2")]).await;
    until(&mut feed, is_idle).await;
    let asked = rig.model.asked();
    assert_eq!(asked.len(), 2);
    assert_eq!(asked[1].messages.len(), 3);
    assert_eq!(asked[1].messages[1], Message::Assistant(vec![AssistantBlock::Text("One.".to_owned())]));
}

#[tokio::test(start_paused = true)]
async fn a_context_near_the_end_of_the_models_window_is_summarised() {
    let rig = Rig::new();
    let replica = rig.replica(4);
    let id = rig.session(&replica.sessions, EnvironmentKind::Cloud).await;
    let mut feed = rig.follow(&id).await;
    // An answer of the script leaves a context of 12 tokens: 80 % of 15.
    rig.model.takes(15);
    for text in ["One.", "So far: one.", "Two."] {
        rig.model.then(says(&[text]));
    }
    post(&replica.sessions, &id, vec![message("1"), message("2")]).await;
    until(&mut feed, is_idle).await;
    let kinds = rig.kinds(&id).await;
    assert_eq!(kinds.iter().filter(|kind| **kind == "agent.thread_context_compacted").count(), 1);
    let asked = rig.model.asked();
    assert_eq!(asked.len(), 3);
    let Message::User(blocks) = &asked[2].messages[0] else { panic!("the summary") };
    assert!(format!("{blocks:?}").contains("So far: one."));
}

#[tokio::test(start_paused = true)]
async fn a_custom_tool_and_a_confirmation_wait_as_rows() {
    let rig = Rig::new();
    let replica = rig.replica(4);
    let id = rig.session(&replica.sessions, EnvironmentKind::Cloud).await;
    let mut feed = rig.follow(&id).await;
    rig.model.then(calls(&["lookup", "bash"]));
    rig.model.then(says(&["Done."]));
    post(&replica.sessions, &id, vec![message("Look it up")]).await;
    let seen = until(&mut feed, is_idle).await;
    let Some(FeedItem::Record(idle)) = seen.last() else { panic!("an idle event") };
    let Event::StatusIdle { stop_reason: StopReason::RequiresAction { event_ids }, .. } = &idle.record.event else {
        panic!("the session waits")
    };
    let (lookup, bash) = (event_ids[0].clone(), event_ids[1].clone());
    assert_eq!(rig.world.log.load(&id).await.unwrap().unwrap().claim, None, "nothing is held while it waits");

    let result = ClientEvent::CustomToolResult {
        custom_tool_use_id: lookup.clone(),
        content: vec![ContentBlock::text("found")],
        is_error: false,
    };
    let refusal = ClientEvent::ToolConfirmation {
        tool_use_id: bash.clone(),
        result: Confirmation::Deny,
        deny_message: Some("not today".to_owned()),
    };
    let first = post(&replica.sessions, &id, vec![result.clone()]).await;
    let again = post(&replica.sessions, &id, vec![result]).await;
    assert_eq!(first.posted, again.posted, "a repeated answer is the first one");
    post(&replica.sessions, &id, vec![refusal]).await;
    until(&mut feed, |event| matches!(event, Event::AgentMessage { .. })).await;
    let asked = rig.model.asked();
    let Message::User(blocks) = &asked[1].messages[2] else { panic!("the results") };
    assert_eq!(blocks.len(), 2);
    assert!(
        matches!(&blocks[0], UserBlock::ToolResult { tool_use_id, is_error: false, .. } if *tool_use_id == lookup.as_str())
    );
    assert!(
        matches!(&blocks[1], UserBlock::ToolResult { tool_use_id, is_error: true, .. } if *tool_use_id == bash.as_str())
    );
}

#[tokio::test(start_paused = true)]
async fn a_worker_runs_what_the_model_calls() {
    let rig = Rig::new();
    let replica = rig.replica(4);
    let id = rig.session(&replica.sessions, EnvironmentKind::Cloud).await;
    let mut feed = rig.follow(&id).await;
    rig.model.then(calls(&["write"]));
    rig.model.then(says(&["Written."]));
    post(&replica.sessions, &id, vec![message("Write")]).await;
    let seen = until(&mut feed, |event| matches!(event, Event::ModelRequestEnd { .. })).await;
    let call = tool_use(&seen);

    let item = rig.store.poll(&Pool::Cloud, "w1", 5_000, "token").await.unwrap().expect("an item");
    rig.store.acknowledge(&Pool::Cloud, &item.id, None).await.unwrap();
    let fence = Fence::ItemToken { work_id: item.id.clone(), token_hash: "token".to_owned() };
    let start = Command::StartTool { tool_use_id: call.clone(), work_id: item.id.clone() };
    replica.sessions.command(&id, start, fence.clone()).await.unwrap();
    let result = ClientEvent::ToolResult { tool_use_id: call, content: Vec::new(), is_error: false };
    let results = Command::Post { events: vec![result], poster: Poster::CloudWorker };
    replica.sessions.command(&id, results, fence).await.unwrap();
    until(&mut feed, is_idle).await;
    assert_eq!(rig.model.asked().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_goes_silent_loses_its_lease_and_its_call() {
    let rig = Rig::new();
    let replica = rig.replica(4);
    let id = rig.session(&replica.sessions, EnvironmentKind::Cloud).await;
    let mut feed = rig.follow(&id).await;
    rig.model.then(calls(&["write", "read"]));
    rig.model.then(says(&["I see."]));
    post(&replica.sessions, &id, vec![message("Write")]).await;
    let seen = until(&mut feed, |event| matches!(event, Event::ModelRequestEnd { .. })).await;
    let call = tool_use(&seen);

    let item = rig.store.poll(&Pool::Cloud, "w1", 5_000, "token").await.unwrap().expect("an item");
    rig.store.acknowledge(&Pool::Cloud, &item.id, None).await.unwrap();
    rig.store.heartbeat(&Pool::Cloud, &item.id, &ExpectedHeartbeat::None, Some(3)).await.unwrap();
    let fence = Fence::ItemToken { work_id: item.id.clone(), token_hash: "token".to_owned() };
    let start = Command::StartTool { tool_use_id: call.clone(), work_id: item.id.clone() };
    replica.sessions.command(&id, start, fence.clone()).await.unwrap();

    let seen = until(&mut feed, |event| matches!(event, Event::AgentToolResult { .. })).await;
    let Some(FeedItem::Record(result)) = seen.last() else { panic!("a result") };
    assert!(
        matches!(&result.record.event, Event::AgentToolResult { tool_use_id, is_error: true, .. } if *tool_use_id == call)
    );
    let item = rig.store.item(&Pool::Cloud, &item.id).await.unwrap().unwrap();
    assert_eq!(item.state, WorkState::Queued, "the read was never begun and goes to the next worker");
}

/// Found by the simulator: an item stopped by force left its call exposed, and the next worker ran it again.
#[tokio::test(start_paused = true)]
async fn an_item_stopped_by_force_leaves_no_call_exposed() {
    let rig = Rig::new();
    let replica = rig.replica(4);
    let id = rig.session(&replica.sessions, EnvironmentKind::Cloud).await;
    let mut feed = rig.follow(&id).await;
    rig.model.then(calls(&["write"]));
    rig.model.then(says(&["I see."]));
    post(&replica.sessions, &id, vec![message("Write")]).await;
    let seen = until(&mut feed, |event| matches!(event, Event::ModelRequestEnd { .. })).await;
    let call = tool_use(&seen);
    let (item, fence) = hold(&rig, "token").await;
    let start = Command::StartTool { tool_use_id: call.clone(), work_id: item.id.clone() };
    replica.sessions.command(&id, start, fence.clone()).await.unwrap();
    replica.sessions.stop_item(&Pool::Cloud, &item.id, true, fence).await.unwrap();
    let seen = until(&mut feed, is_idle).await;
    let interrupted = seen.iter().any(|item| match item {
        FeedItem::Record(stored) => matches!(
            &stored.record.event,
            Event::AgentToolResult { tool_use_id, is_error: true, .. } if *tool_use_id == call
        ),
        _ => false,
    });
    assert!(interrupted, "the call is closed with an unknown outcome");
    assert_eq!(rig.store.item(&Pool::Cloud, &item.id).await.unwrap().unwrap().state, WorkState::Stopped);
}

/// Found by the simulator: an item that was stopped before anybody held it took the calls of its session with it,
/// which nobody drives while a client's worker is waited for.
#[tokio::test(start_paused = true)]
async fn an_item_stopped_in_the_queue_leaves_its_calls_to_another() {
    let rig = Rig::new();
    let replica = rig.replica(4);
    let id = rig.session(&replica.sessions, EnvironmentKind::SelfHosted).await;
    let mut feed = rig.follow(&id).await;
    rig.model.then(calls(&["write"]));
    post(&replica.sessions, &id, vec![message("Write")]).await;
    until(&mut feed, is_idle).await;
    let state = replica.sessions.state(&id).await.unwrap().unwrap();
    let pool = Pool::Environment(state.environment_id.clone());
    let items = rig.store.list_items(&pool, None, 1).await.unwrap();
    replica.sessions.stop_item(&pool, &items[0].id, false, Fence::Client).await.unwrap();
    assert_eq!(rig.store.item(&pool, &items[0].id).await.unwrap().unwrap().state, WorkState::Stopped);
    let next = rig.store.poll(&pool, "w1", 5_000, "token").await.unwrap().expect("the call still waits for a worker");
    assert!(next.id != items[0].id && next.session_id == id);
}

#[tokio::test(start_paused = true)]
async fn a_clients_worker_that_goes_silent_loses_what_it_was_shown_and_nothing_else() {
    let rig = Rig::new();
    let replica = rig.replica(4);
    let id = rig.session(&replica.sessions, EnvironmentKind::SelfHosted).await;
    let mut feed = rig.follow(&id).await;
    rig.model.then(calls(&["write", "write"]));
    post(&replica.sessions, &id, vec![message("Write")]).await;
    let seen = until(&mut feed, |event| matches!(event, Event::StatusIdle { .. })).await;
    let shown = tool_use(&seen);
    let state = replica.sessions.state(&id).await.unwrap().unwrap();
    let pool = Pool::Environment(state.environment_id.clone());
    let item = rig.store.poll(&pool, "w1", 5_000, "token").await.unwrap().expect("an item");
    rig.store.acknowledge(&pool, &item.id, None).await.unwrap();
    rig.store.heartbeat(&pool, &item.id, &ExpectedHeartbeat::None, Some(3)).await.unwrap();
    let fence = Fence::ItemToken { work_id: item.id.clone(), token_hash: "token".to_owned() };
    let show = Command::Expose { calls: vec![shown.clone()], work_id: Some(item.id.clone()) };
    replica.sessions.command(&id, show.clone(), fence.clone()).await.unwrap();

    let seen = until(&mut feed, |event| matches!(event, Event::UserToolResult { .. })).await;
    let ended = seen.iter().any(
        |seen| matches!(seen, FeedItem::Record(stored) if matches!(&stored.record.event, Event::LeaseEnded { work_id } if *work_id == item.id)),
    );
    assert!(ended, "whoever follows the session under the token hears that it ended");
    let Some(FeedItem::Record(result)) = seen.last() else { panic!("a result") };
    assert!(
        matches!(&result.record.event, Event::UserToolResult { tool_use_id, is_error: true, .. } if *tool_use_id == shown)
    );
    let state = replica.sessions.state(&id).await.unwrap().unwrap();
    let left: Vec<_> = state.runnable_calls().map(|call| call.id.clone()).collect();
    assert!(left.len() == 1 && left[0] != shown, "what was not shown is the next worker's: {left:?}");
    let item = rig.store.item(&pool, &item.id).await.unwrap().unwrap();
    assert_eq!(item.state, WorkState::Queued);
    let late = replica.sessions.command(&id, show, fence).await;
    assert!(matches!(late, Err(CommandError::TokenEnded)), "{late:?}");
}

/// Found by the simulator: a worker that had lost its item was told that a call begun by its successor might run.
#[tokio::test(start_paused = true)]
async fn a_lost_token_is_told_even_where_nothing_is_written() {
    let rig = Rig::new();
    let replica = rig.replica(4);
    let id = rig.session(&replica.sessions, EnvironmentKind::Cloud).await;
    let mut feed = rig.follow(&id).await;
    rig.model.then(calls(&["write"]));
    post(&replica.sessions, &id, vec![message("Write")]).await;
    let seen = until(&mut feed, |event| matches!(event, Event::ModelRequestEnd { .. })).await;
    let call = tool_use(&seen);
    let (item, stale) = hold(&rig, "old").await;
    replica.sessions.stop_item(&Pool::Cloud, &item.id, true, Fence::Client).await.unwrap();
    let (item, current) = hold(&rig, "new").await;
    let start = Command::StartTool { tool_use_id: call.clone(), work_id: item.id.clone() };
    replica.sessions.command(&id, start.clone(), current).await.unwrap();
    let refused = replica.sessions.command(&id, start, stale).await;
    assert!(matches!(refused, Err(CommandError::TokenEnded)), "{refused:?}");
}

#[tokio::test(start_paused = true)]
async fn an_embedded_server_ends_the_leases_of_its_last_start_at_once() {
    let rig = Rig::new();
    let first = rig.replica(4);
    let id = rig.session(&first.sessions, EnvironmentKind::Cloud).await;
    let mut feed = rig.follow(&id).await;
    rig.model.then(calls(&["write"]));
    rig.model.then(says(&["I see."]));
    post(&first.sessions, &id, vec![message("Write")]).await;
    let seen = until(&mut feed, |event| matches!(event, Event::ModelRequestEnd { .. })).await;
    let (item, fence) = hold(&rig, "token").await;
    let start = Command::StartTool { tool_use_id: tool_use(&seen), work_id: item.id.clone() };
    first.sessions.command(&id, start, fence).await.unwrap();
    first.task.abort();
    let died_at = rig.world.clock.now();
    let _second = rig.embedded_replica();
    let seen = until(&mut feed, |event| matches!(event, Event::AgentToolResult { .. })).await;
    let Some(FeedItem::Record(result)) = seen.last() else { panic!("a result") };
    assert!(result.record.at.seconds_since(died_at) < 1.0, "the lease had thirty seconds to go");
    until(&mut feed, is_idle).await;
}

#[tokio::test(start_paused = true)]
async fn no_more_sessions_are_held_than_allowed() {
    let rig = Rig::new();
    let replica = rig.replica(1);
    let mut slow = says(&["slowly"]);
    slow.pause = Duration::from_secs(5);
    rig.model.then(slow);
    rig.model.then(says(&["At once."]));
    let first = rig.session(&replica.sessions, EnvironmentKind::Cloud).await;
    let second = rig.session(&replica.sessions, EnvironmentKind::Cloud).await;
    let mut feeds = [rig.follow(&first).await, rig.follow(&second).await];
    for id in [&first, &second] {
        post(&replica.sessions, id, vec![message("Go")]).await;
    }
    while rig.model.asked().is_empty() {
        sleep(Duration::from_millis(10)).await;
    }
    sleep(Duration::from_secs(2)).await;
    assert_eq!(rig.model.asked().len(), 1, "the second session waits for room");
    for feed in &mut feeds {
        until(feed, is_idle).await;
    }
}

#[tokio::test(start_paused = true)]
async fn who_waits_longest_is_next_and_no_room_is_left_empty() {
    const SESSIONS: usize = 20;
    let rig = Rig::new();
    let replica = rig.replica(1);
    let mut feeds = Vec::new();
    for _ in 0..SESSIONS {
        let id = rig.session(&replica.sessions, EnvironmentKind::Cloud).await;
        let mut answer = says(&["ok"]);
        answer.pause = Duration::from_millis(10);
        rig.model.then(answer);
        feeds.push((id.clone(), rig.follow(&id).await));
    }
    let began = rig.world.clock.now();
    for (id, _) in &feeds {
        post(&replica.sessions, id, vec![message("Go")]).await;
        // Others come while some wait, and each waits for longer than those behind it.
        sleep(Duration::from_millis(5)).await;
    }
    let mut last = began;
    for (number, (_, feed)) in feeds.iter_mut().enumerate() {
        let seen = until(feed, |event| matches!(event, Event::ModelRequestStart { .. })).await;
        let Some(FeedItem::Record(start)) = seen.last() else { panic!("a request") };
        assert!(start.record.at > last, "{number}: {:?} is not behind {last:?}", start.record.at);
        last = start.record.at;
    }
    let seconds = last.seconds_since(began);
    assert!(seconds < 0.1 * SESSIONS as f64, "{seconds}: a session waited for a pass and not for the one before it");
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_one_session_harms_no_other_and_is_given_up_in_the_end() {
    quiet_simulated_panics();
    let rig = Rig::new();
    let told = Arc::new(Counts::default());
    let replica = rig.observed_replica(4, told.clone());
    let faulty = rig.session(&replica.sessions, EnvironmentKind::Cloud).await;
    let mut feed = rig.follow(&faulty).await;
    rig.model.panic_for(&faulty);
    post(&replica.sessions, &faulty, vec![message("Go")]).await;
    let seen = until(&mut feed, is_idle).await;
    let takeovers = seen.iter().filter(
        |item| matches!(item, FeedItem::Record(stored) if matches!(stored.record.event, Event::TakenOver { .. })),
    );
    assert_eq!(takeovers.count(), 3, "then the turn is given up");
    let last = told.0.lock().unwrap().last().cloned();
    assert_eq!(last.as_deref(), Some("turn ended Failed by Owners after 0"));

    let sound = rig.session(&replica.sessions, EnvironmentKind::Cloud).await;
    let mut feed = rig.follow(&sound).await;
    rig.model.then(says(&["Fine."]));
    post(&replica.sessions, &sound, vec![message("And you?")]).await;
    until(&mut feed, is_idle).await;
}

#[tokio::test(start_paused = true)]
async fn what_happens_is_told_once() {
    let rig = Rig::new();
    let seen = Arc::new(Counts::default());
    let replica = rig.observed_replica(4, seen.clone());
    let id = rig.session(&replica.sessions, EnvironmentKind::Cloud).await;
    let mut feed = rig.follow(&id).await;
    let mut talks = calls(&["lookup"]);
    talks.chunks = vec!["Let me ", "see."];
    rig.model.then(talks);
    rig.model.then(says(&["Found."]));
    post(&replica.sessions, &id, vec![message("Look")]).await;
    let waits = until(&mut feed, is_idle).await;
    let result = ClientEvent::CustomToolResult {
        custom_tool_use_id: custom_tool_use(&waits),
        content: Vec::new(),
        is_error: false,
    };
    post(&replica.sessions, &id, vec![result]).await;
    until(&mut feed, |event| matches!(event, Event::TurnEnded { .. })).await;
    let told = seen.0.lock().unwrap().clone();
    assert_eq!(
        told,
        [
            "created",
            "turn started",
            "first token",
            "request of demo",
            "tool lookup Succeeded",
            "request of demo",
            "turn ended Completed after 2"
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn an_interrupt_drops_the_answer_and_the_next_message_is_answered() {
    let rig = Rig::new();
    let replica = rig.replica(4);
    let id = rig.session(&replica.sessions, EnvironmentKind::Cloud).await;
    let mut feed = rig.follow(&id).await;
    let mut slow = says(&["a", "b", "c"]);
    slow.pause = Duration::from_secs(60);
    rig.model.then(slow);
    rig.model.then(says(&["Second."]));
    post(&replica.sessions, &id, vec![message("First")]).await;
    until(&mut feed, |event| matches!(event, Event::ModelRequestStart { .. })).await;
    let interrupt = ClientEvent::Interrupt { session_thread_id: None };
    post(&rig.sessions, &id, vec![interrupt, message("Next")]).await;
    until(&mut feed, |event| matches!(event, Event::AgentMessage { .. })).await;
    let kinds = rig.kinds(&id).await;
    assert_eq!(kinds.iter().filter(|kind| **kind == "agent.message").count(), 1);
    let interrupted = rig.model.asked()[1].messages.clone();
    assert_eq!(interrupted.len(), 1, "both messages are one, since nothing was answered in between");
}

#[tokio::test(start_paused = true)]
async fn a_transient_error_waits_as_a_row_and_is_tried_again() {
    let rig = Rig::new();
    let replica = rig.replica(4);
    let id = rig.session(&replica.sessions, EnvironmentKind::Cloud).await;
    let mut feed = rig.follow(&id).await;
    rig.model.then(overloaded());
    rig.model.then(says(&["At last."]));
    post(&replica.sessions, &id, vec![message("Try")]).await;
    until(&mut feed, |event| matches!(event, Event::StatusRescheduled { .. })).await;
    assert_eq!(rig.world.log.load(&id).await.unwrap().unwrap().claim, None);
    until(&mut feed, is_idle).await;
    assert_eq!(rig.model.asked().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_session_of_a_killed_replica_goes_on_elsewhere() {
    let rig = Rig::new();
    let first = rig.replica(4);
    let id = rig.session(&first.sessions, EnvironmentKind::Cloud).await;
    let mut feed = rig.follow(&id).await;
    let mut slow = says(&["never"]);
    slow.pause = Duration::from_secs(600);
    rig.model.then(slow);
    rig.model.then(says(&["Here I am."]));
    post(&first.sessions, &id, vec![message("Hello")]).await;
    until(&mut feed, |event| matches!(event, Event::ModelRequestStart { .. })).await;
    let _second = rig.replica(4);
    first.task.abort();
    until(&mut feed, is_idle).await;
    let kinds = rig.kinds(&id).await;
    assert!(kinds.contains(&"log.taken_over"));
    assert_eq!(kinds.iter().filter(|kind| **kind == "span.model_request_start").count(), 2);
    assert_eq!(kinds.iter().filter(|kind| **kind == "span.model_request_end").count(), 2);
}

#[tokio::test(start_paused = true)]
async fn deleting_a_session_ends_its_feeds() {
    let rig = Rig::new();
    let id = rig.session(&rig.sessions, EnvironmentKind::Cloud).await;
    let mut feed = rig.follow(&id).await;
    rig.sessions.command(&id, Command::Delete, Fence::Client).await.unwrap();
    until(&mut feed, |event| matches!(event, Event::Deleted { .. })).await;
    assert!(matches!(feed.next().await, FeedItem::End));
    let mut late = engine::Feed::follow(&rig.world, &id, engine::From::Now).await.unwrap();
    assert!(matches!(late.next().await, FeedItem::End));
}

fn tool_use(items: &[FeedItem]) -> session::id::EventId {
    items
        .iter()
        .find_map(|item| match item {
            FeedItem::Record(stored) => match &stored.record.event {
                Event::AgentToolUse { id, .. } => Some(id.clone()),
                _ => None,
            },
            _ => None,
        })
        .expect("a call")
}

/// Polls for the one item that waits, and acknowledges it.
async fn hold(rig: &Rig, token: &str) -> (WorkItem, Fence) {
    let item = rig.store.poll(&Pool::Cloud, "worker", 5_000, token).await.unwrap().expect("an item");
    rig.store.acknowledge(&Pool::Cloud, &item.id, None).await.unwrap();
    let fence = Fence::ItemToken { work_id: item.id.clone(), token_hash: token.to_owned() };
    (item, fence)
}

fn custom_tool_use(items: &[FeedItem]) -> session::id::EventId {
    items
        .iter()
        .find_map(|item| match item {
            FeedItem::Record(stored) => match &stored.record.event {
                Event::AgentCustomToolUse { id, .. } => Some(id.clone()),
                _ => None,
            },
            _ => None,
        })
        .expect("a call")
}

/// Writes down what it is told.
#[derive(Default)]
struct Counts(Mutex<Vec<String>>);

impl Counts {
    fn tell(&self, what: String) {
        self.0.lock().unwrap().push(what);
    }
}

impl Observer for Counts {
    fn session_created(&self) {
        self.tell("created".to_owned());
    }

    fn turn_started(&self) {
        self.tell("turn started".to_owned());
    }

    fn turn_ended(&self, end: &TurnEnd<'_>) {
        let failure = end.failure.map(|failure| format!(" by {failure:?}")).unwrap_or_default();
        self.tell(format!("turn ended {:?}{failure} after {}", end.outcome, end.requests));
    }

    fn time_to_first_token(&self, _seconds: f64) {
        self.tell("first token".to_owned());
    }

    fn model_request_ended(&self, end: &RequestEnd<'_>) {
        self.tell(format!("request of {}", end.model));
    }

    fn tool_call_ended(&self, CallEnd { tool, outcome, .. }: &CallEnd<'_>) {
        self.tell(format!("tool {tool} {outcome:?}"));
    }
}

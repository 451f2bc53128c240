//! What a model is sent, from records.

use engine::port::StoredRecord;
use engine::port::model::{AssistantBlock, Message, UserBlock};
use engine::transcript::Transcript;
use serde_json::{Map, json};
use session::content::ContentBlock;
use session::event::{CompactedContext, EvaluatedPermission, RequestPurpose};
use session::id::EventId;
use session::{Event, Record, Timestamp};

use crate::rig::agent;

/// A transcript of events at positions from 1 on.
fn transcript(events: Vec<Event>) -> Transcript {
    let mut transcript = Transcript::starting_behind(0);
    for (index, event) in events.into_iter().enumerate() {
        let position = index as u64 + 1;
        let at = Timestamp::from_micros(position as i64);
        transcript.push(&StoredRecord { record: Record { position, at, event }, received: None });
    }
    transcript
}

fn messages(events: Vec<Event>) -> Vec<Message> {
    transcript(events).request(&"sesn_01".into(), &agent(), RequestPurpose::Turn).messages.to_vec()
}

fn id(id: &str) -> EventId {
    EventId::from(id)
}

fn received(name: &str, text: &str) -> Event {
    Event::UserMessage { id: id(name), content: vec![ContentBlock::text(text)], queued: true }
}

fn processed(name: &str, received: u64) -> Event {
    Event::Processed { id: id(name), received }
}

fn said(text: &str) -> Event {
    Event::AgentMessage { id: id("said"), content: vec![ContentBlock::text(text)] }
}

fn called(name: &str) -> Event {
    Event::AgentToolUse {
        id: id(name),
        name: "read".to_owned(),
        input: Map::new(),
        evaluated_permission: EvaluatedPermission::Allow,
        evaluation: None,
    }
}

fn result(call: &str) -> Event {
    Event::AgentToolResult { id: id("result"), tool_use_id: id(call), content: Vec::new(), is_error: false }
}

fn user(texts: &[&str]) -> Message {
    Message::User(texts.iter().map(|text| UserBlock::Content(ContentBlock::text(*text))).collect())
}

fn text(text: &str) -> AssistantBlock {
    AssistantBlock::Text(text.to_owned())
}

fn call(id: &str) -> AssistantBlock {
    AssistantBlock::ToolUse { id: id.to_owned(), name: "read".to_owned(), input: Map::new() }
}

fn answered(id: &str) -> UserBlock {
    UserBlock::ToolResult { tool_use_id: id.to_owned(), content: Vec::new(), is_error: false }
}

#[test]
fn a_message_enters_where_it_was_processed() {
    let told = messages(vec![
        received("a", "first"),
        processed("a", 1),
        received("b", "second"),
        said("hi"),
        processed("b", 3),
    ]);
    assert_eq!(told, [user(&["first"]), Message::Assistant(vec![text("hi")]), user(&["second"])]);
}

#[test]
fn neighbours_of_one_role_are_one_message() {
    let told = messages(vec![received("a", "one"), processed("a", 1), received("b", "two"), processed("b", 3)]);
    assert_eq!(told, [user(&["one", "two"])]);
}

#[test]
fn results_come_first_in_the_message_behind_their_calls() {
    let told = messages(vec![
        received("a", "go"),
        processed("a", 1),
        said("reading"),
        called("x"),
        called("y"),
        result("x"),
        received("b", "and then"),
        result("y"),
        processed("b", 7),
    ]);
    let Message::User(last) = &told[2] else { panic!("a user message") };
    assert_eq!(told[1], Message::Assistant(vec![text("reading"), call("x"), call("y")]));
    assert_eq!(last[..2], [answered("x"), answered("y")]);
    assert_eq!(last[2], UserBlock::Content(ContentBlock::text("and then")));
}

#[test]
fn a_summary_stands_for_everything_before_it() {
    let told = messages(vec![
        received("a", "long ago"),
        processed("a", 1),
        said("yes"),
        Event::ContextCompacted { id: id("c"), internal: CompactedContext { summary: "They said yes.".to_owned() } },
        received("b", "go on"),
        processed("b", 5),
    ]);
    let [Message::User(blocks)] = &told[..] else { panic!("one message") };
    let UserBlock::Content(summary) = &blocks[0] else { panic!("the summary") };
    assert!(summary.as_text().unwrap().contains("They said yes."));
    assert_eq!(blocks[1], UserBlock::Content(ContentBlock::text("go on")));
}

#[test]
fn a_summary_is_asked_for_behind_everything() {
    let told = transcript(vec![received("a", "hello"), processed("a", 1), said("hi")]).request(
        &"sesn_01".into(),
        &agent(),
        RequestPurpose::Compaction,
    );
    assert_eq!(told.messages.len(), 3);
    assert!(matches!(told.messages[2], Message::User(_)));
}

#[test]
fn an_answer_of_thinking_alone_is_left_out() {
    let thinking = Event::AgentThinking { id: id("t"), internal: json!({"type": "thinking"}) };
    let told =
        messages(vec![received("a", "one"), processed("a", 1), thinking, received("b", "two"), processed("b", 4)]);
    assert_eq!(told, [user(&["one", "two"])]);
}

#[test]
fn enabled_tools_are_offered_in_the_order_of_the_toolset() {
    let offered = transcript(Vec::new()).request(&"sesn_01".into(), &agent(), RequestPurpose::Turn).tools;
    let names: Vec<&str> = offered.iter().map(|tool| tool.name.as_str()).collect();
    assert_eq!(names, ["bash", "read", "write", "edit", "glob", "grep", "lookup"]);
}

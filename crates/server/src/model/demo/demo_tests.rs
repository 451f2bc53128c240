//! The demo model through its only door: a request in, an answer and previews out.

use engine::port::PreviewDelta;
use engine::port::model::OfferedTool;
use session::agent::{Effort, ModelConfig, Speed};

use super::*;
use crate::model::preview::Recorder;

fn user(text: &str) -> Message {
    Message::User(vec![UserBlock::Content(ContentBlock::text(text))])
}

fn called(ids: &[&str]) -> Message {
    let call = |id: &&str| AssistantBlock::ToolUse { id: (*id).into(), name: "bash".into(), input: Default::default() };
    Message::Assistant(ids.iter().map(call).collect())
}

fn result(text: &str, is_error: bool) -> UserBlock {
    UserBlock::ToolResult { tool_use_id: "sevt_1".into(), content: vec![ContentBlock::text(text)], is_error }
}

fn request(messages: Vec<Message>) -> ModelRequest {
    ModelRequest {
        session_id: SessionId::from("sesn_1"),
        model: ModelConfig { id: ID.into(), effort: Effort::High, speed: Speed::Standard, inference_geo: None },
        system: Some("two words".into()),
        tools: vec![OfferedTool { name: "bash".into(), description: "runs".into(), input_schema: Value::Null }],
        messages: messages.into(),
    }
}

async fn ask(demo: &Demo, messages: Vec<Message>) -> (Result<ModelAnswer, Failure>, Vec<PreviewDelta>) {
    let mut recorder = Recorder::default();
    let answer = demo.answer(&request(messages), &mut recorder).await;
    (answer, recorder.0)
}

async fn text_of(messages: Vec<Message>) -> String {
    match ask(&Demo::default(), messages).await.0.unwrap().blocks.as_slice() {
        [AnswerBlock::Text(text)] => text.clone(),
        other => panic!("{other:?}"),
    }
}

/// The commands of an answer's calls.
async fn commands_of(messages: Vec<Message>) -> Vec<String> {
    let blocks = ask(&Demo::default(), messages).await.0.unwrap().blocks;
    let command = |block: AnswerBlock| match block {
        AnswerBlock::ToolUse { input, .. } => Some(input["command"].as_str().unwrap().to_owned()),
        _ => None,
    };
    blocks.into_iter().filter_map(command).collect()
}

#[tokio::test]
async fn a_plain_message_is_told_what_this_is() {
    let text = text_of(vec![user("hi"), called(&["a"]), user("how are you?")]).await;
    assert!(text.starts_with("You said: how are you?\n"), "{text}");
    assert!(text.contains("scripted demo model") && text.contains("seen 2 messages"), "{text}");
    assert!(text.contains("ANTHROPIC_API_KEY") && text.contains("OPENAI_BASE_URL"), "{text}");
}

#[tokio::test]
async fn parts_follow_each_other_by_the_messages_alone() {
    let script = "!bash one\n!bash two\n---\n!bash three";
    let mut messages = vec![user("!bash older"), called(&["x"]), Message::User(vec![result("x", false)])];
    messages.extend([Message::Assistant(vec![AssistantBlock::Text("done".into())]), user(script)]);
    assert_eq!(commands_of(messages.clone()).await, ["one", "two"]);
    messages.extend([called(&["a", "b"]), Message::User(vec![result("1", false), result("denied: no", true)])]);
    assert_eq!(commands_of(messages.clone()).await, ["three"]);
    messages.extend([called(&["c"]), Message::User(vec![result("3", false)])]);
    assert_eq!(text_of(messages).await, "tool said: 1\ntool said (error): denied: no\ntool said: 3");
}

#[tokio::test]
async fn after_an_interrupt_the_newest_text_counts() {
    let both = Message::User(vec![
        result("interrupted", true),
        UserBlock::Content(ContentBlock::text("!bash old")),
        UserBlock::Content(ContentBlock::text("!bash new")),
    ]);
    assert_eq!(commands_of(vec![user("!bash first"), called(&["a"]), both]).await, ["new"]);
}

#[tokio::test]
async fn text_is_previewed_word_by_word() {
    let (answer, previews) = ask(&Demo::default(), vec![user("!think hm\n!say a b\n!bash x\n!stream 2")]).await;
    let text = |index, text: &str| PreviewDelta::Text { index, text: text.to_owned() };
    assert_eq!(
        previews,
        [
            PreviewDelta::ThinkingStart,
            PreviewDelta::MessageStart,
            text(0, "a "),
            text(0, "b"),
            text(1, "word1 "),
            text(1, "word2"),
        ]
    );
    let answer = answer.unwrap();
    let input = json!({"command": "x"}).as_object().cloned().unwrap();
    assert_eq!(
        answer.blocks,
        [
            AnswerBlock::Thinking(json!({"type": "demo_thinking", "text": "hm"})),
            AnswerBlock::Text("a b".into()),
            AnswerBlock::ToolUse { name: "bash".into(), input, problem: None },
            AnswerBlock::Text("word1 word2".into()),
        ]
    );
    // two words of the system prompt, name and description of a tool, nine words of the script
    assert_eq!((answer.usage.input_tokens, answer.usage.output_tokens), (2 + 2 + 9, 1 + 2 + 2 + 2));
}

#[tokio::test]
async fn what_the_model_was_given_can_be_shown() {
    for (what, expected) in [("system", "two words"), ("tools", "bash"), ("model", "demo"), ("messages", "1")] {
        assert_eq!(text_of(vec![user(&format!("!show {what}"))]).await, expected);
    }
}

#[tokio::test]
async fn failures_are_counted_for_each_part_of_each_session() {
    let demo = Demo::default();
    let script = vec![user("!fail overloaded 2\n!say ok")];
    for _ in 0..2 {
        let failure = ask(&demo, script.clone()).await.0.unwrap_err();
        assert_eq!((failure.error.kind, failure.error.retryable), (SessionErrorKind::ModelOverloaded, true));
        assert!(!failure.answer_begun);
    }
    assert!(ask(&demo, script.clone()).await.0.is_ok());
    assert!(ask(&demo, script.clone()).await.0.is_err(), "a new turn at the same place fails anew");
    for (name, kind, retryable) in [
        ("rate_limited", SessionErrorKind::ModelRateLimited, true),
        ("invalid", SessionErrorKind::ModelRequestFailed, false),
        ("billing", SessionErrorKind::Billing, false),
    ] {
        for _ in 0..3 {
            let failure = ask(&demo, vec![user(&format!("!fail {name}"))]).await.0.unwrap_err();
            assert_eq!((failure.error.kind, failure.error.retryable), (kind, retryable));
        }
    }
}

#[tokio::test]
async fn a_cut_comes_after_the_text() {
    let (answer, previews) = ask(&Demo::default(), vec![user("!fail cut 1\n!say never kept")]).await;
    let failure = answer.unwrap_err();
    assert!(failure.answer_begun && failure.error.retryable);
    assert_eq!(previews.len(), 1 + 2);
}

#[tokio::test]
async fn a_refusal_has_its_category() {
    let answer = ask(&Demo::default(), vec![user("!refuse cyber")]).await.0.unwrap();
    let ModelStop::Refusal(StopDetails::Refusal { category, .. }) = answer.stop else { panic!("{answer:?}") };
    assert_eq!(category.as_deref(), Some("cyber"));
}

#[tokio::test(start_paused = true)]
async fn waiting_takes_its_time_and_ends_when_dropped() {
    let started = tokio::time::Instant::now();
    assert!(ask(&Demo::default(), vec![user("!wait 500\n!pace 10\n!say a b")]).await.0.is_ok());
    assert_eq!(started.elapsed(), Duration::from_millis(520));
    let demo = Demo::default();
    let waiting = ask(&demo, vec![user("!wait 3600000")]);
    assert!(tokio::time::timeout(Duration::from_secs(1), waiting).await.is_err());
}

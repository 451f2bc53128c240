//! Answers that arrive, however they are cut up.

use session::command::{AnswerBlock, ModelStop};

use super::*;

#[tokio::test]
async fn an_answer_arrives_with_previews_and_usage() {
    for kind in BOTH {
        let (answer, recorder, provider) =
            play(kind, vec![reply(json!({"tool_calls": [{"name": "bash", "input": "{\"command\": \"ls\"}"}]}))]).await;
        let answer = answer.unwrap();
        let input = json!({"command": "ls"}).as_object().cloned().unwrap();
        assert_eq!(
            answer.blocks,
            [
                AnswerBlock::Text("all is well".into()),
                AnswerBlock::ToolUse { name: "bash".into(), input, problem: None }
            ]
        );
        assert_eq!(answer.stop, ModelStop::EndTurn);
        assert_eq!((answer.usage.input_tokens, answer.usage.output_tokens), (7, 3), "{kind:?}");
        let text = |text: &str| PreviewDelta::Text { index: 0, text: text.to_owned() };
        assert_eq!(recorder.0, [PreviewDelta::MessageStart, text("all "), text("is "), text("well")]);
        let received = provider.received();
        assert_eq!(received.len(), 1);
        assert_eq!(received[0].body["model"], "main");
        assert_eq!(received[0].body["stream"], true);
        match kind {
            ProviderKind::Anthropic => {
                assert_eq!(received[0].header("x-api-key"), Some(KEY));
                assert_eq!(received[0].header("anthropic-version"), Some("2023-06-01"));
            }
            _ => assert_eq!(received[0].header("authorization"), Some(format!("Bearer {KEY}").as_str())),
        }
    }
}

#[tokio::test]
async fn bytes_may_be_cut_anywhere() {
    let words = ["gr\u{fc}n ", "\u{1f980} ", "\u{4f60}\u{597d}"];
    for kind in BOTH {
        for piece_bytes in [1, 2, 3, 7, 64] {
            let script = vec![reply(json!({"words": words, "piece_bytes": piece_bytes}))];
            let (answer, recorder, _) = play(kind, script).await;
            assert_eq!(answer.unwrap().blocks, [AnswerBlock::Text(words.concat())], "{kind:?} {piece_bytes}");
            assert_eq!(recorder.text(), words.concat());
        }
    }
}

#[tokio::test]
async fn an_end_without_ceremony_is_an_end() {
    for kind in BOTH {
        let (answer, ..) = play(kind, vec![reply(json!({"without_end": true, "without_usage": true}))]).await;
        let answer = answer.unwrap();
        assert_eq!(answer.blocks, [AnswerBlock::Text("all is well".into())]);
        // chat completions are estimated: a token is four bytes
        let estimated = if kind == ProviderKind::Openai { 3 } else { 0 };
        assert_eq!(answer.usage.output_tokens, estimated, "{kind:?}");
    }
}

#[tokio::test]
async fn a_server_that_does_not_stream_is_understood() {
    let whole = json!({"choices": [{"message": {"role": "assistant", "content": "at once"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2}});
    let script = vec![reply(json!({"raw": whole.to_string(), "content_type": "application/json"}))];
    let (answer, recorder, _) = play(ProviderKind::Openai, script).await;
    assert_eq!(answer.unwrap().blocks, [AnswerBlock::Text("at once".into())]);
    assert_eq!(recorder.text(), "at once");
}

#[tokio::test]
async fn a_refusal_is_told() {
    for kind in BOTH {
        let (answer, ..) = play(kind, vec![reply(json!({"stop_reason": "refusal"}))]).await;
        assert!(matches!(answer.unwrap().stop, ModelStop::Refusal(_)), "{kind:?}");
    }
}

#[tokio::test]
async fn a_name_at_the_provider_replaces_the_id() {
    let provider = ScriptedProvider::start(vec![]).await;
    let mut entry = settings(ProviderKind::Openai, &provider);
    entry.model = Some("org/model:7b".into());
    assert!(ask(&router([("m*n", entry)])).await.0.is_ok());
    assert_eq!(provider.received()[0].body["model"], "org/model:7b");
}

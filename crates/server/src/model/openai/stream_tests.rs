//! Every way of streaming a chat completion that was met, one table each.

use engine::port::PreviewDelta;
use serde_json::json;

use super::*;
use crate::model::preview::Recorder;

/// The answer to these chunks, unless one of them ended it otherwise, and its previews.
fn assemble(chunks: &[Value]) -> (Result<ModelAnswer, Problem>, Vec<PreviewDelta>) {
    let mut recorder = Recorder::default();
    let mut assembly = Assembly::new(Previews::new(&mut recorder));
    let mut taken = Ok(false);
    for chunk in chunks {
        taken = assembly.take(&chunk.to_string());
        if taken.is_err() {
            break;
        }
    }
    let answer = taken.map(|_| assembly.finish(40));
    (answer, recorder.0)
}

fn delta(delta: Value) -> Value {
    json!({"choices": [{"index": 0, "delta": delta, "finish_reason": null}]})
}

fn finish(reason: &str) -> Value {
    json!({"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})
}

fn call(delta_of_call: Value) -> Value {
    delta(json!({"tool_calls": [delta_of_call]}))
}

/// Names, inputs and problems of the answer's calls.
fn calls(chunks: &[Value]) -> Vec<(String, Value, Option<String>)> {
    let blocks = assemble(chunks).0.unwrap().blocks;
    blocks
        .into_iter()
        .filter_map(|block| match block {
            AnswerBlock::ToolUse { name, input, problem } => Some((name, Value::Object(input), problem)),
            _ => None,
        })
        .collect()
}

fn good(name: &str, input: Value) -> (String, Value, Option<String>) {
    (name.to_owned(), input, None)
}

#[test]
fn text_and_usage_as_openai_streams_them() {
    let (answer, previews) = assemble(&[
        delta(json!({"role": "assistant", "content": "", "refusal": null})),
        delta(json!({"content": "Hel"})),
        delta(json!({"content": "lo", "reasoning_content": "thinking"})),
        delta(json!({"content": null})),
        finish("stop"),
        json!({"choices": [], "usage": {"prompt_tokens": 10, "completion_tokens": 2,
            "prompt_tokens_details": {"cached_tokens": 4}}}),
    ]);
    let answer = answer.unwrap();
    assert_eq!(answer.blocks, [AnswerBlock::Text("Hello".into())]);
    assert_eq!(answer.stop, ModelStop::EndTurn);
    assert_eq!((answer.usage.input_tokens, answer.usage.cache_read_input_tokens), (6, 4));
    assert_eq!(answer.usage.output_tokens, 2);
    let text = |text: &str| PreviewDelta::Text { index: 0, text: text.to_owned() };
    assert_eq!(previews, [PreviewDelta::MessageStart, text("Hel"), text("lo")]);
}

#[test]
fn usage_is_estimated_where_it_is_not_told() {
    let (answer, _) = assemble(&[delta(json!({"content": "12345"})), finish("stop")]);
    let usage = ModelUsage { input_tokens: 10, output_tokens: 2, ..ModelUsage::default() };
    assert_eq!(answer.unwrap().usage, usage);
}

#[test]
fn a_whole_answer_may_come_at_once() {
    for key in ["delta", "message"] {
        let whole = json!({
            "choices": [{"index": 0, "finish_reason": "tool_calls", key: {
                "role": "assistant",
                "content": [{"type": "text", "text": "on it"}],
                "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{\"a\":1}"}}],
            }}],
            "usage": {"prompt_tokens": 1, "completion_tokens": 1},
        });
        let answer = assemble(std::slice::from_ref(&whole)).0.unwrap();
        assert_eq!(answer.blocks[0], AnswerBlock::Text("on it".into()), "{key}");
        assert_eq!(calls(&[whole]), [good("f", json!({"a": 1}))], "{key}");
    }
}

#[test]
fn calls_are_told_apart() {
    let function = |name: &str, arguments: &str| json!({"name": name, "arguments": arguments});
    let two = [good("f", json!({"a": 1})), good("g", json!({"b": 2}))];
    for (style, chunks) in [
        (
            "openai: id and name once, arguments in pieces",
            vec![
                call(json!({"index": 0, "id": "c1", "function": function("f", "")})),
                call(json!({"index": 0, "function": {"arguments": "{\"a\""}})),
                call(json!({"index": 0, "function": {"arguments": ":1}"}})),
                call(json!({"index": 1, "id": "c2", "function": function("g", "")})),
                call(json!({"index": 1, "function": {"arguments": "{\"b\":2}"}})),
            ],
        ),
        (
            "pieces of several calls in turn",
            vec![
                call(json!({"index": 0, "id": "c1", "function": function("f", "{\"a\"")})),
                call(json!({"index": 1, "id": "c2", "function": function("g", "{\"b\"")})),
                call(json!({"index": 0, "function": {"arguments": ":1}"}})),
                call(json!({"index": 1, "function": {"arguments": ":2}"}})),
            ],
        ),
        (
            "id and name in every piece",
            vec![
                call(json!({"index": 0, "id": "c1", "function": function("f", "")})),
                call(json!({"index": 0, "id": "c1", "function": function("f", "{\"a\"")})),
                call(json!({"index": 0, "id": "c1", "function": function("f", ":1}")})),
                call(json!({"index": 0, "id": "c1", "function": function("f", "")})),
                call(json!({"index": 1, "id": "c2", "function": function("g", "{\"b\":2}")})),
            ],
        ),
        (
            "the same index for all",
            vec![
                call(json!({"index": 0, "id": "c1", "function": function("f", "{\"a\":1}")})),
                call(json!({"index": 0, "id": "c2", "function": function("g", "{\"b\":2}")})),
            ],
        ),
        (
            "the same id for all",
            vec![
                call(json!({"index": 0, "id": "c", "function": function("f", "{\"a\":1}")})),
                call(json!({"index": 1, "id": "c", "function": function("g", "{\"b\":2}")})),
            ],
        ),
        (
            "neither index nor id",
            vec![
                call(json!({"function": function("f", "{\"a\"")})),
                call(json!({"function": {"arguments": ":1}"}})),
                call(json!({"function": function("g", "{\"b\":2}")})),
            ],
        ),
        (
            "ids without index",
            vec![
                call(json!({"id": "c1", "function": function("f", "")})),
                call(json!({"id": "c1", "function": {"arguments": "{\"a\":1}"}})),
                call(json!({"id": "c2", "function": function("g", "{\"b\":2}")})),
            ],
        ),
        (
            "arguments as objects, all in one chunk, empty ids",
            vec![delta(json!({"tool_calls": [
                {"id": "", "function": {"name": "f", "arguments": {"a": 1}}},
                {"id": "", "function": {"name": "g", "arguments": {"b": 2}}},
            ]}))],
        ),
    ] {
        assert_eq!(calls(&chunks), two, "{style}");
    }
}

#[test]
fn calls_without_arguments_or_name() {
    assert_eq!(calls(&[call(json!({"index": 0, "function": {"name": "f"}}))]), [good("f", json!({}))]);
    assert_eq!(
        calls(&[call(json!({"index": 0, "function": {"name": "f", "arguments": null}}))]),
        [good("f", json!({}))]
    );
    assert_eq!(calls(&[call(json!({"index": 0, "id": "c", "function": {"arguments": "{}"}}))]), []);
}

#[test]
fn broken_arguments_are_reported_not_run() {
    let broken = call(json!({"index": 0, "id": "c", "function": {"name": "f", "arguments": "{\"a\": "}}));
    let problem = |reason: &str| calls(&[broken.clone(), finish(reason)])[0].2.clone().unwrap();
    assert!(problem("tool_calls").starts_with("the input of this call is not valid JSON: EOF"));
    assert_eq!(
        problem("length"),
        "the input of this call is incomplete: the answer reached its limit of output tokens"
    );
}

#[test]
fn refusals_are_known_by_field_and_by_reason() {
    let stop = |chunks: &[Value]| assemble(chunks).0.unwrap().stop;
    let refusal = |explanation: Option<&str>| {
        let explanation = explanation.map(str::to_owned);
        ModelStop::Refusal(StopDetails::Refusal { category: None, explanation })
    };
    let spoken = [delta(json!({"refusal": "I can"})), delta(json!({"refusal": "not"})), finish("stop")];
    assert_eq!(stop(&spoken), refusal(Some("I cannot")));
    assert_eq!(stop(&[finish("content_filter")]), refusal(None));
    for reason in ["stop", "length", "tool_calls", "function_call", "eos"] {
        assert_eq!(stop(&[finish(reason)]), ModelStop::EndTurn, "{reason}");
    }
}

#[test]
fn the_end_is_known() {
    let mut recorder = Recorder::default();
    let mut assembly = Assembly::new(Previews::new(&mut recorder));
    assert_eq!(assembly.take(&delta(json!({"content": "x"})).to_string()), Ok(false));
    assert_eq!(assembly.take(&json!({"choices": null, "usage": null}).to_string()), Ok(false));
    assert!(!assembly.has_stopped());
    assert_eq!(assembly.take(&finish("").to_string()), Ok(false));
    assert!(!assembly.has_stopped());
    assert_eq!(assembly.take(&finish("stop").to_string()), Ok(false));
    assert!(assembly.has_stopped() && !assembly.counts_usage());
    assert_eq!(assembly.take(" [DONE] "), Ok(true));
}

#[test]
fn errors_and_garbage_end_the_answer() {
    let error = json!({"error": {"message": "out of memory", "type": "server_error"}});
    assert_eq!(assemble(std::slice::from_ref(&error)).0, Err(Problem::Reported(error)));
    assert_eq!(assemble(&[json!({"choices": "none"})]).0, Err(Problem::Unreadable));
    let mut recorder = Recorder::default();
    assert_eq!(Assembly::new(Previews::new(&mut recorder)).take("<html>"), Err(Problem::Unreadable));
}

/// llama-cpp-python 0.3.36: a first chunk with the role alone, `logprobs` in each, no usage although asked for.
#[test]
fn llama_cpp_python_is_understood() {
    let chunk = |delta: Value, reason: Option<&str>| {
        json!({"id": "chatcmpl-1", "model": "smol", "created": 1795449928, "object": "chat.completion.chunk",
            "choices": [{"index": 0, "delta": delta, "logprobs": null, "finish_reason": reason}]})
    };
    let chunks = [
        chunk(json!({"role": "assistant"}), None),
        chunk(json!({"content": "Ben"}), None),
        chunk(json!({"content": "in"}), None),
        chunk(json!({}), Some("length")),
    ];
    let answer = assemble(&chunks).0.unwrap();
    assert_eq!(answer.blocks, [AnswerBlock::Text("Benin".into())]);
    assert_eq!(answer.stop, ModelStop::EndTurn);
}

/// llama-cpp-python gives an answer up when another request comes in, and ends it politely.
#[test]
fn done_without_a_finish_reason_is_not_the_end() {
    let mut recorder = Recorder::default();
    let mut assembly = Assembly::new(Previews::new(&mut recorder));
    assert_eq!(assembly.take(&delta(json!({"content": "Once upon"})).to_string()), Ok(false));
    assert_eq!(assembly.take("[DONE]"), Ok(true));
    assert!(!assembly.has_stopped());
}

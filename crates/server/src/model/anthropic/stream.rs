//! The events of a streamed Messages answer, put together.

use std::collections::BTreeMap;

use engine::port::model::ModelAnswer;
use serde::Deserialize;
use serde_json::{Map, Value};
use session::command::{AnswerBlock, ModelStop};
use session::event::{ModelUsage, StopDetails};

use crate::model::preview::Previews;
use crate::model::tool_input;

/// Why an answer cannot be completed.
#[derive(Debug, PartialEq)]
pub(super) enum Problem {
    /// The provider says so itself; the whole event.
    Reported(Value),
    /// It is not what the API describes.
    Unreadable,
}

/// An answer so far.
pub(super) struct Assembly<'a> {
    previews: Previews<'a>,
    blocks: BTreeMap<u64, Block>,
    stop_reason: Option<String>,
    stop_details: Option<Refusal>,
    usage: ModelUsage,
}

enum Block {
    Text {
        text: String,
        preview: Option<usize>,
    },
    Thinking(Map<String, Value>),
    ToolUse {
        name: String,
        input: Value,
        json: String,
    },
    /// A kind that was not asked for.
    Other,
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum StreamEvent {
    MessageStart {
        message: StartedMessage,
    },
    ContentBlockStart {
        index: u64,
        content_block: Map<String, Value>,
    },
    ContentBlockDelta {
        index: u64,
        delta: Delta,
    },
    MessageDelta {
        delta: MessageChange,
        #[serde(default)]
        usage: WireUsage,
    },
    MessageStop,
    Error,
    #[serde(other)]
    Other,
}

#[derive(Deserialize)]
struct StartedMessage {
    #[serde(default)]
    usage: WireUsage,
}

#[derive(Deserialize)]
#[serde(tag = "type")]
enum Delta {
    #[serde(rename = "text_delta")]
    Text { text: String },
    #[serde(rename = "input_json_delta")]
    InputJson { partial_json: String },
    #[serde(rename = "thinking_delta")]
    Thinking { thinking: String },
    #[serde(rename = "signature_delta")]
    Signature { signature: String },
    #[serde(other)]
    Other,
}

#[derive(Deserialize)]
struct MessageChange {
    stop_reason: Option<String>,
    stop_details: Option<Refusal>,
}

#[derive(Deserialize)]
struct Refusal {
    category: Option<String>,
    explanation: Option<String>,
}

/// Cumulative counters; an absent one keeps what was said before.
#[derive(Default, Deserialize)]
struct WireUsage {
    input_tokens: Option<u64>,
    output_tokens: Option<u64>,
    cache_read_input_tokens: Option<u64>,
    cache_creation_input_tokens: Option<u64>,
}

impl<'a> Assembly<'a> {
    pub(super) fn new(previews: Previews<'a>) -> Self {
        Self { previews, blocks: BTreeMap::new(), stop_reason: None, stop_details: None, usage: ModelUsage::default() }
    }

    /// Takes one event's data in; says whether it was the last.
    pub(super) fn take(&mut self, data: &str) -> Result<bool, Problem> {
        match serde_json::from_str(data).map_err(|_| Problem::Unreadable)? {
            StreamEvent::MessageStart { message } => self.count(message.usage),
            StreamEvent::ContentBlockStart { index, content_block } => self.start(index, content_block),
            StreamEvent::ContentBlockDelta { index, delta } => self.extend(index, delta)?,
            StreamEvent::MessageDelta { delta, usage } => {
                self.count(usage);
                self.stop_reason = delta.stop_reason.or(self.stop_reason.take());
                self.stop_details = delta.stop_details.or(self.stop_details.take());
            }
            StreamEvent::MessageStop => return Ok(true),
            StreamEvent::Error => {
                return Err(Problem::Reported(serde_json::from_str(data).map_err(|_| Problem::Unreadable)?));
            }
            StreamEvent::Other => {}
        }
        Ok(false)
    }

    /// Whether the model has said why it stopped: nothing of the answer is missing then.
    pub(super) fn has_stopped(&self) -> bool {
        self.stop_reason.is_some()
    }

    /// What the provider has counted so far.
    pub(super) fn usage(&self) -> ModelUsage {
        self.usage
    }

    pub(super) fn finish(self) -> ModelAnswer {
        let out_of_tokens = self.stop_reason.as_deref() == Some("max_tokens");
        let stop = match self.stop_reason.as_deref() {
            Some("refusal") => {
                let details = self.stop_details.unwrap_or(Refusal { category: None, explanation: None });
                ModelStop::Refusal(StopDetails::Refusal {
                    category: details.category,
                    explanation: details.explanation,
                })
            }
            _ => ModelStop::EndTurn,
        };
        let blocks = self.blocks.into_values().filter_map(|block| block.into_answer(out_of_tokens)).collect();
        ModelAnswer { blocks, stop, usage: self.usage }
    }

    fn start(&mut self, index: u64, content_block: Map<String, Value>) {
        let text = |key: &str| content_block.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        let block = match content_block.get("type").and_then(Value::as_str) {
            Some("text") => {
                let (text, mut preview) = (text("text"), None);
                self.previews.text(&mut preview, &text);
                Block::Text { text, preview }
            }
            Some("thinking" | "redacted_thinking") => {
                self.previews.thinking();
                Block::Thinking(content_block)
            }
            Some("tool_use") => Block::ToolUse {
                name: text("name"),
                input: content_block.get("input").cloned().unwrap_or_default(),
                json: String::new(),
            },
            _ => Block::Other,
        };
        self.blocks.insert(index, block);
    }

    fn extend(&mut self, index: u64, delta: Delta) -> Result<(), Problem> {
        match (self.blocks.get_mut(&index).ok_or(Problem::Unreadable)?, delta) {
            (Block::Text { text, preview }, Delta::Text { text: more }) => {
                text.push_str(&more);
                self.previews.text(preview, &more);
            }
            (Block::ToolUse { json, .. }, Delta::InputJson { partial_json }) => json.push_str(&partial_json),
            (Block::Thinking(block), Delta::Thinking { thinking }) => append(block, "thinking", &thinking),
            (Block::Thinking(block), Delta::Signature { signature }) => append(block, "signature", &signature),
            (Block::Other, _) | (_, Delta::Other) => {}
            _ => return Err(Problem::Unreadable),
        }
        Ok(())
    }

    fn count(&mut self, said: WireUsage) {
        let usage = &mut self.usage;
        for (counter, said) in [
            (&mut usage.input_tokens, said.input_tokens),
            (&mut usage.output_tokens, said.output_tokens),
            (&mut usage.cache_read_input_tokens, said.cache_read_input_tokens),
            (&mut usage.cache_creation_input_tokens, said.cache_creation_input_tokens),
        ] {
            *counter = said.unwrap_or(*counter);
        }
    }
}

impl Block {
    fn into_answer(self, out_of_tokens: bool) -> Option<AnswerBlock> {
        match self {
            Self::Text { text, .. } => (!text.is_empty()).then_some(AnswerBlock::Text(text)),
            Self::Thinking(block) => Some(AnswerBlock::Thinking(Value::Object(block))),
            Self::ToolUse { name, input: Value::Object(input), json } if json.is_empty() => {
                Some(AnswerBlock::ToolUse { name, input, problem: None })
            }
            Self::ToolUse { name, json, .. } => Some(tool_input::tool_use(name, &json, out_of_tokens)),
            Self::Other => None,
        }
    }
}

fn append(block: &mut Map<String, Value>, key: &str, more: &str) {
    match block.get_mut(key) {
        Some(Value::String(text)) => text.push_str(more),
        _ => {
            block.insert(key.to_owned(), Value::String(more.to_owned()));
        }
    }
}

#[cfg(test)]
mod tests {
    use engine::port::PreviewDelta;
    use serde_json::json;

    use super::*;
    use crate::model::preview::Recorder;

    fn assemble(events: &[Value]) -> (Result<ModelAnswer, Problem>, Vec<PreviewDelta>) {
        let mut recorder = Recorder::default();
        let mut assembly = Assembly::new(Previews::new(&mut recorder));
        let mut taken = Ok(false);
        for event in events {
            taken = assembly.take(&event.to_string());
            if taken != Ok(false) {
                break;
            }
        }
        let answer = taken.map(|_| assembly.finish());
        (answer, recorder.0)
    }

    fn start(index: u64, block: Value) -> Value {
        json!({"type": "content_block_start", "index": index, "content_block": block})
    }

    fn delta(index: u64, delta: Value) -> Value {
        json!({"type": "content_block_delta", "index": index, "delta": delta})
    }

    fn text(index: usize, text: &str) -> PreviewDelta {
        PreviewDelta::Text { index, text: text.to_owned() }
    }

    #[test]
    fn thinking_text_and_calls_come_out_in_order() {
        let (answer, previews) = assemble(&[
            json!({"type": "message_start", "message": {"id": "msg", "role": "assistant", "content": [],
                "usage": {"input_tokens": 11, "output_tokens": 1, "cache_read_input_tokens": 7,
                          "cache_creation_input_tokens": null}}}),
            json!({"type": "ping"}),
            start(0, json!({"type": "thinking", "thinking": "", "signature": ""})),
            delta(0, json!({"type": "thinking_delta", "thinking": "let me "})),
            delta(0, json!({"type": "thinking_delta", "thinking": "see"})),
            delta(0, json!({"type": "signature_delta", "signature": "sig=="})),
            json!({"type": "content_block_stop", "index": 0}),
            start(1, json!({"type": "redacted_thinking", "data": "opaque"})),
            start(2, json!({"type": "text", "text": ""})),
            start(3, json!({"type": "text", "text": "A"})),
            delta(3, json!({"type": "text_delta", "text": "b"})),
            delta(3, json!({"type": "citations_delta", "citation": {}})),
            start(4, json!({"type": "tool_use", "id": "toolu_1", "name": "bash", "input": {}})),
            delta(4, json!({"type": "input_json_delta", "partial_json": ""})),
            delta(4, json!({"type": "input_json_delta", "partial_json": "{\"command\": \"l"})),
            delta(4, json!({"type": "input_json_delta", "partial_json": "s\"}"})),
            start(5, json!({"type": "server_tool_use", "id": "x", "name": "web_search", "input": {}})),
            delta(5, json!({"type": "input_json_delta", "partial_json": "{}"})),
            start(6, json!({"type": "tool_use", "id": "toolu_2", "name": "now", "input": {}})),
            start(7, json!({"type": "text", "text": ""})),
            delta(7, json!({"type": "text_delta", "text": "C"})),
            json!({"type": "a_new_kind_of_event"}),
            json!({"type": "message_delta", "delta": {"stop_reason": "tool_use", "stop_sequence": null},
                "usage": {"output_tokens": 42}}),
            json!({"type": "message_stop"}),
        ]);
        let input = |value: Value| value.as_object().cloned().unwrap();
        assert_eq!(
            answer.unwrap(),
            ModelAnswer {
                blocks: vec![
                    AnswerBlock::Thinking(json!({"type": "thinking", "thinking": "let me see", "signature": "sig=="})),
                    AnswerBlock::Thinking(json!({"type": "redacted_thinking", "data": "opaque"})),
                    AnswerBlock::Text("Ab".into()),
                    AnswerBlock::ToolUse { name: "bash".into(), input: input(json!({"command": "ls"})), problem: None },
                    AnswerBlock::ToolUse { name: "now".into(), input: Map::new(), problem: None },
                    AnswerBlock::Text("C".into()),
                ],
                stop: ModelStop::EndTurn,
                usage: ModelUsage {
                    input_tokens: 11,
                    output_tokens: 42,
                    cache_read_input_tokens: 7,
                    cache_creation_input_tokens: 0
                },
            }
        );
        assert_eq!(
            previews,
            [PreviewDelta::ThinkingStart, PreviewDelta::MessageStart, text(0, "A"), text(0, "b"), text(1, "C")]
        );
    }

    #[test]
    fn only_a_refusal_is_a_refusal() {
        let stop = |reason: &str, details: Value| {
            let change = json!({"stop_reason": reason, "stop_details": details});
            let event = json!({"type": "message_delta", "delta": change, "usage": {"output_tokens": 1}});
            assemble(&[event]).0.unwrap().stop
        };
        for reason in [
            "end_turn",
            "tool_use",
            "max_tokens",
            "pause_turn",
            "stop_sequence",
            "model_context_window_exceeded",
            "new",
        ] {
            assert_eq!(stop(reason, Value::Null), ModelStop::EndTurn, "{reason}");
        }
        let refusal = |category: Option<&str>, explanation: Option<&str>| {
            ModelStop::Refusal(StopDetails::Refusal {
                category: category.map(str::to_owned),
                explanation: explanation.map(str::to_owned),
            })
        };
        assert_eq!(stop("refusal", Value::Null), refusal(None, None));
        let details = json!({"type": "refusal", "category": "cyber", "explanation": "no"});
        assert_eq!(stop("refusal", details), refusal(Some("cyber"), Some("no")));
    }

    #[test]
    fn a_call_cut_by_the_token_limit_is_reported_not_run() {
        let (answer, _) = assemble(&[
            start(0, json!({"type": "tool_use", "id": "t", "name": "write", "input": {}})),
            delta(0, json!({"type": "input_json_delta", "partial_json": "{\"content\": \"abc"})),
            json!({"type": "message_delta", "delta": {"stop_reason": "max_tokens"}}),
            json!({"type": "message_stop"}),
        ]);
        let blocks = answer.unwrap().blocks;
        let [AnswerBlock::ToolUse { problem: Some(problem), input, .. }] = blocks.as_slice() else {
            panic!("{blocks:?}")
        };
        assert!(input.is_empty());
        assert_eq!(problem, "the input of this call is incomplete: the answer reached its limit of output tokens");
    }

    #[test]
    fn errors_and_garbage_end_the_answer() {
        let error = json!({"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}});
        assert_eq!(assemble(std::slice::from_ref(&error)).0, Err(Problem::Reported(error)));
        let orphan = delta(3, json!({"type": "text_delta", "text": "x"}));
        assert_eq!(assemble(&[orphan]).0, Err(Problem::Unreadable));
        let wrong = [
            start(0, json!({"type": "text", "text": ""})),
            delta(0, json!({"type": "thinking_delta", "thinking": ""})),
        ];
        assert_eq!(assemble(&wrong).0, Err(Problem::Unreadable));
        let mut recorder = Recorder::default();
        assert_eq!(Assembly::new(Previews::new(&mut recorder)).take("<html>"), Err(Problem::Unreadable));
    }
}

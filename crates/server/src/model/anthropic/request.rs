//! The body of a Messages request.
//!
//! Prompt-cache breakpoints, of which the API allows four: after the tools, after the system prompt, and at the end
//! of the last two user messages, so that a turn finds what the turn before wrote.

use std::sync::LazyLock;

use engine::port::model::{AssistantBlock, Message, ModelRequest, OfferedTool, UserBlock};
use serde::Serialize;
use serde_json::{Map, Value};
use session::agent::{Effort, Speed};
use session::content::ContentBlock;

use super::Options;
use crate::model::settings::Thinking;

/// Stands before the content of an error that cannot be marked as one.
static ERROR_NOTE: LazyLock<ContentBlock> = LazyLock::new(|| ContentBlock::text("The tool reported an error:"));

/// How many user messages carry a breakpoint, counted from the last.
const CACHED_USER_MESSAGES: usize = 2;

#[derive(Serialize)]
struct Body<'a> {
    model: &'a str,
    max_tokens: u32,
    stream: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    system: Option<[Cached<SystemText<'a>>; 1]>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tools: Vec<Cached<ToolDefinition<'a>>>,
    messages: Vec<WireMessage<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    thinking: Option<ThinkingParameter>,
    #[serde(skip_serializing_if = "Option::is_none")]
    output_config: Option<OutputConfig>,
    #[serde(skip_serializing_if = "Option::is_none")]
    speed: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    inference_geo: Option<&'a str>,
    metadata: Metadata<'a>,
}

#[derive(Serialize)]
struct Metadata<'a> {
    user_id: &'a str,
}

#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum ThinkingParameter {
    Adaptive,
    Enabled { budget_tokens: u32 },
}

#[derive(Serialize)]
struct OutputConfig {
    effort: &'static str,
}

/// A block that may be a cache breakpoint.
#[derive(Serialize)]
struct Cached<T> {
    #[serde(flatten)]
    block: T,
    #[serde(skip_serializing_if = "Option::is_none")]
    cache_control: Option<CacheControl>,
}

#[derive(Clone, Copy, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum CacheControl {
    Ephemeral,
}

#[derive(Serialize)]
#[serde(tag = "type", rename = "text")]
struct SystemText<'a> {
    text: &'a str,
}

#[derive(Serialize)]
struct ToolDefinition<'a> {
    name: &'a str,
    description: &'a str,
    input_schema: &'a Value,
}

#[derive(Serialize)]
#[serde(tag = "role", content = "content", rename_all = "snake_case")]
enum WireMessage<'a> {
    User(Vec<Cached<WireUserBlock<'a>>>),
    Assistant(Vec<WireAssistantBlock<'a>>),
}

#[derive(Serialize)]
#[serde(untagged)]
enum WireUserBlock<'a> {
    Content(&'a ContentBlock),
    ToolResult(ToolResult<'a>),
}

#[derive(Serialize)]
#[serde(tag = "type", rename = "tool_result")]
struct ToolResult<'a> {
    tool_use_id: &'a str,
    content: Vec<&'a ContentBlock>,
    is_error: bool,
}

#[derive(Serialize)]
#[serde(untagged)]
enum WireAssistantBlock<'a> {
    Thinking(&'a Value),
    Text(SystemText<'a>),
    ToolUse(ToolUse<'a>),
}

#[derive(Serialize)]
#[serde(tag = "type", rename = "tool_use")]
struct ToolUse<'a> {
    id: &'a str,
    name: &'a str,
    input: &'a Map<String, Value>,
}

/// The request as JSON.
pub(super) fn body(model: &str, request: &ModelRequest, options: &Options) -> Vec<u8> {
    let body = Body {
        model,
        max_tokens: options.max_output_tokens,
        stream: true,
        system: request
            .system
            .as_deref()
            .filter(|text| !text.trim().is_empty())
            .map(|text| [Cached { block: SystemText { text }, cache_control: Some(CacheControl::Ephemeral) }]),
        tools: tools(&request.tools),
        messages: messages(&request.messages),
        thinking: thinking(options.thinking, &request.messages),
        output_config: effort(options, request.model.effort).map(|effort| OutputConfig { effort }),
        speed: (request.model.speed == Speed::Fast).then_some("fast"),
        inference_geo: request.model.inference_geo.as_deref(),
        metadata: Metadata { user_id: request.session_id.as_str() },
    };
    serde_json::to_vec(&body).expect("string keys and plain values always serialize")
}

fn tools(offered: &[OfferedTool]) -> Vec<Cached<ToolDefinition<'_>>> {
    let mut tools: Vec<_> = offered.iter().map(tool).collect();
    if let Some(last) = tools.last_mut() {
        last.cache_control = Some(CacheControl::Ephemeral);
    }
    tools
}

fn tool(OfferedTool { name, description, input_schema }: &OfferedTool) -> Cached<ToolDefinition<'_>> {
    Cached { block: ToolDefinition { name, description, input_schema }, cache_control: None }
}

/// The messages without what the API refuses: empty texts and messages, and thinking of other providers.
fn messages(messages: &[Message]) -> Vec<WireMessage<'_>> {
    let mut wire: Vec<_> = messages
        .iter()
        .map(|message| match message {
            Message::User(blocks) => WireMessage::User(blocks.iter().filter_map(user_block).collect()),
            Message::Assistant(blocks) => WireMessage::Assistant(blocks.iter().filter_map(assistant_block).collect()),
        })
        .filter(|message| match message {
            WireMessage::User(blocks) => !blocks.is_empty(),
            WireMessage::Assistant(blocks) => !blocks.is_empty(),
        })
        .collect();
    let users = wire.iter_mut().rev().filter_map(|message| match message {
        WireMessage::User(blocks) => blocks.last_mut(),
        WireMessage::Assistant(_) => None,
    });
    for block in users.take(CACHED_USER_MESSAGES) {
        block.cache_control = Some(CacheControl::Ephemeral);
    }
    wire
}

fn is_sendable(block: &ContentBlock) -> bool {
    block.as_text().is_none_or(|text| !text.trim().is_empty())
}

fn user_block(block: &UserBlock) -> Option<Cached<WireUserBlock<'_>>> {
    let block = match block {
        UserBlock::Content(content) => is_sendable(content).then_some(WireUserBlock::Content(content))?,
        UserBlock::ToolResult { tool_use_id, content, is_error } => {
            WireUserBlock::ToolResult(tool_result(tool_use_id, content, *is_error))
        }
    };
    Some(Cached { block, cache_control: None })
}

/// The API takes errors of text alone: with anything else in it, the text says that there was one.
fn tool_result<'a>(tool_use_id: &'a str, content: &'a [ContentBlock], is_error: bool) -> ToolResult<'a> {
    let is_text = content.iter().all(|block| block.as_text().is_some());
    let note = (is_error && !is_text).then(|| &*ERROR_NOTE);
    let content = note.into_iter().chain(content.iter().filter(|block| is_sendable(block))).collect();
    ToolResult { tool_use_id, content, is_error: is_error && is_text }
}

fn assistant_block(block: &AssistantBlock) -> Option<WireAssistantBlock<'_>> {
    match block {
        AssistantBlock::Thinking(value) => is_own_thinking(value).then_some(WireAssistantBlock::Thinking(value)),
        AssistantBlock::Text(text) if text.trim().is_empty() => None,
        AssistantBlock::Text(text) => Some(WireAssistantBlock::Text(SystemText { text })),
        AssistantBlock::ToolUse { id, name, input } => Some(WireAssistantBlock::ToolUse(ToolUse { id, name, input })),
    }
}

fn is_own_thinking(block: &Value) -> bool {
    matches!(block["type"].as_str(), Some("thinking" | "redacted_thinking"))
}

/// With a fixed budget every answer of an unfinished tool loop must begin with thinking: where one does not, because
/// another provider gave it, the request goes without.
fn thinking(setting: Thinking, messages: &[Message]) -> Option<ThinkingParameter> {
    match setting {
        Thinking::Off => None,
        Thinking::Adaptive => Some(ThinkingParameter::Adaptive),
        Thinking::BudgetTokens(budget_tokens) => {
            loop_keeps_thinking(messages).then_some(ThinkingParameter::Enabled { budget_tokens })
        }
    }
}

fn loop_keeps_thinking(messages: &[Message]) -> bool {
    messages
        .iter()
        .rev()
        .take_while(|message| match message {
            Message::User(blocks) => !blocks.iter().any(|block| matches!(block, UserBlock::Content(_))),
            Message::Assistant(_) => true,
        })
        .all(|message| match message {
            Message::User(_) => true,
            Message::Assistant(blocks) => {
                matches!(blocks.first(), Some(AssistantBlock::Thinking(value)) if is_own_thinking(value))
            }
        })
}

fn effort(options: &Options, effort: Effort) -> Option<&'static str> {
    let asked = options.effort.unwrap_or(options.thinking == Thinking::Adaptive || effort != Effort::High);
    asked.then_some(match effort {
        Effort::Low => "low",
        Effort::Medium => "medium",
        Effort::High => "high",
        Effort::Xhigh => "xhigh",
        Effort::Max => "max",
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use session::agent::ModelConfig;
    use session::id::SessionId;

    use super::*;

    fn request(messages: Vec<Message>) -> ModelRequest {
        ModelRequest {
            session_id: SessionId::from("sesn_1"),
            model: ModelConfig {
                id: "claude".into(),
                effort: Effort::High,
                speed: Speed::Standard,
                inference_geo: None,
            },
            system: Some("be brief".into()),
            tools: ["bash", "read"]
                .map(|name| OfferedTool {
                    name: name.into(),
                    description: format!("{name} it"),
                    input_schema: json!({"type": "object"}),
                })
                .to_vec(),
            messages: messages.into(),
        }
    }

    fn written(request: &ModelRequest, options: Options) -> Value {
        serde_json::from_slice(&body("claude-x", request, &options)).unwrap()
    }

    const PLAIN: Options = Options { max_output_tokens: 100, thinking: Thinking::Off, effort: None };

    fn text(text: &str) -> UserBlock {
        UserBlock::Content(ContentBlock::text(text))
    }

    fn call() -> AssistantBlock {
        let input = json!({"command": "ls"}).as_object().cloned().unwrap();
        AssistantBlock::ToolUse { id: "sevt_1".into(), name: "bash".into(), input }
    }

    fn result(content: Vec<ContentBlock>) -> UserBlock {
        UserBlock::ToolResult { tool_use_id: "sevt_1".into(), content, is_error: true }
    }

    #[test]
    fn a_whole_conversation_is_written_with_four_breakpoints() {
        let thought = json!({"type": "thinking", "thinking": "hm", "signature": "s", "extra": 1});
        let request = request(vec![
            Message::User(vec![text("first")]),
            Message::Assistant(vec![AssistantBlock::Text("ok".into())]),
            Message::User(vec![text("second")]),
            Message::Assistant(vec![AssistantBlock::Thinking(thought.clone()), call()]),
            Message::User(vec![result(vec![ContentBlock::text("no such file")]), text("third")]),
        ]);
        let ephemeral = json!({"type": "ephemeral"});
        assert_eq!(
            written(&request, PLAIN),
            json!({
                "model": "claude-x", "max_tokens": 100, "stream": true,
                "system": [{"type": "text", "text": "be brief", "cache_control": ephemeral}],
                "tools": [
                    {"name": "bash", "description": "bash it", "input_schema": {"type": "object"}},
                    {"name": "read", "description": "read it", "input_schema": {"type": "object"},
                     "cache_control": ephemeral},
                ],
                "messages": [
                    {"role": "user", "content": [{"type": "text", "text": "first"}]},
                    {"role": "assistant", "content": [{"type": "text", "text": "ok"}]},
                    {"role": "user", "content": [{"type": "text", "text": "second", "cache_control": ephemeral}]},
                    {"role": "assistant", "content": [
                        thought,
                        {"type": "tool_use", "id": "sevt_1", "name": "bash", "input": {"command": "ls"}},
                    ]},
                    {"role": "user", "content": [
                        {"type": "tool_result", "tool_use_id": "sevt_1", "is_error": true,
                         "content": [{"type": "text", "text": "no such file"}]},
                        {"type": "text", "text": "third", "cache_control": ephemeral},
                    ]},
                ],
                "metadata": {"user_id": "sesn_1"},
            })
        );
    }

    #[test]
    fn what_the_api_refuses_is_left_out() {
        let mut request = request(vec![
            Message::User(vec![text("go"), text("  ")]),
            Message::Assistant(vec![AssistantBlock::Text("\n".into()), call()]),
            Message::User(vec![result(vec![ContentBlock::text("")])]),
            Message::Assistant(vec![AssistantBlock::Thinking(json!({"type": "demo_thinking"}))]),
        ]);
        request.system = Some(" ".into());
        request.tools.clear();
        let body = written(&request, PLAIN);
        assert!(body.get("system").is_none() && body.get("tools").is_none());
        let ephemeral = json!({"type": "ephemeral"});
        assert_eq!(
            body["messages"],
            json!([
                {"role": "user", "content": [{"type": "text", "text": "go", "cache_control": ephemeral}]},
                {"role": "assistant", "content": [
                    {"type": "tool_use", "id": "sevt_1", "name": "bash", "input": {"command": "ls"}},
                ]},
                {"role": "user", "content": [
                    {"type": "tool_result", "tool_use_id": "sevt_1", "is_error": true, "content": [],
                     "cache_control": ephemeral},
                ]},
            ])
        );
    }

    #[test]
    fn pictures_and_documents_keep_the_shape_of_the_api() {
        let image = json!({"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}});
        let document = json!({"type": "document", "source": {"type": "url", "url": "https://a/b.pdf"}, "title": "b"});
        let blocks: Vec<ContentBlock> = serde_json::from_value(json!([image, document])).unwrap();
        let request = request(vec![Message::User(blocks.iter().cloned().map(UserBlock::Content).collect())]);
        let content = &written(&request, PLAIN)["messages"][0]["content"];
        assert_eq!(content[0], image);
        assert_eq!(content[1]["source"], document["source"]);
        assert_eq!(content[1]["title"], "b");
    }

    #[test]
    fn an_error_with_a_picture_is_told_in_text() {
        let image = json!({"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}});
        let picture = result(vec![serde_json::from_value(image.clone()).unwrap()]);
        let body = written(&request(vec![Message::User(vec![picture])]), PLAIN);
        let written = &body["messages"][0]["content"][0];
        assert_eq!(written["is_error"], false);
        assert_eq!(written["content"], json!([{"type": "text", "text": "The tool reported an error:"}, image]));
    }

    #[test]
    fn thinking_and_effort_follow_the_settings() {
        let options = |thinking, effort| Options { max_output_tokens: 9000, thinking, effort };
        let mut high = request(vec![Message::User(vec![text("go")])]);
        let mut low = high.clone();
        low.model.effort = Effort::Low;
        high.model.speed = Speed::Fast;
        high.model.inference_geo = Some("eu".into());
        assert_eq!(written(&high, PLAIN)["speed"], "fast");
        assert_eq!(written(&high, PLAIN)["inference_geo"], "eu");
        for (request, options, thinking, effort) in [
            (&high, options(Thinking::Off, None), Value::Null, Value::Null),
            (&low, options(Thinking::Off, None), Value::Null, json!("low")),
            (&low, options(Thinking::Off, Some(false)), Value::Null, Value::Null),
            (&high, options(Thinking::Adaptive, None), json!({"type": "adaptive"}), json!("high")),
            (
                &high,
                options(Thinking::BudgetTokens(2048), None),
                json!({"type": "enabled", "budget_tokens": 2048}),
                Value::Null,
            ),
        ] {
            let body = written(request, options);
            assert_eq!((&body["thinking"], &body["output_config"]["effort"]), (&thinking, &effort));
        }
    }

    #[test]
    fn a_budget_needs_thinking_throughout_the_tool_loop() {
        let budget = Options { max_output_tokens: 9000, thinking: Thinking::BudgetTokens(2048), effort: None };
        let thought = AssistantBlock::Thinking(json!({"type": "redacted_thinking", "data": "x"}));
        for (blocks, kept) in [(vec![thought, call()], true), (vec![call()], false)] {
            let request = request(vec![
                Message::User(vec![text("go")]),
                Message::Assistant(blocks),
                Message::User(vec![result(vec![])]),
            ]);
            assert_eq!(written(&request, budget).get("thinking").is_some(), kept);
        }
    }
}

//! The body of a chat completions request.
//!
//! Written for the least capable reader: text alone goes as one string, since many chat templates know no parts, and
//! an assistant message that only calls tools has empty text instead of `null`, which llama-cpp-python refuses and on
//! which templates fail. The format
//! has no pictures in tool results: they follow in a user message that names the call. Thinking of other providers is
//! left out, and so is what the format cannot say (`speed`, `inference_geo`).

use std::fmt::Write;

use engine::port::model::{AssistantBlock, Message, ModelRequest, OfferedTool, UserBlock};
use serde::Serialize;
use serde_json::Value;
use session::agent::Effort;
use session::content::{ContentBlock, DocumentSource, ImageSource, SearchResultText};

use super::Options;

#[derive(Serialize)]
struct Body<'a> {
    model: &'a str,
    messages: Vec<WireMessage<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tools: Vec<Tool<'a>>,
    stream: bool,
    stream_options: StreamOptions,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_tokens: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_completion_tokens: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning_effort: Option<&'static str>,
}

#[derive(Serialize)]
struct StreamOptions {
    include_usage: bool,
}

#[derive(Debug, PartialEq, Serialize)]
#[serde(tag = "role", rename_all = "snake_case")]
enum WireMessage<'a> {
    System {
        content: &'a str,
    },
    User {
        content: Content,
    },
    Assistant {
        content: String,
        #[serde(skip_serializing_if = "Vec::is_empty")]
        tool_calls: Vec<ToolCall<'a>>,
    },
    Tool {
        tool_call_id: &'a str,
        content: String,
    },
}

#[derive(Debug, PartialEq, Serialize)]
#[serde(untagged)]
enum Content {
    Text(String),
    Parts(Vec<Part>),
}

#[derive(Debug, PartialEq, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Part {
    Text { text: String },
    ImageUrl { image_url: ImageUrl },
    File { file: File },
}

#[derive(Debug, PartialEq, Serialize)]
struct ImageUrl {
    url: String,
}

#[derive(Debug, PartialEq, Serialize)]
struct File {
    filename: String,
    file_data: String,
}

#[derive(Debug, PartialEq, Serialize)]
struct ToolCall<'a> {
    id: &'a str,
    r#type: &'static str,
    function: CalledFunction<'a>,
}

#[derive(Debug, PartialEq, Serialize)]
struct CalledFunction<'a> {
    name: &'a str,
    arguments: String,
}

#[derive(Serialize)]
struct Tool<'a> {
    r#type: &'static str,
    function: Function<'a>,
}

#[derive(Serialize)]
struct Function<'a> {
    name: &'a str,
    description: &'a str,
    parameters: &'a Value,
}

/// The request as JSON. `is_original` says that the server is OpenAI's own.
pub(super) fn body(model: &str, request: &ModelRequest, options: &Options, is_original: bool) -> Vec<u8> {
    let mut messages = Vec::with_capacity(request.messages.len() + 1);
    if let Some(content) = request.system.as_deref().filter(|text| !text.is_empty()) {
        messages.push(WireMessage::System { content });
    }
    for message in request.messages.iter() {
        match message {
            Message::User(blocks) => user_messages(blocks, &mut messages),
            Message::Assistant(blocks) => messages.push(assistant_message(blocks)),
        }
    }
    let body = Body {
        model,
        messages,
        tools: request.tools.iter().map(tool).collect(),
        stream: true,
        stream_options: StreamOptions { include_usage: true },
        max_tokens: options.max_output_tokens.filter(|_| !is_original),
        max_completion_tokens: options.max_output_tokens.filter(|_| is_original),
        reasoning_effort: options.effort.then(|| effort(request.model.effort)),
    };
    serde_json::to_vec(&body).expect("string keys and plain values always serialize")
}

fn tool(tool: &OfferedTool) -> Tool<'_> {
    let function = Function { name: &tool.name, description: &tool.description, parameters: &tool.input_schema };
    Tool { r#type: "function", function }
}

/// The results first, each a message of its own, then everything else in one.
fn user_messages<'a>(blocks: &'a [UserBlock], messages: &mut Vec<WireMessage<'a>>) {
    let mut parts = Vec::new();
    for block in blocks {
        match block {
            UserBlock::Content(content) => parts.push(part(content)),
            UserBlock::ToolResult { tool_use_id, content, is_error } => {
                let mut text = String::new();
                let mut attached = Vec::new();
                for part in content.iter().map(part) {
                    match part {
                        Part::Text { text: more } => append_paragraph(&mut text, &more),
                        other => attached.push(other),
                    }
                }
                if !attached.is_empty() {
                    append_paragraph(&mut text, "(what else the tool returned is in the next user message)");
                    parts.push(Part::Text { text: format!("Returned by the tool call {tool_use_id}:") });
                    parts.append(&mut attached);
                }
                let content = if *is_error { format!("Error: {text}") } else { text };
                messages.push(WireMessage::Tool { tool_call_id: tool_use_id, content });
            }
        }
    }
    if !parts.is_empty() {
        messages.push(WireMessage::User { content: content(parts) });
    }
}

/// One string if there is nothing but text.
fn content(parts: Vec<Part>) -> Content {
    let mut joined = String::new();
    for part in &parts {
        let Part::Text { text } = part else { return Content::Parts(parts) };
        append_paragraph(&mut joined, text);
    }
    Content::Text(joined)
}

fn append_paragraph(text: &mut String, more: &str) {
    if !text.is_empty() {
        text.push_str("\n\n");
    }
    text.push_str(more);
}

fn assistant_message(blocks: &[AssistantBlock]) -> WireMessage<'_> {
    let mut content = String::new();
    let mut tool_calls = Vec::new();
    for block in blocks {
        match block {
            AssistantBlock::Thinking(_) => {}
            AssistantBlock::Text(text) => append_paragraph(&mut content, text),
            AssistantBlock::ToolUse { id, name, input } => {
                let arguments = serde_json::to_string(input).expect("string keys and plain values always serialize");
                tool_calls.push(ToolCall { id, r#type: "function", function: CalledFunction { name, arguments } });
            }
        }
    }
    WireMessage::Assistant { content, tool_calls }
}

fn part(block: &ContentBlock) -> Part {
    match block {
        ContentBlock::Text { text } => Part::Text { text: text.clone() },
        ContentBlock::Image { source } => {
            let url = match source {
                ImageSource::Base64 { media_type, data } => data_url(media_type, data),
                ImageSource::Url { url } => url.clone(),
            };
            Part::ImageUrl { image_url: ImageUrl { url } }
        }
        ContentBlock::Document { source, title, context } => document(source, title.as_deref(), context.as_deref()),
        ContentBlock::SearchResult { source, title, content, .. } => {
            let mut text = format!("{title} ({source})");
            for SearchResultText::Text { text: passage } in content {
                append_paragraph(&mut text, passage);
            }
            Part::Text { text }
        }
    }
}

fn document(source: &DocumentSource, title: Option<&str>, context: Option<&str>) -> Part {
    let title = title.unwrap_or("document");
    let data = match source {
        DocumentSource::Base64 { media_type, data } => {
            let file_data = data_url(media_type, data);
            return Part::File { file: File { filename: title.to_owned(), file_data } };
        }
        DocumentSource::Text { data, .. } => data.clone(),
        DocumentSource::Url { url } => format!("(at {url}, which this model cannot open)"),
    };
    let mut text = format!("{title}:");
    if let Some(context) = context {
        let _ = write!(text, " {context}");
    }
    append_paragraph(&mut text, &data);
    Part::Text { text }
}

fn data_url(media_type: &str, data: &str) -> String {
    format!("data:{media_type};base64,{data}")
}

fn effort(effort: Effort) -> &'static str {
    match effort {
        Effort::Low => "low",
        Effort::Medium => "medium",
        Effort::High => "high",
        Effort::Xhigh | Effort::Max => "xhigh",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use session::agent::{ModelConfig, Speed};
    use session::id::SessionId;

    use super::*;

    fn written(messages: Vec<Message>, options: Options, is_original: bool) -> Value {
        let request = ModelRequest {
            session_id: SessionId::from("sesn_1"),
            model: ModelConfig { id: "any".into(), effort: Effort::Max, speed: Speed::Standard, inference_geo: None },
            system: Some("be brief".into()),
            tools: vec![OfferedTool {
                name: "bash".into(),
                description: "runs".into(),
                input_schema: json!({"type": "object"}),
            }],
            messages: messages.into(),
        };
        serde_json::from_slice(&body("m", &request, &options, is_original)).unwrap()
    }

    const PLAIN: Options = Options { max_output_tokens: None, effort: false };

    fn content(block: Value) -> UserBlock {
        UserBlock::Content(serde_json::from_value(block).unwrap())
    }

    #[test]
    fn a_whole_conversation_is_written() {
        let call = |id: &str| AssistantBlock::ToolUse {
            id: id.into(),
            name: "bash".into(),
            input: json!({"command": "ls"}).as_object().cloned().unwrap(),
        };
        let result = |id: &str, text: &str, is_error| UserBlock::ToolResult {
            tool_use_id: id.into(),
            content: vec![ContentBlock::text(text)],
            is_error,
        };
        let text = |text: &str| content(json!({"type": "text", "text": text}));
        let wire_call = |id: &str| {
            json!({"id": id, "type": "function",
            "function": {"name": "bash", "arguments": "{\"command\":\"ls\"}"}})
        };
        let body = written(
            vec![
                Message::User(vec![text("one"), text("two")]),
                Message::Assistant(vec![
                    AssistantBlock::Thinking(json!({"type": "thinking"})),
                    call("sevt_1"),
                    call("sevt_2"),
                ]),
                Message::User(vec![result("sevt_1", "a\nb", false), result("sevt_2", "gone", true), text("three")]),
                Message::Assistant(vec![AssistantBlock::Text("four".into())]),
            ],
            PLAIN,
            false,
        );
        assert_eq!(
            body,
            json!({
                "model": "m", "stream": true, "stream_options": {"include_usage": true},
                "tools": [{"type": "function", "function":
                    {"name": "bash", "description": "runs", "parameters": {"type": "object"}}}],
                "messages": [
                    {"role": "system", "content": "be brief"},
                    {"role": "user", "content": "one\n\ntwo"},
                    {"role": "assistant", "content": "", "tool_calls": [wire_call("sevt_1"), wire_call("sevt_2")]},
                    {"role": "tool", "tool_call_id": "sevt_1", "content": "a\nb"},
                    {"role": "tool", "tool_call_id": "sevt_2", "content": "Error: gone"},
                    {"role": "user", "content": "three"},
                    {"role": "assistant", "content": "four"},
                ],
            })
        );
    }

    #[test]
    fn limits_and_effort_are_named_as_the_server_expects() {
        let options = Options { max_output_tokens: Some(50), effort: true };
        let local = written(vec![], options, false);
        assert_eq!((&local["max_tokens"], &local["max_completion_tokens"]), (&json!(50), &Value::Null));
        assert_eq!(local["reasoning_effort"], "xhigh");
        let original = written(vec![], options, true);
        assert_eq!((&original["max_tokens"], &original["max_completion_tokens"]), (&Value::Null, &json!(50)));
    }

    #[test]
    fn pictures_and_documents_become_parts() {
        let image = json!({"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}});
        let blocks = [
            image.clone(),
            json!({"type": "image", "source": {"type": "url", "url": "https://a/b.png"}}),
            json!({"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "eA=="},
                   "title": "x.pdf"}),
            json!({"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "body"},
                   "title": "t", "context": "c"}),
            json!({"type": "document", "source": {"type": "url", "url": "https://a/b.pdf"}}),
        ];
        let result = UserBlock::ToolResult {
            tool_use_id: "sevt_1".into(),
            content: vec![
                ContentBlock::text("seen"),
                serde_json::from_value(image).unwrap(),
                serde_json::from_value(json!({"type": "search_result", "source": "https://s", "title": "S",
                    "content": [{"type": "text", "text": "hit"}], "citations": {"enabled": false}}))
                .unwrap(),
            ],
            is_error: false,
        };
        let user = std::iter::once(result).chain(blocks.map(content)).collect();
        let picture = json!({"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}});
        assert_eq!(
            written(vec![Message::User(user)], PLAIN, false)["messages"].as_array().unwrap()[1..],
            [
                json!({"role": "tool", "tool_call_id": "sevt_1",
                    "content": "seen\n\nS (https://s)\n\nhit\n\n(what else the tool returned is in the next user message)"}),
                json!({"role": "user", "content": [
                    {"type": "text", "text": "Returned by the tool call sevt_1:"},
                    picture, picture,
                    {"type": "image_url", "image_url": {"url": "https://a/b.png"}},
                    {"type": "file", "file": {"filename": "x.pdf", "file_data": "data:application/pdf;base64,eA=="}},
                    {"type": "text", "text": "t: c\n\nbody"},
                    {"type": "text", "text": "document:\n\n(at https://a/b.pdf, which this model cannot open)"},
                ]}),
            ]
        );
    }
}

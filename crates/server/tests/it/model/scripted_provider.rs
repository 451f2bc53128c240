//! A model provider that behaves as told, over real HTTP, in both wire formats.
//!
//! `POST /v1/messages` answers as the Anthropic API, `POST /v1/chat/completions` as an OpenAI-compatible server. Each
//! request takes the next [`Reply`] of the script; an empty script gives the default one. Over HTTP: `PUT /script`
//! replaces the script by a JSON list, `GET /requests` lists the requests so far. The example `scripted_provider`
//! runs it alone.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::Response;
use axum::routing::{get, post, put};
use axum::{Json, Router};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

/// What one request gets.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Reply {
    /// A status other than 200 comes with an error body.
    pub(crate) status: u16,
    /// More headers, such as `retry-after`.
    pub(crate) headers: Vec<(String, String)>,
    /// The error's `type` and `message`, for a status other than 200.
    pub(crate) error_type: String,
    pub(crate) error_message: String,
    /// Before the response begins.
    pub(crate) delay_ms: u64,
    /// The words of the answer, each a delta.
    pub(crate) words: Vec<String>,
    pub(crate) tool_calls: Vec<ToolCall>,
    /// `end_turn` or `refusal`; the other format's words are derived.
    pub(crate) stop_reason: String,
    /// Sent after the head in place of everything else.
    pub(crate) raw: Option<String>,
    /// The media type of a response with status 200.
    pub(crate) content_type: String,
    /// An `error` event of this type after the words.
    pub(crate) error_event: Option<String>,
    /// Leaves out `[DONE]` or `message_stop`.
    pub(crate) without_end: bool,
    pub(crate) without_usage: bool,
    /// The body is sent in pieces of so many bytes; all at once if zero.
    pub(crate) piece_bytes: usize,
    /// Before each piece.
    pub(crate) piece_delay_ms: u64,
    /// The connection breaks after so many bytes of the body.
    pub(crate) cut_after_bytes: Option<usize>,
    /// After the body, or what is left of it, nothing follows and the connection stays open.
    pub(crate) hang: bool,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct ToolCall {
    pub(crate) name: String,
    /// As text: it may be broken.
    pub(crate) input: String,
}

impl Default for Reply {
    fn default() -> Self {
        Self {
            status: 200,
            headers: Vec::new(),
            error_type: "api_error".to_owned(),
            error_message: "as scripted".to_owned(),
            delay_ms: 0,
            words: ["all ", "is ", "well"].map(str::to_owned).to_vec(),
            tool_calls: Vec::new(),
            stop_reason: "end_turn".to_owned(),
            raw: None,
            content_type: "text/event-stream".to_owned(),
            error_event: None,
            without_end: false,
            without_usage: false,
            piece_bytes: 0,
            piece_delay_ms: 0,
            cut_after_bytes: None,
            hang: false,
        }
    }
}

/// A request as it came.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Received {
    pub(crate) path: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Value,
}

impl Received {
    #[allow(dead_code, reason = "the example reads requests over HTTP")]
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

/// A running provider; it ends when dropped.
pub(crate) struct ScriptedProvider {
    pub(crate) address: SocketAddr,
    state: Arc<Shared>,
    server: JoinHandle<()>,
}

#[derive(Default)]
struct Shared {
    script: Mutex<Vec<Reply>>,
    received: Mutex<Vec<Received>>,
    /// Rung when a response was given up by the client.
    abandoned: Notify,
}

#[derive(Clone, Copy, PartialEq)]
enum Format {
    Anthropic,
    OpenAi,
}

impl ScriptedProvider {
    #[allow(dead_code, reason = "the example chooses its address")]
    pub(crate) async fn start(script: Vec<Reply>) -> Self {
        Self::listen("127.0.0.1:0", script).await
    }

    pub(crate) async fn listen(address: &str, script: Vec<Reply>) -> Self {
        let state = Arc::new(Shared { script: Mutex::new(script), ..Shared::default() });
        let listener = TcpListener::bind(address).await.expect("the address is free");
        let address = listener.local_addr().expect("a bound listener has an address");
        let router = Router::new()
            .route("/v1/messages", post(messages))
            .route("/v1/chat/completions", post(chat_completions))
            .route("/script", put(set_script))
            .route("/requests", get(requests))
            .with_state(state.clone());
        let server = tokio::spawn(async move {
            axum::serve(listener, router).await.expect("serving does not fail");
        });
        Self { address, state, server }
    }

    #[allow(dead_code, reason = "the example has its address printed")]
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The requests so far.
    #[allow(dead_code, reason = "the example lists requests over HTTP")]
    pub(crate) fn received(&self) -> Vec<Received> {
        self.state.received.lock().clone()
    }

    /// Returns when a client has gone away in the middle of a response.
    #[allow(dead_code, reason = "the example waits for nothing")]
    pub(crate) async fn abandoned(&self) {
        self.state.abandoned.notified().await;
    }
}

impl Drop for ScriptedProvider {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn set_script(State(state): State<Arc<Shared>>, Json(script): Json<Vec<Reply>>) -> StatusCode {
    *state.script.lock() = script;
    StatusCode::NO_CONTENT
}

async fn requests(State(state): State<Arc<Shared>>) -> Json<Vec<Received>> {
    Json(state.received.lock().clone())
}

async fn messages(State(state): State<Arc<Shared>>, headers: HeaderMap, body: Bytes) -> Response {
    respond(state, Format::Anthropic, "/v1/messages", &headers, &body).await
}

async fn chat_completions(State(state): State<Arc<Shared>>, headers: HeaderMap, body: Bytes) -> Response {
    respond(state, Format::OpenAi, "/v1/chat/completions", &headers, &body).await
}

/// Rings if it is dropped before the response is complete.
struct Watched {
    state: Arc<Shared>,
    is_complete: bool,
}

impl Drop for Watched {
    fn drop(&mut self) {
        if !self.is_complete {
            self.state.abandoned.notify_one();
        }
    }
}

async fn respond(state: Arc<Shared>, format: Format, path: &str, headers: &HeaderMap, body: &[u8]) -> Response {
    let headers = headers
        .iter()
        .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
        .collect();
    let body = serde_json::from_slice(body).unwrap_or(Value::Null);
    state.received.lock().push(Received { path: path.to_owned(), headers, body });
    let reply = {
        let mut script = state.script.lock();
        if script.is_empty() { Reply::default() } else { script.remove(0) }
    };
    let mut watched = Watched { state, is_complete: false };
    tokio::time::sleep(Duration::from_millis(reply.delay_ms)).await;

    let (content_type, wire) = match (&reply.raw, reply.status, format) {
        (Some(raw), ..) => (reply.content_type.clone(), raw.clone()),
        (None, 200, Format::Anthropic) => (reply.content_type.clone(), anthropic_events(&reply)),
        (None, 200, Format::OpenAi) => (reply.content_type.clone(), openai_chunks(&reply)),
        (None, ..) => {
            let error = json!({"type": reply.error_type, "message": reply.error_message});
            ("application/json".to_owned(), json!({"type": "error", "error": error}).to_string())
        }
    };
    let mut wire = wire.into_bytes();
    wire.truncate(reply.cut_after_bytes.unwrap_or(usize::MAX));
    let piece_bytes = if reply.piece_bytes == 0 { wire.len().max(1) } else { reply.piece_bytes };
    let pieces: Vec<_> = wire.chunks(piece_bytes).map(Bytes::copy_from_slice).collect();
    let delay = Duration::from_millis(reply.piece_delay_ms);
    let (hang, cut) = (reply.hang, reply.cut_after_bytes.is_some());
    let stream =
        futures::stream::unfold((pieces.into_iter(), Some(()), watched_slot(&mut watched)), move |state| async move {
            let (mut pieces, end, mut watched) = state;
            end?;
            tokio::time::sleep(delay).await;
            match pieces.next() {
                Some(piece) => Some((Ok(piece), (pieces, Some(()), watched))),
                None if hang => std::future::pending::<Option<_>>().await,
                None => {
                    watched.is_complete = true;
                    let broken = std::io::Error::other("cut as scripted");
                    cut.then_some((Err(broken), (pieces, None, watched)))
                }
            }
        });
    let mut response = Response::new(Body::from_stream(stream));
    *response.status_mut() = StatusCode::from_u16(reply.status).expect("the script has valid statuses");
    let content_type = HeaderValue::from_str(&content_type).expect("the script has valid headers");
    response.headers_mut().insert(axum::http::header::CONTENT_TYPE, content_type);
    for (name, value) in &reply.headers {
        response.headers_mut().insert(
            HeaderName::try_from(name.as_str()).expect("the script has valid headers"),
            HeaderValue::from_str(value).expect("the script has valid headers"),
        );
    }
    response
}

/// Hands the watch over to the body: the handler's own ends without ringing.
fn watched_slot(watched: &mut Watched) -> Watched {
    watched.is_complete = true;
    Watched { state: watched.state.clone(), is_complete: false }
}

fn anthropic_events(reply: &Reply) -> String {
    let usage = if reply.without_usage { json!({}) } else { json!({"input_tokens": 7, "output_tokens": 1}) };
    let mut events = vec![json!({"type": "message_start", "message": {"id": "msg_1", "role": "assistant",
        "content": [], "usage": usage}})];
    let mut index = 0;
    if !reply.words.is_empty() {
        events.push(
            json!({"type": "content_block_start", "index": index, "content_block": {"type": "text", "text": ""}}),
        );
        for word in &reply.words {
            let delta = json!({"type": "text_delta", "text": word});
            events.push(json!({"type": "content_block_delta", "index": index, "delta": delta}));
        }
        events.push(json!({"type": "content_block_stop", "index": index}));
        index += 1;
    }
    for call in &reply.tool_calls {
        let block = json!({"type": "tool_use", "id": format!("toolu_{index}"), "name": call.name, "input": {}});
        events.push(json!({"type": "content_block_start", "index": index, "content_block": block}));
        let delta = json!({"type": "input_json_delta", "partial_json": call.input});
        events.push(json!({"type": "content_block_delta", "index": index, "delta": delta}));
        events.push(json!({"type": "content_block_stop", "index": index}));
        index += 1;
    }
    if let Some(kind) = &reply.error_event {
        events.push(json!({"type": "error", "error": {"type": kind, "message": reply.error_message}}));
    } else {
        let reason = if reply.tool_calls.is_empty() { &reply.stop_reason } else { "tool_use" };
        let usage = if reply.without_usage { json!({}) } else { json!({"output_tokens": reply.words.len()}) };
        events.push(json!({"type": "message_delta", "delta": {"stop_reason": reason}, "usage": usage}));
        if !reply.without_end {
            events.push(json!({"type": "message_stop"}));
        }
    }
    let write = |event: Value| format!("event: {}\ndata: {event}\n\n", event["type"].as_str().unwrap_or_default());
    events.into_iter().map(write).collect()
}

fn openai_chunks(reply: &Reply) -> String {
    let chunk = |delta: Value, reason: Option<&str>| {
        json!({"id": "chatcmpl-1", "object": "chat.completion.chunk", "model": "m",
            "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]})
        .to_string()
    };
    let mut data = vec![chunk(json!({"role": "assistant", "content": null}), None)];
    data.extend(reply.words.iter().map(|word| chunk(json!({"content": word}), None)));
    for (index, call) in reply.tool_calls.iter().enumerate() {
        let function = json!({"name": call.name, "arguments": call.input});
        let call = json!({"index": index, "id": format!("call_{index}"), "type": "function", "function": function});
        data.push(chunk(json!({"tool_calls": [call]}), None));
    }
    if let Some(kind) = &reply.error_event {
        data.push(json!({"error": {"type": kind, "message": reply.error_message}}).to_string());
    } else {
        let reason = match (reply.tool_calls.is_empty(), reply.stop_reason.as_str()) {
            (false, _) => "tool_calls",
            (true, "refusal") => "content_filter",
            (true, _) => "stop",
        };
        data.push(chunk(json!({}), Some(reason)));
        if !reply.without_usage {
            let usage = json!({"prompt_tokens": 7, "completion_tokens": reply.words.len()});
            data.push(json!({"choices": [], "usage": usage}).to_string());
        }
        if !reply.without_end {
            data.push("[DONE]".to_owned());
        }
    }
    data.into_iter().map(|data| format!("data: {data}\n\n")).collect()
}

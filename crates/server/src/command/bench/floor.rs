//! The floor: an axum server that answers a turn with the frames of a turn, and does one INSERT for it.
//!
//! A page of history is the same few bytes each time. It knows nothing of sessions, and keeps nothing but one channel
//! a stream. What the server under test costs above
//! it is what its durability and its rules cost.

use std::collections::HashMap;
use std::convert::Infallible;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path as UrlPath, Query, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use bytes::Bytes;
use engine::port::definitions::DefinitionError;
use engine::port::{Definitions, Entropy as _, Environment, EnvironmentConfig, EnvironmentKey};
use parking_lot::Mutex;
use serde_json::{Value, json};
use session::id::{EnvironmentId, Ids};
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tokio_util::sync::CancellationToken;

use crate::command::serve::listener;
use crate::command::store::Store;
use crate::command::system::{SystemEntropy, draw_key, now};
use crate::config::{Config, process_environment};

/// The events of a plain turn before and after its text, as the server under test sends them.
const BEFORE: [&str; 5] = [
    "user.message",
    "session.status_running",
    "session.thread_status_running",
    "user.message",
    "span.model_request_start",
];
const AFTER: [&str; 5] =
    ["agent.message", "span.model_request_end", "session.thread_status_idle", "session.usage", "session.status_idle"];

#[derive(Clone)]
struct Floor {
    definitions: Arc<dyn Definitions>,
    environment_id: EnvironmentId,
    streams: Arc<Mutex<HashMap<String, mpsc::UnboundedSender<Bytes>>>>,
}

/// Serves until the process is told to end.
pub(super) fn run(folder: &Path) -> anyhow::Result<ExitCode> {
    // Nobody else would end it.
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    crate::command::serve::raise_descriptor_limit();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let code = runtime.block_on(serve(folder));
    runtime.shutdown_background();
    code
}

async fn serve(folder: &Path) -> anyhow::Result<ExitCode> {
    // The database comes the way it comes to a server.
    let config = Config::load(None, &process_environment, |config| config.server.data_dir = folder.to_owned())?;
    let store = match &config.database.url {
        Some(url) => {
            let store = Store::open_postgres(&config, url, None)?;
            store.database().migrate().await?;
            store
        }
        None => Store::open_sqlite(&config).await?,
    };
    let environment_id = make_environment(&*store.definitions).await?;
    let floor = Floor { definitions: Arc::clone(&store.definitions), environment_id, streams: Arc::default() };
    let router = Router::new()
        .route("/health", get(async || Json(json!({"status": "ok"}))))
        .route("/v1/sessions/{session_id}/events/stream", get(follow))
        .route("/v1/sessions/{session_id}/events", post(take_turn).get(list))
        .with_state(floor);
    let listener = listener::bind([127, 0, 0, 1].into(), 0)?;
    println!("listening on http://{}", listener.local_addr()?);
    let stop = CancellationToken::new();
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::select! {
        () = listener::serve(listener, router, CancellationToken::new(), stop) => {}
        _ = terminate.recv() => {}
    }
    store.database().close().await;
    Ok(ExitCode::SUCCESS)
}

/// The row that every INSERT refers to.
async fn make_environment(definitions: &dyn Definitions) -> Result<EnvironmentId, DefinitionError> {
    let id: EnvironmentId = Ids::from_seed(SystemEntropy.draw()).next();
    let environment = Environment {
        id: id.clone(),
        name: draw_key("bench-floor-"),
        description: None,
        config: EnvironmentConfig::SelfHosted,
        metadata: Default::default(),
        created_at: now(),
        updated_at: now(),
        archived_at: None,
    };
    definitions.create_environment(&environment, None).await?;
    Ok(id)
}

async fn follow(State(floor): State<Floor>, UrlPath(session): UrlPath<String>) -> impl IntoResponse {
    let (sender, receiver) = mpsc::unbounded_channel();
    let _ = sender.send(Bytes::from_static(b": connected\n\n"));
    floor.streams.lock().insert(session, sender);
    let frames = UnboundedReceiverStream::new(receiver).map(Ok::<_, Infallible>);
    ([(header::CONTENT_TYPE, "text/event-stream; charset=utf-8")], Body::from_stream(frames))
}

async fn take_turn(State(floor): State<Floor>, UrlPath(session): UrlPath<String>, Json(body): Json<Value>) -> Response {
    let text = body.pointer("/events/0/content/0/text").and_then(Value::as_str).unwrap_or_default();
    let number = |word: &str| text.lines().find_map(|line| line.strip_prefix(word)?.trim().parse::<u64>().ok());
    let (tokens, pace) = (number("!stream").unwrap_or(0), number("!pace"));
    let key = EnvironmentKey {
        id: Ids::from_seed(SystemEntropy.draw()).next(),
        environment_id: floor.environment_id.clone(),
        key_hash: draw_key("bench-"),
        created_at: now(),
        revoked_at: None,
    };
    if let Err(error) = floor.definitions.create_environment_key(&key).await {
        return (axum::http::StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response();
    }
    if let Some(stream) = floor.streams.lock().get(&session).cloned() {
        tokio::spawn(answer(stream, tokens, pace.map(Duration::from_millis)));
    }
    Json(json!({"data": body["events"]})).into_response()
}

#[derive(serde::Deserialize)]
struct Page {
    limit: usize,
}

async fn list(Query(page): Query<Page>) -> Json<Value> {
    let names = BEFORE.iter().chain(&AFTER).cycle();
    let data: Vec<Value> = names.take(page.limit).map(|name| event(name)).collect();
    Json(json!({"data": data, "next_page": "next"}))
}

/// Sends the frames of a turn.
async fn answer(stream: mpsc::UnboundedSender<Bytes>, tokens: u64, pace: Option<Duration>) {
    for name in BEFORE {
        let _ = stream.send(frame(name, &event(name)));
    }
    let start = json!({"type": "event_start", "event": {"type": "agent.message", "id": "sevt_01bench"}});
    let _ = stream.send(frame("event_start", &start));
    for token in 0..tokens {
        if let Some(pace) = pace {
            tokio::time::sleep(pace).await;
        }
        let content = json!({"type": "text", "text": format!("word{token} ")});
        let delta = json!({"type": "content_delta", "index": 0, "content": content});
        let _ = stream
            .send(frame("event_delta", &json!({"type": "event_delta", "event_id": "sevt_01bench", "delta": delta})));
    }
    for name in AFTER {
        let _ = stream.send(frame(name, &event(name)));
    }
}

/// An event of about the size that real ones have.
fn event(name: &str) -> Value {
    json!({"type": name, "id": "sevt_01abcdefghijklmnopqrstuv", "processed_at": "2026-11-23T09:30:00.000000Z",
           "session_thread_id": "sthr_01abcdefghijklmnopqrstuv"})
}

fn frame(name: &str, data: &Value) -> Bytes {
    format!("event: {name}\ndata: {data}\n\n").into()
}

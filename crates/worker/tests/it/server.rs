//! A scripted server: the work queue and the events of one session, as much of them as a worker sees.
//!
//! A test appends events and asks for what the worker sent; answers of any route can be replaced by failures.

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use session::manifest::ContentHash;
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{Notify, mpsc};

use crate::support::SESSION;

pub(crate) const KEY: &str = "worker-key";
pub(crate) const TOKEN: &str = "item-token";

#[derive(Default)]
pub(crate) struct Seen {
    /// Everything the worker sent, in order: `METHOD path?query` without ids, and its bearer credential.
    pub requests: Vec<(String, String)>,
    pub worker_ids: Vec<String>,
    pub starts: Vec<String>,
    /// What the worker called the files with each start.
    pub tips: Vec<String>,
    /// The `user.tool_result` events that were taken.
    pub results: Vec<Value>,
    pub beats: Vec<String>,
    pub stops: Vec<Value>,
    /// Sessions that the server says are deleted.
    pub deleted: Vec<&'static str>,
    /// Whether the server keeps snapshots.
    pub keeps: bool,
    /// The version of what the session is given, and of each file its path and content.
    pub mounts: (u64, Vec<(&'static str, &'static str)>),
    /// The outputs that were taken, by path.
    pub outputs: BTreeMap<String, String>,
    items: VecDeque<Value>,
    log: Vec<Value>,
    streams: Vec<mpsc::UnboundedSender<Bytes>>,
    failures: BTreeMap<&'static str, VecDeque<(u16, usize)>>,
    calls_of: BTreeMap<&'static str, usize>,
    beat: Option<Value>,
    status: Option<&'static str>,
}

impl Seen {
    /// Whether a scripted failure of a route is still to come.
    pub(crate) fn is_failing(&self, route: &str) -> bool {
        self.failures.get(route).is_some_and(|failures| !failures.is_empty())
    }

    pub(crate) fn count(&self, route: &str) -> usize {
        self.calls_of.get(route).copied().unwrap_or(0)
    }
}

#[derive(Clone, Default)]
pub(crate) struct Server {
    seen: Arc<Mutex<Seen>>,
    changed: Arc<Notify>,
}

impl Server {
    /// Serves on a port of its own until the test ends.
    pub(crate) async fn start() -> (Self, String) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = Self::default();
        server.serve(listener);
        (server, format!("http://{address}"))
    }

    pub(crate) fn serve(&self, listener: tokio::net::TcpListener) {
        let router = Router::new().fallback(handle).with_state(self.clone());
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    }

    pub(crate) fn with<T>(&self, act: impl FnOnce(&mut Seen) -> T) -> T {
        let result = act(&mut self.seen.lock().unwrap());
        self.changed.notify_waiters();
        result
    }

    /// Waits until the worker has done something.
    pub(crate) async fn until(&self, what: &str, mut is_so: impl FnMut(&Seen) -> bool) {
        let wait = async {
            loop {
                let changed = self.changed.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                if is_so(&self.seen.lock().unwrap()) {
                    return;
                }
                changed.await;
            }
        };
        if tokio::time::timeout(Duration::from_secs(15), wait).await.is_err() {
            let requests = self.with(|seen| seen.requests.clone());
            let requests: Vec<_> = requests.iter().filter(|(request, _)| !request.starts_with("poll")).collect();
            let tail = &requests[requests.len().saturating_sub(30)..];
            panic!("the worker never did: {what}; it sent {tail:#?}");
        }
    }

    /// Queues the session as a work item.
    pub(crate) fn queue(&self, work_id: &str) {
        let secret = URL_SAFE_NO_PAD.encode(json!({"sessions_token": TOKEN}).to_string());
        let item = json!({"id": work_id, "type": "work", "environment_id": "env_real", "state": "queued",
                          "data": {"type": "session", "id": SESSION}, "secret": secret});
        self.with(|seen| seen.items.push_back(item));
    }

    pub(crate) fn queue_raw(&self, item: Value) {
        self.with(|seen| seen.items.push_back(item));
    }

    /// Appends an event to the log and sends it to open streams.
    pub(crate) fn emit(&self, event: Value) {
        self.with(|seen| {
            let frame = format!("event: {}\ndata: {event}\n\n", event["type"].as_str().unwrap());
            seen.streams.retain(|stream| stream.send(Bytes::from(frame.clone())).is_ok());
            seen.log.push(event);
        });
    }

    /// Appends an event that no open stream sees.
    pub(crate) fn emit_unseen(&self, event: Value) {
        self.with(|seen| seen.log.push(event));
    }

    pub(crate) fn cut_streams(&self) {
        self.with(|seen| seen.streams.clear());
    }

    pub(crate) fn call(&self, id: &str, command: &str) {
        self.emit(tool_use(id, "bash", json!({"command": command}), "allow"));
    }

    /// The next `times` answers of a route are this status.
    pub(crate) fn fail(&self, route: &'static str, status: u16, times: usize) {
        self.with(|seen| seen.failures.entry(route).or_default().push_back((status, times)));
    }

    /// Ends the scripted failures of a route.
    pub(crate) fn mend(&self, route: &'static str) {
        self.with(|seen| seen.failures.remove(route));
    }

    pub(crate) fn beat_with(&self, beat: Value) {
        self.with(|seen| seen.beat = Some(beat));
    }

    pub(crate) fn session_is(&self, status: &'static str) {
        self.with(|seen| seen.status = Some(status));
    }
}

pub(crate) fn tool_use(id: &str, name: &str, input: Value, permission: &str) -> Value {
    json!({"type": "agent.tool_use", "id": id, "name": name, "input": input,
           "evaluated_permission": permission, "processed_at": "2026-01-01T00:00:00Z"})
}

fn hash(content: &str) -> String {
    ContentHash::of(content.as_bytes()).as_str().to_owned()
}

fn route(method: &str, path: &str) -> &'static str {
    match (method, path.split('/').skip(2).collect::<Vec<_>>().as_slice()) {
        ("GET", ["environments", "env_pool", "work", "poll"]) => "poll",
        ("POST", ["environments", "env_pool", "work", _, "ack"]) => "ack",
        ("POST", ["environments", "env_pool", "work", _, "heartbeat"]) => "heartbeat",
        ("POST", ["environments", "env_pool", "work", _, "stop"]) => "stop",
        ("GET", ["sessions", SESSION]) => "session",
        ("GET", ["sessions", SESSION, "events", "stream"]) => "stream",
        ("GET", ["sessions", SESSION, "events"]) => "list",
        ("POST", ["sessions", SESSION, "events"]) => "result",
        ("POST", ["internal", "sessions", SESSION, "tool_starts"]) => "start",
        ("GET", ["internal", "sessions", SESSION, "sandbox"]) => "sandbox",
        ("GET", ["internal", "sessions", SESSION, "workspace"]) => "workspace",
        ("POST", ["internal", "sessions", SESSION, "workspace"]) => "save",
        ("POST", ["internal", "sessions", SESSION, "chunks", "missing"]) => "missing",
        ("PUT", ["internal", "sessions", SESSION, "chunks", _]) => "chunk",
        ("GET", ["internal", "sessions", SESSION, "resources"]) => "mounts",
        ("GET", ["internal", "sessions", SESSION, "resources", _]) => "content",
        ("GET", ["internal", "sessions", SESSION, "outputs"]) => "outputs",
        ("PUT", ["internal", "sessions", SESSION, "outputs"]) => "output",
        ("POST", ["internal", "sessions", SESSION, "refusals"]) => "refusals",
        ("POST", ["internal", "workspaces", "ended"]) => "ended",
        _ => panic!("no such route: {method} {path}"),
    }
}

async fn handle(State(server): State<Server>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let name = route(parts.method.as_str(), parts.uri.path());
    let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
    let body: Value = match name {
        "output" => String::from_utf8(body.to_vec()).unwrap().into(),
        "content" => parts.uri.path().rsplit('/').next().into(),
        _ => serde_json::from_slice(&body).unwrap_or(Value::Null),
    };
    let query = parts.uri.query().unwrap_or_default().to_owned();
    let header = |name: &str| parts.headers.get(name).map(|value| value.to_str().unwrap().to_owned());
    let answer = server.with(|seen| {
        *seen.calls_of.entry(name).or_default() += 1;
        let credential = header("authorization").unwrap_or_default();
        seen.requests.push((format!("{name}?{query}"), credential.trim_start_matches("Bearer ").to_owned()));
        seen.worker_ids.extend(header("anthropic-worker-id"));
        if let Some(failures) = seen.failures.get_mut(name)
            && let Some((status, times)) = failures.front_mut()
        {
            let status = *status;
            *times -= 1;
            if *times == 0 {
                failures.pop_front();
            }
            return Err(StatusCode::from_u16(status).unwrap());
        }
        Ok(answer(seen, name, &query, body))
    });
    if name == "poll" && matches!(answer, Ok(Answer::Json(Value::Null))) {
        // As the real server does: an empty poll is held for a moment.
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    match answer {
        Err(status) => status.into_response(),
        Ok(Answer::Json(value)) => axum::Json(value).into_response(),
        Ok(Answer::Text(text)) => text.into_response(),
        Ok(Answer::Stream(receiver)) => {
            let stream = futures::stream::unfold(receiver, |mut receiver| async move {
                receiver.recv().await.map(|frame| (Ok::<_, std::io::Error>(frame), receiver))
            });
            Response::builder().header("content-type", "text/event-stream").body(Body::from_stream(stream)).unwrap()
        }
    }
}

enum Answer {
    Json(Value),
    Text(&'static str),
    Stream(mpsc::UnboundedReceiver<Bytes>),
}

fn answer(seen: &mut Seen, name: &str, query: &str, body: Value) -> Answer {
    Answer::Json(match name {
        "poll" => seen.items.pop_front().unwrap_or(Value::Null),
        "ack" => json!({}),
        "heartbeat" => {
            let expected = query.split("expected_last_heartbeat=").nth(1).unwrap();
            let expected = expected.split('&').next().unwrap().replace("%2B", "+").replace("%3A", ":");
            seen.beats.push(expected);
            let stamp = format!("2026-01-01T00:00:{:02}+00:00", seen.beats.len());
            seen.beat.clone().unwrap_or_else(|| {
                json!({"type": "work_heartbeat", "state": "active", "last_heartbeat": stamp,
                       "lease_extended": true, "ttl_seconds": 1})
            })
        }
        "ended" => {
            let gone = |id: &&Value| seen.deleted.iter().any(|deleted| *id == deleted);
            json!({"data": body["session_ids"].as_array().unwrap().iter().filter(gone).collect::<Vec<_>>()})
        }
        "sandbox" => json!({"type": "sandbox", "network": {"type": "unrestricted"}}),
        "workspace" => {
            json!({"tip": null, "manifest": null, "is_tracked": seen.keeps, "is_kept": seen.keeps})
        }
        "missing" => json!({"data": body["hashes"]}),
        "chunk" | "save" => json!({}),
        "mounts" => {
            let data = seen
                .mounts
                .1
                .iter()
                .map(|(path, content)| json!({"mount_path": path, "hash": hash(content), "bytes": content.len()}));
            json!({"version": seen.mounts.0, "data": data.collect::<Vec<_>>()})
        }
        "content" => {
            let named = |content: &&str| body == hash(content).as_str();
            return Answer::Text(seen.mounts.1.iter().map(|(_, content)| *content).find(named).unwrap());
        }
        "outputs" => {
            let data: BTreeMap<&String, String> =
                seen.outputs.iter().map(|(path, content)| (path, hash(content))).collect();
            json!({"is_kept": seen.keeps, "data": data})
        }
        "output" => {
            let content = body.as_str().unwrap();
            let path = query.split(['=', '&']).nth(1).unwrap().replace("%2F", "/");
            assert!(query.ends_with(&hash(content)), "{query}");
            seen.outputs.insert(path, content.to_owned());
            json!({})
        }
        "refusals" => json!({"type": "refusals"}),
        "stop" => {
            seen.stops.push(body);
            json!({})
        }
        "session" => json!({"id": SESSION, "status": seen.status.unwrap_or("running")}),
        "stream" => {
            let (sender, receiver) = mpsc::unbounded_channel();
            sender.send(Bytes::from_static(b": hello\n\nevent: ping\ndata: {}\n\n")).unwrap();
            seen.streams.push(sender);
            return Answer::Stream(receiver);
        }
        "list" => {
            assert!(query.contains("order=desc") && query.contains("types%5B%5D=agent.tool_use"), "{query}");
            // Two events a page, to see the worker turn pages.
            let skip: usize = query.split("page=").nth(1).map_or(0, |page| page.parse().unwrap());
            let data: Vec<&Value> = seen.log.iter().rev().skip(skip).take(2).collect();
            let next = (skip + 2 < seen.log.len()).then(|| (skip + 2).to_string());
            json!({"data": data, "next_page": next})
        }
        "start" => {
            seen.starts.push(body["tool_use_id"].as_str().unwrap().to_owned());
            seen.tips.extend(body["tip"].as_str().map(str::to_owned));
            json!({"resources_version": seen.mounts.0})
        }
        "result" => {
            let event = body["events"][0].clone();
            let stored = json!({"type": "agent.tool_result", "id": format!("r{}", seen.results.len()),
                                "tool_use_id": event["tool_use_id"], "content": event["content"]});
            let frame = format!("event: agent.tool_result\ndata: {stored}\n\n");
            seen.streams.retain(|stream| stream.send(Bytes::from(frame.clone())).is_ok());
            seen.log.push(stored);
            seen.results.push(event);
            json!({"data": []})
        }
        other => panic!("{other}"),
    })
}

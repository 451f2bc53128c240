//! Workspace snapshots through the internal routes, as a worker moves them.

use axum::body::Body;
use axum::http::{Method, Request, StatusCode};
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use server::http::{HttpObserver, Restored, Saved};
use session::manifest::{CHUNK_BYTES_MAX, Chunk, ContentHash, Entry, Extent, Kind, MANIFEST_FORMAT, Manifest};
use std::sync::{Arc, Mutex};

use super::api::{API_KEY, Answer, Api, Text as _, WORKER_KEY};
use super::work::Rig;

/// What the worker calls the files of its first call.
const TIP: &str = "sevt_0123456789";

/// A worker that holds the item of a session whose model has called tools.
pub(super) struct Worker {
    pub(super) rig: Rig,
    item: String,
    token: String,
}

impl Worker {
    pub(super) async fn start(message: &str) -> Self {
        let api = Api::build(true, server::http::HttpLimits::default()).await;
        let agent = api.agent().await;
        let rig = Rig::with(api, &agent, "cloud", message).await;
        let (item, token) = rig.hold().await;
        Self { rig, item, token }
    }

    pub(super) fn path(&self, rest: &str) -> String {
        format!("/v1/internal/sessions/{}/{rest}", self.rig.session)
    }

    pub(super) async fn get(&self, rest: &str) -> Answer {
        self.rig.api.call_as(&self.token, Method::GET, &self.path(rest), None).await
    }

    pub(super) async fn post(&self, rest: &str, body: Value) -> Answer {
        self.rig.api.call_as(&self.token, Method::POST, &self.path(rest), Some(&body)).await
    }

    pub(super) async fn send(&self, method: Method, rest: &str, bytes: &[u8]) -> Answer {
        let request = Request::builder().method(method).uri(self.path(rest));
        let request = request.header("authorization", format!("Bearer {}", self.token));
        Answer::of(self.rig.api.send(request.body(Body::from(bytes.to_vec())).unwrap()).await).await
    }

    async fn put(&self, bytes: &[u8]) -> Answer {
        self.send(Method::PUT, &format!("chunks/{}", ContentHash::of(bytes).as_str()), bytes).await
    }

    async fn chunk(&self, hash: &str) -> (StatusCode, Vec<u8>) {
        self.read(&format!("chunks/{hash}")).await
    }

    pub(super) async fn read(&self, rest: &str) -> (StatusCode, Vec<u8>) {
        let request = Request::builder().uri(self.path(rest));
        let request = request.header("authorization", format!("Bearer {}", self.token));
        let response = self.rig.api.send(request.body(Body::empty()).unwrap()).await;
        (response.status(), response.into_body().collect().await.unwrap().to_bytes().to_vec())
    }

    async fn start_tool(&self) {
        self.post("tool_starts", json!({"tool_use_id": self.rig.tool_use, "tip": TIP})).await.ok();
    }

    async fn missing(&self, hashes: &[&str]) -> Value {
        self.post("chunks/missing", json!({"hashes": hashes})).await.ok()["data"].clone()
    }

    pub(super) async fn end_item(&self) {
        let stop = self.rig.path(&format!("/{}/stop", self.item));
        self.rig.api.call_as(&self.token, Method::POST, &stop, Some(&json!({"force": true}))).await.ok();
    }
}

/// A manifest of one file with this content.
fn manifest(content: &[u8]) -> Manifest {
    let bytes = u32::try_from(content.len()).unwrap();
    let content = vec![Extent::Data { chunk: 0, offset: 0, bytes }];
    let kind = Kind::File { mode: 0o644, modified_ns: 0, content };
    Manifest {
        format: MANIFEST_FORMAT,
        chunks: vec![Chunk { hash: hash_of_single(bytes), bytes }],
        entries: vec![Entry { path: b"file".to_vec(), kind }],
        skipped: 0,
    }
}

/// The hash of the content that [`single`] makes.
fn hash_of_single(bytes: u32) -> ContentHash {
    ContentHash::of(&single(bytes))
}

fn single(bytes: u32) -> Vec<u8> {
    vec![b'x'; bytes as usize]
}

#[tokio::test]
async fn a_snapshot_goes_up_and_comes_down() {
    let mut worker = Worker::start("call bash").await;
    let heard = Arc::new(Heard::default());
    worker.rig.api = worker.rig.api.with_observer(heard.clone());
    let before = worker.get("workspace").await.ok();
    let nothing = json!({"type": "workspace", "tip": null, "manifest": null, "is_tracked": true, "is_kept": true});
    assert_eq!(before, nothing);
    worker.start_tool().await;
    let tip = TIP;
    assert_eq!(worker.get("workspace").await.ok()["tip"], tip);

    let content = single(1000);
    let (hash, other) = (ContentHash::of(&content), ContentHash::of(b"other"));
    assert_eq!(worker.missing(&[hash.as_str(), other.as_str()]).await, json!([hash.as_str(), other.as_str()]));
    let text = manifest(&content).write();
    let early = worker.send(Method::POST, &format!("workspace?tip={tip}"), &text).await;
    assert!(early.invalid().contains("1 chunks of the manifest were never sent"), "chunks come first");
    worker.put(&content).await.ok();
    assert_eq!(worker.missing(&[hash.as_str(), other.as_str()]).await, json!([other.as_str()]));

    let saved = worker.send(Method::POST, &format!("workspace?tip={tip}&duration_ms=1500"), &text).await.ok();
    assert_eq!((saved["manifest"].text(), &saved["bytes"]), (ContentHash::of(&text).as_str().into(), &json!(1000)));
    assert_eq!(worker.get("workspace").await.ok()["manifest"], saved["manifest"]);
    assert_eq!(worker.chunk(&saved["manifest"].text()).await, (StatusCode::OK, text));
    assert_eq!(worker.chunk(hash.as_str()).await, (StatusCode::OK, content));
    assert_eq!(worker.chunk(other.as_str()).await.0, StatusCode::NOT_FOUND);

    let restored = json!({"tip": tip, "manifest": saved["manifest"]});
    let tip = worker.post("workspace/restores", restored.clone()).await.ok()["tip"].text();
    assert_eq!(worker.get("workspace").await.ok()["tip"], tip.as_str());
    worker.post("workspace/restores", restored).await.error(409, "conflict_error");
    let heard = heard.0.lock().unwrap();
    assert_eq!(*heard, ["refused", "kept 1000 bytes in 1.5 s", "restored whole"]);
}

#[derive(Default)]
struct Heard(Mutex<Vec<String>>);

impl HttpObserver for Heard {
    fn workspace_saved(&self, saved: &Saved) {
        self.0.lock().unwrap().push(match saved {
            Saved::Kept { bytes, seconds } => format!("kept {bytes} bytes in {seconds} s"),
            Saved::Overtaken => "overtaken".to_owned(),
            Saved::Refused => "refused".to_owned(),
        });
    }

    fn workspace_restored(&self, restored: Restored) {
        self.0.lock().unwrap().push(match restored {
            Restored::Whole => "restored whole".to_owned(),
            Restored::Lost => "restored with losses".to_owned(),
        });
    }
}

#[tokio::test]
async fn what_was_lost_stands_before_the_next_result() {
    let worker = Worker::start("call bash").await;
    worker.start_tool().await;
    worker.post("workspace/restores", json!({"tip": TIP})).await.ok();
    let mut stream = worker.rig.api.follow(&worker.rig.session).await;
    let result = worker.rig.result("done");
    for _ in 0..2 {
        let posted =
            worker.rig.api.call_as(&worker.token, Method::POST, &worker.rig.events(), Some(&result)).await.ok();
        let content = &posted["data"][0]["content"];
        assert!(content[0]["text"].text().contains("no state of them was ever saved"), "{content}");
        assert_eq!(content[1]["text"], "done");
    }
    let told = stream.until("session.status_idle").await;
    let results = told.iter().filter(|event| event["type"] == "agent.tool_result").count();
    assert_eq!(results, 1, "a result that is sent again is the same result");
}

#[tokio::test]
async fn what_comes_under_a_token_that_ended_changes_nothing() {
    let worker = Worker::start("call bash").await;
    let content = single(10);
    worker.put(&content).await.ok();
    worker.end_item().await;
    let text = manifest(&content).write();
    worker.send(Method::POST, "workspace", &text).await.error(409, "conflict_error");
    worker.put(b"late").await.error(409, "conflict_error");
    worker.post("workspace/restores", json!({})).await.error(409, "conflict_error");
    worker.post("chunks/missing", json!({"hashes": []})).await.error(409, "conflict_error");
    assert_eq!(worker.chunk(ContentHash::of(&content).as_str()).await.0, StatusCode::CONFLICT);
    let state = worker.rig.api.world.log.load(&worker.rig.session.as_str().into()).await.unwrap().unwrap().state;
    assert_eq!(state.workspace.saved, None);
}

#[tokio::test]
async fn files_that_were_read_before_a_call_began_are_not_taken() {
    let worker = Worker::start("call bash").await;
    let content = single(10);
    worker.put(&content).await.ok();
    worker.start_tool().await;
    let text = manifest(&content).write();
    worker.send(Method::POST, "workspace", &text).await.error(409, "conflict_error");
}

#[tokio::test]
async fn what_is_no_chunk_is_refused() {
    let worker = Worker::start("call bash").await;
    let hash = ContentHash::of(b"right");
    let path = format!("chunks/{}", hash.as_str());
    assert!(worker.send(Method::PUT, &path, b"wrong").await.invalid().contains("not the chunk"));
    worker.put(b"").await.invalid();
    worker.put(&vec![1; CHUNK_BYTES_MAX + 1]).await.error(413, "request_too_large");
    worker.send(Method::PUT, "chunks/abc", b"abc").await.error(404, "not_found_error");
    worker.post("chunks/missing", json!({"hashes": ["abc"]})).await.invalid();
    worker.send(Method::POST, "workspace", b"{}").await.invalid();
    worker.send(Method::POST, "workspace?tip=other", b"{}").await.error(404, "not_found_error");
    let outside = br#"{"format":1,"chunks":[],"entries":[{"path":"../x","type":"folder","mode":493}],"skipped":0}"#;
    assert!(worker.send(Method::POST, "workspace", outside).await.invalid().contains("below the workspace"));
}

#[tokio::test]
async fn a_session_sees_its_own_chunks_only() {
    let worker = Worker::start("call bash").await;
    let content = single(10);
    worker.put(&content).await.ok();
    let hash = ContentHash::of(&content);
    // The bytes are in the store; another session can neither read them nor claim to have sent them.
    let other = worker.rig.api.session("cloud").await;
    let path = format!("/v1/internal/sessions/{other}/chunks/{}", hash.as_str());
    let denied = worker.rig.api.call_as(&worker.token, Method::GET, &path, None).await;
    denied.error(404, "not_found_error");
    for key in [API_KEY, WORKER_KEY] {
        let path = worker.path(&format!("chunks/{}", hash.as_str()));
        worker.rig.api.call_as(key, Method::GET, &path, None).await.error(403, "permission_error");
    }
    let asked = [engine::port::BlobHash::parse(hash.as_str()).unwrap()];
    assert_eq!(worker.rig.api.world.chunks.missing(&other.as_str().into(), &asked).await.unwrap(), asked);
}

#[tokio::test]
async fn the_files_of_a_clients_own_environment_are_its_own() {
    let api = Api::build(true, server::http::HttpLimits::default()).await;
    let agent = api.agent().await;
    let rig = Rig::with(api, &agent, "self_hosted", "call bash").await;
    let (_, token) = rig.hold().await;
    let path = format!("/v1/internal/sessions/{}/workspace", rig.session);
    let told = rig.api.call_as(&token, Method::GET, &path, None).await.ok();
    assert_eq!((&told["is_tracked"], &told["is_kept"]), (&json!(false), &json!(false)));
}

//! Files that workers mount and files that tools have made, through the internal routes.

use serde_json::{Value, json};
use server::http::{HttpObserver, OutputPut};
use session::manifest::ContentHash;
use std::sync::{Arc, Mutex};

use super::api::{API_KEY, Text as _, WORKER_KEY};
use super::files::upload;
use super::workspaces::Worker;
use axum::http::{Method, StatusCode};

async fn give(worker: &Worker, path: &str, content: &[u8]) -> Value {
    let original = upload(&worker.rig.api, "data.csv", content).await["id"].text();
    let asked = json!({"type": "file", "file_id": original, "mount_path": path});
    worker.rig.api.post(&format!("/v1/sessions/{}/resources", worker.rig.session), asked).await.ok()
}

async fn outputs(worker: &Worker) -> Vec<Value> {
    let listed = worker.rig.api.get(&format!("/v1/files?scope_id={}", worker.rig.session)).await.ok();
    listed["data"].as_array().unwrap().clone()
}

fn output(path: &str, content: &[u8]) -> String {
    format!("outputs?path={path}&hash={}", ContentHash::of(content).as_str())
}

#[tokio::test]
async fn a_worker_learns_what_to_mount_and_reads_it() {
    let worker = Worker::start("call bash").await;
    assert_eq!(worker.get("resources").await.ok(), json!({"type": "resources", "version": 0, "data": []}));
    let given = give(&worker, "/data.csv", b"a,b").await;
    let hash = ContentHash::of(b"a,b");
    let mount = json!({"mount_path": "/mnt/session/uploads/data.csv", "hash": hash.as_str(), "bytes": 3});
    let told = worker.get("resources").await.ok();
    assert_eq!((&told["version"], &told["data"]), (&json!(1), &json!([mount])));
    let start = worker.post("tool_starts", json!({"tool_use_id": worker.rig.tool_use})).await.ok();
    assert_eq!(start["resources_version"], 1);
    assert_eq!(worker.read(&format!("resources/{}", hash.as_str())).await, (StatusCode::OK, b"a,b".to_vec()));

    // What lies in the store and was given to nobody here is not told apart from what is not there.
    upload(&worker.rig.api, "other", b"other").await;
    let other = ContentHash::of(b"other");
    for hash in [other.as_str(), "nonsense"] {
        worker.get(&format!("resources/{hash}")).await.error(404, "not_found_error");
    }
    for key in [API_KEY, WORKER_KEY] {
        let denied = worker.rig.api.call_as(key, Method::GET, &worker.path("resources"), None).await;
        denied.error(403, "permission_error");
    }
    let resource = format!("/v1/sessions/{}/resources/{}", worker.rig.session, given["id"].text());
    worker.rig.api.delete(&resource).await.ok();
    assert_eq!(worker.get("resources").await.ok(), json!({"type": "resources", "version": 2, "data": []}));
    worker.get(&format!("resources/{}", hash.as_str())).await.error(404, "not_found_error");
    worker.end_item().await;
    worker.get("resources").await.error(409, "conflict_error");
}

#[derive(Default)]
struct Heard(Mutex<Vec<OutputPut>>);

impl HttpObserver for Heard {
    fn output_put(&self, put: OutputPut) {
        self.0.lock().unwrap().push(put);
    }
}

#[tokio::test]
async fn what_tools_made_becomes_files() {
    let mut worker = Worker::start("call bash").await;
    let heard = Arc::new(Heard::default());
    worker.rig.api = worker.rig.api.with_observer(heard.clone());
    let put = async |path: &str, content: &[u8]| worker.send(Method::PUT, &output(path, content), content).await;
    assert_eq!(put("a/report.csv", b"one").await.ok()["is_new"], true);
    assert_eq!(put("a/report.csv", b"one").await.ok()["is_new"], false);
    let first = outputs(&worker).await;
    assert_eq!(first.len(), 1);
    assert_eq!((&first[0]["filename"], &first[0]["mime_type"]), (&json!("report.csv"), &json!("text/csv")));
    assert_eq!((&first[0]["downloadable"], &first[0]["size_bytes"]), (&json!(true), &json!(3)));
    assert_eq!(first[0]["scope"], json!({"type": "session", "id": worker.rig.session}));
    put("a/report.csv", b"other").await.ok();
    put("b%0Ac", b"other").await.ok();
    let second = outputs(&worker).await;
    assert_eq!(second.len(), 2);
    assert!(second.iter().all(|file| file["id"] != first[0]["id"]), "what changed is another file");
    assert_eq!(second[0]["filename"], "b_c", "no control character comes out of a sandbox");
    let known = worker.get("outputs").await.ok();
    let other = ContentHash::of(b"other");
    assert_eq!(known["data"], json!({"a/report.csv": other.as_str(), "b\nc": other.as_str()}));
    assert_eq!(known["is_kept"], true);

    // A client may delete an output, and it stays away until it changes.
    let id = second[1]["id"].text();
    worker.rig.api.delete(&format!("/v1/files/{id}")).await.ok();
    assert_eq!(put("a/report.csv", b"other").await.ok()["is_new"], false);
    assert_eq!(outputs(&worker).await.len(), 1);
    let wrong = worker.send(Method::PUT, &output("c", b"one"), b"two").await.invalid();
    assert!(wrong.starts_with("hash: "), "{wrong}");
    for path in ["", "/a", "a/../b", "a//b", "a/", &"x".repeat(1_025)] {
        let refused = put(path, b"one").await.invalid();
        assert!(refused.starts_with("path: "), "{refused}");
    }
    worker.end_item().await;
    put("late", b"late").await.error(409, "conflict_error");
    assert_eq!(outputs(&worker).await.len(), 1);
    use OutputPut::{Refused, Stored, Unchanged};
    assert_eq!(*heard.0.lock().unwrap(), [Stored, Unchanged, Stored, Stored, Unchanged, Refused]);
}

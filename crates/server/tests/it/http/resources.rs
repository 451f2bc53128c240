//! Files that sessions are given.

use axum::body::Body;
use axum::http::{Method, Request};
use serde_json::{Value, json};

use super::api::{API_KEY, Answer, Api, Text as _};
use super::files::upload;

const UPLOADS: &str = "/mnt/session/uploads";

async fn session_with(api: &Api, resources: Value) -> Answer {
    let (agent, environment) = (api.agent().await, api.environment("cloud").await);
    api.post("/v1/sessions", json!({"agent": agent, "environment_id": environment, "resources": resources})).await
}

fn of(session: &str) -> String {
    format!("/v1/sessions/{session}/resources")
}

#[tokio::test]
async fn a_session_is_created_with_copies_of_files() {
    let api = Api::start_without_replica().await;
    let original = upload(&api, "data.csv", b"a,b\n").await["id"].text();
    let asked = json!([
        {"type": "file", "file_id": original, "mount_path": "/in/data.csv"},
        {"type": "file", "file_id": original},
    ]);
    let session = session_with(&api, asked).await.ok();
    let (id, given) = (session["id"].text(), session["resources"].as_array().unwrap().clone());
    assert_eq!(given.len(), 2);
    assert_eq!(given[0]["mount_path"], format!("{UPLOADS}/in/data.csv"));
    assert_eq!(given[1]["mount_path"], format!("{UPLOADS}/{original}"));
    for resource in &given {
        assert_eq!(resource["type"], "file");
        assert!(resource["id"].text().starts_with("sesrsc_") && resource["file_id"] != original.as_str());
        let copy = api.get(&format!("/v1/files/{}", resource["file_id"].text())).await.ok();
        assert_eq!(copy["scope"], json!({"type": "session", "id": id}));
        assert_eq!((&copy["filename"], &copy["size_bytes"]), (&json!("data.csv"), &json!(4)));
        assert_eq!(api.get(&format!("{}/{}", of(&id), resource["id"].text())).await.ok(), *resource);
    }
    assert_eq!(api.get(&format!("/v1/sessions/{id}")).await.ok()["resources"], json!(given));
    assert_eq!(api.get("/v1/sessions").await.ok()["data"][0]["resources"], json!(given));
    let titled = api.post(&format!("/v1/sessions/{id}"), json!({"title": "t"})).await.ok();
    assert_eq!(titled["resources"], json!(given));
    assert_eq!(api.get(&of(&id)).await.ok(), json!({"data": given, "next_page": null}));
    let scoped = api.get(&format!("/v1/files?scope_id={id}")).await.ok();
    assert_eq!(scoped["data"].as_array().unwrap().len(), 2);

    // The copy is the session's own: it outlives the original and goes with the session.
    api.delete(&format!("/v1/files/{original}")).await.ok();
    let copy = given[0]["file_id"].text();
    let refused = api.delete(&format!("/v1/files/{copy}")).await.invalid();
    assert!(refused.contains(&id) && refused.contains(&given[0]["id"].text()), "{refused}");
    api.delete(&format!("/v1/sessions/{id}")).await.ok();
    api.get(&format!("/v1/files/{copy}")).await.error(404, "not_found_error");
    api.get(&of(&id)).await.error(404, "not_found_error");
}

#[tokio::test]
async fn resources_are_added_paged_and_removed() {
    let api = Api::start_without_replica().await;
    let session = api.session("cloud").await;
    let original = upload(&api, "data.csv", b"a").await["id"].text();
    let mut given = Vec::new();
    for path in ["/one", "/two", "/three"] {
        let asked = json!({"type": "file", "file_id": original, "mount_path": path});
        given.push(api.post(&of(&session), asked).await.ok());
    }
    let first = api.get(&format!("{}?limit=2", of(&session))).await.ok();
    assert_eq!(first["data"], json!(given[..2]));
    let page = first["next_page"].text();
    let second = api.get(&format!("{}?limit=2&page={page}", of(&session))).await.ok();
    assert_eq!(second, json!({"data": given[2..], "next_page": null}));
    api.get(&format!("{}?page={page}", of(&api.session("cloud").await))).await.invalid();
    api.get(&format!("{}?limit=1001", of(&session))).await.invalid();

    let id = given[1]["id"].text();
    let deleted = api.delete(&format!("{}/{id}", of(&session))).await.ok();
    assert_eq!(deleted, json!({"id": id, "type": "session_resource_deleted"}));
    api.get(&format!("{}/{id}", of(&session))).await.error(404, "not_found_error");
    api.delete(&format!("{}/{id}", of(&session))).await.error(404, "not_found_error");
    api.get(&format!("/v1/files/{}", given[1]["file_id"].text())).await.error(404, "not_found_error");
    let again = json!({"type": "file", "file_id": original, "mount_path": "/two"});
    api.post(&of(&session), again).await.ok();
}

#[tokio::test]
async fn what_cannot_be_mounted_is_refused_by_name() {
    let api = Api::start_without_replica().await;
    let original = upload(&api, "data.csv", b"a").await["id"].text();
    let file = |path: &str| json!({"type": "file", "file_id": original, "mount_path": path});
    for (resources, expected) in [
        (json!({}), "resources: expected an array"),
        (json!([1]), "resources[0]: expected an object"),
        (json!([{"file_id": original}]), "resources[0].type: required"),
        (json!([{"type": "folder", "file_id": original}]), "resources[0].type: expected file"),
        (json!([{"type": "github_repository"}]), "resources[0].type: not implemented"),
        (json!([{"type": "memory_store"}]), "resources[0].type: not implemented"),
        (json!([{"type": "file"}]), "resources[0].file_id: required"),
        (json!([file("/a"), file("/../a")]), "resources[1].mount_path: must hold no ."),
        (json!([file("/a"), file("/a")]), "resources[1].mount_path: /mnt/session/uploads/a is mounted already"),
        (json!([file("/a/b"), file("/mnt/session/uploads/a")]), "resources[1].mount_path: "),
        (json!(vec![file("/a"); 501]), "resources: at most 500"),
        (json!([{"type": "file", "file_id": original, "mode": 1}]), "resources[0].mode: unknown field"),
    ] {
        let refused = session_with(&api, resources).await.invalid();
        assert!(refused.starts_with(expected), "{refused}");
    }
    for id in ["file_01nobody", "nonsense"] {
        let unknown = session_with(&api, json!([{"type": "file", "file_id": id}])).await;
        let refused = unknown.error(404, "not_found_error");
        assert!(refused.starts_with("resources[0].file_id: "), "{refused}");
    }

    let session = session_with(&api, json!([file("/a/b")])).await.ok();
    let (id, resource) = (session["id"].text(), session["resources"][0]["id"].text());
    for path in ["/a", "/a/b", "/a/b/c"] {
        let refused = api.post(&of(&id), file(path)).await.invalid();
        assert!(refused.starts_with("mount_path: ") && refused.contains("/mnt/session/uploads/a/b"), "{refused}");
    }
    let rotated = api.post(&format!("{}/{resource}", of(&id)), json!({"authorization_token": "t"})).await.invalid();
    assert!(rotated.starts_with("authorization_token: "), "{rotated}");
    api.post(&format!("/v1/sessions/{id}/archive"), json!({})).await.ok();
    api.post(&of(&id), file("/c")).await.error(409, "conflict_error");

    let (agent, environment) = (api.agent().await, api.environment("self_hosted").await);
    let body = json!({"agent": agent, "environment_id": environment, "resources": [file("/a")]});
    let refused = api.post("/v1/sessions", body).await.invalid();
    assert!(refused.contains("not supported with self-hosted environments"), "{refused}");
    let own = api.session("self_hosted").await;
    assert!(api.post(&of(&own), file("/a")).await.invalid().contains("self-hosted"));
    assert_eq!(api.get(&of(&own)).await.ok()["data"], json!([]));
}

#[tokio::test]
async fn a_key_makes_one_resource() {
    let api = Api::start_without_replica().await;
    let session = api.session("cloud").await;
    let original = upload(&api, "data.csv", b"a").await["id"].text();
    let add = async || {
        let request = Request::builder().method(Method::POST).uri(of(&session)).header("x-api-key", API_KEY);
        let body = json!({"type": "file", "file_id": original, "mount_path": "/a"}).to_string();
        Answer::of(api.send(request.header("idempotency-key", "once").body(Body::from(body)).unwrap()).await).await
    };
    let first = add().await.ok();
    let again = add().await;
    assert_eq!(again.headers["idempotent-replayed"], "true");
    assert_eq!(again.ok(), first);
    assert_eq!(api.get(&of(&session)).await.ok()["data"], json!([first]));
}

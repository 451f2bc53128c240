//! `/v1/models`, `/health`, `/ready`, and everything that is not there.

use axum::http::{Method, StatusCode};
use serde_json::{Value, json};

use super::api::{API_KEY, Api};

#[tokio::test]
async fn models_page_by_id() {
    let api = Api::start_without_replica().await;
    let first = api.get("/v1/models?limit=2").await.ok();
    assert_eq!(
        (first["has_more"].clone(), first["first_id"].clone(), first["last_id"].clone()),
        (json!(true), json!("demo"), json!("demo-large"))
    );
    let rest = api.get("/v1/models?limit=2&after_id=demo-large").await.ok();
    assert_eq!((rest["has_more"].clone(), rest["data"][0]["id"].clone()), (json!(false), json!("demo-small")));
    let back = api.get("/v1/models?limit=1&before_id=demo-small").await.ok();
    assert_eq!((back["has_more"].clone(), back["data"][0]["id"].clone()), (json!(true), json!("demo-large")));
    assert_eq!(api.get("/v1/models?lifecycle[]=retired").await.ok()["first_id"], Value::Null);
    assert_eq!(api.get("/v1/models/demo").await.ok()["lifecycle"], "active");
    api.get("/v1/models/none").await.error(404, "not_found_error");
    api.get("/v1/models?after_id=none").await.invalid();
}

#[tokio::test]
async fn probes_need_no_credential() {
    let api = Api::start_without_replica().await;
    for path in ["/health", "/ready"] {
        let answer = api.call_as("", Method::GET, path, None).await;
        assert_eq!(answer.status, StatusCode::OK);
        assert!(answer.headers.contains_key("request-id"));
    }
}

#[tokio::test]
async fn what_is_not_there_is_named() {
    let api = Api::start_without_replica().await;
    let session = api.session("cloud").await;
    for (path, family) in [
        ("/v1/files".to_owned(), "files"),
        ("/v1/files/file_1/content".to_owned(), "files"),
        ("/v1/skills/pdf/versions/latest".to_owned(), "skills"),
        ("/v1/memory_stores".to_owned(), "memory_stores"),
        ("/v1/vaults/vlt_1".to_owned(), "vaults"),
        ("/v1/deployments".to_owned(), "deployments"),
        ("/v1/dreams".to_owned(), "dreams"),
        ("/v1/messages".to_owned(), "messages"),
        (format!("/v1/sessions/{session}/resources"), "session resources"),
    ] {
        for method in [Method::GET, Method::POST, Method::DELETE] {
            let answer = api.call_as(API_KEY, method, &path, None).await;
            assert!(answer.error(501, "api_error").contains(family));
            assert_eq!(answer.headers["x-should-retry"], "false");
        }
    }
    for path in ["/", "/v1", "/v1/agent", "/v1/agents/a/b/c", "/v1/sessions/x/y"] {
        api.get(path).await.error(404, "not_found_error");
    }
    for (method, path) in
        [(Method::PUT, "/v1/agents"), (Method::PATCH, "/v1/sessions/sesn_1"), (Method::DELETE, "/v1/agents/agent_1")]
    {
        api.call_as(API_KEY, method, path, None).await.error(405, "invalid_request_error");
    }
}

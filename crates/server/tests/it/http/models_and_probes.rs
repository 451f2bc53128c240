//! `/v1/models`, `/health`, `/ready`, and everything that is not there.

use std::sync::{Arc, Mutex};

use axum::body::Body;
use axum::http::{Method, Request, StatusCode};
use serde_json::{Value, json};
use server::http::{ErrorClass, FinishedRequest, HttpObserver, Strictness};

use super::api::{API_KEY, Answer, Api};

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
    for (path, family) in [
        ("/v1/skills/pdf/versions/latest", "skills"),
        ("/v1/memory_stores", "memory_stores"),
        ("/v1/vaults/vlt_1", "vaults"),
        ("/v1/deployments", "deployments"),
        ("/v1/dreams", "dreams"),
        ("/v1/messages", "messages"),
    ] {
        for method in [Method::GET, Method::POST, Method::DELETE] {
            let answer = api.call_as(API_KEY, method, path, None).await;
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

#[tokio::test]
async fn a_panic_is_a_typed_error_and_the_server_goes_on() {
    let api = Api::start_without_replica().await;
    let answer = api.post("/v1/agents", json!({"name": "a", "model": "demo-panic"})).await;
    assert_eq!(answer.error(500, "api_error"), "internal server error");
    api.get("/health").await.ok();
}

#[tokio::test]
async fn a_store_that_is_gone_is_unavailable() {
    let api = Api::start_without_replica().await;
    let session = api.session("cloud").await;
    api.close_store().await;
    for answer in [
        api.get("/v1/agents").await,
        api.get(&format!("/v1/sessions/{session}")).await,
        api.say(&session, "hello").await,
        api.get(&format!("/v1/sessions/{session}/events/stream")).await,
    ] {
        let message = answer.error(503, "api_error");
        assert_eq!(answer.headers["retry-after"], "1");
        assert!(!message.contains("sql") && !message.contains("pool"), "{message}");
    }
    api.get("/health").await.ok();
}

#[tokio::test]
async fn strict_mode_asks_for_the_headers_of_the_hosted_service() {
    let strictness = Strictness { require_version: true, require_beta: true };
    let api = Api::start_without_replica().await.with_strictness(strictness);
    let ask = async |path: &str, headers: &[(&str, &str)]| {
        let mut request = Request::builder().uri(path).header("x-api-key", API_KEY);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        Answer::of(api.send(request.body(Body::empty()).unwrap()).await).await
    };
    let version = ("anthropic-version", "2023-06-01");
    ask("/v1/models", &[version]).await.ok();
    assert!(ask("/v1/models", &[]).await.invalid().contains("anthropic-version"));
    ask("/v1/agents", &[version, ("anthropic-beta", "managed-agents-2026-04-01, files-api-2025-04-14")]).await.ok();
    ask("/v1/agents", &[version]).await.error(404, "not_found_error");
    assert!(ask("/v1/agents", &[version, ("anthropic-beta", "time-travel")]).await.invalid().contains("time-travel"));
}

/// Writes down what it hears.
#[derive(Default)]
struct Heard(Mutex<Vec<String>>);

impl HttpObserver for Heard {
    fn request_finished(&self, request: &FinishedRequest<'_>) {
        let route = request.route.unwrap_or("-");
        self.0.lock().unwrap().push(format!("{} {route} {}", request.method, request.status));
    }

    fn error(&self, class: ErrorClass) {
        self.0.lock().unwrap().push(format!("{class:?}"));
    }

    fn stream_opened(&self) {
        self.0.lock().unwrap().push("opened".to_owned());
    }

    fn stream_closed(&self) {
        self.0.lock().unwrap().push("closed".to_owned());
    }
}

#[tokio::test]
async fn measurements_see_routes_and_no_ids() {
    let heard = Arc::new(Heard::default());
    let api = Api::start_without_replica().await;
    let session = api.session("cloud").await;
    let api = api.with_observer(heard.clone());
    api.get("/v1/agents/agent_01unknown").await.error(404, "not_found_error");
    api.get("/no/such/path").await.error(404, "not_found_error");
    api.call_as(API_KEY, Method::PUT, "/v1/agents", None).await.error(405, "invalid_request_error");
    api.post("/v1/agents", json!({"name": "a", "model": "demo-panic"})).await.error(500, "api_error");
    drop(api.follow(&session).await);
    assert_eq!(
        *heard.0.lock().unwrap(),
        [
            "Client",
            "GET /v1/agents/{agent_id} 404",
            "Client",
            "GET - 404",
            "Client",
            "PUT /v1/agents 405",
            "Internal",
            "POST /v1/agents 500",
            "opened",
            "GET /v1/sessions/{session_id}/events/stream 200",
            "closed",
        ]
    );
}

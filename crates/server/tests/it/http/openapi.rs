//! The description of the API against the API.

use axum::body::Body;
use axum::http::{Method, Request, StatusCode};
use serde_json::Value;

use super::api::{API_KEY, Answer, Api};
use super::files::upload;

#[tokio::test]
async fn every_operation_that_is_described_exists() {
    let api = Api::start_without_replica().await;
    let document = server::http::openapi();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            let method: Method = method.to_uppercase().parse().unwrap();
            let answer = api.call_as(API_KEY, method, path, None).await;
            assert_ne!(answer.status, StatusCode::METHOD_NOT_ALLOWED, "{path}");
            assert_ne!(answer.body["error"]["message"], "the path does not exist", "{path}");
            assert!(operation["operationId"].is_string());
        }
    }
}

#[tokio::test]
async fn answers_have_what_is_described_as_required() {
    let api = Api::start_without_replica().await;
    let session = api.session("cloud").await;
    let schemas = server::http::openapi()["components"]["schemas"].clone();
    let required = |schema: &str, answer: &Value| {
        for name in schemas[schema]["required"].as_array().unwrap() {
            assert!(answer.get(name.as_str().unwrap()).is_some(), "{schema}: {name} is missing");
        }
        let described = schemas[schema]["properties"].as_object().unwrap();
        for name in answer.as_object().unwrap().keys() {
            let known = described.contains_key(name) || schema == "ModelInfo";
            assert!(known, "{schema}: {name} is not described");
        }
    };
    required("Agent", &api.get("/v1/agents").await.ok()["data"][0]);
    required("Environment", &api.get("/v1/environments").await.ok()["data"][0]);
    required("Session", &api.get(&format!("/v1/sessions/{session}")).await.ok());
    required("Thread", &api.get(&format!("/v1/sessions/{session}/threads")).await.ok()["data"][0]);
    let file = upload(&api, "a.csv", b"a").await;
    required("File", &file);
    let asked = serde_json::json!({"type": "file", "file_id": file["id"]});
    required("FileResource", &api.post(&format!("/v1/sessions/{session}/resources"), asked).await.ok());
    required("ModelInfo", &api.get("/v1/models/demo").await.ok());
}

#[tokio::test]
async fn a_key_is_honoured_where_it_is_described_and_refused_elsewhere() {
    let api = Api::start_without_replica().await;
    let document = server::http::openapi();
    for (path, methods) in document["paths"].as_object().unwrap() {
        let Some(operation) = methods.get("post") else { continue };
        let request = Request::builder()
            .method(Method::POST)
            .uri(path)
            .header("x-api-key", API_KEY)
            .header("idempotency-key", "k".repeat(256))
            .body(Body::empty())
            .unwrap();
        let message = Answer::of(api.send(request).await).await.invalid();
        let parameters = operation["parameters"].as_array().unwrap();
        let described = parameters.iter().any(|parameter| parameter["name"] == "Idempotency-Key");
        let expected = if described { "expected 1 to 255" } else { "not implemented" };
        assert!(message.contains("Idempotency-Key") && message.contains(expected), "{path}: {message}");
    }
}

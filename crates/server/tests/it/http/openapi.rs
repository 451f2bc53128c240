//! The description of the API against the API.

use axum::http::{Method, StatusCode};
use serde_json::Value;

use super::api::{API_KEY, Api};

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
    required("ModelInfo", &api.get("/v1/models/demo").await.ok());
}

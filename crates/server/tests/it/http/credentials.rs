//! Whose credential opens what.

use axum::body::Body;
use axum::http::{Method, Request};
use serde_json::json;

use super::api::{API_KEY, Answer, Api, WORKER_KEY};

async fn with_headers(api: &Api, headers: &[(&str, &str)]) -> Answer {
    let mut request = Request::builder().uri("/v1/agents");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    Answer::of(api.send(request.body(Body::empty()).unwrap()).await).await
}

#[tokio::test]
async fn either_header_brings_a_key() {
    let api = Api::start_without_replica().await;
    let bearer = format!("Bearer {API_KEY}");
    for headers in [
        [("authorization", bearer.as_str())].as_slice(),
        &[("x-api-key", API_KEY)],
        &[("x-api-key", "sk-test-second-key")],
        &[("x-api-key", API_KEY), ("authorization", "Bearer sk-other")],
        &[("authorization", &bearer), ("anthropic-version", "2026-10-21"), ("anthropic-beta", "anything")],
    ] {
        with_headers(&api, headers).await.ok();
    }
    for headers in [
        [].as_slice(),
        &[("authorization", "Bearer sk-wrong")],
        &[("authorization", API_KEY)],
        &[("authorization", "Basic c2s6")],
        &[("x-api-key", "")],
        &[("x-api-key", "sk-ant-oat01-unknown")],
        &[("x-api-key", "agent-item-unknown")],
    ] {
        with_headers(&api, headers).await.error(401, "authentication_error");
    }
}

#[tokio::test]
async fn an_environment_key_opens_its_sessions_and_nothing_else() {
    let api = Api::start_without_replica().await;
    let (agent, own) = (api.agent().await, api.environment("self_hosted").await);
    let key = api.environment_key(&own).await;
    let body = json!({"agent": agent, "environment_id": own});
    let session = api.post("/v1/sessions", body).await.ok()["id"].as_str().unwrap().to_owned();
    let foreign = api.session("self_hosted").await;

    for path in ["", "/events"] {
        api.call_as(&key, Method::GET, &format!("/v1/sessions/{session}{path}"), None).await.ok();
        let refused = api.call_as(&key, Method::GET, &format!("/v1/sessions/{foreign}{path}"), None).await;
        refused.error(404, "not_found_error");
    }
    for (method, path) in [
        (Method::GET, "/v1/agents".to_owned()),
        (Method::GET, "/v1/sessions".to_owned()),
        (Method::GET, "/v1/models".to_owned()),
        (Method::GET, format!("/v1/environments/{own}")),
        (Method::DELETE, format!("/v1/sessions/{session}")),
        (Method::POST, format!("/v1/sessions/{session}/archive")),
        (Method::GET, format!("/v1/sessions/{session}/threads")),
    ] {
        for key in [key.as_str(), WORKER_KEY] {
            let refused = api.call_as(key, method.clone(), &path, None).await;
            refused.error(403, "permission_error");
        }
    }
    api.call_as(WORKER_KEY, Method::GET, &format!("/v1/sessions/{session}"), None).await.error(403, "permission_error");
    api.post(&format!("/v1/sessions/{session}/archive"), json!({})).await.ok();
    api.delete(&format!("/v1/sessions/{session}")).await.ok();
    api.delete(&format!("/v1/environments/{own}")).await.ok();
    let gone = api.call_as(&key, Method::GET, &format!("/v1/environments/{own}/work"), None).await;
    gone.error(401, "authentication_error");
}

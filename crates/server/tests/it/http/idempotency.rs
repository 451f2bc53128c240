//! `Idempotency-Key`: one effect and one answer for each key.

use axum::body::Body;
use axum::http::{Method, Request};
use serde_json::{Value, json};

use super::api::{API_KEY, Answer, Api, Text, message};

async fn send(api: &Api, credential: &str, key: &str, method: Method, path: &str, body: &str) -> Answer {
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("x-api-key", credential)
        .header("idempotency-key", key)
        .body(Body::from(body.to_owned()))
        .unwrap();
    Answer::of(api.send(request).await).await
}

/// A POST under the first API key.
async fn post(api: &Api, key: &str, path: &str, body: &Value) -> Answer {
    send(api, API_KEY, key, Method::POST, path, &body.to_string()).await
}

fn is_replayed(answer: &Answer) -> bool {
    answer.headers.get("idempotent-replayed").is_some_and(|value| value == "true")
}

/// Sends the request twice: the second answer is the first one, given again.
async fn twice(api: &Api, key: &str, path: &str, body: &Value) -> Value {
    let first = post(api, key, path, body).await;
    assert!(!is_replayed(&first));
    let second = post(api, key, path, body).await;
    assert!(is_replayed(&second), "{path}: {}", second.body);
    assert_ne!(first.headers["request-id"], second.headers["request-id"]);
    let first = first.ok();
    assert_eq!(first, second.ok(), "{path}");
    first
}

async fn messages(api: &Api, session: &str) -> usize {
    let listed = api.get(&format!("/v1/sessions/{session}/events?types[]=user.message")).await.ok();
    listed["data"].as_array().unwrap().len()
}

#[tokio::test]
async fn a_message_is_posted_once() {
    let api = Api::start_without_replica().await;
    let session = api.session("cloud").await;
    let path = format!("/v1/sessions/{session}/events");
    let first = twice(&api, "k", &path, &message("once")).await;
    assert_eq!(first["data"][0]["type"], "user.message");
    assert_eq!(messages(&api, &session).await, 1);
    twice(&api, "another", &path, &message("once")).await;
    api.say(&session, "without a key").await.ok();
    api.say(&session, "without a key").await.ok();
    assert_eq!(messages(&api, &session).await, 4);
}

#[tokio::test]
async fn an_answer_stays_as_it_was_while_the_session_goes_on() {
    let api = Api::start().await;
    let session = api.session("cloud").await;
    let mut stream = api.follow(&session).await;
    let path = format!("/v1/sessions/{session}/events");
    let first = post(&api, "k", &path, &message("hello")).await.ok();
    stream.until("session.status_idle").await;
    let second = post(&api, "k", &path, &message("hello")).await;
    assert!(is_replayed(&second));
    assert_eq!(second.ok(), first);
    assert_eq!(messages(&api, &session).await, 1);
}

#[tokio::test]
async fn twins_have_one_effect_and_equal_answers() {
    let api = Api::start().await;
    let session = api.session("cloud").await;
    let path = format!("/v1/sessions/{session}/events");
    let body = message("from several connections at once");
    let answers = futures::future::join_all((0..12).map(|_| post(&api, "k", &path, &body))).await;
    assert_eq!(answers.iter().filter(|answer| !is_replayed(answer)).count(), 1);
    let bodies: Vec<Value> = answers.into_iter().map(Answer::ok).collect();
    assert!(bodies.iter().all(|body| *body == bodies[0]), "{bodies:?}");
    assert_eq!(messages(&api, &session).await, 1);
}

#[tokio::test]
async fn sessions_are_created_changed_and_archived_once() {
    let api = Api::start_without_replica().await;
    let (agent, environment) = (api.agent().await, api.environment("cloud").await);
    let body = json!({"agent": agent, "environment_id": environment});
    let created = twice(&api, "create", "/v1/sessions", &body).await;
    let listed = api.get("/v1/sessions").await.ok();
    assert_eq!(listed["data"].as_array().unwrap().len(), 1);

    let path = format!("/v1/sessions/{}", created["id"].text());
    let tools = json!([{"type": "custom", "name": "f", "description": "F.", "input_schema": {"type": "object"}}]);
    let change = json!({"title": "first", "agent": {"tools": tools}});
    let changed = twice(&api, "update", &path, &change).await;
    assert_eq!((changed["title"].text(), changed["agent"]["tools"][0]["name"].text()), ("first".into(), "f".into()));
    api.post(&path, json!({"title": "second"})).await.ok();
    assert_eq!(post(&api, "update", &path, &change).await.ok()["title"], "first", "the answer, not the change again");
    assert_eq!(api.get(&path).await.ok()["title"], "second");

    // What changes nothing is an effect too: it must not come late.
    twice(&api, "as it is", &path, &json!({"title": "second"})).await;
    api.post(&path, json!({"title": "third"})).await.ok();
    post(&api, "as it is", &path, &json!({"title": "second"})).await.ok();
    assert_eq!(api.get(&path).await.ok()["title"], "third");

    let archived = twice(&api, "archive", &format!("{path}/archive"), &json!({})).await;
    assert_eq!(archived["status"], "terminated");
}

#[tokio::test]
async fn definitions_are_written_once() {
    let api = Api::start_without_replica().await;
    let agent = twice(&api, "a", "/v1/agents", &json!({"name": "a", "model": "demo"})).await;
    let path = format!("/v1/agents/{}", agent["id"].text());
    assert_eq!(twice(&api, "b", &path, &json!({"system": "s"})).await["version"], 2);
    assert_eq!(twice(&api, "c", &path, &json!({"system": "s"})).await["version"], 2, "nothing changes");
    api.post(&path, json!({"system": "t"})).await.ok();
    assert_eq!(post(&api, "c", &path, &json!({"system": "s"})).await.ok()["version"], 2, "nor does it later");
    assert_eq!(api.get(&path).await.ok()["version"], 3);
    twice(&api, "d", &format!("{path}/archive"), &json!({})).await;

    let home = json!({"name": "home", "config": {"type": "self_hosted"}});
    let home = twice(&api, "e", "/v1/environments", &home).await;
    let path = format!("/v1/environments/{}", home["id"].text());
    twice(&api, "f", &path, &json!({"description": "d"})).await;
    twice(&api, "g", &path, &json!({"description": "d"})).await;

    let agent = api.agent().await;
    api.post("/v1/sessions", json!({"agent": agent, "environment_id": home["id"]})).await.ok();
    let key = api.environment_key(&home["id"].text()).await;
    let items = api.call_as(&key, Method::GET, &format!("{path}/work"), None).await.ok();
    let work = format!("{path}/work/{}", items["data"][0]["id"].text());
    let tagged = twice(&api, "h", &work, &json!({"metadata": {"k": "v"}})).await;
    assert_eq!(tagged["metadata"], json!({"k": "v"}));
    twice(&api, "i", &format!("{path}/archive"), &json!({})).await;
}

#[tokio::test]
async fn a_key_is_good_for_one_request() {
    let api = Api::start_without_replica().await;
    let session = api.session("cloud").await;
    let path = format!("/v1/sessions/{session}/events");
    post(&api, "k", &path, &message("one")).await.ok();
    for (path, body) in [
        (path.clone(), message("two")),
        (format!("{path}?beta=true"), message("one")),
        (format!("/v1/sessions/{session}"), json!({"title": "t"})),
    ] {
        let refused = post(&api, "k", &path, &body).await;
        assert!(refused.error(409, "conflict_error").contains("Idempotency-Key"));
        assert_eq!(refused.code(), "idempotency_key_reused");
        assert_eq!(refused.headers["x-should-retry"], "false");
    }
    assert_eq!(messages(&api, &session).await, 1);

    let other = send(&api, "sk-test-second-key", "k", Method::POST, &path, &message("two").to_string()).await;
    assert!(!is_replayed(&other), "keys are those of one credential");
    other.ok();
}

#[tokio::test]
async fn a_refusal_is_not_kept() {
    let api = Api::start_without_replica().await;
    let (agent, environment) = (api.agent().await, api.environment("cloud").await);
    let body = json!({"agent": agent, "environment_id": environment, "colour": "red"});
    post(&api, "k", "/v1/sessions", &body).await.invalid();
    let body = json!({"agent": agent, "environment_id": environment});
    twice(&api, "k", "/v1/sessions", &body).await;
}

#[tokio::test]
async fn keys_have_bounds() {
    let api = Api::start_without_replica().await;
    let session = api.session("cloud").await;
    let path = format!("/v1/sessions/{session}/events");
    for good in ["k".repeat(255), "with spaces and ~!\"#".to_owned()] {
        twice(&api, &good, &path, &message("m")).await;
    }
    for bad in ["k".repeat(256), String::new(), "tab\there".to_owned()] {
        assert!(post(&api, &bad, &path, &message("m")).await.invalid().contains("Idempotency-Key"));
    }
    let two = Request::builder()
        .method(Method::POST)
        .uri(&path)
        .header("x-api-key", API_KEY)
        .header("idempotency-key", "a")
        .header("idempotency-key", "b")
        .body(Body::from(message("m").to_string()))
        .unwrap();
    assert!(Answer::of(api.send(two).await).await.invalid().contains("twice"));
}

#[tokio::test]
async fn where_no_key_is_honoured_it_is_refused_by_name() {
    let api = Api::start_without_replica().await;
    let session = api.session("cloud").await;
    let refused = send(&api, API_KEY, "k", Method::DELETE, &format!("/v1/sessions/{session}"), "").await;
    assert!(refused.invalid().contains("Idempotency-Key"));
    api.get(&format!("/v1/sessions/{session}")).await.ok();
}

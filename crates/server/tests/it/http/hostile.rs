//! Hostile input on every route: a typed 4xx each time, and a server that goes on serving.

use axum::body::Body;
use axum::http::{Method, Request};
use serde_json::{Value, json};

use super::api::{API_KEY, Answer, Api, Text};

/// Every route that an API key opens, with ids to be filled in.
const ROUTES: [(Method, &str); 32] = [
    (Method::GET, "/v1/models"),
    (Method::GET, "/v1/models/demo"),
    (Method::GET, "/v1/agents"),
    (Method::POST, "/v1/agents"),
    (Method::GET, "/v1/agents/{agent}"),
    (Method::POST, "/v1/agents/{agent}"),
    (Method::POST, "/v1/agents/{agent}/archive"),
    (Method::GET, "/v1/agents/{agent}/versions"),
    (Method::GET, "/v1/environments"),
    (Method::POST, "/v1/environments"),
    (Method::GET, "/v1/environments/{environment}"),
    (Method::POST, "/v1/environments/{environment}"),
    (Method::DELETE, "/v1/environments/{environment}"),
    (Method::POST, "/v1/environments/{environment}/archive"),
    (Method::GET, "/v1/environments/{environment}/work/stats"),
    (Method::GET, "/v1/environments/{environment}/work/{work}"),
    (Method::POST, "/v1/environments/{environment}/work/{work}"),
    (Method::POST, "/v1/environments/{environment}/work/{work}/stop"),
    (Method::GET, "/v1/sessions"),
    (Method::POST, "/v1/sessions"),
    (Method::GET, "/v1/sessions/{session}"),
    (Method::POST, "/v1/sessions/{session}"),
    (Method::DELETE, "/v1/sessions/{session}"),
    (Method::POST, "/v1/sessions/{session}/archive"),
    (Method::GET, "/v1/sessions/{session}/events"),
    (Method::POST, "/v1/sessions/{session}/events"),
    (Method::GET, "/v1/sessions/{session}/events/stream"),
    (Method::GET, "/v1/sessions/{session}/threads"),
    (Method::GET, "/v1/sessions/{session}/threads/{thread}"),
    (Method::POST, "/v1/sessions/{session}/threads/{thread}/archive"),
    (Method::GET, "/v1/sessions/{session}/threads/{thread}/events"),
    (Method::GET, "/v1/sessions/{session}/threads/{thread}/stream"),
];

/// Ids of things that exist.
struct Known {
    api: Api,
    ids: [(&'static str, String); 5],
}

impl Known {
    async fn start() -> Self {
        let api = Api::start_without_replica().await;
        let session = api.session("self_hosted").await;
        api.say(&session, "call bash").await.ok();
        let shown = api.get(&format!("/v1/sessions/{session}")).await.ok();
        let environment = shown["environment_id"].text();
        let key = api.environment_key(&environment).await;
        let work = api.call_as(&key, Method::GET, &format!("/v1/environments/{environment}/work"), None).await.ok();
        let threads = api.get(&format!("/v1/sessions/{session}/threads")).await.ok();
        let ids = [
            ("{agent}", shown["agent"]["id"].text()),
            ("{environment}", environment),
            ("{session}", session),
            ("{thread}", threads["data"][0]["id"].text()),
            ("{work}", work["data"][0]["id"].text()),
        ];
        Self { api, ids }
    }

    fn fill(&self, path: &str) -> String {
        self.ids.iter().fold(path.to_owned(), |path, (name, id)| path.replace(name, id))
    }

    async fn send(&self, method: &Method, path: &str, body: impl Into<Body>) -> Answer {
        let request = Request::builder().method(method).uri(path).header("x-api-key", API_KEY);
        Answer::of(self.api.send(request.body(body.into()).unwrap()).await).await
    }

    async fn still_serves(&self) {
        self.api.get("/health").await.ok();
        self.api.get("/v1/agents").await.ok();
    }
}

/// The typed envelope of some 4xx.
#[track_caller]
fn refused(answer: &Answer, what: &str) {
    assert!(answer.status.is_client_error(), "{what}: {} {}", answer.status, answer.body);
    answer.error(answer.status.as_u16(), &answer.body["error"]["type"].text());
    assert!(answer.body["error"]["message"].text().len() < 1_000, "{what}: {}", answer.body);
}

#[tokio::test]
async fn bodies_that_are_no_objects() {
    let known = Known::start().await;
    let deep = format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000));
    let deep_object = format!(r#"{{"metadata":{}1{}}}"#, r#"{"a":"#.repeat(200), "}".repeat(200));
    let bodies: [(&str, Vec<u8>); 13] = [
        ("truncated", b"{\"name\": ".to_vec()),
        ("no JSON", b"name=a".to_vec()),
        ("an array", b"[]".to_vec()),
        ("a string", b"\"x\"".to_vec()),
        ("null", b"null".to_vec()),
        ("a number", b"1e400".to_vec()),
        ("invalid UTF-8", b"{\"name\": \"\xff\xfe\"}".to_vec()),
        ("half a surrogate", br#"{"name": "\ud800"}"#.to_vec()),
        ("NUL in a value", br#"{"name": "a\u0000b", "metadata": {"k": "\u0000"}}"#.to_vec()),
        ("NUL in a name", br#"{"na\u0000me": "a"}"#.to_vec()),
        ("a name twice", br#"{"name": "a", "name": "b"}"#.to_vec()),
        ("deep nesting", deep.into_bytes()),
        ("deep objects", deep_object.into_bytes()),
    ];
    for (method, path) in ROUTES.iter().filter(|(method, _)| *method != Method::GET) {
        for (what, body) in &bodies {
            let answer = known.send(method, &known.fill(path), body.clone()).await;
            refused(&answer, &format!("{method} {path}: {what}"));
        }
        let query = format!("{}?no_such_parameter=1", known.fill(path));
        refused(&known.send(method, &query, Body::empty()).await, &format!("{method} {path}: unknown parameter"));
        let unknown = known.send(method, &known.fill(path), r#"{"no_such_field": 1}"#).await;
        refused(&unknown, &format!("{method} {path}: unknown field"));
    }
    known.still_serves().await;
}

#[tokio::test]
async fn values_of_every_wrong_type() {
    let known = Known::start().await;
    let fields = [
        "name",
        "model",
        "system",
        "description",
        "tools",
        "metadata",
        "config",
        "agent",
        "environment_id",
        "title",
        "initial_events",
        "events",
        "force",
        "version",
    ];
    let values =
        [json!(-1), json!(1.5e300), json!([[]]), json!([null]), json!({"type": []}), json!({"": {}}), json!(true)];
    for (method, path) in ROUTES.iter().filter(|(method, _)| *method == Method::POST) {
        for field in fields {
            for value in &values {
                if (field, value) == ("force", &Value::Bool(true)) {
                    continue;
                }
                let body = json!({ field: value }).to_string();
                let answer = known.send(method, &known.fill(path), body.clone()).await;
                refused(&answer, &format!("{method} {path}: {body}"));
            }
        }
    }
    known.still_serves().await;
}

#[tokio::test]
async fn ids_of_nothing_and_of_other_things() {
    let known = Known::start().await;
    let long = "a".repeat(5_000);
    let foreign =
        ["x", "agent_", "sesn_01unknown", "env_pool", "..%2F..", "%00", "%ff%fe", "a%20b", "%F0%9F%92%A9", &long];
    for (method, path) in ROUTES.iter().filter(|(_, path)| path.contains('{')) {
        let placeholder = path.split('/').rfind(|segment| segment.starts_with('{')).unwrap();
        let others = known.ids.iter().filter(|(name, _)| *name != placeholder).map(|(_, id)| id.as_str());
        for id in foreign.iter().copied().chain(others) {
            let answer = known.send(method, &known.fill(&path.replace(placeholder, id)), Body::empty()).await;
            refused(&answer, &format!("{method} {path} with {id:.40}"));
        }
    }
    known.still_serves().await;
}

#[tokio::test]
async fn queries_that_make_no_sense() {
    let known = Known::start().await;
    let sessions = known.api.get("/v1/sessions?limit=1").await.ok();
    assert_eq!(sessions["next_page"], Value::Null);
    known.api.agent().await;
    let cursor = known.api.get("/v1/agents?limit=1").await.ok()["next_page"].text();
    let queries = [
        "nonsense=1".to_owned(),
        "limit=0&page=x".to_owned(),
        "limit=-1&page=x".to_owned(),
        "limit=99999999999999999999&page=x".to_owned(),
        "page=!!!".to_owned(),
        "page=e30".to_owned(),
        "page=%00".to_owned(),
        "created_at[gte]=yesterday".to_owned(),
        "created_at[ge]=2020-01-01T00:00:00Z".to_owned(),
        "x=%zz".to_owned(),
        "x=%ff".to_owned(),
        "limit=1&limit=2".to_owned(),
        "include_archived=maybe".to_owned(),
        "order=sideways".to_owned(),
    ];
    for (method, path) in ROUTES.iter().filter(|(method, _)| *method == Method::GET) {
        for query in &queries {
            let answer = known.send(method, &format!("{}?{query}", known.fill(path)), Body::empty()).await;
            refused(&answer, &format!("{method} {path}?{query}"));
        }
        if *path != "/v1/agents" {
            let answer = known.send(method, &format!("{}?page={cursor}", known.fill(path)), Body::empty()).await;
            refused(&answer, &format!("{method} {path}: another list's cursor"));
        }
    }
    known.still_serves().await;
}

//! The work queue, for workers of clients and for our own.

use axum::http::{Method, StatusCode};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE;
use serde_json::{Value, json};
use server::http::{HttpLimits, HttpObserver};
use std::sync::{Arc, Mutex};

use super::api::{API_KEY, Answer, Api, Stream, Text, WORKER_KEY};

/// A session on a self-hosted environment with a call for its worker.
pub(super) struct Rig {
    pub(super) api: Api,
    environment: String,
    pub(super) session: String,
    pub(super) key: String,
    pub(super) tool_use: String,
}

impl Rig {
    async fn start(kind: &str) -> Self {
        let api = Api::build(true, HttpLimits { ping_interval_ms: 20, ..HttpLimits::default() }).await;
        let agent = api.agent().await;
        Self::with(api, &agent, kind, "call bash").await
    }

    /// A session of this agent that was told `message`, and has called a tool.
    pub(super) async fn with(api: Api, agent: &str, kind: &str, message: &str) -> Self {
        let environment = api.environment(kind).await;
        let session = api.post("/v1/sessions", json!({"agent": agent, "environment_id": environment})).await.ok();
        let session = session["id"].text();
        let key = if kind == "cloud" { WORKER_KEY.to_owned() } else { api.environment_key(&environment).await };
        let mut stream = api.follow(&session).await;
        api.say(&session, message).await.ok();
        let tool_use = stream.until("agent.tool_use").await.last().unwrap()["id"].text();
        let environment = if kind == "cloud" { "env_pool".to_owned() } else { environment };
        Self { api, environment, session, key, tool_use }
    }

    pub(super) fn path(&self, rest: &str) -> String {
        format!("/v1/environments/{}/work{rest}", self.environment)
    }

    async fn worker(&self, method: Method, rest: &str) -> Answer {
        self.api.call_as(&self.key, method, &self.path(rest), None).await
    }

    /// Polls until there is an item; yields its id and token.
    async fn take(&self) -> (String, String) {
        loop {
            let item = self.worker(Method::GET, "/poll?block_ms=999").await.ok();
            if item.is_null() {
                continue;
            }
            assert_eq!(item["data"], json!({"type": "session", "id": self.session}));
            assert_eq!(item["state"], "queued");
            let secret = URL_SAFE.decode(item["secret"].text()).unwrap();
            let secret: Value = serde_json::from_slice(&secret).unwrap();
            return (item["id"].text(), secret["sessions_token"].text());
        }
    }

    /// Takes the item and makes it active.
    pub(super) async fn hold(&self) -> (String, String) {
        let (id, token) = self.take().await;
        let acked = self.worker(Method::POST, &format!("/{id}/ack")).await.ok();
        assert_eq!((acked["state"].text(), &acked["secret"]), ("starting".to_owned(), &Value::Null));
        let beat = format!("/{id}/heartbeat?expected_last_heartbeat=NO_HEARTBEAT");
        let beat = self.api.call_as(&token, Method::POST, &self.path(&beat), None).await.ok();
        assert_eq!((beat["type"].text(), beat["state"].text()), ("work_heartbeat".to_owned(), "active".to_owned()));
        assert_eq!(beat["lease_extended"], true);
        (id, token)
    }

    pub(super) fn result(&self, text: &str) -> Value {
        let content = json!([{"type": "text", "text": text}]);
        json!({"events": [{"type": "user.tool_result", "tool_use_id": self.tool_use, "content": content}]})
    }

    pub(super) fn events(&self) -> String {
        format!("/v1/sessions/{}/events", self.session)
    }
}

#[tokio::test]
async fn a_worker_of_a_client_serves_a_session() {
    let rig = Rig::start("self_hosted").await;
    let (id, token) = rig.hold().await;

    let lost = rig.worker(Method::POST, &format!("/{id}/ack")).await;
    lost.error(409, "conflict_error");
    assert_eq!(lost.headers["x-should-retry"], "false");
    let mismatch = format!("/{id}/heartbeat?expected_last_heartbeat=2020-01-01T00:00:00Z");
    let mismatch = rig.worker(Method::POST, &mismatch).await;
    assert_eq!(mismatch.status, StatusCode::PRECONDITION_FAILED);
    assert_eq!(mismatch.code(), "heartbeat_precondition_failed");
    let current = &mismatch.body["error"]["details"]["current_state"];
    assert_eq!((&current["state"], &current["lease_extended"]), (&json!("active"), &json!(false)));
    let again =
        format!("/{id}/heartbeat?desired_ttl_seconds=7&expected_last_heartbeat={}", current["last_heartbeat"].text());
    assert_eq!(rig.api.call_as(&token, Method::POST, &rig.path(&again), None).await.ok()["ttl_seconds"], 7);

    let mut stream = Stream::open(&rig.api, &format!("{}/stream", rig.events()), &token).await;
    let sent = rig.api.call_as(&token, Method::POST, &rig.events(), Some(&rig.result("done"))).await.ok();
    assert_eq!(sent["data"][0]["type"], "user.tool_result");
    stream.until("session.status_idle").await;
    rig.api.call_as(&token, Method::GET, &format!("/v1/sessions/{}", rig.session), None).await.ok();

    let stats = rig.worker(Method::GET, "/stats").await.ok();
    assert_eq!((&stats["workers_polling"], &stats["depth"]), (&json!(1), &json!(0)));
    assert_eq!(rig.worker(Method::GET, "").await.ok()["data"][0]["id"], id.as_str());

    let (stop, force) = (rig.path(&format!("/{id}/stop")), json!({"force": true}));
    let stopped = rig.api.call_as(&token, Method::POST, &stop, Some(&force)).await.ok();
    assert_eq!(stopped["state"], "stopped");
    let twice = rig.worker(Method::POST, &format!("/{id}/stop")).await;
    twice.error(409, "conflict_error");
    assert_eq!(twice.headers["x-should-retry"], "false");
}

#[tokio::test]
async fn a_token_that_ended_says_so() {
    let rig = Rig::start("self_hosted").await;
    let (id, token) = rig.hold().await;
    rig.api.post(&rig.path(&format!("/{id}/stop")), json!({"force": true})).await.ok();
    let late = rig.api.call_as(&token, Method::POST, &rig.events(), Some(&rig.result("late"))).await;
    late.error(409, "conflict_error");
    assert_eq!(late.headers["x-should-retry"], "false");
    let beat = rig.api.call_as(&token, Method::POST, &rig.path(&format!("/{id}/heartbeat")), None).await;
    assert_eq!(beat.status, StatusCode::PRECONDITION_FAILED);
    let start = format!("/v1/internal/sessions/{}/tool_starts", rig.session);
    let start = rig.api.call_as(&token, Method::POST, &start, Some(&json!({"tool_use_id": rig.tool_use}))).await;
    start.error(409, "conflict_error");
    rig.api.call_as(&token, Method::GET, &rig.events(), None).await.error(401, "authentication_error");
}

#[tokio::test]
async fn a_stream_closes_with_the_token_that_opened_it() {
    let rig = Rig::start("self_hosted").await;
    let (id, token) = rig.hold().await;
    let mut stream = Stream::open(&rig.api, &format!("{}/stream", rig.events()), &token).await;
    rig.worker(Method::POST, &format!("/{id}/stop")).await.ok();
    assert_eq!(stream.until("ping").await.last().unwrap()["type"], "ping", "a stopping item keeps its token");
    rig.api.post(&rig.path(&format!("/{id}/stop")), json!({"force": true})).await.ok();
    while stream.next().await.is_some() {}
}

#[tokio::test]
async fn our_own_worker_serves_cloud_sessions() {
    let rig = Rig::start("cloud").await;
    let (_, token) = rig.hold().await;
    let starts = format!("/v1/internal/sessions/{}/tool_starts", rig.session);
    let started = rig.api.call_as(&token, Method::POST, &starts, Some(&json!({"tool_use_id": rig.tool_use}))).await;
    assert_eq!(started.ok(), json!({"type": "tool_start", "tool_use_id": rig.tool_use, "resources_version": 0}));

    let confirm = json!({"type": "user.tool_confirmation", "tool_use_id": rig.tool_use, "result": "allow"});
    let confirm = rig.api.call_as(&token, Method::POST, &rig.events(), Some(&json!({"events": [confirm]}))).await;
    confirm.error(403, "permission_error");

    let mut stream = Stream::open(&rig.api, &format!("{}/stream", rig.events()), &token).await;
    let sent = rig.api.call_as(&token, Method::POST, &rig.events(), Some(&rig.result("done"))).await.ok();
    assert_eq!(sent["data"][0]["type"], "agent.tool_result");
    stream.until("agent.message").await;
}

#[tokio::test]
async fn cloud_items_are_invisible_to_clients() {
    let rig = Rig::start("cloud").await;
    let (id, _) = rig.take().await;
    let environment = rig.api.get(&format!("/v1/sessions/{}", rig.session)).await.ok()["environment_id"].text();
    for path in [format!("/v1/environments/{environment}/work/{id}"), format!("/v1/environments/env_pool/work/{id}")] {
        assert!(rig.api.get(&path).await.status.is_client_error());
    }
    let own = rig.api.environment("self_hosted").await;
    let key = rig.api.environment_key(&own).await;
    let own_path = format!("/v1/environments/{own}/work");
    assert_eq!(rig.api.call_as(&key, Method::GET, &format!("{own_path}/poll"), None).await.ok(), Value::Null);
    assert_eq!(rig.api.call_as(&key, Method::GET, &own_path, None).await.ok()["data"], json!([]));
    rig.api.call_as(&key, Method::POST, &format!("{own_path}/{id}/ack"), None).await.error(404, "not_found_error");
    rig.api.call_as(&key, Method::GET, &rig.path("/poll"), None).await.error(403, "permission_error");
    rig.api.call_as(&key, Method::GET, &rig.events(), None).await.error(404, "not_found_error");
}

#[tokio::test]
async fn applications_read_and_label_items() {
    let rig = Rig::start("self_hosted").await;
    let (id, _) = rig.take().await;
    let path = rig.path(&format!("/{id}"));
    let item = rig.api.get(&path).await.ok();
    assert_eq!((item["type"].text(), &item["secret"]), ("work".to_owned(), &Value::Null));
    let labelled = rig.api.post(&path, json!({"metadata": {"a": "1"}})).await.ok();
    assert_eq!(labelled["metadata"], json!({"a": "1"}));
    rig.api.get(&rig.path("/stats")).await.ok();
    rig.api.get(&rig.path("/work_01nothing")).await.error(404, "not_found_error");
    for (method, rest) in
        [(Method::GET, String::new()), (Method::GET, "/poll".to_owned()), (Method::POST, format!("/{id}/ack"))]
    {
        let refused = rig.api.call_as(API_KEY, method, &rig.path(&rest), None).await;
        refused.error(403, "permission_error");
    }
    rig.worker(Method::GET, &format!("/{id}")).await.error(403, "permission_error");
    let label = rig.api.call_as(&rig.key, Method::POST, &path, Some(&json!({"metadata": {}}))).await;
    label.error(403, "permission_error");
    let key = rig.api.environment_key(&rig.api.environment("self_hosted").await).await;
    for (method, rest) in [(Method::GET, ""), (Method::GET, "/poll"), (Method::GET, "/stats"), (Method::POST, "/x/ack")]
    {
        let refused = rig.api.call_as(&key, method, &rig.path(rest), None).await;
        refused.error(403, "permission_error");
    }
    for query in ["block_ms=0", "block_ms=1000", "reclaim_older_than_ms=x", "block=5"] {
        rig.worker(Method::GET, &format!("/poll?{query}")).await.invalid();
    }
}

#[tokio::test]
async fn a_worker_is_told_what_its_sandbox_may_reach() {
    let rig = Rig::start("cloud").await;
    let (_, token) = rig.hold().await;
    let path = format!("/v1/internal/sessions/{}/sandbox", rig.session);
    let told = async || rig.api.call_as(&token, Method::GET, &path, None).await.ok();
    assert_eq!(told().await, json!({"type": "sandbox", "network": {"type": "unrestricted"}}));

    let environment = rig.api.get(&format!("/v1/sessions/{}", rig.session)).await.ok()["environment_id"].text();
    let environment = format!("/v1/environments/{environment}");
    for (allow_package_managers, hosts) in
        [(false, json!(["a.example", "*.b.example"])), (true, json!(["a.example", "*.b.example", "packages.example"]))]
    {
        let limited = json!({"type": "limited", "allowed_hosts": ["A.example", "*.b.example"],
                             "allow_package_managers": allow_package_managers, "allow_mcp_servers": true});
        rig.api.post(&environment, json!({"config": {"type": "cloud", "networking": limited}})).await.ok();
        assert_eq!(told().await["network"], json!({"type": "limited", "allowed_hosts": hosts}));
    }

    let other = format!("/v1/internal/sessions/{}/sandbox", rig.api.session("cloud").await);
    rig.api.call_as(&token, Method::GET, &other, None).await.error(404, "not_found_error");
    for key in [API_KEY, WORKER_KEY] {
        rig.api.call_as(key, Method::GET, &path, None).await.error(403, "permission_error");
    }
}

#[tokio::test]
async fn refusals_of_workers_are_counted() {
    #[derive(Default)]
    struct Heard(Mutex<Vec<(String, u64)>>);
    impl HttpObserver for Heard {
        fn egress_refused(&self, reason: &str, count: u64) {
            self.0.lock().unwrap().push((reason.to_owned(), count));
        }
    }
    let mut rig = Rig::start("cloud").await;
    let heard = Arc::new(Heard::default());
    rig.api = rig.api.with_observer(heard.clone());
    let (_, token) = rig.hold().await;
    let path = format!("/v1/internal/sessions/{}/refusals", rig.session);
    let post = async |key: &str, body: Value| rig.api.call_as(key, Method::POST, &path, Some(&body)).await;
    let counted = post(&token, json!({"counts": {"address": 3, "not_allowed": 1}})).await.ok();
    assert_eq!(counted, json!({"type": "refusals"}));
    let many: serde_json::Map<String, Value> = (0..33).map(|n| (format!("r{n}"), json!(1))).collect();
    for counts in
        [json!({"address": 2, "off": -1}), json!({"off": 1.5}), json!({"off": 1_u64 << 32}), json!([]), json!(many)]
    {
        post(&token, json!({"counts": counts})).await.invalid();
    }
    post(&token, json!({})).await.invalid();
    post(WORKER_KEY, json!({"counts": {}})).await.error(403, "permission_error");
    let expected = [("address".to_owned(), 3), ("not_allowed".to_owned(), 1)];
    assert_eq!(*heard.0.lock().unwrap(), expected, "a report that is refused counts nothing");
}

#[tokio::test]
async fn a_lease_is_as_long_as_the_server_says_unless_the_worker_asks() {
    let api = Api::build(true, HttpLimits { lease_seconds: 11, ..HttpLimits::default() }).await;
    let agent = api.agent().await;
    let rig = Rig::with(api, &agent, "self_hosted", "call bash").await;
    let (id, token) = rig.hold().await;
    let beat = async |query: &str| {
        let path = rig.path(&format!("/{id}/heartbeat{query}"));
        rig.api.call_as(&token, Method::POST, &path, None).await.ok()["ttl_seconds"].clone()
    };
    assert_eq!(beat("").await, 11);
    assert_eq!(beat("?desired_ttl_seconds=1").await, 3);
    assert_eq!(beat("?desired_ttl_seconds=4000").await, 300);
    assert_eq!(beat("").await, 300, "what was once asked for stays");
}

#[tokio::test]
async fn a_heartbeat_that_was_never_given_is_an_empty_text() {
    let rig = Rig::start("self_hosted").await;
    let (id, token) = rig.take().await;
    rig.worker(Method::POST, &format!("/{id}/ack")).await.ok();
    let path = format!("/{id}/heartbeat?expected_last_heartbeat=2020-01-01T00:00:00Z");
    let mismatch = rig.api.call_as(&token, Method::POST, &rig.path(&path), None).await;
    let current = &mismatch.body["error"]["details"]["current_state"];
    let expected = json!({"state": "starting", "last_heartbeat": "", "ttl_seconds": 30, "lease_extended": false});
    assert_eq!((mismatch.status, current), (StatusCode::PRECONDITION_FAILED, &expected));

    let stopping = rig.api.post(&rig.path(&format!("/{id}/stop")), json!({})).await.ok();
    assert_eq!(stopping["state"], "stopping");
    let told = rig.api.call_as(&token, Method::POST, &rig.path(&path), None).await.ok();
    assert_eq!(
        told,
        json!({"type": "work_heartbeat", "state": "stopping", "last_heartbeat": "", "ttl_seconds": 30,
               "lease_extended": false}),
        "what stops is not compared",
    );
}

#[tokio::test]
async fn an_item_is_handed_to_another_worker_until_one_acknowledges_it() {
    let rig = Rig::start("self_hosted").await;
    let (id, first) = rig.take().await;
    assert_eq!(rig.worker(Method::GET, "/poll").await.ok(), Value::Null, "the first may still acknowledge it");
    let again = rig.worker(Method::GET, "/poll?block_ms=999&reclaim_older_than_ms=1").await.ok();
    assert_eq!((&again["id"], &again["state"]), (&json!(id), &json!("queued")));
    let stats = rig.worker(Method::GET, "/stats").await.ok();
    assert_eq!((&stats["depth"], &stats["pending"]), (&json!(0), &json!(1)));
    assert!(stats["oldest_queued_at"].is_string(), "{stats}");
    let beat = rig.path(&format!("/{id}/heartbeat?expected_last_heartbeat=NO_HEARTBEAT"));
    let lost = rig.api.call_as(&first, Method::POST, &beat, None).await;
    assert_eq!(lost.status, StatusCode::PRECONDITION_FAILED, "its token ended with the second poll");
    assert_eq!(lost.code(), "heartbeat_precondition_failed");
    rig.worker(Method::POST, &format!("/{id}/ack")).await.ok();
}

#[tokio::test]
async fn an_item_ends_with_its_session() {
    let rig = Rig::start("self_hosted").await;
    let (id, token) = rig.hold().await;
    let session = format!("/v1/sessions/{}", rig.session);
    let mut stream = rig.api.follow(&rig.session).await;
    rig.api.call_as(&token, Method::POST, &rig.events(), Some(&rig.result("done"))).await.ok();
    stream.until("session.status_idle").await;
    rig.api.post(&format!("{session}/archive"), json!({})).await.ok();
    assert_eq!(rig.api.get(&rig.path(&format!("/{id}"))).await.ok()["state"], "stopping", "its holder is told");
    rig.api.delete(&session).await.ok();
    let beat = rig.api.call_as(&token, Method::POST, &rig.path(&format!("/{id}/heartbeat")), None).await.ok();
    assert_eq!((&beat["state"], &beat["lease_extended"]), (&json!("stopping"), &json!(false)));
    let (stop, force) = (rig.path(&format!("/{id}/stop")), json!({"force": true}));
    assert_eq!(rig.api.call_as(&token, Method::POST, &stop, Some(&force)).await.ok()["state"], "stopped");
    assert_eq!(rig.worker(Method::GET, "/poll").await.ok(), Value::Null);
}

#[tokio::test]
async fn a_dormant_session_calls_for_a_worker_again() {
    let rig = Rig::start("self_hosted").await;
    let (first, token) = rig.hold().await;
    rig.api.call_as(&token, Method::GET, &rig.events(), None).await.ok();
    rig.api.post(&rig.path(&format!("/{first}/stop")), json!({"force": true})).await.ok();
    assert_eq!(rig.worker(Method::GET, "/poll").await.ok(), Value::Null, "nothing is left to run");
    let interrupt = json!({"events": [{"type": "user.interrupt"}]});
    rig.api.post(&rig.events(), interrupt).await.ok();
    let (second, _) = rig.take().await;
    assert_ne!(second, first, "an item that stopped stays stopped");
    let stop = rig.api.post(&rig.path(&format!("/{second}/stop")), json!({})).await.ok();
    assert_eq!(stop["state"], "stopped", "nobody holds it");
    rig.api.say(&rig.session, "go on").await.ok();
    let (third, _) = rig.take().await;
    let listed = rig.worker(Method::GET, "").await.ok();
    let listed: Vec<String> = listed["data"].as_array().unwrap().iter().map(|item| item["id"].text()).collect();
    assert_eq!(listed, [third, second, first], "newest first");
}

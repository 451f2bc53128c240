//! Limits of requests: what is counted, what is said, and that replicas count together.

use std::sync::Arc;

use axum::http::Method;
use engine::memory::MemoryRateLimits;
use engine::observer::Silent;
use engine::port::{Caps, Clock, KeyLimits, Rate, RateLimits};
use serde_json::json;
use server::http::{ErrorClass, HttpObserver, RequestLimits};
use session::Timestamp;
use store::testing::RedisServer;
use store::{Redis, RedisRateLimits};

use super::api::{API_KEY, Answer, Api, Text as _, WORKER_KEY, message};

/// Stands still, so that no request comes back.
struct Still;

impl Clock for Still {
    fn now(&self) -> Timestamp {
        Timestamp::from_micros(1_795_000_000_000_000)
    }
}

fn limits(create: u32, read: u32) -> RequestLimits {
    limits_of(Arc::new(MemoryRateLimits::new(Arc::new(Still))), create, read)
}

fn limits_of(counters: Arc<dyn RateLimits>, create: u32, read: u32) -> RequestLimits {
    RequestLimits { counters, create: Rate::per_minute(create), read: Rate::per_minute(read) }
}

fn header<'a>(answer: &'a Answer, name: &str) -> Option<&'a str> {
    answer.headers.get(name).map(|value| value.to_str().unwrap())
}

fn remaining(answer: &Answer) -> Option<u32> {
    header(answer, "anthropic-ratelimit-requests-remaining").map(|text| text.parse().unwrap())
}

#[tokio::test]
async fn who_asks_too_often_is_told_when_to_come_back() {
    let api = Api::start_without_replica().await.with_request_limits(limits(2, 3));
    for left in [2, 1, 0] {
        let answer = api.get("/v1/agents").await;
        assert_eq!((answer.status.as_u16(), remaining(&answer)), (200, Some(left)));
        assert_eq!(header(&answer, "anthropic-ratelimit-requests-limit"), Some("3"));
    }
    let answer = api.get("/v1/sessions").await;
    assert_eq!((answer.status.as_u16(), remaining(&answer)), (429, Some(0)));
    assert_eq!(answer.body["error"]["type"], "rate_limit_error");
    assert_eq!(answer.body["type"], "error");
    assert_eq!(header(&answer, "retry-after"), Some("20"));
    let reset: Timestamp = header(&answer, "anthropic-ratelimit-requests-reset").unwrap().parse().unwrap();
    assert!(reset.as_micros() > 0);
    assert_eq!(header(&answer, "x-should-retry"), None);
    assert!(header(&answer, "request-id").is_some());

    let agent = json!({"name": "a", "model": "demo"});
    let statuses = [
        api.post("/v1/agents", agent.clone()).await.status.as_u16(),
        // Refused for another reason, and counted all the same.
        api.post("/v1/agents", json!({})).await.status.as_u16(),
        api.post("/v1/agents", agent.clone()).await.status.as_u16(),
    ];
    assert_eq!(statuses, [200, 400, 429]);
}

#[tokio::test]
async fn only_known_api_keys_are_counted_and_each_for_itself() {
    let api = Api::start_without_replica().await.with_request_limits(limits(1, 1));
    for path in ["/health", "/ready", "/health"] {
        assert_eq!(remaining(&api.get(path).await), None, "{path}");
    }
    for _ in 0..3 {
        let worker = api.call_as(WORKER_KEY, Method::GET, "/v1/environments/env_pool/work/poll", None).await;
        assert_eq!((worker.status.as_u16(), remaining(&worker)), (200, None));
        let unknown = api.call_as("sk-unknown", Method::GET, "/v1/agents", None).await;
        assert_eq!((unknown.status.as_u16(), remaining(&unknown)), (401, None));
    }
    assert_eq!(api.get("/v1/agents").await.status.as_u16(), 200);
    assert_eq!(api.get("/v1/agents").await.status.as_u16(), 429);
    let second = api.call_as("sk-test-second-key", Method::GET, "/v1/agents", None).await;
    assert_eq!(second.status.as_u16(), 200);
    // What neither reads nor creates is not counted.
    let deleted = api.delete("/v1/environments/env_none").await;
    assert_eq!((deleted.status.as_u16(), remaining(&deleted)), (404, None));
}

#[tokio::test]
async fn without_limits_nothing_is_said() {
    let api = Api::start_without_replica().await;
    let answer = api.get("/v1/agents").await;
    assert_eq!((answer.status.as_u16(), remaining(&answer)), (200, None));
}

#[tokio::test]
async fn refusals_are_counted() {
    #[derive(Default)]
    struct Counting(std::sync::atomic::AtomicUsize);
    impl HttpObserver for Counting {
        fn error(&self, class: ErrorClass) {
            if class == ErrorClass::RateLimited {
                self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            }
        }
    }
    let counting = Arc::new(Counting::default());
    let api = Api::start_without_replica().await.with_request_limits(limits(1, 1));
    let api = api.with_observer(Arc::clone(&counting) as _);
    for _ in 0..3 {
        api.get("/v1/agents").await;
    }
    assert_eq!(counting.0.load(std::sync::atomic::Ordering::Relaxed), 2);
}

#[tokio::test]
async fn so_many_sessions_of_a_key_run_at_once() {
    for api in Api::start_limited(KeyLimits { concurrent_sessions: Some(1), ..KeyLimits::default() }).await {
        let (running, waiting) = (api.session("cloud").await, api.session("cloud").await);
        let mut stream = api.follow(&running).await;
        api.say(&running, "wait").await.ok();
        let refused = api.say(&waiting, "Hello").await;
        let told = refused.error(429, "rate_limit_error");
        assert!(told.contains("limits.concurrent_sessions") && told.contains("interrupt"), "{told}");
        assert_eq!(header(&refused, "retry-after"), Some("5"));
        assert_eq!(header(&refused, "x-should-retry"), None);
        let events = api.get(&format!("/v1/sessions/{waiting}/events")).await.ok();
        assert_eq!(events["data"], json!([]), "nothing is left of what was refused");

        let (agent, environment) = (api.agent().await, api.environment("cloud").await);
        let mut creation = json!({"agent": agent, "environment_id": environment});
        let idle = api.post("/v1/sessions", creation.clone()).await.ok();
        creation["initial_events"] = message("Hello")["events"].clone();
        api.post("/v1/sessions", creation.clone()).await.error(429, "rate_limit_error");
        let sessions = api.get("/v1/sessions").await.ok();
        assert_eq!(sessions["data"].as_array().unwrap().len(), 3, "what was refused was not created");

        // Another key counts for itself, and so does a session that it created, whoever sends to it.
        let second = "sk-test-second-key";
        api.call_as(second, Method::POST, "/v1/sessions", Some(&creation)).await.ok();
        let path = format!("/v1/sessions/{}/events", idle["id"].text());
        let hello = message("Hello");
        api.call_as(second, Method::POST, &path, Some(&hello)).await.error(429, "rate_limit_error");

        // Whatever stops work is taken, and makes room.
        let interrupt = json!({"events": [{"type": "user.interrupt"}]});
        stream.until("span.model_request_start").await;
        api.post(&format!("/v1/sessions/{running}/events"), interrupt).await.ok();
        stream.until("session.status_idle").await;
        api.say(&waiting, "Hello").await.ok();
    }
}

/// Room for one request of the scripted model, which may answer with 32 000 tokens, and not for two.
const ONE_REQUEST: u64 = 50_000;

#[tokio::test]
async fn a_request_over_its_keys_cap_ends_the_turn() {
    let caps = Caps { tokens_per_day: Some(ONE_REQUEST), micro_usd_per_day: None };
    for api in Api::start_limited(KeyLimits { caps, ..KeyLimits::default() }).await {
        let (first, second) = (api.session("cloud").await, api.session("cloud").await);
        let (mut stream, mut other) = (api.follow(&first).await, api.follow(&second).await);
        // What is settled leaves room.
        for _ in 0..3 {
            api.say(&first, "Hello").await.ok();
            stream.until("session.status_idle").await;
        }
        api.say(&first, "wait").await.ok();
        stream.until("span.model_request_start").await;
        api.say(&second, "Hello").await.ok();
        let seen = other.until("session.status_idle").await;
        let error = seen.iter().find(|event| event["type"] == "session.error").expect("the client is told");
        assert_eq!(error["error"]["type"], "billing_error");
        assert_eq!(error["error"]["retry_status"]["type"], "exhausted");
        let told = error["error"]["message"].text();
        assert!(told.contains("50000 tokens a day (limits.tokens_per_day") && told.contains("00:00 UTC"), "{told}");
        assert_eq!(seen.last().unwrap()["stop_reason"]["type"], "retries_exhausted");
        assert!(seen.iter().all(|event| event["type"] != "span.model_request_start"));

        // Another key has its own.
        let (agent, environment) = (api.agent().await, api.environment("cloud").await);
        let creation = json!({"agent": agent, "environment_id": environment});
        let key = "sk-test-second-key";
        let theirs = api.call_as(key, Method::POST, "/v1/sessions", Some(&creation)).await.ok()["id"].text();
        let mut following = api.follow(&theirs).await;
        api.say(&theirs, "Hello").await.ok();
        let seen = following.until("session.status_idle").await;
        assert_eq!(seen.last().unwrap()["stop_reason"]["type"], "end_turn");

        // What is broken off counts in full: nobody knows what it used.
        api.post(&format!("/v1/sessions/{first}/events"), json!({"events": [{"type": "user.interrupt"}]})).await.ok();
        stream.until("session.status_idle").await;
        api.say(&second, "Hello?").await.ok();
        let seen = other.until("session.status_idle").await;
        assert_eq!(seen.last().unwrap()["stop_reason"]["type"], "retries_exhausted");
    }
}

/// A replica with connections of its own.
async fn replica(server: &RedisServer) -> Api {
    let redis = Redis::new(server.options()).expect("the address is right");
    let counters = RedisRateLimits::start(&redis, Arc::new(Still), Arc::new(Silent));
    counters.connected().await;
    Api::start_without_replica().await.with_request_limits(limits_of(Arc::new(counters), 1, 10))
}

#[tokio::test]
async fn replicas_on_one_redis_count_together() {
    let Some(mut server) = RedisServer::start().await else { return };
    let (one, other) = (replica(&server).await, replica(&server).await);
    let agent = json!({"name": "a", "model": "demo"});
    assert_eq!(one.post("/v1/agents", agent.clone()).await.status.as_u16(), 200);
    // By Redis's clock the next one is a minute away.
    let refused = other.post("/v1/agents", agent.clone()).await;
    assert_eq!((refused.status.as_u16(), remaining(&refused)), (429, Some(0)));
    let wait: u32 = header(&refused, "retry-after").unwrap().parse().unwrap();
    assert!((1..=60).contains(&wait), "{wait}");

    server.command(&["FLUSHALL"]).await;
    assert_eq!(other.post("/v1/agents", agent.clone()).await.status.as_u16(), 200);
    assert_eq!(one.post("/v1/agents", agent.clone()).await.status.as_u16(), 429);
    // Away, each counts for itself.
    server.stop();
    for api in [&one, &other] {
        assert_eq!(api.post("/v1/agents", agent.clone()).await.status.as_u16(), 200);
        assert_eq!(api.call_as(API_KEY, Method::POST, "/v1/agents", Some(&agent)).await.status.as_u16(), 429);
    }
}

#[tokio::test]
async fn a_redis_that_stalls_delays_nobody_twice() {
    let Some(server) = RedisServer::start().await else { return };
    let api = replica(&server).await;
    assert_eq!(remaining(&api.get("/v1/agents").await), Some(9));
    server.stall();
    // The first waits for its time-out, and the others are counted here, from a full bucket.
    for left in [9, 8, 7] {
        assert_eq!(remaining(&api.get("/v1/agents").await), Some(left));
    }
    server.go_on();
}

//! `serve` with Redis: what replicas hear of each other, and what is said when it goes.

use std::path::Path;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::json;
use store::testing::{Cluster, RedisServer};

use super::process::{Server, agent_service, block_on, stdout};

const KEY: &str = "sk-of-this-test";

fn replica(folder: &Path, redis: &RedisServer, postgres_url: Option<&str>) -> Server {
    Server::start(folder, |command| {
        command.env("AGENT_API_KEY", KEY).env("REDIS_URL", redis.options().url);
        if let Some(url) = postgres_url {
            command.env("POSTGRES_URL", url);
        }
    })
}

/// Waits until the replica says of Redis that it is `up`, in both places.
fn await_redis(server: &Server, up: bool) {
    loop {
        let (status, ready) = server.get(&format!("{}/ready", server.url), KEY);
        assert_eq!(status, 200, "no replica is unready for want of Redis: {ready}");
        let metrics = server.get(&server.metrics_url, "").1;
        let line = metrics.lines().find(|line| line.starts_with("agent_dependency_up{") && line.contains("\"redis\""));
        let is_up = line.expect("the series exists from the start").ends_with(" 1");
        let is_degraded = ready.contains("\"redis\"");
        if is_up == up && is_degraded != up {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn say_something(server: &Server, session: &str) {
    let event = json!({"type": "user.message", "content": [{"type": "text", "text": "hello"}]});
    server.post(&format!("/v1/sessions/{session}/events"), KEY, &json!({"events": [event]}));
}

/// A session on the scripted model.
fn open_session(server: &Server) -> String {
    let agent = server.post("/v1/agents", KEY, &json!({"name": "a", "model": "demo"}));
    let environment = server.post("/v1/environments", KEY, &json!({"name": "e", "config": {"type": "self_hosted"}}));
    let body = json!({"agent": agent["id"], "environment_id": environment["id"]});
    server.post("/v1/sessions", KEY, &body)["id"].as_str().expect("a session").to_owned()
}

#[test]
fn a_redis_that_goes_is_told_once_and_stops_nothing() {
    let Some(mut redis) = block_on(RedisServer::start()) else { return };
    let folder = tempfile::tempdir().unwrap();
    let server = replica(&folder.path().join("data"), &redis, None);
    await_redis(&server, true);
    redis.stop();
    await_redis(&server, false);
    let session = open_session(&server);
    let url = format!("{}/v1/sessions/{session}/events/stream", server.url);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut stream =
        runtime.block_on(async { reqwest::Client::new().get(url).header("x-api-key", KEY).send().await.unwrap() });
    say_something(&server, &session);
    runtime.block_on(async {
        let mut text = String::new();
        while !text.contains("session.status_idle") {
            text.push_str(std::str::from_utf8(&stream.chunk().await.unwrap().expect("the stream goes on")).unwrap());
        }
    });
    block_on(redis.start_again());
    await_redis(&server, true);
    server.signal(Signal::TERM);
    let (code, said) = server.wait();
    assert_eq!(code, Some(0));
    let count = |words: &str| said.lines().filter(|line| line.contains(words)).count();
    assert_eq!((count("Redis is away"), count("Redis is back")), (1, 1), "{said}");
}

#[test]
fn previews_reach_the_streams_of_another_replica() {
    let Some(redis) = block_on(RedisServer::start()) else { return };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let Some(cluster) = runtime.block_on(Cluster::start(false)) else { return };
    let database = runtime.block_on(cluster.bare_database());
    let folder = tempfile::tempdir().unwrap();
    let owner = replica(&folder.path().join("owner"), &redis, Some(&database.url));
    let other = replica(&folder.path().join("other"), &redis, Some(&database.url));
    await_redis(&owner, true);
    await_redis(&other, true);
    let session = open_session(&owner);
    let url = format!("{}/v1/sessions/{session}/events/stream?event_deltas[]=agent.message", other.url);
    let mut stream = runtime.block_on(async {
        let request = reqwest::Client::new().get(url).header("x-api-key", KEY);
        request.send().await.unwrap().error_for_status().unwrap()
    });
    // The stream's subscription is confirmed a moment after it was opened, and a preview missed is missed; the next
    // message has it for certain.
    let mut text = String::new();
    while !text.contains("event: event_delta") {
        text.clear();
        say_something(&owner, &session);
        runtime.block_on(async {
            while !text.contains("event: session.status_idle") {
                let chunk = stream.chunk().await.unwrap().expect("the stream goes on");
                text.push_str(std::str::from_utf8(&chunk).unwrap());
            }
        });
    }
    assert!(text.contains("event: event_start"), "{text}");
}

#[test]
fn the_doctor_looks_at_redis() {
    let Some(mut redis) = block_on(RedisServer::start()) else { return };
    let folder = tempfile::tempdir().unwrap();
    let ask = |url: &str| {
        let output = agent_service(&["doctor"]).env("AGENT_DATA_DIR", folder.path()).env("REDIS_URL", url).output();
        stdout(&output.unwrap()).to_owned()
    };
    let url = redis.options().url;
    let said = ask(&url);
    assert!(
        said.lines().any(|line| line.starts_with("ok") && line.contains("redis") && line.contains("version")),
        "{said}"
    );
    redis.stop();
    let said = ask(&url);
    assert!(said.lines().any(|line| line.starts_with("BROKEN") && line.contains("redis")), "{said}");
}

//! What a client's worker was shown before its lease ended, and what it was not.

use axum::http::Method;
use engine::port::StoredRecord;
use serde_json::{Value, json};
use server::http::HttpLimits;
use session::event::Event;

use super::api::{API_KEY, Api, Stream, Text};
use super::work::Rig;

/// A session on a self-hosted environment whose model was told `message`. Its streams send no pings.
async fn rig(message: &str) -> Rig {
    let api = Api::build(true, HttpLimits { ping_interval_ms: 3_600_000, ..HttpLimits::default() }).await;
    let agent = api.agent().await;
    Rig::with(api, &agent, "self_hosted", message).await
}

async fn records(rig: &Rig) -> Vec<StoredRecord> {
    rig.api.world.log.read(&rig.session.as_str().into(), 0, 1_000).await.unwrap()
}

/// The calls that were recorded as shown, and to the holder of which item.
async fn started(rig: &Rig) -> Vec<(String, Option<String>)> {
    let started = |stored: StoredRecord| match stored.record.event {
        Event::ToolStarted { tool_use_id, work_id, .. } => {
            Some((tool_use_id.as_str().to_owned(), work_id.map(|id| id.as_str().to_owned())))
        }
        _ => None,
    };
    records(rig).await.into_iter().filter_map(started).collect()
}

/// Ends the lease; the item afterwards.
async fn end_lease(rig: &Rig, item: &str) -> Value {
    rig.api.post(&rig.path(&format!("/{item}/stop")), json!({"force": true})).await.ok()
}

/// The results that the session has, as an application reads them.
async fn results(rig: &Rig) -> Vec<(String, bool)> {
    let listed = rig.api.get(&format!("{}?types[]=user.tool_result", rig.events())).await.ok();
    let results = listed["data"].as_array().unwrap().iter();
    results.map(|result| (result["tool_use_id"].text(), result["is_error"] == true)).collect()
}

async fn list(rig: &Rig, key: &str) -> Value {
    rig.api.call_as(key, Method::GET, &rig.events(), None).await.ok()
}

#[tokio::test]
async fn a_call_that_was_never_shown_is_the_next_workers() {
    let rig = rig("call bash").await;
    let (item, token) = rig.hold().await;
    list(&rig, API_KEY).await;
    rig.api.call_as(&token, Method::GET, &format!("/v1/sessions/{}", rig.session), None).await.ok();
    rig.api.call_as(&token, Method::GET, &format!("{}?types[]=user.message", rig.events()), None).await.ok();
    assert_eq!(started(&rig).await, [], "it was not in any of these answers");
    end_lease(&rig, &item).await;
    assert_eq!(results(&rig).await, []);

    let (item, token) = rig.hold().await;
    list(&rig, &token).await;
    list(&rig, &token).await;
    assert_eq!(started(&rig).await, [(rig.tool_use.clone(), Some(item))], "one record, however often it is read");
    rig.api.call_as(&token, Method::POST, &rig.events(), Some(&rig.result("done"))).await.ok();
    assert_eq!(results(&rig).await, [(rig.tool_use.clone(), false)]);
}

#[tokio::test]
async fn a_call_that_was_listed_has_an_unknown_outcome() {
    let rig = rig("call bash").await;
    let (item, token) = rig.hold().await;
    list(&rig, &token).await;
    assert_eq!(end_lease(&rig, &item).await["state"], "stopped", "nothing is left to run");
    assert_eq!(results(&rig).await, [(rig.tool_use.clone(), true)]);
    rig.api.call_as(&token, Method::GET, &rig.events(), None).await.error(401, "authentication_error");
}

#[tokio::test]
async fn an_environment_key_shows_as_much_as_a_token() {
    let rig = rig("call bash").await;
    let (item, _) = rig.hold().await;
    list(&rig, &rig.key).await;
    assert_eq!(started(&rig).await, [(rig.tool_use.clone(), None)]);
    end_lease(&rig, &item).await;
    assert_eq!(results(&rig).await, [(rig.tool_use.clone(), true)]);
}

#[tokio::test]
async fn a_stream_records_all_it_is_about_to_show_at_once() {
    let rig = rig("call bash").await;
    let (item, token) = rig.hold().await;
    let mut stream = Stream::open(&rig.api, &format!("{}/stream", rig.events()), &token).await;
    assert_eq!(started(&rig).await, [], "the stream begins behind the call");
    rig.api.call_as(&token, Method::POST, &rig.events(), Some(&rig.result("done"))).await.ok();
    rig.api.say(&rig.session, "call bash read write").await.ok();
    let first = stream.until("agent.tool_use").await.last().unwrap()["id"].text();

    let shown = records(&rig).await;
    let starts: Vec<&StoredRecord> =
        shown.iter().filter(|stored| matches!(stored.record.event, Event::ToolStarted { .. })).collect();
    let positions: Vec<u64> = starts.iter().map(|stored| stored.record.position).collect();
    assert_eq!(positions, [positions[0], positions[0] + 1], "one append for the two calls that change something");
    assert_eq!(started(&rig).await[0], (first, Some(item.clone())));
    stream.until("session.status_idle").await;
    assert_eq!(started(&rig).await.len(), 2);

    assert_eq!(end_lease(&rig, &item).await["state"], "stopped");
    assert_ne!(rig.hold().await.0, item, "the read has an item of its own");
    assert_eq!(results(&rig).await.iter().filter(|(_, is_error)| *is_error).count(), 2);
    while let Some((name, _)) = stream.next().await {
        assert_ne!(name, "user.tool_result", "what ended the lease is not for its holder");
    }
}

#[tokio::test]
async fn a_call_is_shown_with_the_confirmation_that_frees_it() {
    let api = Api::build(true, HttpLimits { ping_interval_ms: 3_600_000, ..HttpLimits::default() }).await;
    let asks =
        json!([{"type": "agent_toolset_20260401", "default_config": {"permission_policy": {"type": "always_ask"}}}]);
    let agent = api.post("/v1/agents", json!({"name": "asks", "model": "demo", "tools": asks})).await.ok()["id"].text();
    let rig = Rig::with(api, &agent, "self_hosted", "call bash").await;
    let (item, token) = rig.hold().await;
    list(&rig, &token).await;
    end_lease(&rig, &item).await;
    assert_eq!(started(&rig).await, []);
    assert_eq!(results(&rig).await, [], "a call that waits stays open");

    let confirm = json!({"type": "user.tool_confirmation", "tool_use_id": rig.tool_use, "result": "allow"});
    let confirm = json!({"events": [confirm]});
    for key in [&rig.key, &token] {
        let refused = rig.api.call_as(key, Method::POST, &rig.events(), Some(&confirm)).await;
        assert!(refused.status.is_client_error(), "a worker confirms nothing: {}", refused.body);
    }
    rig.api.post(&rig.events(), confirm).await.ok();
    let (item, token) = rig.hold().await;
    assert_eq!(started(&rig).await, []);
    list(&rig, &token).await;
    assert_eq!(started(&rig).await, [(rig.tool_use.clone(), Some(item.clone()))]);
    end_lease(&rig, &item).await;
    assert_eq!(results(&rig).await, [(rig.tool_use.clone(), true)]);
}

#[tokio::test]
async fn a_stream_closes_when_its_lease_ends() {
    for kind in ["self_hosted", "cloud"] {
        let api = Api::build(true, HttpLimits { ping_interval_ms: 3_600_000, ..HttpLimits::default() }).await;
        let agent = api.agent().await;
        let rig = Rig::with(api, &agent, kind, "call bash").await;
        let (item, token) = rig.hold().await;
        let mut stream = Stream::open(&rig.api, &format!("{}/stream", rig.events()), &token).await;
        let stop = rig.path(&format!("/{item}/stop"));
        rig.api.call_as(&rig.key, Method::POST, &stop, Some(&json!({"force": true}))).await.ok();
        while stream.next().await.is_some() {}
    }
}

//! `/v1/sessions/{id}/events/stream`.

use std::time::Duration;

use serde_json::{Value, json};
use server::http::HttpLimits;
use tokio::time::Instant;

use super::api::{API_KEY, Api, Stream, Text, types};

#[tokio::test]
async fn a_plain_turn_comes_in_the_documented_order() {
    let api = Api::start().await;
    let session = api.session("cloud").await;
    let mut stream = api.follow(&session).await;
    assert_eq!(stream.headers["content-type"], "text/event-stream; charset=utf-8");
    assert_eq!(stream.headers["cache-control"], "no-store");
    assert_eq!(stream.headers["x-accel-buffering"], "no");
    assert!(stream.headers.contains_key("request-id"));
    api.say(&session, "hello").await.ok();
    let events = stream.until("session.status_idle").await;
    let mut shown = types(&events);
    shown.dedup();
    assert_eq!(
        shown,
        [
            "user.message",
            "session.status_running",
            "session.thread_status_running",
            "user.message",
            "span.model_request_start",
            "agent.message",
            "span.model_request_end",
            "session.thread_status_idle",
            "session.usage",
            "session.status_idle",
        ]
    );
    assert_eq!(events.last().unwrap()["stop_reason"], json!({"type": "end_turn"}));
    for event in &events {
        assert!(event.get("internal").is_none() && event.get("queued").is_none(), "{event}");
    }
}

#[tokio::test]
async fn previews_add_up_to_the_final_message() {
    let api = Api::start().await;
    let session = api.session("cloud").await;
    let path = format!("/v1/sessions/{session}/events/stream?event_deltas%5B%5D=agent.message");
    let mut stream = Stream::open(&api, &path, API_KEY).await;
    let mut plain = api.follow(&session).await;
    api.say(&session, "one two three").await.ok();
    let events = stream.until("session.status_idle").await;

    let start = events.iter().find(|event| event["type"] == "event_start").unwrap();
    let done = events.iter().find(|event| event["type"] == "agent.message").unwrap();
    assert_eq!(start["event"], json!({"type": "agent.message", "id": done["id"]}));
    let deltas: Vec<&Value> = events.iter().filter(|event| event["type"] == "event_delta").collect();
    let text: String = deltas.iter().map(|delta| delta["delta"]["content"]["text"].text()).collect();
    assert_eq!(text, "one two three");
    for delta in deltas {
        assert_eq!((&delta["event_id"], &delta["delta"]["type"]), (&done["id"], &json!("content_delta")));
        assert_eq!(delta["delta"]["index"], 0);
    }
    let shown = plain.until("session.status_idle").await;
    assert!(!types(&shown).contains(&"event_start"), "previews are for those who ask");

    for value in ["agent.tool_use", ""] {
        let refused = api.get(&format!("/v1/sessions/{session}/events/stream?event_deltas[]={value}")).await;
        assert!(refused.invalid().contains("event_deltas"));
    }
}

#[tokio::test]
async fn a_stream_ends_with_the_session() {
    let api = Api::start().await;
    let session = api.session("cloud").await;
    let mut stream = api.follow(&session).await;
    api.post(&format!("/v1/sessions/{session}/archive"), json!({})).await.ok();
    stream.until("session.status_terminated").await;
    api.delete(&format!("/v1/sessions/{session}")).await.ok();
    stream.until("session.deleted").await;
    assert_eq!(stream.next().await, None);
    api.get(&format!("/v1/sessions/{session}/events/stream")).await.error(404, "not_found_error");
}

#[tokio::test]
async fn an_idle_stream_is_kept_alive_and_ends_with_a_drain() {
    let limits = HttpLimits { ping_interval_ms: 5, ..HttpLimits::default() };
    let api = Api::build(false, limits).await;
    let session = api.session("cloud").await;
    let mut stream = api.follow(&session).await;
    assert_eq!(stream.until("ping").await.len(), 1);
    api.draining.begin();
    while stream.next().await.is_some() {}
    let refused = api.get(&format!("/v1/sessions/{session}/events/stream")).await;
    assert!(refused.error(503, "api_error").contains("open the stream again"));
    assert!(refused.headers["retry-after"] == "1" && refused.headers["connection"] == "close");
    let said = api.say(&session, "while it drains").await;
    assert_eq!(said.headers["connection"], "close");
    said.ok();
}

#[tokio::test]
async fn the_ends_of_streams_are_spread_over_a_while() {
    let spread = Duration::from_secs(10);
    let api = Api::start_without_replica().await.draining_over(spread);
    let session = api.session("cloud").await;
    let mut streams = Vec::new();
    for _ in 0..20 {
        streams.push(api.follow(&session).await);
    }
    // Nothing but the drain is waited for from here on, and its time need not pass.
    tokio::time::pause();
    let began = Instant::now();
    api.draining.begin();
    let mut ends = Vec::new();
    for mut stream in streams {
        ends.push(tokio::spawn(async move {
            while stream.next().await.is_some() {}
            Instant::now()
        }));
    }
    api.draining.streams_ended().await;
    let mut seconds = std::collections::BTreeSet::new();
    for end in ends {
        let after = end.await.unwrap() - began;
        assert!(after <= spread, "{after:?}");
        seconds.insert(after.as_secs());
    }
    assert!(seconds.len() > 3, "{seconds:?}");
}

#[tokio::test]
async fn the_thread_stream_of_the_primary_thread_is_the_session_s() {
    let api = Api::start().await;
    let session = api.session("cloud").await;
    let threads = api.get(&format!("/v1/sessions/{session}/threads")).await.ok();
    let path = format!("/v1/sessions/{session}/threads/{}/stream", threads["data"][0]["id"].text());
    let mut stream = Stream::open(&api, &path, API_KEY).await;
    api.say(&session, "hello").await.ok();
    stream.until("session.status_idle").await;
}

#[tokio::test]
async fn an_interrupt_ends_the_turn() {
    let api = Api::start().await;
    let session = api.session("cloud").await;
    let mut stream = api.follow(&session).await;
    api.say(&session, "wait").await.ok();
    stream.until("span.model_request_start").await;
    let next = super::api::message("hello")["events"][0].clone();
    api.post(&format!("/v1/sessions/{session}/events"), json!({"events": [{"type": "user.interrupt"}, next]}))
        .await
        .ok();
    let events = stream.until("agent.message").await;
    assert!(types(&events).contains(&"user.interrupt"));
    assert_eq!(events.last().unwrap()["content"][0]["text"], "hello");
}

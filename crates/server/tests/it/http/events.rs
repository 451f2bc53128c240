//! `/v1/sessions/{id}/events`: sending and listing.

use serde_json::{Value, json};

use super::api::{Api, Text, message, types};

fn ids(page: &Value) -> Vec<String> {
    page["data"].as_array().unwrap().iter().map(|event| event["id"].text()).collect()
}

#[tokio::test]
async fn a_batch_is_stored_whole_or_not_at_all() {
    let api = Api::start_without_replica().await;
    let session = api.session("cloud").await;
    let path = format!("/v1/sessions/{session}/events");
    let good = message("hello")["events"][0].clone();
    let answer = json!({"type": "user.custom_tool_result", "custom_tool_use_id": "sevt_01nothing"});
    api.post(&path, json!({"events": [good, answer]})).await.invalid();
    assert_eq!(api.get(&path).await.ok()["data"], json!([]));

    let sent = api.post(&path, json!({"events": [good, good]})).await.ok();
    assert_eq!(types(sent["data"].as_array().unwrap()), ["user.message", "user.message"]);
    assert_eq!(sent["data"][0]["content"], good["content"]);
    assert!(sent["data"][0]["id"].text().starts_with("sevt_"));
}

#[tokio::test]
async fn waiting_events_stand_last_ascending_and_first_descending() {
    let api = Api::start_without_replica().await;
    let session = api.session("cloud").await;
    let path = format!("/v1/sessions/{session}/events");
    for text in ["one", "two", "three"] {
        api.say(&session, text).await.ok();
    }
    let all = api.get(&path).await.ok();
    let waiting: Vec<String> = ids(&all)[ids(&all).len() - 3..].to_vec();
    for id in &waiting {
        let event = all["data"].as_array().unwrap().iter().find(|event| event["id"] == id.as_str()).unwrap();
        assert_eq!((event["type"].text(), &event["processed_at"]), ("user.message".to_owned(), &Value::Null));
    }
    let mut backwards = ids(&api.get(&format!("{path}?order=desc")).await.ok());
    backwards.reverse();
    assert_eq!(backwards, ids(&all));

    for order in ["asc", "desc"] {
        let mut paged = Vec::new();
        let mut next = format!("{path}?limit=1&order={order}");
        loop {
            let page = api.get(&next).await.ok();
            paged.extend(ids(&page));
            match &page["next_page"] {
                Value::Null => break,
                cursor => next = format!("{path}?limit=1&order={order}&page={}", cursor.text()),
            }
        }
        if order == "desc" {
            paged.reverse();
        }
        assert_eq!(paged, ids(&all), "{order}");
    }
    let ranged = api.get(&format!("{path}?created_at[gte]=2020-01-01T00:00:00Z")).await.ok();
    assert_eq!(ids(&ranged), ids(&all)[..ids(&all).len() - 3], "no range includes what waits");
    let messages = api.get(&format!("{path}?types[]=user.message&types[]=agent.message")).await.ok();
    assert_eq!(ids(&messages), waiting);
    assert!(api.get(&format!("{path}?types[]=user.mesage")).await.invalid().contains("user.message"));
}

#[tokio::test]
async fn a_turn_is_listed_in_order_with_each_event_once() {
    let api = Api::start().await;
    let session = api.session("cloud").await;
    let mut stream = api.follow(&session).await;
    api.say(&session, "hello there").await.ok();
    let streamed = stream.until("session.status_idle").await;
    let listed = api.get(&format!("/v1/sessions/{session}/events")).await.ok();
    let listed = listed["data"].as_array().unwrap();
    let mut last_seen = Vec::new();
    for event in &streamed {
        last_seen.retain(|seen: &&Value| seen["id"] != event["id"]);
        last_seen.push(event);
    }
    assert_eq!(listed.iter().collect::<Vec<_>>(), last_seen);
    let answer = listed.iter().find(|event| event["type"] == "agent.message").unwrap();
    assert_eq!(answer["content"], json!([{"type": "text", "text": "hello there"}]));
    let mut times: Vec<String> = listed.iter().map(|event| event["processed_at"].text()).collect();
    let in_order = times.clone();
    times.sort();
    assert_eq!(times, in_order);
    let after = format!("/v1/sessions/{session}/events?created_at[gt]={}", answer["processed_at"].text());
    let after = api.get(&after).await.ok();
    let tail = listed.iter().skip_while(|event| *event != answer).skip(1).map(|event| event["id"].text());
    assert_eq!(ids(&after), tail.collect::<Vec<_>>());
}

#[tokio::test]
async fn a_custom_tool_is_answered_once() {
    let api = Api::start().await;
    let session = api.session("cloud").await;
    let path = format!("/v1/sessions/{session}/events");
    let mut stream = api.follow(&session).await;
    api.say(&session, "call ask_user").await.ok();
    let events = stream.until("session.status_idle").await;
    let call = events.iter().find(|event| event["type"] == "agent.custom_tool_use").unwrap()["id"].clone();
    assert_eq!(events.last().unwrap()["stop_reason"], json!({"type": "requires_action", "event_ids": [call]}));

    let confirmation = json!({"type": "user.tool_confirmation", "tool_use_id": call, "result": "allow"});
    api.post(&path, json!({"events": [confirmation]})).await.invalid();
    let result = json!({"type": "user.custom_tool_result", "custom_tool_use_id": call,
                        "content": [{"type": "text", "text": "blue"}]});
    let first = api.post(&path, json!({"events": [result]})).await.ok();
    assert_eq!(first["data"][0]["is_error"], false);
    assert_ne!(first["data"][0]["processed_at"], Value::Null);
    stream.until("session.status_idle").await;
    let again = api.post(&path, json!({"events": [result]})).await.ok();
    assert_eq!(again, first, "a repeated answer returns what was stored");
    let other = json!({"type": "user.custom_tool_result", "custom_tool_use_id": call});
    let conflict = api.post(&path, json!({"events": [other]})).await;
    conflict.error(409, "conflict_error");
    assert_eq!(conflict.headers["x-should-retry"], "false");
}

#[tokio::test]
async fn a_tool_result_for_a_cloud_session_needs_a_worker() {
    let api = Api::start().await;
    let session = api.session("cloud").await;
    let mut stream = api.follow(&session).await;
    api.say(&session, "call bash").await.ok();
    let events = stream.until("agent.tool_use").await;
    let result = json!({"type": "user.tool_result", "tool_use_id": events.last().unwrap()["id"]});
    api.post(&format!("/v1/sessions/{session}/events"), json!({"events": [result]})).await.invalid();
}

#[tokio::test]
async fn what_is_no_event_is_refused_by_name() {
    let api = Api::start_without_replica().await;
    let path = format!("/v1/sessions/{}/events", api.session("cloud").await);
    let content = |block: Value| json!({"type": "user.message", "content": [block]});
    let cases = [
        (json!({"type": "user.message"}), "events[0].content"),
        (json!({"type": "user.message", "content": "hi"}), "events[0].content"),
        (json!({"type": "user.message", "content": [], "role": "user"}), "events[0].content"),
        (json!({"type": "user.message", "content": [{"type": "text", "text": " "}]}), "expected some text"),
        (json!({"type": "assistant.message"}), "events[0].type"),
        (json!({"content": []}), "events[0].type"),
        (json!("hi"), "events[0]"),
        (json!({"type": "user.define_outcome", "description": "d", "rubric": {}}), "outcomes do not exist yet"),
        (json!({"type": "user.tool_confirmation", "tool_use_id": "sevt_1", "result": "maybe"}), "events[0].result"),
        (
            json!({"type": "user.tool_confirmation", "tool_use_id": "sevt_1", "result": "allow", "deny_message": "m"}),
            "events[0].deny_message",
        ),
        (json!({"type": "user.interrupt", "session_thread": "x"}), "did you mean session_thread_id?"),
        (content(json!({"type": "redacted"})), "events[0].content[0].type"),
        (content(json!({"type": "text", "text": 5})), "events[0].content[0].text"),
        (content(json!({"type": "text", "text": "x", "cache_control": {}})), "events[0].content[0].cache_control"),
        (
            content(json!({"type": "image", "source": {"type": "file", "file_id": "file_1"}})),
            "events[0].content[0].source.type",
        ),
        (
            content(json!({"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "!"}})),
            "events[0].content[0].source.data",
        ),
        (
            content(json!({"type": "image", "source": {"type": "url", "url": "file:///etc/passwd"}})),
            "events[0].content[0].source.url",
        ),
        (
            content(
                json!({"type": "document", "source": {"type": "base64", "media_type": "text/html", "data": "aGk="}}),
            ),
            "events[0].content[0].source.media_type",
        ),
        (
            content(json!({"type": "search_result", "source": "s", "title": "t", "content": [], "citations": {}})),
            "events[0].content[0].type",
        ),
    ];
    for (event, named) in cases {
        let message = api.post(&path, json!({"events": [event]})).await.invalid();
        assert!(message.contains(named), "{event}: {message}");
    }
    let system = api.post(&path, json!({"events": [{"type": "system.message", "content": []}]})).await;
    system.invalid();
    assert_eq!(system.code(), "model_does_not_support_mid_conversation_system");
    assert!(api.post(&path, json!({"events": []})).await.invalid().contains("events"));
    let document = json!({"type": "document", "title": "t", "context": null,
                          "source": {"type": "text", "media_type": "text/plain", "data": "d"}});
    api.post(&path, json!({"events": [content(document)]})).await.ok();
}

//! `/v1/sessions`.

use serde_json::{Value, json};

use super::api::{Api, Text, message};

#[tokio::test]
async fn a_session_keeps_the_agent_it_was_made_from() {
    let api = Api::start_without_replica().await;
    let (agent, environment) = (api.agent().await, api.environment("cloud").await);
    let created = api
        .post(
            "/v1/sessions",
            json!({"agent": agent, "environment_id": environment, "title": "t", "metadata": {"k": "v"}}),
        )
        .await
        .ok();
    assert_eq!(created["status"], "idle");
    assert_eq!((created["title"].text(), &created["metadata"]), ("t".to_owned(), &json!({"k": "v"})));
    assert_eq!(created["environment_id"], environment.as_str());
    assert_eq!((created["resources"].clone(), created["budget"].clone()), (json!([]), Value::Null));
    api.post(&format!("/v1/agents/{agent}"), json!({"system": "new"})).await.ok();
    let path = format!("/v1/sessions/{}", created["id"].text());
    assert_eq!(api.get(&path).await.ok()["agent"], created["agent"]);

    let pinned = json!({"type": "agent", "id": agent, "version": 1});
    let pinned = api.post("/v1/sessions", json!({"agent": pinned, "environment_id": environment})).await.ok();
    assert_eq!((pinned["agent"]["version"].as_u64(), &pinned["agent"]["system"]), (Some(1), &Value::Null));
    let latest = api.post("/v1/sessions", json!({"agent": agent, "environment_id": environment})).await.ok();
    assert_eq!((latest["agent"]["version"].as_u64(), latest["agent"]["system"].text()), (Some(2), "new".to_owned()));
}

#[tokio::test]
async fn overrides_replace_clear_or_inherit() {
    let api = Api::start_without_replica().await;
    let environment = api.environment("cloud").await;
    let base = json!({"name": "a", "model": {"id": "demo", "effort": "low"}, "system": "s"});
    let agent = api.post("/v1/agents", base).await.ok()["id"].text();
    let overridden = |patch: Value| {
        let mut reference = json!({"type": "agent_with_overrides", "id": agent});
        reference.as_object_mut().unwrap().extend(patch.as_object().unwrap().clone());
        json!({"agent": reference, "environment_id": environment})
    };
    let inherited = api.post("/v1/sessions", overridden(json!({}))).await.ok();
    assert_eq!(inherited["agent"]["model"]["effort"]["type"], "low");
    let changed = overridden(json!({
        "model": {"id": "demo-large", "effort": "max"}, "system": null, "tools": [{"type": "agent_toolset_20260401"}],
    }));
    let changed = api.post("/v1/sessions", changed).await.ok();
    assert_eq!(changed["agent"]["model"]["id"], "demo-large");
    assert_eq!(changed["agent"]["model"]["effort"]["type"], "high", "an override's effort is not heeded");
    assert_eq!(changed["agent"]["system"], Value::Null);
    assert_eq!(changed["agent"]["tools"][0]["type"], "agent_toolset_20260401");
    assert_eq!((changed["agent"]["id"].text(), changed["agent"]["version"].as_u64()), (agent.clone(), Some(1)));

    let cleared = api.post("/v1/sessions", overridden(json!({"model": null}))).await;
    cleared.invalid();
    assert_eq!(cleared.code(), "agent_model_required");
}

#[tokio::test]
async fn updates_change_title_metadata_and_tools() {
    let api = Api::start_without_replica().await;
    let path = format!("/v1/sessions/{}", api.session("cloud").await);
    let update = json!({"title": "t", "metadata": {"a": "1", "b": "2"}, "agent": {"tools": []}});
    let updated = api.post(&path, update).await.ok();
    assert_eq!((updated["title"].text(), &updated["agent"]["tools"]), ("t".to_owned(), &json!([])));
    let updated = api.post(&path, json!({"title": null, "metadata": {"a": null}})).await.ok();
    assert_eq!((&updated["title"], &updated["metadata"]), (&Value::Null, &json!({"b": "2"})));
    let events = api.get(&format!("{path}/events")).await.ok();
    assert_eq!(events["data"].as_array().unwrap().len(), 2, "one session.updated for each effective change");
    for (body, named) in [
        (json!({"vault_ids": []}), "vault_ids"),
        (json!({"budget": {"type": "limit"}}), "budget"),
        (json!({"agent": {"system": "s"}}), "agent.system"),
        (json!({"status": "idle"}), "status"),
    ] {
        let message = api.post(&path, body.clone()).await.invalid();
        assert!(message.contains(named), "{body}: {message}");
    }
}

#[tokio::test]
async fn initial_events_start_the_session() {
    let api = Api::start_without_replica().await;
    let (agent, environment) = (api.agent().await, api.environment("cloud").await);
    let first = message("hello")["events"].clone();
    let body = json!({"agent": agent, "environment_id": environment, "initial_events": first});
    let session = api.post("/v1/sessions", body).await.ok();
    assert_eq!(session["status"], "running");
    let events = api.get(&format!("/v1/sessions/{}/events", session["id"].text())).await.ok();
    let message = events["data"].as_array().unwrap().last().unwrap().clone();
    assert_eq!((message["type"].text(), &message["processed_at"]), ("user.message".to_owned(), &Value::Null));

    let many: Vec<Value> = (0..51).map(|_| first[0].clone()).collect();
    for (initial, named) in [
        (json!(many), "at most 50"),
        (json!([{"type": "user.interrupt"}]), "initial_events[0].type"),
        (json!([first[0], {"type": "user.message", "content": []}]), "initial_events[1].content"),
    ] {
        let body = json!({"agent": agent, "environment_id": environment, "initial_events": initial});
        let message = api.post("/v1/sessions", body).await.invalid();
        assert!(message.contains(named), "{message}");
    }
}

#[tokio::test]
async fn what_no_session_can_have_is_refused_by_name() {
    let api = Api::start_without_replica().await;
    let (agent, environment) = (api.agent().await, api.environment("cloud").await);
    for (field, value) in [
        ("budget", json!({"type": "limit", "max_list_cost": {"amount": "1", "currency": "USD"}})),
        ("vault_ids", json!(["vlt_1"])),
        ("resources", json!([{"type": "github_repository", "url": "https://github.com/a/b"}])),
        ("resources", json!([{"type": "memory_store", "memory_store_id": "memstore_1"}])),
        ("model", json!("demo")),
    ] {
        let mut body = json!({"agent": agent, "environment_id": environment});
        body[field] = value;
        let message = api.post("/v1/sessions", body).await.invalid();
        assert!(message.starts_with(field), "{message}");
    }
    let unknown = api.post("/v1/sessions", json!({"agent": "agent_01nobody", "environment_id": environment})).await;
    unknown.error(404, "not_found_error");
    let unknown = api.post("/v1/sessions", json!({"agent": agent, "environment_id": "env_01nowhere"})).await;
    unknown.error(404, "not_found_error");
    assert_eq!(unknown.code(), "environment_not_found");
    let empty =
        json!({"agent": agent, "environment_id": environment, "budget": null, "vault_ids": [], "resources": []});
    api.post("/v1/sessions", empty).await.ok();
}

#[tokio::test]
async fn lists_page_both_ways_and_filter() {
    let api = Api::start_without_replica().await;
    let (agent, environment) = (api.agent().await, api.environment("cloud").await);
    let mut made = Vec::new();
    for _ in 0..5 {
        let body = json!({"agent": agent, "environment_id": environment});
        made.push(api.post("/v1/sessions", body).await.ok()["id"].text());
    }
    let ids = |page: &Value| -> Vec<String> {
        page["data"].as_array().unwrap().iter().map(|session| session["id"].text()).collect()
    };
    let first = api.get("/v1/sessions?order=asc&limit=2").await.ok();
    assert_eq!((ids(&first), &first["prev_page"]), (made[..2].to_vec(), &Value::Null));
    let second = api.get(&format!("/v1/sessions?order=asc&limit=2&page={}", first["next_page"].text())).await.ok();
    assert_eq!(ids(&second), made[2..4]);
    let third = api.get(&format!("/v1/sessions?order=asc&limit=2&page={}", second["next_page"].text())).await.ok();
    assert_eq!((ids(&third), &third["next_page"]), (made[4..].to_vec(), &Value::Null));
    let back = api.get(&format!("/v1/sessions?order=asc&limit=2&page={}", third["prev_page"].text())).await.ok();
    assert_eq!(ids(&back), made[2..4]);
    let front = api.get(&format!("/v1/sessions?order=asc&limit=2&page={}", back["prev_page"].text())).await.ok();
    assert_eq!((ids(&front), &front["prev_page"]), (made[..2].to_vec(), &Value::Null));

    let other_order = api.get(&format!("/v1/sessions?order=desc&page={}", first["next_page"].text())).await;
    assert!(other_order.invalid().contains("order"));
    let excluded =
        format!("/v1/sessions?order=asc&created_at[gt]=2199-01-01T00:00:00Z&page={}", first["next_page"].text());
    assert!(api.get(&excluded).await.invalid().contains("created_at"));

    assert_eq!(ids(&api.get(&format!("/v1/sessions?agent_id={agent}&agent_version=1&limit=1")).await.ok()).len(), 1);
    assert_eq!(ids(&api.get("/v1/sessions?agent_id=agent_01other").await.ok()).len(), 0);
    assert!(api.get("/v1/sessions?agent_version=1").await.invalid().contains("agent_id"));
    api.post(&format!("/v1/sessions/{}/archive", made[0]), json!({})).await.ok();
    assert_eq!(ids(&api.get("/v1/sessions").await.ok()).len(), 4);
    let both = "/v1/sessions?include_archived=true&statuses%5B%5D=terminated&statuses[]=running";
    assert_eq!(ids(&api.get(both).await.ok()), made[..1]);
    assert!(api.get("/v1/sessions?statuses=asleep").await.invalid().contains("statuses"));
}

#[tokio::test]
async fn archive_and_delete_are_refused_while_running() {
    let api = Api::start_without_replica().await;
    let session = api.session("cloud").await;
    let path = format!("/v1/sessions/{session}");
    api.say(&session, "hello").await.ok();
    api.post(&format!("{path}/archive"), json!({})).await.invalid();
    api.delete(&path).await.invalid();

    let session = api.session("cloud").await;
    let path = format!("/v1/sessions/{session}");
    let archived = api.post(&format!("{path}/archive"), json!({})).await.ok();
    assert_eq!(archived["status"], "terminated");
    assert_ne!(archived["archived_at"], Value::Null);
    let late = api.say(&session, "hello").await;
    assert!(late.status.is_client_error());
    assert_eq!(api.delete(&path).await.ok(), json!({"id": session, "type": "session_deleted"}));
    api.get(&path).await.error(404, "not_found_error");
    api.delete(&path).await.error(404, "not_found_error");
    api.say(&session, "hello").await.error(404, "not_found_error");
}

#[tokio::test]
async fn the_primary_thread_mirrors_the_session() {
    let api = Api::start_without_replica().await;
    let session = api.session("cloud").await;
    let path = format!("/v1/sessions/{session}/threads");
    let threads = api.get(&path).await.ok();
    let thread = threads["data"][0].clone();
    assert_eq!((threads["data"].as_array().unwrap().len(), &threads["next_page"]), (1, &Value::Null));
    assert_eq!((thread["parent_thread_id"].clone(), thread["session_id"].text()), (Value::Null, session.clone()));
    let id = thread["id"].text();
    let retrieved = api.get(&format!("{path}/{id}")).await.ok();
    assert_eq!((&retrieved["id"], &retrieved["status"]), (&thread["id"], &json!("idle")));
    assert_eq!(api.get(&format!("{path}?statuses[]=running")).await.ok()["data"], json!([]));
    assert_eq!(api.get(&format!("{path}/{id}/events")).await.ok()["data"], json!([]));
    assert!(api.get(&format!("{path}/{id}/events?order=asc")).await.invalid().contains("order"));
    assert!(api.post(&format!("{path}/{id}/archive"), json!({})).await.invalid().contains("primary"));
    api.get(&format!("{path}/sthr_01other")).await.error(404, "not_found_error");
}

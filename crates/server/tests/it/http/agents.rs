//! `/v1/agents`.

use serde_json::{Value, json};

use super::api::{Api, Text};

#[tokio::test]
async fn a_new_agent_is_shown_with_every_default_filled_in() {
    let api = Api::start_without_replica().await;
    let tools = json!([{
        "type": "agent_toolset_20260401",
        "configs": [
            {"name": "bash", "permission_policy": {"type": "always_ask"}},
            {"name": "web_search", "enabled": false},
        ],
    }]);
    let created = api
        .post("/v1/agents", json!({"name": "a", "model": "demo", "system": "", "tools": tools, "metadata": {"k": "v"}}))
        .await
        .ok();
    let expected = json!({
        "type": "agent",
        "id": created["id"],
        "version": 1,
        "name": "a",
        "description": null,
        "system": null,
        "model": {"id": "demo", "effort": {"type": "high"}, "speed": "standard", "inference_geo": null},
        "tools": [{
            "type": "agent_toolset_20260401",
            "default_config": {"enabled": true, "permission_policy": {"type": "always_allow"}},
            "configs": [
                {"type": "bash", "name": "bash", "enabled": true, "permission_policy": {"type": "always_ask"}},
                {"type": "web_search", "name": "web_search", "enabled": false,
                 "permission_policy": {"type": "always_allow"}},
            ],
        }],
        "mcp_servers": [],
        "skills": [],
        "multiagent": null,
        "execution_identity": {"type": "service_account"},
        "metadata": {"k": "v"},
        "created_at": created["created_at"],
        "updated_at": created["created_at"],
        "archived_at": null,
    });
    assert_eq!(created, expected);
    assert!(created["id"].text().starts_with("agent_01"));
    assert_eq!(api.get(&format!("/v1/agents/{}", created["id"].text())).await.ok(), expected);
}

#[tokio::test]
async fn an_update_makes_a_version_only_when_something_changes() {
    let api = Api::start_without_replica().await;
    let model = json!({"id": "demo", "effort": "low"});
    let created = api.post("/v1/agents", json!({"name": "a", "model": model, "system": "one"})).await.ok();
    let path = format!("/v1/agents/{}", created["id"].text());

    let second = api.post(&path, json!({"system": "two", "version": 1, "metadata": {"a": "1", "b": "2"}})).await.ok();
    assert_eq!((second["version"].as_u64(), second["system"].text()), (Some(2), "two".to_owned()));
    let same = api.post(&path, json!({"system": "two", "metadata": {"a": "1", "c": null}})).await.ok();
    assert_eq!(same["version"], 2, "nothing changed");

    let stale = api.post(&path, json!({"version": 1, "system": "two"})).await;
    stale.error(409, "conflict_error");
    assert_eq!(stale.headers["x-should-retry"], "false");

    let third = api.post(&path, json!({"system": null, "metadata": {"a": null}, "model": "demo"})).await.ok();
    assert_eq!(third["system"], Value::Null);
    assert_eq!(third["metadata"], json!({"b": "2"}));
    assert_eq!(third["model"]["effort"], json!({"type": "low"}), "the same model keeps its effort");
    let fourth = api.post(&path, json!({"model": "demo-large"})).await.ok();
    assert_eq!(fourth["model"]["effort"], json!({"type": "high"}), "another model gets its own default");

    assert_eq!(api.get(&format!("{path}?version=1")).await.ok()["system"], "one");
    api.get(&format!("{path}?version=9")).await.error(404, "not_found_error");
    let versions = api.get(&format!("{path}/versions?limit=3")).await.ok();
    let numbers: Vec<u64> =
        versions["data"].as_array().unwrap().iter().map(|v| v["version"].as_u64().unwrap()).collect();
    assert_eq!(numbers, [4, 3, 2]);
    let rest = api.get(&format!("{path}/versions?limit=3&page={}", versions["next_page"].text())).await.ok();
    assert_eq!((rest["data"][0]["version"].as_u64(), &rest["next_page"]), (Some(1), &Value::Null));
}

#[tokio::test]
async fn an_archived_agent_stays_readable_and_changes_no_more() {
    let api = Api::start_without_replica().await;
    let agent = api.agent().await;
    let path = format!("/v1/agents/{agent}");
    let archived = api.post(&format!("{path}/archive"), json!({})).await.ok();
    let again = api.call_as(super::api::API_KEY, axum::http::Method::POST, &format!("{path}/archive"), None).await.ok();
    assert_eq!(archived["archived_at"], again["archived_at"]);
    assert!(api.post(&path, json!({"name": "b"})).await.invalid().contains("archived"));
    assert_eq!(api.get("/v1/agents").await.ok()["data"], json!([]));
    assert_eq!(api.get("/v1/agents?include_archived=true").await.ok()["data"][0]["id"], agent.as_str());
    let environment = api.environment("cloud").await;
    let refused = api.post("/v1/sessions", json!({"agent": agent, "environment_id": environment})).await;
    assert!(refused.invalid().contains("archived"));
}

#[tokio::test]
async fn lists_are_paged_newest_first() {
    let api = Api::start_without_replica().await;
    let mut made = Vec::new();
    for _ in 0..5 {
        made.push(api.agent().await);
    }
    made.reverse();
    let mut listed = Vec::new();
    let mut path = "/v1/agents?limit=2".to_owned();
    loop {
        let page = api.get(&path).await.ok();
        listed.extend(page["data"].as_array().unwrap().iter().map(|agent| agent["id"].text()));
        assert!(page.get("prev_page").is_none());
        match &page["next_page"] {
            Value::Null => break,
            next => path = format!("/v1/agents?limit=2&page={}", next.text()),
        }
    }
    assert_eq!(listed, made);
    let future = api.get("/v1/agents?created_at[gte]=2199-01-01T00:00:00Z").await.ok();
    assert_eq!(future["data"], json!([]));
}

#[tokio::test]
async fn what_no_agent_can_be_is_refused_by_name() {
    let api = Api::start_without_replica().await;
    let custom = |patch: Value| {
        let mut tool = json!({"type": "custom", "name": "t", "description": "d", "input_schema": {"type": "object"}});
        tool.as_object_mut().unwrap().extend(patch.as_object().unwrap().clone());
        json!({"tools": [tool]})
    };
    let toolset = |configs: Value| json!({"tools": [{"type": "agent_toolset_20260401", "configs": configs}]});
    let cases = [
        (json!({"name": ""}), "name"),
        (json!({"name": "n".repeat(257)}), "name"),
        (json!({"name": null}), "name"),
        (json!({"model": 7}), "model"),
        (json!({"model": {"id": "demo", "effort": "huge"}}), "model.effort"),
        (json!({"model": {"id": "demo", "temperature": 1}}), "model.temperature"),
        (json!({"model": {"id": "demo", "speed": "fast"}}), "model.speed"),
        (json!({"model": "gpt-unheard-of"}), "model: no provider"),
        (json!({"system": "s".repeat(100_001)}), "system"),
        (json!({"descripton": "d"}), "did you mean description?"),
        (json!({"mcp_servers": [{"type": "url", "name": "m", "url": "https://m"}]}), "mcp_servers"),
        (json!({"skills": [{"type": "anthropic", "skill_id": "pdf"}]}), "skills"),
        (json!({"multiagent": {"type": "coordinator", "agents": []}}), "multiagent"),
        (json!({"execution_identity": {"type": "aws_role", "role_arn": "arn"}}), "execution_identity.type"),
        (json!({"metadata": {"k": 1}}), "metadata.k"),
        (json!({"metadata": {"k": "v".repeat(513)}}), "metadata"),
        (json!({"tools": {}}), "tools"),
        (json!({"tools": [{"type": "mcp_toolset", "mcp_server_name": "m"}]}), "tools[0].type"),
        (toolset(json!([{"name": "web_search"}])), "web_search does not exist yet"),
        (toolset(json!([{"name": "bash", "permission_policy": {"type": "auto"}}])), "permission_policy.type"),
        (toolset(json!([{"name": "bash"}, {"name": "bash"}])), "configs[1].name"),
        (toolset(json!([{"name": "bash", "type": "read"}])), "configs[0].type"),
        (toolset(json!([{"name": "sh"}])), "tools[0].configs[0].name"),
        (custom(json!({"name": "bash"})), "tools[0].name"),
        (custom(json!({"name": "mcp__x"})), "tools[0].name"),
        (custom(json!({"name": "a b"})), "tools[0].name"),
        (custom(json!({"description": " "})), "tools[0].description"),
        (custom(json!({"input_schema": {"type": "array"}})), "input_schema.type"),
        (custom(json!({"input_schema": {"type": "object", "oneOf": []}})), "input_schema.oneOf"),
        (
            custom(json!({"input_schema": {"type": "object", "properties": {"a": {"$ref": "#"}}}})),
            "input_schema.properties.a.$ref",
        ),
        (custom(json!({"input_schema": {"type": "object", "properties": {"a b": {}}}})), "a b"),
    ];
    for (patch, named) in cases {
        let mut body = json!({"name": "n", "model": "demo"});
        body.as_object_mut().unwrap().extend(patch.as_object().unwrap().clone());
        let message = api.post("/v1/agents", body).await.invalid();
        assert!(message.contains(named), "{patch}: {message}");
    }
    let plain = json!({"type": "object", "properties": {"anyOf": {"enum": [{"$ref": "x"}]}}});
    let allowed = json!({"type": "custom", "name": "t", "description": "d", "input_schema": plain});
    api.post("/v1/agents", json!({"name": "n", "model": "demo", "tools": [allowed]})).await.ok();
}

//! `/v1/environments`.

use serde_json::{Value, json};

use super::api::{Api, Text};

#[tokio::test]
async fn a_cloud_environment_from_birth_to_archive() {
    let api = Api::start_without_replica().await;
    let created = api.post("/v1/environments", json!({"name": "e"})).await.ok();
    let path = format!("/v1/environments/{}", created["id"].text());
    let packages = json!({"type": "packages", "apt": [], "cargo": [], "gem": [], "go": [], "npm": [], "pip": []});
    assert_eq!(
        created["config"],
        json!({"type": "cloud", "networking": {"type": "unrestricted"}, "packages": packages})
    );
    let limited = json!({"type": "limited", "allowed_hosts": ["*.Example.com"]});
    let updated = api
        .post(
            &path,
            json!({"config": {"type": "cloud", "networking": limited}, "metadata": {"a": "1"}, "description": ""}),
        )
        .await
        .ok();
    assert_eq!(
        updated["config"]["networking"],
        json!({"type": "limited", "allowed_hosts": ["*.example.com"], "allow_mcp_servers": false,
               "allow_package_managers": false})
    );
    assert_eq!(updated["description"], "");
    let limited = json!({"type": "limited", "allow_package_managers": true});
    let kept =
        api.post(&path, json!({"config": {"type": "cloud", "networking": limited}, "metadata": {"a": ""}})).await.ok();
    assert_eq!(kept["config"]["networking"]["allowed_hosts"], json!(["*.example.com"]));
    assert_eq!(kept["metadata"], json!({}));

    let changed = api.post(&path, json!({"config": {"type": "self_hosted"}})).await;
    changed.invalid();
    assert_eq!(changed.code(), "invalid_config_type_change");

    let archived = api.post(&format!("{path}/archive"), json!({})).await.ok();
    assert_ne!(archived["archived_at"], Value::Null);
    let refused = api.post(&path, json!({"name": "f"})).await;
    refused.invalid();
    assert_eq!(refused.code(), "environment_archived");
    let agent = api.agent().await;
    let session = api.post("/v1/sessions", json!({"agent": agent, "environment_id": created["id"]})).await;
    session.invalid();
    assert_eq!(session.code(), "environment_archived");
}

#[tokio::test]
async fn names_are_unique_while_active() {
    let api = Api::start_without_replica().await;
    let first = api.post("/v1/environments", json!({"name": "e"})).await.ok();
    let twin = api.post("/v1/environments", json!({"name": "e"})).await;
    twin.error(409, "conflict_error");
    assert_eq!(twin.headers["x-should-retry"], "false");
    api.post(&format!("/v1/environments/{}/archive", first["id"].text()), json!({})).await.ok();
    api.post("/v1/environments", json!({"name": "e"})).await.ok();
}

#[tokio::test]
async fn an_environment_in_use_is_not_deleted() {
    let api = Api::start_without_replica().await;
    let (agent, environment) = (api.agent().await, api.environment("self_hosted").await);
    let path = format!("/v1/environments/{environment}");
    let session = api.post("/v1/sessions", json!({"agent": agent, "environment_id": environment})).await.ok();
    api.delete(&path).await.error(409, "conflict_error");
    api.delete(&format!("/v1/sessions/{}", session["id"].text())).await.ok();
    assert_eq!(api.delete(&path).await.ok(), json!({"id": environment, "type": "environment_deleted"}));
    let gone = api.get(&path).await;
    gone.error(404, "not_found_error");
    assert_eq!(gone.code(), "environment_not_found");
}

#[tokio::test]
async fn what_no_environment_can_be_is_refused_by_name() {
    let api = Api::start_without_replica().await;
    let cloud = |patch: Value| {
        let mut config = json!({"type": "cloud"});
        config.as_object_mut().unwrap().extend(patch.as_object().unwrap().clone());
        json!({"config": config})
    };
    let cases = [
        (json!({"name": 1}), "name"),
        (json!({"config": {"type": "vm"}}), "config.type"),
        (json!({"config": {"type": "self_hosted", "networking": {}}}), "config.networking"),
        (json!({"scope": "account"}), "scope"),
        (cloud(json!({"packages": {"pip": ["numpy"]}})), "config.packages.pip"),
        (cloud(json!({"networking": {"type": "limited", "allowed_hosts": ["https://x.com"]}})), "allowed_hosts[0]"),
        (cloud(json!({"networking": {"type": "limited", "allowed_hosts": "x.com"}})), "allowed_hosts"),
        (cloud(json!({"networking": {"type": "unrestricted", "allowed_hosts": []}})), "allowed_hosts"),
    ];
    for (patch, named) in cases {
        let mut body = json!({"name": "n"});
        body.as_object_mut().unwrap().extend(patch.as_object().unwrap().clone());
        let message = api.post("/v1/environments", body).await.invalid();
        assert!(message.contains(named), "{patch}: {message}");
    }
    let pairs: serde_json::Map<String, Value> = (0..17).map(|n| (format!("k{n}"), json!("v"))).collect();
    let crowded = api.post("/v1/environments", json!({"name": "n", "metadata": pairs})).await;
    crowded.invalid();
    assert_eq!(crowded.code(), "invalid_metadata");
}

#[tokio::test]
async fn package_managers_are_allowed_where_the_operator_named_their_hosts() {
    let api = Api::start_without_replica().await.without_package_hosts();
    let limited = json!({"type": "limited", "allow_package_managers": true});
    let config = json!({"config": {"type": "cloud", "networking": limited}});
    let mut body = config.clone();
    body["name"] = json!("n");
    let message = api.post("/v1/environments", body).await.invalid();
    assert!(message.starts_with("config.networking.allow_package_managers: "), "{message}");
    assert!(message.contains("worker.network.package_hosts") && message.contains("allowed_hosts"), "{message}");
    let path = format!("/v1/environments/{}", api.environment("cloud").await);
    assert_eq!(api.post(&path, config).await.invalid(), message);
    // What is stored already does not stand in the way of other changes.
    api.post(&path, json!({"config": {"type": "cloud", "networking": {"type": "limited"}}})).await.ok();
}

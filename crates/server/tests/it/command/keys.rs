//! `keys` and `migrate`, beside a server that runs on the same folder.

use serde_json::json;

use super::process::{Server, run, stderr, stdout};

#[test]
fn a_key_opens_its_environment_until_it_is_revoked() {
    let folder = tempfile::tempdir().unwrap();
    let data_dir = folder.path().join("data");
    let server = Server::start(&data_dir, |command| {
        command.env("AGENT_API_KEY", "sk-of-this-test");
    });
    let made =
        server.post("/v1/environments", "sk-of-this-test", &json!({"name": "e", "config": {"type": "self_hosted"}}));
    let environment = made["id"].as_str().unwrap();
    let keys = |arguments: &[&str]| {
        let mut all = vec!["keys", "--data-dir", data_dir.to_str().unwrap()];
        all.extend_from_slice(arguments);
        run(&all)
    };

    let output = keys(&["create", "--environment", environment]);
    assert!(output.status.success(), "{}", stderr(&output));
    let key = stdout(&output).trim().to_owned();
    assert!(key.starts_with("sk-ant-oat01-") && key.len() > 40, "{key}");
    let stats = format!("{}/v1/environments/{environment}/work/stats", server.url);
    assert_eq!(server.get(&stats, &key).0, 200);

    let list = keys(&["list", "--environment", environment]);
    assert!(!stdout(&list).contains(&key), "a key is shown once");
    let id = stdout(&list).split_whitespace().next().unwrap().to_owned();
    assert!(id.starts_with("envkey_"), "{id}");
    assert_eq!(stdout(&keys(&["revoke", &id])), format!("{id} revoked\n"));
    assert_eq!(server.get(&stats, &key).0, 401);
    assert!(stdout(&keys(&["list", "--environment", environment])).contains(" revoked "));
}

#[test]
fn keys_are_for_self_hosted_environments_that_exist() {
    let folder = tempfile::tempdir().unwrap();
    let data_dir = folder.path().join("data");
    let data_dir_text = data_dir.to_str().unwrap().to_owned();
    let server = Server::start(&data_dir, |command| {
        command.env("AGENT_API_KEY", "sk-of-this-test");
    });
    let made = server.post("/v1/environments", "sk-of-this-test", &json!({"name": "e", "config": {"type": "cloud"}}));
    let cloud = made["id"].as_str().unwrap();
    let cases = [
        (vec!["create", "--environment", "env_none"], "agent-service: there is no environment env_none\n".to_owned()),
        (
            vec!["create", "--environment", cloud],
            format!(
                "agent-service: environment {cloud} is of type cloud, whose workers share the server's worker key: \
                 set AGENT_WORKER_KEY\n"
            ),
        ),
        (
            vec!["revoke", "envkey_none"],
            "agent-service: there is no key envkey_none: `keys list` shows those there are\n".to_owned(),
        ),
    ];
    for (arguments, expected) in cases {
        let mut all = vec!["keys", "--data-dir", &data_dir_text];
        all.extend(arguments);
        let output = run(&all);
        assert_eq!((output.status.code(), stderr(&output)), (Some(1), expected.as_str()));
    }
}

#[test]
fn migrate_says_what_was_applied() {
    let folder = tempfile::tempdir().unwrap();
    let data_dir = folder.path().join("data");
    let data_dir = data_dir.to_str().unwrap();
    let before = run(&["migrate", "--status", "--data-dir", data_dir]);
    assert_eq!(before.status.code(), Some(1), "{}", stdout(&before));
    assert!(stdout(&before).starts_with("0001 missing "), "{}", stdout(&before));
    let output = run(&["migrate", "--data-dir", data_dir]);
    assert!(output.status.success() && stdout(&output).starts_with("0001 applied "), "{}", stdout(&output));
    assert_eq!(run(&["migrate", "--status", "--data-dir", data_dir]).status.code(), Some(0));
}

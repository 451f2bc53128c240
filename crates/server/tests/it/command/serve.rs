//! `serve`: what it says, what it keeps, what it measures, and how it leaves.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::process::Signal;
use serde_json::{Value, json};

use super::process::{Server, agent_service, block_on, stderr};

pub(super) const KEY: &str = "sk-of-this-test";

/// A server whose key is known.
pub(super) fn with_key(data_dir: &Path) -> Server {
    Server::start(data_dir, |command| {
        command.env("AGENT_API_KEY", KEY);
    })
}

/// A session on the scripted model.
pub(super) fn open_session(server: &Server) -> String {
    let agent = server.post("/v1/agents", KEY, &json!({"name": "a", "model": "demo"}));
    static OPENED: AtomicU32 = AtomicU32::new(0);
    let name = format!("e{}", OPENED.fetch_add(1, Ordering::Relaxed));
    let environment = server.post("/v1/environments", KEY, &json!({"name": name, "config": {"type": "self_hosted"}}));
    let body = json!({"agent": agent["id"], "environment_id": environment["id"]});
    server.post("/v1/sessions", KEY, &body)["id"].as_str().expect("a session").to_owned()
}

pub(super) fn say(server: &Server, session: &str, text: &str) {
    let event = json!({"type": "user.message", "content": [{"type": "text", "text": text}]});
    server.post(&format!("/v1/sessions/{session}/events"), KEY, &json!({"events": [event]}));
}

/// Follows a session until an event of this type, and reads nothing further; `None` if the stream ends before.
pub(super) async fn follow_to(server: &Server, session: &str, kind: &str) -> Option<reqwest::Response> {
    read_to(follow(server, session).await, kind).await
}

/// Follows a session from now on.
pub(super) async fn follow(server: &Server, session: &str) -> reqwest::Response {
    let url = format!("{}/v1/sessions/{session}/events/stream", server.url);
    reqwest::Client::new().get(url).header("x-api-key", KEY).send().await.unwrap()
}

/// Reads a stream until an event of this type, and nothing further; `None` if it ends before.
pub(super) async fn read_to(mut response: reqwest::Response, kind: &str) -> Option<reqwest::Response> {
    let mut text = String::new();
    while !text.contains(&format!("event: {kind}\n")) {
        let chunk = response.chunk().await.unwrap()?;
        text.push_str(std::str::from_utf8(&chunk).unwrap());
    }
    Some(response)
}

#[test]
fn the_key_that_is_made_is_kept_shown_and_works() {
    let folder = tempfile::tempdir().unwrap();
    let data_dir = folder.path().join("data");
    let server = Server::start(&data_dir, |_| {});
    assert_eq!(std::fs::metadata(&data_dir).unwrap().permissions().mode() & 0o777, 0o700);
    let path = data_dir.join("api-key");
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let key = std::fs::read_to_string(&path).unwrap().trim().to_owned();
    assert!(server.welcome.contains(&key), "{}", server.welcome);
    let models = format!("{}/v1/models", server.url);
    assert_eq!((server.get(&models, &key).0, server.get(&models, "sk-other").0), (200, 401));

    server.signal(Signal::TERM);
    assert_eq!(server.wait().0, Some(0));
    let again = Server::start(&data_dir, |_| {});
    assert_eq!(again.get(&format!("{}/v1/models", again.url), &key).0, 200);
}

#[test]
fn json_logs_are_all_there_is_on_standard_output_and_hold_no_key() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&folder.path().join("data"), |command| {
        command.env("LOG_FORMAT", "json").env("AGENT_TRACK", "canary");
    });
    let key = std::fs::read_to_string(folder.path().join("data/api-key")).unwrap();
    let welcome = server.welcome.clone();
    server.signal(Signal::TERM);
    let (code, rest) = server.wait();
    assert_eq!(code, Some(0));
    for line in welcome.lines().chain(rest.lines()) {
        let line: Value = serde_json::from_str(line).unwrap();
        assert!(line["ts"].is_string() && line["level"].is_string() && line["msg"].is_string(), "{line}");
        assert_eq!((&line["track"], &line["version"]), (&json!("canary"), &json!(env!("CARGO_PKG_VERSION"))));
    }
    assert!(!welcome.contains(key.trim()));
}

#[test]
fn a_folder_has_one_server() {
    let folder = tempfile::tempdir().unwrap();
    let data_dir = folder.path().join("data");
    let _first = with_key(&data_dir);
    let arguments = ["--port", "0", "--metrics-port", "0", "--data-dir", data_dir.to_str().unwrap()];
    let output = agent_service(&arguments).env("AGENT_API_KEY", KEY).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let expected = format!("agent-service: the data folder {} is in use by another process\n", data_dir.display());
    assert_eq!(stderr(&output), expected);
}

#[test]
fn the_metrics_count_what_happened() {
    let folder = tempfile::tempdir().unwrap();
    let server = with_key(&folder.path().join("data"));
    let session = open_session(&server);
    block_on(async {
        let following = follow_to(&server, &session, "session.status_idle");
        let speaking = async {
            let event = json!({"type": "user.message", "content": [{"type": "text", "text": "!say hello"}]});
            let url = format!("{}/v1/sessions/{session}/events", server.url);
            let request = reqwest::Client::new().post(url).header("x-api-key", KEY).json(&json!({"events": [event]}));
            request.send().await.unwrap();
        };
        // The stream is polled first, and so is open before the message is sent.
        tokio::join!(biased; following, speaking);
    });
    assert_eq!(server.get(&format!("{}/metrics", server.url), KEY).0, 404, "metrics are never on the API's port");
    assert_eq!(server.get(&format!("{}/v1/models", server.metrics_url.trim_end_matches("/metrics")), KEY).0, 404);

    let (status, text) = server.get(&server.metrics_url, "");
    assert_eq!(status, 200);
    for line in [
        "agent_sessions_created_total{track=\"stable\"} 1",
        "agent_turns_started_total{track=\"stable\",source=\"user\"} 1",
        "agent_turns_total{track=\"stable\",outcome=\"completed\"} 1",
        "agent_turns_total{track=\"stable\",outcome=\"failed\"} 0",
        "agent_errors_total{track=\"stable\",class=\"internal\"} 0",
        "agent_turn_iterations_count{track=\"stable\"} 1",
        "agent_dependency_up{track=\"stable\",dependency=\"database\"} 1",
        "agent_draining{track=\"stable\"} 0",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is missing in\n{text}");
    }
    assert!(!text.contains("sesn_") && !text.contains("hello"), "a label holds an id or a text");
    check_with_promtool(&text);
    assert_eq!(documented(), exposed(&text), "docs/reference/metrics.md and the server differ");

    let openmetrics = block_on(async {
        let request = reqwest::Client::new().get(&server.metrics_url).header("accept", "application/openmetrics-text");
        request.send().await.unwrap().text().await.unwrap()
    });
    assert!(openmetrics.ends_with("# EOF\n"), "{openmetrics}");
}

/// Name and type of every metric in the reference.
fn documented() -> BTreeSet<(String, String)> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/reference/metrics.md");
    let page = std::fs::read_to_string(path).unwrap();
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `"));
    rows.map(|row| {
        let mut cells = row.split('|').map(|cell| cell.trim().trim_end_matches('`').to_owned());
        (cells.next().unwrap(), cells.next().unwrap())
    })
    .collect()
}

/// Name and type of every metric that the server exposes.
fn exposed(text: &str) -> BTreeSet<(String, String)> {
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    types.map(|(name, kind)| (name.to_owned(), kind.to_owned())).collect()
}

/// Lets `promtool`, where it is installed, look at the exposition. `agent_active_count` has its name from the first
/// deployments, whose autoscalers use it, so promtool's objection to the suffix is the one that is expected.
fn check_with_promtool(exposition: &str) {
    use std::io::Write as _;
    use std::process::{Command, Stdio};
    let spawned = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut promtool = match spawned {
        Ok(promtool) => promtool,
        Err(_) if std::env::var_os("CI").is_none() => return eprintln!("promtool is not installed: not checked"),
        Err(error) => panic!("promtool: {error}"),
    };
    promtool.stdin.take().unwrap().write_all(exposition.as_bytes()).unwrap();
    let output = promtool.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8(said).unwrap();
    let objections: Vec<_> = said.lines().filter(|line| !line.starts_with("agent_active_count ")).collect();
    assert_eq!(objections, Vec::<&str>::new());
}

//! How a server leaves: signals, what it finishes, what it hands over, and to whom.

use std::path::Path;
use std::process::Command;

use rustix::process::Signal;
use serde_json::{Value, json};
use store::testing::{Cluster, Database};

use super::process::{Server, block_on};
use super::serve::{KEY, follow, open_session, read_to, say, with_key};

/// A replica on a shared database.
fn replica(folder: &Path, name: &str, database: &Database, more: impl FnOnce(&mut Command)) -> Server {
    Server::start(&folder.join(name), |command| {
        command.env("AGENT_API_KEY", KEY).env("POSTGRES_URL", &database.url);
        more(command);
    })
}

/// The types of a session's events, as another server lists them.
fn kinds(server: &Server, session: &str) -> Vec<String> {
    let (_, events) = server.get(&format!("{}/v1/sessions/{session}/events?limit=1000", server.url), KEY);
    let events: Value = serde_json::from_str(&events).unwrap();
    events["data"].as_array().unwrap().iter().map(|event| event["type"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn sigterm_ends_streams_and_keeps_what_was_acknowledged() {
    let folder = tempfile::tempdir().unwrap();
    let data_dir = folder.path().join("data");
    let server = with_key(&data_dir);
    let session = open_session(&server);
    let ended = block_on(async {
        let stream = tokio::spawn({
            let url = format!("{}/v1/sessions/{session}/events/stream", server.url);
            let mut response = reqwest::Client::new().get(url).header("x-api-key", KEY).send().await.unwrap();
            async move {
                let mut text = String::new();
                // An error here would be a stream that was cut, not ended.
                while let Some(chunk) = response.chunk().await.unwrap() {
                    text.push_str(std::str::from_utf8(&chunk).unwrap());
                }
                text
            }
        });
        server.signal(Signal::TERM);
        stream.await.unwrap()
    });
    assert!(ended.ends_with("retry: 500\n\n") && !ended.contains("event: error"), "{ended}");
    let (code, rest) = server.wait();
    assert_eq!(code, Some(0), "{rest}");

    let again = with_key(&data_dir);
    assert_eq!(again.get(&format!("{}/v1/sessions/{session}", again.url), KEY).0, 200);
}

#[test]
fn a_drain_lets_the_turn_finish() {
    let folder = tempfile::tempdir().unwrap();
    let data_dir = folder.path().join("data");
    let server = with_key(&data_dir);
    let session = open_session(&server);
    block_on(async {
        let stream = follow(&server, &session).await;
        let speaking = tokio::task::spawn_blocking({
            let (url, session) = (server.url.clone(), session.clone());
            move || {
                let event =
                    json!({"type": "user.message", "content": [{"type": "text", "text": "!wait 700\n!say done"}]});
                let body = json!({"events": [event]});
                block_on(async {
                    let url = format!("{url}/v1/sessions/{session}/events");
                    reqwest::Client::new().post(url).header("x-api-key", KEY).json(&body).send().await.unwrap();
                });
            }
        });
        let _stream = read_to(stream, "span.model_request_start").await;
        speaking.await.unwrap();
        server.signal(Signal::TERM);
        // While it drains it lives, answers, and wants nothing new.
        let health = reqwest::get(format!("{}/health", server.url)).await.unwrap();
        assert_eq!(health.status(), 200);
    });
    assert_eq!(server.wait().0, Some(0));
    let again = with_key(&data_dir);
    let (_, events) = again.get(&format!("{}/v1/sessions/{session}/events", again.url), KEY);
    let events: Value = serde_json::from_str(&events).unwrap();
    let kinds: Vec<_> =
        events["data"].as_array().unwrap().iter().map(|event| event["type"].as_str().unwrap()).collect();
    assert_eq!(kinds.iter().filter(|kind| **kind == "span.model_request_start").count(), 1, "{kinds:?}");
    assert_eq!(kinds.last(), Some(&"session.status_idle"), "{kinds:?}");
}

#[test]
fn a_second_signal_and_sigquit_do_not_wait_for_the_turn() {
    for hurry in [Signal::TERM, Signal::QUIT] {
        let folder = tempfile::tempdir().unwrap();
        let server = Server::start(&folder.path().join("data"), |command| {
            command.env("AGENT_API_KEY", KEY).args(["--drain-timeout", "5s"]);
        });
        let session = open_session(&server);
        say(&server, &session, "!wait 600000\n!say too late");
        // A turn that has not begun is handed over at once, and then nothing keeps the server.
        let events = format!("{}/v1/sessions/{session}/events", server.url);
        while !server.get(&events, KEY).1.contains("span.model_request_start") {}
        server.signal(Signal::TERM);
        while server.get(&format!("{}/ready", server.url), KEY).0 != 503 {}
        server.signal(hurry);
        let (code, said) = server.wait();
        if hurry == Signal::QUIT {
            assert_eq!(code, Some(131), "{said}");
            continue;
        }
        assert_eq!(code, Some(0), "{said}");
        let order: Vec<_> = ["told to hurry", "waits for the answers of models", "are cut", "drained"]
            .map(|text| said.find(text).unwrap_or_else(|| panic!("{text} is missing in {said}")))
            .into();
        assert!(order.is_sorted(), "{said}");
        // The next start asks again.
        let again = with_key(&folder.path().join("data"));
        while kinds(&again, &session).iter().filter(|kind| *kind == "span.model_request_start").count() < 2 {}
    }
}

#[test]
fn a_grace_period_that_the_drain_does_not_fit_into_is_told() {
    let folder = tempfile::tempdir().unwrap();
    for (grace, fits) in [("19s", false), ("30s", true)] {
        let server = Server::start(&folder.path().join("data"), |command| {
            command.env("AGENT_API_KEY", KEY).env("AGENT_TERMINATION_GRACE", grace);
        });
        assert_eq!(!server.welcome.contains("server.termination_grace is"), fits, "{}", server.welcome);
    }
}

#[test]
fn a_replica_that_leaves_hands_its_turns_to_another() {
    let Some(cluster) = block_on(Cluster::shared()) else { return };
    let database = block_on(cluster.database());
    let folder = tempfile::tempdir().unwrap();
    let first = replica(folder.path(), "first", &database, |command| {
        command.args(["--drain-timeout", "1s"]);
    });
    let second = replica(folder.path(), "second", &database, |_| {});
    let (waits, calls) = (open_session(&first), open_session(&first));
    // The first model request outlasts the drain, the second ends within it and leads to another.
    say(&first, &waits, "!wait 4000\n!say done");
    say(&first, &calls, "!wait 300\n!tool nonsense {}\n---\n!say done");
    for session in [&waits, &calls] {
        while !kinds(&first, session).iter().any(|kind| kind == "span.model_request_start") {}
    }
    let streamed = block_on(async {
        let url = format!("{}/v1/sessions/{waits}/events/stream", first.url);
        let stream = reqwest::Client::new().get(url).header("x-api-key", KEY).send().await.unwrap();
        first.signal(Signal::TERM);
        // A stream that was cut, not ended, would be an error here.
        stream.text().await.unwrap()
    });
    assert!(streamed.ends_with("retry: 500\n\n") && !streamed.contains("event: error"), "{streamed}");
    let (code, said) = first.wait();
    assert_eq!(code, Some(0), "{said}");

    for (session, requests, rescheduled) in [(&waits, 2, 1), (&calls, 2, 0)] {
        while kinds(&second, session).last().map(String::as_str) != Some("session.status_idle") {}
        let kinds = kinds(&second, session);
        let count = |wanted: &str| kinds.iter().filter(|kind| *kind == wanted).count();
        assert_eq!(
            (count("span.model_request_start"), count("session.status_rescheduled"), count("session.error")),
            (requests, rescheduled, 0),
            "{kinds:?}"
        );
    }
    let metrics = second.get(&second.metrics_url, "").1;
    assert!(metrics.contains("agent_turns_resumed_total{track=\"stable\",reason=\"crash\"} 0"), "{metrics}");
}

//! `/health` and `/ready` while the database is there, is away, and comes back: at the start, at work, in a drain.

use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};
use store::testing::Cluster;

use super::process::{Server, run, stderr};
use super::serve::{KEY, open_session, say};

/// A client that waits no longer than this counts as left hanging.
const PATIENCE: Duration = Duration::from_secs(4);

/// What a client gets: status, `retry-after`, `connection`, body.
#[derive(Debug)]
struct Answer {
    status: u16,
    retry_after: Option<String>,
    closes: bool,
    body: Value,
}

async fn ask(request: reqwest::RequestBuilder) -> Answer {
    let response = request.header("x-api-key", KEY).timeout(PATIENCE).send().await.expect("an answer, and in time");
    let header = |name: &str| response.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
    Answer {
        status: response.status().as_u16(),
        retry_after: header("retry-after"),
        closes: header("connection").as_deref() == Some("close"),
        body: response.json().await.unwrap(),
    }
}

async fn get(server: &Server, path: &str) -> Answer {
    ask(reqwest::Client::new().get(format!("{}{path}", server.url))).await
}

/// A message to a session: the start of a turn.
async fn start_turn(server: &Server, session: &str) -> Answer {
    let event = json!({"type": "user.message", "content": [{"type": "text", "text": "!say hello"}]});
    let url = format!("{}/v1/sessions/{session}/events", server.url);
    ask(reqwest::Client::new().post(url).json(&json!({"events": [event]}))).await
}

/// Waits until `/ready` names exactly these as degraded.
async fn until_degraded(server: &Server, expected: &[&str]) -> Answer {
    loop {
        let ready = get(server, "/ready").await;
        if ready.body["degraded"] == json!(expected) {
            return ready;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_database_may_be_away_at_the_start_at_work_and_in_a_drain() {
    let Some(cluster) = Cluster::start(false).await else { return };
    let database = cluster.database().await;
    let folder = tempfile::tempdir().unwrap();

    cluster.stop().await;
    let server = tokio::task::block_in_place(|| {
        Server::start_waiting(&folder.path().join("data"), |command| {
            command.env("AGENT_API_KEY", KEY).env("POSTGRES_URL", &database.url).args(["--drain-timeout", "8s"]);
        })
    });
    assert_eq!(get(&server, "/health").await.status, 200);
    let ready = get(&server, "/ready").await;
    assert_eq!((ready.status, &ready.body["degraded"]), (503, &json!(["database"])), "{ready:?}");
    let refused = get(&server, "/v1/sessions").await;
    assert_eq!((refused.status, refused.retry_after.as_deref()), (503, Some("1")), "{refused:?}");

    cluster.resume().await;
    while get(&server, "/ready").await.status != 200 {}
    let session = tokio::task::block_in_place(|| open_session(&server));

    cluster.stop().await;
    // The first ones may still wait for a connection; each is answered.
    while start_turn(&server, &session).await.status != 503 {}
    let ready = until_degraded(&server, &["database"]).await;
    assert_eq!((ready.status, get(&server, "/health").await.status), (200, 200), "all would be unready at once");
    let refused = start_turn(&server, &session).await;
    assert_eq!((refused.status, refused.retry_after.as_deref()), (503, Some("1")), "{refused:?}");
    assert_eq!(get(&server, "/v1/models").await.status, 200, "what needs no database is answered");
    let metrics = reqwest::get(&server.metrics_url).await.unwrap().text().await.unwrap();
    assert!(metrics.contains("agent_dependency_up{track=\"stable\",dependency=\"database\"} 0"), "{metrics}");
    assert!(!metrics.contains("agent_admission_rejections_total{track=\"stable\",reason=\"dependency\"} 0"));

    cluster.resume().await;
    until_degraded(&server, &[]).await;
    while start_turn(&server, &session).await.status != 200 {}

    tokio::task::block_in_place(|| say(&server, &session, "!wait 600000\n!say too late"));
    cluster.stop().await;
    until_degraded(&server, &["database"]).await;
    server.signal(Signal::TERM);
    while get(&server, "/ready").await.status != 503 {}
    let (health, refused) = (get(&server, "/health").await, start_turn(&server, &session).await);
    assert_eq!((health.status, health.closes), (200, true));
    assert_eq!((refused.status, refused.retry_after.as_deref(), refused.closes), (503, Some("1"), true));
    let (code, said) = tokio::task::block_in_place(|| server.wait());
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("the replica could not say goodbye"), "{said}");
}

#[test]
fn a_process_that_is_stuck_is_not_healthy() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&folder.path().join("data"), |_| {});
    let port = server.url.rsplit_once(':').unwrap().1.to_owned();
    // Nothing of it runs any more, while the kernel still takes connections for it.
    server.signal(Signal::STOP);
    let output = run(&["healthcheck", "--port", &port]);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    server.signal(Signal::CONT);
    assert_eq!(run(&["healthcheck", "--port", &port]).status.code(), Some(0));
}

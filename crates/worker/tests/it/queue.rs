//! The claim loop against a scripted server: leases, failures, reconnects, interrupts.

use serde_json::{Value, json};
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use worker::{Secret, WorkerConfig, WorkerError};

use crate::server::{KEY, Server, TOKEN, tool_use};
use crate::support::{Place, SESSION, is_alive};

struct Running {
    server: Server,
    place: Place,
    shutdown: CancellationToken,
    task: JoinHandle<Result<(), WorkerError>>,
}

fn config(place: &Place, url: &str) -> WorkerConfig {
    let mut config = WorkerConfig::new(url.parse().unwrap(), Secret::new(KEY), "w-1", place.config.clone());
    config.lease_ttl_seconds = 3;
    config
}

async fn start_with(change: impl FnOnce(&mut WorkerConfig)) -> Running {
    let (server, url) = Server::start().await;
    let place = Place::new();
    let mut config = config(&place, &url);
    change(&mut config);
    let shutdown = CancellationToken::new();
    let mut task = tokio::spawn(worker::run(config, shutdown.clone()));
    tokio::select! {
        result = &mut task => panic!("the worker does not run: {}", result.unwrap().unwrap_err()),
        () = server.until("a poll", |seen| seen.count("poll") > 0) => {}
    }
    Running { server, place, shutdown, task }
}

async fn start() -> Running {
    start_with(|_| {}).await
}

impl Running {
    async fn finish(self) -> Result<(), WorkerError> {
        self.shutdown.cancel();
        self.task.await.unwrap()
    }

    async fn results(&self, count: usize) -> Vec<Value> {
        self.server.until("results", |seen| seen.results.len() >= count).await;
        self.server.with(|seen| seen.results.clone())
    }

    /// Waits for a file that a command writes, and reads it.
    async fn file(&self, name: &str) -> String {
        let path = self.place.workspace().join(name);
        for _ in 0..1000 {
            if let Ok(text) = std::fs::read_to_string(&path)
                && text.ends_with('\n')
            {
                return text.trim().to_owned();
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{} was never written", path.display());
    }

    /// The same for a file that is not read.
    async fn until_exists(&self, name: &str) {
        let path = self.place.workspace().join(name);
        for _ in 0..1000 {
            if path.exists() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{} was never written", path.display());
    }
}

fn text(result: &Value) -> (&str, &str, bool) {
    (
        result["tool_use_id"].as_str().unwrap(),
        result["content"][0]["text"].as_str().unwrap(),
        result["is_error"].as_bool().unwrap(),
    )
}

const LONG: &str = "echo $$ >pid; sleep 1000; echo never >never";

#[tokio::test]
async fn calls_are_claimed_started_run_and_answered_in_order() {
    let running = start().await;
    let server = &running.server;
    for id in ["old", "a", "b"] {
        server.call(id, &format!("echo {id}; [ {id} = a ]"));
    }
    server.emit(json!({"type": "agent.tool_result", "id": "x", "tool_use_id": "old"}));
    server.emit(tool_use("foreign", "web_fetch", json!({}), "allow"));
    server.queue("work_1");
    let results = running.results(2).await;
    assert_eq!(results[0]["type"], "user.tool_result");
    assert_eq!([text(&results[0]), text(&results[1])], [("a", "a", false), ("b", "b", true)]);
    server.call("c", "echo c");
    assert_eq!(text(&running.results(3).await[2]), ("c", "c", false));
    server.until("a few beats", |seen| seen.beats.len() >= 3).await;
    server.with(|seen| {
        assert_eq!(seen.starts, ["a", "b", "c"]);
        assert_eq!(seen.beats[..3], ["NO_HEARTBEAT", "2026-01-01T00:00:01+00:00", "2026-01-01T00:00:02+00:00"]);
        assert!(seen.worker_ids.iter().all(|id| id == "w-1"));
        for (request, credential) in &seen.requests {
            let is_queue = ["poll", "ack", "ended"].iter().any(|route| request.starts_with(route));
            assert_eq!(credential, if is_queue { KEY } else { TOKEN }, "{request}");
        }
    });
    running.finish().await.unwrap();
}

#[tokio::test]
async fn shutdown_kills_the_call_and_gives_the_session_back() {
    let running = start().await;
    running.server.call("a", LONG);
    running.server.queue("work_1");
    let pid = running.file("pid").await.parse().unwrap();
    let (server, workspace) = (running.server.clone(), running.place.workspace());
    running.shutdown.cancel();
    running.task.await.unwrap().unwrap();
    assert!(!is_alive(pid));
    assert!(workspace.join("pid").exists() && !workspace.join("never").exists());
    server.with(|seen| {
        assert_eq!(seen.stops, [json!({"force": true})]);
        assert!(seen.results.is_empty());
    });
}

#[tokio::test]
async fn a_snapshot_follows_the_result() {
    let running = start().await;
    let server = &running.server;
    server.with(|seen| seen.keeps = true);
    server.call("a", "echo content >file");
    server.queue("work_1");
    assert_eq!(text(&running.results(1).await[0]), ("a", "(no output)", false));
    server.until("a snapshot", |seen| seen.count("save") == 1).await;
    server.with(|seen| {
        let at = |start: &str| seen.requests.iter().position(|(request, _)| request.starts_with(start)).unwrap();
        assert!(at("result") < at("missing") && at("missing") < at("chunk") && at("chunk") < at("save"));
        assert!(seen.requests[at("save")].0.contains(&format!("tip={}", seen.tips[0])));
    });
    // Until the worker has noted what is kept, it may well send it again.
    running.until_exists(&format!("../.snapshots/{SESSION}.kept")).await;
    let server = running.server.clone();
    running.finish().await.unwrap();
    server.with(|seen| assert_eq!(seen.count("save"), 1, "nothing has changed since: {:#?}", seen.requests));
}

#[tokio::test]
async fn a_call_overtakes_a_snapshot_that_cannot_be_sent() {
    let running = start().await;
    let server = &running.server;
    server.with(|seen| seen.keeps = true);
    server.fail("chunk", 503, usize::MAX);
    server.call("a", "echo content >file");
    server.queue("work_1");
    server.until("a chunk", |seen| seen.count("chunk") > 0).await;
    server.call("b", "echo b");
    assert_eq!(text(&running.results(2).await[1]), ("b", "b", false));
    server.mend("chunk");
    server.until("a snapshot", |seen| seen.count("save") == 1).await;
    server.with(|seen| {
        let save = seen.requests.iter().find(|(request, _)| request.starts_with("save")).unwrap();
        assert!(save.0.contains(&format!("tip={}", seen.tips[1])), "{}", save.0);
    });
    running.finish().await.unwrap();
}

/// A call of the tool `read` on a file that the session was given.
fn reads(id: &str, name: &str) -> Value {
    tool_use(id, "read", json!({"file_path": format!("/mnt/session/uploads/{name}")}), "allow")
}

#[tokio::test]
async fn what_a_session_is_given_is_there_before_a_call_looks() {
    let running = start().await;
    let server = &running.server;
    let (data, more) = (("/mnt/session/uploads/in/data", "one"), ("/mnt/session/uploads/more", "two"));
    server.with(|seen| seen.mounts = (1, vec![data]));
    server.fail("mounts", 503, 1);
    server.fail("content", 503, 1);
    server.emit(reads("a", "in/data"));
    server.queue("work_1");
    assert_eq!(text(&running.results(1).await[0]), ("a", "one", false));
    server.with(|seen| {
        let at = |start: &str| seen.requests.iter().rposition(|(request, _)| request.starts_with(start)).unwrap();
        assert!(at("content") < at("start"), "the session begins with what it is given");
        assert!(seen.requests[at("content")].1 == TOKEN);
    });
    let fetched = server.with(|seen| seen.count("content"));

    // Added and removed while the session goes on: the next call finds it so, once it can be had.
    server.with(|seen| seen.mounts = (2, vec![data, more]));
    server.fail("content", 503, 2);
    server.emit(reads("b", "more"));
    assert_eq!(text(&running.results(2).await[1]), ("b", "two", false));
    assert_eq!(server.with(|seen| seen.count("content")), fetched + 3, "what is there is not fetched again");
    server.with(|seen| seen.mounts = (3, vec![more]));
    server.emit(reads("c", "in/data"));
    let third = &running.results(3).await[2];
    assert_eq!(text(third), ("c", "read: /mnt/session/uploads/in/data: no such file or directory", true));
    let lists = server.with(|seen| seen.count("mounts"));
    server.emit(reads("d", "more"));
    assert_eq!(text(&running.results(4).await[3]), ("d", "two", false));
    assert_eq!(server.with(|seen| seen.count("mounts")), lists, "nothing has changed, so nothing is asked");
    running.finish().await.unwrap();
}

#[tokio::test]
async fn a_call_that_waits_for_its_files_can_be_interrupted() {
    let running = start().await;
    let server = &running.server;
    server.call("a", "echo ready");
    server.queue("work_1");
    running.results(1).await;
    server.with(|seen| seen.mounts = (1, vec![("/mnt/session/uploads/data", "one")]));
    server.fail("content", 503, usize::MAX);
    server.emit(reads("b", "data"));
    server.until("an attempt", |seen| seen.count("content") > 0).await;
    server.emit(json!({"type": "user.interrupt", "id": "i"}));
    server.emit(json!({"type": "agent.tool_result", "id": "r", "tool_use_id": "b", "content": []}));
    server.mend("content");
    server.call("c", "echo c");
    assert_eq!(text(&running.results(2).await[1]), ("c", "c", false));
    running.finish().await.unwrap();
}

#[tokio::test]
async fn what_a_session_makes_is_sent_once() {
    let running = start().await;
    let server = &running.server;
    server.with(|seen| {
        seen.keeps = true;
        seen.outputs.insert("known".to_owned(), "as before\n".to_owned());
    });
    server.fail("output", 503, 1);
    server.call("a", "cd .agent/session/outputs && mkdir deep && echo one >deep/report && echo as before >known");
    server.queue("work_1");
    server.until("an output", |seen| seen.outputs.get("deep/report").is_some_and(|content| content == "one\n")).await;
    server.call("b", "echo two >deep/report; ln -s report deep/link");
    server.until("a change", |seen| seen.outputs["deep/report"] == "two\n").await;
    server.call("c", "rm deep/report; echo late >late");
    server.until("another", |seen| seen.outputs.contains_key("late")).await;
    let server = running.server.clone();
    running.finish().await.unwrap();
    server.with(|seen| {
        let sent: Vec<&str> = seen.outputs.keys().map(String::as_str).collect();
        assert_eq!(sent, ["deep/report", "known", "late"], "what was removed here stays where it was sent");
        let sent =
            |path: &str| seen.requests.iter().filter(|(it, _)| it.starts_with(&format!("output?path={path}"))).count();
        assert_eq!(sent("deep%2Freport"), 3, "one of them failed: {:#?}", seen.requests);
        assert_eq!(sent("known"), 0, "another worker has sent it");
        assert_eq!(seen.count("outputs"), 1);
    });
}

#[tokio::test]
async fn what_was_made_is_sent_before_the_session_is_given_back() {
    let running = start().await;
    let server = &running.server;
    server.with(|seen| seen.keeps = true);
    server.call("a", "(sleep 0.3; echo background >.agent/session/outputs/b; echo >>done) & echo a");
    server.queue("work_1");
    running.results(1).await;
    assert_eq!(running.file("done").await, "");
    let server = running.server.clone();
    running.finish().await.unwrap();
    server.with(|seen| {
        assert_eq!(seen.outputs["b"], "background\n");
        let at = |start: &str| seen.requests.iter().rposition(|(request, _)| request.starts_with(start)).unwrap();
        assert!(at("output?") < at("stop"));
    });
}

#[tokio::test]
async fn a_held_call_waits_for_its_confirmation_and_a_denied_one_never_runs() {
    let running = start().await;
    let server = &running.server;
    let ask = |id: &str| tool_use(id, "bash", json!({"command": format!("echo {id} >>ran")}), "ask");
    server.emit(ask("a"));
    server.emit(ask("b"));
    server.emit(tool_use("c", "bash", json!({"command": "echo c >>ran"}), "deny"));
    server.emit(json!({"type": "user.tool_confirmation", "id": "x", "tool_use_id": "a", "result": "deny"}));
    server.queue("work_1");
    server.until("a stream", |seen| seen.count("list") >= 2).await;
    server.emit(json!({"type": "user.tool_confirmation", "id": "y", "tool_use_id": "b", "result": "allow"}));
    assert_eq!(text(&running.results(1).await[0]), ("b", "(no output)", false));
    assert_eq!(running.file("ran").await, "b");
    running.finish().await.unwrap();
}

#[tokio::test]
async fn an_interrupt_kills_the_running_call_and_what_waits() {
    for event in [
        json!({"type": "user.interrupt", "id": "stop", "processed_at": null}),
        json!({"type": "agent.tool_result", "id": "closed", "tool_use_id": "a"}),
    ] {
        let running = start().await;
        running.server.call("a", LONG);
        running.server.queue("work_1");
        let pid = running.file("pid").await.parse().unwrap();
        running.server.emit(event);
        running.server.emit(json!({"type": "span.model_request_start", "id": "m"}));
        running.server.call("b", "echo next");
        let results = running.results(1).await;
        assert!(!is_alive(pid));
        assert_eq!(text(&results[0]), ("b", "next", false));
        assert!(!running.place.workspace().join("never").exists());
        running.finish().await.unwrap();
    }
}

#[tokio::test]
async fn a_start_refused_for_a_lost_lease_runs_nothing() {
    for status in [409, 412] {
        let running = start().await;
        running.server.fail("start", status, 1);
        running.server.call("a", "echo ran >>ran");
        running.server.queue("work_1");
        running.server.until("a refused start", |seen| seen.count("start") == 1).await;
        // The same session, queued again, is claimed anew: the lost item was let go without a stop.
        running.server.queue("work_2");
        assert_eq!(text(&running.results(1).await[0]), ("a", "(no output)", false));
        assert_eq!(running.file("ran").await, "ran");
        running.server.with(|seen| assert!(seen.stops.is_empty()));
        running.finish().await.unwrap();
    }
}

#[tokio::test]
async fn a_start_refused_because_the_call_was_closed_costs_only_that_call() {
    let running = start().await;
    let server = &running.server;
    server.fail("start", 409, 1);
    server.queue("work_1");
    server.until("a list", |seen| seen.count("list") >= 1).await;
    server.emit_unseen(json!({"type": "agent.tool_result", "id": "r", "tool_use_id": "a"}));
    server.call("a", "echo a >ran");
    server.call("b", "echo b");
    assert_eq!(text(&running.results(1).await[0]), ("b", "b", false));
    assert!(!running.place.workspace().join("ran").exists());
    server.with(|seen| assert_eq!(seen.count("ack"), 1));
    running.finish().await.unwrap();
}

#[tokio::test]
async fn a_call_runs_once_through_server_errors() {
    let running = start().await;
    running.server.fail("start", 503, 2);
    running.server.fail("result", 500, 1);
    running.server.fail("result", 429, 1);
    running.server.fail("heartbeat", 502, 2);
    running.server.fail("session", 503, 1);
    running.server.fail("stream", 503, 1);
    running.server.call("a", "echo ran >>ran; cat ran");
    running.server.queue("work_1");
    assert_eq!(text(&running.results(1).await[0]), ("a", "ran", false));
    running.server.with(|seen| {
        assert_eq!(seen.starts, ["a"]);
        assert_eq!((seen.count("start"), seen.count("result")), (3, 3));
    });
    running.finish().await.unwrap();
}

#[tokio::test]
async fn a_result_refused_for_a_lost_lease_abandons_the_item() {
    for status in [409, 412] {
        let running = start().await;
        running.server.fail("result", status, 1);
        running.server.call("a", "echo ran >>ran");
        running.server.queue("work_1");
        // After a 409 the worker asks whether the call was only closed meanwhile; here it was not.
        let asks = if status == 409 { 2 } else { 1 };
        running.server.until("a refused result", |seen| seen.count("result") == 1 && seen.count("list") >= asks).await;
        running.server.emit_unseen(json!({"type": "agent.tool_result", "id": "lost", "tool_use_id": "a"}));
        running.server.queue("work_2");
        running.server.until("the next claim's list", |seen| seen.count("list") > asks).await;
        running.server.call("b", "cat ran");
        assert_eq!(text(&running.results(1).await[0]), ("b", "ran", false));
        running.server.with(|seen| {
            assert!(seen.stops.is_empty());
            assert_eq!(seen.starts, ["a", "b"]);
        });
        running.finish().await.unwrap();
    }
}

#[tokio::test]
async fn a_result_that_the_server_cannot_take_is_replaced_by_an_error() {
    let running = start().await;
    running.server.fail("result", 413, 1);
    running.server.call("a", "echo a");
    running.server.queue("work_1");
    let results = running.results(1).await;
    assert_eq!(text(&results[0]), ("a", "bash: the result could not be delivered", true));
    running.finish().await.unwrap();
}

#[tokio::test]
async fn a_lost_lease_kills_the_running_call_and_leaves_the_item_alone() {
    let running = start().await;
    running.server.call("a", LONG);
    running.server.queue("work_1");
    let pid = running.file("pid").await.parse().unwrap();
    running.server.fail("heartbeat", 412, 1);
    running.server.until("the refused beat", |seen| !seen.is_failing("heartbeat")).await;
    let beats = running.server.with(|seen| seen.beats.len());
    running.server.queue("work_2");
    running.server.until("a second claim", |seen| seen.beats[beats..].iter().any(|beat| beat == "NO_HEARTBEAT")).await;
    running.server.until("the call run again", |seen| seen.starts.len() == 2).await;
    assert!(!is_alive(pid));
    running.server.with(|seen| assert!(seen.stops.is_empty()));
    running.finish().await.unwrap();
}

#[tokio::test]
async fn a_server_that_wants_the_item_back_gets_it() {
    for beat in [
        json!({"state": "stopping", "last_heartbeat": "x", "lease_extended": true, "ttl_seconds": 3}),
        json!({"state": "active", "last_heartbeat": "x", "lease_extended": false, "ttl_seconds": 3}),
    ] {
        let running = start().await;
        running.server.call("a", LONG);
        running.server.queue("work_1");
        let pid = running.file("pid").await.parse().unwrap();
        running.server.beat_with(beat);
        running.server.until("a stop", |seen| seen.stops == [json!({"force": true})]).await;
        assert!(!is_alive(pid));
        running.finish().await.unwrap();
    }
}

#[tokio::test]
async fn what_a_broken_stream_missed_is_listed() {
    let running = start().await;
    running.server.queue("work_1");
    running.server.call("a", "echo a");
    running.results(1).await;
    running.server.cut_streams();
    running.server.emit_unseen(json!({"type": "span.model_request_start", "id": "m"}));
    for id in ["b", "c", "d"] {
        let command = json!({"command": format!("echo {id}")});
        running.server.emit_unseen(tool_use(id, "bash", command, "allow"));
    }
    let results = running.results(4).await;
    let ids: Vec<&str> = results.iter().map(|result| text(result).0).collect();
    assert_eq!(ids, ["a", "b", "c", "d"]);
    running.server.with(|seen| assert!(seen.count("stream") >= 2));
    running.finish().await.unwrap();
}

#[tokio::test]
async fn sessions_end_as_they_should() {
    let running = start_with(|config| config.idle_timeout = Duration::from_millis(200)).await;
    let server = &running.server;
    server.session_is("terminated");
    server.queue("work_1");
    server.until("a terminated session stopped", |seen| seen.stops.len() == 1).await;

    server.session_is("running");
    server.call("a", "echo kept >kept");
    server.queue("work_2");
    running.results(1).await;
    server.emit(json!({"type": "session.status_idle", "id": "idle"}));
    server.until("an idle session stopped", |seen| seen.stops.len() == 2).await;
    assert_eq!(running.file("kept").await, "kept");

    server.queue("work_3");
    server.until("a third stream", |seen| seen.count("stream") >= 2).await;
    server.call("b", "cat kept");
    assert_eq!(text(&running.results(2).await[1]), ("b", "kept", false));
    server.emit(json!({"type": "session.deleted", "id": "gone"}));
    server.until("a deleted session stopped", |seen| seen.stops.len() == 3).await;
    for _ in 0..1000 {
        if !running.place.workspace().exists() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(!running.place.workspace().exists());

    server.queue_raw(json!({"id": "work_4", "data": {"type": "healthcheck"}, "secret": null}));
    server.until("a health check stopped", |seen| seen.stops.len() == 4).await;
    running.finish().await.unwrap();
}

#[tokio::test]
async fn a_lost_claim_is_dropped_and_the_next_taken() {
    let running = start().await;
    running.server.fail("ack", 409, 1);
    running.server.queue("work_1");
    running.server.queue("work_2");
    running.server.call("a", "echo a");
    running.results(1).await;
    running.server.with(|seen| {
        assert_eq!(seen.count("ack"), 2);
        assert!(seen.stops.is_empty());
    });
    running.finish().await.unwrap();
}

#[tokio::test]
async fn a_refused_key_ends_the_worker() {
    let running = start().await;
    running.server.fail("poll", 401, 1);
    let error = running.task.await.unwrap().unwrap_err();
    assert!(matches!(error, WorkerError::Refused { status: 401, .. }), "{error}");
    assert!(!format!("{error} {error:?}").contains(KEY));
}

#[tokio::test]
async fn a_server_that_is_not_there_yet_is_waited_for() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let place = Place::new();
    let shutdown = CancellationToken::new();
    let task = tokio::spawn(worker::run(config(&place, &format!("http://{address}")), shutdown.clone()));
    tokio::time::sleep(Duration::from_millis(300)).await;
    let server = Server::default();
    server.fail("poll", 503, 1);
    server.queue("work_1");
    server.call("a", "echo a");
    server.serve(tokio::net::TcpListener::bind(address).await.unwrap());
    server.until("a result", |seen| seen.results.len() == 1).await;
    shutdown.cancel();
    task.await.unwrap().unwrap();
}

#[tokio::test]
async fn several_sessions_are_served_up_to_the_limit() {
    let running = start_with(|config| config.max_sessions = 1).await;
    running.server.call("a", "echo a");
    running.server.queue("work_1");
    running.results(1).await;
    running.server.queue_raw(json!({"id": "work_2", "data": {"type": "session", "id": SESSION}, "secret": null}));
    running.server.until("more beats", |seen| seen.beats.len() >= 3).await;
    running.server.with(|seen| assert_eq!(seen.count("ack"), 1, "the second item waits for a free slot"));
    running.finish().await.unwrap();
}

#[tokio::test]
async fn an_idle_session_makes_room_for_one_that_waits() {
    let running = start_with(|config| config.max_sessions = 1).await;
    running.server.call("a", "echo a");
    running.server.queue("work_1");
    running.results(1).await;
    running.server.queue("work_2");
    running.server.emit(json!({"type": "session.status_idle", "id": "idle"}));
    running.server.until("the second item taken", |seen| seen.count("ack") == 2).await;
    running.server.with(|seen| assert_eq!(seen.stops.len(), 1, "the first session was given back"));
    running.finish().await.unwrap();
}

#[tokio::test]
async fn workspaces_of_deleted_sessions_are_removed_and_others_stay() {
    let running = start_with(|config| {
        for session in ["sesn_gone", "sesn_kept"] {
            std::fs::create_dir_all(config.sandbox.workspaces_dir.join(session).join("folder")).unwrap();
        }
        config.sweep_period = Duration::from_millis(20);
    })
    .await;
    let folder = running.place.config.workspaces_dir.clone();
    running.server.until("a look at what is there", |seen| seen.count("ended") > 0).await;
    assert!(folder.join("sesn_gone").exists());
    running.server.with(|seen| seen.deleted.push("sesn_gone"));
    // The look after the one that brought the news: by then the folder is gone.
    let looked = running.server.with(|seen| seen.count("ended"));
    running.server.until("two more looks", |seen| seen.count("ended") >= looked + 2).await;
    assert!(!folder.join("sesn_gone").exists());
    assert!(folder.join("sesn_kept").exists());
    running.finish().await.unwrap();
}

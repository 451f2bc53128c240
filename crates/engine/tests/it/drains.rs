//! What becomes of the sessions of a replica that is told to stop.

use session::Event;
use session::event::EnvironmentKind;
use tokio::time::{Duration, Instant, sleep};

use crate::rig::{Rig, calls, is_idle, message, post, says, until};

#[tokio::test(start_paused = true)]
async fn a_drain_hands_the_session_over_between_two_steps() {
    let rig = Rig::new();
    let first = rig.replica(4);
    let id = rig.session(&first.sessions, EnvironmentKind::Cloud).await;
    let mut feed = rig.follow(&id).await;
    let mut slow = calls(&["no_such_tool"]);
    slow.pause = Duration::from_secs(2);
    rig.model.then(slow);
    rig.model.then(says(&["Done."]));
    post(&first.sessions, &id, vec![message("Go")]).await;
    until(&mut feed, |event| matches!(event, Event::ModelRequestStart { .. })).await;
    let _second = rig.replica(4);
    sleep(Duration::from_millis(300)).await;
    first.shutdown.cancel();
    until(&mut feed, is_idle).await;
    first.task.await.unwrap();
    let kinds = rig.kinds(&id).await;
    assert!(!kinds.contains(&"log.taken_over"), "a hand-over is no death");
    assert_eq!(kinds.iter().filter(|kind| **kind == "span.model_request_start").count(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_outlasts_the_drain_is_cut_and_made_again_elsewhere() {
    let rig = Rig::new();
    let first = rig.replica(4);
    let id = rig.session(&first.sessions, EnvironmentKind::Cloud).await;
    let mut feed = rig.follow(&id).await;
    let mut slow = says(&["never"]);
    slow.pause = Duration::from_secs(600);
    rig.model.then(slow);
    rig.model.then(says(&["Done."]));
    post(&first.sessions, &id, vec![message("Go")]).await;
    until(&mut feed, |event| matches!(event, Event::ModelRequestStart { .. })).await;
    let _second = rig.replica(4);
    first.shutdown.cancel();
    first.task.await.unwrap();
    until(&mut feed, is_idle).await;
    let kinds = rig.kinds(&id).await;
    assert!(!kinds.contains(&"log.taken_over"), "a hand-over is no death");
    assert_eq!(kinds.iter().filter(|kind| **kind == "span.model_request_end").count(), 2);
    let told: Vec<_> = kinds.iter().filter(|kind| kind.starts_with("session.status")).copied().collect();
    assert_eq!(
        told,
        ["session.status_running", "session.status_rescheduled", "session.status_running", "session.status_idle"]
    );
    assert!(!kinds.contains(&"session.error"), "nothing has failed");
}

#[tokio::test(start_paused = true)]
async fn a_drain_in_a_hurry_skips_from_mark_to_mark() {
    for (hurries, seconds) in [(0, 5), (1, 1), (2, 0)] {
        let rig = Rig::new();
        let first = rig.replica(4);
        let id = rig.session(&first.sessions, EnvironmentKind::Cloud).await;
        let mut feed = rig.follow(&id).await;
        let mut slow = says(&["never"]);
        slow.pause = Duration::from_secs(600);
        rig.model.then(slow);
        post(&first.sessions, &id, vec![message("Go")]).await;
        until(&mut feed, |event| matches!(event, Event::ModelRequestStart { .. })).await;
        let began = Instant::now();
        first.shutdown.cancel();
        for _ in 0..hurries {
            first.hurry.hurry();
        }
        first.task.await.unwrap();
        assert_eq!(began.elapsed().as_secs(), seconds, "of the five that the drain may take");
    }
}

#[tokio::test(start_paused = true)]
async fn a_drain_waits_for_no_worker_and_for_no_client() {
    for tool in ["write", "lookup"] {
        let rig = Rig::new();
        let first = rig.replica(4);
        let id = rig.session(&first.sessions, EnvironmentKind::Cloud).await;
        let mut feed = rig.follow(&id).await;
        rig.model.then(calls(&[tool]));
        post(&first.sessions, &id, vec![message("Go")]).await;
        until(&mut feed, |event| matches!(event, Event::ModelRequestEnd { .. })).await;
        let began = Instant::now();
        first.shutdown.cancel();
        first.task.await.unwrap();
        assert!(began.elapsed() < Duration::from_secs(1), "{tool}: {:?}", began.elapsed());
        let loaded = rig.world.log.load(&id).await.unwrap().unwrap();
        assert_eq!(loaded.claim, None, "{tool}: the session is anybody's");
    }
}

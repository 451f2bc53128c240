//! The bell of one process: who hears what, and what a slow listener loses.

use engine::contract::bells::{Ends, appended};
use engine::memory::LocalBell;
use engine::port::{Bell, Frame, PreviewDelta, Topic};
use session::id::SessionId;

/// One bell, whose ends are in one process.
struct OneProcess(LocalBell);

impl Ends for OneProcess {
    fn here(&self) -> &dyn Bell {
        &self.0
    }

    fn there(&self) -> &dyn Bell {
        &self.0
    }
}

async fn one_process() -> Option<OneProcess> {
    Some(OneProcess(LocalBell::new()))
}

mod contract {
    engine::contract_tests!(bell crate::bells::one_process);
}

fn preview(session_id: &SessionId, sequence: u64) -> Frame {
    let delta = PreviewDelta::Text { index: 0, text: "word".to_owned() };
    engine::contract::bells::preview(session_id, sequence, delta)
}

#[tokio::test]
async fn a_listener_hears_its_own_topic_in_order() {
    let bell = LocalBell::new();
    let (mine, other) = (SessionId::from("sesn_1"), SessionId::from("sesn_2"));
    bell.ring(appended(&mine, 1));
    let mut listener = bell.listen(Topic::Session(mine.clone()));
    bell.ring(appended(&other, 7));
    bell.ring(appended(&mine, 2));
    bell.ring(preview(&mine, 0));
    assert!(matches!(listener.hear().await, Some(Frame::Appended { position: 2, .. })));
    assert!(matches!(listener.hear().await, Some(Frame::Preview(_))));
}

#[tokio::test]
async fn a_slow_listener_loses_previews_before_records() {
    let bell = LocalBell::new();
    let id = SessionId::from("sesn_1");
    let mut listener = bell.listen(Topic::Session(id.clone()));
    for sequence in 0..2_000 {
        bell.ring(preview(&id, sequence));
    }
    for position in 1..=600 {
        bell.ring(appended(&id, position));
    }
    let mut positions = Vec::new();
    let mut previews = 0;
    while positions.last() != Some(&600) {
        match listener.hear().await {
            Some(Frame::Appended { position, .. }) => positions.push(position),
            Some(Frame::Preview(_)) => previews += 1,
            other => panic!("unexpected: {other:?}"),
        }
    }
    assert_eq!(positions, (1..=600).collect::<Vec<_>>());
    assert!(previews < 2_000);
}

#[tokio::test]
async fn who_declines_previews_hears_records_alone() {
    let bell = LocalBell::new();
    let id = SessionId::from("sesn_1");
    let mut declining = bell.listen(Topic::Session(id.clone()));
    declining.decline_previews();
    let mut other = bell.listen(Topic::Session(id.clone()));
    bell.ring(preview(&id, 0));
    bell.ring(appended(&id, 1));
    assert!(matches!(declining.hear().await, Some(Frame::Appended { position: 1, .. })));
    assert!(matches!(other.hear().await, Some(Frame::Preview(_))));
}

#[tokio::test]
async fn a_listener_that_never_listens_is_told_of_its_loss() {
    let bell = LocalBell::new();
    let id = SessionId::from("sesn_1");
    let mut listener = bell.listen(Topic::Session(id.clone()));
    for position in 1..=5_000 {
        bell.ring(appended(&id, position));
    }
    assert!(listener.hear().await.is_none());
    let Some(Frame::Appended { position, .. }) = listener.hear().await else { panic!("what came after the loss") };
    assert!(position > 1);
}

#[tokio::test(start_paused = true)]
async fn claimable_is_heard_once_however_often_it_was_rung() {
    let bell = LocalBell::new();
    let mut listener = bell.listen(Topic::Claimable);
    bell.ring(Frame::Claimable);
    bell.ring(Frame::Claimable);
    assert!(matches!(listener.hear().await, Some(Frame::Claimable)));
    bell.ring(Frame::Claimable);
    assert!(matches!(listener.hear().await, Some(Frame::Claimable)));
    let nothing = tokio::time::timeout(tokio::time::Duration::from_secs(1), listener.hear()).await;
    assert!(nothing.is_err());
}

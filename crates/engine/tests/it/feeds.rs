//! Feeds: which previews pass, and how a feed finds what the bell did not tell.

use std::sync::Arc;

use engine::port::{
    Append, Claim, EventLog, Fence, Frame, LedgerChange, Preview, PreviewDelta, Track, Wake, WorkChange,
};
use engine::{Feed, FeedItem, From};
use session::command::{AnswerBlock, ModelOutcome, ModelStop};
use session::event::{EnvironmentKind, ModelUsage};
use session::id::{EventId, ReplicaId, SessionId};
use session::{Command, Ids, Limits, State, decide};
use tokio::time::{Duration, timeout};

use crate::rig::{Rig, message, post};

/// A session in the middle of a model request, driven by hand.
struct Stage {
    rig: Rig,
    id: SessionId,
    state: State,
    claim: Claim,
    feed: Feed,
}

impl Stage {
    /// The intent is appended and the bell not rung for it.
    async fn asking() -> Self {
        let rig = Rig::new();
        let id = rig.session(&rig.sessions, EnvironmentKind::Cloud).await;
        let feed = rig.follow(&id).await;
        let outcome = post(&rig.sessions, &id, vec![message("Hello")]).await;
        let replica_id = ReplicaId::from("rplc_01");
        rig.world.leases.register(&replica_id, Track::Stable).await.unwrap();
        let claim = rig.world.leases.claim(&replica_id, 1).await.unwrap().remove(0).claim;
        let mut stage = Self { rig, id, state: outcome.state, claim, feed };
        stage.append(Command::BeginModelRequest).await;
        stage
    }

    async fn append(&mut self, command: Command) {
        let now = self.rig.world.clock.now();
        let mut ids = Ids::from_seed(u128::from(self.state.position));
        let decision = decide(Some(&self.state), command, &Limits::default(), now, &mut ids).unwrap();
        self.state = decision.state.clone();
        let append = Append {
            records: decision.records,
            state: decision.state,
            fence: Fence::Owner(self.claim.clone()),
            wake: Wake::Keep,
            work: WorkChange::None,
            kept: None,
            running_max: None,
            ledger: LedgerChange::None,
            resources: Vec::new(),
        };
        self.rig.store.append(append).await.unwrap();
    }

    fn message_id(&self) -> EventId {
        self.state.turn.as_ref().unwrap().request.as_ref().unwrap().message_id.clone()
    }

    /// Rings a piece of the answer, as the owner of `epoch`.
    fn preview(&self, epoch: u64, sequence: u64) {
        let request = self.state.turn.as_ref().unwrap().request.as_ref().unwrap();
        self.rig.world.bell.ring(Frame::Preview(Arc::new(Preview {
            session_id: self.id.clone(),
            epoch,
            event_id: request.message_id.clone(),
            span_position: request.position,
            sequence,
            delta: PreviewDelta::Text { index: 0, text: sequence.to_string() },
        })));
    }

    /// Everything that comes without waiting for the poller: records as 0, previews as 1 + sequence.
    async fn delivered(&mut self) -> Vec<u64> {
        let mut seen = Vec::new();
        while let Ok(item) = timeout(Duration::from_millis(1), self.feed.next()).await {
            match item {
                FeedItem::Record(_) => seen.push(0),
                FeedItem::Preview(preview) => seen.push(1 + preview.sequence),
                FeedItem::End => panic!("nothing was deleted"),
            }
        }
        seen
    }

    async fn answer(&mut self) {
        let request = self.state.turn.as_ref().unwrap().request.clone().unwrap();
        let outcome =
            ModelOutcome::Answered { blocks: vec![AnswerBlock::Text("01".to_owned())], stop: ModelStop::EndTurn };
        let usage = ModelUsage::default();
        self.append(Command::FinishModelRequest { span_id: request.span_id, outcome, usage }).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_preview_waits_until_its_span_is_delivered() {
    let mut stage = Stage::asking().await;
    stage.preview(1, 0);
    stage.preview(1, 1);
    let seen = stage.delivered().await;
    assert_eq!(seen, [0, 0, 0, 0, 0, 0, 1, 2], "the span's records first, though the bell told of none");
}

#[tokio::test(start_paused = true)]
async fn previews_stop_at_a_gap_and_skip_what_was_rung_twice() {
    let mut stage = Stage::asking().await;
    for sequence in [0, 0, 1, 1, 0, 3, 4, 2] {
        stage.preview(1, sequence);
    }
    let seen = stage.delivered().await;
    assert_eq!(seen.into_iter().filter(|item| *item > 0).collect::<Vec<_>>(), [1, 2]);
}

#[tokio::test(start_paused = true)]
async fn previews_of_an_older_owner_stop_when_a_newer_one_speaks() {
    let mut stage = Stage::asking().await;
    stage.preview(1, 0);
    stage.preview(2, 1);
    stage.preview(1, 2);
    stage.preview(2, 2);
    let seen = stage.delivered().await;
    assert_eq!(seen.into_iter().filter(|item| *item > 0).collect::<Vec<_>>(), [1, 2, 3]);
}

#[tokio::test(start_paused = true)]
async fn previews_end_with_their_event_and_with_their_span() {
    let mut stage = Stage::asking().await;
    stage.preview(1, 0);
    assert_eq!(stage.delivered().await.last(), Some(&1));
    let late = stage.message_id();
    let span_position = stage.state.turn.as_ref().unwrap().request.as_ref().unwrap().position;
    stage.answer().await;
    let frame = Frame::Appended { session_id: stage.id.clone(), position: stage.state.position, records: None };
    stage.rig.world.bell.ring(frame);
    assert!(stage.delivered().await.iter().all(|item| *item == 0));
    stage.rig.world.bell.ring(Frame::Preview(Arc::new(Preview {
        session_id: stage.id.clone(),
        epoch: 1,
        event_id: late,
        span_position,
        sequence: 1,
        delta: PreviewDelta::Text { index: 0, text: "late".to_owned() },
    })));
    assert!(stage.delivered().await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_feed_opened_inside_a_request_gets_none_of_its_previews() {
    let mut stage = Stage::asking().await;
    stage.feed = Feed::follow(&stage.rig.world, &stage.id, From::Now).await.unwrap();
    stage.preview(1, 0);
    assert!(stage.delivered().await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn the_poller_finds_what_the_bell_did_not_tell() {
    let mut stage = Stage::asking().await;
    let before = stage.delivered().await.len();
    stage.answer().await;
    assert!(stage.delivered().await.is_empty());
    stage.rig.world.watch.poll(&*stage.rig.world.log).await.unwrap();
    let found = stage.delivered().await.len();
    assert_eq!(before + found, stage.state.position as usize);
}

#[tokio::test(start_paused = true)]
async fn a_feed_that_is_behind_ends_when_its_session_is_purged() {
    let rig = Rig::new();
    let id = rig.session(&rig.sessions, EnvironmentKind::Cloud).await;
    let mut feed = rig.follow(&id).await;
    rig.world.watch.poll(&*rig.world.log).await.unwrap();
    let deleted = rig.sessions.command(&id, Command::Delete, Fence::Client).await.unwrap();
    rig.store.purge(deleted.state.last_at.successor(), 10).await.unwrap();
    let item = timeout(Duration::from_secs(10), feed.next()).await.unwrap();
    assert!(matches!(item, FeedItem::End));
}

#[tokio::test(start_paused = true)]
async fn a_session_is_watched_as_long_as_somebody_follows() {
    let stage = Stage::asking().await;
    assert_eq!(stage.rig.world.watch.len(), 1);
    let world = stage.rig.world.clone();
    drop(stage);
    assert!(world.watch.is_empty());
}

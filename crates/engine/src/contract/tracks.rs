//! Which of two releases gets which session.

use std::collections::BTreeSet;
use std::sync::Arc;

use session::id::{ReplicaId, SessionId};

use super::story::{Phrase as _, Story, beat, due_session, pass, replica, session_id};
use super::{Store, Subject};
use crate::port::tracks::{TRACK_ABANDONED_MS, split_hash};
use crate::port::{CanaryWeight, RolloutWeight, Track, Tracks, Wake};

const SESSIONS: u32 = 24;

/// Half of everything.
fn half() -> CanaryWeight {
    CanaryWeight::from_hundredths(5_000).expect("it is a share")
}

async fn set(tracks: &Arc<dyn Tracks>, epoch: u64, canary_weight: CanaryWeight) {
    let set = tracks.set_rollout_weight(RolloutWeight { epoch, canary_weight }).await;
    assert!(set.expect("the store answers"), "no later weight is there");
}

/// A replica of each track.
async fn both(store: &dyn Store) -> (ReplicaId, ReplicaId) {
    let (stable, canary) = (replica("stable"), replica("canary"));
    store.register(&stable, Track::Stable).await.expect("a replica registers");
    store.register(&canary, Track::Canary).await.expect("a replica registers");
    (stable, canary)
}

async fn due_sessions(store: &dyn Store) {
    for number in 0..SESSIONS {
        due_session(store, number).await;
    }
}

async fn claimed(store: &dyn Store, replica: &ReplicaId) -> BTreeSet<SessionId> {
    let claimed = store.claim(replica, 100).await.expect("the store answers");
    claimed.into_iter().map(|won| won.claim.session_id).collect()
}

/// The sessions of this track under this weight.
fn expected(track: Track, weight: CanaryWeight) -> BTreeSet<SessionId> {
    (0..SESSIONS).map(session_id).filter(|id| Track::of(id, weight) == track).collect()
}

pub async fn a_replica_claims_sessions_of_its_track(subject: &impl Subject) {
    let Some(tracks) = subject.tracks() else { return };
    let store = subject.store();
    let (stable, canary) = both(&*store).await;
    due_sessions(&*store).await;
    assert!(claimed(&*store, &canary).await.is_empty(), "without a weight everything is stable");

    let mut canarys = BTreeSet::new();
    for (epoch, hundredths) in [(1, 1_000), (2, 2_500), (3, 5_000)] {
        let weight = CanaryWeight::from_hundredths(hundredths).expect("it is a share");
        set(&tracks, epoch, weight).await;
        canarys.extend(claimed(&*store, &canary).await);
        assert_eq!(canarys, expected(Track::Canary, weight), "{hundredths}");
    }
    assert_eq!(claimed(&*store, &stable).await, expected(Track::Stable, half()));
    assert!(!canarys.is_empty() && canarys.len() < SESSIONS as usize, "both have some");
    // The one hash that nginx keeps stable at 100 %.
    assert!((0..SESSIONS).map(session_id).all(|id| split_hash(&id) != u32::MAX));
}

pub async fn a_weight_moves_no_turn_that_runs(subject: &impl Subject) {
    let Some(tracks) = subject.tracks() else { return };
    let store = subject.store();
    let (stable, canary) = both(&*store).await;
    due_sessions(&*store).await;
    let running = claimed(&*store, &stable).await;
    set(&tracks, 1, CanaryWeight::ALL).await;
    assert!(claimed(&*store, &canary).await.is_empty(), "their owner lives");
    for claim in store.held(&stable).await.expect("the store answers") {
        store.release(&claim, true).await.expect("the store answers");
    }
    assert!(claimed(&*store, &stable).await.is_empty(), "they are the canary's now");
    assert_eq!(claimed(&*store, &canary).await, running);
}

pub async fn a_wish_for_the_claim_obeys_the_weight(subject: &impl Subject) {
    let Some(tracks) = subject.tracks() else { return };
    let store = subject.store();
    let (stable, canary) = both(&*store).await;
    set(&tracks, 1, half()).await;
    for number in 0..SESSIONS {
        let (mut story, created) = Story::begin(number);
        let of = Track::of(story.id(), half());
        let (other, own) = if of == Track::Canary { (&stable, &canary) } else { (&canary, &stable) };
        // At creation, and later.
        let created = store.append(created.with(Wake::Now { claim_for: Some(other.clone()) })).await;
        assert_eq!(created.expect("the session is new").claim, None, "{number}");
        let refused = store.append(story.message("one").with(Wake::Now { claim_for: Some(other.clone()) })).await;
        assert_eq!(refused.expect("nobody else appends").claim, None, "{number}");
        let granted = store.append(story.message("two").with(Wake::Now { claim_for: Some(own.clone()) })).await;
        let claim = granted.expect("nobody else appends").claim.expect("it is of the session's track");
        assert_eq!(&claim.replica_id, own);
    }
}

pub async fn an_abandoned_track_is_anybodys(subject: &impl Subject) {
    let Some(tracks) = subject.tracks() else { return };
    let store = subject.store();
    let (stable, canary) = both(&*store).await;
    set(&tracks, 1, half()).await;
    due_sessions(&*store).await;
    for _ in 0..TRACK_ABANDONED_MS / 200 {
        beat(&*store, &canary).await;
        pass(subject, &stable, 200).await;
    }
    assert_eq!(claimed(&*store, &stable).await, expected(Track::Stable, half()), "the canary lives");
    // A store's clock may be one that runs by itself meanwhile.
    pass(subject, &stable, TRACK_ABANDONED_MS / 2).await;
    assert!(claimed(&*store, &stable).await.is_empty(), "it may come back");
    pass(subject, &stable, TRACK_ABANDONED_MS).await;
    assert_eq!(claimed(&*store, &stable).await, expected(Track::Canary, half()), "nobody else is there");

    // Who was away itself has seen nothing.
    subject.advance(60_000).await;
    beat(&*store, &canary).await;
    for claim in store.held(&stable).await.expect("the store answers") {
        store.release(&claim, false).await.expect("the store answers");
    }
    assert_eq!(claimed(&*store, &canary).await, expected(Track::Canary, half()));
}

pub async fn an_old_weight_is_refused(subject: &impl Subject) {
    let Some(tracks) = subject.tracks() else { return };
    assert_eq!(tracks.rollout_weight().await.expect("the store answers"), None);
    set(&tracks, 7, half()).await;
    for epoch in [6, 7] {
        let late = RolloutWeight { epoch, canary_weight: CanaryWeight::ALL };
        assert!(!tracks.set_rollout_weight(late).await.expect("the store answers"), "{epoch}");
    }
    let inforce = RolloutWeight { epoch: 7, canary_weight: half() };
    assert_eq!(tracks.rollout_weight().await.expect("the store answers"), Some(inforce));
    set(&tracks, 8, CanaryWeight::default()).await;
}

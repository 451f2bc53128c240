//! Who gets which session, and when.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use session::id::ReplicaId;
use tokio::sync::Barrier;
use tokio::task::JoinSet;

use super::story::{Phrase as _, Story, beat, claimed_session, due_session, pass, registered, session_id};
use super::{Store, Subject};
use crate::port::leases::Claimed;
use crate::port::{AppendError, Wake};

/// Longer than any replica may be silent, with room for the judge.
const LONG_MS: i64 = 8_000;

async fn claim(store: &Arc<dyn Store>, replica: &ReplicaId, limit: usize) -> Vec<Claimed> {
    store.claim(replica, limit).await.expect("the store answers")
}

pub async fn only_due_sessions_are_claimed(subject: &impl Subject) {
    let store = subject.store();
    let replica = registered(&*store, "a").await;
    let (_, created) = Story::begin(1);
    store.append(created).await.expect("the session is new");
    assert!(claim(&store, &replica, 10).await.is_empty(), "nothing is due");

    let story = due_session(&*store, 2).await;
    let claimed = claim(&store, &replica, 10).await;
    let [Claimed { claim: won, taken_over: false, .. }] = claimed.as_slice() else { panic!("{claimed:?}") };
    assert_eq!((&won.session_id, &won.replica_id), (story.id(), &replica));
    assert!(won.epoch > 0);
    let loaded = store.load(story.id()).await.expect("the store answers").expect("it is there");
    assert_eq!(loaded.claim.as_ref(), Some(won));
    assert_eq!(store.held(&replica).await.expect("the store answers"), std::slice::from_ref(won));
    assert!(claim(&store, &replica, 10).await.is_empty(), "its owner has it already");
}

pub async fn the_longest_waiting_comes_first(subject: &impl Subject) {
    let store = subject.store();
    let replica = registered(&*store, "a").await;
    for number in [3, 1, 2] {
        due_session(&*store, number).await;
        subject.advance(10).await;
    }
    let order: Vec<_> = claim(&store, &replica, 2).await.into_iter().map(|won| won.claim.session_id).collect();
    let first: BTreeSet<_> = order.into_iter().collect();
    assert_eq!(first, [session_id(3), session_id(1)].into(), "a limit leaves the youngest");
    assert_eq!(claim(&store, &replica, 2).await[0].claim.session_id, session_id(2));
}

pub async fn concurrent_claims_share_nothing(subject: &impl Subject) {
    const SESSIONS: usize = 48;
    let store = subject.store();
    for number in 0..SESSIONS {
        due_session(&*store, u32::try_from(number).expect("it is small")).await;
    }
    let mut claimants = JoinSet::new();
    let (claimed, start) = (Arc::new(AtomicUsize::new(0)), Arc::new(Barrier::new(4)));
    for name in ["a", "b", "c", "d"] {
        let (store, claimed, start) = (store.clone(), claimed.clone(), start.clone());
        let replica = registered(&*store, name).await;
        claimants.spawn(async move {
            let mut won = Vec::new();
            // All at once, first for nothing: a store with connections opens what they need.
            start.wait().await;
            assert!(claim(&store, &replica, 0).await.is_empty(), "a limit is a limit");
            start.wait().await;
            // A claim may step over rows that others are just taking: one that comes up empty proves nothing yet.
            while claimed.load(Ordering::SeqCst) < SESSIONS {
                let more = claim(&store, &replica, 2).await;
                claimed.fetch_add(more.len(), Ordering::SeqCst);
                won.extend(more.into_iter().map(|won| won.claim));
            }
            won
        });
    }
    let won: Vec<_> = claimants.join_all().await.into_iter().flatten().collect();
    let sessions: BTreeSet<_> = won.iter().map(|claim| claim.session_id.clone()).collect();
    assert_eq!((won.len(), sessions.len()), (SESSIONS, SESSIONS), "every session is claimed once");
    for claim in won {
        let loaded = store.load(&claim.session_id).await.expect("the store answers").expect("it is there");
        assert_eq!(loaded.claim, Some(claim));
    }
}

pub async fn a_released_session_is_free_again(subject: &impl Subject) {
    let store = subject.store();
    let (first, second) = (registered(&*store, "a").await, registered(&*store, "b").await);
    let (story, held) = claimed_session(&*store, &first, 1).await;
    store.release(&held, false).await.expect("the store answers");
    assert!(store.held(&first).await.expect("the store answers").is_empty());
    let claimed = claim(&store, &second, 1).await;
    let [Claimed { claim: won, taken_over: false, .. }] = claimed.as_slice() else { panic!("{claimed:?}") };
    assert_eq!((won.session_id.clone(), won.epoch), (story.id().clone(), held.epoch + 1));
}

pub async fn a_wake_up_comes_at_its_time(subject: &impl Subject) {
    let store = subject.store();
    let replica = registered(&*store, "a").await;
    // Woken and released at once, so that the store itself says what time it is.
    let (story, held) = claimed_session(&*store, &replica, 1).await;
    assert_eq!(store.next_wake().await.expect("the store answers"), None);
    let far = session::Timestamp::from_micros(i64::MAX / 2);
    let release = Wake::Release { wake_at: Some(far) };
    store.append(story.aside().by(&held).with(release)).await.expect("the claim is good");
    assert!(claim(&store, &replica, 1).await.is_empty(), "it sleeps");
    assert_eq!(store.next_wake().await.expect("the store answers"), Some(far));

    store.append(story.aside().waking()).await.expect("the position holds");
    assert_eq!(store.next_wake().await.expect("the store answers"), None, "a wake-up only comes earlier");
    let again = claim(&store, &replica, 1).await.remove(0).claim;

    let soon = subject_now(subject, &replica).await.plus_millis(60_000);
    let release = Wake::Release { wake_at: Some(soon) };
    store.append(story.aside().by(&again).with(release)).await.expect("the claim is good");
    assert!(claim(&store, &replica, 1).await.is_empty(), "it sleeps");
    assert_eq!(store.next_wake().await.expect("the store answers"), Some(soon));
    subject.advance(60_000).await;
    assert_eq!(claim(&store, &replica, 1).await.len(), 1, "its time has come");
}

/// The store's time, as the creation of a work item tells it.
async fn subject_now(subject: &impl Subject, _replica: &ReplicaId) -> session::Timestamp {
    let store = subject.store();
    super::story::queued_session(&*store, 999, Default::default()).await;
    let items = store.list_items(&crate::port::work_queue::Pool::Cloud, None, 1).await.expect("the store answers");
    items[0].created_at
}

pub async fn a_wake_up_frees_nothing_that_is_owned(subject: &impl Subject) {
    let store = subject.store();
    let (first, second) = (registered(&*store, "a").await, registered(&*store, "b").await);
    let (mut story, held) = claimed_session(&*store, &first, 1).await;
    store.append(story.message("more").waking()).await.expect("nobody else appends");
    assert!(claim(&store, &second, 1).await.is_empty(), "its owner lives");
    let release = Wake::Release { wake_at: None };
    store.append(story.aside().by(&held).with(release)).await.expect("the claim is good");
    assert!(claim(&store, &second, 1).await.is_empty(), "the owner saw everything and let go");
}

pub async fn the_claims_of_a_retired_replica_are_taken_over(subject: &impl Subject) {
    let store = subject.store();
    let (first, second) = (registered(&*store, "a").await, registered(&*store, "b").await);
    let (mut story, lost) = claimed_session(&*store, &first, 1).await;
    assert!(claim(&store, &second, 1).await.is_empty(), "its owner lives");
    store.retire(&first).await.expect("the store answers");
    pass(subject, &second, LONG_MS).await;
    let claimed = claim(&store, &second, 1).await;
    let [Claimed { claim: won, taken_over: true, .. }] = claimed.as_slice() else { panic!("{claimed:?}") };
    assert_eq!(won.epoch, lost.epoch + 1);
    let refused = store.append(story.answer("late").remove(0).by(&lost)).await;
    assert!(matches!(refused, Err(AppendError::Fenced)));
}

pub async fn the_claims_of_a_silent_replica_are_taken_over(subject: &impl Subject) {
    if !subject.silence_is_death() {
        return;
    }
    let store = subject.store();
    let (first, second) = (registered(&*store, "a").await, registered(&*store, "b").await);
    let (_, lost) = claimed_session(&*store, &first, 1).await;
    for _ in 0..LONG_MS / 200 {
        beat(&*store, &first).await;
        pass(subject, &second, 200).await;
    }
    assert!(claim(&store, &second, 1).await.is_empty(), "who beats lives");
    pass(subject, &second, 2_000).await;
    assert!(claim(&store, &second, 1).await.is_empty(), "a pause is no death");
    pass(subject, &second, 2_000).await;
    let claimed = claim(&store, &second, 1).await;
    let [Claimed { claim: won, taken_over: true, .. }] = claimed.as_slice() else { panic!("{claimed:?}") };
    assert_eq!(won.epoch, lost.epoch + 1);
    beat(&*store, &first).await;
    assert!(claim(&store, &first, 1).await.is_empty(), "who comes back finds another owner");
}

pub async fn a_judge_watches_before_it_judges(subject: &impl Subject) {
    if !subject.silence_is_death() {
        return;
    }
    let store = subject.store();
    let (first, second) = (registered(&*store, "a").await, registered(&*store, "b").await);
    claimed_session(&*store, &first, 1).await;
    // Both are away for a minute, as when the database was: the judge comes back first.
    subject.advance(60_000).await;
    beat(&*store, &second).await;
    assert!(claim(&store, &second, 1).await.is_empty(), "it saw nothing of that minute");
    pass(subject, &second, 2_000).await;
    assert!(claim(&store, &second, 1).await.is_empty(), "it has not watched for long");
    beat(&*store, &first).await;
    pass(subject, &second, 2_000).await;
    assert!(claim(&store, &second, 1).await.is_empty(), "the owner came back in time");
    pass(subject, &second, 2_000).await;
    assert_eq!(claim(&store, &second, 1).await.len(), 1, "the owner fell silent");
}

pub async fn a_judge_that_slept_judges_nobody(subject: &impl Subject) {
    if !subject.silence_is_death() {
        return;
    }
    let store = subject.store();
    let (first, second) = (registered(&*store, "a").await, registered(&*store, "b").await);
    claimed_session(&*store, &first, 1).await;
    for _ in 0..LONG_MS / 200 {
        beat(&*store, &first).await;
        pass(subject, &second, 200).await;
    }
    // The whole machine slept, and the judge's claim comes before its own beat and the owner's.
    subject.advance(60_000).await;
    assert!(claim(&store, &second, 1).await.is_empty(), "it saw nothing of that minute");
}

pub async fn a_release_cannot_miss_a_post(subject: &impl Subject) {
    let store = subject.store();
    let replica = registered(&*store, "a").await;
    for round in 0..8 {
        let (mut story, held) = claimed_session(&*store, &replica, round).await;
        let release = story.aside().by(&held).with(Wake::Release { wake_at: None });
        let post = story.message("in between").waking();
        let (released, posted) = tokio::join!(store.append(release), store.append(post));
        posted.expect("a release moves no position");
        match released {
            Ok(_) => {
                let again = claim(&store, &replica, 1).await;
                assert_eq!(again.len(), 1, "what was posted after the release wakes the session");
            }
            Err(AppendError::Conflict) => {
                let loaded = store.load(story.id()).await.expect("the store answers").expect("it is there");
                assert_eq!(loaded.claim, Some(held), "what was posted before the release stops it");
            }
            Err(error) => panic!("{error}"),
        }
    }
}

pub async fn an_old_claim_releases_nothing(subject: &impl Subject) {
    let store = subject.store();
    let replica = registered(&*store, "a").await;
    let (story, old) = claimed_session(&*store, &replica, 1).await;
    store.release(&old, false).await.expect("the store answers");
    let new = claim(&store, &replica, 1).await.remove(0).claim;
    store.release(&old, false).await.expect("a lost claim is no error");
    let loaded = store.load(story.id()).await.expect("the store answers").expect("it is there");
    assert_eq!(loaded.claim, Some(new));
}

pub async fn a_session_that_was_handed_over_is_told_once(subject: &impl Subject) {
    let store = subject.store();
    let replica = registered(&*store, "a").await;
    let (mut story, first) = claimed_session(&*store, &replica, 1).await;
    let told = async || store.load(&session_id(1)).await.expect("the store answers").expect("it is there").handed_over;
    assert!(!told().await);
    store.release(&first, true).await.expect("the store answers");
    assert!(told().await);
    let second = claim(&store, &replica, 1).await.remove(0);
    assert!(second.handed_over && !second.taken_over);
    store.release(&second.claim, false).await.expect("the store answers");
    let third = claim(&store, &replica, 1).await.remove(0);
    assert!(!third.handed_over, "it was somebody's in between");

    store.release(&third.claim, true).await.expect("the store answers");
    let wish = Wake::Now { claim_for: Some(replica.clone()) };
    let appended = store.append(story.message("more").with(wish)).await.expect("nobody else appends");
    let fourth = appended.claim.expect("nobody owns it");
    assert!(!told().await, "whoever appended knows it from what was loaded");
    store.release(&fourth, false).await.expect("the store answers");
    assert!(!claim(&store, &replica, 1).await[0].handed_over);
}

pub async fn a_lost_turn_is_found(subject: &impl Subject) {
    let store = subject.store();
    let replica = registered(&*store, "a").await;
    let (_, created) = Story::begin(1);
    store.append(created).await.expect("the session is new");
    due_session(&*store, 2).await;
    let held = claim(&store, &replica, 1).await.remove(0).claim;
    assert_eq!(store.wake_lost(10).await.expect("the store answers"), 0, "an owner drives it");
    store.release(&held, false).await.expect("the store answers");
    assert_eq!(store.wake_lost(10).await.expect("the store answers"), 0, "it is due");
    assert_eq!(claim(&store, &replica, 1).await.len(), 1);
    let (story, held) = claimed_session(&*store, &replica, 3).await;
    // No rule of a session lets it go like this in mid-turn.
    let lose = Wake::Release { wake_at: None };
    store.append(story.aside().by(&held).with(lose)).await.expect("the claim is good");
    claim(&store, &replica, 10).await;
    assert_eq!(store.wake_lost(10).await.expect("the store answers"), 1);
    let found = claim(&store, &replica, 10).await;
    assert_eq!(found.iter().map(|won| &won.claim.session_id).collect::<Vec<_>>(), [story.id()]);
}

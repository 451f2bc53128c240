//! What an append commits, and when it does nothing.

use std::sync::Arc;

use session::state::Status;
use tokio::task::JoinSet;

use super::story::{
    Phrase as _, Setting, Story, claimed_session, due_session, end_item, queued_session, registered, work_id,
};
use super::{Store, Subject};
use crate::port::work_queue::Pool;
use crate::port::{AfterLease, Append, AppendError, Claim, StoredRecord, Wake, WorkChange};

async fn load(store: &Arc<dyn Store>, story: &Story) -> crate::port::Loaded {
    store.load(story.id()).await.expect("the store answers").expect("the session is there")
}

async fn log(store: &Arc<dyn Store>, story: &Story) -> Vec<StoredRecord> {
    store.read(story.id(), 0, 10_000).await.expect("the store answers")
}

pub async fn a_first_append_creates_the_session(subject: &impl Subject) {
    let store = subject.store();
    let (story, created) = Story::begin(1);
    assert!(store.load(story.id()).await.expect("the store answers").is_none());
    let appended = store.append(created.clone()).await.expect("the session is new");
    assert_eq!(appended, Default::default());
    let loaded = load(&store, &story).await;
    assert_eq!((loaded.state, loaded.claim), (story.state.clone(), None));
    let records: Vec<_> = log(&store, &story).await.into_iter().map(|stored| stored.record).collect();
    assert_eq!(records, story.records);
    assert!(matches!(store.append(created).await, Err(AppendError::Conflict)), "it is created once");
}

pub async fn an_append_elsewhere_is_a_conflict(subject: &impl Subject) {
    let store = subject.store();
    let (mut story, created) = Story::begin(1);
    let mut other = story.clone();
    let too_early = story.clone().message("before the creation");
    assert!(matches!(store.append(too_early).await, Err(AppendError::Conflict)), "no session begins in the middle");
    store.append(created).await.expect("the session is new");

    store.append(story.message("first")).await.expect("nobody else appends");
    assert!(matches!(store.append(other.message("second")).await, Err(AppendError::Conflict)));
    let ahead = { story.clone().answer("x").pop().expect("two appends") };
    assert!(matches!(store.append(ahead).await, Err(AppendError::Conflict)), "no gap is left");
    assert_eq!(load(&store, &story).await.state, story.state);
    assert_eq!(log(&store, &story).await.len(), story.records.len());
}

pub async fn one_of_many_concurrent_appends_wins(subject: &impl Subject) {
    const WRITERS: usize = 8;
    let store = subject.store();
    let (story, created) = Story::begin(1);
    store.append(created).await.expect("the session is new");

    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        let (store, story) = (store.clone(), story.clone());
        writers.spawn(async move {
            let mut conflicts = 0;
            let mut story = story;
            loop {
                story.state = load(&store, &story).await.state;
                match store.append(story.message(&format!("from {writer}"))).await {
                    Ok(_) => return conflicts,
                    Err(AppendError::Conflict) => conflicts += 1,
                    Err(error) => panic!("{error}"),
                }
            }
        });
    }
    let conflicts: usize = writers.join_all().await.into_iter().sum();
    assert!(conflicts <= WRITERS * (WRITERS - 1) / 2, "each conflict is somebody else's success");

    let records = log(&store, &story).await;
    let positions: Vec<u64> = records.iter().map(|stored| stored.record.position).collect();
    assert_eq!(positions, (1..=positions.len() as u64).collect::<Vec<_>>(), "positions have no gap");
    let messages = records.iter().filter(|stored| stored.record.event.kind() == "user.message").count();
    assert_eq!(messages, WRITERS, "every message is there once");
    let folded = session::fold(None, records.iter().map(|stored| &stored.record));
    assert_eq!(Some(load(&store, &story).await.state), folded);
}

pub async fn a_lost_claim_is_fenced(subject: &impl Subject) {
    let store = subject.store();
    let (first, second) = (registered(&*store, "a").await, registered(&*store, "b").await);
    let (mut story, claim) = claimed_session(&*store, &first, 1).await;
    let stale = story.clone();

    let stranger = Claim { replica_id: second.clone(), ..claim.clone() };
    let older = Claim { epoch: claim.epoch - 1, ..claim.clone() };
    for wrong in [&stranger, &older] {
        let refused = store.append(story.clone().answer("x").remove(0).by(wrong)).await;
        assert!(matches!(refused, Err(AppendError::Fenced)), "{wrong:?}: {refused:?}");
    }
    for append in story.answer("done") {
        store.append(append.by(&claim)).await.expect("the owner appends");
    }
    assert_eq!(load(&store, &story).await.claim, Some(claim.clone()));

    store.release(&claim, false).await.expect("the store answers");
    let again = store.claim(&first, 1).await.expect("the store answers");
    assert_eq!(again[0].claim.epoch, claim.epoch + 1);
    let refused = store.append(story.aside().by(&claim)).await;
    assert!(matches!(refused, Err(AppendError::Fenced)), "it is the same replica's, and another claim: {refused:?}");

    store.release(&again[0].claim, false).await.expect("the store answers");
    let again = store.claim(&second, 1).await.expect("the store answers");
    assert_eq!(again[0].claim.epoch, claim.epoch + 2);
    let refused = store.append(stale.clone().answer("x").remove(0).by(&claim)).await;
    assert!(matches!(refused, Err(AppendError::Fenced)), "the claim is looked at before the position");
    assert_eq!(load(&store, &story).await.state, story.state);
}

pub async fn a_wish_for_the_claim_is_granted_once(subject: &impl Subject) {
    let store = subject.store();
    let (first, second) = (registered(&*store, "a").await, registered(&*store, "b").await);
    let (mut story, created) = Story::begin(1);
    let wish = |replica: &session::id::ReplicaId| Wake::Now { claim_for: Some(replica.clone()) };
    store.append(created).await.expect("the session is new");

    let appended = store.append(story.message("one").with(wish(&first))).await.expect("nobody else appends");
    let claim = appended.claim.expect("nobody owns the session");
    assert_eq!((&claim.replica_id, &claim.session_id), (&first, story.id()));
    assert_eq!(load(&store, &story).await.claim, Some(claim.clone()));
    for replica in [&second, &first] {
        let appended = store.append(story.message("two").with(wish(replica))).await.expect("nobody else appends");
        assert_eq!(appended.claim, None, "the session has an owner");
    }
    assert!(store.claim(&second, 10).await.expect("the store answers").is_empty(), "its owner lives");
    store.append(story.answer("done").remove(0).by(&claim)).await.expect("the claim is good");
}

pub async fn side_rows_change_without_records(subject: &impl Subject) {
    let store = subject.store();
    let replica = registered(&*store, "a").await;
    let (story, claim) = claimed_session(&*store, &replica, 1).await;
    let release = Wake::Release { wake_at: None };
    store.append(story.aside().by(&claim).with(release.clone())).await.expect("nothing has moved");
    let loaded = load(&store, &story).await;
    assert_eq!((loaded.state.position, loaded.claim), (story.state.position, None));
    assert!(store.claim(&replica, 1).await.expect("the store answers").is_empty(), "nothing is due");
    assert!(matches!(store.append(story.aside().by(&claim)).await, Err(AppendError::Fenced)));

    let queued = store.append(story.aside().and(WorkChange::Ensure { work_id: work_id(1) })).await;
    assert!(queued.expect("the position holds").queued);
    let (unknown, _) = Story::begin(2);
    assert!(matches!(store.append(unknown.aside()).await, Err(AppendError::Conflict)), "there is no such session");
}

pub async fn a_token_that_ended_is_told_so(subject: &impl Subject) {
    let store = subject.store();
    let mut story = queued_session(&*store, 1, Setting::default()).await;
    let id = work_id(1);
    store.poll(&Pool::Cloud, "worker", 5000, "token-1").await.expect("the store answers").expect("an item is queued");
    store.append(story.message("allowed").under(&id, "token-1")).await.expect("the token is good");

    for (id, token) in [(&id, "token-0"), (&work_id(9), "token-1")] {
        let refused = store.append(story.clone().message("no").under(id, token)).await;
        assert!(matches!(refused, Err(AppendError::TokenEnded)), "{refused:?}");
    }
    let other = due_session(&*store, 2).await;
    let refused = store.append(other.clone().message("no").under(&id, "token-1")).await;
    assert!(matches!(refused, Err(AppendError::TokenEnded)), "a token is good for its own session");

    let stale = story.clone();
    store.append(story.message("more")).await.expect("nobody else appends");
    let refused = store.append(stale.clone().message("late").under(&id, "token-1")).await;
    assert!(matches!(refused, Err(AppendError::Conflict)), "{refused:?}");
    end_item(&*store, &story, &id).await;
    let refused = store.append(stale.clone().message("late").under(&id, "token-1")).await;
    assert!(matches!(refused, Err(AppendError::TokenEnded)), "the token is looked at before the position");
}

pub async fn a_refused_append_leaves_nothing_behind(subject: &impl Subject) {
    let store = subject.store();
    let mut story = queued_session(&*store, 1, Setting::default()).await;
    let before = (load(&store, &story).await.state, log(&store, &story).await);
    let nobody_holds_it =
        WorkChange::EndLease { work_id: work_id(1), seen: Some(super::story::DAWN), then: AfterLease::Requeue };
    let refused = store.append(story.message("lost").waking().and(nobody_holds_it)).await;
    assert!(matches!(refused, Err(AppendError::Conflict)), "{refused:?}");
    assert_eq!((load(&store, &story).await.state, log(&store, &story).await), before);
    let replica = registered(&*store, "a").await;
    assert!(store.claim(&replica, 1).await.expect("the store answers").is_empty(), "nobody was woken");

    // A guard that fails does not touch the item either.
    let item = store.poll(&Pool::Cloud, "worker", 5000, "token").await.expect("the store answers").expect("queued");
    store.acknowledge(&Pool::Cloud, &item.id, None).await.expect("the store answers");
    let held = store.item(&Pool::Cloud, &item.id).await.expect("the store answers").expect("it is there");
    let seen = held.last_sign_at();
    let end = WorkChange::EndLease { work_id: item.id.clone(), seen, then: AfterLease::Stop };
    let elsewhere = Append { work: end, ..story.message("at a position that is not there") };
    assert!(matches!(store.append(elsewhere).await, Err(AppendError::Conflict)));
    let after = store.item(&Pool::Cloud, &item.id).await.expect("the store answers");
    assert_eq!(after, Some(held));
}

pub async fn a_refused_append_spares_its_neighbours(subject: &impl Subject) {
    const SESSIONS: u32 = 24;
    let store = subject.store();
    let mut appends = JoinSet::new();
    for number in 0..SESSIONS {
        let (mut story, created) = Story::begin(number);
        store.append(created).await.expect("the session is new");
        let before = story.state.clone();
        let mut append = story.message("a message");
        let refused = number % 2 == 0;
        if refused {
            // Found out last, when everything else of the append has been written.
            append.work = WorkChange::EndLease {
                work_id: work_id(number),
                seen: Some(super::story::DAWN),
                then: AfterLease::Requeue,
            };
        }
        let store = store.clone();
        appends.spawn(async move {
            let appended = store.append(append).await;
            assert_eq!(matches!(appended, Err(AppendError::Conflict)), refused, "{appended:?}");
            let expected = if refused { before } else { story.state.clone() };
            assert_eq!(load(&store, &story).await.state, expected);
            assert_eq!(log(&store, &story).await.len() as u64, expected.position);
        });
    }
    appends.join_all().await;
}

pub async fn hostile_text_survives(subject: &impl Subject) {
    let store = subject.store();
    let (mut story, created) = Story::begin(1);
    store.append(created).await.expect("the session is new");
    let text = "NUL \0, escape \u{1b}[2J, quote \" ' \\ \\u0000, \u{10ffff}, '; DROP TABLE sessions; --";
    let update = session::Command::Update {
        title: Some(Some(text.to_owned())),
        metadata: [(text.to_owned(), Some(text.to_owned()))].into(),
        agent: None,
    };
    store.append(story.tell(update)).await.expect("nobody else appends");
    store.append(story.message(text)).await.expect("nobody else appends");
    assert_eq!(load(&store, &story).await.state, story.state);
    let records: Vec<_> = log(&store, &story).await.into_iter().map(|stored| stored.record).collect();
    assert_eq!(records, story.records);
}

pub async fn large_content_survives(subject: &impl Subject) {
    let store = subject.store();
    let (mut story, created) = Story::begin(1);
    store.append(created).await.expect("the session is new");
    let text = "0123456789abcdef".repeat(50_000);
    store.append(story.message(&text)).await.expect("nobody else appends");
    store.append(story.message(&text)).await.expect("nobody else appends");
    for append in story.answer(&text) {
        store.append(append).await.expect("nobody else appends");
    }
    let records: Vec<_> = log(&store, &story).await.into_iter().map(|stored| stored.record).collect();
    assert!(records == story.records, "what was large is read as it was written");
    assert_eq!(load(&store, &story).await.state.status, Status::Running, "the second message waits its turn");
}

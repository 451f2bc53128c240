//! The life of work items.

use std::sync::Arc;

use session::Command;
use session::event::EnvironmentKind;
use session::id::{EnvironmentId, WorkId};

use super::story::{Phrase as _, Setting, Story, end_item, queued_session, work_id};
use super::{Store, Subject};
use crate::port::work_queue::{Acknowledged, ExpectedHeartbeat, Heartbeat, Pool};
use crate::port::{After, AfterLease, Append, AppendError, WorkChange, WorkItem, WorkQueue, WorkState};

const CLOUD: Pool = Pool::Cloud;

fn self_hosted(environment: &str) -> (Pool, Setting) {
    let id = EnvironmentId::from(environment);
    let environment_kind = EnvironmentKind::SelfHosted;
    (Pool::Environment(id.clone()), Setting { environment_id: id, environment_kind, ..Setting::default() })
}

async fn poll(store: &Arc<dyn Store>, token: &str) -> Option<WorkItem> {
    store.poll(&CLOUD, "worker", 5_000, token).await.expect("the store answers")
}

async fn beat(store: &Arc<dyn Store>, id: &WorkId, expected: ExpectedHeartbeat) -> Heartbeat {
    WorkQueue::heartbeat(&**store, &CLOUD, id, &expected, None).await.expect("the store answers")
}

async fn item(store: &Arc<dyn Store>, id: &WorkId) -> WorkItem {
    store.item(&CLOUD, id).await.expect("the store answers").expect("the item is there")
}

/// A session whose item `work_id(number)` is held under `token`.
async fn held(store: &Arc<dyn Store>, number: u32, token: &str) -> (Story, WorkItem) {
    let story = queued_session(&**store, number, Setting::default()).await;
    let polled = poll(store, token).await.expect("an item is queued");
    assert_eq!(polled.id, work_id(number));
    match store.acknowledge(&CLOUD, &polled.id, None).await.expect("the store answers") {
        Acknowledged::Yes(item) => (story, item),
        lost => panic!("{lost:?}"),
    }
}

/// The append that ends the lease of `item` as it was seen.
fn ending(story: &Story, item: &WorkItem, then: AfterLease) -> Append {
    let seen = item.last_sign_at();
    story.aside().and(WorkChange::EndLease { work_id: item.id.clone(), seen, then })
}

pub async fn a_session_has_one_item(subject: &impl Subject) {
    let store = subject.store();
    let story = queued_session(&*store, 1, Setting::default()).await;
    let ensure = |number| story.aside().and(WorkChange::Ensure { work_id: work_id(number) });
    let again = store.append(ensure(2)).await.expect("nothing has moved");
    assert!(!again.queued, "it has an item that lives");
    let queued = item(&store, &work_id(1)).await;
    assert_eq!((queued.state, &queued.session_id), (WorkState::Queued, story.id()));
    assert_eq!((&queued.environment_id, queued.environment_kind), (&"env_story".into(), EnvironmentKind::Cloud));
    assert!(store.item(&CLOUD, &work_id(2)).await.expect("the store answers").is_none());

    end_item(&*store, &story, &work_id(1)).await;
    assert!(store.append(ensure(3)).await.expect("nothing has moved").queued, "the old one has ended");
    assert_eq!(item(&store, &work_id(3)).await.state, WorkState::Queued);
}

pub async fn items_are_handed_out_in_order(subject: &impl Subject) {
    let store = subject.store();
    for number in [2, 1, 3] {
        queued_session(&*store, number, Setting::default()).await;
        subject.advance(10).await;
    }
    for (number, token) in [(2, "t2"), (1, "t1"), (3, "t3")] {
        let polled = poll(&store, token).await.expect("an item is queued");
        assert_eq!((polled.id, polled.state), (work_id(number), WorkState::Queued));
    }
    assert_eq!(poll(&store, "t4").await, None, "all are handed out");
    let mine = store.item_by_token("t1").await.expect("the store answers").expect("the token is good");
    assert_eq!(mine.id, work_id(1));
    assert_eq!(store.item_by_token("t4").await.expect("the store answers"), None);
}

pub async fn an_item_is_handed_out_again(subject: &impl Subject) {
    let store = subject.store();
    queued_session(&*store, 1, Setting::default()).await;
    assert!(poll(&store, "first").await.is_some());
    subject.advance(1_000).await;
    assert_eq!(poll(&store, "early").await, None, "the first worker may still acknowledge");
    subject.advance(5_000).await;
    assert!(poll(&store, "second").await.is_some());
    assert_eq!(store.item_by_token("first").await.expect("the store answers"), None, "a new token ends the old");
    assert!(store.item_by_token("second").await.expect("the store answers").is_some());
}

pub async fn an_acknowledged_item_is_held(subject: &impl Subject) {
    let store = subject.store();
    queued_session(&*store, 1, Setting::default()).await;
    let acknowledge = async |id: &WorkId| store.acknowledge(&CLOUD, id, None).await.expect("the store answers");
    assert_eq!(acknowledge(&work_id(1)).await, Acknowledged::Lost, "nobody was given it");
    assert_eq!(acknowledge(&work_id(9)).await, Acknowledged::NotFound);
    assert_eq!(beat(&store, &work_id(9), ExpectedHeartbeat::Any).await, Heartbeat::NotFound);
    poll(&store, "token").await.expect("an item is queued");
    let Acknowledged::Yes(held) = acknowledge(&work_id(1)).await else { panic!("it was handed out") };
    assert_eq!((held.state, held.latest_heartbeat_at), (WorkState::Starting, None));
    assert!(held.acknowledged_at.is_some());
    assert_eq!(acknowledge(&work_id(1)).await, Acknowledged::Lost, "it is held");
    subject.advance(6_000).await;
    assert_eq!(poll(&store, "other").await, None, "what is held is not handed out");
}

pub async fn a_heartbeat_names_the_last_one(subject: &impl Subject) {
    let store = subject.store();
    queued_session(&*store, 1, Setting::default()).await;
    let id = work_id(1);
    let unheld = beat(&store, &id, ExpectedHeartbeat::None).await;
    assert!(matches!(unheld, Heartbeat::Mismatch { .. }), "nobody holds it: {unheld:?}");
    poll(&store, "token").await.expect("an item is queued");
    store.acknowledge(&CLOUD, &id, None).await.expect("the store answers");

    let Heartbeat::Beat { item: first, lease_extended: true } = beat(&store, &id, ExpectedHeartbeat::None).await else {
        panic!("the lease is unclaimed")
    };
    assert_eq!(first.state, WorkState::Active);
    let last = first.latest_heartbeat_at.expect("it was beaten");
    assert!(first.started_at.is_some());
    let claimed = beat(&store, &id, ExpectedHeartbeat::None).await;
    assert_eq!(claimed, Heartbeat::Mismatch { item: first.clone() });
    let wrong = beat(&store, &id, ExpectedHeartbeat::At(last.successor())).await;
    assert_eq!(wrong, Heartbeat::Mismatch { item: first.clone() });

    let second =
        WorkQueue::heartbeat(&*store, &CLOUD, &id, &ExpectedHeartbeat::At(last), Some(60)).await.expect("it answers");
    let Heartbeat::Beat { item: second, lease_extended: true } = second else { panic!("it named the last one") };
    assert_eq!((second.lease_ttl_seconds, second.started_at), (60, first.started_at));
    assert!(second.latest_heartbeat_at > Some(last), "no two beats have one time");
    let old = beat(&store, &id, ExpectedHeartbeat::At(last)).await;
    assert!(matches!(old, Heartbeat::Mismatch { .. }), "{old:?}");
    let any = beat(&store, &id, ExpectedHeartbeat::Any).await;
    assert!(matches!(any, Heartbeat::Beat { lease_extended: true, .. }), "{any:?}");
    assert_eq!(item(&store, &id).await.lease_ttl_seconds, 60, "a length once asked for stays");
}

pub async fn a_holder_is_asked_to_stop(subject: &impl Subject) {
    let store = subject.store();
    let (story, held) = held(&store, 1, "token").await;
    let ask = async |id: &WorkId| store.ask_to_stop(&CLOUD, id).await.expect("the store answers");
    let stopping = ask(&held.id).await.expect("it is held");
    assert_eq!(stopping.state, WorkState::Stopping);
    assert!(stopping.stop_requested_at.is_some());
    let Heartbeat::Beat { item: told, lease_extended: false } =
        beat(&store, &held.id, ExpectedHeartbeat::At(super::story::DAWN)).await
    else {
        panic!("a precondition is not looked at any more")
    };
    assert_eq!(told, stopping);
    assert!(store.item_by_token("token").await.expect("it answers").is_some(), "it may finish what it does");
    subject.advance(10).await;
    assert_eq!(ask(&held.id).await, Some(stopping.clone()), "asking twice is no error");
    end_item(&*store, &story, &held.id).await;
    let stopped = item(&store, &held.id).await;
    assert_eq!((stopped.state, stopped.stop_requested_at), (WorkState::Stopped, stopping.stop_requested_at));
    assert!(stopped.stopped_at.is_some());
    assert_eq!(ask(&held.id).await, None, "nobody holds it any more");
    assert_eq!(item(&store, &held.id).await, stopped);
    assert_eq!(ask(&work_id(9)).await, None);
}

pub async fn the_end_of_an_item_ends_its_token(subject: &impl Subject) {
    let store = subject.store();
    let (mut story, held) = held(&store, 1, "token").await;
    store.append(story.message("a result").under(&held.id, "token")).await.expect("the token is good");
    end_item(&*store, &story, &held.id).await;
    assert_eq!(store.item_by_token("token").await.expect("the store answers"), None);
    let refused = store.append(story.clone().message("late").under(&held.id, "token")).await;
    assert!(matches!(refused, Err(AppendError::TokenEnded)), "{refused:?}");
    let told = beat(&store, &held.id, ExpectedHeartbeat::Any).await;
    assert!(matches!(told, Heartbeat::Beat { lease_extended: false, .. }), "{told:?}");
}

pub async fn an_item_in_the_queue_is_replaced(subject: &impl Subject) {
    let store = subject.store();
    let story = queued_session(&*store, 1, Setting::default()).await;
    let queued = item(&store, &work_id(1)).await;
    assert_eq!(store.ask_to_stop(&CLOUD, &work_id(1)).await.expect("the store answers"), None);
    assert_eq!(item(&store, &work_id(1)).await, queued, "nobody is there to be asked");
    let replaced = ending(&story, &queued, AfterLease::Replace { work_id: work_id(2) });
    assert!(store.append(replaced.clone()).await.expect("nobody holds it").queued);
    assert_eq!(item(&store, &work_id(1)).await.state, WorkState::Stopped);
    assert!(item(&store, &work_id(1)).await.stop_requested_at.is_some());
    let again = store.append(replaced).await;
    assert!(matches!(again, Err(AppendError::Conflict)), "it has stopped: {again:?}");

    let second = item(&store, &work_id(2)).await;
    let next = poll(&store, "token").await.expect("an item is queued");
    assert_eq!(next.id, work_id(2));
    store.acknowledge(&CLOUD, &work_id(2), None).await.expect("the store answers");
    let late = store.append(ending(&story, &second, AfterLease::Stop)).await;
    assert!(matches!(late, Err(AppendError::Conflict)), "somebody holds it by now: {late:?}");
}

pub async fn a_lease_runs_out(subject: &impl Subject) {
    let store = subject.store();
    let (_, first) = held(&store, 1, "t1").await;
    let (_, second) = held(&store, 2, "t2").await;
    let expired = async || {
        let expired = store.expired(10).await.expect("the store answers");
        expired.into_iter().map(|item| item.id).collect::<Vec<_>>()
    };
    assert!(expired().await.is_empty());
    subject.advance(20_000).await;
    beat(&store, &first.id, ExpectedHeartbeat::None).await;
    subject.advance(15_000).await;
    assert_eq!(
        expired().await,
        std::slice::from_ref(&second.id),
        "a lease counts from its acknowledgement or its last beat"
    );
    subject.advance(20_000).await;
    let mut both = expired().await;
    both.sort();
    assert_eq!(both, [first.id.clone(), second.id]);
    assert_eq!(store.expired(1).await.expect("the store answers").len(), 1, "a limit is a limit");
    let revived = beat(&store, &first.id, ExpectedHeartbeat::Any).await;
    assert!(matches!(revived, Heartbeat::Beat { lease_extended: true, .. }), "nobody ended it yet: {revived:?}");
    assert_eq!(expired().await.len(), 1);
}

pub async fn a_lease_that_ends_is_queued_again(subject: &impl Subject) {
    let store = subject.store();
    let (mut story, held) = held(&store, 1, "token").await;
    beat(&store, &held.id, ExpectedHeartbeat::None).await;
    store.ask_to_stop(&CLOUD, &held.id).await.expect("the store answers").expect("it is held");
    subject.advance(31_000).await;
    let expired = store.expired(10).await.expect("the store answers").remove(0);
    let appended = store.append(ending(&story, &expired, AfterLease::Requeue)).await.expect("nothing has moved");
    assert!(appended.queued, "workers are to hear of it");
    let queued = item(&store, &held.id).await;
    assert_eq!((queued.state, queued.latest_heartbeat_at, queued.acknowledged_at), (WorkState::Queued, None, None));
    assert_eq!(queued.stop_requested_at, None, "the next holder is not asked");
    let refused = store.append(story.message("late").under(&held.id, "token")).await;
    assert!(matches!(refused, Err(AppendError::TokenEnded)), "{refused:?}");
    let old = beat(&store, &held.id, ExpectedHeartbeat::Any).await;
    assert!(matches!(old, Heartbeat::Mismatch { .. }), "the old holder learns of it: {old:?}");
    assert_eq!(poll(&store, "next").await.expect("it is queued").id, held.id);
}

pub async fn a_revived_lease_is_not_ended(subject: &impl Subject) {
    let store = subject.store();
    let (mut story, held) = held(&store, 1, "token").await;
    subject.advance(31_000).await;
    let expired = store.expired(10).await.expect("the store answers").remove(0);
    beat(&store, &held.id, ExpectedHeartbeat::None).await;
    let before = item(&store, &held.id).await;
    let mut end = ending(&story, &expired, AfterLease::Requeue);
    let refused = store.append(end.clone()).await;
    assert!(matches!(refused, Err(AppendError::Conflict)), "{refused:?}");
    assert_eq!(item(&store, &held.id).await, before);

    // The same for a lease that was ended meanwhile.
    store.append(ending(&story, &before, AfterLease::Requeue)).await.expect("nothing has moved");
    let message = story.message("meanwhile");
    store.append(message).await.expect("nobody else appends");
    end.state = story.state.clone();
    let refused = store.append(end).await;
    assert!(matches!(refused, Err(AppendError::Conflict)), "{refused:?}");
}

pub async fn a_result_and_the_end_of_its_lease_exclude_each_other(subject: &impl Subject) {
    let store = subject.store();
    for number in 0..10 {
        let token = format!("token-{number}");
        let (mut story, item) = held(&store, number, &token).await;
        let end = ending(&story, &item, AfterLease::Stop);
        let result = story.message("a result").under(&item.id, &token);
        let (ended, posted) = tokio::join!(store.append(end), store.append(result));
        match (&ended, &posted) {
            (Ok(_), Err(AppendError::TokenEnded | AppendError::Conflict)) => {}
            (Err(AppendError::Conflict), Ok(_)) => {}
            both => panic!("one of them comes first and stops the other: {both:?}"),
        }
        let after = self::item(&store, &item.id).await;
        assert_eq!(after.state == WorkState::Stopped, ended.is_ok());
    }
}

pub async fn a_lease_can_be_ended_early(subject: &impl Subject) {
    let store = subject.store();
    let (story, first) = held(&store, 1, "t1").await;
    let (pool, setting) = self_hosted("env_mine");
    queued_session(&*store, 2, setting).await;
    store.poll(&pool, "worker", 5_000, "t2").await.expect("the store answers").expect("it is queued");
    store.acknowledge(&pool, &work_id(2), None).await.expect("the store answers");
    queued_session(&*store, 3, Setting::default()).await;
    let cloud = store.held_cloud_items().await.expect("the store answers");
    assert_eq!(cloud, std::slice::from_ref(&first), "held, and of the cloud");
    store.append(ending(&story, &first, AfterLease::Stop)).await.expect("nothing has moved");
    assert_eq!(item(&store, &first.id).await.state, WorkState::Stopped);
    assert!(store.held_cloud_items().await.expect("the store answers").is_empty());
    assert_eq!(store.item_by_token("t1").await.expect("the store answers"), None);
}

pub async fn a_holder_ends_its_own_lease(subject: &impl Subject) {
    let store = subject.store();
    let (mut story, first) = held(&store, 1, "t1").await;
    let replace = AfterLease::Replace { work_id: work_id(2) };
    let stale = ending(&story, &first, replace.clone()).under(&first.id, "t0");
    let refused = store.append(stale).await;
    assert!(matches!(refused, Err(AppendError::TokenEnded)), "{refused:?}");
    let seen = first.last_sign_at();
    let end = WorkChange::EndLease { work_id: first.id.clone(), seen, then: replace };
    let appended = store.append(story.message("unseen").under(&first.id, "t1").and(end)).await;
    assert!(appended.expect("the token is the item's").queued, "what is left has an item of its own");
    assert_eq!(item(&store, &first.id).await.state, WorkState::Stopped);
    let next = poll(&store, "t2").await.expect("an item is queued");
    assert_eq!((next.id, next.session_id), (work_id(2), first.session_id));

    store.acknowledge(&CLOUD, &work_id(2), Some(7)).await.expect("the store answers");
    let second = item(&store, &work_id(2)).await;
    assert_eq!((first.lease_ttl_seconds, second.lease_ttl_seconds), (30, 7));
    let end = ending(&story, &second, AfterLease::Stop).under(&second.id, "t2");
    assert!(!store.append(end).await.expect("the token is the item's").queued);
    assert_eq!(poll(&store, "t3").await, None);
}

pub async fn the_end_of_a_session_stops_its_item(subject: &impl Subject) {
    let store = subject.store();
    let (mut story, held) = held(&store, 1, "token").await;
    beat(&store, &held.id, ExpectedHeartbeat::None).await;
    assert!(store.expired(10).await.expect("the store answers").is_empty());
    for append in story.answer("done") {
        store.append(append).await.expect("nobody else appends");
    }
    store.append(story.tell(Command::Archive).and(WorkChange::Stop)).await.expect("nobody else appends");
    let stopping = item(&store, &held.id).await;
    assert_eq!(stopping.state, WorkState::Stopping, "its holder is told");
    let expired = store.expired(10).await.expect("the store answers");
    assert_eq!(expired, std::slice::from_ref(&stopping), "the engine ends it");
    store.append(ending(&story, &stopping, AfterLease::Stop)).await.expect("nothing has moved");
    assert_eq!(item(&store, &held.id).await.state, WorkState::Stopped);

    let mut story = queued_session(&*store, 2, Setting::default()).await;
    store.append(story.message("and more").and(WorkChange::Stop)).await.expect("nobody else appends");
    assert_eq!(item(&store, &work_id(2)).await.state, WorkState::Stopped, "nobody held it");
    store.append(story.aside().and(WorkChange::Stop)).await.expect("stopping nothing is no error");
}

pub async fn pools_see_their_own_items(subject: &impl Subject) {
    let store = subject.store();
    let (mine, my_setting) = self_hosted("env_mine");
    let (other, _) = self_hosted("env_other");
    queued_session(&*store, 1, Setting::default()).await;
    queued_session(&*store, 2, my_setting).await;
    let cloud_environment = Pool::Environment("env_story".into());
    let cases = [(&CLOUD, vec![1]), (&mine, vec![2]), (&other, vec![]), (&cloud_environment, vec![])];
    for (pool, visible) in &cases {
        for number in [1, 2] {
            let found = store.item(pool, &work_id(number)).await.expect("the store answers");
            assert_eq!(found.is_some(), visible.contains(&number), "{pool:?} {number}");
            if !visible.contains(&number) {
                let id = work_id(number);
                let beaten =
                    WorkQueue::heartbeat(&*store, pool, &id, &ExpectedHeartbeat::Any, None).await.expect("it answers");
                assert_eq!(beaten, Heartbeat::NotFound);
                assert_eq!(store.acknowledge(pool, &id, None).await.expect("it answers"), Acknowledged::NotFound);
                assert!(store.set_metadata(pool, &id, &Default::default(), None).await.expect("it answers").is_none());
            }
        }
        let listed = store.list_items(pool, None, 10).await.expect("the store answers");
        let ids: Vec<WorkId> = listed.into_iter().map(|item| item.id).collect();
        assert_eq!(ids, visible.iter().map(|number| work_id(*number)).collect::<Vec<_>>());
        assert_eq!(store.stats(pool).await.expect("the store answers").depth, visible.len() as u64);
    }
    for (pool, visible) in &cases {
        let polled = store.poll(pool, "worker", 5_000, &format!("{pool:?}")).await.expect("the store answers");
        assert_eq!(polled.map(|item| item.id), visible.first().map(|number| work_id(*number)));
        for number in visible {
            store.acknowledge(pool, &work_id(*number), None).await.expect("it answers");
        }
    }
    for (pool, visible) in cases {
        for number in [1, 2] {
            let asked = store.ask_to_stop(pool, &work_id(number)).await.expect("the store answers");
            assert_eq!(asked.is_some(), visible.contains(&number), "{pool:?} {number}");
        }
    }
    let hostile = WorkId::from("work_\0");
    assert!(store.item(&CLOUD, &hostile).await.expect("the store answers").is_none());
}

pub async fn metadata_is_replaced(subject: &impl Subject) {
    let store = subject.store();
    queued_session(&*store, 1, Setting::default()).await;
    assert!(item(&store, &work_id(1)).await.metadata.is_empty());
    for metadata in [[("a\0".to_owned(), "1".to_owned())], [("b".to_owned(), "\u{1F600}".to_owned())]] {
        let metadata = metadata.into();
        let changed = store.set_metadata(&CLOUD, &work_id(1), &metadata, None).await.expect("it answers");
        assert_eq!(changed.expect("it is there").metadata, metadata);
        assert_eq!(item(&store, &work_id(1)).await.metadata, metadata);
    }
}

pub async fn figures_are_counted(subject: &impl Subject) {
    let store = subject.store();
    let stats = async || store.stats(&CLOUD).await.expect("the store answers");
    assert_eq!(stats().await, Default::default());
    for number in 1..=3 {
        queued_session(&*store, number, Setting::default()).await;
        subject.advance(10).await;
    }
    let oldest = item(&store, &work_id(1)).await.created_at;
    let before = stats().await;
    assert_eq!((before.depth, before.pending, before.oldest_queued_at), (3, 0, Some(oldest)));
    for (worker, token) in [("w1", "t1"), ("w2", "t2"), ("w1", "t3")] {
        store.poll(&CLOUD, worker, 5_000, token).await.expect("the store answers").expect("it is queued");
    }
    store.acknowledge(&CLOUD, &work_id(1), None).await.expect("the store answers");
    let after = stats().await;
    assert_eq!((after.depth, after.pending, after.workers_polling), (0, 2, 2));
    subject.advance(60_000).await;
    assert_eq!(stats().await.workers_polling, 0);
}

pub async fn items_are_listed(subject: &impl Subject) {
    let store = subject.store();
    for number in 1..=5 {
        let story = queued_session(&*store, number, Setting::default()).await;
        if number == 3 {
            end_item(&*store, &story, &work_id(3)).await;
        }
        subject.advance(10).await;
    }
    let mut listed: Vec<WorkItem> = Vec::new();
    loop {
        let after = listed.last().map(|item| After { created_at: item.created_at, id: item.id.as_str().to_owned() });
        let page = store.list_items(&CLOUD, after.as_ref(), 2).await.expect("the store answers");
        if page.is_empty() {
            break;
        }
        listed.extend(page);
    }
    let ids: Vec<WorkId> = listed.into_iter().map(|item| item.id).collect();
    assert_eq!(ids, [5, 4, 3, 2, 1].map(work_id), "newest first, stopped ones included");
}

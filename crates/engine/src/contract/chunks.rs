//! References of sessions to the chunks of their snapshots.

use session::Command;

use super::story::{Phrase, Setting, Story, end_item, queued_session, work_id};
use super::{Store, Subject};
use crate::port::work_queue::Pool;
use crate::port::{AppendError, Blob, BlobHash, WorkChange};

fn hash(digit: char) -> BlobHash {
    BlobHash::parse(&digit.to_string().repeat(64)).expect("64 digits")
}

/// Says that these blobs are there.
async fn announce(store: &dyn Store, digits: &[char]) {
    for digit in digits {
        store.announce(&Blob { hash: hash(*digit), bytes: 1 }).await.expect("the store answers");
    }
}

/// A session whose item is held under `token`.
async fn held(store: &dyn Store, number: u32, token: &str) -> Story {
    let story = queued_session(store, number, Setting::default()).await;
    let polled = store.poll(&Pool::Cloud, "worker", 5_000, token).await.expect("the store answers");
    assert_eq!(polled.map(|item| item.id), Some(work_id(number)));
    story
}

pub async fn a_session_refers_to_its_own_chunks(subject: &impl Subject) {
    let store = subject.store();
    announce(&*store, &['a', 'b', 'c']).await;
    let one = held(&*store, 1, "t1").await;
    let other = held(&*store, 2, "t2").await;
    for digit in ['a', 'b', 'a'] {
        store.refer(one.id(), &work_id(1), "t1", &hash(digit)).await.expect("the token is good");
    }
    store.refer(other.id(), &work_id(2), "t2", &hash('c')).await.expect("the token is good");
    let all = ['c', 'a', 'd', 'b'].map(hash);
    assert_eq!(store.missing(one.id(), &all).await.expect("the store answers"), ['c', 'd'].map(hash));
    assert_eq!(store.missing(other.id(), &all).await.expect("the store answers"), ['a', 'd', 'b'].map(hash));
    assert_eq!(store.missing(one.id(), &[]).await.expect("the store answers"), []);
}

pub async fn a_token_that_ended_refers_to_nothing(subject: &impl Subject) {
    let store = subject.store();
    let story = held(&*store, 1, "t1").await;
    held(&*store, 2, "t2").await;
    announce(&*store, &['a']).await;
    let refer = async |work, token| store.refer(story.id(), &work_id(work), token, &hash('a')).await;
    assert!(matches!(refer(2, "t2").await, Err(AppendError::TokenEnded)), "the token of another session");
    assert!(matches!(refer(1, "t2").await, Err(AppendError::TokenEnded)));
    end_item(&*store, &story, &work_id(1)).await;
    assert!(matches!(refer(1, "t1").await, Err(AppendError::TokenEnded)));
    assert_eq!(store.missing(story.id(), &[hash('a')]).await.expect("the store answers"), [hash('a')]);
}

pub async fn old_references_are_forgotten(subject: &impl Subject) {
    let store = subject.store();
    announce(&*store, &['a', 'b', 'c']).await;
    let story = held(&*store, 1, "t1").await;
    for digit in ['a', 'b'] {
        store.refer(story.id(), &work_id(1), "t1", &hash(digit)).await.expect("the token is good");
    }
    subject.advance(10_000).await;
    store.refer(story.id(), &work_id(1), "t1", &hash('c')).await.expect("the token is good");
    let forgotten = store.forget(story.id(), &[hash('b')], 5_000).await.expect("the store answers");
    assert_eq!(forgotten, 1, "one is kept, another is new");
    let all = ['a', 'b', 'c'].map(hash);
    assert_eq!(store.missing(story.id(), &all).await.expect("the store answers"), [hash('a')]);
}

pub async fn a_purged_session_refers_to_nothing(subject: &impl Subject) {
    let store = subject.store();
    announce(&*store, &['a']).await;
    // At rest, or it could not be deleted.
    let (mut story, created) = Story::begin(1);
    let ensure = WorkChange::Ensure { work_id: work_id(1) };
    store.append(created.and(ensure)).await.expect("the session is new");
    let polled = store.poll(&Pool::Cloud, "worker", 5_000, "t1").await.expect("the store answers");
    assert_eq!(polled.map(|item| item.id), Some(work_id(1)));
    store.refer(story.id(), &work_id(1), "t1", &hash('a')).await.expect("the token is good");
    store.append(story.tell(Command::Delete)).await.expect("nobody else appends");
    let purged = store.purge(story.state.last_at.successor(), 10).await.expect("the store answers");
    assert_eq!(purged, 1);
    assert_eq!(store.missing(story.id(), &[hash('a')]).await.expect("the store answers"), [hash('a')]);
}

pub async fn a_chunk_that_was_collected_has_to_be_put_again(subject: &impl Subject) {
    let store = subject.store();
    let story = held(&*store, 1, "t1").await;
    let refer = async || store.refer(story.id(), &work_id(1), "t1", &hash('a')).await;
    assert!(matches!(refer().await, Err(AppendError::Conflict)), "nobody has announced it");
    announce(&*store, &['a']).await;
    refer().await.expect("it is there");
}

pub async fn a_chunk_is_garbage_a_day_after_nobody_refers_to_it(subject: &impl Subject) {
    const DAY_MS: i64 = 24 * 60 * 60 * 1_000;
    let store = subject.store();
    let story = held(&*store, 1, "t1").await;
    let put = subject.blobs().put(b"chunk".to_vec()).await.expect("the blobs take it");
    store.refer(story.id(), &work_id(1), "t1", &put).await.expect("it is there");
    subject.advance(2 * DAY_MS).await;
    assert_eq!(store.collect(10).await.expect("the store answers"), 0, "a session refers to it");
    assert_eq!(store.forget(story.id(), &[], 1).await.expect("the store answers"), 1);
    assert_eq!(store.collect(10).await.expect("the store answers"), 0, "its day begins now");
    subject.advance(DAY_MS + 1).await;
    assert_eq!(store.collect(10).await.expect("the store answers"), 1);
    assert_eq!(subject.blobs().get(&put).await.expect("the blobs answer"), None);
}

//! Blobs stay while something needs them, and for a day longer.

use bytes::Bytes;
use session::Command;

use super::Subject;
use super::story::Story;
use crate::port::{Blob, BlobHash};

const HOUR: i64 = 60 * 60 * 1_000;
const DAY: i64 = 24 * HOUR;

/// A body that no store keeps in its row if it has a better place.
fn large() -> String {
    "0123456789abcdef".repeat(20_000)
}

pub async fn what_nothing_refers_to_goes_after_a_day(subject: &impl Subject) {
    let (store, blobs) = (subject.store(), subject.blobs());
    let hash = blobs.put(b"content".to_vec()).await.expect("it is kept");
    subject.advance(23 * HOUR).await;
    assert_eq!(store.collect(10).await.expect("it answers"), 0, "it is young");
    assert!(blobs.get(&hash).await.expect("it answers").is_some());
    for number in 0..3_u8 {
        blobs.put(vec![number]).await.expect("it is kept");
    }
    subject.advance(HOUR).await;
    assert_eq!(store.collect(10).await.expect("it answers"), 1, "the others are younger");
    assert_eq!(blobs.get(&hash).await.expect("it answers"), None);
    subject.advance(DAY).await;
    assert_eq!(store.collect(2).await.expect("it answers"), 2, "a limit is a limit");
    assert_eq!(store.collect(2).await.expect("it answers"), 1);
    assert_eq!(store.collect(2).await.expect("it answers"), 0);
}

pub async fn an_announcement_keeps_a_blob_for_a_day(subject: &impl Subject) {
    let (store, blobs) = (subject.store(), subject.blobs());
    let hash = blobs.put(b"content".to_vec()).await.expect("it is kept");
    subject.advance(DAY + HOUR).await;
    store.announce(&Blob { hash: hash.clone(), bytes: 7 }).await.expect("it answers");
    assert_eq!(store.collect(10).await.expect("it answers"), 0);
    subject.advance(23 * HOUR).await;
    assert_eq!(store.collect(10).await.expect("it answers"), 0);
    assert!(blobs.get(&hash).await.expect("it answers").is_some());
    subject.advance(2 * HOUR).await;
    assert_eq!(store.collect(10).await.expect("it answers"), 1);
    assert_eq!(blobs.put(b"content".to_vec()).await.expect("it is kept again"), hash);
    assert_eq!(store.collect(10).await.expect("it answers"), 0);
    assert!(blobs.get(&hash).await.expect("it answers").is_some());
}

pub async fn a_sealed_blob_is_announced(subject: &impl Subject) {
    let (store, blobs) = (subject.store(), subject.blobs());
    let mut writer = blobs.begin().await.expect("it begins");
    writer.write(Bytes::from_static(b"content")).await.expect("it is taken");
    let blob = writer.seal().await.expect("it is whole");
    assert_eq!(blob, Blob { hash: BlobHash::of(b"content"), bytes: 7 });
    writer.keep().await.expect("it is kept");
    subject.advance(DAY).await;
    assert_eq!(store.collect(10).await.expect("it answers"), 1, "the registry knew of it");
    assert_eq!(blobs.get(&blob.hash).await.expect("it answers"), None);
}

pub async fn large_records_keep_their_blobs(subject: &impl Subject) {
    let store = subject.store();
    let (mut story, created) = Story::begin(1);
    store.append(created).await.expect("the session is new");
    store.append(story.message(&large())).await.expect("nobody else appends");
    subject.advance(3 * DAY).await;
    assert_eq!(store.collect(10).await.expect("it answers"), 0, "the record needs it");
    let records = store.read(story.id(), 0, 100).await.expect("it answers");
    let records: Vec<_> = records.into_iter().map(|stored| stored.record).collect();
    assert!(records == story.records, "what was large is read as it was written");
}

pub async fn a_purged_session_leaves_garbage(subject: &impl Subject) {
    let store = subject.store();
    let (mut story, created) = Story::begin(1);
    store.append(created).await.expect("the session is new");
    store.append(story.message(&large())).await.expect("nobody else appends");
    for append in story.answer("done") {
        store.append(append).await.expect("nobody else appends");
    }
    store.append(story.tell(Command::Delete)).await.expect("nobody else appends");
    subject.advance(3 * DAY).await;
    assert_eq!(store.purge(story.state.last_at.successor(), 1).await.expect("it answers"), 1);
    assert_eq!(store.collect(10).await.expect("it answers"), 0, "its last reference has just gone");
    subject.advance(DAY).await;
    store.collect(10).await.expect("it answers");
    assert_eq!(store.collect(10).await.expect("it answers"), 0, "all of it went at once");
}

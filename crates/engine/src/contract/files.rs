//! Files, and the content that they keep.

use std::sync::Arc;

use session::Timestamp;
use session::id::FileId;

use super::story::{DAWN, Story};
use super::{Store, Subject};
use crate::port::files::{File, FileError, ListFiles};
use crate::port::{After, Answer, BlobHash, Keep, KeyedRequest, Order};

const DAY: i64 = 24 * 60 * 60 * 1_000;

fn at(millis: i64) -> Timestamp {
    DAWN.plus_millis(millis)
}

fn file(id: &str, content: &str, created_at: Timestamp) -> File {
    File {
        id: id.into(),
        filename: "Übersicht 'July' (1).csv".to_owned(),
        mime_type: "text/csv; charset=utf-8".to_owned(),
        bytes: content.len() as u64,
        blob: Some(BlobHash::of(content.as_bytes())),
        created_at,
        expires_at: None,
        session_id: None,
    }
}

fn everything() -> ListFiles {
    ListFiles { session_id: None, order: Order::Descending, after: None, limit: 100 }
}

fn ids(files: &[File]) -> Vec<&str> {
    files.iter().map(|file| file.id.as_str()).collect()
}

async fn create(store: &dyn Store, files: &[&File]) {
    for file in files {
        store.create_file(file, None).await.expect("the content is there");
    }
}

pub async fn a_file_is_what_was_stored(subject: &impl Subject) {
    let (store, blobs) = (subject.store(), subject.blobs());
    blobs.put(b"a,b".to_vec()).await.expect("it is kept");
    let plain = file("file_1", "a,b", at(1));
    let full = File { expires_at: Some(at(9)), session_id: Some("sesn_1".into()), ..file("file_2", "a,b", at(2)) };
    create(&*store, &[&plain, &full]).await;
    let asked: Vec<FileId> = ["file_2", "file_none", "file_1"].map(FileId::from).into();
    assert_eq!(store.files(&asked).await.expect("it answers"), [full, plain]);
    assert_eq!(store.files(&[]).await.expect("it answers"), []);
}

pub async fn a_file_needs_its_content(subject: &impl Subject) {
    let store = subject.store();
    let refused = store.create_file(&file("file_1", "not here", at(1)), None).await;
    assert!(matches!(refused, Err(FileError::ContentGone)), "{refused:?}");
    assert_eq!(store.list_files(&everything()).await.expect("it answers"), []);
}

pub async fn a_file_is_stored_once_for_a_key(subject: &impl Subject) {
    let (store, blobs) = (subject.store(), subject.blobs());
    blobs.put(b"x".to_vec()).await.expect("it is kept");
    let create = async |id: &str, content: &str| {
        let answer = Arc::new(|file: &File| Answer { status: 200, body: file.id.to_string() });
        store.create_file(&file(id, content, at(1)), Some(Keep { request: request(), answer })).await
    };
    let refused = create("file_1", "gone").await;
    assert!(matches!(refused, Err(FileError::ContentGone)), "{refused:?}");
    // Of twins one is stored; a refusal before it kept nothing.
    let (one, other) = tokio::join!(create("file_2", "x"), create("file_3", "x"));
    let (stored, twin) = if one.is_ok() { ("file_2", other) } else { ("file_3", one) };
    assert!(matches!(twin, Err(FileError::KeyUsed(_))), "{twin:?}");
    assert_eq!(ids(&store.list_files(&everything()).await.expect("it answers")), [stored]);
    let kept = store.kept("credential", "key").await.expect("it answers").expect("it is kept");
    assert_eq!((kept.request, kept.answer), (request(), Answer { status: 200, body: stored.to_owned() }));
}

fn request() -> KeyedRequest {
    KeyedRequest {
        credential_hash: "credential".to_owned(),
        key: "key".to_owned(),
        method: "POST".to_owned(),
        path: "/v1/files".to_owned(),
        body_hash: "body".to_owned(),
    }
}

pub async fn files_are_listed(subject: &impl Subject) {
    let (store, blobs) = (subject.store(), subject.blobs());
    blobs.put(b"x".to_vec()).await.expect("it is kept");
    let of = |id: &str, millis, session: Option<&str>| File {
        session_id: session.map(Into::into),
        ..file(id, "x", at(millis))
    };
    let made = [
        of("file_a", 1, None),
        of("file_b", 2, Some("sesn_1")),
        of("file_c", 2, Some("sesn_2")),
        of("file_d", 3, Some("sesn_1")),
    ];
    create(&*store, &made.each_ref()).await;
    let list = async |list: ListFiles| store.list_files(&list).await.expect("it answers");
    assert_eq!(ids(&list(everything()).await), ["file_d", "file_c", "file_b", "file_a"]);
    assert_eq!(ids(&list(ListFiles { order: Order::Ascending, limit: 2, ..everything() }).await), ["file_a", "file_b"]);
    let after = Some(After { created_at: at(2), id: "file_c".to_owned() });
    assert_eq!(ids(&list(ListFiles { after: after.clone(), ..everything() }).await), ["file_b", "file_a"]);
    assert_eq!(ids(&list(ListFiles { order: Order::Ascending, after, ..everything() }).await), ["file_d"]);
    let session_id = Some("sesn_1".into());
    assert_eq!(ids(&list(ListFiles { session_id, ..everything() }).await), ["file_d", "file_b"]);
    assert_eq!(list(ListFiles { session_id: Some("sesn_none".into()), ..everything() }).await, []);
}

pub async fn content_stays_while_a_file_has_it(subject: &impl Subject) {
    let (store, blobs) = (subject.store(), subject.blobs());
    let hash = blobs.put(b"shared".to_vec()).await.expect("it is kept");
    create(&*store, &[&file("file_1", "shared", at(1))]).await;
    subject.advance(3 * DAY).await;
    assert_eq!(store.collect(10).await.expect("it answers"), 0);
    store.create_file(&file("file_2", "shared", at(2)), None).await.expect("a copy needs no second put");
    assert_eq!(store.delete_files(&["file_1".into(), "file_none".into()]).await.expect("it answers"), 1);
    subject.advance(3 * DAY).await;
    assert_eq!(store.collect(10).await.expect("it answers"), 0, "the copy has it");
    assert_eq!(store.delete_files(&["file_2".into()]).await.expect("it answers"), 1);
    assert_eq!(store.delete_files(&["file_2".into()]).await.expect("it answers"), 0);
    assert_eq!(store.collect(10).await.expect("it answers"), 0, "its day begins with the end of the last reference");
    subject.advance(DAY).await;
    assert_eq!(store.collect(10).await.expect("it answers"), 1);
    assert_eq!(blobs.get(&hash).await.expect("it answers"), None);
}

pub async fn expired_content_is_let_go(subject: &impl Subject) {
    let (store, blobs) = (subject.store(), subject.blobs());
    blobs.put(b"short".to_vec()).await.expect("it is kept");
    let short = File { expires_at: Some(at(10)), ..file("file_1", "short", at(1)) };
    let long = File { expires_at: Some(at(20)), ..file("file_2", "short", at(1)) };
    create(&*store, &[&short, &long]).await;
    assert!(!short.is_expired(at(9)) && short.is_expired(at(10)));
    assert_eq!(store.expire_files(at(9), 10).await.expect("it answers"), 0);
    assert_eq!(store.expire_files(at(15), 10).await.expect("it answers"), 1);
    assert_eq!(store.expire_files(at(15), 10).await.expect("it answers"), 0);
    let left = store.files(&["file_1".into(), "file_2".into()]).await.expect("it answers");
    assert_eq!(left, [File { blob: None, ..short }, long], "its name stays");
    assert!(left[0].is_expired(at(0)));
    subject.advance(3 * DAY).await;
    assert_eq!(store.collect(10).await.expect("it answers"), 0, "another file has it");
    assert_eq!(store.expire_files(at(20), 10).await.expect("it answers"), 1);
    subject.advance(DAY).await;
    assert_eq!(store.collect(10).await.expect("it answers"), 1);
}

pub async fn files_of_a_session_go_with_it(subject: &impl Subject) {
    let (store, blobs) = (subject.store(), subject.blobs());
    let (mut story, created) = Story::begin(1);
    store.append(created).await.expect("the session is new");
    blobs.put(b"made".to_vec()).await.expect("it is kept");
    let made = File { session_id: Some(story.id().clone()), ..file("file_1", "made", at(1)) };
    let upload = file("file_2", "made", at(1));
    create(&*store, &[&made, &upload]).await;
    store.append(story.tell(session::Command::Delete)).await.expect("nobody else appends");
    assert_eq!(store.purge(story.state.last_at.successor(), 1).await.expect("it answers"), 1);
    assert_eq!(ids(&store.list_files(&everything()).await.expect("it answers")), ["file_2"]);
}

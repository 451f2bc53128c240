//! Files, and the content that they keep.

use session::Timestamp;
use session::id::FileId;

use super::Subject;
use super::story::{DAWN, Story};
use crate::port::files::{File, FileError, ListFiles};
use crate::port::{After, BlobHash, Order};

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

pub async fn a_file_is_what_was_stored(subject: &impl Subject) {
    let (store, blobs) = (subject.store(), subject.blobs());
    blobs.put(b"a,b".to_vec()).await.expect("it is kept");
    let plain = file("file_1", "a,b", at(1));
    let full = File { expires_at: Some(at(9)), session_id: Some("sesn_1".into()), ..file("file_2", "a,b", at(2)) };
    store.create_files(&[plain.clone(), full.clone()]).await.expect("the content is there");
    let asked: Vec<FileId> = ["file_2", "file_none", "file_1"].map(FileId::from).into();
    assert_eq!(store.files(&asked).await.expect("it answers"), [full, plain]);
    assert_eq!(store.files(&[]).await.expect("it answers"), []);
}

pub async fn a_file_needs_its_content(subject: &impl Subject) {
    let (store, blobs) = (subject.store(), subject.blobs());
    blobs.put(b"here".to_vec()).await.expect("it is kept");
    let refused = store.create_files(&[file("file_1", "here", at(1)), file("file_2", "not here", at(1))]).await;
    assert!(matches!(refused, Err(FileError::ContentGone)), "{refused:?}");
    assert_eq!(store.list_files(&everything()).await.expect("it answers"), [], "all or none");
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
    store.create_files(&made).await.expect("the content is there");
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
    store.create_files(&[file("file_1", "shared", at(1))]).await.expect("the content is there");
    subject.advance(3 * DAY).await;
    assert_eq!(store.collect(10).await.expect("it answers"), 0);
    store.create_files(&[file("file_2", "shared", at(2))]).await.expect("a copy needs no second put");
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
    store.create_files(&[short.clone(), long.clone()]).await.expect("the content is there");
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
    store.create_files(&[made, upload]).await.expect("the content is there");
    store.append(story.tell(session::Command::Delete)).await.expect("nobody else appends");
    assert_eq!(store.purge(story.state.last_at.successor(), 1).await.expect("it answers"), 1);
    assert_eq!(ids(&store.list_files(&everything()).await.expect("it answers")), ["file_2"]);
}

//! What sessions are given and what they make.

use std::sync::Arc;

use session::Command;
use session::id::FileId;

use super::story::{DAWN, Setting, Story, end_item, queued_session, work_id};
use super::{Store, Subject};
use crate::port::resources::{KnownOutput, OUTPUTS_MAX, Output, OutputError, PutOutput, RESOURCES_MAX, ResourceError};
use crate::port::work_queue::Pool;
use crate::port::{Answer, Append, AppendError, BlobHash, File, FileResource, Keep, KeyedRequest};

const DAY: i64 = 24 * 60 * 60 * 1_000;

/// The resource numbered `number`, whose content is `content`.
fn given(story: &Story, number: u32, path: &str, content: &str) -> FileResource {
    FileResource {
        id: format!("sesrsc_{number:04}").as_str().into(),
        mount_path: format!("/mnt/session/uploads/{path}"),
        file: file(story, &format!("file_copy_{number:04}"), content, i64::from(number)),
    }
}

fn file(story: &Story, id: &str, content: &str, millis: i64) -> File {
    File {
        id: id.into(),
        filename: "data '\u{fc}'.csv".to_owned(),
        mime_type: "text/csv".to_owned(),
        bytes: content.len() as u64,
        blob: Some(BlobHash::of(content.as_bytes())),
        created_at: DAWN.plus_millis(millis),
        expires_at: None,
        session_id: Some(story.id().clone()),
    }
}

/// A session, and the content `x`.
async fn session(subject: &impl Subject, number: u32) -> Story {
    let (story, created) = Story::begin(number);
    subject.store().append(created).await.expect("the session is new");
    subject.blobs().put(b"x".to_vec()).await.expect("it is kept");
    story
}

/// A session whose item is held under `token`.
async fn held(store: &dyn Store, number: u32, token: &str) -> Story {
    let story = queued_session(store, number, Setting::default()).await;
    let polled = store.poll(&Pool::Cloud, "worker", 5_000, token).await.expect("the store answers");
    assert_eq!(polled.map(|item| item.id), Some(work_id(number)));
    story
}

async fn listed(store: &dyn Store, story: &Story) -> Vec<FileResource> {
    store.resources(std::slice::from_ref(story.id())).await.expect("the store answers")
}

async fn version(store: &dyn Store, story: &Story) -> u64 {
    store.resources_version(story.id()).await.expect("the store answers")
}

pub async fn a_session_is_created_with_its_resources(subject: &impl Subject) {
    let store = subject.store();
    subject.blobs().put(b"x".to_vec()).await.expect("it is kept");
    let (story, created) = Story::begin(1);
    let resources = vec![given(&story, 1, "a", "x"), given(&story, 2, "b", "x")];
    let without_content = Append { resources: vec![given(&story, 3, "c", "gone")], ..created.clone() };
    assert!(matches!(store.append(without_content).await, Err(AppendError::Conflict)));
    assert!(store.load(story.id()).await.expect("the store answers").is_none(), "all or nothing");
    store.append(Append { resources: resources.clone(), ..created }).await.expect("the session is new");
    assert_eq!(listed(&*store, &story).await, resources);
    let copies: Vec<FileId> = resources.iter().map(|resource| resource.file.id.clone()).collect();
    let files = store.files(&copies).await.expect("the store answers");
    assert_eq!(files, resources.into_iter().map(|resource| resource.file).collect::<Vec<_>>());
}

pub async fn resources_come_and_go(subject: &impl Subject) {
    let store = subject.store();
    let (story, other) = (session(subject, 1).await, session(subject, 2).await);
    let (late, early) = (given(&story, 2, "late", "x"), given(&story, 1, "early", "x"));
    assert_eq!((version(&*store, &story).await, listed(&*store, &story).await), (0, vec![]));
    store.add_resource(&late, None).await.expect("there is room");
    store.add_resource(&early, None).await.expect("there is room");
    store.add_resource(&given(&other, 3, "late", "x"), None).await.expect("another session's paths are its own");
    assert_eq!((version(&*store, &story).await, version(&*store, &other).await), (2, 1));
    assert_eq!(listed(&*store, &story).await, [early.clone(), late.clone()], "oldest first");
    let both = [story.id().clone(), other.id().clone()];
    assert_eq!(store.resources(&both).await.expect("the store answers").len(), 3);
    assert_eq!(store.resources(&[]).await.expect("the store answers"), []);

    assert!(!store.remove_resource(other.id(), &early.id).await.expect("the store answers"), "it is another's");
    assert!(store.remove_resource(story.id(), &early.id).await.expect("the store answers"));
    assert!(!store.remove_resource(story.id(), &early.id).await.expect("the store answers"));
    assert_eq!((version(&*store, &story).await, listed(&*store, &story).await), (3, vec![late]));
    assert_eq!(store.files(&[early.file.id]).await.expect("the store answers"), [], "the copy went with it");
    assert_eq!(store.resources_version(&"sesn_none".into()).await.expect("the store answers"), 0);
}

pub async fn a_session_is_given_what_its_resources_hold(subject: &impl Subject) {
    let store = subject.store();
    let (story, other) = (session(subject, 1).await, session(subject, 2).await);
    for content in [&b"given"[..], b"theirs", b"made"] {
        subject.blobs().put(content.to_vec()).await.expect("it is kept");
    }
    let is_given = async |story: &Story, content: &str| {
        store.is_given(story.id(), &BlobHash::of(content.as_bytes())).await.expect("the store answers")
    };
    assert!(!is_given(&story, "given").await);
    let resource = given(&story, 1, "a", "given");
    store.add_resource(&resource, None).await.expect("there is room");
    store.add_resource(&given(&story, 2, "b", "given"), None).await.expect("there is room");
    store.add_resource(&given(&other, 3, "a", "theirs"), None).await.expect("there is room");
    store.create_file(&file(&story, "file_made", "made", 4), None).await.expect("the content is there");
    for (content, expected) in [("given", true), ("theirs", false), ("made", false), ("x", false)] {
        assert_eq!(is_given(&story, content).await, expected, "{content}");
    }
    assert!(!is_given(&other, "given").await && is_given(&other, "theirs").await);

    assert!(store.remove_resource(story.id(), &resource.id).await.expect("the store answers"));
    assert!(is_given(&story, "given").await, "another resource has it");
    assert!(store.remove_resource(story.id(), &"sesrsc_0002".into()).await.expect("the store answers"));
    assert!(!is_given(&story, "given").await);
}

pub async fn a_resource_that_cannot_be_is_refused(subject: &impl Subject) {
    let store = subject.store();
    let mut story = session(subject, 1).await;
    store.add_resource(&given(&story, 1, "a/b", "x"), None).await.expect("there is room");
    for (number, path) in [(2, "a"), (3, "a/b"), (4, "a/b/c")] {
        let refused = store.add_resource(&given(&story, number, path, "x"), None).await;
        let in_the_way = "/mnt/session/uploads/a/b";
        assert!(matches!(&refused, Err(ResourceError::InTheWay(path)) if path == in_the_way), "{path}: {refused:?}");
    }
    let gone = store.add_resource(&given(&story, 5, "c", "gone"), None).await;
    assert!(matches!(gone, Err(ResourceError::ContentGone)), "{gone:?}");
    for number in 2..=RESOURCES_MAX as u32 {
        store.add_resource(&given(&story, number, &format!("n{number}"), "x"), None).await.expect("there is room");
    }
    let full = store.add_resource(&given(&story, 1_000, "one-more", "x"), None).await;
    assert!(matches!(full, Err(ResourceError::Full)), "{full:?}");
    assert_eq!(version(&*store, &story).await, RESOURCES_MAX as u64, "refusals change nothing");

    let nobody = Story::begin(9).0;
    let refused = store.add_resource(&given(&nobody, 1_001, "a", "x"), None).await;
    assert!(matches!(refused, Err(ResourceError::NoSession)), "{refused:?}");
    store.append(story.tell(Command::Archive)).await.expect("nobody else appends");
    let refused = store.add_resource(&given(&story, 1_002, "late", "x"), None).await;
    assert!(matches!(refused, Err(ResourceError::Archived)), "{refused:?}");
}

pub async fn of_two_resources_at_one_path_one_is_made(subject: &impl Subject) {
    let store = subject.store();
    let story = session(subject, 1).await;
    let add = async |number| store.add_resource(&given(&story, number, "same", "x"), None).await;
    let (one, other) = tokio::join!(add(1), add(2));
    assert!(one.is_ok() != other.is_ok(), "{one:?} {other:?}");
    assert_eq!((version(&*store, &story).await, listed(&*store, &story).await.len()), (1, 1));
}

pub async fn a_resource_is_added_once_for_a_key(subject: &impl Subject) {
    let store = subject.store();
    let story = session(subject, 1).await;
    let request = KeyedRequest {
        credential_hash: "credential".to_owned(),
        key: "key".to_owned(),
        method: "POST".to_owned(),
        path: "/v1/sessions/s/resources".to_owned(),
        body_hash: "body".to_owned(),
    };
    let answer = Arc::new(|resource: &FileResource| Answer { status: 200, body: format!("\"{}\"", resource.id) });
    let keep = || Some(Keep { request: request.clone(), answer: answer.clone() });
    let in_the_way = given(&story, 1, "a", "gone");
    let refused = store.add_resource(&in_the_way, keep()).await;
    assert!(matches!(refused, Err(ResourceError::ContentGone)), "{refused:?}");
    store.add_resource(&given(&story, 2, "a", "x"), keep()).await.expect("a refusal keeps no answer");
    let twin = store.add_resource(&given(&story, 3, "b", "x"), keep()).await;
    assert!(matches!(twin, Err(ResourceError::KeyUsed(_))), "{twin:?}");
    let kept = store.kept("credential", "key").await.expect("the store answers").expect("it is kept");
    assert_eq!(kept.answer.body, "\"sesrsc_0002\"");
    assert_eq!(version(&*store, &story).await, 1);
}

pub async fn a_copy_goes_with_its_resource_alone(subject: &impl Subject) {
    let (store, blobs) = (subject.store(), subject.blobs());
    let story = session(subject, 1).await;
    let hash = blobs.put(b"copied".to_vec()).await.expect("it is kept");
    let resource = given(&story, 1, "a", "copied");
    store.add_resource(&resource, None).await.expect("there is room");
    let copy = std::slice::from_ref(&resource.file.id);
    assert_eq!(store.delete_files(copy).await.expect("the store answers"), 0);
    subject.advance(3 * DAY).await;
    store.collect(10).await.expect("the store answers");
    assert!(blobs.get(&hash).await.expect("the blobs answer").is_some(), "the copy has it");
    assert!(store.remove_resource(story.id(), &resource.id).await.expect("the store answers"));
    store.collect(10).await.expect("the store answers");
    assert!(blobs.get(&hash).await.expect("the blobs answer").is_some(), "its day begins now");
    subject.advance(DAY).await;
    store.collect(10).await.expect("the store answers");
    assert_eq!(blobs.get(&hash).await.expect("the blobs answer"), None);
}

pub async fn a_deleted_session_leaves_no_files(subject: &impl Subject) {
    let (store, blobs) = (subject.store(), subject.blobs());
    let mut story = session(subject, 1).await;
    let hash = blobs.put(b"theirs".to_vec()).await.expect("it is kept");
    let resource = given(&story, 1, "a", "theirs");
    store.add_resource(&resource, None).await.expect("there is room");
    let made = file(&story, "file_made", "theirs", 2);
    store.create_file(&made, None).await.expect("the content is there");
    store.append(story.tell(Command::Delete)).await.expect("nobody else appends");
    assert_eq!(store.files(&[resource.file.id.clone(), made.id]).await.expect("the store answers"), []);
    assert_eq!(listed(&*store, &story).await, []);
    let refused = store.add_resource(&given(&story, 2, "b", "theirs"), None).await;
    assert!(matches!(refused, Err(ResourceError::NoSession)), "{refused:?}");
    store.purge(story.state.last_at.successor(), 10).await.expect("the store answers");
    subject.advance(DAY + 1).await;
    store.collect(10).await.expect("the store answers");
    assert_eq!(blobs.get(&hash).await.expect("the blobs answer"), None);
}

/// The output that is `content` at `path`; `number` makes its file's id.
fn made(story: &Story, number: u32, path: &str, content: &str) -> Output {
    Output { path: path.to_owned(), file: file(story, &format!("file_made_{number:04}"), content, i64::from(number)) }
}

pub async fn a_path_has_one_output(subject: &impl Subject) {
    let (store, blobs) = (subject.store(), subject.blobs());
    let story = held(&*store, 1, "t1").await;
    for content in [&b"one"[..], b"two"] {
        blobs.put(content.to_vec()).await.expect("it is kept");
    }
    let put = async |output: &Output| store.put_output(output, &work_id(1), "t1").await.expect("the token is good");
    let (first, second) = (made(&story, 1, "a/report", "one"), made(&story, 2, "a/report", "two"));
    assert_eq!(put(&first).await, PutOutput::Stored { replaced: None });
    assert_eq!(put(&made(&story, 3, "a/report", "one")).await, PutOutput::Unchanged);
    assert_eq!(put(&made(&story, 4, "other", "one")).await, PutOutput::Stored { replaced: None });
    assert_eq!(put(&second).await, PutOutput::Stored { replaced: Some(first.file.id.clone()) });
    let asked = [first.file.id, second.file.id.clone(), "file_made_0003".into()];
    assert_eq!(store.files(&asked).await.expect("the store answers"), std::slice::from_ref(&second.file));
    let known = [("a/report", "two"), ("other", "one")]
        .map(|(path, content)| KnownOutput { path: path.to_owned(), hash: BlobHash::of(content.as_bytes()) });
    assert_eq!(store.outputs(story.id()).await.expect("the store answers"), known);

    // What a client deletes does not come back until it changes.
    assert_eq!(store.delete_files(&[second.file.id]).await.expect("the store answers"), 1);
    assert_eq!(put(&made(&story, 5, "a/report", "two")).await, PutOutput::Unchanged);
    assert_eq!(put(&made(&story, 6, "a/report", "one")).await, PutOutput::Stored { replaced: None });
}

pub async fn an_output_needs_a_token_and_its_content(subject: &impl Subject) {
    let store = subject.store();
    let story = held(&*store, 1, "t1").await;
    held(&*store, 2, "t2").await;
    subject.blobs().put(b"one".to_vec()).await.expect("it is kept");
    let put =
        async |content, work, token| store.put_output(&made(&story, 1, "a", content), &work_id(work), token).await;
    assert!(matches!(put("gone", 1, "t1").await, Err(OutputError::ContentGone)));
    assert!(matches!(put("one", 2, "t2").await, Err(OutputError::TokenEnded)), "the token of another session");
    assert!(matches!(put("one", 1, "t2").await, Err(OutputError::TokenEnded)));
    end_item(&*store, &story, &work_id(1)).await;
    assert!(matches!(put("one", 1, "t1").await, Err(OutputError::TokenEnded)));
    assert_eq!(store.outputs(story.id()).await.expect("the store answers"), []);
}

pub async fn outputs_are_counted(subject: &impl Subject) {
    let store = subject.store();
    let story = held(&*store, 1, "t1").await;
    subject.blobs().put(b"x".to_vec()).await.expect("it is kept");
    subject.blobs().put(b"y".to_vec()).await.expect("it is kept");
    let put = async |number: u32, path: &str, content: &str| {
        store.put_output(&made(&story, number, path, content), &work_id(1), "t1").await
    };
    for number in 0..OUTPUTS_MAX as u32 {
        put(number, &format!("n{number}"), "x").await.expect("there is room");
    }
    assert!(matches!(put(1_000, "one-more", "x").await, Err(OutputError::Full)));
    put(1_001, "n1", "y").await.expect("it takes the place of another");
    assert_eq!(store.delete_files(&["file_made_0000".into()]).await.expect("the store answers"), 1);
    put(1_002, "one-more", "x").await.expect("there is room again");
}

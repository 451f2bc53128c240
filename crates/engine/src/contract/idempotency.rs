//! What is kept for repeated requests: one effect and one answer for each key.

use std::sync::Arc;

use tokio::task::JoinSet;

use super::definitions::{agent, at, environment};
use super::story::{Setting, Story, due_session, queued_session, work_id};
use super::{Store, Subject};
use crate::port::definitions::DefinitionError;
use crate::port::idempotency::KEPT_MS;
use crate::port::work_queue::Pool;
use crate::port::{Agent, Answer, Append, AppendError, Environment, Keep, KeepError, Kept, KeyedRequest, WorkItem};

fn request(credential: &str, key: &str) -> KeyedRequest {
    KeyedRequest {
        credential_hash: credential.to_owned(),
        key: key.to_owned(),
        method: "POST".to_owned(),
        path: "/v1/sessions/sesn_1/events?beta=true".to_owned(),
        body_hash: "5f".repeat(32),
    }
}

fn kept(credential: &str, key: &str, body: &str) -> Kept {
    Kept { request: request(credential, key), answer: Answer { status: 200, body: body.to_owned() } }
}

fn keyed(append: Append, kept: &Kept) -> Append {
    Append { kept: Some(kept.clone()), ..append }
}

/// Keeps the name, and whatever else `show` finds, of what was written.
fn keep<T: 'static>(key: &str, show: fn(&T) -> String) -> Option<Keep<T>> {
    let answer = Arc::new(move |written: &T| Answer { status: 200, body: show(written) });
    Some(Keep { request: request("hash", key), answer })
}

fn show_agent(agent: &Agent) -> String {
    format!("{} {} {:?}", agent.id, agent.version, agent.archived_at)
}

fn show_environment(environment: &Environment) -> String {
    format!("{} {:?}", environment.name, environment.archived_at)
}

async fn look(store: &Arc<dyn Store>, credential: &str, key: &str) -> Option<Kept> {
    store.kept(credential, key).await.expect("the store answers")
}

async fn messages(store: &Arc<dyn Store>, story: &Story) -> usize {
    let records = store.read(story.id(), 0, 1_000).await.expect("the store answers");
    records.iter().filter(|stored| stored.record.event.kind() == "user.message").count()
}

pub async fn a_key_has_one_effect(subject: &impl Subject) {
    let store = subject.store();
    let (mut story, created) = Story::begin(1);
    let first = kept("hash", "create", r#"{"id":"sesn_1","text":"\u0000 \" \\ 'é"}"#);
    assert_eq!(look(&store, "hash", "create").await, None);
    store.append(keyed(created.clone(), &first)).await.expect("the key is new");
    assert_eq!(look(&store, "hash", "create").await, Some(first.clone()));

    let (other, other_created) = Story::begin(2);
    let again = store.append(keyed(other_created, &first)).await;
    assert!(matches!(again, Err(AppendError::KeyUsed(_))), "{again:?}");
    assert!(store.load(other.id()).await.expect("the store answers").is_none(), "the second has no effect");

    let second = kept("hash", "message", "{}");
    let before = messages(&store, &story).await;
    let stale = story.clone();
    store.append(keyed(story.message("once"), &second)).await.expect("the key is new");
    for mut again in [story.clone(), stale] {
        let again = store.append(keyed(again.message("twice"), &second)).await;
        assert!(matches!(again, Err(AppendError::KeyUsed(_))), "the key is looked at before the position: {again:?}");
    }
    assert_eq!(messages(&store, &story).await, before + 1);
}

pub async fn of_twins_one_appends_and_both_get_its_answer(subject: &impl Subject) {
    const TWINS: usize = 6;
    let store = subject.store();
    let story = due_session(&*store, 1).await;
    let before = messages(&store, &story).await;
    let mut twins = JoinSet::new();
    for twin in 0..TWINS {
        let (store, mut story) = (Arc::clone(&store), story.clone());
        twins.spawn(async move {
            let own = kept("hash", "key", &format!("from {twin}"));
            loop {
                story.state = store.load(story.id()).await.expect("the store answers").expect("it is there").state;
                match store.append(keyed(story.message("once"), &own)).await {
                    Ok(_) => return (true, own),
                    Err(AppendError::Conflict) => {}
                    Err(AppendError::KeyUsed(_)) => {
                        return (false, look(&store, "hash", "key").await.expect("the other has committed"));
                    }
                    Err(error) => panic!("{error}"),
                }
            }
        });
    }
    let ended = twins.join_all().await;
    assert_eq!(ended.iter().filter(|(appended, _)| *appended).count(), 1);
    assert!(ended.iter().all(|(_, answer)| *answer == ended[0].1), "{ended:?}");
    assert_eq!(messages(&store, &story).await, before + 1);
}

pub async fn a_refused_append_keeps_no_answer(subject: &impl Subject) {
    let store = subject.store();
    let mut story = due_session(&*store, 1).await;
    let mut stale = story.clone();
    store.append(story.message("first")).await.expect("nobody else appends");
    let answer = kept("hash", "key", "of the stale one");
    let refused = store.append(keyed(stale.message("late"), &answer)).await;
    assert!(matches!(refused, Err(AppendError::Conflict)), "{refused:?}");
    assert_eq!(look(&store, "hash", "key").await, None, "the row goes with the rest");
    let answer = kept("hash", "key", "of the retry");
    store.append(keyed(story.message("again"), &answer)).await.expect("the key is free");
    assert_eq!(look(&store, "hash", "key").await, Some(answer));
}

pub async fn keys_belong_to_a_credential(subject: &impl Subject) {
    let store = subject.store();
    let mut story = due_session(&*store, 1).await;
    for credential in ["one", "two"] {
        let own = kept(credential, "key", credential);
        store.append(keyed(story.message(credential), &own)).await.expect("the key is new to the credential");
        assert_eq!(look(&store, credential, "key").await, Some(own));
    }
    assert_eq!(look(&store, "three", "key").await, None);
}

pub async fn an_answer_is_kept_for_a_day(subject: &impl Subject) {
    let store = subject.store();
    let mut story = due_session(&*store, 1).await;
    let first = kept("hash", "key", "first");
    store.append(keyed(story.message("first"), &first)).await.expect("the key is new");
    subject.advance(KEPT_MS - 60_000).await;
    assert_eq!(look(&store, "hash", "key").await, Some(first.clone()));
    let again = store.append(keyed(story.clone().message("too early"), &first)).await;
    assert!(matches!(again, Err(AppendError::KeyUsed(_))), "{again:?}");

    subject.advance(60_001).await;
    assert_eq!(look(&store, "hash", "key").await, None);
    let second = Kept { request: KeyedRequest { path: "/v1/other".to_owned(), ..first.request }, ..first };
    store.append(keyed(story.message("a day later"), &second)).await.expect("the key is free again");
    assert_eq!(look(&store, "hash", "key").await, Some(second));
}

pub async fn old_answers_go_in_batches(subject: &impl Subject) {
    let store = subject.store();
    for number in 0..5 {
        store.keep(&kept("hash", &format!("old-{number}"), "{}")).await.expect("the key is new");
    }
    assert_eq!(store.purge_kept(10).await.expect("the store answers"), 0);
    subject.advance(KEPT_MS + 1).await;
    store.keep(&kept("hash", "new", "{}")).await.expect("the key is new");
    for gone in [2, 2, 1, 0] {
        assert_eq!(store.purge_kept(2).await.expect("the store answers"), gone);
    }
    assert!(look(&store, "hash", "new").await.is_some());
}

pub async fn a_request_that_changes_nothing_is_kept(subject: &impl Subject) {
    let store = subject.store();
    let answer = kept("hash", "key", "nothing changed");
    store.keep(&answer).await.expect("the key is new");
    let other = kept("hash", "key", "another");
    assert!(matches!(store.keep(&other).await, Err(KeepError::KeyUsed(_))));
    assert_eq!(look(&store, "hash", "key").await, Some(answer));

    let story = due_session(&*store, 1).await;
    let aside = kept("hash", "aside", "no records");
    store.append(keyed(story.aside(), &aside)).await.expect("the position holds");
    assert_eq!(look(&store, "hash", "aside").await, Some(aside));
}

pub async fn a_definition_is_written_once_for_a_key(subject: &impl Subject) {
    let store = subject.store();
    let body = async |key: &str| look(&store, "hash", key).await.expect("it is kept").answer.body;
    let used = |written: Result<(), DefinitionError>| {
        assert!(matches!(written, Err(DefinitionError::KeyUsed(_))), "{written:?}");
    };
    let first = agent("agent_a", at(0));
    store.create_agent(&first, keep("create", show_agent)).await.expect("it is new");
    assert_eq!(body("create").await, show_agent(&first));
    used(store.create_agent(&agent("agent_b", at(0)), keep("create", show_agent)).await);
    assert!(store.agent(&"agent_b".into(), None).await.expect("the store answers").is_none());

    let second = Agent { version: 2, system: Some("Again.".to_owned()), ..first.clone() };
    store.add_agent_version(&second, keep("change", show_agent)).await.expect("it follows");
    assert_eq!(body("change").await, show_agent(&second));
    used(store.add_agent_version(&Agent { version: 3, ..first.clone() }, keep("change", show_agent)).await);
    let latest = store.agent(&first.id, None).await.expect("the store answers").expect("it is there");
    assert_eq!(latest.version, 2);

    let archived = store.archive_agent(&first.id, at(5), keep("archive", show_agent)).await.expect("it is there");
    assert_eq!(archived.archived_at, Some(at(5)));
    assert_eq!(body("archive").await, show_agent(&archived), "the answer is made of what was written");
    used(store.archive_agent(&first.id, at(6), keep("archive", show_agent)).await.map(drop));

    let home = environment("env_a", "home", at(0));
    store.create_environment(&home, keep("make", show_environment)).await.expect("it is new");
    used(store.create_environment(&environment("env_b", "other", at(0)), keep("make", show_environment)).await);
    let renamed = Environment { name: "house".to_owned(), updated_at: at(1), ..home.clone() };
    store.update_environment(&renamed, at(0), keep("rename", show_environment)).await.expect("nobody else does");
    used(store.update_environment(&home, at(1), keep("rename", show_environment)).await);
    assert_eq!(body("rename").await, show_environment(&renamed));
    let archived = store.archive_environment(&home.id, at(2), keep("close", show_environment)).await;
    assert_eq!(body("close").await, show_environment(&archived.expect("it is there")));
    used(store.archive_environment(&home.id, at(3), keep("close", show_environment)).await.map(drop));

    queued_session(&*store, 1, Setting::default()).await;
    let (tags, none) = ([("k".to_owned(), "v".to_owned())].into(), Default::default());
    let show = |item: &WorkItem| format!("{:?}", item.metadata);
    let set = async |id: u32, tags, key| store.set_metadata(&Pool::Cloud, &work_id(id), tags, keep(key, show)).await;
    let changed = set(1, &tags, "tag").await.expect("the key is new").expect("it is there");
    assert_eq!(body("tag").await, show(&changed));
    assert!(matches!(set(1, &none, "tag").await, Err(KeepError::KeyUsed(_))));
    let item = store.item(&Pool::Cloud, &work_id(1)).await.expect("the store answers").expect("it is there");
    assert_eq!(item.metadata, tags);
    assert_eq!(set(9, &tags, "no such item").await.expect("the store answers"), None);
    assert_eq!(look(&store, "hash", "no such item").await, None);
}

pub async fn a_refused_definition_keeps_no_answer(subject: &impl Subject) {
    let store = subject.store();
    store.create_environment(&environment("env_a", "home", at(0)), None).await.expect("it is new");
    let taken = store.create_environment(&environment("env_b", "home", at(0)), keep("k", show_environment)).await;
    assert!(matches!(taken, Err(DefinitionError::NameTaken)), "{taken:?}");
    let stale = store.update_environment(&environment("env_a", "x", at(2)), at(1), keep("k", show_environment)).await;
    assert!(matches!(stale, Err(DefinitionError::Conflict)), "{stale:?}");
    let unknown = store.archive_environment(&"env_none".into(), at(1), keep("k", show_environment)).await;
    assert!(matches!(unknown, Err(DefinitionError::NotFound)), "{unknown:?}");
    let unknown = store.archive_agent(&"agent_none".into(), at(1), keep("k", show_agent)).await;
    assert!(matches!(unknown, Err(DefinitionError::NotFound)), "{unknown:?}");
    let unknown = store.add_agent_version(&agent("agent_none", at(1)), keep("k", show_agent)).await;
    assert!(matches!(unknown, Err(DefinitionError::NotFound | DefinitionError::Conflict)), "{unknown:?}");
    assert_eq!(look(&store, "hash", "k").await, None);
    store.create_agent(&agent("agent_a", at(0)), keep("k", show_agent)).await.expect("the key is free");
}

pub async fn of_twins_one_writes_a_definition(subject: &impl Subject) {
    let store = subject.store();
    let mut twins = JoinSet::new();
    for twin in 0..6 {
        let store = Arc::clone(&store);
        twins.spawn(async move {
            let own = agent(&format!("agent_{twin}"), at(0));
            match store.create_agent(&own, keep("key", show_agent)).await {
                Ok(()) => true,
                Err(DefinitionError::KeyUsed(_)) => false,
                Err(error) => panic!("{error}"),
            }
        });
    }
    let ended = twins.join_all().await;
    assert_eq!(ended.iter().filter(|written| **written).count(), 1);
    let mut there = 0;
    for twin in 0..6 {
        let found = store.agent(&format!("agent_{twin}").into(), None).await.expect("the store answers");
        there += usize::from(found.is_some());
    }
    assert_eq!(there, 1);
}

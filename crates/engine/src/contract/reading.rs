//! What is read and listed.

use std::collections::BTreeSet;
use std::sync::Arc;

use session::event::EnvironmentKind;
use session::id::SessionId;
use session::state::Status;
use session::{Command, Event, Form, State};

use super::story::{DAWN, Setting, Story, session_id};
use super::{Store, Subject};
use crate::port::{After, ListEvents, ListSessions, Order, StoredRecord, TimeRange};

/// A session that took two messages, the second while the first was being answered.
async fn told(store: &Arc<dyn Store>) -> Story {
    let (mut story, created) = Story::begin(1);
    let mut appends = vec![created, story.message("first"), story.message("second")];
    appends.extend(story.answer("to the first"));
    appends.extend(story.answer("to the second"));
    for append in appends {
        store.append(append).await.expect("nobody else appends");
    }
    story
}

fn everything(story: &Story) -> ListEvents {
    ListEvents {
        session_id: story.id().clone(),
        types: BTreeSet::new(),
        processed: TimeRange::default(),
        order: Order::Ascending,
        after: None,
        limit: 1000,
    }
}

fn positions(records: &[StoredRecord]) -> Vec<u64> {
    records.iter().map(|stored| stored.record.position).collect()
}

fn ids(states: &[State]) -> Vec<SessionId> {
    states.iter().map(|state| state.session_id.clone()).collect()
}

pub async fn records_are_read_in_pages(subject: &impl Subject) {
    let store = subject.store();
    let story = told(&store).await;
    let mut read = Vec::new();
    loop {
        let page = store.read(story.id(), read.len() as u64, 3).await.expect("the store answers");
        assert!(page.len() <= 3);
        if page.is_empty() {
            break;
        }
        read.extend(page);
    }
    let records: Vec<_> = read.into_iter().map(|stored| stored.record).collect();
    assert_eq!(records, story.records, "every form is read, in order");
}

pub async fn a_processed_event_comes_with_its_content(subject: &impl Subject) {
    let store = subject.store();
    let story = told(&store).await;
    let read = store.read(story.id(), 0, 1000).await.expect("the store answers");
    let mut processed = 0;
    for stored in &read {
        let Event::Processed { received, .. } = &stored.record.event else {
            assert_eq!(stored.received, None);
            continue;
        };
        processed += 1;
        let content = &story.records[usize::try_from(*received - 1).expect("it is small")].event;
        assert_eq!(stored.received.as_ref(), Some(content));
        assert_eq!(stored.kind(), "user.message");
        let api = stored.to_api().expect("clients see it");
        assert_eq!(api["id"].as_str(), content.id().map(|id| id.as_str()));
        assert!(api["processed_at"].is_string());
    }
    assert!(processed >= 1, "a message waited");
    let listed = store.list(&everything(&story)).await.expect("the store answers");
    let finals: Vec<StoredRecord> =
        read.into_iter().filter(|stored| stored.record.event.form() == Form::Final).collect();
    assert_eq!(listed, finals, "a list has each event once, at its own position");
}

pub async fn events_are_filtered(subject: &impl Subject) {
    let store = subject.store();
    let story = told(&store).await;
    let all = store.list(&everything(&story)).await.expect("the store answers");
    for types in [vec!["user.message"], vec!["agent.message", "session.status_idle"], vec!["no.such_type"]] {
        let types: BTreeSet<String> = types.into_iter().map(str::to_owned).collect();
        let listed = store.list(&ListEvents { types: types.clone(), ..everything(&story) }).await.expect("it answers");
        let expected: Vec<_> = all.iter().filter(|stored| types.contains(stored.kind())).cloned().collect();
        assert_eq!(listed, expected, "{types:?}");
    }
    let messages = ListEvents { types: ["user.message".to_owned()].into(), ..everything(&story) };
    assert_eq!(store.list(&messages).await.expect("it answers").len(), 2, "the processed one counts as what it is");

    let middle = all[all.len() / 2].record.at;
    let range = |from, before| ListEvents { processed: TimeRange { from, before }, ..everything(&story) };
    for list in [range(Some(middle), None), range(None, Some(middle)), range(Some(middle), Some(middle.successor()))] {
        let listed = store.list(&list).await.expect("the store answers");
        let within = |stored: &&StoredRecord| {
            list.processed.from.is_none_or(|from| stored.record.at >= from)
                && list.processed.before.is_none_or(|before| stored.record.at < before)
        };
        assert_eq!(listed, all.iter().filter(within).cloned().collect::<Vec<_>>());
    }
    let internal = ListEvents { types: ["log.created".to_owned()].into(), ..everything(&story) };
    assert!(store.list(&internal).await.expect("it answers").is_empty(), "the server's own records are not listed");
}

pub async fn events_are_paged_both_ways(subject: &impl Subject) {
    let store = subject.store();
    let story = told(&store).await;
    let all = positions(&store.list(&everything(&story)).await.expect("the store answers"));
    for order in [Order::Ascending, Order::Descending] {
        let mut listed = Vec::new();
        loop {
            let after = listed.last().copied();
            let list = ListEvents { order, after, limit: 2, ..everything(&story) };
            let page = positions(&store.list(&list).await.expect("the store answers"));
            if page.is_empty() {
                break;
            }
            listed.extend(page);
        }
        if order == Order::Descending {
            listed.reverse();
        }
        assert_eq!(listed, all, "{order:?}");
    }
}

/// Sessions 1 to 6: of two agents, two versions, two statuses, the fifth archived and the sixth deleted.
async fn many(store: &Arc<dyn Store>) -> Vec<State> {
    let mut states = Vec::new();
    for number in 1..=6 {
        let setting = Setting {
            agent_id: if number % 2 == 0 { "agent_even".into() } else { "agent_odd".into() },
            agent_version: if number > 3 { 2 } else { 1 },
            environment_kind: EnvironmentKind::SelfHosted,
            // Two are created in the same moment: the id decides.
            created_at: DAWN.plus_millis(i64::from(number / 2)),
            ..Setting::default()
        };
        let (mut story, created) = Story::begin_in(number, setting);
        store.append(created).await.expect("the session is new");
        let last = match number {
            1 => Some(story.message("run")),
            5 => Some(story.tell(Command::Archive)),
            6 => Some(story.tell(Command::Delete)),
            _ => None,
        };
        if let Some(append) = last {
            store.append(append).await.expect("nobody else appends");
        }
        states.push(story.state);
    }
    states
}

fn all_sessions() -> ListSessions {
    ListSessions {
        agent_id: None,
        agent_version: None,
        created: TimeRange::default(),
        include_archived: true,
        statuses: Vec::new(),
        order: Order::Ascending,
        after: None,
        limit: 100,
    }
}

pub async fn sessions_are_filtered(subject: &impl Subject) {
    let store = subject.store();
    let states = many(&store).await;
    let from = |created_from, created_before| TimeRange { from: created_from, before: created_before };
    let cases: Vec<(ListSessions, Vec<u32>)> = vec![
        (all_sessions(), vec![1, 2, 3, 4, 5]),
        (ListSessions { include_archived: false, ..all_sessions() }, vec![1, 2, 3, 4]),
        (ListSessions { agent_id: Some("agent_odd".into()), ..all_sessions() }, vec![1, 3, 5]),
        (ListSessions { agent_id: Some("agent_odd".into()), agent_version: Some(2), ..all_sessions() }, vec![5]),
        (ListSessions { statuses: vec![Status::Running], ..all_sessions() }, vec![1]),
        (ListSessions { statuses: vec![Status::Running, Status::Terminated], ..all_sessions() }, vec![1, 5]),
        (ListSessions { created: from(Some(DAWN.plus_millis(1)), None), ..all_sessions() }, vec![2, 3, 4, 5]),
        (ListSessions { created: from(None, Some(DAWN.plus_millis(1))), ..all_sessions() }, vec![1]),
        (ListSessions { limit: 2, ..all_sessions() }, vec![1, 2]),
        (ListSessions { agent_id: Some("agent_\0".into()), ..all_sessions() }, vec![]),
    ];
    for (list, expected) in cases {
        let listed = store.list_sessions(&list).await.expect("the store answers");
        assert_eq!(ids(&listed), expected.into_iter().map(session_id).collect::<Vec<_>>(), "{list:?}");
        for state in listed {
            assert!(states.contains(&state), "the state is the one that was stored");
        }
    }
}

pub async fn sessions_are_paged_both_ways(subject: &impl Subject) {
    let store = subject.store();
    many(&store).await;
    for order in [Order::Ascending, Order::Descending] {
        let mut listed: Vec<State> = Vec::new();
        loop {
            let after = listed
                .last()
                .map(|state| After { created_at: state.created_at, id: state.session_id.as_str().to_owned() });
            let list = ListSessions { order, after, limit: 2, ..all_sessions() };
            let page = store.list_sessions(&list).await.expect("the store answers");
            if page.is_empty() {
                break;
            }
            listed.extend(page);
        }
        if order == Order::Descending {
            listed.reverse();
        }
        assert_eq!(ids(&listed), (1..=5).map(session_id).collect::<Vec<_>>(), "{order:?}");
    }
}

pub async fn positions_come_in_one_answer(subject: &impl Subject) {
    let store = subject.store();
    let states = many(&store).await;
    let asked = [session_id(1), session_id(99), session_id(3), session_id(6)];
    let mut found = store.positions(&asked).await.expect("the store answers");
    found.sort();
    let expected: Vec<_> = [0, 2, 5].map(|at: usize| (states[at].session_id.clone(), states[at].position)).into();
    assert_eq!(found, expected, "deleted ones are there, unknown ones are not");
    assert!(store.positions(&[]).await.expect("the store answers").is_empty());
}

pub async fn an_unreadable_snapshot_is_folded_again(subject: &impl Subject) {
    let store = subject.store();
    let mut story = told(&store).await;
    if !subject.spoil_snapshots().await {
        return;
    }
    let loaded = store.load(story.id()).await.expect("the store answers").expect("it is there");
    assert_eq!(loaded.state, story.state);
    let listed = store.list_sessions(&all_sessions()).await.expect("the store answers");
    assert_eq!(listed, [story.state.clone()]);
    store.append(story.message("onwards")).await.expect("an append replaces the snapshot");
    let loaded = store.load(story.id()).await.expect("the store answers").expect("it is there");
    assert_eq!(loaded.state, story.state);
}

pub async fn deleted_sessions_are_purged(subject: &impl Subject) {
    let store = subject.store();
    let mut stories = Vec::new();
    for number in 1..=3 {
        let setting = Setting { created_at: DAWN.plus_millis(i64::from(number) * 10), ..Setting::default() };
        let (mut story, created) = Story::begin_in(number, setting);
        store.append(created).await.expect("the session is new");
        if number < 3 {
            store.append(story.tell(Command::Delete)).await.expect("nobody else appends");
        }
        stories.push(story);
    }
    let (first, second) = (&stories[0], &stories[1]);
    let loaded = store.load(first.id()).await.expect("the store answers").expect("a tombstone stays");
    assert!(loaded.state.deleted);
    assert_eq!(store.read(first.id(), 0, 10).await.expect("it answers").len(), first.records.len());

    assert_eq!(store.purge(first.state.last_at, 10).await.expect("it answers"), 0, "before means before");
    assert_eq!(store.purge(first.state.last_at.successor(), 10).await.expect("it answers"), 1);
    assert!(store.load(first.id()).await.expect("it answers").is_none());
    assert!(store.read(first.id(), 0, 10).await.expect("it answers").is_empty());
    assert!(store.load(second.id()).await.expect("it answers").is_some());
    let later = second.state.last_at.plus_millis(1_000_000);
    assert_eq!(store.purge(later, 0).await.expect("it answers"), 0, "a limit is a limit");
    assert_eq!(store.purge(later, 10).await.expect("it answers"), 1, "what is not deleted stays");
    assert!(store.load(stories[2].id()).await.expect("it answers").is_some());
}

pub async fn what_is_not_there_is_none(subject: &impl Subject) {
    let store = subject.store();
    for id in ["sesn_none", "", "sesn_\0", "sesn_'; --", "sesn_\u{fffd}"] {
        let id = SessionId::from(id);
        assert!(store.load(&id).await.expect("the store answers").is_none(), "{id:?}");
        assert!(store.read(&id, 0, 10).await.expect("the store answers").is_empty());
        assert!(store.positions(std::slice::from_ref(&id)).await.expect("the store answers").is_empty());
        let (mut story, _) = Story::begin(1);
        story.state.session_id = id;
        let types = ["user.\0".to_owned()].into();
        let list = ListEvents { types, ..everything(&story) };
        assert!(store.list(&list).await.expect("the store answers").is_empty());
    }
}

//! Agents, environments and environment keys.

use std::collections::BTreeMap;

use session::Timestamp;
use session::id::{AgentId, EnvironmentId};

use super::Subject;
use super::story::{DAWN, Setting, Story, model};
use crate::port::definitions::{DefinitionError, EnvironmentKey, ListDefinitions};
use crate::port::{After, Agent, Environment, EnvironmentConfig, Networking, TimeRange};

pub fn at(millis: i64) -> Timestamp {
    DAWN.plus_millis(millis)
}

pub fn agent(id: &str, created_at: Timestamp) -> Agent {
    Agent {
        id: id.into(),
        version: 1,
        name: "helper".to_owned(),
        description: None,
        system: Some("Help.".to_owned()),
        model: model(),
        tools: Vec::new(),
        metadata: BTreeMap::new(),
        created_at,
        updated_at: created_at,
        archived_at: None,
    }
}

pub fn next(agent: &Agent, name: &str) -> Agent {
    Agent { version: agent.version + 1, name: name.to_owned(), updated_at: at(1), ..agent.clone() }
}

pub(super) fn environment(id: &str, name: &str, created_at: Timestamp) -> Environment {
    Environment {
        id: id.into(),
        name: name.to_owned(),
        description: Some("where it runs".to_owned()),
        config: EnvironmentConfig::Cloud {
            networking: Networking::Limited {
                allowed_hosts: vec!["example.com".to_owned()],
                allow_mcp_servers: false,
                allow_package_managers: true,
            },
        },
        metadata: BTreeMap::new(),
        created_at,
        updated_at: created_at,
        archived_at: None,
    }
}

fn everything() -> ListDefinitions {
    ListDefinitions { created: TimeRange::default(), include_archived: true, after: None, limit: 100 }
}

pub async fn versions_follow_each_other(subject: &impl Subject) {
    let store = subject.store();
    let first = agent("agent_a", at(0));
    let id = first.id.clone();
    assert_eq!(store.agent(&id, None).await.expect("the store answers"), None);
    let unknown = store.add_agent_version(&next(&first, "too early"), None).await;
    assert!(matches!(unknown, Err(DefinitionError::NotFound)), "{unknown:?}");
    store.create_agent(&first, None).await.expect("the id is new");
    let again = store.create_agent(&first, None).await;
    assert!(matches!(again, Err(DefinitionError::Conflict)), "{again:?}");

    let second = next(&first, "second");
    let third = next(&second, "third");
    let gap = store.add_agent_version(&third, None).await;
    assert!(matches!(gap, Err(DefinitionError::Conflict)), "{gap:?}");
    store.add_agent_version(&second, None).await.expect("it follows");
    store.add_agent_version(&third, None).await.expect("it follows");

    for (version, expected) in
        [(None, Some(&third)), (Some(1), Some(&first)), (Some(2), Some(&second)), (Some(4), None)]
    {
        assert_eq!(store.agent(&id, version).await.expect("the store answers").as_ref(), expected, "{version:?}");
    }
    let versions = async |before, limit| store.agent_versions(&id, before, limit).await.expect("the store answers");
    assert_eq!(versions(None, 2).await, [third, second.clone()]);
    assert_eq!(versions(Some(2), 2).await, [first]);
    assert_eq!(versions(Some(3), 1).await, [second]);
    assert_eq!(versions(Some(1), 2).await, []);
}

pub async fn of_two_writers_of_a_version_one_wins(subject: &impl Subject) {
    let store = subject.store();
    let first = agent("agent_a", at(0));
    store.create_agent(&first, None).await.expect("the id is new");
    let (mine, yours) = (next(&first, "mine"), next(&first, "yours"));
    let (me, you) = tokio::join!(store.add_agent_version(&mine, None), store.add_agent_version(&yours, None));
    let (winner, loser) = match (&me, &you) {
        (Ok(()), Err(loser)) => (mine, loser),
        (Err(loser), Ok(())) => (yours, loser),
        both => panic!("{both:?}"),
    };
    assert!(matches!(loser, DefinitionError::Conflict), "{loser:?}");
    assert_eq!(store.agent(&first.id, None).await.expect("the store answers"), Some(winner));
}

pub async fn an_archived_agent_stays_as_it_was(subject: &impl Subject) {
    let store = subject.store();
    let first = agent("agent_a", at(0));
    let unknown = store.archive_agent(&first.id, at(5), None).await;
    assert!(matches!(unknown, Err(DefinitionError::NotFound)), "{unknown:?}");
    let archived_at = async || store.agent_archived_at(&first.id).await.expect("the store answers");
    assert_eq!(archived_at().await, None);
    store.create_agent(&first, None).await.expect("the id is new");
    assert_eq!(archived_at().await, Some(None));
    for again in [at(5), at(6)] {
        let archived = store.archive_agent(&first.id, again, None).await.expect("it is there");
        assert_eq!(archived, Agent { archived_at: Some(at(5)), ..first.clone() }, "the first time counts");
    }
    let refused = store.add_agent_version(&next(&first, "late"), None).await;
    assert!(matches!(refused, Err(DefinitionError::Conflict)), "{refused:?}");
    let old = store.agent(&first.id, Some(1)).await.expect("the store answers").expect("it is there");
    assert_eq!(old.archived_at, Some(at(5)), "the agent is archived as a whole");
    assert_eq!(archived_at().await, Some(Some(at(5))));
}

pub async fn agents_are_listed(subject: &impl Subject) {
    let store = subject.store();
    // Two are created in the same moment: the id decides.
    for (id, millis) in [("agent_a", 0), ("agent_b", 10), ("agent_c", 10), ("agent_d", 20)] {
        store.create_agent(&agent(id, at(millis)), None).await.expect("the id is new");
    }
    let changed = next(&agent("agent_a", at(0)), "changed");
    store.add_agent_version(&changed, None).await.expect("it follows");
    store.archive_agent(&"agent_d".into(), at(30), None).await.expect("it is there");

    let list = async |list: ListDefinitions| -> Vec<AgentId> {
        store.list_agents(&list).await.expect("the store answers").into_iter().map(|agent| agent.id).collect()
    };
    let ids = |ids: &[&str]| ids.iter().map(|id| AgentId::from(*id)).collect::<Vec<_>>();
    assert_eq!(list(everything()).await, ids(&["agent_d", "agent_c", "agent_b", "agent_a"]));
    assert_eq!(
        list(ListDefinitions { include_archived: false, ..everything() }).await,
        ids(&["agent_c", "agent_b", "agent_a"])
    );
    let created = TimeRange { from: Some(at(10)), before: Some(at(20)) };
    assert_eq!(list(ListDefinitions { created, ..everything() }).await, ids(&["agent_c", "agent_b"]));
    let after = |id: &str, millis| Some(After { created_at: at(millis), id: id.to_owned() });
    let page = ListDefinitions { after: after("agent_c", 10), limit: 1, ..everything() };
    assert_eq!(list(page).await, ids(&["agent_b"]));
    let page = ListDefinitions { after: after("agent_a", 0), ..everything() };
    assert_eq!(list(page).await, ids(&[]));
    assert_eq!(
        store.list_agents(&everything()).await.expect("it answers").last(),
        Some(&changed),
        "the latest version"
    );
}

pub async fn names_of_environments_are_unique(subject: &impl Subject) {
    let store = subject.store();
    let first = environment("env_a", "main", at(0));
    store.create_environment(&first, None).await.expect("it is new");
    assert_eq!(store.environment(&first.id).await.expect("the store answers"), Some(first.clone()));
    let taken = store.create_environment(&environment("env_b", "main", at(1)), None).await;
    assert!(matches!(taken, Err(DefinitionError::NameTaken)), "{taken:?}");
    store.create_environment(&environment("env_b", "Main", at(1)), None).await.expect("names differ by case");
    let renamed = environment("env_b", "main", at(1));
    let taken = store.update_environment(&renamed, at(1), None).await;
    assert!(matches!(taken, Err(DefinitionError::NameTaken)), "{taken:?}");

    for again in [at(5), at(6)] {
        let archived = store.archive_environment(&first.id, again, None).await.expect("it is there");
        assert_eq!(archived.archived_at, Some(at(5)), "the first time counts");
    }
    store.update_environment(&renamed, at(1), None).await.expect("the name of an archived one is free");
    let list = async |include_archived| {
        let list = ListDefinitions { include_archived, ..everything() };
        let listed = store.list_environments(&list).await.expect("the store answers");
        listed.into_iter().map(|environment| environment.id.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(list(true).await, ["env_b", "env_a"]);
    assert_eq!(list(false).await, ["env_b"]);
}

pub async fn an_environment_changes_from_what_was_seen(subject: &impl Subject) {
    let store = subject.store();
    let first = environment("env_a", "main", at(0));
    let change = |name: &str, millis| Environment { name: name.to_owned(), updated_at: at(millis), ..first.clone() };
    let unknown = store.update_environment(&first, at(0), None).await;
    assert!(matches!(unknown, Err(DefinitionError::NotFound)), "{unknown:?}");
    store.create_environment(&first, None).await.expect("it is new");
    store.update_environment(&change("second", 1), at(0), None).await.expect("nobody else changes it");
    let stale = store.update_environment(&change("third", 2), at(0), None).await;
    assert!(matches!(stale, Err(DefinitionError::Conflict)), "{stale:?}");
    assert_eq!(store.environment(&first.id).await.expect("it answers"), Some(change("second", 1)));
    store.archive_environment(&first.id, at(3), None).await.expect("it is there");
    let late = store.update_environment(&change("late", 4), at(1), None).await;
    assert!(matches!(late, Err(DefinitionError::Conflict)), "{late:?}");
    let unknown = store.archive_environment(&"env_none".into(), at(3), None).await;
    assert!(matches!(unknown, Err(DefinitionError::NotFound)), "{unknown:?}");
}

pub async fn an_environment_in_use_stays(subject: &impl Subject) {
    let store = subject.store();
    let home = environment("env_home", "home", at(0));
    store.create_environment(&home, None).await.expect("it is new");
    let setting = Setting { environment_id: home.id.clone(), ..Setting::default() };
    let (mut story, created) = Story::begin_in(1, setting);
    store.append(created).await.expect("the session is new");
    store.create_environment_key(&key("envkey_a", &home.id, "hash")).await.expect("the key is new");

    let used = store.delete_environment(&home.id).await;
    assert!(matches!(used, Err(DefinitionError::InUse)), "{used:?}");
    store.append(story.tell(session::Command::Delete)).await.expect("nobody else appends");
    store.delete_environment(&home.id).await.expect("a deleted session holds nothing");
    assert_eq!(store.environment(&home.id).await.expect("the store answers"), None);
    assert_eq!(store.environment_key("hash").await.expect("the store answers"), None, "its keys go with it");
    let gone = store.delete_environment(&home.id).await;
    assert!(matches!(gone, Err(DefinitionError::NotFound)), "{gone:?}");
}

fn key(id: &str, environment_id: &EnvironmentId, key_hash: &str) -> EnvironmentKey {
    EnvironmentKey {
        id: id.into(),
        environment_id: environment_id.clone(),
        key_hash: key_hash.to_owned(),
        created_at: at(0),
        revoked_at: None,
    }
}

pub async fn keys_are_found_until_revoked(subject: &impl Subject) {
    let store = subject.store();
    let home = environment("env_home", "home", at(0));
    store.create_environment(&home, None).await.expect("it is new");
    let (first, second) = (key("envkey_a", &home.id, "hash-a"), key("envkey_b", &home.id, "hash-b"));
    for key in [&first, &second] {
        store.create_environment_key(key).await.expect("the key is new");
        assert_eq!(store.environment_key(&key.key_hash).await.expect("it answers").as_ref(), Some(key));
    }
    assert_eq!(store.environment_key("hash-c").await.expect("the store answers"), None);
    for again in [at(5), at(6)] {
        store.revoke_environment_key(&first.id, again).await.expect("it is there");
    }
    assert_eq!(store.environment_key("hash-a").await.expect("the store answers"), None);
    let unknown = store.revoke_environment_key(&"envkey_none".into(), at(5)).await;
    assert!(matches!(unknown, Err(DefinitionError::NotFound)), "{unknown:?}");
    let listed = store.list_environment_keys(&home.id).await.expect("the store answers");
    assert_eq!(listed, [second, EnvironmentKey { revoked_at: Some(at(5)), ..first }]);
}

pub async fn definitions_hold_any_text(subject: &impl Subject) {
    let store = subject.store();
    let text = "NUL \0, quote ', backslash \\u0000, \u{10ffff}";
    let mut odd = agent("agent_a", at(0));
    odd.name = text.to_owned();
    odd.metadata.insert(text.to_owned(), text.to_owned());
    store.create_agent(&odd, None).await.expect("the id is new");
    assert_eq!(store.agent(&odd.id, None).await.expect("the store answers"), Some(odd));
    let place = environment("env_a", text, at(0));
    store.create_environment(&place, None).await.expect("it is new");
    assert_eq!(store.environment(&place.id).await.expect("the store answers"), Some(place));
    let taken = store.create_environment(&environment("env_b", text, at(1)), None).await;
    assert!(matches!(taken, Err(DefinitionError::NameTaken)), "{taken:?}");
    assert_eq!(store.agent(&"agent_\0".into(), None).await.expect("the store answers"), None);
    assert_eq!(store.environment(&"env_\0".into()).await.expect("the store answers"), None);
}

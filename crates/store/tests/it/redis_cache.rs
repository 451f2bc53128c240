//! The cache of agents' versions: what it may answer, and what only the database may.

use std::sync::Arc;

use engine::contract::definitions::{agent, at, next};
use engine::memory::MemoryStore;
use engine::observer::CacheOutcome;
use engine::port::{Agent, Clock, Definitions};
use session::Timestamp;
use store::testing::RedisServer;
use store::{CachedDefinitions, Redis};

use crate::redis_limits::Asked;

struct Still;

impl Clock for Still {
    fn now(&self) -> Timestamp {
        Timestamp::from_micros(1_795_000_000_000_000)
    }
}

/// A process with a cache of its own before `store`.
async fn process(server: &RedisServer, store: &Arc<MemoryStore>, asked: &Arc<Asked>) -> CachedDefinitions {
    let redis = Redis::new(server.options()).expect("the address is right");
    let cached = CachedDefinitions::start(Arc::clone(store) as _, &redis, Arc::clone(asked) as _);
    cached.connected().await;
    cached
}

async fn version(definitions: &dyn Definitions, agent: &Agent) -> Option<Agent> {
    definitions.agent(&agent.id, Some(agent.version)).await.expect("the store answers")
}

/// Waits until Redis holds the version.
async fn written(server: &RedisServer, agent: &Agent) {
    let key = format!("agent-service:agent:1:{}:{}", agent.id, agent.version);
    while !server.command(&["EXISTS", &key]).await.contains("int(1)") {}
}

#[tokio::test]
async fn versions_are_kept_near_and_far() {
    let Some(server) = RedisServer::start().await else { return };
    let store = Arc::new(MemoryStore::new(Arc::new(Still)));
    let asked = Arc::new(Asked::default());
    let one = process(&server, &store, &asked).await;
    let first = agent("agent_a", at(0));
    assert_eq!(version(&one, &first).await, None, "what is not there is not kept");
    one.create_agent(&first, None).await.expect("the id is new");
    assert_eq!(version(&one, &first).await, Some(first.clone()));
    written(&server, &first).await;
    let second = next(&first, "second");
    one.add_agent_version(&second, None).await.expect("it follows");

    let other = process(&server, &store, &asked).await;
    for _ in 0..2 {
        assert_eq!(version(&other, &first).await, Some(first.clone()));
    }
    assert_eq!(other.agent(&first.id, None).await.expect("the store answers"), Some(second.clone()));
    assert_eq!(version(&other, &second).await, Some(second));
    let outcomes: Vec<_> = asked.0.lock().iter().map(|(_, outcome)| *outcome).collect();
    // The second look of the other process is answered near.
    use CacheOutcome::{Hit, Miss};
    assert_eq!(outcomes, [Miss, Miss, Hit, Miss]);
}

#[tokio::test]
async fn whether_an_agent_is_archived_is_never_kept() {
    let Some(server) = RedisServer::start().await else { return };
    let store = Arc::new(MemoryStore::new(Arc::new(Still)));
    let (one, other) =
        (process(&server, &store, &Arc::default()).await, process(&server, &store, &Arc::default()).await);
    let first = agent("agent_a", at(0));
    one.create_agent(&first, None).await.expect("the id is new");
    version(&one, &first).await;
    written(&server, &first).await;
    assert_eq!(version(&other, &first).await, Some(first.clone()));
    one.archive_agent(&first.id, at(5), None).await.expect("it is there");
    let archived = Agent { archived_at: Some(at(5)), ..first.clone() };
    for process in [&one, &other] {
        assert_eq!(version(process, &first).await, Some(archived.clone()));
    }
    // A process that first sees the agent when it is archived keeps no trace of that either.
    server.command(&["FLUSHALL"]).await;
    let third = process(&server, &store, &Arc::default()).await;
    assert_eq!(version(&third, &first).await, Some(archived));
    written(&server, &first).await;
    let kept = server.command(&["GET", &format!("agent-service:agent:1:{}:1", first.id)]).await;
    assert!(kept.contains("agent_a") && !kept.contains("archived"), "{kept}");
}

#[tokio::test]
async fn what_cannot_be_read_or_asked_comes_from_the_database() {
    let Some(mut server) = RedisServer::start().await else { return };
    let store = Arc::new(MemoryStore::new(Arc::new(Still)));
    let first = agent("agent_a", at(0));
    store.create_agent(&first, None).await.expect("the id is new");
    server.command(&["SET", "agent-service:agent:1:agent_a:1", "{\"from\": \"another release\"}"]).await;
    assert_eq!(version(&process(&server, &store, &Arc::default()).await, &first).await, Some(first.clone()));

    let asked = Arc::new(Asked::default());
    let away = process(&server, &store, &asked).await;
    server.stop();
    assert_eq!(version(&away, &first).await, Some(first.clone()));
    assert_eq!(version(&away, &first).await, Some(first.clone()));
    let outcomes: Vec<_> = asked.0.lock().iter().map(|(_, outcome)| *outcome).collect();
    assert_eq!(outcomes, [CacheOutcome::Error], "the second is answered near");
}

//! Versions of agents, which never change, kept near: in this process first, then in Redis, then in the database.
//!
//! A version is kept as it is stored, without the time at which its agent was archived: that changes, belongs to the
//! agent as a whole, and is asked of the database each time. Whatever is kept may be wrong only by being absent, so
//! nothing is ever taken out but to make room. Everything else goes to the database as it is.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use engine::Observer;
use engine::observer::CacheOutcome;
use engine::port::definitions::{DefinitionError, EnvironmentKey, ListDefinitions};
use engine::port::{Agent, Definitions, Environment, Keep, StoreError};
use parking_lot::Mutex;
use session::Timestamp;
use session::id::{AgentId, EnvironmentId, EnvironmentKeyId};

use super::Redis;
use super::commands::Commands;

/// Versions kept in this process.
const NEAR_MAX: usize = 256;

/// How long a version is kept in Redis after it was last written there.
const FAR_FOR: Duration = Duration::from_secs(24 * 60 * 60);

/// The form of what is kept in Redis; a release that changes it changes this.
const FORMAT: u32 = 1;

/// What this process calls the question in its metrics.
const OP: &str = "agent_version";

/// Definitions with a cache before them.
pub struct CachedDefinitions {
    store: Arc<dyn Definitions>,
    near: Mutex<Near>,
    commands: Arc<Commands>,
    key_prefix: String,
    observer: Arc<dyn Observer>,
}

/// The versions that this process has seen, the longest known first to go.
#[derive(Default)]
struct Near {
    versions: BTreeMap<(AgentId, u32), Agent>,
    arrived: VecDeque<(AgentId, u32)>,
}

impl Near {
    fn keep(&mut self, agent: Agent) {
        let key = (agent.id.clone(), agent.version);
        if self.versions.insert(key.clone(), agent).is_none() {
            self.arrived.push_back(key);
        }
        if self.arrived.len() > NEAR_MAX
            && let Some(oldest) = self.arrived.pop_front()
        {
            self.versions.remove(&oldest);
        }
    }
}

impl CachedDefinitions {
    /// Call it inside a runtime.
    pub fn start(store: Arc<dyn Definitions>, redis: &Arc<Redis>, observer: Arc<dyn Observer>) -> Self {
        let key_prefix = format!("{}:agent:{FORMAT}:", redis.options.key_prefix);
        Self { store, near: Mutex::default(), commands: redis.commands(), key_prefix, observer }
    }

    /// Waits until Redis is asked.
    pub async fn connected(&self) {
        self.commands.connected().await;
    }

    /// The version as it is kept somewhere.
    async fn kept(&self, id: &AgentId, version: u32) -> Option<Agent> {
        if let Some(agent) = self.near.lock().versions.get(&(id.clone(), version)) {
            return Some(agent.clone());
        }
        let started = Instant::now();
        let key = self.key(id, version);
        let asked = self.commands.ask(async |line| ::redis::cmd("GET").arg(key).query_async(line).await).await;
        let (outcome, found) = match asked {
            Ok(text) => {
                let text: Option<String> = text;
                // What cannot be read is as good as absent, and is written again.
                let agent = text.and_then(|text| serde_json::from_str::<Agent>(&text).ok());
                let agent = agent.filter(|agent| agent.id == *id && agent.version == version);
                (if agent.is_some() { CacheOutcome::Hit } else { CacheOutcome::Miss }, agent)
            }
            Err(_) => (CacheOutcome::Error, None),
        };
        self.observer.cache_request(OP, outcome, started.elapsed().as_secs_f64());
        if let Some(agent) = &found {
            self.near.lock().keep(agent.clone());
        }
        found
    }

    /// Keeps a version here and, without waiting for it, in Redis.
    fn keep(&self, agent: Agent) {
        let key = self.key(&agent.id, agent.version);
        let text = serde_json::to_string(&agent).expect("an agent is plain data");
        self.near.lock().keep(agent);
        let commands = Arc::clone(&self.commands);
        tokio::spawn(async move {
            let mut set = ::redis::cmd("SET");
            set.arg(key).arg(text).arg("EX").arg(FAR_FOR.as_secs());
            // One that is not kept is asked of the database again.
            let _ = commands.ask(async |line| set.exec_async(line).await).await;
        });
    }

    fn key(&self, id: &AgentId, version: u32) -> String {
        format!("{}{id}:{version}", self.key_prefix)
    }
}

#[async_trait]
impl Definitions for CachedDefinitions {
    async fn agent(&self, id: &AgentId, version: Option<u32>) -> Result<Option<Agent>, StoreError> {
        let Some(wanted) = version else { return self.store.agent(id, None).await };
        if let Some(agent) = self.kept(id, wanted).await {
            let archived_at = self.store.agent_archived_at(id).await?;
            return Ok(archived_at.map(|archived_at| Agent { archived_at, ..agent }));
        }
        let agent = self.store.agent(id, version).await?;
        if let Some(agent) = &agent {
            self.keep(Agent { archived_at: None, ..agent.clone() });
        }
        Ok(agent)
    }

    async fn agent_archived_at(&self, id: &AgentId) -> Result<Option<Option<Timestamp>>, StoreError> {
        self.store.agent_archived_at(id).await
    }

    async fn create_agent(&self, agent: &Agent, keep: Option<Keep<Agent>>) -> Result<(), DefinitionError> {
        self.store.create_agent(agent, keep).await
    }

    async fn add_agent_version(&self, agent: &Agent, keep: Option<Keep<Agent>>) -> Result<(), DefinitionError> {
        self.store.add_agent_version(agent, keep).await
    }

    async fn archive_agent(
        &self,
        id: &AgentId,
        at: Timestamp,
        keep: Option<Keep<Agent>>,
    ) -> Result<Agent, DefinitionError> {
        self.store.archive_agent(id, at, keep).await
    }

    async fn list_agents(&self, list: &ListDefinitions) -> Result<Vec<Agent>, StoreError> {
        self.store.list_agents(list).await
    }

    async fn agent_versions(&self, id: &AgentId, before: Option<u32>, limit: usize) -> Result<Vec<Agent>, StoreError> {
        self.store.agent_versions(id, before, limit).await
    }

    async fn create_environment(
        &self,
        environment: &Environment,
        keep: Option<Keep<Environment>>,
    ) -> Result<(), DefinitionError> {
        self.store.create_environment(environment, keep).await
    }

    async fn environment(&self, id: &EnvironmentId) -> Result<Option<Environment>, StoreError> {
        self.store.environment(id).await
    }

    async fn update_environment(
        &self,
        environment: &Environment,
        seen_updated_at: Timestamp,
        keep: Option<Keep<Environment>>,
    ) -> Result<(), DefinitionError> {
        self.store.update_environment(environment, seen_updated_at, keep).await
    }

    async fn archive_environment(
        &self,
        id: &EnvironmentId,
        at: Timestamp,
        keep: Option<Keep<Environment>>,
    ) -> Result<Environment, DefinitionError> {
        self.store.archive_environment(id, at, keep).await
    }

    async fn delete_environment(&self, id: &EnvironmentId) -> Result<(), DefinitionError> {
        self.store.delete_environment(id).await
    }

    async fn list_environments(&self, list: &ListDefinitions) -> Result<Vec<Environment>, StoreError> {
        self.store.list_environments(list).await
    }

    async fn create_environment_key(&self, key: &EnvironmentKey) -> Result<(), DefinitionError> {
        self.store.create_environment_key(key).await
    }

    async fn environment_key(&self, key_hash: &str) -> Result<Option<EnvironmentKey>, StoreError> {
        self.store.environment_key(key_hash).await
    }

    async fn list_environment_keys(&self, id: &EnvironmentId) -> Result<Vec<EnvironmentKey>, StoreError> {
        self.store.list_environment_keys(id).await
    }

    async fn revoke_environment_key(&self, id: &EnvironmentKeyId, at: Timestamp) -> Result<(), DefinitionError> {
        self.store.revoke_environment_key(id, at).await
    }
}

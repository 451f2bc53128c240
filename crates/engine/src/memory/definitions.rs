//! Agents, environments and environment keys in memory.

use async_trait::async_trait;
use session::Timestamp;
use session::id::{AgentId, EnvironmentId, EnvironmentKeyId};

use super::store::{MemoryStore, Tables, in_range, page};
use crate::port::definitions::{DefinitionError, ListDefinitions};
use crate::port::{Agent, Definitions, Environment, EnvironmentKey, Keep, Order, StoreError};

impl Tables {
    /// Whether an active environment other than `except` has this name.
    fn name_taken(&self, name: &str, except: &EnvironmentId) -> bool {
        self.environments.values().any(|other| other.archived_at.is_none() && other.name == name && other.id != *except)
    }
}

#[async_trait]
impl Definitions for MemoryStore {
    async fn create_agent(&self, agent: &Agent, keep: Option<Keep<Agent>>) -> Result<(), DefinitionError> {
        let now = self.now();
        let mut tables = self.tables();
        tables.check_keep(keep.as_ref(), now)?;
        if tables.agents.contains_key(&agent.id) {
            return Err(DefinitionError::Conflict);
        }
        tables.agents.insert(agent.id.clone(), vec![agent.clone()]);
        tables.keep_written(keep, agent, now);
        Ok(())
    }

    async fn agent(&self, id: &AgentId, version: Option<u32>) -> Result<Option<Agent>, StoreError> {
        let tables = self.tables();
        let Some(versions) = tables.agents.get(id) else {
            return Ok(None);
        };
        Ok(match version {
            None => versions.last().cloned(),
            Some(version) => versions.iter().find(|agent| agent.version == version).cloned(),
        })
    }

    async fn agent_archived_at(&self, id: &AgentId) -> Result<Option<Option<Timestamp>>, StoreError> {
        Ok(self.tables().agents.get(id).and_then(|versions| versions.last()).map(|latest| latest.archived_at))
    }

    async fn add_agent_version(&self, agent: &Agent, keep: Option<Keep<Agent>>) -> Result<(), DefinitionError> {
        let now = self.now();
        let mut tables = self.tables();
        tables.check_keep(keep.as_ref(), now)?;
        let versions = tables.agents.get_mut(&agent.id).ok_or(DefinitionError::NotFound)?;
        let latest = versions.last().ok_or(DefinitionError::NotFound)?;
        if latest.archived_at.is_some() || latest.version + 1 != agent.version {
            return Err(DefinitionError::Conflict);
        }
        versions.push(agent.clone());
        tables.keep_written(keep, agent, now);
        Ok(())
    }

    async fn archive_agent(
        &self,
        id: &AgentId,
        at: Timestamp,
        keep: Option<Keep<Agent>>,
    ) -> Result<Agent, DefinitionError> {
        let now = self.now();
        let mut tables = self.tables();
        tables.check_keep(keep.as_ref(), now)?;
        let versions = tables.agents.get_mut(id).ok_or(DefinitionError::NotFound)?;
        for agent in versions.iter_mut() {
            agent.archived_at.get_or_insert(at);
        }
        let archived = versions.last().cloned().ok_or(DefinitionError::NotFound)?;
        tables.keep_written(keep, &archived, now);
        Ok(archived)
    }

    async fn list_agents(&self, list: &ListDefinitions) -> Result<Vec<Agent>, StoreError> {
        let tables = self.tables();
        let found = tables.agents.values().filter_map(|versions| versions.last()).filter(|agent| {
            in_range(list.created, agent.created_at) && (list.include_archived || agent.archived_at.is_none())
        });
        let key = |agent: &&Agent| (agent.created_at, agent.id.to_string());
        Ok(page(found, key, Order::Descending, list.after.as_ref(), list.limit).into_iter().cloned().collect())
    }

    async fn agent_versions(&self, id: &AgentId, before: Option<u32>, limit: usize) -> Result<Vec<Agent>, StoreError> {
        let tables = self.tables();
        let versions = tables.agents.get(id).map_or(&[][..], Vec::as_slice);
        let behind = |agent: &&Agent| before.is_none_or(|before| agent.version < before);
        Ok(versions.iter().rev().filter(behind).take(limit).cloned().collect())
    }

    async fn create_environment(
        &self,
        environment: &Environment,
        keep: Option<Keep<Environment>>,
    ) -> Result<(), DefinitionError> {
        let now = self.now();
        let mut tables = self.tables();
        tables.check_keep(keep.as_ref(), now)?;
        if tables.environments.contains_key(&environment.id) {
            return Err(DefinitionError::Conflict);
        }
        if tables.name_taken(&environment.name, &environment.id) {
            return Err(DefinitionError::NameTaken);
        }
        tables.environments.insert(environment.id.clone(), environment.clone());
        tables.keep_written(keep, environment, now);
        Ok(())
    }

    async fn environment(&self, id: &EnvironmentId) -> Result<Option<Environment>, StoreError> {
        Ok(self.tables().environments.get(id).cloned())
    }

    async fn update_environment(
        &self,
        environment: &Environment,
        seen_updated_at: Timestamp,
        keep: Option<Keep<Environment>>,
    ) -> Result<(), DefinitionError> {
        let now = self.now();
        let mut tables = self.tables();
        tables.check_keep(keep.as_ref(), now)?;
        let present = tables.environments.get(&environment.id).ok_or(DefinitionError::NotFound)?;
        if present.archived_at.is_some() || present.updated_at != seen_updated_at {
            return Err(DefinitionError::Conflict);
        }
        if tables.name_taken(&environment.name, &environment.id) {
            return Err(DefinitionError::NameTaken);
        }
        tables.environments.insert(environment.id.clone(), environment.clone());
        tables.keep_written(keep, environment, now);
        Ok(())
    }

    async fn archive_environment(
        &self,
        id: &EnvironmentId,
        at: Timestamp,
        keep: Option<Keep<Environment>>,
    ) -> Result<Environment, DefinitionError> {
        let now = self.now();
        let mut tables = self.tables();
        tables.check_keep(keep.as_ref(), now)?;
        let environment = tables.environments.get_mut(id).ok_or(DefinitionError::NotFound)?;
        if environment.archived_at.is_none() {
            environment.archived_at = Some(at);
            environment.updated_at = at;
        }
        let archived = environment.clone();
        tables.keep_written(keep, &archived, now);
        Ok(archived)
    }

    async fn delete_environment(&self, id: &EnvironmentId) -> Result<(), DefinitionError> {
        let mut tables = self.tables();
        if !tables.environments.contains_key(id) {
            return Err(DefinitionError::NotFound);
        }
        if tables.sessions.values().any(|row| !row.state.deleted && row.state.environment_id == *id) {
            return Err(DefinitionError::InUse);
        }
        tables.environments.remove(id);
        tables.keys.retain(|_, key| key.environment_id != *id);
        Ok(())
    }

    async fn list_environments(&self, list: &ListDefinitions) -> Result<Vec<Environment>, StoreError> {
        let tables = self.tables();
        let found = tables.environments.values().filter(|environment| {
            in_range(list.created, environment.created_at)
                && (list.include_archived || environment.archived_at.is_none())
        });
        let key = |environment: &&Environment| (environment.created_at, environment.id.to_string());
        Ok(page(found, key, Order::Descending, list.after.as_ref(), list.limit).into_iter().cloned().collect())
    }

    async fn create_environment_key(&self, key: &EnvironmentKey) -> Result<(), DefinitionError> {
        let mut tables = self.tables();
        if !tables.environments.contains_key(&key.environment_id) {
            return Err(DefinitionError::NotFound);
        }
        tables.keys.insert(key.id.clone(), key.clone());
        Ok(())
    }

    async fn environment_key(&self, key_hash: &str) -> Result<Option<EnvironmentKey>, StoreError> {
        let tables = self.tables();
        Ok(tables.keys.values().find(|key| key.key_hash == key_hash && key.revoked_at.is_none()).cloned())
    }

    async fn list_environment_keys(&self, id: &EnvironmentId) -> Result<Vec<EnvironmentKey>, StoreError> {
        let tables = self.tables();
        let found = tables.keys.values().filter(|key| key.environment_id == *id);
        let key = |key: &&EnvironmentKey| (key.created_at, key.id.to_string());
        Ok(page(found, key, Order::Descending, None, usize::MAX).into_iter().cloned().collect())
    }

    async fn revoke_environment_key(&self, id: &EnvironmentKeyId, at: Timestamp) -> Result<(), DefinitionError> {
        let mut tables = self.tables();
        let key = tables.keys.get_mut(id).ok_or(DefinitionError::NotFound)?;
        key.revoked_at.get_or_insert(at);
        Ok(())
    }
}

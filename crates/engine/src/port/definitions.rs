//! Agents, environments and environment keys: what sessions are made from.

use std::collections::BTreeMap;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use session::Timestamp;
use session::agent::{ModelConfig, Tool};
use session::event::EnvironmentKind;
use session::id::{AgentId, EnvironmentId, EnvironmentKeyId};

use super::{After, Keep, KeepError, KeyUsed, StoreError, TimeRange};

/// One version of an agent, normalised.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Agent {
    pub id: AgentId,
    /// Counted from 1.
    pub version: u32,
    pub name: String,
    pub description: Option<String>,
    pub system: Option<String>,
    pub model: ModelConfig,
    pub tools: Vec<Tool>,
    pub metadata: BTreeMap<String, String>,
    /// Of the agent, not of the version.
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
    /// Of the agent as a whole; never part of the stored version.
    #[serde(skip)]
    pub archived_at: Option<Timestamp>,
}

/// Where sessions run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Environment {
    pub id: EnvironmentId,
    pub name: String,
    pub description: Option<String>,
    pub config: EnvironmentConfig,
    pub metadata: BTreeMap<String, String>,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
    pub archived_at: Option<Timestamp>,
}

/// The kind of an environment and what belongs to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum EnvironmentConfig {
    Cloud { networking: Networking },
    SelfHosted,
}

/// What a sandbox may reach.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Networking {
    Unrestricted,
    Limited { allowed_hosts: Vec<String>, allow_mcp_servers: bool, allow_package_managers: bool },
}

impl Environment {
    /// Who runs its tools.
    pub fn kind(&self) -> EnvironmentKind {
        match self.config {
            EnvironmentConfig::Cloud { .. } => EnvironmentKind::Cloud,
            EnvironmentConfig::SelfHosted => EnvironmentKind::SelfHosted,
        }
    }
}

/// A credential for the workers of one self-hosted environment. The key itself is shown once and kept as a hash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EnvironmentKey {
    pub id: EnvironmentKeyId,
    pub environment_id: EnvironmentId,
    pub key_hash: String,
    pub created_at: Timestamp,
    pub revoked_at: Option<Timestamp>,
}

/// Why a definition was not written.
#[derive(Debug, thiserror::Error)]
pub enum DefinitionError {
    #[error("no such definition")]
    NotFound,
    /// It is not in the version, or the state, that the writer saw.
    #[error("the definition has changed meanwhile")]
    Conflict,
    /// An active environment has this name.
    #[error("the name is taken")]
    NameTaken,
    /// Sessions still use it.
    #[error("it is in use")]
    InUse,
    #[error(transparent)]
    KeyUsed(#[from] KeyUsed),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<KeepError> for DefinitionError {
    fn from(error: KeepError) -> Self {
        match error {
            KeepError::KeyUsed(used) => used.into(),
            KeepError::Store(error) => error.into(),
        }
    }
}

/// Which definitions to list, newest first.
#[derive(Clone, Debug)]
pub struct ListDefinitions {
    pub created: TimeRange,
    pub include_archived: bool,
    pub after: Option<After>,
    pub limit: usize,
}

/// The definitions. A write that is given a [`Keep`] keeps its answer in the same transaction, or does nothing if a
/// request under that key was first.
#[async_trait]
pub trait Definitions: Send + Sync + 'static {
    async fn create_agent(&self, agent: &Agent, keep: Option<Keep<Agent>>) -> Result<(), DefinitionError>;

    /// One version, or the latest.
    async fn agent(&self, id: &AgentId, version: Option<u32>) -> Result<Option<Agent>, StoreError>;

    /// When the agent was archived, if it was; `None` for one that does not exist. With a version that somebody kept
    /// it makes the same answer as [`Self::agent`], since nothing else of a version changes.
    async fn agent_archived_at(&self, id: &AgentId) -> Result<Option<Option<Timestamp>>, StoreError>;

    /// Stores `agent` as the version after `agent.version - 1`, which must be the latest of an agent not archived.
    async fn add_agent_version(&self, agent: &Agent, keep: Option<Keep<Agent>>) -> Result<(), DefinitionError>;

    /// Archives, or leaves archived as it was; returns the latest version.
    async fn archive_agent(
        &self,
        id: &AgentId,
        at: Timestamp,
        keep: Option<Keep<Agent>>,
    ) -> Result<Agent, DefinitionError>;

    /// The latest version of each.
    async fn list_agents(&self, list: &ListDefinitions) -> Result<Vec<Agent>, StoreError>;

    /// Versions below `before`, newest first.
    async fn agent_versions(&self, id: &AgentId, before: Option<u32>, limit: usize) -> Result<Vec<Agent>, StoreError>;

    async fn create_environment(
        &self,
        environment: &Environment,
        keep: Option<Keep<Environment>>,
    ) -> Result<(), DefinitionError>;

    async fn environment(&self, id: &EnvironmentId) -> Result<Option<Environment>, StoreError>;

    /// Replaces an environment that is not archived and was last changed at `seen_updated_at`.
    async fn update_environment(
        &self,
        environment: &Environment,
        seen_updated_at: Timestamp,
        keep: Option<Keep<Environment>>,
    ) -> Result<(), DefinitionError>;

    /// Archives, or leaves archived as it was.
    async fn archive_environment(
        &self,
        id: &EnvironmentId,
        at: Timestamp,
        keep: Option<Keep<Environment>>,
    ) -> Result<Environment, DefinitionError>;

    /// Deletes an environment, with its keys, that no undeleted session refers to.
    async fn delete_environment(&self, id: &EnvironmentId) -> Result<(), DefinitionError>;

    async fn list_environments(&self, list: &ListDefinitions) -> Result<Vec<Environment>, StoreError>;

    async fn create_environment_key(&self, key: &EnvironmentKey) -> Result<(), DefinitionError>;

    /// The key with this hash, unless it was revoked.
    async fn environment_key(&self, key_hash: &str) -> Result<Option<EnvironmentKey>, StoreError>;

    /// Newest first, revoked ones included.
    async fn list_environment_keys(&self, id: &EnvironmentId) -> Result<Vec<EnvironmentKey>, StoreError>;

    async fn revoke_environment_key(&self, id: &EnvironmentKeyId, at: Timestamp) -> Result<(), DefinitionError>;
}

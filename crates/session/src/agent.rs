//! The agent as a session sees it: a snapshot taken at creation and changed by session updates alone.
//!
//! Definitions and their versions live in the store; the server validates and normalises them.
//! What is here is already resolved: every default filled in, every tool with its policy.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::id::AgentId;

/// The effective definition that a session runs, in the API's shape (`session.agent`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AgentSnapshot {
    pub id: AgentId,
    pub version: u32,
    pub name: String,
    pub description: Option<String>,
    pub system: Option<String>,
    pub model: ModelConfig,
    pub tools: Vec<Tool>,
}

/// The model and how to run it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelConfig {
    pub id: String,
    pub effort: Effort,
    pub speed: Speed,
    pub inference_geo: Option<String>,
}

/// How hard a reasoning model should think.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Effort {
    Low,
    Medium,
    High,
    Xhigh,
    Max,
}

/// The provider's service speed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Speed {
    #[default]
    Standard,
    Fast,
}

/// An entry of an agent's `tools`, resolved.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type")]
pub enum Tool {
    /// The built-in tools of [`crate::toolset`].
    #[serde(rename = "agent_toolset_20260401")]
    Toolset { default_config: ToolDefaults, configs: Vec<ToolConfig> },
    /// A tool that the application runs.
    #[serde(rename = "custom")]
    Custom { name: String, description: String, input_schema: Map<String, Value> },
}

/// What holds for every tool of a toolset that has no entry of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToolDefaults {
    pub enabled: bool,
    pub permission_policy: PermissionPolicy,
}

/// One tool's own settings, `type` equal to its name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToolConfig {
    #[serde(rename = "type")]
    pub kind: String,
    pub name: String,
    pub enabled: bool,
    pub permission_policy: PermissionPolicy,
}

/// Who decides whether a call runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum PermissionPolicy {
    AlwaysAllow,
    AlwaysAsk,
}

/// What a call by a given name is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToolKind {
    /// Runs in the session's sandbox, under this policy.
    Builtin(PermissionPolicy),
    /// Runs in the application.
    Custom,
}

/// The enabled tools of an agent by name: all that a decision needs to know of them.
pub type ToolPolicies = BTreeMap<String, ToolKind>;

impl AgentSnapshot {
    /// The enabled tools by name. Built-in tools that this server does not offer are left out.
    pub fn tool_policies(&self) -> ToolPolicies {
        let mut policies = ToolPolicies::new();
        for tool in &self.tools {
            match tool {
                Tool::Toolset { default_config, configs } => {
                    for name in crate::toolset::NAMES {
                        let (enabled, policy) = configs
                            .iter()
                            .find(|config| config.name == name)
                            .map_or((default_config.enabled, default_config.permission_policy), |config| {
                                (config.enabled, config.permission_policy)
                            });
                        if enabled {
                            policies.insert(name.to_owned(), ToolKind::Builtin(policy));
                        }
                    }
                }
                Tool::Custom { name, .. } => {
                    policies.insert(name.clone(), ToolKind::Custom);
                }
            }
        }
        policies
    }
}

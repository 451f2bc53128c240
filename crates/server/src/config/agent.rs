//! `agent`: how much one replica does at a time.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Problem;

/// How much one replica does at a time.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct AgentSection {
    /// Sessions that this replica drives at once. More of them wait; no request is refused for it.
    pub max_agents: usize,
    /// Size of a session's context, in tokens, at which it is compacted. It refuses nothing, and never counts for
    /// more than four fifths of the model's context window.
    pub token_limit: u64,
}

impl Default for AgentSection {
    fn default() -> Self {
        Self { max_agents: 100, token_limit: 150_000 }
    }
}

impl AgentSection {
    pub(super) fn validate(&self) -> Result<(), Problem> {
        if self.max_agents == 0 {
            return Err(Problem::new("agent.max_agents", "must be at least 1"));
        }
        if self.token_limit < 1_000 {
            return Err(Problem::new("agent.token_limit", "must be at least 1000"));
        }
        Ok(())
    }
}

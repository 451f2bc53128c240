//! `metrics`: what the metrics tell apart.

use std::collections::BTreeSet;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Problem;
use crate::telemetry::metrics::labels::{OTHER, VALUES_MAX};

/// What the metrics tell apart.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct MetricsSection {
    /// Names of agents whose turns have series of their own, in `gen_ai_agent_name`; those of every other agent are `other`. 49 at most.
    pub agent_names: BTreeSet<String>,
}

impl MetricsSection {
    pub(super) fn validate(&self) -> Result<(), Problem> {
        let names = &self.agent_names;
        if names.len() >= VALUES_MAX {
            let message = format!("must be {} names at most, not {}", VALUES_MAX - 1, names.len());
            return Err(Problem::new("metrics.agent_names", message));
        }
        if names.contains("") || names.contains(OTHER) {
            let message = format!("must be names of agents; {OTHER:?} stands for all that are not listed");
            return Err(Problem::new("metrics.agent_names", message));
        }
        Ok(())
    }
}

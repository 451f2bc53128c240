//! `environments`: what holds for the workers of every environment.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Problem, TimeSpan};
use crate::http::{LEASE_SECONDS_MAX, LEASE_SECONDS_MIN};

/// What holds for the workers of every environment.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct EnvironmentsSection {
    /// How long a worker that gives no sign of life keeps its session, unless it asks for another time. Ours asks for a few seconds, the official SDK's takes this; it beats twice in that time.
    pub lease: TimeSpan,
}

impl Default for EnvironmentsSection {
    fn default() -> Self {
        Self { lease: TimeSpan::from_secs(30) }
    }
}

impl EnvironmentsSection {
    /// The lease in whole seconds, as the work queue counts it.
    pub fn lease_seconds(&self) -> u32 {
        u32::try_from(self.lease.get().as_secs()).unwrap_or(LEASE_SECONDS_MAX)
    }

    pub(super) fn validate(&self) -> Result<(), Problem> {
        let lease = self.lease.get();
        let bounds = LEASE_SECONDS_MIN..=LEASE_SECONDS_MAX;
        if lease.subsec_nanos() == 0 && bounds.contains(&self.lease_seconds()) {
            return Ok(());
        }
        let message = format!("must be whole seconds, from {LEASE_SECONDS_MIN}s to {LEASE_SECONDS_MAX}s");
        Err(Problem::new("environments.lease", message))
    }
}

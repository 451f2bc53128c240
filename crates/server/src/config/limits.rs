//! `limits`: how much one API key may ask for.

use engine::port::rate_limits::Rate;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Problem;

/// How much one API key may ask for.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct LimitsSection {
    /// Requests a minute, over all replicas where they share a Redis, over each of them otherwise.
    pub requests_per_minute: RequestsPerMinute,
}

/// Requests that one API key may make a minute. Workers' requests are not counted.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RequestsPerMinute {
    /// Those that create agents, environments, files, sessions, their events or their resources. Unset, there is no
    /// limit.
    pub create: Option<u32>,
    /// Those that read: every GET, streams included. Unset, there is no limit.
    pub read: Option<u32>,
}

impl RequestsPerMinute {
    /// The rates that are set.
    pub fn rates(&self) -> (Option<Rate>, Option<Rate>) {
        (self.create.and_then(Rate::per_minute), self.read.and_then(Rate::per_minute))
    }
}

impl LimitsSection {
    pub(super) fn validate(&self) -> Result<(), Problem> {
        let RequestsPerMinute { create, read } = &self.requests_per_minute;
        let settings = [("limits.requests_per_minute.create", create), ("limits.requests_per_minute.read", read)];
        for (key, rate) in settings {
            if rate.is_some_and(|rate| Rate::per_minute(rate).is_none()) {
                let max = Rate::PER_MINUTE_MAX;
                return Err(Problem::new(key, format!("must be from 1 to {max}; leave it out for no limit")));
            }
        }
        Ok(())
    }
}

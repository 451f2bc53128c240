//! `limits`: how much one API key may ask for.

use engine::port::KeyLimits;
use engine::port::rate_limits::Rate;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Problem;

/// How much one API key may ask for.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct LimitsSection {
    /// Sessions of one API key that may run at the same time, over all replicas. Those that wait for a client are idle
    /// and not counted. Whatever would start another is refused with a 429. Unset, there is no limit.
    pub concurrent_sessions: Option<u32>,
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
    /// The limits that the engine holds.
    pub fn of_keys(&self) -> KeyLimits {
        KeyLimits { concurrent_sessions: self.concurrent_sessions }
    }

    pub(super) fn validate(&self) -> Result<(), Problem> {
        if self.concurrent_sessions == Some(0) {
            return Err(Problem::new("limits.concurrent_sessions", "must be at least 1; leave it out for no limit"));
        }
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

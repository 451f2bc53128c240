//! `limits`: how much one API key may ask for.

use engine::port::rate_limits::Rate;
use engine::port::{Caps, KeyLimits};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Problem;
use crate::model::settings::{ModelSettings, ModelsConfig, ProviderKind};

/// No cap is higher.
const TOKENS_MAX: u64 = 1_000_000_000_000_000;
const USD_MIN: f64 = 0.000_001;
const USD_MAX: f64 = 1_000_000_000.0;

/// How much one API key may ask for.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct LimitsSection {
    /// Sessions of one API key that may run at the same time, over all replicas. Those that wait for a client are idle
    /// and not counted. Whatever would start another is refused with a 429. Unset, there is no limit.
    pub concurrent_sessions: Option<u32>,
    /// Tokens that one API key may use in a day of UTC, of every kind together, over all replicas. A model request that
    /// may need more than is left is not made, and ends its turn with an error. Unset, there is no limit.
    pub tokens_per_day: Option<u64>,
    /// US dollars that one API key may spend in a day of UTC, at the prices in `models`, of which each entry then needs
    /// one. Unset, there is no limit.
    pub usd_per_day: Option<f64>,
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
        let micro_usd_per_day = self.usd_per_day.map(|usd| (usd * 1_000_000.0).round() as u64);
        let caps = Caps { tokens_per_day: self.tokens_per_day, micro_usd_per_day };
        KeyLimits { concurrent_sessions: self.concurrent_sessions, caps }
    }

    pub(super) fn validate(&self, models: &ModelsConfig) -> Result<(), Problem> {
        if self.concurrent_sessions == Some(0) {
            return Err(Problem::new("limits.concurrent_sessions", "must be at least 1; leave it out for no limit"));
        }
        if self.tokens_per_day.is_some_and(|tokens| !(1..=TOKENS_MAX).contains(&tokens)) {
            let message = format!("must be from 1 to {TOKENS_MAX}; leave it out for no limit");
            return Err(Problem::new("limits.tokens_per_day", message));
        }
        if let Some(usd) = self.usd_per_day {
            if !(USD_MIN..=USD_MAX).contains(&usd) {
                let message = format!("must be from {USD_MIN} to {USD_MAX}; leave it out for no limit");
                return Err(Problem::new("limits.usd_per_day", message));
            }
            let priceless = |(_, settings): &(&String, &ModelSettings)| {
                settings.price.is_none() && settings.provider != ProviderKind::Demo
            };
            let message = match models.0.iter().find(priceless) {
                Some((id, _)) => format!("needs a price of every model: models.{id} has none"),
                None if models.0.is_empty() => "needs prices: name the models in `models`, each with one".to_owned(),
                None => return self.validate_rates(),
            };
            return Err(Problem::new("limits.usd_per_day", message));
        }
        self.validate_rates()
    }

    fn validate_rates(&self) -> Result<(), Problem> {
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

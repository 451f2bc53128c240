//! `redis`: what replicas tell each other through.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::secrets::{self, SecretError};
use super::{Problem, TimeSpan};
use crate::secret::Secret;

/// Schemes of addresses that can be used.
const SCHEMES: [&str; 3] = ["redis://", "rediss://", "redis+unix://"];

/// Redis, by which several replicas hear of each other at once and share what they count. Nothing is lost with it, and
/// one replica needs none.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RedisSection {
    /// Address of a Redis server, such as `redis://user:password@host:6379`; `rediss://` for TLS.
    #[serde(serialize_with = "secrets::serialize")]
    pub url: Option<Secret>,
    /// File that holds `url`.
    pub url_file: Option<PathBuf>,
    /// What every key and channel begins with. Deployments that share one server need one each.
    pub key_prefix: String,
    /// How long the server may be silent before it counts as away, from 50ms to 5s.
    pub timeout: TimeSpan,
    /// How long a client's request may wait for it, from 1ms to 1s: to count requests, and to look into the cache.
    pub answer_timeout: TimeSpan,
}

impl Default for RedisSection {
    fn default() -> Self {
        Self {
            url: None,
            url_file: None,
            key_prefix: "agent-service".to_owned(),
            timeout: TimeSpan::from_millis(500),
            answer_timeout: TimeSpan::from_millis(50),
        }
    }
}

impl RedisSection {
    pub(super) fn read_secrets(&mut self) -> Result<(), SecretError> {
        secrets::read("redis.url", &mut self.url, self.url_file.as_deref())
    }

    pub(super) fn validate(&self) -> Result<(), Problem> {
        if let Some(url) = &self.url
            && !SCHEMES.iter().any(|scheme| url.expose().starts_with(scheme))
        {
            return Err(Problem::new("redis.url", "must begin with redis://, rediss:// or redis+unix://"));
        }
        if self.key_prefix.is_empty() || !self.key_prefix.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(Problem::new("redis.key_prefix", "must be one word of printable ASCII"));
        }
        if !(TimeSpan::from_millis(50)..=TimeSpan::from_secs(5)).contains(&self.timeout) {
            return Err(Problem::new("redis.timeout", "must be from 50ms to 5s"));
        }
        if !(TimeSpan::from_millis(1)..=TimeSpan::from_secs(1)).contains(&self.answer_timeout) {
            return Err(Problem::new("redis.answer_timeout", "must be from 1ms to 1s"));
        }
        Ok(())
    }
}

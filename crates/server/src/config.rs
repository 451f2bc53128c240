//! The settings: one YAML file, overridden by the environment, overridden by flags.
//!
//! One struct a section, one file a struct, in `config/`; each documents its keys, has defaults and validates itself.
//! `docs/reference/configuration.md` is generated from these types ([`reference`]). The models section is
//! [`crate::model`]'s own. What is done with a setting is the business of whoever reads it.

mod agent;
mod database;
mod environment;
mod environments;
mod keys;
mod limits;
mod logging;
mod metrics;
mod network;
mod object_store;
mod providers;
mod redis;
pub mod reference;
mod secrets;
mod server;
pub mod units;
mod worker;

use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::model::ModelsConfig;

pub use agent::AgentSection;
pub use database::DatabaseSection;
pub use environment::{EnvironmentError, NOT_YET};
pub use environments::EnvironmentsSection;
pub use limits::{LimitsSection, RequestsPerMinute};
pub use logging::{LogFormat, LoggingSection};
pub use metrics::MetricsSection;
pub use network::{AddressRange, AddressRangeError, WorkerNetwork, WorkerNetworkLimits};
pub use object_store::ObjectStoreSection;
pub use providers::{ProviderAccess, ProvidersSection};
pub use redis::RedisSection;
pub use secrets::{HIDDEN, SecretError};
pub use server::ServerSection;
pub use units::{ByteSize, TimeSpan, UnitError};
pub use worker::{Confinement, WorkerLimits, WorkerSection};

/// Every setting, with its default unless something set it.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    pub server: ServerSection,
    pub agent: AgentSection,
    pub logging: LoggingSection,
    pub metrics: MetricsSection,
    pub database: DatabaseSection,
    pub redis: RedisSection,
    pub object_store: ObjectStoreSection,
    pub limits: LimitsSection,
    pub environments: EnvironmentsSection,
    pub worker: WorkerSection,
    pub providers: ProvidersSection,
    pub models: ModelsConfig,
}

/// Settings that cannot be used. Each text is one line and says where to look.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read configuration file {}: {source}", path.display())]
    Unreadable { path: PathBuf, source: std::io::Error },
    #[error("{}: {message}", path.display())]
    Malformed { path: PathBuf, message: String },
    #[error("{}: unknown key {key}{}", path.display(), suggestion(nearest.as_deref()))]
    UnknownKey { path: PathBuf, key: String, nearest: Option<String> },
    #[error(transparent)]
    Environment(#[from] EnvironmentError),
    #[error(transparent)]
    Secret(#[from] SecretError),
    #[error(transparent)]
    Invalid(#[from] Problem),
}

/// A value of the right type that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key} {message}")]
pub struct Problem {
    pub key: &'static str,
    pub message: String,
}

impl Problem {
    /// The value of `key` is no use; `message` goes on from the key's name.
    pub fn new(key: &'static str, message: impl Into<String>) -> Self {
        Self { key, message: message.into() }
    }
}

fn suggestion(nearest: Option<&str>) -> String {
    nearest.map(|name| format!(", did you mean {name}?")).unwrap_or_default()
}

impl Config {
    /// The settings of the file at `path`, or the defaults without one, overridden by what `environment` knows and
    /// then by `flags`; secrets read from their files; checked.
    pub fn load(
        path: Option<&Path>,
        environment: &dyn Fn(&str) -> Option<String>,
        flags: impl FnOnce(&mut Config),
    ) -> Result<Self, ConfigError> {
        let mut config = match path {
            Some(path) => Self::read(path)?,
            None => Self::default(),
        };
        environment::apply(&mut config, environment)?;
        flags(&mut config);
        config.read_secrets()?;
        config.validate()?;
        Ok(config)
    }

    fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Unreadable { path: path.to_owned(), source })?;
        Self::parse(path, &text)
    }

    /// The settings that `text` holds; `path` is what messages call it.
    fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let malformed = |error: serde_saphyr::Error| ConfigError::Malformed {
            path: path.to_owned(),
            message: one_line(&error.without_snippet().to_string()),
        };
        let document: Value = serde_saphyr::from_str(text).map_err(malformed)?;
        if document.is_null() {
            return Ok(Self::default());
        }
        let schema = schemars::schema_for!(Self).to_value();
        if let Some(unknown) = keys::find_unknown(&schema, &document) {
            let keys::UnknownKey { path: key, nearest } = unknown;
            return Err(ConfigError::UnknownKey { path: path.to_owned(), key, nearest });
        }
        serde_saphyr::from_str(text).map_err(malformed)
    }

    fn read_secrets(&mut self) -> Result<(), SecretError> {
        self.server.read_secrets()?;
        self.database.read_secrets()?;
        self.redis.read_secrets()?;
        self.worker.read_secrets()?;
        self.providers.read_secrets()
    }

    fn validate(&self) -> Result<(), Problem> {
        self.server.validate()?;
        self.agent.validate()?;
        self.logging.validate()?;
        self.metrics.validate()?;
        self.database.validate()?;
        self.redis.validate()?;
        self.object_store.validate(self.database.url.is_some())?;
        self.limits.validate(&self.models)?;
        self.environments.validate()?;
        self.worker.validate()?;
        self.providers.validate()
    }

    /// The settings in force as YAML, secrets hidden.
    pub fn to_yaml(&self) -> String {
        serde_saphyr::to_string(self).expect("settings are plain data")
    }
}

/// `text` without line feeds: errors are one line.
fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The variable of the process environment, for [`Config::load`].
pub fn process_environment(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

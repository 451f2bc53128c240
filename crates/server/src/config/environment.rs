//! The environment variables that override the configuration file.

use std::path::PathBuf;

use super::Config;
use crate::secret::Secret;

/// One variable: what it is called, the key that it sets, and how.
pub(super) struct Variable {
    pub name: &'static str,
    /// The key of the file that it stands for.
    pub key: &'static str,
    set: fn(&mut Config, &str) -> Result<(), String>,
}

/// A variable whose value cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{name}: {message}")]
pub struct EnvironmentError {
    pub name: String,
    pub message: String,
}

/// Variables that other parts of the plan will read, and that this version does not.
pub const NOT_YET: [&str; 2] = ["LOKI_URL", "OTEL_EXPORTER_OTLP_ENDPOINT"];

/// A variable whose value is a secret, and the one with `_FILE` behind it that names a file.
macro_rules! secret {
    ($name:literal, $key:literal, $($field:ident).+, $($file:ident).+) => {
        [
            Variable {
                name: $name,
                key: $key,
                set: |config, value| {
                    config.$($field).+ = Some(Secret::new(value));
                    config.$($file).+ = None;
                    Ok(())
                },
            },
            Variable {
                name: concat!($name, "_FILE"),
                key: concat!($key, "_file"),
                set: |config, value| {
                    config.$($field).+ = None;
                    config.$($file).+ = Some(PathBuf::from(value));
                    Ok(())
                },
            },
        ]
    };
}

/// A variable whose value is parsed into the field's own type.
macro_rules! plain {
    ($name:literal, $key:literal, $($field:ident).+ $(, $wrap:path)?) => {
        [Variable {
            name: $name,
            key: $key,
            set: |config, value| {
                config.$($field).+ = $($wrap)?(parse(value)?);
                Ok(())
            },
        }]
    };
}

fn parse<T: std::str::FromStr<Err: std::fmt::Display>>(value: &str) -> Result<T, String> {
    value.parse().map_err(|error: T::Err| error.to_string())
}

/// Every variable, in the order in which they are applied.
pub(super) fn variables() -> impl Iterator<Item = Variable> {
    let groups: [Vec<Variable>; 17] = [
        plain!("AGENT_PORT", "server.port", server.port).into(),
        plain!("AGENT_METRICS_PORT", "server.metrics_port", server.metrics_port).into(),
        plain!("AGENT_DATA_DIR", "server.data_dir", server.data_dir).into(),
        plain!("AGENT_TRACK", "server.track", server.track).into(),
        plain!("AGENT_TERMINATION_GRACE", "server.termination_grace", server.termination_grace, Some).into(),
        secret!("AGENT_API_KEY", "server.api_key", server.api_key, server.api_key_file).into(),
        secret!("AGENT_WORKER_KEY", "worker.key", worker.key, worker.key_file).into(),
        plain!("AGENT_SERVER_URL", "worker.server_url", worker.server_url).into(),
        secret!("POSTGRES_URL", "database.url", database.url, database.url_file).into(),
        secret!("REDIS_URL", "redis.url", redis.url, redis.url_file).into(),
        plain!("OBJECT_STORE_URL", "object_store.url", object_store.url, Some).into(),
        secret!(
            "ANTHROPIC_API_KEY",
            "providers.anthropic.api_key",
            providers.anthropic.api_key,
            providers.anthropic.api_key_file
        )
        .into(),
        plain!("ANTHROPIC_BASE_URL", "providers.anthropic.base_url", providers.anthropic.base_url, Some).into(),
        secret!("OPENAI_API_KEY", "providers.openai.api_key", providers.openai.api_key, providers.openai.api_key_file)
            .into(),
        plain!("OPENAI_BASE_URL", "providers.openai.base_url", providers.openai.base_url, Some).into(),
        plain!("LOG_LEVEL", "logging.level", logging.level).into(),
        plain!("LOG_FORMAT", "logging.format", logging.format).into(),
    ];
    groups.into_iter().flatten()
}

/// Applies every variable that `lookup` knows. An empty one counts as unset.
pub(super) fn apply(config: &mut Config, lookup: &dyn Fn(&str) -> Option<String>) -> Result<(), EnvironmentError> {
    for variable in variables() {
        if let Some(value) = lookup(variable.name).filter(|value| !value.is_empty()) {
            (variable.set)(config, &value)
                .map_err(|message| EnvironmentError { name: variable.name.to_owned(), message })?;
        }
    }
    Ok(())
}

//! `logging`: what is written to standard output, and how.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tracing_subscriber::filter::Targets;

use super::Problem;

/// What is written to standard output, and how.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct LoggingSection {
    /// Least severe level that is written: `error`, `warn`, `info`, `debug` or `trace`. A comma-separated list such as
    /// `info,store=debug` sets modules apart.
    pub level: String,
    /// `json` writes one object a line and nothing else; `text` is for people.
    pub format: LogFormat,
}

/// How a log line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    Json,
    #[default]
    Text,
}

impl std::str::FromStr for LogFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "json" => Ok(Self::Json),
            "text" => Ok(Self::Text),
            other => Err(format!("expected json or text, got {other:?}")),
        }
    }
}

impl Default for LoggingSection {
    fn default() -> Self {
        Self { level: "info".to_owned(), format: LogFormat::default() }
    }
}

impl LoggingSection {
    pub(super) fn validate(&self) -> Result<(), Problem> {
        // A bare word that is no level would name a module.
        let is_level = |text: &str| text.parse::<tracing::level_filters::LevelFilter>().is_ok();
        let is_directive = |part: &str| is_level(part.split_once('=').map_or(part, |(_, level)| level).trim());
        if self.level.split(',').all(is_directive) && self.level.parse::<Targets>().is_ok() {
            return Ok(());
        }
        Err(Problem::new("logging.level", "must be error, warn, info, debug or trace"))
    }
}

//! The flags that say where settings come from, the same for every subcommand that reads them.

use std::path::PathBuf;

use clap::Args;

use crate::config::{Config, ConfigError, LogFormat, process_environment};

/// Where settings come from.
#[derive(Clone, Debug, Default, Args)]
pub struct SettingsArguments {
    /// Configuration file (YAML).
    #[arg(long, env = "AGENT_CONFIG", value_name = "FILE", hide_env_values = true)]
    pub config: Option<PathBuf>,
    /// Folder for the database, workspaces and the key that is made. [env: AGENT_DATA_DIR] [default: ./data]
    #[arg(long, value_name = "FOLDER")]
    pub data_dir: Option<PathBuf>,
    /// Least severe level that is logged. [env: LOG_LEVEL] [default: info]
    #[arg(long, value_name = "LEVEL")]
    pub log_level: Option<String>,
    /// How log lines look: json or text. [env: LOG_FORMAT] [default: text]
    #[arg(long, value_name = "FORMAT")]
    pub log_format: Option<LogFormat>,
}

impl SettingsArguments {
    /// The settings in force, after file, environment and flags; `more` applies the subcommand's own flags.
    pub fn load(&self, more: impl FnOnce(&mut Config)) -> Result<Config, ConfigError> {
        Config::load(
            self.config.as_deref().filter(|path| !path.as_os_str().is_empty()),
            &process_environment,
            |config| {
                if let Some(folder) = &self.data_dir {
                    config.server.data_dir.clone_from(folder);
                }
                if let Some(level) = &self.log_level {
                    config.logging.level.clone_from(level);
                }
                if let Some(format) = self.log_format {
                    config.logging.format = format;
                }
                more(config);
            },
        )
    }
}

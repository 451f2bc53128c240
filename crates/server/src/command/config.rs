//! `agent-service config`: checks settings, prints those in force, prints the reference.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::SettingsArguments;
use crate::config::reference;

/// What `config` is asked for.
#[derive(Debug, Args)]
pub(super) struct ConfigArguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Check the settings and print those in force, secrets hidden.
    Check {
        /// Configuration file to check instead of that of --config.
        file: Option<PathBuf>,
        #[command(flatten)]
        settings: SettingsArguments,
    },
    /// Print the configuration reference, in Markdown.
    Reference,
}

pub(super) fn run(arguments: &ConfigArguments) -> anyhow::Result<ExitCode> {
    match &arguments.action {
        Action::Check { file, settings } => {
            let mut settings = settings.clone();
            if file.is_some() {
                settings.config.clone_from(file);
            }
            print!("{}", settings.load(|_| {})?.to_yaml());
        }
        Action::Reference => print!("{}", reference::markdown()),
    }
    Ok(ExitCode::SUCCESS)
}

//! `agent-service migrate`: brings the database's schema up to date, or says where it stands.

use std::process::ExitCode;

use clap::Args;

use super::store::{self, Store};
use super::{SettingsArguments, small_runtime};

/// What to do with the schema.
#[derive(Debug, Args)]
pub(super) struct MigrateArguments {
    #[command(flatten)]
    settings: SettingsArguments,
    /// Only say which migrations were applied; leave with 1 if one is missing.
    #[arg(long)]
    status: bool,
}

pub(super) fn run(arguments: &MigrateArguments) -> anyhow::Result<ExitCode> {
    let config = arguments.settings.load(|_| {})?;
    small_runtime()?.block_on(async {
        if !arguments.status {
            let database = Store::open_beside(&config).await?.database();
            database.migrate().await?;
            database.close().await;
        }
        let migrations = store::migrations(&config).await?;
        for migration in &migrations {
            let state = if migration.applied { "applied" } else { "missing" };
            println!("{:04} {state} {}", migration.version, migration.name);
        }
        let is_current = migrations.iter().all(|migration| migration.applied);
        Ok(if is_current { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    })
}

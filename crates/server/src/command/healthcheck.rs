//! `agent-service healthcheck`: asks a running server whether it lives; for containers without a shell.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;

use super::{SettingsArguments, client, small_runtime};

/// Which server to ask.
#[derive(Debug, Args)]
pub(super) struct HealthcheckArguments {
    #[command(flatten)]
    settings: SettingsArguments,
    /// Port of the API on this machine. [env: AGENT_PORT] [default: 8080]
    #[arg(long)]
    port: Option<u16>,
}

pub(super) fn run(arguments: &HealthcheckArguments) -> anyhow::Result<ExitCode> {
    let config = arguments.settings.load(|config| {
        if let Some(port) = arguments.port {
            config.server.port = port;
        }
    })?;
    let url = format!("http://{}/health", client::local_address(config.server.host, config.server.port));
    small_runtime()?.block_on(async {
        let request = client::plain()?.get(&url).timeout(Duration::from_secs(3)).send();
        let response = request.await.with_context(|| format!("no answer from {url}"))?;
        anyhow::ensure!(response.status().is_success(), "{url} answers {}", response.status());
        Ok(ExitCode::SUCCESS)
    })
}

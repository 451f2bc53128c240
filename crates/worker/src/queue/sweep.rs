//! Removes the workspaces of sessions that were deleted while this worker did not hold them, and processes that a
//! sandbox left which was killed.
//!
//! A workspace outlives its work item, since the session may go on later. Only the server knows which sessions are
//! gone, so it is asked now and then; what it does not say is gone stays.

use std::path::Path;
use std::time::Duration;

use super::client::Client;
use crate::sandbox;
use crate::sandbox::config::SandboxConfig;

/// Workspaces asked about at once; the server takes no more.
const BATCH: usize = 100;

/// Sweeps at once and then every `period`, until it is dropped.
pub(crate) async fn sweep(client: &Client, config: &SandboxConfig, period: Duration) {
    let mut ticks = tokio::time::interval(period);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        sandbox::sweep_orphans().await;
        for batch in workspaces(&config.workspaces_dir).await.chunks(BATCH) {
            match client.ended_workspaces(batch).await {
                Ok(ended) => remove(config, batch, ended).await,
                Err(error) => tracing::debug!(%error, "deleted sessions could not be asked for"),
            }
        }
    }
}

/// The sessions that have a workspace here.
async fn workspaces(folder: &Path) -> Vec<String> {
    let mut names = Vec::new();
    let Ok(mut entries) = tokio::fs::read_dir(folder).await else { return names };
    while let Ok(Some(entry)) = entries.next_entry().await {
        names.extend(entry.file_name().into_string().ok().filter(|name| name.starts_with("sesn_")));
    }
    names
}

async fn remove(config: &SandboxConfig, asked: &[String], ended: Vec<String>) {
    for session_id in ended.iter().filter(|id| asked.contains(id)) {
        match sandbox::remove_workspace(config, session_id).await {
            Ok(()) => tracing::info!(session_id, "the workspace of a deleted session was removed"),
            Err(error) => tracing::warn!(session_id, %error, "a deleted session's workspace stays"),
        }
    }
}

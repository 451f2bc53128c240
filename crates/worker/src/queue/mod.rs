//! The claim loop: asks the server for sessions that need a worker and serves several at a time.
//!
//! [`session`] serves one of them and [`call`] runs one tool call; [`lease`] beats meanwhile,
//! [`network`] lets its tools reach what they may, [`files`] keeps its files, and [`exchange`] brings it what it is given and takes what it made. [`pending`] decides
//! what is owed and [`sse`] reads the stream, both pure; [`client`] holds every request, [`wire`] its shapes.

mod backoff;
mod call;
mod chunks;
mod client;
mod connected;
mod exchange;
mod feed;
mod files;
mod lease;
mod network;
mod pending;
mod session;
mod sse;
mod sweep;
mod wire;

use futures::FutureExt as _;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, OwnedMutexGuard, OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::config::WorkerConfig;
use crate::egress::Egress;
use crate::sandbox::config::{Confinement, SandboxConfig};
use crate::{ProbeReport, probe, sandbox, settle};
use backoff::Backoff;
use client::{ApiError, Client};
use files::Keeping;
use lease::Lease;
use session::{Context, Release};
use wire::WorkItem;

/// How long a shutdown waits for sessions to be given back.
const SHUTDOWN_PATIENCE: Duration = Duration::from_secs(20);

/// Why a worker does not run.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// The confinement asked for cannot be had here; the report says which part is missing.
    #[error("tools cannot be confined on this machine, so the worker does not run:\n{0}")]
    Confinement(ProbeReport),
    /// The server does not know the key (401), does not let it poll (403), or has no work queue there (404).
    #[error("the server refuses this worker's key: it answered {status} to a poll of environment {environment_id}")]
    Refused { environment_id: String, status: u16 },
    #[error("the HTTP client cannot be made: {0}")]
    Client(String),
}

/// Claims and serves sessions until `shutdown`, then kills running calls, gives the sessions back and returns.
/// Workspaces stay on disk.
pub async fn run(mut config: WorkerConfig, shutdown: CancellationToken) -> Result<(), WorkerError> {
    config.sandbox = check_confinement(&config).await?;
    let client = Client::new(&config).map_err(|error| WorkerError::Client(error.to_string()))?;
    let room_wanted = Arc::new(Notify::new());
    let client = Arc::new(client);
    let egress = Egress::new(config.network.clone());
    let workspaces = Workspaces::default();
    let keeping = Keeping::new(config.snapshot_bytes_max);
    let worker = Arc::new(Worker { config, client, egress, shutdown, room_wanted, workspaces, keeping });
    let slots = Arc::new(Semaphore::new(worker.config.max_sessions.max(1)));
    let mut sessions = JoinSet::new();
    let result = tokio::select! {
        result = claim(&worker, &slots, &mut sessions) => result,
        () = sweep::sweep(&worker.client, &worker.config.sandbox, worker.config.sweep_period) => Ok(()),
    };
    worker.shutdown.cancel();
    let all = async { while sessions.join_next().await.is_some() {} };
    if tokio::time::timeout(SHUTDOWN_PATIENCE, all).await.is_err() {
        tracing::warn!(sessions = sessions.len(), "sessions were not given back in time");
    }
    result
}

/// How sandboxes are made from now on, at a level that was tried.
async fn check_confinement(config: &WorkerConfig) -> Result<SandboxConfig, WorkerError> {
    if config.sandbox.confinement == Confinement::Off && !config.strongest_confinement {
        eprintln!(
            "WARNING: confinement is off. Commands that a model writes run with all rights of this user: \
             they can read and change every file it can, and reach the network. Use it for development only."
        );
        tracing::warn!("confinement is off: tools run with all rights of the worker's user");
        return Ok(config.sandbox.clone());
    }
    let (sandbox, report) = if config.strongest_confinement {
        settle(&config.sandbox).await
    } else {
        (config.sandbox.clone(), probe(&config.sandbox).await)
    };
    for row in &report.rows {
        tracing::info!(part = row.name, held = row.held, required = row.required, detail = row.detail, "confinement");
    }
    if !report.is_sufficient() {
        return Err(WorkerError::Confinement(report));
    }
    tracing::info!(level = ?sandbox.confinement, "tools are confined");
    Ok(sandbox)
}

struct Worker {
    config: WorkerConfig,
    client: Arc<Client>,
    egress: Egress,
    shutdown: CancellationToken,
    /// Asks one idle session to leave. Idle sessions wait for it in the order in which they fell quiet, so the one
    /// that has been quiet for longest goes.
    room_wanted: Arc<Notify>,
    workspaces: Workspaces,
    keeping: Keeping,
}

/// One sandbox at a time for each session: an item that comes back while its last holder here still kills what ran
/// waits for that, so that two shells never share a workspace.
#[derive(Default)]
struct Workspaces(Mutex<BTreeMap<String, Arc<tokio::sync::Mutex<()>>>>);

impl Workspaces {
    async fn occupy(&self, session_id: &str) -> OwnedMutexGuard<()> {
        let workspace = {
            let mut workspaces = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            // Only the map itself holds the workspace of a session that is not here any more.
            workspaces.retain(|_, workspace| Arc::strong_count(workspace) > 1);
            workspaces.entry(session_id.to_owned()).or_default().clone()
        };
        workspace.lock_owned().await
    }
}

async fn claim(worker: &Arc<Worker>, slots: &Arc<Semaphore>, sessions: &mut JoinSet<()>) -> Result<(), WorkerError> {
    let mut unreachable = Backoff::new(Duration::from_millis(50), Duration::from_secs(1));
    let mut failing = Backoff::new(Duration::from_secs(1), Duration::from_secs(60));
    loop {
        while sessions.try_join_next().is_some() {}
        let claimed = tokio::select! {
            () = worker.shutdown.cancelled() => return Ok(()),
            // A slot first: what is claimed must be served.
            claimed = async {
                let slot = worker.free_slot(slots).await;
                (worker.client.poll().await, slot)
            } => claimed,
        };
        match claimed {
            (Ok(item), slot) => {
                unreachable.reset();
                failing.reset();
                if let Some(item) = item {
                    sessions.spawn(worker.clone().serve(item, slot));
                }
            }
            (Err(error), _) if matches!(error.status(), Some(401 | 403 | 404)) => {
                return Err(WorkerError::Refused {
                    environment_id: worker.config.environment_id.clone(),
                    status: error.status().unwrap_or_default(),
                });
            }
            (Err(error), _) => {
                tracing::debug!(%error, "poll failed and is repeated");
                let backoff = if error.is_unreachable() { &mut unreachable } else { &mut failing };
                tokio::select! {
                    () = worker.shutdown.cancelled() => return Ok(()),
                    () = backoff.wait() => {}
                }
            }
        }
    }
}

impl Worker {
    /// Waits for a slot. Sessions that are only kept warm make room for those that wait.
    async fn free_slot(&self, slots: &Arc<Semaphore>) -> OwnedSemaphorePermit {
        if let Ok(slot) = slots.clone().try_acquire_owned() {
            return slot;
        }
        self.room_wanted.notify_one();
        let slot = slots.clone().acquire_owned().await.expect("the semaphore is never closed");
        // The slot may have come from a session that ended by itself: then nobody else has to leave.
        let _ = self.room_wanted.notified().now_or_never();
        slot
    }

    /// One item from its claim to its end.
    async fn serve(self: Arc<Self>, item: WorkItem, _slot: OwnedSemaphorePermit) {
        let token = item.sessions_token().unwrap_or_else(|| self.client.key().clone());
        if let Err(error) = self.client.acknowledge(&item.id).await {
            // Somebody else has it, or it will be handed out again.
            tracing::info!(work_id = item.id, %error, "the claim did not hold");
            return;
        }
        if item.data.kind != "session" {
            tracing::debug!(work_id = item.id, kind = item.data.kind, "not a session: skipped");
            return self.stop(&item.id, &token).await;
        }
        let lease = Lease::default();
        let is_known = CancellationToken::new();
        let beats = tokio::spawn(lease::keep(
            self.client.clone(),
            item.id.clone(),
            token.clone(),
            lease.clone(),
            is_known.clone(),
        ));
        let context = Context {
            client: self.client.clone(),
            sandbox: self.config.sandbox.clone(),
            egress: self.egress.clone(),
            session_id: item.data.id.clone(),
            token: token.clone(),
            idle_timeout: self.config.idle_timeout,
            room_wanted: self.room_wanted.clone(),
            keeping: self.keeping.clone(),
        };
        tracing::info!(work_id = item.id, session_id = item.data.id, "session claimed");
        tokio::select! {
            () = is_known.cancelled() => {}
            _ = lease.ended() => {}
            () = self.shutdown.cancelled() => {}
        }
        let occupied = self.workspaces.occupy(&item.data.id).await;
        let release = session::serve(&context, &lease, &self.shutdown).await;
        tracing::info!(work_id = item.id, session_id = item.data.id, ?release, "session released");
        if release != Release::LeaseLost {
            self.stop(&item.id, &token).await;
        }
        lease.end(lease::LeaseEnd::AskedToStop);
        beats.abort();
        if release == Release::Deleted
            && let Err(error) = sandbox::remove_workspace(&self.config.sandbox, &item.data.id).await
        {
            tracing::warn!(session_id = item.data.id, %error, "a deleted session's workspace stays");
        }
        drop(occupied);
    }

    /// Ends the item, so that the next message makes a new one. Tries a few times; past that the lease runs out.
    async fn stop(&self, work_id: &str, token: &crate::Secret) {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(1));
        for _ in 0..5 {
            match self.client.stop(work_id, token).await {
                Err(error) if error.is_transient() => backoff.wait().await,
                Ok(()) => return,
                Err(error) => return log_stop(work_id, &error),
            }
        }
    }
}

fn log_stop(work_id: &str, error: &ApiError) {
    // Stopped already, or gone with its session: both are what was wanted.
    tracing::debug!(work_id, %error, "the work item needed no stop");
}

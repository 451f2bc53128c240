//! `agent-service worker`: runs the tools of sessions, confined, for a server elsewhere or for the one that started it.
//!
//! A worker that `serve` starts gets its settings as one line of JSON over standard input ([`Handover`]), its key
//! among them, so that the key is in no environment and in no list of processes; the pipe then stays open, and the
//! worker ends when it does.

use std::io::BufRead as _;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;
use worker::{NetworkConfig, NetworkLimits, SandboxConfig, WorkerConfig, WorkerError};

use super::serve::raise_descriptor_limit;
use super::system::{SystemEntropy, now};
use super::{SettingsArguments, client, small_runtime};
use crate::config::{Config, Confinement, LoggingSection, WorkerNetwork, WorkerSection};
use crate::telemetry::log;

/// The exit code that says: starting again will not help until somebody changes something.
pub(super) const EXIT_HOPELESS: u8 = 78;

/// How a worker is run.
#[derive(Debug, Args)]
pub(super) struct WorkerArguments {
    #[command(flatten)]
    settings: SettingsArguments,
    /// Where the server is. [env: AGENT_SERVER_URL] [default: http://127.0.0.1:8080]
    #[arg(long, value_name = "URL")]
    server_url: Option<String>,
    /// Try the confinement, print what it is worth, and leave.
    #[arg(long)]
    probe: bool,
    /// Take the settings from standard input, and end with it.
    #[arg(long, hide = true)]
    handover: bool,
}

/// What `serve` hands its worker.
#[derive(Serialize, Deserialize)]
pub(super) struct Handover {
    pub(super) key: String,
    pub(super) server_url: String,
    pub(super) track: String,
    pub(super) data_dir: std::path::PathBuf,
    pub(super) logging: LoggingSection,
    /// Without its key, which is hidden when it is written.
    pub(super) worker: WorkerSection,
}

pub(super) fn run(arguments: WorkerArguments) -> anyhow::Result<ExitCode> {
    worker::harden().context("cannot close the worker's process to others")?;
    if arguments.handover {
        return serve_parent();
    }
    let config = arguments.settings.load(|config| {
        if let Some(url) = arguments.server_url {
            config.worker.server_url = url;
        }
    })?;
    if arguments.probe {
        return probe(&config);
    }
    let key = config
        .worker
        .key
        .clone()
        .context("no worker key is set: set AGENT_WORKER_KEY to the value that the server has, here and there")?;
    log::install(&config.logging, &config.server.track, now);
    let settings = settings(&config.worker, &config.server.data_dir, &config.worker.server_url, key.expose())?;
    work(settings)
}

/// Runs for the server that started this process.
fn serve_parent() -> anyhow::Result<ExitCode> {
    let mut line = String::new();
    let mut input = std::io::BufReader::new(std::io::stdin());
    input.read_line(&mut line).context("cannot read the settings from standard input")?;
    let handover: Handover = serde_json::from_str(&line).context("standard input does not hold the settings")?;
    log::install(&handover.logging, &handover.track, now);
    worker::die_with(input).context("cannot watch standard input")?;
    work(settings(&handover.worker, &handover.data_dir, &handover.server_url, &handover.key)?)
}

fn work(settings: WorkerConfig) -> anyhow::Result<ExitCode> {
    // Every connection of a tool to the network is some.
    raise_descriptor_limit();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let stop = CancellationToken::new();
        tokio::spawn(stop_at_signal(stop.clone())?);
        match worker::run(settings, stop).await {
            Ok(()) => Ok(ExitCode::SUCCESS),
            Err(error @ (WorkerError::Confinement(_) | WorkerError::Refused { .. })) => {
                eprintln!("agent-service: {error}");
                if matches!(error, WorkerError::Confinement(_)) {
                    eprintln!("agent-service: `agent-service doctor` says what to do");
                }
                Ok(ExitCode::from(EXIT_HOPELESS))
            }
            Err(error) => Err(error.into()),
        }
    })
}

/// Cancels `stop` at the first SIGTERM or SIGINT.
fn stop_at_signal(stop: CancellationToken) -> std::io::Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        stop.cancel();
    })
}

/// Tries the confinement and prints what was found.
fn probe(config: &Config) -> anyhow::Result<ExitCode> {
    let report = small_runtime()?.block_on(report(config));
    println!("{report}");
    Ok(if report.is_sufficient() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn settings(section: &WorkerSection, data_dir: &Path, server_url: &str, key: &str) -> anyhow::Result<WorkerConfig> {
    use engine::port::Entropy as _;
    let url = url::Url::parse(server_url).with_context(|| format!("{server_url} is no address of a server"))?;
    let worker_id = format!("worker-{:012x}", SystemEntropy.draw() & 0xffff_ffff_ffff);
    let sandbox = sandbox(section, data_dir);
    let mut settings = WorkerConfig::new(url, worker::Secret::new(key), worker_id, sandbox);
    settings.max_sessions = section.max_sessions;
    settings.strongest_confinement = section.confinement == Confinement::Auto;
    settings.network = network(&section.network);
    Ok(settings)
}

/// What the confinement that is set is worth on this machine.
pub(super) async fn report(config: &Config) -> worker::ProbeReport {
    let sandbox = sandbox(&config.worker, &config.server.data_dir);
    match config.worker.confinement {
        Confinement::Auto => worker::settle(&sandbox).await.1,
        _ => worker::probe(&sandbox).await,
    }
}

/// How sandboxes are made, by the settings.
fn sandbox(section: &WorkerSection, data_dir: &Path) -> SandboxConfig {
    let folder = section.workspaces_dir.clone().unwrap_or_else(|| data_dir.join("workspaces"));
    let folder = std::path::absolute(&folder).unwrap_or(folder);
    let mut sandbox = SandboxConfig::new(folder);
    sandbox.confinement = match section.confinement {
        Confinement::Auto | Confinement::Landlock => worker::Confinement::Landlock,
        Confinement::Namespaces => worker::Confinement::Namespaces,
        Confinement::Off => worker::Confinement::Off,
    };
    sandbox.limits = worker::Limits {
        processes_max: section.limits.max_processes,
        memory_bytes_max: section.limits.max_memory.get(),
        process_memory_bytes_max: section.limits.max_process_memory.get(),
        file_bytes_max: section.limits.max_file_size.get(),
        open_files_max: section.limits.max_open_files,
        cpu_seconds_max: section.limits.max_cpu_time.get().as_secs(),
        workspace_bytes_max: section.limits.max_workspace_size.get(),
        workspace_files_max: section.limits.max_workspace_files,
    };
    sandbox.readable_paths.clone_from(&section.readable_paths);
    sandbox.cgroups.clone_from(&section.cgroups);
    sandbox
}

/// What tools may reach, by the settings.
fn network(section: &WorkerNetwork) -> NetworkConfig {
    let limits = &section.limits;
    NetworkConfig {
        enabled: section.enabled,
        allowed_addresses: section.allowed_addresses.iter().map(|range| range.get()).collect(),
        limits: NetworkLimits {
            connections_max: limits.max_connections,
            connect_timeout: limits.connect_timeout.get(),
            idle_timeout: limits.idle_timeout.get(),
            connection_lifetime: limits.max_connection_time.get(),
            bytes_max: limits.max_bytes.get(),
        },
    }
}

/// Where a worker on this machine finds a server that listens here.
pub(super) fn local_url(host: std::net::IpAddr, port: u16) -> String {
    format!("http://{}", client::local_address(host, port))
}

//! What confinement costs a tool: the time of a `bash` call beyond that of `sh -c`, and the memory of a sandbox.
//!
//! The sandboxes are those of a worker, made from this executable at the level that the settings name. The floor is
//! the same command started plainly, in turn with the sandbox's, so that both meet the same machine.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Stdio;
use std::time::Instant;

use anyhow::{Context as _, bail};
use serde_json::json;
use tokio_util::sync::CancellationToken;
use worker::sandbox::{CallEnd, Sandbox};
use worker::{Confinement, SandboxConfig};

use super::figures::{self, Figure, Report};

/// Sandboxes whose first call is timed.
const FIRST_CALLS: usize = 50;
/// Further calls of each.
const LATER_CALLS: usize = 20;
const COMMAND: &str = "true";

/// Measures at the strongest level that this machine allows.
pub(super) async fn measure(folder: &Path, sessions: usize) -> anyhow::Result<Report> {
    let (config, report) = worker::settle(&SandboxConfig::new(folder.join("workspaces"))).await;
    if !report.is_sufficient() {
        bail!("tools cannot be confined on this machine:\n{report}");
    }
    let Times { plain, first, later } = times(&config).await?;
    let (alive, idle_mib) = idle(&config, sessions).await?;
    let beyond = |name: &str, reached: f64, goal| Figure {
        name: format!("{name}, beyond sh -c"),
        unit: "ms",
        reached: reached - plain,
        floor: Some(plain),
        goal: figures::at_most(goal),
    };
    let level = if config.confinement == Confinement::Namespaces { "namespaces" } else { "landlock" };
    Ok(Report {
        subject: level,
        cores: std::thread::available_parallelism().map_or(1, usize::from),
        figures: vec![
            beyond("first bash call of a session", first, 15.0),
            beyond("later bash call", later, 2.0),
            Figure {
                name: "memory of an idle sandbox".to_owned(),
                unit: "MiB",
                reached: idle_mib,
                floor: None,
                goal: figures::at_most(3.0),
            },
            Figure {
                name: "sessions with a live shell".to_owned(),
                unit: "",
                reached: alive as f64,
                floor: None,
                goal: figures::at_least(sessions as f64),
            },
        ],
    })
}

/// Medians, in milliseconds.
struct Times {
    plain: f64,
    first: f64,
    later: f64,
}

async fn times(config: &SandboxConfig) -> anyhow::Result<Times> {
    eprintln!("measuring calls");
    let (mut plain, mut first, mut later) = (Vec::new(), Vec::new(), Vec::new());
    for number in 0..FIRST_CALLS {
        let began = Instant::now();
        let mut command = tokio::process::Command::new("sh");
        command.args(["-c", COMMAND]).stdin(Stdio::null()).output().await.context("sh cannot be started")?;
        plain.push(began.elapsed());

        let began = Instant::now();
        let mut sandbox = Sandbox::start(config, &format!("sesn_{number}")).await?;
        call(&mut sandbox, COMMAND).await?;
        first.push(began.elapsed());
        for _ in 0..LATER_CALLS {
            let began = Instant::now();
            call(&mut sandbox, COMMAND).await?;
            later.push(began.elapsed());
        }
        sandbox.close().await;
    }
    let median = |mut all: Vec<std::time::Duration>| {
        all.sort();
        all[all.len() / 2].as_secs_f64() * 1e3
    };
    Ok(Times { plain: median(plain), first: median(first), later: median(later) })
}

/// How many of so many sandboxes answer while all live, and the memory that each takes in the mean: pages that several
/// share count in part.
async fn idle(config: &SandboxConfig, sessions: usize) -> anyhow::Result<(usize, f64)> {
    eprintln!("measuring idle sandboxes");
    let mut sandboxes = Vec::with_capacity(sessions);
    for number in 0..sessions {
        let mut sandbox = Sandbox::start(config, &format!("sesn_idle_{number}")).await?;
        call(&mut sandbox, COMMAND).await?;
        sandboxes.push(sandbox);
    }
    let heads: Vec<u32> = sandboxes.iter().map(Sandbox::process_id).collect();
    let kib: u64 = below(&heads)?.into_iter().map(proportional_kib).sum();
    let mut alive = 0;
    for sandbox in &mut sandboxes {
        alive += usize::from(call(sandbox, "echo alive").await? == "alive");
    }
    for sandbox in sandboxes {
        sandbox.close().await;
    }
    Ok((alive, kib as f64 / 1024.0 / sessions as f64))
}

async fn call(sandbox: &mut Sandbox, command: &str) -> anyhow::Result<String> {
    match sandbox.call("bash", json!({"command": command}), &CancellationToken::new()).await? {
        CallEnd::Done(outcome) => Ok(outcome.as_text().unwrap_or_default().to_owned()),
        CallEnd::Killed => bail!("a call was killed"),
    }
}

/// These processes and all that descend from them.
fn below(heads: &[u32]) -> anyhow::Result<Vec<u32>> {
    let mut children: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for entry in std::fs::read_dir("/proc").context("/proc cannot be read")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let parent = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(1)?.parse().ok());
        children.entry(parent.unwrap_or(0)).or_default().push(pid);
    }
    let mut found = heads.to_vec();
    let mut next = 0;
    while let Some(pid) = found.get(next).copied() {
        found.extend(children.remove(&pid).unwrap_or_default());
        next += 1;
    }
    Ok(found)
}

fn proportional_kib(pid: u32) -> u64 {
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:")).unwrap_or_default();
    line.split_whitespace().next().and_then(|kib| kib.parse().ok()).unwrap_or(0)
}

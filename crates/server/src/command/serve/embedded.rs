//! The server's own worker: a child process with nothing in its environment, kept alive while the server lives.

use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio::io::AsyncWriteExt as _;
use tokio::process::{Child, ChildStdin, Command};
use tokio_util::sync::CancellationToken;

use super::readiness::ReplicaReadiness;
use crate::command::worker::{EXIT_HOPELESS, Handover};

/// The first and the longest pause before a worker that died is started again.
const PAUSE_MIN: Duration = Duration::from_millis(200);
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// A worker that lived this long died of something new.
const LONG_LIFE: Duration = Duration::from_secs(60);

/// How long a worker may take to give its sessions back.
const STOP_PATIENCE: Duration = Duration::from_secs(5);

/// Keeps a worker running until `stop`, then ends it.
pub(super) async fn keep(handover: Handover, readiness: Arc<ReplicaReadiness>, stop: CancellationToken) {
    let mut pause = PAUSE_MIN;
    loop {
        let started = Instant::now();
        let ended = match start(&handover).await {
            // The pipe is the worker's life line: it must be held, and waiting for a child drops the child's own.
            Ok((mut child, _lifeline)) => {
                readiness.worker(true);
                tokio::select! {
                    () = stop.cancelled() => return end(child).await,
                    status = child.wait() => describe(status),
                }
            }
            Err(error) => Ended::Again(format!("{error:#}")),
        };
        readiness.worker(false);
        match ended {
            Ended::Hopeless => {
                tracing::error!("the worker cannot run here, so no tool will: `agent-service doctor` says what to do");
                return stop.cancelled().await;
            }
            Ended::Again(cause) => {
                if started.elapsed() > LONG_LIFE {
                    pause = PAUSE_MIN;
                }
                tracing::error!(cause, pause_ms = pause.as_millis() as u64, "the worker died and is started again");
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

enum Ended {
    /// It said that starting again is no use.
    Hopeless,
    Again(String),
}

fn describe(status: std::io::Result<ExitStatus>) -> Ended {
    match status {
        Ok(status) if status.code() == Some(EXIT_HOPELESS.into()) => Ended::Hopeless,
        Ok(status) => Ended::Again(status.to_string()),
        Err(error) => Ended::Again(error.to_string()),
    }
}

/// Starts this executable as a worker and hands it its settings. What it logs goes where the server's log goes.
async fn start(handover: &Handover) -> anyhow::Result<(Child, ChildStdin)> {
    let mut child = Command::new("/proc/self/exe")
        .args(["worker", "--handover"])
        .env_clear()
        .stdin(Stdio::piped())
        .kill_on_drop(true)
        // A Ctrl-C at the terminal is for the server, which still needs its worker while it drains.
        .process_group(0)
        .spawn()
        .context("cannot start the worker")?;
    let mut line = serde_json::to_vec(handover)?;
    line.push(b'\n');
    let mut pipe = child.stdin.take().expect("standard input is a pipe");
    pipe.write_all(&line).await.context("cannot hand the worker its settings")?;
    pipe.flush().await?;
    Ok((child, pipe))
}

/// Asks the worker to leave, and makes it if it does not.
async fn end(mut child: Child) {
    let process = child.id().and_then(|id| rustix::process::Pid::from_raw(id.cast_signed()));
    if let Some(process) = process {
        let _ = rustix::process::kill_process(process, rustix::process::Signal::TERM);
    }
    if tokio::time::timeout(STOP_PATIENCE, child.wait()).await.is_err() {
        tracing::warn!("the worker did not leave in time and is killed");
        let _ = child.kill().await;
    }
}

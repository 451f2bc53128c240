//! A session's sandbox, as the worker holds it: start it, hand it calls, kill a call, close it.
//!
//! Behind it stands a tree of processes, every one started from the worker's own executable with a cleared
//! environment and no inherited descriptor:
//!
//! ```text
//! worker ── supervisor ─┬─ bash          (system paths, workspace)
//!                       └─ file helper   (workspace only)
//! ```
//!
//! [`entry`] is where such a process begins, [`confine`] what it may do, [`supervisor`] what runs it.
//! Calls of one sandbox run one at a time. Tools have no network: every socket is refused.

mod attributes;
mod census;
pub mod config;
pub(crate) mod confine;
mod descendants;
pub(crate) mod entry;
mod files_link;
mod helper;
pub(crate) mod probe_calls;
pub(crate) mod protocol;
mod seccomp;
mod shell;
mod supervisor;
mod system;

use serde_json::Value;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio_util::sync::CancellationToken;

use config::SandboxConfig;
use protocol::{FrameReader, Reply, Request, Settings, ToolOutcome, encode};

/// A call that takes longer is killed, whatever timeout it asked for.
pub const CALL_SECONDS_MAX: u64 = 150;
const CLOSE_PATIENCE: Duration = Duration::from_secs(15);

/// The sandbox could not be made, or broke.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    #[error("{0:?} is no id of a session")]
    SessionId(String),
    #[error("workspace {path}: {source}")]
    Workspace { path: PathBuf, source: std::io::Error },
    #[error("sandbox process {executable}: {source}")]
    Start { executable: PathBuf, source: std::io::Error },
    #[error("tools cannot be confined: {0}")]
    Confine(String),
    #[error("the sandbox ended unexpectedly")]
    Ended,
}

/// How a call ended.
#[derive(Debug, Clone, PartialEq)]
pub enum CallEnd {
    Done(ToolOutcome),
    /// It was cancelled and killed with every process it started.
    Killed,
}

/// One session's sandbox. Dropping it closes it too, without waiting for the end.
#[derive(Debug)]
pub struct Sandbox {
    child: Child,
    requests: ChildStdin,
    replies: ChildStdout,
    frames: FrameReader,
    calls: u64,
    landlock_abi: Option<u32>,
}

impl Sandbox {
    /// Makes the session's workspace, if it has none yet, and a confined process tree on it.
    pub async fn start(config: &SandboxConfig, session_id: &str) -> Result<Self, SandboxError> {
        let workspace = prepare(config, session_id)?;
        let settings = Settings {
            workspace: workspace.clone(),
            confinement: config.confinement,
            readable_paths: config.readable_paths.clone(),
            limits: config.limits.clone(),
        };
        let arguments = serde_json::to_string(&settings).expect("settings are plain data");
        let mut child = Command::new(&config.executable)
            .args([entry::WORD, "supervisor", &arguments])
            .env_clear()
            .current_dir(&workspace)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|source| SandboxError::Start { executable: config.executable.clone(), source })?;
        let mut sandbox = Self {
            requests: child.stdin.take().expect("stdin is piped"),
            replies: child.stdout.take().expect("stdout is piped"),
            child,
            frames: FrameReader::default(),
            calls: 0,
            landlock_abi: None,
        };
        match sandbox.next_reply().await? {
            Reply::Ready { landlock_abi } => {
                sandbox.landlock_abi = landlock_abi;
                Ok(sandbox)
            }
            Reply::Failed { message } => Err(SandboxError::Confine(message)),
            Reply::Done { .. } | Reply::Killed { .. } => Err(SandboxError::Ended),
        }
    }

    /// The Landlock ABI in force, none with confinement off.
    pub fn landlock_abi(&self) -> Option<u32> {
        self.landlock_abi
    }

    /// The supervisor's process id.
    pub fn process_id(&self) -> Option<u32> {
        self.child.id()
    }

    /// Runs one call to its end. A `cancelled` call is killed with all its descendants before this returns.
    ///
    /// Must be awaited to its end: the next call would find this one's answer. After an error the sandbox is
    /// of no more use.
    pub async fn call(
        &mut self,
        tool: &str,
        input: Value,
        cancelled: &CancellationToken,
    ) -> Result<CallEnd, SandboxError> {
        self.calls += 1;
        let call = self.calls;
        let request = Request::Call { call, tool: tool.to_owned(), input };
        self.send(&request).await?;
        let reply = tokio::select! {
            biased;
            reply = self.next_reply() => reply?,
            why = stopped(cancelled) => {
                self.send(&Request::Cancel { call }).await?;
                // A call that ended just now is not killed any more; its answer comes instead.
                match (self.next_reply().await?, why) {
                    (Reply::Killed { .. }, Stopped::TimedOut) => Reply::Done {
                        call,
                        outcome: ToolOutcome::error(format!("tool {tool:?} timed out")),
                    },
                    (reply, _) => reply,
                }
            }
        };
        match reply {
            Reply::Done { call: answered, outcome } if answered == call => Ok(CallEnd::Done(outcome)),
            Reply::Killed { call: answered } if answered == call => Ok(CallEnd::Killed),
            _ => Err(SandboxError::Ended),
        }
    }

    /// Kills every process of the session and waits until they are gone. The workspace stays.
    pub async fn close(mut self) {
        drop(self.requests);
        if tokio::time::timeout(CLOSE_PATIENCE, self.child.wait()).await.is_err() {
            tracing::warn!(process_id = self.child.id(), "sandbox did not end in time and is killed");
            let _ = self.child.kill().await;
        }
    }

    async fn send(&mut self, request: &Request) -> Result<(), SandboxError> {
        let sent = self.requests.write_all(&encode(request)).await;
        sent.map_err(|_| SandboxError::Ended)
    }

    /// Reads the next reply. Safe to drop: what was read stays in the frame reader.
    async fn next_reply(&mut self) -> Result<Reply, SandboxError> {
        let mut chunk = vec![0; 64 * 1024];
        loop {
            if let Some(frame) = self.frames.next_frame().map_err(|_| SandboxError::Ended)? {
                return serde_json::from_slice(&frame).map_err(|_| SandboxError::Ended);
            }
            match self.replies.read(&mut chunk).await {
                Ok(0) | Err(_) => return Err(SandboxError::Ended),
                Ok(length) => self.frames.push(&chunk[..length]),
            }
        }
    }
}

enum Stopped {
    Cancelled,
    TimedOut,
}

async fn stopped(cancelled: &CancellationToken) -> Stopped {
    tokio::select! {
        () = cancelled.cancelled() => Stopped::Cancelled,
        () = tokio::time::sleep(Duration::from_secs(CALL_SECONDS_MAX)) => Stopped::TimedOut,
    }
}

/// Where the session's workspace lies below `workspaces_dir`, or a refusal of an id that is no plain name.
pub fn workspace_path(workspaces_dir: &Path, session_id: &str) -> Result<PathBuf, SandboxError> {
    let is_plain = !session_id.is_empty()
        && session_id.len() <= 128
        && session_id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-');
    if is_plain { Ok(workspaces_dir.join(session_id)) } else { Err(SandboxError::SessionId(session_id.to_owned())) }
}

/// Makes the workspace; returns its path without symbolic links. What lies inside is left to the confined
/// processes, because an earlier command may have put a link anywhere.
fn prepare(config: &SandboxConfig, session_id: &str) -> Result<PathBuf, SandboxError> {
    let path = workspace_path(&config.workspaces_dir, session_id)?;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&path)
        .and_then(|()| path.canonicalize())
        .map_err(|source| SandboxError::Workspace { path, source })
}

/// Removes a deleted session's workspace.
pub async fn remove_workspace(config: &SandboxConfig, session_id: &str) -> Result<(), SandboxError> {
    let path = workspace_path(&config.workspaces_dir, session_id)?;
    match tokio::fs::remove_dir_all(&path).await {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(SandboxError::Workspace { path, source: error })
        }
        _ => Ok(()),
    }
}

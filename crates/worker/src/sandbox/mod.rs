//! A session's sandbox, as the worker holds it: start it, hand it calls, kill a call, close it.
//!
//! Behind it stands a tree of processes, started from the worker's own executable with a cleared environment and no
//! inherited descriptor:
//!
//! ```text
//! worker ── supervisor ─┬─ bash          (system paths, workspace)
//!                       └─ file helper   (workspace and uploads only)
//! ```
//!
//! [`entry`] is where it begins, [`namespaces`] and [`confine`] what it may see and do, [`supervisor`] what runs it.
//! Calls of one sandbox run one at a time. The only way out to the network is a listener that the worker gets from
//! [`Sandbox::take_proxy`]: whoever connects to it wants something from outside.

mod attributes;
mod census;
mod cgroup;
mod child;
pub mod config;
pub(crate) mod confine;
mod connects;
mod descendants;
pub(crate) mod entry;
mod files_link;
mod helper;
mod namespaces;
mod orphans;
mod paths;
pub(crate) mod probe_calls;
pub(crate) mod protocol;
mod quota;
mod root;
mod seccomp;
mod shell;
mod supervisor;
mod system;

use rustix::fd::OwnedFd;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde::Serialize;
use serde_json::Value;
use std::fs::Permissions;
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio_util::sync::CancellationToken;

use crate::exchange::uploads::Uploads;
use cgroup::Cgroups;
use config::{Confinement, SandboxConfig};
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
    #[error("control group: {0}")]
    Cgroup(std::io::Error),
    #[error("listener for the session's network: {0}")]
    Proxy(std::io::Error),
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
    /// Its process id, also after it has ended.
    head: u32,
    /// The supervisor's standard input and output in one.
    control: UnixStream,
    frames: FrameReader,
    calls: u64,
    landlock_abi: Option<u32>,
    proxy: Option<TcpListener>,
    cgroups: Cgroups,
}

impl Sandbox {
    /// Makes the session's workspace, if it has none yet, and a confined process tree on it.
    pub async fn start(config: &SandboxConfig, session_id: &str) -> Result<Self, SandboxError> {
        let workspace = prepare(config, session_id)?;
        let uploads = prepare_uploads(config, session_id)?;
        let proxy = match config.confinement {
            Confinement::Namespaces => None,
            Confinement::Landlock | Confinement::Off => Some(listen().map_err(SandboxError::Proxy)?),
        };
        let proxy_port = proxy.as_ref().and_then(|listener| listener.local_addr().ok()).map(|address| address.port());
        let settings = Settings {
            workspace,
            uploads,
            confinement: config.confinement,
            readable_paths: config.readable_paths.clone(),
            proxy_port,
            limits: config.limits.clone(),
        };
        let (child, control) = spawn(config, &settings.workspace)
            .map_err(|source| SandboxError::Start { executable: config.executable.clone(), source })?;
        let head = child.id().expect("a child that was not waited for has an id");
        let frames = FrameReader::default();
        let cgroups = Cgroups::default();
        let mut sandbox = Self { child, head, control, frames, calls: 0, landlock_abi: None, proxy, cgroups };
        // It waits for its settings, so nothing has been started that would stay outside.
        sandbox.cgroups =
            Cgroups::make(&config.cgroups, session_id, &config.limits, head).map_err(SandboxError::Cgroup)?;
        sandbox.send(&settings).await?;
        let inner_proxy = sandbox.receive_first().await?;
        match sandbox.next_reply().await? {
            Reply::Ready { landlock_abi } => {
                sandbox.landlock_abi = landlock_abi;
                if let Some(inner) = inner_proxy {
                    sandbox.proxy = Some(TcpListener::from(inner));
                }
                Ok(sandbox)
            }
            Reply::Failed { message } => Err(SandboxError::Confine(message)),
            Reply::Done { .. } | Reply::Killed { .. } => Err(SandboxError::Ended),
        }
    }

    /// The listener to which the session's tools connect when they want out; the first time, none afterwards.
    pub fn take_proxy(&mut self) -> Option<TcpListener> {
        self.proxy.take()
    }

    /// The Landlock ABI in force, none with confinement off.
    pub fn landlock_abi(&self) -> Option<u32> {
        self.landlock_abi
    }

    /// The id of the process that the worker started, and that ends with the sandbox: the supervisor or, with
    /// namespaces, its keeper.
    pub fn process_id(&self) -> u32 {
        self.head
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
        // The supervisor takes the end of its input as the word to end.
        let _ = self.control.shutdown().await;
        let ended = tokio::time::timeout(CLOSE_PATIENCE, self.child.wait()).await;
        let is_orderly = ended.is_ok_and(|status| status.is_ok_and(|status| status.code().is_some()));
        if !is_orderly {
            tracing::warn!(process_id = self.head, "the head of a sandbox did not end in good order");
            let _ = self.child.kill().await;
            orphans::forget(self.head);
            sweep_orphans().await;
        }
        let mut cgroups = std::mem::take(&mut self.cgroups);
        if !cgroups.is_empty() {
            // It fails only if the clearing itself panics, and then nothing is left to do.
            let _ = tokio::task::spawn_blocking(move || cgroups.clear()).await;
        }
    }

    async fn send(&mut self, message: &impl Serialize) -> Result<(), SandboxError> {
        let sent = self.control.write_all(&encode(message)).await;
        sent.map_err(|_| SandboxError::Ended)
    }

    /// Reads the beginning of the first reply and the descriptor that may come with it.
    async fn receive_first(&mut self) -> Result<Option<OwnedFd>, SandboxError> {
        let mut chunk = [0; 4096];
        let receive = || {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let mut parts = [IoSliceMut::new(&mut chunk)];
            let length = recvmsg(&self.control, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC)?.bytes;
            let descriptor = control.drain().find_map(|message| match message {
                RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
                _ => None,
            });
            Ok((length, descriptor))
        };
        let received = self.control.async_io(Interest::READABLE, receive).await;
        let (length, descriptor) = received.map_err(|_| SandboxError::Ended)?;
        self.frames.push(&chunk[..length]);
        Ok(descriptor)
    }

    /// Reads the next reply. Safe to drop: what was read stays in the frame reader.
    async fn next_reply(&mut self) -> Result<Reply, SandboxError> {
        let mut chunk = vec![0; 64 * 1024];
        loop {
            if let Some(frame) = self.frames.next_frame().map_err(|_| SandboxError::Ended)? {
                return serde_json::from_slice(&frame).map_err(|_| SandboxError::Ended);
            }
            match self.control.read(&mut chunk).await {
                Ok(0) | Err(_) => return Err(SandboxError::Ended),
                Ok(length) => self.frames.push(&chunk[..length]),
            }
        }
    }
}

/// A way out for a session that has no network of its own.
fn listen() -> std::io::Result<TcpListener> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    rustix::net::listen(&listener, namespaces::BACKLOG)?;
    Ok(listener)
}

/// Where an instrumented program writes its counts.
const PROFILE_FILE: &str = "LLVM_PROFILE_FILE";

fn spawn(config: &SandboxConfig, workspace: &Path) -> std::io::Result<(Child, UnixStream)> {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    let mut command = Command::new(&config.executable);
    command
        .arg(entry::WORD)
        .env_clear()
        .current_dir(workspace)
        .stdin(OwnedFd::from(theirs.try_clone()?))
        .stdout(OwnedFd::from(theirs))
        .stderr(Stdio::null());
    // A build that counts its coverage writes a file as it exits, into the workspace if nobody says otherwise.
    if std::env::var_os(PROFILE_FILE).is_some() {
        command.env(PROFILE_FILE, "/dev/null");
    }
    Ok((orphans::start(|| command.spawn())?, UnixStream::from_std(ours)?))
}

/// Ends what dead sandboxes left.
pub(crate) async fn sweep_orphans() {
    // It fails only if the look itself panics, and then nothing is left to do.
    let _ = tokio::task::spawn_blocking(orphans::sweep).await;
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        orphans::forget(self.head);
        let mut cgroups = std::mem::take(&mut self.cgroups);
        if !cgroups.is_empty() {
            std::thread::spawn(move || cgroups.clear());
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
        // An earlier command may have taken the rights away.
        .and_then(|()| std::fs::set_permissions(&path, Permissions::from_mode(0o700)))
        .and_then(|()| path.canonicalize())
        .map_err(|source| SandboxError::Workspace { path, source })
}

/// The folder of what the session was given, which may be filled later.
fn prepare_uploads(config: &SandboxConfig, session_id: &str) -> Result<PathBuf, SandboxError> {
    let uploads = Uploads::of(&config.workspaces_dir, session_id)?;
    let folder = uploads.folder().and_then(Path::canonicalize);
    folder.map_err(|source| SandboxError::Workspace { path: config.workspaces_dir.clone(), source })
}

/// Removes a deleted session's workspace, and what else is here of it.
pub async fn remove_workspace(config: &SandboxConfig, session_id: &str) -> Result<(), SandboxError> {
    let path = workspace_path(&config.workspaces_dir, session_id)?;
    let (folder, folders, session_id) = (path.clone(), config.workspaces_dir.clone(), session_id.to_owned());
    let removed = tokio::task::spawn_blocking(move || {
        remove_folder(&folder)?;
        crate::exchange::uploads::forget(&folders, &session_id)?;
        crate::snapshot::place::forget(&folders, &session_id)
    });
    removed.await.map_err(std::io::Error::other).flatten().map_err(|source| SandboxError::Workspace { path, source })
}

/// Removes a folder of which commands may have locked parts; one that is not there is removed.
pub(crate) fn remove_folder(folder: &Path) -> std::io::Result<()> {
    let removed = match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            unlock(folder.to_owned()).and_then(|()| std::fs::remove_dir_all(folder))
        }
        result => result,
    };
    match removed {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Gives the worker's user back the rights on folders that a command took away. No process of the session is left that
/// could put a link in the way.
fn unlock(workspace: PathBuf) -> std::io::Result<()> {
    let mut left = vec![workspace];
    while let Some(folder) = left.pop() {
        std::fs::set_permissions(&folder, Permissions::from_mode(0o700))?;
        for entry in std::fs::read_dir(&folder)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                left.push(entry.path());
            }
        }
    }
    Ok(())
}

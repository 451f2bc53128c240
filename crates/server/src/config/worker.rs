//! `worker`: the process that runs tools, the server's own one and those of a pool.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::network::WorkerNetwork;
use super::secrets::{self, SecretError};
use super::{ByteSize, Problem, TimeSpan};
use crate::secret::Secret;

/// The process that runs tools: the server's own one and those of a pool read the same section.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct WorkerSection {
    /// Whether `serve` starts a worker of its own. Unset, it does so when no worker key is set.
    pub embedded: Option<bool>,
    /// Key that server and pool workers share.
    #[serde(serialize_with = "secrets::serialize")]
    pub key: Option<Secret>,
    /// File that holds `key`.
    pub key_file: Option<PathBuf>,
    /// Where a pool worker finds the server.
    pub server_url: String,
    /// Sessions whose tools run at the same time.
    pub max_sessions: usize,
    /// How tools are kept from the rest of the machine. A worker that cannot confine them as set does not start.
    pub confinement: Confinement,
    /// Folder for the workspaces of sessions. Unset, it is `workspaces` in the data folder.
    pub workspaces_dir: Option<PathBuf>,
    /// Paths that tools may read, besides those of the system.
    pub readable_paths: Vec<PathBuf>,
    /// Control groups that the worker may make groups in, one a session, for limits of memory and processes that the
    /// kernel keeps: a delegated one of version 2, or one for each of the two controllers of version 1.
    pub cgroups: Vec<PathBuf>,
    /// What the tools of one session may use.
    pub limits: WorkerLimits,
    pub network: WorkerNetwork,
}

/// How tools are kept from the rest of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Confinement {
    /// The strongest of the next two that this machine allows. The log and `agent-service worker --probe` say which.
    #[default]
    Auto,
    /// All of `landlock`, and for each session namespaces of its own: its own files, processes, users and network;
    /// those of the machine do not exist for it. Needs user namespaces, and no privilege.
    Namespaces,
    /// Landlock, seccomp, no capabilities and resource limits. Needs Linux 6.2, and no privilege.
    Landlock,
    /// Resource limits alone. What a model writes runs with all rights of the worker's user: for development only.
    Off,
}

/// What the tools of one session may use.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct WorkerLimits {
    /// Processes alive at the same time, all descendants counted.
    pub max_processes: usize,
    /// Memory of all processes together.
    pub max_memory: ByteSize,
    /// Private memory of each process.
    pub max_process_memory: ByteSize,
    /// Size of each file written.
    pub max_file_size: ByteSize,
    /// Open files of each process.
    pub max_open_files: u64,
    /// CPU time of all processes together, since the session's shell started.
    pub max_cpu_time: TimeSpan,
    /// Size of the workspace.
    pub max_workspace_size: ByteSize,
    /// Files and folders in the workspace.
    pub max_workspace_files: u64,
}

impl Default for WorkerSection {
    fn default() -> Self {
        Self {
            embedded: None,
            key: None,
            key_file: None,
            server_url: "http://127.0.0.1:8080".to_owned(),
            max_sessions: 16,
            confinement: Confinement::default(),
            workspaces_dir: None,
            readable_paths: Vec::new(),
            cgroups: Vec::new(),
            limits: WorkerLimits::default(),
            network: WorkerNetwork::default(),
        }
    }
}

impl Default for WorkerLimits {
    fn default() -> Self {
        Self {
            max_processes: 256,
            max_memory: ByteSize::from_bytes(4 << 30),
            max_process_memory: ByteSize::from_bytes(4 << 30),
            max_file_size: ByteSize::from_bytes(2 << 30),
            max_open_files: 1024,
            max_cpu_time: TimeSpan::from_secs(4 * 3600),
            max_workspace_size: ByteSize::from_bytes(10 << 30),
            max_workspace_files: 1_000_000,
        }
    }
}

impl WorkerSection {
    /// Whether `serve` starts a worker of its own.
    pub fn is_embedded(&self) -> bool {
        self.embedded.unwrap_or(self.key.is_none())
    }

    pub(super) fn read_secrets(&mut self) -> Result<(), SecretError> {
        secrets::read("worker.key", &mut self.key, self.key_file.as_deref())
    }

    pub(super) fn validate(&self) -> Result<(), Problem> {
        if let Some(key) = &self.key
            && key.expose().len() < 16
        {
            return Err(Problem::new("worker.key", "must have at least 16 characters"));
        }
        match url::Url::parse(&self.server_url) {
            Ok(url) if matches!(url.scheme(), "http" | "https") => {}
            _ => return Err(Problem::new("worker.server_url", "must begin with http:// or https://")),
        }
        if self.max_sessions == 0 {
            return Err(Problem::new("worker.max_sessions", "must be at least 1"));
        }
        if let Some(path) = self.readable_paths.iter().find(|path| !path.is_absolute()) {
            return Err(Problem::new("worker.readable_paths", format!("{} is not an absolute path", path.display())));
        }
        if let Some(path) = self.cgroups.iter().find(|path| !path.is_absolute()) {
            return Err(Problem::new("worker.cgroups", format!("{} is not an absolute path", path.display())));
        }
        if self.limits.max_cpu_time.get().as_secs() == 0 {
            return Err(Problem::new("worker.limits.max_cpu_time", "must be at least 1s"));
        }
        self.network.validate()
    }
}

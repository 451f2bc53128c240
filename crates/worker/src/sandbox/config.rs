//! The settings of a sandbox that an operator chooses; defaults are those of the documentation.

use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// How strongly tools are confined.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Confinement {
    /// Everything of `Landlock`, and each session in namespaces of its own: it has its own `/workspace`, `/tmp`,
    /// `/proc`, users and network, and the host's do not exist for it. Needs user namespaces.
    Namespaces,
    /// Landlock, seccomp, no capabilities and resource limits: needs Linux 6.2 and no privilege.
    #[default]
    Landlock,
    /// Nothing but resource limits and clean-up of processes. For development on machines without Landlock:
    /// the model's commands run with all rights of the worker's user.
    Off,
}

/// Resource limits of one session's tools.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Processes and threads alive at the same time, all descendants counted.
    pub processes_max: usize,
    /// Resident memory of all the session's processes together, in bytes.
    pub memory_bytes_max: u64,
    /// Private memory of each single process (`RLIMIT_DATA`), in bytes.
    pub process_memory_bytes_max: u64,
    /// Size of each single file that a tool writes (`RLIMIT_FSIZE`), in bytes.
    pub file_bytes_max: u64,
    /// Open files of each single process (`RLIMIT_NOFILE`).
    pub open_files_max: u64,
    /// CPU time of all the session's processes together since its shell started, in seconds.
    pub cpu_seconds_max: u64,
    /// What the workspace holds, in bytes.
    pub workspace_bytes_max: u64,
    /// Files and folders of the workspace.
    pub workspace_files_max: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            processes_max: 512,
            memory_bytes_max: 4 << 30,
            process_memory_bytes_max: 4 << 30,
            file_bytes_max: 2 << 30,
            open_files_max: 1024,
            cpu_seconds_max: 4 * 3600,
            workspace_bytes_max: 10 << 30,
            workspace_files_max: 1_000_000,
        }
    }
}

/// How this worker makes sandboxes.
#[derive(Debug, Clone)]
pub struct SandboxConfig {
    /// The executable whose `main` calls [`crate::sandbox_main`] first; normally the running one.
    pub executable: PathBuf,
    /// Holds one folder for each session, named by its id.
    pub workspaces_dir: PathBuf,
    pub confinement: Confinement,
    pub limits: Limits,
    /// Read-only paths added to the built-in list of system paths, such as `/opt/toolchain`.
    pub readable_paths: Vec<PathBuf>,
    /// Control groups in which each session gets one of its own; none, and the supervisor's count is all there is.
    pub cgroups: Vec<PathBuf>,
}

impl SandboxConfig {
    /// The defaults: the running executable, full confinement.
    pub fn new(workspaces_dir: impl Into<PathBuf>) -> Self {
        Self {
            executable: PathBuf::from("/proc/self/exe"),
            workspaces_dir: workspaces_dir.into(),
            confinement: Confinement::default(),
            limits: Limits::default(),
            readable_paths: Vec::new(),
            cgroups: Vec::new(),
        }
    }
}

//! A session's control groups, where the operator has folders for them: limits that the kernel keeps, besides those
//! that the supervisor counts.
//!
//! A folder is a group that the worker may make groups in: one of version 2, delegated to it, or one for each
//! controller of version 1. Which limits a folder gives is told by the files that a new group has there.
//! The head of a sandbox is put into its groups before it starts anything, so that all that it starts is in them.

use rustix::process::{Pid, Signal, kill_process};
use std::io::{Error, ErrorKind, Result};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::config::Limits;

/// Attempts to remove a group whose processes are dying.
const REMOVALS_MAX: usize = 500;
const REMOVAL_PAUSE: Duration = Duration::from_millis(10);

/// The groups of one session. Whoever has them removes them when the session's processes have ended.
#[derive(Debug, Default)]
pub(crate) struct Cgroups {
    groups: Vec<PathBuf>,
}

impl Cgroups {
    /// Makes a group for the session in each of `folders` and puts the process into them.
    pub(crate) fn make(folders: &[PathBuf], session_id: &str, limits: &Limits, head: u32) -> Result<Self> {
        let mut made = Self::default();
        let result = made.fill(folders, session_id, limits, head);
        result.inspect_err(|_| made.clear()).map(|()| made)
    }

    fn fill(&mut self, folders: &[PathBuf], session_id: &str, limits: &Limits, head: u32) -> Result<()> {
        if folders.is_empty() {
            return Ok(());
        }
        let (mut has_memory, mut has_processes) = (false, false);
        for folder in folders {
            create(folder)?;
            // Version 2 gives its groups what their parent hands on; where that may not be changed, it may be so already.
            let _ = std::fs::write(folder.join("cgroup.subtree_control"), "+memory +pids");
            let group = folder.join(session_id);
            // One that a killed worker left.
            remove(&group);
            create(&group)?;
            self.groups.push(group.clone());
            for memory in ["memory.max", "memory.limit_in_bytes"] {
                has_memory |= set(&group.join(memory), limits.memory_bytes_max)?;
            }
            has_processes |= set(&group.join("pids.max"), limits.processes_max as u64)?;
            std::fs::write(group.join("cgroup.procs"), head.to_string()).map_err(|error| named(&group, &error))?;
        }
        match (has_memory, has_processes) {
            (true, true) => Ok(()),
            (false, _) => Err(missing("memory")),
            (true, false) => Err(missing("pids")),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    /// Kills whoever is left in the groups, and removes them.
    pub(crate) fn clear(&mut self) {
        for group in self.groups.drain(..) {
            remove(&group);
        }
    }
}

fn create(group: &Path) -> Result<()> {
    match std::fs::create_dir(group) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(named(group, &error)),
        _ => Ok(()),
    }
}

/// Sets a limit; says whether the group has it.
fn set(file: &Path, value: u64) -> Result<bool> {
    if !file.exists() {
        return Ok(false);
    }
    std::fs::write(file, value.to_string()).map_err(|error| named(file, &error))?;
    Ok(true)
}

fn remove(group: &Path) {
    for _ in 0..REMOVALS_MAX {
        match std::fs::remove_dir(group) {
            Err(error) if error.kind() == ErrorKind::ResourceBusy => kill(group),
            Err(error) if error.kind() != ErrorKind::NotFound => {
                tracing::warn!(group = %group.display(), %error, "a control group stays");
                return;
            }
            _ => return,
        }
        std::thread::sleep(REMOVAL_PAUSE);
    }
    tracing::warn!(group = %group.display(), "a control group stays: its processes do not end");
}

fn kill(group: &Path) {
    if std::fs::write(group.join("cgroup.kill"), "1").is_ok() {
        return;
    }
    let processes = std::fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    for pid in processes.lines().filter_map(|line| Pid::from_raw(line.parse().ok()?)) {
        // It may have ended meanwhile.
        let _ = kill_process(pid, Signal::KILL);
    }
}

fn missing(controller: &str) -> Error {
    Error::other(format!("no group below the folders of worker.cgroups has the controller {controller}"))
}

fn named(path: &Path, error: &Error) -> Error {
    Error::other(format!("{}: {error}", path.display()))
}

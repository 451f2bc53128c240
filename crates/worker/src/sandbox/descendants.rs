//! The processes below the supervisor, whatever they did to leave: `setsid`, a double fork, a stopped state.
//!
//! The supervisor is a child subreaper, so an orphan becomes its child and stays in the tree that is walked here.
//! [`kill_all`] goes on until a walk finds nobody.

use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitOptions, getpid, kill_process, wait};
use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

/// How long a process may take to die of SIGKILL, which only one stuck inside the kernel exceeds.
const KILL_PATIENCE: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Process {
    pub pid: i32,
    parent: i32,
    pub is_zombie: bool,
    is_stopped: bool,
    pub threads: usize,
    pub resident_pages: u64,
    /// CPU time of the process and of those it has waited for, in ticks of the kernel.
    pub cpu_ticks: u64,
}

impl Process {
    pub(crate) fn is_child_of(&self, parent: Pid) -> bool {
        self.parent == parent.as_raw_nonzero().get()
    }
}

/// Every living or zombie process below this one.
pub(crate) fn list() -> std::io::Result<Vec<Process>> {
    let mut all = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        let is_process = entry.file_name().to_str().is_some_and(|name| name.bytes().all(|byte| byte.is_ascii_digit()));
        // A process that ended since the directory was read is no descendant any more.
        if is_process && let Ok(stat) = fs::read(entry.path().join("stat")) {
            all.extend(parse_stat(&stat));
        }
    }
    Ok(below(getpid().as_raw_nonzero().get(), &all))
}

/// Reads one `/proc/<pid>/stat`. The name in parentheses is the process's own choice and may hold anything.
fn parse_stat(stat: &[u8]) -> Option<Process> {
    let open = stat.iter().position(|byte| *byte == b'(')?;
    let close = stat.iter().rposition(|byte| *byte == b')')?;
    let pid = std::str::from_utf8(stat.get(..open)?).ok()?.trim();
    let rest = std::str::from_utf8(stat.get(close + 1..)?).ok()?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    Some(Process {
        pid: pid.parse().ok()?,
        parent: fields.get(1)?.parse().ok()?,
        is_zombie: *fields.first()? == "Z",
        is_stopped: *fields.first()? == "T",
        threads: fields.get(17)?.parse().unwrap_or(1),
        // Fields 14 to 17, 20 and 24 of proc(5), counted from the state, which is field 3.
        resident_pages: fields.get(21)?.parse().unwrap_or(0),
        cpu_ticks: fields.get(11..15)?.iter().filter_map(|ticks| ticks.parse::<u64>().ok()).sum(),
    })
}

/// Those of `all` that descend from `root`.
pub(crate) fn below(root: i32, all: &[Process]) -> Vec<Process> {
    let mut children: BTreeMap<i32, Vec<Process>> = BTreeMap::new();
    for process in all {
        children.entry(process.parent).or_default().push(*process);
    }
    let mut found = Vec::new();
    let mut parents = vec![root];
    while let Some(parent) = parents.pop() {
        for child in children.remove(&parent).unwrap_or_default() {
            parents.push(child.pid);
            found.push(child);
        }
    }
    found
}

/// Collects orphans that ended, out of a walk's result, and leaves the processes that live.
/// The children that somebody else waits for are `kept`.
pub(crate) fn reap_orphans(found: &mut Vec<Process>, kept: &[i32]) {
    let this = getpid().as_raw_nonzero().get();
    found.retain(|process| {
        let is_orphan = process.is_zombie && process.parent == this && !kept.contains(&process.pid);
        if is_orphan {
            let _ = rustix::process::waitpid(Pid::from_raw(process.pid), WaitOptions::NOHANG);
        }
        !is_orphan
    });
}

/// Some descendants did not die of SIGKILL.
#[derive(Debug, thiserror::Error)]
#[error("{0} processes survive SIGKILL")]
pub(crate) struct Survivors(usize);

/// Kills every descendant but `spared`, again and again until none is left, and reaps them.
pub(crate) fn kill_all(spared: Option<i32>) -> Result<(), Survivors> {
    let deadline = Instant::now() + KILL_PATIENCE;
    loop {
        while let Ok(Some(_)) = wait(WaitOptions::NOHANG) {}
        let mut others = list().unwrap_or_default();
        others.retain(|process| Some(process.pid) != spared);
        if others.is_empty() {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(Survivors(others.len()));
        }
        // Stopping all before killing any keeps a fork bomb from refilling behind the walk.
        for signal in [Signal::STOP, Signal::KILL] {
            for process in others.iter().filter(|process| !process.is_zombie) {
                send(process.pid, signal);
            }
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Descendants that are kept from running for a while; they go on when this is dropped.
#[derive(Debug)]
pub(crate) struct Held(Vec<i32>);

impl Held {
    /// Stops every descendant but `spared`. One that was stopped by somebody else is left to them.
    pub(crate) fn all_but(spared: Option<i32>) -> Self {
        let mut others = list().unwrap_or_default();
        others.retain(|process| Some(process.pid) != spared && !process.is_zombie && !process.is_stopped);
        let pids: Vec<i32> = others.iter().map(|process| process.pid).collect();
        for pid in &pids {
            send(*pid, Signal::STOP);
        }
        Self(pids)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        for pid in &self.0 {
            send(*pid, Signal::CONT);
        }
    }
}

/// Kills one child and waits for its end.
pub(crate) fn kill_child(pid: i32) {
    send(pid, Signal::KILL);
    if let Some(pid) = Pid::from_raw(pid) {
        while let Err(Errno::INTR) = rustix::process::waitpid(Some(pid), WaitOptions::empty()) {}
    }
}

fn send(pid: i32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(pid) {
        // The process may have ended meanwhile.
        let _ = kill_process(pid, signal);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_name_cannot_forge_its_parent() {
        let stat = b"42 (x) S 1 ) (y) R 7 42 42 0 -1 4194304 0 0 0 0 1 2 3 4 20 0 1 0 100 1000 25 0";
        let process = parse_stat(stat).unwrap();
        assert_eq!((process.pid, process.parent, process.is_zombie), (42, 7, false));
        assert_eq!((process.threads, process.resident_pages, process.cpu_ticks), (1, 25, 10));
    }

    #[test]
    fn descendants_are_found_through_generations() {
        let process = |pid, parent| Process {
            pid,
            parent,
            is_zombie: false,
            is_stopped: false,
            threads: 1,
            resident_pages: 0,
            cpu_ticks: 0,
        };
        let all = vec![process(4, 3), process(3, 2), process(2, 1), process(9, 8)];
        let mut pids: Vec<i32> = below(1, &all).into_iter().map(|found| found.pid).collect();
        pids.sort_unstable();
        assert_eq!(pids, [2, 3, 4]);
    }
}

//! Ends what a supervisor left that was itself killed, by the kernel for want of memory or by hand.
//!
//! With namespaces the kernel does it. Without, the shell dies with the supervisor, and what the shell had started
//! becomes a child of the worker, which is a subreaper. Such a child is known by two marks that it cannot put off: the
//! worker did not start it, and it stands behind more seccomp filters than the worker.

use rustix::process::{Pid, Signal, WaitOptions, getpid, kill_process};
use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::descendants;

/// The processes that the worker started as heads of sandboxes. Held while one is started, so that no process is taken
/// for an orphan because it is not noted yet.
static HEADS: Mutex<BTreeSet<u32>> = Mutex::new(BTreeSet::new());

fn heads() -> MutexGuard<'static, BTreeSet<u32>> {
    HEADS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts the head of a sandbox and notes it.
pub(crate) fn start(
    spawn: impl FnOnce() -> std::io::Result<tokio::process::Child>,
) -> std::io::Result<tokio::process::Child> {
    let mut heads = heads();
    rustix::process::set_child_subreaper(Some(getpid()))?;
    let child = spawn()?;
    heads.extend(child.id());
    Ok(child)
}

/// A head has ended.
pub(crate) fn forget(head: u32) {
    heads().remove(&head);
}

/// Kills all orphans and what they started. Takes a look at every process of the machine.
pub(crate) fn sweep() {
    const ROUNDS_MAX: usize = 100;
    let heads = heads();
    let own_filters = filters(getpid().as_raw_nonzero().get());
    for _ in 0..ROUNDS_MAX {
        let Ok(children) = descendants::list() else { return };
        let orphans: Vec<_> = children
            .iter()
            .filter(|process| process.is_child_of(getpid()) && !heads.contains(&process.pid.cast_unsigned()))
            .filter(|process| filters(process.pid) > own_filters)
            .collect();
        if orphans.is_empty() {
            return;
        }
        for orphan in &orphans {
            let below = descendants::below(orphan.pid, &children);
            tracing::warn!(process_id = orphan.pid, descendants = below.len(), "an orphan of a dead sandbox is killed");
            for signal in [Signal::STOP, Signal::KILL] {
                for pid in below.iter().map(|process| process.pid).chain([orphan.pid]).filter_map(Pid::from_raw) {
                    // It may have ended meanwhile.
                    let _ = kill_process(pid, signal);
                }
            }
            let _ = rustix::process::waitpid(Pid::from_raw(orphan.pid), WaitOptions::empty());
        }
    }
}

/// Seccomp filters in force in a process; they are inherited and never taken off. A zombie has none any more.
fn filters(pid: i32) -> u32 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let count = status.lines().find_map(|line| line.strip_prefix("Seccomp_filters:"));
    count.and_then(|count| count.trim().parse().ok()).unwrap_or(0)
}

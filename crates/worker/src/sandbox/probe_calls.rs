//! System calls that a probe tries from inside the file helper, where each must fail.
//!
//! Only [`crate::probe`] asks for them; the model cannot name this tool, because the worker hands over calls of
//! its six tools alone.

use rustix::net::{AddressFamily, SocketType};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::PathBuf;

use super::protocol::ToolOutcome;

pub(crate) const TOOL: &str = "__probe";

/// What to try against.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Targets {
    /// A file outside the workspace that exists.
    pub file_outside: PathBuf,
    /// The worker's process id.
    pub process_outside: i32,
}

/// What was achieved that must not be: empty when everything is held.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Escapes {
    pub files: Vec<String>,
    pub sockets: Vec<String>,
    pub processes: Vec<String>,
    pub signals: Vec<String>,
    pub kernel: Vec<String>,
}

pub(crate) fn run(input: Value) -> ToolOutcome {
    match serde_json::from_value(input) {
        Ok(targets) => {
            let escapes = serde_json::to_string(&attempt(&targets)).expect("a report is plain data");
            ToolOutcome::text(escapes)
        }
        Err(error) => ToolOutcome::error(error.to_string()),
    }
}

fn attempt(targets: &Targets) -> Escapes {
    let mut escapes = Escapes::default();
    let file = &targets.file_outside;
    let mut note = |list: fn(&mut Escapes) -> &mut Vec<String>, what: &str, worked: bool| {
        if worked {
            list(&mut escapes).push(what.to_owned());
        }
    };
    note(|all| &mut all.files, "read a file outside", std::fs::read(file).is_ok());
    note(|all| &mut all.files, "write a file outside", std::fs::File::options().append(true).open(file).is_ok());
    note(|all| &mut all.files, "create a file outside", std::fs::write(file.with_extension("new"), "").is_ok());
    for (name, family) in [
        ("inet", AddressFamily::INET),
        ("inet6", AddressFamily::INET6),
        ("unix", AddressFamily::UNIX),
        ("netlink", AddressFamily::NETLINK),
        ("packet", AddressFamily::PACKET),
        ("vsock", AddressFamily::VSOCK),
    ] {
        for kind in [SocketType::STREAM, SocketType::DGRAM, SocketType::RAW] {
            let socket = rustix::net::socket(family, kind, None);
            note(|all| &mut all.sockets, name, socket.is_ok());
        }
    }
    let environment = format!("/proc/{}/environ", targets.process_outside);
    note(|all| &mut all.processes, "read an environment", std::fs::read(environment).is_ok());
    if let Some(pid) = rustix::process::Pid::from_raw(targets.process_outside) {
        let signalled = rustix::process::test_kill_process(pid).is_ok();
        note(|all| &mut all.signals, "signal a process outside", signalled);
        let limits = rustix::process::Rlimit { current: None, maximum: None };
        let limited = rustix::process::prlimit(Some(pid), rustix::process::Resource::Core, limits);
        note(|all| &mut all.processes, "limit a process outside", limited.is_ok());
    }
    for (what, call) in KERNEL_CALLS {
        note(|all| &mut all.kernel, what, !super::system::is_refused(*call));
    }
    escapes
}

/// Calls that fail with EPERM or ENOSYS when refused and with another error, or not at all, when they are let in.
const KERNEL_CALLS: &[(&str, libc::c_long)] = &[
    ("ptrace", libc::SYS_ptrace),
    ("unshare", libc::SYS_unshare),
    ("mount", libc::SYS_mount),
    ("io_uring", libc::SYS_io_uring_setup),
    ("bpf", libc::SYS_bpf),
    ("perf", libc::SYS_perf_event_open),
    ("keyctl", libc::SYS_keyctl),
    ("shmget", libc::SYS_shmget),
];

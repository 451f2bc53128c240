//! Moves a session's first process into namespaces of its own: users, mounts, processes, network, IPC, names.
//!
//! ```text
//! worker ── keeper ─┊─ supervisor (process 1 of the session) ─┬─ bash
//!                                                            └─ file helper
//! ```
//!
//! The *keeper* stays outside, holds nothing and does nothing but wait: it is the process that the worker knows. If
//! either of the two dies, whatever kills it, the kernel ends every process of the session.
//! The namespaces are made without any privilege, from a user namespace that maps the worker's user to itself.
//! What the session sees as its file system is [`super::root`]'s.

use rustix::fd::OwnedFd;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::process::{Pid, Signal, WaitOptions};
use std::net::{Ipv4Addr, SocketAddrV4};

use super::child::exit_code;
use super::confine::ConfineError;
use super::protocol::Settings;
use super::root;
use super::system::{self, Fork, close_from};

/// Where the session's way out listens, on the loopback interface of its own network. Also the port that the proxy
/// variables name where every connection leads there anyway.
pub(crate) const PROXY_PORT: u16 = 3128;
/// More than a session may hold connections, so that those beyond the limit are told so.
pub(crate) const BACKLOG: i32 = 4096;

/// What the supervisor holds after it has moved.
pub(crate) struct Moved {
    /// The settings as they are true inside.
    pub settings: Settings,
    /// For the worker: connections to it are those that want out.
    pub proxy: OwnedFd,
}

/// Returns in the supervisor, inside. The keeper never returns: it exits as the supervisor does.
pub(crate) fn enter(settings: Settings) -> Result<Moved, ConfineError> {
    let failed = |what: &'static str| move |source: Errno| ConfineError::Kernel { what, source };
    let (user, group) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    system::enter_namespaces().map_err(failed("namespaces (are unprivileged user namespaces allowed?)"))?;
    for (file, text) in [
        ("/proc/self/setgroups", "deny".to_owned()),
        ("/proc/self/uid_map", format!("{user} {user} 1")),
        ("/proc/self/gid_map", format!("{group} {group} 1")),
    ] {
        write(file, &text).map_err(failed("user namespace"))?;
    }
    match system::fork().map_err(failed("process namespace"))? {
        Fork::Parent(supervisor) => std::process::exit(keep(supervisor)),
        Fork::Child => {}
    }
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).map_err(failed("death signal"))?;
    rustix::system::sethostname(b"sandbox").map_err(failed("host name"))?;
    let proxy = listen().map_err(failed("network namespace"))?;
    let settings = root::enter(settings)?;
    Ok(Moved { settings, proxy })
}

fn write(file: &str, text: &str) -> Result<(), Errno> {
    let file = rustix::fs::open(file, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(&file, text.as_bytes()).map(drop)
}

/// Waits for the supervisor and ends as it did.
fn keep(supervisor: Pid) -> i32 {
    // The pipes to the worker are the supervisor's: they have to end when it does.
    if close_from(0).is_err() {
        return 2;
    }
    loop {
        match rustix::process::waitpid(Some(supervisor), WaitOptions::empty()) {
            Ok(Some((_, status))) => return exit_code(status),
            Ok(None) | Err(Errno::INTR) => {}
            Err(_) => return 2,
        }
    }
}

fn listen() -> Result<OwnedFd, Errno> {
    let socket = rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    system::start_loopback(&socket)?;
    rustix::net::bind(&socket, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, PROXY_PORT))?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket)
}

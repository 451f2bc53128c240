//! Answers the shell's `connect` where the session has no network of its own: whatever address is named, the caller
//! gets a connection to its session's proxy, which the supervisor made.
//!
//! The caller's socket is replaced, not used: no option set on it, no address bound to it and no change of the address
//! in its memory can lead elsewhere. What is kept is whether it blocks and whether it is closed on exec. A program that
//! had the socket watched by epoll before it connected has to watch it again.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use std::net::{Ipv4Addr, SocketAddrV4};

use super::system::{CaughtCall, replace_descriptor};

pub(crate) const CAUGHT: &[libc::c_long] = &[libc::SYS_connect];

/// The worker accepts at once; a queue that is full for so long is as good as nobody listening.
const PATIENCE: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };

/// Gives the caller a connection to the proxy at `proxy_port`.
pub(crate) fn perform(listener: impl AsFd, call: &CaughtCall, proxy_port: Option<u16>) -> Result<(), Errno> {
    let descriptor = u32::try_from(call.arguments[0]).map_err(|_| Errno::BADF)?;
    let flags = descriptor_flags(call.thread, descriptor)?;
    let link = format!("/proc/{}/fd/{descriptor}", call.thread);
    let is_socket =
        std::fs::read_link(link).is_ok_and(|target| target.as_os_str().as_encoded_bytes().starts_with(b"socket:"));
    if !is_socket {
        return Err(Errno::NOTSOCK);
    }
    let connection = connect(proxy_port.ok_or(Errno::NETUNREACH)?)?;
    if !flags.contains(OFlags::NONBLOCK) {
        rustix::io::ioctl_fionbio(&connection, false)?;
    }
    replace_descriptor(listener, call, &connection, descriptor, flags.contains(OFlags::CLOEXEC))
}

fn connect(port: u16) -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
    match rustix::net::connect(&socket, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, port)) {
        Ok(()) => {}
        Err(Errno::INPROGRESS) => {
            let mut polled = [PollFd::new(&socket, PollFlags::OUT)];
            if poll(&mut polled, Some(&PATIENCE))? == 0 {
                return Err(Errno::CONNREFUSED);
            }
            rustix::net::sockopt::socket_error(&socket)??;
        }
        Err(error) => return Err(error),
    }
    rustix::net::sockopt::set_tcp_nodelay(&socket, true)?;
    Ok(socket)
}

/// How the caller opened a descriptor of its own.
fn descriptor_flags(thread: u32, descriptor: u32) -> Result<OFlags, Errno> {
    let text = std::fs::read_to_string(format!("/proc/{thread}/fdinfo/{descriptor}")).map_err(|_| Errno::BADF)?;
    let octal = text.lines().find_map(|line| line.strip_prefix("flags:")).ok_or(Errno::BADF)?;
    u32::from_str_radix(octal.trim(), 8).map(OFlags::from_bits_retain).map_err(|_| Errno::BADF)
}

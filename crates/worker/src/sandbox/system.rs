//! The few system calls of this crate that the safe wrappers do not have, each behind a safe function.
#![allow(unsafe_code)]

use rustix::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use rustix::io::Errno;
use rustix::process::Pid;
use rustix::thread::UnshareFlags;
use seccompiler::sock_filter;
use std::time::Duration;

/// Closes every descriptor from `first` on: what this process inherited without knowing.
///
/// Called before anything in this process owns a descriptor beyond standard input, output and error.
pub(crate) fn close_from(first: libc::c_uint) -> Result<(), Errno> {
    // SAFETY: the call takes three integers and no memory. The sandbox process calls it first thing, in its only
    // thread, while no value owns a descriptor of that range, so none is closed under its owner.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, 0) };
    if result == 0 { Ok(()) } else { Err(last_error()) }
}

/// Whether a system call is refused before its arguments are looked at. All arguments are -1, which no call
/// that is let in takes.
pub(crate) fn is_refused(call: libc::c_long) -> bool {
    // SAFETY: the caller names calls that read or write memory only through pointers, and -1 is no valid address
    // and no valid flag set, descriptor or process: a call that is let in fails without an effect.
    let result = unsafe { libc::syscall(call, -1, -1, -1, -1, -1) };
    let error = std::io::Error::last_os_error().raw_os_error();
    result == -1 && matches!(error, Some(libc::EPERM | libc::ENOSYS))
}

/// A system call of a confined process that waits for the supervisor's answer.
#[derive(Debug)]
pub(crate) struct CaughtCall {
    id: u64,
    /// The calling thread. Should it end and its id go to another, that one is confined likewise or unreadable.
    pub thread: u32,
    pub number: libc::c_long,
    pub arguments: [u64; 6],
}

/// Installs a filter that catches calls for a supervisor, who answers them through the descriptor returned.
/// Needs `no_new_privs`.
pub(crate) fn install_catching(program: &mut [sock_filter]) -> Result<OwnedFd, Errno> {
    let program = libc::sock_fprog {
        len: program.len().try_into().map_err(|_| Errno::INVAL)?,
        filter: program.as_mut_ptr().cast(),
    };
    // SAFETY: `program` and the instructions behind it live through the call, which copies them. `sock_filter` of
    // seccompiler has the layout of the kernel's.
    let result = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            libc::SECCOMP_FILTER_FLAG_NEW_LISTENER,
            &raw const program,
        )
    };
    match i32::try_from(result) {
        // SAFETY: the kernel made this descriptor for this call, close-on-exec, and nobody else knows it.
        Ok(descriptor) if descriptor >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(descriptor) }),
        _ => Err(last_error()),
    }
}

/// The next caught call. The descriptor must be readable, or this waits.
pub(crate) fn receive_call(listener: impl AsFd) -> Result<CaughtCall, Errno> {
    // SAFETY: the structure is plain integers, for which zero is a value, and the kernel demands zeros.
    let mut received: libc::seccomp_notif = unsafe { std::mem::zeroed() };
    // SAFETY: the request writes one such structure to the address, which is exclusively borrowed.
    let result =
        unsafe { libc::ioctl(listener.as_fd().as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_RECV, &raw mut received) };
    if result != 0 {
        return Err(last_error());
    }
    Ok(CaughtCall {
        id: received.id,
        thread: received.pid,
        number: received.data.nr.into(),
        arguments: received.data.args,
    })
}

/// What a caught call comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    /// The kernel performs it as if it had not been caught. Only for calls whose arguments decide nothing: they
    /// can change until then.
    GoOn,
    /// It is done already.
    Done,
    Refused(Errno),
}

/// Lets the caller go on.
pub(crate) fn answer_call(listener: impl AsFd, call: &CaughtCall, answer: Answer) {
    let (error, flags) = match answer {
        Answer::GoOn => (0, libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE),
        Answer::Done => (0, 0),
        Answer::Refused(error) => (-error.raw_os_error(), 0),
    };
    let mut answer =
        libc::seccomp_notif_resp { id: call.id, val: 0, error, flags: flags.try_into().expect("the flag is 1") };
    // SAFETY: the request reads one such structure from the address. A caller that is gone is an error that
    // concerns nobody.
    unsafe {
        libc::ioctl(listener.as_fd().as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SEND, &raw mut answer);
    }
}

/// Puts `source` in place of the caller's descriptor `target`, which has to be open.
pub(crate) fn replace_descriptor(
    listener: impl AsFd,
    call: &CaughtCall,
    source: impl AsFd,
    target: u32,
    closes_on_exec: bool,
) -> Result<(), Errno> {
    let mut added = libc::seccomp_notif_addfd {
        id: call.id,
        flags: libc::SECCOMP_ADDFD_FLAG_SETFD.try_into().expect("the flag is 1"),
        srcfd: source.as_fd().as_raw_fd().cast_unsigned(),
        newfd: target,
        newfd_flags: if closes_on_exec { libc::O_CLOEXEC.cast_unsigned() } else { 0 },
    };
    // SAFETY: the request reads one such structure from the address. It changes the descriptors of the caller, which
    // is another process and waits.
    let result = unsafe { libc::ioctl(listener.as_fd().as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_ADDFD, &raw mut added) };
    if result < 0 { Err(last_error()) } else { Ok(()) }
}

/// CPU time of the children that have ended and were waited for, and of theirs.
pub(crate) fn reaped_cpu_time() -> Duration {
    // SAFETY: the structure is plain integers, for which zero is a value.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: the call writes one such structure to the address, which is exclusively borrowed.
    unsafe { libc::getrusage(libc::RUSAGE_CHILDREN, &raw mut usage) };
    let duration = |time: libc::timeval| {
        Duration::from_secs(time.tv_sec.try_into().unwrap_or(0))
            + Duration::from_micros(time.tv_usec.try_into().unwrap_or(0))
    };
    duration(usage.ru_utime) + duration(usage.ru_stime)
}

/// Which of the two processes a fork returned to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fork {
    Parent(Pid),
    Child,
}

/// Copies this process, which must have one thread only, as every sandbox process has.
pub(crate) fn fork() -> Result<Fork, Errno> {
    // SAFETY: a sandbox process never starts a second thread, so no lock can be held by a thread that the copy lacks.
    let result = unsafe { libc::fork() };
    match Pid::from_raw(result) {
        Some(pid) if result > 0 => Ok(Fork::Parent(pid)),
        None => Ok(Fork::Child),
        Some(_) => Err(last_error()),
    }
}

/// Moves this process, which must have one thread only, into namespaces of its own.
pub(crate) fn enter_namespaces() -> Result<(), Errno> {
    let flags = UnshareFlags::NEWUSER
        | UnshareFlags::NEWNS
        | UnshareFlags::NEWPID
        | UnshareFlags::NEWNET
        | UnshareFlags::NEWIPC
        | UnshareFlags::NEWUTS
        | UnshareFlags::NEWCGROUP;
    // SAFETY: the table of descriptors stays shared with nobody: `FILES` is not among the flags.
    unsafe { rustix::thread::unshare_unsafe(flags) }
}

/// Takes rights from a mount and from every mount below it.
pub(crate) fn restrict_mount(tree: impl AsFd, attributes: u64, is_recursive: bool) -> Result<(), Errno> {
    let attributes = libc::mount_attr { attr_set: attributes, attr_clr: 0, propagation: 0, userns_fd: 0 };
    let recursive = if is_recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the call reads an empty text and one structure of the length given, both alive through it.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_fd().as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | recursive,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(last_error()) }
}

/// Switches on the loopback interface of this process's network namespace.
pub(crate) fn start_loopback(socket: impl AsFd) -> Result<(), Errno> {
    // SAFETY: the structure is plain integers and characters, for which zero is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (place, letter) in request.ifr_name.iter_mut().zip(*b"lo") {
        *place = letter.cast_signed();
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING).try_into().expect("both flags are small");
    // SAFETY: the request reads one such structure from the address.
    let result = unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    if result == 0 { Ok(()) } else { Err(last_error()) }
}

fn last_error() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::INVAL)
}

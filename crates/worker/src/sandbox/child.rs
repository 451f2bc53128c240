//! A process that the supervisor forks from itself and reaps: the shell or the file helper.
//!
//! Forked, not started from the executable again: the copy shares the supervisor's memory until either writes to it,
//! and begins at once. What it inherits is what the supervisor holds, which is nothing but this session's own.

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, WaitOptions, WaitStatus};

use super::system::{self, Fork, close_from};

#[derive(Debug)]
pub(crate) struct Child {
    pid: Pid,
    process: OwnedFd,
}

/// The three standard descriptors of a child.
pub(crate) struct Standard {
    pub input: OwnedFd,
    pub output: OwnedFd,
    pub error: OwnedFd,
}

impl Child {
    /// Starts a copy of this process that has no descriptors but `standard`, runs `main` and exits with its result.
    pub(crate) fn fork(standard: Standard, main: impl FnOnce() -> i32) -> Result<Self, Errno> {
        match system::fork()? {
            Fork::Child => {
                let code = match standard.take_over() {
                    Ok(()) => main(),
                    Err(_) => 2,
                };
                std::process::exit(code)
            }
            Fork::Parent(pid) => Ok(Self { pid, process: rustix::process::pidfd_open(pid, PidfdFlags::empty())? }),
        }
    }

    pub(crate) fn pid(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    /// Readable once the process has ended.
    pub(crate) fn ended(&self) -> BorrowedFd<'_> {
        self.process.as_fd()
    }

    /// The exit code, or 128 and the signal, once the process has ended; reaps it.
    pub(crate) fn try_wait(&self) -> Option<i32> {
        let (_, status) = rustix::process::waitpid(Some(self.pid), WaitOptions::NOHANG).ok()??;
        Some(exit_code(status))
    }
}

impl Standard {
    fn take_over(self) -> Result<(), Errno> {
        rustix::stdio::dup2_stdin(&self.input)?;
        rustix::stdio::dup2_stdout(&self.output)?;
        rustix::stdio::dup2_stderr(&self.error)?;
        // Their numbers are above those of standard descriptors and go with all others that the supervisor holds.
        std::mem::forget(self);
        close_from(3)
    }
}

/// How a process ended, in the way shells tell it.
pub(crate) fn exit_code(status: WaitStatus) -> i32 {
    status.exit_status().unwrap_or_else(|| 128 + status.terminating_signal().unwrap_or(0))
}

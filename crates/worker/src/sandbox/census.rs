//! How many processes a session has, how much memory they hold and how much CPU time they took.
//!
//! Limits of the kernel by user are of no use: sessions share a user, and root is exempt. Instead every call that
//! would start a process or thread waits for the supervisor ([`Census::admit`]), which refuses it at the limit as
//! the kernel would (EAGAIN). That also stops a fork bomb in its tracks while it is being killed, because nobody
//! answers then. Memory and CPU time, and processes where confinement is off, are counted from time to time ([`Census::look`]).

use rustix::io::Errno;
use std::time::{Duration, Instant};

use super::config::Limits;
use super::descendants;
use super::system::{self, Answer};

/// How often, at least, the session's own processes are counted, which walks `/proc`.
const COUNT_EVERY: Duration = Duration::from_millis(500);
/// So many new processes on the host since the last count are reason to count now.
const GROWTH_SUSPICIOUS: u16 = 32;
/// A session at its limit is not counted again for each further attempt.
const FULL_FOR: Duration = Duration::from_millis(100);

/// Admitted ones that a count does not see yet are not counted twice by ending the session for them.
const ADMITTED_UNSEEN_MAX: usize = 32;

/// The calls that start processes and threads; `clone3` is unknown in a sandbox.
pub(crate) const CAUGHT: &[libc::c_long] = &[
    libc::SYS_clone,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_fork,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_vfork,
];

pub(crate) struct Census {
    limits: Limits,
    /// At least as many as there are: the last count and what was admitted since.
    threads_at_most: usize,
    full_until: Option<Instant>,
    /// Whether there are processes besides the shell and the file helper.
    pub has_company: bool,
    last_count: Option<Instant>,
    host_processes: u16,
    /// CPU time of what an earlier shell left.
    reaped_before: u64,
}

impl Census {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self {
            limits: limits.clone(),
            threads_at_most: limits.processes_max,
            full_until: None,
            has_company: false,
            last_count: None,
            host_processes: 0,
            reaped_before: reaped_cpu_seconds(),
        }
    }

    /// Decides about one more process or thread.
    pub(crate) fn admit(&mut self) -> Answer {
        let is_full = |census: &Self| census.threads_at_most >= census.limits.processes_max;
        if is_full(self) {
            let now = Instant::now();
            if self.full_until.is_some_and(|until| now < until) {
                return Answer::Refused(Errno::AGAIN);
            }
            match descendants::list() {
                Ok(found) => self.threads_at_most = found.iter().map(|process| process.threads).sum(),
                Err(_) => return Answer::Refused(Errno::AGAIN),
            }
            if is_full(self) {
                self.full_until = Some(now + FULL_FOR);
                return Answer::Refused(Errno::AGAIN);
            }
            self.full_until = None;
        }
        self.threads_at_most += 1;
        Answer::GoOn
    }

    /// CPU time of those that ended and were waited for, by this process, since the shell started.
    fn reaped_cpu_seconds(&self) -> u64 {
        reaped_cpu_seconds().saturating_sub(self.reaped_before)
    }

    pub(crate) fn look_soon(&mut self) {
        self.last_count = None;
        self.has_company = true;
    }

    /// Counts if it is time to, reaps orphans, and says which limit is exceeded. `kept` are the shell and the helper.
    /// While a command runs it may have started others since the last count.
    pub(crate) fn look(&mut self, kept: &[i32], is_running: bool) -> Option<String> {
        if !self.has_company && !is_running {
            return None;
        }
        let host_processes = rustix::system::sysinfo().procs;
        let growth = host_processes.wrapping_sub(self.host_processes);
        let is_due = self.last_count.is_none_or(|last| last.elapsed() >= COUNT_EVERY);
        let is_suspicious = (GROWTH_SUSPICIOUS..u16::MAX / 2).contains(&growth);
        if !is_due && !is_suspicious {
            return None;
        }
        self.last_count = Some(Instant::now());
        self.host_processes = host_processes;
        let mut found = descendants::list().ok()?;
        descendants::reap_orphans(&mut found, kept);
        self.has_company = found.iter().any(|process| !kept.contains(&process.pid));
        self.threads_at_most = found.iter().map(|process| process.threads).sum();
        let limits = &self.limits;
        if self.threads_at_most > limits.processes_max.saturating_add(ADMITTED_UNSEEN_MAX) {
            return Some(format!("more than {} processes", limits.processes_max));
        }
        let pages: u64 = found.iter().map(|process| process.resident_pages).sum();
        let bytes = pages.saturating_mul(rustix::param::page_size() as u64);
        if bytes > limits.memory_bytes_max {
            return Some(format!("more than {} bytes of memory", limits.memory_bytes_max));
        }
        let ticks: u64 = found.iter().map(|process| process.cpu_ticks).sum();
        let seconds = ticks / rustix::param::clock_ticks_per_second() + self.reaped_cpu_seconds();
        (seconds > limits.cpu_seconds_max).then(|| format!("more than {} seconds of CPU time", limits.cpu_seconds_max))
    }
}

fn reaped_cpu_seconds() -> u64 {
    system::reaped_cpu_time().as_secs()
}

//! Dying on purpose: a log that ends the process at a chosen append, so that tests can restart from every step.
//!
//! `AGENT_FAILPOINT=append:3:before` ends the process in place of the third append since its start,
//! `append:3:after` right after that append has committed and before anybody hears of it. The process gets SIGKILL
//! from itself: nothing is flushed, no destructor runs. It is compiled into every build so that the tests run what
//! is shipped; without the variable nothing is wrapped. The crash tests in `tests/acceptance` are its only user.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use engine::port::{
    Append, AppendError, Appended, EventLog, ListEvents, ListSessions, Loaded, StoreError, StoredRecord,
};
use session::id::SessionId;
use session::{State, Timestamp};

/// The variable that sets a failpoint.
pub const VARIABLE: &str = "AGENT_FAILPOINT";

/// Where the process is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failpoint {
    /// Counted from 1 since the start of the process.
    append: u64,
    side: Side,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Before,
    After,
}

/// The text does not name a failpoint.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{VARIABLE} must read append:N:before or append:N:after with N from 1, not {0:?}")]
pub struct UnknownFailpoint(String);

impl std::str::FromStr for Failpoint {
    type Err = UnknownFailpoint;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let unknown = || UnknownFailpoint(text.to_owned());
        let (append, side) = text.strip_prefix("append:").and_then(|rest| rest.split_once(':')).ok_or_else(unknown)?;
        let append = append.parse().ok().filter(|append| *append > 0).ok_or_else(unknown)?;
        let side = match side {
            "before" => Side::Before,
            "after" => Side::After,
            _ => return Err(unknown()),
        };
        Ok(Self { append, side })
    }
}

/// `log`, or a log that ends the process where [`VARIABLE`] says.
pub fn install(log: Arc<dyn EventLog>) -> Result<Arc<dyn EventLog>, UnknownFailpoint> {
    let Ok(text) = std::env::var(VARIABLE) else { return Ok(log) };
    let failpoint = text.parse()?;
    tracing::warn!(failpoint = text, "this process will end itself at a chosen append");
    Ok(Arc::new(FailingLog { log, failpoint, appends: AtomicU64::new(0) }))
}

struct FailingLog {
    log: Arc<dyn EventLog>,
    failpoint: Failpoint,
    appends: AtomicU64,
}

/// Ends the process as the kernel would: nothing is caught, flushed or said.
fn kill_self() -> ! {
    let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    std::process::abort()
}

#[async_trait]
impl EventLog for FailingLog {
    async fn append(&self, append: Append) -> Result<Appended, AppendError> {
        let append_number = self.appends.fetch_add(1, Ordering::SeqCst) + 1;
        let side = (append_number == self.failpoint.append).then_some(self.failpoint.side);
        if side == Some(Side::Before) {
            kill_self();
        }
        let outcome = self.log.append(append).await;
        if side == Some(Side::After) {
            kill_self();
        }
        outcome
    }

    async fn load(&self, session_id: &SessionId) -> Result<Option<Loaded>, StoreError> {
        self.log.load(session_id).await
    }

    async fn read(&self, session_id: &SessionId, after: u64, limit: usize) -> Result<Vec<StoredRecord>, StoreError> {
        self.log.read(session_id, after, limit).await
    }

    async fn list(&self, list: &ListEvents) -> Result<Vec<StoredRecord>, StoreError> {
        self.log.list(list).await
    }

    async fn list_sessions(&self, list: &ListSessions) -> Result<Vec<State>, StoreError> {
        self.log.list_sessions(list).await
    }

    async fn positions(&self, sessions: &[SessionId]) -> Result<Vec<(SessionId, u64)>, StoreError> {
        self.log.positions(sessions).await
    }

    async fn purge(&self, before: Timestamp, limit: usize) -> Result<usize, StoreError> {
        self.log.purge(before, limit).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failpoint_names_append_and_side() {
        assert_eq!("append:3:before".parse(), Ok(Failpoint { append: 3, side: Side::Before }));
        assert_eq!("append:12:after".parse(), Ok(Failpoint { append: 12, side: Side::After }));
    }

    #[test]
    fn anything_else_is_refused_by_name() {
        for text in ["", "append", "append:0:before", "append:x:after", "append:1:during", "read:1:before"] {
            assert_eq!(text.parse::<Failpoint>(), Err(UnknownFailpoint(text.to_owned())), "{text}");
        }
    }
}

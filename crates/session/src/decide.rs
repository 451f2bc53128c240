//! placeholder
use crate::command::Command;
use crate::event::Record;
use crate::id::Ids;
use crate::state::State;
use crate::time::Timestamp;

/// What a command does: the records to append, and the state after them.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    pub records: Vec<Record>,
    pub state: State,
    /// For each client event of the command, in order, the position of the record that stores it.
    /// A repeated answer has the position of the first one, which may lie before `records`.
    pub posted: Vec<u64>,
}

/// Bounds that an operator sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Size of the context, in tokens, at which it is summarised before the next request.
    pub compact_at_tokens: u64,
    /// Attempts at one model request before the turn fails.
    pub model_attempts: u32,
    /// Model requests in one turn.
    pub requests_per_turn: u32,
    /// Takeovers from dead owners in a row before the turn fails.
    pub takeovers: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self { compact_at_tokens: 150_000, model_attempts: 5, requests_per_turn: 500, takeovers: 3 }
    }
}

/// Why a command does nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The request is wrong, or wrong in this state (HTTP 400).
    #[error("{message}")]
    Invalid { message: String, code: Option<&'static str> },
    /// The request contradicts what already happened (HTTP 409, not to be retried).
    #[error("{message}")]
    Conflict { message: String },
    /// The session is gone (HTTP 404).
    #[error("session {0} does not exist")]
    Gone(crate::id::SessionId),
    /// An owner's command that the log has overtaken; look at what is due again.
    #[error("no longer due")]
    Overtaken,
}

/// What `command` does to the session `state`, or `None` before its first command.
pub fn decide(
    state: Option<&State>,
    command: Command,
    limits: &Limits,
    now: Timestamp,
    ids: &mut Ids,
) -> Result<Decision, Refusal> {
    let _ = (state, command, limits, now, ids);
    Err(Refusal::Overtaken)
}

//! What a process tells of its work: the hooks behind the metrics.
//!
//! The engine says what happened, once, where it was done; names, labels and buckets are the server's.

use session::event::{Event, ModelUsage, SessionError, SessionErrorKind, TurnOutcome};
use session::{State, Timestamp};

use crate::port::{Cap, StoredRecord};

/// Why a session changed owners in mid-turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HandOver {
    /// Its owner was told to stop.
    Drain,
    /// Its owner died.
    Crash,
}

/// How a turn ended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TurnEnd<'a> {
    /// The name of the session's agent.
    pub agent: &'a str,
    pub outcome: TurnOutcome,
    pub duration_seconds: f64,
    /// Model requests answered.
    pub requests: u32,
    /// For a turn that failed.
    pub failure: Option<Failure>,
}

/// What a turn failed by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Its model: errors that outlasted every retry, or answers that came to no end.
    Model,
    /// The cap of its session's API key.
    Cap,
    /// Its owners: one after the other was lost.
    Owners,
}

/// How a model request ended.
#[derive(Clone, Debug, PartialEq)]
pub struct RequestEnd<'a> {
    pub model: &'a str,
    pub usage: ModelUsage,
    pub duration_seconds: f64,
    /// To the first sign of the answer, where there was one before the whole.
    pub first_chunk_seconds: Option<f64>,
    pub error: Option<SessionErrorKind>,
}

/// A tool call that ended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CallEnd<'a> {
    pub tool: &'a str,
    pub outcome: ToolOutcome,
    /// Since it was started, or since the model asked for it where nobody says when it was started.
    pub duration_seconds: f64,
}

/// How a tool call ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToolOutcome {
    Succeeded,
    Failed,
}

/// What came of asking a cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheOutcome {
    Hit,
    Miss,
    /// It did not answer in time, or was not asked because it has just failed to.
    Error,
}

/// What the settlement of a model request in the ledger goes by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Basis {
    /// What the provider says it used.
    Usage,
    /// Its reservation: nobody knows what it used.
    Estimate,
    /// It is known that nothing was generated.
    Nothing,
}

/// Hears of what this process does. Methods are called from many tasks and must return at once.
pub trait Observer: Send + Sync + 'static {
    /// How many sessions this process drives now.
    fn active(&self, sessions: usize) {
        let _ = sessions;
    }

    fn session_created(&self) {}

    /// An append of this process opened a turn.
    fn turn_started(&self) {}

    /// An append of this process ended a turn.
    fn turn_ended(&self, end: &TurnEnd<'_>) {
        let _ = end;
    }

    /// Seconds from the start of a turn to the first text of its first answer.
    fn time_to_first_token(&self, seconds: f64) {
        let _ = seconds;
    }

    fn model_request_ended(&self, end: &RequestEnd<'_>) {
        let _ = end;
    }

    fn tool_call_ended(&self, end: &CallEnd<'_>) {
        let _ = end;
    }

    /// A model request of a capped key was settled.
    fn request_settled(&self, basis: Basis) {
        let _ = basis;
    }

    /// A model request did not fit under its key's cap.
    fn cap_refused(&self, cap: Cap) {
        let _ = cap;
    }

    /// A claiming pass stopped at the limit of sessions held.
    fn admission_cut_short(&self) {}

    /// Turns were found that nobody drove and nothing would have woken.
    fn turns_lost(&self, turns: usize) {
        let _ = turns;
    }

    /// A session in mid-turn was let go.
    fn handed_over(&self, reason: HandOver) {
        let _ = reason;
    }

    /// A session in mid-turn was taken from another owner.
    fn resumed(&self, reason: HandOver) {
        let _ = reason;
    }

    /// Something was asked of a cache. `op` is one of few names that the code gives.
    fn cache_request(&self, op: &'static str, outcome: CacheOutcome, duration_seconds: f64) {
        let _ = (op, outcome, duration_seconds);
    }

    /// A driver met its own fault: a panic, or a record that cannot be read.
    fn driver_failed(&self) {}

    fn draining(&self) {}

    /// The drain is over.
    fn drained(&self, seconds: f64) {
        let _ = seconds;
    }
}

/// Hears nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Observer for Silent {}

/// Tells of the turns that an append of this process opened and ended.
pub(crate) fn observe_turns(observer: &dyn Observer, before: Option<&State>, after: &State, appended: &[StoredRecord]) {
    let mut started_at: Option<Timestamp> = before.and_then(|state| state.turn.as_ref()).map(|turn| turn.started_at);
    let mut requests = before.and_then(|state| state.turn.as_ref()).map_or(0, |turn| turn.requests);
    let (mut request_ended, mut failure) = (false, None);
    for stored in appended {
        match &stored.record.event {
            Event::Created(_) => observer.session_created(),
            Event::ModelRequestEnd { is_error, .. } => {
                request_ended = true;
                requests += u32::from(!is_error);
            }
            Event::Error { error, .. } => failure = Some(failure_of(error, request_ended)),
            Event::TurnEnded { outcome } => {
                let duration_seconds = started_at.take().map_or(0.0, |start| stored.record.at.seconds_since(start));
                let failure = failure.take().filter(|_| *outcome == TurnOutcome::Failed);
                let agent = after.agent.name.as_str();
                observer.turn_ended(&TurnEnd { agent, outcome: *outcome, duration_seconds, requests, failure });
                requests = 0;
            }
            _ => {}
        }
    }
    let ended = appended.iter().any(|stored| matches!(stored.record.event, Event::TurnEnded { .. }));
    let had_turn = before.is_some_and(|state| state.turn.is_some()) && !ended;
    if after.turn.is_some() && !had_turn {
        observer.turn_started();
    }
}

/// What an error that ends a turn says of the cause. Providers, too, send bills: theirs end a request.
fn failure_of(error: &SessionError, request_ended: bool) -> Failure {
    match error.kind {
        SessionErrorKind::Billing if !request_ended => Failure::Cap,
        SessionErrorKind::Unknown => Failure::Owners,
        _ => Failure::Model,
    }
}

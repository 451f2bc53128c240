//! placeholder
use crate::event::Record;
use crate::state::State;

/// Changes `state` by what happened. `None` is the session before its first record.
pub fn apply(state: Option<State>, record: &Record) -> Option<State> {
    let _ = record;
    state
}

/// The state after `records`, from `state` on.
pub fn fold<'r>(state: Option<State>, records: impl IntoIterator<Item = &'r Record>) -> Option<State> {
    records.into_iter().fold(state, apply)
}

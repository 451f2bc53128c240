//! What the world owes a session now.

use crate::id::EventId;
use crate::state::{OpenRequest, State, Status};
use crate::time::Timestamp;

/// One thing that the owner of a session has to see to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Work {
    /// Record the intent of a model request (`Command::BeginModelRequest`), then make it.
    BeginModelRequest,
    /// A model request is open. Its own driver goes on with it; any other owner settles it as lost.
    AwaitModel(OpenRequest),
    /// Abort what runs, then `Command::ApplyInterrupt`.
    ApplyInterrupt,
    /// A failed request waits: `Command::Resume` at this time.
    Resume { at: Timestamp },
    /// These calls wait for a worker: see that the session has a work item.
    AwaitWorker { calls: Vec<EventId> },
}

/// Everything due, the most urgent first. Nothing due means that the session can be released.
///
/// Calls that wait for a client are not work: they wait as rows, for months if need be.
pub fn due(state: &State, now: Timestamp) -> Vec<Work> {
    let mut work = Vec::new();
    if state.deleted || matches!(state.status, Status::Terminated) {
        return work;
    }
    if state.interrupt.is_some() {
        work.push(Work::ApplyInterrupt);
        return work;
    }
    let Some(turn) = &state.turn else {
        return work;
    };
    if let Some(request) = &turn.request {
        work.push(Work::AwaitModel(request.clone()));
    } else if let Some(at) = turn.retry_at {
        work.push(Work::Resume { at: at.max(now) });
    } else if matches!(state.status, Status::Running) {
        if state.open_calls().next().is_none() {
            work.push(Work::BeginModelRequest);
        } else {
            let calls: Vec<EventId> = state.runnable_calls().map(|call| call.id.clone()).collect();
            if !calls.is_empty() {
                work.push(Work::AwaitWorker { calls });
            }
        }
    }
    work
}

//! What an append does besides recording: whether the session must be woken, and what becomes of its work item.
//!
//! Both are read from the states before and after, so every path that appends agrees on them.

use session::command::{ClientEvent, Command, Poster};

use session::event::EnvironmentKind;
use session::state::Status;
use session::{Ids, State, Timestamp, Work, due};

use crate::port::{KeyLimits, WorkChange};

/// Whether a replica has something to do for the session now.
pub(crate) fn due_now(state: &State, now: Timestamp) -> bool {
    match due(state, now).first() {
        None => false,
        Some(Work::Resume { at }) => *at <= now,
        Some(_) => true,
    }
}

/// What becomes of the session's work item.
pub(crate) fn work_change(command: &Command, before: Option<&State>, after: &State, ids: &mut Ids) -> WorkChange {
    if is_over(after) {
        return if before.is_some_and(is_over) { WorkChange::None } else { WorkChange::Stop };
    }
    let asked = after.environment_kind == EnvironmentKind::SelfHosted && starts_self_hosted_work(command);
    if asked || has_newly_runnable(before, after) {
        return WorkChange::Ensure { work_id: ids.next() };
    }
    WorkChange::None
}

/// Whether the session's item must go on when its lease ends.
pub(crate) fn wants_worker(state: &State) -> bool {
    !is_over(state)
        && (state.environment_kind == EnvironmentKind::SelfHosted || state.runnable_calls().next().is_some())
}

/// How many other sessions of the session's key may run, where the command has the session run by an application's
/// wish. Whatever stops work, and what a worker brings to a turn that was let in, is never held back.
pub(crate) fn running_max(limits: &KeyLimits, command: &Command, before: Option<&State>, after: &State) -> Option<u32> {
    let asks = match command {
        Command::Create { .. } => true,
        Command::Post { events, poster: Poster::Application } => {
            events.iter().any(|event| !matches!(event, ClientEvent::Interrupt { .. }))
        }
        _ => false,
    };
    let starts = is_running(after) && !before.is_some_and(is_running);
    limits.concurrent_sessions.filter(|_| asks && starts)
}

fn is_running(state: &State) -> bool {
    matches!(state.status, Status::Running | Status::Rescheduling)
}

/// Whether nothing will happen in the session any more.
fn is_over(state: &State) -> bool {
    state.deleted || state.status == Status::Terminated
}

/// A worker of a self-hosted environment is called for at creation and for whatever a client starts.
fn starts_self_hosted_work(command: &Command) -> bool {
    match command {
        Command::Create { .. } => true,
        Command::Post { events, .. } => events.iter().any(|event| {
            matches!(
                event,
                ClientEvent::Message { .. } | ClientEvent::Interrupt { .. } | ClientEvent::ToolConfirmation { .. }
            )
        }),
        _ => false,
    }
}

/// Whether some call may run now that could not before.
fn has_newly_runnable(before: Option<&State>, after: &State) -> bool {
    after
        .runnable_calls()
        .any(|call| !before.is_some_and(|before| before.runnable_calls().any(|earlier| earlier.id == call.id)))
}

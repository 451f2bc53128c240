//! What a client's own worker is shown, and may therefore have begun.
//!
//! Our workers say when they start a call ([`super::internal`]); the official one just runs what it reads. So before a
//! call that is free to run, or the confirmation that frees one, leaves under the credential of such a worker, a record
//! says so. When its lease ends, what was never shown is the next worker's, and the rest is reported as interrupted.
//!
//! Only these readers pay for it, and only for these events: one append for all calls that are about to be shown.

use engine::CommandError;
use engine::port::{Fence, StoredRecord};
use session::event::{Confirmation, EnvironmentKind, EvaluatedPermission, Event};
use session::id::{EventId, SessionId, WorkId};
use session::{Command, State, toolset};

use super::Service;
use super::auth::{self, Caller};
use super::error::ApiError;

/// A reader who may run what it is shown.
#[derive(Clone, Debug)]
pub(super) struct Exposure {
    /// The item that it holds; an environment key does not tell.
    work_id: Option<WorkId>,
    /// Shows nothing more to a holder whose token has ended.
    fence: Fence,
}

impl Exposure {
    /// `None` for applications, and for our own workers.
    pub(super) fn to(caller: &Caller) -> Option<Self> {
        match caller {
            Caller::EnvironmentWorker { .. } => Some(Self { work_id: None, fence: Fence::Client }),
            Caller::ItemHolder { item, token_hash } if item.environment_kind == EnvironmentKind::SelfHosted => {
                let fence = Fence::ItemToken { work_id: item.id.clone(), token_hash: token_hash.clone() };
                Some(Self { work_id: Some(item.id.clone()), fence })
            }
            Caller::ItemHolder { .. } | Caller::Application { .. } | Caller::PoolWorker | Caller::FormerHolder => None,
        }
    }

    /// Records what of the list `shown` may be run once it has been read. `state` is the session as it was before the
    /// list was read from the log: of what had happened by then, it tells what is still open.
    pub(super) async fn record_listed(
        &self,
        service: &Service,
        state: &State,
        shown: &[StoredRecord],
    ) -> Result<(), ApiError> {
        let is_open =
            |call: &EventId| state.runnable_calls().any(|open| open.id == *call && !open.exposed && !open.read_only);
        let calls = shown
            .iter()
            .filter_map(|stored| Some((stored.record.position, freed_by(stored)?)))
            .filter(|(position, call)| *position > state.position || is_open(call))
            .map(|(_, call)| call.clone())
            .collect();
        match self.record(service, &state.session_id, calls).await {
            Err(CommandError::TokenEnded) => Err(auth::former_holder()),
            recorded => Ok(recorded?),
        }
    }

    /// Records that `calls` may have been begun, if they are still open.
    pub(super) async fn record(
        &self,
        service: &Service,
        session_id: &SessionId,
        calls: Vec<EventId>,
    ) -> Result<(), CommandError> {
        if calls.is_empty() {
            return Ok(());
        }
        let command = Command::Expose { calls, work_id: self.work_id.clone() };
        service.sessions.command(session_id, command, self.fence.clone()).await.map(drop)
    }
}

/// The call that may be run by whoever sees this record. Calls that only read are run again without harm.
pub(super) fn freed_by(stored: &StoredRecord) -> Option<&EventId> {
    match &stored.record.event {
        Event::AgentToolUse { id, name, evaluated_permission: EvaluatedPermission::Allow, .. } => {
            (!toolset::is_read_only(name)).then_some(id)
        }
        Event::UserToolConfirmation { tool_use_id, result: Confirmation::Allow, .. } => Some(tool_use_id),
        _ => None,
    }
}

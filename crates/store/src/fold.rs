//! The state of a session from its snapshot and the records behind it.

use engine::port::{EventLog, StoreError};
use session::State;
use session::id::SessionId;

/// How many records are read at a time.
const PAGE_RECORDS: usize = 1000;

/// The state at `position` or later: `snapshot` with what lies behind it, or all records when there is none to read.
///
/// Every append writes a snapshot, so there is a tail only after a build that could not read the newest one wrote an
/// older one, or none.
pub(crate) async fn fold_to(
    log: &dyn EventLog,
    session_id: &SessionId,
    snapshot: Option<State>,
    position: u64,
) -> Result<State, StoreError> {
    let mut state = snapshot;
    loop {
        let folded = state.as_ref().map_or(0, |state| state.position);
        if folded >= position {
            break;
        }
        let tail = log.read(session_id, folded, PAGE_RECORDS).await?;
        let advanced = session::fold(state, tail.iter().map(|stored| &stored.record));
        if tail.is_empty() || advanced.is_none() {
            return Err(StoreError::Corrupt(format!(
                "session {session_id} has no records from {folded} to {position}"
            )));
        }
        state = advanced;
    }
    state.ok_or_else(|| StoreError::Corrupt(format!("session {session_id} has a row and no records")))
}

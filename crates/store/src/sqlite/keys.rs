//! What API keys may use, in SQLite. There is one writer, so that nothing changes between a look and a write.

use engine::port::AppendError;
use sqlx::query_scalar;

use super::Connection;
use crate::failure::store_error;
use crate::row::SessionColumns;

/// Refuses to have the session run beside as many others of its key.
pub(super) async fn admit(connection: &mut Connection, session: &SessionColumns, max: u32) -> Result<(), AppendError> {
    let Some(key) = key_of(connection, session).await? else { return Ok(()) };
    let running: i64 = query_scalar(
        "SELECT COUNT(*) FROM sessions WHERE api_key_id = ? AND status IN ('running', 'rescheduling') AND id <> ?",
    )
    .bind(key)
    .bind(&session.id)
    .fetch_one(connection)
    .await
    .map_err(store_error)?;
    if running < i64::from(max) { Ok(()) } else { Err(AppendError::TooManyRunning(max)) }
}

/// The key that created the session, or is about to.
async fn key_of(connection: &mut Connection, session: &SessionColumns) -> Result<Option<String>, AppendError> {
    if session.creates() {
        return Ok(session.api_key_id.clone());
    }
    let key: Option<Option<String>> = query_scalar("SELECT api_key_id FROM sessions WHERE id = ?")
        .bind(&session.id)
        .fetch_optional(connection)
        .await
        .map_err(store_error)?;
    Ok(key.flatten())
}

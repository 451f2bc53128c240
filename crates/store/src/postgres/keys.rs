//! What API keys may use, in PostgreSQL.

use engine::port::AppendError;
use sqlx::{query, query_scalar};

use super::log::Connection;
use crate::failure::store_error;
use crate::row::SessionColumns;

/// The class of the advisory locks under which sessions of one key begin to run one after the other. The locks of
/// replicas are of the other kind, of one number.
const START_LOCK: i32 = 0x73_74_72_74;

/// Refuses to have the session run beside as many others of its key.
///
/// The lock is held until the transaction ends, and the sessions are counted by a statement that begins when it is
/// held: whoever came before is seen. Only starts of sessions wait for each other, and only where there is a limit.
pub(super) async fn admit(connection: &mut Connection, session: &SessionColumns, max: u32) -> Result<(), AppendError> {
    let Some(key) = key_of(connection, session).await? else { return Ok(()) };
    query("SELECT pg_advisory_xact_lock($1, hashtext($2))")
        .bind(START_LOCK)
        .bind(&key)
        .execute(&mut *connection)
        .await
        .map_err(store_error)?;
    let running: i64 = query_scalar(
        "SELECT COUNT(*) FROM (\
            SELECT 1 FROM sessions WHERE api_key_id = $1 AND status IN ('running', 'rescheduling') AND id <> $2 \
            LIMIT $3) AS others",
    )
    .bind(key)
    .bind(&session.id)
    .bind(i64::from(max))
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
    let key: Option<Option<String>> = query_scalar("SELECT api_key_id FROM sessions WHERE id = $1")
        .bind(&session.id)
        .fetch_optional(connection)
        .await
        .map_err(store_error)?;
    Ok(key.flatten())
}

//! References of sessions to chunks, in PostgreSQL.

use async_trait::async_trait;
use engine::port::{AppendError, BlobHash, Chunks, StoreError};
use session::id::{SessionId, WorkId};
use sqlx::{query, query_scalar};
use std::collections::BTreeSet;

use super::{PostgresStore, bounded, findable, now};
use crate::failure::store_error;

#[async_trait]
impl Chunks for PostgresStore {
    async fn refer(
        &self,
        session_id: &SessionId,
        work_id: &WorkId,
        token_hash: &str,
        hash: &BlobHash,
    ) -> Result<(), AppendError> {
        bounded(async {
            // The lock keeps the token until the reference is committed.
            let referred = query(concat!(
                "WITH token AS (SELECT id FROM work_items WHERE id = $3 AND session_id = $1 AND token_hash = $4 \
                    FOR SHARE), \
                kept AS (UPDATE blobs SET touched_at = ",
                now!(),
                " WHERE hash = $2 AND EXISTS (SELECT 1 FROM token) RETURNING touched_at) \
                INSERT INTO session_chunks (session_id, hash, referred_at) SELECT $1, $2, touched_at FROM kept \
                ON CONFLICT (session_id, hash) DO UPDATE SET referred_at = EXCLUDED.referred_at"
            ))
            .bind(findable(session_id.as_str()))
            .bind(hash.as_str())
            .bind(findable(work_id.as_str()))
            .bind(findable(token_hash))
            .execute(&self.pool)
            .await
            .map_err(store_error)?;
            if referred.rows_affected() > 0 {
                return Ok(());
            }
            let is_held: bool = query_scalar(
                "SELECT EXISTS (SELECT 1 FROM work_items WHERE id = $1 AND session_id = $2 AND token_hash = $3)",
            )
            .bind(findable(work_id.as_str()))
            .bind(findable(session_id.as_str()))
            .bind(findable(token_hash))
            .fetch_one(&self.pool)
            .await
            .map_err(store_error)?;
            Err(if is_held { AppendError::Conflict } else { AppendError::TokenEnded })
        })
        .await
    }

    async fn missing(&self, session_id: &SessionId, hashes: &[BlobHash]) -> Result<Vec<BlobHash>, StoreError> {
        bounded(async {
            let asked: Vec<&str> = hashes.iter().map(BlobHash::as_str).collect();
            let found: Vec<String> =
                query_scalar("SELECT hash FROM session_chunks WHERE session_id = $1 AND hash = ANY($2)")
                    .bind(findable(session_id.as_str()))
                    .bind(asked)
                    .fetch_all(&self.pool)
                    .await
                    .map_err(store_error)?;
            let found: BTreeSet<String> = found.into_iter().collect();
            Ok(hashes.iter().filter(|hash| !found.contains(hash.as_str())).cloned().collect())
        })
        .await
    }

    async fn forget(&self, session_id: &SessionId, keep: &[BlobHash], older_than_ms: i64) -> Result<usize, StoreError> {
        bounded(async {
            let keep: Vec<&str> = keep.iter().map(BlobHash::as_str).collect();
            let gone: i64 = query_scalar(concat!(
                "WITH gone AS (DELETE FROM session_chunks WHERE session_id = $1 AND referred_at < ",
                now!(),
                " - $2 AND NOT hash = ANY($3) RETURNING hash), \
                touched AS (UPDATE blobs SET touched_at = ",
                now!(),
                " WHERE hash IN (SELECT hash FROM gone)) \
                SELECT COUNT(*) FROM gone"
            ))
            .bind(findable(session_id.as_str()))
            .bind(older_than_ms * 1_000)
            .bind(keep)
            .fetch_one(&self.pool)
            .await
            .map_err(store_error)?;
            Ok(usize::try_from(gone).unwrap_or_default())
        })
        .await
    }
}

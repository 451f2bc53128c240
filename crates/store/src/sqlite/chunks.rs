//! References of sessions to chunks, in SQLite.

use async_trait::async_trait;
use engine::port::{AppendError, BlobHash, Chunks, StoreError};
use session::id::{SessionId, WorkId};
use sqlx::{query, query_scalar};
use std::collections::BTreeSet;

use super::{SqliteStore, blobs, work_queue};
use crate::failure::store_error;
use crate::row;

#[async_trait]
impl Chunks for SqliteStore {
    async fn refer(
        &self,
        session_id: &SessionId,
        work_id: &WorkId,
        token_hash: &str,
        hash: &BlobHash,
    ) -> Result<(), AppendError> {
        let (session_id, work_id) = (session_id.clone(), work_id.clone());
        let (token_hash, hash) = (token_hash.to_owned(), hash.clone());
        let now = self.now();
        let is_refusal: fn(&AppendError) -> bool = |error| !matches!(error, AppendError::Store(_));
        self.writer
            .write_checked(
                move |connection| {
                    Box::pin(async move {
                        work_queue::check_token(connection, &work_id, session_id.as_str(), &token_hash).await?;
                        if !blobs::are_there(connection, std::iter::once(hash.as_str())).await? {
                            return Err(AppendError::Conflict);
                        }
                        query(
                            "INSERT INTO session_chunks (session_id, hash, referred_at) VALUES (?1, ?2, ?3) \
                             ON CONFLICT (session_id, hash) DO UPDATE SET referred_at = ?3",
                        )
                        .bind(session_id.as_str())
                        .bind(hash.as_str())
                        .bind(now)
                        .execute(connection)
                        .await
                        .map_err(store_error)?;
                        Ok(())
                    })
                },
                Some(is_refusal),
            )
            .await
    }

    async fn missing(&self, session_id: &SessionId, hashes: &[BlobHash]) -> Result<Vec<BlobHash>, StoreError> {
        let asked: Vec<&str> = hashes.iter().map(BlobHash::as_str).collect();
        let found: Vec<String> = query_scalar(
            "SELECT hash FROM session_chunks WHERE session_id = ? AND hash IN (SELECT value FROM json_each(?))",
        )
        .bind(session_id.as_str())
        .bind(row::to_json(&asked)?)
        .fetch_all(&self.readers)
        .await
        .map_err(store_error)?;
        let found: BTreeSet<String> = found.into_iter().collect();
        Ok(hashes.iter().filter(|hash| !found.contains(hash.as_str())).cloned().collect())
    }

    async fn forget(&self, session_id: &SessionId, keep: &[BlobHash], older_than_ms: i64) -> Result<usize, StoreError> {
        let session_id = session_id.clone();
        let keep: Vec<&str> = keep.iter().map(BlobHash::as_str).collect();
        let keep = row::to_json(&keep)?;
        let now = self.now();
        let before = now - older_than_ms * 1_000;
        self.writer
            .write(move |connection| {
                Box::pin(async move {
                    let gone: Vec<String> = query_scalar(
                        "DELETE FROM session_chunks WHERE session_id = ? AND referred_at < ? \
                         AND hash NOT IN (SELECT value FROM json_each(?)) RETURNING hash",
                    )
                    .bind(session_id.as_str())
                    .bind(before)
                    .bind(keep)
                    .fetch_all(&mut *connection)
                    .await
                    .map_err(store_error)?;
                    query("UPDATE blobs SET touched_at = ? WHERE hash IN (SELECT value FROM json_each(?))")
                        .bind(now)
                        .bind(row::to_json(&gone)?)
                        .execute(connection)
                        .await
                        .map_err(store_error)?;
                    Ok(gone.len())
                })
            })
            .await
    }
}

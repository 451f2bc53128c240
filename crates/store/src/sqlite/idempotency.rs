//! Kept answers in SQLite. There is one writer, so that twins come one after the other.

use async_trait::async_trait;
use engine::port::idempotency::KEPT_MS;
use engine::port::{Answer, Idempotency, Keep, KeepError, Kept, KeyUsed, KeyedRequest, StoreError};
use sqlx::query;

use super::{Connection, SqliteStore};
use crate::failure::store_error;
use crate::row::{self, row_limit};

const KEPT_MICROS: i64 = KEPT_MS * 1_000;

#[async_trait]
impl Idempotency for SqliteStore {
    async fn kept(&self, credential_hash: &str, key: &str) -> Result<Option<Kept>, StoreError> {
        let found = query("SELECT * FROM idempotency_keys WHERE credential_hash = ? AND key = ? AND created_at > ?")
            .bind(credential_hash)
            .bind(key)
            .bind(self.now() - KEPT_MICROS)
            .fetch_optional(&self.readers)
            .await
            .map_err(store_error)?;
        found.as_ref().map(row::kept).transpose()
    }

    async fn keep(&self, kept: &Kept) -> Result<(), KeepError> {
        let (kept, now) = (kept.clone(), self.now());
        self.writer
            .write(move |connection| {
                Box::pin(async move { insert(connection, &kept.request, &kept.answer, now).await })
            })
            .await
    }

    async fn purge_kept(&self, limit: usize) -> Result<usize, StoreError> {
        let before = self.now() - KEPT_MICROS;
        self.writer
            .write(move |connection| {
                Box::pin(async move {
                    let done = query(
                        "DELETE FROM idempotency_keys WHERE rowid IN (\
                         SELECT rowid FROM idempotency_keys WHERE created_at <= ? ORDER BY created_at LIMIT ?)",
                    )
                    .bind(before)
                    .bind(row_limit(limit))
                    .execute(connection)
                    .await
                    .map_err(store_error)?;
                    Ok(usize::try_from(done.rows_affected()).unwrap_or(usize::MAX))
                })
            })
            .await
    }
}

/// Takes the key, before anything else is written.
pub(super) async fn begin<T>(connection: &mut Connection, keep: Option<&Keep<T>>, now: i64) -> Result<(), KeepError> {
    let Some(keep) = keep else { return Ok(()) };
    insert(connection, &keep.request, &Answer { status: 0, body: String::new() }, now).await
}

/// Puts the answer to what was written under the key.
pub(super) async fn finish<T>(
    connection: &mut Connection,
    keep: Option<Keep<T>>,
    written: &T,
) -> Result<(), StoreError> {
    let Some(Kept { request, answer }) = keep.map(|keep| keep.kept(written)) else { return Ok(()) };
    query("UPDATE idempotency_keys SET status = ?, body = ? WHERE credential_hash = ? AND key = ?")
        .bind(i64::from(answer.status))
        .bind(answer.body)
        .bind(request.credential_hash)
        .bind(request.key)
        .execute(connection)
        .await
        .map_err(store_error)?;
    Ok(())
}

/// Takes the key for this transaction.
pub(super) async fn insert(
    connection: &mut Connection,
    request: &KeyedRequest,
    answer: &Answer,
    now: i64,
) -> Result<(), KeepError> {
    let done = query(
        "INSERT INTO idempotency_keys (credential_hash, key, method, path, body_hash, status, body, created_at) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8) \
         ON CONFLICT (credential_hash, key) DO UPDATE SET method = ?3, path = ?4, body_hash = ?5, status = ?6, \
         body = ?7, created_at = ?8 WHERE created_at <= ?8 - ?9",
    )
    .bind(&request.credential_hash)
    .bind(&request.key)
    .bind(&request.method)
    .bind(&request.path)
    .bind(&request.body_hash)
    .bind(i64::from(answer.status))
    .bind(&answer.body)
    .bind(now)
    .bind(KEPT_MICROS)
    .execute(connection)
    .await
    .map_err(store_error)?;
    if done.rows_affected() == 0 { Err(KeyUsed.into()) } else { Ok(()) }
}

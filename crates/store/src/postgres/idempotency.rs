//! Kept answers in PostgreSQL.
//!
//! The insert of a key waits for a transaction that inserted the same one, and then either finds its row or is first.

use async_trait::async_trait;
use engine::port::idempotency::KEPT_MS;
use engine::port::{Answer, Idempotency, Keep, KeepError, Kept, KeyUsed, KeyedRequest, StoreError};
use sqlx::{Postgres, query, query_scalar};

use super::log::Connection;
use super::{PostgresStore, bounded, findable, now};
use crate::connections::{Lent, Transaction};
use crate::failure::store_error;
use crate::row::{self, row_limit};

const KEPT_MICROS: i64 = KEPT_MS * 1_000;

#[async_trait]
impl Idempotency for PostgresStore {
    async fn kept(&self, credential_hash: &str, key: &str) -> Result<Option<Kept>, StoreError> {
        bounded(async {
            let found = query(concat!(
                "SELECT * FROM idempotency_keys WHERE credential_hash = $1 AND key = $2 AND created_at > ",
                now!(),
                " - $3"
            ))
            .bind(findable(credential_hash))
            .bind(findable(key))
            .bind(KEPT_MICROS)
            .fetch_optional(&self.pool)
            .await
            .map_err(store_error)?;
            found.as_ref().map(row::kept).transpose()
        })
        .await
    }

    async fn keep(&self, kept: &Kept) -> Result<(), KeepError> {
        bounded(async {
            let mut connection = self.pool.lend().await.map_err(store_error)?;
            insert(&mut connection, &kept.request, &kept.answer).await?;
            connection.done();
            Ok(())
        })
        .await
    }

    async fn purge_kept(&self, limit: usize) -> Result<usize, StoreError> {
        bounded(async {
            let gone: i64 = query_scalar(concat!(
                "WITH gone AS (DELETE FROM idempotency_keys WHERE (credential_hash, key) IN (\
                     SELECT credential_hash, key FROM idempotency_keys WHERE created_at <= ",
                now!(),
                " - $1 ORDER BY created_at LIMIT $2 FOR UPDATE SKIP LOCKED) RETURNING 1) SELECT COUNT(*) FROM gone"
            ))
            .bind(KEPT_MICROS)
            .bind(row_limit(limit))
            .fetch_one(&self.pool)
            .await
            .map_err(store_error)?;
            Ok(usize::try_from(gone).unwrap_or_default())
        })
        .await
    }
}

/// A write of one statement or more, which may keep an answer: then it is a transaction that begins with the key.
pub(super) enum Writing<'c, T> {
    Plain(Lent<'c, Postgres>),
    Keyed(Transaction<'c, Postgres>, Keep<T>),
}

impl PostgresStore {
    /// Begins a write. What is not finished is undone, if it has a key.
    pub(super) async fn writing<T>(&self, keep: Option<Keep<T>>) -> Result<Writing<'_, T>, KeepError> {
        let Some(keep) = keep else {
            return Ok(Writing::Plain(self.pool.lend().await.map_err(store_error)?));
        };
        let mut transaction = self.pool.begin().await.map_err(store_error)?;
        begin(&mut transaction, Some(&keep)).await?;
        Ok(Writing::Keyed(transaction, keep))
    }
}

impl<T> Writing<'_, T> {
    pub(super) fn connection(&mut self) -> &mut Connection {
        match self {
            Self::Plain(connection) => connection,
            Self::Keyed(transaction, _) => transaction,
        }
    }

    /// Keeps the answer to what was written.
    pub(super) async fn finish(self, written: &T) -> Result<(), StoreError> {
        let (mut transaction, keep) = match self {
            Self::Plain(connection) => {
                connection.done();
                return Ok(());
            }
            Self::Keyed(transaction, keep) => (transaction, keep),
        };
        finish(&mut transaction, Some(keep), written).await?;
        transaction.commit().await.map_err(store_error)
    }
}

/// Takes the key, before anything else is written.
pub(super) async fn begin<T>(connection: &mut Connection, keep: Option<&Keep<T>>) -> Result<(), KeepError> {
    let Some(keep) = keep else { return Ok(()) };
    insert(connection, &keep.request, &Answer { status: 0, body: String::new() }).await
}

/// Puts the answer to what was written under the key.
pub(super) async fn finish<T>(
    connection: &mut Connection,
    keep: Option<Keep<T>>,
    written: &T,
) -> Result<(), StoreError> {
    let Some(Kept { request, answer }) = keep.map(|keep| keep.kept(written)) else { return Ok(()) };
    fill(connection, request, answer).await
}

/// Puts the answer under a key that this transaction has taken.
pub(super) async fn fill(connection: &mut Connection, request: KeyedRequest, answer: Answer) -> Result<(), StoreError> {
    query("UPDATE idempotency_keys SET status = $3, body = $4 WHERE credential_hash = $1 AND key = $2")
        .bind(request.credential_hash)
        .bind(request.key)
        .bind(i64::from(answer.status))
        .bind(answer.body)
        .execute(connection)
        .await
        .map_err(store_error)?;
    Ok(())
}

/// Takes the key for this transaction; waits for a twin that has it.
pub(super) async fn insert(
    connection: &mut Connection,
    request: &KeyedRequest,
    answer: &Answer,
) -> Result<(), KeepError> {
    let done = query(concat!(
        "INSERT INTO idempotency_keys (credential_hash, key, method, path, body_hash, status, body, created_at) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, ",
        now!(),
        ") ON CONFLICT (credential_hash, key) DO UPDATE SET method = EXCLUDED.method, path = EXCLUDED.path, \
         body_hash = EXCLUDED.body_hash, status = EXCLUDED.status, body = EXCLUDED.body, \
         created_at = EXCLUDED.created_at WHERE idempotency_keys.created_at <= EXCLUDED.created_at - $8"
    ))
    .bind(&request.credential_hash)
    .bind(&request.key)
    .bind(&request.method)
    .bind(&request.path)
    .bind(&request.body_hash)
    .bind(i64::from(answer.status))
    .bind(&answer.body)
    .bind(KEPT_MICROS)
    .execute(connection)
    .await
    .map_err(store_error)?;
    if done.rows_affected() == 0 { Err(KeyUsed.into()) } else { Ok(()) }
}

//! The ledger in SQLite. There is one writer, so that what was looked at is still so when it is written.

use async_trait::async_trait;
use engine::port::ledger::{Amount, Caps, DAY_MICROS, KeyUsage, LEDGER_DAYS, Ledger, LedgerChange};
use engine::port::{AppendError, StoreError};
use session::id::ApiKeyId;
use sqlx::query;
use sqlx::sqlite::SqliteExecutor;

use super::{Connection, SqliteStore};
use crate::failure::store_error;
use crate::row::{self, Columns as _, integer};

#[async_trait]
impl Ledger for SqliteStore {
    async fn key_usage(&self, key: &ApiKeyId) -> Result<KeyUsage, StoreError> {
        usage(&self.readers, key.as_str(), day(self.now())).await
    }
}

/// Refuses a reservation that does not fit, before anything is written.
pub(super) async fn check(
    connection: &mut Connection,
    session_id: &str,
    amount: Amount,
    caps: &Caps,
    now: i64,
) -> Result<(), AppendError> {
    let found = query("SELECT api_key_id FROM sessions WHERE id = ?")
        .bind(session_id)
        .fetch_optional(&mut *connection)
        .await
        .map_err(store_error)?;
    let Some(key) = found.map(|found| found.text_or_null("api_key_id")).transpose()?.flatten() else { return Ok(()) };
    let usage = usage(connection, &key, day(now)).await?;
    Ok(caps.check(usage.settled.plus(usage.reserved), amount)?)
}

/// Does what an append asks whose reservation was checked.
pub(super) async fn change(
    connection: &mut Connection,
    session_id: &str,
    change: &LedgerChange,
    now: i64,
) -> Result<(), AppendError> {
    match change {
        LedgerChange::None => Ok(()),
        LedgerChange::Reserve { request_id, amount, .. } => {
            settle_session(connection, session_id).await?;
            query(
                "INSERT INTO open_reservations (request_id, session_id, api_key_id, day, tokens, micro_usd) \
                 SELECT ?, id, api_key_id, ?, ?, ? FROM sessions WHERE id = ? AND api_key_id IS NOT NULL",
            )
            .bind(request_id.as_str())
            .bind(day(now))
            .bind(integer(amount.tokens))
            .bind(integer(amount.micro_usd))
            .bind(session_id)
            .execute(connection)
            .await
            .map_err(store_error)?;
            Ok(())
        }
        LedgerChange::Settle { request_id, spent } => {
            let gone =
                "DELETE FROM open_reservations WHERE request_id = ? RETURNING api_key_id, day, tokens, micro_usd";
            settle(connection, gone, request_id.as_str(), *spent).await
        }
    }
}

/// Settles in full whatever the session has open.
pub(super) async fn settle_session(connection: &mut Connection, session_id: &str) -> Result<(), AppendError> {
    let gone = "DELETE FROM open_reservations WHERE session_id = ? RETURNING api_key_id, day, tokens, micro_usd";
    settle(connection, gone, session_id, None).await
}

async fn settle(
    connection: &mut Connection,
    gone: &'static str,
    id: &str,
    spent: Option<Amount>,
) -> Result<(), AppendError> {
    for gone in query(gone).bind(id).fetch_all(&mut *connection).await.map_err(store_error)? {
        let reserved = row::amount(&gone, "tokens", "micro_usd")?;
        let settled = spent.unwrap_or(reserved);
        let estimated = if spent.is_none() { reserved } else { Amount::default() };
        query(
            "INSERT INTO key_usage (api_key_id, day, shard, tokens, micro_usd, estimated_tokens, estimated_micro_usd) \
             VALUES (?, ?, 0, ?, ?, ?, ?) ON CONFLICT (api_key_id, day, shard) DO UPDATE SET \
             tokens = tokens + excluded.tokens, micro_usd = micro_usd + excluded.micro_usd, \
             estimated_tokens = estimated_tokens + excluded.estimated_tokens, \
             estimated_micro_usd = estimated_micro_usd + excluded.estimated_micro_usd",
        )
        .bind(gone.text("api_key_id")?)
        .bind(gone.integer("day")?)
        .bind(integer(settled.tokens))
        .bind(integer(settled.micro_usd))
        .bind(integer(estimated.tokens))
        .bind(integer(estimated.micro_usd))
        .execute(&mut *connection)
        .await
        .map_err(store_error)?;
    }
    Ok(())
}

/// Removes the ledgers of days that nobody asks about any more, with what an older build left open then.
pub(super) async fn purge(connection: &mut Connection, now: i64) -> Result<(), StoreError> {
    for statement in ["DELETE FROM key_usage WHERE day < ?", "DELETE FROM open_reservations WHERE day < ?"] {
        query(statement).bind(day(now) - LEDGER_DAYS).execute(&mut *connection).await.map_err(store_error)?;
    }
    Ok(())
}

async fn usage(executor: impl SqliteExecutor<'_>, key: &str, day: i64) -> Result<KeyUsage, StoreError> {
    let found = query(
        "SELECT COALESCE(SUM(tokens), 0) AS tokens, COALESCE(SUM(micro_usd), 0) AS micro_usd, \
            COALESCE(SUM(estimated_tokens), 0) AS estimated_tokens, \
            COALESCE(SUM(estimated_micro_usd), 0) AS estimated_micro_usd, \
            COALESCE(SUM(reserved_tokens), 0) AS reserved_tokens, \
            COALESCE(SUM(reserved_micro_usd), 0) AS reserved_micro_usd, COALESCE(SUM(open), 0) AS open_requests FROM (\
            SELECT tokens, micro_usd, estimated_tokens, estimated_micro_usd, 0 AS reserved_tokens, \
                0 AS reserved_micro_usd, 0 AS open FROM key_usage WHERE api_key_id = ?1 AND day = ?2 \
            UNION ALL SELECT 0, 0, 0, 0, tokens, micro_usd, 1 FROM open_reservations \
                WHERE api_key_id = ?1 AND day = ?2)",
    )
    .bind(key)
    .bind(day)
    .fetch_one(executor)
    .await
    .map_err(store_error)?;
    row::key_usage(&found)
}

fn day(now: i64) -> i64 {
    now.div_euclid(DAY_MICROS)
}

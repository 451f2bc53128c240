//! The ledger in PostgreSQL.
//!
//! What is under way are rows that nobody shares, so that reservations of one key do not wait for each other. What is
//! settled lies in [`SHARDS`] rows a key and day, chosen by the session, so that settlements seldom do. The price is
//! slack: reservations that are made at the same moment do not see each other, and together may exceed a cap by what
//! all but one of them hold. Once they are committed they count.
//!
//! Everything here comes after the session's row was moved, and its locks are the last that a transaction takes.

use async_trait::async_trait;
use engine::port::ledger::{Amount, Caps, KeyUsage, LEDGER_DAYS, Ledger, LedgerChange};
use engine::port::{AppendError, StoreError};
use session::id::{ApiKeyId, EventId};
use sqlx::{query, query_scalar};

use super::log::Connection;
use super::{PostgresStore, bounded, findable, now};
use crate::failure::store_error;
use crate::row::{self, SessionColumns, integer};

/// Rows of one key and day.
const SHARDS: i64 = 16;

/// Today, counted from the epoch.
macro_rules! today {
    () => {
        concat!("(", now!(), " / 86400000000)")
    };
}

/// Takes the reservations where $1 is the value of the column away, and adds them to the ledger: at $3 and $4, or
/// in full. $2 is the shard.
macro_rules! settle {
    ($column:literal) => {
        concat!(
            "WITH gone AS (DELETE FROM open_reservations WHERE ",
            $column,
            " = $1 RETURNING api_key_id, day, tokens, micro_usd) \
            INSERT INTO key_usage (api_key_id, day, shard, tokens, micro_usd, estimated_tokens, estimated_micro_usd) \
            SELECT api_key_id, day, $2::bigint, COALESCE($3, SUM(tokens)::bigint), COALESCE($4, SUM(micro_usd)::bigint), \
                CASE WHEN $3::bigint IS NULL THEN SUM(tokens)::bigint ELSE 0 END, \
                CASE WHEN $4::bigint IS NULL THEN SUM(micro_usd)::bigint ELSE 0 END \
            FROM gone GROUP BY api_key_id, day \
            ON CONFLICT (api_key_id, day, shard) DO UPDATE SET \
                tokens = key_usage.tokens + EXCLUDED.tokens, micro_usd = key_usage.micro_usd + EXCLUDED.micro_usd, \
                estimated_tokens = key_usage.estimated_tokens + EXCLUDED.estimated_tokens, \
                estimated_micro_usd = key_usage.estimated_micro_usd + EXCLUDED.estimated_micro_usd"
        )
    };
}

/// What the key $1 has used and reserved today.
const USAGE: &str = concat!(
    "WITH today AS MATERIALIZED (SELECT ",
    today!(),
    " AS day) \
    SELECT COALESCE(SUM(tokens), 0)::bigint AS tokens, COALESCE(SUM(micro_usd), 0)::bigint AS micro_usd, \
        COALESCE(SUM(estimated_tokens), 0)::bigint AS estimated_tokens, \
        COALESCE(SUM(estimated_micro_usd), 0)::bigint AS estimated_micro_usd, \
        COALESCE(SUM(reserved_tokens), 0)::bigint AS reserved_tokens, \
        COALESCE(SUM(reserved_micro_usd), 0)::bigint AS reserved_micro_usd, \
        COALESCE(SUM(open), 0)::bigint AS open_requests FROM (\
        SELECT tokens, micro_usd, estimated_tokens, estimated_micro_usd, 0 AS reserved_tokens, \
            0 AS reserved_micro_usd, 0 AS open \
        FROM key_usage WHERE api_key_id = $1 AND day = (SELECT day FROM today) \
        UNION ALL SELECT 0, 0, 0, 0, tokens, micro_usd, 1 \
        FROM open_reservations WHERE api_key_id = $1 AND day = (SELECT day FROM today)) AS parts"
);

#[async_trait]
impl Ledger for PostgresStore {
    async fn key_usage(&self, key: &ApiKeyId) -> Result<KeyUsage, StoreError> {
        bounded(async {
            let found = query(USAGE).bind(findable(key.as_str())).fetch_one(&self.pool).await.map_err(store_error)?;
            row::key_usage(&found)
        })
        .await
    }
}

/// Does what an append asks, or refuses it.
pub(super) async fn change(
    connection: &mut Connection,
    session: &SessionColumns,
    change: &LedgerChange,
) -> Result<(), AppendError> {
    match change {
        LedgerChange::None => Ok(()),
        LedgerChange::Reserve { request_id, amount, caps } => {
            reserve(connection, session, request_id, *amount, caps).await
        }
        LedgerChange::Settle { request_id, spent } => {
            settle(connection, settle!("request_id"), request_id.as_str(), session, *spent).await
        }
    }
}

async fn reserve(
    connection: &mut Connection,
    session: &SessionColumns,
    request_id: &EventId,
    amount: Amount,
    caps: &Caps,
) -> Result<(), AppendError> {
    let key: Option<Option<String>> = query_scalar("SELECT api_key_id FROM sessions WHERE id = $1")
        .bind(&session.id)
        .fetch_optional(&mut *connection)
        .await
        .map_err(store_error)?;
    let Some(key) = key.flatten() else { return Ok(()) };
    settle_session(connection, session).await?;
    let found = query(USAGE).bind(&key).fetch_one(&mut *connection).await.map_err(store_error)?;
    let usage = row::key_usage(&found)?;
    caps.check(usage.settled.plus(usage.reserved), amount)?;
    query(concat!(
        "INSERT INTO open_reservations (request_id, session_id, api_key_id, day, tokens, micro_usd) \
         VALUES ($1, $2, $3, ",
        today!(),
        ", $4, $5)"
    ))
    .bind(request_id.as_str())
    .bind(&session.id)
    .bind(key)
    .bind(integer(amount.tokens))
    .bind(integer(amount.micro_usd))
    .execute(connection)
    .await
    .map_err(store_error)?;
    Ok(())
}

/// Settles in full whatever the session has open.
pub(super) async fn settle_session(connection: &mut Connection, session: &SessionColumns) -> Result<(), AppendError> {
    settle(connection, settle!("session_id"), &session.id, session, None).await
}

async fn settle(
    connection: &mut Connection,
    statement: &'static str,
    id: &str,
    session: &SessionColumns,
    spent: Option<Amount>,
) -> Result<(), AppendError> {
    query(statement)
        .bind(id)
        .bind(session.split_hash % SHARDS)
        .bind(spent.map(|spent| integer(spent.tokens)))
        .bind(spent.map(|spent| integer(spent.micro_usd)))
        .execute(connection)
        .await
        .map_err(store_error)?;
    Ok(())
}

/// Removes the ledgers of days that nobody asks about any more, with what an older build left open then.
pub(super) async fn purge(store: &PostgresStore) -> Result<(), StoreError> {
    for statement in [
        concat!("DELETE FROM key_usage WHERE day < ", today!(), " - $1"),
        concat!("DELETE FROM open_reservations WHERE day < ", today!(), " - $1"),
    ] {
        query(statement).bind(LEDGER_DAYS).execute(&store.pool).await.map_err(store_error)?;
    }
    Ok(())
}

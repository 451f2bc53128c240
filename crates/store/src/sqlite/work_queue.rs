//! The work queue in SQLite, and what appends do to it.

use std::collections::BTreeMap;

use async_trait::async_trait;
use engine::port::work_queue::{Acknowledged, ExpectedHeartbeat, Heartbeat, Pool, QueueStats};
use engine::port::{After, AppendError, Keep, KeepError, StoreError, WorkItem, WorkQueue};
use session::Timestamp;
use session::id::WorkId;
use sqlx::sqlite::SqliteExecutor;
use sqlx::{query, query_scalar};

use super::{Connection, SqliteStore, idempotency};
use crate::failure::store_error;
use crate::row::{self, SessionColumns, row_limit};
use crate::work::{self, LEASE_TTL_SECONDS, POLL_NOTED_MICROS, POLLING_MICROS};

/// The item `?1` if the pool `?2` may see it.
macro_rules! visible {
    () => {
        "id = ?1 AND CASE WHEN ?2 IS NULL THEN environment_kind = 'cloud' \
         ELSE environment_kind = 'self_hosted' AND environment_id = ?2 END"
    };
}

#[async_trait]
impl WorkQueue for SqliteStore {
    async fn poll(
        &self,
        pool: &Pool,
        worker_id: &str,
        reclaim_older_than_ms: u32,
        token_hash: &str,
    ) -> Result<Option<WorkItem>, StoreError> {
        let (environment, now) = (work::environment_of(pool).map(str::to_owned), self.now());
        let (worker_id, token_hash) = (worker_id.to_owned(), token_hash.to_owned());
        let handed_out_before = now - i64::from(reclaim_older_than_ms) * 1000;
        self.writer
            .write(move |connection| {
                Box::pin(async move {
                    query(
                        "INSERT INTO worker_polls (pool, worker_id, polled_at) VALUES (?1, ?2, ?3) \
                         ON CONFLICT (pool, worker_id) DO UPDATE SET polled_at = ?3 WHERE polled_at < ?3 - ?4",
                    )
                    .bind(environment.as_deref().unwrap_or(work::CLOUD_POOL))
                    .bind(worker_id)
                    .bind(now)
                    .bind(POLL_NOTED_MICROS)
                    .execute(&mut *connection)
                    .await
                    .map_err(store_error)?;
                    let found = query(
                        "UPDATE work_items SET handed_out_at = ?2, token_hash = ?3 WHERE id = (\
                         SELECT id FROM work_items WHERE state = 'queued' AND (handed_out_at IS NULL OR handed_out_at <= ?4) \
                         AND CASE WHEN ?1 IS NULL THEN environment_kind = 'cloud' \
                         ELSE environment_kind = 'self_hosted' AND environment_id = ?1 END \
                         ORDER BY queued_at, id LIMIT 1) RETURNING *",
                    )
                    .bind(environment)
                    .bind(now)
                    .bind(token_hash)
                    .bind(handed_out_before)
                    .fetch_optional(connection)
                    .await
                    .map_err(store_error)?;
                    found.as_ref().map(row::work_item).transpose()
                })
            })
            .await
    }

    async fn acknowledge(
        &self,
        pool: &Pool,
        work_id: &WorkId,
        ttl_seconds: Option<u32>,
    ) -> Result<Acknowledged, StoreError> {
        let (pool, work_id, now) = (pool.clone(), work_id.clone(), self.now());
        self.writer
            .write(move |connection| {
                Box::pin(async move {
                    if item(&mut *connection, &pool, &work_id).await?.is_none() {
                        return Ok(Acknowledged::NotFound);
                    }
                    let found = query(
                        "UPDATE work_items SET state = 'starting', acknowledged_at = ?2, \
                         lease_ttl_seconds = COALESCE(?3, lease_ttl_seconds) \
                         WHERE id = ?1 AND state = 'queued' AND handed_out_at IS NOT NULL RETURNING *",
                    )
                    .bind(work_id.as_str())
                    .bind(now)
                    .bind(work::lease_ttl(ttl_seconds))
                    .fetch_optional(connection)
                    .await
                    .map_err(store_error)?;
                    match found {
                        Some(found) => row::work_item(&found).map(Acknowledged::Yes),
                        None => Ok(Acknowledged::Lost),
                    }
                })
            })
            .await
    }

    async fn heartbeat(
        &self,
        pool: &Pool,
        work_id: &WorkId,
        expected: &ExpectedHeartbeat,
        ttl_seconds: Option<u32>,
    ) -> Result<Heartbeat, StoreError> {
        let (pool, work_id, expected, now) = (pool.clone(), work_id.clone(), expected.clone(), self.now());
        self.writer
            .write(move |connection| {
                Box::pin(async move {
                    let Some(item) = item(&mut *connection, &pool, &work_id).await? else {
                        return Ok(Heartbeat::NotFound);
                    };
                    if let Some(answer) = work::unbeaten(&item, &expected) {
                        return Ok(answer);
                    }
                    let beaten = query(
                        "UPDATE work_items SET state = 'active', started_at = COALESCE(started_at, ?2), \
                         latest_heartbeat_at = MAX(?2, COALESCE(latest_heartbeat_at, acknowledged_at) + 1), \
                         lease_ttl_seconds = COALESCE(?3, lease_ttl_seconds) WHERE id = ?1 RETURNING *",
                    )
                    .bind(work_id.as_str())
                    .bind(now)
                    .bind(work::lease_ttl(ttl_seconds))
                    .fetch_one(connection)
                    .await
                    .map_err(store_error)?;
                    Ok(Heartbeat::Beat { item: row::work_item(&beaten)?, lease_extended: true })
                })
            })
            .await
    }

    async fn ask_to_stop(&self, pool: &Pool, work_id: &WorkId) -> Result<Option<WorkItem>, StoreError> {
        let (pool, work_id, now) = (pool.clone(), work_id.clone(), self.now());
        self.writer
            .write(move |connection| {
                Box::pin(async move {
                    let asked = query(concat!(
                        "UPDATE work_items SET state = 'stopping', stop_requested_at = COALESCE(stop_requested_at, ?3) \
                         WHERE state IN ('starting', 'active', 'stopping') AND ",
                        visible!(),
                        " RETURNING *"
                    ))
                    .bind(work_id.as_str())
                    .bind(work::environment_of(&pool))
                    .bind(now)
                    .fetch_optional(connection)
                    .await
                    .map_err(store_error)?;
                    asked.as_ref().map(row::work_item).transpose()
                })
            })
            .await
    }

    async fn item(&self, pool: &Pool, work_id: &WorkId) -> Result<Option<WorkItem>, StoreError> {
        item(&self.readers, pool, work_id).await
    }

    async fn list_items(&self, pool: &Pool, after: Option<&After>, limit: usize) -> Result<Vec<WorkItem>, StoreError> {
        let rows = query(
            "SELECT * FROM work_items WHERE CASE WHEN ?1 IS NULL THEN environment_kind = 'cloud' \
             ELSE environment_kind = 'self_hosted' AND environment_id = ?1 END \
             AND (?2 IS NULL OR (created_at, id) < (?2, ?3)) ORDER BY created_at DESC, id DESC LIMIT ?4",
        )
        .bind(work::environment_of(pool))
        .bind(after.map(|after| after.created_at.as_micros()))
        .bind(after.map(|after| after.id.as_str()))
        .bind(row_limit(limit))
        .fetch_all(&self.readers)
        .await
        .map_err(store_error)?;
        rows.iter().map(row::work_item).collect()
    }

    async fn set_metadata(
        &self,
        pool: &Pool,
        work_id: &WorkId,
        metadata: &BTreeMap<String, String>,
        keep: Option<Keep<WorkItem>>,
    ) -> Result<Option<WorkItem>, KeepError> {
        let environment = work::environment_of(pool).map(str::to_owned);
        let (work_id, metadata, now) = (work_id.clone(), row::to_json(metadata)?, self.now());
        self.writer
            .write(move |connection| {
                Box::pin(async move {
                    let found =
                        query(concat!("UPDATE work_items SET metadata = ?3 WHERE ", visible!(), " RETURNING *"))
                            .bind(work_id.as_str())
                            .bind(environment)
                            .bind(metadata)
                            .fetch_optional(&mut *connection)
                            .await
                            .map_err(store_error)?;
                    let Some(changed) = found.as_ref().map(row::work_item).transpose()? else { return Ok(None) };
                    idempotency::begin(connection, keep.as_ref(), now).await?;
                    idempotency::finish(connection, keep, &changed).await?;
                    Ok(Some(changed))
                })
            })
            .await
    }

    async fn stats(&self, pool: &Pool) -> Result<QueueStats, StoreError> {
        let environment = work::environment_of(pool);
        let found = query(
            "SELECT COUNT(*) FILTER (WHERE handed_out_at IS NULL) AS depth, \
             COUNT(*) FILTER (WHERE handed_out_at IS NOT NULL) AS pending, MIN(queued_at) AS oldest_queued_at, \
             (SELECT COUNT(*) FROM worker_polls WHERE pool = ?2 AND polled_at >= ?3) AS workers_polling \
             FROM work_items WHERE state = 'queued' AND CASE WHEN ?1 IS NULL THEN environment_kind = 'cloud' \
             ELSE environment_kind = 'self_hosted' AND environment_id = ?1 END",
        )
        .bind(environment)
        .bind(environment.unwrap_or(work::CLOUD_POOL))
        .bind(self.now() - POLLING_MICROS)
        .fetch_one(&self.readers)
        .await
        .map_err(store_error)?;
        work::stats(&found)
    }

    async fn item_by_token(&self, token_hash: &str) -> Result<Option<WorkItem>, StoreError> {
        let found = query("SELECT * FROM work_items WHERE token_hash = ?")
            .bind(token_hash)
            .fetch_optional(&self.readers)
            .await
            .map_err(store_error)?;
        found.as_ref().map(row::work_item).transpose()
    }

    async fn expired(&self, limit: usize) -> Result<Vec<WorkItem>, StoreError> {
        let rows = query(
            "SELECT w.* FROM work_items w LEFT JOIN sessions s ON s.id = w.session_id \
             WHERE w.state IN ('starting', 'active', 'stopping') AND (\
             COALESCE(w.latest_heartbeat_at, w.acknowledged_at) + w.lease_ttl_seconds * 1000000 <= ? \
             OR s.id IS NULL OR s.deleted_at IS NOT NULL OR s.status = 'terminated') \
             ORDER BY COALESCE(w.latest_heartbeat_at, w.acknowledged_at) LIMIT ?",
        )
        .bind(self.now())
        .bind(row_limit(limit))
        .fetch_all(&self.readers)
        .await
        .map_err(store_error)?;
        rows.iter().map(row::work_item).collect()
    }

    async fn held_cloud_items(&self) -> Result<Vec<WorkItem>, StoreError> {
        let rows = query(
            "SELECT * FROM work_items WHERE state IN ('starting', 'active', 'stopping') \
             AND environment_kind = 'cloud' ORDER BY created_at, id",
        )
        .fetch_all(&self.readers)
        .await
        .map_err(store_error)?;
        rows.iter().map(row::work_item).collect()
    }
}

async fn item(
    executor: impl SqliteExecutor<'_>,
    pool: &Pool,
    work_id: &WorkId,
) -> Result<Option<WorkItem>, StoreError> {
    let found = query(concat!("SELECT * FROM work_items WHERE ", visible!()))
        .bind(work_id.as_str())
        .bind(work::environment_of(pool))
        .fetch_optional(executor)
        .await
        .map_err(store_error)?;
    found.as_ref().map(row::work_item).transpose()
}

/// Whether this is the present token of the session's item.
pub(super) async fn check_token(
    connection: &mut Connection,
    work_id: &WorkId,
    session_id: &str,
    token_hash: &str,
) -> Result<(), AppendError> {
    let current: bool =
        query_scalar("SELECT EXISTS (SELECT 1 FROM work_items WHERE id = ? AND session_id = ? AND token_hash = ?)")
            .bind(work_id.as_str())
            .bind(session_id)
            .bind(token_hash)
            .fetch_one(connection)
            .await
            .map_err(store_error)?;
    if current { Ok(()) } else { Err(AppendError::TokenEnded) }
}

/// Queues an item for the session unless it has one that lives; whether it did.
pub(super) async fn ensure(
    connection: &mut Connection,
    work_id: &WorkId,
    session: &SessionColumns,
    now: i64,
) -> Result<bool, StoreError> {
    let done = query(
        "INSERT INTO work_items (id, session_id, environment_id, environment_kind, state, metadata, created_at, \
         queued_at, lease_ttl_seconds) VALUES (?1, ?2, ?3, ?4, 'queued', '{}', ?5, ?5, ?6) \
         ON CONFLICT (session_id) WHERE state <> 'stopped' DO NOTHING",
    )
    .bind(work_id.as_str())
    .bind(&session.id)
    .bind(&session.environment_id)
    .bind(session.environment_kind)
    .bind(now)
    .bind(LEASE_TTL_SECONDS)
    .execute(connection)
    .await
    .map_err(store_error)?;
    Ok(done.rows_affected() == 1)
}

/// Whether the item is held by who was last heard of at `?3`, or by nobody.
macro_rules! is_as_seen {
    () => {
        "CASE WHEN ?3 IS NULL THEN state = 'queued' ELSE state IN ('starting', 'active', 'stopping') \
         AND COALESCE(latest_heartbeat_at, acknowledged_at) = ?3 END"
    };
}

/// Ends the lease that was last heard of at `seen`, or refuses the append.
pub(super) async fn end_lease(
    connection: &mut Connection,
    work_id: &WorkId,
    session_id: &str,
    seen: Option<Timestamp>,
    requeue: bool,
    now: i64,
) -> Result<(), AppendError> {
    let statement = if requeue {
        concat!(
            "UPDATE work_items SET state = 'queued', queued_at = ?4, handed_out_at = NULL, acknowledged_at = NULL, \
         started_at = NULL, latest_heartbeat_at = NULL, stop_requested_at = NULL, token_hash = NULL, \
         lease_ttl_seconds = ?5 \
         WHERE id = ?1 AND session_id = ?2 AND ",
            is_as_seen!()
        )
    } else {
        concat!(
            "UPDATE work_items SET state = 'stopped', stopped_at = ?4, \
         stop_requested_at = COALESCE(stop_requested_at, ?4), latest_heartbeat_at = NULL, token_hash = NULL \
         WHERE id = ?1 AND session_id = ?2 AND ?5 > 0 AND ",
            is_as_seen!()
        )
    };
    let done = query(statement)
        .bind(work_id.as_str())
        .bind(session_id)
        .bind(seen.map(Timestamp::as_micros))
        .bind(now)
        .bind(LEASE_TTL_SECONDS)
        .execute(connection)
        .await
        .map_err(store_error)?;
    if done.rows_affected() == 1 { Ok(()) } else { Err(AppendError::Conflict) }
}

/// The session is over: its item is stopped, or its holder asked to stop.
pub(super) async fn stop_session(connection: &mut Connection, session_id: &str, now: i64) -> Result<(), StoreError> {
    query(
        "UPDATE work_items SET stop_requested_at = COALESCE(stop_requested_at, ?2), \
         stopped_at = CASE WHEN state = 'queued' THEN ?2 END, \
         token_hash = CASE WHEN state <> 'queued' THEN token_hash END, \
         state = CASE WHEN state = 'queued' THEN 'stopped' ELSE 'stopping' END \
         WHERE session_id = ?1 AND state <> 'stopped'",
    )
    .bind(session_id)
    .bind(now)
    .execute(connection)
    .await
    .map_err(store_error)?;
    Ok(())
}

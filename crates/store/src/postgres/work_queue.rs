//! The work queue in PostgreSQL, and what appends do to it.
//!
//! Changes that depend on what an item is go by what was seen: a statement that names the seen state and heartbeat,
//! and another look if they have moved.

use std::collections::BTreeMap;

use async_trait::async_trait;
use engine::port::work_queue::{Acknowledged, ExpectedHeartbeat, Heartbeat, Pool, QueueStats};
use engine::port::{After, Keep, KeepError, StoreError, WorkItem, WorkQueue};
use session::Timestamp;
use session::id::WorkId;
use sqlx::query;

use super::log::Connection;
use super::{PostgresStore, bounded, findable, now};
use crate::failure::store_error;
use crate::row::{self, row_limit};
use crate::work::{self, LEASE_TTL_SECONDS, POLL_NOTED_MICROS, POLLING_MICROS};

/// The items that the pool `$1` may see: those of one environment, or with NULL those of the cloud.
macro_rules! visible {
    () => {
        "CASE WHEN $1::text IS NULL THEN environment_kind = 'cloud' \
         ELSE environment_kind = 'self_hosted' AND environment_id = $1 END"
    };
}

#[async_trait]
impl WorkQueue for PostgresStore {
    async fn poll(
        &self,
        pool: &Pool,
        worker_id: &str,
        reclaim_older_than_ms: u32,
        token_hash: &str,
    ) -> Result<Option<WorkItem>, StoreError> {
        let environment = work::environment_of(pool).map(findable);
        bounded(async {
            let found = query(concat!(
                "WITH clock AS MATERIALIZED (SELECT ",
                now!(),
                " AS now), \
                noted AS (\
                    INSERT INTO worker_polls (pool, worker_id, polled_at) SELECT $2, $3, now FROM clock \
                    ON CONFLICT (pool, worker_id) DO UPDATE SET polled_at = EXCLUDED.polled_at \
                    WHERE worker_polls.polled_at < EXCLUDED.polled_at - $4), \
                oldest AS (\
                    SELECT id AS oldest_id FROM work_items \
                    WHERE state = 'queued' AND (handed_out_at IS NULL OR handed_out_at <= (SELECT now FROM clock) - $5) \
                    AND ",
                visible!(),
                " ORDER BY queued_at, id LIMIT 1 FOR UPDATE SKIP LOCKED) \
                UPDATE work_items SET handed_out_at = clock.now, token_hash = $6 FROM oldest, clock \
                WHERE id = oldest_id RETURNING work_items.*"
            ))
            .bind(environment.as_deref())
            .bind(environment.as_deref().unwrap_or(work::CLOUD_POOL))
            .bind(findable(worker_id))
            .bind(POLL_NOTED_MICROS)
            .bind(i64::from(reclaim_older_than_ms) * 1000)
            .bind(token_hash)
            .fetch_optional(&self.pool)
            .await
            .map_err(store_error)?;
            found.as_ref().map(row::work_item).transpose()
        })
        .await
    }

    async fn acknowledge(
        &self,
        pool: &Pool,
        work_id: &WorkId,
        ttl_seconds: Option<u32>,
    ) -> Result<Acknowledged, StoreError> {
        bounded(async {
            let found = query(concat!(
                "UPDATE work_items SET state = 'starting', acknowledged_at = ",
                now!(),
                ", lease_ttl_seconds = COALESCE($3, lease_ttl_seconds) \
                 WHERE id = $2 AND state = 'queued' AND handed_out_at IS NOT NULL AND ",
                visible!(),
                " RETURNING *"
            ))
            .bind(work::environment_of(pool).map(findable))
            .bind(findable(work_id.as_str()))
            .bind(work::lease_ttl(ttl_seconds))
            .fetch_optional(&self.pool)
            .await
            .map_err(store_error)?;
            match found {
                Some(found) => row::work_item(&found).map(Acknowledged::Yes),
                None if self.seen(pool, work_id).await?.is_some() => Ok(Acknowledged::Lost),
                None => Ok(Acknowledged::NotFound),
            }
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
        bounded(async {
            loop {
                let Some(seen) = self.seen(pool, work_id).await? else {
                    return Ok(Heartbeat::NotFound);
                };
                if let Some(answer) = work::unbeaten(&seen, expected) {
                    return Ok(answer);
                }
                let beaten = query(concat!(
                    "UPDATE work_items SET state = 'active', started_at = COALESCE(started_at, clock.now), \
                     latest_heartbeat_at = GREATEST(clock.now, COALESCE(latest_heartbeat_at, acknowledged_at) + 1), \
                     lease_ttl_seconds = COALESCE($4, lease_ttl_seconds) FROM (SELECT ",
                    now!(),
                    " AS now) AS clock WHERE id = $1 AND state IN ('starting', 'active') \
                     AND acknowledged_at = $2 AND latest_heartbeat_at IS NOT DISTINCT FROM $3 RETURNING work_items.*"
                ))
                .bind(work_id.as_str())
                .bind(seen.acknowledged_at.map(Timestamp::as_micros))
                .bind(seen.latest_heartbeat_at.map(Timestamp::as_micros))
                .bind(work::lease_ttl(ttl_seconds))
                .fetch_optional(&self.pool)
                .await
                .map_err(store_error)?;
                if let Some(beaten) = beaten {
                    return Ok(Heartbeat::Beat { item: row::work_item(&beaten)?, lease_extended: true });
                }
            }
        })
        .await
    }

    async fn ask_to_stop(&self, pool: &Pool, work_id: &WorkId) -> Result<Option<WorkItem>, StoreError> {
        bounded(async {
            let asked = query(concat!(
                "UPDATE work_items SET state = 'stopping', stop_requested_at = COALESCE(stop_requested_at, ",
                now!(),
                ") WHERE id = $2 AND state IN ('starting', 'active', 'stopping') AND ",
                visible!(),
                " RETURNING *"
            ))
            .bind(work::environment_of(pool).map(findable))
            .bind(findable(work_id.as_str()))
            .fetch_optional(&self.pool)
            .await
            .map_err(store_error)?;
            asked.as_ref().map(row::work_item).transpose()
        })
        .await
    }

    async fn item(&self, pool: &Pool, work_id: &WorkId) -> Result<Option<WorkItem>, StoreError> {
        bounded(self.seen(pool, work_id)).await
    }

    async fn list_items(&self, pool: &Pool, after: Option<&After>, limit: usize) -> Result<Vec<WorkItem>, StoreError> {
        bounded(async {
            let rows = query(concat!(
                "SELECT * FROM work_items WHERE ($2::bigint IS NULL OR (created_at, id) < ($2, $3)) AND ",
                visible!(),
                " ORDER BY created_at DESC, id DESC LIMIT $4"
            ))
            .bind(work::environment_of(pool).map(findable))
            .bind(after.map(|after| after.created_at.as_micros()))
            .bind(after.map(|after| findable(&after.id)))
            .bind(row_limit(limit))
            .fetch_all(&self.pool)
            .await
            .map_err(store_error)?;
            rows.iter().map(row::work_item).collect()
        })
        .await
    }

    async fn set_metadata(
        &self,
        pool: &Pool,
        work_id: &WorkId,
        metadata: &BTreeMap<String, String>,
        keep: Option<Keep<WorkItem>>,
    ) -> Result<Option<WorkItem>, KeepError> {
        bounded(async {
            let mut writing = self.writing(keep).await?;
            let found =
                query(concat!("UPDATE work_items SET metadata = $3 WHERE id = $2 AND ", visible!(), " RETURNING *"))
                    .bind(work::environment_of(pool).map(findable))
                    .bind(findable(work_id.as_str()))
                    .bind(row::to_json(metadata)?)
                    .fetch_optional(writing.connection())
                    .await
                    .map_err(store_error)?;
            let Some(changed) = found.as_ref().map(row::work_item).transpose()? else { return Ok(None) };
            writing.finish(&changed).await?;
            Ok(Some(changed))
        })
        .await
    }

    async fn stats(&self, pool: &Pool) -> Result<QueueStats, StoreError> {
        let environment = work::environment_of(pool).map(findable);
        bounded(async {
            let found = query(concat!(
                "SELECT COUNT(*) FILTER (WHERE handed_out_at IS NULL) AS depth, \
                 COUNT(*) FILTER (WHERE handed_out_at IS NOT NULL) AS pending, MIN(queued_at) AS oldest_queued_at, \
                 (SELECT COUNT(*) FROM worker_polls WHERE worker_polls.pool = $2 AND polled_at >= ",
                now!(),
                " - $3) AS workers_polling FROM work_items WHERE state = 'queued' AND ",
                visible!()
            ))
            .bind(environment.as_deref())
            .bind(environment.as_deref().unwrap_or(work::CLOUD_POOL))
            .bind(POLLING_MICROS)
            .fetch_one(&self.pool)
            .await
            .map_err(store_error)?;
            work::stats(&found)
        })
        .await
    }

    async fn item_by_token(&self, token_hash: &str) -> Result<Option<WorkItem>, StoreError> {
        bounded(async {
            let found = query("SELECT * FROM work_items WHERE token_hash = $1")
                .bind(findable(token_hash))
                .fetch_optional(&self.pool)
                .await
                .map_err(store_error)?;
            found.as_ref().map(row::work_item).transpose()
        })
        .await
    }

    async fn expired(&self, limit: usize) -> Result<Vec<WorkItem>, StoreError> {
        bounded(async {
            let rows = query(concat!(
                "SELECT w.* FROM work_items w LEFT JOIN sessions s ON s.id = w.session_id \
                 WHERE w.state IN ('starting', 'active', 'stopping') AND (\
                 COALESCE(w.latest_heartbeat_at, w.acknowledged_at) + w.lease_ttl_seconds * 1000000 <= ",
                now!(),
                " OR s.id IS NULL OR s.deleted_at IS NOT NULL OR s.status = 'terminated') \
                 ORDER BY COALESCE(w.latest_heartbeat_at, w.acknowledged_at) LIMIT $1"
            ))
            .bind(row_limit(limit))
            .fetch_all(&self.pool)
            .await
            .map_err(store_error)?;
            rows.iter().map(row::work_item).collect()
        })
        .await
    }

    async fn held_cloud_items(&self) -> Result<Vec<WorkItem>, StoreError> {
        bounded(async {
            let rows = query(
                "SELECT * FROM work_items WHERE state IN ('starting', 'active', 'stopping') \
                 AND environment_kind = 'cloud' ORDER BY created_at, id",
            )
            .fetch_all(&self.pool)
            .await
            .map_err(store_error)?;
            rows.iter().map(row::work_item).collect()
        })
        .await
    }
}

impl PostgresStore {
    async fn seen(&self, pool: &Pool, work_id: &WorkId) -> Result<Option<WorkItem>, StoreError> {
        let found = query(concat!("SELECT * FROM work_items WHERE id = $2 AND ", visible!()))
            .bind(work::environment_of(pool).map(findable))
            .bind(findable(work_id.as_str()))
            .fetch_optional(&self.pool)
            .await
            .map_err(store_error)?;
        found.as_ref().map(row::work_item).transpose()
    }
}

/// Locks the item if this is its current token.
pub(super) async fn lock_token(
    connection: &mut Connection,
    work_id: &WorkId,
    session_id: &str,
    token_hash: &str,
) -> Result<bool, StoreError> {
    let found = query("SELECT id FROM work_items WHERE id = $1 AND session_id = $2 AND token_hash = $3 FOR UPDATE")
        .bind(findable(work_id.as_str()))
        .bind(session_id)
        .bind(findable(token_hash))
        .fetch_optional(connection)
        .await
        .map_err(store_error)?;
    Ok(found.is_some())
}

/// Whether the item is held by who was last heard of at `$3`, or by nobody.
macro_rules! is_as_seen {
    () => {
        "CASE WHEN $3::BIGINT IS NULL THEN state = 'queued' ELSE state IN ('starting', 'active', 'stopping') \
         AND COALESCE(latest_heartbeat_at, acknowledged_at) = $3 END"
    };
}

/// Ends the lease that was last heard of at `seen`, or the item in the queue; whether it was still that one.
pub(super) async fn end_lease(
    connection: &mut Connection,
    work_id: &WorkId,
    session_id: &str,
    seen: Option<Timestamp>,
    requeue: bool,
) -> Result<bool, StoreError> {
    let statement = if requeue {
        concat!(
            "UPDATE work_items SET state = 'queued', queued_at = ",
            now!(),
            ", handed_out_at = NULL, acknowledged_at = NULL, started_at = NULL, latest_heartbeat_at = NULL, \
             stop_requested_at = NULL, token_hash = NULL, lease_ttl_seconds = $4 \
             WHERE id = $1 AND session_id = $2 AND ",
            is_as_seen!()
        )
    } else {
        concat!(
            "UPDATE work_items SET state = 'stopped', stopped_at = ",
            now!(),
            ", stop_requested_at = COALESCE(stop_requested_at, ",
            now!(),
            "), latest_heartbeat_at = NULL, token_hash = NULL, lease_ttl_seconds = $4 \
             WHERE id = $1 AND session_id = $2 AND ",
            is_as_seen!()
        )
    };
    let done = query(statement)
        .bind(work_id.as_str())
        .bind(session_id)
        .bind(seen.map(Timestamp::as_micros))
        .bind(LEASE_TTL_SECONDS)
        .execute(connection)
        .await
        .map_err(store_error)?;
    Ok(done.rows_affected() == 1)
}

/// The session is over: its item is stopped, or its holder asked to stop.
pub(super) async fn stop_session(connection: &mut Connection, session_id: &str) -> Result<(), StoreError> {
    query(concat!(
        "UPDATE work_items SET stop_requested_at = COALESCE(stop_requested_at, clock.now), \
         stopped_at = CASE WHEN state = 'queued' THEN clock.now END, \
         token_hash = CASE WHEN state <> 'queued' THEN token_hash END, \
         state = CASE WHEN state = 'queued' THEN 'stopped' ELSE 'stopping' END \
         FROM (SELECT ",
        now!(),
        " AS now) AS clock WHERE session_id = $1 AND state <> 'stopped'"
    ))
    .bind(session_id)
    .execute(connection)
    .await
    .map_err(store_error)?;
    Ok(())
}

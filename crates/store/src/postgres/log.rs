//! The event log in PostgreSQL.

use std::collections::BTreeSet;

use async_trait::async_trait;
use engine::port::{
    AfterLease, Append, AppendError, Appended, Claim, EventLog, Fence, LedgerChange, ListEvents, ListSessions, Loaded,
    Order, StoreError, StoredRecord, Wake, WorkChange,
};
use session::id::SessionId;
use session::{State, Timestamp};
use sqlx::postgres::{PgConnection, PgExecutor, PgRow};
use sqlx::{query, query_scalar};

use super::tracks::canary_hashes_below;
use super::{PostgresStore, bounded, findable, idempotency, keys, ledger, now, resources, work_queue};
use crate::body::{Body, RecordRow};
use crate::failure::store_error;
use crate::fold::fold_to;
use crate::row::{self, Columns as _, RecordColumns, SessionColumns, integer, row_limit};
use crate::work::{LEASE_TTL_SECONDS, PRESENCE_KEPT_MICROS};

/// The parameters of both statements that append:
/// $1 session, $2 guard, $3 position, $4 status, $5 agent, $6 its version, $7 environment, $8 created, $9 archived,
/// $10 deleted, $11 snapshot format, $12 snapshot; $13 what to do about the wake-up, $14 replica to claim for,
/// $15 when to wake; $16 owner and $17 epoch that fence, $18 work item and $19 token that fence; $20 item to queue,
/// $21 kind of environment; $22 to $30 the columns of the records; $31 length of a new item's lease; $32 how many
/// blobs the records refer to; $33 hash by which the session belongs to a track, $34 key that creates it. The rows of blobs are touched,
/// not only locked: a collector that looked before the append committed looks again at a row that was changed, and at no
/// other.
macro_rules! append {
    ($moved:literal) => {
        concat!(
            "WITH clock AS MATERIALIZED (SELECT ",
            now!(),
            " AS now), \
            kept AS (UPDATE blobs SET touched_at = clock.now FROM clock WHERE hash = ANY($30) RETURNING hash), \
            admitted AS MATERIALIZED (\
                SELECT r.id FROM replicas r WHERE $13 = 'now' AND r.id = $14 AND (r.track = 'canary') = ($33 < ",
            canary_hashes_below!(),
            ")), ",
            $moved,
            "written AS (\
                INSERT INTO records (session_id, position, form, kind, event_id, refers_to, version, at, body, blob) \
                SELECT $1, r.position, r.form, \
                    COALESCE(r.kind, (SELECT k.kind FROM records k WHERE k.session_id = $1 AND k.position = r.refers_to), \
                        'log.processed'), \
                    r.event_id, r.refers_to, r.version, r.at, r.body, r.blob \
                FROM moved, UNNEST($22::bigint[], $23::text[], $24::text[], $25::text[], $26::bigint[], $27::bigint[], \
                    $28::bigint[], $29::text[], $30::text[]) \
                    AS r(position, form, kind, event_id, refers_to, version, at, body, blob)), \
            queued AS (\
                INSERT INTO work_items (id, session_id, environment_id, environment_kind, state, metadata, created_at, \
                    queued_at, lease_ttl_seconds) \
                SELECT $20, $1, $7, $21, 'queued', '{}', clock.now, clock.now, $31 FROM moved, clock \
                WHERE $20::text IS NOT NULL \
                ON CONFLICT (session_id) WHERE state <> 'stopped' DO NOTHING RETURNING id) \
            SELECT moved.epoch, moved.claimed::int::bigint AS claimed, (SELECT COUNT(*) FROM queued) AS queued \
            FROM moved"
        )
    };
}

/// Moves a session's row on if its guards hold. `claimed` tells whether the claim was free and is now $14's, which it
/// becomes only where the session is of that replica's track.
const MOVE: &str = append!(
    "token AS (SELECT id FROM work_items WHERE id = $18 AND session_id = $1 AND token_hash = $19 FOR SHARE), \
    moved AS (\
        UPDATE sessions SET position = $3, status = $4, agent_id = $5, agent_version = $6, environment_id = $7, \
            created_at = $8, archived_at = $9, deleted_at = $10, \
            snapshot_format = $11, snapshot = $12, \
            split_hash = $33, api_key_id = COALESCE(api_key_id, $34), \
            claimed = owner IS NULL AND EXISTS (SELECT 1 FROM admitted), \
            epoch = epoch + CASE WHEN owner IS NULL AND EXISTS (SELECT 1 FROM admitted) THEN 1 ELSE 0 END, \
            handed_over = CASE WHEN owner IS NULL AND EXISTS (SELECT 1 FROM admitted) THEN 0 ELSE handed_over END, \
            owner = CASE $13 WHEN 'release' THEN NULL WHEN 'now' THEN COALESCE(owner, (SELECT id FROM admitted)) \
                ELSE owner END, \
            wake_at = CASE $13 WHEN 'release' THEN $15 WHEN 'now' THEN LEAST(wake_at, clock.now) ELSE wake_at END \
        FROM clock WHERE sessions.id = $1 AND position = $2 \
            AND ($16::text IS NULL OR (owner = $16 AND epoch = $17)) \
            AND ($18::text IS NULL OR EXISTS (SELECT 1 FROM token)) \
            AND (SELECT COUNT(*) FROM kept) = $32 \
        RETURNING epoch, claimed), "
);

/// Makes a session's row unless it is there.
const CREATE: &str = append!(
    "moved AS (\
        INSERT INTO sessions (id, position, status, agent_id, agent_version, environment_id, created_at, archived_at, \
            deleted_at, snapshot_format, snapshot, split_hash, api_key_id, claimed, epoch, owner, wake_at) \
        SELECT $1, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $33, $34, \
            EXISTS (SELECT 1 FROM admitted), CASE WHEN EXISTS (SELECT 1 FROM admitted) THEN 1 ELSE 0 END, \
            (SELECT id FROM admitted), CASE $13 WHEN 'now' THEN clock.now WHEN 'release' THEN $15 END \
        FROM clock WHERE (SELECT COUNT(*) FROM kept) = $32 \
        ON CONFLICT (id) DO NOTHING RETURNING epoch, claimed), "
);

macro_rules! select_records {
    ($rest:literal) => {
        concat!(
            "SELECT r.position, r.at, r.version, r.body, r.blob, ",
            "q.version AS received_version, q.body AS received_body, q.blob AS received_blob ",
            "FROM records r LEFT JOIN records q ON q.session_id = r.session_id AND q.position = r.refers_to ",
            $rest
        )
    };
}

macro_rules! select_sessions {
    ($rest:literal) => {
        concat!(
            "SELECT id, position, snapshot_format, snapshot FROM sessions WHERE deleted_at IS NULL ",
            "AND ($1::text IS NULL OR agent_id = $1) AND ($2::bigint IS NULL OR agent_version = $2) ",
            "AND created_at >= $3 AND created_at < $4 AND ($5 OR archived_at IS NULL) ",
            "AND ($6::text[] IS NULL OR status = ANY($6)) ",
            $rest
        )
    };
}

#[async_trait]
impl EventLog for PostgresStore {
    async fn append(&self, append: Append) -> Result<Appended, AppendError> {
        let session = SessionColumns::of(&append)?;
        let bodies = self.bodies.write(&append.records).await?;
        bounded(async {
            let fenced_creation = session.creates() && append.fence != Fence::Client;
            let moved = if fenced_creation {
                None
            } else if append.kept.is_none()
                && append.running_max.is_none()
                && append.ledger == LedgerChange::None
                && session.deleted_at.is_none()
                && append.resources.is_empty()
                && matches!(append.work, WorkChange::None | WorkChange::Ensure { .. })
            {
                // The ordinary append is one statement, and so a transaction of its own.
                advance(&self.pool, &append, &append.fence, &session, bodies).await?
            } else {
                // In a box, as what follows a refusal: the ordinary append need not hold what it does not do.
                Box::pin(self.advance_with_side_rows(&append, &session, bodies)).await?
            };
            match moved {
                Some(appended) => Ok(appended),
                None => Err(Box::pin(self.refusal(&append, &session)).await?),
            }
        })
        .await
    }

    async fn load(&self, session_id: &SessionId) -> Result<Option<Loaded>, StoreError> {
        bounded(async {
            let found = query(
                "SELECT position, epoch, owner, handed_over, snapshot_format, snapshot FROM sessions WHERE id = $1",
            )
            .bind(findable(session_id.as_str()))
            .fetch_optional(&self.pool)
            .await
            .map_err(store_error)?;
            let Some(found) = found else { return Ok(None) };
            let state = fold_to(self, session_id, row::snapshot(&found)?, found.counter("position")?).await?;
            row::loaded(&found, state).map(Some)
        })
        .await
    }

    async fn read(&self, session_id: &SessionId, after: u64, limit: usize) -> Result<Vec<StoredRecord>, StoreError> {
        bounded(async {
            let rows =
                query(select_records!("WHERE r.session_id = $1 AND r.position > $2 ORDER BY r.position LIMIT $3"))
                    .bind(findable(session_id.as_str()))
                    .bind(integer(after))
                    .bind(row_limit(limit))
                    .fetch_all(&self.pool)
                    .await
                    .map_err(store_error)?;
            self.records(&rows).await
        })
        .await
    }

    async fn list(&self, list: &ListEvents) -> Result<Vec<StoredRecord>, StoreError> {
        let (statement, start) = match list.order {
            Order::Ascending => (
                select_records!(
                    "WHERE r.session_id = $1 AND r.form = 'final' AND r.position > $2 \
                     AND ($3::text[] IS NULL OR r.kind = ANY($3)) AND r.at >= $4 AND r.at < $5 \
                     ORDER BY r.position LIMIT $6"
                ),
                0,
            ),
            Order::Descending => (
                select_records!(
                    "WHERE r.session_id = $1 AND r.form = 'final' AND r.position < $2 \
                     AND ($3::text[] IS NULL OR r.kind = ANY($3)) AND r.at >= $4 AND r.at < $5 \
                     ORDER BY r.position DESC LIMIT $6"
                ),
                i64::MAX,
            ),
        };
        bounded(async {
            let types: Vec<_> = list.types.iter().map(|kind| findable(kind).into_owned()).collect();
            let rows = query(statement)
                .bind(findable(list.session_id.as_str()))
                .bind(list.after.map_or(start, integer))
                .bind(Some(types).filter(|types| !types.is_empty()))
                .bind(list.processed.from.map_or(i64::MIN, Timestamp::as_micros))
                .bind(list.processed.before.map_or(i64::MAX, Timestamp::as_micros))
                .bind(row_limit(list.limit))
                .fetch_all(&self.pool)
                .await
                .map_err(store_error)?;
            self.records(&rows).await
        })
        .await
    }

    async fn list_sessions(&self, list: &ListSessions) -> Result<Vec<State>, StoreError> {
        let statement = match list.order {
            Order::Ascending => select_sessions!(
                "AND ($7::bigint IS NULL OR (created_at, id) > ($7, $8)) ORDER BY created_at, id LIMIT $9"
            ),
            Order::Descending => select_sessions!(
                "AND ($7::bigint IS NULL OR (created_at, id) < ($7, $8)) ORDER BY created_at DESC, id DESC LIMIT $9"
            ),
        };
        bounded(async {
            let statuses: Vec<&str> = list.statuses.iter().copied().map(row::status).collect();
            let rows = query(statement)
                .bind(list.agent_id.as_ref().map(|id| findable(id.as_str())))
                .bind(list.agent_version.map(i64::from))
                .bind(list.created.from.map_or(i64::MIN, Timestamp::as_micros))
                .bind(list.created.before.map_or(i64::MAX, Timestamp::as_micros))
                .bind(list.include_archived)
                .bind(Some(statuses).filter(|statuses| !statuses.is_empty()))
                .bind(list.after.as_ref().map(|after| after.created_at.as_micros()))
                .bind(list.after.as_ref().map(|after| findable(&after.id)))
                .bind(row_limit(list.limit))
                .fetch_all(&self.pool)
                .await
                .map_err(store_error)?;
            let mut states = Vec::with_capacity(rows.len());
            for found in rows {
                let id = SessionId::from(found.text("id")?);
                states.push(fold_to(self, &id, row::snapshot(&found)?, found.counter("position")?).await?);
            }
            Ok(states)
        })
        .await
    }

    async fn positions(&self, sessions: &[SessionId]) -> Result<Vec<(SessionId, u64)>, StoreError> {
        bounded(async {
            let ids: Vec<_> = sessions.iter().map(|id| findable(id.as_str()).into_owned()).collect();
            let rows = query("SELECT id, position FROM sessions WHERE id = ANY($1)")
                .bind(ids)
                .fetch_all(&self.pool)
                .await
                .map_err(store_error)?;
            rows.iter().map(|row| Ok((row.text("id")?.into(), row.counter("position")?))).collect()
        })
        .await
    }

    async fn purge(&self, before: Timestamp, limit: usize) -> Result<usize, StoreError> {
        bounded(async {
            let sessions: i64 = query_scalar(concat!(
                "WITH gone AS (\
                    DELETE FROM sessions WHERE id IN (\
                        SELECT id FROM sessions WHERE deleted_at < $1 ORDER BY deleted_at LIMIT $2 \
                        FOR UPDATE SKIP LOCKED) \
                    RETURNING id), \
                records_gone AS (DELETE FROM records WHERE session_id IN (SELECT id FROM gone) RETURNING blob), \
                files_gone AS (DELETE FROM files WHERE session_id IN (SELECT id FROM gone) RETURNING blob), \
                resources_gone AS (DELETE FROM session_resources WHERE session_id IN (SELECT id FROM gone)), \
                outputs_gone AS (DELETE FROM session_outputs WHERE session_id IN (SELECT id FROM gone)), \
                chunks_gone AS (\
                    DELETE FROM session_chunks WHERE session_id IN (SELECT id FROM gone) RETURNING hash), \
                touched AS (\
                    UPDATE blobs SET touched_at = ",
                now!(),
                " WHERE hash IN (\
                        SELECT blob FROM records_gone UNION SELECT blob FROM files_gone \
                        UNION SELECT hash FROM chunks_gone)), \
                items_gone AS (DELETE FROM work_items WHERE session_id IN (SELECT id FROM gone)) \
                SELECT COUNT(*) FROM gone",
            ))
            .bind(before.as_micros())
            .bind(row_limit(limit))
            .fetch_one(&self.pool)
            .await
            .map_err(store_error)?;
            for statement in [
                concat!("DELETE FROM worker_polls WHERE polled_at < ", now!(), " - $1"),
                concat!(
                    "DELETE FROM replicas WHERE beat_at < ",
                    now!(),
                    " - $1 AND NOT EXISTS (SELECT 1 FROM sessions WHERE owner = replicas.id)"
                ),
            ] {
                query(statement).bind(PRESENCE_KEPT_MICROS).execute(&self.pool).await.map_err(store_error)?;
            }
            ledger::purge(self).await?;
            Ok(usize::try_from(sessions).unwrap_or_default())
        })
        .await
    }
}

impl PostgresStore {
    /// An append that keeps an answer, ends a lease, stops an item, gives files or takes them, has a session run where
    /// that is limited, or changes the ledger. The key comes before everything else, so that a
    /// twin waits there; the item is locked before the session, as by everybody who locks both.
    async fn advance_with_side_rows(
        &self,
        append: &Append,
        session: &SessionColumns,
        bodies: Vec<Body>,
    ) -> Result<Option<Appended>, AppendError> {
        let mut transaction = self.pool.begin().await.map_err(store_error)?;
        if let Some(kept) = &append.kept {
            idempotency::insert(&mut transaction, &kept.request, &kept.answer).await?;
        }
        // The token is checked before the end of the lease clears it, and then not again.
        let fence = match &append.fence {
            Fence::ItemToken { work_id, token_hash } => {
                if !work_queue::lock_token(&mut transaction, work_id, &session.id, token_hash).await? {
                    return Ok(None);
                }
                &Fence::Client
            }
            fence @ (Fence::Client | Fence::Owner(_)) => fence,
        };
        let requeued = match &append.work {
            WorkChange::EndLease { work_id, seen, then } => {
                let requeue = *then == AfterLease::Requeue;
                if !work_queue::end_lease(&mut transaction, work_id, &session.id, *seen, requeue).await? {
                    return Ok(None);
                }
                requeue
            }
            WorkChange::Stop => {
                work_queue::stop_session(&mut transaction, &session.id).await?;
                false
            }
            WorkChange::None | WorkChange::Ensure { .. } => false,
        };
        if let Some(max) = append.running_max {
            keys::admit(&mut transaction, session, max).await?;
        }
        let Some(moved) = advance(&mut *transaction, append, fence, session, bodies).await? else {
            return Ok(None);
        };
        if !append.resources.is_empty() && !resources::give(&mut transaction, &append.resources).await? {
            return Ok(None);
        }
        ledger::change(&mut transaction, session, &append.ledger).await?;
        if session.deleted_at.is_some() {
            ledger::settle_session(&mut transaction, session).await?;
            resources::remove_files_of(&mut transaction, &session.id).await?;
        }
        transaction.commit().await.map_err(store_error)?;
        Ok(Some(Appended { queued: moved.queued || requeued, ..moved }))
    }

    /// Why an append found nothing to move.
    async fn refusal(&self, append: &Append, session: &SessionColumns) -> Result<AppendError, AppendError> {
        match &append.fence {
            Fence::Client => Ok(AppendError::Conflict),
            Fence::Owner(claim) => {
                let held: bool =
                    query_scalar("SELECT EXISTS (SELECT 1 FROM sessions WHERE id = $1 AND owner = $2 AND epoch = $3)")
                        .bind(&session.id)
                        .bind(claim.replica_id.as_str())
                        .bind(integer(claim.epoch))
                        .fetch_one(&self.pool)
                        .await
                        .map_err(store_error)?;
                Ok(if held { AppendError::Conflict } else { AppendError::Fenced })
            }
            Fence::ItemToken { work_id, token_hash } => {
                let current: bool = query_scalar(
                    "SELECT EXISTS (SELECT 1 FROM work_items WHERE id = $1 AND session_id = $2 AND token_hash = $3)",
                )
                .bind(findable(work_id.as_str()))
                .bind(&session.id)
                .bind(findable(token_hash))
                .fetch_one(&self.pool)
                .await
                .map_err(store_error)?;
                Ok(if current { AppendError::Conflict } else { AppendError::TokenEnded })
            }
        }
    }

    async fn records(&self, rows: &[PgRow]) -> Result<Vec<StoredRecord>, StoreError> {
        let rows = rows.iter().map(RecordRow::of).collect::<Result<_, _>>()?;
        self.bodies.read(rows).await
    }
}

/// Runs the statement of an append behind `fence`; `None` if a guard did not hold.
async fn advance(
    executor: impl PgExecutor<'_>,
    append: &Append,
    fence: &Fence,
    session: &SessionColumns,
    bodies: Vec<Body>,
) -> Result<Option<Appended>, AppendError> {
    let (wake, claim_for, wake_at) = row::wake_columns(&append.wake);
    let (owner, epoch) = row::owner_fence(fence);
    let (work_id, token_hash) = match fence {
        Fence::ItemToken { work_id, token_hash } => (Some(findable(work_id.as_str())), Some(findable(token_hash))),
        Fence::Client | Fence::Owner(_) => (None, None),
    };
    let ensure = match &append.work {
        WorkChange::Ensure { work_id } | WorkChange::EndLease { then: AfterLease::Replace { work_id }, .. } => {
            Some(work_id.as_str())
        }
        _ => None,
    };
    let records = RecordColumns::of(append);
    let count = records.len();
    let mut columns = RecordArrays::with_capacity(count);
    for (record, body) in records.into_iter().zip(bodies) {
        columns.push(record, body);
    }
    let kept: BTreeSet<&String> = columns.blobs.iter().flatten().collect();
    let kept = integer(kept.len() as u64);
    let found = query(if session.creates() { CREATE } else { MOVE })
        .bind(&session.id)
        .bind(session.expected)
        .bind(session.position)
        .bind(session.status)
        .bind(&session.agent_id)
        .bind(session.agent_version)
        .bind(&session.environment_id)
        .bind(session.created_at)
        .bind(session.archived_at)
        .bind(session.deleted_at)
        .bind(session.snapshot_format)
        .bind(&session.snapshot)
        .bind(wake)
        .bind(claim_for)
        .bind(wake_at)
        .bind(owner)
        .bind(epoch)
        .bind(work_id)
        .bind(token_hash)
        .bind(ensure)
        .bind(session.environment_kind)
        .bind(columns.positions)
        .bind(columns.forms)
        .bind(columns.kinds)
        .bind(columns.event_ids)
        .bind(columns.refers_to)
        .bind(columns.versions)
        .bind(columns.at)
        .bind(columns.bodies)
        .bind(columns.blobs)
        .bind(LEASE_TTL_SECONDS)
        .bind(kept)
        .bind(session.split_hash)
        .bind(&session.api_key_id)
        .fetch_optional(executor)
        .await
        .map_err(append_error)?;
    let Some(found) = found else { return Ok(None) };
    let claim = match &append.wake {
        Wake::Now { claim_for: Some(replica_id) } if found.integer("claimed")? != 0 => Some(Claim {
            session_id: append.state.session_id.clone(),
            replica_id: replica_id.clone(),
            epoch: found.counter("epoch")?,
        }),
        _ => None,
    };
    Ok(Some(Appended { claim, queued: found.integer("queued")? > 0 }))
}

/// A transaction that the database gave up for another one's sake has met somebody who was first.
fn append_error(error: sqlx::Error) -> AppendError {
    let code = error.as_database_error().and_then(|said| said.code().map(|code| code.into_owned()));
    match code.as_deref() {
        Some("40001" | "40P01") => AppendError::Conflict,
        _ => store_error(error).into(),
    }
}

/// The records of an append, column by column.
#[derive(Default)]
struct RecordArrays {
    positions: Vec<i64>,
    forms: Vec<&'static str>,
    kinds: Vec<Option<&'static str>>,
    event_ids: Vec<Option<String>>,
    refers_to: Vec<Option<i64>>,
    versions: Vec<i64>,
    at: Vec<i64>,
    bodies: Vec<Option<String>>,
    blobs: Vec<Option<String>>,
}

impl RecordArrays {
    fn with_capacity(count: usize) -> Self {
        Self {
            positions: Vec::with_capacity(count),
            forms: Vec::with_capacity(count),
            kinds: Vec::with_capacity(count),
            event_ids: Vec::with_capacity(count),
            refers_to: Vec::with_capacity(count),
            versions: Vec::with_capacity(count),
            at: Vec::with_capacity(count),
            bodies: Vec::with_capacity(count),
            blobs: Vec::with_capacity(count),
        }
    }

    fn push(&mut self, record: RecordColumns, body: Body) {
        self.positions.push(record.position);
        self.forms.push(record.form);
        self.kinds.push(record.kind);
        self.event_ids.push(record.event_id);
        self.refers_to.push(record.refers_to);
        self.versions.push(body.version);
        self.at.push(record.at);
        self.bodies.push(body.text);
        self.blobs.push(body.blob);
    }
}

/// The connection of a transaction.
pub(super) type Connection = PgConnection;

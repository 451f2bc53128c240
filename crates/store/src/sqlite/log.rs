//! The event log in SQLite.

use async_trait::async_trait;
use engine::port::{
    AfterLease, Append, AppendError, Appended, Claim, EventLog, Fence, LedgerChange, ListEvents, ListSessions, Loaded,
    Order, StoreError, StoredRecord, Wake, WorkChange,
};
use futures::TryStreamExt as _;
use session::id::SessionId;
use session::{State, Timestamp};
use sqlx::{query, query_scalar};

use super::{Connection, SqliteStore, blobs, idempotency, keys, ledger, resources, work_queue};
use crate::body::{Body, RecordRow};
use crate::failure::store_error;
use crate::fold::fold_to;
use crate::row::{self, Columns as _, RecordColumns, SessionColumns, integer, row_limit};
use crate::work::PRESENCE_KEPT_MICROS;

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

#[async_trait]
impl EventLog for SqliteStore {
    async fn append(&self, append: Append) -> Result<Appended, AppendError> {
        let session = SessionColumns::of(&append)?;
        let records = RecordColumns::of(&append);
        let now = self.now();
        let bodies = self.bodies.write(&append.records).await?;
        // The end of a lease may be refused after the session has moved on, a resource when it is there, and an answer
        // is kept before the guards are looked at; everything else looks first.
        let is_refusal: Option<fn(&AppendError) -> bool> = match append.work {
            _ if append.kept.is_some() || !append.resources.is_empty() => None,
            WorkChange::EndLease { .. } => None,
            _ => Some(|error| !matches!(error, AppendError::Store(_))),
        };
        self.writer
            .write_checked(
                move |connection| {
                    Box::pin(async move { write(connection, &append, &session, &records, &bodies, now).await })
                },
                is_refusal,
            )
            .await
    }

    async fn load(&self, session_id: &SessionId) -> Result<Option<Loaded>, StoreError> {
        let found =
            query("SELECT position, epoch, owner, handed_over, snapshot_format, snapshot FROM sessions WHERE id = ?")
                .bind(session_id.as_str())
                .fetch_optional(&self.readers)
                .await
                .map_err(store_error)?;
        let Some(found) = found else { return Ok(None) };
        let state = fold_to(self, session_id, row::snapshot(&found)?, found.counter("position")?).await?;
        row::loaded(&found, state).map(Some)
    }

    async fn read(&self, session_id: &SessionId, after: u64, limit: usize) -> Result<Vec<StoredRecord>, StoreError> {
        let rows = query(select_records!("WHERE r.session_id = ? AND r.position > ? ORDER BY r.position LIMIT ?"))
            .bind(session_id.as_str())
            .bind(integer(after))
            .bind(row_limit(limit))
            .fetch(&self.readers)
            .map_err(store_error)
            .and_then(async |row| RecordRow::of(&row))
            .try_collect()
            .await?;
        self.bodies.read(rows).await
    }

    async fn list(&self, list: &ListEvents) -> Result<Vec<StoredRecord>, StoreError> {
        let (statement, start) = match list.order {
            Order::Ascending => (
                select_records!(
                    "WHERE r.session_id = ? AND r.form = 'final' AND r.position > ? \
                     AND (? IS NULL OR r.kind IN (SELECT value FROM json_each(?))) \
                     AND r.at >= ? AND r.at < ? ORDER BY r.position LIMIT ?"
                ),
                0,
            ),
            Order::Descending => (
                select_records!(
                    "WHERE r.session_id = ? AND r.form = 'final' AND r.position < ? \
                     AND (? IS NULL OR r.kind IN (SELECT value FROM json_each(?))) \
                     AND r.at >= ? AND r.at < ? ORDER BY r.position DESC LIMIT ?"
                ),
                i64::MAX,
            ),
        };
        let types = if list.types.is_empty() { None } else { Some(row::to_json(&list.types)?) };
        let rows = query(statement)
            .bind(list.session_id.as_str())
            .bind(list.after.map_or(start, integer))
            .bind(types.as_deref())
            .bind(types.as_deref())
            .bind(list.processed.from.map_or(i64::MIN, Timestamp::as_micros))
            .bind(list.processed.before.map_or(i64::MAX, Timestamp::as_micros))
            .bind(row_limit(list.limit))
            .fetch(&self.readers)
            .map_err(store_error)
            .and_then(async |row| RecordRow::of(&row))
            .try_collect()
            .await?;
        self.bodies.read(rows).await
    }

    async fn list_sessions(&self, list: &ListSessions) -> Result<Vec<State>, StoreError> {
        macro_rules! select_sessions {
            ($rest:literal) => {
                concat!(
                    "SELECT id, position, snapshot_format, snapshot FROM sessions WHERE deleted_at IS NULL ",
                    "AND (?1 IS NULL OR agent_id = ?1) AND (?2 IS NULL OR agent_version = ?2) ",
                    "AND created_at >= ?3 AND created_at < ?4 AND (?5 OR archived_at IS NULL) ",
                    "AND (?6 IS NULL OR status IN (SELECT value FROM json_each(?6))) ",
                    $rest
                )
            };
        }
        let statement = match list.order {
            Order::Ascending => {
                select_sessions!("AND (?7 IS NULL OR (created_at, id) > (?7, ?8)) ORDER BY created_at, id LIMIT ?9")
            }
            Order::Descending => select_sessions!(
                "AND (?7 IS NULL OR (created_at, id) < (?7, ?8)) ORDER BY created_at DESC, id DESC LIMIT ?9"
            ),
        };
        let statuses: Vec<&str> = list.statuses.iter().copied().map(row::status).collect();
        let statuses = if statuses.is_empty() { None } else { Some(row::to_json(&statuses)?) };
        let rows = query(statement)
            .bind(list.agent_id.as_ref().map(|id| id.as_str()))
            .bind(list.agent_version)
            .bind(list.created.from.map_or(i64::MIN, Timestamp::as_micros))
            .bind(list.created.before.map_or(i64::MAX, Timestamp::as_micros))
            .bind(list.include_archived)
            .bind(statuses)
            .bind(list.after.as_ref().map(|after| after.created_at.as_micros()))
            .bind(list.after.as_ref().map(|after| after.id.as_str()))
            .bind(row_limit(list.limit))
            .fetch_all(&self.readers)
            .await
            .map_err(store_error)?;
        let mut states = Vec::with_capacity(rows.len());
        for found in rows {
            let id = SessionId::from(found.text("id")?);
            states.push(fold_to(self, &id, row::snapshot(&found)?, found.counter("position")?).await?);
        }
        Ok(states)
    }

    async fn positions(&self, sessions: &[SessionId]) -> Result<Vec<(SessionId, u64)>, StoreError> {
        query("SELECT id, position FROM sessions WHERE id IN (SELECT value FROM json_each(?))")
            .bind(row::to_json(&sessions)?)
            .fetch(&self.readers)
            .map_err(store_error)
            .and_then(async |row| Ok((row.text("id")?.into(), row.counter("position")?)))
            .try_collect()
            .await
    }

    async fn purge(&self, before: Timestamp, limit: usize) -> Result<usize, StoreError> {
        let now = self.now();
        self.writer
            .write(move |connection| {
                Box::pin(async move {
                    query("DELETE FROM worker_polls WHERE polled_at < ?")
                        .bind(now - PRESENCE_KEPT_MICROS)
                        .execute(&mut *connection)
                        .await
                        .map_err(store_error)?;
                    ledger::purge(connection, now).await?;
                    remove(connection, before, limit, now).await
                })
            })
            .await
    }
}

/// One append inside its transaction, which is undone when this fails.
async fn write(
    connection: &mut Connection,
    append: &Append,
    session: &SessionColumns,
    records: &[RecordColumns],
    bodies: &[Body],
    now: i64,
) -> Result<Appended, AppendError> {
    if let Some(kept) = &append.kept {
        idempotency::insert(connection, &kept.request, &kept.answer, now).await?;
    }
    if let Fence::ItemToken { work_id, token_hash } = &append.fence {
        work_queue::check_token(connection, work_id, &session.id, token_hash).await?;
    }
    if !blobs::are_there(connection, bodies.iter().filter_map(|body| body.blob.as_deref())).await? {
        return Err(AppendError::Conflict);
    }
    let claim = advance(connection, append, session, now).await?;
    insert(connection, &session.id, records, bodies).await?;
    for resource in &append.resources {
        if !resources::give(connection, resource, now).await? {
            return Err(AppendError::Conflict);
        }
    }
    ledger::change(connection, &session.id, &append.ledger, now).await?;
    if session.deleted_at.is_some() {
        ledger::settle_session(connection, &session.id).await?;
        resources::remove_files_of(connection, &session.id, now).await?;
    }
    let queued = match &append.work {
        WorkChange::None => false,
        WorkChange::Ensure { work_id } => work_queue::ensure(connection, work_id, session, now).await?,
        WorkChange::EndLease { work_id, seen, then } => {
            let requeue = *then == AfterLease::Requeue;
            work_queue::end_lease(connection, work_id, &session.id, *seen, requeue, now).await?;
            match then {
                AfterLease::Requeue => true,
                AfterLease::Stop => false,
                AfterLease::Replace { work_id } => work_queue::ensure(connection, work_id, session, now).await?,
            }
        }
        WorkChange::Stop => {
            work_queue::stop_session(connection, &session.id, now).await?;
            false
        }
    };
    Ok(Appended { claim, queued })
}

/// Moves the session's row on, if the guard and the claim hold. The only writer needs no cleverness to look first.
async fn advance(
    connection: &mut Connection,
    append: &Append,
    session: &SessionColumns,
    now: i64,
) -> Result<Option<Claim>, AppendError> {
    let found = query("SELECT position, epoch, owner, wake_at, handed_over FROM sessions WHERE id = ?")
        .bind(&session.id)
        .fetch_optional(&mut *connection)
        .await
        .map_err(store_error)?;
    let (position, epoch, owner, wake_at, handed_over) = match &found {
        Some(found) => (
            Some(found.integer("position")?),
            found.integer("epoch")?,
            found.text_or_null("owner")?,
            found.integer_or_null("wake_at")?,
            found.integer("handed_over")?,
        ),
        None => (None, 0, None, None, 0),
    };
    if let (Some(replica), Some(claimed)) = row::owner_fence(&append.fence)
        && (owner.as_deref(), epoch) != (Some(replica), claimed)
    {
        return Err(AppendError::Fenced);
    }
    let expected = if session.creates() { None } else { Some(session.expected) };
    if position != expected {
        return Err(AppendError::Conflict);
    }
    if let Some(max) = append.running_max {
        keys::admit(connection, session, max).await?;
    }
    if let LedgerChange::Reserve { amount, caps, .. } = &append.ledger {
        ledger::check(connection, &session.id, *amount, caps, now).await?;
    }

    let claim_for = match &append.wake {
        Wake::Now { claim_for: Some(replica) } if owner.is_none() => Some(replica.clone()),
        _ => None,
    };
    let epoch = epoch + i64::from(claim_for.is_some());
    let wake_at = match &append.wake {
        Wake::Keep => wake_at,
        Wake::Now { .. } => Some(wake_at.map_or(now, |wake_at| wake_at.min(now))),
        Wake::Release { wake_at } => wake_at.map(Timestamp::as_micros),
    };
    let owner = match (&append.wake, &claim_for) {
        (Wake::Release { .. }, _) => None,
        (_, Some(replica)) => Some(replica.as_str().to_owned()),
        (_, None) => owner,
    };
    let statement = if session.creates() {
        "INSERT INTO sessions (id, position, epoch, owner, wake_at, status, agent_id, agent_version, environment_id, \
         created_at, archived_at, deleted_at, snapshot_format, snapshot, handed_over, api_key_id) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16)"
    } else {
        "UPDATE sessions SET position = ?2, epoch = ?3, owner = ?4, wake_at = ?5, status = ?6, agent_id = ?7, \
         agent_version = ?8, environment_id = ?9, created_at = ?10, archived_at = ?11, \
         deleted_at = ?12, snapshot_format = ?13, snapshot = ?14, handed_over = ?15, \
         api_key_id = COALESCE(api_key_id, ?16) WHERE id = ?1"
    };
    query(statement)
        .bind(&session.id)
        .bind(session.position)
        .bind(epoch)
        .bind(owner)
        .bind(wake_at)
        .bind(session.status)
        .bind(&session.agent_id)
        .bind(session.agent_version)
        .bind(&session.environment_id)
        .bind(session.created_at)
        .bind(session.archived_at)
        .bind(session.deleted_at)
        .bind(session.snapshot_format)
        .bind(&session.snapshot)
        .bind(if claim_for.is_some() { 0 } else { handed_over })
        .bind(&session.api_key_id)
        .execute(connection)
        .await
        .map_err(store_error)?;
    Ok(claim_for.map(|replica_id| Claim {
        session_id: session.id.as_str().into(),
        replica_id,
        epoch: u64::try_from(epoch).unwrap_or_default(),
    }))
}

async fn insert(
    connection: &mut Connection,
    session_id: &str,
    records: &[RecordColumns],
    bodies: &[Body],
) -> Result<(), AppendError> {
    let rows: Vec<_> = records
        .iter()
        .zip(bodies)
        .map(|(record, body)| {
            let RecordColumns { position, form, kind, event_id, refers_to, at } = record;
            (position, form, kind, event_id, refers_to, body.version, at, &body.text, &body.blob)
        })
        .collect();
    // All rows in one statement: each statement is a trip to the connection's own thread and back.
    query(
        "INSERT INTO records (session_id, position, form, kind, event_id, refers_to, version, at, body, blob) \
         SELECT ?1, value ->> 0, value ->> 1, \
         COALESCE(value ->> 2, (SELECT kind FROM records WHERE session_id = ?1 AND position = value ->> 4), \
         'log.processed'), value ->> 3, value ->> 4, value ->> 5, value ->> 6, value ->> 7, value ->> 8 \
         FROM json_each(?2)",
    )
    .bind(session_id)
    .bind(row::to_json(&rows)?)
    .execute(connection)
    .await
    .map_err(store_error)?;
    Ok(())
}

/// Removes sessions with everything that is theirs; how many. Blobs that they needed stay for a while.
async fn remove(connection: &mut Connection, before: Timestamp, limit: usize, now: i64) -> Result<usize, StoreError> {
    let sessions: Vec<String> =
        query_scalar("SELECT id FROM sessions WHERE deleted_at < ? ORDER BY deleted_at LIMIT ?")
            .bind(before.as_micros())
            .bind(row_limit(limit))
            .fetch_all(&mut *connection)
            .await
            .map_err(store_error)?;
    for id in &sessions {
        query(
            "UPDATE blobs SET touched_at = ?1 WHERE hash IN (\
                SELECT blob FROM records WHERE session_id = ?2 AND blob IS NOT NULL \
                UNION SELECT hash FROM session_chunks WHERE session_id = ?2)",
        )
        .bind(now)
        .bind(id)
        .execute(&mut *connection)
        .await
        .map_err(store_error)?;
        // One that an earlier release deleted still has them.
        resources::remove_files_of(connection, id, now).await?;
        for statement in [
            "DELETE FROM records WHERE session_id = ?",
            "DELETE FROM work_items WHERE session_id = ?",
            "DELETE FROM session_chunks WHERE session_id = ?",
            "DELETE FROM sessions WHERE id = ?",
        ] {
            query(statement).bind(id).execute(&mut *connection).await.map_err(store_error)?;
        }
    }
    Ok(sessions.len())
}

//! Resources and outputs of sessions in PostgreSQL.
//!
//! A change of a session's resources locks the session's row, so that two of them come one after the other; an output
//! locks the row of the token that it comes with.

use async_trait::async_trait;
use engine::port::resources::{
    KnownOutput, OUTPUTS_MAX, Output, OutputError, PutOutput, RESOURCES_MAX, ResourceError, in_the_way,
};
use engine::port::{BlobHash, FileResource, Keep, Resources, StoreError};
use session::id::{ResourceId, SessionId, WorkId};
use sqlx::{query, query_scalar};

use super::log::Connection;
use super::{PostgresStore, bounded, files, findable, idempotency, now, work_queue};
use crate::failure::store_error;
use crate::row::{self, Columns as _, row_limit};

#[async_trait]
impl Resources for PostgresStore {
    async fn add_resource(
        &self,
        resource: &FileResource,
        keep: Option<Keep<FileResource>>,
    ) -> Result<(), ResourceError> {
        bounded(async {
            let mut transaction = self.pool.begin().await.map_err(store_error)?;
            idempotency::begin(&mut transaction, keep.as_ref()).await?;
            check_room(&mut transaction, resource).await?;
            if !give(&mut transaction, std::slice::from_ref(resource)).await? {
                return Err(ResourceError::ContentGone);
            }
            raise_version(&mut transaction, row::session_of(&resource.file)).await?;
            idempotency::finish(&mut transaction, keep, resource).await?;
            transaction.commit().await.map_err(store_error)?;
            Ok(())
        })
        .await
    }

    async fn resources(&self, sessions: &[SessionId]) -> Result<Vec<FileResource>, StoreError> {
        if sessions.is_empty() {
            return Ok(Vec::new());
        }
        bounded(async {
            let sessions: Vec<_> = sessions.iter().map(|id| findable(id.as_str()).into_owned()).collect();
            let rows = query(
                "SELECT r.id AS resource_id, r.mount_path, f.id, filename, mime_type, bytes, blob, f.created_at, \
                 expires_at, f.session_id FROM session_resources r JOIN files f ON f.id = r.file_id \
                 WHERE r.session_id = ANY($1) ORDER BY r.created_at, r.id",
            )
            .bind(sessions)
            .fetch_all(&self.pool)
            .await
            .map_err(store_error)?;
            rows.iter().map(row::file_resource).collect()
        })
        .await
    }

    async fn is_given(&self, session_id: &SessionId, hash: &BlobHash) -> Result<bool, StoreError> {
        bounded(async {
            query_scalar(
                "SELECT EXISTS (SELECT 1 FROM files f JOIN session_resources r ON r.file_id = f.id \
                 WHERE f.session_id = $1 AND f.blob = $2)",
            )
            .bind(findable(session_id.as_str()))
            .bind(hash.as_str())
            .fetch_one(&self.pool)
            .await
            .map_err(store_error)
        })
        .await
    }

    async fn remove_resource(&self, session_id: &SessionId, id: &ResourceId) -> Result<bool, StoreError> {
        bounded(async {
            let mut transaction = self.pool.begin().await.map_err(store_error)?;
            raise_version(&mut transaction, &findable(session_id.as_str())).await?;
            let copy: Option<String> =
                query_scalar("DELETE FROM session_resources WHERE id = $1 AND session_id = $2 RETURNING file_id")
                    .bind(findable(id.as_str()))
                    .bind(findable(session_id.as_str()))
                    .fetch_optional(&mut *transaction)
                    .await
                    .map_err(store_error)?;
            let Some(copy) = copy else { return Ok(false) };
            files::remove(&mut *transaction, &[&copy]).await?;
            transaction.commit().await.map_err(store_error)?;
            Ok(true)
        })
        .await
    }

    async fn resources_version(&self, session_id: &SessionId) -> Result<u64, StoreError> {
        bounded(async {
            let found = query("SELECT resources_version FROM sessions WHERE id = $1")
                .bind(findable(session_id.as_str()))
                .fetch_optional(&self.pool)
                .await
                .map_err(store_error)?;
            found.map_or(Ok(0), |found| found.counter("resources_version"))
        })
        .await
    }

    async fn put_output(&self, output: &Output, work_id: &WorkId, token_hash: &str) -> Result<PutOutput, OutputError> {
        bounded(async {
            let session_id = row::session_of(&output.file);
            let mut transaction = self.pool.begin().await.map_err(store_error)?;
            if !work_queue::lock_token(&mut transaction, work_id, session_id, token_hash).await? {
                return Err(OutputError::TokenEnded);
            }
            let put = put_output(&mut transaction, output, session_id).await?;
            transaction.commit().await.map_err(store_error)?;
            Ok(put)
        })
        .await
    }

    async fn outputs(&self, session_id: &SessionId) -> Result<Vec<KnownOutput>, StoreError> {
        bounded(async {
            let rows = query("SELECT path, hash FROM session_outputs WHERE session_id = $1 ORDER BY path")
                .bind(findable(session_id.as_str()))
                .fetch_all(&self.pool)
                .await
                .map_err(store_error)?;
            rows.iter().map(row::known_output).collect()
        })
        .await
    }
}

async fn check_room(connection: &mut Connection, resource: &FileResource) -> Result<(), ResourceError> {
    let session_id = findable(row::session_of(&resource.file));
    let found = query("SELECT archived_at FROM sessions WHERE id = $1 AND deleted_at IS NULL FOR UPDATE")
        .bind(&*session_id)
        .fetch_optional(&mut *connection)
        .await
        .map_err(store_error)?;
    if found.ok_or(ResourceError::NoSession)?.integer_or_null("archived_at")?.is_some() {
        return Err(ResourceError::Archived);
    }
    let taken: Vec<String> = query_scalar("SELECT mount_path FROM session_resources WHERE session_id = $1")
        .bind(&*session_id)
        .fetch_all(connection)
        .await
        .map_err(store_error)?;
    if taken.len() >= RESOURCES_MAX {
        return Err(ResourceError::Full);
    }
    match in_the_way(&resource.mount_path, taken.iter().map(String::as_str)) {
        Some(path) => Err(ResourceError::InTheWay(path.to_owned())),
        None => Ok(()),
    }
}

/// Stores resources and their copies; `false` if content is not there any more.
pub(super) async fn give(connection: &mut Connection, resources: &[FileResource]) -> Result<bool, StoreError> {
    let copies: Vec<&engine::port::File> = resources.iter().map(|resource| &resource.file).collect();
    if !files::create(connection, &copies).await? {
        return Ok(false);
    }
    query(
        "INSERT INTO session_resources (id, session_id, file_id, mount_path, created_at) \
         SELECT * FROM UNNEST($1::text[], $2::text[], $3::text[], $4::text[], $5::bigint[])",
    )
    .bind(resources.iter().map(|resource| resource.id.as_str()).collect::<Vec<_>>())
    .bind(copies.iter().map(|copy| row::session_of(copy)).collect::<Vec<_>>())
    .bind(copies.iter().map(|copy| copy.id.as_str()).collect::<Vec<_>>())
    .bind(resources.iter().map(|resource| resource.mount_path.as_str()).collect::<Vec<_>>())
    .bind(copies.iter().map(|copy| copy.created_at.as_micros()).collect::<Vec<_>>())
    .execute(connection)
    .await
    .map_err(store_error)?;
    Ok(true)
}

async fn raise_version(connection: &mut Connection, session_id: &str) -> Result<(), StoreError> {
    query("UPDATE sessions SET resources_version = resources_version + 1 WHERE id = $1")
        .bind(session_id)
        .execute(connection)
        .await
        .map_err(store_error)?;
    Ok(())
}

async fn put_output(connection: &mut Connection, output: &Output, session_id: &str) -> Result<PutOutput, OutputError> {
    let hash = output.file.blob.as_ref().ok_or(OutputError::ContentGone)?.as_str();
    // A session has one holder, but requests of one that was thought to have failed may still be under way.
    query("SELECT pg_advisory_xact_lock(hashtextextended($1, 0))")
        .bind(session_id)
        .execute(&mut *connection)
        .await
        .map_err(store_error)?;
    let before = query("SELECT file_id, hash FROM session_outputs WHERE session_id = $1 AND path = $2")
        .bind(session_id)
        .bind(&output.path)
        .fetch_optional(&mut *connection)
        .await
        .map_err(store_error)?;
    let mut replaced = None;
    if let Some(before) = &before {
        if before.text("hash")? == hash {
            return Ok(PutOutput::Unchanged);
        }
        let id = before.text("file_id")?;
        replaced = (files::remove(&mut *connection, &[&id]).await? > 0).then(|| id.into());
    }
    let made: i64 =
        query_scalar("SELECT COUNT(*) FROM session_outputs o JOIN files f ON f.id = o.file_id WHERE o.session_id = $1")
            .bind(session_id)
            .fetch_one(&mut *connection)
            .await
            .map_err(store_error)?;
    if made >= row_limit(OUTPUTS_MAX) {
        return Err(OutputError::Full);
    }
    if !files::create(connection, &[&output.file]).await? {
        return Err(OutputError::ContentGone);
    }
    query(
        "INSERT INTO session_outputs (session_id, path, file_id, hash) VALUES ($1, $2, $3, $4) \
         ON CONFLICT (session_id, path) DO UPDATE SET file_id = EXCLUDED.file_id, hash = EXCLUDED.hash",
    )
    .bind(session_id)
    .bind(&output.path)
    .bind(output.file.id.as_str())
    .bind(hash)
    .execute(connection)
    .await
    .map_err(store_error)?;
    Ok(PutOutput::Stored { replaced })
}

/// Removes a session's files, those that it was given as well as those that it made.
pub(super) async fn remove_files_of(connection: &mut Connection, session_id: &str) -> Result<(), StoreError> {
    query(concat!(
        "WITH gone AS (DELETE FROM files WHERE session_id = $1 RETURNING blob), \
         resources AS (DELETE FROM session_resources WHERE session_id = $1), \
         outputs AS (DELETE FROM session_outputs WHERE session_id = $1), \
         locked AS (SELECT hash FROM blobs WHERE hash IN (SELECT blob FROM gone) ORDER BY hash FOR UPDATE) \
         UPDATE blobs SET touched_at = ",
        now!(),
        " WHERE hash IN (SELECT hash FROM locked)"
    ))
    .bind(session_id)
    .execute(connection)
    .await
    .map_err(store_error)?;
    Ok(())
}

//! Resources and outputs of sessions in SQLite.

use async_trait::async_trait;
use engine::port::resources::{
    KnownOutput, OUTPUTS_MAX, Output, OutputError, PutOutput, RESOURCES_MAX, ResourceError, in_the_way,
};
use engine::port::{AppendError, BlobHash, FileResource, Keep, Resources, StoreError};
use session::id::{ResourceId, SessionId, WorkId};
use sqlx::{query, query_scalar};

use super::{Connection, SqliteStore, files, idempotency, work_queue};
use crate::failure::store_error;
use crate::row::{self, Columns as _, row_limit};

#[async_trait]
impl Resources for SqliteStore {
    async fn add_resource(
        &self,
        resource: &FileResource,
        keep: Option<Keep<FileResource>>,
    ) -> Result<(), ResourceError> {
        let (resource, now) = (resource.clone(), self.now());
        self.writer
            .write(move |connection| {
                Box::pin(async move {
                    idempotency::begin(connection, keep.as_ref(), now).await?;
                    check_room(connection, &resource).await?;
                    if !give(connection, &resource, now).await? {
                        return Err(ResourceError::ContentGone);
                    }
                    raise_version(connection, row::session_of(&resource.file)).await?;
                    idempotency::finish(connection, keep, &resource).await?;
                    Ok(())
                })
            })
            .await
    }

    async fn resources(&self, sessions: &[SessionId]) -> Result<Vec<FileResource>, StoreError> {
        if sessions.is_empty() {
            return Ok(Vec::new());
        }
        let rows = query(
            "SELECT r.id AS resource_id, r.mount_path, f.id, filename, mime_type, bytes, blob, f.created_at, \
             expires_at, f.session_id FROM session_resources r JOIN files f ON f.id = r.file_id \
             WHERE r.session_id IN (SELECT value FROM json_each(?)) ORDER BY r.created_at, r.id",
        )
        .bind(row::to_json(&sessions)?)
        .fetch_all(&self.readers)
        .await
        .map_err(store_error)?;
        rows.iter().map(row::file_resource).collect()
    }

    async fn is_given(&self, session_id: &SessionId, hash: &BlobHash) -> Result<bool, StoreError> {
        query_scalar(
            "SELECT EXISTS (SELECT 1 FROM files f JOIN session_resources r ON r.file_id = f.id \
             WHERE f.session_id = ? AND f.blob = ?)",
        )
        .bind(session_id.as_str())
        .bind(hash.as_str())
        .fetch_one(&self.readers)
        .await
        .map_err(store_error)
    }

    async fn remove_resource(&self, session_id: &SessionId, id: &ResourceId) -> Result<bool, StoreError> {
        let (session_id, id, now) = (session_id.clone(), id.clone(), self.now());
        self.writer
            .write(move |connection| {
                Box::pin(async move {
                    let copy: Option<String> =
                        query_scalar("DELETE FROM session_resources WHERE id = ? AND session_id = ? RETURNING file_id")
                            .bind(id.as_str())
                            .bind(session_id.as_str())
                            .fetch_optional(&mut *connection)
                            .await
                            .map_err(store_error)?;
                    let Some(copy) = copy else { return Ok(false) };
                    files::remove(connection, &copy, now).await?;
                    raise_version(connection, session_id.as_str()).await?;
                    Ok(true)
                })
            })
            .await
    }

    async fn resources_version(&self, session_id: &SessionId) -> Result<u64, StoreError> {
        let found = query("SELECT resources_version FROM sessions WHERE id = ?")
            .bind(session_id.as_str())
            .fetch_optional(&self.readers)
            .await
            .map_err(store_error)?;
        found.map_or(Ok(0), |found| found.counter("resources_version"))
    }

    async fn put_output(&self, output: &Output, work_id: &WorkId, token_hash: &str) -> Result<PutOutput, OutputError> {
        let (output, now) = (output.clone(), self.now());
        let (work_id, token_hash) = (work_id.clone(), token_hash.to_owned());
        self.writer
            .write(move |connection| {
                Box::pin(async move {
                    let session_id = row::session_of(&output.file);
                    match work_queue::check_token(connection, &work_id, session_id, &token_hash).await {
                        Ok(()) => {}
                        Err(AppendError::Store(error)) => return Err(error.into()),
                        Err(_) => return Err(OutputError::TokenEnded),
                    }
                    put_output(connection, &output, session_id, now).await
                })
            })
            .await
    }

    async fn outputs(&self, session_id: &SessionId) -> Result<Vec<KnownOutput>, StoreError> {
        let rows = query("SELECT path, hash FROM session_outputs WHERE session_id = ? ORDER BY path")
            .bind(session_id.as_str())
            .fetch_all(&self.readers)
            .await
            .map_err(store_error)?;
        rows.iter().map(row::known_output).collect()
    }
}

async fn check_room(connection: &mut Connection, resource: &FileResource) -> Result<(), ResourceError> {
    let session_id = row::session_of(&resource.file);
    let found = query("SELECT archived_at FROM sessions WHERE id = ? AND deleted_at IS NULL")
        .bind(session_id)
        .fetch_optional(&mut *connection)
        .await
        .map_err(store_error)?;
    if found.ok_or(ResourceError::NoSession)?.integer_or_null("archived_at")?.is_some() {
        return Err(ResourceError::Archived);
    }
    let taken: Vec<String> = query_scalar("SELECT mount_path FROM session_resources WHERE session_id = ?")
        .bind(session_id)
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

/// Stores a resource and its copy; `false` if the content is not there any more.
pub(super) async fn give(connection: &mut Connection, resource: &FileResource, now: i64) -> Result<bool, StoreError> {
    if !files::create(connection, &resource.file, now).await? {
        return Ok(false);
    }
    query("INSERT INTO session_resources (id, session_id, file_id, mount_path, created_at) VALUES (?, ?, ?, ?, ?)")
        .bind(resource.id.as_str())
        .bind(row::session_of(&resource.file))
        .bind(resource.file.id.as_str())
        .bind(&resource.mount_path)
        .bind(resource.file.created_at.as_micros())
        .execute(connection)
        .await
        .map_err(store_error)?;
    Ok(true)
}

async fn raise_version(connection: &mut Connection, session_id: &str) -> Result<(), StoreError> {
    query("UPDATE sessions SET resources_version = resources_version + 1 WHERE id = ?")
        .bind(session_id)
        .execute(connection)
        .await
        .map_err(store_error)?;
    Ok(())
}

async fn put_output(
    connection: &mut Connection,
    output: &Output,
    session_id: &str,
    now: i64,
) -> Result<PutOutput, OutputError> {
    let hash = output.file.blob.as_ref().ok_or(OutputError::ContentGone)?.as_str();
    let before = query("SELECT file_id, hash FROM session_outputs WHERE session_id = ? AND path = ?")
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
        replaced = files::remove(connection, &id, now).await?.then(|| id.into());
    }
    let made: i64 =
        query_scalar("SELECT COUNT(*) FROM session_outputs o JOIN files f ON f.id = o.file_id WHERE o.session_id = ?")
            .bind(session_id)
            .fetch_one(&mut *connection)
            .await
            .map_err(store_error)?;
    if made >= row_limit(OUTPUTS_MAX) {
        return Err(OutputError::Full);
    }
    if !files::create(connection, &output.file, now).await? {
        return Err(OutputError::ContentGone);
    }
    query(
        "INSERT INTO session_outputs (session_id, path, file_id, hash) VALUES (?1, ?2, ?3, ?4) \
         ON CONFLICT (session_id, path) DO UPDATE SET file_id = ?3, hash = ?4",
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
pub(super) async fn remove_files_of(connection: &mut Connection, session_id: &str, now: i64) -> Result<(), StoreError> {
    query("UPDATE blobs SET touched_at = ?1 WHERE hash IN (SELECT blob FROM files WHERE session_id = ?2)")
        .bind(now)
        .bind(session_id)
        .execute(&mut *connection)
        .await
        .map_err(store_error)?;
    for statement in [
        "DELETE FROM files WHERE session_id = ?",
        "DELETE FROM session_resources WHERE session_id = ?",
        "DELETE FROM session_outputs WHERE session_id = ?",
    ] {
        query(statement).bind(session_id).execute(&mut *connection).await.map_err(store_error)?;
    }
    Ok(())
}

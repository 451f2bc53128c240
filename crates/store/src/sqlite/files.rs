//! Files in SQLite.

use async_trait::async_trait;
use engine::port::files::{File, FileError, Files, ListFiles};
use engine::port::{Keep, Order, StoreError};
use session::Timestamp;
use session::id::FileId;
use sqlx::{query, query_scalar};

use super::{Connection, SqliteStore, idempotency};
use crate::failure::store_error;
use crate::row::{self, integer, row_limit};

macro_rules! select_files {
    ($rest:literal) => {
        concat!("SELECT id, filename, mime_type, bytes, blob, created_at, expires_at, session_id FROM files ", $rest)
    };
}

#[async_trait]
impl Files for SqliteStore {
    async fn create_file(&self, file: &File, keep: Option<Keep<File>>) -> Result<(), FileError> {
        let (file, now) = (file.clone(), self.now());
        self.writer
            .write(move |connection| {
                Box::pin(async move {
                    idempotency::begin(connection, keep.as_ref(), now).await?;
                    if !create(connection, &file, now).await? {
                        return Err(FileError::ContentGone);
                    }
                    idempotency::finish(connection, keep, &file).await?;
                    Ok(())
                })
            })
            .await
    }

    async fn files(&self, ids: &[FileId]) -> Result<Vec<File>, StoreError> {
        let rows = query(
            "SELECT f.id, filename, mime_type, bytes, blob, created_at, expires_at, session_id \
             FROM json_each(?) asked JOIN files f ON f.id = asked.value ORDER BY asked.key",
        )
        .bind(row::to_json(&ids)?)
        .fetch_all(&self.readers)
        .await
        .map_err(store_error)?;
        rows.iter().map(row::file).collect()
    }

    async fn list_files(&self, list: &ListFiles) -> Result<Vec<File>, StoreError> {
        let statement = match (&list.session_id, list.order) {
            (None, Order::Ascending) => select_files!(
                "WHERE ?1 IS NULL AND (?2 IS NULL OR (created_at, id) > (?2, ?3)) ORDER BY created_at, id LIMIT ?4"
            ),
            (None, Order::Descending) => select_files!(
                "WHERE ?1 IS NULL AND (?2 IS NULL OR (created_at, id) < (?2, ?3)) \
                 ORDER BY created_at DESC, id DESC LIMIT ?4"
            ),
            (Some(_), Order::Ascending) => select_files!(
                "WHERE session_id = ?1 AND (?2 IS NULL OR (created_at, id) > (?2, ?3)) \
                 ORDER BY created_at, id LIMIT ?4"
            ),
            (Some(_), Order::Descending) => select_files!(
                "WHERE session_id = ?1 AND (?2 IS NULL OR (created_at, id) < (?2, ?3)) \
                 ORDER BY created_at DESC, id DESC LIMIT ?4"
            ),
        };
        let rows = query(statement)
            .bind(list.session_id.as_ref().map(|id| id.as_str().to_owned()))
            .bind(list.after.as_ref().map(|after| after.created_at.as_micros()))
            .bind(list.after.as_ref().map(|after| after.id.clone()))
            .bind(row_limit(list.limit))
            .fetch_all(&self.readers)
            .await
            .map_err(store_error)?;
        rows.iter().map(row::file).collect()
    }

    async fn delete_files(&self, ids: &[FileId]) -> Result<usize, StoreError> {
        let (ids, now) = (ids.to_vec(), self.now());
        self.writer
            .write(move |connection| {
                Box::pin(async move {
                    let mut deleted = 0;
                    for id in &ids {
                        deleted += usize::from(remove(connection, id.as_str(), now).await?);
                    }
                    Ok(deleted)
                })
            })
            .await
    }

    async fn expire_files(&self, now: Timestamp, limit: usize) -> Result<usize, StoreError> {
        let touched = self.now();
        self.writer
            .write(move |connection| {
                Box::pin(async move {
                    let expired: Vec<(String, String)> = sqlx::query_as(
                        "SELECT id, blob FROM files WHERE expires_at <= ? AND blob IS NOT NULL \
                         ORDER BY expires_at LIMIT ?",
                    )
                    .bind(now.as_micros())
                    .bind(row_limit(limit))
                    .fetch_all(&mut *connection)
                    .await
                    .map_err(store_error)?;
                    let count = expired.len();
                    for (id, blob) in expired {
                        query("UPDATE files SET blob = NULL WHERE id = ?")
                            .bind(id)
                            .execute(&mut *connection)
                            .await
                            .map_err(store_error)?;
                        touch(connection, Some(blob), touched).await?;
                    }
                    Ok(count)
                })
            })
            .await
    }
}

/// `false` if the file's content is not there any more; then nothing was written.
pub(super) async fn create(connection: &mut Connection, file: &File, now: i64) -> Result<bool, StoreError> {
    if let Some(blob) = &file.blob
        && !touch(connection, Some(blob.as_str().to_owned()), now).await?
    {
        return Ok(false);
    }
    query(
        "INSERT INTO files (id, filename, mime_type, bytes, blob, created_at, expires_at, session_id) \
         VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(file.id.as_str())
    .bind(&file.filename)
    .bind(&file.mime_type)
    .bind(integer(file.bytes))
    .bind(file.blob.as_ref().map(|blob| blob.as_str()))
    .bind(file.created_at.as_micros())
    .bind(file.expires_at.map(Timestamp::as_micros))
    .bind(file.session_id.as_ref().map(|id| id.as_str()))
    .execute(connection)
    .await
    .map_err(store_error)?;
    Ok(true)
}

/// Whether there was such a file that is nobody's resource.
pub(super) async fn remove(connection: &mut Connection, id: &str, now: i64) -> Result<bool, StoreError> {
    let blob: Option<Option<String>> = query_scalar(
        "DELETE FROM files WHERE id = ?1 AND NOT EXISTS (SELECT 1 FROM session_resources WHERE file_id = ?1) \
         RETURNING blob",
    )
    .bind(id)
    .fetch_optional(&mut *connection)
    .await
    .map_err(store_error)?;
    let is_gone = blob.is_some();
    touch(connection, blob.flatten(), now).await?;
    Ok(is_gone)
}

/// Whether the registry has the blob, which counts as touched now.
async fn touch(connection: &mut Connection, blob: Option<String>, now: i64) -> Result<bool, StoreError> {
    let Some(blob) = blob else { return Ok(false) };
    let touched = query("UPDATE blobs SET touched_at = ? WHERE hash = ?")
        .bind(now)
        .bind(blob)
        .execute(connection)
        .await
        .map_err(store_error)?;
    Ok(touched.rows_affected() > 0)
}

//! Files in PostgreSQL.

use async_trait::async_trait;
use engine::port::files::{File, FileError, Files, ListFiles};
use engine::port::{Keep, Order, StoreError};
use session::Timestamp;
use session::id::FileId;
use sqlx::postgres::PgExecutor;
use sqlx::query;

use super::log::Connection;
use super::{PostgresStore, bounded, findable, idempotency, now};
use crate::failure::store_error;
use crate::row::{self, integer, row_limit};

/// Touches the blobs that a statement has let go of, in an order that keeps two of them from a deadlock.
macro_rules! touching {
    ($gone:literal) => {
        concat!(
            $gone,
            ", locked AS (SELECT hash FROM blobs WHERE hash IN (SELECT blob FROM gone) ORDER BY hash FOR UPDATE), ",
            "touched AS (UPDATE blobs SET touched_at = ",
            now!(),
            " WHERE hash IN (SELECT hash FROM locked)) SELECT COUNT(*) FROM gone"
        )
    };
}

macro_rules! select_files {
    ($rest:literal) => {
        concat!(
            "SELECT id, filename, mime_type, bytes, blob, created_at, expires_at, session_id FROM files \
             WHERE ($1::text IS NULL OR session_id = $1) ",
            $rest
        )
    };
}

#[async_trait]
impl Files for PostgresStore {
    async fn create_file(&self, file: &File, keep: Option<Keep<File>>) -> Result<(), FileError> {
        bounded(async {
            let mut transaction = self.pool.begin().await.map_err(store_error)?;
            idempotency::begin(&mut transaction, keep.as_ref()).await?;
            if !create(&mut transaction, &[file]).await? {
                return Err(FileError::ContentGone);
            }
            idempotency::finish(&mut transaction, keep, file).await?;
            transaction.commit().await.map_err(store_error)?;
            Ok(())
        })
        .await
    }

    async fn files(&self, ids: &[FileId]) -> Result<Vec<File>, StoreError> {
        bounded(async {
            let ids: Vec<_> = ids.iter().map(|id| findable(id.as_str()).into_owned()).collect();
            let rows = query(
                "SELECT id, filename, mime_type, bytes, blob, created_at, expires_at, session_id FROM files \
                 WHERE id = ANY($1) ORDER BY array_position($1, id)",
            )
            .bind(ids)
            .fetch_all(&self.pool)
            .await
            .map_err(store_error)?;
            rows.iter().map(row::file).collect()
        })
        .await
    }

    async fn list_files(&self, list: &ListFiles) -> Result<Vec<File>, StoreError> {
        let statement = match list.order {
            Order::Ascending => select_files!(
                "AND ($2::bigint IS NULL OR (created_at, id) > ($2, $3)) ORDER BY created_at, id LIMIT $4"
            ),
            Order::Descending => select_files!(
                "AND ($2::bigint IS NULL OR (created_at, id) < ($2, $3)) ORDER BY created_at DESC, id DESC LIMIT $4"
            ),
        };
        bounded(async {
            let rows = query(statement)
                .bind(list.session_id.as_ref().map(|id| findable(id.as_str())))
                .bind(list.after.as_ref().map(|after| after.created_at.as_micros()))
                .bind(list.after.as_ref().map(|after| findable(&after.id)))
                .bind(row_limit(list.limit))
                .fetch_all(&self.pool)
                .await
                .map_err(store_error)?;
            rows.iter().map(row::file).collect()
        })
        .await
    }

    async fn delete_files(&self, ids: &[FileId]) -> Result<usize, StoreError> {
        bounded(async {
            let ids: Vec<_> = ids.iter().map(|id| findable(id.as_str())).collect();
            remove(&self.pool, &ids.iter().map(AsRef::as_ref).collect::<Vec<_>>()).await
        })
        .await
    }

    async fn expire_files(&self, now: Timestamp, limit: usize) -> Result<usize, StoreError> {
        bounded(async {
            let gone: i64 = sqlx::query_scalar(touching!(
                "WITH expired AS (SELECT id, blob FROM files WHERE expires_at <= $1 AND blob IS NOT NULL \
                    ORDER BY expires_at LIMIT $2 FOR UPDATE SKIP LOCKED), \
                 gone AS (UPDATE files SET blob = NULL FROM expired WHERE files.id = expired.id \
                    RETURNING expired.blob)"
            ))
            .bind(now.as_micros())
            .bind(row_limit(limit))
            .fetch_one(&self.pool)
            .await
            .map_err(store_error)?;
            Ok(usize::try_from(gone).unwrap_or_default())
        })
        .await
    }
}

/// Stores files within a transaction; `false` if the content of one is not there any more, and then there is nothing
/// to commit.
pub(super) async fn create(connection: &mut Connection, files: &[&File]) -> Result<bool, StoreError> {
    let blobs: std::collections::BTreeSet<&str> =
        files.iter().filter_map(|file| Some(file.blob.as_ref()?.as_str())).collect();
    let kept = query(concat!(
        "UPDATE blobs SET touched_at = ",
        now!(),
        " WHERE hash IN (SELECT hash FROM blobs WHERE hash = ANY($1) ORDER BY hash FOR UPDATE)"
    ))
    .bind(blobs.iter().copied().collect::<Vec<_>>())
    .execute(&mut *connection)
    .await
    .map_err(store_error)?;
    if kept.rows_affected() != blobs.len() as u64 {
        return Ok(false);
    }
    query(
        "INSERT INTO files (id, filename, mime_type, bytes, blob, created_at, expires_at, session_id) \
         SELECT * FROM UNNEST($1::text[], $2::text[], $3::text[], $4::bigint[], $5::text[], $6::bigint[], \
            $7::bigint[], $8::text[])",
    )
    .bind(files.iter().map(|file| file.id.as_str()).collect::<Vec<_>>())
    .bind(files.iter().map(|file| file.filename.as_str()).collect::<Vec<_>>())
    .bind(files.iter().map(|file| file.mime_type.as_str()).collect::<Vec<_>>())
    .bind(files.iter().map(|file| integer(file.bytes)).collect::<Vec<_>>())
    .bind(files.iter().map(|file| Some(file.blob.as_ref()?.as_str())).collect::<Vec<_>>())
    .bind(files.iter().map(|file| file.created_at.as_micros()).collect::<Vec<_>>())
    .bind(files.iter().map(|file| file.expires_at.map(Timestamp::as_micros)).collect::<Vec<_>>())
    .bind(files.iter().map(|file| Some(file.session_id.as_ref()?.as_str())).collect::<Vec<_>>())
    .execute(connection)
    .await
    .map_err(store_error)?;
    Ok(true)
}

/// Removes files that are nobody's resource; how many.
pub(super) async fn remove(executor: impl PgExecutor<'_>, ids: &[&str]) -> Result<usize, StoreError> {
    let gone: i64 = sqlx::query_scalar(touching!(
        "WITH gone AS (DELETE FROM files WHERE id = ANY($1) \
            AND NOT EXISTS (SELECT 1 FROM session_resources r WHERE r.file_id = files.id) RETURNING blob)"
    ))
    .bind(ids)
    .fetch_one(executor)
    .await
    .map_err(store_error)?;
    Ok(usize::try_from(gone).unwrap_or_default())
}

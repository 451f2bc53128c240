//! The registry of blobs in SQLite. The rule that it keeps its part of is in `engine::port::blobs`.
//!
//! The lock of a row is the only writer's: while it collects, nothing else is written.

use std::sync::Arc;

use async_trait::async_trait;
use engine::port::blobs::UNREFERENCED_KEPT_MICROS;
use engine::port::{Blob, BlobHash, BlobRegistry, Blobs, Clock, StoreError};
use sqlx::{query, query_scalar};

use super::{Connection, SqliteStore, Writer};
use crate::failure::store_error;
use crate::references::unreferenced;
use crate::row::{integer, row_limit};

/// What the registry works with, apart from the store that owns it.
pub(super) struct Registry {
    pub(super) writer: Writer,
    pub(super) bytes: Arc<dyn Blobs>,
    pub(super) clock: Arc<dyn Clock>,
}

#[async_trait]
impl BlobRegistry for Registry {
    async fn announce(&self, blob: &Blob) -> Result<(), StoreError> {
        let (blob, now) = (blob.clone(), self.clock.now().as_micros());
        self.writer
            .write(move |connection| {
                Box::pin(async move {
                    query(
                        "INSERT INTO blobs (hash, bytes, touched_at) VALUES (?, ?, ?) \
                         ON CONFLICT (hash) DO UPDATE SET touched_at = excluded.touched_at, bytes = excluded.bytes",
                    )
                    .bind(blob.hash.as_str())
                    .bind(integer(blob.bytes))
                    .bind(now)
                    .execute(connection)
                    .await
                    .map_err(store_error)?;
                    Ok(())
                })
            })
            .await
    }

    async fn collect(&self, limit: usize) -> Result<usize, StoreError> {
        let (bytes, before) = (Arc::clone(&self.bytes), self.clock.now().as_micros() - UNREFERENCED_KEPT_MICROS);
        self.writer
            .write(move |connection| Box::pin(async move { collect(connection, &*bytes, before, limit).await }))
            .await
    }
}

async fn collect(
    connection: &mut Connection,
    bytes: &dyn Blobs,
    before: i64,
    limit: usize,
) -> Result<usize, StoreError> {
    let garbage: Vec<String> = query_scalar(concat!(
        "SELECT b.hash FROM blobs b WHERE b.touched_at <= ? AND ",
        unreferenced!(),
        " ORDER BY b.touched_at LIMIT ?"
    ))
    .bind(before)
    .bind(row_limit(limit))
    .fetch_all(&mut *connection)
    .await
    .map_err(store_error)?;
    for hash in &garbage {
        if let Some(hash) = BlobHash::parse(hash) {
            bytes.remove(&hash).await?;
        }
        query("DELETE FROM blobs WHERE hash = ?").bind(hash).execute(&mut *connection).await.map_err(store_error)?;
    }
    Ok(garbage.len())
}

/// Whether nothing has removed these blobs since they were announced, nor will before this transaction ends.
pub(super) async fn are_there(
    connection: &mut Connection,
    hashes: impl Iterator<Item = &str>,
) -> Result<bool, StoreError> {
    for hash in hashes {
        let is_there: bool = query_scalar("SELECT EXISTS (SELECT 1 FROM blobs WHERE hash = ?)")
            .bind(hash)
            .fetch_one(&mut *connection)
            .await
            .map_err(store_error)?;
        if !is_there {
            return Ok(false);
        }
    }
    Ok(true)
}

#[async_trait]
impl BlobRegistry for SqliteStore {
    async fn announce(&self, blob: &Blob) -> Result<(), StoreError> {
        self.registry.announce(blob).await
    }

    async fn collect(&self, limit: usize) -> Result<usize, StoreError> {
        self.registry.collect(limit).await
    }
}

//! The registry of blobs in PostgreSQL. The rule that it keeps its part of is in `engine::port::blobs`.

use std::sync::Arc;

use async_trait::async_trait;
use engine::port::blobs::UNREFERENCED_KEPT_MICROS;
use engine::port::{Blob, BlobHash, BlobRegistry, Blobs, StoreError};
use futures::StreamExt as _;
use sqlx::{Postgres, query, query_scalar};

use super::{PostgresStore, bounded, now};
use crate::connections::Connections;
use crate::failure::store_error;
use crate::references::unreferenced;
use crate::row::{integer, row_limit};

/// The lock that one collector of all replicas holds while it collects.
const COLLECTOR_LOCK: i64 = 0x626c_6f62_7367_6f6e;

/// Blobs that are removed at the same time.
const REMOVED_AT_ONCE: usize = 8;

/// What the registry works with, apart from the store that owns it.
pub(super) struct Registry {
    pub(super) pool: Connections<Postgres>,
    /// `None` where no store for blobs is configured.
    pub(super) bytes: Option<Arc<dyn Blobs>>,
}

#[async_trait]
impl BlobRegistry for Registry {
    async fn announce(&self, blob: &Blob) -> Result<(), StoreError> {
        bounded(async {
            query(concat!(
                "INSERT INTO blobs (hash, bytes, touched_at) VALUES ($1, $2, ",
                now!(),
                ") ON CONFLICT (hash) DO UPDATE SET touched_at = excluded.touched_at, bytes = excluded.bytes"
            ))
            .bind(blob.hash.as_str())
            .bind(integer(blob.bytes))
            .execute(&self.pool)
            .await
            .map_err(store_error)?;
            Ok(())
        })
        .await
    }

    async fn collect(&self, limit: usize) -> Result<usize, StoreError> {
        let Some(bytes) = &self.bytes else { return Ok(0) };
        let mut transaction = bounded(async { self.pool.begin().await.map_err(store_error) }).await?;
        let garbage: Vec<String> = bounded(async {
            let mine: bool = query_scalar("SELECT pg_try_advisory_xact_lock($1)")
                .bind(COLLECTOR_LOCK)
                .fetch_one(&mut *transaction)
                .await
                .map_err(store_error)?;
            if !mine {
                return Ok(Vec::new());
            }
            query_scalar(concat!(
                "SELECT b.hash FROM blobs b WHERE b.touched_at <= ",
                now!(),
                " - $1 AND ",
                unreferenced!(),
                " ORDER BY b.touched_at LIMIT $2 FOR UPDATE SKIP LOCKED"
            ))
            .bind(UNREFERENCED_KEPT_MICROS)
            .bind(row_limit(limit))
            .fetch_all(&mut *transaction)
            .await
            .map_err(store_error)
        })
        .await?;
        if garbage.is_empty() {
            // A transaction that is dropped ends some time later, and has the lock until then.
            bounded(async { transaction.rollback().await.map_err(store_error) }).await?;
            return Ok(0);
        }
        // A blob that could not be removed keeps its row, and is tried again in the next pass.
        let removed: Vec<String> = futures::stream::iter(garbage)
            .map(async |hash| match BlobHash::parse(&hash) {
                Some(parsed) => bytes.remove(&parsed).await.map(|()| hash),
                None => Ok(hash),
            })
            .buffer_unordered(REMOVED_AT_ONCE)
            .filter_map(async |removed| match removed {
                Ok(hash) => Some(hash),
                Err(error) => {
                    tracing::warn!(%error, "garbage could not be removed");
                    None
                }
            })
            .collect()
            .await;
        bounded(async {
            query("DELETE FROM blobs WHERE hash = ANY($1)")
                .bind(&removed)
                .execute(&mut *transaction)
                .await
                .map_err(store_error)?;
            transaction.commit().await.map_err(store_error)?;
            Ok(removed.len())
        })
        .await
    }
}

#[async_trait]
impl BlobRegistry for PostgresStore {
    async fn announce(&self, blob: &Blob) -> Result<(), StoreError> {
        self.registry.announce(blob).await
    }

    async fn collect(&self, limit: usize) -> Result<usize, StoreError> {
        self.registry.collect(limit).await
    }
}

//! Blobs whose every request is counted and timed.

use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use bytes::Bytes;
use engine::port::{Blob, BlobHash, BlobWriter, Blobs, OpenBlob, StoreError};

use super::metrics::Metrics;

/// An object store under observation.
pub struct MeteredBlobs {
    blobs: Arc<dyn Blobs>,
    metrics: Arc<Metrics>,
}

impl MeteredBlobs {
    /// Tells `metrics` what is asked of `blobs`.
    pub fn new(blobs: Arc<dyn Blobs>, metrics: Arc<Metrics>) -> Self {
        Self { blobs, metrics }
    }
}

/// Tells of one request. `bytes` is what it moved if it succeeded.
fn tell<T>(
    metrics: &Metrics,
    op: &'static str,
    began: Instant,
    done: &Result<Option<T>, StoreError>,
    bytes: impl FnOnce(&T) -> u64,
) {
    let (outcome, bytes) = match done {
        Ok(Some(done)) => ("success", bytes(done)),
        Ok(None) => ("not_found", 0),
        Err(_) => ("error", 0),
    };
    metrics.object_store(op, outcome, began.elapsed(), bytes);
}

#[async_trait]
impl Blobs for MeteredBlobs {
    async fn put(&self, bytes: Vec<u8>) -> Result<BlobHash, StoreError> {
        let (began, length) = (Instant::now(), bytes.len() as u64);
        let done = self.blobs.put(bytes).await.map(Some);
        tell(&self.metrics, "put", began, &done, |_| length);
        Ok(done?.expect("a put has an answer"))
    }

    async fn get(&self, hash: &BlobHash) -> Result<Option<Vec<u8>>, StoreError> {
        let began = Instant::now();
        let done = self.blobs.get(hash).await;
        tell(&self.metrics, "get", began, &done, |bytes| bytes.len() as u64);
        done
    }

    async fn begin(&self) -> Result<Box<dyn BlobWriter>, StoreError> {
        let writer = self.blobs.begin().await?;
        Ok(Box::new(MeteredWriter { writer, metrics: Arc::clone(&self.metrics), bytes: 0 }))
    }

    async fn open(&self, hash: &BlobHash) -> Result<Option<OpenBlob>, StoreError> {
        let began = Instant::now();
        let done = self.blobs.open(hash).await;
        tell(&self.metrics, "get", began, &done, |open| open.bytes);
        done
    }

    async fn remove(&self, hash: &BlobHash) -> Result<(), StoreError> {
        let began = Instant::now();
        let done = self.blobs.remove(hash).await.map(Some);
        tell(&self.metrics, "delete", began, &done, |()| 0);
        done.map(drop)
    }

    /// Not counted: it is asked by the clock, not for a request's sake.
    async fn ping(&self) -> Result<(), StoreError> {
        self.blobs.ping().await
    }
}

struct MeteredWriter {
    writer: Box<dyn BlobWriter>,
    metrics: Arc<Metrics>,
    bytes: u64,
}

#[async_trait]
impl BlobWriter for MeteredWriter {
    async fn write(&mut self, piece: Bytes) -> Result<(), StoreError> {
        self.writer.write(piece).await
    }

    async fn seal(&mut self) -> Result<Blob, StoreError> {
        let blob = self.writer.seal().await?;
        self.bytes = blob.bytes;
        Ok(blob)
    }

    async fn keep(self: Box<Self>) -> Result<(), StoreError> {
        let began = Instant::now();
        let done = self.writer.keep().await.map(Some);
        tell(&self.metrics, "put", began, &done, |()| self.bytes);
        done.map(drop)
    }
}

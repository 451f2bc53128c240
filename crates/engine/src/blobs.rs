//! Blobs that the registry knows of before they are there.
//!
//! The first two steps of the rule in [`crate::port::blobs`], so that nobody who puts a blob can forget the first.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use crate::port::{Blob, BlobHash, BlobRegistry, BlobWriter, Blobs, OpenBlob, StoreError};

/// Blobs that are announced before they are put.
pub struct Announced {
    registry: Arc<dyn BlobRegistry>,
    blobs: Arc<dyn Blobs>,
}

impl Announced {
    /// Announces to `registry` what it puts into `blobs`.
    pub fn new(registry: Arc<dyn BlobRegistry>, blobs: Arc<dyn Blobs>) -> Self {
        Self { registry, blobs }
    }
}

#[async_trait]
impl Blobs for Announced {
    async fn put(&self, bytes: Vec<u8>) -> Result<BlobHash, StoreError> {
        let blob = Blob { hash: BlobHash::of(&bytes), bytes: bytes.len() as u64 };
        self.registry.announce(&blob).await?;
        self.blobs.put(bytes).await
    }

    async fn get(&self, hash: &BlobHash) -> Result<Option<Vec<u8>>, StoreError> {
        self.blobs.get(hash).await
    }

    async fn begin(&self) -> Result<Box<dyn BlobWriter>, StoreError> {
        let writer = self.blobs.begin().await?;
        Ok(Box::new(AnnouncedWriter { registry: Arc::clone(&self.registry), writer }))
    }

    async fn open(&self, hash: &BlobHash) -> Result<Option<OpenBlob>, StoreError> {
        self.blobs.open(hash).await
    }

    async fn remove(&self, hash: &BlobHash) -> Result<(), StoreError> {
        self.blobs.remove(hash).await
    }

    async fn ping(&self) -> Result<(), StoreError> {
        self.blobs.ping().await
    }
}

struct AnnouncedWriter {
    registry: Arc<dyn BlobRegistry>,
    writer: Box<dyn BlobWriter>,
}

#[async_trait]
impl BlobWriter for AnnouncedWriter {
    async fn write(&mut self, piece: Bytes) -> Result<(), StoreError> {
        self.writer.write(piece).await
    }

    async fn seal(&mut self) -> Result<Blob, StoreError> {
        let blob = self.writer.seal().await?;
        self.registry.announce(&blob).await?;
        Ok(blob)
    }

    async fn keep(self: Box<Self>) -> Result<(), StoreError> {
        self.writer.keep().await
    }
}

//! Blobs in memory, and the registry of a store in memory.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt as _;
use session::Timestamp;

use super::MemoryStore;
use super::store::Tables;
use crate::blobs::Announced;
use crate::port::StoreError;
use crate::port::blobs::{Blob, BlobHash, BlobRegistry, BlobWriter, Blobs, OpenBlob, verified};

/// Pieces are this long, so that readers meet more than one.
const PIECE_BYTES: usize = 64 * 1024;

/// Blobs that last as long as the process.
#[derive(Clone, Default)]
pub struct MemoryBlobs {
    blobs: Arc<Mutex<BTreeMap<BlobHash, Bytes>>>,
}

impl MemoryBlobs {
    /// No blobs yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts `bytes` where the blob with this hash lies, right or wrong, as a broken disk would.
    pub fn spoil(&self, hash: &BlobHash, bytes: Vec<u8>) {
        self.lock().insert(hash.clone(), bytes.into());
    }

    /// Every blob that is there.
    pub fn hashes(&self) -> BTreeSet<BlobHash> {
        self.lock().keys().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<BlobHash, Bytes>> {
        self.blobs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Blobs for MemoryBlobs {
    async fn put(&self, bytes: Vec<u8>) -> Result<BlobHash, StoreError> {
        let hash = BlobHash::of(&bytes);
        self.lock().insert(hash.clone(), bytes.into());
        Ok(hash)
    }

    async fn begin(&self) -> Result<Box<dyn BlobWriter>, StoreError> {
        Ok(Box::new(Pieces { blobs: self.clone(), bytes: Vec::new() }))
    }

    async fn open(&self, hash: &BlobHash) -> Result<Option<OpenBlob>, StoreError> {
        let Some(bytes) = self.lock().get(hash).cloned() else { return Ok(None) };
        let pieces: Vec<_> = bytes.chunks(PIECE_BYTES).map(|piece| Ok(bytes.slice_ref(piece))).collect();
        let content = verified(hash.clone(), futures::stream::iter(pieces).boxed());
        Ok(Some(OpenBlob { bytes: bytes.len() as u64, content }))
    }

    async fn remove(&self, hash: &BlobHash) -> Result<(), StoreError> {
        self.lock().remove(hash);
        Ok(())
    }

    async fn ping(&self) -> Result<(), StoreError> {
        Ok(())
    }
}

struct Pieces {
    blobs: MemoryBlobs,
    bytes: Vec<u8>,
}

#[async_trait]
impl BlobWriter for Pieces {
    async fn write(&mut self, piece: Bytes) -> Result<(), StoreError> {
        self.bytes.extend_from_slice(&piece);
        Ok(())
    }

    async fn seal(&mut self) -> Result<Blob, StoreError> {
        Ok(Blob { hash: BlobHash::of(&self.bytes), bytes: self.bytes.len() as u64 })
    }

    async fn keep(self: Box<Self>) -> Result<(), StoreError> {
        self.blobs.put(self.bytes).await.map(drop)
    }
}

impl MemoryStore {
    /// Its blobs, announced before they are put.
    pub fn blobs(self: &Arc<Self>) -> Arc<dyn Blobs> {
        Arc::new(Announced::new(Arc::clone(self) as _, Arc::new(self.bytes.clone())))
    }

    /// The same without the registry's knowledge.
    pub fn bytes(&self) -> &MemoryBlobs {
        &self.bytes
    }

    /// Everything that a file or a session's snapshot refers to.
    pub fn referenced_blobs(&self) -> BTreeSet<BlobHash> {
        let tables = self.tables();
        let of_files = tables.files.values().filter_map(|file| file.blob.as_ref());
        of_files.chain(tables.chunks.keys().map(|(_, chunk)| chunk)).cloned().collect()
    }

    /// Collects as one does that dies half-way: the bytes are gone, the registry still has their rows.
    pub fn collect_halfway(&self, limit: usize) {
        let now = self.now();
        let garbage = self.garbage(&self.tables(), now, limit);
        self.bytes.lock().retain(|hash, _| !garbage.contains(hash));
    }

    fn garbage(&self, tables: &Tables, now: Timestamp, limit: usize) -> Vec<BlobHash> {
        let is_old = |at: &Timestamp| now.as_micros() - at.as_micros() >= self.unreferenced_kept_micros;
        let garbage = tables.blobs.iter().filter(|(hash, touched_at)| is_old(touched_at) && !tables.refers_to(hash));
        garbage.map(|(hash, _)| hash.clone()).take(limit).collect()
    }
}

#[async_trait]
impl BlobRegistry for MemoryStore {
    async fn announce(&self, blob: &Blob) -> Result<(), StoreError> {
        let now = self.now();
        self.tables().blobs.insert(blob.hash.clone(), now);
        Ok(())
    }

    async fn collect(&self, limit: usize) -> Result<usize, StoreError> {
        let now = self.now();
        let mut tables = self.tables();
        let garbage = self.garbage(&tables, now, limit);
        for hash in &garbage {
            tables.blobs.remove(hash);
            self.bytes.lock().remove(hash);
        }
        Ok(garbage.len())
    }
}

impl Tables {
    /// Whether a file or a session's snapshot refers to the blob. Bodies of records stay in memory, whatever their size.
    fn refers_to(&self, hash: &BlobHash) -> bool {
        self.files.values().any(|file| file.blob.as_ref() == Some(hash))
            || self.chunks.keys().any(|(_, chunk)| chunk == hash)
    }
}

//! Blobs in memory.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use sha2::{Digest, Sha256};

use crate::port::StoreError;
use crate::port::blobs::{BlobHash, Blobs};

/// Blobs that last as long as the process.
#[derive(Default)]
pub struct MemoryBlobs {
    blobs: Mutex<BTreeMap<BlobHash, Vec<u8>>>,
}

impl MemoryBlobs {
    /// No blobs yet.
    pub fn new() -> Self {
        Self::default()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<BlobHash, Vec<u8>>> {
        self.blobs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Blobs for MemoryBlobs {
    async fn put(&self, bytes: Vec<u8>) -> Result<BlobHash, StoreError> {
        let digits: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        let hash = BlobHash::parse(&digits).expect("a SHA-256 has 64 digits");
        self.lock().insert(hash.clone(), bytes);
        Ok(hash)
    }

    async fn get(&self, hash: &BlobHash) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.lock().get(hash).cloned())
    }

    async fn remove(&self, hash: &BlobHash) -> Result<(), StoreError> {
        self.lock().remove(hash);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_blob_is_found_by_the_hash_of_its_bytes_until_it_is_removed() {
        let blobs = MemoryBlobs::new();
        let hash = blobs.put(b"abc".to_vec()).await.unwrap();
        assert_eq!(hash.as_str(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!(blobs.put(b"abc".to_vec()).await.unwrap(), hash);
        assert_eq!(blobs.get(&hash).await.unwrap(), Some(b"abc".to_vec()));
        blobs.remove(&hash).await.unwrap();
        assert_eq!(blobs.get(&hash).await.unwrap(), None);
    }
}

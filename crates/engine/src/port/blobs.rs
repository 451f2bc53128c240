//! Blobs: large content by the hash of its bytes, kept outside the log.
//!
//! Equal bytes are kept once. Who refers to a blob, and when nobody does any more, is known by whoever stores the
//! reference.

use std::fmt;

use async_trait::async_trait;

use super::StoreError;

/// The SHA-256 of a blob's bytes, in 64 lower-case hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlobHash(String);

impl BlobHash {
    /// The hash that `text` spells, if it does.
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        digits.then(|| Self(text.to_owned()))
    }

    /// The digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for BlobHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Keeps blobs.
#[async_trait]
pub trait Blobs: Send + Sync + 'static {
    /// Keeps the bytes; they are durable when the call returns.
    async fn put(&self, bytes: Vec<u8>) -> Result<BlobHash, StoreError>;

    /// The bytes with this hash. Bytes that have another hash by now are [`StoreError::Corrupt`].
    async fn get(&self, hash: &BlobHash) -> Result<Option<Vec<u8>>, StoreError>;

    /// Forgets the bytes, if they are there.
    async fn remove(&self, hash: &BlobHash) -> Result<(), StoreError>;
}

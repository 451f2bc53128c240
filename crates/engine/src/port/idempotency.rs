//! Answers kept for repeated requests: a request that names a key has one effect, however often it is sent.
//!
//! The row of a key is inserted first in the transaction of the write that it stands for. So a twin that comes at
//! the same time waits for that transaction: if it commits, the twin writes nothing ([`KeyUsed`]) and reads the
//! answer that was kept; if it is undone, the row goes with the rest, and the twin is the first. What is never
//! committed, refusals above all, is not kept. Keys are those of one credential, known by its hash.

use std::sync::Arc;

use async_trait::async_trait;

use super::StoreError;

/// How long an answer is kept, in milliseconds of the store's time.
pub const KEPT_MS: i64 = 24 * 60 * 60 * 1_000;

/// A request that names a key, and what makes another request under the same key a different one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyedRequest {
    pub credential_hash: String,
    pub key: String,
    pub method: String,
    /// The path with its query.
    pub path: String,
    /// Of the body as it was received, or of what it means where its bytes differ with every try.
    pub body_hash: String,
}

/// What a client is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    /// JSON text.
    pub body: String,
}

/// The first request under a key, and its answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    pub request: KeyedRequest,
    pub answer: Answer,
}

/// Has a write keep the answer that `answer` makes from what was written, in its own transaction.
#[derive(Clone)]
pub struct Keep<T> {
    pub request: KeyedRequest,
    pub answer: Arc<dyn Fn(&T) -> Answer + Send + Sync>,
}

impl<T> Keep<T> {
    /// What is kept once `written` is.
    pub fn kept(&self, written: &T) -> Kept {
        Kept { request: self.request.clone(), answer: (self.answer)(written) }
    }
}

/// A write was left undone because a request under its key was committed before.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the idempotency key has been used")]
pub struct KeyUsed;

/// Why an answer was not kept.
#[derive(Debug, thiserror::Error)]
pub enum KeepError {
    #[error(transparent)]
    KeyUsed(#[from] KeyUsed),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The answers that were kept. They are written by the appends and writes that carry them.
#[async_trait]
pub trait Idempotency: Send + Sync + 'static {
    /// What is kept under this credential's key.
    async fn kept(&self, credential_hash: &str, key: &str) -> Result<Option<Kept>, StoreError>;

    /// Keeps the answer of a request that found nothing to change.
    async fn keep(&self, kept: &Kept) -> Result<(), KeepError>;

    /// Forgets answers that were kept long enough, at most `limit` of them; how many.
    async fn purge_kept(&self, limit: usize) -> Result<usize, StoreError>;
}

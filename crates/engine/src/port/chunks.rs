//! Which chunks of workspace snapshots a session refers to.
//!
//! The chunks are blobs, shared by all sessions that hold equal bytes; a session may read, or skip uploading, only those
//! that it refers to itself, so that nobody learns what others have by asking for a hash.

use async_trait::async_trait;
use session::id::{SessionId, WorkId};

use super::{AppendError, BlobHash, StoreError};

/// The references of sessions to chunks and manifests.
#[async_trait]
pub trait Chunks: Send + Sync + 'static {
    /// Lets the session refer to a blob that has been put, if the token is still its item's: checked in the same
    /// transaction. Referring twice is referring once. A blob that was collected since it was announced is a
    /// [`AppendError::Conflict`]: it has to be put again.
    async fn refer(
        &self,
        session_id: &SessionId,
        work_id: &WorkId,
        token_hash: &str,
        hash: &BlobHash,
    ) -> Result<(), AppendError>;

    /// Those of `hashes` to which the session does not refer, in their order.
    async fn missing(&self, session_id: &SessionId, hashes: &[BlobHash]) -> Result<Vec<BlobHash>, StoreError>;

    /// Forgets the session's references that are older than `older_than_ms` and not in `keep`; how many.
    async fn forget(&self, session_id: &SessionId, keep: &[BlobHash], older_than_ms: i64) -> Result<usize, StoreError>;
}

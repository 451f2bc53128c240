//! Files: named content that clients upload, that sessions are given copies of, and that sessions make.

use async_trait::async_trait;
use session::Timestamp;
use session::id::{FileId, SessionId};

use super::{After, BlobHash, Keep, KeepError, KeyUsed, Order, StoreError};

/// A file, of which the content is a blob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    pub id: FileId,
    pub filename: String,
    pub mime_type: String,
    pub bytes: u64,
    /// `None` once it has expired and its content was let go.
    pub blob: Option<BlobHash>,
    pub created_at: Timestamp,
    pub expires_at: Option<Timestamp>,
    /// The session that it belongs to and goes with; `None` for an upload.
    pub session_id: Option<SessionId>,
}

impl File {
    /// Whether its content is not to be had any more.
    pub fn is_expired(&self, now: Timestamp) -> bool {
        self.blob.is_none() || self.expires_at.is_some_and(|expires_at| expires_at <= now)
    }
}

/// Why a file was not stored.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The blob is not in the registry any more: it was put too long ago. Put it again.
    #[error("the content is not there any more")]
    ContentGone,
    #[error(transparent)]
    KeyUsed(#[from] KeyUsed),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<KeepError> for FileError {
    fn from(error: KeepError) -> Self {
        match error {
            KeepError::KeyUsed(used) => used.into(),
            KeepError::Store(error) => error.into(),
        }
    }
}

/// Which files to list, ordered by creation.
#[derive(Clone, Debug)]
pub struct ListFiles {
    /// Those of one session alone.
    pub session_id: Option<SessionId>,
    pub order: Order,
    pub after: Option<After>,
    pub limit: usize,
}

/// The files. What sessions are given and what they make is stored by [`Resources`](super::Resources).
#[async_trait]
pub trait Files: Send + Sync + 'static {
    /// Stores a file whose blob was put: by the caller just now, or by whoever made another file that is there.
    async fn create_file(&self, file: &File, keep: Option<Keep<File>>) -> Result<(), FileError>;

    /// Those of these that are there.
    async fn files(&self, ids: &[FileId]) -> Result<Vec<File>, StoreError>;

    async fn list_files(&self, list: &ListFiles) -> Result<Vec<File>, StoreError>;

    /// Deletes those of these that are there and are nobody's resource; how many.
    async fn delete_files(&self, ids: &[FileId]) -> Result<usize, StoreError>;

    /// Lets go of the content of at most `limit` files that expired by `now`; how many.
    async fn expire_files(&self, now: Timestamp, limit: usize) -> Result<usize, StoreError>;
}

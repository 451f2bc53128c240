//! What a session is given, and what it makes: copies of files that are mounted in its sandbox, and its outputs.
//!
//! Both are [`File`]s of the session and go with it. A copy shares its content with the file that it was made from; it
//! goes with its resource, and not before ([`Files::delete_files`](super::Files::delete_files) leaves it alone). The
//! set of a session's resources has a version, which every change raises, so that a worker can tell with one number
//! whether what it has mounted is still what there is.

use async_trait::async_trait;
use session::id::{FileId, ResourceId, SessionId, WorkId};

use super::{BlobHash, File, Keep, KeepError, KeyUsed, StoreError};

/// Files that a session may be given.
pub const RESOURCES_MAX: usize = 500;
/// Files that a session may make.
pub const OUTPUTS_MAX: usize = 500;

/// A file that is mounted, read-only, in a session's sandbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileResource {
    pub id: ResourceId,
    /// Where tools see it.
    pub mount_path: String,
    /// The session's own copy, as old as the resource.
    pub file: File,
}

/// Why a session was not given a file.
#[derive(Debug, thiserror::Error)]
pub enum ResourceError {
    #[error("the session does not exist")]
    NoSession,
    #[error("the session is archived")]
    Archived,
    #[error("a session may have {RESOURCES_MAX} files at most")]
    Full,
    /// The path is that of another resource, or lies above or below it: this one.
    #[error("{0} is in the way")]
    InTheWay(String),
    /// The blob is not in the registry any more.
    #[error("the content is not there any more")]
    ContentGone,
    #[error(transparent)]
    KeyUsed(#[from] KeyUsed),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<KeepError> for ResourceError {
    fn from(error: KeepError) -> Self {
        match error {
            KeepError::KeyUsed(used) => used.into(),
            KeepError::Store(error) => error.into(),
        }
    }
}

/// A file that a session made, as the worker sends it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// Below the session's folder of outputs; which of its files this is.
    pub path: String,
    /// Stored unless the file that the path already has is equal.
    pub file: File,
}

/// What is known of an output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownOutput {
    pub path: String,
    /// The content that was sent last, whether or not a client has deleted its file since.
    pub hash: BlobHash,
}

/// What became of an output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PutOutput {
    /// It is a file now, in place of this one.
    Stored { replaced: Option<FileId> },
    /// The path had this content already.
    Unchanged,
}

/// Why an output was not stored.
#[derive(Debug, thiserror::Error)]
pub enum OutputError {
    #[error("the work item's token has ended")]
    TokenEnded,
    #[error("a session may have {OUTPUTS_MAX} outputs at most")]
    Full,
    /// The blob is not in the registry any more: it has to be put again.
    #[error("the content is not there any more")]
    ContentGone,
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The resources and outputs of sessions. Those that a session is created with come with its first append.
#[async_trait]
pub trait Resources: Send + Sync + 'static {
    /// Gives the session of `resource.file` a file.
    async fn add_resource(
        &self,
        resource: &FileResource,
        keep: Option<Keep<FileResource>>,
    ) -> Result<(), ResourceError>;

    /// The resources of these sessions, oldest first.
    async fn resources(&self, sessions: &[SessionId]) -> Result<Vec<FileResource>, StoreError>;

    /// Whether a resource of the session has this content.
    async fn is_given(&self, session_id: &SessionId, hash: &BlobHash) -> Result<bool, StoreError>;

    /// Takes a resource, and its copy, from its session; `false` if there is none.
    async fn remove_resource(&self, session_id: &SessionId, id: &ResourceId) -> Result<bool, StoreError>;

    /// The version of the session's set of resources; 0 for a session that is not there.
    async fn resources_version(&self, session_id: &SessionId) -> Result<u64, StoreError>;

    /// Stores an output of the session of `output.file`, in place of the one that its path had, if the token is still
    /// its item's: checked in the same transaction.
    async fn put_output(&self, output: &Output, work_id: &WorkId, token_hash: &str) -> Result<PutOutput, OutputError>;

    /// What the session's paths had last, by path.
    async fn outputs(&self, session_id: &SessionId) -> Result<Vec<KnownOutput>, StoreError>;
}

/// The first of `taken` that is the path, or lies above or below it.
pub fn in_the_way<'t>(path: &str, taken: impl IntoIterator<Item = &'t str>) -> Option<&'t str> {
    let is_below = |path: &str, above: &str| path.strip_prefix(above).is_some_and(|rest| rest.starts_with('/'));
    taken.into_iter().find(|taken| path == *taken || is_below(path, taken) || is_below(taken, path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_no_folder() {
        let taken = ["/u/a", "/u/b/c"];
        for (path, expected) in [
            ("/u/a", Some("/u/a")),
            ("/u/a/b", Some("/u/a")),
            ("/u/b", Some("/u/b/c")),
            ("/u/b/d", None),
            ("/u/ab", None),
            ("/u/b/c.txt", None),
        ] {
            assert_eq!(in_the_way(path, taken), expected, "{path}");
        }
    }
}

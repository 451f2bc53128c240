//! Where blobs lie: in a folder, or in object storage.
//!
//! Both keep a blob under its hash and check the hash again when they read. Neither knows who needs which blob: that
//! is the registry's business, in each database's own folder.

mod folder;
mod object;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use engine::port::Blobs;

pub use folder::FolderBlobs;
pub use object::ObjectBlobs;

/// Why a place for blobs cannot be used. No text holds a secret.
#[derive(Debug, thiserror::Error)]
pub enum BlobsError {
    #[error("the folder for blobs {folder} cannot be used: {error}")]
    Folder { folder: PathBuf, error: std::io::Error },
    #[error("the object store's address {0:?} is neither s3://bucket, s3://bucket/prefix nor a folder")]
    Address(String),
    #[error("the object store cannot be used: {0}")]
    Settings(String),
}

/// The place that `url` names: `s3://bucket/prefix` or a folder.
///
/// `variables` are those of the process environment, of which the `AWS_*` ones say how an object store is reached.
/// Blobs that are too large for the memory wait in `spool` while they come in.
pub fn open_blobs(
    url: &str,
    variables: impl IntoIterator<Item = (String, String)>,
    spool: &Path,
) -> Result<Arc<dyn Blobs>, BlobsError> {
    if url.contains("://") && !url.starts_with("file://") {
        return Ok(Arc::new(ObjectBlobs::open(url, variables, spool)?));
    }
    let folder = Path::new(url.strip_prefix("file://").unwrap_or(url));
    let blobs = FolderBlobs::open(folder).map_err(|error| BlobsError::Folder { folder: folder.to_owned(), error })?;
    Ok(Arc::new(blobs))
}

//! Blobs as files of a local folder, named by their hash.
//!
//! A file is written beside its place, flushed and renamed into it, and its folder flushed: a name that exists holds
//! the whole content, whatever crashed. Reading checks the hash again, so a disk that lies is found out.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use engine::port::{BlobHash, Blobs, StoreError};
use sha2::{Digest, Sha256};

/// A folder of blobs. One process at a time writes to it.
#[derive(Clone, Debug)]
pub struct FolderBlobs {
    folder: PathBuf,
}

/// Tells apart the files that are being written at the same time.
static WRITTEN: AtomicU64 = AtomicU64::new(0);

impl FolderBlobs {
    /// Uses `folder`, which is made if it is not there. What earlier processes left half written is removed.
    pub fn open(folder: &Path) -> io::Result<Self> {
        let unfinished = folder.join("unfinished");
        match fs::remove_dir_all(&unfinished) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => fs::create_dir_all(&unfinished)?,
        }
        Ok(Self { folder: folder.to_owned() })
    }

    /// Two levels, so that no folder grows without bound.
    fn path(&self, hash: &BlobHash) -> PathBuf {
        let (shelf, name) = hash.as_str().split_at(2);
        self.folder.join(shelf).join(name)
    }

    fn write(&self, bytes: &[u8]) -> io::Result<BlobHash> {
        let hash = hash_of(bytes);
        let path = self.path(&hash);
        if path.exists() {
            return Ok(hash);
        }
        let number = WRITTEN.fetch_add(1, Ordering::Relaxed);
        let unfinished = self.folder.join("unfinished").join(format!("{number}-{hash}"));
        let mut file = File::create_new(&unfinished)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        let shelf = path.parent().expect("every blob lies on a shelf");
        if !shelf.exists() {
            fs::create_dir_all(shelf)?;
            File::open(&self.folder)?.sync_all()?;
        }
        fs::rename(&unfinished, &path)?;
        File::open(shelf)?.sync_all()?;
        Ok(hash)
    }

    fn read(&self, hash: &BlobHash) -> Result<Option<Vec<u8>>, StoreError> {
        match fs::read(self.path(hash)) {
            Ok(bytes) if hash_of(&bytes) == *hash => Ok(Some(bytes)),
            Ok(_) => Err(StoreError::Corrupt(format!("the content of blob {hash} has changed"))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(unavailable(hash, &error)),
        }
    }
}

#[async_trait]
impl Blobs for FolderBlobs {
    async fn put(&self, bytes: Vec<u8>) -> Result<BlobHash, StoreError> {
        let blobs = self.clone();
        off_the_runtime(move || blobs.write(&bytes).map_err(|error| unavailable("to be written", &error))).await
    }

    async fn get(&self, hash: &BlobHash) -> Result<Option<Vec<u8>>, StoreError> {
        let (blobs, hash) = (self.clone(), hash.clone());
        off_the_runtime(move || blobs.read(&hash)).await
    }

    async fn remove(&self, hash: &BlobHash) -> Result<(), StoreError> {
        let (path, hash) = (self.path(hash), hash.clone());
        off_the_runtime(move || match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(unavailable(&hash, &error)),
            _ => Ok(()),
        })
        .await
    }
}

async fn off_the_runtime<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(StoreError::Unavailable(error.to_string())))
}

fn hash_of(bytes: &[u8]) -> BlobHash {
    use std::fmt::Write as _;
    let digest = Sha256::digest(bytes);
    let mut digits = String::with_capacity(64);
    for byte in digest {
        write!(digits, "{byte:02x}").expect("writing to a string does not fail");
    }
    BlobHash::parse(&digits).expect("SHA-256 has 64 digits")
}

fn unavailable(blob: impl std::fmt::Display, error: &io::Error) -> StoreError {
    StoreError::Unavailable(format!("blob {blob}: {error}"))
}

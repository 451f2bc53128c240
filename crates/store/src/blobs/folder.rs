//! Blobs as files of a folder, named by their hash.
//!
//! A file is written beside its place, flushed and renamed into it, and its folder flushed: a name that exists holds
//! the whole content, whatever crashed. Reading checks the hash again, so a disk that lies is found out. Several
//! processes may use one folder, on a file system that they share.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use engine::port::blobs::verified;
use engine::port::{Blob, BlobHash, BlobWriter, Blobs, OpenBlob, StoreError};
use futures::StreamExt as _;
use sha2::{Digest as _, Sha256};
use tempfile::NamedTempFile;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// What is read at a time.
const PIECE_BYTES: usize = 256 * 1024;

/// What a process left half written is removed when it is this old: nobody writes one file for so long.
const UNFINISHED_KEPT: Duration = Duration::from_secs(24 * 60 * 60);

/// A folder of blobs.
#[derive(Clone, Debug)]
pub struct FolderBlobs {
    folder: PathBuf,
}

impl FolderBlobs {
    /// Uses `folder`, which is made if it is not there. What earlier processes left half written is removed in time.
    pub fn open(folder: &Path) -> io::Result<Self> {
        let blobs = Self { folder: folder.to_owned() };
        fs::create_dir_all(blobs.unfinished())?;
        for entry in fs::read_dir(blobs.unfinished())? {
            let entry = entry?;
            let written = entry.metadata().and_then(|metadata| metadata.modified());
            let age = written.ok().and_then(|written| written.elapsed().ok());
            if age.is_some_and(|age| age > UNFINISHED_KEPT) {
                let _ = fs::remove_file(entry.path());
            }
        }
        Ok(blobs)
    }

    fn unfinished(&self) -> PathBuf {
        self.folder.join("unfinished")
    }

    /// Two levels, so that no folder grows without bound.
    fn path(&self, hash: &BlobHash) -> PathBuf {
        let (shelf, name) = hash.as_str().split_at(2);
        self.folder.join(shelf).join(name)
    }

    fn write(&self, bytes: &[u8]) -> io::Result<BlobHash> {
        let hash = BlobHash::of(bytes);
        let mut file = NamedTempFile::new_in(self.unfinished())?;
        file.write_all(bytes)?;
        self.keep(file, &hash)?;
        Ok(hash)
    }

    /// Flushes a whole file and moves it to its place.
    fn keep(&self, file: NamedTempFile, hash: &BlobHash) -> io::Result<()> {
        file.as_file().sync_all()?;
        let path = self.path(hash);
        let shelf = path.parent().expect("every blob lies on a shelf");
        if !shelf.exists() {
            fs::create_dir_all(shelf)?;
            File::open(&self.folder)?.sync_all()?;
        }
        file.persist(&path)?;
        File::open(shelf)?.sync_all()
    }
}

#[async_trait]
impl Blobs for FolderBlobs {
    async fn put(&self, bytes: Vec<u8>) -> Result<BlobHash, StoreError> {
        let blobs = self.clone();
        off_the_runtime("to be written", move || blobs.write(&bytes)).await
    }

    async fn begin(&self) -> Result<Box<dyn BlobWriter>, StoreError> {
        let folder = self.unfinished();
        let file = off_the_runtime("to be written", move || {
            let file = NamedTempFile::new_in(folder)?;
            let writing = file.as_file().try_clone()?;
            Ok((file, writing))
        });
        let (file, writing) = file.await?;
        let writing = tokio::fs::File::from_std(writing);
        Ok(Box::new(FolderWriter { blobs: self.clone(), file, writing, hasher: Sha256::new(), sealed: None, bytes: 0 }))
    }

    async fn open(&self, hash: &BlobHash) -> Result<Option<OpenBlob>, StoreError> {
        let file = match tokio::fs::File::open(self.path(hash)).await {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(unavailable(hash, &error)),
        };
        let bytes = file.metadata().await.map_err(|error| unavailable(hash, &error))?.len();
        let of = hash.clone();
        let pieces = futures::stream::try_unfold(file, move |mut file| {
            let of = of.clone();
            async move {
                let mut piece = Vec::with_capacity(PIECE_BYTES);
                let read = (&mut file).take(PIECE_BYTES as u64).read_to_end(&mut piece).await;
                match read.map_err(|error| unavailable(&of, &error))? {
                    0 => Ok(None),
                    _ => Ok(Some((Bytes::from(piece), file))),
                }
            }
        });
        Ok(Some(OpenBlob { bytes, content: verified(hash.clone(), pieces.boxed()) }))
    }

    async fn remove(&self, hash: &BlobHash) -> Result<(), StoreError> {
        let path = self.path(hash);
        off_the_runtime(hash.clone(), move || match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        })
        .await
    }

    async fn ping(&self) -> Result<(), StoreError> {
        let folder = self.unfinished();
        off_the_runtime("folder", move || fs::read_dir(folder).map(drop)).await
    }
}

/// A file that is being written beside its place.
struct FolderWriter {
    blobs: FolderBlobs,
    /// Removes itself when it is dropped.
    file: NamedTempFile,
    writing: tokio::fs::File,
    hasher: Sha256,
    bytes: u64,
    sealed: Option<BlobHash>,
}

#[async_trait]
impl BlobWriter for FolderWriter {
    async fn write(&mut self, piece: Bytes) -> Result<(), StoreError> {
        self.hasher.update(&piece);
        self.bytes += piece.len() as u64;
        self.writing.write_all(&piece).await.map_err(|error| unavailable("to be written", &error))
    }

    async fn seal(&mut self) -> Result<Blob, StoreError> {
        self.writing.flush().await.map_err(|error| unavailable("to be written", &error))?;
        let hash = BlobHash::finish(std::mem::take(&mut self.hasher));
        self.sealed = Some(hash.clone());
        Ok(Blob { hash, bytes: self.bytes })
    }

    async fn keep(self: Box<Self>) -> Result<(), StoreError> {
        let Self { blobs, file, sealed, .. } = *self;
        let hash = sealed.expect("a blob is sealed before it is kept");
        off_the_runtime(hash.clone(), move || blobs.keep(file, &hash)).await
    }
}

async fn off_the_runtime<T: Send + 'static>(
    blob: impl std::fmt::Display,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, StoreError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done.map_err(|error| unavailable(blob, &error)),
        Err(error) => Err(StoreError::Unavailable(error.to_string())),
    }
}

fn unavailable(blob: impl std::fmt::Display, error: &io::Error) -> StoreError {
    StoreError::Unavailable(format!("blob {blob}: {error}"))
}

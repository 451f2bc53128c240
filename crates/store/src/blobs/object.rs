//! Blobs as objects of an S3-compatible store, named by their hash.
//!
//! Only put, get and delete are asked for, and multipart for what is large: no conditional write, which not every
//! store has, and no list. Every request is bounded in time and tried again a few times. A blob is read in ranges, so
//! that a slow reader holds neither a connection nor more than one range in memory.
//!
//! A blob that comes in pieces is named once its last piece was seen. Until then it waits here: the first part in
//! memory, the rest in a file without a name. The other way, to upload it under a name of its own and let the store
//! copy it, moves the bytes twice and leaves the objects of dead processes behind.

use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use engine::port::blobs::verified;
use engine::port::{Blob, BlobHash, BlobWriter, Blobs, OpenBlob, StoreError};
use futures::StreamExt as _;
use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey};
use object_store::client::ClientConfigKey;
use object_store::path::Path;
use object_store::{
    BackoffConfig, GetOptions, GetRange, ObjectStore as _, ObjectStoreExt as _, PutPayload, RetryConfig, WriteMultipart,
};
use sha2::{Digest as _, Sha256};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _, AsyncWriteExt as _};

use super::BlobsError;

/// What is sent, read and kept in memory at a time: the part of a multipart upload, and what goes without one.
const PART_BYTES: usize = 5 * 1024 * 1024;

/// Parts of one upload that are under way at the same time.
const PARTS_AT_ONCE: usize = 3;

/// The name that is looked for to see whether the store answers. Nothing has it.
const PROBE: &str = "probe";

/// What the environment may set otherwise, in the words of the library.
const DEFAULTS: [(ClientConfigKey, &str); 3] = [
    (ClientConfigKey::ConnectTimeout, "2 seconds"),
    // Without a byte of the answer, which a part on its way there counts for.
    (ClientConfigKey::ReadTimeout, "30 seconds"),
    (ClientConfigKey::Timeout, "60 seconds"),
];

fn retries() -> RetryConfig {
    RetryConfig {
        backoff: BackoffConfig {
            init_backoff: Duration::from_millis(100),
            max_backoff: Duration::from_secs(2),
            base: 2.0,
        },
        max_retries: 4,
        retry_timeout: Duration::from_secs(10),
    }
}

/// A bucket, or the part of one below a prefix. Several processes may use it.
#[derive(Clone)]
pub struct ObjectBlobs {
    bucket: Arc<AmazonS3>,
    prefix: Path,
    spool: PathBuf,
}

impl ObjectBlobs {
    /// Uses `s3://bucket/prefix` as the `AWS_*` ones of `variables` say; nothing is asked of it yet. Blobs that are
    /// larger than a part wait in files of the folder `spool` while they come in.
    pub fn open(
        url: &str,
        variables: impl IntoIterator<Item = (String, String)>,
        spool: &FilePath,
    ) -> Result<Self, BlobsError> {
        let address = || BlobsError::Address(url.to_owned());
        let place = url.strip_prefix("s3://").ok_or_else(address)?;
        let (bucket, prefix) = place.split_once('/').unwrap_or((place, ""));
        if bucket.is_empty() || place.contains(['?', '#', '@']) {
            return Err(address());
        }
        let mut builder = AmazonS3Builder::new().with_retry(retries()).with_disable_bulk_delete(true);
        for (key, value) in DEFAULTS {
            builder = builder.with_config(AmazonS3ConfigKey::Client(key), value);
        }
        for (name, value) in variables.into_iter().filter(|(name, _)| name.starts_with("AWS_")) {
            // Tools share these variables: one that says nothing to us is somebody else's.
            if let Ok(key) = name.to_ascii_lowercase().parse() {
                builder = builder.with_config(key, value);
            }
        }
        let bucket =
            builder.with_bucket_name(bucket).build().map_err(|error| BlobsError::Settings(innermost(&error)))?;
        let prefix = Path::parse(prefix).map_err(|_| address())?;
        Ok(Self { bucket: Arc::new(bucket), prefix, spool: spool.to_owned() })
    }

    /// Two levels, as in a folder, for those who look at the bucket with a file browser.
    fn path(&self, hash: &BlobHash) -> Path {
        let (shelf, name) = hash.as_str().split_at(2);
        self.prefix.clone().join(shelf).join(name)
    }

    async fn put_small(&self, hash: &BlobHash, bytes: Bytes) -> Result<(), StoreError> {
        let put = self.bucket.put(&self.path(hash), PutPayload::from_bytes(bytes)).await;
        put.map(drop).map_err(|error| unavailable(hash, &error))
    }

    /// One range of a blob, with the size of the whole; `None` if it is not there.
    async fn range(&self, hash: &BlobHash, from: u64) -> Result<Option<(u64, Bytes)>, StoreError> {
        let range = GetRange::Bounded(from..from + PART_BYTES as u64);
        let options = GetOptions { range: Some(range), ..GetOptions::default() };
        let got = match self.bucket.get_opts(&self.path(hash), options).await {
            Ok(got) => got,
            Err(object_store::Error::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(unavailable(hash, &error)),
        };
        let size = got.meta.size;
        let bytes = got.bytes().await.map_err(|error| unavailable(hash, &error))?;
        Ok(Some((size, bytes)))
    }

    /// The size of what lies there. Only asked where a range cannot be had: an empty object has none.
    async fn size(&self, hash: &BlobHash) -> Result<Option<u64>, StoreError> {
        match self.bucket.head(&self.path(hash)).await {
            Ok(meta) => Ok(Some(meta.size)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(unavailable(hash, &error)),
        }
    }
}

#[async_trait]
impl Blobs for ObjectBlobs {
    async fn put(&self, bytes: Vec<u8>) -> Result<BlobHash, StoreError> {
        if bytes.len() <= PART_BYTES {
            let hash = BlobHash::of(&bytes);
            self.put_small(&hash, bytes.into()).await?;
            return Ok(hash);
        }
        let mut writer = self.begin().await?;
        writer.write(bytes.into()).await?;
        let blob = writer.seal().await?;
        writer.keep().await?;
        Ok(blob.hash)
    }

    async fn begin(&self) -> Result<Box<dyn BlobWriter>, StoreError> {
        let (blobs, hasher) = (self.clone(), Sha256::new());
        Ok(Box::new(ObjectWriter { blobs, hasher, bytes: 0, memory: Vec::new(), file: None, sealed: None }))
    }

    async fn open(&self, hash: &BlobHash) -> Result<Option<OpenBlob>, StoreError> {
        let first = match self.range(hash, 0).await {
            Ok(first) => first,
            // No range lies within an empty object, and stores say so in different ways.
            Err(error) => match self.size(hash).await {
                Ok(Some(0)) => Some((0, Bytes::new())),
                Ok(None) => None,
                Ok(Some(_)) | Err(_) => return Err(error),
            },
        };
        let Some((size, first)) = first else { return Ok(None) };
        let rest = (self.clone(), hash.clone(), first.len() as u64);
        let rest = futures::stream::try_unfold(rest, move |(blobs, hash, from)| async move {
            if from >= size {
                return Ok(None);
            }
            let gone = || StoreError::Corrupt(format!("blob {hash} went while it was read"));
            let (_, piece) = blobs.range(&hash, from).await?.ok_or_else(gone)?;
            if piece.is_empty() {
                return Err(gone());
            }
            let next = from + piece.len() as u64;
            Ok(Some((piece, (blobs, hash, next))))
        });
        let first = futures::stream::iter((!first.is_empty()).then_some(Ok(first)));
        Ok(Some(OpenBlob { bytes: size, content: verified(hash.clone(), first.chain(rest).boxed()) }))
    }

    async fn remove(&self, hash: &BlobHash) -> Result<(), StoreError> {
        match self.bucket.delete(&self.path(hash)).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(unavailable(hash, &error)),
        }
    }

    async fn ping(&self) -> Result<(), StoreError> {
        match self.bucket.head(&self.prefix.clone().join(PROBE)).await {
            Ok(_) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(StoreError::Unavailable(innermost(&error))),
        }
    }
}

/// A blob whose name is not known yet.
struct ObjectWriter {
    blobs: ObjectBlobs,
    hasher: Sha256,
    bytes: u64,
    /// What the file does not hold: all of it, or nothing.
    memory: Vec<u8>,
    file: Option<tokio::fs::File>,
    sealed: Option<BlobHash>,
}

#[async_trait]
impl BlobWriter for ObjectWriter {
    async fn write(&mut self, piece: Bytes) -> Result<(), StoreError> {
        self.hasher.update(&piece);
        self.bytes += piece.len() as u64;
        if self.file.is_none() && self.memory.len() + piece.len() <= PART_BYTES {
            self.memory.extend_from_slice(&piece);
            return Ok(());
        }
        if self.file.is_none() {
            let spool = self.blobs.spool.clone();
            let made = tokio::task::spawn_blocking(move || {
                std::fs::create_dir_all(&spool)?;
                tempfile::tempfile_in(&spool)
            });
            let made = made.await.map_err(|error| StoreError::Unavailable(error.to_string()))?;
            let mut file = tokio::fs::File::from_std(made.map_err(|error| self.unspooled(&error))?);
            file.write_all(&std::mem::take(&mut self.memory)).await.map_err(|error| self.unspooled(&error))?;
            self.file = Some(file);
        }
        let Some(file) = &mut self.file else { return Ok(()) };
        let written = file.write_all(&piece).await;
        written.map_err(|error| self.unspooled(&error))
    }

    async fn seal(&mut self) -> Result<Blob, StoreError> {
        if let Some(file) = &mut self.file {
            let flushed = file.flush().await;
            flushed.map_err(|error| self.unspooled(&error))?;
        }
        let hash = BlobHash::finish(std::mem::take(&mut self.hasher));
        self.sealed = Some(hash.clone());
        Ok(Blob { hash, bytes: self.bytes })
    }

    async fn keep(mut self: Box<Self>) -> Result<(), StoreError> {
        let hash = self.sealed.take().expect("a blob is sealed before it is kept");
        let Some(mut file) = self.file.take() else {
            return self.blobs.put_small(&hash, std::mem::take(&mut self.memory).into()).await;
        };
        file.rewind().await.map_err(|error| self.unspooled(&error))?;
        let upload = self.blobs.bucket.put_multipart(&self.blobs.path(&hash)).await;
        let upload = upload.map_err(|error| unavailable(&hash, &error))?;
        let mut upload = WriteMultipart::new_with_chunk_size(upload, PART_BYTES);
        let sent = self.send(&hash, &mut file, &mut upload).await;
        if let Err(error) = sent {
            // The parts that arrived are of no use, and a store may bill for them.
            if let Err(error) = upload.abort().await {
                tracing::warn!(blob = %hash, error = innermost(&error), "an unfinished upload stays in the object store");
            }
            return Err(error);
        }
        upload.finish().await.map(drop).map_err(|error| unavailable(&hash, &error))
    }
}

impl ObjectWriter {
    async fn send(
        &self,
        hash: &BlobHash,
        file: &mut tokio::fs::File,
        upload: &mut WriteMultipart,
    ) -> Result<(), StoreError> {
        loop {
            let mut part = Vec::with_capacity(PART_BYTES);
            let read = (&mut *file).take(PART_BYTES as u64).read_to_end(&mut part).await;
            if read.map_err(|error| self.unspooled(&error))? == 0 {
                return Ok(());
            }
            upload.wait_for_capacity(PARTS_AT_ONCE).await.map_err(|error| unavailable(hash, &error))?;
            upload.put(part.into());
        }
    }

    fn unspooled(&self, error: &std::io::Error) -> StoreError {
        let spool = self.blobs.spool.display();
        StoreError::Unavailable(format!("a blob cannot wait in {spool} until it is whole: {error}"))
    }
}

fn unavailable(hash: &BlobHash, error: &object_store::Error) -> StoreError {
    StoreError::Unavailable(format!("blob {hash}: {}", innermost(error)))
}

/// What an error was about in the end, on one line: what stands around it repeats addresses and whole answers.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    let text = error.to_string();
    let line: Vec<_> = text.split_whitespace().collect();
    line.join(" ").chars().take(300).collect()
}

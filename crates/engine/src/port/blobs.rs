//! Blobs: large content by the hash of its bytes, kept outside the log; and the registry of who needs them.
//!
//! Equal bytes are kept once. Two ports, because two things fail apart: [`Blobs`] are the bytes, in memory, a folder
//! or object storage, and [`BlobRegistry`] is a table of the database that also holds the references.
//!
//! The rule that keeps a blob from being collected while somebody begins to refer to it has four steps, and no step
//! asks the object storage for more than put, get and delete:
//!
//! 1. Whoever will refer to a blob *announces* it: its row in the registry is inserted or touched, and committed.
//! 2. Then the bytes are put, whether or not somebody has put them before.
//! 3. Then the reference is written. Its transaction touches the row, and fails if the row is not there. The one that
//!    removes a reference touches the row too, so that its day begins then.
//! 4. The collector locks the rows that were not touched for [`UNREFERENCED_KEPT_MICROS`] and that nothing refers to,
//!    and removes bytes and rows before it lets go of the locks.
//!
//! An announcement that meets the collector waits for its lock, finds the row gone, inserts it anew and puts the bytes
//! after they were removed. One that comes first makes the row too young to be collected, for long enough to write the
//! reference. A collector that fails half-way leaves rows without bytes: nothing refers to them, and step 2 heals them.

use std::fmt;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use sha2::{Digest, Sha256};

use super::StoreError;

/// How long a blob stays that nothing refers to, since it was announced or since its last reference went.
pub const UNREFERENCED_KEPT_MICROS: i64 = 24 * 60 * 60 * 1_000_000;

/// The SHA-256 of a blob's bytes, in 64 lower-case hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlobHash(String);

impl BlobHash {
    /// The hash that `text` spells, if it does.
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        digits.then(|| Self(text.to_owned()))
    }

    /// The hash of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self::finish(Sha256::new_with_prefix(bytes))
    }

    /// The hash of everything that `hasher` was given.
    pub fn finish(hasher: Sha256) -> Self {
        use fmt::Write as _;
        let mut digits = String::with_capacity(64);
        for byte in hasher.finalize() {
            write!(digits, "{byte:02x}").expect("writing to a string does not fail");
        }
        Self(digits)
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

/// What a blob is, known once all of it was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blob {
    pub hash: BlobHash,
    pub bytes: u64,
}

/// Content in pieces. An item that is an error is the last one.
pub type BlobStream = BoxStream<'static, Result<Bytes, StoreError>>;

/// A blob that is being read.
pub struct OpenBlob {
    pub bytes: u64,
    /// The content. Its last piece comes only if the whole has the right hash; else the stream ends with
    /// [`StoreError::Corrupt`].
    pub content: BlobStream,
}

/// A blob that comes in pieces, of which only a bounded part is ever in memory. Dropping it forgets them.
#[async_trait]
pub trait BlobWriter: Send {
    async fn write(&mut self, piece: Bytes) -> Result<(), StoreError>;

    /// Nothing more comes: what the blob is. Called once, before [`BlobWriter::keep`].
    async fn seal(&mut self) -> Result<Blob, StoreError>;

    /// Keeps the sealed blob; it is durable when the call returns.
    async fn keep(self: Box<Self>) -> Result<(), StoreError>;
}

/// Keeps blobs.
#[async_trait]
pub trait Blobs: Send + Sync + 'static {
    /// Keeps the bytes; they are durable when the call returns.
    async fn put(&self, bytes: Vec<u8>) -> Result<BlobHash, StoreError>;

    /// The bytes with this hash. Bytes that have another hash by now are [`StoreError::Corrupt`].
    async fn get(&self, hash: &BlobHash) -> Result<Option<Vec<u8>>, StoreError> {
        let Some(open) = self.open(hash).await? else { return Ok(None) };
        let mut content = open.content;
        let mut bytes = Vec::with_capacity(usize::try_from(open.bytes).unwrap_or_default());
        while let Some(piece) = content.next().await {
            bytes.extend_from_slice(&piece?);
        }
        Ok(Some(bytes))
    }

    /// Begins a blob that comes in pieces.
    async fn begin(&self) -> Result<Box<dyn BlobWriter>, StoreError>;

    /// The bytes with this hash, in pieces.
    async fn open(&self, hash: &BlobHash) -> Result<Option<OpenBlob>, StoreError>;

    /// Forgets the bytes, if they are there.
    async fn remove(&self, hash: &BlobHash) -> Result<(), StoreError>;

    /// Asks for a sign of life.
    async fn ping(&self) -> Result<(), StoreError>;
}

/// Knows which blobs are needed. Its time is the store's.
#[async_trait]
pub trait BlobRegistry: Send + Sync + 'static {
    /// Says that a blob will be put and referred to: until [`UNREFERENCED_KEPT_MICROS`] have passed it is no garbage.
    /// Waits for a collection of it that is under way.
    async fn announce(&self, blob: &Blob) -> Result<(), StoreError>;

    /// Removes at most `limit` blobs that nothing needs; how many. None while another replica does so.
    async fn collect(&self, limit: usize) -> Result<usize, StoreError>;
}

/// `pieces` of the blob with this hash, the last one held back until the whole was checked.
pub fn verified(hash: BlobHash, pieces: BlobStream) -> BlobStream {
    struct Check {
        pieces: BlobStream,
        hash: BlobHash,
        hasher: Sha256,
        held: Option<Bytes>,
        ended: bool,
    }
    let check = Check { pieces, hash, hasher: Sha256::new(), held: None, ended: false };
    futures::stream::unfold(check, async |mut check| {
        if check.ended {
            return None;
        }
        loop {
            match check.pieces.next().await {
                Some(Ok(piece)) => {
                    check.hasher.update(&piece);
                    if let Some(held) = check.held.replace(piece) {
                        return Some((Ok(held), check));
                    }
                }
                Some(Err(error)) => {
                    check.ended = true;
                    return Some((Err(error), check));
                }
                None => {
                    check.ended = true;
                    let last = if BlobHash::finish(std::mem::take(&mut check.hasher)) == check.hash {
                        Ok(check.held.take()?)
                    } else {
                        Err(StoreError::Corrupt(format!("the content of blob {} has changed", check.hash)))
                    };
                    return Some((last, check));
                }
            }
        }
    })
    .boxed()
}

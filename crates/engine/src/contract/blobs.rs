//! What every keeper of blobs promises.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt as _;

use crate::port::{Blob, BlobHash, Blobs, StoreError};

/// A keeper of blobs under test, with what only a test may do to it.
#[async_trait]
pub trait BlobSubject: Send + Sync {
    fn blobs(&self) -> Arc<dyn Blobs>;

    /// Puts `bytes` where the blob with this hash lies, right or wrong.
    async fn spoil(&self, hash: &BlobHash, bytes: Vec<u8>);
}

/// Larger than what any keeper holds in memory or sends in one piece, and of no round length.
const LARGE: usize = 11 * 1024 * 1024 + 4_711;

/// Bytes that repeat nowhere near a block's length.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        bytes.extend_from_slice(&(state ^ (state >> 29)).to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

pub async fn a_blob_is_found_by_the_hash_of_its_bytes(subject: &impl BlobSubject) {
    let blobs = subject.blobs();
    blobs.ping().await.expect("it is there");
    let hash = blobs.put(b"abc".to_vec()).await.expect("it is kept");
    assert_eq!(hash.as_str(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    assert_eq!(blobs.get(&hash).await.expect("it answers"), Some(b"abc".to_vec()));
    for bytes in [Vec::new(), vec![0], (0..=255).collect(), noise(300_000)] {
        let hash = blobs.put(bytes.clone()).await.expect("it is kept");
        assert_eq!(blobs.get(&hash).await.expect("it answers"), Some(bytes));
    }
    assert_eq!(blobs.get(&BlobHash::of(b"never put")).await.expect("it answers"), None);
    assert!(blobs.open(&BlobHash::of(b"never put")).await.expect("it answers").is_none());
}

pub async fn equal_bytes_are_kept_once(subject: &impl BlobSubject) {
    let blobs = subject.blobs();
    let hash = blobs.put(b"content".to_vec()).await.expect("it is kept");
    assert_eq!(blobs.put(b"content".to_vec()).await.expect("it is there"), hash);
    let mut writer = blobs.begin().await.expect("it begins");
    for piece in ["con", "", "tent"] {
        writer.write(Bytes::from(piece)).await.expect("it is taken");
    }
    assert_eq!(writer.seal().await.expect("it is whole"), Blob { hash: hash.clone(), bytes: 7 });
    writer.keep().await.expect("it is there");
    blobs.remove(&hash).await.expect("it is there");
    assert_eq!(blobs.get(&hash).await.expect("it answers"), None, "there was no second one");
}

pub async fn a_large_blob_comes_and_goes_in_pieces(subject: &impl BlobSubject) {
    let blobs = subject.blobs();
    let bytes = Bytes::from(noise(LARGE));
    let mut writer = blobs.begin().await.expect("it begins");
    for piece in bytes.chunks(100_003) {
        writer.write(bytes.slice_ref(piece)).await.expect("it is taken");
    }
    let blob = writer.seal().await.expect("it is whole");
    assert_eq!(blob, Blob { hash: BlobHash::of(&bytes), bytes: LARGE as u64 });
    writer.keep().await.expect("it is kept");

    let open = blobs.open(&blob.hash).await.expect("it answers").expect("it is there");
    assert_eq!(open.bytes, LARGE as u64);
    let mut content = open.content;
    let (mut read, mut pieces) = (Vec::with_capacity(LARGE), 0);
    while let Some(piece) = content.next().await {
        read.extend_from_slice(&piece.expect("it is read"));
        pieces += 1;
    }
    assert!(pieces > 1, "it came at once");
    assert!(read == bytes, "it is what was written");

    let mut writer = blobs.begin().await.expect("it begins");
    assert_eq!(writer.seal().await.expect("it is whole"), Blob { hash: BlobHash::of(b""), bytes: 0 });
    writer.keep().await.expect("it is kept");
    assert_eq!(blobs.get(&BlobHash::of(b"")).await.expect("it answers"), Some(Vec::new()));
}

pub async fn an_abandoned_blob_leaves_nothing(subject: &impl BlobSubject) {
    let blobs = subject.blobs();
    let bytes = Bytes::from(noise(LARGE));
    let mut writer = blobs.begin().await.expect("it begins");
    writer.write(bytes.clone()).await.expect("it is taken");
    drop(writer);
    let mut writer = blobs.begin().await.expect("it begins");
    writer.write(bytes.clone()).await.expect("it is taken");
    writer.seal().await.expect("it is whole");
    drop(writer);
    assert_eq!(blobs.get(&BlobHash::of(&bytes)).await.expect("it answers"), None);
}

pub async fn a_removed_blob_is_gone(subject: &impl BlobSubject) {
    let blobs = subject.blobs();
    let hash = blobs.put(b"content".to_vec()).await.expect("it is kept");
    blobs.remove(&hash).await.expect("it is there");
    blobs.remove(&hash).await.expect("nothing to remove is no error");
    assert_eq!(blobs.get(&hash).await.expect("it answers"), None);
    assert_eq!(blobs.put(b"content".to_vec()).await.expect("it is kept again"), hash);
    assert_eq!(blobs.get(&hash).await.expect("it answers"), Some(b"content".to_vec()));
}

pub async fn a_changed_blob_is_refused(subject: &impl BlobSubject) {
    let blobs = subject.blobs();
    let bytes = noise(300_000);
    let hash = blobs.put(bytes.clone()).await.expect("it is kept");
    let mut changed = bytes.clone();
    changed[299_999] ^= 1;
    refused(subject, &hash, changed).await;
    blobs.put(bytes.clone()).await.expect("putting it again heals it");
    assert_eq!(blobs.get(&hash).await.expect("it answers"), Some(bytes));
}

pub async fn a_cut_blob_is_refused(subject: &impl BlobSubject) {
    let blobs = subject.blobs();
    let hash = blobs.put(noise(300_000)).await.expect("it is kept");
    refused(subject, &hash, noise(200_000)).await;
    refused(subject, &hash, Vec::new()).await;
}

/// What lies there instead is never given out whole.
async fn refused(subject: &impl BlobSubject, hash: &BlobHash, instead: Vec<u8>) {
    let blobs = subject.blobs();
    let length = instead.len();
    subject.spoil(hash, instead).await;
    assert!(matches!(blobs.get(hash).await, Err(StoreError::Corrupt(_))), "{length} other bytes");
    let mut content = blobs.open(hash).await.expect("it answers").expect("something is there").content;
    let (mut read, mut last) = (0, None);
    while let Some(piece) = content.next().await {
        read += piece.as_ref().map_or(0, Bytes::len);
        last = Some(piece);
    }
    assert!(matches!(last, Some(Err(StoreError::Corrupt(_)))), "the stream says so at its end");
    assert!(length == 0 || read < length, "the last piece is held back");
}

pub async fn many_may_put_the_same(subject: &impl BlobSubject) {
    let blobs = subject.blobs();
    let bytes = noise(300_000);
    let puts = (0..16).map(|_| blobs.put(bytes.clone()));
    for hash in futures::future::join_all(puts).await {
        assert_eq!(hash.expect("it is kept"), BlobHash::of(&bytes));
    }
    assert_eq!(blobs.get(&BlobHash::of(&bytes)).await.expect("it answers"), Some(bytes));
}

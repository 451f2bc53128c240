//! What refers to blobs, for both dialects.
//!
//! A table that will refer to blobs is added here, gets an index on its column, locks the rows of the blobs in the
//! transaction that writes the reference (`refer` in each dialect's `blobs.rs`), and touches them in the one that
//! removes it (`release`).

/// A condition on `b`, a row of `blobs`: nothing refers to it.
macro_rules! unreferenced {
    () => {
        "NOT EXISTS (SELECT 1 FROM records r WHERE r.blob = b.hash) \
         AND NOT EXISTS (SELECT 1 FROM files f WHERE f.blob = b.hash) \
         AND NOT EXISTS (SELECT 1 FROM session_chunks c WHERE c.hash = b.hash)"
    };
}
pub(crate) use unreferenced;

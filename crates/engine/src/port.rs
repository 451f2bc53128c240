//! The ports: everything that driving sessions needs from the world.
//!
//! One file a port. Each is implemented in memory here ([`crate::memory`]), for real by the crates `store` and
//! `server`, and held to the same suite ([`crate::contract`]). Methods may be called from any task at any time;
//! an error of kind [`StoreError`] means that nothing is known to have happened.

pub mod bell;
pub mod blobs;
pub mod chunks;
pub mod clock;
pub mod definitions;
pub mod files;
pub mod idempotency;
pub mod leases;
pub mod ledger;
pub mod log;
pub mod model;
pub mod rate_limits;
pub mod resources;
pub mod tracks;
pub mod work_queue;

pub use bell::{Bell, Frame, Listener, Preview, PreviewDelta, Topic};
pub use blobs::{Blob, BlobHash, BlobRegistry, BlobStream, BlobWriter, Blobs, OpenBlob};
pub use chunks::Chunks;
pub use clock::{Clock, Entropy};
pub use definitions::{Agent, Definitions, Environment, EnvironmentConfig, EnvironmentKey, Networking};
pub use files::{File, Files};
pub use idempotency::{Answer, Idempotency, Keep, KeepError, Kept, KeyUsed, KeyedRequest};
pub use leases::{Claim, Leases};
pub use ledger::{Amount, Cap, Caps, KeyLimits, Ledger, LedgerChange, OverCap};
pub use log::{Append, AppendError, Appended, EventLog, Fence, ListEvents, ListSessions, Loaded, StoredRecord, Wake};
pub use model::{Model, ModelError, ModelRequest};
pub use rate_limits::{Rate, RateLimits, Taken};
pub use resources::{FileResource, Resources};
pub use tracks::{CanaryWeight, RolloutWeight, Track, Tracks};
pub use work_queue::{AfterLease, WorkChange, WorkItem, WorkQueue, WorkState};

/// A store did not do what it was asked; whether a write took place is unknown.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// It cannot be reached, or did not answer in time. Trying again later is right.
    #[error("the store is unavailable: {0}")]
    Unavailable(String),
    /// What it returned cannot be read. Trying again will not help.
    #[error("the store holds something unreadable: {0}")]
    Corrupt(String),
}

/// Which way a list runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    Ascending,
    Descending,
}

/// Bounds on a time; each end is optional.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TimeRange {
    /// No earlier than this.
    pub from: Option<session::Timestamp>,
    /// Strictly before this.
    pub before: Option<session::Timestamp>,
}

/// The place in a list of resources ordered by creation after which a page begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct After {
    pub created_at: session::Timestamp,
    pub id: String,
}

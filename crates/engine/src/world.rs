//! Everything that one process reaches the world through, handed around as one cheap clone.

use std::sync::Arc;

use session::{Ids, Limits};

use crate::gates::Gates;
use crate::port::{
    Bell, Blobs, Chunks, Clock, Definitions, Entropy, EventLog, Files, Idempotency, KeyLimits, Leases, Model,
    Resources, WorkQueue,
};
use crate::watch::Watch;

/// The ports of one process, and the limits that its operator set.
#[derive(Clone)]
pub struct World {
    pub log: Arc<dyn EventLog>,
    pub leases: Arc<dyn Leases>,
    pub work: Arc<dyn WorkQueue>,
    pub definitions: Arc<dyn Definitions>,
    pub idempotency: Arc<dyn Idempotency>,
    pub files: Arc<dyn Files>,
    pub resources: Arc<dyn Resources>,
    pub bell: Arc<dyn Bell>,
    /// `None` where no store for blobs is configured: what needs one is refused by name.
    pub blobs: Option<Arc<dyn Blobs>>,
    pub chunks: Arc<dyn Chunks>,
    pub model: Arc<dyn Model>,
    pub clock: Arc<dyn Clock>,
    pub entropy: Arc<dyn Entropy>,
    pub limits: Limits,
    pub key_limits: KeyLimits,
    /// The sessions that this process follows; made with `Arc::default()`, one a process.
    pub watch: Arc<Watch>,
    /// Where appends of this process to the same session wait for each other; made with `Arc::default()` too.
    pub gates: Arc<Gates>,
}

impl World {
    /// Ids for one decision.
    pub(crate) fn ids(&self) -> Ids {
        Ids::from_seed(self.entropy.draw())
    }
}

//! Every port in memory: for tests, for the simulator and, in the bell's case, for a server of one process.
//!
//! [`MemoryStore`] is what a database would be: it survives the processes that use it, and every call is one
//! transaction. It passes the same contract as the real stores. [`LocalBell`] is the bell of one process.
//! [`MemoryRateLimits`] counts for one process.
//! Nothing here is bounded in size but the bell's mailboxes.

mod bell;
mod blobs;
mod chunks;
mod definitions;
mod files;
mod idempotency;
mod leases;
mod ledger;
mod log;
mod rate_limits;
mod resources;
mod store;
mod work_queue;

pub use bell::LocalBell;
pub use blobs::MemoryBlobs;
pub use rate_limits::MemoryRateLimits;
pub use store::MemoryStore;

//! What the process tells about itself: log lines on standard output, metrics on a listener of their own.
//!
//! [`log`] writes the lines, [`metrics`] holds every series and hears what engine and API report, [`process`] adds
//! what the kernel knows and [`runtime`] what tokio does, [`blobs`] counts what is asked of the object store, and
//! [`exposition`] writes it all in the scraper's format. Neither ever carries a prompt, a
//! body or a secret.

pub mod blobs;
pub mod exposition;
pub mod log;
pub mod metrics;
pub mod process;
pub mod runtime;

/// The version of this build.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

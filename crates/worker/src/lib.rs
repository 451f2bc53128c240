//! The sandbox side of agent-service: claims sessions from the server's work queue over HTTP, confines and runs
//! their tools, posts results.
//!
//! - [`run`]: the claim loop. Start reading at `queue/mod.rs`.
//! - [`sandbox`]: a session's confined processes and the calls they run.
//! - [`egress`]: the proxy that is the tools' only way to the network.
//! - `tools`: the six tools and what they answer; what a model is told about them is `session::toolset`'s.
//! - [`probe()`]: tries the confinement before anything relies on it.
//!
//! **Tools reach the network through the worker alone**, which knows the session's rules; whatever else they try to
//! connect to does not exist for them, or leads there.
//!
//! The server's executable calls [`sandbox_main`] first thing in `main`: a sandbox is the same executable started
//! again. The worker holds a worker key and no other credential, and its children hold nothing of it.

mod config;
pub mod egress;
mod exchange;
mod lifeline;
mod probe;
mod queue;
pub mod sandbox;
mod secret;
mod snapshot;
mod tools;

pub use config::{POOL_ENVIRONMENT, WorkerConfig};
pub use egress::{NetworkConfig, NetworkLimits};
pub use lifeline::{die_with, harden};
pub use probe::{ProbeReport, ProbeRow, probe, settle};
pub use queue::{WorkerError, run};
pub use sandbox::config::{Confinement, Limits, SandboxConfig};
pub use sandbox::entry::sandbox_main;
pub use sandbox::protocol::ToolOutcome;
pub use secret::Secret;

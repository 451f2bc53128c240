//! Drives sessions: loads, folds, asks what is due, records the intent, performs it, appends the outcome.
//!
//! The rules are the crate `session`'s; the world is behind [`port`]. From the outside in:
//!
//! - [`sessions`]: what clients and workers ask of a session, on any replica;
//! - [`feed`]: a session's records and previews, followed live;
//! - [`replica`]: one process's share of the driving: heartbeats, claims, one driver a session, the drain;
//! - [`transcript`]: what a model is sent;
//! - [`workspaces`]: the files of sessions, as workers keep and fetch them;
//! - [`blobs`]: large content that the registry knows of before it is there;
//! - [`memory`]: every port in memory, for tests, for the simulator and, in the bell's case, for one-process use;
//! - [`contract`]: what every store promises, as tests.
//!
//! The simulator under `tests/it/sim` runs all of it on several replicas in virtual time, with faults at every port
//! call. Nothing here reads a clock or draws a number by itself, so that it can repeat any run.

pub mod blobs;
mod claims;
pub mod contract;
mod driver;
pub mod feed;
mod gates;
pub mod memory;
pub mod observer;
pub mod port;
pub mod replica;
pub mod sessions;
pub mod transcript;
pub mod watch;
pub mod workspaces;
pub mod world;

pub use claims::LocalClaims;
pub use feed::{Feed, FeedItem, From};
pub use gates::Gates;
pub use observer::Observer;
pub use replica::{Heartbeats, Hurry, Replica, ReplicaConfig};
pub use sessions::{CommandError, Outcome, Sessions, Stopped};
pub use watch::Watch;
pub use world::World;

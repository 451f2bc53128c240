//! The `agent-service` executable as a library, so that its tests can reach every part.
//!
//! [`http`] is the public API, [`model`] the providers, [`config`] the settings, [`command`] the subcommands and
//! [`telemetry`] logs and metrics.

pub mod command;
pub mod config;
pub mod failpoint;
pub mod http;
pub mod model;
pub mod secret;
pub mod telemetry;

//! The integration tests of the crate, one module for each part.

mod command;
mod config;
mod http;
mod model;
mod telemetry;
mod tracks;

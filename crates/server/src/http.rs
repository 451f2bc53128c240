//! The public HTTP API: what clients and workers speak to.
//!
//! [`router`] is every route on one page; each group of routes has a file of its own that parses the request, asks
//! the engine, and answers in the API's shapes. [`Service`] is all they share. Nothing here decides what a session
//! does (crate `session`), drives one (crate `engine`) or opens a port (the subcommand `serve`).
//!
//! A request passes [`context`] (request id, error envelope, measurement), then [`auth`] (whose credential is it),
//! then a handler that reads its input with [`body`], [`fields`] and [`query`]. Every refusal is an
//! [`error::ApiError`].

mod agent_params;
mod agents;
mod auth;
mod body;
mod content_params;
mod context;
mod draining;
mod environment_params;
mod environments;
mod error;
mod event_list;
mod event_params;
mod events;
mod exposure;
mod families;
mod fields;
mod files;
mod health;
mod idempotency;
mod internal;
mod json;
mod metadata;
mod models;
mod openapi;
mod outage;
mod pagination;
mod path;
mod query;
mod rate_limit;
mod resource_params;
mod resources;
mod router;
mod service;
mod session_files;
mod session_params;
mod sessions;
mod stream;
mod threads;
mod tool_params;
mod unread;
mod upload;
mod work;
mod workspace;

pub use auth::{ENVIRONMENT_KEY_PREFIX, ITEM_TOKEN_PREFIX, POOL_ENVIRONMENT_ID, secret_hash};
pub use context::{ErrorClass, FinishedRequest, HttpObserver, NoObserver, OutputPut, Restored, Saved};
pub use draining::Draining;
pub(crate) use environment_params::is_host_pattern;
pub use openapi::openapi;
pub use rate_limit::RequestLimits;
pub use router::router;
pub use service::{
    AgentFigures, Credentials, HttpLimits, ModelCatalog, ModelInfo, Readiness, ReadinessReport, Service, Strictness,
};
pub use work::{LEASE_SECONDS_MAX, LEASE_SECONDS_MIN};

//! The API through its router, on a real store, with a replica that drives sessions and a scripted model.

mod agents;
mod api;
mod bodies;
mod connections;
mod credentials;
mod environments;
mod events;
mod exposure;
mod files;
mod hostile;
mod idempotency;
mod limits;
mod models_and_probes;
mod openapi;
mod resources;
mod session_files;
mod sessions;
mod streams;
mod work;
mod workspaces;

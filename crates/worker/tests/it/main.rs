//! The worker against real sandboxes, and against a scripted server.

mod bash;
mod queue;
mod server;
mod support;

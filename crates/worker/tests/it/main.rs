//! The worker against real sandboxes, and against a scripted server.

mod attacks;
mod bash;
mod cgroups;
mod egress;
mod egress_rig;
mod files;
mod hostile;
mod network;
mod probe;
mod queue;
mod server;
mod support;

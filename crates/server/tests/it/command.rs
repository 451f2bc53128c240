//! The executable itself: its subcommands, started as a person or an orchestrator starts them.

mod chat;
mod drain;
mod embedded;
mod keys;
mod ledger;
mod process;
mod readiness;
mod redis;
mod serve;
mod settings;

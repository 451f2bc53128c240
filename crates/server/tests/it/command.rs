//! The executable itself: its subcommands, started as a person or an orchestrator starts them.

mod chat;
mod embedded;
mod keys;
mod process;
mod serve;
mod settings;

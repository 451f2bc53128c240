//! The executable itself: its subcommands, started as a person or an orchestrator starts them.

mod keys;
mod process;
mod serve;
mod settings;

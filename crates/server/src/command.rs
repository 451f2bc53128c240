//! The subcommands of `agent-service`, one file each.
//!
//! A subcommand parses its flags, puts the parts together and reports; what the parts do is theirs. This and `main`
//! are the only places that use `anyhow`: an error here is text for a person, one line that says what to do.

mod bench;
mod chat;
mod client;
mod config;
mod data_folder;
mod doctor;
mod healthcheck;
mod keys;
mod migrate;
mod openapi;
pub mod serve;
mod settings;
mod store;
pub mod system;
mod worker;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

pub use self::settings::SettingsArguments;

/// A server for LLM agents, compatible with the Claude Managed Agents API.
///
/// Without a subcommand it serves, with everything it needs in one folder.
#[derive(Debug, Parser)]
#[command(name = "agent-service", version, args_conflicts_with_subcommands = true, max_term_width = 100)]
pub struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    serve: serve::ServeArguments,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the server: API, engine and, unless configured otherwise, a worker of its own.
    Serve(serve::ServeArguments),
    /// Run a worker: claim sessions from a server and run their tools, confined.
    Worker(worker::WorkerArguments),
    /// Bring the database's schema up to date.
    Migrate(migrate::MigrateArguments),
    /// Make, list and revoke the keys of self-hosted environments.
    Keys(keys::KeysArguments),
    /// Talk to an agent on a running server.
    Chat(chat::ChatArguments),
    /// Check or print settings.
    Config(config::ConfigArguments),
    /// Check database, model provider, confinement and clock, and say what to do.
    Doctor(doctor::DoctorArguments),
    /// Ask a running server whether it lives; for containers.
    Healthcheck(healthcheck::HealthcheckArguments),
    /// Print the description of the API in OpenAPI form.
    Openapi,
    /// Measure a server of this build beside the floor of this machine.
    Bench(bench::BenchArguments),
}

/// Runs what the arguments ask for.
pub fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    match arguments.command.unwrap_or(Command::Serve(arguments.serve)) {
        Command::Serve(arguments) => serve::run(arguments),
        Command::Worker(arguments) => worker::run(arguments),
        Command::Migrate(arguments) => migrate::run(&arguments),
        Command::Keys(arguments) => keys::run(&arguments),
        Command::Chat(arguments) => chat::run(&arguments),
        Command::Config(arguments) => config::run(&arguments),
        Command::Doctor(arguments) => doctor::run(&arguments),
        Command::Healthcheck(arguments) => healthcheck::run(&arguments),
        Command::Openapi => openapi::run(),
        Command::Bench(arguments) => bench::run(arguments),
    }
}

/// A runtime for commands that do one thing at a time.
fn small_runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

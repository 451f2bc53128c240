//! Starts `agent-service`: hands the arguments to a subcommand.

use std::process::ExitCode;

use clap::Parser as _;
use server::command::{Arguments, run};

fn main() -> ExitCode {
    // A sandbox of the worker is this executable started again; it must not read or open anything before.
    worker::sandbox_main();
    match run(Arguments::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("agent-service: {}", one_line(&format!("{error:#}")));
            ExitCode::FAILURE
        }
    }
}

/// An error is one line, whatever it quotes.
fn one_line(text: &str) -> String {
    text.split(['\r', '\n']).map(str::trim).filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" ")
}

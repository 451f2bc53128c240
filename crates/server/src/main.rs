//! Starts `agent-service`: hands the arguments to a subcommand.

use std::process::ExitCode;

use clap::Parser as _;
use server::command::{Arguments, run};

/// A turn costs a quarter less CPU than with the C library's allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // A sandbox of the worker is this executable started again; it must not read or open anything before.
    worker::sandbox_main();
    // The allocator asks for huge pages, and an idle server would hold half as much memory again.
    let _ = rustix::thread::disable_transparent_huge_pages(true);
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

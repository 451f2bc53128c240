//! `agent-service openapi`: prints the description of the API.

use std::io::{ErrorKind, Write as _, stdout};
use std::process::ExitCode;

pub(super) fn run() -> anyhow::Result<ExitCode> {
    let description = serde_json::to_string_pretty(&crate::http::openapi())?;
    match writeln!(stdout(), "{description}") {
        // Whoever reads may have seen enough.
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(ExitCode::SUCCESS),
    }
}

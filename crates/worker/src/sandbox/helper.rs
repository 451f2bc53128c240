//! The process that runs the file tools, one call after the other, with the workspace, and what the session was given, as its only right.

use std::io::{Read, Write};

use super::confine::{self, Role};
use super::probe_calls;
use super::protocol::{FrameReader, Reply, Request, Settings, encode};
use crate::tools::files;
use crate::tools::workspace::Workspace;

/// Serves calls from standard input until its end.
pub(crate) fn main(settings: &Settings) -> i32 {
    // The locale, time zone and tables of the regex engine are built in: no file is opened after this.
    let confined = confine::apply(Role::Files, settings).map_err(|error| error.to_string());
    let started = confined.and_then(|abi| {
        Workspace::at(&settings.workspace)
            .and_then(|workspace| workspace.with_uploads(&settings.uploads))
            .map(|workspace| (abi, workspace))
            .map_err(|error| format!("workspace: {error}"))
    });
    match started {
        Ok((landlock_abi, workspace)) => {
            send(&Reply::Ready { landlock_abi });
            serve(&workspace)
        }
        Err(message) => {
            send(&Reply::Failed { message });
            1
        }
    }
}

fn serve(workspace: &Workspace) -> i32 {
    let mut input = std::io::stdin().lock();
    let mut frames = FrameReader::default();
    let mut chunk = vec![0; 64 * 1024];
    loop {
        loop {
            match frames.next_frame() {
                Ok(Some(frame)) => answer(workspace, &frame),
                Ok(None) => break,
                Err(_) => return 1,
            }
        }
        match input.read(&mut chunk) {
            Ok(0) | Err(_) => return 0,
            Ok(length) => frames.push(&chunk[..length]),
        }
    }
}

fn answer(workspace: &Workspace, frame: &[u8]) {
    let Ok(Request::Call { call, tool, input }) = serde_json::from_slice(frame) else {
        return;
    };
    let outcome = if tool == probe_calls::TOOL { probe_calls::run(input) } else { files::run(workspace, &tool, input) };
    send(&Reply::Done { call, outcome });
}

fn send(reply: &Reply) {
    let mut output = std::io::stdout().lock();
    // A supervisor that does not listen any more has ended, and this process with it.
    let _ = output.write_all(&encode(reply)).and_then(|()| output.flush());
}

//! Where a sandbox process begins: the worker's own executable, started again with a hidden first argument.
//!
//! The supervisor is started anew instead of forked: that gives it one thread, nothing of the worker's memory and a
//! cleared environment. The shell and the file helper are forks of it ([`super::child`]).
//! Which rights each role keeps is in [`super::confine`].

use rustix::fd::AsFd;
use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use super::config::Confinement;
use super::confine::{self, Role};
use super::namespaces::PROXY_PORT;
use super::protocol::{FrameReader, Settings};
use super::seccomp;
use super::supervisor;
use super::system::close_from;
use crate::tools::workspace::SERVICE_DIR;

/// The only argument, which makes an executable a sandbox process.
pub(crate) const WORD: &str = "__sandbox";

/// The shell's own descriptors, far above those that commands use: its output, and where it reports exit codes.
pub(crate) const SHELL_OUTPUT_FD: i32 = 198;
pub(crate) const SHELL_STATUS_FD: i32 = 199;

/// Marks a line on the status pipe that says why the shell could not start.
pub(crate) const START_FAILED: char = '!';

const SEARCH_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Runs a sandbox process if this one was started as such, and then never returns.
///
/// `main` calls this before anything else: before it starts a thread, opens a file or reads its environment.
pub fn sandbox_main() {
    if std::env::args().nth(1).as_deref() != Some(WORD) {
        return;
    }
    let code = match (close_from(3), read_settings()) {
        (Ok(()), Some(settings)) => supervisor::main(settings),
        _ => 2,
    };
    std::process::exit(code);
}

/// The worker's first frame. Not on the command line, where the session's own tools could read paths of the host.
fn read_settings() -> Option<Settings> {
    let mut frames = FrameReader::default();
    let mut chunk = [0; 4096];
    loop {
        if let Some(frame) = frames.next_frame().ok()? {
            return serde_json::from_slice(&frame).ok();
        }
        match rustix::io::read(std::io::stdin(), &mut chunk) {
            Ok(0) => return None,
            Ok(length) => frames.push(&chunk[..length]),
            Err(Errno::INTR) => {}
            Err(_) => return None,
        }
    }
}

/// Becomes bash, or says why not over the socket of statuses.
pub(crate) fn shell(settings: &Settings) -> i32 {
    // Only a failure comes back.
    let message = become_bash(settings);
    let line = format!("{START_FAILED}{message}\n");
    let _ = rustix::io::write(std::io::stderr(), line.as_bytes());
    1
}

/// Confines this process and becomes bash, or says why not.
///
/// Standard input is the pipe of commands, standard output that of output, standard error the socket of statuses.
fn become_bash(settings: &Settings) -> String {
    if let Err(error) = confine::apply(Role::Shell, settings) {
        return error.to_string();
    }
    if settings.confinement != Confinement::Off
        && let Err(message) = hand_over_calls(settings.confinement)
    {
        return message;
    }
    let moved = rustix::io::fcntl_dupfd_cloexec(std::io::stderr(), SHELL_STATUS_FD).and_then(|status| {
        rustix::io::fcntl_setfd(&status, rustix::io::FdFlags::empty())?;
        let output = rustix::io::fcntl_dupfd_cloexec(std::io::stdout(), SHELL_OUTPUT_FD)?;
        rustix::io::fcntl_setfd(&output, rustix::io::FdFlags::empty())?;
        Ok((status, output))
    });
    let descriptors = match moved {
        Ok(descriptors) => descriptors,
        Err(error) => return format!("descriptors of the shell: {error}"),
    };
    let mut command = Command::new("/bin/bash");
    command
        .args(["--noprofile", "--norc"])
        .current_dir(&settings.workspace)
        .env_clear()
        .env("PATH", SEARCH_PATH)
        .env("HOME", &settings.workspace)
        .env("PWD", &settings.workspace)
        .env("LANG", "C.UTF-8")
        .env("TERM", "dumb")
        .env("TAR_OPTIONS", "--no-same-owner")
        .envs(session_folders(settings))
        .envs(proxy(settings));
    match rustix::stdio::dup2_stderr(std::io::stdout()) {
        // Past this point standard error is the output pipe: what goes wrong now shows there.
        Ok(()) => {
            let error = command.exec();
            drop(descriptors);
            format!("/bin/bash: {}", error.kind())
        }
        Err(error) => format!("descriptors of the shell: {error}"),
    }
}

/// Where the folders lie that have no paths of their own here.
fn session_folders(settings: &Settings) -> Option<(&'static str, PathBuf)> {
    let has_paths = settings.confinement == Confinement::Namespaces;
    (!has_paths).then(|| ("TMPDIR", settings.workspace.join(SERVICE_DIR).join("tmp")))
}

/// The variables by which programs find the way out. What runs in the sandbox itself is reached without it.
fn proxy(settings: &Settings) -> Vec<(&'static str, String)> {
    let port = match settings.confinement {
        Confinement::Off => settings.proxy_port.unwrap_or(PROXY_PORT),
        // Wherever a connection is meant to go, it goes to the proxy.
        Confinement::Namespaces | Confinement::Landlock => PROXY_PORT,
    };
    let address = format!("http://127.0.0.1:{port}");
    let names = ["http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"];
    let local = "localhost,127.0.0.1,::1".to_owned();
    let exempt = [("no_proxy", local.clone()), ("NO_PROXY", local)];
    names.into_iter().map(|name| (name, address.clone())).chain(exempt).collect()
}

/// From here on the supervisor answers the calls that start processes, and what else the level has it answer. It gets
/// the descriptor to do so with the first line over the status socket.
fn hand_over_calls(confinement: Confinement) -> Result<(), String> {
    let listener = seccomp::install_catching(confinement).map_err(|error| error.to_string())?;
    let descriptors = [listener.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(&descriptors));
    rustix::net::sendmsg(std::io::stderr(), &[IoSlice::new(b"\n")], &mut control, SendFlags::empty())
        .map(drop)
        .map_err(|error| format!("handing over a descriptor: {error}"))
}

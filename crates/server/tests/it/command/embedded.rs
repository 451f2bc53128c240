//! The server's own worker: a child that holds nothing it should not, comes back, and does not outlive the server.
//!
//! Confinement is off here: what a sandbox lets through is the worker crate's to test, on kernels that have it.

use std::path::Path;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

use super::process::{Server, agent_service, stderr, stdout};

fn start(folder: &Path) -> Server {
    let data_dir = folder.join("data");
    std::fs::write(data_dir.with_extension("yaml"), "worker: {confinement: off}\n").unwrap();
    Server::start(&data_dir, |_| {})
}

/// The server's worker, once it runs.
fn worker(server: &Server) -> Pid {
    loop {
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let Ok(process) = entry.file_name().to_string_lossy().parse::<i32>() else { continue };
            let Ok(status) = std::fs::read_to_string(format!("/proc/{process}/status")) else { continue };
            let Ok(command) = std::fs::read(format!("/proc/{process}/cmdline")) else { continue };
            let is_child = status.lines().any(|line| line == format!("PPid:\t{}", server.process_id()));
            if is_child && command.windows(10).any(|part| part == b"--handover") {
                return Pid::from_raw(process).unwrap();
            }
        }
        std::thread::yield_now();
    }
}

/// Waits until a process is gone.
fn wait_gone(process: Pid) {
    let Ok(descriptor) = pidfd_open(process, PidfdFlags::empty()) else { return };
    let mut descriptors = [PollFd::new(&descriptor, PollFlags::IN)];
    let patience = Timespec::try_from(Duration::from_secs(30)).unwrap();
    assert_eq!(poll(&mut descriptors, Some(&patience)).unwrap(), 1, "the process is still there");
}

fn run_a_tool(server: &Server, folder: &Path) -> String {
    let data_dir = folder.join("data");
    let data_dir = data_dir.to_str().unwrap();
    let arguments = ["chat", "--server-url", &server.url, "--data-dir", data_dir, "--message", "!bash echo ran"];
    let output = agent_service(&arguments).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    stdout(&output).to_owned()
}

#[test]
fn a_worker_that_is_killed_comes_back() {
    let folder = tempfile::tempdir().unwrap();
    let server = start(folder.path());
    let first = worker(&server);
    kill_process(first, Signal::KILL).unwrap();
    wait_gone(first);
    assert!(run_a_tool(&server, folder.path()).contains("tool said: ran"));
    assert_ne!(worker(&server), first);
}

#[test]
fn the_worker_holds_no_secret_and_ends_with_the_server() {
    let folder = tempfile::tempdir().unwrap();
    let server = start(folder.path());
    let process = worker(&server);
    let command = std::fs::read_to_string(format!("/proc/{}/cmdline", process.as_raw_nonzero())).unwrap();
    assert_eq!(command.split('\0').skip(1).collect::<Vec<_>>(), ["worker", "--handover", ""]);
    // Only somebody privileged can look at all.
    if let Ok(environment) = std::fs::read(format!("/proc/{}/environ", process.as_raw_nonzero())) {
        assert_eq!(environment, b"");
    }
    server.signal(Signal::KILL);
    wait_gone(process);
}

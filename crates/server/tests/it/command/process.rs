//! Starts the executable, waits for what it says, and ends it with the test.

use std::io::{BufRead as _, BufReader, Read as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Output, Stdio};

/// Built with the tests.
const EXECUTABLE: &str = env!("CARGO_BIN_EXE_agent-service");

/// The executable with these arguments and nothing in its environment that could reach a provider or a database.
pub(super) fn agent_service(arguments: &[&str]) -> Command {
    let mut command = Command::new(EXECUTABLE);
    command.args(arguments).env_clear().stdin(Stdio::null());
    for name in ["PATH", "HOME", "TMPDIR", "LLVM_PROFILE_FILE"] {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    command
}

/// Runs the executable to its end.
pub(super) fn run(arguments: &[&str]) -> Output {
    agent_service(arguments).output().unwrap()
}

/// What a process wrote to standard output.
pub(super) fn stdout(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).unwrap()
}

/// What a process wrote to standard error.
pub(super) fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).unwrap()
}

/// A server in a folder of its own; killed when it is dropped.
pub(super) struct Server {
    child: Child,
    output: BufReader<ChildStdout>,
    /// Everything it said until it listened.
    pub(super) welcome: String,
    pub(super) url: String,
    pub(super) metrics_url: String,
}

impl Server {
    /// Starts it on free ports and returns when it listens. It has no worker: these tests call no tool.
    pub(super) fn start(data_dir: &Path, more: impl FnOnce(&mut Command)) -> Self {
        let mut child = spawn(data_dir, [0, 0], more);
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut welcome = String::new();
        while !welcome.contains("metrics on ") {
            if output.read_line(&mut welcome).unwrap() == 0 {
                let mut error = String::new();
                child.stderr.take().unwrap().read_to_string(&mut error).unwrap();
                panic!("the server did not start: {welcome}{error}");
            }
        }
        let address = |before: &str| {
            let rest = welcome.split_once(before).unwrap().1;
            rest.split(['\n', '"']).next().unwrap().to_owned()
        };
        let (url, metrics_url) = (address("listening on "), address("metrics on "));
        Self { child, output, welcome, url, metrics_url }
    }

    /// Starts it and returns as soon as it lives: one that waits for its database says nothing yet.
    pub(super) fn start_waiting(data_dir: &Path, more: impl FnOnce(&mut Command)) -> Self {
        // Both are held until both are known, and then free again for a moment.
        let listeners = [0, 1].map(|_| TcpListener::bind(("127.0.0.1", 0)).unwrap());
        let ports = listeners.each_ref().map(|listener| listener.local_addr().unwrap().port());
        drop(listeners);
        let mut child = spawn(data_dir, ports, more);
        let output = BufReader::new(child.stdout.take().unwrap());
        while TcpStream::connect(("127.0.0.1", ports[0])).is_err() {
            assert_eq!(child.try_wait().unwrap(), None, "the server did not start");
        }
        let [url, metrics_url] = ports.map(|port| format!("http://127.0.0.1:{port}"));
        Self { child, output, welcome: String::new(), url, metrics_url: format!("{metrics_url}/metrics") }
    }

    /// `GET`s a URL with a key: status and body.
    pub(super) fn get(&self, url: &str, key: &str) -> (u16, String) {
        block_on(async {
            let response = reqwest::Client::new().get(url).header("x-api-key", key).send().await.unwrap();
            (response.status().as_u16(), response.text().await.unwrap())
        })
    }

    /// `POST`s JSON to a path: the answer's JSON.
    pub(super) fn post(&self, path: &str, key: &str, body: &serde_json::Value) -> serde_json::Value {
        block_on(async {
            let request = reqwest::Client::new().post(format!("{}{path}", self.url)).header("x-api-key", key);
            request.json(body).send().await.unwrap().json().await.unwrap()
        })
    }

    pub(super) fn process_id(&self) -> u32 {
        self.child.id()
    }

    pub(super) fn signal(&self, signal: rustix::process::Signal) {
        let process = rustix::process::Pid::from_raw(self.child.id().cast_signed()).unwrap();
        rustix::process::kill_process(process, signal).unwrap();
    }

    /// Waits for its end: the exit code, and what it said since it listened.
    pub(super) fn wait(mut self) -> (Option<i32>, String) {
        let mut rest = String::new();
        self.output.read_to_string(&mut rest).unwrap();
        (self.child.wait().unwrap().code(), rest)
    }
}

fn spawn(data_dir: &Path, [port, metrics_port]: [u16; 2], more: impl FnOnce(&mut Command)) -> Child {
    let config = data_dir.with_extension("yaml");
    if !config.exists() {
        std::fs::write(&config, "worker: {embedded: false}\n").unwrap();
    }
    let (port, metrics_port) = (port.to_string(), metrics_port.to_string());
    let mut command = agent_service(&["--port", &port, "--metrics-port", &metrics_port, "--host", "127.0.0.1"]);
    command.env("AGENT_CONFIG", config).env("AGENT_DATA_DIR", data_dir);
    more(&mut command);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs one future on a runtime of its own.
pub(super) fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

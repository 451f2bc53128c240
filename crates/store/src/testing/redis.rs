//! A private Redis for tests, which can be stopped, stalled and started again at the same address.
//!
//! Each has a loopback address of its own, made from the process's id, so that no two tests and no outgoing connection
//! ever compete for its port. As with PostgreSQL a small shell watches over it and ends it with the test process.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use crate::RedisOptions;

/// Where Debian installs it.
const BINARY: &str = "/usr/bin/redis-server";

/// How long a server may take to start.
const STARTED_WITHIN: Duration = Duration::from_secs(30);

/// A Redis server that keeps nothing.
pub struct RedisServer {
    host: String,
    port: u16,
    running: Option<Running>,
}

struct Running {
    watcher: Child,
    process_id: String,
}

impl RedisServer {
    /// Starts one. `None`, and a loud word, when Redis is not installed; with `CI=true` that is a failure instead.
    pub async fn start() -> Option<Self> {
        if !Path::new(BINARY).exists() {
            let missing = "Redis is not installed (package redis-server): its tests are SKIPPED";
            assert!(std::env::var("CI").as_deref() != Ok("true"), "{missing}, which CI does not accept");
            eprintln!("{missing}");
            return None;
        }
        static PORTS: AtomicU16 = AtomicU16::new(6_400);
        // A process id has 22 bits at most.
        let id = std::process::id();
        let host = format!("127.{}.{}.{}", 64 + (id >> 16), (id >> 8) & 0xff, id & 0xff);
        let port = PORTS.fetch_add(1, Ordering::Relaxed);
        let mut server = Self { host, port, running: None };
        server.start_again().await;
        Some(server)
    }

    /// How a process reaches it, with time-outs for a busy machine.
    pub fn options(&self) -> RedisOptions {
        let url = format!("redis://{}:{}", self.host, self.port);
        RedisOptions {
            url,
            key_prefix: "agent-service".to_owned(),
            timeout: Duration::from_secs(2),
            answer_timeout: Duration::from_secs(1),
        }
    }

    /// Kills it. What it held is gone.
    pub fn stop(&mut self) {
        if let Some(mut running) = self.running.take() {
            drop(running.watcher.stdin.take());
            let _ = running.watcher.wait();
        }
    }

    /// Starts it at the same address.
    pub async fn start_again(&mut self) {
        self.stop();
        // $1 is the server, the rest its arguments.
        let watch = "trap '' INT; exec 2>/dev/null; \"$@\" >/dev/null 2>&1 </dev/null & server=$!; echo $server; read -r _; \
            kill -KILL $server; wait $server";
        let mut watcher = Command::new("/bin/sh")
            .args(["-c", watch, "watch", BINARY, "--bind", &self.host, "--port", &self.port.to_string()])
            .args(["--save", "", "--appendonly", "no", "--dir", "/"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the server can be started");
        let mut process_id = String::new();
        let mut said = BufReader::new(watcher.stdout.take().expect("it is piped"));
        said.read_line(&mut process_id).expect("the shell says which process it watches");
        self.running = Some(Running { watcher, process_id: process_id.trim().to_owned() });
        let started = async {
            while self.ask(&["PING"]).await.is_err() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(STARTED_WITHIN, started).await.expect("Redis starts");
    }

    /// Stops it from doing anything, its connections left open.
    pub fn stall(&self) {
        self.signal("STOP");
    }

    /// Lets it go on.
    pub fn go_on(&self) {
        self.signal("CONT");
    }

    /// Sends one command over a connection of its own.
    pub async fn command(&self, words: &[&str]) -> String {
        self.ask(words).await.unwrap_or_else(|error| panic!("{words:?}: {error}"))
    }

    async fn ask(&self, words: &[&str]) -> ::redis::RedisResult<String> {
        let client = ::redis::Client::open(self.options().url)?;
        let mut connection = client.get_multiplexed_async_connection().await?;
        let mut command = ::redis::Cmd::new();
        command.arg(words);
        let answer: ::redis::Value = command.query_async(&mut connection).await?;
        Ok(format!("{answer:?}"))
    }

    fn signal(&self, name: &str) {
        let process_id = &self.running.as_ref().expect("it runs").process_id;
        let status = Command::new("kill").args([&format!("-{name}"), process_id]).status().expect("kill can be run");
        assert!(status.success(), "kill -{name} {process_id}");
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.stop();
    }
}

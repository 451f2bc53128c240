//! Measures how long a session stands still when the replica that drives it is killed.
//!
//! `cargo run -p server --example takeover -- 50`: two real `serve` processes on a PostgreSQL of their own. Each round
//! opens a session on the first, waits until its model request is open, sends SIGKILL, and stops the clock at the next
//! event that a stream at the second one delivers. The first is then started again. Prints p50, p99 and the longest;
//! build `agent-service` before, in the same profile.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde_json::{Value, json};
use store::testing::{Cluster, Database};

const KEY: &str = "sk-takeover";

/// A replica; killed when it is dropped.
struct Replica {
    child: Child,
    url: String,
}

impl Drop for Replica {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Replica {
    async fn start(folder: &Path, database: &Database) -> anyhow::Result<Self> {
        let free = [0, 1].map(|_| std::net::TcpListener::bind(("127.0.0.1", 0)));
        let mut ports = Vec::new();
        for listener in &free {
            let listener = listener.as_ref().map_err(|error| anyhow::anyhow!("no free port: {error}"))?;
            ports.push(listener.local_addr()?.port().to_string());
        }
        drop(free);
        let mut executable: PathBuf = std::env::current_exe()?;
        executable.pop();
        executable.set_file_name("agent-service");
        let child = Command::new(&executable)
            .args(["--host", "127.0.0.1", "--port", &ports[0], "--metrics-port", &ports[1]])
            .env_clear()
            .env("AGENT_CONFIG", folder.join("config.yaml"))
            .env("AGENT_DATA_DIR", folder)
            .env("AGENT_API_KEY", KEY)
            .env("POSTGRES_URL", &database.url)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot start {}", executable.display()))?;
        let replica = Self { child, url: format!("http://127.0.0.1:{}", ports[0]) };
        while !reqwest::get(format!("{}/ready", replica.url)).await.is_ok_and(|ready| ready.status() == 200) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(replica)
    }

    async fn post(&self, client: &reqwest::Client, path: &str, body: Value) -> anyhow::Result<Value> {
        let request = client.post(format!("{}{path}", self.url)).header("x-api-key", KEY).json(&body);
        Ok(request.send().await?.error_for_status()?.json().await?)
    }
}

/// Reads until this text has come.
async fn until(stream: &mut reqwest::Response, text: &str) -> anyhow::Result<()> {
    let mut seen = String::new();
    while !seen.contains(text) {
        let chunk = stream.chunk().await?.context("the stream ended")?;
        seen.push_str(&String::from_utf8_lossy(&chunk));
    }
    Ok(())
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let rounds: usize = std::env::args().nth(1).map_or(Ok(50), |rounds| rounds.parse())?;
    let cluster = Cluster::start(true).await.context("PostgreSQL is not installed")?;
    let database = cluster.database().await;
    let folder = tempfile::tempdir()?;
    std::fs::write(folder.path().join("config.yaml"), "worker: {embedded: false}\n")?;
    let client = reqwest::Client::new();
    let second = Replica::start(folder.path(), &database).await?;
    let agent = second.post(&client, "/v1/agents", json!({"name": "a", "model": "demo"})).await?;
    let environment = json!({"name": "e", "config": {"type": "self_hosted"}});
    let environment = second.post(&client, "/v1/environments", environment).await?;

    let mut gaps = Vec::with_capacity(rounds);
    for round in 0..rounds {
        let mut first = Replica::start(folder.path(), &database).await?;
        let body = json!({"agent": agent["id"], "environment_id": environment["id"]});
        let session = first.post(&client, "/v1/sessions", body).await?;
        let events = format!("/v1/sessions/{}/events", session["id"].as_str().context("a session has an id")?);
        let url = format!("{}{events}/stream", second.url);
        let mut stream = client.get(url).header("x-api-key", KEY).send().await?.error_for_status()?;
        let said = json!({"type": "user.message", "content": [{"type": "text", "text": "!wait 600000"}]});
        first.post(&client, &events, json!({"events": [said]})).await?;
        until(&mut stream, "event: span.model_request_start\n").await?;
        // Heartbeats come every 200 ms: a kill meets any moment between two.
        tokio::time::sleep(Duration::from_millis((round as u64 * 37) % 200)).await;
        first.child.kill()?;
        let killed = Instant::now();
        until(&mut stream, "event: span.model_request_end\n").await?;
        gaps.push(killed.elapsed());
        second.post(&client, &events, json!({"events": [{"type": "user.interrupt"}]})).await?;
        until(&mut stream, "event: session.status_idle\n").await?;
    }
    gaps.sort();
    let at = |percent: usize| gaps[(gaps.len() * percent).div_ceil(100).clamp(1, gaps.len()) - 1].as_millis();
    println!("{rounds} kills: p50 {} ms, p99 {} ms, longest {} ms", at(50), at(99), at(100));
    Ok(())
}

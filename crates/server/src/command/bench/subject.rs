//! A child process that is measured: the server itself, or the floor.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use serde_json::json;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

use super::stores::Stores;
use crate::command::client::Api;
use crate::command::system::draw_key;
use crate::secret::Secret;
use crate::telemetry::process::{Usage, usage};

/// The key of the children.
pub(super) const KEY: &str = "sk-bench-0123456789";

/// How long a child may take to be there, or to be gone.
const PATIENCE: Duration = Duration::from_secs(30);

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Server,
    Floor,
}

impl Kind {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Server => "server",
            Self::Floor => "floor",
        }
    }
}

/// A child that runs. It is killed when it is dropped.
pub(super) struct Subject {
    kind: Kind,
    child: Child,
    pub(super) address: SocketAddr,
    /// From its start to its first healthy answer.
    pub(super) start_ms: f64,
}

impl Subject {
    /// Starts a child and returns when it is healthy. `settings` are those of its configuration file.
    pub(super) async fn start(kind: Kind, folder: &Path, stores: &Stores, settings: &str) -> anyhow::Result<Self> {
        crate::command::data_folder::create(folder)?;
        let mut command = match kind {
            Kind::Server => server(folder, stores, settings)?,
            Kind::Floor => floor(folder, stores),
        };
        let began = Instant::now();
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("cannot start the process to measure")?;
        let output = child.stdout.take().expect("standard output is a pipe");
        let address = tokio::time::timeout(PATIENCE, address(BufReader::new(output))).await;
        let address = address.context("the process to measure did not start in time")??;
        healthy(address).await?;
        Ok(Self { kind, child, address, start_ms: began.elapsed().as_secs_f64() * 1e3 })
    }

    fn usage(&self) -> anyhow::Result<Usage> {
        self.child.id().and_then(usage).context("the process that is measured is gone")
    }

    pub(super) fn kind(&self) -> Kind {
        self.kind
    }

    /// CPU time since its start.
    pub(super) fn cpu_seconds(&self) -> anyhow::Result<f64> {
        Ok(self.usage()?.cpu_seconds)
    }

    /// Memory that it holds.
    pub(super) fn resident_mib(&self) -> anyhow::Result<f64> {
        Ok(self.usage()?.resident_bytes as f64 / f64::from(1 << 20))
    }

    /// New sessions. The floor takes any name for one.
    pub(super) async fn open_sessions(&self, count: usize) -> anyhow::Result<Vec<String>> {
        if self.kind == Kind::Floor {
            return Ok((0..count).map(|number| format!("s{number}")).collect());
        }
        let api = Api::new(&format!("http://{}", self.address), Secret::new(KEY))?;
        let agent = api.post("/v1/agents", &json!({"name": "bench", "model": "demo"})).await?;
        let name = draw_key("bench-");
        let environment = json!({"name": name, "config": {"type": "self_hosted"}});
        let environment = api.post("/v1/environments", &environment).await?;
        let body = json!({"agent": agent["id"], "environment_id": environment["id"]});
        let mut sessions = Vec::with_capacity(count);
        for _ in 0..count {
            let session = api.post("/v1/sessions", &body).await?;
            sessions.push(session["id"].as_str().context("a session without id")?.to_owned());
        }
        Ok(sessions)
    }

    /// Ends the child and waits for it.
    pub(super) async fn end(mut self) -> anyhow::Result<()> {
        if let Some(process) = self.child.id().and_then(|id| rustix::process::Pid::from_raw(id.cast_signed())) {
            rustix::process::kill_process(process, rustix::process::Signal::TERM)?;
        }
        match tokio::time::timeout(PATIENCE, self.child.wait()).await {
            Ok(status) => drop(status?),
            Err(_) => bail!("the {} did not leave in time", self.kind.name()),
        }
        Ok(())
    }
}

/// This executable as a server, with nothing of this process's environment.
fn server(folder: &Path, stores: &Stores, settings: &str) -> anyhow::Result<Command> {
    let file = folder.join("config.yaml");
    let prefix = draw_key("bench-");
    let fixed = format!("worker: {{embedded: false}}\nserver: {{host: 127.0.0.1}}\nredis: {{key_prefix: {prefix}}}\n");
    std::fs::write(&file, fixed + settings)?;
    let mut command = Command::new("/proc/self/exe");
    command
        .args(["serve", "--port", "0", "--metrics-port", "0", "--max-agents", "10000", "--log-level", "warn"])
        .args([PathBuf::from("--data-dir"), folder.join("data"), PathBuf::from("--config"), file])
        .env_clear()
        .env("AGENT_API_KEY", KEY);
    for (name, url) in [("POSTGRES_URL", &stores.postgres), ("REDIS_URL", &stores.redis)] {
        if let Some(url) = url {
            command.env(name, url);
        }
    }
    Ok(command)
}

/// This executable as the floor, which tells nobody anything and so has no use for Redis.
fn floor(folder: &Path, stores: &Stores) -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.args(["bench", "--as-floor"]).arg(folder.join("data")).env_clear();
    if let Some(url) = &stores.postgres {
        command.env("POSTGRES_URL", url);
    }
    command
}

/// The address that the child says it listens on. What it says afterwards is read to its end, so that the pipe
/// stays open.
async fn address(mut output: BufReader<tokio::process::ChildStdout>) -> anyhow::Result<SocketAddr> {
    let mut line = String::new();
    while output.read_line(&mut line).await? > 0 {
        if let Some(address) = line.trim().strip_prefix("listening on http://") {
            let address = address.parse()?;
            tokio::spawn(async move { tokio::io::copy(&mut output, &mut tokio::io::sink()).await });
            return Ok(address);
        }
        line.clear();
    }
    bail!("the process to measure left before it listened")
}

/// Waits until `/health` answers.
async fn healthy(address: SocketAddr) -> anyhow::Result<()> {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(b"GET /health HTTP/1.1\r\nhost: bench\r\nconnection: close\r\n\r\n").await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    anyhow::ensure!(answer.starts_with(b"HTTP/1.1 200"), "the process to measure is not healthy");
    Ok(())
}

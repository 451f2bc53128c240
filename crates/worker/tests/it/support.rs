//! A sandbox on a temporary folder, and short ways to ask it something.

use serde_json::{Value, json};
use std::path::PathBuf;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use worker::sandbox::{CallEnd, Sandbox};
use worker::{Limits, SandboxConfig, ToolOutcome};

/// The executable that a sandbox re-executes in these tests.
pub(crate) const EXECUTABLE: &str = env!("CARGO_BIN_EXE_worker-sandbox");
pub(crate) const SESSION: &str = "sesn_test";

/// A worker's folders: `workspaces/` and, beside it, `data/` with something worth stealing.
pub(crate) struct Place {
    folder: TempDir,
    pub config: SandboxConfig,
}

pub(crate) const SECRET: &str = "the-server-database-password";

impl Place {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("data")).unwrap();
        std::fs::write(folder.path().join("data/secret"), SECRET).unwrap();
        let mut config = SandboxConfig::new(folder.path().join("workspaces"));
        config.executable = EXECUTABLE.into();
        Self { folder, config }
    }

    pub(crate) fn with_limits(limits: Limits) -> Self {
        let mut place = Self::new();
        place.config.limits = limits;
        place
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    pub(crate) fn workspace(&self) -> PathBuf {
        self.config.workspaces_dir.join(SESSION)
    }

    pub(crate) async fn sandbox(&self) -> Tools {
        Tools(Sandbox::start(&self.config, SESSION).await.unwrap())
    }
}

pub(crate) struct Tools(pub Sandbox);

impl Tools {
    pub(crate) async fn outcome(&mut self, tool: &str, input: Value) -> ToolOutcome {
        match self.0.call(tool, input, &CancellationToken::new()).await.unwrap() {
            CallEnd::Done(outcome) => outcome,
            CallEnd::Killed => panic!("{tool} was killed"),
        }
    }

    /// The text of a call that must succeed.
    pub(crate) async fn ok(&mut self, tool: &str, input: Value) -> String {
        let outcome = self.outcome(tool, input).await;
        assert!(!outcome.is_error, "{outcome:?}");
        outcome.as_text().unwrap().to_owned()
    }

    /// The text of a call that must fail.
    pub(crate) async fn error(&mut self, tool: &str, input: Value) -> String {
        let outcome = self.outcome(tool, input).await;
        assert!(outcome.is_error, "{outcome:?}");
        outcome.as_text().unwrap().to_owned()
    }

    pub(crate) async fn bash(&mut self, command: &str) -> String {
        self.ok("bash", json!({"command": command})).await
    }

    pub(crate) async fn bash_error(&mut self, command: &str) -> String {
        self.error("bash", json!({"command": command})).await
    }
}

/// Whether a process exists and is not merely waiting to be reaped.
pub(crate) fn is_alive(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(')').next().unwrap().trim_start().starts_with('Z'))
}

//! A sandbox on a temporary folder, and short ways to ask it something.

use serde_json::{Value, json};
use std::path::PathBuf;
use std::sync::LazyLock;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use worker::sandbox::{CallEnd, Sandbox};
use worker::{Confinement, Limits, SandboxConfig, ToolOutcome};

/// Makes of each function named a test at every level of confinement.
macro_rules! at_every_level {
    ($($name:ident),+ $(,)?) => {
        mod with_namespaces {
            $(#[tokio::test]
            async fn $name() {
                if crate::support::has_namespaces() {
                    super::$name(crate::support::Place::at(worker::Confinement::Namespaces)).await;
                }
            })+
        }

        mod with_landlock_alone {
            $(#[tokio::test]
            async fn $name() {
                super::$name(crate::support::Place::at(worker::Confinement::Landlock)).await;
            })+
        }
    };
}
pub(crate) use at_every_level;

/// Whether this machine lets everybody make namespaces, told by a program that is not ours.
pub(crate) fn has_namespaces() -> bool {
    static FOUND: LazyLock<bool> = LazyLock::new(|| {
        let tried = std::process::Command::new("unshare")
            .args(["--user", "--map-root-user", "--mount", "--net", "--pid", "--fork", "--mount-proc", "true"])
            .status();
        tried.is_ok_and(|status| status.success())
    });
    if !*FOUND {
        eprintln!("SKIPPED: this machine does not allow user namespaces with a /proc of their own");
    }
    *FOUND
}

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
        // Not below /tmp, which a session takes for its own.
        let folder = tempfile::tempdir_in("/var/tmp").unwrap();
        std::fs::create_dir(folder.path().join("data")).unwrap();
        std::fs::write(folder.path().join("data/secret"), SECRET).unwrap();
        let mut config = SandboxConfig::new(folder.path().join("workspaces"));
        config.executable = EXECUTABLE.into();
        Self { folder, config }
    }

    pub(crate) fn at(confinement: Confinement) -> Self {
        let mut place = Self::new();
        place.config.confinement = confinement;
        place
    }

    pub(crate) fn with_limits(mut self, limits: Limits) -> Self {
        self.config.limits = limits;
        self
    }

    pub(crate) fn has_namespaces(&self) -> bool {
        self.config.confinement == Confinement::Namespaces
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    pub(crate) fn workspace(&self) -> PathBuf {
        self.config.workspaces_dir.join(SESSION)
    }

    /// Where tools of this session would find what a session was given.
    pub(crate) fn uploads(&self, session_id: &str) -> PathBuf {
        if self.has_namespaces() && session_id == SESSION {
            return PathBuf::from("/mnt/session/uploads");
        }
        self.config.workspaces_dir.join(".uploads").join(session_id)
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

/// The processes of one sandbox, as this machine knows them.
pub(crate) struct Inside {
    /// The process namespace, or else the workspace, in which they stand.
    mark: PathBuf,
    link: &'static str,
}

impl Inside {
    pub(crate) fn of(tools: &Tools, place: &Place) -> Self {
        if place.has_namespaces() {
            let keeper = tools.0.process_id();
            let mark = std::fs::read_link(format!("/proc/{keeper}/ns/pid_for_children")).unwrap();
            Self { mark, link: "ns/pid" }
        } else {
            Self { mark: place.workspace(), link: "cwd" }
        }
    }

    pub(crate) fn processes(&self) -> Vec<i32> {
        let stands_there =
            |pid: &i32| std::fs::read_link(format!("/proc/{pid}/{}", self.link)).is_ok_and(|link| link == self.mark);
        let entries = std::fs::read_dir("/proc").unwrap().flatten();
        entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(stands_there).collect()
    }

    /// The id on this machine of a process that knows itself as `pid`.
    pub(crate) fn host_pid(&self, pid: i32) -> i32 {
        let is_meant = |candidate: &i32| {
            let status = std::fs::read_to_string(format!("/proc/{candidate}/status")).unwrap_or_default();
            let ids = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap_or_default();
            ids.split_whitespace().last() == Some(&pid.to_string())
        };
        let found = if self.link == "cwd" { Some(pid) } else { self.processes().into_iter().find(is_meant) };
        found.unwrap_or_else(|| panic!("process {pid} of the session is not there"))
    }
}

/// Whether a process exists and is not merely waiting to be reaped.
pub(crate) fn is_alive(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(')').next().unwrap().trim_start().starts_with('Z'))
}

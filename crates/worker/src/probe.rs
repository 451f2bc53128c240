//! Tries the confinement before it is relied on: a real sandbox on a throw-away workspace, in which everything
//! that must fail is attempted, once from the file helper and once from the shell.
//!
//! `doctor` prints the report; a worker refuses to run on one that is not sufficient. [`settle`] finds the level of a
//! worker that takes the strongest one there is.

use serde_json::json;
use std::fmt;
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use tokio_util::sync::CancellationToken;

use crate::sandbox::config::{Confinement, SandboxConfig};
use crate::sandbox::probe_calls::{Escapes, TOOL, Targets};
use crate::sandbox::{CallEnd, Sandbox, SandboxError};

/// Signals to processes outside are refused from this Landlock ABI on (Linux 6.12).
const ABI_OF_SIGNAL_SCOPE: u32 = 6;
const NAMESPACES: &str = "namespaces of its own";
const SECRET: &str = "not for tools";

/// One part of the confinement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProbeRow {
    pub name: &'static str,
    /// Whether a worker refuses to run without it.
    pub required: bool,
    pub held: bool,
    /// What was found: the version in force, or what got through.
    pub detail: String,
}

/// What the confinement of this machine is worth. Displays as a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProbeReport {
    pub rows: Vec<ProbeRow>,
}

impl ProbeReport {
    /// Whether every required part holds.
    pub fn is_sufficient(&self) -> bool {
        self.rows.iter().all(|row| row.held || !row.required)
    }
}

impl fmt::Display for ProbeReport {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.rows.iter().map(|row| row.name.len()).max().unwrap_or(0);
        for (index, row) in self.rows.iter().enumerate() {
            let state = match (row.held, row.required) {
                (true, _) => "ok",
                (false, true) => "MISSING",
                (false, false) => "absent",
            };
            let line = format!("{:width$}  {state:7}  {}", row.name, row.detail);
            formatter.write_str(line.trim_end())?;
            if index + 1 < self.rows.len() {
                formatter.write_str("\n")?;
            }
        }
        Ok(())
    }
}

/// The configuration at the strongest level that holds here, with what was found. Where namespaces cannot be had, the
/// report's first row says why.
pub async fn settle(config: &SandboxConfig) -> (SandboxConfig, ProbeReport) {
    let strongest = SandboxConfig { confinement: Confinement::Namespaces, ..config.clone() };
    let found = probe(&strongest).await;
    if found.is_sufficient() {
        return (strongest, found);
    }
    let weaker = SandboxConfig { confinement: Confinement::Landlock, ..config.clone() };
    let mut report = probe(&weaker).await;
    let missing: Vec<String> = found
        .rows
        .iter()
        .filter(|row| row.required && !row.held)
        .map(|row| if row.detail.is_empty() { row.name.to_owned() } else { row.detail.clone() })
        .collect();
    report.rows.insert(0, ProbeRow { name: NAMESPACES, required: false, held: false, detail: missing.join(", ") });
    (weaker, report)
}

/// Makes a sandbox of the configured kind and tries to get out of it.
pub async fn probe(config: &SandboxConfig) -> ProbeReport {
    let is_required = config.confinement != Confinement::Off;
    let mut findings = Findings { rows: Vec::new(), is_required };
    match attempt(config, &mut findings).await {
        Ok(()) => {}
        Err(error) => findings.row("sandbox", true, false, error.to_string()),
    }
    ProbeReport { rows: findings.rows }
}

struct Findings {
    rows: Vec<ProbeRow>,
    is_required: bool,
}

impl Findings {
    fn row(&mut self, name: &'static str, required: bool, held: bool, detail: impl Into<String>) {
        let required = required && self.is_required;
        self.rows.push(ProbeRow { name, required, held, detail: detail.into() });
    }

    /// A part that holds if nothing got through.
    fn escapes(&mut self, name: &'static str, required: bool, escapes: &[String]) {
        self.row(name, required, escapes.is_empty(), escapes.join(", "));
    }
}

async fn attempt(config: &SandboxConfig, findings: &mut Findings) -> Result<(), SandboxError> {
    let workspaces = &config.workspaces_dir;
    let broken = |source| SandboxError::Workspace { path: workspaces.clone(), source };
    std::fs::create_dir_all(workspaces).map_err(broken)?;
    let place = tempfile::Builder::new().prefix("probe-").tempdir_in(workspaces).map_err(broken)?;
    let outside = place.path().join("outside");
    std::fs::write(&outside, SECRET).map_err(broken)?;
    let config = SandboxConfig { workspaces_dir: place.path().join("workspaces"), ..config.clone() };

    // Another worker of this machine may try its confinement at the same time.
    let session_id = format!("probe-{}", std::process::id());
    let mut sandbox = Sandbox::start(&config, &session_id).await?;
    let has_namespaces = config.confinement == Confinement::Namespaces;
    if has_namespaces {
        findings.row(NAMESPACES, true, true, "users, mounts, processes, network, IPC, names");
    }
    if !config.cgroups.is_empty() {
        findings.row("control groups", true, true, "memory, processes");
    }
    let abi = sandbox.landlock_abi();
    let version = abi.map_or_else(|| "off".to_owned(), |abi| format!("ABI {abi}"));
    findings.row("landlock", true, abi.is_some(), version);
    // With namespaces the process to be attacked is the supervisor, because the worker cannot even be named.
    let process_outside = if has_namespaces { 1 } else { std::process::id().cast_signed() };
    let targets = Targets { file_outside: outside.clone(), process_outside };
    from_helper(&mut sandbox, targets, abi, findings).await?;
    from_shell(&mut sandbox, &outside, findings).await?;
    connections(&mut sandbox, findings).await?;
    descendants(sandbox, &place.path().display().to_string(), findings).await
}

async fn from_helper(
    sandbox: &mut Sandbox,
    targets: Targets,
    abi: Option<u32>,
    findings: &mut Findings,
) -> Result<(), SandboxError> {
    let input = serde_json::to_value(targets).expect("targets are plain data");
    let report = text(sandbox, TOOL, input).await?;
    let escapes: Escapes = serde_json::from_str(&report).map_err(|_| SandboxError::Ended)?;
    findings.escapes("file tools stay in the workspace", true, &escapes.files);
    findings.escapes("file tools have no sockets", true, &escapes.sockets);
    findings.escapes("other processes are out of reach", true, &escapes.processes);
    let has_scope = abi.is_some_and(|abi| abi >= ABI_OF_SIGNAL_SCOPE);
    if has_scope {
        findings.escapes("no signal leaves the sandbox", true, &escapes.signals);
    } else {
        findings.row("no signal leaves the sandbox", false, false, "needs Landlock ABI 6 (Linux 6.12)");
    }
    findings.escapes("dangerous system calls are refused", true, &escapes.kernel);
    Ok(())
}

async fn from_shell(sandbox: &mut Sandbox, outside: &Path, findings: &mut Findings) -> Result<(), SandboxError> {
    let before = std::fs::metadata(outside).ok().map(|metadata| metadata.permissions());
    let command = format!(
        "f='{}'; cat \"$f\"; echo changed >\"$f\"; echo x >\"$f.new\"; chmod 777 \"$f\"; rm -f \"$f\"; \
         echo inside >probe && cat probe",
        outside.display()
    );
    let output = text(sandbox, "bash", json!({"command": command})).await?;
    let intact = std::fs::read_to_string(outside).is_ok_and(|content| content == SECRET)
        && std::fs::metadata(outside).ok().map(|metadata| metadata.permissions()) == before
        && !outside.with_extension("new").exists();
    let mut escapes = Vec::new();
    if output.contains(SECRET) {
        escapes.push("read a file outside".to_owned());
    }
    if !intact {
        escapes.push("changed a file outside".to_owned());
    }
    findings.escapes("the shell stays in the workspace", true, &escapes);
    findings.row("the shell can use the workspace", true, output.ends_with("inside"), "");
    Ok(())
}

/// A connection to the host's loopback must not arrive there, one to the way out must.
async fn connections(sandbox: &mut Sandbox, findings: &mut Findings) -> Result<(), SandboxError> {
    let proxy = sandbox.take_proxy().ok_or(SandboxError::Ended)?;
    let host = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(SandboxError::Proxy)?;
    let port = host.local_addr().map_err(SandboxError::Proxy)?.port();
    for listener in [&proxy, &host] {
        listener.set_nonblocking(true).map_err(SandboxError::Proxy)?;
    }
    let connect = |port: &str| json!({"command": format!("exec 3<>/dev/tcp/127.0.0.1/{port}; exec 3<&-; true")});
    text(sandbox, "bash", connect(&port.to_string())).await?;
    let is_reached = host.accept().is_ok();
    while proxy.accept().is_ok() {}
    text(sandbox, "bash", connect("${https_proxy##*:}")).await?;
    let has_way_out = proxy.accept().is_ok();
    findings.row("nothing of the host can be connected to", true, !is_reached, "");
    findings.row("the egress proxy can be connected to", true, has_way_out, "");
    Ok(())
}

/// A daemon that left its process group and ignores signals must be gone when the sandbox is.
async fn descendants(mut sandbox: Sandbox, mark: &str, findings: &mut Findings) -> Result<(), SandboxError> {
    let command = format!(
        "(setsid bash -c 'trap \"\" TERM HUP; echo ready; exec >&-; sleep 1000; : {mark} daemon' &) | head -n 1"
    );
    text(&mut sandbox, "bash", json!({"command": command})).await?;
    let has_lived = is_running(mark);
    sandbox.close().await;
    let is_gone = !is_running(mark);
    let detail = if has_lived { "" } else { "the daemon to be killed did not start" };
    findings.row("every descendant is killed", true, has_lived && is_gone, detail);
    Ok(())
}

/// Whether a process of this machine, other than this one, has the mark on its command line.
fn is_running(mark: &str) -> bool {
    let Ok(entries) = std::fs::read_dir("/proc") else { return false };
    let mark = format!("{mark} daemon");
    entries.flatten().any(|entry| {
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        line.windows(mark.len()).any(|part| part == mark.as_bytes())
    })
}

async fn text(sandbox: &mut Sandbox, tool: &str, input: serde_json::Value) -> Result<String, SandboxError> {
    match sandbox.call(tool, input, &CancellationToken::new()).await? {
        CallEnd::Done(outcome) => Ok(outcome.as_text().unwrap_or_default().to_owned()),
        CallEnd::Killed => Err(SandboxError::Ended),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &'static str, required: bool, held: bool, detail: &str) -> ProbeRow {
        ProbeRow { name, required, held, detail: detail.to_owned() }
    }

    #[test]
    fn the_report_reads_as_a_table() {
        let report = ProbeReport {
            rows: vec![
                row("landlock", true, true, "ABI 7"),
                row("a socket", true, false, "inet"),
                row("x", false, false, ""),
            ],
        };
        assert_eq!(report.to_string(), "landlock  ok       ABI 7\na socket  MISSING  inet\nx         absent");
        assert!(!report.is_sufficient());
        assert!(ProbeReport { rows: vec![row("x", false, false, "")] }.is_sufficient());
    }
}

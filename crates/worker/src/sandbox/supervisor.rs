//! The process at the head of a session's sandbox: one thread, one loop, every other process its descendant.
//!
//! It takes calls from the worker, hands them to the shell or the file helper, and answers for both: it ends a
//! call at its deadline, when cancelled, or when the session holds too many processes or too much memory, by
//! killing every descendant. When the worker is gone (its pipe ends) it kills all and exits.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde::Deserialize;
use serde_json::Value;
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::time::{Duration, Instant};

use super::census::Census;
use super::config::Confinement;
use super::confine::{self, Role};
use super::descendants::{self, Held};
use super::files_link::{FilesLink, Heard};
use super::namespaces;
use super::protocol::{FrameReader, Reply, Request, Settings, ToolOutcome, encode};
use super::quota::Quota;
use super::shell::{self, Ended, Shell};
use crate::tools::output;
use crate::tools::workspace::{NAME, SESSION_FOLDERS, Workspace};

const BASH_TIMEOUT_DEFAULT_MS: u64 = 120_000;
/// How often the count of all processes of the host is looked at, which is one cheap call.
const GLANCE_RUNNING: Duration = Duration::from_millis(10);
const GLANCE_IDLE: Duration = Duration::from_millis(100);

/// Confines itself, serves calls until standard input ends, and leaves no process behind.
pub(crate) fn main(settings: Settings) -> i32 {
    let (landlock_abi, proxy, mut supervisor) = match start(settings) {
        Ok(started) => started,
        Err(message) => {
            send(&Reply::Failed { message });
            return 1;
        }
    };
    if hand_over(proxy, &Reply::Ready { landlock_abi }).is_err() {
        return 1;
    }
    supervisor.serve();
    i32::from(descendants::kill_all(None).is_err())
}

type Started = (Option<u32>, Option<OwnedFd>, Supervisor);

fn start(settings: Settings) -> Result<Started, String> {
    let (settings, proxy) = if settings.confinement == Confinement::Namespaces {
        let moved = namespaces::enter(settings).map_err(|error| error.to_string())?;
        (moved.settings, Some(moved.proxy))
    } else {
        (settings, None)
    };
    let abi = confine::apply(Role::Supervisor, &settings).map_err(|error| error.to_string())?;
    Ok((abi, proxy, Supervisor::new(settings)?))
}

/// Tells the worker that all is ready, and gives it the listener that was made inside, which is then its alone.
fn hand_over(proxy: Option<OwnedFd>, reply: &Reply) -> Result<(), Errno> {
    let frame = encode(reply);
    let descriptors: Vec<BorrowedFd<'_>> = proxy.iter().map(OwnedFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(&descriptors));
    }
    // A frame this short goes out whole, on a socket that holds nothing yet.
    sendmsg(std::io::stdout(), &[IoSlice::new(&frame)], &mut control, SendFlags::empty()).map(drop)
}

#[derive(Deserialize)]
struct BashInput {
    command: Option<String>,
    restart: Option<bool>,
    timeout_ms: Option<u64>,
}

enum Running {
    Bash { call: u64, timeout_ms: u64, deadline: Instant },
    Files { call: u64 },
}

struct Supervisor {
    settings: Settings,
    workspace: Workspace,
    shell: Option<Shell>,
    files: Option<FilesLink>,
    running: Option<Running>,
    census: Census,
    quota: Quota,
    /// While the workspace is counted that may be full.
    held: Option<Held>,
    /// Told at the head of the next bash result: what happened to the session's processes between calls, or where its
    /// folders lie.
    notice: Option<String>,
    has_told_paths: bool,
}

impl Supervisor {
    /// Starts shell and helper at once, so that the first call need not wait for them.
    fn new(settings: Settings) -> Result<Self, String> {
        let workspace = Workspace::at(&settings.workspace).map_err(|error| format!("workspace: {error}"))?;
        ensure_folders(&workspace);
        let shell = Shell::start(&settings).map_err(|error| format!("shell: {error}"))?;
        let files = FilesLink::start(&settings).map_err(|error| format!("file helper: {error}"))?;
        let census = Census::new(&settings.limits);
        let quota = Quota::new(&settings.limits);
        let (shell, files) = (Some(shell), Some(files));
        Ok(Self {
            settings,
            workspace,
            shell,
            files,
            running: None,
            census,
            quota,
            held: None,
            notice: None,
            has_told_paths: false,
        })
    }

    fn serve(&mut self) {
        let mut frames = FrameReader::default();
        let mut chunk = vec![0; 64 * 1024];
        loop {
            if self.wait() {
                match rustix::io::read(std::io::stdin(), &mut chunk) {
                    Ok(0) => return,
                    Ok(length) => frames.push(&chunk[..length]),
                    Err(Errno::INTR) => {}
                    Err(_) => return,
                }
                while let Ok(Some(frame)) = frames.next_frame() {
                    match serde_json::from_slice(&frame) {
                        Ok(request) => self.handle(request),
                        Err(_) => return,
                    }
                }
            }
            self.advance();
            self.enforce();
        }
    }

    /// Waits for something to do; says whether the worker sent something.
    fn wait(&self) -> bool {
        let stdin = std::io::stdin();
        let mut interests: Vec<(BorrowedFd<'_>, PollFlags)> = vec![(stdin.as_fd(), PollFlags::IN)];
        interests.extend(self.shell.iter().flat_map(Shell::interests));
        interests.extend(self.files.iter().flat_map(FilesLink::interests));
        let mut polled: Vec<PollFd<'_>> =
            interests.into_iter().map(|(fd, flags)| PollFd::from_borrowed_fd(fd, flags)).collect();
        let timeout = self.timeout().map(|timeout| Timespec {
            tv_sec: timeout.as_secs().try_into().unwrap_or(i64::MAX),
            tv_nsec: timeout.subsec_nanos().into(),
        });
        match poll(&mut polled, timeout.as_ref()) {
            Ok(_) => !polled[0].revents().is_empty(),
            Err(_) => false,
        }
    }

    fn timeout(&self) -> Option<Duration> {
        let glance = match (&self.running, self.census.has_company) {
            // The sooner the walk ends, the less can be written meanwhile.
            (Some(Running::Bash { .. }), _) | (_, true) if self.quota.is_walking() => Duration::ZERO,
            (Some(Running::Bash { .. }), _) => GLANCE_RUNNING,
            (_, true) => GLANCE_IDLE,
            (_, false) => return None,
        };
        match self.running {
            Some(Running::Bash { deadline, .. }) => {
                Some(glance.min(deadline.saturating_duration_since(Instant::now())))
            }
            _ => Some(glance),
        }
    }

    fn handle(&mut self, request: Request) {
        match request {
            Request::Call { call, tool, input } if tool == "bash" => self.bash(call, input),
            Request::Call { call, tool, input } => self.file_tool(call, tool, input),
            Request::Cancel { call } => {
                if self.is_running(call) {
                    self.kill_running();
                    send(&Reply::Killed { call });
                }
            }
        }
    }

    fn is_running(&self, wanted: u64) -> bool {
        match self.running {
            Some(Running::Bash { call, .. } | Running::Files { call }) => call == wanted,
            None => false,
        }
    }

    fn bash(&mut self, call: u64, input: Value) {
        let input: BashInput = match serde_json::from_value(input) {
            Ok(input) => input,
            Err(error) => {
                return done(call, ToolOutcome::error(format!("bash: invalid input: {error}")));
            }
        };
        if input.restart.unwrap_or(false) {
            self.kill_shell();
            let outcome = match self.ensure_shell() {
                Ok(_) => ToolOutcome::text("bash session restarted"),
                Err(outcome) => outcome,
            };
            return done(call, outcome);
        }
        let command = match input.command.filter(|command| !command.is_empty()) {
            Some(command) if command.contains('\0') => {
                return done(call, ToolOutcome::error("bash: the command contains a NUL character"));
            }
            Some(command) => command,
            None => return done(call, ToolOutcome::error("bash: command is required")),
        };
        let timeout_ms = input.timeout_ms.filter(|timeout_ms| *timeout_ms > 0).unwrap_or(BASH_TIMEOUT_DEFAULT_MS);
        ensure_folders(&self.workspace);
        self.tell_paths(&command);
        match self.ensure_shell() {
            Ok(shell) => shell.begin(&command),
            Err(outcome) => return done(call, outcome),
        }
        let now = Instant::now();
        self.census.look_soon();
        self.quota.begin(&self.workspace);
        self.running = Some(Running::Bash {
            call,
            timeout_ms,
            deadline: now.checked_add(Duration::from_millis(timeout_ms)).unwrap_or(now + Duration::from_secs(3600)),
        });
    }

    /// Where the documented paths do not exist, the model learns the real ones with the first command that names one.
    fn tell_paths(&mut self, command: &str) {
        let has_paths = self.settings.confinement == Confinement::Namespaces;
        let mut paths = SESSION_FOLDERS.iter().map(|folder| folder.path).chain([NAME]);
        let mut names_one = || paths.any(|path| names_path(command, path));
        if has_paths || self.has_told_paths || !names_one() {
            return;
        }
        self.has_told_paths = true;
        let real = self.settings.workspace.display();
        let folders = SESSION_FOLDERS.map(|folder| match folder.is_writable {
            true => format!("{} is {real}/{}", folder.path, folder.inside),
            false => format!("{} is {}", folder.path, self.settings.uploads.display()),
        });
        let text = format!("in bash, unlike in the file tools, {NAME} is {real}, {}", folders.join(", "));
        self.notice.get_or_insert(text);
    }

    fn ensure_shell(&mut self) -> Result<&mut Shell, ToolOutcome> {
        let shell = match self.shell.take() {
            Some(shell) => shell,
            None => Shell::start(&self.settings)
                .map_err(|error| ToolOutcome::error(format!("bash: the shell cannot start: {error}")))?,
        };
        Ok(self.shell.insert(shell))
    }

    fn file_tool(&mut self, call: u64, tool: String, input: Value) {
        if matches!(tool.as_str(), "write" | "edit")
            && let Some(why) = self.quota.refusal(&self.workspace)
        {
            return done(call, ToolOutcome::error(format!("{tool}: {why}")));
        }
        let files = match self.files.take() {
            Some(files) => files,
            None => match FilesLink::start(&self.settings) {
                Ok(files) => files,
                Err(error) => {
                    let text = format!("{tool}: the file helper cannot start: {error}");
                    return done(call, ToolOutcome::error(text));
                }
            },
        };
        self.files.insert(files).send(&encode(&Request::Call { call, tool, input }));
        self.running = Some(Running::Files { call });
    }

    /// Moves bytes of shell and helper, and answers the call that ended with them.
    fn advance(&mut self) {
        match self.files.as_mut().and_then(FilesLink::advance) {
            None => {}
            Some(Heard::Frame(frame)) => {
                if let Some(Running::Files { .. }) = self.running.take() {
                    // Passed on as it came: an image need not be parsed to be forwarded.
                    write_frame(&frame);
                }
            }
            Some(Heard::Failed(message)) => self.files_ended(&message),
            Some(Heard::Ended) => self.files_ended("ended unexpectedly"),
        }
        if let Some(shell) = &mut self.shell {
            shell.answer_calls(&self.workspace, &mut self.census);
        }
        let Some(ended) = self.shell.as_mut().and_then(Shell::advance) else {
            return;
        };
        let output = self.shell.as_mut().map(Shell::take_output).unwrap_or_default();
        let outcome = match ended {
            Ended::Status(code) => shell::outcome(code, output),
            Ended::ShellExited(code) => {
                self.kill_shell();
                shell::outcome(code, output)
            }
            Ended::NotStarted(message) => {
                self.kill_shell();
                ToolOutcome::error(format!("bash: the shell cannot be confined: {message}"))
            }
        };
        if let Some(Running::Bash { call, .. }) = self.running {
            self.running = None;
            self.finish_bash(call, outcome);
            self.census.look_soon();
        }
    }

    fn finish_bash(&mut self, call: u64, outcome: ToolOutcome) {
        let outcome = match (self.notice.take(), outcome.as_text()) {
            (Some(notice), Some(text)) => {
                ToolOutcome { is_error: outcome.is_error, ..ToolOutcome::text(format!("[{notice}]\n{text}")) }
            }
            _ => outcome,
        };
        done(call, output::shorten(&self.workspace, &format!("bash-{call}"), None, outcome));
    }

    fn files_ended(&mut self, message: &str) {
        if let Some(files) = self.files.take() {
            descendants::kill_child(files.pid());
        }
        if let Some(Running::Files { call }) = self.running {
            self.running = None;
            done(call, ToolOutcome::error(format!("the file helper failed: {message}")));
        }
    }

    /// Ends what went on too long or grew too large.
    fn enforce(&mut self) {
        if let Some(Running::Bash { call, timeout_ms, deadline }) = self.running
            && Instant::now() >= deadline
        {
            let seconds = timeout_ms as f64 / 1000.0;
            return self.end_bash(call, &format!("command timed out after {seconds}s"));
        }
        let kept: Vec<i32> = self.shell.iter().map(Shell::pid).chain(self.files.iter().map(FilesLink::pid)).collect();
        let is_running = matches!(self.running, Some(Running::Bash { .. }));
        let mut excess = self.census.look(&kept, is_running);
        if excess.is_none() && (is_running || self.census.has_company) {
            excess = self.quota.look(&self.workspace);
        }
        // Who may have filled the workspace writes nothing more before that is known.
        if self.quota.is_urgent() && self.held.is_none() {
            self.held = Some(Held::all_but(self.files.as_ref().map(FilesLink::pid)));
        } else if !self.quota.is_urgent() && excess.is_none() {
            self.held = None;
        }
        let Some(excess) = excess else { return };
        match self.running {
            Some(Running::Bash { call, .. }) => self.end_bash(call, &excess),
            _ => {
                self.kill_shell();
                self.notice = Some(format!("{excess}: the shell and everything it started were killed"));
            }
        }
    }

    fn end_bash(&mut self, call: u64, why: &str) {
        let output = self.kill_shell();
        self.running = None;
        let mut text = format!("bash: {why}; the shell and everything it started were killed");
        if !output.is_empty() {
            text.push_str("\nOutput until then:\n");
            text.push_str(&output);
        }
        self.finish_bash(call, ToolOutcome::error(text));
    }

    /// Kills the shell and every process that any of its commands left; returns what they printed.
    fn kill_shell(&mut self) -> String {
        // A survivor is stuck in the kernel; nothing more can be done to it here, and its rights are gone already.
        let _ = descendants::kill_all(self.files.as_ref().map(FilesLink::pid));
        self.held = None;
        self.census = Census::new(&self.settings.limits);
        self.shell
            .take()
            .map(|mut shell| {
                shell.advance();
                shell.take_output()
            })
            .unwrap_or_default()
    }

    fn kill_running(&mut self) {
        match self.running.take() {
            Some(Running::Bash { .. }) => drop(self.kill_shell()),
            Some(Running::Files { .. }) => {
                if let Some(files) = self.files.take() {
                    descendants::kill_child(files.pid());
                }
            }
            None => {}
        }
    }
}

/// Whether a command names an absolute path, not one that merely ends likewise.
fn names_path(command: &str, path: &str) -> bool {
    command.match_indices(path).any(|(at, _)| {
        let before = command[..at].chars().next_back();
        before.is_none_or(|before| before.is_whitespace() || "'\"=:<>(".contains(before))
    })
}

/// Makes the folders that the session's programs take for given, should a command have removed them. A link that one put
/// in the way is an error of later commands, nothing more.
fn ensure_folders(workspace: &Workspace) {
    for folder in SESSION_FOLDERS.iter().filter(|folder| folder.is_writable) {
        let _ = workspace.ensure_folder(folder.inside);
    }
}

fn done(call: u64, outcome: ToolOutcome) {
    send(&Reply::Done { call, outcome });
}

fn send(reply: &Reply) {
    write_all(&encode(reply));
}

fn write_frame(body: &[u8]) {
    let length = u32::try_from(body.len()).expect("a frame was read with this length");
    write_all(&length.to_be_bytes());
    write_all(body);
}

/// The worker always reads; if it is gone, so will this process be at the next turn of its loop.
fn write_all(mut bytes: &[u8]) {
    while !bytes.is_empty() {
        match rustix::io::write(std::io::stdout(), bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(Errno::INTR) => {}
            Err(_) => return,
        }
    }
}

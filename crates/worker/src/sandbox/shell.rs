//! The persistent bash of a session, as its supervisor holds it.
//!
//! Commands go to bash's standard input, each as one `eval` with standard input from `/dev/null`; output comes
//! back on one pipe and the exit status on another, so nothing that a command prints, redirects or leaves
//! unfinished can be taken for the end of the command.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType};
use rustix::pipe::PipeFlags;
use std::io::IoSliceMut;
use std::mem::MaybeUninit;

use super::census::{self, Census};
use super::child::{Child, Standard};
use super::entry::{self, SHELL_OUTPUT_FD as OUT, SHELL_STATUS_FD as STATUS, START_FAILED};
use super::protocol::{Settings, ToolOutcome};
use super::system::{Answer, answer_call, receive_call};
use super::{attributes, connects};
use crate::tools::output::clean;
use crate::tools::workspace::Workspace;

/// Of a longer output the last bytes are kept.
pub(crate) const OUTPUT_BYTES_MAX: usize = 100 * 1024;

/// How a command ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// The command ended and the shell is ready for the next.
    Status(i32),
    /// The shell itself is gone, by `exit` or by a signal.
    ShellExited(i32),
    /// The shell could not be confined or started.
    NotStarted(String),
}

#[derive(Debug)]
pub(crate) struct Shell {
    child: Child,
    commands: OwnedFd,
    output: Option<OwnedFd>,
    status: Option<OwnedFd>,
    /// Where the calls that the supervisor answers come in; none before the shell has sent it, or unconfined.
    caught: Option<OwnedFd>,
    proxy_port: Option<u16>,
    unsent: Vec<u8>,
    status_line: Vec<u8>,
    tail: Tail,
    /// Marks the status of the current command: a command cannot write the status of another, which it does not know.
    number: u64,
}

impl Shell {
    pub(crate) fn start(settings: &Settings) -> Result<Self, Errno> {
        let (status, their_status) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        let (their_commands, commands) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        let (output, their_output) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        for pipe in [&commands, &output, &status] {
            rustix::io::ioctl_fionbio(pipe, true)?;
        }
        let standard = Standard { input: their_commands, output: their_output, error: their_status };
        Ok(Self {
            child: Child::fork(standard, || entry::shell(settings))?,
            commands,
            output: Some(output),
            status: Some(status),
            caught: None,
            proxy_port: settings.proxy_port,
            unsent: Vec::new(),
            status_line: Vec::new(),
            tail: Tail::default(),
            number: 0,
        })
    }

    pub(crate) fn pid(&self) -> i32 {
        self.child.pid()
    }

    /// Hands a command to the shell, which must not be running one.
    pub(crate) fn begin(&mut self, text: &str) {
        self.number = draw_number();
        let quoted = text.replace('\'', r"'\''");
        let number = self.number;
        self.unsent.extend_from_slice(
            format!(
                "builtin eval '{quoted}\n' </dev/null >&{OUT} 2>&1 {OUT}>&- {STATUS}>&-; \
                 builtin printf '{number} %d\\n' \"$?\" >&{STATUS}\n"
            )
            .as_bytes(),
        );
        self.flush();
    }

    /// Writes what the shell's pipe takes now.
    pub(crate) fn flush(&mut self) {
        while !self.unsent.is_empty() {
            match rustix::io::write(&self.commands, &self.unsent) {
                Ok(written) => drop(self.unsent.drain(..written)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                // The shell is gone, which its process descriptor tells.
                Err(_) => self.unsent.clear(),
            }
        }
    }

    /// What to wait for.
    pub(crate) fn interests(&self) -> Vec<(BorrowedFd<'_>, PollFlags)> {
        let mut interests = vec![(self.child.ended(), PollFlags::IN)];
        interests.extend(self.output.as_ref().map(|pipe| (pipe.as_fd(), PollFlags::IN)));
        interests.extend(self.caught.as_ref().map(|listener| (listener.as_fd(), PollFlags::IN)));
        interests.extend(self.status.as_ref().map(|pipe| (pipe.as_fd(), PollFlags::IN)));
        if !self.unsent.is_empty() {
            interests.push((self.commands.as_fd(), PollFlags::OUT));
        }
        interests
    }

    /// Moves bytes in both directions and says whether the command that was begun has ended.
    pub(crate) fn advance(&mut self) -> Option<Ended> {
        self.flush();
        self.read_output(usize::MAX);
        self.read_status();
        if let Some(ended) = self.completed() {
            // What the command wrote before it ended is in the pipe by now, whatever still writes to it.
            let waiting = self.output.as_ref().map(rustix::io::ioctl_fionread);
            self.read_output(waiting.and_then(Result::ok).unwrap_or(0) as usize);
            return Some(ended);
        }
        let code = self.child.try_wait()?;
        self.read_output(usize::MAX);
        Some(Ended::ShellExited(code))
    }

    /// The output since the last call, for an outcome; forgets it.
    pub(crate) fn take_output(&mut self) -> String {
        std::mem::take(&mut self.tail).text()
    }

    /// Reads until the pipe is empty or about `budget` bytes are read: a writer in the background cannot hold
    /// this up, because one turn of the loop reads no more than a full pipe.
    fn read_output(&mut self, budget: usize) {
        const TURN_BYTES_MAX: usize = 1024 * 1024;
        let mut left = budget.min(TURN_BYTES_MAX);
        let mut chunk = vec![0; 64 * 1024];
        while left > 0 {
            let Some(pipe) = &self.output else { return };
            let room = left.min(chunk.len());
            match rustix::io::read(pipe, &mut chunk[..room]) {
                Ok(0) => self.output = None,
                Ok(length) => {
                    self.tail.push(&chunk[..length]);
                    left -= length;
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                Err(_) => self.output = None,
            }
        }
    }

    fn read_status(&mut self) {
        const LINE_BYTES_MAX: usize = 4096;
        let mut chunk = [0; 512];
        loop {
            let Some(socket) = &self.status else { return };
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let mut parts = [IoSliceMut::new(&mut chunk)];
            match rustix::net::recvmsg(socket, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC) {
                Ok(received) if received.bytes == 0 => self.status = None,
                Ok(received) => {
                    for message in control.drain() {
                        // Only the first counts: later ones could come from a command.
                        if let RecvAncillaryMessage::ScmRights(mut descriptors) = message
                            && self.caught.is_none()
                        {
                            self.caught = descriptors.next();
                        }
                    }
                    self.status_line.extend_from_slice(&chunk[..received.bytes]);
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                Err(_) => self.status = None,
            }
            if self.status_line.len() > LINE_BYTES_MAX {
                self.status_line.clear();
            }
        }
    }

    /// Answers the calls that wait, as many as one turn of the loop may take.
    pub(crate) fn answer_calls(&mut self, workspace: &Workspace, census: &mut Census) {
        const TURN_CALLS_MAX: usize = 64;
        let Some(listener) = &self.caught else { return };
        let mut polled = [PollFd::new(listener, PollFlags::IN)];
        for _ in 0..TURN_CALLS_MAX {
            if poll(&mut polled, Some(&Timespec::default())) != Ok(1) {
                return;
            }
            if !polled[0].revents().contains(PollFlags::IN) {
                // Nobody is left who could call.
                self.caught = None;
                return;
            }
            // A caller that was killed meanwhile is an error here, and nobody's business.
            let Ok(call) = receive_call(listener) else { continue };
            let performed = |result: Result<(), Errno>| result.map_or_else(Answer::Refused, |()| Answer::Done);
            let answer = if census::CAUGHT.contains(&call.number) {
                census.admit()
            } else if connects::CAUGHT.contains(&call.number) {
                performed(connects::perform(listener, &call, self.proxy_port))
            } else {
                performed(attributes::perform(workspace, &call))
            };
            answer_call(listener, &call, answer);
            if answer == Answer::Refused(Errno::CONNREFUSED) {
                // It was waited for: the worker may have something to say meanwhile.
                return;
            }
        }
    }

    /// Looks for the status of the current command among the lines that came in.
    fn completed(&mut self) -> Option<Ended> {
        while let Some(end) = self.status_line.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.status_line.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line);
            if let Some(message) = line.strip_prefix(START_FAILED) {
                return Some(Ended::NotStarted(message.trim_end().to_owned()));
            }
            let Some((number, code)) = line.trim_end().split_once(' ') else { continue };
            if number.parse() == Ok(self.number)
                && let Ok(code) = code.parse()
            {
                return Some(Ended::Status(code));
            }
        }
        None
    }
}

/// The last bytes of an output of any length.
#[derive(Debug, Default)]
struct Tail {
    bytes: Vec<u8>,
    total: u64,
}

impl Tail {
    fn push(&mut self, bytes: &[u8]) {
        self.total += bytes.len() as u64;
        self.bytes.extend_from_slice(bytes);
        if self.bytes.len() > 2 * OUTPUT_BYTES_MAX {
            self.cut();
        }
    }

    fn cut(&mut self) {
        let excess = self.bytes.len().saturating_sub(OUTPUT_BYTES_MAX);
        self.bytes.drain(..excess);
    }

    fn text(mut self) -> String {
        self.cut();
        if self.total <= OUTPUT_BYTES_MAX as u64 {
            return clean(&self.bytes);
        }
        // The cut may have gone through a character.
        let start = self.bytes.iter().take(3).take_while(|byte| **byte & 0xc0 == 0x80).count();
        format!(
            "[output truncated: the last {OUTPUT_BYTES_MAX} of {} bytes follow]\n{}",
            self.total,
            clean(&self.bytes[start..])
        )
    }
}

fn draw_number() -> u64 {
    let mut bytes = [0; 8];
    // Eight bytes come whole, or not at all on a kernel without the call; a session can then only deceive itself.
    let _ = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    u64::from_ne_bytes(bytes)
}

/// The result of a command that ran to its end.
pub(crate) fn outcome(code: i32, output: String) -> ToolOutcome {
    match (code, output.is_empty()) {
        (0, true) => ToolOutcome::text("(no output)"),
        (0, false) => ToolOutcome::text(output),
        (_, true) => ToolOutcome::error(format!("bash: exit status {code}")),
        (_, false) => ToolOutcome::error(output),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_of_an_output_is_kept() {
        let mut tail = Tail::default();
        for _ in 0..1000 {
            tail.push("é".repeat(500).as_bytes());
        }
        tail.push(b"x");
        assert!(tail.bytes.len() <= 2 * OUTPUT_BYTES_MAX + 1000);
        let text = tail.text();
        let (note, rest) = text.split_once('\n').unwrap();
        assert_eq!(note, "[output truncated: the last 102400 of 1000001 bytes follow]");
        assert!(rest.starts_with('é') && rest.ends_with("éx"));
    }
}

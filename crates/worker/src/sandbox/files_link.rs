//! The supervisor's end of the file helper: a process, its frames in and out, none of which may block.

use rustix::event::PollFlags;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::process::Pid;
use std::process::{Child, Stdio};

use super::entry::command;
use super::protocol::{FrameReader, Reply, Settings};

/// What came from the helper.
pub(crate) enum Heard {
    /// The answer to the call that was sent, as the bytes of a frame.
    Frame(Vec<u8>),
    /// It could not be confined.
    Failed(String),
    /// It is gone.
    Ended,
}

pub(crate) struct FilesLink {
    child: Child,
    input: OwnedFd,
    output: OwnedFd,
    unsent: Vec<u8>,
    frames: FrameReader,
    is_ready: bool,
}

impl FilesLink {
    pub(crate) fn start(settings: &Settings) -> std::io::Result<Self> {
        let mut child =
            command("files", settings).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
        let input = OwnedFd::from(child.stdin.take().expect("stdin is piped"));
        let output = OwnedFd::from(child.stdout.take().expect("stdout is piped"));
        for pipe in [&input, &output] {
            let flags = rustix::fs::fcntl_getfl(pipe)?;
            rustix::fs::fcntl_setfl(pipe, flags | OFlags::NONBLOCK)?;
        }
        Ok(Self { child, input, output, unsent: Vec::new(), frames: FrameReader::default(), is_ready: false })
    }

    pub(crate) fn pid(&self) -> i32 {
        Pid::from_child(&self.child).as_raw_nonzero().get()
    }

    pub(crate) fn send(&mut self, frame: &[u8]) {
        self.unsent.extend_from_slice(frame);
        self.flush();
    }

    pub(crate) fn interests(&self) -> Vec<(BorrowedFd<'_>, PollFlags)> {
        let mut interests = vec![(self.output.as_fd(), PollFlags::IN)];
        if !self.unsent.is_empty() {
            interests.push((self.input.as_fd(), PollFlags::OUT));
        }
        interests
    }

    /// Moves bytes in both directions; says what came in, one thing at a time.
    pub(crate) fn advance(&mut self) -> Option<Heard> {
        self.flush();
        let mut chunk = vec![0; 64 * 1024];
        loop {
            match self.frames.next_frame() {
                Ok(None) => {}
                Ok(Some(frame)) if self.is_ready => return Some(Heard::Frame(frame)),
                Ok(Some(frame)) => match serde_json::from_slice(&frame) {
                    Ok(Reply::Ready { .. }) => {
                        self.is_ready = true;
                        // The first answer may have come with it.
                        continue;
                    }
                    Ok(Reply::Failed { message }) => return Some(Heard::Failed(message)),
                    _ => return Some(Heard::Ended),
                },
                Err(_) => return Some(Heard::Ended),
            }
            match rustix::io::read(&self.output, &mut chunk) {
                Ok(0) => return Some(Heard::Ended),
                Ok(length) => self.frames.push(&chunk[..length]),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return None,
                Err(_) => return Some(Heard::Ended),
            }
        }
    }

    fn flush(&mut self) {
        let mut sent = 0;
        while sent < self.unsent.len() {
            match rustix::io::write(&self.input, &self.unsent[sent..]) {
                Ok(written) => sent += written,
                Err(Errno::INTR) => {}
                // Full, or gone, which reading tells.
                Err(_) => break,
            }
        }
        self.unsent.drain(..sent);
    }
}

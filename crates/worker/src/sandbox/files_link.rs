//! The supervisor's end of the file helper: a process, its frames in and out, none of which may block.

use rustix::event::PollFlags;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::pipe::PipeFlags;

use super::child::{Child, Standard};
use super::helper;
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
    pub(crate) fn start(settings: &Settings) -> Result<Self, Errno> {
        let (their_input, input) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        let (output, their_output) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        for pipe in [&input, &output] {
            rustix::io::ioctl_fionbio(pipe, true)?;
        }
        let error = rustix::fs::open("/dev/null", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
        let standard = Standard { input: their_input, output: their_output, error };
        let child = Child::fork(standard, || helper::main(settings))?;
        Ok(Self { child, input, output, unsent: Vec::new(), frames: FrameReader::default(), is_ready: false })
    }

    pub(crate) fn pid(&self) -> i32 {
        self.child.pid()
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

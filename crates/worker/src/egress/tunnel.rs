//! What a `CONNECT` becomes once it is granted: bytes, in both directions, until both sides have ended theirs.
//!
//! Nothing in between is read: TLS is the client's own, from end to end. So what turns out to be much is not even
//! brought into the process: the kernel splices it from one socket to the other, which costs less.

use bytes::Bytes;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use rustix::io::Errno;
use rustix::net::{SendFlags, Shutdown, send};
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use tokio::io::{AsyncWriteExt as _, Interest};
use tokio::net::TcpStream;
use tokio::task::coop::consume_budget;

use super::meter::{Meter, Metered};

/// What is copied at once; most tunnels carry little.
const BUFFER_BYTES: usize = 16 * 1024;
/// A direction that has carried so much gets a pipe.
const COPIED_BYTES_MAX: u64 = 256 * 1024;
/// Sixty-four fragments instead of sixteen, so that a full receive queue goes in one call.
const PIPE_BYTES: usize = 256 * 1024;
/// What is spliced at once: more than the fragments that a pipe holds ever come to.
const SPLICED_BYTES_MAX: usize = 2 * 1024 * 1024;

/// A granted `CONNECT` whose answer is under way.
#[derive(Debug)]
pub(super) struct Tunnel {
    pub client: OnUpgrade,
    pub upstream: TcpStream,
}

impl Tunnel {
    /// Carries bytes to the end of both directions.
    pub(super) async fn carry(self, meter: &Meter) -> io::Result<()> {
        let (client, early) = open(self.client).await?;
        let mut upstream = self.upstream;
        upstream.write_all(&early).await?;
        tokio::try_join!(carry(&client, &upstream, meter), carry(&upstream, &client, meter))?;
        Ok(())
    }
}

/// The client's stream, and what it sent behind its request without waiting for the answer.
async fn open(client: OnUpgrade) -> io::Result<(TcpStream, Bytes)> {
    let upgraded = client.await.map_err(io::Error::other)?;
    let parts = upgraded
        .downcast::<TokioIo<Metered>>()
        .expect("a connection is served over a metered stream and over nothing else");
    Ok((parts.io.into_inner().into_stream(), parts.read_buf))
}

/// One direction to its end, which is passed on.
async fn carry(from: &TcpStream, to: &TcpStream, meter: &Meter) -> io::Result<()> {
    let is_over = match copy(from, to, meter, COPIED_BYTES_MAX).await? {
        Progress::Ended => true,
        Progress::Stopped => match Pipe::new() {
            Ok(pipe) => pipe.carry(from, to, meter).await? == Progress::Ended,
            Err(_) => false,
        },
    };
    if !is_over {
        // There is no pipe to be had, or nothing that it can do for these sockets.
        copy(from, to, meter, u64::MAX).await?;
    }
    match rustix::net::shutdown(to, Shutdown::Write) {
        // Gone altogether, which the other direction finds out as well.
        Ok(()) | Err(Errno::NOTCONN) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Where a direction stands.
#[derive(Debug, PartialEq, Eq)]
enum Progress {
    /// Nothing more will come.
    Ended,
    /// All that has come was passed on; more may come.
    Stopped,
}

/// Carries by way of this process, about so many bytes.
async fn copy(from: &TcpStream, to: &TcpStream, meter: &Meter, bytes_max: u64) -> io::Result<Progress> {
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut carried = 0;
    while carried < bytes_max {
        let length = from.async_io(Interest::READABLE, || Ok(rustix::io::read(from, &mut buffer)?)).await?;
        if length == 0 {
            return Ok(Progress::Ended);
        }
        meter.count(length)?;
        let mut rest = &buffer[..length];
        while !rest.is_empty() {
            let written = to.async_io(Interest::WRITABLE, || Ok(send(to, rest, SendFlags::NOSIGNAL)?)).await?;
            rest = &rest[written..];
        }
        carried += length as u64;
        consume_budget().await;
    }
    Ok(Progress::Stopped)
}

/// Carries bytes from socket to socket without a copy. Empty whenever it is not in use.
struct Pipe {
    reader: OwnedFd,
    writer: OwnedFd,
}

impl Pipe {
    fn new() -> io::Result<Self> {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        // Where the user may have no more of large pipes, the usual size does too.
        let _ = fcntl_setpipe_size(&writer, PIPE_BYTES);
        Ok(Self { reader, writer })
    }

    /// Carries to the end, or not at all if these sockets cannot be spliced.
    async fn carry(&self, from: &TcpStream, to: &TcpStream, meter: &Meter) -> io::Result<Progress> {
        let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
        loop {
            // The pipe is empty, so it is the socket alone that may have to be waited for.
            let fill = || Ok(splice(from, None, &self.writer, None, SPLICED_BYTES_MAX, flags)?);
            let mut left = match from.async_io(Interest::READABLE, fill).await {
                Err(error) if error.kind() == ErrorKind::InvalidInput => return Ok(Progress::Stopped),
                Err(error) => return Err(error),
                Ok(0) => return Ok(Progress::Ended),
                Ok(length) => length,
            };
            meter.count(left)?;
            while left > 0 {
                let drain = || Ok(splice(&self.reader, None, to, None, left, flags)?);
                left -= to.async_io(Interest::WRITABLE, drain).await?;
            }
            consume_budget().await;
        }
    }
}

//! Counts what moves between a tool and the proxy, and knows when nothing did.
//!
//! One [`Meter`] for each connection; the [`Budget`] of bytes is the session's. Everything that a connection moves
//! passes its client side, heads and bodies and tunnels alike, so that one side is the only one counted.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Instant;

/// The bytes that a session may still move.
#[derive(Debug)]
pub(super) struct Budget {
    used: AtomicU64,
    /// `u64::MAX` without a limit.
    max: u64,
}

impl Budget {
    /// 0 sets no limit.
    pub(super) fn new(bytes_max: u64) -> Self {
        Self { used: AtomicU64::new(0), max: if bytes_max == 0 { u64::MAX } else { bytes_max } }
    }

    pub(super) fn is_spent(&self) -> bool {
        self.used.load(Ordering::Relaxed) >= self.max
    }

    /// Whether these bytes were within the budget.
    fn spend(&self, bytes: u64) -> bool {
        self.used.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes) <= self.max
    }
}

/// The session has no bytes left.
#[derive(Debug, thiserror::Error)]
#[error("the session has moved all the bytes it may")]
struct Spent;

#[derive(Debug)]
pub(super) struct Meter {
    budget: Arc<Budget>,
    opened: Instant,
    /// When something moved last, in milliseconds since `opened`.
    moved: AtomicU64,
    has_read: AtomicBool,
    is_over_budget: AtomicBool,
    /// How many wait for something else than this connection.
    held: AtomicUsize,
}

impl Meter {
    pub(super) fn new(budget: Arc<Budget>) -> Self {
        Self {
            budget,
            opened: Instant::now(),
            moved: AtomicU64::new(0),
            has_read: AtomicBool::new(false),
            is_over_budget: AtomicBool::new(false),
            held: AtomicUsize::new(0),
        }
    }

    /// Takes note of bytes that moved; an error if there were none left to move.
    pub(super) fn count(&self, bytes: usize) -> io::Result<()> {
        self.touch();
        if self.budget.spend(bytes as u64) {
            return Ok(());
        }
        self.is_over_budget.store(true, Ordering::Relaxed);
        Err(io::Error::other(Spent))
    }

    pub(super) fn is_over_budget(&self) -> bool {
        self.is_over_budget.load(Ordering::Relaxed)
    }

    /// Whether the client ever sent anything.
    pub(super) fn has_read(&self) -> bool {
        self.has_read.load(Ordering::Relaxed)
    }

    /// While this is held the connection is not expected to move.
    pub(super) fn hold(&self) -> Hold<'_> {
        self.held.fetch_add(1, Ordering::Relaxed);
        Hold(self)
    }

    /// Resolves when nothing has moved for so long.
    pub(super) async fn quiet(&self, timeout: Duration) {
        loop {
            let moved = self.opened + Duration::from_millis(self.moved.load(Ordering::Relaxed));
            let is_held = self.held.load(Ordering::Relaxed) > 0;
            let quiet = moved.elapsed();
            if quiet >= timeout && !is_held {
                return;
            }
            tokio::time::sleep(timeout.saturating_sub(if is_held { Duration::ZERO } else { quiet })).await;
        }
    }

    fn touch(&self) {
        let elapsed = u64::try_from(self.opened.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.moved.store(elapsed, Ordering::Relaxed);
    }
}

/// See [`Meter::hold`].
pub(super) struct Hold<'a>(&'a Meter);

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        self.0.touch();
        self.0.held.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The client side of a connection.
#[derive(Debug)]
pub(super) struct Metered {
    stream: TcpStream,
    meter: Arc<Meter>,
}

impl Metered {
    pub(super) fn new(stream: TcpStream, meter: Arc<Meter>) -> Self {
        Self { stream, meter }
    }

    /// The bare stream, for whoever counts by hand.
    pub(super) fn into_stream(self) -> TcpStream {
        self.stream
    }
}

impl AsyncRead for Metered {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(context, buffer))?;
        let bytes = buffer.filled().len() - before;
        if bytes > 0 {
            this.meter.has_read.store(true, Ordering::Relaxed);
        }
        Poll::Ready(this.meter.count(bytes))
    }
}

impl AsyncWrite for Metered {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = ready!(Pin::new(&mut this.stream).poll_write(context, bytes))?;
        Poll::Ready(this.meter.count(written).map(|()| written))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = ready!(Pin::new(&mut this.stream).poll_write_vectored(context, slices))?;
        Poll::Ready(this.meter.count(written).map(|()| written))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}

//! What a `CONNECT` becomes once it is granted: bytes, in both directions, until both sides have ended theirs.
//!
//! Nothing in between is read: TLS is the client's own, from end to end.

use bytes::Bytes;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use std::io;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use super::meter::Metered;

/// Enough for a fast network, little enough for hundreds of tunnels.
const BUFFER_BYTES: usize = 64 * 1024;

/// A granted `CONNECT` whose answer is under way.
#[derive(Debug)]
pub(super) struct Tunnel {
    pub client: OnUpgrade,
    pub upstream: TcpStream,
}

impl Tunnel {
    /// Carries bytes to the end of both directions.
    pub(super) async fn carry(self) -> io::Result<()> {
        let (mut client, early) = open(self.client).await?;
        let mut upstream = self.upstream;
        upstream.write_all(&early).await?;
        tokio::io::copy_bidirectional_with_sizes(&mut client, &mut upstream, BUFFER_BYTES, BUFFER_BYTES).await?;
        Ok(())
    }
}

/// The client's stream, and what it sent behind its request without waiting for the answer.
async fn open(client: OnUpgrade) -> io::Result<(Metered, Bytes)> {
    let upgraded = client.await.map_err(io::Error::other)?;
    let parts = upgraded
        .downcast::<TokioIo<Metered>>()
        .expect("a connection is served over a metered stream and over nothing else");
    Ok((parts.io.into_inner(), parts.read_buf))
}

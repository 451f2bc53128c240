//! The egress proxy: the only way that tools have to the network.
//!
//! A sandbox's sockets end at a listener of its session, so that the proxy knows whose rules apply without asking
//! anybody. It speaks `CONNECT` and plain HTTP, reads no TLS, and adds nothing of its own to a request.
//!
//! - [`target`] reads what a request names, [`policy`] says whether the session may name it, [`address`] whether an
//!   address may be reached: all pure.
//! - [`dial`] puts them in order and connects; [`proxy`] converses with the tool; [`tunnel`] carries bytes.
//! - [`meter`] holds the limits, [`refusal`] says no.
//!
//! Making the listener, and keeping tools from every other socket, is the sandbox's part.

mod address;
mod config;
mod dial;
mod headers;
mod meter;
mod policy;
mod proxy;
mod refusal;
mod resolver;
mod target;
mod tunnel;

use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::{CancellationToken, DropGuard};

pub use config::{NetworkConfig, NetworkLimits};
pub use policy::{HostPattern, Policy};
pub use refusal::{Reason, RefusalCounts};
pub use resolver::{Resolve, SystemResolver};

use dial::OwnAddresses;
use meter::Budget;
use refusal::Denial;

/// Names that a session looks up at the same time: each occupies a thread of the worker's.
const LOOKUPS_MAX: usize = 4;
/// Connections beyond the limit that are told so at the same time; those behind them wait in the kernel.
const REFUSED_AT_ONCE_MAX: usize = 8;
/// Two sockets, and two pipes between them.
const DESCRIPTORS_OF_CONNECTION: u64 = 6;
/// For everything else that a worker does.
const DESCRIPTORS_RESERVED: u64 = 512;
/// How long a connection beyond the limit gets to be told so.
const REFUSAL_PATIENCE: Duration = Duration::from_secs(1);
/// After an accept that failed, for want of descriptors as a rule.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// The proxy of one worker.
#[derive(Clone)]
pub struct Egress {
    shared: Arc<Shared>,
}

struct Shared {
    config: NetworkConfig,
    resolver: Arc<dyn Resolve>,
    own_addresses: OwnAddresses,
    /// Connections that the worker's descriptors allow, those of all sessions together.
    free: Arc<Semaphore>,
}

impl Egress {
    pub fn new(config: NetworkConfig) -> Self {
        Self::with_resolver(config, Arc::new(SystemResolver))
    }

    /// With a resolver of the caller's.
    pub fn with_resolver(config: NetworkConfig, resolver: Arc<dyn Resolve>) -> Self {
        let free = Arc::new(Semaphore::new(connections_affordable()));
        Self { shared: Arc::new(Shared { config, resolver, own_addresses: OwnAddresses::new(), free }) }
    }

    /// Serves what connects to `listener` under the session's policy until the handle is dropped.
    ///
    /// Must be called within a tokio runtime.
    pub fn serve(
        &self,
        session_id: &str,
        policy: Policy,
        listener: std::net::TcpListener,
    ) -> io::Result<SessionEgress> {
        listener.set_nonblocking(true)?;
        let listener = TcpListener::from_std(listener)?;
        let ended = CancellationToken::new();
        let refusals = Arc::new(RefusalCounts::default());
        let config = &self.shared.config;
        let session = Session {
            id: session_id.to_owned(),
            policy: if config.enabled { policy } else { Policy::Off },
            budget: Arc::new(Budget::new(config.limits.bytes_max)),
            lookups: Arc::new(Semaphore::new(LOOKUPS_MAX)),
            refusals: Arc::clone(&refusals),
            ended: ended.clone(),
            shared: Arc::clone(&self.shared),
        };
        tokio::spawn(accept(Arc::new(session), listener));
        Ok(SessionEgress { refusals, _ended: ended.drop_guard() })
    }
}

impl std::fmt::Debug for Egress {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Egress").field("config", &self.shared.config).finish_non_exhaustive()
    }
}

/// A session's part of the proxy. Dropping it ends every connection of the session.
#[derive(Debug)]
pub struct SessionEgress {
    refusals: Arc<RefusalCounts>,
    _ended: DropGuard,
}

impl SessionEgress {
    /// What was refused so far. It outlives the handle, so that the last refusals are not lost with it.
    pub fn refusals(&self) -> Arc<RefusalCounts> {
        Arc::clone(&self.refusals)
    }
}

/// What the connections of a session share.
struct Session {
    id: String,
    policy: Policy,
    budget: Arc<Budget>,
    lookups: Arc<Semaphore>,
    refusals: Arc<RefusalCounts>,
    ended: CancellationToken,
    shared: Arc<Shared>,
}

impl Session {
    /// Counts a refusal and writes its line; the target is a host and a port.
    fn refuse(&self, reason: Reason, target: Option<(String, u16)>) {
        self.refusals.count(reason);
        let (host, port) = target.unwrap_or_default();
        refusal::log(&self.id, reason, &host, port);
    }
}

/// What the limit of open files leaves for connections, so that the sessions together cannot keep the worker from
/// opening anything else.
fn connections_affordable() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX);
    let left = limit.saturating_sub(DESCRIPTORS_RESERVED) / DESCRIPTORS_OF_CONNECTION;
    usize::try_from(left).unwrap_or(usize::MAX).clamp(1, Semaphore::MAX_PERMITS)
}

async fn accept(session: Arc<Session>, listener: TcpListener) {
    let free = Arc::new(Semaphore::new(session.shared.config.limits.connections_max));
    let refusing = Arc::new(Semaphore::new(REFUSED_AT_ONCE_MAX));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = session.ended.cancelled() => return,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::debug!(session_id = session.id, %error, "a connection to the proxy was not accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let shared = Arc::clone(&session.shared.free).try_acquire_owned();
        if let (Ok(own), Ok(shared)) = (Arc::clone(&free).try_acquire_owned(), shared) {
            let session = Arc::clone(&session);
            tokio::spawn(async move {
                proxy::serve(session, stream).await;
                drop((own, shared));
            });
            continue;
        }
        let permit = Arc::clone(&refusing).acquire_owned().await.expect("the semaphore is never closed");
        session.refuse(Reason::LimitConnections, None);
        tokio::spawn(async move {
            let _ = tokio::time::timeout(REFUSAL_PATIENCE, turn_away(stream)).await;
            drop(permit);
        });
    }
}

/// Answers without having understood the question. It is read all the same: a connection that is closed with
/// something unread is reset, and the answer lost with it.
async fn turn_away(mut stream: TcpStream) -> io::Result<()> {
    let text = "this session has as many connections open as it may; close some, or use fewer at once";
    stream.write_all(&Denial::refused(Reason::LimitConnections, text).to_bytes()).await?;
    stream.shutdown().await?;
    let mut unread = [0; 4096];
    while stream.read(&mut unread).await? > 0 {}
    Ok(())
}

//! One connection from a tool to the proxy: its requests one after another, and the tunnel that it may become.
//!
//! hyper reads and frames the messages. A request that goes on is written anew: its host is the one that was judged,
//! its framing is that of the body as it was read, and what concerns this hop alone is gone. So two readings of one
//! request, which is what smuggling needs, cannot arise behind the policy.

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::uri::{PathAndQuery, Scheme};
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri, Version};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Empty};
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::{client, server};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_util::task::AbortOnDropHandle;

use super::Session;
use super::dial::switched_off;
use super::headers::remove_hop_by_hop;
use super::meter::{Meter, Metered};
use super::policy::Policy;
use super::refusal::{Denial, Reason};
use super::target::Target;
use super::tunnel::Tunnel;

/// The head of a message, on either side.
const HEAD_BYTES_MAX: usize = 64 * 1024;
const HEADERS_MAX: usize = 128;
/// A client gets this long for the head of a request, the pause before it included.
const HEAD_PATIENCE: Duration = Duration::from_secs(30);
/// How much of a host that cannot be read is written to the log.
const HOST_CHARACTERS_MAX: usize = 100;

type Body = BoxBody<Bytes, hyper::Error>;

/// Serves a connection to its end, which the session's limits may set.
pub(super) async fn serve(session: Arc<Session>, stream: TcpStream) {
    let meter = Arc::new(Meter::new(Arc::clone(&session.budget)));
    let connection = Arc::new(Connection { session, meter, state: Mutex::default(), open: Arc::default() });
    let limits = &connection.session.shared.config.limits;
    let end = tokio::select! {
        biased;
        () = connection.session.ended.cancelled() => return,
        end = connection.converse(stream) => end,
        () = connection.meter.quiet(limits.idle_timeout) => End::TooLong,
        () = tokio::time::sleep(limits.connection_lifetime) => End::TooLong,
    };
    connection.account_for(end);
}

/// How a conversation ended.
enum End {
    Over,
    /// What came was no request; hyper has said so.
    Unreadable,
    TooLong,
}

struct Connection {
    session: Arc<Session>,
    meter: Arc<Meter>,
    state: Mutex<State>,
    /// Requests whose answer is not written out yet.
    open: Arc<AtomicUsize>,
}

#[derive(Default)]
struct State {
    /// What the last request wanted.
    target: Option<Target>,
    tunnel: Option<Tunnel>,
    is_tunnel: bool,
}

impl Connection {
    async fn converse(self: &Arc<Self>, stream: TcpStream) -> End {
        let _ = stream.set_nodelay(true);
        let metered = Metered::new(stream, Arc::clone(&self.meter));
        let service = hyper::service::service_fn(|request| {
            let connection = Arc::clone(self);
            async move { Ok::<_, Infallible>(connection.answer(request).await) }
        });
        let served = server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.session.shared.config.limits.idle_timeout.min(HEAD_PATIENCE))
            .max_buf_size(2 * HEAD_BYTES_MAX)
            .max_header_size(HEAD_BYTES_MAX)
            .max_headers(HEADERS_MAX)
            .serve_connection(TokioIo::new(metered), service)
            .with_upgrades()
            .await;
        match served {
            Err(error) if error.is_parse() => return End::Unreadable,
            // Nothing but the head of a request is waited for with a limit of its own.
            Err(error) if error.is_timeout() => return End::TooLong,
            Err(error) => tracing::debug!(session_id = self.session.id, %error, "a connection to the proxy broke"),
            Ok(()) => {}
        }
        let tunnel = self.state().tunnel.take();
        if let Some(tunnel) = tunnel
            && let Err(error) = tunnel.carry(&self.meter).await
        {
            tracing::debug!(session_id = self.session.id, %error, "a tunnel broke");
        }
        End::Over
    }

    /// Counts and logs what the limits ended. A connection that only waited for a next request ended of itself.
    fn account_for(&self, end: End) {
        let state = self.state();
        let is_busy = state.is_tunnel || self.open.load(Ordering::Relaxed) > 0;
        let is_first = state.target.is_none() && self.meter.has_read();
        let reason = match end {
            _ if self.meter.is_over_budget() => Reason::LimitBytes,
            End::Unreadable => Reason::Malformed,
            End::TooLong if is_busy || is_first => Reason::LimitTime,
            End::TooLong | End::Over => return,
        };
        let target = state.target.as_ref().filter(|_| reason != Reason::Malformed);
        self.session.refuse(reason, target.map(|target| (target.host.to_string(), target.port)));
    }

    /// Answers one request; a denial becomes an answer too.
    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let _hold = self.meter.hold();
        let open = Open::new(&self.open);
        let is_connect = request.method() == Method::CONNECT;
        let mut answer = self.answer_to(request, open).await;
        if is_connect && !answer.status().is_success() {
            // What the client sent behind it was meant for the tunnel.
            answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        answer
    }

    async fn answer_to(&self, request: Request<Incoming>, open: Open) -> Response<Body> {
        let (target, answer) = match self.admit(&request) {
            Err((denial, host)) => return self.deny(&denial, host),
            Ok(target) if request.method() == Method::CONNECT => {
                let answer = self.tunnel(request, &target).await;
                (target, answer)
            }
            Ok(target) => {
                let answer = self.forward(request, &target, open).await;
                (target, answer)
            }
        };
        answer.unwrap_or_else(|denial| self.deny(&denial, Some((target.host.to_string(), target.port))))
    }

    /// What the request wants, if it is one that a proxy takes and the session has anything left.
    fn admit(&self, request: &Request<Incoming>) -> Result<Target, (Denial, Option<(String, u16)>)> {
        if self.session.policy == Policy::Off {
            let target = read_target(request).ok().map(|target| (target.host.to_string(), target.port));
            return Err((switched_off(), target));
        }
        let target = read_target(request).map_err(|denial| (denial, unread_host(request.uri())))?;
        if self.session.budget.is_spent() {
            return Err((bytes_spent(), Some((target.host.to_string(), target.port))));
        }
        self.state().target = Some(target.clone());
        Ok(target)
    }

    fn deny(&self, denial: &Denial, target: Option<(String, u16)>) -> Response<Body> {
        if let Some(reason) = denial.reason {
            self.session.refuse(reason, target);
        }
        denial.response().map(|body| body.map_err(|never| match never {}).boxed())
    }

    /// Grants a `CONNECT`. The tunnel begins when the answer is out.
    async fn tunnel(&self, request: Request<Incoming>, target: &Target) -> Result<Response<Body>, Denial> {
        let upstream = self.session.dial(target).await?;
        let mut state = self.state();
        state.is_tunnel = true;
        state.tunnel = Some(Tunnel { client: hyper::upgrade::on(request), upstream });
        Ok(Response::new(Empty::new().map_err(|never| match never {}).boxed()))
    }

    /// Sends the request on over a connection of its own, and yields the answer as it comes.
    async fn forward(&self, request: Request<Incoming>, target: &Target, open: Open) -> Result<Response<Body>, Denial> {
        let host = &target.host;
        let lost = |_| {
            Denial::failed(StatusCode::BAD_GATEWAY, format!("{host} broke the connection off, or is no HTTP server"))
        };
        let upstream = self.session.dial(target).await?;
        let (mut sender, connection) = client::conn::http1::Builder::new()
            .max_buf_size(2 * HEAD_BYTES_MAX)
            .max_header_size(HEAD_BYTES_MAX)
            .max_headers(HEADERS_MAX)
            .handshake(TokioIo::new(upstream))
            .await
            .map_err(lost)?;
        let driver = AbortOnDropHandle::new(tokio::spawn(connection));
        let patience = self.session.shared.config.limits.idle_timeout;
        let answer = tokio::time::timeout(patience, sender.send_request(rewritten(request, target))).await;
        let answer = answer.map_err(|_| {
            Denial::failed(
                StatusCode::GATEWAY_TIMEOUT,
                format!("{host} took the request and did not answer it in time"),
            )
        })?;
        let (mut parts, body) = answer.map_err(lost)?.into_parts();
        if parts.status == StatusCode::SWITCHING_PROTOCOLS {
            let text = format!("{host} wants another protocol than HTTP; use CONNECT for that");
            return Err(Denial::failed(StatusCode::BAD_GATEWAY, text));
        }
        parts.version = Version::HTTP_11;
        parts.extensions.clear();
        if !is_chunked_or_plain(&parts.headers) {
            let text = format!("{host} answered with a Transfer-Encoding other than chunked");
            return Err(Denial::failed(StatusCode::BAD_GATEWAY, text));
        }
        if parts.headers.contains_key(header::TRANSFER_ENCODING) {
            parts.headers.remove(header::CONTENT_LENGTH);
        }
        remove_hop_by_hop(&mut parts.headers);
        Ok(Response::from_parts(parts, Streamed { body, _driver: driver, _open: open }.boxed()))
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads where a request wants to go.
fn read_target<B>(request: &Request<B>) -> Result<Target, Denial> {
    let malformed = |text: String| Denial::refused(Reason::Malformed, text);
    let uri = request.uri();
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    if request.method() == Method::CONNECT {
        // A body would be read as such by one and as the tunnel's first bytes by another.
        let has_body = request.headers().contains_key(header::TRANSFER_ENCODING)
            || request.headers().get(header::CONTENT_LENGTH).is_some_and(|length| length != "0");
        if has_body {
            return Err(malformed("a CONNECT has no body".to_owned()));
        }
        return Target::parse(authority, None).map_err(|error| malformed(format!("CONNECT: {error}")));
    }
    if !is_chunked_or_plain(request.headers()) {
        return Err(malformed("the only Transfer-Encoding that goes through the proxy is chunked".to_owned()));
    }
    match uri.scheme() {
        Some(scheme) if *scheme == Scheme::HTTP => {
            Target::parse(authority, Some(80)).map_err(|error| malformed(error.to_string()))
        }
        Some(scheme) if *scheme == Scheme::HTTPS => {
            Err(malformed("https goes through the proxy by CONNECT; set https_proxy for this program".to_owned()))
        }
        Some(_) => Err(malformed("only http and https go through the proxy".to_owned())),
        None => Err(malformed(
            "this is a proxy and the only way to the network; make the program use it: it is in the variables \
             http_proxy, https_proxy and all_proxy"
                .to_owned(),
        )),
    }
}

/// Whether the body is all that its framing wraps: any other coding would be lost with the framing.
fn is_chunked_or_plain(headers: &HeaderMap) -> bool {
    headers.get_all(header::TRANSFER_ENCODING).iter().all(|value| value.as_bytes().eq_ignore_ascii_case(b"chunked"))
}

/// A host for the log that could not be read, without what may be a secret before it.
fn unread_host(uri: &Uri) -> Option<(String, u16)> {
    let host = uri.authority()?.as_str().rsplit('@').next()?;
    let host = host.chars().filter(|character| !character.is_control()).take(HOST_CHARACTERS_MAX).collect();
    Some((host, 0))
}

fn bytes_spent() -> Denial {
    let text = "this session has moved as many bytes over the network as it may; the operator sets the limit in \
                worker.network.limits.max_bytes";
    Denial::refused(Reason::LimitBytes, text)
}

/// The request as the target gets it.
fn rewritten(request: Request<Incoming>, target: &Target) -> Request<Incoming> {
    let (mut parts, body) = request.into_parts();
    let path = parts.uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    parts.uri = Uri::from(path);
    parts.version = Version::HTTP_11;
    parts.extensions.clear();
    remove_hop_by_hop(&mut parts.headers);
    // hyper has said 100 to the client when the body is first asked for, and frames the body by what it reads.
    for name in [header::EXPECT, header::CONTENT_LENGTH, header::HOST] {
        parts.headers.remove(name);
    }
    let host = match target.port {
        80 => target.host.to_string(),
        port => format!("{}:{port}", target.host),
    };
    let host = HeaderValue::from_str(&host).expect("a host that was read is plain ASCII");
    parts.headers.insert(header::HOST, host);
    parts.headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    Request::from_parts(parts, body)
}

/// Counts a request as open for as long as it is held.
struct Open(Arc<AtomicUsize>);

impl Open {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(count))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// An answer's body, and with it the connection that it comes over: that one ends when nobody reads any more.
struct Streamed {
    body: Incoming,
    _driver: AbortOnDropHandle<hyper::Result<()>>,
    _open: Open,
}

impl hyper::body::Body for Streamed {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

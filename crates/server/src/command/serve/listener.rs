//! The listeners: sockets for both address families, and the loop that serves connections.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use axum::Router;
use axum::http::{Request, Version};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt as _;

/// Connections that the kernel keeps for us while we are busy.
const BACKLOG: i32 = 1024;

/// From the first moment of a connection, or from its last answer, to the whole head of a request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(75);

/// How long a connection that was never asked anything is kept, once the process leaves.
const FIRST_REQUEST_PATIENCE: Duration = Duration::from_millis(500);

/// A pause after the system refused a connection for want of something, such as descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A listener on `host`; the unspecified IPv6 address takes IPv4 as well, and IPv4 alone where there is no IPv6.
pub(in crate::command) fn bind(host: IpAddr, port: u16) -> anyhow::Result<TcpListener> {
    let address = SocketAddr::new(host, port);
    let socket = match socket(address) {
        Err(error) if host == IpAddr::V6(Ipv6Addr::UNSPECIFIED) && is_missing_family(&error) => {
            socket(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port))
        }
        other => other,
    };
    socket
        .and_then(|socket| TcpListener::from_std(socket.into()))
        .with_context(|| format!("cannot listen on {address}: stop what uses it, or choose another port"))
}

fn socket(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket)
}

/// Whether the machine has no IPv6 at all.
fn is_missing_family(error: &io::Error) -> bool {
    let code = error.raw_os_error();
    code == Some(rustix::io::Errno::AFNOSUPPORT.raw_os_error())
        || code == Some(rustix::io::Errno::ADDRNOTAVAIL.raw_os_error())
}

/// Serves every connection until `stop`; then answers what is under way and returns.
///
/// From `draining` on, HTTP/2 connections are told to open no new request. Those of HTTP/1.1 learn it from the next
/// answer: closing an idle one could meet a request that is just on its way, which nobody may send again.
pub(in crate::command) async fn serve(
    listener: TcpListener,
    router: Router,
    draining: CancellationToken,
    stop: CancellationToken,
) {
    let connections = TaskTracker::new();
    while let Some(stream) = accept(&listener, &stop).await {
        connections.spawn(converse(stream, router.clone(), draining.clone(), stop.clone()));
    }
    for stream in pending(listener) {
        connections.spawn(converse(stream, router.clone(), draining.clone(), stop.clone()));
    }
    connections.close();
    connections.wait().await;
}

async fn accept(listener: &TcpListener, stop: &CancellationToken) -> Option<TcpStream> {
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return None,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => return Some(stream),
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                tracing::warn!(%error, "cannot accept connections");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// The connections that the kernel had made before the listener closed; it closes with the iterator.
///
/// Their requests may have been sent already, and would break off: a proxy could not tell whether they were begun.
fn pending(listener: TcpListener) -> impl Iterator<Item = TcpStream> {
    let listener = listener.into_std().ok();
    std::iter::from_fn(move || {
        loop {
            match listener.as_ref()?.accept() {
                Ok((stream, _)) => {
                    stream.set_nonblocking(true).ok()?;
                    return TcpStream::from_std(stream).ok();
                }
                Err(error) if is_of_one_connection(&error) => {}
                Err(_) => return None,
            }
        }
    })
}

/// Whether the error is the client's and the next connection is none the worse.
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

/// One connection from its first byte to its last. Its errors are the client's own and told to nobody.
async fn converse(stream: TcpStream, router: Router, draining: CancellationToken, stop: CancellationToken) {
    // Without this, small frames of a stream wait for the acknowledgement of those before.
    let _ = stream.set_nodelay(true);
    let is_http2 = Arc::new(AtomicBool::new(false));
    let asked = CancellationToken::new();
    let (noted, first) = (Arc::clone(&is_http2), asked.clone());
    let service = router.map_request(move |request: Request<Incoming>| {
        noted.store(request.version() == Version::HTTP_2, Ordering::Relaxed);
        first.cancel();
        request
    });
    let service = TowerToHyperService::new(service);
    let told = async {
        tokio::select! {
            () = stop.cancelled() => {}
            () = draining.cancelled() => {
                if !is_http2.load(Ordering::Relaxed) {
                    stop.cancelled().await;
                }
            }
        }
        // A connection that was just made has its first request on the way, and is closed unread without this.
        let _ = tokio::time::timeout(FIRST_REQUEST_PATIENCE, asked.cancelled()).await;
    };
    let mut told = std::pin::pin!(told);
    let mut first_bytes = [0; 2];
    let peeked = tokio::select! {
        biased;
        peeked = tokio::time::timeout(HEAD_TIMEOUT, stream.peek(&mut first_bytes)) => peeked,
        () = told.as_mut() => return,
    };
    let io = TokioIo::new(stream);
    match peeked {
        // Finding out the version reads the first bytes into a buffer of their own, and ends in one of twice the size
        // for the rest of the connection. The preface of HTTP/2 begins like this, and no method that is served.
        Ok(Ok(2)) if first_bytes != *b"PR" => {
            let mut builder = http1::Builder::new();
            builder.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
            see_out(builder.serve_connection(io, service), told, |connection| connection.graceful_shutdown()).await;
        }
        Ok(Ok(_)) => {
            let mut builder = Builder::new(TokioExecutor::new());
            builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
            builder.http2().timer(TokioTimer::new());
            let connection = Box::pin(builder.serve_connection(io, service));
            see_out(connection, told, |connection| connection.get_mut().as_mut().graceful_shutdown()).await;
        }
        Ok(Err(_)) | Err(_) => {}
    }
}

/// Serves a connection to its end, which comes with the next answer once it is `told`.
async fn see_out<C: Future>(connection: C, told: impl Future<Output = ()>, shut_down: impl FnOnce(Pin<&mut C>)) {
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        _ = connection.as_mut() => return,
        () = told => shut_down(connection.as_mut()),
    }
    let _ = connection.await;
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn the_unspecified_address_takes_both_families() {
        let listener = bind("::".parse().unwrap(), 0).unwrap();
        let port = listener.local_addr().unwrap().port();
        TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        if listener.local_addr().unwrap().is_ipv6() {
            TcpStream::connect(("::1", port)).await.unwrap();
        }
    }

    #[tokio::test]
    async fn what_was_sent_before_the_end_is_answered() {
        let listener = bind("127.0.0.1".parse().unwrap(), 0).unwrap();
        let address = listener.local_addr().unwrap();
        let mut clients = Vec::new();
        for _ in 0..20 {
            let mut client = TcpStream::connect(address).await.unwrap();
            client.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
            clients.push(client);
        }
        let stop = CancellationToken::new();
        stop.cancel();
        let router = Router::new().route("/", get(async || "well"));
        let serving = tokio::spawn(serve(listener, router, CancellationToken::new(), stop));
        for mut client in clients {
            let mut answer = String::new();
            client.read_to_string(&mut answer).await.expect("not broken off");
            assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        }
        serving.await.unwrap();
        assert!(TcpStream::connect(address).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn who_never_asks_anything_is_sent_away() {
        let listener = bind("127.0.0.1".parse().unwrap(), 0).unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(serve(listener, Router::new(), CancellationToken::new(), CancellationToken::new()));
        let mut client = TcpStream::connect(address).await.unwrap();
        assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn a_request_may_come_byte_by_byte() {
        let listener = bind("127.0.0.1".parse().unwrap(), 0).unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().route("/", axum::routing::put(async || "well"));
        tokio::spawn(serve(listener, router, CancellationToken::new(), CancellationToken::new()));
        let mut client = TcpStream::connect(address).await.unwrap();
        client.set_nodelay(true).unwrap();
        for byte in b"PUT / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n" {
            client.write_all(&[*byte]).await.unwrap();
            tokio::task::yield_now().await;
        }
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }

    #[tokio::test]
    async fn http_2_is_spoken_to_whoever_begins_with_it() {
        let listener = bind("127.0.0.1".parse().unwrap(), 0).unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let router = Router::new().route("/", get(async || "well"));
        tokio::spawn(serve(listener, router, CancellationToken::new(), CancellationToken::new()));
        let client = reqwest::Client::builder().http2_prior_knowledge().build().unwrap();
        let answer = client.get(url).send().await.unwrap();
        assert_eq!((answer.version(), answer.status().as_u16()), (Version::HTTP_2, 200));
    }

    #[tokio::test]
    async fn a_port_in_use_is_said_so() {
        let listener = bind("127.0.0.1".parse().unwrap(), 0).unwrap();
        let port = listener.local_addr().unwrap().port();
        let error = bind("127.0.0.1".parse().unwrap(), port).unwrap_err();
        assert!(error.to_string().starts_with(&format!("cannot listen on 127.0.0.1:{port}")), "{error}");
    }
}

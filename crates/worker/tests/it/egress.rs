//! The proxy against real servers, changing names, slow clients and hostile requests.

use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, StatusCode};
use axum::routing::{any, get, post};
use futures::StreamExt as _;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tracing::field::{Field, Visit};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};
use worker::egress::{HostPattern, Policy, Reason};

use crate::egress_rig::{NAME_WITHOUT_END, Rig, Server, within};
use crate::support::SESSION;

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

/// An application such as programs talk to; yields its port.
async fn application() -> u16 {
    let router = Router::new()
        .route("/hello", get(async |headers: HeaderMap| format!("hello, {}", headers["host"].to_str().unwrap())))
        .route("/echo", post(async |body: Body| body))
        .route("/nothing", any(async || StatusCode::NO_CONTENT))
        .route("/same", any(async || (StatusCode::NOT_MODIFIED, [("etag", "\"1\"")])))
        .route(
            "/chunks",
            get(async || {
                let chunks = ["one ", "two ", "three"].map(|chunk| Ok::<_, std::io::Error>(Bytes::from(chunk)));
                Body::from_stream(futures::stream::iter(chunks))
            }),
        );
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    port
}

/// Waits for a request, which the test sends at once.
async fn read_some(stream: &mut (impl tokio::io::AsyncRead + Unpin)) {
    assert!(stream.read(&mut [0; 4096]).await.unwrap() > 0);
}

#[tokio::test]
async fn programs_reach_servers_over_http() {
    let (rig, port) = (Rig::new(), application().await);
    let http = rig.http().build().unwrap();
    let url = |path: &str| format!("http://server.test:{port}/{path}");
    let hello = http.get(url("hello")).send().await.unwrap();
    assert_eq!(hello.text().await.unwrap(), format!("hello, server.test:{port}"));

    let chunks = http.get(url("chunks")).send().await.unwrap();
    assert_eq!(chunks.content_length(), None);
    assert_eq!(chunks.text().await.unwrap(), "one two three");

    let large: Vec<u8> = (0..3_000_000_u32).map(|n| n.to_le_bytes()[n as usize % 3]).collect();
    let echoed = http.post(url("echo")).body(large.clone()).send().await.unwrap();
    assert!(echoed.bytes().await.unwrap() == large);
    let pieces: Vec<_> = large.chunks(1000).map(|piece| Ok::<_, std::io::Error>(piece.to_vec())).collect();
    let body = reqwest::Body::wrap_stream(futures::stream::iter(pieces));
    let echoed = http.post(url("echo")).body(body).send().await.unwrap();
    assert!(echoed.bytes().await.unwrap() == large);

    let head = http.head(url("hello")).send().await.unwrap();
    let length = format!("hello, server.test:{port}").len().to_string();
    assert_eq!((head.status(), head.headers()["content-length"].to_str().unwrap()), (StatusCode::OK, length.as_str()));
    let same = http.get(url("same")).send().await.unwrap();
    assert_eq!((same.status(), same.headers()["etag"].to_str().unwrap()), (StatusCode::NOT_MODIFIED, "\"1\""));
    assert_eq!(http.get(url("nothing")).send().await.unwrap().status(), StatusCode::NO_CONTENT);
    // After answers without a body the connection still stands.
    assert_eq!(http.get(url("nothing")).send().await.unwrap().status(), StatusCode::NO_CONTENT);
    assert_eq!(rig.refused(), []);
}

#[tokio::test]
async fn programs_reach_servers_over_https_and_the_proxy_reads_none_of_it() {
    let rig = Rig::limited("secure.test");
    rig.names.answer("secure.test", &[&["127.0.0.1"]]);
    let issued = rcgen::generate_simple_self_signed(["secure.test".to_owned()]).unwrap();
    let certificate = issued.cert.der().clone();
    let key = tokio_rustls::rustls::pki_types::PrivateKeyDer::Pkcs8(issued.signing_key.serialize_der().into());
    let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
    let config = tokio_rustls::rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], key)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut stream = acceptor.accept(stream).await.unwrap();
        read_some(&mut stream).await;
        stream.write_all(OK.as_bytes()).await.unwrap();
        stream.shutdown().await.unwrap();
    });
    let root = reqwest::Certificate::from_der(&certificate).unwrap();
    let http = rig.http().tls_certs_only([root]).build().unwrap();
    let answer = http.get(format!("https://secure.test:{port}/secret")).send().await.unwrap();
    assert_eq!(answer.text().await.unwrap(), "ok");
    assert_eq!(rig.refused(), []);

    let refused = http.get("https://other.test/secret").send().await.unwrap_err();
    assert!(refused.is_connect());
    assert_eq!(rig.refused(), [("not_allowed", 1)]);
}

#[tokio::test]
async fn a_request_is_written_anew() {
    let rig = Rig::new();
    let mut server = Server::new(OK).await;
    let port = server.port;
    let answer = rig
        .say(format!(
            "GET http://Server.Test.:{port}/a?b=%20c HTTP/1.1\r\nHost: evil.test\r\nHost: two.test\r\n\
             Proxy-Authorization: Basic eDp5\r\nProxy-Connection: keep-alive\r\nConnection: X-Hop, Host\r\nX-Hop: 1\r\n\
             Upgrade: websocket\r\nX-End: kept\r\nAuthorization: Bearer own\r\n\r\n"
        ))
        .await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("\r\n\r\nok"), "{answer}");
    let request = server.request().await;
    let mut lines: Vec<_> = request.trim_end().lines().collect();
    lines[1..].sort_unstable();
    let host = format!("host: server.test:{port}");
    let expected =
        ["GET /a?b=%20c HTTP/1.1", "authorization: Bearer own", "connection: close", host.as_str(), "x-end: kept"];
    assert_eq!(lines, expected);
}

#[tokio::test]
async fn the_client_is_told_to_continue_by_the_proxy() {
    let rig = Rig::new();
    let mut server = Server::new(OK).await;
    let mut client = rig.connect().await;
    let port = server.port;
    let head = format!("POST http://server.test:{port}/ HTTP/1.1\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n");
    client.send(head).await;
    client.until("HTTP/1.1 100 Continue\r\n\r\n").await;
    client.send("abc").await;
    client.until("ok").await;
    let request = server.request().await;
    assert!(request.ends_with("\r\n\r\nabc") && !request.contains("expect"), "{request}");
    // A refusal comes without a 100, so that the body need not be sent at all.
    let head = "POST http://10.0.0.1/ HTTP/1.1\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n";
    client.send(head).await;
    assert!(client.until("\r\n").await.starts_with("HTTP/1.1 403 "));
}

#[tokio::test]
async fn the_hosts_of_an_environment_are_the_only_ones() {
    let rig = Rig::limited("server.test *.below.test");
    for name in ["a.below.test", "b.a.below.test", "below.test", "other.test"] {
        rig.names.answer(name, &[&["127.0.0.1"]]);
    }
    let server = Server::new(OK).await;
    let port = server.port;
    for (host, status) in [
        ("server.test", 200),
        ("SERVER.TEST.", 200),
        ("a.below.test", 200),
        ("b.a.below.test", 200),
        ("below.test", 403),
        ("other.test", 403),
        ("server.test.other.test", 403),
        ("127.0.0.1", 403),
        ("[::1]", 403),
    ] {
        for request in [
            format!("GET http://{host}:{port}/ HTTP/1.1\r\nHost: server.test\r\n\r\n"),
            format!("CONNECT {host}:{port} HTTP/1.1\r\nHost: server.test\r\n\r\n"),
        ] {
            let answer = rig.say(&request).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{request}{answer}");
            let said = "does not allow the host";
            assert_eq!(answer.matches(said).count(), if status == 403 { 2 } else { 0 }, "{answer}");
        }
    }
    assert_eq!(rig.refused(), [("not_allowed", 10)]);
    let asked = rig.names.asked.lock().unwrap().clone();
    assert!(!asked.iter().any(|name| name == "other.test" || name == "below.test"), "{asked:?}: nothing leaks by DNS");
}

#[tokio::test]
async fn a_network_that_is_off_is_off_for_all() {
    let everything = Policy::Limited { allowed_hosts: vec![HostPattern::new("server.test")] };
    for rig in [Rig::with(everything, |config| config.enabled = false), Rig::with(Policy::Off, |_| {})] {
        for request in ["GET http://server.test/ HTTP/1.1\r\n\r\n", "CONNECT server.test:443 HTTP/1.1\r\n\r\n"] {
            let answer = rig.say(request).await;
            assert!(answer.starts_with("HTTP/1.1 403 the operator has switched the network off"), "{answer}");
        }
        assert_eq!(rig.refused(), [("off", 2)]);
        assert!(rig.names.asked.lock().unwrap().is_empty());
    }
}

#[tokio::test]
async fn addresses_that_are_not_public_are_out_of_reach() {
    let rig = Rig::new();
    let mut server = Server::new(OK).await;
    let names = [
        ("loopback.test", "127.0.0.2"),
        ("private.test", "10.1.2.3"),
        ("metadata.test", "169.254.169.254"),
        ("metadata6.test", "fd00:ec2::254"),
        ("mapped.test", "::ffff:127.0.0.1"),
        ("nat64.test", "64:ff9b::7f00:2"),
        ("sixtofour.test", "2002:7f00:1::1"),
        ("unspecified.test", "0.0.0.0"),
        ("unspecified6.test", "::"),
        ("loopback6.test", "::1"),
    ];
    for (name, address) in names {
        rig.names.answer(name, &[&[address]]);
    }
    let literals = [
        "127.0.0.2",
        "0.0.0.0",
        "[::]",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[::127.0.0.1]",
        "10.0.0.1",
        "172.16.0.1",
        "192.168.0.1",
        "100.64.0.1",
        "169.254.169.254",
        "[fe80::1]",
        "[fd00:ec2::254]",
        "224.0.0.1",
        "255.255.255.255",
        "168.63.129.16",
    ];
    let hosts: Vec<&str> = names.iter().map(|(name, _)| *name).chain(literals).collect();
    for host in &hosts {
        let port = server.port;
        for request in
            [format!("GET http://{host}:{port}/ HTTP/1.1\r\n\r\n"), format!("CONNECT {host}:{port} HTTP/1.1\r\n\r\n")]
        {
            let answer = rig.say(&request).await;
            assert!(answer.starts_with("HTTP/1.1 403 "), "{request}{answer}");
            assert!(answer.contains("worker.network.allowed_addresses"), "{answer}");
        }
    }
    assert_eq!(rig.refused(), [("address", 2 * hosts.len() as u64)]);
    server.heard_nothing();
}

#[tokio::test]
async fn every_address_of_an_answer_is_judged() {
    let rig = Rig::new();
    let mut server = Server::new(OK).await;
    rig.names.answer("mixed.test", &[&["127.0.0.2", "10.0.0.1", "127.0.0.1", "::1"]]);
    let answer = rig.say(format!("GET http://mixed.test:{}/ HTTP/1.1\r\n\r\n", server.port)).await;
    assert!(answer.ends_with("ok"), "{answer}");
    server.request().await;
    assert_eq!(rig.refused(), []);
}

#[tokio::test]
async fn a_name_that_changes_its_answer_gains_nothing() {
    let rig = Rig::new();
    // The server listens on 127.0.0.2, which is not listed, and on the same port of 127.0.0.1, which is.
    let (good, bad) = loop {
        let good = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = good.local_addr().unwrap().port();
        if let Ok(bad) = TcpListener::bind(("127.0.0.2", port)).await {
            break (good, bad);
        }
    };
    let port = good.local_addr().unwrap().port();
    rig.names.answer("rebinding.test", &[&["127.0.0.1"], &["127.0.0.2"], &["127.0.0.1"], &["127.0.0.2"]]);
    let serve = |listener: TcpListener, name: &'static str| {
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                read_some(&mut stream).await;
                let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n{name}");
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        })
    };
    serve(good, "good");
    serve(bad, "evil");
    let get = format!("GET http://rebinding.test:{port}/ HTTP/1.1\r\n\r\n");
    let tunnelled = format!("CONNECT rebinding.test:{port} HTTP/1.1\r\n\r\nGET / HTTP/1.1\r\n\r\n");
    assert!(rig.say(&get).await.ends_with("good"));
    assert!(rig.say(&get).await.starts_with("HTTP/1.1 403 "));
    assert!(rig.say(&tunnelled).await.ends_with("good"));
    assert!(rig.say(&tunnelled).await.starts_with("HTTP/1.1 403 "));
    assert_eq!(rig.names.asked.lock().unwrap().len(), 4, "one look-up for one connection");
    assert_eq!(rig.refused(), [("address", 2)]);
}

#[tokio::test]
async fn what_is_no_request_to_a_proxy_is_refused() {
    let rig = Rig::limited("server.test");
    let mut server = Server::new(OK).await;
    let port = server.port;
    let bomb = format!("X-Bomb: {}\r\n", "b".repeat(70_000));
    let many = (0..200).map(|n| format!("X-{n}: y\r\n")).collect::<String>();
    let malformed = [
        // A program that does not know of the proxy.
        "GET / HTTP/1.1\r\nHost: server.test\r\n\r\n".to_owned(),
        "OPTIONS * HTTP/1.1\r\nHost: server.test\r\n\r\n".to_owned(),
        "GET server.test:80 HTTP/1.1\r\n\r\n".to_owned(),
        "\x16\x03\x01\x02\x00\x01\x00\x01\x7c\x03\x03\0\0\0\0\0\r\n\r\n".to_owned(),
        "SSH-2.0-OpenSSH_9.9\r\n\r\n".to_owned(),
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(),
        "\x05\x01\0\r\n\r\n".to_owned(),
        // Other schemes.
        format!("GET https://server.test:{port}/ HTTP/1.1\r\n\r\n"),
        format!("GET ftp://server.test:{port}/ HTTP/1.1\r\n\r\n"),
        "GET file:///etc/passwd HTTP/1.1\r\n\r\n".to_owned(),
        // Other spellings of a host.
        format!("GET http://server.test@127.0.0.1:{port}/ HTTP/1.1\r\n\r\n"),
        format!("GET http://user:pass@server.test:{port}/ HTTP/1.1\r\n\r\n"),
        format!("CONNECT server.test@127.0.0.1:{port} HTTP/1.1\r\n\r\n"),
        format!("CONNECT 2130706433:{port} HTTP/1.1\r\n\r\n"),
        format!("CONNECT 0177.0.0.1:{port} HTTP/1.1\r\n\r\n"),
        format!("CONNECT 0x7f.0.0.1:{port} HTTP/1.1\r\n\r\n"),
        format!("CONNECT 127.1:{port} HTTP/1.1\r\n\r\n"),
        format!("CONNECT ①②⑦.⓪.⓪.①:{port} HTTP/1.1\r\n\r\n"),
        format!("CONNECT server.test%00.evil.test:{port} HTTP/1.1\r\n\r\n"),
        format!("CONNECT server.test\0.evil.test:{port} HTTP/1.1\r\n\r\n"),
        format!("CONNECT server%2etest:{port} HTTP/1.1\r\n\r\n"),
        format!("CONNECT [fe80::1%25lo]:{port} HTTP/1.1\r\n\r\n"),
        format!("CONNECT server.test\t:{port} HTTP/1.1\r\n\r\n"),
        format!("CONNECT server.test /:{port} HTTP/1.1\r\n\r\n"),
        // Ports.
        "CONNECT server.test HTTP/1.1\r\n\r\n".to_owned(),
        "CONNECT server.test: HTTP/1.1\r\n\r\n".to_owned(),
        "CONNECT server.test:0 HTTP/1.1\r\n\r\n".to_owned(),
        "CONNECT server.test:65536 HTTP/1.1\r\n\r\n".to_owned(),
        "CONNECT server.test:+80 HTTP/1.1\r\n\r\n".to_owned(),
        // Framing.
        format!("POST http://server.test:{port}/ HTTP/1.1\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd"),
        format!("POST http://server.test:{port}/ HTTP/1.1\r\nContent-Length: 3, 4\r\n\r\nabcd"),
        format!("POST http://server.test:{port}/ HTTP/1.1\r\nContent-Length: +3\r\n\r\nabc"),
        format!("POST http://server.test:{port}/ HTTP/1.1\r\nContent-Length: -1\r\n\r\nabc"),
        format!("POST http://server.test:{port}/ HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\nabc"),
        format!("POST http://server.test:{port}/ HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
        format!("POST http://server.test:{port}/ HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        format!("CONNECT server.test:{port} HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc"),
        format!("CONNECT server.test:{port} HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        format!("GET http://server.test:{port}/ HTTP/1.1\r\nHost : x\r\n\r\n"),
        format!("GET http://server.test:{port}/ HTTP/1.1\r\nX: a\r\n folded: b\r\n\r\n"),
        format!("GET http://server.test:{port}/ HTTP/1.1\r\nX: a\0b\r\n\r\n"),
        format!("GET http://server.test:{port}/ HTTP/1.1\r\nX\r\n\r\n"),
        format!("GET http://server.test:{port}/\u{b} HTTP/1.1\r\n\r\n"),
        format!("GET http://server.test:{port}/ HTTP/1.1\r\n{bomb}\r\n"),
        format!("GET http://server.test:{port}/ HTTP/1.1\r\n{many}\r\n"),
        format!("GET http://server.test:{port}/{} HTTP/1.1\r\n\r\n", "p".repeat(70_000)),
    ];
    for request in &malformed {
        let answer = rig.say(request).await;
        let shown: String = request.chars().take(120).collect();
        let status = answer.split(' ').nth(1).unwrap_or_default();
        // hyper closes without a word on the preface of HTTP/2, which is no HTTP/1.
        let is_refusal = ["400", "414", "431"].contains(&status) || (answer.is_empty() && request.starts_with("PRI"));
        assert!(is_refusal, "{shown:?}: {answer}");
        assert_eq!(rig.refused(), [("malformed", 1)], "{shown:?}: {answer}");
    }
    server.heard_nothing();
    assert!(rig.names.asked.lock().unwrap().is_empty());
    let unaware = rig.say("GET / HTTP/1.1\r\nHost: server.test\r\n\r\n").await;
    assert!(unaware.contains("https_proxy"), "{unaware}");
}

#[tokio::test]
async fn no_second_request_hides_in_the_first() {
    let rig = Rig::limited("server.test");
    let mut server = Server::new(OK).await;
    let port = server.port;
    let hidden = "GET /hidden HTTP/1.1\r\nHost: evil.test\r\n\r\n";
    let chunked = "0\r\n\r\n";
    let both = chunked.len() + hidden.len();
    for (framing, is_kept) in [
        (format!("Content-Length: {both}\r\nTransfer-Encoding: chunked\r\n"), false),
        (format!("Transfer-Encoding: chunked\r\nContent-Length: {both}\r\n"), false),
        ("Transfer-Encoding: chunked\r\nConnection: Transfer-Encoding\r\n".to_owned(), true),
    ] {
        let request = format!("POST http://server.test:{port}/ HTTP/1.1\r\n{framing}\r\n{chunked}{hidden}");
        let mut client = rig.connect().await;
        client.send(request).await;
        assert!(client.answer().await.starts_with("HTTP/1.1 200 "), "{framing}");
        // What follows is judged as a request of its own, or not read at all where the framing is twofold.
        let next = client.answer().await;
        assert!(if is_kept { next.starts_with("HTTP/1.1 400 ") } else { next.is_empty() }, "{framing}{next}");
        assert_eq!(rig.refused().len(), usize::from(is_kept), "{framing}");
        let request = server.request().await;
        assert!(!request.contains("hidden") && !request.contains("content-length"), "{request}");
        assert!(request.ends_with("transfer-encoding: chunked\r\n\r\n0\r\n\r\n"), "{request}");
    }
    // A body that looks like a request stays a body.
    let request =
        format!("POST http://server.test:{port}/ HTTP/1.1\r\nContent-Length: {}\r\n\r\n{hidden}", hidden.len());
    rig.say(request).await;
    let request = server.request().await;
    assert!(request.contains(&format!("content-length: {}\r\n", hidden.len())), "{request}");
    server.heard_nothing();
}

#[tokio::test]
async fn each_of_many_requests_on_a_connection_is_judged() {
    let rig = Rig::limited("server.test");
    let mut server = Server::new(OK).await;
    let port = server.port;
    let good = format!("GET http://server.test:{port}/ HTTP/1.1\r\nHost: x\r\n\r\n");
    let bad = format!("GET http://evil.test:{port}/ HTTP/1.1\r\nHost: server.test\r\n\r\n");
    let mut client = rig.connect().await;
    client.send([good.as_str(), &bad, &good, &bad].concat()).await;
    for status in [200, 403, 200, 403] {
        let answer = client.answer().await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
    }
    for _ in 0..2 {
        assert!(server.request().await.contains("host: server.test"));
    }
    server.heard_nothing();
    assert_eq!(rig.refused(), [("not_allowed", 2)]);
}

#[tokio::test]
async fn what_cannot_be_reached_is_told_and_not_counted() {
    let rig = Rig::with(Policy::Unrestricted, |config| config.limits.connect_timeout = Duration::from_millis(500));
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let broken = Server::new("").await.port;
    let no_http = Server::new("SSH-2.0-OpenSSH_9.9\r\n").await.port;
    let switching =
        Server::new("HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n").await.port;
    let zipped = "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n";
    let zipped = Server::new(zipped).await.port;
    rig.names.answer("empty.test", &[&[]]);
    for (target, status, text) in [
        ("unknown.test".to_owned(), 502, "cannot be resolved"),
        ("empty.test".to_owned(), 502, "has no address"),
        (NAME_WITHOUT_END.to_owned(), 504, "could not be looked up in time"),
        (format!("server.test:{closed}"), 502, "connection refused"),
        (format!("server.test:{broken}"), 502, "broke the connection off"),
        (format!("server.test:{no_http}"), 502, "is no HTTP server"),
        (format!("server.test:{zipped}"), 502, "Transfer-Encoding"),
        (format!("server.test:{switching}"), 502, "another protocol"),
    ] {
        let answer = rig.say(format!("GET http://{target}/ HTTP/1.1\r\n\r\n")).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")) && answer.contains(text), "{target}: {answer}");
    }
    assert_eq!(rig.refused(), []);
}

#[tokio::test]
async fn a_tunnel_carries_both_directions_to_their_ends() {
    let rig = Rig::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut sent = Vec::new();
        stream.read_to_end(&mut sent).await.unwrap();
        // The other direction is still open after the client's has ended.
        sent.reverse();
        stream.write_all(&sent).await.unwrap();
    });
    let mut client = rig.connect().await;
    // The first bytes come with the request, before its answer.
    client.send(format!("CONNECT server.test:{port} HTTP/1.1\r\n\r\nfirst")).await;
    client.until("\r\n\r\n").await;
    let large: Vec<u8> = (0..2_000_000_u32).map(|n| n.to_le_bytes()[n as usize % 3]).collect();
    let (mut reader, mut writer) = client.0.into_split();
    writer.write_all(&large).await.unwrap();
    writer.shutdown().await.unwrap();
    let mut expected = [b"first", large.as_slice()].concat();
    expected.reverse();
    let mut received = Vec::new();
    within(reader.read_to_end(&mut received)).await.unwrap();
    assert!(received == expected);
    within(server).await.unwrap();
}

#[tokio::test]
async fn the_end_of_a_session_ends_its_connections() {
    let rig = Rig::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut tunnel = rig.connect().await;
    tunnel.send(format!("CONNECT server.test:{port} HTTP/1.1\r\n\r\n")).await;
    tunnel.until("\r\n\r\n").await;
    let mut request = rig.connect().await;
    request.send(format!("GET http://server.test:{port}/ HTTP/1.1\r\n\r\n")).await;
    let (mut first, _) = within(listener.accept()).await.unwrap();
    let (mut second, _) = within(listener.accept()).await.unwrap();
    second.read_u8().await.unwrap();
    let Rig { session, proxy, .. } = rig;
    drop(session);
    assert_eq!((tunnel.rest().await, request.rest().await), (String::new(), String::new()));
    let mut rest = Vec::new();
    let _ = within(first.read_to_end(&mut rest)).await;
    let _ = within(second.read_to_end(&mut rest)).await;
    // The listener goes too.
    within(async { while TcpStream::connect(proxy).await.is_ok() {} }).await;
}

#[tokio::test]
async fn connections_beyond_the_limit_are_told_so() {
    let rig = Rig::with(Policy::Unrestricted, |config| config.limits.connections_max = 2);
    let server = Server::new(OK).await;
    let get = format!("GET http://server.test:{}/ HTTP/1.1\r\n\r\n", server.port);
    let mut held = [rig.connect().await, rig.connect().await];
    for client in &mut held {
        client.send(&get).await;
        client.until("ok").await;
    }
    let refused = rig.say(&get).await;
    assert!(refused.starts_with("HTTP/1.1 429 this session has as many connections open as it may"), "{refused}");
    assert_eq!(rig.refused(), [("limit_connections", 1)]);
    drop(held);
    // A place is free again as soon as the proxy has seen the end of one.
    within(async { while !rig.say(&get).await.ends_with("ok") {} }).await;
}

#[tokio::test]
async fn bytes_are_limited_in_both_directions() {
    let limited = || Rig::with(Policy::Unrestricted, |config| config.limits.bytes_max = 100_000);
    let port = application().await;

    let rig = limited();
    let head = format!("POST http://server.test:{port}/echo HTTP/1.1\r\nContent-Length: 200000\r\n\r\n");
    let mut client = rig.connect().await;
    client.send(head).await;
    let _ = client.0.write_all(&[b'x'; 200_000]).await;
    client.rest().await;
    rig.until_refused(Reason::LimitBytes).await;
    let answer = rig.say(format!("GET http://server.test:{port}/hello HTTP/1.1\r\n\r\n")).await;
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 429 this session has moved as many bytes"), "{answer}");

    let rig = limited();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut client = rig.connect().await;
    client.send(format!("CONNECT server.test:{} HTTP/1.1\r\n\r\n", listener.local_addr().unwrap().port())).await;
    client.until("\r\n\r\n").await;
    let (mut upstream, _) = listener.accept().await.unwrap();
    let _ = upstream.write_all(&[b'x'; 200_000]).await;
    let received = client.rest().await;
    assert!(received.len() <= 100_000 + 64 * 1024, "{}", received.len());
    rig.until_refused(Reason::LimitBytes).await;
}

#[tokio::test]
async fn slow_clients_and_servers_do_not_stay() {
    let rig = Rig::with(Policy::Unrestricted, |config| config.limits.idle_timeout = Duration::from_millis(500));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();

    let mut head = rig.connect().await;
    head.send("GET http://server.te").await;
    head.rest().await;
    rig.until_refused(Reason::LimitTime).await;

    let mut tunnel = rig.connect().await;
    tunnel.send(format!("CONNECT server.test:{port} HTTP/1.1\r\n\r\n")).await;
    tunnel.until("\r\n\r\n").await;
    assert_eq!(tunnel.rest().await, "");
    rig.until_refused(Reason::LimitTime).await;

    let mut body = rig.connect().await;
    body.send(format!("POST http://server.test:{port}/ HTTP/1.1\r\nContent-Length: 10\r\n\r\nabc")).await;
    body.rest().await;

    let answer = rig.say(format!("GET http://server.test:{port}/ HTTP/1.1\r\n\r\n")).await;
    assert!(answer.starts_with("HTTP/1.1 504 server.test took the request and did not answer"), "{answer}");

    // Who only keeps a connection for later has done nothing wrong.
    rig.refused();
    assert_eq!(rig.connect().await.rest().await, "");
    let mut kept = rig.connect().await;
    let server = Server::new(OK).await;
    kept.send(format!("GET http://server.test:{}/ HTTP/1.1\r\n\r\n", server.port)).await;
    kept.until("ok").await;
    assert_eq!(kept.rest().await, "");
    assert_eq!(rig.refused(), []);
}

#[tokio::test]
async fn a_connection_does_not_last_for_ever() {
    let rig = Rig::with(Policy::Unrestricted, |config| config.limits.connection_lifetime = Duration::from_millis(1000));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut client = rig.connect().await;
    client.send(format!("CONNECT server.test:{} HTTP/1.1\r\n\r\n", listener.local_addr().unwrap().port())).await;
    client.until("\r\n\r\n").await;
    let (upstream, _) = listener.accept().await.unwrap();
    let (mut reader, mut writer) = upstream.into_split();
    let busy = tokio::spawn(async move { while writer.write_all(b"still here ").await.is_ok() {} });
    client.rest().await;
    within(busy).await.unwrap();
    let _ = reader.read_u8().await;
    rig.until_refused(Reason::LimitTime).await;
}

#[tokio::test]
async fn names_that_take_long_are_few_at_a_time() {
    let rig = Rig::with(Policy::Unrestricted, |config| config.limits.connect_timeout = Duration::from_millis(50));
    let request = format!("CONNECT {NAME_WITHOUT_END}:443 HTTP/1.1\r\n\r\n");
    let all = futures::future::join_all((0..20).map(|_| rig.say(&request))).await;
    assert!(all.iter().all(|answer| answer.starts_with("HTTP/1.1 504 ")), "{all:?}");
    assert_eq!(rig.names.asked.lock().unwrap().len(), 4);
}

/// Collects the lines that the proxy writes, as text.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<String>>>);

impl<S: tracing::Subscriber> Layer<S> for Lines {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        struct Text(String);
        impl Visit for Text {
            fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
                self.0 += &format!(" {field}={value:?}");
            }
        }
        let mut text = Text(event.metadata().level().to_string());
        event.record(&mut text);
        if event.metadata().target().starts_with("worker") {
            self.0.lock().unwrap().push(text.0);
        }
    }
}

#[tokio::test]
async fn a_refusal_is_one_line_without_secrets() {
    let lines = Lines::default();
    let _guard = tracing::subscriber::set_default(tracing_subscriber::registry().with(lines.clone()));
    let rig = Rig::limited("server.test");
    let secrets = "Authorization: Bearer secret\r\nCookie: secret\r\nContent-Length: 6\r\n\r\nsecret";
    for (request, expected) in [
        (format!("POST http://evil.test:81/secret?secret HTTP/1.1\r\n{secrets}"), "not_allowed evil.test 81"),
        (format!("POST http://secret:secret@10.0.0.1/secret HTTP/1.1\r\n{secrets}"), "malformed 10.0.0.1 0"),
        (format!("POST /secret HTTP/1.1\r\n{secrets}"), "malformed  0"),
        (format!("POST /secret HTTP/9\r\n{secrets}"), "malformed  0"),
        (
            "CONNECT evil.test:443 HTTP/1.1\r\nProxy-Authorization: secret\r\n\r\n".to_owned(),
            "not_allowed evil.test 443",
        ),
        (format!("CONNECT {}:443 HTTP/1.1\r\n\r\n", "h".repeat(5000)), &format!("malformed {} 0", "h".repeat(100))),
    ] {
        rig.say(&request).await;
        let [reason, host, port] = expected.splitn(3, ' ').collect::<Vec<_>>().try_into().unwrap();
        let expected = format!(
            "WARN message=the network refused a tool session_id={SESSION:?} reason={reason:?} host={host:?} port={port}"
        );
        let written = std::mem::take(&mut *lines.0.lock().unwrap());
        let warnings: Vec<_> = written.iter().filter(|line| !line.starts_with("DEBUG")).cloned().collect();
        assert_eq!(warnings, [expected], "{written:?}");
        assert!(!written.concat().contains("secret"), "{written:?}");
    }
}

#[tokio::test]
async fn an_answer_streams() {
    let rig = Rig::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let http = rig.http().build().unwrap();
    let answer = tokio::spawn(http.get(format!("http://server.test:{port}/")).send());
    let (mut upstream, _) = within(listener.accept()).await.unwrap();
    upstream.write_all(b"HTTP/1.1 200 OK\r\n\r\nfirst").await.unwrap();
    let mut body = within(answer).await.unwrap().unwrap().bytes_stream();
    assert_eq!(within(body.next()).await.unwrap().unwrap(), "first");
    upstream.write_all(b"second").await.unwrap();
    assert_eq!(within(body.next()).await.unwrap().unwrap(), "second");
    drop(body);
    // The client has gone, so the server's connection goes too.
    let wait = async { while upstream.write_all(&[b'x'; 4096]).await.is_ok() {} };
    within(wait).await;
}

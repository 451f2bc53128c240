//! Measures what the egress proxy costs: bytes a second through a `CONNECT` tunnel, against a direct connection to
//! the same server in the same run, in turn. Prints a line for bare TCP, where the second pass through the kernel's
//! network is all there is to measure, and one for TLS, which is what tunnels carry.
//!
//! `cargo run --release -p worker --example proxy_throughput`

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Instant;
use tokio_rustls::rustls;
use worker::NetworkConfig;
use worker::egress::{Egress, Policy};

const ROUNDS: usize = 5;
const ROUND_BYTES: u64 = 1 << 30;
/// What the endpoints read and write at once.
const CHUNK_BYTES: usize = 256 * 1024;

fn main() -> std::io::Result<()> {
    let proxy = listen()?;
    let proxy_address = proxy.local_addr()?;
    let mut config = NetworkConfig::default();
    config.allowed_addresses.push(IpAddr::from(Ipv4Addr::LOCALHOST).into());
    config.limits.bytes_max = 0;
    // As `agent-service worker` has it.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let _entered = runtime.enter();
    let _session = Egress::new(config).serve("sesn_bench", Policy::Unrestricted, proxy)?;

    let bare = listen()?;
    let bare_address = bare.local_addr()?;
    std::thread::spawn(move || bare.incoming().flatten().for_each(send));
    compare("TCP", bare_address, proxy_address, receive)?;

    let (server, client) = tls();
    let secure = listen()?;
    let secure_address = secure.local_addr()?;
    std::thread::spawn(move || {
        for stream in secure.incoming().flatten() {
            let connection = rustls::ServerConnection::new(Arc::clone(&server)).expect("the settings are whole");
            send(rustls::StreamOwned::new(connection, stream));
        }
    });
    compare("TLS", secure_address, proxy_address, |stream| {
        let name = "localhost".try_into().expect("it is a name");
        let connection = rustls::ClientConnection::new(Arc::clone(&client), name).expect("the settings are whole");
        receive(rustls::StreamOwned::new(connection, stream))
    })
}

fn compare(
    what: &str,
    server: SocketAddr,
    proxy: SocketAddr,
    receive: impl Fn(TcpStream) -> std::io::Result<f64>,
) -> std::io::Result<()> {
    let (mut direct, mut proxied) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        direct.push(receive(TcpStream::connect(server)?)?);
        proxied.push(receive(tunnel(proxy, server)?)?);
    }
    let (direct, proxied) = (median(direct), median(proxied));
    let ratio = proxied / direct;
    let mebibytes = |rate: f64| rate / f64::from(1 << 20);
    println!(
        "{what}: direct {:.0} MiB/s, through the proxy {:.0} MiB/s, ratio {ratio:.2}",
        mebibytes(direct),
        mebibytes(proxied),
    );
    Ok(())
}

fn listen() -> std::io::Result<TcpListener> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
}

fn send(mut stream: impl Write) {
    let chunk = vec![7; CHUNK_BYTES];
    // Who has enough hangs up.
    while stream.write_all(&chunk).is_ok() {}
}

/// Bytes a second.
fn receive(mut stream: impl Read) -> std::io::Result<f64> {
    let mut chunk = vec![0; CHUNK_BYTES];
    let (mut received, begin) = (0, Instant::now());
    while received < ROUND_BYTES {
        received += stream.read(&mut chunk)? as u64;
    }
    Ok(received as f64 / begin.elapsed().as_secs_f64())
}

fn tunnel(proxy: SocketAddr, server: SocketAddr) -> std::io::Result<TcpStream> {
    let mut stream = TcpStream::connect(proxy)?;
    write!(stream, "CONNECT {server} HTTP/1.1\r\n\r\n")?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    assert!(head.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&head));
    Ok(stream)
}

/// Settings of a server that calls itself `localhost`, and of a client that trusts it.
fn tls() -> (Arc<rustls::ServerConfig>, Arc<rustls::ClientConfig>) {
    let issued = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("localhost is a name");
    let certificate = issued.cert.der().clone();
    let key = rustls::pki_types::PrivateKeyDer::Pkcs8(issued.signing_key.serialize_der().into());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let server = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .expect("the provider has them")
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], key)
        .expect("the key is the certificate's");
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate).expect("it is a certificate");
    let client = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider has them")
        .with_root_certificates(roots)
        .with_no_client_auth();
    (Arc::new(server), Arc::new(client))
}

fn median(mut rates: Vec<f64>) -> f64 {
    rates.sort_by(f64::total_cmp);
    rates[rates.len() / 2]
}

//! Measures what the egress proxy costs: bytes a second through a `CONNECT` tunnel, against a direct connection to
//! the same server in the same run, in turn. Prints one line with both figures and their ratio.
//!
//! `cargo run --release -p worker --example proxy_throughput`

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Instant;
use worker::NetworkConfig;
use worker::egress::{Egress, Policy};

const ROUNDS: usize = 7;
const ROUND_BYTES: u64 = 2 << 30;
/// What the endpoints read and write at once.
const CHUNK_BYTES: usize = 256 * 1024;

fn main() -> std::io::Result<()> {
    let server = listen()?;
    let server_address = server.local_addr()?;
    std::thread::spawn(move || server.incoming().flatten().for_each(send));

    let proxy = listen()?;
    let proxy_address = proxy.local_addr()?;
    let mut config = NetworkConfig::default();
    config.allowed_addresses.push(std::net::IpAddr::from(Ipv4Addr::LOCALHOST).into());
    config.limits.bytes_max = 0;
    // As `agent-service worker` has it.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let _entered = runtime.enter();
    let _session = Egress::new(config).serve("sesn_bench", Policy::Unrestricted, proxy)?;

    let (mut direct, mut proxied) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        direct.push(receive(TcpStream::connect(server_address)?)?);
        proxied.push(receive(tunnel(proxy_address, server_address)?)?);
    }
    let (direct, proxied) = (median(direct), median(proxied));
    let mebibytes = |rate: f64| rate / f64::from(1 << 20);
    println!(
        "direct {:.0} MiB/s, through the proxy {:.0} MiB/s, ratio {:.2}",
        mebibytes(direct),
        mebibytes(proxied),
        proxied / direct
    );
    Ok(())
}

fn listen() -> std::io::Result<TcpListener> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
}

fn send(mut stream: TcpStream) {
    let chunk = vec![7; CHUNK_BYTES];
    // Who has enough hangs up.
    while stream.write_all(&chunk).is_ok() {}
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

/// Bytes a second.
fn receive(mut stream: TcpStream) -> std::io::Result<f64> {
    let mut chunk = vec![0; CHUNK_BYTES];
    let (mut received, begin) = (0, Instant::now());
    while received < ROUND_BYTES {
        received += stream.read(&mut chunk)? as u64;
    }
    Ok(received as f64 / begin.elapsed().as_secs_f64())
}

fn median(mut rates: Vec<f64>) -> f64 {
    rates.sort_by(f64::total_cmp);
    rates[rates.len() / 2]
}

//! What only a real connection shows.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::api::Api;

/// Sends `head`, then, once it has surely been answered or is being handled, `body`, and reads one answer.
async fn ask(connection: &mut TcpStream, head: &str, body: &[u8]) -> String {
    connection.write_all(head.as_bytes()).await.unwrap();
    tokio::task::yield_now().await;
    connection.write_all(body).await.unwrap();
    let mut answer = Vec::new();
    loop {
        let mut some = [0; 4096];
        let read = connection.read(&mut some).await.unwrap();
        assert_ne!(read, 0, "closed after {:?}", String::from_utf8_lossy(&answer));
        answer.extend_from_slice(&some[..read]);
        let text = String::from_utf8_lossy(&answer);
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).expect("a length");
        if body.len() >= length.parse().unwrap() {
            return text.into_owned();
        }
    }
}

#[tokio::test]
async fn a_refusal_leaves_the_connection_usable() {
    let api = Api::start_without_replica().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(axum::serve(listener, api.router()).into_future());
    let mut connection = TcpStream::connect(address).await.unwrap();
    let body = vec![b'x'; 100_000];
    for (method, path, status) in [
        ("PUT", "/v1/agents", "405"),
        ("POST", "/nowhere", "404"),
        ("POST", "/v1/agents", "401"),
        ("POST", "/v1/files", "401"),
    ] {
        for _ in 0..20 {
            let head = format!("{method} {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", body.len());
            let answer = ask(&mut connection, &head, &body).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{answer}");
        }
    }
    let alive = ask(&mut connection, "GET /health HTTP/1.1\r\nhost: x\r\n\r\n", b"").await;
    assert!(alive.starts_with("HTTP/1.1 200"), "{alive}");
    server.abort();
}

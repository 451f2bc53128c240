//! The connections of clients that measure, with as little work for each request as a client can do.

use std::net::SocketAddr;

use anyhow::{Context as _, bail};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::subject::KEY;

/// A connection that is kept for one request after another.
pub(super) struct Connection {
    stream: TcpStream,
}

impl Connection {
    pub(super) async fn open(address: SocketAddr) -> anyhow::Result<Self> {
        Ok(Self { stream: connect(address).await? })
    }

    /// Sends a message to a session, and does not wait for the answer.
    pub(super) async fn send_message(&mut self, session: &str, text: &str) -> anyhow::Result<()> {
        let text = serde_json::Value::from(text);
        let body = format!(r#"{{"events":[{{"type":"user.message","content":[{{"type":"text","text":{text}}}]}}]}}"#);
        let request = format!(
            "POST /v1/sessions/{session}/events HTTP/1.1\r\nhost: bench\r\nx-api-key: {KEY}\r\n\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        Ok(self.stream.write_all(request.as_bytes()).await?)
    }

    /// `GET`s a path; the body of the answer.
    pub(super) async fn get(&mut self, path: &str) -> anyhow::Result<Vec<u8>> {
        let request = format!("GET {path} HTTP/1.1\r\nhost: bench\r\nx-api-key: {KEY}\r\n\r\n");
        self.stream.write_all(request.as_bytes()).await?;
        self.answer().await
    }

    /// Reads the next answer; its body.
    pub(super) async fn answer(&mut self) -> anyhow::Result<Vec<u8>> {
        let mut answer = Vec::with_capacity(1024);
        let head_end = loop {
            if let Some(end) = find(&answer, b"\r\n\r\n") {
                break end;
            }
            self.read(&mut answer).await?;
        };
        let head = std::str::from_utf8(&answer[..head_end])?.to_ascii_lowercase();
        anyhow::ensure!(head.starts_with("http/1.1 200"), "a request was refused: {head}");
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        let length: usize = length.context("an answer without length")?.trim().parse()?;
        let whole = head_end + 4 + length;
        answer.reserve(whole.saturating_sub(answer.len()));
        while answer.len() < whole {
            self.read(&mut answer).await?;
        }
        answer.drain(..head_end + 4);
        Ok(answer)
    }

    async fn read(&mut self, answer: &mut Vec<u8>) -> anyhow::Result<()> {
        if self.stream.read_buf(answer).await? == 0 {
            bail!("the connection ended before the answer");
        }
        Ok(())
    }
}

/// A session that is followed. It looks at nothing but the names of events.
pub(super) struct Follower {
    stream: TcpStream,
    /// What was read of the stream and not looked at yet.
    unread: Vec<u8>,
    /// Events seen so far, previews apart.
    pub(super) events: usize,
}

/// What a look at a stream found.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Look {
    pub(super) tokens: usize,
    pub(super) is_idle: bool,
}

impl Follower {
    /// Returns when the session is followed.
    pub(super) async fn open(address: SocketAddr, session: &str) -> anyhow::Result<Self> {
        let mut stream = connect(address).await?;
        let follow = format!(
            "GET /v1/sessions/{session}/events/stream?event_deltas[]=agent.message HTTP/1.1\r\n\
             host: bench\r\nx-api-key: {KEY}\r\n\r\n"
        );
        stream.write_all(follow.as_bytes()).await?;
        let mut unread = Vec::with_capacity(1024);
        // The server greets every stream once it is subscribed.
        while find(&unread, b": connected\n\n").is_none() {
            if stream.read_buf(&mut unread).await? == 0 {
                bail!("the stream was refused: {}", String::from_utf8_lossy(&unread));
            }
        }
        unread.clear();
        Ok(Self { stream, unread, events: 0 })
    }

    /// Waits for more and looks at it.
    pub(super) async fn look(&mut self) -> anyhow::Result<Look> {
        if self.stream.read_buf(&mut self.unread).await? == 0 {
            bail!("the stream ended in mid-turn");
        }
        let (mut look, mut start) = (Look::default(), 0);
        while let Some(length) = self.unread[start..].iter().position(|byte| *byte == b'\n') {
            let line = &self.unread[start..start + length];
            start += length + 1;
            match line.strip_prefix(b"event: ") {
                Some(b"event_delta") => look.tokens += 1,
                Some(b"event_start" | b"ping") | None => {}
                Some(name) => {
                    self.events += 1;
                    look.is_idle |= name == b"session.status_idle";
                }
            }
        }
        self.unread.drain(..start);
        Ok(look)
    }
}

async fn connect(address: SocketAddr) -> anyhow::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

//! The clients that drive a child: as little work for each turn as a client can do, because they share the cores.
//!
//! A client has a session and two connections: one posts messages, the other follows the session. It looks at nothing
//! but the names of events.

use std::net::SocketAddr;
use std::time::Instant;

use anyhow::{Context as _, bail};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// What clients saw.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Totals {
    pub(super) turns: usize,
    pub(super) tokens: usize,
}

/// One session's client.
pub(super) struct Client {
    post: TcpStream,
    stream: TcpStream,
    /// The head of every request that posts, up to the length of its body.
    post_head: String,
    /// What was read of the stream and not looked at yet.
    unread: Vec<u8>,
    /// Events seen so far, previews apart.
    pub(super) events: usize,
}

/// Takes turns on all clients, each as fast as it can, until `deadline`; each takes one at least.
pub(super) async fn turns(clients: &mut [Client], text: &str, deadline: Instant) -> anyhow::Result<Totals> {
    let running = clients.iter_mut().map(|client| async move {
        let mut totals = Totals::default();
        loop {
            totals.tokens += client.turn(text).await?;
            totals.turns += 1;
            if Instant::now() >= deadline {
                return anyhow::Ok(totals);
            }
        }
    });
    let mut sum = Totals::default();
    for totals in futures::future::try_join_all(running).await? {
        sum.turns += totals.turns;
        sum.tokens += totals.tokens;
    }
    Ok(sum)
}

impl Client {
    /// Connects, and returns when the session is followed.
    pub(super) async fn open(address: SocketAddr, session: &str, key: &str) -> anyhow::Result<Self> {
        let mut stream = connect(address).await?;
        let path = format!("/v1/sessions/{session}/events");
        let follow = format!(
            "GET {path}/stream?event_deltas[]=agent.message HTTP/1.1\r\nhost: bench\r\nx-api-key: {key}\r\n\r\n"
        );
        stream.write_all(follow.as_bytes()).await?;
        let mut unread = Vec::with_capacity(4096);
        // The server greets every stream once it is subscribed.
        while find(&unread, b": connected\n\n").is_none() {
            if stream.read_buf(&mut unread).await? == 0 {
                bail!("the stream was refused: {}", String::from_utf8_lossy(&unread));
            }
        }
        unread.clear();
        let post_head = format!(
            "POST {path} HTTP/1.1\r\nhost: bench\r\nx-api-key: {key}\r\ncontent-type: application/json\r\ncontent-length: "
        );
        Ok(Self { post: connect(address).await?, stream, post_head, unread, events: 0 })
    }

    /// Posts a message and follows the session until it is idle. Returns the tokens that were previewed.
    pub(super) async fn turn(&mut self, text: &str) -> anyhow::Result<usize> {
        let text = serde_json::Value::from(text);
        let body = format!(r#"{{"events":[{{"type":"user.message","content":[{{"type":"text","text":{text}}}]}}]}}"#);
        let request = format!("{}{}\r\n\r\n{body}", self.post_head, body.len());
        self.post.write_all(request.as_bytes()).await?;
        let mut tokens = 0;
        loop {
            let (seen, is_idle) = self.look();
            tokens += seen;
            if is_idle {
                break;
            }
            if self.stream.read_buf(&mut self.unread).await? == 0 {
                bail!("the stream ended in mid-turn");
            }
        }
        self.read_answer().await?;
        Ok(tokens)
    }

    /// Looks at the whole lines that were read: tokens among them, and whether the session became idle.
    fn look(&mut self) -> (usize, bool) {
        let (mut tokens, mut is_idle, mut start) = (0, false, 0);
        while let Some(length) = self.unread[start..].iter().position(|byte| *byte == b'\n') {
            let line = &self.unread[start..start + length];
            start += length + 1;
            match line.strip_prefix(b"event: ") {
                Some(b"event_delta") => tokens += 1,
                Some(b"event_start" | b"ping") | None => {}
                Some(name) => {
                    self.events += 1;
                    is_idle |= name == b"session.status_idle";
                }
            }
        }
        self.unread.drain(..start);
        (tokens, is_idle)
    }

    /// Reads the answer to the post, which is there by the time the turn is over.
    async fn read_answer(&mut self) -> anyhow::Result<()> {
        let mut answer = Vec::with_capacity(1024);
        loop {
            if let Some(end) = find(&answer, b"\r\n\r\n") {
                let head = std::str::from_utf8(&answer[..end])?.to_ascii_lowercase();
                anyhow::ensure!(head.starts_with("http/1.1 200"), "a message was refused: {head}");
                let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
                let length: usize = length.context("an answer without length")?.trim().parse()?;
                if answer.len() >= end + 4 + length {
                    return Ok(());
                }
            }
            if self.post.read_buf(&mut answer).await? == 0 {
                bail!("the connection ended before the answer");
            }
        }
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

//! Reads the events of a stream, one after the other.

use anyhow::Context as _;
use serde_json::Value;

/// A stream of events that is being read.
pub(in crate::command) struct Events {
    response: reqwest::Response,
    buffer: Buffer,
}

impl Events {
    pub(super) fn new(response: reqwest::Response) -> Self {
        Self { response, buffer: Buffer::default() }
    }

    /// The next event; `None` at the end of the stream.
    pub(in crate::command) async fn next(&mut self) -> anyhow::Result<Option<Value>> {
        loop {
            if let Some(event) = self.buffer.next() {
                return serde_json::from_str(&event).map(Some).context("the server sent an event that is not JSON");
            }
            match self.response.chunk().await.context("the stream broke")? {
                Some(chunk) => self.buffer.push(&chunk),
                None => return Ok(None),
            }
        }
    }
}

/// Bytes of a stream until they make whole events.
#[derive(Default)]
struct Buffer {
    bytes: Vec<u8>,
    data: Vec<u8>,
}

impl Buffer {
    fn push(&mut self, chunk: &[u8]) {
        self.bytes.extend_from_slice(chunk);
    }

    /// The data of the next whole event that has any.
    fn next(&mut self) -> Option<String> {
        while let Some(end) = self.bytes.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.bytes.drain(..=end).collect();
            let line = line.strip_suffix(b"\n").unwrap_or(&line);
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            if let Some(data) = line.strip_prefix(b"data:") {
                self.data.extend_from_slice(data.strip_prefix(b" ").unwrap_or(data));
            } else if line.is_empty() && !self.data.is_empty() {
                return Some(String::from_utf8_lossy(&std::mem::take(&mut self.data)).into_owned());
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_cut_wherever_the_bytes_are() {
        let stream = b": connected\n\nevent: ping\ndata: {\"a\":1}\n\nretry: 500\n\ndata:{\"b\":2}\r\n\r\n";
        for size in 1..stream.len() {
            let mut buffer = Buffer::default();
            let mut events = Vec::new();
            for chunk in stream.chunks(size) {
                buffer.push(chunk);
                events.extend(std::iter::from_fn(|| buffer.next()));
            }
            assert_eq!(events, ["{\"a\":1}", "{\"b\":2}"], "in chunks of {size}");
        }
    }
}

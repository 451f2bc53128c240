//! What the worker and a sandbox process say to each other: JSON in frames of a 4-byte big-endian length.
//!
//! The same frames run between the worker and the supervisor, and between the supervisor and its file helper.
//! The worker's first frame holds the [`Settings`]. Each [`Request::Call`] is answered by exactly one [`Reply::Done`] or [`Reply::Killed`].
//! How the processes are confined is in [`super::confine`].

use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::PathBuf;

use super::config::{Confinement, Limits};

/// No frame is longer: a 32 MiB `write` escaped as JSON, or a 20 MiB PDF in base64, fits.
pub(crate) const FRAME_BYTES_MAX: usize = 128 * 1024 * 1024;

/// What a sandbox process needs to know, and the first that it is told. It holds nothing secret.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Settings {
    /// The session's workspace: the only place that tools can write.
    pub workspace: PathBuf,
    /// The files that the session was given, outside of the workspace: tools can read them.
    pub uploads: PathBuf,
    pub confinement: Confinement,
    /// Read-only paths that the operator adds to the built-in list of system paths.
    pub readable_paths: Vec<PathBuf>,
    /// Port of the session's way out on the host's loopback interface; none where the session has a network of its
    /// own and makes it there.
    pub proxy_port: Option<u16>,
    pub limits: Limits,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub(crate) enum Request {
    Call {
        call: u64,
        tool: String,
        input: Value,
    },
    /// Kill the running call with every process it started.
    Cancel {
        call: u64,
    },
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub(crate) enum Reply {
    /// The process is confined and takes calls.
    Ready {
        landlock_abi: Option<u32>,
    },
    /// The process could not be confined, or its helper could not start; it exits.
    Failed {
        message: String,
    },
    Done {
        call: u64,
        outcome: ToolOutcome,
    },
    Killed {
        call: u64,
    },
}

/// What a tool call came to: what `user.tool_result` will carry.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ToolOutcome {
    /// Content blocks of the API: `text`, `image` or `document`.
    pub content: Vec<Value>,
    pub is_error: bool,
}

impl ToolOutcome {
    pub fn text(text: impl Into<String>) -> Self {
        Self::blocks(text.into(), false)
    }

    /// An error for the model to read: plain text, prefixed with the tool's name by whoever makes it.
    pub fn error(text: impl Into<String>) -> Self {
        Self::blocks(text.into(), true)
    }

    fn blocks(text: String, is_error: bool) -> Self {
        Self { content: vec![serde_json::json!({"type": "text", "text": text})], is_error }
    }

    /// The text of a one-block text outcome, which all but images and PDFs are.
    pub fn as_text(&self) -> Option<&str> {
        match self.content.as_slice() {
            [block] => block.get("text").and_then(Value::as_str),
            _ => None,
        }
    }
}

/// One message as the bytes of its frame.
pub(crate) fn encode<T: Serialize>(message: &T) -> Vec<u8> {
    let mut frame = vec![0; 4];
    serde_json::to_writer(&mut frame, message).expect("messages of the protocol are plain data");
    let length = u32::try_from(frame.len() - 4).expect("a message is shorter than 4 GiB");
    frame[..4].copy_from_slice(&length.to_be_bytes());
    frame
}

/// A frame announced more bytes than any message has.
#[derive(Debug, thiserror::Error)]
#[error("a frame of {0} bytes is longer than any message")]
pub(crate) struct FrameTooLong(usize);

/// Cuts a stream of bytes, in pieces of any size, back into frames.
#[derive(Debug, Default)]
pub(crate) struct FrameReader {
    buffer: Vec<u8>,
}

impl FrameReader {
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The body of the next whole frame.
    pub(crate) fn next_frame(&mut self) -> Result<Option<Vec<u8>>, FrameTooLong> {
        let Some((head, body)) = self.buffer.split_first_chunk::<4>() else {
            return Ok(None);
        };
        let length = u32::from_be_bytes(*head) as usize;
        if length > FRAME_BYTES_MAX {
            return Err(FrameTooLong(length));
        }
        if body.len() < length {
            return Ok(None);
        }
        let rest = self.buffer.split_off(4 + length);
        let mut frame = std::mem::replace(&mut self.buffer, rest);
        frame.drain(..4);
        Ok(Some(frame))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_survive_any_split() {
        let bytes = [encode(&Request::Cancel { call: 1 }), encode(&Request::Cancel { call: 2 })].concat();
        for split in 0..=bytes.len() {
            let mut reader = FrameReader::default();
            let mut calls = Vec::new();
            for part in [&bytes[..split], &bytes[split..]] {
                reader.push(part);
                while let Some(frame) = reader.next_frame().unwrap() {
                    match serde_json::from_slice(&frame).unwrap() {
                        Request::Cancel { call } => calls.push(call),
                        other => panic!("unexpected {other:?}"),
                    }
                }
            }
            assert_eq!(calls, [1, 2], "split at {split}");
        }
    }

    #[test]
    fn an_absurd_length_is_refused() {
        let mut reader = FrameReader::default();
        reader.push(&u32::MAX.to_be_bytes());
        assert!(reader.next_frame().is_err());
    }
}

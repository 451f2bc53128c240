//! An incremental reader of server-sent events: bytes in, whole events out.
//!
//! Pure: the connection is [`super::feed`]'s. `id` and `retry` fields are skipped, because the worker lists what it
//! missed instead of asking for a replay.

/// No event is longer; a server that sends more is not understood.
const EVENT_BYTES_MAX: usize = 128 * 1024 * 1024;

/// One event with data.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Message {
    /// The `event` field; empty if there was none.
    pub name: String,
    /// The `data` lines, joined by newlines.
    pub data: String,
}

/// An event grew beyond any that the server sends.
#[derive(Debug, thiserror::Error)]
#[error("an event of more than {EVENT_BYTES_MAX} bytes")]
pub(crate) struct EventTooLong;

#[derive(Debug, Default)]
pub(crate) struct Reader {
    buffer: Vec<u8>,
    /// How much of the buffer is known to hold no line end.
    scanned: usize,
    current: Message,
    has_data: bool,
    /// The last line ended with CR: a LF that comes next belongs to it.
    after_carriage_return: bool,
}

impl Reader {
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole event, if its end is in.
    pub(crate) fn next_message(&mut self) -> Result<Option<Message>, EventTooLong> {
        let mut start = 0;
        let mut finished = None;
        while finished.is_none() {
            if self.after_carriage_return && start < self.buffer.len() {
                start += usize::from(self.buffer[start] == b'\n');
                self.after_carriage_return = false;
            }
            let from = start.max(self.scanned);
            let Some(length) = self.buffer[from..].iter().position(|byte| matches!(byte, b'\n' | b'\r')) else {
                break;
            };
            let end = from + length;
            let line = String::from_utf8_lossy(&self.buffer[start..end]).into_owned();
            self.after_carriage_return = self.buffer[end] == b'\r';
            start = end + 1;
            finished = self.line(&line);
        }
        self.buffer.drain(..start);
        self.scanned = if finished.is_some() { 0 } else { self.buffer.len() };
        if self.buffer.len() + self.current.data.len() > EVENT_BYTES_MAX {
            return Err(EventTooLong);
        }
        Ok(finished)
    }

    fn line(&mut self, line: &str) -> Option<Message> {
        if line.is_empty() {
            let message = std::mem::take(&mut self.current);
            // An event without data, such as a lone comment, is none.
            return std::mem::take(&mut self.has_data).then_some(message);
        }
        let line = line.strip_prefix('\u{feff}').unwrap_or(line);
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => value.clone_into(&mut self.current.name),
            "data" => {
                if self.has_data {
                    self.current.data.push('\n');
                }
                self.current.data.push_str(value);
                self.has_data = true;
            }
            _ => {}
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(parts: &[&[u8]]) -> Vec<(String, String)> {
        let mut reader = Reader::default();
        let mut messages = Vec::new();
        for part in parts {
            reader.push(part);
            while let Some(message) = reader.next_message().unwrap() {
                messages.push((message.name, message.data));
            }
        }
        messages
    }

    #[test]
    fn events_are_the_same_however_they_are_cut() {
        let text = "\u{feff}: hello\n\nevent: a\ndata: {\"x\": \"é\"}\n\nevent:b\r\ndata: 1\r\ndata:  2\r\ndata\r\n\r\n\
                    : ping\rdata: c\rid: 7\rretry: 1\r\rdata: d\n\n";
        let expected = [("a", "{\"x\": \"é\"}"), ("b", "1\n 2\n"), ("", "c"), ("", "d")]
            .map(|(name, data)| (name.to_owned(), data.to_owned()));
        let bytes = text.as_bytes();
        assert_eq!(read(&[bytes]), expected);
        let single: Vec<&[u8]> = bytes.chunks(1).collect();
        assert_eq!(read(&single), expected);
        for first in 0..bytes.len() {
            for second in first..bytes.len() {
                let parts = [&bytes[..first], &bytes[first..second], &bytes[second..]];
                assert_eq!(read(&parts), expected, "cut at {first} and {second}");
            }
        }
    }

    #[test]
    fn an_unfinished_event_is_not_delivered() {
        assert_eq!(read(&[b"event: a\ndata: 1\n"]), []);
        assert_eq!(read(&[b"event: a\n\n"]), []);
    }
}

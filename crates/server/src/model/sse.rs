//! Server-sent events, cut out of bytes that arrive in any pieces.
//!
//! Only what model providers use: the `event` and `data` fields. Lines may end in LF, CR LF or CR.

/// The longest event that is read, in bytes; no provider comes near it.
pub(super) const EVENT_BYTES_MAX: usize = 16 << 20;

/// One event. Comments and events without data are not reported.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct SseEvent {
    /// The `event` field, empty when absent.
    pub(super) name: String,
    /// The `data` lines, joined by line feeds.
    pub(super) data: String,
}

/// What arrived cannot be an event stream.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum SseError {
    #[error("an event is longer than {EVENT_BYTES_MAX} bytes")]
    TooLong,
    #[error("an event is not valid UTF-8")]
    NotUtf8,
}

/// Takes bytes, gives events.
#[derive(Debug, Default)]
pub(super) struct SseDecoder {
    buffer: Vec<u8>,
    /// Bytes of `buffer` that were looked at and belong to earlier lines.
    consumed: usize,
    /// Where to go on looking for a line end.
    scanned: usize,
    name: String,
    data: String,
    has_data: bool,
}

impl SseDecoder {
    /// Adds bytes as they came.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.consumed);
        self.scanned -= self.consumed;
        self.consumed = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// The next complete event among the bytes so far.
    pub(super) fn next(&mut self) -> Result<Option<SseEvent>, SseError> {
        while let Some((start, end)) = self.next_line(false) {
            if let Some(event) = self.line(start, end)? {
                return Ok(Some(event));
            }
        }
        if self.buffer.len() - self.consumed + self.data.len() > EVENT_BYTES_MAX {
            return Err(SseError::TooLong);
        }
        Ok(None)
    }

    /// The event that the stream's end completes: some servers forget the last blank line.
    pub(super) fn finish(&mut self) -> Result<Option<SseEvent>, SseError> {
        if let Some(event) = self.next()? {
            return Ok(Some(event));
        }
        if let Some((start, end)) = self.next_line(true)
            && let Some(event) = self.line(start, end)?
        {
            return Ok(Some(event));
        }
        Ok(self.dispatch())
    }

    /// The bounds of the next line without its end. A CR that is the last byte waits for a possible LF, unless
    /// `at_end`, where the rest is a line as well.
    fn next_line(&mut self, at_end: bool) -> Option<(usize, usize)> {
        let found = self.buffer[self.scanned..].iter().position(|byte| matches!(byte, b'\n' | b'\r'));
        let start = self.consumed;
        let Some(offset) = found else {
            self.scanned = self.buffer.len();
            if at_end && start < self.buffer.len() {
                self.consumed = self.buffer.len();
                return Some((start, self.buffer.len()));
            }
            return None;
        };
        let end = self.scanned + offset;
        let width = match (self.buffer[end], self.buffer.get(end + 1)) {
            (b'\r', Some(b'\n')) => 2,
            (b'\r', None) if !at_end => {
                self.scanned = end;
                return None;
            }
            _ => 1,
        };
        self.consumed = end + width;
        self.scanned = self.consumed;
        Some((start, end))
    }

    /// Takes one line in; a blank one completes an event.
    fn line(&mut self, start: usize, end: usize) -> Result<Option<SseEvent>, SseError> {
        let line = std::str::from_utf8(&self.buffer[start..end]).map_err(|_| SseError::NotUtf8)?;
        if line.is_empty() {
            return Ok(self.dispatch());
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field.trim_start_matches('\u{feff}') {
            "event" => value.clone_into(&mut self.name),
            "data" => {
                if self.has_data {
                    self.data.push('\n');
                }
                self.data.push_str(value);
                self.has_data = true;
            }
            _ => {}
        }
        Ok(None)
    }

    fn dispatch(&mut self) -> Option<SseEvent> {
        let name = std::mem::take(&mut self.name);
        let data = std::mem::take(&mut self.data);
        std::mem::take(&mut self.has_data).then_some(SseEvent { name, data })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(pieces: &[&[u8]]) -> Vec<(String, String)> {
        let mut decoder = SseDecoder::default();
        let mut events = Vec::new();
        for piece in pieces {
            decoder.push(piece);
            while let Some(event) = decoder.next().unwrap() {
                events.push((event.name, event.data));
            }
        }
        while let Some(event) = decoder.finish().unwrap() {
            events.push((event.name, event.data));
        }
        events
    }

    fn event(name: &str, data: &str) -> (String, String) {
        (name.to_owned(), data.to_owned())
    }

    #[test]
    fn any_cut_of_the_bytes_gives_the_same_events() {
        let wire = "event: a\r\ndata: {\"t\":\"gr\u{fc}\u{df}e \u{1f980}\"}\r\n\r\n: ping\n\ndata:one\ndata: two\n\nevent: b\rdata: x\r\r";
        let expected = [event("a", "{\"t\":\"gr\u{fc}\u{df}e \u{1f980}\"}"), event("", "one\ntwo"), event("b", "x")];
        for cut in 0..wire.len() {
            let (head, tail) = wire.as_bytes().split_at(cut);
            assert_eq!(decode(&[head, tail]), expected, "cut at {cut}");
        }
        let single: Vec<&[u8]> = wire.as_bytes().chunks(1).collect();
        assert_eq!(decode(&single), expected);
    }

    #[test]
    fn a_missing_last_blank_line_loses_nothing() {
        assert_eq!(decode(&[b"data: one\n\ndata: [DONE]"]), [event("", "one"), event("", "[DONE]")]);
    }

    #[test]
    fn an_event_without_data_is_none() {
        assert_eq!(decode(&[b"event: ping\n\nid: 3\nretry: 5\ndata\n\n"]), [event("", "")]);
    }

    #[test]
    fn what_is_not_an_event_stream_is_refused() {
        let mut decoder = SseDecoder::default();
        decoder.push(b"data: \xff\n\n");
        assert_eq!(decoder.next(), Err(SseError::NotUtf8));
        let mut decoder = SseDecoder::default();
        decoder.push(&vec![b'x'; EVENT_BYTES_MAX + 1]);
        assert_eq!(decoder.next(), Err(SseError::TooLong));
    }
}

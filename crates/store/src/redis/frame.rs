//! Frames as they travel: which channel a topic has, and what is in a message.
//!
//! A message is a version, the process that rang, and the frame as JSON. Records travel with the frame that tells of
//! them while they are small, so that the stream of another replica needs no read of the log. A message that cannot
//! be read, from a newer release for one, means to its listeners that something was lost.

use std::borrow::Cow;
use std::sync::Arc;

use engine::port::{Frame, Preview, PreviewDelta, StoredRecord, Topic};
use serde::{Deserialize, Serialize};
use session::event::FORMAT_VERSION;
use session::id::{EventId, SessionId};
use session::{Event, Record, Timestamp};

/// The version of the messages that this build writes and reads.
const VERSION: u8 = 1;

/// The largest message that carries records, in bytes. Others say only where the log now ends.
pub(super) const RECORDS_BYTES_MAX: usize = 16 * 1024;

/// Where a process's mark stands in a message, behind the version.
const ORIGIN: std::ops::Range<usize> = 1..17;

/// Tells one start of a process from every other, so that it can skip what it rang itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Origin(pub(super) u128);

/// What travels.
#[derive(Clone, Debug)]
pub(super) enum Message {
    Frame(Frame),
    /// The sender dropped frames of any topic.
    Lost,
}

/// What a message says to the process that got it.
#[derive(Debug)]
pub(super) enum Read {
    Message(Message),
    /// It rang this itself.
    Own,
    /// Another version wrote it.
    Unreadable,
}

/// The names of the channels.
#[derive(Clone, Debug)]
pub(super) struct Channels {
    prefix: String,
}

#[derive(Serialize, Deserialize)]
enum Body<'a> {
    Appended { session_id: Cow<'a, SessionId>, position: u64, format: u16, records: Option<Vec<RecordBody<'a>>> },
    Preview(PreviewBody<'a>),
    Claimable,
    WorkQueued,
    Lost,
}

#[derive(Serialize, Deserialize)]
struct RecordBody<'a> {
    position: u64,
    at: i64,
    event: Cow<'a, Event>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    received: Option<Cow<'a, Event>>,
}

#[derive(Serialize, Deserialize)]
struct PreviewBody<'a> {
    session_id: Cow<'a, SessionId>,
    epoch: u64,
    event_id: Cow<'a, EventId>,
    span_position: u64,
    sequence: u64,
    delta: DeltaBody<'a>,
}

#[derive(Serialize, Deserialize)]
enum DeltaBody<'a> {
    MessageStart,
    Text { index: usize, text: Cow<'a, str> },
    ThinkingStart,
}

impl Channels {
    pub(super) fn new(key_prefix: &str) -> Self {
        Self { prefix: format!("{key_prefix}:bell:") }
    }

    /// Where the frames of a topic are told.
    pub(super) fn of(&self, topic: &Topic) -> String {
        let prefix = &self.prefix;
        match topic {
            Topic::Session(id) => format!("{prefix}session:{id}"),
            Topic::Claimable => format!("{prefix}claimable"),
            Topic::Work => format!("{prefix}work"),
        }
    }

    /// Where it is told that frames were lost.
    pub(super) fn lost(&self) -> String {
        format!("{}lost", self.prefix)
    }

    /// Where a message is told.
    pub(super) fn of_message(&self, message: &Message) -> String {
        match message {
            Message::Frame(Frame::Appended { session_id, .. }) => self.of(&Topic::Session(session_id.clone())),
            Message::Frame(Frame::Preview(preview)) => self.of(&Topic::Session(preview.session_id.clone())),
            Message::Frame(Frame::Claimable) => self.of(&Topic::Claimable),
            Message::Frame(Frame::WorkQueued) => self.of(&Topic::Work),
            Message::Lost => self.lost(),
        }
    }

    /// The topic of a channel; `None` for every topic at once.
    pub(super) fn topic(&self, channel: &str) -> Option<Topic> {
        match channel.strip_prefix(&self.prefix)? {
            "claimable" => Some(Topic::Claimable),
            "work" => Some(Topic::Work),
            name => name.strip_prefix("session:").map(|id| Topic::Session(id.into())),
        }
    }
}

/// The message as bytes.
pub(super) fn write(origin: Origin, message: &Message) -> Vec<u8> {
    let bytes = write_body(origin, &Body::of(message));
    match message {
        Message::Frame(Frame::Appended { session_id, position, records: Some(_) })
            if bytes.len() > RECORDS_BYTES_MAX =>
        {
            let bare = Frame::Appended { session_id: session_id.clone(), position: *position, records: None };
            write_body(origin, &Body::of(&Message::Frame(bare)))
        }
        _ => bytes,
    }
}

fn write_body(origin: Origin, body: &Body<'_>) -> Vec<u8> {
    let mut bytes = vec![VERSION];
    bytes.extend(origin.0.to_be_bytes());
    serde_json::to_writer(&mut bytes, body).expect("frames are plain data");
    bytes
}

/// What the bytes say.
pub(super) fn read(own: Origin, bytes: &[u8]) -> Read {
    if bytes.get(ORIGIN) == Some(own.0.to_be_bytes().as_slice()) {
        return Read::Own;
    }
    let body = match bytes.first() {
        Some(&VERSION) => bytes.get(ORIGIN.end..).and_then(|json| serde_json::from_slice::<Body<'_>>(json).ok()),
        _ => None,
    };
    body.map_or(Read::Unreadable, |body| Read::Message(body.into_message()))
}

impl<'a> Body<'a> {
    fn of(message: &'a Message) -> Self {
        match message {
            Message::Lost => Self::Lost,
            Message::Frame(Frame::Claimable) => Self::Claimable,
            Message::Frame(Frame::WorkQueued) => Self::WorkQueued,
            Message::Frame(Frame::Preview(preview)) => Self::Preview(PreviewBody::of(preview)),
            Message::Frame(Frame::Appended { session_id, position, records }) => Self::Appended {
                session_id: Cow::Borrowed(session_id),
                position: *position,
                format: FORMAT_VERSION,
                records: records.as_ref().map(|records| records.iter().map(RecordBody::of).collect()),
            },
        }
    }

    fn into_message(self) -> Message {
        Message::Frame(match self {
            Self::Lost => return Message::Lost,
            Self::Claimable => Frame::Claimable,
            Self::WorkQueued => Frame::WorkQueued,
            Self::Preview(preview) => Frame::Preview(Arc::new(preview.into_preview())),
            Self::Appended { session_id, position, format, records } => Frame::Appended {
                session_id: session_id.into_owned(),
                position,
                records: records
                    .filter(|_| format == FORMAT_VERSION)
                    .map(|records| records.into_iter().map(RecordBody::into_stored).collect()),
            },
        })
    }
}

impl<'a> RecordBody<'a> {
    fn of(stored: &'a StoredRecord) -> Self {
        let Record { position, at, event } = &stored.record;
        Self {
            position: *position,
            at: at.as_micros(),
            event: Cow::Borrowed(event),
            received: stored.received.as_ref().map(Cow::Borrowed),
        }
    }

    fn into_stored(self) -> StoredRecord {
        let at = Timestamp::from_micros(self.at);
        let record = Record { position: self.position, at, event: self.event.into_owned() };
        StoredRecord { record, received: self.received.map(Cow::into_owned) }
    }
}

impl<'a> PreviewBody<'a> {
    fn of(preview: &'a Preview) -> Self {
        Self {
            session_id: Cow::Borrowed(&preview.session_id),
            epoch: preview.epoch,
            event_id: Cow::Borrowed(&preview.event_id),
            span_position: preview.span_position,
            sequence: preview.sequence,
            delta: match &preview.delta {
                PreviewDelta::MessageStart => DeltaBody::MessageStart,
                PreviewDelta::Text { index, text } => DeltaBody::Text { index: *index, text: Cow::Borrowed(text) },
                PreviewDelta::ThinkingStart => DeltaBody::ThinkingStart,
            },
        }
    }

    fn into_preview(self) -> Preview {
        Preview {
            session_id: self.session_id.into_owned(),
            epoch: self.epoch,
            event_id: self.event_id.into_owned(),
            span_position: self.span_position,
            sequence: self.sequence,
            delta: match self.delta {
                DeltaBody::MessageStart => PreviewDelta::MessageStart,
                DeltaBody::Text { index, text } => PreviewDelta::Text { index, text: text.into_owned() },
                DeltaBody::ThinkingStart => PreviewDelta::ThinkingStart,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_of_another_version_is_unreadable_and_an_own_one_is_skipped() {
        let mut bytes = write(Origin(7), &Message::Lost);
        assert!(matches!(read(Origin(8), &bytes), Read::Message(Message::Lost)));
        assert!(matches!(read(Origin(7), &bytes), Read::Own));
        bytes[0] = VERSION + 1;
        assert!(matches!(read(Origin(8), &bytes), Read::Unreadable));
        assert!(matches!(read(Origin(8), b""), Read::Unreadable));
        assert!(matches!(read(Origin(8), b"{}"), Read::Unreadable));
    }

    #[test]
    fn large_records_stay_behind() {
        let event = Event::AgentThinking { id: "sevt_1".into(), internal: "x".repeat(RECORDS_BYTES_MAX).into() };
        let record = Record { position: 4, at: Timestamp::from_micros(1), event };
        let records: Arc<[StoredRecord]> = Arc::new([StoredRecord { record, received: None }]);
        let frame = Frame::Appended { session_id: "sesn_1".into(), position: 4, records: Some(records) };
        let bytes = write(Origin(7), &Message::Frame(frame));
        assert!(bytes.len() < 200);
        let Read::Message(Message::Frame(Frame::Appended { position: 4, records: None, .. })) = read(Origin(8), &bytes)
        else {
            panic!("{}", String::from_utf8_lossy(&bytes));
        };
    }

    #[test]
    fn a_channel_names_its_topic() {
        let channels = Channels::new("agent-service");
        for topic in [Topic::Session("sesn_1".into()), Topic::Claimable, Topic::Work] {
            assert_eq!(channels.topic(&channels.of(&topic)), Some(topic));
        }
        assert_eq!(channels.topic(&channels.lost()), None);
    }
}

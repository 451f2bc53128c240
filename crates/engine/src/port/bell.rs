//! The bell: tells whoever listens that a session has moved, and carries live previews.
//!
//! Ringing never waits and may be lost; whoever needs to know polls the log besides. A frame that says where the
//! log now stands is a hint; the records it may carry spare local listeners the read.

use std::sync::Arc;

use async_trait::async_trait;
use session::id::{EventId, SessionId};

use super::StoredRecord;

/// What a listener wants to hear of.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Topic {
    /// One session's records and previews.
    Session(SessionId),
    /// Sessions that became claimable.
    Claimable,
    /// Work items that were queued.
    Work,
}

/// What is heard.
#[derive(Clone, Debug)]
pub enum Frame {
    /// The session's log now ends at `position`. `records`, when present, are the last ones, ending there.
    Appended { session_id: SessionId, position: u64, records: Option<Arc<[StoredRecord]>> },
    /// A piece of an answer that is being given.
    Preview(Arc<Preview>),
    /// Some session became claimable.
    Claimable,
    /// Some work item was queued.
    WorkQueued,
}

/// A piece of a model's answer before the answer is recorded.
///
/// `sequence` counts from 0 without gaps for one `event_id`; `span_position` is the position of the
/// `span.model_request_start` that the preview belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Preview {
    pub session_id: SessionId,
    pub epoch: u64,
    pub event_id: EventId,
    pub span_position: u64,
    pub sequence: u64,
    pub delta: PreviewDelta,
}

/// What a preview says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PreviewDelta {
    /// An `agent.message` has begun.
    MessageStart,
    /// More text of the content block `index`.
    Text { index: usize, text: String },
    /// An `agent.thinking` has begun.
    ThinkingStart,
}

/// A listener's end.
#[async_trait]
pub trait Listener: Send + 'static {
    /// The next frame. `None` when some were lost: look at the log, then go on listening.
    async fn hear(&mut self) -> Option<Frame>;

    /// From now on previews may be left out.
    fn decline_previews(&mut self) {}
}

/// Rings and listens.
pub trait Bell: Send + Sync + 'static {
    /// Tells listeners of the frame's topic; never blocks.
    fn ring(&self, frame: Frame);

    /// Listens from now on: whatever is rung after the call returns is heard or reported lost.
    fn listen(&self, topic: Topic) -> Box<dyn Listener>;

    /// Whether, as far as is known, the other processes hear what is rung here and this one hears them. Where they do
    /// not, they look at the log more often.
    fn reaches_others(&self) -> bool;
}

//! The previews of one model request, rung on the bell as the provider sends them.

use std::sync::Arc;

use session::Timestamp;
use session::id::{EventId, SessionId};
use session::state::OpenRequest;
use tokio::time::Instant;

use crate::observer::Observer;
use crate::port::model::PreviewSink;
use crate::port::{Bell, Clock, Frame, Preview, PreviewDelta};

/// Rings frames that name the epoch, the span, and the event that the answer will become.
pub(super) struct Previews {
    pub(super) bell: Arc<dyn Bell>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) observer: Arc<dyn Observer>,
    pub(super) session_id: SessionId,
    pub(super) epoch: u64,
    pub(super) span_position: u64,
    pub(super) message: Line,
    pub(super) thinking: Line,
    /// When the turn began, until its first text was seen.
    pub(super) text_awaited_since: Option<Timestamp>,
    /// When the first preview came.
    pub(super) first_at: Option<Instant>,
}

/// The frames of one event.
pub(super) struct Line {
    event_id: EventId,
    sequence: u64,
}

impl Line {
    fn new(event_id: &EventId) -> Self {
        Self { event_id: event_id.clone(), sequence: 0 }
    }
}

impl Previews {
    /// The lines of a request: its message and its first thinking.
    pub(super) fn lines(request: &OpenRequest) -> (Line, Line) {
        (Line::new(&request.message_id), Line::new(&request.thinking_id))
    }
}

impl PreviewSink for Previews {
    fn preview(&mut self, delta: PreviewDelta) {
        self.first_at.get_or_insert_with(Instant::now);
        if matches!(delta, PreviewDelta::Text { .. })
            && let Some(since) = self.text_awaited_since.take()
        {
            self.observer.time_to_first_token(self.clock.now().seconds_since(since));
        }
        let line = match delta {
            PreviewDelta::ThinkingStart => &mut self.thinking,
            PreviewDelta::MessageStart | PreviewDelta::Text { .. } => &mut self.message,
        };
        let sequence = line.sequence;
        line.sequence += 1;
        self.bell.ring(Frame::Preview(Arc::new(Preview {
            session_id: self.session_id.clone(),
            epoch: self.epoch,
            event_id: line.event_id.clone(),
            span_position: self.span_position,
            sequence,
            delta,
        })));
    }
}

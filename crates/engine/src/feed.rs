//! A session followed live: every record exactly once and in order, and previews in between.
//!
//! A feed listens before it asks where the log stands, so nothing falls between. What the bell carries is used when
//! it continues what was delivered; anything else is read from the log. It holds no connection while it waits.
//! Which records a client sees, and how, is the server's business.
//!
//! Previews are best effort. A frame passes when it belongs to the open model request that this feed has delivered,
//! comes from the newest epoch and continues its event from sequence 0 without a gap; at the first gap no more are
//! passed for that event. So the worst that a stale owner can show is a preview that never becomes an event.

use std::collections::VecDeque;
use std::sync::Arc;

use session::event::{Event, ModelRequestIntent};
use session::id::{EventId, SessionId};
use tokio::time::{Duration, sleep};

use crate::port::{EventLog, Frame, Listener, Preview, StoreError, StoredRecord, Topic};
use crate::watch::Watched;
use crate::world::World;

/// Records read at once.
const PAGE: usize = 256;

/// Pause after the log could not be read.
const RETRY: Duration = Duration::from_millis(500);

/// Where a feed begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    /// With whatever is appended after the feed was made.
    Now,
    /// Behind this position; 0 for the whole log.
    After(u64),
}

/// What a feed delivers.
#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "nearly every item is a record")]
pub enum FeedItem {
    /// The next record, of any form.
    Record(StoredRecord),
    /// A piece of an answer that is being given.
    Preview(Arc<Preview>),
    /// The session was deleted; nothing follows.
    End,
}

/// One follower of one session.
pub struct Feed {
    world: World,
    session_id: SessionId,
    listener: Box<dyn Listener>,
    watched: Watched,
    /// Position of the last record put into `ready`.
    delivered: u64,
    /// Where the log is known to stand at least; behind it there is something to read.
    known: u64,
    ready: VecDeque<FeedItem>,
    ended: bool,
    previews: Previews,
}

impl Feed {
    /// Follows a session that exists. What is appended after this returns is delivered.
    pub async fn follow(world: &World, session_id: &SessionId, from: From) -> Result<Self, StoreError> {
        let listener = world.bell.listen(Topic::Session(session_id.clone()));
        let watched = world.watch.follow(session_id);
        let positions = world.log.positions(std::slice::from_ref(session_id)).await?;
        let now = positions.first().map_or(0, |(_, position)| *position);
        let after = match from {
            From::Now => now,
            From::After(position) => position.min(now),
        };
        let mut feed = Self {
            world: world.clone(),
            session_id: session_id.clone(),
            listener,
            watched,
            delivered: after,
            known: now,
            ready: VecDeque::new(),
            ended: false,
            previews: Previews::default(),
        };
        if after == now && after > 0 {
            feed.end_if_deleted().await?;
        }
        Ok(feed)
    }

    /// The next item. Dropping the future between items loses nothing.
    pub async fn next(&mut self) -> FeedItem {
        loop {
            if let Some(item) = self.ready.pop_front() {
                return item;
            }
            if self.ended {
                return FeedItem::End;
            }
            if self.delivered < self.known {
                self.read_on().await;
            } else {
                self.hear().await;
            }
        }
    }

    /// The records that [`Self::next`] will deliver without waiting.
    pub fn upcoming(&self) -> impl Iterator<Item = &StoredRecord> {
        self.ready.iter().filter_map(|item| match item {
            FeedItem::Record(stored) => Some(stored),
            FeedItem::Preview(_) | FeedItem::End => None,
        })
    }

    /// Takes the next frame, or the poller's word that the session moved.
    async fn hear(&mut self) {
        let heard = tokio::select! {
            biased;
            frame = self.listener.hear() => frame,
            position = self.watched.moved_beyond(self.delivered) => {
                self.known = self.known.max(position);
                return;
            }
        };
        match heard {
            // What was lost, if anything, the poller tells: many feeds lose at once, and it asks for all in one query.
            None => self.watched.look(),
            Some(Frame::Appended { position, records, .. }) => {
                self.known = self.known.max(position);
                self.take_contiguous(records.as_deref().unwrap_or_default());
            }
            Some(Frame::Preview(preview)) => {
                if preview.span_position > self.delivered {
                    self.known = self.known.max(preview.span_position);
                    self.previews.hold(preview);
                } else if self.previews.admit(&preview) {
                    self.ready.push_back(FeedItem::Preview(preview));
                }
            }
            Some(Frame::Claimable | Frame::WorkQueued) => {}
        }
    }

    /// Reads one page behind what was delivered.
    async fn read_on(&mut self) {
        let read = match self.world.log.read(&self.session_id, self.delivered, PAGE).await {
            Ok(records) if records.is_empty() => {
                is_gone(&*self.world.log, &self.session_id).await.map(|gone| (records, gone))
            }
            Ok(records) => Ok((records, false)),
            Err(error) => Err(error),
        };
        match read {
            Ok((records, gone)) => {
                self.ended |= gone;
                if records.len() < PAGE {
                    self.known = records.last().map_or(self.delivered, |stored| stored.record.position);
                }
                self.take_contiguous(&records);
            }
            Err(error) => {
                tracing::debug!(session_id = %self.session_id, %error, "a feed waits for the log");
                sleep(RETRY).await;
            }
        }
    }

    /// Delivers those records that continue what was delivered.
    fn take_contiguous(&mut self, records: &[StoredRecord]) {
        for stored in records {
            if stored.record.position != self.delivered + 1 || self.ended {
                continue;
            }
            self.delivered = stored.record.position;
            self.known = self.known.max(self.delivered);
            self.previews.record(&stored.record.event, self.delivered);
            self.ended = matches!(stored.record.event, Event::Deleted { .. });
            self.ready.push_back(FeedItem::Record(stored.clone()));
            for preview in self.previews.release(self.delivered) {
                self.ready.push_back(FeedItem::Preview(preview));
            }
        }
    }

    /// A feed that begins at the end of a deleted session has nothing to wait for.
    async fn end_if_deleted(&mut self) -> Result<(), StoreError> {
        let last = self.world.log.read(&self.session_id, self.delivered - 1, 1).await?;
        self.ended = last.first().is_some_and(|stored| matches!(stored.record.event, Event::Deleted { .. }));
        Ok(())
    }
}

/// Whether records that a feed was told of are gone for good: purged, after their session was deleted.
async fn is_gone(log: &dyn EventLog, session_id: &SessionId) -> Result<bool, StoreError> {
    Ok(log.positions(std::slice::from_ref(session_id)).await?.is_empty())
}

/// Frames held for a span whose start has not been read yet.
const HELD_MAX: usize = 256;

/// Which previews may pass.
#[derive(Default)]
struct Previews {
    newest_epoch: u64,
    span: Option<Span>,
    /// Frames that came before the record they belong behind.
    held: VecDeque<Arc<Preview>>,
}

/// The model request whose start was delivered and whose end was not.
struct Span {
    position: u64,
    message: Line,
    thinking: Line,
}

/// The previews of one event.
struct Line {
    event_id: EventId,
    /// The sequence that must come next; `None` once the event is out or a frame was missed.
    next: Option<u64>,
}

impl Previews {
    /// Opens and closes what the record opens and closes.
    fn record(&mut self, event: &Event, position: u64) {
        match event {
            Event::ModelRequestStart { internal: ModelRequestIntent { message_id, thinking_id, .. }, .. } => {
                let line = |id: &EventId| Line { event_id: id.clone(), next: Some(0) };
                self.span = Some(Span { position, message: line(message_id), thinking: line(thinking_id) });
            }
            Event::ModelRequestEnd { .. } => self.span = None,
            Event::AgentMessage { id, .. } | Event::AgentThinking { id, .. } => {
                if let Some(line) = self.span.as_mut().and_then(|span| span.line(id)) {
                    line.next = None;
                }
            }
            _ => {}
        }
    }

    /// Whether the frame may be passed on now.
    fn admit(&mut self, preview: &Preview) -> bool {
        if preview.epoch < self.newest_epoch {
            return false;
        }
        self.newest_epoch = preview.epoch;
        let Some(span) = self.span.as_mut().filter(|span| span.position == preview.span_position) else {
            return false;
        };
        let Some(line) = span.line(&preview.event_id) else {
            return false;
        };
        match line.next {
            Some(next) if preview.sequence == next => {
                line.next = Some(next + 1);
                true
            }
            // A frame rung twice.
            Some(next) if preview.sequence < next => false,
            _ => {
                line.next = None;
                false
            }
        }
    }

    fn hold(&mut self, preview: Arc<Preview>) {
        if self.held.len() < HELD_MAX {
            self.held.push_back(preview);
        }
    }

    /// The held frames that may pass now that the feed has come to `delivered`.
    fn release(&mut self, delivered: u64) -> Vec<Arc<Preview>> {
        let mut released = Vec::new();
        for preview in std::mem::take(&mut self.held) {
            if preview.span_position > delivered {
                self.held.push_back(preview);
            } else if self.admit(&preview) {
                released.push(preview);
            }
        }
        released
    }
}

impl Span {
    fn line(&mut self, id: &EventId) -> Option<&mut Line> {
        [&mut self.message, &mut self.thinking].into_iter().find(|line| line.event_id == *id)
    }
}

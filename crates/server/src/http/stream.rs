//! `.../events/stream`: a session followed live, as server-sent events.
//!
//! The subscription stands before the headers leave. A stream is pulled by its connection: what a slow reader has
//! not taken stays in the log, from where the feed reads on, while previews it was too slow for are gone; so a
//! reader can be as slow as it likes and holds no memory, task or database connection meanwhile.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State as Shared;
use axum::http::{HeaderValue, header};
use axum::response::Response;
use bytes::Bytes;
use engine::feed::{Feed, FeedItem, From};
use engine::port::{Preview, PreviewDelta, StoreError, StoredRecord};
use serde::Serialize;
use session::id::{EventId, SessionId, WorkId};
use session::{Event, State};
use tokio::time::{Interval, MissedTickBehavior};

use super::Service;
use super::auth::{self, Caller};
use super::context::HttpObserver;
use super::draining::Place;
use super::error::ApiError;
use super::exposure::{Exposure, freed_by};
use super::path::Ids;
use super::query::Query;
use super::sessions;

const DELTAS_MAX: usize = 100;

/// Sent at once, so that proxies pass the headers on.
const GREETING: Bytes = Bytes::from_static(b": connected\n\n");
const PING: Bytes = Bytes::from_static(b"event: ping\ndata: {\"type\":\"ping\"}\n\n");
/// Sent when the process drains: another replica takes the next connection.
const RECONNECT: Bytes = Bytes::from_static(b"retry: 500\n\n");

/// `GET /v1/sessions/{session_id}/events/stream`.
pub(super) async fn stream(
    Shared(service): Shared<Service>,
    caller: Caller,
    ids: Ids,
    mut query: Query,
) -> Result<Response, ApiError> {
    let deltas = Deltas::read(&mut query)?;
    query.finish()?;
    let state = sessions::load(&service, &caller, &ids).await?;
    open(service, &caller, &state, deltas).await
}

/// Which previews a connection asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Deltas {
    message: bool,
    thinking: bool,
}

impl Deltas {
    pub(super) fn read(query: &mut Query) -> Result<Self, ApiError> {
        let kinds = query.strings("event_deltas");
        if kinds.len() > DELTAS_MAX {
            return Err(ApiError::invalid(format!("event_deltas: at most {DELTAS_MAX} values are allowed")));
        }
        let mut deltas = Self::default();
        for kind in kinds {
            match kind.as_str() {
                "agent.message" => deltas.message = true,
                "agent.thinking" => deltas.thinking = true,
                _ => return Err(ApiError::invalid("event_deltas: expected agent.message or agent.thinking")),
            }
        }
        Ok(deltas)
    }
}

/// The response that follows the session from now on.
pub(super) async fn open(
    service: Service,
    caller: &Caller,
    state: &State,
    deltas: Deltas,
) -> Result<Response, ApiError> {
    // Before the first byte, a refusal is what a proxy may try again on another replica.
    if service.draining.is_draining() {
        return Err(ApiError::draining(
            "this server is shutting down: open the stream again, and another one takes it",
        ));
    }
    let feed = Feed::follow(&service.world, &state.session_id, From::Now).await?;
    let interval = Duration::from_millis(service.limits.ping_interval_ms.max(1));
    let mut ping = tokio::time::interval_at(tokio::time::Instant::now() + interval, interval);
    ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let token = match caller {
        Caller::ItemHolder { item, token_hash } => Some(Token { work_id: item.id.clone(), hash: token_hash.clone() }),
        _ => None,
    };
    // The feed tells of a lease that ends from now on, and cannot tell of one that ended while it was being made.
    if let Some(token) = &token
        && token.has_ended(&service).await?
    {
        return Err(auth::former_holder());
    }
    let connection = Connection {
        place: service.draining.place(&*service.world.entropy),
        counted: Counted::new(&service),
        service,
        session_id: state.session_id.clone(),
        feed,
        deltas,
        ping,
        token,
        exposure: Exposure::to(caller),
        recorded_to: 0,
        greeted: false,
        ended: false,
    };
    // In a box, since it changes hands with every frame.
    let frames = futures::stream::unfold(Box::new(connection), |mut connection| async move {
        let frame = connection.next_frame().await?;
        Some((Ok::<_, Infallible>(frame), connection))
    });

    let mut response = Response::new(Body::from_stream(frames));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    Ok(response)
}

/// One open stream.
struct Connection {
    service: Service,
    session_id: SessionId,
    feed: Feed,
    deltas: Deltas,
    ping: Interval,
    /// The item token that opened the stream, which closes with it.
    token: Option<Token>,
    /// Set where what is sent may be run by whoever reads it.
    exposure: Option<Exposure>,
    /// Position up to which that was recorded.
    recorded_to: u64,
    greeted: bool,
    ended: bool,
    /// When the stream ends if the process drains.
    place: Place,
    #[expect(dead_code, reason = "counts the stream as open until it is dropped")]
    counted: Counted,
}

impl Connection {
    /// The next bytes to send; `None` ends the stream.
    async fn next_frame(&mut self) -> Option<Bytes> {
        if self.ended {
            return None;
        }
        if !self.greeted {
            self.greeted = true;
            return Some(GREETING);
        }
        loop {
            tokio::select! {
                biased;
                () = self.place.comes() => {
                    self.ended = true;
                    return Some(RECONNECT);
                }
                item = self.feed.next() => {
                    let frame = match item {
                        FeedItem::End => return None,
                        FeedItem::Record(stored) => {
                            if self.ends_with(&stored) || !self.may_send(&stored).await {
                                self.ended = true;
                                return None;
                            }
                            record_frame(&stored)
                        }
                        FeedItem::Preview(preview) => preview_frame(&preview, self.deltas),
                    };
                    if frame.is_some() {
                        return frame;
                    }
                }
                _ = self.ping.tick() => {
                    // Where a token ends without an ended lease, as by a second poll, no record tells of it.
                    let ended = match &self.token {
                        Some(token) => token.has_ended(&self.service).await.unwrap_or(false),
                        None => false,
                    };
                    return (!ended).then_some(PING);
                }
            }
        }
    }

    /// Whether this record ends the lease under which the stream was opened.
    fn ends_with(&self, stored: &StoredRecord) -> bool {
        self.token.as_ref().is_some_and(
            |token| matches!(&stored.record.event, Event::LeaseEnded { work_id } if *work_id == token.work_id),
        )
    }

    /// Records that `stored`, and what is ready to follow it, is about to be shown to somebody who may run it.
    /// `false` where it cannot be recorded: the reader opens another stream, or has nothing to read any more.
    async fn may_send(&mut self, stored: &StoredRecord) -> bool {
        let Some(exposure) = &self.exposure else { return true };
        if stored.record.position <= self.recorded_to || freed_by(stored).is_none() {
            return true;
        }
        let shown: Vec<&StoredRecord> = std::iter::once(stored).chain(self.feed.upcoming()).collect();
        let calls = shown.iter().copied().filter_map(freed_by).cloned().collect();
        self.recorded_to = shown.last().map_or(0, |last| last.record.position);
        drop(shown);
        // In a box, since few streams ever need it.
        match Box::pin(exposure.record(&self.service, &self.session_id, calls)).await {
            Ok(()) => true,
            Err(error) => {
                tracing::debug!(session_id = %self.session_id, %error, "a worker's stream ends");
                false
            }
        }
    }
}

/// The item token that opened a stream.
struct Token {
    work_id: WorkId,
    hash: String,
}

impl Token {
    /// Whether it is no longer its item's.
    async fn has_ended(&self, service: &Service) -> Result<bool, StoreError> {
        Ok(service.work().item_by_token(&self.hash).await?.is_none())
    }
}

/// A record as a frame, if clients see it at all.
fn record_frame(stored: &StoredRecord) -> Option<Bytes> {
    stored.to_api().map(|event| frame(stored.kind(), &event))
}

/// A preview as a frame, if the connection asked for it.
fn preview_frame(preview: &Preview, deltas: Deltas) -> Option<Bytes> {
    let id = &preview.event_id;
    let start = |event| frame("event_start", &PreviewEvent::EventStart { event });
    match &preview.delta {
        PreviewDelta::MessageStart if deltas.message => Some(start(Started::Message { id })),
        PreviewDelta::ThinkingStart if deltas.thinking => Some(start(Started::Thinking { id })),
        PreviewDelta::Text { index, text } if deltas.message => {
            let delta = Delta::ContentDelta { index: *index, content: Piece::Text { text } };
            Some(frame("event_delta", &PreviewEvent::EventDelta { event_id: id, delta }))
        }
        _ => None,
    }
}

/// A preview as clients see it. Every token is one, so it is written without a detour through a [`serde_json::Value`].
#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum PreviewEvent<'p> {
    EventStart { event: Started<'p> },
    EventDelta { event_id: &'p EventId, delta: Delta<'p> },
}

#[derive(Serialize)]
#[serde(tag = "type")]
enum Started<'p> {
    #[serde(rename = "agent.message")]
    Message { id: &'p EventId },
    #[serde(rename = "agent.thinking")]
    Thinking { id: &'p EventId },
}

#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Delta<'p> {
    ContentDelta { index: usize, content: Piece<'p> },
}

#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Piece<'p> {
    Text { text: &'p str },
}

/// One server-sent event. JSON has no raw line breaks, so one data line holds it.
fn frame(name: &str, data: &impl Serialize) -> Bytes {
    let mut frame = Vec::with_capacity(256);
    frame.extend_from_slice(b"event: ");
    frame.extend_from_slice(name.as_bytes());
    frame.extend_from_slice(b"\ndata: ");
    serde_json::to_writer(&mut frame, data).expect("events have string keys only");
    frame.extend_from_slice(b"\n\n");
    frame.into()
}

/// Counts a stream as open for as long as it lives.
struct Counted(Arc<dyn HttpObserver>);

impl Counted {
    fn new(service: &Service) -> Self {
        service.observer.stream_opened();
        Self(Arc::clone(&service.observer))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.stream_closed();
    }
}

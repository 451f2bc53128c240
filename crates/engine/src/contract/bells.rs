//! What a bell promises between two processes.
//!
//! A case gets two ends of one bell. Between a call of `listen` and the moment at which the other end can be heard a
//! listener may be told that frames were lost, and what is rung then may be; so a case rings again until it is heard.

use std::sync::Arc;

use session::event::Event;
use session::id::{EventId, SessionId};
use session::{Record, Timestamp};

use crate::port::{Bell, Frame, Listener, Preview, PreviewDelta, StoredRecord, Topic};

/// Two processes' ends of one bell; in a bell of one process, the same end twice.
pub trait Ends: Send + Sync {
    fn here(&self) -> &dyn Bell;
    fn there(&self) -> &dyn Bell;
}

/// The frame that says a log ends at `position`, without its records.
pub fn appended(session_id: &SessionId, position: u64) -> Frame {
    Frame::Appended { session_id: session_id.clone(), position, records: None }
}

/// A piece of an answer.
pub fn preview(session_id: &SessionId, sequence: u64, delta: PreviewDelta) -> Frame {
    Frame::Preview(Arc::new(Preview {
        session_id: session_id.clone(),
        epoch: u64::MAX,
        event_id: EventId::from("sevt_preview"),
        span_position: 7,
        sequence,
        delta,
    }))
}

/// Rings `frame` until the listener hears it; what it hears before that is left out.
pub async fn ring_until_heard(bell: &dyn Bell, frame: Frame, listener: &mut dyn Listener) {
    loop {
        bell.ring(frame.clone());
        // Every ring is heard or reported lost, so this ends.
        match listener.hear().await {
            Some(heard) if say(&heard) == say(&frame) => return,
            _ => {}
        }
    }
}

/// The next frames, as many as `count`.
pub async fn hear(listener: &mut dyn Listener, count: usize) -> Vec<String> {
    let mut heard = Vec::new();
    while heard.len() < count {
        heard.extend(listener.hear().await.as_ref().map(say));
    }
    heard
}

/// A frame as text to compare.
pub fn say(frame: &Frame) -> String {
    format!("{frame:?}")
}

/// Frames of every kind arrive at both ends whole and in order.
pub async fn frames_arrive_whole_and_in_order(ends: &dyn Ends) {
    let id = SessionId::from("sesn_bell");
    let text = "\u{0}\n\"Grüße\" 👋".to_owned();
    let interrupt = Event::UserInterrupt { id: EventId::from("sevt_interrupt"), session_thread_id: None, queued: true };
    let record = |position, event| Record { position, at: Timestamp::from_micros(1_795_000_000_000_001), event };
    let processed = Event::Processed { id: EventId::from("sevt_interrupt"), received: 8 };
    let records: Arc<[StoredRecord]> = Arc::new([
        StoredRecord { record: record(8, interrupt.clone()), received: None },
        StoredRecord { record: record(9, processed), received: Some(interrupt) },
    ]);
    let frames = [
        preview(&id, 0, PreviewDelta::MessageStart),
        preview(&id, 1, PreviewDelta::Text { index: 3, text }),
        preview(&id, u64::MAX, PreviewDelta::ThinkingStart),
        Frame::Appended { session_id: id.clone(), position: 9, records: Some(records) },
        appended(&id, u64::MAX),
    ];
    let expected: Vec<_> = frames.iter().map(say).collect();
    let mut here = ends.here().listen(Topic::Session(id.clone()));
    let mut there = ends.there().listen(Topic::Session(id.clone()));
    ring_until_heard(ends.here(), appended(&id, 1), &mut *there).await;
    ring_until_heard(ends.here(), appended(&id, 2), &mut *here).await;
    frames.into_iter().for_each(|frame| ends.here().ring(frame));
    for listener in [&mut *here, &mut *there] {
        let first = hear_after(listener, &say(&appended(&id, 2))).await;
        assert_eq!([vec![first], hear(listener, expected.len() - 1).await].concat(), expected);
    }
}

/// What a process rings comes back to it from nowhere.
pub async fn a_frame_is_heard_once(ends: &dyn Ends) {
    let id = SessionId::from("sesn_bell");
    let mut here = ends.here().listen(Topic::Session(id.clone()));
    let mut there = ends.there().listen(Topic::Session(id.clone()));
    ring_until_heard(ends.here(), appended(&id, 1), &mut *there).await;
    ring_until_heard(ends.there(), appended(&id, 2), &mut *here).await;
    ends.here().ring(appended(&id, 3));
    hear_until(&mut *there, &say(&appended(&id, 3))).await;
    // Rung by the other end once it had heard the first, so it comes behind any echo.
    ends.there().ring(appended(&id, 4));
    let mut heard = Vec::new();
    while heard.last() != Some(&say(&appended(&id, 4))) {
        heard.extend(here.hear().await.as_ref().map(say));
    }
    assert_eq!(heard.iter().filter(|frame| **frame == say(&appended(&id, 3))).count(), 1, "{heard:?}");
}

/// A listener hears its own topic alone.
pub async fn topics_are_kept_apart(ends: &dyn Ends) {
    let (mine, other) = (SessionId::from("sesn_mine"), SessionId::from("sesn_other"));
    let mut mine_there = ends.there().listen(Topic::Session(mine.clone()));
    let mut other_there = ends.there().listen(Topic::Session(other.clone()));
    let mut claimable = ends.there().listen(Topic::Claimable);
    let mut work = ends.there().listen(Topic::Work);
    ring_until_heard(ends.here(), appended(&mine, 1), &mut *mine_there).await;
    ring_until_heard(ends.here(), appended(&other, 1), &mut *other_there).await;
    ring_until_heard(ends.here(), Frame::Claimable, &mut *claimable).await;
    ring_until_heard(ends.here(), Frame::WorkQueued, &mut *work).await;
    for position in 2..20 {
        ends.here().ring(appended(&other, position));
        ends.here().ring(appended(&mine, position));
    }
    let mut heard = Vec::new();
    while heard.last() != Some(&say(&appended(&mine, 19))) {
        heard.extend(mine_there.hear().await.as_ref().map(say));
    }
    assert!(heard.iter().all(|frame| frame.contains("sesn_mine")), "{heard:?}");
}

/// A second listener to a topic that is heard already hears what is rung next.
pub async fn listeners_come_and_go(ends: &dyn Ends) {
    let id = SessionId::from("sesn_bell");
    for position in 1..20 {
        let mut first = ends.there().listen(Topic::Session(id.clone()));
        let mut second = ends.there().listen(Topic::Session(id.clone()));
        ring_until_heard(ends.here(), appended(&id, position), &mut *first).await;
        drop(first);
        ring_until_heard(ends.here(), appended(&id, 100 + position), &mut *second).await;
    }
}

async fn hear_until(listener: &mut dyn Listener, wanted: &str) {
    while listener.hear().await.as_ref().map(say).as_deref() != Some(wanted) {}
}

/// What comes behind the last of the frames `said`.
async fn hear_after(listener: &mut dyn Listener, said: &str) -> String {
    hear_until(listener, said).await;
    loop {
        if let Some(frame) = listener.hear().await.as_ref().map(say).filter(|frame| frame != said) {
            return frame;
        }
    }
}

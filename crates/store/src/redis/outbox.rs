//! What waits to be told to the others: bounded, and full without anybody waiting.
//!
//! A full outbox sheds previews first; when records alone fill it, it is emptied, and the others are told that frames
//! were lost. While Redis is away nothing waits at all: what would be said then is that one word.

use std::collections::VecDeque;

use engine::port::Frame;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::frame::Message;

/// Frames that wait at most.
const FRAMES_MAX: usize = 4_096;

/// Previews among them.
const PREVIEWS_MAX: usize = 1_024;

/// Frames above which records no longer wait with theirs, so that a slow Redis holds little memory.
const RECORDS_MAX: usize = 512;

/// Messages of one batch.
const BATCH_MAX: usize = 128;

/// Messages on their way to the publisher.
#[derive(Default)]
pub(super) struct Outbox {
    state: Mutex<State>,
    filled: Notify,
}

#[derive(Default)]
struct State {
    /// Redis can be reached.
    is_open: bool,
    frames: VecDeque<Frame>,
    previews: usize,
    lost: bool,
    // Heard once, these say all that hearing them again would.
    claimable: bool,
    work_queued: bool,
}

impl Outbox {
    /// Takes a frame or sheds it; never waits.
    pub(super) fn put(&self, frame: Frame) {
        self.state.lock().put(frame);
        self.filled.notify_one();
    }

    /// Lets frames wait from now on.
    pub(super) fn open(&self) {
        self.state.lock().is_open = true;
        self.filled.notify_one();
    }

    /// Sheds everything, and whatever comes until it is opened.
    pub(super) fn close(&self) {
        *self.state.lock() = State { lost: true, ..State::default() };
    }

    /// The next messages, at least one.
    pub(super) async fn take(&self) -> Vec<Message> {
        loop {
            let batch = self.state.lock().take();
            if !batch.is_empty() {
                return batch;
            }
            self.filled.notified().await;
        }
    }
}

impl State {
    fn put(&mut self, frame: Frame) {
        if !self.is_open {
            self.lost |= !matches!(frame, Frame::Preview(_));
            return;
        }
        match frame {
            Frame::Claimable => self.claimable = true,
            Frame::WorkQueued => self.work_queued = true,
            Frame::Preview(_) => {
                if self.previews < PREVIEWS_MAX && self.frames.len() < FRAMES_MAX {
                    self.previews += 1;
                    self.frames.push_back(frame);
                }
            }
            Frame::Appended { session_id, position, records } => {
                if self.frames.len() >= FRAMES_MAX {
                    self.shed();
                }
                let records = records.filter(|_| self.frames.len() < RECORDS_MAX);
                self.frames.push_back(Frame::Appended { session_id, position, records });
            }
        }
    }

    /// Makes room: previews go first, then everything.
    fn shed(&mut self) {
        self.frames.retain(|frame| !matches!(frame, Frame::Preview(_)));
        self.previews = 0;
        if self.frames.len() >= FRAMES_MAX {
            self.frames.clear();
            self.lost = true;
        }
    }

    fn take(&mut self) -> Vec<Message> {
        if !self.is_open {
            return Vec::new();
        }
        let lost = std::mem::take(&mut self.lost).then_some(Message::Lost);
        let claimable = std::mem::take(&mut self.claimable).then_some(Message::Frame(Frame::Claimable));
        let work_queued = std::mem::take(&mut self.work_queued).then_some(Message::Frame(Frame::WorkQueued));
        let count = self.frames.len().min(BATCH_MAX);
        let frames = self.frames.drain(..count).map(Message::Frame);
        let batch: Vec<_> = lost.into_iter().chain(claimable).chain(work_queued).chain(frames).collect();
        let previews = batch.iter().filter(|message| matches!(message, Message::Frame(Frame::Preview(_)))).count();
        self.previews -= previews;
        batch
    }
}

#[cfg(test)]
mod tests {
    use engine::contract::bells::{appended, preview};
    use engine::port::PreviewDelta;
    use session::id::SessionId;

    use super::*;

    async fn drain(outbox: &Outbox) -> Vec<Message> {
        let mut messages = Vec::new();
        outbox.put(Frame::Claimable);
        loop {
            let batch = outbox.take().await;
            let is_last = batch.len() < BATCH_MAX;
            messages.extend(batch);
            if is_last {
                return messages;
            }
        }
    }

    fn lost(messages: &[Message]) -> bool {
        messages.iter().any(|message| matches!(message, Message::Lost))
    }

    #[tokio::test]
    async fn a_full_outbox_sheds_previews_first() {
        let id = SessionId::from("sesn_1");
        let outbox = Outbox::default();
        outbox.open();
        for sequence in 0..5_000 {
            outbox.put(preview(&id, sequence, PreviewDelta::ThinkingStart));
        }
        for position in 1..=3_500 {
            outbox.put(appended(&id, position));
        }
        let messages = drain(&outbox).await;
        let positions = messages.iter().filter(|it| matches!(it, Message::Frame(Frame::Appended { .. }))).count();
        assert_eq!((positions, lost(&messages)), (3_500, false));
        assert!(!messages.iter().any(|it| matches!(it, Message::Frame(Frame::Preview(_)))));
        for position in 1..=5_000 {
            outbox.put(appended(&id, position));
        }
        let messages = drain(&outbox).await;
        assert!(lost(&messages) && messages.len() < 1_000);
        assert!(!lost(&drain(&outbox).await));
    }

    #[tokio::test]
    async fn a_closed_outbox_keeps_nothing_but_the_loss() {
        let id = SessionId::from("sesn_1");
        let outbox = Outbox::default();
        outbox.put(preview(&id, 0, PreviewDelta::ThinkingStart));
        outbox.open();
        assert!(!lost(&drain(&outbox).await), "a preview is nobody's loss");
        outbox.put(appended(&id, 1));
        outbox.close();
        outbox.put(appended(&id, 2));
        outbox.open();
        let messages = drain(&outbox).await;
        assert!(lost(&messages) && messages.len() == 2, "{messages:?}");
    }
}

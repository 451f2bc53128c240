//! The bell of one process: a bounded mailbox for each listener.
//!
//! Ringing puts a frame into the mailboxes of its topic and never waits. A full mailbox sheds previews first; when
//! records alone fill it, it is emptied and its listener told that frames were lost.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use async_trait::async_trait;
use tokio::sync::Notify;

use crate::port::{Bell, Frame, Listener, Topic};

/// Previews that wait in one mailbox.
const PREVIEWS_MAX: usize = 512;

/// Frames of any kind that wait in one mailbox.
const FRAMES_MAX: usize = 1_024;

/// A bell heard in this process alone.
#[derive(Default)]
pub struct LocalBell {
    topics: Arc<Mutex<Topics>>,
    /// There are other processes, which do not hear it.
    has_neighbours: bool,
}

type Topics = BTreeMap<Topic, Vec<Weak<Mailbox>>>;

#[derive(Default)]
struct Mailbox {
    state: Mutex<MailboxState>,
    filled: Notify,
}

#[derive(Default)]
struct MailboxState {
    frames: VecDeque<Frame>,
    previews: usize,
    /// Its listener has no use for previews.
    declines_previews: bool,
    lost: bool,
}

struct LocalListener {
    topic: Topic,
    topics: Arc<Mutex<Topics>>,
    mailbox: Arc<Mailbox>,
}

impl LocalBell {
    /// A bell that nobody listens to yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The same in one process of several.
    pub fn among_others() -> Self {
        Self { has_neighbours: true, ..Self::default() }
    }

    /// Tells the topic's listeners that frames were lost.
    pub fn lose(&self, topic: &Topic) {
        for mailbox in lock(&self.topics).get(topic).into_iter().flatten().filter_map(Weak::upgrade) {
            mailbox.lose();
        }
    }

    /// Tells every listener that frames were lost.
    pub fn lose_all(&self) {
        for mailbox in lock(&self.topics).values().flatten().filter_map(Weak::upgrade) {
            mailbox.lose();
        }
    }
}

impl Bell for LocalBell {
    fn ring(&self, frame: Frame) {
        let topic = match &frame {
            Frame::Appended { session_id, .. } => Topic::Session(session_id.clone()),
            Frame::Preview(preview) => Topic::Session(preview.session_id.clone()),
            Frame::Claimable => Topic::Claimable,
            Frame::WorkQueued => Topic::Work,
        };
        let topics = lock(&self.topics);
        for mailbox in topics.get(&topic).into_iter().flatten().filter_map(Weak::upgrade) {
            mailbox.put(frame.clone());
        }
    }

    fn listen(&self, topic: Topic) -> Box<dyn Listener> {
        let mailbox = Arc::new(Mailbox::default());
        lock(&self.topics).entry(topic.clone()).or_default().push(Arc::downgrade(&mailbox));
        Box::new(LocalListener { topic, topics: Arc::clone(&self.topics), mailbox })
    }

    fn reaches_others(&self) -> bool {
        !self.has_neighbours
    }
}

impl Mailbox {
    fn put(&self, frame: Frame) {
        let mut state = lock(&self.state);
        match &frame {
            Frame::Preview(_) => {
                if state.declines_previews || state.previews >= PREVIEWS_MAX || state.frames.len() >= FRAMES_MAX {
                    return;
                }
                state.previews += 1;
            }
            // Heard once, these say all that hearing them again would.
            Frame::Claimable | Frame::WorkQueued => {
                if state.frames.iter().any(|waiting| std::mem::discriminant(waiting) == std::mem::discriminant(&frame))
                {
                    return;
                }
            }
            Frame::Appended { .. } => {
                if state.frames.len() >= FRAMES_MAX {
                    state.shed();
                }
            }
        }
        state.frames.push_back(frame);
        drop(state);
        self.filled.notify_one();
    }

    fn lose(&self) {
        lock(&self.state).lost = true;
        self.filled.notify_one();
    }

    /// The next frame, `Some(None)` for lost ones, or `None` when there is nothing to hear.
    fn take(&self) -> Option<Option<Frame>> {
        let mut state = lock(&self.state);
        if std::mem::take(&mut state.lost) {
            return Some(None);
        }
        let frame = state.frames.pop_front()?;
        if matches!(frame, Frame::Preview(_)) {
            state.previews -= 1;
        }
        Some(Some(frame))
    }
}

impl MailboxState {
    /// Makes room for a record: previews go first, then everything.
    fn shed(&mut self) {
        self.frames.retain(|frame| !matches!(frame, Frame::Preview(_)));
        self.previews = 0;
        if self.frames.len() >= FRAMES_MAX {
            self.frames.clear();
            self.lost = true;
        }
    }
}

#[async_trait]
impl Listener for LocalListener {
    async fn hear(&mut self) -> Option<Frame> {
        loop {
            if let Some(heard) = self.mailbox.take() {
                return heard;
            }
            self.mailbox.filled.notified().await;
        }
    }

    fn decline_previews(&mut self) {
        lock(&self.mailbox.state).declines_previews = true;
    }
}

impl Drop for LocalListener {
    fn drop(&mut self) {
        let mut topics = lock(&self.topics);
        if let Some(mailboxes) = topics.get_mut(&self.topic) {
            mailboxes.retain(|mailbox| !std::ptr::eq(mailbox.as_ptr(), Arc::as_ptr(&self.mailbox)));
            if mailboxes.is_empty() {
                topics.remove(&self.topic);
            }
        }
    }
}

/// The state behind a lock is whole between any two statements, so a panic elsewhere does not spoil it.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

//! The bell as several servers share it: each hears its own at once, and the others over a line that may fail.

use std::sync::{Arc, Mutex, Weak};

use async_trait::async_trait;
use engine::memory::LocalBell;
use engine::port::{Bell, Frame, Listener, Topic};
use tokio::time::{Duration, sleep};

use super::weather::Process;

/// What connects the bells of all servers.
#[derive(Default)]
pub(crate) struct Lines {
    ends: Mutex<Vec<Weak<End>>>,
}

/// One server's end.
struct End {
    process: Arc<Process>,
    local: LocalBell,
}

/// The bell of one server.
pub(crate) struct FaultyBell {
    lines: Arc<Lines>,
    end: Arc<End>,
}

impl FaultyBell {
    pub(crate) fn new(lines: &Arc<Lines>, process: Arc<Process>) -> Self {
        let end = Arc::new(End { process, local: LocalBell::new() });
        let mut ends = lines.ends.lock().unwrap();
        ends.retain(|end| end.strong_count() > 0);
        ends.push(Arc::downgrade(&end));
        Self { lines: Arc::clone(lines), end }
    }
}

impl Bell for FaultyBell {
    fn ring(&self, frame: Frame) {
        if self.end.process.is_dead() {
            return;
        }
        let unheard = self.end.process.is_deaf();
        for end in self.lines.ends.lock().unwrap().iter().filter_map(Weak::upgrade) {
            if Arc::ptr_eq(&end, &self.end) {
                end.local.ring(frame.clone());
            } else if !unheard && !end.process.is_dead() && !end.process.is_deaf() {
                deliver(&end, &frame);
            }
        }
    }

    fn listen(&self, topic: Topic) -> Box<dyn Listener> {
        let listener = self.end.local.listen(topic);
        Box::new(FaultyListener { process: Arc::clone(&self.end.process), listener })
    }

    fn reaches_others(&self) -> bool {
        !self.end.process.is_deaf()
    }
}

/// Rings at another server's end: now, late, twice, or not at all.
fn deliver(end: &Arc<End>, frame: &Frame) {
    let mut frame = frame.clone();
    if let Frame::Appended { records, .. } = &mut frame
        && end.process.strips_records()
    {
        *records = None;
    }
    for late_ms in end.process.frame_delays() {
        if late_ms == 0 {
            end.local.ring(frame.clone());
            continue;
        }
        let (end, frame) = (Arc::clone(end), frame.clone());
        tokio::spawn(async move {
            sleep(Duration::from_millis(late_ms)).await;
            end.local.ring(frame);
        });
    }
}

/// Hears nothing while its process is stopped, and now and then that something was lost.
struct FaultyListener {
    process: Arc<Process>,
    listener: Box<dyn Listener>,
}

#[async_trait]
impl Listener for FaultyListener {
    async fn hear(&mut self) -> Option<Frame> {
        self.process.go_on().await;
        if self.process.loses_frames() {
            return None;
        }
        self.listener.hear().await
    }
}

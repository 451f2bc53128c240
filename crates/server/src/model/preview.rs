//! Keeps previews in the order that the port `PreviewSink` promises.

use engine::port::PreviewDelta;
use engine::port::model::PreviewSink;

/// One answer's previews: starts are told once, text blocks are numbered as they first get text.
pub(super) struct Previews<'a> {
    sink: &'a mut dyn PreviewSink,
    message_started: bool,
    thinking_started: bool,
    text_blocks: usize,
}

impl<'a> Previews<'a> {
    pub(super) fn new(sink: &'a mut dyn PreviewSink) -> Self {
        Self { sink, message_started: false, thinking_started: false, text_blocks: 0 }
    }

    /// Thinking has begun; only the first time counts.
    pub(super) fn thinking(&mut self) {
        if !self.thinking_started {
            self.thinking_started = true;
            self.sink.preview(PreviewDelta::ThinkingStart);
        }
    }

    /// More text of a block. `index` is the block's own memory of its number: `None` until it has text.
    pub(super) fn text(&mut self, index: &mut Option<usize>, text: &str) {
        if text.is_empty() {
            return;
        }
        if !self.message_started {
            self.message_started = true;
            self.sink.preview(PreviewDelta::MessageStart);
        }
        let index = *index.get_or_insert_with(|| {
            self.text_blocks += 1;
            self.text_blocks - 1
        });
        self.sink.preview(PreviewDelta::Text { index, text: text.to_owned() });
    }
}

/// Remembers what was previewed.
#[cfg(test)]
#[derive(Default)]
pub(super) struct Recorder(pub(super) Vec<PreviewDelta>);

#[cfg(test)]
impl PreviewSink for Recorder {
    fn preview(&mut self, delta: PreviewDelta) {
        self.0.push(delta);
    }
}

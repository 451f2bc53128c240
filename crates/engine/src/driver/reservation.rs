//! What the next model request may use at most, as far as that can be known before it is made.

use session::agent::AgentSnapshot;
use session::content::{ContentBlock, DocumentSource};
use session::event::{Event, ModelUsage, RequestPurpose};

use super::Driver;
use crate::port::ModelRequest;
use crate::port::ledger::{Amount, Price};
use crate::port::model::{AssistantBlock, Message, UserBlock};

/// Bytes of text to one token. Most texts have more, so that the estimate is rather too high.
const BYTES_PER_TOKEN: usize = 3;

/// Tokens of a picture, or of the first page of a document.
const PICTURE_TOKENS: u64 = 1_600;

/// Bytes of an encoded document to one token.
const DOCUMENT_BYTES_PER_TOKEN: usize = 32;

/// Tokens that an answer may have whose model does not say.
const OUTPUT_TOKENS_UNKNOWN: u64 = 32_000;

impl Driver {
    /// The input, as it was counted at the last answer or estimated where that is more, and the longest answer, at the
    /// highest price that the model may charge.
    pub(super) fn reservation(&self) -> Amount {
        let agent = self.agent();
        let model = &self.shared.world.model;
        let model_id = agent.as_deref().map_or("", |agent| agent.model.id.as_str());
        let input_tokens = self.state.context.tokens.max(self.estimate(agent.as_deref()));
        let output_tokens = model.output_tokens_max(model_id).unwrap_or(OUTPUT_TOKENS_UNKNOWN);
        // Whether the provider writes its cache is not known beforehand.
        let price = model.price(model_id).map(|price| Price { input: price.input.max(price.cache_write), ..price });
        Amount::of(&ModelUsage { input_tokens, output_tokens, ..ModelUsage::default() }, price)
    }

    fn estimate(&self, agent: Option<&AgentSnapshot>) -> u64 {
        let (Some(transcript), Some(agent)) = (&self.transcript, agent) else { return 0 };
        let request = transcript.request(&self.state.session_id, agent, RequestPurpose::Turn);
        let waiting = self.state.queue.iter().filter_map(|waiting| transcript.waiting(waiting.position));
        let waiting = waiting.map(|event| match event {
            Event::UserMessage { content, .. } => content.iter().map(content_tokens).sum(),
            _ => 0,
        });
        request_tokens(&request) + waiting.sum::<u64>()
    }
}

/// Roughly how many tokens the request has; only the provider can count them.
fn request_tokens(request: &ModelRequest) -> u64 {
    let system = request.system.as_deref().map_or(0, text_tokens);
    let tools = request.tools.iter().map(|tool| {
        text_tokens(&tool.name) + text_tokens(&tool.description) + text_tokens(&tool.input_schema.to_string())
    });
    let messages = request.messages.iter().map(|message| match message {
        Message::User(blocks) => blocks.iter().map(user_tokens).sum::<u64>(),
        Message::Assistant(blocks) => blocks.iter().map(assistant_tokens).sum::<u64>(),
    });
    system + tools.sum::<u64>() + messages.sum::<u64>()
}

fn user_tokens(block: &UserBlock) -> u64 {
    match block {
        UserBlock::Content(content) => content_tokens(content),
        UserBlock::ToolResult { tool_use_id, content, .. } => {
            text_tokens(tool_use_id) + content.iter().map(content_tokens).sum::<u64>()
        }
    }
}

fn assistant_tokens(block: &AssistantBlock) -> u64 {
    match block {
        AssistantBlock::Thinking(thinking) => text_tokens(&thinking.to_string()),
        AssistantBlock::Text(text) => text_tokens(text),
        AssistantBlock::ToolUse { id, name, input } => {
            let fields = input.iter().map(|(field, value)| text_tokens(field) + text_tokens(&value.to_string()));
            text_tokens(id) + text_tokens(name) + fields.sum::<u64>()
        }
    }
}

fn content_tokens(block: &ContentBlock) -> u64 {
    match block {
        ContentBlock::Text { text } => text_tokens(text),
        ContentBlock::Image { .. } => PICTURE_TOKENS,
        ContentBlock::Document { source: DocumentSource::Text { data, .. }, .. } => text_tokens(data),
        ContentBlock::Document { source: DocumentSource::Base64 { data, .. }, .. } => {
            PICTURE_TOKENS + data.len().div_ceil(DOCUMENT_BYTES_PER_TOKEN) as u64
        }
        ContentBlock::Document { source: DocumentSource::Url { .. }, .. } => PICTURE_TOKENS,
        ContentBlock::SearchResult { source, title, content, .. } => {
            let texts = serde_json::to_string(content).unwrap_or_default();
            text_tokens(source) + text_tokens(title) + text_tokens(&texts)
        }
    }
}

/// A few more for whatever surrounds the text.
fn text_tokens(text: &str) -> u64 {
    4 + text.len().div_ceil(BYTES_PER_TOKEN) as u64
}

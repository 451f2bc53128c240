//! The model: one request, one answer, previews on the way.

use std::sync::Arc;

use async_trait::async_trait;
use serde_json::{Map, Value};
use session::agent::ModelConfig;
use session::command::{AnswerBlock, ModelStop};
use session::content::ContentBlock;
use session::event::{ModelUsage, SessionErrorKind};
use session::id::SessionId;

use super::PreviewDelta;
use super::ledger::Price;

/// Everything a provider needs to know.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelRequest {
    /// For the provider's and our own correlation; never part of the prompt.
    pub session_id: SessionId,
    pub model: ModelConfig,
    pub system: Option<String>,
    pub tools: Vec<OfferedTool>,
    /// Turns in order, user first; neighbours have different roles. Shared with the transcript, which may be long.
    pub messages: Arc<Vec<Message>>,
}

/// A tool as a provider is told of it.
#[derive(Clone, Debug, PartialEq)]
pub struct OfferedTool {
    pub name: String,
    pub description: String,
    pub input_schema: Value,
}

/// One message of the conversation.
#[derive(Clone, Debug, PartialEq)]
pub enum Message {
    User(Vec<UserBlock>),
    Assistant(Vec<AssistantBlock>),
}

/// What a user message is made of. Tool results come before other content.
#[derive(Clone, Debug, PartialEq)]
pub enum UserBlock {
    Content(ContentBlock),
    ToolResult { tool_use_id: String, content: Vec<ContentBlock>, is_error: bool },
}

/// What the model said before.
#[derive(Clone, Debug, PartialEq)]
pub enum AssistantBlock {
    /// The provider's own block, unchanged.
    Thinking(Value),
    Text(String),
    ToolUse {
        id: String,
        name: String,
        input: Map<String, Value>,
    },
}

/// A whole answer.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelAnswer {
    pub blocks: Vec<AnswerBlock>,
    pub stop: ModelStop,
    pub usage: ModelUsage,
}

/// No answer, in the API's words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ModelError {
    pub kind: SessionErrorKind,
    /// For clients: no secrets, no prompt.
    pub message: String,
    /// Whether the same request may succeed later.
    pub retryable: bool,
    /// The provider's wish, in milliseconds.
    pub retry_after_ms: Option<u64>,
    /// What the failed request is known to have used.
    pub usage: ModelUsage,
    /// It is known that nothing was generated, so that nothing is charged: the provider refused the request, or never
    /// got it.
    pub is_free: bool,
}

/// Takes previews while an answer is being given.
///
/// A message preview starts with [`PreviewDelta::MessageStart`]; text indices count the answer's text blocks from 0
/// without gaps, in the order in which `agent.message.content` will hold them.
pub trait PreviewSink: Send {
    fn preview(&mut self, delta: PreviewDelta);
}

/// A model provider, or what chooses among several.
///
/// Retries within one request (before the first byte, jittered, `retry-after` obeyed up to a few seconds) are the
/// provider's own; anything longer is returned as a retryable error and waits as a row. Dropping the future aborts
/// the request.
#[async_trait]
pub trait Model: Send + Sync + 'static {
    /// Tokens that the model can take at once, where that is known.
    fn context_window_tokens(&self, _model_id: &str) -> Option<u64> {
        None
    }

    /// Tokens that an answer may have at most, where that is known.
    fn output_tokens_max(&self, _model_id: &str) -> Option<u64> {
        None
    }

    /// What an answer costs at most, where the settings say so: whoever may answer in the model's place is thought of.
    fn price(&self, _model_id: &str) -> Option<Price> {
        None
    }

    async fn answer(&self, request: ModelRequest, previews: &mut dyn PreviewSink) -> Result<ModelAnswer, ModelError>;
}

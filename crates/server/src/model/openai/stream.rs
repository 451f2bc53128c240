//! The chunks of a streamed chat completion, put together.
//!
//! Tolerated, because servers in use do it: a first chunk with a role alone, `content` that is `null`, empty or a
//! list of parts, chunks without choices, no `[DONE]` after a finish reason, a whole answer in one chunk or as plain
//! JSON (`message` instead of `delta`), no usage although asked for, `reasoning_content` and `function_call` beside
//! the rest (ignored), arguments as an object instead of text, and tool calls whose `id` or `index` is absent, the
//! same for all, or repeated with name and all in each chunk. Ids of calls are not used: the session gives its own.

use engine::port::model::ModelAnswer;
use serde::Deserialize;
use serde_json::{Map, Value};
use session::command::{AnswerBlock, ModelStop};
use session::event::{ModelUsage, StopDetails};

use crate::model::preview::Previews;
use crate::model::tool_input;

/// How many bytes a token has on average, for servers that do not count.
const BYTES_PER_TOKEN: usize = 4;

/// Why an answer cannot be completed.
#[derive(Debug, PartialEq)]
pub(super) enum Problem {
    /// The server says so itself; the whole chunk.
    Reported(Value),
    /// It is not what the format describes.
    Unreadable,
}

/// An answer so far.
pub(super) struct Assembly<'a> {
    previews: Previews<'a>,
    text: String,
    text_preview: Option<usize>,
    refusal: String,
    calls: Vec<Call>,
    finish_reason: Option<String>,
    usage: Option<WireUsage>,
}

/// A tool call so far.
#[derive(Default)]
struct Call {
    index: Option<u64>,
    id: String,
    name: String,
    arguments: String,
}

#[derive(Deserialize)]
struct Chunk {
    choices: Option<Vec<Choice>>,
    usage: Option<WireUsage>,
    error: Option<Value>,
}

#[derive(Deserialize)]
struct Choice {
    #[serde(alias = "message")]
    delta: Option<Delta>,
    finish_reason: Option<String>,
}

#[derive(Deserialize)]
struct Delta {
    content: Option<Value>,
    refusal: Option<String>,
    tool_calls: Option<Vec<CallDelta>>,
}

#[derive(Deserialize)]
struct CallDelta {
    index: Option<u64>,
    id: Option<String>,
    function: Option<FunctionDelta>,
}

#[derive(Default, Deserialize)]
struct FunctionDelta {
    name: Option<String>,
    arguments: Option<Value>,
}

#[derive(Clone, Copy, Deserialize)]
struct WireUsage {
    #[serde(default)]
    prompt_tokens: u64,
    #[serde(default)]
    completion_tokens: u64,
    prompt_tokens_details: Option<PromptTokensDetails>,
}

#[derive(Clone, Copy, Deserialize)]
struct PromptTokensDetails {
    cached_tokens: Option<u64>,
}

impl<'a> Assembly<'a> {
    pub(super) fn new(previews: Previews<'a>) -> Self {
        Self {
            previews,
            text: String::new(),
            text_preview: None,
            refusal: String::new(),
            calls: Vec::new(),
            finish_reason: None,
            usage: None,
        }
    }

    /// Takes one event's data in; says whether it was `[DONE]`.
    pub(super) fn take(&mut self, data: &str) -> Result<bool, Problem> {
        if data.trim() == "[DONE]" {
            return Ok(true);
        }
        let chunk: Chunk = match serde_json::from_str(data) {
            Ok(chunk) => chunk,
            Err(_) => return Err(Problem::Unreadable),
        };
        if chunk.error.is_some_and(|error| !error.is_null()) {
            return Err(Problem::Reported(serde_json::from_str(data).map_err(|_| Problem::Unreadable)?));
        }
        self.usage = chunk.usage.or(self.usage);
        if let Some(choice) = chunk.choices.unwrap_or_default().into_iter().next() {
            if let Some(delta) = choice.delta {
                self.extend(delta);
            }
            self.finish_reason = choice.finish_reason.filter(|reason| !reason.is_empty()).or(self.finish_reason.take());
        }
        Ok(false)
    }

    /// Whether the model has said all: nothing but usage can follow. `[DONE]` alone does not say so: with it
    /// llama-cpp-python ends an answer that it gave up for another request.
    pub(super) fn has_stopped(&self) -> bool {
        self.finish_reason.is_some()
    }

    /// Whether the server has said what was used.
    pub(super) fn counts_usage(&self) -> bool {
        self.usage.is_some()
    }

    /// What the server says it used.
    pub(super) fn usage(&self) -> ModelUsage {
        self.usage.map(ModelUsage::from).unwrap_or_default()
    }

    /// The answer; `request_bytes` is what the usage is estimated from where the server tells none.
    pub(super) fn finish(self, request_bytes: usize) -> ModelAnswer {
        let usage = match self.usage {
            Some(usage) => usage.into(),
            None => self.estimate(request_bytes),
        };
        let out_of_tokens = self.finish_reason.as_deref() == Some("length");
        let is_filtered = self.finish_reason.as_deref() == Some("content_filter");
        let stop = if is_filtered || !self.refusal.is_empty() {
            let explanation = (!self.refusal.is_empty()).then_some(self.refusal);
            ModelStop::Refusal(StopDetails::Refusal { category: None, explanation })
        } else {
            ModelStop::EndTurn
        };
        let mut blocks = Vec::with_capacity(self.calls.len() + 1);
        if !self.text.is_empty() {
            blocks.push(AnswerBlock::Text(self.text));
        }
        for call in self.calls.into_iter().filter(|call| !call.name.is_empty()) {
            blocks.push(tool_input::tool_use(call.name, &call.arguments, out_of_tokens));
        }
        ModelAnswer { blocks, stop, usage }
    }

    fn extend(&mut self, delta: Delta) {
        for text in delta.content.iter().flat_map(texts) {
            self.text.push_str(text);
            self.previews.text(&mut self.text_preview, text);
        }
        self.refusal.push_str(delta.refusal.as_deref().unwrap_or_default());
        for call in delta.tool_calls.unwrap_or_default() {
            self.extend_call(call);
        }
    }

    fn extend_call(&mut self, delta: CallDelta) {
        let id = delta.id.unwrap_or_default();
        let function = delta.function.unwrap_or_default();
        let name = function.name.unwrap_or_default();
        let arguments = match function.arguments {
            Some(Value::String(text)) => text,
            None | Some(Value::Null) => String::new(),
            Some(value) => value.to_string(),
        };
        let known = match delta.index {
            Some(_) => self.calls.iter().rposition(|call| call.index == delta.index),
            None => self.calls.len().checked_sub(1),
        };
        let continued = known.filter(|&at| self.calls[at].goes_on_with(&id, &name, &arguments));
        let at = continued.unwrap_or_else(|| {
            self.calls.push(Call { index: delta.index, ..Call::default() });
            self.calls.len() - 1
        });
        let call = &mut self.calls[at];
        if call.id.is_empty() {
            call.id = id;
        }
        if call.name.is_empty() {
            call.name = name;
        }
        call.arguments.push_str(&arguments);
    }

    fn estimate(&self, request_bytes: usize) -> ModelUsage {
        let calls = self.calls.iter().map(|call| call.name.len() + call.arguments.len()).sum::<usize>();
        let answer_bytes = self.text.len() + self.refusal.len() + calls;
        ModelUsage {
            input_tokens: request_bytes.div_ceil(BYTES_PER_TOKEN) as u64,
            output_tokens: answer_bytes.div_ceil(BYTES_PER_TOKEN) as u64,
            ..ModelUsage::default()
        }
    }
}

impl Call {
    /// Whether a delta at the same place is more of this call. Another id begins another call; so does a name with
    /// arguments after an input that is already whole.
    fn goes_on_with(&self, id: &str, name: &str, arguments: &str) -> bool {
        let has_other_id = !id.is_empty() && !self.id.is_empty() && id != self.id;
        let begins_again = !name.is_empty() && !arguments.trim().is_empty() && self.is_whole();
        !has_other_id && !begins_again
    }

    fn is_whole(&self) -> bool {
        serde_json::from_str::<Map<String, Value>>(&self.arguments).is_ok()
    }
}

/// The texts of `content`: a string, or a list of parts.
fn texts(content: &Value) -> impl Iterator<Item = &str> {
    let parts = content.as_array().map(Vec::as_slice).unwrap_or_default();
    content.as_str().into_iter().chain(parts.iter().filter_map(|part| part.get("text")?.as_str()))
}

impl From<WireUsage> for ModelUsage {
    /// Their input counts what came from the cache, ours does not.
    fn from(usage: WireUsage) -> Self {
        let cached = usage.prompt_tokens_details.and_then(|details| details.cached_tokens).unwrap_or_default();
        let cached = cached.min(usage.prompt_tokens);
        Self {
            input_tokens: usage.prompt_tokens - cached,
            output_tokens: usage.completion_tokens,
            cache_read_input_tokens: cached,
            cache_creation_input_tokens: 0,
        }
    }
}

#[cfg(test)]
#[path = "stream_tests.rs"]
mod tests;

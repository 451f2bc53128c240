//! The scripted model: offline, deterministic, and driven by what the user writes.
//!
//! It is what a new installation answers with, and what tests and benchmarks drive. To a plain message it says what
//! it is. Lines of a message that start with `!` are directives; all directives up to a line `---` make one response,
//! with its tool calls in parallel, and the next part is the response after their results:
//!
//! ```text
//! !bash echo hi              calls bash; everything after the word is the command
//! !read notes.txt            calls read
//! !write notes.txt a\nb      calls write; \n, \t and \\ are escapes
//! !edit notes.txt|||a|||b    calls edit, with the same escapes
//! !glob **/*.rs              calls glob
//! !grep pattern              calls grep
//! !tool NAME {"json": 1}     calls any tool; broken JSON becomes a broken call
//! !say some words            answers with text
//! !stream 20                 answers with that many words: `word1 word2 ...`
//! !show system               answers with what the model was given: system, tools, model or messages
//! !think some words          thinks first
//! !wait 500                  waits so many milliseconds before it answers
//! !pace 50                   waits so many milliseconds before each word
//! !fail overloaded 2         fails so many times (always, without a number): overloaded, rate_limited, invalid,
//!                            billing, or cut, which breaks off once the text is streamed
//! !refuse cyber              refuses, with an optional category
//! ```
//!
//! Other lines are ignored once there is a directive. A response without a call ends the turn, as with any model.
//! After the last part the model quotes what the tools returned since the message, one line each, as
//! `tool said: ...` or `tool said (error): ...`. Where a message has several texts, the last one counts: the others
//! are older, from turns that were interrupted.
//!
//! Nothing is remembered but how often a `!fail` has failed: the place in the script is the number of answers since
//! the message, so a session goes on wherever it was, on any replica. A token is a word. [`script`] reads the
//! directives; here they are performed.

mod script;

use std::collections::HashMap;
use std::time::Duration;

use engine::port::model::{AssistantBlock, Message, ModelAnswer, ModelError, ModelRequest, PreviewSink, UserBlock};
use parking_lot::Mutex;
use serde_json::{Value, json};
use session::command::{AnswerBlock, ModelStop};
use session::content::ContentBlock;
use session::event::{ModelUsage, SessionErrorKind, StopDetails};
use session::id::SessionId;
use tokio::time::sleep;

use super::http::failure::Failure;
use super::preview::Previews;
use script::{Directive, Fail, Step};

/// The model id that needs no settings.
pub(super) const ID: &str = "demo";
/// What the model pretends to hold.
pub(super) const CONTEXT_WINDOW_TOKENS: u64 = 200_000;
/// How much of a tool's result is quoted, in characters.
const QUOTED_CHARS_MAX: usize = 2_000;
/// Failures that are counted at once; beyond, all counts start again.
const COUNTED_FAILURES_MAX: usize = 10_000;

/// The scripted model.
#[derive(Debug, Default)]
pub struct Demo {
    /// How often a part of a session's script has failed, by session and number of messages before it.
    failures: Mutex<HashMap<(SessionId, usize), u32>>,
}

impl Demo {
    /// Performs the next part of the script in the last user message.
    pub async fn answer(&self, request: &ModelRequest, previews: &mut dyn PreviewSink) -> Result<ModelAnswer, Failure> {
        let usage = ModelUsage { input_tokens: input_words(request), ..ModelUsage::default() };
        let mut answer = Answer { previews: Previews::new(previews), blocks: Vec::new(), pace: None };
        let script = Script::of(request);
        let Some(step) = script.steps.get(script.answered) else {
            let text = if script.steps.is_empty() { greeting(request, script.text) } else { script.closing() };
            answer.say(&text).await;
            return Ok(answer.complete(ModelStop::EndTurn, usage));
        };
        if let Some(wait) = step.wait() {
            sleep(wait).await;
        }
        answer.pace = step.pace();
        let failing = step.fail().filter(|(_, times)| self.fails_again(request, *times)).map(|(fail, _)| fail);
        if let Some(fail) = failing.filter(|fail| *fail != Fail::Cut) {
            return Err(Failure::before_answer(error(fail)));
        }
        let mut stop = ModelStop::EndTurn;
        for directive in &step.directives {
            match directive {
                Directive::Say(text) => answer.say(text).await,
                Directive::Stream(words) => answer.stream(*words).await,
                Directive::Show(what) => answer.say(&show(request, what)).await,
                Directive::Unknown(line) => answer.say(&script::unknown(line)).await,
                Directive::Think(text) => answer.think(text),
                Directive::Call { name, input, problem } => answer.blocks.push(AnswerBlock::ToolUse {
                    name: name.clone(),
                    input: input.clone(),
                    problem: problem.clone(),
                }),
                Directive::Refuse(category) => {
                    stop = ModelStop::Refusal(StopDetails::Refusal {
                        category: category.clone(),
                        explanation: Some("The script says so.".to_owned()),
                    });
                }
                Directive::Wait(_) | Directive::Pace(_) | Directive::Fail(..) => {}
            }
        }
        if failing == Some(Fail::Cut) {
            return Err(Failure::in_answer(error(Fail::Cut)).with_usage(usage));
        }
        Ok(answer.complete(stop, usage))
    }

    /// Counts an attempt at a part that fails `times` times; says whether this one does.
    fn fails_again(&self, request: &ModelRequest, times: Option<u32>) -> bool {
        let Some(times) = times else { return true };
        let part = (request.session_id.clone(), request.messages.len());
        let mut failures = self.failures.lock();
        if failures.len() >= COUNTED_FAILURES_MAX {
            failures.clear();
        }
        let failed = failures.entry(part.clone()).or_insert(0);
        *failed += 1;
        let fails = *failed <= times;
        if !fails {
            failures.remove(&part);
        }
        fails
    }
}

/// The last user message's script and what has happened since.
struct Script<'a> {
    text: &'a str,
    steps: Vec<Step>,
    /// How many parts were answered.
    answered: usize,
    since: &'a [Message],
}

impl<'a> Script<'a> {
    fn of(request: &'a ModelRequest) -> Self {
        let at = request.messages.iter().rposition(|message| texts(message).next().is_some());
        let (text, since) = match at {
            Some(at) => (texts(&request.messages[at]).last().unwrap_or_default(), &request.messages[at + 1..]),
            None => ("", &[][..]),
        };
        let answered = since.iter().filter(|message| matches!(message, Message::Assistant(_))).count();
        Self { text, steps: script::parse(text), answered, since }
    }

    /// What the tools returned, as the model saw it.
    fn closing(&self) -> String {
        let results = self.since.iter().flat_map(|message| match message {
            Message::User(blocks) => blocks.as_slice(),
            Message::Assistant(_) => &[],
        });
        let lines: Vec<_> = results
            .filter_map(|block| match block {
                UserBlock::ToolResult { content, is_error, .. } => {
                    let said = if *is_error { "tool said (error)" } else { "tool said" };
                    Some(format!("{said}: {}", quote(content)))
                }
                UserBlock::Content(_) => None,
            })
            .collect();
        if lines.is_empty() { "The script is over.".to_owned() } else { lines.join("\n") }
    }
}

/// An answer that is being given.
struct Answer<'a> {
    previews: Previews<'a>,
    blocks: Vec<AnswerBlock>,
    pace: Option<Duration>,
}

impl Answer<'_> {
    /// Streams a text block word by word.
    async fn say(&mut self, text: &str) {
        let mut preview = None;
        for word in text.split_inclusive(char::is_whitespace) {
            pause(self.pace).await;
            self.previews.text(&mut preview, word);
        }
        self.keep(text.to_owned());
    }

    /// As [`Answer::say`], with words that are made up on the way.
    async fn stream(&mut self, words: u32) {
        let mut preview = None;
        let mut text = String::new();
        for number in 1..=words {
            let word = if number == words { format!("word{number}") } else { format!("word{number} ") };
            pause(self.pace).await;
            self.previews.text(&mut preview, &word);
            text.push_str(&word);
        }
        self.keep(text);
    }

    fn keep(&mut self, text: String) {
        if !text.is_empty() {
            self.blocks.push(AnswerBlock::Text(text));
        }
    }

    fn think(&mut self, text: &str) {
        self.previews.thinking();
        self.blocks.push(AnswerBlock::Thinking(json!({"type": "demo_thinking", "text": text})));
    }

    fn complete(self, stop: ModelStop, mut usage: ModelUsage) -> ModelAnswer {
        usage.output_tokens = self
            .blocks
            .iter()
            .map(|block| match block {
                AnswerBlock::Text(text) => words(text),
                AnswerBlock::Thinking(value) => words(value["text"].as_str().unwrap_or_default()),
                AnswerBlock::ToolUse { input, .. } => 1 + input.values().map(value_words).sum::<u64>(),
            })
            .sum();
        ModelAnswer { blocks: self.blocks, stop, usage }
    }
}

/// Between two words: others may run.
async fn pause(pace: Option<Duration>) {
    match pace {
        Some(pace) => sleep(pace).await,
        None => tokio::task::yield_now().await,
    }
}

/// The texts that the user wrote in a message.
fn texts(message: &Message) -> impl Iterator<Item = &str> {
    let blocks = match message {
        Message::User(blocks) => blocks.as_slice(),
        Message::Assistant(_) => &[],
    };
    blocks.iter().filter_map(|block| match block {
        UserBlock::Content(content) => content.as_text(),
        UserBlock::ToolResult { .. } => None,
    })
}

fn greeting(request: &ModelRequest, text: &str) -> String {
    let seen = request.messages.iter().flat_map(texts).count();
    let heard: String = text.chars().take(200).collect();
    let plural = if seen == 1 { "" } else { "s" };
    format!(
        "You said: {heard}\n\nThis is the scripted demo model, which needs no network; it has seen {seen} message{plural} \
         in this session. Write `!bash echo hi` on a line of its own to have it call a tool. For a real model set \
         ANTHROPIC_API_KEY, or OPENAI_BASE_URL for any OpenAI-compatible server, and give the agent that model's id."
    )
}

fn show(request: &ModelRequest, what: &str) -> String {
    match what {
        "system" => request.system.clone().unwrap_or_else(|| "(no system prompt)".to_owned()),
        "tools" => request.tools.iter().map(|tool| tool.name.as_str()).collect::<Vec<_>>().join(" "),
        "model" => request.model.id.clone(),
        "messages" => request.messages.len().to_string(),
        _ => format!("There is no `!show {what}`: say system, tools, model or messages."),
    }
}

/// A tool's result in one piece, cut short.
fn quote(content: &[ContentBlock]) -> String {
    let pieces = content.iter().map(|block| match block {
        ContentBlock::Text { text } => text.as_str(),
        ContentBlock::Image { .. } => "(an image)",
        ContentBlock::Document { .. } => "(a document)",
        ContentBlock::SearchResult { title, .. } => title,
    });
    let text = pieces.collect::<Vec<_>>().join(" ");
    match text.char_indices().nth(QUOTED_CHARS_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

fn error(fail: Fail) -> ModelError {
    let (kind, retryable) = match fail {
        Fail::Overloaded => (SessionErrorKind::ModelOverloaded, true),
        Fail::RateLimited => (SessionErrorKind::ModelRateLimited, true),
        Fail::Cut => (SessionErrorKind::ModelRequestFailed, true),
        Fail::Invalid => (SessionErrorKind::ModelRequestFailed, false),
        Fail::Billing => (SessionErrorKind::Billing, false),
    };
    let message = format!("the demo model fails as scripted: {}", fail.name());
    let is_free = fail != Fail::Cut;
    ModelError { kind, message, retryable, retry_after_ms: None, usage: ModelUsage::default(), is_free }
}

fn words(text: &str) -> u64 {
    text.split_whitespace().count() as u64
}

fn value_words(value: &Value) -> u64 {
    value.as_str().map_or(1, words)
}

/// Everything that a real model would have to read.
fn input_words(request: &ModelRequest) -> u64 {
    let system = request.system.as_deref().map_or(0, words);
    let tools: u64 = request.tools.iter().map(|tool| 1 + words(&tool.description)).sum();
    let content = |blocks: &[ContentBlock]| blocks.iter().map(|block| block.as_text().map_or(1, words)).sum::<u64>();
    let messages: u64 = request
        .messages
        .iter()
        .map(|message| match message {
            Message::User(blocks) => blocks
                .iter()
                .map(|block| match block {
                    UserBlock::Content(block) => content(std::slice::from_ref(block)),
                    UserBlock::ToolResult { content: blocks, .. } => content(blocks),
                })
                .sum::<u64>(),
            Message::Assistant(blocks) => blocks
                .iter()
                .map(|block| match block {
                    AssistantBlock::Thinking(value) => words(value["text"].as_str().unwrap_or_default()),
                    AssistantBlock::Text(text) => words(text),
                    AssistantBlock::ToolUse { input, .. } => 1 + input.values().map(value_words).sum::<u64>(),
                })
                .sum(),
        })
        .sum();
    system + tools + messages
}

#[cfg(test)]
#[path = "demo/demo_tests.rs"]
mod tests;

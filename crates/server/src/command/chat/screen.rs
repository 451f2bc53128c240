//! What a conversation looks like in a terminal.
//!
//! Text appears as it is previewed; the final event prints only what no preview showed. Whatever a model or a tool
//! says passes [`printable`], so that it cannot move the cursor or recolour the screen.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;

use serde_json::Value;

/// Characters of a tool's input or result that are shown.
const EXCERPT_MAX: usize = 600;

/// The terminal, and what it already shows.
pub(super) struct Screen {
    colour: bool,
    /// Bytes of text shown so far, by the message they belong to.
    previewed: BTreeMap<String, usize>,
    seen: BTreeSet<String>,
    /// Calls that wait for a yes or no.
    questions: BTreeSet<String>,
    /// Whether the cursor stands at the start of a line.
    at_line_start: bool,
}

impl Screen {
    pub(super) fn new(colour: bool) -> Self {
        let (previewed, seen, questions) = Default::default();
        Self { colour, previewed, seen, questions, at_line_start: true }
    }

    /// Asks the user for a line.
    pub(super) fn prompt(&mut self, text: &str) {
        self.start_line();
        self.write(text);
        self.at_line_start = true;
    }

    /// Says something about the conversation.
    pub(super) fn note(&mut self, text: &str) {
        self.start_line();
        let text = if self.colour { format!("\x1b[2m{text}\x1b[0m\n") } else { format!("{text}\n") };
        self.write(&text);
    }

    /// Whether the call waits for a yes or no, and not for a result.
    pub(super) fn is_open_question(&self, call: &str) -> bool {
        self.questions.contains(call)
    }

    /// The call was allowed or denied.
    pub(super) fn answered(&mut self, call: &str) {
        self.questions.remove(call);
    }

    /// Shows an event; one that was shown before is passed over.
    pub(super) fn show(&mut self, event: &Value) {
        let kind = event["type"].as_str().unwrap_or_default();
        if kind == "event_delta" {
            return self.preview(event);
        }
        let id = event["id"].as_str().unwrap_or_default();
        if !id.is_empty() && !self.seen.insert(id.to_owned()) {
            return;
        }
        match kind {
            "agent.message" => self.message(id, event),
            "agent.tool_use" | "agent.custom_tool_use" => self.call(id, event),
            "agent.tool_result" | "user.tool_result" => self.result(event),
            "session.error" => {
                let error = event.pointer("/error/message").and_then(Value::as_str).unwrap_or("unknown");
                self.note(&format!("error: {}", printable(error)));
            }
            "session.status_rescheduled" => self.note("trying again in a moment"),
            "agent.thread_context_compacted" => self.note("the conversation was summarised"),
            "session.status_terminated" | "session.deleted" => self.note("the session is over"),
            _ => {}
        }
    }

    fn preview(&mut self, event: &Value) {
        let (Some(id), Some(text)) =
            (event["event_id"].as_str(), event.pointer("/delta/content/text").and_then(Value::as_str))
        else {
            return;
        };
        if self.seen.contains(id) {
            return;
        }
        *self.previewed.entry(id.to_owned()).or_default() += text.len();
        self.write(&printable(text));
    }

    /// The rest of a message, after its previews.
    fn message(&mut self, id: &str, event: &Value) {
        let blocks = event["content"].as_array().into_iter().flatten();
        let text: String = blocks.filter_map(|block| block["text"].as_str()).collect();
        let shown = self.previewed.remove(id).unwrap_or(0);
        if let Some(rest) = text.get(shown..) {
            self.write(&printable(rest));
        }
        self.start_line();
    }

    fn call(&mut self, id: &str, event: &Value) {
        let name = event["name"].as_str().unwrap_or("?");
        let input = match &event["input"] {
            Value::Object(input) if name == "bash" => {
                input.get("command").and_then(Value::as_str).unwrap_or("").to_owned()
            }
            input => input.to_string(),
        };
        if event["evaluated_permission"] == "ask" {
            self.questions.insert(id.to_owned());
        }
        self.note(&format!("[{}] {}", printable(name), excerpt(&input)));
    }

    fn result(&mut self, event: &Value) {
        let blocks = event["content"].as_array().into_iter().flatten();
        let text: Vec<_> = blocks.filter_map(|block| block["text"].as_str()).collect();
        let mark = if event["is_error"] == true { "failed: " } else { "" };
        self.note(&format!("{mark}{}", excerpt(&text.join("\n"))));
    }

    fn start_line(&mut self) {
        if !self.at_line_start {
            self.write("\n");
        }
    }

    fn write(&mut self, text: &str) {
        if let Some(last) = text.chars().last() {
            self.at_line_start = last == '\n';
        }
        // A terminal that is gone ends the process by its signal.
        let mut out = std::io::stdout();
        let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    }
}

/// The beginning of `text`.
fn excerpt(text: &str) -> String {
    let mut short: String = text.trim_end().chars().take(EXCERPT_MAX).collect();
    if text.trim_end().chars().count() > EXCERPT_MAX {
        short.push_str(" […]");
    }
    printable(&short)
}

/// `text` without the control characters that a terminal obeys, line ends and tabs apart.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && !matches!(c, '\n' | '\t') { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_a_tool_says_cannot_command_the_terminal() {
        assert_eq!(printable("a\x1b[2Jb\tc\n\u{9b}31m"), "a\u{fffd}[2Jb\tc\n\u{fffd}31m");
        assert_eq!(excerpt(&"x".repeat(EXCERPT_MAX + 1)), format!("{} […]", "x".repeat(EXCERPT_MAX)));
    }

    #[test]
    fn only_calls_that_ask_are_questions() {
        let mut screen = Screen::new(false);
        screen.show(&json!({"type": "agent.tool_use", "id": "a", "name": "bash", "evaluated_permission": "ask"}));
        screen.show(&json!({"type": "agent.custom_tool_use", "id": "b", "name": "mine"}));
        assert!(screen.is_open_question("a") && !screen.is_open_question("b"));
        screen.answered("a");
        assert!(!screen.is_open_question("a"));
    }
}

//! Which tool calls of a session the worker owes, folded from the session's events. Pure.
//!
//! Events may come twice (a list after a reconnect, the stream, a queued event and its processed form) and results
//! may come before their calls; the fold gives the same answer.

use serde_json::Value;
use session::toolset;
use std::collections::BTreeMap;

use super::wire::{Event, MODEL_REQUEST_START};

/// A call that this worker runs.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Call {
    pub tool_use_id: String,
    pub tool: String,
    pub input: Value,
}

impl Call {
    /// Whether the session's files may be others afterwards.
    pub(crate) fn changes_files(&self) -> bool {
        !toolset::is_read_only(&self.tool)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Waits for the user's confirmation.
    Held,
    /// May run now.
    Free,
    /// Answered, denied or interrupted: nothing is owed.
    Closed,
}

#[derive(Debug, Default)]
pub(crate) struct Calls {
    /// The calls of the current model response, in the order of the log.
    calls: Vec<Call>,
    /// By id of the call, also of calls not seen yet.
    states: BTreeMap<String, State>,
    /// Interrupts that were applied, because a queued one comes again when it is processed.
    interrupts: Vec<String>,
}

impl Calls {
    pub(crate) fn apply(&mut self, event: Event) {
        match event.kind.as_str() {
            "agent.tool_use" => self.called(event),
            "user.tool_confirmation" => {
                let is_allowed = event.result.as_ref().and_then(Value::as_str) == Some("allow");
                self.settle(event.tool_use_id, if is_allowed { State::Free } else { State::Closed });
            }
            "agent.tool_result" | "user.tool_result" => self.settle(event.tool_use_id, State::Closed),
            "user.interrupt" if !self.interrupts.contains(&event.id) => {
                self.interrupts.push(event.id);
                self.states.values_mut().for_each(|state| *state = State::Closed);
            }
            MODEL_REQUEST_START => *self = Self::default(),
            _ => {}
        }
    }

    /// The first call that may run.
    pub(crate) fn next(&self) -> Option<&Call> {
        self.calls.iter().find(|call| self.is_open(&call.tool_use_id))
    }

    /// Whether a call may run, or go on running.
    pub(crate) fn is_open(&self, tool_use_id: &str) -> bool {
        self.states.get(tool_use_id) == Some(&State::Free)
    }

    /// The worker has dealt with a call; its answer will come by with the events, or somebody else gave it.
    pub(crate) fn close(&mut self, tool_use_id: String) {
        self.settle(Some(tool_use_id), State::Closed);
    }

    fn called(&mut self, event: Event) {
        let Some(tool) = event.name.filter(|name| toolset::NAMES.contains(&name.as_str())) else {
            return;
        };
        if self.calls.iter().any(|call| call.tool_use_id == event.id) {
            return;
        }
        let state = match event.evaluated_permission.as_deref() {
            Some("allow") => State::Free,
            Some("deny") => State::Closed,
            // A value that is not known holds the call, as asking does.
            _ => State::Held,
        };
        let known = self.states.entry(event.id.clone()).or_insert(state);
        if state == State::Closed {
            *known = State::Closed;
        }
        let input = event.input.unwrap_or(Value::Null);
        self.calls.push(Call { tool_use_id: event.id, tool, input });
    }

    /// What is closed stays closed.
    fn settle(&mut self, tool_use_id: Option<String>, to: State) {
        let Some(tool_use_id) = tool_use_id else { return };
        let state = self.states.entry(tool_use_id).or_insert(to);
        if *state != State::Closed {
            *state = to;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn events(text: &str) -> Vec<Event> {
        text.split_whitespace()
            .map(|word| {
                let (kind, id) = word.split_once(':').unwrap();
                let event = match kind {
                    "use" | "ask" | "deny" | "odd" => {
                        let permission = if kind == "use" { "allow" } else { kind };
                        json!({"type": "agent.tool_use", "id": id, "name": "bash", "input": {},
                               "evaluated_permission": permission})
                    }
                    "foreign" => json!({"type": "agent.tool_use", "id": id, "name": "web_fetch",
                                        "evaluated_permission": "allow"}),
                    "yes" => json!({"type": "user.tool_confirmation", "tool_use_id": id, "result": "allow"}),
                    "no" => json!({"type": "user.tool_confirmation", "tool_use_id": id, "result": "deny"}),
                    "result" => json!({"type": "agent.tool_result", "tool_use_id": id}),
                    "posted" => json!({"type": "user.tool_result", "tool_use_id": id}),
                    "stop" => json!({"type": "user.interrupt", "id": id}),
                    "model" => json!({"type": MODEL_REQUEST_START, "id": id}),
                    "other" => json!({"type": "agent.message", "id": id}),
                    _ => panic!("{kind}"),
                };
                serde_json::from_value(event).unwrap()
            })
            .collect()
    }

    fn pending(text: &str) -> Vec<String> {
        let mut calls = Calls::default();
        events(text).into_iter().for_each(|event| calls.apply(event));
        let mut pending = Vec::new();
        while let Some(call) = calls.next() {
            let id = call.tool_use_id.clone();
            pending.push(id.clone());
            calls.close(id);
        }
        pending
    }

    #[test]
    fn pending_calls() {
        for (history, expected) in [
            ("", ""),
            ("use:a use:b", "a b"),
            ("use:a result:a use:b", "b"),
            ("use:a posted:a", ""),
            ("result:a use:a", ""),
            ("use:a use:a", "a"),
            ("ask:a use:b", "b"),
            ("ask:a use:b yes:a", "a b"),
            ("yes:a ask:a", "a"),
            ("ask:a no:a yes:a", ""),
            ("no:a ask:a", ""),
            ("odd:a", ""),
            ("odd:a yes:a", "a"),
            ("deny:a", ""),
            ("deny:a yes:a", ""),
            ("yes:a deny:a", ""),
            ("foreign:a", ""),
            ("use:a ask:b stop:1", ""),
            ("use:a stop:1 yes:a", ""),
            ("stop:1 use:a", "a"),
            ("use:a stop:1 use:b stop:1", "b"),
            ("use:a stop:1 use:b stop:2", ""),
            ("use:a model:1 use:b", "b"),
            ("use:a model:1", ""),
            ("use:a other:x", "a"),
        ] {
            assert_eq!(pending(history).join(" "), expected, "{history:?}");
        }
    }

    #[test]
    fn a_list_after_a_reconnect_changes_nothing() {
        for history in ["use:a use:b result:a", "ask:a yes:a use:b", "use:a stop:1 use:b"] {
            assert_eq!(pending(&format!("{history} {history}")), pending(history), "{history:?}");
        }
    }
}

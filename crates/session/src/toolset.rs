//! The built-in toolset `agent_toolset_20260401`: names, and what the server needs to know of each.
//!
//! The worker runs these tools; their descriptions and schemas are in [`definitions`], so that the server
//! that offers a tool to a model and the worker that runs it cannot disagree.

use serde_json::{Value, json};

/// The tools that run in a session's sandbox, in the order in which they are offered.
pub const NAMES: [&str; 6] = ["bash", "read", "write", "edit", "glob", "grep"];

/// Tools of the API's toolset that this server does not offer yet.
pub const NOT_OFFERED: [&str; 2] = ["web_fetch", "web_search"];

/// Whether running the tool a second time changes nothing: such a call is run again after a crash.
pub fn is_read_only(name: &str) -> bool {
    matches!(name, "read" | "glob" | "grep")
}

/// A tool as a model is told of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Definition {
    pub name: &'static str,
    pub description: &'static str,
    pub input_schema: Value,
}

/// Every tool of [`NAMES`], in that order.
pub fn definitions() -> Vec<Definition> {
    vec![
        Definition {
            name: "bash",
            description: "Runs a command in the session's shell and returns its output (stdout and stderr together). \
                The shell persists: working directory, variables and background jobs survive from call to call. \
                Standard input is empty. The sandbox has no network. Commands start in /workspace.",
            input_schema: json!({
                "type": "object",
                "properties": {
                    "command": {"type": "string", "description": "The command line to run."},
                    "restart": {"type": "boolean", "description": "Start a fresh shell instead of running a command."},
                    "timeout_ms": {"type": "integer", "description": "Milliseconds after which the command is killed; 120000 if not given."}
                }
            }),
        },
        Definition {
            name: "read",
            description: "Returns the text of a file, or an image or PDF as such. Relative paths start at /workspace.",
            input_schema: json!({
                "type": "object",
                "properties": {
                    "file_path": {"type": "string", "description": "The file to read."},
                    "view_range": {
                        "type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 2,
                        "description": "First and last line, counted from 1, both included; a last line of 0 or less means the end."
                    }
                },
                "required": ["file_path"]
            }),
        },
        Definition {
            name: "write",
            description: "Writes a file, replacing what was there and creating its folders.",
            input_schema: json!({
                "type": "object",
                "properties": {
                    "file_path": {"type": "string", "description": "The file to write."},
                    "content": {"type": "string", "description": "The whole new content."}
                },
                "required": ["file_path", "content"]
            }),
        },
        Definition {
            name: "edit",
            description: "Replaces a piece of text in a file. The old text must occur exactly once unless replace_all is true.",
            input_schema: json!({
                "type": "object",
                "properties": {
                    "file_path": {"type": "string", "description": "The file to change."},
                    "old_string": {"type": "string", "description": "The text to replace, exactly as it stands."},
                    "new_string": {"type": "string", "description": "The text to put in its place."},
                    "replace_all": {"type": "boolean", "description": "Replace every occurrence."}
                },
                "required": ["file_path", "old_string", "new_string"]
            }),
        },
        Definition {
            name: "glob",
            description: "Lists files whose path matches a pattern such as **/*.rs, newest first.",
            input_schema: json!({
                "type": "object",
                "properties": {
                    "pattern": {"type": "string", "description": "The pattern, relative to path."},
                    "path": {"type": "string", "description": "The folder to search; /workspace if not given."}
                },
                "required": ["pattern"]
            }),
        },
        Definition {
            name: "grep",
            description: "Searches files for a regular expression and returns matching lines as file:line:text.",
            input_schema: json!({
                "type": "object",
                "properties": {
                    "pattern": {"type": "string", "description": "The regular expression."},
                    "path": {"type": "string", "description": "The file or folder to search; /workspace if not given."}
                },
                "required": ["pattern"]
            }),
        },
    ]
}

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
            description: BASH,
            input_schema: schema(
                json!({
                    "command": {"type": "string", "description": "The command to run. Leave out only with restart."},
                    "restart": {"type": "boolean", "description": "Start a fresh shell instead of running a command."},
                    "timeout_ms": {"type": "integer", "minimum": 0, "description": "Milliseconds after which the command is killed. Default 120000."}
                }),
                &[],
            ),
        },
        Definition {
            name: "read",
            description: "Read a text file of the working directory, or of the files that the session was given in \
                /mnt/session/uploads, exactly as it is, or look at an image (png, jpg, gif, webp) or a PDF. Text files of more than 256 KiB need view_range.",
            input_schema: schema(
                json!({
                    "file_path": {"type": "string", "description": "Path of the file: relative, or below /workspace."},
                    "view_range": {
                        "type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 2,
                        "description": "First and last line to read, counted from 1. A last line of 0 or less means the end of the file."
                    }
                }),
                &["file_path"],
            ),
        },
        Definition {
            name: "write",
            description: "Write a file of the working directory, replacing what it held. Missing folders are created.",
            input_schema: schema(
                json!({
                    "file_path": {"type": "string", "description": "Path of the file: relative, or below /workspace."},
                    "content": {"type": "string", "description": "The whole new content."}
                }),
                &["file_path", "content"],
            ),
        },
        Definition {
            name: "edit",
            description: "Replace a string in a text file. old_string must match exactly, whitespace included, and \
                only once unless replace_all is set.",
            input_schema: schema(
                json!({
                    "file_path": {"type": "string", "description": "Path of the file: relative, or below /workspace."},
                    "old_string": {"type": "string", "description": "The text to replace."},
                    "new_string": {"type": "string", "description": "The text to put in its place."},
                    "replace_all": {"type": "boolean", "description": "Replace every occurrence."}
                }),
                &["file_path", "old_string", "new_string"],
            ),
        },
        Definition {
            name: "glob",
            description: "List files and folders whose path matches a pattern such as **/*.rs, newest first, 200 at most.",
            input_schema: schema(
                json!({
                    "pattern": {"type": "string", "description": "Relative pattern; ** crosses folders."},
                    "path": {"type": "string", "description": "Folder to search. Default: the working directory."}
                }),
                &["pattern"],
            ),
        },
        Definition {
            name: "grep",
            description: "Search the content of files for a regular expression; answers file:line:text. Skips .git, \
                node_modules, binary files and symbolic links.",
            input_schema: schema(
                json!({
                    "pattern": {"type": "string", "description": "Regular expression."},
                    "path": {"type": "string", "description": "File or folder to search. Default: the working directory."}
                }),
                &["pattern"],
            ),
        },
    ]
}

const BASH: &str = "Run a command in a bash shell that lasts as long as the session's sandbox: the current folder, \
    variables and background jobs are still there in the next call. It starts in the working directory, $HOME, which \
    the file tools also call /workspace; prefer relative paths, and mktemp for temporary files. Files that the session was given lie in \
    /mnt/session/uploads and cannot be changed; what is left in /mnt/session/outputs goes to the user. Standard input is \
    empty. Standard output and error come back together, the last 100 KiB of them; a non-zero exit status is an error. \
    The network is reached over HTTP and HTTPS through the proxy that http_proxy and https_proxy name, as far as the \
    session's environment allows; there is no other network.";

fn schema(properties: Value, required: &[&str]) -> Value {
    json!({"type": "object", "properties": properties, "required": required, "additionalProperties": false})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_tool_is_defined_once_and_requires_only_what_it_has() {
        let all = definitions();
        assert_eq!(all.iter().map(|tool| tool.name).collect::<Vec<_>>(), NAMES);
        for tool in all {
            let properties = tool.input_schema["properties"].as_object().unwrap();
            for required in tool.input_schema["required"].as_array().unwrap() {
                assert!(properties.contains_key(required.as_str().unwrap()), "{}", tool.name);
            }
        }
    }
}

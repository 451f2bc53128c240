//! Runs the five file tools in the helper process, which holds the workspace and no other right.

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::output::printable;
use super::workspace::{Inside, PathError, Workspace};
use super::{edit, find, read};
use crate::sandbox::protocol::ToolOutcome;

/// A call that failed, as the text that the model reads.
#[derive(Debug, thiserror::Error)]
#[error("{tool}: {text}")]
pub(crate) struct ToolError {
    tool: &'static str,
    text: String,
}

impl ToolError {
    pub(crate) fn new(tool: &'static str, text: impl Into<String>) -> Self {
        Self { tool, text: text.into() }
    }

    /// An error of the system about the path that the model named.
    pub(crate) fn path(tool: &'static str, requested: &str, error: PathError) -> Self {
        match error {
            PathError::Outside => {
                Self::new(tool, format!("path {requested:?} is outside the session's working directory"))
            }
            PathError::System(_) => Self::new(tool, format!("{requested}: {error}")),
        }
    }

    pub(crate) fn resolve(tool: &'static str, workspace: &Workspace, requested: &str) -> Result<Inside, Self> {
        workspace.resolve(requested).map_err(|error| Self::path(tool, requested, error))
    }

    pub(crate) fn parse<T: DeserializeOwned>(tool: &'static str, input: Value) -> Result<T, Self> {
        serde_json::from_value(input).map_err(|error| Self::new(tool, format!("invalid input: {error}")))
    }
}

/// Runs one call; an unknown tool is an error for the model, too.
pub(crate) fn run(workspace: &Workspace, tool: &str, input: Value) -> ToolOutcome {
    let result = match tool {
        "read" => read::run(workspace, input),
        "write" => edit::write(workspace, input),
        "edit" => edit::edit(workspace, input),
        "glob" => find::glob(workspace, input),
        "grep" => find::grep(workspace, input),
        other => return ToolOutcome::error(format!("{other}: no such tool")),
    };
    // A text about a path quotes what the model wrote.
    result.unwrap_or_else(|error| ToolOutcome::error(printable(&error.to_string())))
}

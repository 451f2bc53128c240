//! The `write` and `edit` tools.

use rustix::fs::{Mode, OFlags};
use serde::Deserialize;
use std::fs::File;
use std::io::Write;

use super::files::ToolError;
use super::output::printable;
use super::read::{TEXT_BYTES_MAX, open_regular, read_at_most};
use super::workspace::{Inside, PathError, Workspace};
use crate::sandbox::protocol::ToolOutcome;

/// What an edit may make of a file.
const RESULT_BYTES_MAX: usize = 16 * 1024 * 1024;

#[derive(Deserialize)]
struct WriteInput {
    file_path: String,
    content: String,
}

pub(crate) fn write(workspace: &Workspace, input: serde_json::Value) -> Result<ToolOutcome, ToolError> {
    let WriteInput { file_path, content } = ToolError::parse("write", input)?;
    let path = ToolError::resolve("write", workspace, &file_path)?;
    workspace.create_parents(&path).map_err(|error| ToolError::path("write", &file_path, error))?;
    replace("write", workspace, &path, &file_path, &content)?;
    Ok(ToolOutcome::text(printable(&format!("wrote {} bytes to {file_path}", content.len()))))
}

#[derive(Deserialize)]
struct EditInput {
    file_path: String,
    old_string: String,
    new_string: String,
    #[serde(default)]
    replace_all: Option<bool>,
}

pub(crate) fn edit(workspace: &Workspace, input: serde_json::Value) -> Result<ToolOutcome, ToolError> {
    let EditInput { file_path, old_string, new_string, replace_all } = ToolError::parse("edit", input)?;
    let path = ToolError::resolve("edit", workspace, &file_path)?;
    let (file, size) = open_regular("edit", workspace, &path, &file_path)?;
    if size > TEXT_BYTES_MAX {
        return Err(ToolError::new(
            "edit",
            format!(
                "{file_path} is {size} bytes, exceeds {TEXT_BYTES_MAX}-byte limit. The edit tool loads the whole file \
             and cannot modify a file this large."
            ),
        ));
    }
    let text = String::from_utf8(read_at_most("edit", file, TEXT_BYTES_MAX, &file_path)?)
        .map_err(|_| ToolError::new("edit", format!("{file_path}: not valid UTF-8 text (cannot edit binary files)")))?;
    if old_string.is_empty() {
        return Err(ToolError::new("edit", "old_string must not be empty"));
    }
    let count = text.matches(&old_string).count();
    let replace_all = replace_all.unwrap_or(false);
    if count == 0 {
        return Err(ToolError::new("edit", format!("old_string not found in {file_path}")));
    }
    if count > 1 && !replace_all {
        return Err(ToolError::new(
            "edit",
            format!("old_string appears {count} times in {file_path} (must be unique)"),
        ));
    }
    // Counted before it is made: a short file and a long replacement can multiply to more than there is memory.
    let size = text.len() - count * old_string.len() + count.saturating_mul(new_string.len());
    if size > RESULT_BYTES_MAX {
        return Err(ToolError::new(
            "edit",
            format!("the result would be {size} bytes, exceeds {RESULT_BYTES_MAX}-byte limit"),
        ));
    }
    replace("edit", workspace, &path, &file_path, &text.replace(&old_string, &new_string))?;
    Ok(ToolOutcome::text(printable(&format!("edited {file_path} ({count} replacement(s))"))))
}

/// Puts `content` in place of what the file held. The old end is cut off last, so that a call killed in the
/// middle leaves no empty file behind.
fn replace(
    tool: &'static str,
    workspace: &Workspace,
    path: &Inside,
    requested: &str,
    content: &str,
) -> Result<(), ToolError> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = match workspace.open(path, flags, Mode::from_raw_mode(0o644)) {
        Ok(file) => File::from(file),
        // A pipe that nobody reads, or a socket.
        Err(PathError::System(rustix::io::Errno::NXIO)) => {
            return Err(ToolError::new(tool, format!("{requested}: not a regular file")));
        }
        Err(error) => return Err(ToolError::path(tool, requested, error)),
    };
    let result = file.metadata().and_then(|metadata| {
        if !metadata.is_file() {
            return Ok(false);
        }
        (&file).write_all(content.as_bytes())?;
        file.set_len(content.len() as u64)?;
        Ok(true)
    });
    match result {
        Ok(true) => Ok(()),
        Ok(false) => Err(ToolError::new(tool, format!("{requested}: not a regular file"))),
        Err(error) => Err(ToolError::path(tool, requested, error.into())),
    }
}

//! Makes tool output fit for an event: text without NUL or escape sequences, and not too long.

use regex::Regex;
use rustix::fs::{Mode, OFlags};
use std::fs::File;
use std::io::Write;
use std::sync::LazyLock;

use super::workspace::{SERVICE_DIR, Workspace};
use crate::sandbox::protocol::ToolOutcome;

/// A longer output goes to a file, and the model gets its beginning and its end.
pub(crate) const OUTPUT_CHARACTERS_MAX: usize = 100_000;
const PREVIEW_CHARACTERS: usize = 5_000;

/// Control sequences (colours, cursor), operating system commands (titles, links) and two-character escapes.
static ESCAPES: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b[@-Z\\^_]")
        .expect("the pattern is valid")
});

/// Bytes of a command as text: invalid UTF-8 replaced, NUL and escape sequences removed, final newlines trimmed.
pub(crate) fn clean(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes).replace('\0', "");
    ESCAPES.replace_all(&text, "").trim_end_matches('\n').to_owned()
}

/// Puts an output that is too long into a file of the workspace and leaves a preview that names it.
/// `source` is the file that holds the text already, where there is one.
pub(crate) fn shorten(workspace: &Workspace, name: &str, source: Option<String>, outcome: ToolOutcome) -> ToolOutcome {
    let Some(text) = outcome.as_text() else {
        return outcome;
    };
    // Counting characters only where bytes leave it open.
    if text.len() <= OUTPUT_CHARACTERS_MAX {
        return outcome;
    }
    let characters = text.chars().count();
    if characters <= OUTPUT_CHARACTERS_MAX {
        return outcome;
    }
    let place = source.or_else(|| save(workspace, name, text));
    let preview = preview(text, characters, place.as_deref());
    ToolOutcome { is_error: outcome.is_error, ..ToolOutcome::text(preview) }
}

fn save(workspace: &Workspace, name: &str, text: &str) -> Option<String> {
    let path = workspace.resolve(&format!("{SERVICE_DIR}/outputs/{name}.txt")).ok()?;
    workspace.create_parents(&path).ok()?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NONBLOCK;
    let file = workspace.open(&path, flags, Mode::from_raw_mode(0o644)).ok()?;
    File::from(file).write_all(text.as_bytes()).ok()?;
    Some(path.display())
}

fn preview(text: &str, characters: usize, place: Option<&str>) -> String {
    let at = |index: usize| text.char_indices().nth(index).map_or(text.len(), |(at, _)| at);
    let head = &text[..at(PREVIEW_CHARACTERS)];
    let tail = &text[at(characters - PREVIEW_CHARACTERS)..];
    let place =
        place.map_or_else(|| "The whole could not be saved".to_owned(), |place| format!("The whole is in {place}"));
    format!(
        "[output of {characters} characters, too long to show. {place}; its first and last \
         {PREVIEW_CHARACTERS} characters follow]\n{head}\n[...]\n{tail}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_is_cleaned() {
        for (bytes, expected) in [
            (&b"plain\n\n"[..], "plain"),
            (b"\x1b[1;31mred\x1b[0m \x1b[2K", "red "),
            (b"\x1b]0;title\x07text", "text"),
            (b"\x1b]8;;http://x\x1b\\link", "link"),
            (b"a\0b\xffc", "ab\u{fffd}c"),
            (b"\n", ""),
        ] {
            assert_eq!(clean(bytes), expected);
        }
    }
}

//! Makes tool output fit for an event: text that stays text, and not too much of it.
//!
//! What a command or file holds may be written to deceive: to move a cursor, to hide what follows, to end a line that
//! the tool began. So a model gets valid UTF-8 in which a line feed and a tab are the only control characters; the
//! carriage return of a Windows line end is left where text is quoted exactly. Every other one is shown by its
//! picture (`␛`), never passed on. Characters that merely look odd, such as those of the bidirectional algorithm, are
//! the text's own: a model reads in the order of storage, not of display. Names are stricter, see
//! [`Inside::display`](super::workspace::Inside::display).

use regex::Regex;
use rustix::fs::{Mode, OFlags};
use std::borrow::Cow;
use std::fs::File;
use std::io::Write;
use std::sync::LazyLock;

use super::workspace::{SERVICE_DIR, Workspace};
use crate::sandbox::protocol::ToolOutcome;

/// A longer output goes to a file, and the model gets its beginning and its end.
pub(crate) const OUTPUT_CHARACTERS_MAX: usize = 100_000;
const PREVIEW_CHARACTERS: usize = 5_000;

/// The sequences of ECMA-48 with seven-bit and eight-bit introducers: control sequences (colours, cursor), strings up
/// to their terminator on the same line (titles, links, graphics), character sets and two-character escapes.
static ESCAPES: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(concat!(
        r"(?:\x1b\[|\u{9b})[0-?]*[ -/]*[@-~]",
        r"|(?:\x1b[\]PX^_]|[\u{90}\u{98}\u{9d}-\u{9f}])[^\x07\x1b\u{9c}\n]*(?:\x07|\x1b\\|\u{9c})",
        r"|\x1b[ -/]+[0-~]",
        r"|\x1b[0-OQ-WYZ\\`-~]",
    ))
    .expect("the pattern is valid")
});

/// Bytes of a command as text: invalid UTF-8 replaced, NUL and escape sequences removed, final newlines trimmed.
/// A carriage return, with which a progress bar begins anew, begins a line.
pub(crate) fn clean(bytes: &[u8]) -> String {
    let text = without_escapes(bytes).replace("\r\n", "\n").replace('\r', "\n");
    printable(text.trim_end_matches('\n')).into_owned()
}

/// Likewise for one line of a file, which stays one line.
pub(crate) fn clean_line(bytes: &[u8]) -> String {
    printable(without_escapes(bytes).trim_end_matches('\r')).into_owned()
}

fn without_escapes(bytes: &[u8]) -> String {
    // NUL first: a terminal drops it, so that it could hide an escape.
    let text = String::from_utf8_lossy(bytes).replace('\0', "");
    ESCAPES.replace_all(&text, "").into_owned()
}

/// Shows control characters instead of passing them on; the text of a file is otherwise exact.
pub(crate) fn printable(text: &str) -> Cow<'_, str> {
    let is_kept = |character: char| !character.is_control() || matches!(character, '\n' | '\t');
    if text.chars().all(is_kept) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 64);
    let mut rest = text.chars().peekable();
    while let Some(character) = rest.next() {
        let ends_line = character == '\r' && rest.peek() == Some(&'\n');
        shown.push(if ends_line || is_kept(character) { character } else { picture(character) });
    }
    Cow::Owned(shown)
}

/// The character of the block *Control Pictures*, which has none for C1.
fn picture(control: char) -> char {
    match u32::from(control) {
        code @ 0..0x20 => char::from_u32(0x2400 + code).expect("the block begins with a picture for each"),
        0x7f => '\u{2421}',
        _ => char::REPLACEMENT_CHARACTER,
    }
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
            (b"\x1bPq#0;2;0\x1b\\sixel \x1b_apc\x1b\\ \x1b^pm\x1b\\ \x1bXsos\x1b\\", "sixel   "),
            (b"\x1b(B\x1b)0\x1b#8\x1b7\x1b=\x1bc set", " set"),
            (b"\x1b[>4;2m\x1b[?1049h\x1b[!p\x1b[38:2::1:2:3m private", " private"),
            (b"a\0b\xffc", "ab\u{fffd}c"),
            (b"\n", ""),
            (b"\x1b\0[31mhidden", "hidden"),
            (b"\x1b[\x1b[31m31mnested", "\u{241b}[31mnested"),
            (b"\x1b]0;never ended\nnext", "\u{241b}]0;never ended\nnext"),
            (b"cut\x1b[31", "cut\u{241b}[31"),
            ("\u{9b}31mred\u{9d}0;t\u{9c}x".as_bytes(), "redx"),
            ("next\u{85}line".as_bytes(), "next\u{fffd}line"),
            (b"\x9b31m", "\u{fffd}31m"),
            (b"evil\rgood\r\nend\r", "evil\ngood\nend"),
            (b"over\x08\x08strike\x07\x0e\x7f", "over\u{2408}\u{2408}strike\u{2407}\u{240e}\u{2421}"),
            (b"\xed\xa0\x80 \xc0\xaf", "\u{fffd}\u{fffd}\u{fffd} \u{fffd}\u{fffd}"),
            ("\u{202e}txt".as_bytes(), "\u{202e}txt"),
        ] {
            assert_eq!(clean(bytes), expected, "{:?}", String::from_utf8_lossy(bytes));
        }
    }

    #[test]
    fn a_line_of_a_file_stays_one_line() {
        assert_eq!(clean_line(b"x\r"), "x");
        assert_eq!(clean_line(b"x\r/workspace/f:1:forged\r\r"), "x\u{240d}/workspace/f:1:forged");
        assert_eq!(clean_line(b"\x1b[2Kx\x0by\x0cz"), "x\u{240b}y\u{240c}z");
    }

    #[test]
    fn the_text_of_a_file_is_exact_but_for_controls() {
        assert_eq!(printable("a\tb\r\nc\n"), "a\tb\r\nc\n");
        assert_eq!(printable("a\rb\r"), "a\u{240d}b\u{240d}");
        assert_eq!(printable("\0\x1b[31m\u{9b}m\x7f"), "\u{2400}\u{241b}[31m\u{fffd}m\u{2421}");
    }
}

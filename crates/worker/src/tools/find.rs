//! The `glob` and `grep` tools: one walk over the workspace that follows no link and ends in bounded time.

use globset::GlobBuilder;
use regex::bytes::Regex;
use serde::Deserialize;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Component, Path};
use std::time::{Duration, Instant, SystemTime};
use walkdir::{DirEntry, WalkDir};

use super::files::ToolError;
use super::output;
use super::read::open_regular;
use super::workspace::{Inside, SERVICE_DIR, Workspace};
use crate::sandbox::protocol::ToolOutcome;

const ENTRIES_WALKED_MAX: usize = 50_000;
const GLOB_RESULTS_MAX: usize = 200;
const GREP_OUTPUT_BYTES_MAX: usize = 100 * 1024;
const GREP_LINE_BYTES_MAX: usize = 2_000;
const GREP_SECONDS_MAX: u64 = 30;
const NO_MATCHES: &str = "no matches";

#[derive(Deserialize)]
struct Input {
    pattern: String,
    path: Option<String>,
}

impl Input {
    fn start(&self, tool: &'static str, workspace: &Workspace) -> Result<Inside, ToolError> {
        let requested = self.path.as_deref().unwrap_or(".");
        ToolError::resolve(tool, workspace, requested)
    }
}

pub(crate) fn glob(workspace: &Workspace, input: serde_json::Value) -> Result<ToolOutcome, ToolError> {
    let input: Input = ToolError::parse("glob", input)?;
    let pattern = Path::new(&input.pattern);
    if pattern.is_absolute() {
        return Err(ToolError::new(
            "glob",
            "absolute pattern not permitted; pass a relative pattern (and optionally path)",
        ));
    }
    if pattern.components().any(|part| part == Component::ParentDir) {
        return Err(ToolError::new("glob", "'..' is not permitted in the pattern"));
    }
    let matcher = GlobBuilder::new(input.pattern.strip_prefix("./").unwrap_or(&input.pattern))
        .literal_separator(true)
        .build()
        .map_err(|error| ToolError::new("glob", format!("invalid pattern: {}", error.kind())))?
        .compile_matcher();
    let start = input.start("glob", workspace)?;
    let root = workspace.real(&start);
    let mut found: Vec<(SystemTime, String)> = Vec::new();
    for entry in walk(&root, &[SERVICE_DIR]) {
        let Ok(below) = entry.path().strip_prefix(&root) else { continue };
        if below.as_os_str().is_empty() || !matcher.is_match(below) {
            continue;
        }
        let path = start.join(below);
        // A link is listed when it leads to something inside.
        if entry.path_is_symlink() && workspace.resolve_path(path.as_path()).is_err() {
            continue;
        }
        let modified = entry.metadata().ok().and_then(|metadata| metadata.modified().ok());
        found.push((modified.unwrap_or(SystemTime::UNIX_EPOCH), path.display()));
    }
    found.sort_by(|(a_time, a_path), (b_time, b_path)| b_time.cmp(a_time).then_with(|| a_path.cmp(b_path)));
    found.truncate(GLOB_RESULTS_MAX);
    let paths: Vec<String> = found.into_iter().map(|(_, path)| path).collect();
    Ok(answer(workspace, "glob", paths.join("\n")))
}

pub(crate) fn grep(workspace: &Workspace, input: serde_json::Value) -> Result<ToolOutcome, ToolError> {
    let input: Input = ToolError::parse("grep", input)?;
    let pattern =
        Regex::new(&input.pattern).map_err(|error| ToolError::new("grep", format!("invalid regex: {error}")))?;
    let start = input.start("grep", workspace)?;
    let requested = input.path.as_deref().unwrap_or(".");
    let is_dir = workspace.is_dir(&start).map_err(|error| ToolError::path("grep", requested, error))?;
    let mut search =
        Search { pattern, deadline: Instant::now() + Duration::from_secs(GREP_SECONDS_MAX), output: String::new() };
    let end = if is_dir {
        let root = workspace.real(&start);
        walk(&root, &[".git", "node_modules", SERVICE_DIR]).filter(|entry| entry.file_type().is_file()).find_map(
            |entry| {
                let below = entry.path().strip_prefix(&root).ok()?;
                search.file(workspace, &start.join(below))
            },
        )
    } else {
        search.file(workspace, &start)
    };
    match end {
        Some(End::TimedOut) => Err(ToolError::new("grep", format!("timed out after {GREP_SECONDS_MAX}s"))),
        Some(End::Full) => {
            search.output.push_str(&format!("[output truncated at {GREP_OUTPUT_BYTES_MAX} bytes]"));
            Ok(answer(workspace, "grep", search.output))
        }
        None => Ok(answer(workspace, "grep", search.output)),
    }
}

fn answer(workspace: &Workspace, tool: &'static str, text: String) -> ToolOutcome {
    let text = text.trim_end_matches('\n');
    if text.is_empty() {
        return ToolOutcome::text(NO_MATCHES);
    }
    output::shorten(workspace, tool, None, ToolOutcome::text(text))
}

/// Everything below `root` in the order of names, without the folders named in `skipped`; unreadable ones too.
fn walk(root: &Path, skipped: &'static [&'static str]) -> impl Iterator<Item = DirEntry> {
    let wanted = |entry: &DirEntry| {
        entry.depth() == 0 || !entry.file_type().is_dir() || !skipped.iter().any(|name| entry.file_name() == *name)
    };
    WalkDir::new(root)
        .follow_links(false)
        .follow_root_links(false)
        .sort_by_file_name()
        .into_iter()
        .filter_entry(wanted)
        .take(ENTRIES_WALKED_MAX)
        .filter_map(Result::ok)
}

/// Why a search ends before the last file.
enum End {
    Full,
    TimedOut,
}

struct Search {
    pattern: Regex,
    deadline: Instant,
    output: String,
}

impl Search {
    /// Searches one file; one that is unreadable, binary or gone holds no match.
    fn file(&mut self, workspace: &Workspace, path: &Inside) -> Option<End> {
        let (file, _) = open_regular("grep", workspace, path, "").ok()?;
        let mut reader = BufReader::with_capacity(64 * 1024, file);
        let head = reader.fill_buf().ok()?;
        if head.iter().take(8 * 1024).any(|byte| *byte == 0) {
            return None;
        }
        let name = path.display_before(':');
        let mut number = 0u64;
        let mut line = Vec::new();
        while next_line(&mut reader, &mut line).ok()? {
            number += 1;
            if number.is_multiple_of(1024) && Instant::now() > self.deadline {
                return Some(End::TimedOut);
            }
            if line.len() > GREP_LINE_BYTES_MAX || !self.pattern.is_match(&line) {
                continue;
            }
            let hit = format!("{name}:{number}:{}\n", output::clean_line(&line));
            if self.output.len() + hit.len() > GREP_OUTPUT_BYTES_MAX {
                return Some(End::Full);
            }
            self.output.push_str(&hit);
        }
        (Instant::now() > self.deadline).then_some(End::TimedOut)
    }
}

/// Reads one line without its newline, keeping of a long one just enough to tell that it is too long.
fn next_line(reader: &mut BufReader<File>, line: &mut Vec<u8>) -> std::io::Result<bool> {
    line.clear();
    let mut has_read = false;
    loop {
        let buffer = reader.fill_buf()?;
        if buffer.is_empty() {
            return Ok(has_read);
        }
        has_read = true;
        let newline = buffer.iter().position(|byte| *byte == b'\n');
        let piece = &buffer[..newline.unwrap_or(buffer.len())];
        let room = (GREP_LINE_BYTES_MAX + 1).saturating_sub(line.len());
        line.extend_from_slice(&piece[..piece.len().min(room)]);
        let used = newline.map_or(buffer.len(), |at| at + 1);
        reader.consume(used);
        if newline.is_some() {
            return Ok(true);
        }
    }
}

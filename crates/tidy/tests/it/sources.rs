//! What every source file owes its reader, checked over the text of the workspace.
//!
//! Deliberately simple reading, line by line: a rule that needs a parser is a lint for clippy.

use std::fs;
use std::path::{Path, PathBuf};

use crate::{none, root};

/// Longer files hide a second idea that waits for a name.
const LINES_MAX: usize = 700;

/// Suites that other crates run as their tests, and so live in `src`.
const TEST_SUPPORT: &[&str] = &["crates/engine/src/contract"];

struct Source {
    /// Relative to the root, with forward slashes.
    path: String,
    text: String,
}

impl Source {
    fn is_test(&self) -> bool {
        let is_support = TEST_SUPPORT.iter().any(|support| self.path.starts_with(support));
        is_support
            || self.path.contains("/tests/")
            || self.path.contains("/benches/")
            || self.path.ends_with("/tests.rs")
            || self.path.ends_with("_tests.rs")
    }

    /// The lines, counted from 1, up to the file's own test module.
    fn product_lines(&self) -> impl Iterator<Item = (usize, &str)> {
        let lines: Vec<_> = self.text.lines().collect();
        let tests = lines.windows(2).position(|pair| {
            pair[0].trim() == "#[cfg(test)]" && pair[1].trim_start().starts_with("mod ") && pair[1].ends_with('{')
        });
        let end = tests.unwrap_or(lines.len());
        lines.into_iter().take(end).enumerate().map(|(index, line)| (index + 1, line))
    }

    /// Product lines without comments, as `path:line` and text, if `breach` says so.
    fn breaches(&self, breach: impl Fn(&str) -> bool) -> Vec<String> {
        self.product_lines()
            .filter(|(_, line)| !line.trim_start().starts_with("//") && breach(line))
            .map(|(number, line)| format!("{}:{number}: {}", self.path, line.trim()))
            .collect()
    }
}

#[test]
fn every_module_says_what_it_is_for() {
    let breaches = sources()
        .into_iter()
        .filter(|source| !source.text.starts_with("//! ") || source.text.starts_with("//! placeholder"))
        .map(|source| source.path)
        .collect();
    none("a module does not open with a //! paragraph", breaches);
}

#[test]
fn no_file_hides_a_second_idea() {
    let breaches = sources()
        .into_iter()
        .filter(|source| !source.is_test())
        .map(|source| (source.product_lines().count(), source.path))
        .filter(|(lines, _)| *lines > LINES_MAX)
        .map(|(lines, path)| format!("{path}: {lines} lines"))
        .collect();
    none("a file is too long", breaches);
}

#[test]
fn nothing_is_left_open() {
    // Spelled in two halves, so that this file does not breach its own rule.
    let marks = [
        concat!("TO", "DO"),
        concat!("FIX", "ME"),
        concat!("XX", "X"),
        concat!("to", "do!("),
        concat!("unimple", "mented!("),
        concat!("dbg", "!("),
    ];
    let breaches = sources().iter().flat_map(|source| find(source, &marks)).collect();
    none("something is left open", breaches);
}

#[test]
fn expectations_are_stated() {
    let breaches = sources()
        .iter()
        .filter(|source| !source.is_test())
        .flat_map(|source| source.breaches(|line| line.contains(".unwrap()")))
        .collect();
    none("unwrap outside tests: expect states the invariant", breaches);
}

#[test]
fn unsafety_stays_in_the_worker() {
    let breaches = sources()
        .iter()
        .filter(|source| !source.path.starts_with("crates/worker/src/"))
        .flat_map(|source| source.breaches(|line| line.contains(concat!("unsafe", "_code"))))
        .collect();
    none("unsafe code is allowed outside the worker", breaches);
}

#[test]
fn every_unsafe_block_is_argued_for() {
    let mut breaches = Vec::new();
    for source in sources() {
        let lines: Vec<_> = source.text.lines().collect();
        for (index, line) in lines.iter().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            let opens_block = code.contains(concat!("unsafe", " {"));
            let above = &lines[index.saturating_sub(8)..=index];
            if opens_block && !above.iter().any(|line| line.contains("SAFETY")) {
                breaches.push(format!("{}:{}: {}", source.path, index + 1, line.trim()));
            }
        }
    }
    none("an unsafe block without its SAFETY comment", breaches);
}

#[test]
fn the_server_meets_the_worker_only_at_its_edge() {
    let breaches = sources()
        .iter()
        .filter(|source| source.path.starts_with("crates/server/src/"))
        .filter(|source| {
            let edge = source.path.trim_start_matches("crates/server/src/");
            edge != "main.rs" && edge != "command.rs" && !edge.starts_with("command/")
        })
        .flat_map(|source| {
            source.breaches(|line| {
                let line = line.trim_start();
                line.starts_with("use worker::") || line.starts_with("use ::worker") || line.contains(" ::worker::")
            })
        })
        .collect();
    none("the crate worker is named outside main.rs and the subcommands", breaches);
}

#[test]
fn images_have_fixed_tags() {
    let mark = concat!(":lat", "est");
    let breaches = files(&root(), &|path| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name.contains("Dockerfile") || name.ends_with(".yaml") || name.ends_with(".yml")
    })
    .into_iter()
    .flat_map(|source| find(&source, &[mark]))
    .collect();
    none("an image without a fixed tag", breaches);
}

/// Places of any of `marks`, comments included.
fn find(source: &Source, marks: &[&str]) -> Vec<String> {
    source
        .text
        .lines()
        .enumerate()
        .filter(|(_, line)| marks.iter().any(|mark| line.contains(mark)))
        .map(|(index, line)| format!("{}:{}: {}", source.path, index + 1, line.trim()))
        .collect()
}

/// Every Rust file of the workspace.
fn sources() -> Vec<Source> {
    let sources = files(&root().join("crates"), &|path| path.extension().is_some_and(|extension| extension == "rs"));
    assert!(sources.len() > 30, "only {} sources found: the rules look in the wrong place", sources.len());
    sources
}

fn files(folder: &Path, wanted: &dyn Fn(&Path) -> bool) -> Vec<Source> {
    let mut found = Vec::new();
    let mut folders: Vec<PathBuf> = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder of the workspace is readable") {
            let path = entry.expect("an entry of the workspace is readable").path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if path.is_dir() {
                if !name.starts_with('.') && !matches!(name, "target" | "data" | "node_modules") {
                    folders.push(path);
                }
            } else if wanted(&path) {
                let text = fs::read_to_string(&path).expect("a source of the workspace is UTF-8");
                let path = path.strip_prefix(root()).expect("the file lies below the root");
                found.push(Source { path: path.to_string_lossy().replace('\\', "/"), text });
            }
        }
    }
    found.sort_by(|left, right| left.path.cmp(&right.path));
    found
}

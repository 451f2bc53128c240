//! What the architecture promises and a machine can check.
//!
//! Every test collects all breaches before it fails, and names file and line, so that one run shows the whole work.

mod edges;
mod sources;

use std::path::{Path, PathBuf};

/// The workspace's root folder.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .nth(2)
        .expect("the crate lies two folders below the root")
        .to_owned()
}

/// Fails with all breaches of one rule, or passes if there is none.
#[track_caller]
fn none(rule: &str, breaches: Vec<String>) {
    assert!(breaches.is_empty(), "{rule}:\n  {}", breaches.join("\n  "));
}

//! Who may depend on whom, by `cargo metadata` of this workspace.
//!
//! Two tables: [`INNER`] for edges between our crates, [`OWNED`] for libraries that only one crate may name.
//! A new crate must be added to [`INNER`], which is the moment to ask whether it is needed.

use std::collections::BTreeMap;
use std::process::Command;

use serde_json::Value;

use crate::{none, root};

/// Every crate of the workspace and the crates of the workspace that it may depend on, tests included.
const INNER: &[(&str, &[&str])] = &[
    ("session", &[]),
    ("engine", &["session"]),
    ("store", &["engine", "session"]),
    ("worker", &["session"]),
    ("rollout", &[]),
    ("server", &["engine", "rollout", "session", "store", "worker"]),
    ("tidy", &[]),
];

/// Libraries, by prefix, and the one crate that may name each.
const OWNED: &[(&str, &str)] = &[
    ("sqlx", "store"),
    ("redis", "store"),
    ("fred", "store"),
    ("object_store", "store"),
    ("axum", "server"),
    ("tower-http", "server"),
    ("prometheus-client", "server"),
    ("rmcp", "server"),
    ("kube", "rollout"),
    ("k8s-openapi", "rollout"),
    ("landlock", "worker"),
    ("seccompiler", "worker"),
    ("clap", "server"),
    ("anyhow", "server"),
];

/// What the pure crate must not even be able to reach for.
const IMPURE: &[&str] =
    &["async-trait", "futures", "getrandom", "parking_lot", "rand", "reqwest", "rustix", "tokio", "tracing", "uuid"];

struct Dependency {
    name: String,
    /// `None` for an ordinary dependency, else `dev` or `build`.
    kind: Option<String>,
}

#[test]
fn crates_depend_only_inwards() {
    let allowed: BTreeMap<_, _> = INNER.iter().copied().collect();
    let members = members();
    let mut breaches = Vec::new();
    for (name, dependencies) in &members {
        let Some(inner) = allowed.get(name.as_str()) else {
            breaches.push(format!("{name} is not in the table of crates: say there what it may depend on"));
            continue;
        };
        for dependency in dependencies {
            // A crate may name itself, to give its own tests a feature.
            let is_inner = dependency.name == *name || inner.contains(&dependency.name.as_str());
            if members.contains_key(&dependency.name) && !is_inner {
                breaches.push(format!("{name} -> {}", dependency.name));
            }
        }
    }
    none("a crate depends on one that the architecture keeps from it", breaches);
}

#[test]
fn a_library_is_named_by_its_owner_only() {
    let mut breaches = Vec::new();
    for (name, dependencies) in &members() {
        for dependency in dependencies {
            let owner = OWNED.iter().find(|(library, _)| is_family(&dependency.name, library)).map(|(_, owner)| *owner);
            // Tests may start servers of their own.
            let test_server = dependency.kind.as_deref() == Some("dev") && is_family(&dependency.name, "axum");
            if owner.is_some_and(|owner| owner != name) && !test_server {
                breaches.push(format!("{name} -> {} ({} only)", dependency.name, owner.unwrap_or_default()));
            }
        }
    }
    none("a library is named outside the crate that owns it", breaches);
}

#[test]
fn the_session_is_pure() {
    let members = members();
    let session = members.get("session").expect("the workspace has a crate session");
    let breaches = session
        .iter()
        .filter(|dependency| dependency.kind.as_deref() != Some("dev"))
        .filter(|dependency| IMPURE.iter().any(|library| is_family(&dependency.name, library)))
        .map(|dependency| dependency.name.clone())
        .collect();
    none("the crate session reaches for the world", breaches);
}

#[test]
fn every_crate_takes_the_lints_and_the_licence_of_the_workspace() {
    let mut breaches = Vec::new();
    for (name, _) in INNER {
        let path = root().join("crates").join(name).join("Cargo.toml");
        let Ok(manifest) = std::fs::read_to_string(&path) else { continue };
        for line in ["license.workspace = true", "rust-version.workspace = true", "[lints]\nworkspace = true"] {
            if !manifest.contains(line) {
                breaches.push(format!("{} lacks {line:?}", path.display()));
            }
        }
    }
    none("a manifest goes its own way", breaches);
}

/// Whether `name` is `family` or one of its parts, as `sqlx-core` is of `sqlx`.
fn is_family(name: &str, family: &str) -> bool {
    name.strip_prefix(family).is_some_and(|rest| rest.is_empty() || rest.starts_with(['-', '_']))
}

/// The workspace's crates with what their manifests name.
fn members() -> BTreeMap<String, Vec<Dependency>> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--no-deps", "--offline"])
        .current_dir(root())
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("cargo metadata writes JSON");
    let text = |value: &Value| value.as_str().expect("a string").to_owned();
    metadata["packages"]
        .as_array()
        .expect("packages is a list")
        .iter()
        .map(|package| {
            let dependencies = package["dependencies"].as_array().expect("dependencies is a list");
            let dependencies = dependencies
                .iter()
                .map(|it| Dependency { name: text(&it["name"]), kind: it["kind"].as_str().map(str::to_owned) })
                .collect();
            (text(&package["name"]), dependencies)
        })
        .collect()
}

//! What the probe finds, here and where nothing is confined.

use worker::{Confinement, probe, settle};

use crate::support::{Place, at_every_level, has_namespaces};

at_every_level!(everything_is_held);

async fn everything_is_held(place: Place) {
    let report = probe(&place.config).await;
    assert!(report.is_sufficient(), "{report}");
    let missing: Vec<_> = report.rows.iter().filter(|row| !row.held).collect();
    assert!(missing.iter().all(|row| row.name == "no signal leaves the sandbox"), "{report}");
    assert!(report.rows.len() >= 8, "{report}");
    let left = std::fs::read_dir(&place.config.workspaces_dir).unwrap().count();
    assert_eq!(left, 0, "the probe cleans up after itself");
}

#[tokio::test]
async fn the_strongest_level_is_found_and_a_weaker_one_explained() {
    let place = Place::new();
    let (config, report) = settle(&place.config).await;
    assert!(report.is_sufficient(), "{report}");
    let first = &report.rows[0];
    assert_eq!((first.name, first.required), ("namespaces of its own", has_namespaces()));
    assert_eq!(config.confinement == Confinement::Namespaces, has_namespaces());
    assert!(!first.detail.is_empty());
}

#[tokio::test]
async fn without_confinement_the_probe_finds_every_hole() {
    let mut place = Place::new();
    place.config.confinement = Confinement::Off;
    let report = probe(&place.config).await;
    for row in &report.rows {
        // Clean-up of processes does not depend on confinement, nor does a usable workspace or the way out.
        let is_kept = ["every descendant", "the shell can use", "the egress proxy"];
        let is_kept = is_kept.iter().any(|kept| row.name.starts_with(kept));
        // Some calls need a privilege that the tests' user may lack anyway.
        let depends = row.name.starts_with("dangerous");
        assert!(row.held == is_kept || depends, "{report}");
        assert!(!row.required);
    }
    assert!(report.is_sufficient());
}

#[tokio::test]
async fn an_executable_that_is_no_sandbox_is_reported() {
    let mut place = Place::new();
    for executable in ["/nonexistent", "/bin/true"] {
        place.config.executable = executable.into();
        let report = probe(&place.config).await;
        assert!(!report.is_sufficient(), "{report}");
        assert!(report.to_string().starts_with("sandbox  MISSING"), "{report}");
    }
}

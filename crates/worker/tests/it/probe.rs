//! What the probe finds, here and where nothing is confined.

use worker::{Confinement, probe};

use crate::support::Place;

#[tokio::test]
async fn everything_is_held_on_a_machine_with_landlock() {
    let place = Place::new();
    let report = probe(&place.config).await;
    assert!(report.is_sufficient(), "{report}");
    let missing: Vec<_> = report.rows.iter().filter(|row| !row.held).collect();
    assert!(missing.iter().all(|row| row.name == "no signal leaves the sandbox"), "{report}");
    assert!(report.rows.len() >= 8, "{report}");
    let left = std::fs::read_dir(&place.config.workspaces_dir).unwrap().count();
    assert_eq!(left, 0, "the probe cleans up after itself");
}

#[tokio::test]
async fn without_confinement_the_probe_finds_every_hole() {
    let mut place = Place::new();
    place.config.confinement = Confinement::Off;
    let report = probe(&place.config).await;
    for row in &report.rows {
        // Clean-up of processes does not depend on confinement, nor does a usable workspace.
        let is_kept = row.name.starts_with("every descendant") || row.name.starts_with("the shell can use");
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

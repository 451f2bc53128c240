//! The simulator under fixed seeds, and under some that nobody has seen.
//!
//! `SIM_SEED=n cargo test -p engine --test it simulation` replays one seed; `SIM_RUNS=n` sets how many new seeds are
//! tried. What a seed found becomes a story in `turns`, since a seed means something else as soon as the simulator
//! changes.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::time::Instant;

use crate::rig::quiet_simulated_panics;
use crate::sim::{Report, simulate};

/// New seeds tried when nobody says how many.
const NEW_SEEDS: u64 = 40;

/// Seeds tried every time.
const FIXED_SEEDS: std::ops::Range<u64> = 1..61;

fn check(seed: u64) -> Report {
    quiet_simulated_panics();
    let report = simulate(seed);
    assert!(
        report.violations.is_empty(),
        "seed {seed} fails (SIM_SEED={seed} replays it):\n{}",
        report.violations.join("\n")
    );
    report
}

#[test]
#[expect(clippy::disallowed_methods, reason = "how fast schedules run is told, and decides nothing")]
fn simulation() {
    if let Some(seed) = std::env::var("SIM_SEED").ok().and_then(|seed| seed.parse().ok()) {
        println!("{:?}", check(seed));
        return;
    }
    let runs = std::env::var("SIM_RUNS").ok().and_then(|runs| runs.parse().ok()).unwrap_or(NEW_SEEDS);
    let began = Instant::now();
    let first = RandomState::new().build_hasher().finish() >> 16;
    let mut schedules = 0_u32;
    let mut total = Report::default();
    for seed in FIXED_SEEDS.chain(first..first + runs) {
        let report = check(seed);
        schedules += 1;
        total.records += report.records;
        total.crashes += report.crashes;
        total.drains += report.drains;
        total.worker_deaths += report.worker_deaths;
        total.lost_answers += report.lost_answers;
    }
    let per_minute = f64::from(schedules) * 60.0 / began.elapsed().as_secs_f64();
    println!(
        "{schedules} schedules, {per_minute:.0} a minute: {} records, {} crashes, {} drains, {} workers lost, \
         {} answers lost",
        total.records, total.crashes, total.drains, total.worker_deaths, total.lost_answers
    );
    assert!(total.crashes > 0 && total.drains > 0 && total.worker_deaths > 0, "the faults do happen");
}

#[test]
fn a_seed_repeats_itself() {
    assert_eq!(check(7), check(7));
}

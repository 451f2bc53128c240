//! The simulator under fixed seeds, and under some that nobody has seen.
//!
//! `SIM_SEED=n cargo test -p engine --test it simulation` replays one seed; `SIM_RUNS=n` sets how many new seeds are
//! tried. `just simulate` tries 100 000, optimised. What a seed found becomes a story in `turns`, since a seed means
//! something else as soon as the simulator changes; it stays in [`FAILED_ONCE`] all the same.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use crate::rig::quiet_simulated_panics;
use crate::sim::counts::Counts;
use crate::sim::{Report, simulate};

/// New seeds tried when nobody says how many.
const NEW_SEEDS: u64 = 40;

/// Seeds tried every time.
const FIXED_SEEDS: std::ops::Range<u64> = 1..61;

/// Seeds that failed when they were new.
const FAILED_ONCE: [u64; 3] = [116_598_293_095_370, 116_598_293_119_696, 211_295_507_015_828];

fn check(seed: u64) -> Report {
    quiet_simulated_panics();
    let report = simulate(seed);
    if !report.violations.is_empty() {
        println!("seed {seed} fails (SIM_SEED={seed} replays it):\n{}", report.violations.join("\n"));
    }
    report
}

#[test]
#[expect(clippy::disallowed_methods, reason = "how fast schedules run is told, and decides nothing")]
fn simulation() {
    if let Some(seed) = std::env::var("SIM_SEED").ok().and_then(|seed| seed.parse().ok()) {
        let report = check(seed);
        println!("{report:?}");
        return assert!(report.violations.is_empty(), "seed {seed} fails");
    }
    let runs = std::env::var("SIM_RUNS").ok().and_then(|runs| runs.parse().ok()).unwrap_or(NEW_SEEDS);
    let began = Instant::now();
    let first = RandomState::new().build_hasher().finish() >> 16;
    let seeds: Vec<u64> = FIXED_SEEDS.chain(FAILED_ONCE).chain(first..first + runs).collect();
    let total = check_all(&seeds);
    let seconds = began.elapsed().as_secs_f64();
    let Total { failed, counts } = total;
    println!("{} schedules in {seconds:.1} s, {} of them failed: {counts}", seeds.len(), failed.len());
    assert!(failed.is_empty(), "seeds that fail: {failed:?}");
    assert_eq!(counts.missing(), [], "everything does happen");
}

#[test]
fn a_seed_repeats_itself() {
    assert_eq!(check(7), check(7));
}

#[derive(Default)]
struct Total {
    failed: Vec<u64>,
    counts: Counts,
}

/// Tries every seed, on as many threads as there are cores.
fn check_all(seeds: &[u64]) -> Total {
    let (next, total) = (AtomicUsize::new(0), Mutex::new(Total::default()));
    let check_some = || {
        while let Some(seed) = seeds.get(next.fetch_add(1, Ordering::Relaxed)) {
            let report = check(*seed);
            let mut total = total.lock().unwrap();
            if !report.violations.is_empty() {
                total.failed.push(*seed);
            }
            total.counts.add_all(&report.counts);
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(check_some);
        }
    });
    total.into_inner().unwrap()
}

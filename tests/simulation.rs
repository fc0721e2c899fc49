//! Many cells in one thread, virtual time, faults from a seed: nothing that was acknowledged is ever lost.
//!
//! `GROVE_SIM_SEEDS` says how many seeds, `GROVE_SIM_SEED` replays one, `GROVE_SIM_DAYS` sets the length of a year,
//! `GROVE_SIM_LOG=1` prints everything that happens. `make sim` runs 2,000 seeds of a whole year.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use grove::simulation::{Outcome, Scale, year};

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn scale() -> Scale {
    let days = number("GROVE_SIM_DAYS").unwrap_or(60);
    Scale { days, cells_max: number("GROVE_SIM_CELLS").unwrap_or(12), sabotage: None }
}

fn replay(seed: u64, scale: Scale, test: &str) -> String {
    format!(
        "GROVE_SIM_SEED={seed} GROVE_SIM_DAYS={} GROVE_SIM_CELLS={} cargo test --test simulation {test} -- --nocapture",
        scale.days, scale.cells_max
    )
}

/// Runs seeds on all cores, and panics at the first that breaks a rule, with the command that replays it.
fn run_seeds(test: &'static str, seeds: u64, scale: Scale, run: impl Fn(u64, Scale) -> Outcome + Sync) {
    let (first, count) = match number("GROVE_SIM_SEED") {
        Some(seed) => (seed, 1),
        None => (number("GROVE_SIM_FIRST").unwrap_or(0), seeds),
    };
    let next = AtomicU64::new(first);
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get()).min(count as usize);
    let began = Instant::now();
    let (mut cells, mut versions) = (0, 0);
    let mut failed: Vec<(u64, Outcome)> = Vec::new();
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|_| {
                scope.spawn(|| {
                    let (mut cells, mut versions, mut failed) = (0, 0, Vec::new());
                    loop {
                        let seed = next.fetch_add(1, Ordering::Relaxed);
                        if seed >= first + count {
                            return (cells, versions, failed);
                        }
                        let outcome = run(seed, scale);
                        (cells, versions) = (cells + outcome.cells, versions + outcome.versions);
                        if outcome.broken.is_some() {
                            failed.push((seed, outcome));
                        }
                    }
                })
            })
            .collect();
        for worker in workers {
            let (more_cells, more_versions, more) =
                worker.join().unwrap_or_else(|_| panic!("a seed of {test} panicked; see above"));
            (cells, versions) = (cells + more_cells, versions + more_versions);
            failed.extend(more);
        }
    });
    failed.sort_by_key(|(seed, _)| *seed);
    println!(
        "{test}: {count} seeds of {} days, {cells} cells, {versions} versions, {:.0} s, {} broke a rule",
        scale.days,
        began.elapsed().as_secs_f64(),
        failed.len()
    );
    for (seed, outcome) in failed.iter().take(20) {
        println!("seed {seed}: {}", outcome.broken.as_ref().expect("it failed"));
    }
    if let Some((seed, outcome)) = failed.first() {
        let broken = outcome.broken.as_ref().expect("it failed");
        panic!("seed {seed}: {broken}\n{}\nreplay it: {}", outcome.log, replay(*seed, scale, test));
    }
}

#[test]
fn nothing_acknowledged_is_ever_lost() {
    run_seeds("nothing_acknowledged_is_ever_lost", number("GROVE_SIM_SEEDS").unwrap_or(100), scale(), year);
}

#[test]
fn same_seed_gives_the_same_run() {
    for seed in [1, 2, 3] {
        let scale = Scale { days: 20, ..scale() };
        let (one, other) = (year(seed, scale), year(seed, scale));
        assert_eq!(one, other);
        assert_ne!(one.fingerprint, year(seed + 100, scale).fingerprint);
    }
}

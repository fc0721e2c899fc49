//! Many cells in one thread, virtual time, faults from a seed: nothing that was acknowledged is ever lost.
//!
//! `GROVE_SIM_SEEDS` says how many seeds, from `GROVE_SIM_FIRST` on, `GROVE_SIM_SEED` replays one, `GROVE_SIM_DAYS` sets the
//! length of a year, `GROVE_SIM_LOG=1` prints everything that happens. `make sim` runs 2,000 seeds of a whole year.

use std::panic::AssertUnwindSafe;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use grove::simulation::{Changes, Outcome, Scale, numbers, rules, year, year_of_change};
use grove::world::Sabotage;

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
    let panicked = AtomicBool::new(false);
    let (done, wrong) = (AtomicU64::new(0), AtomicU64::new(0));
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
                        // Whoever panics must say which seed it was, and the others go on.
                        let ran = std::panic::catch_unwind(AssertUnwindSafe(|| run(seed, scale)));
                        let is_wrong = !matches!(&ran, Ok(outcome) if outcome.broken.is_none());
                        let wrong =
                            wrong.fetch_add(u64::from(is_wrong), Ordering::Relaxed) + u64::from(is_wrong);
                        let done = done.fetch_add(1, Ordering::Relaxed) + 1;
                        if done % 100 == 0 && done < count {
                            let s = began.elapsed().as_secs();
                            println!("{done} of {count} seeds from {first} on, {wrong} failed, {s} s");
                        }
                        let Ok(outcome) = ran else {
                            println!(
                                "seed {seed}: panicked, see above\nreplay it: {}",
                                replay(seed, scale, test)
                            );
                            panicked.store(true, Ordering::Relaxed);
                            continue;
                        };
                        (cells, versions) = (cells + outcome.cells, versions + outcome.versions);
                        if let Some(broken) = &outcome.broken {
                            println!("seed {seed}: {broken}");
                            failed.push((seed, outcome));
                        }
                    }
                })
            })
            .collect();
        for worker in workers {
            let (more_cells, more_versions, more) =
                worker.join().unwrap_or_else(|_| panic!("a thread of {test} panicked; see above"));
            (cells, versions) = (cells + more_cells, versions + more_versions);
            failed.extend(more);
        }
    });
    failed.sort_by_key(|(seed, _)| *seed);
    let has_panicked = panicked.load(Ordering::Relaxed);
    println!(
        "{test}: {count} seeds of {} days, {cells} cells, {versions} versions, {:.0} s, {} broke a rule",
        scale.days,
        began.elapsed().as_secs_f64(),
        failed.len()
    );
    if let Some((seed, outcome)) = failed.first() {
        let broken = outcome.broken.as_ref().expect("it failed");
        panic!("seed {seed}: {broken}\n{}\nreplay it: {}", outcome.log, replay(*seed, scale, test));
    }
    assert!(!has_panicked, "a seed of {test} panicked; see above");
}

fn seeds(usual: u64) -> u64 {
    // Rules that are tried one by one need fewer seeds than whole years.
    (number("GROVE_SIM_SEEDS").unwrap_or(100) * usual / 100).max(1)
}

#[test]
fn nothing_acknowledged_is_ever_lost() {
    run_seeds("nothing_acknowledged_is_ever_lost", seeds(100), scale(), year);
}

/// Cells join later, peers are removed and come again, everything is deleted at once, and a peer forges proofs.
#[test]
fn nothing_is_lost_while_the_fleet_changes() {
    let all = Mutex::new(Changes::default());
    run_seeds("nothing_is_lost_while_the_fleet_changes", seeds(20), scale(), |seed, scale| {
        let outcome = year_of_change(seed, scale);
        let (mut all, one) = (all.lock().unwrap(), outcome.changes);
        all.joined += one.joined;
        all.parted += one.parted;
        all.braked += one.braked;
        all.confirmed += one.confirmed;
        all.forged += one.forged;
        all.found_out += one.found_out;
        outcome
    });
    let all = all.into_inner().unwrap();
    println!("{all:?}");
    if number("GROVE_SIM_SEED").is_none() {
        let each = [all.joined, all.parted, all.braked, all.confirmed, all.forged, all.found_out];
        assert!(each.iter().all(|times| *times > 0), "all of it happens in these seeds: {all:?}");
    }
}

/// 1,000 cells in `make sim`.
#[test]
fn quiet_round_in_a_large_fleet_costs_next_to_nothing() {
    let cells = if number("GROVE_SIM_SEEDS").is_some_and(|seeds| seeds >= 1000) { 1000 } else { 60 };
    let (outcome, quiet) = rules::large_fleet(1, cells);
    assert_eq!(outcome.broken, None, "{}", outcome.log);
    let quiet = quiet.expect("nothing was broken");
    println!(
        "a fleet of {cells} cells: a quiet round takes {} bytes and {} us of CPU a pair",
        quiet.bytes, quiet.cpu_us
    );
    assert!(quiet.bytes < 1024 && quiet.cpu_us < 2 * 10_000, "{quiet:?}");
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

#[test]
fn healing_begins_within_two_rounds_after_the_grace_and_completes() {
    run_seeds(
        "healing_begins_within_two_rounds_after_the_grace_and_completes",
        seeds(20),
        scale(),
        |seed, _| rules::healing(seed, None),
    );
}

#[test]
fn copies_too_many_go_within_the_settling_time() {
    run_seeds("copies_too_many_go_within_the_settling_time", seeds(10), scale(), |seed, _| {
        rules::settling(seed)
    });
}

#[test]
fn folders_with_numbers_of_their_own_have_as_many_copies_and_no_more() {
    let test = "folders_with_numbers_of_their_own_have_as_many_copies_and_no_more";
    run_seeds(test, seeds(40), scale(), |seed, _| numbers::numbers(seed));
}

#[test]
fn damage_is_found_within_30_days() {
    run_seeds("damage_is_found_within_30_days", seeds(10), scale(), |seed, _| rules::damage(seed));
}

/// In 99 of 100 seeds at least.
#[test]
fn peer_that_dropped_one_chunk_in_a_hundred_is_found_out_within_30_days() {
    let test = "peer_that_dropped_one_chunk_in_a_hundred_is_found_out_within_30_days";
    let missed: AtomicU64 = AtomicU64::new(0);
    let count = seeds(20);
    run_seeds(test, count, scale(), |seed, _| {
        let mut outcome = rules::dropping(seed);
        if outcome.broken.as_ref().is_some_and(|broken| broken.0 == rules::NOT_NOTICED) {
            outcome.broken = None;
            println!("seed {seed}: not noticed");
            missed.fetch_add(1, Ordering::Relaxed);
        }
        outcome
    });
    assert!(missed.load(Ordering::Relaxed) * 100 <= count, "{missed:?} of {count}");
}

#[test]
fn correct_peer_is_never_called_lost_for_good() {
    run_seeds("correct_peer_is_never_called_lost_for_good", seeds(15), scale(), |seed, _| {
        rules::correct_peer(seed)
    });
}

#[test]
fn peer_that_passes_audits_on_does_not_pass() {
    run_seeds("peer_that_passes_audits_on_does_not_pass", seeds(5), scale(), |seed, _| {
        rules::passing_on(seed)
    });
}

#[test]
fn stranger_learns_from_no_request_which_chunks_are_here() {
    run_seeds("stranger_learns_from_no_request_which_chunks_are_here", seeds(5), scale(), |seed, _| {
        rules::strangers(seed)
    });
}

/// The first of 200 years in which a broken rule is caught.
fn caught(what: Sabotage, run: impl Fn(u64, Scale) -> Outcome) -> Option<(u64, String)> {
    let scale = Scale { sabotage: Some(what), ..scale() };
    (0..200).find_map(|seed| Some((seed, run(seed, scale).broken?.to_string())))
}

#[test]
fn broken_healing_is_caught() {
    let (seed, why) =
        caught(Sabotage::HealsNothing, year).expect("200 seeds are enough to see that nothing heals");
    println!("healing that does not heal is caught by seed {seed}: {why}");
}

#[test]
fn broken_garbage_collection_is_caught() {
    let (seed, why) = caught(Sabotage::CollectsClaims, year)
        .expect("200 seeds are enough to see that claims are collected");
    println!("a collection that takes what peers keep is caught by seed {seed}: {why}");
}

#[test]
fn broken_brake_is_caught() {
    let (seed, why) = caught(Sabotage::NeverBrakes, year_of_change)
        .expect("200 seeds are enough to see that nothing is held back");
    println!("a brake that never comes on is caught by seed {seed}: {why}");
}

#[test]
fn peer_that_makes_proofs_up_is_found_out_within_30_days() {
    run_seeds("peer_that_makes_proofs_up_is_found_out_within_30_days", seeds(5), scale(), |seed, _| {
        rules::forging(seed, None)
    });
}

#[test]
fn belief_in_proofs_that_are_made_up_is_caught() {
    let (seed, why) = caught(Sabotage::BelievesProofs, |seed, scale| rules::forging(seed, scale.sabotage))
        .expect("200 seeds are enough to see that any proof is believed");
    println!("belief in proofs that are made up is caught by seed {seed}: {why}");
}

#[test]
fn honest_cells_agree_on_what_they_have_stored_whatever_happens_to_them() {
    run_seeds(
        "honest_cells_agree_on_what_they_have_stored_whatever_happens_to_them",
        seeds(10),
        scale(),
        |seed, _| rules::accounts(seed),
    );
}

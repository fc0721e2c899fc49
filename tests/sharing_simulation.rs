//! Who may read what, over many random stories: nobody reads what the model forbids, everybody what it allows.
//!
//! `GROVE_SIM_SHARING` says how many seeds (usually 50; `make sim` runs 1,000), `GROVE_SIM_SEED` replays one,
//! `GROVE_SIM_LOG=1` prints everything that happens.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use grove::simulation::sharing::story;
use grove::simulation::{Outcome, refusals};
use grove::world::Sabotage;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn nobody_reads_what_he_may_not_and_everybody_reads_what_he_may() {
    let (first, count) = match number("GROVE_SIM_SEED") {
        Some(seed) => (seed, 1),
        None => (number("GROVE_SIM_FIRST").unwrap_or(0), number("GROVE_SIM_SHARING").unwrap_or(50)),
    };
    let (next, versions) = (AtomicU64::new(first), AtomicU64::new(0));
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get()).min(count as usize);
    let began = Instant::now();
    let failed: Vec<(u64, Outcome)> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|_| {
                scope.spawn(|| {
                    let mut failed = Vec::new();
                    loop {
                        let seed = next.fetch_add(1, Ordering::Relaxed);
                        if seed >= first + count {
                            return failed;
                        }
                        let outcome = story(seed, None);
                        versions.fetch_add(outcome.versions, Ordering::Relaxed);
                        if let Some(broken) = &outcome.broken {
                            println!("seed {seed}: {broken}");
                            failed.push((seed, outcome));
                        }
                    }
                })
            })
            .collect();
        workers.into_iter().flat_map(|worker| worker.join().expect("a seed panicked; see above")).collect()
    });
    println!(
        "{count} stories, {} versions, {:.0} s, {} broke a rule",
        versions.into_inner(),
        began.elapsed().as_secs_f64(),
        failed.len()
    );
    if let Some((seed, outcome)) = failed.iter().min_by_key(|(seed, _)| *seed) {
        let broken = outcome.broken.as_ref().expect("it failed");
        panic!(
            "seed {seed}: {broken}\n{}\nreplay it: GROVE_SIM_SEED={seed} cargo test --test sharing_simulation nobody -- --nocapture",
            outcome.log
        );
    }
}

#[test]
fn same_seed_gives_the_same_story() {
    let (one, other) = (story(3, None), story(3, None));
    assert_eq!(one, other);
    assert_ne!(one.fingerprint, story(4, None).fingerprint);
}

/// The first of 100 stories in which a broken rule is caught.
fn caught(what: Sabotage) -> Option<(u64, String)> {
    (0..100).find_map(|seed| Some((seed, story(seed, Some(what)).broken?.to_string())))
}

#[test]
fn holder_that_serves_what_was_taken_back_is_caught() {
    let (seed, why) = caught(Sabotage::ServesTakenBack).expect("100 stories are enough");
    println!("caught by seed {seed}: {why}");
}

#[test]
fn grant_that_outlives_a_move_out_of_its_folder_is_caught() {
    let (seed, why) = caught(Sabotage::GrantsWhatMovedOut).expect("100 stories are enough");
    println!("caught by seed {seed}: {why}");
}

#[test]
fn grants_that_do_not_hold_are_refused_by_a_running_cell() {
    refusals::grants(1).unwrap_or_else(|broken| panic!("{broken}"));
}

#[test]
fn bearer_on_a_slow_line_reads_on_until_what_it_reads_is_taken_back() {
    refusals::slow_bearer(1).unwrap_or_else(|broken| panic!("{broken}"));
}

#[test]
fn bearer_that_takes_a_byte_now_and_then_holds_up_no_other() {
    refusals::trickling_bearer(1).unwrap_or_else(|broken| panic!("{broken}"));
}

#[test]
fn tickets_that_do_not_hold_are_refused_by_a_running_cell_each_in_its_own_words() {
    refusals::tickets(1).unwrap_or_else(|broken| panic!("{broken}"));
}

//! A virtual year of peers that store for each other: honest, often off, forgetful, greedy, lying and colluding ones.
//!
//! `GROVE_SIM_BOUNTY` says how many seeds, `GROVE_SIM_SEED` replays one, `GROVE_SIM_DAYS` sets the length of the year.

use std::sync::atomic::{AtomicU64, Ordering};

use grove::simulation::bounty::{Kind, year};
use grove::world::Sabotage;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Honest peers reach their copies and are paid for what they store, also those that are here 60 hours of 100; a greedy one is
/// held to its allowance and earns nothing, a liar loses what it was credited for; the books balance at every step.
#[test]
fn honest_peers_are_paid_and_cheats_are_not() {
    let days = number("GROVE_SIM_DAYS").unwrap_or(200);
    let (first, count) = match number("GROVE_SIM_SEED") {
        Some(seed) => (seed, 1),
        None => (0, number("GROVE_SIM_BOUNTY").unwrap_or(3)),
    };
    let next = AtomicU64::new(first);
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get()).min(count as usize);
    let mut failed = Vec::new();
    let (mut statements, mut lost) = (0, 0);
    let (mut earned, mut stored) = ([0; 7], [0; 7]);
    std::thread::scope(|scope| {
        let work = || {
            let mut outcomes = Vec::new();
            loop {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                if seed >= first + count {
                    return outcomes;
                }
                outcomes.push((seed, year(seed, days, None)));
            }
        };
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        for (seed, outcome) in workers.into_iter().flat_map(|worker| worker.join().expect("a seed panicked"))
        {
            match outcome {
                Ok(year) => {
                    statements += year.statements;
                    lost += year.lost;
                    for (kind, (got, real)) in year.earned {
                        earned[kind as usize] += got;
                        stored[kind as usize] += real;
                    }
                }
                Err(why) => failed.push((seed, why)),
            }
        }
    });
    let kinds = [
        Kind::Honest,
        Kind::OftenOff,
        Kind::Forgetful,
        Kind::Greedy,
        Kind::Lying,
        Kind::Colluding,
        Kind::Empty,
    ];
    for kind in kinds {
        let (earned, stored) = (earned[kind as usize], stored[kind as usize]);
        println!("{kind:?}: {earned} leaves earned for {stored} stored");
    }
    println!(
        "{count} seeds of {days} days, {statements} statements, {lost} copies found lost, {} failed",
        failed.len()
    );
    failed.sort();
    if let Some((seed, why)) = failed.first() {
        panic!(
            "seed {seed}: {why}\nreplay it: GROVE_SIM_SEED={seed} GROVE_SIM_DAYS={days} cargo test --test bounty_simulation -- --nocapture"
        );
    }
}

/// What the first of 20 short years says in which a broken rule is caught.
fn caught(what: Sabotage) -> String {
    let days = 60;
    let sound = year(0, days, None);
    assert!(sound.is_ok(), "a year in which nothing is broken: {sound:?}");
    let found = (0..20).find_map(|seed| year(seed, days, Some(what)).err().map(|why| (seed, why)));
    let (seed, why) = found.unwrap_or_else(|| panic!("20 years with {what:?} and nobody has noticed"));
    println!("{what:?} is caught by seed {seed}: {why}");
    why
}

#[test]
fn paying_for_copies_that_are_found_lost_is_caught() {
    let why = caught(Sabotage::PaysForWhatIsLost);
    assert!(why.starts_with("liar") || why.contains("has earned") || why.contains("and a cheat"), "{why}");
}

#[test]
fn paying_for_copies_that_were_never_proven_is_caught() {
    let why = caught(Sabotage::PaysWithoutProof);
    assert!(why.contains("keeps nothing and has earned"), "{why}");
}

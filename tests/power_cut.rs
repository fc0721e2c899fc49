//! Power cuts: `power_cuts/replay.py` records what two cells write and builds their folders anew as a disk may hold them
//! after losing what was not synced. How it does that stands at its top.

mod common;

use std::path::Path;
use std::process::Command;

use common::*;

/// Cuts in one run of the tests; more with `GROVE_TEST_CUTS`.
const CUTS: u32 = 32;

fn works(program: &str, words: &[&str]) -> bool {
    Command::new(program).args(words).output().is_ok_and(|said| said.status.success())
}

#[test]
fn nothing_acknowledged_is_lost_by_a_power_cut_at_any_instant() {
    let test = "nothing_acknowledged_is_lost_by_a_power_cut_at_any_instant";
    let python = std::env::var("PYTHON").unwrap_or_else(|_| "python3".into());
    if !works(&python, &["--version"]) || !works("strace", &["--version"]) {
        assert!(!is_ci(), "strace and Python 3 are needed");
        eprintln!("skipped: {test} (it needs strace and Python 3)");
        return;
    }
    if !works("strace", &["-f", "-o", "/dev/null", "true"]) {
        eprintln!("skipped: {test} (processes must not be traced here)");
        return;
    }
    let temp = TempDir::new("power");
    let mut chance = Chance::seeded("power cuts");
    let cuts = std::env::var("GROVE_TEST_CUTS").unwrap_or_else(|_| CUTS.to_string());
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/power_cuts/replay.py");
    let said = Command::new(python)
        .arg(script)
        .args([Path::new(GROVE), temp.path()])
        .args([cuts, chance.below(1 << 32).to_string()])
        .output()
        .unwrap();
    println!("{}", String::from_utf8_lossy(&said.stdout));
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
}

//! Conditions that only time brings, from the first word to the last: copies that stay missing, an owner who has not been heard
//! of for a year, drills that cannot be made. Cells as processes, for whom time passes faster.

mod common;

use std::time::{SystemTime, UNIX_EPOCH};

use common::fleet::{copied, plant};
use common::*;
use miniserde::json::Value;

const DAY_S: u64 = 86_400;

/// Time passes `rate` times as fast from `before_s` seconds ago on.
fn pass_faster(cell: &mut Cell, before_s: u64, rate: u64) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    cell.env = vec![("GROVE_TEST_CLOCK".into(), format!("{}:{rate}", now - before_s))];
}

fn with(temp: &TempDir, name: &str, settings: &[(&str, &str)]) -> Cell {
    let cell = Cell::at(temp.path(), name);
    cell.init(name, &[("sync.every_s", "1"), ("routes.measure_hours", "0"), ("drill.days", "0")]);
    cell.change(settings);
    cell
}

/// What `grove status --json` says under this code: level, text, remedy.
fn told(cell: &Cell, code: &str) -> Option<(String, String, String)> {
    let status = object(&cell.cli(["status", "--json"]).ok().out);
    items(&status, "alerts").iter().find_map(|alert| match alert {
        Value::Object(alert) if text(alert, "code") == code => {
            Some((text(alert, "level"), text(alert, "text"), text(alert, "remedy")))
        }
        _ => None,
    })
}

/// Waits for it; the API says the same words.
fn wait_told(cell: &Cell, code: &str) -> (String, String, String) {
    let said = wait_for(code, || told(cell, code));
    // Its words may go on, with the days it has lasted.
    assert!(cell.alert(code).is_some(), "{said:?}");
    said
}

fn wait_over(cell: &Cell, code: &str) {
    wait_for(&format!("{code} is over"), || told(cell, code).is_none().then_some(()));
}

#[test]
fn copies_missing_for_an_hour_are_told_with_reason_and_remedy_until_they_are_made() {
    let temp = TempDir::new("alert-copies");
    let mut ann = with(&temp, "ann", &[("copies", "2")]);
    plant(&ann.home, "letter", b"to be kept twice");
    // Half an hour a second.
    pass_faster(&mut ann, 0, 1800);
    ann.run();
    let (level, words, remedy) = wait_told(&ann, "copies");
    assert_eq!(level, "warn");
    assert_eq!(
        words,
        "1 file (0 MiB) has had fewer copies than wanted for over an hour, 1 of them one copy or none: there is no peer yet"
    );
    assert_eq!(remedy, "bring one in with `grove invite`; `grove placement` names the files");
    let shown = ann.cli(["status"]);
    assert!(shown.out.contains("fewer copies than wanted for over an hour"), "{shown:?}");

    let mut bob = with(&temp, "bob", &[]);
    bob.env.clone_from(&ann.env);
    bob.run();
    ann.invite(&bob);
    copied(&ann, 1);
    wait_over(&ann, "copies");
    assert!(!ann.cli(["status"]).out.contains("fewer copies than wanted for over an hour"));
}

#[test]
fn an_owner_not_heard_of_for_a_year_is_told_with_what_is_kept_until_it_is_back() {
    let temp = TempDir::new("alert-owner");
    let mut ann = with(&temp, "ann", &[]);
    let mut bob = with(&temp, "bob", &[]);
    plant(&bob.home, "letter", &Chance::seeded("alert-owner").bytes(3 << 20));
    ann.run();
    bob.run();
    ann.invite(&bob);
    copied(&bob, 1);
    wait_for("ann keeps what bob gave it", || {
        let peers = ann.get("/peers");
        let kept = |peer: &Value| matches!(peer, Value::Object(peer) if number(peer, "held_for_them_bytes") > 3 << 20);
        items(&peers, "peers").iter().any(kept).then_some(())
    });
    assert_eq!(told(&ann, "owner-silent"), None);
    bob.stop();
    ann.stop();

    // A year and ten days later, and an hour each second.
    let rate = 3600;
    pass_faster(&mut ann, 375 * DAY_S / (rate - 1), rate);
    ann.run();
    let (level, words, remedy) = wait_told(&ann, "owner-silent");
    assert_eq!(level, "info");
    assert_eq!(words, "nothing has been heard for over a year of bob (3 MiB kept here)");
    assert_eq!(
        remedy,
        "its chunks stay here until you say otherwise: ask its owner, and if they are not needed any more, run `grove peer \
         remove NAME`"
    );

    bob.env.clone_from(&ann.env);
    bob.run();
    wait_over(&ann, "owner-silent");
    assert_eq!(bob.content("letter").unwrap().len(), 3 << 20);
}

#[test]
fn a_drill_that_cannot_be_made_is_told_with_whom_it_waits_for_until_one_is_made() {
    let temp = TempDir::new("alert-drill");
    let mut ann = with(&temp, "ann", &[("copies", "2"), ("drill.days", "1")]);
    let mut bob = with(&temp, "bob", &[]);
    plant(&ann.home, "letter", b"to be brought back");
    // A quarter of a day each second.
    pass_faster(&mut ann, 0, 21_600);
    bob.env.clone_from(&ann.env);
    ann.run();
    bob.run();
    ann.invite(&bob);
    copied(&ann, 1);
    wait_for("the first drill is made by itself", || {
        (number(&ann.get("/status"), "drill.chunks") > 0).then_some(())
    });
    assert_eq!(told(&ann, "drill-overdue"), None);

    bob.stop();
    let (level, words, remedy) = wait_told(&ann, "drill-overdue");
    assert_eq!(level, "info");
    let days: String =
        words.strip_prefix("for ").unwrap_or("").chars().take_while(char::is_ascii_digit).collect();
    assert!(days.parse::<u64>().is_ok_and(|days| days >= 2), "{words}");
    assert_eq!(words, format!("for {days} days no restore from peers could be tried; not reached now: bob"));
    assert_eq!(remedy, "switch on the peers that hold your files, and run `grove drill`");

    bob.run();
    wait_over(&ann, "drill-overdue");
    assert_eq!(told(&ann, "drill-failed"), None);
}

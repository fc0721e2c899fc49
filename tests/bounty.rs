//! Three cells as processes, for whom a day lasts three seconds: what they have stored for each other they agree on, to the
//! byte-hour; and one that comes back from an old backup agrees again by itself.

mod common;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use common::fleet::plant;
use common::*;
use miniserde::json::{Object, Value};

/// Eight hours a second.
const RATE: u64 = 28_800;

/// What a cell says of one peer: earned, spent, number of the statement.
type Account = (u64, u64, u64);

/// By the API, which answers much sooner than a command: what three cells say one after the other is compared, while a day
/// lasts three seconds.
fn accounts(cell: &Cell) -> BTreeMap<String, Account> {
    let told = cell.get("/bounty");
    let account = |peer: &Value| {
        let Value::Object(peer) = peer else { panic!("{told:?}") };
        let seq = match peer.get("statement") {
            Some(Value::Object(statement)) => number(statement, "seq"),
            _ => 0,
        };
        (text(peer, "name"), (number(peer, "earned_byte_hours"), number(peer, "spent_byte_hours"), seq))
    };
    items(&told, "peers").iter().map(account).collect()
}

fn peer<'a>(told: &'a Object, name: &str) -> &'a Object {
    let is_meant = |peer: &&Value| matches!(peer, Value::Object(peer) if text(peer, "name") == name);
    match items(told, "peers").iter().find(is_meant) {
        Some(Value::Object(peer)) => peer,
        _ => panic!("no {name} in {told:?}"),
    }
}

/// Waits until all say the same of each pair, all have been paid for, and each statement is beyond `least`.
fn wait_level(cells: &[(&str, &Cell)], least: u64) -> BTreeMap<(String, String), Account> {
    wait_for("all agree on what was stored", || {
        let told: BTreeMap<&str, BTreeMap<String, Account>> =
            cells.iter().map(|(name, cell)| (*name, accounts(cell))).collect();
        let mut pairs = BTreeMap::new();
        for (one, _) in cells {
            for (other, _) in cells.iter().filter(|(other, _)| other != one) {
                let (ours, theirs) = (*told[one].get(*other)?, *told[other].get(*one)?);
                let is_level = (ours.0, ours.1, ours.2) == (theirs.1, theirs.0, theirs.2);
                if !is_level || ours.0 == 0 || ours.1 == 0 || ours.2 <= least {
                    return None;
                }
                pairs.insert(((*one).to_owned(), (*other).to_owned()), ours);
            }
        }
        Some(pairs)
    })
}

fn copy_folder(from: &Path, to: &Path) {
    let done = Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap();
    assert!(done.success());
}

#[test]
fn three_cells_agree_to_the_byte_hour_and_one_from_an_old_backup_agrees_again() {
    let temp = TempDir::new("bounty");
    let mut chance = Chance::seeded("bounty");
    let begin = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let settings =
        [("sync.every_s", "1"), ("copies", "3"), ("drill.days", "0"), ("routes.measure_hours", "0")];
    let names = ["ann", "bob", "cat"];
    let mut cells: Vec<Cell> = names.iter().map(|name| Cell::at(temp.path(), name)).collect();
    for (name, cell) in names.iter().zip(&mut cells) {
        cell.init(name, &settings);
        cell.env = vec![("GROVE_TEST_CLOCK".into(), format!("{begin}:{RATE}"))];
        for n in 0..5 {
            plant(&cell.home, &format!("{name} {n}"), &chance.bytes(200_000));
        }
        cell.run();
    }
    cells[0].invite(&cells[1]);
    cells[0].invite(&cells[2]);
    cells[1].invite(&cells[2]);
    let level = |cells: &[Cell], least| {
        let cells: Vec<(&str, &Cell)> = names.iter().copied().zip(cells).collect();
        wait_level(&cells, least)
    };
    let first = level(&cells, 1);

    // bob's folder as it is now is put aside.
    cells[1].stop();
    let backup = temp.path().join("backup");
    copy_folder(&cells[1].dir, &backup);
    cells[1].run();
    let newest = first.values().map(|account| account.2).max().unwrap();
    let later = level(&cells, newest + 1);
    assert!(later.iter().all(|(pair, account)| account.0 >= first[pair].0 && account.1 >= first[pair].1));

    cells[1].stop();
    remove_tree(&cells[1].dir);
    copy_folder(&backup, &cells[1].dir);
    cells[1].run();
    let newest = later.values().map(|account| account.2).max().unwrap();
    let again = level(&cells, newest + 1);
    assert!(again.iter().all(|(pair, account)| account.0 >= later[pair].0 && account.1 >= later[pair].1));

    // What the command, the API and the metrics say is one.
    let by_command = object(&cells[0].cli(["bounty", "--json"]).ok().out);
    assert!(
        items(&by_command, "peers").len() == 2 && number(peer(&by_command, "bob"), "earned_byte_hours") > 0
    );
    let shown = cells[0].cli(["bounty"]).ok().out;
    assert!(shown.contains("bob") && shown.contains("cat") && shown.contains("EARNED"), "{shown}");
    let csv = cells[0].cli(["bounty", "--csv"]).ok().out;
    let sum = |column: usize| -> u64 {
        let bob = csv.lines().filter(|line| line.split(',').nth(1) == Some("bob"));
        bob.map(|line| line.split(',').nth(column).unwrap().parse::<u64>().unwrap()).sum()
    };
    let (earned, spent) = (sum(3), sum(4));
    let told = cells[0].get("/bounty");
    let bob = peer(&told, "bob");
    assert!(earned <= number(bob, "earned_byte_hours") && spent <= number(bob, "spent_byte_hours"));
    assert!(earned >= later[&("ann".into(), "bob".into())].0);
    assert_eq!((text(bob, "state").as_str(), bob.get("dispute").is_some()), ("ok", true));
    assert!(matches!(bob.get("dispute"), Some(Value::Null)), "{bob:?}");
    let days = cells[0].get("/bounty/history?peer=bob");
    assert!(items(&days, "days").len() >= 2, "{days:?}");
    assert!(cells[0].alert("bounty-dispute").is_none() && cells[1].alert("bounty-dispute").is_none());
    assert!(cells[2].alert("bounty-books").is_none());
}

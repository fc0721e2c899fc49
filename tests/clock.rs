//! The program under a wrong clock: libfaketime stands between it and the C library's `clock_gettime`, through which
//! alone it learns the time of day.

mod common;

use std::fs;
use std::path::PathBuf;

use common::*;
use grove::clock::{Clock, SystemClock};
use miniserde::json::Value;

/// `libfaketime.so.1` of the package faketime.
fn library() -> Option<PathBuf> {
    let below = |folder: &str| fs::read_dir(folder).into_iter().flatten().flatten();
    let mut folders: Vec<PathBuf> = below("/usr/lib").map(|entry| entry.path()).collect();
    folders.extend(["/usr/lib", "/usr/local/lib", "/usr/lib64"].map(PathBuf::from));
    folders.into_iter().map(|folder| folder.join("faketime/libfaketime.so.1")).find(|path| path.exists())
}

/// The library, or word that the test is skipped.
fn library_or_skip(test: &str) -> Option<PathBuf> {
    let found = library();
    if found.is_none() {
        assert!(!is_ci(), "the package faketime is needed");
        eprintln!("skipped: {test} (it needs the package faketime)");
    }
    found
}

/// Sets the clock of the cell's next run: `FAKETIME` as faketime(1) says, or the right time.
fn set_clock(cell: &mut Cell, library: &std::path::Path, fake: Option<&str>) {
    cell.env.clear();
    if let Some(fake) = fake {
        let set = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        cell.env = vec![
            set("LD_PRELOAD", library.to_str().unwrap()),
            set("FAKETIME", fake),
            // Only the time of day is wrong, and files have the times they have.
            set("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
            set("NO_FAKE_STAT", "1"),
            set("TZ", "UTC"),
        ];
    }
}

/// The cell's own idea of the time, in years: an invite says when it expires.
fn year(cell: &Cell) -> u64 {
    let token = cell.cli(["invite", "--expires", "1h"]).ok().out;
    let invite: grove::card::Invite = token.trim().parse().unwrap();
    1970 + invite.expires / 31_556_952
}

/// Contents of all versions of a file, the oldest first.
fn history(cell: &Cell, path: &str) -> Vec<String> {
    let versions = object(&cell.cli(["versions", path, "--json"]).ok().out);
    let mut numbers: Vec<u64> = items(&versions, "versions")
        .iter()
        .map(|version| match version {
            Value::Object(version) => number(version, "version"),
            _ => panic!("a version is an object"),
        })
        .collect();
    numbers.sort_unstable();
    let content = |n: u64| cell.cli(["get", path, "-o", "-", "--version", &n.to_string()]).ok().out;
    numbers.into_iter().map(content).collect()
}

/// Keeps a new version, and waits until it is published.
fn keep(cell: &Cell, name: &str, content: &str) {
    // Empty, as it is for a moment, it would be one more.
    cell.at_once(|| fs::write(cell.home.join(name), content).unwrap());
    cell.cli([std::ffi::OsStr::new("add"), cell.home.as_os_str()]).ok();
}

fn bin(cell: &Cell) -> usize {
    items(&cell.get("/bin"), "entries").len()
}

#[test]
fn clock_in_2038_and_1970_and_back_loses_and_expires_nothing_and_keeps_the_order() {
    let test = "clock_in_2038_and_1970_and_back_loses_and_expires_nothing_and_keeps_the_order";
    let Some(library) = library_or_skip(test) else { return };
    let temp = TempDir::new("clock");
    let mut cell = Cell::at(temp.path(), "a");
    cell.init("ann", &[]);
    cell.run();
    let mut contents = Vec::new();
    let mut write = |cell: &Cell| {
        contents.push(format!("version {}", contents.len()));
        keep(cell, "letter", contents.last().unwrap());
        contents.clone()
    };
    write(&cell);
    write(&cell);
    keep(&cell, "binned", "binned");
    cell.cli(["rm", "binned"]).ok();
    assert_eq!(cell.alert("clock"), None);
    let this_year = year(&cell);
    cell.stop();
    for (fake, wrong_year) in [
        (Some("@2038-01-18 00:00:00"), Some(2038)),
        (Some("@1970-01-02 00:00:00"), Some(1970)),
        (None, None),
        (Some("@1970-01-02 00:00:00"), Some(1970)),
        (Some("@2038-01-18 00:00:00"), Some(2038)),
        (None, None),
    ] {
        set_clock(&mut cell, &library, fake);
        cell.run();
        assert_eq!(year(&cell), wrong_year.unwrap_or(this_year), "the program sees the clock that was set");
        assert_eq!(cell.alert("clock").is_some(), wrong_year.is_some(), "{:?}", cell.alert("clock"));
        let all = write(&cell);
        cell.job_done("/collect", "{}");
        assert_eq!(history(&cell, "letter"), all, "{fake:?}");
        assert_eq!(bin(&cell), 1, "{fake:?}");
        // Once by a stop, once by a kill: what was saved must do.
        if all.len() % 2 == 0 {
            cell.stop();
        } else {
            cell.kill();
        }
    }
    cell.run();
    let letter = cell.home.join("letter");
    assert_eq!(fs::read_to_string(&letter).unwrap(), *history(&cell, "letter").last().unwrap());
    cell.cli(["restore", "binned"]).ok();
    assert_eq!(fs::read_to_string(cell.home.join("binned")).unwrap(), "binned");
    cell.verify_deep();
}

#[test]
fn time_switched_off_counts_once_two_peers_agree_on_it() {
    let Some(library) = library_or_skip("time_switched_off_counts_once_two_peers_agree_on_it") else {
        return;
    };
    if SystemClock::default().is_synchronized() {
        eprintln!("skipped: time_switched_off_counts_once_two_peers_agree_on_it (NTP keeps the clock here)");
        return;
    }
    let temp = TempDir::new("peers-time");
    let mut cells = ["ann", "bob", "eve"].map(|name| {
        let mut cell = Cell::at(temp.path(), name);
        cell.init(name, &[("sync.every_s", "1"), ("bin.days", "5")]);
        cell.run();
        cell
    });
    let [ann, bob, eve] = &mut cells;
    ann.invite(bob);
    ann.invite(eve);
    keep(ann, "binned", "binned");
    ann.cli(["rm", "binned"]).ok();
    for cell in [&mut *ann, &mut *bob, &mut *eve] {
        cell.stop();
    }
    let collected = |ann: &Cell| {
        ann.job_done("/collect", "{}");
        bin(ann)
    };
    // Ten days later; Ann's clock stood still, as that of a board without battery does. One peer alone may lie.
    set_clock(bob, &library, Some("+10d"));
    bob.run();
    ann.run();
    ann.cli(["sync", "--wait"]);
    wait_for("bob is heard", || (!text_of_peer(ann, "bob", "address").is_empty()).then_some(()));
    ann.cli(["sync", "--wait"]);
    assert_eq!(collected(ann), 1);
    // The second says something else: they do not agree.
    set_clock(eve, &library, Some("+20d"));
    eve.run();
    wait_for("eve is heard", || ann.cli(["sync", "--wait"]).status.success().then_some(()));
    assert_eq!(collected(ann), 1);
    assert_eq!(ann.alert("clock"), None);
    eve.stop();
    set_clock(eve, &library, Some("+10d"));
    eve.run();
    wait_for("two peers agree", || {
        ann.cli(["sync", "--wait"]);
        (collected(ann) == 0).then_some(())
    });
    // And what the clock here shows is known to be wrong.
    assert!(ann.alert("clock").unwrap().contains("behind"), "{:?}", ann.alert("clock"));
}

fn text_of_peer(cell: &Cell, name: &str, key: &str) -> String {
    let peers = cell.get("/peers");
    let mut found = items(&peers, "peers").iter().filter_map(|peer| match peer {
        Value::Object(peer) if text(peer, "name") == name => Some(text(peer, key)),
        _ => None,
    });
    found.next().unwrap_or_default()
}

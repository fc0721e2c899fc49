//! A full disk: what does not fit is said clearly, the cell stays up, and removing something lets it go on.

mod common;

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::*;

const MIB: usize = 1 << 20;

/// A small disk in memory, unmounted when dropped.
struct Disk(PathBuf);

impl Disk {
    /// `None` where this machine does not let us mount.
    fn mount(at: &Path, mib: usize) -> Option<Self> {
        fs::create_dir_all(at).unwrap();
        let size = format!("size={mib}m,mode=0755");
        let mount = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(at).output();
        match mount {
            Ok(output) if output.status.success() => Some(Self(at.to_owned())),
            _ => None,
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).output();
    }
}

/// Two small disks for the state and for GroveHome; says why the test is skipped where there can be none.
fn disks(temp: &TempDir, state_mib: usize, home_mib: usize) -> Option<(Disk, Disk)> {
    if is_root() {
        let state = Disk::mount(&temp.path().join("disk-state"), state_mib);
        let home = Disk::mount(&temp.path().join("disk-home"), home_mib);
        if let (Some(state), Some(home)) = (state, home) {
            return Some((state, home));
        }
    }
    assert!(!(is_ci() && is_root()), "small disks cannot be mounted here");
    eprintln!("skipped: full disk (it takes root and the right to mount)");
    None
}

fn cell_on(temp: &TempDir, state: &Disk, home: &Disk) -> Cell {
    Cell::with(state.0.join("state"), home.0.join("home"), temp.path().join("a.log"))
}

fn add(cell: &Cell, path: &Path) -> Said {
    cell.cli([OsStr::new("add"), path.as_os_str()])
}

/// Collects until so many bytes of chunks are held at most.
fn collect_down_to(cell: &Cell, bytes: usize) {
    wait_for("room is made", || {
        cell.job_done("/collect", "{}");
        (number(&cell.get("/status"), "chunks.bytes") <= bytes as u64).then_some(())
    });
}

#[test]
fn full_state_disk_is_said_and_removing_files_makes_room() {
    let temp = TempDir::new("full-state");
    let Some((state, home)) = disks(&temp, 64, 200) else { return };
    let mut chance = Chance::seeded("full disk");
    let mut cell = cell_on(&temp, &state, &home);
    let settings = [("bin.days", "0"), ("versions.full_days", "0"), ("disk.reserve_bytes_min", "4194304")];
    cell.init("ann", &settings);
    cell.run();
    let place = |name: &str| home.0.join("home").join(name);
    let first = chance.bytes(20 * MIB);
    fs::write(place("first"), &first).unwrap();
    add(&cell, &place("first")).ok();

    // Large and small files that cannot all fit.
    for number in 0..5 {
        fs::write(place(&format!("large {number}")), chance.bytes(20 * MIB)).unwrap();
    }
    fs::create_dir(place("small")).unwrap();
    for number in 0..300 {
        fs::write(place(&format!("small/{number}")), chance.bytes(50_000)).unwrap();
    }
    let said = add(&cell, &home.0.join("home"));
    assert!(!said.status.success(), "all of it was kept: {}", said.out);
    let told = said.err.to_lowercase();
    assert!(told.contains("full") || told.contains("free"), "no word of the disk: {}", said.err);
    assert!(cell.is_up(), "{}", cell.log_text());
    assert_eq!(cell.content("first").unwrap(), first, "what was kept before");

    // Status says it, with what to do.
    let (what, remedy) = wait_for("status tells of the full disk", || {
        let status = cell.get("/status");
        items(&status, "alerts").iter().find_map(|alert| {
            let alert = object(&miniserde::json::to_string(alert));
            let what = text(&alert, "text");
            let told = what.to_lowercase();
            (told.contains("full") || told.contains("free") || told.contains("room"))
                .then(|| (what, text(&alert, "remedy")))
        })
    });
    assert!(!remedy.is_empty(), "{what}");
    let status = cell.get("/status");
    assert!(number(&status, "disk.free") > 0 && number(&status, "disk.reserve") == 4 * MIB as u64);

    // Removing makes room, without a restart.
    for number in 0..5 {
        let name = format!("large {number}");
        if !cell.cli(["rm", &name]).status.success() {
            // It never fitted, so the cell does not know it.
            fs::remove_file(place(&name)).unwrap();
        }
    }
    cell.cli(["confirm"]).ok();
    collect_down_to(&cell, 42 * MIB);
    add(&cell, &home.0.join("home")).ok();
    assert_eq!(cell.content("small/299").unwrap(), fs::read(place("small/299")).unwrap());
    assert_eq!(cell.content("first").unwrap(), first);
    cell.verify_deep();
    cell.no_temps();
    assert!(cell.is_up());

    // And the next start finds all in order.
    cell.stop();
    cell.run();
    assert_eq!(cell.content("first").unwrap(), first);
}

#[test]
fn full_home_disk_stops_a_restore_with_words_and_leaves_nothing_half() {
    let temp = TempDir::new("full-home");
    let Some((state, home)) = disks(&temp, 128, 40) else { return };
    let mut chance = Chance::seeded("full home");
    let mut cell = cell_on(&temp, &state, &home);
    cell.init("ann", &[]);
    cell.run();
    let place = |name: &str| home.0.join("home").join(name);
    let bytes = chance.bytes(24 * MIB);
    fs::write(place("wanted"), &bytes).unwrap();
    add(&cell, &place("wanted")).ok();
    cell.cli(["rm", "wanted"]).ok();
    assert!(!place("wanted").exists());
    // Another program takes the room.
    fs::write(home.0.join("others"), chance.bytes(30 * MIB)).unwrap();

    let said = cell.cli(["restore", "wanted"]);
    assert!(!said.status.success(), "{}", said.out);
    let told = said.err.to_lowercase();
    assert!(told.contains("space") || told.contains("full"), "no word of the disk: {}", said.err);
    assert!(!place("wanted").exists());
    assert!(cell.is_up());
    cell.no_temps();

    // An import from outside does not fit either.
    let outside = temp.path().join("outside");
    fs::write(&outside, chance.bytes(20 * MIB)).unwrap();
    let said = add(&cell, &outside);
    assert!(!said.status.success() && said.err.contains("outside"), "{}{}", said.out, said.err);
    assert!(cell.is_up());
    cell.no_temps();

    // With room again it comes back by itself or when asked for.
    fs::remove_file(home.0.join("others")).unwrap();
    cell.cli(["restore", "wanted"]);
    wait_for("the file is back", || (fs::read(place("wanted")).ok()? == bytes).then_some(()));
    cell.verify_deep();
    assert!(cell.is_up());
}

/// What waits for a friend whose disk is full is not lost, and comes as soon as there is room; what cannot be kept is not
/// said either.
#[test]
fn messages_wait_for_a_friend_whose_disk_is_full() {
    let temp = TempDir::new("full-chat");
    let Some((state, home)) = disks(&temp, 48, 16) else { return };
    let mut bob = cell_on(&temp, &state, &home);
    bob.init("bob", &[("disk.reserve_bytes_min", "4194304")]);
    bob.run();
    let mut ann = Cell::at(temp.path(), "ann");
    ann.init("ann", &[]);
    ann.run();
    let token = ann.cli(["invite", "--friend"]).ok().out.trim().to_owned();
    bob.cli(["join", &token]).ok();
    common::fleet::wait_online(&[&ann, &bob]);
    let texts = |cell: &Cell, with: &str| -> Vec<String> {
        let page = cell.get(&format!("/chat/messages?peer={with}"));
        let all = items(&page, "messages").iter();
        all.map(|item| text(&object(&miniserde::json::to_string(item)), "text")).collect()
    };
    ann.cli(["chat", "bob", "before"]).ok();
    wait_for("it came", || (texts(&bob, "ann") == ["before"]).then_some(()));

    // Another program fills the disk to its last byte.
    let others = state.0.join("others");
    let mut file = fs::File::create(&others).unwrap();
    let piece = vec![7; 64 * 1024];
    while std::io::Write::write_all(&mut file, &piece).is_ok() {}
    ann.cli(["chat", "bob", "while it is full"]).ok();
    let long = "x".repeat(60_000);
    let said = wait_for("nothing more can be kept", || {
        let said = bob.cli(["chat", "ann", &long]);
        (!said.status.success()).then_some(said)
    });
    assert!(said.err.to_lowercase().contains("full"), "{said:?}");
    let kept = texts(&bob, "ann").len();
    assert!(bob.is_up(), "{}", bob.log_text());
    let talks = ann.get("/chat");
    let talk = object(&miniserde::json::to_string(&items(&talks, "conversations")[0]));
    assert_eq!(number(&talk, "queued"), 1);
    assert!(!texts(&bob, "ann").contains(&"while it is full".to_owned()));

    drop(file);
    fs::remove_file(&others).unwrap();
    wait_for("there is room again", || {
        texts(&bob, "ann").contains(&"while it is full".to_owned()).then_some(())
    });
    bob.kill();
    bob.run();
    assert_eq!(texts(&bob, "ann").len(), kept + 1);
    bob.cli(["chat", "ann", "after"]).ok();
    wait_for("it came", || (texts(&ann, "bob").last()? == "after").then_some(()));
}

/// A board died, and the card of the next one is too small for all: what has no room is said to have none, can be read all the
/// same, and comes when there is some.
#[test]
fn what_a_recovered_cell_has_no_room_for_waits_and_can_be_read() {
    let temp = TempDir::new("full-recovery");
    let Some((state, home)) = disks(&temp, 170, 200) else { return };
    let mut chance = Chance::seeded("small card");
    let (mut ann, mut bob) = (Cell::at(temp.path(), "ann"), Cell::at(temp.path(), "bob"));
    // What it recovers with is set back to what the catalog says: 120 of the 170 MiB stay in reserve.
    ann.init("ann", &[("disk.reserve_bytes_min", "125829120")]);
    bob.init("bob", &[]);
    ann.run();
    bob.run();
    ann.invite(&bob);
    let files: Vec<(String, Vec<u8>)> =
        (0..20).map(|n| (format!("{n}.bin"), chance.bytes(if n == 0 { 30 } else { 3 } * MIB))).collect();
    for (name, bytes) in &files {
        common::fleet::plant(&ann.home, name, bytes);
    }
    common::fleet::plant(&ann.home, "small.txt", b"small");
    common::fleet::copied(&ann, files.len() as u64 + 1);
    let wanted = inventory(&ann.home);
    let note = temp.path().join("phrase");
    fs::write(&note, ann.phrase()).unwrap();
    ann.kill();

    let mut again = cell_on(&temp, &state, &home);
    let said = again
        .cli(["recover", "--peer", &bob.address(), "--phrase-file", note.to_str().unwrap()].map(OsStr::new));
    assert!(!said.status.success() && said.err.contains("this disk has no room"), "{said:?}");
    assert!(!said.err.contains("reachable"), "{said:?}");
    // A large one that has no room keeps no small one waiting.
    assert!(again.home.join("small.txt").exists());
    again.keep_to_itself();
    again.run();
    let told = wait_for("it is told", || again.alert("awaiting-room"));
    assert!(told.contains("no room"), "{told}");
    assert_eq!(again.alert("awaiting"), None);
    common::fleet::wait_online(&[&again]);
    for (name, bytes) in &files {
        assert!(again.content(name).unwrap() == *bytes, "{name}");
    }
    let one = again.cli(["get", "0.bin"]).ok();
    assert_eq!(one.out.len(), String::from_utf8_lossy(&files[0].1).len());

    // With more room all of it comes.
    again.stop();
    again.change(&[("disk.reserve_percent", "0"), ("disk.reserve_bytes_min", "1048576")]);
    again.run();
    wait_for("all is back", || {
        let names = |all: &std::collections::BTreeMap<_, _>| all.keys().cloned().collect::<Vec<_>>();
        (names(&inventory(&again.home)) == names(&wanted)).then_some(())
    });
    assert_same(&wanted, &inventory(&again.home));
    wait_for("nothing waits", || again.alert("awaiting-room").is_none().then_some(()));
    again.verify_deep();
}

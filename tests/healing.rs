//! Five cells as processes, and what happens to homes: one peer is lost for ever, one's chunks are damaged, one comes back
//! from an old backup of its folder, one's disk fills up. Copies are made again each time, and in the end the owner's board
//! dies too and everything comes back.

mod common;

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use common::fleet::{copied_within, plant};
use common::*;
use miniserde::json::Value;

const LIMIT: Duration = Duration::from_secs(90);
const SETTINGS: [(&str, &str); 4] =
    [("copies", "3"), ("sync.every_s", "3"), ("heal.grace_s", "6"), ("heal.settle_s", "5")];

fn peers_online(cell: &Cell) -> usize {
    let peers = cell.get("/peers");
    let is_online = |peer: &&Value| match peer {
        Value::Object(peer) => matches!(peer.get("online"), Some(Value::Bool(true))),
        _ => false,
    };
    items(&peers, "peers").iter().filter(is_online).count()
}

/// Keeps all that lies in GroveHome now.
fn keep_all(cell: &Cell) {
    cell.cli([OsStr::new("add"), cell.home.as_os_str()]).ok();
}

fn wait_peers(cell: &Cell, count: usize) {
    wait_for("peers are connected", || (peers_online(cell) == count).then_some(()));
}

/// Chunks that each peer proves to hold, by name, when all are asked for everything; `None` if anything was amiss.
fn proven(cell: &Cell) -> Option<Vec<(String, u64)>> {
    let job = cell.job_done("/verify", r#"{"peers":true}"#);
    let mut all = Vec::new();
    for peer in items(&job, "result.peers") {
        let Value::Object(peer) = peer else { panic!("{job:?}") };
        if ["missing", "damaged", "false", "given_up", "unanswered"].iter().any(|key| number(peer, key) > 0) {
            return None;
        }
        all.push((text(peer, "name"), number(peer, "proven")));
    }
    Some(all)
}

/// Waits until peers prove two copies of each chunk, and no more.
fn wait_two_proven_copies(cell: &Cell) -> Vec<(String, u64)> {
    wait_for("each chunk has two proven copies", || {
        copied_within(cell, LIMIT);
        let status = cell.get("/status");
        let chunks = number(&status, "copies.full") + number(&status, "copies.short");
        let proven = proven(cell)?;
        (proven.iter().map(|(_, count)| count).sum::<u64>() == 2 * chunks).then_some(proven)
    })
}

/// A small disk in memory, unmounted when dropped; a folder where this machine does not let us mount.
struct Disk(PathBuf, bool);

impl Disk {
    fn mount(at: PathBuf, mib: usize) -> Self {
        fs::create_dir_all(&at).unwrap();
        let size = format!("size={mib}m,mode=0755");
        let mount = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(&at).output();
        let is_mounted = is_root() && mount.is_ok_and(|output| output.status.success());
        assert!(is_mounted || !(is_ci() && is_root()), "small disks cannot be mounted here");
        Self(at, is_mounted)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if self.1 {
            let _ = Command::new("umount").arg("-l").arg(&self.0).output();
        }
    }
}

#[test]
fn a_fleet_loses_a_peer_a_disk_and_a_year_of_a_disk_and_no_file() {
    let temp = TempDir::new("healing");
    let mut chance = Chance::seeded("healing");
    let disk = Disk::mount(temp.path().join("small"), 96);
    let mut ann = Cell::at(temp.path(), "ann");
    let mut bob = Cell::at(temp.path(), "bob");
    let mut cat = Cell::at(temp.path(), "cat");
    let mut eve = Cell::at(temp.path(), "eve");
    let mut dan = Cell::with(disk.0.join("state"), temp.path().join("dan home"), temp.path().join("dan.log"));
    for (cell, name) in
        [(&mut ann, "ann"), (&mut bob, "bob"), (&mut cat, "cat"), (&mut dan, "dan"), (&mut eve, "eve")]
    {
        cell.init(name, &SETTINGS);
        cell.run();
    }
    // A real tree: this project's own, and files of several chunks.
    let project = Path::new(env!("CARGO_MANIFEST_DIR"));
    for folder in ["src", "docs", "tests", "scripts"] {
        let to = ann.home.join("project");
        fs::create_dir_all(&to).unwrap();
        let done = Command::new("cp").arg("-a").arg(project.join(folder)).arg(&to).status().unwrap();
        assert!(done.success());
    }
    for n in 0..40 {
        plant(&ann.home, &format!("photo {n}"), &chance.bytes(400_000 + n * 1000));
    }
    plant(&ann.home, "film", &chance.bytes(13 << 20));
    for peer in [&bob, &cat, &dan, &eve] {
        ann.invite(peer);
    }
    wait_peers(&ann, 4);
    // Who gets what goes by how fast they seem, which is chance here; favorites come first.
    let favor = |words: &[&str]| ann.cli(["peer", "favorite"].iter().chain(words)).ok();
    for name in ["bob", "eve"] {
        favor(&[name]);
    }
    keep_all(&ann);
    let held = wait_two_proven_copies(&ann);
    let holds =
        |held: &[(String, u64)], name: &str| held.iter().any(|(peer, count)| peer == name && *count > 0);
    assert!(held.len() == 4 && holds(&held, "bob") && holds(&held, "eve"), "{held:?}");

    // One is lost for ever: after the grace its copies are with others.
    favor(&["cat"]);
    bob.kill();
    remove_tree(&bob.dir);
    wait_for("what bob held is with others", || {
        let held = wait_two_proven_copies(&ann);
        (!holds(&held, "bob") && holds(&held, "cat")).then_some(())
    });
    assert!(ann.log_text().contains("bob has been silent too long"), "{}", ann.log_text());

    // One's disk fails here and there.
    let chunks = loose_chunks(&cat);
    assert!(chunks.len() > 4, "{chunks:?}");
    for (at, path) in chunks.iter().enumerate().take(5) {
        let mut bytes = fs::read(path).unwrap();
        match at {
            0 | 1 => bytes[1000] ^= 4,
            2 => bytes.truncate(1000),
            3 => bytes.clear(),
            _ => bytes.extend_from_slice(b"more"),
        }
        fs::write(path, bytes).unwrap();
    }
    assert_eq!(proven(&ann), None, "damage is found");
    wait_two_proven_copies(&ann);
    assert!(cat.alert("damaged-held").is_some() && ann.alert("peer-lost").is_some());
    cat.verify_deep();

    // One comes back from a copy of its folder that is older than what it has promised since.
    eve.stop();
    let backup = temp.path().join("eve backup");
    let copy = |from: &Path, to: &Path| {
        assert!(Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap().success());
    };
    copy(&eve.dir, &backup);
    eve.run();
    for n in 0..30 {
        plant(&ann.home, &format!("later {n}"), &chance.bytes(300_000));
    }
    plant(&ann.home, "project/src/lib.rs", b"another version");
    wait_peers(&ann, 3);
    keep_all(&ann);
    let before = wait_two_proven_copies(&ann);
    eve.kill();
    remove_tree(&eve.dir);
    copy(&backup, &eve.dir);
    eve.run();
    wait_peers(&ann, 3);
    let after = wait_two_proven_copies(&ann);
    assert!(holds(&before, "eve") && holds(&after, "eve"), "{before:?} {after:?}");
    eve.verify_deep();

    // One's disk fills up: it says so and stays up, and others take what it cannot.
    if disk.1 {
        let mut rest = fs::File::create(disk.0.join("junk")).unwrap();
        let piece = vec![7; 1 << 20];
        while std::io::Write::write_all(&mut rest, &piece).is_ok() {}
        drop(rest);
        let junk = fs::OpenOptions::new().write(true).open(disk.0.join("junk")).unwrap();
        let len = junk.metadata().unwrap().len();
        junk.set_len(len.saturating_sub(3 << 20)).unwrap();
        for name in ["bob", "cat", "eve"] {
            favor(&["--off", name]);
        }
        favor(&["dan"]);
        plant(&ann.home, "another film", &chance.bytes(21 << 20));
        keep_all(&ann);
        wait_two_proven_copies(&ann);
        assert!(dan.is_up());
        fs::remove_file(disk.0.join("junk")).unwrap();
    }

    // And then the owner's board dies.
    let (wanted, phrase) = (inventory(&ann.home), ann.phrase());
    ann.kill();
    remove_tree(&ann.dir);
    remove_tree(&ann.home);
    let note = temp.path().join("phrase");
    fs::write(&note, phrase).unwrap();
    let peer = cat.address();
    let words = ["recover", "--peer", &peer, "--phrase-file"].map(OsStr::new);
    let again = Cell::at(temp.path(), "ann again");
    again.cli(words.into_iter().chain([note.as_os_str()])).ok();
    assert_same(&wanted, &inventory(&again.home));
}

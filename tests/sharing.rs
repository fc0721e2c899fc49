//! Three cells: ann shares with cid, and bob holds what she keeps and is no friend of anybody.

mod common;

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use common::feed::{appears, big_bytes, feed, fetch, objects};
use common::fleet::{copied_within, kept, plant};
use common::{Cell, Chance, TempDir, free_port, items, number, text, wait_count, wait_for};
use miniserde::json::{Object, Value};

const FILES: usize = 1000;

fn started(folder: &TempDir, name: &str) -> Cell {
    let mut cell = Cell::at(folder.path(), name);
    let address = format!("[\"{}\"]", cell.address());
    cell.init(name, &[("peer.addresses", &address), ("sync.every_s", "2")]);
    cell.run();
    cell
}

fn entry(cell: &Cell, name: &str) -> Option<Object> {
    feed(cell).into_iter().find(|entry| text(entry, "name") == name)
}

fn gone(cell: &Cell, name: &str) {
    wait_for(&format!("{name} no more in the Feed"), || entry(cell, name).is_none().then_some(()));
}

fn online(cell: &Cell, peer: &str) {
    let is_online = |peer: &Object| matches!(peer.get("online"), Some(Value::Bool(true)));
    wait_for(&format!("{peer} is connected"), || {
        let peers = objects(items(&cell.get("/peers"), "peers"));
        peers.iter().any(|known| text(known, "name") == peer && is_online(known)).then_some(())
    });
}

/// The bytes of a file of the Feed from `first` to `last`, as a browser asks for them.
fn range(cell: &Cell, entry: &Object, offset: usize, length: usize) -> Vec<u8> {
    let path = format!("/api/v1/feed/content?id={}&offset={offset}&length={length}", text(entry, "id"));
    cell.ask(|client| client.request("GET", &path, None).unwrap().into_ok().unwrap().bytes(64 << 20).unwrap())
}

#[test]
fn a_friend_reads_what_is_shared_from_whoever_holds_it_until_it_is_taken_back() {
    let folder = TempDir::new("sharing");
    let mut chance = Chance::seeded("sharing");
    let (mut ann, bob, mut cid) = (started(&folder, "ann"), started(&folder, "bob"), started(&folder, "cid"));
    ann.invite(&bob);
    let token = ann.cli(["invite", "--friend"]).ok().out.trim().to_owned();
    cid.cli(["join", &token]).ok();
    ann.cli(["peer", "favorite", "bob"]).ok();
    online(&ann, "bob");
    online(&ann, "cid");

    let big = chance.bytes(big_bytes());
    plant(&ann.home, "big.bin", &big);
    let small: Vec<Vec<u8>> = (0..FILES).map(|_| chance.bytes(2000)).collect();
    for (n, bytes) in small.iter().enumerate() {
        plant(&ann.home, &format!("notes/part {}/f{n}", n % 3), bytes);
    }
    let scripts = "<script>alert(1)<\u{202e}script>.html";
    plant(&ann.home, scripts, b"text");
    kept(&ann, FILES as u64 + 2);
    copied_within(&ann, Duration::from_secs(300));

    // Only friends are shared with.
    let said = ann.cli(["share", "big.bin", "bob"]);
    assert!(!said.status.success() && said.err.contains("bob is no friend"), "{said:?}");
    let began = Instant::now();
    let said = ann.cli(["share", "big.bin", "cid"]).ok().out;
    assert_eq!(said, "big.bin is shared with cid (1 file).\n");
    ann.cli(["share", "notes", "cid"]).ok();
    ann.cli(["share", scripts, "cid"]).ok();

    wait_count("all is in the Feed", FILES as u64 + 2, || feed(&cid).len() as u64);
    println!("{} files are in the Feed after {} ms", FILES + 2, began.elapsed().as_millis());
    let shown = appears(&cid, "_script_alert(1)__script_.html", |_| true);
    assert_eq!(text(&shown, "media"), "text/html");
    let listed = cid.cli(["feed"]).ok().out;
    assert!(listed.contains("notes/") || listed.contains("part 0/f0"), "{listed}");
    assert!(!listed.contains('\u{202e}') && listed.contains("available"));
    let shared = ann.cli(["feed"]).ok().out;
    assert!(shared.contains("shared by this cell") && shared.contains("notes/"), "{shared}");

    // A part is read without the rest, from the sharer.
    let about_big = appears(&cid, "big.bin", |entry| number(entry, "holders") >= 1);
    let part = range(&cid, &about_big, (4 << 20) - 5, 10);
    assert_eq!(part, big[(4 << 20) - 5..(4 << 20) + 5]);

    // The sharer is off: it comes from the holder, who is no peer of the friend's.
    appears(&cid, "f7", |entry| number(entry, "holders") >= 1);
    ann.stop();
    let to = folder.path().join("fetched");
    let began = Instant::now();
    let said = fetch(&cid, &about_big, &to).ok();
    println!("{} MiB came from a holder within {} ms", big.len() >> 20, began.elapsed().as_millis());
    assert_eq!(fs::read(&to).unwrap(), big, "{said:?}");
    assert_eq!(text(&entry(&cid, "big.bin").unwrap(), "state"), "verified");
    let said = fetch(&cid, &about_big, &to);
    assert!(!said.status.success() && said.err.contains("there already"), "{said:?}");
    let f7 = entry(&cid, "f7").unwrap();
    cid.cli(["fetch", &text(&f7, "id"), "--add", "--to", "from ann"]).ok();
    assert_eq!(cid.content("from%20ann/f7".replace("%20", " ").as_str()).unwrap(), small[7]);
    for name in [&to, &cid.home.join("from ann")] {
        let folder = if name.is_dir() { name.as_path() } else { name.parent().unwrap() };
        let left = fs::read_dir(folder).unwrap().flatten();
        assert!(left.into_iter().all(|e| !e.file_name().to_string_lossy().starts_with(".grove-tmp")));
    }

    // A later version arrives; what is moved out of the folder is taken back.
    ann.run();
    online(&cid, "ann");
    plant(&ann.home, "notes/part 0/f0", b"a later version");
    let later = appears(&cid, "f0", |entry| number(entry, "version") >= 2);
    let to = folder.path().join("later");
    fetch(&cid, &later, &to).ok();
    assert_eq!(fs::read(&to).unwrap(), b"a later version");
    fs::rename(ann.home.join("notes/part 1/f1"), ann.home.join("f1")).unwrap();
    gone(&cid, "f1");
    plant(&ann.home, "notes/new one", b"new");
    appears(&cid, "new one", |_| true);
    appears(&cid, "f9", |entry| number(entry, "holders") >= 1);

    // Taken back while the friend is off: the holder, who has synced since, refuses; and so does the sharer.
    cid.stop();
    wait_for("cid is gone", || {
        let peers = objects(items(&ann.get("/peers"), "peers"));
        let is_off = |peer: &Object| matches!(peer.get("online"), Some(Value::Bool(false)));
        peers.iter().any(|peer| text(peer, "name") == "cid" && is_off(peer)).then_some(())
    });
    let said = ann.cli(["unshare", "big.bin", "cid"]).ok().out;
    assert!(said.contains("no longer shared with cid: 1 file") && said.contains("stays with them"), "{said}");
    assert!(said.contains("connected, and may serve it until then:") && said.contains("cid"), "{said}");
    // A holder that did not hear of it at once, on a busy machine, has heard of it after a round.
    copied_within(&ann, Duration::from_secs(300));
    ann.stop();
    cid.run();
    let to = folder.path().join("too late");
    let said = fetch(&cid, &about_big, &to);
    assert!(!said.status.success() && said.err.contains("taken back"), "{said:?}\n{}", bob.log_text());
    let f9 = entry(&cid, "f9").unwrap();
    fetch(&cid, &f9, &folder.path().join("f9")).ok();
    ann.run();
    gone(&cid, "big.bin");
    assert!(!to.exists());

    // The end of the friendship takes back the rest.
    ann.cli(["peer", "unfriend", "cid"]).ok();
    wait_for("nothing is left in the Feed", || feed(&cid).is_empty().then_some(()));
    assert!(items(&ann.get("/shares"), "shares").is_empty());
    assert!(!ann.cli(["share", "big.bin", "cid"]).status.success());
}

/// Waits until a file has these bytes.
fn has(path: &Path, bytes: &[u8]) {
    let what = format!("{} has the bytes that it should have", path.display());
    wait_for(&what, || (fs::read(path).is_ok_and(|there| there == bytes)).then_some(()));
}

fn is_gone(path: &Path) {
    wait_for(&format!("{} is gone", path.display()), || (!path.exists()).then_some(()));
}

/// Ann and her friend cid.
fn friends(folder: &TempDir) -> (Cell, Cell) {
    let (ann, cid) = (started(folder, "ann"), started(folder, "cid"));
    let token = ann.cli(["invite", "--friend"]).ok().out.trim().to_owned();
    cid.cli(["join", &token]).ok();
    online(&ann, "cid");
    online(&cid, "ann");
    (ann, cid)
}

#[test]
fn a_kept_share_follows_its_owner_and_spares_what_was_changed_here() {
    let folder = TempDir::new("kept");
    let (ann, cid) = friends(&folder);
    for name in ["a.txt", "b.txt", "part/c.txt", "part/d.txt"] {
        plant(&ann.home, &format!("notes/{name}"), name.as_bytes());
    }
    kept(&ann, 4);
    ann.cli(["share", "notes", "cid"]).ok();
    wait_for("all is in the Feed", || (feed(&cid).len() == 4).then_some(()));
    let any = entry(&cid, "a.txt").unwrap();
    let said = cid.cli(["feed", "keep", &text(&any, "id")]).ok().out;
    assert!(said.contains("comes to Shared/ann/"), "{said}");
    let shared = cid.home.join("Shared/ann");
    for name in ["a.txt", "b.txt", "part/c.txt", "part/d.txt"] {
        has(&shared.join(name), name.as_bytes());
    }
    assert!(matches!(entry(&cid, "b.txt").unwrap().get("kept"), Some(Value::Bool(true))));

    // New files and versions come by themselves; a version that is replaced lies in the bin.
    plant(&ann.home, "notes/new.txt", b"new");
    has(&shared.join("new.txt"), b"new");
    plant(&ann.home, "notes/a.txt", b"a later version");
    has(&shared.join("a.txt"), b"a later version");
    has(&cid.home.join("Shared/.grove/bin/ann/a.txt"), b"a.txt");

    // They are nobody's copies and not imported; what else is put there is the cell's own.
    plant(&cid.home, "Shared/ann/own.txt", b"own");
    cid.cli(["add", "--help"]).ok();
    kept(&cid, 1);
    let listed = cid.cli(["ls", "Shared/ann"]).ok().out;
    assert!(listed.contains("own.txt") && !listed.contains("a.txt"), "{listed}");

    // What was changed here is set aside, is this cell's own, and the friend's version comes back.
    plant(&cid.home, "Shared/ann/b.txt", b"changed here");
    plant(&ann.home, "notes/b.txt", b"changed there");
    has(&shared.join("b.txt"), b"changed there");
    has(&shared.join("b (mine).txt"), b"changed here");
    kept(&cid, 2);
    assert_eq!(cid.content("Shared/ann/b (mine).txt").unwrap(), b"changed here");

    // A rename moves, a deletion goes to the bin, and so does what is moved out of the folder.
    fs::rename(ann.home.join("notes/new.txt"), ann.home.join("notes/renamed.txt")).unwrap();
    has(&shared.join("renamed.txt"), b"new");
    is_gone(&shared.join("new.txt"));
    // So do all files of a folder, with no new version of any; what was changed here stays, as this cell's own.
    plant(&cid.home, "Shared/ann/part/d.txt", b"mine");
    fs::rename(ann.home.join("notes/part"), ann.home.join("notes/piece")).unwrap();
    has(&shared.join("piece/c.txt"), b"part/c.txt");
    has(&shared.join("piece/d.txt"), b"part/d.txt");
    has(&shared.join("part/d (mine).txt"), b"mine");
    is_gone(&shared.join("part/c.txt"));
    kept(&cid, 3);
    fs::remove_file(shared.join("part/d (mine).txt")).unwrap();
    fs::remove_file(ann.home.join("notes/piece/c.txt")).unwrap();
    is_gone(&shared.join("piece/c.txt"));
    has(&cid.home.join("Shared/.grove/bin/ann/c.txt"), b"part/c.txt");
    fs::rename(ann.home.join("notes/piece/d.txt"), ann.home.join("d.txt")).unwrap();
    is_gone(&shared.join("piece"));

    // Kept no more: what is here stays, and is this cell's own.
    let said = cid.cli(["feed", "keep", &text(&any, "id"), "--off"]).ok().out;
    assert!(said.contains("3 files in Shared/ann/ stay and are yours"), "{said}");
    kept(&cid, 5);
    assert_eq!(cid.content("Shared/ann/a.txt").unwrap(), b"a later version");
    ann.cli(["unshare", "notes", "cid"]).ok();
    wait_for("nothing is left in the Feed", || feed(&cid).is_empty().then_some(()));
    has(&shared.join("a.txt"), b"a later version");
}

#[test]
fn the_brake_of_the_sharer_stops_deletions_and_changes_at_its_friends() {
    let folder = TempDir::new("braked");
    let (ann, cid) = friends(&folder);
    let name = |n: usize| format!("notes/f{n:02}");
    for n in 0..40 {
        plant(&ann.home, &name(n), b"as it was");
    }
    kept(&ann, 40);
    ann.cli(["share", "notes", "cid"]).ok();
    wait_for("all is in the Feed", || (feed(&cid).len() == 40).then_some(()));
    cid.cli(["feed", "keep", &text(&entry(&cid, "f00").unwrap(), "id")]).ok();
    let at = |n: usize| cid.home.join(format!("Shared/ann/f{n:02}"));
    (0..40).for_each(|n| has(&at(n), b"as it was"));
    // All at once, as by mistake.
    (0..40).for_each(|n| fs::remove_file(ann.home.join(name(n))).unwrap());
    wait_for("the brake is on", || ann.alert("brake"));
    ann.cli(["sync", "--wait"]).ok();
    cid.cli(["sync", "--wait"]).ok();
    assert!((0..40).filter(|n| at(*n).exists()).count() >= 19, "the brake holds back what comes after it");
}

/// Of a file that lies partly here, kept for the sharer, and partly at another holder, all is had while the sharer is off.
#[test]
fn what_this_cell_keeps_for_the_sharer_is_read_here_and_the_rest_elsewhere() {
    let folder = TempDir::new("parts");
    let (mut ann, cid) = friends(&folder);
    cid.cli(["peer", "quota", "ann", "10MB"]).ok();
    let big = Chance::seeded("parts").bytes(24 << 20);
    plant(&ann.home, "big.bin", &big);
    kept(&ann, 1);
    let held = || objects(items(&cid.get("/peers"), "peers"));
    wait_for("cid holds what it takes", || {
        ann.post("/sync", r#"{"wait":true}"#);
        held().iter().any(|peer| number(peer, "held_for_them_bytes") >= 4 << 20).then_some(())
    });
    let bob = started(&folder, "bob");
    ann.invite(&bob);
    copied_within(&ann, Duration::from_secs(300));
    // Holders of the parts find each other.
    cid.invite(&bob);
    online(&cid, "bob");
    ann.cli(["share", "big.bin", "cid"]).ok();
    let shared = appears(&cid, "big.bin", |entry| number(entry, "size") == 24 << 20);
    ann.stop();
    let to = folder.path().join("got.bin");
    fetch(&cid, &shared, &to).ok();
    assert!(fs::read(to).unwrap() == big, "byte for byte");
}

/// Healing gives copies to others than the friend was told of, as many as there were: it hears of them, and finds them while
/// the sharer is off.
#[test]
fn a_friend_finds_whoever_holds_the_copies_by_now() {
    let folder = TempDir::new("moved-copies");
    let (mut ann, cid) = friends(&folder);
    let mut bob = started(&folder, "bob");
    ann.invite(&bob);
    ann.cli(["peer", "favorite", "bob"]).ok();
    let big = Chance::seeded("moved-copies").bytes(9 << 20);
    plant(&ann.home, "big.bin", &big);
    kept(&ann, 1);
    copied_within(&ann, Duration::from_secs(300));
    ann.cli(["share", "big.bin", "cid"]).ok();
    appears(&cid, "big.bin", |entry| number(entry, "holders") == 1);
    let eve = started(&folder, "eve");
    ann.invite(&eve);
    ann.cli(["peer", "favorite", "eve"]).ok();
    bob.stop();
    ann.cli(["peer", "remove", "bob"]).ok();
    copied_within(&ann, Duration::from_secs(300));
    let to = folder.path().join("got.bin");
    comes_without(&mut ann, &cid, "big.bin", &to);
    assert!(fs::read(to).unwrap() == big, "byte for byte");
}

/// Fetches what Ann shares while she is off, once the friend has heard where else it is.
fn comes_without(sharer: &mut Cell, friend: &Cell, name: &str, to: &Path) {
    wait_for("the friend finds a holder", || {
        sharer.post("/sync", r#"{"wait":true}"#);
        online(friend, "ann");
        sharer.stop();
        let shared = entry(friend, name).unwrap();
        let has_come = fetch(friend, &shared, to).status.success();
        sharer.run();
        has_come.then_some(())
    });
}

/// A holder that was given another address while the sharer is there is found by its friend afterwards, with the sharer off.
#[test]
fn a_friend_finds_a_holder_where_it_is_by_now() {
    let folder = TempDir::new("moved-holder");
    let (mut ann, cid) = friends(&folder);
    let mut bob = started(&folder, "bob");
    ann.invite(&bob);
    ann.cli(["peer", "favorite", "bob"]).ok();
    let big = Chance::seeded("moved-holder").bytes(3 << 20);
    plant(&ann.home, "big.bin", &big);
    plant(&ann.home, "later.txt", b"comes after it");
    kept(&ann, 2);
    copied_within(&ann, Duration::from_secs(300));
    ann.cli(["share", "big.bin", "cid"]).ok();
    appears(&cid, "big.bin", |entry| number(entry, "holders") == 1);
    ann.cli(["share", "later.txt", "cid"]).ok();
    appears(&cid, "later.txt", |entry| number(entry, "holders") == 1);
    bob.stop();
    bob.peer_port = free_port();
    bob.change(&[("peer.addresses", &format!("[\"{}\"]", bob.address()))]);
    bob.run();
    online(&ann, "bob");
    let to = folder.path().join("got.bin");
    comes_without(&mut ann, &cid, "big.bin", &to);
    assert!(fs::read(to).unwrap() == big, "byte for byte");
    // What only names a holder's new place is no news in the Feed.
    assert_eq!(text(&feed(&cid)[0], "name"), "later.txt");
}

#[test]
fn sealing_anew_leaves_nothing_that_the_old_keys_open() {
    let folder = TempDir::new("resealed");
    let (ann, cid) = friends(&folder);
    let mut chance = Chance::seeded("resealed");
    let big = chance.bytes(9 << 20);
    plant(&ann.home, "folder/big.bin", &big);
    plant(&ann.home, "folder/small.txt", b"small");
    kept(&ann, 2);
    copied_within(&ann, Duration::from_secs(300));
    ann.cli(["share", "folder", "cid"]).ok();
    wait_for("all is in the Feed", || (feed(&cid).len() == 2).then_some(()));
    let said = ann.cli(["unshare", "folder", "cid", "--reseal"]);
    assert!(
        !said.status.success() && said.err.contains("9.0 MiB of 2 files") && said.err.contains("--yes"),
        "{said:?}"
    );
    assert_eq!(items(&ann.get("/shares"), "shares").len(), 1, "nothing is done by halves");
    let said = ann.cli(["unshare", "folder", "cid", "--reseal", "--yes"]).ok().out;
    assert!(said.contains("2 files are sealed anew"), "{said}");
    assert_eq!(ann.content("folder/big.bin").unwrap(), big);
    // The brake has nothing to do with it, and the version before is no version of its own.
    let versions = ann.cli(["versions", "folder/big.bin"]).ok().out;
    assert_eq!(versions.lines().filter(|line| line.contains("9.0 MiB")).count(), 1, "{versions}");
    copied_within(&ann, Duration::from_secs(300));
    // A later version goes on under the new keys.
    plant(&ann.home, "folder/small.txt", b"small and later");
    wait_for("the later version is kept", || {
        ann.content("folder/small.txt").is_ok_and(|bytes| bytes == b"small and later").then_some(())
    });
    ann.verify_deep();
}

#[test]
fn names_that_are_tricks_are_harmless_on_disk_in_json_and_in_the_terminal() {
    let folder = TempDir::new("names");
    let (ann, cid) = friends(&folder);
    let longest = "x".repeat(255);
    let tricks = [
        "..\\..\\.ssh\\authorized_keys",
        "CON",
        "nul.txt",
        "com1.tar.gz",
        "\u{202e}gpj.exe",
        "\u{1b}[31mred\u{7}",
        "two\nlines",
        "<img src=x onerror=alert(1)>",
        ".groveignore",
        ".grove-home",
        "...",
        " ",
        "-rf",
        "a:b|c?d*",
        "\u{200b}",
        "aux ",
        "\u{feff}x",
        &longest,
    ];
    for (n, name) in tricks.iter().enumerate() {
        plant(&ann.home, &format!("notes/{n}/{name}"), name.as_bytes());
    }
    kept(&ann, tricks.len() as u64 - 1);
    ann.cli(["share", "notes", "cid"]).ok();
    let count = tricks.len() - 1;
    wait_count("all is in the Feed", count as u64, || feed(&cid).len() as u64);
    let to = folder.path().join("fetched");
    for entry in feed(&cid) {
        let name = text(&entry, "name");
        assert!(
            name.chars().all(|c| !c.is_control() && !"/\\:<>\"|?*\u{202e}\u{200b}\u{feff}".contains(c)),
            "{name:?}"
        );
        assert!(
            !name.is_empty()
                && name.len() <= 255
                && name != "."
                && name != ".."
                && !name.ends_with(['.', ' '])
        );
        let stem = name.split('.').next().unwrap().to_ascii_uppercase();
        assert!(!["CON", "NUL", "AUX", "COM1"].contains(&stem.trim()), "{name:?}");
        let to = to.join(text(&entry, "id"));
        fs::create_dir_all(&to).unwrap();
        fetch(&cid, &entry, &to).ok();
        let there: Vec<_> = fs::read_dir(&to).unwrap().map(|there| there.unwrap().file_name()).collect();
        assert_eq!(there, [name.as_str()]);
    }
    let shown = cid.cli(["feed"]).ok().out;
    assert!(shown.chars().all(|c| c == '\n' || !c.is_control()) && !shown.contains('\u{202e}'), "{shown:?}");
    cid.cli(["feed", "keep", &text(&feed(&cid)[0], "id")]).ok();
    let kept_files = || {
        let mut count = 0;
        common::walk(&cid.home.join("Shared/ann"), &mut |path| count += usize::from(path.is_file()));
        count
    };
    wait_count("all is kept", count as u64, || kept_files() as u64);
    let outside: Vec<_> = fs::read_dir(&cid.home).unwrap().map(|there| there.unwrap().file_name()).collect();
    assert!(outside.iter().all(|name| name == "Shared" || name == ".grove-home"), "{outside:?}");
}

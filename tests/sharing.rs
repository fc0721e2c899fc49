//! Three cells: ann shares with cid, and bob holds what she keeps and is no friend of anybody.

mod common;

use std::fs;
use std::path::PathBuf;

use common::fleet::{copied, plant};
use common::{Cell, Chance, TempDir, items, number, text, wait_for};
use miniserde::json::{self, Object, Value};

const BIG_BYTES: usize = 64 << 20;
const FILES: usize = 300;

fn started(folder: &TempDir, name: &str) -> Cell {
    let mut cell = Cell::at(folder.path(), name);
    let address = format!("[\"{}\"]", cell.address());
    cell.init(name, &[("peer.addresses", &address), ("sync.every_s", "2")]);
    cell.run();
    cell
}

fn objects(list: &[Value]) -> Vec<Object> {
    list.iter().map(|item| common::object(&json::to_string(item))).collect()
}

fn feed(cell: &Cell) -> Vec<Object> {
    let page = cell.get("/feed");
    objects(items(&page, "entries"))
}

fn entry(cell: &Cell, name: &str) -> Option<Object> {
    feed(cell).into_iter().find(|entry| text(entry, "name") == name)
}

/// Waits for a file in the Feed of which something holds.
fn appears(cell: &Cell, name: &str, holds: impl Fn(&Object) -> bool) -> Object {
    wait_for(&format!("{name} in the Feed"), || entry(cell, name).filter(&holds))
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

fn fetch(cell: &Cell, entry: &Object, to: &PathBuf) -> common::Said {
    cell.cli(["fetch", &text(entry, "id"), "--to", to.to_str().unwrap()])
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

    let big = chance.bytes(BIG_BYTES);
    plant(&ann.home, "big.bin", &big);
    let small: Vec<Vec<u8>> = (0..FILES).map(|_| chance.bytes(2000)).collect();
    for (n, bytes) in small.iter().enumerate() {
        plant(&ann.home, &format!("notes/part {}/f{n}", n % 3), bytes);
    }
    let scripts = "<script>alert(1)<\u{202e}script>.html";
    plant(&ann.home, scripts, b"text");
    copied(&ann, FILES as u64 + 2);

    // Only friends are shared with.
    let said = ann.cli(["share", "big.bin", "bob"]);
    assert!(!said.status.success() && said.err.contains("bob is no friend"), "{said:?}");
    let said = ann.cli(["share", "big.bin", "cid"]).ok().out;
    assert_eq!(said, "big.bin is shared with cid (1 file).\n");
    ann.cli(["share", "notes", "cid"]).ok();
    ann.cli(["share", scripts, "cid"]).ok();

    wait_for("all is in the Feed", || (feed(&cid).len() == FILES + 2).then_some(()));
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
    let said = fetch(&cid, &about_big, &to).ok();
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

    // Taken back while the friend is off: the holder, who has synced since, refuses; and so does the sharer.
    cid.stop();
    wait_for("cid is gone", || {
        let peers = objects(items(&ann.get("/peers"), "peers"));
        let is_off = |peer: &Object| matches!(peer.get("online"), Some(Value::Bool(false)));
        peers.iter().any(|peer| text(peer, "name") == "cid" && is_off(peer)).then_some(())
    });
    let said = ann.cli(["unshare", "big.bin", "cid"]).ok().out;
    assert!(said.contains("no longer shared with cid: 1 file") && said.contains("stays with them"), "{said}");
    assert!(said.contains("connected, and may serve it until then: cid"), "{said}");
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

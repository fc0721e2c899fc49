//! What an earlier version of Grove kept is opened by this one: `tests/data/<version>/` holds the folders of two cells, ann
//! and bob, as that version left them. They are never changed; `GROVE_WRITE_DATA=1 cargo test --test released` makes those
//! of this version, where there are none.

use std::fs;
use std::path::{Path, PathBuf};

mod cells;

use cells::{Cell, Temp, copy_tree, list, number, text, until};

fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data")
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * at / 7) as u8).collect()
}

/// Bytes of the file that has several blocks.
const LONG: usize = 70_000;
const SAID: &str = "hello bob, this is 🌳";

/// What ann and bob did with the version that wrote them.
fn live(temp: &Temp) {
    let (mut ann, mut bob) = (Cell::new(temp, "ann", &[]), Cell::new(temp, "bob", &[]));
    ann.start();
    bob.start();
    ann.write("notes/one.txt", "first");
    ann.write("notes/long.bin", pattern(LONG));
    ann.write("gone.txt", "in the bin");
    fs::create_dir(ann.home.join("empty")).unwrap();
    std::os::unix::fs::symlink("notes/one.txt", ann.home.join("link")).unwrap();
    ann.scan();
    ann.write("notes/one.txt", "second");
    ann.scan();
    ann.ok(&["rm", "gone.txt"]);
    ann.befriend(&bob);
    ann.ok(&["peer", "friend", "bob"]);
    bob.ok(&["peer", "friend", "ann"]);
    until("friendship", || ann.grove(&["share", "notes", "bob"]).code == 0);
    ann.ok(&["sync", "--wait"]);
    until("the feed", || bob.ok(&["feed"]).contains("long.bin"));
    ann.ok(&["chat", "bob", SAID]);
    until("the message", || bob.ok(&["chat", "ann", "--history", "5"]).contains(SAID));
    ann.stop();
    bob.stop();
}

fn write() {
    let temp = Temp::new("data");
    live(&temp);
    let to = data().join(env!("CARGO_PKG_VERSION"));
    fs::create_dir(&to).expect("what a version wrote is never written anew");
    for name in ["ann", "bob"] {
        copy_tree(&temp.0.join(name), &to);
        for left in ["state.log", "state/lock"] {
            let _ = fs::remove_file(to.join(name).join(left));
        }
    }
}

#[test]
fn what_every_released_version_kept_is_opened() {
    if std::env::var_os("GROVE_WRITE_DATA").is_some_and(|value| value == "1") {
        write();
    }
    let mut versions = 0;
    for version in
        fs::read_dir(data()).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_dir())
    {
        opens(&version);
        versions += 1;
    }
    assert!(versions > 0);
}

fn opens(version: &Path) {
    let temp = Temp::new("released");
    let cell = |name: &str| {
        copy_tree(&version.join(name), &temp.0);
        // Git keeps no empty folders.
        fs::create_dir_all(temp.0.join(name).join("home/empty")).unwrap();
        Cell::at(temp.0.join(name).join("state"), temp.0.join(name).join("home"))
    };
    let (mut ann, mut bob) = (cell("ann"), cell("bob"));
    ann.start();
    bob.start();
    assert_eq!(ann.alert("home"), None);
    assert_eq!(ann.alert("brake"), None);
    // A checkout has times and modes of its own, which are a version of their own.
    let mut history = ann.history("notes/one.txt");
    history.dedup();
    assert_eq!(history, [b"first".to_vec(), b"second".to_vec()]);
    assert_eq!(ann.content("notes/long.bin", None), pattern(LONG));
    ann.ok(&["restore", "gone.txt"]);
    assert_eq!(ann.read("gone.txt"), b"in the bin");
    assert_eq!(ann.grove(&["verify", "--deep"]).code, 0);
    assert_eq!(bob.grove(&["verify", "--deep"]).code, 0);
    // They know each other, meet at other ports now, and go on where they were.
    assert!(bob.ok(&["chat", "ann", "--history", "5"]).contains(SAID));
    assert!(bob.ok(&["feed"]).contains("long.bin"));
    ann.befriend(&bob);
    ann.write("new.txt", "of this version");
    ann.scan();
    ann.ok(&["sync", "--wait"]);
    let peers = list(&ann.json(&["peers"]), "peers");
    assert_eq!(peers.len(), 1);
    assert_eq!(text(&peers[0], "name"), "bob");
    assert!(number(&peers[0], "held_for_us_bytes") > LONG as u64);
    bob.ok(&["chat", "ann", "I still hear you"]);
    until("the answer", || ann.ok(&["chat", "bob", "--history", "5"]).contains("I still hear you"));
}

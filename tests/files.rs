//! What a person does with files, and what the cell must make of it.

mod cells;

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::sync::atomic::{AtomicBool, Ordering};

use cells::{Cell, Temp, inner, noise, number, text, until};

fn running(temp: &Temp) -> Cell {
    let mut cell = Cell::new(temp, "ann", &[("settle.closed_ms", 60)]);
    cell.start();
    cell
}

fn id_of(cell: &Cell, folder: &str, name: &str) -> String {
    text(&cell.entry(folder, name).unwrap_or_else(|| panic!("{folder}/{name} is not kept")), "id")
}

#[test]
fn new_file_is_kept_by_itself_and_every_version_can_be_had() {
    let temp = Temp::new("versions");
    let cell = running(&temp);
    for n in 1..=3 {
        cell.write("notes/today.txt", format!("draft {n}"));
        until("the watch keeps it", || cell.content_is("notes/today.txt", format!("draft {n}").as_bytes()));
    }
    assert_eq!(cell.history("notes/today.txt"), [b"draft 1", b"draft 2", b"draft 3"]);
    let versions = cell.versions("notes/today.txt");
    assert!(number(&versions[0], "version") > number(&versions[2], "version"), "the newest first");
    // `get` into a file does not replace one.
    let out = temp.0.join("out");
    cell.ok(&["get", "notes/today.txt", "-o", out.to_str().unwrap(), "--version", "1"]);
    assert_eq!(fs::read(&out).unwrap(), b"draft 1");
    assert_eq!(cell.grove(&["get", "notes/today.txt", "-o", out.to_str().unwrap()]).code, 1);
    // An old version comes back as the newest.
    cell.ok(&["restore", "notes/today.txt", "--version", "1"]);
    assert_eq!(cell.read("notes/today.txt"), b"draft 1");
    assert_eq!(cell.content("notes/today.txt", None), b"draft 1");
    assert!(cell.history("notes/today.txt").contains(&b"draft 3".to_vec()));
    assert_eq!(cell.grove(&["get", "no/such", "-o", "-"]).code, 1);
}

#[test]
fn deleted_files_and_folders_come_back_from_the_bin_as_they_were() {
    let temp = Temp::new("bin");
    let cell = running(&temp);
    cell.write("a.txt", "alpha");
    cell.write("tree/one.txt", "one");
    cell.write("tree/deep/two.txt", "two");
    fs::create_dir_all(cell.home.join("tree/empty")).unwrap();
    fs::set_permissions(cell.home.join("tree/one.txt"), fs::Permissions::from_mode(0o640)).unwrap();
    cell.scan();
    let before = fs::metadata(cell.home.join("tree/one.txt")).unwrap();
    let id = id_of(&cell, "", "a.txt");

    cell.ok(&["rm", "a.txt"]);
    cell.ok(&["rm", "tree"]);
    assert!(!cell.has("a.txt") && !cell.has("tree"));
    assert!(cell.entry("", "a.txt").is_none() && cell.entry("", "tree").is_none());
    let names: Vec<String> = cell.bin().iter().map(|entry| text(entry, "name")).collect();
    assert!(names.contains(&"a.txt".to_owned()) && names.contains(&"two.txt".to_owned()), "{names:?}");

    cell.ok(&["restore", "--id", &id]);
    assert_eq!(cell.read("a.txt"), b"alpha");
    assert_eq!(id_of(&cell, "", "a.txt"), id, "it is the same file");
    cell.ok(&["restore", "tree"]);
    assert_eq!((cell.read("tree/one.txt"), cell.read("tree/deep/two.txt")), (b"one".into(), b"two".into()));
    assert!(cell.home.join("tree/empty").is_dir());
    let after = fs::metadata(cell.home.join("tree/one.txt")).unwrap();
    assert_eq!((after.mode(), after.mtime_nsec()), (before.mode(), before.mtime_nsec()));
    assert!(cell.bin().is_empty(), "{:?}", cell.bin());

    // Deleted by a person in a file manager: the same.
    fs::remove_dir_all(cell.home.join("tree")).unwrap();
    until("the deletion is seen", || cell.entry("", "tree").is_none());
    cell.ok(&["restore", "tree"]);
    assert_eq!(cell.read("tree/deep/two.txt"), b"two");
    // A file in a folder that is deleted, too, is named by the path it had, and comes back by that.
    cell.ok(&["rm", "tree"]);
    let two = cell.bin().into_iter().find(|entry| text(entry, "name") == "two.txt").unwrap();
    assert_eq!(text(&two, "folder"), "tree/deep");
    assert!(cell.ok(&["bin"]).contains(" tree/deep/two.txt\n"));
    cell.ok(&["restore", "tree/deep/two.txt"]);
    assert_eq!(cell.read("tree/deep/two.txt"), b"two");
    cell.ok(&["restore", "tree/one.txt"]);
    let told = cell.grove(&["restore", "--id", "zz"]);
    assert!(told.code == 1 && told.err.contains("32 hexadecimal digits"), "{told:?}");
    // To another folder, nothing in GroveHome moves.
    let to = temp.0.join("elsewhere");
    fs::create_dir(&to).unwrap();
    cell.ok(&["restore", "--all", "--to", to.to_str().unwrap()]);
    assert_eq!(fs::read(to.join("tree/one.txt")).unwrap(), b"one");
}

#[test]
fn restore_writes_beside_a_newer_change_and_says_so() {
    let temp = Temp::new("beside");
    let mut cell = running(&temp);
    cell.write("plan.txt", "first");
    cell.scan();
    cell.write("plan.txt", "second");
    cell.scan();
    // Changed while nobody looked: the cell has not kept this content.
    cell.stop();
    cell.write("plan.txt", "mine, newer");
    let told = inner(&cell.json(&["restore", "plan.txt", "--version", "1"]), "result");
    if cell.read("plan.txt") != b"mine, newer" {
        // On a slow machine it had settled, was kept as a version before anything else, and so could be replaced.
        assert_eq!(cell.read("plan.txt"), b"first");
        assert_eq!(cell.ok(&["get", "plan.txt", "--version", "3", "-o", "-"]), "mine, newer");
        return;
    }
    let beside: Vec<String> = fs::read_dir(&cell.home)
        .unwrap()
        .map(|e| e.unwrap().file_name().to_string_lossy().into_owned())
        .filter(|name| name != "plan.txt" && !name.starts_with('.'))
        .collect();
    assert_eq!(beside.len(), 1, "{beside:?}");
    assert_eq!(cell.read(&beside[0]), b"first");
    assert!(format!("{told:?}").contains(&beside[0]), "{told:?}");
}

#[test]
fn renamed_and_moved_keep_their_id_and_store_no_chunk_again() {
    let temp = Temp::new("moves");
    let cell = running(&temp);
    cell.write("in/photo.raw", noise(1_000_000));
    cell.write("in/sub/text.txt", noise(30_000));
    fs::create_dir_all(cell.home.join("out")).unwrap();
    cell.scan();
    let (photo, words, folder) =
        (id_of(&cell, "in", "photo.raw"), id_of(&cell, "in/sub", "text.txt"), id_of(&cell, "in", "sub"));
    let data = |cell: &Cell| store_bytes(cell);
    let before = data(&cell);

    fs::rename(cell.home.join("in/photo.raw"), cell.home.join("in/holiday.raw")).unwrap();
    until("the rename", || cell.entry("in", "holiday.raw").is_some());
    assert_eq!(id_of(&cell, "in", "holiday.raw"), photo);
    fs::rename(cell.home.join("in/sub"), cell.home.join("out/moved")).unwrap();
    until("the move", || cell.entry("out", "moved").is_some() && cell.entry("in", "sub").is_none());
    assert_eq!(id_of(&cell, "out", "moved"), folder);
    assert_eq!(id_of(&cell, "out/moved", "text.txt"), words);
    fs::rename(cell.home.join("in/holiday.raw"), cell.home.join("out/moved/holiday.raw")).unwrap();
    until("the second move", || cell.entry("out/moved", "holiday.raw").is_some());
    assert_eq!(id_of(&cell, "out/moved", "holiday.raw"), photo);
    assert!(cell.bin().is_empty(), "nothing was deleted: {:?}", cell.bin());
    // The catalog alone grew: the photograph and the text would be a million bytes.
    let grown = data(&cell).saturating_sub(before);
    assert!(grown < 300_000, "{grown} bytes for three renames");
    assert_eq!(cell.content("out/moved/holiday.raw", None), cell.read("out/moved/holiday.raw"));
}

#[test]
fn saved_by_rename_as_editors_do_keeps_the_history() {
    let temp = Temp::new("editor");
    let cell = running(&temp);
    cell.write("letter.txt", "one");
    cell.scan();
    let id = id_of(&cell, "", "letter.txt");
    // An editor takes no pause in the midst of it, nor does the machine here: that would be a file that was moved away.
    for content in ["two", "three"] {
        cell.at_once(|| {
            fs::write(cell.home.join(".letter.txt.swp.new"), content).unwrap();
            fs::rename(cell.home.join(".letter.txt.swp.new"), cell.home.join("letter.txt")).unwrap();
        });
        until("the save", || cell.content_is("letter.txt", content.as_bytes()));
    }
    // With a backup: the old file is moved away, a new one takes its name.
    cell.at_once(|| {
        fs::rename(cell.home.join("letter.txt"), cell.home.join("letter.txt~")).unwrap();
        fs::write(cell.home.join("letter.txt"), "four").unwrap();
    });
    until("the save with a backup", || cell.content_is("letter.txt", b"four"));
    assert_eq!(id_of(&cell, "", "letter.txt"), id);
    let history = cell.history("letter.txt");
    for content in ["one", "two", "three", "four"] {
        assert!(history.contains(&content.into()), "{content} of {history:?}");
    }
}

#[test]
fn links_empty_things_and_odd_names_are_kept_and_restored() {
    let temp = Temp::new("odd");
    let cell = running(&temp);
    let outside = temp.0.join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("secret"), "not ours").unwrap();
    cell.write("d/first", "shared by two names");
    fs::hard_link(cell.home.join("d/first"), cell.home.join("d/second")).unwrap();
    symlink("first", cell.home.join("d/link")).unwrap();
    symlink("nowhere", cell.home.join("d/dangling")).unwrap();
    symlink(&outside, cell.home.join("d/away")).unwrap();
    cell.write("d/empty", "");
    fs::create_dir(cell.home.join("d/hollow")).unwrap();
    let odd = cell.home.join("d").join(std::ffi::OsStr::from_bytes(b"na\xefve\n%\xff"));
    fs::write(&odd, "odd").unwrap();
    cell.write(&format!("d/{}", "n".repeat(255)), "long");
    cell.scan();
    let entries = cell.ls("d");
    let kind = |name: &str| {
        text(entries.iter().find(|e| text(e, "name") == name).unwrap_or_else(|| panic!("{name}")), "kind")
    };
    assert_eq!(
        (kind("link"), kind("dangling"), kind("away")),
        ("symlink".into(), "symlink".into(), "symlink".into())
    );
    assert_eq!(
        (kind("hollow"), kind("empty"), kind("second")),
        ("folder".into(), "file".into(), "file".into())
    );
    assert_eq!(entries.len(), 9, "{entries:?}");

    fs::remove_dir_all(cell.home.join("d")).unwrap();
    until("the deletion", || cell.entry("", "d").is_none());
    cell.ok(&["restore", "d"]);
    assert_eq!(
        (cell.read("d/first"), cell.read("d/second")),
        (cell.read("d/second"), b"shared by two names".into())
    );
    assert_eq!(fs::read_link(cell.home.join("d/link")).unwrap().to_str(), Some("first"));
    assert_eq!(fs::read_link(cell.home.join("d/dangling")).unwrap().to_str(), Some("nowhere"));
    assert_eq!(fs::read_link(cell.home.join("d/away")).unwrap(), outside);
    assert_eq!(fs::read(&odd).unwrap(), b"odd");
    assert_eq!(cell.read(&format!("d/{}", "n".repeat(255))), b"long");
    assert!(cell.home.join("d/hollow").is_dir() && cell.read("d/empty").is_empty());
}

#[test]
fn file_that_changes_while_it_is_read_is_never_kept_torn() {
    let temp = Temp::new("torn");
    let cell = running(&temp);
    let stop = AtomicBool::new(false);
    let path = cell.home.join("busy");
    // Every state of the file is one byte repeated, so a mix of two is seen.
    let len = 3_000_000;
    fs::write(&path, vec![1; len]).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            use std::os::unix::fs::FileExt;
            let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
            let mut n = 1_u8;
            while !stop.load(Ordering::Relaxed) {
                n = n % 250 + 1;
                for part in 0..30 {
                    file.write_all_at(&vec![n; len / 30], (part * len / 30) as u64).unwrap();
                    std::thread::sleep(std::time::Duration::from_millis(1));
                }
            }
            file.write_all_at(&vec![251; len], 0).unwrap();
        });
        // Several reads fall into the time of writing; each is given up or whole.
        let before = bytes_read(&cell);
        scope.spawn(|| cell.grove(&["add", path.to_str().unwrap()]));
        until("the file is read five times", || bytes_read(&cell) > before + 5 * len as u64);
        stop.store(true, Ordering::Relaxed);
    });
    until("the quiet file is kept", || cell.content_is("busy", &vec![251; len]));
    for version in cell.history("busy") {
        // A state that the file was in: one sweep of the writer, over what the one before it left.
        let first = version[0];
        let changes = version.windows(2).filter(|pair| pair[0] != pair[1]).count();
        let last = version[len - 1];
        let follows = first == last || first == last % 250 + 1 || first == 251;
        assert!(
            version.len() == len && changes <= 1 && follows,
            "torn: {first} to {last}, {changes} changes"
        );
    }
}

#[test]
fn ignored_names_stay_out_and_unreadable_ones_are_named() {
    let temp = Temp::new("ignore");
    let cell = running(&temp);
    cell.write(".groveignore", "*.obj\nbuild/\n!keep.obj\n");
    cell.write("src/a.obj", "x");
    cell.write("src/keep.obj", "x");
    cell.write("src/a.c", "x");
    cell.write("build/out", "x");
    cell.write("src/big.crdownload", "x");
    cell.scan();
    let names: Vec<String> = cell.ls("src").iter().map(|e| text(e, "name")).collect();
    assert_eq!(names, ["a.c", "keep.obj"]);
    assert!(cell.entry("", "build").is_none());
    assert!(cell.entry("", ".grove-home").is_none());

    if rustix::process::geteuid().is_root() {
        eprintln!("skipped: unreadable files (root reads everything)");
        return;
    }
    cell.write("src/locked", "x");
    fs::set_permissions(cell.home.join("src/locked"), fs::Permissions::from_mode(0o000)).unwrap();
    cell.write("src/b.c", "x");
    let told = cell.grove(&["add", cell.home.to_str().unwrap()]);
    assert!(told.code == 1 && told.err.contains("src/locked"), "{told:?}");
    assert!(cell.entry("src", "b.c").is_some(), "the rest goes on");
}

#[test]
fn verify_finds_a_flipped_chunk_and_mends_it_from_a_peer() {
    let temp = Temp::new("flip");
    let ann = running(&temp);
    let mut bob = Cell::new(&temp, "bob", &[]);
    bob.start();
    let content = noise(900_000);
    ann.write("precious", &content);
    ann.scan();
    ann.befriend(&bob);
    ann.ok(&["sync", "--wait"]);
    let verify = || inner(&cells::object(&ann.grove(&["verify", "--deep", "--json"]).text()), "result");
    assert_eq!(number(&verify(), "damaged"), 0);

    let flipped = largest_below(&ann.dir.join("chunks"));
    let mut bytes = fs::read(&flipped).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&flipped, bytes).unwrap();
    let first = verify();
    assert_eq!(number(&first, "damaged"), 1, "{first:?}");
    until("the chunk is whole again", || {
        ann.ok(&["sync", "--wait"]);
        let told = verify();
        number(&told, "damaged") == 0 && number(&told, "missing") == 0
    });
    assert_eq!(ann.content("precious", None), content);
}

impl Cell {
    /// Whether the newest kept version has this content.
    fn content_is(&self, path: &str, content: &[u8]) -> bool {
        let told = self.grove(&["get", path, "-o", "-"]);
        told.code == 0 && told.out == content
    }
}

fn files_below(folder: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => folders.push(entry.path()),
                _ => files.push(entry.path()),
            }
        }
    }
    files
}

/// Bytes that the running cell has read from anywhere.
fn bytes_read(cell: &Cell) -> u64 {
    let io = fs::read_to_string(format!("/proc/{}/io", cell.pid())).unwrap();
    io.lines().find_map(|line| line.strip_prefix("rchar: ")).unwrap().parse().unwrap()
}

fn size(path: &std::path::Path) -> u64 {
    fs::metadata(path).map_or(0, |meta| meta.len())
}

fn store_bytes(cell: &Cell) -> u64 {
    files_below(&cell.dir.join("chunks")).iter().map(|path| size(path)).sum()
}

fn largest_below(folder: &std::path::Path) -> std::path::PathBuf {
    files_below(folder).into_iter().max_by_key(|path| size(path)).unwrap()
}

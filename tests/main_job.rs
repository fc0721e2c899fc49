//! The main job: a tree of real and awkward files kept by one cell, copied to a peer who cannot read it, and brought
//! back from the phrase and the peer's address, by Grove and by the independent reader.

mod common;

use std::collections::{BTreeSet, HashMap};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use common::*;

/// Real files, at most so many and so long.
const REAL_FILES_MAX: usize = 400;
const REAL_FILE_BYTES_MAX: u64 = 256 * 1024;

/// Copies real files, folders and links into `to` until there are enough.
fn copy_real(from: &Path, to: &Path, count: &mut usize) {
    let Ok(entries) = fs::read_dir(from) else { return };
    let mut entries: Vec<_> = entries.flatten().collect();
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        if *count >= REAL_FILES_MAX {
            return;
        }
        let (name, Ok(meta)) = (entry.file_name(), entry.path().symlink_metadata()) else { continue };
        // What a walk leaves out by its rules would not come back.
        if name.as_bytes().starts_with(b".") || name.as_bytes().ends_with(b".tmp") || name == "target" {
            continue;
        }
        let target = to.join(&name);
        if meta.is_dir() {
            fs::create_dir_all(&target).unwrap();
            copy_real(&entry.path(), &target, count);
        } else if meta.is_symlink() {
            symlink(fs::read_link(entry.path()).unwrap(), &target).unwrap();
        } else if meta.is_file()
            && meta.len() <= REAL_FILE_BYTES_MAX
            && fs::copy(entry.path(), &target).is_ok()
        {
            set_mtime(&target, meta.mtime(), meta.mtime_nsec());
            *count += 1;
        }
    }
}

fn write(path: &Path, bytes: &[u8]) {
    fs::write(path, bytes).unwrap();
}

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// Files and folders that programs stumble over.
fn make_awkward(home: &Path, chance: &mut Chance) {
    let at = home.join("awkward");
    fs::create_dir_all(at.join("empty folder")).unwrap();
    fs::create_dir_all(at.join("closed")).unwrap();
    write(&at.join("empty"), b"");
    write(&at.join("one byte"), b"1");
    write(&at.join(OsStr::from_bytes(b"not \xff\xfeUTF-8\x80.txt")), b"a name that is not UTF-8\n");
    write(&at.join(OsStr::from_bytes(b"tab\tnewline\nquote\"back\\slash%41 percent")), b"a name to escape\n");
    write(&at.join("n".repeat(255)), b"a name of 255 bytes\n");
    write(&at.join(format!("{}.", "\u{e9}".repeat(127))), b"a name of 255 bytes in UTF-8\n");
    write(&at.join("cafe\u{301}"), b"decomposed\n");
    write(&at.join("caf\u{e9}"), b"composed\n");
    write(&at.join("CASE"), b"upper\n");
    write(&at.join("case"), b"lower\n");

    // The longest path the kernel takes is 4,095 bytes, GroveHome's own among them.
    let length = 4000.min(4090 - home.as_os_str().len());
    let mut deep = PathBuf::from("awkward/deep");
    while deep.as_os_str().len() + 401 < length {
        deep.push("d".repeat(199));
    }
    fs::create_dir_all(home.join(&deep)).unwrap();
    while deep.as_os_str().len() + 202 < length {
        deep.push("e".repeat(100));
        fs::create_dir(home.join(&deep)).unwrap();
    }
    deep.push("f".repeat(length - deep.as_os_str().len() - 1));
    assert_eq!(deep.as_os_str().len(), length);
    write(&home.join(&deep), b"at the end of a long path\n");

    symlink("one byte", at.join("link")).unwrap();
    symlink("nowhere/at all", at.join("dangling")).unwrap();
    symlink("/etc/passwd", at.join("to a file outside")).unwrap();
    symlink("/usr", at.join("to a folder outside")).unwrap();
    symlink("..", at.join("to its own folder")).unwrap();
    symlink(OsStr::from_bytes(b"\xff/\xfe"), at.join("link not UTF-8")).unwrap();

    let sparse = fs::File::create(at.join("sparse")).unwrap();
    sparse.set_len(16 * 1024 * 1024).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"in the middle", 3 * 1024 * 1024 + 77).unwrap();
    write(&at.join("hard link 1"), b"the same file under two names\n");
    fs::hard_link(at.join("hard link 1"), at.join("hard link 2")).unwrap();
    // Around the borders of chunks and of small files.
    for len in [127, 128, 129, 65_535, 65_536, 524_288, 524_289, 1_048_576, 4_194_304, 4_194_305, 9_000_001] {
        write(&at.join(format!("random {len}")), &chance.bytes(len));
    }

    for bits in [0o400, 0o444, 0o600, 0o640, 0o700, 0o755, 0o1644] {
        write(&at.join(format!("mode {bits:o}")), b"mode\n");
        mode(&at.join(format!("mode {bits:o}")), bits);
    }
    let times = [(-1, 1), (-1, 999_999_999), (-2_000_000_000, 123_456_789), (0, 0), (0, 1), (1, 0)];
    for (number, (s, ns)) in times.into_iter().chain([(2_147_483_648, 7), (4_000_000_000, 5)]).enumerate() {
        write(&at.join(format!("time {number}")), b"time\n");
        set_mtime(&at.join(format!("time {number}")), s, ns);
    }
    set_mtime(&at.join("link"), 981_173_106, 7);
    set_mtime(&at.join("dangling"), -981_173_106, 8);
    write(&at.join("closed/inside"), b"in a folder nobody may write to\n");
    mode(&at.join("closed"), 0o555);
    set_mtime(&at.join("closed"), 1_000_000_000, 11);
    set_mtime(&at.join("empty folder"), -5, 12);
    set_mtime(&home.join("awkward/deep"), 1_100_000_000, 13);
}

/// Names and pieces of text that would betray the tree.
fn betrayers(home: &Path) -> BTreeSet<Vec<u8>> {
    let mut words = BTreeSet::new();
    walk(home, &mut |path| {
        let below = path.strip_prefix(home).unwrap().as_os_str().as_bytes();
        let name = path.file_name().unwrap().as_bytes();
        if name == b".grove-home" {
            return;
        }
        let word = if name.len() >= 8 { name } else { below };
        if word.len() >= 10 {
            words.insert(word.to_vec());
        }
        if !path.symlink_metadata().unwrap().is_file() {
            return;
        }
        let bytes = fs::read(path).unwrap();
        for piece in bytes.split(|byte| *byte == b'\n').filter(|line| line.len() >= 40).take(5) {
            words.insert(piece[..40].to_vec());
        }
        if bytes.len() > 100_000 {
            words.insert(bytes[50_000..50_032].to_vec());
        }
    });
    // A run of one byte, as in a sparse file, says nothing.
    words.retain(|word| word.iter().any(|byte| *byte != word[0]) || word[0].is_ascii_alphabetic());
    words
}

/// Those of `words` (each 10 bytes or longer) that stand in a file or a name below `folder`.
fn found_in(folder: &Path, words: &BTreeSet<Vec<u8>>) -> BTreeSet<Vec<u8>> {
    let mut by_start: HashMap<[u8; 8], Vec<&Vec<u8>>> = HashMap::new();
    let mut may_start = vec![false; 1 << 16];
    for word in words {
        by_start.entry(word[..8].try_into().unwrap()).or_default().push(word);
        may_start[usize::from(u16::from_le_bytes([word[0], word[1]]))] = true;
    }
    let mut found = BTreeSet::new();
    let mut look = |bytes: &[u8]| {
        for at in 0..bytes.len().saturating_sub(8) {
            if !may_start[usize::from(u16::from_le_bytes([bytes[at], bytes[at + 1]]))] {
                continue;
            }
            for word in by_start.get(&bytes[at..at + 8]).into_iter().flatten() {
                if bytes[at..].starts_with(word) {
                    found.insert((*word).clone());
                }
            }
        }
    };
    walk(folder, &mut |path| {
        look(path.file_name().unwrap().as_bytes());
        if path.symlink_metadata().is_ok_and(|meta| meta.is_file()) {
            look(&fs::read(path).unwrap());
        }
    });
    found
}

/// Python with what the reader needs; `None` where it is missing and may be.
fn python() -> Option<OsString> {
    let python = std::env::var_os("PYTHON").unwrap_or_else(|| "python3".into());
    let has_it = Command::new(&python).args(["-c", "import cryptography"]).output();
    if has_it.is_ok_and(|output| output.status.success()) {
        return Some(python);
    }
    assert!(!is_ci(), "the independent reader needs Python 3 with the package cryptography");
    eprintln!("skipped: the independent reader (no Python 3 with the package cryptography)");
    None
}

#[test]
fn tree_comes_back_from_phrase_and_address_and_its_keeper_cannot_read_it() {
    let mut chance = Chance::seeded("main job");
    let temp = TempDir::new("main");
    let mut a = Cell::at(temp.path(), "a");
    let mut b = Cell::at(temp.path(), "b");
    a.init("ann", &[]);
    b.init("bob", &[]);

    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut count = 0;
    for (name, from) in [("sources", root), ("documents", Path::new("/usr/share/doc"))] {
        fs::create_dir_all(a.home.join(name)).unwrap();
        copy_real(from, &a.home.join(name), &mut count);
    }
    assert!(count >= 100, "only {count} real files");
    make_awkward(&a.home, &mut chance);
    let before = inventory(&a.home);
    a.run();
    b.run();
    a.cli([OsStr::new("add"), a.home.as_os_str()]).ok();
    assert_same(&before, &inventory(&a.home));

    // Words that the program itself writes into the folders of any cell prove nothing.
    let words = betrayers(&a.home);
    let own = found_in(&temp.path().join("b"), &words);
    let words: BTreeSet<_> = words.difference(&own).cloned().collect();
    assert!(words.len() > 400 && own.len() < 20, "{} words, {} of them B's own", words.len(), own.len());

    a.invite(&b);
    a.cli(["sync", "--wait"]).ok();
    let phrase = a.phrase();
    let owner = text(&a.get("/status"), "id")[..8].to_owned();
    a.kill();
    remove_tree(&temp.path().join("a"));

    let leaks = found_in(&temp.path().join("b"), &words);
    let leaks: Vec<_> = leaks.iter().map(|word| String::from_utf8_lossy(word)).collect();
    assert!(leaks.is_empty(), "B holds {leaks:?}");

    // Typed as people type.
    let note = temp.path().join("phrase");
    let typed: Vec<String> = phrase
        .split_whitespace()
        .enumerate()
        .map(|(n, word)| if n % 3 == 0 { word.to_uppercase() } else { word.to_owned() })
        .collect();
    fs::write(&note, format!("  {}\n", typed.join("  "))).unwrap();
    mode(&note, 0o600);

    let mut a2 = Cell::at(temp.path(), "a2");
    let peer = b.address();
    let words_of_recover =
        ["recover", "--peer", &peer, "--phrase-file"].map(OsStr::new).into_iter().chain([note.as_os_str()]);
    let said = a2.cli(words_of_recover).ok();
    assert_same(&before, &inventory(&a2.home));
    let sparse = a2.home.join("awkward/sparse").metadata().unwrap();
    assert!(sparse.blocks() * 512 < sparse.len() / 2, "the sparse file takes {} blocks", sparse.blocks());
    a2.verify_deep();
    a2.no_temps();

    // It is the same cell in a new life, and goes on with the same peer.
    a2.run();
    let status = a2.get("/status");
    assert_eq!((text(&status, "name").as_str(), number(&status, "life")), ("ann", 2), "{}", said.out);
    fs::write(a2.home.join("after"), b"kept in the new life").unwrap();
    a2.cli([OsStr::new("add"), a2.home.join("after").as_os_str()]).ok();
    a2.cli(["sync", "--wait"]).ok();
    a2.verify_deep();
    b.verify_deep();
    assert!(a2.stop().as_millis() < 2500);
    assert!(b.stop().as_millis() < 2500);

    // The independent reader gets the same tree out of B's folder.
    let Some(python) = python() else { return };
    let mut heads: Vec<_> = kept_heads(&b)
        .into_iter()
        .filter(|path| path.file_name().unwrap().as_bytes().starts_with(owner.as_bytes()))
        .collect();
    heads.sort_by_key(|path| path.metadata().unwrap().modified().unwrap());
    let out = temp.path().join("out");
    let mut reader = Command::new(python);
    reader.arg(root.join("tests/reader/reader.py")).arg("--phrase-file").arg(&note);
    reader.arg("--state").arg(&b.dir).arg("--head-file").arg(heads.last().expect("B keeps A's head"));
    let output = reader.arg("extract").arg(&out).env("PYTHONDONTWRITEBYTECODE", "1").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut after = inventory(&a2.home);
    assert_same(&after, &inventory(&out));
    after.remove(OsStr::new("after")).unwrap();
    assert_same(&before, &after);
    eprintln!("{count} real files, {} paths in all, {} words searched for on B", before.len(), words.len());
}

#[test]
fn unreadable_file_is_named_and_the_rest_is_kept() {
    let temp = TempDir::new("unreadable");
    let mut cell = Cell::at(temp.path(), "a");
    if is_root() {
        // Root may read anything: the cell runs as nobody, from a copy of the program that nobody can reach.
        const NOBODY: u32 = 65_534;
        let program = temp.path().join("grove");
        // By a program of its own: what another test starts meanwhile would inherit the copy while it is open for writing, and
        // what is open for writing does not run.
        assert!(Command::new("cp").arg(GROVE).arg(&program).status().unwrap().success());
        mode(&program, 0o755);
        mode(temp.path(), 0o755);
        std::os::unix::fs::chown(temp.path().join("a"), Some(NOBODY), Some(NOBODY)).unwrap();
        (cell.program, cell.uid) = (program, Some(NOBODY));
    }
    cell.init("ann", &[]);
    let place = |name: &str| cell.home.join(name);
    fs::create_dir_all(&cell.home).unwrap();
    if let Some(uid) = cell.uid {
        std::os::unix::fs::chown(&cell.home, Some(uid), Some(uid)).unwrap();
    }
    fs::write(place("readable"), b"anybody").unwrap();
    fs::write(place("secret"), b"nobody").unwrap();
    fs::create_dir(place("locked")).unwrap();
    fs::write(place("locked/inside"), b"out of reach").unwrap();
    for name in ["readable", "secret", "locked", "locked/inside"] {
        if let Some(uid) = cell.uid {
            std::os::unix::fs::chown(place(name), Some(uid), Some(uid)).unwrap();
        }
    }
    mode(&place("secret"), 0);
    mode(&place("locked"), 0);
    let home = cell.home.clone();
    cell.run();
    let said = cell.cli([OsStr::new("add"), home.as_os_str()]);
    assert!(!said.status.success(), "{}", said.out);
    assert!(said.err.contains("secret") && said.err.contains("locked"), "{}", said.err);
    assert_eq!(cell.content("readable").unwrap(), b"anybody");
    assert!(cell.content("secret").is_err());

    // Once it can be read it is kept.
    mode(&home.join("secret"), 0o600);
    mode(&home.join("locked"), 0o700);
    cell.cli([OsStr::new("add"), home.as_os_str()]).ok();
    assert_eq!(cell.content("secret").unwrap(), b"nobody");
    assert_eq!(cell.content("locked/inside").unwrap(), b"out of reach");
}

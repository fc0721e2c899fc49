//! The ways to lose data quietly, each with the outcome that a person must be able to count on.

mod cells;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use cells::{Cell, Temp, copy_tree, list, noise, number, text, until};
use grove::clock::{Clock, ManualClock};
use grove::config::Config;
use grove::placement::Db;
use grove::store::{DiskStore, StoreLimits};
use grove::vault::{Vault, VaultParts};

const QUICK: &[(&str, u64)] = &[("settle.closed_ms", 60), ("sync.every_s", 2)];

fn running(temp: &Temp, name: &str) -> Cell {
    let mut cell = Cell::new(temp, name, QUICK);
    cell.start();
    cell
}

fn names(cell: &Cell, folder: &str) -> Vec<String> {
    cell.ls(folder).iter().map(|entry| text(entry, "name")).collect()
}

#[test]
fn home_that_is_not_mounted_deletes_nothing() {
    let temp = Temp::new("unmounted");
    let mut cell = running(&temp, "ann");
    cell.write("a.txt", "alpha");
    cell.write("d/b.txt", "beta");
    cell.scan();
    let before = names(&cell, "");
    let away = temp.0.join("away");
    fs::rename(&cell.home, &away).unwrap();
    fs::create_dir(&cell.home).unwrap();
    // While it runs, and over a restart.
    let told = cell.grove(&["add", cell.home.to_str().unwrap()]);
    assert_ne!(told.code, 0, "{told:?}");
    assert_eq!((cell.alert("home").is_some(), cell.alert("import")), (true, None));
    assert_eq!(cell.grove(&["rm", "--local", "a.txt"]).code, 1);
    assert_eq!(names(&cell, ""), before);
    cell.stop();
    cell.start();
    let alert = cell.alert("home").expect("an alert");
    assert!(alert.contains(cell.home.to_str().unwrap()), "{alert}");
    assert_eq!(names(&cell, ""), before);
    assert!(cell.bin().is_empty());
    assert!(fs::read_dir(&cell.home).unwrap().next().is_none(), "nothing is written into the bare folder");
    cell.stop();
    fs::remove_dir(&cell.home).unwrap();
    fs::rename(&away, &cell.home).unwrap();
    cell.start();
    assert_eq!((cell.alert("home"), names(&cell, "")), (None, before));
    cell.write("c.txt", "gamma");
    until("it goes on keeping", || cell.state("", "c.txt") == "present");
    assert!(cell.bin().is_empty());
}

#[test]
fn mark_that_was_cut_off_while_it_was_written_leaves_nothing() {
    let temp = Temp::new("cut-mark");
    let mut cell = Cell::new(&temp, "ann", QUICK);
    fs::create_dir_all(&cell.home).unwrap();
    cell.write(".grove-home.0123abcd.tmp", "GroveHome of");
    cell.start();
    assert!(cell.has(".grove-home") && !cell.has(".grove-home.0123abcd.tmp"));
}

#[test]
fn home_without_its_mark_deletes_nothing_until_it_is_adopted() {
    let temp = Temp::new("mark");
    let mut cell = running(&temp, "ann");
    cell.write("a.txt", "alpha");
    cell.write("b.txt", "beta");
    cell.scan();
    cell.stop();
    fs::remove_file(cell.home.join(".grove-home")).unwrap();
    fs::remove_file(cell.home.join("b.txt")).unwrap();
    cell.start();
    assert!(cell.alert("home").is_some());
    assert_eq!(names(&cell, ""), ["a.txt", "b.txt"]);
    assert_eq!(cell.content("b.txt", None), b"beta");
    cell.ok(&["doctor", "--adopt-home"]);
    cell.stop();
    cell.start();
    cell.scan();
    assert_eq!(names(&cell, ""), ["a.txt", "b.txt"], "what is missing is awaited, not deleted");
    cell.ok(&["restore", "b.txt"]);
    assert_eq!(cell.read("b.txt"), b"beta");
}

struct Mount(std::path::PathBuf);

impl Mount {
    fn tmpfs(path: &Path) -> Option<Self> {
        let mut command = Command::new("mount");
        command.args(["-t", "tmpfs", "-o", "size=4m", "tmpfs"]).arg(path);
        command.output().is_ok_and(|told| told.status.success()).then(|| Self(path.to_owned()))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).output();
    }
}

#[test]
fn folder_on_another_disk_that_is_unmounted_is_not_deleted() {
    let temp = Temp::new("submount");
    let mut cell = running(&temp, "ann");
    cell.write("near.txt", "near");
    let stick = cell.home.join("stick");
    fs::create_dir(&stick).unwrap();
    let Some(mount) = Mount::tmpfs(&stick) else {
        eprintln!("skipped: folder_on_another_disk_that_is_unmounted_is_not_deleted (mount needs root)");
        return;
    };
    cell.write("stick/far.txt", "far");
    cell.write("stick/deep/farther.txt", "farther");
    cell.scan();
    assert_eq!(names(&cell, "stick"), ["deep", "far.txt"]);
    drop(mount);
    assert!(!cell.has("stick/far.txt"));
    let _ = cell.grove(&["add", cell.home.to_str().unwrap()]);
    cell.stop();
    cell.start();
    assert_eq!(names(&cell, "stick"), ["deep", "far.txt"]);
    assert_eq!(cell.content("stick/deep/farther.txt", None), b"farther");
    assert!(cell.bin().is_empty());
    assert!(cell.alert("unmounted").is_some());
    // A file that is really deleted still is.
    fs::remove_file(cell.home.join("near.txt")).unwrap();
    until("a real deletion is seen", || cell.entry("", "near.txt").is_none());
}

fn remove_db(dir: &Path) {
    for suffix in ["", "-wal", "-shm"] {
        let _ = fs::remove_file(dir.join(format!("placement.db{suffix}")));
    }
}

fn copy_db(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for suffix in ["", "-wal", "-shm"] {
        let name = format!("placement.db{suffix}");
        if from.join(&name).exists() {
            fs::copy(from.join(&name), to.join(&name)).unwrap();
        }
    }
}

#[test]
fn lost_or_old_placement_db_keeps_the_tree_and_what_was_freed() {
    let temp = Temp::new("db");
    let mut ann = running(&temp, "ann");
    let bob = running(&temp, "bob");
    ann.befriend(&bob);
    let freed = noise(200_000);
    ann.write("freed.bin", &freed);
    ann.write("old.txt", "first");
    ann.write("gone.txt", "deleted later");
    ann.scan();
    ann.ok(&["sync", "--wait"]);
    ann.stop();
    // One copy elsewhere is enough for a file to be freed.
    ann.set(&[("copies", 1)]);
    let old = temp.0.join("old-db");
    copy_db(&ann.dir, &old);
    ann.start();
    ann.ok(&["rm", "--local", "freed.bin"]);
    ann.write("old.txt", "second");
    ann.write("new/file.txt", "new");
    ann.scan();
    ann.ok(&["rm", "gone.txt"]);
    ann.stop();
    for is_old in [false, true] {
        remove_db(&ann.dir);
        if is_old {
            copy_db(&old, &ann.dir);
        }
        ann.start();
        assert_eq!(names(&ann, ""), ["freed.bin", "new", "old.txt"], "old copy: {is_old}");
        assert_eq!(ann.state("", "freed.bin"), "remote-only");
        assert_eq!((ann.content("old.txt", None), ann.read("old.txt")), (b"second".into(), b"second".into()));
        assert_eq!(ann.history("old.txt"), [b"first".to_vec(), b"second".to_vec()]);
        let bin: Vec<String> = ann.bin().iter().map(|entry| text(entry, "name")).collect();
        assert_eq!(bin, ["gone.txt"]);
        ann.scan();
        assert_eq!(ann.state("", "freed.bin"), "remote-only", "not taken as deleted");
        ann.stop();
    }
    ann.start();
    // It remembers where the freed file is.
    until("the peer is reached", || ann.grove(&["restore", "freed.bin"]).code == 0 && ann.has("freed.bin"));
    assert_eq!(ann.read("freed.bin"), freed);
    ann.ok(&["restore", "gone.txt"]);
    assert_eq!(ann.read("gone.txt"), b"deleted later");
}

#[test]
fn freed_file_outlives_a_power_cut_right_after() {
    let temp = Temp::new("freed");
    let mut ann = running(&temp, "ann");
    let bob = running(&temp, "bob");
    ann.befriend(&bob);
    let contents: Vec<Vec<u8>> = (0..6).map(|_| noise(150_000)).collect();
    for (n, content) in contents.iter().enumerate() {
        ann.write(&format!("f{n}"), content);
    }
    ann.scan();
    ann.ok(&["sync", "--wait"]);
    // One copy elsewhere is enough for a file to be freed.
    ann.stop();
    ann.set(&[("copies", 1)]);
    ann.start();
    for n in 0..contents.len() {
        let name = format!("f{n}");
        if n == 0 {
            // With one copy wanted, the one elsewhere may just be let go; then it is made again.
            until("it is freed", || ann.grove(&["rm", "--local", &name]).code == 0);
        } else {
            // Cut somewhere within it.
            std::thread::scope(|scope| {
                let (ann, name) = (&ann, &name);
                scope.spawn(move || ann.grove(&["rm", "--local", name]));
                std::thread::sleep(Duration::from_millis(4 * n as u64));
                let pid = rustix::process::Pid::from_raw(ann.pid() as i32).unwrap();
                rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
            });
        }
        ann.kill();
        ann.start();
        ann.scan();
        let state = ann.state("", &name);
        assert!(state == "remote-only" || state == "present", "{name} is {state}");
        assert!(ann.bin().is_empty(), "{name} is not taken as deleted");
    }
    for (n, content) in contents.iter().enumerate() {
        let name = format!("f{n}");
        until("it comes back", || ann.grove(&["restore", &name]).code == 0 && ann.has(&name));
        assert_eq!(&ann.read(&name), content);
        assert_eq!(ann.state("", &name), "present");
    }
}

#[test]
fn local_bytes_are_not_freed_while_too_few_peers_have_them() {
    let temp = Temp::new("alone");
    let cell = running(&temp, "ann");
    fs::create_dir(cell.home.join("d")).unwrap();
    cell.write("d/one", "copy");
    cell.write("d/other", "copies");
    cell.scan();
    let told = cell.grove(&["rm", "--local", "d/one"]);
    assert!(told.code == 1 && told.err.contains("this cell has no peer"), "{told:?}");
    assert_eq!(cell.read("d/one"), b"copy");
    // One peer cannot hold two copies, so none is asked of it that would be missing for ever.
    let bob = running(&temp, "bob");
    cell.befriend(&bob);
    cell.ok(&["sync", "--wait"]);
    let told = cell.grove(&["rm", "--local", "d"]);
    assert!(told.code == 1 && told.err.contains("1 of 2 copies") && told.err.contains("1 peer;"), "{told:?}");
    cell.ok(&["sync", "--wait"]);
    // With two it is asked once for all that lies in the folder.
    let cat = running(&temp, "cat");
    cell.befriend(&cat);
    cell.ok(&["sync", "--wait"]);
    let told = cell.grove(&["rm", "--local", "d"]);
    assert!(told.code == 1 && told.err.contains("as 1 other file"), "{told:?}");
    cell.ok(&["sync", "--wait"]);
    cell.ok(&["rm", "--local", "d"]);
    assert!(!cell.home.join("d/one").exists() && !cell.home.join("d/other").exists());
}

#[test]
fn copied_cell_that_runs_twice_converges_and_one_retires() {
    let temp = Temp::new("clone");
    let mut ann = running(&temp, "ann");
    let bob = running(&temp, "bob");
    ann.befriend(&bob);
    ann.write("before.txt", "before");
    ann.scan();
    ann.ok(&["sync", "--wait"]);
    ann.stop();
    fs::create_dir_all(temp.0.join("clone")).unwrap();
    let mut clone = Cell::at(temp.0.join("clone/state"), temp.0.join("clone/home"));
    copy_tree(&ann.dir, &clone.dir);
    copy_tree(&ann.home, &clone.home);
    // Both have something of their own before they meet.
    clone.write("theirs.txt", "theirs");
    ann.write("ours.txt", "ours");
    ann.start();
    ann.scan();
    ann.ok(&["sync", "--wait"]);
    clone.start();
    clone.scan();
    until("one of them retires", || {
        let _ = (ann.grove(&["sync"]), clone.grove(&["sync"]));
        ann.alert("retired").is_some() || clone.alert("retired").is_some()
    });
    let (stays, retired) = if ann.alert("retired").is_some() { (&clone, &ann) } else { (&ann, &clone) };
    assert!(stays.alert("retired").is_none());
    until("the union", || {
        let _ = stays.grove(&["sync"]);
        ["before.txt", "ours.txt", "theirs.txt"].iter().all(|name| names(stays, "").contains(&(*name).into()))
    });
    for (name, content) in [("before.txt", "before"), ("ours.txt", "ours"), ("theirs.txt", "theirs")] {
        until(name, || {
            stays.grove(&["restore", name]).code == 0
                && stays.has(name)
                && stays.read(name) == content.as_bytes()
        });
    }
    // It stays so: no taking turns.
    for _ in 0..3 {
        let _ = (stays.grove(&["sync", "--wait"]), retired.grove(&["sync"]));
        assert!(stays.alert("retired").is_none() && retired.alert("retired").is_some());
    }
    assert!(retired.has("before.txt"), "files of the retired one stay where they are");
}

#[test]
fn recovery_from_an_old_catalog_takes_in_the_newer_one_when_it_comes() {
    let temp = Temp::new("old-catalog");
    let mut ann = Cell::new(&temp, "ann", &[("settle.closed_ms", 60), ("copies", 3), ("sync.every_s", 2)]);
    ann.start();
    let (mut b1, mut b2) = (running(&temp, "bob1"), running(&temp, "bob2"));
    ann.befriend(&b1);
    ann.befriend(&b2);
    for name in ["untouched.txt", "changed.txt"] {
        ann.write(name, "version 0");
    }
    ann.scan();
    ann.ok(&["sync", "--wait"]);
    until("both have it", || {
        ann.ok(&["sync", "--wait"]);
        list(&ann.status(), "peers").iter().all(|peer| number(peer, "held_for_us_bytes") > 0)
    });
    b1.stop();
    for n in 1..=10 {
        for name in ["untouched.txt", "changed.txt"] {
            ann.write(name, format!("version {n}"));
        }
        ann.write(&format!("new{n}.txt"), format!("new {n}"));
        ann.scan();
    }
    until("the newer one has all", || {
        // It fails, since one peer is not reached.
        let _ = ann.grove(&["sync", "--wait"]);
        let entries = ann.ls("");
        entries.iter().all(|entry| number(entry, "copies") >= 2)
    });
    let _ = ann.grove(&["sync", "--wait"]);
    let phrase = temp.0.join("phrase");
    fs::write(&phrase, ann.phrase()).unwrap();
    let port = ann.peer_port;
    ann.kill();
    b2.stop();
    b1.start();
    fs::remove_dir_all(temp.0.join("ann")).unwrap();
    fs::create_dir_all(temp.0.join("ann2")).unwrap();
    let mut new = Cell::at(temp.0.join("ann2/state"), temp.0.join("ann2/home"));
    new.peer_port = port;
    let told = new.grove(&["recover", "--peer", &b1.address(), "--phrase-file", phrase.to_str().unwrap()]);
    assert_eq!(told.code, 0, "{told:?}");
    new.start();
    until("the old state is back", || new.has("untouched.txt") && new.has("changed.txt"));
    assert_eq!(new.read("untouched.txt"), b"version 0");
    new.write("changed.txt", "changed after the recovery");
    new.write("newest.txt", "made after the recovery");
    new.scan();
    b2.start();
    until("the union", || {
        let _ = new.grove(&["sync"]);
        let all = names(&new, "");
        (1..=10).all(|n| all.contains(&format!("new{n}.txt"))) && all.contains(&"newest.txt".to_owned())
    });
    until("the newer version, where nothing was changed since", || {
        let _ = (new.grove(&["sync"]), new.grove(&["restore", "--all"]));
        new.content("untouched.txt", None) == b"version 10" && new.read("untouched.txt") == b"version 10"
    });
    assert_eq!(new.read("changed.txt"), b"changed after the recovery");
    assert_eq!(new.content("changed.txt", None), b"changed after the recovery");
    let history = new.history("changed.txt");
    assert!(history.contains(&b"version 10".to_vec()), "{history:?}");
    assert_eq!(new.read("newest.txt"), b"made after the recovery");
    for n in 1..=10 {
        assert_eq!(new.read(&format!("new{n}.txt")), format!("new {n}").as_bytes());
    }
}

/// The vault of a cell at rest, under another clock.
fn vault(cell: &Cell, clock: &Arc<ManualClock>) -> Vault {
    let limits = StoreLimits { reserve_percent: 0, reserve_bytes_min: 0, ..StoreLimits::default() };
    Vault::new(VaultParts {
        dir: cell.dir.clone(),
        home: cell.home.clone(),
        db: Db::open(&cell.dir.join("placement.db")).unwrap().0,
        store: Arc::new(DiskStore::open(&cell.dir.join("chunks"), limits).unwrap()),
        master: grove::cell::open::read_key(&cell.dir).unwrap(),
        clock: Arc::clone(clock) as Arc<dyn Clock>,
        config: Config::load(&cell.dir.join("config.json")).unwrap().unwrap(),
    })
    .unwrap()
}

#[test]
fn clock_in_2038_and_1970_thins_nothing_out() {
    const Y2038: i64 = 2_147_483_647;
    let temp = Temp::new("clock");
    let mut cell = running(&temp, "ann");
    for n in 0..8 {
        cell.write("much.txt", format!("version {n}"));
        cell.scan();
    }
    cell.write("binned.txt", "binned");
    cell.scan();
    cell.ok(&["rm", "binned.txt"]);
    cell.stop();
    let now = grove::clock::SystemClock::default().wall();
    for (wall, is_sure) in
        [(Y2038, false), (0, false), (now, true), (Y2038, true), (now, true), (0, true), (now, true)]
    {
        let clock = Arc::new(ManualClock::at(wall));
        clock.set_wall(wall, is_sure);
        let vault = vault(&cell, &clock);
        vault.save_time().unwrap();
        for _ in 0..2 {
            let thinned = grove::gc::thin_all(&vault).unwrap();
            assert_eq!((thinned.versions, thinned.deleted), (0, 0), "at {wall}, sure {is_sure}");
            grove::gc::collect(&vault).unwrap();
            // And turned while it runs.
            clock.pass(Duration::from_secs(3600));
            clock.set_wall(if wall == 0 { Y2038 } else { 0 }, false);
        }
        vault.save_time().unwrap();
    }
    cell.start();
    // The watch may have kept one more, empty, from between truncating and writing.
    let history = cell.history("much.txt");
    assert!((0..8).all(|n| history.contains(&format!("version {n}").into_bytes())), "{history:?}");
    cell.ok(&["restore", "binned.txt"]);
    assert_eq!(cell.read("binned.txt"), b"binned");
    assert_eq!(cell.grove(&["verify", "--deep"]).code, 0);
}

const MANY: usize = 60;

fn many(temp: &Temp) -> Cell {
    let cell = running(temp, "ann");
    for n in 0..MANY {
        cell.write(&format!("work/{n:02}.txt"), format!("precious {n}"));
    }
    cell.scan();
    assert_eq!(cell.ls("work").len(), MANY);
    assert_eq!(cell.alert("brake"), None);
    cell
}

/// The brake is on, stays on over restarts and collections, and goes when a person says so.
fn brake_holds(cell: &mut Cell) {
    until("the brake", || cell.alert("brake").is_some());
    cell.kill();
    cell.start();
    assert!(cell.alert("brake").is_some(), "over a restart");
    cell.client().post_json("/api/v1/collect", "{}").unwrap();
}

fn confirmed(cell: &mut Cell) {
    cell.ok(&["confirm"]);
    assert_eq!(cell.alert("brake"), None);
    cell.stop();
    cell.start();
    assert_eq!(cell.alert("brake"), None);
}

#[test]
fn rewriting_every_file_one_by_one_pulls_the_brake_and_all_comes_back() {
    let temp = Temp::new("rewrite");
    let mut cell = many(&temp);
    for n in 0..MANY {
        cell.write(&format!("work/{n:02}.txt"), noise(40));
        if n % 20 == 19 {
            cell.scan();
        }
    }
    cell.scan();
    brake_holds(&mut cell);
    for n in 0..MANY {
        let path = format!("work/{n:02}.txt");
        let versions = cell.versions(&path);
        let first = number(versions.last().unwrap(), "version").to_string();
        cell.ok(&["restore", &path, "--version", &first]);
        assert_eq!(cell.read(&path), format!("precious {n}").as_bytes());
    }
    confirmed(&mut cell);
}

#[test]
fn deleting_most_files_pulls_the_brake_and_all_comes_back() {
    let temp = Temp::new("mass-delete");
    let mut cell = many(&temp);
    fs::remove_dir_all(cell.home.join("work")).unwrap();
    cell.scan();
    brake_holds(&mut cell);
    cell.ok(&["restore", "work"]);
    for n in 0..MANY {
        assert_eq!(cell.read(&format!("work/{n:02}.txt")), format!("precious {n}").as_bytes());
    }
    // Nothing is missing any more, and nobody has to say so.
    assert_eq!(cell.alert("brake"), None);
    cell.kill();
    cell.start();
    assert_eq!(cell.alert("brake"), None);
    // It counts again from here.
    fs::remove_dir_all(cell.home.join("work")).unwrap();
    cell.scan();
    brake_holds(&mut cell);
    confirmed(&mut cell);
}

#[test]
fn what_is_put_back_by_hand_lifts_the_brake_only_if_it_is_the_same() {
    let temp = Temp::new("put-back");
    let mut cell = many(&temp);
    let away = temp.0.join("away");
    fs::rename(cell.home.join("work"), &away).unwrap();
    cell.scan();
    brake_holds(&mut cell);
    // All but 20, which would do, but one of them is another file.
    for n in 0..MANY - 21 {
        cell.write(&format!("work/{n:02}.txt"), format!("precious {n}"));
    }
    cell.write("work/39.txt", "precious? 39");
    cell.scan();
    assert!(cell.alert("brake").is_some());
    cell.write("work/40.txt", "precious 40");
    cell.scan();
    assert_eq!(cell.alert("brake"), None);
    assert_eq!(cell.bin().len(), MANY + 1, "what is in the bin stays there: {MANY} files and their folder");
    cell.kill();
    cell.start();
    assert_eq!(cell.alert("brake"), None);
}

#[test]
fn what_is_put_back_by_hand_does_not_cost_older_versions() {
    let temp = Temp::new("put-back-versions");
    let mut cell = many(&temp);
    for n in 0..21 {
        cell.write(&format!("work/{n:02}.txt"), format!("more precious {n}"));
    }
    cell.scan();
    assert_eq!(cell.alert("brake"), None);
    let away = temp.0.join("away");
    fs::rename(cell.home.join("work"), &away).unwrap();
    cell.scan();
    brake_holds(&mut cell);
    copy_tree(&away, &cell.home.join("work"));
    cell.scan();
    // The bin has the first versions of 21 files, and nothing else has.
    assert!(cell.alert("brake").is_some());
    confirmed(&mut cell);
}

#[test]
fn no_more_goes_than_a_person_was_told() {
    let temp = Temp::new("told");
    let mut cell = many(&temp);
    let ask = |cell: &Cell, path: &str, body: &str| {
        let answer = cell.client().request("POST", &format!("/api/v1{path}"), Some(body.as_bytes())).unwrap();
        (answer.status, answer.text().unwrap())
    };
    let weigh = |cell: &Cell| {
        // What lies in another of them is told once.
        let (status, told) = ask(cell, "/weigh", r#"{"paths":["work","work/00.txt","work"]}"#);
        assert_eq!(status, 200, "{told}");
        let told = cells::object(&told);
        assert!(matches!(told.get("pulls_brake"), Some(miniserde::json::Value::Bool(true))));
        (number(&told, "files"), number(&told, "bytes"))
    };
    let rm = |cell: &Cell, (files, bytes): (u64, u64)| {
        let body = format!(r#"{{"path":"work","confirmed":true,"files":{files},"bytes":{bytes}}}"#);
        ask(cell, "/rm", &body)
    };
    let told = weigh(&cell);
    assert_eq!(told.0, MANY as u64);
    cell.write("work/late.txt", "late");
    cell.scan();
    let (status, answer) = rm(&cell, told);
    assert!(status == 409 && answer.contains("more_files") && answer.contains(r#""files":61"#), "{answer}");
    // As many, but larger.
    let (status, answer) = rm(&cell, (told.0 + 1, told.1));
    assert!(status == 409 && answer.contains("more_files"), "{answer}");
    assert_eq!((cell.ls("work").len(), cell.bin().len()), (MANY + 1, 0), "nothing of it went");
    let told = weigh(&cell);
    assert_eq!(rm(&cell, told).0, 200);
    assert_eq!((names(&cell, "").len(), cell.alert("brake")), (0, None));
    cell.ok(&["restore", "work"]);
    // Who says no number has confirmed nothing: the brake asks.
    assert_eq!(ask(&cell, "/rm", r#"{"path":"work","confirmed":true}"#).0, 200);
    brake_holds(&mut cell);
    // That the clock is right says nothing about it, nor does a yes to fewer.
    assert_eq!(ask(&cell, "/confirm", r#"{"what":"clock"}"#).0, 200);
    assert_eq!(ask(&cell, "/confirm", r#"{"what":"both"}"#).0, 400);
    let (status, answer) = ask(&cell, "/confirm", r#"{"what":"brake","files":60}"#);
    assert!(status == 409 && answer.contains("more_files"), "{answer}");
    assert!(cell.alert("brake").is_some());
    assert_eq!(
        ask(&cell, "/confirm", r#"{"what":"brake","files":61}"#),
        (200, r#"{"was_on":true}"#.to_owned())
    );
    assert_eq!(cell.alert("brake"), None);
}

#[test]
fn renaming_and_rewriting_every_file_pulls_the_brake_and_all_comes_back() {
    let temp = Temp::new("ransom");
    let mut cell = many(&temp);
    let place = |cell: &Cell, n: usize| cell.home.join(format!("work/{n:02}.txt"));
    let enc = |n: usize| format!("work/{n:02}.txt.enc");
    // Half in place, and seen there before it is renamed.
    for n in (1..MANY).step_by(2) {
        fs::write(place(&cell, n), noise(40)).unwrap();
    }
    cell.scan();
    for n in 0..MANY {
        let plain = place(&cell, n);
        // A quarter as a new file beside the old one, a quarter in place and renamed at once.
        if n % 4 == 0 {
            cell.write(&enc(n), noise(40));
            fs::remove_file(plain).unwrap();
        } else {
            if n % 4 == 2 {
                fs::write(&plain, noise(40)).unwrap();
            }
            fs::rename(&plain, cell.home.join(enc(n))).unwrap();
        }
    }
    cell.scan();
    brake_holds(&mut cell);
    for n in 0..MANY {
        let plain = format!("work/{n:02}.txt");
        let precious = format!("precious {n}").into_bytes();
        // A walk that misses the new name of what is renamed meanwhile sees a deletion, and then a new file.
        if !cell.history(&enc(n)).contains(&precious) {
            cell.ok(&["restore", &plain]);
            assert!(cell.history(&plain).contains(&precious), "{plain} has lost its first version");
        }
    }
    assert!(cell.alert("brake").is_some(), "what was rewritten is not back");
    confirmed(&mut cell);
}

//! `kill -9` at random instants of import, sync, recovery, restore and garbage collection, a hundred in all: the next
//! start needs no repair by hand, nothing that was acknowledged is lost, and nothing that was on its way is left.

mod common;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use common::proxy::Proxy;
use common::*;
use grove::card::{ADDRESSES_MAX, Invite};
use grove::files::unix::to_wire;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::ExitStatusExt;

/// Rounds, each with one kill.
const IMPORTS: usize = 26;
const IMPORTS_IN_PROCESS: usize = 12;
const SYNCS: usize = 24;
const RECOVERIES: usize = 14;
const RESTORES: usize = 12;
const COLLECTIONS: usize = 14;

/// Files that a `grove add` with exit code 0 took, by their wire paths.
#[derive(Default)]
struct Kept(BTreeMap<String, Vec<u8>>);

impl Kept {
    fn take(&mut self, files: Vec<(String, Vec<u8>)>) {
        self.0.extend(files);
    }

    /// Those whose path begins so must all come out of the chunk store as they went in.
    fn check(&self, cell: &Cell, prefix: &str) {
        for (path, bytes) in self.0.iter().filter(|(path, _)| path.starts_with(prefix)) {
            match cell.content(path) {
                Ok(content) if content == *bytes => {}
                Ok(content) => panic!("{path} has {} other bytes, not {}", content.len(), bytes.len()),
                Err(why) => panic!("{path} was acknowledged and is lost: {why}\n{}", cell.log_text()),
            }
        }
    }
}

/// Writes some small files and a larger one to `folder` and gives them by their wire paths, as if `folder` were `name`
/// in GroveHome.
fn make_files(folder: &Path, name: &str, chance: &mut Chance) -> Vec<(String, Vec<u8>)> {
    fs::create_dir_all(folder).unwrap();
    let mut files = Vec::new();
    for number in 0..8 {
        let len = match number {
            0 => 0,
            7 => 600_000 + chance.below(1_500_000),
            _ => chance.below(5000),
        };
        let (file, bytes) = (format!("file {number}"), chance.bytes(len as usize));
        fs::write(folder.join(&file), &bytes).unwrap();
        files.push((to_wire(format!("{name}/{file}").as_bytes()), bytes));
    }
    files
}

fn add(cell: &Cell, path: &Path) -> bool {
    cell.cli([OsStr::new("add"), path.as_os_str()]).status.success()
}

/// Lets `work` run in another thread and kills after a random time of at most `max_ms`. Gives what came of it, and whether it
/// was over before the kill.
fn kill_within<T: Send>(
    chance: &mut Chance,
    max_ms: u64,
    pid: u32,
    work: impl FnOnce() -> T + Send,
) -> (T, bool) {
    let delay = Duration::from_micros(chance.below(max_ms * 1000));
    std::thread::scope(|scope| {
        let working = scope.spawn(work);
        std::thread::sleep(delay);
        let pid = rustix::process::Pid::from_raw(pid as i32).unwrap();
        let was_over = working.is_finished();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        (working.join().unwrap(), was_over)
    })
}

#[test]
fn killed_import_loses_nothing_acknowledged() {
    let mut chance = Chance::seeded("import");
    let temp = TempDir::new("kill-import");
    let mut cell = Cell::at(temp.path(), "a");
    cell.init("ann", &[]);
    cell.run();
    let mut kept = Kept::default();
    let (mut acknowledged, mut unfinished, mut newest, mut kills) = (0, 0, 0, 0);
    let changing = cell.home.join("changing");
    // Where all was over the next kill comes sooner, and where nothing was acknowledged it comes later: on a quick machine and
    // on a busy one it falls into the midst of the imports. What is added after the kill is added without a cell.
    let mut latest_ms = 400;
    for round in 0..4 * IMPORTS {
        if kills >= IMPORTS && unfinished >= IMPORTS / 4 && acknowledged >= IMPORTS / 4 {
            break;
        }
        // From outside GroveHome, and in it while it is watched.
        let batches: Vec<(PathBuf, String)> = (0..6)
            .map(|batch| {
                let name = format!("round {round:02} {batch}");
                let at = if batch % 2 == 0 { temp.path().join("in") } else { cell.home.clone() };
                (at.join(&name), name)
            })
            .collect();
        let mut seeds = Chance(chance.next());
        let shared = &cell;
        let ((done, last), was_over) = kill_within(&mut chance, latest_ms, cell.pid(), || {
            let (mut done, mut last) = (Vec::new(), None);
            fs::write(&changing, format!("{} {}", round + 1, "x".repeat(100_000))).unwrap();
            if add(shared, &changing) {
                last = Some(round + 1);
            }
            for (folder, name) in &batches {
                let files = make_files(folder, name, &mut seeds);
                if !add(shared, folder) {
                    break;
                }
                done.push(files);
            }
            (done, last)
        });
        cell.kill();
        kills += 1;
        if was_over {
            latest_ms = latest_ms * 4 / 5;
        } else if done.is_empty() {
            latest_ms = latest_ms * 5 / 4;
        }
        acknowledged += done.len();
        unfinished += usize::from(done.len() < batches.len());
        newest = last.unwrap_or(newest);
        done.into_iter().for_each(|files| kept.take(files));

        cell.run();
        kept.check(&cell, &format!("round {round:02}"));
        let changing = cell.content("changing").map(|bytes| String::from_utf8(bytes).unwrap());
        let version = changing.map_or(0, |text| text.split(' ').next().unwrap().parse().unwrap());
        assert!(version >= newest, "version {version} came back, {newest} was acknowledged");
        cell.no_temps();
        if round % 10 == 9 {
            cell.verify_deep();
        }
        fs::remove_dir_all(temp.path().join("in")).ok();
    }
    kept.check(&cell, "");
    cell.verify_deep();
    eprintln!("{kills} kills, {unfinished} of them in an import; {acknowledged} imports acknowledged before");
    assert!(unfinished >= IMPORTS / 4 && acknowledged >= IMPORTS / 4, "{unfinished}, {acknowledged}");
}

#[test]
fn killed_import_without_a_running_cell_loses_nothing_acknowledged() {
    let mut chance = Chance::seeded("import in process");
    let temp = TempDir::new("kill-add");
    let mut cell = Cell::at(temp.path(), "a");
    cell.init("ann", &[]);
    let mut kept = Kept::default();
    let mut killed = 0;
    // An import that is quicker than the kill is acknowledged, and another one is tried with a sooner kill.
    let mut latest_us = 250_000;
    for round in 0..4 * IMPORTS_IN_PROCESS {
        if killed == IMPORTS_IN_PROCESS {
            break;
        }
        let name = format!("round {round:02}");
        let folder = temp.path().join("in").join(&name);
        let files = make_files(&folder, &name, &mut chance);
        let mut command = cell.command([OsStr::new("add"), folder.as_os_str()]);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_micros(chance.below(latest_us)));
        let ended = child.try_wait().unwrap();
        let _ = child.kill();
        child.wait().unwrap();
        match ended {
            Some(status) => {
                assert!(status.success(), "{status}");
                kept.take(files);
                latest_us = latest_us * 4 / 5;
            }
            None => killed += 1,
        }
        if round % 8 == 7 {
            cell.verify_deep();
        }
    }
    assert_eq!(killed, IMPORTS_IN_PROCESS);
    cell.run();
    kept.check(&cell, "");
    cell.no_temps();
    cell.verify_deep();
    eprintln!("{killed} kills; {} files acknowledged", kept.0.len());
}

/// A recovery that came to its end does not begin again: the cell makes way for one that does.
fn remove_if_whole(cell: &Cell, before: &BTreeMap<std::ffi::OsString, Item>) {
    if !cell.dir.join("recovering").exists() && cell.dir.join(".key").exists() {
        assert_same(before, &inventory(&cell.home));
        remove_tree(&cell.dir);
        remove_tree(&cell.home);
    }
}

/// Waits until all of `a` is on its peer.
fn level(a: &Cell) {
    wait_for("the cells are level", || a.cli(["sync", "--wait"]).status.success().then_some(()));
}

/// Makes the two peers of each other such that all between them goes through the proxy.
fn invite_through(proxy: &Proxy, a: &Cell, b: &Cell) {
    let mut invite: Invite = a.cli(["invite"]).ok().out.trim().parse().unwrap();
    invite.addresses = vec![proxy.address()];
    b.cli(["join", &invite.to_string()]).ok();
}

#[test]
fn killed_sync_and_recovery_lose_nothing_acknowledged() {
    let mut chance = Chance::seeded("sync");
    let temp = TempDir::new("kill-sync");
    let (mut a, mut b) = (Cell::at(temp.path(), "a"), Cell::at(temp.path(), "b"));
    // All that they say to each other passes a proxy that counts it: each knows of the other only the proxy before it.
    let to_a = Proxy::before(a.peer_port);
    let to_b = to_a.beside(b.peer_port);
    for (cell, name, proxy) in [(&a, "ann", &to_a), (&b, "bob", &to_b)] {
        // As many as a card holds, so that none of the cell's own addresses is on it: by that they would go around the proxy.
        let addresses = vec![format!("\"{}\"", proxy.address()); ADDRESSES_MAX];
        let addresses = format!("[{}]", addresses.join(","));
        cell.init(name, &[("sync.every_s", "1"), ("peer.addresses", &addresses)]);
    }
    a.run();
    b.run();
    invite_through(&to_a, &a, &b);
    level(&a);
    let mut kept = Kept::default();
    for round in 0..SYNCS {
        let name = format!("round {round:02}");
        let folder = a.home.join(&name);
        let large = chance.bytes(6_000_000);
        let share = chance.below(large.len() as u64 * 9 / 10).max(1);
        // Before the first file is there: the cell watches, and may push some before the last one is written. And no more than
        // that share passes before the kill, however late that comes.
        let before = to_a.passed();
        to_a.hold_at(before + share);
        let mut files = make_files(&folder, &name, &mut chance);
        fs::write(folder.join("large"), &large).unwrap();
        files.push((to_wire(format!("{name}/large").as_bytes()), large));
        let total: u64 = files.iter().map(|(_, bytes)| bytes.len() as u64).sum();
        assert!(add(&a, &folder));
        kept.take(files);
        // What was added is pushed by itself. Somewhere within it the one who sends or the one who takes is killed.
        wait_for("bytes are on their way", || (to_a.passed() >= before + share).then_some(()));
        let killed = if round % 2 == 0 { &mut a } else { &mut b };
        killed.kill();
        // A kill that comes when all is there already would be no kill of a sync.
        let on_the_way = to_a.passed() - before;
        assert!(on_the_way < total, "{on_the_way} bytes have passed, of {total}");
        to_a.release();
        killed.run();
        killed.no_temps();
        if round % 8 == 7 {
            b.verify_deep();
        }
    }
    // What was not acknowledged was found by the scan at the start.
    assert!(add(&a, &a.home.clone()));
    level(&a);
    kept.check(&a, "");
    a.verify_deep();
    b.verify_deep();
    b.no_temps();
    eprintln!("{SYNCS} kills in the middle of a sync");

    let before = inventory(&a.home);
    let phrase = temp.path().join("phrase");
    fs::write(&phrase, a.phrase()).unwrap();
    a.kill();
    remove_tree(&temp.path().join("a"));
    let address = b.address();
    let words = || {
        ["recover", "--peer", &address, "--phrase-file"]
            .map(OsStr::new)
            .into_iter()
            .chain([phrase.as_os_str()])
    };
    let mut a2 = Cell::at(temp.path(), "a2");
    let (mut killed, mut whole, mut max_ms) = (0, 0, 2000);
    while killed < RECOVERIES {
        let began = Instant::now();
        let mut child = a2.command(words()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        std::thread::sleep(Duration::from_micros(chance.below(max_ms * 1000)));
        let _ = child.kill();
        let output = child.wait_with_output().unwrap();
        if output.status.signal().is_some() {
            killed += 1;
            continue;
        }
        // Whole, or the one before was and its kill came between its end and its exit.
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() || said.contains("a cell lives in"), "{said}");
        assert_same(&before, &inventory(&a2.home));
        remove_tree(&temp.path().join("a2"));
        fs::create_dir_all(temp.path().join("a2")).unwrap();
        whole += 1;
        max_ms = (began.elapsed().as_millis() as u64).clamp(100, max_ms);
    }
    remove_if_whole(&a2, &before);
    a2.cli(words()).ok();
    assert_same(&before, &inventory(&a2.home));
    a2.verify_deep();
    a2.run();
    kept.check(&a2, "");
    a2.no_temps();
    level(&a2);
    b.verify_deep();
    eprintln!("{killed} kills of a recovery; {whole} came to their end before");
}

#[test]
fn killed_restore_goes_on_and_loses_nothing() {
    let mut chance = Chance::seeded("restore");
    let temp = TempDir::new("kill-restore");
    let mut cell = Cell::at(temp.path(), "a");
    cell.init("ann", &[]);
    cell.run();
    let mut kept = Kept::default();
    for number in 0..10 {
        let name = format!("folder {number}");
        kept.take(make_files(&cell.home.join("tree").join(&name), &format!("tree/{name}"), &mut chance));
    }
    assert!(add(&cell, &cell.home.join("tree")));
    let before = inventory(&cell.home.join("tree"));
    let mut unfinished = 0;
    for round in 0..RESTORES {
        let out = temp.path().join("out");
        let shared = &cell;
        let is_home = round % 2 == 0;
        if is_home {
            cell.cli(["rm", "tree"]).ok();
            assert!(!cell.home.join("tree").exists());
        }
        let (done, _) = kill_within(&mut chance, 350, cell.pid(), || {
            let said = match is_home {
                true => shared.cli(["restore", "tree"]),
                false => shared.cli([
                    OsStr::new("restore"),
                    OsStr::new("--all"),
                    OsStr::new("--to"),
                    out.as_os_str(),
                ]),
            };
            said.status.success()
        });
        unfinished += usize::from(!done);
        cell.kill();
        cell.run();
        if is_home {
            // Cut off, a restore may not have begun, or may go on by itself.
            cell.cli(["restore", "tree"]);
            let end = Instant::now() + DEADLINE;
            loop {
                let found = differences(&before, &inventory(&cell.home.join("tree")));
                if found.is_empty() {
                    break;
                }
                assert!(Instant::now() < end, "round {round}: {}\n{}", found.join("\n"), cell.log_text());
                std::thread::sleep(Duration::from_millis(20));
            }
        } else {
            cell.cli([OsStr::new("restore"), OsStr::new("--all"), OsStr::new("--to"), out.as_os_str()]).ok();
            assert_same(&before, &inventory(&out.join("tree")));
            remove_tree(&out);
        }
        cell.no_temps();
        if round % 6 == 5 {
            cell.verify_deep();
        }
    }
    kept.check(&cell, "");
    eprintln!("{RESTORES} kills, {unfinished} of them in a restore");
}

#[test]
fn killed_collection_takes_nothing_that_is_needed() {
    let mut chance = Chance::seeded("collection");
    let temp = TempDir::new("kill-collect");
    let mut cell = Cell::at(temp.path(), "a");
    cell.init("ann", &[("bin.days", "0"), ("versions.full_days", "0"), ("versions.budget_percent", "0")]);
    cell.run();
    let mut kept = Kept::default();
    let mut unfinished = 0;
    for round in 0..COLLECTIONS {
        let (keep, go) = (format!("keep {round:02}"), format!("go {round:02}"));
        let files = make_files(&cell.home.join(&keep), &keep, &mut chance);
        make_files(&cell.home.join(&go), &go, &mut chance);
        // A chunk that both need must stay.
        let twin = files.last().unwrap().1.clone();
        fs::write(cell.home.join(&go).join("twin"), twin).unwrap();
        assert!(add(&cell, &cell.home.join(&keep)) && add(&cell, &cell.home.join(&go)));
        kept.take(files);
        cell.cli(["rm", &go]).ok();
        // So many deletions put the brake on; nothing is collected behind it.
        cell.cli(["confirm"]).ok();
        let shared = &cell;
        let late = format!("late {round:02}");
        let late_folder = cell.home.join(&late);
        let mut seeds = Chance(chance.next());
        let ((done, added), _) = kill_within(&mut chance, 200, cell.pid(), || {
            let collecting = shared.try_post("/collect", "{}").map(|answer| number(&answer, "job"));
            // An import beside it.
            let files = make_files(&late_folder, &late, &mut seeds);
            let added = add(shared, &late_folder).then_some(files);
            let done = collecting.and_then(|job| shared.try_get(&format!("/jobs/{job}?wait_ms=5000")));
            (done.is_ok_and(|job| text(&job, "state") == "done"), added)
        });
        unfinished += usize::from(!done);
        if let Some(files) = added {
            kept.take(files);
        }
        cell.kill();
        cell.run();
        kept.check(&cell, &late);
        kept.check(&cell, &keep);
        cell.no_temps();
        if round % 7 == 6 {
            cell.verify_deep();
        }
    }
    kept.check(&cell, "");
    cell.verify_deep();
    // What nobody needs goes in the end.
    let all: u64 = walked_bytes(&cell.home);
    wait_for("what was removed is collected", || {
        cell.job_done("/collect", "{}");
        let held = number(&cell.get("/status"), "chunks.bytes");
        (held < all + all / 4 + 1_000_000).then_some(())
    });
    kept.check(&cell, "");
    cell.verify_deep();
    cell.no_temps();
    eprintln!("{COLLECTIONS} kills, {unfinished} of them before the end of a collection");
}

fn walked_bytes(folder: &Path) -> u64 {
    let mut bytes = 0;
    walk(folder, &mut |path| {
        assert!(!path.as_os_str().as_bytes().is_empty());
        bytes += path.symlink_metadata().map_or(0, |meta| if meta.is_file() { meta.len() } else { 0 });
    });
    bytes
}

//! What a cell does in its quiet hours, on a cell at rest whose clock the test turns: cold chunks gathered into packs, trash
//! emptied, versions of several epochs read.

mod common;

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use common::*;
use grove::clock::{Clock, ManualClock};
use grove::config::Config;
use grove::files::import::{self, Outcome};
use grove::files::walk::Walk;
use grove::placement::{Db, HoldClass, HoldState, Own};
use grove::seal::Sealer;
use grove::store::{DiskStore, Place, StoreLimits};
use grove::vault::{Vault, VaultParts};

const DAY: u64 = 86_400;

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

/// A cell with its GroveHome.
fn made(temp: &TempDir) -> Cell {
    let cell = Cell::at(temp.path(), "a");
    cell.init("ann", &[]);
    cell.cli(["status"]).ok();
    cell
}

fn clock_of_now() -> Arc<ManualClock> {
    Arc::new(ManualClock::at(grove::clock::SystemClock::default().wall()))
}

fn pass_days(clock: &ManualClock, days: u64) {
    clock.pass(Duration::from_secs(days * DAY));
}

/// Rows of chunks that lie loose and are small.
fn loose(vault: &Vault) -> usize {
    let all = vault.db.read(|t| t.chunks_after(Default::default(), 100_000)).unwrap();
    all.iter().filter(|row| row.place == Some(Place::Loose) && row.len < 128 << 10).count()
}

#[test]
fn small_chunks_grown_cold_are_gathered_into_packs_a_little_at_a_time() {
    let temp = TempDir::new("cold");
    let cell = made(&temp);
    let mut chance = Chance::seeded("cold");
    // One by one, so each lies loose.
    let contents: Vec<Vec<u8>> = (0..60).map(|n| chance.bytes(2000 + n)).collect();
    for (n, content) in contents.iter().enumerate() {
        fs::write(cell.home.join(format!("f{n}")), content).unwrap();
        if n % 10 == 9 {
            cell.cli([std::ffi::OsStr::new("add"), cell.home.as_os_str()]).ok();
        }
    }
    let clock = clock_of_now();
    let vault = vault(&cell, &clock);
    let before = loose(&vault);
    assert!(before >= 60, "{before}");
    // Nothing is cold yet, and what comes later is not cold with what was there.
    for days in [0, 6, 0] {
        pass_days(&clock, days);
        assert_eq!(grove::gc::gather_cold(&vault).unwrap(), 0);
    }
    let new = vault.sealer.seal(chance.bytes(500));
    let place = vault.store.commit(vec![vault.store.stage(new.name, &new.bytes).unwrap()]).unwrap()[0];
    let new_len = new.bytes.len() as u32;
    vault.db.change(|t| t.put_chunk(&new.name, new_len, &place, Own::No)).unwrap();
    pass_days(&clock, 2);
    let gathered = grove::gc::gather_cold(&vault).unwrap();
    assert_eq!(gathered as usize, before);
    assert_eq!(loose(&vault), 1, "what came later is not cold");
    assert_eq!(grove::gc::gather_cold(&vault).unwrap(), 0, "too few are left for a pack");
    // Their files are gone, and every byte is where the rows say.
    let files = fs::read_dir(cell.dir.join("chunks")).unwrap().flatten();
    let shards = files.filter(|entry| entry.file_name().len() == 2);
    let left: usize = shards.map(|entry| fs::read_dir(entry.path()).unwrap().count()).sum();
    assert_eq!(left, 1);
    for row in vault.db.read(|t| t.chunks_after(Default::default(), 100_000)).unwrap() {
        assert!(vault.local_chunk(&row.name).unwrap().is_some(), "{}", row.name);
    }
    drop(vault);
    for (n, content) in contents.iter().enumerate() {
        let out = temp.path().join(format!("out{n}"));
        cell.cli(["get", &format!("f{n}"), "-o", out.to_str().unwrap()]).ok();
        assert_eq!(fs::read(out).unwrap(), *content);
    }
    cell.verify_deep();
}

/// So large that its chunks stand in lists. A catalog that comes back names the lists, and they come later.
#[test]
fn chunks_that_only_lists_name_are_mine_again_once_the_lists_are_back() {
    let temp = TempDir::new("tidy-lists");
    let cell = made(&temp);
    let mut chance = Chance::seeded("tidy-lists");
    let large = fs::File::create(cell.home.join("large")).unwrap();
    large.set_len(5 << 30).unwrap();
    for at in [0, 1 << 30, 9 << 29] {
        std::os::unix::fs::FileExt::write_all_at(&large, &chance.bytes(1000), at).unwrap();
    }
    drop(large);
    cell.cli([std::ffi::OsStr::new("add"), cell.home.as_os_str()]).ok();
    let vault = vault(&cell, &clock_of_now());
    let owned = || {
        vault.db.read(|t| -> Result<(usize, usize), grove::placement::DbError> {
            let (mut data, mut lists) = (0, 0);
            for row in t.chunks_after(Default::default(), 1000)? {
                data += usize::from(t.own(row.id)? == Own::Data);
                lists += usize::from(t.own(row.id)? == Own::List);
            }
            Ok((data, lists))
        })
    };
    let (data, lists) = owned().unwrap();
    assert!(data == 3 && lists > 0, "{data} chunks and {lists} lists");
    vault
        .db
        .change(|t| -> Result<(), grove::placement::DbError> {
            for row in t.chunks_after(Default::default(), 1000)? {
                if t.own(row.id)? == Own::Data {
                    t.set_own(row.id, Own::No)?;
                }
            }
            Ok(())
        })
        .unwrap();
    assert_eq!(owned().unwrap(), (0, lists));
    grove::gc::collect(&vault).unwrap();
    assert_eq!(owned().unwrap(), (3, lists), "otherwise nobody would heal their copies");
    drop(vault);
    cell.verify_deep();
}

#[test]
fn what_an_owner_released_stays_14_days_and_not_longer() {
    let temp = TempDir::new("trash");
    let cell = made(&temp);
    let clock = clock_of_now();
    let vault = vault(&cell, &clock);
    let owner = grove::keys::MasterKey::from_bytes([9; 32]).identity(0, 0).id();
    let sealed: Vec<_> = (0..3u8).map(|n| vault.sealer.seal(vec![n; 4000])).collect();
    let staged = sealed.iter().map(|chunk| vault.store.stage(chunk.name, &chunk.bytes).unwrap()).collect();
    let places = vault.store.commit(staged).unwrap();
    let now = vault.now();
    let ids: Vec<_> = vault
        .db
        .change(|t| -> Result<_, grove::placement::DbError> {
            let cell = t.cell(&owner)?;
            let mut ids = Vec::new();
            for (chunk, place) in sealed.iter().zip(&places) {
                let id = t.put_chunk(&chunk.name, chunk.bytes.len() as u32, place, Own::No)?;
                t.put_hold(id, cell, HoldClass::Chunk, HoldState::Held, now)?;
                ids.push((id, cell));
            }
            // Two are released; one of them is wanted again in time.
            for (id, cell) in &ids[..2] {
                t.put_hold(*id, *cell, HoldClass::Chunk, HoldState::Trash, now)?;
            }
            Ok(ids)
        })
        .unwrap();
    let here = || sealed.iter().map(|c| vault.local_chunk(&c.name).unwrap().is_some()).collect::<Vec<_>>();
    let tidy = || {
        let ended = grove::gc::empty_trash(&vault).unwrap();
        grove::gc::collect(&vault).unwrap();
        ended
    };
    pass_days(&clock, 13);
    assert_eq!((tidy(), here()), (0, vec![true; 3]));
    let (id, holder) = ids[1];
    vault.db.change(|t| t.put_hold(id, holder, HoldClass::Chunk, HoldState::Held, vault.now())).unwrap();
    pass_days(&clock, 2);
    assert_eq!((tidy(), here()), (1, vec![false, true, true]));
    // The owner hears of it: the newest line of its inventory.
    let inventory = vault.db.read(|t| t.inventory(holder, 0, 100)).unwrap();
    assert!(inventory.iter().any(|row| row.name == sealed[0].name && !row.held), "{inventory:?}");
}

/// Keeps all that is new in GroveHome, as a pass of the running cell does for small files.
fn keep_all(vault: &Arc<Vault>) {
    let mut walk = Walk::whole(Arc::clone(vault), None).unwrap();
    loop {
        let found = walk.step().unwrap();
        let ready = import::prepare_small(vault, found.candidates, true)
            .into_iter()
            .filter_map(|outcome| match outcome.unwrap() {
                Outcome::Ready(prepared) => Some(*prepared),
                Outcome::Later(..) => panic!("written too recently"),
                _ => None,
            })
            .collect();
        import::commit(vault, ready).unwrap();
        if found.is_done {
            break;
        }
    }
    grove::publish::publish(vault).unwrap();
}

/// Writes a file as if some time ago, so that it counts as settled.
fn write_settled(cell: &Cell, name: &str, content: &[u8]) {
    fs::write(cell.home.join(name), content).unwrap();
    wait_for("a tick of the file system's clock", || {
        let probe = cell.home.join("../probe");
        fs::write(&probe, b"").unwrap();
        let time = |path: &std::path::Path| {
            use std::os::unix::fs::MetadataExt;
            let meta = fs::metadata(path).unwrap();
            i128::from(meta.ctime()) * 1_000_000_000 + i128::from(meta.ctime_nsec())
        };
        (time(&probe) > time(&cell.home.join(name)) + 50_000_000).then_some(())
    });
}

#[test]
fn versions_sealed_under_several_epochs_are_all_read() {
    let temp = TempDir::new("epochs");
    let mut cell = made(&temp);
    let clock = clock_of_now();
    let mut chance = Chance::seeded("epochs");
    let same = chance.bytes(50_000);
    let mut contents = Vec::new();
    for epoch in [0, 1, 0, 7] {
        let mut vault = vault(&cell, &clock);
        vault.sealer = Sealer::new(&vault.master, epoch);
        let content = chance.bytes(30_000);
        write_settled(&cell, "letter", &content);
        write_settled(&cell, &format!("same{epoch}-{}", contents.len()), &same);
        keep_all(&Arc::new(vault));
        contents.push(content);
    }
    // Renamed by a cell whose own epoch is another: its chunks stay what they are.
    fs::rename(cell.home.join("letter"), cell.home.join("renamed")).unwrap();
    cell.cli([std::ffi::OsStr::new("add"), cell.home.as_os_str()]).ok();
    let versions = object(&cell.cli(["versions", "renamed", "--json"]).ok().out);
    let mut numbers: Vec<u64> = items(&versions, "versions")
        .iter()
        .map(|version| match version {
            miniserde::json::Value::Object(version) => number(version, "version"),
            _ => panic!("a version is an object"),
        })
        .collect();
    numbers.sort_unstable();
    assert_eq!(numbers.len(), contents.len() + 1, "{}", miniserde::json::to_string(&versions));
    contents.push(contents.last().unwrap().clone());
    for (number, content) in numbers.iter().zip(&contents) {
        let out = temp.path().join(format!("version{number}"));
        let words = ["get", "renamed", "--version", &number.to_string(), "-o", out.to_str().unwrap()];
        cell.cli(words).ok();
        assert_eq!(fs::read(out).unwrap(), *content, "version {number}");
    }
    // And all come back as files.
    let before = inventory(&cell.home);
    let to = temp.path().join("restored");
    cell.cli(["restore", "--all", "--to", to.to_str().unwrap()]).ok();
    assert_same(&before, &inventory(&to));
    cell.run();
    cell.job_done("/collect", "{}");
    assert_eq!(cell.content("renamed").unwrap(), *contents.last().unwrap());
    cell.verify_deep();
}

#[test]
fn sparse_files_come_back_sparse_by_the_block() {
    use std::os::unix::fs::{FileExt, MetadataExt};
    const MIB: u64 = 1 << 20;
    let temp = TempDir::new("sparse");
    let cell = made(&temp);
    let mut chance = Chance::seeded("sparse");
    // Data of 5,000 bytes here and there, a hole of whole chunks, and holes at both ends.
    let (name, size) = (cell.home.join("image"), 30 * MIB + 777);
    let file = fs::File::create(&name).unwrap();
    for at in [MIB, MIB + 500_001, 3 * MIB + 17, 20 * MIB, 21 * MIB + 4096] {
        file.write_all_at(&chance.bytes(5000), at).unwrap();
    }
    file.set_len(size).unwrap();
    drop(file);
    // A small one, and one of zeros only.
    for (name, data, size) in [("small", Some(70_000), 200_001), ("zeros", None, 300_000)] {
        let file = fs::File::create(cell.home.join(name)).unwrap();
        if let Some(at) = data {
            file.write_all_at(b"in the middle", at).unwrap();
        }
        file.set_len(size).unwrap();
    }
    cell.cli([std::ffi::OsStr::new("add"), cell.home.as_os_str()]).ok();
    let before = inventory(&cell.home);
    let to = temp.path().join("restored");
    cell.cli(["restore", "--all", "--to", to.to_str().unwrap()]).ok();
    assert_same(&before, &inventory(&to));
    for (name, most) in [("image", 5 * 3 * 4096), ("small", 4096), ("zeros", 0)] {
        let bytes = fs::metadata(to.join(name)).unwrap().blocks() * 512;
        println!("{name}: {bytes} bytes on the disk");
        assert!(bytes <= most, "{name} takes {bytes} bytes on the disk");
    }
}

/// A lone cell that lost its folder of chunks makes none by itself, and has all of it again from the files once a person says so.
#[test]
fn chunks_that_are_gone_are_made_again_from_the_files() {
    let temp = TempDir::new("again");
    let cell = made(&temp);
    let mut chance = Chance::seeded("again");
    let contents = [("small", chance.bytes(5000)), ("large", chance.bytes(9_000_000))];
    for (name, content) in &contents {
        fs::write(cell.home.join(name), content).unwrap();
    }
    cell.cli([std::ffi::OsStr::new("add"), cell.home.as_os_str()]).ok();
    let chunks = cell.dir.join("chunks");
    remove_tree(&chunks);
    let said = cell.cli(["verify"]);
    assert!(!said.status.success() && said.err.contains("chunks should be in it"), "{said:?}");
    assert!(!chunks.exists(), "it could be the wrong disk");
    fs::create_dir_all(chunks.join("packs")).unwrap();
    // A rename alone reads nothing; of what was lost it must.
    fs::rename(cell.home.join("small"), cell.home.join("renamed")).unwrap();
    let told = object(&cell.cli(["verify", "--json"]).ok().out);
    // Four of files, and one of the catalog at least.
    assert!(number(&told, "result.damaged") >= 5 && number(&told, "result.missing") == 0, "{told:?}");
    cell.cli(["verify", "--deep"]).ok();
    let vault = vault(&cell, &clock_of_now());
    for name in ["large", "renamed"] {
        let node = vault.db.read(|t| t.node_at(&[name.into()])).unwrap().expect("it is kept under its name");
        assert_ne!(node.ctime, 0, "what was read was recorded");
    }
    let files = vault.db.read(|t| t.chunks_after(Default::default(), 1000)).unwrap().into_iter();
    let files =
        files.filter(|row| vault.db.read(|t| t.own(row.id)).unwrap() == Own::Data).map(|row| row.name);
    let segments = vault.db.read(|t| t.segments()).unwrap().into_iter().map(|(_, name, _)| name);
    for name in files.chain(segments) {
        assert!(vault.local_chunk(&name).unwrap().is_some(), "{name} is not here");
    }
}

//! Chunks on a file system. The folder holds, with mode 0700 and files of mode 0600:
//!
//! ```text
//! ab/ab3f7c…      loose chunks, 64 hexadecimal digits, in 256 folders named by the first two
//! packs/          packs (format in pack.rs)
//! quarantine/     damaged chunks, by name
//! tmp/            chunks on their way in; emptied at the start
//! ```
//!
//! One process has the folder to itself: whoever opens the store holds the cell's lock.

use std::collections::HashMap;
use std::fs::{self, DirBuilder, DirEntry, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::pack::{self, PackWriter, Walk};
use super::{
    Body, ChunkStore, FreeSpace, Held, PACK_BATCH_MIN, PackId, PackInfo, Place, Rewritten, SMALL_BYTES, See,
    Staged, StoreError, StoreLimits, gather,
};
use crate::buffers;
use crate::id::{ChunkName, hex};
use crate::keys::sha256;
use crate::order;

/// From so many files on, one sync of the whole file system is cheaper than one for each.
const SYNC_ALL_FILES_MIN: usize = 4;
/// Up to so many folders are synced one by one after renames.
const SYNC_FOLDERS_MAX: usize = 2;
/// Free space is asked for again at the latest after so many new bytes.
const ALLOWANCE_BYTES_MAX: u64 = 64 << 20;
/// What a small file costs the disk at least; bounds the number of files in quarantine.
const BLOCK_BYTES: u64 = 4096;

/// Sealed chunks in a folder.
#[derive(Debug)]
pub struct DiskStore {
    dir: PathBuf,
    limits: StoreLimits,
    /// Device and inode of the folder. `whole` holds it open, so no other gets them.
    identity: (u64, u64),
    /// Bytes of free space that new data never gets.
    reserve: u64,
    /// Bytes that may be written before free space is looked at again.
    allowance: Mutex<u64>,
    next_temp: AtomicU64,
    /// The folder, held open: a sync of the file system reports the failures since this was opened.
    whole: Mutex<File>,
    can_sync_all: bool,
    /// Failed syncs of the file system. One may be another commit's, but the lost bytes may be ours.
    sync_failures: AtomicU64,
    packs: Mutex<Packs>,
    quarantine: Mutex<()>,
}

/// The pack that grows.
#[derive(Debug)]
enum Packs {
    /// These have room, but what the last run left at their ends was not looked at yet.
    Unchecked(Vec<PackId>),
    Checked(Option<PackWriter>),
}

/// A file in `tmp/`, gone when dropped.
#[derive(Debug)]
pub(super) struct TempFile {
    path: PathBuf,
}

impl TempFile {
    fn rename(mut self, to: &Path) -> Result<(), StoreError> {
        fs::rename(&self.path, to).map_err(|error| StoreError::io("moving a chunk to", to, error))?;
        self.path.clear();
        Ok(())
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        if !self.path.as_os_str().is_empty() {
            // What stays is removed at the next start.
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl DiskStore {
    /// Opens the store in `dir`, creating what is not there, and removes what a stopped run left in `tmp/`.
    pub fn open(dir: &Path, limits: StoreLimits) -> Result<Self, StoreError> {
        create_folders(dir)?;
        remove_files(&dir.join("tmp"))?;
        // Any small chunk must fit in an empty pack.
        let pack_bytes_max = limits.pack_bytes_max.clamp(2 * SMALL_BYTES as u64, pack::PACK_BYTES_MAX);
        let limits = StoreLimits { pack_bytes_max, ..limits };
        let whole = open_file(dir)?;
        let opened = whole.metadata().map_err(|error| StoreError::io("opening", dir, error))?;
        let (total, _) = space(dir)?;
        let percent = u128::from(limits.reserve_percent.min(100));
        let reserve = (u128::from(total) * percent / 100) as u64;
        let store = Self {
            dir: dir.to_path_buf(),
            limits,
            identity: identity(&opened),
            reserve: reserve.max(limits.reserve_bytes_min),
            allowance: Mutex::new(0),
            next_temp: AtomicU64::new(0),
            whole: Mutex::new(whole),
            can_sync_all: sync_all_reports_errors(),
            sync_failures: AtomicU64::new(0),
            packs: Mutex::new(Packs::Unchecked(Vec::new())),
            quarantine: Mutex::new(()),
        };
        let has_room = |bytes| bytes + pack::ENTRY_HEAD_BYTES + SMALL_BYTES as u64 <= pack_bytes_max;
        let mut roomy = store.list_packs()?;
        roomy.retain(|(_, bytes)| has_room(*bytes));
        // The fullest is filled up first.
        order::sort_by_key(&mut roomy, |(_, bytes)| std::cmp::Reverse(*bytes));
        *lock(&store.packs) = Packs::Unchecked(roomy.into_iter().map(|(id, _)| id).collect());
        Ok(store)
    }

    fn loose_path(&self, name: ChunkName) -> PathBuf {
        let text = name.to_string();
        self.dir.join(&text[..2]).join(text)
    }

    fn packs_dir(&self) -> PathBuf {
        packs_of(&self.dir)
    }

    /// Fails where the folder is not the one that was opened, or is empty: somebody removed it, or its disk is not mounted.
    fn check_there(&self) -> Result<(), StoreError> {
        let found = fs::metadata(&self.dir);
        if found.is_ok_and(|found| identity(&found) == self.identity) && self.packs_dir().is_dir() {
            return Ok(());
        }
        Err(StoreError::Away { path: self.dir.clone() })
    }

    fn pack_path(&self, pack: PackId) -> PathBuf {
        self.packs_dir().join(pack::file_name(pack))
    }

    // Space

    fn full(&self, needed: u64) -> StoreError {
        let free = space(&self.dir).map_or(0, |(_, free)| free);
        StoreError::Full { path: self.dir.clone(), free, needed, reserve: self.reserve }
    }

    /// Stages bytes whose space is granted.
    fn stage_paid(&self, name: ChunkName, sealed: &[u8]) -> Result<Staged, StoreError> {
        let len = u32::try_from(sealed.len()).expect("a chunk has a few MiB");
        let epoch = self.sync_failures.load(Ordering::SeqCst);
        let body = if sealed.len() < SMALL_BYTES {
            Body::Memory(sealed.to_vec())
        } else {
            Body::File(self.write_temp(sealed)?)
        };
        Ok(Staged { name, len, body, epoch })
    }

    /// Takes `needed` bytes from what may be written, or refuses them.
    fn spend(&self, needed: u64) -> Result<(), StoreError> {
        let mut allowance = lock(&self.allowance);
        if let Some(rest) = allowance.checked_sub(needed) {
            *allowance = rest;
            return Ok(());
        }
        *allowance = 0;
        let free = self.free()?.free;
        let Some(room) = free.saturating_sub(self.reserve).checked_sub(needed) else {
            return Err(self.full(needed));
        };
        // The nearer the reserve, the sooner the next look: others write to this disk too.
        *allowance = (room / 4).min(ALLOWANCE_BYTES_MAX);
        Ok(())
    }

    /// `error` as an error of the store: a full disk is told apart.
    fn write_error(&self, doing: &'static str, path: &Path, needed: u64, error: io::Error) -> StoreError {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => self.full(needed),
            io::ErrorKind::NotFound => {
                self.check_there().err().unwrap_or_else(|| StoreError::io(doing, path, error))
            }
            _ => StoreError::io(doing, path, error),
        }
    }

    // Loose chunks

    fn write_temp(&self, sealed: &[u8]) -> Result<TempFile, StoreError> {
        let number = self.next_temp.fetch_add(1, Ordering::Relaxed);
        let path = self.dir.join("tmp").join(format!("{number:x}"));
        let fail = |error| self.write_error("writing", &path, sealed.len() as u64, error);
        let mut file =
            OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).map_err(fail)?;
        let temp = TempFile { path: path.clone() };
        file.write_all(sealed).map_err(fail)?;
        if sealed.len() >= SMALL_BYTES {
            start_writeback(&file);
        }
        Ok(temp)
    }

    /// Moves files to their places; all are durable when this returns.
    fn place(&self, files: Vec<(ChunkName, TempFile)>, epoch: u64) -> Result<(), StoreError> {
        if files.is_empty() {
            return Ok(());
        }
        let sync_all = self.can_sync_all && files.len() >= SYNC_ALL_FILES_MIN;
        if sync_all {
            self.sync_all()?;
        } else {
            for (_, temp) in &files {
                let synced = File::open(&temp.path).and_then(|file| file.sync_data());
                synced.map_err(|error| self.write_error("syncing", &temp.path, 0, error))?;
            }
        }
        let shards = order::set(files.iter().map(|(name, _)| name.0[0]));
        for (name, temp) in files {
            temp.rename(&self.loose_path(name))?;
        }
        if sync_all && shards.len() > SYNC_FOLDERS_MAX {
            self.sync_all()?;
        } else {
            for shard in shards {
                sync_folder(&self.dir.join(hex(&[shard])))?;
            }
        }
        if sync_all && self.sync_failures.load(Ordering::SeqCst) != epoch {
            let lost = io::Error::other("some writes did not reach the disk");
            return Err(StoreError::io("syncing", &self.dir, lost));
        }
        Ok(())
    }

    fn sync_all(&self) -> Result<(), StoreError> {
        // One at a time: the kernel reports a failure once for each open file.
        let whole = lock(&self.whole);
        rustix::fs::syncfs(&*whole).map_err(|error| {
            self.sync_failures.fetch_add(1, Ordering::SeqCst);
            self.write_error("syncing", &self.dir, 0, error.into())
        })
    }

    // Packs

    fn list_packs(&self) -> Result<Vec<(PackId, u64)>, StoreError> {
        let mut packs = Vec::new();
        each_entry(&self.packs_dir(), &mut |entry| {
            let id = entry.file_name().to_str().and_then(pack::id_of);
            if let (Some(id), Ok(metadata)) = (id, entry.metadata()) {
                packs.push((id, metadata.len()));
            }
            Ok(())
        })?;
        order::sort(&mut packs);
        Ok(packs)
    }

    /// The pack that grows, after the ends of all packs with room were looked at once.
    fn checked_packs(&self) -> MutexGuard<'_, Packs> {
        let mut packs = lock(&self.packs);
        if let Packs::Unchecked(roomy) = &*packs {
            let mut open = None;
            for id in roomy {
                let path = self.pack_path(*id);
                match check_pack(*id, &path) {
                    Ok(writer) => open = open.or(writer),
                    Err(error) => log::warn!("{}: {error}; nothing is added to it", path.display()),
                }
            }
            *packs = Packs::Checked(open);
        }
        packs
    }

    /// Appends small chunks to packs, durably, and says where each lies, in order.
    fn append(&self, chunks: &[(ChunkName, &[u8])]) -> Result<Vec<Place>, StoreError> {
        let mut places = Vec::with_capacity(chunks.len());
        if chunks.is_empty() {
            return Ok(places);
        }
        let mut packs = self.checked_packs();
        let Packs::Checked(open) = &mut *packs else { unreachable!("the packs were just checked") };
        let mut rest = chunks;
        while !rest.is_empty() {
            let mut writer = match open.take() {
                Some(writer) => writer,
                None => PackWriter::create(&self.packs_dir())
                    .map_err(|error| self.write_error("making a pack in", &self.packs_dir(), 0, error))?,
            };
            let lens = rest.iter().map(|(_, sealed)| sealed.len());
            let fitting = writer.fitting(lens, self.limits.pack_bytes_max);
            if fitting == 0 {
                assert!(writer.committed > 0, "a small chunk fits in an empty pack");
                // Full: dropped, so the next turn makes a new one.
                continue;
            }
            let (now, later) = rest.split_at(fitting);
            let is_new = writer.committed == 0;
            let appended = writer.append(now);
            let appended = appended.map_err(|error| {
                let bytes = now.iter().map(|(_, sealed)| sealed.len() as u64).sum();
                self.write_error("adding chunks to", &writer.path, bytes, error)
            });
            let done = appended.and_then(|offsets| {
                if is_new { sync_folder(&self.packs_dir()).map(|()| offsets) } else { Ok(offsets) }
            });
            match done {
                Ok(offsets) => {
                    places.extend(offsets.into_iter().map(|offset| Place::Pack { pack: writer.id, offset }));
                }
                Err(error) => {
                    if is_new {
                        // What stays is a pack that nobody refers to.
                        let _ = fs::remove_file(&writer.path);
                    } else if !writer.is_broken {
                        *open = Some(writer);
                    }
                    return Err(error);
                }
            }
            *open = Some(writer);
            rest = later;
        }
        Ok(places)
    }

    /// Bytes of the pack that hold whole entries: an append that is under way does not count.
    fn pack_end(&self, pack: PackId, file: &File) -> io::Result<u64> {
        let packs = self.checked_packs();
        match &*packs {
            Packs::Checked(Some(writer)) if writer.id == pack => Ok(writer.committed),
            _ => Ok(file.metadata()?.len()),
        }
    }

    fn is_open(&self, pack: PackId) -> bool {
        matches!(&*self.checked_packs(), Packs::Checked(Some(writer)) if writer.id == pack)
    }

    fn refuse_open(&self, pack: PackId) -> Result<(), StoreError> {
        if self.is_open(pack) {
            return Err(StoreError::PackOpen { pack, path: self.pack_path(pack) });
        }
        Ok(())
    }

    // Quarantine

    /// Removes the oldest damaged chunks until `more` bytes fit.
    fn trim_quarantine(&self, more: u64) -> Result<(), StoreError> {
        let mut files = Vec::new();
        each_entry(&self.dir.join("quarantine"), &mut |entry| {
            if let Ok(metadata) = entry.metadata() {
                // The inode's time: a rename sets it, so it says when the chunk came here.
                let came = (metadata.ctime(), metadata.ctime_nsec());
                files.push((came, metadata.len().max(BLOCK_BYTES), entry.path()));
            }
            Ok(())
        })?;
        files.sort();
        let mut bytes = more.max(BLOCK_BYTES) + files.iter().map(|(_, len, _)| len).sum::<u64>();
        for (_, len, path) in files {
            if bytes <= self.limits.quarantine_bytes_max {
                break;
            }
            remove_file(&path)?;
            bytes -= len;
        }
        Ok(())
    }
}

impl ChunkStore for DiskStore {
    fn stage(&self, name: ChunkName, sealed: &[u8]) -> Result<Staged, StoreError> {
        self.spend(sealed.len() as u64)?;
        self.stage_paid(name, sealed)
    }

    fn stage_urgent(&self, name: ChunkName, sealed: &[u8]) -> Result<Staged, StoreError> {
        let needed = sealed.len() as u64;
        if self.free()?.free < needed + self.reserve / 2 {
            return Err(self.full(needed));
        }
        self.stage_paid(name, sealed)
    }

    fn commit(&self, staged: Vec<Staged>) -> Result<Vec<Place>, StoreError> {
        // An open pack would take chunks also where nobody finds it any more.
        self.check_there()?;
        let epoch = staged.iter().map(|staged| staged.epoch).min().unwrap_or_default();
        let is_bulk = staged.iter().filter(|staged| staged.is_small()).count() >= PACK_BATCH_MIN;
        let mut places = vec![Place::Loose; staged.len()];
        let mut files = Vec::new();
        let mut small = Vec::new();
        let mut in_pack: Vec<(usize, usize)> = Vec::new();
        let mut seen = HashMap::new();
        for (at, staged) in staged.into_iter().enumerate() {
            match staged.body {
                Body::Memory(bytes) if is_bulk => {
                    let next = small.len();
                    let nth = *seen.entry(staged.name).or_insert(next);
                    if nth == next {
                        small.push((staged.name, bytes));
                    }
                    in_pack.push((at, nth));
                }
                Body::Memory(bytes) => files.push((staged.name, self.write_temp(&bytes)?)),
                Body::File(temp) => files.push((staged.name, temp)),
            }
        }
        self.place(files, epoch)?;
        let borrowed: Vec<_> = small.iter().map(|(name, bytes)| (*name, bytes.as_slice())).collect();
        let packed = self.append(&borrowed)?;
        for (at, nth) in in_pack {
            places[at] = packed[nth];
        }
        Ok(places)
    }

    fn read(&self, name: ChunkName, place: Place, len: u32) -> Result<Vec<u8>, StoreError> {
        let path = self.path_of(name, place);
        let fail = |error: io::Error| match error.kind() {
            io::ErrorKind::NotFound => {
                self.check_there().err().unwrap_or_else(|| StoreError::Missing { name, path: path.clone() })
            }
            _ => StoreError::io("reading", &path, error),
        };
        let file = File::open(&path).map_err(fail)?;
        let there = file.metadata().map_err(fail)?.len();
        let (offset, found) = match place {
            Place::Loose => (0, there),
            Place::Pack { offset, .. } => (offset, there.saturating_sub(offset).min(u64::from(len))),
        };
        // Before anything is allocated: `len` may be a damaged index's.
        if found != u64::from(len) {
            return Err(StoreError::WrongLength { name, path, expected: u64::from(len), found });
        }
        let mut bytes = buffers::take(len as usize);
        file.read_exact_at(&mut bytes, offset).map_err(fail)?;
        Ok(bytes)
    }

    fn contains(&self, name: ChunkName, place: Place, len: u32) -> bool {
        let path = self.path_of(name, place);
        match place {
            Place::Loose => {
                fs::metadata(path).is_ok_and(|found| found.is_file() && found.len() == u64::from(len))
            }
            Place::Pack { pack, offset } => {
                let is_whole = |file: File| {
                    let end = offset.saturating_add(u64::from(len));
                    Ok(file.metadata()?.len() >= end && pack::holds(&file, pack, offset, name, len)?)
                };
                File::open(path).and_then(is_whole).unwrap_or(false)
            }
        }
    }

    fn remove(&self, name: ChunkName, place: Place) -> Result<(), StoreError> {
        match place {
            Place::Loose => remove_file(&self.loose_path(name)),
            Place::Pack { .. } => Ok(()),
        }
    }

    fn quarantine(&self, name: ChunkName, place: Place, len: u32) -> Result<(), StoreError> {
        let _one_at_a_time = lock(&self.quarantine);
        let path = self.path_of(name, place);
        let aside = self.dir.join("quarantine").join(name.to_string());
        match place {
            Place::Loose => {
                // A good copy may have come in since the caller looked.
                let is_sound = fs::metadata(&path).is_ok_and(|found| found.len() == u64::from(len))
                    && self.get(name, place, len).is_ok();
                let Ok(found) = fs::metadata(&path) else { return Ok(()) };
                if is_sound {
                    return Ok(());
                }
                if found.len() > self.limits.quarantine_bytes_max {
                    return remove_file(&path);
                }
                self.trim_quarantine(found.len())?;
                fs::rename(&path, &aside)
                    .map_err(|error| StoreError::io("putting a damaged chunk in", &aside, error))
            }
            Place::Pack { .. } => {
                let Ok(bytes) = self.read(name, place, len) else { return Ok(()) };
                let is_wanted =
                    sha256(&bytes) != name.0 && bytes.len() as u64 <= self.limits.quarantine_bytes_max;
                if !is_wanted || self.spend(bytes.len() as u64).is_err() {
                    return Ok(());
                }
                self.trim_quarantine(bytes.len() as u64)?;
                let temp = self.write_temp(&bytes)?;
                temp.rename(&aside)
            }
        }
    }

    fn scan(&self, see: &mut See<'_>) -> Result<(), StoreError> {
        for shard in 0..=255 {
            each_entry(&self.dir.join(hex(&[shard])), &mut |entry| {
                let Some(name) = loose_name(&entry).filter(|name| name.0[0] == shard) else {
                    return Ok(());
                };
                // Gone again, or nothing of ours.
                let Ok(metadata) = entry.metadata() else { return Ok(()) };
                match u32::try_from(metadata.len()) {
                    Ok(len) if metadata.is_file() => see(Held { name, place: Place::Loose, len }),
                    _ => Ok(()),
                }
            })?;
        }
        for (pack, _) in self.list_packs()? {
            let mut is_stopped = false;
            let shown = self.scan_pack(pack, &mut |held| see(held).inspect_err(|_| is_stopped = true));
            match shown {
                Err(error) if is_stopped || error.is_temporary() => return Err(error),
                // Removed since it was listed, or unreadable: that must not hide the others.
                Err(error) => log::warn!("{error}"),
                Ok(()) => {}
            }
        }
        Ok(())
    }

    fn scan_pack(&self, pack: PackId, see: &mut See<'_>) -> Result<(), StoreError> {
        let path = self.pack_path(pack);
        let fail = |error| StoreError::io("reading", &path, error);
        let file = open_file(&path)?;
        let end = self.pack_end(pack, &file).map_err(fail)?;
        let mut walk = Walk::new(&file, pack, pack::HEAD_BYTES, end);
        while let Some(entry) = walk.next().map_err(fail)? {
            let place = Place::Pack { pack, offset: entry.offset() };
            see(Held { name: entry.name, place, len: entry.len })?;
        }
        if walk.gap_bytes > 0 {
            log::warn!(
                "{}: {} bytes belong to no chunk and were passed over",
                path.display(),
                walk.gap_bytes
            );
        }
        Ok(())
    }

    fn packs(&self) -> Result<Vec<PackInfo>, StoreError> {
        let open = match &*self.checked_packs() {
            Packs::Checked(Some(writer)) => Some((writer.id, writer.committed)),
            _ => None,
        };
        let info = |(id, bytes)| match open {
            Some((open, committed)) if open == id => PackInfo { id, bytes: committed, is_open: true },
            _ => PackInfo { id, bytes, is_open: false },
        };
        Ok(self.list_packs()?.into_iter().map(info).collect())
    }

    fn retire_pack(&self, pack: PackId) -> Result<(), StoreError> {
        let mut packs = self.checked_packs();
        if matches!(&*packs, Packs::Checked(Some(writer)) if writer.id == pack) {
            *packs = Packs::Checked(None);
        }
        Ok(())
    }

    fn rewrite(&self, live: &mut dyn Iterator<Item = Held>) -> Result<Rewritten, StoreError> {
        self.check_there()?;
        let mut done = Rewritten::default();
        let copies = gather(self, live, &mut done, &|pack| self.refuse_open(pack))?;
        let bytes: u64 = copies.iter().map(|(held, _)| u64::from(held.len)).sum();
        // Half of the reserve may be borrowed: only copying live chunks frees what the dead ones take.
        if bytes > 0 && space(&self.dir)?.1 < bytes + self.reserve / 2 {
            return Err(self.full(bytes));
        }
        let chunks: Vec<_> = copies.iter().map(|(held, sealed)| (held.name, sealed.as_slice())).collect();
        let places = self.append(&chunks)?;
        done.moved = copies.iter().zip(places).map(|((held, _), to)| held.moved_to(to)).collect();
        Ok(done)
    }

    fn remove_pack(&self, pack: PackId) -> Result<(), StoreError> {
        self.refuse_open(pack)?;
        remove_file(&self.pack_path(pack))
    }

    fn free(&self) -> Result<FreeSpace, StoreError> {
        self.check_there()?;
        let (total, free) = space(&self.dir)?;
        Ok(FreeSpace { total, free, reserve: self.reserve })
    }

    fn path_of(&self, name: ChunkName, place: Place) -> PathBuf {
        match place {
            Place::Loose => self.loose_path(name),
            Place::Pack { pack, .. } => self.pack_path(pack),
        }
    }
}

/// Where packs lie in the folder of a store.
pub(super) fn packs_of(dir: &Path) -> PathBuf {
    dir.join("packs")
}

/// Whether a store was ever made in `dir`: a folder where no disk is mounted is empty, or not there.
pub fn is_made(dir: &Path) -> bool {
    packs_of(dir).is_dir() || (0..=255u8).any(|shard| dir.join(hex(&[shard])).is_dir())
}

fn identity(found: &fs::Metadata) -> (u64, u64) {
    (found.dev(), found.ino())
}

/// A lock whatever became of its last holder: all that is guarded here is whole between statements.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn open_file(path: &Path) -> Result<File, StoreError> {
    File::open(path).map_err(|error| StoreError::io("opening", path, error))
}

fn sync_folder(path: &Path) -> Result<(), StoreError> {
    let synced = File::open(path).and_then(|folder| folder.sync_all());
    synced.map_err(|error| StoreError::io("syncing", path, error))
}

/// The folders of a store, durable: later only what is in them needs a sync.
fn create_folders(dir: &Path) -> Result<(), StoreError> {
    let create = |path: &Path| {
        let created = DirBuilder::new().mode(0o700).create(path);
        created.map_err(|error| StoreError::io("making the folder", path, error))
    };
    if !dir.is_dir() {
        create(dir)?;
        let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty());
        sync_folder(parent.unwrap_or(Path::new(".")))?;
    }
    let shards = (0..=255u8).map(|shard| hex(&[shard]));
    let others = ["packs", "quarantine", "tmp"].map(String::from);
    let mut missing = order::set(shards.chain(others));
    each_entry(dir, &mut |entry| {
        entry.file_name().to_str().map(|name| missing.remove(name));
        Ok(())
    })?;
    for name in &missing {
        create(&dir.join(name))?;
    }
    if missing.is_empty() { Ok(()) } else { sync_folder(dir) }
}

/// Shows what a folder holds, one entry at a time.
fn each_entry(dir: &Path, see: &mut dyn FnMut(DirEntry) -> Result<(), StoreError>) -> Result<(), StoreError> {
    let fail = |error| StoreError::io("listing", dir, error);
    for entry in fs::read_dir(dir).map_err(fail)? {
        see(entry.map_err(fail)?)?;
    }
    Ok(())
}

fn remove_files(dir: &Path) -> Result<(), StoreError> {
    each_entry(dir, &mut |entry| {
        let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if is_folder { Ok(()) } else { remove_file(&entry.path()) }
    })
}

/// Deletes a file, even on a full disk; an absent one is fine.
fn remove_file(path: &Path) -> Result<(), StoreError> {
    let mut removed = fs::remove_file(path);
    let is_full =
        |error: &io::Error| matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
    if removed.as_ref().is_err_and(is_full) {
        // Copy-on-write file systems need room to forget a name; giving the bytes back first makes some.
        let emptied = OpenOptions::new().write(true).truncate(true).open(path);
        removed = emptied.and_then(|_| fs::remove_file(path));
    }
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(StoreError::io("removing", path, error)),
        _ => Ok(()),
    }
}

fn loose_name(entry: &DirEntry) -> Option<ChunkName> {
    let file_name = entry.file_name();
    let text = file_name.to_str()?;
    let name: ChunkName = text.parse().ok()?;
    (name.to_string() == text).then_some(name)
}

/// Size of the file system and what may still be written to it, in bytes.
fn space(dir: &Path) -> Result<(u64, u64), StoreError> {
    let found =
        rustix::fs::statvfs(dir).map_err(|error| StoreError::io("asking for free space in", dir, error))?;
    Ok((found.f_blocks.saturating_mul(found.f_frsize), found.f_bavail.saturating_mul(found.f_frsize)))
}

/// Looks at the end of a pack, cuts off what an interrupted append left there, and opens it if it may grow.
fn check_pack(id: PackId, path: &Path) -> io::Result<Option<PackWriter>> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    let len = file.metadata()?.len();
    let tail = pack::check_tail(&file, id, len)?;
    if tail.keep == 0 {
        fs::remove_file(path)?;
        return Ok(None);
    }
    if tail.keep < len {
        log::info!("{}: cut {} bytes of an interrupted append", path.display(), len - tail.keep);
        file.set_len(tail.keep)?;
    }
    Ok(tail.is_sound.then(|| PackWriter::resume(id, path.to_path_buf(), file, tail.keep)))
}

/// Lets the disk start on a file while the next chunk is sealed.
fn start_writeback(file: &File) {
    // SAFETY: takes no pointers, and the descriptor is open as long as `file` is borrowed.
    // Failure means only that the disk starts later.
    unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, libc::SYNC_FILE_RANGE_WRITE) };
}

/// Before Linux 5.8, `syncfs` hid write errors.
fn sync_all_reports_errors() -> bool {
    let system = rustix::system::uname();
    let release = system.release().to_string_lossy();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|part| part.parse::<u32>().ok());
    (numbers.next(), numbers.next()) >= (Some(5), Some(8))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::process::Command;

    use super::super::promises::{chunk, keep, keeps_its_promises, scanned, small_chunks};
    use super::*;
    use crate::keys::random;

    /// A folder of its own, gone when dropped.
    struct Folder(PathBuf);

    impl Folder {
        fn new() -> Self {
            let path = std::env::temp_dir().join(format!("grove-store-{}", hex(&random::<8>())));
            fs::create_dir(&path).unwrap();
            Self(path)
        }

        fn chunks(&self) -> PathBuf {
            self.0.join("chunks")
        }

        fn open(&self) -> DiskStore {
            DiskStore::open(&self.chunks(), roomy()).unwrap()
        }

        /// All files below a folder of the store.
        fn files(&self, below: &str) -> Vec<PathBuf> {
            let found = fs::read_dir(self.chunks().join(below)).unwrap();
            found.map(|entry| entry.unwrap().path()).filter(|path| path.is_file()).collect()
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn roomy() -> StoreLimits {
        StoreLimits { reserve_percent: 0, reserve_bytes_min: 0, ..StoreLimits::default() }
    }

    fn flip_byte(path: &Path, at: u64) {
        let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 1], at).unwrap();
    }

    fn offset_of(held: &Held) -> u64 {
        match held.place {
            Place::Pack { offset, .. } => offset,
            Place::Loose => 0,
        }
    }

    fn count_sound(store: &DiskStore, held: &[Held]) -> usize {
        held.iter().filter(|held| store.get(held.name, held.place, held.len).is_ok()).count()
    }

    #[test]
    fn disk_keeps_the_promises_of_a_store() {
        let folder = Folder::new();
        keeps_its_promises(&folder.open());
        // Packs that fill up make no difference.
        let folder = Folder::new();
        let limits = StoreLimits { pack_bytes_max: 0, ..roomy() };
        let store = DiskStore::open(&folder.chunks(), limits).unwrap();
        let held = keep(&store, &(0..40).map(|i| chunk(i, 50_000)).collect::<Vec<_>>()).unwrap();
        assert_eq!(count_sound(&store, &held), 40);
        let packs = store.packs().unwrap();
        assert_eq!(packs.len(), 8);
        assert!(packs.iter().all(|pack| pack.bytes <= 256 << 10));
        assert_eq!(packs.iter().filter(|pack| pack.is_open).count(), 1);
    }

    #[test]
    fn sync_of_each_file_keeps_the_same() {
        let folder = Folder::new();
        let mut store = folder.open();
        store.can_sync_all = false;
        let held = keep(&store, &(0..6).map(|i| chunk(i, 200_000)).collect::<Vec<_>>()).unwrap();
        assert_eq!(count_sound(&store, &held), 6);
    }

    #[test]
    fn failed_sync_of_another_commit_fails_this_one() {
        let folder = Folder::new();
        let store = folder.open();
        let stage = |i| {
            let (name, bytes) = chunk(i, 200_000);
            store.stage(name, &bytes).unwrap()
        };
        let staged: Vec<_> = (0..4).map(stage).collect();
        store.sync_failures.fetch_add(1, Ordering::SeqCst);
        assert!(store.commit(staged).is_err());
        store.commit((0..4).map(stage).collect()).unwrap();
    }

    #[test]
    fn scan_finds_everything_after_a_reopen_and_the_pack_grows_on() {
        let folder = Folder::new();
        let mut held = Vec::new();
        for run in 0..3 {
            let store = folder.open();
            held.extend(keep(&store, &small_chunks(run * 100, 50)).unwrap());
            held.extend(keep(&store, &[chunk(run + 1000, 200_000), chunk(run + 2000, 9)]).unwrap());
        }
        let store = folder.open();
        let mut all = scanned(&store);
        let key = |held: &Held| (held.name, offset_of(held));
        all.sort_by_key(key);
        held.sort_by_key(key);
        assert_eq!(all, held);
        assert_eq!(store.packs().unwrap().len(), 1);
        assert_eq!(count_sound(&store, &held), held.len());
    }

    /// Two appends, then the file cut at every length: the first is whole, of the second all that is complete
    /// is found, and the pack grows on from there.
    #[test]
    fn pack_cut_at_any_byte_gives_all_complete_entries() {
        let folder = Folder::new();
        let held = {
            let store = folder.open();
            let tiny = |seed: u64| (0..32).map(|i| chunk(seed + i, 4 + i as usize % 5)).collect::<Vec<_>>();
            let mut held = keep(&store, &tiny(1)).unwrap();
            held.extend(keep(&store, &tiny(101)).unwrap());
            held
        };
        let path = folder.files("packs").remove(0);
        let whole = fs::read(&path).unwrap();
        let more: Vec<_> = (0..32).map(|i| chunk(200 + i, 20)).collect();
        for cut in 0..whole.len() {
            for path in folder.files("packs") {
                fs::remove_file(path).unwrap();
            }
            fs::write(&path, &whole[..cut]).unwrap();
            let complete: Vec<Held> = held
                .iter()
                .filter(|held| offset_of(held) + u64::from(held.len) <= cut as u64)
                .copied()
                .collect();
            let store = folder.open();
            let mut found = Vec::new();
            for pack in store.packs().unwrap() {
                let see = &mut |held| {
                    found.push(held);
                    Ok(())
                };
                store.scan_pack(pack.id, see).unwrap();
            }
            assert_eq!(found, complete, "cut at {cut}");
            assert_eq!(count_sound(&store, &complete), complete.len());
            // Appends are the slow part, so not after every cut.
            if cut % 97 == 0 {
                let added = keep(&store, &more).unwrap();
                drop(store);
                let store = folder.open();
                assert_eq!(scanned(&store), [complete, added].concat(), "cut at {cut}");
                assert_eq!(store.packs().unwrap().len(), 1);
            }
        }
    }

    #[test]
    fn torn_append_is_cut_off_though_its_heads_are_whole() {
        let folder = Folder::new();
        let (first, second) = {
            let store = folder.open();
            (keep(&store, &small_chunks(0, 40)).unwrap(), keep(&store, &small_chunks(100, 40)).unwrap())
        };
        let path = folder.files("packs").remove(0);
        // As after a power cut: the file has its length, but some pages were never written.
        for held in &second[20..] {
            flip_byte(&path, offset_of(held));
        }
        let store = folder.open();
        assert_eq!(scanned(&store), [&first[..], &second[..20]].concat());
        let last = second[19];
        assert_eq!(fs::metadata(&path).unwrap().len(), offset_of(&last) + u64::from(last.len));
        let third = keep(&store, &small_chunks(200, 40)).unwrap();
        assert_eq!(store.packs().unwrap().len(), 1);
        assert_eq!(count_sound(&store, &third), 40);
    }

    #[test]
    fn damage_in_a_pack_costs_one_entry_and_nothing_is_added_or_cut() {
        let folder = Folder::new();
        let held = keep(&folder.open(), &small_chunks(0, 40)).unwrap();
        let path = folder.files("packs").remove(0);
        let len = fs::metadata(&path).unwrap().len();
        for at in [offset_of(&held[5]) - 48, offset_of(&held[9]) - 20, offset_of(&held[12]) - 1] {
            flip_byte(&path, at);
        }
        flip_byte(&path, offset_of(&held[20]));
        let store = folder.open();
        let found = scanned(&store);
        assert_eq!(found.len(), 37);
        assert_eq!(count_sound(&store, &found), 36);
        assert_eq!(fs::metadata(&path).unwrap().len(), len);
        keep(&store, &small_chunks(100, 40)).unwrap();
        assert_eq!(store.packs().unwrap().len(), 2);
        assert_eq!(fs::metadata(&path).unwrap().len(), len);

        // Not even the head is needed to find the rest.
        flip_byte(&path, 3);
        assert_eq!(scanned(&folder.open()).len(), 77);
    }

    #[test]
    fn chunk_that_looks_like_a_pack_is_not_taken_for_entries() {
        let folder = Folder::new();
        let store = folder.open();
        let held = keep(&store, &small_chunks(0, 40)).unwrap();
        let copy = fs::read(folder.files("packs").remove(0)).unwrap();
        let mut chunks = small_chunks(100, 40);
        chunks[3] = (ChunkName(sha256(&copy)), copy);
        let outer = keep(&store, &chunks).unwrap();
        drop(store);
        flip_byte(&folder.files("packs").remove(0), offset_of(&outer[3]) - 1);
        assert_eq!(scanned(&folder.open()).len(), held.len() + outer.len() - 1);
    }

    #[test]
    fn garbage_in_the_folders_is_left_alone_and_not_shown() {
        let folder = Folder::new();
        let held = keep(&folder.open(), &[chunk(1, 50)]).unwrap()[0];
        let dir = folder.chunks();
        fs::write(dir.join("00/notes.txt"), "x").unwrap();
        fs::write(dir.join("00").join("F".repeat(64)), "x").unwrap();
        fs::write(dir.join("00").join("01".repeat(32)), "of another folder").unwrap();
        fs::write(dir.join("packs/0000000000000001.pack"), vec![b'g'; 5000]).unwrap();
        fs::write(dir.join("packs/readme"), "x").unwrap();
        fs::create_dir(dir.join("tmp/folder")).unwrap();
        let store = folder.open();
        assert_eq!(scanned(&store), [held]);
        assert_eq!(store.packs().unwrap().len(), 1);
        assert_eq!(fs::metadata(dir.join("packs/0000000000000001.pack")).unwrap().len(), 5000);
    }

    #[test]
    fn leftovers_are_removed_and_dropped_chunks_leave_none() {
        let folder = Folder::new();
        let store = folder.open();
        let (name, bytes) = chunk(1, 200_000);
        let staged = store.stage(name, &bytes).unwrap();
        assert_eq!(folder.files("tmp").len(), 1);
        drop(staged);
        assert_eq!(folder.files("tmp").len(), 0);
        // A stopped process drops nothing.
        std::mem::forget(store.stage(name, &bytes).unwrap());
        drop(store);
        folder.open();
        assert_eq!(folder.files("tmp").len(), 0);
    }

    #[test]
    fn files_and_folders_are_private() {
        let folder = Folder::new();
        keep(&folder.open(), &small_chunks(0, 40)).unwrap();
        let held = keep(&folder.open(), &[chunk(1, 200_000)]).unwrap()[0];
        let mode = |path: PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        for name in ["", "00", "ff", "packs", "quarantine", "tmp"] {
            assert_eq!(mode(folder.chunks().join(name)), 0o700);
        }
        assert_eq!(mode(folder.open().path_of(held.name, held.place)), 0o600);
        assert_eq!(mode(folder.files("packs").remove(0)), 0o600);
    }

    #[test]
    fn flipped_byte_is_corrupt_and_goes_to_quarantine() {
        let folder = Folder::new();
        let store = folder.open();
        let loose = keep(&store, &[chunk(1, 200_000)]).unwrap()[0];
        let packed = keep(&store, &small_chunks(2, 40)).unwrap()[7];
        for held in [loose, packed] {
            flip_byte(&store.path_of(held.name, held.place), offset_of(&held) + 3);
            let error = store.get(held.name, held.place, held.len).unwrap_err();
            assert!(matches!(error, StoreError::Corrupt { .. }));
            store.quarantine(held.name, held.place, held.len).unwrap();
            let aside = folder.chunks().join("quarantine").join(held.name.to_string());
            assert_eq!(fs::metadata(aside).unwrap().len(), u64::from(held.len));
        }
        assert!(!store.contains(loose.name, loose.place, loose.len));
        assert!(store.contains(packed.name, packed.place, packed.len));
    }

    #[test]
    fn quarantine_keeps_the_newest() {
        let folder = Folder::new();
        let limits = StoreLimits { quarantine_bytes_max: 500_000, ..roomy() };
        let store = DiskStore::open(&folder.chunks(), limits).unwrap();
        let chunks: Vec<_> = (0..5).map(|i| chunk(i, 200_000)).collect();
        for held in keep(&store, &chunks).unwrap() {
            flip_byte(&store.path_of(held.name, held.place), 0);
            store.quarantine(held.name, held.place, held.len).unwrap();
            // The clock of a file system ticks every few milliseconds.
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        let mut kept: Vec<_> = folder.files("quarantine");
        kept.sort();
        let quarantine = folder.chunks().join("quarantine");
        let mut newest = [3, 4].map(|i: usize| quarantine.join(chunks[i].0.to_string()));
        newest.sort();
        assert_eq!(kept, newest);
        let big = keep(&store, &[chunk(9, 600_000)]).unwrap()[0];
        flip_byte(&store.path_of(big.name, big.place), 0);
        store.quarantine(big.name, big.place, big.len).unwrap();
        assert_eq!(folder.files("quarantine").len(), 2);
    }

    #[test]
    fn a_folder_that_is_away_loses_nothing_and_takes_nothing() {
        let folder = Folder::new();
        assert!(!is_made(&folder.chunks()));
        let store = folder.open();
        assert!(is_made(&folder.chunks()));
        let large = keep(&store, &[chunk(1, 200_000)]).unwrap()[0];
        let packed = keep(&store, &small_chunks(100, 40)).unwrap();
        assert!(
            matches!(packed[0].place, Place::Pack { .. }),
            "many small ones share a pack, which stays open"
        );
        let elsewhere = folder.0.join("elsewhere");
        fs::rename(folder.chunks(), &elsewhere).unwrap();
        let is_away = |error: StoreError| {
            let away = matches!(error, StoreError::Away { .. });
            away && error.is_temporary() && !error.is_loss()
        };
        for replaced in [false, true] {
            if replaced {
                // As where a mount point shows, or somebody made the folder anew.
                fs::create_dir(folder.chunks()).unwrap();
            }
            assert!(!is_made(&folder.chunks()));
            assert!(is_away(store.free().unwrap_err()));
            for held in [large, packed[0]] {
                assert!(is_away(store.get(held.name, held.place, held.len).unwrap_err()));
            }
            let (name, bytes) = chunk(2, 200_000);
            assert!(is_away(store.stage(name, &bytes).unwrap_err()));
            assert!(
                is_away(keep(&store, &small_chunks(200, 40)).unwrap_err()),
                "not even into the open pack"
            );
        }
        fs::remove_dir(folder.chunks()).unwrap();
        fs::rename(elsewhere, folder.chunks()).unwrap();
        store.free().unwrap();
        for held in [large, packed[0]] {
            store.get(held.name, held.place, held.len).unwrap();
        }
        keep(&store, &small_chunks(200, 40)).unwrap();
    }

    #[test]
    fn reserve_is_never_used_and_deleting_works() {
        let folder = Folder::new();
        let held = keep(&folder.open(), &[chunk(1, 50)]).unwrap()[0];
        let limits = StoreLimits { reserve_percent: 100, ..roomy() };
        let store = DiskStore::open(&folder.chunks(), limits).unwrap();
        let space = store.free().unwrap();
        assert_eq!(space.reserve, space.total);
        for len in [10, 200_000] {
            let (name, bytes) = chunk(2, len);
            let error = store.stage(name, &bytes).unwrap_err();
            assert!(error.is_temporary());
            assert!(matches!(error, StoreError::Full { needed, .. } if needed == len as u64));
        }
        assert_eq!(folder.files("tmp").len(), 0);
        store.get(held.name, held.place, held.len).unwrap();
        store.remove(held.name, held.place).unwrap();
    }

    /// A small file system in memory, gone when dropped.
    struct SmallDisk(PathBuf);

    impl SmallDisk {
        fn mount(on: &Path) -> Option<Self> {
            let mount =
                Command::new("mount").args(["-t", "tmpfs", "-o", "size=3m", "tmpfs"]).arg(on).output();
            mount.is_ok_and(|done| done.status.success()).then(|| Self(on.to_path_buf()))
        }
    }

    impl Drop for SmallDisk {
        fn drop(&mut self) {
            let _ = Command::new("umount").arg(&self.0).status();
        }
    }

    #[test]
    fn full_disk_refuses_cleanly_and_takes_again_after_a_removal() {
        let folder = Folder::new();
        let Some(_disk) = SmallDisk::mount(&folder.0) else {
            println!(
                "skipped full_disk_refuses_cleanly_and_takes_again_after_a_removal: it has to mount a tmpfs"
            );
            return;
        };
        let store = folder.open();
        let big = keep(&store, &[chunk(1, 1_000_000)]).unwrap()[0];
        let packed = keep(&store, &small_chunks(100, 40)).unwrap();
        // Staged while there is room, written when there is none any more.
        let stage = |(name, bytes): (ChunkName, Vec<u8>)| store.stage(name, &bytes).unwrap();
        let small: Vec<_> = (0..40).map(|i| stage(chunk(200 + i, 30_000))).collect();
        let filler = folder.0.join("filler");
        let _ = fs::write(&filler, vec![1; 4 << 20]);
        let pack = folder.files("packs").remove(0);
        let before = fs::metadata(&pack).unwrap().len();
        let error = store.commit(small).unwrap_err();
        assert!(matches!(error, StoreError::Full { .. }), "{error}");
        assert_eq!(fs::metadata(&pack).unwrap().len(), before);

        let (name, bytes) = chunk(2, 500_000);
        *lock(&store.allowance) = u64::MAX;
        assert!(matches!(store.stage(name, &bytes), Err(StoreError::Full { .. })));
        assert_eq!(folder.files("tmp").len(), 0);
        *lock(&store.allowance) = 0;
        assert!(matches!(store.stage(name, &bytes), Err(StoreError::Full { .. })));

        assert_eq!(count_sound(&store, &packed), 40);
        store.remove(big.name, big.place).unwrap();
        let more = keep(&store, &small_chunks(300, 40)).unwrap();
        assert_eq!(store.packs().unwrap().len(), 1);
        drop(store);
        let store = folder.open();
        assert_eq!(scanned(&store), [packed, more].concat());
    }

    /// Prints speeds: `cargo test --release --lib store::disk -- --ignored --nocapture`.
    #[test]
    #[ignore = "measures"]
    fn speed() {
        let folder = Folder::new();
        let store = folder.open();
        let (name, bytes) = chunk(1, 10_000);
        let start = std::time::Instant::now();
        for batch in 0..25u8 {
            let staged = (0..800u16).map(|i| {
                let mut name = name;
                name.0[..3].copy_from_slice(&[batch, i.to_le_bytes()[0], i.to_le_bytes()[1]]);
                store.stage(name, &bytes).unwrap()
            });
            store.commit(staged.collect()).unwrap();
        }
        println!("20,000 chunks of 10 KB: {:?}", start.elapsed());
        let start = std::time::Instant::now();
        println!("scan of {}: {:?}", scanned(&store).len(), start.elapsed());
        drop(store);
        let start = std::time::Instant::now();
        let store = folder.open();
        println!("open: {:?}", start.elapsed());
        let start = std::time::Instant::now();
        store.packs().unwrap();
        println!("check of tails: {:?}", start.elapsed());
        let (mut name, bytes) = chunk(2, 4 << 20);
        let start = std::time::Instant::now();
        for batch in 0..16u8 {
            let staged = (0..16u8).map(|i| {
                name.0[..2].copy_from_slice(&[batch, i]);
                store.stage(name, &bytes).unwrap()
            });
            store.commit(staged.collect()).unwrap();
        }
        println!("256 chunks of 4 MiB: {:?}", start.elapsed());
    }
}

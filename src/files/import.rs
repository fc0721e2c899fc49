//! From a file that is new or changed to sealed chunks, a signed manifest and a record, whole or not at all.
//!
//! Jobs on the pool read and seal, each under a permit that bounds the buffers; one commit at a time makes the chunks of
//! many files durable together and then writes their rows in one transaction. A file is read once. One that changes while
//! it is read is read again, and after a few tries left for when it is quiet.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use futures_util::stream::{FuturesOrdered, StreamExt};
use smol::lock::Semaphore;

use super::unix::{Stat, stat_open};
use super::version::{self, Content, Known, NewVersion};
use super::walk::{Candidate, Problem};
use crate::buffers;
use crate::config::{
    CLOCK_TICK_MS, COMMIT_BYTES, JOB_BYTES, READ_TRIES, SMALL_FILE_BYTES, VERSION_FREE_S, VERSION_SPACING_S,
};
use crate::copies;
use crate::id::ChunkName;
use crate::keys::Secret;
use crate::manifest::{
    ENTRIES_INLINE_MAX, ENTRIES_PER_LIST, Entry, Kind, Manifest, TARGET_BYTES_MAX, read_list, write_list,
};
use crate::placement::{ChunkId, ChunkRow, DbError, NodeId, NodeState, Own};
use crate::pool;
use crate::seal::{CHUNK_BYTES, ENCODING_RAW, SealedChunk, TAG_BYTES, padded_len, seal_each, seal_with};
use crate::store::Staged;
use crate::vault::{LargeImport, Vault, VaultError};

/// A chunk that a file needs: new bytes, or one that should be here already.
#[derive(Debug)]
struct Part {
    name: ChunkName,
    own: Own,
    staged: Option<Staged>,
}

/// A file read and sealed, to be committed.
#[derive(Debug)]
pub struct Prepared {
    candidate: Candidate,
    known: Known,
    new: NewVersion,
    parts: Vec<Part>,
    /// Stat after reading.
    stat: Stat,
    /// Of a large file: its chunks are here, and no version names them yet.
    reading: Option<LargeImport>,
}

impl Prepared {
    /// Bytes of chunks that wait for a commit: in memory, and in all.
    pub fn waiting(&self) -> (usize, usize) {
        self.parts.iter().filter_map(|part| part.staged.as_ref()).fold((0, 0), |(small, all), staged| {
            let len = staged.sealed_len() as usize;
            (small + if len < crate::store::SMALL_BYTES { len } else { 0 }, all + len)
        })
    }
}

/// What became of a candidate.
#[derive(Debug)]
pub enum Outcome {
    /// Ready to be committed.
    Ready(Box<Prepared>),
    /// As it was but for what the file system says of it.
    SameContent(Box<Candidate>, Box<Stat>),
    /// It is not there any more.
    Gone,
    /// It is being written, or its last version is too young: look again after so many ms.
    Later(Box<Candidate>, u64),
    /// It cannot be kept; said by name, and the rest goes on.
    Problem(Problem),
}

fn problem(candidate: &Candidate, why: &io::Error) -> Outcome {
    let why = match why.kind() {
        io::ErrorKind::PermissionDenied => {
            "not readable by this cell; give it permission, or name it in .groveignore".into()
        }
        _ => why.to_string(),
    };
    Outcome::Problem(Problem { path: candidate.show(), why })
}

/// Whether a version now would come too soon after the last; ms to wait. Within the first hour every version is kept.
pub fn spacing_ms(first_at: u64, last_at: u64, now: u64) -> Option<u64> {
    let is_young = now.saturating_sub(first_at) <= VERSION_FREE_S;
    let next = last_at + VERSION_SPACING_S;
    (!is_young && now < next).then(|| (next - now) * 1000)
}

/// A file is settled when its last change is older than a tick of the file system's clock: a write within the tick would
/// change the bytes and not the time. A change from the future is settled too, or a wrong clock would keep it out for ever.
fn is_settled(stat: &Stat, wall_ns: i128) -> bool {
    let age = wall_ns - i128::from(stat.ctime);
    !(0..i128::from(CLOCK_TICK_MS) * 1_000_000).contains(&age)
}

fn wall_ns() -> i128 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
    i128::from(now.tv_sec) * 1_000_000_000 + i128::from(now.tv_nsec)
}

/// Reads and seals small files, links and files that only moved. One pool job.
pub fn prepare_small(
    vault: &Vault,
    candidates: Vec<Candidate>,
    force: bool,
) -> Vec<Result<Outcome, VaultError>> {
    let mut buffer = Vec::new();
    candidates.into_iter().map(|candidate| prepare_one(vault, candidate, force, &mut buffer)).collect()
}

/// Candidates for `prepare_small`, in jobs of some 1 MiB (`JOB_BYTES`): what one job seals lies in memory until all of it
/// is done.
pub fn into_jobs(candidates: Vec<Candidate>) -> Vec<Vec<Candidate>> {
    let mut jobs: Vec<Vec<Candidate>> = Vec::new();
    let mut bytes = JOB_BYTES;
    for candidate in candidates {
        if bytes >= JOB_BYTES {
            jobs.push(Vec::new());
            bytes = 0;
        }
        bytes += candidate.cost();
        jobs.last_mut().expect("pushed above").push(candidate);
    }
    jobs
}

/// Whether a candidate can go into `prepare_small`.
pub fn is_small(candidate: &Candidate) -> bool {
    candidate.stat.kind != Some(Kind::File)
        || candidate.stat.size <= SMALL_FILE_BYTES
        || candidate.is_only_moved()
}

fn too_soon(vault: &Vault, candidate: &Candidate, force: bool) -> Option<u64> {
    let node = candidate.node.as_ref()?;
    if force || node.state != NodeState::Present || candidate.is_only_moved() {
        return None;
    }
    spacing_ms(node.first_at, node.last_at, vault.now())
}

fn prepare_one(
    vault: &Vault,
    mut candidate: Candidate,
    force: bool,
    buffer: &mut Vec<u8>,
) -> Result<Outcome, VaultError> {
    if let Some(ms) = too_soon(vault, &candidate, force) {
        return Ok(Outcome::Later(Box::new(candidate), ms));
    }
    let known = match &candidate.node {
        Some(node) => vault.db.read(|t| Known::load(vault, t, Some(node.clone())))?,
        None => Known::default(),
    };
    if candidate.is_only_moved() {
        // A chunk that was lost is made again from a small file; of a large one `grove verify` has that done.
        let chunk = known.manifest.iter().flat_map(Manifest::chunks).next();
        let is_lost = chunk.map_or(Ok(false), |name| is_kept(vault, &name).map(|is_kept| !is_kept))?;
        if !is_lost || candidate.stat.size > SMALL_FILE_BYTES {
            return prepare_moved(vault, candidate, known);
        }
    }
    if candidate.stat.kind == Some(Kind::Symlink) {
        return match candidate.at.folder.read_link(&candidate.name) {
            Ok(target) if target.len() <= TARGET_BYTES_MAX => {
                let size = target.len() as u64;
                finish(vault, candidate, known, Content { target, size, ..Content::default() }, vec![], None)
            }
            Ok(_) => Ok(problem(&candidate, &io::Error::other("the link's target is too long"))),
            Err(why) if why.kind() == io::ErrorKind::NotFound => Ok(Outcome::Gone),
            Err(why) => Ok(problem(&candidate, &why)),
        };
    }
    for _ in 0..READ_TRIES {
        let file = match open(&mut candidate) {
            Ok(file) => file,
            Err(outcome) => return Ok(*outcome),
        };
        if candidate.stat.size > SMALL_FILE_BYTES {
            // It grew since it was found: the next look takes it as a large file.
            return Ok(Outcome::Later(Box::new(candidate), 0));
        }
        let settled = is_settled(&candidate.stat, wall_ns());
        let size = candidate.stat.size as usize;
        buffer.clear();
        buffer.resize(size, 0);
        if let Err(why) = read_exactly(&file, buffer, 0) {
            if why.kind() == io::ErrorKind::UnexpectedEof {
                continue;
            }
            return Ok(problem(&candidate, &why));
        }
        let after = stat_open(&file).map_err(VaultError::io("cannot look at a file"))?;
        if !after.is_same_content(&candidate.stat) {
            continue;
        }
        if !settled {
            return Ok(Outcome::Later(Box::new(candidate), CLOCK_TICK_MS));
        }
        let (mut entries, mut parts) = (Vec::new(), Vec::new());
        if size > 0 {
            let mut padded = Vec::with_capacity(padded_len(size) + TAG_BYTES);
            padded.extend_from_slice(buffer);
            padded.resize(padded_len(size), 0);
            let key = vault.sealer_of(known.epoch(vault)).chunk_key(ENCODING_RAW, &padded);
            let old = match known.manifest.as_ref().and_then(|manifest| manifest.entries.first()) {
                Some(Entry::Chunk { key: old, name, .. }) if *old == key && is_kept(vault, name)? => {
                    Some(*name)
                }
                _ => None,
            };
            let (name, staged) = match old {
                Some(name) => (name, None),
                None => {
                    let chunk = seal_with(key.clone(), padded);
                    (chunk.name, Some(vault.store.stage(chunk.name, &chunk.bytes)?))
                }
            };
            entries.push(Entry::Chunk { name, key, encoding: ENCODING_RAW, len: size as u32 });
            parts.push(Part { name, own: Own::Data, staged });
        }
        let content = Content { entries, target: vec![], size: size as u64, epoch: known.epoch(vault) };
        return finish(vault, candidate, known, content, parts, Some(after));
    }
    Ok(Outcome::Later(Box::new(candidate), vault.config.settle_open_ms))
}

/// Opens a candidate and takes what the file system says of the open file.
fn open(candidate: &mut Candidate) -> Result<File, Box<Outcome>> {
    let opened =
        candidate.at.folder.open_file(&candidate.name).and_then(|file| Ok((stat_open(&file)?, file)));
    match opened {
        Ok((stat, file)) if stat.kind == Some(Kind::File) => {
            candidate.stat = stat;
            Ok(file)
        }
        // Replaced by something else: the watch or the next scan sees what.
        Ok(_) => Err(Box::new(Outcome::Gone)),
        Err(why) if why.kind() == io::ErrorKind::NotFound => Err(Box::new(Outcome::Gone)),
        Err(why) if why.raw_os_error() == Some(libc::ELOOP) => Err(Box::new(Outcome::Gone)),
        Err(why) => Err(Box::new(problem(candidate, &why))),
    }
}

fn read_exactly(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<()> {
    file.read_exact_at(buffer, offset)
}

/// A rename: the same chunks under another name.
fn prepare_moved(vault: &Vault, candidate: Candidate, known: Known) -> Result<Outcome, VaultError> {
    let Some(manifest) = &known.manifest else { return Ok(Outcome::Later(Box::new(candidate), 0)) };
    let content = Content {
        entries: manifest.entries.clone(),
        target: manifest.target.clone(),
        size: manifest.size,
        epoch: manifest.epoch,
    };
    let parts = content.entries.iter().filter_map(part_of).collect();
    finish(vault, candidate, known, content, parts, None)
}

fn part_of(entry: &Entry) -> Option<Part> {
    let own = if matches!(entry, Entry::List { .. }) { Own::List } else { Own::Data };
    Some(Part { name: entry.chunk()?, own, staged: None })
}

/// Signs the version, unless nothing but inode and the like is new.
fn finish(
    vault: &Vault,
    candidate: Candidate,
    known: Known,
    content: Content,
    parts: Vec<Part>,
    after: Option<Stat>,
) -> Result<Outcome, VaultError> {
    let stat = after.unwrap_or_else(|| candidate.stat.clone());
    let kind = stat.kind.expect("candidates are files and links");
    if let (Some(node), Some(manifest)) = (&known.node, &known.manifest) {
        let same = manifest.entries == content.entries
            && manifest.target == content.target
            && manifest.mtime == stat.mtime
            && (manifest.mode == stat.mode || kind == Kind::Symlink)
            && manifest.link_group.is_some() == (kind == Kind::File && stat.links > 1)
            && node.parent == candidate.at.node
            && node.name == candidate.name
            && node.kind == kind
            // Of what was lost and is sealed anew a version is recorded: that is what makes it durable.
            && parts.iter().all(|part| part.staged.is_none());
        if same {
            return Ok(Outcome::SameContent(Box::new(candidate), Box::new(stat)));
        }
    }
    let parent = candidate.at.file;
    let new = NewVersion::sign(vault, &known, parent, &candidate.name, kind, &stat, content);
    Ok(Outcome::Ready(Box::new(Prepared { candidate, known, new, parts, stat, reading: None })))
}

/// Entries of a manifest one after another, lists opened as they come; one list in memory at a time.
pub struct EntryCursor<'a> {
    vault: &'a Vault,
    manifest: &'a Manifest,
    next: usize,
    list: std::vec::IntoIter<Entry>,
}

impl<'a> EntryCursor<'a> {
    /// From the start of the file.
    pub fn new(vault: &'a Vault, manifest: &'a Manifest) -> Self {
        Self { vault, manifest, next: 0, list: Vec::new().into_iter() }
    }
}

impl Iterator for EntryCursor<'_> {
    type Item = Result<Entry, VaultError>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(entry) = self.list.next() {
            return Some(Ok(entry));
        }
        let entry = self.manifest.entries.get(self.next)?;
        self.next += 1;
        if !matches!(entry, Entry::List { .. }) {
            return Some(Ok(entry.clone()));
        }
        match open_list(self.vault, self.manifest.epoch, entry) {
            Ok(entries) => {
                self.list = entries.into_iter();
                self.next()
            }
            Err(why) => Some(Err(why)),
        }
    }
}

/// The entries of a list that is here. Pool work.
pub fn open_list(vault: &Vault, epoch: u32, list: &Entry) -> Result<Vec<Entry>, VaultError> {
    let Entry::List { name, .. } = list else { return Ok(Vec::new()) };
    let bytes = vault.local_chunk(name)?.ok_or_else(|| {
        VaultError::Record(format!(
            "list chunk {} of a large file is not here; it is fetched by a sync",
            name.short()
        ))
    })?;
    open_sealed_list(vault, epoch, list, bytes)
}

/// The entries of a list from its sealed bytes.
pub fn open_sealed_list(
    vault: &Vault,
    epoch: u32,
    list: &Entry,
    bytes: Vec<u8>,
) -> Result<Vec<Entry>, VaultError> {
    let Entry::List { key, entries: count, len, .. } = list else { return Ok(Vec::new()) };
    let plain = vault.sealer_of(epoch).open(key, ENCODING_RAW, bytes);
    let list = read_list(&plain.map_err(|why| VaultError::Record(why.to_string()))?)?;
    let is_as_said = list.len() == *count as usize && list.iter().map(Entry::len).sum::<u64>() == *len;
    if is_as_said { Ok(list) } else { Err(VaultError::Record("a list is not as its manifest says".into())) }
}

/// Seals the parts of large files, on all cores.
pub struct LargeImporter {
    vault: Arc<Vault>,
    permits: Arc<Semaphore>,
    jobs: usize,
}

/// Chunks that one job seals: two are hashed in little more time than one.
const JOB_CHUNKS: usize = 2;
/// Chunks that are read and sealed at once, whatever the cores: 24 MiB of the 64 that a cell may use, while peers send it
/// chunks and take others.
const CHUNKS_AT_ONCE: usize = 6;

/// Bytes of a file that make one chunk.
struct Stretch {
    offset: u64,
    len: usize,
    /// What stood there in the version before.
    old: Option<Entry>,
}

/// A sealed stretch.
struct SealedPart {
    entry: Entry,
    part: Option<Part>,
}

impl LargeImporter {
    /// Jobs take a permit each; `jobs` of one file run at once, up to 3.
    pub fn new(vault: Arc<Vault>, permits: Arc<Semaphore>, jobs: usize) -> Self {
        Self { vault, permits, jobs: jobs.min(CHUNKS_AT_ONCE / JOB_CHUNKS) }
    }

    /// Reads and seals one large file. `progress` is told the bytes done.
    pub async fn prepare(
        &self,
        mut candidate: Candidate,
        force: bool,
        progress: &dyn Fn(u64),
    ) -> Result<Outcome, VaultError> {
        if let Some(ms) = too_soon(&self.vault, &candidate, force) {
            return Ok(Outcome::Later(Box::new(candidate), ms));
        }
        let most = (ENTRIES_INLINE_MAX * ENTRIES_PER_LIST) as u64 * CHUNK_BYTES as u64;
        if candidate.stat.size > most {
            return Ok(problem(&candidate, &io::Error::other("over 16 TiB: more than a file can have")));
        }
        let reading = self.vault.begin_large_import();
        for _ in 0..READ_TRIES {
            let vault = Arc::clone(&self.vault);
            let (node, mut taken) = (candidate.node.clone(), candidate);
            let (opened, back) = pool::unblock(move || {
                let known = vault.db.read(|t| Known::load(&vault, t, node));
                let file = open(&mut taken);
                (known.map(|known| (known, file)), taken)
            })
            .await;
            candidate = back;
            let (known, file) = opened?;
            let file = match file {
                Ok(file) => Arc::new(file),
                Err(outcome) => return Ok(*outcome),
            };
            let settled = is_settled(&candidate.stat, wall_ns());
            let sealed = self.seal_all(&candidate, &known, &file, progress).await;
            let (entries, parts) = match sealed {
                Ok(sealed) => sealed,
                Err(VaultError::Io { why, .. }) if why.kind() == io::ErrorKind::UnexpectedEof => continue,
                Err(VaultError::Io { why, .. }) if !is_about_disk(&why) => {
                    return Ok(problem(&candidate, &why));
                }
                Err(why) => return Err(why),
            };
            let after = pool::unblock(move || stat_open(&*file))
                .await
                .map_err(VaultError::io("cannot look at a file"))?;
            if !after.is_same_content(&candidate.stat) {
                continue;
            }
            if !settled {
                return Ok(Outcome::Later(Box::new(candidate), CLOCK_TICK_MS));
            }
            let epoch = known.epoch(&self.vault);
            let content = Content { entries, target: vec![], size: candidate.stat.size, epoch };
            let vault = Arc::clone(&self.vault);
            let mut outcome =
                pool::unblock(move || finish(&vault, candidate, known, content, parts, Some(after))).await;
            if let Ok(Outcome::Ready(prepared)) = &mut outcome {
                prepared.reading = Some(reading);
            }
            return outcome;
        }
        let ms = self.vault.config.settle_open_ms;
        Ok(Outcome::Later(Box::new(candidate), ms))
    }

    async fn seal_all(
        &self,
        candidate: &Candidate,
        known: &Known,
        file: &Arc<File>,
        progress: &dyn Fn(u64),
    ) -> Result<(Vec<Entry>, Vec<Part>), VaultError> {
        let size = candidate.stat.size;
        let has_holes = candidate.stat.stored < size;
        let uses_lists = size.div_ceil(CHUNK_BYTES as u64) > ENTRIES_INLINE_MAX as u64;
        let mut old = OldEntries::new(&self.vault, known.manifest.as_ref());
        let mut running = FuturesOrdered::new();
        let epoch = known.epoch(&self.vault);
        let mut made = Collected::new(Arc::clone(&self.vault), candidate.at.node, uses_lists, epoch);
        let mut offset = 0;
        while offset < size || !running.is_empty() {
            while offset < size && running.len() < self.jobs {
                let mut stretches = Vec::with_capacity(JOB_CHUNKS);
                while offset < size && stretches.len() < JOB_CHUNKS {
                    let len = (size - offset).min(CHUNK_BYTES as u64) as usize;
                    let old = old.at(offset, len as u64);
                    stretches.push(Stretch { offset, len, old });
                    offset += len as u64;
                }
                running.push_back(self.seal_some(Arc::clone(file), stretches, has_holes, epoch));
            }
            for sealed in running.next().await.expect("something runs")? {
                let len = sealed.entry.len();
                made.add(sealed).await?;
                progress(len);
            }
        }
        made.finish().await
    }

    /// One chunk job: read, look whether it is as before, seal, and write on its way to the disk.
    async fn seal_some(
        &self,
        file: Arc<File>,
        stretches: Vec<Stretch>,
        has_holes: bool,
        epoch: u32,
    ) -> Result<Vec<SealedPart>, VaultError> {
        let permit = self.permits.acquire_arc().await;
        let vault = Arc::clone(&self.vault);
        pool::unblock(move || {
            let _permit = permit;
            seal_stretches(&vault, &file, stretches, has_holes, epoch)
        })
        .await
    }
}

fn seal_stretches(
    vault: &Vault,
    file: &File,
    stretches: Vec<Stretch>,
    has_holes: bool,
    epoch: u32,
) -> Result<Vec<SealedPart>, VaultError> {
    let sealer = vault.sealer_of(epoch);
    let mut parts: Vec<Option<SealedPart>> = Vec::with_capacity(stretches.len());
    let mut read = Vec::with_capacity(stretches.len());
    for (at, stretch) in stretches.iter().enumerate() {
        let len = stretch.len;
        let is_hole = has_holes && is_hole(file, stretch.offset, len as u64);
        parts.push(is_hole.then_some(SealedPart { entry: Entry::Hole { len: len as u64 }, part: None }));
        if !is_hole {
            let mut padded = buffers::take(padded_len(len));
            let got = read_exactly(file, &mut padded[..len], stretch.offset);
            got.map_err(VaultError::io("cannot read a file"))?;
            padded[len..].fill(0);
            read.push((at, padded));
        }
    }
    let keys: Vec<Secret> = match &read[..] {
        [(_, x), (_, y)] => sealer.chunk_keys(ENCODING_RAW, x, y).into(),
        some => some.iter().map(|(_, padded)| sealer.chunk_key(ENCODING_RAW, padded)).collect(),
    };
    let mut places = Vec::with_capacity(read.len());
    let mut fresh = Vec::with_capacity(read.len());
    for ((at, padded), key) in read.into_iter().zip(keys) {
        match &stretches[at].old {
            Some(entry @ Entry::Chunk { key: old, name, .. }) if *old == key && is_kept(vault, name)? => {
                buffers::give(padded);
                parts[at] = Some(SealedPart { part: part_of(entry), entry: entry.clone() });
            }
            _ => {
                places.push(at);
                fresh.push((key, padded));
            }
        }
    }
    for (at, SealedChunk { name, key, bytes }) in places.into_iter().zip(seal_each(fresh)) {
        let is_here = vault.db.read(|t| t.chunk(&name))?.is_some_and(|row| row.place.is_some());
        let staged = if is_here { None } else { Some(vault.store.stage(name, &bytes)?) };
        buffers::give(bytes);
        let entry = Entry::Chunk { name, key, encoding: ENCODING_RAW, len: stretches[at].len as u32 };
        parts[at] = Some(SealedPart { entry, part: Some(Part { name, own: Own::Data, staged }) });
    }
    Ok(parts.into_iter().map(|part| part.expect("every stretch is a hole, as it was, or sealed")).collect())
}

fn is_about_disk(why: &io::Error) -> bool {
    matches!(why.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

fn is_hole(file: &File, offset: u64, len: u64) -> bool {
    match rustix::fs::seek(file, rustix::fs::SeekFrom::Data(offset)) {
        Ok(data) => data >= offset + len,
        Err(rustix::io::Errno::NXIO) => true,
        Err(_) => false,
    }
}

/// The entries of the version before, looked up by offset as it grows.
struct OldEntries<'a> {
    cursor: Option<EntryCursor<'a>>,
    at: u64,
    ahead: Option<Entry>,
}

impl<'a> OldEntries<'a> {
    fn new(vault: &'a Vault, manifest: Option<&'a Manifest>) -> Self {
        Self { cursor: manifest.map(|manifest| EntryCursor::new(vault, manifest)), at: 0, ahead: None }
    }

    /// The entry that covers just these bytes, if one did.
    fn at(&mut self, offset: u64, len: u64) -> Option<Entry> {
        let cursor = self.cursor.as_mut()?;
        while self.at <= offset {
            let entry = match self.ahead.take() {
                Some(entry) => entry,
                // Without the old list all chunks are sealed anew, which costs time and nothing else.
                None => cursor.next()?.ok()?,
            };
            let begins = self.at;
            if begins == offset && entry.len() == len {
                self.at += entry.len();
                return Some(entry);
            }
            if begins == offset {
                self.ahead = Some(entry);
                return None;
            }
            self.at += entry.len();
        }
        None
    }
}

/// Entries and parts of a large file as they come: lists are sealed as they fill, and chunks are made durable in between,
/// so that neither memory nor open files grow with the file.
struct Collected {
    vault: Arc<Vault>,
    /// The folder that the file is in.
    folder: NodeId,
    uses_lists: bool,
    epoch: u32,
    entries: Vec<Entry>,
    list: Vec<Entry>,
    parts: Vec<Part>,
    staged_bytes: usize,
}

impl Collected {
    fn new(vault: Arc<Vault>, folder: NodeId, uses_lists: bool, epoch: u32) -> Self {
        let (entries, list, parts) = (Vec::new(), Vec::new(), Vec::new());
        Self { vault, folder, uses_lists, epoch, entries, list, parts, staged_bytes: 0 }
    }

    async fn add(&mut self, sealed: SealedPart) -> Result<(), VaultError> {
        if let Some(part) = sealed.part {
            self.staged_bytes += part.staged.as_ref().map_or(0, |staged| staged.sealed_len() as usize);
            self.parts.push(part);
        }
        if self.uses_lists {
            self.list.push(sealed.entry);
            if self.list.len() == ENTRIES_PER_LIST {
                self.seal_list().await?;
            }
        } else {
            self.entries.push(sealed.entry);
        }
        if self.staged_bytes >= COMMIT_BYTES {
            self.settle().await?;
        }
        Ok(())
    }

    async fn seal_list(&mut self) -> Result<(), VaultError> {
        let list = std::mem::take(&mut self.list);
        let (vault, epoch) = (Arc::clone(&self.vault), self.epoch);
        let (entry, part) = pool::unblock(move || -> Result<_, VaultError> {
            let len = list.iter().map(Entry::len).sum();
            let mut plain = write_list(&list);
            plain.resize(padded_len(plain.len()), 0);
            let chunk = vault.sealer_of(epoch).seal(plain);
            let staged = vault.store.stage(chunk.name, &chunk.bytes)?;
            let entry = Entry::List { name: chunk.name, key: chunk.key, entries: list.len() as u32, len };
            Ok((entry, Part { name: chunk.name, own: Own::List, staged: Some(staged) }))
        })
        .await?;
        self.entries.push(entry);
        self.parts.push(part);
        Ok(())
    }

    /// Makes what is staged durable before the file is whole: its chunks wait for it, unnamed by any version.
    async fn settle(&mut self) -> Result<(), VaultError> {
        let mut parts = std::mem::take(&mut self.parts);
        self.staged_bytes = 0;
        let (vault, folder) = (Arc::clone(&self.vault), self.folder);
        let kept = pool::unblock(move || -> Result<_, VaultError> {
            let _placing = vault.placing();
            let rows = place_parts(&vault, &mut parts.iter_mut().collect::<Vec<_>>())?;
            let all_here = vault.db.change(|t| {
                put_rows(&vault, t, &rows)?;
                let all_here = claim(&vault, t, &parts)?;
                copies::raise_in(&vault, t, folder, parts.iter().map(|part| part.name))?;
                Ok::<_, VaultError>(all_here)
            })?;
            if !all_here {
                let why = io::ErrorKind::UnexpectedEof.into();
                return Err(VaultError::Io { doing: "a chunk went away while a file was read".into(), why });
            }
            Ok(parts)
        })
        .await?;
        // A file with lists is named by them; only its lists need to be looked at again.
        self.parts =
            if self.uses_lists { kept.into_iter().filter(|p| p.own == Own::List).collect() } else { kept };
        Ok(())
    }

    async fn finish(mut self) -> Result<(Vec<Entry>, Vec<Part>), VaultError> {
        if self.uses_lists {
            if !self.list.is_empty() {
                self.seal_list().await?;
            }
            self.settle().await?;
        }
        Ok((self.entries, self.parts))
    }
}

type ChunkPlace = (ChunkName, u32, crate::store::Place, Own);

/// Makes the staged chunks of some parts durable. Hold `Vault::placing`.
fn place_parts(vault: &Vault, parts: &mut [&mut Part]) -> Result<Vec<ChunkPlace>, VaultError> {
    let mut staged = Vec::new();
    let mut rows = Vec::new();
    let mut seen: HashMap<ChunkName, ()> = HashMap::new();
    for part in parts.iter_mut() {
        let Some(chunk) = part.staged.take() else { continue };
        // The same bytes twice in one batch, or stored by somebody else in between.
        let is_here = vault.db.read(|t| t.chunk(&part.name))?.is_some_and(|row| row.place.is_some());
        if is_here || seen.insert(part.name, ()).is_some() {
            continue;
        }
        rows.push((part.name, chunk.sealed_len(), part.own));
        staged.push(chunk);
    }
    if staged.is_empty() {
        return Ok(Vec::new());
    }
    let places = vault.store.commit(staged)?;
    Ok(rows.into_iter().zip(places).map(|((name, len, own), place)| (name, len, place, own)).collect())
}

fn put_rows(vault: &Vault, t: &crate::placement::Tables<'_>, rows: &[ChunkPlace]) -> Result<(), VaultError> {
    for (name, len, place, own) in rows {
        let is_new = t.has_numbers()? && !is_mine(t, name)?;
        let id = t.put_chunk(name, *len, place, *own)?;
        if is_new {
            copies::begin(t, id)?;
        }
        vault.mark(&[id]);
    }
    Ok(())
}

/// What a commit did.
#[derive(Debug, Default)]
pub struct Committed {
    /// Files and links with a new version.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Chunks that an earlier look had found here are gone: read these files again.
    pub again: Vec<Candidate>,
}

/// Makes the chunks of some files durable and then records the files, in one transaction.
pub fn commit(vault: &Vault, mut files: Vec<Prepared>) -> Result<Committed, VaultError> {
    let _placing = vault.placing();
    let rows = {
        let mut parts: Vec<&mut Part> = files.iter_mut().flat_map(|file| &mut file.parts).collect();
        place_parts(vault, &mut parts)?
    };
    vault.db.change(|t| {
        let mut done = Committed::default();
        put_rows(vault, t, &rows)?;
        // What was put just now is claimed by that; only what was here before needs a look.
        let put: HashSet<ChunkName> = rows.iter().map(|(name, ..)| *name).collect();
        let mut folders: HashSet<NodeId> = HashSet::new();
        for mut file in files {
            file.parts.retain(|part| {
                part.own != Own::Data || !put.contains(&part.name) || file.known.node.is_some()
            });
            if !claim(vault, t, &file.parts)? {
                done.again.push(file.candidate);
                continue;
            }
            let at = &file.candidate.at;
            // The folder may have gone, or another node taken the name, since the file was read.
            let taken = t.child(at.node, &file.candidate.name)?;
            let is_own = |id| file.known.node.as_ref().is_some_and(|node| node.id == id);
            if let Some(other) = taken.filter(|other| !is_own(other.id)) {
                if file.known.node.is_none() && other.kind == Kind::File && file.stat.kind == Some(Kind::File)
                {
                    done.again.push(file.candidate);
                    continue;
                }
                super::deletion::delete_tree(vault, t, other)?;
                folders.clear();
            }
            if !folders.contains(&at.node) {
                if t.node(at.node)?.is_none() {
                    continue;
                }
                folders.insert(at.node);
            }
            let is_resealed = file.known.is_resealed_by(file.new.epoch, &file.stat);
            super::brake::count_rewrite(
                vault,
                t,
                file.known.node.as_ref(),
                file.known.manifest.as_ref(),
                !is_resealed && file.parts_changed(),
            )?;
            if is_resealed {
                file.known.forget_newest(t)?;
            }
            done.files += 1;
            done.bytes += file.stat.size;
            let seen = version::Seen {
                parent: at.node,
                name: &file.candidate.name,
                stat: Some(&file.stat),
                device: at.device,
                state: NodeState::Present,
            };
            version::record(vault, t, file.known, file.new, seen)?;
        }
        Ok(done)
    })
}

impl Prepared {
    /// Whether any byte is new.
    fn parts_changed(&self) -> bool {
        let old: Vec<_> = self.known.manifest.iter().flat_map(Manifest::chunks).collect();
        self.parts.iter().any(|part| !old.contains(&part.name))
    }
}

/// Makes sure that all chunks of a version are known and mine; `false` if one is not here and nowhere noted.
fn claim(vault: &Vault, t: &crate::placement::Tables<'_>, parts: &[Part]) -> Result<bool, VaultError> {
    for part in parts {
        let Some(row) = t.chunk(&part.name)? else { return Ok(false) };
        if !has_bytes(t, &row)? {
            return Ok(false);
        }
        claim_row(vault, t, row.id, part.own)?;
    }
    Ok(true)
}

/// Whether a chunk lies here or with a peer.
fn has_bytes(t: &crate::placement::Tables<'_>, row: &ChunkRow) -> Result<bool, DbError> {
    Ok(row.place.is_some() || !t.copies_of(row.id)?.is_empty())
}

/// Whether a chunk that an old version names is still to be had; else the file is where its bytes come from.
fn is_kept(vault: &Vault, name: &ChunkName) -> Result<bool, DbError> {
    vault.db.read(|t| match t.chunk(name)? {
        Some(row) => has_bytes(t, &row),
        None => Ok(false),
    })
}

fn is_mine(t: &crate::placement::Tables<'_>, name: &ChunkName) -> Result<bool, VaultError> {
    Ok(match t.chunk(name)? {
        Some(row) => t.own(row.id)? != Own::No,
        None => false,
    })
}

/// A chunk is mine (again).
pub fn claim_row(
    vault: &Vault,
    t: &crate::placement::Tables<'_>,
    id: ChunkId,
    own: Own,
) -> Result<(), VaultError> {
    let before = t.own(id)?;
    if before < own {
        t.set_own(id, own)?;
        t.unrelease_copies(id)?;
    }
    if before == Own::No {
        copies::begin(t, id)?;
    }
    vault.mark(&[id]);
    Ok(())
}

/// Records that some files are as they were but for what the file system says of them.
pub fn note_seen(vault: &Vault, seen: Vec<(Candidate, Stat)>) -> Result<(), VaultError> {
    vault.db.change(|t| {
        for (candidate, stat) in &seen {
            let Some(node) = &candidate.node else { continue };
            let Some(mut node) = t.node(node.id)? else { continue };
            version::set_seen(&mut node, stat, candidate.at.device);
            t.set_node(&node)?;
            version::forget_remote_only(t, node.file)?;
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_free_in_the_first_hour_and_five_minutes_apart_after_it() {
        assert_eq!(spacing_ms(0, 3500, 3510), None);
        assert_eq!(spacing_ms(0, 7000, 7200), Some(100_000));
        assert_eq!(spacing_ms(0, 7000, 7300), None);
    }
}

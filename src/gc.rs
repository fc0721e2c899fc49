//! Garbage collection, thinning and the end of what is in the Recycle Bin.
//!
//! Why a chunk that is needed is never removed:
//!
//! 1. A chunk is *needed* if a record in the catalog names it (any version that is kept, its lists, and what they name), if
//!    it is a segment of the newest head, or if a peer's claim (`holds`) is on it. Grants name versions, so they need
//!    nothing of their own.
//! 2. Marking walks all records and marks what they name. Records that are written meanwhile mark what they name
//!    themselves (`Vault::mark`), before their transaction ends: so at any moment after marking has begun, every needed
//!    chunk of mine is marked or will be by the walk, which sees all records that were there when it began.
//! 3. Sweeping takes only chunks whose rows were there when marking began, that are not marked when looked at under
//!    `Vault::placing`, and that nobody's claim is on. Chunks are claimed only under the same lock, by a transaction that
//!    finds them present; so none is claimed between the look and the removal, and whoever comes later finds it absent
//!    and stores it again.
//! 4. A large file's chunks come before the record that names them, and that record marks its lists only. So nothing is swept if
//!    such a file was read, or waited for its record, at any time since marking began.
//! 5. A list that cannot be read could name anything: then marking fails, and nothing is swept.

use std::collections::HashSet;
use std::sync::Arc;

use crate::catalog::{RecordKind, version_key_prefix};
use crate::config::{COLD_S, RECORDS_PER_CHANGE, TRASH_S, UNKNOWN_CHUNKS_S};
use crate::copies;
use crate::files::import::EntryCursor;
use crate::files::{brake, version};
use crate::id::{ChunkName, FileId};
use crate::manifest::{Check, Entry, Kind, Manifest, Parsed};
use crate::placement::{BinRow, ChunkId, ChunkRow, DbError, HoldState, KeyAndBody, NodeId, Own, Tables};
use crate::publish::{self, sealed_len};
use crate::store::{Held, PACK_BATCH_MIN, Place, REWRITE_CHUNKS, Rewritten, SMALL_BYTES, StoreError};
use crate::vault::{Marks, Vault, VaultError};
use crate::world::{self, Sabotage};

/// Chunks taken away under one hold of the lock.
const SLICE: usize = 256;
/// Bytes of records in memory while all are walked.
const WALKED_BYTES: usize = 4 << 20;

/// What a collection did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Collected {
    /// Chunks removed here.
    pub chunks: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Chunks that peers may release.
    pub to_release: u64,
}

/// What a cell does once in a while: drops versions whose time is over, publishes that, and collects what nothing needs any
/// more.
pub fn tidy(vault: &Vault) -> Result<Collected, VaultError> {
    // What a stop is credited with lately must have come off the age of what was stamped since.
    vault.save_time()?;
    if let Err(why) = publish::place_rest(vault) {
        log::error!(
            "what came from another catalog has not all got its place in the tree: {why}; it is tried again"
        );
    }
    // On a full disk what makes room waits for nothing that needs some.
    let done = [
        thin_all(vault).map(drop),
        keep_to_budget(vault).map(drop),
        empty_trash(vault).map(drop),
        copies::tidy(vault).map_err(VaultError::from),
    ];
    let published = publish::publish(vault);
    let collected = collect(vault)?;
    if published.is_err() {
        publish::publish(vault)?;
    }
    done.into_iter().collect::<Result<(), _>>()?;
    copies::settle(vault)?;
    Ok(collected)
}

/// Collects what nothing needs. One at a time.
pub fn collect(vault: &Vault) -> Result<Collected, VaultError> {
    // Chunks of an unfinished database rebuild belong to somebody who has not been heard yet.
    let keeps_unknown = vault
        .db
        .read(|t| t.meta_u64("rebuilt_at"))?
        .is_some_and(|at| vault.expiry_now() < at + UNKNOWN_CHUNKS_S);
    let begun = begin(vault)?;
    let outcome = mark_all(vault).and_then(|()| sweep(vault, begun, keeps_unknown));
    *vault.marks() = None;
    let mut collected = outcome?;
    collected.bytes += compact(vault)?;
    Ok(collected)
}

/// How things stood when marking began.
#[derive(Debug, Clone, Copy)]
struct Begun {
    /// The newest row.
    until: ChunkId,
    /// Large files that had been read.
    large_ended: u64,
}

fn begin(vault: &Vault) -> Result<Begun, VaultError> {
    let _placing = vault.placing();
    *vault.marks() = Some(Marks::default());
    let large_ended = vault.large_imports_ended();
    Ok(Begun { until: vault.db.read(|t| t.chunk_id_max())?, large_ended })
}

/// Hears of key and body of a record.
type SeeVersion<'a> = &'a mut dyn FnMut(&[u8], &[u8]) -> Result<(), VaultError>;

/// Calls `see` with key and body of each record of a version that is kept, by number. The database is free in between.
pub fn each_version(vault: &Vault, see: SeeVersion<'_>) -> Result<(), VaultError> {
    let mut after = 0;
    loop {
        let (mut some, mut bytes): (Vec<KeyAndBody>, usize) = (Vec::new(), 0);
        vault.db.read(|t| {
            t.records_after(after, |seq, key, body| -> Result<bool, DbError> {
                after = seq;
                if key[0] == RecordKind::File as u8 && !body.is_empty() {
                    bytes += key.len() + body.len();
                    some.push((key.to_vec(), body.to_vec()));
                }
                Ok(some.len() < RECORDS_PER_CHANGE && bytes < WALKED_BYTES)
            })
        })?;
        if some.is_empty() {
            return Ok(());
        }
        some.iter().try_for_each(|(key, body)| see(key, body))?;
    }
}

fn mark_all(vault: &Vault) -> Result<(), VaultError> {
    each_version(vault, &mut |_, body| mark_version(vault, body))?;
    let segments = vault.db.read(|t| t.segments())?;
    mark_names(vault, segments.into_iter().map(|(_, name, _)| name))
}

fn mark_version(vault: &Vault, body: &[u8]) -> Result<(), VaultError> {
    names_of(vault, body, &mut |named| {
        claim_listed(vault, &named)?;
        mark_names(vault, named.into_iter().map(|(name, _)| name))
    })
}

/// A chunk that a version names, and, of one that only a list names, the length of its sealed bytes.
pub type Named = (ChunkName, Option<u32>);

/// Calls `see` with all that a version's record names, some at a time: its chunks and lists first, then what is in the lists.
pub fn names_of(
    vault: &Vault,
    body: &[u8],
    see: &mut dyn FnMut(Vec<Named>) -> Result<(), VaultError>,
) -> Result<(), VaultError> {
    let parsed = Parsed::read(body)?;
    see(parsed.chunks().map(|name| (name, None)).collect())?;
    if parsed.has_lists() {
        let manifest = Manifest::open(body, &vault.master, Check::Trusted)?;
        let mut named = Vec::new();
        for entry in EntryCursor::new(vault, &manifest) {
            if let Entry::Chunk { name, len, .. } = entry? {
                named.push((name, Some(sealed_len(len))));
            }
            if named.len() >= RECORDS_PER_CHANGE {
                see(std::mem::take(&mut named))?;
            }
        }
        see(named)?;
    }
    Ok(())
}

/// What only lists name is mine as well: a catalog that came back says so only once its lists have come, too, and until then
/// nobody counts the copies of these chunks.
fn claim_listed(vault: &Vault, named: &[Named]) -> Result<(), VaultError> {
    let listed = || named.iter().filter_map(|(name, len)| Some((*name, (*len)?)));
    let is_mine = |t: &Tables<'_>, name: &ChunkName| -> Result<bool, DbError> {
        match t.chunk(name)? {
            Some(row) => Ok(t.own(row.id)? != Own::No),
            None => Ok(false),
        }
    };
    let missing = vault.db.read(|t| -> Result<Vec<(ChunkName, u32)>, DbError> {
        let mut missing = Vec::new();
        for (name, len) in listed() {
            if !is_mine(t, &name)? {
                missing.push((name, len));
            }
        }
        Ok(missing)
    })?;
    if missing.is_empty() {
        return Ok(());
    }
    log::debug!("{} chunks of large files are known as mine now", missing.len());
    vault.db.change(|t| -> Result<(), DbError> {
        for (name, len) in missing {
            let id = t.know_chunk(&name, len, Own::Data)?;
            vault.mark(&[id]);
        }
        copies::ask(t)
    })?;
    Ok(())
}

fn mark_names(vault: &Vault, names: impl Iterator<Item = ChunkName>) -> Result<(), VaultError> {
    let mut ids = Vec::new();
    vault.db.read(|t| -> Result<(), DbError> {
        for name in names {
            ids.extend(t.chunk(&name)?.map(|row| row.id));
        }
        Ok(())
    })?;
    vault.mark(&ids);
    Ok(())
}

fn sweep(vault: &Vault, begun: Begun, keeps_unknown: bool) -> Result<Collected, VaultError> {
    let Begun { until, large_ended } = begun;
    let mut collected = Collected::default();
    let mut after = ChunkId(0);
    loop {
        let page = vault.db.read(|t| t.chunks_after(after, SLICE))?;
        let Some(last) = page.last() else { break };
        after = last.id;
        let page: Vec<ChunkRow> = page.into_iter().filter(|row| row.id <= until).collect();
        if page.is_empty() {
            break;
        }
        let _placing = vault.placing();
        if vault.has_large_imports() || vault.large_imports_ended() != large_ended {
            log::debug!("a large file is being read, or was; the collection goes on later");
            return Ok(collected);
        }
        // Durable before the files go: a power cut that kept the removal and not the row would leave a chunk that is said
        // to be here, and the next import or peer would not store it again.
        let gone = vault.db.change_durably(|t| -> Result<Vec<(ChunkName, Place)>, VaultError> {
            let mut gone = Vec::new();
            for row in page {
                let is_marked = vault.marks().as_ref().is_none_or(|marks| marks.has(row.id));
                if is_marked {
                    continue;
                }
                let own = t.own(row.id)?;
                if own == Own::No && keeps_unknown && !t.has_holds(row.id)? {
                    continue;
                }
                if own != Own::No {
                    t.set_own(row.id, Own::No)?;
                    t.release_copies(row.id)?;
                    collected.to_release += u64::from(t.has_copies(row.id)?);
                }
                if t.is_held(row.id)? && !world::is_sabotaged(Sabotage::CollectsClaims) {
                    continue;
                }
                // The row's place may have moved since the page was read.
                let Some(row) = t.chunk_by_id(row.id)? else { continue };
                if let Some(place) = row.place {
                    t.move_chunk(row.id, None)?;
                    collected.chunks += 1;
                    if place == Place::Loose {
                        collected.bytes += u64::from(row.len);
                    }
                    gone.push((row.name, place));
                }
                if !t.has_copies(row.id)? && !t.has_holds(row.id)? {
                    t.delete_chunk(row.id)?;
                }
            }
            Ok(gone)
        })?;
        for (name, place) in gone {
            vault.store.remove(name, place)?;
        }
    }
    Ok(collected)
}

/// Rewrites packs of which half is dead. Gives the bytes won.
pub fn compact(vault: &Vault) -> Result<u64, VaultError> {
    let live: std::collections::HashMap<_, _> = vault.db.read(|t| t.pack_bytes())?.into_iter().collect();
    let mut won = 0;
    for pack in vault.store.packs()? {
        let live_bytes = live.get(&pack.id).copied().unwrap_or(0);
        // An open pack fills up again by itself, unless nothing in it is alive.
        if live_bytes * 2 > pack.bytes || (pack.is_open && pack.bytes < 1024 * 1024) {
            continue;
        }
        won += rewrite(vault, pack.id)?.map_or(0, |()| pack.bytes.saturating_sub(live_bytes));
    }
    Ok(won)
}

fn rewrite(vault: &Vault, pack: crate::store::PackId) -> Result<Option<()>, VaultError> {
    vault.store.retire_pack(pack)?;
    let rows = vault.db.read(|t| t.chunks_in_pack(pack))?;
    let mut live = rows.iter().filter_map(held_at);
    loop {
        let _placing = vault.placing();
        let Some(done) = copy_live(vault, &mut live)? else { return Ok(None) };
        if done.is_done {
            break;
        }
    }
    let _placing = vault.placing();
    if vault.db.read(|t| t.chunks_in_pack(pack))?.is_empty() {
        vault.store.remove_pack(pack)?;
    }
    Ok(Some(()))
}

fn held_at(row: &ChunkRow) -> Option<Held> {
    Some(Held { name: row.name, place: row.place?, len: row.len })
}

/// Copies the next live chunks into the open pack, and durably says that they are there; `None` where the disk is too full
/// for it. The caller holds `placing`.
fn copy_live(vault: &Vault, live: &mut dyn Iterator<Item = Held>) -> Result<Option<Rewritten>, VaultError> {
    let done = match vault.store.rewrite(live) {
        Ok(done) => done,
        Err(why @ StoreError::Full { .. }) => {
            log::info!("a pack waits to be rewritten: {why}");
            return Ok(None);
        }
        Err(why) => return Err(why.into()),
    };
    for held in &done.damaged {
        log::warn!("chunk {} is damaged", held.name.short());
        vault.store.quarantine(held.name, held.place, held.len)?;
    }
    let losses = vault.db.change_durably(|t| -> Result<Vec<_>, DbError> {
        for moved in &done.moved {
            if let Some(row) = t.chunk(&moved.name)?.filter(|row| row.place == Some(moved.from)) {
                t.move_chunk(row.id, Some(&moved.to))?;
            }
        }
        let mut losses = Vec::new();
        for held in &done.damaged {
            if let Some(row) = t.chunk(&held.name)?.filter(|row| row.place == Some(held.place)) {
                losses.push((held.name, vault.record_loss(t, row.id)?));
            }
        }
        Ok(losses)
    })?;
    losses.into_iter().for_each(|(name, loss)| vault.tell_loss(name, loss));
    Ok(Some(done))
}

/// Up to which row chunks have grown cold: those that were there when a mark was set at least `COLD_S` ago.
///
/// Two marks are kept, so a chunk is cold after 7 days at the earliest and after 14 at the latest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Cooling {
    /// Cold up to this row.
    cold: i64,
    /// Rows up to here were there at `marked_at`.
    marked: i64,
    marked_at: u64,
}

impl Cooling {
    /// Moves on at `now`, when the newest row is `newest`.
    fn pass(self, newest: i64, now: u64) -> Self {
        if self.marked_at > 0 && now < self.marked_at + COLD_S {
            return self;
        }
        let cold = if self.marked_at == 0 { 0 } else { self.marked };
        Self { cold, marked: newest, marked_at: now.max(1) }
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let number = |at: usize| Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
        Some(Self { cold: number(0)? as i64, marked: number(8)? as i64, marked_at: number(16)? })
    }

    fn to_bytes(self) -> Vec<u8> {
        [self.cold as u64, self.marked as u64, self.marked_at].map(u64::to_le_bytes).concat()
    }
}

/// Gathers some small chunks that lie loose and have grown cold into packs, whosever they are. Gives how many; 0 when there
/// are too few, or the disk is too full. At most one `rewrite` of the store: 4 MiB or 4,096 chunks.
pub fn gather_cold(vault: &Vault) -> Result<u64, VaultError> {
    let now = vault.now();
    let (cooling, done_to) = vault.db.change(|t| -> Result<_, DbError> {
        let before = t.meta("cooling")?.and_then(|bytes| Cooling::from_bytes(&bytes)).unwrap_or_default();
        let cooling = before.pass(t.chunk_id_max()?.0, now);
        if cooling != before {
            t.set_meta("cooling", &cooling.to_bytes())?;
            // What was too little for a pack before may be enough now.
            t.set_meta_u64("gathered", 0)?;
        }
        Ok((cooling, ChunkId(t.meta_u64("gathered")?.unwrap_or(0) as i64)))
    })?;
    let until = ChunkId(cooling.cold);
    let _placing = vault.placing();
    let rows = vault.db.read(|t| t.loose_after(done_to, until, SMALL_BYTES, REWRITE_CHUNKS))?;
    if rows.len() < PACK_BATCH_MIN {
        return Ok(0);
    }
    let mut live = rows.iter().filter_map(held_at);
    let Some(done) = copy_live(vault, &mut live)? else { return Ok(0) };
    for moved in &done.moved {
        vault.store.remove(moved.name, moved.from)?;
    }
    // What comes after those that were looked at.
    let looked_at = done.moved.len() + done.damaged.len();
    if let Some(last) = looked_at.checked_sub(1).and_then(|at| rows.get(at)) {
        vault.db.change(|t| t.set_meta_u64("gathered", last.id.0 as u64))?;
    }
    Ok(done.moved.len() as u64)
}

/// Deletes what owners released 14 days ago; at the reserve, all that they released. Gives the claims that ended.
pub fn empty_trash(vault: &Vault) -> Result<u64, VaultError> {
    let space = vault.store.free()?;
    let now = vault.expiry_now();
    let until = if space.free <= space.reserve { Some(u64::MAX >> 1) } else { now.checked_sub(TRASH_S) };
    let Some(until) = until else { return Ok(0) };
    let mut ended = 0;
    loop {
        let _placing = vault.placing();
        let count = vault.db.change(|t| -> Result<usize, DbError> {
            let page = t.trash(until, RECORDS_PER_CHANGE)?;
            for (chunk, owner, class) in &page {
                t.put_hold(*chunk, *owner, *class, HoldState::Gone, now)?;
            }
            Ok(page.len())
        })?;
        ended += count as u64;
        if count == 0 {
            return Ok(ended);
        }
    }
}

/// A version, as thinning sees it. Newest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Age {
    /// Observed seconds since it was superseded; 0 for the newest.
    pub superseded_s: u64,
    /// The newest, or one that must stay for another reason.
    pub is_kept: bool,
}

/// Which of a file's versions to drop: all are kept for `full_s` after they were superseded, then the newest of each day
/// for 90 days, of each week for a year, and of each month.
pub fn thin(versions: &[Age], full_s: u64) -> Vec<usize> {
    const DAY: u64 = 86_400;
    let mut last = None;
    let mut dropped = Vec::new();
    for (at, version) in versions.iter().enumerate() {
        if version.is_kept || version.superseded_s <= full_s {
            continue;
        }
        let age = version.superseded_s - full_s;
        let slot = match age / DAY {
            days @ 0..90 => (0, days),
            days @ 90..365 => (1, days / 7),
            days => (2, days / 30),
        };
        if last == Some(slot) {
            dropped.push(at);
        } else {
            last = Some(slot);
        }
    }
    dropped
}

/// What thinning did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Thinned {
    /// Versions dropped.
    pub versions: u64,
    /// Deleted files forgotten.
    pub deleted: u64,
}

/// Drops versions that are old enough, and deleted files after their time in the bin. Nothing while the brake is on.
pub fn thin_all(vault: &Vault) -> Result<Thinned, VaultError> {
    let mut thinned = Thinned::default();
    if vault.is_retired() || vault.is_expiry_frozen() || vault.db.read(brake::load)?.is_on() {
        return Ok(thinned);
    }
    let now = vault.now();
    let full_s = vault.config.versions_full_days * 86_400;
    let bin_s = vault.config.bin_days * 86_400;
    let mut after = NodeId(0);
    loop {
        let page = vault.db.read(|t| t.nodes_after(after, 512))?;
        let Some(last) = page.last() else { break };
        after = last.id;
        for node in page.into_iter().filter(|node| node.kind != Kind::Folder && node.version > 1) {
            thinned.versions += thin_file(vault, node.file, node.seq, now, full_s)?;
        }
    }
    let mut after = FileId::ROOT;
    loop {
        let page = vault.db.read(|t| t.bin_after(after, 512))?;
        let Some(last) = page.last() else { break };
        after = last.file;
        let over: Vec<BinRow> = page.into_iter().filter(|row| now >= row.at + bin_s).collect();
        thinned.deleted += over.len() as u64;
        vault.db.change(|t| -> Result<(), DbError> {
            for row in over {
                for (_, key) in t.records_with_prefix(&version_key_prefix(row.file), 100_000)? {
                    t.forget_record(&key)?;
                }
                version::forget_remote_only(t, row.file)?;
                t.take_bin(row.file)?;
            }
            Ok(())
        })?;
    }
    Ok(thinned)
}

/// When a version was superseded is when the next was first seen; the database notes it the first time it looks.
fn thin_file(vault: &Vault, file: FileId, newest: u64, now: u64, full_s: u64) -> Result<u64, VaultError> {
    vault.db.change(|t| -> Result<u64, VaultError> {
        let mut records = t.records_with_prefix(&version_key_prefix(file), 100_000)?;
        records.retain(|(seq, _)| *seq != newest);
        if records.is_empty() {
            return Ok(0);
        }
        records.reverse();
        let mut ages = Vec::with_capacity(records.len());
        for (seq, _) in &records {
            let since = t.superseded_at(*seq, now)?;
            ages.push(Age { superseded_s: now.saturating_sub(since), is_kept: false });
        }
        let dropped = thin(&ages, full_s);
        for at in &dropped {
            t.forget_record(&records[*at].1)?;
            t.forget_superseded(records[*at].0)?;
        }
        Ok(dropped.len() as u64)
    })
}

/// Drops the oldest superseded versions while they take more than their share of the disk, or the disk is at its reserve.
/// Current files and what is in the bin are never touched. Gives the versions dropped.
pub fn keep_to_budget(vault: &Vault) -> Result<u64, VaultError> {
    if vault.is_retired() || vault.db.read(brake::load)?.is_on() {
        return Ok(0);
    }
    let space = vault.store.free()?;
    // Without what is kept for peers, which old versions of ours have no part in.
    let own_bytes = vault.db.read(|t| t.own_bytes_here())?;
    let current = vault.db.read(|t| t.tree_size())?.1;
    let budget = space.total / 100 * vault.config.versions_budget_percent;
    let superseded = own_bytes.saturating_sub(current);
    let excess = superseded.saturating_sub(budget);
    if excess == 0 && space.free > space.reserve {
        return Ok(0);
    }
    let wanted = excess.max((space.reserve + space.reserve / 4).saturating_sub(space.free)).max(1);
    let mut freed = 0;
    let mut dropped = 0;
    let mut after = 0;
    while freed < wanted {
        let mut some: Vec<(u64, Vec<u8>, Vec<u8>)> = Vec::new();
        vault.db.read(|t| {
            t.records_after(after, |seq, key, body| -> Result<bool, VaultError> {
                after = seq;
                if key[0] == RecordKind::File as u8 && !body.is_empty() {
                    some.push((seq, key.to_vec(), body.to_vec()));
                }
                Ok(some.len() < 500)
            })
        })?;
        if some.is_empty() {
            break;
        }
        for (seq, key, body) in some {
            let manifest = Manifest::open(&body, &vault.master, Check::Trusted)?;
            let is_superseded = vault.db.read(|t| -> Result<_, DbError> {
                Ok(match t.node_of(manifest.file)? {
                    Some(node) => node.seq != seq && node.kind == Kind::File,
                    None => false,
                })
            })?;
            if !is_superseded || freed >= wanted {
                continue;
            }
            let current: HashSet<ChunkName> = vault.db.read(|t| -> Result<_, VaultError> {
                let Some(node) = t.node_of(manifest.file)? else { return Ok(HashSet::new()) };
                let Some(body) = t.record_at(node.seq)? else { return Ok(HashSet::new()) };
                Ok(Parsed::read(&body)?.chunks().collect())
            })?;
            let own: u64 = manifest
                .entries
                .iter()
                .filter(|entry| entry.chunk().is_some_and(|name| !current.contains(&name)))
                .map(Entry::len)
                .sum();
            vault.db.change(|t| t.forget_record(&key))?;
            freed += own;
            dropped += 1;
        }
    }
    if dropped > 0 {
        log::info!("{dropped} old versions made room on the disk");
    }
    Ok(dropped)
}

/// What a verification found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verified {
    /// Chunks looked at.
    pub chunks: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Damaged or gone; put aside, and not counted as copies any more.
    pub damaged: Vec<ChunkName>,
    /// Where to go on.
    pub after: ChunkId,
    /// All was looked at.
    pub is_done: bool,
}

/// Looks at a slice of the chunks that should lie here: whether they are there, and if `deep` whether their bytes are.
pub fn verify_slice(vault: &Arc<Vault>, after: ChunkId, deep: bool) -> Result<Verified, VaultError> {
    let mut found = Verified { after, ..Verified::default() };
    let page = vault.db.read(|t| t.chunks_after(after, if deep { 64 } else { 1024 }))?;
    let Some(last) = page.last() else {
        found.is_done = true;
        return Ok(found);
    };
    found.after = last.id;
    for row in page {
        let Some(place) = row.place else { continue };
        found.chunks += 1;
        found.bytes += u64::from(row.len);
        let is_sound = if deep {
            vault.local_chunk(&row.name)?.is_some()
        } else {
            vault.store.contains(row.name, place, row.len)
        };
        if !is_sound {
            if !deep {
                // A chunk that was collected or moved since is no damage.
                vault.local_chunk(&row.name)?;
            }
            let is_gone = vault.db.read(|t| t.chunk_by_id(row.id))?.is_some_and(|row| row.place.is_none());
            if is_gone {
                found.damaged.push(row.name);
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::keys::MasterKey;
    use crate::seal::Sealer;
    use crate::simulation::files;
    use crate::store::{ChunkStore, MemoryStore};

    const DAY: u64 = 86_400;

    #[test]
    fn versions_are_kept_in_full_then_one_a_day_a_week_a_month() {
        let ages: Vec<Age> =
            (0..800 * 4).map(|n| Age { superseded_s: n * DAY / 4, is_kept: false }).collect();
        let dropped = thin(&ages, 30 * DAY);
        let kept = |from: u64, to: u64| {
            (0..ages.len())
                .filter(|at| !dropped.contains(at) && (from..to).contains(&(ages[*at].superseded_s / DAY)))
                .count()
        };
        assert_eq!(kept(0, 30), 120);
        assert_eq!(kept(31, 119), 88);
        assert!((38..=41).contains(&kept(120, 395)));
        assert!((13..=15).contains(&kept(395, 800)));
    }

    fn vault(store: &Arc<MemoryStore>) -> Vault {
        let mut config = Config::default();
        config.versions_budget_percent = 20;
        Vault::in_memory(Arc::clone(store) as Arc<dyn ChunkStore>, config)
    }

    /// Puts a chunk here that no record names.
    fn put(vault: &Vault, key: u8, len: usize, own: Own) -> ChunkName {
        let sealed = Sealer::new(&MasterKey::from_bytes([key; 32]), 0).seal(vec![9; len]);
        let _placing = vault.placing();
        let place =
            vault.store.commit(vec![vault.store.stage(sealed.name, &sealed.bytes).unwrap()]).unwrap()[0];
        let len = sealed.bytes.len() as u32;
        vault.db.change(|t| t.put_chunk(&sealed.name, len, &place, own)).unwrap();
        sealed.name
    }

    #[test]
    fn chunks_of_a_large_file_that_was_read_while_others_were_marked_stay() {
        let vault = vault(&Arc::new(MemoryStore::new()));
        let is_here = |name| vault.local_chunk(&name).unwrap().is_some();
        let reading = vault.begin_large_import();
        let chunk = put(&vault, 7, 5000, Own::Data);
        let begun = begin(&vault).unwrap();
        mark_all(&vault).unwrap();
        // All was marked, and now the file is read to its end: its version is being recorded.
        assert_eq!(sweep(&vault, begun, false).unwrap(), Collected::default());
        drop(reading);
        assert_eq!(sweep(&vault, begun, false).unwrap(), Collected::default());
        assert!(is_here(chunk));
        // The next collection sees what that version names: here it names nothing.
        collect(&vault).unwrap();
        assert!(!is_here(chunk));
    }

    #[test]
    fn what_peers_keep_here_costs_no_old_versions() {
        let store = Arc::new(MemoryStore::new());
        store.set_capacity(100_000);
        let vault = vault(&store);
        let keep = |name: &[u8], byte, len| {
            files::keep_in(&vault, NodeId::ROOT, name, &[vec![byte; len]]).unwrap();
        };
        keep(b"notes", 1, 300);
        keep(b"notes", 2, 300);
        put(&vault, 8, 50_000, Own::No);
        assert_eq!(keep_to_budget(&vault).unwrap(), 0, "a peer's chunk is half of the disk");
        store.set_capacity(200_000);
        keep(b"film", 3, 45_000);
        keep(b"film", 4, 45_000);
        assert_eq!(keep_to_budget(&vault).unwrap(), 2, "the oldest go until it is enough");
        assert_eq!(keep_to_budget(&vault).unwrap(), 0);
    }

    #[test]
    fn a_disk_too_full_for_the_catalog_is_tidied_and_then_the_catalog_has_room() {
        let store = Arc::new(MemoryStore::new());
        let vault = vault(&store);
        files::keep_in(&vault, NodeId::ROOT, b"notes", &[vec![1; 300]]).unwrap();
        let junk = put(&vault, 7, 5000, Own::No);
        store.set_capacity(vault.store.free().map(|space| space.total - space.free).unwrap());
        assert!(publish::publish(&vault).is_err(), "there is no room");
        assert_eq!(tidy(&vault).unwrap().chunks, 1);
        assert!(vault.local_chunk(&junk).unwrap().is_none());
        assert!(!vault.db.read(|t| t.segments()).unwrap().is_empty(), "it is published");
    }

    #[test]
    fn what_must_stay_stays() {
        let ages = [Age { superseded_s: 900 * DAY, is_kept: true }; 5];
        assert!(thin(&ages, 0).is_empty());
    }
}

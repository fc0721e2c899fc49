//! Publishing the catalog: pending records into segments, a new signed head over them, and back again from segments to
//! the tree, for a recovery, a lost placement.db or a fork.
//!
//! Promise: `catalog.head` and placement.db are durable and agree when `publish` returns; a database that is older than
//! `catalog.head` is therefore an old copy, and is not believed.
//!
//! Records of another catalog come into this one before the tree, the claims on chunks and the numbers of copies follow from them. In
//! between it says so durably (`is_unplaced`): then nothing is let go because nobody seems to want it, and whatever breaks off is
//! gone on with at the next start or merge (`place_rest`).
//!
//! A run of segments covers a stretch of sequence numbers, up to the number that is its id. So runs are merged by writing
//! the live records of their stretch anew from the database; old segments need not be read.

use std::collections::{BTreeSet, HashSet};

use crate::catalog::{
    Head, RecordKind, Run, SegmentWriter, open_segment, plan_merge, read_segment, record_key, version_key,
    version_key_prefix,
};
use crate::codec::{BadBytes, Reader, Writer};
use crate::config::RECORDS_PER_CHANGE;
use crate::copies;
use crate::files::version::{self, hash_of};
use crate::id::{BodyHash, ChunkName, FileId};
use crate::manifest::{Check, Entry, Kind, Manifest};
use crate::placement::{BinRow, DbError, Device, Node, NodeId, NodeState, Own, Tables};
use crate::state_files::StateFiles;
use crate::store::Staged;
use crate::vault::{Vault, VaultError};

/// Starts of the program that are looked through when two logs are compared.
const RUNS_MAX: usize = 1_000_000;

/// Files that are placed in one transaction.
const PLACED_AT_ONCE: usize = 500;
/// Since when there are records that the tree does not follow yet.
const UNPLACED: &str = "unplaced";

/// File name of the newest published head.
pub const HEAD_FILE: &str = "catalog.head";

/// The head in `catalog.head`; `None` when there is none, an error when it is no head of this cell.
pub fn read_head_file(files: &dyn StateFiles) -> Result<Option<(BodyHash, Head, Vec<u8>)>, VaultError> {
    let read = files.read(HEAD_FILE).map_err(VaultError::io("cannot read catalog.head"))?;
    let Some(bytes) = read else { return Ok(None) };
    let (hash, head) = Head::open(&bytes)?;
    Ok(Some((hash, head, bytes)))
}

/// The newest head that this cell published: hash, sequence, bytes.
pub fn current_head(t: &Tables<'_>) -> Result<Option<(BodyHash, u64, Vec<u8>)>, DbError> {
    let (Some(hash), Some(bytes)) = (t.meta("head_hash")?, t.meta("head")?) else { return Ok(None) };
    let hash = BodyHash::from_slice(&hash).ok_or(DbError::Row("hash of the head"))?;
    Ok(Some((hash, t.meta_u64("head_seq")?.unwrap_or(0), bytes)))
}

struct NewSegment {
    run: u64,
    name: ChunkName,
    staged: Staged,
}

/// Publishes what is pending, and anew what lies in segments that were damaged. Tells whether there was anything.
pub fn publish(vault: &Vault) -> Result<bool, VaultError> {
    publish_with_parents(vault, &[])
}

/// Publishes a head that contains other heads too, even if nothing else is pending.
pub fn publish_with_parents(vault: &Vault, merged: &[BodyHash]) -> Result<bool, VaultError> {
    if vault.is_retired() {
        return Ok(false);
    }
    let _publishing = vault.publishing();
    let (published, top, segments, live_bytes) = vault.db.read(|t| -> Result<_, DbError> {
        let published = t.meta_u64("published")?.unwrap_or(0);
        Ok((published, t.top_seq(), t.segments()?, t.live_bytes()?))
    })?;
    let has_head = vault.db.read(current_head)?.is_some();
    let lacking = vault.db.read(|t| runs_that_lack(t, &segments))?;
    if top <= published && merged.is_empty() && has_head && lacking.is_empty() {
        return Ok(false);
    }
    let top = if top > published { note_run(vault, published)? } else { top };
    // Runs as they will be: (id, bytes, kept or to be written).
    let mut runs: Vec<(u64, u64, bool)> = Vec::new();
    for (run, _, len) in &segments {
        match runs.last_mut() {
            Some((id, bytes, _)) if id == run => *bytes += u64::from(*len),
            _ => runs.push((*run, u64::from(*len), !lacking.contains(run))),
        }
    }
    if top > published {
        let pending = vault.db.read(|t| t.bytes_between(published, top))?;
        runs.push((top, pending, false));
    }
    let mut forgets_up_to = None;
    loop {
        let sizes: Vec<Run> = runs.iter().map(|(_, bytes, _)| Run { bytes: *bytes }).collect();
        let Some(range) = plan_merge(&sizes, live_bytes) else { break };
        let to = runs[range.end - 1].0;
        let after = if range.start == 0 { 0 } else { runs[range.start - 1].0 };
        if range.start == 0 {
            forgets_up_to = Some(to);
        }
        let bytes = vault.db.read(|t| t.bytes_between(after, to))?;
        runs.splice(range, [(to, bytes, false)]);
        if runs.len() == 1 {
            break;
        }
    }
    let mut made = Vec::new();
    let mut after = 0;
    for (run, _, is_kept) in &runs {
        if !is_kept {
            made.extend(write_run(vault, after, *run, forgets_up_to)?);
        }
        after = *run;
    }
    finish_publication(vault, merged, &segments, &runs, made, top, forgets_up_to)?;
    Ok(true)
}

/// Says in the log, once a run of the program, from where on it wrote. Gives the newest number.
fn note_run(vault: &Vault, published: u64) -> Result<u64, DbError> {
    let key = record_key(RecordKind::Run, &vault.run);
    vault.db.change(|t| {
        if t.record_seq(&key)?.is_none() {
            t.add_record(&key, Writer::new().u8(1).u64(published + 1).as_slice())?;
        }
        Ok(t.top_seq())
    })
}

/// Runs of which a segment does not lie here, because its bytes went bad. No peer need have it; the records are here.
fn runs_that_lack(t: &Tables<'_>, segments: &[(u64, ChunkName, u32)]) -> Result<BTreeSet<u64>, DbError> {
    let mut lacking = BTreeSet::new();
    for (run, name, _) in segments {
        if t.chunk(name)?.is_none_or(|row| row.place.is_none()) {
            lacking.insert(*run);
        }
    }
    Ok(lacking)
}

/// Writes the records of one stretch of numbers into segments.
fn write_run(
    vault: &Vault,
    mut after: u64,
    to: u64,
    forgets_up_to: Option<u64>,
) -> Result<Vec<NewSegment>, VaultError> {
    let mut made = Vec::new();
    loop {
        let mut writer = SegmentWriter::default();
        let mut is_full = false;
        vault.db.read(|t| {
            t.records_after(after, |seq, key, body| -> Result<bool, VaultError> {
                if seq > to {
                    return Ok(false);
                }
                if !writer.has_room(key, body) {
                    is_full = true;
                    return Ok(false);
                }
                if !(body.is_empty() && forgets_up_to.is_some_and(|up_to| seq <= up_to)) {
                    writer.add(seq, key, body);
                }
                after = seq;
                Ok(true)
            })
        })?;
        if !writer.is_empty() {
            let (name, bytes) = writer.seal(&vault.master);
            made.push(NewSegment { run: to, name, staged: vault.store.stage_urgent(name, &bytes)? });
        }
        if !is_full {
            return Ok(made);
        }
    }
}

fn finish_publication(
    vault: &Vault,
    merged: &[BodyHash],
    old: &[(u64, ChunkName, u32)],
    runs: &[(u64, u64, bool)],
    made: Vec<NewSegment>,
    top: u64,
    forgets_up_to: Option<u64>,
) -> Result<(), VaultError> {
    let mut segments = Vec::new();
    let mut fresh: Vec<(ChunkName, u32)> = Vec::new();
    for (run, _, is_kept) in runs {
        if *is_kept {
            segments.extend(old.iter().filter(|(id, ..)| id == run).copied());
        } else {
            for segment in made.iter().filter(|segment| segment.run == *run) {
                segments.push((*run, segment.name, segment.staged.sealed_len()));
                fresh.push((segment.name, segment.staged.sealed_len()));
            }
        }
    }
    let _placing = vault.placing();
    let places = vault.store.commit(made.into_iter().map(|segment| segment.staged).collect())?;
    let bytes = vault.db.change_durably(|t| -> Result<_, VaultError> {
        for ((name, len), place) in fresh.iter().zip(&places) {
            let id = t.put_chunk(name, *len, place, Own::Segment)?;
            vault.mark(&[id]);
        }
        let kept: HashSet<ChunkName> = segments.iter().map(|(_, name, _)| *name).collect();
        for (_, name, _) in old.iter().filter(|(_, name, _)| !kept.contains(name)) {
            if let Some(row) = t.chunk(name)? {
                t.set_own(row.id, Own::No)?;
            }
        }
        t.set_segments(&segments)?;
        t.set_meta_u64("published", top.max(t.meta_u64("published")?.unwrap_or(0)))?;
        if let Some(up_to) = forgets_up_to {
            t.drop_forgotten(up_to)?;
        }
        let before = current_head(t)?;
        let seq =
            before.as_ref().map_or(0, |(_, seq, _)| *seq).max(t.meta_u64("seq_floor")?.unwrap_or(0)) + 1;
        let parents = before.iter().map(|(hash, ..)| *hash).chain(merged.iter().copied()).collect();
        let head = Head {
            owner: vault.id(),
            life: vault.life(),
            seq,
            run: vault.run,
            parents,
            segments: segments.iter().map(|(_, name, len)| (*name, *len)).collect(),
            extensions: Vec::new(),
        };
        let (hash, bytes) = head.sign(&vault.identity);
        t.set_meta("head", &bytes)?;
        t.set_meta("head_hash", &hash.0)?;
        t.set_meta_u64("head_seq", seq)?;
        t.note_head(&hash, head.life, seq)?;
        for hash in merged {
            t.note_head(hash, head.life, seq)?;
        }
        Ok(bytes)
    })?;
    vault.files.write_whole(HEAD_FILE, &bytes).map_err(VaultError::io("cannot write catalog.head"))
}

/// Takes the records of a head's segments into an empty catalog. `fetch` gives a segment's bytes.
pub fn adopt_segments(
    vault: &Vault,
    head: &Head,
    mut fetch: impl FnMut(&ChunkName) -> Result<Vec<u8>, VaultError>,
) -> Result<u64, VaultError> {
    let mut records = 0;
    for (name, _) in &head.segments {
        let plain = open_segment(&fetch(name)?, &vault.master)?;
        let mut batch: Vec<(u64, Vec<u8>, Vec<u8>)> = Vec::new();
        let flush = |batch: &mut Vec<(u64, Vec<u8>, Vec<u8>)>| {
            vault.db.change(|t| -> Result<(), DbError> {
                for (seq, key, body) in batch.drain(..) {
                    t.adopt_record(seq, &key, &body)?;
                }
                Ok(())
            })
        };
        read_segment(&plain, |seq, key, body| -> Result<(), VaultError> {
            records += 1;
            batch.push((seq, key.to_vec(), body.to_vec()));
            if batch.len() >= RECORDS_PER_CHANGE {
                flush(&mut batch)?;
            }
            Ok(())
        })?;
        flush(&mut batch)?;
    }
    Ok(records)
}

/// Records that came from elsewhere and that the tree does not follow yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Unplaced {
    /// Up to this number the other catalog knew what this one knows (`common_top`).
    common: u64,
    /// They have higher numbers than this; 0: nothing was here before, and all of it is to be placed.
    after: u64,
}

impl Unplaced {
    fn of(t: &Tables<'_>) -> Result<Option<Self>, DbError> {
        let Some(bytes) = t.meta(UNPLACED)? else { return Ok(None) };
        let mut from = Reader::new(&bytes);
        let mut number = || from.u64().map_err(|_| DbError::Row("records to be placed"));
        Ok(Some(Self { common: number()?, after: number()? }))
    }

    fn note(self, t: &Tables<'_>) -> Result<(), DbError> {
        t.set_meta(UNPLACED, Writer::new().u64(self.common).u64(self.after).as_slice())
    }
}

/// Whether there are records that came from elsewhere, and that the tree, the claims on chunks and what those want do not follow yet:
/// until they do, nothing may be let go because nobody seems to want it.
pub fn is_unplaced(t: &Tables<'_>) -> Result<bool, DbError> {
    Ok(t.meta(UNPLACED)?.is_some())
}

/// All records are placed: whatever was counted without them is counted again.
fn note_placed(vault: &Vault) -> Result<(), DbError> {
    vault.db.change(|t| {
        copies::ask(t)?;
        t.forget_meta(UNPLACED)
    })
}

/// Goes on with placing records where it broke off, if it did.
pub fn place_rest(vault: &Vault) -> Result<(), VaultError> {
    let _merging = vault.merging();
    place_unplaced(vault)
}

/// Places what came from elsewhere and is not placed yet. The caller holds `merging`.
fn place_unplaced(vault: &Vault) -> Result<(), VaultError> {
    let Some(Unplaced { common, after }) = vault.db.read(Unplaced::of)? else { return Ok(()) };
    if after == 0 {
        return tree_from_catalog(vault).map(drop);
    }
    let until = vault.db.read(|t| Ok::<_, DbError>(t.top_seq()))?;
    let mut after = after;
    while after < until {
        let mut files: Vec<FileId> = Vec::new();
        let before = after;
        vault.db.read(|t| {
            t.records_after(after, |seq, key, body| -> Result<bool, DbError> {
                after = seq;
                if key[0] == RecordKind::File as u8 && !body.is_empty() {
                    files.extend(file_of_key(key).filter(|file| files.last() != Some(file)));
                }
                Ok(files.len() < PLACED_AT_ONCE)
            })
        })?;
        if after == before {
            break;
        }
        vault.db.change(|t| {
            files.iter().try_for_each(|file| or_told(resolve(vault, t, *file, common)).map(drop))
        })?;
    }
    place_in_folders(vault)?;
    Ok(note_placed(vault)?)
}

/// A file whose record cannot be read is told of and left out: it must not keep all others from their places.
fn or_told<T>(placed: Result<T, VaultError>) -> Result<Option<T>, VaultError> {
    match placed {
        Err(VaultError::Record(why)) => {
            log::error!(
                "a file of the catalog cannot be placed in GroveHome, as its record cannot be read: {why}"
            );
            Ok(None)
        }
        placed => placed.map(Some),
    }
}

/// Notes a head whose records were adopted as the one this catalog goes on from. Its tree is to be made (`tree_from_catalog`).
pub fn adopt_head(
    vault: &Vault,
    hash: &BodyHash,
    head: &Head,
    bytes: &[u8],
    life: u32,
) -> Result<(), VaultError> {
    vault.db.change_durably(|t| -> Result<(), DbError> {
        let top = t.top_seq();
        let segments: Vec<_> = head.segments.iter().map(|(name, len)| (top, *name, *len)).collect();
        t.set_segments(&segments)?;
        t.set_meta_u64("published", top)?;
        t.set_meta("head", bytes)?;
        t.set_meta("head_hash", &hash.0)?;
        t.set_meta_u64("head_seq", head.seq)?;
        t.set_meta_u64("life", u64::from(life))?;
        t.note_head(hash, head.life, head.seq)?;
        for parent in &head.parents {
            t.note_head(parent, head.life, head.seq.saturating_sub(1))?;
        }
        for (name, len) in &head.segments {
            t.know_chunk(name, *len, Own::Segment)?;
        }
        Unplaced { common: 0, after: 0 }.note(t)
    })?;
    vault.set_life(life);
    Ok(())
}

/// Makes the tree anew from the catalog: every file that is not deleted, awaiting its bytes. For an empty tree, or one that
/// was begun so.
pub fn tree_from_catalog(vault: &Vault) -> Result<u64, VaultError> {
    let mut after = vec![RecordKind::File as u8];
    let mut count = 0;
    loop {
        let page = vault.db.read(|t| t.records_from(&after, RECORDS_PER_CHANGE))?;
        let Some((_, last)) = page.last() else { break };
        after.clone_from(last);
        let files: Vec<FileId> = {
            let mut files: Vec<FileId> = page
                .iter()
                .filter(|(_, key)| key[0] == RecordKind::File as u8)
                .filter_map(|(_, key)| file_of_key(key))
                .collect();
            files.dedup();
            files
        };
        let is_over = page.iter().any(|(_, key)| key[0] != RecordKind::File as u8);
        vault.db.change(|t| -> Result<(), VaultError> {
            for file in files {
                if t.node_of(file)?.is_none_or(|node| node.id == NodeId::ROOT) && t.bin(file)?.is_none() {
                    count += u64::from(or_told(place_newest(vault, t, file))?.unwrap_or(false));
                }
            }
            Ok(())
        })?;
        if is_over {
            break;
        }
    }
    place_in_folders(vault)?;
    note_placed(vault)?;
    Ok(count)
}

fn file_of_key(key: &[u8]) -> Option<FileId> {
    FileId::from_slice(key.get(1..17)?)
}

/// A version of a file in the catalog.
struct Version {
    seq: u64,
    hash: BodyHash,
    manifest: Manifest,
}

fn versions_of(vault: &Vault, t: &Tables<'_>, file: FileId) -> Result<Vec<Version>, VaultError> {
    let mut versions = Vec::new();
    for (seq, _) in t.records_with_prefix(&version_key_prefix(file), 100_000)? {
        let Some(bytes) = t.record_at(seq)?.filter(|bytes| bytes.len() > 64) else { continue };
        let manifest = Manifest::open(&bytes, &vault.master, Check::Signature)?;
        if manifest.file == file && manifest.owner == vault.id() {
            versions.push(Version { seq, hash: hash_of(&bytes), manifest });
        }
    }
    Ok(versions)
}

/// Puts a file's newest version into the tree or the bin; its folder is found later, when all are there.
fn place_newest(vault: &Vault, t: &Tables<'_>, file: FileId) -> Result<bool, VaultError> {
    let versions = versions_of(vault, t, file)?;
    for version in &versions {
        claim_chunks(vault, t, &version.manifest)?;
    }
    let Some(newest) = versions.iter().max_by_key(|v| (v.manifest.version, v.manifest.life, v.seq)) else {
        return Ok(false);
    };
    let m = &newest.manifest;
    if m.tombstone {
        t.put_bin(&BinRow {
            file,
            seq: newest.seq,
            at: vault.now(),
            parent: m.owner_part.parent,
            name: m.owner_part.name.clone(),
        })?;
        return Ok(false);
    }
    let mut node = node_for(vault, m, newest.seq);
    if t.record(&record_key(RecordKind::RemoteOnly, &file.0))?.is_some_and(|body| !body.is_empty()) {
        node.state = NodeState::RemoteOnly;
    }
    if file == FileId::ROOT {
        node.id = NodeId::ROOT;
        node.parent = NodeId(0);
        t.set_node(&node)?;
        return Ok(false);
    }
    // A folder of its own for each until its real one is known: no two names meet there.
    node.parent = NodeId(-(newest.seq as i64));
    t.add_node(&node)?;
    Ok(true)
}

fn node_for(vault: &Vault, m: &Manifest, seq: u64) -> Node {
    Node {
        id: NodeId(0),
        parent: NodeId::ROOT,
        name: m.owner_part.name.clone(),
        kind: m.kind,
        file: m.file,
        seq,
        version: m.version,
        state: NodeState::Awaiting,
        size: m.size,
        mtime: m.mtime,
        mode: m.mode,
        ctime: 0,
        ino: 0,
        btime: 0,
        dev: Device(0),
        first_at: vault.now(),
        last_at: vault.now(),
    }
}

/// Notes all chunks of a version as mine, wherever they lie. Lists that are not here yet are looked into when they come.
pub fn claim_chunks(vault: &Vault, t: &Tables<'_>, manifest: &Manifest) -> Result<(), VaultError> {
    for entry in &manifest.entries {
        let (name, own, len) = match entry {
            Entry::Chunk { name, len, .. } => (name, Own::Data, sealed_len(*len)),
            Entry::List { name, .. } => (name, Own::List, 0),
            Entry::Hole { .. } => continue,
        };
        let id = t.know_chunk(name, len, own)?;
        vault.mark(&[id]);
    }
    Ok(())
}

/// Sealed bytes of a chunk with this many bytes of a file.
pub fn sealed_len(len: u32) -> u32 {
    (crate::seal::padded_len(len as usize) + crate::seal::TAG_BYTES) as u32
}

/// Gives every node that waits for it its folder. What has none, or lies in a circle, goes to the top.
fn place_in_folders(vault: &Vault) -> Result<(), VaultError> {
    let mut after = NodeId(0);
    loop {
        let page = vault.db.read(|t| t.nodes_after(after, RECORDS_PER_CHANGE))?;
        let Some(last) = page.last() else { break };
        after = last.id;
        vault.db.change(|t| -> Result<(), VaultError> {
            for node in page.into_iter().filter(|node| node.parent.0 < 0) {
                let parent = match t.record_at(node.seq)? {
                    Some(bytes) => Manifest::open(&bytes, &vault.master, Check::Trusted)?.owner_part.parent,
                    None => FileId::ROOT,
                };
                let parent =
                    t.node_of(parent)?.filter(|n| n.kind == Kind::Folder).map_or(NodeId::ROOT, |n| n.id);
                put_in_folder(t, node, parent)?;
            }
            Ok(())
        })?;
    }
    // Circles can only come from merging two lives.
    let mut after = NodeId::ROOT;
    loop {
        let page = vault.db.read(|t| t.nodes_after(after, RECORDS_PER_CHANGE))?;
        let Some(last) = page.last() else { return Ok(()) };
        after = last.id;
        vault.db.change(|t| -> Result<(), VaultError> {
            for node in page {
                if node.kind == Kind::Folder && t.path(node.id)?.is_none() {
                    put_in_folder(t, node, NodeId::ROOT)?;
                }
            }
            Ok(())
        })?;
    }
}

/// Puts a node into a folder; where the name is taken it gets its file id into it.
fn put_in_folder(t: &Tables<'_>, mut node: Node, parent: NodeId) -> Result<(), VaultError> {
    if let Some(other) = t.child(parent, &node.name)? {
        if other.id == node.id {
            node.parent = parent;
            return Ok(t.set_node(&node)?);
        }
        let mark = format!(" ({})", node.file.short());
        node.name.truncate(crate::manifest::NAME_BYTES_MAX - mark.len());
        node.name.extend_from_slice(mark.as_bytes());
    }
    node.parent = parent;
    Ok(t.set_node(&node)?)
}

/// Up to this number the log here and the one in the table of foreign records are one: what was written so far was known to
/// whoever wrote the other. Each run that published says from where on it wrote; the two part where the first run begins that
/// only one of them has. 0 where the other says nothing of its runs.
fn common_top(t: &Tables<'_>) -> Result<u64, DbError> {
    let first_of = |body: &[u8]| {
        let mut from = Reader::new(body);
        if from.u8()? != 1 {
            return Err(BadBytes("version of a run's record"));
        }
        from.u64()
    };
    let prefix = [RecordKind::Run as u8];
    // What is not published yet nobody knows.
    let mut first = t.meta_u64("published")?.unwrap_or(0) + 1;
    for (seq, key) in t.records_with_prefix(&prefix, RUNS_MAX)? {
        if !t.has_foreign(&key)? {
            first = first.min(t.record_at(seq)?.and_then(|body| first_of(&body).ok()).unwrap_or(1));
        }
    }
    let mut tells = false;
    let mut after = prefix.to_vec();
    loop {
        let page = t.foreign_after(&after, RECORDS_PER_CHANGE)?;
        let runs = page.iter().take_while(|(key, _)| key[0] == prefix[0]);
        for (key, body) in runs.clone() {
            tells = true;
            if t.record_seq(key)?.is_none() {
                first = first.min(first_of(body).unwrap_or(1));
            }
        }
        match page.last() {
            Some((last, _)) if runs.count() == page.len() => after.clone_from(last),
            _ => return Ok(if tells { first.saturating_sub(1) } else { 0 }),
        }
    }
}

/// Takes in a head of mine that another machine, or an older life, wrote: the union of files; where both changed a file,
/// this cell's version stays the newest and the other is a version before it.
pub fn merge_head(
    vault: &Vault,
    hash: &BodyHash,
    head: &Head,
    fetch: impl FnMut(&ChunkName) -> Result<Vec<u8>, VaultError>,
    new_life: bool,
) -> Result<(), VaultError> {
    let _merging = vault.merging();
    // What another merge left: this one begins behind it.
    place_unplaced(vault)?;
    add_foreign(vault, head, fetch)?;
    place_unplaced(vault)?;
    go_on_behind(vault, head, new_life)?;
    publish_with_parents(vault, &[*hash])?;
    Ok(())
}

/// Goes on in a new life, as somebody else has written `head` in this one, though nothing of it can be read.
pub fn begin_life(vault: &Vault, head: &Head) -> Result<(), VaultError> {
    let _merging = vault.merging();
    go_on_behind(vault, head, true)?;
    // The other must see it, so it is published even if nothing else changed.
    if !publish(vault)? {
        let own = vault.db.read(current_head)?.map(|(hash, ..)| hash);
        publish_with_parents(vault, own.as_slice())?;
    }
    Ok(())
}

fn go_on_behind(vault: &Vault, head: &Head, new_life: bool) -> Result<(), VaultError> {
    if new_life {
        let life = head.life.max(vault.life()) + 1;
        vault.db.change_durably(|t| -> Result<(), DbError> { t.set_meta_u64("life", u64::from(life)) })?;
        vault.set_life(life);
    }
    Ok(vault.db.change(|t| t.set_meta_u64("seq_floor", head.seq))?)
}

/// Adds the records of a foreign head that are not known here, to be placed.
fn add_foreign(
    vault: &Vault,
    head: &Head,
    mut fetch: impl FnMut(&ChunkName) -> Result<Vec<u8>, VaultError>,
) -> Result<(), VaultError> {
    vault.db.change(|t| t.clear_foreign())?;
    for (name, _) in &head.segments {
        let plain = open_segment(&fetch(name)?, &vault.master)?;
        vault.db.change(|t| {
            read_segment(&plain, |seq, key, body| -> Result<(), VaultError> {
                Ok(t.put_foreign(seq, key, body)?)
            })
        })?;
    }
    vault.db.change(|t| Unplaced { common: common_top(t)?, after: t.top_seq() }.note(t))?;
    let mut after = Vec::new();
    loop {
        let page = vault.db.read(|t| t.foreign_after(&after, RECORDS_PER_CHANGE))?;
        let Some((last, _)) = page.last() else { break };
        after.clone_from(last);
        vault.db.change(|t| -> Result<(), VaultError> {
            for (key, body) in page {
                // A key that was forgotten here stays forgotten, and one that is known here counts. Runs belong to their log.
                if body.is_empty() || key[0] == RecordKind::Run as u8 || t.record_seq(&key)?.is_some() {
                    continue;
                }
                t.add_record(&key, &body)?;
            }
            Ok(())
        })?;
    }
    Ok(vault.db.change(|t| t.clear_foreign())?)
}

/// Decides which version of a file is the newest after a merge. `common`: up to this number of a record the other catalog
/// knew what this one knows, so what it says of such a file is what became of it.
fn resolve(vault: &Vault, t: &Tables<'_>, file: FileId, common: u64) -> Result<(), VaultError> {
    let versions = versions_of(vault, t, file)?;
    for version in &versions {
        claim_chunks(vault, t, &version.manifest)?;
    }
    let (node, bin) = (t.node_of(file)?, t.bin(file)?);
    let Some(seq) = node.as_ref().map(|node| node.seq).or_else(|| bin.map(|row| row.seq)) else {
        return place_newest(vault, t, file).map(drop);
    };
    if file == FileId::ROOT {
        return Ok(());
    }
    let Some(own) = versions.iter().find(|v| v.seq == seq) else { return Ok(()) };
    let Some(other) = versions
        .iter()
        .filter(|v| v.seq != own.seq && !v.manifest.tombstone)
        .max_by_key(|v| (v.manifest.version, v.manifest.life, v.seq))
    else {
        return Ok(());
    };
    let Some(node) = node else {
        // Deleted here, and there brought back or changed: what is wanted somewhere is not let go.
        if other.manifest.version > own.manifest.version {
            t.take_bin(file)?;
            place_newest(vault, t, file)?;
        }
        return Ok(());
    };
    if other.manifest.version > own.manifest.version
        && (own.seq <= common || descends(&versions, other, own.hash))
    {
        // The other went on from what we have: take it over, on disk when the file there is still as we know it.
        let mut node = node;
        node.seq = other.seq;
        node.version = other.manifest.version;
        if node.state == NodeState::Present && node.kind != Kind::Folder {
            node.state = NodeState::Awaiting;
        } else if node.kind != Kind::Folder {
            (node.size, node.mtime, node.mode) =
                (other.manifest.size, other.manifest.mtime, other.manifest.mode);
        }
        let parent = t.node_of(other.manifest.owner_part.parent)?.map_or(node.parent, |n| n.id);
        node.name.clone_from(&other.manifest.owner_part.name);
        return put_in_folder(t, node, parent);
    }
    if other.manifest.version >= own.manifest.version {
        let mut manifest = own.manifest.clone();
        manifest.version = other.manifest.version + 1;
        manifest.life = vault.life();
        manifest.previous = Some(own.hash);
        let new = version::NewVersion::from_manifest(vault, &manifest);
        let mut node = node;
        node.seq = t.add_record(&version_key(file, new.version, new.signed.hash), &new.signed.bytes)?;
        node.version = new.version;
        t.set_node(&node)?;
    }
    Ok(())
}

/// Whether `version` goes back to `ancestor` by the hashes of previous versions.
fn descends(versions: &[Version], version: &Version, ancestor: BodyHash) -> bool {
    let mut at = version.manifest.previous;
    for _ in 0..versions.len() {
        match at {
            Some(hash) if hash == ancestor => return true,
            Some(hash) => at = versions.iter().find(|v| v.hash == hash).and_then(|v| v.manifest.previous),
            None => return false,
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::config::Config;
    use crate::simulation::files;
    use crate::store::MemoryStore;

    /// A machine of the same person.
    fn machine() -> Vault {
        Vault::in_memory(Arc::new(MemoryStore::new()), Config::default())
    }

    /// A folder that wants three copies, with a file in it, published. Gives both and the head.
    fn with_a_film(vault: &Vault) -> (FileId, files::Kept, BodyHash, Head, Vec<u8>) {
        let folder = files::folder(vault, b"films").unwrap();
        let node = vault.db.read(|t| t.node(folder)).unwrap().unwrap();
        copies::set(vault, &node, Some(3)).unwrap();
        let film = files::keep_in(vault, folder, b"film", &[vec![5; 300]]).unwrap();
        publish(vault).unwrap();
        let (hash, _, bytes) = vault.db.read(current_head).unwrap().unwrap();
        (node.file, film, hash, Head::open(&bytes).unwrap().1, bytes)
    }

    fn fetch(from: &Vault) -> impl FnMut(&ChunkName) -> Result<Vec<u8>, VaultError> {
        |name| from.local_chunk(name)?.ok_or_else(|| VaultError::Refused("it is not there".into()))
    }

    fn path_of(vault: &Vault, file: FileId) -> Option<Vec<Vec<u8>>> {
        vault
            .db
            .read(|t| match t.node_of(file)? {
                Some(node) => t.path(node.id),
                None => Ok::<_, DbError>(None),
            })
            .unwrap()
    }

    fn number_of(vault: &Vault, folder: FileId) -> Option<u8> {
        vault.db.read(copies::Numbers::load).unwrap().of(folder)
    }

    /// Whether a chunk is known as a part of a file of mine, and what it wants.
    fn known_as(vault: &Vault, chunk: ChunkName) -> Option<(Own, Option<u8>)> {
        vault
            .db
            .read(|t| match t.chunk(&chunk)? {
                Some(row) => Ok::<_, DbError>(Some((t.own(row.id)?, t.want(row.id)?))),
                None => Ok(None),
            })
            .unwrap()
    }

    #[test]
    fn a_merge_that_broke_off_is_gone_on_with_and_nothing_is_let_go_before() {
        let (here, there) = (machine(), machine());
        files::keep_in(&here, NodeId::ROOT, b"mine", &[vec![1; 300]]).unwrap();
        publish(&here).unwrap();
        let (folder, film, hash, head, _) = with_a_film(&there);
        add_foreign(&here, &head, fetch(&there)).unwrap();

        // The process has ended here. Whatever is done before the files have their places takes nothing away.
        assert_eq!(path_of(&here, film.file), None);
        assert!(here.db.read(is_unplaced).unwrap());
        assert!(!copies::settle(&here).unwrap());
        copies::tidy(&here).unwrap();
        crate::gc::collect(&here).unwrap();
        publish(&here).unwrap();
        assert!(!copies::settle(&here).unwrap());
        assert_eq!(number_of(&here, folder), Some(3));

        place_rest(&here).unwrap();
        assert!(!here.db.read(is_unplaced).unwrap());
        assert_eq!(path_of(&here, film.file), Some(vec![b"films".to_vec(), b"film".to_vec()]));
        assert!(copies::settle(&here).unwrap());
        assert_eq!(known_as(&here, film.chunks[0]), Some((Own::Data, Some(3))));

        // The head is still one that was not taken in: when it comes again, there is nothing left to do but to say so.
        assert!(!here.db.read(|t| t.knows_head(&hash)).unwrap());
        let before = here.db.read(|t| t.tree_size()).unwrap();
        merge_head(&here, &hash, &head, fetch(&there), false).unwrap();
        assert!(here.db.read(|t| t.knows_head(&hash)).unwrap());
        assert_eq!(here.db.read(|t| t.tree_size()).unwrap(), before);
        copies::tidy(&here).unwrap();
        assert_eq!(number_of(&here, folder), Some(3));
    }

    #[test]
    fn a_tree_that_was_being_made_anew_is_made_to_its_end() {
        let (here, there) = (machine(), machine());
        let (folder, film, hash, head, bytes) = with_a_film(&there);
        adopt_segments(&here, &head, fetch(&there)).unwrap();
        adopt_head(&here, &hash, &head, &bytes, 1).unwrap();
        copies::tidy(&here).unwrap();
        assert_eq!((path_of(&here, film.file), number_of(&here, folder)), (None, Some(3)));
        place_rest(&here).unwrap();
        assert_eq!(path_of(&here, film.file), Some(vec![b"films".to_vec(), b"film".to_vec()]));
        assert!(copies::settle(&here).unwrap());
        assert_eq!(known_as(&here, film.chunks[0]), Some((Own::Data, Some(3))));
        // Once it is done nothing is made anew.
        assert!(!here.db.read(is_unplaced).unwrap());
        place_rest(&here).unwrap();
    }
}

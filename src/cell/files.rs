//! What a person does with files: add, list, read, remove, restore. Pool work unless it says otherwise.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use super::json::{Obj, list};
use crate::catalog::version_key_prefix;
use crate::config::BRAKE_FILES_FREE;
use crate::copies::{self, Numbers};
use crate::files::import::EntryCursor;
use crate::files::unix::{Folder, TEMP_PREFIX, names_of, show, to_wire};
use crate::files::version::{self, Known, NewVersion, hash_of};
use crate::files::walk::Problem;
use crate::files::{brake, deletion};
use crate::id::{ChunkName, FileId};
use crate::manifest::{Check, Entry, FileTime, Kind, Manifest};
use crate::placement::{BinRow, ChunkId, DbError, Extra, Node, NodeId, NodeState, Tables, Want};
use crate::publish;
use crate::vault::{Vault, VaultError};

/// Chunks of a freed file that go at once.
const FREED_AT_ONCE: usize = 1024;
/// Of what lies in the bin so much is looked at to see whether all is back: more of it is too much in any case.
const BIN_LOOKED_AT: usize = 10_000;
/// A deleted file with more versions is not taken for put back by hand.
const BIN_VERSIONS: usize = 50;
/// Folders above what was deleted.
const FOLDERS_DEEP: usize = 4096;

/// Splits a path below GroveHome into names; refuses what leads out of it.
pub fn path_names(path: &[u8]) -> Result<Vec<Vec<u8>>, VaultError> {
    let path = Path::new(std::ffi::OsStr::from_bytes(path));
    names_of(path).ok_or_else(|| VaultError::Refused(format!("{} does not lie in GroveHome", path.display())))
}

/// The node at a path, or words that say there is none.
pub fn node_at(t: &Tables<'_>, path: &[u8]) -> Result<Node, VaultError> {
    let names = path_names(path)?;
    t.node_at(&names)?.ok_or_else(|| {
        VaultError::Refused(format!(
            "there is no {} in GroveHome; `grove ls` lists what is there, `grove bin` what was deleted",
            show(&names)
        ))
    })
}

/// What `add` found to do: which names of GroveHome to look at, and what could not be brought in.
#[derive(Debug, Default)]
pub struct Added {
    /// Paths below GroveHome to be kept.
    pub inside: Vec<Vec<Vec<u8>>>,
    /// Not brought in.
    pub problems: Vec<Problem>,
    /// Files copied into GroveHome, and their bytes.
    pub copied: (u64, u64),
}

/// Brings paths into GroveHome: what lies in it already stays where it is, the rest is copied into `to`.
pub fn bring_in(vault: &Vault, paths: &[PathBuf], to: &[u8]) -> Result<Added, VaultError> {
    let home = fs::canonicalize(&vault.home)
        .map_err(VaultError::io(format!("cannot open GroveHome {}", vault.home.display())))?;
    let to = path_names(to)?;
    let mut added = Added::default();
    for path in paths {
        // The folder is resolved and the name is not: a link is brought in as a link.
        let resolved = match (path.parent(), path.file_name()) {
            (Some(parent), Some(name)) if !parent.as_os_str().is_empty() => {
                fs::canonicalize(parent).map(|parent| parent.join(name))
            }
            _ => fs::canonicalize(path),
        };
        let resolved = match resolved {
            Ok(resolved) => resolved,
            Err(why) => {
                added.problems.push(Problem { path: path.display().to_string(), why: why.to_string() });
                continue;
            }
        };
        let in_home = if *path == vault.home {
            Some(PathBuf::new())
        } else {
            resolved.strip_prefix(&home).ok().map(Path::to_owned)
        };
        match in_home {
            Some(below) => match names_of(&below) {
                Some(names) if resolved.symlink_metadata().is_ok() || below.as_os_str().is_empty() => {
                    added.inside.push(names)
                }
                _ => added
                    .problems
                    .push(Problem { path: path.display().to_string(), why: "there is no such file".into() }),
            },
            None => {
                let Some(name) = resolved.file_name() else { continue };
                let mut names = to.clone();
                names.push(name.as_bytes().to_vec());
                let root = Folder::open_root(&home).map_err(VaultError::io("cannot open GroveHome"))?;
                let folder = root
                    .walk_or_create(&to)
                    .map_err(VaultError::io("cannot make the folder in GroveHome"))?;
                copy_in(&resolved, &folder, name.as_bytes(), &mut added);
                added.inside.push(names);
            }
        }
    }
    Ok(added)
}

fn copy_in(from: &Path, folder: &Folder, name: &[u8], added: &mut Added) {
    if let Err(why) = try_copy(from, folder, name, added) {
        let why = match why.kind() {
            io::ErrorKind::AlreadyExists => {
                "another file has its name in GroveHome; it is kept as it is".into()
            }
            _ => why.to_string(),
        };
        added.problems.push(Problem { path: from.display().to_string(), why });
    }
}

fn try_copy(from: &Path, folder: &Folder, name: &[u8], added: &mut Added) -> io::Result<()> {
    use std::os::unix::fs::MetadataExt;
    let meta = from.symlink_metadata()?;
    let mtime = FileTime { s: meta.mtime(), ns: meta.mtime_nsec() as u32 };
    let there = folder.stat_if_there(name)?;
    if meta.is_dir() {
        folder.create_folder(name)?;
        let inner = folder.open(name)?;
        for entry in fs::read_dir(from)? {
            let entry = entry?;
            copy_in(&entry.path(), &inner, entry.file_name().as_bytes(), added);
        }
        return inner.set_self(meta.mode() & 0o7777, mtime);
    }
    if let Some(stat) = &there {
        if stat.size == meta.size() && stat.mtime == mtime {
            return Ok(());
        }
        return Err(io::ErrorKind::AlreadyExists.into());
    }
    if meta.is_symlink() {
        folder.create_link(fs::read_link(from)?.as_os_str().as_bytes(), name)?;
        return folder.set_mtime(name, mtime);
    }
    if !meta.is_file() {
        return Err(io::Error::other("no file, link or folder; it is not kept"));
    }
    let mut source = fs::File::open(from)?;
    let temp = folder.create_temp()?;
    // Shares the blocks where the file system can; std copies within the kernel otherwise.
    if rustix::fs::ioctl_ficlone(temp.file(), &source).is_err() {
        io::copy(&mut source, &mut temp.file())?;
    }
    temp.set(meta.mode() & 0o7777, mtime)?;
    temp.file().sync_data()?;
    temp.put(folder, name, false)?;
    added.copied.0 += 1;
    added.copied.1 += meta.size();
    Ok(())
}

pub(super) fn kind_text(kind: Kind) -> &'static str {
    match kind {
        Kind::File => "file",
        Kind::Symlink => "symlink",
        Kind::Folder => "folder",
    }
}

fn state_text(state: NodeState) -> &'static str {
    match state {
        NodeState::Present => "present",
        NodeState::RemoteOnly => "remote-only",
        NodeState::Awaiting => "awaiting",
    }
}

/// A page of a folder.
pub fn list_folder(vault: &Vault, folder: &[u8], after: &[u8], limit: usize) -> Result<String, VaultError> {
    vault.db.read(|t| {
        let node = node_at(t, folder)?;
        let entries = if node.kind == Kind::Folder { t.children(node.id, after, limit)? } else { vec![node] };
        let more = entries.len() == limit;
        let mut items = Vec::with_capacity(entries.len());
        for node in &entries {
            let copies = least_copies(t, node)?;
            items.push(
                Obj::new()
                    .str("name", &to_wire(&node.name))
                    .str("kind", kind_text(node.kind))
                    .num("size", if node.kind == Kind::Folder { 0 } else { node.size })
                    .num("mtime_s", node.mtime.s)
                    .num("mtime_ns", node.mtime.ns)
                    .num("mode", node.mode)
                    .num("version", node.version)
                    .str("state", state_text(node.state))
                    .str("id", &node.file.to_string())
                    .num("copies", copies)
                    .end(),
            );
        }
        Ok(Obj::new().raw("entries", list(items)).bool("more", more).end())
    })
}

/// The least number of places that any chunk of a file lies in, this cell's store among them.
pub(super) fn least_copies(t: &Tables<'_>, node: &Node) -> Result<u64, VaultError> {
    if node.kind != Kind::File || node.size == 0 {
        return Ok(0);
    }
    let Some(bytes) = t.record_at(node.seq)? else { return Ok(0) };
    let parsed = crate::manifest::Parsed::read(&bytes)?;
    let mut least = u64::MAX;
    for name in parsed.chunks() {
        let copies = match t.chunk(&name)? {
            Some(row) => t.copies_of(row.id)?.len() as u64 + u64::from(row.place.is_some()),
            None => 0,
        };
        least = least.min(copies);
    }
    Ok(if least == u64::MAX { 0 } else { least })
}

/// A file named by path or id, with the numbers of all its versions, newest first.
pub fn find_versions(
    t: &Tables<'_>,
    path: Option<&[u8]>,
    id: Option<FileId>,
) -> Result<(FileId, Option<Node>, Vec<u64>), VaultError> {
    let file = match (id, path) {
        (Some(id), _) => id,
        (None, Some(path)) => match node_at(t, path) {
            Ok(node) => node.file,
            Err(why) => deleted_at(t, path)?.ok_or(why)?,
        },
        (None, None) => return Err(VaultError::Refused("name a file".into())),
    };
    let mut records = t.records_with_prefix(&version_key_prefix(file), 100_000)?;
    records.reverse();
    if records.is_empty() {
        return Err(VaultError::Refused("there is no such file".into()));
    }
    Ok((file, t.node_of(file)?, records.into_iter().map(|(seq, _)| seq).collect()))
}

/// The newest deleted file that had this path.
fn deleted_at(t: &Tables<'_>, path: &[u8]) -> Result<Option<FileId>, VaultError> {
    let names = path_names(path)?;
    let Some((name, folders)) = names.split_last() else { return Ok(None) };
    let mut parent = FileId::ROOT;
    for folder in folders {
        let live = match t.node_of(parent)? {
            Some(node) => t.child(node.id, folder)?.map(|node| node.file),
            None => None,
        };
        parent = match live {
            Some(file) => file,
            None => match t.bin_named(parent, folder)?.first() {
                Some(row) => row.file,
                None => return Ok(None),
            },
        };
    }
    Ok(t.bin_named(parent, name)?.first().map(|row| row.file))
}

/// A manifest by number.
pub fn manifest_at(
    vault: &Vault,
    t: &Tables<'_>,
    seq: u64,
) -> Result<Option<(Manifest, crate::id::BodyHash)>, VaultError> {
    match t.record_at(seq)?.filter(|bytes| bytes.len() > 64) {
        Some(bytes) => Ok(Some((Manifest::open(&bytes, &vault.master, Check::Trusted)?, hash_of(&bytes)))),
        None => Ok(None),
    }
}

/// All versions of a file as JSON.
pub fn list_versions(vault: &Vault, path: Option<&[u8]>, id: Option<FileId>) -> Result<String, VaultError> {
    vault.db.read(|t| {
        let (file, node, seqs) = find_versions(t, path, id)?;
        let mut versions = Vec::new();
        let mut name = String::new();
        for seq in seqs {
            let Some((m, hash)) = manifest_at(vault, t, seq)? else { continue };
            if name.is_empty() {
                name = to_wire(&m.owner_part.name);
            }
            versions.push(
                Obj::new()
                    .num("version", m.version)
                    .num("life", m.life)
                    .str("hash", &hash.to_string())
                    .num("size", m.size)
                    .num("mtime_s", m.mtime.s)
                    .num("mtime_ns", m.mtime.ns)
                    .num("mode", m.mode)
                    .str("kind", kind_text(m.kind))
                    .str("name", &to_wire(&m.owner_part.name))
                    .bool("tombstone", m.tombstone)
                    .bool("current", node.as_ref().is_some_and(|node| node.seq == seq))
                    .end(),
            );
        }
        let path = match &node {
            Some(node) => t.path(node.id)?.map_or(name, |names| to_wire(&names.join(&b'/'))),
            None => name,
        };
        Ok(Obj::new()
            .str("path", &path)
            .str("id", &file.to_string())
            .bool("deleted", node.is_none())
            .raw("versions", list(versions))
            .end())
    })
}

/// A version's manifest: of the number given (the newer of two with one number), or the newest that is not a deletion.
pub fn pick_version(
    vault: &Vault,
    path: Option<&[u8]>,
    id: Option<FileId>,
    version: Option<u64>,
) -> Result<Manifest, VaultError> {
    vault.db.read(|t| {
        let (_, node, seqs) = find_versions(t, path, id)?;
        for seq in seqs {
            let Some((m, _)) = manifest_at(vault, t, seq)? else { continue };
            let fits = match version {
                Some(version) => m.version == version,
                None => node.as_ref().map_or(!m.tombstone, |node| node.seq == seq),
            };
            if fits && m.tombstone {
                return Err(VaultError::Refused(format!(
                    "version {} is the deletion of the file; choose another",
                    m.version
                )));
            }
            if fits {
                return Ok(m);
            }
        }
        Err(VaultError::Refused("there is no such version; `grove versions` lists them".into()))
    })
}

/// Where a page of the Recycle Bin begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BinFrom {
    /// By their ids, behind this one.
    After(FileId),
    /// The newest first, behind so many.
    Newest(usize),
}

/// The Recycle Bin as JSON: by id what comes after one, or the newest first.
pub fn list_bin(vault: &Vault, from: BinFrom, limit: usize) -> Result<String, VaultError> {
    let now = vault.now();
    vault.db.read(|t| {
        let rows = match from {
            BinFrom::After(after) => t.bin_after(after, limit)?,
            BinFrom::Newest(offset) => t.bin_newest(offset, limit)?,
        };
        let more = rows.len() == limit;
        let mut entries = Vec::new();
        for row in rows {
            let seqs = t.records_with_prefix(&version_key_prefix(row.file), 100_000)?;
            let size = match seqs.iter().rev().find(|(seq, _)| *seq != row.seq) {
                Some((seq, _)) => manifest_at(vault, t, *seq)?.map_or(0, |(m, _)| m.size),
                None => 0,
            };
            let folder = bin_path(t, &row)?.map_or("(deleted folder)".into(), |mut names| {
                names.pop();
                to_wire(&names.join(&b'/'))
            });
            entries.push(
                Obj::new()
                    .str("id", &row.file.to_string())
                    .str("name", &to_wire(&row.name))
                    .str("folder", &folder)
                    .num("deleted_s_ago", now.saturating_sub(row.at))
                    .num("size", size)
                    .end(),
            );
        }
        Ok(Obj::new().raw("entries", list(entries)).bool("more", more).end())
    })
}

/// Files and their bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Weight {
    /// Files and links.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Weight {
    fn and(self, more: Self) -> Self {
        Self { files: self.files.saturating_add(more.files), bytes: self.bytes.saturating_add(more.bytes) }
    }

    fn less(self, some: Self) -> Self {
        Self { files: self.files.saturating_sub(some.files), bytes: self.bytes.saturating_sub(some.bytes) }
    }

    /// Whether it is no more than this, of either.
    fn fits(self, most: Self) -> bool {
        self.files <= most.files && self.bytes <= most.bytes
    }
}

/// What became of one of several: what was done, or why nothing was.
pub type Removal = Result<Weight, VaultError>;

/// What became of a removal.
#[derive(Debug)]
pub enum Removed {
    /// Each of several by itself.
    Each(Vec<Removal>),
    /// Nothing was removed: so much would go now, and a person meant less.
    More(Weight),
}

/// Files and bytes that would go with these paths, together with so many already, and whether that would pull the brake.
pub fn weigh_removal(vault: &Vault, paths: &[Vec<u8>], already: Weight) -> Result<String, VaultError> {
    let sum = already.and(weigh_paths(vault, paths)?);
    let (brake, there) = vault.db.read(|t| Ok::<_, DbError>((brake::load(t)?, t.tree_size()?)))?;
    Ok(Obj::new()
        .num("files", sum.files)
        .num("bytes", sum.bytes)
        .num("all_files", there.0)
        .bool("pulls_brake", brake.would_pull((sum.files, sum.bytes), vault.now(), there))
        .end())
}

/// What lies at these paths and below them, each file once.
fn weigh_paths(vault: &Vault, paths: &[Vec<u8>]) -> Result<Weight, VaultError> {
    let mut sum = Weight::default();
    for path in outermost(paths) {
        // What is gone meanwhile weighs nothing.
        let Ok(node) = vault.db.read(|t| node_at(t, path)) else { continue };
        sum = sum.and(tree_weight(&node, |id, after| vault.db.read(|t| t.children(id, after, 500)))?);
    }
    Ok(sum)
}

/// The paths that do not lie in another of them, each once.
fn outermost(paths: &[Vec<u8>]) -> Vec<&[u8]> {
    let all: BTreeSet<&[u8]> = paths.iter().map(Vec::as_slice).collect();
    let is_inside = |path: &[u8]| {
        let mut ends = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
        ends.any(|end| all.contains(&path[..end]))
    };
    all.iter().copied().filter(|path| !is_inside(path)).collect()
}

/// What a tree weighs; `page` gives what comes after a name in a folder.
fn tree_weight(
    top: &Node,
    page: impl Fn(NodeId, &[u8]) -> Result<Vec<Node>, DbError>,
) -> Result<Weight, DbError> {
    let mut sum = Weight::default();
    if top.kind != Kind::Folder {
        return Ok(Weight { files: 1, bytes: top.size });
    }
    // Folders that are looked through, each up to a name.
    let mut stack = vec![(top.id, Vec::new())];
    while let Some((id, after)) = stack.pop() {
        let some = page(id, &after)?;
        if let Some(last) = some.last() {
            stack.push((id, last.name.clone()));
        }
        for child in some {
            match child.kind {
                Kind::Folder => stack.push((child.id, Vec::new())),
                _ => sum = sum.and(Weight { files: 1, bytes: child.size }),
            }
        }
    }
    Ok(sum)
}

/// How many of the files that were deleted since are gone still; `None`: more than the brake lets go for.
fn count_missing(vault: &Vault, since: u64) -> Result<Option<u64>, VaultError> {
    let rows = vault.db.read(|t| t.bin_since(since, BIN_LOOKED_AT))?;
    if rows.len() >= BIN_LOOKED_AT {
        return Ok(None);
    }
    let mut missing = 0;
    // The database is free in between.
    for some in rows.chunks(100) {
        missing += vault.db.read(|t| -> Result<u64, VaultError> {
            let mut missing = 0;
            for row in some {
                let is_folder = manifest_at(vault, t, row.seq)?.is_some_and(|(m, _)| m.kind == Kind::Folder);
                missing += u64::from(!is_folder && !is_put_back(vault, t, row)?);
            }
            Ok(missing)
        })?;
        if missing > BRAKE_FILES_FREE {
            return Ok(None);
        }
    }
    Ok(Some(missing))
}

/// Whether a deleted file was put back by hand: one of the same content lies where it lay. Not where the bin has another
/// version of it, which would go with the bin and be nowhere else.
fn is_put_back(vault: &Vault, t: &Tables<'_>, row: &BinRow) -> Result<bool, VaultError> {
    let Some(node) = bin_path(t, row)?.map(|names| t.node_at(&names)).transpose()?.flatten() else {
        return Ok(false);
    };
    let Some((there, _)) = manifest_at(vault, t, node.seq)? else { return Ok(false) };
    let records = t.records_with_prefix(&version_key_prefix(row.file), BIN_VERSIONS + 1)?;
    if records.len() > BIN_VERSIONS {
        return Ok(false);
    }
    let mut is_there = false;
    for (seq, _) in records {
        let Some((old, _)) = manifest_at(vault, t, seq)? else { return Ok(false) };
        // A file that is made is empty for a moment: nothing is lost with that.
        let is_nothing = old.kind == Kind::File && old.size == 0 && there.size > 0;
        if old.tombstone || is_nothing {
            continue;
        }
        let is_same = old.kind == there.kind
            && old.size == there.size
            && old.target == there.target
            && old.entries == there.entries;
        if !is_same {
            return Ok(false);
        }
        is_there = true;
    }
    Ok(is_there)
}

/// Where something deleted lay, by names: its folders may be deleted, too.
fn bin_path(t: &Tables<'_>, row: &BinRow) -> Result<Option<Vec<Vec<u8>>>, DbError> {
    let mut below = vec![row.name.clone()];
    let mut parent = row.parent;
    while below.len() < FOLDERS_DEEP {
        if let Some(node) = t.node_of(parent)? {
            let Some(mut names) = t.path(node.id)? else { return Ok(None) };
            names.extend(below.into_iter().rev());
            return Ok(Some(names));
        }
        let Some(folder) = t.bin(parent)? else { return Ok(None) };
        below.push(folder.name);
        parent = folder.parent;
    }
    Ok(None)
}

/// How deep something deleted lay; 0 for what is not in the bin.
pub fn bin_depth(vault: &Vault, file: FileId) -> Result<usize, DbError> {
    vault.db.read(|t| match t.bin(file)? {
        Some(row) => Ok(bin_path(t, &row)?.map_or(0, |names| names.len())),
        None => Ok(0),
    })
}

/// Lets the brake go where all that was deleted is back. Whether it did.
pub fn release_brake(vault: &Vault) -> Result<bool, VaultError> {
    let seen = vault.db.read(brake::load)?;
    let Some(since) = seen.on_since() else { return Ok(false) };
    let Some(missing) = count_missing(vault, since)? else { return Ok(false) };
    let released = vault.db.change_durably(|t| -> Result<bool, VaultError> {
        let mut brake = brake::load(t)?;
        // Whatever was deleted or rewritten while it was counted is counted at the next look.
        if brake != seen {
            return Ok(false);
        }
        let (files, bytes) = t.tree_size()?;
        let released = brake.release(missing, vault.now(), files, bytes);
        if released {
            brake::save(t, &brake)?;
        }
        Ok(released)
    })?;
    if released {
        log::info!("all that was deleted is back: the brake is off");
        vault.clear("brake");
    }
    Ok(released)
}

/// Removes files and folders: from GroveHome into the Recycle Bin. Works on a full disk. Each goes or stays by itself; an error
/// is about all of them. `meant`: a person was told that so much goes and confirmed it, which the brake takes for its answer;
/// more than that does not go.
pub fn remove(vault: &Vault, paths: &[Vec<u8>], meant: Option<Weight>) -> Result<Removed, VaultError> {
    let root = Folder::open_root(&vault.home).map_err(VaultError::io("cannot open GroveHome"))?;
    crate::files::marker::check(vault, &root)?;
    if let Some(meant) = meant {
        let now = weigh_paths(vault, paths)?;
        if !now.fits(meant) {
            return Ok(Removed::More(now));
        }
    }
    let mut left = meant;
    let mut outcomes = Vec::with_capacity(paths.len());
    for path in paths {
        let outcome = take_out(vault, &root, path, left);
        if let (Some(left), Ok((_, gone))) = (&mut left, &outcome) {
            *left = left.less(*gone);
        }
        outcomes.push(outcome);
    }
    // The state is in the catalog before the files go.
    if outcomes.iter().any(Result::is_ok) {
        publish::publish(vault)?;
    }
    let from_disk = |(names, sums): TakenOut| -> Removal {
        let (name, folder) = names.split_last().expect("it is not the root");
        if let Ok(folder) = root.walk(folder) {
            delete_from_disk(&folder, name)?;
        }
        Ok(sums)
    };
    Ok(Removed::Each(outcomes.into_iter().map(|outcome| from_disk(outcome?)).collect()))
}

/// The names of what was taken out, and what it weighs.
type TakenOut = (Vec<Vec<u8>>, Weight);

/// Takes a file or folder out of the tree, if it can be had back, and is no more than was `meant`.
fn take_out(
    vault: &Vault,
    root: &Folder,
    path: &[u8],
    meant: Option<Weight>,
) -> Result<TakenOut, VaultError> {
    let names = path_names(path)?;
    let node = vault.db.read(|t| node_at(t, path))?;
    if node.id == NodeId::ROOT {
        return Err(VaultError::Refused("GroveHome itself cannot be removed; name what is in it".into()));
    }
    // Only what is kept exactly as it is now goes: the bin gives back every byte.
    if let Some(unkept) = first_unkept(vault, root, &names, &node)? {
        return Err(VaultError::Refused(format!(
            "{unkept} has changes that are not kept yet; run `grove add` on it, or wait a moment"
        )));
    }
    let gone = vault.db.change(|t| -> Result<Weight, VaultError> {
        let weight = tree_weight(&node, |id, after| t.children(id, after, 500))?;
        // Something came into it since all was weighed.
        if meant.is_some_and(|meant| !weight.fits(meant)) {
            let why = format!("more lies in {} than was confirmed; look at it and try again", show(&names));
            return Err(VaultError::Refused(why));
        }
        remove_tree(vault, t, node, meant.is_some())?;
        Ok(weight)
    })?;
    Ok((names, gone))
}

/// The first file of a tree that is not as it was kept.
fn first_unkept(
    vault: &Vault,
    root: &Folder,
    names: &[Vec<u8>],
    node: &Node,
) -> Result<Option<String>, VaultError> {
    if node.kind != Kind::Folder {
        let folder = root.walk(&names[..names.len() - 1]);
        let stat = folder.and_then(|folder| folder.stat_if_there(&node.name));
        let changed = match stat {
            Ok(Some(stat)) if node.state == NodeState::Present => {
                stat.size != node.size || stat.mtime != node.mtime || Some(node.kind) != stat.kind
            }
            _ => false,
        };
        return Ok(changed.then(|| show(names)));
    }
    let mut after = Vec::new();
    loop {
        let page = vault.db.read(|t| t.children(node.id, &after, 500))?;
        let Some(last) = page.last() else { return Ok(None) };
        after.clone_from(&last.name);
        for child in page {
            let mut path = names.to_vec();
            path.push(child.name.clone());
            let unkept = first_unkept(vault, root, &path, &child)?;
            if unkept.is_some() {
                return Ok(unkept);
            }
        }
    }
}

fn remove_tree(vault: &Vault, t: &Tables<'_>, mut node: Node, is_meant: bool) -> Result<(), VaultError> {
    if node.kind == Kind::Folder {
        loop {
            let page = t.children(node.id, &[], 500)?;
            if page.is_empty() {
                break;
            }
            for child in page {
                remove_tree(vault, t, child, is_meant)?;
            }
        }
    }
    node.state = NodeState::Present;
    match is_meant {
        true => brake::pass_deletion(vault, t, &node)?,
        false => brake::count_deletion(vault, t, &node)?,
    }
    version::delete(vault, t, node)
}

fn delete_from_disk(folder: &Folder, name: &[u8]) -> Result<(), VaultError> {
    let failed =
        |why: io::Error| VaultError::Io { doing: format!("cannot remove {}", show(&[name.to_vec()])), why };
    match folder.stat_if_there(name).map_err(failed)? {
        None => Ok(()),
        Some(stat) if stat.kind == Some(Kind::Folder) => {
            let inner = folder.open(name).map_err(failed)?;
            let names: Vec<Vec<u8>> = inner.names().and_then(Iterator::collect).map_err(failed)?;
            for inner_name in names {
                if inner_name.starts_with(TEMP_PREFIX) {
                    continue;
                }
                delete_from_disk(&inner, &inner_name)?;
            }
            folder.remove_folder(name).map_err(failed)
        }
        Some(_) => folder.remove_file(name).map_err(failed),
    }
}

/// Frees the local bytes of a file or of all files in a folder, where peers hold enough copies without them. The state is
/// in the catalog before a file goes. Gives what was freed. Where copies are missing, nothing is freed, and they are asked for
/// if there are peers enough: `peers` is how many this cell has.
pub fn free_locally(vault: &Vault, path: &[u8], peers: u64) -> Result<Weight, VaultError> {
    let root = Folder::open_root(&vault.home).map_err(VaultError::io("cannot open GroveHome"))?;
    crate::files::marker::check(vault, &root)?;
    let top = vault.db.read(|t| node_at(t, path))?;
    let mut files = Vec::new();
    gather_files(vault, top, &mut files)?;
    let mut freed = Vec::new();
    let (mut lacking, mut lacking_count) = (None, 0);
    for node in files {
        if node.state != NodeState::Present || node.kind != Kind::File {
            continue;
        }
        let (by_folder, names) = vault.db.read(|t| -> Result<_, DbError> {
            Ok((Numbers::load(t)?.at(t, &node)?, t.path(node.id)?.unwrap_or_default()))
        })?;
        if by_folder == Some(1) {
            return Err(VaultError::Refused(format!(
                "{} is in a folder that is kept on this cell only, so it stays here; give the folder more copies first, with `grove \
                 copies FOLDER N`",
                show(&names)
            )));
        }
        let (least, wanted) = remote_copies(vault, &node, by_folder)?;
        if least < wanted {
            // Asked for once, a copy more is made on another peer; then the same command frees all.
            if wanted <= peers {
                want_extra(vault, &node, Extra::Wanted)?;
            }
            lacking.get_or_insert((show(&names), least, wanted));
            lacking_count += 1;
            continue;
        }
        freed.push(node);
    }
    if let Some((name, least, wanted)) = lacking {
        let others = match lacking_count - 1 {
            0 => String::new(),
            1 => ", as 1 other file is not".to_owned(),
            count => format!(", as {count} other files are not"),
        };
        let then = match peers {
            0 => "this cell has no peer; add one with `grove invite`".to_owned(),
            _ if peers < wanted => {
                let word = if peers == 1 { "peer" } else { "peers" };
                format!("this cell has {peers} {word}; add one with `grove invite`")
            }
            _ => "the missing ones are made now if another peer is there; try again in a while".to_owned(),
        };
        return Err(VaultError::Refused(format!(
            "{name} has {least} of {wanted} copies on peers, and is not freed yet{others}: {then}. Or lower the number, with `grove \
             copies FOLDER N` for a folder or \"copies\" in config.json for all"
        )));
    }
    let bytes = freed.iter().map(|node| node.size).sum();
    vault.db.change(|t| -> Result<(), DbError> {
        for node in &freed {
            deletion::set_remote_only(t, node.clone())?;
        }
        Ok(())
    })?;
    publish::publish(vault)?;
    let files = freed.len() as u64;
    for node in freed {
        let Some(names) = vault.db.read(|t| t.path(node.id))? else { continue };
        let Some((name, folder)) = names.split_last() else { continue };
        let Ok(folder) = root.walk(folder) else { continue };
        let is_as_kept =
            folder.stat_if_there(name).ok().flatten().is_some_and(|stat| {
                stat.size == node.size && stat.mtime == node.mtime && stat.ino == node.ino
            });
        if is_as_kept {
            folder.remove_file(name).map_err(VaultError::io(format!("cannot remove {}", show(&names))))?;
        }
        drop_local_chunks(vault, &node)?;
    }
    Ok(Weight { files, bytes })
}

fn gather_files(vault: &Vault, node: Node, files: &mut Vec<Node>) -> Result<(), VaultError> {
    if node.kind != Kind::Folder {
        files.push(node);
        return Ok(());
    }
    let mut after = Vec::new();
    loop {
        let page = vault.db.read(|t| t.children(node.id, &after, 500))?;
        let Some(last) = page.last() else { return Ok(()) };
        after.clone_from(&last.name);
        for child in page {
            gather_files(vault, child, files)?;
        }
    }
}

/// Of the chunk of a file that lacks most copies on peers, how many it has there and how many it wants, at least one; lists are
/// looked into. `by_folder` is what its folder says.
fn remote_copies(vault: &Vault, node: &Node, by_folder: Want) -> Result<(u64, u64), VaultError> {
    let usual = vault.config.copies;
    let wanted = copies::in_all(by_folder, usual).max(1);
    let Some((manifest, _)) = vault.db.read(|t| manifest_at(vault, t, node.seq))? else {
        return Ok((0, wanted));
    };
    let mut worst = (u64::MAX, wanted);
    let mut see = |name: ChunkName| -> Result<(), DbError> {
        let (have, wanted) = vault.db.read(|t| match t.chunk(&name)? {
            Some(row) => {
                let want = copies::higher(t.want(row.id)?, by_folder, usual);
                Ok((t.copies_of(row.id)?.len() as u64, copies::in_all(want, usual).max(1)))
            }
            None => Ok::<_, DbError>((0, wanted)),
        })?;
        let lacks = |(have, wanted): (u64, u64)| wanted.saturating_sub(have);
        if worst.0 == u64::MAX || lacks((have, wanted)) > lacks(worst) {
            worst = (have, wanted);
        }
        Ok(())
    };
    // The lists themselves, and then all that is in them.
    manifest.chunks().try_for_each(&mut see)?;
    for entry in EntryCursor::new(vault, &manifest) {
        entry?.chunk().map_or(Ok(()), &mut see)?;
    }
    Ok(worst)
}

/// Asks for a copy more on peers of all chunks of a file, or takes that back.
fn want_extra(vault: &Vault, node: &Node, wanted: Extra) -> Result<(), VaultError> {
    let manifest = vault.db.read(|t| manifest_at(vault, t, node.seq))?;
    let Some((manifest, _)) = manifest else { return Ok(()) };
    for entry in EntryCursor::new(vault, &manifest) {
        let Some(name) = entry?.chunk() else { continue };
        vault.db.change(|t| -> Result<(), DbError> {
            match t.chunk(&name)? {
                Some(row) => t.want_extra(row.id, wanted),
                None => Ok(()),
            }
        })?;
    }
    Ok(())
}

/// Drops the local sealed chunks of a freed file; its lists stay, and so does what another file here needs.
fn drop_local_chunks(vault: &Vault, node: &Node) -> Result<(), VaultError> {
    let manifest = vault.db.read(|t| manifest_at(vault, t, node.seq))?;
    let Some((manifest, _)) = manifest else { return Ok(()) };
    let mut names = Vec::new();
    for entry in EntryCursor::new(vault, &manifest) {
        if let Entry::Chunk { name, .. } = entry? {
            names.push(name);
        }
    }
    for slice in names.chunks(FREED_AT_ONCE) {
        // From now on peers prove leaves of them: that needs the roots, and this is the last time the bytes are here.
        let mut roots = Vec::with_capacity(slice.len());
        for name in slice {
            if may_free(vault, name)? {
                roots.extend(vault.local_chunk(name)?.map(|sealed| (*name, crate::proof::root(&sealed))));
            }
        }
        let _placing = vault.placing();
        // Durable before the files go: see `gc::sweep`.
        let gone = vault.db.change_durably(|t| -> Result<Vec<_>, DbError> {
            let mut gone = Vec::new();
            for (name, root) in &roots {
                let Some(row) = t.chunk(name)? else { continue };
                let Some(place) = row.place else { continue };
                let enough = has_enough(vault, t, row.id)?;
                if enough && !t.is_held(row.id)? {
                    t.set_root(row.id, root)?;
                    t.move_chunk(row.id, None)?;
                    t.want_extra(row.id, Extra::Freed)?;
                    gone.push((*name, place));
                }
            }
            Ok(gone)
        })?;
        for (name, place) in gone {
            vault.store.remove(name, place)?;
        }
    }
    Ok(())
}

/// Whether peers hold enough copies of a chunk that lies here.
fn may_free(vault: &Vault, name: &ChunkName) -> Result<bool, DbError> {
    vault.db.read(|t| match t.chunk(name)?.filter(|row| row.place.is_some()) {
        Some(row) => has_enough(vault, t, row.id),
        None => Ok(false),
    })
}

/// Whether peers alone hold as many copies of a chunk as its files want.
fn has_enough(vault: &Vault, t: &Tables<'_>, chunk: ChunkId) -> Result<bool, DbError> {
    let wanted = copies::in_all(t.want(chunk)?, vault.config.copies).max(1);
    Ok(t.copies_of(chunk)?.len() as u64 >= wanted)
}

/// Makes a file, or all deleted with a folder, await its bytes in GroveHome again: a deleted one comes out of the bin, an old
/// version becomes the newest, a freed one is wanted here. Gives the nodes to bring back.
pub fn want_back(
    vault: &Vault,
    path: Option<&[u8]>,
    id: Option<FileId>,
    version: Option<u64>,
) -> Result<Vec<NodeId>, VaultError> {
    let nodes = want_nodes_back(vault, path, id, version)?;
    for id in &nodes {
        let Some(node) = vault.db.read(|t| t.node(*id))? else { continue };
        // What a list that is not here yet names is brought back with it, and stays as it is until then.
        if let Err(why) = want_extra(vault, &node, Extra::No) {
            log::debug!("{why}");
        }
    }
    Ok(nodes)
}

fn want_nodes_back(
    vault: &Vault,
    path: Option<&[u8]>,
    id: Option<FileId>,
    version: Option<u64>,
) -> Result<Vec<NodeId>, VaultError> {
    let _placing = vault.placing();
    vault.db.change(|t| {
        let (file, node, _) = find_versions(t, path, id)?;
        match node {
            Some(node) if node.kind == Kind::Folder => {
                let mut nodes = Vec::new();
                want_tree(t, node, &mut nodes)?;
                Ok(nodes)
            }
            Some(mut node) => {
                let newest = manifest_at(vault, t, node.seq)?.map(|(m, _)| m);
                let wanted = pick_in(vault, t, file, version)?;
                if newest.as_ref().is_some_and(|m| m.version != wanted.version) {
                    let known = Known::load(vault, t, Some(node.clone()))?;
                    let parent = version::file_of(t, node.parent)?;
                    let new = NewVersion::again(vault, &known, &wanted, parent, &node.name);
                    publish::claim_chunks(vault, t, &wanted)?;
                    let key = crate::catalog::version_key(file, new.version, new.signed.hash);
                    node.seq = t.add_record(&key, &new.signed.bytes)?;
                    node.version = new.version;
                    node.last_at = vault.now();
                }
                // What the file system said last stays noted, so that a change since is seen.
                node.state = NodeState::Awaiting;
                if newest.is_some_and(|m| m.version == wanted.version) {
                    let names = t.path(node.id)?.unwrap_or_default();
                    let is_there = vault
                        .home
                        .join(Path::new(&std::ffi::OsString::from_vec(names.join(&b'/'))))
                        .symlink_metadata()
                        .is_ok();
                    if is_there {
                        // It is there already, or something newer is.
                        return Ok(Vec::new());
                    }
                    node.ctime = 0;
                }
                version::forget_remote_only(t, node.file)?;
                t.set_node(&node)?;
                Ok(vec![node.id])
            }
            None => {
                let mut nodes = Vec::new();
                undelete(vault, t, file, version, &mut nodes)?;
                Ok(nodes)
            }
        }
    })
}

fn pick_in(
    vault: &Vault,
    t: &Tables<'_>,
    file: FileId,
    version: Option<u64>,
) -> Result<Manifest, VaultError> {
    let (_, node, seqs) = find_versions(t, None, Some(file))?;
    for seq in seqs {
        let Some((m, _)) = manifest_at(vault, t, seq)? else { continue };
        let fits = match version {
            Some(version) => m.version == version,
            None => node.as_ref().is_none_or(|node| node.seq == seq),
        };
        if fits && !m.tombstone {
            return Ok(m);
        }
    }
    Err(VaultError::Refused("there is no such version; `grove versions` lists them".into()))
}

fn want_tree(t: &Tables<'_>, mut node: Node, nodes: &mut Vec<NodeId>) -> Result<(), VaultError> {
    let mut after = Vec::new();
    loop {
        let page = t.children(node.id, &after, 500)?;
        let Some(last) = page.last() else { break };
        after.clone_from(&last.name);
        for child in page {
            want_tree(t, child, nodes)?;
        }
    }
    if node.state == NodeState::RemoteOnly {
        node.state = NodeState::Awaiting;
        node.ctime = 0;
        version::forget_remote_only(t, node.file)?;
        t.set_node(&node)?;
    }
    if node.state == NodeState::Awaiting {
        nodes.push(node.id);
    }
    Ok(())
}

/// Takes a file out of the bin, and the deleted folders above it, and for a folder what was deleted with it.
fn undelete(
    vault: &Vault,
    t: &Tables<'_>,
    file: FileId,
    version: Option<u64>,
    nodes: &mut Vec<NodeId>,
) -> Result<NodeId, VaultError> {
    let manifest = pick_in(vault, t, file, version)?;
    let row = t.bin(file)?;
    let parent_file = manifest.owner_part.parent;
    let parent = match t.node_of(parent_file)? {
        Some(node) => node.id,
        None if t.bin(parent_file)?.is_some() => undelete_alone(vault, t, parent_file, nodes)?,
        None => NodeId::ROOT,
    };
    let id = put_back(vault, t, &manifest, parent, row.map_or(0, |row| row.seq))?;
    nodes.push(id);
    if manifest.kind == Kind::Folder {
        let mut after = FileId::ROOT;
        loop {
            let page = t.bin_after(after, 500)?;
            let Some(last) = page.last() else { break };
            after = last.file;
            for row in page.into_iter().filter(|row| row.parent == file) {
                undelete(vault, t, row.file, None, nodes)?;
            }
        }
    }
    Ok(id)
}

fn undelete_alone(
    vault: &Vault,
    t: &Tables<'_>,
    folder: FileId,
    nodes: &mut Vec<NodeId>,
) -> Result<NodeId, VaultError> {
    let manifest = pick_in(vault, t, folder, None)?;
    let seq = t.bin(folder)?.map_or(0, |row| row.seq);
    let parent = match t.node_of(manifest.owner_part.parent)? {
        Some(node) => node.id,
        None if t.bin(manifest.owner_part.parent)?.is_some() => {
            undelete_alone(vault, t, manifest.owner_part.parent, nodes)?
        }
        None => NodeId::ROOT,
    };
    let id = put_back(vault, t, &manifest, parent, seq)?;
    nodes.push(id);
    Ok(id)
}

/// A new version with an old one's content, awaiting its bytes.
fn put_back(
    vault: &Vault,
    t: &Tables<'_>,
    old: &Manifest,
    parent: NodeId,
    tombstone: u64,
) -> Result<NodeId, VaultError> {
    let mut manifest = old.clone();
    let last = manifest_at(vault, t, tombstone)?;
    manifest.version = last.as_ref().map_or(old.version, |(m, _)| m.version) + 1;
    manifest.life = vault.life();
    manifest.previous = last.map(|(_, hash)| hash);
    // Whoever knows the key of any version before has none to this one and those that follow it.
    manifest.salt = crate::keys::random();
    manifest.owner_part.parent = version::file_of(t, parent)?;
    let mut name = manifest.owner_part.name.clone();
    if t.child(parent, &name)?.is_some() {
        let mark = format!(" (restored {})", manifest.file.short());
        name.truncate(crate::manifest::NAME_BYTES_MAX - mark.len());
        name.extend_from_slice(mark.as_bytes());
        manifest.owner_part.name.clone_from(&name);
    }
    publish::claim_chunks(vault, t, &manifest)?;
    let new = NewVersion::from_manifest(vault, &manifest);
    t.take_bin(manifest.file)?;
    let known = Known::default();
    let seen = version::Seen {
        parent,
        name: &name,
        stat: None,
        device: crate::placement::Device(0),
        state: NodeState::Awaiting,
    };
    version::record(vault, t, known, new, seen)
}

/// Reads all of a small file of the state folder; empty if it is not there.
pub fn read_note(path: &Path) -> String {
    let mut text = String::new();
    if let Ok(file) = fs::File::open(path) {
        let _ = file.take(64 * 1024).read_to_string(&mut text);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_in_another_is_weighed_once() {
        let paths: Vec<Vec<u8>> = ["a/b", "a", "a.txt", "c/d", "c/d/e/f", "a/b", "cc"]
            .iter()
            .map(|path| path.as_bytes().to_vec())
            .collect();
        let outer: Vec<&str> =
            outermost(&paths).into_iter().map(|path| std::str::from_utf8(path).unwrap()).collect();
        assert_eq!(outer, ["a", "a.txt", "c/d", "cc"]);
        assert_eq!(outermost(&[b"".to_vec(), b"a".to_vec()]).len(), 2);
    }

    #[test]
    fn more_of_either_is_more() {
        let told = Weight { files: 3, bytes: 100 };
        assert!(told.fits(told) && Weight { files: 2, bytes: 0 }.fits(told));
        assert!(!Weight { files: 4, bytes: 100 }.fits(told) && !Weight { files: 3, bytes: 101 }.fits(told));
        assert_eq!(told.less(Weight { files: 1, bytes: 200 }), Weight { files: 2, bytes: 0 });
    }
}

//! Where the copies of each file are, what is planned and what endangers it: `GET /api/v1/placement`, a page at a time.
//! What is planned is what the planner plans; each page looks at a bounded number of files and chunks.

use std::collections::{BTreeMap, VecDeque};

use super::files::{manifest_at, node_at, path_names};
use super::json::{Obj, list, text};
use crate::copies::{self, Numbers};
use crate::files::import::EntryCursor;
use crate::files::unix::to_wire;
use crate::id::ChunkName;
use crate::manifest::{Kind, Parsed};
use crate::order;
use crate::placement::explain::{Facts, Fleet, Held, Peer, Risk, Tally};
use crate::placement::planner::{Candidate, Why};
use crate::placement::{CellNumber, DbError, Node, NodeId, Tables};
use crate::vault::{Vault, VaultError};

/// Files that one page looks at, at most.
const FILES_MAX: usize = 2000;
/// Chunks after which a page ends with the file it is at.
const CHUNKS_MAX: u64 = 20_000;
/// Files that one page tells of, at most.
const TOLD_MAX: usize = 1000;
/// Names read of a folder at once.
const NAMES: usize = 200;
/// Chunks looked up at once.
const LOOKED_UP: usize = 256;

/// What is asked for.
#[derive(Debug, Clone, Default)]
pub struct Wish {
    /// A file or folder below GroveHome; empty for all.
    pub path: Vec<u8>,
    /// The `next` of the page before.
    pub after: Option<Vec<u8>>,
    /// Files to tell of, at most.
    pub limit: usize,
    /// Only files that are not fine are told of; the sums are of all.
    pub only_risky: bool,
}

/// A file and what there is to say of it.
#[derive(Debug)]
pub struct Told {
    /// Names from GroveHome down.
    pub path: Vec<Vec<u8>>,
    /// The file.
    pub node: Node,
    /// The sum over its chunks.
    pub tally: Tally,
    /// The folder whose own number of copies holds for it.
    pub said_by: Option<Numbered>,
}

/// A folder that has a number of copies of its own.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Numbered {
    /// Names from GroveHome down.
    pub path: Vec<Vec<u8>>,
    /// The number.
    pub copies: u8,
}

/// Sums over files, by how much they are endangered.
#[derive(Debug, Clone, Default)]
pub struct Sums {
    /// Files and their bytes.
    pub files: u64,
    /// See `files`.
    pub bytes: u64,
    /// The same by risk.
    pub by_risk: BTreeMap<Risk, (u64, u64)>,
}

impl Sums {
    /// Takes in the sums of another page.
    pub fn absorb(&mut self, more: &Self) {
        self.files += more.files;
        self.bytes += more.bytes;
        for (risk, (files, bytes)) in &more.by_risk {
            let sum = self.by_risk.entry(*risk).or_default();
            *sum = (sum.0 + files, sum.1 + bytes);
        }
    }

    /// Takes in a file.
    pub fn add(&mut self, told: &Told) {
        self.files += 1;
        self.bytes += told.node.size;
        let (files, bytes) = self.by_risk.entry(told.tally.risk()).or_default();
        *files += 1;
        *bytes += told.node.size;
    }
}

/// A file, and its names from GroveHome down.
type Found = (Vec<Vec<u8>>, Node);

/// One level of a walk: a folder and the names in it that are still to come.
struct Level {
    folder: NodeId,
    after: Vec<u8>,
    page: VecDeque<Node>,
    is_end: bool,
}

impl Level {
    fn new(folder: NodeId, after: Vec<u8>) -> Self {
        Self { folder, after, page: VecDeque::new(), is_end: false }
    }
}

/// Files below a folder, depth first by name, with memory for its depth alone.
struct Walk {
    names: Vec<Vec<u8>>,
    levels: Vec<Level>,
    single: Option<Node>,
}

impl Walk {
    /// Begins at `top`, or goes on behind the file `after` (names from GroveHome down).
    fn new(
        t: &Tables<'_>,
        top: Vec<Vec<u8>>,
        node: Node,
        after: Option<&[Vec<u8>]>,
    ) -> Result<Self, DbError> {
        if node.kind != Kind::Folder {
            let single = after.is_none().then_some(node);
            return Ok(Self { names: top, levels: Vec::new(), single });
        }
        let rest = after.and_then(|after| after.strip_prefix(&top[..])).unwrap_or(&[]);
        let mut walk = Self { names: top, levels: vec![Level::new(node.id, Vec::new())], single: None };
        for name in rest {
            let level = walk.levels.last_mut().expect("the top is one");
            level.after.clone_from(name);
            match t.child(level.folder, name)? {
                Some(child) if child.kind == Kind::Folder => {
                    walk.names.push(name.clone());
                    walk.levels.push(Level::new(child.id, Vec::new()));
                }
                _ => break,
            }
        }
        Ok(walk)
    }

    fn next(&mut self, t: &Tables<'_>) -> Result<Option<Found>, DbError> {
        if let Some(node) = self.single.take() {
            return Ok(Some((self.names.clone(), node)));
        }
        while let Some(level) = self.levels.last_mut() {
            if level.page.is_empty() && !level.is_end {
                level.page = t.children(level.folder, &level.after, NAMES)?.into();
                level.is_end = level.page.len() < NAMES;
            }
            let Some(node) = level.page.pop_front() else {
                self.levels.pop();
                if !self.levels.is_empty() {
                    self.names.pop();
                }
                continue;
            };
            level.after.clone_from(&node.name);
            if node.kind == Kind::Folder {
                self.names.push(node.name.clone());
                self.levels.push(Level::new(node.id, Vec::new()));
                continue;
            }
            let mut path = self.names.clone();
            path.push(node.name.clone());
            return Ok(Some((path, node)));
        }
        Ok(None)
    }
}

/// What is known of chunks and their copies, added to a tally.
fn add_chunks(
    t: &Tables<'_>,
    names: &[ChunkName],
    fleet: &Fleet,
    candidates: &mut [Candidate],
    tally: &mut Tally,
) -> Result<(), DbError> {
    for name in names {
        let Some(row) = t.chunk(name)? else {
            tally.add_unknown();
            continue;
        };
        let facts = Facts {
            id: row.id,
            len: row.len,
            is_here: row.place.is_some(),
            wanted: copies::in_all(t.want(row.id)?, fleet.copies),
            extra: t.extra(row.id)?,
            copies: t.all_copies_of(row.id)?,
        };
        tally.add(&facts, fleet, candidates);
    }
    Ok(())
}

/// What there is to say of one file. Lists of large files that are not here are told by themselves alone.
pub fn tally_of(
    vault: &Vault,
    node: &Node,
    fleet: &Fleet,
    candidates: &mut [Candidate],
) -> Result<Tally, VaultError> {
    let mut tally = Tally::default();
    if node.kind != Kind::File || node.size == 0 {
        return Ok(tally);
    }
    let manifest = vault.db.read(|t| -> Result<_, VaultError> {
        let Some(bytes) = t.record_at(node.seq)? else { return Ok(None) };
        let parsed = Parsed::read(&bytes)?;
        if parsed.has_lists() {
            return manifest_at(vault, t, node.seq);
        }
        let names: Vec<ChunkName> = parsed.chunks().collect();
        add_chunks(t, &names, fleet, candidates, &mut tally)?;
        Ok(None)
    })?;
    let Some((manifest, _)) = manifest else { return Ok(tally) };
    let mut names: Vec<ChunkName> = manifest
        .entries
        .iter()
        .filter(|entry| matches!(entry, crate::manifest::Entry::List { .. }))
        .filter_map(crate::manifest::Entry::chunk)
        .collect();
    for entry in EntryCursor::new(vault, &manifest) {
        // A list that is not here has been counted itself.
        let Ok(entry) = entry else { break };
        names.extend(entry.chunk());
        if names.len() >= LOOKED_UP {
            vault.db.read(|t| add_chunks(t, &names, fleet, candidates, &mut tally))?;
            names.clear();
        }
    }
    vault.db.read(|t| add_chunks(t, &names, fleet, candidates, &mut tally))?;
    Ok(tally)
}

/// A page: files told of, sums over all that were looked at, and where the next page begins.
#[derive(Debug, Default)]
pub struct Page {
    /// In the order of their paths.
    pub told: Vec<Told>,
    /// Of all files looked at.
    pub sums: Sums,
    /// Of the first page: all folders that have a number of copies of their own.
    pub folders: Vec<Numbered>,
    /// The last file looked at, if there are more.
    pub next: Option<Vec<Vec<u8>>>,
}

/// The folders that have a number of copies of their own, by path; those in the Recycle Bin are left out.
pub(super) fn folders(vault: &Vault, numbers: &Numbers) -> Result<Vec<Numbered>, DbError> {
    vault.db.read(|t| {
        let mut folders = Vec::new();
        for (file, copies) in numbers.all() {
            if let Some(path) = t.node_of(file)?.map(|node| t.path(node.id)).transpose()?.flatten() {
                folders.push(Numbered { path, copies });
            }
        }
        order::sort(&mut folders);
        Ok(folders)
    })
}

pub(super) fn folder_json(folder: &Numbered) -> String {
    Obj::new().str("path", &to_wire(&folder.path.join(&b'/'))).num("copies", folder.copies).end()
}

/// Looks at files from where `wish` says.
pub fn page(vault: &Vault, fleet: &Fleet, wish: &Wish) -> Result<Page, VaultError> {
    let top = path_names(&wish.path)?;
    let after = wish.after.as_deref().map(path_names).transpose()?;
    let mut walk = vault.db.read(|t| -> Result<Walk, VaultError> {
        let node = node_at(t, &wish.path)?;
        Ok(Walk::new(t, top, node, after.as_deref())?)
    })?;
    let mut candidates = fleet.candidates.clone();
    let (mut page, mut chunks) = (Page::default(), 0);
    let numbers = vault.db.read(Numbers::load)?;
    if wish.after.is_none() {
        page.folders = folders(vault, &numbers)?;
    }
    let limit = wish.limit.clamp(1, TOLD_MAX);
    while let Some((path, node)) = vault.db.read(|t| walk.next(t))? {
        let tally = tally_of(vault, &node, fleet, &mut candidates)?;
        chunks += tally.chunks;
        let said_by = vault.db.read(|t| -> Result<_, DbError> {
            let Some((folder, copies)) = numbers.said_by(t, node.parent)? else { return Ok(None) };
            Ok(t.path(folder)?.map(|path| Numbered { path, copies }))
        })?;
        let told = Told { path, node, tally, said_by };
        page.sums.add(&told);
        let is_end = page.sums.files as usize >= FILES_MAX || chunks >= CHUNKS_MAX;
        let last = told.path.clone();
        if !wish.only_risky || told.tally.risk() != Risk::Fine {
            page.told.push(told);
        }
        if is_end || page.told.len() >= limit {
            page.next = Some(last);
            break;
        }
    }
    Ok(page)
}

// ---- As JSON ----

fn why_text(why: Why) -> &'static str {
    match why {
        Why::Only => "only",
        Why::Favorite => "favorite",
        Why::Elsewhere => "elsewhere",
        Why::Credit => "credit",
        Why::Fast => "fast",
        Why::Room => "room",
        Why::Equal => "equal",
    }
}

fn or_null(number: Option<u64>) -> String {
    number.map_or("null".into(), |number| number.to_string())
}

/// What placement adds to a peer.
pub fn standing_fields(peer: &Peer, to: Obj) -> Obj {
    to.str("place", peer.place())
        .str("state", peer.standing.as_str())
        .raw("uptime_per_mille", or_null(peer.uptime))
        .num("watched_s", peer.watched_s)
        .num("silent_s", peer.silent_s)
        .num("grace_s", peer.grace_s)
        .num("settle_left_s", peer.settle_left_s)
        .bool("full", peer.is_full)
        .bool("suspended", peer.is_suspended)
}

fn peer_json(peer: &Peer) -> String {
    let head = Obj::new()
        .str("name", &peer.name)
        .str("id", &peer.id.to_string())
        .bool("favorite", peer.is_favorite)
        .raw("last_seen_s", or_null(peer.seen_s));
    standing_fields(peer, head).end()
}

fn name_of(fleet: &Fleet, cell: CellNumber) -> String {
    fleet.peer(cell).map_or_else(|| "a former peer".to_owned(), |peer| peer.name.clone())
}

fn holder_json(fleet: &Fleet, cell: CellNumber, held: &Held) -> String {
    let days = (held.proven > 0).then(|| fleet.today.saturating_sub(held.proven));
    Obj::new()
        .str("peer", &name_of(fleet, cell))
        .num("chunks", held.chunks)
        .num("suspect", held.suspect)
        .num("away", held.away)
        .num("leaving", held.leaving)
        .num("unproven", held.unproven)
        .raw("proven_days_ago", or_null(days))
        .end()
}

fn told_json(told: &Told, fleet: &Fleet) -> String {
    let tally = &told.tally;
    let has_chunks = tally.chunks > 0;
    let holders = tally.holders.iter().map(|(cell, held)| holder_json(fleet, *cell, held));
    let planned = tally.planned.iter().map(|(cell, planned)| {
        Obj::new()
            .str("peer", &name_of(fleet, *cell))
            .num("chunks", planned.chunks)
            .num("bytes", planned.bytes)
            .bool("sending", planned.is_sent)
            .str("why", why_text(planned.why))
            .end()
    });
    let counted = |map: &BTreeMap<CellNumber, u64>| {
        list(map.iter().map(|(cell, chunks)| {
            Obj::new().str("peer", &name_of(fleet, *cell)).num("chunks", *chunks).end()
        }))
    };
    let stuck = tally
        .stuck
        .iter()
        .map(|(why, chunks)| Obj::new().str("why", why.as_str()).num("chunks", *chunks).end());
    Obj::new()
        .str("path", &to_wire(&told.path.join(&b'/')))
        .str("kind", if told.node.kind == Kind::Symlink { "symlink" } else { "file" })
        .num("size", told.node.size)
        .num("version", told.node.version)
        .str("risk", tally.risk().as_str())
        .num("copies", if has_chunks { tally.least } else { 0 })
        .num("wanted", tally.wanted)
        .raw("said_by", told.said_by.as_ref().map_or("null".into(), folder_json))
        .num("chunks", tally.chunks)
        .num("here", tally.here)
        .num("short", tally.short)
        .bool("freed", tally.is_freed)
        .raw("holders", list(holders))
        .raw("planned", list(planned))
        .raw("if_silent", counted(&tally.then))
        .raw("too_many", counted(&tally.too_many))
        .num("settles_s", tally.settles_s)
        .raw("stuck", list(stuck))
        .end()
}

/// The page as JSON.
pub fn page_json(page: &Page, fleet: &Fleet) -> String {
    let risks = page.sums.by_risk.iter().fold(Obj::new(), |to, (risk, (files, bytes))| {
        to.raw(risk.as_str(), Obj::new().num("files", *files).num("bytes", *bytes).end())
    });
    let sums =
        Obj::new().num("files", page.sums.files).num("bytes", page.sums.bytes).raw("by_risk", risks.end());
    Obj::new()
        .num("copies_wanted", fleet.copies)
        .bool("running", fleet.is_running)
        .bool("may_release", fleet.may_release)
        .raw("peers", list(fleet.peers.iter().map(peer_json)))
        .raw("folders", list(page.folders.iter().map(folder_json)))
        .raw("sums", sums.end())
        .raw("files", list(page.told.iter().map(|told| told_json(told, fleet))))
        .raw("next", page.next.as_ref().map_or("null".into(), |path| text(&to_wire(&path.join(&b'/')))))
        .end()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::FileId;
    use crate::manifest::FileTime;
    use crate::placement::{ChunkId, Db, Device, NodeState};

    fn add(t: &Tables<'_>, parent: NodeId, name: &str, kind: Kind) -> NodeId {
        let mut file = [0; 16];
        file[..name.len()].copy_from_slice(name.as_bytes());
        let node = Node {
            id: NodeId(0),
            parent,
            name: name.into(),
            kind,
            file: FileId(file),
            seq: 0,
            version: 1,
            state: NodeState::Present,
            size: 0,
            mtime: FileTime { s: 0, ns: 0 },
            mode: 0,
            ctime: 0,
            ino: 0,
            btime: 0,
            dev: Device(0),
            first_at: 0,
            last_at: 0,
        };
        t.add_node(&node).unwrap()
    }

    fn walked(t: &Tables<'_>, top: &[&[u8]], after: Option<&[Vec<u8>]>) -> Vec<String> {
        let top: Vec<Vec<u8>> = top.iter().map(|name| name.to_vec()).collect();
        let node = t.node_at(&top).unwrap().unwrap();
        let mut walk = Walk::new(t, top, node, after).unwrap();
        let mut paths = Vec::new();
        while let Some((path, _)) = walk.next(t).unwrap() {
            paths.push(String::from_utf8(path.join(&b'/')).unwrap());
        }
        paths
    }

    #[test]
    fn a_walk_names_every_file_once_and_goes_on_behind_any_of_them() {
        let db = Db::in_memory().unwrap();
        db.change(|t| -> Result<(), DbError> {
            let a = add(t, NodeId::ROOT, "a", Kind::Folder);
            add(t, a, "x", Kind::File);
            add(t, a, "y", Kind::Symlink);
            add(t, NodeId::ROOT, "a.txt", Kind::File);
            add(t, NodeId::ROOT, "c", Kind::Folder);
            let d = add(t, NodeId::ROOT, "d", Kind::Folder);
            let e = add(t, d, "e", Kind::Folder);
            add(t, e, "z", Kind::File);
            add(t, d, "zz", Kind::File);
            let all = walked(t, &[], None);
            assert_eq!(all, ["a/x", "a/y", "a.txt", "d/e/z", "d/zz"]);
            for (at, path) in all.iter().enumerate() {
                let after: Vec<Vec<u8>> = path.split('/').map(|name| name.as_bytes().to_vec()).collect();
                assert_eq!(walked(t, &[], Some(&after)), all[at + 1..], "after {path}");
            }
            assert_eq!(walked(t, &[b"d"], None), ["d/e/z", "d/zz"]);
            assert_eq!(walked(t, &[b"d"], Some(&[b"d".to_vec(), b"e".to_vec(), b"z".to_vec()])), ["d/zz"]);
            // The folder of the last page is gone meanwhile: it goes on with what comes after it.
            assert_eq!(walked(t, &[], Some(&[b"b".to_vec(), b"q".to_vec()])), ["d/e/z", "d/zz"]);
            assert_eq!(walked(t, &[b"a.txt"], None), ["a.txt"]);
            assert!(walked(t, &[b"a.txt"], Some(&[b"a.txt".to_vec()])).is_empty());
            // What the watch asks for is answered by the indexes that it names.
            for (want, only_extra) in [(None, false), (None, true), (Some(3), false)] {
                assert!(t.short_ids(want, 0, only_extra, ChunkId(0), 10)?.is_empty());
            }
            assert_eq!((t.wants()?, t.own_short(2)?), (vec![None], 0));
            Ok(())
        })
        .unwrap();
    }
}

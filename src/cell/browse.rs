//! Files as a person looks at them: sorted pages of a folder, a search over all names, one file with all there is to
//! say of it; and new folders and other names. Pool work unless it says otherwise.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::rc::Rc;
use std::sync::Arc;

use super::Cell;
use super::files::{find_versions, kind_text, least_copies, list_versions, node_at, path_names};
use super::json::{Obj, list, text};
use super::keeper::{Kept, Progress, Scope};
use crate::copies::{self, Numbers};
use crate::dashboard::api::ApiResponse;
use crate::files::ignore::IgnoreRules;
use crate::files::import::EntryCursor;
use crate::files::unix::{Folder, Stat, TEMP_PREFIX, from_wire, show, to_wire};
use crate::files::version::{self, Known, NewVersion, Seen};
use crate::files::walk::read_rules;
use crate::files::{kept, marker};
use crate::id::{CellId, FileId};
use crate::manifest::Kind;
use crate::order;
use crate::placement::planner::on_peers;
use crate::placement::{CellNumber, Extra, Node, NodeId, NodeState, Sort, Tables};
use crate::pool;
use crate::publish;
use crate::vault::{Vault, VaultError};

/// Longest name of a file or folder, in bytes: what Linux's file systems take.
const NAME_BYTES_MAX: usize = 255;
/// Longest path below GroveHome, in bytes.
const PATH_BYTES_MAX: usize = 4000;
/// Names looked at under one hold of the database.
const NAMES_PER_LOOK: usize = 2000;
/// Words of a search, and bytes of all of it.
const WORDS_MAX: usize = 8;
const QUERY_BYTES_MAX: usize = 256;
/// Chunks of one file that are looked up for where its copies are; of a larger file these are the first.
const CHUNKS_LOOKED_AT: usize = 20_000;

/// Files that are shared, by their ids, and with whom.
pub(super) type Shared = BTreeMap<FileId, Vec<CellId>>;

/// What a page shows.
#[derive(Debug, Clone)]
pub(super) struct Wish {
    /// Of which folder.
    pub folder: Vec<u8>,
    /// By what.
    pub sort: Sort,
    /// The last first.
    pub is_down: bool,
    /// Entries left out before it.
    pub offset: u64,
    /// Entries at most.
    pub limit: usize,
}

/// Whether a text is the name of one thing in a folder, in words if not.
pub(super) fn check_name(name: &[u8]) -> Result<(), &'static str> {
    match name {
        b"" => Err("a name is missing"),
        b"." | b".." => Err("this is no name"),
        _ if name.len() > NAME_BYTES_MAX => Err("a name has at most 255 bytes"),
        _ if name.iter().any(|byte| *byte == 0 || *byte == b'/') => {
            Err("a name has no slash and no zero byte")
        }
        _ if name.starts_with(TEMP_PREFIX) => Err("names that begin so are Grove's own"),
        _ => Ok(()),
    }
}

/// The names of a new place below GroveHome; refuses what leads out of it and what would not be kept there.
pub(super) fn new_place(
    vault: &Vault,
    root: &Folder,
    path: &[u8],
    is_folder: bool,
) -> Result<Vec<Vec<u8>>, NoPlace> {
    let bad = |why: &str| NoPlace::Bad(why.to_owned());
    if path.len() > PATH_BYTES_MAX {
        return Err(bad("the path is longer than 4,000 bytes"));
    }
    if path.starts_with(b"/") || path.contains(&0) {
        return Err(bad("name the place by its path below GroveHome"));
    }
    let names: Vec<Vec<u8>> = path.split(|byte| *byte == b'/').map(<[u8]>::to_vec).collect();
    names.iter().try_for_each(|name| check_name(name)).map_err(bad)?;
    let rules = IgnoreRules::new(&read_rules(root));
    let ignored = (1..=names.len()).find(|n| rules.ignores(&names[..*n], *n < names.len() || is_folder));
    if let Some(n) = ignored {
        return Err(NoPlace::NotKept(format!(
            "{} is a name that Grove does not keep; see .groveignore",
            show(&names[..n])
        )));
    }
    if vault.db.read(|t| kept::is_kept(t, &names)).map_err(|why| NoPlace::Other(why.into()))? {
        return Err(NoPlace::Exists(show(&names)));
    }
    Ok(names)
}

/// Why something cannot be put somewhere.
#[derive(Debug)]
pub(super) enum NoPlace {
    /// The path is none.
    Bad(String),
    /// It would not be kept.
    NotKept(String),
    /// There is something.
    Exists(String),
    /// What is to be moved is not there.
    Missing(String),
    /// The disk has no room.
    Full(String),
    /// Anything else.
    Other(VaultError),
}

impl From<VaultError> for NoPlace {
    fn from(why: VaultError) -> Self {
        Self::Other(why)
    }
}

impl From<crate::placement::DbError> for NoPlace {
    fn from(why: crate::placement::DbError) -> Self {
        Self::Other(why.into())
    }
}

impl NoPlace {
    /// From what the file system says of a place.
    pub(super) fn io(path: &[Vec<u8>], why: io::Error) -> Self {
        match why.kind() {
            io::ErrorKind::AlreadyExists => Self::Exists(show(path)),
            io::ErrorKind::NotADirectory => Self::Bad(format!("{}: a file stands in its way", show(path))),
            io::ErrorKind::CrossesDevices => Self::Other(VaultError::Refused(format!(
                "{} lies on another disk; copy it there instead",
                show(path)
            ))),
            _ => Self::Other(VaultError::Io { doing: format!("cannot put {} in place", show(path)), why }),
        }
    }

    /// As an answer.
    pub(super) fn answer(&self) -> ApiResponse {
        match self {
            Self::Bad(why) => ApiResponse::error(400, "bad_name", why, ""),
            Self::NotKept(why) => ApiResponse::error(409, "not_kept", why, "choose another name"),
            Self::Exists(path) => ApiResponse::error(
                409,
                "exists",
                &format!("there is a {path} already"),
                "choose another name; nothing is overwritten",
            ),
            Self::Missing(path) => ApiResponse::error(
                404,
                "not_found",
                &format!("there is no {path} in GroveHome"),
                "it may have been moved or deleted meanwhile",
            ),
            Self::Full(why) => ApiResponse::error(507, "disk_full", why, "free some space and try again"),
            Self::Other(why) => super::api::failure(why),
        }
    }
}

/// One entry, as pages show it. `usual`: copies that files want whose folders say nothing else; `numbers`: what those say.
fn entry(
    t: &Tables<'_>,
    node: &Node,
    (usual, numbers): (u64, &Numbers),
    is_shared: bool,
) -> Result<Obj, VaultError> {
    let mut want = copies::in_all(numbers.at(t, node)?, usual);
    if node.state == NodeState::RemoteOnly {
        want = on_peers(want, Extra::Freed, false);
    }
    let is_file = node.kind == Kind::File;
    let state = match node.state {
        NodeState::Present => "here",
        NodeState::RemoteOnly => "away",
        NodeState::Awaiting => "waiting",
    };
    let copies = match is_file {
        true if node.size == 0 => Obj::new().num("have", want).num("want", want).end(),
        true => Obj::new().num("have", least_copies(t, node)?).num("want", want).end(),
        false => "null".into(),
    };
    let ms = node.mtime.s.saturating_mul(1000).saturating_add(i64::from(node.mtime.ns / 1_000_000));
    Ok(Obj::new()
        .str("name", &to_wire(&node.name))
        .str("kind", kind_text(node.kind))
        .num("size", if node.kind == Kind::Folder { 0 } else { node.size })
        .num("modified_unix_ms", ms)
        .str("id", &node.file.to_string())
        .str("state", state)
        .bool("shared", is_shared)
        .raw("copies", copies))
}

/// Whether a folder or one above it is shared.
fn is_within_shared(t: &Tables<'_>, mut at: NodeId, shared: &Shared) -> Result<bool, VaultError> {
    for _ in 0..4096 {
        let Some(node) = t.node(at)? else { return Ok(false) };
        if shared.contains_key(&node.file) {
            return Ok(true);
        }
        if at == NodeId::ROOT {
            return Ok(false);
        }
        at = node.parent;
    }
    Ok(false)
}

/// A sorted page of a folder, folders first.
pub(super) fn page(vault: &Vault, wish: &Wish, shared: &Shared) -> Result<String, VaultError> {
    let want = vault.config.copies;
    vault.db.read(|t| {
        let node = node_at(t, &wish.folder)?;
        let (nodes, total) = match node.kind {
            Kind::Folder => (
                t.children_sorted(node.id, wish.sort, wish.is_down, wish.offset, wish.limit)?,
                t.child_count(node.id)?,
            ),
            _ => (vec![node.clone()], 1),
        };
        let all_shared = is_within_shared(t, node.id, shared)?;
        let numbers = Numbers::load(t)?;
        let entries = nodes
            .iter()
            .map(|node| {
                Ok(entry(t, node, (want, &numbers), all_shared || shared.contains_key(&node.file))?.end())
            })
            .collect::<Result<Vec<String>, VaultError>>()?;
        let more = wish.offset + (nodes.len() as u64) < total;
        Ok(Obj::new()
            .raw("entries", list(entries))
            .num("total", total)
            .num("offset", wish.offset)
            .bool("more", more)
            .end())
    })
}

/// The words of a search, in small letters.
pub(super) fn words_of(query: &str) -> Result<Vec<String>, &'static str> {
    if query.len() > QUERY_BYTES_MAX {
        return Err("a search has at most 256 bytes");
    }
    let words: Vec<String> = query.split_whitespace().map(str::to_lowercase).collect();
    match words.len() {
        0 => Err("the parameter \"q\" is missing"),
        n if n > WORDS_MAX => Err("a search has at most 8 words"),
        _ => Ok(words),
    }
}

/// Files and folders whose names have all of these words, in the order in which they came to GroveHome.
pub(super) fn search(
    vault: &Vault,
    words: &[String],
    offset: u64,
    limit: usize,
    shared: &Shared,
) -> Result<String, VaultError> {
    let (mut after, mut passed) = (NodeId::ROOT, 0);
    let mut found: Vec<NodeId> = Vec::new();
    // One more than asked for, to know whether there is more.
    'look: loop {
        let names = vault.db.read(|t| t.names_after(after, NAMES_PER_LOOK))?;
        let Some((last, _)) = names.last() else { break };
        after = *last;
        for (id, name) in names {
            let name = to_wire(&name).to_lowercase();
            if !words.iter().all(|word| name.contains(word.as_str())) {
                continue;
            }
            passed += 1;
            if passed > offset {
                found.push(id);
                if found.len() > limit {
                    break 'look;
                }
            }
        }
    }
    let more = found.len() > limit;
    found.truncate(limit);
    let want = vault.config.copies;
    vault.db.read(|t| {
        let numbers = Numbers::load(t)?;
        let mut entries = Vec::new();
        for id in found {
            let (Some(node), Some(path)) = (t.node(id)?, t.path(id)?) else { continue };
            let is_shared = is_within_shared(t, id, shared)?;
            entries.push(
                entry(t, &node, (want, &numbers), is_shared)?.str("path", &to_wire(&path.join(&b'/'))).end(),
            );
        }
        Ok(Obj::new().raw("entries", list(entries)).bool("more", more).end())
    })
}

/// All there is to say of one file or folder; `name_of` tells names of cells.
pub(super) fn describe(
    vault: &Vault,
    path: Option<&[u8]>,
    id: Option<FileId>,
    shared: &Shared,
    names: &BTreeMap<CellId, String>,
) -> Result<String, VaultError> {
    let (file, node, path) = vault.db.read(|t| -> Result<_, VaultError> {
        let (file, node) = match (path, id) {
            (Some(path), None) if !path.is_empty() => {
                let (file, node, _) = find_versions(t, Some(path), None)?;
                (file, node)
            }
            (_, Some(id)) => (id, t.node_of(id)?),
            _ => (FileId::ROOT, t.node(NodeId::ROOT)?),
        };
        let path = match &node {
            Some(node) => t.path(node.id)?,
            None => None,
        };
        Ok((file, node, path))
    })?;
    let named = |id: &CellId| names.get(id).cloned().unwrap_or_else(|| id.to_string()[..8].to_owned());
    let head = match &node {
        Some(node) => {
            let (head, with) = vault.db.read(|t| -> Result<_, VaultError> {
                let mut with: HashSet<CellId> = HashSet::new();
                let mut at = node.id;
                loop {
                    let Some(above) = t.node(at)? else { break };
                    with.extend(shared.get(&above.file).into_iter().flatten());
                    if at == NodeId::ROOT {
                        break;
                    }
                    at = above.parent;
                }
                let usual = vault.config.copies;
                let numbers = Numbers::load(t)?;
                let wanted = super::copies::wanted_json(t, &numbers, node, usual)?;
                let head = entry(t, node, (usual, &numbers), !with.is_empty())?.raw("wanted", wanted);
                Ok((head, with))
            })?;
            let mut with: Vec<CellId> = with.into_iter().collect();
            order::sort(&mut with);
            let with = with.iter().map(|id| person(&named(id), id).end());
            head.num("mode", node.mode).num("version", node.version).raw("shared_with", list(with))
        }
        None => Obj::new().str("id", &file.to_string()).bool("deleted", true),
    };
    let path = path.map_or(String::new(), |names| to_wire(&names.join(&b'/')));
    let head = head.str("path", &path);
    let is_file = node.as_ref().is_some_and(|node| node.kind == Kind::File);
    let (copies, is_whole) = match &node {
        Some(node) if is_file => copies_of(vault, node)?,
        _ => (Vec::new(), true),
    };
    let wall = vault.clock.wall();
    let today = vault.today();
    let copies = copies.into_iter().map(|copy| {
        let proven = copy
            .proven
            .map_or("null".into(), |day| (wall - (today.saturating_sub(day) * 86_400) as i64).to_string());
        person(&named(&copy.cell), &copy.cell)
            .num("chunks", copy.chunks)
            .bool("whole", copy.is_whole)
            .raw("proven_unix", proven)
            .end()
    });
    let head = head.raw("copies_on", list(copies)).bool("copies_complete", is_whole);
    let versions = match &node {
        Some(node) if node.kind == Kind::Folder => "[]".into(),
        _ => {
            let all = list_versions(vault, None, Some(file))?;
            match miniserde::json::from_str::<miniserde::json::Value>(&all) {
                Ok(miniserde::json::Value::Object(object)) => {
                    object.get("versions").map_or("[]".into(), miniserde::json::to_string)
                }
                _ => "[]".into(),
            }
        }
    };
    Ok(head.raw("versions", versions).end())
}

fn person(name: &str, id: &CellId) -> Obj {
    Obj::new().raw("name", text(name)).str("id", &id.to_string())
}

/// What one cell has of a file.
struct CopyOn {
    cell: CellId,
    chunks: u64,
    is_whole: bool,
    /// Day of the oldest of the newest proofs, if all of its chunks were proven.
    proven: Option<u64>,
}

/// Who has how much of a file, this cell not among them; and whether all of its chunks were looked at.
fn copies_of(vault: &Vault, node: &Node) -> Result<(Vec<CopyOn>, bool), VaultError> {
    let Some((manifest, _)) = vault.db.read(|t| super::files::manifest_at(vault, t, node.seq))? else {
        return Ok((Vec::new(), true));
    };
    let mut sums: BTreeMap<CellNumber, (u64, u64)> = BTreeMap::new();
    let mut chunks = 0;
    let mut is_whole = true;
    for found in EntryCursor::new(vault, &manifest) {
        // A list that is not here: the chunks in it are not known now.
        let Ok(found) = found else {
            is_whole = false;
            break;
        };
        let Some(name) = found.chunk() else { continue };
        if chunks as usize == CHUNKS_LOOKED_AT {
            is_whole = false;
            break;
        }
        chunks += 1;
        let copies = vault.db.read(|t| match t.chunk(&name)? {
            Some(row) => t.all_copies_of(row.id),
            None => Ok(Vec::new()),
        })?;
        for copy in copies.into_iter().filter(|copy| copy.state != crate::placement::CopyState::ToRelease) {
            let (count, proven) = sums.entry(copy.cell).or_insert((0, u64::MAX));
            *count += 1;
            *proven = (*proven).min(copy.proven);
        }
    }
    let mut all = Vec::new();
    for (number, (count, proven)) in sums {
        let Some(cell) = vault.db.read(|t| t.cell_id(number))? else { continue };
        let proven = (proven > 0 && proven < u64::MAX).then_some(proven);
        all.push(CopyOn { cell, chunks: count, is_whole: count == chunks, proven });
    }
    Ok((all, is_whole))
}

/// Makes a folder on the disk, durably.
fn make_folder(vault: &Vault, path: &[u8]) -> Result<Vec<Vec<u8>>, NoPlace> {
    let root = Folder::open_root(&vault.home).map_err(VaultError::io("cannot open GroveHome"))?;
    marker::check(vault, &root)?;
    let names = new_place(vault, &root, path, true)?;
    if vault.db.read(|t| t.node_at(&names))?.is_some() {
        return Err(NoPlace::Exists(show(&names)));
    }
    let (name, above) = names.split_last().expect("a path has a name");
    let folder = root.walk_or_create(above).map_err(|why| NoPlace::io(&names, why))?;
    if folder.stat_if_there(name).map_err(|why| NoPlace::io(&names, why))?.is_some() {
        return Err(NoPlace::Exists(show(&names)));
    }
    folder.create_folder(name).map_err(|why| NoPlace::io(&names, why))?;
    folder.sync().map_err(|why| NoPlace::io(&names, why))?;
    Ok(names)
}

/// Gives a file or folder another place in GroveHome: first on the disk, then in the tree, so that a break in between is
/// found as a move by the next scan. It stays the same file, with all its versions. No pass may run meanwhile; to be published.
fn move_entry(vault: &Vault, from: &[u8], to: &[u8]) -> Result<Node, NoPlace> {
    let root = Folder::open_root(&vault.home).map_err(VaultError::io("cannot open GroveHome"))?;
    marker::check(vault, &root)?;
    let from = path_names(from)?;
    let missing = || NoPlace::Missing(show(&from));
    let node = vault.db.read(|t| t.node_at(&from))?.ok_or_else(missing)?;
    let Some((old_name, old_above)) = from.split_last() else {
        return Err(NoPlace::Bad("GroveHome itself stays where it is".into()));
    };
    let to = new_place(vault, &root, to, node.kind == Kind::Folder)?;
    let (new_name, new_above) = to.split_last().expect("a path has a name");
    if to == from {
        return Err(NoPlace::Exists(show(&to)));
    }
    let parent = vault.db.read(|t| t.node_at(new_above))?.filter(|parent| parent.kind == Kind::Folder);
    let parent = parent.ok_or_else(|| NoPlace::Missing(show(new_above)))?;
    if node.kind == Kind::Folder && vault.db.read(|t| t.is_within(parent.id, node.id))? {
        return Err(NoPlace::Bad("a folder cannot be moved into itself".into()));
    }
    if vault.db.read(|t| t.child(parent.id, new_name))?.is_some() {
        return Err(NoPlace::Exists(show(&to)));
    }
    // A place that is not on the disk now takes what is not on it either.
    let lies = match root.walk(old_above) {
        Ok(folder) => folder.stat_if_there(old_name).map_err(|why| NoPlace::io(&from, why))?.map(|_| folder),
        Err(_) => None,
    };
    let stat: Option<Stat> = match lies {
        Some(folder) => {
            let target = root.walk_or_create(new_above).map_err(|why| NoPlace::io(&to, why))?;
            folder.rename_into(old_name, &target, new_name, false).map_err(|why| NoPlace::io(&to, why))?;
            let synced = target.sync().and_then(|()| folder.sync());
            synced.map_err(|why| NoPlace::io(&to, why))?;
            Some(target.stat(new_name).map_err(|why| NoPlace::io(&to, why))?)
        }
        None => None,
    };
    let moved = vault.db.change(|t| -> Result<Node, VaultError> {
        let known = Known::load(vault, t, Some(node.clone()))?;
        let above = version::file_of(t, parent.id)?;
        let Some(old) = known.manifest.clone() else {
            return Err(VaultError::Record("it has no version yet; try again in a moment".into()));
        };
        let new = NewVersion::again(vault, &known, &old, above, new_name);
        // Only what is as it was kept counts as seen; all else is read by the next look.
        let is_as_kept = stat.as_ref().is_some_and(|stat| {
            node.kind == Kind::Folder
                || (stat.size == node.size
                    && stat.mtime == node.mtime
                    && stat.ino == node.ino
                    && node.ctime != 0)
        });
        let state = node.state;
        let seen = Seen {
            parent: parent.id,
            name: new_name,
            stat: stat.as_ref().filter(|_| is_as_kept && state == NodeState::Present),
            device: node.dev,
            state,
        };
        let is_seen = seen.stat.is_some();
        let id = version::record(vault, t, known, new, seen)?;
        let mut moved = t.node(id)?.ok_or_else(|| VaultError::Record("a file went away".into()))?;
        if !is_seen && state == NodeState::Present {
            // What it was seen as stays, so that it is neither new nor gone.
            (moved.size, moved.mtime, moved.mode) = (node.size, node.mtime, node.mode);
            (moved.ctime, moved.ino, moved.btime) = (0, node.ino, node.btime);
            t.set_node(&moved)?;
        }
        Ok(moved)
    })?;
    Ok(moved)
}

/// Moves several, each by itself. An error is about all of them.
fn move_entries(
    vault: &Vault,
    moves: &[(Vec<u8>, Vec<u8>)],
) -> Result<Vec<Result<Moved, NoPlace>>, VaultError> {
    let one = |(from, to): &(Vec<u8>, Vec<u8>)| -> Result<Moved, NoPlace> {
        let node = move_entry(vault, from, to)?;
        let path = vault.db.read(|t| t.path(node.id))?.unwrap_or_default();
        Ok((to_wire(&path.join(&b'/')), node.file))
    };
    let outcomes: Vec<_> = moves.iter().map(one).collect();
    if outcomes.iter().any(Result::is_ok) {
        publish::publish(vault)?;
    }
    Ok(outcomes)
}

/// Where something is now, as texts have it, and which file it is.
type Moved = (String, FileId);

fn moved_answer(outcome: Result<Moved, NoPlace>) -> ApiResponse {
    match outcome {
        Ok((path, file)) => {
            let answer = Obj::new().str("path", &path).str("id", &file.to_string());
            ApiResponse::json_text(200, answer.end())
        }
        Err(why) => why.answer(),
    }
}

impl Cell {
    /// What is shared with whom.
    pub(super) async fn shared(&self) -> Result<Shared, VaultError> {
        let Some(sync) = self.synced() else { return Ok(Shared::new()) };
        let books = sync.books();
        let now = sync.unix_now();
        let rows = pool::unblock(move || books.shares()).await?;
        let mut shared = Shared::new();
        for row in rows.into_iter().filter(|row| row.until == 0 || row.until >= now) {
            shared.entry(row.file).or_default().push(row.peer);
        }
        Ok(shared)
    }

    pub(super) async fn folder_page(&self, wish: Wish) -> Result<String, VaultError> {
        let shared = self.shared().await?;
        let vault = Arc::clone(&self.vault);
        pool::unblock(move || page(&vault, &wish, &shared)).await
    }

    pub(super) async fn search_names(
        &self,
        words: Vec<String>,
        offset: u64,
        limit: usize,
    ) -> Result<String, VaultError> {
        let shared = self.shared().await?;
        let vault = Arc::clone(&self.vault);
        pool::unblock(move || search(&vault, &words, offset, limit, &shared)).await
    }

    pub(super) async fn file_json(
        &self,
        path: Option<Vec<u8>>,
        id: Option<FileId>,
    ) -> Result<String, VaultError> {
        let shared = self.shared().await?;
        let names = order::map(self.peer_views().await?.into_iter().map(|peer| (peer.id, peer.name)));
        let vault = Arc::clone(&self.vault);
        pool::unblock(move || describe(&vault, path.as_deref(), id, &shared, &names)).await
    }

    pub(super) async fn make_folder(self: &Rc<Self>, path: &str) -> ApiResponse {
        let (vault, path) = (Arc::clone(&self.vault), from_wire(path));
        let names = match pool::unblock(move || make_folder(&vault, &path)).await {
            Ok(names) => names,
            Err(why) => return why.answer(),
        };
        let path = to_wire(&names.join(&b'/'));
        match self.keep_at(names).await {
            Ok(_) => ApiResponse::json_text(200, Obj::new().str("path", &path).end()),
            Err(why) => super::api::failure(&why),
        }
    }

    /// Keeps what lies at a path now.
    pub(super) async fn keep_at(self: &Rc<Self>, names: Vec<Vec<u8>>) -> Result<Kept, VaultError> {
        let scope: Scope = self.scope_of(vec![names]).await?;
        let kept = self.keeper.keep(scope, true, true, &Progress::default()).await?;
        self.after_change();
        Ok(kept)
    }

    pub(super) async fn move_file(self: &Rc<Self>, from: &str, to: &str) -> ApiResponse {
        match self.move_each(vec![(from_wire(from), from_wire(to))]).await {
            Ok(mut outcomes) => outcomes.pop().map_or_else(ApiResponse::ok, moved_answer),
            Err(why) => super::api::failure(&why),
        }
    }

    /// Moves files and folders into one folder, each by itself.
    pub(super) async fn move_into(self: &Rc<Self>, paths: &[String], to: &str) -> ApiResponse {
        let folder = from_wire(to.trim_matches('/'));
        let place = |path: &String| {
            let from = from_wire(path);
            let name = from.rsplit(|byte| *byte == b'/').next().unwrap_or_default().to_vec();
            let to = if folder.is_empty() { name } else { [&folder[..], &name].join(&b'/') };
            (from, to)
        };
        match self.move_each(paths.iter().map(place).collect()).await {
            Ok(outcomes) => {
                let each = paths.iter().zip(outcomes.into_iter().map(moved_answer));
                let each = list(each.map(|(path, answer)| super::api::one_of_several("from", path, &answer)));
                ApiResponse::json_text(200, Obj::new().raw("results", each).end())
            }
            Err(why) => super::api::failure(&why),
        }
    }

    async fn move_each(
        self: &Rc<Self>,
        moves: Vec<(Vec<u8>, Vec<u8>)>,
    ) -> Result<Vec<Result<Moved, NoPlace>>, VaultError> {
        // A scan in between would find on disk what the tree has elsewhere.
        let held = self.keeper.hold().await;
        let vault = Arc::clone(&self.vault);
        let moved = pool::unblock(move || move_entries(&vault, &moves)).await;
        drop(held);
        self.after_change();
        moved
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_names_of_one_thing() {
        for fine in [&b"a"[..], b"a b.txt", "h\u{e9}".as_bytes(), b"\xff", b"...", b".hidden"] {
            assert!(check_name(fine).is_ok(), "{fine:?}");
        }
        for bad in [&b""[..], b".", b"..", b"a/b", b"a\0", b".grove-tmp-1", &[b'a'; 256]] {
            assert!(check_name(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn searches_are_bounded() {
        assert_eq!(words_of(" Foo  BAR ").unwrap(), ["foo", "bar"]);
        assert!(words_of("  ").is_err());
        assert!(words_of("1 2 3 4 5 6 7 8 9").is_err());
        assert!(words_of(&"a".repeat(257)).is_err());
    }
}

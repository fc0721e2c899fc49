//! Looks through GroveHome and finds what is new, changed, moved or gone.
//!
//! A name costs a stat and a look-up. Folders are recorded here as they are met, so that what lies in them has a place;
//! files and links are handed on as candidates. Nothing is judged missing before everything was looked at, so a move is
//! seen as a move in whatever order its ends come by.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use super::ignore::{IgnoreRules, RULES_BYTES_MAX, RULES_NAME};
use super::unix::{Folder, Names, Stat, TEMP_PREFIX, UPLOAD_PREFIX, UPLOADS_FOLDER, show, show_name};
use super::version::{self, NewVersion};
use super::watch::WatchList;
use super::{kept, marker};
use crate::config::{JOB_BYTES, JOB_FILES, SMALL_FILE_BYTES, WALK_NAMES};
use crate::id::FileId;
use crate::manifest::Kind;
use crate::order;
use crate::placement::{DbError, Device, Node, NodeId, NodeState, Tables};
use crate::vault::{Vault, VaultError};

/// Names looked at under one hold of the database.
const NAMES_PER_LOOK: usize = 256;

/// An open folder of GroveHome.
#[derive(Debug)]
pub struct OpenFolder {
    /// Its row.
    pub node: NodeId,
    /// Its id over all versions.
    pub file: FileId,
    /// Its open descriptor.
    pub folder: Folder,
    /// Names from GroveHome down.
    pub path: Vec<Vec<u8>>,
    /// Its file system.
    pub device: Device,
}

/// A file or link to be read, for it is new or not as it was.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// The folder it lies in.
    pub at: Arc<OpenFolder>,
    /// Its name there.
    pub name: Vec<u8>,
    /// As the file system described it.
    pub stat: Stat,
    /// What it is known as: under this name, or under the one it was moved from.
    pub node: Option<Node>,
}

impl Candidate {
    /// For messages.
    pub fn show(&self) -> String {
        let mut path = self.at.path.clone();
        path.push(self.name.clone());
        show(&path)
    }

    /// Bytes that reading it takes.
    pub fn cost(&self) -> u64 {
        if self.is_only_moved() { 0 } else { self.stat.size }
    }

    /// The bytes are known: only name, mode or the like are new.
    pub fn is_only_moved(&self) -> bool {
        self.node.as_ref().is_some_and(|node| {
            let moved = node.parent != self.at.node || node.name != self.name;
            moved
                && node.state == NodeState::Present
                && node.ctime != 0
                && node.size == self.stat.size
                && node.mtime == self.stat.mtime
                && node.ino == self.stat.ino
        })
    }
}

/// Something that could not be kept, with its path and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Path below GroveHome.
    pub path: String,
    /// Why, in words for people.
    pub why: String,
}

/// What a step of a walk found.
#[derive(Debug, Default)]
pub struct Found {
    /// To be read.
    pub candidates: Vec<Candidate>,
    /// Names looked at.
    pub looked_at: u64,
    /// Folders recorded, new or changed.
    pub folders: u64,
    /// What could not be looked at.
    pub problems: Vec<Problem>,
    /// The walk is over.
    pub is_done: bool,
}

/// One pass over GroveHome or some of its folders.
pub struct Walk {
    vault: Arc<Vault>,
    root: Folder,
    rules: IgnoreRules,
    devices: HashMap<u64, Device>,
    pending: Vec<(NodeId, bool)>,
    current: Option<(Arc<OpenFolder>, Names, Seen, bool)>,
    /// Single names to look at, where a watch told which; sorted, the next one last.
    names: Vec<(NodeId, Vec<u8>)>,
    suspects: Vec<NodeId>,
    watch: Option<Arc<WatchList>>,
}

#[derive(Debug, Default)]
struct Seen {
    present: u64,
    had_problem: bool,
}

/// What a name turned out to be.
enum Look {
    Unchanged,
    File(Box<Candidate>),
    Folder(Option<Box<Node>>, Vec<u8>, Stat),
}

impl Walk {
    /// A walk over all of GroveHome. Fails if GroveHome is not there: an unplugged disk is no deletion.
    pub fn whole(vault: Arc<Vault>, watch: Option<Arc<WatchList>>) -> Result<Self, VaultError> {
        let mut walk = Self::new(vault, watch)?;
        walk.pending.push((NodeId::ROOT, true));
        Ok(walk)
    }

    /// A walk over single names, and over whole folders (with all below them where `bool` says so).
    pub fn some(
        vault: Arc<Vault>,
        watch: Option<Arc<WatchList>>,
        mut names: Vec<(NodeId, Vec<u8>)>,
        folders: Vec<(NodeId, bool)>,
    ) -> Result<Self, VaultError> {
        let mut walk = Self::new(vault, watch)?;
        // Taken from the end: the first name comes first.
        order::sort_by(&mut names, |a, b| b.cmp(a));
        names.dedup();
        walk.names = names;
        walk.pending = folders;
        Ok(walk)
    }

    fn new(vault: Arc<Vault>, watch: Option<Arc<WatchList>>) -> Result<Self, VaultError> {
        let root = Folder::open_root(&vault.home).map_err(|why| {
            VaultError::Home(format!("cannot open GroveHome {}: {why}", vault.home.display()))
        })?;
        marker::check(&vault, &root)?;
        let rules = IgnoreRules::new(&read_rules(&root));
        Ok(Self {
            vault,
            root,
            rules,
            devices: HashMap::new(),
            pending: Vec::new(),
            current: None,
            names: Vec::new(),
            suspects: Vec::new(),
            watch,
        })
    }

    /// Goes on for a bounded time. Call it on the pool until `is_done`, then `finish`.
    pub fn step(&mut self) -> Result<Found, VaultError> {
        let mut found = Found::default();
        let mut bytes = 0;
        while found.looked_at < WALK_NAMES as u64 && bytes < JOB_BYTES && found.candidates.len() < JOB_FILES {
            let before = found.candidates.len();
            if let Some((at, mut names, mut seen, recurse)) = self.current.take() {
                let batch: Vec<_> = names.by_ref().take(NAMES_PER_LOOK).collect();
                let is_last = batch.len() < NAMES_PER_LOOK;
                self.look_at(&at, batch, &mut seen, recurse, &mut found)?;
                if is_last {
                    self.end_folder(&at, &seen)?;
                } else {
                    self.current = Some((at, names, seen, recurse));
                }
            } else if let Some((node, recurse)) = self.pending.pop() {
                self.begin_folder(node, recurse, &mut found)?;
            } else if !self.names.is_empty() {
                self.look_at_some(&mut found)?;
            } else {
                found.is_done = true;
                break;
            }
            bytes += found.candidates[before..].iter().map(Candidate::cost).sum::<u64>();
            if found.candidates[before..].iter().any(|candidate| candidate.stat.size > SMALL_FILE_BYTES) {
                break;
            }
        }
        Ok(found)
    }

    fn begin_folder(&mut self, node: NodeId, recurse: bool, found: &mut Found) -> Result<(), VaultError> {
        match self.open(node)? {
            Ok(at) => match at.folder.names() {
                Ok(names) => self.current = Some((Arc::new(at), names, Seen::default(), recurse)),
                Err(why) => found.problems.push(problem(show(&at.path), &why)),
            },
            Err((path, why)) if why.kind() == io::ErrorKind::NotFound => {
                log::debug!("folder {path} is gone");
            }
            Err((path, why)) => found.problems.push(problem(path, &why)),
        }
        Ok(())
    }

    /// Opens a folder of the tree and watches it.
    #[allow(clippy::type_complexity)]
    fn open(&mut self, node: NodeId) -> Result<Result<OpenFolder, (String, io::Error)>, VaultError> {
        let known = self.vault.db.read(|t| -> Result<_, DbError> { Ok((t.path(node)?, t.node(node)?)) })?;
        let (Some(path), Some(row)) = known else {
            return Ok(Err((String::new(), io::ErrorKind::NotFound.into())));
        };
        let opened = self.root.walk(&path).and_then(|folder| {
            let stat = folder.stat_self()?;
            Ok((folder, stat))
        });
        let (folder, stat) = match opened {
            Ok(opened) => opened,
            Err(why) => return Ok(Err((show(&path), why))),
        };
        let device = self.device(&folder, stat.dev)?;
        if let Some(watch) = &self.watch {
            watch.add(&folder, node);
        }
        Ok(Ok(OpenFolder { node, file: row.file, folder, path, device }))
    }

    fn device(&mut self, folder: &Folder, dev: u64) -> Result<Device, VaultError> {
        if let Some(device) = self.devices.get(&dev) {
            return Ok(*device);
        }
        let fsid =
            folder.file_system().map_err(VaultError::io("cannot tell the file system of GroveHome"))?;
        let device = self.vault.db.change(|t| t.device(&fsid))?;
        self.devices.insert(dev, device);
        Ok(device)
    }

    /// Looks at some of the names whose folder a watch knew: of one folder, and no more than of a folder that is read.
    fn look_at_some(&mut self, found: &mut Found) -> Result<(), VaultError> {
        let Some((node, _)) = self.names.last() else { return Ok(()) };
        let node = *node;
        let of_folder = self.names.iter().rev().take(NAMES_PER_LOOK).take_while(|(other, _)| *other == node);
        let rest = self.names.len() - of_folder.count();
        let names: Vec<_> = self.names.drain(rest..).map(|(_, name)| Ok(name)).collect();
        let Ok(at) = self.open(node)? else { return Ok(()) };
        let at = Arc::new(at);
        let mut seen = Seen::default();
        let there = names.len() as u64;
        self.look_at(&at, names, &mut seen, false, found)?;
        if seen.present < there {
            self.suspects.push(node);
        }
        self.touch_folder(&at, found)
    }

    /// A folder's own time changes with what lies in it.
    fn touch_folder(&mut self, at: &Arc<OpenFolder>, found: &mut Found) -> Result<(), VaultError> {
        let Ok(stat) = at.folder.stat_self() else { return Ok(()) };
        let Some(node) = self.vault.db.read(|t| t.node(at.node))? else { return Ok(()) };
        // A folder that is being brought back gets its mode and time when all in it is there.
        if node.state == NodeState::Awaiting {
            return Ok(());
        }
        if node.mtime != stat.mtime || node.mode != stat.mode || node.state != NodeState::Present {
            let vault = Arc::clone(&self.vault);
            vault.db.change(|t| {
                keep_folder(&vault, t, Some(node.clone()), node.parent, &node.name, &stat, at.device)
            })?;
            found.folders += 1;
        }
        Ok(())
    }

    fn look_at(
        &mut self,
        at: &Arc<OpenFolder>,
        names: Vec<io::Result<Vec<u8>>>,
        seen: &mut Seen,
        recurse: bool,
        found: &mut Found,
    ) -> Result<(), VaultError> {
        let mut there = Vec::with_capacity(names.len());
        let mut path = at.path.clone();
        for name in names {
            found.looked_at += 1;
            let name = match name {
                Ok(name) => name,
                Err(why) => {
                    seen.had_problem = true;
                    found.problems.push(problem(show(&at.path), &why));
                    break;
                }
            };
            let stat = match at.folder.stat_if_there(&name) {
                Ok(Some(stat)) => stat,
                Ok(None) => continue,
                Err(why) => {
                    seen.had_problem = true;
                    path.push(name);
                    found.problems.push(problem(show(&path), &why));
                    path.pop();
                    continue;
                }
            };
            if name.starts_with(TEMP_PREFIX) {
                // Ours, from before a power cut, on a file system that knows no nameless files.
                if stat.kind == Some(Kind::File) && self.is_stale(&name, &stat) {
                    let _ = at.folder.remove_file(&name);
                }
                continue;
            }
            path.push(name);
            let ignored =
                self.rules.ignores(&path, stat.kind == Some(Kind::Folder)) || self.is_kept(&path)?;
            let name = path.pop().expect("pushed above");
            if ignored {
                continue;
            }
            if stat.kind.is_none() {
                log::debug!("{} is no file, link or folder, and is not kept", show_name(&name));
                continue;
            }
            there.push((name, stat));
        }
        let vault = Arc::clone(&self.vault);
        let looks = vault.db.read(|t| -> Result<Vec<Look>, DbError> {
            there.into_iter().map(|(name, stat)| self.compare(t, at, name, stat, seen)).collect()
        })?;
        let mut folders = Vec::new();
        for look in looks {
            match look {
                Look::Unchanged => {}
                Look::File(candidate) => found.candidates.push(*candidate),
                Look::Folder(node, name, stat) => folders.push((node.map(|node| *node), name, stat)),
            }
        }
        self.keep_folders(at, folders, recurse, found)
    }

    /// A friend's file is not this cell's.
    fn is_kept(&self, path: &[Vec<u8>]) -> Result<bool, DbError> {
        Ok(kept::may_be_kept(path) && self.vault.db.read(|t| kept::is_kept(t, path))?)
    }

    /// A file on its way that nobody brings into place any more. An upload is somebody's as long as there is a note of it.
    fn is_stale(&self, name: &[u8], stat: &Stat) -> bool {
        let upload = name.strip_prefix(UPLOAD_PREFIX).map(OsStr::from_bytes);
        let note = upload.map(|id| self.vault.dir.join(UPLOADS_FOLDER).join(id));
        !note.is_some_and(|note| note.exists()) && self.vault.clock.wall() - stat.ctime / 1_000_000_000 > 3600
    }

    fn compare(
        &self,
        t: &Tables<'_>,
        at: &Arc<OpenFolder>,
        name: Vec<u8>,
        stat: Stat,
        seen: &mut Seen,
    ) -> Result<Look, DbError> {
        let kind = stat.kind.expect("others were left out");
        let known = t.child(at.node, &name)?;
        if known.as_ref().is_some_and(|node| node.state == NodeState::Present && node.kind == kind) {
            seen.present += 1;
        }
        if kind == Kind::Folder {
            let node = match known.filter(|node| node.kind == kind) {
                Some(node) => Some(node),
                None => self.moved_from(t, at, &stat)?,
            };
            return Ok(Look::Folder(node.map(Box::new), name, stat));
        }
        if known.as_ref().is_some_and(|node| is_as_known(node, &stat, at.device)) {
            return Ok(Look::Unchanged);
        }
        let node = match known {
            Some(node) if node.kind == kind => Some(node),
            _ => self.moved_from(t, at, &stat)?,
        };
        Ok(Look::File(Box::new(Candidate { at: Arc::clone(at), name, stat, node })))
    }

    /// What this was known as under another name that is not its name any more.
    fn moved_from(&self, t: &Tables<'_>, at: &Arc<OpenFolder>, stat: &Stat) -> Result<Option<Node>, DbError> {
        for node in t.nodes_with_ino(stat.ino)? {
            let is_same = Some(node.kind) == stat.kind
                && node.state == NodeState::Present
                && node.dev == at.device
                && node.id != NodeId::ROOT
                && match (node.btime, stat.btime) {
                    (0, _) | (_, 0) => node.mtime == stat.mtime && node.size == stat.size,
                    (known, now) => known == now,
                };
            if !is_same {
                continue;
            }
            let Some(mut path) = t.path(node.parent)? else { continue };
            path.push(node.name.clone());
            let (name, folder) = path.split_last().expect("a name was pushed");
            let still = self.root.walk(folder).and_then(|folder| folder.stat_if_there(name));
            if !matches!(still, Ok(Some(still)) if still.ino == stat.ino) {
                return Ok(Some(node));
            }
        }
        Ok(None)
    }

    /// Records new, changed and moved folders, and goes on into them.
    fn keep_folders(
        &mut self,
        at: &Arc<OpenFolder>,
        folders: Vec<(Option<Node>, Vec<u8>, Stat)>,
        recurse: bool,
        found: &mut Found,
    ) -> Result<(), VaultError> {
        if folders.is_empty() {
            return Ok(());
        }
        let is_changed = |node: &Option<Node>, name: &[u8], stat: &Stat| match node {
            Some(node) => !is_as_known(node, stat, node.dev) || node.parent != at.node || node.name != name,
            None => true,
        };
        // Looked up before the transaction: a folder may be where another disk is mounted.
        let mut kept = Vec::with_capacity(folders.len());
        for (node, name, stat) in folders {
            let device = match self.devices.get(&stat.dev) {
                Some(device) => *device,
                None => match at.folder.open(&name) {
                    Ok(folder) => self.device(&folder, stat.dev)?,
                    Err(_) => at.device,
                },
            };
            let is_elsewhere = |node: &Node| node.state != NodeState::Awaiting && node.dev != device;
            let changed = is_changed(&node, &name, &stat) || node.as_ref().is_some_and(is_elsewhere);
            kept.push((node, name, stat, device, changed));
        }
        let vault = Arc::clone(&self.vault);
        let mut ids = Vec::with_capacity(kept.len());
        if kept.iter().any(|(.., changed)| *changed) {
            ids = vault.db.change(|t| -> Result<_, VaultError> {
                let mut ids = Vec::with_capacity(kept.len());
                for (node, name, stat, device, changed) in &kept {
                    let is_new = node.is_none()
                        || node.as_ref().is_some_and(|n| n.parent != at.node || n.name != *name);
                    ids.push(match node {
                        Some(node) if !changed => (node.id, false),
                        _ => (keep_folder(&vault, t, node.clone(), at.node, name, stat, *device)?, is_new),
                    });
                }
                Ok(ids)
            })?;
            found.folders += kept.iter().filter(|(.., changed)| *changed).count() as u64;
        } else {
            ids.extend(kept.iter().filter_map(|(node, ..)| node.as_ref().map(|node| (node.id, false))));
        }
        // A folder that is new here is always looked into.
        self.pending
            .extend(ids.into_iter().filter(|(_, is_new)| recurse || *is_new).map(|(id, _)| (id, true)));
        Ok(())
    }

    fn end_folder(&mut self, at: &Arc<OpenFolder>, seen: &Seen) -> Result<(), VaultError> {
        if !seen.had_problem && self.vault.db.read(|t| t.count_present(at.node))? != seen.present {
            self.suspects.push(at.node);
        }
        if at.node == NodeId::ROOT {
            self.touch_folder(at, &mut Found::default())?;
        }
        Ok(())
    }

    /// Folders in which something recorded as present was not met: to be judged when all candidates are kept.
    pub fn suspects(&mut self) -> Vec<NodeId> {
        std::mem::take(&mut self.suspects)
    }
}

/// The text of the user's rules.
pub(crate) fn read_rules(root: &Folder) -> Vec<u8> {
    use std::io::Read;
    let mut text = Vec::new();
    if let Ok(file) = root.open_file(RULES_NAME) {
        if let Err(why) = file.take(RULES_BYTES_MAX).read_to_end(&mut text) {
            log::warn!(".groveignore cannot be read: {why}");
        }
    }
    text
}

fn problem(path: String, why: &io::Error) -> Problem {
    let why = match why.kind() {
        io::ErrorKind::PermissionDenied => {
            "not readable by this cell; give it permission, or name it in .groveignore".into()
        }
        _ => why.to_string(),
    };
    Problem { path: if path.is_empty() { "GroveHome".into() } else { path }, why }
}

/// Whether a name is exactly what was last recorded of it, or what awaits being put there again.
pub fn is_as_known(node: &Node, stat: &Stat, device: Device) -> bool {
    let same = Some(node.kind) == stat.kind && node.mtime == stat.mtime;
    match (node.kind, node.state) {
        // A folder's ctime moves with every change in it; its size says nothing.
        (Kind::Folder, NodeState::Present) => same && node.mode == stat.mode && node.ino == stat.ino,
        (_, NodeState::Present) => {
            same && node.size == stat.size
                && (node.mode == stat.mode || node.kind == Kind::Symlink)
                && node.ctime == stat.ctime
                && node.ino == stat.ino
                && node.dev == device
        }
        // It is there half-way: its mode and time are still to be set, so what they are now says nothing.
        (Kind::Folder, NodeState::Awaiting) => Some(node.kind) == stat.kind,
        // An older version that is still to be replaced.
        (_, NodeState::Awaiting) => {
            node.ctime != 0
                && same
                && node.size == stat.size
                && node.ctime == stat.ctime
                && node.ino == stat.ino
        }
        (_, NodeState::RemoteOnly) => false,
    }
}

/// Records a folder as it is. Of folders only the newest version is kept.
fn keep_folder(
    vault: &Vault,
    t: &Tables<'_>,
    node: Option<Node>,
    parent: NodeId,
    name: &[u8],
    stat: &Stat,
    device: Device,
) -> Result<NodeId, VaultError> {
    let is_new_version = node.as_ref().is_none_or(|node| {
        node.mtime != stat.mtime
            || node.mode != stat.mode
            || node.parent != parent
            || node.name != name
            || node.seq == 0
    });
    if !is_new_version {
        let mut node = node.expect("a version of something known");
        version::set_seen(&mut node, stat, device);
        t.set_node(&node)?;
        return Ok(node.id);
    }
    let known = version::Known::load(vault, t, node)?;
    let new = NewVersion::folder(vault, &known, t, parent, name, stat)?;
    let seen = version::Seen { parent, name, stat: Some(stat), device, state: NodeState::Present };
    version::record(vault, t, known, new, seen)
}

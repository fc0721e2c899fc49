//! From manifests back to files: into GroveHome, where files await their bytes, or into any other folder.
//!
//! Promise: a name appears only when its bytes are whole and durable, and nothing that was changed here since it was last
//! recorded is replaced: then the restored file is put beside it, and said so.

use std::cell::Cell;
use std::collections::HashMap;
use std::fs::File;
use std::future::Future;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::{Arc, Mutex};

use smol::lock::Semaphore;

use super::import::EntryCursor;
use super::marker;
use super::unix::{Folder, Stat, Temp, show};
use super::version;
use super::walk::Problem;
use crate::buffers;
use crate::config::SMALL_FILE_BYTES;
use crate::id::ChunkName;
use crate::manifest::{Check, Entry, Kind, Manifest, NAME_BYTES_MAX};
use crate::placement::{ChunkRow, Device, Node, NodeId, NodeState};
use crate::pool;
use crate::seal::ENCODING_RAW;
use crate::vault::{Vault, VaultError, lock};

/// Files that are written while the chunks of the next ones are fetched.
const BATCH_FILES: usize = 1024;
/// And their bytes.
const BATCH_BYTES: u64 = 16 << 20;
/// Chunks of a large file that are written while the next ones are fetched.
const WINDOW_CHUNKS: usize = 16;
/// Files and folders that are made durable together at most; a batch more may come on top.
const LANDING_MAX: usize = 1024;
/// And their bytes.
const LANDING_BYTES: u64 = 64 << 20;
/// Hard links remembered during a restore.
const LINKS_MAX: usize = 100_000;
/// Nodes read at a time.
const PAGE: usize = 512;
/// A block of a file system: what can be a hole.
const BLOCK_BYTES: usize = 4096;
/// Problems listed by name; more are counted.
const PROBLEMS_MAX: usize = 1000;

/// Chunks that could not be had.
#[derive(Debug, Clone, Default)]
pub struct Lacking {
    /// Their names.
    pub names: Vec<ChunkName>,
    /// This disk has no room for them; else nobody reachable has them.
    pub is_full: bool,
}

/// Gets chunks from peers into the local store.
pub trait Fetch {
    /// Gives those that could not be had.
    fn fetch(&self, names: Vec<ChunkName>) -> Pin<Box<dyn Future<Output = Lacking> + '_>>;
}

/// A cell without peers.
#[derive(Debug, Clone, Copy)]
pub struct NoPeers;

impl Fetch for NoPeers {
    fn fetch(&self, names: Vec<ChunkName>) -> Pin<Box<dyn Future<Output = Lacking> + '_>> {
        Box::pin(std::future::ready(Lacking { names, is_full: false }))
    }
}

/// Where files go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// Their own places in GroveHome: those that await their bytes.
    Home,
    /// Below this folder, whatever their state.
    Folder(PathBuf),
}

/// What a restore did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Restored {
    /// Files and links brought back.
    pub files: u64,
    /// Folders made or set right.
    pub folders: u64,
    /// Bytes of the files.
    pub bytes: u64,
    /// Files that were there already.
    pub unchanged: u64,
    /// Put beside a file that had changed here.
    pub set_aside: Vec<String>,
    /// Not brought back, and why.
    pub missing: Vec<Problem>,
    /// Of those, how many.
    pub missing_count: u64,
    /// This disk had no room for more.
    pub is_full: bool,
}

impl Restored {
    /// Takes in what another restore did.
    pub fn absorb(&mut self, other: Self) {
        self.files += other.files;
        self.folders += other.folders;
        self.bytes += other.bytes;
        self.unchanged += other.unchanged;
        self.missing_count += other.missing_count;
        self.is_full |= other.is_full;
        self.set_aside.extend(other.set_aside);
        let room = PROBLEMS_MAX.saturating_sub(self.missing.len());
        self.missing.extend(other.missing.into_iter().take(room));
        self.set_aside.truncate(PROBLEMS_MAX);
    }

    fn miss(&mut self, path: String, why: impl Into<String>) {
        self.missing_count += 1;
        if self.missing.len() < PROBLEMS_MAX {
            self.missing.push(Problem { path, why: why.into() });
        }
    }
}

/// One file or link to bring back.
struct Item {
    at: Arc<Folder>,
    path: String,
    name: Vec<u8>,
    node: Node,
    manifest: Manifest,
}

/// A folder whose own mode and time are set when all in it is there.
struct Leaving {
    folder: Arc<Folder>,
    path: String,
    node: Node,
}

#[derive(Default)]
struct Batch {
    items: Vec<Item>,
    leaving: Vec<Leaving>,
    restored: Restored,
    is_done: bool,
}

impl Batch {
    /// What its small files are made of.
    fn small_chunks(&self) -> Vec<ChunkName> {
        let small = self.items.iter().filter(|item| item.manifest.size <= SMALL_FILE_BYTES);
        small.flat_map(|item| item.manifest.entries.iter().filter_map(Entry::chunk)).collect()
    }
}

/// Goes through the tree, folder by folder, children before their folder is left.
struct RestoreWalk {
    vault: Arc<Vault>,
    into_home: bool,
    stack: Vec<Level>,
    pending: Option<(Arc<Folder>, Node, String)>,
}

struct Level {
    folder: Arc<Folder>,
    node: Node,
    path: String,
    after: Vec<u8>,
    page: std::vec::IntoIter<Node>,
    is_over: bool,
}

impl RestoreWalk {
    fn new(vault: Arc<Vault>, root: Folder, top: Node, into_home: bool) -> Self {
        Self { vault, into_home, stack: Vec::new(), pending: Some((Arc::new(root), top, String::new())) }
    }

    fn wants(&self, node: &Node) -> bool {
        !self.into_home || node.state == NodeState::Awaiting
    }

    fn step(&mut self) -> Result<Batch, VaultError> {
        let mut batch = Batch::default();
        let mut bytes = 0;
        while batch.items.len() < BATCH_FILES && bytes < BATCH_BYTES {
            if let Some((folder, node, path)) = self.pending.take() {
                self.stack.push(Level {
                    folder,
                    node,
                    path,
                    after: vec![],
                    page: vec![].into_iter(),
                    is_over: false,
                });
            }
            let Some(level) = self.stack.last_mut() else {
                batch.is_done = true;
                break;
            };
            let Some(node) = level.page.next() else {
                if level.is_over {
                    let level = self.stack.pop().expect("looked at above");
                    if self.wants(&level.node) {
                        batch.leaving.push(Leaving {
                            folder: level.folder,
                            path: level.path,
                            node: level.node,
                        });
                    }
                    continue;
                }
                let page = self.vault.db.read(|t| t.children(level.node.id, &level.after, PAGE))?;
                level.is_over = page.len() < PAGE;
                if let Some(last) = page.last() {
                    level.after.clone_from(&last.name);
                }
                level.page = page.into_iter();
                continue;
            };
            let path = if level.path.is_empty() {
                show(std::slice::from_ref(&node.name))
            } else {
                format!("{}/{}", level.path, show(std::slice::from_ref(&node.name)))
            };
            if node.kind == Kind::Folder {
                // In GroveHome a folder that is freed or elsewhere is not made for its own sake.
                if self.into_home
                    && node.state != NodeState::Awaiting
                    && level.folder.stat_if_there(&node.name).is_ok_and(|s| s.is_none())
                {
                    continue;
                }
                match level.folder.create_folder(&node.name).and_then(|()| level.folder.open(&node.name)) {
                    Ok(folder) => self.pending = Some((Arc::new(folder), node, path)),
                    Err(why) => batch.restored.miss(path, why.to_string()),
                }
                continue;
            }
            let at = Arc::clone(&level.folder);
            if !self.wants(&node) {
                continue;
            }
            if let Some(item) = self.vault.item(at, path, node, &mut batch.restored)? {
                bytes += item.manifest.size.min(SMALL_FILE_BYTES + 1);
                let is_large = item.manifest.size > SMALL_FILE_BYTES;
                batch.items.push(item);
                if is_large {
                    break;
                }
            }
        }
        Ok(batch)
    }
}

impl Vault {
    fn item(
        &self,
        at: Arc<Folder>,
        path: String,
        node: Node,
        restored: &mut Restored,
    ) -> Result<Option<Item>, VaultError> {
        let Some(bytes) = self.db.read(|t| t.record_at(node.seq))? else {
            restored.miss(path, "its record is not in the catalog");
            return Ok(None);
        };
        let manifest = Manifest::open(&bytes, &self.master, Check::Trusted)?;
        Ok(Some(Item { at, path, name: node.name.clone(), node, manifest }))
    }
}

/// Files that are written and wait for their names, so that many share the syncs that names and records need.
#[derive(Default)]
struct Landing {
    done: Vec<Done>,
    leaving: Vec<Leaving>,
    restored: Restored,
    /// Of files that were written.
    bytes: u64,
}

impl Landing {
    fn is_full(&self, most: usize) -> bool {
        self.done.len() + self.leaving.len() >= most || self.bytes >= LANDING_BYTES
    }
}

/// What waits is open, and so is its folder: half of the descriptors are left to others.
fn landing_max() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    limit.map_or(LANDING_MAX, |limit| (limit / 4).min(LANDING_MAX as u64) as usize)
}

type LinkMap = Arc<Mutex<HashMap<[u8; 16], (Arc<Folder>, Vec<u8>, Vec<Entry>)>>>;

/// Brings files back.
pub struct Restorer {
    vault: Arc<Vault>,
    permits: Arc<Semaphore>,
    jobs: usize,
    fetch: Rc<dyn Fetch>,
    links: LinkMap,
    /// This disk had no room for what came.
    is_full: Cell<bool>,
}

/// What a job found out about one item.
enum Done {
    Put(Temp, Item),
    /// A link, put already.
    There(Item, bool),
    Unchanged(Item),
    NeedsChunks(Item, Vec<ChunkName>),
    Failed(String, String),
}

impl Done {
    /// The folder of a file that was or will be put there.
    fn place(&self) -> Option<&Arc<Folder>> {
        match self {
            Self::Put(_, item) | Self::There(item, _) | Self::Unchanged(item) => Some(&item.at),
            Self::NeedsChunks(..) | Self::Failed(..) => None,
        }
    }
}

impl Restorer {
    /// Jobs take a permit each.
    pub fn new(vault: Arc<Vault>, permits: Arc<Semaphore>, jobs: usize, fetch: Rc<dyn Fetch>) -> Self {
        Self { vault, permits, jobs, fetch, links: LinkMap::default(), is_full: Cell::new(false) }
    }

    /// Brings back all that awaits its bytes in GroveHome, or the tree below `top` into another folder. `progress` is told
    /// files and bytes so far.
    pub async fn run(
        &self,
        target: &Target,
        top: NodeId,
        progress: &dyn Fn(u64, u64),
    ) -> Result<Restored, VaultError> {
        let into_home = *target == Target::Home;
        let (vault, target) = (Arc::clone(&self.vault), target.clone());
        let (walk, device) = pool::unblock(move || -> Result<_, VaultError> {
            let root = match &target {
                Target::Home => {
                    let root =
                        Folder::open_root(&vault.home).map_err(VaultError::io("cannot open GroveHome"))?;
                    marker::check(&vault, &root)?;
                    root
                }
                Target::Folder(path) => {
                    let doing = format!("cannot restore to {}", path.display());
                    std::fs::create_dir_all(path).map_err(VaultError::io(doing.clone()))?;
                    Folder::open_root(path).map_err(VaultError::io(doing))?
                }
            };
            let fsid = root.file_system().map_err(VaultError::io("cannot tell the file system"))?;
            let device = vault.db.change(|t| t.device(&fsid))?;
            let top = vault
                .db
                .read(|t| t.node(top))?
                .ok_or_else(|| VaultError::Refused("this file is not in the tree any more".into()))?;
            Ok((RestoreWalk::new(Arc::clone(&vault), root, top, into_home), device))
        })
        .await?;
        let (mut restored, mut landing) = (Restored::default(), Landing::default());
        let most = landing_max();
        let (mut walk, mut batch) = step(walk).await?;
        loop {
            let is_done = batch.is_done;
            let work = self.write(batch, into_home, &mut landing);
            if is_done {
                work.await?;
                restored.absorb(self.land(landing, into_home, device).await?);
                break;
            }
            let next = async {
                let (walk, batch) = step(walk).await?;
                // Elsewhere most is here, and to look would cost more than to try.
                if into_home {
                    self.ensure(batch.small_chunks()).await?;
                }
                Ok::<_, VaultError>((walk, batch))
            };
            let (done, next) = smol::future::zip(work, next).await;
            done?;
            (walk, batch) = next?;
            // Nothing outside GroveHome waits for a sync.
            if !into_home || landing.is_full(most) {
                restored.absorb(self.land(std::mem::take(&mut landing), into_home, device).await?);
                progress(restored.files, restored.bytes);
            }
        }
        progress(restored.files, restored.bytes);
        Ok(restored)
    }

    /// Brings back one file, link or folder with all in it to its place in GroveHome, if it awaits that.
    pub async fn one(&self, node: NodeId, progress: &dyn Fn(u64, u64)) -> Result<Restored, VaultError> {
        let vault = Arc::clone(&self.vault);
        let (batch, device, is_folder) = pool::unblock(move || -> Result<_, VaultError> {
            let root = Folder::open_root(&vault.home).map_err(VaultError::io("cannot open GroveHome"))?;
            marker::check(&vault, &root)?;
            let mut batch = Batch::default();
            let (node, path) = vault
                .db
                .read(|t| -> Result<_, crate::placement::DbError> { Ok((t.node(node)?, t.path(node)?)) })?;
            let (Some(node), Some(mut path)) = (node, path) else {
                return Err(VaultError::Refused("this file is not in the tree any more".into()));
            };
            let shown = show(&path);
            path.pop();
            let folder = root
                .walk_or_create(&path)
                .map_err(VaultError::io(format!("cannot make the folder of {shown}")))?;
            let fsid = folder.file_system().map_err(VaultError::io("cannot tell the file system"))?;
            let device = vault.db.change(|t| t.device(&fsid))?;
            let is_folder = node.kind == Kind::Folder;
            if !is_folder && node.state == NodeState::Awaiting {
                batch.items.extend(vault.item(Arc::new(folder), shown, node, &mut batch.restored)?);
            }
            Ok((batch, device, is_folder))
        })
        .await?;
        if is_folder {
            return self.run(&Target::Home, NodeId::ROOT, progress).await;
        }
        self.batch(batch, true, device).await
    }

    /// Brings back one given version into a folder, under a name that is free there.
    pub async fn version_to(&self, manifest: Manifest, folder: PathBuf) -> Result<Restored, VaultError> {
        let node = Node {
            id: NodeId(0),
            parent: NodeId::ROOT,
            name: manifest.owner_part.name.clone(),
            kind: manifest.kind,
            file: manifest.file,
            seq: 0,
            version: manifest.version,
            state: NodeState::Awaiting,
            size: 0,
            mtime: manifest.mtime,
            mode: 0,
            ctime: 0,
            ino: 0,
            btime: 0,
            dev: Device(0),
            first_at: 0,
            last_at: 0,
        };
        let at = pool::unblock(move || {
            std::fs::create_dir_all(&folder)?;
            Folder::open_root(&folder)
        })
        .await
        .map_err(VaultError::io("cannot open the folder to restore to"))?;
        let path = show(std::slice::from_ref(&node.name));
        let item = Item { at: Arc::new(at), path, name: node.name.clone(), node, manifest };
        self.batch(Batch { items: vec![item], ..Batch::default() }, false, Device(0)).await
    }

    async fn batch(&self, batch: Batch, into_home: bool, device: Device) -> Result<Restored, VaultError> {
        let mut landing = Landing::default();
        self.write(batch, into_home, &mut landing).await?;
        self.land(landing, into_home, device).await
    }

    /// Writes the files of a batch; they have no names yet.
    async fn write(&self, batch: Batch, into_home: bool, landing: &mut Landing) -> Result<(), VaultError> {
        landing.restored.absorb(batch.restored);
        let (large, small): (Vec<_>, Vec<_>) = batch
            .items
            .into_iter()
            .partition(|item| item.manifest.size > SMALL_FILE_BYTES && item.manifest.kind == Kind::File);
        let mut done = self.small(small, into_home).await?;
        for item in large {
            done.push(self.large(item, into_home).await?);
        }
        let written = done.iter().filter_map(|d| if let Done::Put(_, item) = d { Some(item) } else { None });
        landing.bytes += written.map(|item| item.manifest.size).sum::<u64>();
        landing.done.extend(done);
        landing.leaving.extend(batch.leaving);
        Ok(())
    }

    async fn land(&self, landing: Landing, into_home: bool, device: Device) -> Result<Restored, VaultError> {
        let (vault, links) = (Arc::clone(&self.vault), Arc::clone(&self.links));
        let mut restored = pool::unblock(move || put_all(&vault, landing, into_home, device, &links)).await?;
        restored.is_full = self.is_full.get();
        Ok(restored)
    }

    /// Small files, in as many jobs as there are cores; what lacks chunks is fetched and tried once more.
    async fn small(&self, items: Vec<Item>, into_home: bool) -> Result<Vec<Done>, VaultError> {
        let mut all = Vec::with_capacity(items.len());
        let mut items = items;
        for round in 0..2 {
            let mut shares: Vec<Vec<Item>> = (0..self.jobs).map(|_| Vec::new()).collect();
            for (n, item) in items.drain(..).enumerate() {
                shares[n % self.jobs].push(item);
            }
            let jobs: Vec<_> = shares
                .into_iter()
                .filter(|s| !s.is_empty())
                .map(|share| self.job(share, into_home))
                .collect();
            let mut wanted = Vec::new();
            for done in futures_util::future::join_all(jobs).await {
                for done in done? {
                    match done {
                        Done::NeedsChunks(item, names) if round == 0 => {
                            wanted.extend(names);
                            items.push(item);
                        }
                        Done::NeedsChunks(item, _) => {
                            all.push(Done::Failed(item.path, self.why_not().into()))
                        }
                        other => all.push(other),
                    }
                }
            }
            if items.is_empty() {
                break;
            }
            self.get(wanted).await;
        }
        Ok(all)
    }

    async fn job(&self, share: Vec<Item>, into_home: bool) -> Result<Vec<Done>, VaultError> {
        let permit = self.permits.acquire_arc().await;
        let (vault, links) = (Arc::clone(&self.vault), Arc::clone(&self.links));
        pool::unblock(move || {
            let _permit = permit;
            let rows = chunk_rows(&vault, &share)?;
            share.into_iter().map(|item| write_small(&vault, item, &rows, into_home, &links)).collect()
        })
        .await
    }

    /// A large file, some chunks at a time.
    async fn large(&self, item: Item, into_home: bool) -> Result<Done, VaultError> {
        let links = Arc::clone(&self.links);
        let begun = pool::unblock(move || begin(item, into_home, &links)).await?;
        let (temp, item) = match begun {
            Begun::Write(temp, item) => (temp, *item),
            Begun::Done(done) => return Ok(*done),
        };
        // Lists first: without them it is not known what is needed.
        let lists: Vec<ChunkName> = item
            .manifest
            .entries
            .iter()
            .filter(|e| matches!(e, Entry::List { .. }))
            .filter_map(Entry::chunk)
            .collect();
        let missing = self.ensure(lists).await?;
        if !missing.is_empty() {
            return Ok(Done::Failed(item.path, self.why_not().into()));
        }
        let file = Arc::new(temp.file().try_clone().map_err(VaultError::io("cannot write"))?);
        let manifest = Arc::new(item.manifest.clone());
        let (mut at, mut offset) = (0, 0);
        let mut window = self.window(&manifest, at).await?;
        loop {
            let Some(entries) = window else { return Ok(Done::Failed(item.path, self.why_not().into())) };
            if entries.is_empty() {
                break;
            }
            at += entries.len();
            let mut jobs = Vec::new();
            for entry in entries {
                let len = entry.len();
                if matches!(entry, Entry::Chunk { .. }) {
                    jobs.push(self.write_chunk(Arc::clone(&file), offset, item.manifest.epoch, entry));
                }
                offset += len;
            }
            let writing = futures_util::future::join_all(jobs);
            let (written, next) = smol::future::zip(writing, self.window(&manifest, at)).await;
            for written in written {
                match written {
                    Ok(()) => {}
                    Err(VaultError::Io { doing, why }) => {
                        return Ok(Done::Failed(item.path, format!("{doing}: {why}")));
                    }
                    Err(why) => return Err(why),
                }
            }
            window = next?;
        }
        // A hole at the end is written by nobody.
        if let Err(why) = file.set_len(item.manifest.size) {
            return Ok(Done::Failed(item.path, why.to_string()));
        }
        Ok(pool::unblock(move || written(temp, item)).await)
    }

    /// The next entries of a large file, with their chunks here; `None`: they cannot all be had.
    async fn window(&self, manifest: &Arc<Manifest>, at: usize) -> Result<Option<Vec<Entry>>, VaultError> {
        // Lists are opened again for each window, which is cheap beside its chunks.
        let (vault, manifest) = (Arc::clone(&self.vault), Arc::clone(manifest));
        let entries: Vec<Entry> = pool::unblock(move || {
            EntryCursor::new(&vault, &manifest).skip(at).take(WINDOW_CHUNKS).collect::<Result<_, _>>()
        })
        .await?;
        let missing = self.ensure(entries.iter().filter_map(Entry::chunk).collect()).await?;
        Ok(missing.is_empty().then_some(entries))
    }

    async fn write_chunk(
        &self,
        file: Arc<File>,
        offset: u64,
        epoch: u32,
        entry: Entry,
    ) -> Result<(), VaultError> {
        let permit = self.permits.acquire_arc().await;
        let vault = Arc::clone(&self.vault);
        pool::unblock(move || {
            let _permit = permit;
            let row = match entry.chunk() {
                Some(name) => vault.db.read(|t| t.chunk(&name))?,
                None => None,
            };
            match open_chunk(&vault, epoch, &entry, row.as_ref())? {
                Some(bytes) => {
                    write_with_holes(&file, &bytes, offset).map_err(VaultError::io("cannot write"))?;
                    buffers::give(bytes);
                    Ok(())
                }
                None => Err(VaultError::io("a chunk")(io::Error::other(NOT_REACHED))),
            }
        })
        .await
    }

    /// Gets what is not here; gives what could not be had.
    async fn ensure(&self, names: Vec<ChunkName>) -> Result<Vec<ChunkName>, VaultError> {
        let vault = Arc::clone(&self.vault);
        let absent: Vec<ChunkName> = pool::unblock(move || vault.absent(names)).await?;
        if absent.is_empty() { Ok(absent) } else { Ok(self.get(absent).await) }
    }

    /// Gets chunks from peers; gives what could not be had.
    async fn get(&self, names: Vec<ChunkName>) -> Vec<ChunkName> {
        let lacking = self.fetch.fetch(names).await;
        self.is_full.set(self.is_full.get() || lacking.is_full);
        lacking.names
    }

    fn why_not(&self) -> &'static str {
        if self.is_full.get() { NO_ROOM } else { NOT_REACHED }
    }
}

const NOT_REACHED: &str = "no cell that is reachable now has its bytes; it comes by itself when one is";
const NO_ROOM: &str = "this disk has no room for its bytes; free some space";

async fn step(mut walk: RestoreWalk) -> Result<(RestoreWalk, Batch), VaultError> {
    pool::unblock(move || {
        let batch = walk.step()?;
        Ok((walk, batch))
    })
    .await
}

enum Begun {
    Write(Temp, Box<Item>),
    Done(Box<Done>),
}

/// The bytes are there: mode and time come before the name, which must never stand for less after a power cut.
fn written(temp: Temp, item: Item) -> Done {
    match temp.set(item.manifest.mode, item.manifest.mtime) {
        Ok(()) => Done::Put(temp, item),
        Err(why) => failed(item, &why),
    }
}

fn failed(item: Item, why: &io::Error) -> Done {
    Done::Failed(item.path, why.to_string())
}

/// Looks at what has the name now, and makes a link of what was brought back already.
fn begin(item: Item, into_home: bool, links: &LinkMap) -> Result<Begun, VaultError> {
    let before = match item.at.stat_if_there(&item.name) {
        Ok(before) => before,
        Err(why) => return Ok(Begun::Done(Box::new(failed(item, &why)))),
    };
    let m = &item.manifest;
    if let Some(stat) = &before {
        let looks_same = stat.kind == Some(m.kind) && stat.size == m.size && stat.mtime == m.mtime;
        // In GroveHome that is a restore that was cut off before it could note what it had put there.
        if looks_same
            && (stat.mode == m.mode || m.kind == Kind::Symlink)
            && !(into_home && is_replaceable(&item.node, stat))
        {
            return Ok(Begun::Done(Box::new(Done::Unchanged(item))));
        }
    }
    if before.is_none() && link_to_first(&item, links) {
        return Ok(Begun::Done(Box::new(Done::There(item, true))));
    }
    match item.at.create_temp() {
        Ok(temp) => Ok(Begun::Write(temp, Box::new(item))),
        Err(why) => Ok(Begun::Done(Box::new(failed(item, &why)))),
    }
}

type Rows = HashMap<ChunkName, ChunkRow>;

/// Where the chunks of these lie, looked up at once: the jobs share the database.
fn chunk_rows(vault: &Vault, items: &[Item]) -> Result<Rows, VaultError> {
    let names = items.iter().flat_map(|item| item.manifest.entries.iter().filter_map(Entry::chunk));
    let mut rows = Rows::new();
    vault.db.read(|t| -> Result<(), VaultError> {
        for name in names {
            rows.extend(t.chunk(&name)?.map(|row| (name, row)));
        }
        Ok(())
    })?;
    Ok(rows)
}

fn write_small(
    vault: &Vault,
    item: Item,
    rows: &Rows,
    into_home: bool,
    links: &LinkMap,
) -> Result<Done, VaultError> {
    if item.manifest.kind == Kind::Symlink {
        return Ok(write_link(item));
    }
    let (temp, item) = match begin(item, into_home, links)? {
        Begun::Write(temp, item) => (temp, *item),
        Begun::Done(done) => return Ok(*done),
    };
    let (mut offset, mut ends_in_hole) = (0, false);
    let mut missing = Vec::new();
    for entry in &item.manifest.entries {
        if let Entry::Chunk { name, .. } = entry {
            match open_chunk(vault, item.manifest.epoch, entry, rows.get(name))? {
                Some(bytes) => {
                    if let Err(why) = write_with_holes(temp.file(), &bytes, offset) {
                        return Ok(failed(item, &why));
                    }
                    ends_in_hole = bytes.last() == Some(&0);
                }
                None => missing.push(*name),
            }
        }
        offset += entry.len();
    }
    if !missing.is_empty() {
        return Ok(Done::NeedsChunks(item, missing));
    }
    if ends_in_hole || matches!(item.manifest.entries.last(), Some(Entry::Hole { .. })) {
        if let Err(why) = temp.file().set_len(item.manifest.size) {
            return Ok(failed(item, &why));
        }
    }
    Ok(written(temp, item))
}

fn write_link(item: Item) -> Done {
    let (at, m) = (&item.at, &item.manifest);
    match at.stat_if_there(&item.name) {
        Ok(Some(stat))
            if stat.kind == Some(Kind::Symlink) && at.read_link(&item.name).is_ok_and(|t| t == m.target) =>
        {
            let _ = at.set_mtime(&item.name, m.mtime);
            Done::There(item, false)
        }
        Ok(None) => {
            match at.create_link(&m.target, &item.name).and_then(|()| at.set_mtime(&item.name, m.mtime)) {
                Ok(()) => Done::There(item, true),
                Err(why) => failed(item, &why),
            }
        }
        Ok(Some(stat)) if is_replaceable(&item.node, &stat) => {
            let made = at
                .remove_file(&item.name)
                .and_then(|()| at.create_link(&m.target, &item.name))
                .and_then(|()| at.set_mtime(&item.name, m.mtime));
            match made {
                Ok(()) => Done::There(item, true),
                Err(why) => failed(item, &why),
            }
        }
        Ok(Some(_)) => {
            Done::Failed(item.path, "something newer has its name here; it is kept as it is".into())
        }
        Err(why) => failed(item, &why),
    }
}

/// A chunk's bytes of the file, without padding; `None`: not here.
fn open_chunk(
    vault: &Vault,
    epoch: u32,
    entry: &Entry,
    row: Option<&ChunkRow>,
) -> Result<Option<Vec<u8>>, VaultError> {
    let Entry::Chunk { name, key, encoding, len } = entry else { return Ok(None) };
    if *encoding != ENCODING_RAW {
        return Err(VaultError::Refused("made by a newer Grove; update this one to read it".into()));
    }
    // What opens under the key that the manifest names, and makes that key, is what was sealed: its name need not be
    // looked at, too.
    let sealer = vault.sealer_of(epoch);
    let read = row.and_then(|row| vault.store.read(*name, row.place?, row.len).ok());
    let mut bytes = match read.and_then(|sealed| sealer.open(key, *encoding, sealed).ok()) {
        Some(bytes) => bytes,
        // Moved meanwhile, gone or damaged: the thorough way tells, and puts a damaged one away.
        None => {
            let Some(sealed) = vault.local_chunk(name)? else { return Ok(None) };
            let opened = sealer.open(key, *encoding, sealed);
            opened.map_err(|why| VaultError::Record(why.to_string()))?
        }
    };
    if bytes.len() < *len as usize {
        return Err(VaultError::Record(format!("chunk {} is shorter than its manifest says", name.short())));
    }
    bytes.truncate(*len as usize);
    Ok(Some(bytes))
}

/// Writes to a new file and leaves out blocks of zeros, which stay holes; so the file may end too early.
fn write_with_holes(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    let is_hole = |block: &[u8]| block.iter().all(|byte| *byte == 0);
    // Blocks of the file system, whatever the offset of the first byte.
    let first = (BLOCK_BYTES - (offset % BLOCK_BYTES as u64) as usize) % BLOCK_BYTES;
    let (head, rest) = bytes.split_at(first.min(bytes.len()));
    file.write_all_at(head, offset)?;
    let mut at = 0;
    while at < rest.len() {
        let next = |at: usize| (at + BLOCK_BYTES).min(rest.len());
        if is_hole(&rest[at..next(at)]) {
            at = next(at);
            continue;
        }
        let start = at;
        while at < rest.len() && !is_hole(&rest[at..next(at)]) {
            at = next(at);
        }
        file.write_all_at(&rest[start..at], offset + (head.len() + start) as u64)?;
    }
    Ok(())
}

/// Whether what has the name now is what was last recorded, so that replacing it loses nothing.
fn is_replaceable(node: &Node, stat: &Stat) -> bool {
    node.ctime != 0
        && Some(node.kind) == stat.kind
        && node.size == stat.size
        && node.mtime == stat.mtime
        && node.ctime == stat.ctime
        && node.ino == stat.ino
}

/// Makes what was written durable, gives it its name, makes that durable, and records that it is here: in GroveHome a
/// record of a file that a power cut took would look as if it was deleted here.
fn put_all(
    vault: &Vault,
    landing: Landing,
    into_home: bool,
    device: Device,
    links: &LinkMap,
) -> Result<Restored, VaultError> {
    let Landing { done, leaving, mut restored, .. } = landing;
    let at = done.iter().find_map(Done::place).filter(|_| into_home).cloned();
    let sync = || match &at {
        Some(at) => at.sync_file_system().map_err(VaultError::io("cannot make restored files durable")),
        None => Ok(()),
    };
    if done.iter().any(|done| matches!(done, Done::Put(..))) {
        sync()?;
    }
    let mut seen = Vec::new();
    for done in done {
        let Some((item, name)) = put_one(done, into_home, links, &mut restored) else { continue };
        remember_link(links, &item, &name);
        if into_home {
            if let Ok(stat) = item.at.stat(&name) {
                seen.push((item.node, stat));
            }
        }
    }
    sync()?;
    note_seen(vault, seen, device)?;
    leave(vault, leaving, into_home, device, &mut restored)?;
    Ok(restored)
}

/// Gives one file its name; gives it back if it has its own.
fn put_one(done: Done, into_home: bool, links: &LinkMap, restored: &mut Restored) -> Option<(Item, Vec<u8>)> {
    match done {
        Done::Put(temp, item) => {
            // Looked at just before the name is given: since the bytes were written somebody may have changed it.
            let now = match item.at.stat_if_there(&item.name) {
                Ok(now) => now,
                Err(why) => {
                    restored.miss(item.path, why.to_string());
                    return None;
                }
            };
            let replace = now.as_ref().is_some_and(|stat| into_home && is_replaceable(&item.node, stat));
            // Another name of the same file may have come with the same batch.
            let put = match now.is_none() && link_to_first(&item, links) {
                true => Ok(item.name.clone()),
                false => put(temp, &item, replace, now.is_some()),
            };
            match put {
                Ok(name) => {
                    restored.files += 1;
                    restored.bytes += item.manifest.size;
                    if name == item.name {
                        return Some((item, name));
                    }
                    let name = show(std::slice::from_ref(&name));
                    restored.set_aside.push(format!("{} → {name}", item.path));
                }
                Err(why) => restored.miss(item.path, why.to_string()),
            }
            return None;
        }
        Done::There(item, is_new) => {
            restored.files += u64::from(is_new);
            restored.unchanged += u64::from(!is_new);
            restored.bytes += if is_new && item.manifest.kind == Kind::File { item.manifest.size } else { 0 };
            let name = item.name.clone();
            return Some((item, name));
        }
        Done::Unchanged(item) => {
            restored.unchanged += 1;
            let name = item.name.clone();
            return Some((item, name));
        }
        Done::NeedsChunks(item, _) => restored.miss(item.path, NOT_REACHED),
        Done::Failed(path, why) => restored.miss(path, why),
    }
    None
}

/// Makes a name a link to what was brought back under another one of the same file; `false`: it was not.
fn link_to_first(item: &Item, links: &LinkMap) -> bool {
    let Some(group) = item.manifest.link_group else { return false };
    let first = lock(links)
        .get(&group)
        .filter(|(.., entries)| *entries == item.manifest.entries)
        .map(|(at, name, _)| (Arc::clone(at), name.clone()));
    first.is_some_and(|(at, name)| item.at.link(&at, &name, &item.name).is_ok())
}

fn remember_link(links: &LinkMap, item: &Item, name: &[u8]) {
    let Some(group) = item.manifest.link_group else { return };
    let mut links = lock(links);
    if links.len() < LINKS_MAX {
        links
            .entry(group)
            .or_insert_with(|| (Arc::clone(&item.at), name.to_vec(), item.manifest.entries.clone()));
    }
}

/// Gives folders their modes and times, now that all in them is there.
fn leave(
    vault: &Vault,
    leaving: Vec<Leaving>,
    into_home: bool,
    device: Device,
    restored: &mut Restored,
) -> Result<(), VaultError> {
    for leaving in leaving {
        if into_home && leaving.node.id == NodeId::ROOT && leaving.node.seq == 0 {
            continue;
        }
        // What is still missing will change the folder's time when it comes.
        if into_home && vault.db.read(|t| t.has_awaiting_child(leaving.node.id))? {
            continue;
        }
        let set = leaving.folder.set_self(leaving.node.mode, leaving.node.mtime);
        match set.and_then(|()| leaving.folder.stat_self()) {
            Ok(stat) => {
                restored.folders += 1;
                // At once: the folder above looks whether this one still awaits something.
                if into_home {
                    note_seen(vault, vec![(leaving.node, stat)], device)?;
                }
            }
            Err(why) => restored.miss(leaving.path, why.to_string()),
        }
    }
    Ok(())
}

/// Records that these are here.
fn note_seen(vault: &Vault, seen: Vec<(Node, Stat)>, device: Device) -> Result<(), VaultError> {
    if seen.is_empty() {
        return Ok(());
    }
    vault.db.change(|t| -> Result<(), VaultError> {
        for (node, stat) in seen {
            // Only if nobody changed its version meanwhile.
            let Some(mut now) = t.node(node.id)?.filter(|now| now.seq == node.seq) else { continue };
            version::set_seen(&mut now, &stat, device);
            t.set_node(&now)?;
            version::forget_remote_only(t, now.file)?;
        }
        Ok(())
    })
}

/// Puts a file in place, or beside what has its place by right. Gives the name it got.
fn put(temp: Temp, item: &Item, replace: bool, is_taken: bool) -> io::Result<Vec<u8>> {
    if replace || !is_taken {
        let written = temp.put(&item.at, &item.name, replace);
        return match written {
            Ok(()) => Ok(item.name.clone()),
            // Somebody was faster: it stays, and a later restore puts ours beside it.
            Err(why) if why.kind() == io::ErrorKind::AlreadyExists => {
                Err(io::Error::other("something newer got its name meanwhile; it is kept as it is"))
            }
            Err(why) => Err(why),
        };
    }
    let name = free_name(item)?;
    temp.put(&item.at, &name, false)?;
    Ok(name)
}

/// `photo (restored).jpg`, or with a number where that is taken.
fn free_name(item: &Item) -> io::Result<Vec<u8>> {
    let name = &item.name;
    let dot = name
        .iter()
        .rposition(|c| *c == b'.')
        .filter(|at| *at > 0 && name.len() - at <= 16)
        .unwrap_or(name.len());
    for n in 1..1000 {
        let mark = if n == 1 { " (restored)".to_string() } else { format!(" (restored {n})") };
        let stem = &name[..dot.min(NAME_BYTES_MAX - mark.len() - (name.len() - dot))];
        let free = [stem, mark.as_bytes(), &name[dot..]].concat();
        if item.at.stat_if_there(&free)?.is_none() {
            return Ok(free);
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

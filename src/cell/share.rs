//! What a person does about sharing: share, take back, look at the Feed, fetch from it.

use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use super::Cell;
use super::api::{failure, json, needs, not_running, number_param};
use super::json::{Fields, Obj, list, text};
use super::keeper::Progress;
use super::range::{self, Asked};
use crate::dashboard::api::{ApiRequest, ApiResponse, Method};
use crate::files::unix::{TEMP_PREFIX, from_wire, to_wire};
use crate::files::version::{self, Known};
use crate::grant::numbered_names;
use crate::id::{CellId, hex};
use crate::keys::sha256;
use crate::manifest::Kind;
use crate::order;
use crate::placement::{Node, NodeId, NodeState};
use crate::pool;
use crate::sync::{FeedEntry, ShareRow, Sync, Told};
use crate::vault::{Vault, VaultError};

/// Entries of one page of the Feed: each is opened for it.
const FEED_PAGE_MAX: u64 = 500;
/// Friends that one request shares with.
const PEERS_MAX: usize = 64;
/// Names that are tried for a file of which the name is taken.
const NAMES_TRIED: usize = 100;
/// Names looked at together, of files that are to be sealed anew.
const RESEALED_AT_ONCE: usize = 500;
/// What cannot be taken back.
const STAYS: &str =
    "what was fetched already stays with them; versions that you save from now on get new keys";

fn feed_json(entry: &FeedEntry) -> String {
    let row = &entry.row;
    Obj::new()
        .str("id", &row.file.to_string())
        .str("name", &entry.name)
        .raw("folders", list(entry.folders.iter().map(|name| text(name))))
        .num("size", row.size)
        .str("media", &entry.media)
        .num("version", row.version)
        .str("from", &entry.from)
        .str("from_id", &row.creator.to_string())
        .num("received_s", row.received)
        .num("expires_s", row.expires)
        .str("share", &row.share.map_or(String::new(), |share| hex(&share)))
        .num("holders", entry.holders)
        .str("state", entry.state)
        .bool("kept", row.is_kept)
        .end()
}

fn told_json(to: Obj, told: &Told) -> Obj {
    to.raw("told", list(told.told.iter().map(|name| text(name))))
        .raw("waiting", list(told.waiting.iter().map(|name| text(name))))
        .str("stays", STAYS)
}

/// Where a file lies until it is whole: beside its place, the same after a break.
fn temp_for(entry: &FeedEntry, place: &Path) -> PathBuf {
    let folder = place.parent().unwrap_or(Path::new("/"));
    let key =
        [&entry.row.ticket[..], &entry.row.version.to_le_bytes(), place.as_os_str().as_bytes()].concat();
    let name = [TEMP_PREFIX, hex(&sha256(&key)[..8]).as_bytes()].concat();
    folder.join(std::ffi::OsString::from_vec(name))
}

impl Cell {
    pub(super) async fn answer_about_shares(
        self: &Rc<Self>,
        request: &ApiRequest,
        rest: &[&str],
        fields: &Fields,
    ) -> ApiResponse {
        let Some(sync) = self.synced() else {
            return not_running();
        };
        match (request.method, rest) {
            (Method::Post, ["share"]) => {
                let Some(path) = fields.str("path") else { return needs("path") };
                let Some(peers) = fields.strs("peers").filter(|peers| !peers.is_empty()) else {
                    return needs("peers");
                };
                let until = match (fields.num("until_s"), fields.num("for_s")) {
                    (Some(until), _) => until,
                    (None, Some(span)) => sync.unix_now().saturating_add(span),
                    (None, None) => 0,
                };
                json(self.share(&sync, path, &peers, until).await)
            }
            (Method::Post, ["unshare"]) => {
                let path = fields.str("path");
                if path.is_none() && !fields.bool("all") {
                    return needs("path");
                }
                let Some(peers) = fields.strs("peers").filter(|peers| !peers.is_empty()) else {
                    return needs("peers");
                };
                json(unshare(&sync, path, &peers).await)
            }
            (Method::Post, ["reseal"]) => match fields.str("path") {
                Some(path) => self.reseal(path, fields.bool("confirm")).await,
                None => needs("path"),
            },
            (Method::Get, ["shares"]) => json(self.shares_json(&sync).await),
            (Method::Get, ["feed"]) => {
                let before = number_param(request, "before").unwrap_or(u64::MAX);
                let limit =
                    number_param(request, "limit").unwrap_or(FEED_PAGE_MAX).clamp(1, FEED_PAGE_MAX) as usize;
                json(sync.feed(before, limit).await.map(|(entries, next)| {
                    let next = next.map_or("null".into(), |n| n.to_string());
                    Obj::new().raw("entries", list(entries.iter().map(feed_json))).raw("next", next).end()
                }))
            }
            (Method::Post, ["feed", "keep"]) => match fields.str("id") {
                Some(id) => json(self.keep_shared(&sync, id, !fields.bool("off")).await),
                None => needs("id"),
            },
            (Method::Post, ["feed", "fetch"]) => self.fetch_shared(&sync, fields),
            (Method::Get, ["feed", "content"]) => self.shared_content(&sync, request).await,
            _ => ApiResponse::error(404, "not_found", "there is nothing at this path", ""),
        }
    }

    async fn share(
        &self,
        sync: &Rc<Sync>,
        path: &str,
        peers: &[String],
        until: u64,
    ) -> Result<String, VaultError> {
        let peers = find_all(sync, peers)?;
        let shared = sync.share(from_wire(path), &peers, until).await?;
        let peers = shared.iter().map(|shared| {
            Obj::new()
                .str("name", &shared.name)
                .str("id", &shared.peer.to_string())
                .num("files", shared.files)
                .num("arrived", shared.arrived)
                .end()
        });
        Ok(Obj::new().str("path", path).num("until_s", until).raw("peers", list(peers)).end())
    }

    /// Seals all chunks of a file, or of all files in a folder, anew: what it costs, and with `is_confirmed` the work.
    async fn reseal(self: &Rc<Self>, path: &str, is_confirmed: bool) -> ApiResponse {
        let names = match super::files::path_names(&from_wire(path)) {
            Ok(names) => names,
            Err(why) => return failure(&why),
        };
        let (vault, asked) = (Arc::clone(&self.vault), names.clone());
        let cost = pool::unblock(move || Resealing::of(&vault, &asked, is_confirmed)).await;
        let cost = match cost {
            Ok(cost) => cost,
            Err(why) => return failure(&why),
        };
        if !is_confirmed {
            return ApiResponse::json_text(200, cost.json(&self.vault).end());
        }
        let cell = Rc::clone(self);
        self.jobs.start(&self.executor, "reseal", |job| async move {
            job.say("sealing anew".to_owned());
            let scope = cell.scope_of(vec![names]).await?;
            let progress = Progress::default();
            let kept = cell.keeper.keep(scope, true, true, &progress).await?;
            cell.after_change();
            Ok(cost.json(&cell.vault).num("resealed", kept.files).end())
        })
    }

    async fn shares_json(&self, sync: &Rc<Sync>) -> Result<String, VaultError> {
        let (vault, books) = (Arc::clone(&self.vault), sync.books());
        let rows = pool::unblock(move || -> Result<Vec<_>, VaultError> {
            let row = |share: ShareRow| -> Result<_, VaultError> {
                let path = vault.db.read(|t| match t.node_of(share.file)? {
                    Some(node) => t.path(node.id),
                    None => Ok(None),
                })?;
                let counts = books.grant_counts(&share.id)?;
                Ok((share, path, counts))
            };
            books.shares()?.into_iter().map(row).collect()
        })
        .await?;
        let shares = rows.into_iter().map(|(share, path, (files, arrived))| {
            Obj::new()
                .str("path", &path.map_or(String::new(), |names| to_wire(&names.join(&b'/'))))
                .str("id", &share.file.to_string())
                .bool("folder", share.is_folder)
                .str("with", &sync.peer_name(&share.peer))
                .str("with_id", &share.peer.to_string())
                .num("since_s", share.since)
                .num("until_s", share.until)
                .num("files", files)
                .num("arrived", arrived)
                .end()
        });
        Ok(Obj::new().raw("shares", list(shares)).end())
    }

    /// Fetches a file of the Feed to a place on this machine, or into GroveHome.
    fn fetch_shared(self: &Rc<Self>, sync: &Rc<Sync>, fields: &Fields) -> ApiResponse {
        let Some(id) = fields.str("id").map(str::to_owned) else { return needs("id") };
        let is_added = fields.bool("add");
        let to = fields.str("to").map(from_wire);
        if to.is_none() && !is_added {
            return needs("to");
        }
        let (cell, sync) = (Rc::clone(self), Rc::clone(sync));
        self.jobs.start(&self.executor, "fetch", |job| async move {
            let (entry, opened) = sync.find_granted(&id).await?;
            job.say(format!("fetching {}", entry.name));
            let names = match is_added {
                true => cell.places_at_home(to.as_deref().unwrap_or_default(), &entry.name).await?,
                false => vec![place_for(to.unwrap_or_default(), &entry.name)?],
            };
            let temp = temp_for(&entry, &names[0]);
            let size = entry.row.size;
            let told = |bytes: u64| job.progress(bytes, size, "bytes");
            let fetched = sync.fetch_granted(&entry, opened, names, temp, &told).await?;
            let mut kept = 0;
            if is_added {
                let inside = fetched.path.strip_prefix(&cell.vault.home).ok();
                let inside = inside.and_then(crate::files::unix::names_of).unwrap_or_default();
                let scope = cell.scope_of(vec![inside]).await?;
                kept = cell.keeper.keep(scope, true, true, &Progress::default()).await?.files;
                cell.after_change();
            }
            Ok(Obj::new()
                .str("path", &to_wire(fetched.path.as_os_str().as_bytes()))
                .str("name", &entry.name)
                .num("bytes", fetched.bytes)
                .num("came", fetched.came)
                .raw("from", list(fetched.from.iter().map(|name| text(name))))
                .num("added", kept)
                .end())
        })
    }

    /// New files and versions of a share come by themselves from now on, or no more.
    async fn keep_shared(
        self: &Rc<Self>,
        sync: &Rc<Sync>,
        id: &str,
        is_kept: bool,
    ) -> Result<String, VaultError> {
        let share = sync.keep_share(id, is_kept).await?;
        let own = share.here.len();
        if own > 0 {
            // What stays here is this cell's own, and kept like all else.
            let scope = self.scope_of(share.here).await?;
            self.keeper.keep(scope, true, false, &Progress::default()).await?;
            self.after_change();
        }
        Ok(Obj::new()
            .str("from", &share.from)
            .str("folder", &to_wire(share.folder.as_bytes()))
            .bool("kept", is_kept)
            .num("own", own)
            .end())
    }

    /// Places in GroveHome for a file of this name.
    async fn places_at_home(&self, folder: &[u8], name: &str) -> Result<Vec<PathBuf>, VaultError> {
        let names = super::files::path_names(folder)?;
        let (vault, name) = (Arc::clone(&self.vault), name.to_owned());
        pool::unblock(move || {
            let root = crate::files::unix::Folder::open_root(&vault.home)
                .map_err(VaultError::io("cannot open GroveHome"))?;
            crate::files::marker::check(&vault, &root)?;
            root.walk_or_create(&names).map_err(VaultError::io("cannot make the folder in GroveHome"))?;
            let folder = names
                .iter()
                .fold(vault.home.clone(), |at, name| at.join(std::ffi::OsString::from_vec(name.clone())));
            Ok(numbered_names(&name, NAMES_TRIED).map(|name| folder.join(name)).collect())
        })
        .await
    }

    /// The bytes of a file of the Feed, or a range of them, while they come.
    async fn shared_content(self: &Rc<Self>, sync: &Rc<Sync>, request: &ApiRequest) -> ApiResponse {
        let Some(id) = request.param("id").and_then(|id| std::str::from_utf8(id).ok()) else {
            return needs("id");
        };
        let (entry, opened) = match sync.find_granted(id).await {
            Ok(found) => found,
            Err(why) => return failure(&why),
        };
        let size = entry.row.size;
        let tag =
            sha256(&[&entry.row.ticket[..], &entry.row.version.to_le_bytes(), &entry.row.grant].concat());
        let tag = format!("\"{}\"", hex(&tag[..16]));
        let asked = range::asked(request, size, &tag);
        if let Some(answer) = range::bare(asked, size, &tag) {
            return answer;
        }
        let (offset, len) = match asked {
            Asked::Part(offset, len) => (offset, len),
            _ => {
                let offset = number_param(request, "offset").unwrap_or(0).min(size);
                (offset, number_param(request, "length").unwrap_or(u64::MAX).min(size - offset))
            }
        };
        let (sender, receiver) = smol::channel::bounded(2);
        let sync = Rc::clone(sync);
        if !request.is_head {
            pool::spawn(&self.executor, async move {
                if let Err(why) = sync.read_granted(opened, offset, len, &sender).await {
                    log::warn!("a shared file could not be read to its end: {why}");
                    let _ = sender.send(Err(std::io::Error::other(why.to_string()))).await;
                }
            })
            .detach();
        }
        let mut response = ApiResponse::stream(Some(len), receiver);
        let is_inline = number_param(request, "inline") == Some(1);
        response.content_type = range::safe_type(entry.name.as_bytes()).to_owned();
        range::dress(response, asked, size, &tag)
            .with_header("Content-Disposition", &range::disposition(entry.name.as_bytes(), is_inline))
    }
}

/// Files that are to be sealed anew.
#[derive(Debug, Clone, Copy, Default)]
struct Resealing {
    files: u64,
    bytes: u64,
    /// Not on this disk: their next version is sealed so.
    absent: u64,
}

impl Resealing {
    /// All files at a path below GroveHome; with `is_begun` they are read anew at the next look, and sealed under the next
    /// epoch.
    fn of(vault: &Vault, path: &[Vec<u8>], is_begun: bool) -> Result<Self, VaultError> {
        let top = vault.db.read(|t| t.node_at(path))?.ok_or_else(|| {
            VaultError::Refused(format!("there is no {} in GroveHome", crate::files::unix::show(path)))
        })?;
        let mut found = Self::default();
        let mut stack: Vec<(NodeId, Vec<u8>)> = Vec::new();
        let mut page = vec![top];
        loop {
            for node in page {
                match node.kind {
                    Kind::Folder => stack.push((node.id, Vec::new())),
                    Kind::File => found.take(vault, node, is_begun)?,
                    Kind::Symlink => {}
                }
            }
            let Some((folder, after)) = stack.pop() else { return Ok(found) };
            page = vault.db.read(|t| t.children(folder, &after, RESEALED_AT_ONCE))?;
            if let Some(last) = page.last() {
                stack.push((folder, last.name.clone()));
            }
        }
    }

    fn take(&mut self, vault: &Vault, mut node: Node, is_begun: bool) -> Result<(), VaultError> {
        (self.files, self.bytes) = (self.files + 1, self.bytes + node.size);
        self.absent += u64::from(node.state != NodeState::Present);
        if !is_begun {
            return Ok(());
        }
        vault.db.change(|t| {
            let known = Known::load(vault, t, Some(node.clone()))?;
            if let Some(newest) = &known.manifest {
                version::next_epoch(t, node.file, newest)?;
            }
            // As if it had changed: the next look reads it.
            node.ctime = 0;
            Ok(t.set_node(&node)?)
        })
    }

    fn json(&self, vault: &Vault) -> Obj {
        let away = vault.config.copies.saturating_sub(1);
        Obj::new()
            .num("files", self.files)
            .num("bytes", self.bytes)
            .num("send_bytes", self.bytes.saturating_mul(away))
            .num("absent", self.absent)
    }
}

/// A file at an absolute path; in a folder it goes by its own name.
fn place_for(to: Vec<u8>, name: &str) -> Result<PathBuf, VaultError> {
    let is_folder = to.ends_with(b"/");
    let to = PathBuf::from(std::ffi::OsString::from_vec(to));
    if !to.is_absolute() {
        return Err(VaultError::Refused("name the place by its whole path".into()));
    }
    Ok(if is_folder || to.is_dir() { to.join(name) } else { to })
}

fn find_all(sync: &Sync, peers: &[String]) -> Result<Vec<CellId>, VaultError> {
    if peers.len() > PEERS_MAX {
        return Err(VaultError::Refused(format!("name at most {PEERS_MAX} friends at once")));
    }
    let mut ids = peers.iter().map(|peer| sync.find_peer(peer)).collect::<Result<Vec<CellId>, _>>()?;
    order::sort(&mut ids);
    ids.dedup();
    Ok(ids)
}

async fn unshare(sync: &Rc<Sync>, path: Option<&str>, peers: &[String]) -> Result<String, VaultError> {
    let peers = find_all(sync, peers)?;
    let (unshared, told) = sync.unshare(path.map(from_wire), &peers).await?;
    let peers = unshared
        .iter()
        .map(|unshared| Obj::new().str("name", &unshared.name).num("files", unshared.files).end());
    Ok(told_json(Obj::new().raw("peers", list(peers)), &told).end())
}

//! Sharing files with friends: what is granted and taken back. `offer` tells friends and holders, `bearers` answers them; the rows
//! are in `shares` and `received`, the formats in `crate::grant`.
//!
//! Promise: a grant is given to a friend only, a chunk only to whom a ticket names, and never after the list that takes it
//! back was seen here.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::books::Books;
use super::driver::Sync;
use super::offer::TELL_TIME_MAX;
use super::shares::{ShareRow, WantedGrant, deeper};
use crate::catalog::version_key_prefix;
use crate::files::brake;
use crate::files::version::burn_salt;
use crate::grant::FOLDERS_MAX;
use crate::id::{CellId, FileId};
use crate::keys::random;
use crate::manifest::{Check, Kind, Manifest};
use crate::placement::{DbError, Node, NodeId, Tables};
use crate::pool::unblock;
use crate::vault::{Vault, VaultError};
use crate::wire::within;
use crate::world::{Sabotage, Timer, is_sabotaged};

/// Files that one change of the books notes as granted or taken back.
const FILES_AT_ONCE: usize = 1000;
/// Rows of a folder that are looked at together.
const PAGE: usize = 500;
/// Shares of all peers together.
const SHARES_MAX: usize = 4096;
/// Records of grants that came are published after this, all together.
const PUBLISH_PAUSE: Duration = Duration::from_secs(2);
/// Looking through shared folders takes one part in so many of the time.
const RECONCILE_PART: u32 = 20;
/// Observed time plus this is Unix time, as long as the clock is believed.
const OFFSET_KEY: &str = "grants_unix";

/// What became of a wish to share.
#[derive(Debug, Clone)]
pub struct Shared {
    /// With whom.
    pub peer: CellId,
    /// Of that name.
    pub name: String,
    /// Files that are granted.
    pub files: u64,
    /// Of them those that have arrived.
    pub arrived: u64,
}

/// What became of a wish to take back.
#[derive(Debug, Clone)]
pub struct Unshared {
    /// From whom.
    pub name: String,
    /// Files that are no longer granted.
    pub files: u64,
}

/// Which holders know the newest list of revocations.
#[derive(Debug, Clone, Default)]
pub struct Told {
    /// These do, by name.
    pub told: Vec<String>,
    /// These hear of it when they are next connected.
    pub waiting: Vec<String>,
}

pub(super) fn refused(why: impl Into<String>) -> VaultError {
    VaultError::Refused(why.into())
}

impl Sync {
    /// Unix time in seconds by which grants expire: it stands still while the clock is doubted.
    pub fn unix_now(&self) -> u64 {
        if !self.vault.is_expiry_frozen() {
            self.unix_offset.set(Some(self.vault.clock.wall().saturating_sub(self.vault.now() as i64)));
        }
        let offset = self.unix_offset.get().unwrap_or(0);
        offset.saturating_add(self.vault.expiry_now() as i64).max(0) as u64
    }

    /// What the clock was believed to be before the start.
    pub(super) async fn load_grant_time(&self) -> Result<(), VaultError> {
        let vault = Arc::clone(&self.vault);
        let kept = unblock(move || vault.db.read(|t| t.meta_u64(OFFSET_KEY))).await?;
        self.unix_offset.set(kept.map(|offset| offset as i64));
        Ok(())
    }

    /// Keeps what the clock is believed to be, and lets go of shares whose time is over.
    pub(super) async fn keep_grant_time(self: &Rc<Self>) {
        self.unix_now();
        if let Some(offset) = self.unix_offset.get() {
            let vault = Arc::clone(&self.vault);
            let kept = unblock(move || {
                let before = vault.db.read(|t| t.meta_u64(OFFSET_KEY))?;
                // Seconds do not matter, and a row that is not written costs nothing.
                match before.is_none_or(|before| (before as i64 - offset).abs() > 60) {
                    true => vault.db.change(|t| t.set_meta_u64(OFFSET_KEY, offset as u64)),
                    false => Ok(()),
                }
            });
            if let Err(why) = kept.await {
                log::warn!("{why}");
            }
        }
        let (books, vault, now) = (Arc::clone(&self.books), Arc::clone(&self.vault), self.unix_now());
        if let Err(why) = unblock(move || books.drop_expired(&vault, now)).await {
            log::warn!("{why}");
        }
        self.reconciled_at.set(None);
        self.reconcile().await;
    }

    /// What was held back by the brake is looked at now.
    pub fn catch_up_sharing(self: &Rc<Self>) {
        self.reconciled_at.set(None);
        self.nudge_all(None);
    }

    /// The books, for those who only read them.
    pub fn books(&self) -> Arc<Books> {
        Arc::clone(&self.books)
    }

    /// What a peer is called here; of others the beginning of the id.
    pub fn peer_name(&self, id: &CellId) -> String {
        self.name_of(id)
    }

    // ---- What is granted ----

    /// Shares a file or folder of GroveHome with friends, until a Unix time (0: for good). Kept when this returns.
    pub async fn share(
        self: &Rc<Self>,
        path: Vec<u8>,
        peers: &[CellId],
        until: u64,
    ) -> Result<Vec<Shared>, VaultError> {
        if let Some(stranger) = peers.iter().find(|id| !self.is_friend(id)) {
            let name = self.name_of(stranger);
            return Err(refused(format!(
                "{name} is no friend, and only friends can be shared with; `grove peer friend {name}` asks for it"
            )));
        }
        let now = self.unix_now();
        if until != 0 && until <= now {
            return Err(refused("that time is over already"));
        }
        let vault = Arc::clone(&self.vault);
        let node = unblock(move || vault.db.read(|t| node_named(t, &path))).await?;
        if node.kind == Kind::Symlink {
            return Err(refused("this is a link; share the file that it leads to"));
        }
        let (file, is_folder) = (node.file, node.kind == Kind::Folder);
        for peer in peers {
            let share = ShareRow { id: random(), peer: *peer, file, is_folder, since: now, until };
            let (books, vault) = (Arc::clone(&self.books), Arc::clone(&self.vault));
            unblock(move || -> Result<(), VaultError> {
                if books.shares()?.len() >= SHARES_MAX {
                    return Err(refused("too much is shared already; `grove unshare` takes some of it back"));
                }
                books.put_share(&vault, &share).map(drop)
            })
            .await?;
        }
        self.reconciled_at.set(None);
        self.reconcile_now().await?;
        let offers = peers.iter().filter_map(|peer| self.link(peer)).map(|link| async move {
            within(TELL_TIME_MAX, self.offer(&link)).await;
            link.nudge();
        });
        futures_util::future::join_all(offers).await;
        self.publish_later();
        let mut shared = Vec::with_capacity(peers.len());
        for peer in peers {
            let (books, id) = (Arc::clone(&self.books), *peer);
            let counts = unblock(move || -> Result<_, DbError> {
                let share = books.shares()?.into_iter().find(|share| share.peer == id && share.file == file);
                share.map_or(Ok((0, 0)), |share| books.grant_counts(&share.id))
            });
            let (files, arrived) = counts.await?;
            shared.push(Shared { peer: id, name: self.name_of(peer), files, arrived });
        }
        Ok(shared)
    }

    /// Takes back what is shared with these peers: a file or folder (by path, or by id where it is gone), or `None`: all.
    pub async fn unshare(
        self: &Rc<Self>,
        what: Option<Vec<u8>>,
        peers: &[CellId],
    ) -> Result<(Vec<Unshared>, Told), VaultError> {
        let vault = Arc::clone(&self.vault);
        let file = match what {
            Some(path) => Some(unblock(move || file_named(&vault, &path)).await?),
            None => None,
        };
        let (books, vault, peers) = (Arc::clone(&self.books), Arc::clone(&self.vault), peers.to_vec());
        let turn = self.sharing.lock().await;
        let taken = unblock(move || -> Result<Vec<(CellId, u64)>, VaultError> {
            let mut taken = Vec::new();
            for share in books.shares()? {
                if peers.contains(&share.peer) && file.is_none_or(|file| file == share.file) {
                    taken.push((share.peer, take_back(&vault, &books, &share, None)?));
                }
            }
            Ok(taken)
        })
        .await?;
        drop(turn);
        if taken.is_empty() {
            return Err(refused("that is not shared with them; `grove feed` lists what is"));
        }
        let told = self.tell_all_taken_back().await;
        self.publish_soon();
        let unshared =
            taken.into_iter().map(|(peer, files)| Unshared { name: self.name_of(&peer), files }).collect();
        Ok((unshared, told))
    }

    /// A friendship has ended: nothing is shared with that cell any more, and what it shared is not wanted.
    pub(super) async fn end_sharing(self: &Rc<Self>, peer: &CellId) -> Result<(), VaultError> {
        let (books, vault, id) = (Arc::clone(&self.books), Arc::clone(&self.vault), *peer);
        let turn = self.sharing.lock().await;
        let count = unblock(move || -> Result<u64, VaultError> {
            books.unkeep_all(&id)?;
            let mut count = books.drop_received(&vault, &id, None)?;
            for share in books.shares()?.into_iter().filter(|share| share.peer == id) {
                take_back(&vault, &books, &share, None)?;
                count += 1;
            }
            Ok(count)
        })
        .await?;
        drop(turn);
        if count > 0 {
            self.nudge_all(None);
            self.publish_later();
            self.wake_keeping();
        }
        Ok(())
    }

    /// Brings what is granted level with what the files are now, where they have changed.
    pub(super) async fn reconcile(self: &Rc<Self>) {
        if let Err(why) = self.reconcile_now().await {
            log::warn!("what is shared cannot be brought level: {why}");
        }
    }

    async fn reconcile_now(self: &Rc<Self>) -> Result<(), VaultError> {
        let _alone = self.sharing.lock().await;
        let began = self.vault.clock.steady();
        let vault = Arc::clone(&self.vault);
        let top = unblock(move || vault.db.read(|t| Ok::<_, DbError>(t.top_seq()))).await?;
        match self.reconciled_at.get() {
            Some((seq, _)) if seq == top => return Ok(()),
            Some((_, pause_until)) if began < pause_until => return Ok(()),
            _ => {}
        }
        let (books, vault, now) = (Arc::clone(&self.books), Arc::clone(&self.vault), self.unix_now());
        let has_taken_back = unblock(move || reconcile(&vault, &books, now)).await?;
        let took = self.vault.clock.steady().saturating_sub(began);
        self.reconciled_at.set(Some((top, began + took * RECONCILE_PART)));
        if has_taken_back {
            self.nudge_all(None);
            self.publish_later();
        }
        Ok(())
    }

    /// Publishes in a moment, once for all that comes until then.
    pub(super) fn publish_later(self: &Rc<Self>) {
        if self.is_publishing_later.replace(true) {
            return;
        }
        let sync = Rc::clone(self);
        self.spawn(async move {
            Timer::after(PUBLISH_PAUSE).await;
            sync.is_publishing_later.set(false);
            sync.publish_soon();
        })
        .detach();
    }
}

/// Takes a share back, or some files of it; later versions of the files get new keys. Gives the number of files.
fn take_back(
    vault: &Vault,
    books: &Books,
    share: &ShareRow,
    files: Option<&[FileId]>,
) -> Result<u64, VaultError> {
    let files = books.take_back(vault, share, files)?;
    for slice in files.chunks(FILES_AT_ONCE) {
        vault.db.change_durably(|t| {
            slice.iter().try_for_each(|file| -> Result<(), VaultError> {
                let seq = match t.node_of(*file)? {
                    Some(node) => Some(node.seq),
                    // It is deleted, and may be restored.
                    None => {
                        let versions = t.records_with_prefix(&version_key_prefix(*file), FILES_AT_ONCE)?;
                        versions.last().map(|(seq, _)| *seq)
                    }
                };
                let Some(seq) = seq else { return Ok(()) };
                let Some(bytes) = t.record_at(seq)?.filter(|bytes| bytes.len() > 64) else { return Ok(()) };
                let manifest = Manifest::open(&bytes, &vault.master, Check::Trusted)?;
                Ok(burn_salt(t, *file, &manifest.salt)?)
            })
        })?;
    }
    Ok(files.len() as u64)
}

/// Brings what is granted level with the files; whether anything was taken back. While it is not sure that deletions and
/// changes were meant, nothing follows from them: files that are new are granted, and that is all.
fn reconcile(vault: &Vault, books: &Books, now: u64) -> Result<bool, VaultError> {
    let mut has_taken_back = false;
    for share in books.shares()? {
        if share.until != 0 && share.until < now {
            take_back(vault, books, &share, None)?;
            has_taken_back = true;
            continue;
        }
        let is_braked = vault.db.read(brake::load)?.is_on();
        match vault.db.read(|t| t.node_of(share.file))? {
            None if is_braked => {}
            None => {
                take_back(vault, books, &share, None)?;
                has_taken_back = true;
            }
            Some(node) if share.is_folder && node.kind == Kind::Folder => {
                grant_folder(vault, books, &share, node.id, is_braked)?;
                has_taken_back |= !is_braked && ungrant_moved(vault, books, &share, node.id)?;
            }
            Some(node) if node.kind == Kind::File => {
                let wanted = WantedGrant { file: node.file, version: node.version, folders: 0 };
                books.want_grants(vault.life(), &share.id, &[wanted], is_braked)?;
            }
            Some(_) => {}
        }
    }
    Ok(has_taken_back)
}

/// Grants every file in a folder, a thousand at a time.
fn grant_folder(
    vault: &Vault,
    books: &Books,
    share: &ShareRow,
    folder: NodeId,
    is_braked: bool,
) -> Result<(), VaultError> {
    // Folders that are looked through, each up to a name, how deep they lie, and in which.
    let mut stack: Vec<(NodeId, Vec<u8>, usize, i64)> = vec![(folder, Vec::new(), 0, 0)];
    let mut wanted = Vec::new();
    let want = |wanted: Vec<WantedGrant>| books.want_grants(vault.life(), &share.id, &wanted, is_braked);
    while let Some((id, after, depth, folders)) = stack.pop() {
        let page = vault.db.read(|t| t.children(id, &after, PAGE))?;
        if let Some(last) = page.last() {
            stack.push((id, last.name.clone(), depth, folders));
        }
        for node in page {
            match node.kind {
                Kind::File => wanted.push(WantedGrant { file: node.file, version: node.version, folders }),
                Kind::Folder if depth < FOLDERS_MAX => {
                    stack.push((node.id, Vec::new(), depth + 1, deeper(folders, &node.name)));
                }
                _ => {}
            }
        }
        if wanted.len() >= FILES_AT_ONCE {
            want(std::mem::take(&mut wanted))?;
        }
    }
    want(wanted)?;
    Ok(())
}

/// Takes back what is no longer in a shared folder; whether there was any.
fn ungrant_moved(vault: &Vault, books: &Books, share: &ShareRow, folder: NodeId) -> Result<bool, VaultError> {
    let mut after = None;
    let mut gone = Vec::new();
    loop {
        let page = books.grants_of(&share.id, after, FILES_AT_ONCE)?;
        let Some(last) = page.last() else { break };
        after = Some(last.file);
        gone.extend(vault.db.read(|t| -> Result<Vec<FileId>, DbError> {
            let mut gone = Vec::new();
            for row in &page {
                let node = t.node_of(row.file)?.filter(|node| node.kind == Kind::File);
                let is_in = match node {
                    Some(node) => t.is_within(node.parent, folder)?,
                    None => false,
                };
                if !is_in {
                    gone.push(row.file);
                }
            }
            Ok(gone)
        })?);
    }
    if gone.is_empty() || is_sabotaged(Sabotage::GrantsWhatMovedOut) {
        return Ok(false);
    }
    for slice in gone.chunks(FILES_AT_ONCE) {
        take_back(vault, books, share, Some(slice))?;
    }
    Ok(true)
}

/// The node of a path below GroveHome.
pub(super) fn node_named(t: &Tables<'_>, path: &[u8]) -> Result<Node, VaultError> {
    let names: Vec<Vec<u8>> =
        path.split(|c| *c == b'/').filter(|name| !name.is_empty()).map(<[u8]>::to_vec).collect();
    let none = || {
        refused(format!(
            "there is no {} in GroveHome; `grove ls` lists what is there",
            crate::files::unix::show(&names)
        ))
    };
    t.node_at(&names)?.ok_or_else(none)
}

/// The file of a path, or of an id where it is gone.
fn file_named(vault: &Vault, path: &[u8]) -> Result<FileId, VaultError> {
    match vault.db.read(|t| node_named(t, path)) {
        Ok(node) => Ok(node.file),
        Err(why) => std::str::from_utf8(path).ok().and_then(|id| id.parse().ok()).ok_or(why),
    }
}

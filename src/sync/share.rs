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

/// Files that one change notes as granted or taken back. Tests have more than that of a few files.
const FILES_AT_ONCE: usize = if cfg!(test) { 3 } else { 1000 };
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

    /// Ends what a crash or a power cut has broken off, and what a later state of this cell has taken back: before anything is
    /// served, granted, or read of GroveHome, and when that state is heard of.
    pub(super) async fn end_broken_sharing(&self) -> Result<(), VaultError> {
        let _alone = self.sharing.lock().await;
        let (books, vault) = (Arc::clone(&self.books), Arc::clone(&self.vault));
        let cells = unblock(move || -> Result<Vec<CellId>, VaultError> {
            finish_taking_back(&vault, &books)?;
            books.record_shares(&vault)?;
            for share in books.forgotten_shares(&vault)? {
                take_back(&vault, &books, &share, None)?;
            }
            Ok(books.sharing_cells()?)
        })
        .await?;
        // A friendship may have ended without what follows from it.
        for id in cells.into_iter().filter(|id| !self.is_friend(id)) {
            let (books, vault) = (Arc::clone(&self.books), Arc::clone(&self.vault));
            unblock(move || end_sharing_with(&vault, &books, &id)).await?;
        }
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
        let has_ended = unblock(move || end_sharing_with(&vault, &books, &id)).await?;
        drop(turn);
        if has_ended {
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

/// Takes a share back, or some files of it; later versions of the files get new keys. Gives the number of files. What breaks
/// off after the first durable change is done at the next start.
fn take_back(
    vault: &Vault,
    books: &Books,
    share: &ShareRow,
    files: Option<&[FileId]>,
) -> Result<u64, VaultError> {
    let count = books.take_back(vault, share, files)?;
    finish_taking_back(vault, books)?;
    Ok(count)
}

/// What follows from files that were taken back, and may have been broken off: the catalog has the own list and forgets the
/// grants, and later versions of the files get other keys.
fn finish_taking_back(vault: &Vault, books: &Books) -> Result<(), VaultError> {
    let mut rows = books.taken_back(FILES_AT_ONCE)?;
    if rows.is_empty() {
        return Ok(());
    }
    books.record_shares(vault)?;
    while !rows.is_empty() {
        books.step();
        vault.db.change_durably(|t| -> Result<(), VaultError> {
            for (file, record) in &rows {
                burn_newest(vault, t, *file)?;
                if !record.is_empty() {
                    t.forget_record(record)?;
                }
            }
            Ok(())
        })?;
        books.step();
        books.drop_taken_back(&rows)?;
        rows = books.taken_back(FILES_AT_ONCE)?;
    }
    Ok(())
}

/// The key of a file's newest version serves no later one. What is deleted gets another when it is restored.
fn burn_newest(vault: &Vault, t: &Tables<'_>, file: FileId) -> Result<(), VaultError> {
    let Some(node) = t.node_of(file)?.filter(|node| node.kind == Kind::File) else { return Ok(()) };
    let Some(bytes) = t.record_at(node.seq)?.filter(|bytes| bytes.len() > 64) else { return Ok(()) };
    match Manifest::open(&bytes, &vault.master, Check::Trusted) {
        Ok(manifest) => Ok(burn_salt(t, file, &manifest.salt)?),
        // No later version goes on from one that cannot be read.
        Err(why) => {
            log::warn!("version {} of file {} cannot be read: {why}", node.version, file.short());
            Ok(())
        }
    }
}

/// What is shared with a cell ends, and what came of it is forgotten; whether there was anything.
fn end_sharing_with(vault: &Vault, books: &Books, id: &CellId) -> Result<bool, VaultError> {
    books.unkeep_all(id)?;
    let mut has_ended = books.drop_received(vault, id, None)? > 0;
    for share in books.shares()?.into_iter().filter(|share| share.peer == *id) {
        take_back(vault, books, &share, None)?;
        has_ended = true;
    }
    Ok(has_ended)
}

/// Whether it is not sure that deletions and changes were meant. It is asked after they were read: what brought the brake on
/// may be among them.
fn is_braked(vault: &Vault) -> Result<bool, DbError> {
    Ok(vault.db.read(brake::load)?.is_on())
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
        match vault.db.read(|t| t.node_of(share.file))? {
            None if is_braked(vault)? => {}
            None => {
                take_back(vault, books, &share, None)?;
                has_taken_back = true;
            }
            Some(node) if share.is_folder && node.kind == Kind::Folder => {
                grant_folder(vault, books, &share, node.id)?;
                has_taken_back |= ungrant_moved(vault, books, &share, node.id)?;
            }
            Some(node) if node.kind == Kind::File => {
                let wanted = WantedGrant { file: node.file, version: node.version, folders: 0 };
                books.want_grants(vault.life(), &share.id, &[wanted], is_braked(vault)?)?;
            }
            Some(_) => {}
        }
    }
    Ok(has_taken_back)
}

/// Grants every file in a folder, a thousand at a time.
fn grant_folder(vault: &Vault, books: &Books, share: &ShareRow, folder: NodeId) -> Result<(), VaultError> {
    // Folders that are looked through, each up to a name, how deep they lie, and in which.
    let mut stack: Vec<(NodeId, Vec<u8>, usize, i64)> = vec![(folder, Vec::new(), 0, 0)];
    let mut wanted = Vec::new();
    let want =
        |wanted: Vec<WantedGrant>| books.want_grants(vault.life(), &share.id, &wanted, is_braked(vault)?);
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
    if gone.is_empty() || is_braked(vault)? || is_sabotaged(Sabotage::GrantsWhatMovedOut) {
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

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::super::books::PeerRow;
    use super::super::received::{ReceivedRow, insert_received};
    use super::super::shares::GrantRow;
    use super::super::tests::{Cell, run};
    use super::*;
    use crate::card::{Card, CardBody};
    use crate::catalog::{RecordKind, record_key};
    use crate::friendship::Friendship;
    use crate::grant::{GrantMade, READ, Ticket, TicketBody, revocations_from_bytes, revocations_key};
    use crate::id::BodyHash;
    use crate::simulation::files;
    use crate::vault::lock;

    const FILES: usize = 7;

    fn name_of(n: usize) -> Vec<u8> {
        format!("f{n}").into_bytes()
    }

    /// Ann, who shares a folder with her friend bob, the folder, and what she has granted.
    fn sharing() -> (Cell, ShareRow, NodeId, Vec<(GrantRow, GrantMade)>) {
        let (ann, bob) = (Cell::new(1), Cell::new(2));
        let (vault, books) = (&*ann.vault, &*ann.books);
        befriend(&ann, &bob, Friendship::UNNUMBERED);
        let folder = files::folder(vault, b"notes").unwrap();
        for n in 0..FILES {
            files::keep_in(vault, folder, &name_of(n), &[vec![n as u8; 100]]).unwrap();
        }
        let file = vault.db.read(|t| t.node(folder)).unwrap().unwrap().file;
        let share = ShareRow { id: [7; 16], peer: bob.vault.id(), file, is_folder: true, since: 1, until: 0 };
        let share = books.put_share(vault, &share).unwrap();
        reconcile(vault, books, 1).unwrap();
        let rows = books.grants_of(&share.id, None, 100).unwrap();
        let made = rows.into_iter().map(|row| {
            let body = TicketBody {
                creator: vault.id(),
                recipient: share.peer,
                id: random(),
                root: [1; 32],
                rights: READ,
                number: row.number,
                granted: 1,
                expires: 0,
                extensions: Vec::new(),
            };
            let ticket = Ticket::sign(&vault.identity, body).unwrap();
            let (file, version, manifest) = (row.file, row.version, BodyHash([0; 32]));
            (row, GrantMade { ticket, file, version, manifest, share: Some(share.id) })
        });
        let made: Vec<_> = made.collect();
        books.set_tickets(vault, &made).unwrap();
        let rows = books.grants_of(&share.id, None, 100).unwrap();
        assert!(rows.len() == FILES && rows.iter().all(|row| row.ticket.is_some()));
        (ann, share, folder, made)
    }

    fn befriend(ann: &Cell, bob: &Cell, friendship: Friendship) {
        let body = CardBody {
            id: bob.vault.id(),
            x25519: *bob.vault.identity.x_public(),
            name: "bob".into(),
            addresses: vec![],
            relays: vec![],
            sequence: 1,
            successor: None,
            extensions: vec![],
        };
        let card = Card::sign(&bob.vault.identity, body).unwrap();
        let peer = PeerRow { friendship, ..PeerRow::new(&card, 1) };
        ann.books.save_peer(&ann.vault, &peer).unwrap();
    }

    /// What a start does before anything else.
    fn start(ann: &Cell) {
        run(|executor| async move {
            let (vault, books) = (Arc::clone(&ann.vault), Arc::clone(&ann.books));
            let listen = std::net::SocketAddr::from(([127, 0, 0, 1], 1));
            Sync::assemble(&executor, vault, books, listen).await.unwrap();
        });
    }

    fn salts(ann: &Cell, folder: NodeId) -> Vec<[u8; 16]> {
        let read = |t: &Tables<'_>| -> Result<Vec<[u8; 16]>, VaultError> {
            let salt = |n: usize| {
                let node = t.child(folder, &name_of(n))?.unwrap();
                let bytes = t.record_at(node.seq)?.unwrap();
                Ok(Manifest::open(&bytes, &ann.vault.master, Check::Trusted)?.salt)
            };
            (0..FILES).map(salt).collect()
        };
        ann.vault.db.read(read).unwrap()
    }

    fn has_record(ann: &Cell, key: &[u8]) -> bool {
        ann.vault.db.read(|t| t.record(key)).unwrap().is_some_and(|body| !body.is_empty())
    }

    /// All of it is taken back, also for the catalog and for later versions.
    fn is_taken_back(ann: &Cell, share: &ShareRow, folder: NodeId, made: &[(GrantRow, GrantMade)]) {
        assert!(ann.books.shares().unwrap().is_empty());
        assert!(ann.books.grants_of(&share.id, None, 100).unwrap().is_empty());
        let list = ann.books.own_list(&ann.vault).unwrap().unwrap();
        assert!(made.iter().all(|(row, _)| list.revoked.contains(row.number)));
        let body = ann.vault.db.read(|t| t.record(&revocations_key(&ann.vault.id()))).unwrap().unwrap();
        assert_eq!(revocations_from_bytes(&body).unwrap(), list);
        assert!(!has_record(ann, &record_key(RecordKind::Grant, &share.id)));
        assert!(made.iter().all(|(_, made)| !has_record(ann, &made.key())));
        let before = salts(ann, folder);
        for n in 0..FILES {
            files::keep_in(&ann.vault, folder, &name_of(n), &[vec![n as u8 + 100; 100]]).unwrap();
        }
        let after = salts(ann, folder);
        assert!(before.iter().all(|salt| !after.contains(salt)), "later versions have other keys");
        assert!(ann.books.taken_back(1).unwrap().is_empty());
    }

    #[test]
    fn what_is_taken_back_is_so_to_the_end_wherever_the_process_ends() {
        for steps in 0.. {
            let (ann, share, folder, made) = sharing();
            ann.books.fuse.set(Some(steps));
            let work = || take_back(&ann.vault, &ann.books, &share, None).unwrap();
            let ended = catch_unwind(AssertUnwindSafe(work));
            ann.books.fuse.set(None);
            start(&ann);
            if steps == 0 {
                assert!(ended.is_err(), "nothing was noted yet: it is shared as before");
                assert_eq!(ann.books.grants_of(&share.id, None, 100).unwrap().len(), FILES);
                assert!(ann.books.own_list(&ann.vault).unwrap().is_none());
                continue;
            }
            is_taken_back(&ann, &share, folder, &made);
            if let Ok(count) = ended {
                assert_eq!(count, FILES as u64);
                assert!(steps > 5, "it took {steps} steps");
                return;
            }
        }
    }

    #[test]
    fn some_files_are_taken_back_and_the_others_stay_shared_wherever_the_process_ends() {
        for steps in 1.. {
            let (ann, share, folder, made) = sharing();
            let gone: Vec<FileId> = made[..4].iter().map(|(row, _)| row.file).collect();
            ann.books.fuse.set(Some(steps));
            let work = || take_back(&ann.vault, &ann.books, &share, Some(&gone)).unwrap();
            let ended = catch_unwind(AssertUnwindSafe(work));
            ann.books.fuse.set(None);
            start(&ann);
            let left = ann.books.grants_of(&share.id, None, 100).unwrap();
            assert_eq!(left.len(), FILES - 4);
            assert!(left.iter().all(|row| !gone.contains(&row.file)));
            assert!(has_record(&ann, &record_key(RecordKind::Grant, &share.id)), "the share goes on");
            assert!(made[4..].iter().all(|(_, made)| has_record(&ann, &made.key())));
            assert!(made[..4].iter().all(|(_, made)| !has_record(&ann, &made.key())));
            let before = salts(&ann, folder);
            for n in 0..FILES {
                files::keep_in(&ann.vault, folder, &name_of(n), &[vec![n as u8 + 100; 100]]).unwrap();
            }
            let after = salts(&ann, folder);
            assert_eq!(before.iter().filter(|salt| !after.contains(salt)).count(), 4);
            if ended.is_ok() {
                return;
            }
        }
    }

    #[test]
    fn a_friendship_that_ended_has_no_shares_after_the_next_start() {
        let (ann, share, folder, made) = sharing();
        let row = ReceivedRow {
            n: 0,
            creator: share.peer,
            file: FileId([9; 16]),
            ticket: [9; 16],
            number: 1,
            version: 1,
            share: None,
            size: 1,
            expires: 0,
            received: 1,
            is_verified: false,
            is_kept: false,
            grant: b"theirs".to_vec(),
        };
        insert_received(&lock(&ann.books.conn), &row, false, false).unwrap();
        start(&ann);
        assert_eq!(ann.books.shares().unwrap().len(), 1, "among friends all stays");
        assert_eq!(ann.books.received(u64::MAX, 9).unwrap().len(), 1);
        // The process ended behind the first thing that is done.
        befriend(&ann, &Cell::new(2), Friendship::default());
        start(&ann);
        is_taken_back(&ann, &share, folder, &made);
        assert!(ann.books.received(u64::MAX, 9).unwrap().is_empty());
    }

    #[test]
    fn a_share_that_the_catalog_lacks_since_a_break_is_in_it_after_the_next_start() {
        let (ann, share, ..) = sharing();
        let other = [8; 16];
        // Of the two changes that begin a share, the first.
        let row = (other, share.peer.0, [1u8; 16]);
        ann.books.run("INSERT INTO shares VALUES (?1, ?2, ?3, 1, 1, 0)", row).unwrap();
        let key = record_key(RecordKind::Grant, &other);
        assert!(!has_record(&ann, &key));
        ann.books.record_shares(&ann.vault).unwrap();
        assert!(has_record(&ann, &key));
    }

    #[test]
    fn what_a_later_state_of_the_cell_took_back_is_not_shared_again_by_an_old_disk() {
        let (ann, share, folder, made) = sharing();
        let key = record_key(RecordKind::Grant, &share.id);
        ann.vault.db.change(|t| t.forget_record(&key)).unwrap();
        start(&ann);
        is_taken_back(&ann, &share, folder, &made);
    }
}

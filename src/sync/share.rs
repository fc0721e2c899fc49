//! Sharing files with friends: what is granted and taken back, how that reaches friends and holders, and what is answered to
//! them. The rows are in `shares`, the formats in `crate::grant`.
//!
//! Promise: a grant is given to a friend only, a chunk only to whom a ticket names, and never after the list that takes it
//! back was seen here.

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::books::{Books, PeerRow};
use super::driver::Sync;
use super::link::{For, Link};
use super::serve::{Answered, Keeper, reply};
use super::shares::{Arrival, GrantRow, ReceivedRow, Reception, ShareRow, mirror};
use crate::buffers;
use crate::card::Card;
use crate::catalog::version_key_prefix;
use crate::files::brake;
use crate::files::version::burn_salt;
use crate::grant::{
    self, FOLDERS_MAX, GrantError, GrantMade, HOLDERS_MAX, Holder, ListSum, Party, Presented, Private, READ,
    Revocations, Share, Ticket, TicketBody, allows, allows_chunk, offered_name,
};
use crate::id::{CellId, ChunkName, FileId};
use crate::keys::random;
use crate::manifest::{Check, Entry, Kind, Manifest, read_list};
use crate::placement::{CellNumber, DbError, HoldState, Node, NodeId, Own, Tables};
use crate::pool::unblock;
use crate::seal::ENCODING_RAW;
use crate::vault::{Vault, VaultError};
use crate::wire::message::{
    self, AskError, ErrorCode, GRANTS_BYTES_MAX, GRANTS_MAX, GetStatus, GrantStatus, Refusal, Reply,
};
use crate::wire::session::Stream;
use crate::wire::within;
use crate::world::{Sabotage, Timer, is_sabotaged};

/// Files that one change of the books notes as granted or taken back.
const FILES_AT_ONCE: usize = 1000;
/// Rows of a folder that are looked at together.
const PAGE: usize = 500;
/// Chunks of a file by which its holders are told.
const HOLDERS_BY_CHUNKS: usize = 8;
/// Arrived grants that are looked at for new holders in one round.
const UNHELD_MAX: usize = 500;
/// Shares of all peers together.
const SHARES_MAX: usize = 4096;
/// Whoever shares or takes back waits this long for a peer that is connected; others hear of it later.
const TELL_TIME_MAX: Duration = Duration::from_secs(5);
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

fn refused(why: impl Into<String>) -> VaultError {
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

    // ---- To friends and holders ----

    /// What a round has to say about sharing.
    pub(super) async fn share_round(self: &Rc<Self>, link: &Rc<Link>) -> Result<(), AskError> {
        self.reconcile().await;
        match self.tell_taken_back(link).await {
            Ok(()) => self.offer(link).await,
            // One of an earlier version: all else goes on.
            Err(AskError::Refused(why)) if why.code == ErrorCode::Unsupported => Ok(()),
            Err(why) => Err(why),
        }
    }

    /// Gives a holder the newest list of revocations; in a new life, or since it was last connected, after having taken in
    /// the one that it holds.
    pub(super) async fn tell_taken_back(self: &Rc<Self>, link: &Rc<Link>) -> Result<(), AskError> {
        let _alone = link.telling.lock().await;
        let failed = |why: VaultError| {
            log::warn!("{why}");
            AskError::Refused(Refusal::new(ErrorCode::Failed, "the list of revocations is not readable", ""))
        };
        for _ in 0..3 {
            if !link.has_heard_list.get() {
                let held = message::taken_back(&link.line(For::Small).await?.session).await?;
                if let Ok(list) = Revocations::from_bytes(&held) {
                    if list.creator == self.vault.id() {
                        let (books, vault) = (Arc::clone(&self.books), Arc::clone(&self.vault));
                        let is_new = unblock(move || books.hear_own_list(&vault, &list)).await;
                        if is_new.map_err(failed)? {
                            self.poke_others(&link.peer);
                            self.publish_later();
                        }
                    }
                }
                link.has_heard_list.set(true);
            }
            let (books, vault) = (Arc::clone(&self.books), Arc::clone(&self.vault));
            let own = unblock(move || books.own_list(&vault)).await.map_err(|why| failed(why.into()))?;
            let Some(own) = own.filter(|own| link.told_list.get() != own.number) else { return Ok(()) };
            let session = link.line(For::Small).await?.session.clone();
            let held = message::put_revocations(&session, own.as_bytes()).await?;
            if held <= own.number {
                link.told_list.set(own.number);
                return Ok(());
            }
            // It knows a newer one than this cell: another machine of the same key, or an old disk, wrote here.
            link.has_heard_list.set(false);
        }
        Ok(())
    }

    /// Tells everybody who is connected what was taken back.
    async fn tell_all_taken_back(self: &Rc<Self>) -> Told {
        let peers = self.gate.peers();
        let tells = peers.iter().map(|peer| async move {
            let Some(link) = self.link(&peer.id) else { return (peer.name.clone(), false) };
            let told = within(TELL_TIME_MAX, self.tell_taken_back(&link)).await;
            (peer.name.clone(), matches!(told, Some(Ok(()))))
        });
        let mut told = Told::default();
        for (name, has_heard) in futures_util::future::join_all(tells).await {
            if has_heard { told.told.push(name) } else { told.waiting.push(name) }
        }
        told
    }

    /// Offers a friend the grants that wait for it.
    pub(super) async fn offer(self: &Rc<Self>, link: &Rc<Link>) -> Result<(), AskError> {
        let _alone = link.offering.lock().await;
        if !self.is_friend(&link.peer) {
            return Ok(());
        }
        self.note_new_holders(link).await;
        let mut has_made = false;
        let outcome = loop {
            match self.offer_some(link).await {
                Ok(0) => break Ok(()),
                Ok(_) => has_made = true,
                Err(AskError::Refused(why)) => {
                    log::info!("{} takes no grants now: {why}", self.name_of(&link.peer));
                    break Ok(());
                }
                Err(why) => break Err(why),
            }
        };
        if has_made {
            self.publish_later();
        }
        outcome
    }

    /// One request's worth of grants; how many rows are settled.
    async fn offer_some(self: &Rc<Self>, link: &Rc<Link>) -> Result<usize, AskError> {
        let Some(peer) = self.gate.peer(&link.peer) else { return Ok(0) };
        let peers = self.gate.peers();
        let (books, vault, now) = (Arc::clone(&self.books), Arc::clone(&self.vault), self.unix_now());
        let made = unblock(move || make_grants(&vault, &books, &peer, &peers, now)).await;
        let (grants, rows) = made.map_err(|why| {
            log::warn!("grants cannot be made: {why}");
            AskError::Refused(Refusal::new(ErrorCode::Failed, "grants cannot be made here", ""))
        })?;
        let mut settled: Vec<(GrantRow, u64, Arrival)> = Vec::new();
        let mut is_full = false;
        if !grants.is_empty() {
            let session = link.line(For::Chunks).await?.session.clone();
            let statuses = message::offer_grants(&session, &grants).await?;
            let mut statuses = statuses.into_iter();
            for (row, holders, is_made) in rows {
                let arrival = match is_made.then(|| statuses.next()).flatten() {
                    Some(GrantStatus::Taken | GrantStatus::Known) => Arrival::Arrived,
                    Some(GrantStatus::Full) => {
                        is_full = true;
                        continue;
                    }
                    _ => Arrival::Refused,
                };
                settled.push((row, holders, arrival));
            }
        } else {
            settled.extend(rows.into_iter().map(|(row, holders, _)| (row, holders, Arrival::Refused)));
        }
        let refused = settled.iter().filter(|(_, _, arrival)| *arrival == Arrival::Refused).count();
        if refused > 0 {
            log::warn!("{refused} grants for {} do not hold", self.name_of(&link.peer));
        }
        let (books, count) = (Arc::clone(&self.books), settled.len());
        if let Err(why) = unblock(move || books.note_arrivals(&settled)).await {
            log::warn!("{why}");
            return Ok(0);
        }
        if is_full {
            log::warn!("{} has no room for more grants", self.name_of(&link.peer));
            return Ok(0);
        }
        Ok(count)
    }

    /// What has come to more holders since a friend heard of it is offered once more.
    async fn note_new_holders(&self, link: &Rc<Link>) {
        let generation = self.vault.db.generation();
        if link.held_for.replace(Some(generation)) == Some(generation) {
            return;
        }
        let wanted = self.vault.config.copies.saturating_sub(1).max(1);
        let (books, vault, peer) = (Arc::clone(&self.books), Arc::clone(&self.vault), link.peer);
        let from = link.held_from.get();
        let work = move || -> Result<usize, VaultError> {
            let mut again = Vec::new();
            let rows = books.unheld_grants(&peer, wanted, (from, UNHELD_MAX))?;
            let next = if rows.len() < UNHELD_MAX { 0 } else { from + UNHELD_MAX };
            for row in rows {
                let Some((_, manifest, _)) = vault.db.read(|t| newest(&vault, t, row.file))? else {
                    continue;
                };
                let held = vault.db.read(|t| holder_cells(t, &manifest))?.len() as u64;
                if held > row.holders {
                    again.push((row, held, Arrival::Waiting));
                }
            }
            books.note_arrivals(&again)?;
            Ok(next)
        };
        match unblock(work).await {
            Ok(next) => link.held_from.set(next),
            Err(why) => log::warn!("{why}"),
        }
    }

    /// Offers to every friend who is connected: chunks of what they were granted have come to more holders.
    pub(super) fn offer_all(self: &Rc<Self>) {
        for link in self.links().into_iter().filter(|link| link.is_alive() && self.is_friend(&link.peer)) {
            let sync = Rc::clone(self);
            self.spawn(async move {
                if let Err(why) = sync.offer(&link).await {
                    log::debug!("offering to {}: {why}", sync.name_of(&link.peer));
                }
            })
            .detach();
        }
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

    // ---- Answering ----

    /// A friend offers grants.
    pub(super) async fn answer_grants(
        self: &Rc<Self>,
        owner: CellId,
        lens: Vec<u32>,
        stream: &mut Stream,
    ) -> Answered {
        let _permit = self.permits.taking.acquire().await;
        let mut grants = Vec::with_capacity(lens.len());
        for len in lens {
            let mut bytes = Vec::new();
            message::read_body(stream, len as usize, &mut bytes).await?;
            grants.push(bytes);
        }
        let bytes = grants.iter().map(|grant| grant.len() as u64).sum();
        if !self.link(&owner).is_some_and(|link| link.may_offer(bytes, self.vault.clock.steady())) {
            let refusal = Refusal::new(ErrorCode::Busy, "enough was granted for this hour", "");
            return reply(stream, &Reply::Error(refusal)).await;
        }
        let Some(peer) = self.gate.peer(&owner).filter(|peer| peer.friendship.are_friends()) else {
            self.refusals.note(format_args!("{}: grants from one who is no friend", owner.short()));
            let refusal = Refusal::new(ErrorCode::NotAllowed, "only friends share", "");
            return reply(stream, &Reply::Error(refusal)).await;
        };
        let (books, vault, now) = (Arc::clone(&self.books), Arc::clone(&self.vault), self.unix_now());
        let received = self.vault.clock.wall().max(0) as u64;
        let taken = unblock(move || take_grants(&vault, &books, &peer, grants, (now, received))).await;
        match taken {
            Ok((statuses, whys, taken)) => {
                if let Some(why) = whys.first() {
                    let count = whys.len();
                    self.refusals.note(format_args!("{}: {count} grants refused: {why}", owner.short()));
                }
                if !taken.is_empty() {
                    self.publish_later();
                    self.wake_keeping();
                }
                reply(stream, &Reply::Grants { statuses }).await?;
                let vault = Arc::clone(&self.vault);
                unblock(move || mirror(&vault, &taken)).await;
                Ok(())
            }
            Err(why) => reply(stream, &super::serve::failed(&why)).await,
        }
    }

    /// A creator tells what it has taken back.
    pub(super) async fn answer_revocations(
        self: &Rc<Self>,
        owner: CellId,
        len: u32,
        stream: &mut Stream,
    ) -> Answered {
        let mut bytes = Vec::new();
        message::read_body(stream, len as usize, &mut bytes).await?;
        if !self.link(&owner).is_some_and(|link| link.may_list(self.vault.clock.steady())) {
            let refusal = Refusal::new(ErrorCode::Busy, "enough was taken back for this hour", "");
            return reply(stream, &Reply::Error(refusal)).await;
        }
        let (books, vault) = (Arc::clone(&self.books), Arc::clone(&self.vault));
        let taken = unblock(move || -> Result<u64, VaultError> {
            let list = Revocations::from_bytes(&bytes).map_err(|why| refused(why.to_string()))?;
            books.take_list(&vault, &owner, &list)
        });
        match taken.await {
            Ok(number) => {
                self.publish_later();
                self.wake_keeping();
                reply(stream, &Reply::Revocations { number }).await
            }
            Err(VaultError::Refused(why)) => {
                self.refusals.note(format_args!("{}: {why}", owner.short()));
                reply(stream, &Reply::Error(Refusal::new(ErrorCode::Malformed, &why, ""))).await
            }
            Err(why) => reply(stream, &super::serve::failed(&why)).await,
        }
    }

    /// A creator asks what it has taken back, as far as is known here.
    pub(super) async fn answer_taken_back(&self, owner: CellId, stream: &mut Stream) -> Answered {
        let books = Arc::clone(&self.books);
        match unblock(move || books.list_of(&owner)).await {
            Ok((_, list)) => {
                message::answer_taken_back(stream, list.as_ref().map_or(&[], |list| list.as_bytes())).await
            }
            Err(why) => reply(stream, &super::serve::failed(&why.into())).await,
        }
    }

    /// Somebody shows a ticket and wants chunks of its creator. Gives whether the ticket holds.
    pub(super) async fn answer_ticket(
        self: &Rc<Self>,
        caller: CellId,
        ticket: Vec<u8>,
        chunks: Vec<(ChunkName, u32, Vec<u8>)>,
        stream: &mut Stream,
    ) -> Result<bool, AskError> {
        let _permit = self.permits.giving.acquire().await;
        let (books, now) = (Arc::clone(&self.books), self.unix_now());
        let own_id = self.vault.id();
        // Whom this cell knows as an owner: others, anybody could make up.
        let mut owners: Vec<CellId> = self.gate.rows().into_iter().map(|row| row.id).collect();
        owners.push(own_id);
        let checked = unblock(move || -> Result<_, VaultError> {
            let ticket =
                Ticket::from_bytes(&ticket).and_then(|ticket| match owners.contains(&ticket.creator) {
                    true => Ok(ticket),
                    false => Err(GrantError::NotFromCreator),
                });
            let (seen, list) = match &ticket {
                Ok(ticket) if !is_sabotaged(Sabotage::ServesTakenBack) => books.list_of(&ticket.creator)?,
                _ => (0, None),
            };
            let verdict = ticket.and_then(|ticket| {
                let presented =
                    Presented { ticket: &ticket, caller: &caller, list: list.as_ref(), seen, now };
                allows(presented)?;
                for (name, len, proof) in &chunks {
                    allows_chunk(presented, name, *len, proof)?;
                }
                Ok(ticket)
            });
            Ok(verdict.map(|ticket| (ticket, chunks)))
        });
        let (ticket, chunks) = match checked.await {
            Ok(Ok(checked)) => checked,
            Ok(Err(why)) => {
                self.refusals.note(format_args!("{}: ticket refused: {why}", caller.short()));
                let refusal = Refusal::new(ErrorCode::NotAllowed, &why.to_string(), hint(&why));
                reply(stream, &Reply::Error(refusal)).await?;
                return Ok(false);
            }
            Err(why) => {
                reply(stream, &super::serve::failed(&why)).await?;
                return Ok(false);
            }
        };
        let creator = ticket.creator;
        message::write_reply(stream, &Reply::Get { count: chunks.len() as u32 }).await?;
        for (name, len, _) in chunks {
            let keeper = Arc::clone(&self.keeper);
            let read = unblock(move || keeper.read_granted(&creator, creator == own_id, &name, len));
            let (status, bytes) = read.await.unwrap_or_else(|why| {
                log::warn!("a chunk for a ticket cannot be read: {why}");
                (GetStatus::Damaged, Vec::new())
            });
            message::write_got(stream, status, &bytes).await?;
            buffers::give(bytes);
        }
        message::finish(stream).await?;
        Ok(true)
    }
}

fn hint(why: &GrantError) -> &'static str {
    match why {
        GrantError::Revoked | GrantError::Expired => "ask the owner to share it again",
        _ => "",
    }
}

impl Keeper {
    /// A chunk of a ticket's creator, if it is held for him (or is this cell's own) and has this length.
    fn read_granted(
        &self,
        creator: &CellId,
        is_mine: bool,
        name: &ChunkName,
        len: u32,
    ) -> Result<(GetStatus, Vec<u8>), VaultError> {
        let vault = self.vault();
        let is_here = vault.db.change(|t| -> Result<bool, DbError> {
            let Some(row) = t.chunk(name)?.filter(|row| row.place.is_some() && row.len == len) else {
                return Ok(false);
            };
            if is_mine {
                return Ok(t.own(row.id)? != Own::No);
            }
            let cell = t.cell(creator)?;
            let state = t.hold(row.id, cell)?.map(|(_, state)| state);
            Ok(matches!(state, Some(HoldState::Held | HoldState::Trash)) && t.own(row.id)? == Own::No)
        })?;
        if !is_here {
            return Ok((GetStatus::Missing, Vec::new()));
        }
        Ok(match vault.local_chunk(name)? {
            Some(bytes) => (GetStatus::Found, bytes),
            None => (GetStatus::Damaged, Vec::new()),
        })
    }
}

/// What became of grants that came, why some were refused, and those that were taken.
type TakenGrants = (Vec<GrantStatus>, Vec<GrantError>, Vec<(CellId, [u8; 16], Vec<u8>)>);

/// Opens grants that a friend offers and keeps those that hold.
fn take_grants(
    vault: &Vault,
    books: &Books,
    peer: &PeerRow,
    grants: Vec<Vec<u8>>,
    (now, received): (u64, u64),
) -> Result<TakenGrants, VaultError> {
    let (_, list) = books.list_of(&peer.id)?;
    let party = Party { id: &peer.id, x25519: &peer.x25519 };
    let (mut rows, mut statuses, mut whys) = (Vec::new(), Vec::with_capacity(grants.len()), Vec::new());
    for bytes in grants {
        let opened = grant::open(&bytes, &vault.identity, party).and_then(|opened| {
            if list.as_ref().is_some_and(|list| list.revoked.contains(opened.ticket.number)) {
                return Err(GrantError::Revoked);
            }
            if opened.ticket.expires != 0 && opened.ticket.expires < now {
                return Err(GrantError::Expired);
            }
            Ok(opened)
        });
        match opened {
            Ok(opened) => {
                statuses.push(None);
                rows.push(ReceivedRow::of(&opened, received, bytes));
            }
            Err(why) => {
                statuses.push(Some(GrantStatus::Refused));
                whys.push(why);
            }
        }
    }
    let offered: Vec<_> = rows.iter().map(|row| (row.creator, row.ticket, row.grant.clone())).collect();
    let received = books.receive(vault, rows)?;
    let is_taken = received.iter().map(|reception| *reception == Reception::Taken);
    let taken =
        offered.into_iter().zip(is_taken).filter(|(_, is_taken)| *is_taken).map(|(row, _)| row).collect();
    let mut outcome = received.into_iter();
    let status = |known: Option<GrantStatus>| {
        known.unwrap_or_else(|| match outcome.next() {
            Some(Reception::Taken) => GrantStatus::Taken,
            Some(Reception::Known) => GrantStatus::Known,
            Some(Reception::Full) | None => GrantStatus::Full,
        })
    };
    Ok((statuses.into_iter().map(status).collect(), whys, taken))
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
                let versions = t.records_with_prefix(&version_key_prefix(*file), FILES_AT_ONCE)?;
                let Some((seq, _)) = versions.last() else { return Ok(()) };
                let Some(bytes) = t.record_at(*seq)?.filter(|bytes| bytes.len() > 64) else { return Ok(()) };
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
        let is_braked = vault.db.read(|t| brake::load(t))?.is_on();
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
                books.want_grants(vault.life(), &share.id, &[(node.file, node.version)], is_braked)?;
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
    // Folders that are looked through, each up to a name, and how deep they lie.
    let mut stack: Vec<(NodeId, Vec<u8>, usize)> = vec![(folder, Vec::new(), 0)];
    let mut wanted = Vec::new();
    let want = |wanted: Vec<(FileId, u64)>| books.want_grants(vault.life(), &share.id, &wanted, is_braked);
    while let Some((id, after, depth)) = stack.pop() {
        let page = vault.db.read(|t| t.children(id, &after, PAGE))?;
        if let Some(last) = page.last() {
            stack.push((id, last.name.clone(), depth));
        }
        for node in page {
            match node.kind {
                Kind::File => wanted.push((node.file, node.version)),
                Kind::Folder if depth < FOLDERS_MAX => stack.push((node.id, Vec::new(), depth + 1)),
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

/// A file's node, newest manifest and that as signed.
fn newest(
    vault: &Vault,
    t: &Tables<'_>,
    file: FileId,
) -> Result<Option<(Node, Manifest, Vec<u8>)>, VaultError> {
    let Some(node) = t.node_of(file)?.filter(|node| node.kind == Kind::File) else { return Ok(None) };
    let Some(bytes) = t.record_at(node.seq)?.filter(|bytes| bytes.len() > 64) else { return Ok(None) };
    let manifest = Manifest::open(&bytes, &vault.master, Check::Trusted)?;
    Ok(Some((node, manifest, bytes)))
}

/// Who is counted on for the chunks of a file, those with most of them first: told by its first few.
fn holder_cells(t: &Tables<'_>, manifest: &Manifest) -> Result<Vec<CellNumber>, DbError> {
    let mut counts: HashMap<CellNumber, usize> = HashMap::new();
    for name in manifest.chunks().take(HOLDERS_BY_CHUNKS) {
        if let Some(row) = t.chunk(&name)? {
            t.copies_of(row.id)?.into_iter().for_each(|cell| *counts.entry(cell).or_default() += 1);
        }
    }
    let mut cells: Vec<(CellNumber, usize)> = counts.into_iter().collect();
    cells.sort_by_key(|(cell, count)| (std::cmp::Reverse(*count), *cell));
    Ok(cells.into_iter().map(|(cell, _)| cell).take(HOLDERS_MAX).collect())
}

/// A row and what its recipient is told: how many holders, and whether a grant of it was made.
type Offered = (GrantRow, u64, bool);

/// Makes grants that wait for a peer, as many as one request carries; with their rows, and those of which none can be made.
fn make_grants(
    vault: &Vault,
    books: &Books,
    peer: &PeerRow,
    peers: &[PeerRow],
    now: u64,
) -> Result<(Vec<Vec<u8>>, Vec<Offered>), VaultError> {
    let (mut grants, mut rows, mut records) = (Vec::new(), Vec::new(), Vec::new());
    let mut bytes = 0;
    for (share, row) in books.waiting_grants(&peer.id, GRANTS_MAX)? {
        if bytes + grant::GRANT_BYTES_MAX > GRANTS_BYTES_MAX {
            break;
        }
        match make_grant(vault, &share, &row, peer, peers, now) {
            Ok(Some((made, holders, grant))) => {
                bytes += grant.len();
                grants.push(grant);
                records.push((row.clone(), made));
                rows.push((row, holders, true));
            }
            // Gone or changed meanwhile: it is looked at again with the next change.
            Ok(None) => rows.push((row, 0, false)),
            Err(why) => {
                log::warn!("a file cannot be shared: {why}");
                rows.push((row, 0, false));
            }
        }
    }
    books.set_tickets(vault, &records)?;
    Ok((grants, rows))
}

/// The grant of one file: its record, how many holders it names, its bytes.
fn make_grant(
    vault: &Vault,
    share: &ShareRow,
    row: &GrantRow,
    peer: &PeerRow,
    peers: &[PeerRow],
    now: u64,
) -> Result<Option<(GrantMade, u64, Vec<u8>)>, VaultError> {
    let wrong = |why: GrantError| refused(why.to_string());
    let Some((node, manifest, signed)) = vault.db.read(|t| newest(vault, t, row.file))? else {
        return Ok(None);
    };
    if manifest.version != row.version {
        return Ok(None);
    }
    let lists = list_sums(vault, &manifest)?;
    let root = grant::root(&manifest.entries, &lists).map_err(wrong)?;
    let folders = match share.is_folder {
        true => match vault.db.read(|t| folders_between(t, &node, share.file))? {
            Some(folders) => folders,
            None => return Ok(None),
        },
        false => Vec::new(),
    };
    let known = row.ticket.as_deref().and_then(|bytes| Ticket::from_bytes(bytes).ok());
    let still =
        |ticket: &Ticket| ticket.root == root && ticket.expires == share.until && ticket.number == row.number;
    let ticket = match known.filter(still) {
        Some(ticket) => ticket,
        None => Ticket::sign(
            &vault.identity,
            TicketBody {
                creator: vault.id(),
                recipient: peer.id,
                id: random(),
                root,
                rights: READ,
                number: row.number,
                // A share that is about to end, on a clock that has gone on meanwhile.
                granted: if share.until == 0 { now } else { now.min(share.until) },
                expires: share.until,
                extensions: Vec::new(),
            },
        )
        .map_err(wrong)?,
    };
    let holders = holders_of(vault, &manifest, peer, peers)?;
    let count = holders.len() as u64;
    let file_key = vault.master.file_key(&manifest.salt);
    let name = offered_name(&manifest.owner_part.name);
    let mut private = Private {
        manifest: crate::files::version::hash_of(&signed),
        file: manifest.file,
        version: manifest.version,
        media: media_of(&name).to_owned(),
        name,
        kind: Kind::File,
        size: manifest.size,
        commitment: file_key.commitment(),
        file_key: file_key.0.clone(),
        holders,
        thumbnail: Vec::new(),
        share: share.is_folder.then(|| Share { id: share.id, folders }),
        extensions: Vec::new(),
    };
    let party = Party { id: &peer.id, x25519: &peer.x25519 };
    let bytes = loop {
        match grant::make(&vault.identity, party, &ticket, &private, &signed, &lists) {
            Err(GrantError::TooLong("private part")) => {
                // Ids cost little: whoever knows the holder needs no card.
                let Some(last) = private.holders.iter_mut().rev().find(|holder| holder.card.is_some()) else {
                    return Err(refused("the private part of a grant is too long"));
                };
                last.card = None;
            }
            made => break made.map_err(wrong)?,
        }
    };
    let made = GrantMade {
        ticket,
        file: manifest.file,
        version: manifest.version,
        manifest: private.manifest,
        share: share.is_folder.then_some(share.id),
    };
    Ok(Some((made, count, bytes)))
}

/// Peers that hold a file's chunks, without its recipient; with their cards.
fn holders_of(
    vault: &Vault,
    manifest: &Manifest,
    recipient: &PeerRow,
    peers: &[PeerRow],
) -> Result<Vec<Holder>, VaultError> {
    let ids = vault.db.read(|t| -> Result<Vec<CellId>, DbError> {
        let cells = holder_cells(t, manifest)?;
        let ids = cells.into_iter().map(|cell| t.cell_id(cell)).collect::<Result<Vec<_>, _>>()?;
        Ok(ids.into_iter().flatten().collect())
    })?;
    let holder = |id: CellId| {
        let peer = peers.iter().find(|peer| peer.id == id)?;
        Some(Holder { id, card: Card::from_bytes(&peer.card).ok() })
    };
    // The recipient itself may hold chunks: it need not be told where it lives, but that is worth knowing too.
    Ok(ids
        .into_iter()
        .filter_map(|id| match id == recipient.id {
            true => Some(Holder { id, card: None }),
            false => holder(id),
        })
        .collect())
}

/// The sums of a manifest's lists, which are opened for it one after the other.
fn list_sums(vault: &Vault, manifest: &Manifest) -> Result<Vec<ListSum>, VaultError> {
    let mut sums = Vec::new();
    for entry in &manifest.entries {
        let Entry::List { name, key, .. } = entry else { continue };
        let Some(sealed) = vault.local_chunk(name)? else {
            return Err(refused("a list of a large file is not here yet"));
        };
        let len = sealed.len() as u32;
        let opened = vault.sealer_of(manifest.epoch).open(key, ENCODING_RAW, sealed);
        let entries = read_list(&opened.map_err(|why| VaultError::Record(why.to_string()))?)?;
        sums.push(ListSum::of(&entries, len));
    }
    Ok(sums)
}

/// Names of the folders between a shared folder and a file in it; `None`: it is not in it, or too deep.
fn folders_between(t: &Tables<'_>, node: &Node, folder: FileId) -> Result<Option<Vec<String>>, DbError> {
    let mut names = Vec::new();
    let mut at = node.parent;
    loop {
        let Some(parent) = t.node(at)? else { return Ok(None) };
        if parent.file == folder {
            names.reverse();
            return Ok(Some(names));
        }
        if names.len() >= FOLDERS_MAX || parent.id == NodeId::ROOT {
            return Ok(None);
        }
        names.push(offered_name(&parent.name));
        at = parent.parent;
    }
}

/// The node of a path below GroveHome.
fn node_named(t: &Tables<'_>, path: &[u8]) -> Result<Node, VaultError> {
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

/// A media type by a name's ending, for showing only.
fn media_of(name: &str) -> &'static str {
    let ending = name.rsplit_once('.').map(|(_, ending)| ending.to_ascii_lowercase()).unwrap_or_default();
    match ending.as_str() {
        "jpg" | "jpeg" => "image/jpeg",
        "png" => "image/png",
        "gif" => "image/gif",
        "webp" => "image/webp",
        "svg" => "image/svg+xml",
        "mp4" => "video/mp4",
        "mkv" => "video/x-matroska",
        "mp3" => "audio/mpeg",
        "ogg" => "audio/ogg",
        "flac" => "audio/flac",
        "pdf" => "application/pdf",
        "txt" | "md" => "text/plain",
        "html" => "text/html",
        "zip" => "application/zip",
        _ => "",
    }
}

//! Who is let in, answered from memory: keys of peers, open invites, recovery secrets.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::books::{Books, InviteRow, InviteState, PeerRow};
use crate::card::{Card, Role};
use crate::id::CellId;
use crate::keys::{Identity, Secret};
use crate::order;
use crate::pool::{Turns, unblock};
use crate::vault::{Vault, VaultError};
use crate::wire::handshake::{Admission, Gate, Kind};
use crate::world::{instant, since};

/// Log lines about refusals in one stretch of time; further ones are counted only.
const REFUSALS_LOGGED: u32 = 10;
const REFUSALS_EVERY: Duration = Duration::from_secs(60);

/// One log line for each refusal, but not for a flood of them.
#[derive(Debug)]
pub(super) struct RefusalLog {
    since: Cell<Instant>,
    count: Cell<u32>,
}

impl RefusalLog {
    pub(super) fn new() -> Self {
        Self { since: Cell::new(instant()), count: Cell::new(0) }
    }

    pub(super) fn note(&self, text: std::fmt::Arguments<'_>) {
        if since(self.since.get()) > REFUSALS_EVERY {
            if self.count.get() > REFUSALS_LOGGED {
                log::warn!("{} more refusals within a minute", self.count.get() - REFUSALS_LOGGED);
            }
            self.since.set(instant());
            self.count.set(0);
        }
        self.count.set(self.count.get().saturating_add(1));
        if self.count.get() <= REFUSALS_LOGGED {
            log::warn!("{text}");
        }
    }
}

/// The books as the handshakes need them, read once and kept level.
pub(super) struct BookGate {
    vault: Arc<Vault>,
    books: Arc<Books>,
    card: RefCell<Vec<u8>>,
    peers: RefCell<HashMap<CellId, PeerRow>>,
    invites: RefCell<HashMap<[u8; 16], InviteRow>>,
    /// One changes a peer at a time, so that no change is lost.
    changing: Turns,
    /// Why the last invite was refused.
    pub(super) reason: Cell<&'static str>,
    /// Who proved itself last, and is in no row.
    pub(super) stranger: Cell<Option<CellId>>,
}

impl BookGate {
    pub(super) fn new(vault: Arc<Vault>, books: Arc<Books>) -> Self {
        Self {
            vault,
            books,
            card: RefCell::default(),
            peers: RefCell::default(),
            invites: RefCell::default(),
            changing: Turns::default(),
            reason: Cell::new(""),
            stranger: Cell::new(None),
        }
    }

    /// Reads the books anew.
    pub(super) async fn refresh(&self) -> Result<(), VaultError> {
        let books = Arc::clone(&self.books);
        let read = move || Ok::<_, VaultError>((books.peers()?, books.invites()?));
        let (peers, invites) = unblock(read).await?;
        *self.peers.borrow_mut() = peers.into_iter().map(|peer| (peer.id, peer)).collect();
        *self.invites.borrow_mut() = invites.into_iter().map(|invite| (invite.id, invite)).collect();
        Ok(())
    }

    pub(super) fn set_card(&self, card: &Card) {
        *self.card.borrow_mut() = card.to_bytes();
    }

    pub(super) fn card(&self) -> Vec<u8> {
        self.card.borrow().clone()
    }

    /// A peer that has not been removed.
    pub(super) fn peer(&self, id: &CellId) -> Option<PeerRow> {
        self.peers.borrow().get(id).filter(|peer| peer.removed_at.is_none()).cloned()
    }

    /// Whether there is a row of it, a removed peer's too.
    pub(super) fn is_in_books(&self, id: &CellId) -> bool {
        self.peers.borrow().contains_key(id)
    }

    /// Peers that have not been removed.
    pub(super) fn peers(&self) -> Vec<PeerRow> {
        let mut peers: Vec<PeerRow> =
            self.peers.borrow().values().filter(|peer| peer.removed_at.is_none()).cloned().collect();
        order::sort_by_key(&mut peers, |peer| (peer.added_at, peer.id.0));
        peers
    }

    /// All rows, removed peers too.
    pub(super) fn rows(&self) -> Vec<PeerRow> {
        let mut rows: Vec<PeerRow> = self.peers.borrow().values().cloned().collect();
        order::sort_by_key(&mut rows, |peer| peer.id);
        rows
    }

    pub(super) fn invites(&self) -> Vec<InviteRow> {
        let mut invites: Vec<InviteRow> = self.invites.borrow().values().cloned().collect();
        order::sort_by_key(&mut invites, |invite| (std::cmp::Reverse(invite.expires), invite.id));
        invites
    }

    /// Keeps a peer, on disk and here.
    pub(super) async fn save(&self, peer: PeerRow) -> Result<(), VaultError> {
        let _alone = self.changing.lock().await;
        self.keep(peer).await
    }

    /// Changes a peer, on disk and here, and gives what `change` gives; `None`: it is no peer.
    pub(super) async fn change<T>(
        &self,
        id: &CellId,
        change: impl FnOnce(&mut PeerRow) -> T,
    ) -> Result<Option<T>, VaultError> {
        let _alone = self.changing.lock().await;
        let Some(before) = self.peer(id) else { return Ok(None) };
        let mut peer = before.clone();
        let outcome = change(&mut peer);
        if peer != before {
            self.keep(peer).await?;
        }
        Ok(Some(outcome))
    }

    async fn keep(&self, peer: PeerRow) -> Result<(), VaultError> {
        let (vault, books, row) = (Arc::clone(&self.vault), Arc::clone(&self.books), peer.clone());
        unblock(move || books.save_peer(&vault, &row)).await?;
        self.put(peer);
        Ok(())
    }

    fn put(&self, mut peer: PeerRow) {
        let mut peers = self.peers.borrow_mut();
        // It may have been heard of while the disk was written.
        if let Some(now) = peers.get(&peer.id).filter(|now| now.last_seen > peer.last_seen) {
            (peer.last_seen, peer.address) = (now.last_seen, now.address.clone());
        }
        peers.insert(peer.id, peer);
    }

    /// A peer was heard of; kept here, and on disk by the caller.
    pub(super) fn note_seen(&self, id: &CellId, at: i64, address: Option<&str>) {
        if let Some(peer) = self.peers.borrow_mut().get_mut(id) {
            peer.last_seen = Some(at);
            if let Some(address) = address {
                peer.address = address.to_owned();
            }
        }
    }

    /// Keeps what a peer will prove when it recovers, on disk and here.
    pub(super) async fn keep_secret(&self, id: &CellId, secret: &Secret) -> Result<(), VaultError> {
        let _alone = self.changing.lock().await;
        let (books, id, kept) = (Arc::clone(&self.books), *id, secret.clone());
        unblock(move || books.set_recovery_secret(&id, &kept)).await?;
        if let Some(peer) = self.peers.borrow_mut().get_mut(&id) {
            peer.recovery_secret = Some(secret.clone());
        }
        Ok(())
    }

    async fn admit_invited(&self, id: [u8; 16], card: Option<&Card>) -> bool {
        let Some(card) = card else { return false };
        let role = {
            let mut invites = self.invites.borrow_mut();
            let Some(invite) = invites.get_mut(&id) else { return false };
            let state = invite.state_at(self.vault.clock.wall());
            if state != InviteState::Open || card.id == self.vault.id() {
                self.reason.set(state.as_str());
                return false;
            }
            // Used from here on, before the disk has it: the next bearer may be waiting already.
            (invite.state, invite.used_by) = (InviteState::Used, Some(card.id));
            invite.role
        };
        let _alone = self.changing.lock().await;
        let wall = self.vault.clock.wall();
        let mut peer = PeerRow::new(card, wall);
        if let Some(known) = self.peers.borrow().get(&card.id) {
            if known.x25519 != card.x25519 {
                return false;
            }
            peer = peer.again(known);
        }
        if role == Role::Friend {
            peer.friendship.agree(wall);
        }
        let (vault, books, row) = (Arc::clone(&self.vault), Arc::clone(&self.books), peer.clone());
        let used = unblock(move || -> Result<bool, VaultError> {
            let is_first = books.use_invite(&vault, &id, &row.id)?;
            if is_first {
                books.save_peer(&vault, &row)?;
            }
            Ok(is_first)
        });
        match used.await {
            Ok(true) => {
                log::info!("{} ({}) has joined by an invite", peer.name, peer.id.short());
                self.put(peer);
                true
            }
            Ok(false) => false,
            Err(why) => {
                log::warn!("an invite could not be used: {why}");
                false
            }
        }
    }
}

impl Gate for BookGate {
    fn identity(&self) -> &Identity {
        &self.vault.identity
    }

    fn own_card(&self) -> Vec<u8> {
        self.card()
    }

    fn is_known(&self, id: &CellId, x25519: &[u8; 32]) -> bool {
        if !self.is_in_books(id) && *id != self.vault.id() {
            self.stranger.set(Some(*id));
        }
        self.peer(id).is_some_and(|peer| peer.x25519 == *x25519)
    }

    fn invite_secret(&self, invite_id: &[u8; 16]) -> Option<Secret> {
        let invites = self.invites.borrow();
        let Some(invite) = invites.get(invite_id) else {
            self.reason.set("unknown");
            return None;
        };
        let state = invite.state_at(self.vault.clock.wall());
        self.reason.set(state.as_str());
        (state == InviteState::Open).then(|| invite.secret.clone())
    }

    fn recovery_secrets(&self) -> Vec<(CellId, Secret)> {
        let secret = |peer: &PeerRow| Some((peer.id, peer.recovery_secret.clone()?));
        self.peers.borrow().values().filter_map(secret).collect()
    }

    fn admit<'a>(&'a self, kind: Kind, peer: Option<&'a Card>) -> Admission<'a> {
        match kind {
            Kind::Invite(id) => Box::pin(self.admit_invited(id, peer)),
            Kind::Known | Kind::Recovery | Kind::Ticket => Box::pin(std::future::ready(true)),
        }
    }
}

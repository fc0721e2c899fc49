//! Keeping the number of copies: peers that stay away too long are not counted on, those that come back are counted
//! again, copies too many are let go, and what lies with peers only is copied on.
//!
//! Pushing itself is part of each round (`round`); here is what changes its input. All of it works in slices, and a power
//! cut between two leaves a state from which the next pass goes on.

use std::rc::Rc;

use super::driver::Sync;
use super::link::Link;
use super::round::{self, with_vault};
use crate::alerts::silence_words;
use crate::config::RECORDS_PER_CHANGE;
use crate::copies;
use crate::id::{CellId, ChunkName};
use crate::order;
use crate::placement::planner::{Deficit, Holder, Pace, Sites, at_most_on_peers, on_peers, plan, surplus};
use crate::placement::{CellNumber, ChunkId, ChunkRow, Copy, CopyState, DbError, Extra, Want};
use crate::vault::{Alert, Vault, VaultError};
use crate::world::{self, Sabotage};

/// Chunks that one pass lets go at most; the next pass goes on.
const TRIMMED_MAX: usize = 20_000;
/// Chunks planned at once.
const PAGE: usize = 500;
/// Bytes that one pass brings here to copy them on.
const PASSED_ON_BYTES: u64 = 64 << 20;
/// peer_health.json is written at most this often. s.
const SAVE_EVERY_S: u64 = 600;
pub(super) const FILE: &str = "peer_health.json";

pub(super) fn away_key(id: &CellId) -> String {
    format!("away:{id}")
}

/// Whether the copies of a peer are marked as not to be counted on.
pub(super) fn is_marked_away(vault: &Vault, id: &CellId) -> Result<bool, DbError> {
    vault.db.read(|t| Ok(t.meta(&away_key(id))?.is_some_and(|value| !value.is_empty())))
}

/// Marks all copies of a peer as away or back, a slice at a time.
fn mark(vault: &Vault, cell: CellNumber, is_away: bool) -> Result<u64, DbError> {
    let mut after = ChunkId(0);
    let mut marked = 0;
    loop {
        let page = vault.db.read(|t| t.copies_page(cell, after, RECORDS_PER_CHANGE))?;
        let Some(last) = page.last() else { return Ok(marked) };
        after = last.chunk;
        let wanted = |copy: &&Copy| match copy.state {
            CopyState::Stored | CopyState::Suspect => is_away,
            CopyState::Away => !is_away,
            CopyState::ToRelease => false,
        };
        let chunks: Vec<ChunkId> = page.iter().filter(wanted).map(|copy| copy.chunk).collect();
        if !chunks.is_empty() {
            vault.db.change(|t| t.set_copies_away(cell, &chunks, is_away))?;
            marked += chunks.len() as u64;
        }
    }
}

impl Sync {
    /// Reads what was known of the peers when the cell stopped.
    pub(super) async fn load_health(&self) -> Result<(), VaultError> {
        let peers: Vec<CellId> = self.gate.peers().iter().map(|peer| peer.id).collect();
        let (text, away) = with_vault(&self.vault, move |vault| -> Result<_, VaultError> {
            let text = vault
                .files
                .read(FILE)
                .ok()
                .flatten()
                .and_then(|bytes| String::from_utf8(bytes).ok())
                .unwrap_or_default();
            let mut away = Vec::new();
            for id in peers {
                if is_marked_away(vault, &id)? {
                    away.push(id);
                }
            }
            Ok((text, away))
        })
        .await?;
        *self.health.borrow_mut() = super::health::HealthBook::from_json(&text);
        self.away.borrow_mut().extend(away);
        self.health_at.set(self.vault.clock.steady());
        Ok(())
    }

    /// How long each peer was here on each of the last days.
    pub fn health_days(&self) -> Vec<(CellId, Vec<super::health::Day>)> {
        let health = self.health.borrow();
        let of = |peer: super::PeerRow| Some((peer.id, health.of(&peer.id)?.days.clone()));
        self.gate.peers().into_iter().filter_map(of).collect()
    }

    /// Writes peer_health.json if it says something new.
    pub(super) async fn save_health(&self) {
        if !self.health.borrow_mut().take_changed() {
            return;
        }
        self.health_saved_at.set(self.vault.now());
        let text = self.health.borrow().to_json();
        let written = with_vault(&self.vault, move |vault| vault.files.write_whole(FILE, text.as_bytes()));
        if let Err(why) = written.await {
            log::warn!("{FILE} cannot be written: {why}");
        }
    }

    /// Time has passed: notes who is here, stops counting on those whose grace is over, and tells of those that are silent.
    pub(crate) async fn watch_peers(self: &Rc<Self>) {
        let steady = self.vault.clock.steady();
        let seconds = steady.saturating_sub(self.health_at.get()).as_secs();
        self.health_at.set(self.health_at.get() + std::time::Duration::from_secs(seconds));
        let now = self.vault.now();
        let all: Vec<CellId> = self.gate.peers().iter().map(|peer| peer.id).collect();
        let here: Vec<CellId> =
            all.iter().filter(|id| self.link(id).is_some_and(|link| !link.is_stalled())).copied().collect();
        self.health.borrow_mut().pass(now, seconds, &all, &here);
        let mut silent = Vec::new();
        for id in all.iter().filter(|id| !here.contains(id)) {
            let (silence, grace) = {
                let health = self.health.borrow();
                let Some(health) = health.of(id) else { continue };
                (health.silent, self.grace_s(health.grace(now)))
            };
            if silence >= super::health::SILENCE_S {
                silent.push((*id, silence));
            }
            let is_over = silence >= grace && !world::is_sabotaged(Sabotage::HealsNothing);
            if is_over && !self.left.borrow().contains(id) {
                if let Err(why) = self.leave(id).await {
                    log::warn!("{why}");
                }
            }
        }
        let mut refusing = self.strangers.borrow().refusing(now);
        refusing.retain(|(id, _)| all.contains(id) && !here.contains(id));
        silent.retain(|(id, _)| refusing.iter().all(|(other, _)| other != id));
        self.tell_of_silence(&silent);
        self.show_refusing(&refusing);
        self.show_strangers();
        if now >= self.health_saved_at.get() + SAVE_EVERY_S {
            self.save_health().await;
        }
    }

    /// How long a peer's silence is waited out: by its habits unless the settings say otherwise.
    pub(super) fn grace_s(&self, by_habit: u64) -> u64 {
        match self.vault.config.heal_grace_s {
            0 => by_habit,
            set => set,
        }
    }

    fn tell_of_silence(&self, silent: &[(CellId, u64)]) {
        if silent.is_empty() {
            self.vault.clear("peer-silent");
            return;
        }
        let now = self.vault.now();
        let words = |(id, silence): &(CellId, u64)| {
            let grace = self.health.borrow().of(id).map_or(0, |health| self.grace_s(health.grace(now)));
            silence_words(&self.name_of(id), *silence, grace, self.away.borrow().contains(id))
        };
        let told: Vec<String> = silent.iter().map(words).collect();
        self.vault.raise("peer-silent", Alert {
            text: told.join("; "),
            remedy: "see whether it is switched on and on the network; when it comes back, nothing is lost. If it is gone for good, \
                     run `grove peer remove NAME`"
                .into(),
        });
    }

    /// A peer has been away for too long to count on its copies.
    async fn leave(self: &Rc<Self>, id: &CellId) -> Result<(), VaultError> {
        let _marking = self.marking.lock().await;
        if self.link(id).is_some() {
            return Ok(());
        }
        self.away.borrow_mut().insert(*id);
        let peer = *id;
        let marked = with_vault(&self.vault, move |vault| -> Result<u64, DbError> {
            let cell = vault.db.change_durably(|t| {
                t.set_meta(&away_key(&peer), &[1])?;
                t.cell(&peer)
            })?;
            mark(vault, cell, true)
        })
        .await?;
        // Only now: what a full disk or a power cut has interrupted is gone through again.
        self.left.borrow_mut().insert(*id);
        if marked == 0 {
            return Ok(());
        }
        log::warn!(
            "{} has been silent too long: {marked} chunks that it holds are copied elsewhere",
            self.name_of(id)
        );
        self.poke_others(id);
        Ok(())
    }

    /// A peer that was not counted on is here again, and its inventory is known.
    pub(super) async fn welcome_back(&self, link: &Link) -> Result<(), VaultError> {
        if !self.away.borrow().contains(&link.peer) {
            return Ok(());
        }
        let _marking = self.marking.lock().await;
        let (peer, cell) = (link.peer, link.cell);
        let marked = with_vault(&self.vault, move |vault| -> Result<u64, DbError> {
            let marked = mark(vault, cell, false)?;
            vault.db.change_durably(|t| t.set_meta(&away_key(&peer), &[]))?;
            Ok(marked)
        })
        .await?;
        self.away.borrow_mut().remove(&peer);
        self.left.borrow_mut().remove(&peer);
        self.health.borrow_mut().note_back(&peer, self.vault.now());
        log::info!("{} is back with {marked} chunks", self.name_of(&peer));
        Ok(())
    }

    /// A peer is none any more.
    pub(super) fn forget_health(&self, id: &CellId) {
        self.away.borrow_mut().remove(id);
        self.left.borrow_mut().remove(id);
        self.health.borrow_mut().forget(id);
    }

    /// Whether a peer was away and has not been back for long enough.
    fn is_settling(&self, id: &CellId) -> bool {
        let back_at = self.health.borrow().of(id).and_then(|health| health.back_at);
        self.away.borrow().contains(id)
            || back_at.is_some_and(|at| self.vault.now() < at + self.vault.config.heal_settle_s)
    }

    // ---- Copies too many ----

    /// Marks copies for release that are not needed, and wakes the rounds that carry it out.
    pub(super) async fn trim(self: &Rc<Self>) -> Result<(), VaultError> {
        if !round::may_release(self).await? {
            return Ok(());
        }
        let (wants, is_settled) = self.wants().await?;
        let mut looked_at = 0;
        for (want, wanted) in wants.into_iter().filter(|_| is_settled) {
            self.trim_those(want, wanted, &mut looked_at).await?;
        }
        Ok(())
    }

    /// What chunks want, and how many copies in all that is; and whether they want what their files do, so that anything may be let
    /// go.
    async fn wants(&self) -> Result<(Vec<(Want, u64)>, bool), VaultError> {
        let find = |vault: &Vault| -> Result<_, VaultError> {
            let is_settled = copies::settle(vault)?;
            let usual = vault.config.copies;
            let wants = vault.db.read(|t| t.wants())?.into_iter();
            Ok((wants.map(|want| (want, copies::in_all(want, usual))).collect(), is_settled))
        };
        with_vault(&self.vault, find).await
    }

    async fn trim_those(
        self: &Rc<Self>,
        want: Want,
        wanted: u64,
        looked_at: &mut usize,
    ) -> Result<(), VaultError> {
        let mut after = ChunkId(0);
        while *looked_at < TRIMMED_MAX {
            // Nobody plans meanwhile: a copy on its way counts with the others.
            let _planning = self.planning.lock().await;
            let (peers, sites) = (self.holders(), self.sites());
            let page = with_vault(&self.vault, move |vault| {
                vault.db.read(|t| t.chunks_over(want, wanted, after, PAGE))
            })
            .await?;
            let Some(last) = page.last() else { break };
            (after, *looked_at) = (last.id, *looked_at + page.len());
            let let_go = with_vault(&self.vault, move |vault| let_go(vault, &page, &peers, &sites)).await?;
            for link in self.links().into_iter().filter(|link| let_go.contains(&link.cell)) {
                link.nudge();
            }
        }
        Ok(())
    }

    /// What is known of each peer as a holder of chunks; of a copy it is filled in what is the copy's own.
    fn holders(&self) -> Vec<Holder> {
        let links = self.links();
        let known = links.iter().filter_map(|link| {
            let peer = self.gate.peer(&link.peer)?;
            let is_settling = self.is_settling(&link.peer);
            Some(Holder {
                cell: link.cell,
                is_favorite: peer.is_favorite,
                is_solid: link.is_alive() && !link.is_stalled() && !is_settling,
                is_settling,
                is_suspect: false,
                proven: 0,
                pace: link.pace(),
            })
        });
        known.collect()
    }

    /// Where the peers are.
    pub(super) fn sites(&self) -> Sites {
        let mut sites = Sites::default();
        for link in self.links() {
            if let Some(site) = self.site_of(&link) {
                sites.set(link.cell, site);
            }
        }
        sites
    }

    // ---- What lies with peers only ----

    /// Brings chunks of freed files here that have lost a copy, so that rounds copy them on; and drops what was copied on.
    pub(super) async fn pass_on(self: &Rc<Self>) -> Result<(), VaultError> {
        let mut bytes = 0;
        let mut coming: Vec<ChunkName> = Vec::new();
        let (wants, is_settled) = self.wants().await?;
        let state = round::state_of_things(self);
        if self.passed_for.get() != Some(state) {
            for (want, wanted) in &wants {
                self.find_passed_on(*want, *wanted, &mut bytes, &mut coming).await?;
            }
            self.passed_for.set(coming.is_empty().then_some(state));
        }
        if !coming.is_empty() {
            log::info!("{} chunks of freed files come here to be copied on", coming.len());
            if !self.fetch(coming).await.got.is_empty() {
                self.nudge_all(None);
            }
        }
        if !is_settled {
            return Ok(());
        }
        let drop = move |vault: &Vault| {
            wants.into_iter().try_for_each(|(want, wanted)| drop_passed_on(vault, want, wanted))
        };
        with_vault(&self.vault, drop).await
    }

    /// Finds chunks of freed files that want `want` and have lost a copy, and that somebody could be given.
    async fn find_passed_on(
        &self,
        want: Want,
        wanted: u64,
        bytes: &mut u64,
        coming: &mut Vec<ChunkName>,
    ) -> Result<(), VaultError> {
        let mut after = ChunkId(0);
        while *bytes < PASSED_ON_BYTES {
            let page = with_vault(&self.vault, move |vault| {
                vault.db.read(|t| -> Result<Vec<(ChunkRow, Vec<CellNumber>)>, DbError> {
                    let with_holders = |row: ChunkRow| t.copies_of(row.id).map(|holders| (row, holders));
                    t.absent_short(want, wanted, after, PAGE)?.into_iter().map(with_holders).collect()
                })
            })
            .await?;
            let Some((last, _)) = page.last() else { break };
            after = last.id;
            let deficits: Vec<Deficit> = page
                .iter()
                .map(|(row, holders)| Deficit { chunk: row.id, len: row.len, holders: holders.clone() })
                .collect();
            let copies = on_peers(wanted, Extra::Freed, false);
            let targets = plan(&deficits, &mut self.candidates(), &self.sites(), copies);
            for ((row, _), targets) in page.iter().zip(targets) {
                if !targets.is_empty() && *bytes < PASSED_ON_BYTES {
                    *bytes += u64::from(row.len);
                    coming.push(row.name);
                }
            }
        }
        Ok(())
    }
}

/// Marks the copies of these chunks that are not needed for release; gives who holds them.
fn let_go(
    vault: &Vault,
    page: &[ChunkRow],
    peers: &[Holder],
    sites: &Sites,
) -> Result<Vec<CellNumber>, DbError> {
    let mut told = Vec::new();
    vault.db.change(|t| -> Result<(), DbError> {
        for row in page {
            // All as it is now: it may have changed since the page was read.
            let wanted = copies::in_all(t.want(row.id)?, vault.config.copies);
            let is_here = t.chunk(&row.name)?.is_some_and(|row| row.place.is_some());
            let copies = at_most_on_peers(wanted, t.extra(row.id)?, is_here);
            let counted = |copy: &Copy| matches!(copy.state, CopyState::Stored | CopyState::Suspect);
            let mut holders = Vec::new();
            for copy in t.all_copies_of(row.id)?.into_iter().filter(counted) {
                let known = peers.iter().find(|peer| peer.cell == copy.cell).copied();
                // Of one that was not here since the start nothing is known: it is waited for.
                let holder = known.unwrap_or(Holder {
                    cell: copy.cell,
                    is_favorite: false,
                    is_solid: false,
                    is_settling: true,
                    is_suspect: false,
                    proven: 0,
                    pace: Pace(u8::MAX),
                });
                holders.push(Holder {
                    is_suspect: copy.state == CopyState::Suspect,
                    proven: copy.proven,
                    ..holder
                });
            }
            for cell in surplus(&holders, sites, copies) {
                t.release_copy(row.id, cell)?;
                told.push(cell);
            }
        }
        Ok(())
    })?;
    order::sort(&mut told);
    told.dedup();
    Ok(told)
}

/// Drops the local copies of chunks that should lie with peers only, once enough of them have one.
fn drop_passed_on(vault: &Vault, want: Want, wanted: u64) -> Result<(), VaultError> {
    loop {
        let _placing = vault.placing();
        // Durable before the files go: see `gc::sweep`.
        let gone = vault.db.change_durably(|t| -> Result<Vec<_>, DbError> {
            let mut gone = Vec::new();
            let mut after = ChunkId(0);
            loop {
                let page = t.passed_on(want, wanted, after, PAGE)?;
                let Some(last) = page.last() else { break };
                after = last.id;
                for row in page {
                    let Some(place) = row.place else { continue };
                    if !t.is_held(row.id)? {
                        t.move_chunk(row.id, None)?;
                        gone.push((row.name, place));
                    }
                }
                if gone.len() >= PAGE {
                    break;
                }
            }
            Ok(gone)
        })?;
        if gone.is_empty() {
            return Ok(());
        }
        for (name, place) in gone {
            vault.store.remove(name, place)?;
        }
    }
}

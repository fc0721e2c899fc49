//! Asking one peer, in the order of the design: what changed, what of ours it holds, what it should hold, the head of the
//! catalog, and what it may let go.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, HashSet, VecDeque};
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;

use futures_util::stream::{FuturesUnordered, StreamExt};
use smol::lock::Semaphore;

use super::audit;
use super::digest;
use super::driver::Sync;
use super::link::{For, Link};
use super::room;
use super::serve::{GROUP_BYTES, GROUP_CHUNKS};
use crate::buffers;
use crate::catalog::{Head, Verdict, judge};
use crate::config::RECORDS_PER_CHANGE;
use crate::copies;
use crate::id::{BodyHash, CellId, ChunkName};
use crate::order;
use crate::placement::planner::{self, Candidate, Deficit, coarse, plan};
use crate::placement::{CellNumber, ChunkId, ChunkRow, DbError, Extra, Own, Tables, Want};
use crate::pool::{Job, unblock};
use crate::publish;
use crate::sha256;
use crate::store::{Staged, StoreError};
use crate::vault::{Alert, Marks, Vault, VaultError};
use crate::wire::message::{
    self, AskError, Class, GetStatus, HeadOutcome, Hello, INVENTORY_ENTRIES_MAX, NAMES_MAX, PUT_BYTES_MAX,
    PutStatus, Reply, Request,
};
use crate::wire::session::Session;

/// Chunks that are planned at once.
const PAGE_CHUNKS: usize = 1024;
/// Batches under way at once to one peer.
const BATCHES: usize = 2;
/// Names of one `Get`.
const GET_NAMES: usize = 64;
/// Streams of one pull.
const GET_STREAMS: usize = 2;
/// Fetched bytes that are made durable together.
const PULL_COMMIT_BYTES: usize = 64 << 20;
/// Of them, bytes of small chunks, which wait in memory.
const PULL_MEMORY_BYTES: usize = 2 << 20;
/// And their number.
const PULL_COMMIT_CHUNKS: usize = 1024;
/// Connections that may break under one pull before it is given up.
const BREAKS_MAX: u32 = 8;
/// Pages of an inventory taken in one round; the rest comes with the next.
const INVENTORY_PAGES: usize = 1024;
/// After a recovery nothing is released before all peers were heard, or this long. s.
const RELEASE_WAIT_S: u64 = 90 * 86_400;
/// That a peer was heard is noted anew after this. s.
const SEEN_AGAIN_S: u64 = 86_400;

/// What a round moved.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Moved {
    pub pushed_chunks: u64,
    pub pushed_bytes: u64,
    pub pulled_chunks: u64,
    pub pulled_bytes: u64,
}

impl Moved {
    /// This and `more`.
    pub(super) fn and(self, more: Self) -> Self {
        Self {
            pushed_chunks: self.pushed_chunks + more.pushed_chunks,
            pushed_bytes: self.pushed_bytes + more.pushed_bytes,
            pulled_chunks: self.pulled_chunks + more.pulled_chunks,
            pulled_bytes: self.pulled_bytes + more.pulled_bytes,
        }
    }

    /// What of this came after `before`.
    pub(super) fn since(self, before: Self) -> Self {
        Self {
            pushed_chunks: self.pushed_chunks - before.pushed_chunks,
            pushed_bytes: self.pushed_bytes - before.pushed_bytes,
            pulled_chunks: self.pulled_chunks - before.pulled_chunks,
            pulled_bytes: self.pulled_bytes - before.pulled_bytes,
        }
    }
}

/// Why a round ended early.
#[derive(Debug)]
pub(super) enum RoundError {
    Ask(AskError),
    Vault(VaultError),
    Why(String),
}

impl fmt::Display for RoundError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ask(why) => why.fmt(f),
            Self::Vault(why) => why.fmt(f),
            Self::Why(why) => f.write_str(why),
        }
    }
}

impl From<AskError> for RoundError {
    fn from(why: AskError) -> Self {
        Self::Ask(why)
    }
}

impl From<VaultError> for RoundError {
    fn from(why: VaultError) -> Self {
        Self::Vault(why)
    }
}

impl From<DbError> for RoundError {
    fn from(why: DbError) -> Self {
        Self::Vault(why.into())
    }
}

/// Works on placement.db on the pool.
pub(super) async fn with_vault<T: Send + 'static, E: Send + 'static>(
    vault: &Arc<Vault>,
    work: impl FnOnce(&Vault) -> Result<T, E> + Send + 'static,
) -> Result<T, E> {
    let vault = Arc::clone(vault);
    unblock(move || work(&vault)).await
}

/// Exchanges what a session begins with: our recovery secret, so that this peer can give everything back to the phrase.
pub(super) async fn introduce(sync: &Sync, link: &Link) -> Result<(), AskError> {
    if !link.is_introduced.get() {
        let secret = sync.vault.master.recovery_secret();
        link.ask(&Request::RecoverySecret { secret }).await?;
        link.is_introduced.set(true);
    }
    Ok(())
}

/// One round with one peer; rounds with one peer do not overlap.
/// What it moved is added to `moved`, though it may end early.
pub(super) async fn run(sync: &Rc<Sync>, link: &Rc<Link>, moved: &mut Moved) -> Result<(), RoundError> {
    let _alone = link.rounding.lock().await;
    if sync.vault.is_retired() {
        return Err(RoundError::Why("this cell has stopped: a newer life of it runs elsewhere".into()));
    }
    let outcome = bring_level(sync, link, moved).await;
    // Whatever went wrong before: a peer must not be able to keep out of proofs by answering other things wrongly.
    let audited = if link.is_alive() { audit::run(sync, link).await } else { Ok(()) };
    let settled = if link.is_alive() { sync.bounty_round(link).await } else { Ok(()) };
    outcome?;
    audited?;
    settled?;
    release(sync, link).await
}

async fn bring_level(sync: &Rc<Sync>, link: &Rc<Link>, moved: &mut Moved) -> Result<(), RoundError> {
    introduce(sync, link).await?;
    sync.tell_wish(link).await?;
    sync.share_round(link).await?;
    let (keeper, owner, quota) = (Arc::clone(&sync.keeper), link.peer, sync.quota(&link.peer));
    let hello = unblock(move || keeper.hello(&owner, quota)).await?;
    let Reply::Hello(theirs) = link.ask(&Request::Hello(hello)).await? else {
        return Err(AskError::OutOfTurn.into());
    };
    sync.vault.hear_time(&link.peer, theirs.unix_time);
    sync.hear_version(&link.peer, &theirs.version);
    link.usage.set(Some(theirs.usage));
    let was_full = link.is_full.replace(room(&theirs.usage) == 0);
    take_heads(sync, link, &theirs.tips, moved).await?;
    take_inventory(sync, link, &theirs).await?;
    sync.welcome_back(link).await?;
    let mut tips = theirs.tips.clone();
    tips.retain(|tip| link.broken_heads.borrow().iter().all(|(broken, _)| broken != tip));
    let mut head = tips.first().copied().filter(|_| tips.len() == 1);
    let pushed = push_chunks(sync, link, moved, &mut head, was_full).await;
    if moved.pushed_chunks > 0 {
        sync.offer_all();
    }
    let pushed = if pushed.is_ok() { push_head(sync, link, moved, &mut head).await } else { pushed };
    link.head_there.set(head);
    pushed
}

// ---- Heads of ours that somebody else wrote ----

async fn take_heads(
    sync: &Rc<Sync>,
    link: &Link,
    tips: &[BodyHash],
    moved: &mut Moved,
) -> Result<(), RoundError> {
    let _alone = sync.merging.lock().await;
    let vault = &sync.vault;
    let asked = tips.to_vec();
    let (unknown, is_stale) = with_vault(vault, move |vault| {
        vault.db.read(|t| -> Result<_, DbError> {
            let mut unknown = HashSet::new();
            for tip in &asked {
                if !t.knows_head(tip)? {
                    unknown.insert(*tip);
                }
            }
            let current = publish::current_head(t)?.map(|(hash, ..)| hash);
            let old: Vec<BodyHash> = asked
                .iter()
                .filter(|tip| !unknown.contains(tip) && Some(**tip) != current)
                .copied()
                .collect();
            let is_stale = current.is_some_and(|hash| asked.contains(&hash));
            Ok((unknown, if is_stale { old } else { Vec::new() }))
        })
    })
    .await?;
    if !is_stale.is_empty() {
        // The peer has our newest head and does not know that it contains these: the next one says so.
        let merged: Vec<BodyHash> = is_stale.into_iter().take(32).collect();
        with_vault(vault, move |vault| publish::publish_with_parents(vault, &merged)).await?;
    }
    let now = vault.now();
    link.broken_heads.borrow_mut().retain(|(head, _)| unknown.contains(head));
    let is_due = |tip: &BodyHash| {
        let broken = link.broken_heads.borrow();
        broken.iter().all(|(head, at)| head != tip || !(*at..at.saturating_add(SEEN_AGAIN_S)).contains(&now))
    };
    if unknown.iter().any(is_due) {
        let mut heads = Vec::new();
        for bytes in message::heads(&link.line(For::Small).await?.session).await? {
            match Head::open(&bytes) {
                Ok((hash, head)) if head.owner == vault.id() && unknown.contains(&hash) => {
                    heads.push((hash, head))
                }
                Ok(_) => {}
                Err(why) => sync.refusals.note(format_args!("{}: {why}", link.peer.short())),
            }
        }
        order::sort_by_key(&mut heads, |(_, head)| std::cmp::Reverse((head.life, head.seq)));
        for (hash, head) in heads {
            let is_again = link.broken_heads.borrow().iter().any(|(broken, _)| *broken == hash);
            if is_due(&hash) && !take_head(sync, link, hash, head, is_again, moved).await? {
                let mut broken = link.broken_heads.borrow_mut();
                broken.retain(|(other, _)| *other != hash);
                broken.push((hash, now));
            }
        }
    }
    if !link.broken_heads.borrow().is_empty() {
        // What is not known of cannot be said to be heard.
        return Ok(());
    }
    let peer = link.peer;
    with_vault(vault, move |vault| {
        let (key, now) = (seen_key(&peer), vault.now());
        let before = vault.db.read(|t| t.meta_u64(&key))?;
        // Not a write a round.
        if before.is_none_or(|at| now < at || now >= at + SEEN_AGAIN_S) {
            vault.db.change(|t| t.set_meta_u64(&key, now))?;
        }
        Ok::<_, DbError>(())
    })
    .await?;
    Ok(())
}

/// When a peer last told which heads of ours it has, and they were taken in, to a day. Observed seconds.
fn seen_key(peer: &CellId) -> String {
    format!("seen:{peer}")
}

/// Whether peers have been waited for long enough since then.
pub(super) fn is_waited_out(since: u64, now: u64) -> bool {
    now >= since + RELEASE_WAIT_S
}

/// Whether each of these peers has told since `since` which heads of ours it has: none knows of a version that this cell does
/// not, or it was waited for long enough by `now`, which is not to run ahead with a wrong clock (`expiry_now`).
pub(super) fn all_heard(t: &Tables<'_>, peers: &[CellId], since: u64, now: u64) -> Result<bool, DbError> {
    if is_waited_out(since, now) {
        return Ok(true);
    }
    for peer in peers {
        if t.meta_u64(&seen_key(peer))?.is_none_or(|at| at < since) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Takes in what a head of ours names that this cell did not write. `false`: the peer has lost a part of it that no other has, so
/// nothing of it can be used; the round goes on without. Where it is of this cell's own life and still so a day later
/// (`is_again`), this cell goes on in a new one: what others wrote in its own cannot come to light.
async fn take_head(
    sync: &Rc<Sync>,
    link: &Link,
    hash: BodyHash,
    head: Head,
    is_again: bool,
    moved: &mut Moved,
) -> Result<bool, RoundError> {
    let vault = &sync.vault;
    let is_known = with_vault(vault, move |vault| vault.db.read(|t| t.knows_head(&hash))).await?;
    let new_life = match judge(vault.life(), &head, is_known) {
        Verdict::Known => return Ok(true),
        Verdict::Retire => {
            with_vault(vault, |vault| vault.retire()).await?;
            return Err(RoundError::Why("a newer life of this cell runs elsewhere".into()));
        }
        Verdict::Merge => false,
        Verdict::MergeInNewLife => true,
    };
    let names: Vec<ChunkName> = head.segments.iter().map(|(name, _)| *name).collect();
    let pulled = pull(vault, link, names, Own::No, &sync.permits.pulling).await;
    moved.pulled_chunks += pulled.got.len() as u64;
    moved.pulled_bytes += pulled.bytes;
    if !pulled.missing.is_empty() {
        if let Some(why) = pulled.error {
            return Err(RoundError::Why(format!("a catalog of this cell's could not be fetched: {why}")));
        }
        // Others keep the same parts.
        if !sync.fetch(pulled.missing).await.missing.is_empty() {
            log::warn!(
                "{} has lost a part of a catalog of life {} of this cell: what it alone knew does not come back from there",
                sync.name_of(&link.peer),
                head.life
            );
            if new_life && is_again {
                with_vault(vault, move |vault| publish::begin_life(vault, &head)).await?;
                sync.poke_others(&link.peer);
            }
            return Ok(false);
        }
    }
    log::warn!("taking in a catalog of life {} that another machine or an older life wrote", head.life);
    with_vault(vault, move |vault| {
        publish::merge_head(vault, &hash, &head, |name| local(vault, name), new_life)
    })
    .await?;
    if let Err(why) = sync.end_broken_sharing().await {
        log::warn!("what was taken back elsewhere is not yet taken back here: {why}");
    }
    sync.poke_others(&link.peer);
    Ok(true)
}

/// A chunk from the local store, or an error that it is not here.
pub(super) fn local(vault: &Vault, name: &ChunkName) -> Result<Vec<u8>, VaultError> {
    vault
        .local_chunk(name)?
        .ok_or_else(|| VaultError::Refused(format!("segment {} is not here", name.short())))
}

// ---- What the peer holds ----

fn inventory_key(peer: &CellId) -> String {
    format!("inventory:{peer}")
}

/// Epoch and sequence up to which a peer's inventory is known. It stands in placement.db, beside the copies it speaks of.
fn learned(t: &Tables<'_>, peer: &CellId) -> Result<(u64, u64), DbError> {
    let bytes = t.meta(&inventory_key(peer))?.unwrap_or_default();
    let number =
        |at: usize| bytes.get(at..at + 8).map(|b| u64::from_le_bytes(b.try_into().expect("8 bytes")));
    Ok((number(0).unwrap_or(0), number(8).unwrap_or(0)))
}

fn set_learned(t: &Tables<'_>, peer: &CellId, epoch: u64, seq: u64) -> Result<(), DbError> {
    t.set_meta(&inventory_key(peer), &[epoch.to_le_bytes(), seq.to_le_bytes()].concat())
}

async fn take_inventory(sync: &Rc<Sync>, link: &Link, theirs: &Hello) -> Result<(), RoundError> {
    let (vault, peer, cell) = (&sync.vault, link.peer, link.cell);
    let (epoch, mut since) = with_vault(vault, move |vault| vault.db.read(|t| learned(t, &peer))).await?;
    // Numbers only grow: a peer that is behind what it told before has an old copy of its database.
    let mut is_whole = epoch != theirs.epoch || since > theirs.holdings_seq;
    if is_whole || (since >= theirs.holdings_seq && digest::is_due(vault, peer).await?) {
        match digest::compare(sync, link).await? {
            digest::Compared::Same { epoch, seq } => {
                with_vault(vault, move |vault| {
                    vault.db.change_durably(|t| set_learned(t, &peer, epoch, seq))
                })
                .await?;
                return Ok(());
            }
            digest::Compared::TooMany => is_whole = true,
            digest::Compared::Unsure => {}
        }
    }
    if !is_whole && since >= theirs.holdings_seq {
        return Ok(());
    }
    if is_whole {
        since = 0;
    }
    let mut stated = Arc::new(std::sync::Mutex::new(Marks::default()));
    let takes_unknown = with_vault(vault, |vault| vault.db.read(|t| t.is_any_list_absent())).await?;
    for _ in 0..INVENTORY_PAGES {
        let limit = INVENTORY_ENTRIES_MAX as u32;
        let request = Request::Inventory { epoch: theirs.epoch, since, limit };
        let Reply::Inventory { epoch, entries, more } = link.ask(&request).await? else {
            return Err(AskError::OutOfTurn.into());
        };
        let in_order = entries.iter().try_fold(since, |last, e| (e.seq > last).then_some(e.seq));
        let (Some(last), true) = (in_order, epoch == theirs.epoch) else {
            return Err(RoundError::Why("its inventory is out of order".into()));
        };
        let is_end = !more || entries.is_empty();
        // Numbers beyond the last entry are of segments, which are not listed.
        let last = if is_end { last.max(theirs.holdings_seq) } else { last };
        let marks = Arc::clone(&stated);
        with_vault(vault, move |vault| {
            let mut marks = crate::vault::lock(&marks);
            vault.db.change(|t| -> Result<(), DbError> {
                for entry in &entries {
                    let id = match t.chunk(&entry.name)? {
                        Some(row) => row.id,
                        // Part of a large file whose list is not back yet.
                        None if takes_unknown && entry.is_held => {
                            t.know_chunk(&entry.name, entry.len, Own::No)?
                        }
                        None => continue,
                    };
                    if entry.is_held {
                        marks.set(id);
                        // One that waits for its release stays so.
                        if t.copy(id, cell)?.is_none() {
                            t.put_copy(id, cell)?;
                        }
                    } else {
                        t.drop_copy(id, cell)?;
                    }
                }
                if is_whole { Ok(()) } else { set_learned(t, &peer, epoch, last) }
            })
        })
        .await?;
        since = last;
        if is_end {
            if is_whole {
                let marks = std::mem::take(&mut stated);
                let epoch = theirs.epoch;
                with_vault(vault, move |vault| drop_unstated(vault, cell, &peer, &marks, epoch, last))
                    .await?;
            }
            return Ok(());
        }
    }
    Ok(())
}

/// Copies that a whole inventory did not state are no more.
fn drop_unstated(
    vault: &Vault,
    cell: CellNumber,
    peer: &CellId,
    stated: &std::sync::Mutex<Marks>,
    epoch: u64,
    seq: u64,
) -> Result<(), DbError> {
    let stated = crate::vault::lock(stated);
    let mut after = ChunkId(0);
    loop {
        let page = vault.db.read(|t| t.copies_page(cell, after, RECORDS_PER_CHANGE))?;
        let Some(last) = page.last() else { break };
        after = last.chunk;
        vault.db.change(|t| {
            let lost = page.iter().filter(|copy| !stated.has(copy.chunk));
            lost.copied().try_for_each(|copy| t.drop_copy(copy.chunk, cell))
        })?;
    }
    vault.db.change_durably(|t| set_learned(t, peer, epoch, seq))
}

/// All copies with a peer are no more, a slice at a time.
pub(super) fn drop_copies(vault: &Vault, cell: CellNumber) -> Result<(), DbError> {
    loop {
        let page = vault.db.read(|t| t.copies_page(cell, ChunkId(0), RECORDS_PER_CHANGE))?;
        if page.is_empty() {
            return Ok(());
        }
        vault.db.change(|t| page.iter().try_for_each(|copy| t.drop_copy(copy.chunk, cell)))?;
    }
}

// ---- What the peer should hold ----

/// One look for chunks that lack copies, of those that want `want`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Step {
    want: Want,
    /// Copies in all that this is.
    wanted: u64,
    what: Lack,
}

/// Which of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lack {
    /// Those with so many copies on peers, which is too few.
    Have(u64),
    /// Those that are freed here, or to be, and lack the copies that they want for that.
    Extra,
}

impl Step {
    /// Copies on peers that are wanted.
    fn on_peers(&self) -> u64 {
        let extra = if self.what == Lack::Extra { Extra::Wanted } else { Extra::No };
        planner::on_peers(self.wanted, extra, true)
    }
}

/// First those that have the fewest copies, whatever they want, and at the end what is freed here and wants more.
fn steps_of(wants: &[Want], usual: u64) -> VecDeque<Step> {
    let most = wants.iter().map(|want| copies::on_peers(*want, usual)).max().unwrap_or(0);
    let step = |want: &Want, what| Step { want: *want, wanted: copies::in_all(*want, usual), what };
    let lacking = (0..most).flat_map(|have| {
        let steps = wants.iter().map(move |want| step(want, Lack::Have(have)));
        steps.filter(move |step| have < step.on_peers())
    });
    lacking.chain(wants.iter().map(|want| step(want, Lack::Extra))).collect()
}

async fn push_chunks(
    sync: &Rc<Sync>,
    link: &Rc<Link>,
    moved: &mut Moved,
    head: &mut Option<BodyHash>,
    was_full: bool,
) -> Result<(), RoundError> {
    let (vault, cell) = (&sync.vault, link.cell);
    let mut after = ChunkId(0);
    let mut for_others: BTreeSet<CellNumber> = BTreeSet::new();
    // What is on its way to somebody may not arrive, and then is to be planned again.
    let mut is_final = true;
    let mut lacks_room = false;
    let state = state_of_things(sync);
    let mut steps = VecDeque::new();
    if link.planned_for.get() == Some(state) {
        lacks_room = link.lacks_room.get();
    } else {
        // What chunks want decides how they are planned: let it be what their files do.
        let find = |vault: &Vault| -> Result<_, VaultError> {
            copies::settle(vault)?;
            Ok(steps_of(&vault.db.read(|t| t.wants())?, vault.config.copies))
        };
        steps = with_vault(vault, find).await?;
    }
    while let (Some(step), false) = (steps.front().copied(), link.is_full.get()) {
        let Step { want, wanted, what } = step;
        let copies = step.on_peers();
        let planning = sync.planning.lock().await;
        let page = with_vault(vault, move |vault| {
            vault.db.read(|t| -> Result<_, DbError> {
                let rows = match what {
                    Lack::Have(have) => t.chunks_short(cell, want, have, after, PAGE_CHUNKS)?,
                    Lack::Extra => t.extra_short(cell, want, wanted, after, PAGE_CHUNKS)?,
                };
                rows.into_iter()
                    .map(|row| Ok((t.copies_of(row.id)?, row)))
                    .collect::<Result<Vec<_>, DbError>>()
            })
        })
        .await?;
        let Some((_, last)) = page.last() else {
            steps.pop_front();
            after = ChunkId(0);
            continue;
        };
        after = last.id;
        let deficits: Vec<Deficit> = page
            .iter()
            .map(|(known, row)| {
                let mut holders = known.clone();
                holders.extend(sync.in_flight.borrow().get(&row.id).into_iter().flatten());
                is_final &= holders.len() == known.len();
                Deficit { chunk: row.id, len: row.len, holders }
            })
            .collect();
        let targets = plan(&deficits, &mut sync.candidates(), &sync.sites(), copies);
        let mut rows = Vec::new();
        for (((_, row), targets), deficit) in page.into_iter().zip(targets).zip(&deficits) {
            if targets.contains(&cell) {
                sync.in_flight.borrow_mut().entry(row.id).or_default().push(cell);
                rows.push(row);
            }
            let is_lacking = (deficit.holders.len() as u64) < copies;
            lacks_room |= targets.is_empty() && what != Lack::Extra && is_lacking;
            for_others.extend(targets.iter().filter(|target| **target != cell));
        }
        drop(planning);
        let ids: Vec<ChunkId> = rows.iter().map(|row| row.id).collect();
        let pushed = push_rows(sync, link, rows, Class::Chunk, moved).await;
        let planning = sync.planning.lock().await;
        for id in ids {
            let mut in_flight = sync.in_flight.borrow_mut();
            if let Some(cells) = in_flight.get_mut(&id) {
                cells.retain(|other| *other != cell);
                if cells.is_empty() {
                    in_flight.remove(&id);
                }
            }
        }
        drop(planning);
        pushed?;
        push_head(sync, link, moved, head).await?;
    }
    if moved.pushed_chunks == 0 && !link.is_full.get() && for_others.is_empty() && is_final {
        link.planned_for.set(Some(state));
    }
    // The others are told once that this one is full: two full ones would wake each other for ever.
    if link.is_full.get() && !was_full {
        sync.poke_others(&link.peer);
    }
    // Those for whom something was left, and nobody else: while one of them does not answer, the others would wake each
    // other for ever.
    for other in sync.links().iter().filter(|other| for_others.contains(&other.cell)) {
        other.nudge();
    }
    link.lacks_room.set(lacks_room);
    if link.has_no_room() {
        let name = sync.name_of(&link.peer);
        vault.raise(
            "peer-full",
            Alert {
                text: format!("{name} takes no more chunks: its disk, or this cell's quota there, is full"),
                remedy: "ask for a larger quota, free space there, or invite another peer".into(),
            },
        );
    } else if !sync.links().iter().any(|other| other.has_no_room()) {
        vault.clear("peer-full");
    }
    Ok(())
}

/// A number for all that a plan depends on: while it is the same, a plan that found nothing for a peer finds nothing.
pub(super) fn state_of_things(sync: &Sync) -> u64 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    sync.vault.db.generation().hash(&mut hasher);
    let sites = sync.sites();
    for c in sync.candidates() {
        (c.cell, c.is_favorite, c.has_credit, c.pace, coarse(c.free), sites.of(c.cell)).hash(&mut hasher);
    }
    hasher.finish()
}

/// Sends chunks in batches, two at once.
async fn push_rows(
    sync: &Rc<Sync>,
    link: &Rc<Link>,
    rows: Vec<ChunkRow>,
    class: Class,
    moved: &mut Moved,
) -> Result<(), RoundError> {
    let mut batches: VecDeque<Vec<ChunkRow>> = VecDeque::new();
    let mut bytes = u64::MAX;
    for row in rows {
        let is_over = bytes.saturating_add(row.len.into()) > PUT_BYTES_MAX;
        if is_over || batches.back().is_some_and(|batch| batch.len() >= NAMES_MAX) {
            batches.push_back(Vec::new());
            bytes = 0;
        }
        bytes += u64::from(row.len);
        batches.back_mut().expect("pushed above").push(row);
    }
    let mut running = FuturesUnordered::new();
    let mut outcome = Ok(());
    loop {
        while running.len() < BATCHES && outcome.is_ok() && !link.is_full.get() {
            let Some(batch) = batches.pop_front() else { break };
            running.push(push_batch(sync, link, batch, class));
        }
        match running.next().await {
            None => return outcome,
            Some(Ok((chunks, bytes))) => {
                moved.pushed_chunks += chunks;
                moved.pushed_bytes += bytes;
            }
            Some(Err(why)) => outcome = Err(why),
        }
    }
}

type Read = Result<Vec<Vec<u8>>, (ChunkName, StoreError)>;

fn read_group(vault: &Arc<Vault>, rows: &Arc<Vec<ChunkRow>>, from: usize) -> Job<Read> {
    let (vault, rows) = (Arc::clone(vault), Arc::clone(rows));
    unblock(move || {
        let mut group = Vec::new();
        let mut total = 0;
        for row in rows[from..].iter().take(GROUP_CHUNKS) {
            if total > 0 && total + row.len as usize > GROUP_BYTES {
                break;
            }
            total += row.len as usize;
            let place = row.place.expect("only chunks that lie here are pushed");
            // It may have moved since, into a pack or out of one.
            let bytes = vault.store.read(row.name, place, row.len).or_else(|why| {
                let now = vault.db.read(|t| t.chunk(&row.name)).ok().flatten().and_then(|now| now.place);
                match now.filter(|now| *now != place) {
                    Some(now) => vault.store.read(row.name, now, row.len),
                    None => Err(why),
                }
            });
            group.push(bytes.map_err(|why| (row.name, why))?);
        }
        Ok(group)
    })
}

/// What the peer still has, in its trash or because a reply was lost, need not be sent: gives the others.
async fn take_back(sync: &Sync, link: &Link, rows: Vec<ChunkRow>) -> Result<Vec<ChunkRow>, RoundError> {
    let request = Request::Restore { names: rows.iter().map(|row| row.name).collect() };
    let held = match link.ask(&request).await {
        Ok(Reply::Restore { held }) => held,
        Err(AskError::Refused(_)) => return Ok(rows),
        Ok(_) => return Err(AskError::OutOfTurn.into()),
        Err(why) => return Err(why.into()),
    };
    let (had, rest): (Vec<_>, Vec<_>) = rows.into_iter().zip(held).partition(|(_, is_held)| *is_held);
    let cell = link.cell;
    if !had.is_empty() {
        with_vault(&sync.vault, move |vault| {
            vault.db.change(|t| had.iter().try_for_each(|(row, _)| t.put_copy(row.id, cell)))
        })
        .await?;
    }
    Ok(rest.into_iter().map(|(row, _)| row).collect())
}

async fn push_batch(
    sync: &Rc<Sync>,
    link: &Rc<Link>,
    rows: Vec<ChunkRow>,
    class: Class,
) -> Result<(u64, u64), RoundError> {
    sync.make_way().await;
    let rows = if class == Class::Chunk { take_back(sync, link, rows).await? } else { rows };
    if rows.is_empty() {
        return Ok((0, 0));
    }
    let _permit = sync.permits.pushing.acquire().await;
    let vault = &sync.vault;
    let entries = rows.iter().map(|row| (row.name, row.len)).collect();
    let rows = Arc::new(rows);
    let mut next = Some(read_group(vault, &rows, 0));
    let line = link.line(For::Chunks).await?;
    let mut putting = message::put(&line.session, class, entries).await?;
    let mut at = 0;
    'sending: while let Some(task) = next.take() {
        let group = match task.await {
            Ok(group) => group,
            Err((name, why)) => {
                // The stream breaks off here; what went before is kept there, and known after the next inventory.
                log::warn!("{why}");
                with_vault(vault, move |vault| vault.local_chunk(&name).map(drop)).await?;
                return Err(RoundError::Why(format!("a chunk could not be read: {why}")));
            }
        };
        at += group.len();
        next = (at < rows.len()).then(|| read_group(vault, &rows, at));
        for bytes in group {
            let is_wanted = putting.send(&bytes).await?;
            buffers::give(bytes);
            if !is_wanted {
                break 'sending;
            }
        }
    }
    let (statuses, usage) = putting.finish().await?;
    link.usage.set(Some(usage));
    let is_full = statuses.iter().any(|s| matches!(s, PutStatus::OverQuota | PutStatus::DiskFull));
    if is_full {
        link.is_full.set(true);
    }
    let is_refused = statuses.contains(&PutStatus::Refused);
    let (cell, is_chunk) = (link.cell, class == Class::Chunk);
    let stored: Vec<ChunkName> = rows
        .iter()
        .zip(&statuses)
        .filter(|(_, status)| matches!(status, PutStatus::Stored | PutStatus::Already))
        .map(|(row, _)| row.name)
        .collect();
    if !is_chunk {
        link.segments.borrow_mut().extend(stored);
    }
    let moved = with_vault(vault, move |vault| -> Result<(u64, u64), VaultError> {
        let mut moved = (0, 0);
        let mut wrong = Vec::new();
        vault.db.change(|t| -> Result<(), DbError> {
            for (row, status) in rows.iter().zip(&statuses) {
                match status {
                    PutStatus::Stored | PutStatus::Already => {
                        if is_chunk {
                            t.put_copy(row.id, cell)?;
                        }
                        if *status == PutStatus::Stored {
                            moved = (moved.0 + 1, moved.1 + u64::from(row.len));
                        }
                    }
                    PutStatus::WrongBytes => wrong.push(row.name),
                    _ => {}
                }
            }
            Ok(())
        })?;
        // Either this disk or the way there damaged it: the disk can be asked.
        wrong.iter().try_for_each(|name| vault.local_chunk(name).map(drop))?;
        Ok(moved)
    })
    .await?;
    if is_refused && !is_full {
        return Err(RoundError::Why("it refuses chunks; look at its log".into()));
    }
    Ok(moved)
}

// ---- The head of the catalog ----

async fn push_head(
    sync: &Rc<Sync>,
    link: &Rc<Link>,
    moved: &mut Moved,
    there: &mut Option<BodyHash>,
) -> Result<(), RoundError> {
    let vault = &sync.vault;
    let Some((hash, _, bytes)) = with_vault(vault, |vault| vault.db.read(publish::current_head)).await?
    else {
        return Ok(());
    };
    if *there == Some(hash) && link.lost_segments.borrow().is_empty() {
        return Ok(());
    }
    let (_, head) = Head::open(&bytes).map_err(VaultError::from)?;
    // What is no longer named need not be remembered.
    let named: HashSet<ChunkName> = head.segments.iter().map(|(name, _)| *name).collect();
    link.segments.borrow_mut().retain(|name| named.contains(name));
    link.lost_segments.borrow_mut().retain(|name| named.contains(name));
    let mut unsure: Vec<ChunkName> = {
        let (known, lost) = (link.segments.borrow(), link.lost_segments.borrow());
        let names = head.segments.iter().map(|(name, _)| *name);
        names.filter(|name| !known.contains(name) && !lost.contains(name)).collect()
    };
    for _ in 0..4 {
        // Of these it need not be asked whether it has them.
        let mut missing: Vec<ChunkName> = link.lost_segments.borrow().iter().copied().collect();
        for names in unsure.chunks(NAMES_MAX) {
            let request = Request::Have { names: names.to_vec() };
            let Reply::Have { held } = link.ask(&request).await? else {
                return Err(AskError::OutOfTurn.into());
            };
            let mut known = link.segments.borrow_mut();
            for (name, held) in names.iter().zip(held) {
                if held {
                    known.insert(*name);
                } else {
                    missing.push(*name);
                }
            }
        }
        if !missing.is_empty() {
            let wanted = missing.len();
            let rows = with_vault(vault, move |vault| {
                vault.db.read(|t| -> Result<Vec<ChunkRow>, VaultError> {
                    let rows = missing.iter().map(|name| t.chunk(name)).collect::<Result<Vec<_>, _>>()?;
                    Ok(rows.into_iter().flatten().filter(|row| row.place.is_some()).collect())
                })
            })
            .await?;
            if rows.len() < wanted {
                // It went bad on this disk. The records are here, and are written anew.
                with_vault(vault, publish::publish).await?;
                return Err(RoundError::Why(
                    "a segment of the catalog was damaged here; it is made anew".into(),
                ));
            }
            push_rows(sync, link, rows, Class::Segment, moved).await?;
            if !link.is_full.get() {
                link.lost_segments.borrow_mut().clear();
            }
        }
        match message::put_head(&link.line(For::Small).await?.session, &bytes).await? {
            HeadOutcome::Stored => {
                *there = Some(hash);
                return Ok(());
            }
            HeadOutcome::Missing(names) => {
                let mut known = link.segments.borrow_mut();
                names.iter().for_each(|name| {
                    known.remove(name);
                });
                unsure = names;
            }
            HeadOutcome::Refused(why) => {
                return Err(RoundError::Why(format!("it refuses the catalog: {why}")));
            }
        }
        if link.is_full.get() {
            return Err(RoundError::Why("it has no room for the catalog".into()));
        }
    }
    Err(RoundError::Why("it does not keep segments of the catalog".into()))
}

// ---- What the peer may let go ----

async fn release(sync: &Rc<Sync>, link: &Link) -> Result<(), RoundError> {
    let (vault, cell) = (&sync.vault, link.cell);
    if !may_release(sync).await? {
        return Ok(());
    }
    loop {
        let rows =
            with_vault(vault, move |vault| vault.db.read(|t| t.copies_to_release(cell, NAMES_MAX))).await?;
        if rows.is_empty() {
            return Ok(());
        }
        let request = Request::Release { names: rows.iter().map(|row| row.name).collect() };
        link.ask(&request).await?;
        with_vault(vault, move |vault| {
            vault.db.change(|t| {
                rows.iter().try_for_each(|row| -> Result<(), DbError> {
                    // Wanted again since it was asked: then it is sent again, or restored there by the next `Put`.
                    t.drop_copy(row.id, cell)
                })
            })
        })
        .await?;
    }
}

/// Whether copies may be given up at all: not while the brake is on, nor after a recovery before all peers were heard.
pub(super) async fn may_release(sync: &Sync) -> Result<bool, VaultError> {
    let vault = &sync.vault;
    let peers: Vec<CellId> = sync.gate.peers().iter().map(|peer| peer.id).collect();
    with_vault(vault, move |vault| {
        let now = vault.expiry_now();
        vault.db.read(|t| -> Result<bool, VaultError> {
            if crate::files::brake::load(t)?.is_on() {
                return Ok(false);
            }
            let Some(recovered) = t.meta_u64("recovered_at")? else { return Ok(true) };
            Ok(all_heard(t, &peers, recovered, now)?)
        })
    })
    .await
}

// ---- Fetching ----

/// What a pull brought.
#[derive(Debug, Default)]
pub(super) struct Pulled {
    pub(super) got: Vec<ChunkName>,
    pub(super) missing: Vec<ChunkName>,
    pub(super) bytes: u64,
    pub(super) error: Option<RoundError>,
}

/// Where chunks come from: one session, or a peer by whichever connection is best.
pub(super) trait Source {
    /// The session to ask now.
    async fn session(&self) -> Result<Session, AskError>;
}

impl Source for Session {
    async fn session(&self) -> Result<Session, AskError> {
        Ok(self.clone())
    }
}

impl Source for Link {
    async fn session(&self) -> Result<Session, AskError> {
        Ok(self.line(For::Chunks).await?.session.clone())
    }
}

/// Brings chunks into the local store, verified, over two streams; what is here already counts as got. What a connection
/// took along when it broke is asked for again over another one.
pub(super) async fn pull(
    vault: &Arc<Vault>,
    source: &impl Source,
    names: Vec<ChunkName>,
    own: Own,
    permits: &Semaphore,
) -> Pulled {
    let asked = names.clone();
    let here = with_vault(vault, move |vault| {
        vault.db.read(|t| -> Result<HashSet<ChunkName>, VaultError> {
            let mut here = HashSet::new();
            for name in &asked {
                if let Some(row) = t.chunk(name)? {
                    if row.place.is_some_and(|place| vault.store.contains(*name, place, row.len)) {
                        here.insert(*name);
                    }
                }
            }
            Ok(here)
        })
    })
    .await
    .unwrap_or_default();
    let wanted: Vec<ChunkName> = names.iter().filter(|name| !here.contains(name)).copied().collect();
    let queue: RefCell<VecDeque<Vec<ChunkName>>> =
        RefCell::new(wanted.chunks(GET_NAMES).map(<[ChunkName]>::to_vec).collect());
    let (got, error, bytes) = (RefCell::new(here), RefCell::new(None), Cell::new(0));
    let mut workers = FuturesUnordered::new();
    for _ in 0..GET_STREAMS.min(queue.borrow().len()) {
        workers.push(async {
            let mut puller = Puller::new(vault, own);
            let outcome = puller.run(source, &queue, permits).await;
            bytes.set(bytes.get() + puller.done.iter().map(|(_, len)| u64::from(*len)).sum::<u64>());
            got.borrow_mut().extend(puller.done.iter().map(|(name, _)| *name));
            if let Err(why) = outcome {
                *error.borrow_mut() = Some(why);
                queue.borrow_mut().clear();
            }
        });
    }
    while workers.next().await.is_some() {}
    drop(workers);
    let got = got.into_inner();
    let (got, missing) = names.into_iter().partition(|name| got.contains(name));
    Pulled { got, missing, bytes: bytes.get(), error: error.into_inner() }
}

type Group = Vec<(ChunkName, Vec<u8>)>;

struct Puller<'a> {
    vault: &'a Arc<Vault>,
    own: Own,
    staged: Vec<Staged>,
    /// Of `staged`, in memory and in all.
    small_bytes: usize,
    staged_bytes: usize,
    taking: Option<Job<Result<Vec<Staged>, StoreError>>>,
    done: Vec<(ChunkName, u32)>,
}

impl<'a> Puller<'a> {
    fn new(vault: &'a Arc<Vault>, own: Own) -> Self {
        let (staged, done) = (Vec::new(), Vec::new());
        Self { vault, own, staged, small_bytes: 0, staged_bytes: 0, taking: None, done }
    }

    async fn run(
        &mut self,
        source: &impl Source,
        queue: &RefCell<VecDeque<Vec<ChunkName>>>,
        permits: &Semaphore,
    ) -> Result<(), RoundError> {
        let read = self.read_all(source, queue, permits).await;
        // What has come is kept, however it ended.
        let settled = self.settle().await;
        let committed = self.commit().await;
        read.and(settled).and(committed)
    }

    async fn read_all(
        &mut self,
        source: &impl Source,
        queue: &RefCell<VecDeque<Vec<ChunkName>>>,
        permits: &Semaphore,
    ) -> Result<(), RoundError> {
        let mut breaks = 0;
        loop {
            // Given away after each batch: whoever else pulls has his turn. Who waits for it holds nothing in memory.
            let _permit = match permits.try_acquire() {
                Some(permit) => permit,
                None => {
                    self.settle().await?;
                    self.commit().await?;
                    permits.acquire().await
                }
            };
            let Some(batch) = queue.borrow_mut().pop_front() else { return Ok(()) };
            let session = source.session().await?;
            let Err(why) = self.read(&session, batch.clone()).await else { continue };
            breaks += 1;
            if session.is_alive() || breaks > BREAKS_MAX {
                return Err(why);
            }
            // The connection broke: what it had brought is kept, and the rest is asked for again.
            self.settle().await?;
            self.commit().await?;
            let here: HashSet<ChunkName> = self.done.iter().map(|(name, _)| *name).collect();
            let rest: Vec<ChunkName> = batch.into_iter().filter(|name| !here.contains(name)).collect();
            queue.borrow_mut().push_front(rest);
        }
    }

    async fn read(&mut self, session: &Session, batch: Vec<ChunkName>) -> Result<(), RoundError> {
        let mut getting = message::get(session, batch).await?;
        let mut group = Group::new();
        let mut group_bytes = 0;
        loop {
            let mut buf = Vec::new();
            let Some((name, status)) = getting.next(&mut buf).await? else { break };
            if status == GetStatus::Found {
                group_bytes += buf.len();
                group.push((name, buf));
            }
            if group_bytes >= GROUP_BYTES && group.len() % 2 == 1 {
                // One waits for its partner, and no third is read before the two at work are done.
                self.settle().await?;
            } else if group_bytes >= GROUP_BYTES {
                self.turn(std::mem::take(&mut group)).await?;
                group_bytes = 0;
            }
        }
        self.turn(group).await
    }

    async fn turn(&mut self, group: Group) -> Result<(), RoundError> {
        self.settle().await?;
        let is_much = self.small_bytes >= PULL_MEMORY_BYTES || self.staged_bytes >= PULL_COMMIT_BYTES;
        if is_much || self.staged.len() >= PULL_COMMIT_CHUNKS {
            self.commit().await?;
        }
        let (vault, own) = (Arc::clone(self.vault), self.own);
        self.taking = Some(unblock(move || {
            let mut staged = Vec::with_capacity(group.len());
            let hashes = sha256::each(&group.iter().map(|(_, bytes)| bytes.as_slice()).collect::<Vec<_>>());
            for ((name, bytes), hash) in group.into_iter().zip(hashes) {
                if hash != name.0 {
                    log::warn!("a peer sent wrong bytes for chunk {}", name.short());
                    continue;
                }
                staged.push(match own {
                    Own::Segment => vault.store.stage_urgent(name, &bytes)?,
                    _ => vault.store.stage(name, &bytes)?,
                });
                buffers::give(bytes);
            }
            Ok(staged)
        }));
        Ok(())
    }

    async fn settle(&mut self) -> Result<(), RoundError> {
        if let Some(task) = self.taking.take() {
            let staged = task.await.map_err(VaultError::from)?;
            for len in staged.iter().map(|staged| staged.sealed_len() as usize) {
                self.small_bytes += if len < crate::store::SMALL_BYTES { len } else { 0 };
                self.staged_bytes += len;
            }
            self.staged.extend(staged);
        }
        Ok(())
    }

    async fn commit(&mut self) -> Result<(), RoundError> {
        (self.small_bytes, self.staged_bytes) = (0, 0);
        let staged = std::mem::take(&mut self.staged);
        if staged.is_empty() {
            return Ok(());
        }
        let own = self.own;
        let done = with_vault(self.vault, move |vault| -> Result<Vec<(ChunkName, u32)>, VaultError> {
            let names: Vec<(ChunkName, u32)> = staged.iter().map(|s| (s.name(), s.sealed_len())).collect();
            let _placing = vault.placing();
            let places = vault.store.commit(staged)?;
            vault.db.change(|t| -> Result<(), DbError> {
                for ((name, len), place) in names.iter().zip(&places) {
                    let id = t.put_chunk(name, *len, place, own)?;
                    vault.mark(&[id]);
                }
                Ok(())
            })?;
            Ok(names)
        })
        .await?;
        self.done.extend(done);
        Ok(())
    }
}

/// Peers that can be sent chunks now, as the planner sees them.
pub(super) fn candidate(link: &Link, is_favorite: bool, has_credit: bool) -> Option<Candidate> {
    let usage = link.usage.get()?;
    let free = if link.is_full.get() { 0 } else { room(&usage) };
    Some(Candidate { cell: link.cell, is_favorite, has_credit, pace: link.pace(), free })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::placement::Db;

    #[test]
    fn all_are_heard_who_told_since_then_or_are_waited_for_no_longer() {
        let db = Db::in_memory().unwrap();
        let peers = [CellId([1; 32]), CellId([2; 32])];
        db.change(|t| -> Result<(), DbError> {
            let heard = |since, now| all_heard(t, &peers, since, now);
            assert!(!heard(100, 200)?, "nobody ever told");
            t.set_meta_u64(&seen_key(&peers[0]), 150)?;
            assert!(!heard(100, 200)?);
            t.set_meta_u64(&seen_key(&peers[1]), 99)?;
            assert!(!heard(100, 200)?, "one told before that only");
            t.set_meta_u64(&seen_key(&peers[1]), 100)?;
            assert!(heard(100, 200)?);
            assert!(!heard(151, 200)? && heard(151, 151 + RELEASE_WAIT_S)?);
            assert!(all_heard(t, &[], 100, 200)?);
            Ok(())
        })
        .unwrap();
    }
}

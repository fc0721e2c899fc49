//! Asking peers to prove that they hold what they should: what is due, what an answer means, and what follows.
//!
//! A copy is *stored* until a proof is asked for in vain three times; then it is *suspect*, still counts, and is asked about
//! again and again. *Lost*, its row is dropped and the chunk is copied anew: at once when the peer itself says that it has it
//! no more or gives a false proof, after eight vain tries over a day while it proves other chunks, and in any case after 20
//! days of silence over it. It has *returned* when the peer's inventory states it, or takes it again.
//!
//! Promise: a correct peer that is slow or busy is never called a liar, and one that has dropped a chunk does not keep it
//! quiet for 30 days.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use crate::order;
use crate::world::Timer;

use super::driver::Sync;
use super::link::{For, Link};
use super::prove::PROVED_BYTES_MAX;
use super::round::{RoundError, with_vault};
use crate::buffers;
use crate::codec::{BadBytes, Reader, Writer};
use crate::cycle::Cycle;
use crate::id::{CellId, ChunkName};
use crate::keys::{random, sha256};
use crate::placement::{CellNumber, ChunkId, Copy, CopyState, DbError, Tables, Unanswered};
use crate::proof::{self, Challenge, Nonce, Parties, Root};
use crate::publish;
use crate::vault::{Alert, Vault, VaultError};
use crate::wire::message::{self, AUDIT_NAMES_MAX, AuditStatus, GetStatus};

const DAY_S: u64 = 86_400;
/// All copies with a peer are gone through in this time: 10 days sooner than promised.
const CYCLE_S: u64 = 20 * DAY_S;
/// What was proven within so many days is passed over.
const FRESH_DAYS: u64 = 7;
/// Proofs are asked for this often, so that most rounds stay quiet. s.
const EVERY_S: u64 = 3600;
/// And this often while some are overdue, or copies were never proven. s.
const HURRIED_S: u64 = 240;
/// Bytes that peers are made to read at once: by the time since the last time, within these bounds.
const BYTES_PER_S: u64 = 4 << 20;
const BYTES_MIN: u64 = 64 << 20;
const BYTES_MAX: u64 = 512 << 20;
/// Copies at once.
const COPIES_MAX: usize = 4096;
/// Rows looked at in one step.
const PAGE: usize = 1024;
/// What a copy counts at least. Bytes.
const NAME_COST: u64 = 16 << 10;
/// A chunk that has to be fetched to be proven counts so many times.
const FETCH_COST: u64 = 4;

/// After so many vain tries a copy is suspect.
const SUSPECT_TRIES: u64 = 3;
/// After so many, over so long, it is lost if the peer has proven others meanwhile.
const LOST_TRIES: u64 = 8;
const LOST_S: u64 = DAY_S;
/// After so many, over so long, it is lost in any case.
const SILENT_TRIES: u64 = 24;
const SILENT_S: u64 = 20 * DAY_S;
/// First and longest wait before the next try. s.
const TRY_S_MIN: u64 = 600;
const TRY_S_MAX: u64 = 6 * 3600;

/// A peer that gave a false proof, or has lost much, is given nothing new for so long.
const SUSPENDED_S: u64 = DAY_S;
/// So many losses within a day, and over a quarter of the proofs, are much.
const MANY_LOSSES: u64 = 64;
/// Every copy is proven within this time, so no more of a lost one is taken back. s.
const FORFEITED_S_MAX: u64 = 31 * DAY_S;
/// What was lost is told this long.
const TOLD_S: u64 = 3 * DAY_S;

/// Segments of the catalog of which proof is asked in one turn, besides the copies.
const SEGMENTS_A_TURN: usize = 2;

/// While somebody waits: the pause after a peer that can prove no more for now, and how often it may be fruitless.
const BUSY_PAUSE: Duration = Duration::from_secs(3);
const FRUITLESS_MAX: u32 = 20;

/// How a peer has proved so far. `audit:` and the peer's id in placement.db.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Record {
    cycle: Cycle,
    /// Observed seconds: when proofs were asked for last, and are asked for next.
    ran_at: u64,
    next_at: u64,
    /// When it proved something last.
    answered_at: u64,
    proven: u64,
    missing: u64,
    damaged: u64,
    wrong: u64,
    /// Copies that were given up after vain tries.
    silent: u64,
    last_wrong_at: u64,
    last_lost_at: u64,
    suspended_until: u64,
    /// The day of the two next numbers.
    day: u64,
    day_proven: u64,
    day_lost: u64,
}

impl Record {
    const VERSION: u8 = 1;

    fn numbers(&mut self) -> [&mut u64; 14] {
        [
            &mut self.ran_at,
            &mut self.next_at,
            &mut self.answered_at,
            &mut self.proven,
            &mut self.missing,
            &mut self.damaged,
            &mut self.wrong,
            &mut self.silent,
            &mut self.last_wrong_at,
            &mut self.last_lost_at,
            &mut self.suspended_until,
            &mut self.day,
            &mut self.day_proven,
            &mut self.day_lost,
        ]
    }

    fn to_bytes(mut self) -> Vec<u8> {
        let mut to = Writer::new();
        to.u8(Self::VERSION).raw(&self.cycle.to_bytes());
        for number in self.numbers() {
            to.u64(*number);
        }
        to.finish()
    }

    fn from_bytes(bytes: &[u8]) -> Result<Self, BadBytes> {
        let mut from = Reader::new(bytes);
        if from.u8()? != Self::VERSION {
            return Err(BadBytes("version of a record of proofs"));
        }
        let mut record = Self { cycle: Cycle::from_bytes(from.raw(16)?), ..Self::default() };
        for number in record.numbers() {
            *number = from.u64()?;
        }
        from.end()?;
        Ok(record)
    }

    /// It gets no new chunks.
    fn is_suspended(&self, now: u64) -> bool {
        now < self.suspended_until
    }

    /// Bytes that may be asked for at `now`.
    fn allowance(&self, now: u64) -> u64 {
        (now.saturating_sub(self.ran_at)).saturating_mul(BYTES_PER_S).clamp(BYTES_MIN, BYTES_MAX)
    }

    /// Takes in what was found at `now`.
    fn take(&mut self, found: &Proved, now: u64) {
        let day = now / DAY_S + 1;
        if self.day != day {
            (self.day, self.day_proven, self.day_lost) = (day, 0, 0);
        }
        self.proven += found.proven;
        self.missing += found.missing;
        self.damaged += found.damaged;
        self.wrong += found.wrong;
        self.silent += found.silent;
        self.day_proven += found.proven;
        self.day_lost += found.missing + found.damaged;
        if found.proven > 0 {
            self.answered_at = now;
        }
        if found.lost() > 0 {
            self.last_lost_at = now.max(1);
        }
        if found.wrong > 0 {
            self.last_wrong_at = now.max(1);
        }
        let is_much = self.day_lost >= MANY_LOSSES && self.day_lost * 4 > self.day_proven;
        if found.wrong > 0 || (is_much && found.lost() > 0) {
            self.suspended_until = now + SUSPENDED_S;
        }
    }
}

/// What proofs have shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Proved {
    /// Copies that were proven.
    pub proven: u64,
    /// The peer said that it does not have them.
    pub missing: u64,
    /// The peer found them damaged.
    pub damaged: u64,
    /// False proofs.
    pub wrong: u64,
    /// Given up after vain tries.
    pub silent: u64,
    /// No answer yet; they are asked for again.
    pub unanswered: u64,
}

impl Proved {
    /// Copies that do not count any more.
    pub fn lost(&self) -> u64 {
        self.missing + self.damaged + self.wrong + self.silent
    }

    fn add(&mut self, more: &Self) {
        self.proven += more.proven;
        self.missing += more.missing;
        self.damaged += more.damaged;
        self.wrong += more.wrong;
        self.silent += more.silent;
        self.unanswered += more.unanswered;
    }
}

/// A peer's proofs, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProofView {
    /// Its name.
    pub name: String,
    /// Who it is.
    pub id: CellId,
    /// Since the two know each other; or, of `prove_all`, now.
    pub proved: Proved,
    /// It gets no new chunks for now.
    pub is_suspended: bool,
    /// It is connected, or was asked.
    pub is_reached: bool,
}

/// One more vain try of a copy at `now`.
fn in_vain(chunk: ChunkId, before: Option<Unanswered>, now: u64) -> Unanswered {
    // Somebody who cannot wait may ask more often than what counts.
    if let Some(before) = before.filter(|before| now < before.next) {
        return before;
    }
    let (tries, since) = before.map_or((1, now), |before| (before.tries + 1, before.since));
    let wait = TRY_S_MIN.saturating_mul(1 << (tries - 1).min(16)).min(TRY_S_MAX);
    Unanswered { chunk, tries, since, next: now + wait }
}

/// How a copy stands after vain tries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    Stored,
    Suspect,
    Lost,
}

fn standing(tries: &Unanswered, answered_at: u64, now: u64) -> Standing {
    let lasts = now.saturating_sub(tries.since);
    let proves_others = answered_at > tries.since;
    if (tries.tries >= LOST_TRIES && lasts >= LOST_S && proves_others)
        || (tries.tries >= SILENT_TRIES && lasts >= SILENT_S)
    {
        Standing::Lost
    } else if tries.tries >= SUSPECT_TRIES {
        Standing::Suspect
    } else {
        Standing::Stored
    }
}

/// How a copy is to be proven.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    /// We have the chunk.
    Whole,
    /// We have its root.
    Leaf(u32, Root),
    /// We have neither: it is fetched once.
    Fetch,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ask {
    chunk: ChunkId,
    name: ChunkName,
    len: u32,
    how: How,
}

impl Ask {
    fn cost(&self) -> u64 {
        let cost = NAME_COST.max(self.len.into());
        if self.is_fetch() { cost * FETCH_COST } else { cost }
    }

    fn is_fetch(&self) -> bool {
        self.how == How::Fetch
    }

    fn challenge(&self) -> Challenge {
        match self.how {
            How::Leaf(index, _) => Challenge::Leaf(index),
            How::Whole | How::Fetch => Challenge::Whole,
        }
    }
}

/// What came of one ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Proven,
    Missing,
    Damaged,
    Wrong,
    /// Not now, or nothing at all.
    Nothing,
    /// What it is to be compared with could not be read here.
    Untold,
}

impl Outcome {
    fn is_answer(self) -> bool {
        !matches!(self, Self::Nothing | Self::Untold)
    }
}

/// Which names of one request were asked in vain. A peer answers in order, and who has proven enough answers none of the
/// rest: so nothing can be said of those after the first without an answer, unless one that came later was answered.
fn vain(outcomes: &[Outcome]) -> Vec<bool> {
    let last_answer = outcomes.iter().rposition(|outcome| outcome.is_answer());
    let first_silent = last_answer.map_or(0, |at| at + 1);
    let is_vain = |(at, outcome): (usize, &Outcome)| {
        *outcome == Outcome::Nothing
            && (at < first_silent || !outcomes[first_silent..at].contains(&Outcome::Nothing))
    };
    outcomes.iter().enumerate().map(is_vain).collect()
}

/// Splits asks into requests that a peer can answer in one go; what is to be fetched has its own, after the others.
fn requests(mut asks: Vec<Ask>) -> Vec<Vec<Ask>> {
    order::sort_by_key(&mut asks, Ask::is_fetch);
    let mut requests: Vec<Vec<Ask>> = Vec::new();
    let mut cost = u64::MAX;
    for ask in asks {
        let fits = |request: &Vec<Ask>| {
            request.len() < AUDIT_NAMES_MAX && request.iter().all(|other| other.is_fetch() == ask.is_fetch())
        };
        let is_full = !requests.last().is_some_and(fits);
        if is_full || cost.saturating_add(ask.cost()) > PROVED_BYTES_MAX {
            requests.push(Vec::new());
            cost = 0;
        }
        cost += ask.cost();
        requests.last_mut().expect("pushed above").push(ask);
    }
    requests
}

// ---- What is due ----

/// What to ask of a peer now.
#[derive(Debug, Default)]
struct Plan {
    /// Asked in vain before; in requests of their own, so that an answer to them says something.
    again: Vec<Ask>,
    due: Vec<Ask>,
    /// The record when all of it is done; `None`: only `again` was due.
    then: Option<Record>,
}

fn how_to_ask(t: &Tables<'_>, chunk: ChunkId) -> Result<Option<Ask>, DbError> {
    let Some(row) = t.chunk_by_id(chunk)? else { return Ok(None) };
    let how = match (row.place, t.root(chunk)?) {
        (Some(_), _) => How::Whole,
        (None, Some(root)) => {
            let index = u32::from_le_bytes(random()) % proof::leaf_count(row.len);
            How::Leaf(index, root)
        }
        (None, None) => How::Fetch,
    };
    Ok(Some(Ask { chunk, name: row.name, len: row.len, how }))
}

/// A list of asks within bounds.
struct Gathered {
    asks: Vec<Ask>,
    bytes: u64,
    copies: usize,
}

impl Gathered {
    fn has_room(&self) -> bool {
        self.bytes > 0 && self.copies > 0
    }

    fn add(&mut self, t: &Tables<'_>, cell: CellNumber, copy: &Copy) -> Result<(), DbError> {
        // What was asked in vain has its own times.
        if copy.state == CopyState::ToRelease || t.unanswered(copy.chunk, cell)?.is_some() {
            return Ok(());
        }
        if let Some(ask) = how_to_ask(t, copy.chunk)? {
            self.bytes = self.bytes.saturating_sub(ask.cost());
            self.copies -= 1;
            self.asks.push(ask);
        }
        Ok(())
    }

    /// Copies whose turn it is, up to chunk `until`. Gives how far it came.
    fn gather_turn(
        &mut self,
        t: &Tables<'_>,
        cell: CellNumber,
        mut after: ChunkId,
        until: ChunkId,
        today: u64,
    ) -> Result<ChunkId, DbError> {
        while self.has_room() && after < until {
            let page = t.copies_between(cell, after, until, PAGE)?;
            for copy in &page {
                if !self.has_room() {
                    return Ok(after);
                }
                after = copy.chunk;
                // Those that were never proven come by themselves.
                if copy.proven > 0 && copy.proven + FRESH_DAYS <= today {
                    self.add(t, cell, copy)?;
                }
            }
            if page.len() < PAGE {
                after = until;
            }
        }
        Ok(after)
    }

    /// Copies that were never proven. Gives whether that is all of them.
    fn gather_unproven(&mut self, t: &Tables<'_>, cell: CellNumber) -> Result<bool, DbError> {
        let mut after = ChunkId(0);
        loop {
            let page = t.copies_unproven(cell, after, PAGE)?;
            for copy in &page {
                if !self.has_room() {
                    return Ok(false);
                }
                after = copy.chunk;
                self.add(t, cell, copy)?;
            }
            if page.len() < PAGE {
                return Ok(true);
            }
        }
    }
}

/// What is due with a peer at `now`.
fn plan(t: &Tables<'_>, cell: CellNumber, record: &Record, now: u64) -> Result<Plan, DbError> {
    let mut plan = Plan::default();
    for tries in t.unanswered_due(cell, now, AUDIT_NAMES_MAX)? {
        match t.copy(tries.chunk, cell)? {
            Some(copy) if copy.state != CopyState::ToRelease => {
                plan.again.extend(how_to_ask(t, tries.chunk)?)
            }
            _ => {}
        }
    }
    if now < record.next_at && now >= record.ran_at {
        return Ok(plan);
    }
    let mut then = *record;
    let highest = t.chunk_id_max()?;
    then.cycle = then.cycle.at(highest.0, now, CYCLE_S);
    let target =
        if record.is_suspended(now) { highest.0 } else { then.cycle.target(highest.0, now, CYCLE_S) };
    // One half at most for those whose turn it is, so that new ones do not wait for them either.
    let bytes = record.allowance(now);
    let mut gathered = Gathered { asks: Vec::new(), bytes: bytes / 2, copies: COPIES_MAX / 2 };
    let today = now / DAY_S + 1;
    let reached = gathered.gather_turn(t, cell, ChunkId(then.cycle.cursor), ChunkId(target), today)?.0;
    then.cycle.cursor = reached.max(then.cycle.cursor);
    gathered.bytes += bytes / 2;
    gathered.copies += COPIES_MAX / 2;
    let is_all = gathered.gather_unproven(t, cell)?;
    then.ran_at = now;
    then.next_at = now + if is_all && then.cycle.cursor >= target { EVERY_S } else { HURRIED_S };
    (plan.due, plan.then) = (gathered.asks, Some(then));
    Ok(plan)
}

// ---- What follows ----

/// Puts what came of one request into the tables.
fn record(
    t: &Tables<'_>,
    cell: CellNumber,
    asks: &[Ask],
    outcomes: &[Outcome],
    answered_at: u64,
    now: u64,
) -> Result<Proved, DbError> {
    let mut found = Proved::default();
    let mut forfeited = 0;
    let vain = vain(outcomes);
    for ((ask, outcome), is_vain) in asks.iter().zip(outcomes).zip(vain) {
        // It may have been released, or lost otherwise, meanwhile.
        let Some(copy) = t.copy(ask.chunk, cell)? else { continue };
        // What was counted since its last proof is taken back: see `bounty::Counts`.
        let unproven_s =
            if copy.proven > 0 { (now / DAY_S + 1).saturating_sub(copy.proven) * DAY_S } else { 0 };
        let forfeit = u128::from(ask.len) * u128::from(unproven_s.min(FORFEITED_S_MAX));
        match outcome {
            Outcome::Proven => {
                t.prove_copy(ask.chunk, cell, now / DAY_S + 1)?;
                found.proven += 1;
            }
            Outcome::Missing | Outcome::Damaged | Outcome::Wrong => {
                t.drop_copy(ask.chunk, cell)?;
                forfeited += forfeit;
                match outcome {
                    Outcome::Missing => found.missing += 1,
                    Outcome::Damaged => found.damaged += 1,
                    _ => found.wrong += 1,
                }
            }
            Outcome::Nothing if is_vain => {
                let tries = in_vain(ask.chunk, t.unanswered(ask.chunk, cell)?, now);
                match standing(&tries, answered_at, now) {
                    Standing::Stored => t.set_unanswered(cell, &tries)?,
                    Standing::Suspect => {
                        t.set_unanswered(cell, &tries)?;
                        t.suspect_copy(ask.chunk, cell)?;
                    }
                    Standing::Lost => {
                        t.drop_copy(ask.chunk, cell)?;
                        forfeited += forfeit;
                        found.silent += 1;
                        continue;
                    }
                }
                found.unanswered += 1;
            }
            Outcome::Nothing | Outcome::Untold => found.unanswered += 1,
        }
    }
    if forfeited > 0 {
        t.add_forfeited(cell, forfeited)?;
    }
    Ok(found)
}

fn record_key(peer: &CellId) -> String {
    format!("audit:{peer}")
}

/// How each peer has proved so far.
#[derive(Debug, Default)]
pub(super) struct Audits(RefCell<BTreeMap<CellId, Record>>);

impl Audits {
    fn of(&self, peer: &CellId) -> Record {
        self.0.borrow().get(peer).copied().unwrap_or_default()
    }

    fn change(&self, peer: &CellId, change: impl FnOnce(&mut Record)) -> Record {
        let mut records = self.0.borrow_mut();
        let record = records.entry(*peer).or_default();
        change(record);
        *record
    }
}

impl Sync {
    /// Reads how peers have proved so far.
    pub(super) async fn load_audits(&self) -> Result<(), VaultError> {
        let ids: Vec<CellId> = self.gate.peers().iter().map(|peer| peer.id).collect();
        let records = with_vault(&self.vault, move |vault| {
            vault.db.read(|t| -> Result<_, VaultError> {
                let mut records = BTreeMap::new();
                for id in ids {
                    if let Some(bytes) = t.meta(&record_key(&id))? {
                        records.insert(id, Record::from_bytes(&bytes)?);
                    }
                }
                Ok(records)
            })
        })
        .await?;
        *self.audits.0.borrow_mut() = records;
        Ok(())
    }

    /// Whether a peer gets no new chunks for now: it gave a false proof within a day, or has lost much.
    pub(super) fn is_suspended(&self, peer: &CellId) -> bool {
        self.audits.of(peer).is_suspended(self.vault.now())
    }

    /// Whether a peer has ever proven something, and whether it has failed proofs and passed none since. Being away is no
    /// failure.
    pub(super) fn proves(&self, peer: &CellId) -> (bool, bool) {
        let record = self.audits.of(peer);
        let failed_at = record.last_wrong_at.max(record.last_lost_at);
        let is_suspended = record.is_suspended(self.vault.now()) || failed_at > record.answered_at;
        (record.proven > 0, is_suspended)
    }

    /// Sets when a peer has proven something last, and failed (observed seconds).
    #[cfg(test)]
    pub(super) fn set_proofs_for_tests(&self, peer: &CellId, answered_at: u64, failed_at: u64) {
        self.audits.change(peer, |record| {
            *record =
                Record { answered_at, last_lost_at: failed_at, proven: answered_at, ..Record::default() }
        });
    }

    /// How peers have proved so far, in the order in which they came.
    pub fn proofs(&self) -> Vec<ProofView> {
        let now = self.vault.now();
        let view = |peer: super::PeerRow| {
            let record = self.audits.of(&peer.id);
            ProofView {
                proved: Proved {
                    proven: record.proven,
                    missing: record.missing,
                    damaged: record.damaged,
                    wrong: record.wrong,
                    silent: record.silent,
                    unanswered: 0,
                },
                is_suspended: record.is_suspended(now),
                is_reached: self.link(&peer.id).is_some(),
                id: peer.id,
                name: peer.name,
            }
        };
        self.gate.peers().into_iter().map(view).collect()
    }

    /// Asks every peer that is connected for proofs of everything, one after the other. `told` hears of how many copies
    /// in all there was an answer.
    pub async fn prove_all(self: &Rc<Self>, told: &dyn Fn(u64, u64)) -> Result<Vec<ProofView>, VaultError> {
        let peers = self.gate.peers();
        let mut total = 0;
        for link in peers.iter().filter_map(|peer| self.link(&peer.id)) {
            let cell = link.cell;
            total += with_vault(&self.vault, move |vault| vault.db.read(|t| t.copy_totals(cell))).await?.0;
        }
        let (mut views, mut done) = (Vec::new(), 0);
        for peer in peers {
            let mut view = ProofView {
                name: peer.name.clone(),
                id: peer.id,
                proved: Proved::default(),
                is_suspended: false,
                is_reached: false,
            };
            if let Some(link) = self.link(&peer.id) {
                view.is_reached = true;
                let progress = |answers: u64| told(done + answers, total.max(done + answers));
                if let Err(why) = prove_peer(self, &link, &mut view.proved, &progress).await {
                    log::warn!("proofs of {}: {why}", peer.name);
                    view.is_reached = false;
                }
                done += view.proved.proven + view.proved.lost();
                if view.proved.lost() > 0 {
                    link.nudge();
                }
            }
            view.is_suspended = self.is_suspended(&peer.id);
            views.push(view);
        }
        Ok(views)
    }
}

/// Proofs of all copies with one peer.
async fn prove_peer(
    sync: &Rc<Sync>,
    link: &Rc<Link>,
    proved: &mut Proved,
    told: &dyn Fn(u64),
) -> Result<(), RoundError> {
    let (vault, cell) = (&sync.vault, link.cell);
    let mut after = ChunkId(0);
    loop {
        let page = with_vault(vault, move |vault| {
            vault.db.read(|t| -> Result<_, DbError> {
                let page = t.copies_page(cell, after, PAGE)?;
                let wanted = page.iter().filter(|copy| copy.state != CopyState::ToRelease);
                let asks = wanted.map(|copy| how_to_ask(t, copy.chunk)).collect::<Result<Vec<_>, _>>()?;
                Ok((page.last().map(|copy| copy.chunk), asks.into_iter().flatten().collect::<Vec<Ask>>()))
            })
        })
        .await?;
        let (Some(last), asks) = page else { return Ok(()) };
        after = last;
        let mut requests = requests(asks);
        requests.reverse();
        let mut fruitless = 0;
        while let Some(request) = requests.pop() {
            let (found, outcomes) = ask_and_record(sync, link, request.clone()).await?;
            let rest: Vec<Ask> = request
                .into_iter()
                .zip(outcomes)
                .filter(|(_, outcome)| *outcome == Outcome::Nothing)
                .map(|(ask, _)| ask)
                .collect();
            let answers = Proved {
                unanswered: found.unanswered - rest.len().min(found.unanswered as usize) as u64,
                ..found
            };
            proved.add(&answers);
            told(proved.proven + proved.lost());
            if rest.is_empty() {
                continue;
            }
            fruitless = if answers.proven + answers.lost() == 0 { fruitless + 1 } else { 0 };
            if fruitless > FRUITLESS_MAX {
                proved.unanswered += rest.len() as u64;
                fruitless = 0;
                continue;
            }
            requests.push(rest);
            Timer::after(BUSY_PAUSE).await;
        }
    }
}

/// The audits that are due with one peer: a step of a round.
pub(super) async fn run(sync: &Rc<Sync>, link: &Rc<Link>) -> Result<(), RoundError> {
    let (vault, cell, peer) = (&sync.vault, link.cell, link.peer);
    let known = sync.audits.of(&peer);
    let plan = with_vault(vault, move |vault| {
        let now = vault.now();
        vault.db.read(|t| plan(t, cell, &known, now))
    })
    .await?;
    let mut all = Proved::default();
    for request in requests(plan.again).into_iter().chain(requests(plan.due)) {
        let found = ask_and_record(sync, link, request).await?.0;
        all.add(&found);
        if found.wrong > 0 {
            break;
        }
    }
    if let Some(then) = &plan.then {
        let record = sync.audits.change(&peer, |record| {
            (record.cycle, record.ran_at, record.next_at) = (then.cycle, then.ran_at, then.next_at);
        });
        save(vault, peer, record).await?;
    }
    if plan.then.is_some() {
        all.add(&prove_segments(sync, link).await?);
    }
    if all.lost() > 0 {
        // The next round gives again what is lost.
        link.nudge();
    }
    Ok(())
}

/// Asks for proofs of a few segments of the newest catalog, if the peer says that it holds that. They are few, all lie here, and
/// of all chunks they matter most to a recovery.
async fn prove_segments(sync: &Rc<Sync>, link: &Rc<Link>) -> Result<Proved, RoundError> {
    let mut found = Proved::default();
    let Some(there) = link.head_there.get() else { return Ok(found) };
    let asks = with_vault(&sync.vault, move |vault| {
        vault.db.read(|t| -> Result<Vec<Ask>, DbError> {
            if publish::current_head(t)?.is_none_or(|(hash, ..)| hash != there) {
                return Ok(Vec::new());
            }
            let segments = t.segments()?;
            let mut asks = Vec::new();
            for _ in 0..SEGMENTS_A_TURN.min(segments.len()) {
                let (_, name, _) = segments[u64::from_le_bytes(random()) as usize % segments.len()];
                let row = t.chunk(&name)?.filter(|row| row.place.is_some());
                asks.extend(row.map(|row| Ask { chunk: row.id, name, len: row.len, how: How::Whole }));
            }
            asks.dedup_by_key(|ask| ask.name);
            Ok(asks)
        })
    });
    let asks = asks.await?;
    if asks.is_empty() {
        return Ok(found);
    }
    for (asked, outcome) in asks.iter().zip(ask(sync, link, &asks).await?) {
        match outcome {
            Outcome::Proven => found.proven += 1,
            Outcome::Missing => found.missing += 1,
            Outcome::Damaged => found.damaged += 1,
            Outcome::Wrong => found.wrong += 1,
            Outcome::Nothing | Outcome::Untold => continue,
        }
        if outcome != Outcome::Proven {
            link.segments.borrow_mut().remove(&asked.name);
            link.lost_segments.borrow_mut().insert(asked.name);
        }
    }
    let now = sync.vault.now();
    let record = sync.audits.change(&link.peer, |record| record.take(&found, now));
    if found.proven + found.lost() > 0 {
        save(&sync.vault, link.peer, record).await?;
    }
    tell(sync, &link.peer, &found);
    Ok(found)
}

async fn save(vault: &Arc<Vault>, peer: CellId, record: Record) -> Result<(), RoundError> {
    with_vault(vault, move |vault| vault.db.change(|t| t.set_meta(&record_key(&peer), &record.to_bytes())))
        .await?;
    Ok(())
}

async fn ask_and_record(
    sync: &Rc<Sync>,
    link: &Rc<Link>,
    request: Vec<Ask>,
) -> Result<(Proved, Vec<Outcome>), RoundError> {
    let outcomes = ask(sync, link, &request).await?;
    note(sync, link, request, outcomes).await
}

/// How a copy was found to be lost by a restore drill.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Loss {
    Missing,
    Damaged,
    Wrong,
}

/// A copy was found to be lost otherwise than by a proof: the same follows.
pub(super) async fn note_loss(
    sync: &Rc<Sync>,
    link: &Rc<Link>,
    (chunk, name, len): (ChunkId, ChunkName, u32),
    loss: Loss,
) -> Result<(), RoundError> {
    let outcome = match loss {
        Loss::Missing => Outcome::Missing,
        Loss::Damaged => Outcome::Damaged,
        Loss::Wrong => Outcome::Wrong,
    };
    note(sync, link, vec![Ask { chunk, name, len, how: How::Fetch }], vec![outcome]).await.map(drop)
}

/// Takes in what came of a request.
async fn note(
    sync: &Rc<Sync>,
    link: &Rc<Link>,
    request: Vec<Ask>,
    outcomes: Vec<Outcome>,
) -> Result<(Proved, Vec<Outcome>), RoundError> {
    let (vault, cell, peer) = (&sync.vault, link.cell, link.peer);
    let answered_at = sync.audits.of(&peer).answered_at;
    let (found, outcomes, now) = with_vault(vault, move |vault| {
        let now = vault.now();
        let found = vault.db.change(|t| record(t, cell, &request, &outcomes, answered_at, now))?;
        Ok::<_, DbError>((found, outcomes, now))
    })
    .await?;
    let record = sync.audits.change(&peer, |record| record.take(&found, now));
    if found.proven + found.lost() > 0 {
        save(vault, peer, record).await?;
    }
    tell(sync, &peer, &found);
    Ok((found, outcomes))
}

fn tell(sync: &Sync, peer: &CellId, found: &Proved) {
    let (vault, name) = (&sync.vault, sync.name_of(peer));
    let now = vault.now();
    let chunks = |count: u64| if count == 1 { "1 chunk".into() } else { format!("{count} chunks") };
    if found.wrong > 0 {
        vault.raise("peer-false", Alert {
            text: format!(
                "{name} gave a false proof: it said that it holds {} of yours, and could not show it",
                chunks(found.wrong)
            ),
            remedy: "what it held of them is copied anew and it gets nothing new for a day; if it happens again, remove it with \
                     `grove peer remove`"
                .into(),
        });
    }
    let lost = found.lost() - found.wrong;
    if lost > 0 {
        let how = match (found.missing, found.damaged) {
            (0, 0) => "and gives no proof of them".to_owned(),
            (0, damaged) => format!("{damaged} of them damaged"),
            (missing, 0) => format!("{missing} of them missing"),
            (missing, damaged) => format!("{missing} missing, {damaged} damaged"),
        };
        vault.raise(
            "peer-lost",
            Alert {
                text: format!("{name} has lost {} of yours ({how}); they are copied again", chunks(lost)),
                remedy: format!(
                    "nothing needs doing; if it happens often, the disk of {name} may be failing"
                ),
            },
        );
    }
    let records = sync.audits.0.borrow();
    if !records.values().any(|record| record.is_suspended(now) && record.wrong > 0) {
        vault.clear("peer-false");
    }
    if !records.values().any(|record| record.last_lost_at > 0 && now < record.last_lost_at + TOLD_S) {
        vault.clear("peer-lost");
    }
}

// ---- One request ----

/// Asks one request. An error only where the connection broke: then nothing is said of anything.
async fn ask(sync: &Sync, link: &Link, asks: &[Ask]) -> Result<Vec<Outcome>, RoundError> {
    let line = link.line(For::Chunks).await?;
    let mut found = Vec::with_capacity(asks.len());
    let outcome = if asks.first().is_some_and(Ask::is_fetch) {
        fetch(sync, &line.session, asks, &mut found).await
    } else {
        challenge(sync, link, &line.session, asks, &mut found).await
    };
    match outcome {
        Ok(()) => {}
        Err(RoundError::Ask(why)) if line.session.is_alive() => {
            log::debug!("an audit of {} broke off: {why}", link.peer.short());
        }
        Err(why) => return Err(why),
    }
    found.resize(asks.len(), Outcome::Nothing);
    Ok(found)
}

async fn challenge(
    sync: &Sync,
    link: &Link,
    session: &crate::wire::session::Session,
    asks: &[Ask],
    found: &mut Vec<Outcome>,
) -> Result<(), RoundError> {
    let nonce: Nonce = random();
    let wanted = asks.iter().map(|ask| (ask.name, ask.challenge())).collect();
    let own = sync.vault.id();
    let parties = Parties { verifier: own, prover: link.peer, owner: own };
    let mut auditing = message::audit(session, nonce, wanted).await?;
    while let Some((status, proof)) = auditing.next().await? {
        let ask = asks[found.len()];
        found.push(match status {
            AuditStatus::Proof => check(sync, ask, nonce, parties, proof).await?,
            AuditStatus::Missing => Outcome::Missing,
            AuditStatus::Damaged => Outcome::Damaged,
            AuditStatus::Busy | AuditStatus::Other(_) => Outcome::Nothing,
        });
    }
    Ok(())
}

/// Compares a proof with what is here.
async fn check(
    sync: &Sync,
    ask: Ask,
    nonce: Nonce,
    parties: Parties,
    proof: Vec<u8>,
) -> Result<Outcome, RoundError> {
    let verdict = |is_right: bool| if is_right { Outcome::Proven } else { Outcome::Wrong };
    match ask.how {
        How::Leaf(index, root) => Ok(verdict(proof::is_leaf_proof(&root, ask.len, index, &proof))),
        How::Fetch => Ok(Outcome::Untold),
        How::Whole => {
            let _permit = sync.permits.checking.acquire().await;
            let work = move |vault: &Vault| match vault.local_chunk(&ask.name) {
                Ok(Some(sealed)) => {
                    let is_right = proof::whole(&nonce, &parties, &ask.name, &sealed)[..] == proof[..];
                    buffers::give(sealed);
                    Ok(verdict(is_right))
                }
                Ok(None) => Ok(Outcome::Untold),
                Err(why) => {
                    log::warn!("a proof cannot be checked now: {why}");
                    Ok::<_, VaultError>(Outcome::Untold)
                }
            };
            Ok(with_vault(&sync.vault, work).await?)
        }
    }
}

/// Chunks of which neither bytes nor root are here: fetched once, and their roots kept.
async fn fetch(
    sync: &Sync,
    session: &crate::wire::session::Session,
    asks: &[Ask],
    found: &mut Vec<Outcome>,
) -> Result<(), RoundError> {
    let _place = sync.permits.pulling.acquire().await;
    let mut getting = message::get(session, asks.iter().map(|ask| ask.name).collect()).await?;
    loop {
        let mut sealed = Vec::new();
        let Some((_, status)) = getting.next(&mut sealed).await? else { return Ok(()) };
        let ask = asks[found.len()];
        found.push(match status {
            GetStatus::Found => {
                let work = move |vault: &Vault| -> Result<Outcome, DbError> {
                    if sha256(&sealed) != ask.name.0 {
                        return Ok(Outcome::Wrong);
                    }
                    // The length may be what another peer once said of it.
                    if sealed.len() == ask.len as usize {
                        let root = proof::root(&sealed);
                        vault.db.change(|t| t.set_root(ask.chunk, &root))?;
                    }
                    buffers::give(sealed);
                    Ok(Outcome::Proven)
                };
                with_vault(&sync.vault, work).await?
            }
            GetStatus::Missing => Outcome::Missing,
            GetStatus::Damaged => Outcome::Damaged,
            GetStatus::Other(_) => Outcome::Nothing,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::placement::{Db, Own};
    use crate::store::Place;

    const NOW: u64 = 1_000_000;
    const PEER: CellId = CellId([7; 32]);

    fn ask(n: i64, len: u32, how: How) -> Ask {
        Ask { chunk: ChunkId(n), name: ChunkName([n as u8; 32]), len, how }
    }

    /// A database with so many chunks here, each of `len` bytes and with a copy on the peer.
    fn with_copies(count: usize, len: u32) -> (Db, CellNumber, Vec<ChunkId>) {
        let db = Db::in_memory().unwrap();
        let (cell, ids) = db
            .change(|t| -> Result<_, DbError> {
                let cell = t.cell(&PEER)?;
                let mut ids = Vec::new();
                for n in 0..count {
                    let mut name = ChunkName([1; 32]);
                    name.0[..8].copy_from_slice(&(n as u64).to_le_bytes());
                    let id = t.put_chunk(&name, len, &Place::Loose, Own::Data)?;
                    t.put_copy(id, cell)?;
                    ids.push(id);
                }
                Ok((cell, ids))
            })
            .unwrap();
        (db, cell, ids)
    }

    fn planned(db: &Db, cell: CellNumber, record: &Record, now: u64) -> Plan {
        db.read(|t| plan(t, cell, record, now)).unwrap()
    }

    fn recorded(
        db: &Db,
        cell: CellNumber,
        asks: &[Ask],
        outcomes: &[Outcome],
        now: u64,
        answered: u64,
    ) -> Proved {
        db.change(|t| super::record(t, cell, asks, outcomes, answered, now)).unwrap()
    }

    fn state(db: &Db, cell: CellNumber, chunk: ChunkId) -> Option<CopyState> {
        db.read(|t| t.copy(chunk, cell)).unwrap().map(|copy| copy.state)
    }

    #[test]
    fn copies_that_were_never_proven_are_due_at_once_and_then_a_round_is_quiet_for_an_hour() {
        let (db, cell, ids) = with_copies(300, 5000);
        let first = planned(&db, cell, &Record::default(), NOW);
        assert_eq!((first.due.len(), first.again.len()), (300, 0));
        let then = first.then.unwrap();
        assert_eq!(then.next_at, NOW + EVERY_S);
        recorded(&db, cell, &first.due, &vec![Outcome::Proven; 300], NOW, 0);
        assert!(
            db.read(|t| t.copy(ids[0], cell)).unwrap().is_some_and(|copy| copy.proven == NOW / DAY_S + 1)
        );
        let quiet = planned(&db, cell, &then, NOW + EVERY_S - 1);
        assert!(quiet.due.is_empty() && quiet.then.is_none());
        let later = planned(&db, cell, &then, NOW + EVERY_S);
        assert!(later.due.is_empty() && later.then.is_some());
    }

    #[test]
    fn each_copy_is_asked_for_within_20_days_of_its_last_time_and_evenly() {
        let (db, cell, _) = with_copies(2000, 100_000);
        let mut record = Record::default();
        let mut last: BTreeMap<ChunkId, u64> = BTreeMap::new();
        let (mut gap, mut most) = (0, 0);
        for round in 0..12 * 24 * 70 {
            let now = NOW + round * 300;
            let plan = planned(&db, cell, &record, now);
            for request in requests(plan.due.clone()) {
                let cost: u64 = request.iter().map(Ask::cost).sum();
                assert!(request.len() <= AUDIT_NAMES_MAX && cost <= PROVED_BYTES_MAX);
                recorded(&db, cell, &request, &vec![Outcome::Proven; request.len()], now, 0);
            }
            for ask in &plan.due {
                if let Some(before) = last.insert(ask.chunk, now) {
                    gap = gap.max(now - before);
                }
            }
            if round > 12 * 24 {
                most = most.max(plan.due.len());
            }
            record = plan.then.unwrap_or(record);
        }
        assert_eq!(last.len(), 2000);
        assert!(last.values().all(|at| *at + 27 * DAY_S > NOW + 70 * DAY_S), "none is left out");
        assert!(gap <= (20 + FRESH_DAYS) * DAY_S + EVERY_S, "{gap}");
        assert!(most <= 2000 / (20 * 24) * 3 + 3, "{most} in one round");
    }

    #[test]
    fn one_round_asks_for_no_more_than_its_bounds_and_the_next_goes_on() {
        let (db, cell, _) = with_copies(600, 4 << 20);
        let first = planned(&db, cell, &Record::default(), NOW);
        let cost: u64 = first.due.iter().map(Ask::cost).sum();
        assert!((BYTES_MAX..=BYTES_MAX + (4 << 20)).contains(&cost), "{cost}");
        assert_eq!(first.then.unwrap().next_at, NOW + HURRIED_S);
        assert!(first.then.unwrap().allowance(NOW + 1) == BYTES_MIN);
    }

    #[test]
    fn after_a_long_stop_all_is_caught_up_in_bounded_steps() {
        let (db, cell, ids) = with_copies(3000, 1 << 20);
        db.change(|t| ids.iter().try_for_each(|id| t.prove_copy(*id, cell, NOW / DAY_S + 1))).unwrap();
        let mut record =
            Record { cycle: Cycle { cursor: 10, began_at: NOW }, ran_at: NOW, ..Record::default() };
        let mut now = NOW + 100 * DAY_S;
        let mut asked = 0;
        for _ in 0..20 {
            let plan = planned(&db, cell, &record, now);
            assert!(plan.due.iter().map(Ask::cost).sum::<u64>() <= BYTES_MAX + (1 << 20));
            recorded(&db, cell, &plan.due, &vec![Outcome::Proven; plan.due.len()], now, 0);
            asked += plan.due.len();
            record = plan.then.unwrap_or(record);
            now += HURRIED_S;
        }
        assert_eq!(asked, 3000 - 10);
    }

    #[test]
    fn vain_tries_make_a_copy_suspect_and_only_a_day_of_them_beside_other_proofs_makes_it_lost() {
        let (db, cell, ids) = with_copies(2, 1000);
        let asks = [ask(ids[0].0, 1000, How::Whole)];
        let (mut now, mut tries, mut lost_at) = (NOW, 0, None);
        while lost_at.is_none() && tries < 100 {
            // Nothing was proven meanwhile: this peer is just silent.
            let found = recorded(&db, cell, &asks, &[Outcome::Nothing], now, NOW - 1);
            tries += 1;
            if found.silent > 0 {
                lost_at = Some(now);
            } else {
                let wanted = if tries >= SUSPECT_TRIES { CopyState::Suspect } else { CopyState::Stored };
                assert_eq!(state(&db, cell, ids[0]), Some(wanted));
                assert_eq!(db.read(|t| t.copies_of(ids[0])).unwrap(), [cell], "it still counts");
                now = db.read(|t| t.unanswered(ids[0], cell)).unwrap().unwrap().next;
            }
        }
        let silent_for = lost_at.unwrap() - NOW;
        assert!((SILENT_S..SILENT_S + DAY_S).contains(&silent_for), "{silent_for}");

        let asks = [ask(ids[1].0, 1000, How::Whole)];
        let (mut now, mut tries) = (NOW, 0);
        loop {
            tries += 1;
            if recorded(&db, cell, &asks, &[Outcome::Nothing], now, now).silent > 0 {
                break;
            }
            now = db.read(|t| t.unanswered(ids[1], cell)).unwrap().unwrap().next;
        }
        assert!(tries >= LOST_TRIES && (LOST_S..2 * LOST_S).contains(&(now - NOW)), "{tries} {}", now - NOW);
        assert_eq!(state(&db, cell, ids[1]), None);
        // The peer states it again, and a proof makes it as good as any.
        db.change(|t| t.put_copy(ids[1], cell)).unwrap();
        assert_eq!(planned(&db, cell, &Record::default(), now).due.len(), 1);
        recorded(&db, cell, &asks, &[Outcome::Proven], now, now);
        assert_eq!(state(&db, cell, ids[1]), Some(CopyState::Stored));
        assert_eq!(db.read(|t| t.unanswered(ids[1], cell)).unwrap(), None);
    }

    #[test]
    fn a_proof_ends_suspicion_and_impatience_is_no_vain_try() {
        let (db, cell, ids) = with_copies(1, 1000);
        let asks = [ask(ids[0].0, 1000, How::Whole)];
        for _ in 0..50 {
            recorded(&db, cell, &asks, &[Outcome::Nothing], NOW, NOW);
        }
        assert_eq!(db.read(|t| t.unanswered(ids[0], cell)).unwrap().unwrap().tries, 1);
        for try_at in 1..20 {
            recorded(&db, cell, &asks, &[Outcome::Nothing], NOW + try_at * TRY_S_MAX, NOW);
        }
        assert_eq!(state(&db, cell, ids[0]), Some(CopyState::Suspect));
        let again = planned(&db, cell, &Record::default(), NOW + 30 * TRY_S_MAX);
        assert_eq!((again.again.len(), again.due.len()), (1, 0));
        recorded(&db, cell, &asks, &[Outcome::Proven], NOW + 30 * TRY_S_MAX, NOW);
        assert_eq!(state(&db, cell, ids[0]), Some(CopyState::Stored));
    }

    #[test]
    fn of_a_request_cut_short_only_the_first_silent_name_was_asked_in_vain() {
        use Outcome::{Missing, Nothing, Proven, Untold};
        assert_eq!(vain(&[Proven, Proven, Nothing, Nothing]), [false, false, true, false]);
        assert_eq!(vain(&[Nothing, Nothing]), [true, false]);
        assert_eq!(vain(&[Proven, Nothing, Missing, Nothing, Nothing]), [false, true, false, true, false]);
        assert_eq!(vain(&[Untold, Nothing, Nothing]), [false, true, false]);
        assert!(vain(&[Proven, Untold]).iter().all(|vain| !vain) && vain(&[]).is_empty());
    }

    #[test]
    fn peers_that_lie_or_lose_much_get_nothing_new_for_a_day() {
        let mut record = Record::default();
        record.take(&Proved { proven: 100, missing: 63, ..Proved::default() }, NOW);
        assert!(!record.is_suspended(NOW));
        record.take(&Proved { missing: 1, ..Proved::default() }, NOW);
        assert!(record.is_suspended(NOW) && !record.is_suspended(NOW + SUSPENDED_S));
        let mut record = Record::default();
        record.take(&Proved { proven: 100_000, missing: 900, damaged: 100, ..Proved::default() }, NOW);
        assert!(!record.is_suspended(NOW), "a part of them is healed without a word");
        record.take(&Proved { wrong: 1, ..Proved::default() }, NOW);
        assert!(record.is_suspended(NOW + SUSPENDED_S - 1) && !record.is_suspended(NOW + SUSPENDED_S));
        let again = Record::from_bytes(&record.to_bytes()).unwrap();
        assert_eq!(again, record);
        assert!(Record::from_bytes(b"odd").is_err());
    }

    #[test]
    fn a_liar_is_asked_for_everything_at_once() {
        let (db, cell, ids) = with_copies(500, 1000);
        db.change(|t| ids.iter().try_for_each(|id| t.prove_copy(*id, cell, 1))).unwrap();
        let record = Record { cycle: Cycle { cursor: 0, began_at: NOW }, ..Record::default() };
        assert!(planned(&db, cell, &record, NOW + 10).due.is_empty());
        let liar = Record { suspended_until: NOW + 1000, ..record };
        assert_eq!(planned(&db, cell, &liar, NOW + 10).due.len(), 500);
    }

    #[test]
    fn chunks_here_are_proven_whole_freed_ones_by_a_leaf_and_unknown_ones_are_fetched() {
        let (db, cell, ids) = with_copies(3, 200_000);
        db.change(|t| -> Result<(), DbError> {
            t.move_chunk(ids[1], None)?;
            t.set_root(ids[1], &[5; 32])?;
            t.move_chunk(ids[2], None)
        })
        .unwrap();
        let due = planned(&db, cell, &Record::default(), NOW).due;
        assert_eq!((due[0].how, due[2].how), (How::Whole, How::Fetch));
        assert!(matches!(due[1].how, How::Leaf(0..=3, root) if root == [5; 32]));
        let split = requests(due);
        assert_eq!(split.iter().map(Vec::len).collect::<Vec<_>>(), [2, 1]);
        // The number of a chunk that is gone may be given to another.
        db.change(|t| -> Result<(), DbError> {
            t.drop_copy(ids[1], cell)?;
            t.delete_chunk(ids[1])
        })
        .unwrap();
        assert_eq!(db.read(|t| t.root(ids[1])).unwrap(), None);
    }
}

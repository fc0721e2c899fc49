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

use smol::Timer;

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
/// What was lost is told this long.
const TOLD_S: u64 = 3 * DAY_S;

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
            self.last_lost_at = now;
        }
        if found.wrong > 0 {
            self.last_wrong_at = now;
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
    asks.sort_by_key(Ask::is_fetch);
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
    let vain = vain(outcomes);
    for ((ask, outcome), is_vain) in asks.iter().zip(outcomes).zip(vain) {
        // It may have been released, or lost otherwise, meanwhile.
        if t.copy(ask.chunk, cell)?.is_none() {
            continue;
        }
        match outcome {
            Outcome::Proven => {
                t.prove_copy(ask.chunk, cell, now / DAY_S + 1)?;
                found.proven += 1;
            }
            Outcome::Missing | Outcome::Damaged | Outcome::Wrong => {
                t.drop_copy(ask.chunk, cell)?;
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
                        found.silent += 1;
                        continue;
                    }
                }
                found.unanswered += 1;
            }
            Outcome::Nothing | Outcome::Untold => found.unanswered += 1,
        }
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
    if let Some(then) = plan.then {
        let record = sync.audits.change(&peer, |record| {
            (record.cycle, record.ran_at, record.next_at) = (then.cycle, then.ran_at, then.next_at);
        });
        save(vault, peer, record).await?;
    }
    if all.lost() > 0 {
        // The next round gives again what is lost.
        link.nudge();
    }
    Ok(())
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

//! Decisions about proofs: of which copies they are due, how a request is cut, what an answer or none means, and what follows
//! for the rows. Functions of tables, facts and time; `audit` asks.
//!
//! A copy is *stored* until a proof is asked for in vain three times; then it is *suspect*, still counts, and is asked about
//! again and again. *Lost*, its row is dropped and the chunk is copied anew: at once when the peer itself says that it has it
//! no more or gives a false proof, after eight vain tries over a day while it proves other chunks, and in any case after 20
//! days of silence over it. It has *returned* when the peer's inventory states it, or takes it again.
//!
//! Promise: a correct peer that is slow or busy is never called a liar, and one that has dropped a chunk does not keep it
//! quiet for 30 days.

use super::prove::PROVED_BYTES_MAX;
use crate::codec::{BadBytes, Reader, Writer};
use crate::cycle::Cycle;
use crate::id::ChunkName;
use crate::keys::random;
use crate::order;
use crate::placement::{CellNumber, ChunkId, Copy, CopyState, DbError, Tables, Unanswered};
use crate::proof::{self, Challenge, Root};
use crate::wire::message::AUDIT_NAMES_MAX;

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
/// Copies that a peer is asked for, however lately it has proven them, while it has proven nothing since it failed.
const DOUBT_COPIES: usize = 16;
/// Rows looked at in one step.
pub(super) const PAGE: usize = 1024;
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

/// How a peer has proved so far. `audit:` and the peer's id in placement.db.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Record {
    pub(super) cycle: Cycle,
    /// Observed seconds: when proofs were asked for last, and are asked for next.
    pub(super) ran_at: u64,
    pub(super) next_at: u64,
    /// When it proved something last.
    pub(super) answered_at: u64,
    pub(super) proven: u64,
    pub(super) missing: u64,
    pub(super) damaged: u64,
    pub(super) wrong: u64,
    /// Copies that were given up after vain tries.
    pub(super) silent: u64,
    pub(super) last_wrong_at: u64,
    pub(super) last_lost_at: u64,
    pub(super) suspended_until: u64,
    /// The day of the two next numbers.
    pub(super) day: u64,
    pub(super) day_proven: u64,
    pub(super) day_lost: u64,
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

    pub(super) fn to_bytes(mut self) -> Vec<u8> {
        let mut to = Writer::new();
        to.u8(Self::VERSION).raw(&self.cycle.to_bytes());
        for number in self.numbers() {
            to.u64(*number);
        }
        to.finish()
    }

    pub(super) fn from_bytes(bytes: &[u8]) -> Result<Self, BadBytes> {
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
    pub(super) fn is_suspended(&self, now: u64) -> bool {
        now < self.suspended_until
    }

    /// It has failed, and proven nothing since.
    pub(super) fn is_doubted(&self) -> bool {
        self.last_wrong_at.max(self.last_lost_at) > self.answered_at
    }

    /// Bytes that may be asked for at `now`.
    fn allowance(&self, now: u64) -> u64 {
        (now.saturating_sub(self.ran_at)).saturating_mul(BYTES_PER_S).clamp(BYTES_MIN, BYTES_MAX)
    }

    /// Takes in what was found at `now`.
    pub(super) fn take(&mut self, found: &Proved, now: u64) {
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
        // Which came later, a failure or a proof, must be right also after this cell's time has gone back to an earlier one.
        if found.proven > 0 {
            self.answered_at = now.max(self.last_wrong_at).max(self.last_lost_at);
        }
        let failed_at =
            if found.proven > 0 { self.answered_at.max(1) } else { now.max(self.answered_at + 1) };
        if found.lost() > 0 {
            self.last_lost_at = failed_at;
        }
        if found.wrong > 0 {
            self.last_wrong_at = failed_at;
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

    pub(super) fn add(&mut self, more: &Self) {
        self.proven += more.proven;
        self.missing += more.missing;
        self.damaged += more.damaged;
        self.wrong += more.wrong;
        self.silent += more.silent;
        self.unanswered += more.unanswered;
    }
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
pub(super) enum How {
    /// We have the chunk.
    Whole,
    /// We have its root.
    Leaf(u32, Root),
    /// We have neither: it is fetched once.
    Fetch,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ask {
    pub(super) chunk: ChunkId,
    pub(super) name: ChunkName,
    pub(super) len: u32,
    pub(super) how: How,
}

impl Ask {
    fn cost(&self) -> u64 {
        let cost = NAME_COST.max(self.len.into());
        if self.is_fetch() { cost * FETCH_COST } else { cost }
    }

    pub(super) fn is_fetch(&self) -> bool {
        self.how == How::Fetch
    }

    pub(super) fn challenge(&self) -> Challenge {
        match self.how {
            How::Leaf(index, _) => Challenge::Leaf(index),
            How::Whole | How::Fetch => Challenge::Whole,
        }
    }
}

/// What came of one ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
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
pub(super) fn requests(mut asks: Vec<Ask>) -> Vec<Vec<Ask>> {
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
pub(super) struct Plan {
    /// Asked in vain before; in requests of their own, so that an answer to them says something.
    pub(super) again: Vec<Ask>,
    pub(super) due: Vec<Ask>,
    /// The record when all of it is done; `None`: only `again` was due.
    pub(super) then: Option<Record>,
}

pub(super) fn how_to_ask(t: &Tables<'_>, chunk: ChunkId) -> Result<Option<Ask>, DbError> {
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
pub(super) fn plan(t: &Tables<'_>, cell: CellNumber, record: &Record, now: u64) -> Result<Plan, DbError> {
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
    if record.is_doubted() && gathered.asks.is_empty() {
        // It is given nothing new, so nothing new is to be proven: what it proved lately shows whether it can be trusted again.
        let few = |after: i64| -> Result<Vec<Ask>, DbError> {
            let mut few = Gathered { asks: Vec::new(), bytes, copies: DOUBT_COPIES };
            few.gather_turn(t, cell, ChunkId(after), highest, today + FRESH_DAYS)?;
            Ok(few.asks)
        };
        gathered.asks = few(i64::from(u32::from_le_bytes(random())) % highest.0.max(1))?;
        if gathered.asks.is_empty() {
            gathered.asks = few(0)?;
        }
    }
    then.ran_at = now;
    then.next_at = now + if is_all && then.cycle.cursor >= target { EVERY_S } else { HURRIED_S };
    (plan.due, plan.then) = (gathered.asks, Some(then));
    Ok(plan)
}

// ---- What follows ----

/// Puts what came of one request into the tables.
pub(super) fn record(
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::id::CellId;
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

//! A year of storing for one another, among honest peers and such as are not. The figures, statements, allowances and plans are
//! the program's own, and so are the books; disks, bytes and proofs are played, so that a year takes seconds.
//!
//! The world knows what really lies where, and for how long.

use std::collections::{BTreeMap, BTreeSet};

use crate::bounty::{
    Counts, Facts, Heard, LEAF_BYTE_HOURS, Refused, Seen, Side, Statement, Sums, Taken, Verdict, Why,
    allowed, check_proposal, compare, has_credit, judge, propose,
};
use crate::keys::{Identity, MasterKey};
use crate::placement::planner::{Candidate, Deficit, Pace, Sites, plan};
use crate::placement::{CellNumber, ChunkId};
use crate::sync::{Books, HeardAt, PeerBook};
use crate::world::{Dice, Guard, Sabotage};

const GIB: u64 = 1 << 30;
const HOUR_S: u64 = 3600;
/// All happens in steps of this.
const TICK_S: u64 = 2 * HOUR_S;
const TICKS_A_DAY: u64 = 12;
/// Every copy is asked for within this time, and once more if its turn was missed.
const AUDIT_TICKS: u64 = 20 * TICKS_A_DAY;
/// Figures are exchanged this often: less than the program does, for a signature takes its time.
const SETTLE_S: u64 = 3 * 86_400;
/// A new copy is asked for after about a day, and after three at the latest.
const FIRST_AUDIT_S: u64 = 3 * 86_400;
/// Copies with a peer that is away longer are not counted on.
const GRACE_S: u64 = 48 * HOUR_S;
const COPIES: u64 = 2;
/// What any peer may store with another.
const BASE_BYTES: u64 = 12 * GIB;
const VETTING_BYTES: u64 = 3 * GIB;
/// Unix time at which the year begins.
const BEGIN_S: u64 = 1_800_000_000;

/// What somebody is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Keeps what it is given, and is nearly always here.
    Honest,
    /// Keeps what it is given, and is here 60 hours of 100.
    OftenOff,
    /// Loses a part of what it is given, and says so when it is asked.
    Forgetful,
    /// Takes all it can get and keeps nothing for anybody.
    Greedy,
    /// Proves once, then drops the bytes and goes on saying that it has them.
    Lying,
    /// Two that keep one copy between them, and prove it for each other.
    Colluding,
    /// Takes what it is given, keeps nothing, and waits for somebody to notice.
    Empty,
}

#[derive(Debug, Clone, Copy)]
struct Copy {
    stored_at: u64,
    /// 0: never.
    proven_at: u64,
}

struct Peer {
    kind: Kind,
    identity: Identity,
    books: Books,
    accounts: BTreeMap<usize, PeerBook>,
    /// Counts as they were one step ago: what a crash leaves.
    saved: BTreeMap<usize, Counts>,
    chunks: u32,
    chunks_max: u32,
    disk_bytes: u64,
    is_on: bool,
    switch_at: u64,
    off_since: u64,
    holiday_at: u64,
}

/// Between an owner and a holder.
#[derive(Default)]
struct Pair {
    /// What the owner believes.
    copies: BTreeMap<u32, Copy>,
    /// What the holder really has.
    real: BTreeSet<u32>,
    /// Byte-seconds that it really had, up to the last step.
    stored: u128,
    /// Byte-seconds that count for nothing, for the copies were lost.
    lost: u128,
    passed_at: u64,
    failed_at: u64,
    settle_at: u64,
}

/// What came of a year.
#[derive(Debug, Clone, Default)]
pub struct Year {
    /// Leaves that each kind has earned in all, as signed by both less what is still taken off, and leaves that it really stored.
    pub earned: BTreeMap<Kind, (u64, u64)>,
    /// Peers of each kind.
    pub peers: BTreeMap<Kind, u64>,
    /// Statements signed by both.
    pub statements: u64,
    /// Copies found lost.
    pub lost: u64,
    /// Messages about figures that did not arrive.
    pub messages_lost: u64,
}

struct World {
    guard: Guard,
    dice: Dice,
    now: u64,
    peers: Vec<Peer>,
    /// By owner and holder.
    pairs: BTreeMap<(usize, usize), Pair>,
    year: Year,
}

fn kinds(dice: &mut Dice) -> Vec<Kind> {
    let mut kinds = vec![Kind::Honest; 4 + dice.below(3) as usize];
    kinds.extend([Kind::OftenOff, Kind::OftenOff, Kind::Forgetful, Kind::Greedy, Kind::Lying]);
    kinds.extend([Kind::Colluding, Kind::Colluding, Kind::Empty]);
    // Who has the smaller id, and so who proposes, follows from the order.
    for at in (1..kinds.len()).rev() {
        kinds.swap(at, dice.below(at as u64 + 1) as usize);
    }
    kinds
}

impl World {
    fn new(seed: u64) -> Self {
        let guard = Guard::begin(seed);
        let mut dice = Dice::new(seed, "bounty");
        let mut peers = Vec::new();
        for kind in kinds(&mut dice) {
            let mut key = [0; 32];
            dice.fill(&mut key);
            peers.push(Peer {
                kind,
                identity: MasterKey::from_bytes(key).identity(0, 0),
                books: Books::in_memory().expect("books in memory open"),
                accounts: BTreeMap::new(),
                saved: BTreeMap::new(),
                chunks: 0,
                chunks_max: if kind == Kind::Greedy { 400 } else { 15 + dice.below(15) as u32 },
                disk_bytes: 400 * GIB,
                is_on: true,
                switch_at: 0,
                off_since: 0,
                holiday_at: (60 + dice.below(200)) * 86_400,
            });
        }
        let mut pairs = BTreeMap::new();
        for owner in 0..peers.len() {
            for holder in (0..peers.len()).filter(|holder| *holder != owner) {
                pairs.insert((owner, holder), Pair::default());
            }
        }
        Self { guard, dice, now: TICK_S, peers, pairs, year: Year::default() }
    }

    fn wall(&self) -> u64 {
        BEGIN_S + self.now
    }

    fn is_away(&self, peer: usize) -> bool {
        let peer = &self.peers[peer];
        !peer.is_on && self.now >= peer.off_since + GRACE_S
    }

    /// What a peer sees of another.
    fn sums(&self, us: usize, them: usize) -> Sums {
        let given = &self.pairs[&(us, them)];
        let is_away = self.is_away(them);
        let count = |is_proven: bool| {
            let copies = given.copies.values().filter(|copy| (copy.proven_at > 0) == is_proven);
            if is_away { 0 } else { copies.count() as u64 * GIB }
        };
        let kept = &self.pairs[&(them, us)];
        // A cheat says that it has all of what it was given.
        let held = match self.peers[us].kind {
            Kind::Lying | Kind::Colluding => kept.copies.len(),
            _ => kept.real.len(),
        };
        Sums {
            proven_bytes: count(true),
            unproven_bytes: count(false),
            held_bytes: held as u64 * GIB,
            lost_id: 1,
            lost: given.lost,
        }
    }

    fn account(&mut self, us: usize, them: usize) -> &mut PeerBook {
        self.peers[us].accounts.entry(them).or_default()
    }

    fn facts(&self, holder: usize, owner: usize) -> Facts {
        let account = self.peers[holder].accounts.get(&owner);
        let given = &self.pairs[&(holder, owner)];
        Facts {
            base_bytes: BASE_BYTES,
            ratio_percent: 100,
            vetting_bytes: VETTING_BYTES,
            stored_bytes: account.map_or(0, |account| account.counts.sums().proven_bytes),
            // Parts of catalogs are proven from the first day on, by whoever keeps anything at all.
            has_proven: given.passed_at > 0 || self.now > 86_400,
            is_suspended: given.failed_at > given.passed_at,
            is_disputed: account.is_some_and(|account| {
                account.is_forked || account.heard.is_some_and(|heard| heard.short.is_some())
            }),
            used_bytes: self.pairs[&(owner, holder)].copies.len() as u64 * GIB,
            ..Facts::default()
        }
    }

    // ---- What happens ----

    fn switch(&mut self) {
        for at in 0..self.peers.len() {
            if self.now < self.peers[at].switch_at {
                continue;
            }
            let hours = |dice: &mut Dice, from: u64, more: u64| (from + dice.below(more)) * HOUR_S;
            let (now, kind, is_on) = (self.now, self.peers[at].kind, self.peers[at].is_on);
            let lasts = match (kind, !is_on) {
                (Kind::OftenOff, true) => hours(&mut self.dice, 6, 12),
                (Kind::OftenOff, false) => hours(&mut self.dice, 4, 8),
                (_, true) => hours(&mut self.dice, 24, 300),
                // Once a year four days.
                (_, false) if now > self.peers[at].holiday_at => {
                    self.peers[at].holiday_at = u64::MAX;
                    96 * HOUR_S
                }
                (_, false) => hours(&mut self.dice, 2, 5),
            };
            let peer = &mut self.peers[at];
            peer.is_on = !is_on;
            peer.switch_at = now + lasts;
            if is_on {
                peer.off_since = now;
            }
        }
    }

    fn forget(&mut self) {
        for ((_, holder), pair) in &mut self.pairs {
            if self.peers[*holder].kind == Kind::Forgetful && !pair.real.is_empty() {
                // A quarter in a year.
                let lost: Vec<u32> = pair
                    .real
                    .iter()
                    .copied()
                    .filter(|_| self.dice.below(4 * 365 * TICKS_A_DAY) == 0)
                    .collect();
                pair.real.retain(|chunk| !lost.contains(chunk));
            }
        }
    }

    fn can_prove(&self, owner: usize, holder: usize, chunk: u32) -> bool {
        let has = |holder: usize| self.pairs[&(owner, holder)].real.contains(&chunk);
        let asks_partner = self.peers[holder].kind == Kind::Colluding;
        has(holder)
            || (asks_partner
                && (0..self.peers.len())
                    .any(|other| other != owner && self.peers[other].kind == Kind::Colluding && has(other)))
    }

    fn audit(&mut self, owner: usize, holder: usize) {
        let due: Vec<(u32, Copy)> = self.pairs[&(owner, holder)]
            .copies
            .iter()
            .map(|(chunk, copy)| (*chunk, *copy))
            .filter(|(_, copy)| match copy.proven_at {
                0 => self.now >= copy.stored_at + FIRST_AUDIT_S || self.dice.below(TICKS_A_DAY) == 0,
                proven_at => self.now >= proven_at + 27 * 86_400 || self.dice.below(AUDIT_TICKS) == 0,
            })
            .collect();
        for (chunk, copy) in due {
            let is_proven = self.can_prove(owner, holder, chunk);
            let (now, kind) = (self.now, self.peers[holder].kind);
            let pair = self.pairs.get_mut(&(owner, holder)).expect("all pairs are there");
            if is_proven {
                pair.copies.get_mut(&chunk).expect("it is due").proven_at = now;
                pair.passed_at = now;
                if kind == Kind::Lying {
                    pair.real.remove(&chunk);
                }
            } else {
                pair.copies.remove(&chunk);
                let since = if copy.proven_at == 0 { now } else { copy.proven_at };
                pair.lost += u128::from(GIB) * u128::from(now - since);
                pair.failed_at = now;
                self.year.lost += 1;
            }
        }
    }

    fn place(&mut self, owner: usize) {
        let wanted = u64::from(self.peers[owner].chunks_max);
        if u64::from(self.peers[owner].chunks) < wanted && self.dice.below(TICKS_A_DAY * 200 / wanted) == 0 {
            self.peers[owner].chunks += 1;
        }
        let mut candidates = Vec::new();
        for holder in (0..self.peers.len()).filter(|holder| *holder != owner) {
            let keeps = self.peers[holder].kind != Kind::Greedy && self.peers[holder].is_on;
            let is_lately_false = self.pairs[&(owner, holder)].failed_at + 86_400 > self.now
                && self.pairs[&(owner, holder)].failed_at > 0
                && matches!(self.peers[holder].kind, Kind::Lying | Kind::Empty);
            if !keeps || is_lately_false {
                continue;
            }
            let facts = self.facts(holder, owner);
            let stored: u64 = (0..self.peers.len())
                .filter(|other| *other != holder)
                .map(|other| self.pairs[&(other, holder)].copies.len() as u64 * GIB)
                .sum();
            let room = allowed(&facts).bytes.unwrap_or(u64::MAX).saturating_sub(facts.used_bytes);
            let ours = self.facts(owner, holder);
            candidates.push(Candidate {
                cell: CellNumber(holder as i64),
                is_favorite: false,
                has_credit: has_credit(&ours, facts.used_bytes, ours.used_bytes),
                pace: Pace(17),
                free: room.min(self.peers[holder].disk_bytes.saturating_sub(stored)),
            });
        }
        let deficits: Vec<Deficit> = (0..self.peers[owner].chunks)
            .map(|chunk| {
                let holds = |holder: &usize| {
                    *holder != owner
                        && !self.is_away(*holder)
                        && self.pairs[&(owner, *holder)].copies.contains_key(&chunk)
                };
                let holders =
                    (0..self.peers.len()).filter(holds).map(|holder| CellNumber(holder as i64)).collect();
                Deficit { chunk: ChunkId(chunk.into()), len: GIB as u32, holders }
            })
            .filter(|deficit| (deficit.holders.len() as u64) < COPIES)
            .collect();
        let targets = plan(&deficits, &mut candidates, &Sites::default(), COPIES);
        for (deficit, targets) in deficits.iter().zip(targets) {
            for target in targets {
                self.give(owner, target.0 as usize, deficit.chunk.0 as u32);
            }
        }
    }

    fn give(&mut self, owner: usize, holder: usize, chunk: u32) {
        let kind = self.peers[holder].kind;
        let partner_has = (0..self.peers.len()).any(|other| {
            other != owner
                && other != holder
                && self.peers[other].kind == Kind::Colluding
                && self.pairs[&(owner, other)].real.contains(&chunk)
        });
        let now = self.now;
        let pair = self.pairs.get_mut(&(owner, holder)).expect("all pairs are there");
        pair.copies.insert(chunk, Copy { stored_at: now, proven_at: 0 });
        if kind != Kind::Empty && (kind != Kind::Colluding || !partner_has) {
            pair.real.insert(chunk);
        }
    }

    // ---- Figures ----

    fn count(&mut self, us: usize, them: usize) {
        let seen = Seen { now: self.now, since: 0, sums: self.sums(us, them) };
        let counts = &mut self.account(us, them).counts;
        let before = *counts;
        counts.take(&seen);
        self.peers[us].saved.insert(them, before);
    }

    fn told(&self, us: usize, them: usize) -> Heard {
        let account = &self.peers[us].accounts[&them];
        let counts: &Counts = &account.counts;
        Heard {
            life: 1,
            measured: counts.measured(),
            waiting: counts.waiting(),
            forfeited: counts.forfeited(),
            debt: counts.debt(),
            claimed: counts.claim.low(),
            unix_s: self.wall(),
            disagrees: account.heard.is_some_and(|heard| heard.short.is_some()),
        }
    }

    fn hear(
        &mut self,
        us: usize,
        them: usize,
        heard: Heard,
        newest: Option<&Statement>,
    ) -> Result<(), String> {
        let (our_id, their_id) = (self.peers[us].identity.id(), self.peers[them].identity.id());
        let side = Side::of(&our_id, &their_id);
        let (now, wall) = (self.now, self.wall());
        let peer = &mut self.peers[us];
        let account = peer.accounts.entry(them).or_default();
        if let Some(given) = newest {
            match judge(&our_id, &their_id, account.newest.as_ref(), given) {
                Ok(Taken::Newer) => {
                    peer.books
                        .take_statement(&their_id, side, given, account)
                        .map_err(|why| format!("{us} cannot post: {why}"))?;
                }
                Ok(Taken::Known) => {}
                Err(why) => return Err(format!("{us} refuses what {them} shows: {why}")),
            }
        }
        let signed = account.newest.clone();
        let signed = signed.as_ref().map(|newest| (newest.body(), side));
        let verdict = compare(&mut account.counts.claim, heard.measured, &heard, signed, now, wall);
        let short = if let Verdict::Short(cause) = verdict { Some(cause) } else { None };
        account.heard = Some(HeardAt { at: wall, heard, short });
        Ok(())
    }

    fn arrives(&mut self) -> bool {
        let arrives = !self.dice.percent(10);
        self.year.messages_lost += u64::from(!arrives);
        arrives
    }

    /// One exchange; any message of it may be lost, and either cell may have forgotten what it had not saved.
    fn settle(&mut self, one: usize, other: usize) -> Result<(), String> {
        let id = |world: &Self, peer: usize| world.peers[peer].identity.id();
        let (low, high) = if id(self, one).0 < id(self, other).0 { (one, other) } else { (other, one) };
        for (us, them) in [(low, high), (high, low)] {
            if self.dice.percent(5) {
                let mut found =
                    self.peers[us].books.bounty_book(&id(self, them)).map_err(|why| why.to_string())?;
                found.counts = self.peers[us].saved.get(&them).copied().unwrap_or_default();
                self.peers[us].accounts.insert(them, found);
                self.count(us, them);
            }
        }
        let newest = |world: &Self, us: usize, them: usize| world.peers[us].accounts[&them].newest.clone();
        let (asked, shown) = (self.told(low, high), newest(self, low, high));
        if !self.arrives() {
            return Ok(());
        }
        self.hear(high, low, asked, shown.as_ref())?;
        let (low_id, high_id, wall) = (id(self, low), id(self, high), self.wall());
        let peer = &mut self.peers[high];
        let account = peer.accounts.entry(low).or_default();
        let mut proposal = None;
        if let Some(HeardAt { heard, short: None, .. }) = account.heard {
            let measured = [account.counts.measured(), heard.measured];
            let cells = [low_id, high_id];
            if let Some(body) =
                propose(cells, account.newest.as_ref(), account.proposed, [1, 1], measured, wall)
            {
                peer.books.note_proposed(&low_id, body.seq).map_err(|why| why.to_string())?;
                account.proposed = body.seq;
                proposal = Some(Statement::sign(&peer.identity, body).map_err(|why| why.to_string())?);
            }
        }
        peer.books.save_counts(&low_id, account).map_err(|why| why.to_string())?;
        let (answered, shown) = (self.told(high, low), newest(self, high, low));
        if !self.arrives() {
            return Ok(());
        }
        self.hear(low, high, answered, shown.as_ref())?;
        let Some(proposal) = proposal else { return Ok(()) };
        let now = self.now;
        let peer = &mut self.peers[low];
        let account = peer.accounts.entry(high).or_default();
        let heard = account.heard.map(|heard| heard.heard).unwrap_or_default();
        let figure = proposal.stored_by(Side::Low);
        let before = account.newest.clone();
        let signed = before.as_ref().map(|newest| (newest.body(), Side::Low));
        let verdict = compare(&mut account.counts.claim, figure, &heard, signed, now, wall);
        let measured = account.counts.measured();
        match check_proposal(&low_id, account.newest.as_ref(), &proposal, 1, measured, verdict, wall) {
            Ok(()) => {
                let whole = proposal.signed_by(&peer.identity).map_err(|why| why.to_string())?;
                peer.books
                    .take_statement(&high_id, Side::Low, &whole, account)
                    .map_err(|why| format!("{low} cannot post: {why}"))?;
                self.year.statements += 1;
            }
            Err(Refused::Disputed(_)) => {}
            Err(why) => return Err(format!("{low} does not sign what {high} proposes: {why}")),
        }
        peer.books.save_counts(&high_id, account).map_err(|why| why.to_string())?;
        let (confirmed, shown) = (self.told(low, high), newest(self, low, high));
        if self.arrives() {
            self.hear(high, low, confirmed, shown.as_ref())?;
        }
        Ok(())
    }

    // ---- Rules ----

    fn is_right(&self, peer: usize) -> bool {
        matches!(self.peers[peer].kind, Kind::Honest | Kind::OftenOff)
    }

    /// What holds at every step.
    fn check_step(&self) -> Result<(), String> {
        for ((owner, holder), pair) in &self.pairs {
            let used = pair.copies.len() as u64 * GIB;
            if self.peers[*owner].kind == Kind::Greedy && used > BASE_BYTES {
                return Err(format!("greedy {owner} has {used} bytes with {holder}"));
            }
            let (owner_is_right, holder_is_right) = (self.is_right(*owner), self.is_right(*holder));
            let disputed = self.facts(*holder, *owner).is_disputed;
            if owner_is_right && holder_is_right && disputed {
                let account = &self.peers[*holder].accounts[owner];
                return Err(format!(
                    "honest {holder} disputes with honest {owner}: {:?}, claims {} to {}",
                    account.heard,
                    account.counts.claim.low(),
                    account.counts.claim.high()
                ));
            }
            // Whoever dropped what it was given is found out within the audit period, if both are here.
            let is_liar = self.peers[*holder].kind == Kind::Lying;
            if is_liar && self.peers[*owner].is_on && self.peers[*holder].is_on {
                let fake = pair.copies.iter().filter(|(chunk, _)| !pair.real.contains(chunk));
                for (chunk, copy) in fake {
                    let age = self.now - copy.proven_at.max(copy.stored_at);
                    if age > 31 * 86_400 + 5 * 86_400 {
                        return Err(format!(
                            "{holder} has said for {age} s that it holds {chunk} of {owner}"
                        ));
                    }
                }
            }
        }
        Ok(())
    }

    fn check_books(&self) -> Result<(), String> {
        for (at, peer) in self.peers.iter().enumerate() {
            let faults = peer.books.bounty_faults().map_err(|why| why.to_string())?;
            if !faults.is_empty() {
                return Err(format!("the books of {at}: {faults:?}"));
            }
        }
        Ok(())
    }

    /// What an owner owes a holder for good: signed or not, less what is still to be taken off. Byte-hours.
    fn credit(&self, owner: usize, holder: usize) -> u64 {
        let counts = &self.peers[owner].accounts[&holder].counts;
        counts.measured().saturating_sub(counts.debt())
    }

    fn check_end(&mut self) -> Result<(), String> {
        let mut per_peer: BTreeMap<usize, (u64, u64)> = BTreeMap::new();
        for ((owner, holder), pair) in &self.pairs {
            if !self.is_right(*owner) {
                continue;
            }
            let (credit, stored) =
                (self.credit(*owner, *holder), u64::try_from(pair.stored / 3600).unwrap_or(u64::MAX));
            let sums = per_peer.entry(*holder).or_default();
            *sums = (sums.0 + credit, sums.1 + stored);
            let unfound: u64 = pair
                .copies
                .iter()
                .filter(|(chunk, _)| !pair.real.contains(chunk))
                .map(|(_, copy)| GIB * ((self.now - copy.proven_at.max(copy.stored_at)) / HOUR_S + 2))
                .sum();
            match self.peers[*holder].kind {
                // What a cheat has dropped pays nothing but for the time that is not asked for yet.
                Kind::Lying if credit > stored + unfound + stored / 50 => {
                    return Err(format!(
                        "liar {holder} has {credit} of {owner} for {stored} and {unfound} not found yet"
                    ));
                }
                Kind::Greedy | Kind::Empty if credit > 0 => {
                    return Err(format!("{holder} keeps nothing and has earned {credit} of {owner}"));
                }
                Kind::Honest | Kind::OftenOff if credit * 100 < stored * 95 => {
                    return Err(format!("honest {holder} has {credit} of {owner} for {stored}"));
                }
                _ => {}
            }
        }
        for peer in 0..self.peers.len() {
            let kind = self.peers[peer].kind;
            let (credit, stored) = per_peer.get(&peer).copied().unwrap_or_default();
            let sums = self.year.earned.entry(kind).or_default();
            *sums = (sums.0 + credit / LEAF_BYTE_HOURS, sums.1 + stored / LEAF_BYTE_HOURS);
            *self.year.peers.entry(kind).or_default() += 1;
        }
        // Whoever is often off is never worse off than a cheat.
        let most = |wanted: &[Kind]| {
            let of = |peer: &usize| wanted.contains(&self.peers[*peer].kind);
            let credit = |peer: usize| per_peer.get(&peer).map_or(0, |sums| sums.0);
            let all: Vec<u64> = (0..self.peers.len()).filter(of).map(credit).collect();
            (all.iter().copied().min().unwrap_or(0), all.iter().copied().max().unwrap_or(0))
        };
        let (least_off, cheats) =
            (most(&[Kind::OftenOff]).0, most(&[Kind::Greedy, Kind::Lying, Kind::Empty]).1);
        if least_off < cheats {
            return Err(format!("who is often off has {least_off}, and a cheat {cheats}"));
        }
        // Honest peers have their copies.
        for owner in (0..self.peers.len()).filter(|owner| self.is_right(*owner)) {
            for chunk in 0..self.peers[owner].chunks {
                let counted = (0..self.peers.len())
                    .filter(|holder| *holder != owner && !self.is_away(*holder))
                    .filter(|holder| self.pairs[&(owner, *holder)].copies.contains_key(&chunk))
                    .count() as u64;
                if counted < COPIES {
                    return Err(format!("chunk {chunk} of honest {owner} has {counted} copies"));
                }
            }
        }
        // And both sides of each pair that settled have the same figures, once messages have come through.
        for one in 0..self.peers.len() {
            for other in one + 1..self.peers.len() {
                let (Some(ours), Some(theirs)) =
                    (self.peers[one].accounts.get(&other), self.peers[other].accounts.get(&one))
                else {
                    continue;
                };
                if ours.newest.as_ref().map(Statement::hash) != theirs.newest.as_ref().map(Statement::hash) {
                    return Err(format!("{one} and {other} have different statements"));
                }
            }
        }
        Ok(())
    }

    fn step(&mut self) -> Result<(), String> {
        self.now += TICK_S;
        for pair in self.pairs.values_mut() {
            pair.stored += u128::from(GIB) * u128::from(TICK_S) * pair.real.len() as u128;
        }
        self.switch();
        self.forget();
        let count = self.peers.len();
        for owner in 0..count {
            for holder in (0..count).filter(|holder| *holder != owner) {
                if self.peers[owner].is_on && self.peers[holder].is_on {
                    self.audit(owner, holder);
                }
            }
        }
        for one in 0..count {
            for other in one + 1..count {
                if !(self.peers[one].is_on && self.peers[other].is_on) {
                    continue;
                }
                self.count(one, other);
                self.count(other, one);
                if self.now >= self.pairs[&(one, other)].settle_at {
                    self.settle(one, other)?;
                    let next = self.now + SETTLE_S;
                    self.pairs.get_mut(&(one, other)).expect("all pairs are there").settle_at = next;
                }
            }
        }
        for owner in 0..count {
            if self.peers[owner].is_on {
                self.place(owner);
            }
        }
        self.check_step()
    }

    /// Messages come through, so that all know the same.
    fn come_to_rest(&mut self) -> Result<(), String> {
        let count = self.peers.len();
        self.peers.iter_mut().for_each(|peer| (peer.is_on, peer.switch_at) = (true, u64::MAX));
        for _ in 0..3 * TICKS_A_DAY {
            self.step()?;
        }
        for _ in 0..6 {
            for one in 0..count {
                for other in one + 1..count {
                    self.settle(one, other)?;
                }
            }
        }
        Ok(())
    }
}

/// A year of so many days, perhaps with a rule that is broken on purpose; what broke a rule, in words.
pub fn year(seed: u64, days: u64, sabotage: Option<Sabotage>) -> Result<Year, String> {
    let mut world = World::new(seed);
    world.guard.sabotage(sabotage);
    for day in 0..days {
        for _ in 0..TICKS_A_DAY {
            world.step().map_err(|why| format!("day {day}: {why}"))?;
        }
        world.check_books().map_err(|why| format!("day {day}: {why}"))?;
    }
    world.come_to_rest()?;
    world.check_books()?;
    world.check_end()?;
    let frozen = (0..world.peers.len()).flat_map(|holder| {
        let world = &world;
        (0..world.peers.len())
            .filter(move |owner| *owner != holder && world.is_right(*owner) && world.is_right(holder))
            .filter(move |owner| {
                matches!(allowed(&world.facts(holder, *owner)).why, Why::Disputed | Why::Suspended)
            })
    });
    match frozen.count() {
        0 => Ok(world.year),
        count => Err(format!("{count} honest pairs are frozen at the end")),
    }
}

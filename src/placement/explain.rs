//! What there is to say of the copies of a file: how many, where, when proven, what is planned, and what endangers it.
//! Plain functions of chunks, copies and peers; what is planned is what `planner` plans.

use std::collections::{BTreeMap, HashMap};

use super::planner::{self, Candidate, Deficit, Holder, Pace, Site, Sites, Why};
use super::{CellNumber, ChunkId, Copy, CopyState, Extra};
use crate::id::CellId;

/// How a peer stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Connected, and counted on.
    Here,
    /// Not connected; it is waited for.
    Silent,
    /// Not connected for so long that its copies are not counted.
    Away,
    /// Connected again after that, and not yet for long enough to let go of the copies made meanwhile.
    Settling,
}

impl Standing {
    /// A word for programs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Here => "here",
            Self::Silent => "silent",
            Self::Away => "away",
            Self::Settling => "settling",
        }
    }
}

/// A peer as a holder of copies, at one moment.
#[derive(Debug, Clone)]
pub struct Peer {
    /// Which.
    pub cell: CellNumber,
    /// Who.
    pub id: CellId,
    /// Its name.
    pub name: String,
    /// Gets chunks first.
    pub is_favorite: bool,
    /// How it stands.
    pub standing: Standing,
    /// Seconds of its silence that count: those in which another peer was here. 0 while it is here.
    pub silent_s: u64,
    /// Seconds since it was last heard; `None`: never.
    pub seen_s: Option<u64>,
    /// Silent for so long, it is not counted on any more. s.
    pub grace_s: u64,
    /// While it settles: for so long still. s.
    pub settle_left_s: u64,
    /// Part of the watched time of 30 days in which it was here. Thousandths; `None`: not watched yet.
    pub uptime: Option<u64>,
    /// That time. s.
    pub watched_s: u64,
    /// It takes no more.
    pub is_full: bool,
    /// It gets nothing new because of its proofs.
    pub is_suspended: bool,
    /// Where it is, as far as is known.
    pub site: Option<Site>,
    /// How fast it is given a chunk.
    pub pace: Pace,
}

impl Peer {
    /// Connected now.
    pub fn is_connected(&self) -> bool {
        matches!(self.standing, Standing::Here | Standing::Settling)
    }

    /// `here` in this cell's network, `elsewhere`, or `unknown`.
    pub fn place(&self) -> &'static str {
        match self.site {
            Some(Site::HERE) => "here",
            Some(_) => "elsewhere",
            None => "unknown",
        }
    }
}

/// All that a plan depends on, at one moment.
#[derive(Debug, Clone, Default)]
pub struct Fleet {
    /// All peers, in the order in which they came.
    pub peers: Vec<Peer>,
    /// Those that can be given chunks.
    pub candidates: Vec<Candidate>,
    /// Where they are.
    pub sites: Sites,
    /// Chunks on their way.
    pub in_flight: HashMap<ChunkId, Vec<CellNumber>>,
    /// Copies wanted in all where a folder says nothing else, this cell's own among them.
    pub copies: u64,
    /// Observed day.
    pub today: u64,
    /// The cell runs: what is planned is done.
    pub is_running: bool,
    /// Copies too many may go.
    pub may_release: bool,
}

impl Fleet {
    /// A peer by its number.
    pub fn peer(&self, cell: CellNumber) -> Option<&Peer> {
        self.peers.iter().find(|peer| peer.cell == cell)
    }
}

/// A chunk and its copies.
#[derive(Debug, Clone)]
pub struct Facts {
    /// Which.
    pub id: ChunkId,
    /// Sealed bytes.
    pub len: u32,
    /// It lies in this cell's store.
    pub is_here: bool,
    /// Copies wanted of it in all, this cell's own among them.
    pub wanted: u64,
    /// Whether peers should have one copy more.
    pub extra: Extra,
    /// All copies with peers.
    pub copies: Vec<Copy>,
}

/// Why a missing copy is not planned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stuck {
    /// There is no peer at all.
    NoPeers,
    /// Every peer has one already.
    TooFewPeers,
    /// Those that could take one are not connected.
    NotConnected,
    /// Those that could take one have no room.
    NoRoom,
    /// The one that could take one gets nothing new because of its proofs.
    Suspended,
    /// The cell does not run.
    NotRunning,
    /// Nobody who is reached has the bytes.
    NoBytes,
}

impl Stuck {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::NoPeers,
        Self::TooFewPeers,
        Self::NotConnected,
        Self::NoRoom,
        Self::Suspended,
        Self::NotRunning,
        Self::NoBytes,
    ];

    /// A word for programs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoPeers => "no_peers",
            Self::TooFewPeers => "too_few_peers",
            Self::NotConnected => "not_connected",
            Self::NoRoom => "no_room",
            Self::Suspended => "suspended",
            Self::NotRunning => "not_running",
            Self::NoBytes => "no_bytes",
        }
    }

    /// What the matter is, and what to do.
    pub fn words(self) -> (&'static str, &'static str) {
        match self {
            Self::NoPeers => ("there is no peer yet", "bring one in with `grove invite`"),
            Self::TooFewPeers => (
                "every peer has a copy already, and more copies are wanted than there are cells",
                "bring another peer in with `grove invite`, or lower the number: `grove copies FOLDER N` for a folder, \"copies\" in config.json for all",
            ),
            Self::NotConnected => ("the peers that could take one are not connected", "switch them on"),
            Self::NoRoom => (
                "no peer that is connected has room",
                "free space there, ask for a larger quota, bring another peer in with `grove invite`, or keep fewer copies of a folder with \
                 `grove copies FOLDER N`",
            ),
            Self::Suspended => (
                "the peer that could take one gave false proofs or lost much, and gets nothing new for a day",
                "see `grove peers`; bring another peer in with `grove invite`",
            ),
            Self::NotRunning => ("this cell is not running", "start it with `grove run`"),
            Self::NoBytes => (
                "none of the cells that are reached has all of its bytes",
                "switch on the peers that hold it; `grove verify` names what is missing",
            ),
        }
    }
}

/// Chunks of a file with one peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// All of them.
    pub chunks: u64,
    /// Of them: a proof was asked for in vain.
    pub suspect: u64,
    /// Not counted, for the peer is away.
    pub away: u64,
    /// To be let go; not among `chunks`.
    pub leaving: u64,
    /// Never proven.
    pub unproven: u64,
    /// Observed day of the oldest proof among them; 0: there is none.
    pub proven: u64,
}

/// Copies on the way to a peer, or soon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Planned {
    /// How many chunks.
    pub chunks: u64,
    /// Their sealed bytes.
    pub bytes: u64,
    /// They are being sent now.
    pub is_sent: bool,
    /// Why to this peer.
    pub why: Why,
}

/// How much a file is endangered, the worst first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Risk {
    /// No cell is known to have all of its bytes.
    Gone,
    /// Some of it lies with peers only that have been silent too long.
    OnlyAway,
    /// Some of it has one copy in all, and more are wanted.
    Alone,
    /// Some of it has fewer copies than wanted.
    Short,
    /// It has its copies, and one of them is in doubt.
    Doubt,
    /// All is as it should be.
    Fine,
}

impl Risk {
    /// A word for programs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Gone => "gone",
            Self::OnlyAway => "only_away",
            Self::Alone => "alone",
            Self::Short => "short",
            Self::Doubt => "doubt",
            Self::Fine => "fine",
        }
    }

    /// Fewer copies than wanted, or worse.
    pub fn is_short(self) -> bool {
        self < Self::Doubt
    }
}

/// What can be said of the copies of one file: the sum over its chunks.
#[derive(Debug, Clone)]
pub struct Tally {
    /// Chunks of it.
    pub chunks: u64,
    /// Sealed bytes of them.
    pub bytes: u64,
    /// Chunks that lie in this cell's store.
    pub here: u64,
    /// The fewest copies that any chunk has, this cell's among them, those not counted left out.
    pub least: u64,
    /// Copies wanted in all.
    pub wanted: u64,
    /// Chunks with fewer copies than wanted.
    pub short: u64,
    /// Peers should have a copy more, for the file is freed here or to be.
    pub is_freed: bool,
    /// Peers that have chunks of it.
    pub holders: BTreeMap<CellNumber, Held>,
    /// What peers get.
    pub planned: BTreeMap<CellNumber, Planned>,
    /// What they would get if the silent peers that hold it stayed away.
    pub then: BTreeMap<CellNumber, u64>,
    /// Chunks that get no copy, and why.
    pub stuck: BTreeMap<Stuck, u64>,
    /// Copies too many: whose go, once `settles_s` are over.
    pub too_many: BTreeMap<CellNumber, u64>,
    /// A peer that came back is waited for so long before. s.
    pub settles_s: u64,
    risk: Risk,
}

impl Default for Tally {
    fn default() -> Self {
        Self {
            chunks: 0,
            bytes: 0,
            here: 0,
            least: u64::MAX,
            wanted: 0,
            short: 0,
            is_freed: false,
            holders: BTreeMap::new(),
            planned: BTreeMap::new(),
            then: BTreeMap::new(),
            stuck: BTreeMap::new(),
            too_many: BTreeMap::new(),
            settles_s: 0,
            risk: Risk::Fine,
        }
    }
}

fn is_counted(copy: &&Copy) -> bool {
    matches!(copy.state, CopyState::Stored | CopyState::Suspect)
}

impl Tally {
    /// How endangered the file is.
    pub fn risk(&self) -> Risk {
        self.risk
    }

    /// A chunk that the catalog names and nobody is known to have.
    pub fn add_unknown(&mut self) {
        self.chunks += 1;
        self.short += 1;
        self.least = 0;
        self.risk = Risk::Gone;
        *self.stuck.entry(Stuck::NoBytes).or_default() += 1;
    }

    /// Takes in a chunk. `candidates` begin as the fleet's; what is planned is taken from their free space.
    pub fn add(&mut self, chunk: &Facts, fleet: &Fleet, candidates: &mut [Candidate]) {
        self.chunks += 1;
        self.bytes += u64::from(chunk.len);
        self.here += u64::from(chunk.is_here);
        self.is_freed |= chunk.extra != Extra::No;
        let on_peers = planner::on_peers(chunk.wanted, chunk.extra, chunk.is_here);
        self.wanted = self.wanted.max(chunk.wanted).max(on_peers);
        for copy in &chunk.copies {
            self.add_copy(copy);
        }
        let counted: Vec<CellNumber> = chunk.copies.iter().filter(is_counted).map(|copy| copy.cell).collect();
        let total = counted.len() as u64 + u64::from(chunk.is_here);
        self.least = self.least.min(total);
        let is_short = (counted.len() as u64) < on_peers || total == 0;
        self.short += u64::from(is_short);
        self.risk = self.risk.min(self.risk_of(chunk, fleet, total, is_short));
        if is_short {
            self.plan(chunk, fleet, candidates, counted, on_peers);
        } else if counted.len() as u64 > on_peers {
            self.plan_letting_go(chunk, fleet, on_peers);
        } else {
            self.plan_for_silence(chunk, fleet, candidates, &counted, on_peers);
        }
    }

    fn add_copy(&mut self, copy: &Copy) {
        let none = Held { chunks: 0, suspect: 0, away: 0, leaving: 0, unproven: 0, proven: 0 };
        let held = self.holders.entry(copy.cell).or_insert(none);
        if copy.state == CopyState::ToRelease {
            held.leaving += 1;
            return;
        }
        held.chunks += 1;
        held.suspect += u64::from(copy.state == CopyState::Suspect);
        held.away += u64::from(copy.state == CopyState::Away);
        held.unproven += u64::from(copy.proven == 0);
        if copy.proven > 0 {
            held.proven = if held.proven == 0 { copy.proven } else { held.proven.min(copy.proven) };
        }
    }

    fn risk_of(&self, chunk: &Facts, fleet: &Fleet, total: u64, is_short: bool) -> Risk {
        let is_away = |copy: &Copy| copy.state == CopyState::Away;
        let is_silent =
            |copy: &&Copy| fleet.peer(copy.cell).is_some_and(|peer| peer.standing == Standing::Silent);
        let is_doubtful = chunk
            .copies
            .iter()
            .filter(is_counted)
            .any(|copy| copy.state == CopyState::Suspect || (fleet.is_running && is_silent(&copy)));
        match () {
            () if total == 0 && chunk.copies.iter().any(is_away) => Risk::OnlyAway,
            () if total == 0 => Risk::Gone,
            () if is_short && total == 1 => Risk::Alone,
            () if is_short => Risk::Short,
            () if is_doubtful => Risk::Doubt,
            () => Risk::Fine,
        }
    }

    fn plan(
        &mut self,
        chunk: &Facts,
        fleet: &Fleet,
        candidates: &mut [Candidate],
        mut holders: Vec<CellNumber>,
        on_peers: u64,
    ) {
        if !chunk.is_here && holders.is_empty() {
            *self.stuck.entry(Stuck::NoBytes).or_default() += 1;
            return;
        }
        let on_way = fleet.in_flight.get(&chunk.id).map_or(&[][..], Vec::as_slice);
        for cell in on_way {
            self.note_planned(*cell, chunk.len, true, Why::Only);
        }
        holders.extend(on_way);
        let deficit = Deficit { chunk: chunk.id, len: chunk.len, holders };
        let planned = match fleet.is_running {
            true => planner::plan_with_reasons(&deficit, candidates, &fleet.sites, on_peers),
            false => Vec::new(),
        };
        let have = (deficit.holders.len() + planned.len()) as u64;
        for (cell, why) in planned {
            self.note_planned(cell, chunk.len, false, why);
        }
        if have < on_peers {
            *self.stuck.entry(why_stuck(&deficit, fleet)).or_default() += 1;
        }
    }

    fn note_planned(&mut self, cell: CellNumber, len: u32, is_sent: bool, why: Why) {
        let planned = self.planned.entry(cell).or_insert(Planned { chunks: 0, bytes: 0, is_sent, why });
        planned.chunks += 1;
        planned.bytes += u64::from(len);
        planned.is_sent |= is_sent;
    }

    /// What becomes of a chunk whose holders are partly silent, if they stay so.
    fn plan_for_silence(
        &mut self,
        chunk: &Facts,
        fleet: &Fleet,
        candidates: &[Candidate],
        counted: &[CellNumber],
        on_peers: u64,
    ) {
        let is_silent =
            |cell: &CellNumber| fleet.peer(*cell).is_some_and(|peer| peer.standing == Standing::Silent);
        if !fleet.is_running || !counted.iter().any(is_silent) {
            return;
        }
        let holders = counted.iter().filter(|cell| !is_silent(cell)).copied().collect();
        let deficit = Deficit { chunk: chunk.id, len: chunk.len, holders };
        let mut candidates = candidates.to_vec();
        for target in planner::plan(&[deficit], &mut candidates, &fleet.sites, on_peers).concat() {
            *self.then.entry(target).or_default() += 1;
        }
    }

    fn plan_letting_go(&mut self, chunk: &Facts, fleet: &Fleet, on_peers: u64) {
        let holder = |copy: &Copy| {
            let peer = fleet.peer(copy.cell);
            Holder {
                cell: copy.cell,
                is_favorite: peer.is_some_and(|peer| peer.is_favorite),
                is_solid: peer.is_some_and(|peer| peer.is_connected() && !peer.is_suspended),
                is_settling: false,
                is_suspect: copy.state == CopyState::Suspect,
                proven: copy.proven,
                pace: peer.map_or(Pace(u8::MAX), |peer| peer.pace),
            }
        };
        let holders: Vec<Holder> = chunk.copies.iter().filter(is_counted).map(holder).collect();
        for holder in &holders {
            let left = fleet.peer(holder.cell).map_or(0, |peer| peer.settle_left_s);
            self.settles_s = self.settles_s.max(left);
        }
        for cell in planner::surplus(&holders, &fleet.sites, on_peers) {
            *self.too_many.entry(cell).or_default() += 1;
        }
    }
}

/// Why nobody is given a copy that is missing.
fn why_stuck(deficit: &Deficit, fleet: &Fleet) -> Stuck {
    let others: Vec<&Peer> =
        fleet.peers.iter().filter(|peer| !deficit.holders.contains(&peer.cell)).collect();
    let connected: Vec<&&Peer> = others.iter().filter(|peer| peer.is_connected()).collect();
    match () {
        () if fleet.peers.is_empty() => Stuck::NoPeers,
        () if others.is_empty() => Stuck::TooFewPeers,
        () if !fleet.is_running => Stuck::NotRunning,
        () if connected.is_empty() => Stuck::NotConnected,
        () if connected.iter().all(|peer| peer.is_suspended) => Stuck::Suspended,
        () => Stuck::NoRoom,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(cell: i64, standing: Standing) -> Peer {
        Peer {
            cell: CellNumber(cell),
            id: CellId([cell as u8; 32]),
            name: format!("peer {cell}"),
            is_favorite: false,
            standing,
            silent_s: 0,
            seen_s: Some(0),
            grace_s: 3600,
            settle_left_s: 0,
            uptime: None,
            watched_s: 0,
            is_full: false,
            is_suspended: false,
            site: None,
            pace: Pace(17),
        }
    }

    fn fleet(standings: &[Standing], copies: u64) -> Fleet {
        let peers: Vec<Peer> = standings.iter().zip(1..).map(|(s, cell)| peer(cell, *s)).collect();
        let candidates = peers
            .iter()
            .filter(|peer| peer.is_connected())
            .map(|peer| Candidate {
                cell: peer.cell,
                is_favorite: false,
                has_credit: true,
                pace: peer.pace,
                free: 1 << 30,
            })
            .collect();
        Fleet {
            peers,
            candidates,
            copies,
            today: 10,
            is_running: true,
            may_release: true,
            ..Fleet::default()
        }
    }

    fn copy(cell: i64, state: CopyState, proven: u64) -> Copy {
        Copy { chunk: ChunkId(1), cell: CellNumber(cell), state, proven }
    }

    fn told(fleet: &Fleet, is_here: bool, extra: Extra, copies: &[Copy]) -> Tally {
        let mut tally = Tally::default();
        let (id, wanted) = (ChunkId(1), fleet.copies);
        let facts = Facts { id, len: 100, is_here, wanted, extra, copies: copies.to_vec() };
        tally.add(&facts, fleet, &mut fleet.candidates.clone());
        tally
    }

    fn cells<T>(map: &BTreeMap<CellNumber, T>) -> Vec<i64> {
        map.keys().map(|cell| cell.0).collect()
    }

    use CopyState::{Away, Stored, Suspect, ToRelease};
    use Standing::{Here, Settling, Silent};

    #[test]
    fn a_file_without_peers_is_alone_and_says_why() {
        let tally = told(&fleet(&[], 2), true, Extra::No, &[]);
        assert_eq!((tally.risk(), tally.least, tally.wanted), (Risk::Alone, 1, 2));
        assert_eq!(tally.stuck.keys().copied().collect::<Vec<_>>(), [Stuck::NoPeers]);
        // Where one copy is wanted, one is enough.
        assert_eq!(told(&fleet(&[], 1), true, Extra::No, &[]).risk(), Risk::Fine);
    }

    #[test]
    fn a_missing_copy_goes_where_the_planner_says() {
        let tally = told(&fleet(&[Silent, Here], 2), true, Extra::No, &[]);
        assert_eq!((tally.risk(), cells(&tally.planned)), (Risk::Alone, vec![2]));
        assert_eq!(tally.planned[&CellNumber(2)].why, Why::Only);
        assert!(tally.stuck.is_empty());
        let tally = told(&fleet(&[Here], 3), true, Extra::No, &[copy(1, Stored, 9)]);
        assert_eq!((tally.risk(), tally.least), (Risk::Short, 2));
        assert!(tally.planned.is_empty() && tally.stuck.contains_key(&Stuck::TooFewPeers));
        let mut full = fleet(&[Here], 2);
        full.candidates[0].free = 99;
        assert!(told(&full, true, Extra::No, &[]).stuck.contains_key(&Stuck::NoRoom));
        assert!(told(&fleet(&[Silent], 2), true, Extra::No, &[]).stuck.contains_key(&Stuck::NotConnected));
    }

    #[test]
    fn proofs_are_told_by_the_oldest_chunk_of_each_holder() {
        let fleet = fleet(&[Here], 2);
        let mut tally = told(&fleet, true, Extra::No, &[copy(1, Stored, 9)]);
        let facts = Facts {
            id: ChunkId(2),
            len: 1,
            is_here: true,
            wanted: 2,
            extra: Extra::No,
            copies: vec![copy(1, Stored, 4)],
        };
        tally.add(&facts, &fleet, &mut []);
        assert_eq!((tally.risk(), tally.holders[&CellNumber(1)].proven), (Risk::Fine, 4));
        assert_eq!(tally.holders[&CellNumber(1)].unproven, 0);
        assert_eq!(told(&fleet, true, Extra::No, &[copy(1, Suspect, 4)]).risk(), Risk::Doubt);
    }

    #[test]
    fn a_silent_holder_is_a_doubt_and_what_follows_is_told() {
        let tally = told(&fleet(&[Silent, Here], 2), true, Extra::No, &[copy(1, Stored, 9)]);
        assert_eq!((tally.risk(), cells(&tally.then), cells(&tally.planned)), (Risk::Doubt, vec![2], vec![]));
        // Once it is not counted on, the same is planned.
        let tally = told(&fleet(&[Standing::Away, Here], 2), true, Extra::No, &[copy(1, Away, 9)]);
        assert_eq!((tally.risk(), cells(&tally.planned)), (Risk::Alone, vec![2]));
        assert_eq!(tally.holders[&CellNumber(1)].away, 1);
    }

    #[test]
    fn freed_files_want_a_copy_more_and_may_lie_with_the_absent_only() {
        let fleet = fleet(&[Here, Here], 2);
        assert_eq!(
            told(&fleet, false, Extra::Freed, &[copy(1, Stored, 9), copy(2, Stored, 9)]).risk(),
            Risk::Fine
        );
        let tally = told(&fleet, false, Extra::Freed, &[copy(1, Stored, 9)]);
        assert_eq!((tally.risk(), cells(&tally.planned)), (Risk::Alone, vec![2]));
        assert_eq!(told(&fleet, false, Extra::Freed, &[copy(1, Away, 9)]).risk(), Risk::OnlyAway);
        let gone = told(&fleet, false, Extra::Freed, &[]);
        assert!(gone.risk() == Risk::Gone && gone.stuck.contains_key(&Stuck::NoBytes));
    }

    #[test]
    fn two_peers_keep_what_is_freed_however_few_copies_are_wanted() {
        let fleet = fleet(&[Here, Here, Here], 1);
        let tally = told(&fleet, false, Extra::Freed, &[copy(1, Stored, 9)]);
        assert_eq!((tally.risk(), tally.least, tally.wanted), (Risk::Alone, 1, 2));
        assert_eq!(tally.planned.len(), 1);
        let two = [copy(1, Stored, 9), copy(2, Stored, 9)];
        assert_eq!(told(&fleet, false, Extra::Freed, &two).risk(), Risk::Fine);
        let three = [two[0], two[1], copy(3, Stored, 9)];
        assert_eq!(told(&fleet, false, Extra::Freed, &three).too_many.len(), 1);
        // What should lie here and does not keeps its last copy; once it is here again, none is needed elsewhere.
        assert!(told(&fleet, false, Extra::No, &two[..1]).too_many.is_empty());
        assert_eq!(told(&fleet, true, Extra::No, &two[..1]).too_many.len(), 1);
    }

    #[test]
    fn copies_too_many_are_named_and_wait_for_who_settles() {
        let mut fleet = fleet(&[Settling, Here], 2);
        fleet.peers[0].settle_left_s = 500;
        let tally = told(&fleet, true, Extra::No, &[copy(1, Stored, 9), copy(2, Stored, 0)]);
        assert_eq!((tally.risk(), tally.settles_s, cells(&tally.too_many)), (Risk::Fine, 500, vec![2]));
        let tally = told(&fleet, true, Extra::No, &[copy(1, Stored, 9), copy(2, ToRelease, 0)]);
        assert_eq!((tally.least, tally.holders[&CellNumber(2)].leaving), (2, 1));
    }
}

//! Who should get what, and who may let go what: pure functions of copies, peers and the number of copies wanted.
//!
//! The same state gives the same plan whoever asks, so two rounds that plan at once agree; nothing is planned beyond the
//! wanted number, and a copy is given up only for others that can be counted on.

use std::collections::BTreeMap;

use super::{CellNumber, ChunkId, Extra};

/// Peers that hold what does not lie here because it is freed: at least so many, however few copies are wanted. One of them alone
/// would be all there is.
pub const FREED_COPIES_MIN: u64 = 2;

/// Copies that peers should have of a chunk of which `wanted` are wanted in all. Of what is freed here, or to be, as many as
/// are wanted in all, and two at least; of what should lie here and does not, one at least, for that is the last.
pub fn on_peers(wanted: u64, extra: Extra, is_here: bool) -> u64 {
    match extra {
        Extra::Wanted | Extra::Freed => wanted.max(FREED_COPIES_MIN),
        Extra::No => wanted.saturating_sub(1).max(u64::from(!is_here)),
    }
}

/// Copies that peers may keep of a chunk; those beyond are given up. What should lie here and does not is no copy: as long as
/// it is on its way, peers keep as many as are wanted in all.
pub fn at_most_on_peers(wanted: u64, extra: Extra, is_here: bool) -> u64 {
    let needed = on_peers(wanted, extra, is_here);
    if is_here { needed } else { needed.max(wanted) }
}

/// A place that burns down as one: cells in one local network share it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Site(pub u64);

impl Site {
    /// Where this cell is.
    pub const HERE: Self = Self(0);

    /// The place of a cell of which nothing is known but that it is not here: nobody else's.
    pub fn alone(cell: CellNumber) -> Self {
        Self(1 << 63 | cell.0 as u64)
    }
}

/// The places of peers. One that is not named is alone.
#[derive(Debug, Clone, Default)]
pub struct Sites(BTreeMap<CellNumber, Site>);

impl Sites {
    /// Notes where a peer is.
    pub fn set(&mut self, cell: CellNumber, site: Site) {
        self.0.insert(cell, site);
    }

    /// Where a peer is.
    pub fn of(&self, cell: CellNumber) -> Site {
        self.0.get(&cell).copied().unwrap_or_else(|| Site::alone(cell))
    }
}

/// How long a peer takes to be given one chunk, in doublings of a microsecond.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pace(pub u8);

impl Pace {
    /// Of a measured time. One that wavers around a border keeps the class that it had.
    pub fn of(us: u64, before: Option<Self>) -> Self {
        let class = |us: u64| (u64::BITS - us.leading_zeros()) as u8;
        match before {
            Some(before) if [class(us - us / 3), class(us.saturating_add(us / 3))].contains(&before.0) => {
                before
            }
            _ => Self(class(us)),
        }
    }
}

/// A peer that can be given chunks now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// Which.
    pub cell: CellNumber,
    /// Comes before all that are not.
    pub is_favorite: bool,
    /// The balance with it allows to store more there.
    pub has_credit: bool,
    /// How fast it is given a chunk.
    pub pace: Pace,
    /// Bytes it still takes from this cell.
    pub free: u64,
}

/// A chunk with fewer copies than wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deficit {
    /// Which.
    pub chunk: ChunkId,
    /// Sealed bytes.
    pub len: u32,
    /// Peers that hold it, or are being sent it.
    pub holders: Vec<CellNumber>,
}

/// Free space to four binary digits. What peers say of their disks is of different age; were it taken to the byte, two
/// peers whose disks fill could each look worse than the other in its own round, and neither would be sent anything.
pub fn coarse(free: u64) -> u64 {
    let digits = u64::BITS - free.leading_zeros();
    let lost = digits.saturating_sub(4);
    free >> lost << lost
}

/// Why a peer was chosen before the next best.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Why {
    /// Nobody else can take it now.
    Only,
    /// It is a favorite.
    Favorite,
    /// No copy lies at its place yet.
    Elsewhere,
    /// The balance with it allows to store more there.
    Credit,
    /// It is the faster one.
    Fast,
    /// It has more room.
    Room,
    /// Nothing tells the two apart.
    Equal,
}

/// Where among the candidates the one is that should be sent a chunk next, the one at `but` not counted.
fn best(
    deficit: &Deficit,
    targets: &[CellNumber],
    but: Option<usize>,
    candidates: &[Candidate],
    sites: &Sites,
) -> Option<usize> {
    let has = |cell: &CellNumber| deficit.holders.contains(cell) || targets.contains(cell);
    let taken: Vec<Site> = deficit.holders.iter().chain(targets).map(|cell| sites.of(*cell)).collect();
    let fits =
        |(at, c): &(usize, &Candidate)| Some(*at) != but && c.free >= u64::from(deficit.len) && !has(&c.cell);
    let fitting = candidates.iter().enumerate().filter(fits);
    let best = fitting.max_by_key(|(_, c)| {
        let site = sites.of(c.cell);
        let is_elsewhere = site != Site::HERE && !taken.contains(&site);
        let order = std::cmp::Reverse((c.pace, std::cmp::Reverse(coarse(c.free)), c.cell));
        (c.is_favorite, is_elsewhere, c.has_credit, order)
    });
    best.map(|(at, _)| at)
}

/// For each deficit the peers that should be sent it: favorites first; then those at a place where no copy is yet, this
/// cell's own place among them; then those with whom the balance allows it; then the fast ones; then those with most free space. Never more than bring it to `copies`
/// copies on peers. What is planned is taken from the candidates' free space.
pub fn plan(
    deficits: &[Deficit],
    candidates: &mut [Candidate],
    sites: &Sites,
    copies: u64,
) -> Vec<Vec<CellNumber>> {
    let targets = |deficit: &Deficit| {
        let mut targets: Vec<CellNumber> = Vec::new();
        while ((deficit.holders.len() + targets.len()) as u64) < copies {
            let Some(at) = best(deficit, &targets, None, candidates, sites) else { break };
            candidates[at].free -= u64::from(deficit.len);
            targets.push(candidates[at].cell);
        }
        targets
    };
    deficits.iter().map(targets).collect()
}

/// What `plan` gives for one deficit, and why it is those peers.
pub fn plan_with_reasons(
    deficit: &Deficit,
    candidates: &mut [Candidate],
    sites: &Sites,
    copies: u64,
) -> Vec<(CellNumber, Why)> {
    let before = candidates.to_vec();
    let targets = plan(std::slice::from_ref(deficit), candidates, sites, copies).remove(0);
    let reason = |nth: usize, target: CellNumber| {
        let chosen = before.iter().position(|c| c.cell == target);
        let second = best(deficit, &targets[..nth], chosen, &before, sites);
        let (Some(chosen), Some(second)) = (chosen, second) else { return Why::Only };
        let (chosen, second) = (&before[chosen], &before[second]);
        let taken: Vec<Site> =
            deficit.holders.iter().chain(&targets[..nth]).map(|cell| sites.of(*cell)).collect();
        let is_elsewhere = |c: &Candidate| {
            let site = sites.of(c.cell);
            site != Site::HERE && !taken.contains(&site)
        };
        match () {
            () if chosen.is_favorite != second.is_favorite => Why::Favorite,
            () if is_elsewhere(chosen) != is_elsewhere(second) => Why::Elsewhere,
            () if chosen.has_credit != second.has_credit => Why::Credit,
            () if chosen.pace != second.pace => Why::Fast,
            () if coarse(chosen.free) != coarse(second.free) => Why::Room,
            () => Why::Equal,
        }
    };
    targets.iter().enumerate().map(|(nth, target)| (*target, reason(nth, *target))).collect()
}

/// A peer that holds a copy which counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Holder {
    /// Which.
    pub cell: CellNumber,
    /// Comes before all that are not.
    pub is_favorite: bool,
    /// It is connected, it has been back for long enough if it was away, and it is not suspended.
    pub is_solid: bool,
    /// It was away and has not been back for long enough to rely on it.
    pub is_settling: bool,
    /// A proof of this copy was asked for in vain.
    pub is_suspect: bool,
    /// Observed day of the last proof of this copy; 0: never.
    pub proven: u64,
    /// How fast it is given a chunk.
    pub pace: Pace,
}

/// Of a chunk that has more copies on peers than `copies`, those that are not needed. None as long as one of the holders is
/// settling, or fewer than `copies` of the others can be relied on. Kept are, in this order: favorites, copies at places
/// where no other is, proven ones before those never proven, fast ones.
pub fn surplus(holders: &[Holder], sites: &Sites, copies: u64) -> Vec<CellNumber> {
    let wanted = copies as usize;
    let is_reliable = |holder: &&Holder| holder.is_solid && !holder.is_suspect;
    if holders.len() <= wanted
        || holders.iter().any(|holder| holder.is_settling)
        || holders.iter().filter(is_reliable).count() < wanted
    {
        return Vec::new();
    }
    let mut left: Vec<&Holder> = holders.iter().filter(is_reliable).collect();
    let mut kept: Vec<&Holder> = Vec::new();
    while kept.len() < wanted {
        let best = left.iter().enumerate().max_by_key(|(_, holder)| {
            let site = sites.of(holder.cell);
            let is_elsewhere = site != Site::HERE && kept.iter().all(|other| sites.of(other.cell) != site);
            let order = std::cmp::Reverse((holder.pace, holder.cell));
            (holder.is_favorite, is_elsewhere, holder.proven > 0, order)
        });
        let at = best.map(|(at, _)| at).expect("counted above");
        kept.push(left.swap_remove(at));
    }
    let is_kept = |cell: CellNumber| kept.iter().any(|holder| holder.cell == cell);
    holders.iter().map(|holder| holder.cell).filter(|cell| !is_kept(*cell)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(cell: i64, is_favorite: bool, free: u64) -> Candidate {
        Candidate { cell: CellNumber(cell), is_favorite, has_credit: true, pace: Pace(17), free }
    }

    fn deficit(chunk: i64, len: u32, holders: &[i64]) -> Deficit {
        let holders = holders.iter().map(|cell| CellNumber(*cell)).collect();
        Deficit { chunk: ChunkId(chunk), len, holders }
    }

    fn numbers(cells: Vec<CellNumber>) -> Vec<i64> {
        cells.into_iter().map(|cell| cell.0).collect()
    }

    fn planned_at(
        deficits: &[Deficit],
        candidates: &[Candidate],
        sites: &Sites,
        copies: u64,
    ) -> Vec<Vec<i64>> {
        plan(deficits, &mut candidates.to_vec(), sites, copies).into_iter().map(numbers).collect()
    }

    fn planned(deficits: &[Deficit], candidates: &[Candidate], copies: u64) -> Vec<Vec<i64>> {
        planned_at(deficits, candidates, &Sites::default(), copies)
    }

    fn sites(pairs: &[(i64, u64)]) -> Sites {
        let mut sites = Sites::default();
        pairs.iter().for_each(|(cell, site)| sites.set(CellNumber(*cell), Site(*site)));
        sites
    }

    #[test]
    fn peers_have_one_copy_less_than_wanted_but_two_of_what_is_freed_and_always_the_last() {
        let all = |wanted| {
            let freed = on_peers(wanted, Extra::Freed, false);
            for is_here in [true, false] {
                // What is to be freed is copied first, and what came here to be copied on is still freed.
                assert_eq!(on_peers(wanted, Extra::Wanted, is_here), freed);
                assert_eq!(on_peers(wanted, Extra::Freed, is_here), freed);
            }
            [on_peers(wanted, Extra::No, true), on_peers(wanted, Extra::No, false), freed]
        };
        assert_eq!([0, 1, 2, 3, 20].map(all), [[0, 1, 2], [0, 1, 2], [1, 1, 2], [2, 2, 3], [19, 19, 20]]);
    }

    #[test]
    fn what_is_on_its_way_here_is_no_copy_for_which_another_is_given_up() {
        let at_most = |wanted| [true, false].map(|is_here| at_most_on_peers(wanted, Extra::No, is_here));
        assert_eq!([0, 1, 2, 3, 20].map(at_most), [[0, 1], [0, 1], [1, 2], [2, 3], [19, 20]]);
        for is_here in [true, false] {
            assert_eq!(at_most_on_peers(3, Extra::Freed, is_here), 3);
        }
    }

    #[test]
    fn favorites_come_first_then_most_free() {
        let cells = [candidate(1, false, 1000), candidate(2, true, 150), candidate(3, false, 2000)];
        let deficits = [deficit(1, 100, &[]), deficit(2, 100, &[]), deficit(3, 100, &[])];
        assert_eq!(planned(&deficits, &cells, 1), [[2], [3], [3]]);
        assert_eq!(planned(&deficits[..1], &cells, 2), [[2, 3]]);
    }

    #[test]
    fn a_plan_says_what_set_the_chosen_apart_from_the_next_best() {
        let reasons = |cells: &[Candidate], at: &Sites, copies| -> Vec<(i64, Why)> {
            let planned = plan_with_reasons(&deficit(1, 100, &[]), &mut cells.to_vec(), at, copies);
            planned.into_iter().map(|(cell, why)| (cell.0, why)).collect()
        };
        let mut cells =
            [candidate(1, true, 1 << 30), candidate(2, false, 1 << 30), candidate(3, false, 1 << 20)];
        let none = Sites::default();
        assert_eq!(reasons(&cells, &none, 3), [(1, Why::Favorite), (2, Why::Room), (3, Why::Only)]);
        cells[2].pace = Pace(3);
        assert_eq!(reasons(&cells, &none, 2), [(1, Why::Favorite), (3, Why::Fast)]);
        // At the place of the favorite: the slow one elsewhere goes before.
        assert_eq!(reasons(&cells, &sites(&[(1, 5), (3, 5)]), 2), [(1, Why::Favorite), (2, Why::Elsewhere)]);
        assert_eq!(reasons(&cells[1..2], &none, 2), [(2, Why::Only)]);
    }

    #[test]
    fn fast_peers_come_before_roomy_ones() {
        let mut cells = [candidate(1, false, 1 << 40), candidate(2, false, 1 << 30)];
        cells[0].pace = Pace(22);
        assert_eq!(planned(&[deficit(1, 100, &[])], &cells, 1), [[2]]);
    }

    #[test]
    fn among_those_at_other_places_credit_comes_before_speed() {
        let mut cells = [candidate(1, false, 1000), candidate(2, false, 1000), candidate(3, false, 1000)];
        (cells[0].has_credit, cells[0].pace) = (false, Pace(3));
        let at = sites(&[(1, 5), (2, 6), (3, 7)]);
        assert_eq!(planned_at(&[deficit(1, 1, &[])], &cells, &at, 2), [[2, 3]]);
        let why = plan_with_reasons(&deficit(1, 1, &[3]), &mut cells.to_vec(), &at, 2);
        assert_eq!(why, [(CellNumber(2), Why::Credit)]);
        // It is still better than nobody, and than a second copy at one place.
        assert_eq!(planned_at(&[deficit(1, 1, &[2, 3])], &cells, &at, 3), [[1]]);
        let near = sites(&[(1, 5), (2, 7), (3, 7)]);
        assert_eq!(planned_at(&[deficit(1, 1, &[3])], &cells, &near, 2), [[1]]);
        cells[0].is_favorite = true;
        assert_eq!(planned_at(&[deficit(1, 1, &[])], &cells, &at, 1), [[1]]);
    }

    #[test]
    fn another_place_comes_before_a_fast_neighbour_but_not_before_a_favorite() {
        let mut cells = [candidate(1, false, 1000), candidate(2, false, 1000), candidate(3, false, 1000)];
        cells[1].pace = Pace(23);
        let at = sites(&[(1, 0), (2, 7), (3, 0)]);
        let deficits = [deficit(1, 1, &[])];
        assert_eq!(planned_at(&deficits, &cells, &at, 1), [[2]]);
        assert_eq!(planned_at(&deficits, &cells, &at, 2), [[2, 1]]);
        cells[2].is_favorite = true;
        assert_eq!(planned_at(&deficits, &cells, &at, 1), [[3]]);
    }

    #[test]
    fn a_third_copy_goes_where_the_second_is_not() {
        let cells = [candidate(1, false, 1 << 30), candidate(2, false, 100), candidate(3, false, 1 << 30)];
        let at = sites(&[(1, 5), (2, 6), (3, 5)]);
        assert_eq!(planned_at(&[deficit(1, 1, &[3])], &cells, &at, 2), [[2]]);
        // Where all places have one, a second at one of them is better than none.
        assert_eq!(planned_at(&[deficit(1, 1, &[3])], &cells, &at, 3), [[2, 1]]);
    }

    #[test]
    fn peers_with_nearly_the_same_room_are_told_apart_the_same_way_by_all() {
        let deficits = [deficit(1, 100, &[])];
        for (one, other) in [(77_380_173_824, 77_380_100_000), (77_380_100_000, 77_380_173_824)] {
            let cells = [candidate(1, false, one), candidate(2, false, other)];
            assert_eq!(planned(&deficits, &cells, 1), [[1]]);
        }
    }

    #[test]
    fn a_pace_that_wavers_keeps_its_class() {
        let pace = Pace::of(130_000, None);
        assert_eq!(Pace::of(140_000, Some(pace)), pace);
        let mut held = pace;
        for us in [140_000, 120_000, 135_000, 125_000] {
            held = Pace::of(us, Some(held));
            assert_eq!(held, pace);
        }
        assert!(Pace::of(1_000_000, Some(pace)) > pace);
        assert!(Pace::of(10_000, Some(pace)) < pace);
        assert_eq!(Pace::of(0, None), Pace(0));
        assert_eq!(Pace::of(u64::MAX, None), Pace(64));
    }

    #[test]
    fn never_over_the_factor_nor_twice_on_one_peer() {
        let cells = [candidate(1, false, 1000), candidate(2, false, 900)];
        assert_eq!(planned(&[deficit(1, 1, &[7])], &cells, 1), [[]; 1] as [[i64; 0]; 1]);
        assert_eq!(planned(&[deficit(1, 1, &[1])], &cells, 2), [[2]]);
        assert_eq!(planned(&[deficit(1, 1, &[])], &cells, 9), [[1, 2]]);
        assert_eq!(planned(&[deficit(1, 1, &[])], &cells, 0), [[]; 1] as [[i64; 0]; 1]);
    }

    #[test]
    fn peers_are_filled_up_and_no_further() {
        let cells = [candidate(1, false, 150)];
        let deficits = [deficit(1, 100, &[]), deficit(2, 100, &[]), deficit(3, 50, &[])];
        assert_eq!(planned(&deficits, &cells, 1), [vec![1], vec![], vec![1]]);
    }

    fn holder(cell: i64) -> Holder {
        Holder {
            cell: CellNumber(cell),
            is_favorite: false,
            is_solid: true,
            is_settling: false,
            is_suspect: false,
            proven: 9,
            pace: Pace(17),
        }
    }

    fn let_go(holders: &[Holder], at: &Sites, copies: u64) -> Vec<i64> {
        numbers(surplus(holders, at, copies))
    }

    #[test]
    fn surplus_copies_go_and_the_wanted_number_stays() {
        let at = Sites::default();
        let holders = [holder(1), holder(2), holder(3)];
        assert_eq!(let_go(&holders, &at, 3), [0; 0]);
        assert_eq!(let_go(&holders, &at, 2), [3]);
        assert_eq!(let_go(&holders, &at, 1), [2, 3]);
        assert_eq!(let_go(&holders, &at, 0), [1, 2, 3]);
    }

    #[test]
    fn nothing_goes_while_a_peer_is_settling_or_too_few_are_solid() {
        let at = Sites::default();
        let settling = Holder { is_settling: true, is_solid: false, ..holder(3) };
        assert_eq!(let_go(&[holder(1), holder(2), settling], &at, 1), [0; 0]);
        let gone = Holder { is_solid: false, ..holder(2) };
        assert_eq!(let_go(&[holder(1), gone, Holder { is_suspect: true, ..holder(3) }], &at, 2), [0; 0]);
        assert_eq!(let_go(&[holder(1), gone], &at, 1), [2]);
    }

    #[test]
    fn favorites_other_places_and_proven_copies_stay() {
        let at = sites(&[(1, 0), (2, 8), (3, 8)]);
        let holders = [holder(1), holder(2), holder(3)];
        assert_eq!(let_go(&holders, &at, 1), [1, 3]);
        assert_eq!(let_go(&[holder(1), Holder { proven: 0, ..holder(2) }, holder(3)], &at, 1), [1, 2]);
        assert_eq!(
            let_go(&[Holder { is_favorite: true, ..holder(1) }, holder(2), holder(3)], &at, 1),
            [2, 3]
        );
        assert_eq!(let_go(&holders, &at, 2), [3]);
    }

    #[test]
    fn what_surplus_leaves_plan_does_not_add_to() {
        // A small seeded walk: plan fills up, surplus takes away, and neither undoes the other.
        let mut seed = 7u64;
        let mut dice = move |n: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) % n
        };
        for _ in 0..2_000 {
            let copies = dice(4);
            let mut at = Sites::default();
            let cells: Vec<Candidate> = (1..=dice(6) as i64 + 1)
                .map(|cell| {
                    at.set(CellNumber(cell), Site(dice(3)));
                    let (is_favorite, free) = (dice(4) == 0, dice(3) * 1000);
                    Candidate {
                        cell: CellNumber(cell),
                        is_favorite,
                        has_credit: true,
                        pace: Pace(dice(30) as u8),
                        free,
                    }
                })
                .collect();
            let mut held: Vec<i64> = cells.iter().map(|c| c.cell.0).filter(|_| dice(2) == 0).collect();
            let added = planned_at(&[deficit(1, 10, &held)], &cells, &at, copies).remove(0);
            assert!(held.len() + added.len() <= (copies as usize).max(held.len()));
            held.extend(&added);
            let holders: Vec<Holder> = held
                .iter()
                .map(|cell| {
                    let c = cells.iter().find(|c| c.cell.0 == *cell).unwrap();
                    Holder { is_favorite: c.is_favorite, pace: c.pace, ..holder(*cell) }
                })
                .collect();
            let gone = let_go(&holders, &at, copies);
            assert_eq!(held.len() - gone.len(), held.len().min(copies as usize));
            held.retain(|cell| !gone.contains(cell));
            let again = planned_at(&[deficit(1, 10, &held)], &cells, &at, copies).remove(0);
            assert!(gone.is_empty() || again.is_empty(), "{again:?} is planned after {gone:?} went");
        }
    }
}

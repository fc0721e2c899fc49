//! Who should get what: a pure function of deficits, peers and the number of copies wanted.

use super::{CellNumber, ChunkId};

/// A peer that can be given chunks now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// Which.
    pub cell: CellNumber,
    /// Comes before all that are not.
    pub is_favorite: bool,
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
fn coarse(free: u64) -> u64 {
    let digits = u64::BITS - free.leading_zeros();
    let lost = digits.saturating_sub(4);
    free >> lost << lost
}

/// For each deficit the peers that should be sent it: favorites first, then those with most free space, never more than
/// bring it to `copies` copies on peers. What is planned is taken from the candidates' free space.
pub fn plan(deficits: &[Deficit], candidates: &mut [Candidate], copies: u64) -> Vec<Vec<CellNumber>> {
    deficits
        .iter()
        .map(|deficit| {
            let mut targets = Vec::new();
            while ((deficit.holders.len() + targets.len()) as u64) < copies {
                let best = candidates
                    .iter_mut()
                    .filter(|c| c.free >= u64::from(deficit.len))
                    .filter(|c| !deficit.holders.contains(&c.cell) && !targets.contains(&c.cell))
                    .max_by_key(|c| (c.is_favorite, coarse(c.free), std::cmp::Reverse(c.cell)));
                let Some(best) = best else { break };
                best.free -= u64::from(deficit.len);
                targets.push(best.cell);
            }
            targets
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(cell: i64, is_favorite: bool, free: u64) -> Candidate {
        Candidate { cell: CellNumber(cell), is_favorite, free }
    }

    fn deficit(chunk: i64, len: u32, holders: &[i64]) -> Deficit {
        let holders = holders.iter().map(|cell| CellNumber(*cell)).collect();
        Deficit { chunk: ChunkId(chunk), len, holders }
    }

    fn planned(deficits: &[Deficit], candidates: &[Candidate], copies: u64) -> Vec<Vec<i64>> {
        let plan = plan(deficits, &mut candidates.to_vec(), copies);
        plan.into_iter().map(|cells| cells.into_iter().map(|cell| cell.0).collect()).collect()
    }

    #[test]
    fn favorites_come_first_then_most_free() {
        let cells = [candidate(1, false, 1000), candidate(2, true, 150), candidate(3, false, 2000)];
        let deficits = [deficit(1, 100, &[]), deficit(2, 100, &[]), deficit(3, 100, &[])];
        assert_eq!(planned(&deficits, &cells, 1), [[2], [3], [3]]);
        assert_eq!(planned(&deficits[..1], &cells, 2), [[2, 3]]);
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
}

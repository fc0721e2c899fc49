//! Walking through all rows again and again, each within a given time: evenly, so that no hour has more work than another,
//! and faster after a stop. Time and the highest row come in as arguments.

/// How far a walk is. 16 bytes in placement.db.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cycle {
    /// The last row that was looked at; 0: none yet.
    pub cursor: i64,
    /// Observed second at which this walk began.
    pub began_at: u64,
}

impl Cycle {
    /// Up to which row the walk should be at `now` when `highest` is the highest row and a walk takes `period_s`.
    pub fn target(&self, highest: i64, now: u64, period_s: u64) -> i64 {
        let part = u128::from(now.saturating_sub(self.began_at)) * highest.max(0) as u128;
        i64::try_from(part / u128::from(period_s.max(1))).unwrap_or(i64::MAX).min(highest)
    }

    /// The walk as it is at `now`: where all rows were looked at and its time is over, the next one.
    pub fn at(self, highest: i64, now: u64, period_s: u64) -> Self {
        if self.began_at == 0 || self.began_at > now {
            return Self { cursor: 0, began_at: now.max(1) };
        }
        if self.cursor < highest || now - self.began_at < period_s {
            return self;
        }
        // One that was late does not make the next ones hurry.
        let next = self.began_at + period_s;
        Self { cursor: 0, began_at: if next + period_s / 8 < now { now } else { next } }
    }

    /// The form in placement.db.
    pub fn to_bytes(self) -> Vec<u8> {
        [self.cursor as u64, self.began_at].map(u64::to_le_bytes).concat()
    }

    /// What `to_bytes` wrote; anything else begins anew.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        let number =
            |at: usize| Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().expect("eight bytes")));
        match (number(0), number(8), bytes.len()) {
            (Some(cursor), Some(began_at), 16) => Self { cursor: cursor as i64, began_at },
            _ => Self::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: u64 = 86_400;

    #[test]
    fn rows_are_spread_evenly_over_the_period() {
        let mut cycle = Cycle::default();
        let mut most = 0;
        for hour in 0..20 * 24 {
            let now = 1000 + hour * 3600;
            cycle = cycle.at(100_000, now, 20 * DAY);
            let target = cycle.target(100_000, now, 20 * DAY);
            most = most.max(target - cycle.cursor);
            cycle.cursor = target.max(cycle.cursor);
        }
        assert!(cycle.cursor > 99_000 && most <= 100_000 / (20 * 24) + 1, "{cycle:?} {most}");
    }

    #[test]
    fn each_row_comes_within_the_period_of_its_last_time() {
        let mut cycle = Cycle::default();
        let (mut seen, mut gap) = (vec![0u64; 1001], 0);
        for hour in 1..100 * 24 {
            let now = hour * 3600;
            cycle = cycle.at(1000, now, 20 * DAY);
            let target = cycle.target(1000, now, 20 * DAY);
            for row in cycle.cursor + 1..=target {
                gap = gap.max(now - seen[row as usize]);
                seen[row as usize] = now;
            }
            cycle.cursor = target.max(cycle.cursor);
        }
        assert!(gap <= 20 * DAY + 2 * 3600, "{gap}");
    }

    #[test]
    fn after_a_stop_all_that_was_missed_is_due_at_once_and_then_it_is_even_again() {
        let cycle = Cycle { cursor: 300, began_at: 1000 };
        let now = 1000 + 60 * DAY;
        assert_eq!(cycle.at(1000, now, 20 * DAY), cycle);
        assert_eq!(cycle.target(1000, now, 20 * DAY), 1000);
        let next = Cycle { cursor: 1000, ..cycle }.at(1000, now, 20 * DAY);
        assert_eq!(next, Cycle { cursor: 0, began_at: now });
        assert_eq!(next.target(1000, now + DAY, 20 * DAY), 50);
    }

    #[test]
    fn odd_numbers_do_no_harm() {
        for cycle in [
            Cycle { cursor: i64::MAX, began_at: u64::MAX },
            Cycle::from_bytes(&[255; 16]),
            Cycle::from_bytes(b"x"),
        ] {
            let now = cycle.at(0, 5, 0);
            assert_eq!(now.target(0, u64::MAX, 0), 0);
            assert!(now.target(i64::MAX, u64::MAX, 1) == i64::MAX);
        }
        let cycle = Cycle { cursor: 7, began_at: 9 };
        assert_eq!(Cycle::from_bytes(&cycle.to_bytes()), cycle);
    }
}

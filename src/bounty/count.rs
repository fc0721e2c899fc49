//! Counting. Byte-seconds in `u128`, so that nothing is lost to rounding; whole byte-hours are told.
//!
//! The owner counts each copy from the time it is stored: what was never proven waits until it is, and what turns out to be
//! lost takes back all that was counted since its last proof. So a holder that drops what it should keep has nothing of it,
//! and one that is away for a while loses nothing as long as its copies are counted on.

use super::HOUR_S;
use super::statement::FIGURE_MAX;
use crate::codec::{BadBytes, Reader, Writer};
use crate::world::{Sabotage, is_sabotaged};

/// Counted in steps no longer than this, both cells were connected all the time. s.
const STEADY_S: u64 = 2 * HOUR_S;
/// Observed time that is this far behind what it was is another database's. s.
const BACK_S: u64 = 86_400;

/// What is to be seen of one peer at one moment. Bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sums {
    /// Of our copies with it that were proven at least once, and not asked for in vain since.
    pub proven_bytes: u64,
    /// Of our copies with it that were never proven.
    pub unproven_bytes: u64,
    /// Kept here for it.
    pub held_bytes: u64,
    /// Which database counts the next number.
    pub lost_id: u64,
    /// Byte-seconds between the last proof and the loss of all copies that it was found to have lost.
    pub lost: u128,
}

/// Sums, and the observed second of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// Observed seconds.
    pub now: u64,
    /// Since when both are connected without a break. Observed seconds.
    pub since: u64,
    /// What is seen.
    pub sums: Sums,
}

fn hours(byte_seconds: u128) -> u64 {
    u64::try_from(byte_seconds / u128::from(HOUR_S)).unwrap_or(FIGURE_MAX).min(FIGURE_MAX)
}

fn seconds(byte_hours: u64) -> u128 {
    u128::from(byte_hours) * u128::from(HOUR_S)
}

fn over(bytes: u64, seconds: u64) -> u128 {
    u128::from(bytes) * u128::from(seconds)
}

/// `part` of `whole` of `amount`.
fn share(amount: u128, part: u64, whole: u64) -> u128 {
    if part >= whole {
        return amount;
    }
    // Divided first where the product would not fit: what is lost is less than a byte-second for each byte.
    let (part, whole) = (u128::from(part), u128::from(whole));
    amount.checked_mul(part).map_or_else(|| amount / whole * part, |product| product / whole)
}

/// What a holder counts itself, to compare with what the owner says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Claim {
    /// While both were connected. Byte-seconds.
    low: u128,
    /// All the time.
    high: u128,
    /// Of `low`, what the user has let go: the owner takes it off what comes.
    excused: u128,
    /// Most bytes at once since the last statement.
    peak_bytes: u64,
    /// Since when the owner says less; observed seconds, 0: it does not.
    pub(super) short_since: u64,
}

impl Claim {
    /// At least so much should be counted. Byte-hours.
    pub fn low(&self) -> u64 {
        hours(self.low.saturating_sub(self.excused))
    }

    /// At most so much was stored. Byte-hours.
    pub fn high(&self) -> u64 {
        hours(self.high)
    }

    /// Most bytes at once since the last statement.
    pub fn peak_bytes(&self) -> u64 {
        self.peak_bytes
    }
}

/// All that is counted with one peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Observed seconds up to which it is counted; 0: never.
    at: u64,
    sums: Sums,
    /// What the peer has stored for us and proven. Byte-seconds; only grows.
    measured: u128,
    /// Of copies that were never proven.
    waiting: u128,
    /// Counted for copies that turned out to be lost, and not yet taken off.
    debt: u128,
    /// All of that, ever.
    forfeited: u128,
    /// What we have stored for it.
    pub claim: Claim,
}

impl Counts {
    const VERSION: u8 = 1;

    /// Counts on to what is seen now.
    pub fn take(&mut self, seen: &Seen) {
        let Seen { now, since, sums } = *seen;
        let before = self.sums;
        self.sums = sums;
        if self.at == 0 || now.saturating_add(BACK_S) < self.at {
            // From here on; the losses that it has noted are of copies that were not counted.
            self.at = now.max(1);
            (self.sums.lost_id, self.sums.lost) = (sums.lost_id, sums.lost);
            return;
        }
        // Time that was counted already is not counted again, whatever the clock says now.
        let passed = now.saturating_sub(self.at);
        self.at = self.at.max(now);

        let mut gained = over(before.proven_bytes.min(sums.proven_bytes), passed);
        let proven_now = sums.proven_bytes.saturating_sub(before.proven_bytes).min(before.unproven_bytes);
        let gone = before.unproven_bytes.saturating_sub(proven_now).saturating_sub(sums.unproven_bytes);
        if before.unproven_bytes > 0 {
            let moved = share(self.waiting, proven_now, before.unproven_bytes);
            let lost = share(self.waiting, gone, before.unproven_bytes).min(self.waiting - moved);
            gained += moved + over(proven_now, passed);
            self.waiting -= moved + lost;
        }
        let unproven = over(before.unproven_bytes.min(sums.unproven_bytes), passed);
        if is_sabotaged(Sabotage::PaysWithoutProof) {
            gained += unproven;
        } else {
            self.waiting += unproven;
        }
        if sums.unproven_bytes == 0 {
            self.waiting = 0;
        }

        let seen_lost = if before.lost_id == sums.lost_id { before.lost } else { 0 };
        let is_taken_back = !is_sabotaged(Sabotage::PaysForWhatIsLost);
        let lost = if is_taken_back { sums.lost.saturating_sub(seen_lost) } else { 0 };
        // A database that has forgotten losses finds them again: they are not taken off twice.
        self.sums.lost = sums.lost.max(seen_lost);
        self.debt += lost;
        self.forfeited += lost;
        let paid = self.debt.min(gained);
        self.debt -= paid;
        self.measured += gained - paid;

        let (fewer, more) = (before.held_bytes.min(sums.held_bytes), before.held_bytes.max(sums.held_bytes));
        self.claim.high += over(more, passed);
        if passed <= STEADY_S {
            // An owner that was off has perhaps not counted that time.
            self.claim.low += over(fewer, passed.min(now.saturating_sub(since)));
        }
        self.claim.peak_bytes = self.claim.peak_bytes.max(more);
    }

    /// Observed seconds up to which it is counted; 0: never.
    pub fn at(&self) -> u64 {
        self.at
    }

    /// What was seen last.
    pub fn sums(&self) -> &Sums {
        &self.sums
    }

    /// What the peer has stored for us and proven. Byte-hours.
    pub fn measured(&self) -> u64 {
        hours(self.measured)
    }

    /// What waits for a first proof. Byte-hours.
    pub fn waiting(&self) -> u64 {
        hours(self.waiting)
    }

    /// What was taken back, or still is to be, because copies were lost. Byte-hours.
    pub fn forfeited(&self) -> u64 {
        hours(self.forfeited)
    }

    /// What is still to be taken off. Byte-hours.
    pub fn debt(&self) -> u64 {
        hours(self.debt)
    }

    /// Both have signed these figures: what it stored for us, and what we stored for it. Byte-hours. Books that are older
    /// than what they signed go on from there.
    pub fn agree(&mut self, by_them: u64, by_us: u64) {
        self.measured = self.measured.max(seconds(by_them));
        self.claim.low = self.claim.low.max(seconds(by_us));
        self.claim.high = self.claim.high.max(self.claim.low);
        self.claim.peak_bytes = self.sums.held_bytes;
    }

    /// This cell's user takes what the peer counts for what we have stored for it, and that it still takes `debt` off what
    /// comes. Byte-hours.
    pub fn give_in(&mut self, by_us: u64, debt: u64) {
        (self.claim.low, self.claim.excused) = (seconds(by_us), seconds(debt));
        self.claim.high = self.claim.high.max(self.claim.low);
        (self.claim.peak_bytes, self.claim.short_since) = (self.sums.held_bytes, 0);
    }

    /// The form in books.db.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut to = Writer::new();
        let sums = &self.sums;
        to.u8(Self::VERSION).u64(self.at);
        for number in [sums.proven_bytes, sums.unproven_bytes, sums.held_bytes, sums.lost_id] {
            to.u64(number);
        }
        let claim = &self.claim;
        for number in [
            sums.lost,
            self.measured,
            self.waiting,
            self.debt,
            self.forfeited,
            claim.low,
            claim.high,
            claim.excused,
        ] {
            to.raw(&number.to_le_bytes());
        }
        to.u64(claim.peak_bytes).u64(claim.short_since);
        to.finish()
    }

    /// What `to_bytes` wrote.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, BadBytes> {
        let mut from = Reader::new(bytes);
        if from.u8()? != Self::VERSION {
            return Err(BadBytes("version of what is counted with a peer"));
        }
        let mut counts = Self { at: from.u64()?, ..Self::default() };
        let sums = &mut counts.sums;
        for number in
            [&mut sums.proven_bytes, &mut sums.unproven_bytes, &mut sums.held_bytes, &mut sums.lost_id]
        {
            *number = from.u64()?;
        }
        for number in [
            &mut counts.sums.lost,
            &mut counts.measured,
            &mut counts.waiting,
            &mut counts.debt,
            &mut counts.forfeited,
            &mut counts.claim.low,
            &mut counts.claim.high,
            &mut counts.claim.excused,
        ] {
            *number = u128::from_le_bytes(from.array()?);
        }
        (counts.claim.peak_bytes, counts.claim.short_since) = (from.u64()?, from.u64()?);
        from.end()?;
        Ok(counts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn seen(now: u64, proven: u64, unproven: u64) -> Seen {
        let sums = Sums { proven_bytes: proven, unproven_bytes: unproven, lost_id: 7, ..Sums::default() };
        Seen { now, since: 0, sums }
    }

    fn kept(now: u64, held: u64) -> Seen {
        Seen { now, since: 0, sums: Sums { held_bytes: held, ..Sums::default() } }
    }

    #[test]
    fn a_gibibyte_for_a_day_is_a_leaf_however_often_it_is_looked_at() {
        for step in [1, 7, 300, 3600, 86_400] {
            let mut counts = Counts::default();
            let mut now = 1000;
            counts.take(&seen(now, GIB, 0));
            while now < 1000 + 86_400 {
                now = (now + step).min(1000 + 86_400);
                counts.take(&seen(now, GIB, 0));
            }
            assert_eq!(counts.measured(), super::super::LEAF_BYTE_HOURS, "steps of {step} s");
        }
    }

    #[test]
    fn time_is_counted_once_when_the_clock_goes_back_and_not_at_all_when_the_database_is_another() {
        let mut counts = Counts::default();
        counts.take(&seen(100_000, GIB, 0));
        counts.take(&seen(103_600, GIB, 0));
        let before = counts;
        counts.take(&seen(101_000, GIB, 0));
        counts.take(&seen(103_600, GIB, 0));
        assert_eq!(counts.measured(), before.measured());
        counts.take(&seen(10, GIB, 0));
        assert_eq!((counts.measured(), counts.at()), (before.measured(), 10));
        counts.take(&seen(3610, GIB, 0));
        assert_eq!(counts.measured(), 2 * GIB);
    }

    #[test]
    fn what_was_never_proven_waits_and_then_counts_from_the_time_it_was_stored() {
        let mut counts = Counts::default();
        counts.take(&seen(1, 0, 4 * GIB));
        counts.take(&seen(1 + 36_000, 0, 4 * GIB));
        assert_eq!((counts.measured(), counts.waiting()), (0, 40 * GIB));
        // Half of it is proven, a quarter released.
        counts.take(&seen(1 + 36_000, 2 * GIB, GIB));
        assert_eq!((counts.measured(), counts.waiting()), (20 * GIB, 10 * GIB));
        counts.take(&seen(1 + 36_000, 3 * GIB, 0));
        assert_eq!((counts.measured(), counts.waiting()), (30 * GIB, 0));
    }

    #[test]
    fn what_is_lost_takes_back_what_was_counted_since_its_last_proof_and_no_figure_goes_back() {
        let mut counts = Counts::default();
        counts.take(&seen(1, 10 * GIB, 0));
        counts.take(&seen(1 + 10 * 3600, 10 * GIB, 0));
        assert_eq!(counts.measured(), 100 * GIB);
        let mut loss = seen(1 + 10 * 3600, 5 * GIB, 0);
        loss.sums.lost = over(5 * GIB, 10 * 3600);
        counts.take(&loss);
        assert_eq!((counts.measured(), counts.debt(), counts.forfeited()), (100 * GIB, 50 * GIB, 50 * GIB));
        // The same once more, after a crash or from an older image of the database.
        loss.sums.lost = 0;
        counts.take(&loss);
        loss.sums.lost = over(5 * GIB, 10 * 3600);
        counts.take(&loss);
        assert_eq!(counts.forfeited(), 50 * GIB);
        loss.now += 12 * 3600;
        counts.take(&loss);
        assert_eq!((counts.measured(), counts.debt()), (110 * GIB, 0));
    }

    #[test]
    fn a_holder_claims_the_time_it_was_connected_at_least_and_all_time_at_most() {
        let mut counts = Counts::default();
        counts.take(&kept(1, GIB));
        counts.take(&kept(1 + 3600, 2 * GIB));
        assert_eq!((counts.claim.low(), counts.claim.high()), (GIB, 2 * GIB));
        counts.take(&kept(1 + 3600 + 86_400, 2 * GIB));
        assert_eq!((counts.claim.low(), counts.claim.high()), (GIB, 50 * GIB));
        counts.agree(5, 30 * GIB);
        assert_eq!((counts.measured(), counts.claim.low()), (5, 30 * GIB));
        counts.give_in(3 * GIB, 4 * GIB);
        assert_eq!((counts.claim.low(), counts.claim.high()), (0, 50 * GIB));
        counts.take(&kept(1 + 2 * 3600 + 86_400, 2 * GIB));
        assert_eq!(counts.claim.low(), GIB, "the owner takes off what was lost first");
    }

    #[test]
    fn a_holder_does_not_claim_the_time_of_an_outage_however_short() {
        let mut counts = Counts::default();
        counts.take(&kept(1, GIB));
        // An hour and a half ago it was counted last; half an hour ago the owner came back.
        counts.take(&Seen { since: 1 + 3600, ..kept(1 + 5400, GIB) });
        assert_eq!((counts.claim.low(), counts.claim.high()), (GIB / 2, GIB * 3 / 2));
        // Without another break all time counts again.
        counts.take(&Seen { since: 1 + 3600, ..kept(1 + 9000, GIB) });
        assert_eq!(counts.claim.low(), GIB * 3 / 2);
        // A clock that went back is no time together.
        counts.take(&Seen { since: 20_000, ..kept(1 + 9900, GIB) });
        assert_eq!(counts.claim.low(), GIB * 3 / 2);
    }

    #[test]
    fn counts_read_back() {
        let mut counts = Counts::default();
        counts.take(&seen(5, u64::MAX >> 1, 9));
        counts.take(&seen(5 + 3600 * 24 * 36_500, u64::MAX >> 1, 9));
        assert_eq!(counts.measured(), FIGURE_MAX, "far beyond any figure, and nothing overflows");
        let bytes = counts.to_bytes();
        assert_eq!(Counts::from_bytes(&bytes), Ok(counts));
        assert!(Counts::from_bytes(&bytes[1..]).is_err() && Counts::from_bytes(b"").is_err());
    }
}

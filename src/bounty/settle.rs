//! What two cells make of each other's figures and statements: what is proposed, signed, refused, and kept as evidence.
//!
//! The cell with the larger id proposes, the other one countersigns: so nobody signs two statements of one number, and no two
//! can cross. The owner's figure holds where the holder's own count agrees with it to one hundredth.

use std::fmt;

use super::HOUR_S;
use super::count::Claim;
use super::statement::{FIGURE_MAX, Side, Statement, StatementBody, StatementHash};
use crate::codec::{BadBytes, Reader, Writer};
use crate::id::CellId;

/// A disagreement is over so many hundredths.
const DISPUTE_PERCENT: u128 = 1;
/// And over what is stored in so many hours: proofs and looks come in steps.
const SLACK_H: u128 = 2;
/// Every copy is asked for within this time, so nothing waits for its first proof longer. s.
const PROOFS_S: u64 = 30 * 86_400;
/// Clocks that differ by more may be why figures do. s.
const CLOCKS_S: u64 = 2 * HOUR_S;
/// Without a statement for so long, periods are missing. s.
const SILENT_S: u64 = 30 * 86_400;
/// How far ahead of our own clock a period may end. s.
const AHEAD_S: u64 = 86_400;
/// 2023-11-14: a clock before this was never set, and nothing is compared with it.
const SET_AFTER: u64 = 1_700_000_000;

/// What one cell tells of its counting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Heard {
    /// Its life.
    pub life: u32,
    /// What it counts for what we have stored for it. Byte-hours, like those that follow.
    pub measured: u64,
    /// What waits for a first proof.
    pub waiting: u64,
    /// What it has taken back because copies were lost.
    pub forfeited: u64,
    /// Of that, what it has not taken off yet.
    pub debt: u64,
    /// What it says it has stored for us, at least.
    pub claimed: u64,
    /// Its clock. Unix seconds.
    pub unix_s: u64,
    /// It does not agree with our figure.
    pub disagrees: bool,
}

impl Heard {
    /// Bytes of its form.
    pub const BYTES: usize = 53;

    /// The form on the wire and in books.db.
    pub fn write(&self, to: &mut Writer) {
        to.u32(self.life).u64(self.measured).u64(self.waiting).u64(self.forfeited).u64(self.debt);
        to.u64(self.claimed).u64(self.unix_s).u8(self.disagrees.into());
    }

    /// What `write` wrote.
    pub fn read(from: &mut Reader<'_>) -> Result<Self, BadBytes> {
        let heard = Self {
            life: from.u32()?,
            measured: from.u64()?,
            waiting: from.u64()?,
            forfeited: from.u64()?,
            debt: from.u64()?,
            claimed: from.u64()?,
            unix_s: from.u64()?,
            disagrees: match from.u8()? {
                0 => false,
                1 => true,
                _ => return Err(BadBytes("neither yes nor no")),
            },
        };
        let figures = [heard.measured, heard.waiting, heard.forfeited, heard.debt, heard.claimed];
        if figures.iter().any(|figure| *figure > FIGURE_MAX) {
            return Err(BadBytes("a figure is too large"));
        }
        Ok(heard)
    }
}

/// Why two figures probably differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// Copies were found lost, or were not proven.
    Proofs,
    /// Its books are older than what it has signed.
    OlderBooks,
    /// The clocks differ.
    Clock,
    /// No statement was made for long.
    MissingPeriods,
    /// Nothing explains it.
    Unknown,
}

impl Cause {
    /// From 1 up, for books.db.
    pub fn to_byte(self) -> u8 {
        self as u8 + 1
    }

    /// What `to_byte` gave; 0: none.
    pub fn from_byte(byte: u8) -> Option<Self> {
        const ALL: [Cause; 5] =
            [Cause::Proofs, Cause::OlderBooks, Cause::Clock, Cause::MissingPeriods, Cause::Unknown];
        ALL.into_iter().find(|cause| cause.to_byte() == byte)
    }

    /// One word, for programs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Proofs => "proofs",
            Self::OlderBooks => "older_books",
            Self::Clock => "clock",
            Self::MissingPeriods => "missing_periods",
            Self::Unknown => "unknown",
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Proofs => "copies were not proven, or were found lost",
            Self::OlderBooks => {
                "the peer's books are older than what it has signed; they may come from a backup"
            }
            Self::Clock => "the clocks of the two cells differ",
            Self::MissingPeriods => {
                "the two have not settled for long, and one may have counted while the other was off"
            }
            Self::Unknown => "nothing explains it: the peer counts less than it was given",
        })
    }
}

/// What a holder thinks of the owner's figure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It agrees.
    Agrees,
    /// It will agree when first proofs have come.
    Waits,
    /// The owner counts too little, probably for this reason.
    Short(Cause),
}

/// Compares `figure`, what the owner counts for what we have stored for it, with our own claim. `newest` is the newest
/// statement and `side` ours in it; `now` is observed, `wall` Unix seconds. More than we claim is taken: who owes says it.
pub fn compare(
    claim: &mut Claim,
    figure: u64,
    heard: &Heard,
    newest: Option<(&StatementBody, Side)>,
    now: u64,
    wall: u64,
) -> Verdict {
    let low = u128::from(claim.low());
    let slack = low * DISPUTE_PERCENT / 100 + u128::from(claim.peak_bytes()) * SLACK_H;
    let is_enough = |counted: u128| counted + slack >= low;
    let figure = u128::from(figure);
    if is_enough(figure) {
        claim.short_since = 0;
        return Verdict::Agrees;
    }
    if claim.short_since == 0 || claim.short_since > now {
        claim.short_since = now.max(1);
    }
    let signed = newest.map_or(0, |(body, side)| u128::from(body.stored_by(side)));
    let is_older =
        figure < signed || newest.is_some_and(|(body, side)| heard.life < body.life_of(side.other()));
    if is_older {
        return Verdict::Short(Cause::OlderBooks);
    }
    if is_enough(figure + u128::from(heard.forfeited)) {
        return Verdict::Short(Cause::Proofs);
    }
    if is_enough(figure + u128::from(heard.forfeited) + u128::from(heard.waiting)) {
        return if now - claim.short_since < PROOFS_S {
            Verdict::Waits
        } else {
            Verdict::Short(Cause::Proofs)
        };
    }
    if heard.unix_s.abs_diff(wall) > CLOCKS_S {
        return Verdict::Short(Cause::Clock);
    }
    match newest {
        Some((body, _)) if body.until.saturating_add(SILENT_S) < wall => {
            Verdict::Short(Cause::MissingPeriods)
        }
        _ => Verdict::Short(Cause::Unknown),
    }
}

/// Why a statement is not signed or not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// It is of other cells.
    Foreign,
    /// Only one has signed it.
    HalfSigned,
    /// Its number was used before.
    Replayed,
    /// It does not follow the newest one.
    Reordered,
    /// Its period begins or ends before the one before it has ended.
    Backdated,
    /// Its period ends in the future.
    Ahead,
    /// A figure is lower than before.
    Backwards,
    /// It speaks of an older life of a cell.
    OldLife,
    /// It says that we count more than we do.
    NotOurFigure,
    /// The peer counts too little of what we have stored.
    Disputed(Cause),
    /// The peer has signed two of one number.
    Forked,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Disputed(cause) => write!(f, "its figure is too low: {cause}"),
            other => f.write_str(match other {
                Self::Foreign => "a statement of other cells",
                Self::HalfSigned => "a statement that only one has signed",
                Self::Replayed => "a statement whose number was used before",
                Self::Reordered => "a statement that does not follow the newest one",
                Self::Backdated => "a statement for a time that is settled already",
                Self::Ahead => "a statement for a time that has not come; one of the clocks is wrong",
                Self::Backwards => "a statement with a lower figure than before",
                Self::OldLife => "a statement of an older life",
                Self::NotOurFigure => "a statement that says this cell counts more than it does",
                Self::Forked => "a second statement of one number",
                Self::Disputed(_) => unreachable!("told above"),
            }),
        }
    }
}

impl std::error::Error for Refused {}

/// What a statement that both have signed is to this cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// It is the newest one, or an older one.
    Known,
    /// It is newer: its figures hold from now on.
    Newer,
}

/// Looks at a statement that a peer shows. One that both have signed is this cell's own word, whatever its books say: books
/// that come from a backup, or from nothing, take it up.
pub fn judge(
    us: &CellId,
    them: &CellId,
    newest: Option<&Statement>,
    given: &Statement,
) -> Result<Taken, Refused> {
    let is_ours = [us, them].iter().all(|cell| given.side(cell).is_some());
    if !is_ours || us == them {
        return Err(Refused::Foreign);
    }
    if !given.is_whole() {
        return Err(Refused::HalfSigned);
    }
    match newest {
        Some(newest) if given.seq < newest.seq => Ok(Taken::Known),
        Some(newest) if given.seq == newest.seq && given.hash() == newest.hash() => Ok(Taken::Known),
        Some(newest) if given.seq == newest.seq => Err(Refused::Forked),
        _ => Ok(Taken::Newer),
    }
}

/// What the cell with the larger id proposes; `None`: nothing has changed, or the other one has to take up the newest
/// first. `proposed` is the highest number that it ever used, `lives` and `measured` are its own and the other's.
pub fn propose(
    cells: [CellId; 2],
    newest: Option<&Statement>,
    proposed: u64,
    lives: [u32; 2],
    measured: [u64; 2],
    wall: u64,
) -> Option<StatementBody> {
    let (ours, theirs) = (measured[0], measured[1]);
    let before = newest.map_or([0, 0], |newest| newest.stored);
    // What the low one has stored is what the high one, this one, counts.
    let stored = [ours.max(before[0]), theirs];
    let is_new = stored != before || newest.is_some_and(|newest| newest.lives != [lives[1], lives[0]]);
    if theirs < before[1] || !is_new || lives.contains(&0) {
        return None;
    }
    let previous: StatementHash = newest.map_or([0; 32], Statement::hash);
    let from = newest.map_or(0, |newest| newest.until);
    Some(StatementBody {
        cells,
        seq: proposed.max(newest.map_or(0, |newest| newest.seq)).checked_add(1)?,
        previous,
        lives: [lives[1], lives[0]],
        from,
        until: wall.max(from),
        stored,
        extensions: Vec::new(),
    })
}

/// Whether the cell with the smaller id, in its life `life`, countersigns what the other proposes. `measured` is what it
/// counts itself, `verdict` what it thinks of the other's figure.
pub fn check_proposal(
    us: &CellId,
    newest: Option<&Statement>,
    given: &Statement,
    life: u32,
    measured: u64,
    verdict: Verdict,
    wall: u64,
) -> Result<(), Refused> {
    if given.side(us) != Some(Side::Low) || newest.is_some_and(|newest| newest.cells != given.cells) {
        return Err(Refused::Foreign);
    }
    if !given.is_signed_by(Side::High) {
        return Err(Refused::HalfSigned);
    }
    if let Some(newest) = newest {
        if given.seq == newest.seq && given.hash() != newest.hash() {
            return Err(Refused::Forked);
        }
        if given.seq <= newest.seq {
            return Err(Refused::Replayed);
        }
    }
    if given.previous != newest.map_or([0; 32], Statement::hash) {
        return Err(Refused::Reordered);
    }
    let before = newest.map_or(0, |newest| newest.until);
    if given.from != before || given.until < before {
        return Err(Refused::Backdated);
    }
    if wall >= SET_AFTER && given.until > wall.saturating_add(AHEAD_S).max(before) {
        return Err(Refused::Ahead);
    }
    if given.life_of(Side::Low) != life
        || newest.is_some_and(|newest| given.life_of(Side::High) < newest.life_of(Side::High))
    {
        return Err(Refused::OldLife);
    }
    let floor = newest.map_or([0, 0], |newest| newest.stored);
    if given.stored.iter().zip(floor).any(|(now, before)| *now < before) {
        return Err(Refused::Backwards);
    }
    if given.stored_by(Side::High) > measured.max(floor[1]) {
        return Err(Refused::NotOurFigure);
    }
    match verdict {
        Verdict::Short(cause) => Err(Refused::Disputed(cause)),
        Verdict::Agrees | Verdict::Waits => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::count::{Counts, Seen, Sums};
    use super::super::statement::tests::{body, two};
    use super::*;
    use crate::keys::Identity;

    const NOW: u64 = 1_800_000_100;

    fn whole(body: StatementBody) -> Statement {
        let [low, high] = two();
        Statement::sign(&high, body).unwrap().signed_by(&low).unwrap()
    }

    fn next(before: &Statement) -> StatementBody {
        StatementBody {
            seq: before.seq + 1,
            previous: before.hash(),
            from: before.until,
            until: before.until + 50,
            stored: [600, 800],
            ..before.body().clone()
        }
    }

    fn checked(newest: &Statement, given: StatementBody, by: &Identity) -> Result<(), Refused> {
        let given = Statement::sign(by, given).unwrap();
        check_proposal(&two()[0].id(), Some(newest), &given, 1, 800, Verdict::Agrees, NOW)
    }

    #[test]
    fn each_field_of_a_proposal_is_checked_with_an_error_of_its_own() {
        let [low, high] = two();
        let newest = whole(body(4));
        let good = next(&newest);
        assert_eq!(checked(&newest, good.clone(), &high), Ok(()));
        assert_eq!(
            checked(&newest, StatementBody { seq: 9, ..good.clone() }, &high),
            Ok(()),
            "numbers may be left out"
        );
        let other = crate::keys::MasterKey::from_bytes([9; 32]).identity(0, 0);
        let mut cells = [low.id(), other.id()];
        cells.sort();
        for (why, wrong) in [
            (Refused::Foreign, StatementBody { cells, ..good.clone() }),
            (Refused::Replayed, StatementBody { seq: 3, ..good.clone() }),
            (Refused::Forked, StatementBody { seq: 4, ..good.clone() }),
            (Refused::Reordered, StatementBody { previous: [3; 32], ..good.clone() }),
            (Refused::Backdated, StatementBody { from: good.from - 9, ..good.clone() }),
            (Refused::Backdated, StatementBody { from: good.from + 9, ..good.clone() }),
            (Refused::Ahead, StatementBody { until: NOW + 86_401, ..good.clone() }),
            (Refused::OldLife, StatementBody { lives: [2, 1], ..good.clone() }),
            (Refused::Backwards, StatementBody { stored: [499, 800], ..good.clone() }),
            (Refused::Backwards, StatementBody { stored: [600, 699], ..good.clone() }),
            (Refused::NotOurFigure, StatementBody { stored: [600, 801], ..good.clone() }),
        ] {
            let by = if wrong.cells.contains(&high.id()) { &high } else { &other };
            assert_eq!(checked(&newest, wrong.clone(), by), Err(why), "{wrong:?}");
        }
        assert_eq!(checked(&newest, good.clone(), &low), Err(Refused::HalfSigned));
        let second_life = whole(StatementBody { lives: [1, 3], ..body(4) });
        assert_eq!(checked(&second_life, next(&second_life), &high), Ok(()));
        let older = StatementBody { lives: [1, 2], ..next(&second_life) };
        assert_eq!(checked(&second_life, older, &high), Err(Refused::OldLife));
        let given = Statement::sign(&high, good).unwrap();
        let disputed = Verdict::Short(Cause::Clock);
        assert_eq!(
            check_proposal(&low.id(), Some(&newest), &given, 1, 800, disputed, NOW),
            Err(Refused::Disputed(Cause::Clock))
        );
        // A cell whose clock was never set compares nothing with it.
        let late = StatementBody { until: NOW * 2, ..next(&newest) };
        let late = Statement::sign(&high, late).unwrap();
        assert_eq!(check_proposal(&low.id(), Some(&newest), &late, 1, 800, Verdict::Agrees, 77), Ok(()));
    }

    #[test]
    fn what_both_have_signed_is_taken_up_and_two_of_one_number_are_told_apart() {
        let [low, high] = two();
        let (first, second) = (whole(body(1)), whole(body(2)));
        let judged = |newest, given: &Statement| judge(&low.id(), &high.id(), newest, given);
        assert_eq!(judged(None, &second), Ok(Taken::Newer));
        assert_eq!(judged(Some(&second), &second), Ok(Taken::Known));
        assert_eq!(judged(Some(&second), &first), Ok(Taken::Known));
        assert_eq!(judged(Some(&first), &second), Ok(Taken::Newer));
        let fork = whole(StatementBody { stored: [501, 700], ..body(2) });
        assert_eq!(judged(Some(&second), &fork), Err(Refused::Forked));
        let half = Statement::sign(&high, body(3)).unwrap();
        assert_eq!(judged(Some(&second), &half), Err(Refused::HalfSigned));
        assert_eq!(judge(&low.id(), &CellId([3; 32]), None, &second), Err(Refused::Foreign));
    }

    #[test]
    fn proposals_are_numbered_once_and_follow_the_newest() {
        let [low, high] = two();
        let cells = [low.id(), high.id()];
        let first = propose(cells, None, 0, [2, 1], [500, 700], NOW).unwrap();
        assert_eq!((first.seq, first.stored, first.lives), (1, [500, 700], [1, 2]));
        assert_eq!((first.from, first.until, first.previous), (0, NOW, [0; 32]));
        let first = whole(first);
        assert_eq!(propose(cells, Some(&first), 1, [2, 1], [500, 700], NOW + 9), None, "nothing is new");
        let second = propose(cells, Some(&first), 5, [2, 1], [500, 701], NOW - 9).unwrap();
        assert_eq!((second.seq, second.from, second.until), (6, NOW, NOW), "a clock that went back");
        assert_eq!(second.previous, first.hash());
        assert_eq!(propose(cells, Some(&first), 5, [2, 1], [900, 699], NOW), None, "it has older books");
        assert!(propose(cells, Some(&first), 5, [3, 1], [500, 700], NOW).is_some(), "a new life is told");
        assert_eq!(propose(cells, None, u64::MAX, [1, 1], [1, 1], NOW), None);
    }

    /// A claim of so many byte-hours, over which `held` bytes lay here.
    fn claim(hours: u64, held: u64) -> Claim {
        let mut counts = Counts::default();
        let sums = Sums { held_bytes: held, ..Sums::default() };
        for hour in 0..=hours {
            counts.take(&Seen { now: 1 + hour * 3600, since: 0, sums });
        }
        counts.claim
    }

    #[test]
    fn one_hundredth_less_is_agreed_to_and_more_is_disputed_with_its_likely_cause() {
        let newest = body(4);
        let newest = Some((&newest, Side::Low));
        let judged =
            |figure, heard: Heard, wall| compare(&mut claim(1000, 100), figure, &heard, newest, 99, wall);
        let heard = Heard { life: 1, unix_s: NOW, ..Heard::default() };
        assert_eq!(judged(100_000, heard, NOW), Verdict::Agrees);
        assert_eq!(judged(100_000 - 1000 - 200, heard, NOW), Verdict::Agrees);
        assert_eq!(judged(98_799, heard, NOW), Verdict::Short(Cause::Unknown));
        assert_eq!(judged(1_000_000, heard, NOW), Verdict::Agrees, "who owes says it");
        assert_eq!(judged(499, heard, NOW), Verdict::Short(Cause::OlderBooks));
        assert_eq!(judged(90_000, Heard { life: 0, ..heard }, NOW), Verdict::Short(Cause::OlderBooks));
        assert_eq!(judged(90_000, Heard { forfeited: 9_000, ..heard }, NOW), Verdict::Short(Cause::Proofs));
        assert_eq!(judged(90_000, Heard { unix_s: 5, ..heard }, NOW), Verdict::Short(Cause::Clock));
        let later = NOW + 31 * 86_400;
        assert_eq!(
            judged(90_000, Heard { unix_s: later, ..heard }, later),
            Verdict::Short(Cause::MissingPeriods)
        );
        // What waits for its first proof is waited for, but not for ever.
        let waiting = Heard { waiting: 9_000, ..heard };
        let mut claim = claim(1000, 100);
        let mut at = |now| compare(&mut claim, 90_000, &waiting, newest, now, NOW);
        assert_eq!((at(1000), at(1000 + PROOFS_S - 1)), (Verdict::Waits, Verdict::Waits));
        assert_eq!(at(1000 + PROOFS_S), Verdict::Short(Cause::Proofs));
    }

    #[test]
    fn what_is_heard_reads_back() {
        let heard = Heard {
            life: 3,
            measured: 1,
            waiting: 2,
            forfeited: 3,
            debt: 4,
            claimed: FIGURE_MAX,
            unix_s: 5,
            disagrees: true,
        };
        let mut to = Writer::new();
        heard.write(&mut to);
        let bytes = to.finish();
        assert_eq!(bytes.len(), Heard::BYTES);
        assert_eq!(Heard::read(&mut Reader::new(&bytes)), Ok(heard));
        let mut large = bytes.clone();
        large[11] = 0x80;
        assert!(Heard::read(&mut Reader::new(&large)).is_err());
        assert!(Heard::read(&mut Reader::new(&bytes[..52])).is_err());
    }
}

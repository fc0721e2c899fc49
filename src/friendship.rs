//! Friendship: what two peers wish of each other, and what follows from it.
//!
//! Each side has a wish of its own and knows the other's as it last heard it. A wish has a number that grows with each
//! decision, and a floor: wishes of the other side below it are turned down. Nobody's wish is ever changed by the other
//! side, so a late, repeated or made-up message makes no friend.
//!
//! Promise: two sides who know each other's newest wishes agree on how they stand.

use crate::codec::{BadBytes, Reader, Writer};

/// Larger numbers of wishes are not heard: with them there would be none left for later decisions. Unix time in nanoseconds
/// comes here in the year 2116, and numbers are seconds.
const TOLD_MAX: u64 = 1 << 62;

/// What one side wishes of the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Wish {
    /// To be friends; otherwise peers.
    pub is_friend: bool,
    /// Grows with each decision.
    pub number: u64,
    /// Wishes of the other side with a smaller number are turned down. Only grows.
    pub floor: u64,
}

impl Wish {
    fn holds_before(&self, other: &Self) -> bool {
        self.is_friend && self.number >= other.floor
    }

    fn write(&self, to: &mut Writer) {
        to.u8(self.is_friend.into()).u64(self.number).u64(self.floor);
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, BadBytes> {
        let is_friend = match from.u8()? {
            0 => false,
            1 => true,
            _ => return Err(BadBytes("a wish is neither yes nor no")),
        };
        Ok(Self { is_friend, number: from.u64()?, floor: from.u64()? })
    }
}

/// How this cell and a peer stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Peers, and neither asks for more.
    None,
    /// This cell has asked.
    Asked,
    /// The peer has asked.
    Wanted,
    /// Both wish it.
    Friends,
}

impl Standing {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Asked => "asked",
            Self::Wanted => "wanted",
            Self::Friends => "friends",
        }
    }
}

/// Both wishes, as one side knows them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Friendship {
    /// Of the side that tells.
    pub ours: Wish,
    /// Of the other side, as last heard.
    pub theirs: Wish,
}

impl Friendship {
    /// Friends from before wishes had numbers.
    pub const UNNUMBERED: Self = {
        let wish = Wish { is_friend: true, number: 0, floor: 0 };
        Self { ours: wish, theirs: wish }
    };

    /// How the two stand.
    pub fn standing(&self) -> Standing {
        match (self.ours.holds_before(&self.theirs), self.theirs.holds_before(&self.ours)) {
            (true, true) => Standing::Friends,
            (true, false) => Standing::Asked,
            (false, true) => Standing::Wanted,
            (false, false) => Standing::None,
        }
    }

    /// Both wish it.
    pub fn are_friends(&self) -> bool {
        self.standing() == Standing::Friends
    }

    /// The next number: Unix time, if that is beyond all numbers known, so that it is new after a recovery too.
    fn next(&self, wall: i64) -> u64 {
        (wall.max(0) as u64).max(self.ours.number.saturating_add(1)).max(self.theirs.floor)
    }

    /// This side's user asks for friendship or accepts it, or (`false`) undoes, declines or takes back. What holds already
    /// stays as it is.
    pub fn decide(&mut self, is_friend: bool, wall: i64) {
        let number = self.next(wall);
        match (is_friend, self.standing()) {
            (true, Standing::Asked | Standing::Friends) | (false, Standing::None) => {}
            (true, _) => self.ours = Wish { is_friend, number, ..self.ours },
            (false, _) => {
                let floor = self.ours.floor.max(self.theirs.number.saturating_add(1));
                self.ours = Wish { is_friend, number, floor };
            }
        }
    }

    /// Both have agreed by an invite for a friend.
    pub fn agree(&mut self, wall: i64) {
        self.decide(true, wall);
        if self.standing() != Standing::Friends {
            // Its own number follows with its first word.
            let number = self.theirs.number.max(self.ours.floor);
            self.theirs = Wish { is_friend: true, number, ..self.theirs };
        }
    }

    /// Hears how the other side (`told.ours`) knows things. An older wish of its is passed over. If it knows a newer wish of
    /// this side than this side itself, that was forgotten by going back to a backup: this side goes on beyond it, as a
    /// friend only if both memories say so.
    pub fn hear(&mut self, told: &Self, wall: i64) {
        if told.ours.number >= self.theirs.number {
            self.theirs = told.ours;
        }
        let (own, known) = (self.ours, told.theirs);
        if known.number > own.number || (known.number == own.number && known != own && own.number > 0) {
            let number = self.next(wall).max(known.number.saturating_add(1));
            let is_friend = own.is_friend && known.is_friend;
            self.ours = Wish { is_friend, number, floor: own.floor.max(known.floor) };
        }
    }

    /// The two wishes, `ours` first; 34 bytes.
    pub fn write(&self, to: &mut Writer) {
        self.ours.write(to);
        self.theirs.write(to);
    }

    /// What `write` wrote.
    pub fn read(from: &mut Reader<'_>) -> Result<Self, BadBytes> {
        Ok(Self { ours: Wish::read(from)?, theirs: Wish::read(from)? })
    }

    /// The same as a peer tells it. A wish always leaves room for one that comes after it.
    pub fn read_told(from: &mut Reader<'_>) -> Result<Self, BadBytes> {
        let told = Self::read(from)?;
        if told.ours.number > TOLD_MAX {
            return Err(BadBytes("number of a wish"));
        }
        if told.ours.floor > TOLD_MAX {
            return Err(BadBytes("floor of a wish"));
        }
        if told.theirs.number > TOLD_MAX {
            return Err(BadBytes("number of a wish as it was heard"));
        }
        if told.theirs.floor > TOLD_MAX {
            return Err(BadBytes("floor of a wish as it was heard"));
        }
        Ok(told)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_800_000_000;

    /// One side tells the other, who answers.
    fn meet(a: &mut Friendship, b: &mut Friendship) {
        for _ in 0..2 {
            b.hear(a, NOW);
            a.hear(b, NOW);
        }
    }

    fn standings(a: &Friendship, b: &Friendship) -> (Standing, Standing) {
        (a.standing(), b.standing())
    }

    #[test]
    fn friendship_needs_both_and_either_ends_it_for_both() {
        let (mut a, mut b) = (Friendship::default(), Friendship::default());
        meet(&mut a, &mut b);
        assert_eq!((a, b), (Friendship::default(), Friendship::default()));
        a.decide(true, NOW);
        assert_eq!(a.standing(), Standing::Asked);
        meet(&mut a, &mut b);
        assert_eq!(standings(&a, &b), (Standing::Asked, Standing::Wanted));
        b.decide(true, NOW);
        meet(&mut a, &mut b);
        assert_eq!(standings(&a, &b), (Standing::Friends, Standing::Friends));
        let before = a;
        a.decide(true, NOW + 9);
        assert_eq!(a, before, "what holds already stays");
        b.decide(false, NOW);
        meet(&mut a, &mut b);
        assert_eq!(standings(&a, &b), (Standing::None, Standing::None));
        // Whoever was turned down must wish it anew: the other's change of mind makes no friend by itself.
        b.decide(true, NOW);
        meet(&mut a, &mut b);
        assert_eq!(standings(&a, &b), (Standing::Wanted, Standing::Asked));
        a.decide(true, NOW);
        meet(&mut a, &mut b);
        assert_eq!(standings(&a, &b), (Standing::Friends, Standing::Friends));
    }

    #[test]
    fn a_request_is_declined_or_taken_back() {
        for declines in [true, false] {
            let (mut a, mut b) = (Friendship::default(), Friendship::default());
            a.decide(true, NOW);
            meet(&mut a, &mut b);
            if declines {
                b.decide(false, NOW)
            } else {
                a.decide(false, NOW)
            }
            meet(&mut a, &mut b);
            assert_eq!(standings(&a, &b), (Standing::None, Standing::None));
        }
    }

    #[test]
    fn an_answer_speaks_only_of_what_it_knew() {
        let (mut a, mut b) = (Friendship::default(), Friendship::default());
        a.decide(true, NOW);
        meet(&mut a, &mut b);
        // B declines while A takes back and asks again.
        b.decide(false, NOW + 1);
        a.decide(false, NOW + 1);
        a.decide(true, NOW + 2);
        meet(&mut a, &mut b);
        assert_eq!(standings(&a, &b), (Standing::Asked, Standing::Wanted));
    }

    #[test]
    fn late_and_repeated_messages_change_nothing() {
        let (mut a, mut b) = (Friendship::default(), Friendship::default());
        a.decide(true, NOW);
        let asked = a;
        meet(&mut a, &mut b);
        b.decide(true, NOW);
        meet(&mut a, &mut b);
        let (friends_a, friends_b) = (a, b);
        a.decide(false, NOW + 1);
        meet(&mut a, &mut b);
        let ended = (a, b);
        for late in [asked, friends_a, a] {
            b.hear(&late, NOW + 2);
        }
        a.hear(&friends_b, NOW + 2);
        assert_eq!((a, b), ended);
    }

    #[test]
    fn a_made_up_memory_makes_no_friend() {
        let wish = Wish { is_friend: true, number: u64::MAX, floor: 0 };
        let mut a = Friendship::default();
        for floor in [0, u64::MAX] {
            a.hear(&Friendship { ours: Wish { floor, ..wish }, theirs: wish }, NOW);
            assert!(!a.ours.is_friend && !a.are_friends());
        }
        a.decide(false, NOW);
        a.decide(true, NOW);
        assert_eq!(a.ours.number, u64::MAX);
    }

    #[test]
    fn after_an_old_backup_the_two_agree_again() {
        let (mut a, mut b) = (Friendship::default(), Friendship::default());
        let stranger = b;
        a.agree(NOW);
        b.agree(NOW);
        meet(&mut a, &mut b);
        assert_eq!(standings(&a, &b), (Standing::Friends, Standing::Friends));
        // The backup is from before: the peer still wishes it, and this side is asked once more.
        b = stranger;
        meet(&mut a, &mut b);
        assert_eq!(standings(&a, &b), (Standing::Asked, Standing::Wanted));
        b.decide(true, NOW);
        meet(&mut a, &mut b);
        assert_eq!(standings(&a, &b), (Standing::Friends, Standing::Friends));
        // The backup is from a time as friends, and it was ended since, by either.
        for ended_by_b in [true, false] {
            let (mut a, mut b, backup) = (a, b, b);
            if ended_by_b {
                b.decide(false, NOW)
            } else {
                a.decide(false, NOW)
            }
            meet(&mut a, &mut b);
            b = backup;
            meet(&mut a, &mut b);
            assert_eq!(standings(&a, &b), (Standing::None, Standing::None));
        }
        // Nothing happened since.
        let backup = b;
        meet(&mut a, &mut b);
        assert_eq!(b, backup);
    }

    #[test]
    fn an_invite_makes_friends_before_a_word_is_said() {
        let (mut a, mut b) = (Friendship::default(), Friendship::default());
        a.agree(NOW);
        a.decide(false, NOW);
        b.hear(&a, NOW);
        b.agree(NOW);
        a.agree(NOW);
        assert_eq!(standings(&a, &b), (Standing::Friends, Standing::Friends));
        meet(&mut a, &mut b);
        assert_eq!(standings(&a, &b), (Standing::Friends, Standing::Friends));
    }

    #[test]
    fn friends_without_numbers_stay_friends_and_can_part() {
        let (mut a, mut b) = (Friendship::UNNUMBERED, Friendship::UNNUMBERED);
        meet(&mut a, &mut b);
        assert_eq!((a, b), (Friendship::UNNUMBERED, Friendship::UNNUMBERED));
        a.decide(false, 0);
        meet(&mut a, &mut b);
        assert_eq!(standings(&a, &b), (Standing::None, Standing::None));
    }

    /// One field, changed; and why it is not heard then.
    type Corruptor = (&'static str, fn(&mut Friendship));

    /// A peer that tells the largest numbers there are gets neither friendship nor the last word.
    #[test]
    fn numbers_at_the_end_of_all_numbers_are_not_heard_and_those_before_it_are_outlived() {
        let told = |friendship: Friendship| {
            let mut to = Writer::new();
            friendship.write(&mut to);
            let bytes = to.finish();
            Friendship::read_told(&mut Reader::new(&bytes))
        };
        let wish = Wish { is_friend: true, number: TOLD_MAX, floor: TOLD_MAX };
        let most = Friendship { ours: wish, theirs: wish };
        let cases: [Corruptor; 4] = [
            ("number of a wish", |told| told.ours.number = u64::MAX),
            ("floor of a wish", |told| told.ours.floor = TOLD_MAX + 1),
            ("number of a wish as it was heard", |told| told.theirs.number = u64::MAX),
            ("floor of a wish as it was heard", |told| told.theirs.floor = TOLD_MAX + 1),
        ];
        for (why, corrupt) in cases {
            assert_eq!(told(most), Ok(most));
            let mut changed = most;
            corrupt(&mut changed);
            assert_eq!(told(changed), Err(BadBytes(why)));
        }
        for at in [0, 17] {
            let mut to = Writer::new();
            most.write(&mut to);
            let mut bytes = to.finish();
            bytes[at] = 2;
            let read = Friendship::read_told(&mut Reader::new(&bytes));
            assert_eq!(read, Err(BadBytes("a wish is neither yes nor no")));
        }
        // However often it says so, a no stays a no, and a later yes of both makes friends.
        let mut own = Friendship::default();
        for _ in 0..1000 {
            own.hear(&most, NOW);
            own.decide(true, NOW);
            own.decide(false, NOW);
            assert_eq!(own.standing(), Standing::None);
        }
        let mut other = Friendship { ours: most.ours, theirs: Wish::default() };
        meet(&mut own, &mut other);
        other.decide(false, NOW);
        other.decide(true, NOW);
        own.decide(true, NOW);
        meet(&mut own, &mut other);
        assert_eq!(standings(&own, &other), (Standing::Friends, Standing::Friends));
    }
}

//! How much a peer may store here, and what to tell a user whose own credit runs out.

/// What a peer's allowance follows from. Bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Facts {
    /// What this cell's user has said for this peer; 0: up to the reserve of the disk.
    pub said_bytes: Option<u64>,
    /// `quota.default_bytes`: what holds for all of whom nothing was said; 0: the rules that follow.
    pub default_bytes: u64,
    /// `bounty.base_bytes`.
    pub base_bytes: u64,
    /// `bounty.ratio_percent`.
    pub ratio_percent: u64,
    /// `bounty.friend_bytes`; 0: up to the reserve of the disk.
    pub friend_bytes: u64,
    /// `bounty.vetting_bytes`.
    pub vetting_bytes: u64,
    /// Both are friends.
    pub is_friend: bool,
    /// This cell prefers it.
    pub is_favorite: bool,
    /// What it stores for us, and has proven.
    pub stored_bytes: u64,
    /// It has proven something.
    pub has_proven: bool,
    /// It has failed proofs and passed none since.
    pub is_suspended: bool,
    /// The two do not agree on what was stored, or it has signed two statements of one number.
    pub is_disputed: bool,
    /// What it stores here now.
    pub used_bytes: u64,
}

/// Which rule decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// The user has said so.
    Said,
    /// `quota.default_bytes`.
    Default,
    /// It is a friend.
    Friend,
    /// It is a favorite.
    Favorite,
    /// The base allowance, and what it stores for us.
    Earned,
    /// It has proven nothing yet.
    Vetting,
    /// It has failed proofs.
    Suspended,
    /// The figures differ.
    Disputed,
}

impl Why {
    /// In words.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Said => "as set for this peer",
            Self::Default => "quota.default_bytes",
            Self::Friend => "a friend",
            Self::Favorite => "a favorite",
            Self::Earned => "the base allowance, and what it stores for you",
            Self::Vetting => "new: until its first proofs",
            Self::Suspended => "suspended: it has failed proofs",
            Self::Disputed => "no growth: you two do not agree on what was stored",
        }
    }
}

/// What a peer may store here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allowed {
    /// Bytes; `None`: up to the reserve of the disk.
    pub bytes: Option<u64>,
    /// The rule that decides.
    pub why: Why,
}

/// What a peer may store here. What it stores already stays: a lower allowance only stops growth.
pub fn allowed(facts: &Facts) -> Allowed {
    let some = |bytes: u64| (bytes > 0).then_some(bytes);
    let usual = match facts {
        Facts { said_bytes: Some(said), .. } => Allowed { bytes: some(*said), why: Why::Said },
        Facts { default_bytes: 1.., .. } => Allowed { bytes: some(facts.default_bytes), why: Why::Default },
        Facts { is_friend: true, .. } => Allowed { bytes: some(facts.friend_bytes), why: Why::Friend },
        Facts { is_favorite: true, .. } => Allowed { bytes: some(facts.friend_bytes), why: Why::Favorite },
        _ => {
            let earned = u128::from(facts.stored_bytes) * u128::from(facts.ratio_percent) / 100;
            let bytes = earned.saturating_add(facts.base_bytes.into()).min(i64::MAX as u128) as u64;
            Allowed { bytes: Some(bytes), why: Why::Earned }
        }
    };
    let no_more = |why| {
        let used = facts.used_bytes;
        Allowed { bytes: Some(usual.bytes.map_or(used, |bytes| bytes.min(used))), why }
    };
    match facts {
        Facts { is_disputed: true, .. } => no_more(Why::Disputed),
        Facts { is_suspended: true, .. } => no_more(Why::Suspended),
        Facts { has_proven: false, .. } if usual.why == Why::Earned => {
            let bytes = usual.bytes.map(|bytes| bytes.min(facts.vetting_bytes));
            Allowed { bytes, why: Why::Vetting }
        }
        _ => usual,
    }
}

/// Whether the balance with a peer allows to store more there, as far as this cell's own rules are the peer's, too:
/// `stored_there` are our bytes with it, `stored_here` its bytes here.
pub fn has_credit(facts: &Facts, stored_there: u64, stored_here: u64) -> bool {
    if facts.is_disputed || facts.is_suspended {
        return false;
    }
    let earned = u128::from(stored_here) * u128::from(facts.ratio_percent) / 100;
    facts.is_friend || facts.is_favorite || u128::from(stored_there) < earned + u128::from(facts.base_bytes)
}

/// What to tell the user when this cell's own space with a peer is nearly used up; nothing while there is room.
pub fn advice(name: &str, used_bytes: u64, allowed_bytes: u64) -> Option<String> {
    // 0: no limit but the disk there, of which the other alerts tell.
    let is_short = allowed_bytes > 0 && used_bytes >= allowed_bytes - allowed_bytes / 20;
    is_short.then(|| {
        format!(
            "your credit with {name} is nearly used up: it stores {} MB of the {} MB that it gives. Offer it more space here (what you store \
             for it raises its allowance for you), ask it for a larger quota or to be friends, add another peer with `grove invite`, or \
             keep fewer copies: of a folder with `grove copies FOLDER N`, of all files with \"copies\" in config.json",
            used_bytes / 1_000_000,
            allowed_bytes / 1_000_000
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn facts() -> Facts {
        Facts {
            base_bytes: 100 * GIB,
            ratio_percent: 50,
            vetting_bytes: GIB,
            has_proven: true,
            used_bytes: 7,
            ..Facts::default()
        }
    }

    fn found(facts: &Facts) -> (Option<u64>, Why) {
        let allowed = allowed(facts);
        (allowed.bytes, allowed.why)
    }

    #[test]
    fn a_peer_has_the_base_and_a_part_of_what_it_stores_for_us() {
        assert_eq!(found(&facts()), (Some(100 * GIB), Why::Earned));
        assert_eq!(found(&Facts { stored_bytes: 10 * GIB, ..facts() }), (Some(105 * GIB), Why::Earned));
        let much = Facts { stored_bytes: u64::MAX, ratio_percent: u64::MAX, ..facts() };
        assert_eq!(found(&much).0, Some(i64::MAX as u64));
    }

    #[test]
    fn what_the_user_says_comes_first_then_the_default_then_friends() {
        let friend = Facts { is_friend: true, is_favorite: true, ..facts() };
        assert_eq!(found(&friend), (None, Why::Friend));
        assert_eq!(found(&Facts { friend_bytes: 9, ..friend }), (Some(9), Why::Friend));
        assert_eq!(found(&Facts { is_favorite: true, ..facts() }), (None, Why::Favorite));
        assert_eq!(found(&Facts { default_bytes: 5, ..friend }), (Some(5), Why::Default));
        assert_eq!(found(&Facts { said_bytes: Some(0), default_bytes: 5, ..friend }), (None, Why::Said));
        assert_eq!(found(&Facts { said_bytes: Some(3), ..friend }), (Some(3), Why::Said));
    }

    #[test]
    fn new_peers_have_little_until_they_have_proven_something_unless_they_are_friends() {
        let new = Facts { has_proven: false, ..facts() };
        assert_eq!(found(&new), (Some(GIB), Why::Vetting));
        assert_eq!(found(&Facts { base_bytes: 3, ..new }), (Some(3), Why::Vetting));
        assert_eq!(found(&Facts { is_friend: true, ..new }), (None, Why::Friend));
        assert_eq!(found(&Facts { said_bytes: Some(0), ..new }), (None, Why::Said));
    }

    #[test]
    fn who_fails_proofs_or_disagrees_grows_no_more_and_keeps_what_it_has() {
        for (why, frozen) in [
            (Why::Suspended, Facts { is_suspended: true, ..facts() }),
            (Why::Disputed, Facts { is_suspended: true, is_disputed: true, ..facts() }),
        ] {
            assert_eq!(found(&frozen), (Some(7), why));
            assert_eq!(found(&Facts { is_friend: true, ..frozen }), (Some(7), why));
            assert_eq!(found(&Facts { said_bytes: Some(0), ..frozen }), (Some(7), why));
            assert_eq!(found(&Facts { said_bytes: Some(3), ..frozen }), (Some(3), why));
            assert!(!has_credit(&frozen, 0, 0));
        }
    }

    #[test]
    fn credit_is_what_is_stored_here_and_the_base() {
        assert!(has_credit(&facts(), 100 * GIB - 1, 0));
        assert!(!has_credit(&facts(), 100 * GIB, 0));
        assert!(has_credit(&facts(), 100 * GIB, 2));
        assert!(has_credit(&Facts { is_friend: true, ..facts() }, u64::MAX, 0));
    }

    #[test]
    fn advice_is_given_when_a_twentieth_is_left() {
        assert_eq!(advice("bob", 94, 100), None);
        assert_eq!(advice("bob", u64::MAX, 0), None);
        assert!(advice("bob", 95, 100).is_some_and(|text| text.contains("bob") && text.contains("invite")));
    }
}

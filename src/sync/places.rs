//! Where holders can be reached, as friends are told it: one sum for each peer's card. Decides, and touches nothing.
//!
//! Promise: of one holder a new place is told at once, and the one after it ten minutes later at the earliest, however often
//! its card changes meanwhile.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use super::books::PeerRow;
use crate::card::Card;
use crate::id::CellId;
use crate::keys::sha256;
use crate::order;

/// Friends hear of one holder's new places this far apart: each file whose copies it has is granted anew for it.
const CHANGE_PAUSE: Duration = Duration::from_secs(600);

fn sum_of(bytes: &[u8]) -> u64 {
    let hash = sha256(bytes);
    u64::from_le_bytes(std::array::from_fn(|n| hash[n]))
}

/// Addresses and relays of a card, whatever their order, and nothing else that it says.
fn place_of(card: &Card) -> u64 {
    let mut all: Vec<&str> = card.addresses.iter().chain(&card.relays).map(String::as_str).collect();
    order::sort(&mut all);
    // None of them has a line break in it.
    sum_of(all.join("\n").as_bytes())
}

struct Place {
    /// The card that this was read from, as a sum.
    card: u64,
    now: u64,
    told: u64,
    /// Steady time at which another place was told.
    changed_at: Option<Duration>,
}

/// What was told of each holder's place.
#[derive(Default)]
pub(super) struct Places(HashMap<CellId, Place>);

/// What friends are told now: a sum for each holder.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Told(BTreeMap<CellId, u64>);

impl Told {
    /// A holder's place; 0 for one of whom no card is known.
    pub(super) fn of(&self, id: &CellId) -> u64 {
        self.0.get(id).copied().unwrap_or_default()
    }

    /// Of all of them together.
    pub(super) fn sum(&self) -> u64 {
        sum_of(
            &self.0.iter().flat_map(|(id, sum)| [&id.0[..], &sum.to_le_bytes()].concat()).collect::<Vec<_>>(),
        )
    }
}

impl Places {
    /// Takes peers' cards in at steady time `now`.
    pub(super) fn look(&mut self, peers: &[PeerRow], now: Duration) -> Told {
        self.0.retain(|id, _| peers.iter().any(|peer| peer.id == *id));
        let mut told = BTreeMap::new();
        for peer in peers {
            let card = sum_of(&peer.card);
            let known = self.0.get_mut(&peer.id);
            // Reading a card costs as much as checking its signature.
            let is_read = known.as_ref().is_some_and(|known| known.card == card);
            let read =
                if is_read { None } else { Card::from_bytes(&peer.card).ok().map(|card| place_of(&card)) };
            let place = match (known, read) {
                (Some(known), read) => {
                    (known.card, known.now) = (card, read.unwrap_or(known.now));
                    known
                }
                (None, Some(first)) => {
                    self.0.entry(peer.id).or_insert(Place { card, now: first, told: first, changed_at: None })
                }
                (None, None) => continue,
            };
            let may_change = place.changed_at.is_none_or(|at| now.saturating_sub(at) >= CHANGE_PAUSE);
            if place.now != place.told && may_change {
                (place.told, place.changed_at) = (place.now, Some(now));
            }
            told.insert(peer.id, place.told);
        }
        Told(told)
    }
}

/// Looks through rows page by page, again whenever what it goes by has changed since it began.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Pass {
    /// For what the last one that is over, and the one that goes on, looked.
    over: Option<(u64, u64)>,
    begun: (u64, u64),
    /// Rows that are behind it.
    from: usize,
}

impl Pass {
    /// From which row it goes on; `None`: all was looked at as it is now.
    pub(super) fn go_on(&mut self, now: (u64, u64)) -> Option<usize> {
        if self.from == 0 {
            if self.over == Some(now) {
                return None;
            }
            self.begun = now;
        }
        Some(self.from)
    }

    /// It found `count` rows of at most `most`.
    pub(super) fn went(&mut self, count: usize, most: usize) {
        match count < most {
            true => (self.from, self.over) = (0, Some(self.begun)),
            false => self.from += count,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::card::CardBody;
    use crate::keys::MasterKey;

    fn peer(sequence: u64, name: &str, addresses: &[&str], relays: &[&str]) -> PeerRow {
        let identity = MasterKey::from_bytes([7; 32]).identity(0, 0);
        let body = CardBody {
            id: identity.id(),
            x25519: *identity.x_public(),
            name: name.into(),
            addresses: addresses.iter().map(|address| address.to_string()).collect(),
            relays: relays.iter().map(|relay| relay.to_string()).collect(),
            sequence,
            successor: None,
            extensions: Vec::new(),
        };
        PeerRow::new(&Card::sign(&identity, body).unwrap(), 0)
    }

    const S: Duration = Duration::from_secs(1);

    #[test]
    fn a_new_place_is_told_at_once_and_the_next_after_a_pause() {
        let mut places = Places::default();
        let at = |n: u64| peer(n, "bob", &[&format!("10.0.0.{n}:5679")], &[]);
        let first = places.look(&[at(1)], S);
        assert_ne!(first.of(&at(1).id), 0);
        let second = places.look(&[at(2)], S * 2);
        assert_ne!(second, first);
        assert_ne!(second.sum(), first.sum());
        for n in 3..200u32 {
            assert_eq!(places.look(&[at(u64::from(n))], S * n), second, "{n}");
        }
        let later = places.look(&[at(9)], CHANGE_PAUSE + S * 2);
        assert_ne!(later, second);
        assert_eq!(places.look(&[at(9)], CHANGE_PAUSE * 9), later);
        // It came back to where it was told to be.
        assert_eq!(places.look(&[at(10)], CHANGE_PAUSE * 9 + S).of(&at(1).id), {
            let mut fresh = Places::default();
            fresh.look(&[at(10)], S).of(&at(1).id)
        });
    }

    #[test]
    fn only_addresses_and_relays_make_a_place_and_their_order_none() {
        let look = |peer: PeerRow| Places::default().look(&[peer], S);
        let here = look(peer(1, "bob", &["10.0.0.1:1", "10.0.0.2:1"], &["wss://a/r"]));
        assert_eq!(look(peer(5, "robert", &["10.0.0.2:1", "10.0.0.1:1"], &["wss://a/r"])), here);
        assert_ne!(look(peer(1, "bob", &["10.0.0.1:1"], &["wss://a/r"])), here);
        assert_ne!(look(peer(1, "bob", &["10.0.0.1:1", "10.0.0.2:1"], &["wss://b/r"])), here);
        assert_eq!(Told::default().of(&CellId([1; 32])), 0);
    }

    #[test]
    fn a_pass_ends_and_begins_again_with_a_change_only() {
        let mut pass = Pass::default();
        let mut walk = |rows: usize, now: (u64, u64)| {
            let mut looked = Vec::new();
            while let Some(from) = pass.go_on(now) {
                looked.push(from);
                pass.went(rows.saturating_sub(from).min(100), 100);
            }
            looked
        };
        assert_eq!(walk(250, (1, 1)), [0, 100, 200]);
        assert!(walk(250, (1, 1)).is_empty());
        assert_eq!(walk(0, (1, 2)), [0]);
        let mut pass = Pass::default();
        assert_eq!(pass.go_on((1, 1)), Some(0));
        pass.went(100, 100);
        assert_eq!(pass.go_on((2, 1)), Some(100), "it goes on");
        pass.went(3, 100);
        assert_eq!(pass.go_on((2, 1)), Some(0), "what it passed by before the change is looked at once more");
    }
}

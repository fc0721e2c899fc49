//! The beacon by which cells of one local network find each other: bytes, who may understand them, and when one is sent.
//!
//! Promise: who shares no key with the sender learns nothing from a beacon but that a cell is there; who understands one
//! knows that the peer itself said it, from this very address, and not before what it said last.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use subtle::ConstantTimeEq;

use crate::id::CellId;
use crate::keys::{BeaconKeys, Secret};

/// UDP port of beacons.
pub const PORT: u16 = 5680;
/// Peers that one datagram speaks to; the places of fewer are filled with noise.
pub const SLOTS: usize = 16;
/// Every beacon has this length.
pub const DATAGRAM_BYTES: usize = HEADER_BYTES + SLOTS * SLOT_BYTES;
/// Peers that are spoken to.
pub const PEERS_MAX: usize = 256;

/// A beacon follows the last after this and up to a quarter more.
const EVERY: Duration = Duration::from_secs(28);
/// After a start or a change, beacons follow each other like this: the first may be lost while the network settles.
const SOON: [Duration; 3] = [Duration::ZERO, Duration::from_secs(2), Duration::from_secs(5)];
/// A peer is answered at most this often.
const ANSWER_EVERY: Duration = Duration::from_secs(5);

const MAGIC: &[u8; 4] = b"GRVB";
const VERSION: u8 = 1;
const NONCE_BYTES: usize = 16;
const HEADER_BYTES: usize = 4 + 1 + 1 + NONCE_BYTES;
const TAG_BYTES: usize = 8;
const SEALED_BYTES: usize = 2 + 8;
const MAC_BYTES: usize = 8;
const SLOT_BYTES: usize = TAG_BYTES + SEALED_BYTES + MAC_BYTES;

/// What a beacon is sent for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// To everybody, unasked.
    Announce,
    /// To one who has announced himself; it is not answered.
    Answer,
}

/// What a beacon says to those who understand it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Said {
    /// TCP port of the sender.
    pub port: u16,
    /// Grows with each datagram of the sender.
    pub number: u64,
}

/// The keys of one peer, made ready.
#[derive(Clone)]
pub struct Pair {
    ours: Hmac<Sha256>,
    theirs: Hmac<Sha256>,
}

impl From<&BeaconKeys> for Pair {
    fn from(keys: &BeaconKeys) -> Self {
        let hmac = |key: &Secret| Hmac::new_from_slice(&key.0).expect("HMAC takes a key of any length");
        Self { ours: hmac(&keys.ours), theirs: hmac(&keys.theirs) }
    }
}

/// HMAC of a purpose, the header, the sender's address (IPv4 mapped into IPv6), and what is sealed.
fn hmac(key: &Hmac<Sha256>, what: u8, header: &[u8], from: IpAddr, sealed: &[u8]) -> [u8; 32] {
    let from = match from {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    };
    let mut mac = key.clone();
    for part in [&[what], header, &from.octets(), sealed] {
        mac.update(part);
    }
    mac.finalize().into_bytes().into()
}

/// Tag of a slot, and what hides its contents.
fn tag_and_pad(key: &Hmac<Sha256>, header: &[u8], from: IpAddr) -> ([u8; TAG_BYTES], [u8; SEALED_BYTES]) {
    let bytes = hmac(key, 0, header, from, &[]);
    let (tag, rest) = bytes.split_first_chunk().expect("8 of 32 bytes");
    (*tag, *rest.first_chunk().expect("10 of 24 bytes"))
}

fn xor(mut bytes: [u8; SEALED_BYTES], pad: [u8; SEALED_BYTES]) -> [u8; SEALED_BYTES] {
    bytes.iter_mut().zip(pad).for_each(|(byte, pad)| *byte ^= pad);
    bytes
}

/// A beacon from `from` to at most 16 `peers`; `noise` is random, becomes the nonce and fills the places of no peer.
pub fn write<'a>(
    purpose: Purpose,
    from: IpAddr,
    said: Said,
    peers: impl IntoIterator<Item = &'a Pair>,
    noise: &[u8; DATAGRAM_BYTES],
) -> [u8; DATAGRAM_BYTES] {
    let mut datagram = *noise;
    let (header, slots) = datagram.split_at_mut(HEADER_BYTES);
    header[..4].copy_from_slice(MAGIC);
    header[4] = VERSION;
    header[5] = purpose as u8;
    let mut plain = [0; SEALED_BYTES];
    plain[..2].copy_from_slice(&said.port.to_le_bytes());
    plain[2..].copy_from_slice(&said.number.to_le_bytes());
    for (slot, pair) in slots.chunks_exact_mut(SLOT_BYTES).zip(peers) {
        let (tag, pad) = tag_and_pad(&pair.ours, header, from);
        let sealed = xor(plain, pad);
        let mac = hmac(&pair.ours, 1, header, from, &sealed);
        slot[..TAG_BYTES].copy_from_slice(&tag);
        slot[TAG_BYTES..TAG_BYTES + SEALED_BYTES].copy_from_slice(&sealed);
        slot[TAG_BYTES + SEALED_BYTES..].copy_from_slice(&mac[..MAC_BYTES]);
    }
    datagram
}

/// What a datagram is sent for, if it is a beacon of this version at all.
pub fn purpose_of(datagram: &[u8]) -> Option<Purpose> {
    if datagram.len() != DATAGRAM_BYTES || !datagram.starts_with(MAGIC) || datagram[4] != VERSION {
        return None;
    }
    match datagram[5] {
        0 => Some(Purpose::Announce),
        1 => Some(Purpose::Answer),
        _ => None,
    }
}

/// What a beacon that came from `from` says to us if this peer sent it.
pub fn read(datagram: &[u8; DATAGRAM_BYTES], from: IpAddr, pair: &Pair) -> Option<Said> {
    let (header, slots) = datagram.split_at(HEADER_BYTES);
    let (tag, pad) = tag_and_pad(&pair.theirs, header, from);
    let slot = slots.chunks_exact(SLOT_BYTES).find(|slot| slot[..TAG_BYTES] == tag)?;
    let (sealed, mac) = slot[TAG_BYTES..].split_first_chunk::<SEALED_BYTES>().expect("10 of 18 bytes");
    if !bool::from(hmac(&pair.theirs, 1, header, from, sealed)[..MAC_BYTES].ct_eq(mac)) {
        return None;
    }
    let plain = xor(*sealed, pad);
    let (port, number) = plain.split_first_chunk().expect("2 of 10 bytes");
    let number = u64::from_le_bytes(number.try_into().expect("8 bytes are left"));
    Some(Said { port: u16::from_le_bytes(*port), number })
}

/// Which numbers of one sender have come: each is taken once, and none that is 64 or more behind (RFC 4303, 3.4.3).
#[derive(Debug, Clone, Copy, Default)]
struct Window {
    newest: u64,
    /// Bit n: `newest - n` has come.
    seen: u64,
}

impl Window {
    fn take(&mut self, number: u64) -> bool {
        if number > self.newest {
            let ahead = number - self.newest;
            self.seen = if ahead < 64 { self.seen << ahead | 1 } else { 1 };
            self.newest = number;
            return true;
        }
        let behind = self.newest - number;
        let is_new = behind < 64 && self.seen >> behind & 1 == 0;
        if is_new {
            self.seen |= 1 << behind;
        }
        is_new
    }
}

struct Peer {
    id: CellId,
    x25519: [u8; 32],
    pair: Pair,
    window: Window,
    answered: Option<Instant>,
}

/// A beacon that was understood.
#[derive(Debug, PartialEq, Eq)]
pub struct Found {
    /// Who sent it.
    pub peer: CellId,
    /// Where it listens, at the address the beacon came from.
    pub port: u16,
}

/// The cells that are listened for and spoken to.
#[derive(Default)]
pub struct Peers {
    all: Vec<Peer>,
}

impl Peers {
    /// Listens for these cells (id and X25519 key) from now on, at most 256. What is known of those that stay is kept;
    /// whether there is a new one.
    pub fn set(
        &mut self,
        wanted: &[(CellId, [u8; 32])],
        keys: impl Fn(&CellId, &[u8; 32]) -> Option<BeaconKeys>,
    ) -> bool {
        let mut old = std::mem::take(&mut self.all);
        let mut has_new = false;
        for (id, x25519) in wanted.iter().take(PEERS_MAX) {
            if let Some(at) = old.iter().position(|peer| peer.id == *id && peer.x25519 == *x25519) {
                self.all.push(old.swap_remove(at));
            } else if let Some(keys) = keys(id, x25519) {
                has_new = true;
                let (id, x25519, pair) = (*id, *x25519, Pair::from(&keys));
                self.all.push(Peer { id, x25519, pair, window: Window::default(), answered: None });
            }
        }
        has_new
    }

    /// Nobody is listened for.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// The pairs that one round of beacons speaks to, 16 to a datagram.
    pub fn by_datagram(&self) -> impl Iterator<Item = impl Iterator<Item = &Pair>> {
        self.all.chunks(SLOTS).map(|peers| peers.iter().map(|peer| &peer.pair))
    }

    /// A datagram came from `from`. What it says, if a peer sent it and it is no repetition; and for an announcement, if it
    /// is time for one, the pair that is answered.
    pub fn hear(&mut self, datagram: &[u8], from: IpAddr, now: Instant) -> Option<(Found, Option<&Pair>)> {
        let purpose = purpose_of(datagram)?;
        let datagram = datagram.try_into().ok()?;
        let (at, said) = self
            .all
            .iter()
            .enumerate()
            .find_map(|(at, peer)| Some((at, read(datagram, from, &peer.pair)?)))?;
        let peer = &mut self.all[at];
        if said.port == 0 || !peer.window.take(said.number) {
            return None;
        }
        let found = Found { peer: peer.id, port: said.port };
        let is_due = peer.answered.is_none_or(|at| now.saturating_duration_since(at) >= ANSWER_EVERY);
        if purpose == Purpose::Answer || !is_due {
            return Some((found, None));
        }
        peer.answered = Some(now);
        Some((found, Some(&peer.pair)))
    }
}

/// The numbers of a cell's beacons: they grow over restarts.
#[derive(Debug)]
pub struct Numbers {
    next: u64,
}

impl Numbers {
    /// Numbers of this `run`; a later start has a higher one.
    pub fn new(run: u32) -> Self {
        Self { next: u64::from(run) << 32 }
    }

    /// A number above all before.
    pub fn take(&mut self) -> u64 {
        self.next += 1;
        self.next
    }
}

/// When the next beacon is due.
#[derive(Debug)]
pub struct Schedule {
    soon: usize,
    due: Instant,
}

impl Schedule {
    /// One is due at once.
    pub fn new(now: Instant) -> Self {
        Self { soon: 0, due: now }
    }

    /// Something has changed: one is due at once, and more soon.
    pub fn restart(&mut self, now: Instant) {
        *self = Self::new(now);
    }

    /// When the next is due.
    pub fn due(&self) -> Instant {
        self.due
    }

    /// One was sent; `dice` spreads those of many cells.
    pub fn sent(&mut self, now: Instant, dice: u8) {
        self.soon += 1;
        let pause = SOON.get(self.soon).copied().unwrap_or_else(|| EVERY + EVERY / 4 * u32::from(dice) / 255);
        self.due = now + pause;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::{Identity, MasterKey};
    use crate::wire::noise::tests::Dice;

    fn identity(seed: u8) -> Identity {
        MasterKey::from_bytes([seed; 32]).identity(0, 0)
    }

    fn peers(own: &Identity, others: &[&Identity]) -> Peers {
        let mut peers = Peers::default();
        let wanted: Vec<_> = others.iter().map(|other| (other.id(), *other.x_public())).collect();
        peers.set(&wanted, |id, x25519| own.beacon_keys(id, x25519));
        peers
    }

    fn noise(seed: u64) -> [u8; DATAGRAM_BYTES] {
        Dice(seed).bytes(DATAGRAM_BYTES).try_into().unwrap()
    }

    fn announce(peers: &Peers, from: IpAddr, number: u64) -> [u8; DATAGRAM_BYTES] {
        let pairs = peers.by_datagram().next().unwrap();
        write(Purpose::Announce, from, Said { port: 5679, number }, pairs, &noise(number))
    }

    const HOME: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 168, 1, 7));

    #[test]
    fn peers_understand_a_beacon_and_nobody_else_does() {
        let (ann, bob, eve) = (identity(1), identity(2), identity(3));
        let (to_bob, mut at_bob) = (peers(&ann, &[&bob]), peers(&bob, &[&eve, &ann]));
        let datagram = announce(&to_bob, HOME, 7);
        let now = Instant::now();
        let (found, answer) = at_bob.hear(&datagram, HOME, now).unwrap();
        assert_eq!(found, Found { peer: ann.id(), port: 5679 });
        assert!(answer.is_some());
        assert!(peers(&eve, &[&ann, &bob]).hear(&datagram, HOME, now).is_none(), "who is spoken about");
        assert!(peers(&ann, &[&bob]).hear(&datagram, HOME, now).is_none(), "the sender's own echo");
    }

    #[test]
    fn beacon_from_another_address_or_changed_anywhere_says_nothing() {
        let (ann, bob) = (identity(1), identity(2));
        let to_bob = peers(&ann, &[&bob]);
        let datagram = announce(&to_bob, HOME, 7);
        let now = Instant::now();
        assert!(peers(&bob, &[&ann]).hear(&datagram, "192.168.1.8".parse().unwrap(), now).is_none());
        let used = HEADER_BYTES + SLOT_BYTES;
        for at in 0..used {
            let mut changed = datagram;
            changed[at] ^= 1;
            // The purpose alone may become the other one, but is then not what was signed.
            assert!(peers(&bob, &[&ann]).hear(&changed, HOME, now).is_none(), "byte {at}");
        }
        for len in [0, 5, DATAGRAM_BYTES - 1] {
            assert!(peers(&bob, &[&ann]).hear(&datagram[..len], HOME, now).is_none());
        }
        let mapped = "::ffff:192.168.1.7".parse().unwrap();
        assert!(peers(&bob, &[&ann]).hear(&datagram, mapped, now).is_some(), "the same address");
    }

    #[test]
    fn repeated_and_old_beacons_say_nothing() {
        let (ann, bob) = (identity(1), identity(2));
        let (to_bob, mut at_bob) = (peers(&ann, &[&bob]), peers(&bob, &[&ann]));
        let now = Instant::now();
        let mut hear = |number| at_bob.hear(&announce(&to_bob, HOME, number), HOME, now).is_some();
        let mut numbers = Numbers::new(5);
        let (first, second, third) = (numbers.take(), numbers.take(), numbers.take());
        assert!(hear(second) && hear(first) && !hear(second) && !hear(first));
        assert!(hear(third + 200) && !hear(third), "too far behind");
        let mut later = Numbers::new(6);
        assert!(hear(later.take()) && !hear(third + 201), "an earlier run is over");
    }

    #[test]
    fn window_takes_each_number_once() {
        let mut dice = Dice(9);
        for _ in 0..200 {
            let mut window = Window::default();
            let mut taken = std::collections::HashSet::new();
            let mut newest = 0;
            for _ in 0..300 {
                let number = 1 + dice.roll(150) as u64;
                let expected = number + 63 >= newest && !taken.contains(&number);
                assert_eq!(window.take(number), expected, "{number} after {newest}");
                newest = newest.max(number);
                taken.insert(number);
            }
        }
    }

    #[test]
    fn announcements_are_answered_now_and_then_and_answers_never() {
        let (ann, bob) = (identity(1), identity(2));
        let (to_bob, mut at_bob) = (peers(&ann, &[&bob]), peers(&bob, &[&ann]));
        let start = Instant::now();
        let mut is_answered = |number, s| {
            let datagram = announce(&to_bob, HOME, number);
            at_bob.hear(&datagram, HOME, start + Duration::from_secs(s)).unwrap().1.is_some()
        };
        assert!(is_answered(1, 0) && !is_answered(2, 1) && is_answered(3, 5));
        let pairs = to_bob.by_datagram().next().unwrap();
        let said = Said { port: 1, number: 9 };
        let answer = write(Purpose::Answer, HOME, said, pairs, &noise(1));
        let (found, again) = at_bob.hear(&answer, HOME, start + Duration::from_secs(60)).unwrap();
        assert!(found.port == 1 && again.is_none());
    }

    #[test]
    fn up_to_sixteen_peers_look_alike_and_more_take_more_datagrams() {
        let ann = identity(1);
        let others: Vec<Identity> = (2..35).map(identity).collect();
        let of = |count: usize| {
            let others: Vec<&Identity> = others[..count].iter().collect();
            peers(&ann, &others).by_datagram().count()
        };
        assert_eq!((of(0), of(1), of(16), of(17), of(33)), (0, 1, 1, 2, 3));
        let all: Vec<&Identity> = others.iter().collect();
        let to_all = peers(&ann, &all);
        let said = Said { port: 2, number: 3 };
        let datagrams: Vec<_> = to_all
            .by_datagram()
            .map(|pairs| write(Purpose::Announce, HOME, said, pairs, &noise(4)))
            .collect();
        for other in &all {
            let heard = datagrams
                .iter()
                .filter(|datagram| peers(other, &[&ann]).hear(&datagram[..], HOME, Instant::now()).is_some());
            assert_eq!(heard.count(), 1);
        }
    }

    #[test]
    fn beacons_of_one_cell_have_nothing_in_common() {
        let (ann, bob) = (identity(1), identity(2));
        let to_bob = peers(&ann, &[&bob]);
        let (one, two) = (announce(&to_bob, HOME, 1), announce(&to_bob, HOME, 2));
        let same = one.iter().zip(&two).skip(6).filter(|(a, b)| a == b).count();
        assert!(same < 16, "{same} equal bytes after the version and purpose");
    }

    #[test]
    fn peers_that_stay_keep_what_is_known_of_them() {
        let (ann, bob, eve) = (identity(1), identity(2), identity(3));
        let (to_bob, mut at_bob) = (peers(&ann, &[&bob]), peers(&bob, &[&ann]));
        let datagram = announce(&to_bob, HOME, 1);
        assert!(at_bob.hear(&datagram, HOME, Instant::now()).is_some());
        let keys = |id: &CellId, x25519: &[u8; 32]| bob.beacon_keys(id, x25519);
        let both = [(eve.id(), *eve.x_public()), (ann.id(), *ann.x_public())];
        assert!(at_bob.set(&both, keys) && !at_bob.set(&both[1..], keys));
        assert!(at_bob.hear(&datagram, HOME, Instant::now()).is_none(), "known already");
        assert!(!at_bob.set(&[(eve.id(), [0; 32])], keys) && at_bob.is_empty(), "a key of small order");
    }

    #[test]
    fn beacons_follow_a_change_at_once_and_then_come_every_half_minute() {
        let start = Instant::now();
        let mut schedule = Schedule::new(start);
        let mut pauses = Vec::new();
        for dice in [0, 0, 0, 0, 255] {
            let due = schedule.due();
            schedule.sent(due, dice);
            pauses.push(schedule.due().duration_since(due).as_secs());
        }
        assert_eq!(pauses, [2, 5, 28, 28, 35]);
        schedule.restart(start);
        assert_eq!(schedule.due(), start);
    }

    #[test]
    fn noise_is_no_beacon() {
        let (ann, bob) = (identity(1), identity(2));
        let mut at_bob = peers(&bob, &[&ann]);
        let mut dice = Dice(3);
        for _ in 0..500 {
            let len = dice.roll(600);
            let mut bytes = dice.bytes(len);
            assert!(at_bob.hear(&bytes, HOME, Instant::now()).is_none());
            bytes.resize(DATAGRAM_BYTES, 0);
            bytes[..6].copy_from_slice(b"GRVB\x01\x00");
            assert!(at_bob.hear(&bytes, HOME, Instant::now()).is_none());
        }
    }
}

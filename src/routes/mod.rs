//! Ways to reach a peer: what kind each is, how fast it was, and which comes first. Knows nothing of sockets, sessions
//! or chunks.
//!
//! Promise: the same facts always give the same order, and what is kept of a peer is bounded whatever its cards say.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

pub mod beacon;
mod book;
pub mod gateway;
pub mod interfaces;
pub mod lan;
pub mod portmap;

pub use book::{Route, RouteBook};

/// What a chunk is for the purpose of ranking. Bytes.
const CHUNK_BYTES: u64 = 4 << 20;
/// A route is better than another if it takes less than four fifths of its time: nearly equal ones do not take turns.
const BETTER: (u64, u64) = (5, 4);
/// For small requests a second line is worth keeping if its round trip is under half, and shorter by at least this. µs.
const QUICKER_US: u64 = 5_000;

/// What a route runs over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// The same machine or local network.
    Lan,
    /// A Tailscale network: 100.64.0.0/10 or fd7a:115c:a1e0::/48.
    Tailscale,
    /// The Yggdrasil network: 200::/7.
    Yggdrasil,
    /// The internet.
    Wan,
    /// A circuit through a relay.
    Relay,
}

impl Kind {
    /// The word for it in the API and files.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Lan => "lan",
            Self::Tailscale => "tailscale",
            Self::Yggdrasil => "yggdrasil",
            Self::Wan => "wan",
            Self::Relay => "relay",
        }
    }

    /// The kind of an IP address, seen from a machine in `own` networks.
    pub fn of_ip(ip: IpAddr, own: &[Network]) -> Self {
        let ip = ip.to_canonical();
        match ip {
            IpAddr::V4(v4) if in_v4(v4, Ipv4Addr::new(100, 64, 0, 0), 10) => Self::Tailscale,
            IpAddr::V6(v6) if v6.segments()[..3] == [0xfd7a, 0x115c, 0xa1e0] => Self::Tailscale,
            IpAddr::V6(v6) if v6.segments()[0] & 0xfe00 == 0x0200 => Self::Yggdrasil,
            _ if is_private(ip) || own.iter().any(|network| network.contains(ip)) => Self::Lan,
            _ => Self::Wan,
        }
    }

    /// The kind of what a card or a setting names: `host:port`, or the URL of a relay. Of a name only the internet is
    /// assumed until it is connected.
    pub fn of_address(address: &str, own: &[Network]) -> Self {
        match address.parse::<SocketAddr>() {
            Ok(address) => Self::of_ip(address.ip(), own),
            Err(_) if is_relay(address) => Self::Relay,
            Err(_) => Self::Wan,
        }
    }

    /// What is assumed of a route that was never measured: enough to try the likely ones first.
    pub fn usual(self) -> Speed {
        let (rtt_us, bytes_per_s) = match self {
            Self::Lan => (1_000, 30_000_000),
            Self::Tailscale => (25_000, 4_000_000),
            Self::Yggdrasil => (35_000, 3_000_000),
            Self::Wan => (30_000, 4_000_000),
            Self::Relay => (60_000, 1_500_000),
        };
        Speed { rtt_us, up_bytes_per_s: bytes_per_s, down_bytes_per_s: bytes_per_s }
    }
}

impl std::str::FromStr for Kind {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        [Self::Lan, Self::Tailscale, Self::Yggdrasil, Self::Wan, Self::Relay]
            .into_iter()
            .find(|kind| kind.as_str() == text)
            .ok_or(())
    }
}

/// Whether an address of a card or setting is a relay's URL.
pub fn is_relay(address: &str) -> bool {
    address.starts_with("ws://") || address.starts_with("wss://")
}

fn in_v4(ip: Ipv4Addr, network: Ipv4Addr, prefix: u32) -> bool {
    let mask = u32::MAX.checked_shl(32 - prefix).unwrap_or(0);
    u32::from(ip) & mask == u32::from(network) & mask
}

/// Addresses that mean something in one network only: RFC 1918, RFC 3927, RFC 4193, RFC 4291 2.5.6, and loopback.
pub fn is_private(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(v4) => v4.is_private() || v4.is_link_local() || v4.is_loopback(),
        IpAddr::V6(v6) => {
            v6.is_loopback() || v6.segments()[0] & 0xfe00 == 0xfc00 || v6.segments()[0] & 0xffc0 == 0xfe80
        }
    }
}

/// Whether an address can be reached from anywhere: not private, not shared (RFC 6598), not reserved.
pub fn is_global(ip: IpAddr) -> bool {
    let ip = ip.to_canonical();
    let is_odd = match ip {
        IpAddr::V4(v4) => {
            v4.is_unspecified()
                || v4.is_broadcast()
                || v4.is_multicast()
                || v4.is_documentation()
                || v4.octets()[0] == 0
                || v4.octets()[0] >= 240
        }
        IpAddr::V6(v6) => v6.is_unspecified() || v6.is_multicast() || v6.segments()[0] & 0xe000 != 0x2000,
    };
    !is_odd && !is_private(ip) && Kind::of_ip(ip, &[]) == Kind::Wan
}

/// A network that this machine is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    /// This machine's address in it.
    pub ip: IpAddr,
    /// Bits that all its addresses share.
    pub prefix: u8,
}

impl Network {
    fn contains(&self, ip: IpAddr) -> bool {
        // A point-to-point link says nothing of who else is near.
        match (self.ip, ip) {
            (IpAddr::V4(own), IpAddr::V4(ip)) => {
                (8..=30).contains(&self.prefix) && in_v4(ip, own, self.prefix.into())
            }
            (IpAddr::V6(own), IpAddr::V6(ip)) if (16..=126).contains(&self.prefix) => {
                let mask = u128::MAX << (128 - u32::from(self.prefix));
                u128::from(ip) & mask == u128::from(own) & mask
            }
            (own, ip) => own == ip,
        }
    }
}

/// How fast a route is, seen from here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Speed {
    /// Round trip of a small request. µs.
    pub rtt_us: u64,
    /// From here to the peer.
    pub up_bytes_per_s: u64,
    /// From the peer to here.
    pub down_bytes_per_s: u64,
}

impl Speed {
    /// Expected time to move one chunk the slower way. µs.
    pub fn chunk_us(&self) -> u64 {
        let slower = self.up_bytes_per_s.min(self.down_bytes_per_s).max(1);
        self.rtt_us.saturating_add(CHUNK_BYTES.saturating_mul(1_000_000) / slower)
    }

    /// Whether a change from `other` to this is worth it.
    pub fn is_better_than(&self, other: &Self) -> bool {
        self.chunk_us().saturating_mul(BETTER.0) < other.chunk_us().saturating_mul(BETTER.1)
    }
}

/// Which way bytes went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// From here to the peer.
    Up,
    /// From the peer to here.
    Down,
}

/// A connection with a peer, for the choice between several.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LineFacts {
    /// Measured, or what is usual.
    pub speed: Speed,
    /// The cell with the smaller id dialled it: of nearly equal ones both sides take this.
    pub is_from_smaller: bool,
    /// It answers nothing at the moment.
    pub is_stalled: bool,
    /// Made only to be measured: taken if there is no other.
    pub is_trial: bool,
    /// Younger ones have higher numbers.
    pub number: u64,
}

/// The connection to move chunks over: the fastest that is not stalled; of nearly equal ones the one that the smaller id
/// dialled, then the older one.
pub fn pick(lines: &[LineFacts]) -> Option<usize> {
    let all: Vec<usize> = (0..lines.len()).collect();
    let awake: Vec<usize> = all.iter().copied().filter(|at| !lines[*at].is_stalled).collect();
    let firm: Vec<usize> = awake.iter().copied().filter(|at| !lines[*at].is_trial).collect();
    let among = [firm, awake, all].into_iter().find(|set| !set.is_empty())?;
    let best = among.iter().map(|at| lines[*at].speed).min_by_key(Speed::chunk_us)?;
    among
        .into_iter()
        .filter(|at| !best.is_better_than(&lines[*at].speed))
        .min_by_key(|at| (!lines[*at].is_from_smaller, lines[*at].number))
}

/// The connection for small requests: that for chunks, unless another one answers much sooner.
pub fn pick_quick(lines: &[LineFacts]) -> Option<usize> {
    let first = pick(lines)?;
    let rtt_us = lines[first].speed.rtt_us;
    let is_quicker = |at: &usize| {
        let line = &lines[*at];
        let is_fit = !line.is_stalled && !line.is_trial;
        is_fit && line.speed.rtt_us < rtt_us / 2 && line.speed.rtt_us + QUICKER_US < rtt_us
    };
    let quicker =
        (0..lines.len()).filter(is_quicker).min_by_key(|at| (lines[*at].speed.rtt_us, lines[*at].number));
    quicker.or(Some(first))
}

/// Data that is not acknowledged for so long, while nothing comes: the path is dead, or as good as dead.
const STALL: Duration = Duration::from_millis(1_200);
/// Requests are under way and nothing came for so long: ask whether the peer is there.
const SILENCE: Duration = Duration::from_millis(700);
/// Through a relay only the peer's answer tells; it may stand behind a chunk on a slow line.
const RELAY_STALL: Duration = Duration::from_secs(4);

/// What can be seen of a connection over which requests are under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signs {
    /// Since the last byte came.
    pub silent: Duration,
    /// Of a direct connection: since when sent data waits without any acknowledgement.
    pub unacknowledged: Option<Duration>,
    /// Since when a ping waits for its answer.
    pub pinged: Option<Duration>,
    /// The kernel sees only the way to the relay.
    pub is_relay: bool,
}

/// What to do about a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing.
    Fine,
    /// Send a ping.
    Ask,
    /// Look for another route now.
    Stalled,
}

impl Signs {
    /// Silence alone is no death: a peer may be writing to a slow card. Unanswered data is.
    pub fn verdict(&self) -> Verdict {
        let is_dead =
            |wait: Option<Duration>, max| wait.is_some_and(|wait| wait >= max) && self.silent >= max;
        if is_dead(self.unacknowledged, STALL) || (self.is_relay && is_dead(self.pinged, RELAY_STALL)) {
            return Verdict::Stalled;
        }
        if self.silent >= SILENCE && self.pinged.is_none() { Verdict::Ask } else { Verdict::Fine }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn speed(rtt_us: u64, bytes_per_s: u64) -> Speed {
        Speed { rtt_us, up_bytes_per_s: bytes_per_s, down_bytes_per_s: bytes_per_s }
    }

    fn line(rtt_us: u64, bytes_per_s: u64, number: u64) -> LineFacts {
        LineFacts {
            speed: speed(rtt_us, bytes_per_s),
            is_from_smaller: false,
            is_stalled: false,
            is_trial: false,
            number,
        }
    }

    #[test]
    fn addresses_tell_their_kind() {
        let own = [
            Network { ip: ip("203.0.113.5"), prefix: 24 },
            Network { ip: ip("2001:db8:1::5"), prefix: 64 },
            Network { ip: ip("192.0.2.1"), prefix: 32 },
        ];
        for (address, kind) in [
            ("192.168.1.20", Kind::Lan),
            ("10.1.2.3", Kind::Lan),
            ("127.0.0.1", Kind::Lan),
            ("::ffff:192.168.1.20", Kind::Lan),
            ("fe80::1", Kind::Lan),
            ("fd00::1", Kind::Lan),
            ("203.0.113.77", Kind::Lan),
            ("2001:db8:1::77", Kind::Lan),
            ("2001:db8:2::77", Kind::Wan),
            ("192.0.2.2", Kind::Wan),
            ("100.64.0.1", Kind::Tailscale),
            ("100.127.255.254", Kind::Tailscale),
            ("100.128.0.1", Kind::Wan),
            ("fd7a:115c:a1e0::12", Kind::Tailscale),
            ("200:1234::1", Kind::Yggdrasil),
            ("3ff:1234::1", Kind::Yggdrasil),
            ("400::1", Kind::Wan),
            ("9.9.9.9", Kind::Wan),
        ] {
            assert_eq!(Kind::of_ip(ip(address), &own), kind, "{address}");
        }
        assert_eq!(Kind::of_address("wss://relay.example/relay", &own), Kind::Relay);
        assert_eq!(Kind::of_address("attic.example:5679", &own), Kind::Wan);
        assert_eq!(Kind::of_address("[200::1]:5679", &own), Kind::Yggdrasil);
    }

    #[test]
    fn only_addresses_that_lead_here_from_anywhere_are_global() {
        for address in ["9.9.9.9", "2a01:4f8::1"] {
            assert!(is_global(ip(address)), "{address}");
        }
        for address in [
            "10.0.0.1",
            "100.64.0.1",
            "169.254.1.1",
            "0.0.0.0",
            "240.0.0.1",
            "fe80::1",
            "200::1",
            "::1",
            "fd00::1",
        ] {
            assert!(!is_global(ip(address)), "{address}");
        }
    }

    #[test]
    fn fastest_line_is_taken_and_nearly_equal_ones_do_not_take_turns() {
        assert_eq!(pick(&[]), None);
        assert_eq!(pick(&[line(20_000, 1_000_000, 1), line(1_000, 50_000_000, 2)]), Some(1));
        // The older of two that are nearly equal, even if the younger is a little faster.
        assert_eq!(pick(&[line(1_000, 9_000_000, 1), line(1_000, 10_000_000, 2)]), Some(0));
        // Unless the smaller id dialled the younger: so both sides take the same.
        let mut younger = line(1_000, 9_500_000, 2);
        younger.is_from_smaller = true;
        assert_eq!(pick(&[line(1_000, 10_000_000, 1), younger]), Some(1));
    }

    #[test]
    fn stalled_and_trial_lines_are_taken_only_where_there_is_no_other() {
        let (mut stalled, mut trial) = (line(100, 90_000_000, 1), line(100, 90_000_000, 2));
        stalled.is_stalled = true;
        trial.is_trial = true;
        assert_eq!(pick(&[stalled, trial, line(90_000, 10_000, 3)]), Some(2));
        assert_eq!(pick(&[stalled, trial]), Some(1));
        assert_eq!(pick(&[stalled]), Some(0));
    }

    #[test]
    fn small_requests_go_where_the_answer_comes_soonest() {
        // A fast line far away, and a slow one next door.
        let lines = [line(200_000, 50_000_000, 1), line(2_000, 1_000_000, 2)];
        assert_eq!((pick(&lines), pick_quick(&lines)), (Some(0), Some(1)));
        // Not for a few milliseconds.
        let lines = [line(6_000, 50_000_000, 1), line(2_000, 1_000_000, 2)];
        assert_eq!((pick(&lines), pick_quick(&lines)), (Some(0), Some(0)));
    }

    #[test]
    fn dead_path_is_told_from_a_busy_peer() {
        let ms = Duration::from_millis;
        let signs = |silent, unacknowledged: Option<u64>, pinged: Option<u64>, is_relay| {
            let (unacknowledged, pinged) = (unacknowledged.map(ms), pinged.map(ms));
            Signs { silent: ms(silent), unacknowledged, pinged, is_relay }.verdict()
        };
        assert_eq!(signs(100, None, None, false), Verdict::Fine);
        assert_eq!(signs(800, None, None, false), Verdict::Ask);
        // It acknowledges and says nothing: it is at work.
        assert_eq!(signs(20_000, None, Some(19_000), false), Verdict::Fine);
        assert_eq!(signs(1_500, Some(1_300), Some(600), false), Verdict::Stalled);
        // Data comes, acknowledgements of ours do not yet: a slow way up.
        assert_eq!(signs(100, Some(3_000), None, false), Verdict::Fine);
        assert_eq!(signs(3_000, None, Some(2_000), true), Verdict::Fine);
        assert_eq!(signs(4_500, None, Some(4_100), true), Verdict::Stalled);
    }
}

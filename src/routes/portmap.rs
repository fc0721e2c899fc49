//! Asking the router for a port: PCP (RFC 6887) and NAT-PMP (RFC 6886), as bytes and as decisions. Knows no socket.
//!
//! Promise: whatever a router says, datagrams to it are few, and nothing is told that it has not granted.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::{Duration, Instant};

use super::is_global;

/// Where routers listen for both protocols. UDP.
pub const PORT: u16 = 5351;
/// Where routers say that they have started (to 224.0.0.1). UDP.
pub const ANNOUNCE_PORT: u16 = 5350;
/// No datagram of either protocol is longer (RFC 6887, 7).
pub const DATAGRAM_BYTES_MAX: usize = 1100;

/// For how long a mapping is asked for: it is renewed after half of that, which also shows that a router was restarted. s.
const LIFETIME_S: u32 = 1200;
/// A router may grant less or more, but renewals come no more often than half of this, and no less often than half of that.
const LIFETIME_S_RANGE: std::ops::RangeInclusive<u32> = 120..=86_400;
/// A renewal that failed is tried again after half of the time left, and not before this.
const RENEW_AGAIN: Duration = Duration::from_secs(60);
/// A network without such a router is asked again after this and up to a quarter more.
const REST: Duration = Duration::from_secs(3600);
/// A router that refuses for a time is asked again after it, within these.
const REFUSED_S_RANGE: std::ops::RangeInclusive<u32> = 300..=3600;
/// A router that says it was restarted is asked at most this often.
const HINT_EVERY: Duration = Duration::from_secs(30);

/// First pause and number of tries of PCP; each pause is twice the last (RFC 6887, 8.1.1: 3 s).
const PCP_TRIES: (Duration, u32) = (Duration::from_secs(3), 3);
/// The same of NAT-PMP (RFC 6886, 3.1).
const NATPMP_TRIES: (Duration, u32) = (Duration::from_millis(250), 9);

const NONCE_BYTES: usize = 12;
const TCP: u8 = 6;
const UNSUPPORTED_VERSION: u16 = 1;

/// How a router is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// Port Control Protocol.
    Pcp,
    /// NAT Port Mapping Protocol.
    NatPmp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pcp => "PCP",
            Self::NatPmp => "NAT-PMP",
        })
    }
}

/// A PCP request to map a TCP port (RFC 6887, 7.1 and 11.1); a lifetime of 0 deletes the mapping.
fn pcp_map(
    client: Ipv4Addr,
    nonce: &[u8; NONCE_BYTES],
    port: u16,
    wanted: SocketAddrV4,
    lifetime_s: u32,
) -> Vec<u8> {
    let mut bytes = vec![2, 1, 0, 0];
    bytes.extend(lifetime_s.to_be_bytes());
    bytes.extend(client.to_ipv6_mapped().octets());
    bytes.extend(nonce);
    bytes.extend([TCP, 0, 0, 0]);
    bytes.extend(port.to_be_bytes());
    bytes.extend(wanted.port().to_be_bytes());
    bytes.extend(wanted.ip().to_ipv6_mapped().octets());
    bytes
}

/// A NAT-PMP request for the router's outer address (RFC 6886, 3.2).
const NATPMP_ADDRESS: [u8; 2] = [0, 0];

/// A NAT-PMP request to map a TCP port (RFC 6886, 3.3); port and lifetime 0 delete the mapping.
fn natpmp_map(port: u16, wanted: u16, lifetime_s: u32) -> Vec<u8> {
    let mut bytes = vec![0, 2, 0, 0];
    bytes.extend(port.to_be_bytes());
    bytes.extend(wanted.to_be_bytes());
    bytes.extend(lifetime_s.to_be_bytes());
    bytes
}

/// What a router says.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Reply {
    /// PCP: a mapping, or why there is none (result not 0).
    PcpMap {
        result: u8,
        lifetime_s: u32,
        epoch_s: u32,
        nonce: [u8; NONCE_BYTES],
        port: u16,
        outer: SocketAddr,
    },
    /// PCP: the router has started (RFC 6887, 14.1).
    PcpAnnounce { epoch_s: u32 },
    /// PCP: another answer without a body that concerns us.
    PcpRefusal { result: u8, lifetime_s: u32 },
    /// NAT-PMP: the outer address; also said unasked when the router has started.
    Address { epoch_s: u32, ip: Ipv4Addr },
    /// NAT-PMP: a TCP mapping.
    Mapped { epoch_s: u32, port: u16, outer_port: u16, lifetime_s: u32 },
    /// NAT-PMP: a refusal.
    Refusal { result: u16 },
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    array(bytes, at).map(u16::from_be_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    array(bytes, at).map(u32::from_be_bytes)
}

/// Reads a datagram from a router; `None` if it is no answer of either protocol.
fn read(bytes: &[u8]) -> Option<Reply> {
    if bytes.len() > DATAGRAM_BYTES_MAX {
        return None;
    }
    match (bytes.first()?, bytes.get(1)?) {
        (2, opcode) if opcode & 0x80 != 0 => read_pcp(bytes, opcode & 0x7f),
        (0, opcode) if opcode & 0x80 != 0 => read_natpmp(bytes, opcode & 0x7f),
        _ => None,
    }
}

fn read_pcp(bytes: &[u8], opcode: u8) -> Option<Reply> {
    let (result, lifetime_s, epoch_s) = (*bytes.get(3)?, u32_at(bytes, 4)?, u32_at(bytes, 8)?);
    match opcode {
        0 if result == 0 && bytes.len() >= 24 => Some(Reply::PcpAnnounce { epoch_s }),
        1 if bytes.len() >= 60 => {
            let ip = IpAddr::from(array::<16>(bytes, 44)?).to_canonical();
            let outer = SocketAddr::new(ip, u16_at(bytes, 42)?);
            let nonce = array(bytes, 24)?;
            let port = u16_at(bytes, 40)?;
            (bytes[36] == TCP).then_some(Reply::PcpMap { result, lifetime_s, epoch_s, nonce, port, outer })
        }
        _ if result != 0 => Some(Reply::PcpRefusal { result, lifetime_s }),
        _ => None,
    }
}

fn read_natpmp(bytes: &[u8], opcode: u8) -> Option<Reply> {
    let result = u16_at(bytes, 2)?;
    if result != 0 {
        return Some(Reply::Refusal { result });
    }
    let epoch_s = u32_at(bytes, 4)?;
    match opcode {
        0 => Some(Reply::Address { epoch_s, ip: Ipv4Addr::from(array::<4>(bytes, 8)?) }),
        2 => Some(Reply::Mapped {
            epoch_s,
            port: u16_at(bytes, 8)?,
            outer_port: u16_at(bytes, 10)?,
            lifetime_s: u32_at(bytes, 12)?,
        }),
        _ => None,
    }
}

/// Whether a router that said one epoch then and another now has lost its mappings between (RFC 6887, 8.5).
fn is_restarted(then: (u32, Instant), epoch_s: u32, now: Instant) -> bool {
    let client = now.saturating_duration_since(then.1).as_secs();
    let (before, after) = (u64::from(then.0), u64::from(epoch_s));
    if after + 1 < before {
        return true;
    }
    let server = after.saturating_sub(before);
    client + 2 < server - server / 16 || server + 2 < client - client / 16
}

/// What has become of the mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Peers reach this cell here.
    Mapped { external: SocketAddr },
    /// No more.
    Lost,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Send this to the router.
    Send(Vec<u8>),
    /// Tell this to the cell.
    Tell(Change),
    /// Write this to the log: once for each state of things.
    Note(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ask {
    /// Nothing until it is time.
    Nothing,
    PcpMap,
    Address,
    Map,
}

#[derive(Debug, Clone, Copy)]
struct Mapping {
    protocol: Protocol,
    outer: SocketAddrV4,
    expires: Instant,
}

/// One router and the mapping of one TCP port. Feed it time and datagrams; look at `due` after each.
#[derive(Debug)]
pub struct Mapper {
    client: Ipv4Addr,
    port: u16,
    nonce: [u8; NONCE_BYTES],
    /// What is asked, and how often it was.
    ask: Ask,
    tries: u32,
    due: Instant,
    /// NAT-PMP: what the address request gave.
    address: Option<Ipv4Addr>,
    mapping: Option<Mapping>,
    epoch: Option<(u32, Instant)>,
    told: Option<SocketAddrV4>,
    hinted: Option<Instant>,
    /// What the log says of the state of things.
    noted: String,
}

impl Mapper {
    /// Will ask for a TCP `port` of this machine, which has the address `client` towards the router. `nonce` is random.
    pub fn new(client: Ipv4Addr, port: u16, nonce: [u8; NONCE_BYTES], now: Instant) -> Self {
        Self {
            client,
            port,
            nonce,
            ask: Ask::PcpMap,
            tries: 0,
            due: now,
            address: None,
            mapping: None,
            epoch: None,
            told: None,
            hinted: None,
            noted: String::new(),
        }
    }

    /// When `on_time` has something to do.
    pub fn due(&self) -> Instant {
        match &self.mapping {
            Some(mapping) => self.due.min(mapping.expires),
            None => self.due,
        }
    }

    /// What time brings. `dice` spreads the cells of one network.
    pub fn on_time(&mut self, now: Instant, dice: u8) -> Vec<Effect> {
        let mut effects = Vec::new();
        if self.mapping.is_some_and(|mapping| mapping.expires <= now) {
            self.mapping = None;
            effects.extend(self.lose());
        }
        if now < self.due {
            return effects;
        }
        if self.ask == Ask::Nothing {
            self.begin(self.mapping.map_or(Protocol::Pcp, |mapping| mapping.protocol));
        }
        if self.tries >= self.schedule().1 {
            if self.ask != Ask::PcpMap || self.mapping.is_some() {
                effects.extend(self.give_up(now, REST, dice, "does not answer"));
                return effects;
            }
            self.begin(Protocol::NatPmp);
        }
        effects.push(Effect::Send(self.request()));
        let pause = self.schedule().0 * 2u32.pow(self.tries);
        // A tenth either way (RFC 6887, 8.1.1).
        self.due = now + pause * 9 / 10 + pause / 5 * u32::from(dice) / 255;
        self.tries += 1;
        effects
    }

    fn begin(&mut self, protocol: Protocol) {
        self.tries = 0;
        self.ask = match protocol {
            Protocol::Pcp => Ask::PcpMap,
            Protocol::NatPmp => Ask::Address,
        };
    }

    fn schedule(&self) -> (Duration, u32) {
        if self.ask == Ask::PcpMap { PCP_TRIES } else { NATPMP_TRIES }
    }

    fn request(&self) -> Vec<u8> {
        // What was granted is asked for again, also of a router that has forgotten it.
        let wanted =
            self.mapping.map_or(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, self.port), |mapping| mapping.outer);
        match self.ask {
            Ask::PcpMap => pcp_map(self.client, &self.nonce, self.port, wanted, LIFETIME_S),
            Ask::Address | Ask::Nothing => NATPMP_ADDRESS.to_vec(),
            Ask::Map => natpmp_map(self.port, wanted.port(), LIFETIME_S),
        }
    }

    /// The router's machine says that nobody listens there (ICMP).
    pub fn on_refused(&mut self, now: Instant, dice: u8) -> Vec<Effect> {
        match self.ask {
            Ask::Nothing => Vec::new(),
            // Both protocols have one port.
            _ => self.give_up(now, REST, dice, "does not map ports").into_iter().collect(),
        }
    }

    /// A datagram from the router's address and port.
    pub fn on_datagram(&mut self, bytes: &[u8], now: Instant, dice: u8) -> Vec<Effect> {
        let Some(reply) = read(bytes) else { return Vec::new() };
        match (self.ask, reply) {
            (Ask::PcpMap, Reply::PcpMap { result: 0, lifetime_s, epoch_s, nonce, port, outer })
                if nonce == self.nonce && port == self.port =>
            {
                let IpAddr::V4(ip) = outer.ip() else { return Vec::new() };
                self.epoch = Some((epoch_s, now));
                self.granted(Protocol::Pcp, SocketAddrV4::new(ip, outer.port()), lifetime_s, now)
            }
            (Ask::PcpMap, Reply::PcpMap { result, lifetime_s, nonce, port, .. })
                if nonce == self.nonce && port == self.port =>
            {
                self.refused_pcp(result, lifetime_s, now, dice)
            }
            (Ask::PcpMap, Reply::PcpRefusal { result, lifetime_s }) => {
                self.refused_pcp(result, lifetime_s, now, dice)
            }
            // A router that speaks NAT-PMP only says so (RFC 6886, 3.5).
            (Ask::PcpMap, Reply::Refusal { result: UNSUPPORTED_VERSION }) => {
                self.begin_now(Protocol::NatPmp, now)
            }
            (Ask::Address, Reply::Address { epoch_s, ip }) => {
                self.epoch = Some((epoch_s, now));
                self.address = Some(ip);
                (self.ask, self.tries, self.due) = (Ask::Map, 0, now);
                Vec::new()
            }
            (Ask::Map, Reply::Mapped { epoch_s, port, outer_port, lifetime_s }) if port == self.port => {
                self.epoch = Some((epoch_s, now));
                let Some(ip) = self.address else { return Vec::new() };
                self.granted(Protocol::NatPmp, SocketAddrV4::new(ip, outer_port), lifetime_s, now)
            }
            (Ask::Address | Ask::Map, Reply::Refusal { result }) => {
                let why = format!("refuses ({}, result {result})", Protocol::NatPmp);
                self.give_up(now, REST, dice, &why).into_iter().collect()
            }
            _ => Vec::new(),
        }
    }

    /// A datagram from the router's address that it sent to everybody, to say that it has started.
    pub fn on_announcement(&mut self, bytes: &[u8], now: Instant) -> Vec<Effect> {
        let epoch_s = match read(bytes) {
            Some(Reply::PcpAnnounce { epoch_s } | Reply::Address { epoch_s, .. }) => epoch_s,
            _ => return Vec::new(),
        };
        let is_lost = self.epoch.is_none_or(|then| is_restarted(then, epoch_s, now));
        let is_soon = self.hinted.is_some_and(|at| now.saturating_duration_since(at) < HINT_EVERY);
        if is_lost && !is_soon && self.ask == Ask::Nothing {
            self.hinted = Some(now);
            return self.begin_now(self.mapping.map_or(Protocol::Pcp, |mapping| mapping.protocol), now);
        }
        Vec::new()
    }

    fn begin_now(&mut self, protocol: Protocol, now: Instant) -> Vec<Effect> {
        self.begin(protocol);
        self.due = now;
        Vec::new()
    }

    fn refused_pcp(&mut self, result: u8, lifetime_s: u32, now: Instant, dice: u8) -> Vec<Effect> {
        // A version or an opcode that it does not know: perhaps it knows the older protocol.
        if matches!(result, 1 | 4) && self.mapping.is_none() {
            return self.begin_now(Protocol::NatPmp, now);
        }
        let (least, most) = (*REFUSED_S_RANGE.start(), *REFUSED_S_RANGE.end());
        let rest = Duration::from_secs(lifetime_s.clamp(least, most).into());
        let why = format!("refuses ({}, result {result})", Protocol::Pcp);
        self.give_up(now, rest, dice, &why).into_iter().collect()
    }

    fn granted(
        &mut self,
        protocol: Protocol,
        outer: SocketAddrV4,
        lifetime_s: u32,
        now: Instant,
    ) -> Vec<Effect> {
        if outer.port() == 0 || lifetime_s == 0 {
            return Vec::new();
        }
        let lifetime_s = lifetime_s.clamp(*LIFETIME_S_RANGE.start(), *LIFETIME_S_RANGE.end());
        let lifetime = Duration::from_secs(lifetime_s.into());
        self.mapping = Some(Mapping { protocol, outer, expires: now + lifetime });
        (self.ask, self.due) = (Ask::Nothing, now + lifetime / 2);
        if !is_global(IpAddr::V4(*outer.ip())) {
            let mut effects: Vec<Effect> = self.lose().into_iter().collect();
            let ip = outer.ip();
            effects.extend(self.note(format!(
                "the router has mapped a port, but at {ip}, which is behind another router; peers elsewhere need a relay"
            )));
            return effects;
        }
        if self.told == Some(outer) {
            return Vec::new();
        }
        self.told = Some(outer);
        let mut effects = vec![Effect::Tell(Change::Mapped { external: outer.into() })];
        effects.extend(self.note(format!("the router ({protocol}) has mapped {outer} to this cell")));
        effects
    }

    fn lose(&mut self) -> Option<Effect> {
        self.told.take().map(|_| Effect::Tell(Change::Lost))
    }

    fn note(&mut self, text: String) -> Option<Effect> {
        if self.noted == text {
            return None;
        }
        self.noted.clone_from(&text);
        Some(Effect::Note(text))
    }

    /// Lets the router be: for `rest`, or until a mapping that is still good should be renewed again.
    fn give_up(&mut self, now: Instant, rest: Duration, dice: u8, why: &str) -> Option<Effect> {
        self.ask = Ask::Nothing;
        if let Some(mapping) = &self.mapping {
            let left = mapping.expires.saturating_duration_since(now);
            self.due = now + (left / 2).max(RENEW_AGAIN);
            return None;
        }
        self.due = now + rest + rest / 4 * u32::from(dice) / 255;
        self.note(format!("no port is mapped: the router {why}"))
    }

    /// What deletes the mapping, if there is one.
    pub fn release(&self) -> Option<Vec<u8>> {
        let mapping = self.mapping.as_ref()?;
        Some(match mapping.protocol {
            // RFC 6887, 15.1: the suggested address may be all zeros then.
            Protocol::Pcp => {
                let any = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0);
                pcp_map(self.client, &self.nonce, self.port, any, 0)
            }
            Protocol::NatPmp => natpmp_map(self.port, 0, 0),
        })
    }
}

/// The gateway of the IPv4 default route in the text of /proc/…/net/route: of several the one of the lowest metric.
pub fn default_gateway(routes: &str) -> Option<Ipv4Addr> {
    const UP_GATEWAY: u32 = 1 | 2;
    let candidates = routes.lines().skip(1).filter_map(|line| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let number = |at: usize| u32::from_str_radix(fields.get(at)?, 16).ok();
        let metric: u32 = fields.get(6)?.parse().ok()?;
        let is_default = number(1)? == 0 && number(7)? == 0 && number(3)? & UP_GATEWAY == UP_GATEWAY;
        // Addresses stand there as the machine's own words.
        is_default.then_some((metric, Ipv4Addr::from(number(2)?.to_ne_bytes())))
    });
    candidates.min_by_key(|(metric, _)| *metric).map(|(_, gateway)| gateway)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::noise::tests::Dice;

    const CLIENT: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 7);
    const OUTER: Ipv4Addr = Ipv4Addr::new(9, 8, 7, 6);
    const NONCE: [u8; 12] = [5; 12];

    fn mapper(now: Instant) -> Mapper {
        Mapper::new(CLIENT, 5679, NONCE, now)
    }

    fn pcp_reply(outer: SocketAddrV4, result: u8, lifetime_s: u32, epoch_s: u32) -> Vec<u8> {
        let mut bytes = pcp_map(CLIENT, &NONCE, 5679, outer, lifetime_s);
        bytes[1] |= 0x80;
        bytes[3] = result;
        bytes[8..12].copy_from_slice(&epoch_s.to_be_bytes());
        bytes[12..24].fill(0);
        bytes
    }

    fn address_reply(ip: Ipv4Addr, epoch_s: u32) -> Vec<u8> {
        [&[0, 128, 0, 0][..], &epoch_s.to_be_bytes(), &ip.octets()].concat()
    }

    fn map_reply(outer_port: u16, lifetime_s: u32, epoch_s: u32) -> Vec<u8> {
        let ports = [5679u16.to_be_bytes(), outer_port.to_be_bytes()].concat();
        [&[0, 130, 0, 0][..], &epoch_s.to_be_bytes(), &ports, &lifetime_s.to_be_bytes()].concat()
    }

    fn outer(port: u16) -> SocketAddrV4 {
        SocketAddrV4::new(OUTER, port)
    }

    fn mapped(port: u16) -> Effect {
        Effect::Tell(Change::Mapped { external: outer(port).into() })
    }

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// Lets time pass up to `end` with a router that says nothing: what was sent when, in ms, and what else came of it.
    fn silence(mapper: &mut Mapper, start: Instant, end: Instant) -> (Vec<(u128, Vec<u8>)>, Vec<Effect>) {
        let (mut sent, mut other) = (Vec::new(), Vec::new());
        while mapper.due() <= end {
            let now = mapper.due();
            for effect in mapper.on_time(now, 127) {
                match effect {
                    Effect::Send(bytes) => sent.push((now.duration_since(start).as_millis(), bytes)),
                    effect => other.push(effect),
                }
            }
        }
        (sent, other)
    }

    /// Asked by PCP and granted.
    fn granted(start: Instant) -> Mapper {
        let mut mapper = mapper(start);
        mapper.on_time(start, 0);
        let effects = mapper.on_datagram(&pcp_reply(outer(5679), 0, 1200, 1000), start, 0);
        assert_eq!(effects[0], mapped(5679));
        mapper
    }

    #[test]
    fn requests_are_those_of_the_rfcs() {
        let bytes = pcp_map(CLIENT, &NONCE, 5679, SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 5679), 1200);
        let expected = [
            &[2, 1, 0, 0, 0, 0, 4, 0xb0][..],
            &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 168, 1, 7],
            &NONCE,
            &[6, 0, 0, 0, 0x16, 0x2f, 0x16, 0x2f],
            &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0, 0, 0],
        ];
        assert_eq!(bytes, expected.concat());
        assert_eq!(natpmp_map(5679, 5679, 1200), [0, 2, 0, 0, 0x16, 0x2f, 0x16, 0x2f, 0, 0, 4, 0xb0]);
        let mut mapper = mapper(Instant::now());
        assert_eq!(mapper.on_time(Instant::now(), 0), [Effect::Send(bytes)]);
    }

    #[test]
    fn router_without_either_protocol_is_asked_some_times_and_then_left_alone_for_an_hour() {
        let start = Instant::now();
        let mut mapper = mapper(start);
        let (sent, other) = silence(&mut mapper, start, start + s(3500));
        let versions: Vec<u8> = sent.iter().map(|(_, bytes)| bytes[0]).collect();
        assert_eq!(versions, [2, 2, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        let pauses: Vec<u128> = sent.windows(2).map(|pair| pair[1].0 - pair[0].0).collect();
        let wanted = [3000, 6000, 12_000, 250, 500, 1000, 2000, 4000, 8000, 16_000, 32_000];
        assert!(pauses.iter().zip(wanted).all(|(pause, wanted)| pause.abs_diff(wanted) <= wanted / 50));
        assert!(matches!(&other[..], [Effect::Note(why)] if why.contains("does not answer")));
        // In a day: two dozen times the same, and nothing more in the log.
        let (sent, other) = silence(&mut mapper, start, start + s(86_400));
        assert!((18 * 12..=24 * 12).contains(&sent.len()) && other.is_empty(), "{} {other:?}", sent.len());
    }

    #[test]
    fn machine_that_refuses_is_left_alone_at_once() {
        let start = Instant::now();
        let mut mapper = mapper(start);
        mapper.on_time(start, 0);
        assert!(matches!(&mapper.on_refused(start, 0)[..], [Effect::Note(_)]));
        assert!(mapper.due() >= start + REST && mapper.on_refused(start, 0).is_empty());
    }

    #[test]
    fn mapping_is_told_once_and_renewed_at_half_its_life() {
        let start = Instant::now();
        let mut mapper = granted(start);
        assert_eq!(mapper.due(), start + s(600));
        let request = mapper.on_time(start + s(600), 0);
        assert_eq!(request, [Effect::Send(pcp_map(CLIENT, &NONCE, 5679, outer(5679), LIFETIME_S))]);
        let again = pcp_reply(outer(5679), 0, 1200, 1600);
        assert_eq!(mapper.on_datagram(&again, start + s(601), 0), []);
        assert_eq!(mapper.due(), start + s(1201));
        assert_eq!(mapper.on_datagram(&again, start + s(602), 0), [], "nobody asked");
        assert_eq!(mapper.due(), start + s(1201));
        // Another port after a restart of the router is news.
        mapper.on_time(start + s(1201), 0);
        let other = pcp_reply(outer(40_000), 0, 1200, 3);
        assert_eq!(mapper.on_datagram(&other, start + s(1202), 0)[0], mapped(40_000));
    }

    #[test]
    fn mapping_whose_router_falls_silent_is_lost_when_it_ends_and_asked_for_again() {
        let start = Instant::now();
        let mut mapper = granted(start);
        let (sent, other) = silence(&mut mapper, start, start + s(1199));
        assert!(other.is_empty() && (6..=15).contains(&sent.len()), "{}", sent.len());
        let (_, other) = silence(&mut mapper, start, start + s(1200));
        assert_eq!(other, [Effect::Tell(Change::Lost)]);
        let (sent, _) = silence(&mut mapper, start, start + s(1500));
        assert_eq!(sent.len(), 12, "both protocols");
        assert!(mapper.release().is_none());
    }

    #[test]
    fn older_router_is_asked_by_natpmp() {
        let start = Instant::now();
        let mut mapper = mapper(start);
        mapper.on_time(start, 0);
        // RFC 6886, 3.5: version 0, result 1.
        assert_eq!(mapper.on_datagram(&[0, 129, 0, 1, 0, 0, 0, 9], start, 0), []);
        assert_eq!(mapper.on_time(mapper.due(), 0), [Effect::Send(vec![0, 0])]);
        assert_eq!(mapper.on_datagram(&map_reply(1, 1200, 9), start, 0), [], "not asked yet");
        assert_eq!(mapper.on_datagram(&address_reply(OUTER, 9), start, 0), []);
        assert_eq!(mapper.on_time(mapper.due(), 0), [Effect::Send(natpmp_map(5679, 5679, LIFETIME_S))]);
        assert_eq!(mapper.on_datagram(&map_reply(5680, 600, 9), start, 0)[0], mapped(5680));
        assert_eq!(mapper.due(), start + s(300));
        assert_eq!(mapper.release(), Some(natpmp_map(5679, 0, 0)));
        assert_eq!(mapper.on_time(start + s(300), 0), [Effect::Send(vec![0, 0])], "the address may be new");
    }

    #[test]
    fn address_behind_another_router_is_not_told_and_said_once() {
        for ip in ["10.1.2.3", "192.168.0.2", "100.64.9.9", "172.16.0.1", "169.254.1.1", "0.0.0.0"] {
            let start = Instant::now();
            let mut mapper = mapper(start);
            mapper.on_time(start, 0);
            let reply = pcp_reply(SocketAddrV4::new(ip.parse().unwrap(), 5679), 0, 1200, 7);
            let effects = mapper.on_datagram(&reply, start, 0);
            assert!(matches!(&effects[..], [Effect::Note(why)] if why.contains(ip)), "{effects:?}");
            mapper.on_time(start + s(600), 0);
            assert_eq!(mapper.on_datagram(&reply, start + s(600), 0), []);
            assert!(mapper.release().is_some());
        }
        // A public address that becomes such a one is lost.
        let start = Instant::now();
        let mut mapper = granted(start);
        mapper.on_time(start + s(600), 0);
        let reply = pcp_reply(SocketAddrV4::new(CLIENT, 5679), 0, 1200, 1600);
        assert_eq!(mapper.on_datagram(&reply, start + s(600), 0)[0], Effect::Tell(Change::Lost));
    }

    #[test]
    fn refusal_is_respected_for_a_time() {
        let any = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0);
        for (lifetime_s, rest_s) in [(0, 300), (1800, 1800), (u32::MAX, 3600)] {
            let start = Instant::now();
            let mut mapper = mapper(start);
            mapper.on_time(start, 0);
            let effects = mapper.on_datagram(&pcp_reply(any, 8, lifetime_s, 7), start, 0);
            assert!(matches!(&effects[..], [Effect::Note(_)]));
            assert_eq!(mapper.due(), start + s(rest_s));
        }
    }

    #[test]
    fn restarted_router_is_asked_at_once() {
        let start = Instant::now();
        let announce =
            |epoch_s: u32| [&[2, 128, 0, 0, 0, 0, 0, 0][..], &epoch_s.to_be_bytes(), &[0; 12]].concat();
        let mut mapper = granted(start);
        mapper.on_announcement(&announce(1100), start + s(100));
        assert_eq!(mapper.due(), start + s(600), "the clocks agree: nothing was lost");
        mapper.on_announcement(&address_reply(OUTER, 2), start + s(100));
        assert_eq!(mapper.due(), start + s(100));
        mapper.on_time(start + s(100), 0);
        mapper.on_datagram(&pcp_reply(outer(5679), 0, 1200, 2), start + s(100), 0);
        mapper.on_announcement(&announce(0), start + s(110));
        assert_eq!(mapper.due(), start + s(700), "not more often than every half minute");
        mapper.on_announcement(&announce(0), start + s(150));
        assert_eq!(mapper.due(), start + s(150));
    }

    #[test]
    fn epochs_tell_a_restart_from_a_slow_clock() {
        let start = Instant::now();
        let is_lost = |after: u32, passed: u64| is_restarted((1000, start), after, start + s(passed));
        assert!(!is_lost(1000, 0) && !is_lost(999, 0) && !is_lost(1600, 600) && !is_lost(1570, 600));
        assert!(is_lost(0, 0) && is_lost(998, 0) && is_lost(1000, 600) && is_lost(u32::MAX, 600));
    }

    #[test]
    fn datagrams_of_any_bytes_grant_nothing() {
        let start = Instant::now();
        let mut dice = Dice(4);
        let good = [
            pcp_reply(outer(1), 0, 1200, 7),
            map_reply(1, 1200, 7),
            address_reply(OUTER, 7),
            pcp_reply(outer(1), 1, 0, 7),
        ];
        for round in 0..4000 {
            let mut mapper = mapper(start);
            mapper.on_time(start, 0);
            let mut bytes = match round % 2 {
                0 => {
                    let len = dice.roll(80);
                    dice.bytes(len)
                }
                _ => good[dice.roll(4)].clone(),
            };
            // What decides: the nonce, or the length.
            if round % 4 == 1 && bytes.len() > 36 {
                bytes[24 + dice.roll(12)] ^= 1;
            } else {
                let at = dice.roll(bytes.len() + 1).min(59);
                bytes.truncate(at);
            }
            let effects = mapper.on_datagram(&bytes, start, 0);
            assert!(!effects.iter().any(|effect| matches!(effect, Effect::Tell(_))), "{bytes:?}");
            mapper.on_announcement(&bytes, start);
            let (sent, _) = silence(&mut mapper, start, start + s(200));
            assert!(sent.len() <= 13);
        }
    }

    #[test]
    fn gateway_is_the_default_route_of_the_lowest_metric() {
        let word = |ip: [u8; 4]| format!("{:08X}", u32::from_ne_bytes(ip));
        let line = |device: &str, to: [u8; 4], via: [u8; 4], flags: &str, metric: u32, mask: [u8; 4]| {
            format!(
                "{device}\t{}\t{}\t{flags}\t0\t0\t{metric}\t{}\t0\t0\t0\n",
                word(to),
                word(via),
                word(mask)
            )
        };
        let routes = [
            "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n"
                .to_owned(),
            line("wlan0", [0; 4], [192, 168, 2, 1], "0003", 600, [0; 4]),
            line("eth0", [0; 4], [192, 168, 1, 1], "0003", 100, [0; 4]),
            line("tun0", [0; 4], [0; 4], "0001", 0, [0; 4]),
            line("eth0", [0; 4], [10, 0, 0, 1], "0003", 5, [128, 0, 0, 0]),
            line("eth0", [192, 168, 1, 0], [0; 4], "0001", 100, [255, 255, 255, 0]),
        ];
        assert_eq!(default_gateway(&routes.concat()), Some(Ipv4Addr::new(192, 168, 1, 1)));
        assert_eq!(default_gateway(&routes[0]), None);
        assert_eq!(default_gateway("nonsense\nmore of it\n"), None);
    }
}

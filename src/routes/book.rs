//! What is known of the routes to each peer, and its form in peer_speeds.json.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use miniserde::json::{self, Number, Object, Value};

use super::{Kind, Network, Speed, Way};
use crate::id::{CellId, hex, unhex};
use crate::order;

/// Routes known of one peer; those that answered longest ago go first.
const ROUTES_MAX: usize = 32;
/// Peers with measured routes that peer_speeds.json keeps.
const PEERS_MAX: usize = 1024;
/// Letters of an error that is kept.
const ERROR_BYTES_MAX: usize = 200;
/// Real traffic tells the speed of a route only in pieces of at least so much. Bytes.
const TELLING_BYTES: u64 = 1 << 20;
/// Failures beyond so many do not put a route further back.
const FAILURES_TOLD: u32 = 3;

/// One way to a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// `host:port`, or the URL of a relay.
    pub address: String,
    /// What it runs over.
    pub kind: Kind,
    /// Measured; `None`: never.
    pub speed: Option<Speed>,
    /// Unix time of the last measurement, 0: never.
    pub measured_at: i64,
    /// Unix time of the last connection over it.
    pub succeeded_at: Option<i64>,
    /// Failures since.
    pub failures: u32,
    /// What the last failure said, or empty.
    pub error: String,
    /// A card, an invite or a beacon names it now; otherwise it is only remembered.
    pub is_named: bool,
}

impl Route {
    fn new(address: &str, kind: Kind) -> Self {
        Self {
            address: address.to_owned(),
            kind,
            speed: None,
            measured_at: 0,
            succeeded_at: None,
            failures: 0,
            error: String::new(),
            is_named: true,
        }
    }

    /// Measured, or what is usual for its kind.
    pub fn expected(&self) -> Speed {
        self.speed.unwrap_or_else(|| self.kind.usual())
    }

    fn order(&self) -> (u32, u64) {
        (self.failures.min(FAILURES_TOLD), self.expected().chunk_us())
    }
}

/// The routes to all peers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RouteBook {
    peers: BTreeMap<CellId, Vec<Route>>,
    is_changed: bool,
}

impl RouteBook {
    /// These are the addresses of a peer now. Others are forgotten, but for their speed if they were measured.
    pub fn name(&mut self, peer: &CellId, addresses: &[String], own: &[Network]) {
        let routes = self.peers.entry(*peer).or_default();
        for route in routes.iter_mut() {
            route.is_named = addresses.contains(&route.address);
            // Networks change, and with them what is near.
            route.kind = Kind::of_address(&route.address, own);
        }
        for address in addresses {
            if !routes.iter().any(|route| route.address == *address) {
                routes.push(Route::new(address, Kind::of_address(address, own)));
            }
        }
        routes.retain(|route| route.is_named || route.speed.is_some());
        if routes.len() > ROUTES_MAX {
            order::sort_by_key(routes, |route| std::cmp::Reverse((route.is_named, route.succeeded_at)));
            routes.truncate(ROUTES_MAX);
        }
    }

    /// Routes to dial, best first: those that did not fail lately, by the time one chunk would take.
    pub fn ranked(&self, peer: &CellId) -> Vec<Route> {
        let mut routes: Vec<Route> =
            self.peers.get(peer).into_iter().flatten().filter(|route| route.is_named).cloned().collect();
        order::sort_by(&mut routes, |a, b| a.order().cmp(&b.order()).then_with(|| a.address.cmp(&b.address)));
        routes
    }

    /// The route with this address.
    pub fn route(&self, peer: &CellId, address: &str) -> Option<&Route> {
        self.peers.get(peer)?.iter().find(|route| route.address == address)
    }

    /// What was measured to this host of the peer, whatever the port: for connections that the peer dialled.
    pub fn speed_to_host(&self, peer: &CellId, ip: IpAddr) -> Option<Speed> {
        let is_there = |route: &&Route| {
            route.address.parse::<SocketAddr>().is_ok_and(|at| at.ip().to_canonical() == ip.to_canonical())
        };
        self.peers.get(peer)?.iter().filter(is_there).find_map(|route| route.speed)
    }

    fn change(&mut self, peer: &CellId, address: &str, change: impl FnOnce(&mut Route)) {
        let route = self
            .peers
            .get_mut(peer)
            .and_then(|routes| routes.iter_mut().find(|route| route.address == address));
        if let Some(route) = route {
            change(route);
            self.is_changed = true;
        }
    }

    /// It led to the peer.
    pub fn note_success(&mut self, peer: &CellId, address: &str, kind: Kind, now: i64) {
        self.change(peer, address, |route| {
            (route.kind, route.succeeded_at, route.failures) = (kind, Some(now), 0);
            route.error.clear();
        });
    }

    /// It did not, and why.
    pub fn note_failure(&mut self, peer: &CellId, address: &str, why: &str) {
        self.change(peer, address, |route| {
            route.failures = route.failures.saturating_add(1);
            route.error = why.chars().filter(|c| !c.is_control()).take(ERROR_BYTES_MAX).collect();
        });
    }

    /// It was measured.
    pub fn note_speed(&mut self, peer: &CellId, address: &str, speed: Speed, now: i64) {
        self.change(peer, address, |route| (route.speed, route.measured_at) = (Some(speed), now));
    }

    /// So many bytes went over it in so many microseconds. The network was not always what was slow, so better news
    /// counts half and worse an eighth. Gives the speed that follows.
    pub fn note_traffic(
        &mut self,
        peer: &CellId,
        address: &str,
        way: Way,
        bytes: u64,
        us: u64,
    ) -> Option<Speed> {
        if bytes < TELLING_BYTES || us == 0 {
            return None;
        }
        let seen = bytes.saturating_mul(1_000_000) / us;
        let mut changed = None;
        self.change(peer, address, |route| {
            let mut speed = route.expected();
            let known = match way {
                Way::Up => &mut speed.up_bytes_per_s,
                Way::Down => &mut speed.down_bytes_per_s,
            };
            *known = if seen > *known { (*known + seen) / 2 } else { *known - (*known - seen) / 8 };
            route.speed = Some(speed);
            changed = Some(speed);
        });
        changed
    }

    /// When the routes of a peer were last measured, all of those named. Unix time; 0: one never was.
    pub fn measured_at(&self, peer: &CellId) -> i64 {
        let named = self.peers.get(peer).into_iter().flatten().filter(|route| route.is_named);
        // One that does not answer cannot be measured.
        named.filter(|route| route.failures == 0).map(|route| route.measured_at).min().unwrap_or(0)
    }

    /// The peer is none any more.
    pub fn forget(&mut self, peer: &CellId) {
        self.is_changed |= self.peers.remove(peer).is_some();
    }

    /// Whether there is something to write since this was asked last.
    pub fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.is_changed)
    }

    /// The text of peer_speeds.json: measured routes by peer.
    pub fn to_json(&self) -> String {
        let mut peers = Object::new();
        for (id, routes) in self.peers.iter().take(PEERS_MAX) {
            let measured: Vec<Value> = routes.iter().filter_map(to_value).collect();
            if !measured.is_empty() {
                peers.insert(hex(&id.0), Value::Array(measured.into_iter().collect()));
            }
        }
        json::to_string(&peers)
    }

    /// Reads it; what makes no sense is left out, for everything in it can be measured again.
    pub fn from_json(text: &str) -> Self {
        let mut book = Self::default();
        let Ok(Value::Object(peers)) = json::from_str::<Value>(text) else { return book };
        for (id, routes) in peers.into_iter().take(PEERS_MAX) {
            let id: Option<[u8; 32]> = unhex(&id).and_then(|bytes| bytes.try_into().ok());
            if let (Some(id), Value::Array(routes)) = (id, routes) {
                let routes = routes.iter().take(ROUTES_MAX).filter_map(from_value).collect();
                book.peers.insert(CellId(id), routes);
            }
        }
        book
    }
}

fn to_value(route: &Route) -> Option<Value> {
    let speed = route.speed?;
    let number = |number: u64| Value::Number(Number::U64(number));
    let mut object = Object::new();
    object.insert("address".into(), Value::String(route.address.clone()));
    object.insert("kind".into(), Value::String(route.kind.as_str().into()));
    object.insert("rtt_us".into(), number(speed.rtt_us));
    object.insert("up_bytes_per_s".into(), number(speed.up_bytes_per_s));
    object.insert("down_bytes_per_s".into(), number(speed.down_bytes_per_s));
    object.insert("measured_at".into(), number(route.measured_at.max(0) as u64));
    object.insert("succeeded_at".into(), number(route.succeeded_at.unwrap_or(0).max(0) as u64));
    Some(Value::Object(object))
}

fn from_value(value: &Value) -> Option<Route> {
    let Value::Object(object) = value else { return None };
    let number = |key: &str| match object.get(key) {
        Some(Value::Number(Number::U64(number))) => Some(*number),
        Some(Value::Number(Number::I64(number))) => u64::try_from(*number).ok(),
        _ => None,
    };
    let text = |key: &str| match object.get(key) {
        Some(Value::String(text)) => Some(text.as_str()),
        _ => None,
    };
    let speed = Speed {
        rtt_us: number("rtt_us")?,
        up_bytes_per_s: number("up_bytes_per_s")?,
        down_bytes_per_s: number("down_bytes_per_s")?,
    };
    let time = |key| number(key).and_then(|at| i64::try_from(at).ok());
    Some(Route {
        speed: Some(speed),
        measured_at: time("measured_at").unwrap_or(0),
        succeeded_at: time("succeeded_at").filter(|at| *at > 0),
        is_named: false,
        ..Route::new(text("address")?, text("kind")?.parse().ok()?)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANN: CellId = CellId([1; 32]);

    fn names(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| (*text).to_owned()).collect()
    }

    fn speed(rtt_us: u64, bytes_per_s: u64) -> Speed {
        Speed { rtt_us, up_bytes_per_s: bytes_per_s, down_bytes_per_s: bytes_per_s }
    }

    fn order(book: &RouteBook) -> Vec<String> {
        book.ranked(&ANN).into_iter().map(|route| route.address).collect()
    }

    #[test]
    fn likely_routes_come_first_until_they_are_measured() {
        let mut book = RouteBook::default();
        let all = names(&["wss://relay.example", "9.9.9.9:1", "192.168.1.2:1", "[200::1]:1"]);
        book.name(&ANN, &all, &[]);
        assert_eq!(order(&book), ["192.168.1.2:1", "9.9.9.9:1", "[200::1]:1", "wss://relay.example"]);
        book.note_speed(&ANN, "192.168.1.2:1", speed(90_000, 100_000), 5);
        book.note_speed(&ANN, "wss://relay.example", speed(10_000, 9_000_000), 5);
        assert_eq!(order(&book), ["wss://relay.example", "9.9.9.9:1", "[200::1]:1", "192.168.1.2:1"]);
    }

    #[test]
    fn route_that_fails_goes_to_the_end_and_comes_back_when_it_answers() {
        let mut book = RouteBook::default();
        book.name(&ANN, &names(&["9.9.9.9:1", "192.168.1.2:1"]), &[]);
        book.note_failure(&ANN, "192.168.1.2:1", "no route to host\n");
        assert_eq!(order(&book), ["9.9.9.9:1", "192.168.1.2:1"]);
        assert_eq!(book.route(&ANN, "192.168.1.2:1").unwrap().error, "no route to host");
        book.note_success(&ANN, "192.168.1.2:1", Kind::Lan, 7);
        assert_eq!(order(&book), ["192.168.1.2:1", "9.9.9.9:1"]);
    }

    #[test]
    fn traffic_raises_a_speed_soon_and_lowers_it_slowly() {
        let mut book = RouteBook::default();
        book.name(&ANN, &names(&["9.9.9.9:1"]), &[]);
        book.note_speed(&ANN, "9.9.9.9:1", speed(10_000, 8_000_000), 1);
        let up = book.note_traffic(&ANN, "9.9.9.9:1", Way::Up, 16_000_000, 1_000_000).unwrap();
        assert_eq!((up.up_bytes_per_s, up.down_bytes_per_s), (12_000_000, 8_000_000));
        let down = book.note_traffic(&ANN, "9.9.9.9:1", Way::Down, 4_000_000, 1_000_000).unwrap();
        assert_eq!(down.down_bytes_per_s, 7_500_000);
        assert_eq!(book.note_traffic(&ANN, "9.9.9.9:1", Way::Down, 1000, 1), None);
    }

    #[test]
    fn addresses_no_longer_named_are_forgotten_unless_measured_and_never_dialled() {
        let mut book = RouteBook::default();
        book.name(&ANN, &names(&["9.9.9.9:1", "9.9.9.8:1"]), &[]);
        book.note_speed(&ANN, "9.9.9.9:1", speed(10_000, 8_000_000), 1);
        book.name(&ANN, &names(&["9.9.9.7:1"]), &[]);
        assert_eq!(order(&book), ["9.9.9.7:1"]);
        assert!(book.route(&ANN, "9.9.9.9:1").is_some() && book.route(&ANN, "9.9.9.8:1").is_none());
        let many: Vec<String> = (0..100).map(|port| format!("9.9.9.9:{}", port + 1)).collect();
        book.name(&ANN, &many, &[]);
        assert_eq!(order(&book).len(), ROUTES_MAX);
    }

    #[test]
    fn speeds_read_back_and_rubbish_is_left_out() {
        let mut book = RouteBook::default();
        book.name(&ANN, &names(&["9.9.9.9:1", "9.9.9.8:1"]), &[]);
        book.note_success(&ANN, "9.9.9.9:1", Kind::Wan, 3);
        book.note_speed(&ANN, "9.9.9.9:1", speed(10_000, 8_000_000), 4);
        let mut again = RouteBook::from_json(&book.to_json());
        again.name(&ANN, &names(&["9.9.9.9:1"]), &[]);
        assert_eq!(again.route(&ANN, "9.9.9.9:1"), book.route(&ANN, "9.9.9.9:1"));
        for rubbish in ["", "[]", "{\"x\":[]}", &format!("{{\"{}\":[1,{{}}]}}", hex(&[1; 32]))] {
            assert!(RouteBook::from_json(rubbish).ranked(&ANN).is_empty());
        }
    }

    #[test]
    fn peers_are_due_for_measurement_while_one_answering_route_never_was() {
        let mut book = RouteBook::default();
        book.name(&ANN, &names(&["9.9.9.9:1", "9.9.9.8:1"]), &[]);
        book.note_speed(&ANN, "9.9.9.9:1", speed(1, 1), 4);
        assert_eq!(book.measured_at(&ANN), 0);
        book.note_failure(&ANN, "9.9.9.8:1", "dead");
        assert_eq!(book.measured_at(&ANN), 4);
    }
}

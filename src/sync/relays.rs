//! Relays as this cell uses them: it waits at its own, and visits those of a peer to open a circuit.
//!
//! One connection to a relay serves both: a second login of the same cell would end the first.

use std::cell::{Cell, RefCell};
use std::net::{IpAddr, Ipv6Addr};
use std::rc::Rc;
use std::time::{Duration, Instant};

use smol::Task;
use smol::lock::Mutex;

use super::connect::Arrived;
use super::driver::Sync;
use crate::config::Config;
use crate::id::CellId;
use crate::relay::Url;
use crate::relay::client::{Circuit, CircuitError, Client, Keeper, Options, State, connect, keep};
use crate::relay::url::BadUrl;
use crate::routes::Kind;
use crate::wire::handshake::{Approach, HandshakeError, HandshakeLimiter, initiate};
use crate::wire::{BoxStream, Transport};
use crate::world::{instant, since};

/// Relays that are visited at once, beside this cell's own.
const VISITS_MAX: usize = 8;
/// A visit without circuits ends after this.
const VISIT_IDLE_MAX: Duration = Duration::from_secs(60);
/// Handshakes over circuits under way at once.
const KNOCKS_MAX: usize = 32;

/// A relay of a peer's.
struct Visit {
    url: Url,
    client: Client,
    /// When the last circuit was seen.
    used_at: Cell<Instant>,
    _task: Task<()>,
}

/// All relays that this cell is connected to.
pub(super) struct Relays {
    options: Options,
    own: RefCell<Vec<(Keeper, Task<()>)>>,
    visits: RefCell<Vec<Visit>>,
    /// One visit to a relay begins at a time: two dials to it share it. Another relay does not wait for one that is dead.
    doors: RefCell<Vec<(Url, Rc<Mutex<()>>)>>,
    knocks: Cell<usize>,
    limiter: RefCell<HandshakeLimiter>,
}

/// How a relay of this cell's stands, for people.
#[derive(Debug, Clone)]
pub struct RelayView {
    /// As config.json has it.
    pub url: String,
    /// Circuits can be opened.
    pub is_connected: bool,
    /// Why not, or empty.
    pub why: String,
}

impl Relays {
    pub(super) fn new(config: &Config) -> Self {
        Self {
            options: Options::of(config),
            own: RefCell::default(),
            visits: RefCell::default(),
            doors: RefCell::default(),
            knocks: Cell::new(0),
            limiter: RefCell::new(HandshakeLimiter::new(instant())),
        }
    }

    /// Ends all connections in order.
    pub(super) fn stop(&self) {
        self.own.borrow().iter().for_each(|(keeper, _)| keeper.stop());
        self.visits.borrow().iter().for_each(|visit| visit.client.close());
    }

    fn keeper(&self, url: &Url) -> Option<Keeper> {
        self.own.borrow().iter().map(|(keeper, _)| keeper).find(|keeper| is_same(keeper.url(), url)).cloned()
    }

    fn visit(&self, url: &Url) -> Option<Client> {
        let visits = self.visits.borrow();
        let visit = visits.iter().find(|visit| is_same(&visit.url, url) && visit.client.is_alive())?;
        visit.used_at.set(instant());
        Some(visit.client.clone())
    }

    /// What is locked while a visit to a relay begins.
    fn door(&self, url: &Url) -> Rc<Mutex<()>> {
        let mut doors = self.doors.borrow_mut();
        // Nobody is at those any more.
        doors.retain(|(_, door)| Rc::strong_count(door) > 1);
        if let Some((_, door)) = doors.iter().find(|(known, _)| is_same(known, url)) {
            return Rc::clone(door);
        }
        let door = Rc::new(Mutex::new(()));
        doors.push((url.clone(), Rc::clone(&door)));
        door
    }

    /// Ends visits that are over, and those that nothing came of.
    fn tidy(&self) {
        self.visits.borrow_mut().retain(|visit| {
            if visit.client.circuits_live() > 0 {
                visit.used_at.set(instant());
            }
            if since(visit.used_at.get()) > VISIT_IDLE_MAX {
                visit.client.close();
            }
            visit.client.is_alive()
        });
    }
}

/// Two names of one relay, whatever they pin.
fn is_same(a: &Url, b: &Url) -> bool {
    (a.is_tls, &a.host, a.port, &a.path) == (b.is_tls, &b.host, b.port, &b.path)
}

fn broken(why: &CircuitError) -> HandshakeError {
    HandshakeError::Unreachable(std::io::Error::other(why.to_string()))
}

impl Sync {
    /// Waits at the relays of config.json from now on.
    pub(super) fn start_relays(self: &Rc<Self>) {
        for text in &self.vault.config.relay_urls {
            let url: Url = match text.parse() {
                Ok(url) => url,
                Err(why) => {
                    let why: BadUrl = why;
                    log::warn!("relay.urls in config.json: {text}: {why}");
                    continue;
                }
            };
            let (keeper, work) = keep(url, self.vault.identity.clone(), self.relays.options.clone());
            let (sync, kept) = (Rc::clone(self), keeper.clone());
            let accept = async move {
                while let Some((from, circuit)) = kept.accept().await {
                    sync.hear_circuit(from, circuit);
                }
            };
            let (sync, kept) = (Rc::clone(self), keeper.clone());
            let watch = async move {
                loop {
                    kept.changed().await;
                    if kept.client().is_some() {
                        sync.wake_all_dialers();
                    }
                }
            };
            let work = smol::future::or(work, smol::future::or(accept, watch));
            self.relays.own.borrow_mut().push((keeper, self.spawn(work)));
        }
    }

    /// URLs of the relays this cell waits at, for its card.
    pub(super) fn own_relays(&self) -> Vec<String> {
        let urls = self.vault.config.relay_urls.iter().filter(|text| text.parse::<Url>().is_ok());
        urls.take(crate::card::RELAYS_MAX).cloned().collect()
    }

    /// How this cell's relays stand.
    pub fn relays(&self) -> Vec<RelayView> {
        let view = |keeper: &Keeper| RelayView {
            url: keeper.url().to_string(),
            is_connected: keeper.client().is_some(),
            why: match keeper.state() {
                State::Connected => String::new(),
                State::Connecting => "connecting".into(),
                State::Waiting { why, .. } => why,
            },
        };
        self.relays.own.borrow().iter().map(|(keeper, _)| view(keeper)).collect()
    }

    /// A circuit from another cell: the handshake says whether it is a peer.
    fn hear_circuit(self: &Rc<Self>, from: CellId, circuit: Circuit) {
        let relays = &self.relays;
        // The caller's id stands for an address: it cannot be had without a key, and is not proved to us yet.
        let bits: [u8; 16] = from.0[..16].try_into().expect("16 of 32");
        let ip = IpAddr::V6(Ipv6Addr::from(bits));
        let is_allowed = relays.knocks.get() < KNOCKS_MAX
            && relays.limiter.borrow_mut().allow(ip, instant())
            && !self.is_stopping.get();
        if !is_allowed {
            return;
        }
        relays.knocks.set(relays.knocks.get() + 1);
        let sync = Rc::clone(self);
        let work = async move {
            let from = format!("cell {} through a relay", from.short());
            let answered = sync.answer(Box::new(circuit), Transport::Relay, &from).await;
            sync.relays.knocks.set(sync.relays.knocks.get() - 1);
            let Some(established) = answered else { return };
            let arrived = Arrived {
                established,
                socket: None,
                ip: None,
                address: from,
                kind: Kind::Relay,
                is_ours: false,
                is_trial: false,
            };
            sync.welcome(arrived).await;
        };
        self.spawn(work).detach();
    }

    /// Connects with a cell through the relay at `address`.
    pub(super) async fn dial_relay(
        self: &Rc<Self>,
        address: &str,
        approach: &Approach,
    ) -> Result<Arrived, HandshakeError> {
        let unreachable = |text: String| HandshakeError::Unreachable(std::io::Error::other(text));
        let url: Url = address.parse().map_err(|why: BadUrl| unreachable(why.to_string()))?;
        let target =
            approach.target().ok_or_else(|| unreachable("a relay must be told whom to call".into()))?;
        let circuit = self.circuit(&url, &target).await?;
        let stream: BoxStream = Box::new(circuit);
        let card = self.gate.card();
        let established = initiate(stream, Transport::Relay, &self.vault.identity, &card, approach).await?;
        Ok(Arrived {
            established,
            socket: None,
            ip: None,
            address: address.to_owned(),
            kind: Kind::Relay,
            is_ours: true,
            is_trial: false,
        })
    }

    async fn circuit(self: &Rc<Self>, url: &Url, to: &CellId) -> Result<Circuit, HandshakeError> {
        if let Some(keeper) = self.relays.keeper(url) {
            return keeper.open(to).await.map_err(|why| broken(&why));
        }
        let client = self.visit(url).await?;
        client.open(to).await.map_err(|why| broken(&why))
    }

    /// A connection to a relay where this cell does not wait.
    async fn visit(self: &Rc<Self>, url: &Url) -> Result<Client, HandshakeError> {
        let door = self.relays.door(url);
        let _alone = door.lock().await;
        if let Some(client) = self.relays.visit(url) {
            return Ok(client);
        }
        self.tidy_relays();
        self.has_room_for_visit()?;
        let connected = connect(url, &self.vault.identity, &self.relays.options).await;
        let (client, driver) =
            connected.map_err(|why| HandshakeError::Unreachable(std::io::Error::other(why.to_string())))?;
        // Others may have begun meanwhile.
        self.has_room_for_visit()?;
        let (sync, visited) = (Rc::clone(self), client.clone());
        let accept = async move {
            while let Some((from, circuit)) = visited.accept().await {
                sync.hear_circuit(from, circuit);
            }
        };
        let driver = async {
            driver.await;
        };
        let visit = Visit {
            url: url.clone(),
            client: client.clone(),
            used_at: Cell::new(instant()),
            _task: self.spawn(smol::future::or(driver, accept)),
        };
        self.relays.visits.borrow_mut().push(visit);
        Ok(client)
    }

    fn has_room_for_visit(&self) -> Result<(), HandshakeError> {
        if self.relays.visits.borrow().len() < VISITS_MAX {
            return Ok(());
        }
        let full = "too many relays are in use at once; it is tried again";
        Err(HandshakeError::Unreachable(std::io::Error::other(full)))
    }

    /// Leaves relays that are of no use any more.
    pub(super) fn tidy_relays(&self) {
        self.relays.tidy();
    }

    fn wake_all_dialers(&self) {
        for peer in self.gate.peers() {
            self.wake_dialer(&peer.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn visits_wait_for_others_of_the_same_relay_only() {
        let relays = Relays::new(&Config::default());
        let url = |text: &str| text.parse::<Url>().unwrap();
        let (one, other) = (url("wss://one.example"), url("wss://other.example"));
        let door = relays.door(&one);
        let begun = door.try_lock();
        assert!(begun.is_some() && relays.door(&one).try_lock().is_none());
        assert!(relays.door(&other).try_lock().is_some());
        drop(begun);
        drop(door);
        assert!(relays.door(&one).try_lock().is_some());
        assert_eq!(relays.doors.borrow().len(), 1, "doors with nobody at them are forgotten");
    }
}

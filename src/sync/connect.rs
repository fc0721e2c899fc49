//! Connections: who is dialled and over which route, who is let in, and the watch over what is connected.

use std::cell::{Cell, RefCell};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use smol::channel::{self, Receiver, Sender};
use smol::net::TcpStream;

use super::books::PeerRow;
use super::dial_pause;
use super::driver::Sync;
use super::link::{For, Line, Link, NewLine};
use super::serve::{self, Caller};
use crate::card::{ADDRESSES_MAX, Card, CardBody, NAME_BYTES_MAX, is_address};
use crate::changes::Part;
use crate::id::CellId;
use crate::keys::{Secret, random};
use crate::order;
use crate::pool::{Turns, unblock};
use crate::routes::gateway::PortMap;
use crate::routes::lan::{Event, Lan};
use crate::routes::portmap::Change;
use crate::routes::{self, Kind, Network, Route, RouteBook, Speed, Verdict, interfaces};
use crate::vault::VaultError;
use crate::wire::handshake::{Approach, Established, Gate, HandshakeError, Kind as Right, initiate, respond};
use crate::wire::message::{self, AskError, MEASURE_BYTES_MAX, Reply, Request};
use crate::wire::session::{self, Driven, Limits, Session, SessionError};
use crate::wire::tcp::{self, DialError, Door, Knock, STAGGER};
use crate::wire::{BoxStream, Transport, race, within};
use crate::world::{self, Timer, instant, since};

/// Measured routes, in the state folder.
const SPEEDS_FILE: &str = "peer_speeds.json";
/// A session that ended sooner counts as a failed dial.
const SHORT_LIFE: Duration = Duration::from_secs(5);
/// Recovering cells served at once.
const RECOVERIES_MAX: usize = 8;
/// A recovering cell that says nothing for so long is let go.
const RECOVERY_IDLE_MAX: Duration = Duration::from_secs(300);
/// Bearers of tickets served at once, and sessions of one of them.
const BEARERS_MAX: usize = 16;
const BEARERS_OF_ONE_MAX: usize = 2;
/// A bearer shows a ticket that holds within this, and then at least so often.
const BEARER_FIRST_MAX: Duration = Duration::from_secs(20);
const BEARER_IDLE_MAX: Duration = Duration::from_secs(120);
/// Holders with whom sessions are kept, and for how long when nothing is read. Shorter than they bear with it.
const HOLDINGS_MAX: usize = 32;
const HOLDING_IDLE_MAX: Duration = Duration::from_secs(30);
/// Connections are looked at this often while none is busy: what begins meanwhile is seen in time all the same.
const WATCH_IDLE_EVERY: Duration = Duration::from_secs(1);
/// Busy connections are looked at this often.
const WATCH_EVERY: Duration = Duration::from_millis(250);
/// A new connection is not given up for a better one before this.
const LINE_AGE_MIN: Duration = Duration::from_secs(3);
/// While nothing answers, other routes are tried this often.
const STALL_PAUSE: Duration = Duration::from_secs(1);
/// Better routes are tried after this, and then ever more rarely.
const BETTER_PAUSE_MIN: Duration = Duration::from_secs(10);
const BETTER_PAUSE_MAX: Duration = Duration::from_secs(600);
/// Routes of one peer that are measured.
const MEASURED_MAX: usize = 12;
/// One route is measured within this.
const MEASURE_TIME_MAX: Duration = Duration::from_secs(20);
/// The first piece of a measurement. Bytes.
const MEASURE_BYTES_MIN: u32 = 256 << 10;
/// Pieces grow until one takes this long.
const MEASURE_LONG: Duration = Duration::from_millis(200);
/// This machine's addresses are looked at this often.
const ADDRESSES_EVERY: Duration = Duration::from_secs(15);
/// Addresses of one peer that beacons told.
const NEAR_MAX: usize = 4;
/// Beacons that wait to be looked at.
const FOUND_MAX: usize = 32;
/// Own addresses that peers have seen and that may lead here through a forwarded port.
const OBSERVED_MAX: usize = 2;

/// A connection whose ends have proved themselves, and how it came about.
pub(super) struct Arrived {
    pub(super) established: Established<BoxStream>,
    pub(super) socket: Option<TcpStream>,
    pub(super) ip: Option<IpAddr>,
    /// As it was dialled; where the peer dialled, whence.
    pub(super) address: String,
    pub(super) kind: Kind,
    pub(super) is_ours: bool,
    pub(super) is_trial: bool,
}

/// A session in which this cell reads by tickets; it ends with this.
pub(super) struct Bearing {
    pub(super) session: Session,
    _driver: smol::Task<()>,
}

/// The one session with a holder that is no peer. Whoever reads several files, or looks at one in parts, dials once: a
/// holder takes few sessions of one bearer, and few handshakes of it in a second.
#[derive(Default)]
pub(super) struct Holding {
    dialling: Turns,
    bearing: RefCell<Option<Rc<Bearing>>>,
    /// By the steady clock.
    used_at: Cell<Duration>,
}

impl Holding {
    /// Somebody dials, or there is a session.
    fn is_in_use(self: &Rc<Self>) -> bool {
        Rc::strong_count(self) > 1
    }
}

/// One end of a connection in memory.
pub struct Wired {
    /// The session and what ends with it.
    pub driven: Driven,
    /// What it is as if over.
    pub kind: Kind,
    /// As it is to seem.
    pub speed: Speed,
    /// This side began it.
    pub is_ours: bool,
}

/// Who dials a peer.
pub(super) struct Dialer {
    pub(super) wake: Sender<()>,
    pub(super) alone: Rc<Turns>,
    _task: smol::Task<()>,
}

/// A way to a peer, for people.
#[derive(Debug, Clone)]
pub struct RouteView {
    /// `host:port`, a relay's URL, or where the peer dialled from.
    pub address: String,
    pub kind: Kind,
    pub speed: Option<Speed>,
    /// It carries requests now.
    pub in_use: bool,
    /// The peer dialled it.
    pub is_incoming: bool,
    /// Unix time.
    pub succeeded_at: Option<i64>,
    /// Or empty.
    pub error: String,
    /// Why it is used, or not.
    pub why: String,
}

/// All ways to a peer, best first.
#[derive(Debug, Clone)]
pub struct PeerRoutes {
    pub name: String,
    pub id: CellId,
    pub routes: Vec<RouteView>,
}

/// When to look for a better route again, after so many looks in vain; `dice` spreads cells out.
fn better_pause(tries: u32, dice: u8) -> Duration {
    let pause = BETTER_PAUSE_MIN.saturating_mul(1 << tries.min(10)).min(BETTER_PAUSE_MAX);
    pause.mul_f64(0.8 + f64::from(dice) / 640.0)
}

fn dice() -> u8 {
    random::<1>()[0]
}

impl Sync {
    // ---- This cell's own addresses ----

    pub(super) fn card_body(&self) -> CardBody {
        let vault = &self.vault;
        let mut name = vault.config.name.clone();
        if name.is_empty() {
            name = rustix::system::uname().nodename().to_string_lossy().into_owned();
        }
        let mut name: String = name.chars().filter(|c| !c.is_control()).collect();
        while name.len() > NAME_BYTES_MAX {
            name.pop();
        }
        if name.is_empty() {
            name = "cell".into();
        }
        CardBody {
            id: vault.id(),
            x25519: *vault.identity.x_public(),
            name,
            addresses: self.own_addresses(),
            relays: self.own_relays(),
            sequence: 0,
            successor: None,
            extensions: Vec::new(),
        }
    }

    /// Where this cell can be reached, best first: what config.json says, its own interfaces, what the
    /// router has given, and where peers see it.
    pub fn own_addresses(&self) -> Vec<String> {
        let mut addresses: Vec<String> =
            self.vault.config.peer_addresses.iter().filter(|address| is_address(address)).cloned().collect();
        let ips = match self.listen.ip() {
            ip if !ip.is_unspecified() => vec![ip],
            ip => own_ips(ip.is_ipv6()),
        };
        let own = ips.into_iter().map(|ip| SocketAddr::new(ip, self.port()));
        let seen = self.observed_ips().into_iter().map(|ip| SocketAddr::new(ip, self.port()));
        for address in own.chain(self.mapped.get()).chain(seen) {
            let address = address.to_string();
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
        addresses.truncate(ADDRESSES_MAX);
        addresses
    }

    /// Public addresses that peers see this cell at: with a port forwarded by hand they lead here.
    fn observed_ips(&self) -> Vec<IpAddr> {
        let mut ips: Vec<IpAddr> = Vec::new();
        for link in self.links() {
            let seen = link.observed.borrow().parse().ok().filter(|ip| routes::is_global(*ip));
            ips.extend(seen.filter(|ip| !ips.contains(ip)));
        }
        order::sort(&mut ips);
        ips.truncate(OBSERVED_MAX);
        ips
    }

    pub(super) async fn keep_addresses(self: Rc<Self>) {
        loop {
            Timer::after(ADDRESSES_EVERY).await;
            self.refresh_card().await;
            self.tidy_relays();
        }
    }

    /// Makes a new card where this cell's addresses have changed, and tells the peers.
    pub(super) async fn refresh_card(self: &Rc<Self>) {
        let mut body = self.card_body();
        let known = Card::from_bytes(&self.gate.card());
        if known.is_ok_and(|known| {
            body.sequence = known.sequence;
            *known == body
        }) {
            return;
        }
        let (books, vault) = (Arc::clone(&self.books), Arc::clone(&self.vault));
        let card = match unblock(move || books.own_card(&vault, body)).await {
            Ok(card) => card,
            Err(why) => return log::warn!("{why}"),
        };
        log::info!("this cell's addresses are now {}", card.addresses.join(", "));
        self.gate.set_card(&card);
        for peer in self.gate.peers() {
            self.name_routes(&peer);
            self.wake_dialer(&peer.id);
        }
        for link in self.links().into_iter().filter(|link| link.is_alive()) {
            let request = Request::Card { bytes: card.to_bytes() };
            self.spawn(async move { drop(link.ask(&request).await) }).detach();
        }
    }

    // ---- Routes ----

    pub(super) async fn load_routes(&self) {
        let vault = Arc::clone(&self.vault);
        let read = unblock(move || vault.files.read(SPEEDS_FILE)).await;
        let text = read.ok().flatten().and_then(|bytes| String::from_utf8(bytes).ok()).unwrap_or_default();
        *self.routes.borrow_mut() = RouteBook::from_json(&text);
    }

    /// Writes peer_speeds.json if it says something new.
    pub(super) async fn save_routes(&self) {
        if !self.routes.borrow_mut().take_changed() {
            return;
        }
        let (vault, text) = (Arc::clone(&self.vault), self.routes.borrow().to_json());
        if let Err(why) = unblock(move || vault.files.write_whole(SPEEDS_FILE, text.as_bytes())).await {
            log::warn!("peer_speeds.json cannot be written: {why}");
        }
    }

    /// Takes the addresses of a peer from its card and from what beacons told.
    pub(super) fn name_routes(&self, peer: &PeerRow) {
        let mut addresses = self.near.borrow().get(&peer.id).cloned().unwrap_or_default();
        addresses.extend(peer.addresses());
        addresses.extend(Card::from_bytes(&peer.card).map(|card| card.relays.clone()).unwrap_or_default());
        self.routes.borrow_mut().name(&peer.id, &addresses, &own_networks());
    }

    /// A peer was heard at this address, on the local network.
    pub(super) fn note_near(&self, id: &CellId, address: SocketAddr) {
        let Some(peer) = self.gate.peer(id) else { return };
        let address = address.to_string();
        let is_news = {
            let mut near = self.near.borrow_mut();
            let known = near.entry(*id).or_default();
            let is_news = known.first() != Some(&address);
            known.retain(|other| *other != address);
            known.insert(0, address);
            known.truncate(NEAR_MAX);
            is_news
        };
        if is_news {
            self.name_routes(&peer);
            self.wake_dialer(id);
        }
    }

    /// Sends and hears beacons on the local network from now on, if config.json wants them.
    pub(super) async fn start_lan(self: &Rc<Self>) -> Result<(), VaultError> {
        if !self.vault.config.lan_discovery {
            return Ok(());
        }
        let (books, vault) = (Arc::clone(&self.books), Arc::clone(&self.vault));
        let run = unblock(move || books.next_run(&vault)).await?;
        let (events, heard) = channel::bounded(FOUND_MAX);
        let lan = Lan::start(&self.executor(), self.vault.identity.clone(), self.listen, run, events);
        *self.lan.borrow_mut() = Some(lan);
        self.tell_lan();
        let sync = Rc::clone(self);
        let hear = async move {
            while let Ok(event) = heard.recv().await {
                match event {
                    Event::Found { peer, address } => sync.note_near(&peer, address),
                    Event::AddressesChanged => {
                        sync.refresh_card().await;
                        sync.try_lines();
                    }
                }
            }
        };
        self.spawn(hear).detach();
        Ok(())
    }

    /// Asks the router to let peers in from now on, if config.json wants it.
    pub(super) fn start_port_map(self: &Rc<Self>) {
        if !self.vault.config.portmap || self.listen.ip().is_loopback() {
            return;
        }
        let (changes, changed) = channel::bounded(4);
        *self.port_map.borrow_mut() = Some(PortMap::start(&self.executor(), self.port(), changes));
        let sync = Rc::clone(self);
        let hear = async move {
            while let Ok(change) = changed.recv().await {
                sync.mapped.set(match change {
                    Change::Mapped { external } => Some(external),
                    Change::Lost => None,
                });
                sync.refresh_card().await;
            }
        };
        self.spawn(hear).detach();
    }

    /// Whom beacons are for.
    pub(super) fn tell_lan(&self) {
        if let Some(lan) = &*self.lan.borrow() {
            let peers: Vec<(CellId, [u8; 32])> =
                self.gate.peers().into_iter().map(|peer| (peer.id, peer.x25519)).collect();
            lan.set_peers(&peers);
        }
    }

    /// This machine's network has changed: a word over every line shows which are dead.
    fn try_lines(&self) {
        for line in self.links().iter().flat_map(|link| link.lines()) {
            self.spawn(async move {
                let _ = message::ask(&line.session, &Request::Ping).await;
            })
            .detach();
        }
    }

    /// Something speaks for dialling a peer now.
    pub(super) fn wake_dialer(&self, id: &CellId) {
        if let Some(dialer) = self.dialers.borrow().get(id) {
            let _ = dialer.wake.try_send(());
        }
    }

    /// All routes of all peers, and which are in use.
    pub fn routes(&self) -> Vec<PeerRoutes> {
        self.gate.peers().into_iter().map(|peer| self.routes_of(peer)).collect()
    }

    fn routes_of(&self, peer: PeerRow) -> PeerRoutes {
        let link = self.link(&peer.id);
        let best = link.as_ref().and_then(|link| link.best(For::Chunks));
        let is_best = |line: &Rc<Line>| best.as_ref().is_some_and(|best| Rc::ptr_eq(best, line));
        let lines: Vec<Rc<Line>> = link.iter().flat_map(|link| link.lines()).collect();
        let mut views = Vec::new();
        for route in self.routes.borrow().ranked(&peer.id) {
            let line = lines.iter().find(|line| line.is_ours && line.address == route.address);
            views.push(RouteView {
                in_use: line.is_some_and(is_best),
                is_incoming: false,
                speed: line.map(|line| line.speed.get()).or(route.speed),
                succeeded_at: route.succeeded_at,
                why: why(line, line.is_some_and(is_best), &route, best.as_deref()),
                error: route.error,
                address: route.address,
                kind: route.kind,
            });
        }
        let others = |line: &&Rc<Line>| !views.iter().any(|view: &RouteView| view.address == line.address);
        let others: Vec<&Rc<Line>> = lines.iter().filter(others).collect();
        for line in others {
            views.push(RouteView {
                address: line.address.clone(),
                kind: line.kind,
                speed: Some(line.speed.get()),
                in_use: is_best(line),
                is_incoming: !line.is_ours,
                succeeded_at: Some(self.vault.clock.wall()),
                error: String::new(),
                why: if is_best(line) { "in use; the peer dialled it" } else { "the peer dialled it" }.into(),
            });
        }
        order::sort_by_key(&mut views, |view| !view.in_use);
        PeerRoutes { name: peer.name, id: peer.id, routes: views }
    }

    // ---- Who is let in ----

    pub(super) async fn listen_on(self: Rc<Self>, door: Door) {
        loop {
            let knock = door.knock().await;
            let sync = Rc::clone(&self);
            self.spawn(async move { sync.let_in(knock).await }).detach();
        }
    }

    async fn let_in(self: Rc<Self>, knock: Knock) {
        let Knock { stream, from, place } = knock;
        let ip = from.ip().to_canonical();
        let socket = Some(stream.clone());
        let kind = Kind::of_ip(ip, &own_networks());
        let answered = self.answer(Box::new(stream), Transport::Tcp, &from.to_string()).await;
        drop(place);
        let Some(established) = answered else { return };
        let address = SocketAddr::new(ip, from.port()).to_string();
        let arrived =
            Arrived { established, socket, ip: Some(ip), address, kind, is_ours: false, is_trial: false };
        self.welcome(arrived).await;
    }

    /// The responder's side of a handshake; `None` after a refusal, which is noted.
    pub(super) async fn answer(
        &self,
        stream: BoxStream,
        transport: Transport,
        from: &str,
    ) -> Option<Established<BoxStream>> {
        self.gate.reason.set("");
        match respond(stream, transport, &self.gate).await {
            Ok(established) => Some(established).filter(|_| !self.is_stopping.get()),
            Err(why) => {
                let reason = self.gate.reason.replace("");
                let reason = if reason.is_empty() { String::new() } else { format!(" (invite {reason})") };
                self.refusals.note(format_args!("refused {from}: {why}{reason}"));
                if let Some(stranger) = self.gate.stranger.take() {
                    self.hear_stranger(stranger).await;
                }
                None
            }
        }
    }

    /// Somebody has proved himself.
    pub(super) async fn welcome(self: Rc<Self>, arrived: Arrived) {
        let Some(owner) = arrived.established.owner else { return };
        if arrived.established.kind == Right::Recovery {
            return self.serve_recovery(arrived.established, owner).await;
        }
        if arrived.established.kind == Right::Ticket {
            let (session, driver) = session::start(arrived.established.stream, false, &Limits::default());
            return self.serve_bearer(session, driver, owner).await;
        }
        let is_new = matches!(arrived.established.kind, Right::Invite(_));
        self.attach(arrived).await;
        if is_new {
            self.publish_soon();
            self.dial_from_now_on(owner);
        }
    }

    /// Somebody who may be anybody: reads what tickets let it, for as long as it shows some that hold.
    async fn serve_bearer(
        self: Rc<Self>,
        session: Session,
        driver: impl Future<Output = SessionError>,
        id: CellId,
    ) {
        let began = self.vault.clock.steady();
        let is_room = {
            let mut bearers = self.bearers.borrow_mut();
            let of_its = bearers.iter().filter(|(known, _)| *known == id).count();
            let is_room = bearers.len() < BEARERS_MAX && of_its < BEARERS_OF_ONE_MAX;
            if is_room {
                // As if it had shown one so long ago that the first is due soon.
                bearers.push((id, began.saturating_sub(BEARER_IDLE_MAX - BEARER_FIRST_MAX)));
            }
            is_room
        };
        if !is_room {
            return self.refusals.note(format_args!("{}: too many bearers of tickets at once", id.short()));
        }
        let caller = Caller { owner: id, is_recovering: false, is_bearer: true, ip: None };
        let served = self.spawn(serve::serve(Rc::clone(&self), session.clone(), caller));
        let idle = async {
            loop {
                Timer::after(Duration::from_millis(500)).await;
                let now = self.vault.clock.steady();
                let shown = self.bearers.borrow().iter().filter(|(known, _)| *known == id).map(|b| b.1).max();
                let is_idle = shown.is_none_or(|at| now.saturating_sub(at) > BEARER_IDLE_MAX);
                // At the very start of the machine's clock there is no time so long ago.
                if (is_idle && now.saturating_sub(began) > BEARER_FIRST_MAX) || self.is_stopping.get() {
                    return;
                }
            }
        };
        smol::future::or(
            async {
                driver.await;
            },
            idle,
        )
        .await;
        session.close();
        drop(served);
        let mut bearers = self.bearers.borrow_mut();
        // Of two the one that showed its ticket longest ago: the other may be at work.
        let its = (0..bearers.len()).filter(|at| bearers[*at].0 == id);
        if let Some(at) = its.min_by_key(|at| bearers[*at].1) {
            bearers.remove(at);
        }
    }

    /// Somebody who has this id reads by tickets over a session in memory: for simulations.
    pub(crate) fn bear_in_memory(self: &Rc<Self>, id: CellId, driven: Driven) {
        let sync = Rc::clone(self);
        self.spawn(async move { sync.serve_bearer(driven.0, driven.1, id).await }).detach();
    }

    /// A bearer has shown a ticket that holds.
    pub(super) fn note_bearer(&self, id: &CellId) {
        let now = self.vault.clock.steady();
        self.bearers.borrow_mut().iter_mut().filter(|(known, _)| known == id).for_each(|b| b.1 = now);
    }

    async fn serve_recovery(self: Rc<Self>, established: Established<BoxStream>, owner: CellId) {
        if self.recovering.get() >= RECOVERIES_MAX {
            return self.refusals.note(format_args!("{}: too many recoveries at once", owner.short()));
        }
        let (session, driver) = session::start(established.stream, false, &Limits::default());
        self.serve_recovering(session, driver, owner).await;
    }

    /// Whoever proves this secret in a session in memory reads what is kept for him: for simulations. `false` if it is nobody's.
    pub(crate) fn recover_in_memory(self: &Rc<Self>, secret: &Secret, driven: Driven) -> bool {
        let secrets = self.gate.recovery_secrets();
        let Some((owner, _)) = secrets.into_iter().find(|(_, known)| known == secret) else { return false };
        let sync = Rc::clone(self);
        self.spawn(async move { sync.serve_recovering(driven.0, driven.1, owner).await }).detach();
        true
    }

    /// Whether whoever proves this secret would be let in: for simulations.
    pub(crate) fn knows_phrase(&self, secret: &Secret) -> bool {
        self.gate.recovery_secrets().iter().any(|(_, known)| known == secret)
    }

    async fn serve_recovering(
        self: Rc<Self>,
        session: Session,
        driver: impl Future<Output = SessionError>,
        owner: CellId,
    ) {
        log::info!("{} is recovering from this cell", self.name_of(&owner));
        self.recovering.set(self.recovering.get() + 1);
        let caller = Caller { owner, is_recovering: true, is_bearer: false, ip: None };
        let served = self.spawn(serve::serve(Rc::clone(&self), session.clone(), caller));
        let idle = async {
            while since(session.active_at()) < RECOVERY_IDLE_MAX && !self.is_stopping.get() {
                Timer::after(Duration::from_millis(500)).await;
            }
        };
        smol::future::or(
            async {
                driver.await;
            },
            idle,
        )
        .await;
        drop(served);
        self.recovering.set(self.recovering.get() - 1);
    }

    // ---- What is connected ----

    /// Makes a line of a connection.
    async fn attach(self: &Rc<Self>, arrived: Arrived) -> Option<(Rc<Link>, Rc<Line>)> {
        let card = arrived.established.peer.as_ref()?;
        let peer = card.id;
        let link = self.link_with(card).await?;
        let mut limits = Limits::default();
        let is_lan = arrived.kind == Kind::Lan;
        let stream = self.pace.apply(arrived.established.stream, &mut limits, &peer, is_lan);
        let (session, driver) = session::start(stream, arrived.is_ours, &limits);
        let measured = match (arrived.is_ours, arrived.ip) {
            (false, Some(ip)) => self.routes.borrow().speed_to_host(&peer, ip),
            _ => self.routes.borrow().route(&peer, &arrived.address).and_then(|route| route.speed),
        };
        let new = NewLine {
            session,
            address: arrived.address,
            kind: arrived.kind,
            ip: arrived.ip,
            socket: arrived.socket,
            is_ours: arrived.is_ours,
            is_trial: arrived.is_trial,
            speed: measured.unwrap_or(arrived.kind.usual()),
            is_measured: measured.is_some(),
        };
        let line = self.add_line(&link, new, driver);
        Some((link, line))
    }

    /// A connection in memory with the peer of this card, who has proved nothing: for simulations, which know. `false` where
    /// he is no peer.
    pub(crate) async fn attach_in_memory(self: &Rc<Self>, card: &[u8], wired: Wired) -> bool {
        let Ok(card) = Card::from_bytes(card) else { return false };
        let Some(link) = self.link_with(&card).await else { return false };
        let new = NewLine {
            session: wired.driven.0,
            address: "memory:1".into(),
            kind: wired.kind,
            ip: None,
            socket: None,
            is_ours: wired.is_ours,
            is_trial: false,
            speed: wired.speed,
            is_measured: true,
        };
        self.add_line(&link, new, wired.driven.1);
        true
    }

    /// The link with a cell that has proved who it is, if it is a peer.
    async fn link_with(self: &Rc<Self>, card: &Card) -> Option<Rc<Link>> {
        let (vault, peer) = (Arc::clone(&self.vault), card.id);
        let cell = unblock(move || vault.db.change(|t| t.cell(&peer))).await.ok()?;
        if let Err(why) = serve::take_card(self, &peer, &card.to_bytes()).await {
            log::warn!("{}: {why}", peer.short());
        }
        if self.is_stopping.get() || self.gate.peer(&peer).is_none() {
            return None;
        }
        Some(self.link_of(peer, cell))
    }

    /// A connection begins to carry requests.
    fn add_line(
        self: &Rc<Self>,
        link: &Rc<Link>,
        new: NewLine,
        driver: impl Future<Output = SessionError> + 'static,
    ) -> Rc<Line> {
        let (peer, session) = (link.peer, new.session.clone());
        let was_alive = link.is_alive();
        let line = link.add(new, self.vault.now());
        if line.is_ours {
            let wall = self.vault.clock.wall();
            self.routes.borrow_mut().note_success(&peer, &line.address, line.kind, wall);
        }
        self.errors.borrow_mut().remove(&peer);
        self.strangers.borrow_mut().forget(&peer);
        self.note_seen(link, Some(&line));
        if !was_alive {
            log::info!("connected with {}", self.name_of(&peer));
            self.vault.changes.note(Part::Peers);
        }
        log::debug!("{}: {} over {}", self.name_of(&peer), line.kind.as_str(), line.address);
        let (sync, ended, of) = (Rc::clone(self), Rc::clone(&line), Rc::clone(link));
        let drive = async move {
            let why = driver.await;
            sync.detach_line(&of, &ended, &why);
        };
        self.spawn(drive).detach();
        let ip = if line.kind == Kind::Relay { None } else { line.ip };
        let caller = Caller { owner: peer, is_recovering: false, is_bearer: false, ip };
        self.spawn(serve::serve(Rc::clone(self), session, caller)).detach();
        let (sync, of, new) = (Rc::clone(self), Rc::clone(link), Rc::clone(&line));
        self.spawn(async move { sync.look_over(&of, &new).await }).detach();
        if !was_alive {
            link.nudge();
            link.talk();
        }
        line
    }

    /// The link of a peer, which is made for its first connection and then stays.
    fn link_of(self: &Rc<Self>, peer: CellId, cell: crate::placement::CellNumber) -> Rc<Link> {
        if let Some(link) = self.links.borrow().get(&peer) {
            return Rc::clone(link);
        }
        let (wake, woken) = channel::bounded(1);
        let (talk, called) = channel::bounded(1);
        let link = Rc::new(Link::new(&self.vault.id(), peer, cell, wake, talk));
        self.links.borrow_mut().insert(peer, Rc::clone(&link));
        self.spawn(Rc::clone(self).rounds_with(Rc::clone(&link), woken)).detach();
        self.spawn(Rc::clone(self).talk_with(Rc::clone(&link), called)).detach();
        link
    }

    /// The first round trip over a new line, and where the peer sees us.
    async fn look_over(self: Rc<Self>, link: &Link, line: &Line) {
        let asked = instant();
        if message::ask(&line.session, &Request::Ping).await.is_err() {
            return;
        }
        let rtt_us = (since(asked).as_micros() as u64).max(1);
        line.speed.set(Speed { rtt_us, ..line.speed.get() });
        link.ring();
        if line.kind != Kind::Relay && line.is_ours {
            if let Ok(Reply::Observe { ip }) = message::ask(&line.session, &Request::Observe).await {
                let is_news = *link.observed.borrow() != ip;
                *link.observed.borrow_mut() = ip;
                if is_news {
                    self.refresh_card().await;
                }
            }
        }
    }

    fn note_seen(&self, link: &Link, line: Option<&Line>) {
        let (id, at) = (link.peer, self.vault.clock.wall());
        let is_dialled = |line: &&Line| line.is_ours && line.kind != Kind::Relay;
        let address = line.filter(is_dialled).map(|line| line.address.clone());
        self.gate.note_seen(&id, at, address.as_deref());
        let books = Arc::clone(&self.books);
        unblock(move || {
            if let Err(why) = books.note_seen(&id, at, address.as_deref()) {
                log::warn!("{why}");
            }
        })
        .detach();
    }

    fn detach_line(&self, link: &Rc<Link>, line: &Rc<Line>, why: &SessionError) {
        link.remove(line);
        if !link.is_alive() {
            if !self.is_stopping.get() && self.gate.peer(&link.peer).is_some() {
                self.errors.borrow_mut().insert(link.peer, why.to_string());
            }
            log::info!("no longer connected with {}: {why}", self.name_of(&link.peer));
            self.vault.changes.note(Part::Peers);
        }
        self.note_seen(link, None);
    }

    /// Looks at what is connected: what stands still, what became fast or slow, what is not needed any more.
    pub(super) async fn watch_lines(self: Rc<Self>) {
        let mut pause = WATCH_IDLE_EVERY;
        loop {
            Timer::after(pause).await;
            let now = instant();
            pause = WATCH_IDLE_EVERY;
            for link in self.links() {
                link.lines().iter().filter(|line| line.session.is_alive()).for_each(|line| {
                    self.watch_line(&link, line, now);
                    if line.session.streams_live() > 0 || line.is_stalled() {
                        pause = WATCH_EVERY;
                    }
                });
                link.give_up_stalled();
                link.retire_lines(LINE_AGE_MIN);
            }
        }
    }

    fn watch_line(&self, link: &Rc<Link>, line: &Rc<Line>, now: Instant) {
        if let Some((way, bytes, us)) = line.tally(now) {
            let speed = self.routes.borrow_mut().note_traffic(&link.peer, &line.address, way, bytes, us);
            if let Some(Speed { up_bytes_per_s, down_bytes_per_s, .. }) = speed {
                line.speed.set(Speed { up_bytes_per_s, down_bytes_per_s, ..line.speed.get() });
            }
        }
        if line.session.streams_live() == 0 && !line.is_stalled() {
            return;
        }
        let verdict = line.signs(now).verdict();
        if verdict == Verdict::Stalled && !line.is_stalled() {
            let name = self.name_of(&link.peer);
            log::info!("{name} does not answer over {}: looking for another route", line.address);
            line.stalled_at.set(Some(now));
            // What goes the same way is not trusted either until it answers, or it would be the next to be waited for.
            for other in link.lines().iter().filter(|other| other.ip.is_some() && other.ip == line.ip) {
                other.stalled_at.set(Some(now));
            }
            link.ring();
        } else if line.stalled_at.get().is_some_and(|at| line.session.active_at() > at) {
            log::info!("{} answers over {} again", self.name_of(&link.peer), line.address);
            line.stalled_at.set(None);
            link.ring();
        }
        if verdict == Verdict::Ask {
            line.pinged.set(Some(now));
            let line = Rc::clone(line);
            let ping = async move {
                let _ = message::ask(&line.session, &Request::Ping).await;
                line.pinged.set(None);
            };
            self.spawn(ping).detach();
        }
    }

    // ---- Dialling ----

    pub(super) fn dial_from_now_on(self: &Rc<Self>, id: CellId) {
        if let Some(peer) = self.gate.peer(&id) {
            self.name_routes(&peer);
        }
        self.tell_lan();
        let (wake, woken) = channel::bounded(1);
        let alone = Rc::new(Turns::default());
        let task = self.spawn(Rc::clone(self).keep_dialling(id, woken, Rc::clone(&alone)));
        self.dialers.borrow_mut().insert(id, Dialer { wake, alone, _task: task });
    }

    async fn keep_dialling(self: Rc<Self>, id: CellId, woken: Receiver<()>, alone: Rc<Turns>) {
        let (mut failures, mut tries) = (0_u32, 0_u32);
        let mut connected: Option<Instant> = None;
        loop {
            let pause = match self.link(&id) {
                Some(link) if link.is_stalled() => match self.fail_over(&link).await {
                    true => continue,
                    false => STALL_PAUSE,
                },
                Some(link) => {
                    connected = connected.or(Some(instant()));
                    failures = 0;
                    let due = async {
                        Timer::after(better_pause(tries, dice())).await;
                        tries += 1;
                        true
                    };
                    let is_woken = async {
                        let _ = woken.recv().await;
                        true
                    };
                    let has_changed = async {
                        link.changed().await;
                        false
                    };
                    if smol::future::or(has_changed, smol::future::or(due, is_woken)).await {
                        let _alone = alone.lock().await;
                        if self.look_for_better(&link).await {
                            tries = 0;
                        }
                        self.measure_if_due(&link).await;
                    }
                    continue;
                }
                None if self.vault.is_retired() => dial_pause(u32::MAX, dice()),
                None => {
                    if connected.take().is_some_and(|since| world::since(since) < SHORT_LIFE) {
                        failures = failures.saturating_add(1);
                    }
                    tries = 0;
                    let _alone = alone.lock().await;
                    match self.dial_peer(&id).await {
                        Ok(()) => continue,
                        Err(why) => {
                            log::debug!("{}: {why}", self.name_of(&id));
                            self.errors.borrow_mut().insert(id, why);
                            failures = failures.saturating_add(1);
                        }
                    }
                    dial_pause(failures, dice())
                }
            };
            let pause = async {
                Timer::after(pause).await;
            };
            smol::future::or(pause, async {
                let _ = woken.recv().await;
            })
            .await;
        }
    }

    /// A link with a peer, dialled if there is none.
    pub(super) async fn dial_peer(self: &Rc<Self>, id: &CellId) -> Result<(), String> {
        if self.link(id).is_some() {
            return Ok(());
        }
        let routes = self.routes.borrow().ranked(id);
        self.dial_and_attach(id, &routes).await
    }

    async fn dial_and_attach(self: &Rc<Self>, id: &CellId, routes: &[Route]) -> Result<(), String> {
        let Some(peer) = self.gate.peer(id) else { return Err("it is no peer any more".into()) };
        let approach = Approach::Known { id: peer.id, x25519: peer.x25519 };
        let arrived = self.dial(routes, &approach).await.map_err(|why| {
            self.note_failures(id, &why);
            why.to_string()
        })?;
        match self.attach(arrived).await {
            Some(_) => Ok(()),
            None => Err("the connection was given up".into()),
        }
    }

    fn note_failures(&self, id: &CellId, why: &DialError) {
        let is_no = |(_, error): &(String, HandshakeError)| matches!(error, HandshakeError::NotLetIn(_));
        let is_refused = why.attempts.iter().any(is_no);
        self.strangers.borrow_mut().note_failure(id, is_refused, self.vault.now());
        let mut routes = self.routes.borrow_mut();
        for (address, error) in &why.attempts {
            routes.note_failure(id, address, &error.to_string());
        }
    }

    /// Every connection stands still: takes the first route that answers, the one that stands still last. If that answers
    /// again meanwhile, nothing is given up.
    async fn fail_over(self: &Rc<Self>, link: &Rc<Link>) -> bool {
        let stalled: Vec<Rc<Line>> = link.lines().into_iter().filter(|line| line.is_stalled()).collect();
        let mut routes = self.routes.borrow().ranked(&link.peer);
        order::sort_by_key(&mut routes, |route| stalled.iter().any(|line| line.address == route.address));
        let dialled = smol::future::or(self.dial_and_attach(&link.peer, &routes), async {
            // It answers again, or the peer has dialled.
            while link.is_stalled() {
                link.changed().await;
            }
            Ok(())
        });
        if dialled.await.is_err() {
            return false;
        }
        for line in stalled.iter().filter(|line| line.is_stalled()) {
            line.session.abort();
        }
        true
    }

    /// Dials routes that should be better than what is in use; whether one is. In place of a relay every direct one is
    /// tried and measured, however fast the relay is: what is usual for a kind says too little to stay with it.
    async fn look_for_better(self: &Rc<Self>, link: &Rc<Link>) -> bool {
        let Some(current) = link.best(For::Chunks) else { return false };
        let is_relayed = current.kind == Kind::Relay;
        let dialled: Vec<String> = link.lines().iter().map(|line| line.address.clone()).collect();
        let mut better = self.routes.borrow().ranked(&link.peer);
        better.retain(|route| {
            let is_worth_it = route.expected().is_better_than(&current.speed.get())
                || (is_relayed && route.kind != Kind::Relay);
            is_worth_it && !dialled.contains(&route.address)
        });
        let has_dialled = !better.is_empty() && self.dial_and_attach(&link.peer, &better).await.is_ok();
        if !is_relayed {
            return has_dialled;
        }
        let is_unknown = |line: &Rc<Line>| line.kind != Kind::Relay && !line.is_measured.get();
        for line in link.lines().into_iter().filter(is_unknown) {
            if let Err(why) = self.measure_line(link, &line).await {
                log::debug!("{}: measuring {}: {why}", self.name_of(&link.peer), line.address);
            }
        }
        link.best(For::Chunks).is_some_and(|line| line.kind != Kind::Relay)
    }

    /// Connects over one of the routes, best first, the next one 250 ms after the one before.
    async fn dial(self: &Rc<Self>, routes: &[Route], approach: &Approach) -> Result<Arrived, DialError> {
        let attempts = routes.iter().map(|route| self.dial_route(route, approach));
        race(attempts, STAGGER).await.map_err(|failed| DialError { attempts: failed })
    }

    async fn dial_route(
        self: &Rc<Self>,
        route: &Route,
        approach: &Approach,
    ) -> Result<Arrived, (String, HandshakeError)> {
        if route.kind == Kind::Relay {
            let dialled = self.dial_relay(&route.address, approach).await;
            return dialled.map_err(|why| (route.address.clone(), why));
        }
        let (identity, card) = (&self.vault.identity, self.gate.card());
        let greet = |stream: TcpStream| async {
            let socket = stream.clone();
            let stream: BoxStream = Box::new(stream);
            Ok((socket, initiate(stream, Transport::Tcp, identity, &card, approach).await?))
        };
        let dialled = tcp::dial(std::slice::from_ref(&route.address), greet).await;
        let (address, (socket, established)) = dialled.map_err(|mut why| {
            let error = why.attempts.pop().map_or(HandshakeError::TimedOut, |(_, error)| error);
            (route.address.clone(), error)
        })?;
        let ip = address.ip().to_canonical();
        Ok(Arrived {
            established,
            socket: Some(socket),
            ip: Some(ip),
            address: route.address.clone(),
            kind: Kind::of_ip(ip, &own_networks()),
            is_ours: true,
            is_trial: false,
        })
    }

    /// Dials addresses of a cell that is no peer yet, by an invite.
    pub(super) async fn dial_stranger(
        self: &Rc<Self>,
        addresses: &[String],
        approach: &Approach,
    ) -> Result<Newcomer, DialError> {
        let mut book = RouteBook::default();
        let nobody = CellId([0; 32]);
        book.name(&nobody, addresses, &own_networks());
        self.dial(&book.ranked(&nobody), approach).await.map(Newcomer)
    }

    /// A session with a cell that is said to hold chunks of a grant, dialled where there is none; it becomes no peer.
    pub(super) async fn bearing(self: &Rc<Self>, card: &Card) -> Result<Rc<Bearing>, DialError> {
        let holding = {
            let mut holdings = self.holdings.borrow_mut();
            if holdings.len() >= HOLDINGS_MAX && !holdings.contains_key(&card.id) {
                holdings.retain(|_, holding| holding.is_in_use());
            }
            match holdings.len() < HOLDINGS_MAX || holdings.contains_key(&card.id) {
                true => Some(Rc::clone(holdings.entry(card.id).or_default())),
                false => None,
            }
        };
        let Some(holding) = holding else { return self.dial_holder(card).await.map(Rc::new) };
        let _alone = holding.dialling.lock().await;
        holding.used_at.set(self.vault.clock.steady());
        let known = holding.bearing.borrow().clone().filter(|bearing| bearing.session.is_alive());
        if let Some(bearing) = known {
            return Ok(bearing);
        }
        let bearing = Rc::new(self.dial_holder(card).await?);
        let has_keeper = holding.bearing.borrow_mut().replace(Rc::clone(&bearing)).is_some();
        if !has_keeper {
            let (sync, holding) = (Rc::clone(self), Rc::clone(&holding));
            self.spawn(async move { sync.leave_holding(&holding).await }).detach();
        }
        Ok(bearing)
    }

    /// Ends a session with a holder when nobody has read in it for a while.
    async fn leave_holding(&self, holding: &Holding) {
        loop {
            Timer::after(HOLDING_IDLE_MAX / 2).await;
            let is_over = {
                let bearing = holding.bearing.borrow();
                let idle = self.vault.clock.steady().saturating_sub(holding.used_at.get());
                bearing.as_ref().is_none_or(|bearing| {
                    !bearing.session.is_alive() || (Rc::strong_count(bearing) == 1 && idle > HOLDING_IDLE_MAX)
                })
            };
            if is_over {
                holding.bearing.take();
                return;
            }
        }
    }

    async fn dial_holder(self: &Rc<Self>, card: &Card) -> Result<Bearing, DialError> {
        let approach = Approach::Ticket { id: card.id, x25519: card.x25519 };
        let addresses: Vec<String> = card.addresses.iter().chain(&card.relays).cloned().collect();
        let newcomer = self.dial_stranger(&addresses, &approach).await?;
        let (session, driver) = session::start(newcomer.0.established.stream, true, &Limits::default());
        let driver = self.spawn(async move {
            driver.await;
        });
        Ok(Bearing { session, _driver: driver })
    }

    /// A newcomer has become a peer.
    pub(super) async fn take_in(self: &Rc<Self>, newcomer: Newcomer) -> Option<Rc<Link>> {
        self.attach(newcomer.0).await.map(|(link, _)| link)
    }

    // ---- Measuring ----

    async fn measure_if_due(self: &Rc<Self>, link: &Rc<Link>) {
        let every_s = self.vault.config.routes_measure_hours as i64 * 3600;
        let measured_at = self.routes.borrow().measured_at(&link.peer);
        let is_due = measured_at == 0 || measured_at + every_s < self.vault.now() as i64;
        // A round tells more than a measurement, and is not to be disturbed by one.
        if every_s > 0 && is_due && link.rounding.try_lock().is_some() {
            self.measure_routes(link).await;
        }
    }

    /// Measures all routes of a peer by real transfers, one after the other.
    async fn measure_routes(self: &Rc<Self>, link: &Rc<Link>) {
        let routes = self.routes.borrow().ranked(&link.peer);
        for route in routes.iter().take(MEASURED_MAX) {
            if let Err(why) = self.measure_route(link, route).await {
                self.routes.borrow_mut().note_failure(&link.peer, &route.address, &why);
            }
        }
        self.save_routes().await;
    }

    async fn measure_route(self: &Rc<Self>, link: &Rc<Link>, route: &Route) -> Result<(), String> {
        let is_it =
            |line: &Rc<Line>| line.is_ours && line.address == route.address && line.session.is_alive();
        let known = link.lines().into_iter().find(is_it);
        let is_trial = known.is_none();
        let line = match known {
            Some(line) => line,
            None => {
                let Some(peer) = self.gate.peer(&link.peer) else { return Ok(()) };
                let approach = Approach::Known { id: peer.id, x25519: peer.x25519 };
                let mut arrived =
                    self.dial_route(route, &approach).await.map_err(|(_, error)| error.to_string())?;
                arrived.is_trial = true;
                let attached = self.attach(arrived).await;
                attached.ok_or("the connection was given up")?.1
            }
        };
        self.measure_line(link, &line).await?;
        if is_trial && !link.is_wanted(&line) {
            line.session.close();
        }
        Ok(())
    }

    /// Measures a connection, whoever dialled it.
    async fn measure_line(&self, link: &Link, line: &Line) -> Result<(), String> {
        let measured = within(MEASURE_TIME_MAX, measure(&line.session)).await;
        line.is_trial.set(false);
        let speed = measured.ok_or("measuring it took too long")?.map_err(|why| why.to_string())?;
        line.speed.set(speed);
        line.is_measured.set(true);
        self.routes.borrow_mut().note_speed(&link.peer, &line.address, speed, self.vault.now() as i64);
        link.ring();
        Ok(())
    }

    /// Whether a peer may send and take so many bytes without meaning.
    pub(super) fn may_measure(&self, id: &CellId, bytes: u64) -> bool {
        self.link(id).is_some_and(|link| link.may_measure(bytes))
    }

    /// Measures all routes of all peers now.
    pub async fn bench(self: &Rc<Self>, told: impl Fn(&str)) {
        for peer in self.gate.peers() {
            told(&peer.name);
            self.name_routes(&peer);
            if let Err(why) = self.dial_peer(&peer.id).await {
                self.errors.borrow_mut().insert(peer.id, why);
            }
            if let Some(link) = self.link(&peer.id) {
                self.measure_routes(&link).await;
            }
        }
    }
}

/// A connection with a cell that is not yet in the books.
pub(super) struct Newcomer(Arrived);

impl Newcomer {
    pub(super) fn card(&self) -> Option<&Card> {
        self.0.established.peer.as_ref()
    }

    /// Where it was reached.
    pub(super) fn address(&self) -> &str {
        &self.0.address
    }
}

fn why(line: Option<&Rc<Line>>, is_best: bool, route: &Route, best: Option<&Line>) -> String {
    match (line, best) {
        (Some(line), _) if line.is_stalled() => "it does not answer at the moment".into(),
        (Some(_), _) if is_best => "in use: the fastest that answers".into(),
        (Some(_), _) => "connected beside the one in use".into(),
        (None, None) if route.error.is_empty() => "not tried yet".into(),
        (None, _) if !route.error.is_empty() => "it did not answer".into(),
        (None, Some(best)) if route.expected().is_better_than(&best.speed.get()) => "to be tried soon".into(),
        (None, _) => "no faster than the one in use".into(),
    }
}

/// Round trip and throughput both ways, by real transfers: 256 KiB, growing until one takes 200 ms.
async fn measure(session: &Session) -> Result<Speed, AskError> {
    let mut rtt = Duration::MAX;
    for _ in 0..3 {
        let asked = instant();
        message::ask(session, &Request::Ping).await?;
        rtt = rtt.min(since(asked));
    }
    let up_bytes_per_s = rate(session, rtt, |bytes| (bytes, 0)).await?;
    let down_bytes_per_s = rate(session, rtt, |bytes| (0, bytes)).await?;
    Ok(Speed { rtt_us: (rtt.as_micros() as u64).max(1), up_bytes_per_s, down_bytes_per_s })
}

async fn rate(session: &Session, rtt: Duration, ways: impl Fn(u32) -> (u32, u32)) -> Result<u64, AskError> {
    let mut bytes = MEASURE_BYTES_MIN;
    loop {
        let (up, down) = ways(bytes);
        let began = instant();
        message::measure(session, up, down).await?;
        let took = since(began);
        if took >= MEASURE_LONG || bytes >= MEASURE_BYTES_MAX {
            let us = took.saturating_sub(rtt).max(took / 8).as_micros().max(1) as u64;
            return Ok(u64::from(bytes) * 1_000_000 / us);
        }
        bytes = bytes.saturating_mul(2).min(MEASURE_BYTES_MAX);
    }
}

/// The networks this machine is in.
fn own_networks() -> Vec<Network> {
    let network = |one: interfaces::Interface| Network { ip: one.ip, prefix: one.prefix };
    interfaces::list().into_iter().map(network).collect()
}

/// Addresses of this machine under which others may find it; the loopback only where there is no other.
fn own_ips(with_ipv6: bool) -> Vec<IpAddr> {
    let is_useful = |ip: &IpAddr| match ip {
        IpAddr::V4(ip) => !ip.is_loopback() && !ip.is_link_local() && !ip.is_unspecified(),
        IpAddr::V6(ip) => {
            with_ipv6 && !ip.is_loopback() && !ip.is_unspecified() && ip.segments()[0] & 0xffc0 != 0xfe80
        }
    };
    let mut ips: Vec<IpAddr> =
        own_networks().into_iter().map(|network| network.ip).filter(is_useful).collect();
    order::sort(&mut ips);
    ips.dedup();
    if ips.is_empty() {
        ips.push(Ipv4Addr::LOCALHOST.into());
    }
    ips
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn better_routes_are_looked_for_soon_and_then_ever_more_rarely() {
        let pauses: Vec<Duration> = (0..8).map(|tries| better_pause(tries, 128)).collect();
        assert!(pauses[0] >= Duration::from_secs(8) && pauses[0] <= Duration::from_secs(12));
        assert!(pauses.windows(2).all(|pair| pair[0] <= pair[1]));
        assert!(better_pause(u32::MAX, 255) <= BETTER_PAUSE_MAX.mul_f64(1.2));
    }
}

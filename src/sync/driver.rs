//! Connections: who is dialled, who is let in, when rounds run, and what the rest of the cell asks of all that.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use smol::channel::{self, Receiver, Sender};
use smol::lock::{Mutex, Semaphore};
use smol::net::TcpStream;
use smol::{LocalExecutor, Task, Timer};

use super::books::{Books, InviteRow, InviteState, PeerRow};
use super::gate::{BookGate, RefusalLog};
use super::round::{self, Moved};
use super::serve::{self, Caller, Keeper};
use super::{dial_pause, replaces, round_pause};
use crate::card::{ADDRESSES_MAX, CardBody, Invite, InviteError, NAME_BYTES_MAX, Role, is_address};
use crate::id::{CellId, ChunkName, hex, unhex};
use crate::keys::{Secret, random};
use crate::placement::planner::Candidate;
use crate::placement::{CellNumber, ChunkId, DbError, Own};
use crate::publish;
use crate::vault::{Vault, VaultError};
use crate::wire::handshake::{Approach, Established, HandshakeError, Kind, initiate, respond};
use crate::wire::message::{self, Farewell, Request, Usage};
use crate::wire::session::{self, Limits, Session};
use crate::wire::tcp::{self, DialError, Door, Knock};
use crate::wire::{Transport, within};

/// A session this young may be one of two simultaneous dials; a peer that dials later has lost its session.
const SIMULTANEOUS: Duration = Duration::from_secs(20);
/// A session that ended sooner counts as a failed dial.
const SHORT_LIFE: Duration = Duration::from_secs(5);
/// Recovering cells served at once.
const RECOVERIES_MAX: usize = 8;
/// A recovering cell that says nothing for so long is let go.
const RECOVERY_IDLE_MAX: Duration = Duration::from_secs(300);
/// A removed peer's chunks are kept this long. Observed seconds.
const REMOVED_S: u64 = 30 * 86_400;
/// A farewell is said within this.
const FAREWELL_TIME_MAX: Duration = Duration::from_secs(3);
/// Sessions end within this when the cell stops.
const STOP_TIME_MAX: Duration = Duration::from_millis(800);
/// Rounds that one `round` runs with a peer before it reports.
const ROUNDS_MAX: usize = 16;
/// How long an invite may last. s.
const INVITE_S_MAX: u64 = 366 * 86_400;

/// Data streams at once, of all sessions together. A stream holds its place from before its request to its end, on both
/// sides: so whoever waits for bytes waits for somebody who has his place, and nobody waits in a circle.
pub(super) struct Permits {
    pub(super) giving: Semaphore,
    pub(super) taking: Semaphore,
    pub(super) pushing: Semaphore,
    pub(super) pulling: Semaphore,
}

/// A session with a peer.
pub(super) struct Link {
    pub(super) peer: CellId,
    pub(super) cell: CellNumber,
    pub(super) session: Session,
    is_ours: bool,
    at: Instant,
    address: String,
    wake: Sender<()>,
    pub(super) rounding: Mutex<()>,
    pub(super) is_introduced: Cell<bool>,
    pub(super) usage: Cell<Option<Usage>>,
    pub(super) is_full: Cell<bool>,
    /// Chunks wait that would fit neither here nor with anybody else.
    pub(super) lacks_room: Cell<bool>,
    /// Segments of ours that it holds, as far as this session knows.
    pub(super) segments: RefCell<HashSet<ChunkName>>,
}

impl Link {
    /// The peer takes no more of what it should have.
    pub(super) fn has_no_room(&self) -> bool {
        self.is_full.get() || self.lacks_room.get()
    }

    /// A round is wanted; one that is wanted already serves.
    fn nudge(&self) {
        let _ = self.wake.try_send(());
    }
}

struct Dialer {
    wake: Sender<()>,
    alone: Rc<Mutex<()>>,
    _task: Task<()>,
}

/// A peer, for people.
#[derive(Debug, Clone)]
pub struct PeerView {
    pub name: String,
    pub id: CellId,
    pub role: Role,
    pub online: bool,
    /// `host:port` of the session, or empty.
    pub address: String,
    /// Seconds ago; `None`: never.
    pub last_seen_s: Option<u64>,
    pub held_for_us_bytes: u64,
    pub held_for_us_chunks: u64,
    pub held_for_them_bytes: u64,
    /// 0: up to the reserve.
    pub quota_bytes: u64,
    pub favorite: bool,
    pub addresses: Vec<String>,
    /// The last problem in words, or empty.
    pub error: String,
}

/// Why a peer has not all that it should have.
const NO_ROOM: &str = "it takes no more: its disk, or this cell's quota there, is full";

/// Rounds with one peer.
#[derive(Debug, Clone, Default)]
pub struct PeerRound {
    pub name: String,
    pub reached: bool,
    pub pushed_chunks: u64,
    pub pushed_bytes: u64,
    pub pulled_chunks: u64,
    pub pulled_bytes: u64,
    /// Why it was not reached or not brought level, or empty.
    pub why: String,
}

/// Rounds with all peers.
#[derive(Debug, Clone, Default)]
pub struct RoundReport {
    pub peers: Vec<PeerRound>,
    /// Chunks of files that still have fewer copies than wanted.
    pub waiting_chunks: u64,
}

/// What a fetch brought.
#[derive(Debug, Clone, Default)]
pub struct Fetched {
    /// In the local store now.
    pub got: Vec<ChunkName>,
    /// With no peer that is connected.
    pub missing: Vec<ChunkName>,
    /// Bytes that came.
    pub bytes: u64,
}

/// A cell by name and id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Introduction {
    pub name: String,
    pub id: CellId,
}

/// Why an invite did not lead in.
#[derive(Debug)]
pub enum JoinError {
    /// The text is no invite.
    Token(InviteError),
    /// Its time is over by this machine's clock.
    Expired,
    /// It is this cell's own.
    Own,
    /// Nobody answered at its addresses.
    Unreachable(DialError),
    /// The inviter answered, and refused.
    Refused(DialError),
    /// Something failed here.
    Failed(VaultError),
}

impl fmt::Display for JoinError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Token(why) => why.fmt(f),
            Self::Expired => f.write_str("the invite has expired; ask for a new one"),
            Self::Own => f.write_str("this is an invite of this cell; use it on the other one"),
            Self::Unreachable(why) => write!(f, "the inviting cell cannot be reached: {why}"),
            Self::Refused(why) => why.fmt(f),
            Self::Failed(why) => why.fmt(f),
        }
    }
}

impl std::error::Error for JoinError {}

/// Peers, invites and rounds of one cell.
pub struct Sync {
    pub(super) executor: Rc<LocalExecutor<'static>>,
    pub(super) vault: Arc<Vault>,
    pub(super) books: Arc<Books>,
    pub(super) keeper: Arc<Keeper>,
    pub(super) gate: BookGate,
    pub(super) refusals: RefusalLog,
    pub(super) permits: Permits,
    /// One looks at deficits and plans at a time.
    pub(super) planning: Mutex<()>,
    /// One takes in a foreign head at a time.
    pub(super) merging: Mutex<()>,
    /// Chunks on their way, and to whom.
    pub(super) in_flight: RefCell<HashMap<ChunkId, Vec<CellNumber>>>,
    links: RefCell<HashMap<CellId, Rc<Link>>>,
    dialers: RefCell<HashMap<CellId, Dialer>>,
    errors: RefCell<HashMap<CellId, String>>,
    tasks: RefCell<Vec<Task<()>>>,
    recovering: Cell<usize>,
    is_stopping: Cell<bool>,
    listen: SocketAddr,
}

impl Sync {
    /// Listens on `listen` (port 0: any free one), dials all peers, and runs rounds until `stop`.
    pub async fn start(
        executor: Rc<LocalExecutor<'static>>,
        vault: Arc<Vault>,
        books: Arc<Books>,
        listen: SocketAddr,
    ) -> io::Result<Rc<Self>> {
        let other = |why: VaultError| io::Error::other(why.to_string());
        let door = Door::open(listen).await?;
        let opened = Arc::clone(&vault);
        let keeper = smol::unblock(move || Keeper::open(opened)).await.map_err(other)?;
        let streams = || Semaphore::new(vault.config.jobs().max(1));
        let sync = Rc::new(Self {
            gate: BookGate::new(Arc::clone(&vault), Arc::clone(&books)),
            refusals: RefusalLog::new(),
            permits: Permits { giving: streams(), taking: streams(), pushing: streams(), pulling: streams() },
            planning: Mutex::new(()),
            merging: Mutex::new(()),
            in_flight: RefCell::default(),
            links: RefCell::default(),
            dialers: RefCell::default(),
            errors: RefCell::default(),
            tasks: RefCell::default(),
            recovering: Cell::new(0),
            is_stopping: Cell::new(false),
            listen: door.address()?,
            executor,
            keeper: Arc::new(keeper),
            vault,
            books,
        });
        sync.gate.refresh().await.map_err(other)?;
        let (books, vault, body) = (Arc::clone(&sync.books), Arc::clone(&sync.vault), sync.card_body());
        let card = smol::unblock(move || books.own_card(&vault, body)).await.map_err(other)?;
        sync.gate.set_card(&card);
        let tasks = [
            sync.executor.spawn(Rc::clone(&sync).listen_on(door)),
            sync.executor.spawn(Rc::clone(&sync).keep_time()),
        ];
        sync.tasks.borrow_mut().extend(tasks);
        for peer in sync.gate.peers() {
            sync.dial_from_now_on(peer.id);
        }
        Ok(sync)
    }

    /// The port it listens on.
    pub fn port(&self) -> u16 {
        self.listen.port()
    }

    /// Ends all sessions and tasks, within a second.
    pub async fn stop(&self) {
        self.is_stopping.set(true);
        self.tasks.borrow_mut().clear();
        self.dialers.borrow_mut().clear();
        let links: Vec<Rc<Link>> = self.links.borrow().values().cloned().collect();
        let ends = links.iter().map(|link| async {
            link.session.close();
            link.session.ended().await;
        });
        within(STOP_TIME_MAX, join_all(ends)).await;
        self.links.borrow_mut().clear();
        let (books, rows) = (Arc::clone(&self.books), self.gate.rows());
        smol::unblock(move || {
            for row in rows {
                if let Some(at) = row.last_seen {
                    let _ = books.note_seen(&row.id, at, None);
                }
            }
        })
        .await;
    }

    /// Something was published: rounds with everybody who is connected, now, and a dial to everybody who is not.
    pub fn poke(&self) {
        self.links.borrow().values().for_each(|link| link.nudge());
        self.dialers.borrow().values().for_each(|dialer| {
            let _ = dialer.wake.try_send(());
        });
    }

    /// Rounds with everybody but one who has just had his.
    pub(super) fn poke_others(&self, but: &CellId) {
        let links = self.links.borrow();
        links.values().filter(|link| link.peer != *but).for_each(|link| link.nudge());
    }

    // ---- What rounds and answers ask ----

    /// Bytes that a peer may store here; 0: up to the reserve.
    pub(super) fn quota(&self, id: &CellId) -> u64 {
        self.gate.peer(id).and_then(|peer| peer.quota_bytes).unwrap_or(self.vault.config.quota_bytes)
    }

    pub(super) fn name_of(&self, id: &CellId) -> String {
        self.gate.peer(id).map_or_else(|| id.short(), |peer| peer.name)
    }

    pub(super) fn candidates(&self) -> Vec<Candidate> {
        let links: Vec<Rc<Link>> = self.links.borrow().values().cloned().collect();
        let mut candidates: Vec<Candidate> = links
            .iter()
            .filter_map(|link| round::candidate(link, self.gate.peer(&link.peer)?.is_favorite))
            .collect();
        candidates.sort_by_key(|candidate| candidate.cell);
        candidates
    }

    // ---- Connections ----

    fn card_body(&self) -> CardBody {
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
            relays: Vec::new(),
            sequence: 0,
            successor: None,
            extensions: Vec::new(),
        }
    }

    /// Where this cell can be reached, best first: what config.json says, then its own interfaces.
    pub fn own_addresses(&self) -> Vec<String> {
        let mut addresses: Vec<String> =
            self.vault.config.peer_addresses.iter().filter(|address| is_address(address)).cloned().collect();
        let ips = match self.listen.ip() {
            ip if !ip.is_unspecified() => vec![ip],
            ip => own_ips(ip.is_ipv6()),
        };
        for ip in ips {
            let address = SocketAddr::new(ip, self.port()).to_string();
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
        addresses.truncate(ADDRESSES_MAX);
        addresses
    }

    async fn listen_on(self: Rc<Self>, door: Door) {
        loop {
            let knock = door.knock().await;
            let sync = Rc::clone(&self);
            self.executor.spawn(async move { sync.let_in(knock).await }).detach();
        }
    }

    async fn let_in(self: Rc<Self>, knock: Knock) {
        let Knock { stream, from, place } = knock;
        self.gate.reason.set("");
        let answered = respond(stream, Transport::Tcp, &self.gate).await;
        drop(place);
        let established = match answered {
            Ok(established) if !self.is_stopping.get() => established,
            Ok(_) => return,
            Err(why) => {
                let reason = self.gate.reason.replace("");
                let reason = if reason.is_empty() { String::new() } else { format!(" (invite {reason})") };
                return self.refusals.note(format_args!("refused {from}: {why}{reason}"));
            }
        };
        let Some(owner) = established.owner else { return };
        if established.kind == Kind::Recovery {
            return self.serve_recovery(established, owner).await;
        }
        if let Kind::Invite(_) = established.kind {
            self.publish_soon();
            self.dial_from_now_on(owner);
        }
        self.attach(established, false, None).await;
    }

    async fn serve_recovery(self: Rc<Self>, established: Established<TcpStream>, owner: CellId) {
        if self.recovering.get() >= RECOVERIES_MAX {
            return self.refusals.note(format_args!("{}: too many recoveries at once", owner.short()));
        }
        log::info!("{} is recovering from this cell", self.name_of(&owner));
        self.recovering.set(self.recovering.get() + 1);
        let (session, driver) = session::start(established.stream, false, &Limits::default());
        let caller = Caller { owner, is_recovering: true };
        let served = self.executor.spawn(serve::serve(Rc::clone(&self), session.clone(), caller));
        let idle = async {
            while session.active_at().elapsed() < RECOVERY_IDLE_MAX && !self.is_stopping.get() {
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

    /// Makes a link of a connection, unless a better one is there.
    async fn attach(
        self: &Rc<Self>,
        established: Established<TcpStream>,
        is_ours: bool,
        address: Option<SocketAddr>,
    ) -> Option<Rc<Link>> {
        let peer = established.peer.as_ref().map(|card| card.id)?;
        let vault = Arc::clone(&self.vault);
        let cell = smol::unblock(move || vault.db.change(|t| t.cell(&peer))).await.ok()?;
        let old = self.links.borrow().get(&peer).cloned();
        if let Some(old) = old.filter(|old| old.session.is_alive()) {
            let is_old = old.at.elapsed() > SIMULTANEOUS;
            if !is_old && !replaces(&self.vault.id(), &peer, old.is_ours, is_ours) {
                return None;
            }
            old.session.close();
        }
        if let Some(card) = &established.peer {
            if let Err(why) = serve::take_card(self, &peer, &card.to_bytes()).await {
                log::warn!("{}: {why}", peer.short());
            }
        }
        let (session, driver) = session::start(established.stream, is_ours, &Limits::default());
        let (wake, woken) = channel::bounded(1);
        let link = Rc::new(Link {
            peer,
            cell,
            session: session.clone(),
            is_ours,
            at: Instant::now(),
            address: address.map(|address| address.to_string()).unwrap_or_default(),
            wake,
            rounding: Mutex::new(()),
            is_introduced: Cell::new(false),
            usage: Cell::new(None),
            is_full: Cell::new(false),
            lacks_room: Cell::new(false),
            segments: RefCell::default(),
        });
        if self.is_stopping.get() {
            return None;
        }
        if let Some(other) = self.links.borrow_mut().insert(peer, Rc::clone(&link)) {
            other.session.close();
        }
        self.errors.borrow_mut().remove(&peer);
        self.note_seen(&link);
        log::info!("connected with {}", self.name_of(&peer));
        let (sync, ended) = (Rc::clone(self), Rc::clone(&link));
        let drive = async move {
            let why = driver.await;
            sync.detach_link(&ended, &why.to_string());
        };
        self.executor.spawn(drive).detach();
        let caller = Caller { owner: peer, is_recovering: false };
        self.executor.spawn(serve::serve(Rc::clone(self), session, caller)).detach();
        self.executor.spawn(Rc::clone(self).rounds_with(Rc::clone(&link), woken)).detach();
        link.nudge();
        Some(link)
    }

    fn note_seen(&self, link: &Link) {
        let (id, at) = (link.peer, self.vault.clock.wall());
        let address = (!link.address.is_empty()).then(|| link.address.clone());
        self.gate.note_seen(&id, at, address.as_deref());
        let books = Arc::clone(&self.books);
        smol::unblock(move || {
            if let Err(why) = books.note_seen(&id, at, address.as_deref()) {
                log::warn!("{why}");
            }
        })
        .detach();
    }

    fn detach_link(&self, link: &Rc<Link>, why: &str) {
        let is_current = self.links.borrow().get(&link.peer).is_some_and(|current| Rc::ptr_eq(current, link));
        if is_current {
            self.links.borrow_mut().remove(&link.peer);
            self.errors.borrow_mut().insert(link.peer, why.to_owned());
            log::info!("no longer connected with {}: {why}", self.name_of(&link.peer));
        }
        self.note_seen(link);
    }

    fn link(&self, id: &CellId) -> Option<Rc<Link>> {
        self.links.borrow().get(id).filter(|link| link.session.is_alive()).cloned()
    }

    fn dial_from_now_on(self: &Rc<Self>, id: CellId) {
        let (wake, woken) = channel::bounded(1);
        let alone = Rc::new(Mutex::new(()));
        let task = self.executor.spawn(Rc::clone(self).keep_dialling(id, woken, Rc::clone(&alone)));
        self.dialers.borrow_mut().insert(id, Dialer { wake, alone, _task: task });
    }

    async fn keep_dialling(self: Rc<Self>, id: CellId, woken: Receiver<()>, alone: Rc<Mutex<()>>) {
        let mut failures: u32 = 0;
        loop {
            if let Some(link) = self.link(&id) {
                link.session.ended().await;
                failures = if link.at.elapsed() < SHORT_LIFE { failures.saturating_add(1) } else { 0 };
            } else if !self.vault.is_retired() {
                let _alone = alone.lock().await;
                match self.dial_peer(&id).await {
                    Ok(()) => continue,
                    Err(why) => {
                        log::debug!("{}: {why}", self.name_of(&id));
                        self.errors.borrow_mut().insert(id, why);
                        failures = failures.saturating_add(1);
                    }
                }
            } else {
                failures = u32::MAX;
            }
            let pause = async {
                Timer::after(dial_pause(failures, random::<1>()[0])).await;
            };
            smol::future::or(pause, async {
                let _ = woken.recv().await;
            })
            .await;
        }
    }

    /// A link with a peer, dialled if there is none.
    async fn dial_peer(self: &Rc<Self>, id: &CellId) -> Result<(), String> {
        if self.link(id).is_some() {
            return Ok(());
        }
        let Some(peer) = self.gate.peer(id) else { return Err("it is no peer any more".into()) };
        let approach = Approach::Known { id: peer.id, x25519: peer.x25519 };
        let (address, established) =
            self.dial(&peer.addresses(), &approach).await.map_err(|why| why.to_string())?;
        match self.attach(established, true, Some(address)).await {
            Some(_) => Ok(()),
            None if self.link(id).is_some() => Ok(()),
            None => Err("the connection was given up for another one".into()),
        }
    }

    async fn dial(
        &self,
        addresses: &[String],
        approach: &Approach,
    ) -> Result<(SocketAddr, Established<TcpStream>), DialError> {
        let card = self.gate.card();
        let (identity, card) = (&self.vault.identity, &card);
        tcp::dial(addresses, |stream| initiate(stream, Transport::Tcp, identity, card, approach)).await
    }

    // ---- Rounds ----

    async fn rounds_with(self: Rc<Self>, link: Rc<Link>, woken: Receiver<()>) {
        loop {
            let is_woken = smol::future::or(async { woken.recv().await.is_ok() }, async {
                link.session.ended().await;
                false
            });
            if !is_woken.await || self.is_stopping.get() {
                return;
            }
            self.round_with(&link).await.ok();
        }
    }

    async fn round_with(self: &Rc<Self>, link: &Rc<Link>) -> Result<Moved, String> {
        let ended = async {
            link.session.ended().await;
            Err(round::RoundError::Why("the connection ended".into()))
        };
        match smol::future::or(round::run(self, link), ended).await {
            Ok(moved) => {
                self.errors.borrow_mut().remove(&link.peer);
                Ok(moved)
            }
            Err(why) => {
                // What was on its way is not any more.
                self.in_flight.borrow_mut().retain(|_, cells| {
                    cells.retain(|cell| *cell != link.cell);
                    !cells.is_empty()
                });
                if link.session.is_alive() {
                    log::warn!("round with {}: {why}", self.name_of(&link.peer));
                }
                self.errors.borrow_mut().insert(link.peer, why.to_string());
                Err(why.to_string())
            }
        }
    }

    async fn keep_time(self: Rc<Self>) {
        loop {
            self.give_up_removed().await;
            Timer::after(round_pause(self.vault.config.sync_every_s, random::<1>()[0])).await;
            self.links.borrow().values().for_each(|link| link.nudge());
        }
    }

    async fn give_up_removed(&self) {
        let now = self.vault.expiry_now();
        for row in self.gate.rows() {
            if row.removed_at.is_some_and(|at| at + REMOVED_S < now) {
                let (keeper, books, id) = (Arc::clone(&self.keeper), Arc::clone(&self.books), row.id);
                let work = move || -> Result<(), VaultError> {
                    keeper.give_up(&id)?;
                    Ok(books.forget_peer(&id)?)
                };
                if let Err(why) = smol::unblock(work).await {
                    log::warn!("{why}");
                }
                if let Err(why) = self.gate.refresh().await {
                    log::warn!("{why}");
                }
            }
        }
    }

    /// Rounds with every peer until each that can be reached has all it should.
    pub async fn round(self: &Rc<Self>) -> RoundReport {
        let rounds = self.gate.peers().into_iter().map(|peer| self.level(peer));
        let peers = join_all(rounds).await;
        let (vault, copies) = (Arc::clone(&self.vault), self.vault.config.copies.saturating_sub(1));
        let totals = smol::unblock(move || vault.db.read(|t| t.own_totals(copies))).await;
        RoundReport { peers, waiting_chunks: totals.map_or(0, |(_, _, short)| short) }
    }

    async fn level(self: &Rc<Self>, peer: PeerRow) -> PeerRound {
        let mut report = PeerRound { name: peer.name.clone(), ..PeerRound::default() };
        for _ in 0..ROUNDS_MAX {
            if self.link(&peer.id).is_none() {
                let alone = self.dialers.borrow().get(&peer.id).map(|dialer| Rc::clone(&dialer.alone));
                let alone = alone.unwrap_or_default();
                let _alone = alone.lock().await;
                if let Err(why) = self.dial_peer(&peer.id).await {
                    report.why = why;
                    return report;
                }
            }
            let Some(link) = self.link(&peer.id) else { continue };
            report.reached = true;
            match self.round_with(&link).await {
                Ok(moved) => {
                    report.why.clear();
                    report.pushed_chunks += moved.pushed_chunks;
                    report.pushed_bytes += moved.pushed_bytes;
                    report.pulled_chunks += moved.pulled_chunks;
                    report.pulled_bytes += moved.pulled_bytes;
                    if link.has_no_room() {
                        report.why = NO_ROOM.into();
                    }
                    if moved == Moved::default() || link.is_full.get() {
                        break;
                    }
                }
                Err(why) => {
                    report.why = why;
                    // A connection that broke is tried again; a peer that refuses will refuse again.
                    if link.session.is_alive() {
                        break;
                    }
                }
            }
        }
        report
    }

    /// Waits until every peer is connected, or `timeout` is over; how many are.
    pub async fn wait_connected(&self, timeout: Duration) -> usize {
        let work = async {
            while self.gate.peers().iter().any(|peer| self.link(&peer.id).is_none()) {
                Timer::after(Duration::from_millis(20)).await;
            }
        };
        within(timeout, work).await;
        self.links.borrow().values().filter(|link| link.session.is_alive()).count()
    }

    /// Brings chunks of ours into the local store from whoever is connected and has them.
    pub async fn fetch(&self, names: Vec<ChunkName>) -> Fetched {
        let mut fetched = Fetched::default();
        let mut tried: HashSet<CellId> = HashSet::new();
        let (vault, asked) = (Arc::clone(&self.vault), names.clone());
        let noted = smol::unblock(move || {
            vault.db.read(|t| -> Result<HashMap<ChunkName, Vec<CellNumber>>, DbError> {
                let mut noted = HashMap::new();
                for name in asked {
                    if let Some(row) = t.chunk(&name)? {
                        noted.insert(name, t.copies_of(row.id)?);
                    }
                }
                Ok(noted)
            })
        })
        .await
        .unwrap_or_default();
        // First from those that are known to have them, shared among them; then from everybody else.
        let mut links: Vec<Rc<Link>> = self.live_links();
        let mut shares: Vec<Vec<ChunkName>> = vec![Vec::new(); links.len()];
        let mut rest = Vec::new();
        for name in names {
            let holders = noted.get(&name).map_or(&[][..], Vec::as_slice);
            let best = (0..links.len())
                .filter(|at| holders.contains(&links[*at].cell))
                .min_by_key(|at| shares[*at].len());
            match best {
                Some(at) => shares[at].push(name),
                None => rest.push(name),
            }
        }
        let pulls = links.iter().zip(shares).filter(|(_, share)| !share.is_empty()).map(|(link, share)| {
            round::pull(&self.vault, &link.session, share, Own::No, &self.permits.pulling)
        });
        for pulled in join_all(pulls).await {
            fetched.got.extend(pulled.got);
            fetched.bytes += pulled.bytes;
            rest.extend(pulled.missing);
        }
        loop {
            if rest.is_empty() {
                break;
            }
            links = self.live_links();
            let Some(link) = links.iter().find(|link| !tried.contains(&link.peer)) else { break };
            tried.insert(link.peer);
            let pulled = round::pull(&self.vault, &link.session, rest, Own::No, &self.permits.pulling).await;
            fetched.got.extend(pulled.got);
            fetched.bytes += pulled.bytes;
            rest = pulled.missing;
        }
        if links.is_empty() && !rest.is_empty() {
            // Nobody to ask; what lies here still counts.
            log::debug!("{} chunks wait for a peer", rest.len());
        }
        fetched.missing = rest;
        fetched
    }

    fn live_links(&self) -> Vec<Rc<Link>> {
        let mut links: Vec<Rc<Link>> =
            self.links.borrow().values().filter(|link| link.session.is_alive()).cloned().collect();
        links.sort_by_key(|link| link.cell);
        links
    }

    // ---- Peers and invites ----

    /// All peers, in the order in which they came.
    pub async fn peers(&self) -> Result<Vec<PeerView>, VaultError> {
        let rows = self.gate.peers();
        let ids: Vec<CellId> = rows.iter().map(|row| row.id).collect();
        let (vault, keeper) = (Arc::clone(&self.vault), Arc::clone(&self.keeper));
        let sums = smol::unblock(move || -> Result<Vec<_>, VaultError> {
            ids.iter()
                .map(|id| {
                    let copies = vault.db.change(|t| {
                        let cell = t.cell(id)?;
                        t.copy_totals(cell)
                    })?;
                    Ok((copies, keeper.totals(id)?))
                })
                .collect()
        })
        .await?;
        let wall = self.vault.clock.wall();
        let view = |(row, ((chunks, bytes), held)): (PeerRow, ((u64, u64), crate::placement::HeldTotals))| {
            let link = self.link(&row.id);
            PeerView {
                addresses: row.addresses(),
                online: link.is_some(),
                address: link.as_ref().map(|link| link.address.clone()).unwrap_or_default(),
                last_seen_s: match &link {
                    Some(_) => Some(0),
                    None => row.last_seen.map(|at| wall.saturating_sub(at).max(0) as u64),
                },
                held_for_us_bytes: bytes,
                held_for_us_chunks: chunks,
                held_for_them_bytes: held.bytes,
                quota_bytes: row.quota_bytes.unwrap_or(self.vault.config.quota_bytes),
                favorite: row.is_favorite,
                error: match link.as_ref().is_some_and(|link| link.has_no_room()) {
                    true => NO_ROOM.into(),
                    false => self.errors.borrow().get(&row.id).cloned().unwrap_or_default(),
                },
                name: row.name,
                id: row.id,
                role: row.role,
            }
        };
        Ok(rows.into_iter().zip(sums).map(view).collect())
    }

    /// The peer with this name, id, or beginning of an id (4 letters at least).
    pub fn find_peer(&self, text: &str) -> Result<CellId, VaultError> {
        let peers = self.gate.peers();
        let by_name: Vec<&PeerRow> = peers.iter().filter(|peer| peer.name == text).collect();
        let lower = text.to_ascii_lowercase();
        let by_id: Vec<&PeerRow> =
            peers.iter().filter(|peer| text.len() >= 4 && hex(&peer.id.0).starts_with(&lower)).collect();
        match (by_name.as_slice(), by_id.as_slice()) {
            ([one], _) | ([], [one]) => Ok(one.id),
            ([], []) => Err(VaultError::Refused(format!("there is no peer {text}; see `grove peers`"))),
            _ => Err(VaultError::Refused(format!("{text} means several peers; give the id"))),
        }
    }

    /// A new invite for `role`, good for `expires_s` seconds: its id, and the token to hand over.
    pub async fn invite(&self, role: Role, expires_s: u64) -> Result<([u8; 16], Invite), VaultError> {
        if expires_s == 0 || expires_s > INVITE_S_MAX {
            return Err(VaultError::Refused("an invite lasts 1 second to 366 days".into()));
        }
        let expires = self.vault.clock.wall().max(0) as u64 + expires_s;
        let (id, secret) = (random(), Secret(random()));
        let row =
            InviteRow { id, secret: secret.clone(), role, expires, state: InviteState::Open, used_by: None };
        let books = Arc::clone(&self.books);
        smol::unblock(move || books.add_invite(&row)).await?;
        self.gate.refresh().await?;
        let invite = Invite {
            inviter: self.vault.id(),
            x25519: *self.vault.identity.x_public(),
            invite_id: id,
            secret,
            role,
            expires,
            addresses: self.own_addresses(),
            relay: None,
        };
        Ok((id, invite))
    }

    /// All invites; their state at this moment.
    pub fn invites(&self) -> Vec<InviteRow> {
        let wall = self.vault.clock.wall();
        let seen = |row: InviteRow| InviteRow { state: row.state_at(wall), ..row };
        self.gate.invites().into_iter().map(seen).collect()
    }

    /// Takes an invite back, by its id in hex.
    pub async fn revoke_invite(&self, id: &str) -> Result<(), VaultError> {
        let none = || VaultError::Refused(format!("there is no open invite {id}; see the list of invites"));
        let bytes: [u8; 16] = unhex(id).and_then(|bytes| bytes.try_into().ok()).ok_or_else(none)?;
        let books = Arc::clone(&self.books);
        let was_open = smol::unblock(move || books.revoke_invite(&bytes)).await?;
        self.gate.refresh().await?;
        if was_open { Ok(()) } else { Err(none()) }
    }

    /// Becomes a peer of whoever made this invite.
    pub async fn join(self: &Rc<Self>, token: &str) -> Result<Introduction, JoinError> {
        let invite: Invite = token.parse().map_err(JoinError::Token)?;
        if invite.inviter == self.vault.id() {
            return Err(JoinError::Own);
        }
        if invite.is_expired(self.vault.clock.wall().max(0) as u64) {
            return Err(JoinError::Expired);
        }
        let (address, established) = match self.dial(&invite.addresses, &Approach::from(&invite)).await {
            Ok(dialled) => dialled,
            Err(why) => {
                let is_refused =
                    matches!(why.best(), Some((_, HandshakeError::Silent(_) | HandshakeError::NotLetIn(_))));
                return Err(if is_refused { JoinError::Refused(why) } else { JoinError::Unreachable(why) });
            }
        };
        let nobody = || JoinError::Failed(VaultError::Refused("the inviter sent no card".into()));
        let card = established.peer.clone().ok_or_else(nobody)?;
        let mut peer = PeerRow::new(&card, invite.role, self.vault.clock.wall());
        peer.address = address.to_string();
        if let Some(known) = self.gate.peer(&card.id) {
            peer.quota_bytes = known.quota_bytes;
            peer.is_favorite = known.is_favorite;
            peer.recovery_secret = known.recovery_secret;
        }
        let joined = Introduction { name: peer.name.clone(), id: peer.id };
        self.gate.save(peer).await.map_err(JoinError::Failed)?;
        let link = self.attach(established, true, Some(address)).await;
        self.dial_from_now_on(joined.id);
        if let Some(link) = link {
            // Before anything else can go wrong: the peer must be able to give everything back.
            let introducing = async { Some(round::introduce(self, &link).await) };
            // Both may have dialled, and the other connection stayed: its rounds introduce, too.
            let ended = async {
                link.session.ended().await;
                None
            };
            if let Some(Err(why)) = smol::future::or(introducing, ended).await {
                log::warn!("{}: {why}", joined.name);
            }
        }
        self.publish_soon();
        Ok(joined)
    }

    /// Ends it with a peer, and heals elsewhere what it held. Its own chunks are kept for 30 days.
    pub async fn remove_peer(self: &Rc<Self>, id: &CellId) -> Result<Introduction, VaultError> {
        let Some(peer) = self.gate.peer(id) else {
            return Err(VaultError::Refused("there is no such peer; see `grove peers`".into()));
        };
        let removed = Introduction { name: peer.name.clone(), id: *id };
        if let Some(link) = self.link(id) {
            let goodbye = Request::Goodbye { reason: Farewell::Removed };
            within(FAREWELL_TIME_MAX, message::ask(&link.session, &goodbye)).await;
        }
        self.part_with(peer).await?;
        Ok(removed)
    }

    /// A peer has removed us.
    pub(super) async fn was_removed_by(self: &Rc<Self>, id: &CellId) {
        let Some(peer) = self.gate.peer(id) else { return };
        log::warn!("{} has removed this cell from its peers; what it held is copied elsewhere", peer.name);
        if let Err(why) = self.part_with(peer).await {
            log::warn!("{why}");
        }
    }

    async fn part_with(self: &Rc<Self>, peer: PeerRow) -> Result<(), VaultError> {
        let id = peer.id;
        self.gate.save(PeerRow { removed_at: Some(self.vault.now()), ..peer }).await?;
        self.dialers.borrow_mut().remove(&id);
        let link = self.links.borrow_mut().remove(&id);
        if let Some(link) = link {
            link.session.close();
        }
        self.errors.borrow_mut().remove(&id);
        let vault = Arc::clone(&self.vault);
        smol::unblock(move || {
            vault.db.change(|t| -> Result<(), DbError> {
                let cell = t.cell(&id)?;
                t.drop_copies_of(cell)?;
                t.set_meta(&format!("inventory:{id}"), &[])
            })
        })
        .await?;
        self.publish_soon();
        Ok(())
    }

    /// How many bytes a peer may store here; `None`: the default, 0: up to the reserve.
    pub async fn set_quota(&self, id: &CellId, bytes: Option<u64>) -> Result<(), VaultError> {
        self.change_peer(id, |peer| peer.quota_bytes = bytes).await
    }

    /// Favorites get chunks first.
    pub async fn set_favorite(&self, id: &CellId, on: bool) -> Result<(), VaultError> {
        self.change_peer(id, |peer| peer.is_favorite = on).await
    }

    async fn change_peer(&self, id: &CellId, change: impl FnOnce(&mut PeerRow)) -> Result<(), VaultError> {
        let Some(mut peer) = self.gate.peer(id) else {
            return Err(VaultError::Refused("there is no such peer; see `grove peers`".into()));
        };
        change(&mut peer);
        self.gate.save(peer).await?;
        let vault = Arc::clone(&self.vault);
        smol::unblock(move || publish::publish(&vault)).await?;
        self.poke();
        Ok(())
    }

    /// Peers have changed: the catalog should say so, everywhere.
    fn publish_soon(self: &Rc<Self>) {
        let sync = Rc::clone(self);
        let work = async move {
            let vault = Arc::clone(&sync.vault);
            match smol::unblock(move || publish::publish(&vault)).await {
                Ok(_) => sync.poke(),
                Err(why) => log::warn!("the catalog cannot be published: {why}"),
            }
        };
        self.executor.spawn(work).detach();
    }

    /// Bytes in and out of the session with a peer, for tests and the dashboard.
    pub fn traffic(&self, id: &CellId) -> Option<(u64, u64)> {
        self.link(id).map(|link| (link.session.bytes_in(), link.session.bytes_out()))
    }

    /// Breaks the session with a peer off, for tests.
    pub fn cut(&self, id: &CellId) {
        if let Some(link) = self.link(id) {
            link.session.close();
        }
    }
}

/// Addresses of this machine under which others may find it; the loopback only where there is no other.
fn own_ips(with_ipv6: bool) -> Vec<IpAddr> {
    let mut found = BTreeSet::new();
    let mut list: *mut libc::ifaddrs = std::ptr::null_mut();
    // SAFETY: getifaddrs fills a list that is ours until freeifaddrs. Its entries and their addresses are valid until
    // then; an address is read as what its family says it is.
    unsafe {
        if libc::getifaddrs(&mut list) == 0 {
            let mut at = list;
            while !at.is_null() {
                let entry = &*at;
                at = entry.ifa_next;
                if entry.ifa_addr.is_null() || entry.ifa_flags & libc::IFF_UP as u32 == 0 {
                    continue;
                }
                match i32::from((*entry.ifa_addr).sa_family) {
                    libc::AF_INET => {
                        let address = entry.ifa_addr.cast::<libc::sockaddr_in>().read_unaligned();
                        found.insert(IpAddr::from(address.sin_addr.s_addr.to_ne_bytes()));
                    }
                    libc::AF_INET6 if with_ipv6 => {
                        let address = entry.ifa_addr.cast::<libc::sockaddr_in6>().read_unaligned();
                        found.insert(IpAddr::from(address.sin6_addr.s6_addr));
                    }
                    _ => {}
                }
            }
            libc::freeifaddrs(list);
        }
    }
    let is_useful = |ip: &IpAddr| match ip {
        IpAddr::V4(ip) => !ip.is_loopback() && !ip.is_link_local() && !ip.is_unspecified(),
        IpAddr::V6(ip) => !ip.is_loopback() && !ip.is_unspecified() && ip.segments()[0] & 0xffc0 != 0xfe80,
    };
    let mut ips: Vec<IpAddr> = found.into_iter().filter(is_useful).collect();
    if ips.is_empty() {
        ips.push(Ipv4Addr::LOCALHOST.into());
    }
    ips
}

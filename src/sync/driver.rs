//! When rounds run with whom, and what the rest of the cell asks of peers.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use smol::channel::{Receiver, Sender};
use smol::future::zip;
use smol::{LocalExecutor, Task};

use super::audit::Audits;
use super::books::{Books, InviteRow, InviteState, PeerRow, is_label};
use super::bounty::Ledgers;
use super::chat::Chats;
use super::connect::{Dialer, Holding};
use super::gate::{BookGate, RefusalLog};
use super::health::HealthBook;
use super::link::{For, Line, Link};
use super::permits::Permits;
use super::places::Places;
use super::prove::Allowances;
use super::relays::Relays;
use super::round::{self, Moved, RoundError};
use super::round_pause;
use super::serve::Keeper;
use super::strangers::Strangers;
use crate::card::{Card, Invite, InviteError, Role};
use crate::changes::Part;
use crate::friendship::Standing;
use crate::id::{CellId, ChunkName, hex, unhex};
use crate::keys::{Secret, random, sha256};
use crate::order;
use crate::placement::planner::{Candidate, Site};
use crate::placement::{CellNumber, ChunkId, DbError, HeldTotals, Own};
use crate::pool::{self, Turns, unblock};
use crate::publish;
use crate::routes::gateway::PortMap;
use crate::routes::lan::Lan;
use crate::routes::{Kind, RouteBook};
use crate::sums::Sums;
use crate::vault::{Vault, VaultError};
use crate::wire::handshake::{Approach, HandshakeError};
use crate::wire::message::{Farewell, Reply, Request};
use crate::wire::pace::{Caps, Pace};
use crate::wire::tcp::{DialError, Door};
use crate::wire::within;
use crate::world::Timer;

/// A removed peer's chunks are kept this long. Observed seconds.
const REMOVED_S: u64 = 30 * 86_400;
/// A farewell is said within this.
const FAREWELL_TIME_MAX: Duration = Duration::from_secs(3);
/// Sessions end within this when the cell stops.
const STOP_TIME_MAX: Duration = Duration::from_millis(800);
/// Connections over which one round is tried.
const ROUND_TRIES_MAX: u32 = 8;
/// Times that one `round` goes through all peers while chunks wait.
const LEVELS_MAX: usize = 3;
/// Rounds that one `round` runs with a peer before it reports.
const ROUNDS_MAX: usize = 16;
/// Who is here is noted this often.
const HEALTH_EVERY: Duration = Duration::from_secs(30);
/// Rounds make way for a fetch in so many steps between two batches, each so long.
const MAKE_WAY_STEPS: usize = 40;
const MAKE_WAY_STEP: Duration = Duration::from_millis(50);
/// Letters of an id that stand for it, at least.
const ID_LETTERS_MIN: usize = 4;
/// How long an invite may last. s.
const INVITE_S_MAX: u64 = 366 * 86_400;

/// A peer, for people.
#[derive(Debug, Clone)]
pub struct PeerView {
    pub name: String,
    pub id: CellId,
    /// What it calls itself.
    pub own_name: String,
    pub role: Role,
    pub standing: Standing,
    pub online: bool,
    /// `host:port` of the session, or empty.
    pub address: String,
    /// Seconds ago; `None`: never.
    pub last_seen_s: Option<u64>,
    pub held_for_us_bytes: u64,
    pub held_for_us_chunks: u64,
    pub held_for_them_bytes: u64,
    /// 0: up to the reserve, or by the rules of the bounty.
    pub quota_bytes: u64,
    /// Nothing was said of it: the rules of the bounty hold.
    pub quota_by_rules: bool,
    pub favorite: bool,
    pub addresses: Vec<String>,
    /// Those, and `ID@URL` for each relay it waits at.
    pub places: Vec<String>,
    /// The last problem in words, or empty.
    pub error: String,
}

/// Chunks and bytes that a peer holds for us, and what we hold for it.
type PeerSums = ((u64, u64), HeldTotals);

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
    /// With no peer that is connected, or with no room for them here.
    pub missing: Vec<ChunkName>,
    /// Bytes that came.
    pub bytes: u64,
    /// This disk had no room for more.
    pub is_full: bool,
}

impl Fetched {
    /// Takes in what one peer gave; gives what it did not.
    fn take(&mut self, pulled: round::Pulled) -> Vec<ChunkName> {
        self.got.extend(pulled.got);
        self.bytes += pulled.bytes;
        self.is_full |= matches!(&pulled.error, Some(RoundError::Vault(why)) if why.is_full());
        pulled.missing
    }
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

/// See `Sync::waited_for`.
struct Waited<'a>(&'a Cell<usize>);

impl Drop for Waited<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// Peers, invites and rounds of one cell.
pub struct Sync {
    /// Weak: it owns its tasks, and they own this.
    executor: Weak<LocalExecutor<'static>>,
    pub(super) vault: Arc<Vault>,
    pub(super) books: Arc<Books>,
    pub(super) keeper: Arc<Keeper>,
    pub(super) gate: BookGate,
    pub(super) refusals: RefusalLog,
    pub(super) permits: Permits,
    /// What may still be proved to whom.
    pub(super) allowances: Allowances,
    /// How peers have proved so far.
    pub(super) audits: Audits,
    /// One looks at deficits and plans at a time.
    pub(super) planning: Turns,
    /// One takes in a foreign head at a time.
    pub(super) merging: Turns,
    /// One looks through what is shared, or takes it back, at a time.
    pub(super) sharing: Turns,
    /// Up to which record what is granted is level with the files, and until when nothing is looked at again (steady time).
    pub(super) reconciled_at: Cell<Option<(u64, Duration)>>,
    pub(super) is_publishing_later: Cell<bool>,
    /// Tells that something came or went that may be kept.
    /// Bytes of the kept files that are fetched now.
    pub(super) keeping_bytes: Cell<u64>,
    pub(super) keep_wake: (Sender<()>, Receiver<()>),
    /// What observed time lacks to Unix time, as last believed.
    pub(super) unix_offset: Cell<Option<i64>>,
    /// Where holders can be reached, as friends are told it.
    pub(super) places: RefCell<Places>,
    /// Bearers of tickets who are served now, and when each last showed one that holds (steady time).
    pub(super) bearers: RefCell<Vec<(CellId, Duration)>>,
    /// Sessions in which this cell reads by tickets, by holder.
    pub(super) holdings: RefCell<HashMap<CellId, Rc<Holding>>>,
    /// Chunks on their way, and to whom.
    pub(super) in_flight: RefCell<HashMap<ChunkId, Vec<CellNumber>>>,
    pub(super) links: RefCell<HashMap<CellId, Rc<Link>>>,
    pub(super) dialers: RefCell<HashMap<CellId, Dialer>>,
    pub(super) routes: RefCell<RouteBook>,
    /// Addresses of peers that beacons told.
    pub(super) near: RefCell<HashMap<CellId, Vec<String>>>,
    pub(super) relays: Relays,
    /// Beacons of the local network, if they are wanted.
    pub(super) lan: RefCell<Option<Lan>>,
    /// The router's word, if it is asked, and the address that it has given.
    pub(super) port_map: RefCell<Option<PortMap>>,
    pub(super) mapped: Cell<Option<SocketAddr>>,
    /// Caps on the lines.
    pub(super) pace: Pace,
    /// How dependable each peer is, when that was last looked at, and when it was last written.
    pub(super) health: RefCell<HealthBook>,
    pub(super) health_at: Cell<Duration>,
    pub(super) health_saved_at: Cell<u64>,
    /// Who asks to be let in and is not known, and which peers refuse.
    pub(super) strangers: RefCell<Strangers>,
    /// A state of things in which nothing that lies with peers only could be copied on.
    pub(super) passed_for: Cell<Option<u64>>,
    /// Peers whose copies are not counted on, or are being marked so.
    pub(super) away: RefCell<BTreeSet<CellId>>,
    /// Of them those of whom all copies were marked since the start.
    pub(super) left: RefCell<BTreeSet<CellId>>,
    /// One marks a peer's copies as away or back at a time.
    pub(super) marking: Turns,
    /// What rounds have moved since the start.
    moved: Cell<Moved>,
    /// What is counted with each peer, and signed.
    pub(super) ledgers: Ledgers,
    /// Sums of all that is held for an owner, as last asked for; `None`: on their way.
    pub(super) digests: RefCell<BTreeMap<CellId, Option<(Duration, Reply)>>>,
    /// Fetches under way that somebody waits for.
    waiting: Cell<usize>,
    /// The last problem with each peer.
    pub(super) errors: RefCell<HashMap<CellId, String>>,
    /// What peers hold for us, and we for them.
    peer_sums: Sums<Vec<CellId>, Vec<PeerSums>>,
    /// Versions that peers say they run.
    pub(super) versions: RefCell<HashMap<CellId, super::Release>>,
    /// Conversations, where their file is open.
    pub(super) chats: RefCell<Option<Rc<Chats>>>,
    /// This cell's models, where it has any use for them.
    pub(super) models: RefCell<Option<Rc<dyn super::ai::Models>>>,
    tasks: RefCell<Vec<Task<()>>>,
    pub(super) recovering: Cell<usize>,
    pub(super) is_stopping: Cell<bool>,
    pub(super) listen: SocketAddr,
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
        let sync = Self::assemble(&executor, vault, books, door.address()?).await.map_err(other)?;
        sync.open_chat().await;
        let tasks = [
            sync.spawn(Rc::clone(&sync).listen_on(door)),
            sync.spawn(Rc::clone(&sync).keep_time()),
            sync.spawn(Rc::clone(&sync).keep_health()),
            sync.spawn(Rc::clone(&sync).keep_addresses()),
            sync.spawn(Rc::clone(&sync).watch_lines()),
            sync.spawn(Rc::clone(&sync).keep_kept()),
        ];
        sync.tasks.borrow_mut().extend(tasks);
        sync.start_relays();
        sync.start_lan().await.map_err(other)?;
        sync.start_port_map();
        for peer in sync.gate.peers() {
            sync.dial_from_now_on(peer.id);
        }
        Ok(sync)
    }

    /// All that is needed to answer peers and to run rounds with those who are connected. It neither listens, dials nor does
    /// anything by itself.
    pub(crate) async fn assemble(
        executor: &Rc<LocalExecutor<'static>>,
        vault: Arc<Vault>,
        books: Arc<Books>,
        listen: SocketAddr,
    ) -> Result<Rc<Self>, VaultError> {
        let opened = Arc::clone(&vault);
        let keeper = unblock(move || Keeper::open(opened)).await?;
        let sync = Rc::new(Self {
            gate: BookGate::new(Arc::clone(&vault), Arc::clone(&books)),
            refusals: RefusalLog::new(),
            permits: Permits::new(vault.config.jobs()),
            audits: Audits::default(),
            allowances: Allowances::default(),
            planning: Turns::default(),
            merging: Turns::default(),
            sharing: Turns::default(),
            reconciled_at: Cell::new(None),
            is_publishing_later: Cell::new(false),
            keeping_bytes: Cell::new(0),
            keep_wake: smol::channel::bounded(1),
            unix_offset: Cell::new(None),
            places: RefCell::default(),
            bearers: RefCell::default(),
            holdings: RefCell::default(),
            in_flight: RefCell::default(),
            links: RefCell::default(),
            dialers: RefCell::default(),
            routes: RefCell::default(),
            near: RefCell::default(),
            relays: Relays::new(&vault.config),
            lan: RefCell::default(),
            port_map: RefCell::default(),
            mapped: Cell::new(None),
            pace: Pace::new(Caps::from(&vault.config)),
            health: RefCell::default(),
            health_at: Cell::new(Duration::ZERO),
            health_saved_at: Cell::new(0),
            strangers: RefCell::default(),
            passed_for: Cell::new(None),
            away: RefCell::default(),
            left: RefCell::default(),
            marking: Turns::default(),
            moved: Cell::default(),
            ledgers: Ledgers::default(),
            digests: RefCell::default(),
            waiting: Cell::new(0),
            errors: RefCell::default(),
            peer_sums: Sums::default(),
            versions: RefCell::default(),
            chats: RefCell::default(),
            models: RefCell::default(),
            tasks: RefCell::default(),
            recovering: Cell::new(0),
            is_stopping: Cell::new(false),
            listen,
            executor: Rc::downgrade(executor),
            keeper: Arc::new(keeper),
            vault,
            books,
        });
        sync.gate.refresh().await?;
        sync.load_audits().await?;
        sync.load_bounty().await?;
        sync.load_routes().await;
        sync.load_health().await?;
        sync.load_recovered().await?;
        sync.load_grant_time().await?;
        sync.end_broken_sharing().await?;
        let (books, vault, body) = (Arc::clone(&sync.books), Arc::clone(&sync.vault), sync.card_body());
        let card = unblock(move || books.own_card(&vault, body)).await?;
        sync.gate.set_card(&card);
        sync.show_friend_requests();
        Ok(sync)
    }

    /// Where its tasks run.
    ///
    /// # Panics
    /// If it is gone, and with it whoever could ask.
    pub(super) fn executor(&self) -> Rc<LocalExecutor<'static>> {
        self.executor.upgrade().expect("an executor outlives its tasks")
    }

    pub(super) fn spawn<T: 'static>(&self, work: impl Future<Output = T> + 'static) -> Task<T> {
        pool::spawn(&self.executor(), work)
    }

    /// This cell's card, as bytes.
    pub(crate) fn card(&self) -> Vec<u8> {
        self.gate.card()
    }

    /// Becomes a peer of whoever has this card, who must do the same: for simulations, which need no invites.
    pub(crate) async fn befriend(self: &Rc<Self>, card: &[u8]) -> Result<(), VaultError> {
        let card = Card::from_bytes(card).map_err(|why| VaultError::Refused(why.to_string()))?;
        self.gate.save(PeerRow::new(&card, self.vault.clock.wall())).await?;
        self.publish_soon();
        Ok(())
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
        self.relays.stop();
        self.lan.borrow_mut().take();
        let port_map = self.port_map.borrow_mut().take();
        let links = self.links();
        let ends = links.iter().map(|link| async {
            link.close();
            link.ended().await;
        });
        let unmapped = async {
            if let Some(port_map) = port_map {
                port_map.stop().await;
            }
        };
        within(STOP_TIME_MAX, zip(join_all(ends), unmapped)).await;
        self.links.borrow_mut().clear();
        self.save_routes().await;
        self.save_health().await;
        let (books, rows) = (Arc::clone(&self.books), self.gate.rows());
        unblock(move || {
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
        self.nudge_all(None);
        for peer in self.gate.peers().iter().filter(|peer| self.link(&peer.id).is_none()) {
            self.wake_dialer(&peer.id);
        }
    }

    pub(super) fn nudge_all(&self, but: Option<&CellId>) {
        let links = self.live_links();
        links.iter().filter(|link| Some(&link.peer) != but).for_each(|link| link.nudge());
    }

    /// Rounds with everybody but one who has just had his.
    pub(super) fn poke_others(&self, but: &CellId) {
        self.nudge_all(Some(but));
    }

    // ---- What rounds and answers ask ----

    pub(super) fn name_of(&self, id: &CellId) -> String {
        self.gate.peer(id).map_or_else(|| id.short(), |peer| peer.name)
    }

    /// Where a peer is: here if it was ever reached over the local network; else where its address is, if it has one of its
    /// own.
    pub(super) fn site_of(&self, link: &Link) -> Option<Site> {
        let lines = link.lines();
        let is_near = lines.iter().any(|line| line.kind == Kind::Lan)
            || self
                .routes
                .borrow()
                .ranked(&link.peer)
                .iter()
                .any(|r| r.kind == Kind::Lan && r.succeeded_at.is_some());
        if is_near {
            return Some(Site::HERE);
        }
        let ip = lines.iter().find(|line| line.kind == Kind::Wan).and_then(|line| line.ip)?;
        let hash = sha256(ip.to_canonical().to_string().as_bytes());
        // Never the number of this place, nor one of those that are alone.
        Some(Site(u64::from_le_bytes(hash[..8].try_into().expect("8 bytes")) >> 1 | 1))
    }

    pub(super) fn candidates(&self) -> Vec<Candidate> {
        let mut candidates: Vec<Candidate> = self
            .live_links()
            .iter()
            .filter(|link| !self.is_suspended(&link.peer))
            .filter_map(|link| {
                let is_favorite = self.gate.peer(&link.peer)?.is_favorite;
                round::candidate(link, is_favorite, self.has_credit(link))
            })
            .collect();
        order::sort_by_key(&mut candidates, |candidate| candidate.cell);
        candidates
    }

    // ---- Rounds ----

    pub(super) async fn rounds_with(self: Rc<Self>, link: Rc<Link>, woken: Receiver<()>) {
        while woken.recv().await.is_ok() && !self.is_stopping.get() && !link.is_over() {
            // Once a peer is connected again there is a new reason.
            if link.is_alive() {
                self.round_with(&link).await.ok();
            }
        }
    }

    /// What rounds have moved since the start.
    pub fn moved_totals(&self) -> Moved {
        self.moved.get()
    }

    /// One round, and again where a connection broke under it and another one is there.
    async fn round_with(self: &Rc<Self>, link: &Rc<Link>) -> Result<Moved, String> {
        let mut moved = Moved::default();
        let outcome = self.try_round_with(link, &mut moved).await;
        self.moved.set(self.moved.get().and(moved));
        outcome.map(|()| moved)
    }

    async fn try_round_with(self: &Rc<Self>, link: &Rc<Link>, moved: &mut Moved) -> Result<(), String> {
        let mut tries = 0;
        loop {
            let losses = link.losses();
            let before = *moved;
            let outcome = round::run(self, link, moved).await;
            link.moved.set(link.moved.get().and(moved.since(before)));
            self.vault.changes.note(Part::Peers);
            self.vault.changes.note(Part::Status);
            let Err(why) = outcome else {
                self.errors.borrow_mut().remove(&link.peer);
                return Ok(());
            };
            // What was on its way is not any more.
            self.in_flight.borrow_mut().retain(|_, cells| {
                cells.retain(|cell| *cell != link.cell);
                !cells.is_empty()
            });
            let has_lost = link.losses() != losses;
            tries += 1;
            if has_lost && tries < ROUND_TRIES_MAX && link.line(For::Chunks).await.is_ok() {
                log::debug!(
                    "round with {}: {why}; it goes on over another connection",
                    self.name_of(&link.peer)
                );
                continue;
            }
            if link.is_alive() {
                log::warn!("round with {}: {why}", self.name_of(&link.peer));
            }
            // A connection that ended has left its own words.
            if link.is_alive() || !has_lost {
                self.errors.borrow_mut().insert(link.peer, why.to_string());
            }
            return Err(why.to_string());
        }
    }

    async fn keep_health(self: Rc<Self>) {
        loop {
            self.watch_peers().await;
            // Where the settings name a grace, it is kept to a quarter.
            let quarter = Duration::from_secs(self.vault.config.heal_grace_s.div_ceil(4).max(1));
            let every =
                if self.vault.config.heal_grace_s == 0 { HEALTH_EVERY } else { quarter.min(HEALTH_EVERY) };
            Timer::after(every).await;
        }
    }

    /// What is due between rounds: copies too many are let go, and what lies with peers only is copied on.
    pub(super) async fn heal(self: &Rc<Self>) {
        for outcome in [self.trim().await, self.pass_on().await] {
            if let Err(why) = outcome {
                log::warn!("copies cannot be looked after: {why}");
            }
        }
    }

    async fn keep_time(self: Rc<Self>) {
        self.give_up_removed().await;
        self.heal().await;
        loop {
            Timer::after(round_pause(self.vault.config.sync_every_s, random::<1>()[0])).await;
            self.keep_turn().await;
        }
    }

    /// One turn of `keep_time`: rounds with everybody who is connected, and what is due between them.
    pub(crate) async fn keep_turn(self: &Rc<Self>) {
        self.nudge_all(None);
        self.save_routes().await;
        self.give_up_removed().await;
        self.keep_grant_time().await;
        self.heal().await;
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
                if let Err(why) = unblock(work).await {
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
        let mut report = RoundReport::default();
        // What rounds did that ran beside counts too: whoever waits wants to know what was done, not by which of them.
        let peers = self.gate.peers();
        let moved_by =
            |id: &CellId| self.links.borrow().get(id).map(|link| link.moved.get()).unwrap_or_default();
        let before: Vec<Moved> = peers.iter().map(|peer| moved_by(&peer.id)).collect();
        for _ in 0..LEVELS_MAX {
            let rounds = peers.iter().map(|peer| self.level(peer));
            report.peers = join_all(rounds).await;
            let (vault, copies) = (Arc::clone(&self.vault), self.vault.config.copies);
            let short = unblock(move || vault.db.read(|t| t.own_short(copies))).await;
            report.waiting_chunks = short.unwrap_or(0);
            // A chunk that one round left to another peer may have come after that one's last.
            let reached = report.peers.iter().filter(|peer| peer.reached).count();
            if report.waiting_chunks == 0 || reached < 2 {
                break;
            }
        }
        for ((round, peer), before) in report.peers.iter_mut().zip(&peers).zip(before) {
            let now = moved_by(&peer.id);
            round.pushed_chunks = now.pushed_chunks.saturating_sub(before.pushed_chunks);
            round.pushed_bytes = now.pushed_bytes.saturating_sub(before.pushed_bytes);
            round.pulled_chunks = now.pulled_chunks.saturating_sub(before.pulled_chunks);
            round.pulled_bytes = now.pulled_bytes.saturating_sub(before.pulled_bytes);
        }
        report
    }

    async fn level(self: &Rc<Self>, peer: &PeerRow) -> PeerRound {
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
                    if link.is_alive() {
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
        self.live_links().len()
    }

    /// Somebody waits for chunks: rounds make way as long as this lives.
    fn waited_for(&self) -> Waited<'_> {
        self.waiting.set(self.waiting.get() + 1);
        Waited(&self.waiting)
    }

    /// Lets those go first who wait for chunks, for a while.
    pub(super) async fn make_way(&self) {
        for _ in 0..MAKE_WAY_STEPS {
            if self.waiting.get() == 0 {
                return;
            }
            Timer::after(MAKE_WAY_STEP).await;
        }
    }

    /// Brings chunks of ours into the local store from whoever is connected and has them.
    pub async fn fetch(&self, names: Vec<ChunkName>) -> Fetched {
        let _waited = self.waited_for();
        let mut fetched = Fetched::default();
        let mut tried: HashSet<CellId> = HashSet::new();
        let (vault, asked) = (Arc::clone(&self.vault), names.clone());
        let looked = unblock(move || {
            let space = vault.store.free();
            let mut room = space.map_or(u64::MAX, |space| space.free.saturating_sub(space.reserve));
            vault.db.read(|t| -> Result<_, DbError> {
                let (mut wanted, mut too_many, mut noted) = (Vec::new(), Vec::new(), HashMap::new());
                for name in asked {
                    let row = t.chunk(&name)?;
                    let needed =
                        row.as_ref().filter(|row| row.place.is_none()).map_or(0, |row| u64::from(row.len));
                    // What has no room here is not asked for: it would come in vain, again and again.
                    let Some(left) = room.checked_sub(needed) else {
                        too_many.push(name);
                        continue;
                    };
                    room = left;
                    if let Some(row) = row {
                        noted.insert(name, t.copies_of(row.id)?);
                    }
                    wanted.push(name);
                }
                Ok((wanted, too_many, noted))
            })
        })
        .await;
        let (names, too_many, noted) =
            looked.unwrap_or_else(|_: DbError| (names, Vec::new(), HashMap::new()));
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
        let pulls =
            links.iter().zip(shares).filter(|(_, share)| !share.is_empty()).map(|(link, share)| {
                round::pull(&self.vault, &**link, share, Own::No, &self.permits.pulling)
            });
        for pulled in join_all(pulls).await {
            rest.extend(fetched.take(pulled));
        }
        loop {
            // Another one's copies need as much room.
            if rest.is_empty() || fetched.is_full {
                break;
            }
            links = self.live_links();
            let Some(link) = links.iter().find(|link| !tried.contains(&link.peer)) else { break };
            tried.insert(link.peer);
            let pulled = round::pull(&self.vault, &**link, rest, Own::No, &self.permits.pulling).await;
            rest = fetched.take(pulled);
        }
        if links.is_empty() && !rest.is_empty() {
            // Nobody to ask; what lies here still counts.
            log::debug!("{} chunks wait for a peer", rest.len());
        }
        fetched.is_full |= !too_many.is_empty();
        rest.extend(too_many);
        fetched.missing = rest;
        fetched
    }

    fn live_links(&self) -> Vec<Rc<Link>> {
        let mut links = self.links();
        links.retain(|link| link.is_alive());
        links
    }

    /// The link of a peer that is connected.
    pub(super) fn link(&self, id: &CellId) -> Option<Rc<Link>> {
        self.links.borrow().get(id).filter(|link| link.is_alive()).cloned()
    }

    /// All links since the start, connected or not.
    pub(super) fn links(&self) -> Vec<Rc<Link>> {
        let mut links: Vec<Rc<Link>> = self.links.borrow().values().cloned().collect();
        order::sort_by_key(&mut links, |link| link.cell);
        links
    }

    // ---- Peers and invites ----

    /// How many peers there are.
    pub fn peer_count(&self) -> u64 {
        self.gate.peers().len() as u64
    }

    /// All peers, in the order in which they came.
    pub async fn peers(&self) -> Result<Vec<PeerView>, VaultError> {
        let rows = self.gate.peers();
        let ids: Vec<CellId> = rows.iter().map(|row| row.id).collect();
        let began = self.vault.clock.steady();
        let count = self.vault.changes.count();
        let sums = match self.peer_sums.get(&ids, began, count) {
            Some((sums, later)) => {
                if let Some(pause) = later {
                    // Who shows them asks again when the newest can be had.
                    self.spawn(Arc::clone(&self.vault.changes).note_after(Part::Peers, pause)).detach();
                }
                sums
            }
            None => {
                let (vault, keeper, asked) = (Arc::clone(&self.vault), Arc::clone(&self.keeper), ids.clone());
                let sums = unblock(move || -> Result<Vec<PeerSums>, VaultError> {
                    asked
                        .iter()
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
                self.peer_sums.put(ids, sums.clone(), (began, count), self.vault.clock.steady());
                sums
            }
        };
        let wall = self.vault.clock.wall();
        let view = |(row, ((chunks, bytes), held)): (PeerRow, PeerSums)| {
            let link = self.link(&row.id);
            PeerView {
                addresses: row.addresses(),
                places: row.places(),
                online: link.is_some(),
                address: link
                    .as_ref()
                    .and_then(|link| link.best(For::Chunks))
                    .map(|line| line.address.clone())
                    .unwrap_or_default(),
                last_seen_s: match &link {
                    Some(_) => Some(0),
                    None => row.last_seen.map(|at| wall.saturating_sub(at).max(0) as u64),
                },
                held_for_us_bytes: bytes,
                held_for_us_chunks: chunks,
                held_for_them_bytes: held.bytes,
                quota_bytes: row.quota_bytes.unwrap_or(self.vault.config.quota_bytes),
                quota_by_rules: row.quota_bytes.is_none() && self.vault.config.quota_bytes == 0,
                favorite: row.is_favorite,
                error: match link.as_ref().is_some_and(|link| link.has_no_room()) {
                    true => NO_ROOM.into(),
                    false => self.errors.borrow().get(&row.id).cloned().unwrap_or_default(),
                },
                own_name: row.own_name(),
                role: row.role(),
                standing: row.friendship.standing(),
                id: row.id,
                name: row.name,
            }
        };
        Ok(rows.into_iter().zip(sums).map(view).collect())
    }

    /// The peer with this name, id, or beginning of an id (4 letters at least).
    pub fn find_peer(&self, text: &str) -> Result<CellId, VaultError> {
        let peers = self.gate.peers();
        let lower = text.to_ascii_lowercase();
        // Names are what each side likes: only a whole id cannot be somebody else's.
        let is_meant = |peer: &&PeerRow| {
            peer.name == text || (text.len() >= ID_LETTERS_MIN && hex(&peer.id.0).starts_with(&lower))
        };
        let meant: Vec<&PeerRow> = peers.iter().filter(is_meant).collect();
        match meant.as_slice() {
            [one] => Ok(one.id),
            [] => Err(VaultError::Refused(format!("there is no peer {text}; see `grove peers`"))),
            several => {
                if let Some(one) = several.iter().find(|peer| hex(&peer.id.0) == lower) {
                    return Ok(one.id);
                }
                let told: Vec<String> = several
                    .iter()
                    .take(5)
                    .map(|peer| format!("{} ({})", peer.name, peer.id.short()))
                    .collect();
                let told = told.join(", ");
                Err(VaultError::Refused(format!(
                    "{text} means several peers: {told}; give the beginning of the id"
                )))
            }
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
        unblock(move || books.add_invite(&row)).await?;
        self.gate.refresh().await?;
        let invite = Invite {
            inviter: self.vault.id(),
            x25519: *self.vault.identity.x_public(),
            invite_id: id,
            secret,
            role,
            expires,
            addresses: self.own_addresses(),
            relay: self.own_relays().into_iter().next(),
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
        let was_open = unblock(move || books.revoke_invite(&bytes)).await?;
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
        let addresses: Vec<String> = invite.addresses.iter().chain(&invite.relay).cloned().collect();
        let newcomer = match self.dial_stranger(&addresses, &Approach::from(&invite)).await {
            Ok(newcomer) => newcomer,
            Err(why) => {
                let is_refused =
                    matches!(why.best(), Some((_, HandshakeError::Silent(_) | HandshakeError::NotLetIn(_))));
                return Err(if is_refused { JoinError::Refused(why) } else { JoinError::Unreachable(why) });
            }
        };
        let nobody = || JoinError::Failed(VaultError::Refused("the inviter sent no card".into()));
        let card = newcomer.card().ok_or_else(nobody)?;
        let wall = self.vault.clock.wall();
        let mut peer = PeerRow::new(card, wall);
        if let Some(known) = self.gate.rows().iter().find(|known| known.id == card.id) {
            peer = peer.again(known);
        }
        peer.address = newcomer.address().to_owned();
        if invite.role == Role::Friend {
            peer.friendship.agree(wall);
        }
        let joined = Introduction { name: peer.name.clone(), id: peer.id };
        self.name_routes(&peer);
        self.gate.save(peer).await.map_err(JoinError::Failed)?;
        let link = self.take_in(newcomer).await;
        self.dial_from_now_on(joined.id);
        if let Some(link) = link {
            // Before anything else can go wrong: the peer must be able to give everything back.
            if let Err(why) = round::introduce(self, &link).await {
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
            within(FAREWELL_TIME_MAX, link.ask(&goodbye)).await;
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
        let (now, wall) = (self.vault.now(), self.vault.clock.wall());
        let gone = self.gate.change(&id, |peer| {
            peer.removed_at = Some(now);
            peer.friendship.decide(false, wall);
        });
        gone.await?;
        self.end_sharing(&id).await?;
        self.show_friend_requests();
        self.dialers.borrow_mut().remove(&id);
        let link = self.links.borrow_mut().remove(&id);
        if let Some(link) = link {
            link.part();
        }
        self.near.borrow_mut().remove(&id);
        self.routes.borrow_mut().forget(&id);
        self.forget_health(&id);
        self.strangers.borrow_mut().forget(&id);
        self.errors.borrow_mut().remove(&id);
        self.tell_lan();
        let vault = Arc::clone(&self.vault);
        unblock(move || {
            let cell = vault.db.change(|t| -> Result<_, DbError> {
                t.set_meta(&format!("inventory:{id}"), &[])?;
                t.set_meta(&super::heal::away_key(&id), &[])?;
                t.cell(&id)
            })?;
            round::drop_copies(&vault, cell)
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

    /// Calls a peer so from now on, here and nowhere else; an empty label is what it calls itself.
    pub async fn set_label(&self, id: &CellId, label: &str) -> Result<(), VaultError> {
        if !label.is_empty() && !is_label(label) {
            let why = "a name has 1 to 64 bytes and no control characters";
            return Err(VaultError::Refused(why.into()));
        }
        if self.gate.peers().iter().any(|peer| peer.name == label && peer.id != *id) {
            return Err(VaultError::Refused(format!("another peer is called {label} already")));
        }
        let set = |peer: &mut PeerRow| {
            peer.name = if label.is_empty() { peer.own_name() } else { label.to_owned() };
        };
        self.change_peer(id, set).await?;
        if let Some(peer) = self.gate.peer(id) {
            self.name_routes(&peer);
        }
        self.show_friend_requests();
        Ok(())
    }

    async fn change_peer(&self, id: &CellId, change: impl FnOnce(&mut PeerRow)) -> Result<(), VaultError> {
        if self.gate.change(id, change).await?.is_none() {
            return Err(VaultError::Refused("there is no such peer; see `grove peers`".into()));
        }
        let vault = Arc::clone(&self.vault);
        unblock(move || publish::publish(&vault)).await?;
        self.poke();
        Ok(())
    }

    /// Peers have changed: the catalog should say so, everywhere.
    pub(super) fn publish_soon(self: &Rc<Self>) {
        let sync = Rc::clone(self);
        let work = async move {
            let vault = Arc::clone(&sync.vault);
            match unblock(move || publish::publish(&vault)).await {
                Ok(_) => sync.poke(),
                Err(why) => log::warn!("the catalog cannot be published: {why}"),
            }
        };
        self.spawn(work).detach();
    }

    /// Bytes in and out of the session with a peer, for tests and the dashboard.
    pub fn traffic(&self, id: &CellId) -> Option<(u64, u64)> {
        let sum = |(came, went): (u64, u64), line: Rc<Line>| {
            (came + line.session.bytes_in(), went + line.session.bytes_out())
        };
        self.link(id).map(|link| link.lines().into_iter().fold((0, 0), sum))
    }

    /// Breaks the session with a peer off, for tests.
    pub fn cut(&self, id: &CellId) {
        if let Some(link) = self.link(id) {
            link.close();
        }
    }
}

//! A peer as it is reached: all connections with it, and which one carries the next request.
//!
//! Promise: a request goes over the best connection that answers; one that breaks under a request is replaced by another
//! without the asker noticing, where there is another.

use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::net::IpAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use smol::channel::{self, Sender};
use smol::net::TcpStream;

use super::places::Pass;
use super::round::Moved;
use crate::chat::Allowance;
use crate::friendship::Wish;
use crate::id::{BodyHash, CellId, ChunkName};
use crate::placement::CellNumber;
use crate::placement::planner::Pace;
use crate::pool::Turns;
use crate::routes::{Kind, LineFacts, Signs, Speed, Way, pick, pick_quick};
use crate::wire::message::{self, AskError, BatchHead, Reply, Request, Usage};
use crate::wire::session::{Session, SessionError};
use crate::wire::tcp::unanswered;
use crate::wire::within;
use crate::world::{self, instant};

/// Connections with one peer at once: two in use, one being measured, and the dying.
pub(super) const LINES_MAX: usize = 6;
/// A request waits this long for a new connection after the last one broke.
const LINE_WAIT: Duration = Duration::from_secs(4);
/// A request is tried over so many connections.
const TRIES_MAX: usize = 3;
/// So many bytes in one stretch of work tell how fast a line is.
const TALLY_BYTES: u64 = 8 << 20;

/// Bytes without meaning that a peer may move in `MEASURED_EVERY`.
const MEASURED_BYTES_MAX: u64 = 1 << 30;
const MEASURED_EVERY: Duration = Duration::from_secs(3600);
/// Parts of 256 of what is held for a peer, that it may have summed up in `MEASURED_EVERY`.
const SUMMED_MAX: u64 = 16 * 256;
/// Changes of its wish that are taken of a peer in `MEASURED_EVERY`.
const WISHES_MAX: u64 = 60;
/// Exchanges of figures that are answered to a peer in `MEASURED_EVERY`.
const SETTLED_MAX: u64 = 60;
/// Lists of its revocations that are taken of a peer in `MEASURED_EVERY`.
const LISTS_MAX: u64 = 600;
/// New cards that are taken of a peer in `MEASURED_EVERY`: each is a write here and in the catalog, and friends hear of it. Its
/// addresses are looked at every 15 s there, and when its network changes.
const CARDS_MAX: u64 = 600;
/// Requests of one peer whose bodies are in memory at once, beside chunks and what has a bound of its own.
const BODIES_MAX: u32 = 16;
/// Bytes of grants that are taken of a friend in `MEASURED_EVERY`: each is a write here and in the catalog.
const OFFERED_BYTES_MAX: u64 = 256 << 20;

/// A connection that is to become a line.
pub(super) struct NewLine {
    pub(super) session: Session,
    /// As it was dialled; where the peer dialled, its IP address.
    pub(super) address: String,
    pub(super) kind: Kind,
    /// The other end, unless it is a circuit.
    pub(super) ip: Option<IpAddr>,
    pub(super) socket: Option<TcpStream>,
    pub(super) is_ours: bool,
    pub(super) is_trial: bool,
    pub(super) speed: Speed,
    pub(super) is_measured: bool,
}

/// One connection with a peer.
pub(super) struct Line {
    pub(super) session: Session,
    pub(super) address: String,
    pub(super) kind: Kind,
    pub(super) ip: Option<IpAddr>,
    pub(super) is_ours: bool,
    pub(super) at: Instant,
    pub(super) speed: Cell<Speed>,
    /// The speed is more than what is usual for its kind.
    pub(super) is_measured: Cell<bool>,
    /// Made to be measured.
    pub(super) is_trial: Cell<bool>,
    /// Since when it does not answer, or is suspected not to.
    pub(super) stalled_at: Cell<Option<Instant>>,
    /// Since when a ping is out.
    pub(super) pinged: Cell<Option<Instant>>,
    /// For what the kernel knows of it.
    socket: Option<TcpStream>,
    unacknowledged: Cell<Option<Instant>>,
    number: u64,
    tally: Cell<Option<Tally>>,
}

/// Bytes and time since work began.
#[derive(Debug, Clone, Copy)]
struct Tally {
    since: Instant,
    bytes_in: u64,
    bytes_out: u64,
}

impl Line {
    /// It does not answer, as far as is known.
    pub(super) fn is_stalled(&self) -> bool {
        self.stalled_at.get().is_some()
    }

    /// What can be seen of it now.
    pub(super) fn signs(&self, now: Instant) -> Signs {
        let heard = self.socket.as_ref().and_then(unanswered);
        let since = heard.map(|_| self.unacknowledged.get().unwrap_or(now));
        self.unacknowledged.set(since);
        let waited = since.map(|since| now.saturating_duration_since(since));
        Signs {
            silent: now.saturating_duration_since(self.session.active_at()),
            unacknowledged: waited.zip(heard).map(|(waited, heard)| waited.min(heard)),
            pinged: self.pinged.get().map(|at| now.saturating_duration_since(at)),
            is_relay: self.kind == Kind::Relay,
        }
    }

    /// Counts while requests are under way; gives what is worth telling: which way, bytes, microseconds.
    pub(super) fn tally(&self, now: Instant) -> Option<(Way, u64, u64)> {
        let (bytes_in, bytes_out) = (self.session.bytes_in(), self.session.bytes_out());
        let fresh = Tally { since: now, bytes_in, bytes_out };
        let is_busy = self.session.streams_live() > 0;
        let Some(tally) = self.tally.get() else {
            self.tally.set(is_busy.then_some(fresh));
            return None;
        };
        let (came, went) = (bytes_in - tally.bytes_in, bytes_out - tally.bytes_out);
        if is_busy && came.max(went) < TALLY_BYTES {
            return None;
        }
        self.tally.set(is_busy.then_some(fresh));
        let us = now.saturating_duration_since(tally.since).as_micros() as u64;
        let (way, bytes) = if came > went { (Way::Down, came) } else { (Way::Up, went) };
        (is_busy && us > 0).then_some((way, bytes, us))
    }
}

/// Which request a line is wanted for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum For {
    Chunks,
    Small,
}

/// What a peer has had of something since when; after `MEASURED_EVERY` it begins anew. Steady time.
#[derive(Default)]
struct Hourly(Cell<(Duration, u64)>);

impl Hourly {
    /// Whether it may have so much more, of `most` in all; what it may have is noted.
    fn take(&self, more: u64, most: u64, now: Duration) -> bool {
        let (since, had) = match self.0.get() {
            (since, _) if now.saturating_sub(since) > MEASURED_EVERY => (now, 0),
            still => still,
        };
        let may = had + more <= most;
        self.0.set((since, if may { had + more } else { had }));
        may
    }
}

/// A body of a peer's that is in memory.
pub(super) struct BodyPlace(Rc<Link>);

impl Drop for BodyPlace {
    fn drop(&mut self) {
        self.0.bodies.set(self.0.bodies.get() - 1);
    }
}

/// A peer with whom there was a connection since the start.
pub(super) struct Link {
    pub(super) peer: CellId,
    pub(super) cell: CellNumber,
    is_smaller: bool,
    lines: RefCell<Vec<Rc<Line>>>,
    numbers: Cell<u64>,
    /// Lines that ended.
    losses: Cell<u64>,
    waiters: RefCell<Vec<Sender<()>>>,
    is_over: Cell<bool>,
    wake: Sender<()>,
    pub(super) rounding: Turns,
    /// One offers grants, and one tells what was taken back, at a time.
    pub(super) offering: Turns,
    pub(super) telling: Turns,
    /// Somebody waits for the turn to offer, and will offer what has come meanwhile, too.
    pub(super) has_offerer: Cell<bool>,
    /// It has told which list of our revocations it holds since it was connected, and the number of the list it was given.
    pub(super) has_heard_list: Cell<bool>,
    pub(super) told_list: Cell<u64>,
    /// Looking for other holders of what it was granted than it was told of.
    pub(super) short_pass: Cell<Pass>,
    /// The same for what named enough holders, which is looked at in a while only; and when that was last done.
    pub(super) told_pass: Cell<Pass>,
    pub(super) told_at: Cell<Option<Duration>>,
    /// Since when, and how many bytes of grants it has offered.
    offered: Hourly,
    /// Since when, and how many lists of revocations were taken.
    listed: Hourly,
    /// Since when, and how many new cards of its were taken.
    carded: Hourly,
    /// Bodies of its requests that are in memory.
    bodies: Cell<u32>,
    pub(super) is_introduced: Cell<bool>,
    /// Our wish as it was told since it was connected.
    pub(super) told_wish: Cell<Option<Wish>>,
    /// Since when, and how many changes of its wish were taken.
    wished: Hourly,
    /// It is of a version that knows nothing of figures.
    pub(super) is_deaf_to_figures: Cell<bool>,
    /// Figures were exchanged since it was connected.
    pub(super) has_told_figures: Cell<bool>,
    /// Since when there was a connection all the time. Observed seconds.
    pub(super) connected_at: Cell<u64>,
    /// Since when, and how often it has told figures.
    settled: Hourly,
    /// Wakes whoever brings it what is said.
    talk: Sender<()>,
    /// The start of its with which we are level since it was connected.
    pub(super) level_with: Cell<Option<[u8; 16]>>,
    /// It has heard how far we are with its messages.
    pub(super) told_receipts: Cell<bool>,
    /// What it has said, and how often it has gone back.
    pub(super) said: Cell<Allowance>,
    pub(super) gone_back: Cell<Allowance>,
    /// Batches of its that are being taken in.
    pub(super) hearing: Cell<u32>,
    pub(super) usage: Cell<Option<Usage>>,
    pub(super) is_full: Cell<bool>,
    /// Chunks wait that would fit neither here nor with anybody else.
    pub(super) lacks_room: Cell<bool>,
    /// Heads of ours of which it lacks a part that nobody else gives, and when that was found. Observed seconds.
    pub(super) broken_heads: RefCell<Vec<(BodyHash, u64)>>,
    /// Segments of ours that it holds, as far as is known since it was connected.
    pub(super) segments: RefCell<HashSet<ChunkName>>,
    /// The newest head of ours that it says it holds.
    pub(super) head_there: Cell<Option<BodyHash>>,
    /// Segments of which it was found that it lacks them, whatever it says.
    pub(super) lost_segments: RefCell<HashSet<ChunkName>>,
    /// Since when, and how many bytes it has measured with.
    measured: Cell<(Instant, u64)>,
    /// Since when, and how many parts of what is held for it were summed up.
    summed: Hourly,
    /// How it sees our address.
    pub(super) observed: RefCell<String>,
    /// What rounds with it have moved since the start.
    pub(super) moved: Cell<Moved>,
    pace: Cell<Option<Pace>>,
    /// For which state of things it was found that nothing is to be pushed.
    pub(super) planned_for: Cell<Option<u64>>,
}

impl Link {
    pub(super) fn new(
        own: &CellId,
        peer: CellId,
        cell: CellNumber,
        wake: Sender<()>,
        talk: Sender<()>,
    ) -> Self {
        Self {
            peer,
            cell,
            is_smaller: own.0 < peer.0,
            lines: RefCell::default(),
            numbers: Cell::new(0),
            losses: Cell::new(0),
            waiters: RefCell::default(),
            is_over: Cell::new(false),
            wake,
            rounding: Turns::default(),
            offering: Turns::default(),
            has_offerer: Cell::new(false),
            telling: Turns::default(),
            has_heard_list: Cell::new(false),
            told_list: Cell::new(0),
            short_pass: Cell::default(),
            told_pass: Cell::default(),
            told_at: Cell::new(None),
            offered: Hourly::default(),
            listed: Hourly::default(),
            carded: Hourly::default(),
            bodies: Cell::new(0),
            is_introduced: Cell::new(false),
            told_wish: Cell::new(None),
            wished: Hourly::default(),
            is_deaf_to_figures: Cell::new(false),
            has_told_figures: Cell::new(false),
            connected_at: Cell::new(0),
            settled: Hourly::default(),
            talk,
            level_with: Cell::new(None),
            told_receipts: Cell::new(false),
            said: Cell::default(),
            gone_back: Cell::default(),
            hearing: Cell::new(0),
            usage: Cell::new(None),
            is_full: Cell::new(false),
            lacks_room: Cell::new(false),
            broken_heads: RefCell::default(),
            segments: RefCell::default(),
            head_there: Cell::new(None),
            lost_segments: RefCell::default(),
            measured: Cell::new((instant(), 0)),
            summed: Hourly::default(),
            observed: RefCell::default(),
            moved: Cell::default(),
            pace: Cell::new(None),
            planned_for: Cell::new(None),
        }
    }

    /// How fast it is given a chunk, by the best connection now or the last that was.
    pub(super) fn pace(&self) -> Pace {
        let pace = match self.best(For::Chunks) {
            Some(line) => Pace::of(line.speed.get().chunk_us(), self.pace.get()),
            None => self.pace.get().unwrap_or(Pace(u8::MAX)),
        };
        self.pace.set(Some(pace));
        pace
    }

    /// The peer takes no more of what it should have.
    pub(super) fn has_no_room(&self) -> bool {
        self.is_full.get() || self.lacks_room.get()
    }

    /// A round is wanted; one that is wanted already serves.
    pub(super) fn nudge(&self) {
        let _ = self.wake.try_send(());
    }

    /// Something is to be said, or to be told of what was heard.
    pub(super) fn talk(&self) {
        let _ = self.talk.try_send(());
    }

    /// Takes a connection in at observed second `now`. Where there are too many, the oldest that is not in use is closed.
    pub(super) fn add(&self, new: NewLine, now: u64) -> Rc<Line> {
        if !self.is_alive() {
            self.connected_at.set(now);
            // What the peer was told and what it said may be forgotten there.
            self.is_introduced.set(false);
            self.told_wish.set(None);
            self.is_deaf_to_figures.set(false);
            self.has_told_figures.set(false);
            self.has_heard_list.set(false);
            self.told_list.set(0);
            self.level_with.set(None);
            self.told_receipts.set(false);
            self.segments.borrow_mut().clear();
            self.is_full.set(false);
            self.lacks_room.set(false);
        }
        self.numbers.set(self.numbers.get() + 1);
        let line = Rc::new(Line {
            session: new.session,
            address: new.address,
            kind: new.kind,
            ip: new.ip,
            is_ours: new.is_ours,
            at: instant(),
            speed: Cell::new(new.speed),
            is_measured: Cell::new(new.is_measured),
            is_trial: Cell::new(new.is_trial),
            stalled_at: Cell::new(None),
            pinged: Cell::new(None),
            socket: new.socket,
            unacknowledged: Cell::new(None),
            number: self.numbers.get(),
            tally: Cell::new(None),
        });
        let live = self.live();
        if live.len() >= LINES_MAX {
            let spare = live.iter().find(|line| !self.is_wanted(line)).or(live.first());
            spare.expect("there are six").session.close();
        }
        self.lines.borrow_mut().push(Rc::clone(&line));
        self.ring();
        line
    }

    /// A connection has ended.
    pub(super) fn remove(&self, line: &Rc<Line>) {
        self.lines.borrow_mut().retain(|other| !Rc::ptr_eq(other, line));
        self.losses.set(self.losses.get() + 1);
        self.ring();
    }

    pub(super) fn losses(&self) -> u64 {
        self.losses.get()
    }

    /// Something about the lines has changed.
    pub(super) fn ring(&self) {
        for waiter in self.waiters.borrow_mut().drain(..) {
            let _ = waiter.try_send(());
        }
    }

    /// Waits for the next change of the lines.
    pub(super) async fn changed(&self) {
        let (ring, rung) = channel::bounded(1);
        {
            let mut waiters = self.waiters.borrow_mut();
            // Whoever waited for something else as well is gone.
            waiters.retain(|waiter| !waiter.is_closed());
            waiters.push(ring);
        }
        let _ = rung.recv().await;
    }

    /// All connections, the closing ones too.
    pub(super) fn lines(&self) -> Vec<Rc<Line>> {
        self.lines.borrow().clone()
    }

    fn live(&self) -> Vec<Rc<Line>> {
        self.lines.borrow().iter().filter(|line| line.session.is_alive()).cloned().collect()
    }

    fn facts(&self, line: &Line) -> LineFacts {
        LineFacts {
            speed: line.speed.get(),
            is_from_smaller: line.is_ours == self.is_smaller,
            is_stalled: line.is_stalled(),
            is_trial: line.is_trial.get(),
            is_relay: line.kind == Kind::Relay,
            number: line.number,
        }
    }

    /// The line for a request, if there is any.
    pub(super) fn best(&self, purpose: For) -> Option<Rc<Line>> {
        let lines = self.live();
        let facts: Vec<LineFacts> = lines.iter().map(|line| self.facts(line)).collect();
        let best = match purpose {
            For::Chunks => pick(&facts),
            For::Small => pick_quick(&facts),
        };
        best.map(|at| Rc::clone(&lines[at]))
    }

    pub(super) fn is_alive(&self) -> bool {
        self.lines.borrow().iter().any(|line| line.session.is_alive())
    }

    /// There are connections, and none of them answers.
    pub(super) fn is_stalled(&self) -> bool {
        self.best(For::Chunks).is_some_and(|line| line.is_stalled())
    }

    /// The line for a request; waits a little for a new one where the last has broken.
    pub(super) async fn line(&self, purpose: For) -> Result<Rc<Line>, AskError> {
        let found = within(LINE_WAIT, async {
            loop {
                match self.best(purpose) {
                    Some(line) => return line,
                    None => self.changed().await,
                }
            }
        });
        found.await.ok_or(AskError::Session(SessionError::Closed))
    }

    /// Asks what has no body either way. All such requests may be asked twice.
    pub(super) async fn ask(&self, request: &Request) -> Result<Reply, AskError> {
        let mut tries = 1;
        loop {
            let line = self.line(For::Small).await?;
            match message::ask(&line.session, request).await {
                Err(_) if !line.session.is_alive() && tries < TRIES_MAX => tries += 1,
                outcome => return outcome,
            }
        }
    }

    /// Brings a batch of messages over; it may come twice, and is told apart there.
    pub(super) async fn say(&self, head: BatchHead, body: &[u8]) -> Result<Option<u64>, AskError> {
        let line = self.line(For::Small).await?;
        message::say(&line.session, head, body).await
    }

    /// Breaks off lines that stand still where another one answers: what is under way there goes on over that one.
    pub(super) fn give_up_stalled(&self) {
        if self.is_stalled() {
            return;
        }
        for line in self.live().into_iter().filter(|line| line.is_stalled()) {
            log::info!("the connection over {} is given up: another one answers", line.address);
            line.session.abort();
        }
    }

    /// Whether requests go over it.
    pub(super) fn is_wanted(&self, line: &Rc<Line>) -> bool {
        let wanted = [self.best(For::Chunks), self.best(For::Small)];
        wanted.iter().flatten().any(|wanted| Rc::ptr_eq(wanted, line))
    }

    /// Closes lines that we dialled and that carry nothing, where better ones are there.
    pub(super) fn retire_lines(&self, young: Duration) {
        for line in self.live() {
            let is_idle = line.session.streams_live() == 0 && world::since(line.at) > young;
            if line.is_ours && is_idle && !line.is_trial.get() && !self.is_wanted(&line) {
                log::debug!("the connection over {} is no longer used", line.address);
                line.session.close();
            }
        }
    }

    /// Whether the peer may measure with so many bytes: a GiB an hour is far beyond what is needed.
    pub(super) fn may_measure(&self, bytes: u64) -> bool {
        let (since, spent) = self.measured.get();
        let (since, spent) =
            if world::since(since) > MEASURED_EVERY { (instant(), 0) } else { (since, spent) };
        let may = spent + bytes <= MEASURED_BYTES_MAX;
        self.measured.set((since, if may { spent + bytes } else { spent }));
        may
    }

    /// Whether the peer may have so many parts of 256 of its chunks summed up, at steady time `now`: an hour allows what half a
    /// month needs.
    pub(super) fn may_sum(&self, parts: u32, now: Duration) -> bool {
        self.summed.take(u64::from(parts), SUMMED_MAX, now)
    }

    /// Whether the peer may change its wish once more, at steady time `now`: each change is a write here and in the catalog.
    pub(super) fn may_wish(&self, now: Duration) -> bool {
        self.wished.take(1, WISHES_MAX, now)
    }

    /// Whether the peer may tell its figures once more, at steady time `now`: each time is a write here.
    pub(super) fn may_settle(&self, now: Duration) -> bool {
        self.settled.take(1, SETTLED_MAX, now)
    }

    /// Whether the peer may offer grants of so many bytes more, at steady time `now`.
    pub(super) fn may_offer(&self, bytes: u64, now: Duration) -> bool {
        self.offered.take(bytes, OFFERED_BYTES_MAX, now)
    }

    /// Whether the peer may give one more list of revocations, at steady time `now`: each new one is a write.
    pub(super) fn may_list(&self, now: Duration) -> bool {
        self.listed.take(1, LISTS_MAX, now)
    }

    /// Whether one more card of the peer is looked at, at steady time `now`.
    pub(super) fn may_card(&self, now: Duration) -> bool {
        self.carded.take(1, CARDS_MAX, now)
    }

    /// A place for a body that is held whole, until it is dropped; `None`: there are too many.
    pub(super) fn body(self: &Rc<Self>) -> Option<BodyPlace> {
        let may = self.bodies.get() < BODIES_MAX;
        may.then(|| {
            self.bodies.set(self.bodies.get() + 1);
            BodyPlace(Rc::clone(self))
        })
    }

    /// The peer is none any more: all connections end, and no round begins.
    pub(super) fn part(&self) {
        self.is_over.set(true);
        self.close();
        self.nudge();
        self.talk();
    }

    pub(super) fn is_over(&self) -> bool {
        self.is_over.get()
    }

    pub(super) fn close(&self) {
        self.lines.borrow().iter().for_each(|line| line.session.close());
    }

    /// Waits until all connections have ended.
    pub(super) async fn ended(&self) {
        for line in self.lines() {
            line.session.ended().await;
        }
    }
}

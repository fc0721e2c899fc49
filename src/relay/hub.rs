//! The sockets of a relay's clients: login, frames in, frames out, pings, and the end.
//!
//! One task per client, and nothing of its own per idle client but what the task holds: bytes pass through two
//! buffers that all clients share.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use smol::channel::{self, Receiver, Sender};
use smol::io::{AsyncRead, AsyncWrite};
use smol::{LocalExecutor, Timer};

use super::frame::{Control, Decoder, Event, From, Head, Kind, Violation, code, put_control};
use super::login::{Hello, LOGIN_BYTES_MAX, Login, Welcome};
use super::pace::ByteRate;
use super::switch::{self, Port, Switch, Totals, Went};
use super::websocket::switching;
use super::{DEAD_AFTER, LOGIN_TIME_MAX, MESSAGE_BYTES_MAX, PING_AFTER};
use crate::id::CellId;
use crate::keys::{Identity, random};
use crate::pool;
use crate::wire::handshake::{HandshakeLimiter, Rate};
use crate::wire::{Accepted, flush, read_some, within, write_full};

/// Read from a client at once.
const READ_BYTES: usize = 64 * 1024;
/// Sent to a client before others have their turn.
const SEND_TURN_BYTES: usize = 128 * 1024;
/// Room for the head of a message in front of it.
const HEAD_ROOM: usize = 4;
/// Clients that are still logging in; one more pushes out the one that has taken longest.
const LOGINS_MAX: usize = 512;
/// Logins of all addresses together, a second.
const LOGINS_PER_S: f64 = 1000.0;
/// Silent clients and standing circuits are looked for this often.
const TICK: Duration = Duration::from_secs(1);
/// How long a last word may take to leave.
const FAREWELL_TIME_MAX: Duration = Duration::from_secs(1);
/// How long a stop may take.
const STOP_TIME_MAX: Duration = Duration::from_millis(1200);
/// A descriptor that a client takes; so many are left for everything else.
const SPARE_DESCRIPTORS: u64 = 64;

/// What an operator sets.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Clients at once.
    pub clients: usize,
    /// Circuits of one client at once, opened by it or to it. At most 64.
    pub circuits: usize,
    /// Bytes a second that are read from one client; 0: as fast as they come.
    pub bytes_per_s: u64,
    /// Connects of one address (of IPv6: one network of 64 bits) in a minute. From this machine as many as come.
    pub connects_per_minute: u64,
    /// Bytes held for all receivers together, see `switch::Limits`.
    pub held_bytes: usize,
}

/// Circuits that a client may have at most, whatever is set: clients make room for so many.
pub const CIRCUITS_MAX: usize = 64;

impl Default for Limits {
    fn default() -> Self {
        Self { clients: 4096, circuits: 32, bytes_per_s: 0, connects_per_minute: 60, held_bytes: 128 << 20 }
    }
}

/// Whether a cell may use this relay.
pub type Admission = Rc<dyn Fn(&CellId) -> bool>;

/// Why a client has to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    /// The same cell has logged in again.
    Replaced,
    /// The relay stops; its clients should come back within so many ms.
    Restart(u64),
    /// Nothing was heard for a minute.
    Silent,
}

/// What others may want of a client's task.
struct Mailbox {
    waker: RefCell<Option<Waker>>,
    ending: Cell<Option<Ending>>,
    wants_ping: Cell<bool>,
    /// Since it was heard last.
    is_pinged: Cell<bool>,
    heard_at: Cell<Instant>,
}

impl Mailbox {
    fn wake(&self) {
        if let Some(waker) = &*self.waker.borrow() {
            waker.wake_by_ref();
        }
    }

    fn end(&self, ending: Ending) {
        self.ending.set(Some(ending));
        self.wake();
    }
}

/// Sums since the start, beside those of the switch.
#[derive(Debug, Default)]
struct Counts {
    logins: Cell<u64>,
    replaced: Cell<u64>,
    refused: Cell<u64>,
    failed: Cell<u64>,
    limited: Cell<u64>,
    broken: Cell<u64>,
    silent: Cell<u64>,
}

fn count(cell: &Cell<u64>) {
    cell.set(cell.get() + 1);
}

/// A relay without a port: connections are handed to it.
pub struct Hub {
    executor: Rc<LocalExecutor<'static>>,
    identity: Identity,
    admits: Admission,
    limits: Limits,
    switch: RefCell<Switch>,
    clients: RefCell<HashMap<Port, Rc<Mailbox>>>,
    logins: Rc<WaitingRoom>,
    limiter: RefCell<HandshakeLimiter>,
    read_buffer: RefCell<Vec<u8>>,
    send_buffer: RefCell<Vec<u8>>,
    woken: RefCell<Vec<Port>>,
    counts: Counts,
    is_stopping: Cell<bool>,
    is_ticking: Cell<bool>,
}

impl fmt::Debug for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Hub({}, {} clients)", self.identity.id().short(), self.clients.borrow().len())
    }
}

impl Hub {
    /// A hub whose tasks run on `executor`.
    pub fn new(
        executor: Rc<LocalExecutor<'static>>,
        identity: Identity,
        admits: Admission,
        mut limits: Limits,
    ) -> Rc<Self> {
        limits.circuits = limits.circuits.clamp(1, CIRCUITS_MAX);
        limits.clients = limits.clients.min(descriptors().saturating_sub(SPARE_DESCRIPTORS) as usize);
        let per_second = limits.connects_per_minute as f64 / 60.0;
        // A minute's worth at once: a household restarts together.
        let per_ip = Rate { burst: (limits.connects_per_minute as f64).max(1.0), per_second };
        let overall = Rate { burst: LOGINS_PER_S, per_second: LOGINS_PER_S };
        let switch_limits = switch::Limits { circuits: limits.circuits, held_bytes: limits.held_bytes };
        Rc::new(Self {
            executor,
            identity,
            admits,
            limits,
            switch: RefCell::new(Switch::new(switch_limits)),
            clients: RefCell::default(),
            logins: WaitingRoom::new(LOGINS_MAX),
            limiter: RefCell::new(HandshakeLimiter::with_rates(per_ip, overall, Instant::now())),
            read_buffer: RefCell::new(vec![0; READ_BYTES]),
            send_buffer: RefCell::new(Vec::with_capacity(HEAD_ROOM + MESSAGE_BYTES_MAX)),
            woken: RefCell::default(),
            counts: Counts::default(),
            is_stopping: Cell::new(false),
            is_ticking: Cell::new(false),
        })
    }

    /// Its id, which clients may pin.
    pub fn id(&self) -> CellId {
        self.identity.id()
    }

    /// Clients that are logged in.
    pub fn clients(&self) -> usize {
        self.clients.borrow().len()
    }

    /// Whether a connection from this address may begin; it counts if so.
    pub fn allows(&self, from: IpAddr) -> bool {
        let allowed = !self.is_stopping.get()
            && (from.to_canonical().is_loopback() || self.limiter.borrow_mut().allow(from, Instant::now()));
        if !allowed {
            count(&self.counts.limited);
        }
        allowed
    }

    /// Takes a connection whose request for a WebSocket, with this key, has been read and not answered; `ahead` came
    /// after it.
    pub fn take(self: &Rc<Self>, stream: Accepted, key: &str, ahead: Vec<u8>, from: IpAddr) {
        if !self.allows(from) {
            return;
        }
        let guest = self.logins.enter();
        let answer = switching(key).into_bytes();
        let hub = Rc::clone(self);
        pool::spawn(&self.executor, async move {
            let login = hub.login(stream, answer, ahead, &guest).await;
            drop(guest);
            match login {
                Ok(client) => client.await,
                Err(error) => {
                    count(&hub.counts.failed);
                    log::debug!("a login from {from} came to nothing: {error}");
                }
            }
        })
        .detach();
    }

    async fn login(
        self: &Rc<Self>,
        mut stream: Accepted,
        answer: Vec<u8>,
        ahead: Vec<u8>,
        guest: &Guest,
    ) -> io::Result<ClientTask> {
        let work = async {
            within(LOGIN_TIME_MAX, self.shake_hands(&mut stream, answer, ahead))
                .await
                .unwrap_or_else(|| Err(io::ErrorKind::TimedOut.into()))
        };
        let pushed_out = async {
            guest.pushed_out().await;
            Err(io::Error::new(io::ErrorKind::TimedOut, "others wait to log in"))
        };
        let Some(incoming) = smol::future::or(work, pushed_out).await? else {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, "refused"));
        };
        let Incoming { login, decoder, rest } = incoming;
        Ok(self.welcome(stream, &login, decoder, rest))
    }

    /// What a client proves; `None` if it was told that it is not wanted.
    async fn shake_hands(
        &self,
        stream: &mut Accepted,
        mut answer: Vec<u8>,
        ahead: Vec<u8>,
    ) -> io::Result<Option<Incoming>> {
        let hello = Hello { hub: self.identity.id(), challenge: random() };
        let said = hello.to_bytes();
        answer.extend_from_slice(Head::binary(said.len(), None).as_slice());
        answer.extend_from_slice(&said);
        write_full(stream, &answer, LOGIN_TIME_MAX).await?;
        flush(stream, LOGIN_TIME_MAX).await?;
        let mut decoder = Decoder::new(From::Client, MESSAGE_BYTES_MAX as u64);
        let (message, rest) = match read_message(stream, &mut decoder, ahead).await {
            Ok(read) => read,
            Err(ReadError::Io(error)) => return Err(error),
            Err(ReadError::Violation(Violation { code, what })) => {
                return self.refuse(stream, code, what).await;
            }
        };
        let Ok(login) = Login::parse(&message) else {
            return self.refuse(stream, code::PROTOCOL, "no login").await;
        };
        if !login.is_proof(&hello) {
            return self.refuse(stream, code::POLICY, "wrong signature").await;
        }
        if !(self.admits)(&login.client) {
            return self.refuse(stream, code::POLICY, "this relay does not serve this cell").await;
        }
        let is_here = self.switch.borrow().has(&login.client);
        if !is_here && self.clients() >= self.limits.clients {
            return self.refuse(stream, code::TRY_LATER, "this relay is full").await;
        }
        Ok(Some(Incoming { login, decoder, rest }))
    }

    async fn refuse(&self, stream: &mut Accepted, code: u16, reason: &str) -> io::Result<Option<Incoming>> {
        count(&self.counts.refused);
        let mut word = Vec::new();
        put_control(&mut word, Control::Close { code: Some(code), reason }, None);
        write_full(stream, &word, FAREWELL_TIME_MAX).await?;
        flush(stream, FAREWELL_TIME_MAX).await?;
        // What the client still sends would turn the close into a reset, and the reason would be lost.
        let mut last = [0; LOGIN_BYTES_MAX];
        let _ = read_some(stream, &mut last, FAREWELL_TIME_MAX).await;
        Ok(None)
    }

    /// The client is in: what it has sent already is its first bytes.
    fn welcome(
        self: &Rc<Self>,
        stream: Accepted,
        login: &Login,
        decoder: Decoder,
        ahead: Vec<u8>,
    ) -> ClientTask {
        let now = Instant::now();
        let (port, replaced) = self.switch.borrow_mut().enter(login.client);
        if let Some(old) = replaced.and_then(|old| self.clients.borrow().get(&old).cloned()) {
            count(&self.counts.replaced);
            old.end(Ending::Replaced);
        }
        count(&self.counts.logins);
        let mailbox = Rc::new(Mailbox {
            waker: RefCell::new(None),
            ending: Cell::new(self.is_stopping.get().then_some(Ending::Restart(0))),
            wants_ping: Cell::new(false),
            is_pinged: Cell::new(false),
            heard_at: Cell::new(now),
        });
        self.clients.borrow_mut().insert(port, Rc::clone(&mailbox));
        self.start_ticking();
        let said = Welcome::new(&self.identity, login, self.limits.circuits as u16).to_bytes();
        let mut rest = Head::binary(said.len(), None).as_slice().to_vec();
        rest.extend_from_slice(&said);
        let rate = (self.limits.bytes_per_s > 0)
            .then(|| Box::new(ByteRate::new(self.limits.bytes_per_s, READ_BYTES, now)));
        ClientTask {
            hub: Rc::clone(self),
            stream,
            port,
            mailbox,
            decoder,
            ahead,
            rest,
            rest_sent: 0,
            pong: Vec::new(),
            rate,
            delay: None,
            farewell: None,
        }
    }

    /// Ticks for as long as somebody is here.
    fn start_ticking(self: &Rc<Self>) {
        if self.is_ticking.replace(true) {
            return;
        }
        let hub = Rc::clone(self);
        pool::spawn(&self.executor, async move {
            while hub.clients() > 0 {
                Timer::after(TICK).await;
                hub.tick(Instant::now());
            }
            hub.is_ticking.set(false);
        })
        .detach();
    }

    fn tick(&self, now: Instant) {
        for mailbox in self.clients.borrow().values() {
            let silent = now.saturating_duration_since(mailbox.heard_at.get());
            if silent >= DEAD_AFTER {
                mailbox.end(Ending::Silent);
            } else if silent >= PING_AFTER && !mailbox.is_pinged.replace(true) {
                mailbox.wants_ping.set(true);
                mailbox.wake();
            }
        }
        self.switch.borrow_mut().tick(now);
        self.wake();
    }

    /// Wakes the tasks of clients that have something to send.
    fn wake(&self) {
        let mut woken = self.woken.borrow_mut();
        self.switch.borrow_mut().take_woken(&mut woken);
        let clients = self.clients.borrow();
        for port in woken.drain(..) {
            if let Some(mailbox) = clients.get(&port) {
                mailbox.wake();
            }
        }
    }

    /// Tells all clients to come back within `span`, and waits until they have heard it, for a second or so.
    pub async fn stop(&self, span: Duration) {
        self.is_stopping.set(true);
        self.logins.close();
        for mailbox in self.clients.borrow().values() {
            mailbox.end(Ending::Restart(span.as_millis() as u64));
        }
        let told = async {
            while self.clients() > 0 {
                Timer::after(Duration::from_millis(5)).await;
            }
        };
        within(STOP_TIME_MAX, told).await;
    }

    /// Sums of the switch.
    pub fn totals(&self) -> Totals {
        self.switch.borrow().totals()
    }

    /// Prometheus' text form, version 0.0.4.
    pub fn metrics(&self) -> String {
        let switch = self.switch.borrow();
        let totals = switch.totals();
        let counts = &self.counts;
        let gauge = |name: &str, help: &str, value: u64| {
            format!("# HELP {name} {help}\n# TYPE {name} gauge\n{name} {value}\n")
        };
        let mut text = gauge("grove_relay_clients", "Clients connected.", switch.clients() as u64);
        text += &gauge("grove_relay_circuits", "Circuits open.", switch.circuits() as u64);
        text += &gauge("grove_relay_held_bytes", "Bytes waiting for receivers.", switch.held_bytes() as u64);
        text += &gauge("grove_relay_logins_pending", "Logins under way.", self.logins.len() as u64);
        let counter = |name: &str, help: &str, values: &[(&str, u64)]| {
            let mut text = format!("# HELP {name} {help}\n# TYPE {name} counter\n");
            for (labels, value) in values {
                text += &format!("{name}{labels} {value}\n");
            }
            text
        };
        text += &counter("grove_relay_bytes_total", "Bytes carried on circuits.", &[("", totals.bytes)]);
        let circuits = [
            ("{result=\"joined\"}", totals.joined),
            ("{result=\"not_here\"}", totals.not_here),
            ("{result=\"refused\"}", totals.refused),
            ("{result=\"busy\"}", totals.busy),
        ];
        text += &counter("grove_relay_circuits_total", "Circuits asked for.", &circuits);
        let stalled = [("", totals.stalled)];
        text +=
            &counter("grove_relay_stalled_total", "Circuits closed, their receiver took nothing.", &stalled);
        let logins = [
            ("{result=\"welcome\"}", counts.logins.get()),
            ("{result=\"refused\"}", counts.refused.get()),
            ("{result=\"failed\"}", counts.failed.get()),
            ("{result=\"limited\"}", counts.limited.get()),
        ];
        text += &counter("grove_relay_logins_total", "Logins, by how they ended.", &logins);
        let ends = [
            ("{reason=\"replaced\"}", counts.replaced.get()),
            ("{reason=\"silent\"}", counts.silent.get()),
            ("{reason=\"broken\"}", counts.broken.get()),
        ];
        text + &counter("grove_relay_ends_total", "Clients that had to go, by reason.", &ends)
    }
}

/// Connections that have proved nothing yet. When it is full, one more pushes out the one that has been there longest:
/// whoever is quick gets through a flood of those who only hold their places.
pub(super) struct WaitingRoom {
    places: usize,
    begun: Cell<u64>,
    /// Dropping the sender pushes the guest out.
    inside: RefCell<BTreeMap<u64, Sender<()>>>,
}

/// A place in a waiting room.
pub(super) struct Guest {
    room: Rc<WaitingRoom>,
    number: u64,
    pushed_out: Receiver<()>,
}

impl WaitingRoom {
    pub(super) fn new(places: usize) -> Rc<Self> {
        Rc::new(Self { places, begun: Cell::new(0), inside: RefCell::default() })
    }

    pub(super) fn enter(self: &Rc<Self>) -> Guest {
        let (holding, pushed_out) = channel::bounded(1);
        let number = self.begun.get();
        self.begun.set(number + 1);
        let mut inside = self.inside.borrow_mut();
        if inside.len() >= self.places {
            inside.pop_first();
        }
        inside.insert(number, holding);
        Guest { room: Rc::clone(self), number, pushed_out }
    }

    fn len(&self) -> usize {
        self.inside.borrow().len()
    }

    fn close(&self) {
        self.inside.borrow_mut().clear();
    }
}

impl Guest {
    /// Waits until another needs the place.
    pub(super) async fn pushed_out(&self) {
        // Nothing is ever sent.
        let _ = self.pushed_out.recv().await;
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.room.inside.borrow_mut().remove(&self.number);
    }
}

/// File descriptors that this process may have.
fn descriptors() -> u64 {
    rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// A client that has proved itself.
struct Incoming {
    login: Login,
    decoder: Decoder,
    /// Raw bytes after the login.
    rest: Vec<u8>,
}

enum ReadError {
    Io(io::Error),
    Violation(Violation),
}

/// The first message, and the raw bytes after it.
async fn read_message(
    stream: &mut Accepted,
    decoder: &mut Decoder,
    ahead: Vec<u8>,
) -> Result<(Vec<u8>, Vec<u8>), ReadError> {
    let mut message = Vec::new();
    let mut raw = ahead;
    loop {
        let mut at = 0;
        while at < raw.len() {
            match decoder.next(&mut raw, &mut at).map_err(ReadError::Violation)? {
                Some(Event::Data { kind: Kind::Binary, bytes, is_last }) => {
                    if message.len() + bytes.len() > LOGIN_BYTES_MAX {
                        let too_big = Violation { code: code::TOO_BIG, what: "a login is shorter" };
                        return Err(ReadError::Violation(too_big));
                    }
                    message.extend_from_slice(bytes);
                    if is_last {
                        return Ok((message, raw.split_off(at)));
                    }
                }
                Some(Event::Data { .. }) => {
                    let text = Violation { code: code::UNSUPPORTED, what: "text instead of bytes" };
                    return Err(ReadError::Violation(text));
                }
                Some(Event::Close { .. }) => {
                    return Err(ReadError::Io(io::ErrorKind::UnexpectedEof.into()));
                }
                Some(Event::Ping(_) | Event::Pong) | None => {}
            }
        }
        raw.resize(LOGIN_BYTES_MAX, 0);
        let n = read_some(stream, &mut raw, LOGIN_TIME_MAX).await.map_err(ReadError::Io)?;
        if n == 0 {
            return Err(ReadError::Io(io::ErrorKind::UnexpectedEof.into()));
        }
        raw.truncate(n);
    }
}

/// One client, from its login to its end.
struct ClientTask {
    hub: Rc<Hub>,
    stream: Accepted,
    port: Port,
    mailbox: Rc<Mailbox>,
    decoder: Decoder,
    /// Raw bytes that came with the login.
    ahead: Vec<u8>,
    /// Bytes that the socket has not taken yet, and how many of them it has.
    rest: Vec<u8>,
    rest_sent: usize,
    /// The answer to the last ping.
    pong: Vec<u8>,
    rate: Option<Box<ByteRate>>,
    /// Runs while the rate is used up.
    delay: Option<Timer>,
    /// Runs once the last word is in `rest`.
    farewell: Option<Timer>,
}

impl Drop for ClientTask {
    fn drop(&mut self) {
        self.hub.switch.borrow_mut().leave(self.port);
        self.hub.clients.borrow_mut().remove(&self.port);
        self.hub.wake();
    }
}

/// Why a client's task ends at once.
enum Over {
    Broken(io::Error),
    Rules(Violation),
    /// The client has said its last word.
    Left(Option<u16>),
}

impl std::convert::From<io::Error> for Over {
    fn from(error: io::Error) -> Self {
        Self::Broken(error)
    }
}

impl Future for ClientTask {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        {
            let mut waker = this.mailbox.waker.borrow_mut();
            if !waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                *waker = Some(cx.waker().clone());
            }
        }
        if this.farewell.is_none() {
            if let Some(ending) = this.mailbox.ending.take() {
                match ending {
                    Ending::Replaced => this.say_farewell(Some(code::REPLACED), "replaced"),
                    Ending::Restart(ms) => this.say_farewell(Some(code::RESTART), &format!("restart {ms}")),
                    Ending::Silent => {
                        count(&this.hub.counts.silent);
                        return Poll::Ready(());
                    }
                }
            }
        }
        if this.farewell.is_some() {
            return this.poll_farewell(cx);
        }
        match this.poll_moving(cx) {
            Ok(()) => return Poll::Pending,
            Err(Over::Broken(error)) => {
                log::debug!("a client is gone: {error}");
                return Poll::Ready(());
            }
            Err(Over::Rules(violation)) => {
                count(&this.hub.counts.broken);
                log::debug!("a client broke the rules: {}", violation.what);
                this.say_farewell(Some(violation.code), violation.what);
            }
            Err(Over::Left(code)) => this.say_farewell(code, ""),
        }
        this.poll_farewell(cx)
    }
}

impl ClientTask {
    /// Sends and reads; `Ok` when it can do no more now and will be woken.
    fn poll_moving(&mut self, cx: &mut Context<'_>) -> Result<(), Over> {
        let is_sent = self.send(cx)?;
        // TLS keeps what the socket did not take, and is woken when it does.
        if let Poll::Ready(flushed) = Pin::new(&mut self.stream).poll_flush(cx) {
            flushed?;
        }
        if !self.may_read(cx) {
            // What was sent made room for others, and there may be more of it: neither waits for what is read from here.
            self.hub.wake();
            if !is_sent {
                cx.waker().wake_by_ref();
            }
            return Ok(());
        }
        let has_read = self.read(cx)?;
        self.hub.wake();
        if has_read || !is_sent {
            // More may be there: after the others' turn.
            cx.waker().wake_by_ref();
        }
        Ok(())
    }

    fn may_read(&mut self, cx: &mut Context<'_>) -> bool {
        if let Some(delay) = &mut self.delay {
            if Pin::new(delay).poll(cx).is_pending() {
                return false;
            }
            self.delay = None;
        }
        !self.hub.switch.borrow_mut().is_clogged(self.port)
    }

    /// One read; whether there was anything.
    fn read(&mut self, cx: &mut Context<'_>) -> Result<bool, Over> {
        let hub = Rc::clone(&self.hub);
        let mut buffer = hub.read_buffer.borrow_mut();
        let now = Instant::now();
        let n = if self.ahead.is_empty() {
            let mut max = buffer.len();
            if let Some(rate) = &mut self.rate {
                match rate.allowance(now) {
                    Ok(bytes) => max = max.min(bytes),
                    Err(wait) => {
                        self.delay = Some(Timer::after(wait));
                        // The timer is polled the next time.
                        return Ok(true);
                    }
                }
            }
            match Pin::new(&mut self.stream).poll_read(cx, &mut buffer[..max]) {
                Poll::Pending => return Ok(false),
                Poll::Ready(Ok(0)) => return Err(Over::Broken(io::ErrorKind::UnexpectedEof.into())),
                Poll::Ready(Ok(n)) => n,
                Poll::Ready(Err(error)) => return Err(error.into()),
            }
        } else {
            let n = self.ahead.len();
            buffer[..n].copy_from_slice(&self.ahead);
            self.ahead = Vec::new();
            n
        };
        if let Some(rate) = &mut self.rate {
            rate.took(n);
        }
        self.mailbox.heard_at.set(now);
        self.mailbox.is_pinged.set(false);
        self.decode(&mut buffer[..n], now)?;
        Ok(true)
    }

    fn decode(&mut self, bytes: &mut [u8], now: Instant) -> Result<(), Over> {
        let mut at = 0;
        loop {
            match self.decoder.next(bytes, &mut at).map_err(Over::Rules)? {
                None => return Ok(()),
                Some(Event::Data { kind: Kind::Binary, bytes, .. }) => {
                    match self.hub.switch.borrow_mut().on_bytes(self.port, bytes, now) {
                        Ok(Went::On) => {}
                        Ok(Went::Away) => return Err(Over::Left(Some(code::NORMAL))),
                        Err(switch::Violation(what)) => {
                            return Err(Over::Rules(Violation { code: code::PROTOCOL, what }));
                        }
                    }
                }
                Some(Event::Data { .. }) => {
                    let what = "text instead of bytes";
                    return Err(Over::Rules(Violation { code: code::UNSUPPORTED, what }));
                }
                Some(Event::Ping(bytes)) => {
                    self.pong.clear();
                    put_control(&mut self.pong, Control::Pong(bytes), None);
                    self.mailbox.wake();
                }
                Some(Event::Pong) => {}
                Some(Event::Close { code, .. }) => return Err(Over::Left(code)),
            }
        }
    }

    /// Sends what there is; false if the turn was over before that.
    fn send(&mut self, cx: &mut Context<'_>) -> io::Result<bool> {
        let mut turn = 0;
        loop {
            if !self.send_rest(cx)? {
                return Ok(true);
            }
            if turn >= SEND_TURN_BYTES {
                return Ok(false);
            }
            if self.pong.is_empty() && self.mailbox.wants_ping.take() {
                put_control(&mut self.pong, Control::Ping, None);
            }
            if !self.pong.is_empty() {
                std::mem::swap(&mut self.rest, &mut self.pong);
                continue;
            }
            let hub = Rc::clone(&self.hub);
            let mut out = hub.send_buffer.borrow_mut();
            out.clear();
            out.resize(HEAD_ROOM, 0);
            hub.switch.borrow_mut().fill(self.port, &mut out, HEAD_ROOM + MESSAGE_BYTES_MAX, Instant::now());
            let len = out.len() - HEAD_ROOM;
            if len == 0 {
                return Ok(true);
            }
            let head = Head::binary(len, None);
            let head = head.as_slice();
            let mut at = HEAD_ROOM - head.len();
            out[at..HEAD_ROOM].copy_from_slice(head);
            turn += len;
            while at < out.len() {
                match Pin::new(&mut self.stream).poll_write(cx, &out[at..]) {
                    Poll::Ready(n) => at += n?,
                    Poll::Pending => {
                        self.rest.extend_from_slice(&out[at..]);
                        return Ok(true);
                    }
                }
            }
        }
    }

    /// Sends what the socket did not take before; false if it still does not.
    fn send_rest(&mut self, cx: &mut Context<'_>) -> io::Result<bool> {
        while self.rest_sent < self.rest.len() {
            match Pin::new(&mut self.stream).poll_write(cx, &self.rest[self.rest_sent..]) {
                Poll::Ready(n) => self.rest_sent += n?,
                Poll::Pending => return Ok(false),
            }
        }
        self.rest = Vec::new();
        self.rest_sent = 0;
        Ok(true)
    }

    /// The last word goes out behind what was begun; nothing more is read or forwarded.
    fn say_farewell(&mut self, code: Option<u16>, reason: &str) {
        put_control(&mut self.rest, Control::Close { code, reason }, None);
        self.farewell = Some(Timer::after(FAREWELL_TIME_MAX));
    }

    fn poll_farewell(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let is_late = self.farewell.as_mut().is_none_or(|timer| Pin::new(timer).poll(cx).is_ready());
        if is_late {
            return Poll::Ready(());
        }
        match self.send_rest(cx) {
            Ok(false) => Poll::Pending,
            Err(_) => Poll::Ready(()),
            Ok(true) => {
                if Pin::new(&mut self.stream).poll_close(cx).is_pending() {
                    return Poll::Pending;
                }
                // Closing over unread bytes would send a reset, and the last word might be lost.
                let mut buffer = self.hub.read_buffer.borrow_mut();
                match Pin::new(&mut self.stream).poll_read(cx, &mut buffer) {
                    Poll::Pending => Poll::Pending,
                    Poll::Ready(Ok(n)) if n > 0 => {
                        cx.waker().wake_by_ref();
                        Poll::Pending
                    }
                    Poll::Ready(_) => Poll::Ready(()),
                }
            }
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::keys::MasterKey;
    use crate::relay::client::{Client, ConnectError, End, Options, connect};
    use crate::relay::{CircuitError, Url, listener};
    use crate::wire::noise::tests::Dice;
    use smol::Async;
    use smol::io::{AsyncReadExt, AsyncWriteExt};

    pub(crate) fn identity(seed: u8) -> Identity {
        MasterKey::from_bytes([seed; 32]).identity(0, 0)
    }

    /// A hub with a port, and a place to run clients.
    pub(crate) struct World {
        pub(crate) executor: Rc<LocalExecutor<'static>>,
        pub(crate) hub: Rc<Hub>,
        pub(crate) url: Url,
    }

    impl World {
        pub(crate) fn run<F: Future<Output = ()>>(limits: Limits, test: impl FnOnce(Rc<World>) -> F) {
            let executor = Rc::new(LocalExecutor::new());
            let hub =
                Hub::new(Rc::clone(&executor), identity(100), Rc::new(|id| *id != identity(66).id()), limits);
            let socket = listener::bind("127.0.0.1:0".parse().unwrap()).unwrap();
            let url = format!("ws://{}#{}", socket.local_addr().unwrap(), hub.id()).parse().unwrap();
            let accept = listener::accept(Async::new(socket).unwrap(), Rc::clone(&hub), Rc::clone(&executor));
            executor.spawn(accept).detach();
            let world = Rc::new(World { executor: Rc::clone(&executor), hub, url });
            smol::block_on(executor.run(async {
                within(Duration::from_secs(300), test(world)).await.expect("the test ends");
            }));
        }

        pub(crate) async fn client(&self, seed: u8) -> Client {
            let (client, driver) = connect(&self.url, &identity(seed), &Options::default()).await.unwrap();
            self.executor.spawn(driver).detach();
            client
        }
    }

    async fn send_and_compare(mut stream: impl AsyncRead + AsyncWrite + Unpin, seed: u64, total: usize) {
        let bytes = Dice(seed).bytes(total);
        for piece in bytes.chunks(50_000) {
            stream.write_all(piece).await.unwrap();
            let mut back = vec![0; piece.len()];
            stream.read_exact(&mut back).await.unwrap();
            assert!(back == piece);
        }
        stream.close().await.unwrap();
        assert_eq!(stream.read(&mut [0; 1]).await.unwrap(), 0, "the end comes through");
    }

    /// Sends back what comes on every circuit, and says who called.
    async fn echo(executor: Rc<LocalExecutor<'static>>, client: Client, expected: CellId) {
        while let Some((from, mut circuit)) = client.accept().await {
            assert_eq!(from, expected);
            let work = async move {
                let mut buf = vec![0; 60_000];
                while let Ok(n @ 1..) = circuit.read(&mut buf).await {
                    if circuit.write_all(&buf[..n]).await.is_err() {
                        return;
                    }
                }
                let _ = circuit.close().await;
            };
            executor.spawn(work).detach();
        }
    }

    #[test]
    fn circuits_carry_their_own_bytes_both_ways() {
        World::run(Limits::default(), |world| async move {
            let (ann, bob) = (world.client(1).await, world.client(2).await);
            let executor = &world.executor;
            executor.spawn(echo(Rc::clone(executor), ann.clone(), identity(2).id())).detach();
            executor.spawn(echo(Rc::clone(executor), bob.clone(), identity(1).id())).detach();
            let mut tasks = Vec::new();
            for seed in 0..5 {
                for (from, to) in [(&ann, 2), (&bob, 1)] {
                    let circuit = from.open(&identity(to).id()).await.unwrap();
                    tasks.push(executor.spawn(send_and_compare(circuit, seed, 3_000_000)));
                }
            }
            for task in tasks {
                task.await;
            }
            // A reset needs a moment to arrive.
            let gone = async {
                while world.hub.switch.borrow().circuits() > 0 {
                    Timer::after(Duration::from_millis(5)).await;
                }
            };
            within(Duration::from_secs(60), gone).await.expect("nothing is left");
            assert_eq!(world.hub.switch.borrow().held_bytes(), 0);
            assert_eq!(world.hub.totals().joined, 10);
            assert!(world.hub.metrics().contains("grove_relay_clients 2\n"));
        });
    }

    #[test]
    fn caller_hears_why_there_is_no_circuit() {
        World::run(Limits { circuits: 2, ..Limits::default() }, |world| async move {
            let (ann, bob) = (world.client(1).await, world.client(2).await);
            let open = |to: u8| {
                let ann = ann.clone();
                async move { ann.open(&identity(to).id()).await }
            };
            assert!(matches!(open(3).await, Err(CircuitError::NotHere)));
            assert!(matches!(open(1).await, Err(CircuitError::Refused)), "itself");
            let cal = world.client(3).await;
            let mut held = Vec::new();
            for _ in 0..2 {
                let (opened, accepted) = smol::future::zip(cal.open(&identity(2).id()), bob.accept()).await;
                held.push((opened.unwrap(), accepted.unwrap()));
            }
            assert!(matches!(open(2).await, Err(CircuitError::Busy)));
            drop(held);
            // The resets need a moment to arrive.
            while smol::future::or(open(2), accept_all(&bob)).await.is_err() {
                Timer::after(Duration::from_millis(10)).await;
            }
        });
    }

    async fn accept_all<T>(client: &Client) -> T {
        let mut kept = Vec::new();
        while let Some(circuit) = client.accept().await {
            kept.push(circuit);
        }
        std::future::pending().await
    }

    #[test]
    fn newest_login_wins_and_the_other_hears_it() {
        World::run(Limits::default(), |world| async move {
            let (old, driver) = connect(&world.url, &identity(1), &Options::default()).await.unwrap();
            let driver = world.executor.spawn(driver);
            let new = world.client(1).await;
            assert_eq!(driver.await, End::Replaced);
            assert!(!old.is_alive() && new.is_alive() && old.end() == Some(End::Replaced));
            while world.hub.clients() > 1 {
                Timer::after(Duration::from_millis(5)).await;
            }
            let bob = world.client(2).await;
            let accepting = world.executor.spawn(async move { new.accept().await });
            bob.open(&identity(1).id()).await.unwrap();
            assert_eq!(accepting.await.unwrap().0, identity(2).id(), "circuits come to the new one");
        });
    }

    #[test]
    fn stop_tells_everybody_when_to_come_back() {
        World::run(Limits::default(), |world| async move {
            let mut drivers = Vec::new();
            for seed in 1..20 {
                let (_, driver) = connect(&world.url, &identity(seed), &Options::default()).await.unwrap();
                drivers.push(world.executor.spawn(driver));
            }
            world.hub.stop(Duration::from_secs(30)).await;
            assert_eq!(world.hub.clients(), 0);
            for driver in drivers {
                assert_eq!(driver.await, End::Restart(Duration::from_secs(30)));
            }
        });
    }

    #[test]
    fn who_is_not_wanted_hears_why() {
        World::run(Limits { clients: 1, ..Limits::default() }, |world| async move {
            let options = Options::default();
            let Err(error) = connect(&world.url, &identity(66), &options).await else { panic!("let in") };
            assert!(
                matches!(&error, ConnectError::Refused(why) if why.contains("does not serve")),
                "{error}"
            );
            let _ann = world.client(1).await;
            let Err(error) = connect(&world.url, &identity(2), &options).await else { panic!("let in") };
            assert!(matches!(error, ConnectError::Busy(_)), "{error}");
            let pinned = Url { hub: Some(identity(5).id()), ..world.url.clone() };
            let Err(error) = connect(&pinned, &identity(1), &options).await else { panic!("let in") };
            assert!(matches!(error, ConnectError::WrongHub), "{error}");
            let elsewhere = Url { path: "/elsewhere".into(), ..world.url.clone() };
            let Err(error) = connect(&elsewhere, &identity(1), &options).await else { panic!("let in") };
            assert!(matches!(error, ConnectError::NoRelay(404)), "{error}");
        });
    }

    #[test]
    fn full_waiting_room_pushes_out_who_waits_longest() {
        let room = WaitingRoom::new(2);
        let guests: Vec<Guest> = (0..3).map(|_| room.enter()).collect();
        assert!(guests[0].pushed_out.is_closed() && !guests[1].pushed_out.is_closed());
        assert_eq!(room.len(), 2);
        drop(guests);
        assert_eq!(room.len(), 0);
    }
}

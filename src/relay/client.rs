//! A cell at a relay: connecting, opening and taking circuits, and staying connected.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::future::Future;
use std::io;
use std::rc::Rc;
use std::time::{Duration, Instant};

use smol::Timer;
use smol::channel::{self, Receiver, Sender};
use smol::net::TcpStream;

use super::frame::code;
use super::hub::CIRCUITS_MAX;
use super::login::{Hello, LOGIN_BYTES_MAX, Login, Welcome};
use super::pace::{Backoff, Gone};
use super::switch::{CIRCUIT_HEAD_BYTES, Status, VERSION};
use super::websocket::{AskError, MessageStream, Signals, ask};
use super::{DEAD_AFTER, LOGIN_TIME_MAX, PING_AFTER, Url};
use crate::config::Config;
use crate::id::{CellId, unhex};
use crate::keys::{Identity, random};
use crate::wire::session::{self, Session, Stream};
use crate::wire::{BoxStream, flush, read_full, tcp, within, write_full};

/// A circuit is joined, or not, within this.
pub const OPEN_TIME_MAX: Duration = Duration::from_secs(10);
/// The head of a circuit that comes in, and the word that it is taken, take no longer.
const TAKE_TIME_MAX: Duration = Duration::from_secs(5);
/// A restart that does not say so is spread over this.
const RESTART_SPAN: Duration = Duration::from_secs(30);
/// Longest text of a relay that is shown.
const REASON_CHARS_MAX: usize = 100;

/// Bytes to another cell and back, through a relay. See `wire::session::Stream`.
pub type Circuit = Stream;

/// What a client wants and allows.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// SHA-256 of TLS certificates that are accepted beside those that the roots vouch for.
    pub pins: Vec<[u8; 32]>,
}

impl Options {
    /// Those of config.json, which has checked that its pins are hashes.
    pub fn of(config: &Config) -> Self {
        let pin = |text: &String| unhex(text).and_then(|bytes| bytes.try_into().ok());
        Self { pins: config.relay_pins.iter().filter_map(pin).collect() }
    }
}

/// Why there is no connection to a relay.
#[derive(Debug)]
pub enum ConnectError {
    /// It cannot be reached.
    Unreachable(io::Error),
    /// The connection broke while it was made.
    Broken(io::Error),
    /// Not in time.
    TimedOut,
    /// The server there is no relay: its HTTP status, or 0.
    NoRelay(u16),
    /// It proved another key than the URL names, or none.
    WrongHub,
    /// Its certificate is not accepted, or this program was built without TLS.
    Tls(String),
    /// It does not want this cell, for good.
    Refused(String),
    /// It wants no more clients now.
    Busy(String),
}

impl ConnectError {
    /// How soon to try again.
    pub fn gone(&self) -> Gone {
        match self {
            Self::Refused(_) | Self::WrongHub | Self::NoRelay(404 | 426) => Gone::Refused,
            _ => Gone::Failed,
        }
    }
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable(error) => write!(f, "the relay cannot be reached: {error}"),
            Self::Broken(error) => write!(f, "the connection to the relay broke: {error}"),
            Self::TimedOut => f.write_str("the relay does not answer in time"),
            Self::NoRelay(0) => f.write_str("there is no relay at this address"),
            Self::NoRelay(status) => write!(f, "there is no relay at this address (HTTP status {status})"),
            Self::WrongHub => {
                f.write_str("the relay is not the one that its URL names; ask its operator for the new URL")
            }
            Self::Tls(what) => write!(f, "no TLS with the relay: {what}"),
            Self::Refused(why) => write!(f, "the relay refuses this cell: {why}"),
            Self::Busy(why) => write!(f, "the relay takes no more now: {why}"),
        }
    }
}

impl std::error::Error for ConnectError {}

/// Why a connection to a relay ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// This side closed it.
    Closed,
    /// The same cell has logged in again, from elsewhere.
    Replaced,
    /// The relay starts again and wants its clients back spread over this time.
    Restart(Duration),
    /// The relay does not want this client any more.
    Refused(String),
    /// Nothing was heard for a minute.
    Silent,
    /// The connection broke.
    Broken(String),
}

impl End {
    /// How soon to try again.
    pub fn gone(&self) -> Gone {
        match self {
            Self::Replaced => Gone::Replaced,
            Self::Restart(span) => Gone::Restart(*span),
            Self::Refused(_) => Gone::Refused,
            Self::Closed | Self::Silent | Self::Broken(_) => Gone::Failed,
        }
    }

    fn of_close(code: Option<u16>, reason: &str) -> Self {
        match code {
            Some(code::REPLACED) => Self::Replaced,
            Some(code::RESTART) => {
                let ms = reason.strip_prefix("restart ").and_then(|ms| ms.parse().ok());
                Self::Restart(ms.map_or(RESTART_SPAN, Duration::from_millis))
            }
            Some(code::POLICY) => Self::Refused(plain(reason)),
            _ => Self::Broken(format!("the relay closed it: {}", plain(reason))),
        }
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed => f.write_str("closed"),
            Self::Replaced => f.write_str(
                "this cell has connected from elsewhere, too; if that was not this machine, two have the same key",
            ),
            Self::Restart(_) => f.write_str("the relay starts again"),
            Self::Refused(why) => write!(f, "the relay refuses this cell: {why}"),
            Self::Silent => f.write_str("nothing was heard of the relay for a minute"),
            Self::Broken(why) => write!(f, "the connection to the relay broke: {why}"),
        }
    }
}

/// A stranger's text, without letters that could command a terminal.
fn plain(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(REASON_CHARS_MAX).collect()
}

/// Why a circuit does not come about.
#[derive(Debug)]
pub enum CircuitError {
    /// The other cell is not at this relay.
    NotHere,
    /// The relay or the other cell does not want it.
    Refused,
    /// One of the two has too many circuits.
    Busy,
    /// No answer in time.
    TimedOut,
    /// The connection to the relay is gone.
    NotConnected,
}

impl fmt::Display for CircuitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotHere => "the cell is not at this relay",
            Self::Refused => "the circuit is refused",
            Self::Busy => "there are too many circuits",
            Self::TimedOut => "the cell does not answer through the relay",
            Self::NotConnected => "there is no connection to the relay",
        })
    }
}

impl std::error::Error for CircuitError {}

/// A connection to a relay; clones are the same one.
#[derive(Clone)]
pub struct Client {
    session: Session,
    hub: CellId,
    end: Rc<RefCell<Option<End>>>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Client(at {})", self.hub.short())
    }
}

/// Connects and logs in. The driver makes everything move: spawn it, for it ends with the connection and says why.
pub async fn connect(
    url: &Url,
    identity: &Identity,
    options: &Options,
) -> Result<(Client, impl Future<Output = End> + use<>), ConnectError> {
    let stream = dial(url).await?;
    let work = async {
        let stream =
            if url.is_tls { wrap(stream, url, options).await? } else { Box::new(stream) as BoxStream };
        log_in(stream, url, identity).await
    };
    let (stream, hub, circuits) =
        within(LOGIN_TIME_MAX, work).await.unwrap_or(Err(ConnectError::TimedOut))?;
    let circuits = usize::from(circuits).clamp(1, CIRCUITS_MAX);
    let limits =
        session::Limits { streams_out: circuits, streams_in: circuits, ..session::Limits::default() };
    let signals = stream.signals();
    let (session, running) = session::start(stream, true, &limits);
    let end = Rc::new(RefCell::new(None));
    let client = Client { session, hub, end: Rc::clone(&end) };
    let driver = async move {
        let silent = async {
            watch(&signals).await;
            End::Silent
        };
        let broken = async {
            let error = running.await;
            match (signals.close.take(), error) {
                (Some((code, reason)), _) => End::of_close(code, &reason),
                (None, session::SessionError::Closed) => End::Closed,
                (None, error) => End::Broken(error.to_string()),
            }
        };
        let ended = smol::future::or(silent, broken).await;
        *end.borrow_mut() = Some(ended.clone());
        ended
    };
    Ok((client, driver))
}

async fn dial(url: &Url) -> Result<TcpStream, ConnectError> {
    let addresses = tcp::resolve(&url.address()).await.map_err(ConnectError::Unreachable)?;
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for address in addresses {
        let connected = within(tcp::CONNECT_TIME_MAX, TcpStream::connect(address)).await;
        match connected.unwrap_or_else(|| Err(io::ErrorKind::TimedOut.into())) {
            Ok(stream) => {
                tcp::tune(&stream).map_err(ConnectError::Unreachable)?;
                return Ok(stream);
            }
            Err(error) => last = error,
        }
    }
    Err(ConnectError::Unreachable(last))
}

#[cfg(feature = "wss")]
async fn wrap(stream: TcpStream, url: &Url, options: &Options) -> Result<BoxStream, ConnectError> {
    super::tls::wrap(stream, url, options).await.map_err(ConnectError::Tls)
}

#[cfg(not(feature = "wss"))]
async fn wrap(_: TcpStream, _: &Url, _: &Options) -> Result<BoxStream, ConnectError> {
    Err(ConnectError::Tls("this program was built without it".into()))
}

async fn log_in(
    mut stream: BoxStream,
    url: &Url,
    identity: &Identity,
) -> Result<(MessageStream<BoxStream>, CellId, u16), ConnectError> {
    let ahead = ask(&mut stream, url, LOGIN_TIME_MAX).await.map_err(|error| match error {
        AskError::Broken(error) => ConnectError::Broken(error),
        AskError::NoWebSocket(503) => ConnectError::Busy("too many connections".into()),
        AskError::NoWebSocket(status) => ConnectError::NoRelay(status),
    })?;
    let mut stream = MessageStream::new(stream, &ahead);
    let signals = stream.signals();
    let said = |error: io::Error| match signals.close.take() {
        Some((Some(code::POLICY | code::PROTOCOL), reason)) => ConnectError::Refused(plain(&reason)),
        Some((_, reason)) => ConnectError::Busy(plain(&reason)),
        None => ConnectError::Broken(error),
    };
    let hello = Hello::parse(&stream.message(LOGIN_BYTES_MAX).await.map_err(&said)?)
        .map_err(|_| ConnectError::NoRelay(101))?;
    if url.hub.is_some_and(|pinned| pinned != hello.hub) {
        return Err(ConnectError::WrongHub);
    }
    let login = Login::new(identity, &hello, random());
    write_full(&mut stream, &login.to_bytes(), LOGIN_TIME_MAX).await.map_err(&said)?;
    flush(&mut stream, LOGIN_TIME_MAX).await.map_err(&said)?;
    let welcome = Welcome::parse(&stream.message(LOGIN_BYTES_MAX).await.map_err(&said)?)
        .map_err(|_| ConnectError::NoRelay(101))?;
    if !welcome.is_proof(&hello.hub, &login) {
        return Err(ConnectError::WrongHub);
    }
    Ok((stream, hello.hub, welcome.circuits))
}

/// Asks for a sign of life when it is quiet; ends when there is none.
async fn watch(signals: &Signals) {
    let mut is_pinged = false;
    loop {
        let silent = signals.heard_at.get().elapsed();
        if silent >= DEAD_AFTER {
            return;
        }
        let next = if silent < PING_AFTER {
            is_pinged = false;
            PING_AFTER
        } else {
            if !is_pinged {
                // It goes out with the session's next turn, which follows this one.
                signals.wants_ping.set(true);
                is_pinged = true;
            }
            DEAD_AFTER
        };
        Timer::after(next - silent).await;
    }
}

impl Client {
    /// A circuit to another cell at this relay, within 10 s.
    pub async fn open(&self, to: &CellId) -> Result<Circuit, CircuitError> {
        let work = async {
            let mut circuit = self.session.open().await.map_err(|_| CircuitError::NotConnected)?;
            let mut head = vec![VERSION];
            head.extend_from_slice(to.as_bytes());
            let mut status = [0];
            let asked = async {
                write_full(&mut circuit, &head, OPEN_TIME_MAX).await?;
                read_full(&mut circuit, &mut status, OPEN_TIME_MAX).await
            };
            asked.await.map_err(|error| match error.kind() {
                _ if !self.is_alive() => CircuitError::NotConnected,
                io::ErrorKind::TimedOut => CircuitError::TimedOut,
                _ => CircuitError::Refused,
            })?;
            match Status::of(status[0]) {
                Status::Joined => Ok(circuit),
                Status::NotHere => Err(CircuitError::NotHere),
                Status::Refused => Err(CircuitError::Refused),
                Status::Busy => Err(CircuitError::Busy),
            }
        };
        within(OPEN_TIME_MAX, work).await.unwrap_or(Err(CircuitError::TimedOut))
    }

    /// The next circuit that another cell opens, and the id that the relay says it has (its handshake must prove it);
    /// `None` once the connection has ended.
    pub async fn accept(&self) -> Option<(CellId, Circuit)> {
        loop {
            let mut circuit = self.session.accept().await?;
            let mut head = [0; CIRCUIT_HEAD_BYTES];
            if read_full(&mut circuit, &mut head, TAKE_TIME_MAX).await.is_err() {
                continue;
            }
            let from = CellId::from_slice(&head[1..]).expect("the rest of a head is an id");
            let status = if head[0] == VERSION { Status::Joined } else { Status::Refused };
            let is_told = write_full(&mut circuit, &[status as u8], TAKE_TIME_MAX).await.is_ok();
            if is_told && status == Status::Joined {
                return Some((from, circuit));
            }
        }
    }

    /// The relay's id, which it has proved.
    pub fn hub(&self) -> CellId {
        self.hub
    }

    /// Circuits that are open.
    pub fn circuits_live(&self) -> usize {
        self.session.streams_live()
    }

    /// Waits until the connection has ended, for whatever reason.
    pub async fn ended(&self) {
        self.session.ended().await;
    }

    /// Why it has ended; `None` as long as it has not.
    pub fn end(&self) -> Option<End> {
        self.end.borrow().clone()
    }

    /// Whether circuits can still be opened.
    pub fn is_alive(&self) -> bool {
        self.session.is_alive()
    }

    /// Ends the connection in order.
    pub fn close(&self) {
        self.session.close();
    }

    /// Bytes that came in, those of yamux included.
    pub fn bytes_in(&self) -> u64 {
        self.session.bytes_in()
    }

    /// Bytes that went out, those of yamux included.
    pub fn bytes_out(&self) -> u64 {
        self.session.bytes_out()
    }
}

/// How a keeper stands with its relay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// A connection is being made.
    Connecting,
    /// Connected.
    Connected,
    /// Not connected; why, and when it is tried again.
    Waiting { why: String, until: Instant },
}

struct Kept {
    url: Url,
    state: RefCell<State>,
    client: RefCell<Option<Client>>,
    /// Dropped and made anew with each change.
    change: RefCell<(Sender<()>, Receiver<()>)>,
    is_stopping: Cell<bool>,
}

impl Kept {
    fn set(&self, state: State, client: Option<Client>) {
        *self.state.borrow_mut() = state;
        *self.client.borrow_mut() = client;
        // Whoever waits for a change holds a receiver of the old one.
        *self.change.borrow_mut() = channel::bounded(1);
    }
}

/// Keeps a connection to one relay: connects, and connects again; clones are the same one.
#[derive(Clone)]
pub struct Keeper {
    kept: Rc<Kept>,
    accepted: Receiver<(CellId, Circuit)>,
}

impl fmt::Debug for Keeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Keeper({}, {:?})", self.kept.url, self.kept.state.borrow())
    }
}

/// Keeps a cell at a relay for as long as the second part, which must be spawned, is not dropped, or until `stop`.
pub fn keep(url: Url, identity: Identity, options: Options) -> (Keeper, impl Future<Output = ()> + use<>) {
    let kept = Rc::new(Kept {
        url,
        state: RefCell::new(State::Connecting),
        client: RefCell::default(),
        change: RefCell::new(channel::bounded(1)),
        is_stopping: Cell::new(false),
    });
    // A caller waits while nobody takes what came before.
    let (accepting, accepted) = channel::bounded(1);
    let keeper = Keeper { kept: Rc::clone(&kept), accepted };
    let work = async move {
        let mut backoff = Backoff::default();
        while !kept.is_stopping.get() {
            let (why, gone, stayed) = stay(&kept, &identity, &options, &accepting).await;
            if kept.is_stopping.get() {
                break;
            }
            let wait = backoff.after(gone, stayed, u64::from_le_bytes(random()));
            log::info!("relay {}: {why}; next try in {} s", kept.url, wait.as_secs());
            kept.set(State::Waiting { why, until: Instant::now() + wait }, None);
            // A stop is a change, too.
            let change = kept.change.borrow().1.clone();
            let changed = async {
                let _ = change.recv().await;
            };
            within(wait, changed).await;
        }
        kept.set(State::Waiting { why: "stopped".into(), until: Instant::now() }, None);
    };
    (keeper, work)
}

/// One connection, from the first try to its end: why it ended, and how long it was up.
async fn stay(
    kept: &Rc<Kept>,
    identity: &Identity,
    options: &Options,
    accepting: &Sender<(CellId, Circuit)>,
) -> (String, Gone, Duration) {
    kept.set(State::Connecting, None);
    let (client, driver) = match connect(&kept.url, identity, options).await {
        Ok(connected) => connected,
        Err(error) => return (error.to_string(), error.gone(), Duration::ZERO),
    };
    let since = Instant::now();
    if kept.is_stopping.get() {
        client.close();
    }
    log::info!("connected to the relay {} ({})", kept.url, client.hub().short());
    kept.set(State::Connected, Some(client.clone()));
    let accept = async {
        while let Some(circuit) = client.accept().await {
            if accepting.send(circuit).await.is_err() {
                break;
            }
        }
        std::future::pending().await
    };
    let end = smol::future::or(driver, accept).await;
    (end.to_string(), end.gone(), since.elapsed())
}

impl Keeper {
    /// The relay.
    pub fn url(&self) -> &Url {
        &self.kept.url
    }

    /// The connection, while there is one.
    pub fn client(&self) -> Option<Client> {
        self.kept.client.borrow().clone().filter(Client::is_alive)
    }

    /// A circuit to another cell at this relay, within 10 s.
    pub async fn open(&self, to: &CellId) -> Result<Circuit, CircuitError> {
        let client = self.client().ok_or(CircuitError::NotConnected)?;
        client.open(to).await
    }

    /// The next circuit that another cell opens, over all connections to come; `None` once the keeper is gone.
    pub async fn accept(&self) -> Option<(CellId, Circuit)> {
        self.accepted.recv().await.ok()
    }

    /// How it stands.
    pub fn state(&self) -> State {
        self.kept.state.borrow().clone()
    }

    /// Waits until the state has changed.
    pub async fn changed(&self) {
        let change = self.kept.change.borrow().1.clone();
        // Nothing is ever sent: the sender is dropped.
        let _ = change.recv().await;
    }

    /// Ends the connection in order, and makes none any more.
    pub fn stop(&self) {
        self.kept.is_stopping.set(true);
        if let Some(client) = self.client() {
            client.close();
        }
        *self.kept.change.borrow_mut() = channel::bounded(1);
    }
}

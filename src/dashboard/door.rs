//! The public port. Every byte of a stranger ends here: what goes on to the handlers is one clean, whole request.
//!
//! Knows nothing of what the API can do. A request that passed the checks of `head.rs` is read to its end, sent to
//! the handlers' Unix socket with `Connection: close`, and the answer is framed anew for the client.
//!
//! Promise: no client holds a connection, a handler or memory for longer than it keeps its side moving.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use smol::future::FutureExt;
use smol::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use smol::lock::{Semaphore, SemaphoreGuard};
use smol::net::unix::UnixStream;
use smol::{Async, LocalExecutor, Timer};

use crate::dashboard::api::{ApiRequest, ApiResponse, Body, Method, Via, error_json, read_target};
use crate::dashboard::auth::{Auth, Proof, bearer, network};
use crate::dashboard::direct::{self, DIRECT_MAX, Handler, while_there};
use crate::dashboard::head::{self, HEAD_BYTES_MAX, Head, Hosts, Progress, Refusal};
use crate::dashboard::http::{
    CLIENT_HEADER, HANDLERS_MAX, PRIVATE_HEADER, PRIVATE_HERE, PRIVATE_NOT, PRIVATE_TLS, REPLY_WAIT,
    unauthorized,
};
use crate::dashboard::pages::{Page, page};
use crate::keys::sha256;
use crate::pool;
use crate::wire::Accepted;

/// Connections in all.
const CONNECTIONS_MAX: usize = 128;
/// Connections from other machines, so that the command line always finds a place.
const CONNECTIONS_REMOTE_MAX: usize = 64;
/// Connections of one address: a browser takes six and its event stream one, and two pages may be open.
const CONNECTIONS_PER_ADDRESS_MAX: usize = 16;
/// Connections from this machine: programs that ask a model wait for many answers at once.
const CONNECTIONS_LOOPBACK_MAX: usize = 80;
/// A head must be whole this long after its first byte.
const HEAD_WAIT: Duration = Duration::from_secs(5);
/// A connection without a request is closed after so long.
const IDLE_WAIT: Duration = Duration::from_secs(30);
/// A body may take this long, and one second more for each `BODY_BYTES_PER_S_MIN`.
const BODY_WAIT: Duration = Duration::from_secs(5);
/// Least rate of a body.
const BODY_BYTES_PER_S_MIN: u64 = 16 * 1024;
/// Most bytes of the body of somebody who is not signed in.
const BODY_BYTES_STRANGER_MAX: u64 = 8 * 1024;
/// Most bytes of all bodies that are in memory at once.
const BODIES_BYTES_MAX: u64 = 8 * 1024 * 1024;
/// A client must take what is in memory of its answer within so long.
pub(crate) const WRITE_WAIT: Duration = Duration::from_secs(30);
/// How long a request waits for a free handler.
const TURN_WAIT: Duration = Duration::from_secs(10);
/// How long the handlers' socket may be away while it is opened anew.
const CONNECT_WAIT: Duration = Duration::from_secs(2);
/// How long the handlers may take to accept a request.
const SEND_WAIT: Duration = Duration::from_secs(10);
/// How long an answer may be silent; a little longer than the handlers wait for the cell.
const ANSWER_WAIT: Duration = REPLY_WAIT.saturating_add(Duration::from_secs(10));
/// Largest head of an answer.
const ANSWER_HEAD_BYTES_MAX: usize = 16 * 1024;
/// Most headers of an answer.
const ANSWER_HEADERS_MAX: usize = 64;
/// Bytes of an answer that are read at once; twice as many are in memory.
const PIECE_BYTES: usize = 32 * 1024;
/// How long a connection stays open after its last answer, so that the answer arrives.
const FAREWELL_WAIT: Duration = Duration::from_secs(1);
/// Most bytes read and thrown away in that time.
const FAREWELL_BYTES_MAX: usize = 256 * 1024;
/// Pause after a failed accept: mostly there are no descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Descriptors that must be free before a request goes on: tiny_http aborts the process where it cannot duplicate
/// one. Each request takes three, so this is enough for all handlers at once.
const SPARE_DESCRIPTORS: usize = 40;

/// The first byte of a TLS handshake.
#[cfg(feature = "wss")]
const TLS_HANDSHAKE: u8 = 0x16;

/// Headers on every answer.
const SECURITY: &str = "X-Content-Type-Options: nosniff\r\n\
    Referrer-Policy: no-referrer\r\n\
    Cross-Origin-Opener-Policy: same-origin\r\n\
    Cross-Origin-Resource-Policy: same-origin\r\n";
/// On pages: only what this cell serves itself.
const PAGE_POLICY: &str = "X-Frame-Options: DENY\r\n\
    Content-Security-Policy: default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; \
    media-src 'self' blob:; connect-src 'self'; manifest-src 'self'; worker-src 'self'; frame-src 'self' blob:; \
    object-src 'none'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'\r\n";
/// On everything else: a file that somebody opens from the API can do nothing.
const DATA_POLICY: &str = "X-Frame-Options: DENY\r\n\
    Content-Security-Policy: default-src 'none'; frame-ancestors 'none'; sandbox\r\n\
    Cache-Control: no-store\r\n";
/// Headers of the handlers' answers that the door sets itself or that mean nothing beyond one connection.
const NOT_PASSED: [&str; 13] = [
    "connection",
    "content-length",
    "transfer-encoding",
    "trailer",
    "upgrade",
    "keep-alive",
    "server",
    "x-content-type-options",
    "x-frame-options",
    "referrer-policy",
    "cross-origin-opener-policy",
    "cross-origin-resource-policy",
    "content-security-policy",
];

/// What all connections share.
pub(crate) struct Shared {
    /// The handlers' socket.
    pub socket: PathBuf,
    /// Names of this cell.
    pub hosts: Hosts,
    /// Who may send more than a stranger.
    pub auth: Arc<Auth>,
    /// Most bytes of a body.
    pub body_bytes_max: u64,
    /// Turns at the handlers.
    pub turns: Semaphore,
    /// Who is connected.
    pub places: RefCell<Places>,
    /// Bytes of bodies in memory.
    pub bodies_bytes: Cell<u64>,
    /// Requests that are being answered.
    pub active: Cell<usize>,
    /// No more requests are taken.
    pub closing: Cell<bool>,
    /// Who takes connections that ask for the relay's WebSocket.
    pub relay: RefCell<Option<Upgrades>>,
    /// Who answers from the door.
    pub direct: RefCell<direct::Table>,
    /// Direct answers that are being made or sent.
    pub direct_count: Cell<usize>,
    /// Tells the hashes of API keys.
    pub keys: RefCell<Option<Keys>>,
    /// Does TLS handshakes.
    #[cfg(feature = "wss")]
    pub tls: Option<futures_rustls::TlsAcceptor>,
}

/// Whether a SHA-256 is that of an API key.
pub(crate) type Keys = Rc<dyn Fn(&[u8; 32]) -> bool>;

/// Takes such connections, and answers them.
pub(crate) type Upgrades = Rc<dyn Fn(Upgrade)>;

/// A connection that asked for a WebSocket and was not answered; it counts among the door's no longer.
pub struct Upgrade {
    /// The connection.
    pub stream: Accepted,
    /// `Sec-WebSocket-Key` of the request.
    pub key: String,
    /// What came after the request.
    pub ahead: Vec<u8>,
    /// Whence.
    pub from: IpAddr,
}

impl Shared {
    /// Nobody is connected yet.
    pub(crate) fn new(socket: PathBuf, hosts: Hosts, auth: Arc<Auth>, body_bytes_max: u64) -> Self {
        Self {
            socket,
            hosts,
            auth,
            body_bytes_max,
            turns: Semaphore::new(HANDLERS_MAX),
            places: RefCell::default(),
            bodies_bytes: Cell::new(0),
            active: Cell::new(0),
            closing: Cell::new(false),
            relay: RefCell::new(None),
            direct: RefCell::default(),
            direct_count: Cell::new(0),
            keys: RefCell::new(None),
            #[cfg(feature = "wss")]
            tls: None,
        }
    }
}

/// How many connections each address has. Decides only.
#[derive(Debug, Default)]
pub(crate) struct Places {
    by_address: HashMap<IpAddr, usize>,
    remote: usize,
    local: usize,
}

impl Places {
    fn enter(&mut self, address: IpAddr) -> bool {
        let address = network(address);
        let is_local = address.is_loopback();
        let its_max = if is_local { CONNECTIONS_LOOPBACK_MAX } else { CONNECTIONS_PER_ADDRESS_MAX };
        let its = self.by_address.get(&address).copied().unwrap_or(0);
        let remote_is_full = !is_local && self.remote >= CONNECTIONS_REMOTE_MAX;
        if its >= its_max || remote_is_full || self.remote + self.local >= CONNECTIONS_MAX {
            return false;
        }
        self.by_address.insert(address, its + 1);
        *(if is_local { &mut self.local } else { &mut self.remote }) += 1;
        true
    }

    fn leave(&mut self, address: IpAddr) {
        let address = network(address);
        match self.by_address.get_mut(&address) {
            Some(its) if *its > 1 => *its -= 1,
            Some(_) => drop(self.by_address.remove(&address)),
            None => return,
        }
        *(if address.is_loopback() { &mut self.local } else { &mut self.remote }) -= 1;
    }
}

/// The place of one connection.
struct Place {
    shared: Rc<Shared>,
    address: IpAddr,
}

impl Place {
    fn take(shared: &Rc<Shared>, address: IpAddr) -> Option<Self> {
        let entered = shared.places.borrow_mut().enter(address);
        entered.then(|| Self { shared: Rc::clone(shared), address: address.to_canonical() })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.shared.places.borrow_mut().leave(self.address);
    }
}

/// Adds to a counter for as long as it lives.
struct Counted<'a>(Box<dyn Fn() + 'a>);

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        (self.0)();
    }
}

fn count_active(shared: &Shared) -> Counted<'_> {
    shared.active.set(shared.active.get() + 1);
    Counted(Box::new(|| shared.active.set(shared.active.get() - 1)))
}

/// Room in memory for a body; `None` if there is none now.
fn reserve_body(shared: &Shared, bytes: u64) -> Option<Counted<'_>> {
    if bytes > BODY_BYTES_STRANGER_MAX && shared.bodies_bytes.get() + bytes > BODIES_BYTES_MAX {
        return None;
    }
    shared.bodies_bytes.set(shared.bodies_bytes.get() + bytes);
    Some(Counted(Box::new(move || shared.bodies_bytes.set(shared.bodies_bytes.get() - bytes))))
}

/// Listens at `address`; `[::]` takes IPv4 too, and becomes `0.0.0.0` where there is no IPv6.
pub(crate) fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let listener = match (bind_dual(address), address) {
        (Err(_), SocketAddr::V6(v6)) if v6.ip().is_unspecified() => {
            TcpListener::bind((std::net::Ipv4Addr::UNSPECIFIED, v6.port()))?
        }
        (bound, _) => bound?,
    };
    listener.set_nonblocking(true)?;
    Ok(listener)
}

fn bind_dual(address: SocketAddr) -> io::Result<TcpListener> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, listen, socket_with, sockopt};
    let is_all_v6 = matches!(address, SocketAddr::V6(v6) if v6.ip().is_unspecified());
    if !is_all_v6 {
        return TcpListener::bind(address);
    }
    let socket = socket_with(AddressFamily::INET6, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    sockopt::set_ipv6_v6only(&socket, false)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    bind(&socket, &address)?;
    listen(&socket, 128)?;
    Ok(TcpListener::from(socket))
}

/// Takes connections and serves each on `connections`, until dropped.
pub(crate) async fn accept(
    listener: Async<TcpListener>,
    shared: Rc<Shared>,
    connections: Rc<LocalExecutor<'static>>,
) {
    loop {
        match listener.accept().await {
            Ok((client, from)) => match Place::take(&shared, from.ip()) {
                Some(place) => pool::spawn(&connections, welcome(client, place)).detach(),
                None => turn_away(client.into()).await,
            },
            Err(error) => {
                log::debug!("a connection could not be accepted: {error}");
                Timer::after(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Says why and closes, without waiting for anything.
async fn turn_away(mut client: Accepted) {
    let answer = refusal_answer(&head::TOO_MANY, false);
    let _ = smol::future::poll_once(client.write(&answer)).await;
}

/// Serves a connection, inside TLS if its first byte asks for that.
async fn welcome(client: Async<TcpStream>, place: Place) {
    let _ = client.get_ref().set_nodelay(true);
    #[cfg(feature = "wss")]
    if let Some(acceptor) = place.shared.tls.clone() {
        let mut first = [0];
        match within(HEAD_WAIT, client.peek(&mut first)).await {
            Ok(1) if first[0] == TLS_HANDSHAKE => {
                // A handshake that is not over in time is dropped, with whatever it is about.
                match within(HEAD_WAIT, acceptor.accept(client)).await {
                    Ok(client) => serve(Accepted::Tls(Box::new(client)), place).await,
                    Err(why) => log::debug!("a TLS handshake with {} failed: {why}", place.address),
                }
                return;
            }
            Ok(1) => {}
            _ => return,
        }
    }
    serve(client.into(), place).await;
}

/// Serves one connection, request after request.
async fn serve(mut client: Accepted, place: Place) {
    let shared = &*place.shared;
    let mut ahead = Vec::new();
    let mut idle = HEAD_WAIT;
    while !shared.closing.get() {
        let length = match read_head(&mut client, &mut ahead, idle).await {
            Ok(Some(length)) => length,
            Ok(None) => return,
            Err(refusal) => return refuse(&mut client, &refusal, false).await,
        };
        let mut active = Some(count_active(shared));
        let head = match head::read(&ahead[..length], &shared.hosts) {
            Ok(head) => head,
            Err(refusal) => {
                let is_head = ahead.starts_with(b"HEAD ");
                return refuse(&mut client, &refusal, is_head).await;
            }
        };
        ahead.drain(..length);
        if let Some(key) = head.websocket_key {
            let Some(relay) = shared.relay.borrow().clone() else {
                return refuse(&mut client, &head::NO_UPGRADE, false).await;
            };
            return relay(Upgrade { stream: client, key, ahead, from: place.address });
        }
        let direct = shared.direct.borrow().find(head.path());
        let page = page(head.path()).filter(|_| ["GET", "HEAD"].contains(&head.method.as_str()));
        let answered = match direct {
            _ if page.is_some() => send_page(&mut client, &head, page, shared).await,
            Some(handler) => {
                answer_directly(&mut client, &mut ahead, &head, &place, handler, &mut active).await
            }
            None => pass_on(&mut client, &mut ahead, &head, &place).await,
        };
        match answered {
            Ok(true) => {}
            Ok(false) => return farewell(&mut client).await,
            Err(Failure::Refused(refusal)) => {
                return refuse(&mut client, &refusal, head.method == "HEAD").await;
            }
            Err(Failure::Broken(error)) => {
                log::debug!("a connection from {} was broken off: {error}", place.address);
                return break_off(&client);
            }
        }
        drop(active);
        if ahead.is_empty() {
            ahead = Vec::new();
        }
        idle = IDLE_WAIT;
    }
}

pub(crate) enum Failure {
    /// Nothing of an answer was sent yet.
    Refused(Refusal),
    /// The client is gone or has a part of an answer.
    Broken(io::Error),
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Broken(error)
    }
}

/// `work`, or `TimedOut` after `limit`.
pub(crate) async fn within<T>(limit: Duration, work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    let late = async {
        Timer::after(limit).await;
        Err(io::ErrorKind::TimedOut.into())
    };
    work.or(late).await
}

/// Reads until `ahead` begins with a whole head and gives its length; `None` if the client left or stays silent.
async fn read_head(
    client: &mut Accepted,
    ahead: &mut Vec<u8>,
    idle: Duration,
) -> Result<Option<usize>, Refusal> {
    let mut deadline = (!ahead.is_empty()).then(|| Instant::now() + HEAD_WAIT);
    loop {
        if let Progress::Whole(length) = head::progress(ahead)? {
            return Ok(Some(length));
        }
        let wait = match deadline {
            Some(deadline) => deadline.saturating_duration_since(Instant::now()),
            None => idle,
        };
        let mut piece = [0; 1024];
        let room = piece.len().min(HEAD_BYTES_MAX - ahead.len());
        match within(wait, client.read(&mut piece[..room])).await {
            Ok(0) => return Ok(None),
            Ok(length) => ahead.extend_from_slice(&piece[..length]),
            Err(error) if error.kind() == io::ErrorKind::TimedOut && !ahead.is_empty() => {
                return Err(head::TOO_SLOW);
            }
            Err(_) => return Ok(None),
        }
        deadline = deadline.or_else(|| Some(Instant::now() + HEAD_WAIT));
    }
}

/// Writes all, and leaves nothing in between.
async fn put(client: &mut Accepted, bytes: &[u8]) -> io::Result<()> {
    client.write_all(bytes).await?;
    client.flush().await
}

/// Sends a page. True if another request may follow.
async fn send_page(
    client: &mut Accepted,
    request: &Head,
    page: Option<&'static Page>,
    shared: &Shared,
) -> Result<bool, Failure> {
    let Some(page) = page else { return Err(head::UNAVAILABLE.into()) };
    let header = |name| request.header(name).unwrap_or_default();
    let (status, own, bytes) = page.answer(header("Accept-Encoding"), header("If-None-Match"));
    let keep_alive = request.keeps_alive && !shared.closing.get();
    let reason = tiny_http::StatusCode(status).default_reason_phrase();
    let length = if status == 304 { String::new() } else { format!("Content-Length: {}\r\n", bytes.len()) };
    let close = if keep_alive { "" } else { "Connection: close\r\n" };
    let mut out =
        format!("HTTP/1.1 {status} {reason}\r\n{own}{length}{close}{SECURITY}{PAGE_POLICY}\r\n").into_bytes();
    if request.method != "HEAD" {
        out.extend_from_slice(&bytes);
    }
    for slice in out.chunks(2 * PIECE_BYTES) {
        within(WRITE_WAIT, put(client, slice)).await?;
    }
    Ok(keep_alive)
}

/// A seat among the direct answers.
fn take_seat(shared: &Shared) -> Option<Counted<'_>> {
    if shared.direct_count.get() >= DIRECT_MAX {
        return None;
    }
    shared.direct_count.set(shared.direct_count.get() + 1);
    Some(Counted(Box::new(|| shared.direct_count.set(shared.direct_count.get() - 1))))
}

/// What the sender of a direct request proves. API keys are good below `/v1/` only.
fn prove(shared: &Shared, head: &Head) -> Via {
    let authorization = head.header("Authorization");
    match shared.auth.check(authorization, head.header("Cookie"), Instant::now()) {
        Some(Proof::Secret) => return Via::Secret,
        Some(Proof::Session) => return Via::Session,
        None => {}
    }
    let (Some(key), true) = (authorization.and_then(bearer), head.path().starts_with("/v1/")) else {
        return Via::Nothing;
    };
    let hash = sha256(key.as_bytes());
    let keys = shared.keys.borrow().clone();
    if keys.is_some_and(|keys| keys(&hash)) { Via::Key(hash) } else { Via::Nothing }
}

/// The same as `unauthorized` in OpenAI's form, for programs that know no other.
fn no_key() -> ApiResponse {
    let text = "{\"error\":{\"message\":\"This needs a key of this cell: make one with `grove ai --new-key NAME`.\",\
                \"type\":\"invalid_request_error\",\"param\":null,\"code\":\"invalid_api_key\"}}";
    ApiResponse::json_text(401, text.to_owned()).with_header("WWW-Authenticate", "Bearer")
}

/// Reads the body to its end and answers from here. True if another request may follow.
async fn answer_directly(
    client: &mut Accepted,
    ahead: &mut Vec<u8>,
    head: &Head,
    place: &Place,
    handler: Handler,
    active: &mut Option<Counted<'_>>,
) -> Result<bool, Failure> {
    let shared = &*place.shared;
    let via = prove(shared, head);
    let max = if via == Via::Nothing { BODY_BYTES_STRANGER_MAX } else { shared.body_bytes_max };
    if head.body_bytes > max.min(shared.body_bytes_max) {
        return Err(head::BODY_TOO_LARGE.into());
    }
    let reserved = reserve_body(shared, head.body_bytes).ok_or(head::BUSY)?;
    let body = read_body(client, ahead, head).await?;
    let seat;
    let response = match direct_request(client, head, via, body, place.address) {
        Err(response) => response,
        Ok(_) if via == Via::Nothing && head.path().starts_with("/v1/") => no_key(),
        Ok(_) if via == Via::Nothing => unauthorized(),
        Ok(request) => {
            seat = take_seat(shared).ok_or(head::BUSY)?;
            direct::probe(client);
            let response = while_there(client, ahead, handler(request)).await?;
            let keep_alive = head.keeps_alive && !shared.closing.get();
            drop(reserved);
            if matches!(response.body, Body::Stream { length: None, .. }) {
                // It may last for ever, so nobody who stops the cell waits for it.
                drop(active.take());
            }
            let written = direct::write(client, ahead, head, response, keep_alive, SECURITY).await;
            drop(seat);
            return written;
        }
    };
    direct::write(client, ahead, head, response, head.keeps_alive, SECURITY).await
}

fn direct_request(
    client: &Accepted,
    head: &Head,
    via: Via,
    body: Vec<u8>,
    from: IpAddr,
) -> Result<ApiRequest, ApiResponse> {
    let bad = |why: &str| ApiResponse::error(400, "bad_request", why, "");
    let method = if head.method == "HEAD" { Some(Method::Get) } else { Method::from_name(&head.method) };
    let (path, query) = read_target(&head.target).map_err(|why| bad(why.0))?;
    let owned = |name| head.header(name).map(str::to_owned);
    Ok(ApiRequest {
        method: method.ok_or_else(|| bad("This method is not known here."))?,
        is_head: head.method == "HEAD",
        path,
        query,
        content_type: owned("Content-Type"),
        range: owned("Range"),
        if_range: owned("If-Range"),
        if_none_match: owned("If-None-Match"),
        body,
        authorized: via != Via::Nothing,
        via,
        is_private: privacy(client, from) != PRIVATE_NOT,
        is_direct: true,
        client: from,
    })
}

/// Whether anybody on the way can read along.
fn privacy(client: &Accepted, from: IpAddr) -> &'static str {
    match client.is_tls() {
        true => PRIVATE_TLS,
        false if from.to_canonical().is_loopback() => PRIVATE_HERE,
        false => PRIVATE_NOT,
    }
}

/// Reads the body to its end, hands the request on and the answer back. True if another request may follow.
async fn pass_on(
    client: &mut Accepted,
    ahead: &mut Vec<u8>,
    head: &Head,
    place: &Place,
) -> Result<bool, Failure> {
    let shared = &*place.shared;
    let proof = shared.auth.check(head.header("Authorization"), head.header("Cookie"), Instant::now());
    let max = if proof.is_some() { shared.body_bytes_max } else { BODY_BYTES_STRANGER_MAX };
    if head.body_bytes > max.min(shared.body_bytes_max) {
        return Err(head::BODY_TOO_LARGE.into());
    }
    let reserved = reserve_body(shared, head.body_bytes).ok_or(head::BUSY)?;
    let body = read_body(client, ahead, head).await?;

    let turn = within(TURN_WAIT, async { Ok(shared.turns.acquire().await) });
    let turn = turn.await.map_err(|_| head::BUSY)?;
    if !has_spare_descriptors(client) {
        return Err(head::BUSY.into());
    }
    let mut inner = connect(shared).await?;
    send(&mut inner, head, body, place.address, privacy(client, place.address))
        .await
        .map_err(|_| head::UNAVAILABLE)?;
    drop(reserved);
    let mut answer = Answer::read(inner, head).await?;
    answer.write(client, head, head.keeps_alive && !shared.closing.get(), turn).await
}

async fn read_body(client: &mut Accepted, ahead: &mut Vec<u8>, head: &Head) -> Result<Vec<u8>, Failure> {
    let length = head.body_bytes as usize;
    let mut body: Vec<u8> = ahead.drain(..length.min(ahead.len())).collect();
    if body.len() == length {
        return Ok(body);
    }
    if head.expects_continue && body.is_empty() {
        within(WRITE_WAIT, put(client, b"HTTP/1.1 100 Continue\r\n\r\n")).await?;
    }
    let had = body.len();
    body.resize(length, 0);
    let wait = BODY_WAIT + Duration::from_secs(head.body_bytes / BODY_BYTES_PER_S_MIN);
    match within(wait, client.read_exact(&mut body[had..])).await {
        Ok(()) => Ok(body),
        Err(error) if error.kind() == io::ErrorKind::TimedOut => Err(head::TOO_SLOW.into()),
        Err(error) => Err(error.into()),
    }
}

/// Tries it: duplicates one descriptor a few times.
fn has_spare_descriptors(client: &Accepted) -> bool {
    let spare: Result<Vec<_>, _> =
        (0..SPARE_DESCRIPTORS).map(|_| client.tcp().as_fd().try_clone_to_owned()).collect();
    spare.is_ok()
}

async fn connect(shared: &Shared) -> Result<UnixStream, Refusal> {
    let deadline = Instant::now() + CONNECT_WAIT;
    loop {
        match within(CONNECT_WAIT, UnixStream::connect(&shared.socket)).await {
            Ok(inner) => return Ok(inner),
            Err(error) if Instant::now() > deadline => {
                log::warn!("the handlers of the dashboard cannot be reached: {error}");
                return Err(head::UNAVAILABLE);
            }
            Err(_) => Timer::after(ACCEPT_PAUSE).await,
        };
    }
}

async fn send(
    inner: &mut UnixStream,
    head: &Head,
    body: Vec<u8>,
    from: IpAddr,
    privacy: &str,
) -> io::Result<()> {
    let mut text = format!("{} {} HTTP/1.1\r\nConnection: close\r\n", head.method, head.target);
    for (name, value) in &head.passed {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    text.push_str(&format!("{CLIENT_HEADER}: {from}\r\n{PRIVATE_HEADER}: {privacy}\r\n"));
    text.push_str(&format!("Content-Length: {}\r\n\r\n", body.len()));
    within(SEND_WAIT, async {
        inner.write_all(text.as_bytes()).await?;
        inner.write_all(&body).await
    })
    .await
}

/// What is left of the body of an answer.
#[derive(Debug, PartialEq, Eq)]
enum Left {
    /// So many bytes.
    Bytes(u64),
    /// Chunks; so many bytes of this one. The first has no end of another before it.
    Chunks { bytes: u64, is_first: bool },
    /// Whatever comes until the handler closes.
    Open,
    /// Nothing.
    None,
}

/// An answer of the handlers.
struct Answer {
    inner: BufReader<UnixStream>,
    /// Status line and the headers that pass.
    head: Vec<u8>,
    /// `Content-Length`, which `HEAD` and `304` may have without a body.
    length: Option<u64>,
    left: Left,
}

impl Answer {
    async fn read(inner: UnixStream, request: &Head) -> Result<Self, Refusal> {
        let mut inner = BufReader::with_capacity(PIECE_BYTES, inner);
        let bytes = match within(ANSWER_WAIT, read_answer_head(&mut inner)).await {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::TimedOut => return Err(head::NO_ANSWER),
            Err(_) => return Err(head::UNAVAILABLE),
        };
        let mut headers = [httparse::EMPTY_HEADER; ANSWER_HEADERS_MAX];
        let mut answer = httparse::Response::new(&mut headers);
        let is_whole = matches!(answer.parse(&bytes), Ok(httparse::Status::Complete(_)));
        let status = answer.code.filter(|status| is_whole && (200..600).contains(status));
        let status = status.ok_or(head::UNAVAILABLE)?;

        let mut head = format!("HTTP/1.1 {status} {}\r\n", answer.reason.unwrap_or_default()).into_bytes();
        let (mut length, mut is_chunked, mut has_type) = (None, false, false);
        for header in answer.headers.iter() {
            let is = |name: &str| header.name.eq_ignore_ascii_case(name);
            has_type |= is("Content-Type");
            if is("Content-Length") {
                length = std::str::from_utf8(header.value).ok().and_then(|text| text.parse().ok());
            }
            is_chunked |= is("Transfer-Encoding");
            if NOT_PASSED.iter().any(|name| is(name)) || is("Cache-Control") {
                continue;
            }
            head.extend_from_slice(header.name.as_bytes());
            head.extend_from_slice(b": ");
            head.extend_from_slice(header.value);
            head.extend_from_slice(b"\r\n");
        }
        // tiny_http's own answer for a request that its handler dropped.
        if status == 500 && !has_type {
            return Err(head::UNAVAILABLE);
        }
        head.extend_from_slice(SECURITY.as_bytes());
        head.extend_from_slice(DATA_POLICY.as_bytes());
        let left = match length {
            _ if request.method == "HEAD" || [204, 304].contains(&status) => Left::None,
            _ if is_chunked => Left::Chunks { bytes: 0, is_first: true },
            Some(length) => Left::Bytes(length),
            None => Left::Open,
        };
        let is_bare = [204, 304].contains(&status);
        Ok(Self { inner, head, length: length.filter(|_| !is_chunked && !is_bare), left })
    }

    /// Writes the answer as the client can read it. True if another request may follow.
    async fn write(
        &mut self,
        client: &mut Accepted,
        request: &Head,
        keep_alive: bool,
        turn: SemaphoreGuard<'_>,
    ) -> Result<bool, Failure> {
        let chunks = !request.is_old && matches!(self.left, Left::Chunks { .. } | Left::Open);
        let keep_alive = keep_alive && (chunks || matches!(self.left, Left::Bytes(_) | Left::None));
        match self.length {
            Some(length) => self.head.extend_from_slice(format!("Content-Length: {length}\r\n").as_bytes()),
            None if chunks => self.head.extend_from_slice(b"Transfer-Encoding: chunked\r\n"),
            None => {}
        }
        if !keep_alive {
            self.head.extend_from_slice(b"Connection: close\r\n");
        }
        self.head.extend_from_slice(b"\r\n");
        let mut turn = Some(turn);
        let mut out = std::mem::take(&mut self.head);
        loop {
            let piece = within(ANSWER_WAIT, self.piece()).await?;
            let length = piece.len();
            if chunks {
                out.extend_from_slice(format!("{length:x}\r\n").as_bytes());
                out.extend_from_slice(piece);
                out.extend_from_slice(b"\r\n");
            } else {
                out.extend_from_slice(piece);
            }
            self.taken(length);
            let is_over = length == 0 || self.left == Left::Bytes(0);
            if is_over {
                // The handler is done, so a slow client keeps nobody waiting any more.
                drop(turn.take());
            } else if matches!(self.left, Left::Bytes(_)) && out.len() < PIECE_BYTES {
                continue;
            }
            within(WRITE_WAIT, put(client, &out)).await?;
            out.clear();
            if is_over {
                return Ok(keep_alive);
            }
        }
    }

    /// The next bytes of the body, empty at its end. `taken` says how many of them were used.
    async fn piece(&mut self) -> io::Result<&[u8]> {
        if let Left::Chunks { bytes: 0, is_first } = self.left {
            if !is_first {
                self.expect_line(b"\r\n").await?;
            }
            let bytes = self.chunk_size().await?;
            if bytes == 0 {
                self.expect_line(b"\r\n").await?;
            }
            self.left = if bytes == 0 { Left::None } else { Left::Chunks { bytes, is_first: false } };
        }
        let max = match self.left {
            Left::None | Left::Bytes(0) => return Ok(&[]),
            Left::Bytes(bytes) | Left::Chunks { bytes, .. } => bytes,
            Left::Open => u64::MAX,
        };
        let is_open = self.left == Left::Open;
        let bytes = self.inner.fill_buf().await?;
        if bytes.is_empty() && !is_open {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(&bytes[..bytes.len().min(usize::try_from(max).unwrap_or(usize::MAX))])
    }

    fn taken(&mut self, length: usize) {
        self.inner.consume(length);
        match &mut self.left {
            Left::Bytes(bytes) | Left::Chunks { bytes, .. } => *bytes = bytes.saturating_sub(length as u64),
            Left::Open | Left::None => {}
        }
    }

    async fn expect_line(&mut self, line: &[u8]) -> io::Result<()> {
        let mut found = [0; 2];
        self.inner.read_exact(&mut found).await?;
        if found == line { Ok(()) } else { Err(io::ErrorKind::InvalidData.into()) }
    }

    async fn chunk_size(&mut self) -> io::Result<u64> {
        let mut digits = String::new();
        loop {
            let mut byte = [0];
            self.inner.read_exact(&mut byte).await?;
            match byte[0] {
                digit if digit.is_ascii_hexdigit() && digits.len() < 15 => digits.push(char::from(digit)),
                b'\r' => break,
                _ => return Err(io::ErrorKind::InvalidData.into()),
            }
        }
        let mut end = [0];
        self.inner.read_exact(&mut end).await?;
        let size = u64::from_str_radix(&digits, 16).ok().filter(|_| end == *b"\n");
        size.ok_or(io::ErrorKind::InvalidData.into())
    }
}

async fn read_answer_head(inner: &mut BufReader<UnixStream>) -> io::Result<Vec<u8>> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() >= ANSWER_HEAD_BYTES_MAX {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let bytes = inner.fill_buf().await?;
        if bytes.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let end = bytes.iter().position(|&byte| byte == b'\n').map_or(bytes.len(), |at| at + 1);
        head.extend_from_slice(&bytes[..end]);
        inner.consume(end);
    }
    Ok(head)
}

fn refusal_answer(refusal: &Refusal, is_head: bool) -> Vec<u8> {
    let body = error_json(refusal.code, refusal.message, refusal.hint);
    let reason = tiny_http::StatusCode(refusal.status).default_reason_phrase();
    let retry = if refusal.status == 503 { "Retry-After: 1\r\n" } else { "" };
    let allow = if refusal.status == 405 { "Allow: GET, HEAD, POST, PUT, PATCH, DELETE\r\n" } else { "" };
    let mut answer = format!(
        "HTTP/1.1 {} {reason}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
         Connection: close\r\n{retry}{allow}{SECURITY}{DATA_POLICY}\r\n",
        refusal.status,
        body.len(),
    );
    if !is_head {
        answer.push_str(&body);
    }
    answer.into_bytes()
}

/// Says why and closes: what follows a refused request cannot be trusted to begin where it seems to.
async fn refuse(client: &mut Accepted, refusal: &Refusal, is_head: bool) {
    log::debug!("a request was refused: {} {}", refusal.status, refusal.code);
    let answer = refusal_answer(refusal, is_head);
    if within(WRITE_WAIT, put(client, &answer)).await.is_ok() {
        farewell(client).await;
    }
}

/// Closes so that the last answer arrives: a close with unread bytes would be a reset, which discards it.
async fn farewell(client: &mut Accepted) {
    if within(FAREWELL_WAIT, client.close()).await.is_err() {
        return;
    }
    let drain = async {
        let mut piece = [0; 4096];
        let mut bytes = 0;
        while bytes < FAREWELL_BYTES_MAX {
            match client.read(&mut piece).await? {
                0 => break,
                length => bytes += length,
            }
        }
        Ok(())
    };
    let _ = within(FAREWELL_WAIT, drain).await;
}

/// Closes with a reset: an answer that ends with the connection must not look whole.
fn break_off(client: &Accepted) {
    let _ = rustix::net::sockopt::set_socket_linger(client.tcp(), Some(Duration::ZERO));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn connections_are_capped_by_address_and_in_all() {
        let mut places = Places::default();
        let entered = |places: &mut Places, text: &str, tries: usize| {
            (0..tries).filter(|_| places.enter(address(text))).count()
        };
        assert_eq!(entered(&mut places, "10.0.0.1", 20), 16);
        assert_eq!(entered(&mut places, "::ffff:10.0.0.1", 1), 0);
        assert_eq!(entered(&mut places, "2001:db8::1", 10), 10);
        assert_eq!(entered(&mut places, "2001:db8::2", 10), 6);
        let strangers: usize = (2..30).map(|n| entered(&mut places, &format!("10.0.0.{n}"), 8)).sum();
        assert_eq!(16 + 16 + strangers, CONNECTIONS_REMOTE_MAX);
        assert_eq!(entered(&mut places, "127.0.0.1", 100), CONNECTIONS_MAX - CONNECTIONS_REMOTE_MAX);
        places.leave(address("10.0.0.1"));
        assert!(places.enter(address("10.9.9.9")) && !places.enter(address("10.9.9.9")));
    }

    #[test]
    fn machine_itself_has_more_places_and_leaves_none_behind() {
        let mut places = Places::default();
        for _ in 0..3 {
            let entered = (0..100).filter(|_| places.enter(address("::1"))).count();
            assert_eq!(entered, CONNECTIONS_LOOPBACK_MAX);
            (0..entered).for_each(|_| places.leave(address("::1")));
        }
        places.leave(address("::1"));
        assert!(places.by_address.is_empty() && places.local == 0 && places.remote == 0);
    }

    #[test]
    fn refusal_is_json_with_every_security_header() {
        let text = String::from_utf8(refusal_answer(&head::TOO_SLOW, false)).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(
            head.starts_with("HTTP/1.1 408 Request Timeout\r\n") && body.contains("\"code\":\"too_slow\"")
        );
        for header in ["nosniff", "default-src 'none'", "frame-ancestors 'none'", "no-referrer", "no-store"] {
            assert!(head.contains(header), "{header}");
        }
        assert!(!text.contains("\n "), "no folded lines");
        assert!(refusal_answer(&head::TOO_SLOW, true).ends_with(b"\r\n\r\n"));
    }
}

//! The handlers behind the front door: tiny_http on a Unix socket, which nobody but the door reaches.
//!
//! tiny_http's accept loop ends for ever when descriptors run out, so one thread watches it and builds it anew.
//! Each request gets a thread for as long as it lasts, at most as many as the door lets through; idle there is none.
//!
//! Promise: an answer that was broken off never looks whole.

use std::io::{self, Cursor, Read, Write};
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::RecvTimeoutError;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use miniserde::{Deserialize, Serialize, json};
use smol::channel::{Receiver, Sender, TrySendError};
use smol::future::FutureExt;
use tiny_http::{Header, Request, Response, Server, StatusCode};

use crate::dashboard::api::{ApiRequest, ApiResponse, Body, Call, Method, Reply, Session, Via, read_target};
use crate::dashboard::auth::{Auth, Denied, Proof, SessionView, Visitor};

/// Requests handled at once; the door lets no more through.
pub(crate) const HANDLERS_MAX: usize = 16;
/// Streamed answers at once, so that slow readers leave handlers for the others.
const STREAMS_MAX: usize = 10;
/// Stack of a handler.
const HANDLER_STACK_BYTES: usize = 256 * 1024;
/// How long the cell may take for an answer, or for the next piece of a streamed one.
pub(crate) const REPLY_WAIT: Duration = Duration::from_secs(120);
/// Pause before tiny_http is built anew.
const REBUILD_PAUSE: Duration = Duration::from_millis(200);
/// The header in which the door names the client's address.
pub(crate) const CLIENT_HEADER: &str = "X-Grove-Client";
/// The header in which the door says whether nobody on the way can read along.
pub(crate) const PRIVATE_HEADER: &str = "X-Grove-Private";
/// It came over TLS; it came from this machine; anybody on the way can read along.
pub(crate) const PRIVATE_TLS: &str = "tls";
pub(crate) const PRIVATE_HERE: &str = "here";
pub(crate) const PRIVATE_NOT: &str = "no";

/// What the handlers share.
pub(crate) struct Context {
    /// Who may.
    pub auth: Arc<Auth>,
    /// To the cell.
    pub calls: Sender<Call>,
    /// The cell's name.
    pub name: String,
    /// SHA-256 of the certificate, if TLS is spoken.
    pub fingerprint: Option<[u8; 32]>,
    /// Nothing was done with the cell yet.
    pub fresh: Arc<AtomicBool>,
    /// Most bytes of a body.
    pub body_bytes_max: usize,
    /// Requests being handled, and streamed answers among them.
    pub running: AtomicUsize,
    /// Streamed answers.
    pub streaming: AtomicUsize,
}

/// The running handlers. Dropping stops them without waiting.
pub(crate) struct Handlers {
    watched: Arc<Watched>,
    ended: Receiver<()>,
}

#[derive(Default)]
struct Watched {
    stopping: AtomicBool,
    server: Mutex<Option<Arc<Server>>>,
}

impl Handlers {
    /// Listens at `socket`, where nothing else may.
    pub(crate) fn start(socket: &Path, context: Context) -> io::Result<Self> {
        let first = listen(socket)?;
        let watched = Arc::new(Watched::default());
        let (alive, ended) = smol::channel::bounded::<()>(1);
        let (socket, context, inner) = (socket.to_owned(), Arc::new(context), Arc::clone(&watched));
        thread::Builder::new().name("dashboard".to_owned()).stack_size(HANDLER_STACK_BYTES).spawn(
            move || {
                watch(first, &socket, &context, &inner);
                drop(alive);
            },
        )?;
        Ok(Self { watched, ended })
    }

    /// Tells the watching thread to end.
    pub(crate) fn signal(&self) {
        self.watched.stopping.store(true, Ordering::SeqCst);
        if let Some(server) = &*self.watched.server() {
            server.unblock();
        }
    }

    /// Closes when the watching thread has ended and the socket is gone.
    pub(crate) fn ended(&self) -> Receiver<()> {
        self.ended.clone()
    }
}

impl Drop for Handlers {
    fn drop(&mut self) {
        self.signal();
    }
}

impl Watched {
    fn server(&self) -> std::sync::MutexGuard<'_, Option<Arc<Server>>> {
        self.server.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }
}

fn listen(socket: &Path) -> io::Result<Server> {
    match std::fs::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    Server::http_unix(socket).map_err(io::Error::other)
}

fn watch(first: Server, socket: &Path, context: &Arc<Context>, watched: &Watched) {
    let mut server = Arc::new(first);
    loop {
        *watched.server() = Some(Arc::clone(&server));
        while !watched.is_stopping() {
            match server.recv() {
                Ok(request) => dispatch(request, context),
                Err(error) => {
                    if !watched.is_stopping() {
                        log::warn!("the dashboard's inner socket failed and is opened anew: {error}");
                    }
                    break;
                }
            }
        }
        *watched.server() = None;
        drop(server);
        server = loop {
            if watched.is_stopping() {
                return;
            }
            thread::sleep(REBUILD_PAUSE);
            match listen(socket) {
                Ok(server) => break Arc::new(server),
                Err(error) => log::warn!("the dashboard's inner socket cannot be opened: {error}"),
            }
        };
    }
}

/// Counts itself in and out.
struct Count(Arc<Context>, fn(&Context) -> &AtomicUsize);

impl Count {
    fn take(context: &Arc<Context>, counter: fn(&Context) -> &AtomicUsize, max: usize) -> Option<Self> {
        let count = Self(Arc::clone(context), counter);
        (counter(context).fetch_add(1, Ordering::SeqCst) < max).then_some(count)
    }
}

impl Drop for Count {
    fn drop(&mut self) {
        (self.1)(&self.0).fetch_sub(1, Ordering::SeqCst);
    }
}

fn dispatch(request: Request, context: &Arc<Context>) {
    let Some(count) = Count::take(context, |context| &context.running, HANDLERS_MAX) else {
        return write_answer(request, busy(), context);
    };
    let context = Arc::clone(context);
    let handler = thread::Builder::new().name("request".to_owned()).stack_size(HANDLER_STACK_BYTES);
    // Without a thread the request is dropped, which tiny_http answers with 500.
    let spawned = handler.spawn(move || {
        handle(request, &context);
        drop(count);
    });
    if let Err(error) = spawned {
        log::warn!("no thread for a request: {error}");
    }
}

fn handle(mut request: Request, context: &Arc<Context>) {
    let is_head = *request.method() == tiny_http::Method::Head;
    let is_get = is_head || *request.method() == tiny_http::Method::Get;
    let response = answer(&mut request, is_get, context).unwrap_or_else(|response| response);
    write_answer(request, response, context);
}

/// The answer to what is not a page; `Err` where it was not asked of the cell.
fn answer(request: &mut Request, is_get: bool, context: &Context) -> Result<ApiResponse, ApiResponse> {
    let bad = |why: &str| ApiResponse::error(400, "bad_request", why, "");
    let method = if is_get { Some(Method::Get) } else { Method::from_name(request.method().as_str()) };
    let method = method.ok_or_else(|| bad("This method is not known here."))?;
    let (path, query) = read_target(request.url()).map_err(|error| bad(error.0))?;
    let client = header(request, CLIENT_HEADER).and_then(|text| text.parse().ok());
    let client = client.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
    let cookie = header(request, "Cookie").map(str::to_owned);
    let proof = context.auth.check(header(request, "Authorization"), cookie.as_deref(), Instant::now());
    let content_type = header(request, "Content-Type").map(str::to_owned);
    let owned = |name| header(request, name).map(str::to_owned);
    let (range, if_range) = (owned("Range"), owned("If-Range"));
    let if_none_match = owned("If-None-Match");
    let is_private = header(request, PRIVATE_HEADER).is_some_and(|how| how != PRIVATE_NOT);
    let via = match proof {
        Some(Proof::Secret) => Via::Secret,
        Some(Proof::Session) => Via::Session,
        None => Via::Nothing,
    };

    let body = read_body(request, context.body_bytes_max)?;
    let words: Vec<&[u8]> = path.iter().map(Vec::as_slice).collect();
    if let [b"api", b"v1", rest @ ..] = &words[..] {
        if let Some(place) = Place::of(rest) {
            let agent = header(request, "User-Agent").unwrap_or_default().to_owned();
            let is_tls = header(request, PRIVATE_HEADER) == Some(PRIVATE_TLS);
            let who = Visitor { from: client, agent, is_tls };
            return Visit { context, proof, who, is_private, cookie: cookie.as_deref() }
                .answer(method, place, &body);
        }
    }
    if proof.is_none() && words != [b"healthz"] {
        return Err(unauthorized());
    }
    let is_head = *request.method() == tiny_http::Method::Head;
    let request = ApiRequest {
        method,
        is_head,
        path,
        query,
        content_type,
        range,
        if_range,
        if_none_match,
        body,
        authorized: proof.is_some(),
        via,
        is_private,
        is_direct: false,
        client,
    };
    ask(context, request)
}

pub(crate) fn unauthorized() -> ApiResponse {
    let hint = "Sign in on the dashboard, or send the cell's secret as `Authorization: Bearer …`.";
    ApiResponse::error(401, "unauthorized", "This needs signing in.", hint)
        .with_header("WWW-Authenticate", "Bearer")
}

fn busy() -> ApiResponse {
    ApiResponse::error(503, "busy", "The cell is busy with other requests.", "Try again in a moment.")
        .with_header("Retry-After", "1")
}

/// Hands the request to the cell and waits for its answer.
fn ask(context: &Context, request: ApiRequest) -> Result<ApiResponse, ApiResponse> {
    let stopping =
        || ApiResponse::error(503, "stopping", "The cell is stopping.", "").with_header("Retry-After", "5");
    let (reply, answer) = Reply::new();
    context.calls.try_send(Call { request, reply }).map_err(|error| match error {
        TrySendError::Full(_) => busy(),
        TrySendError::Closed(_) => stopping(),
    })?;
    answer.recv_timeout(REPLY_WAIT).map_err(|error| match error {
        RecvTimeoutError::Disconnected => stopping(),
        RecvTimeoutError::Timeout => {
            let hint = "It may still be at work; ask for its status.";
            ApiResponse::error(504, "no_answer", "The cell did not answer in time.", hint)
        }
    })
}

fn header<'a>(request: &'a Request, name: &'static str) -> Option<&'a str> {
    request.headers().iter().find(|header| header.field.equiv(name)).map(|header| header.value.as_str())
}

fn read_body(request: &mut Request, max: usize) -> Result<Vec<u8>, ApiResponse> {
    let length = request.body_length().unwrap_or(0);
    let whole = || ApiResponse::error(400, "bad_request", "The body did not arrive whole.", "");
    if length > max {
        return Err(whole());
    }
    let mut body = Vec::with_capacity(length);
    request.as_reader().take(length as u64).read_to_end(&mut body).map_err(|_| whole())?;
    if body.len() == length { Ok(body) } else { Err(whole()) }
}

#[derive(Deserialize)]
struct SignIn {
    password: String,
    totp: Option<String>,
}

#[derive(Deserialize)]
struct SetUp {
    code: String,
    password: String,
}

#[derive(Deserialize)]
struct NewPassword {
    current: Option<String>,
    password: String,
}

#[derive(Deserialize)]
struct Revoke {
    id: Option<String>,
    others: Option<bool>,
}

#[derive(Deserialize)]
struct Code {
    code: String,
}

#[derive(Deserialize)]
struct Password {
    password: Option<String>,
}

#[derive(Serialize)]
struct Sessions {
    sessions: Vec<OneSession>,
}

#[derive(Serialize)]
struct OneSession {
    id: String,
    created_unix: i64,
    used_unix: i64,
    from: String,
    agent: String,
    current: bool,
}

#[derive(Serialize)]
struct NewTotp {
    secret: String,
    uri: String,
}

/// What the dashboard answers itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    Session,
    Setup,
    Login,
    Logout,
    Password,
    Sessions,
    Revoke,
    TotpBegin,
    TotpConfirm,
    TotpRemove,
}

impl Place {
    /// All, with the words after `/api/v1` and their methods.
    pub(crate) const ALL: [(&'static [&'static str], Method, Self); 10] = [
        (&["session"], Method::Get, Self::Session),
        (&["setup"], Method::Post, Self::Setup),
        (&["login"], Method::Post, Self::Login),
        (&["logout"], Method::Post, Self::Logout),
        (&["password"], Method::Post, Self::Password),
        (&["sessions"], Method::Get, Self::Sessions),
        (&["sessions", "revoke"], Method::Post, Self::Revoke),
        (&["totp", "begin"], Method::Post, Self::TotpBegin),
        (&["totp", "confirm"], Method::Post, Self::TotpConfirm),
        (&["totp", "remove"], Method::Post, Self::TotpRemove),
    ];

    fn of(words: &[&[u8]]) -> Option<(Self, Method)> {
        let is_same = |known: &[&str]| {
            known.len() == words.len() && known.iter().zip(words).all(|(a, b)| a.as_bytes() == *b)
        };
        Self::ALL.iter().find(|(known, ..)| is_same(known)).map(|(_, method, place)| (*place, *method))
    }
}

/// Somebody at the entrance.
struct Visit<'a> {
    context: &'a Context,
    proof: Option<Proof>,
    who: Visitor,
    is_private: bool,
    cookie: Option<&'a str>,
}

impl Visit<'_> {
    fn answer(
        &self,
        method: Method,
        place: (Place, Method),
        body: &[u8],
    ) -> Result<ApiResponse, ApiResponse> {
        let (place, its_method) = place;
        if method != its_method {
            return Err(ApiResponse::error(
                405,
                "bad_method",
                "This is not done with what is at this path.",
                "",
            ));
        }
        let auth = &self.context.auth;
        let now = Instant::now();
        let from = self.who.from;
        let with_cookie = |cookie: String| ApiResponse::ok().with_header("Set-Cookie", &cookie);
        let proven = || self.proof.ok_or_else(unauthorized);
        match place {
            Place::Session => Ok(ApiResponse::json(
                200,
                &Session {
                    name: self.context.name.clone(),
                    set_up: auth.is_set_up(),
                    signed_in: self.proof.is_some(),
                    totp: auth.has_totp(),
                    secure: self.is_private,
                    fingerprint: self
                        .context
                        .fingerprint
                        .as_ref()
                        .map(super::fingerprint_text)
                        .unwrap_or_default(),
                    version: env!("CARGO_PKG_VERSION").to_owned(),
                    fresh: self.proof.is_some() && self.context.fresh.load(Ordering::Relaxed),
                },
            )),
            Place::Login => {
                let asked: SignIn = read_json(body)?;
                let cookie = auth.sign_in(&asked.password, asked.totp.as_deref(), &self.who, now);
                cookie.map(with_cookie).map_err(denied)
            }
            Place::Setup => {
                let asked: SetUp = read_json(body)?;
                let cookie = auth.set_up(&asked.code, &asked.password, &self.who, now);
                cookie.map(with_cookie).map_err(denied)
            }
            Place::Logout => Ok(with_cookie(auth.sign_out(self.cookie, self.who.is_tls, now))),
            Place::Password => {
                let proof = proven()?;
                let asked: NewPassword = read_json(body)?;
                auth.change_password(proof, asked.current.as_deref(), &asked.password, from, now)
                    .map(|()| ApiResponse::ok())
                    .map_err(denied)
            }
            Place::Sessions => {
                proven()?;
                let one = |view: SessionView| OneSession {
                    id: view.id,
                    created_unix: view.created_unix,
                    used_unix: view.used_unix,
                    from: view.from,
                    agent: view.agent,
                    current: view.is_current,
                };
                let sessions = auth.sessions(self.cookie, now).into_iter().map(one).collect();
                Ok(ApiResponse::json(200, &Sessions { sessions }))
            }
            Place::Revoke => {
                proven()?;
                let asked: Revoke = read_json(body)?;
                let ended = match (&asked.id, asked.others) {
                    (Some(id), _) => auth.revoke(Some(id), self.cookie, now),
                    (None, Some(true)) => auth.revoke(None, self.cookie, now),
                    _ => {
                        let why = "Name a session by \"id\", or say \"others\".";
                        return Err(ApiResponse::error(400, "bad_request", why, ""));
                    }
                };
                match (asked.id, ended) {
                    (Some(_), 0) => {
                        Err(ApiResponse::error(404, "not_found", "There is no such session.", ""))
                    }
                    _ => Ok(ApiResponse::ok()),
                }
            }
            Place::TotpBegin => {
                proven()?;
                let secret = super::totp::base32(&auth.begin_totp(now));
                let name = super::api::percent_encode(self.context.name.as_bytes());
                let uri = format!("otpauth://totp/Grove:{name}?secret={secret}&issuer=Grove");
                Ok(ApiResponse::json(200, &NewTotp { secret, uri }))
            }
            Place::TotpConfirm => {
                proven()?;
                let asked: Code = read_json(body)?;
                auth.confirm_totp(&asked.code, from, now).map(|()| ApiResponse::ok()).map_err(denied)
            }
            Place::TotpRemove => {
                let proof = proven()?;
                let asked: Password =
                    if body.is_empty() { Password { password: None } } else { read_json(body)? };
                auth.remove_totp(proof, asked.password.as_deref(), from, now)
                    .map(|()| ApiResponse::ok())
                    .map_err(denied)
            }
        }
    }
}

fn read_json<T: Deserialize>(body: &[u8]) -> Result<T, ApiResponse> {
    let text = std::str::from_utf8(body).ok();
    text.and_then(|text| json::from_str(text).ok()).ok_or_else(|| {
        ApiResponse::error(400, "bad_json", "The body is not the JSON that is expected here.", "")
    })
}

fn denied(denied: Denied) -> ApiResponse {
    let response = ApiResponse::error(denied.status(), denied.code(), &denied.to_string(), denied.hint());
    match denied.retry_after_s() {
        Some(seconds) => response.with_header("Retry-After", &seconds.to_string()),
        None => response,
    }
}

/// A header that is one line of visible ASCII; anything else could become more than one header.
fn checked_header(name: &str, value: &str) -> Option<Header> {
    if is_plain_header(name, value) { Header::from_bytes(name, value).ok() } else { None }
}

/// See `checked_header`.
pub(crate) fn is_plain_header(name: &str, value: &str) -> bool {
    let name_is_fine = !name.is_empty() && name.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-');
    let value_is_fine = value.bytes().all(|c| c.is_ascii_graphic() || c == b' ');
    if !name_is_fine || !value_is_fine {
        log::warn!("the header {name:?} of an answer is not plain text and is left out");
    }
    name_is_fine && value_is_fine
}

/// Not the cell's to set.
pub(crate) fn is_framing(name: &str) -> bool {
    let framing = ["Connection", "Content-Length", "Content-Type", "Transfer-Encoding", "Trailer", "Upgrade"];
    framing.iter().any(|framing| framing.eq_ignore_ascii_case(name))
}

fn write_answer(request: Request, response: ApiResponse, context: &Arc<Context>) {
    let status = if (200..600).contains(&response.status) { response.status } else { 500 };
    let mut headers: Vec<Header> =
        checked_header("Content-Type", &response.content_type).into_iter().collect();
    let more = response.headers.iter().filter(|(name, _)| !is_framing(name));
    headers.extend(more.filter_map(|(name, value)| checked_header(name, value)));
    match response.body {
        Body::Bytes(bytes) => {
            let length = Some(bytes.len());
            let response = Response::new(StatusCode(status), headers, Cursor::new(bytes), length, None);
            let _ = request.respond(response.with_chunked_threshold(usize::MAX));
        }
        Body::Stream { length, receiver } => {
            let Some(count) = Count::take(context, |context| &context.streaming, STREAMS_MAX) else {
                return write_answer(request, busy(), context);
            };
            let is_head = *request.method() == tiny_http::Method::Head;
            // tiny_http would end a broken stream as if it were whole, so it is framed here.
            let mut writer = request.into_writer();
            if let Err(error) = write_stream(&mut writer, status, &headers, length, &receiver, is_head) {
                log::debug!("a streamed answer was broken off: {error}");
            }
            drop(count);
        }
        Body::File(_) => {
            log::error!("a part of a file was answered where only the door could send it");
            write_answer(
                request,
                ApiResponse::error(500, "failed", "This answer could not be sent.", ""),
                context,
            );
        }
    }
}

fn write_stream(
    writer: &mut dyn Write,
    status: u16,
    headers: &[Header],
    length: Option<u64>,
    pieces: &Receiver<io::Result<Vec<u8>>>,
    is_head: bool,
) -> io::Result<()> {
    write!(writer, "HTTP/1.1 {status} {}\r\n", StatusCode(status).default_reason_phrase())?;
    for header in headers {
        write!(writer, "{}: {}\r\n", header.field, header.value)?;
    }
    match length {
        Some(length) => write!(writer, "Content-Length: {length}\r\n\r\n")?,
        None => writer.write_all(b"Transfer-Encoding: chunked\r\n\r\n")?,
    }
    if is_head || [204, 304].contains(&status) {
        return writer.flush();
    }
    let mut left = length;
    while let Some(piece) = next_piece(pieces)? {
        if piece.is_empty() {
            continue;
        }
        match &mut left {
            Some(left) => {
                *left = left.checked_sub(piece.len() as u64).ok_or(io::ErrorKind::InvalidData)?;
                writer.write_all(&piece)?;
            }
            None => {
                write!(writer, "{:x}\r\n", piece.len())?;
                writer.write_all(&piece)?;
                writer.write_all(b"\r\n")?;
            }
        }
        writer.flush()?;
    }
    match left {
        None => writer.write_all(b"0\r\n\r\n")?,
        Some(0) => {}
        Some(_) => return Err(io::ErrorKind::UnexpectedEof.into()),
    }
    writer.flush()
}

fn next_piece(pieces: &Receiver<io::Result<Vec<u8>>>) -> io::Result<Option<Vec<u8>>> {
    if let Ok(piece) = pieces.try_recv() {
        return piece.map(Some);
    }
    let late = async {
        smol::Timer::after(REPLY_WAIT).await;
        Some(Err(io::ErrorKind::TimedOut.into()))
    };
    smol::block_on(async { pieces.recv().await.ok() }.or(late)).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::hex;

    fn stream(length: Option<u64>, pieces: Vec<io::Result<Vec<u8>>>) -> (String, bool) {
        let (sender, receiver) = smol::channel::unbounded();
        pieces.into_iter().for_each(|piece| sender.try_send(piece).unwrap());
        drop(sender);
        let mut written = Vec::new();
        let result = write_stream(&mut written, 200, &[], length, &receiver, false);
        let text = String::from_utf8(written).unwrap();
        (text.split_once("\r\n\r\n").unwrap().1.to_owned(), result.is_ok())
    }

    #[test]
    fn stream_of_unknown_length_ends_only_when_whole() {
        let piece = || Ok(b"hello".to_vec());
        assert_eq!(
            stream(None, vec![piece(), Ok(vec![]), piece()]),
            ("5\r\nhello\r\n5\r\nhello\r\n0\r\n\r\n".into(), true)
        );
        let broken = vec![piece(), Err(io::ErrorKind::Other.into())];
        assert_eq!(stream(None, broken), ("5\r\nhello\r\n".into(), false));
    }

    #[test]
    fn stream_of_known_length_is_never_longer_or_whole_when_shorter() {
        let piece = || Ok(b"hello".to_vec());
        assert_eq!(stream(Some(10), vec![piece(), piece()]), ("hellohello".into(), true));
        assert_eq!(stream(Some(9), vec![piece(), piece()]), ("hello".into(), false));
        assert_eq!(stream(Some(11), vec![piece(), piece()]), ("hellohello".into(), false));
        assert_eq!(stream(Some(0), vec![]), (String::new(), true));
    }

    #[test]
    fn tiny_http_is_built_anew_when_it_gives_up() {
        let folder = std::env::temp_dir().join(format!("grove-anew-{}", hex(&crate::keys::random::<8>())));
        std::fs::create_dir(&folder).unwrap();
        let (calls, _asked) = smol::channel::bounded(1);
        let secret = "0123456789abcdef0123456789abcdef";
        let context = Context {
            auth: Arc::new(Auth::open(&folder.join("auth"), secret, "c").unwrap()),
            calls,
            name: String::new(),
            fingerprint: None,
            fresh: Arc::default(),
            body_bytes_max: 10,
            running: AtomicUsize::new(0),
            streaming: AtomicUsize::new(0),
        };
        let socket = folder.join("s");
        let handlers = Handlers::start(&socket, context).unwrap();
        let page = || -> io::Result<String> {
            let mut stream = std::os::unix::net::UnixStream::connect(&socket)?;
            stream.set_read_timeout(Some(Duration::from_secs(60)))?;
            stream.write_all(b"GET /api/v1/session HTTP/1.1\r\nConnection: close\r\n\r\n")?;
            let mut text = String::new();
            stream.read_to_string(&mut text).map(|_| text)
        };
        for _ in 0..3 {
            let server = loop {
                if let Some(server) = &*handlers.watched.server() {
                    break Arc::downgrade(server);
                }
                thread::sleep(Duration::from_millis(5));
            };
            assert!(page().unwrap().starts_with("HTTP/1.1 200"));
            // The same error as when its accept loop ends.
            if let Some(server) = server.upgrade() {
                server.unblock();
            }
            while server.upgrade().is_some() {
                thread::sleep(Duration::from_millis(5));
            }
        }
        handlers.signal();
        let _ = handlers.ended().recv_blocking();
        assert!(!socket.exists());
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn header_that_could_become_two_is_left_out() {
        assert!(checked_header("X-Name", "a b;c=\"d\"").is_some());
        for (name, value) in [("X", "a\r\nSet-Cookie: b"), ("X: y", "a"), ("", "a"), ("X", "é"), ("X\n", "a")]
        {
            assert!(checked_header(name, value).is_none(), "{name:?} {value:?}");
        }
    }
}

//! The whole way of a request, over real sockets: what strangers try, and what owners do.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};

use super::api::{ApiResponse, Body, Method, percent_encode};
use super::*;
use crate::cli::client::{Client, ClientError};
use crate::id::hex;
use crate::keys::random;

const SECRET: &str = "00112233445566778899aabbccddeeff";
const MIB: usize = 1024 * 1024;
const PIECE: usize = 64 * 1024;
/// How long anything may take on a busy machine.
const DEADLINE: Duration = Duration::from_secs(120);
/// What is cut after five seconds is cut by then.
const CUT_WITHIN: Duration = Duration::from_secs(9);
/// A stop waits for no client.
const STOPPED_WITHIN: Duration = Duration::from_secs(1);

/// A cell that answers a few questions, on its own thread.
struct Cell {
    port: u16,
    code: Option<String>,
    folder: PathBuf,
    /// Bytes that were handed to streams.
    produced: Arc<AtomicU64>,
    stop: Option<smol::channel::Sender<()>>,
    thread: Option<JoinHandle<Duration>>,
}

impl Cell {
    fn start() -> Self {
        Self::start_with(|_| {})
    }

    fn start_with(change: impl FnOnce(&mut Config)) -> Self {
        let folder = std::env::temp_dir().join(format!("grove-http-{}", hex(&random::<8>())));
        fs::create_dir(&folder).unwrap();
        let mut config = Config {
            listen: vec!["127.0.0.1:0".parse().unwrap()],
            socket_dir: folder.join("run"),
            secret: SECRET.to_owned(),
            auth_file: folder.join("dashboard_auth"),
            name: "Attic".to_owned(),
            hosts: vec!["cell.example.org".to_owned()],
            opened: Vec::new(),
            body_bytes_max: BODY_BYTES_MAX,
            tls_dir: Some(folder.clone()),
            addresses: Vec::new(),
            fresh: Arc::default(),
        };
        change(&mut config);
        let produced = Arc::new(AtomicU64::new(0));
        let (stop, stopped) = smol::channel::bounded::<()>(1);
        let (tell, told) = smol::channel::bounded(1);
        let counter = Arc::clone(&produced);
        let thread = thread::spawn(move || {
            let executor = Rc::new(LocalExecutor::new());
            let inner = Rc::clone(&executor);
            smol::block_on(executor.run(async move {
                let (dashboard, calls) = Dashboard::start(&inner, config).unwrap();
                let (runs, gone) = (Rc::clone(&inner), Arc::clone(&counter));
                dashboard.serve_direct(&["/api/v1/direct", "/v1/"], move |request| {
                    let (runs, gone) = (Rc::clone(&runs), Arc::clone(&gone));
                    Box::pin(async move { answer_directly(request, gone, &runs) })
                });
                dashboard.admit_keys(|hash| *hash == crate::keys::sha256(b"sk-key"));
                tell.send((dashboard.port(), dashboard.setup_code())).await.unwrap();
                let answers = inner.spawn(answer_all(calls, counter, Rc::clone(&inner)));
                let _ = stopped.recv().await;
                let began = Instant::now();
                dashboard.stop().await;
                drop(answers);
                began.elapsed()
            }))
        });
        let (port, code) = told.recv_blocking().unwrap();
        Self { port, code, folder, produced, stop: Some(stop), thread: Some(thread) }
    }

    fn stop(&mut self) -> Duration {
        drop(self.stop.take());
        self.thread.take().unwrap().join().unwrap()
    }

    fn client(&self) -> Client {
        Client::new(self.port, SECRET).with_read_wait(DEADLINE)
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream
    }

    /// Everything that is answered to these bytes until the cell closes.
    fn raw(&self, request: &str) -> String {
        let mut stream = self.connect();
        let _ = stream.write_all(request.as_bytes());
        read_rest(&mut stream)
    }

    /// Status, head and body of the answer to a request with these headers.
    fn ask(&self, line: &str, headers: &str, body: &str) -> (u16, String, String) {
        let host = if headers.contains("Host:") { "" } else { "Host: localhost\r\n" };
        let length =
            if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
        let answer =
            self.raw(&format!("{line} HTTP/1.1\r\n{host}Connection: close\r\n{headers}{length}\r\n{body}"));
        let (head, body) =
            answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer to {line}: {answer:?}"));
        (status(head), head.to_owned(), body.to_owned())
    }

    /// Waits until it answers: until then there may be no free place.
    fn becomes_well(&self) {
        let request = "GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        wait_for("it answers again", || self.raw(request).starts_with("HTTP/1.1 200"));
    }

    fn is_well(&self) {
        assert_eq!(self.ask("GET /healthz", "", "").0, 200);
    }
}

impl Drop for Cell {
    fn drop(&mut self) {
        if self.thread.is_some() {
            self.stop();
        }
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn status(answer: &str) -> u16 {
    answer
        .get(9..12)
        .and_then(|digits| digits.parse().ok())
        .unwrap_or_else(|| panic!("no status: {answer:?}"))
}

fn read_rest(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    let _ = stream.read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

fn authorized(headers: &str) -> String {
    format!("Authorization: Bearer {SECRET}\r\n{headers}")
}

async fn answer_all(calls: Receiver<Call>, produced: Arc<AtomicU64>, executor: Rc<LocalExecutor<'static>>) {
    let mut kept = Vec::new();
    while let Ok(Call { request, reply }) = calls.recv().await {
        let path = request.path_text().join("/");
        let number =
            |name: &str| -> Option<u64> { std::str::from_utf8(request.param(name)?).ok()?.parse().ok() };
        let response = match path.as_str() {
            "healthz" => ApiResponse::ok(),
            "api/v1/stream" => {
                let (pieces, receiver) = smol::channel::bounded(2);
                let bytes = number("bytes").unwrap_or(0);
                let (breaks, produced) = (number("break").is_some(), Arc::clone(&produced));
                let send = async move {
                    for n in 0..bytes / PIECE as u64 {
                        if pieces.send(Ok(vec![n as u8; PIECE])).await.is_err() {
                            return;
                        }
                        produced.fetch_add(PIECE as u64, Ordering::SeqCst);
                    }
                    if breaks {
                        let _ = pieces.send(Err(io::ErrorKind::Other.into())).await;
                    }
                };
                executor.spawn(send).detach();
                ApiResponse::stream(number("length"), receiver)
            }
            "api/v1/large" => {
                let body = Body::Bytes(vec![b'x'; number("bytes").unwrap_or(0) as usize]);
                ApiResponse { status: 200, content_type: "text/plain".into(), headers: vec![], body }
            }
            "api/v1/odd" => ApiResponse::json_text(200, "{}".into())
                .with_header("X-Fine", "yes")
                .with_header("Transfer-Encoding", "chunked")
                .with_header("Content-Length", "7")
                .with_header("Content-Security-Policy", "default-src *")
                .with_header("Cache-Control", "public")
                .with_header("X-Split", "a\r\nSet-Cookie: b"),
            "api/v1/drop" => continue,
            // Until it is told to go on.
            "api/v1/pause" => {
                produced.store(1, Ordering::SeqCst);
                while produced.load(Ordering::SeqCst) == 1 {
                    Timer::after(Duration::from_millis(5)).await;
                }
                ApiResponse::ok()
            }
            "api/v1/keep" => {
                kept.push(reply);
                produced.fetch_add(1, Ordering::SeqCst);
                continue;
            }
            _ => {
                let segments: Vec<String> = request.path.iter().map(|segment| hex(segment)).collect();
                let query: Vec<String> =
                    request.query.iter().map(|(key, value)| format!("{key}={}", hex(value))).collect();
                let told = format!(
                    "{:?} {} ?{} body {} from {} {}",
                    request.method,
                    segments.join("/"),
                    query.join("&"),
                    request.body.len(),
                    request.client,
                    request.authorized,
                );
                let wrong = request.method == Method::Delete;
                match wrong {
                    true => ApiResponse::error(409, "in_use", "It is in use.", "Wait."),
                    false => ApiResponse::json_text(200, told),
                }
            }
        };
        reply.send(response);
    }
}

/// Answers from the door; counts the clients that went away.
fn answer_directly(
    request: super::api::ApiRequest,
    gone: Arc<AtomicU64>,
    executor: &LocalExecutor<'static>,
) -> ApiResponse {
    let word = request.path_text().pop().unwrap_or_default();
    let (pieces, receiver) = smol::channel::bounded::<io::Result<Vec<u8>>>(2);
    match word.as_str() {
        "silent" => {
            let wait = async move {
                pieces.closed().await;
                gone.fetch_add(1, Ordering::SeqCst);
            };
            executor.spawn(wait).detach();
            ApiResponse::stream(None, receiver)
        }
        "pieces" | "broken" => {
            let is_broken = word == "broken";
            let send = async move {
                for n in 0..3 {
                    let _ = pieces.send(Ok(format!("piece {n};").into_bytes())).await;
                }
                if is_broken {
                    let _ = pieces.send(Err(io::ErrorKind::Other.into())).await;
                }
            };
            executor.spawn(send).detach();
            ApiResponse::stream(None, receiver)
        }
        _ => ApiResponse::json_text(
            200,
            format!("{:?} {:?} body {}", request.method, request.via, request.body.len()),
        ),
    }
}

fn read_head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    String::from_utf8(head).unwrap()
}

fn open_silent(cell: &Cell) -> (TcpStream, String) {
    let mut stream = cell.connect();
    let head = format!("GET /api/v1/direct/silent HTTP/1.1\r\nHost: localhost\r\n{}\r\n", authorized(""));
    stream.write_all(head.as_bytes()).unwrap();
    let head = read_head(&mut stream);
    (stream, head)
}

fn wait_for(what: &str, mut is_so: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < DEADLINE, "{what}");
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn direct_stream_says_so_at_once_and_notices_that_its_client_is_gone() {
    let cell = Cell::start();
    let mut streams: Vec<TcpStream> = (0..3)
        .map(|_| {
            let (stream, head) = open_silent(&cell);
            assert!(
                head.starts_with("HTTP/1.1 200") && head.contains("Transfer-Encoding: chunked"),
                "{head}"
            );
            assert!(head.contains("default-src 'none'") && head.contains("nosniff"), "{head}");
            stream
        })
        .collect();
    cell.is_well();
    assert_eq!(cell.produced.load(Ordering::SeqCst), 0);
    // A close, an end of what it says, and a reset.
    drop(streams.pop());
    streams[0].shutdown(Shutdown::Write).unwrap();
    rustix::net::sockopt::set_socket_linger(&streams[1], Some(Duration::ZERO)).unwrap();
    drop(streams.pop());
    wait_for("all are noticed", || cell.produced.load(Ordering::SeqCst) == 3);
    cell.is_well();
}

#[test]
fn direct_answers_are_bounded_and_the_rest_is_told_so() {
    let cell = Cell::start();
    let streams: Vec<TcpStream> = (0..47).map(|_| open_silent(&cell).0).collect();
    // From one machine come no more connections than this; the others are served on.
    assert_eq!(cell.ask("GET /healthz", "", "").0, 200);
    drop(streams);
    wait_for("all are noticed", || cell.produced.load(Ordering::SeqCst) == 47);
}

#[test]
fn direct_answers_are_for_those_who_may() {
    let cell = Cell::start();
    let (status, head, body) = cell.ask("GET /api/v1/direct/silent", "", "");
    assert_eq!(status, 401, "{head}");
    assert!(body.contains("\"unauthorized\"") && head.contains("no-store"), "{head} {body}");
    assert_eq!(cell.ask("GET /v1/models", "Authorization: Bearer sk-other\r\n", "").0, 401);
    let (status, _, body) = cell.ask("POST /v1/chat", "Authorization: Bearer sk-key\r\n", "{}");
    assert!(status == 200 && body.contains("Key(") && body.contains("body 2"), "{body}");
    // A key opens nothing else.
    for path in ["/api/v1/direct/x", "/api/v1/status", "/metrics"] {
        assert_eq!(cell.ask(&format!("GET {path}"), "Authorization: Bearer sk-key\r\n", "").0, 401, "{path}");
    }
    let (_, _, body) = cell.ask("GET /v1/models", &authorized(""), "");
    assert!(body.contains("Secret"), "{body}");
}

#[test]
fn strangers_get_no_further_on_the_direct_way() {
    let cell = Cell::start();
    let line = "POST /api/v1/direct/x";
    for (headers, wanted) in [
        ("Host: evil.example\r\n", 421),
        ("Origin: http://evil.example\r\n", 403),
        ("Sec-Fetch-Site: cross-site\r\n", 403),
        ("Content-Length: 9223372036854775807\r\n", 400),
        ("Content-Length: 1048577\r\n", 413),
        ("Content-Length: 1\r\nTransfer-Encoding: chunked\r\n", 400),
        ("Connection: upgrade\r\nUpgrade: h2c\r\n", 501),
    ] {
        let (status, _, body) = cell.ask(line, &authorized(headers), "");
        assert!(status == wanted && body.contains("\"error\""), "{headers}: {status} {body}");
    }
    assert_eq!(cell.ask("POST /api/v1/direct/x", "Content-Length: 8193\r\n", "").0, 413);
    for target in ["/api/v1/direct/../x", "/api/v1/direct/%2e%2e", "/api/v1/direct//x", "/api/v1/direct/%00"]
    {
        let (status, _, body) = cell.ask(&format!("GET {target}"), &authorized(""), "");
        assert!(status == 400 && body.contains("\"error\""), "{target}: {status}");
    }
    // Bodies that never come, and half-closed connections.
    let began = Instant::now();
    let mut late = cell.connect();
    let head = format!("{line} HTTP/1.1\r\nHost: localhost\r\n{}", authorized("Content-Length: 10\r\n\r\n"));
    late.write_all(head.as_bytes()).unwrap();
    cell.is_well();
    assert_eq!(status(&read_rest(&mut late)), 408);
    assert!(began.elapsed() < CUT_WITHIN);
    cell.is_well();
}

#[test]
fn requests_after_a_direct_answer_are_answered_and_broken_ones_end_the_connection() {
    let cell = Cell::start();
    let one = |word: &str, more: &str| {
        format!("GET /api/v1/direct/{word} HTTP/1.1\r\nHost: localhost\r\n{more}{}\r\n", authorized(""))
    };
    let text = cell.raw(&format!("{}{}", one("pieces", ""), one("x", "Connection: close\r\n")));
    assert!(text.contains("8\r\npiece 0;\r\n") && text.contains("\r\n0\r\n\r\nHTTP/1.1 200"), "{text}");
    assert!(text.ends_with("body 0"), "{text}");
    let text = cell.raw(&one("broken", ""));
    assert!(!text.contains("\r\n0\r\n"), "{text}");
    let old = one("pieces", "").replace("HTTP/1.1", "HTTP/1.0");
    let text = cell.raw(&old);
    assert!(
        text.contains("Connection: close\r\n") && text.ends_with("\r\n\r\npiece 0;piece 1;piece 2;"),
        "{text}"
    );
    let (status, head, body) = cell.ask("HEAD /api/v1/direct/pieces", &authorized(""), "");
    assert!(status == 200 && body.is_empty() && head.contains("chunked"), "{head}");
}

#[cfg(feature = "wss")]
mod over_tls {
    use super::*;
    use crate::relay::tls_pinned;
    use futures_rustls::rustls::pki_types::ServerName;
    use futures_rustls::rustls::{ClientConnection, StreamOwned};

    type Client = StreamOwned<ClientConnection, TcpStream>;

    fn connect(cell: &Cell, fingerprint: [u8; 32]) -> Client {
        let name = ServerName::try_from("localhost").unwrap();
        let client = ClientConnection::new(Arc::new(tls_pinned(fingerprint)), name).unwrap();
        StreamOwned::new(client, cell.connect())
    }

    fn fingerprint(cell: &Cell) -> [u8; 32] {
        crate::keys::sha256(&fs::read(cell.folder.join("tls.crt")).unwrap())
    }

    fn ask(cell: &Cell, request: &str) -> String {
        let mut stream = connect(cell, fingerprint(cell));
        stream.write_all(request.as_bytes()).unwrap();
        let mut bytes = Vec::new();
        let _ = stream.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    }

    #[test]
    fn same_answers_come_inside_tls() {
        let cell = Cell::start();
        let text = ask(&cell, "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        assert!(text.starts_with("HTTP/1.1 200") && text.ends_with("</html>\n"), "{text}");
        let head = |path: &str| {
            format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{}\r\n", authorized(""))
        };
        let text = ask(&cell, &head("/api/v1/direct/pieces"));
        assert!(text.contains("piece 2;") && text.ends_with("0\r\n\r\n"), "{text}");
        let text = ask(&cell, &head("/api/v1/stream?bytes=655360"));
        assert!(text.len() > 655_360, "{}", text.len());
        assert_eq!(status(&ask(&cell, &head("/").replace("localhost", "evil.example"))), 421);
        // Another certificate is not taken, and plain HTTP goes on.
        let mut other = connect(&cell, [7; 32]);
        assert!(other.write_all(b"GET / HTTP/1.1\r\n\r\n").is_err());
        cell.is_well();
    }

    #[test]
    fn handshakes_that_never_end_hold_nobody_up() {
        let mut cell = Cell::start();
        let hello = {
            let name = ServerName::try_from("localhost").unwrap();
            let mut client = ClientConnection::new(Arc::new(tls_pinned([0; 32])), name).unwrap();
            let mut bytes = Vec::new();
            client.write_tls(&mut bytes).unwrap();
            bytes
        };
        let mut open: Vec<TcpStream> = Vec::new();
        for bytes in [&[0x16][..], &[0x16; 600], &hello[..hello.len() / 2], &hello] {
            for _ in 0..8 {
                let mut stream = cell.connect();
                stream.write_all(bytes).unwrap();
                open.push(stream);
            }
        }
        cell.is_well();
        let began = Instant::now();
        for mut stream in open {
            let _ = stream.read_to_end(&mut Vec::new());
        }
        assert!(began.elapsed() < CUT_WITHIN);
        cell.is_well();
        // A client that is gone in the middle, and a stop while some are there.
        let mut stream = cell.connect();
        stream.write_all(&hello).unwrap();
        rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).unwrap();
        drop(stream);
        let mut stream = cell.connect();
        stream.write_all(&hello).unwrap();
        assert!(cell.stop() < STOPPED_WITHIN);
    }

    #[test]
    fn silent_stream_inside_tls_notices_that_its_client_is_gone() {
        let cell = Cell::start();
        let mut stream = connect(&cell, fingerprint(&cell));
        let head = format!("GET /api/v1/direct/silent HTTP/1.1\r\nHost: localhost\r\n{}\r\n", authorized(""));
        stream.write_all(head.as_bytes()).unwrap();
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        drop(stream);
        wait_for("it is noticed", || cell.produced.load(Ordering::SeqCst) == 1);
    }
}

#[test]
fn large_announced_bodies_do_nothing() {
    let cell = Cell::start();
    for length in ["9223372036854775807", "18446744073709551615", "100000000000000", "3000000000", "1048577"]
    {
        for headers in [String::new(), authorized("")] {
            let began = Instant::now();
            let headers = format!("{headers}Content-Length: {length}\r\n");
            let (status, _, body) = cell.ask("POST /api/v1/echo", &headers, "");
            assert!([400, 413].contains(&status) && body.contains("\"error\""), "{length}: {status}");
            assert!(began.elapsed() < Duration::from_secs(4));
        }
    }
    // A stranger may not even send what the owner may.
    assert_eq!(cell.ask("POST /api/v1/login", "Content-Length: 8193\r\n", "").0, 413);
    cell.is_well();
}

#[test]
fn bodies_that_never_come_hold_nobody_up() {
    let cell = Cell::start();
    let silent: Vec<TcpStream> = (0..40)
        .map(|_| {
            let mut stream = cell.connect();
            let head = format!(
                "POST /api/v1/echo HTTP/1.1\r\nHost: localhost\r\n{}",
                authorized("Content-Length: 1000\r\n\r\n")
            );
            stream.write_all(head.as_bytes()).unwrap();
            stream
        })
        .collect();
    let began = Instant::now();
    cell.is_well();
    assert!(began.elapsed() < Duration::from_secs(2));
    let mut last = silent.into_iter().next_back().unwrap();
    assert_eq!(status(&read_rest(&mut last)), 408);
    assert!(began.elapsed() < CUT_WITHIN);
}

#[test]
fn resets_after_the_request_do_nothing() {
    let cell = Cell::start();
    for n in 0..300 {
        let mut stream = cell.connect();
        let path = ["/", "/healthz", "/api/v1/stream?bytes=1048576"][n % 3];
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{}\r\n", authorized(""));
        stream.write_all(request.as_bytes()).unwrap();
        rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).unwrap();
        drop(stream);
    }
    // All are through when the cell answers again.
    cell.becomes_well();
}

#[test]
fn header_line_without_end_is_cut_at_8_kib() {
    let cell = Cell::start();
    let mut stream = cell.connect();
    stream.write_all(b"GET / HTTP/1.1\r\nX: ").unwrap();
    let mut sent = 0;
    while sent < 64 * MIB && stream.write_all(&[b'a'; 4096]).is_ok() {
        sent += 4096;
    }
    assert!(sent < 32 * MIB, "{sent}");
    let line = format!("GET / HTTP/1.1\r\nHost: localhost\r\nX: {}\r\n\r\n", "a".repeat(9000));
    assert_eq!(status(&cell.raw(&line)), 431);
    let many = format!("GET / HTTP/1.1\r\nHost: localhost\r\n{}\r\n", "A: b\r\n".repeat(64));
    assert_eq!(status(&cell.raw(&many)), 431);
    cell.is_well();
}

#[test]
fn slow_heads_and_silent_connections_are_cut() {
    let cell = Cell::start();
    let began = Instant::now();
    thread::scope(|scope| {
        for start in ["GET / HTTP/1.1\r\nHost: localhost\r\n", ""] {
            let mut stream = cell.connect();
            scope.spawn(move || {
                let mut writer = stream.try_clone().unwrap();
                writer.write_all(start.as_bytes()).unwrap();
                let dribble = thread::spawn(move || {
                    for _ in 0..100 {
                        thread::sleep(Duration::from_millis(200));
                        if start.is_empty() || writer.write_all(b"X").is_err() {
                            return;
                        }
                    }
                    panic!("a slow head was never cut");
                });
                let answer = read_rest(&mut stream);
                assert!(
                    start.is_empty() == answer.is_empty() && (start.is_empty() || status(&answer) == 408)
                );
                drop(stream);
                dribble.join().unwrap();
            });
        }
    });
    let passed = began.elapsed();
    assert!(passed > Duration::from_secs(4) && passed < Duration::from_secs(10), "{passed:?}");
    cell.is_well();
}

#[test]
fn smuggled_requests_are_never_answered() {
    let cell = Cell::start();
    let hidden = format!("GET /api/v1/hidden HTTP/1.1\r\nHost: localhost\r\n{}\r\n", authorized(""));
    for headers in [
        "Content-Length: 0\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 0\r\n",
        "Transfer-Encoding: chunked\r\n",
        "Transfer-Encoding: xchunked\r\n",
        "Content-Length: 0\r\nContent-Length: 0\r\n",
        "Content-Length: 0\r\nContent-Length: 5\r\n",
        "Content-Length: 0,0\r\n",
        "Content-Length: -1\r\n",
        "Content-Length: +0\r\n",
        "Content-Length: 0x0\r\n",
        "Content-Length : 0\r\n",
        "X: a\r\n Content-Length: 5\r\n",
        "X: a\nContent-Length: 5\r\n",
        "X: a\rContent-Length: 5\r\n",
        "Connection: upgrade\r\nUpgrade: websocket\r\n",
    ] {
        let request = format!(
            "POST /api/v1/echo HTTP/1.1\r\nHost: localhost\r\n{}{headers}\r\n{hidden}",
            authorized("")
        );
        let answer = cell.raw(&request);
        assert!([400, 411, 501].contains(&status(&answer)), "{headers:?}: {answer}");
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{headers:?}: {answer}");
        assert!(answer.contains("\"error\":{") && answer.contains("Connection: close"));
    }
    cell.is_well();
}

#[test]
fn hosts_and_origins_of_strangers_are_refused() {
    let cell = Cell::start();
    let port = cell.port;
    assert_eq!(cell.ask("GET /", "Host: evil.example\r\n", "").0, 421);
    assert_eq!(cell.ask("GET /", &format!("Host: 127.0.0.1:{port}\r\n"), "").0, 200);
    assert_eq!(cell.ask("GET /", "Host: CELL.example.org\r\n", "").0, 200);
    let local = format!("Host: {}.local\r\n", hostname().split('.').next().unwrap());
    assert_eq!(cell.ask("GET /", &local, "").0, 200);
    let foreign = authorized("Origin: http://evil.example\r\n");
    assert_eq!(cell.ask("POST /api/v1/echo", &foreign, "").0, 403);
    assert_eq!(cell.ask("GET /api/v1/echo", &foreign, "").0, 200);
    assert_eq!(cell.ask("POST /api/v1/echo", &authorized("Origin: http://localhost\r\n"), "").0, 200);
}

#[test]
fn stranger_sees_only_the_entrance() {
    let cell = Cell::start();
    for path in ["/api/v1/status", "/metrics", "/v1/models", "/nothing", "/api/v1/password"] {
        let line = if path.ends_with("password") { format!("POST {path}") } else { format!("GET {path}") };
        for headers in
            ["", "Authorization: Bearer 00\r\n", "Cookie: grove_1=00\r\n", "X-Grove-Client: 127.0.0.1\r\n"]
        {
            let (status, head, body) = cell.ask(&line, headers, "");
            assert_eq!(status, 401, "{path}");
            // Programs that ask for models know OpenAI's word only.
            let code = if path.starts_with("/v1/") { "invalid_api_key" } else { "unauthorized" };
            assert!(body.contains(&format!("\"code\":\"{code}\"")) && head.contains("no-store"));
        }
    }
    for (path, kind) in [
        ("/", "text/html"),
        ("/app.js", "text/javascript"),
        ("/style.css", "text/css"),
        ("/icon.svg", "image/svg"),
    ] {
        let (status, head, body) = cell.ask(&format!("GET {path}"), "", "");
        assert!(status == 200 && head.contains(kind) && !body.is_empty(), "{path}");
        for header in ["script-src 'self'", "nosniff", "frame-ancestors 'none'", "no-referrer", "no-cache"] {
            assert!(head.contains(header), "{path} {header}");
        }
        assert!(!head.contains("unsafe") && !head.contains("tiny"));
        let tag = head.lines().find_map(|line| line.strip_prefix("ETag: ")).unwrap();
        let (status, _, body) = cell.ask(&format!("GET {path}"), &format!("If-None-Match: {tag}\r\n"), "");
        assert_eq!((status, body.as_str()), (304, ""));
    }
    assert_eq!(cell.ask("POST /", "", "").0, 401);
    assert_eq!(cell.ask("GET /healthz", "", "").2, "{\"ok\":true}");
}

#[test]
fn first_visit_sign_in_and_sign_out() {
    let cell = Cell::start();
    let session = |cookie: &str| cell.ask("GET /api/v1/session", cookie, "").2;
    let told = session("");
    assert!(
        told.starts_with(r#"{"name":"Attic","set_up":false,"signed_in":false,"totp":false,"secure":true,"#),
        "{told}"
    );
    assert_eq!(cell.ask("POST /api/v1/login", "", r#"{"password":"a long password"}"#).0, 409);
    assert_eq!(cell.ask("POST /api/v1/setup", "", "nonsense").0, 400);
    let wrong = cell.ask("POST /api/v1/setup", "", r#"{"code":"0","password":"a long password"}"#);
    assert!(wrong.0 == 403 && wrong.2.contains("wrong_code"));
    let code = cell.code.clone().unwrap();
    let set_up = format!(r#"{{"code":"{code}","password":"a long password"}}"#);
    let (status, head, _) = cell.ask("POST /api/v1/setup", "", &set_up);
    assert_eq!(status, 200);
    let cookie = |head: &str| {
        let line = head.lines().find_map(|line| line.strip_prefix("Set-Cookie: ")).unwrap().to_owned();
        assert!(line.contains("HttpOnly; SameSite=Strict"));
        format!("Cookie: {}\r\n", line.split(';').next().unwrap())
    };
    assert!(session(&cookie(&head)).contains("\"set_up\":true,\"signed_in\":true"));
    assert_eq!(cell.ask("GET /api/v1/echo", &cookie(&head), "").0, 200);

    let (status, head, _) = cell.ask("POST /api/v1/login", "", r#"{"password":"a long password"}"#);
    assert_eq!(status, 200);
    let cookie = cookie(&head);
    assert_eq!(cell.ask("POST /api/v1/logout", &cookie, "").0, 200);
    assert_eq!(cell.ask("GET /api/v1/echo", &cookie, "").0, 401);

    for n in 0..4 {
        let (status, head, _) = cell.ask("POST /api/v1/login", "", r#"{"password":"wrong"}"#);
        assert_eq!(status, if n < 3 { 403 } else { 429 });
        assert_eq!(head.contains("Retry-After"), n == 3);
    }
    let change = r#"{"password":"another password"}"#;
    assert_eq!(cell.ask("POST /api/v1/password", &authorized(""), change).0, 200);
    assert_eq!(cell.ask("GET /api/v1/login", "", "").0, 405);
}

#[test]
fn requests_one_after_another_share_a_connection() {
    let cell = Cell::start();
    let mut stream = cell.connect();
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{}\r\n", authorized(""));
    let post = format!(
        "POST /api/v1/p HTTP/1.1\r\nHost: localhost\r\n{}",
        authorized("Content-Length: 5\r\n\r\nhello")
    );
    let mut all: String = (0..20).map(|n| get(&format!("/api/v1/n{n}")) + &post).collect();
    all += &get("/api/v1/stream?bytes=131072");
    all += &get("/api/v1/last").replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n");
    stream.write_all(all.as_bytes()).unwrap();
    let answer = read_rest(&mut stream);
    assert_eq!(answer.matches("HTTP/1.1 200 OK").count(), 42);
    assert_eq!(answer.matches("body 5 from 127.0.0.1 true").count(), 20);
    let order: Vec<usize> =
        (0..20).map(|n| answer.find(&format!("/{} ?", hex(format!("n{n}").as_bytes()))).unwrap()).collect();
    assert!(order.is_sorted());
    assert_eq!(answer.matches("Connection: close").count(), 1);
}

#[test]
fn head_has_the_head_only() {
    let cell = Cell::start();
    for path in ["/", "/api/v1/echo", "/api/v1/large?bytes=100000", "/api/v1/stream?bytes=65536&length=65536"]
    {
        let (status, head, body) = cell.ask(&format!("HEAD {path}"), &authorized(""), "");
        assert_eq!((status, body.as_str()), (200, ""), "{path}");
        assert!(head.contains("Content-Length: "), "{path}: {head}");
    }
    assert_eq!(cell.ask("HEAD /api/v1/status", "", ""), {
        let (status, head, _) = cell.ask("HEAD /api/v1/status", "", "");
        assert_eq!(status, 401);
        (status, head, String::new())
    });
}

#[test]
fn paths_and_bytes_arrive_as_they_were_meant() {
    let cell = Cell::start();
    let path = format!("/api/v1/{}?q={}", percent_encode(b"a/\xff b"), percent_encode(b"\xfe&="));
    let told = cell.client().get_json(&path).unwrap();
    assert!(told.contains(&format!("/{} ?q={} body 0", hex(b"a/\xff b"), hex(b"\xfe&="))), "{told}");
    for bad in
        ["/api/v1/%", "/api/v1/%zz", "/api/v1/%0", "/api/v1/..", "/api//v1", "/api/v1/%2e%2e", "/api/v1/%00"]
    {
        let (status, _, body) = cell.ask(&format!("GET {bad}"), &authorized(""), "");
        assert!(status == 400 && body.contains("bad_request"), "{bad}: {status}");
    }
    let text = cell.client().post_json("/api/v1/echo", &"x".repeat(BODY_BYTES_MAX)).unwrap();
    assert!(text.contains("body 1048576 from"));
    let error = cell.client().post_json("/api/v1/echo", &"x".repeat(BODY_BYTES_MAX + 1)).unwrap_err();
    assert!(matches!(error, ClientError::Refused { status: 413, .. }), "{error:?}");
    let error = cell.client().request("DELETE", "/api/v1/x", None).unwrap().into_ok().unwrap_err();
    assert_eq!(error.to_string(), "It is in use. Wait.");
}

#[test]
fn answers_cannot_set_what_is_not_theirs() {
    let cell = Cell::start();
    let (status, head, body) = cell.ask("GET /api/v1/odd", &authorized(""), "");
    assert_eq!((status, body.as_str()), (200, "{}"));
    assert!(head.contains("X-Fine: yes") && head.contains("Content-Length: 2"));
    for absent in ["chunked", "Set-Cookie", "X-Split", "default-src *", "public"] {
        assert!(!head.contains(absent), "{absent}");
    }
}

#[test]
fn large_stream_waits_for_a_slow_reader_and_arrives_whole() {
    let cell = Cell::start();
    for length in ["", "&length=67108864"] {
        cell.produced.store(0, Ordering::SeqCst);
        let path = format!("/api/v1/stream?bytes={}{length}", 64 * MIB);
        let mut body = cell.client().request("GET", &path, None).unwrap().into_ok().unwrap().body;
        let mut piece = vec![0; PIECE];
        let mut got = 0;
        while got < 64 * MIB {
            if got % (16 * MIB) == 0 {
                thread::sleep(Duration::from_millis(200));
                // What is on its way lies in the kernel's buffers, not in ours.
                let ahead = cell.produced.load(Ordering::SeqCst) as usize - got;
                assert!(ahead < 16 * MIB, "{ahead}");
            }
            body.read_exact(&mut piece).unwrap();
            assert!(piece.iter().all(|byte| *byte == (got / PIECE) as u8));
            got += PIECE;
        }
        assert_eq!(body.read(&mut piece).unwrap(), 0);
    }
}

#[test]
fn broken_stream_never_looks_whole() {
    let cell = Cell::start();
    for path in [
        "/api/v1/stream?bytes=131072&break=1",
        "/api/v1/stream?bytes=131072&break=1&length=1000000",
        "/api/v1/stream?bytes=131072&length=131073",
        "/api/v1/stream?bytes=131072&length=131071",
    ] {
        let response = cell.client().request("GET", path, None).unwrap();
        assert!(response.bytes(u64::MAX).is_err(), "{path}");
    }
    let mut old = cell.connect();
    let request = format!(
        "GET /api/v1/stream?bytes=65536&break=1 HTTP/1.0\r\nHost: localhost\r\n{}\r\n",
        authorized("")
    );
    old.write_all(request.as_bytes()).unwrap();
    assert!(old.read_to_end(&mut Vec::new()).is_err(), "an answer that ends with the connection is reset");
    cell.is_well();
}

#[test]
fn old_client_gets_no_chunks() {
    let cell = Cell::start();
    let request = |path: &str| format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n{}\r\n", authorized(""));
    let answer = cell.raw(&request("/api/v1/stream?bytes=131072"));
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(!head.contains("chunked") && head.contains("Connection: close"));
    assert_eq!(body.len(), 131_072);
    assert_eq!(status(&cell.raw(&request("/api/v1/large?bytes=100000"))), 200);
}

#[test]
fn client_that_asks_first_is_told_to_continue() {
    let cell = Cell::start();
    let mut stream = cell.connect();
    let head = authorized("Expect: 100-continue\r\nContent-Length: 5\r\nConnection: close\r\n\r\n");
    stream.write_all(format!("PUT /api/v1/x HTTP/1.1\r\nHost: localhost\r\n{head}").as_bytes()).unwrap();
    let mut first = [0; 25];
    stream.read_exact(&mut first).unwrap();
    assert_eq!(&first, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(b"hello").unwrap();
    assert!(read_rest(&mut stream).contains("Put "));
}

#[test]
fn half_closed_client_is_still_answered() {
    let cell = Cell::start();
    let mut stream = cell.connect();
    stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(status(&read_rest(&mut stream)), 200);
}

#[test]
fn connections_beyond_the_cap_are_turned_away_and_come_back_later() {
    let cell = Cell::start();
    let held: Vec<TcpStream> = (0..80).map(|_| cell.connect()).collect();
    thread::sleep(Duration::from_millis(300));
    let mut over = cell.connect();
    let answer = read_rest(&mut over);
    assert!(answer.is_empty() || answer.contains("too_many_connections"), "{answer}");
    drop(held);
    cell.becomes_well();
}

#[test]
fn cell_that_answers_nothing_keeps_nobody_waiting_for_long() {
    let mut cell = Cell::start();
    assert_eq!(cell.ask("GET /api/v1/drop", &authorized(""), "").0, 503);
    let request = format!("GET /api/v1/keep HTTP/1.1\r\nHost: localhost\r\n{}\r\n", authorized(""));
    let mut held = Vec::new();
    while held.len() < 16 {
        let mut stream = cell.connect();
        stream.write_all(request.as_bytes()).unwrap();
        held.push(stream);
        wait_for("it is asked", || cell.produced.load(Ordering::SeqCst) >= held.len() as u64);
    }
    let began = Instant::now();
    let (status, head, body) = cell.ask("GET /healthz", "", "");
    assert!(status == 503 && head.contains("Retry-After") && body.contains("busy"), "{head}");
    assert!(began.elapsed() < Duration::from_secs(12));
    let passed = cell.stop();
    assert!(passed < Duration::from_millis(1100), "{passed:?}");
    drop(held);
}

#[test]
fn cell_that_is_behind_turns_requests_away() {
    let cell = Cell::start();
    let request = |path: &str| {
        format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{}\r\n", authorized("Connection: close\r\n"))
    };
    let mut pause = cell.connect();
    pause.write_all(request("/api/v1/pause").as_bytes()).unwrap();
    wait_for("it pauses", || cell.produced.load(Ordering::SeqCst) == 1);
    let refused = AtomicU64::new(0);
    let answers: Vec<u16> = thread::scope(|scope| {
        let ask = || {
            let status = status(&cell.raw(&request("/api/v1/echo")));
            refused.fetch_add(u64::from(status == 503), Ordering::SeqCst);
            status
        };
        let waiting: Vec<_> = (0..12).map(|_| scope.spawn(ask)).collect();
        wait_for("some are turned away", || refused.load(Ordering::SeqCst) >= 12 - CALLS_MAX as u64);
        cell.produced.store(2, Ordering::SeqCst);
        waiting.into_iter().map(|asked| asked.join().unwrap()).collect()
    });
    assert_eq!(answers.iter().filter(|status| **status == 200).count(), CALLS_MAX);
    assert_eq!(answers.iter().filter(|status| **status == 503).count(), 12 - CALLS_MAX);
}

#[test]
fn stopping_ends_streams_frees_the_port_and_removes_the_socket() {
    let mut cell = Cell::start();
    let idle = cell.connect();
    let mut busy = cell.client().request("GET", "/api/v1/stream?bytes=1073741824", None).unwrap().body;
    let mut piece = [0; 1000];
    busy.read_exact(&mut piece).unwrap();
    let socket = cell.folder.join("run/dashboard.sock");
    assert!(socket.exists());
    assert_eq!(fs::metadata(cell.folder.join("run")).unwrap().permissions().mode() & 0o777, 0o700);
    let passed = cell.stop();
    assert!(passed < Duration::from_millis(1100), "{passed:?}");
    assert!(!socket.exists());
    assert!(TcpStream::connect(("127.0.0.1", cell.port)).is_err());
    let mut rest = Vec::new();
    assert!(busy.read_to_end(&mut rest).is_err());
    drop(idle);
}

#[test]
fn address_in_use_is_named() {
    let cell = Cell::start();
    let executor = LocalExecutor::new();
    let config = Config {
        listen: vec![SocketAddr::from(([127, 0, 0, 1], cell.port))],
        socket_dir: cell.folder.join("other"),
        secret: SECRET.to_owned(),
        auth_file: cell.folder.join("other_auth"),
        name: String::new(),
        hosts: vec![],
        opened: Vec::new(),
        body_bytes_max: BODY_BYTES_MAX,
        tls_dir: None,
        addresses: Vec::new(),
        fresh: Arc::default(),
    };
    let error = Dashboard::start(&executor, config).err().unwrap();
    assert!(error.to_string().contains(&format!("cannot listen on 127.0.0.1:{}", cell.port)), "{error}");
}

#[test]
fn both_kinds_of_addresses_and_deep_folders_work() {
    let cell = Cell::start_with(|config| {
        config.listen = vec!["0.0.0.0:0".parse().unwrap(), "[::]:0".parse().unwrap()];
        config.socket_dir = config.socket_dir.join("d".repeat(120)).join("e".repeat(60));
    });
    cell.is_well();
    let told = cell.client().get_json("/api/v1/echo").unwrap();
    assert!(told.contains("from 127.0.0.1 true"), "{told}");
    if let Ok(mut stream) = TcpStream::connect(("::1", cell.port)) {
        stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: [::1]\r\nConnection: close\r\n\r\n").unwrap();
        assert_eq!(status(&read_rest(&mut stream)), 200);
    }
}

/// Descriptors run out: a process of its own, as the limit is one of the process.
#[test]
fn dashboard_outlives_a_lack_of_descriptors() {
    let program = std::env::current_exe().unwrap();
    let name = "dashboard::tests::lack_of_descriptors_inner";
    let output = std::process::Command::new(program)
        .args(["--exact", name, "--ignored", "--test-threads", "1"])
        .output()
        .unwrap();
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

#[test]
#[ignore = "lowers the limit of descriptors of its process; run by the test above"]
fn lack_of_descriptors_inner() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let cell = Cell::start();
    cell.is_well();
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(128), maximum: limit.maximum }).unwrap();
    for round in 0..16 {
        // Leave a few, a different number each time, so that each step fails once.
        let mut taken = Vec::new();
        while let Ok(file) = File::open("/dev/null") {
            taken.push(file);
        }
        taken.truncate(taken.len().saturating_sub(round * 3));
        for _ in 0..3 {
            if let Ok(mut stream) = TcpStream::connect(("127.0.0.1", cell.port)) {
                stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
                let _ = stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n");
                let _ = read_rest(&mut stream);
            }
        }
        drop(taken);
        cell.becomes_well();
    }
}

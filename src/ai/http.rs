//! A small HTTP/1.1 client on the executor, for model servers that the user has named: one request a connection.
//!
//! Promise: heads, lines and answers have limits; a body that ends early is an error, never a short answer; dropping whatever
//! waits closes the connection, which is how a model server is told to stop.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use smol::io::{AsyncReadExt, AsyncWriteExt};
use smol::net::TcpStream;

use crate::id::{hex, unhex};
use crate::wire::{BoxStream, within};

/// Head of an answer, in bytes.
const HEAD_BYTES_MAX: usize = 16 * 1024;
/// Its headers.
const HEADERS_MAX: usize = 64;
/// What is read at once.
const PIECE_BYTES: usize = 8 * 1024;
/// A line with the size of a chunk, or of a trailer.
const CHUNK_LINE_BYTES_MAX: usize = 4096;
/// How long a server may take to accept a connection.
const CONNECT_TIME_MAX: Duration = Duration::from_millis(1500);
/// How long it may leave a request unread, without taking a byte.
const WRITE_TIME_MAX: Duration = Duration::from_secs(30);
/// A URL, in bytes.
const URL_BYTES_MAX: usize = 512;

/// Before the hash of a certificate, behind the address.
const CERTIFICATE: &str = "#cert:";

/// Where a server is: `http://host:port/base`. Behind `https://…` there may be `#cert:` and the SHA-256 of the only certificate
/// that is accepted.
#[derive(Clone, PartialEq, Eq)]
pub struct Url {
    is_tls: bool,
    host: String,
    port: u16,
    base: String,
    certificate: Option<[u8; 32]>,
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.is_tls { "https" } else { "http" };
        write!(f, "{scheme}://{}{}", self.authority(), self.base)?;
        match &self.certificate {
            Some(hash) => write!(f, "{CERTIFICATE}{}", hex(hash)),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl Url {
    /// Reads a URL; a trailing slash and `/v1` at its end are no part of the base. The error is for people.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let text = text.trim();
        if text.len() > URL_BYTES_MAX || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err("the address is too long, or has blanks or other letters in it");
        }
        let (is_tls, rest) = match text.split_once("://") {
            Some(("http", rest)) => (false, rest),
            Some(("https", rest)) if cfg!(feature = "wss") => (true, rest),
            Some(("https", _)) => return Err("this program was built without TLS; use http://"),
            _ => return Err("the address must begin with http:// or https://"),
        };
        let (rest, certificate) =
            match rest.split_once(CERTIFICATE) {
                Some((rest, hash)) if is_tls => {
                    let hash = unhex(hash).and_then(|hash| hash.try_into().ok());
                    (
                        rest,
                        Some(hash.ok_or(
                            "behind #cert: comes the SHA-256 of a certificate, 64 hexadecimal digits",
                        )?),
                    )
                }
                _ => (rest, None),
            };
        if rest.contains(['@', '?', '#', '\\', '"', '<', '>']) {
            return Err("the address must be of the form http://host:port");
        }
        let (authority, base) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let (host, port) = match authority.strip_prefix('[') {
            Some(rest) => {
                let (host, after) = rest.split_once(']').ok_or("the address lacks a ]")?;
                host.parse::<Ipv6Addr>().map_err(|_| "the address has no host that is understood")?;
                (host, after.strip_prefix(':'))
            }
            None => match authority.rsplit_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (authority, None),
            },
        };
        if host.is_empty() || (host.contains(':') && host.parse::<Ipv6Addr>().is_err()) {
            return Err("the address has no host");
        }
        let port = match port {
            Some(port) => port.parse().ok().filter(|port| *port > 0).ok_or("the port is no port")?,
            None if is_tls => 443,
            None => 80,
        };
        let base = base.trim_end_matches('/');
        let base = base.strip_suffix("/v1").unwrap_or(base).trim_end_matches('/');
        Ok(Self { is_tls, host: host.to_ascii_lowercase(), port, base: base.to_owned(), certificate })
    }

    fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    /// Whether it is on this machine.
    pub fn is_loopback(&self) -> bool {
        self.host == "localhost" || self.host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
    }
}

/// Why there is no answer.
#[derive(Debug)]
pub enum HttpError {
    /// Nobody listens there, or the name is not known.
    Connect(io::Error),
    /// The connection broke, or ended before the answer did.
    Broken(io::Error),
    /// What came is no answer.
    NotUnderstood(&'static str),
}

impl fmt::Display for HttpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect(why) if why.kind() == io::ErrorKind::ConnectionRefused => {
                f.write_str("nothing listens there")
            }
            Self::Connect(why) if why.kind() == io::ErrorKind::TimedOut => f.write_str("it does not answer"),
            Self::Connect(why) => write!(f, "it cannot be reached: {why}"),
            Self::Broken(why) if why.kind() == io::ErrorKind::UnexpectedEof => {
                f.write_str("the connection ended before the answer did")
            }
            Self::Broken(why) => write!(f, "the connection broke: {why}"),
            Self::NotUnderstood(what) => write!(f, "its answer is not understood: {what}"),
        }
    }
}

impl From<io::Error> for HttpError {
    fn from(why: io::Error) -> Self {
        Self::Broken(why)
    }
}

/// An answer; its body is still to be read.
pub struct Response {
    /// HTTP status.
    pub status: u16,
    /// `Server`, empty if there is none.
    pub server: String,
    /// `Content-Type`, empty if there is none.
    pub content_type: String,
    /// The body, as it comes.
    pub body: Body,
}

impl Response {
    /// The whole body as text, if it has at most `max` bytes.
    pub async fn text(mut self, max: usize) -> Result<String, HttpError> {
        let mut text = Vec::new();
        while let Some(piece) = self.body.piece().await? {
            if text.len() + piece.len() > max {
                return Err(HttpError::NotUnderstood("it is too long"));
            }
            text.extend_from_slice(piece);
        }
        String::from_utf8(text).map_err(|_| HttpError::NotUnderstood("it is not UTF-8"))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Left {
    Bytes(u64),
    /// So many of this chunk; behind it there is the end of its line.
    Chunk(u64),
    /// A line with the size of the next chunk; not before the first one is there the end of another.
    Size {
        is_first: bool,
    },
    /// Until the connection ends.
    Open,
    Nothing,
}

/// A body as it comes.
pub struct Body {
    stream: BoxStream,
    held: Vec<u8>,
    at: usize,
    left: Left,
}

impl Body {
    /// Reads more behind what is held.
    async fn fill(&mut self) -> io::Result<usize> {
        // What was taken goes, also where a line is not whole yet: a stream need never end between two of them.
        self.held.drain(..self.at);
        self.at = 0;
        let before = self.held.len();
        self.held.resize(before + PIECE_BYTES, 0);
        let read = self.stream.read(&mut self.held[before..]).await;
        self.held.truncate(before + read.as_ref().map_or(0, |read| *read));
        read
    }

    /// A line of chunked framing, without its end.
    async fn line(&mut self) -> Result<String, HttpError> {
        loop {
            let held = &self.held[self.at..];
            if let Some(end) = held.iter().position(|byte| *byte == b'\n') {
                let line = held[..end].strip_suffix(b"\r").unwrap_or(&held[..end]);
                let line = std::str::from_utf8(line).map_err(|_| HttpError::NotUnderstood("its framing"))?;
                let line = line.to_owned();
                self.at += end + 1;
                return Ok(line);
            }
            if held.len() > CHUNK_LINE_BYTES_MAX {
                return Err(HttpError::NotUnderstood("its framing"));
            }
            if self.fill().await? == 0 {
                return Err(HttpError::Broken(io::ErrorKind::UnexpectedEof.into()));
            }
        }
    }

    async fn next_chunk(&mut self, is_first: bool) -> Result<Left, HttpError> {
        if !is_first && !self.line().await?.is_empty() {
            return Err(HttpError::NotUnderstood("its framing"));
        }
        let line = self.line().await?;
        let digits = line.split(';').next().unwrap_or_default().trim();
        if digits.is_empty() || digits.len() > 15 || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(HttpError::NotUnderstood("its framing"));
        }
        match u64::from_str_radix(digits, 16) {
            Ok(0) => {
                // Trailers, which nobody here wants.
                for _ in 0..HEADERS_MAX {
                    if self.line().await?.is_empty() {
                        return Ok(Left::Nothing);
                    }
                }
                Err(HttpError::NotUnderstood("its framing"))
            }
            Ok(bytes) => Ok(Left::Chunk(bytes)),
            Err(_) => Err(HttpError::NotUnderstood("its framing")),
        }
    }

    /// The next bytes; `None` at the end of the body.
    pub async fn piece(&mut self) -> Result<Option<&[u8]>, HttpError> {
        if self.left == Left::Chunk(0) {
            self.left = Left::Size { is_first: false };
        }
        if let Left::Size { is_first } = self.left {
            self.left = self.next_chunk(is_first).await?;
        }
        let most = match self.left {
            Left::Nothing | Left::Bytes(0) => return Ok(None),
            Left::Bytes(bytes) | Left::Chunk(bytes) => usize::try_from(bytes).unwrap_or(usize::MAX),
            Left::Open | Left::Size { .. } => usize::MAX,
        };
        if self.at == self.held.len() && self.fill().await? == 0 {
            return match self.left {
                Left::Open => Ok(None),
                _ => Err(HttpError::Broken(io::ErrorKind::UnexpectedEof.into())),
            };
        }
        let from = self.at;
        self.at = self.held.len().min(from.saturating_add(most));
        if let Left::Bytes(left) | Left::Chunk(left) = &mut self.left {
            *left -= (self.at - from) as u64;
        }
        Ok(Some(&self.held[from..self.at]))
    }
}

/// Asks a server. `key` goes along as a bearer's; `body` is JSON.
pub async fn ask(
    url: &Url,
    key: Option<&str>,
    method: &str,
    path: &str,
    body: Option<&[u8]>,
) -> Result<Response, HttpError> {
    let mut stream = connect(url).await?;
    let mut head = format!("{method} {}{path} HTTP/1.1\r\nHost: {}\r\n", url.base, url.authority());
    if let Some(key) = key.filter(|key| !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_graphic())) {
        head.push_str(&format!("Authorization: Bearer {key}\r\n"));
    }
    if let Some(body) = body {
        head.push_str(&format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len()));
    }
    head.push_str("Accept: application/json, text/event-stream\r\nConnection: close\r\n\r\n");
    let request = [head.as_bytes(), body.unwrap_or_default()].concat();
    let mut left = &request[..];
    while !left.is_empty() {
        let written = within(WRITE_TIME_MAX, stream.write(left)).await;
        match written.unwrap_or(Err(io::ErrorKind::TimedOut.into())) {
            Ok(0) => return Err(HttpError::Broken(io::ErrorKind::WriteZero.into())),
            Ok(written) => left = &left[written..],
            // A server that refuses a request may close before it has read all of it; its answer is there all the same.
            Err(_) => break,
        }
    }
    let _ = within(WRITE_TIME_MAX, stream.flush()).await;
    read_head(stream).await
}

async fn connect(url: &Url) -> Result<BoxStream, HttpError> {
    let timed_out = || io::Error::from(io::ErrorKind::TimedOut);
    let connected = within(CONNECT_TIME_MAX, TcpStream::connect((url.host.as_str(), url.port))).await;
    let stream = connected.unwrap_or_else(|| Err(timed_out())).map_err(HttpError::Connect)?;
    let _ = stream.set_nodelay(true);
    if !url.is_tls {
        return Ok(Box::new(stream));
    }
    #[cfg(feature = "wss")]
    {
        let wrapped =
            within(2 * CONNECT_TIME_MAX, crate::relay::over_tls(stream, &url.host, url.certificate)).await;
        wrapped
            .unwrap_or_else(|| Err("it does not answer".to_owned()))
            .map_err(|why| HttpError::Connect(io::Error::other(why)))
    }
    #[cfg(not(feature = "wss"))]
    Err(HttpError::Connect(io::ErrorKind::Unsupported.into()))
}

async fn read_head(stream: BoxStream) -> Result<Response, HttpError> {
    let mut body = Body { stream, held: Vec::new(), at: 0, left: Left::Nothing };
    let mut seen = 0;
    let end = loop {
        // Looked for from where the last look ended, with room for a divided end.
        let from = usize::saturating_sub(seen, 3);
        if let Some(end) = body.held[from..].windows(4).position(|window| window == b"\r\n\r\n") {
            break from + end + 4;
        }
        seen = body.held.len();
        if seen > HEAD_BYTES_MAX {
            return Err(HttpError::NotUnderstood("its head is too long"));
        }
        if body.fill().await? == 0 {
            return Err(HttpError::Broken(io::ErrorKind::UnexpectedEof.into()));
        }
    };
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut head = httparse::Response::new(&mut headers);
    let is_whole = matches!(head.parse(&body.held[..end]), Ok(httparse::Status::Complete(_)));
    let status = head.code.filter(|status| is_whole && (200..600).contains(status));
    let status = status.ok_or(HttpError::NotUnderstood("its head is malformed"))?;
    let (mut length, mut is_chunked) = (None, false);
    let (mut server, mut content_type) = (String::new(), String::new());
    for header in head.headers.iter() {
        let value = std::str::from_utf8(header.value).unwrap_or_default().trim();
        if header.name.eq_ignore_ascii_case("Content-Length") {
            let bytes = value.parse::<u64>().ok().filter(|_| value.bytes().all(|byte| byte.is_ascii_digit()));
            let bytes = bytes.ok_or(HttpError::NotUnderstood("its length is no number"))?;
            if length.replace(bytes).is_some_and(|before| before != bytes) {
                return Err(HttpError::NotUnderstood("it has two lengths"));
            }
        } else if header.name.eq_ignore_ascii_case("Transfer-Encoding") {
            if !value.eq_ignore_ascii_case("chunked") {
                return Err(HttpError::NotUnderstood("its encoding is not known"));
            }
            is_chunked = true;
        } else if header.name.eq_ignore_ascii_case("Server") {
            value.clone_into(&mut server);
        } else if header.name.eq_ignore_ascii_case("Content-Type") {
            value.clone_into(&mut content_type);
        }
    }
    body.at = end;
    body.left = match (length, is_chunked) {
        _ if [204, 304].contains(&status) => Left::Nothing,
        (_, true) => Left::Size { is_first: true },
        (Some(length), false) => Left::Bytes(length),
        (None, false) => Left::Open,
    };
    Ok(Response { status, server, content_type, body })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::thread;

    /// What a server's bytes, sent in pieces of a size, are taken for.
    fn exchange(answer: Vec<u8>, piece: usize) -> (String, Result<(u16, String), HttpError>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = Url::parse(&format!("http://{}/x/v1/", listener.local_addr().unwrap())).unwrap();
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = vec![0; 4096];
            let read = stream.read(&mut request).unwrap();
            for piece in answer.chunks(piece) {
                if stream.write_all(piece).is_err() {
                    break;
                }
            }
            let _ = stream.shutdown(std::net::Shutdown::Write);
            // Until the client has gone: a reset would take what it has not read yet.
            let _ = stream.read(&mut [0; 16]);
            String::from_utf8(request[..read].to_vec()).unwrap()
        });
        let outcome = smol::block_on(async {
            let response = ask(&url, Some("k"), "POST", "/props", Some(b"{}")).await?;
            Ok((response.status, response.text(1 << 20).await?))
        });
        (server.join().unwrap(), outcome)
    }

    #[test]
    fn bodies_of_each_framing_are_read_however_they_arrive() {
        let answers = [
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhelloMORE",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;x=y\r\nhe\r\n3\r\nllo\r\n0\r\nT: t\r\n\r\n",
            "HTTP/1.0 200 OK\r\n\r\nhello",
        ];
        for answer in answers {
            for piece in [1, 2, 3, 7, 4096] {
                let (asked, outcome) = exchange(answer.as_bytes().to_vec(), piece);
                assert_eq!(outcome.unwrap(), (200, "hello".to_owned()));
                assert!(asked.starts_with("POST /x/props HTTP/1.1\r\nHost: 127.0.0.1:"), "{asked}");
                assert!(asked.contains("Bearer k\r\n") && asked.contains("Content-Length: 2\r\n"));
            }
        }
    }

    #[test]
    fn answers_that_are_cut_or_make_no_sense_are_errors() {
        let broken = [
            "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
            "HTTP/1.1 200 OK\r\nContent-",
            "",
        ];
        for answer in broken {
            let outcome = exchange(answer.into(), 4096).1;
            assert!(matches!(outcome, Err(HttpError::Broken(_))), "{answer}: {outcome:?}");
        }
        let odd = [
            "SSH-2.0-x\r\n\r\n".to_owned(),
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx".to_owned(),
            "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\nx".to_owned(),
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nx".to_owned(),
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n".to_owned(),
            format!("HTTP/1.1 200 OK\r\nX: {}", "y".repeat(40_000)),
            format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{}", "1".repeat(10_000)),
            format!("HTTP/1.1 200 OK\r\n\r\n{}", " ".repeat(3 << 20)),
        ];
        for answer in odd {
            let outcome = exchange(answer.clone().into_bytes(), 65_536).1;
            assert!(
                matches!(outcome, Err(HttpError::NotUnderstood(_))),
                "{}: {outcome:?}",
                &answer[..30.min(answer.len())]
            );
        }
    }

    #[test]
    fn stream_that_never_ends_between_two_lines_is_held_no_longer_than_it_is_used() {
        smol::block_on(async {
            let (mut server, client, _link) = crate::wire::memory::link(1 << 16);
            let left = Left::Size { is_first: true };
            let mut body = Body { stream: Box::new(client), held: Vec::new(), at: 0, left };
            server.write_all(b"5").await.unwrap();
            for _ in 0..10_000 {
                server.write_all(b"\r\nhello\r\n5").await.unwrap();
                assert_eq!(body.piece().await.unwrap(), Some(&b"hello"[..]));
            }
            assert!(body.held.capacity() <= 4 * PIECE_BYTES, "{}", body.held.capacity());
        });
    }

    #[test]
    fn addresses_are_read_and_odd_ones_are_refused() {
        let shown = |text: &str| Url::parse(text).map(|url| url.to_string());
        assert_eq!(shown("http://pc:8080/v1/").unwrap(), "http://pc:8080");
        assert_eq!(shown("http://PC").unwrap(), "http://pc:80");
        assert_eq!(shown("http://[::1]:11434/a/").unwrap(), "http://[::1]:11434/a");
        let pinned = format!("https://pc:443/a#cert:{}", "0f".repeat(32));
        assert_eq!(shown(&pinned.replace(":443/a", "/a/v1/")).unwrap(), pinned);
        assert!(Url::parse("http://[::1]:1").unwrap().is_loopback());
        assert!(Url::parse("http://localhost:1").unwrap().is_loopback());
        assert!(!Url::parse("http://10.0.0.1:1").unwrap().is_loopback());
        for text in [
            "pc:8080",
            "ftp://pc",
            "http://",
            "http://pc:0",
            "http://pc:99999",
            "http://a b",
            "http://u@pc",
            "http://pc?x",
            "http://pc\r\nX: y",
            "http://[::1",
            "http://:80",
            "http://pc#cert:00",
            "https://pc#cert:00",
            "https://pc#x",
        ] {
            assert!(Url::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn nobody_there_is_told_apart_from_a_broken_answer() {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let url = Url::parse(&format!("http://127.0.0.1:{port}")).unwrap();
        let outcome = smol::block_on(ask(&url, None, "GET", "/", None));
        assert!(matches!(outcome, Err(HttpError::Connect(_))));
    }
}

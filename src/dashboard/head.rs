//! What the head of a request says, and whether it may pass the front door. Touches nothing.
//!
//! Promise: a request that passes has one meaning for everybody who reads it: one length of its body, one host,
//! and only headers that were made for one value.

use std::net::{Ipv4Addr, Ipv6Addr};

/// Most bytes of a head.
pub(crate) const HEAD_BYTES_MAX: usize = 8 * 1024;
/// Most headers of a request.
const HEADERS_MAX: usize = 64;
/// Headers that go on to the handlers; each at most once. All others end here.
const PASSED: [&str; 9] = [
    "Authorization",
    "Cookie",
    "Content-Type",
    "Accept",
    "Accept-Encoding",
    "Range",
    "If-None-Match",
    "If-Range",
    "User-Agent",
];
/// Where a WebSocket may be asked for.
const WEBSOCKET_PATH: &str = "/relay";
/// Why a request does not pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// HTTP status.
    pub status: u16,
    /// A word for programs.
    pub code: &'static str,
    /// What happened.
    pub message: &'static str,
    /// What to do about it; may be empty.
    pub hint: &'static str,
}

const fn refusal(status: u16, code: &'static str, message: &'static str, hint: &'static str) -> Refusal {
    Refusal { status, code, message, hint }
}

const fn malformed(message: &'static str) -> Refusal {
    refusal(400, "bad_request", message, "")
}

pub(crate) const HEAD_TOO_LARGE: Refusal = refusal(
    431,
    "head_too_large",
    "The head of the request is larger than 8 KiB or has over 64 headers.",
    "",
);
pub(crate) const BODY_TOO_LARGE: Refusal = refusal(
    413,
    "body_too_large",
    "The body of the request is too large.",
    "Large files go into the folder that Grove keeps, or through `grove add`. Without signing in only small requests pass.",
);
pub(crate) const TOO_SLOW: Refusal =
    refusal(408, "too_slow", "The request came too slowly.", "Try again on a better connection.");
pub(crate) const BUSY: Refusal =
    refusal(503, "busy", "The cell is busy with other requests.", "Try again in a moment.");
pub(crate) const TOO_MANY: Refusal = refusal(
    503,
    "too_many_connections",
    "There are too many connections.",
    "Close other pages of this cell and try again.",
);
pub(crate) const NO_ANSWER: Refusal = refusal(
    504,
    "no_answer",
    "The cell did not answer in time.",
    "See `grove doctor` and the log of the cell.",
);
pub(crate) const NO_UPGRADE: Refusal = refusal(501, "no_upgrade", "No other protocol is spoken here.", "");
pub(crate) const UNAVAILABLE: Refusal =
    refusal(502, "unavailable", "The dashboard is not ready.", "Try again in a moment.");

/// Names by which this cell may be called. IP addresses and `localhost` always may.
///
/// A page of a stranger whose name was made to point at this cell (DNS rebinding) carries the stranger's name.
#[derive(Debug, Clone, Default)]
pub(crate) struct Hosts(Vec<String>);

impl Hosts {
    /// The names of the settings, and `HOSTNAME.local`.
    pub(crate) fn new(hostname: &str, configured: &[String]) -> Self {
        let mut names = vec!["localhost".to_owned()];
        if let Some(first) = hostname.split('.').next().filter(|first| !first.is_empty()) {
            names.push(format!("{}.local", first.to_ascii_lowercase()));
        }
        names.extend(configured.iter().map(|name| plain_name(name.trim()).to_owned()));
        names.retain(|name| !name.is_empty());
        Self(names)
    }

    fn admit(&self, host: &str) -> bool {
        let Some(name) = host_name(host) else { return false };
        is_address(name) || self.0.iter().any(|known| *known == plain_name(name))
    }
}

fn plain_name(name: &str) -> String {
    name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase()
}

fn is_address(name: &str) -> bool {
    match name.strip_prefix('[').and_then(|name| name.strip_suffix(']')) {
        Some(v6) => v6.parse::<Ipv6Addr>().is_ok(),
        None => name.parse::<Ipv4Addr>().is_ok(),
    }
}

/// The name in `name`, `name:port` or `[v6]:port`; `None` if it is none of these.
fn host_name(host: &str) -> Option<&str> {
    let end = match host.strip_prefix('[') {
        Some(rest) => rest.find(']')? + 2,
        None => host.find(':').unwrap_or(host.len()),
    };
    let (name, port) = host.split_at(end);
    let port_is_fine = match port.strip_prefix(':') {
        Some(digits) => digits.parse::<u16>().is_ok() && digits.bytes().all(|c| c.is_ascii_digit()),
        None => port.is_empty(),
    };
    let letters = |c: u8| c.is_ascii_alphanumeric() || b"-._".contains(&c);
    let is_name = name.starts_with('[') || (!name.is_empty() && name.bytes().all(letters));
    (port_is_fine && is_name).then_some(name)
}

/// A head that may pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Head {
    /// Method in capitals, one of `GET HEAD POST PUT PATCH DELETE`.
    pub method: String,
    /// Path and query; begins with a slash, visible ASCII only.
    pub target: String,
    /// The client speaks HTTP/1.0: no chunks, no second request.
    pub is_old: bool,
    /// Another request may follow on this connection.
    pub keeps_alive: bool,
    /// The client waits for `100 Continue` before it sends the body.
    pub expects_continue: bool,
    /// Bytes of the body.
    pub body_bytes: u64,
    /// The client asks for the relay's WebSocket (RFC 6455), with this key.
    pub websocket_key: Option<String>,
    /// Headers that go on, by their names in `PASSED`.
    pub passed: Vec<(&'static str, String)>,
}

impl Head {
    /// The passed header of this name.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.passed.iter().find(|(known, _)| *known == name).map(|(_, value)| value.as_str())
    }

    /// The path without its query.
    pub(crate) fn path(&self) -> &str {
        self.target.split('?').next().unwrap_or(&self.target)
    }
}

/// How far a head has come in.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// More is needed.
    Partial,
    /// It has this many bytes, the empty line at its end included.
    Whole(usize),
}

/// Looks for the end of a head in what has come in, and refuses at once what can become none.
pub(crate) fn progress(bytes: &[u8]) -> Result<Progress, Refusal> {
    let mut line_start = 0;
    for (at, &byte) in bytes.iter().enumerate() {
        let before = at.checked_sub(1).map(|at| bytes[at]);
        match byte {
            b'\n' if before != Some(b'\r') => {
                return Err(malformed("A line ends without a carriage return."));
            }
            b'\n' if at == line_start + 1 && line_start > 0 => return Ok(Progress::Whole(at + 1)),
            b'\n' if at == line_start + 1 => return Err(malformed("The request begins with an empty line.")),
            b'\n' => line_start = at + 1,
            _ if before == Some(b'\r') => return Err(malformed("A carriage return stands alone.")),
            b' ' | b'\t' if at == line_start => return Err(malformed("A header is folded over lines.")),
            0 => return Err(malformed("A zero byte stands in the head.")),
            _ => {}
        }
    }
    if bytes.len() >= HEAD_BYTES_MAX { Err(HEAD_TOO_LARGE) } else { Ok(Progress::Partial) }
}

/// Reads a whole head and decides whether it may pass.
pub(crate) fn read(bytes: &[u8], hosts: &Hosts) -> Result<Head, Refusal> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(bytes) {
        Ok(httparse::Status::Complete(length)) if length == bytes.len() => {}
        Err(httparse::Error::TooManyHeaders) => return Err(HEAD_TOO_LARGE),
        Err(httparse::Error::Version) => {
            return Err(refusal(505, "bad_version", "Only HTTP/1.1 and HTTP/1.0 are spoken here.", ""));
        }
        _ => return Err(malformed("The head of the request is malformed.")),
    }
    let (Some(method), Some(target), Some(version)) = (request.method, request.path, request.version) else {
        return Err(malformed("The request line is not complete."));
    };
    if !["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"].contains(&method) {
        return Err(refusal(405, "bad_method", "This method is not known here.", ""));
    }
    // No absolute form: this is no proxy, and two hosts in one request are one too many.
    if !target.starts_with('/') || !target.bytes().all(|c| c.is_ascii_graphic() && c != b'#') {
        return Err(malformed("The target of the request is not a path."));
    }
    let fields = Fields(request.headers);
    let host = fields.single("Host")?.ok_or(malformed("The request names no host."))?;
    let is_old = version == 0;
    let connection = fields.list("Connection")?;
    let asks_upgrade =
        fields.single("Upgrade")?.is_some() || connection.iter().any(|token| token == "upgrade");
    let websocket_key = match (method, target, asks_upgrade) {
        ("GET", WEBSOCKET_PATH, true) if !is_old => websocket_key(&fields, &connection)?,
        _ => None,
    };
    // A relay goes by whatever name its operator gives it, and who comes there proves a key of its own.
    if websocket_key.is_none() && !hosts.admit(host) {
        return Err(refusal(
            421,
            "unknown_host",
            "This cell does not go by that name.",
            "Use its address, or add the name to `dashboard.hosts` in config.json.",
        ));
    }
    if asks_upgrade && websocket_key.is_none() {
        return Err(NO_UPGRADE);
    }
    let body_bytes = body_bytes(&fields, method)?;
    let expects_continue = match fields.single("Expect")? {
        None => false,
        Some(value) if value.eq_ignore_ascii_case("100-continue") => body_bytes > 0 && !is_old,
        Some(_) => return Err(refusal(417, "bad_expectation", "This expectation is not known here.", "")),
    };
    if !["GET", "HEAD"].contains(&method) {
        from_own_page(&fields, host)?;
    }
    let mut passed = Vec::new();
    for name in PASSED {
        if let Some(value) = fields.single(name)? {
            passed.push((name, value.to_owned()));
        }
    }
    Ok(Head {
        method: method.to_owned(),
        target: target.to_owned(),
        is_old,
        keeps_alive: !is_old && !connection.iter().any(|token| token == "close"),
        expects_continue,
        body_bytes,
        websocket_key: websocket_key.map(str::to_owned),
        passed,
    })
}

/// The key of a whole request for a WebSocket of version 13.
fn websocket_key<'b>(fields: &Fields<'_, 'b>, connection: &[String]) -> Result<Option<&'b str>, Refusal> {
    let is_websocket = fields.single("Upgrade")?.is_some_and(|to| to.eq_ignore_ascii_case("websocket"));
    let is_known = fields.single("Sec-WebSocket-Version")? == Some("13");
    let asks = is_websocket && is_known && connection.iter().any(|token| token == "upgrade");
    // 16 bytes in base64.
    let is_key = |key: &&str| {
        let letters = key.strip_suffix("==").unwrap_or_default();
        letters.len() == 22 && letters.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'+' || c == b'/')
    };
    Ok(fields.single("Sec-WebSocket-Key")?.filter(is_key).filter(|_| asks))
}

/// The length of the body, if there is exactly one way to read it.
fn body_bytes(fields: &Fields<'_, '_>, method: &str) -> Result<u64, Refusal> {
    let length = fields.single("Content-Length")?;
    if fields.single("Transfer-Encoding")?.is_some() {
        return Err(match length {
            Some(_) => malformed("The body has two lengths."),
            None => refusal(411, "length_required", "The body needs a Content-Length.", ""),
        });
    }
    let Some(digits) = length else { return Ok(0) };
    if digits.is_empty() || digits.len() > 18 || !digits.bytes().all(|c| c.is_ascii_digit()) {
        return Err(malformed("The length of the body is not a number."));
    }
    let length = digits.parse().map_err(|_| malformed("The length of the body is not a number."))?;
    if length > 0 && ["GET", "HEAD"].contains(&method) {
        return Err(malformed("A request that only reads has a body."));
    }
    Ok(length)
}

/// Refuses a change asked for by a page that is not ours. Programs other than browsers send no origin.
fn from_own_page(fields: &Fields<'_, '_>, host: &str) -> Result<(), Refusal> {
    let foreign = refusal(
        403,
        "foreign_origin",
        "A page of another site asked for this.",
        "Open the dashboard itself, at its own address.",
    );
    let site = fields.single("Sec-Fetch-Site")?;
    match fields.single("Origin")? {
        Some(origin) if !same_origin(origin, host) => Err(foreign),
        None if site.is_some_and(|site| site != "same-origin" && site != "none") => Err(foreign),
        _ => Ok(()),
    }
}

fn same_origin(origin: &str, host: &str) -> bool {
    let bare = |authority: &str, port: &str| -> String {
        authority.strip_suffix(port).unwrap_or(authority).to_ascii_lowercase()
    };
    match origin.split_once("://") {
        Some(("http", authority)) => bare(authority, ":80") == bare(host, ":80"),
        Some(("https", authority)) => bare(authority, ":443") == bare(host, ":443"),
        _ => false,
    }
}

struct Fields<'h, 'b>(&'h [httparse::Header<'b>]);

impl<'b> Fields<'_, 'b> {
    fn values<'n>(&'n self, name: &'n str) -> impl Iterator<Item = &'b [u8]> + 'n {
        self.0.iter().filter(move |header| header.name.eq_ignore_ascii_case(name)).map(|header| header.value)
    }

    /// The value of a header that may stand once.
    fn single(&self, name: &str) -> Result<Option<&'b str>, Refusal> {
        let mut values = self.values(name);
        let Some(value) = values.next() else { return Ok(None) };
        if values.next().is_some() {
            return Err(malformed("A header that may stand once stands twice."));
        }
        text(value).map(Some)
    }

    /// The tokens of a header that is a list, in small letters.
    fn list(&self, name: &str) -> Result<Vec<String>, Refusal> {
        let mut tokens = Vec::new();
        for value in self.values(name) {
            tokens.extend(text(value)?.split(',').map(|token| token.trim().to_ascii_lowercase()));
        }
        Ok(tokens)
    }
}

fn text(value: &[u8]) -> Result<&str, Refusal> {
    let visible = value.iter().all(|&c| c.is_ascii_graphic() || c == b' ' || c == b'\t');
    let text = std::str::from_utf8(value).ok().filter(|_| visible);
    text.map(str::trim).ok_or(malformed("A header is not plain text."))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts() -> Hosts {
        Hosts::new("Pi.lan", &["Cell.example.org.".to_owned(), " ".to_owned()])
    }

    /// What a head with these headers (beside a good Host) comes to.
    fn with(method: &str, headers: &str) -> Result<Head, u16> {
        whole(&format!("{method} /x HTTP/1.1\r\nHost: 10.0.0.1:5678\r\n{headers}\r\n"))
    }

    fn whole(text: &str) -> Result<Head, u16> {
        match progress(text.as_bytes()).map_err(|refusal| refusal.status)? {
            Progress::Whole(length) => {
                read(&text.as_bytes()[..length], &hosts()).map_err(|refusal| refusal.status)
            }
            Progress::Partial => Err(0),
        }
    }

    #[test]
    fn plain_request_passes_with_its_headers() {
        let head =
            with("GET", "Accept: */*\r\nX-Grove-Client: 1.2.3.4\r\nauthorization: Bearer x\r\n").unwrap();
        assert_eq!(head.passed, [("Authorization", "Bearer x".to_owned()), ("Accept", "*/*".to_owned())]);
        assert!(head.keeps_alive && !head.is_old && head.body_bytes == 0);
        assert_eq!(with("POST", "Content-Length: 12\r\n").unwrap().body_bytes, 12);
        assert!(!with("GET", "Connection: foo, Close\r\n").unwrap().keeps_alive);
        assert!(with("PUT", "Expect: 100-Continue\r\nContent-Length: 1\r\n").unwrap().expects_continue);
    }

    #[test]
    fn old_client_gets_one_request() {
        let head = whole("GET / HTTP/1.0\r\nHost: localhost\r\nConnection: keep-alive\r\n\r\n").unwrap();
        assert!(head.is_old && !head.keeps_alive);
        assert_eq!(whole("GET / HTTP/1.0\r\n\r\n"), Err(400));
        assert_eq!(whole("GET / HTTP/2.0\r\nHost: localhost\r\n\r\n"), Err(505));
        assert_eq!(whole("GET /\r\nHost: localhost\r\n\r\n"), Err(400));
    }

    #[test]
    fn body_with_two_meanings_is_refused() {
        for headers in [
            "Content-Length: 1\r\nContent-Length: 1\r\n",
            "Content-Length: 1\r\ncontent-length: 2\r\n",
            "Content-Length: 1, 1\r\n",
            "Content-Length: +5\r\n",
            "Content-Length: -5\r\n",
            "Content-Length: 0x5\r\n",
            "Content-Length: 5 5\r\n",
            "Content-Length: \r\n",
            "Content-Length: 9223372036854775807\r\n",
            "Content-Length: 99999999999999999999999999\r\n",
            "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
            "Content-Length : 5\r\n",
            "Content-Length: 5\r\n Transfer-Encoding: chunked\r\n",
            "X: a\r\n\tb\r\n",
            "X: a\rContent-Length: 5\r\n",
            "X: a\nContent-Length: 5\r\n",
            "X: a\0b\r\n",
            "Transfer-Encoding: \u{e9}\r\n",
        ] {
            assert_eq!(with("POST", headers), Err(400), "{headers:?}");
        }
        assert_eq!(with("POST", "Transfer-Encoding: chunked\r\n"), Err(411));
        assert_eq!(with("POST", "Transfer-Encoding: xchunked\r\n"), Err(411));
        assert_eq!(with("GET", "Content-Length: 1\r\n"), Err(400));
    }

    #[test]
    fn odd_lines_are_refused_as_soon_as_seen() {
        for start in
            ["\r\n", "\n", " GET", "GET / HTTP/1.1\n", "GET / HTTP/1.1\r\n X", "GET / HTTP/1.1\rX", "G\0"]
        {
            assert!(progress(start.as_bytes()).is_err(), "{start:?}");
        }
        assert_eq!(progress(b"GET / HTTP/1.1\r\nA: b\r\n\r"), Ok(Progress::Partial));
        assert_eq!(progress(b"GET / HTTP/1.1\r\nA: b\r\n\r\nmore"), Ok(Progress::Whole(24)));
        assert_eq!(progress(&[b'a'; HEAD_BYTES_MAX]), Err(HEAD_TOO_LARGE));
        assert_eq!(with("GET", &"A: b\r\n".repeat(64)), Err(431));
    }

    #[test]
    fn only_paths_and_known_methods_pass() {
        for (line, status) in [
            ("GET http://localhost/ HTTP/1.1", 400),
            ("GET x HTTP/1.1", 400),
            ("GET /a#b HTTP/1.1", 400),
            ("GET /\u{e9} HTTP/1.1", 400),
            ("GET  / HTTP/1.1", 400),
            ("GET / x HTTP/1.1", 505),
            ("CONNECT localhost:1 HTTP/1.1", 405),
            ("OPTIONS * HTTP/1.1", 405),
            ("TRACE / HTTP/1.1", 405),
            ("get / HTTP/1.1", 405),
        ] {
            assert_eq!(whole(&format!("{line}\r\nHost: localhost\r\n\r\n")), Err(status), "{line}");
        }
    }

    #[test]
    fn upgrades_and_strange_expectations_are_refused() {
        assert_eq!(with("GET", "Connection: Upgrade\r\nUpgrade: websocket\r\n"), Err(501));
        assert_eq!(with("GET", "Upgrade: h2c\r\n"), Err(501));
        let asks = "Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
        assert_eq!(with("GET", asks), Err(501), "another path");
        let relay =
            |line: &str, headers: &str| whole(&format!("{line}\r\nHost: relay.example\r\n{headers}\r\n"));
        let head = relay("GET /relay HTTP/1.1", asks).unwrap();
        assert_eq!(head.websocket_key.as_deref(), Some("dGhlIHNhbXBsZSBub25jZQ=="));
        assert_eq!(relay("POST /relay HTTP/1.1", asks), Err(421));
        assert_eq!(relay("GET /relay HTTP/1.0", asks), Err(421));
        assert_eq!(relay("GET /relay HTTP/1.1", ""), Err(421));
        assert_eq!(relay("GET /relay HTTP/1.1", &asks.replace("13", "12")), Err(421));
        assert_eq!(relay("GET /relay HTTP/1.1", &asks.replace("==", "=")), Err(421));
        assert_eq!(with("POST", "Expect: coffee\r\n"), Err(417));
    }

    #[test]
    fn only_own_names_and_addresses_are_hosts() {
        let hosts = hosts();
        for fine in [
            "localhost",
            "LOCALHOST:5678",
            "127.0.0.1",
            "192.168.1.7:5678",
            "[::1]:80",
            "[2001:db8::1]",
            "pi.local",
            "Pi.Local:5678",
            "pi.local.",
            "cell.example.org:443",
        ] {
            assert!(hosts.admit(fine), "{fine}");
        }
        for bad in [
            "",
            "evil.example",
            "localhost.evil.example",
            "pi.local.evil",
            "::1",
            "[::1",
            "[::1]x",
            "[evil]",
            "a b",
            "localhost:",
            "localhost:x",
            "localhost:99999",
            "localhost:+1",
            "127.0.0.1.evil",
            "user@localhost",
            "1.2.3",
            "0x7f.1",
        ] {
            assert!(!hosts.admit(bad), "{bad}");
        }
        assert_eq!(whole("GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n"), Err(421));
        assert_eq!(whole("GET / HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n"), Err(400));
        assert_eq!(whole("GET / HTTP/1.1\r\nA: b\r\n\r\n"), Err(400));
    }

    #[test]
    fn changes_are_taken_from_own_pages_only() {
        for fine in [
            "",
            "Origin: http://10.0.0.1:5678\r\n",
            "Origin: https://10.0.0.1:5678\r\n",
            "Sec-Fetch-Site: same-origin\r\n",
        ] {
            assert!(with("POST", fine).is_ok(), "{fine}");
        }
        for bad in [
            "Origin: null\r\n",
            "Origin: http://10.0.0.1\r\n",
            "Origin: http://10.0.0.1:5679\r\n",
            "Origin: http://evil.example\r\n",
            "Origin: http://10.0.0.1:5678.evil\r\n",
            "Origin: 10.0.0.1:5678\r\n",
            "Sec-Fetch-Site: cross-site\r\n",
            "Sec-Fetch-Site: same-site\r\n",
        ] {
            for method in ["POST", "PUT", "PATCH", "DELETE"] {
                assert_eq!(with(method, bad), Err(403), "{bad}");
            }
            assert!(with("GET", bad).is_ok(), "{bad}");
        }
        assert!(same_origin("http://localhost", "localhost:80"));
        assert!(same_origin("https://localhost", "LOCALHOST:443"));
        assert!(!same_origin("https://localhost", "localhost:80"));
    }
}

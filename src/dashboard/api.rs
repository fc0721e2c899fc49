//! What a browser or the command line asks of a cell, and what the cell answers. Touches nothing.
//!
//! Answers of the dashboard itself, beside what the cell answers:
//!
//! | request | body | answer |
//! |---|---|---|
//! | `GET /api/v1/session` | | see `Session`; public |
//! | `POST /api/v1/setup` | `{"code","password"}` | 200 `{"ok":true}` and the session cookie; public |
//! | `POST /api/v1/login` | `{"password","totp"}` | 200 `{"ok":true}` and the session cookie; public |
//! | `POST /api/v1/logout` | | 200 `{"ok":true}`, the cookie is gone |
//! | `POST /api/v1/password` | `{"current","password"}` | 200 `{"ok":true}`; the secret of the cell needs no `current` |
//! | `GET /api/v1/sessions`, `POST …/revoke` | `{"id"}` or `{"others"}` | who is signed in |
//! | `POST /api/v1/totp/begin`, `…/confirm`, `…/remove` | | the second factor |
//!
//! `GET /healthz` is public and goes to the cell, so that it shows that the cell still answers.

use std::fmt;
use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::sync::mpsc;

use miniserde::{Deserialize, Serialize, json};

/// Most parameters in a query.
const QUERY_PARAMS_MAX: usize = 64;

/// What is to be done with the thing named by the path. `HEAD` arrives as `Get`; its body is dropped on the way back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Method {
    /// Read, change nothing.
    #[default]
    Get,
    /// Do, or add.
    Post,
    /// Put in place of what is there.
    Put,
    /// Change a part.
    Patch,
    /// Take away.
    Delete,
}

impl Method {
    /// The method of this name in capitals; `None` for `HEAD` and for what Grove does not do.
    pub fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "GET" => Self::Get,
            "POST" => Self::Post,
            "PUT" => Self::Put,
            "PATCH" => Self::Patch,
            "DELETE" => Self::Delete,
            _ => return None,
        })
    }
}

/// One request that has passed the front door and the check of its sender.
#[derive(Debug, Clone)]
pub struct ApiRequest {
    /// What to do.
    pub method: Method,
    /// It is a `HEAD`: no body is sent, so that none need be made.
    pub is_head: bool,
    /// Decoded segments of the path, none for `/`. Never empty, `.` or `..`, and never with a NUL; any other
    /// bytes, a decoded `/` too, because names of files need not be UTF-8.
    pub path: Vec<Vec<u8>>,
    /// Decoded parameters of the query in their order, at most 64.
    pub query: Vec<(String, Vec<u8>)>,
    /// The `Content-Type` header, as it came.
    pub content_type: Option<String>,
    /// The `Range` header, as it came.
    pub range: Option<String>,
    /// The `If-Range` header, as it came.
    pub if_range: Option<String>,
    /// The `If-None-Match` header, as it came.
    pub if_none_match: Option<String>,
    /// The body, at most the limit of the dashboard's settings.
    pub body: Vec<u8>,
    /// The sender has the cell's secret, a session or a key. Only `/healthz` arrives without.
    pub authorized: bool,
    /// How the sender proved that it may.
    pub via: Via,
    /// Nobody on the way can read along: it came over TLS, or from this machine.
    pub is_private: bool,
    /// The answer goes out from the front door, which can send parts of a file by itself (`Body::File`).
    pub is_direct: bool,
    /// Where the request came from.
    pub client: IpAddr,
}

/// How the sender of a request proved that it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Via {
    /// Not at all.
    #[default]
    Nothing,
    /// It has the cell's own secret: a program of the cell's own user.
    Secret,
    /// It has a session.
    Session,
    /// It has an API key of this SHA-256.
    Key([u8; 32]),
}

impl Default for ApiRequest {
    fn default() -> Self {
        Self {
            method: Method::Get,
            is_head: false,
            path: Vec::new(),
            query: Vec::new(),
            content_type: None,
            range: None,
            if_range: None,
            if_none_match: None,
            body: Vec::new(),
            authorized: false,
            via: Via::Nothing,
            is_private: false,
            is_direct: false,
            client: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        }
    }
}

impl ApiRequest {
    /// The segments as text, with `\u{fffd}` where they are not UTF-8: to choose what to do, not to name files.
    pub fn path_text(&self) -> Vec<String> {
        self.path.iter().map(|segment| String::from_utf8_lossy(segment).into_owned()).collect()
    }

    /// The first parameter of this name.
    pub fn param(&self, name: &str) -> Option<&[u8]> {
        self.query.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_slice())
    }
}

/// The body of an answer.
#[derive(Debug)]
pub enum Body {
    /// All of it.
    Bytes(Vec<u8>),
    /// Piece by piece, as fast as the client takes it. An `Err` breaks the connection off, so that the client
    /// cannot take the part for the whole; so does an end before or after `length`.
    Stream {
        /// Bytes in all, if known.
        length: Option<u64>,
        /// The pieces; the channel's size bounds what waits.
        receiver: smol::channel::Receiver<io::Result<Vec<u8>>>,
    },
    /// A part of a file as it lies on the disk. Only for requests that are direct.
    File(Box<FilePart>),
}

/// A part of an open file. If the file changes before all of it was sent, the connection is broken off.
#[derive(Debug, Clone)]
pub struct FilePart {
    /// The file.
    pub file: Arc<File>,
    /// The first byte.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
    /// What the file was like when it was looked at.
    pub mark: FileMark,
}

/// Tells whether a file was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileMark {
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl FileMark {
    /// What the file is like now. Asks the file system.
    pub fn of(file: &File) -> io::Result<Self> {
        let meta = file.metadata()?;
        Ok(Self {
            size: meta.size(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        })
    }
}

/// An answer.
#[derive(Debug)]
pub struct ApiResponse {
    /// HTTP status, 200 to 599.
    pub status: u16,
    /// `Content-Type`.
    pub content_type: String,
    /// More headers. Framing, connection and security headers are not the cell's to set and are dropped.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Body,
}

impl ApiResponse {
    /// JSON, as written by `value`.
    pub fn json<T: Serialize>(status: u16, value: &T) -> Self {
        Self::json_text(status, json::to_string(value))
    }

    /// JSON that is text already.
    pub fn json_text(status: u16, text: String) -> Self {
        let content_type = "application/json".to_owned();
        Self { status, content_type, headers: vec![], body: Body::Bytes(text.into_bytes()) }
    }

    /// `{"ok":true}`.
    pub fn ok() -> Self {
        Self::json_text(200, "{\"ok\":true}".to_owned())
    }

    /// Raw bytes piece by piece.
    pub fn stream(length: Option<u64>, receiver: smol::channel::Receiver<io::Result<Vec<u8>>>) -> Self {
        let content_type = "application/octet-stream".to_owned();
        Self { status: 200, content_type, headers: vec![], body: Body::Stream { length, receiver } }
    }

    /// An error in the form that every error has.
    ///
    /// `code` is for programs, `message` says what happened, `hint` what to do about it.
    pub fn error(status: u16, code: &str, message: &str, hint: &str) -> Self {
        Self::json_text(status, error_json(code, message, hint))
    }

    /// Adds a header.
    pub fn with_header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }
}

/// `{"error":{"code","message","hint"}}`.
pub fn error_json(code: &str, message: &str, hint: &str) -> String {
    let error = ErrorText { code: code.to_owned(), message: message.to_owned(), hint: hint.to_owned() };
    json::to_string(&ErrorBody { error })
}

/// The body of every error.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ErrorBody {
    /// What went wrong.
    pub error: ErrorText,
}

/// What went wrong, for programs and for people.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ErrorText {
    /// A word for programs, in snake case.
    pub code: String,
    /// What happened.
    pub message: String,
    /// What to do about it; may be empty.
    pub hint: String,
}

/// A request and where its answer goes.
#[derive(Debug)]
pub struct Call {
    /// What is asked.
    pub request: ApiRequest,
    /// Where the answer goes.
    pub reply: Reply,
}

/// Where one answer goes. Dropped without an answer, the client hears that the cell is stopping.
#[derive(Debug)]
pub struct Reply(mpsc::SyncSender<ApiResponse>);

impl Reply {
    /// A reply and the end at which to wait for it.
    pub(crate) fn new() -> (Self, mpsc::Receiver<ApiResponse>) {
        let (sender, receiver) = mpsc::sync_channel(1);
        (Self(sender), receiver)
    }

    /// Answers; never waits. Nothing happens if nobody waits any more.
    pub fn send(self, response: ApiResponse) {
        let _ = self.0.try_send(response);
    }
}

/// The path or the query of a request cannot be understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadTarget(pub &'static str);

impl fmt::Display for BadTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for BadTarget {}

/// Segments of a path, decoded after they were cut apart, and parameters of a query.
pub type Target = (Vec<Vec<u8>>, Vec<(String, Vec<u8>)>);

/// Cuts and decodes `/a/b%20c?d=e`.
pub fn read_target(target: &str) -> Result<Target, BadTarget> {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let path = path.strip_prefix('/').ok_or(BadTarget("the path does not begin with a slash"))?;
    let mut segments = Vec::new();
    if !path.is_empty() {
        for segment in path.split('/') {
            let segment = percent_decode(segment.as_bytes(), false)?;
            if segment.is_empty() || segment == b"." || segment == b".." {
                return Err(BadTarget("a segment of the path is empty, '.' or '..'"));
            }
            if segment.contains(&0) {
                return Err(BadTarget("a segment of the path holds a zero byte"));
            }
            segments.push(segment);
        }
    }
    let mut params = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        if params.len() == QUERY_PARAMS_MAX {
            return Err(BadTarget("the query has too many parameters"));
        }
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let key = String::from_utf8(percent_decode(key.as_bytes(), true)?)
            .map_err(|_| BadTarget("the name of a parameter is not UTF-8"))?;
        params.push((key, percent_decode(value.as_bytes(), true)?));
    }
    Ok((segments, params))
}

/// Decodes `%41`, and `+` as a space where `plus_is_space`, as forms have it.
fn percent_decode(text: &[u8], plus_is_space: bool) -> Result<Vec<u8>, BadTarget> {
    let digit = |byte: Option<&u8>| byte.and_then(|b| char::from(*b).to_digit(16));
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.iter();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => match (digit(rest.next()), digit(rest.next())) {
                (Some(high), Some(low)) => (high << 4 | low) as u8,
                _ => return Err(BadTarget("a percent sign is not followed by two hexadecimal digits")),
            },
            b'+' if plus_is_space => b' ',
            byte => *byte,
        });
    }
    Ok(bytes)
}

/// `bytes` for one segment of a path or one value of a query: all but letters, digits and `-._~` become `%41`.
pub fn percent_encode(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for &byte in bytes {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            text.push(char::from(byte));
        } else {
            text.push_str(&format!("%{byte:02X}"));
        }
    }
    text
}

/// Answer of `GET /api/v1/session`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Session {
    /// The cell's name.
    pub name: String,
    /// A password was set.
    pub set_up: bool,
    /// The sender is signed in.
    pub signed_in: bool,
    /// A code of a second factor is wanted beside the password.
    pub totp: bool,
    /// Nobody on the way can read along: it came over TLS, or from this machine.
    pub secure: bool,
    /// SHA-256 of the certificate, in groups; empty where TLS is not spoken.
    pub fingerprint: String,
    /// Version of the program.
    pub version: String,
    /// There are no files yet, and the phrase is not known to be kept. Told to those who are signed in.
    pub fresh: bool,
}

/// Answer of `GET /api/v1/status`: the state of the cell.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Status {
    /// The cell's name.
    pub name: String,
    /// The cell's id, 64 hexadecimal digits.
    pub id: String,
    /// Version of the program.
    pub version: String,
    /// Seconds since the start.
    pub uptime_s: u64,
    /// Which life of this cell; 1 until it is recovered.
    pub life: u64,
    /// The folder that is kept.
    pub home: String,
    /// `ok`, or `attention` if there is an alert.
    pub state: String,
    /// What a person should know, the gravest first.
    pub alerts: Vec<Alert>,
    /// Files in the folder.
    pub files: Files,
    /// Our chunks in our store.
    pub chunks: Amount,
    /// Chunks held for peers.
    pub held: Amount,
    /// The disk under the state folder.
    pub disk: Disk,
    /// The cells we know.
    pub peers: Vec<Peer>,
    /// How many of our files have their copies.
    pub copies: Copies,
    /// The job that runs now.
    pub job: Option<Job>,
    /// Comparing the folder with what is known.
    pub scan: Scan,
}

/// Something a person should know.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Alert {
    /// A word for programs.
    pub code: String,
    /// What happened.
    pub text: String,
    /// What to do about it; may be empty.
    pub remedy: String,
    /// `urgent`, `warn` or `info`.
    pub level: String,
    /// For so long it has held.
    pub since_s: u64,
    /// Unix second at which it began, by the clock of then.
    pub since_unix: i64,
}

/// Files in the folder.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Files {
    /// How many.
    pub count: u64,
    /// Bytes of their newest versions.
    pub bytes: u64,
    /// How many have changes that are not stored yet.
    pub waiting: u64,
}

/// Chunks.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Amount {
    /// How many.
    pub count: u64,
    /// Sealed bytes.
    pub bytes: u64,
}

/// A disk.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Disk {
    /// Bytes in all.
    pub total: u64,
    /// Bytes free for this user.
    pub free: u64,
    /// Bytes that are never used.
    pub reserve: u64,
}

/// A cell we know.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Peer {
    /// Its name.
    pub name: String,
    /// Its id, 64 hexadecimal digits.
    pub id: String,
    /// `peer`, `friend` or `favorite`.
    pub role: String,
    /// There is a connection now.
    pub online: bool,
    /// Seconds since it was last heard; null if never.
    pub last_seen_s: Option<u64>,
    /// Sealed bytes it holds for us.
    pub held_for_us_bytes: u64,
    /// Sealed bytes we hold for it.
    pub held_for_them_bytes: u64,
}

/// How many of our files have their copies.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Copies {
    /// Copies wanted of each file on peers.
    pub wanted: u64,
    /// Files that have them.
    pub full: u64,
    /// Files that have not.
    pub short: u64,
}

/// A job that runs.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Job {
    /// A word for programs.
    pub kind: String,
    /// What is being done.
    pub text: String,
    /// How far.
    pub done: u64,
    /// Of how much; 0 if not known.
    pub total: u64,
    /// What is counted: `bytes`, `files` or `chunks`.
    pub unit: String,
}

/// Comparing the folder with what is known.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Scan {
    /// It runs now.
    pub running: bool,
    /// Seconds since the last one ended; null if none has since the start.
    pub last_s: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_are_cut_before_they_are_decoded() {
        let (path, query) = read_target("/api/v1/files/a%2Fb%20c%FF+?to=x+y%2B&raw").unwrap();
        assert_eq!(path, [b"api".to_vec(), b"v1".to_vec(), b"files".to_vec(), b"a/b c\xff+".to_vec()]);
        assert_eq!(query, [("to".to_owned(), b"x y+".to_vec()), ("raw".to_owned(), vec![])]);
        assert_eq!(read_target("/"), Ok((vec![], vec![])));
    }

    #[test]
    fn odd_targets_are_refused() {
        let many = format!("/?{}", "a&".repeat(65));
        for bad in [
            "",
            "x",
            "//",
            "/a/",
            "/a//b",
            "/.",
            "/a/%2e%2E",
            "/%",
            "/%1",
            "/%g1",
            "/a%00",
            "/?a=%4",
            "/?%FF=1",
        ] {
            assert!(read_target(bad).is_err(), "{bad}");
        }
        assert!(read_target(&many).is_err());
    }

    #[test]
    fn every_byte_reads_back_after_encoding() {
        let all: Vec<u8> = (1..=255).collect();
        let (path, _) = read_target(&format!("/{}", percent_encode(&all))).unwrap();
        assert_eq!(path[0], all);
        let (_, query) = read_target(&format!("/?k={}", percent_encode(&all))).unwrap();
        assert_eq!(query[0].1, all);
    }

    #[test]
    fn errors_have_one_form() {
        let text = error_json("no_space", "The disk is \"full\".", "");
        assert_eq!(text, r#"{"error":{"code":"no_space","message":"The disk is \"full\".","hint":""}}"#);
    }
}

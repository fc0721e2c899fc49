//! The command line's side of the cell's HTTP API. Blocks; knows nothing of what is asked.
//!
//! Promise: a body that ends early is an error, never a short file.

use std::fmt;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use miniserde::json;

use crate::dashboard::api::ErrorBody;
pub use crate::dashboard::api::percent_encode;

/// How long this machine may take to accept a connection.
const CONNECT_WAIT: Duration = Duration::from_secs(5);
/// How long the cell may be silent: a little longer than it gives itself.
const READ_WAIT: Duration = Duration::from_secs(150);
/// How long the cell may leave a request unread.
const WRITE_WAIT: Duration = Duration::from_secs(30);
/// Largest head of an answer.
const HEAD_BYTES_MAX: u64 = 16 * 1024;
/// Most headers of an answer.
const HEADERS_MAX: usize = 64;
/// Longest line with the size of a chunk.
const CHUNK_LINE_BYTES_MAX: u64 = 20;
/// Largest answer that `Response::bytes` reads when not told otherwise: lists of 100,000 files fit.
pub const ANSWER_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// Largest error that is read.
const ERROR_BYTES_MAX: u64 = 64 * 1024;

/// Why there is no answer, or what the cell answered instead.
#[derive(Debug)]
pub enum ClientError {
    /// Nobody listens on this port.
    NotRunning {
        /// The port.
        port: u16,
    },
    /// The connection failed while doing this.
    Broken {
        /// What was being done.
        doing: &'static str,
        /// What went wrong.
        error: io::Error,
    },
    /// The cell said no.
    Refused {
        /// HTTP status.
        status: u16,
        /// A word for programs.
        code: String,
        /// What happened.
        message: String,
        /// What to do about it; may be empty.
        hint: String,
    },
    /// What came is no answer of a cell.
    NotUnderstood(&'static str),
}

impl fmt::Display for ClientError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotRunning { port } => {
                write!(f, "no cell answers on port {port} of this machine; start it with `grove run`")
            }
            Self::Broken { doing, error } => write!(f, "{doing} the cell: {error}"),
            Self::Refused { message, hint, .. } if hint.is_empty() => f.write_str(message),
            Self::Refused { message, hint, .. } => write!(f, "{message} {hint}"),
            Self::NotUnderstood(what) => write!(f, "the answer is not that of a cell: {what}"),
        }
    }
}

impl std::error::Error for ClientError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Broken { error, .. } => Some(error),
            _ => None,
        }
    }
}

fn broken(doing: &'static str) -> impl Fn(io::Error) -> ClientError {
    move |error| ClientError::Broken { doing, error }
}

/// Asks the cell that runs on this machine. Each request has its own connection.
#[derive(Clone)]
pub struct Client {
    port: u16,
    secret: String,
    read_wait: Duration,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Client(port {})", self.port)
    }
}

impl Client {
    /// Asks on this port of 127.0.0.1 with the cell's secret, the text in the file `peer_secret`.
    pub fn new(port: u16, secret: &str) -> Self {
        Self { port, secret: secret.trim().to_owned(), read_wait: READ_WAIT }
    }

    /// The same, waiting at most so long (and at least a millisecond) for each piece of an answer.
    pub fn with_read_wait(mut self, wait: Duration) -> Self {
        self.read_wait = wait.max(Duration::from_millis(1));
        self
    }

    /// Sends a request and reads the head of its answer, whatever the status.
    ///
    /// `path` begins with a slash; bytes that are not letters or digits stand in it as `percent_encode` makes them.
    pub fn request(&self, method: &str, path: &str, body: Option<&[u8]>) -> Result<Response, ClientError> {
        let is_plain = |text: &str| text.bytes().all(|c| c.is_ascii_graphic());
        if !path.starts_with('/') || !is_plain(path) || !is_plain(method) || !is_plain(&self.secret) {
            return Err(ClientError::NotUnderstood("the request itself is malformed"));
        }
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.port));
        let stream =
            TcpStream::connect_timeout(&address, CONNECT_WAIT).map_err(|error| match error.kind() {
                io::ErrorKind::ConnectionRefused => ClientError::NotRunning { port: self.port },
                _ => broken("connecting to")(error),
            })?;
        stream.set_read_timeout(Some(self.read_wait)).map_err(broken("connecting to"))?;
        stream.set_write_timeout(Some(WRITE_WAIT)).map_err(broken("connecting to"))?;
        stream.set_nodelay(true).map_err(broken("connecting to"))?;

        let length = match body {
            Some(body) => format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len()),
            None => String::new(),
        };
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{}\r\nAuthorization: Bearer {}\r\n\
             Connection: close\r\n{length}\r\n",
            self.port, self.secret,
        );
        let sent = send(&stream, head.as_bytes(), body.unwrap_or_default());
        // A cell that refuses a body answers before it has read it.
        match read_head(stream, method) {
            Ok(response) => Ok(response),
            Err(error) => Err(sent.err().map_or(error, broken("asking"))),
        }
    }

    /// Asks for a whole JSON text. A refusal of the cell is an error.
    pub fn get_json(&self, path: &str) -> Result<String, ClientError> {
        self.request("GET", path, None)?.into_ok()?.text()
    }

    /// Posts JSON and reads the JSON that answers it. A refusal of the cell is an error.
    pub fn post_json(&self, path: &str, body: &str) -> Result<String, ClientError> {
        self.request("POST", path, Some(body.as_bytes()))?.into_ok()?.text()
    }
}

fn send(mut stream: &TcpStream, head: &[u8], body: &[u8]) -> io::Result<()> {
    stream.write_all(&[head, body].concat())
}

/// An answer; its body is still to be read.
#[derive(Debug)]
pub struct Response {
    /// HTTP status.
    pub status: u16,
    /// `Content-Type`, empty if there is none.
    pub content_type: String,
    /// The body, as it comes.
    pub body: BodyReader,
}

impl Response {
    /// The answer if its status is 2xx, else what the cell says about it.
    pub fn into_ok(self) -> Result<Self, ClientError> {
        if (200..300).contains(&self.status) {
            return Ok(self);
        }
        let status = self.status;
        let text = self.bytes(ERROR_BYTES_MAX).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        let told = text.and_then(|text| json::from_str::<ErrorBody>(&text).ok()).map(|body| body.error);
        let (code, message, hint) = match told {
            Some(error) => (error.code, error.message, error.hint),
            None => ("unknown".to_owned(), format!("the cell answered with status {status}"), String::new()),
        };
        Err(ClientError::Refused { status, code, message, hint })
    }

    /// The whole body, if it has at most `max` bytes.
    pub fn bytes(self, max: u64) -> Result<Vec<u8>, ClientError> {
        let mut bytes = Vec::new();
        let read = self.body.take(max.saturating_add(1)).read_to_end(&mut bytes);
        read.map_err(broken("reading the answer of"))?;
        if bytes.len() as u64 > max {
            return Err(ClientError::NotUnderstood("it is too long"));
        }
        Ok(bytes)
    }

    /// The whole body as text.
    pub fn text(self) -> Result<String, ClientError> {
        let bytes = self.bytes(ANSWER_BYTES_MAX)?;
        String::from_utf8(bytes).map_err(|_| ClientError::NotUnderstood("it is not UTF-8"))
    }
}

/// What is left of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Left {
    Bytes(u64),
    Chunks { bytes: u64, is_first: bool },
    Nothing,
}

/// A body as it comes. A read fails with `UnexpectedEof` if it ends before it is whole.
#[derive(Debug)]
pub struct BodyReader {
    stream: BufReader<TcpStream>,
    left: Left,
}

impl Read for BodyReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if let Left::Chunks { bytes: 0, is_first } = self.left {
            self.left = self.next_chunk(is_first)?;
        }
        let left = match &mut self.left {
            Left::Bytes(bytes) | Left::Chunks { bytes, .. } => bytes,
            Left::Nothing => return Ok(0),
        };
        let most = usize::try_from(*left).unwrap_or(usize::MAX).min(buffer.len());
        if most == 0 {
            return Ok(0);
        }
        let length = self.stream.read(&mut buffer[..most])?;
        if length == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        *left -= length as u64;
        Ok(length)
    }
}

impl BodyReader {
    fn next_chunk(&mut self, is_first: bool) -> io::Result<Left> {
        if !is_first && !self.line()?.is_empty() {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let digits = self.line()?;
        if digits.is_empty() || !digits.bytes().all(|c| c.is_ascii_hexdigit()) {
            return Err(io::ErrorKind::InvalidData.into());
        }
        match u64::from_str_radix(&digits, 16).map_err(|_| io::ErrorKind::InvalidData)? {
            0 if self.line()?.is_empty() => Ok(Left::Nothing),
            0 => Err(io::ErrorKind::InvalidData.into()),
            bytes => Ok(Left::Chunks { bytes, is_first: false }),
        }
    }

    /// A short line, without its end.
    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        self.stream.by_ref().take(CHUNK_LINE_BYTES_MAX).read_line(&mut line)?;
        match line.strip_suffix("\r\n") {
            Some(line) => Ok(line.to_owned()),
            None if line.len() as u64 == CHUNK_LINE_BYTES_MAX => Err(io::ErrorKind::InvalidData.into()),
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

fn read_head(stream: TcpStream, method: &str) -> Result<Response, ClientError> {
    let mut stream = BufReader::with_capacity(64 * 1024, stream);
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let room = HEAD_BYTES_MAX.saturating_sub(head.len() as u64);
        let read = stream.by_ref().take(room).read_until(b'\n', &mut head);
        if read.map_err(broken("waiting for"))? == 0 {
            return Err(match room {
                0 => ClientError::NotUnderstood("its head is too long"),
                _ => broken("waiting for")(io::ErrorKind::UnexpectedEof.into()),
            });
        }
    }
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut answer = httparse::Response::new(&mut headers);
    let whole = matches!(answer.parse(&head), Ok(httparse::Status::Complete(_)));
    let status = answer.code.filter(|_| whole).ok_or(ClientError::NotUnderstood("its head is malformed"))?;

    let (mut length, mut is_chunked, mut content_type) = (None, false, String::new());
    for header in answer.headers.iter() {
        let value = std::str::from_utf8(header.value).unwrap_or_default().trim();
        if header.name.eq_ignore_ascii_case("Content-Length") {
            let bytes = value.parse().ok().filter(|_| value.bytes().all(|c| c.is_ascii_digit()));
            let bytes: u64 = bytes.ok_or(ClientError::NotUnderstood("its length is no number"))?;
            if length.replace(bytes).is_some() {
                return Err(ClientError::NotUnderstood("it has two lengths"));
            }
        } else if header.name.eq_ignore_ascii_case("Transfer-Encoding") {
            if !value.eq_ignore_ascii_case("chunked") || is_chunked {
                return Err(ClientError::NotUnderstood("its encoding is not known"));
            }
            is_chunked = true;
        } else if header.name.eq_ignore_ascii_case("Content-Type") {
            content_type = value.to_owned();
        }
    }
    let left = match (length, is_chunked) {
        _ if method == "HEAD" || status < 200 || [204, 304].contains(&status) => Left::Nothing,
        (None, true) => Left::Chunks { bytes: 0, is_first: true },
        (Some(length), false) => Left::Bytes(length),
        _ => return Err(ClientError::NotUnderstood("it does not have one length")),
    };
    Ok(Response { status, content_type, body: BodyReader { stream, left } })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;
    use std::thread;

    /// Asks a server that answers with these bytes and closes; gives what it was asked, too.
    fn exchange(method: &str, answer: &'static [u8]) -> (String, Result<Response, ClientError>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = Client::new(listener.local_addr().unwrap().port(), " secret\n");
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut asked = Vec::new();
            let mut piece = [0; 512];
            while !asked.windows(4).any(|four| four == b"\r\n\r\n") {
                let length = stream.read(&mut piece).unwrap();
                asked.extend_from_slice(&piece[..length]);
            }
            stream.write_all(answer).unwrap();
            String::from_utf8(asked).unwrap()
        });
        let response = client.request(method, "/api/v1/x?y=%20", None);
        (server.join().unwrap(), response)
    }

    fn body(answer: &'static [u8]) -> Result<Vec<u8>, ClientError> {
        exchange("GET", answer).1?.bytes(1000)
    }

    #[test]
    fn request_carries_host_and_secret() {
        let (asked, response) = exchange("GET", b"HTTP/1.1 204 No Content\r\n\r\n");
        assert!(asked.starts_with("GET /api/v1/x?y=%20 HTTP/1.1\r\nHost: 127.0.0.1:"));
        assert!(asked.contains("\r\nAuthorization: Bearer secret\r\n"));
        assert_eq!(response.unwrap().bytes(0).unwrap(), b"");
    }

    #[test]
    fn both_framings_are_read() {
        assert_eq!(body(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello").unwrap(), b"hello");
        let chunks = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nA\r\n, my world\r\n0\r\n\r\n";
        assert_eq!(body(chunks).unwrap(), b"hello, my world");
        let (_, head) = exchange("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n");
        assert_eq!(head.unwrap().bytes(0).unwrap(), b"");
    }

    #[test]
    fn short_or_odd_answers_are_errors() {
        let bads: [&[u8]; 14] = [
            b"",
            b"HTTP/1.1 200 OK\r\n",
            b"nonsense\r\n\r\n",
            b"HTTP/1.1 200 OK\r\n\r\nhello",
            b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nhello",
            b"HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\nhello",
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\nhello",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nhello",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhelloXX0\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff0\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\nhello\r\n0\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 1001\r\n\r\n",
        ];
        for bad in bads {
            assert!(body(bad).is_err(), "{}", String::from_utf8_lossy(bad));
        }
        let long: &'static [u8] = Box::leak(vec![b'a'; 40_000].into_boxed_slice());
        assert!(matches!(body(long), Err(ClientError::NotUnderstood(_) | ClientError::Broken { .. })));
    }

    #[test]
    fn answer_longer_than_allowed_is_refused() {
        let (_, response) = exchange("GET", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello");
        assert!(matches!(response.unwrap().bytes(4), Err(ClientError::NotUnderstood(_))));
    }

    #[test]
    fn refusal_says_what_the_cell_says() {
        let answer = b"HTTP/1.1 409 Conflict\r\nContent-Length: 58\r\n\r\n{\"error\":{\"code\":\"c\",\"message\":\"It is so.\",\"hint\":\"Do.\"}}\n";
        let error = exchange("GET", answer).1.unwrap().into_ok().unwrap_err();
        assert!(matches!(&error, ClientError::Refused { status: 409, code, .. } if code == "c"), "{error:?}");
        assert_eq!(error.to_string(), "It is so. Do.");
        let other = b"HTTP/1.1 500 X\r\nContent-Length: 2\r\n\r\nno";
        let error = exchange("GET", other).1.unwrap().into_ok().unwrap_err();
        assert_eq!(error.to_string(), "the cell answered with status 500");
    }

    #[test]
    fn cell_that_does_not_run_is_named() {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let error = Client::new(port, "secret").request("GET", "/", None).unwrap_err();
        assert!(error.to_string().contains("`grove run`"), "{error}");
    }

    #[test]
    fn nothing_can_be_smuggled_into_a_request() {
        let client = Client::new(1, "secret");
        for (method, path) in
            [("GET", "x"), ("GET", "/a b"), ("GET", "/a\r\nX: y"), ("GET /", "/"), ("GET", "/é")]
        {
            let error = client.request(method, path, None).unwrap_err();
            assert!(matches!(error, ClientError::NotUnderstood(_)));
        }
        assert!(Client::new(1, "a\r\nb").request("GET", "/", None).is_err());
    }

    #[test]
    fn silent_cell_is_not_waited_for_for_ever() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = Client::new(listener.local_addr().unwrap().port(), "secret");
        let client = client.with_read_wait(Duration::from_millis(50));
        assert!(matches!(client.request("GET", "/", None), Err(ClientError::Broken { .. })));
    }
}

//! The WebSocket handshake (RFC 6455, section 4), and a client's byte stream over binary messages.

use std::cell::{Cell, RefCell};
use std::io;
use std::ops::Range;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use sha1::{Digest, Sha1};
use smol::io::{AsyncRead, AsyncWrite};

use super::frame::{Control, Decoder, Event, From, Head, Kind, code, put_control, unmask};
use super::{MESSAGE_BYTES_MAX, Url};
use crate::keys::random;
use crate::wire::{ByteStream, read_some, write_full};

/// Most bytes of the head of an answer.
const ANSWER_BYTES_MAX: usize = 8 * 1024;
/// Most headers of a request or an answer.
pub const HEADERS_MAX: usize = 64;
/// Raw bytes read at once.
const INPUT_BYTES: usize = 64 * 1024;
/// Room for the head of a masked message, in front of it.
const HEAD_ROOM: usize = 8;
/// Pongs that wait for the socket; of more pings only the last is answered.
const CONTROL_WAITING_MAX: usize = 1024;
/// Random bytes for masks, fetched together.
const MASK_POOL_BYTES: usize = 256;

fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let word =
            group.iter().enumerate().fold(0u32, |word, (i, byte)| word | u32::from(*byte) << (16 - 8 * i));
        for i in 0..4 {
            let letter = LETTERS[(word >> (18 - 6 * i)) as usize & 63] as char;
            text.push(if i <= group.len() { letter } else { '=' });
        }
    }
    text
}

/// What a server must answer to a client's `Sec-WebSocket-Key` (RFC 6455, section 4.2.2).
pub fn accept_of(key: &str) -> String {
    let mut hash = Sha1::new();
    hash.update(key.as_bytes());
    hash.update(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    base64(&hash.finalize())
}

/// The answer that ends a handshake well.
pub fn switching(key: &str) -> String {
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {}\r\n\r\n",
        accept_of(key)
    )
}

fn header<'b>(headers: &[httparse::Header<'b>], name: &str) -> Option<&'b str> {
    let mut found = headers.iter().filter(|header| header.name.eq_ignore_ascii_case(name));
    let value = found.next()?.value;
    if found.next().is_some() { None } else { std::str::from_utf8(value).ok().map(str::trim) }
}

fn has_token(list: Option<&str>, token: &str) -> bool {
    list.is_some_and(|list| list.split(',').any(|item| item.trim().eq_ignore_ascii_case(token)))
}

/// The `Sec-WebSocket-Key` of a request that asks for a WebSocket of version 13.
pub fn key_of<'b>(request: &httparse::Request<'_, 'b>) -> Option<&'b str> {
    let headers = &*request.headers;
    let asks = request.method == Some("GET")
        && request.version == Some(1)
        && has_token(header(headers, "Upgrade"), "websocket")
        && has_token(header(headers, "Connection"), "upgrade")
        && header(headers, "Sec-WebSocket-Version") == Some("13");
    header(headers, "Sec-WebSocket-Key").filter(|key| asks && is_key(key))
}

/// 16 bytes in base64.
pub fn is_key(key: &str) -> bool {
    let letters = key.strip_suffix("==").unwrap_or_default();
    letters.len() == 22 && letters.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'+' || c == b'/')
}

/// Asks for a WebSocket; what came after the answer's head is given back.
pub async fn ask<S: ByteStream>(
    stream: &mut S,
    url: &Url,
    limit: std::time::Duration,
) -> Result<Vec<u8>, AskError> {
    let key = base64(&random::<16>());
    let request = format!(
        "GET {} HTTP/1.1\r\nHost: {}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\nUser-Agent: grove/{}\r\n\r\n",
        url.path,
        url.authority(),
        env!("CARGO_PKG_VERSION")
    );
    write_full(stream, request.as_bytes(), limit).await?;
    crate::wire::flush(stream, limit).await?;
    let mut answer = vec![0; ANSWER_BYTES_MAX];
    let mut len = 0;
    loop {
        if len == answer.len() {
            return Err(AskError::NoWebSocket(0));
        }
        match read_some(stream, &mut answer[len..], limit).await? {
            0 => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            n => len += n,
        }
        let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut response = httparse::Response::new(&mut headers);
        match response.parse(&answer[..len]) {
            Ok(httparse::Status::Partial) => {}
            Ok(httparse::Status::Complete(head)) => {
                let status = response.code.unwrap_or(0);
                let is_ours = status == 101
                    && has_token(header(response.headers, "Upgrade"), "websocket")
                    && header(response.headers, "Sec-WebSocket-Accept") == Some(accept_of(&key).as_str());
                return if is_ours {
                    Ok(answer[head..len].to_vec())
                } else {
                    Err(AskError::NoWebSocket(status))
                };
            }
            Err(_) => return Err(AskError::NoWebSocket(0)),
        }
    }
}

/// Why there is no WebSocket.
#[derive(Debug)]
pub enum AskError {
    /// The connection broke, or nothing came in time.
    Broken(io::Error),
    /// Something else answers there: its HTTP status, or 0 if it speaks no HTTP.
    NoWebSocket(u16),
}

impl std::convert::From<io::Error> for AskError {
    fn from(error: io::Error) -> Self {
        Self::Broken(error)
    }
}

/// What a stream and whoever watches over it tell each other.
#[derive(Debug)]
pub struct Signals {
    /// When the last byte came in.
    pub heard_at: Cell<Instant>,
    /// A ping should go out with the next flush.
    pub wants_ping: Cell<bool>,
    /// The other side's last word.
    pub close: RefCell<Option<(Option<u16>, String)>>,
}

/// A byte stream in binary messages, as a client: what it writes is masked.
///
/// Bytes are collected to messages; `poll_flush` sends what there is. Reading answers pings, also with the next flush.
pub struct MessageStream<S> {
    inner: S,
    decoder: Decoder,
    input: Vec<u8>,
    /// Raw bytes in `input` that are not decoded yet.
    raw: Range<usize>,
    /// Payload in `input` that nobody has read yet.
    payload: Range<usize>,
    /// A message being collected, behind room for its head; or, sealed, what is being sent.
    out: Vec<u8>,
    is_sealed: bool,
    sent: usize,
    control: Vec<u8>,
    masks: [u8; MASK_POOL_BYTES],
    masks_used: usize,
    has_ended: bool,
    signals: Rc<Signals>,
}

impl<S: ByteStream> MessageStream<S> {
    /// After the handshake; `ahead` came with its answer.
    pub fn new(inner: S, ahead: &[u8]) -> Self {
        let mut input = vec![0; INPUT_BYTES.max(ahead.len())];
        input[..ahead.len()].copy_from_slice(ahead);
        Self {
            inner,
            decoder: Decoder::new(From::Server, MESSAGE_BYTES_MAX as u64),
            input,
            raw: 0..ahead.len(),
            payload: 0..0,
            out: Vec::new(),
            is_sealed: false,
            sent: 0,
            control: Vec::new(),
            masks: [0; MASK_POOL_BYTES],
            masks_used: MASK_POOL_BYTES,
            has_ended: false,
            signals: Rc::new(Signals {
                heard_at: Cell::new(Instant::now()),
                wants_ping: Cell::new(false),
                close: RefCell::new(None),
            }),
        }
    }

    /// See `Signals`.
    pub fn signals(&self) -> Rc<Signals> {
        Rc::clone(&self.signals)
    }

    /// The next whole message; over `bytes_max` bytes, or the end, is an error.
    pub async fn message(&mut self, bytes_max: usize) -> io::Result<Vec<u8>> {
        let mut message = Vec::new();
        loop {
            let (piece, is_last) = std::future::poll_fn(|cx| self.poll_piece(cx)).await?;
            message.extend_from_slice(&self.input[piece]);
            if message.len() > bytes_max {
                return Err(broken("a message is too long"));
            }
            if self.has_ended {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if is_last {
                return Ok(message);
            }
        }
    }

    fn mask(&mut self) -> [u8; 4] {
        if self.masks_used == MASK_POOL_BYTES {
            self.masks = random();
            self.masks_used = 0;
        }
        let mask = self.masks[self.masks_used..self.masks_used + 4].try_into().expect("four bytes");
        self.masks_used += 4;
        mask
    }

    fn control(&mut self, control: Control<'_>) {
        if self.control.len() > CONTROL_WAITING_MAX {
            self.control.clear();
        }
        let mask = self.mask();
        put_control(&mut self.control, control, Some(mask));
    }

    /// Payload in `input`, and whether it ends a message. Empty at the end of the stream.
    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<(Range<usize>, bool)>> {
        enum Step {
            More,
            Pong(Vec<u8>),
            Close(Option<u16>, String),
            Go,
        }
        loop {
            if self.has_ended {
                return Poll::Ready(Ok((0..0, true)));
            }
            let mut at = self.raw.start;
            let step = match self.decoder.next(&mut self.input[..self.raw.end], &mut at) {
                Ok(None) => Step::More,
                Ok(Some(Event::Data { kind: Kind::Binary, bytes, is_last })) => {
                    let piece = at - bytes.len()..at;
                    self.raw.start = at;
                    return Poll::Ready(Ok((piece, is_last)));
                }
                Ok(Some(Event::Data { .. })) => return Poll::Ready(Err(broken("text instead of bytes"))),
                Ok(Some(Event::Ping(bytes))) => Step::Pong(bytes.to_vec()),
                Ok(Some(Event::Pong)) => Step::Go,
                Ok(Some(Event::Close { code, reason })) => Step::Close(code, reason.to_owned()),
                Err(violation) => return Poll::Ready(Err(broken(violation.what))),
            };
            self.raw.start = at;
            match step {
                Step::Go => {}
                Step::Pong(bytes) => self.control(Control::Pong(&bytes)),
                Step::Close(code, reason) => {
                    *self.signals.close.borrow_mut() = Some((code, reason));
                    self.control(Control::Close { code, reason: "" });
                    self.has_ended = true;
                }
                Step::More => match ready!(Pin::new(&mut self.inner).poll_read(cx, &mut self.input))? {
                    0 => self.has_ended = true,
                    n => {
                        self.raw = 0..n;
                        self.signals.heard_at.set(Instant::now());
                    }
                },
            }
        }
    }

    /// Puts head and mask to what was collected, and control frames behind it.
    fn seal(&mut self) {
        if self.signals.wants_ping.take() {
            self.control(Control::Ping);
        }
        self.sent = 0;
        if self.out.len() > HEAD_ROOM {
            let mask = self.mask();
            unmask(&mut self.out[HEAD_ROOM..], mask, 0);
            let head = Head::binary(self.out.len() - HEAD_ROOM, Some(mask));
            let head = head.as_slice();
            self.sent = HEAD_ROOM - head.len();
            self.out[self.sent..HEAD_ROOM].copy_from_slice(head);
        } else {
            self.out.clear();
        }
        self.out.append(&mut self.control);
        self.is_sealed = true;
    }

    /// Sends what is sealed.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.sent < self.out.len() {
            match ready!(Pin::new(&mut self.inner).poll_write(cx, &self.out[self.sent..]))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                n => self.sent += n,
            }
        }
        self.out.clear();
        self.is_sealed = false;
        Poll::Ready(Ok(()))
    }
}

fn broken(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the relay breaks the rules: {what}"))
}

impl<S: ByteStream> AsyncRead for MessageStream<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        while this.payload.is_empty() {
            this.payload = ready!(this.poll_piece(cx))?.0;
            if this.has_ended {
                return Poll::Ready(Ok(0));
            }
        }
        let n = this.payload.len().min(buf.len());
        buf[..n].copy_from_slice(&this.input[this.payload.start..this.payload.start + n]);
        this.payload.start += n;
        Poll::Ready(Ok(n))
    }
}

impl<S: ByteStream> AsyncWrite for MessageStream<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        if this.is_sealed {
            ready!(this.poll_send(cx))?;
        }
        if this.out.is_empty() {
            this.out.resize(HEAD_ROOM, 0);
        }
        let n = buf.len().min(MESSAGE_BYTES_MAX + HEAD_ROOM - this.out.len());
        this.out.extend_from_slice(&buf[..n]);
        if this.out.len() == MESSAGE_BYTES_MAX + HEAD_ROOM {
            this.seal();
            if let Poll::Ready(Err(error)) = this.poll_send(cx) {
                return Poll::Ready(Err(error));
            }
        }
        Poll::Ready(Ok(n))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            if this.is_sealed {
                ready!(this.poll_send(cx))?;
            }
            let has_more =
                this.out.len() > HEAD_ROOM || !this.control.is_empty() || this.signals.wants_ping.get();
            if !has_more {
                return Pin::new(&mut this.inner).poll_flush(cx);
            }
            this.seal();
        }
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.has_ended {
            self.has_ended = true;
            self.control(Control::Close { code: Some(code::NORMAL), reason: "" });
        }
        ready!(self.as_mut().poll_flush(cx))?;
        Pin::new(&mut self.inner).poll_close(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accept_is_the_one_of_the_specification() {
        assert_eq!(accept_of("dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert!(is_key("dGhlIHNhbXBsZSBub25jZQ==") && !is_key("dGhlIHNhbXBsZSBub25jZQ="));
        assert_eq!(base64(b"ab"), "YWI=");
    }

    fn key(text: &str) -> Option<String> {
        let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut request = httparse::Request::new(&mut headers);
        request.parse(text.as_bytes()).unwrap();
        key_of(&request).map(str::to_owned)
    }

    #[test]
    fn only_a_whole_request_asks_for_a_websocket() {
        let good = "GET /relay HTTP/1.1\r\nHost: x\r\nupgrade: WebSocket\r\nConnection: keep-alive, Upgrade\r\n\
                    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
        assert_eq!(key(good).as_deref(), Some("dGhlIHNhbXBsZSBub25jZQ=="));
        for (what, instead) in [
            ("GET", "POST"),
            ("/1.1", "/1.0"),
            ("WebSocket\r\nConn", "h2c\r\nConn"),
            ("Upgrade\r\n", "x\r\n"),
            (": 13", ": 12"),
            ("ZQ==", "ZQ="),
            ("Host: x", "Sec-WebSocket-Version: 13"),
        ] {
            assert_eq!(key(&good.replacen(what, instead, 1)), None, "{instead}");
        }
    }
}

//! Many streams on one connection (yamux), opened by either side: one stream is one request.
//!
//! Bytes are copied once each way: a stream writes its frames where they are sealed, and its reader takes what came where
//! it was opened. Whoever reads or writes moves the connection itself as long as the socket goes along; what waits for the
//! socket waits in the driver.
//!
//! Promise: a peer that opens too many streams, reads none or says nothing costs bounded memory, and a connection
//! that ends takes all its streams with it, each with an error.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker, ready};
use std::time::{Duration, Instant};

use futures_util::task::AtomicWaker;
use smol::Timer;
use smol::channel::{self, Receiver, Sender};
use smol::io::{AsyncRead, AsyncWrite};
use smol::lock::{Semaphore, SemaphoreGuardArc};

use super::yamux::{
    ACK, BODY_BYTES_MAX, FIN, Flow, Growth, HEAD_BYTES, Head, HeadBytes, Kind, RST, SYN, WINDOW_BYTES,
};
use super::{Below, memory};
use crate::keys::random;
use crate::world::{self, Dice};

/// What yamux grants each stream at least (its specification).
pub const STREAM_WINDOW_BYTES: usize = WINDOW_BYTES as usize;
/// A close that cannot be sent is given up after this.
pub const CLOSE_TIME_MAX: Duration = Duration::from_secs(5);

/// Payload of one data frame on a line without caps.
const FRAME_BYTES: usize = 16 * 1024;
/// A frame shorter than it could be is not begun in less room than this.
const ROOM_BYTES_MIN: usize = 1024;
/// A peer that sends without pause lets other tasks run after so many bytes.
const READ_TURN_BYTES: usize = 512 * 1024;
/// Frames without a body that wait to be sent; with so many nothing more is read, for what is read may ask for others.
const CONTROLS_MAX: usize = 256;
/// The round trip is measured this often while anything comes in.
const PING_EVERY: Duration = Duration::from_secs(10);

/// What one session may use.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Streams that we have open at once; further ones wait.
    pub streams_out: usize,
    /// Streams that the peer has open at once; further ones are reset. More than `streams_out`, for the peer may
    /// count a stream as done a moment before we do.
    pub streams_in: usize,
    /// Payload of one data frame, at most: what a short message may have to wait for, per busy stream.
    pub frame_bytes: usize,
    /// By how many bytes the receive windows of all streams together may grow beyond 256 KiB each.
    pub window_growth_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { streams_out: 16, streams_in: 24, frame_bytes: FRAME_BYTES, window_growth_bytes: 4 << 20 }
    }
}

/// Why a session ended, or gives no stream.
#[derive(Debug)]
pub enum SessionError {
    /// One of the two sides closed it.
    Closed,
    /// The connection broke.
    Broken(io::Error),
    /// The peer does not keep to the protocol of streams.
    Protocol(String),
}

impl fmt::Display for SessionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed => f.write_str("the connection is closed"),
            Self::Broken(error) => write!(f, "the connection broke: {error}"),
            Self::Protocol(what) => write!(f, "the peer broke the protocol of streams: {what}"),
        }
    }
}

impl std::error::Error for SessionError {}

impl From<io::Error> for SessionError {
    fn from(error: io::Error) -> Self {
        Self::Broken(error)
    }
}

impl From<SessionError> for io::Error {
    fn from(error: SessionError) -> Self {
        match error {
            SessionError::Closed => io::ErrorKind::NotConnected.into(),
            SessionError::Broken(error) => error,
            SessionError::Protocol(what) => io::Error::new(io::ErrorKind::InvalidData, what),
        }
    }
}

fn violation<T>(what: &str) -> Result<T, SessionError> {
    Err(SessionError::Protocol(what.into()))
}

/// One direction of the socket, for whoever polls it: that it can go on is noted, and the driver hears of it.
struct Side {
    is_ready: AtomicBool,
    driver: Arc<AtomicWaker>,
}

impl Wake for Side {
    fn wake(self: Arc<Self>) {
        self.is_ready.store(true, Ordering::Release);
        self.driver.wake();
    }
}

impl Side {
    fn new(driver: &Arc<AtomicWaker>) -> (Arc<Self>, Waker) {
        let side = Arc::new(Self { is_ready: AtomicBool::new(true), driver: Arc::clone(driver) });
        (Arc::clone(&side), side.into())
    }

    fn is_ready(&self) -> bool {
        self.is_ready.load(Ordering::Acquire)
    }

    /// Polls the socket, unless it was told to wait and nothing has happened since.
    fn poll<T>(&self, poll: impl FnOnce() -> Poll<T>) -> Poll<T> {
        if !self.is_ready() {
            return Poll::Pending;
        }
        self.is_ready.store(false, Ordering::Release);
        let polled = poll();
        if polled.is_ready() {
            self.is_ready.store(true, Ordering::Release);
        }
        polled
    }
}

/// A frame's body while it comes in.
#[derive(Clone, Copy)]
struct Body {
    stream: u32,
    left: usize,
    /// It is the stream's last.
    is_last: bool,
}

/// Who moves the connection.
enum Pump<'a> {
    Driver,
    /// A reader, which takes what is its own where it lies.
    Reader(u32, &'a mut [u8]),
}

/// The round trip, by pings of yamux.
#[derive(Default)]
struct RoundTrip {
    time: Option<Duration>,
    /// When the ping was sent that waits for its answer.
    sent_at: Option<Instant>,
    nonce: u32,
    /// No ping before this.
    next: Option<Instant>,
}

/// The connection and its table of streams.
struct Core {
    below: Box<dyn Below>,
    driver: Arc<AtomicWaker>,
    reading: Arc<Side>,
    writing: Arc<Side>,
    wakers: [Waker; 2],
    limits: Limits,
    growth: Growth,
    is_initiator: bool,
    next_id: u32,
    streams: HashMap<u32, Flow>,
    /// The peer's streams that nobody has accepted, for the driver.
    fresh: VecDeque<u32>,
    /// Of the peer's, those on the table.
    streams_in: usize,
    /// The head that comes in, and how much of it is here.
    head: HeadBytes,
    head_len: usize,
    body: Option<Body>,
    /// Frames without a body that wait for room.
    controls: VecDeque<HeadBytes>,
    /// Streams that wait for their turn to write.
    waiting: VecDeque<u32>,
    /// Bytes that may still be read in this turn of the driver.
    turn: usize,
    round_trip: RoundTrip,
    /// What a reader met, for the driver to end with.
    failure: Option<SessionError>,
    has_left: bool,
    active_at: Instant,
    bytes_in: u64,
    bytes_out: u64,
}

impl Core {
    fn new(below: Box<dyn Below>, is_initiator: bool, limits: &Limits) -> Self {
        let driver = Arc::new(AtomicWaker::new());
        let (reading, read_waker) = Side::new(&driver);
        let (writing, write_waker) = Side::new(&driver);
        Self {
            below,
            driver,
            reading,
            writing,
            wakers: [read_waker, write_waker],
            limits: limits.clone(),
            growth: Growth { max: limits.window_growth_bytes, now: 0 },
            is_initiator,
            next_id: if is_initiator { 1 } else { 2 },
            streams: HashMap::new(),
            fresh: VecDeque::new(),
            streams_in: 0,
            head: [0; HEAD_BYTES],
            head_len: 0,
            body: None,
            controls: VecDeque::new(),
            waiting: VecDeque::new(),
            turn: READ_TURN_BYTES,
            round_trip: RoundTrip::default(),
            failure: None,
            has_left: false,
            active_at: world::instant(),
            bytes_in: 0,
            bytes_out: 0,
        }
    }

    fn is_theirs(&self, stream: u32) -> bool {
        stream != 0 && (stream % 2 == 1) != self.is_initiator
    }

    // ---- In ----

    /// Reads once; `false`: nothing can be read now.
    fn read(&mut self) -> Result<bool, SessionError> {
        if self.turn == 0 {
            self.driver.wake();
            return Ok(false);
        }
        let mut cx = Context::from_waker(&self.wakers[0]);
        match self.reading.poll(|| self.below.poll_fill(&mut cx)) {
            Poll::Pending => Ok(false),
            Poll::Ready(Ok(0)) if self.head_len == 0 && self.body.is_none() => Err(SessionError::Closed),
            Poll::Ready(Ok(0)) => Err(SessionError::Broken(io::ErrorKind::UnexpectedEof.into())),
            Poll::Ready(Ok(n)) => {
                self.turn = self.turn.saturating_sub(n);
                self.active_at = Instant::now();
                // What is below may have something to answer.
                self.driver.wake();
                Ok(true)
            }
            Poll::Ready(Err(error)) => Err(error.into()),
        }
    }

    /// Takes in what comes, until nothing more does or a reader has `taken` something.
    fn pump(&mut self, mut who: Pump<'_>, taken: &mut usize) -> Result<(), SessionError> {
        loop {
            if self.body.is_some() {
                if self.below.incoming()?.is_empty() {
                    if *taken > 0 || !self.read()? {
                        return Ok(());
                    }
                } else if !self.pass_body(&mut who, taken)? {
                    return Ok(());
                }
                continue;
            }
            if self.head_len < HEAD_BYTES {
                let incoming = self.below.incoming()?;
                let n = incoming.len().min(HEAD_BYTES - self.head_len);
                if n == 0 {
                    if *taken > 0 || !self.read()? {
                        return Ok(());
                    }
                    continue;
                }
                self.head[self.head_len..self.head_len + n].copy_from_slice(&incoming[..n]);
                self.below.consume(n);
                self.head_len += n;
                self.bytes_in += n as u64;
                continue;
            }
            let Some(head) = Head::from_bytes(&self.head) else { return violation("a frame of no kind") };
            // Only the driver makes streams, and what may ask for an answer waits until there is room for it.
            let is_drivers = head.has(SYN) && head.kind != Kind::Ping && matches!(who, Pump::Reader(..));
            if is_drivers || self.controls.len() >= CONTROLS_MAX {
                if is_drivers {
                    self.driver.wake();
                }
                return Ok(());
            }
            self.head_len = 0;
            self.on_head(head)?;
            if let Pump::Reader(stream, _) = &who {
                if self.streams.get(stream).is_none_or(|flow| flow.is_in_closed) {
                    return Ok(());
                }
            }
        }
    }

    /// Hands on what is here of a body; `false`: not before its reader, or the caller with what it has, has run.
    fn pass_body(&mut self, who: &mut Pump<'_>, taken: &mut usize) -> Result<bool, SessionError> {
        let Some(body) = &mut self.body else { return Ok(true) };
        let bytes = self.below.incoming()?;
        let mut n = bytes.len().min(body.left);
        let flow = self.streams.get_mut(&body.stream);
        let mut is_full = false;
        match (flow, who) {
            // Of a stream that is gone.
            (None, _) => {}
            (Some(flow), Pump::Reader(stream, buf)) if *stream == body.stream && flow.queue.is_empty() => {
                let to = &mut buf[*taken..];
                n = n.min(to.len());
                to[..n].copy_from_slice(&bytes[..n]);
                *taken += n;
                is_full = *taken == buf.len();
            }
            (Some(flow), _) if flow.queue.is_empty() && flow.reader.is_some() && !flow.is_offered => {
                flow.is_offered = true;
                flow.wake_reader();
                // Who does not come before the driver finds it in its queue.
                self.driver.wake();
                return Ok(false);
            }
            (Some(flow), _) => {
                flow.queue.extend(&bytes[..n]);
                flow.wake_reader();
            }
        }
        self.below.consume(n);
        self.bytes_in += n as u64;
        body.left -= n;
        if body.left == 0 {
            let body = *body;
            self.body = None;
            self.end_body(body);
        }
        Ok(!is_full)
    }

    fn end_body(&mut self, body: Body) {
        if body.is_last {
            if let Some(flow) = self.streams.get_mut(&body.stream) {
                flow.is_in_closed = true;
                flow.wake_reader();
            }
        }
    }

    fn on_head(&mut self, head: Head) -> Result<(), SessionError> {
        match head.kind {
            Kind::Data | Kind::Window => self.on_stream(head),
            Kind::Ping => self.on_ping(head),
            Kind::GoAway => Err(SessionError::Closed),
        }
    }

    fn on_ping(&mut self, head: Head) -> Result<(), SessionError> {
        if !head.has(ACK) {
            if head.stream == 0 {
                self.control(Head { flags: ACK, ..head });
            }
            return Ok(());
        }
        let trip = &mut self.round_trip;
        match trip.sent_at.take() {
            Some(sent_at) if trip.nonce == head.len => {
                trip.time = Some(sent_at.elapsed());
                Ok(())
            }
            _ => violation("an answer to no ping"),
        }
    }

    fn on_stream(&mut self, head: Head) -> Result<(), SessionError> {
        let is_data = head.kind == Kind::Data;
        if is_data && head.len > BODY_BYTES_MAX {
            return violation("a frame is too long");
        }
        let body = Body { stream: head.stream, left: head.len as usize, is_last: head.has(FIN) };
        if head.has(RST) {
            if let Some(flow) = self.streams.get_mut(&head.stream) {
                flow.reset();
                flow.wake_reader();
                flow.wake_writer();
            }
            // Nobody reads what a reset carries.
            self.body = (is_data && body.left > 0).then_some(Body { stream: 0, ..body });
            return Ok(());
        }
        if head.has(SYN) {
            if !self.is_theirs(head.stream) || self.streams.contains_key(&head.stream) {
                return violation("a new stream has a number that it may not have");
            }
            if self.streams_in >= self.limits.streams_in {
                log::debug!("a peer has {} streams open and one more is reset", self.streams_in);
                let kind = if is_data { Kind::Data } else { Kind::Window };
                self.control(Head { kind, flags: RST, stream: head.stream, len: 0 });
            } else {
                self.streams_in += 1;
                self.streams.insert(head.stream, Flow::theirs(Instant::now()));
                self.fresh.push_back(head.stream);
            }
        }
        if let Some(flow) = self.streams.get_mut(&head.stream) {
            if is_data && !flow.expect(head.len) {
                return violation("more bytes than the window of a stream");
            }
            if !is_data {
                if !flow.earn(head.len) {
                    return violation("more credit than there can be");
                }
                flow.wake_writer();
            }
        }
        if is_data && body.left > 0 {
            self.body = Some(body);
        } else {
            self.end_body(body);
        }
        Ok(())
    }

    // ---- Out ----

    /// Sends a frame without a body as soon as there is room.
    fn control(&mut self, head: Head) {
        self.controls.push_back(head.to_bytes());
        self.driver.wake();
    }

    fn put(&mut self, head: &HeadBytes, body: &[u8]) {
        let outgoing = self.below.outgoing();
        outgoing[..HEAD_BYTES].copy_from_slice(head);
        outgoing[HEAD_BYTES..HEAD_BYTES + body.len()].copy_from_slice(body);
        self.below.fill(HEAD_BYTES + body.len());
        self.bytes_out += (HEAD_BYTES + body.len()) as u64;
    }

    /// Puts what waits without a body; whether all of it had room.
    fn put_controls(&mut self) -> bool {
        while let Some(head) = self.controls.front().copied() {
            if self.below.outgoing().len() < HEAD_BYTES {
                return false;
            }
            self.put(&head, &[]);
            self.controls.pop_front();
        }
        true
    }

    fn drain(&mut self) -> Poll<io::Result<()>> {
        let mut cx = Context::from_waker(&self.wakers[1]);
        self.writing.poll(|| self.below.poll_drain(&mut cx))
    }

    /// Puts all that waits without a body, and room for a frame with `bytes`, or as much of it as is worth a frame.
    fn poll_room(&mut self, bytes: usize) -> Poll<io::Result<usize>> {
        loop {
            if self.put_controls() {
                let room = self.below.outgoing().len().saturating_sub(HEAD_BYTES);
                if room >= bytes.min(ROOM_BYTES_MIN) {
                    return Poll::Ready(Ok(room.min(bytes)));
                }
            }
            match self.drain() {
                Poll::Ready(Ok(())) if self.below.outgoing().len() <= HEAD_BYTES => {
                    return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
                }
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    /// Gives the turn to write to who has waited longest, if there is room.
    fn pass_turn(&mut self) {
        if self.waiting.is_empty() || self.below.outgoing().len() < HEAD_BYTES + ROOM_BYTES_MIN {
            return;
        }
        while let Some(next) = self.waiting.pop_front() {
            if let Some(flow) = self.streams.get_mut(&next) {
                flow.has_turn = true;
                flow.wake_writer();
                return;
            }
        }
    }

    fn poll_write(&mut self, stream: u32, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let Some(flow) = self.streams.get_mut(&stream) else {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        };
        if flow.is_out_closed {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        let had_turn = std::mem::take(&mut flow.has_turn);
        let wanted = buf.len().min(flow.credit() as usize).min(self.limits.frame_bytes);
        if wanted == 0 {
            let is_idle = buf.is_empty();
            flow.writer = Some(cx.waker().clone());
            if had_turn {
                self.pass_turn();
            }
            return if is_idle { Poll::Ready(Ok(0)) } else { Poll::Pending };
        }
        let has_room = match !had_turn && !self.waiting.is_empty() {
            true => Poll::Pending,
            false => self.poll_room(wanted),
        };
        let n = match has_room {
            Poll::Ready(Ok(n)) => n,
            Poll::Ready(Err(error)) => {
                self.driver.wake();
                return Poll::Ready(Err(error));
            }
            Poll::Pending => {
                let flow = self.streams.get_mut(&stream).expect("it was there");
                flow.writer = Some(cx.waker().clone());
                match self.waiting.contains(&stream) {
                    true => {}
                    false if had_turn => self.waiting.push_front(stream),
                    false => self.waiting.push_back(stream),
                }
                self.driver.wake();
                return Poll::Pending;
            }
        };
        let flow = self.streams.get_mut(&stream).expect("it was there");
        flow.spend(n as u32);
        let head = Head { kind: Kind::Data, flags: flow.greet(), stream, len: n as u32 };
        self.put(&head.to_bytes(), &buf[..n]);
        // What does not fill a message is sent when all who can have written.
        self.driver.wake();
        self.pass_turn();
        Poll::Ready(Ok(n))
    }

    fn poll_read(
        &mut self,
        stream: u32,
        cx: &mut Context<'_>,
        buf: &mut [u8],
        is_alive: bool,
    ) -> Poll<io::Result<usize>> {
        let aborted = || Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        let Some(flow) = self.streams.get_mut(&stream) else { return aborted() };
        flow.is_offered = false;
        flow.reader = None;
        let mut n = flow.queue.len().min(buf.len());
        if n > 0 {
            let (first, second) = flow.queue.as_slices();
            let split = n.min(first.len());
            buf[..split].copy_from_slice(&first[..split]);
            buf[split..n].copy_from_slice(&second[..n - split]);
            flow.queue.drain(..n);
            if flow.queue.is_empty() {
                // Most of what comes goes past the queue, so it need not lie ready.
                flow.queue = VecDeque::new();
            }
        } else if !is_alive {
            return aborted();
        } else if !flow.is_in_closed && !buf.is_empty() {
            if let Err(error) = self.pump(Pump::Reader(stream, buf), &mut n) {
                self.failure = Some(error);
                self.driver.wake();
            }
        }
        let Some(flow) = self.streams.get_mut(&stream) else { return aborted() };
        if n == 0 && !flow.is_in_closed && !buf.is_empty() {
            flow.reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
        if n > 0 {
            self.give_credit(stream);
        }
        Poll::Ready(Ok(n))
    }

    fn give_credit(&mut self, stream: u32) {
        let coming = self.body.filter(|body| body.stream == stream).map_or(0, |body| body.left);
        let Some(flow) = self.streams.get_mut(&stream) else { return };
        let unread = flow.queue.len() + coming;
        let credit = flow.give(unread, Instant::now(), self.round_trip.time, &mut self.growth);
        if let Some(len) = credit {
            let flags = flow.greet();
            self.control(Head { kind: Kind::Window, flags, stream, len });
        }
    }

    // ---- The table ----

    fn open(&mut self) -> Result<u32, SessionError> {
        let stream = self.next_id;
        self.next_id = stream.checked_add(2).ok_or(SessionError::Closed)?;
        self.streams.insert(stream, Flow::ours(Instant::now()));
        Ok(stream)
    }

    /// We send no more on this stream.
    fn close_stream(&mut self, stream: u32) {
        let Some(flow) = self.streams.get_mut(&stream).filter(|flow| !flow.is_out_closed) else { return };
        flow.is_out_closed = true;
        let flags = flow.greet() | FIN;
        self.control(Head { kind: Kind::Data, flags, stream, len: 0 });
    }

    /// Takes a stream off the table, and tells the peer unless it knows.
    fn drop_stream(&mut self, stream: u32) {
        let Some(mut flow) = self.streams.remove(&stream) else { return };
        self.growth.now -= flow.growth();
        if self.is_theirs(stream) {
            self.streams_in -= 1;
        }
        self.waiting.retain(|other| *other != stream);
        if flow.is_known() && !flow.is_out_closed {
            let end = if flow.is_in_closed { FIN } else { RST };
            self.control(Head { kind: Kind::Data, flags: flow.greet() | end, stream, len: 0 });
        }
        if flow.has_turn {
            self.pass_turn();
        }
    }

    /// Nothing moves any more.
    fn end(&mut self) {
        self.below = Box::new(Ended);
        self.controls.clear();
        self.waiting.clear();
        for flow in self.streams.values_mut() {
            flow.reset();
            flow.wake_reader();
            flow.wake_writer();
        }
    }

    // ---- What the driver does ----

    /// One turn: everything that can move moves.
    fn poll_turn(&mut self) -> Result<(), SessionError> {
        if let Some(failure) = self.failure.take() {
            return Err(failure);
        }
        self.turn = READ_TURN_BYTES;
        self.put_controls();
        let bytes_before = self.bytes_in;
        self.pump(Pump::Driver, &mut 0)?;
        if self.bytes_in != bytes_before {
            self.ping_if_due();
        }
        let held_back = self.controls.len() >= CONTROLS_MAX;
        while let Poll::Ready(flushed) = self.flush() {
            flushed?;
            if self.controls.is_empty() {
                break;
            }
            self.put_controls();
        }
        if held_back && self.controls.len() < CONTROLS_MAX {
            self.driver.wake();
        }
        self.pass_turn();
        Ok(())
    }

    fn ping_if_due(&mut self) {
        let now = Instant::now();
        let trip = &mut self.round_trip;
        if trip.sent_at.is_none() && trip.next.is_none_or(|next| next <= now) {
            trip.sent_at = Some(now);
            trip.next = Some(now + PING_EVERY);
            trip.nonce = u32::from_le_bytes(random());
            let len = trip.nonce;
            self.control(Head { kind: Kind::Ping, flags: SYN, stream: 0, len });
        }
    }

    fn flush(&mut self) -> Poll<io::Result<()>> {
        let mut cx = Context::from_waker(&self.wakers[1]);
        self.writing.poll(|| Pin::new(&mut *self.below).poll_flush(&mut cx))
    }

    /// Takes leave, and ends what is below.
    fn poll_close(&mut self) -> Poll<io::Result<()>> {
        if !self.has_left {
            self.has_left = true;
            self.control(Head { kind: Kind::GoAway, flags: 0, stream: 0, len: 0 });
        }
        while !self.put_controls() {
            ready!(self.drain())?;
        }
        let mut cx = Context::from_waker(&self.wakers[1]);
        self.writing.poll(|| Pin::new(&mut *self.below).poll_close(&mut cx))
    }
}

/// What is below a session that has ended.
struct Ended;

impl AsyncRead for Ended {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut [u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()))
    }
}

impl AsyncWrite for Ended {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl Below for Ended {
    fn incoming(&mut self) -> io::Result<&[u8]> {
        Err(io::ErrorKind::ConnectionAborted.into())
    }

    fn consume(&mut self, _: usize) {}

    fn poll_fill(&mut self, _: &mut Context<'_>) -> Poll<io::Result<usize>> {
        Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()))
    }

    fn outgoing(&mut self) -> &mut [u8] {
        &mut []
    }

    fn fill(&mut self, _: usize) {}

    fn poll_drain(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()))
    }
}

/// Bytes that one stream of a pair of sessions in memory holds each way.
const MEMORY_BYTES: usize = 64 * 1024;

/// A session's end of a wire in memory.
struct Joint {
    wire: Wire,
    other: Weak<Shared>,
    accepting: Sender<Stream>,
}

impl Joint {
    fn open(&self, shared: &Rc<Shared>, permit: SemaphoreGuardArc) -> Result<Stream, SessionError> {
        let (Some(other), false) = (self.other.upgrade(), self.accepting.is_closed()) else {
            return Err(SessionError::Closed);
        };
        let (ours, theirs, link) = memory::link(MEMORY_BYTES);
        self.wire.take_in(link);
        shared.streams_out.set(shared.streams_out.get() + 1);
        other.streams_in.set(other.streams_in.get() + 1);
        // One too many finds the queue full, and is dropped, which resets it.
        let _ = self.accepting.try_send(Stream { id: 0, end: Some(theirs), shared: other, permit: None });
        Ok(Stream { id: 0, end: Some(ours), shared: Rc::clone(shared), permit: Some(permit) })
    }
}

/// What joins two sessions in memory, for simulations: bytes pass at once, and it can be cut, stalled and made to lose.
///
/// There is no yamux in it: that measures round trips by the machine's clock and sizes its windows by them, so no two runs
/// would be alike.
#[derive(Clone)]
pub struct Wire {
    inside: Rc<WireInside>,
}

struct WireInside {
    /// Both sides, and what their ends are told by.
    ends: RefCell<Vec<(Weak<Shared>, Sender<()>)>>,
    links: RefCell<Vec<memory::Link>>,
    is_over: Cell<bool>,
    is_stalled: Cell<bool>,
    bytes_left: Cell<u64>,
    loss: RefCell<Option<(Dice, u64)>>,
}

impl Wire {
    /// Breaks it: both sessions end, and all their streams with an error.
    pub fn cut(&self) {
        self.end(true);
    }

    /// Breaks it as soon as so many more bytes have passed.
    pub fn cut_after(&self, bytes: u64) {
        self.inside.bytes_left.set(bytes);
    }

    /// Lets nothing through, though nobody hears of it.
    pub fn stall(&self, is_stalled: bool) {
        self.inside.is_stalled.set(is_stalled);
        self.inside.links.borrow().iter().for_each(|link| link.stall(is_stalled));
    }

    /// From now on so many requests of a hundred break off before they are answered.
    pub fn lose(&self, percent: u64, dice: Dice) {
        *self.inside.loss.borrow_mut() = Some((dice, percent));
    }

    /// Whether it is not cut.
    pub fn is_whole(&self) -> bool {
        !self.inside.is_over.get()
    }

    fn take_in(&self, link: memory::Link) {
        if let Some((dice, percent)) = &mut *self.inside.loss.borrow_mut() {
            if dice.percent(*percent) {
                link.cut();
            }
        }
        link.stall(self.inside.is_stalled.get());
        let mut links = self.inside.links.borrow_mut();
        links.retain(memory::Link::is_open);
        links.push(link);
    }

    fn end(&self, is_at_once: bool) {
        if self.inside.is_over.replace(true) {
            return;
        }
        let ends = std::mem::take(&mut *self.inside.ends.borrow_mut());
        for shared in ends.iter().filter_map(|(shared, _)| shared.upgrade()) {
            shared.is_alive.set(false);
            let joint = shared.joint.borrow_mut().take();
            drop(joint);
        }
        for link in self.inside.links.take() {
            if is_at_once { link.cut() } else { link.close() }
        }
    }
}

impl Shared {
    fn note_read(&self, read: &Poll<io::Result<usize>>) {
        if let Poll::Ready(Ok(n)) = read {
            let mut core = self.core.borrow_mut();
            core.bytes_in += *n as u64;
            core.active_at = world::instant();
        }
    }

    fn note_written(&self, written: &Poll<io::Result<usize>>) {
        let Poll::Ready(Ok(n)) = written else { return };
        self.core.borrow_mut().bytes_out += *n as u64;
        let wire = self.joint.borrow().as_ref().map(|joint| joint.wire.clone());
        if let Some(wire) = wire {
            let left = wire.inside.bytes_left.get();
            wire.inside.bytes_left.set(left.saturating_sub(*n as u64));
            if left <= *n as u64 {
                wire.cut();
            }
        }
    }
}

/// A session with what ends with it and says why.
pub type Driven = (Session, Pin<Box<dyn Future<Output = SessionError>>>);

/// Two sessions that are joined in memory, each with what to spawn on its side, and the wire between them.
pub fn pair(limits: &Limits) -> (Driven, Driven, Wire) {
    let wire = Wire {
        inside: Rc::new(WireInside {
            ends: RefCell::default(),
            links: RefCell::default(),
            is_over: Cell::new(false),
            is_stalled: Cell::new(false),
            bytes_left: Cell::new(u64::MAX),
            loss: RefCell::default(),
        }),
    };
    let end = || {
        let (ending, ended) = channel::bounded(1);
        let (accepting, accepted) = channel::bounded(limits.streams_in.max(1));
        let shared = Rc::new(Shared::new(Box::new(Ended), true, limits, ended));
        wire.inside.ends.borrow_mut().push((Rc::downgrade(&shared), ending));
        (Session { shared, accepted }, accepting)
    };
    let ((a, to_a), (b, to_b)) = (end(), end());
    let joint = |other: &Session, accepting| Joint {
        wire: wire.clone(),
        other: Rc::downgrade(&other.shared),
        accepting,
    };
    *a.shared.joint.borrow_mut() = Some(joint(&b, to_b));
    *b.shared.joint.borrow_mut() = Some(joint(&a, to_a));
    let driven = |session: Session| -> Driven {
        let watched = session.clone();
        (
            session,
            Box::pin(async move {
                watched.ended().await;
                SessionError::Closed
            }),
        )
    };
    (driven(a), driven(b), wire)
}

/// One connection to a peer; clones are the same one.
#[derive(Clone)]
pub struct Session {
    shared: Rc<Shared>,
    /// Not in what is shared, which the streams in it hold.
    accepted: Receiver<Stream>,
}

struct Shared {
    core: RefCell<Core>,
    is_alive: Cell<bool>,
    is_closing: Cell<bool>,
    is_aborted: Cell<bool>,
    streams_in: Cell<usize>,
    streams_out: Cell<usize>,
    permits_out: Arc<Semaphore>,
    /// Closed when the driver is gone.
    ended: Receiver<()>,
    /// Where there is no connection below: the session is joined to another one in memory.
    joint: RefCell<Option<Joint>>,
}

impl Shared {
    fn new(below: Box<dyn Below>, is_initiator: bool, limits: &Limits, ended: Receiver<()>) -> Self {
        Self {
            core: RefCell::new(Core::new(below, is_initiator, limits)),
            is_alive: Cell::new(true),
            is_closing: Cell::new(false),
            is_aborted: Cell::new(false),
            streams_in: Cell::new(0),
            streams_out: Cell::new(0),
            permits_out: Arc::new(Semaphore::new(limits.streams_out)),
            ended,
            joint: RefCell::default(),
        }
    }

    fn wake_driver(&self) {
        self.core.borrow().driver.wake();
    }

    fn end(&self) {
        self.is_alive.set(false);
        self.core.borrow_mut().end();
    }
}

/// A session over `stream`, and the driver that makes it move: spawn it, for it ends with the session and says why. Of the
/// two sides one is the initiator.
pub fn start<S: Below + 'static>(
    stream: S,
    is_initiator: bool,
    limits: &Limits,
) -> (Session, impl Future<Output = SessionError> + use<S>) {
    let (ending, ended) = channel::bounded(1);
    let (accepting, accepted) = channel::bounded(limits.streams_in.max(1));
    let shared = Rc::new(Shared::new(Box::new(stream), is_initiator, limits, ended));
    let driver = Driver { accepting, closing: None, shared: Rc::clone(&shared), _ending: ending };
    (Session { shared, accepted }, driver)
}

impl Session {
    /// A new stream; waits while 16 (`Limits::streams_out`) are open. The peer hears of it with the first write.
    pub async fn open(&self) -> Result<Stream, SessionError> {
        let shared = &self.shared;
        let permit = self.unless_ended(shared.permits_out.acquire_arc()).await?;
        if !self.is_alive() {
            return Err(SessionError::Closed);
        }
        if let Some(joint) = &*shared.joint.borrow() {
            return joint.open(shared, permit);
        }
        let id = shared.core.borrow_mut().open()?;
        shared.streams_out.set(shared.streams_out.get() + 1);
        Ok(Stream { id, end: None, shared: Rc::clone(shared), permit: Some(permit) })
    }

    /// The next stream that the peer opens; `None` once the session has ended and all that came before were taken.
    pub async fn accept(&self) -> Option<Stream> {
        self.accepted.recv().await.ok()
    }

    /// Ends the session in order: what is written is sent, within 5 s. The driver ends after that.
    pub fn close(&self) {
        self.shared.is_closing.set(true);
        self.shared.wake_driver();
        let wire = self.shared.joint.borrow().as_ref().map(|joint| joint.wire.clone());
        if let Some(wire) = wire {
            wire.end(self.shared.is_aborted.get());
        }
    }

    /// Ends the session at once; what is under way ends with an error.
    pub fn abort(&self) {
        self.shared.is_aborted.set(true);
        self.close();
    }

    /// Waits until the session has ended, for whatever reason.
    pub async fn ended(&self) {
        // Nothing is ever sent: the channel closes with the driver.
        let _ = self.shared.ended.recv().await;
    }

    /// Whether streams can still be opened.
    pub fn is_alive(&self) -> bool {
        self.shared.is_alive.get() && !self.shared.is_closing.get()
    }

    /// Requests under way, of both sides.
    pub fn streams_live(&self) -> usize {
        self.shared.streams_in.get() + self.shared.streams_out.get()
    }

    /// When the last byte came in.
    pub fn active_at(&self) -> Instant {
        self.shared.core.borrow().active_at
    }

    /// Bytes that came in, those of yamux included.
    pub fn bytes_in(&self) -> u64 {
        self.shared.core.borrow().bytes_in
    }

    /// Bytes that went out, those of yamux included.
    pub fn bytes_out(&self) -> u64 {
        self.shared.core.borrow().bytes_out
    }

    async fn unless_ended<T>(&self, work: impl Future<Output = T>) -> Result<T, SessionError> {
        if !self.is_alive() {
            return Err(SessionError::Closed);
        }
        smol::future::or(async { Ok(work.await) }, async {
            self.ended().await;
            Err(SessionError::Closed)
        })
        .await
    }
}

/// One stream of a session. Dropping it before the peer has ended it resets it; `close` ends our side of it.
///
/// An end of the stream reads as 0 bytes, whether the peer ended or reset it, so what travels says its own length.
/// The end of the session is an error.
pub struct Stream {
    id: u32,
    /// Where the session is joined to another one in memory.
    end: Option<memory::End>,
    shared: Rc<Shared>,
    /// Of the streams that we opened.
    permit: Option<SemaphoreGuardArc>,
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.shared.core.borrow_mut().drop_stream(self.id);
        let count = if self.permit.is_none() { &self.shared.streams_in } else { &self.shared.streams_out };
        count.set(count.get() - 1);
    }
}

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        let is_alive = self.shared.is_alive.get();
        if let Some(end) = &mut self.end {
            let read = Pin::new(end).poll_read(cx, buf);
            self.shared.note_read(&read);
            return match read {
                Poll::Ready(Ok(0)) if !buf.is_empty() && !is_alive => {
                    Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()))
                }
                Poll::Ready(Err(_)) if !is_alive => Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into())),
                other => other,
            };
        }
        self.shared.core.borrow_mut().poll_read(self.id, cx, buf, is_alive)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if let Some(end) = &mut self.end {
            let written = Pin::new(end).poll_write(cx, buf);
            self.shared.note_written(&written);
            return written.map_err(|error| match self.shared.is_alive.get() {
                true => error,
                false => io::ErrorKind::ConnectionAborted.into(),
            });
        }
        if !self.shared.is_alive.get() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        if self.shared.is_closing.get() {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        self.shared.core.borrow_mut().poll_write(self.id, cx, buf)
    }

    /// The driver sends what was written; there is nothing to wait for.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(end) = &mut self.end {
            return Pin::new(end).poll_flush(cx);
        }
        match self.shared.is_alive.get() {
            true => Poll::Ready(Ok(())),
            false => Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into())),
        }
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(end) = &mut self.end {
            return Pin::new(end).poll_close(cx);
        }
        if !self.shared.is_alive.get() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        self.shared.core.borrow_mut().close_stream(self.id);
        Poll::Ready(Ok(()))
    }
}

struct Driver {
    accepting: Sender<Stream>,
    /// Runs while the session is being closed.
    closing: Option<Timer>,
    shared: Rc<Shared>,
    _ending: Sender<()>,
}

impl Future for Driver {
    type Output = SessionError;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<SessionError> {
        let this = &mut *self;
        this.shared.core.borrow().driver.register(cx.waker());
        let end = match this.shared.is_closing.get() {
            true => this.poll_closing(cx),
            false => this.poll_running(),
        };
        if end.is_ready() {
            this.shared.end();
        }
        end
    }
}

impl Driver {
    fn poll_running(&mut self) -> Poll<SessionError> {
        let ended = self.shared.core.borrow_mut().poll_turn();
        self.hand_over();
        match ended {
            Ok(()) => Poll::Pending,
            Err(error) => Poll::Ready(error),
        }
    }

    /// Hands the peer's new streams to whoever accepts.
    fn hand_over(&mut self) {
        loop {
            let Some(id) = self.shared.core.borrow_mut().fresh.pop_front() else { return };
            self.shared.streams_in.set(self.shared.streams_in.get() + 1);
            // The queue holds all that may be on the table, so it takes this one, too.
            let stream = Stream { id, end: None, shared: Rc::clone(&self.shared), permit: None };
            let _ = self.accepting.try_send(stream);
        }
    }

    fn poll_closing(&mut self, cx: &mut Context<'_>) -> Poll<SessionError> {
        if self.shared.is_aborted.get() {
            return Poll::Ready(SessionError::Closed);
        }
        match self.shared.core.borrow_mut().poll_close() {
            Poll::Ready(Ok(())) => return Poll::Ready(SessionError::Closed),
            Poll::Ready(Err(error)) => return Poll::Ready(error.into()),
            Poll::Pending => {}
        }
        let timer = self.closing.get_or_insert_with(|| Timer::after(CLOSE_TIME_MAX));
        Pin::new(timer).poll(cx).map(|_| SessionError::Closed)
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.shared.end();
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::wire::memory::{self, Link};
    use crate::wire::noise::NoiseStream;
    use crate::wire::noise::tests::Dice;
    use crate::wire::within;
    use smol::LocalExecutor;
    use smol::io::{AsyncReadExt, AsyncWriteExt};

    /// Runs `test` with two sessions over a link in memory.
    pub(crate) fn with_sessions<F: Future>(
        limits: Limits,
        test: impl FnOnce(Rc<LocalExecutor<'static>>, Session, Session, Link) -> F,
    ) -> F::Output {
        let executor = Rc::new(LocalExecutor::new());
        let (a, b, link) = memory::link(1 << 18);
        let keys = ([1; 32], [2; 32]);
        let (a, drive_a) = start(NoiseStream::new(a, keys, true), true, &limits);
        let (b, drive_b) = start(NoiseStream::new(b, keys, false), false, &limits);
        executor.spawn(drive_a).detach();
        executor.spawn(drive_b).detach();
        let inner = Rc::clone(&executor);
        smol::block_on(executor.run(test(inner, a, b, link)))
    }

    /// Sends back what comes, on every stream.
    async fn echo(executor: Rc<LocalExecutor<'static>>, session: Session) {
        while let Some(mut stream) = session.accept().await {
            let work = async move {
                let mut buf = vec![0; 10_000];
                while let Ok(n @ 1..) = stream.read(&mut buf).await {
                    if stream.write_all(&buf[..n]).await.is_err() {
                        return;
                    }
                }
                let _ = stream.close().await;
            };
            executor.spawn(work).detach();
        }
    }

    async fn send_and_compare(session: Session, seed: u64, total: usize) {
        let mut stream = session.open().await.unwrap();
        let bytes = Dice(seed).bytes(total);
        for piece in bytes.chunks(30_000) {
            stream.write_all(piece).await.unwrap();
            let mut back = vec![0; piece.len()];
            stream.read_exact(&mut back).await.unwrap();
            assert_eq!(back, piece);
        }
    }

    #[test]
    fn twelve_streams_each_way_carry_their_own_bytes() {
        with_sessions(Limits::default(), |executor, a, b, _link| async move {
            executor.spawn(echo(Rc::clone(&executor), a.clone())).detach();
            executor.spawn(echo(Rc::clone(&executor), b.clone())).detach();
            let mut tasks = Vec::new();
            for seed in 0..12 {
                tasks.push(executor.spawn(send_and_compare(a.clone(), seed, 600_000)));
                tasks.push(executor.spawn(send_and_compare(b.clone(), 100 + seed, 600_000)));
            }
            for task in tasks {
                task.await;
            }
            assert!(a.bytes_out() > 24 * 600_000 && a.bytes_in() > 24 * 600_000);
            assert!(a.active_at().elapsed() < Duration::from_secs(10));
        });
    }

    #[test]
    fn many_short_requests_in_turn_do_not_use_up_the_table() {
        with_sessions(Limits::default(), |executor, a, b, _link| async move {
            executor.spawn(echo(Rc::clone(&executor), b.clone())).detach();
            let mut tasks = Vec::new();
            for _ in 0..20 {
                let a = a.clone();
                tasks.push(executor.spawn(async move {
                    for i in 0..100 {
                        send_and_compare(a.clone(), i, 50).await;
                    }
                }));
            }
            for task in tasks {
                task.await;
            }
            assert!(a.is_alive() && b.is_alive());
        });
    }

    /// Runs `test` with two sessions that are joined in memory.
    fn with_pair<F: Future>(
        test: impl FnOnce(Rc<LocalExecutor<'static>>, Session, Session, Wire) -> F,
    ) -> F::Output {
        let executor = Rc::new(LocalExecutor::new());
        let ((a, _), (b, _), wire) = pair(&Limits::default());
        smol::block_on(executor.run(test(Rc::clone(&executor), a, b, wire)))
    }

    #[test]
    fn pair_in_memory_carries_streams_both_ways_and_counts_bytes() {
        with_pair(|executor, a, b, _wire| async move {
            executor.spawn(echo(Rc::clone(&executor), b.clone())).detach();
            executor.spawn(echo(Rc::clone(&executor), a.clone())).detach();
            for seed in 0..30 {
                send_and_compare(a.clone(), seed, 200_000).await;
                send_and_compare(b.clone(), seed, 2_000).await;
            }
            assert_eq!((a.bytes_out(), a.bytes_in()), (30 * 202_000, 30 * 202_000));
            a.close();
            b.ended().await;
            assert!(b.accept().await.is_none() && b.open().await.is_err());
        });
    }

    #[test]
    fn wire_in_memory_breaks_off_where_it_is_told_to() {
        with_pair(|executor, a, b, wire| async move {
            executor.spawn(echo(Rc::clone(&executor), b.clone())).detach();
            wire.cut_after(1000);
            let mut stream = a.open().await.unwrap();
            stream.write_all(&[1; 999]).await.unwrap();
            let mut read = [0; 999];
            let error = stream.read_exact(&mut read).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
            a.ended().await;
            assert!(!wire.is_whole() && !b.is_alive());
        });
    }

    #[test]
    fn cut_link_ends_everything_with_an_error() {
        with_sessions(Limits::default(), |executor, a, b, link| async move {
            executor.spawn(echo(Rc::clone(&executor), b.clone())).detach();
            let mut reading = Vec::new();
            for _ in 0..12 {
                let mut stream = a.open().await.unwrap();
                stream.write_all(b"hello").await.unwrap();
                reading.push(executor.spawn(async move {
                    let mut buf = [0; 5];
                    stream.read_exact(&mut buf).await.unwrap();
                    (stream.read(&mut buf).await, stream)
                }));
            }
            Timer::after(Duration::from_millis(20)).await;
            link.cut();
            for task in reading {
                let (read, mut stream) = task.await;
                assert_eq!(read.unwrap_err().kind(), io::ErrorKind::ConnectionAborted);
                assert!(stream.write_all(b"more").await.is_err());
            }
            a.ended().await;
            b.ended().await;
            assert!(!a.is_alive() && a.open().await.is_err() && b.accept().await.is_none());
        });
    }

    #[test]
    fn slow_reader_does_not_stall_other_streams() {
        with_sessions(Limits::default(), |executor, a, b, _link| async move {
            // Reads nothing of the first stream.
            let mut stuck = a.open().await.unwrap();
            stuck.write_all(b"x").await.unwrap();
            let held = b.accept().await.unwrap();
            let push = executor.spawn(async move {
                let mut sent = 0u64;
                while let Ok(n) = stuck.write(&[0; 10_000]).await {
                    sent += n as u64;
                }
                sent
            });
            executor.spawn(echo(Rc::clone(&executor), b.clone())).detach();
            send_and_compare(a.clone(), 1, 3_000_000).await;
            drop(held);
            let sent = within(Duration::from_secs(5), push).await.expect("the reset reaches the writer");
            assert!(sent < 2 * STREAM_WINDOW_BYTES as u64, "{sent}");
        });
    }

    #[test]
    fn streams_over_the_limit_are_reset_and_the_session_lives() {
        // The opener thinks it may have more than the other side takes.
        let limits = Limits { streams_out: 30, streams_in: 4, ..Limits::default() };
        with_sessions(limits, |_executor, a, b, _link| async move {
            let mut streams = Vec::new();
            for _ in 0..10 {
                let mut stream = a.open().await.unwrap();
                stream.write_all(b"x").await.unwrap();
                streams.push(stream);
            }
            Timer::after(Duration::from_millis(50)).await;
            let mut held = Vec::new();
            for _ in 0..4 {
                held.push(b.accept().await.unwrap());
            }
            assert!(within(Duration::from_millis(50), b.accept()).await.is_none());
            assert_eq!(streams[9].read(&mut [0; 1]).await.unwrap(), 0, "reset");
            drop(held);
            let mut again = a.open().await.unwrap();
            again.write_all(b"y").await.unwrap();
            let mut got = [0];
            b.accept().await.unwrap().read_exact(&mut got).await.unwrap();
            assert_eq!(&got, b"y");
        });
    }

    #[test]
    fn opening_waits_for_a_free_place() {
        let limits = Limits { streams_out: 2, ..Limits::default() };
        with_sessions(limits, |_executor, a, _b, _link| async move {
            let first = a.open().await.unwrap();
            let _second = a.open().await.unwrap();
            assert!(within(Duration::from_millis(30), a.open()).await.is_none());
            drop(first);
            assert!(within(Duration::from_secs(5), a.open()).await.unwrap().is_ok());
        });
    }

    #[test]
    fn streams_open_while_writes_wait_and_leave_nothing_behind() {
        with_sessions(Limits::default(), |_executor, a, b, link| async move {
            link.stall(true);
            let mut busy = Vec::new();
            for _ in 0..3 {
                busy.push(a.open().await.unwrap());
                let stream = busy.last_mut().unwrap();
                let _ = within(Duration::from_millis(100), stream.write_all(&[0; 1 << 20])).await;
            }
            for _ in 0..1000 {
                let mut stream = within(Duration::from_secs(5), a.open()).await.unwrap().unwrap();
                let _ = smol::future::poll_once(stream.write(b"x")).await;
            }
            assert!(a.is_alive());
            assert_eq!(a.shared.core.borrow().streams.len(), busy.len());
            assert_eq!(a.shared.core.borrow().waiting.len(), busy.len());
            link.stall(false);
            let mut stream = within(Duration::from_secs(5), a.open()).await.unwrap().unwrap();
            stream.write_all(b"x").await.unwrap();
            assert!(a.is_alive() && b.is_alive());
        });
    }

    /// Frames of a peer that reads nothing; what waits to be answered then.
    fn unread_answers(frame: impl Fn(u32) -> Vec<u8>) -> usize {
        let executor = LocalExecutor::new();
        let (a, b, _link) = memory::link(1 << 12);
        let keys = ([1; 32], [2; 32]);
        let mut raw = NoiseStream::new(a, keys, true);
        let (session, driver) = start(NoiseStream::new(b, keys, false), false, &Limits::default());
        executor.spawn(driver).detach();
        smol::block_on(executor.run(async {
            let sending = async {
                let mut n = 0;
                while raw.write_all(&frame(n)).await.is_ok() && raw.flush().await.is_ok() {
                    n += 1;
                }
            };
            assert!(within(Duration::from_millis(500), sending).await.is_none(), "it is held up, not let go");
        }));
        assert!(session.is_alive());
        let core = session.shared.core.borrow();
        assert!(core.streams.len() <= Limits::default().streams_in);
        core.controls.len()
    }

    #[test]
    fn peer_that_asks_and_reads_nothing_is_not_read_from() {
        let ping = |n| Head { kind: Kind::Ping, flags: SYN, stream: 0, len: n }.to_bytes().to_vec();
        let open = |n| Head { kind: Kind::Window, flags: SYN, stream: 2 * n + 1, len: 0 }.to_bytes().to_vec();
        assert_eq!(unread_answers(ping), CONTROLS_MAX);
        assert_eq!(unread_answers(open), CONTROLS_MAX);
    }

    #[test]
    fn busy_streams_write_in_turn() {
        with_sessions(Limits::default(), |executor, a, b, _link| async move {
            let counts: Rc<RefCell<Vec<u64>>> = Rc::default();
            for at in 0..3 {
                let mut stream = a.open().await.unwrap();
                executor
                    .spawn(async move { while stream.write_all(&[7; 100_000]).await.is_ok() {} })
                    .detach();
                let mut stream = b.accept().await.unwrap();
                counts.borrow_mut().push(0);
                let counts = Rc::clone(&counts);
                executor
                    .spawn(async move {
                        while let Ok(n @ 1..) = stream.read(&mut [0; 70_000]).await {
                            counts.borrow_mut()[at] += n as u64;
                        }
                    })
                    .detach();
            }
            while counts.borrow().iter().sum::<u64>() < 100_000_000 {
                Timer::after(Duration::from_millis(5)).await;
            }
            let (least, most) =
                (counts.borrow().iter().min().copied(), counts.borrow().iter().max().copied());
            assert!(least.unwrap() * 10 > most.unwrap() * 7, "{counts:?}");
        });
    }

    #[test]
    fn who_does_not_use_its_turn_holds_nobody_up() {
        with_sessions(Limits::default(), |executor, a, b, link| async move {
            executor.spawn(echo(Rc::clone(&executor), b.clone())).detach();
            link.stall(true);
            let mut idle = Vec::new();
            for _ in 0..4 {
                let mut stream = a.open().await.unwrap();
                let _ = within(Duration::from_millis(50), stream.write_all(&[0; 1 << 19])).await;
                // It gave up writing and lives on.
                idle.push(stream);
            }
            link.stall(false);
            let work = send_and_compare(a.clone(), 5, 300_000);
            assert!(within(Duration::from_secs(10), work).await.is_some());
        });
    }

    #[test]
    fn long_lines_get_longer_windows() {
        with_sessions(Limits::default(), |executor, a, b, _link| async move {
            executor.spawn(echo(Rc::clone(&executor), b.clone())).detach();
            send_and_compare(a.clone(), 1, 1000).await;
            let core = b.shared.core.borrow();
            assert!(core.round_trip.time.is_some(), "measured");
            assert!(core.round_trip.next.is_some_and(|next| next > Instant::now()), "and not all the time");
        });
    }

    #[test]
    fn close_sends_what_was_written() {
        with_sessions(Limits::default(), |_executor, a, b, _link| async move {
            let mut stream = a.open().await.unwrap();
            stream.write_all(b"last words").await.unwrap();
            stream.close().await.unwrap();
            a.close();
            assert!(!a.is_alive());
            let mut got = [0; 10];
            b.accept().await.unwrap().read_exact(&mut got).await.unwrap();
            assert_eq!(&got, b"last words");
            a.ended().await;
            b.ended().await;
        });
    }

    #[test]
    fn dead_peer_holds_up_a_close_for_seconds_only() {
        with_sessions(Limits::default(), |_executor, a, b, link| async move {
            let mut stream = a.open().await.unwrap();
            link.stall(true);
            let _ = within(Duration::from_millis(100), stream.write_all(&[0; 1 << 20])).await;
            a.close();
            let ended = within(CLOSE_TIME_MAX * 2, a.ended()).await;
            assert!(ended.is_some() && b.is_alive());
        });
    }

    /// The crate that earlier versions speak with, on the other end.
    #[test]
    fn streams_pass_between_this_and_the_yamux_crate() {
        let executor = Rc::new(LocalExecutor::new());
        let (a, b, _link) = memory::link(1 << 16);
        let keys = ([1; 32], [2; 32]);
        let (ours, driver) = start(NoiseStream::new(a, keys, true), true, &Limits::default());
        executor.spawn(driver).detach();
        let below = NoiseStream::new(b, keys, false);
        let mut theirs = yamux::Connection::new(below, yamux::Config::default(), yamux::Mode::Server);
        executor.spawn(echo(Rc::clone(&executor), ours.clone())).detach();
        let inner = Rc::clone(&executor);
        let test = async move {
            let mut stream = std::future::poll_fn(|cx| theirs.poll_new_outbound(cx)).await.expect("a stream");
            let inside = Rc::clone(&inner);
            let serving = inner.spawn(async move {
                while let Some(Ok(mut stream)) = std::future::poll_fn(|cx| theirs.poll_next_inbound(cx)).await
                {
                    let work = async move {
                        let mut buf = vec![0; 10_000];
                        while let Ok(n @ 1..) = stream.read(&mut buf).await {
                            if stream.write_all(&buf[..n]).await.is_err() {
                                return;
                            }
                        }
                    };
                    inside.spawn(work).detach();
                }
            });
            let tasks: Vec<_> =
                (0..4).map(|seed| inner.spawn(send_and_compare(ours.clone(), seed, 1_500_000))).collect();
            for piece in Dice(9).bytes(1_500_000).chunks(30_000) {
                stream.write_all(piece).await.unwrap();
                let mut back = vec![0; piece.len()];
                stream.read_exact(&mut back).await.unwrap();
                assert_eq!(back, piece);
            }
            stream.close().await.unwrap();
            assert_eq!(stream.read(&mut [0]).await.unwrap(), 0, "our side ends, too");
            for task in tasks {
                task.await;
            }
            ours.close();
            assert!(within(Duration::from_secs(5), serving).await.is_some(), "it takes our leave");
        };
        smol::block_on(executor.run(test));
    }

    #[test]
    fn garbage_instead_of_frames_ends_the_session() {
        for seed in 0..300 {
            let executor = LocalExecutor::new();
            let (a, b, _link) = memory::link(1 << 18);
            let keys = ([1; 32], [2; 32]);
            let mut raw = NoiseStream::new(a, keys, true);
            let (session, driver) = start(NoiseStream::new(b, keys, false), false, &Limits::default());
            let driver = executor.spawn(driver);
            let mut dice = Dice(seed);
            let mut bytes = Vec::new();
            for _ in 0..50 {
                // Frames with a sound version and kind, and everything else as it comes.
                bytes.extend([0, dice.roll(4) as u8, 0, dice.roll(16) as u8]);
                bytes.extend([0, 0, 0, dice.roll(8) as u8]);
                let len = dice.roll(300);
                bytes.extend((len as u32).to_be_bytes());
                bytes.extend(dice.bytes(len));
            }
            smol::block_on(executor.run(async {
                let _ = raw.write_all(&bytes).await;
                let _ = raw.close().await;
                drop(raw);
                within(Duration::from_secs(5), driver).await.expect("the session ends");
                assert!(!session.is_alive());
            }));
        }
    }
}

//! Many streams on one connection (yamux), opened by either side: one stream is one request.
//!
//! Promise: a peer that opens too many streams, reads none or says nothing costs bounded memory, and a connection
//! that ends takes all its streams with it, each with an error.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use smol::Timer;
use smol::channel::{self, Receiver, Sender};
use smol::io::{AsyncRead, AsyncWrite};
use smol::lock::{Semaphore, SemaphoreGuardArc};

use super::{BoxStream, ByteStream, memory};
use crate::world::{self, Dice};

/// What yamux grants each stream at least (its specification).
pub const STREAM_WINDOW_BYTES: usize = 256 * 1024;
/// A close that cannot be sent is given up after this.
pub const CLOSE_TIME_MAX: Duration = Duration::from_secs(5);

/// Places on yamux's table for streams that were dropped and not yet taken off it.
const STREAMS_SLACK: usize = 128;
/// With so many of them, perhaps, no stream is opened.
const LINGERING_MAX: usize = STREAMS_SLACK / 2;
/// A dropped stream is off the table after so many frames: at most 11 frames of its own and its end, each after one of
/// every other stream.
const LINGERING_FRAMES: usize = 12 * 160;
/// Payload of one data frame on a line without caps.
const FRAME_BYTES: usize = 16 * 1024;
/// A peer that sends without pause lets other tasks run after so many bytes.
const READ_TURN_BYTES: usize = 512 * 1024;

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

impl Limits {
    fn to_yamux(&self) -> yamux::Config {
        let streams = self.streams_out + self.streams_in + STREAMS_SLACK;
        let mut config = yamux::Config::default();
        // yamux checks each of the two against the other, at once.
        config.set_max_connection_receive_window(None);
        config.set_max_num_streams(streams);
        config.set_max_connection_receive_window(Some(
            streams * STREAM_WINDOW_BYTES + self.window_growth_bytes,
        ));
        config.set_split_send_size(self.frame_bytes);
        config
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

impl From<yamux::ConnectionError> for SessionError {
    fn from(error: yamux::ConnectionError) -> Self {
        match error {
            yamux::ConnectionError::Io(error)
            | yamux::ConnectionError::Decode(yamux::FrameDecodeError::Io(error)) => Self::Broken(error),
            yamux::ConnectionError::Closed => Self::Closed,
            other => Self::Protocol(other.to_string()),
        }
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

/// One connection to a peer; clones are the same one.
#[derive(Clone)]
pub struct Session {
    shared: Rc<Shared>,
    /// Not in what is shared, which the streams in it hold.
    accepted: Receiver<Stream>,
}

struct Shared {
    is_alive: Cell<bool>,
    is_closing: Cell<bool>,
    is_aborted: Cell<bool>,
    streams_in: Cell<usize>,
    streams_out: Cell<usize>,
    permits_out: Arc<Semaphore>,
    /// Who waits for a new stream.
    wanted: RefCell<VecDeque<Sender<yamux::Stream>>>,
    /// Closed when the driver is gone.
    ended: Receiver<()>,
    driver: RefCell<Option<Waker>>,
    active_at: Cell<Instant>,
    /// Where there is no connection below: the session is joined to another one in memory.
    joint: RefCell<Option<Joint>>,
    bytes_in: Cell<u64>,
    bytes_out: Cell<u64>,
    /// `bytes_out` when each stream was dropped that yamux may still have on its table.
    lingering: RefCell<VecDeque<u64>>,
}

impl Shared {
    fn new(limits: &Limits, ended: Receiver<()>) -> Self {
        Self {
            is_alive: Cell::new(true),
            is_closing: Cell::new(false),
            is_aborted: Cell::new(false),
            streams_in: Cell::new(0),
            streams_out: Cell::new(0),
            permits_out: Arc::new(Semaphore::new(limits.streams_out)),
            wanted: RefCell::default(),
            ended,
            driver: RefCell::default(),
            active_at: Cell::new(world::instant()),
            joint: RefCell::default(),
            bytes_in: Cell::new(0),
            bytes_out: Cell::new(0),
            lingering: RefCell::default(),
        }
    }

    fn wake_driver(&self) {
        let waker = self.driver.borrow_mut().take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// A session over `stream`, which need not flush by itself, and the driver that makes it move: spawn it, for it ends
/// with the session and says why. Of the two sides one is the initiator.
pub fn start(stream: impl ByteStream + 'static, is_initiator: bool, limits: &Limits) -> (Session, Driver) {
    start_boxed(Box::new(stream), is_initiator, limits)
}

/// The code of a session is long, and is there once for streams of all kinds.
fn start_boxed(stream: BoxStream, is_initiator: bool, limits: &Limits) -> (Session, Driver) {
    let (ending, ended) = channel::bounded(1);
    let (accepting, accepted) = channel::bounded(limits.streams_in.max(1));
    let shared = Rc::new(Shared::new(limits, ended));
    let pipe = Rc::new(RefCell::new(Pipe {
        stream,
        turn: READ_TURN_BYTES,
        is_write_blocked: false,
        shared: Rc::clone(&shared),
    }));
    let mode = if is_initiator { yamux::Mode::Client } else { yamux::Mode::Server };
    let driver = Driver {
        yamux: yamux::Connection::new(Plain(Rc::clone(&pipe)), limits.to_yamux(), mode),
        pipe,
        accepting,
        streams_in_max: limits.streams_in,
        lingering_bytes: (LINGERING_FRAMES * limits.frame_bytes) as u64,
        closing: None,
        shared: Rc::clone(&shared),
        _ending: ending,
    };
    (Session { shared, accepted }, driver)
}

impl Session {
    /// A new stream; waits while 16 (`Limits::streams_out`) are open. The peer hears of it with the first write.
    pub async fn open(&self) -> Result<Stream, SessionError> {
        let shared = &self.shared;
        let permit = self.unless_ended(shared.permits_out.acquire_arc()).await?;
        if let Some(joint) = &*shared.joint.borrow() {
            return joint.open(shared, permit);
        }
        let (give, take) = channel::bounded(1);
        {
            let mut wanted = shared.wanted.borrow_mut();
            wanted.retain(|waiting| !waiting.is_closed());
            wanted.push_back(give);
        }
        shared.wake_driver();
        let inner = self.unless_ended(take.recv()).await?.map_err(|_| SessionError::Closed)?;
        shared.streams_out.set(shared.streams_out.get() + 1);
        Ok(Stream { inner: Inner::Yamux(inner), shared: Rc::clone(shared), permit: Some(permit) })
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
        self.shared.active_at.get()
    }

    /// Bytes that came in, those of yamux included.
    pub fn bytes_in(&self) -> u64 {
        self.shared.bytes_in.get()
    }

    /// Bytes that went out, those of yamux included.
    pub fn bytes_out(&self) -> u64 {
        self.shared.bytes_out.get()
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
    inner: Inner,
    shared: Rc<Shared>,
    /// Of the streams that we opened.
    permit: Option<SemaphoreGuardArc>,
}

enum Inner {
    Yamux(yamux::Stream),
    Memory(memory::End),
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.shared.lingering.borrow_mut().push_back(self.shared.bytes_out.get());
        let count = if self.permit.is_none() { &self.shared.streams_in } else { &self.shared.streams_out };
        count.set(count.get() - 1);
    }
}

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        let read = match &mut self.inner {
            Inner::Yamux(stream) => Pin::new(stream).poll_read(cx, buf),
            Inner::Memory(end) => {
                let read = Pin::new(end).poll_read(cx, buf);
                self.shared.note_read(&read);
                read
            }
        };
        match read {
            Poll::Ready(Ok(0)) if !buf.is_empty() && !self.shared.is_alive.get() => {
                Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()))
            }
            Poll::Ready(Err(_)) if !self.shared.is_alive.get() => {
                Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()))
            }
            other => other,
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = match &mut self.inner {
            Inner::Yamux(stream) => Pin::new(stream).poll_write(cx, buf),
            Inner::Memory(end) => {
                let written = Pin::new(end).poll_write(cx, buf);
                self.shared.note_written(&written);
                written
            }
        };
        written.map_err(|error| match self.shared.is_alive.get() {
            true => error,
            false => io::ErrorKind::ConnectionAborted.into(),
        })
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.inner {
            Inner::Yamux(stream) => Pin::new(stream).poll_flush(cx),
            Inner::Memory(end) => Pin::new(end).poll_flush(cx),
        }
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.inner {
            Inner::Yamux(stream) => Pin::new(stream).poll_close(cx),
            Inner::Memory(end) => Pin::new(end).poll_close(cx),
        }
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
        let _ = self.accepting.try_send(Stream { inner: Inner::Memory(theirs), shared: other, permit: None });
        Ok(Stream { inner: Inner::Memory(ours), shared: Rc::clone(shared), permit: Some(permit) })
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
    bytes_passed: Cell<u64>,
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

    /// Bytes of requests and replies that have passed, both ways together.
    pub fn passed(&self) -> u64 {
        self.inside.bytes_passed.get()
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
            self.bytes_in.set(self.bytes_in.get() + *n as u64);
            self.active_at.set(world::instant());
        }
    }

    fn note_written(&self, written: &Poll<io::Result<usize>>) {
        let Poll::Ready(Ok(n)) = written else { return };
        self.bytes_out.set(self.bytes_out.get() + *n as u64);
        let wire = self.joint.borrow().as_ref().map(|joint| joint.wire.clone());
        if let Some(wire) = wire {
            let passed = &wire.inside.bytes_passed;
            passed.set(passed.get() + *n as u64);
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
            bytes_passed: Cell::new(0),
            loss: RefCell::default(),
        }),
    };
    let end = || {
        let (ending, ended) = channel::bounded(1);
        let (accepting, accepted) = channel::bounded(limits.streams_in.max(1));
        let shared = Rc::new(Shared::new(limits, ended));
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

/// The stream below as yamux and the driver share it.
struct Pipe {
    stream: BoxStream,
    /// Bytes that may still be read in this turn of the driver.
    turn: usize,
    is_write_blocked: bool,
    shared: Rc<Shared>,
}

/// yamux's end of the pipe. It does not flush: yamux does so after each frame, the driver once per turn, so that
/// frames share messages.
struct Plain(Rc<RefCell<Pipe>>);

impl AsyncRead for Plain {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        let pipe = &mut *self.0.borrow_mut();
        if pipe.turn == 0 {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let read = Pin::new(&mut pipe.stream).poll_read(cx, buf);
        if let Poll::Ready(Ok(n)) = read {
            pipe.turn = pipe.turn.saturating_sub(n);
            pipe.shared.bytes_in.set(pipe.shared.bytes_in.get() + n as u64);
        }
        read
    }
}

impl AsyncWrite for Plain {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let pipe = &mut *self.0.borrow_mut();
        let written = Pin::new(&mut pipe.stream).poll_write(cx, buf);
        pipe.is_write_blocked = written.is_pending();
        if let Poll::Ready(Ok(n)) = written {
            pipe.shared.bytes_out.set(pipe.shared.bytes_out.get() + n as u64);
        }
        written
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0.borrow_mut().stream).poll_close(cx)
    }
}

/// What makes a session move, until it ends and this says why.
pub struct Driver {
    yamux: yamux::Connection<Plain>,
    pipe: Rc<RefCell<Pipe>>,
    accepting: Sender<Stream>,
    streams_in_max: usize,
    /// A stream that was dropped so many bytes ago is off yamux's table.
    lingering_bytes: u64,
    /// Runs while the session is being closed.
    closing: Option<Timer>,
    shared: Rc<Shared>,
    _ending: Sender<()>,
}

impl fmt::Debug for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Driver").finish_non_exhaustive()
    }
}

impl Future for Driver {
    type Output = SessionError;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<SessionError> {
        let this = &mut *self;
        *this.shared.driver.borrow_mut() = Some(cx.waker().clone());
        let end = match this.shared.is_closing.get() {
            true => this.poll_closing(cx),
            false => this.poll_running(cx),
        };
        if end.is_ready() {
            this.shared.is_alive.set(false);
        }
        end
    }
}

impl Driver {
    fn poll_running(&mut self, cx: &mut Context<'_>) -> Poll<SessionError> {
        let bytes_before = self.shared.bytes_in.get();
        self.pipe.borrow_mut().turn = READ_TURN_BYTES;
        loop {
            match self.yamux.poll_next_inbound(cx) {
                Poll::Ready(Some(Ok(stream))) => self.take_in(stream),
                Poll::Ready(Some(Err(error))) => return Poll::Ready(error.into()),
                Poll::Ready(None) => return Poll::Ready(SessionError::Closed),
                // A new stream is heard only once yamux is polled again.
                Poll::Pending => match self.open_wanted(cx) {
                    Ok(true) => {}
                    Ok(false) => break,
                    Err(error) => return Poll::Ready(error),
                },
            }
        }
        if self.shared.bytes_in.get() != bytes_before {
            self.shared.active_at.set(world::instant());
        }
        match Pin::new(&mut self.pipe.borrow_mut().stream).poll_flush(cx) {
            Poll::Ready(Err(error)) => Poll::Ready(SessionError::Broken(error)),
            _ => Poll::Pending,
        }
    }

    /// Hands a stream of the peer's to whoever accepts; one too many is dropped, which resets it.
    fn take_in(&mut self, inner: yamux::Stream) {
        let live = self.shared.streams_in.get();
        if live >= self.streams_in_max {
            log::debug!("a peer has {live} streams open and one more is reset");
            return;
        }
        self.shared.streams_in.set(live + 1);
        let stream = Stream { inner: Inner::Yamux(inner), shared: Rc::clone(&self.shared), permit: None };
        // The queue holds all that may be live, so it takes this one, too.
        let _ = self.accepting.try_send(stream);
    }

    /// Opens what is waited for; whether there was any.
    fn open_wanted(&mut self, cx: &mut Context<'_>) -> Result<bool, SessionError> {
        let mut has_opened = false;
        loop {
            if !self.has_place() {
                return Ok(has_opened);
            }
            let Some(waiting) = self.shared.wanted.borrow_mut().pop_front() else { return Ok(has_opened) };
            if waiting.is_closed() {
                continue;
            }
            match self.yamux.poll_new_outbound(cx) {
                Poll::Ready(Ok(stream)) => {
                    has_opened = true;
                    let _ = waiting.try_send(stream);
                }
                Poll::Ready(Err(error)) => return Err(error.into()),
                Poll::Pending => {
                    self.shared.wanted.borrow_mut().push_front(waiting);
                    return Ok(has_opened);
                }
            }
        }
    }

    /// Whether yamux's table surely has a place: one stream over its size ends the session, and while writes wait, dropped
    /// streams stay on it until their turn comes.
    fn has_place(&self) -> bool {
        let mut lingering = self.shared.lingering.borrow_mut();
        if !self.pipe.borrow().is_write_blocked {
            lingering.clear();
        }
        let bytes_out = self.shared.bytes_out.get();
        while lingering.front().is_some_and(|at| at + self.lingering_bytes <= bytes_out) {
            lingering.pop_front();
        }
        lingering.len() < LINGERING_MAX
    }

    fn poll_closing(&mut self, cx: &mut Context<'_>) -> Poll<SessionError> {
        if self.shared.is_aborted.get() {
            return Poll::Ready(SessionError::Closed);
        }
        match self.yamux.poll_close(cx) {
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
        self.shared.is_alive.set(false);
        self.shared.wanted.borrow_mut().clear();
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
            let heard = Rc::new(Cell::new(0));
            for _ in 0..12 {
                let mut stream = a.open().await.unwrap();
                stream.write_all(b"hello").await.unwrap();
                let heard = Rc::clone(&heard);
                reading.push(executor.spawn(async move {
                    let mut buf = [0; 5];
                    stream.read_exact(&mut buf).await.unwrap();
                    heard.set(heard.get() + 1);
                    (stream.read(&mut buf).await, stream)
                }));
            }
            while heard.get() < 12 {
                Timer::after(Duration::from_millis(5)).await;
            }
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
            let sent = within(Duration::from_secs(60), push).await.expect("the reset reaches the writer");
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
            assert!(within(Duration::from_secs(60), a.open()).await.unwrap().is_ok());
        });
    }

    #[test]
    fn streams_open_while_writes_wait_as_long_as_the_table_has_room() {
        with_sessions(Limits::default(), |_executor, a, b, link| async move {
            link.stall(true);
            let mut busy = Vec::new();
            for _ in 0..3 {
                busy.push(a.open().await.unwrap());
                let stream = busy.last_mut().unwrap();
                let _ = within(Duration::from_millis(100), stream.write_all(&[0; 1 << 20])).await;
            }
            let soon = Duration::from_secs(1);
            let mut opened = 0;
            while within(soon, a.open()).await.is_some_and(|stream| stream.is_ok()) {
                opened += 1;
            }
            assert_eq!(opened, LINGERING_MAX);
            assert!(a.is_alive());
            link.stall(false);
            let mut stream = within(Duration::from_secs(60), a.open()).await.unwrap().unwrap();
            stream.write_all(b"x").await.unwrap();
            assert!(a.is_alive() && b.is_alive());
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
                within(Duration::from_secs(60), driver).await.expect("the session ends");
                assert!(!session.is_alive());
            }));
        }
    }
}

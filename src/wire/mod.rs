//! What peers say, and how bytes get there: byte stream, Noise, yamux, requests. Knows nothing of the store, the
//! database or who should hold what.
//!
//! Promise: bytes from strangers and peers never panic, never allocate more than a named limit, and never keep a
//! task waiting longer than a named limit.

use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt};
use smol::io::{AsyncRead, AsyncWrite};

use crate::world::Timer;

pub mod handshake;
pub mod memory;
pub mod message;
pub mod noise;
pub mod pace;
pub mod session;
pub mod tcp;
mod yamux;

/// Whatever carries bytes both ways: a TCP connection, a circuit through a relay, a link in memory.
pub trait ByteStream: AsyncRead + AsyncWrite + Unpin {}

impl<S: AsyncRead + AsyncWrite + Unpin + ?Sized> ByteStream for S {}

/// A byte stream whose buffers a session reads and fills where they lie.
pub trait Below: AsyncRead + AsyncWrite + Unpin {
    /// Bytes that are here and were not consumed. None: there are no more, or `poll_fill` brings them.
    fn incoming(&mut self) -> io::Result<&[u8]>;
    /// So many bytes of `incoming` are done with.
    fn consume(&mut self, bytes: usize);
    /// Reads once, when `incoming` is empty; 0: it stays so. What was read need not be enough to be shown.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>>;
    /// Where bytes to be sent go; what is too short for them grows when all is drained.
    fn outgoing(&mut self) -> &mut [u8];
    /// So many bytes of `outgoing` were filled.
    fn fill(&mut self, bytes: usize);
    /// Sends all that was filled. Need not flush what is further below.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
}

/// Buffers for a byte stream that has none of its own.
pub struct Buffered<S> {
    inner: S,
    incoming: Box<[u8]>,
    start: usize,
    end: usize,
    outgoing: Box<[u8]>,
    sent: usize,
    filled: usize,
}

/// Each way.
const BUFFERED_BYTES: usize = 32 * 1024;

impl<S> Buffered<S> {
    /// Nothing was read or written yet.
    pub fn new(inner: S) -> Self {
        let [incoming, outgoing] = [(); 2].map(|()| vec![0; BUFFERED_BYTES].into());
        Self { inner, incoming, start: 0, end: 0, outgoing, sent: 0, filled: 0 }
    }
}

impl<S: ByteStream> Below for Buffered<S> {
    fn incoming(&mut self) -> io::Result<&[u8]> {
        Ok(&self.incoming[self.start..self.end])
    }

    fn consume(&mut self, bytes: usize) {
        self.start += bytes;
    }

    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let n = ready!(Pin::new(&mut self.inner).poll_read(cx, &mut self.incoming))?;
        (self.start, self.end) = (0, n);
        Poll::Ready(Ok(n))
    }

    fn outgoing(&mut self) -> &mut [u8] {
        &mut self.outgoing[self.filled..]
    }

    fn fill(&mut self, bytes: usize) {
        self.filled += bytes;
    }

    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.sent < self.filled {
            let rest = &self.outgoing[self.sent..self.filled];
            match ready!(Pin::new(&mut self.inner).poll_write(cx, rest))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                n => self.sent += n,
            }
        }
        (self.sent, self.filled) = (0, 0);
        Poll::Ready(Ok(()))
    }
}

impl<S: ByteStream> AsyncRead for Buffered<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl<S: ByteStream> AsyncWrite for Buffered<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(cx))?;
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(cx))?;
        Pin::new(&mut self.inner).poll_close(cx)
    }
}

/// A byte stream of any kind.
pub type BoxStream = Box<dyn ByteStream>;

/// What a byte stream runs over; part of what a handshake signs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Transport {
    /// A TCP connection.
    Tcp,
    /// A circuit through a relay.
    Relay,
}

/// What `work` gives, or `None` when `limit` passes first.
pub(crate) async fn within<T>(limit: Duration, work: impl Future<Output = T>) -> Option<T> {
    smol::future::or(async { Some(work.await) }, async {
        Timer::after(limit).await;
        None
    })
    .await
}

/// Runs `attempts` in their order, each `stagger` after the one before or at once after a failure; the first that
/// succeeds wins, and the others are dropped. Otherwise all errors, in the order in which they came.
pub(crate) async fn race<T, E, F>(
    attempts: impl IntoIterator<Item = F>,
    stagger: Duration,
) -> Result<T, Vec<E>>
where
    F: Future<Output = Result<T, E>>,
{
    let mut waiting = attempts.into_iter().peekable();
    let mut running = FuturesUnordered::new();
    let mut failed = Vec::new();
    loop {
        running.extend(waiting.next());
        let due = async {
            match waiting.peek() {
                Some(_) => Timer::after(stagger).await,
                None => std::future::pending().await,
            };
            None
        };
        match smol::future::or(async { Some(running.next().await) }, due).await {
            Some(Some(Ok(won))) => return Ok(won),
            Some(Some(Err(why))) => failed.push(why),
            Some(None) => return Err(failed),
            None => {}
        }
    }
}

/// Waits for `step`, but not longer than `limit`; the timer costs nothing while the step need not wait.
async fn in_time<T>(
    limit: Duration,
    mut step: impl FnMut(&mut Context<'_>) -> Poll<io::Result<T>>,
) -> io::Result<T> {
    let mut timer = None;
    std::future::poll_fn(move |cx| {
        if let Poll::Ready(done) = step(cx) {
            return Poll::Ready(done);
        }
        let timer = timer.get_or_insert_with(|| Timer::after(limit));
        Pin::new(timer).poll(cx).map(|_| Err(io::ErrorKind::TimedOut.into()))
    })
    .await
}

/// Some bytes, at least one unless the stream has ended, within `limit`.
pub(crate) async fn read_some<S>(stream: &mut S, buf: &mut [u8], limit: Duration) -> io::Result<usize>
where
    S: AsyncRead + Unpin + ?Sized,
{
    let mut stream = pin!(stream);
    in_time(limit, |cx| stream.as_mut().poll_read(cx, buf)).await
}

/// Fills `buf`; no byte for `limit` is an error, and so is an early end.
pub(crate) async fn read_full<S>(stream: &mut S, buf: &mut [u8], limit: Duration) -> io::Result<()>
where
    S: AsyncRead + Unpin + ?Sized,
{
    let mut done = 0;
    while done < buf.len() {
        match read_some(stream, &mut buf[done..], limit).await? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => done += n,
        }
    }
    Ok(())
}

/// Writes all of `bytes`; no byte taken for `limit` is an error.
pub(crate) async fn write_full<S>(stream: &mut S, mut bytes: &[u8], limit: Duration) -> io::Result<()>
where
    S: AsyncWrite + Unpin + ?Sized,
{
    let mut stream = pin!(stream);
    while !bytes.is_empty() {
        match in_time(limit, |cx| stream.as_mut().poll_write(cx, bytes)).await? {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            n => bytes = &bytes[n..],
        }
    }
    Ok(())
}

/// Sends what is buffered, within `limit`.
pub(crate) async fn flush<S>(stream: &mut S, limit: Duration) -> io::Result<()>
where
    S: AsyncWrite + Unpin + ?Sized,
{
    let mut stream = pin!(stream);
    in_time(limit, |cx| stream.as_mut().poll_flush(cx)).await
}

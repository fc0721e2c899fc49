//! What peers say, and how bytes get there: byte stream, Noise, yamux, requests. Knows nothing of the store, the
//! database or who should hold what.
//!
//! Promise: bytes from strangers and peers never panic, never allocate more than a named limit, and never keep a
//! task waiting longer than a named limit.

use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::task::Poll;
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt};
use smol::io::{AsyncRead, AsyncWrite};

use crate::world::Timer;

mod accepted;
pub mod handshake;
pub mod memory;
pub mod message;
pub mod noise;
pub mod pace;
pub mod session;
pub mod tcp;

pub use accepted::Accepted;

/// Whatever carries bytes both ways: a TCP connection, a circuit through a relay, a link in memory.
pub trait ByteStream: AsyncRead + AsyncWrite + Unpin {}

impl<S: AsyncRead + AsyncWrite + Unpin + ?Sized> ByteStream for S {}

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
    mut step: impl FnMut(&mut std::task::Context<'_>) -> Poll<io::Result<T>>,
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

//! A link in memory: two ends, bounded like a socket's buffers, that can be slowed, stalled and cut.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use smol::io::{AsyncRead, AsyncWrite};

use crate::world::{Timer, instant};

/// Two ends joined by buffers of `capacity` bytes each way, and the handle that disturbs them.
///
/// # Panics
/// If `capacity` is 0: nothing could pass.
pub fn link(capacity: usize) -> (End, End, Link) {
    assert!(capacity > 0, "a link holds at least a byte");
    let shared = Rc::new(RefCell::new(Shared { capacity, ..Shared::default() }));
    let end = |side| End { side, shared: Rc::clone(&shared), timer: None };
    (end(0), end(1), Link { shared: Rc::clone(&shared) })
}

#[derive(Default)]
struct Shared {
    capacity: usize,
    delay: Duration,
    cut: bool,
    stalled: bool,
    /// What side 0 wrote, and what side 1 wrote.
    pipes: [Pipe; 2],
}

#[derive(Default)]
struct Pipe {
    /// Bytes, and when they may be read.
    parts: VecDeque<(Instant, Vec<u8>)>,
    /// Bytes of the first part that were read.
    taken: usize,
    held: usize,
    written: u64,
    closed: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl Pipe {
    fn wake(&mut self) {
        for waker in [self.reader.take(), self.writer.take()].into_iter().flatten() {
            waker.wake();
        }
    }
}

/// Disturbs a link.
#[derive(Clone)]
pub struct Link {
    shared: Rc<RefCell<Shared>>,
}

impl Link {
    /// Breaks the link: both ends fail with a reset, and what was under way is lost.
    pub fn cut(&self) {
        let mut shared = self.shared.borrow_mut();
        shared.cut = true;
        shared.pipes.iter_mut().for_each(Pipe::wake);
    }

    /// Ends both directions in order: what is under way may still be read.
    pub fn close(&self) {
        let mut shared = self.shared.borrow_mut();
        shared.pipes.iter_mut().for_each(|pipe| {
            pipe.closed = true;
            pipe.wake();
        });
    }

    /// Whether an end is left that may be read or written.
    pub fn is_open(&self) -> bool {
        let shared = self.shared.borrow();
        !shared.cut && !shared.pipes.iter().all(|pipe| pipe.closed && pipe.parts.is_empty())
    }

    /// Swallows the traffic, as a peer does that lost its power: writes fill the buffer, reads wait.
    pub fn stall(&self, stalled: bool) {
        let mut shared = self.shared.borrow_mut();
        shared.stalled = stalled;
        shared.pipes.iter_mut().for_each(Pipe::wake);
    }

    /// How long bytes written from now on are under way.
    pub fn delay(&self, delay: Duration) {
        self.shared.borrow_mut().delay = delay;
    }

    /// Bytes the first end has written so far, and the second.
    pub fn written(&self) -> (u64, u64) {
        let shared = self.shared.borrow();
        (shared.pipes[0].written, shared.pipes[1].written)
    }
}

/// One end of a link; dropping it closes it.
pub struct End {
    side: usize,
    shared: Rc<RefCell<Shared>>,
    timer: Option<Timer>,
}

impl AsyncRead for End {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let mut shared = this.shared.borrow_mut();
        if shared.cut {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        let stalled = shared.stalled;
        let pipe = &mut shared.pipes[1 - this.side];
        let now = instant();
        let mut read = 0;
        while !stalled && read < buf.len() {
            let Some((ready, part)) = pipe.parts.front() else { break };
            if *ready > now {
                break;
            }
            let n = (part.len() - pipe.taken).min(buf.len() - read);
            buf[read..read + n].copy_from_slice(&part[pipe.taken..pipe.taken + n]);
            read += n;
            pipe.taken += n;
            if pipe.taken == part.len() {
                pipe.taken = 0;
                pipe.parts.pop_front();
            }
        }
        if read > 0 || buf.is_empty() {
            pipe.held -= read;
            if let Some(writer) = pipe.writer.take() {
                writer.wake();
            }
            return Poll::Ready(Ok(read));
        }
        if pipe.closed && pipe.parts.is_empty() && !stalled {
            return Poll::Ready(Ok(0));
        }
        pipe.reader = Some(cx.waker().clone());
        if let (Some((ready, _)), false) = (pipe.parts.front(), stalled) {
            let mut timer = Timer::at(*ready);
            if Pin::new(&mut timer).poll(cx).is_ready() {
                cx.waker().wake_by_ref();
            }
            this.timer = Some(timer);
        }
        Poll::Pending
    }
}

impl AsyncWrite for End {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let mut shared = self.shared.borrow_mut();
        if shared.cut {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        let (capacity, ready) = (shared.capacity, instant() + shared.delay);
        let other_is_gone = Rc::strong_count(&self.shared) < 2;
        let pipe = &mut shared.pipes[self.side];
        if pipe.closed || other_is_gone {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let n = buf.len().min(capacity - pipe.held);
        if n == 0 && !buf.is_empty() {
            pipe.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        pipe.parts.push_back((ready, buf[..n].to_vec()));
        pipe.held += n;
        pipe.written += n as u64;
        if let Some(reader) = pipe.reader.take() {
            reader.wake();
        }
        Poll::Ready(Ok(n))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let pipe = &mut self.shared.borrow_mut().pipes[self.side];
        pipe.closed = true;
        pipe.wake();
        Poll::Ready(Ok(()))
    }
}

impl Drop for End {
    fn drop(&mut self) {
        let mut shared = self.shared.borrow_mut();
        for pipe in &mut shared.pipes {
            // As a socket does: nothing more can be written either way, what is under way may still be read.
            pipe.closed = true;
            pipe.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use smol::io::{AsyncReadExt, AsyncWriteExt};

    #[test]
    fn bytes_pass_bounded_and_end_with_the_other_end() {
        smol::block_on(async {
            let (mut a, mut b, link) = link(10);
            let write = async {
                a.write_all(b"longer than the buffer").await.unwrap();
                a.close().await.unwrap();
            };
            let mut text = Vec::new();
            smol::future::zip(write, b.read_to_end(&mut text)).await.1.unwrap();
            assert_eq!(text, b"longer than the buffer");
            assert_eq!(link.written(), (22, 0));
            drop(b);
            assert!(a.write_all(b"x").await.is_err());
        });
    }

    #[test]
    fn cut_link_fails_at_both_ends() {
        smol::block_on(async {
            let (mut a, mut b, link) = link(10);
            a.write_all(b"lost").await.unwrap();
            link.cut();
            assert_eq!(b.read(&mut [0; 4]).await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
            assert_eq!(a.write(b"x").await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        });
    }

    #[test]
    fn delayed_bytes_come_late_and_stalled_ones_not() {
        smol::block_on(async {
            let (mut a, mut b, link) = link(10);
            let delay = Duration::from_millis(30);
            link.delay(delay);
            let start = Instant::now();
            a.write_all(b"late").await.unwrap();
            b.read_exact(&mut [0; 4]).await.unwrap();
            assert!(start.elapsed() >= delay);
            link.stall(true);
            a.write_all(b"never").await.unwrap();
            assert!(crate::wire::within(delay * 3, b.read(&mut [0; 4])).await.is_none());
        });
    }
}

//! Caps on a line: bytes a second, each way, in total and for each peer.
//!
//! Bytes are paid for after they have moved: a stream moves at most a quantum, which is sold to it at the end of what was
//! sold before, and goes on when that time has come. So busy streams take turns, a stream that was quiet never waits for
//! its first bytes, nothing is sold that is not used, and time alone sets everybody free.

use std::cell::RefCell;
use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use smol::Timer;
use smol::io::{AsyncRead, AsyncWrite};

use super::noise::NoiseStream;
use super::session::Limits;
use crate::config::Config;
use crate::id::CellId;

/// A line that was quiet carries this much of its rate at once.
pub const BURST: Duration = Duration::from_millis(250);

/// Of a second: the turn of one stream. What is said on another stream waits for one turn of each busy one.
const TURNS_PER_SECOND: u64 = 32;
/// A turn is worth a packet, at least, and no more than a Noise message.
const QUANTUM_BYTES: std::ops::RangeInclusive<u64> = 2048..=65_536;

/// One cap: sells the bytes of a line in the order in which they were asked for.
#[derive(Debug)]
pub struct Bucket {
    bytes_per_s: u64,
    /// The line is sold up to here.
    sold_until: Instant,
}

impl Bucket {
    /// A line of `bytes_per_s`, at least 1, that was quiet up to `now`.
    pub fn new(bytes_per_s: u64, now: Instant) -> Self {
        assert!(bytes_per_s > 0, "0 is no cap, and no bucket");
        Self { bytes_per_s, sold_until: now.checked_sub(BURST).unwrap_or(now) }
    }

    /// Sells `bytes` that have just moved; whoever moved them may go on at the time this gives, or at once if that is over.
    pub fn sell(&mut self, bytes: usize, now: Instant) -> Instant {
        let nanos = (bytes as u128 * 1_000_000_000).div_ceil(self.bytes_per_s.into());
        let takes = Duration::from_nanos(nanos.try_into().unwrap_or(u64::MAX));
        // Time that passed unsold is lost, but for a burst.
        let from = now.checked_sub(BURST).map_or(self.sold_until, |since| since.max(self.sold_until));
        self.sold_until = from + takes;
        self.sold_until
    }

    /// What one stream moves before it is the turn of others. Bytes.
    pub fn quantum(&self) -> usize {
        (self.bytes_per_s / TURNS_PER_SECOND).clamp(*QUANTUM_BYTES.start(), *QUANTUM_BYTES.end()) as usize
    }
}

type Shared = Rc<RefCell<Bucket>>;

fn bucket(bytes_per_s: u64) -> Option<Shared> {
    (bytes_per_s > 0).then(|| Rc::new(RefCell::new(Bucket::new(bytes_per_s, Instant::now()))))
}

/// One direction of one stream, under a cap or two.
struct Lane {
    buckets: Vec<Shared>,
    quantum: usize,
    /// What it moved is not paid for until the timer fires.
    is_waiting: bool,
    timer: Timer,
}

impl Lane {
    /// `None` if no cap holds.
    fn new(buckets: impl Iterator<Item = Shared>) -> Option<Box<Self>> {
        let buckets: Vec<Shared> = buckets.collect();
        let quantum = buckets.iter().map(|bucket| bucket.borrow().quantum()).min()?;
        Some(Box::new(Self { buckets, quantum, is_waiting: false, timer: Timer::never() }))
    }

    fn poll_free(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.is_waiting {
            ready!(Pin::new(&mut self.timer).poll(cx));
            self.is_waiting = false;
        }
        Poll::Ready(())
    }

    fn pay(&mut self, bytes: usize) {
        let now = Instant::now();
        let free_at = self.buckets.iter().map(|bucket| bucket.borrow_mut().sell(bytes, now)).max();
        if let Some(at) = free_at.filter(|at| *at > now) {
            self.timer.set_at(at);
            self.is_waiting = true;
        }
    }
}

/// A byte stream under caps. Without any it passes everything on: no timer, no clock, no allocation.
pub struct Paced<S> {
    inner: S,
    up: Option<Box<Lane>>,
    down: Option<Box<Lane>>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Paced<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let Some(lane) = &mut this.down else { return Pin::new(&mut this.inner).poll_read(cx, buf) };
        ready!(lane.poll_free(cx));
        let len = buf.len().min(lane.quantum);
        let n = ready!(Pin::new(&mut this.inner).poll_read(cx, &mut buf[..len]))?;
        lane.pay(n);
        Poll::Ready(Ok(n))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Paced<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let Some(lane) = &mut this.up else { return Pin::new(&mut this.inner).poll_write(cx, buf) };
        ready!(lane.poll_free(cx));
        let len = buf.len().min(lane.quantum);
        let n = ready!(Pin::new(&mut this.inner).poll_write(cx, &buf[..len]))?;
        lane.pay(n);
        Poll::Ready(Ok(n))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_close(cx)
    }
}

/// The caps of a cell. Bytes a second; 0: none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Caps {
    pub up: u64,
    pub down: u64,
    pub peer_up: u64,
    pub peer_down: u64,
    /// They hold on the LAN, too.
    pub with_lan: bool,
}

impl From<&Config> for Caps {
    fn from(config: &Config) -> Self {
        Self {
            up: config.limit_up,
            down: config.limit_down,
            peer_up: config.limit_peer_up,
            peer_down: config.limit_peer_down,
            with_lan: config.limit_lan,
        }
    }
}

/// Both ways of one line.
#[derive(Clone)]
struct Line {
    up: Option<Shared>,
    down: Option<Shared>,
}

impl Line {
    fn new(up: u64, down: u64) -> Self {
        Self { up: bucket(up), down: bucket(down) }
    }
}

/// What of a peer's line is kept while a session of it lives.
type Remembered = (Weak<RefCell<Bucket>>, Weak<RefCell<Bucket>>);

/// Puts the sessions of a cell under its caps.
pub struct Pace {
    caps: Caps,
    total: Line,
    peers: RefCell<HashMap<CellId, Remembered>>,
}

impl Pace {
    /// Caps for all sessions that come.
    pub fn new(caps: Caps) -> Self {
        Self { caps, total: Line::new(caps.up, caps.down), peers: RefCell::default() }
    }

    /// The connection with `peer` under the caps, and with messages and frames so short that what is said meanwhile waits
    /// for no long one. `is_lan`: both ends are in one network at home.
    pub fn apply<S>(
        &self,
        stream: NoiseStream<S>,
        limits: &mut Limits,
        peer: &CellId,
        is_lan: bool,
    ) -> NoiseStream<Paced<S>> {
        let mut quantum = None;
        let mut stream = stream.map(|inner| {
            let paced = self.wrap(inner, peer, is_lan);
            quantum = paced.up.as_ref().map(|lane| lane.quantum);
            paced
        });
        if let Some(quantum) = quantum {
            stream.limit_messages(quantum);
            limits.frame_bytes = limits.frame_bytes.min(quantum);
        }
        stream
    }

    /// A stream to or from `peer` under the caps.
    pub fn wrap<S>(&self, inner: S, peer: &CellId, is_lan: bool) -> Paced<S> {
        if is_lan && !self.caps.with_lan {
            return Paced { inner, up: None, down: None };
        }
        let line = self.line_of(peer);
        let total = &self.total;
        Paced {
            inner,
            up: Lane::new(total.up.clone().into_iter().chain(line.up)),
            down: Lane::new(total.down.clone().into_iter().chain(line.down)),
        }
    }

    /// Several connections of one peer share its caps.
    fn line_of(&self, peer: &CellId) -> Line {
        if self.caps.peer_up == 0 && self.caps.peer_down == 0 {
            return Line { up: None, down: None };
        }
        let mut peers = self.peers.borrow_mut();
        peers.retain(|_, (up, down)| up.strong_count() + down.strong_count() > 0);
        let (up, down) = peers.get(peer).cloned().unwrap_or_default();
        let fresh = Line::new(self.caps.peer_up, self.caps.peer_down);
        let line = Line { up: up.upgrade().or(fresh.up), down: down.upgrade().or(fresh.down) };
        let weak = |bucket: &Option<Shared>| bucket.as_ref().map(Rc::downgrade).unwrap_or_default();
        peers.insert(*peer, (weak(&line.up), weak(&line.down)));
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::memory;
    use crate::wire::session::{self, Session};
    use smol::LocalExecutor;
    use smol::io::{AsyncReadExt, AsyncWriteExt};
    use smol::net::{TcpListener, TcpStream};

    /// What somebody with 1 Mbit/s sets.
    const SLOW: u64 = 60_000;

    const ANN: CellId = CellId([1; 32]);
    const BOB: CellId = CellId([2; 32]);

    /// Streams that always have something to send, in virtual time: bytes each has moved after `time`, and the longest
    /// pause of each.
    fn run(bucket: &mut Bucket, streams: usize, start: Instant, time: Duration) -> Vec<(u64, Duration)> {
        let quantum = bucket.quantum();
        let mut free_at = vec![start; streams];
        let mut moved = vec![(0, Duration::ZERO); streams];
        loop {
            let (at, now) = (0..streams).map(|i| (i, free_at[i])).min_by_key(|(_, at)| *at).unwrap();
            if now > start + time {
                return moved;
            }
            free_at[at] = bucket.sell(quantum, now).max(now);
            moved[at].0 += quantum as u64;
            moved[at].1 = moved[at].1.max(free_at[at] - now);
        }
    }

    #[test]
    fn busy_streams_get_the_rate_in_equal_parts_and_take_short_turns() {
        let start = Instant::now();
        for streams in [1, 2, 7] {
            let mut bucket = Bucket::new(SLOW, start);
            let moved = run(&mut bucket, streams, start, Duration::from_secs(60));
            let total: u64 = moved.iter().map(|(bytes, _)| bytes).sum();
            let slack = SLOW / 4 + (streams as u64 + 1) * 2048;
            assert!((SLOW * 60..=SLOW * 60 + slack).contains(&total), "{streams}: {total}");
            let (least, most) = (moved.iter().min().unwrap().0, moved.iter().max().unwrap().0);
            assert!(most - least <= SLOW / 4 + 2048, "{streams}: {least} to {most}");
            // No stream waits for more than a turn of each, 35 ms.
            let longest = moved.iter().map(|(_, pause)| *pause).max().unwrap();
            assert!(longest <= Duration::from_millis(36) * streams as u32, "{streams}: {longest:?}");
        }
    }

    #[test]
    fn quiet_line_carries_a_burst_and_no_more_than_that() {
        let start = Instant::now();
        let mut bucket = Bucket::new(SLOW, start);
        let later = start + Duration::from_secs(3600);
        assert!(bucket.sell(15_000, later) <= later);
        assert!(bucket.sell(6_000, later) >= later + Duration::from_millis(99));
    }

    #[test]
    fn turns_are_short_on_slow_lines_and_a_message_long_on_fast_ones() {
        let quantum = |rate| Bucket::new(rate, Instant::now()).quantum();
        assert_eq!((quantum(1), quantum(SLOW), quantum(128_000)), (2048, 2048, 4000));
        assert_eq!((quantum(1 << 30), quantum(u64::MAX)), (65_536, 65_536));
        let mut bucket = Bucket::new(1, Instant::now());
        bucket.sell(usize::MAX >> 1, Instant::now() - Duration::from_secs(1));
    }

    #[test]
    fn without_caps_and_on_the_lan_nothing_is_in_the_way() {
        let is_free = |caps, is_lan| {
            let paced = Pace::new(caps).wrap((), &ANN, is_lan);
            (paced.up.is_none(), paced.down.is_none())
        };
        assert_eq!(is_free(Caps::default(), false), (true, true));
        let caps = Caps { up: SLOW, peer_down: SLOW, ..Caps::default() };
        assert_eq!(is_free(caps, true), (true, true));
        assert_eq!(is_free(caps, false), (false, false));
        assert_eq!(is_free(Caps { with_lan: true, ..caps }, true), (false, false));
        assert_eq!(is_free(Caps { peer_down: 0, ..caps }, false), (false, true));
    }

    #[test]
    fn connections_of_one_peer_share_its_caps_and_other_peers_do_not() {
        let pace = Pace::new(Caps { up: SLOW, peer_up: SLOW, ..Caps::default() });
        let bucket = |paced: &Paced<()>, at: usize| Rc::clone(&paced.up.as_ref().unwrap().buckets[at]);
        let (first, second) = (pace.wrap((), &ANN, false), pace.wrap((), &ANN, false));
        let other = pace.wrap((), &BOB, false);
        assert!(Rc::ptr_eq(&bucket(&first, 0), &bucket(&other, 0)), "the total");
        assert!(Rc::ptr_eq(&bucket(&first, 1), &bucket(&second, 1)), "the peer's");
        assert!(!Rc::ptr_eq(&bucket(&first, 1), &bucket(&other, 1)));
        drop((first, second, other));
        pace.wrap((), &CellId([3; 32]), false);
        assert_eq!(pace.peers.borrow().len(), 1, "peers that are gone are forgotten");
    }

    /// Two ends of one connection, the first under `caps`.
    fn sessions(executor: &LocalExecutor<'static>, caps: Caps) -> (Session, Session, memory::Link) {
        let (a, b, link) = memory::link(1 << 18);
        let keys = ([1; 32], [2; 32]);
        let mut limits = Limits::default();
        let a = Pace::new(caps).apply(NoiseStream::new(a, keys, true), &mut limits, &ANN, false);
        let (a, drive_a) = session::start(a, true, &limits);
        let (b, drive_b) = session::start(NoiseStream::new(b, keys, false), false, &Limits::default());
        executor.spawn(drive_a).detach();
        executor.spawn(drive_b).detach();
        (a, b, link)
    }

    #[test]
    fn short_word_passes_busy_streams_within_kilobytes() {
        let executor = LocalExecutor::new();
        let (a, b, link) = sessions(&executor, Caps { up: SLOW, ..Caps::default() });
        smol::block_on(executor.run(async {
            // Three streams that send without pause, to somebody who reads all of it.
            for _ in 0..3 {
                let mut stream = a.open().await.unwrap();
                executor
                    .spawn(async move { while stream.write_all(&[7; 100_000]).await.is_ok() {} })
                    .detach();
                let mut stream = b.accept().await.unwrap();
                executor
                    .spawn(async move { while matches!(stream.read(&mut [0; 9000]).await, Ok(1..)) {} })
                    .detach();
            }
            while link.written().0 < 30_000 {
                Timer::after(Duration::from_millis(5)).await;
            }
            for _ in 0..3 {
                let before = link.written().0;
                let mut stream = a.open().await.unwrap();
                stream.write_all(b"are you there?").await.unwrap();
                let mut got = [0; 14];
                b.accept().await.unwrap().read_exact(&mut got).await.unwrap();
                // A message, what yamux has taken up already, and a frame of each stream: under half a second.
                let passed = link.written().0 - before;
                assert!(passed <= 7 * 2100, "{passed} bytes went before");
            }
        }));
    }

    #[test]
    fn capped_reads_bring_every_byte() {
        let executor = LocalExecutor::new();
        let caps = Caps { down: 3_000_000, peer_down: 2_000_000, up: 4_000_000, ..Caps::default() };
        let (a, b, _link) = sessions(&executor, caps);
        let bytes: Vec<u8> = (0..800_000u32).map(|i| (i / 7) as u8).collect();
        smol::block_on(executor.run(async {
            let mut stream = b.open().await.unwrap();
            let write = async {
                stream.write_all(&bytes).await.unwrap();
                stream.close().await.unwrap();
                stream
            };
            let read = async {
                let mut got = Vec::new();
                a.accept().await.unwrap().read_to_end(&mut got).await.unwrap();
                got
            };
            let (_stream, got) = smol::future::zip(write, read).await;
            assert!(got == bytes);
        }));
    }

    async fn tcp_pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (dialled, accepted) = smol::future::zip(TcpStream::connect(address), listener.accept()).await;
        (dialled.unwrap(), accepted.unwrap().0)
    }

    /// Over real sockets: one peer may have a quarter of what the other may, and gets about that in the same time; and
    /// neither gets more than its cap.
    #[test]
    fn caps_of_two_peers_hold_over_tcp() {
        let executor = LocalExecutor::new();
        smol::block_on(executor.run(async {
            let wide = Pace::new(Caps { peer_up: 2_000_000, ..Caps::default() });
            let narrow = Pace::new(Caps { peer_down: 500_000, ..Caps::default() });
            let ((wide_end, mut wide_far), (narrow_end, mut narrow_far)) =
                (tcp_pair().await, tcp_pair().await);
            let mut writing = wide.wrap(wide_end, &ANN, false);
            let mut reading = narrow.wrap(narrow_end, &BOB, false);
            let start = Instant::now();
            executor.spawn(async move { while writing.write_all(&[1; 70_000]).await.is_ok() {} }).detach();
            executor.spawn(async move { while narrow_far.write_all(&[2; 70_000]).await.is_ok() {} }).detach();
            let count_narrow = async {
                let mut count = 0;
                loop {
                    count += reading.read(&mut vec![0; 70_000]).await.unwrap();
                    if count > 500_000 {
                        return count as f64;
                    }
                }
            };
            let wide_count = std::cell::Cell::new(0);
            let count_wide = async {
                loop {
                    let n = wide_far.read(&mut vec![0; 70_000]).await.unwrap();
                    wide_count.set(wide_count.get() + n);
                }
            };
            let narrow_count = smol::future::or(count_narrow, count_wide).await;
            let (seconds, wide_count) = (start.elapsed().as_secs_f64(), wide_count.get() as f64);
            let most = |rate: f64| rate * (seconds + 0.25) + 2.0 * 65_536.0;
            assert!(narrow_count <= most(500_000.0) && wide_count <= most(2_000_000.0));
            let ratio = wide_count / narrow_count;
            assert!((2.0..=6.0).contains(&ratio), "{wide_count} against {narrow_count} in {seconds} s");
        }));
    }
}

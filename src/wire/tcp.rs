//! TCP: dialling several addresses of one cell, and the listener's door.

use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use rustix::net::sockopt;
use smol::Timer;
use smol::net::{TcpListener, TcpStream};

use super::handshake::{HandshakeError, HandshakeLimiter};
use super::{race, within};

/// The next address is tried after this, if the ones before have neither failed nor answered.
pub const STAGGER: Duration = Duration::from_millis(250);
/// Finding the addresses of a name takes no longer.
pub const RESOLVE_TIME_MAX: Duration = Duration::from_secs(5);
/// A TCP connection is made within this.
pub const CONNECT_TIME_MAX: Duration = Duration::from_secs(8);
/// Addresses of one name that are tried.
pub const ADDRESSES_PER_NAME_MAX: usize = 4;
/// Addresses of one cell that are tried.
pub const ATTEMPTS_MAX: usize = 32;
/// Unsent bytes in the kernel above which a socket takes no more, so that a short message is not behind megabytes.
pub const UNSENT_BYTES_MAX: libc::c_int = 128 * 1024;
/// Handshakes under way at once.
pub const KNOCKS_MAX: usize = 64;

/// A silent connection is probed after this.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(15);
const KEEPALIVE_EVERY: Duration = Duration::from_secs(5);
const KEEPALIVE_PROBES: u32 = 3;
/// What is not acknowledged for this long is lost, and the connection with it.
const UNACKNOWLEDGED_TIME_MAX: Duration = Duration::from_secs(30);
/// Without file descriptors, the listener tries again after this.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Sets a connection up for sessions: no delay for short messages, little unsent data, a dead peer noticed in 30 s.
pub fn tune(stream: &TcpStream) -> io::Result<()> {
    let fd = stream.as_fd();
    sockopt::set_tcp_nodelay(fd, true)?;
    sockopt::set_socket_keepalive(fd, true)?;
    sockopt::set_tcp_keepidle(fd, KEEPALIVE_IDLE)?;
    sockopt::set_tcp_keepintvl(fd, KEEPALIVE_EVERY)?;
    sockopt::set_tcp_keepcnt(fd, KEEPALIVE_PROBES)?;
    sockopt::set_tcp_user_timeout(fd, UNACKNOWLEDGED_TIME_MAX.as_millis() as u32)?;
    limit_unsent(stream)
}

fn limit_unsent(stream: &TcpStream) -> io::Result<()> {
    let value = UNSENT_BYTES_MAX;
    // SAFETY: the descriptor is open as long as `stream` is borrowed, and the option is an int that outlives the
    // call. rustix does not have this option.
    let done = unsafe {
        libc::setsockopt(
            stream.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_NOTSENT_LOWAT,
            (&raw const value).cast(),
            size_of_val(&value) as libc::socklen_t,
        )
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// While sent data waits for its acknowledgement: how long ago anything came. `None` when all is acknowledged. The kernel
/// knows it whatever lies in buffers (tcp(7), `TCP_INFO`). After a quiet time the first data sent waits "since" before it.
pub fn unanswered(stream: &TcpStream) -> Option<Duration> {
    /// The beginning of `struct tcp_info` (linux/tcp.h), which only grows at its end.
    #[repr(C)]
    #[derive(Default)]
    struct Info {
        bytes: [u8; 8],
        rto: u32,
        ato: u32,
        snd_mss: u32,
        rcv_mss: u32,
        unacked: u32,
        sacked: u32,
        lost: u32,
        retrans: u32,
        fackets: u32,
        last_data_sent: u32,
        last_ack_sent: u32,
        last_data_recv: u32,
        last_ack_recv: u32,
    }
    let mut info = Info::default();
    let mut len = size_of::<Info>() as libc::socklen_t;
    // SAFETY: the descriptor is open as long as `stream` is borrowed, and the kernel writes at most `len` bytes, all of
    // them into integers.
    let done = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &raw mut len,
        )
    };
    let is_waiting = done == 0 && len as usize == size_of::<Info>() && info.unacked > 0;
    is_waiting.then(|| Duration::from_millis(info.last_ack_recv.min(info.last_data_recv).into()))
}

/// No address led to the cell: what each attempt said, by address.
#[derive(Debug)]
pub struct DialError {
    /// In the order in which they failed; empty when there was no address.
    pub attempts: Vec<(String, HandshakeError)>,
}

impl DialError {
    /// The attempt that says most: one where something answered, rather than one where nothing did.
    pub fn best(&self) -> Option<&(String, HandshakeError)> {
        self.attempts.iter().max_by_key(|(_, error)| match error {
            HandshakeError::Unreachable(_) => 0,
            HandshakeError::TimedOut => 1,
            HandshakeError::Broken(_) | HandshakeError::Malformed => 2,
            HandshakeError::Silent(_) => 3,
            _ => 4,
        })
    }
}

impl fmt::Display for DialError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.best() {
            None => f.write_str("there is no address to try"),
            Some((address, error)) => {
                write!(f, "{address}: {error}")?;
                match self.attempts.len() - 1 {
                    0 => Ok(()),
                    others => write!(f, " ({others} more failed)"),
                }
            }
        }
    }
}

impl std::error::Error for DialError {}

/// Tries `addresses` (`host:port`, best first) 250 ms apart, or at once after a failure. The first connection that
/// `greet` (the handshake) accepts wins, and the others are dropped.
pub async fn dial<T, F, G>(addresses: &[String], greet: G) -> Result<(SocketAddr, T), DialError>
where
    G: Fn(TcpStream) -> F,
    F: Future<Output = Result<T, HandshakeError>>,
{
    let mut seen = HashSet::new();
    let unlike = addresses.iter().take(ATTEMPTS_MAX).filter(|address| seen.insert(*address));
    let attempts = unlike.map(|address| dial_one(address, &greet));
    race(attempts, STAGGER)
        .await
        .map_err(|failed| DialError { attempts: failed.into_iter().flatten().collect() })
}

/// All addresses that a name has, like several of one cell.
async fn dial_one<T, F>(
    address: &str,
    greet: &impl Fn(TcpStream) -> F,
) -> Result<(SocketAddr, T), Vec<(String, HandshakeError)>>
where
    F: Future<Output = Result<T, HandshakeError>>,
{
    let found = match address.parse() {
        Ok(address) => vec![address],
        Err(_) => resolve(address)
            .await
            .map_err(|why| vec![(address.to_owned(), HandshakeError::Unreachable(why))])?,
    };
    let attempts = found.into_iter().map(|address| async move {
        let (address, tried) = attempt(address, greet).await;
        tried.map(|done| (address, done)).map_err(|why| (address.to_string(), why))
    });
    race(attempts, STAGGER).await
}

async fn attempt<T, F>(
    address: SocketAddr,
    greet: &impl Fn(TcpStream) -> F,
) -> (SocketAddr, Result<T, HandshakeError>)
where
    F: Future<Output = Result<T, HandshakeError>>,
{
    let work = async {
        let connected = within(CONNECT_TIME_MAX, TcpStream::connect(address)).await;
        let stream = connected
            .unwrap_or_else(|| Err(io::ErrorKind::TimedOut.into()))
            .and_then(|stream| tune(&stream).map(|()| stream))
            .map_err(HandshakeError::Unreachable)?;
        greet(stream).await
    };
    (address, work.await)
}

/// Up to 4 addresses of `host:port`, within 5 s.
pub(crate) async fn resolve(address: &str) -> io::Result<Vec<SocketAddr>> {
    let found = within(RESOLVE_TIME_MAX, smol::net::resolve(address)).await;
    let mut found = found.unwrap_or_else(|| Err(io::ErrorKind::TimedOut.into()))?;
    found.truncate(ADDRESSES_PER_NAME_MAX);
    if found.is_empty() {
        return Err(io::Error::new(io::ErrorKind::NotFound, "the name has no address"));
    }
    Ok(found)
}

/// Where peers knock.
pub struct Door {
    listener: TcpListener,
    limiter: RefCell<HandshakeLimiter>,
    inside: Rc<Cell<usize>>,
}

/// A connection that may shake hands; it counts as under way until it is dropped.
pub struct Knock {
    /// The tuned connection.
    pub stream: TcpStream,
    /// Whence.
    pub from: SocketAddr,
    /// Keep it for as long as the handshake takes.
    pub place: Place,
}

/// One of the 64 places for handshakes under way.
pub struct Place(Rc<Cell<usize>>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

impl Door {
    /// Listens on `address`; `[::]:port` takes IPv4, too. Port 0 is any free one.
    pub async fn open(address: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let limiter = RefCell::new(HandshakeLimiter::new(Instant::now()));
        Ok(Self { listener, limiter, inside: Rc::default() })
    }

    /// Where it listens.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// The next connection that may shake hands. Those over a limit are closed without a word.
    pub async fn knock(&self) -> Knock {
        loop {
            let (stream, from) = match self.listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    // A connection that is gone already concerns nobody; without descriptors there is a wait.
                    if error.kind() != io::ErrorKind::ConnectionAborted {
                        log::warn!("no connection can be accepted: {error}");
                        Timer::after(ACCEPT_PAUSE).await;
                    }
                    continue;
                }
            };
            let is_allowed =
                self.inside.get() < KNOCKS_MAX && self.limiter.borrow_mut().allow(from.ip(), Instant::now());
            if is_allowed && tune(&stream).is_ok() {
                self.inside.set(self.inside.get() + 1);
                return Knock { stream, from, place: Place(Rc::clone(&self.inside)) };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Transport;
    use crate::wire::handshake::tests::Cell as TestCell;
    use crate::wire::handshake::{Established, Kind, initiate, respond};
    use smol::io::{AsyncReadExt, AsyncWriteExt};

    fn local() -> SocketAddr {
        "127.0.0.1:0".parse().unwrap()
    }

    async fn dial_cell(
        from: &TestCell,
        to: &TestCell,
        addresses: &[String],
    ) -> Result<SocketAddr, DialError> {
        let (card, approach) = (from.card(), to.known());
        let greet = |stream| initiate(stream, Transport::Tcp, &from.identity, &card, &approach);
        dial(addresses, greet).await.map(|(address, _)| address)
    }

    async fn answer(door: &Door, cell: &TestCell) -> Result<Established<TcpStream>, HandshakeError> {
        let knock = door.knock().await;
        respond(knock.stream, Transport::Tcp, cell).await
    }

    fn cells() -> (TestCell, TestCell) {
        let (ann, mut bob) = (TestCell::new(1), TestCell::new(2));
        bob.peers.push(ann.identity.id());
        (ann, bob)
    }

    #[test]
    fn first_address_where_the_cell_answers_wins() {
        smol::block_on(async {
            let (ann, bob) = cells();
            let door = Door::open(local()).await.unwrap();
            // One that is closed, one that never answers, one that resolves to nothing, and the right one.
            let closed = TcpListener::bind(local()).await.unwrap().local_addr().unwrap();
            let silent = TcpListener::bind(local()).await.unwrap();
            let right = door.address().unwrap();
            let addresses = [
                closed.to_string(),
                silent.local_addr().unwrap().to_string(),
                "nowhere.invalid:1".into(),
                format!("localhost:{}", right.port()),
            ];
            let start = Instant::now();
            let (dialled, answered) =
                smol::future::zip(dial_cell(&ann, &bob, &addresses), answer(&door, &bob)).await;
            assert_eq!(dialled.unwrap().port(), right.port());
            assert_eq!(answered.unwrap().kind, Kind::Known);
            assert!(start.elapsed() < Duration::from_secs(7));
        });
    }

    #[test]
    fn failure_says_what_is_wrong() {
        smol::block_on(async {
            let (ann, bob) = cells();
            let error = dial_cell(&ann, &bob, &[]).await.unwrap_err();
            assert_eq!(error.to_string(), "there is no address to try");
            let closed = TcpListener::bind(local()).await.unwrap().local_addr().unwrap().to_string();
            let error = dial_cell(&ann, &bob, std::slice::from_ref(&closed)).await.unwrap_err();
            assert!(error.to_string().contains("connection refused"), "{error}");
            // Another cell lives there.
            let door = Door::open(local()).await.unwrap();
            let other = TestCell::new(3);
            let addresses = [closed, door.address().unwrap().to_string()];
            let (dialled, answered) =
                smol::future::zip(dial_cell(&ann, &bob, &addresses), answer(&door, &other)).await;
            assert!(answered.is_err());
            let text = dialled.unwrap_err().to_string();
            assert!(text.contains("closed without a word") && text.contains("1 more failed"), "{text}");
        });
    }

    #[test]
    fn flood_from_one_address_is_shut_out_without_a_word() {
        smol::block_on(async {
            let door = Door::open(local()).await.unwrap();
            let address = door.address().unwrap();
            let mut streams = Vec::new();
            for _ in 0..40 {
                streams.push(TcpStream::connect(address).await.unwrap());
            }
            let mut knocks = Vec::new();
            while let Some(knock) = within(Duration::from_millis(100), door.knock()).await {
                knocks.push(knock);
            }
            assert!((20..25).contains(&knocks.len()), "{}", knocks.len());
            assert_eq!(door.inside.get(), knocks.len());
            let last = streams.last_mut().unwrap();
            let _ = last.write_all(b"hello").await;
            assert!(matches!(last.read(&mut [0; 9]).await, Ok(0) | Err(_)));
            drop(knocks);
            assert_eq!(door.inside.get(), 0);
        });
    }
}

//! The router of this network, asked for a port as long as the cell runs.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, ipproto, socket_with, sockopt};
use smol::channel::{self, Receiver, Sender};
use smol::{Async, LocalExecutor, Task, Timer};

use super::interfaces::Watch;
use super::is_global;
use super::portmap::{self, Change, DATAGRAM_BYTES_MAX, Effect, Mapper};
use crate::keys::random;
use crate::pool;
use crate::wire::within;

/// The deletion is said again after this, and then it is left to the mapping's end.
const RELEASE_PAUSE: Duration = Duration::from_millis(250);
/// After a datagram that is nothing: a router cannot keep the cell busy.
const NOISE_PAUSE: Duration = Duration::from_millis(20);
/// After a socket's error.
const ERROR_PAUSE: Duration = Duration::from_secs(60);

/// Keeps a port mapped. Dropping it leaves the mapping to its end, 20 minutes at most; `stop` deletes it.
pub struct PortMap {
    task: Task<()>,
    stopping: Sender<()>,
}

impl PortMap {
    /// Asks this network's router, and each one to come, for a mapping of the TCP `port`. `changes` should have room.
    pub fn start(executor: &LocalExecutor<'static>, port: u16, changes: Sender<Change>) -> Self {
        let (stopping, stopped) = channel::bounded(1);
        Self { task: pool::spawn(executor, keep_mapped(port, changes, stopped)), stopping }
    }

    /// Deletes the mapping, within half a second.
    pub async fn stop(self) {
        let _ = self.stopping.try_send(());
        self.task.await;
    }
}

/// A router and this machine's address towards it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Way {
    gateway: Ipv4Addr,
    client: Ipv4Addr,
}

/// `None` where no router stands between: no default route, or a public address of one's own.
fn find_way() -> Option<Way> {
    let gateway = portmap::default_gateway(&fs::read_to_string("/proc/thread-self/net/route").ok()?)?;
    let probe = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    probe.connect((gateway, portmap::PORT)).ok()?;
    match probe.local_addr().ok()? {
        SocketAddr::V4(own) if !is_global((*own.ip()).into()) => Some(Way { gateway, client: *own.ip() }),
        _ => None,
    }
}

async fn keep_mapped(port: u16, changes: Sender<Change>, stopped: Receiver<()>) {
    let watch = Watch::open();
    let ear = open_ear().ok();
    loop {
        let way = find_way();
        let moved = async {
            while find_way() == way {
                watch.changed().await;
            }
            false
        };
        let stop = async {
            let _ = stopped.recv().await;
            true
        };
        let is_over = match way {
            None => smol::future::or(stop, moved).await,
            Some(way) => {
                let end = smol::future::or(stop, moved);
                match with_router(way, port, &changes, ear.as_ref(), end).await {
                    Ok(is_over) => is_over,
                    Err(why) => {
                        log::debug!("router {}: {why}", way.gateway);
                        let pause = async {
                            Timer::after(ERROR_PAUSE).await;
                            false
                        };
                        smol::future::or(async { stopped.recv().await.is_ok() }, pause).await
                    }
                }
            }
        };
        if is_over {
            return;
        }
    }
}

/// Where routers that have started say so; other programs of this machine may listen there, too.
fn open_ear() -> io::Result<Async<UdpSocket>> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, flags, Some(ipproto::UDP))?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    bind(&socket, &SocketAddr::from((Ipv4Addr::UNSPECIFIED, portmap::ANNOUNCE_PORT)))?;
    Async::new(UdpSocket::from(socket))
}

enum Event {
    Due,
    Datagram(io::Result<usize>),
    Announcement(io::Result<(usize, SocketAddr)>),
    End(bool),
}

/// Keeps the port mapped by one router until `end`, whose answer it gives.
async fn with_router(
    way: Way,
    port: u16,
    changes: &Sender<Change>,
    ear: Option<&Async<UdpSocket>>,
    end: impl Future<Output = bool>,
) -> io::Result<bool> {
    let socket = Async::<UdpSocket>::bind((way.client, 0))?;
    // Only what the router sends from its port is heard, and a refusal by its machine comes as an error.
    socket.get_ref().connect((way.gateway, portmap::PORT))?;
    let mut mapper = Mapper::new(way.client, port, random(), Instant::now());
    let mut end = std::pin::pin!(end);
    let (mut buf, mut said) = ([0; DATAGRAM_BYTES_MAX], [0; DATAGRAM_BYTES_MAX]);
    let mut is_mapped = false;
    let is_over = loop {
        let due = async {
            Timer::at(mapper.due()).await;
            Event::Due
        };
        let datagram = async { Event::Datagram(socket.recv(&mut buf).await) };
        let announcement = async {
            match ear {
                Some(ear) => Event::Announcement(ear.recv_from(&mut said).await),
                None => std::future::pending().await,
            }
        };
        let ended = async { Event::End(end.as_mut().await) };
        use smol::future::or;
        let event = or(or(ended, due), or(datagram, announcement)).await;
        let (now, dice) = (Instant::now(), random::<1>()[0]);
        let mut effects = match event {
            Event::End(is_over) => break is_over,
            Event::Due => mapper.on_time(now, dice),
            Event::Datagram(Ok(len)) => mapper.on_datagram(&buf[..len], now, dice),
            Event::Datagram(Err(_)) => mapper.on_refused(now, dice),
            Event::Announcement(Ok((len, from))) if from.ip() == way.gateway => {
                mapper.on_announcement(&said[..len], now)
            }
            Event::Announcement(_) => Vec::new(),
        };
        if effects.is_empty() {
            Timer::after(NOISE_PAUSE).await;
        }
        for effect in effects.drain(..) {
            match effect {
                // A router that is gone does not answer, which is what counts.
                Effect::Send(bytes) => drop(socket.get_ref().send(&bytes)),
                Effect::Note(text) => log::info!("{text}"),
                Effect::Tell(change) => {
                    is_mapped = change != Change::Lost;
                    let _ = changes.try_send(change);
                }
            }
        }
    };
    if let Some(bytes) = mapper.release() {
        for _ in 0..2 {
            let _ = socket.get_ref().send(&bytes);
            if matches!(within(RELEASE_PAUSE, socket.recv(&mut buf)).await, Some(Ok(_))) {
                break;
            }
        }
    }
    if is_mapped {
        let _ = changes.try_send(Change::Lost);
    }
    Ok(is_over)
}

//! Beacons on the local network (UDP): sent on every interface that has neighbours, and heard.

use std::cell::RefCell;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket};
use std::rc::Rc;
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, ipproto, socket_with, sockopt};
use smol::channel::{self, Receiver, Sender};
use smol::{Async, LocalExecutor, Task, Timer};

use super::beacon::{self, DATAGRAM_BYTES, Numbers, Pair, Peers, Purpose, Said, Schedule};
use super::interfaces::{self, Interface, Watch};
use crate::id::CellId;
use crate::keys::{Identity, random};
use crate::pool;
use crate::wire::handshake::{HandshakeLimiter, Rate};

/// Who hears beacons, IPv4: administratively scoped, organization-local and below (RFC 2365), and of one hop.
const GROUP_V4: Ipv4Addr = Ipv4Addr::new(239, 71, 114, 118);
/// Who hears beacons, IPv6: link-local and transient (RFC 4291, 2.7).
const GROUP_V6: Ipv6Addr = Ipv6Addr::new(0xff12, 0, 0, 0, 0, 0, 0x4772, 0x6f76);
/// Addresses that beacons are sent from.
const VOICES_MAX: usize = 16;
/// Datagrams of one address that are looked at; several cells may live there.
const PER_IP: Rate = Rate { burst: 30.0, per_second: 5.0 };
/// Datagrams of all addresses that are looked at.
const OVERALL: Rate = Rate { burst: 100.0, per_second: 50.0 };
/// After a datagram over the limits there is a rest: what comes meanwhile is dropped by the kernel.
const FLOOD_PAUSE: Duration = Duration::from_millis(50);
/// After a socket's error.
const ERROR_PAUSE: Duration = Duration::from_secs(1);

/// What discovery tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A peer says that it listens here, now.
    Found { peer: CellId, address: SocketAddr },
    /// This machine has other addresses than before.
    AddressesChanged,
}

/// Discovery; dropping it ends it.
pub struct Lan {
    shared: Rc<Shared>,
    woken: Sender<()>,
    _tasks: Vec<Task<()>>,
}

struct Shared {
    executor: Rc<LocalExecutor<'static>>,
    identity: Identity,
    listen: SocketAddr,
    peers: RefCell<Peers>,
    numbers: RefCell<Numbers>,
    limiter: RefCell<HandshakeLimiter>,
    voices: RefCell<Vec<Rc<Voice>>>,
    ears: RefCell<Vec<Rc<Async<UdpSocket>>>>,
    events: Sender<Event>,
}

/// One address that beacons are sent from; answers come back to it.
struct Voice {
    interface: Interface,
    socket: Async<UdpSocket>,
}

impl Lan {
    /// Sends and hears beacons for a cell that listens for peers on `listen` (TCP, with its real port). `run` is higher
    /// than at any start before. What is found goes to `events`, and is dropped while that is full: it comes again.
    pub fn start(
        executor: &Rc<LocalExecutor<'static>>,
        identity: Identity,
        listen: SocketAddr,
        run: u32,
        events: Sender<Event>,
    ) -> Self {
        let shared = Rc::new(Shared {
            executor: Rc::clone(executor),
            identity,
            listen,
            peers: RefCell::default(),
            numbers: RefCell::new(Numbers::new(run)),
            limiter: RefCell::new(HandshakeLimiter::with_rates(PER_IP, OVERALL, Instant::now())),
            voices: RefCell::default(),
            ears: RefCell::default(),
            events,
        });
        let (woken, wake) = channel::bounded(1);
        let mut tasks = vec![pool::spawn(executor, Rc::clone(&shared).speak(wake))];
        let families = if listen.is_ipv4() { &[false][..] } else { &[false, true] };
        for is_ipv6 in families {
            match open_ear(*is_ipv6) {
                Ok(ear) => {
                    let ear = Rc::new(ear);
                    shared.ears.borrow_mut().push(Rc::clone(&ear));
                    tasks.push(pool::spawn(executor, Rc::clone(&shared).hear(ear)));
                }
                Err(why) => log::warn!("beacons of the local network cannot be heard: {why}"),
            }
        }
        Self { shared, woken, _tasks: tasks }
    }

    /// Speaks to these cells (id and X25519 key) and listens for them from now on.
    pub fn set_peers(&self, peers: &[(CellId, [u8; 32])]) {
        let keys = |id: &CellId, x25519: &[u8; 32]| self.shared.identity.beacon_keys(id, x25519);
        if self.shared.peers.borrow_mut().set(peers, keys) {
            self.announce();
        }
    }

    /// Sends beacons now: a session was lost, or somebody asks.
    pub fn announce(&self) {
        let _ = self.woken.try_send(());
    }
}

/// The socket that hears beacons; several cells of one machine may have one each.
fn open_ear(is_ipv6: bool) -> io::Result<Async<UdpSocket>> {
    let family = if is_ipv6 { AddressFamily::INET6 } else { AddressFamily::INET };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(family, SocketType::DGRAM, flags, Some(ipproto::UDP))?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    if is_ipv6 {
        sockopt::set_ipv6_v6only(&socket, true)?;
        bind(&socket, &SocketAddr::from((Ipv6Addr::UNSPECIFIED, beacon::PORT)))?;
    } else {
        bind(&socket, &SocketAddr::from((Ipv4Addr::UNSPECIFIED, beacon::PORT)))?;
    }
    Async::new(UdpSocket::from(socket))
}

impl Voice {
    fn open(interface: Interface) -> io::Result<Self> {
        let socket = UdpSocket::bind(interface.socket_address(0))?;
        match interface.ip {
            IpAddr::V4(ip) => {
                sockopt::set_socket_broadcast(&socket, true)?;
                sockopt::set_ip_multicast_if(&socket, &ip)?;
            }
            IpAddr::V6(_) => sockopt::set_ipv6_multicast_if(&socket, interface.index)?,
        }
        Ok(Self { interface, socket: Async::new(socket)? })
    }

    /// Everybody whom this address can speak to at once.
    fn everybody(&self) -> Vec<SocketAddr> {
        match self.interface.ip {
            IpAddr::V4(_) => {
                let all = [Some(GROUP_V4), self.interface.broadcast];
                all.into_iter().flatten().map(|ip| SocketAddr::from((ip, beacon::PORT))).collect()
            }
            IpAddr::V6(_) => vec![SocketAddrV6::new(GROUP_V6, beacon::PORT, 0, self.interface.index).into()],
        }
    }

    fn join(&self, ear: &Async<UdpSocket>) {
        let is_ipv6 = ear.get_ref().local_addr().is_ok_and(|address| address.is_ipv6());
        // A membership that is there already is an error of its own, and right.
        let _ = match self.interface.ip {
            IpAddr::V4(ip) if !is_ipv6 => ear.get_ref().join_multicast_v4(&GROUP_V4, &ip),
            IpAddr::V6(_) if is_ipv6 => ear.get_ref().join_multicast_v6(&GROUP_V6, self.interface.index),
            _ => Ok(()),
        };
    }
}

impl Shared {
    async fn speak(self: Rc<Self>, wake: Receiver<()>) {
        let watch = Watch::open();
        let mut schedule = Schedule::new(Instant::now());
        let mut known = Vec::new();
        let mut tasks = Vec::new();
        loop {
            let is_first = known.is_empty();
            let current = interfaces::list();
            if current != known {
                known = current;
                if !is_first {
                    log::debug!("this machine's addresses have changed");
                    schedule.restart(Instant::now());
                    let _ = self.events.try_send(Event::AddressesChanged);
                }
            }
            self.open_voices(&known, &mut tasks);
            if schedule.due() <= Instant::now() {
                self.announce().await;
                schedule.sent(Instant::now(), random::<1>()[0]);
            }
            let due = async {
                Timer::at(schedule.due()).await;
                false
            };
            let woken = async { wake.recv().await.is_ok() };
            let changed = async {
                watch.changed().await;
                false
            };
            if smol::future::or(smol::future::or(woken, due), changed).await {
                schedule.restart(Instant::now());
            }
        }
    }

    /// Speaks from these addresses from now on.
    fn open_voices(self: &Rc<Self>, all: &[Interface], tasks: &mut Vec<(Interface, Task<()>)>) {
        let mut wanted = interfaces::reachable_by_neighbours(all, self.listen.ip());
        wanted.truncate(VOICES_MAX);
        tasks.retain(|(interface, _)| wanted.contains(interface));
        self.voices.borrow_mut().retain(|voice| wanted.contains(&voice.interface));
        for interface in wanted {
            if tasks.iter().any(|(open, _)| *open == interface) {
                continue;
            }
            match Voice::open(interface.clone()) {
                Ok(voice) => {
                    let voice = Rc::new(voice);
                    self.voices.borrow_mut().push(Rc::clone(&voice));
                    tasks.push((interface, pool::spawn(&self.executor, Rc::clone(self).hear_answers(voice))));
                }
                // An IPv6 address that is still being tried cannot be bound; the kernel tells when it can.
                Err(why) => log::debug!("no beacons from {}: {why}", interface.ip),
            }
        }
        for ear in &*self.ears.borrow() {
            self.voices.borrow().iter().for_each(|voice| voice.join(ear));
        }
    }

    async fn announce(&self) {
        let voices = self.voices.borrow().clone();
        for voice in voices {
            let from = voice.interface.ip;
            let datagrams: Vec<_> = {
                let peers = self.peers.borrow();
                peers.by_datagram().map(|pairs| self.datagram(Purpose::Announce, from, pairs)).collect()
            };
            for datagram in datagrams {
                for to in voice.everybody() {
                    // Networks come and go: the next beacon is soon enough.
                    if let Err(why) = voice.socket.get_ref().send_to(&datagram, to) {
                        log::trace!("no beacon from {from} to {to}: {why}");
                    }
                }
            }
            // A flood of beacons would fill the socket: others have a turn between two addresses.
            smol::future::yield_now().await;
        }
    }

    fn datagram<'a>(
        &self,
        purpose: Purpose,
        from: IpAddr,
        pairs: impl IntoIterator<Item = &'a Pair>,
    ) -> [u8; DATAGRAM_BYTES] {
        let said = Said { port: self.listen.port(), number: self.numbers.borrow_mut().take() };
        beacon::write(purpose, from, said, pairs, &random())
    }

    async fn hear(self: Rc<Self>, ear: Rc<Async<UdpSocket>>) {
        self.hear_on(&ear).await;
    }

    async fn hear_answers(self: Rc<Self>, voice: Rc<Voice>) {
        self.hear_on(&voice.socket).await;
    }

    async fn hear_on(&self, socket: &Async<UdpSocket>) {
        // One byte more, so that what is longer is seen to be.
        let mut buf = [0; DATAGRAM_BYTES + 1];
        loop {
            let (len, from) = match socket.recv_from(&mut buf).await {
                Ok(received) => received,
                Err(why) => {
                    log::trace!("beacons: {why}");
                    Timer::after(ERROR_PAUSE).await;
                    continue;
                }
            };
            if !self.limiter.borrow_mut().allow(from.ip(), Instant::now()) {
                Timer::after(FLOOD_PAUSE).await;
                continue;
            }
            self.on_datagram(&buf[..len], from);
        }
    }

    fn on_datagram(&self, datagram: &[u8], from: SocketAddr) {
        let mut peers = self.peers.borrow_mut();
        let Some((found, answer_to)) = peers.hear(datagram, from.ip(), Instant::now()) else { return };
        let mut address = from;
        address.set_port(found.port);
        let _ = self.events.try_send(Event::Found { peer: found.peer, address });
        if let Some((pair, voice)) = answer_to.and_then(|pair| Some((pair, self.voice_towards(from)?))) {
            let datagram = self.datagram(Purpose::Answer, voice.interface.ip, [pair]);
            let _ = voice.socket.get_ref().send_to(&datagram, from);
        }
    }

    /// The voice of the address that the kernel would speak from.
    fn voice_towards(&self, to: SocketAddr) -> Option<Rc<Voice>> {
        let any: IpAddr =
            if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let probe = UdpSocket::bind((any, 0)).ok()?;
        probe.connect(to).ok()?;
        let own = probe.local_addr().ok()?.ip();
        self.voices.borrow().iter().find(|voice| voice.interface.ip == own).cloned()
    }
}

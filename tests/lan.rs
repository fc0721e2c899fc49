//! Beacons between network namespaces that this test makes.

mod netns;

use std::net::{SocketAddr, UdpSocket};
use std::rc::Rc;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use grove::id::CellId;
use grove::keys::{Identity, MasterKey};
use grove::routes::beacon::{DATAGRAM_BYTES, PORT};
use grove::routes::lan::{Event, Lan};
use netns::Net;
use smol::LocalExecutor;

/// One that was not heard, for whoever listens began late or lost it in a flood, is followed by others: 30 s later at most.
const DEADLINE: Duration = Duration::from_secs(120);

fn identity(seed: u8) -> Identity {
    MasterKey::from_bytes([seed; 32]).identity(0, 0)
}

/// Discovery of one cell, in a thread of its own inside a namespace.
struct Discovery {
    events: mpsc::Receiver<Event>,
    stop: smol::channel::Sender<()>,
    thread: Option<JoinHandle<()>>,
}

impl Discovery {
    fn start(net: &Net, ns: &str, seed: u8, port: u16, run: u32, peers: &[u8]) -> Self {
        let (events, heard) = mpsc::channel();
        let (stop, stopped) = smol::channel::bounded::<()>(1);
        let peers: Vec<(CellId, [u8; 32])> =
            peers.iter().map(|seed| (identity(*seed).id(), *identity(*seed).x_public())).collect();
        let thread = net.enter(ns, move || {
            let executor = Rc::new(LocalExecutor::new());
            let (found, finding) = smol::channel::bounded(64);
            smol::block_on(executor.run(async {
                let listen = SocketAddr::from(([0, 0, 0, 0, 0, 0, 0, 0], port));
                let lan = Lan::start(&executor, identity(seed), listen, run, found);
                lan.set_peers(&peers);
                let tell = async {
                    while let Ok(event) = finding.recv().await {
                        let _ = events.send(event);
                    }
                };
                smol::future::or(tell, async {
                    let _ = stopped.recv().await;
                })
                .await;
            }));
        });
        Self { events: heard, stop, thread: Some(thread) }
    }

    /// Waits for a beacon of this cell from this address.
    fn finds(&self, seed: u8, address: &str) {
        let wanted = Event::Found { peer: identity(seed).id(), address: address.parse().unwrap() };
        let end = Instant::now() + DEADLINE;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            match self.events.recv_timeout(left) {
                Ok(event) if event == wanted => return,
                Ok(Event::Found { address, .. }) => {
                    assert_ne!(address.ip().to_string(), "10.77.0.9", "Eve's")
                }
                Ok(Event::AddressesChanged) => {}
                Err(_) => panic!("{address} was not found within {DEADLINE:?}"),
            }
        }
    }
}

impl Drop for Discovery {
    fn drop(&mut self) {
        let _ = self.stop.try_send(());
        self.thread.take().unwrap().join().unwrap();
    }
}

/// A neighbour who hears all beacons of its network.
fn eavesdrop(net: &Net, ns: &str, count: usize) -> Vec<(Vec<u8>, SocketAddr)> {
    net.enter(ns, move || {
        let socket = UdpSocket::bind(("0.0.0.0", PORT)).unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        let mut heard = Vec::new();
        while heard.len() < count {
            let mut buf = [0; 2048];
            let (len, from) = socket.recv_from(&mut buf).expect("beacons are broadcast");
            heard.push((buf[..len].to_vec(), from));
        }
        heard
    })
    .join()
    .unwrap()
}

/// Three machines on one switch.
fn home(test: &str) -> Option<Net> {
    let net = Net::new(test, &["ann", "bob", "eve", "switch"])?;
    net.run("switch", "ip link add lan type bridge");
    net.run("switch", "ip link set lan up");
    for (name, ip) in [("ann", "10.77.0.1"), ("bob", "10.77.0.2"), ("eve", "10.77.0.9")] {
        net.join(name, "eth0", "switch", name);
        net.run("switch", &format!("ip link set {name} master lan up"));
        net.run(name, &format!("ip address add {ip}/24 broadcast 10.77.0.255 dev eth0"));
        net.run(name, "ip link set eth0 up");
    }
    Some(net)
}

#[test]
fn cells_find_each_other_and_follow_a_change_of_address_within_seconds() {
    let Some(net) = home("follow") else { return };
    let ann = Discovery::start(&net, "ann", 1, 5679, 1, &[2]);
    let bob = Discovery::start(&net, "bob", 2, 6000, 1, &[1]);
    ann.finds(2, "10.77.0.2:6000");
    bob.finds(1, "10.77.0.1:5679");
    // A new lease, as DHCP gives one.
    let began = Instant::now();
    net.run("bob", "ip address flush dev eth0 scope global");
    net.run("bob", "ip address add 10.77.0.77/24 broadcast 10.77.0.255 dev eth0");
    ann.finds(2, "10.77.0.77:6000");
    assert!(began.elapsed() < Duration::from_secs(60));
    // And the answer tells the one that moved.
    bob.finds(1, "10.77.0.1:5679");
}

#[test]
fn cells_find_each_other_by_ipv6_alone_and_on_one_machine() {
    let Some(net) = home("ipv6") else { return };
    for name in ["ann", "bob"] {
        net.run(name, "ip -4 address flush dev eth0");
    }
    net.run("ann", "ip address add fd77::1/64 dev eth0 nodad");
    net.run("bob", "ip address add fd77::2/64 dev eth0 nodad");
    let ann = Discovery::start(&net, "ann", 1, 5679, 1, &[2, 3]);
    let bob = Discovery::start(&net, "bob", 2, 5679, 1, &[1]);
    let second = Discovery::start(&net, "ann", 3, 5680, 1, &[1]);
    ann.finds(2, "[fd77::2]:5679");
    bob.finds(1, "[fd77::1]:5679");
    ann.finds(3, "[fd77::1]:5680");
    second.finds(1, "[fd77::1]:5679");
}

#[test]
fn stranger_learns_no_names_gets_no_answer_and_cannot_redirect() {
    let Some(net) = home("stranger") else { return };
    let ann = Discovery::start(&net, "ann", 1, 5679, 1, &[2]);
    let heard = eavesdrop(&net, "eve", 2);
    for (datagram, from) in &heard {
        assert_eq!((datagram.len(), from.ip().to_string().as_str()), (DATAGRAM_BYTES, "10.77.0.1"));
        for secret in
            [&identity(1).id().0, identity(1).x_public(), &identity(2).id().0, identity(2).x_public()]
        {
            assert!(!datagram.windows(8).any(|window| window == &secret[..8]));
        }
    }
    // Bob was not there to hear; Eve says Ann's words to him from her own address.
    let bob = Discovery::start(&net, "bob", 2, 5679, 1, &[1]);
    bob.finds(1, "10.77.0.1:5679");
    let replayed = heard[0].0.clone();
    let answers = net
        .enter("eve", move || {
            let socket = UdpSocket::bind(("10.77.0.9", 0)).unwrap();
            for _ in 0..5 {
                socket.send_to(&replayed, ("10.77.0.2", PORT)).unwrap();
            }
            socket.set_read_timeout(Some(Duration::from_millis(700))).unwrap();
            socket.recv_from(&mut [0; 2048]).is_ok()
        })
        .join()
        .unwrap();
    assert!(!answers);
    // Whatever Eve said came before what Ann says next.
    bob.finds(1, "10.77.0.1:5679");
    drop(ann);
}

#[test]
fn flood_of_datagrams_costs_little_and_ends_with_itself() {
    let Some(net) = home("flood") else { return };
    let ann = Discovery::start(&net, "ann", 1, 5679, 1, &[2]);
    net.enter("eve", || {
        let socket = UdpSocket::bind(("10.77.0.9", 0)).unwrap();
        let mut datagram = [7; DATAGRAM_BYTES];
        datagram[..6].copy_from_slice(b"GRVB\x01\x00");
        for _ in 0..200_000 {
            let _ = socket.send_to(&datagram, ("10.77.0.1", PORT));
        }
    })
    .join()
    .unwrap();
    let bob = Discovery::start(&net, "bob", 2, 5679, 1, &[1]);
    ann.finds(2, "10.77.0.2:5679");
    bob.finds(1, "10.77.0.1:5679");
}

//! Networks for tests: hosts in network namespaces, segments, an internet between them and homes behind NAT, made with
//! iproute2 and nftables and gone at the end. What a killed test left behind is removed by the next one.
//!
//! Nothing leaves these namespaces: they have no way out.

use std::cell::{Cell as Slot, RefCell};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::{Cell, is_ci, is_root, wait_for};

pub use super::wire::{Quality, Wire};

/// Where `ip netns` keeps its names.
const NAMES: &str = "/run/netns";
/// How all names of ours begin; the number of the process follows.
const PREFIX: &str = "gt";
/// Programs that every test here needs.
const TOOLS: &[&str] = &["ip", "nft", "ping"];
/// Where Debian keeps programs that `PATH` may lack.
const SBIN: &str = "/usr/sbin:/sbin";

/// Whether `PATH`, or the folders for root's programs, have it.
pub fn has_program(name: &str) -> bool {
    let path = std::env::var("PATH").unwrap_or_default();
    path.split(':').chain(SBIN.split(':')).any(|folder| Path::new(folder).join(name).is_file())
}

/// Says that a test does not run, past the capture of output, in the words that `scripts/test` counts.
pub fn skip(test: &str, why: &str) {
    let _ = writeln!(io::stderr(), "\nskipped: {test} ({why})");
}

fn say(mut command: Command) -> Result<String, String> {
    command.stdin(Stdio::null());
    let words: Vec<_> = std::iter::once(command.get_program()).chain(command.get_args()).collect();
    let words = words.join(OsStr::new(" ")).to_string_lossy().into_owned();
    let output = command.output().map_err(|why| format!("{words}: {why}"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().to_owned();
    if output.status.success() {
        return Ok(text(&output.stdout));
    }
    Err(format!("{words}: {}{}", text(&output.stdout), text(&output.stderr)))
}

fn program(name: &str) -> Command {
    let mut command = Command::new(name);
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{path}:{SBIN}")).env("LC_ALL", "C");
    command
}

/// Runs `ip` with these words, split at blanks.
fn ip(words: &str) -> Result<String, String> {
    let mut command = program("ip");
    command.args(words.split_whitespace());
    say(command)
}

/// All namespaces of one test.
pub struct Net {
    hosts: RefCell<Vec<Host>>,
    next: Slot<u32>,
}

/// One network namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    space: String,
}

impl Net {
    /// Nothing where this machine cannot make namespaces: the test is then skipped by its name. With `CI=true` it must.
    pub fn new(test: &str) -> Option<Self> {
        Self::with_tools(test, &[])
    }

    /// The same for a test that needs further programs.
    pub fn with_tools(test: &str, tools: &[&str]) -> Option<Self> {
        let why = match TOOLS.iter().chain(tools).find(|tool| !has_program(tool)) {
            Some(tool) => format!("it takes the program {tool}"),
            None if !is_root() => "it takes root".to_owned(),
            None => match prepare() {
                Ok(()) => return Some(Self { hosts: RefCell::default(), next: Slot::new(0) }),
                Err(why) => why,
            },
        };
        assert!(!is_ci(), "{test} must run where CI is set: {why}");
        skip(test, &why);
        None
    }

    /// A host with nothing but its loopback.
    pub fn host(&self, name: &str) -> Host {
        static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let count = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let space = format!("{PREFIX}{}-{count}-{name}", std::process::id());
        ip(&format!("netns add {space}")).unwrap();
        let host = Host { space };
        self.hosts.borrow_mut().push(host.clone());
        host.ip("link set lo up");
        host
    }

    /// A switch.
    pub fn segment(&self, name: &str) -> Segment {
        let switch = self.host(name);
        // No waiting for spanning trees, and no snooping, which would hold multicast back.
        switch.ip("link add br0 type bridge forward_delay 0 mcast_snooping 0");
        switch.ip("link set br0 up");
        Segment { switch, ports: RefCell::default() }
    }

    /// Routers between everybody with a public address; private ones are not carried.
    pub fn internet(&self) -> Internet {
        let router = self.host("internet");
        router.forwards();
        // Routers and cells rightly take addresses for documents (RFC 5737) as not public. So these look like any
        // public ones; nothing leaves the namespaces. Small networks, so that no two hosts are on one segment.
        router.nft(
            "table ip internet {
                chain carried {
                    type filter hook forward priority 0; policy accept;
                    ip daddr { 10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16 } drop
                    ip saddr { 10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16 } drop
                }
            }",
        );
        Internet { router, count: Slot::new(0) }
    }

    /// A router with a public address, and 192.168.1.0/24 behind it; each home has the same addresses, as in life.
    pub fn home(&self, internet: &Internet, name: &str) -> Home {
        self.home_by(internet, name, None)
    }

    /// The same, whose line to the internet is a wire that can be made worse.
    pub fn home_by(&self, internet: &Internet, name: &str, line: Option<Quality>) -> Home {
        let router = self.host(&format!("{name}-router"));
        router.forwards();
        let (public, line) = match line {
            None => (internet.attach(&router, "wan0"), None),
            Some(quality) => {
                let (public, wire) = internet.attach_by_wire(&router, "wan0", quality);
                (public, Some(wire))
            }
        };
        let lan = self.segment(&format!("{name}-lan"));
        lan.attach(&router, "lan0", "192.168.1.1/24");
        router.nft(
            "table ip home {
                chain changed {
                    type nat hook postrouting priority 100; policy accept;
                    oifname \"wan0\" masquerade
                }
                chain opened { type nat hook prerouting priority -100; policy accept; }
                chain carried {
                    type filter hook forward priority 0; policy drop;
                    iifname \"lan0\" accept
                    ct state established,related accept
                    ct status dnat accept
                }
                chain received {
                    type filter hook input priority 0; policy accept;
                    iifname \"wan0\" meta l4proto { tcp, udp } ct state new drop
                }
            }",
        );
        Home { router, lan, public, line, next: Slot::new(10) }
    }

    /// A number that no other call for this network gives.
    fn number(&self) -> u32 {
        self.next.replace(self.next.get() + 1)
    }

    /// Bytes per second of one TCP connection that carries `bytes`, or as far as it came in `time_max`.
    pub fn throughput(&self, from: &Host, to: &Host, at: Ipv4Addr, bytes: usize, time_max: Duration) -> u64 {
        let port = 7000 + (self.number() % 1000) as u16;
        let listener = to.inside(move || TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))).unwrap();
        let taking = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.set_read_timeout(Some(time_max)).unwrap();
            let (mut buffer, mut count, began) = (vec![0; 1 << 16], 0, Instant::now());
            while let (Ok(more @ 1..), true) = (stream.read(&mut buffer), began.elapsed() < time_max) {
                count += more;
            }
            (count as f64 / began.elapsed().as_secs_f64()) as u64
        });
        from.inside(move || {
            let address = SocketAddr::from((at, port));
            let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(10)).unwrap();
            let block = vec![7; 1 << 14];
            for _ in 0..bytes.div_ceil(block.len()) {
                if stream.write_all(&block).is_err() {
                    break;
                }
            }
        });
        taking.join().unwrap()
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for host in self.hosts.borrow().iter() {
            remove(&host.space);
        }
    }
}

/// Sees to it that namespaces can be made, and removes those of tests that are over.
fn prepare() -> Result<(), String> {
    static DONE: std::sync::OnceLock<Result<(), String>> = std::sync::OnceLock::new();
    DONE.get_or_init(|| {
        if !Path::new("/dev/net/tun").exists() {
            // Machines without udev have no device node.
            let _ = fs::create_dir_all("/dev/net");
            let mut command = program("mknod");
            command.args(["-m", "600", "/dev/net/tun", "c", "10", "200"]);
            say(command)?;
        }
        File::options()
            .read(true)
            .write(true)
            .open("/dev/net/tun")
            .map_err(|why| format!("/dev/net/tun: {why}"))?;
        for name in stale() {
            remove(&name);
        }
        let name = format!("{PREFIX}{}-try", std::process::id());
        ip(&format!("netns add {name}"))?;
        let tried = ip(&format!("-n {name} link add try0 type veth peer name try1"));
        remove(&name);
        tried.map(drop)
    })
    .clone()
}

/// Namespaces of test processes that are no more.
fn stale() -> Vec<String> {
    let names = fs::read_dir(NAMES).into_iter().flatten().flatten();
    let names = names.filter_map(|entry| entry.file_name().into_string().ok());
    let is_stale = |name: &String| {
        let pid = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
        pid.and_then(|pid| pid.parse::<u32>().ok())
            .is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists())
    };
    names.filter(is_stale).collect()
}

/// Removes a namespace and what still runs in it.
fn remove(space: &str) {
    for pid in ip(&format!("netns pids {space}")).unwrap_or_default().split_whitespace() {
        let pid = pid.parse().ok().filter(|pid| *pid != std::process::id() as i32);
        if let Some(pid) = pid.and_then(rustix::process::Pid::from_raw) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
    let _ = ip(&format!("netns del {space}"));
}

impl Host {
    /// `program` in this namespace; it dies with the thread that starts it.
    pub fn command(&self, words: impl AsRef<OsStr>) -> Command {
        let mut command = program("ip");
        command.args(["netns", "exec", &self.space]).arg(words);
        // SAFETY: between fork and exec only one system call is made.
        unsafe {
            command.pre_exec(|| {
                rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
                Ok(())
            });
        }
        command
    }

    /// Runs a program to its end, which must be a good one; gives what it printed.
    pub fn ok(&self, words: &[&str]) -> String {
        let mut command = self.command(words[0]);
        command.args(&words[1..]);
        say(command).unwrap_or_else(|why| panic!("{why}"))
    }

    /// Does something in a thread in this namespace: sockets opened there belong to it.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let space = File::open(Path::new(NAMES).join(&self.space)).expect("the namespace is there");
        std::thread::scope(|scope| {
            let inside = scope.spawn(move || {
                move_into_link_name_space(space.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
                work()
            });
            inside.join().unwrap_or_else(|why| std::panic::resume_unwind(why))
        })
    }

    /// `ip` in this namespace, with these words split at blanks.
    pub fn ip(&self, words: &str) -> String {
        ip(&format!("-n {} {words}", self.space)).unwrap_or_else(|why| panic!("{why}"))
    }

    /// Takes rules of nftables in.
    pub fn nft(&self, rules: &str) {
        let mut command = self.command("nft");
        command.args(["-f", "-"]).stdin(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(format!("{rules}\n").as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{rules}\n{}", String::from_utf8_lossy(&output.stderr));
    }

    fn forwards(&self) {
        self.inside(|| fs::write("/proc/sys/net/ipv4/ip_forward", "1")).unwrap();
    }

    /// Gives a device another address, as a new lease does, and keeps the route out through `gateway`.
    pub fn readdress(&self, device: &str, address: &str, gateway: Option<&str>) {
        self.ip(&format!("addr flush dev {device} scope global"));
        self.ip(&format!("addr add {address} dev {device}"));
        if let Some(gateway) = gateway {
            self.ip(&format!("route replace default via {gateway}"));
        }
    }

    /// The address of a device.
    pub fn address(&self, device: &str) -> Ipv4Addr {
        let text = self.ip(&format!("-4 -o addr show dev {device} scope global"));
        let address = text.split(" inet ").nth(1).and_then(|rest| rest.split('/').next());
        address.and_then(|address| address.parse().ok()).unwrap_or_else(|| panic!("no address: {text}"))
    }

    /// Echoes asked for 10 ms apart: how many came back, and their round trips on average.
    pub fn ping(&self, to: Ipv4Addr, count: u32) -> Ping {
        let mut command = self.command("ping");
        command.args(["-q", "-i", "0.01", "-W", "2", "-c", &count.to_string(), &to.to_string()]);
        // It ends with 1 where nothing came back.
        let output = command.output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let received = text.split(" packets transmitted, ").nth(1).and_then(|rest| rest.split(' ').next());
        let round_trip = text.split(" = ").nth(1).and_then(|rest| rest.split('/').nth(1));
        Ping {
            sent: count,
            received: received.and_then(|n| n.parse().ok()).unwrap_or_else(|| panic!("ping: {text}")),
            round_trip_ms: round_trip.and_then(|n| n.parse().ok()).unwrap_or(f64::INFINITY),
        }
    }

    /// Bytes that a device received and sent.
    pub fn traffic(&self, device: &str) -> (u64, u64) {
        let text = self.inside(|| fs::read_to_string("/proc/thread-self/net/dev")).unwrap();
        let line = text.lines().find_map(|line| line.trim().strip_prefix(&format!("{device}:")));
        let line = line.unwrap_or_else(|| panic!("no {device}: {text}"));
        let numbers: Vec<u64> = line.split_whitespace().map(|n| n.parse().unwrap()).collect();
        (numbers[0], numbers[8])
    }
}

/// What `Host::ping` saw.
#[derive(Debug, Clone, Copy)]
pub struct Ping {
    pub sent: u32,
    pub received: u32,
    /// Infinite if nothing came back.
    pub round_trip_ms: f64,
}

/// A switch, and what is plugged in.
pub struct Segment {
    switch: Host,
    /// The port of each (namespace, device).
    ports: RefCell<BTreeMap<(String, String), String>>,
}

impl Segment {
    fn port(&self, host: &Host, device: &str) -> String {
        let mut ports = self.ports.borrow_mut();
        let port = format!("p{}", ports.len());
        ports.insert((host.space.clone(), device.to_owned()), port.clone());
        port
    }

    fn plug_in(&self, port: &str, host: &Host, device: &str, address: &str) {
        self.switch.ip(&format!("link set {port} master br0 up"));
        host.ip(&format!("link set {device} up"));
        host.ip(&format!("addr add {address} dev {device}"));
    }

    /// Gives a host the device `device` in this segment with this address (`10.0.0.1/24`).
    pub fn attach(&self, host: &Host, device: &str, address: &str) {
        let port = self.port(host, device);
        let link = format!("link add {port} type veth peer name {device} netns {}", host.space);
        self.switch.ip(&link);
        self.plug_in(&port, host, device, address);
    }

    /// The same by a wire that can be made worse; its first end is the host's.
    pub fn attach_by_wire(&self, host: &Host, device: &str, address: &str, quality: Quality) -> Wire {
        let port = self.port(host, device);
        let wire = Wire::new((host, device), (&self.switch, &port), quality);
        self.plug_in(&port, host, device, address);
        wire
    }

    /// Takes a host off the switch, silently: its own device stays up.
    pub fn cut(&self, host: &Host, device: &str) {
        let port = self.ports.borrow()[&(host.space.clone(), device.to_owned())].clone();
        self.switch.ip(&format!("link set {port} nomaster"));
    }

    /// Plugs it in again.
    pub fn heal(&self, host: &Host, device: &str) {
        let port = self.ports.borrow()[&(host.space.clone(), device.to_owned())].clone();
        self.switch.ip(&format!("link set {port} master br0"));
    }
}

/// What lies between public addresses.
pub struct Internet {
    router: Host,
    count: Slot<u8>,
}

impl Internet {
    fn addresses(&self) -> (String, Ipv4Addr, Ipv4Addr) {
        let n = self.count.replace(self.count.get() + 1);
        assert!(n < 63, "too many hosts");
        let at = |last: u8| Ipv4Addr::new(50, 60, 70, 4 * n + last);
        (format!("n{n}"), at(1), at(2))
    }

    fn plug_in(&self, port: &str, host: &Host, device: &str, gateway: Ipv4Addr, address: Ipv4Addr) {
        self.router.ip(&format!("link set {port} up"));
        self.router.ip(&format!("addr add {gateway}/30 dev {port}"));
        host.ip(&format!("link set {device} up"));
        host.ip(&format!("addr add {address}/30 dev {device}"));
        host.ip(&format!("route add default via {gateway}"));
    }

    /// Gives a host a public address and the way to all others.
    pub fn attach(&self, host: &Host, device: &str) -> Ipv4Addr {
        let (port, gateway, address) = self.addresses();
        self.router.ip(&format!("link add {port} type veth peer name {device} netns {}", host.space));
        self.plug_in(&port, host, device, gateway, address);
        address
    }

    /// The same by a wire that can be made worse; its first end is the host's.
    pub fn attach_by_wire(&self, host: &Host, device: &str, quality: Quality) -> (Ipv4Addr, Wire) {
        let (port, gateway, address) = self.addresses();
        let wire = Wire::new((host, device), (&self.router, &port), quality);
        self.plug_in(&port, host, device, gateway, address);
        (address, wire)
    }

    /// Loses so many of a hundred packets that are carried to or from an address.
    pub fn lose(&self, address: Ipv4Addr, percent: u32) {
        self.rule(address, &format!("numgen random mod 100 < {percent} drop"));
    }

    /// Carries nothing to or from an address any more, and tells nobody.
    pub fn cut(&self, address: Ipv4Addr) {
        self.rule(address, "drop");
    }

    fn rule(&self, address: Ipv4Addr, what: &str) {
        self.router.nft(&format!(
            "insert rule ip internet carried ip saddr {address} {what}
             insert rule ip internet carried ip daddr {address} {what}"
        ));
    }

    /// Takes back all cuts and losses.
    pub fn heal(&self) {
        self.router.nft(
            "flush chain ip internet carried
             add rule ip internet carried ip daddr { 10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16 } drop
             add rule ip internet carried ip saddr { 10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16 } drop",
        );
    }
}

/// A router that hides 192.168.1.0/24 behind one public address, and lets in what was asked for from inside only.
pub struct Home {
    pub router: Host,
    pub lan: Segment,
    pub public: Ipv4Addr,
    pub line: Option<Wire>,
    next: Slot<u8>,
}

impl Home {
    /// A host behind the router: 192.168.1.10, .11 and so on.
    pub fn host(&self, net: &Net, name: &str) -> (Host, Ipv4Addr) {
        let host = net.host(name);
        let address = Ipv4Addr::new(192, 168, 1, self.next.replace(self.next.get() + 1));
        self.lan.attach(&host, "eth0", &format!("{address}/24"));
        host.ip("route add default via 192.168.1.1");
        (host, address)
    }

    /// Opens a port of the router to a port of a host behind it.
    pub fn open(&self, port: u16, to: Ipv4Addr, to_port: u16) {
        self.router.nft(&format!(
            "insert rule ip home opened iifname \"wan0\" tcp dport {port} dnat to {to}:{to_port}"
        ));
    }

    /// Closes all of them to new connections.
    pub fn close(&self) {
        self.router.nft("flush chain ip home opened");
    }

    /// Carries nothing to or from this port of hosts behind it any more, and tells nobody.
    pub fn block(&self, to_port: u16) {
        self.router.nft(&format!(
            "insert rule ip home carried tcp dport {to_port} drop
             insert rule ip home carried tcp sport {to_port} drop"
        ));
    }
}

/// A program that runs beside the cells until this is dropped, and what it printed.
pub struct Beside {
    child: Child,
    log: std::path::PathBuf,
}

impl Beside {
    pub fn start(host: &Host, words: &[&str], log: &Path) -> Self {
        let file = File::options().create(true).append(true).open(log).unwrap();
        let mut command = host.command(words[0]);
        command.args(&words[1..]).stdin(Stdio::null()).env("HOME", log.parent().unwrap());
        command.stdout(file.try_clone().unwrap()).stderr(file);
        Self { child: command.spawn().unwrap(), log: log.to_owned() }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Waits until it has printed this.
    pub fn says(&mut self, what: &str) {
        wait_for(what, || {
            let ended = self.child.try_wait().unwrap();
            assert!(ended.is_none(), "it ended: {}", self.log());
            self.log().contains(what).then_some(())
        });
    }

    /// Waits until something takes connections on this port of its host.
    pub fn answers(&mut self, host: &Host, port: u16) {
        wait_for("the program listens", || {
            let ended = self.child.try_wait().unwrap();
            assert!(ended.is_none(), "it ended: {}", self.log());
            host.inside(move || TcpStream::connect((Ipv4Addr::LOCALHOST, port))).ok()
        });
    }

    /// `kill -9`, and waits for the end.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A cell on a host, made but not yet started.
pub fn cell_on(host: &Host, folder: &Path, name: &str, settings: &[(&str, &str)]) -> Cell {
    let mut cell = Cell::at(folder, name);
    cell.host = Some(host.clone());
    cell.peer_port = 5679;
    cell.init(name, settings);
    cell
}

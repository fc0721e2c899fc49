//! Port mapping with a real router: Debian's miniupnpd between network namespaces that this test makes.

mod netns;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use grove::routes::gateway::PortMap;
use grove::routes::portmap::Change;
use netns::{Net, Running, skip};
use smol::LocalExecutor;

const DEADLINE: Duration = Duration::from_secs(60);

/// A home behind a router, and the internet.
struct Home {
    net: Net,
    config: PathBuf,
}

impl Drop for Home {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.config);
    }
}

impl Home {
    /// The router's outer address is `outer`.
    fn new(test: &str, outer: &str) -> Option<Self> {
        for tool in ["miniupnpd", "nft"] {
            if !["/usr/sbin", "/sbin", "/usr/bin"].iter().any(|dir| PathBuf::from(dir).join(tool).exists()) {
                skip(test, &format!("{tool} is not installed (Debian: miniupnpd-nftables, nftables)"));
                return None;
            }
        }
        let net = Net::new(test, &["cell", "router", "net"])?;
        net.join("cell", "eth0", "router", "lan");
        net.join("net", "eth0", "router", "wan");
        for (name, line) in [
            ("cell", "ip address add 192.168.7.2/24 dev eth0 && ip link set eth0 up"),
            ("router", "ip address add 192.168.7.1/24 dev lan && ip link set lan up"),
            ("router", &format!("ip address add {outer}/24 dev wan && ip link set wan up")),
            ("router", "echo 1 > /proc/sys/net/ipv4/ip_forward"),
            ("net", "ip address add 9.9.9.9/24 dev eth0 && ip link set eth0 up"),
            ("cell", "ip route add default via 192.168.7.1"),
        ] {
            net.run(name, line);
        }
        let config = std::env::temp_dir().join(format!("grove-{}-{test}.conf", std::process::id()));
        let lines = [
            "ext_ifname=wan",
            "listening_ip=lan",
            "enable_natpmp=yes",
            "enable_upnp=no",
            "http_port=0",
            "secure_mode=yes",
            "uuid=e215a1ee-4b1f-4893-a04f-357fdc9197b5",
            "allow 1024-65535 192.168.7.0/24 1024-65535",
        ];
        std::fs::write(&config, lines.join("\n") + "\n").unwrap();
        let home = Self { net, config };
        home.load_rules();
        Some(home)
    }

    /// The tables that miniupnpd fills; what was mapped before is gone.
    fn load_rules(&self) {
        self.net.run(
            "router",
            "nft -f - <<'END'
flush ruleset
table inet filter {
    chain forward {
        type filter hook forward priority 0; policy drop;
        iifname lan accept
        ct state established,related accept
        jump miniupnpd
    }
    chain miniupnpd { }
    chain prerouting { type nat hook prerouting priority -100; policy accept; jump prerouting_miniupnpd; }
    chain prerouting_miniupnpd { }
    chain postrouting {
        type nat hook postrouting priority 100; policy accept;
        jump postrouting_miniupnpd
        oifname wan masquerade
    }
    chain postrouting_miniupnpd { }
}
END",
        );
    }

    fn start_router(&self) -> Running {
        let pid = self.config.with_extension("pid");
        let args = ["-d", "-f", self.config.to_str().unwrap(), "-P", pid.to_str().unwrap()];
        let router = self.net.start("router", "miniupnpd", &args);
        let began = Instant::now();
        while !self.net.succeeds("router", "ss -Hlun sport = :5351 | grep -q .") {
            assert!(began.elapsed() < DEADLINE, "miniupnpd does not listen");
            thread::sleep(Duration::from_millis(50));
        }
        router
    }

    /// Whether somebody on the internet reaches the cell at this address.
    fn is_reached(&self, external: SocketAddr) -> bool {
        // It listens before the first knock, and until the last.
        let listening = self.net.enter("cell", || TcpListener::bind(("192.168.7.2", 5679)).unwrap());
        let listener = listening.join().unwrap();
        listener.set_nonblocking(true).unwrap();
        let client = self.net.enter("net", move || {
            for _ in 0..10 {
                if let Ok(mut stream) = TcpStream::connect_timeout(&external, Duration::from_millis(200)) {
                    let mut said = [0; 4];
                    stream.set_read_timeout(Some(DEADLINE)).unwrap();
                    return stream.read_exact(&mut said).is_ok() && &said == b"cell";
                }
                thread::sleep(Duration::from_millis(20));
            }
            false
        });
        while !client.is_finished() {
            if let Ok((mut stream, _)) = listener.accept() {
                let _ = stream.write_all(b"cell");
            }
            thread::sleep(Duration::from_millis(5));
        }
        client.join().unwrap()
    }
}

/// Keeps a port mapped in a thread of the cell's namespace.
struct Mapping {
    changes: mpsc::Receiver<Change>,
    stop: smol::channel::Sender<()>,
    thread: Option<JoinHandle<()>>,
}

impl Mapping {
    fn start(home: &Home) -> Self {
        let (tell, changes) = mpsc::channel();
        let (stop, stopped) = smol::channel::bounded::<()>(1);
        let thread = home.net.enter("cell", move || {
            let executor = LocalExecutor::new();
            smol::block_on(executor.run(async {
                let (changed, changing) = smol::channel::bounded(16);
                let map = PortMap::start(&executor, 5679, changed);
                let told = async {
                    while let Ok(change) = changing.recv().await {
                        let _ = tell.send(change);
                    }
                };
                smol::future::or(told, async {
                    let _ = stopped.recv().await;
                })
                .await;
                map.stop().await;
                while let Ok(change) = changing.try_recv() {
                    let _ = tell.send(change);
                }
            }));
        });
        Self { changes, stop, thread: Some(thread) }
    }

    fn next(&self) -> Change {
        self.changes.recv_timeout(DEADLINE).expect("the mapping changes")
    }

    fn mapped(&self) -> SocketAddr {
        match self.next() {
            Change::Mapped { external } => external,
            Change::Lost => panic!("lost"),
        }
    }

    fn stop(mut self) -> Vec<Change> {
        let _ = self.stop.try_send(());
        self.thread.take().unwrap().join().unwrap();
        self.changes.try_iter().collect()
    }
}

fn external(port: u16) -> SocketAddr {
    SocketAddr::from(([9, 9, 9, 1], port))
}

#[test]
fn port_is_mapped_by_pcp_anew_after_a_restart_and_deleted_at_the_end() {
    let Some(home) = Home::new("pcp", "9.9.9.1") else { return };
    let mut router = home.start_router();
    assert!(!home.is_reached(external(5679)), "the router lets nobody in by itself");
    let mapping = Mapping::start(&home);
    assert_eq!(mapping.mapped(), external(5679));
    let mapped_at = Instant::now();
    assert!(home.is_reached(external(5679)));
    // The router forgets everything; what it says when it starts brings the mapping back, which is no news.
    router.kill();
    home.load_rules();
    assert!(!home.is_reached(external(5679)));
    // Its clock, which begins anew, tells that; two seconds of difference are nothing yet (RFC 6887, 8.5).
    thread::sleep(Duration::from_secs(6).saturating_sub(mapped_at.elapsed()));
    let _router = home.start_router();
    let began = Instant::now();
    while !home.is_reached(external(5679)) {
        assert!(began.elapsed() < DEADLINE, "the mapping does not come back");
    }
    assert_eq!(mapping.stop(), [Change::Lost]);
    assert!(!home.is_reached(external(5679)), "deleted");
}

#[test]
fn port_is_mapped_by_natpmp_where_pcp_is_not_answered() {
    let Some(home) = Home::new("natpmp", "9.9.9.1") else { return };
    home.net.run(
        "router",
        "nft 'add chain inet filter input { type filter hook input priority 0; }' && \
         nft 'add rule inet filter input udp dport 5351 @th,64,8 2 counter drop'",
    );
    let _router = home.start_router();
    let mapping = Mapping::start(&home);
    assert_eq!(mapping.mapped(), external(5679));
    assert!(home.is_reached(external(5679)));
    let rules = home.net.run("router", "nft list chain inet filter input");
    assert!(!String::from_utf8_lossy(&rules.stdout).contains("packets 0"), "PCP was asked and dropped");
    assert_eq!(mapping.stop(), [Change::Lost]);
    assert!(!home.is_reached(external(5679)), "deleted");
}

#[test]
fn router_without_a_public_address_maps_nothing_and_the_next_one_is_asked_at_once() {
    let Some(home) = Home::new("double", "100.64.3.3") else { return };
    let mut router = home.start_router();
    home.net.run("router", "nft 'add chain inet filter asked { type filter hook input priority 0; }'");
    home.net.run("router", "nft 'add rule inet filter asked udp dport 5351 counter'");
    let mapping = Mapping::start(&home);
    // It says that it cannot help.
    let began = Instant::now();
    while !home.net.succeeds("router", "nft list chain inet filter asked | grep -q 'packets [1-9]'") {
        assert!(began.elapsed() < DEADLINE, "the router is not asked");
        thread::sleep(Duration::from_millis(50));
    }
    // The cell moves to a network whose router has a public address: another router, and a new address here. It has none
    // meanwhile, so that it asks the new router by the new one only.
    home.net.run("cell", "ip address del 192.168.7.2/24 dev eth0");
    router.kill();
    home.net.run("router", "ip address del 100.64.3.3/24 dev wan && ip address add 9.9.9.1/24 dev wan");
    let _router = home.start_router();
    home.net.run("cell", "ip address add 192.168.7.3/24 dev eth0 && ip route add default via 192.168.7.1");
    assert_eq!(mapping.mapped(), external(5679), "and nothing before");
    assert_eq!(mapping.stop(), [Change::Lost]);
}

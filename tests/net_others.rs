//! Programs of others that cells meet: a Yggdrasil network, and a router that maps ports.

mod common;

use std::fs;
use std::net::Ipv4Addr;
use std::process::Command;

use common::fleet::*;
use common::net::*;
use common::*;
use miniserde::json::{self, Value};

/// Starts Debian's Yggdrasil on a host; gives it and its address.
fn yggdrasil(host: &Host, temp: &TempDir, name: &str, listen: &str, peer: &str) -> (Beside, String) {
    let said = Command::new("/usr/sbin/yggdrasil").args(["-genconf", "-json"]).output().unwrap();
    let mut config = object(&String::from_utf8(said.stdout).unwrap());
    let list = |text: &str| if text.is_empty() { "[]".into() } else { format!("[\"{text}\"]") };
    for (key, value) in [
        ("Listen", list(listen)),
        ("Peers", list(peer)),
        ("MulticastInterfaces", list("")),
        ("AdminListen", "\"none\"".into()),
        ("IfName", "\"ygg0\"".into()),
    ] {
        let value: Value = json::from_str(&value).unwrap();
        config.insert(key.to_owned(), value);
    }
    let path = temp.path().join(format!("{name}.json"));
    fs::write(&path, json::to_string(&config)).unwrap();
    let words = ["/usr/sbin/yggdrasil", "-useconffile", path.to_str().unwrap()];
    let mut program = Beside::start(host, &words, &temp.path().join(format!("{name}.ygg.log")));
    program.says("Your IPv6 address is ");
    let log = program.log();
    let address = log.split("Your IPv6 address is ").nth(1).unwrap().lines().next().unwrap().to_owned();
    (program, address)
}

#[test]
fn yggdrasil_is_classed_and_chosen_by_measurement() {
    let test = "yggdrasil_is_classed_and_chosen_by_measurement";
    let Some(net) = Net::with_tools(test, &["yggdrasil"]) else { return };
    let temp = TempDir::new("net-ygg");
    let mut chance = Chance::seeded("yggdrasil");
    let (direct, below) = (net.segment("direct"), net.segment("below"));
    let (host_a, host_b) = (net.host("a"), net.host("b"));
    let direct_wire = direct.attach_by_wire(&host_a, "direct0", "10.1.0.1/24", Quality::default());
    direct.attach(&host_b, "direct0", "10.1.0.2/24");
    // What Yggdrasil runs over; cells themselves are not let through there.
    let below_wire = below.attach_by_wire(&host_a, "below0", "10.9.0.1/24", Quality::default());
    below.attach(&host_b, "below0", "10.9.0.2/24");
    for host in [&host_a, &host_b] {
        host.nft(
            "table inet below { chain in {
                type filter hook input priority 0; policy accept;
                iifname \"below0\" tcp dport 5679 drop
                iifname \"below0\" tcp sport 5679 drop
            }
            }",
        );
    }
    let (_ygg_a, at_a) = yggdrasil(&host_a, &temp, "a", "tcp://10.9.0.1:9001", "");
    let (_ygg_b, at_b) = yggdrasil(&host_b, &temp, "b", "", "tcp://10.9.0.1:9001");
    eprintln!("Yggdrasil at {at_a} and {at_b}");
    wait_for("Yggdrasil carries", || {
        let mut ping = host_b.command("ping");
        ping.args(["-c", "1", "-W", "1", &at_a]).output().unwrap().status.success().then_some(())
    });

    // Both families: `0.0.0.0` would leave IPv6 out.
    let settings = [("peer.listen", "\"::\"")];
    let mut a = cell_on(&host_a, temp.path(), "a", &settings);
    let mut b = cell_on(&host_b, temp.path(), "b", &settings);
    a.run();
    b.run();
    a.invite(&b);
    wait_online(&[&a, &b]);

    let poor = Quality::line(4, 60);
    direct_wire.set(poor);
    let far = host_a.ping([10, 1, 0, 2].into(), 10);
    assert!((60.0..120.0).contains(&far.round_trip_ms), "{far:?}");
    let is_ygg = |route: &Route| route.kind == "yggdrasil";
    let is_direct = |route: &Route| route.kind == "lan";
    wait_for("both ways are known", || {
        let known = bench(&b);
        (known.iter().any(is_ygg) && known.iter().any(is_direct)).then_some(())
    });
    let (route, _) = wait_route(&b, "Yggdrasil is quicker", DEADLINE, is_ygg);
    assert!(route.address.starts_with(&format!("[{at_a}]:")), "{route:?}");
    // Where the machine is so busy that the other way seems quicker for a while, it is tried again.
    let mut files = 0;
    let mut by_ygg = |chance: &mut Chance| {
        let before = host_a.traffic("ygg0").0;
        plant(&b.home, &format!("large {files}"), &chance.bytes(4_000_000));
        files += 1;
        copied(&b, files);
        host_a.traffic("ygg0").0 - before
    };
    wait_for("a file goes by Yggdrasil", || {
        wait_route(&b, "Yggdrasil is quicker", DEADLINE, is_ygg);
        (by_ygg(&mut chance) > 4_000_000).then_some(())
    });

    direct_wire.set(Quality::default());
    below_wire.set(poor);
    let near = host_a.ping([10, 1, 0, 2].into(), 10);
    assert!(near.round_trip_ms < 30.0, "{near:?}");
    bench(&b);
    wait_for("a file goes by the direct way", || {
        wait_route(&b, "the direct way is quicker", DEADLINE, is_direct);
        (by_ygg(&mut chance) < 2_000_000).then_some(())
    });
    a.verify_deep();
}

/// Debian's miniupnpd on a router: NAT-PMP and PCP for the hosts behind it.
fn miniupnpd(home: &Home, temp: &TempDir) -> Beside {
    home.router.nft(
        "table inet upnp {
            chain forward { type filter hook forward priority 0; policy accept; jump miniupnpd; }
            chain miniupnpd { }
            chain prerouting { type nat hook prerouting priority -100; policy accept; jump prerouting_miniupnpd; }
            chain postrouting { type nat hook postrouting priority 100; policy accept; jump postrouting_miniupnpd; }
            chain prerouting_miniupnpd { }
            chain postrouting_miniupnpd { }
        }",
    );
    let path = temp.path().join("miniupnpd.conf");
    let config = "ext_ifname=wan0\nlistening_ip=lan0\nenable_natpmp=yes\nenable_upnp=no\nipv6_disable=yes\n\
                  upnp_table_name=upnp\nupnp_nat_table_name=upnp\nsecure_mode=yes\n\
                  allow 1024-65535 192.168.1.0/24 1024-65535\ndeny 0-65535 0.0.0.0/0 0-65535\n";
    fs::write(&path, format!("{config}lease_file={}\n", temp.path().join("leases").display())).unwrap();
    let pid = temp.path().join("miniupnpd.pid");
    let words = ["/usr/sbin/miniupnpd", "-d", "-f", path.to_str().unwrap(), "-P", pid.to_str().unwrap()];
    let mut program = Beside::start(&home.router, &words, &temp.path().join("miniupnpd.log"));
    program.says("Listening for NAT-PMP/PCP traffic");
    program
}

#[test]
fn router_that_maps_ports_lets_peers_in() {
    let Some(net) = Net::with_tools("router_that_maps_ports_lets_peers_in", &["miniupnpd"]) else { return };
    let temp = TempDir::new("net-mapping");
    let mut chance = Chance::seeded("mapping");
    let internet = net.internet();
    let home = net.home(&internet, "home");
    let router = miniupnpd(&home, &temp);
    let (inside, at_a) = home.host(&net, "a");
    let outside = net.host("b");
    let at_b = internet.attach(&outside, "eth0");
    let mut a = cell_on(&inside, temp.path(), "a", &[]);
    let mut b = cell_on(&outside, temp.path(), "b", &[]);
    a.run();
    b.run();
    let rules = || home.router.ok(&["nft", "list", "chain", "inet", "upnp", "prerouting_miniupnpd"]);
    wait_for("the router maps a port", || rules().contains(&format!("dnat ip to {at_a}:5679")).then_some(()));
    let rule = rules();
    let mapped = rule.split("th dport ").nth(1).or_else(|| rule.split("tcp dport ").nth(1)).expect("a port");
    let mapped: u16 = mapped.split_whitespace().next().unwrap().parse().unwrap();
    let address = format!("{}:{mapped}", home.public);
    wait_for("the cell names the address", || {
        json_text(&a.get("/routes")).contains(&format!("\"{address}\"")).then_some(())
    });
    // B comes in from outside: A cannot even be told to dial it.
    internet_blocks(&inside, at_b);
    a.invite(&b);
    wait_online(&[&a, &b]);
    assert_eq!(text(&peer_of(&b), "address"), address, "{}", router.log());
    plant_small(&b.home, &mut chance);
    copied(&b, 30);
    a.verify_deep();
    // Who leaves in order takes the mapping back.
    a.stop();
    wait_for("the port is closed again", || (!rules().contains("dnat")).then_some(()));
}

/// New connections of this host to an address are not let out.
fn internet_blocks(host: &Host, to: Ipv4Addr) {
    host.nft(&format!(
        "table ip blocked {{ chain out {{
            type filter hook output priority 0; policy accept;
            ip daddr {to} tcp flags & (syn | ack) == syn drop
        }}
        }}"
    ));
}

//! Cells in networks of their own: behind NAT, and the harness itself, whose every impairment is measured.

mod common;

use std::net::Ipv4Addr;
use std::time::Duration;

use common::fleet::*;
use common::net::*;
use common::*;

/// Wires delay, lose, slow and cut; homes let out and do not let in.
#[test]
fn networks_do_what_they_are_told() {
    let Some(net) = Net::new("networks_do_what_they_are_told") else { return };
    let segment = net.segment("lan");
    let (a, b) = (net.host("a"), net.host("b"));
    let wire = segment.attach_by_wire(&a, "eth0", "10.1.0.1/24", Quality::default());
    segment.attach(&b, "eth0", "10.1.0.2/24");
    let (at_a, at_b) = (Ipv4Addr::new(10, 1, 0, 1), Ipv4Addr::new(10, 1, 0, 2));

    let plain = a.ping(at_b, 20);
    assert!(plain.received == 20 && plain.round_trip_ms < 50.0, "{plain:?}");
    wire.set(Quality::line(2, 300));
    let far = a.ping(at_b, 20);
    assert!(far.received == 20 && (300.0..400.0).contains(&far.round_trip_ms), "{far:?}");
    let speed = net.throughput(&a, &b, at_b, 1 << 19, Duration::from_secs(6));
    assert!((100_000..=250_000).contains(&speed), "{speed} bytes/s of 250,000");
    let speed = net.throughput(&b, &a, at_a, 1 << 19, Duration::from_secs(6));
    assert!((100_000..=250_000).contains(&speed), "{speed} bytes/s of 250,000");
    wire.set(Quality::lossy(20));
    let lossy = a.ping(at_b, 150);
    // Each of two directions loses a fifth: 64 % come back.
    assert!((72..122).contains(&lossy.received), "{lossy:?}");
    wire.set(Quality::cut());
    assert_eq!(a.ping(at_b, 3).received, 0);
    wire.set(Quality::default());
    assert_eq!(a.ping(at_b, 5).received, 5);
    segment.cut(&b, "eth0");
    assert_eq!(a.ping(at_b, 3).received, 0);
    segment.heal(&b, "eth0");
    assert_eq!(a.ping(at_b, 5).received, 5);

    let internet = net.internet();
    let (left, right) = (net.home(&internet, "left"), net.home(&internet, "right"));
    let (c, at_c) = left.host(&net, "c");
    let (d, at_d) = right.host(&net, "d");
    assert_eq!(at_c, at_d, "homes look alike");
    assert_eq!(c.ping(right.public, 1).received, 1, "a router answers");
    let knock = |from: &Host, to: Ipv4Addr| {
        from.inside(move || {
            std::net::TcpStream::connect_timeout(&(to, 99).into(), Duration::from_millis(1000)).is_ok()
        })
    };
    let door = d.inside(|| std::net::TcpListener::bind("0.0.0.0:98")).unwrap();
    assert!(!knock(&c, right.public), "nothing is let in");
    right.open(99, at_d, 98);
    assert!(knock(&c, right.public), "an open port lets in");
    right.close();
    assert!(!knock(&c, right.public), "and not when it is closed again");
    drop(door);
    internet.lose(left.public, 20);
    let lossy = c.ping(right.public, 150);
    assert!((72..122).contains(&lossy.received), "{lossy:?}");
    internet.heal();
    internet.cut(right.public);
    assert_eq!(c.ping(right.public, 3).received, 0);
    internet.heal();
    assert_eq!(c.ping(right.public, 3).received, 3);
}

/// A cell behind NAT joins one with a public address; then each gives the other what it should hold, over the one
/// connection that the hidden one dialled.
#[test]
fn hidden_cell_joins_a_public_one_and_both_push() {
    let Some(net) = Net::new("hidden_cell_joins_a_public_one_and_both_push") else { return };
    let temp = TempDir::new("net-basic");
    let internet = net.internet();
    let home = net.home(&internet, "home");
    let (inside, _) = home.host(&net, "a");
    let outside = net.host("b");
    let public = internet.attach(&outside, "eth0");
    let mut chance = Chance::seeded("hidden_cell");
    let mut a = cell_on(&inside, temp.path(), "a", &[]);
    let mut b = cell_on(&outside, temp.path(), "b", &[]);
    a.run();
    b.run();
    b.invite(&a);
    plant_small(&a.home, &mut chance);
    plant(&a.home, "large", &chance.bytes(9_000_000));
    copied(&a, 31);
    let peers = a.get("/peers");
    assert!(json_text(&peers).contains(&format!("\"address\":\"{public}:5679\"")), "{}", json_text(&peers));

    // B cannot dial A: what it pushes goes over A's connection.
    let (before, _) = inside.traffic("eth0");
    plant_small(&b.home, &mut chance);
    plant(&b.home, "large", &chance.bytes(9_000_000));
    copied(&b, 31);
    let (after, _) = inside.traffic("eth0");
    assert!(after - before > 9_000_000, "{} bytes came in", after - before);
    for cell in [&a, &b] {
        cell.verify_deep();
    }
}

//! Several ways between two cells: the dead one is left, the better one taken, and a new address found.

mod common;

use std::time::{Duration, Instant};

use common::fleet::*;
use common::net::*;
use common::*;

/// How long a cell may go on with a dead route. 3 s by design, and some for a busy machine.
const FAILOVER_MAX: Duration = Duration::from_secs(6);

#[test]
fn dead_route_is_left_within_seconds_and_taken_again_when_it_is_back() {
    let Some(net) = Net::new("dead_route_is_left_within_seconds_and_taken_again_when_it_is_back") else {
        return;
    };
    let temp = TempDir::new("net-failover");
    let mut chance = Chance::seeded("failover");
    let (fast, slow) = (net.segment("fast"), net.segment("slow"));
    let (host_a, host_b) = (net.host("a"), net.host("b"));
    fast.attach(&host_a, "fast0", "10.1.0.1/24");
    let slow_wire = slow.attach_by_wire(&host_a, "slow0", "10.2.0.1/24", Quality::default());
    fast.attach(&host_b, "fast0", "10.1.0.2/24");
    slow.attach(&host_b, "slow0", "10.2.0.2/24");
    slow_wire.set(Quality::line(80, 20));
    let speed = net.throughput(&host_a, &host_b, [10, 2, 0, 2].into(), 4 << 20, Duration::from_secs(4));
    assert!((1_000_000..11_000_000).contains(&speed), "{speed}");
    let mut a = cell_on(&host_a, temp.path(), "a", &[]);
    let mut b = cell_on(&host_b, temp.path(), "b", &[]);
    a.run();
    b.run();
    b.invite(&a);
    wait_online(&[&a, &b]);
    let remote = Remote::plant(&a, 120, &mut chance);
    let other = Remote::plant(&b, 250, &mut chance);
    let is_fast = |route: &Route| route.address.starts_with("10.1.0.");
    let is_slow = |route: &Route| route.address.starts_with("10.2.0.");
    wait_for("both ways are known", || {
        let known = bench(&a);
        (known.iter().any(is_fast) && known.iter().any(is_slow)).then_some(())
    });
    wait_route(&a, "the better way", DEADLINE, is_fast);

    // In the middle of a transfer.
    let before = host_b.traffic("fast0").0;
    plant(&a.home, "large", &chance.bytes(96 << 20));
    wait_for("a transfer runs", || (host_b.traffic("fast0").0 - before > 10 << 20).then_some(()));
    let asker = Asker::start(&a, remote, Duration::from_millis(100));
    fast.cut(&host_b, "fast0");
    let cut_at = Instant::now();
    let moved = host_b.traffic("slow0").0;
    wait_route(&a, "the other way", DEADLINE, is_slow);
    let told = cut_at.elapsed();
    wait_for("the transfer goes on", || (host_b.traffic("slow0").0 - moved > 1 << 20).then_some(()));
    let went_on = cut_at.elapsed();
    eprintln!("the other way is in use after {told:?}, and carries a MiB after {went_on:?}");
    assert!(told < FAILOVER_MAX, "{told:?}");
    assert!(went_on < FAILOVER_MAX + Duration::from_secs(2), "{went_on:?}");
    let longest = asker.finish();
    assert!(longest < FAILOVER_MAX + Duration::from_secs(3), "{longest:?}");
    kept(&a, 121);
    copied_within(&a, DEADLINE);

    let asker = Asker::start(&b, other, Duration::from_millis(150));
    fast.heal(&host_b, "fast0");
    let healed_at = Instant::now();
    bench(&a);
    wait_route(&a, "the better way again", DEADLINE, is_fast);
    eprintln!("the better way is taken again after {:?}", healed_at.elapsed());
    let longest = asker.finish();
    assert!(longest < Duration::from_secs(3), "{longest:?}");
    for cell in [&a, &b] {
        sound_after_repair(cell);
    }
}

/// Two cells in a segment of their own, which know each other.
fn neighbours(net: &Net, temp: &TempDir, name: &str, discovery: &str) -> [Cell; 2] {
    let segment = net.segment(name);
    let cells = ["a", "b"].map(|which| {
        let host = net.host(&format!("{name}-{which}"));
        let number = if which == "a" { 1 } else { 2 };
        segment.attach(&host, "eth0", &format!("192.168.7.{number}/24"));
        // Multicast needs a way out.
        host.ip("route add default dev eth0");
        let settings = [("lan.discovery", discovery)];
        let mut cell = cell_on(&host, temp.path(), &format!("{name}-{which}"), &settings);
        cell.run();
        cell
    });
    cells[0].invite(&cells[1]);
    wait_online(&[&cells[0], &cells[1]]);
    cells
}

/// Gives both a new address, so that neither knows where the other is.
fn readdress(cells: &[Cell; 2]) {
    for (number, cell) in cells.iter().enumerate() {
        cell.host.as_ref().unwrap().readdress("eth0", &format!("192.168.7.{}/24", 101 + number), None);
        cell.host.as_ref().unwrap().ip("route add default dev eth0");
    }
}

fn is_found(cells: &[Cell; 2]) -> bool {
    cells.iter().all(|cell| online(cell) && text(&peer_of(cell), "address").starts_with("192.168.7.10"))
}

#[test]
fn neighbours_with_new_addresses_find_each_other_by_beacons_only() {
    let Some(net) = Net::new("neighbours_with_new_addresses_find_each_other_by_beacons_only") else { return };
    let temp = TempDir::new("net-lan");
    let on = neighbours(&net, &temp, "on", "true");
    let off = neighbours(&net, &temp, "off", "false");
    for cells in [&on, &off] {
        assert_eq!(text(&peer_of(&cells[1]), "address"), "192.168.7.1:5679");
        readdress(cells);
    }
    let began = Instant::now();
    while !is_found(&on) {
        let why = || on.iter().map(Cell::log_text).collect::<Vec<_>>().join("\n");
        assert!(began.elapsed() < Duration::from_secs(60), "not found again\n{}", why());
        std::thread::sleep(Duration::from_millis(50));
    }
    eprintln!("found again after {:?}", began.elapsed());
    // A beacon comes every 30 s: without the switch they would have met by now.
    while began.elapsed() < Duration::from_secs(40) {
        assert!(!is_found(&off), "found without discovery after {:?}", began.elapsed());
        std::thread::sleep(Duration::from_millis(200));
    }
}

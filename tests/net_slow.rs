//! Poor lines: one that loses a fifth of all packets each way, and a slow one with a long way round.

mod common;

use std::time::Duration;

use common::fleet::*;
use common::net::*;
use common::*;

/// A cell at the end of `line`, and one with a public address, which are peers.
fn pair(net: &Net, temp: &TempDir, line: Option<Quality>) -> (Home, Cell, Cell, Internet) {
    let internet = net.internet();
    let home = net.home_by(&internet, "home", line);
    let (inside, _) = home.host(net, "a");
    let outside = net.host("b");
    internet.attach(&outside, "eth0");
    let mut a = cell_on(&inside, temp.path(), "a", &[]);
    let mut b = cell_on(&outside, temp.path(), "b", &[]);
    a.run();
    b.run();
    b.invite(&a);
    wait_online(&[&a, &b]);
    (home, a, b, internet)
}

#[test]
fn small_tree_passes_where_a_fifth_is_lost() {
    let Some(net) = Net::new("small_tree_passes_where_a_fifth_is_lost") else { return };
    let temp = TempDir::new("net-lossy");
    let mut chance = Chance::seeded("lossy");
    let (home, a, b, internet) = pair(&net, &temp, None);
    let remote = Remote::plant(&a, 200, &mut chance);
    internet.lose(home.public, 20);
    let lossy = home.router.ping(b_address(&b), 150);
    assert!((72..122).contains(&lossy.received), "{lossy:?}");

    let asker = Asker::start(&a, remote, Duration::from_millis(200));
    plant_small(&a.home, &mut chance);
    kept(&a, 230);
    copied_within(&a, DEADLINE);
    let longest = asker.finish();
    assert!(longest < Duration::from_secs(20), "{longest:?}");
    b.verify_deep();
}

/// Its public address.
fn b_address(b: &Cell) -> std::net::Ipv4Addr {
    b.host.as_ref().unwrap().address("eth0")
}

#[test]
fn small_requests_are_answered_while_a_slow_line_is_full() {
    let Some(net) = Net::new("small_requests_are_answered_while_a_slow_line_is_full") else { return };
    let temp = TempDir::new("net-slow");
    let mut chance = Chance::seeded("slow");
    let (home, a, b, _internet) = pair(&net, &temp, Some(Quality::default()));
    let remote = Remote::plant(&a, 100, &mut chance);
    home.line.as_ref().unwrap().set(Quality::line(2, 300));
    let far = home.router.ping(b_address(&b), 20);
    assert!(far.received == 20 && (300.0..400.0).contains(&far.round_trip_ms), "{far:?}");

    // A file that takes 24 s at least, in the middle of which small requests are made.
    let large = chance.bytes(6_000_000);
    let (_, before) = a.host.as_ref().unwrap().traffic("eth0");
    plant(&a.home, "large", &large);
    wait_for("the line is in use", || {
        let (_, sent) = a.host.as_ref().unwrap().traffic("eth0");
        (sent - before > 500_000).then_some(())
    });
    let asker = Asker::start(&a, remote, Duration::from_millis(300));
    std::thread::sleep(Duration::from_secs(6));
    let longest = asker.finish();
    let (_, sent) = a.host.as_ref().unwrap().traffic("eth0");
    assert!(
        sent - before < 6_000_000,
        "the line was not full all the time: {} bytes were sent",
        sent - before
    );
    assert!(
        sent - before > 1_000_000,
        "the transfer stood still meanwhile: {} bytes were sent",
        sent - before
    );
    // 0.3 s for the round trip, 0.2 s in the modem's buffer, and what the kernel had taken before.
    assert!(longest < Duration::from_secs(4), "{longest:?}");

    plant_small(&a.home, &mut chance);
    kept(&a, 131);
    copied_within(&a, DEADLINE);
    b.verify_deep();
}

//! Sharing between cells that nobody can dial: ann, a holder of hers and a friend, each behind a NAT of their own and at
//! relays only.

mod common;

use std::fs;
use std::time::{Duration, Instant};

use common::feed::*;
use common::fleet::*;
use common::net::*;
use common::relayed::*;
use common::*;
use miniserde::json::{Object, Value};

const FILES: usize = 1000;
/// Of them so many are fetched one by one.
const FETCHED: usize = 25;

/// Waits until a peer is, or is not, connected.
fn is_connected(cell: &Cell, peer: &str, wanted: bool) {
    wait_for(&format!("{peer} is connected: {wanted}"), || {
        let peers = objects(items(&cell.get("/peers"), "peers"));
        let is_so = |known: &Object| matches!(known.get("online"), Some(Value::Bool(on)) if *on == wanted);
        peers.iter().any(|known| text(known, "name") == peer && is_so(known)).then_some(())
    });
}

/// Every connection of a cell to another goes through a relay.
fn by_relay_only(cell: &Cell) {
    for peer in objects(items(&cell.get("/routes"), "peers")) {
        for route in objects(items(&peer, "routes")) {
            let is_in_use = matches!(route.get("in_use"), Some(Value::Bool(true)));
            assert!(!is_in_use || text(&route, "kind") == "relay", "{}", json_text(&route));
        }
    }
}

#[test]
fn what_is_shared_goes_through_relays_until_it_is_taken_back() {
    let test = "what_is_shared_goes_through_relays_until_it_is_taken_back";
    let Some(net) = Net::new(test) else { return };
    let temp = TempDir::new("net-sharing");
    let mut chance = Chance::seeded("net-sharing");
    let internet = net.internet();
    // The friend waits at another relay than the two.
    let fleets = Relay::start(&net, &internet, &temp, RELAY_PORT, None);
    let friends = Relay::named(&net, &internet, &temp, "friends", RELAY_PORT);
    let homes = ["ann", "bob", "cid"].map(|name| net.home(&internet, &format!("at-{name}")));
    let started = |home: &Home, name: &str, relay: &Relay| {
        let (host, _) = home.host(&net, name);
        let relays = relay.setting();
        let mut cell = cell_on(&host, temp.path(), name, &[("relay.urls", &relays), ("sync.every_s", "2")]);
        cell.run();
        cell
    };
    let mut ann = started(&homes[0], "ann", &fleets);
    let bob = started(&homes[1], "bob", &fleets);
    let mut cid = started(&homes[2], "cid", &friends);
    for cell in [&ann, &bob, &cid] {
        wait_for("the cell is at its relay", || {
            json_text(&cell.get("/routes")).contains("\"connected\":true").then_some(())
        });
    }
    ann.invite(&bob);
    let token = ann.cli(["invite", "--friend"]).ok().out.trim().to_owned();
    cid.cli(["join", &token]).ok();
    ann.cli(["peer", "favorite", "bob"]).ok();
    is_connected(&ann, "bob", true);
    is_connected(&ann, "cid", true);

    let big = chance.bytes(big_bytes());
    plant(&ann.home, "big.bin", &big);
    let small: Vec<Vec<u8>> = (0..FILES).map(|_| chance.bytes(2000)).collect();
    for (n, bytes) in small.iter().enumerate() {
        plant(&ann.home, &format!("notes/part {}/f{n}", n % 3), bytes);
    }
    let began = Instant::now();
    kept(&ann, FILES as u64 + 1);
    copied_within(&ann, Duration::from_secs(300));
    println!("all is copied through a relay after {} ms", began.elapsed().as_millis());
    let began = Instant::now();
    ann.cli(["share", "big.bin", "cid"]).ok();
    ann.cli(["share", "notes", "cid"]).ok();
    wait_count("all is in the Feed", FILES as u64 + 1, || feed(&cid).len() as u64);
    println!("{} files are in the Feed after {} ms", FILES + 1, began.elapsed().as_millis());
    let about_big = appears(&cid, "big.bin", |entry| number(entry, "holders") >= 1);
    appears(&cid, &format!("f{}", FILES - 1), |entry| number(entry, "holders") >= 1);
    by_relay_only(&ann);
    by_relay_only(&cid);

    // The sharer is off: all comes from the holder, who is no peer of the friend's.
    ann.stop();
    is_connected(&cid, "ann", false);
    let to = temp.path().join("fetched");
    let began = Instant::now();
    let said = fetch(&cid, &about_big, &to).ok();
    println!("{} MiB came from a holder within {} ms", big.len() >> 20, began.elapsed().as_millis());
    assert!(fs::read(&to).unwrap() == big, "byte for byte: {said:?}");
    let entries = feed(&cid);
    let began = Instant::now();
    for n in (0..FILES).step_by(FILES / FETCHED) {
        let entry = entries.iter().find(|entry| text(entry, "name") == format!("f{n}")).unwrap();
        let to = temp.path().join(format!("f{n}"));
        let said = fetch(&cid, entry, &to);
        assert!(said.status.success(), "{n}: {said:?} {}\n{}", json_text(entry), cid.log_text());
        assert_eq!(fs::read(&to).unwrap(), small[n]);
    }
    println!("{FETCHED} small files came one by one within {} ms", began.elapsed().as_millis());

    // A later version arrives, and is had from the holder too.
    ann.run();
    is_connected(&cid, "ann", true);
    plant(&ann.home, "notes/part 0/f0", b"a later version");
    appears(&cid, "f0", |entry| number(entry, "version") >= 2);
    copied_within(&ann, DEADLINE);
    let later = appears(&cid, "f0", |entry| number(entry, "version") >= 2 && number(entry, "holders") >= 1);
    ann.stop();
    is_connected(&cid, "ann", false);
    let to = temp.path().join("later");
    fetch(&cid, &later, &to).ok();
    assert_eq!(fs::read(&to).unwrap(), b"a later version");

    // Taken back while the friend is off: the holder, who was connected since, refuses; later the sharer does, too.
    cid.stop();
    ann.run();
    is_connected(&ann, "bob", true);
    let said = ann.cli(["unshare", "big.bin", "cid"]).ok().out;
    assert!(said.contains("no longer shared with cid: 1 file"), "{said}");
    ann.cli(["sync", "--wait"]).ok();
    ann.stop();
    cid.run();
    let to = temp.path().join("too late");
    let said = fetch(&cid, &about_big, &to);
    assert!(!said.status.success() && said.err.contains("taken back"), "{said:?}\n{}", bob.log_text());
    let entry = feed(&cid).into_iter().find(|entry| text(entry, "name") == "f7").unwrap();
    fetch(&cid, &entry, &temp.path().join("f7 again")).ok();
    ann.run();
    wait_for("it is no more in the Feed", || {
        (!feed(&cid).iter().any(|entry| text(entry, "name") == "big.bin")).then_some(())
    });
    let said = fetch(&cid, &about_big, &to);
    assert!(!said.status.success() && !to.exists(), "{said:?}");
    by_relay_only(&cid);
}

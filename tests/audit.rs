//! Two cells as processes: what one holds for the other is damaged on its disk, found by proofs, and mended; and the same
//! on the owner's own disk.

mod common;

use std::fs;
use std::path::Path;

use common::fleet::{copied, plant, wait_online};
use common::{Cell, Chance, TempDir, items, loose_chunks, number, text, wait_for};
use miniserde::json::Value;

/// Changes one byte in the middle.
fn flip(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(path, bytes).unwrap();
}

fn truncate(path: &Path) {
    let bytes = fs::read(path).unwrap();
    fs::write(path, &bytes[..bytes.len() - 1]).unwrap();
}

#[test]
fn what_a_peer_has_lost_is_found_by_proofs_told_and_mended_on_both_sides() {
    let temp = TempDir::new("audit");
    let mut chance = Chance::seeded("audit");
    let settings = [("sync.every_s", "3600")];
    let (mut ann, mut bob) = (Cell::at(temp.path(), "ann"), Cell::at(temp.path(), "bob"));
    for (cell, name) in [(&mut ann, "ann"), (&mut bob, "bob")] {
        cell.init(name, &settings);
        cell.run();
    }
    for n in 0..12 {
        plant(&ann.home, &format!("file {n}"), &chance.bytes(300_000));
    }
    ann.invite(&bob);
    wait_online(&[&ann, &bob]);
    copied(&ann, 12);

    let told = ann.cli(["verify", "--peers"]).ok().out;
    assert!(told.contains("bob: has proven ") && !told.contains("missing"), "{told}");
    let proofs = ann.get("/peers/proofs");
    assert!(common::json_text(&proofs).contains(r#""suspended":false"#), "{proofs:?}");

    // Bob's disk fails in three ways.
    let chunks = loose_chunks(&bob);
    assert!(chunks.len() >= 12, "{chunks:?}");
    flip(&chunks[0]);
    flip(&chunks[4]);
    truncate(&chunks[7]);
    fs::remove_file(&chunks[9]).unwrap();
    let said = ann.cli(["verify", "--peers"]);
    assert!(!said.status.success() && said.out.contains("4 damaged there"), "{} {}", said.out, said.err);
    assert!(bob.alert("damaged-held").is_some() && ann.alert("peer-lost").is_some());
    ann.cli(["sync", "--wait"]).ok();
    let told = ann.cli(["verify", "--peers"]).ok().out;
    assert!(told.contains("has proven "), "{told}");
    bob.verify_deep();

    // And Ann's own: what an audit reads here is found too, and comes back from Bob by itself.
    let own = loose_chunks(&ann);
    flip(&own[3]);
    truncate(&own[5]);
    let _ = ann.cli(["verify", "--peers"]);
    wait_for("damaged chunks are healed", || ann.alert("healed").filter(|text| text.starts_with("2 chunks")));
    assert!(ann.alert("damaged").is_none());
    ann.verify_deep();
    let job = ann.job_done("/verify", r#"{"peers":true}"#);
    let Some(Value::Object(peer)) = items(&job, "result.peers").first() else { panic!("{job:?}") };
    assert_eq!((text(peer, "name").as_str(), number(peer, "damaged")), ("bob", 0));
    assert!(number(peer, "proven") >= 12);
    ann.stop();
    bob.stop();
}

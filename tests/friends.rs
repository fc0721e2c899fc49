//! Two cells become friends, and part again: by the built program, over restarts.

mod common;

use common::fleet::{peer_of, wait_offline, wait_online};
use common::{Cell, TempDir, text, wait_for};

fn friendship(cell: &Cell) -> String {
    text(&peer_of(cell), "friendship")
}

/// Waits for how two cells stand.
fn stand(a: &Cell, b: &Cell, wanted: (&str, &str)) {
    wait_for(&format!("they stand as {wanted:?}"), || {
        ((friendship(a).as_str(), friendship(b).as_str()) == wanted).then_some(())
    });
}

fn started(folder: &TempDir, name: &str) -> Cell {
    let mut cell = Cell::at(folder.path(), name);
    cell.init(name, &[]);
    cell.run();
    cell
}

#[test]
fn two_cells_become_friends_and_part_over_restarts() {
    let folder = TempDir::new("friends");
    let (mut ann, mut bob) = (started(&folder, "ann"), started(&folder, "bob"));
    ann.invite(&bob);
    wait_online(&[&ann, &bob]);
    stand(&ann, &bob, ("none", "none"));

    // Asked for while the other is off: it arrives when that one is back.
    bob.stop();
    wait_offline(&ann);
    let said = ann.cli(["peer", "friend", "bob"]).ok().out;
    assert_eq!(said, "bob is asked for friendship; it hears of it when it is next connected.\n");
    ann.stop();
    ann.run();
    bob.run();
    stand(&ann, &bob, ("asked", "wanted"));
    wait_for("the request is told", || bob.alert("friend-request").filter(|told| told.contains("ann")));
    assert!(bob.cli(["peers"]).ok().out.contains("ann wants to be a friend"));
    assert!(bob.cli(["status"]).ok().out.contains("ann wants to be a friend"));

    // By the id in the path, as a page would.
    let id = text(&peer_of(&bob), "id");
    wait_online(&[&ann, &bob]);
    let answer = bob.post(&format!("/peers/{id}/friend"), "{}");
    assert_eq!(text(&answer, "friendship"), "friends");
    stand(&ann, &bob, ("friends", "friends"));
    assert_eq!(bob.alert("friend-request"), None);
    assert!(ann.cli(["peers"]).ok().out.contains("friend"));

    // A kill loses nothing of it.
    ann.kill();
    ann.run();
    bob.stop();
    bob.run();
    stand(&ann, &bob, ("friends", "friends"));
    wait_online(&[&ann, &bob]);

    ann.cli(["peer", "name", "bob", "robert"]).ok();
    assert_eq!(text(&peer_of(&ann), "name"), "robert");
    assert_eq!(text(&peer_of(&ann), "own_name"), "bob");
    ann.cli(["peer", "unfriend", "robert"]).ok();
    stand(&ann, &bob, ("none", "none"));
    assert_eq!(text(&peer_of(&bob), "role"), "peer");
}

#[test]
fn an_invite_for_a_friend_makes_friends_at_once() {
    let folder = TempDir::new("friends");
    let (ann, bob) = (started(&folder, "ann"), started(&folder, "bob"));
    let token = ann.cli(["invite", "--friend"]).ok().out.trim().to_owned();
    bob.cli(["join", &token]).ok();
    stand(&ann, &bob, ("friends", "friends"));
    assert!(ann.alert("friend-request").is_none() && bob.alert("friend-request").is_none());
    assert!(!bob.cli(["peer", "friend", "nobody"]).status.success());
}

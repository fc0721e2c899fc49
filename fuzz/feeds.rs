//! Bytes from strangers, fed to every reader of bytes that strangers send: none panics, and where a format says what it
//! reads in one way only, what was read writes back the same bytes. `tests/strangers.rs` feeds some in `make test`, and
//! `cargo fuzz` as many as one likes (see `fuzz/Cargo.toml`).

use std::net::{IpAddr, Ipv4Addr};

use grove::ai::friend::Beat;
use grove::ai::json;
use grove::bounty::{Counts, Statement};
use grove::card::{Card, Invite};
use grove::catalog::{CatalogError, Head, read_segment};
use grove::chat;
use grove::codec::{Reader, Writer};
use grove::config::Config;
use grove::dashboard::api::read_target;
use grove::friendship::Friendship;
use grove::grant::{GrantMade, GrantReceived, Revocations, ShareMade, Ticket};
use grove::keys::{BeaconKeys, MasterKey, Secret};
use grove::manifest::{Check, Manifest, Parsed, read_list, write_list};
use grove::recovery_card;
use grove::relay::frame::{Decoder, Event, From as Sender};
use grove::routes::beacon;
use grove::wire::message::{Reply, Request};

/// One reader: whether it took the bytes.
pub type Feed = fn(&[u8]) -> bool;

/// Every reader by name.
pub const FEEDS: &[(&str, Feed)] = &[
    ("request", |bytes| same(bytes, Request::from_bytes(bytes).ok().map(|request| request.to_bytes()))),
    ("reply", |bytes| same(bytes, Reply::from_bytes(bytes).ok().map(|reply| reply.to_bytes()))),
    ("card", |bytes| same(bytes, Card::from_bytes(bytes).ok().map(|card| card.to_bytes()))),
    ("ticket", |bytes| same(bytes, Ticket::from_bytes(bytes).ok().map(|ticket| ticket.as_bytes().to_vec()))),
    ("revocations", |bytes| {
        same(bytes, Revocations::from_bytes(bytes).ok().map(|list| list.as_bytes().to_vec()))
    }),
    ("grant made", |bytes| same(bytes, GrantMade::from_bytes(bytes).ok().map(|grant| grant.to_bytes()))),
    ("grant received", |bytes| {
        same(bytes, GrantReceived::from_bytes(bytes).ok().map(|grant| grant.to_bytes()))
    }),
    ("share", |bytes| same(bytes, ShareMade::from_bytes(&[4; 17], bytes).ok().map(|share| share.to_bytes()))),
    ("statement", |bytes| {
        same(bytes, Statement::from_bytes(bytes).ok().map(|statement| statement.to_bytes()))
    }),
    ("counts", |bytes| same(bytes, Counts::from_bytes(bytes).ok().map(|counts| counts.to_bytes()))),
    ("manifest", |bytes| {
        Manifest::open(bytes, &master(), Check::Signature).is_ok() | Parsed::read(bytes).is_ok()
    }),
    ("list", list),
    ("head", |bytes| Head::open(bytes).is_ok()),
    ("segment", |bytes| read_segment(bytes, |_, _, _| -> Result<(), CatalogError> { Ok(()) }).is_ok()),
    ("messages", |bytes| same(bytes, chat::read_batch(0, bytes).ok().map(|batch| chat::batch_bytes(&batch)))),
    ("friendship", friendship),
    ("receipts", receipts),
    ("beat", |bytes| Beat::from_bytes(bytes).is_ok()),
    ("beacon", beacon_of),
    ("frames towards a relay", |bytes| frames(bytes, Sender::Client)),
    ("frames from a relay", |bytes| frames(bytes, Sender::Server)),
    ("invite", |bytes| in_text(bytes, |text| text.parse::<Invite>().is_ok())),
    ("target", |bytes| in_text(bytes, |text| read_target(text).is_ok())),
    ("JSON", |bytes| in_text(bytes, |text| json::read(text).is_ok())),
    ("settings", |bytes| in_text(bytes, |text| Config::parse(text).is_ok())),
    ("recovery card", |bytes| in_text(bytes, |text| !recovery_card::read(text).0.is_empty())),
];

fn same(read: &[u8], written: Option<Vec<u8>>) -> bool {
    let Some(written) = written else { return false };
    assert_eq!(read, written, "what was read is written otherwise");
    true
}

fn in_text(bytes: &[u8], feed: impl Fn(&str) -> bool) -> bool {
    std::str::from_utf8(bytes).is_ok_and(feed)
}

/// The key of the test vectors.
pub fn master() -> MasterKey {
    MasterKey::from_bytes(std::array::from_fn(|i| i as u8))
}

fn list(bytes: &[u8]) -> bool {
    let Ok(entries) = read_list(bytes) else { return false };
    // Padding is zeros, and not written by who writes the list.
    let written = write_list(&entries);
    assert!(bytes.starts_with(&written) && bytes[written.len()..].iter().all(|byte| *byte == 0));
    true
}

fn friendship(bytes: &[u8]) -> bool {
    let mut from = Reader::new(bytes);
    let Ok(told) = Friendship::read_told(&mut from) else { return false };
    let mut to = Writer::new();
    told.write(&mut to);
    assert_eq!(to.as_slice(), &bytes[..to.len()]);
    true
}

fn receipts(bytes: &[u8]) -> bool {
    let mut from = Reader::new(bytes);
    let Ok(all) = chat::Receipt::read_all(&mut from) else { return false };
    let mut to = Writer::new();
    chat::Receipt::write_all(&all, &mut to);
    assert_eq!(to.as_slice(), &bytes[..to.len()]);
    true
}

fn beacon_of(bytes: &[u8]) -> bool {
    let Some(_) = beacon::purpose_of(bytes) else { return false };
    let datagram = bytes.try_into().expect("a beacon has its length");
    let keys = BeaconKeys { ours: Secret([1; 32]), theirs: Secret([2; 32]) };
    let pair = beacon::Pair::from(&keys);
    beacon::read(datagram, IpAddr::V4(Ipv4Addr::LOCALHOST), &pair);
    true
}

/// Whole and a byte at a time: no more payload comes out than bytes went in, and both ways end alike.
fn frames(bytes: &[u8], from: Sender) -> bool {
    let decode = |piece_len: usize| {
        let mut decoder = Decoder::new(from, 1 << 20);
        let mut payload = Vec::new();
        for piece in bytes.to_vec().chunks_mut(piece_len) {
            let mut at = 0;
            loop {
                match decoder.next(piece, &mut at) {
                    Ok(Some(Event::Data { bytes, .. } | Event::Ping(bytes))) => {
                        payload.extend_from_slice(bytes)
                    }
                    Ok(Some(Event::Pong | Event::Close { .. })) => {}
                    Ok(None) => break,
                    Err(why) => return Err(why.code),
                }
            }
            assert_eq!(at, piece.len(), "all of it is taken");
        }
        Ok(payload)
    };
    let whole = decode(bytes.len().max(1));
    assert_eq!(whole, decode(1), "in pieces it says something else");
    whole.is_ok_and(|payload| {
        assert!(payload.len() <= bytes.len());
        !payload.is_empty()
    })
}

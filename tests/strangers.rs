//! Bytes from strangers: every reader of bytes that others send is fed what the formats' test vectors hold, whole, cut,
//! changed and mixed. None panics; what is read writes back the same. `cargo fuzz` feeds the same readers for as long as
//! one likes (`fuzz/Cargo.toml`).

use std::collections::BTreeSet;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use grove::catalog::open_segment;
use grove::grant::{GrantMade, GrantReceived, ShareMade, Ticket};
use grove::id::{BodyHash, CellId, FileId, hex, unhex};
use miniserde::json::{self, Value};

mod common;
#[path = "../fuzz/feeds.rs"]
mod feeds;

use common::Chance;

/// Changed bytes for each reader. `GROVE_FEED=100000` feeds more, `GROVE_FEED_FIRST` others.
const CHANGED: u64 = 4000;
/// Numbers at which lengths and counts go wrong.
const EDGES: [u64; 8] = [0, 1, 0x7f, 0xff, 0x7fff_ffff, 0xffff_ffff, i64::MAX as u64, u64::MAX];

/// All that the vectors hold: bytes, and texts.
fn samples() -> Vec<Vec<u8>> {
    fn gather(value: &Value, into: &mut BTreeSet<Vec<u8>>) {
        match value {
            Value::String(text) => {
                into.insert(text.clone().into_bytes());
                into.extend(unhex(text));
            }
            Value::Array(items) => items.iter().for_each(|item| gather(item, into)),
            Value::Object(fields) => fields.iter().for_each(|(_, field)| gather(field, into)),
            _ => {}
        }
    }
    let mut all = BTreeSet::new();
    for file in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/vectors")).unwrap() {
        let text = fs::read_to_string(file.unwrap().path()).unwrap();
        gather(&json::from_str(&text).unwrap(), &mut all);
    }
    all.extend(own_samples());
    let ticket = all.iter().find_map(|sample| Ticket::from_bytes(sample).ok()).expect("vectors of tickets");
    all.extend(records_of(ticket));
    let opened: Vec<_> =
        all.iter().filter_map(|sample| open_segment(sample, &feeds::master()).ok()).collect();
    all.extend(opened);
    all.into_iter().filter(|sample| sample.len() <= 1 << 16).collect()
}

/// Of formats that have no vectors.
fn own_samples() -> Vec<Vec<u8>> {
    let masked = [&[0x82, 0x85, 1, 2, 3, 4][..], b"hello", &[0x89, 0x80, 0, 0, 0, 0]].concat();
    let plain = [&[0x02, 3][..], b"abc", &[0x80, 2], b"de", &[0x88, 2, 3, 0xe8]].concat();
    let beat = grove::ai::friend::Beat { every_s: 5, slots: 2, ..Default::default() };
    vec![
        masked,
        plain,
        beat.to_bytes(),
        grove::bounty::Counts::default().to_bytes(),
        br#"{"a":[1,2.5e3,"\u00e9",{"b":null}]}"#.to_vec(),
        br#"{"lan.discovery": false, "copies": 3}"#.to_vec(),
        b"/api/v1/files?path=a%20b&version=3".to_vec(),
        vec![0; 4],
    ]
}

/// What a cell notes of grants, and gets back from peers with its catalog.
fn records_of(ticket: Ticket) -> Vec<Vec<u8>> {
    let share = ShareMade {
        id: [4; 16],
        recipient: CellId([5; 32]),
        file: FileId([6; 16]),
        is_folder: true,
        since: 7,
        until: 8,
    };
    let received = GrantReceived { received: 9, is_kept: true, grant: ticket.as_bytes().to_vec() };
    let made = GrantMade {
        ticket,
        file: FileId([6; 16]),
        version: 10,
        manifest: BodyHash([11; 32]),
        share: Some(share.id),
    };
    vec![share.to_bytes(), received.to_bytes(), made.to_bytes()]
}

fn changed(sample: &[u8], other: &[u8], dice: &mut Chance) -> Vec<u8> {
    let mut bytes = sample.to_vec();
    for _ in 0..=dice.index(3) {
        let at = dice.index(bytes.len() + 1);
        match dice.index(8) {
            0 if at < bytes.len() => bytes[at] ^= 1 << dice.index(8),
            1 if at < bytes.len() => bytes[at] = dice.next() as u8,
            2 => bytes.truncate(at),
            3 => bytes.insert(at, dice.next() as u8),
            4 if at < bytes.len() => drop(bytes.remove(at)),
            5 => {
                let width = 1 << dice.index(4);
                let edge = EDGES[dice.index(EDGES.len())].wrapping_add(dice.next() % 3).to_le_bytes();
                let len = bytes.len();
                bytes.splice(at..(at + width).min(len), edge[..width].iter().copied());
            }
            6 => {
                let from = dice.index(other.len() + 1);
                bytes.splice(at.., other[from..].iter().copied());
            }
            _ => {
                let again = bytes[at..].to_vec();
                bytes.extend_from_slice(&again[..again.len().min(1 << 12)]);
            }
        }
    }
    bytes
}

fn feed(name: &str, reader: feeds::Feed, bytes: &[u8]) -> bool {
    catch_unwind(AssertUnwindSafe(|| reader(bytes)))
        .unwrap_or_else(|_| panic!("the reader of a {name} panics at {}", hex(bytes)))
}

#[test]
fn readers_take_what_is_sound_and_nothing_makes_them_panic() {
    let number = |name| std::env::var(name).ok().map(|text| text.parse().expect("a number"));
    let (count, first) = (number("GROVE_FEED").unwrap_or(CHANGED), number("GROVE_FEED_FIRST").unwrap_or(0));
    let samples = samples();
    assert!(samples.len() > 200, "{} samples", samples.len());
    for (at, (name, reader)) in feeds::FEEDS.iter().enumerate() {
        let sound: Vec<_> = samples.iter().filter(|sample| feed(name, *reader, sample)).collect();
        assert!(!sound.is_empty(), "no sample is a {name}");
        let mut dice = Chance((first << 8) + at as u64);
        for _ in 0..count {
            // What it takes brings it further than what is of another kind.
            let sample = match dice.index(4) {
                0 => &samples[dice.index(samples.len())],
                _ => sound[dice.index(sound.len())],
            };
            let other = &samples[dice.index(samples.len())];
            feed(name, *reader, &changed(sample, other, &mut dice));
        }
    }
}

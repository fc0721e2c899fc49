//! Chat between real sessions: friends, others, and friends who send what they should not.

use std::rc::Rc;
use std::time::Duration;

use smol::Timer;

use super::driver::Sync;
use super::tests::{Cell, pair, rogue, run};
use crate::card::Role;
use crate::chat::{BATCH_BYTES_MAX, Draft, Message, Receipt, Run, Side, batch_bytes};
use crate::id::CellId;
use crate::wire::handshake::Approach;
use crate::wire::message::{self, AskError, BatchHead, ErrorCode, Receipts, Reply, Request};
use crate::wire::session::Session;

fn draft(text: &str) -> Draft {
    Draft { text: text.into(), attachments: vec![] }
}

async fn texts(of: &Rc<Sync>, with: &CellId) -> Vec<String> {
    let found = of.look_up(with, Side::After(0), 1000, None, Duration::ZERO).await.unwrap();
    found.page.items.into_iter().map(|item| item.text).collect()
}

async fn wait_texts(of: &Rc<Sync>, with: &CellId, wanted: &[&str]) {
    while texts(of, with).await != wanted {
        Timer::after(Duration::from_millis(5)).await;
    }
}

#[test]
fn what_is_said_arrives_at_once_and_is_marked() {
    run(|executor| async move {
        let (ann, bob) = (Cell::new(1), Cell::new(2));
        let (a, b) = (ann.start(&executor).await, bob.start(&executor).await);
        let (ann_id, bob_id) = (ann.vault.id(), bob.vault.id());
        pair(&a, &b, Role::Friend).await;
        assert!(a.say(&bob_id, vec![draft("one")], None).await.unwrap().online);
        let two = b.say(&ann_id, vec![draft("two")], None).await.unwrap().ids[0];
        wait_texts(&a, &bob_id, &["one", "two"]).await;
        // Which of them was first at Bob is not settled.
        while texts(&b, &ann_id).await.len() < 2 {
            Timer::after(Duration::from_millis(5)).await;
        }
        a.mark_read(&bob_id, u64::MAX).await.unwrap();
        let mut seen = None;
        loop {
            let found = b.look_up(&ann_id, Side::After(0), 10, seen, Duration::from_secs(20)).await.unwrap();
            if found.read == two {
                break;
            }
            seen = Some(found.change);
        }
        assert_eq!(a.talk_views().await.unwrap()[0].talk.unread, 0);
        assert_eq!(b.talk_views().await.unwrap()[0].talk.unread, 1);
    });
}

#[test]
fn what_waits_for_a_friend_outlives_both_and_unfriending_stops_it() {
    run(|executor| async move {
        let (ann, bob) = (Cell::new(1), Cell::new(2));
        let (a, b) = (ann.start(&executor).await, bob.start(&executor).await);
        let (ann_id, bob_id) = (ann.vault.id(), bob.vault.id());
        pair(&a, &b, Role::Peer).await;
        let why = a.say(&bob_id, vec![draft("no")], None).await.unwrap_err().to_string();
        assert!(why.contains("no friend"), "{why}");
        a.set_friend(&bob_id, true).await.unwrap();
        b.set_friend(&ann_id, true).await.unwrap();
        while !a.is_friend(&bob_id) {
            Timer::after(Duration::from_millis(5)).await;
        }
        b.stop().await;
        drop(b);
        a.say(&bob_id, vec![draft("later"), draft("and more")], None).await.unwrap();
        let port = a.port();
        a.stop().await;
        drop(a);
        let (a, b) = (ann.start_at(&executor, port).await, bob.start(&executor).await);
        wait_texts(&b, &ann_id, &["later", "and more"]).await;
        a.set_friend(&bob_id, false).await.unwrap();
        while b.is_friend(&ann_id) {
            Timer::after(Duration::from_millis(5)).await;
        }
        for (side, other) in [(&a, &bob_id), (&b, &ann_id)] {
            assert!(side.say(other, vec![draft("no")], None).await.is_err());
            assert_eq!(texts(side, other).await, ["later", "and more"], "it stays readable");
        }
        let told = b.delete_talk(&ann_id, None).await.unwrap();
        assert!(told.count == 2 && !told.has_more);
        assert!(b.talk_views().await.unwrap().is_empty());
    });
}

fn known(cell: &Cell) -> Approach {
    Approach::Known { id: cell.vault.id(), x25519: *cell.vault.identity.x_public() }
}

fn one(number: u64) -> Message {
    Message { number, at: 7, text: "hello".into(), attachments: vec![] }
}

async fn refusal(session: &Session, head: BatchHead, body: &[u8]) -> (ErrorCode, String) {
    match message::say(session, head, body).await {
        Err(AskError::Refused(why)) => (why.code, why.text),
        other => panic!("{other:?}"),
    }
}

#[test]
fn whoever_is_no_friend_is_not_heard_and_a_friend_only_within_bounds() {
    run(|executor| async move {
        let (ann, bob) = (Cell::new(1), Cell::new(2));
        let (a, b) = (ann.start(&executor).await, bob.start(&executor).await);
        let (ann_id, bob_id) = (ann.vault.id(), bob.vault.id());
        pair(&a, &b, Role::Peer).await;
        b.stop().await;
        let session = rogue(&executor, &bob, &a, known(&ann)).await.unwrap();
        let run = Run { life: 1, id: [9; 16] };
        let body = batch_bytes(&[one(1), one(2)]);
        let mut head = BatchHead { start: [0; 16], run, base: 0, len: body.len() as u32 };
        let told = Receipts { start: [4; 16], receipts: vec![] };
        assert_eq!(refusal(&session, head, &body).await.0, ErrorCode::NotAllowed);
        let asked = message::ask(&session, &Request::Receipts(told.clone())).await;
        assert!(matches!(asked, Err(AskError::Refused(why)) if why.code == ErrorCode::NotAllowed));

        // Friends from here on, as far as Ann knows.
        a.gate.change(&bob_id, |peer| peer.friendship.agree(0)).await.unwrap();
        assert_eq!(message::say(&session, head, &body).await.unwrap(), None, "another start is named");
        let Reply::Receipts(theirs) = message::ask(&session, &Request::Receipts(told)).await.unwrap() else {
            panic!("no receipts")
        };
        head.start = theirs.start;
        let gap = BatchHead { base: 1, len: (body.len() - 26) as u32, ..head };
        assert_eq!(message::say(&session, gap, &batch_bytes(&[one(2)])).await.unwrap(), Some(0), "a gap");
        for _ in 0..2 {
            assert_eq!(message::say(&session, head, &body).await.unwrap(), Some(2));
        }
        assert_eq!(texts(&a, &bob_id).await, ["hello", "hello"]);

        // The largest numbers there are: taken or refused, and what comes later is taken all the same.
        let last = i64::MAX as u64;
        let far = Run { life: u32::MAX, id: [10; 16] };
        let body_far = batch_bytes(&[one(last)]);
        let head_far = BatchHead { run: far, len: body_far.len() as u32, ..head };
        assert_eq!(message::say(&session, head_far, &body_far).await.unwrap(), Some(last));
        assert_eq!(message::say(&session, head_far, &body_far).await.unwrap(), Some(last));
        let beyond = batch_bytes(&[one(last + 1)]);
        assert_eq!(refusal(&session, head_far, &beyond).await.1, "number of a message");
        let base = BatchHead { base: u64::MAX, ..head };
        assert!(refusal(&session, base, &[]).await.1.contains("base of a batch"));
        let long = BatchHead { len: u32::MAX, ..head };
        assert!(refusal(&session, long, &[]).await.1.contains("4294967295 bytes"));
        let stored = u64::MAX;
        let told = Receipts { start: [4; 16], receipts: vec![Receipt { run, stored, read: 1 }] };
        let asked = message::ask(&session, &Request::Receipts(told)).await;
        assert!(matches!(asked, Err(AskError::Refused(why)) if why.code == ErrorCode::Malformed));
        a.mark_read(&bob_id, u64::MAX).await.unwrap();
        assert_eq!(a.talk_views().await.unwrap()[0].talk.unread, 0);
        assert_eq!(texts(&a, &bob_id).await, ["hello"; 3]);

        let twisted = batch_bytes(&[one(2), one(1)]);
        let (code, why) = refusal(&session, head, &twisted).await;
        assert_eq!((code, why.as_str()), (ErrorCode::Malformed, "numbers of messages do not grow"));
        let noise = vec![0xff; BATCH_BYTES_MAX];
        let flood = BatchHead { len: noise.len() as u32, ..head };
        let mut codes = Vec::new();
        while codes.last() != Some(&ErrorCode::Busy) {
            assert!(codes.len() < 300, "a flood is not stopped");
            codes.push(refusal(&session, flood, &noise).await.0);
        }
        assert!(codes.len() > 200 && codes[0] == ErrorCode::Malformed);
        ann.clock.pass(Duration::from_secs(3700));
        assert_eq!(message::say(&session, head, &body).await.unwrap(), Some(2), "heard again after an hour");
        assert_eq!(texts(&a, &bob_id).await.len(), 3);
        assert!(a.say(&ann_id, vec![draft("to itself")], None).await.is_err());
    });
}

//! Messages and the conversations that they make.

use super::ask::read_reply;
use super::*;
use crate::bounty::STATEMENT_BYTES_MAX;
use crate::card::CARD_BYTES_MAX;
use crate::codec::Writer;
use crate::grant::{GRANT_BYTES_MAX, LIST_BYTES_MAX, PROOF_BYTES_MAX};
use crate::wire::noise::tests::Dice;
use crate::wire::session::tests::with_sessions;
use crate::wire::session::{Limits, Session};
use crate::wire::{memory, write_full};

fn name(n: u8) -> ChunkName {
    ChunkName([n; 32])
}

fn hello() -> Hello {
    Hello {
        protocol: PROTOCOL,
        epoch: 5,
        tips: vec![BodyHash([1; 32]), BodyHash([2; 32])],
        holdings_seq: 4711,
        usage: Usage { used: 1, quota: 2, free: 3 },
        unix_time: 1_800_000_000,
        card: b"card".to_vec(),
        version: "0.1.0".into(),
    }
}

fn run() -> Run {
    Run { life: 2, id: [3; 16] }
}

fn receipts(count: u8) -> Receipts {
    let receipt = |n| Receipt { run: Run { life: 1, id: [n + 1; 16] }, stored: 9, read: 8 };
    Receipts { start: [5; 16], receipts: (0..count).map(receipt).collect() }
}

fn settlement(len: usize) -> Settlement {
    let heard = Heard { life: 1, measured: 2, claimed: 3, disagrees: true, ..Heard::default() };
    Settlement { heard, wants: len == 0, newest: vec![7; len], proposal: vec![8; len] }
}

/// Every field of the head of a batch has its own error.
#[test]
fn heads_of_batches_with_a_wrong_field_are_refused() {
    let head = BatchHead { start: [1; 16], run: run(), base: 7, len: 99 };
    let read = |head| Request::from_bytes(&Request::Messages(head).to_bytes());
    let why = |head| match read(head) {
        Err(AskError::Malformed(why)) => why,
        other => panic!("{other:?}"),
    };
    assert!(read(head).is_ok());
    assert_eq!(why(BatchHead { run: Run { life: 0, ..run() }, ..head }), "life of a run of messages");
    assert_eq!(why(BatchHead { run: Run { id: [0; 16], ..run() }, ..head }), "id of a run of messages");
    assert_eq!(why(BatchHead { base: 1 << 63, ..head }), "base of a batch");
    let len = (1 << 20) + 1;
    assert!(
        matches!(read(BatchHead { len, ..head }), Err(AskError::TooLong(told)) if told == u64::from(len))
    );
}

fn requests() -> Vec<Request> {
    let names = vec![name(1), name(2), name(3)];
    vec![
        Request::Hello(hello()),
        Request::Have { names: names.clone() },
        Request::Get { names: names.clone() },
        Request::Put { class: Class::Segment, entries: vec![(name(1), 7), (name(2), 9)] },
        Request::Release { names: names.clone() },
        Request::Restore { names },
        Request::Inventory { epoch: 5, since: 6, limit: 7 },
        Request::Digest { first: None },
        Request::Digest { first: Some(255) },
        Request::Bucket { bucket: 0xabcd },
        Request::Heads,
        Request::PutHead { len: 100 },
        Request::Ping,
        Request::Card { bytes: b"card".to_vec() },
        Request::Goodbye { reason: Farewell::Restarting },
        Request::RecoverySecret { secret: Secret([9; 32]) },
        Request::Grants { lens: vec![1, GRANT_BYTES_MAX as u32] },
        Request::Revocations { len: LIST_BYTES_MAX as u32 },
        Request::TakenBack,
        Request::GetByTicket {
            ticket: b"ticket".to_vec(),
            chunks: vec![(name(1), 7, vec![1; PROOF_BYTES_MAX]), (name(2), u32::MAX, vec![])],
        },
        Request::Friendship(Friendship::UNNUMBERED),
        Request::Messages(BatchHead { start: [1; 16], run: run(), base: 7, len: 99 }),
        Request::Receipts(receipts(3)),
        Request::Beat { bytes: b"beat".to_vec() },
        Request::Question { len: QUESTION_BYTES_MAX as u32 },
        Request::Settle(settlement(0)),
        Request::Audit {
            nonce: [7; 32],
            asks: vec![(name(1), Challenge::Whole), (name(2), Challenge::Leaf(64))],
        },
    ]
}

fn replies() -> Vec<Reply> {
    let entry = Holding { seq: 4711, name: name(4), len: 100, is_held: true };
    vec![
        Reply::Hello(hello()),
        Reply::Have { held: vec![true, false, true, true, false, false, true, true, true] },
        Reply::Grants { statuses: vec![GrantStatus::Taken, GrantStatus::Full, GrantStatus::Other(9)] },
        Reply::Revocations { number: 7 },
        Reply::TakenBack { len: LIST_BYTES_MAX as u32 },
        Reply::Friendship(Friendship::UNNUMBERED),
        Reply::Messages(None),
        Reply::Messages(Some(7)),
        Reply::Receipts(receipts(2)),
        Reply::Answering,
        Reply::Settle(settlement(STATEMENT_BYTES_MAX)),
        Reply::Get { count: 3 },
        Reply::Put { statuses: vec![PutStatus::Stored, PutStatus::Other(99)], usage: Usage::default() },
        Reply::Release { count: 2 },
        Reply::Restore { held: vec![false] },
        Reply::Inventory { epoch: 5, entries: vec![entry, entry], more: true },
        Reply::Digest { epoch: 5, seq: 6, sums: (0..256).collect() },
        Reply::Bucket { epoch: 5, seq: 6, entries: vec![(entry.name, 7)] },
        Reply::Heads { lens: vec![1, 2, 3] },
        Reply::PutHead(HeadOutcome::Stored),
        Reply::PutHead(HeadOutcome::Missing(vec![name(1)])),
        Reply::PutHead(HeadOutcome::Refused("an older life".into())),
        Reply::Pong,
        Reply::Done,
        Reply::Audit { count: 2 },
        Reply::Error(Refusal::new(ErrorCode::Busy, "too\nmuch", "wait")),
    ]
}

#[test]
fn every_message_reads_back_and_none_has_two_forms() {
    let mut heads: Vec<Vec<u8>> = Vec::new();
    for request in requests() {
        let bytes = request.to_bytes();
        assert_eq!(Request::from_bytes(&bytes).unwrap(), request);
        assert!((0..bytes.len()).all(|at| Request::from_bytes(&bytes[..at]).is_err()));
        heads.push(bytes);
    }
    for reply in replies() {
        let bytes = reply.to_bytes();
        assert_eq!(Reply::from_bytes(&bytes).unwrap(), reply);
        assert!((0..bytes.len()).all(|at| Reply::from_bytes(&bytes[..at]).is_err()));
        heads.push(bytes);
    }
    let same = |bytes: &[u8]| {
        if let Ok(request) = Request::from_bytes(bytes) {
            assert_eq!(request.to_bytes(), bytes, "{request:?}");
        }
        if let Ok(reply) = Reply::from_bytes(bytes) {
            assert_eq!(reply.to_bytes(), bytes, "{reply:?}");
        }
    };
    for head in &heads {
        for at in 0..head.len() {
            same(&head[..at]);
            for change in [1, 0x80, 0xff] {
                let mut changed = head.clone();
                changed[at] ^= change;
                same(&changed);
            }
        }
        assert!(Request::from_bytes(&[&head[..], &[0]].concat()).is_err());
        assert!(Reply::from_bytes(&[&head[..], &[0]].concat()).is_err());
    }
    for seed in 0..50_000 {
        let mut dice = Dice(seed);
        let len = dice.roll(120);
        let mut bytes = dice.bytes(len);
        if let Some(tag) = bytes.first_mut() {
            *tag = dice.roll(17) as u8;
        }
        same(&bytes);
    }
}

#[test]
fn largest_messages_fit_their_heads() {
    let names = vec![name(1); NAMES_MAX];
    let entries = vec![(name(1), 1); NAMES_MAX];
    let mut hello = hello();
    hello.tips = vec![BodyHash([1; 32]); CATALOG_HEADS_MAX];
    hello.card = vec![0; CARD_BYTES_MAX];
    let audit = Request::Audit { nonce: [0; 32], asks: vec![(name(1), Challenge::Whole); AUDIT_NAMES_MAX] };
    for request in
        [Request::Have { names }, Request::Put { class: Class::Chunk, entries }, Request::Hello(hello), audit]
    {
        assert!(request.to_bytes().len() <= REQUEST_HEAD_BYTES_MAX);
    }
    let entry = Holding { seq: 1, name: name(1), len: 1, is_held: false };
    let entries = vec![entry; INVENTORY_ENTRIES_MAX];
    let reply = Reply::Inventory { epoch: 1, entries, more: false };
    assert!(reply.to_bytes().len() <= REPLY_HEAD_BYTES_MAX);
}

#[test]
fn over_long_lists_and_bodies_are_refused() {
    let put = |entries: &[(ChunkName, u32)]| {
        Request::from_bytes(&Request::Put { class: Class::Chunk, entries: entries.to_vec() }.to_bytes())
    };
    let most = CHUNK_SEALED_MAX as u32;
    assert!(put(&[(name(1), most)]).is_ok());
    assert!(matches!(put(&[(name(1), most + 1)]), Err(AskError::TooLong(_))));
    assert!(matches!(put(&vec![(name(1), most); 17]), Err(AskError::TooLong(_))));
    let mut long = Writer::new();
    long.u8(2).u32(NAMES_MAX as u32 + 1).raw(&vec![0; 32 * (NAMES_MAX + 1)]);
    assert!(Request::from_bytes(long.as_slice()).is_err());
    assert!(matches!(
        Request::from_bytes(&Request::PutHead { len: (1 << 20) + 1 }.to_bytes()),
        Err(AskError::TooLong(_))
    ));
    assert!(Reply::from_bytes(&Reply::Heads { lens: vec![1 << 20; 9] }.to_bytes()).is_err());
    assert!(matches!(Request::from_bytes(&[77, 1, 2]), Err(AskError::Unsupported(77))));
}

#[test]
fn huge_or_empty_heads_are_refused_before_they_come() {
    smol::block_on(async {
        for len in [0u32, REQUEST_HEAD_BYTES_MAX as u32 + 1, u32::MAX] {
            let (mut a, mut b, _link) = memory::link(100);
            write_full(&mut a, &len.to_le_bytes(), PROGRESS_TIME_MAX).await.unwrap();
            assert!(matches!(read_request(&mut b).await, Err(AskError::TooLong(_))));
        }
    });
}

/// A peer that holds chunk 1 whole and chunk 2 damaged, and takes no more than three chunks.
async fn serve(session: Session, chunk: Vec<u8>) {
    while let Some(mut stream) = session.accept().await {
        let reply = match read_request(&mut stream).await {
            Ok(Request::Ping) => Reply::Pong,
            Ok(Request::Have { names }) => Reply::Have { held: names.iter().map(|n| n.0[0] == 1).collect() },
            Ok(Request::Get { names }) => {
                write_reply(&mut stream, &Reply::Get { count: names.len() as u32 }).await.unwrap();
                for name in names {
                    let (status, bytes) = match name.0[0] {
                        1 => (GetStatus::Found, &chunk[..]),
                        2 => (GetStatus::Damaged, &[][..]),
                        _ => (GetStatus::Missing, &[][..]),
                    };
                    write_got(&mut stream, status, bytes).await.unwrap();
                }
                finish(&mut stream).await.unwrap();
                continue;
            }
            Ok(Request::Put { entries, .. }) => {
                let mut buf = Vec::new();
                let mut statuses = vec![PutStatus::DiskFull; entries.len()];
                for (i, (_, len)) in entries.iter().enumerate().take(3) {
                    read_body(&mut stream, *len as usize, &mut buf).await.unwrap();
                    assert_eq!(buf, chunk);
                    statuses[i] = PutStatus::Stored;
                }
                Reply::Put { statuses, usage: Usage { used: 1, quota: 2, free: 3 } }
            }
            Ok(Request::Heads) => {
                write_reply(&mut stream, &Reply::Heads { lens: vec![4, 5] }).await.unwrap();
                write_full(&mut stream, b"headheads", PROGRESS_TIME_MAX).await.unwrap();
                finish(&mut stream).await.unwrap();
                continue;
            }
            Ok(Request::PutHead { len }) => {
                let mut head = Vec::new();
                read_body(&mut stream, len as usize, &mut head).await.unwrap();
                Reply::PutHead(HeadOutcome::Missing(vec![name(head[0])]))
            }
            Ok(_) => Reply::Error(Refusal::new(ErrorCode::NotAllowed, "not here", "")),
            Err(error) => refuse(&error).unwrap(),
        };
        write_reply(&mut stream, &reply).await.unwrap();
        finish(&mut stream).await.unwrap();
    }
}

#[test]
fn requests_are_answered_over_a_session() {
    let chunk = Dice(1).bytes(CHUNK_SEALED_MAX);
    with_sessions(Limits::default(), |executor, a, b, _link| async move {
        executor.spawn(serve(b, chunk.clone())).detach();
        assert_eq!(ask(&a, &Request::Ping).await.unwrap(), Reply::Pong);
        let have = Request::Have { names: vec![name(1), name(9)] };
        assert_eq!(ask(&a, &have).await.unwrap(), Reply::Have { held: vec![true, false] });
        match ask(&a, &Request::Goodbye { reason: Farewell::Removed }).await {
            Err(AskError::Refused(refusal)) => assert_eq!(refusal.code, ErrorCode::NotAllowed),
            other => panic!("{other:?}"),
        }

        let mut getting = get(&a, vec![name(1), name(2), name(3), name(1)]).await.unwrap();
        let mut buf = vec![1, 2, 3];
        for (n, status) in
            [(1, GetStatus::Found), (2, GetStatus::Damaged), (3, GetStatus::Missing), (1, GetStatus::Found)]
        {
            assert_eq!(getting.next(&mut buf).await.unwrap(), Some((name(n), status)));
            assert_eq!(buf == chunk, status == GetStatus::Found);
        }
        assert_eq!(getting.next(&mut buf).await.unwrap(), None);

        assert_eq!(heads(&a).await.unwrap(), [b"head".to_vec(), b"heads".to_vec()]);
        let outcome = put_head(&a, &[7; 5000]).await.unwrap();
        assert_eq!(outcome, HeadOutcome::Missing(vec![name(7)]));
    });
}

#[test]
fn put_stops_when_the_peer_has_answered() {
    let chunk = Dice(1).bytes(1 << 20);
    with_sessions(Limits::default(), |executor, a, b, _link| async move {
        executor.spawn(serve(b, chunk.clone())).detach();
        for (count, stored) in [(3, 3), (30, 3)] {
            let entries = vec![(name(1), chunk.len() as u32); count];
            let mut putting = put(&a, Class::Chunk, entries).await.unwrap();
            let mut sent = 0;
            while sent < count && putting.send(&chunk).await.unwrap() {
                sent += 1;
            }
            assert!(sent == count || sent < 10, "{sent}");
            let (statuses, usage) = putting.finish().await.unwrap();
            assert_eq!(statuses.iter().filter(|s| **s == PutStatus::Stored).count(), stored);
            assert_eq!((statuses.len(), usage.free), (count, 3));
        }
    });
}

#[test]
fn request_of_a_later_version_is_answered_with_unsupported() {
    with_sessions(Limits::default(), |executor, a, b, _link| async move {
        executor.spawn(serve(b, vec![])).detach();
        let mut stream = a.open().await.unwrap();
        write_head(&mut stream, &[200, 1, 2, 3]).await.unwrap();
        match read_reply(&mut stream, PROGRESS_TIME_MAX).await {
            Err(AskError::Refused(refusal)) => assert_eq!(refusal.code, ErrorCode::Unsupported),
            other => panic!("{other:?}"),
        }
    });
}

#[test]
fn reply_to_another_request_is_refused() {
    with_sessions(Limits::default(), |executor, a, b, _link| async move {
        let answer = async move {
            let mut stream = b.accept().await.unwrap();
            read_request(&mut stream).await.unwrap();
            write_reply(&mut stream, &Reply::Have { held: vec![true; 5] }).await.unwrap();
            finish(&mut stream).await.unwrap();
        };
        executor.spawn(answer).detach();
        let have = Request::Have { names: vec![name(1)] };
        assert!(matches!(ask(&a, &have).await, Err(AskError::OutOfTurn)));
    });
}

//! Chat by example, and as it goes between two cells that lose, repeat and forget.

use std::collections::BTreeSet;
use std::time::Duration;

use super::*;
use crate::id::{CellId, hex};
use crate::keys::random;

const ANN: CellId = CellId([1; 32]);
const BOB: CellId = CellId([2; 32]);
const NOW: u64 = 1_800_000_000;

fn message(number: u64) -> Message {
    Message { number, at: NOW, text: format!("message {number}"), attachments: vec![[number as u8; 16]] }
}

fn draft(text: &str) -> Draft {
    Draft { text: text.into(), attachments: vec![] }
}

fn say(talks: &Talks, peer: &CellId, text: &str) -> u64 {
    talks.say(peer, "x", 1, NOW, &[draft(text)], None).unwrap().unwrap()[0]
}

fn texts(talks: &Talks, peer: &CellId) -> Vec<String> {
    let page = talks.page(peer, Side::After(0), 100_000).unwrap();
    page.items.into_iter().map(|item| item.text).collect()
}

/// Brings one batch over; `false`: there is none.
fn carry(from: &Talks, to: &Talks) -> bool {
    let Some(out) = from.next(&BOB).unwrap() else { return false };
    let Took::Level { stored, .. } = to.take(&ANN, "ann", &out.run, out.base, &out.messages, NOW).unwrap()
    else {
        panic!("it is full")
    };
    from.heard(&BOB, &out.run, stored).unwrap()
}

#[test]
fn what_is_new_is_told_by_numbers() {
    assert_eq!(take(0, 0, [1, 2, 3]), Take::From(0));
    assert_eq!(take(2, 0, [1, 2, 3]), Take::From(2));
    assert_eq!(take(3, 0, [1, 2, 3]), Take::From(3));
    assert_eq!(take(3, 3, [7, 9]), Take::From(0), "what lay between is deleted");
    assert_eq!(take(8, 3, [7, 9]), Take::From(1));
    assert_eq!(take(2, 3, [7, 9]), Take::Gap);
}

#[test]
fn a_friend_goes_back_only_where_it_may_and_never_beyond_what_was_said() {
    let mut sent = Sent { last: 10, stored: 5, read: 3 };
    sent.hear(4, 2, false);
    assert_eq!(sent, Sent { last: 10, stored: 5, read: 3 });
    sent.hear(4, 4, true);
    assert_eq!(sent, Sent { last: 10, stored: 4, read: 4 });
    sent.hear(u64::MAX, u64::MAX, false);
    assert_eq!(sent, Sent { last: 10, stored: 10, read: 10 });
}

#[test]
fn batches_are_bounded_in_number_and_bytes() {
    let mut filling = Filling::default();
    assert_eq!((0..1000).filter(|n| filling.takes(&message(n + 1))).count(), BATCH_MESSAGES_MAX);
    let long = Message { text: "x".repeat(TEXT_BYTES_MAX), attachments: vec![[1; 16]; 16], ..message(1) };
    let mut filling = Filling::default();
    let count = (0..1000).filter(|_| filling.takes(&long)).count();
    let bytes = batch_bytes(&vec![long; count]).len();
    assert!(count >= 2 && bytes <= 256 * 1024 && bytes <= BATCH_BYTES_MAX, "{count}, {bytes}");
}

#[test]
fn a_batch_reads_back_and_has_one_form() {
    let unnamed = Message { text: String::new(), ..message(9) };
    let plain = Message { attachments: vec![], text: "a\u{1b}[2J\u{202e}\0".into(), ..message(4) };
    let messages = vec![message(3), plain, unnamed];
    let bytes = batch_bytes(&messages);
    assert_eq!(read_batch(2, &bytes).unwrap(), messages);
    assert!((0..bytes.len()).all(|at| read_batch(2, &bytes[..at]).is_err()));
    assert!(read_batch(2, &[&bytes[..], &[0]].concat()).is_err());
    for at in 0..bytes.len() {
        for change in [1, 0x80, 0xff] {
            let mut changed = bytes.clone();
            changed[at] ^= change;
            if let Ok(read) = read_batch(2, &changed) {
                assert_eq!(batch_bytes(&read), changed);
            }
        }
    }
}

/// One field of a batch, changed.
type Corruptor = (&'static str, fn(&mut u64, &mut Vec<Message>));
/// One field of a receipt, changed.
type ReceiptCorruptor = (&'static str, fn(&mut Vec<Receipt>));

#[test]
fn every_field_of_a_message_changed_in_turn_is_refused_with_its_own_error() {
    let corruptors: [Corruptor; 10] = [
        ("numbers of messages do not grow", |base, _| *base = 1),
        ("numbers of messages do not grow", |_, messages| messages[1].number = 1),
        ("number of a message", |_, messages| messages[1].number = u64::MAX),
        ("time of a message", |_, messages| messages[1].at = AT_MAX + 1),
        ("the text of a message is too long", |_, messages| {
            messages[1].text = "x".repeat(TEXT_BYTES_MAX + 1)
        }),
        ("a message has too many attachments", |_, messages| {
            messages[1].attachments = (0..17).map(|n| [n; 16]).collect();
        }),
        ("a message has an attachment twice", |_, messages| messages[1].attachments = vec![[7; 16]; 2]),
        ("a message says nothing", |_, messages| {
            messages[1].text.clear();
            messages[1].attachments.clear();
        }),
        ("a batch of too many messages", |_, messages| {
            let last = messages[1].number;
            messages.extend((1..=255).map(|n| message(last + n)));
        }),
        ("a batch without a message", |_, messages| messages.clear()),
    ];
    let write = |messages: &[Message]| {
        let mut to = Writer::new();
        to.u32(messages.len() as u32);
        messages.iter().for_each(|message| message.write(&mut to));
        to.finish()
    };
    for (why, corrupt) in corruptors {
        let (mut base, mut messages) = (0, vec![message(1), message(2)]);
        assert_eq!(read_batch(base, &write(&messages)).as_ref(), Ok(&messages));
        corrupt(&mut base, &mut messages);
        assert_eq!(read_batch(base, &write(&messages)), Err(BadBytes(why)));
    }
    let mut bytes = write(&[message(1)]);
    let at = bytes.windows(7).position(|seven| seven == b"message").unwrap();
    bytes[at] = 0xff;
    assert_eq!(read_batch(0, &bytes), Err(BadBytes("the text of a message is not UTF-8")));

    let run = Run { life: 1, id: [1; 16] };
    let receipt = Receipt { run, stored: 7, read: 5 };
    let receipts: [ReceiptCorruptor; 6] = [
        ("life of a run of messages", |all| all[0].run.life = 0),
        ("id of a run of messages", |all| all[0].run.id = [0; 16]),
        ("number of a receipt", |all| all[0].stored = u64::MAX),
        ("more is read than is there", |all| all[0].read = 8),
        ("two receipts of one run", |all| all.push(all[0])),
        ("too many receipts", |all| all.extend([all[0]; RECEIPTS_MAX])),
    ];
    let write = |receipts: &[Receipt]| {
        let mut to = Writer::new();
        to.u32(receipts.len() as u32);
        for receipt in receipts {
            receipt.run.write(&mut to);
            to.u64(receipt.stored).u64(receipt.read);
        }
        to.finish()
    };
    for (why, corrupt) in receipts {
        let mut all = vec![receipt];
        assert_eq!(Receipt::read_all(&mut Reader::new(&write(&all))).as_ref(), Ok(&all));
        corrupt(&mut all);
        assert_eq!(Receipt::read_all(&mut Reader::new(&write(&all))), Err(BadBytes(why)));
    }
    assert_eq!(read_base(&mut Reader::new(&[0xff; 8])), Err(BadBytes("base of a batch")));
}

#[test]
fn what_cannot_be_said_is_refused_in_words() {
    let talks = Talks::in_memory().unwrap();
    let long = "x".repeat(TEXT_BYTES_MAX + 1);
    let cases = [
        (draft(""), SayError::Empty),
        (draft(&long), SayError::TooLong(TEXT_BYTES_MAX + 1)),
        (Draft { attachments: vec![[1; 16]; 2], ..draft("") }, SayError::Twice),
        (
            Draft { attachments: (0..17).map(|n| [n; 16]).collect(), ..draft("") },
            SayError::TooManyAttachments(17),
        ),
    ];
    for (bad, why) in cases {
        let said = talks.say(&BOB, "bob", 1, NOW, &[draft("good"), bad], None).unwrap();
        assert_eq!(said, Err(why));
        assert!(!why.to_string().is_empty());
    }
    assert!(texts(&talks, &BOB).is_empty(), "all or nothing");
    assert!(talks.say(&BOB, "bob", 1, NOW, &[draft(&long[1..])], None).unwrap().is_ok());
    // Whatever the clock says, the friend takes what is said.
    for wrong in [0, u64::MAX] {
        talks.say(&BOB, "bob", 1, wrong, &[draft("x")], None).unwrap().unwrap();
    }
    let out = talks.next(&BOB).unwrap().unwrap();
    assert_eq!(read_batch(out.base, &batch_bytes(&out.messages)), Ok(out.messages));
}

#[test]
fn a_queue_is_bounded_and_what_is_beyond_is_refused() {
    let talks = Talks::in_memory().unwrap();
    let some: Vec<Draft> = (0..1000).map(|n| draft(&n.to_string())).collect();
    for _ in 0..20 {
        talks.say(&BOB, "bob", 1, NOW, &some, None).unwrap().unwrap();
    }
    let full = SayError::QueueFull { messages: QUEUE_MESSAGES_MAX };
    assert_eq!(talks.say(&BOB, "bob", 1, NOW, &[draft("more")], None).unwrap(), Err(full));
    // Another friend is not concerned, and there is room again when some have arrived.
    say(&talks, &ANN, "hello");
    let other = Talks::in_memory().unwrap();
    assert!(carry(&talks, &other));
    say(&talks, &BOB, "more");
    assert_eq!(
        may_queue(Amount::default(), HISTORY_BYTES_MAX, Amount { messages: 1, bytes: 1 }),
        Err(SayError::HistoryFull)
    );
    let much = Amount { messages: 1, bytes: QUEUE_BYTES_MAX };
    assert!(may_queue(Amount::default(), 0, much).is_ok());
    assert!(may_queue(Amount { messages: 1, bytes: 1 }, 0, much).is_err());
}

#[test]
fn said_again_under_the_same_key_is_kept_once() {
    let talks = Talks::in_memory().unwrap();
    let say = |key| talks.say(&BOB, "bob", 1, NOW, &[draft("a"), draft("b")], Some(key)).unwrap().unwrap();
    let first = say("k");
    assert_eq!(say("k"), first[..1]);
    assert_eq!(say("l").len(), 2);
    assert_eq!(texts(&talks, &BOB), ["a", "b", "a", "b"]);
}

#[test]
fn messages_arrive_in_order_and_once_over_restarts() {
    let (mut ann, mut bob) = (Talks::in_memory().unwrap(), Talks::in_memory().unwrap());
    let mut said = Vec::new();
    for start in 0..4 {
        for n in 0..300 {
            said.push(format!("{start} {n}"));
            say(&ann, &BOB, said.last().unwrap());
        }
        carry(&ann, &bob);
        (ann, bob) = (ann.copied().unwrap(), bob.copied().unwrap());
    }
    let late = ann.next(&BOB).unwrap().unwrap();
    while carry(&ann, &bob) {}
    let again = bob.take(&ANN, "ann", &late.run, late.base, &late.messages, NOW).unwrap();
    assert!(matches!(again, Took::Level { new: 0, .. }));
    assert_eq!(texts(&bob, &ANN), said);
    assert_eq!(bob.list().unwrap()[0].unread, 1200);
    assert_eq!(bob.receipts(&ANN).unwrap().len(), 4);
}

#[test]
fn marks_follow_what_the_friend_tells() {
    let (ann, bob) = (Talks::in_memory().unwrap(), Talks::in_memory().unwrap());
    let ids: Vec<u64> = (0..5).map(|n| say(&ann, &BOB, &n.to_string())).collect();
    assert_eq!(ann.marks(&BOB).unwrap(), (0, 0));
    carry(&ann, &bob);
    assert_eq!(ann.marks(&BOB).unwrap(), (ids[4], 0));
    let third = bob.page(&ANN, Side::After(0), 3).unwrap();
    assert!(third.more);
    assert!(bob.mark_read(&ANN, third.items[2].id).unwrap());
    assert!(!bob.mark_read(&ANN, third.items[1].id).unwrap(), "what was seen stays seen");
    assert_eq!(bob.list().unwrap()[0].unread, 2);
    assert!(ann.heard_all(&BOB, &bob.receipts(&ANN).unwrap(), false).unwrap());
    assert_eq!(ann.marks(&BOB).unwrap(), (ids[4], ids[2]));
    let items = ann.page(&BOB, Side::Before(u64::MAX), 2).unwrap();
    assert_eq!(items.items.iter().map(|item| item.id).collect::<Vec<_>>(), ids[3..]);
    assert!(items.more && items.items[0].is_delivered && !items.items[0].is_read);
}

#[test]
fn deleted_messages_neither_go_nor_come_again() {
    let (ann, bob) = (Talks::in_memory().unwrap(), Talks::in_memory().unwrap());
    let ids: Vec<u64> = (0..5).map(|n| say(&ann, &BOB, &n.to_string())).collect();
    assert!(ann.delete(&BOB, ids[0]).unwrap() && ann.delete(&BOB, ids[2]).unwrap());
    assert!(!ann.delete(&ANN, ids[1]).unwrap(), "of another conversation");
    let out = ann.next(&BOB).unwrap().unwrap();
    carry(&ann, &bob);
    assert_eq!(texts(&bob, &ANN), ["1", "3", "4"]);
    while bob.delete_some(&ANN, u64::MAX).unwrap() > 0 {}
    assert!(bob.list().unwrap().is_empty());
    let again = bob.take(&ANN, "ann", &out.run, out.base, &out.messages, NOW).unwrap();
    assert_eq!(again, Took::Level { stored: 5, new: 0 });
    assert!(texts(&bob, &ANN).is_empty());
    // What waits and is deleted is not waited for.
    let last = say(&ann, &BOB, "5");
    ann.delete(&BOB, last).unwrap();
    assert_eq!(ann.next(&BOB).unwrap(), None);
    say(&ann, &BOB, "6");
    carry(&ann, &bob);
    assert_eq!(texts(&bob, &ANN), ["6"]);
}

#[test]
fn search_finds_all_words_in_any_case_and_goes_on_where_it_stopped() {
    let talks = Talks::in_memory().unwrap();
    for n in 0..10_000 {
        say(&talks, if n % 2 == 0 { &BOB } else { &ANN }, &format!("Nachricht {n} über ÄPFEL"));
    }
    let words = ["äpfel".to_owned(), "NACHRICHT 42 ".to_owned()];
    let (mut found, mut before, mut steps) = (Vec::new(), u64::MAX, 0);
    loop {
        let some = talks.search(&words, None, before, 10).unwrap();
        found.extend(some.items);
        steps += 1;
        match some.next {
            Some(next) => before = next,
            None => break,
        }
    }
    assert_eq!(found.len(), 1);
    assert!(steps > 1, "one step looks at a bounded number");
    assert_eq!(talks.search(&words[..1], Some(&BOB), u64::MAX, 7).unwrap().items.len(), 7);
    assert!(talks.search(&["birnen".into()], Some(&BOB), 100, 7).unwrap().items.is_empty());
}

#[test]
fn a_flood_is_stopped_for_an_hour() {
    let mut allowance = Allowance::default();
    let hour = Duration::from_secs(3601);
    let batch = BATCH_BYTES_MAX as u64;
    let taken = (0..1000).filter(|_| allowance.takes_batch(batch, hour)).count() as u64;
    assert!(taken > 200 && taken < 256 && !allowance.takes_batch(batch, hour * 2 - Duration::from_secs(2)));
    assert!(allowance.takes_batch(batch, hour * 2 + Duration::from_secs(1)));
    let mut allowance = Allowance::default();
    assert_eq!((0..100).filter(|_| allowance.goes_back(hour)).count() as u64, BACKS_MAX);
}

#[test]
fn runs_of_a_friend_are_remembered_in_a_bounded_number() {
    let talks = Talks::in_memory().unwrap();
    for n in 0..EMPTY_RUNS_MAX + 50 {
        let mut id = [7; 16];
        id[..8].copy_from_slice(&n.to_le_bytes());
        let took = talks.take(&ANN, "ann", &Run { life: 1, id }, 0, &[message(1)], NOW).unwrap();
        assert_eq!(took, Took::Level { stored: 1, new: 1 });
        if n % 100 == 0 {
            while talks.delete_some(&ANN, u64::MAX).unwrap() > 0 {}
        }
    }
    assert_eq!(talks.receipts(&ANN).unwrap().len(), RECEIPTS_MAX);
    assert!(talks.run_count(&ANN) <= EMPTY_RUNS_MAX, "{}", talks.run_count(&ANN));
}

/// More runs than receipts tell of: what came after the backup comes again all the same, and nothing else.
#[test]
fn a_friend_that_goes_back_by_many_runs_gets_the_rest_again() {
    let (mut ann, mut bob) = (Talks::in_memory().unwrap(), Talks::in_memory().unwrap());
    let mut said = Vec::new();
    let mut backup = None;
    for start in 0..200 {
        if start == 100 {
            backup = Some(bob.copied().unwrap());
        }
        said.push(format!("start {start}"));
        say(&ann, &BOB, said.last().unwrap());
        carry(&ann, &bob);
        ann = ann.copied().unwrap();
    }
    bob = backup.unwrap();
    assert_eq!(texts(&bob, &ANN), said[..100]);
    assert!(ann.heard_all(&BOB, &bob.receipts(&ANN).unwrap(), true).unwrap());
    while carry(&ann, &bob) {}
    assert_eq!(texts(&bob, &ANN), said);
    // Level, and with 64 receipts: nothing is said again.
    assert!(!ann.heard_all(&BOB, &bob.receipts(&ANN).unwrap(), true).unwrap());
    assert_eq!(ann.next(&BOB).unwrap(), None);
}

/// What a hostile friend can heap up costs neither memory nor time at each look.
#[test]
fn a_hundred_thousand_unread_messages_are_looked_at_in_bounded_parts() {
    let talks = Talks::in_memory().unwrap();
    let run = Run { life: 1, id: [7; 16] };
    for base in (0..101_000).step_by(250) {
        let some: Vec<Message> = (base + 1..=base + 250).map(message).collect();
        assert!(matches!(talks.take(&ANN, "ann", &run, base, &some, NOW), Ok(Took::Level { new: 250, .. })));
    }
    let long = "x".repeat(TEXT_BYTES_MAX);
    let long: Vec<Message> =
        (0..60).map(|n| Message { text: long.clone(), ..message(101_001 + n) }).collect();
    talks.take(&ANN, "ann", &run, 101_000, &long, NOW).unwrap();
    let talk = &talks.list().unwrap()[0];
    assert_eq!(talk.unread, 100_000, "beyond this they are not counted");
    assert_eq!(talk.last.as_ref().unwrap().text, "x".repeat(256));
    let bytes = |items: &[Item]| items.iter().map(|item| item.text.len()).sum::<usize>();
    let page = talks.page(&ANN, Side::Before(u64::MAX), 500).unwrap();
    assert!(page.more && bytes(&page.items) <= (1 << 20) + TEXT_BYTES_MAX, "{}", bytes(&page.items));
    let found = talks.search(&["x".into()], None, u64::MAX, 500).unwrap();
    assert!(found.next.is_some() && bytes(&found.items) <= (1 << 20) + TEXT_BYTES_MAX);
    // Seen page by page: each step marks what it has shown.
    let mut seen = 0;
    while let Some(last) = talks.page(&ANN, Side::After(seen), 500).unwrap().items.last() {
        seen = last.id;
        assert!(talks.mark_read(&ANN, seen).unwrap() && !talks.mark_read(&ANN, seen).unwrap());
    }
    assert_eq!(talks.list().unwrap()[0].unread, 0);
}

#[test]
fn more_runs_than_a_friend_can_have_are_not_taken() {
    let talks = Talks::in_memory().unwrap();
    let run = |n: u64| {
        let mut id = [7; 16];
        id[..8].copy_from_slice(&n.to_le_bytes());
        Run { life: 1, id }
    };
    talks.pretend_runs(&ANN, RUNS_MAX - 1, |n| run(n).id);
    let take = |n| talks.take(&ANN, "ann", &run(n), 0, &[message(1)], NOW).unwrap();
    assert_eq!(take(RUNS_MAX), Took::Level { stored: 1, new: 1 });
    assert_eq!(take(RUNS_MAX + 1), Took::Full);
    assert_eq!(take(RUNS_MAX), Took::Level { stored: 1, new: 0 }, "those that are known go on");
    let more = talks.take(&ANN, "ann", &run(3), 1, &[message(2)], NOW).unwrap();
    assert_eq!(more, Took::Level { stored: 2, new: 1 });
}

#[test]
fn what_is_deleted_leaves_nothing_on_the_disk() {
    let folder = std::env::temp_dir().join(format!("grove-chat-{}", hex(&random::<8>())));
    std::fs::create_dir(&folder).unwrap();
    let talks = Talks::open(&folder.join("chat.db")).unwrap();
    let bytes = || {
        let files =
            std::fs::read_dir(&folder).unwrap().map(|file| std::fs::read(file.unwrap().path()).unwrap());
        files.collect::<Vec<_>>().concat()
    };
    let holds = |what: &str| bytes().windows(what.len()).any(|some| some == what.as_bytes());
    let secret = say(&talks, &BOB, "the secret of the soup");
    for n in 0..300 {
        say(&talks, &BOB, &format!("{n} {}", "pepper ".repeat(1000)));
    }
    say(&talks, &ANN, "this stays");
    assert!(holds("secret of the soup"));
    assert!(talks.delete(&BOB, secret).unwrap());
    talks.wipe().unwrap();
    assert!(!holds("secret of the soup") && holds("pepper") && holds("this stays"));
    let before = bytes().len();
    while talks.delete_some(&BOB, u64::MAX).unwrap() > 0 {}
    talks.wipe().unwrap();
    assert!(!holds("pepper") && holds("this stays"));
    assert!(before > 2_000_000 && bytes().len() < 200_000, "{before}, {}", bytes().len());
    drop(talks);
    std::fs::remove_dir_all(&folder).unwrap();
}

// ---- Two cells that lose, repeat and forget ----

/// SplitMix64.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % end
    }

    fn percent(&mut self, percent: u64) -> bool {
        self.roll(100) < percent
    }
}

struct Side1 {
    id: CellId,
    talks: Talks,
    backup: Option<Talks>,
    life: u32,
    /// The other side's start with which it is level.
    level: Option<[u8; 16]>,
    deleted: BTreeSet<String>,
    has_forgotten: bool,
}

/// A batch that is still on its way, for the start it names.
type Late = (usize, [u8; 16], Outgoing);

struct Pair {
    sides: [Side1; 2],
    late: Vec<Late>,
    said: u64,
    dice: Dice,
    loss: u64,
}

impl Pair {
    fn new(seed: u64) -> Self {
        let side = |id| Side1 {
            id,
            talks: Talks::in_memory().unwrap(),
            backup: None,
            life: 1,
            level: None,
            deleted: BTreeSet::new(),
            has_forgotten: false,
        };
        Self { sides: [side(ANN), side(BOB)], late: Vec::new(), said: 0, dice: Dice(seed), loss: 30 }
    }

    /// A batch comes to the other side of `from`; gives its answer, `None`: not level.
    fn arrive(&mut self, (from, start, out): &Late) -> Option<u64> {
        let (sender, to) = (self.sides[*from].id, &self.sides[1 - from].talks);
        if to.start() != *start {
            return None;
        }
        // As it goes over the wire.
        let messages = read_batch(out.base, &batch_bytes(&out.messages)).unwrap();
        match to.take(&sender, "x", &out.run, out.base, &messages, NOW).unwrap() {
            Took::Level { stored, .. } => Some(stored),
            Took::Full => panic!("it is full"),
        }
    }

    /// `at` asks the other side how far it is.
    fn exchange(&mut self, at: usize) {
        if self.dice.percent(self.loss) {
            return;
        }
        let (own, other) = (&self.sides[at], &self.sides[1 - at]);
        let mine = own.talks.receipts(&other.id).unwrap();
        if other.level == Some(own.talks.start()) {
            other.talks.heard_all(&own.id, &mine, false).unwrap();
        }
        if self.dice.percent(self.loss) {
            return;
        }
        let theirs = other.talks.receipts(&own.id).unwrap();
        own.talks.heard_all(&other.id, &theirs, true).unwrap();
        let start = other.talks.start();
        self.sides[at].level = Some(start);
    }

    fn send(&mut self, at: usize) {
        let Some(start) = self.sides[at].level else { return self.exchange(at) };
        let other = self.sides[1 - at].id;
        let Some(out) = self.sides[at].talks.next(&other).unwrap() else { return };
        let run = out.run;
        let batch = (at, start, out);
        if self.dice.percent(self.loss) {
            self.late.push(batch);
            return;
        }
        let answer = self.arrive(&batch);
        if self.dice.percent(self.loss / 2) {
            self.late.push(batch);
        }
        if self.dice.percent(self.loss) {
            return;
        }
        let is_further =
            answer.is_some_and(|stored| self.sides[at].talks.heard(&other, &run, stored).unwrap());
        if !is_further {
            self.sides[at].level = None;
        }
    }

    /// Its connections end: what is on its way comes at once or never.
    fn restart(&mut self, at: usize, talks: Talks) {
        for batch in std::mem::take(&mut self.late) {
            if self.dice.percent(50) {
                self.arrive(&batch);
            }
        }
        self.sides[at].talks = talks;
        self.sides[at].level = None;
    }

    fn step(&mut self) {
        let at = self.dice.roll(2) as usize;
        let other = self.sides[1 - at].id;
        match self.dice.roll(100) {
            0..30 => {
                self.said += 1;
                let (text, side) = (format!("{:06}", self.said), &self.sides[at]);
                side.talks.say(&other, "x", side.life, NOW, &[draft(&text)], None).unwrap().unwrap();
            }
            30..70 => self.send(at),
            70..78 => self.exchange(at),
            78..84 if !self.late.is_empty() => {
                let n = self.dice.roll(self.late.len() as u64) as usize;
                let batch = self.late.swap_remove(n);
                self.arrive(&batch);
            }
            84..89 => {
                let talks = self.sides[at].talks.copied().unwrap();
                self.restart(at, talks);
            }
            89..92 => self.sides[at].backup = Some(self.sides[at].talks.copied().unwrap()),
            92..94 => {
                if let Some(backup) = self.sides[at].backup.as_ref().map(|backup| backup.copied().unwrap()) {
                    self.restart(at, backup);
                    self.sides[at].has_forgotten = true;
                }
            }
            94 => {
                self.restart(at, Talks::in_memory().unwrap());
                self.sides[at].life += 1;
                self.sides[at].has_forgotten = true;
                self.sides[at].backup = None;
            }
            95..97 => {
                let talks = &self.sides[at].talks;
                let page = talks.page(&other, Side::After(0), 1000).unwrap();
                if !page.items.is_empty() {
                    let item = page.items[self.dice.roll(page.items.len() as u64) as usize].clone();
                    assert!(talks.delete(&other, item.id).unwrap());
                    self.sides[at].deleted.insert(item.text);
                }
            }
            _ => {
                let upto = self.dice.roll(200);
                self.sides[at].talks.mark_read(&other, upto).unwrap();
            }
        }
    }

    fn heard(&self, at: usize, is_ours: bool) -> Vec<String> {
        let page = self.sides[at].talks.page(&self.sides[1 - at].id, Side::After(0), 100_000).unwrap();
        page.items.into_iter().filter(|item| item.is_ours == is_ours).map(|item| item.text).collect()
    }

    fn settle(&mut self) {
        self.loss = 0;
        for side in &mut self.sides {
            side.level = None;
        }
        for at in [0, 1] {
            self.exchange(at);
            let other = self.sides[1 - at].id;
            for _ in 0..1000 {
                if self.sides[at].talks.next(&other).unwrap().is_none() {
                    break;
                }
                self.send(at);
            }
            assert_eq!(self.sides[at].talks.next(&other).unwrap(), None, "it comes to an end");
        }
        for batch in std::mem::take(&mut self.late) {
            self.arrive(&batch);
        }
    }

    fn check(&self) {
        for at in [0, 1] {
            // What its sender took back and a backup brought back is said anew, late.
            let taken_back = &self.sides[at].deleted;
            let mut heard = self.heard(1 - at, false);
            heard.retain(|text| !taken_back.contains(text));
            assert!(heard.windows(2).all(|two| two[0] < two[1]), "in order and once: {heard:?}");
            let heard: BTreeSet<String> = heard.into_iter().collect();
            let hearer = &self.sides[1 - at];
            for text in self.heard(at, true) {
                let is_gone = hearer.deleted.contains(&text) || taken_back.contains(&text);
                assert!(heard.contains(&text) || is_gone, "{text} is lost");
            }
            assert!(hearer.has_forgotten || heard.is_disjoint(&hearer.deleted), "deleted ones are back");
            let page = self.sides[at].talks.page(&hearer.id, Side::After(0), 100_000).unwrap();
            assert!(page.items.iter().all(|item| item.is_delivered || !item.is_ours));
        }
    }
}

#[test]
fn nothing_is_lost_shown_twice_or_out_of_order_whatever_is_lost_repeated_and_forgotten() {
    for seed in 0..150 {
        let outcome = std::panic::catch_unwind(|| {
            let mut pair = Pair::new(seed);
            for _ in 0..2 {
                (0..150).for_each(|_| pair.step());
                pair.loss = 30;
                pair.settle();
                pair.check();
            }
        });
        assert!(outcome.is_ok(), "seed {seed}");
    }
}

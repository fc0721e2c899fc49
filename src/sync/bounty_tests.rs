//! Bounty between real cells over real sessions, on clocks that tests turn.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use super::bounty::BountyView;
use super::driver::Sync;
use super::ledger::PeerBook;
use super::tests::{Cell, chunk, pair, put, rogue, run};
use crate::bounty::{FIGURE_MAX, Heard, Side, Statement, StatementBody};
use crate::card::Role;
use crate::id::CellId;
use crate::keys::{Identity, MasterKey};
use crate::wire::handshake::Approach;
use crate::wire::message::{
    self, AskError, Class, ErrorCode, Hello, PutStatus, Reply, Request, Settlement, Usage,
};
use crate::wire::session::{Session, Stream};

const HOUR: Duration = Duration::from_secs(3600);

fn known(cell: &Cell) -> Approach {
    Approach::Known { id: cell.vault.id(), x25519: *cell.vault.identity.x_public() }
}

/// Two cells, the one with the smaller id first.
fn low_and_high(settings: impl Fn(&mut crate::config::Config) + Copy) -> (Cell, Cell) {
    let (one, other) = (Cell::with(1, settings), Cell::with(2, settings));
    if one.vault.id().0 < other.vault.id().0 { (one, other) } else { (other, one) }
}

async fn view(sync: &Sync, of: &CellId) -> BountyView {
    sync.bounty().await.unwrap().into_iter().find(|view| view.id == *of).unwrap()
}

/// So many hours pass on all clocks, and each cell has its rounds in each.
async fn hours(cells: &[(&Cell, &Rc<Sync>)], count: u64) {
    for _ in 0..count {
        cells.iter().for_each(|(cell, _)| cell.clock.pass(HOUR));
        for (_, sync) in cells {
            sync.round().await;
        }
    }
}

fn book(cell: &Cell, of: &CellId) -> PeerBook {
    cell.books.bounty_book(of).unwrap()
}

fn alert(cell: &Cell, code: &str) -> Option<String> {
    cell.vault.alerts().into_iter().find(|raised| raised.code == code).map(|raised| raised.alert.text)
}

/// Both sides of each pair say the same, to the byte-hour, and their books balance.
async fn assert_level(cells: &[(&Cell, &Rc<Sync>)]) {
    for (cell, sync) in cells {
        assert_eq!(cell.books.bounty_faults().unwrap(), [""; 0]);
        for (other, others) in cells {
            if cell.vault.id() == other.vault.id() {
                continue;
            }
            let (ours, theirs) = (view(sync, &other.vault.id()).await, view(others, &cell.vault.id()).await);
            assert_eq!((ours.earned, ours.spent), (theirs.spent, theirs.earned));
            assert_eq!(ours.statement, theirs.statement);
            assert_eq!((&ours.dispute, ours.state), (&None, "ok"), "{ours:?}");
            assert!(ours.statement.is_some(), "{ours:?}");
        }
    }
}

#[test]
fn three_cells_agree_to_the_byte_hour_and_one_from_an_old_backup_agrees_again_by_itself() {
    run(|executor| async move {
        // So that each has something of each other.
        let all_copies = |seed| Cell::with(seed, |config| config.copies = 3);
        let (ann, bob, cy) = (all_copies(1), all_copies(2), all_copies(3));
        let (a, b, c) = (ann.start(&executor).await, bob.start(&executor).await, cy.start(&executor).await);
        for (one, other) in [(&a, &b), (&a, &c), (&b, &c)] {
            pair(one, other, Role::Peer).await;
        }
        let mut bytes = [0u64; 3];
        for ((at, cell), count) in [&ann, &bob, &cy].into_iter().enumerate().zip([30, 20, 10]) {
            cell.add_chunks(count, 40_000);
            cell.publish("one");
            bytes[at] = cell.vault.db.read(|t| t.own_totals(2)).unwrap().bytes;
        }
        let cells = [(&ann, &a), (&bob, &b), (&cy, &c)];
        hours(&cells, 24 * 3 + 1).await;
        assert_level(&cells).await;
        // What was counted in all is what was stored, but for the steps in which it is looked at.
        for (at, (_, sync)) in cells.iter().enumerate() {
            let spent: u64 = sync.bounty().await.unwrap().iter().map(|view| view.spent).sum();
            let wanted = bytes[at] * 2 * 72;
            assert!(spent <= wanted && spent * 100 >= wanted * 92, "{spent} of {wanted}");
            let days = sync.bounty_days(None).await.unwrap();
            assert_eq!(days.iter().map(|day| day.2).sum::<u64>(), spent);
            assert!(days.len() >= 3, "{days:?}");
        }

        // A copy of the whole disk is kept, and the cell goes on for days.
        let backup = bob.copied(2);
        let backed_up_at = view(&b, &ann.vault.id()).await.statement.unwrap();
        hours(&cells, 24 * 3).await;
        assert_level(&cells).await;
        let before = view(&a, &bob.vault.id()).await;
        assert!(before.statement.unwrap().0 > backed_up_at.0);
        b.stop().await;
        let wall = crate::clock::Clock::wall(&*ann.clock);
        backup.clock.set_wall(wall, true);
        let b = backup.start(&executor).await;
        b.wait_connected(Duration::from_secs(60)).await;
        a.wait_connected(Duration::from_secs(60)).await;
        c.wait_connected(Duration::from_secs(60)).await;
        let cells = [(&ann, &a), (&backup, &b), (&cy, &c)];
        hours(&cells, 26).await;
        assert_level(&cells).await;
        let after = view(&a, &backup.vault.id()).await;
        assert!(after.earned >= before.earned && after.spent > before.spent, "{before:?} {after:?}");
        assert!(after.statement.unwrap().0 > before.statement.unwrap().0);
    });
}

#[test]
fn a_quiet_hour_costs_no_message_and_a_day_one_exchange() {
    run(|executor| async move {
        let (ann, bob) = low_and_high(|_| {});
        let (a, b) = (ann.start(&executor).await, bob.start(&executor).await);
        pair(&a, &b, Role::Peer).await;
        ann.add_chunks(3, 40_000);
        let cells = [(&ann, &a), (&bob, &b)];
        hours(&cells, 1).await;
        let seq = |view: BountyView| view.statement.map_or(0, |(seq, _)| seq);
        let first = seq(view(&a, &bob.vault.id()).await);
        hours(&cells, 23).await;
        assert!(seq(view(&a, &bob.vault.id()).await) <= first + 1);
        hours(&cells, 24).await;
        let later = seq(view(&a, &bob.vault.id()).await);
        assert!((first + 1..=first + 2).contains(&later), "{first} {later}");
        assert_level(&cells).await;
    });
}

#[test]
fn copies_found_lost_take_back_what_was_counted_since_their_last_proof() {
    run(|executor| async move {
        let (ann, bob) = low_and_high(|_| {});
        let (a, b) = (ann.start(&executor).await, bob.start(&executor).await);
        pair(&a, &b, Role::Peer).await;
        let names = ann.add_chunks(20, 40_000);
        let cells = [(&ann, &a), (&bob, &b)];
        hours(&cells, 24 * 4).await;
        let before = view(&a, &bob.vault.id()).await;
        assert!(before.spent > 0 && before.forfeited == 0, "{before:?}");
        for name in &names {
            assert!(bob.store.lose(*name));
        }
        a.prove_all(&|_, _| {}).await.unwrap();
        hours(&cells, 1).await;
        let after = view(&a, &bob.vault.id()).await;
        // They were proven on the first day, and all the time since counts for nothing.
        let bytes = ann.vault.db.read(|t| t.own_totals(2)).unwrap().bytes;
        assert!(after.forfeited >= bytes * 72 && after.forfeited <= bytes * 121, "{after:?} {bytes}");
        assert_eq!(after.proofs_failed, 20);
        hours(&cells, 24).await;
        let later = view(&a, &bob.vault.id()).await;
        let earned = before.spent + before.unsigned;
        assert!(later.spent <= earned + bytes, "nothing is earned until that is made good: {later:?}");
        // The holder knows better, and both see both figures and why.
        let theirs = view(&b, &ann.vault.id()).await;
        let dispute = theirs.dispute.expect("it is told");
        assert_eq!((dispute.cause, dispute.is_our_storage, theirs.state), ("proofs", true, "disputed"));
        assert!(dispute.ours > dispute.theirs);
        assert!(alert(&bob, "bounty-dispute").unwrap().contains("not proven, or were found lost"));
        let ours = view(&a, &bob.vault.id()).await.dispute.expect("it is heard of");
        assert!(!ours.is_our_storage && ours.theirs > ours.ours, "{ours:?}");
        // Growth is frozen here, what is stored stays; and the holder's user can take the figure.
        let held = bob.held_for(&ann).bytes;
        ann.add_chunks(1, 40_000);
        hours(&cells, 2).await;
        assert_eq!(bob.held_for(&ann).bytes, held);
        b.accept_figure(&ann.vault.id()).await.unwrap();
        hours(&cells, 2).await;
        let theirs = view(&b, &ann.vault.id()).await;
        assert_eq!((theirs.dispute, theirs.state), (None, "ok"));
        assert!(bob.held_for(&ann).bytes > held);
        assert!(alert(&bob, "bounty-dispute").is_none());
        hours(&cells, 25).await;
        assert_level(&cells).await;
    });
}

#[test]
fn a_peer_is_held_to_its_allowance_and_what_it_has_stays() {
    run(|executor| async move {
        let settings = |config: &mut crate::config::Config| {
            config.bounty_base_bytes = 400_000;
        };
        let (greedy, bob) = low_and_high(settings);
        let (g, b) = (greedy.start(&executor).await, bob.start(&executor).await);
        pair(&g, &b, Role::Peer).await;
        greedy.add_chunks(40, 39_000);
        greedy.publish("one");
        g.round().await;
        let at = |held: u64, most: u64| assert!(held <= most && held + 60_000 > most, "{held} of {most}");
        let cells = [(&greedy, &g), (&bob, &b)];
        hours(&cells, 3).await;
        assert_eq!(view(&b, &greedy.vault.id()).await.state, "ok");
        at(bob.held_for(&greedy).bytes, 400_000);
        let views = g.bounty().await.unwrap();
        let advice = g.bounty_advice(&views);
        assert!(advice.len() == 1 && advice[0].contains("nearly used up"), "{advice:?}");
        // What it stores for bob adds to it.
        bob.add_chunks(10, 39_000);
        hours(&cells, 4).await;
        assert!(bob.held_for(&greedy).bytes > 700_000, "{}", bob.held_for(&greedy).bytes);
        // Less than it has: nothing goes.
        let held = bob.held_for(&greedy).bytes;
        b.set_quota(&greedy.vault.id(), Some(1)).await.unwrap();
        hours(&cells, 30).await;
        assert_eq!(bob.held_for(&greedy).bytes, held);
        b.set_quota(&greedy.vault.id(), Some(0)).await.unwrap();
        hours(&cells, 2).await;
        assert_eq!(bob.held_for(&greedy).chunks, 40);
    });
}

#[test]
fn a_new_peer_has_little_until_its_first_proof_and_one_that_failed_nothing_until_it_passes() {
    run(|executor| async move {
        let settings = |config: &mut crate::config::Config| config.bounty_vetting_bytes = 100_000;
        let (eve, bob) = low_and_high(settings);
        let (e, b) = (eve.start(&executor).await, bob.start(&executor).await);
        pair(&e, &b, Role::Peer).await;
        e.stop().await;
        let session = rogue(&executor, &eve, &b, known(&bob)).await.unwrap();
        b.set_proofs_for_tests(&eve.vault.id(), 0, 0);
        let chunks: Vec<_> = (0..5).map(|seed| chunk(seed, 30_000)).collect();
        let statuses = put(&session, Class::Chunk, &chunks).await;
        let (stored, over) = (PutStatus::Stored, PutStatus::OverQuota);
        assert_eq!(statuses, [stored, stored, stored, over, over]);
        assert_eq!(view(&b, &eve.vault.id()).await.state, "vetting");
        b.set_proofs_for_tests(&eve.vault.id(), 1, 0);
        assert_eq!(put(&session, Class::Chunk, &chunks[3..4]).await, [stored]);
        // It proves nothing since it has failed: no growth, and nothing that is there goes.
        b.set_proofs_for_tests(&eve.vault.id(), 1, 2);
        assert_eq!(put(&session, Class::Chunk, &chunks[3..]).await, [over, over]);
        assert_eq!((view(&b, &eve.vault.id()).await.state, bob.held_for(&eve).chunks), ("suspended", 4));
        // Away for a month, it is what it was; one proof more, and it is as before.
        bob.clock.pass(720 * HOUR);
        assert_eq!(view(&b, &eve.vault.id()).await.state, "suspended");
        b.set_proofs_for_tests(&eve.vault.id(), 3, 2);
        assert_eq!(put(&session, Class::Chunk, &chunks[4..]).await, [stored]);
        assert_eq!(view(&b, &eve.vault.id()).await.state, "ok");
    });
}

#[test]
fn friends_and_favorites_are_neither_vetted_nor_limited() {
    run(|executor| async move {
        let settings = |config: &mut crate::config::Config| {
            (config.bounty_base_bytes, config.bounty_vetting_bytes) = (1000, 1000);
        };
        let (ann, bob) = low_and_high(settings);
        let (a, b) = (ann.start(&executor).await, bob.start(&executor).await);
        pair(&a, &b, Role::Friend).await;
        ann.add_chunks(20, 39_000);
        a.round().await;
        assert_eq!(bob.held_for(&ann).chunks, 20);
        b.set_friend(&ann.vault.id(), false).await.unwrap();
        ann.add_chunks(1, 39_000);
        a.round().await;
        assert_eq!(bob.held_for(&ann).chunks, 20);
        b.set_favorite(&ann.vault.id(), true).await.unwrap();
        a.round().await;
        assert_eq!(bob.held_for(&ann).chunks, 21);
    });
}

/// The same bytes of two owners are kept once and billed to both; of one owner they are billed once. Who releases a copy of
/// another's chunk releases nothing of the other's.
#[test]
fn a_copy_of_anothers_chunk_is_billed_to_each_once_and_releasing_it_takes_nothing_from_the_other() {
    run(|executor| async move {
        let (ann, bob, eve) = (Cell::new(1), Cell::new(2), Cell::new(3));
        let (a, b, e) = (ann.start(&executor).await, bob.start(&executor).await, eve.start(&executor).await);
        pair(&a, &b, Role::Peer).await;
        let (_, invite) = b.invite(Role::Peer, 3600).await.unwrap();
        e.join(&invite.to_string()).await.unwrap();
        let names = ann.add_chunks(1, 40_000);
        hours(&[(&ann, &a), (&bob, &b)], 2).await;
        let bytes = bob.held_for(&ann).bytes;
        let sealed = ann.vault.local_chunk(&names[0]).unwrap().unwrap();
        e.stop().await;
        let session = rogue(&executor, &eve, &b, known(&bob)).await.unwrap();
        let copy = (names[0], sealed);
        assert_eq!(put(&session, Class::Chunk, &[copy.clone(), copy.clone()]).await[0], PutStatus::Stored);
        assert_eq!(put(&session, Class::Chunk, std::slice::from_ref(&copy)).await, [PutStatus::Already]);
        assert_eq!((bob.held_for(&eve).bytes, bob.held_for(&ann).bytes), (bytes, bytes));
        let release = Request::Release { names: vec![names[0]] };
        assert_eq!(message::ask(&session, &release).await.unwrap(), Reply::Release { count: 1 });
        assert_eq!(message::ask(&session, &release).await.unwrap(), Reply::Release { count: 0 });
        assert_eq!((bob.held_for(&eve).bytes, bob.held_for(&ann).bytes), (0, bytes));
        let views = a.prove_all(&|_, _| {}).await.unwrap();
        assert_eq!((views[0].proved.proven, views[0].proved.lost()), (1, 0));
        session.close();
        for _ in 0..25 {
            ann.clock.pass(HOUR);
            bob.clock.pass(HOUR);
            a.round().await;
        }
        let view = view(&a, &bob.vault.id()).await;
        assert!(view.spent + view.unsigned <= bytes * 27 && view.spent > 0, "{view:?}");
    });
}

fn unheard(cell: &Cell, measured: u64) -> Heard {
    let unix_s = crate::clock::Clock::wall(&*cell.clock) as u64;
    Heard { life: 1, measured, unix_s, ..Heard::default() }
}

async fn told(session: &Session, heard: Heard, newest: &[u8], proposal: &[u8]) -> Settlement {
    let told = Settlement { heard, wants: true, newest: newest.to_vec(), proposal: proposal.to_vec() };
    match message::ask(session, &Request::Settle(told)).await.unwrap() {
        Reply::Settle(answer) => answer,
        other => panic!("{other:?}"),
    }
}

fn changed(statement: &Statement, by: &[&Identity], change: impl FnOnce(&mut StatementBody)) -> Vec<u8> {
    let mut body = statement.body().clone();
    change(&mut body);
    let mut signed: Option<Statement> = None;
    for identity in by {
        signed = Some(match signed {
            None => Statement::sign(identity, body.clone()).unwrap(),
            Some(half) => half.signed_by(identity).unwrap(),
        });
    }
    signed.unwrap().to_bytes()
}

/// A cell with the smaller id that shows what it likes to one that proposes.
#[test]
fn what_a_cheat_with_the_smaller_id_shows_is_refused_or_kept_as_evidence_and_never_counted() {
    run(|executor| async move {
        let (eve, bob) = low_and_high(|_| {});
        let (e, b) = (eve.start(&executor).await, bob.start(&executor).await);
        pair(&e, &b, Role::Peer).await;
        eve.add_chunks(10, 40_000);
        bob.add_chunks(10, 40_000);
        let cells = [(&eve, &e), (&bob, &b)];
        hours(&cells, 73).await;
        assert_level(&cells).await;
        let (eve_id, bob_id) = (eve.vault.id(), bob.vault.id());
        let newest = book(&bob, &eve_id).newest.unwrap();
        let figures = |cell: &Cell, of: &CellId| {
            cell.books.balances().unwrap().into_iter().find(|(id, _)| id == of).unwrap().1
        };
        let before = figures(&bob, &eve_id);
        e.stop().await;
        let session = rogue(&executor, &eve, &b, known(&bob)).await.unwrap();
        let honest = unheard(&eve, book(&eve, &bob_id).counts.measured());
        let stranger = MasterKey::from_bytes([77; 32]).identity(0, 0);
        let own = &eve.vault.identity;

        // Each byte, and each length, of what both have signed.
        let good = newest.to_bytes();
        for at in (0..good.len()).step_by(37) {
            let mut wrong = good.clone();
            wrong[at] ^= 1;
            told(&session, honest, &wrong, &[]).await;
        }
        // Signed by her alone, by her and a stranger, and for another pair.
        let alone = changed(&newest, &[own], |body| {
            body.seq += 1;
            body.stored[0] = FIGURE_MAX;
        });
        told(&session, honest, &alone, &[]).await;
        let mut twice_hers = alone[..alone.len() - 65].to_vec();
        twice_hers.push(3);
        twice_hers.extend_from_slice(&alone[alone.len() - 64..]);
        twice_hers.extend_from_slice(&alone[alone.len() - 64..]);
        told(&session, honest, &twice_hers, &[]).await;
        let others = {
            let mut pair = [own, &stranger];
            pair.sort_by_key(|identity| identity.id());
            let body = StatementBody {
                cells: [pair[0].id(), pair[1].id()],
                seq: newest.seq + 9,
                stored: [FIGURE_MAX, 0],
                ..newest.body().clone()
            };
            Statement::sign(pair[0], body).unwrap().signed_by(pair[1]).unwrap().to_bytes()
        };
        told(&session, honest, &others, &[]).await;
        // Replayed, and as a proposal to a cell that proposes itself.
        for _ in 0..3 {
            told(&session, honest, &good, &alone).await;
        }
        assert_eq!(figures(&bob, &eve_id), before);
        assert_eq!(book(&bob, &eve_id).newest.as_ref(), Some(&newest));
        assert!(!book(&bob, &eve_id).is_forked, "he has signed one statement of each number");

        // Older books: a second life that owes less. She is given what she has signed, and nothing is proposed.
        let older = Heard { measured: newest.stored_by(Side::High) / 2, ..honest };
        for life in [1, 2] {
            let answer = told(&session, Heard { life, ..older }, &[], &[]).await;
            assert_eq!((answer.newest, answer.proposal), (good.clone(), vec![]));
            assert!(answer.heard.disagrees);
        }
        let seen = view(&b, &eve_id).await;
        assert_eq!((seen.dispute.unwrap().cause, seen.state), ("older_books", "disputed"));
        assert_eq!(figures(&bob, &eve_id), before);
        // No word of the user's brings a figure below what both have signed.
        let refused = b.accept_figure(&eve_id).await.unwrap_err().to_string();
        assert!(refused.contains("less than it has signed itself"), "{refused}");
        assert_eq!(view(&b, &eve_id).await.state, "disputed");
        // Once she goes on from there, all is well again.
        let answer = told(&session, honest, &good, &[]).await;
        assert!(!answer.heard.disagrees);
        assert_eq!(view(&b, &eve_id).await.state, "ok");
        let refused = b.accept_figure(&eve_id).await.unwrap_err().to_string();
        assert!(refused.contains("nothing to take"), "{refused}");
        // And he has used no number twice, however often he was asked.
        let mut numbers = Vec::new();
        for more in 1..4 {
            bob.clock.pass(HOUR);
            eve.clock.pass(HOUR);
            let answer =
                told(&session, Heard { measured: honest.measured + more * 1_000_000, ..honest }, &good, &[])
                    .await;
            numbers.extend(Statement::from_bytes(&answer.proposal).map(|statement| statement.seq));
        }
        assert_eq!(numbers.len(), 3);
        assert!(numbers.windows(2).all(|pair| pair[0] < pair[1]) && numbers[0] > newest.seq, "{numbers:?}");
        // Nobody asks without end.
        let mut refused = None;
        for _ in 0..60 {
            let ask = Settlement { heard: honest, wants: true, newest: vec![], proposal: vec![] };
            if let Err(why) = message::ask(&session, &Request::Settle(ask)).await {
                refused = Some(why);
                break;
            }
        }
        assert!(matches!(refused, Some(AskError::Refused(why)) if why.code == ErrorCode::Busy));
    });
}

/// What a cheat with the larger id answers, by turns.
type Answer = Box<dyn Fn(&Settlement) -> Settlement>;
type Script = RefCell<Vec<Answer>>;

/// A peer that answers honestly to nothing.
struct Cheat {
    script: Script,
    heard: RefCell<Vec<Settlement>>,
}

impl Cheat {
    async fn serve(self: Rc<Self>, session: Session) {
        while let Some(mut stream) = session.accept().await {
            let _ = self.answer(&mut stream).await;
        }
    }

    async fn answer(&self, stream: &mut Stream) -> Result<(), AskError> {
        let reply = match message::read_request(stream).await? {
            Request::Hello(_) => Reply::Hello(Hello {
                protocol: message::PROTOCOL,
                epoch: 5,
                tips: vec![],
                holdings_seq: 0,
                // It takes nothing: only its figures are of interest.
                usage: Usage { used: 0, quota: 1, free: 1 },
                unix_time: 1_800_000_000,
                card: vec![],
                version: "0".into(),
            }),
            Request::Inventory { .. } => Reply::Inventory { epoch: 5, entries: vec![], more: false },
            Request::PutHead { len } => {
                message::read_body(stream, len as usize, &mut Vec::new()).await?;
                Reply::PutHead(message::HeadOutcome::Stored)
            }
            Request::Have { names } => Reply::Have { held: vec![true; names.len()] },
            Request::Settle(told) => {
                let mut script = self.script.borrow_mut();
                let answer = if script.len() > 1 { script.remove(0)(&told) } else { script[0](&told) };
                self.heard.borrow_mut().push(told);
                Reply::Settle(answer)
            }
            Request::Ping => Reply::Pong,
            Request::Observe => Reply::Observe { ip: String::new() },
            Request::TakenBack => return message::answer_taken_back(stream, &[]).await,
            _ => Reply::Done,
        };
        message::write_reply(stream, &reply).await?;
        Ok(message::finish(stream).await?)
    }
}

#[test]
fn what_a_cheat_with_the_larger_id_proposes_is_refused_or_kept_as_evidence_and_never_counted() {
    run(|executor| async move {
        let (ann, eve) = low_and_high(|_| {});
        let (a, e) = (ann.start(&executor).await, eve.start(&executor).await);
        pair(&a, &e, Role::Peer).await;
        ann.add_chunks(10, 40_000);
        eve.add_chunks(10, 40_000);
        let cells = [(&ann, &a), (&eve, &e)];
        hours(&cells, 73).await;
        assert_level(&cells).await;
        let (ann_id, eve_id) = (ann.vault.id(), eve.vault.id());
        let newest = book(&ann, &eve_id).newest.unwrap();
        let before = ann.books.balances().unwrap();
        e.stop().await;
        while a.link(&eve_id).is_some() {
            smol::Timer::after(Duration::from_millis(2)).await;
        }

        let key = MasterKey::from_bytes([if eve_id == Cell::new(2).vault.id() { 2 } else { 1 }; 32]);
        let key = Rc::new(key.identity(0, 0));
        assert_eq!(key.id(), eve_id);
        let stranger = Rc::new(MasterKey::from_bytes([77; 32]).identity(0, 0));
        let measured = book(&eve, &ann_id).counts.measured() + 10_000_000;
        let heard = unheard(&ann, measured);
        let good = newest.to_bytes();
        // A right one would be this.
        let next = StatementBody {
            seq: newest.seq + 1,
            previous: newest.hash(),
            from: newest.until,
            until: newest.until + 60,
            stored: [measured, newest.stored_by(Side::High)],
            ..newest.body().clone()
        };
        let wrong: Vec<(&str, StatementBody)> = vec![
            ("replayed", StatementBody { seq: newest.seq - 1, ..next.clone() }),
            ("reordered", StatementBody { previous: [9; 32], ..next.clone() }),
            ("backdated", StatementBody { from: next.from - 86_400, ..next.clone() }),
            ("ahead", StatementBody { until: next.until + 40 * 86_400, ..next.clone() }),
            ("an older life", StatementBody { lives: [2, 1], ..next.clone() }),
            (
                "her debt lower",
                StatementBody { stored: [newest.stored_by(Side::Low) - 1, next.stored[1]], ..next.clone() },
            ),
            ("our debt higher", StatementBody { stored: [measured, FIGURE_MAX], ..next.clone() }),
            ("our debt lower", StatementBody { stored: [measured, next.stored[1] - 1], ..next.clone() }),
        ];
        let mut script: Vec<Answer> = Vec::new();
        let answer = move |newest: Vec<u8>, proposal: Vec<u8>| -> Answer {
            Box::new(move |_| Settlement {
                heard,
                wants: false,
                newest: newest.clone(),
                proposal: proposal.clone(),
            })
        };
        for (_, body) in &wrong {
            let proposal = Statement::sign(&key, body.clone()).unwrap().to_bytes();
            script.push(answer(good.clone(), proposal));
        }
        // By nobody, by a stranger in her name, and bytes that are none.
        let signed = Statement::sign(&key, next.clone()).unwrap().to_bytes();
        let mut by_another = signed.clone();
        let len = by_another.len();
        by_another[len - 64..].copy_from_slice(&stranger.sign(&signed[..len - 65]));
        script.push(answer(good.clone(), by_another));
        script.push(answer(vec![7; 300], vec![8; 300]));
        let turns = script.len();
        script.push(answer(good.clone(), vec![]));
        let session = rogue(&executor, &eve, &a, known(&ann)).await.unwrap();
        let cheat = Rc::new(Cheat { script: RefCell::new(script), heard: RefCell::default() });
        executor.spawn(Rc::clone(&cheat).serve(session)).detach();
        a.wait_connected(Duration::from_secs(60)).await;
        ann.clock.pass(24 * HOUR);
        for turn in 0..turns {
            // Another exchange is due after an hour where something was refused.
            ann.clock.pass(HOUR + Duration::from_secs(60));
            a.round().await;
            let tried = wrong.get(turn).map_or("signatures", |(what, _)| what);
            assert_eq!(book(&ann, &eve_id).newest.as_ref(), Some(&newest), "{tried}");
            assert_eq!(ann.books.balances().unwrap(), before, "{tried}");
            assert!(!book(&ann, &eve_id).is_forked, "{tried}");
        }
        let asked = cheat.heard.borrow().len();
        assert!(asked >= turns, "{asked} of {turns}");

        // Two statements of one number: the second is kept beside the first, shown, and stops growth.
        let fork = StatementBody { seq: newest.seq, stored: [FIGURE_MAX, 0], ..next.clone() };
        let fork = Statement::sign(&key, fork).unwrap().to_bytes();
        *cheat.script.borrow_mut() = vec![answer(good.clone(), fork.clone())];
        ann.clock.pass(25 * HOUR);
        a.round().await;
        let evidence = ann.books.evidence(&eve_id).unwrap();
        assert_eq!((evidence.len(), evidence[0].seq), (1, newest.seq));
        assert_eq!((&evidence[0].one, &evidence[0].other), (&good, &fork));
        let seen = view(&a, &eve_id).await;
        assert_eq!((seen.forks.as_slice(), seen.state), (&[newest.seq][..], "disputed"));
        assert_eq!(seen.dispute.unwrap().cause, "two_statements");
        assert!(alert(&ann, "bounty-dispute").unwrap().contains("two statements"));
        assert_eq!(ann.books.balances().unwrap(), before);

        // The right one is signed, once that is passed over, and posted once however often it comes.
        a.accept_figure(&eve_id).await.unwrap();
        assert_eq!(ann.books.evidence(&eve_id).unwrap().len(), 1, "it is kept");
        *cheat.script.borrow_mut() = vec![answer(good.clone(), signed.clone())];
        ann.clock.pass(25 * HOUR);
        a.round().await;
        let taken = book(&ann, &eve_id).newest.unwrap();
        assert_eq!((taken.seq, taken.is_whole()), (next.seq, true));
        let posted = ann.books.balances().unwrap();
        for _ in 0..2 {
            ann.clock.pass(25 * HOUR);
            a.round().await;
        }
        assert_eq!(ann.books.balances().unwrap(), posted);
        assert_eq!(ann.books.bounty_faults().unwrap(), [""; 0]);
    });
}

/// Its books are gone: what it has signed comes back from the catalog, and from its peers.
#[test]
fn a_cell_without_books_takes_up_what_it_has_signed() {
    run(|executor| async move {
        let (ann, bob) = low_and_high(|_| {});
        let (a, b) = (ann.start(&executor).await, bob.start(&executor).await);
        pair(&a, &b, Role::Peer).await;
        ann.add_chunks(10, 40_000);
        bob.add_chunks(10, 40_000);
        hours(&[(&ann, &a), (&bob, &b)], 49).await;
        assert_level(&[(&ann, &a), (&bob, &b)]).await;
        let before = view(&a, &bob.vault.id()).await;
        let key = crate::catalog::record_key(crate::catalog::RecordKind::StatementHead, &ann.vault.id().0);
        let record = bob.vault.db.read(|t| t.record(&key)).unwrap().expect("it is in the catalog");
        assert_eq!(record, book(&bob, &ann.vault.id()).newest.unwrap().to_bytes());
        b.stop().await;

        let seed = if bob.vault.id() == Cell::new(2).vault.id() { 2 } else { 1 };
        let from_catalog = Cell::new(seed);
        from_catalog.vault.db.change(|t| t.put_record(&key, &record)).unwrap();
        from_catalog.books.restore_statements(&from_catalog.vault, 10).unwrap();
        let found = book(&from_catalog, &ann.vault.id());
        assert_eq!(found.newest.unwrap().to_bytes(), record);
        assert_eq!(from_catalog.books.balances().unwrap().len(), 1);
        // Neither another cell's statement nor one that only one has signed comes in that way.
        let eve = Cell::new(9);
        eve.vault.db.change(|t| t.put_record(&key, &record)).unwrap();
        eve.books.restore_statements(&eve.vault, 10).unwrap();
        assert_eq!(book(&eve, &ann.vault.id()).newest, None);

        let again = Cell::new(seed);
        again.clock.set_wall(crate::clock::Clock::wall(&*ann.clock), true);
        let c = again.start(&executor).await;
        pair(&a, &c, Role::Peer).await;
        hours(&[(&ann, &a), (&again, &c)], 2).await;
        let (ours, theirs) = (view(&a, &again.vault.id()).await, view(&c, &ann.vault.id()).await);
        assert_eq!((ours.earned, ours.spent), (theirs.spent, theirs.earned));
        assert_eq!(ours.statement, theirs.statement);
        assert!(ours.statement >= before.statement && ours.earned >= before.earned);
        assert!(book(&again, &ann.vault.id()).counts.measured() >= before.earned);
        assert_eq!(again.books.bounty_faults().unwrap(), [""; 0]);
    });
}

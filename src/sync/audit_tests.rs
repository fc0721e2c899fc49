//! Proofs between real sessions: holders that lost, holders that lie, and those who would learn more than is theirs.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use super::driver::Sync;
use super::tests::{Cell, Executor, chunk, pair, put, rogue, run};
use crate::card::Role;
use crate::id::{CellId, ChunkName};
use crate::placement::{ChunkId, CopyState, DbError, HoldClass, HoldState};
use crate::proof::{self, Challenge, Parties};
use crate::store::ChunkStore;
use crate::wire::handshake::Approach;
use crate::wire::message::{
    self, AskError, AuditStatus, Class, GetStatus, Hello, PutStatus, Reply, Request, Usage,
};
use crate::wire::session::{Session, Stream};

const HOUR: Duration = Duration::from_secs(3601);

fn known(cell: &Cell) -> Approach {
    Approach::Known { id: cell.vault.id(), x25519: *cell.vault.identity.x_public() }
}

fn row(cell: &Cell, name: &ChunkName) -> ChunkId {
    cell.vault.db.read(|t| t.chunk(name)).unwrap().unwrap().id
}

fn row_in(t: &crate::placement::Tables<'_>, name: &ChunkName) -> ChunkId {
    t.chunk(name).unwrap().unwrap().id
}

fn copy(of: &Cell, with: &CellId, name: &ChunkName) -> Option<crate::placement::Copy> {
    let id = row(of, name);
    of.vault.db.change(|t| t.copy(id, t.cell(with)?)).unwrap()
}

fn alert(cell: &Cell, code: &str) -> Option<String> {
    cell.vault.alerts().into_iter().find(|raised| raised.code == code).map(|raised| raised.alert.text)
}

async fn audited(session: &Session, asks: &[(ChunkName, Challenge)]) -> Vec<(AuditStatus, Vec<u8>)> {
    let mut auditing = message::audit(session, [3; 32], asks.to_vec()).await.unwrap();
    let mut answers = Vec::new();
    while let Some(answer) = auditing.next().await.unwrap() {
        answers.push(answer);
    }
    answers
}

#[test]
fn what_a_holder_has_lost_is_found_told_and_given_again() {
    run(|executor| async move {
        let (ann, bob) = (Cell::new(1), Cell::new(2));
        let (a, b) = (ann.start(&executor).await, bob.start(&executor).await);
        pair(&a, &b, Role::Peer).await;
        let mut names = ann.add_chunks(50, 3000);
        names.extend(ann.add_chunks(3, 300_000));
        ann.publish("one");
        ann.clock.pass(HOUR);
        a.round().await;
        a.prove_all(&|_, _| {}).await.unwrap();
        let proved = a.proofs().remove(0).proved;
        assert!(proved.proven >= 53 && proved.lost() == 0, "{proved:?}");
        assert!(names.iter().all(|name| copy(&ann, &bob.vault.id(), name).unwrap().proven > 0));

        assert!(bob.store.flip_byte(names[0]) && bob.store.flip_byte(names[51]));
        assert!(bob.store.truncate(names[1]) && bob.store.lose(names[2]));
        let views = a.prove_all(&|_, _| {}).await.unwrap();
        assert_eq!((views[0].proved.proven, views[0].proved.damaged), (49, 4), "{views:?}");
        assert!(alert(&ann, "peer-lost").unwrap().contains("has lost 4 chunks"), "{:?}", ann.vault.alerts());
        assert!(alert(&bob, "damaged-held").unwrap().starts_with("4 chunks"));
        assert!(alert(&bob, "damaged").is_none() && !a.is_suspended(&bob.vault.id()));
        assert_eq!(bob.held_for(&ann).chunks, 49, "what is lost is not billed");
        let report = a.round().await;
        assert_eq!((report.peers[0].why.as_str(), report.waiting_chunks), ("", 0));
        assert_eq!((bob.held_for(&ann).chunks, ann.copies_with(&bob)), (53, 53));
        let views = a.prove_all(&|_, _| {}).await.unwrap();
        assert_eq!((views[0].proved.proven, views[0].proved.lost()), (53, 0));
    });
}

#[test]
fn what_a_holder_finds_damaged_by_itself_its_owner_learns_with_the_next_round() {
    run(|executor| async move {
        let (ann, bob) = (Cell::new(1), Cell::new(2));
        let (a, b) = (ann.start(&executor).await, bob.start(&executor).await);
        pair(&a, &b, Role::Peer).await;
        let names = ann.add_chunks(20, 3000);
        ann.publish("one");
        let segment = ann.vault.db.read(|t| t.segments()).unwrap()[0].1;
        a.set_quota(&bob.vault.id(), None).await.unwrap();
        a.round().await;
        // No byte more than what is held: what was lost must still come back.
        let held = bob.held_for(&ann).bytes;
        b.set_quota(&ann.vault.id(), Some(held)).await.unwrap();
        for name in [names[3], segment] {
            assert!(bob.store.flip_byte(name));
            assert!(bob.vault.local_chunk(&name).unwrap().is_none());
        }
        let report = a.round().await;
        assert_eq!(report.peers[0].pushed_chunks, 2, "{report:?}");
        assert!(bob.vault.local_chunk(&names[3]).unwrap().is_some());
        assert!(bob.vault.local_chunk(&segment).unwrap().is_some(), "parts of the catalog too");
        assert_eq!(bob.held_for(&ann).bytes, held);
    });
}

#[test]
fn parts_of_the_catalog_are_proven_too_and_given_again_to_a_peer_that_only_says_it_has_them() {
    run(|executor| async move {
        let (ann, bob) = (Cell::new(1), Cell::new(2));
        let (a, b) = (ann.start(&executor).await, bob.start(&executor).await);
        pair(&a, &b, Role::Peer).await;
        for name in ["one", "two", "three"] {
            ann.add_folder(name);
            ann.publish(name);
            a.round().await;
        }
        let segments = ann.vault.db.read(|t| t.segments()).unwrap();
        let (rotten, forgotten) = (segments[0].1, segments.last().unwrap().1);
        assert_ne!(rotten, forgotten);
        assert!(bob.store.flip_byte(rotten));
        let owner = ann.vault.id();
        let forget = |t: &crate::placement::Tables<'_>| -> Result<(), DbError> {
            let (chunk, cell) = (t.chunk(&forgotten)?.unwrap().id, t.cell(&owner)?);
            t.put_hold(chunk, cell, HoldClass::Segment, HoldState::Gone, 0)
        };
        bob.vault.db.change(forget).unwrap();
        // It still says that it has the newest head, and that is believed for no longer than it takes to ask for all.
        let is_whole = || {
            let state = bob.vault.db.change(|t| t.hold(row_in(t, &forgotten), t.cell(&owner)?)).unwrap();
            bob.store.has_sound(rotten) && state.is_some_and(|(_, state)| state == HoldState::Held)
        };
        assert!(!is_whole());
        for _ in 0..200 {
            ann.clock.pass(HOUR);
            a.round().await;
            a.round().await;
            if is_whole() {
                break;
            }
        }
        assert!(is_whole());
        assert!(a.proofs()[0].proved.lost() > 0, "{:?}", a.proofs());
        drop(b);
    });
}

#[test]
fn freed_chunks_are_proven_by_leaves_and_those_without_a_root_are_fetched_once() {
    run(|executor| async move {
        let (ann, bob) = (Cell::new(1), Cell::new(2));
        let (a, b) = (ann.start(&executor).await, bob.start(&executor).await);
        pair(&a, &b, Role::Peer).await;
        let names = ann.add_chunks(4, 300_000);
        a.round().await;
        for name in &names {
            let sealed = ann.vault.local_chunk(name).unwrap().unwrap();
            let row = ann.vault.db.read(|t| t.chunk(name)).unwrap().unwrap();
            ann.vault
                .db
                .change(|t| -> Result<(), DbError> {
                    if *name != names[0] {
                        t.set_root(row.id, &proof::root(&sealed))?;
                    }
                    t.move_chunk(row.id, None)
                })
                .unwrap();
            ann.store.remove(*name, row.place.unwrap()).unwrap();
        }
        let before = a.traffic(&bob.vault.id()).unwrap().0;
        let first = a.prove_all(&|_, _| {}).await.unwrap().remove(0).proved;
        assert_eq!((first.proven, first.lost()), (4, 0));
        let first_id = row(&ann, &names[0]);
        assert!(ann.vault.db.read(|t| t.root(first_id)).unwrap().is_some());
        assert!(ann.vault.local_chunk(&names[0]).unwrap().is_none(), "only its root is kept");
        let between = a.traffic(&bob.vault.id()).unwrap().0;
        let second = a.prove_all(&|_, _| {}).await.unwrap().remove(0).proved;
        assert_eq!((second.proven, second.lost()), (4, 0));
        let after = a.traffic(&bob.vault.id()).unwrap().0;
        assert!(after - between < between - before, "a leaf each, and no chunk");
        assert!(bob.store.flip_byte(names[2]));
        assert_eq!(a.prove_all(&|_, _| {}).await.unwrap().remove(0).proved.damaged, 1);
    });
}

#[test]
fn nobody_proves_or_gives_out_its_own_chunks_or_keeps_them_for_others() {
    run(|executor| async move {
        let (ann, bob) = (Cell::new(1), Cell::new(2));
        let (a, b) = (ann.start(&executor).await, bob.start(&executor).await);
        pair(&a, &b, Role::Peer).await;
        let names = ann.add_chunks(2, 1000);
        ann.publish("one");
        let segment = ann.vault.db.read(|t| t.segments()).unwrap()[0].1;
        let sealed: Vec<(ChunkName, Vec<u8>)> = [names[0], names[1], segment]
            .into_iter()
            .map(|name| (name, ann.vault.local_chunk(&name).unwrap().unwrap()))
            .collect();
        b.stop().await;
        let session = rogue(&executor, &bob, &a, known(&ann)).await.unwrap();
        let strange = chunk(9, 1000);
        let offered = [&sealed[..], std::slice::from_ref(&strange)].concat();
        let statuses = put(&session, Class::Chunk, &offered).await;
        assert_eq!(statuses, [PutStatus::Refused, PutStatus::Refused, PutStatus::Refused, PutStatus::Stored]);
        assert_eq!(put(&session, Class::Segment, &sealed[..1]).await, [PutStatus::Refused]);
        // Who names it without having its bytes learns nothing.
        let guess = (names[1], vec![0; 1000]);
        assert_eq!(put(&session, Class::Chunk, &[guess]).await, [PutStatus::WrongBytes]);
        assert_eq!(ann.held_for(&bob).chunks, 1);
        // Even if it was noted as theirs before it was known to be ours.
        let id = row(&ann, &names[0]);
        ann.vault
            .db
            .change(|t| {
                let cell = t.cell(&bob.vault.id())?;
                let (class, state) = (crate::placement::HoldClass::Chunk, crate::placement::HoldState::Held);
                t.put_hold(id, cell, class, state, 1)
            })
            .unwrap();
        let mut getting = message::get(&session, vec![names[0]]).await.unwrap();
        let got = getting.next(&mut Vec::new()).await.unwrap();
        assert_eq!(got, Some((names[0], GetStatus::Missing)));
        let answers = audited(&session, &[(names[0], Challenge::Whole), (strange.0, Challenge::Whole)]).await;
        assert_eq!((answers[0].0, answers[1].0), (AuditStatus::Missing, AuditStatus::Proof));
        // The proof says who proved to whom, whatever the asker would like.
        let parties = |verifier: &Cell, prover: &Cell| Parties {
            verifier: verifier.vault.id(),
            prover: prover.vault.id(),
            owner: verifier.vault.id(),
        };
        let proof = proof::whole(&[3; 32], &parties(&bob, &ann), &strange.0, &strange.1);
        assert_eq!(answers[1].1, proof);
        assert_ne!(answers[1].1, proof::whole(&[3; 32], &parties(&ann, &bob), &strange.0, &strange.1));
    });
}

#[test]
fn another_peer_cannot_tell_what_is_held_for_others_from_what_is_not_here() {
    run(|executor| async move {
        let (ann, bob, eve) = (Cell::new(1), Cell::new(2), Cell::new(3));
        let (a, b, e) = (ann.start(&executor).await, bob.start(&executor).await, eve.start(&executor).await);
        pair(&a, &b, Role::Peer).await;
        let (_, invite) = b.invite(Role::Friend, 3600).await.unwrap();
        e.join(&invite.to_string()).await.unwrap();
        let names = ann.add_chunks(3, 1000);
        a.round().await;
        assert_eq!(bob.held_for(&ann).chunks, 3);
        e.stop().await;
        let session = rogue(&executor, &eve, &b, known(&bob)).await.unwrap();
        let left = |b: &Sync| b.allowances.left_for_tests(&eve.vault.id(), bob.vault.clock.steady());
        audited(&session, &[(ChunkName([9; 32]), Challenge::Whole)]).await;
        let full = left(&b);
        let strange = audited(&session, &[(ChunkName([9; 32]), Challenge::Whole); 3]).await;
        let between = left(&b);
        let asks: Vec<_> = names.iter().map(|name| (*name, Challenge::Whole)).collect();
        assert_eq!(audited(&session, &asks).await, strange);
        assert_eq!(strange, vec![(AuditStatus::Missing, Vec::new()); 3]);
        assert_eq!(full - between, between - left(&b), "it costs alike");
        assert_eq!(audited(&session, &[(names[0], Challenge::Leaf(0))]).await[0].0, AuditStatus::Missing);
        // What is in the trash is not proven to its owner either.
        let released = names[0];
        let id = row(&ann, &released);
        ann.vault.db.change(|t| t.release_copy(id, t.cell(&bob.vault.id())?)).unwrap();
        a.round().await;
        a.stop().await;
        let session = rogue(&executor, &ann, &b, known(&bob)).await.unwrap();
        let asks =
            [(released, Challenge::Whole), (names[1], Challenge::Whole), (names[1], Challenge::Leaf(7))];
        let statuses: Vec<AuditStatus> =
            audited(&session, &asks).await.iter().map(|(status, _)| *status).collect();
        assert_eq!(statuses, [AuditStatus::Missing, AuditStatus::Proof, AuditStatus::Missing]);
        // A session that recovers reads, and asks for no proofs.
        let secret = ann.vault.master.recovery_secret();
        let session = rogue(&executor, &ann, &b, Approach::Recovery { secret }).await.unwrap();
        let refused = message::audit(&session, [1; 32], vec![(names[1], Challenge::Whole)]).await;
        assert!(matches!(refused, Err(AskError::Refused(_))));
    });
}

#[test]
fn what_is_proven_to_one_caller_is_bounded_and_goes_on_with_time() {
    run(|executor| async move {
        let (ann, bob) = (Cell::new(1), Cell::new(2));
        let (a, b) = (ann.start(&executor).await, bob.start(&executor).await);
        pair(&a, &b, Role::Peer).await;
        let names = ann.add_chunks(17, (4 << 20) - 64);
        a.round().await;
        a.stop().await;
        let session = rogue(&executor, &ann, &b, known(&bob)).await.unwrap();
        let asks: Vec<_> = names.iter().map(|name| (*name, Challenge::Leaf(3))).collect();
        let count = |answers: &[(AuditStatus, Vec<u8>)]| {
            let proofs = answers.iter().take_while(|(status, _)| *status == AuditStatus::Proof).count();
            assert!(
                answers[proofs..].iter().all(|(status, _)| *status == AuditStatus::Busy),
                "then nothing more"
            );
            proofs
        };
        let first = count(&audited(&session, &asks).await);
        assert!((15..=16).contains(&first), "{first} of 4 MiB each in one request");
        let mut last = first;
        for _ in 0..10 {
            last = count(&audited(&session, &asks).await);
        }
        assert_eq!(last, 0, "half a GiB was proved");
        bob.clock.pass(Duration::from_secs(10));
        let after = count(&audited(&session, &asks).await);
        assert!((9..=10).contains(&after), "{after} in ten seconds");
    });
}

/// What a hostile holder does when it is asked for proofs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Evil {
    /// Makes something up.
    MakesUp,
    /// Passes the request on to another holder under its own name and gives what comes back.
    AsksAnotherHolder,
    /// Passes it back to the owner.
    AsksTheOwner,
    /// Says that it is busy whenever it has not got the chunk.
    IsBusy,
}

/// A peer that says that it stores everything, keeps of each chunk only its length, and answers as `evil` says.
struct Liar {
    cell: Cell,
    evil: RefCell<Evil>,
    /// Names in the order they came: the number is the line of its inventory.
    said: RefCell<Vec<(ChunkName, u32)>>,
    kept: RefCell<HashMap<ChunkName, Vec<u8>>>,
    /// How many of those that come next are really kept.
    keeps: std::cell::Cell<usize>,
    to_owner: RefCell<Option<Session>>,
    to_other: RefCell<Option<Session>>,
}

impl Liar {
    async fn serve(self: Rc<Self>, session: Session) {
        while let Some(mut stream) = session.accept().await {
            if let Err(why) = self.answer(&mut stream).await {
                panic!("the liar stumbles: {why}");
            }
        }
    }

    async fn answer(&self, stream: &mut Stream) -> Result<(), AskError> {
        let reply = match message::read_request(stream).await? {
            Request::Hello(_) => Reply::Hello(Hello {
                protocol: message::PROTOCOL,
                epoch: 5,
                tips: vec![],
                holdings_seq: self.said.borrow().len() as u64,
                usage: Usage { used: 0, quota: 0, free: 1 << 40 },
                unix_time: 1_800_000_000,
                card: vec![],
                version: "9.0.1".into(),
            }),
            Request::Inventory { since, .. } => {
                let said = self.said.borrow();
                let lines = said.iter().enumerate().skip(since as usize);
                let entries = lines
                    .map(|(at, (name, len))| message::Holding {
                        seq: at as u64 + 1,
                        name: *name,
                        len: *len,
                        is_held: true,
                    })
                    .collect();
                Reply::Inventory { epoch: 5, entries, more: false }
            }
            Request::Put { entries, .. } => {
                for (name, len) in &entries {
                    let mut bytes = Vec::new();
                    message::read_body(stream, *len as usize, &mut bytes).await?;
                    self.said.borrow_mut().push((*name, *len));
                    if self.keeps.get() > 0 {
                        self.keeps.set(self.keeps.get() - 1);
                        self.kept.borrow_mut().insert(*name, bytes);
                    }
                }
                let usage = Usage { used: 0, quota: 0, free: 1 << 40 };
                Reply::Put { statuses: vec![PutStatus::Stored; entries.len()], usage }
            }
            Request::Have { names } => Reply::Have { held: vec![true; names.len()] },
            Request::Restore { names } => Reply::Restore { held: vec![false; names.len()] },
            Request::PutHead { len } => {
                message::read_body(stream, len as usize, &mut Vec::new()).await?;
                Reply::PutHead(message::HeadOutcome::Stored)
            }
            Request::Audit { nonce, asks } => return self.prove(stream, nonce, asks).await,
            Request::Ping => Reply::Pong,
            Request::Observe => Reply::Observe { ip: String::new() },
            Request::Release { .. } => Reply::Release { count: 0 },
            Request::TakenBack => return message::answer_taken_back(stream, &[]).await,
            _ => Reply::Done,
        };
        message::write_reply(stream, &reply).await?;
        Ok(message::finish(stream).await?)
    }

    async fn prove(
        &self,
        stream: &mut Stream,
        nonce: proof::Nonce,
        asks: Vec<(ChunkName, Challenge)>,
    ) -> Result<(), AskError> {
        message::write_reply(stream, &Reply::Audit { count: asks.len() as u32 }).await?;
        let (owner, evil) = (CellId(owner_id().0), *self.evil.borrow());
        for (name, challenge) in asks {
            let honest = self.kept.borrow().get(&name).map(|sealed| {
                let parties = Parties { verifier: owner, prover: self.cell.vault.id(), owner };
                proof::whole(&nonce, &parties, &name, sealed).to_vec()
            });
            let elsewhere = match evil {
                Evil::AsksAnotherHolder => self.to_other.borrow().clone(),
                Evil::AsksTheOwner => self.to_owner.borrow().clone(),
                Evil::MakesUp | Evil::IsBusy => None,
            };
            let (status, proof) = match (honest, elsewhere) {
                (Some(proof), _) => (AuditStatus::Proof, proof),
                (None, _) if evil == Evil::IsBusy => (AuditStatus::Busy, vec![]),
                (None, Some(session)) => {
                    let mut auditing = message::audit(&session, nonce, vec![(name, challenge)]).await?;
                    match auditing.next().await? {
                        Some((AuditStatus::Proof, proof)) => (AuditStatus::Proof, proof),
                        // It must say something.
                        _ => (AuditStatus::Proof, vec![0; 32]),
                    }
                }
                (None, None) => (AuditStatus::Proof, vec![0; 32]),
            };
            message::write_proof(stream, status, &proof).await?;
        }
        Ok(message::finish(stream).await?)
    }
}

/// Ann's id: she is the owner in all these tests.
fn owner_id() -> CellId {
    crate::keys::MasterKey::from_bytes([1; 32]).identity(0, 0).id()
}

/// Ann with a peer that lies.
async fn with_liar(executor: &Executor, ann: &Cell, a: &Rc<Sync>, evil: Evil, keeps: usize) -> Rc<Liar> {
    let cell = Cell::new(66);
    let sync = cell.start(executor).await;
    let (_, invite) = a.invite(Role::Peer, 3600).await.unwrap();
    sync.join(&invite.to_string()).await.unwrap();
    sync.stop().await;
    while a.link(&cell.vault.id()).is_some() {
        smol::Timer::after(Duration::from_millis(2)).await;
    }
    let session = rogue(executor, &cell, a, known(ann)).await.unwrap();
    let liar = Rc::new(Liar {
        cell,
        evil: RefCell::new(evil),
        said: RefCell::default(),
        kept: RefCell::default(),
        keeps: std::cell::Cell::new(keeps),
        to_owner: RefCell::new(Some(session.clone())),
        to_other: RefCell::new(None),
    });
    executor.spawn(Rc::clone(&liar).serve(session)).detach();
    a.wait_connected(Duration::from_secs(60)).await;
    liar
}

#[test]
fn a_peer_that_says_it_has_what_it_dropped_is_found_out_suspended_and_named() {
    run(|executor| async move {
        let ann = Cell::new(1);
        let a = ann.start(&executor).await;
        let liar = with_liar(&executor, &ann, &a, Evil::MakesUp, 0).await;
        let id = liar.cell.vault.id();
        ann.add_chunks(3, 1000);
        a.round().await;
        assert!(alert(&ann, "older").unwrap().contains("runs Grove 9.0.1, and this cell runs"));
        a.prove_all(&|_, _| {}).await.unwrap();
        let proofs = a.proofs().remove(0);
        assert!(proofs.proved.wrong > 0 && proofs.is_suspended, "{proofs:?}");
        assert!(alert(&ann, "peer-false").unwrap().contains("gave a false proof"));
        // It gets nothing new.
        let said = liar.said.borrow().len();
        ann.add_chunks(2, 1000);
        a.round().await;
        assert_eq!(liar.said.borrow().len(), said);
        assert!(a.is_suspended(&id));
        ann.clock.pass(HOUR * 25);
        assert!(!a.is_suspended(&id));
        // It is remembered over a restart.
        let records = ann.vault.db.read(|t| t.meta(&format!("audit:{id}"))).unwrap();
        assert!(records.is_some());
    });
}

#[test]
fn a_peer_that_passes_audits_on_to_another_holder_or_back_to_the_owner_does_not_pass() {
    run(|executor| async move {
        for evil in [Evil::AsksAnotherHolder, Evil::AsksTheOwner] {
            let (ann, bob) = (Cell::with(1, |config| config.copies = 3), Cell::new(2));
            let (a, b) = (ann.start(&executor).await, bob.start(&executor).await);
            pair(&a, &b, Role::Peer).await;
            let liar = with_liar(&executor, &ann, &a, evil, 0).await;
            if evil == Evil::AsksAnotherHolder {
                // It is a peer of that holder, and even stores the same bytes there, as its own.
                let again = liar.cell.start(&executor).await;
                let (_, invite) = b.invite(Role::Friend, 3600).await.unwrap();
                again.join(&invite.to_string()).await.unwrap();
                again.stop().await;
                let session = rogue(&executor, &liar.cell, &b, known(&bob)).await.unwrap();
                let names = ann.add_chunks(3, 1000);
                let sealed: Vec<_> =
                    names.iter().map(|name| (*name, ann.vault.local_chunk(name).unwrap().unwrap())).collect();
                assert_eq!(put(&session, Class::Chunk, &sealed).await, [PutStatus::Stored; 3]);
                *liar.to_other.borrow_mut() = Some(session);
            } else {
                ann.add_chunks(3, 1000);
            }
            a.wait_connected(Duration::from_secs(60)).await;
            a.round().await;
            a.prove_all(&|_, _| {}).await.unwrap();
            let proofs = a.proofs();
            let of = |cell: &Cell| {
                proofs
                    .iter()
                    .find(|view| {
                        view.name == cell.vault.config.name
                            || view.name == "rogue" && cell.vault.id() == liar.cell.vault.id()
                    })
                    .unwrap()
            };
            assert!(of(&liar.cell).proved.wrong > 0 && of(&liar.cell).is_suspended, "{evil:?} {proofs:?}");
            assert_eq!(of(&liar.cell).proved.proven, 0);
            // Whatever it says that it holds, and for however long: it earns nothing by it.
            ann.clock.pass(HOUR * 30);
            a.round().await;
            let accounts = a.bounty().await.unwrap();
            let account = accounts.iter().find(|view| view.id == liar.cell.vault.id()).unwrap();
            assert_eq!((account.spent, account.unsigned), (0, 0), "{evil:?} {account:?}");
            assert_eq!((account.proofs_passed, account.state), (0, "suspended"));
            assert!(of(&bob).proved.proven >= 3 && of(&bob).proved.lost() == 0, "{evil:?} {proofs:?}");
        }
    });
}

#[test]
fn a_peer_that_is_always_busy_over_what_it_dropped_loses_it_after_a_day_and_no_honest_copy_does() {
    run(|executor| async move {
        let ann = Cell::new(1);
        let a = ann.start(&executor).await;
        let liar = with_liar(&executor, &ann, &a, Evil::IsBusy, 20).await;
        let id = liar.cell.vault.id();
        let kept = ann.add_chunks(20, 1000);
        a.round().await;
        ann.clock.pass(HOUR);
        a.round().await;
        let dropped = ann.add_chunks(2, 1000);
        a.round().await;
        let mut seen_suspect = false;
        for hour in 0..24 * 4 {
            a.round().await;
            ann.clock.pass(HOUR);
            // It proves others now and then, as their turn comes.
            let other = row(&ann, &kept[hour % 20]);
            ann.vault.db.change(|t| t.prove_copy(other, t.cell(&id)?, 0)).unwrap();
            let state = dropped.iter().filter_map(|name| copy(&ann, &id, name)).map(|copy| copy.state);
            seen_suspect |= state.into_iter().any(|state| state == CopyState::Suspect);
        }
        let proved = a.proofs().remove(0).proved;
        assert!(seen_suspect && proved.silent >= 2, "{proved:?}");
        assert_eq!((proved.wrong, proved.missing, proved.damaged), (0, 0, 0));
        assert!(kept.iter().all(|name| copy(&ann, &id, name).is_some()));
        assert!(alert(&ann, "peer-lost").unwrap().contains("gives no proof"));
    });
}

#[test]
fn a_correct_peer_that_is_busy_for_days_loses_nothing_and_is_no_liar() {
    run(|executor| async move {
        let (ann, bob) = (Cell::new(1), Cell::new(2));
        let (a, b) = (ann.start(&executor).await, bob.start(&executor).await);
        pair(&a, &b, Role::Peer).await;
        let names = ann.add_chunks(30, 1000);
        a.round().await;
        // Somebody else takes all the time it has for proofs, whenever it is asked.
        for day in 0..19 {
            b.allowances.exhaust_for_tests(&ann.vault.id(), bob.vault.clock.steady());
            for _ in 0..4 {
                a.round().await;
                ann.clock.pass(HOUR * 6);
            }
            assert_eq!(ann.copies_with(&bob), 30, "day {day}");
        }
        let proved = a.proofs().remove(0).proved;
        assert_eq!(proved.lost(), 0);
        bob.clock.pass(HOUR);
        ann.clock.pass(HOUR * 24 * 21);
        for _ in 0..4 {
            a.round().await;
            ann.clock.pass(HOUR);
        }
        let states = names.iter().map(|name| copy(&ann, &bob.vault.id(), name).unwrap().state);
        assert!(states.into_iter().all(|state| state == CopyState::Stored));
    });
}

//! A peer that a test plays itself, over the real socket: it keeps what it is given, gives honest proofs and settles as it is
//! told to, until the test says otherwise. It lives in a thread of its own, for the cell asks it while the test asks the cell.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, mpsc};
use std::thread::JoinHandle;

use grove::bounty::{Heard, Side};
use grove::card::{Card, CardBody, Invite};
use grove::catalog::Head;
use grove::id::{BodyHash, CellId, ChunkName};
use grove::keys::{Identity, MasterKey, random, sha256};
use grove::proof::{self, Challenge, Nonce, Parties};
use grove::wire::Transport;
use grove::wire::handshake::{Approach, initiate};
use grove::wire::message::{
    self, AskError, AuditStatus, Class, ErrorCode, GetStatus, HeadOutcome, Hello, Holding, PutStatus,
    Refusal, Reply, Request, Settlement, Usage,
};
use grove::wire::session::{self, Limits, Session, Stream};

use super::{Cell, DEADLINE, wait_for};

/// Its random epoch.
const EPOCH: u64 = 5;
/// What it calls itself.
pub const NAME: &str = "rogue";

type Work = Box<dyn FnOnce(Session) -> Pin<Box<dyn Future<Output = ()>>> + Send>;
/// What it answers to a `Settle`; nothing: another reply than was asked for.
pub type Settles = Box<dyn FnMut(&Settlement) -> Option<Settlement> + Send>;

/// How it answers audits.
#[derive(Clone)]
pub enum Proves {
    /// By what it keeps.
    Itself,
    /// It asks another cell, with whom it has put what it should keep, and hands on the answers.
    By(Arc<Rogue>),
}

/// What it has of a cell, and how it answers it.
pub struct Shelf {
    chunks: BTreeMap<ChunkName, Vec<u8>>,
    listed: Vec<Holding>,
    tips: Vec<BodyHash>,
    pub proves: Proves,
    pub settles: Settles,
    /// All that was told to it by a `Settle`.
    pub told: Vec<Settlement>,
    /// Proofs that it handed on.
    pub proofs_handed_on: u64,
}

impl Shelf {
    fn new() -> Self {
        Self {
            chunks: BTreeMap::new(),
            listed: Vec::new(),
            tips: Vec::new(),
            proves: Proves::Itself,
            settles: Box::new(|told| {
                let heard = Heard { life: 1, unix_s: told.heard.unix_s, ..Heard::default() };
                Some(Settlement { heard, wants: false, newest: vec![], proposal: vec![] })
            }),
            told: Vec::new(),
            proofs_handed_on: 0,
        }
    }
}

/// One session of it with one cell.
pub struct Rogue {
    pub identity: Identity,
    /// The cell.
    pub peer: CellId,
    x25519: [u8; 32],
    shelf: Arc<Mutex<Shelf>>,
    work: smol::channel::Sender<Work>,
    thread: Option<JoinHandle<()>>,
}

/// An identity whose id is on this side of the cell's.
fn identity_beside(cell: &CellId, side: Side) -> Identity {
    loop {
        let identity = MasterKey::from_bytes(random()).identity(0, 0);
        if Side::of(&identity.id(), cell) == side {
            return identity;
        }
    }
}

impl Rogue {
    /// Comes in by an invite, with an id on this side of the cell's.
    pub fn join(cell: &Cell, side: Side) -> Self {
        let invite = invite(cell);
        let identity = identity_beside(&invite.inviter, side);
        Self::come(cell, identity, invite.inviter, invite.x25519, &Approach::from(&invite), Shelf::new())
    }

    /// Comes in by an invite as one that is known, here or elsewhere.
    pub fn join_as(cell: &Cell, identity: &Identity, proves: Proves) -> Self {
        let invite = invite(cell);
        let (approach, shelf) = (Approach::from(&invite), Shelf { proves, ..Shelf::new() });
        Self::come(cell, identity.clone(), invite.inviter, invite.x25519, &approach, shelf)
    }

    /// The same peer on a new connection, with all that it has.
    pub fn again(mut self, cell: &Cell) -> Self {
        self.end();
        let shelf = std::mem::replace(&mut *self.shelf(), Shelf::new());
        let approach = Approach::Known { id: self.peer, x25519: self.x25519 };
        Self::come(cell, self.identity.clone(), self.peer, self.x25519, &approach, shelf)
    }

    fn come(
        cell: &Cell,
        identity: Identity,
        peer: CellId,
        x25519: [u8; 32],
        approach: &Approach,
        shelf: Shelf,
    ) -> Self {
        let shelf = Arc::new(Mutex::new(shelf));
        let (work, todo) = smol::channel::unbounded::<Work>();
        let (ready, is_ready) = mpsc::channel();
        let (port, who, kept, by) = (cell.peer_port, identity.clone(), Arc::clone(&shelf), approach.clone());
        let thread = std::thread::spawn(move || {
            let executor = Rc::new(smol::LocalExecutor::new());
            smol::block_on(executor.run(async {
                let session = dial(&executor, port, &who, &by).await;
                let _ = ready.send(());
                let answering = serve(Rc::clone(&executor), session.clone(), kept, who.id(), peer);
                executor.spawn(answering).detach();
                while let Ok(work) = todo.recv().await {
                    executor.spawn(work(session.clone())).detach();
                }
                session.close();
                session.ended().await;
            }));
        });
        is_ready.recv_timeout(DEADLINE).expect("the rogue is let in");
        Self { identity, peer, x25519, shelf, work, thread: Some(thread) }
    }

    /// Does something with the session, in its thread.
    pub fn with<T, F>(&self, work: impl FnOnce(Session) -> F + Send + 'static) -> T
    where
        T: Send + 'static,
        F: Future<Output = T> + 'static,
    {
        let (tell, told) = mpsc::channel();
        let work: Work = Box::new(move |session| {
            Box::pin(async move {
                let _ = tell.send(work(session).await);
            })
        });
        self.work.send_blocking(work).expect("the rogue lives");
        told.recv_timeout(DEADLINE).expect("the cell answers")
    }

    pub fn shelf(&self) -> MutexGuard<'_, Shelf> {
        self.shelf.lock().unwrap()
    }

    pub fn ask(&self, request: Request) -> Result<Reply, AskError> {
        self.with(move |session| async move { message::ask(&session, &request).await })
    }

    /// Tells figures and statements; waits where it has told too often.
    pub fn settle(&self, told: &Settlement) -> Settlement {
        wait_for("the cell hears figures", || match self.ask(Request::Settle(told.clone())) {
            Ok(Reply::Settle(answer)) => Some(answer),
            Err(AskError::Refused(why)) if why.code == ErrorCode::Busy => None,
            other => panic!("{other:?}"),
        })
    }

    pub fn put(&self, class: Class, chunks: Vec<(ChunkName, Vec<u8>)>) -> Vec<PutStatus> {
        self.with(move |session| async move {
            let entries = chunks.iter().map(|(name, bytes)| (*name, bytes.len() as u32)).collect();
            let mut putting = message::put(&session, class, entries).await.unwrap();
            for (_, bytes) in &chunks {
                if !putting.send(bytes).await.unwrap() {
                    break;
                }
            }
            putting.finish().await.unwrap().0
        })
    }

    pub fn audit(&self, nonce: Nonce, asks: Vec<(ChunkName, Challenge)>) -> Vec<(AuditStatus, Vec<u8>)> {
        self.with(move |session| async move {
            let mut auditing = message::audit(&session, nonce, asks).await.unwrap();
            let mut answers = Vec::new();
            while let Some(answer) = auditing.next().await.unwrap() {
                answers.push(answer);
            }
            answers
        })
    }

    pub fn get(&self, names: Vec<ChunkName>) -> Vec<GetStatus> {
        self.with(move |session| async move {
            let mut getting = message::get(&session, names).await.unwrap();
            let (mut statuses, mut bytes) = (Vec::new(), Vec::new());
            while let Some((_, status)) = getting.next(&mut bytes).await.unwrap() {
                statuses.push(status);
            }
            statuses
        })
    }

    fn end(&mut self) {
        self.work.close();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Rogue {
    fn drop(&mut self) {
        self.end();
    }
}

fn invite(cell: &Cell) -> Invite {
    cell.cli(["invite"]).ok().out.trim().parse().expect("an invite")
}

async fn dial(
    executor: &Rc<smol::LocalExecutor<'static>>,
    port: u16,
    identity: &Identity,
    approach: &Approach,
) -> Session {
    let body = CardBody {
        id: identity.id(),
        x25519: *identity.x_public(),
        name: NAME.into(),
        addresses: vec![],
        relays: vec![],
        sequence: 1,
        successor: None,
        extensions: vec![],
    };
    let card = Card::sign(identity, body).unwrap().to_bytes();
    let stream = smol::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let shaken = initiate(stream, Transport::Tcp, identity, &card, approach).await.unwrap();
    let (session, driver) = session::start(shaken.stream, true, &Limits::default());
    executor.spawn(async { drop(driver.await) }).detach();
    session
}

/// Answers the cell until the session ends.
async fn serve(
    executor: Rc<smol::LocalExecutor<'static>>,
    session: Session,
    shelf: Arc<Mutex<Shelf>>,
    us: CellId,
    peer: CellId,
) {
    while let Some(mut stream) = session.accept().await {
        let shelf = Arc::clone(&shelf);
        let work = async move { drop(answer(&mut stream, &shelf, us, peer).await) };
        executor.spawn(work).detach();
    }
}

async fn answer(stream: &mut Stream, shelf: &Mutex<Shelf>, us: CellId, peer: CellId) -> Result<(), AskError> {
    let lock = || shelf.lock().unwrap();
    let reply = match message::read_request(stream).await? {
        Request::Hello(_) => {
            let shelf = lock();
            Reply::Hello(Hello {
                protocol: message::PROTOCOL,
                epoch: EPOCH,
                tips: shelf.tips.clone(),
                holdings_seq: shelf.listed.len() as u64,
                usage: Usage { used: 0, quota: 0, free: 1 << 40 },
                // It has no idea.
                unix_time: 0,
                card: vec![],
                version: "0".into(),
            })
        }
        Request::Inventory { since, .. } => {
            let entries = lock().listed.iter().filter(|holding| holding.seq > since).copied().collect();
            Reply::Inventory { epoch: EPOCH, entries, more: false }
        }
        Request::Put { class, entries } => {
            let mut statuses = Vec::new();
            for (name, len) in entries {
                let mut bytes = Vec::new();
                message::read_body(stream, len as usize, &mut bytes).await?;
                let proves = lock().proves.clone();
                if let Proves::By(other) = proves {
                    // Not one byte of it is kept here.
                    let copy = vec![(name, std::mem::take(&mut bytes))];
                    smol::unblock(move || other.put(Class::Chunk, copy)).await;
                }
                let mut shelf = lock();
                let seq = shelf.listed.len() as u64 + 1;
                if class == Class::Chunk {
                    shelf.listed.push(Holding { seq, name, len, is_held: true });
                }
                shelf.chunks.insert(name, bytes);
                statuses.push(PutStatus::Stored);
            }
            Reply::Put { statuses, usage: Usage { used: 0, quota: 0, free: 1 << 40 } }
        }
        Request::PutHead { len } => {
            let mut bytes = Vec::new();
            message::read_body(stream, len as usize, &mut bytes).await?;
            lock().tips = Head::open(&bytes).map(|(hash, _)| hash).into_iter().collect();
            Reply::PutHead(HeadOutcome::Stored)
        }
        Request::Have { names } => {
            let shelf = lock();
            Reply::Have { held: names.iter().map(|name| shelf.chunks.contains_key(name)).collect() }
        }
        Request::Restore { names } => Reply::Restore { held: vec![false; names.len()] },
        Request::Release { names } => Reply::Release { count: names.len() as u32 },
        Request::Audit { nonce, asks } => {
            message::write_reply(stream, &Reply::Audit { count: asks.len() as u32 }).await?;
            let proves = lock().proves.clone();
            let answers = match proves {
                Proves::Itself => own_proofs(&lock(), us, peer, &nonce, &asks),
                Proves::By(other) => smol::unblock(move || other.audit(nonce, asks)).await,
            };
            for (status, proof) in answers {
                lock().proofs_handed_on += u64::from(status == AuditStatus::Proof);
                message::write_proof(stream, status, &proof).await?;
            }
            return Ok(message::finish(stream).await?);
        }
        Request::Settle(told) => {
            let mut shelf = lock();
            let answer = (shelf.settles)(&told);
            shelf.told.push(told);
            answer.map_or(Reply::Pong, Reply::Settle)
        }
        Request::Ping => Reply::Pong,
        Request::Observe => Reply::Observe { ip: String::new() },
        Request::Measure { up, down } => return message::answer_measure(stream, up, down).await,
        Request::TakenBack => return message::answer_taken_back(stream, &[]).await,
        Request::Card { .. } | Request::RecoverySecret { .. } | Request::Goodbye { .. } => Reply::Done,
        _ => Reply::Error(Refusal::new(ErrorCode::Unsupported, "not here", "")),
    };
    message::write_reply(stream, &reply).await?;
    Ok(message::finish(stream).await?)
}

fn own_proofs(
    shelf: &Shelf,
    us: CellId,
    peer: CellId,
    nonce: &Nonce,
    asks: &[(ChunkName, Challenge)],
) -> Vec<(AuditStatus, Vec<u8>)> {
    let parties = Parties { verifier: peer, prover: us, owner: peer };
    let prove = |(name, challenge): &(ChunkName, Challenge)| match (shelf.chunks.get(name), challenge) {
        (Some(bytes), Challenge::Whole) => {
            (AuditStatus::Proof, proof::whole(nonce, &parties, name, bytes).to_vec())
        }
        _ => (AuditStatus::Missing, Vec::new()),
    };
    asks.iter().map(prove).collect()
}

/// A chunk of these bytes, as it travels.
pub fn chunk(bytes: Vec<u8>) -> (ChunkName, Vec<u8>) {
    (ChunkName(sha256(&bytes)), bytes)
}

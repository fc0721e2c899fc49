use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::FutureExt;
use smol::net::TcpStream;
use smol::{LocalExecutor, Timer};

use super::*;
use crate::card::Role;
use crate::catalog::{RecordKind, record_key};
use crate::clock::ManualClock;
use crate::config::Config;
use crate::files::version::{self, Content, Known, NewVersion, Seen};
use crate::friendship::{Friendship, Standing, Wish};
use crate::id::{ChunkName, FileId};
use crate::keys::{MasterKey, Secret, random, sha256};
use crate::placement::{Db, DbError, Device, HoldState, NodeId, NodeState, Own};
use crate::publish;
use crate::store::{ChunkStore, MemoryStore};
use crate::vault::{Vault, VaultError, VaultParts};
use crate::wire::Transport;
use crate::wire::handshake::{Approach, Gate, initiate};
use crate::wire::message::{self, Class, HeadOutcome, PutStatus, Reply, Request};
use crate::wire::session::{self, Limits, Session};

pub(super) type Executor = Rc<LocalExecutor<'static>>;

pub(super) struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        let dir = std::env::temp_dir().join(format!("grove-sync-{}", crate::id::hex(&random::<8>())));
        std::fs::create_dir_all(&dir).unwrap();
        Self(dir)
    }
}

/// With the folders inside: heads of peers lie in one.
fn copy_files(from: &std::path::Path, to: &std::path::Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let (entry, to) = (entry.as_ref().unwrap(), to.join(entry.as_ref().unwrap().file_name()));
        if entry.file_type().unwrap().is_dir() {
            std::fs::create_dir(&to).unwrap();
            copy_files(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), to).unwrap();
        }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub(super) struct Cell {
    pub(super) vault: Arc<Vault>,
    pub(super) books: Arc<Books>,
    pub(super) store: Arc<MemoryStore>,
    pub(super) clock: Arc<ManualClock>,
    pub(super) dir: Folder,
}

/// A port at which a cell can be started again: none that the kernel gives to a connection meanwhile.
fn lasting_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    static START: OnceLock<u32> = OnceLock::new();
    let start = *START.get_or_init(|| u32::from_le_bytes(random()) % 12_000);
    let mut ports =
        (0..12_000).map(|_| 20_000 + ((start + NEXT.fetch_add(1, Ordering::Relaxed)) % 12_000) as u16);
    ports.find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok()).expect("a free port")
}

impl Cell {
    pub(super) fn new(seed: u8) -> Self {
        Self::with(seed, |_| {})
    }

    pub(super) fn with(seed: u8, settings: impl FnOnce(&mut Config)) -> Self {
        let dir = Folder::new();
        let (db, _) = Db::open(&dir.0.join("placement.db")).unwrap();
        let books = Arc::new(Books::open(&dir.0.join("books.db")).unwrap());
        Self::assemble(dir, seed, db, books, Arc::new(MemoryStore::new()), settings)
    }

    fn assemble(
        dir: Folder,
        seed: u8,
        db: Db,
        books: Arc<Books>,
        store: Arc<MemoryStore>,
        settings: impl FnOnce(&mut Config),
    ) -> Self {
        let mut config = Config::default();
        (config.name, config.jobs) = (format!("cell{seed}"), 2);
        settings(&mut config);
        let clock = Arc::new(ManualClock::at(1_800_000_000));
        let vault = Vault::new(VaultParts {
            home: dir.0.clone(),
            dir: dir.0.clone(),
            db,
            store: Arc::clone(&store) as Arc<dyn ChunkStore>,
            master: MasterKey::from_bytes([seed; 32]),
            clock: Arc::clone(&clock) as Arc<dyn crate::clock::Clock>,
            config,
        });
        Self { vault: Arc::new(vault.unwrap()), books, store, clock, dir }
    }

    /// The whole state folder on a second machine.
    pub(super) fn copied(&self, seed: u8) -> Self {
        let dir = Folder::new();
        self.vault.db.checkpoint().unwrap();
        copy_files(&self.dir.0, &dir.0);
        let (db, is_new) = Db::open(&dir.0.join("placement.db")).unwrap();
        assert!(!is_new);
        let books = Arc::new(Books::open(&dir.0.join("books.db")).unwrap());
        Self::assemble(dir, seed, db, books, Arc::clone(&self.store), |_| {})
    }

    pub(super) async fn start(&self, executor: &Executor) -> Rc<Sync> {
        self.start_at(executor, lasting_port()).await
    }

    /// At a port where others know it.
    pub(super) async fn start_at(&self, executor: &Executor, port: u16) -> Rc<Sync> {
        let (vault, books) = (Arc::clone(&self.vault), Arc::clone(&self.books));
        let listen = SocketAddr::from(([127, 0, 0, 1], port));
        Sync::start(Rc::clone(executor), vault, books, listen).await.unwrap()
    }

    pub(super) fn add_chunks(&self, count: usize, len: usize) -> Vec<ChunkName> {
        let _placing = self.vault.placing();
        let mut staged = Vec::new();
        for _ in 0..count {
            let mut plain = random::<32>().to_vec();
            plain.resize(len, 7);
            let sealed = self.vault.sealer.seal(plain);
            staged.push(self.vault.store.stage(sealed.name, &sealed.bytes).unwrap());
        }
        let names: Vec<(ChunkName, u32)> = staged.iter().map(|s| (s.name(), s.sealed_len())).collect();
        let places = self.vault.store.commit(staged).unwrap();
        self.vault
            .db
            .change(|t| -> Result<(), DbError> {
                for ((name, len), place) in names.iter().zip(&places) {
                    t.put_chunk(name, *len, place, Own::Data)?;
                }
                Ok(())
            })
            .unwrap();
        names.into_iter().map(|(name, _)| name).collect()
    }

    pub(super) fn publish(&self, text: &str) {
        let key = record_key(RecordKind::Setting, text.as_bytes());
        self.vault.db.change(|t| t.put_record(&key, b"\"value\"")).unwrap();
        // The cell may have done it by itself by now.
        publish::publish(&self.vault).unwrap();
    }

    pub(super) fn add_folder(&self, name: &str) {
        let stat = crate::files::unix::stat_open(std::fs::File::open(&self.dir.0).unwrap()).unwrap();
        self.vault
            .db
            .change(|t| -> Result<(), VaultError> {
                let known = Known::default();
                let kind = crate::manifest::Kind::Folder;
                let new = NewVersion::sign(
                    &self.vault,
                    &known,
                    FileId::ROOT,
                    name.as_bytes(),
                    kind,
                    &stat,
                    Content::default(),
                );
                let seen = Seen {
                    parent: NodeId::ROOT,
                    name: name.as_bytes(),
                    stat: Some(&stat),
                    device: Device(0),
                    state: NodeState::Present,
                };
                version::record(&self.vault, t, known, new, seen).map(drop)
            })
            .unwrap();
    }

    pub(super) fn copies_with(&self, other: &Cell) -> u64 {
        self.vault
            .db
            .change(|t| {
                let cell = t.cell(&other.vault.id())?;
                t.copy_totals(cell)
            })
            .unwrap()
            .0
    }

    pub(super) fn held_for(&self, other: &Cell) -> crate::placement::HeldTotals {
        self.vault
            .db
            .change(|t| {
                let cell = t.cell(&other.vault.id())?;
                t.held_totals(cell)
            })
            .unwrap()
    }

    fn head(&self) -> BodyHash {
        self.vault.db.read(publish::current_head).unwrap().unwrap().0
    }
}

pub(super) fn run<F: Future>(test: impl FnOnce(Executor) -> F) -> F::Output {
    let executor: Executor = Rc::new(LocalExecutor::new());
    let inner = Rc::clone(&executor);
    let test = async {
        smol::future::or(async { Some(test(inner).await) }, async {
            Timer::after(Duration::from_secs(300)).await;
            None
        })
        .await
        .expect("a test ends within five minutes")
    };
    smol::block_on(executor.run(test))
}

pub(super) async fn pair(a: &Rc<Sync>, b: &Rc<Sync>, role: Role) {
    let (_, invite) = a.invite(role, 3600).await.unwrap();
    b.join(&invite.to_string()).await.unwrap();
    a.wait_connected(Duration::from_secs(60)).await;
    b.wait_connected(Duration::from_secs(60)).await;
    assert!(a.link(&b.vault.id()).is_some() && b.link(&a.vault.id()).is_some());
}

/// A session of a peer that does as it likes.
pub(super) async fn rogue(
    executor: &Executor,
    from: &Cell,
    to: &Sync,
    approach: Approach,
) -> Option<Session> {
    let stream = TcpStream::connect(("127.0.0.1", to.port())).await.unwrap();
    let body = crate::card::CardBody {
        id: from.vault.id(),
        x25519: *from.vault.identity.x_public(),
        name: "rogue".into(),
        addresses: vec![],
        relays: vec![],
        sequence: 1,
        successor: None,
        extensions: vec![],
    };
    let card = crate::card::Card::sign(&from.vault.identity, body).unwrap().to_bytes();
    let shaken = initiate(stream, Transport::Tcp, &from.vault.identity, &card, &approach).await.ok()?;
    let (session, driver) = session::start(shaken.stream, true, &Limits::default());
    executor.spawn(async { drop(driver.await) }).detach();
    Some(session)
}

pub(super) fn chunk(seed: u8, len: usize) -> (ChunkName, Vec<u8>) {
    let bytes = vec![seed; len];
    (ChunkName(sha256(&bytes)), bytes)
}

pub(super) async fn put(session: &Session, class: Class, chunks: &[(ChunkName, Vec<u8>)]) -> Vec<PutStatus> {
    let entries = chunks.iter().map(|(name, bytes)| (*name, bytes.len() as u32)).collect();
    let mut putting = message::put(session, class, entries).await.unwrap();
    for (_, bytes) in chunks {
        if !putting.send(bytes).await.unwrap() {
            break;
        }
    }
    putting.finish().await.unwrap().0
}

#[test]
fn invites_serve_once_and_each_refusal_says_why() {
    run(|executor| async move {
        let (ann, bob, eve) = (Cell::new(1), Cell::new(2), Cell::new(3));
        let (a, b, e) = (ann.start(&executor).await, bob.start(&executor).await, eve.start(&executor).await);
        let (id, invite) = a.invite(Role::Friend, 3600).await.unwrap();
        let joined = b.join(&invite.to_string()).await.unwrap();
        assert_eq!((joined.id, joined.name.as_str()), (ann.vault.id(), "cell1"));
        a.wait_connected(Duration::from_secs(60)).await;
        let peers = a.peers().await.unwrap();
        assert_eq!((peers.len(), peers[0].role, peers[0].online), (1, Role::Friend, true));
        assert_eq!(b.peers().await.unwrap()[0].role, Role::Friend);
        assert!(ann.books.peer(&bob.vault.id()).unwrap().unwrap().recovery_secret.is_some());
        let used = e.join(&invite.to_string()).await.unwrap_err();
        assert!(matches!(used, JoinError::Refused(_)), "{used}");
        assert!(a.invites().iter().any(|row| row.id == id && row.state == InviteState::Used));

        let (id, invite) = a.invite(Role::Peer, 3600).await.unwrap();
        a.revoke_invite(&crate::id::hex(&id)).await.unwrap();
        assert!(a.revoke_invite(&crate::id::hex(&id)).await.is_err());
        assert!(matches!(e.join(&invite.to_string()).await, Err(JoinError::Refused(_))));
        let (_, invite) = a.invite(Role::Peer, 10).await.unwrap();
        ann.clock.pass(Duration::from_secs(20));
        assert!(
            matches!(e.join(&invite.to_string()).await, Err(JoinError::Refused(_))),
            "by the inviter's clock"
        );
        eve.clock.pass(Duration::from_secs(20));
        assert!(matches!(e.join(&invite.to_string()).await, Err(JoinError::Expired)));
        assert!(matches!(a.join(&invite.to_string()).await, Err(JoinError::Own)));
        let (_, mut invite) = a.invite(Role::Peer, 3600).await.unwrap();
        invite.addresses = vec!["127.0.0.1:1".into()];
        assert!(matches!(e.join(&invite.to_string()).await, Err(JoinError::Unreachable(_))));
        assert!(e.peers().await.unwrap().is_empty());
        // A stranger who has the address only.
        let known = Approach::Known { id: ann.vault.id(), x25519: *ann.vault.identity.x_public() };
        assert!(rogue(&executor, &eve, &a, known).await.is_none());
        let wrong = Approach::Recovery { secret: Secret([9; 32]) };
        assert!(rogue(&executor, &eve, &a, wrong).await.is_none());
        let start = std::time::Instant::now();
        a.stop().await;
        assert!(start.elapsed() < Duration::from_secs(30), "it waits for nobody");
    });
}

#[test]
fn chunks_and_catalog_are_pushed_once() {
    run(|executor| async move {
        let (ann, bob) = (Cell::new(1), Cell::new(2));
        let (a, b) = (ann.start(&executor).await, bob.start(&executor).await);
        pair(&a, &b, Role::Peer).await;
        let mut names = ann.add_chunks(300, 5000);
        names.extend(ann.add_chunks(3, 3 << 20));
        ann.publish("one");
        let report = a.round().await;
        assert_eq!((report.peers[0].why.as_str(), report.waiting_chunks), ("", 0));
        assert_eq!(ann.copies_with(&bob), 303);
        assert_eq!(
            (bob.held_for(&ann).chunks, ann.vault.db.read(|t| t.own_totals(2)).unwrap().short),
            (303, 0)
        );
        let heads = bob.vault.db.change(|t| t.peer_heads(t.cell(&ann.vault.id())?)).unwrap();
        assert!(heads.iter().any(|head| head.tip && head.hash == ann.head()));
        a.round().await;
        let before = a.traffic(&bob.vault.id()).unwrap();
        let report = a.round().await;
        let after = a.traffic(&bob.vault.id()).unwrap();
        assert_eq!(report.peers[0].pushed_chunks, 0);
        assert!(after.0 + after.1 - before.0 - before.1 < 1500, "{before:?} {after:?}");
        // What is lost here comes back.
        for name in &names[290..] {
            let row = ann.vault.db.read(|t| t.chunk(name)).unwrap().unwrap();
            ann.vault.db.change(|t| t.move_chunk(row.id, None)).unwrap();
            ann.store.remove(*name, row.place.unwrap()).unwrap();
        }
        let fetched = a.fetch([&names[290..], &[ChunkName([1; 32])]].concat()).await;
        assert_eq!((fetched.got.len(), fetched.missing), (13, vec![ChunkName([1; 32])]));
        assert!(names.iter().all(|name| ann.vault.local_chunk(name).unwrap().is_some()));
    });
}

#[test]
fn cut_link_is_taken_up_where_it_broke() {
    run(|executor| async move {
        let (ann, bob) = (Cell::new(1), Cell::new(2));
        let (a, b) = (ann.start(&executor).await, bob.start(&executor).await);
        pair(&a, &b, Role::Peer).await;
        ann.add_chunks(40, 1 << 20);
        a.poke();
        while a.traffic(&bob.vault.id()).is_none_or(|(_, out)| out < 12 << 20) {
            Timer::after(Duration::from_millis(1)).await;
        }
        a.cut(&bob.vault.id());
        let kept = async {
            while bob.held_for(&ann).chunks == 0 {
                Timer::after(Duration::from_millis(10)).await;
            }
        };
        kept.await;
        let report = a.round().await;
        assert_eq!((report.peers[0].why.as_str(), report.waiting_chunks), ("", 0));
        assert_eq!((bob.held_for(&ann).chunks, ann.copies_with(&bob)), (40, 40));
        assert!(report.peers[0].pushed_chunks < 40);
    });
}

#[test]
fn wrong_bytes_quota_and_full_disk_are_refused() {
    run(|executor| async move {
        let (ann, bob) = (Cell::new(1), Cell::new(2));
        let (a, b) = (ann.start(&executor).await, bob.start(&executor).await);
        pair(&a, &b, Role::Peer).await;
        let known = Approach::Known { id: ann.vault.id(), x25519: *ann.vault.identity.x_public() };
        b.stop().await;
        let session = rogue(&executor, &bob, &a, known).await.unwrap();
        let (good, bad) = (chunk(1, 1000), (ChunkName([5; 32]), vec![2; 1000]));
        let statuses = put(&session, Class::Chunk, &[good.clone(), bad, chunk(3, 1000)]).await;
        assert_eq!(statuses, [PutStatus::Stored, PutStatus::WrongBytes, PutStatus::Stored]);
        assert_eq!(put(&session, Class::Chunk, std::slice::from_ref(&good)).await, [PutStatus::Already]);
        // Cut short by a byte: what was whole is kept.
        let entries = vec![(chunk(7, 1000).0, 1000), (chunk(8, 1000).0, 1001)];
        let mut putting = message::put(&session, Class::Chunk, entries).await.unwrap();
        putting.send(&chunk(7, 1000).1).await.unwrap();
        drop(putting);
        while ann.held_for(&bob).chunks < 3 {
            Timer::after(Duration::from_millis(5)).await;
        }
        a.set_quota(&bob.vault.id(), Some(4500)).await.unwrap();
        let chunks: Vec<_> = (20..60).map(|n| chunk(n, 1000)).collect();
        let statuses = put(&session, Class::Chunk, &chunks).await;
        assert_eq!(statuses[0], PutStatus::Stored);
        assert!(statuses[1..].iter().all(|status| *status == PutStatus::OverQuota));
        // Segments are not billed.
        assert_eq!(put(&session, Class::Segment, &[chunk(70, 3000)]).await, [PutStatus::Stored]);
        assert_eq!(ann.held_for(&bob).bytes, 4000);
        a.set_quota(&bob.vault.id(), Some(0)).await.unwrap();
        ann.store.set_capacity(9000);
        let statuses = put(&session, Class::Chunk, &chunks).await;
        assert!(statuses.contains(&PutStatus::DiskFull), "{statuses:?}");
        assert_eq!(message::ask(&session, &Request::Ping).await.unwrap(), Reply::Pong);
        // Release, restore; nothing of others.
        let names = vec![good.0, ChunkName([9; 32])];
        let release = Request::Release { names: names.clone() };
        assert_eq!(message::ask(&session, &release).await.unwrap(), Reply::Release { count: 1 });
        let have = Request::Have { names: names.clone() };
        assert_eq!(message::ask(&session, &have).await.unwrap(), Reply::Have { held: vec![false, false] });
        let restore = Request::Restore { names };
        assert_eq!(
            message::ask(&session, &restore).await.unwrap(),
            Reply::Restore { held: vec![true, false] }
        );
        // It comes back within the quota only: trash is no storage for nothing.
        let names = vec![good.0, chunk(3, 1000).0];
        let held = ann.held_for(&bob).bytes;
        let release = Request::Release { names: names.clone() };
        assert_eq!(message::ask(&session, &release).await.unwrap(), Reply::Release { count: 2 });
        let restore = Request::Restore { names };
        for (quota, both) in [(held - 1000, false), (0, true)] {
            a.set_quota(&bob.vault.id(), Some(quota)).await.unwrap();
            assert_eq!(
                message::ask(&session, &restore).await.unwrap(),
                Reply::Restore { held: vec![true, both] }
            );
            let less = if both { 0 } else { 1000 };
            assert_eq!(ann.held_for(&bob).bytes, held - less);
        }
        // A head of another owner.
        ann.publish("x");
        let (_, _, head) = ann.vault.db.read(publish::current_head).unwrap().unwrap();
        assert!(matches!(message::put_head(&session, &head).await.unwrap(), HeadOutcome::Refused(_)));
        bob.publish("y");
        let (_, _, head) = bob.vault.db.read(publish::current_head).unwrap().unwrap();
        assert!(matches!(message::put_head(&session, &head).await.unwrap(), HeadOutcome::Missing(_)));
    });
}

#[test]
fn recovery_gives_back_head_peers_and_tree_and_reads_only() {
    run(|executor| async move {
        let (ann, bob, eve) = (Cell::new(1), Cell::new(2), Cell::new(3));
        let (a, b, e) = (ann.start(&executor).await, bob.start(&executor).await, eve.start(&executor).await);
        pair(&a, &b, Role::Friend).await;
        let (_, invite) = a.invite(Role::Peer, 3600).await.unwrap();
        e.join(&invite.to_string()).await.unwrap();
        ann.add_folder("photos");
        ann.publish("setting");
        let names = ann.add_chunks(10, 2000);
        let report = a.round().await;
        assert!(report.peers.iter().all(|peer| peer.why.is_empty()), "{report:?}");
        a.stop().await;
        let secret = ann.vault.master.recovery_secret();
        let session = rogue(&executor, &ann, &b, Approach::Recovery { secret }).await.unwrap();
        let release = Request::Release { names };
        assert!(matches!(message::ask(&session, &release).await, Err(message::AskError::Refused(_))));

        let new = Cell::new(1);
        let addresses = [format!("127.0.0.1:{}", b.port())];
        let report = fetch_catalog(&new.vault, &new.books, &addresses).await.unwrap();
        assert_eq!((report.files, report.peers, report.life), (1, 2, 2));
        assert_eq!(new.vault.db.read(|t| t.meta_u64("phrase_kept")).unwrap(), Some(1));
        assert_eq!(report.settings, [("setting".to_owned(), "\"value\"".to_owned())]);
        let node = new.vault.db.read(|t| t.child(NodeId::ROOT, b"photos")).unwrap().unwrap();
        assert_eq!(node.state, NodeState::Awaiting);
        let n = new.start(&executor).await;
        let report = n.round().await;
        assert!(report.peers.iter().all(|peer| peer.reached && peer.why.is_empty()), "{report:?}");
        // The old one wakes up, and sees that it is old.
        let woken = ann.start(&executor).await;
        woken.round().await;
        assert!(ann.vault.is_retired());

        let stranger = Cell::new(9);
        let silence = fetch_catalog(&stranger.vault, &stranger.books, &addresses).await.unwrap_err();
        assert!(matches!(silence, RecoverError::Silence(_)), "{silence}");
        let nowhere = fetch_catalog(&stranger.vault, &stranger.books, &["127.0.0.1:1".into()]).await;
        assert!(matches!(nowhere, Err(RecoverError::Unreachable(_))));
    });
}

fn is_told(cell: &Cell, code: &str) -> bool {
    cell.vault.alerts().iter().any(|raised| raised.code == code)
}

#[test]
fn a_peer_that_a_recovery_has_forgotten_is_told_of_on_both_sides_and_comes_back_by_an_invite() {
    run(|executor| async move {
        let (ann, bob, eve, joe) = (Cell::new(1), Cell::new(2), Cell::new(3), Cell::new(4));
        let (a, b, e) = (ann.start(&executor).await, bob.start(&executor).await, eve.start(&executor).await);
        let j = joe.start(&executor).await;
        let ann_id = ann.vault.id();
        // Whoever pairs publishes, too: who comes first is all the same.
        let say = |text: &str| {
            let key = record_key(RecordKind::Setting, text.as_bytes());
            ann.vault.db.change(|t| t.put_record(&key, b"true")).unwrap();
            publish::publish(&ann.vault).unwrap();
        };
        pair(&a, &e, Role::Peer).await;
        // Joe was a peer, and is none any more when Eve hears of the catalog.
        let (_, invite) = a.invite(Role::Peer, 3600).await.unwrap();
        j.join(&invite.to_string()).await.unwrap();
        say("with joe");
        a.remove_peer(&joe.vault.id()).await.unwrap();
        say("before");
        assert_eq!(a.round().await.peers[0].why, "");
        let (port, eve_port) = (a.port(), e.port());
        e.stop().await;
        // Bob is invited after that, and nobody else has heard of what comes then.
        let (_, invite) = a.invite(Role::Peer, 3600).await.unwrap();
        b.join(&invite.to_string()).await.unwrap();
        say("after");
        let report = a.round().await;
        assert!(report.peers.iter().any(|peer| peer.reached && peer.why.is_empty()), "{report:?}");
        a.stop().await;
        while b.link(&ann_id).is_some() {
            Timer::after(Duration::from_millis(5)).await;
        }

        let _e = eve.start_at(&executor, eve_port).await;
        let new = Cell::new(1);
        fetch_catalog(&new.vault, &new.books, &[format!("127.0.0.1:{eve_port}")]).await.unwrap();
        let key = record_key(RecordKind::Setting, b"after");
        assert_eq!(new.vault.db.read(|t| t.record(&key)).unwrap(), None);
        let n = new.start_at(&executor, port).await;
        let why = b.dial_peer(&ann_id).await.unwrap_err();
        assert!(why.contains("does not know this cell"), "{why}");
        while !is_told(&new, "stranger") {
            Timer::after(Duration::from_millis(5)).await;
        }
        b.watch_peers().await;
        assert!(!is_told(&bob, "peer-refuses"));
        bob.clock.pass(Duration::from_secs(3600));
        b.watch_peers().await;
        assert!(is_told(&bob, "peer-refuses") && !is_told(&bob, "peer-silent"));

        // It comes back by an invite, with what it alone knew.
        let (_, invite) = n.invite(Role::Peer, 3600).await.unwrap();
        b.join(&invite.to_string()).await.unwrap();
        n.watch_peers().await;
        b.watch_peers().await;
        assert!(!is_told(&new, "stranger") && !is_told(&bob, "peer-refuses"));
        n.round().await;
        assert!(new.vault.db.read(|t| t.record(&key)).unwrap().is_some());

        // Of who was removed nothing is told: before the recovery, or after it.
        n.hear_stranger(joe.vault.id()).await;
        assert!(!is_told(&new, "stranger"));
        n.remove_peer(&bob.vault.id()).await.unwrap();
        assert!(!n.gate.is_known(&bob.vault.id(), bob.vault.identity.x_public()));
        assert_eq!(n.gate.stranger.take(), None);
        // Somebody else is told of here, and nobody where there was no recovery.
        let someone = Cell::new(9);
        assert!(!n.gate.is_known(&someone.vault.id(), someone.vault.identity.x_public()));
        assert_eq!(n.gate.stranger.take(), Some(someone.vault.id()));
        b.hear_stranger(someone.vault.id()).await;
        assert!(!is_told(&bob, "stranger"));
        n.hear_stranger(someone.vault.id()).await;
        assert!(is_told(&new, "stranger"));
    });
}

#[test]
fn a_catalog_of_which_each_peer_has_lost_a_part_comes_back_from_all_of_them() {
    run(|executor| async move {
        let (ann, bob, eve) = (Cell::new(1), Cell::new(2), Cell::new(3));
        let (a, b, e) = (ann.start(&executor).await, bob.start(&executor).await, eve.start(&executor).await);
        pair(&a, &b, Role::Peer).await;
        pair(&a, &e, Role::Peer).await;
        a.round().await;
        for name in ["one", "two", "three"] {
            ann.add_folder(name);
            ann.publish(name);
            a.round().await;
        }
        a.stop().await;
        // Bob keeps what names the peers, and Eve keeps what Bob has lost.
        let segments = ann.vault.db.read(|t| t.segments()).unwrap();
        let names_peers = |name: &ChunkName| {
            let bytes = ann.vault.local_chunk(name).unwrap().unwrap();
            let plain = crate::catalog::open_segment(&bytes, &ann.vault.master).unwrap();
            let mut found = false;
            let read = crate::catalog::read_segment(&plain, |_, key, _| {
                found |= key[0] == crate::catalog::RecordKind::Peer as u8;
                Ok::<(), crate::catalog::CatalogError>(())
            });
            read.unwrap();
            found
        };
        let (kept, lost): (Vec<_>, Vec<_>) = segments.iter().partition(|(_, name, _)| names_peers(name));
        assert!(!kept.is_empty() && !lost.is_empty(), "{segments:?}");
        assert!(lost.iter().all(|(_, name, _)| bob.store.flip_byte(*name)));
        assert!(kept.iter().all(|(_, name, _)| eve.store.flip_byte(*name)));

        let again = Cell::new(1);
        // A disk without room for it is no fault of Bob's, and the next try goes on.
        again.store.set_capacity(10);
        let report = fetch_catalog(&again.vault, &again.books, &[format!("127.0.0.1:{}", b.port())]).await;
        assert!(matches!(report, Err(RecoverError::Full(_))), "{report:?}");
        again.store.set_capacity(u64::MAX);
        let report = fetch_catalog(&again.vault, &again.books, &[format!("127.0.0.1:{}", b.port())]).await;
        let report = report.unwrap();
        assert_eq!((report.files, report.peers, report.life), (3, 2, 2));
        // When Eve is away too, it says so, and what has come stays.
        e.stop().await;
        let alone = Cell::new(1);
        let why = fetch_catalog(&alone.vault, &alone.books, &[format!("127.0.0.1:{}", b.port())]).await;
        assert!(
            matches!(why, Err(RecoverError::Incomplete { missing, .. }) if missing == lost.len()),
            "{why:?}"
        );
    });
}

/// Ann's disk was copied, and both copies went on: what one wrote is with bob, and it has stopped; the other's is not.
async fn two_copies(executor: &Rc<LocalExecutor<'static>>) -> (Cell, Cell, Rc<Sync>, Cell) {
    let (ann, bob) = (Cell::new(1), Cell::new(2));
    let (a, b) = (ann.start(executor).await, bob.start(executor).await);
    pair(&a, &b, Role::Peer).await;
    ann.publish("before");
    a.round().await;
    let clone = ann.copied(1);
    ann.add_folder("ours");
    ann.publish("ours");
    a.round().await;
    a.stop().await;
    clone.add_folder("theirs");
    clone.publish("theirs");
    (ann, bob, b, clone)
}

#[test]
fn of_two_copies_one_goes_on_and_the_other_retires() {
    run(|executor| async move {
        let (ann, bob, _b, clone) = two_copies(&executor).await;
        let c = clone.start(&executor).await;
        let report = c.round().await;
        assert_eq!(report.peers[0].why, "");
        assert_eq!(clone.vault.life(), 2);
        for name in [&b"ours"[..], b"theirs"] {
            assert!(clone.vault.db.read(|t| t.child(NodeId::ROOT, name)).unwrap().is_some());
        }
        c.stop().await;
        let a = ann.start(&executor).await;
        a.round().await;
        assert!(ann.vault.is_retired() && !clone.vault.is_retired());
        let tips = bob.vault.db.change(|t| t.peer_heads(t.cell(&ann.vault.id())?)).unwrap();
        let tips: Vec<_> = tips.into_iter().filter(|head| head.tip).map(|head| head.hash).collect();
        assert_eq!(tips, [clone.head()]);
    });
}

#[test]
fn what_another_copy_wrote_and_its_peer_has_lost_holds_up_neither_rounds_nor_a_recovery() {
    run(|executor| async move {
        let (ann, bob, b, clone) = two_copies(&executor).await;
        let (_, newest, _) = *ann.vault.db.read(|t| t.segments()).unwrap().last().unwrap();
        assert!(bob.store.flip_byte(newest));
        let c = clone.start(&executor).await;
        for round in 0..2 {
            let report = c.round().await;
            assert_eq!((report.peers[0].why.as_str(), clone.vault.life()), ("", 1), "{round}");
        }
        let tips = || bob.vault.db.change(|t| t.peer_heads(t.cell(&ann.vault.id())?)).unwrap();
        assert!(tips().iter().any(|head| head.hash == clone.head()), "it is kept there");
        // It may have come to light the day after. It has not, so the other's life is left to it.
        clone.pass(DAY + DAY / 24);
        bob.pass(DAY + DAY / 24);
        let report = c.round().await;
        assert_eq!((report.peers[0].why.as_str(), clone.vault.life()), ("", 2));
        assert!(tips().iter().any(|head| (head.hash, head.life) == (clone.head(), 2)));

        c.stop().await;
        let again = Cell::new(1);
        let report =
            fetch_catalog(&again.vault, &again.books, &[format!("127.0.0.1:{}", b.port())]).await.unwrap();
        assert_eq!((report.files, report.merged, report.broken, report.life), (1, 0, 1, 3));
        assert!(again.vault.db.read(|t| t.child(NodeId::ROOT, b"theirs")).unwrap().is_some());
    });
}

#[test]
fn removed_peer_keeps_chunks_and_copies_heal_elsewhere() {
    run(|executor| async move {
        let (ann, bob, eve) = (Cell::new(1), Cell::new(2), Cell::new(3));
        let (a, b, e) = (ann.start(&executor).await, bob.start(&executor).await, eve.start(&executor).await);
        pair(&a, &b, Role::Peer).await;
        let names = ann.add_chunks(20, 2000);
        a.round().await;
        let (_, invite) = a.invite(Role::Peer, 3600).await.unwrap();
        e.join(&invite.to_string()).await.unwrap();
        a.set_favorite(&eve.vault.id(), true).await.unwrap();
        a.round().await;
        assert_eq!(ann.copies_with(&eve), 0, "never over the factor");
        a.remove_peer(&bob.vault.id()).await.unwrap();
        let report = a.round().await;
        assert_eq!((report.peers.len(), report.waiting_chunks, ann.copies_with(&eve)), (1, 0, 20));
        assert!(b.peers().await.unwrap().is_empty());
        assert_eq!(bob.held_for(&ann).chunks, 20);
        // Release reaches the holder.
        ann.vault
            .db
            .change(|t| {
                let id = t.chunk(&names[0])?.ok_or(DbError::Row("chunk"))?.id;
                t.set_own(id, Own::No)?;
                t.release_copies(id)
            })
            .unwrap();
        a.round().await;
        assert_eq!(eve.held_for(&ann).chunks, 19);
        let hold = eve.vault.db.change(|t| -> Result<_, DbError> {
            let id = t.chunk(&names[0])?.ok_or(DbError::Row("chunk"))?.id;
            t.hold(id, t.cell(&ann.vault.id())?)
        });
        assert!(matches!(hold.unwrap(), Some((_, HoldState::Trash))));
    });
}

#[test]
fn random_requests_are_survived() {
    run(|executor| async move {
        let (ann, bob) = (Cell::new(1), Cell::new(2));
        let (a, b) = (ann.start(&executor).await, bob.start(&executor).await);
        pair(&a, &b, Role::Peer).await;
        b.stop().await;
        let known = Approach::Known { id: ann.vault.id(), x25519: *ann.vault.identity.x_public() };
        let session = rogue(&executor, &bob, &a, known).await.unwrap();
        for seed in 0..400u32 {
            let mut stream = session.open().await.unwrap();
            let dice = random::<64>();
            let mut head = dice[..1 + seed as usize % 60].to_vec();
            // Goodbye would end it.
            head[0] = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 99][seed as usize % 13];
            message::write_head(&mut stream, &head).await.unwrap();
            if seed % 3 == 0 {
                let _ =
                    message::read_head(&mut stream, message::REPLY_HEAD_BYTES_MAX, Duration::from_millis(50))
                        .await;
            }
        }
        assert_eq!(message::ask(&session, &Request::Ping).await.unwrap(), Reply::Pong);
    });
}

#[test]
fn pauses_are_decided() {
    assert_eq!(dial_pause(1, 128), Duration::from_secs(1));
    assert!(dial_pause(u32::MAX, 255) <= Duration::from_secs(400));
    assert!((240..=360).contains(&round_pause(300, 0).as_secs()) && round_pause(300, 255).as_secs() == 360);
}

#[test]
fn heads_are_kept_as_tips_and_one_a_day() {
    let head = |n: u8, run: u8, day: u64, parents: &[u8]| HeadFacts {
        hash: BodyHash([n; 32]),
        life: 1,
        seq: n.into(),
        run: [run; 16],
        parents: parents.iter().map(|n| BodyHash([*n; 32])).collect(),
        at: day * DAY_S,
        bytes: 1000,
    };
    // 1 and 2 on one day, 3 from a run that never sent its parent, 9 a fork.
    let heads = [head(1, 1, 0, &[]), head(2, 1, 0, &[1]), head(3, 1, 40, &[77]), head(9, 2, 40, &[1])];
    assert_eq!(tips(&heads), HashSet::from([BodyHash([3; 32]), BodyHash([9; 32])]));
    assert_eq!(heads_to_keep(&heads, 10 * DAY_S).len(), 3);
    assert_eq!(heads_to_keep(&heads, 41 * DAY_S), tips(&heads));
    let many: Vec<HeadFacts> = (0..255).map(|n| HeadFacts { bytes: 1 << 20, ..head(n, n, 0, &[]) }).collect();
    assert_eq!(heads_to_keep(&many, 0).len(), 8);
}

#[test]
fn daily_heads_outlive_the_database_and_go_with_their_owner() {
    run(|executor| async move {
        let (ann, bob) = (Cell::new(1), Cell::new(2));
        let (a, b) = (ann.start(&executor).await, bob.start(&executor).await);
        pair(&a, &b, Role::Peer).await;
        for day in 0..5 {
            ann.publish(&format!("day {day}"));
            let report = a.round().await;
            assert_eq!(report.peers[0].why, "");
            bob.clock.pass(Duration::from_secs(DAY_S));
        }
        let heads_of = |cell: &Cell| {
            let mut heads = cell.vault.db.change(|t| t.peer_heads(t.cell(&ann.vault.id())?)).unwrap();
            heads.sort_by_key(|head| (head.life, head.seq));
            heads.into_iter().map(|head| (head.hash, head.tip)).collect::<Vec<_>>()
        };
        let before = heads_of(&bob);
        assert_eq!(before.len(), 5, "{before:?}");

        let again = Cell::new(2);
        copy_files(&bob.dir.0.join("heads"), &{
            let to = again.dir.0.join("heads");
            std::fs::create_dir(&to).unwrap();
            to
        });
        adopt_heads(&again.vault).unwrap();
        assert_eq!(heads_of(&again), before);
        // Those of later days take their places one by one, and the oldest goes first.
        let next = again.vault.db.change(|t| t.peer_heads(t.cell(&ann.vault.id())?)).unwrap();
        let oldest = next.iter().min_by_key(|head| head.seq).unwrap();
        assert!(next.iter().all(|head| head.at >= oldest.at));

        let files = |cell: &Cell| std::fs::read_dir(cell.dir.0.join("heads")).unwrap().count();
        assert_eq!(files(&bob), 5);
        b.keeper.give_up(&ann.vault.id()).unwrap();
        assert_eq!((heads_of(&bob), files(&bob)), (vec![], 0));
    });
}

const DAY: Duration = Duration::from_secs(86_400);

impl Cell {
    fn pass(&self, time: Duration) {
        self.clock.pass(time);
    }

    fn held_chunks(&self, owner: &Cell) -> u64 {
        self.held_for(owner).chunks
    }
}

#[test]
fn a_peer_whose_batches_never_come_keeps_no_other_waiting() {
    run(|executor| async move {
        let (ann, bob, eve) = (Cell::new(1), Cell::new(2), Cell::new(3));
        let (a, b, e) = (ann.start(&executor).await, bob.start(&executor).await, eve.start(&executor).await);
        pair(&a, &b, Role::Peer).await;
        pair(&a, &e, Role::Peer).await;
        e.stop().await;
        let known = Approach::Known { id: ann.vault.id(), x25519: *ann.vault.identity.x_public() };
        let session = rogue(&executor, &eve, &a, known).await.unwrap();
        let mut puttings = Vec::new();
        for n in 0..8 {
            puttings
                .push(message::put(&session, Class::Chunk, vec![(chunk(n, 1000).0, 1000)]).await.unwrap());
        }
        let is_full = || a.permits.taking.take(eve.vault.id()).now_or_never().is_none();
        while !is_full() {
            Timer::after(Duration::from_millis(5)).await;
        }
        bob.add_chunks(5, 2000);
        let report = b.round().await;
        assert_eq!((report.peers[0].why.as_str(), report.waiting_chunks), ("", 0));
        assert_eq!(ann.held_for(&bob).chunks, 5);
        assert!(is_full(), "while those of the other were still waited for");
        drop(puttings);
    });
}

/// Rounds until nothing moves any more.
async fn level(a: &Rc<Sync>) {
    a.heal().await;
    a.round().await;
    a.heal().await;
    a.round().await;
}

#[test]
fn what_a_silent_peer_holds_is_copied_elsewhere_after_the_grace_and_trimmed_after_it_has_settled() {
    run(|executor| async move {
        let (ann, bob, eve) = (Cell::new(1), Cell::new(2), Cell::new(3));
        let (a, b) = (ann.start(&executor).await, bob.start(&executor).await);
        pair(&a, &b, Role::Peer).await;
        ann.add_chunks(50, 2000);
        ann.publish("one");
        a.round().await;
        let e = eve.start(&executor).await;
        pair(&a, &e, Role::Peer).await;
        a.watch_peers().await;
        assert_eq!((ann.copies_with(&bob), ann.copies_with(&eve)), (50, 0));
        b.stop().await;
        while a.link(&bob.vault.id()).is_some() {
            Timer::after(Duration::from_millis(5)).await;
        }
        // A day is waited for a peer whose habits are not known, and a restart moves nothing.
        ann.pass(DAY - Duration::from_secs(60));
        a.watch_peers().await;
        level(&a).await;
        assert_eq!(eve.held_chunks(&ann), 0);
        assert!(ann.vault.alerts().iter().any(|raised| raised.code == "peer-silent"));
        ann.pass(Duration::from_secs(60));
        a.watch_peers().await;
        level(&a).await;
        assert_eq!(eve.held_chunks(&ann), 50);
        // Bob is back: for a day there are copies too many, then one of each goes, and no more than that.
        let b = bob.start(&executor).await;
        a.wait_connected(Duration::from_secs(60)).await;
        a.watch_peers().await;
        level(&a).await;
        assert_eq!((bob.held_chunks(&ann), eve.held_chunks(&ann)), (50, 50));
        assert!(ann.vault.alerts().iter().all(|raised| raised.code != "peer-silent"));
        ann.pass(DAY);
        level(&a).await;
        assert_eq!(bob.held_chunks(&ann) + eve.held_chunks(&ann), 50);
        assert_eq!(a.round().await.waiting_chunks, 0);
        b.stop().await;
    });
}

#[test]
fn copies_of_a_peer_whose_leaving_was_cut_short_by_a_power_cut_are_made_elsewhere_all_the_same() {
    run(|executor| async move {
        let (ann, bob, eve) = (Cell::new(1), Cell::new(2), Cell::new(3));
        let (a, b) = (ann.start(&executor).await, bob.start(&executor).await);
        pair(&a, &b, Role::Peer).await;
        ann.add_chunks(50, 2000);
        a.round().await;
        let e = eve.start(&executor).await;
        pair(&a, &e, Role::Peer).await;
        a.watch_peers().await;
        b.stop().await;
        a.stop().await;
        // It is noted that he is away, and none of his copies is marked yet.
        let key = super::heal::away_key(&bob.vault.id());
        ann.vault.db.change(|t| t.set_meta(&key, &[1])).unwrap();
        let a = ann.start(&executor).await;
        while a.link(&eve.vault.id()).is_none() {
            Timer::after(Duration::from_millis(5)).await;
        }
        ann.pass(DAY);
        a.watch_peers().await;
        level(&a).await;
        assert_eq!(eve.held_chunks(&ann), 50);
        e.stop().await;
    });
}

#[test]
fn a_lower_factor_lets_copies_go_and_a_higher_one_makes_them() {
    run(|executor| async move {
        let ann = Cell::with(1, |config| config.copies = 3);
        let (bob, eve) = (Cell::new(2), Cell::new(3));
        let (a, b, e) = (ann.start(&executor).await, bob.start(&executor).await, eve.start(&executor).await);
        pair(&a, &b, Role::Peer).await;
        pair(&a, &e, Role::Peer).await;
        ann.add_chunks(40, 2000);
        level(&a).await;
        assert_eq!((bob.held_chunks(&ann), eve.held_chunks(&ann)), (40, 40));
        a.stop().await;
        let mut config = ann.vault.config.clone();
        config.copies = 2;
        let again = Cell::assemble(
            Folder::new(),
            1,
            {
                ann.vault.db.checkpoint().unwrap();
                let to = Folder::new();
                copy_files(&ann.dir.0, &to.0);
                Db::open(&to.0.join("placement.db")).unwrap().0
            },
            Arc::clone(&ann.books),
            Arc::clone(&ann.store),
            |settings| *settings = config,
        );
        let a = again.start(&executor).await;
        a.wait_connected(Duration::from_secs(60)).await;
        level(&a).await;
        assert_eq!(bob.held_chunks(&again) + eve.held_chunks(&again), 40);
        assert_eq!(a.round().await.waiting_chunks, 0);
    });
}

#[test]
fn a_daily_comparison_finds_what_the_inventory_never_told() {
    run(|executor| async move {
        let (ann, bob) = (Cell::new(1), Cell::new(2));
        let (a, b) = (ann.start(&executor).await, bob.start(&executor).await);
        pair(&a, &b, Role::Peer).await;
        let names = ann.add_chunks(400, 700);
        a.round().await;
        a.round().await;
        assert_eq!(bob.held_chunks(&ann), 400);
        // Bob loses some without a word in his inventory, and one copy is not noted here.
        bob.vault
            .db
            .change(|t| -> Result<(), DbError> {
                for name in &names[..7] {
                    let row = t.chunk(name)?.unwrap();
                    t.move_chunk(row.id, None)?;
                }
                Ok(())
            })
            .unwrap();
        ann.vault
            .db
            .change(|t| {
                let cell = t.cell(&bob.vault.id())?;
                let row = t.chunk(&names[9])?.unwrap();
                t.drop_copy(row.id, cell)
            })
            .unwrap();
        let before = a.traffic(&bob.vault.id()).unwrap();
        ann.pass(DAY);
        let report = a.round().await;
        assert_eq!(report.peers[0].pushed_chunks, 7);
        assert_eq!(ann.copies_with(&bob), 400);
        // Eight buckets and seven small chunks, not the whole inventory of 18 kB.
        let after = a.traffic(&bob.vault.id()).unwrap();
        let cost = after.0 + after.1 - before.0 - before.1;
        assert!(cost < 60_000, "{cost} bytes");
        for name in &names {
            assert!(bob.vault.local_chunk(name).unwrap().is_some());
        }
        b.stop().await;
    });
}

/// Waits for how two cells stand, each with its only peer.
async fn stand(a: &Rc<Sync>, b: &Rc<Sync>, wanted: (Standing, Standing)) {
    loop {
        let stands = (a.peers().await.unwrap()[0].standing, b.peers().await.unwrap()[0].standing);
        if stands == wanted {
            return;
        }
        Timer::after(Duration::from_millis(10)).await;
    }
}

fn has_request(cell: &Cell) -> bool {
    cell.vault.alerts().iter().any(|raised| raised.code == "friend-request")
}

#[test]
fn friendship_is_asked_for_accepted_and_undone_over_a_session() {
    run(|executor| async move {
        let (ann, bob) = (Cell::new(1), Cell::new(2));
        let (a, b) = (ann.start(&executor).await, bob.start(&executor).await);
        let (ann_id, bob_id) = (ann.vault.id(), bob.vault.id());
        pair(&a, &b, Role::Peer).await;
        assert!(!a.is_friend(&bob_id) && !b.is_friend(&ann_id));
        let decided = a.set_friend(&bob_id, true).await.unwrap();
        assert_eq!(decided, Decided { standing: Standing::Asked, is_told: true });
        stand(&a, &b, (Standing::Asked, Standing::Wanted)).await;
        assert!(has_request(&bob) && !has_request(&ann));
        assert!(!a.is_friend(&bob_id) && !b.is_friend(&ann_id));
        let decided = b.set_friend(&ann_id, true).await.unwrap();
        assert_eq!(decided, Decided { standing: Standing::Friends, is_told: true });
        stand(&a, &b, (Standing::Friends, Standing::Friends)).await;
        assert!(a.is_friend(&bob_id) && b.is_friend(&ann_id) && !has_request(&bob));
        // A cut connection tells both once more what they know.
        let link = a.link(&bob_id).unwrap();
        let losses = link.losses();
        a.cut(&bob_id);
        // That it was lost stays known, however soon it is there again.
        while link.losses() == losses || a.link(&bob_id).is_none_or(|link| link.told_wish.get().is_none()) {
            Timer::after(Duration::from_millis(1)).await;
        }
        stand(&a, &b, (Standing::Friends, Standing::Friends)).await;
        b.set_friend(&ann_id, false).await.unwrap();
        stand(&a, &b, (Standing::None, Standing::None)).await;
        assert_eq!((a.peers().await.unwrap().len(), b.peers().await.unwrap().len()), (1, 1));
        // Declined.
        b.set_friend(&ann_id, true).await.unwrap();
        stand(&a, &b, (Standing::Wanted, Standing::Asked)).await;
        a.set_friend(&bob_id, false).await.unwrap();
        stand(&a, &b, (Standing::None, Standing::None)).await;
        assert!(!has_request(&ann));
        assert!(a.set_friend(&ann_id, true).await.is_err(), "not its own");
    });
}

#[test]
fn a_request_waits_for_a_peer_that_is_off_and_friendship_survives_restarts() {
    run(|executor| async move {
        let (ann, bob) = (Cell::new(1), Cell::new(2));
        let (a, b) = (ann.start(&executor).await, bob.start(&executor).await);
        let (ann_id, bob_id) = (ann.vault.id(), bob.vault.id());
        pair(&a, &b, Role::Peer).await;
        a.stop().await;
        drop(a);
        // Bob knows nothing of it while Ann is off, and Ann is reached at another port afterwards.
        let decided = b.set_friend(&ann_id, true).await.unwrap();
        assert_eq!(decided, Decided { standing: Standing::Asked, is_told: false });
        let a = ann.start(&executor).await;
        stand(&a, &b, (Standing::Wanted, Standing::Asked)).await;
        a.set_friend(&bob_id, true).await.unwrap();
        stand(&a, &b, (Standing::Friends, Standing::Friends)).await;
        a.stop().await;
        let a = ann.start(&executor).await;
        assert!(a.is_friend(&bob_id));
        stand(&a, &b, (Standing::Friends, Standing::Friends)).await;
    });
}

#[test]
fn whoever_goes_back_to_an_old_backup_is_no_friend_against_his_will() {
    run(|executor| async move {
        let (ann, bob) = (Cell::new(1), Cell::new(2));
        let (a, b) = (ann.start(&executor).await, bob.start(&executor).await);
        let (ann_id, bob_id) = (ann.vault.id(), bob.vault.id());
        pair(&a, &b, Role::Friend).await;
        stand(&a, &b, (Standing::Friends, Standing::Friends)).await;
        a.round().await;
        let backup = bob.books.peer(&ann_id).unwrap().unwrap();
        b.set_friend(&ann_id, false).await.unwrap();
        stand(&a, &b, (Standing::None, Standing::None)).await;
        b.stop().await;
        // The catalog is newer here; the books are what is gone by.
        bob.books.save_peer(&bob.vault, &backup).unwrap();
        let b = bob.start(&executor).await;
        assert!(b.is_friend(&ann_id), "that is what the backup says");
        stand(&a, &b, (Standing::None, Standing::None)).await;
        a.set_friend(&bob_id, true).await.unwrap();
        stand(&a, &b, (Standing::Asked, Standing::Wanted)).await;
        b.set_friend(&ann_id, true).await.unwrap();
        stand(&a, &b, (Standing::Friends, Standing::Friends)).await;
    });
}

#[test]
fn friends_come_back_from_the_catalog() {
    run(|executor| async move {
        let (ann, bob) = (Cell::new(1), Cell::new(2));
        let (a, b) = (ann.start(&executor).await, bob.start(&executor).await);
        pair(&a, &b, Role::Friend).await;
        a.set_label(&bob.vault.id(), "robert").await.unwrap();
        a.round().await;
        let again = Cell::new(1);
        let report = fetch_catalog(&again.vault, &again.books, &[format!("127.0.0.1:{}", b.port())]).await;
        assert_eq!(report.unwrap().peers, 1);
        let peer = again.books.peer(&bob.vault.id()).unwrap().unwrap();
        assert!(peer.friendship.are_friends());
        assert_eq!((peer.name.as_str(), peer.own_name().as_str()), ("robert", "cell2"));
    });
}

#[test]
fn a_peer_that_changes_its_mind_all_the_time_is_not_heard() {
    run(|executor| async move {
        let (ann, bob) = (Cell::new(1), Cell::new(2));
        let (a, b) = (ann.start(&executor).await, bob.start(&executor).await);
        pair(&a, &b, Role::Peer).await;
        b.stop().await;
        let known = Approach::Known { id: ann.vault.id(), x25519: *ann.vault.identity.x_public() };
        let session = rogue(&executor, &bob, &a, known).await.unwrap();
        let mut taken = 0;
        for number in 1..200 {
            let ours = Wish { is_friend: number % 2 == 0, number, floor: 0 };
            // It makes up that Ann wished it as well.
            let theirs = Wish { is_friend: true, number: 0, floor: 0 };
            match message::ask(&session, &Request::Friendship(Friendship { ours, theirs })).await {
                Ok(_) => taken += 1,
                Err(message::AskError::Refused(why)) => assert_eq!(why.code, message::ErrorCode::Busy),
                Err(why) => panic!("{why}"),
            }
        }
        assert!((1..=60).contains(&taken), "{taken}");
        assert!(!a.is_friend(&bob.vault.id()));
    });
}

#[test]
fn names_are_labels_and_ids_decide() {
    run(|executor| async move {
        let (ann, bob, eve) = (Cell::new(1), Cell::new(2), Cell::new(3));
        let (a, b, e) = (ann.start(&executor).await, bob.start(&executor).await, eve.start(&executor).await);
        pair(&a, &b, Role::Peer).await;
        pair(&a, &e, Role::Peer).await;
        let (bob_id, eve_id) = (bob.vault.id(), eve.vault.id());
        a.set_label(&bob_id, "robert").await.unwrap();
        assert_eq!(a.find_peer("robert").unwrap(), bob_id);
        assert!(a.find_peer("cell2").is_err(), "its own name is not its name here");
        assert!(a.set_label(&eve_id, "robert").await.is_err(), "taken");
        assert!(a.set_label(&eve_id, "a\nb").await.is_err());
        // A name that looks like somebody else's id.
        let id = bob_id.to_string();
        a.set_label(&eve_id, &id[..8]).await.unwrap();
        let why = a.find_peer(&id[..8]).unwrap_err().to_string();
        assert!(why.contains("several peers") && why.contains("robert"), "{why}");
        assert_eq!(a.find_peer(&id).unwrap(), bob_id);
        assert_eq!(a.find_peer(&id[..12]).unwrap(), bob_id);
        a.set_label(&bob_id, "").await.unwrap();
        assert_eq!(a.find_peer("cell2").unwrap(), bob_id);
    });
}

//! A cell that knows a million chunks, and its ten peers: what a quiet round costs, what one after changes costs, how large
//! placement.db is, and how much memory it takes. For `scripts/bench --only scale`.
//!
//! ```text
//! scale [CHUNKS] [CHANGES]        prints lines of JSON; 1,000,000 and 1,000 unless given
//! ```
//!
//! The databases are real ones on disk and the sessions real ones over loopback; only the chunks' bytes are made up when they
//! are read, from their number, so that a million of them need no disk. The owner runs in a process of its own.

use std::io::{self, BufRead, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use grove::card::Role;
use grove::clock::SystemClock;
use grove::config::Config;
use grove::id::ChunkName;
use grove::keys::{MasterKey, sha256};
use grove::placement::{Db, DbError, HoldClass, HoldState, Own};
use grove::store::{
    ChunkStore, FreeSpace, Held, MemoryStore, PackId, PackInfo, Place, Rewritten, See, Staged, StoreError,
};
use grove::sync::{Books, Sync};
use grove::vault::{Vault, VaultParts};
use smol::LocalExecutor;

const PEERS: u8 = 10;
const COPIES: u64 = 2;
const CHUNK_BYTES: u64 = 512;
const PACK: PackId = PackId(7);
const ROWS_PER_CHANGE: u64 = 20_000;
const ROUNDS: u32 = 20;

/// The bytes of the chunk with this number.
fn bytes_of(number: u64) -> Vec<u8> {
    let mut bytes = vec![0; CHUNK_BYTES as usize];
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    bytes
}

/// Chunks of the made-up pack by their number; others in memory.
struct MadeUp {
    others: MemoryStore,
}

impl ChunkStore for MadeUp {
    fn stage(&self, name: ChunkName, sealed: &[u8]) -> Result<Staged, StoreError> {
        self.others.stage(name, sealed)
    }
    fn stage_urgent(&self, name: ChunkName, sealed: &[u8]) -> Result<Staged, StoreError> {
        self.others.stage_urgent(name, sealed)
    }
    fn commit(&self, staged: Vec<Staged>) -> Result<Vec<Place>, StoreError> {
        self.others.commit(staged)
    }
    fn read(&self, name: ChunkName, place: Place, len: u32) -> Result<Vec<u8>, StoreError> {
        match place {
            Place::Pack { pack: PACK, offset } => Ok(bytes_of(offset / CHUNK_BYTES)),
            _ => self.others.read(name, place, len),
        }
    }
    fn contains(&self, name: ChunkName, place: Place, len: u32) -> bool {
        matches!(place, Place::Pack { pack: PACK, .. }) || self.others.contains(name, place, len)
    }
    fn remove(&self, name: ChunkName, place: Place) -> Result<(), StoreError> {
        self.others.remove(name, place)
    }
    fn quarantine(&self, name: ChunkName, place: Place, len: u32) -> Result<(), StoreError> {
        self.others.quarantine(name, place, len)
    }
    fn scan(&self, see: &mut See<'_>) -> Result<(), StoreError> {
        self.others.scan(see)
    }
    fn scan_pack(&self, pack: PackId, see: &mut See<'_>) -> Result<(), StoreError> {
        self.others.scan_pack(pack, see)
    }
    fn packs(&self) -> Result<Vec<PackInfo>, StoreError> {
        self.others.packs()
    }
    fn retire_pack(&self, pack: PackId) -> Result<(), StoreError> {
        self.others.retire_pack(pack)
    }
    fn rewrite(&self, live: &mut dyn Iterator<Item = Held>) -> Result<Rewritten, StoreError> {
        self.others.rewrite(live)
    }
    fn remove_pack(&self, pack: PackId) -> Result<(), StoreError> {
        self.others.remove_pack(pack)
    }
    fn free(&self) -> Result<FreeSpace, StoreError> {
        Ok(FreeSpace { total: 1 << 44, free: 1 << 43, reserve: 1 << 30 })
    }
    fn path_of(&self, name: ChunkName, place: Place) -> PathBuf {
        self.others.path_of(name, place)
    }
}

struct Cell {
    vault: Arc<Vault>,
    books: Arc<Books>,
}

fn open(dir: &Path, seed: u8) -> Cell {
    let dir = dir.join(format!("cell{seed}"));
    std::fs::create_dir_all(&dir).expect("a folder can be made");
    let (db, _) = Db::open(&dir.join("placement.db")).expect("placement.db opens");
    let books = Arc::new(Books::open(&dir.join("books.db")).expect("books.db opens"));
    let mut config = Config::default();
    (config.name, config.copies) = (format!("cell{seed}"), COPIES + 1);
    (config.lan_discovery, config.portmap, config.routes_measure_hours) = (false, false, 0);
    let store = Arc::new(MadeUp { others: MemoryStore::new() });
    let vault = Vault::new(VaultParts {
        home: dir.clone(),
        dir,
        db,
        store,
        master: MasterKey::from_bytes([seed; 32]),
        clock: Arc::new(SystemClock::default()),
        config,
    });
    Cell { vault: Arc::new(vault.expect("the database is of this version")), books }
}

fn name_of(number: u64) -> ChunkName {
    ChunkName(sha256(&bytes_of(number)))
}

/// Who holds the chunk with this number.
fn holders(number: u64) -> impl Iterator<Item = u8> {
    (0..COPIES).map(move |copy| ((number + copy * 3) % u64::from(PEERS)) as u8 + 2)
}

fn place_of(number: u64) -> Place {
    Place::Pack { pack: PACK, offset: number * CHUNK_BYTES }
}

/// The owner's database (seed 1), or that of one of its peers.
fn fill(dir: &Path, seed: u8, chunks: u64) {
    let cell = open(dir, seed);
    let owner = MasterKey::from_bytes([1; 32]).identity(0, 0).id();
    let len = CHUNK_BYTES as u32;
    let mut from = 0;
    while from < chunks {
        let to = chunks.min(from + ROWS_PER_CHANGE);
        cell.vault
            .db
            .change(|t| -> Result<(), DbError> {
                for number in from..to {
                    if seed == 1 {
                        let id = t.put_chunk(&name_of(number), len, &place_of(number), Own::Data)?;
                        for holder in holders(number) {
                            let peer = t.cell(&MasterKey::from_bytes([holder; 32]).identity(0, 0).id())?;
                            t.put_copy(id, peer)?;
                            t.prove_copy(id, peer, cell.vault.today())?;
                        }
                    } else if holders(number).any(|holder| holder == seed) {
                        let id = t.put_chunk(&name_of(number), len, &place_of(number), Own::No)?;
                        let owner = t.cell(&owner)?;
                        t.put_hold(id, owner, HoldClass::Chunk, HoldState::Held, 1)?;
                    }
                }
                Ok(())
            })
            .expect("rows are written");
        from = to;
    }
    cell.vault.db.checkpoint().expect("the log is brought over");
}

async fn start(executor: &Rc<LocalExecutor<'static>>, cell: &Cell) -> Rc<Sync> {
    let listen: SocketAddr = "127.0.0.1:0".parse().expect("an address");
    let (vault, books) = (Arc::clone(&cell.vault), Arc::clone(&cell.books));
    Sync::start(Rc::clone(executor), vault, books, listen).await.expect("a cell listens on loopback")
}

/// All peers, in this process: joins with an invite a line, then answers until its input ends.
fn serve_peers(dir: &Path) {
    let executor = Rc::new(LocalExecutor::new());
    smol::block_on(executor.run(async {
        let mut peers = Vec::new();
        for seed in 2..PEERS + 2 {
            let invite = smol::unblock(|| io::stdin().lock().lines().next()).await;
            let Some(Ok(invite)) = invite else { return };
            let cell = open(dir, seed);
            let sync = start(&executor, &cell).await;
            sync.join(&invite).await.expect("the invite is good");
            peers.push((cell, sync));
            println!("joined");
        }
        let _ = smol::unblock(|| io::stdin().lock().lines().next()).await;
    }));
}

fn cpu_ms() -> f64 {
    // SAFETY: the struct is ours and zeroed; the call only fills it.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &mut usage);
        usage
    };
    let ms = |time: libc::timeval| time.tv_sec as f64 * 1e3 + time.tv_usec as f64 / 1e3;
    ms(usage.ru_utime) + ms(usage.ru_stime)
}

fn memory_kib(key: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with(key)).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).unwrap_or(0)
}

fn traffic(sync: &Sync) -> u64 {
    (2..PEERS + 2)
        .filter_map(|seed| sync.traffic(&MasterKey::from_bytes([seed; 32]).identity(0, 0).id()))
        .map(|(came, went)| came + went)
        .sum()
}

/// The owner: measures, and prints.
fn own(dir: &Path, chunks: u64, changes: u64) {
    let executor = Rc::new(LocalExecutor::new());
    smol::block_on(executor.run(async {
        let cell = open(dir, 1);
        let sync = start(&executor, &cell).await;
        let mut peers = Command::new(std::env::current_exe().expect("this program has a path"))
            .args(["--peers", &dir.display().to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("this program can be started");
        let mut to = peers.stdin.take().expect("piped");
        let mut from = io::BufReader::new(peers.stdout.take().expect("piped"));
        for _ in 0..PEERS {
            let (_, invite) = sync.invite(Role::Peer, 3600).await.expect("an invite is made");
            writeln!(to, "{invite}").expect("the peers read");
            let (line, back) = smol::unblock(move || {
                let mut line = String::new();
                from.read_line(&mut line).map(|_| line).map(|line| (line, from))
            })
            .await
            .expect("the peers answer");
            assert_eq!(line, "joined\n");
            from = back;
        }
        sync.wait_connected(Duration::from_secs(60)).await;
        // The first rounds learn of the peers' inventories.
        for _ in 0..3 {
            let report = sync.round().await;
            assert!(report.peers.iter().all(|peer| peer.why.is_empty()), "{report:?}");
            assert_eq!(report.waiting_chunks, 0);
        }
        let (bytes, cpu) = (traffic(&sync), cpu_ms());
        for _ in 0..ROUNDS {

            sync.round().await;
        }
        let quiet = f64::from(ROUNDS) * f64::from(PEERS);
        println!(
            r#"{{"what":"quiet round","chunks":{chunks},"peers":{PEERS},"bytes_per_peer":{:.0},"cpu_ms_per_peer":{:.2}}}"#,
            (traffic(&sync) - bytes) as f64 / quiet,
            (cpu_ms() - cpu) / quiet,
        );
        for count in [changes / 10, changes] {
            add(&cell.vault, count);
            let (bytes, cpu) = (traffic(&sync), cpu_ms());
            let report = sync.round().await;
            assert_eq!(report.waiting_chunks, 0, "{report:?}");
            let moved: u64 = report.peers.iter().map(|peer| peer.pushed_chunks).sum();
            println!(
                r#"{{"what":"round after changes","changes":{count},"copies":{moved},"bytes_per_copy":{:.0},"cpu_ms":{:.1}}}"#,
                (traffic(&sync) - bytes) as f64 / moved as f64,
                cpu_ms() - cpu,
            );
        }
        cell.vault.db.checkpoint().expect("the log is brought over");
        let size = std::fs::metadata(cell.vault.db.path()).map_or(0, |meta| meta.len());
        println!(
            r#"{{"what":"database","bytes_per_chunk":{:.1},"copies":{COPIES}}}"#,
            size as f64 / (chunks + changes + changes / 10) as f64
        );
        println!(
            r#"{{"what":"memory","peak_kib":{},"now_kib":{}}}"#,
            memory_kib("VmHWM"),
            memory_kib("VmRSS")
        );
        drop(to);
        sync.stop().await;
        let _ = peers.kill();
        let _ = peers.wait();
    }));
}

/// So many new chunks.
fn add(vault: &Vault, count: u64) {
    let _placing = vault.placing();
    let sealed: Vec<Vec<u8>> = (0..count)
        .map(|_| {
            let mut bytes = grove::keys::random::<32>().to_vec();
            bytes.resize(CHUNK_BYTES as usize, 0);
            bytes
        })
        .collect();
    let staged = sealed
        .iter()
        .map(|bytes| vault.store.stage(ChunkName(sha256(bytes)), bytes).expect("memory takes it"))
        .collect();
    let places = vault.store.commit(staged).expect("memory keeps it");
    vault
        .db
        .change(|t| -> Result<(), DbError> {
            for (bytes, place) in sealed.iter().zip(&places) {
                t.put_chunk(&ChunkName(sha256(bytes)), bytes.len() as u32, place, Own::Data)?;
            }
            Ok(())
        })
        .expect("rows are written");
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let number = |at: usize, or: u64| words.get(at).and_then(|word| word.parse().ok()).unwrap_or(or);
    match words.first().map(String::as_str) {
        Some("--peers") => return serve_peers(Path::new(&words[1])),
        Some("--own") => return own(Path::new(&words[1]), number(2, 0), number(3, 0)),
        _ => {}
    }
    let (chunks, changes) = (number(0, 1_000_000), number(1, 1_000));
    let name = format!("grove-scale-{}", grove::id::hex(&grove::keys::random::<6>()));
    let dir = std::env::temp_dir().join(name);
    for seed in 1..PEERS + 2 {
        fill(&dir, seed, chunks);
    }
    // In a process of its own: what filling took must not count.
    let done = Command::new(std::env::current_exe().expect("this program has a path"))
        .args(["--own", &dir.display().to_string(), &chunks.to_string(), &changes.to_string()])
        .status();
    let _ = std::fs::remove_dir_all(&dir);
    assert!(done.is_ok_and(|status| status.success()), "the owner did not end well");
}

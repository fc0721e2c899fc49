//! Two cells as processes, and strangers and rogues at their doors.

mod common;

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::process::Output;
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use common::proxy::Proxy;
use common::{DEADLINE, TempDir, wait_for};
use grove::card::{ADDRESSES_MAX, Card, CardBody, Invite};
use grove::id::{ChunkName, hex};
use grove::keys::{MasterKey, random, sha256};
use grove::wire::Transport;
use grove::wire::handshake::{Approach, initiate};
use grove::wire::message::{self, Class, PutStatus, Reply, Request};
use grove::wire::session::{self, Limits, Session};
use miniserde::json::{self, Number, Value};
use rustix::process::Signal;

/// The value at a path of keys; a number is an index.
fn at(text: &str, path: &str) -> Value {
    let mut value: Value = json::from_str(text.trim()).unwrap_or_else(|_| panic!("no JSON: {text}"));
    for key in path.split('.') {
        value = match value {
            Value::Object(mut object) => object.remove(key).unwrap_or(Value::Null),
            Value::Array(mut array) if key.parse::<usize>().is_ok_and(|at| at < array.len()) => {
                array.swap_remove(key.parse::<usize>().unwrap())
            }
            _ => Value::Null,
        };
    }
    value
}

fn number(text: &str, path: &str) -> u64 {
    match at(text, path) {
        Value::Number(Number::U64(n)) => n,
        Value::Number(Number::I64(n)) => n as u64,
        _ => panic!("no number {path} in {text}"),
    }
}

fn words(text: &str, path: &str) -> String {
    match at(text, path) {
        Value::String(text) => text,
        _ => panic!("no text {path} in {text}"),
    }
}

struct Folder(PathBuf, #[allow(dead_code, reason = "it removes the folder")] TempDir);

impl Folder {
    fn new() -> Self {
        let temp = TempDir::new("peers");
        Self(temp.path().to_owned(), temp)
    }
}

/// A cell that is asked for JSON as text.
struct Cell {
    root: PathBuf,
    cell: common::Cell,
}

impl Deref for Cell {
    type Target = common::Cell;

    fn deref(&self) -> &common::Cell {
        &self.cell
    }
}

impl DerefMut for Cell {
    fn deref_mut(&mut self) -> &mut common::Cell {
        &mut self.cell
    }
}

impl Cell {
    fn new(folder: &Folder, name: &str) -> Self {
        let cell = Self { root: folder.0.join(name), cell: common::Cell::at(&folder.0, name) };
        cell.init(name, &[("sync.every_s", "3600")]);
        cell
    }

    fn started(folder: &Folder, name: &str) -> Self {
        let mut cell = Self::new(folder, name);
        cell.run();
        cell
    }

    fn home(&self) -> &Path {
        &self.home
    }

    fn say(&self, words: &[&str]) -> Output {
        self.command(words).output().unwrap()
    }

    fn ok(&self, words: &[&str]) -> String {
        self.cli(words).ok().out
    }

    /// What is said when it fails.
    fn refused(&self, words: &[&str]) -> String {
        let said = self.say(words);
        assert!(!said.status.success(), "{words:?} should fail: {}", String::from_utf8_lossy(&said.stdout));
        String::from_utf8_lossy(&said.stderr).into_owned()
    }

    fn get(&self, path: &str) -> String {
        self.client()
            .get_json(&format!("/api/v1{path}"))
            .unwrap_or_else(|why| panic!("{why}\n{}", self.log()))
    }

    /// Brings `other` in.
    fn pair(&self, other: &Cell) {
        other.ok(&["join", &self.token("1h")]);
        wait_for("both are online", || {
            let online = |cell: &Cell| matches!(at(&cell.get("/peers"), "peers.0.online"), Value::Bool(true));
            (online(self) && online(other)).then_some(())
        });
    }

    fn token(&self, expires: &str) -> String {
        let text = self.ok(&["invite", "--expires", expires, "--json"]);
        let mut invite: Invite = words(&text, "token").parse().unwrap();
        invite.addresses = vec![format!("127.0.0.1:{}", self.peer_port)];
        invite.to_string()
    }

    fn sync(&self) -> String {
        self.ok(&["sync", "--wait", "--json"])
    }

    /// Chunks and bytes that peers keep for it.
    fn copies(&self) -> (u64, u64) {
        let peers = self.get("/peers");
        (number(&peers, "peers.0.held_for_us_chunks"), number(&peers, "peers.0.held_for_us_bytes"))
    }

    fn wait_version(&self, path: &str, version: u64) {
        wait_for("the version is kept", || {
            let text = self.client().get_json(&format!("/api/v1/versions?path={path}")).ok()?;
            matches!(at(&text, "versions.0.version"), Value::Number(Number::U64(v)) if v >= version)
                .then_some(())
        });
    }

    fn memory_kib(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmHWM")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }
}

fn noise(seed: &str, len: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(len + 32);
    let mut block = sha256(seed.as_bytes());
    while bytes.len() < len {
        block = sha256(&block);
        // A block is repeated with a counter: fast, and no two chunks are the same.
        for n in 0..64u64 {
            bytes.extend_from_slice(&block);
            bytes.extend_from_slice(&n.to_le_bytes());
        }
    }
    bytes.truncate(len);
    bytes
}

/// Names of all chunks below `chunks/` that lie loose.
fn chunk_names(cell: &Cell) -> Vec<String> {
    fn walk(path: &Path, names: &mut Vec<String>) {
        for entry in fs::read_dir(path).into_iter().flatten().flatten() {
            if entry.path().is_dir() {
                walk(&entry.path(), names);
            } else {
                names.push(entry.file_name().to_string_lossy().into_owned());
            }
        }
    }
    let mut names = Vec::new();
    walk(&cell.root.join("state/chunks"), &mut names);
    names.retain(|name| name.len() >= 32 && name.bytes().all(|byte| byte.is_ascii_hexdigit()));
    names
}

/// A sealed chunk of full length: 4 MiB, the encoding byte, the tag.
const SEALED_MAX: u64 = (4 << 20) + 1 + 16;
/// What one record of a file of 256 chunks may cost on the wire, both ways, all protocols below it included: it names
/// its chunks, in 40 bytes each.
const CATALOG_WIRE_MAX: u64 = 32 << 10;

/// Writes a file of random bytes, 1 MiB at a time, each repeated with a counter: fast, and no two chunks are the same.
fn write_large(path: &Path, len: u64) {
    let block = noise("large", 1 << 20);
    let mut file = fs::File::create(path).unwrap();
    for n in 0..len >> 20 {
        file.write_all(&[&n.to_le_bytes(), &block[8..]].concat()).unwrap();
    }
}

/// Two cells of which each knows the other only by the proxy before it, which counts all that they say.
struct Apart {
    a: Cell,
    _b: Cell,
    proxies: [Proxy; 2],
}

impl Apart {
    fn new(folder: &Folder) -> Self {
        let mut cells = ["a", "b"].map(|name| Cell::new(folder, name));
        let proxies = [Proxy::before(cells[0].peer_port), Proxy::before(cells[1].peer_port)];
        for (cell, proxy) in cells.iter_mut().zip(&proxies) {
            // As many as a card holds, so that none of the cell's own addresses is on it.
            let addresses = vec![format!("\"{}\"", proxy.address()); ADDRESSES_MAX];
            let addresses = format!("[{}]", addresses.join(","));
            // What a measurement of the routes moves would be counted, too.
            cell.change(&[("peer.addresses", &addresses), ("routes.measure_hours", "0")]);
            cell.run();
        }
        let [a, b] = cells;
        b.ok(&["join", a.ok(&["invite"]).trim()]);
        wait_for("both are online", || {
            let online = |cell: &Cell| matches!(at(&cell.get("/peers"), "peers.0.online"), Value::Bool(true));
            (online(&a) && online(&b)).then_some(())
        });
        Self { a, _b: b, proxies }
    }

    /// Bytes that have passed, both ways together, once nothing more does.
    fn settled(&self) -> u64 {
        let mut before = u64::MAX;
        wait_for("the cells fall silent", || {
            let now = self.proxies.iter().map(Proxy::settled).sum();
            (std::mem::replace(&mut before, now) == now).then_some(now)
        })
    }
}

#[test]
fn one_byte_of_a_gibibyte_sends_one_chunk_and_a_rename_the_catalog_only() {
    const SIZE: u64 = 1 << 30;
    let folder = Folder::new();
    let apart = Apart::new(&folder);
    let a = &apart.a;
    write_large(&folder.0.join("big"), SIZE);
    fs::rename(folder.0.join("big"), a.home().join("big")).unwrap();
    a.wait_version("big", 1);
    a.sync();
    let (chunks, _) = a.copies();
    assert!((256..=258).contains(&chunks), "256 chunks, and their list: {chunks}");
    let before = apart.settled();
    assert!(before > SIZE, "{before} bytes passed the proxy: something goes around it");

    let file = fs::File::options().write(true).open(a.home().join("big")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"!", SIZE / 2 + 12_345).unwrap();
    drop(file);
    a.wait_version("big", 2);
    a.sync();
    let change = apart.settled() - before;
    println!(
        "1 byte of {SIZE}: {change} bytes on the wire, {} of them beside the chunk",
        change - SEALED_MAX
    );
    assert!(change > SEALED_MAX, "{change}");
    assert!(change < SEALED_MAX + SEALED_MAX / 400 + CATALOG_WIRE_MAX, "{change}");
    assert_eq!(a.copies().0, chunks + 1);

    let before = apart.settled();
    fs::rename(a.home().join("big"), a.home().join("other")).unwrap();
    a.wait_version("other", 1);
    a.sync();
    let rename = apart.settled() - before;
    println!("rename: {rename} bytes on the wire");
    assert!(rename > 500, "{rename} bytes passed the proxy: something goes around it");
    assert!(rename < CATALOG_WIRE_MAX, "{rename}");
    assert_eq!(a.copies().0, chunks + 1);

    // Nothing to say costs next to nothing.
    let before = apart.settled();
    a.sync();
    let quiet = apart.settled() - before;
    println!("a quiet round: {quiet} bytes on the wire");
    assert!(quiet < 2048, "{quiet}");
}

#[test]
fn new_small_file_is_on_the_peer_and_another_phrase_shares_no_chunk_name() {
    let folder = Folder::new();
    let (a, b) = (Cell::started(&folder, "a"), Cell::started(&folder, "b"));
    a.pair(&b);
    let bytes = noise("same", 48 << 20);
    fs::write(a.home().join("same"), &bytes).unwrap();
    a.wait_version("same", 1);
    a.sync();
    let (chunks, _) = a.copies();
    let began = Instant::now();
    fs::write(a.home().join("small"), "a few words").unwrap();
    wait_for("a new small file is on the peer", || (a.copies().0 == chunks + 1).then_some(()));
    println!("new small file on the peer after {} ms", began.elapsed().as_millis());

    // The same bytes in a cell of another phrase.
    let c = Cell::started(&folder, "c");
    fs::write(c.home().join("same"), &bytes).unwrap();
    c.wait_version("same", 1);
    let (of_a, of_c) = (chunk_names(&a), chunk_names(&c));
    assert!(of_a.len() > 10 && of_c.len() > 10, "{} {}", of_a.len(), of_c.len());
    assert!(of_a.iter().all(|name| !of_c.contains(name)));
}

#[test]
fn freed_file_gets_one_copy_more_on_peers_first() {
    let folder = Folder::new();
    let a = Cell::started(&folder, "a");
    let mut peers = [Cell::started(&folder, "b"), Cell::started(&folder, "c")];
    for peer in &peers {
        peer.ok(&["join", &a.token("1h")]);
    }
    let each = |key: &str| [0, 1].map(|n| at(&a.get("/peers"), &format!("peers.{n}.{key}")));
    wait_for("both are online", || {
        each("online").iter().all(|online| matches!(online, Value::Bool(true))).then_some(())
    });
    let held = || [0, 1].map(|n| number(&a.get("/peers"), &format!("peers.{n}.held_for_us_chunks")));
    let bytes = noise("freed", 9 << 20);
    fs::write(a.home().join("film"), &bytes).unwrap();
    fs::write(a.home().join("letter"), "stays here").unwrap();
    a.wait_version("film", 1);
    a.wait_version("letter", 1);
    a.sync();
    assert_eq!(held().iter().sum::<u64>(), 4, "the factor is 2: here and one peer");
    let refused = a.refused(&["rm", "--local", "film"]);
    assert!(refused.contains("1 of 2 copies"), "{refused}");
    assert_eq!(fs::read(a.home().join("film")).unwrap(), bytes);
    // Asked for once, the copy is made.
    wait_for("the film is freed", || a.say(&["rm", "--local", "film"]).status.success().then_some(()));
    assert!(!a.home().join("film").exists());
    assert_eq!(held().iter().sum::<u64>(), 4 + 3, "the three chunks of the film, and not the letter's");
    let mut left = 0;
    common::walk(&a.dir.join("chunks"), &mut |path| {
        left += path.symlink_metadata().map_or(0, |meta| if meta.is_file() { meta.len() } else { 0 });
    });
    assert!(left < 1 << 20, "its chunks are freed too; the letter's and the catalog's stay: {left}");
    // Nothing is said to be missing, and either peer alone gives it back.
    a.ok(&["verify", "--deep"]);
    peers[0].kill();
    wait_for("it comes back", || a.say(&["restore", "film"]).status.success().then_some(()));
    wait_for("its bytes are there", || (fs::read(a.home().join("film")).ok()? == bytes).then_some(()));
}

#[test]
fn invites_are_refused_with_words() {
    let folder = Folder::new();
    let (a, b, c) = (Cell::started(&folder, "a"), Cell::started(&folder, "b"), Cell::started(&folder, "c"));
    let token = a.token("1h");
    b.ok(&["join", &token]);
    let used = c.refused(&["join", &token]);
    let other = a.token("1h");
    let id = hex(&other.parse::<Invite>().unwrap().invite_id);
    a.ok(&["invite", "--revoke", &id]);
    let revoked = c.refused(&["join", &other]);
    let short = a.token("1s");
    wait_for("it expires", || a.get("/invites").contains("expired").then_some(()));
    let expires = short.parse::<Invite>().unwrap().expires;
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    wait_for("its second is over", || (now() > expires).then_some(()));
    let expired = c.refused(&["join", &short]);
    println!("used: {used}revoked: {revoked}expired: {expired}");
    assert!([&used, &revoked].iter().all(|said| said.contains("invite")), "{used} {revoked}");
    assert!(expired.contains("expired"), "{expired}");
    wait_for("both are logged", || {
        let log = a.log();
        (log.contains("used") && log.contains("revoked")).then_some(())
    });
    assert_eq!(at(&c.get("/peers"), "peers.0.id").type_name(), "null");

    // Removed on one side, removed on both.
    wait_for("both know each other", || {
        matches!(at(&a.get("/peers"), "peers.0.online"), Value::Bool(true)).then_some(())
    });
    a.ok(&["peer", "remove", "b"]);
    for cell in [&a, &b] {
        wait_for("the peer is gone", || {
            (at(&cell.get("/peers"), "peers.0.id").type_name() == "null").then_some(())
        });
    }
}

trait TypeName {
    fn type_name(&self) -> &'static str;
}

impl TypeName for Value {
    fn type_name(&self) -> &'static str {
        if matches!(self, Value::Null) { "null" } else { "something" }
    }
}

#[test]
fn strangers_get_silence() {
    let folder = Folder::new();
    let a = Cell::started(&folder, "a");
    let lines = a.log().lines().count();
    let mut heads: Vec<Vec<u8>> = vec![b"GET / HTTP/1.1\r\n\r\n".to_vec(), vec![0xff; 4096], vec![0; 200]];
    heads.extend((0..3).map(|n| noise(&n.to_string(), 97 + n * 400)));
    let count = heads.len();
    for head in heads {
        let mut stream = TcpStream::connect(("127.0.0.1", a.peer_port)).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let _ = stream.write_all(&head);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = Vec::new();
        // A reset is silence, too.
        let _ = stream.read_to_end(&mut answer);
        assert!(answer.is_empty(), "{answer:?}");
    }
    let new: Vec<String> = a.log().lines().skip(lines).map(str::to_owned).collect();
    println!("{}", new.join("\n"));
    assert!(new.len() <= count, "{new:?}");
    assert!(!new.is_empty(), "strangers are logged");
    assert!(a.memory_kib() < 64 << 10);
    a.get("/status");
}

/// Gives up after a while: who is refused may be left waiting.
async fn soon(work: impl Future<Output = ()>) {
    smol::future::or(work, async {
        let _ = smol::Timer::after(Duration::from_secs(8)).await;
    })
    .await;
}

async fn rogue(executor: &Rc<smol::LocalExecutor<'static>>, a: &Cell, token: &str) -> Session {
    let invite: Invite = token.parse().unwrap();
    let identity = MasterKey::from_bytes([77; 32]).identity(0, 0);
    let body = CardBody {
        id: identity.id(),
        x25519: *identity.x_public(),
        name: "rogue".into(),
        addresses: vec![],
        relays: vec![],
        sequence: 1,
        successor: None,
        extensions: vec![],
    };
    let card = Card::sign(&identity, body).unwrap().to_bytes();
    let stream = smol::net::TcpStream::connect(("127.0.0.1", a.peer_port)).await.unwrap();
    let approach = Approach::from(&invite);
    let shaken = initiate(stream, Transport::Tcp, &identity, &card, &approach).await.unwrap();
    // It breaks the rules on purpose.
    let limits = Limits { streams_out: 2000, ..Limits::default() };
    let (session, driver) = session::start(shaken.stream, true, &limits);
    executor.spawn(async { drop(driver.await) }).detach();
    session
}

#[test]
fn hostile_peer_is_refused_and_memory_stays_flat() {
    let folder = Folder::new();
    let a = Cell::started(&folder, "a");
    let executor = Rc::new(smol::LocalExecutor::new());
    let token = || a.token("1h");
    smol::block_on(executor.run(async {
        let session = rogue(&executor, &a, &token()).await;
        // Wrong bytes.
        let entries = vec![(ChunkName([5; 32]), 1000)];
        let mut putting = message::put(&session, Class::Chunk, entries).await.unwrap();
        let _ = putting.send(&[7; 1000]).await;
        assert_eq!(putting.finish().await.unwrap().0, [PutStatus::WrongBytes]);
        // A length that is none.
        for len in [0, 1, u32::MAX] {
            let request = Request::Put { class: Class::Chunk, entries: vec![(ChunkName([6; 32]), len)] };
            let mut stream = session.open().await.unwrap();
            message::write_head(&mut stream, &request.to_bytes()).await.unwrap();
            let _ = message::finish(&mut stream).await;
            let head =
                message::read_head(&mut stream, message::REPLY_HEAD_BYTES_MAX, Duration::from_secs(5)).await;
            let answer = head.and_then(|head| Reply::from_bytes(&head));
            println!("length {len}: {answer:?}");
            if let Ok(Reply::Put { statuses, .. }) = answer {
                assert!(!statuses.contains(&PutStatus::Stored));
            }
        }
        // Heads without end, huge length prefixes, garbage.
        let garbage = async {
            for seed in 0..200u32 {
                let Ok(mut stream) = session.open().await else { break };
                let mut head = random::<64>().to_vec();
                head[..4].copy_from_slice(
                    &[[0xff; 4], [0, 0, 0, 0x7f], [0x7f, 0, 0, 0], random()][seed as usize % 4],
                );
                let _ = futures_util::AsyncWriteExt::write_all(&mut stream, &head).await;
                for _ in 0..if seed < 4 { 64 } else { 0 } {
                    if futures_util::AsyncWriteExt::write_all(&mut stream, &[0xaa; 16_384]).await.is_err() {
                        break;
                    }
                }
            }
        };
        soon(garbage).await;
        session.close();
        // Thousands of streams.
        let session = rogue(&executor, &a, &token()).await;
        let mut streams = Vec::new();
        let many = async {
            for _ in 0..2000 {
                let open = smol::future::or(async { session.open().await.ok() }, async {
                    smol::Timer::after(Duration::from_millis(200)).await;
                    None
                });
                let Some(mut stream) = open.await else { break };
                let _ =
                    smol::future::or(async { drop(message::write_head(&mut stream, &[99]).await) }, async {
                        let _ = smol::Timer::after(Duration::from_millis(50)).await;
                    })
                    .await;
                streams.push(stream);
            }
        };
        soon(many).await;
        println!("{} streams opened", streams.len());
        session.close();
        drop(streams);
        // It still answers those who behave.
        let session = rogue(&executor, &a, &token()).await;
        assert_eq!(message::ask(&session, &Request::Ping).await.unwrap(), Reply::Pong);
        session.close();
    }));
    // After the handshake, in the middle of what is encrypted.
    let mut stream = TcpStream::connect(("127.0.0.1", a.peer_port)).unwrap();
    let _ = stream.write_all(&noise("endless", 8 << 20));
    drop(stream);
    let memory = a.memory_kib();
    println!("peak {memory} KiB\n{}", a.log());
    assert!(memory < 64 << 10, "{memory} KiB");
    assert!(a.log().contains("refused"), "{}", a.log());
    a.get("/status");
}

#[test]
fn quota_is_said_and_a_killed_peer_goes_on_where_it_was() {
    const SIZE: usize = 100 << 20;
    let folder = Folder::new();
    let (a, mut b) = (Cell::started(&folder, "a"), Cell::started(&folder, "b"));
    a.pair(&b);
    b.ok(&["peer", "quota", "a", "10MB"]);
    fs::write(folder.0.join("big"), noise("resume", SIZE)).unwrap();
    fs::rename(folder.0.join("big"), a.home().join("big")).unwrap();
    a.wait_version("big", 1);
    let why = wait_for("the quota is said", || {
        a.say(&["sync", "--wait"]);
        let why = words(&a.get("/peers"), "peers.0.error");
        (why.contains("quota") || why.contains("full")).then_some(why)
    });
    println!("over quota: {why}");
    let held = number(&b.get("/peers"), "peers.0.held_for_them_bytes");
    assert!(held <= 10_000_000, "{held}");

    b.ok(&["peer", "quota", "a", "0"]);
    let job = number(&a.client().post_json("/api/v1/sync", r#"{"wait":false}"#).unwrap(), "job");
    wait_for("some chunks are there", || (a.copies().1 > 20 << 20).then_some(()));
    b.kill();
    let known = a.copies().0;
    wait_for("the job ends", || (!a.get(&format!("/jobs/{job}")).contains("\"running\"")).then_some(()));
    b.run();
    wait_for("they meet again", || {
        matches!(at(&a.get("/peers"), "peers.0.online"), Value::Bool(true)).then_some(())
    });
    let text = a.sync();
    assert_eq!(number(&text, "result.waiting_chunks"), 0, "{text}");
    println!("{known} chunks before the kill, {} in all", a.copies().0);
    assert!(a.memory_kib() < 64 << 10 && b.memory_kib() < 64 << 10);
    println!("peaks: {} and {} KiB", a.memory_kib(), b.memory_kib());
}

#[test]
fn peer_without_its_database_still_gives_everything_back() {
    let folder = Folder::new();
    let (mut a, mut b) = (Cell::started(&folder, "a"), Cell::started(&folder, "b"));
    a.pair(&b);
    let files: Vec<(String, Vec<u8>)> =
        (0..40).map(|n| (format!("file{n}"), noise(&n.to_string(), 10_000 * (n + 1)))).collect();
    for (name, bytes) in &files {
        fs::write(a.home().join(name), bytes).unwrap();
    }
    a.wait_version("file39", 1);
    wait_for("all are in", || (number(&a.get("/status"), "files.count") >= 40).then_some(()));
    a.sync();
    let phrase = words(&a.ok(&["phrase", "--json"]), "phrase");
    b.stop();
    for suffix in ["", "-wal", "-shm"] {
        let _ = fs::remove_file(b.root.join(format!("state/placement.db{suffix}")));
    }
    b.run();
    a.kill();
    fs::remove_dir_all(&a.root).unwrap();
    fs::create_dir(&a.root).unwrap();
    let file = folder.0.join("phrase");
    fs::write(&file, phrase).unwrap();
    let address = format!("127.0.0.1:{}", b.peer_port);
    let said = a.ok(&["recover", "--peer", &address, "--phrase-file", file.to_str().unwrap()]);
    println!("{said}");
    for (name, bytes) in &files {
        assert!(fs::read(a.home().join(name)).unwrap() == *bytes, "{name}");
    }
}

#[test]
fn cell_stops_cleanly_and_its_folder_and_port_are_its_own() {
    let folder = Folder::new();
    let (mut a, b) = (Cell::started(&folder, "a"), Cell::started(&folder, "b"));
    let pid = a.pid().to_string();
    let second = a.refused(&["run"]);
    assert!(second.contains(&pid), "{second}");
    let mut c = Cell::new(&folder, "c");
    c.peer_port = a.peer_port;
    let busy = c.refused(&["run"]);
    println!("second: {second}busy port: {busy}");
    assert!(busy.contains(&a.peer_port.to_string()), "{busy}");
    a.pair(&b);
    let took = a.stop_by(Signal::INT);
    assert!(took < Duration::from_secs(2), "SIGINT: {took:?}");
    a.run();
    fs::write(a.home().join("big"), noise("stop", 100 << 20)).unwrap();
    wait_for("a sync runs", || (a.copies().1 > 0).then_some(()));
    let busy = a.stop();
    println!("stopped after {took:?}, in a sync {busy:?}");
    assert!(busy < Duration::from_secs(2), "SIGTERM: {busy:?}");
}

//! `grove relay` as its clients meet it: circuits, limits, restarts, and everything that strangers may send.

mod common;

use std::fs;
use std::future::Future;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::time::{Duration, Instant};

use common::{Chance, DEADLINE, GROVE, TempDir, free_port, is_ci, wait_for};
use grove::codec::Writer;
use grove::id::CellId;
use grove::keys::{Identity, MasterKey};
use grove::relay::client::{Options, connect};
use grove::relay::frame::{Control, Decoder, Event, From, Head, Kind, code, put_control};
use grove::relay::websocket::{HEADERS_MAX, key_of, switching};
use grove::relay::{Circuit, CircuitError, Client, ConnectError, End, Keeper, Url, client};
use smol::io::{AsyncReadExt, AsyncWriteExt};
use smol::{LocalExecutor, Timer};

/// Least memory that a test may find the relay to have taken, whatever it did: noise of an allocator.
const NOISE_KIB: u64 = 4 * 1024;

/// A relay in a process of its own, in a folder of its own.
struct Relay {
    child: Child,
    url: Url,
    folder: Rc<TempDir>,
}

impl Relay {
    fn start(words: &[&str]) -> Self {
        Self::start_at(Rc::new(TempDir::new("relay")), "127.0.0.1:0", words)
    }

    fn start_at(folder: Rc<TempDir>, listen: &str, words: &[&str]) -> Self {
        let log = fs::OpenOptions::new().create(true).append(true).open(folder.path().join("log")).unwrap();
        let mut command = Command::new(GROVE);
        command.arg("--dir").arg(folder.path().join("state")).args(["relay", "--listen", listen]).args(words);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let url = line.trim().rsplit(' ').next().unwrap().parse();
        let url = url.unwrap_or_else(|_| {
            panic!("{line:?} {}", fs::read_to_string(folder.path().join("log")).unwrap_or_default())
        });
        Self { child, url, folder }
    }

    /// The text at a path of its port.
    fn get(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(self.url.address()).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    }

    fn metric(&self, name: &str) -> u64 {
        let text = self.get("/metrics");
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {name} in {text}")).parse().unwrap()
    }

    /// A line of `/proc/PID/status`, in KiB.
    fn memory(&self, what: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with(what)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    fn signal(&self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    }

    /// SIGTERM, and a good end.
    fn stop(&mut self) {
        self.signal();
        let status = wait_for("the relay stops", || self.child.try_wait().unwrap());
        assert!(status.success(), "{status}");
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn identity(number: u32) -> Identity {
    let mut seed = [9; 32];
    seed[..4].copy_from_slice(&number.to_le_bytes());
    MasterKey::from_bytes(seed).identity(0, 0)
}

type Executor = Rc<LocalExecutor<'static>>;

fn run<F: Future<Output = ()>>(test: impl FnOnce(Executor) -> F) {
    let executor: Executor = Rc::new(LocalExecutor::new());
    smol::block_on(executor.run(test(Rc::clone(&executor))));
}

async fn in_time<T>(what: &str, work: impl Future<Output = T>) -> T {
    smol::future::or(work, async {
        Timer::after(DEADLINE).await;
        panic!("{what} took too long")
    })
    .await
}

async fn log_in(executor: &Executor, url: &Url, number: u32) -> Client {
    let (client, driver) =
        in_time("a login", connect(url, &identity(number), &Options::default())).await.unwrap();
    executor.spawn(driver).detach();
    client
}

/// A circuit from one client to the other.
async fn join(from: &Client, to: &Client, number: u32) -> (Circuit, Circuit) {
    let id = identity(number).id();
    let (out, taken) = smol::future::zip(from.open(&id), to.accept()).await;
    (out.unwrap(), taken.unwrap().1)
}

async fn transfer(mut from: Circuit, mut to: Circuit, seed: u64, bytes: usize) {
    let sent = Chance(seed).bytes(bytes);
    let send = async {
        from.write_all(&sent).await.unwrap();
        from.close().await.unwrap();
    };
    let mut got = Vec::new();
    smol::future::zip(send, async { to.read_to_end(&mut got).await.unwrap() }).await;
    assert!(got == sent, "the bytes of a circuit");
}

// By hand: what no client of ours would send

/// The head of a request for the WebSocket.
const ASKING: &str = "GET /relay HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                      Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

fn raw(url: &Url) -> TcpStream {
    let stream = TcpStream::connect(url.address()).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream
}

/// Asks for the WebSocket and gives the hub's first message.
fn upgrade(url: &Url) -> (TcpStream, Vec<u8>) {
    let mut stream = raw(url);
    stream.write_all(ASKING.as_bytes()).unwrap();
    let mut last = [0; 4];
    while last != *b"\r\n\r\n" {
        last.rotate_left(1);
        stream.read_exact(&mut last[3..]).unwrap();
    }
    let hello = read_message(&mut stream).1;
    assert_eq!(hello.len(), 65);
    (stream, hello)
}

/// Opcode and payload of a short frame.
fn read_message(stream: &mut TcpStream) -> (u8, Vec<u8>) {
    let mut head = [0; 2];
    stream.read_exact(&mut head).unwrap();
    let mut bytes = vec![0; usize::from(head[1])];
    stream.read_exact(&mut bytes).unwrap();
    (head[0] & 0x0f, bytes)
}

fn message(payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x82, 0x80 | 126];
    bytes.extend((payload.len() as u16).to_be_bytes());
    if payload.len() < 126 {
        bytes.truncate(1);
        bytes.push(0x80 | payload.len() as u8);
    }
    bytes.extend([0; 4]);
    bytes.extend_from_slice(payload);
    bytes
}

fn login(identity: &Identity, hello: &[u8], label: &str) -> Vec<u8> {
    let mut said = Writer::with_label(label);
    said.raw(&hello[1..65]).raw(identity.id().as_bytes());
    let mut login = Writer::new();
    login.u8(1).raw(identity.id().as_bytes()).raw(&[3; 32]).raw(&identity.sign(said.as_slice()));
    message(login.as_slice())
}

/// A connection that has logged in and now says whatever it likes.
fn inside(url: &Url, number: u32) -> TcpStream {
    let (mut stream, hello) = upgrade(url);
    stream.write_all(&login(&identity(number), &hello, "grove relay login v1")).unwrap();
    let welcome = read_message(&mut stream);
    assert_eq!((welcome.0, welcome.1.len()), (2, 67));
    stream
}

fn yamux(kind: u8, flags: u8, stream: u32, length: u32) -> Vec<u8> {
    let mut frame = vec![0, kind, 0, flags];
    frame.extend(stream.to_be_bytes());
    frame.extend(length.to_be_bytes());
    frame
}

#[test]
fn two_cells_meet_at_a_relay() {
    let mut relay = Relay::start(&["--smear", "7"]);
    assert!(relay.get("/healthz").starts_with("HTTP/1.1 200"));
    assert!(relay.get("/nothing").starts_with("HTTP/1.1 404"));
    assert!(relay.get("/relay").starts_with("HTTP/1.1 426"));
    run(|executor| async move {
        let ann = log_in(&executor, &relay.url, 1).await;
        let (bob, driver) = connect(&relay.url, &identity(2), &Options::default()).await.unwrap();
        let driver = executor.spawn(driver);
        let (a, b) = join(&ann, &bob, 2).await;
        let (c, d) = join(&bob, &ann, 1).await;
        in_time("transfers", smol::future::zip(transfer(a, b, 1, 5 << 20), transfer(c, d, 2, 5 << 20))).await;
        assert!(relay.metric("grove_relay_bytes_total") >= 10 << 20);
        assert_eq!(relay.metric("grove_relay_clients"), 2);
        let id = relay.url.hub;
        relay.signal();
        assert_eq!(in_time("the end", driver).await, End::Restart(Duration::from_secs(7)));
        relay.stop();
        let again = Relay::start_at(Rc::clone(&relay.folder), "127.0.0.1:0", &[]);
        assert_eq!(again.url.hub, id, "it keeps its key");
    });
}

#[test]
fn only_cells_on_the_list_are_served() {
    let folder = Rc::new(TempDir::new("relay"));
    let list = folder.path().join("list");
    fs::write(&list, format!("# friends\n\n{} # Ann\n", identity(1).id())).unwrap();
    let words = ["--allow", list.to_str().unwrap(), "--allow", &identity(2).id().to_string()];
    let relay = Relay::start_at(folder, "127.0.0.1:0", &words);
    run(|executor| async move {
        log_in(&executor, &relay.url, 1).await;
        log_in(&executor, &relay.url, 2).await;
        let Err(error) = connect(&relay.url, &identity(3), &Options::default()).await else {
            panic!("let in")
        };
        assert!(matches!(error, ConnectError::Refused(_)), "{error}");
        assert_eq!(relay.metric("grove_relay_logins_total{result=\"refused\"}"), 1);
    });
}

#[test]
fn who_does_not_prove_a_key_is_not_let_in() {
    let relay = Relay::start(&[]);
    let (mut stream, hello) = upgrade(&relay.url);
    stream.write_all(&login(&identity(1), &hello, "another label")).unwrap();
    let (opcode, close) = read_message(&mut stream);
    assert_eq!((opcode, &close[..2], &close[2..]), (8, &1008u16.to_be_bytes()[..], &b"wrong signature"[..]));
    // A login is for one connection.
    let (mut other, _) = upgrade(&relay.url);
    other.write_all(&login(&identity(1), &hello, "grove relay login v1")).unwrap();
    assert_eq!(read_message(&mut other).0, 8);
    assert_eq!(relay.metric("grove_relay_clients"), 0);
}

#[test]
fn slow_receiver_stalls_its_own_circuit_only() {
    let relay = Relay::start(&[]);
    run(|executor| async move {
        let ann = log_in(&executor, &relay.url, 1).await;
        let bob = log_in(&executor, &relay.url, 2).await;
        let (mut stuck, _held) = join(&ann, &bob, 2).await;
        let sent = Rc::new(std::cell::Cell::new(0));
        let counted = Rc::clone(&sent);
        let pushing = executor.spawn(async move {
            while let Ok(n) = stuck.write(&[0; 16 * 1024]).await {
                counted.set(counted.get() + n);
            }
        });
        // The same two connections, the same direction.
        let (a, b) = join(&ann, &bob, 2).await;
        in_time("a transfer beside a stuck one", transfer(a, b, 3, 20 << 20)).await;
        assert!(sent.get() <= 2 << 20, "{} bytes went to somebody who reads none", sent.get());
        drop(pushing);

        // One that does not even read its socket.
        let dead = inside(&relay.url, 3);
        let open = executor.spawn({
            let ann = ann.clone();
            async move { ann.open(&identity(3).id()).await.map(drop) }
        });
        let (a, b) = join(&ann, &bob, 2).await;
        in_time("a transfer beside a dead one", transfer(a, b, 4, 20 << 20)).await;
        assert!(matches!(in_time("the dead one", open).await, Err(CircuitError::TimedOut)));
        drop(dead);
        assert!(relay.memory("VmHWM") < 64 * 1024);
    });
}

/// Everything that reaches a keeper's state within the deadline.
async fn until(keeper: &Keeper, what: &str, is_so: impl Fn(&client::State) -> bool) {
    in_time(what, async {
        while !is_so(&keeper.state()) {
            smol::future::or(keeper.changed(), async {
                Timer::after(Duration::from_millis(20)).await;
            })
            .await;
        }
    })
    .await;
}

#[test]
fn keeper_comes_back_after_a_restart_and_gives_way_to_its_double() {
    let folder = Rc::new(TempDir::new("relay"));
    let listen = format!("127.0.0.1:{}", free_port());
    let mut relay = Relay::start_at(Rc::clone(&folder), &listen, &["--smear", "1"]);
    run(|executor| async move {
        let (keeper, work) = client::keep(relay.url.clone(), identity(1), Options::default());
        let work = executor.spawn(work);
        until(&keeper, "connected", |state| *state == client::State::Connected).await;
        relay.stop();
        until(&keeper, "gone", |state| *state != client::State::Connected).await;
        relay = Relay::start_at(folder, &listen, &["--smear", "1"]);
        until(&keeper, "back", |state| *state == client::State::Connected).await;
        // Circuits come through the same keeper.
        let bob = log_in(&executor, &relay.url, 2).await;
        let id = identity(1).id();
        let (out, taken) = smol::future::zip(bob.open(&id), keeper.accept()).await;
        assert_eq!(taken.as_ref().unwrap().0, identity(2).id());
        in_time("a transfer", transfer(out.unwrap(), taken.unwrap().1, 5, 1 << 20)).await;
        // Another machine with the same key.
        let _double = log_in(&executor, &relay.url, 1).await;
        until(&keeper, "replaced", |state| match state {
            client::State::Waiting { until, .. } => *until > Instant::now() + Duration::from_secs(50),
            _ => false,
        })
        .await;
        keeper.stop();
        in_time("the stop", work).await;
    });
}

#[test]
fn limits_hold() {
    let relay = Relay::start(&["--clients", "2", "--circuits", "2"]);
    run(|executor| async move {
        let ann = log_in(&executor, &relay.url, 1).await;
        let bob = log_in(&executor, &relay.url, 2).await;
        let Err(error) = connect(&relay.url, &identity(3), &Options::default()).await else {
            panic!("let in")
        };
        assert!(matches!(error, ConnectError::Busy(_)), "{error}");
        let held = (join(&ann, &bob, 2).await, join(&ann, &bob, 2).await);
        // Bob has opened none; it is Ann who has two.
        assert!(matches!(bob.open(&identity(1).id()).await, Err(CircuitError::Busy)));
        assert_eq!(relay.metric("grove_relay_circuits_total{result=\"busy\"}"), 1);
        drop(held);
    });
}

#[test]
fn random_bytes_end_their_own_connection_only() {
    let relay = Relay::start(&[]);
    let mut chance = Chance::seeded("random bytes at a relay");
    run(|executor| async move {
        let ann = log_in(&executor, &relay.url, 1).await;
        let bob = log_in(&executor, &relay.url, 2).await;
        let before = relay.memory("VmHWM");
        for round in 0..300 {
            let mut stream = match round % 4 {
                0 => raw(&relay.url),
                1 => upgrade(&relay.url).0,
                _ => inside(&relay.url, 100 + round),
            };
            let mut bytes = chance.bytes(400);
            if round % 4 == 3 {
                // Sound frames of yamux with everything else as it comes.
                bytes.clear();
                for _ in 0..30 {
                    let length = chance.below(200) as u32;
                    let stream = chance.below(8) as u32;
                    let mut frame = yamux(chance.below(4) as u8, chance.below(16) as u8, stream, length);
                    frame.extend(chance.bytes(length as usize));
                    bytes.extend(message(&frame));
                }
            }
            let _ = stream.write_all(&bytes);
            let _ = stream.shutdown(std::net::Shutdown::Write);
            let mut rest = Vec::new();
            let _ = stream.read_to_end(&mut rest);
        }
        let (a, b) = join(&ann, &bob, 2).await;
        in_time("a transfer", transfer(a, b, 6, 1 << 20)).await;
        assert!(relay.memory("VmHWM") < before + NOISE_KIB);
    });
}

#[test]
fn half_open_handshakes_do_not_keep_others_out() {
    let relay = Relay::start(&[]);
    raise_file_limit();
    let mut held = Vec::new();
    for i in 0..1200 {
        let mut stream = raw(&relay.url);
        stream.write_all(&ASKING.as_bytes()[..if i % 2 == 0 { 20 } else { ASKING.len() }]).unwrap();
        held.push(stream);
    }
    run(|executor| async move {
        log_in(&executor, &relay.url, 1).await;
        assert!(relay.metric("grove_relay_logins_pending") <= 512);
        // Those who say nothing are gone after their time.
        in_time("the half-open", async {
            while relay.metric("grove_relay_logins_pending") > 0 {
                Timer::after(Duration::from_millis(100)).await;
            }
        })
        .await;
        drop(held);
    });
}

#[test]
fn thousands_of_connects_leave_memory_as_it_was() {
    let relay = Relay::start(&[]);
    let url = relay.url.clone();
    let flood = |rounds: usize, url: Url| {
        std::thread::spawn(move || {
            for i in 0..rounds {
                let Ok(mut stream) = TcpStream::connect(url.address()) else { continue };
                let _ = stream.write_all(&ASKING.as_bytes()[..if i % 3 == 0 { 9 } else { ASKING.len() }]);
            }
        })
    };
    flood(1000, url.clone()).join().unwrap();
    // As many at once as it lets wait: how many that are in a flood depends on how busy the machine is.
    raise_file_limit();
    let half = |i: usize| {
        let mut stream = raw(&url);
        stream.write_all(&ASKING.as_bytes()[..if i % 2 == 0 { 20 } else { ASKING.len() }]).unwrap();
        stream
    };
    let held: Vec<TcpStream> = (0..1200).map(half).collect();
    run(|executor| {
        let url = url.clone();
        async move { drop(log_in(&executor, &url, 3).await) }
    });
    drop(held);
    let before = relay.memory("VmHWM");
    let began = Instant::now();
    let floods = [flood(2500, url.clone()), flood(2500, url.clone())];
    run(|executor| async move {
        let (keeper, work) = client::keep(url, identity(1), Options::default());
        executor.spawn(work).detach();
        until(&keeper, "in", |state| *state == client::State::Connected).await;
    });
    for flood in floods {
        flood.join().unwrap();
    }
    let per_s = 5000.0 / began.elapsed().as_secs_f64();
    eprintln!("{per_s:.0} connects a second");
    let url = relay.url.clone();
    run(|executor| async move {
        log_in(&executor, &url, 2).await;
    });
    assert!(relay.memory("VmHWM") < before + NOISE_KIB);
}

#[test]
fn client_that_never_reads_costs_little() {
    let relay = Relay::start(&[]);
    let mut stream = inside(&relay.url, 1);
    stream.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
    let before = relay.memory("VmHWM");
    // Each asks for an answer, and none is read.
    let mut head = yamux(0, 1, 0, 33);
    head.push(1);
    head.extend([5; 32]);
    let (mut number, mut sent) = (1u32, 0);
    'full: while sent < 64 << 20 {
        let mut batch = Vec::new();
        for _ in 0..200 {
            head[4..8].copy_from_slice(&number.to_be_bytes());
            batch.extend(message(&head));
            batch.extend(message(&yamux(2, 1, 0, number)));
            // A ping of the WebSocket itself.
            batch.extend([0x89, 0x80, 0, 0, 0, 0]);
            number += 2;
        }
        if stream.write_all(&batch).is_err() {
            break 'full;
        }
        sent += batch.len();
    }
    assert!(sent < 64 << 20, "the relay reads on although nobody takes its answers");
    assert!(relay.memory("VmHWM") < before + NOISE_KIB);
    let url = relay.url.clone();
    run(|executor| async move {
        log_in(&executor, &url, 2).await;
    });
}

fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }).unwrap();
}

#[test]
fn two_thousand_idle_clients_are_small_and_all_come_back() {
    const CLIENTS: u32 = 2000;
    const KIB_EACH_MAX: u64 = 14;
    raise_file_limit();
    let folder = Rc::new(TempDir::new("relay"));
    let listen = format!("127.0.0.1:{}", free_port());
    let mut relay = Relay::start_at(Rc::clone(&folder), &listen, &["--smear", "5"]);
    run(|executor| async move {
        log_in(&executor, &relay.url, 0).await;
        let before = relay.memory("VmRSS");
        let mut keepers = Vec::new();
        for number in 1..=CLIENTS {
            let (keeper, work) = client::keep(relay.url.clone(), identity(number), Options::default());
            executor.spawn(work).detach();
            // In turn: what is measured is idle clients, not a crowd at the door.
            until(&keeper, "connected", |state| *state == client::State::Connected).await;
            keepers.push(keeper);
        }
        let each = (relay.memory("VmRSS") - before) as f64 / f64::from(CLIENTS);
        eprintln!("{each:.2} KiB for an idle client");
        assert!(each <= KIB_EACH_MAX as f64, "{each:.2} KiB for an idle client");
        relay.stop();
        relay = Relay::start_at(folder, &listen, &["--smear", "5"]);
        let all_back = async {
            while relay.metric("grove_relay_clients") < u64::from(CLIENTS) {
                Timer::after(Duration::from_millis(200)).await;
            }
        };
        smol::future::or(all_back, async {
            Timer::after(DEADLINE).await;
            panic!("only {} are back", relay.metric("grove_relay_clients"))
        })
        .await;
        assert_eq!(relay.metric("grove_relay_logins_total{result=\"refused\"}"), 0);
        assert_eq!(relay.metric("grove_relay_logins_total{result=\"limited\"}"), 0);
        let (a, b) = (keepers[0].client().unwrap(), keepers[1].client().unwrap());
        let (out, taken) = smol::future::zip(a.open(&identity(2).id()), keepers[1].accept()).await;
        in_time("a transfer", transfer(out.unwrap(), taken.unwrap().1, 7, 1 << 20)).await;
        drop(b);
    });
}

// Programs of others

/// Where a program is, or nothing, said by name; where everything must run, it must be there.
fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let extra = [PathBuf::from("/usr/sbin"), PathBuf::from("/sbin")];
    let found =
        std::env::split_paths(&path).chain(extra).map(|folder| folder.join(name)).find(|at| at.is_file());
    if found.is_none() {
        assert!(!is_ci(), "{name} is not installed");
        eprintln!("skipped: {name} is not installed");
    }
    found
}

fn run_to_end(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Stops a program when dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

const NGINX: &str = "
daemon off; master_process off; pid FOLDER/pid; error_log FOLDER/error.log;
events { worker_connections 64; }
http {
  access_log off;
  client_body_temp_path FOLDER/t1; proxy_temp_path FOLDER/t2; fastcgi_temp_path FOLDER/t3;
  uwsgi_temp_path FOLDER/t4; scgi_temp_path FOLDER/t5;
  server {
    listen 127.0.0.1:PORT ssl;
    ssl_protocols TLSv1.2 TLSv1.3;
    ssl_certificate FOLDER/cert.pem; ssl_certificate_key FOLDER/key.pem;
    location /relay {
      proxy_pass http://127.0.0.1:RELAY;
      proxy_http_version 1.1;
      proxy_set_header Upgrade $http_upgrade;
      proxy_set_header Connection upgrade;
      proxy_set_header Host $host;
      proxy_set_header X-Forwarded-For $remote_addr;
      proxy_read_timeout 90s;
    }
  }
}
";

/// A certificate of its own making, and its SHA-256.
fn make_certificate(folder: &Path, openssl: &Path) -> [u8; 32] {
    run_to_end(
        Command::new(openssl)
            .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"])
            .args(["-days", "2", "-subj", "/CN=relay.test", "-keyout", "key.pem", "-out", "cert.pem"])
            .current_dir(folder),
    );
    run_to_end(
        Command::new(openssl)
            .args(["x509", "-in", "cert.pem", "-outform", "DER", "-out", "cert.der"])
            .current_dir(folder),
    );
    grove::keys::sha256(&fs::read(folder.join("cert.der")).unwrap())
}

#[test]
fn relay_behind_nginx_is_reached_by_tls_with_a_pinned_certificate() {
    let (Some(nginx), Some(openssl)) = (program("nginx"), program("openssl")) else { return };
    let relay = Relay::start(&[]);
    let folder = TempDir::new("nginx");
    let port = free_port();
    let hash = make_certificate(folder.path(), &openssl);
    let config = NGINX
        .replace("FOLDER", folder.path().to_str().unwrap())
        .replace("PORT", &port.to_string())
        .replace("RELAY", &relay.url.port.to_string());
    fs::write(folder.path().join("nginx.conf"), config).unwrap();
    let mut command = Command::new(nginx);
    command.arg("-c").arg(folder.path().join("nginx.conf")).arg("-p").arg(folder.path());
    let proxy = Running(command.stderr(Stdio::null()).spawn().unwrap());
    wait_for("nginx listens", || TcpStream::connect(("127.0.0.1", port)).ok());
    run(|executor| async move {
        let pinned = Url { is_tls: true, port, certificate: Some(hash), ..relay.url.clone() };
        let ann = log_in(&executor, &pinned, 1).await;
        // By the settings' pins, and by name.
        let by_name = Url { host: "localhost".into(), certificate: None, ..pinned.clone() };
        let options = Options { pins: vec![hash] };
        let (bob, driver) = connect(&by_name, &identity(2), &options).await.unwrap();
        executor.spawn(driver).detach();
        let (a, b) = join(&ann, &bob, 2).await;
        let (c, d) = join(&bob, &ann, 1).await;
        in_time("transfers", smol::future::zip(transfer(a, b, 8, 5 << 20), transfer(c, d, 9, 5 << 20))).await;
        // Nobody vouches for it.
        let Err(error) = connect(&by_name, &identity(3), &Options::default()).await else { panic!("let in") };
        assert!(matches!(error, ConnectError::Tls(_)), "{error}");
        let wrong = Url { certificate: Some([1; 32]), ..pinned };
        let Err(error) = connect(&wrong, &identity(3), &options).await else { panic!("let in") };
        assert!(matches!(error, ConnectError::Tls(_)), "{error}");
        drop(proxy);
    });
}

/// The largest messages of the Autobahn cases have 16 MiB.
const ECHO_BYTES_MAX: u64 = 16 << 20;

/// Asks nothing but the handshake of a client; gives what came after it.
fn shake_hands(stream: &mut TcpStream) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    let mut piece = [0; 4096];
    while bytes.len() < 64 * 1024 {
        let n = stream.read(&mut piece)?;
        if n == 0 {
            return Ok(None);
        }
        bytes.extend_from_slice(&piece[..n]);
        let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut request = httparse::Request::new(&mut headers);
        if let httparse::Status::Complete(head) = request.parse(&bytes).map_err(io::Error::other)? {
            let Some(key) = key_of(&request) else { return Ok(None) };
            stream.write_all(switching(key).as_bytes())?;
            return Ok(Some(bytes.split_off(head)));
        }
    }
    Ok(None)
}

/// Sends back every message, text and binary, by the frames of the relay.
fn echo(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let Some(mut raw) = shake_hands(&mut stream)? else { return Ok(()) };
    let mut decoder = Decoder::new(From::Client, ECHO_BYTES_MAX);
    let mut message = Vec::new();
    let mut out = Vec::new();
    loop {
        let mut at = 0;
        let last_word = loop {
            match decoder.next(&mut raw, &mut at) {
                Ok(None) => break None,
                Ok(Some(Event::Data { kind, bytes, is_last })) => {
                    message.extend_from_slice(bytes);
                    if is_last {
                        let head = match kind {
                            Kind::Text => Head::text(message.len(), None),
                            Kind::Binary => Head::binary(message.len(), None),
                        };
                        out.extend_from_slice(head.as_slice());
                        out.append(&mut message);
                    }
                }
                Ok(Some(Event::Ping(bytes))) => put_control(&mut out, Control::Pong(bytes), None),
                Ok(Some(Event::Pong)) => {}
                Ok(Some(Event::Close { code, .. })) => break Some(code),
                Err(violation) => break Some(Some(violation.code)),
            }
        };
        if let Some(code) = last_word {
            put_control(&mut out, Control::Close { code: code.or(Some(code::NORMAL)), reason: "" }, None);
            stream.write_all(&out)?;
            stream.shutdown(std::net::Shutdown::Write)?;
            io::copy(&mut stream.take(1 << 20), &mut io::sink())?;
            return Ok(());
        }
        stream.write_all(&out)?;
        out.clear();
        raw.resize(64 * 1024, 0);
        let n = stream.read(&mut raw)?;
        if n == 0 {
            return Ok(());
        }
        raw.truncate(n);
    }
}

#[test]
fn frames_pass_the_autobahn_cases() {
    let Some(kosoku) = program("kosoku") else { return };
    let folder = TempDir::new("autobahn");
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    // It ends with the process; a case that breaks off its connection is no matter.
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || echo(stream));
        }
    });
    let mut command = Command::new(kosoku);
    command.args(["-p", "2", "-o"]).arg(folder.path()).arg(&address).current_dir(folder.path());
    let output = command.output().unwrap();
    let said =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let behaviours = behaviours(folder.path());
    let count = |what: &str| behaviours.iter().filter(|behaviour| *behaviour == what).count();
    eprintln!("{} cases: {} OK, {} unimplemented", behaviours.len(), count("OK"), count("UNIMPLEMENTED"));
    assert!(behaviours.len() > 500 && count("OK") > 280, "{said}");
    let fine = ["OK", "NON-STRICT", "INFORMATIONAL", "UNIMPLEMENTED"];
    let failed: Vec<&String> = behaviours.iter().filter(|got| !fine.contains(&got.as_str())).collect();
    assert!(failed.is_empty(), "{failed:?} {said}");
}

/// What the report says of each case.
fn behaviours(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    common::walk(folder, &mut |path| {
        if path.file_name().is_some_and(|name| name == "index.json") {
            let text = fs::read_to_string(path).unwrap();
            found.extend(
                text.split("\"behavior\"").skip(1).map(|rest| rest.split('"').nth(1).unwrap().to_owned()),
            );
        }
    });
    found
}

#[test]
fn cell_serves_as_a_relay_on_its_own_port() {
    let folder = TempDir::new("relay-cell");
    let mut cell = common::Cell::at(folder.path(), "ann");
    let allowed: Vec<CellId> = vec![identity(1).id(), identity(2).id()];
    let list = format!("[\"{}\",\"{}\"]", allowed[0], allowed[1]);
    cell.init("ann", &[("relay.serve", "true"), ("relay.allow", &list)]);
    cell.run();
    let lock = common::object(fs::read_to_string(cell.dir.join("lock")).unwrap().trim());
    let port = common::number(&lock, "http_port");
    run(|executor| async move {
        let url: Url = format!("ws://localhost:{port}").parse().unwrap();
        let (ann, bob) = (log_in(&executor, &url, 1).await, log_in(&executor, &url, 2).await);
        let Err(error) = connect(&url, &identity(3), &Options::default()).await else { panic!("let in") };
        assert!(matches!(error, ConnectError::Refused(_)), "{error}");
        let (a, b) = join(&ann, &bob, 2).await;
        in_time("a transfer", transfer(a, b, 10, 3 << 20)).await;
        // They take none of the front door's places: the API answers still.
        let mut held = Vec::new();
        for _ in 0..100 {
            held.push(upgrade(&url));
        }
        cell.get("/status");
        drop(held);
        let (client, driver) = connect(&url, &identity(1), &Options::default()).await.unwrap();
        let driver = executor.spawn(driver);
        assert!(client.is_alive());
        let stopping = smol::unblock(move || cell.stop());
        assert_eq!(in_time("the end", driver).await, End::Restart(Duration::from_secs(30)));
        assert!(stopping.await < Duration::from_secs(5));
    });
}

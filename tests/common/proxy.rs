//! A TCP proxy that counts what passes and can cut everything off: what is on the wire, seen from outside the program.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use super::DEADLINE;

/// So long nothing may pass before a count is taken.
const QUIET: Duration = Duration::from_millis(700);
/// Passed on at once, at most.
const PIECE_BYTES: usize = 64 << 10;

struct Shared {
    /// Bytes that have passed, both ways together.
    passed: AtomicU64,
    /// Nothing more passes once so many bytes have.
    hold_at: AtomicU64,
    is_over: AtomicBool,
    streams: Mutex<Vec<TcpStream>>,
}

/// Stands before one port of this machine.
pub struct Proxy {
    port: u16,
    shared: Arc<Shared>,
}

impl Proxy {
    /// Passes all connections on to `port`.
    pub fn before(port: u16) -> Self {
        let shared = Arc::new(Shared {
            passed: AtomicU64::new(0),
            hold_at: AtomicU64::new(u64::MAX),
            is_over: AtomicBool::new(false),
            streams: Mutex::default(),
        });
        Self::sharing(port, shared)
    }

    /// Another one, before another port: what passes the two is counted, and held up, together.
    pub fn beside(&self, port: u16) -> Self {
        Self::sharing(port, Arc::clone(&self.shared))
    }

    fn sharing(port: u16, shared: Arc<Shared>) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let own = listener.local_addr().unwrap().port();
        let for_all = Arc::clone(&shared);
        thread::spawn(move || {
            for stream in listener.incoming() {
                if for_all.is_over.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(stream) = stream else { continue };
                let Ok(other) = TcpStream::connect(("127.0.0.1", port)) else { continue };
                join(&for_all, stream, other);
            }
        });
        Self { port: own, shared }
    }

    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Bytes that have passed so far, both ways together.
    pub fn passed(&self) -> u64 {
        self.shared.passed.load(Ordering::SeqCst)
    }

    /// Holds everything up, silently, once so many bytes have passed in all; one piece more may pass each way.
    pub fn hold_at(&self, bytes: u64) {
        self.shared.hold_at.store(bytes, Ordering::SeqCst);
    }

    /// Holds nothing up any more.
    pub fn release(&self) {
        self.shared.hold_at.store(u64::MAX, Ordering::SeqCst);
    }

    /// Bytes that have passed once nothing more does.
    pub fn settled(&self) -> u64 {
        let mut last = (self.passed(), Instant::now());
        let end = Instant::now() + DEADLINE;
        while last.1.elapsed() < QUIET {
            assert!(Instant::now() < end, "it does not fall silent");
            thread::sleep(Duration::from_millis(10));
            let now = self.passed();
            if now != last.0 {
                last = (now, Instant::now());
            }
        }
        last.0
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::SeqCst);
        for stream in self.shared.streams.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
        // So that it looks at `is_over`.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

fn join(shared: &Arc<Shared>, one: TcpStream, other: TcpStream) {
    for stream in [&one, &other] {
        let _ = stream.set_nodelay(true);
    }
    let copies = (one.try_clone().unwrap(), other.try_clone().unwrap());
    shared.streams.lock().unwrap().extend([one.try_clone().unwrap(), other.try_clone().unwrap()]);
    for (from, to) in [(one, other), (copies.1, copies.0)] {
        let shared = Arc::clone(shared);
        thread::spawn(move || pass(&shared, from, to));
    }
}

fn pass(shared: &Shared, mut from: TcpStream, mut to: TcpStream) {
    let mut buffer = vec![0; PIECE_BYTES];
    loop {
        let count = from.read(&mut buffer).unwrap_or(0);
        let is_held = || shared.passed.load(Ordering::SeqCst) >= shared.hold_at.load(Ordering::SeqCst);
        while is_held() && !shared.is_over.load(Ordering::SeqCst) {
            thread::sleep(Duration::from_millis(1));
        }
        if count == 0 || to.write_all(&buffer[..count]).is_err() {
            break;
        }
        shared.passed.fetch_add(count as u64, Ordering::SeqCst);
    }
    let _ = from.shutdown(Shutdown::Read);
    let _ = to.shutdown(Shutdown::Write);
}

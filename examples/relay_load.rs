//! Load for a relay: one circuit at full speed, short messages beside it, or many idle clients. For `scripts/bench-relay`.
//!
//! ```text
//! relay_load WAY bulk BYTES              a line of JSON: bytes and seconds
//! relay_load WAY latency SECONDS         one-way times of 100-byte messages, beside a bulk transfer
//! relay_load WAY quiet SECONDS           the same without the bulk transfer
//! relay_load ws://… idle CLIENTS         connects them, prints "ready", waits for the end of its input
//! ```
//!
//! A way is a relay of Grove (`ws://…`), one of iroh (`iroh://host:port`), or two sessions of Syncthing's
//! (`splice://host:port/KEY,KEY` and two more keys for the messages). All are spoken by hand, in blocking threads, so that
//! the load costs as little as it can and the same for each: the relay is what is measured.

use std::io::{self, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use grove::codec::Writer;
use grove::keys::{Identity, MasterKey, random};
use grove::relay::{Url, client};

const DATA: u8 = 0;
const WINDOW_UPDATE: u8 = 1;
const SYN: u16 = 1;
const ACK: u16 = 2;
const WINDOW_BYTES: u64 = 256 * 1024;
const BODY_BYTES: usize = 60_000;
/// Time between two short messages.
const MESSAGE_EVERY: Duration = Duration::from_millis(1);
const MESSAGE_BYTES: usize = 100;

fn identity(number: u32) -> Identity {
    let mut seed = [7; 32];
    seed[..4].copy_from_slice(&number.to_le_bytes());
    MasterKey::from_bytes(seed).identity(0, 0)
}

/// Bytes inside the messages that a server sends.
struct Messages {
    inner: BufReader<TcpStream>,
    left: usize,
}

impl Messages {
    fn message(&mut self) -> io::Result<Vec<u8>> {
        self.next_head()?;
        let mut bytes = vec![0; self.left];
        self.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn next_head(&mut self) -> io::Result<()> {
        loop {
            let mut head = [0; 2];
            self.inner.read_exact(&mut head)?;
            self.left = usize::from(head[1]);
            if head[1] == 126 {
                self.inner.read_exact(&mut head)?;
                self.left = usize::from(u16::from_be_bytes(head));
                return Ok(());
            }
            match head[0] {
                0x82 => return Ok(()),
                // Pings need no answer within a minute.
                0x89 => io::copy(&mut (&mut self.inner).take(self.left as u64), &mut io::sink()).map(drop)?,
                other => return Err(io::Error::other(format!("frame {other:x}"))),
            }
        }
    }
}

impl Read for Messages {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while self.left == 0 {
            self.next_head()?;
        }
        let max = self.left.min(buf.len());
        let n = self.inner.read(&mut buf[..max])?;
        self.left -= n;
        Ok(n)
    }
}

struct Line {
    out: TcpStream,
    from: Messages,
}

struct Frame {
    kind: u8,
    flags: u16,
    stream: u32,
    length: u32,
}

impl Line {
    /// A WebSocket; `more` are further headers.
    fn upgrade(address: &str, path: &str, host: &str, more: &str) -> io::Result<Self> {
        let mut out = TcpStream::connect(address)?;
        out.set_nodelay(true)?;
        write!(
            out,
            "GET {path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{more}\r\n"
        )?;
        let mut inner = BufReader::with_capacity(256 * 1024, out.try_clone()?);
        let mut last = [0; 4];
        while last != *b"\r\n\r\n" {
            last.rotate_left(1);
            inner.read_exact(&mut last[3..])?;
        }
        Ok(Self { out, from: Messages { inner, left: 0 } })
    }

    fn connect(url: &Url, number: u32) -> io::Result<Self> {
        let mut line = Self::upgrade(&url.address(), &url.path, &url.authority(), "")?;
        let hello = line.from.message()?;
        let identity = identity(number);
        let mut said = Writer::with_label("grove relay login v1");
        said.raw(&hello[1..65]).raw(identity.id().as_bytes());
        let mut login = Writer::new();
        login.u8(1).raw(identity.id().as_bytes()).raw(&random::<32>()).raw(&identity.sign(said.as_slice()));
        line.message(&[login.as_slice()])?;
        assert_eq!(line.from.message()?.len(), 67, "welcome");
        Ok(line)
    }

    /// One message, its mask zero.
    fn message(&mut self, parts: &[&[u8]]) -> io::Result<()> {
        let len: usize = parts.iter().map(|part| part.len()).sum();
        let mut head = vec![0x82];
        if len < 126 {
            head.push(0x80 | len as u8);
        } else {
            head.push(0x80 | 126);
            head.extend((len as u16).to_be_bytes());
        }
        head.extend([0; 4]);
        let slices: Vec<io::IoSlice<'_>> =
            std::iter::once(&head[..]).chain(parts.iter().copied()).map(io::IoSlice::new).collect();
        let whole = head.len() + len;
        let sent = self.out.write_vectored(&slices)?;
        if sent < whole {
            let mut rest = head;
            parts.iter().for_each(|part| rest.extend_from_slice(part));
            self.out.write_all(&rest[sent..])?;
        }
        Ok(())
    }

    fn frame(&mut self, kind: u8, flags: u16, stream: u32, length: u32, body: &[u8]) -> io::Result<()> {
        let mut head = [0; 12];
        head[1] = kind;
        head[2..4].copy_from_slice(&flags.to_be_bytes());
        head[4..8].copy_from_slice(&stream.to_be_bytes());
        head[8..].copy_from_slice(&length.to_be_bytes());
        self.message(&[&head, body])
    }

    fn next(&mut self) -> io::Result<Frame> {
        let mut head = [0; 12];
        self.from.read_exact(&mut head)?;
        Ok(Frame {
            kind: head[1],
            flags: u16::from_be_bytes([head[2], head[3]]),
            stream: u32::from_be_bytes(head[4..8].try_into().unwrap()),
            length: u32::from_be_bytes(head[8..].try_into().unwrap()),
        })
    }

    /// A circuit to the client of this number; gives its credit.
    fn open(&mut self, to: u32) -> io::Result<u64> {
        let mut head = vec![1];
        head.extend(identity(to).id().as_bytes());
        self.frame(DATA, SYN, 1, head.len() as u32, &head)?;
        let mut credit = WINDOW_BYTES - head.len() as u64;
        loop {
            let frame = self.next()?;
            if frame.kind == WINDOW_UPDATE {
                credit += u64::from(frame.length);
            } else if frame.kind == DATA {
                let mut status = [9];
                self.from.read_exact(&mut status)?;
                assert_eq!(status, [0], "joined");
                return Ok(credit);
            }
        }
    }

    /// Takes one circuit and gives it all the room there is.
    fn take(&mut self) -> io::Result<u32> {
        let syn = self.next()?;
        assert!(syn.flags & SYN != 0 && syn.length == 33, "a circuit");
        self.from.read_exact(&mut [0; 33])?;
        self.frame(DATA, ACK, syn.stream, 1, &[0])?;
        self.frame(WINDOW_UPDATE, 0, syn.stream, 16 << 20, &[])?;
        Ok(syn.stream)
    }
}

/// Where the load goes.
enum Way {
    Grove(Url),
    Iroh(String),
    /// Address, and the keys of two sessions.
    Splice(String, Vec<[Vec<u8>; 2]>),
}

impl Way {
    fn parse(text: &str) -> io::Result<Self> {
        if let Some(address) = text.strip_prefix("iroh://") {
            return Ok(Self::Iroh(address.to_owned()));
        }
        if let Some(rest) = text.strip_prefix("splice://") {
            let (address, keys) = rest.split_once('/').ok_or(io::ErrorKind::InvalidInput)?;
            let keys: Option<Vec<Vec<u8>>> = keys.split(',').map(unhex).collect();
            let keys = keys.ok_or(io::ErrorKind::InvalidInput)?;
            let pairs = keys.chunks_exact(2).map(|pair| [pair[0].clone(), pair[1].clone()]).collect();
            return Ok(Self::Splice(address.to_owned(), pairs));
        }
        text.parse().map(Self::Grove).map_err(io::Error::other)
    }

    /// Both ends of a circuit; each pair has clients of its own.
    fn join(&self, pair: u32) -> io::Result<(Out, In)> {
        let (a, b) = (2 * pair, 2 * pair + 1);
        let taken = Arc::new(AtomicU64::new(0));
        let (line, mut end, to, credit) = match self {
            Self::Grove(url) => {
                let (mut from, mut to) = (Line::connect(url, a)?, Line::connect(url, b)?);
                let taking = std::thread::spawn(move || to.take().map(|stream| (to, stream)));
                let credit = from.open(b)?;
                let (to, stream) = taking.join().expect("it ends")?;
                let end = In { line: to, way: Kind::Grove { stream, owed: 0 }, taken: Arc::clone(&taken) };
                (from, end, Kind::Grove { stream: 1, owed: 0 }, credit)
            }
            Self::Iroh(address) => {
                let (from, to) = (iroh(address, a)?, iroh(address, b)?);
                let end = In { line: to, way: Kind::Iroh(identity(a).id().0), taken: Arc::clone(&taken) };
                (from, end, Kind::Iroh(identity(b).id().0), 0)
            }
            Self::Splice(address, keys) => {
                let [first, second] = &keys[pair as usize];
                let (from, to) = (splice(address, first)?, splice(address, second)?);
                (from, In { line: to, way: Kind::Splice, taken: Arc::clone(&taken) }, Kind::Splice, 0)
            }
        };
        if let Kind::Splice = end.way {
            end.line.from.left = usize::MAX;
        }
        Ok((Out { line, way: to, credit, sent: 0, taken }, end))
    }
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    grove::id::unhex(text)
}

/// What an end needs to know of the protocol.
enum Kind {
    Grove {
        stream: u32,
        owed: u32,
    },
    /// The other's key.
    Iroh([u8; 32]),
    Splice,
}

/// Not more than this is under way at iroh's relay, which throws away what is over 512 messages of a client.
const IROH_UNDER_WAY_BYTES: u64 = 4 << 20;

struct Out {
    line: Line,
    way: Kind,
    credit: u64,
    sent: u64,
    /// By the other end.
    taken: Arc<AtomicU64>,
}

impl Out {
    fn send(&mut self, body: &[u8]) -> io::Result<()> {
        match &self.way {
            Kind::Grove { .. } => {
                while self.credit < body.len() as u64 {
                    let frame = self.line.next()?;
                    if frame.kind == WINDOW_UPDATE {
                        self.credit += u64::from(frame.length);
                    }
                }
                self.credit -= body.len() as u64;
                self.line.frame(DATA, 0, 1, body.len() as u32, body)?;
            }
            Kind::Iroh(to) => {
                while self.sent - self.taken.load(Ordering::Acquire) > IROH_UNDER_WAY_BYTES {
                    std::thread::yield_now();
                }
                let to = *to;
                self.line.message(&[&[4], &to, &[0], body])?;
            }
            Kind::Splice => self.line.out.write_all(body)?,
        }
        self.sent += body.len() as u64;
        Ok(())
    }
}

struct In {
    line: Line,
    way: Kind,
    taken: Arc<AtomicU64>,
}

impl In {
    /// Takes what comes, at least some bytes.
    fn receive(&mut self, buf: &mut [u8], see: &mut dyn FnMut(&[u8])) -> io::Result<()> {
        let mut left = match &mut self.way {
            Kind::Grove { stream, owed } => {
                if *owed >= 256 * 1024 {
                    let (stream, credit) = (*stream, std::mem::take(owed));
                    self.line.frame(WINDOW_UPDATE, 0, stream, credit, &[])?;
                }
                let frame = self.line.next()?;
                if frame.kind != DATA {
                    return Ok(());
                }
                if let Kind::Grove { owed, .. } = &mut self.way {
                    *owed += frame.length;
                }
                frame.length as usize
            }
            Kind::Iroh(_) => {
                self.line.from.next_head()?;
                let mut kind = [0];
                self.line.from.read_exact(&mut kind)?;
                if kind != [6] {
                    let rest = self.line.from.left;
                    self.line.from.read_exact(&mut buf[..rest])?;
                    return Ok(());
                }
                self.line.from.read_exact(&mut [0; 33])?;
                self.line.from.left
            }
            Kind::Splice => 1,
        };
        let is_splice = matches!(self.way, Kind::Splice);
        while left > 0 {
            let max = if is_splice { buf.len() } else { left.min(buf.len()) };
            let n = self.line.from.read(&mut buf[..max])?;
            if n == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            see(&buf[..n]);
            self.taken.fetch_add(n as u64, Ordering::Release);
            left = left.saturating_sub(n);
        }
        Ok(())
    }
}

/// A client of iroh's relay (iroh-relay 1.4, protos/handshake.rs).
fn iroh(address: &str, number: u32) -> io::Result<Line> {
    let mut line = Line::upgrade(address, "/relay", address, "Sec-WebSocket-Protocol: iroh-relay-v2\r\n")?;
    let challenge = line.from.message()?;
    assert_eq!((challenge.len(), challenge[0]), (17, 0), "a challenge");
    let identity = identity(number);
    let said = derive_key("iroh-relay handshake v1 challenge signature", &challenge[1..]);
    line.message(&[&[1], identity.id().as_bytes(), &[64], &identity.sign(&said)])?;
    assert_eq!(line.from.message()?[0], 2, "iroh's relay lets us in");
    Ok(line)
}

/// BLAKE3's key derivation, for a context and a material of one block each (BLAKE3 specification, section 2).
fn derive_key(context: &str, material: &[u8]) -> [u8; 32] {
    const IV: [u32; 8] = [
        0x6a09_e667,
        0xbb67_ae85,
        0x3c6e_f372,
        0xa54f_f53a,
        0x510e_527f,
        0x9b05_688c,
        0x1f83_d9ab,
        0x5be0_cd19,
    ];
    const ONE_ROOT_BLOCK: u32 = 1 | 2 | 8;
    let key = compress(&IV, context.as_bytes(), ONE_ROOT_BLOCK | 32);
    let words = compress(&key, material, ONE_ROOT_BLOCK | 64);
    let mut bytes = [0; 32];
    for (to, word) in bytes.chunks_exact_mut(4).zip(words) {
        to.copy_from_slice(&word.to_le_bytes());
    }
    bytes
}

fn compress(key: &[u32; 8], bytes: &[u8], flags: u32) -> [u32; 8] {
    let mut block = [0; 64];
    block[..bytes.len()].copy_from_slice(bytes);
    let mut m: [u32; 16] =
        std::array::from_fn(|i| u32::from_le_bytes(block[4 * i..4 * i + 4].try_into().unwrap()));
    let mut v = [0; 16];
    v[..8].copy_from_slice(key);
    v[8..12].copy_from_slice(&[0x6a09_e667, 0xbb67_ae85, 0x3c6e_f372, 0xa54f_f53a]);
    (v[14], v[15]) = (bytes.len() as u32, flags);
    const LANES: [[usize; 4]; 8] = [
        [0, 4, 8, 12],
        [1, 5, 9, 13],
        [2, 6, 10, 14],
        [3, 7, 11, 15],
        [0, 5, 10, 15],
        [1, 6, 11, 12],
        [2, 7, 8, 13],
        [3, 4, 9, 14],
    ];
    const ORDER: [usize; 16] = [2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8];
    for _ in 0..7 {
        for (lane, [a, b, c, d]) in LANES.into_iter().enumerate() {
            for (word, [x, y]) in [(m[2 * lane], [16, 12]), (m[2 * lane + 1], [8, 7])] {
                v[a] = v[a].wrapping_add(v[b]).wrapping_add(word);
                v[d] = (v[d] ^ v[a]).rotate_right(x);
                v[c] = v[c].wrapping_add(v[d]);
                v[b] = (v[b] ^ v[c]).rotate_right(y);
            }
        }
        m = std::array::from_fn(|i| m[ORDER[i]]);
    }
    std::array::from_fn(|i| v[i] ^ v[i + 8])
}

/// One end of a session of Syncthing's relay (its protocol, `JoinSessionRequest`).
fn splice(address: &str, key: &[u8]) -> io::Result<Line> {
    let mut out = TcpStream::connect(address)?;
    out.set_nodelay(true)?;
    let padded = key.len().div_ceil(4) * 4;
    let mut request = Vec::new();
    for word in [0x9e79_bc40, 3, 4 + padded as u32, key.len() as u32] {
        request.extend(word.to_be_bytes());
    }
    request.extend_from_slice(key);
    request.resize(16 + padded, 0);
    out.write_all(&request)?;
    let mut inner = BufReader::with_capacity(256 * 1024, out.try_clone()?);
    let mut head = [0; 12];
    inner.read_exact(&mut head)?;
    let mut response = vec![0; u32::from_be_bytes(head[8..].try_into().unwrap()) as usize];
    inner.read_exact(&mut response)?;
    assert_eq!(response[..4], [0; 4], "Syncthing's relay lets us in");
    Ok(Line { out, from: Messages { inner, left: 0 } })
}

fn bulk(way: &Way, bytes: u64) -> io::Result<()> {
    let (mut sender, mut receiver) = way.join(0)?;
    let start = Instant::now();
    let receiving = std::thread::spawn(move || {
        let (mut buf, mut got) = (vec![0; 1 << 16], 0);
        while got < bytes {
            receiver.receive(&mut buf, &mut |bytes| got += bytes.len() as u64)?;
        }
        io::Result::Ok(got)
    });
    let body = vec![0x5a; BODY_BYTES];
    let mut left = bytes;
    while left > 0 {
        let n = left.min(BODY_BYTES as u64);
        sender.send(&body[..n as usize])?;
        left -= n;
    }
    let got = receiving.join().expect("the receiver lives")?;
    assert_eq!(got, bytes);
    println!("{{\"bytes\":{got},\"seconds\":{:.4}}}", start.elapsed().as_secs_f64());
    Ok(())
}

/// Sends and takes as fast as it goes, until the process ends.
fn flood(way: &Way) -> io::Result<Arc<AtomicU64>> {
    let (mut sender, mut receiver) = way.join(0)?;
    let taken = Arc::clone(&receiver.taken);
    std::thread::spawn(move || {
        let mut buf = vec![0; 1 << 16];
        while receiver.receive(&mut buf, &mut |_| ()).is_ok() {}
    });
    std::thread::spawn(move || {
        let body = vec![0x5a; BODY_BYTES];
        while sender.send(&body).is_ok() {}
    });
    Ok(taken)
}

fn latency(way: &Way, seconds: u64, with_bulk: bool) -> io::Result<()> {
    let flooded = if with_bulk { Some(flood(way)?) } else { None };
    let (mut sender, mut receiver) = way.join(1)?;
    let start = Instant::now();
    let (seen_to, seen_from) = mpsc::channel();
    std::thread::spawn(move || {
        let mut pending = Vec::new();
        let mut buf = vec![0; 1 << 16];
        let mut see = |bytes: &[u8]| {
            pending.extend_from_slice(bytes);
            while pending.len() >= MESSAGE_BYTES {
                let sent = u64::from_le_bytes(pending[..8].try_into().unwrap());
                let _ = seen_to.send(start.elapsed().as_nanos() as u64 - sent);
                pending.drain(..MESSAGE_BYTES);
            }
        };
        while receiver.receive(&mut buf, &mut see).is_ok() {}
    });
    let mut times = Vec::new();
    while start.elapsed().as_secs() < seconds {
        std::thread::sleep(MESSAGE_EVERY);
        let mut body = [0; MESSAGE_BYTES];
        body[..8].copy_from_slice(&(start.elapsed().as_nanos() as u64).to_le_bytes());
        sender.send(&body)?;
        // One at a time: the time of a message is not that of a queue of them.
        times.push(seen_from.recv().map_err(io::Error::other)?);
    }
    let bulk =
        flooded.map_or(0, |taken| taken.load(Ordering::Relaxed)) as f64 / start.elapsed().as_secs_f64();
    times.sort_unstable();
    let part = |percent: usize| times[(times.len() - 1) * percent / 100] as f64 / 1000.0;
    println!(
        "{{\"messages\":{},\"p50_us\":{:.1},\"p99_us\":{:.1},\"bulk_mb_s\":{:.0}}}",
        times.len(),
        part(50),
        part(99),
        bulk / 1e6
    );
    Ok(())
}

fn idle(url: &Url, count: u32) -> io::Result<()> {
    let executor = std::rc::Rc::new(smol::LocalExecutor::new());
    smol::block_on(executor.run(async {
        let mut clients = Vec::new();
        for number in 0..count {
            let identity = identity(1000 + number);
            let connected = client::connect(url, &identity, &client::Options::default()).await;
            let (client, driver) = connected.map_err(io::Error::other)?;
            executor.spawn(driver).detach();
            clients.push(client);
        }
        println!("ready");
        smol::unblock(|| io::copy(&mut io::stdin(), &mut io::sink())).await?;
        assert!(clients.iter().all(client::Client::is_alive), "all are still connected");
        Ok(())
    }))
}

fn main() -> io::Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [url, what, number] = &words[..] else { return Err(io::Error::other("relay_load WAY WHAT NUMBER")) };
    let way = Way::parse(url)?;
    let number: u64 = number.parse().map_err(io::Error::other)?;
    match (what.as_str(), &way) {
        ("bulk", _) => bulk(&way, number),
        ("latency", _) => latency(&way, number, true),
        ("quiet", _) => latency(&way, number, false),
        ("idle", Way::Grove(url)) => idle(url, number as u32),
        _ => Err(io::Error::other("bulk, latency, quiet or idle")),
    }
}

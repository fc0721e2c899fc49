//! Load for a relay: one circuit at full speed, short messages beside it, or many idle clients. For `scripts/bench-relay`.
//!
//! ```text
//! relay_load URL bulk BYTES              a line of JSON: bytes and seconds
//! relay_load URL latency SECONDS         one-way times of 100-byte messages, beside a bulk transfer
//! relay_load URL quiet SECONDS           the same without the bulk transfer
//! relay_load URL idle CLIENTS            connects them, prints "ready", waits for the end of its input
//! ```
//!
//! Bulk and messages speak the protocol by hand, in blocking threads, so that the load costs as little as it can: the
//! relay is what is measured.

use std::io::{self, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use grove::codec::Writer;
use grove::keys::{Identity, MasterKey, random};
use grove::relay::{Url, client};

const DATA: u8 = 0;
const WINDOW_UPDATE: u8 = 1;
const SYN: u16 = 1;
const ACK: u16 = 2;
const FIN: u16 = 4;
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
    fn connect(url: &Url, number: u32) -> io::Result<Self> {
        let mut out = TcpStream::connect(url.address())?;
        out.set_nodelay(true)?;
        write!(
            out,
            "GET {} HTTP/1.1\r\nHost: {}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
            url.path,
            url.authority()
        )?;
        let mut inner = BufReader::with_capacity(256 * 1024, out.try_clone()?);
        let mut last = [0; 4];
        while last != *b"\r\n\r\n" {
            last.rotate_left(1);
            inner.read_exact(&mut last[3..])?;
        }
        let mut line = Self { out, from: Messages { inner, left: 0 } };
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

/// Sends until `bytes` are gone or `stop` is set.
fn send_bulk(mut line: Line, to: u32, bytes: u64, stop: &AtomicBool) -> io::Result<()> {
    let mut credit = line.open(to)?;
    let body = vec![0x5a; BODY_BYTES];
    let mut left = bytes;
    while left > 0 && !stop.load(Ordering::Relaxed) {
        let n = left.min(BODY_BYTES as u64);
        while credit < n {
            let frame = line.next()?;
            if frame.kind == WINDOW_UPDATE {
                credit += u64::from(frame.length);
            }
        }
        line.frame(DATA, 0, 1, n as u32, &body[..n as usize])?;
        credit -= n;
        left -= n;
    }
    line.frame(DATA, FIN, 1, 0, &[])?;
    // Until the other side has had all of it.
    loop {
        let frame = line.next()?;
        if frame.flags & FIN != 0 {
            return Ok(());
        }
    }
}

/// Reads to the end of the circuit; gives the bytes.
fn receive(mut line: Line, mut see: impl FnMut(&[u8])) -> io::Result<u64> {
    let stream = line.take()?;
    let mut buf = vec![0; 1 << 16];
    let (mut total, mut owed) = (0, 0);
    loop {
        let frame = line.next()?;
        if frame.kind != DATA {
            continue;
        }
        let mut left = frame.length as usize;
        while left > 0 {
            let max = left.min(buf.len());
            let n = line.from.read(&mut buf[..max])?;
            see(&buf[..n]);
            left -= n;
        }
        total += u64::from(frame.length);
        owed += frame.length;
        if owed >= 256 * 1024 {
            line.frame(WINDOW_UPDATE, 0, stream, owed, &[])?;
            owed = 0;
        }
        if frame.flags & FIN != 0 {
            line.frame(DATA, FIN, stream, 0, &[])?;
            return Ok(total);
        }
    }
}

fn bulk(url: &Url, bytes: u64) -> io::Result<()> {
    let (sender, receiver) = (Line::connect(url, 1)?, Line::connect(url, 2)?);
    let start = Instant::now();
    let receiving = std::thread::spawn(move || receive(receiver, |_| ()));
    send_bulk(sender, 2, bytes, &AtomicBool::new(false))?;
    let got = receiving.join().expect("the receiver lives")?;
    assert_eq!(got, bytes);
    println!("{{\"bytes\":{got},\"seconds\":{:.4}}}", start.elapsed().as_secs_f64());
    Ok(())
}

fn latency(url: &Url, seconds: u64, with_bulk: bool) -> io::Result<()> {
    let stop = Arc::new(AtomicBool::new(false));
    let mut threads = Vec::new();
    if with_bulk {
        let (sender, receiver) = (Line::connect(url, 1)?, Line::connect(url, 2)?);
        let stop = Arc::clone(&stop);
        threads.push(std::thread::spawn(move || receive(receiver, |_| ()).map(drop)));
        threads.push(std::thread::spawn(move || send_bulk(sender, 2, u64::MAX, &stop)));
    }
    let (mut sender, receiver) = (Line::connect(url, 3)?, Line::connect(url, 4)?);
    let start = Instant::now();
    let times = Arc::new(Mutex::new(Vec::new()));
    let (seen, noted) = (mpsc::channel(), Arc::clone(&times));
    let (seen_to, seen_from) = seen;
    threads.push(std::thread::spawn(move || {
        let mut pending = Vec::new();
        receive(receiver, |bytes| {
            pending.extend_from_slice(bytes);
            while pending.len() >= MESSAGE_BYTES {
                let sent = u64::from_le_bytes(pending[..8].try_into().unwrap());
                noted.lock().unwrap().push(start.elapsed().as_nanos() as u64 - sent);
                pending.drain(..MESSAGE_BYTES);
                let _ = seen_to.send(());
            }
        })
        .map(drop)
    }));
    let mut credit = sender.open(4)?;
    while start.elapsed().as_secs() < seconds {
        std::thread::sleep(MESSAGE_EVERY);
        let mut body = [0; MESSAGE_BYTES];
        body[..8].copy_from_slice(&(start.elapsed().as_nanos() as u64).to_le_bytes());
        while credit < MESSAGE_BYTES as u64 {
            let frame = sender.next()?;
            if frame.kind == WINDOW_UPDATE {
                credit += u64::from(frame.length);
            }
        }
        credit -= MESSAGE_BYTES as u64;
        sender.frame(DATA, 0, 1, MESSAGE_BYTES as u32, &body)?;
        // One at a time: the time of a message is not that of a queue of them.
        seen_from.recv().map_err(io::Error::other)?;
    }
    sender.frame(DATA, FIN, 1, 0, &[])?;
    stop.store(true, Ordering::Relaxed);
    for thread in threads {
        thread.join().expect("threads end")?;
    }
    let mut times = times.lock().unwrap().clone();
    times.sort_unstable();
    let part = |percent: usize| times[(times.len() - 1) * percent / 100] as f64 / 1000.0;
    println!("{{\"messages\":{},\"p50_us\":{:.1},\"p99_us\":{:.1}}}", times.len(), part(50), part(99));
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
    let [url, what, number] = &words[..] else { return Err(io::Error::other("relay_load URL WHAT NUMBER")) };
    let url: Url = url.parse().map_err(io::Error::other)?;
    let number: u64 = number.parse().map_err(io::Error::other)?;
    match what.as_str() {
        "bulk" => bulk(&url, number),
        "latency" => latency(&url, number, true),
        "quiet" => latency(&url, number, false),
        "idle" => idle(&url, number as u32),
        _ => Err(io::Error::other("bulk, latency, quiet or idle")),
    }
}

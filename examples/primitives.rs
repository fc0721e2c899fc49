//! What a transfer cannot do without, one by one: the yardstick of `make bench` for a direct transfer between two cells.
//!
//! `primitives FOLDER MIB` prints CPU seconds (user + system, of the whole process) for so many MiB: `noise`, sealed on one
//! thread and opened on another with a TCP connection on loopback between them; `sha256`, once; `write` of new files of
//! a chunk each into FOLDER, and `read` of them from the page cache. Every buffer is made once and used again.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::thread;

use sha2::{Digest, Sha256};

const MIB: usize = 1 << 20;
const CHUNK: usize = 4 * MIB;
const TAG: usize = 16;
/// Plaintext of the longest Noise message.
const MESSAGE: usize = 65_535 - TAG;

#[cfg(feature = "ring")]
mod cipher {
    use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};

    pub struct Key(LessSafeKey);

    impl Key {
        pub fn new() -> Self {
            Self(LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, &[7; 32]).expect("32 bytes")))
        }

        pub fn seal(&self, nonce: [u8; 12], bytes: &mut [u8]) -> [u8; 16] {
            let nonce = Nonce::assume_unique_for_key(nonce);
            let tag = self.0.seal_in_place_separate_tag(nonce, Aad::empty(), bytes).expect("short enough");
            tag.as_ref().try_into().expect("16 bytes")
        }

        pub fn open(&self, nonce: [u8; 12], bytes: &mut [u8], tag: [u8; 16]) -> bool {
            let nonce = Nonce::assume_unique_for_key(nonce);
            self.0.open_in_place_separate_tag(nonce, Aad::empty(), tag.into(), bytes, 0..).is_ok()
        }
    }
}

#[cfg(not(feature = "ring"))]
mod cipher {
    use chacha20poly1305::{AeadInOut, ChaCha20Poly1305, KeyInit};

    pub struct Key(ChaCha20Poly1305);

    impl Key {
        pub fn new() -> Self {
            Self(ChaCha20Poly1305::new(&[7; 32].into()))
        }

        pub fn seal(&self, nonce: [u8; 12], bytes: &mut [u8]) -> [u8; 16] {
            self.0.encrypt_inout_detached(&nonce.into(), &[], bytes.into()).expect("short enough").into()
        }

        pub fn open(&self, nonce: [u8; 12], bytes: &mut [u8], tag: [u8; 16]) -> bool {
            self.0.decrypt_inout_detached(&nonce.into(), &[], bytes.into(), &tag.into()).is_ok()
        }
    }
}

/// CPU seconds of this process so far.
fn cpu_s() -> f64 {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: the struct is written by the call and lives until after it; all zeroes are a valid one.
    let usage = unsafe {
        libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr());
        usage.assume_init()
    };
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    seconds(usage.ru_utime) + seconds(usage.ru_stime)
}

fn measure(name: &str, work: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    let before = cpu_s();
    work()?;
    println!("{name} {:.3}", cpu_s() - before);
    Ok(())
}

fn nonce(count: u64) -> [u8; 12] {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&count.to_le_bytes());
    nonce
}

fn noise(bytes: usize) -> io::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let mut sending = TcpStream::connect(listener.local_addr()?)?;
    sending.set_nodelay(true)?;
    let (mut receiving, _) = listener.accept()?;
    let messages = bytes.div_ceil(MESSAGE) as u64;
    let receiver = thread::spawn(move || -> io::Result<()> {
        let key = cipher::Key::new();
        let mut message = vec![0; 2 + MESSAGE + TAG];
        for count in 0..messages {
            receiving.read_exact(&mut message)?;
            let (sealed, tag) = message[2..].split_at_mut(MESSAGE);
            let tag = (&*tag).try_into().expect("16 bytes");
            if !key.open(nonce(count), sealed, tag) {
                return Err(io::ErrorKind::InvalidData.into());
            }
        }
        Ok(())
    });
    let key = cipher::Key::new();
    let mut message = vec![0; 2 + MESSAGE + TAG];
    for count in 0..messages {
        let (bytes, tag) = message[2..].split_at_mut(MESSAGE);
        tag.copy_from_slice(&key.seal(nonce(count), bytes));
        sending.write_all(&message)?;
    }
    receiver.join().expect("the receiver does not panic")
}

fn path(folder: &Path, n: usize) -> PathBuf {
    folder.join(format!("chunk-{n}"))
}

fn main() -> io::Result<()> {
    let args: Vec<String> = std::env::args().collect();
    let (Some(folder), Some(mib)) = (args.get(1), args.get(2).and_then(|n| n.parse::<usize>().ok())) else {
        return Err(io::Error::other("usage: primitives FOLDER MIB"));
    };
    let folder = Path::new(folder);
    let chunks = (mib * MIB).div_ceil(CHUNK);
    let mut chunk = vec![0; CHUNK];
    getrandom::fill(&mut chunk).map_err(|_| io::Error::other("no randomness"))?;
    measure("noise", || noise(chunks * CHUNK))?;
    measure("sha256", || {
        let ends = (0..chunks).fold(0, |ends, _| ends ^ Sha256::digest(std::hint::black_box(&chunk))[0]);
        std::hint::black_box(ends);
        Ok(())
    })?;
    let files = measure("write", || {
        (0..chunks).try_for_each(|n| File::create_new(path(folder, n))?.write_all(&chunk))
    })
    .and_then(|()| {
        measure("read", || (0..chunks).try_for_each(|n| File::open(path(folder, n))?.read_exact(&mut chunk)))
    });
    (0..chunks).for_each(|n| drop(fs::remove_file(path(folder, n))));
    files
}

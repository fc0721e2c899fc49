//! A wire whose packets really are late, lost or slow: two TAP devices in two namespaces and a thread between them.
//!
//! The kernel's netem is not built everywhere; this takes `/dev/net/tun` only. Each direction is a line of its own: a
//! frame may be lost, waits until the line is free for it, and comes out after the delay.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{Chance, net::Host};

/// `_IOW('T', 202, int)` of linux/if_tun.h.
const TUNSETIFF: u64 = 0x4004_54ca;
const IFF_TAP: libc::c_short = 0x0002;
const IFF_NO_PI: libc::c_short = 0x1000;
/// Whole frames, and some room.
const FRAME_BYTES_MAX: usize = 2048;
/// What waits for a line at most, where the rate is limited: as much as goes in this time, like a small modem's buffer.
const QUEUE_TIME_MAX: Duration = Duration::from_millis(200);
/// At least so many bytes may wait all the same.
const QUEUE_BYTES_MIN: u64 = 32 * 1024;
/// Frames on their way in one direction at most.
const FRAMES_MAX: usize = 65_536;
/// The thread looks at least so often whether it should end.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// What a wire does to frames, in each direction.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Quality {
    /// From end to end, one way.
    pub delay: Duration,
    /// Frames that never come out, of a hundred.
    pub lost_percent: u64,
    /// Bytes per second; 0 for no limit.
    pub bytes_per_s: u64,
    /// Nothing comes out, and nobody is told.
    pub is_cut: bool,
}

impl Quality {
    /// So many Mbit/s with so long a round trip.
    pub fn line(mbit_per_s: u64, round_trip_ms: u64) -> Self {
        let delay = Duration::from_millis(round_trip_ms / 2);
        Self { delay, bytes_per_s: mbit_per_s * 125_000, ..Self::default() }
    }

    pub fn lossy(lost_percent: u64) -> Self {
        Self { lost_percent, ..Self::default() }
    }

    pub fn cut() -> Self {
        Self { is_cut: true, ..Self::default() }
    }
}

/// Frames and bytes that came out at an end.
#[derive(Debug, Clone, Copy, Default)]
pub struct Carried {
    pub frames: u64,
    pub bytes: u64,
    pub lost: u64,
}

/// Both ends of a wire; it is gone when dropped.
pub struct Wire {
    state: Arc<State>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct State {
    quality: Mutex<Quality>,
    /// From the first end to the second, and back.
    carried: Mutex<[Carried; 2]>,
    is_over: AtomicBool,
}

/// Makes the TAP device `name` in this namespace.
fn open_tap(host: &Host, name: &str) -> io::Result<File> {
    let name = name.to_owned();
    host.inside(move || {
        let file = OpenOptions::new().read(true).write(true).open("/dev/net/tun")?;
        // struct ifreq: a name of 16 bytes, then here the flags, 40 bytes in all.
        let mut request = [0u8; 40];
        request[..name.len()].copy_from_slice(name.as_bytes());
        request[16..18].copy_from_slice(&(IFF_TAP | IFF_NO_PI).to_ne_bytes());
        // SAFETY: the descriptor is open, and the kernel reads and writes 40 bytes that live longer than the call.
        let done = unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF as _, request.as_mut_ptr()) };
        if done != 0 {
            return Err(io::Error::last_os_error());
        }
        rustix::io::ioctl_fionbio(&file, true)?;
        Ok(file)
    })
}

impl Wire {
    /// Puts a device into each of two namespaces and joins them. They are still down and have no address.
    pub fn new(a: (&Host, &str), b: (&Host, &str), quality: Quality) -> Self {
        let taps = [open_tap(a.0, a.1).expect("a TAP device"), open_tap(b.0, b.1).expect("a TAP device")];
        let state = Arc::new(State { quality: Mutex::new(quality), ..State::default() });
        let shared = Arc::clone(&state);
        let thread = std::thread::Builder::new().name("wire".into()).spawn(move || carry(&taps, &shared));
        Self { state, thread: Some(thread.unwrap()) }
    }

    /// Changes the wire for all frames that come from now on. What is under way is lost by a cut only.
    pub fn set(&self, quality: Quality) {
        *self.state.quality.lock().unwrap() = quality;
    }

    pub fn quality(&self) -> Quality {
        *self.state.quality.lock().unwrap()
    }

    /// What was carried from the first end to the second, and back.
    pub fn carried(&self) -> [Carried; 2] {
        *self.state.carried.lock().unwrap()
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.state.is_over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// One direction: decides when a frame comes out, and whether.
struct Line {
    queue: VecDeque<(Instant, Vec<u8>)>,
    free_at: Instant,
}

impl Line {
    /// Takes a frame; says whether it is lost.
    fn take(&mut self, frame: &[u8], quality: &Quality, chance: &mut Chance, now: Instant) -> bool {
        if quality.is_cut || chance.below(100) < quality.lost_percent || self.queue.len() >= FRAMES_MAX {
            return true;
        }
        let mut out_at = now;
        if quality.bytes_per_s > 0 {
            let line_time = |bytes: u64| Duration::from_nanos(bytes * 1_000_000_000 / quality.bytes_per_s);
            self.free_at = self.free_at.max(now);
            if self.free_at - now > QUEUE_TIME_MAX.max(line_time(QUEUE_BYTES_MIN)) {
                return true;
            }
            self.free_at += line_time(frame.len() as u64);
            out_at = self.free_at;
        }
        self.queue.push_back((out_at + quality.delay, frame.to_owned()));
        false
    }
}

fn carry(taps: &[File; 2], state: &State) {
    let mut chance = Chance(u64::from_le_bytes(grove::keys::random()));
    let begin = Instant::now();
    let mut lines = [0, 1].map(|_| Line { queue: VecDeque::new(), free_at: begin });
    let mut frame = [0; FRAME_BYTES_MAX];
    while !state.is_over.load(Ordering::Relaxed) {
        let quality = *state.quality.lock().unwrap();
        for from in [0, 1] {
            // A few frames at a time, so that the other direction is not kept waiting.
            for _ in 0..64 {
                let Ok(len) = (&taps[from]).read(&mut frame) else { break };
                let lost = lines[from].take(&frame[..len], &quality, &mut chance, Instant::now());
                state.carried.lock().unwrap()[from].lost += u64::from(lost);
            }
            if quality.is_cut {
                lines[from].queue.clear();
            }
            deliver(&mut lines[from], &taps[1 - from], &state.carried, from);
        }
        wait(taps, &lines);
    }
}

fn deliver(line: &mut Line, tap: &File, carried: &Mutex<[Carried; 2]>, from: usize) {
    let now = Instant::now();
    while line.queue.front().is_some_and(|(at, _)| *at <= now) {
        let (_, frame) = line.queue.pop_front().unwrap();
        // The kernel takes a frame whole or not at all.
        match (&*tap).write_all(&frame) {
            Ok(()) => {
                let mut carried = carried.lock().unwrap();
                carried[from].frames += 1;
                carried[from].bytes += frame.len() as u64;
            }
            // The device is down or full: as good as a lost frame.
            Err(why) => assert!(why.kind() != ErrorKind::InvalidInput, "{why}"),
        }
    }
}

/// Until a frame comes or one is due.
fn wait(taps: &[File; 2], lines: &[Line; 2]) {
    let now = Instant::now();
    let due = lines.iter().filter_map(|line| line.queue.front()).map(|(at, _)| *at - now.min(*at)).min();
    let time = due.unwrap_or(LOOK_EVERY).min(LOOK_EVERY);
    let limit = Timespec { tv_sec: 0, tv_nsec: i64::from(time.subsec_nanos()) };
    let mut fds = [0, 1].map(|n: usize| PollFd::from_borrowed_fd(taps[n].as_fd(), PollFlags::IN));
    let _ = poll(&mut fds, Some(&limit));
}

//! Frames of yamux version 0 (specification: hashicorp/yamux, spec.md), and what each stream may send and hold. Decides
//! only; `session` moves the bytes.

use std::collections::VecDeque;
use std::task::Waker;
use std::time::{Duration, Instant};

/// A frame's head: version u8, kind u8, flags u16, stream u32, length u32, all big-endian.
pub(super) const HEAD_BYTES: usize = 12;
/// Longest body of a frame that is taken in.
pub(super) const BODY_BYTES_MAX: u32 = 1 << 20;
/// What each stream may send before it gets any credit.
pub(super) const WINDOW_BYTES: u32 = 256 * 1024;

pub(super) const SYN: u16 = 1;
pub(super) const ACK: u16 = 2;
pub(super) const FIN: u16 = 4;
pub(super) const RST: u16 = 8;

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Its length is that of the body that follows.
    Data,
    /// Its length is further credit.
    Window,
    /// Its length is an opaque number.
    Ping,
    /// The sender takes its leave.
    GoAway,
}

pub(super) type HeadBytes = [u8; HEAD_BYTES];

/// A frame but for its body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Head {
    pub kind: Kind,
    pub flags: u16,
    pub stream: u32,
    pub len: u32,
}

impl Head {
    pub(super) fn to_bytes(self) -> HeadBytes {
        let mut bytes = [0; HEAD_BYTES];
        bytes[1] = self.kind as u8;
        bytes[2..4].copy_from_slice(&self.flags.to_be_bytes());
        bytes[4..8].copy_from_slice(&self.stream.to_be_bytes());
        bytes[8..].copy_from_slice(&self.len.to_be_bytes());
        bytes
    }

    /// `None`: of another version, or of no kind.
    pub(super) fn from_bytes(bytes: &HeadBytes) -> Option<Self> {
        let [version, kind, f0, f1, s0, s1, s2, s3, l0, l1, l2, l3] = *bytes;
        let kind = match kind {
            0 => Kind::Data,
            1 => Kind::Window,
            2 => Kind::Ping,
            3 => Kind::GoAway,
            _ => return None,
        };
        let (stream, len) = (u32::from_be_bytes([s0, s1, s2, s3]), u32::from_be_bytes([l0, l1, l2, l3]));
        (version == 0).then_some(Self { kind, flags: u16::from_be_bytes([f0, f1]), stream, len })
    }

    pub(super) fn has(self, flag: u16) -> bool {
        self.flags & flag != 0
    }
}

/// How far beyond 256 KiB each the receive windows of a connection's streams may grow and have grown.
#[derive(Debug)]
pub(super) struct Growth {
    pub max: usize,
    pub now: usize,
}

/// One stream on the table.
#[derive(Debug)]
pub(super) struct Flow {
    /// What came in and was not read.
    pub queue: VecDeque<u8>,
    /// What the peer may still send, of `window_max`.
    window_in: u32,
    window_max: u32,
    updated_at: Instant,
    window_out: u32,
    /// What our next frame says beside its own: that the stream is new, or that a new one is taken.
    greeting: u16,
    /// The peer sends no more.
    pub is_in_closed: bool,
    /// We send no more.
    pub is_out_closed: bool,
    pub reader: Option<Waker>,
    pub writer: Option<Waker>,
    /// The reader was woken to take what came where it lies.
    pub is_offered: bool,
    /// It is this stream's turn to write.
    pub has_turn: bool,
}

impl Flow {
    /// A stream that we open.
    pub(super) fn ours(now: Instant) -> Self {
        Self {
            queue: VecDeque::new(),
            window_in: WINDOW_BYTES,
            window_max: WINDOW_BYTES,
            updated_at: now,
            window_out: WINDOW_BYTES,
            greeting: SYN,
            is_in_closed: false,
            is_out_closed: false,
            reader: None,
            writer: None,
            is_offered: false,
            has_turn: false,
        }
    }

    /// A stream that the peer opens.
    pub(super) fn theirs(now: Instant) -> Self {
        Self { greeting: ACK, ..Self::ours(now) }
    }

    /// The flags of our next frame.
    pub(super) fn greet(&mut self) -> u16 {
        std::mem::take(&mut self.greeting)
    }

    /// Whether the peer has heard of it.
    pub(super) fn is_known(&self) -> bool {
        self.greeting != SYN
    }

    /// What may be sent now.
    pub(super) fn credit(&self) -> u32 {
        self.window_out
    }

    pub(super) fn spend(&mut self, bytes: u32) {
        self.window_out -= bytes;
    }

    /// Credit came; `false`: more than there can be.
    pub(super) fn earn(&mut self, bytes: u32) -> bool {
        let sum = self.window_out.checked_add(bytes);
        self.window_out = sum.unwrap_or(self.window_out);
        sum.is_some()
    }

    /// A frame with so many bytes comes; `false`: more than the peer may send.
    pub(super) fn expect(&mut self, bytes: u32) -> bool {
        let rest = self.window_in.checked_sub(bytes);
        self.window_in = rest.unwrap_or(self.window_in);
        rest.is_some()
    }

    /// Credit to give, once half of the window is used up and read; `unread` bytes of it are not. A window that was used
    /// up within two round trips doubles, as far as the connection's growth allows.
    pub(super) fn give(
        &mut self,
        unread: usize,
        now: Instant,
        rtt: Option<Duration>,
        growth: &mut Growth,
    ) -> Option<u32> {
        let unread = u32::try_from(unread).unwrap_or(u32::MAX);
        let done = |max: u32, left: u32| (max - left).saturating_sub(unread);
        if self.is_in_closed || done(self.window_max, self.window_in) < self.window_max / 2 {
            return None;
        }
        if rtt.is_some_and(|rtt| now.saturating_duration_since(self.updated_at) < rtt * 2) {
            let more = (self.window_max as usize).min(growth.max - growth.now);
            growth.now += more;
            self.window_max += more as u32;
        }
        let credit = done(self.window_max, self.window_in);
        self.updated_at = now;
        self.window_in += credit;
        Some(credit)
    }

    /// What it has taken of the connection's growth.
    pub(super) fn growth(&self) -> usize {
        (self.window_max - WINDOW_BYTES) as usize
    }

    pub(super) fn reset(&mut self) {
        self.is_in_closed = true;
        self.is_out_closed = true;
    }

    pub(super) fn wake_reader(&mut self) {
        if let Some(waker) = self.reader.take() {
            waker.wake();
        }
    }

    pub(super) fn wake_writer(&mut self) {
        if let Some(waker) = self.writer.take() {
            waker.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_write_back_the_bytes_they_came_from() {
        let head = Head { kind: Kind::Window, flags: SYN | RST, stream: 0x0102_0304, len: 0x0506_0708 };
        let bytes = [0, 1, 0, 9, 1, 2, 3, 4, 5, 6, 7, 8];
        assert_eq!(head.to_bytes(), bytes);
        assert_eq!(Head::from_bytes(&bytes), Some(head));
        assert_eq!(Head::from_bytes(&[1, 1, 0, 9, 1, 2, 3, 4, 5, 6, 7, 8]), None);
        assert_eq!(Head::from_bytes(&[0, 4, 0, 9, 1, 2, 3, 4, 5, 6, 7, 8]), None);
    }

    #[test]
    fn credit_is_given_when_half_a_window_was_read() {
        let now = Instant::now();
        let mut growth = Growth { max: 0, now: 0 };
        let mut flow = Flow::theirs(now);
        assert!(flow.expect(WINDOW_BYTES / 2));
        assert_eq!(flow.give(1, now, None, &mut growth), None, "one byte is unread");
        assert_eq!(flow.give(0, now, None, &mut growth), Some(WINDOW_BYTES / 2));
        assert!(flow.expect(WINDOW_BYTES) && !flow.expect(1));
    }

    #[test]
    fn windows_grow_on_long_lines_and_share_what_they_may() {
        let start = Instant::now();
        let rtt = Some(Duration::from_millis(100));
        let mut growth = Growth { max: 3 * WINDOW_BYTES as usize, now: 0 };
        let (mut a, mut b) = (Flow::theirs(start), Flow::theirs(start));
        assert!(a.expect(WINDOW_BYTES) && b.expect(WINDOW_BYTES));
        let soon = start + Duration::from_millis(199);
        assert_eq!(a.give(0, soon, rtt, &mut growth), Some(2 * WINDOW_BYTES));
        assert_eq!(b.give(0, soon + Duration::from_secs(1), rtt, &mut growth), Some(WINDOW_BYTES), "slow");
        assert!(a.expect(2 * WINDOW_BYTES));
        assert_eq!(a.give(0, soon, rtt, &mut growth), Some(4 * WINDOW_BYTES));
        assert_eq!((a.growth(), growth.now), (growth.max, growth.max));
        assert!(b.expect(WINDOW_BYTES));
        assert_eq!(b.give(0, soon + Duration::from_secs(1), rtt, &mut growth), Some(WINDOW_BYTES));
    }

    #[test]
    fn credit_beyond_all_is_told() {
        let mut flow = Flow::ours(Instant::now());
        assert!(flow.earn(u32::MAX - WINDOW_BYTES) && !flow.earn(1));
    }
}

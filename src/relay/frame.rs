//! WebSocket frames (RFC 6455, section 5): bytes in, events out, in place. Touches nothing.
//!
//! Promise: whatever the bytes, at most a control frame's 125 bytes are kept, and a frame that breaks the rules is
//! told with the close code that the rules name.

/// Most bytes of a control frame (RFC 6455, section 5.5).
pub const CONTROL_BYTES_MAX: usize = 125;
/// Most bytes of a frame's head: two, a length of eight, a mask of four.
pub const HEAD_BYTES_MAX: usize = 14;

/// Close codes (RFC 6455, section 7.4.1, and the registry it opens).
pub mod code {
    /// Done.
    pub const NORMAL: u16 = 1000;
    /// A frame breaks the rules.
    pub const PROTOCOL: u16 = 1002;
    /// Text, where only binary messages are spoken.
    pub const UNSUPPORTED: u16 = 1003;
    /// Text that is not UTF-8.
    pub const NOT_UTF8: u16 = 1007;
    /// Against a limit or a list.
    pub const POLICY: u16 = 1008;
    /// A message over the limit.
    pub const TOO_BIG: u16 = 1009;
    /// The server starts again; the reason says within what time to come back.
    pub const RESTART: u16 = 1012;
    /// No room now.
    pub const TRY_LATER: u16 = 1013;
    /// The same cell logged in again elsewhere.
    pub const REPLACED: u16 = 4000;
}

/// What a frame carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// UTF-8.
    Text,
    /// Bytes.
    Binary,
}

/// Which frames come in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum From {
    /// A client's: masked, all of them.
    Client,
    /// A server's: not masked.
    Server,
}

/// What came in.
#[derive(Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// A part of a message, unmasked; the last one says so and may be empty.
    Data { kind: Kind, bytes: &'a [u8], is_last: bool },
    /// To be answered with the same bytes.
    Ping(&'a [u8]),
    /// An answer, or a sign of life.
    Pong,
    /// The other side has said its last: its code, if it gave one, and why.
    Close { code: Option<u16>, reason: &'a str },
}

/// A frame against the rules: the code to close with, and what is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Violation {
    /// See `code`.
    pub code: u16,
    /// For the log and the close frame.
    pub what: &'static str,
}

const fn violation(what: &'static str) -> Violation {
    Violation { code: code::PROTOCOL, what }
}

const CONTINUATION: u8 = 0;
const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

/// A frame of which the head is in.
#[derive(Debug, Clone, Copy)]
struct Frame {
    opcode: u8,
    is_last: bool,
    left: u64,
    mask: Option<[u8; 4]>,
    /// Bytes of the payload before the next one, modulo 4.
    turn: usize,
}

/// Reads frames as they come, in pieces of any size.
#[derive(Debug)]
pub struct Decoder {
    from: From,
    message_bytes_max: u64,
    head: [u8; HEAD_BYTES_MAX],
    head_len: usize,
    frame: Option<Frame>,
    /// The message that is not finished: its kind, and its bytes so far.
    message: Option<(Kind, u64)>,
    control: Vec<u8>,
    utf8: Utf8,
    is_closed: bool,
}

impl Decoder {
    /// Messages over `message_bytes_max` are a violation.
    pub fn new(from: From, message_bytes_max: u64) -> Self {
        Self {
            from,
            message_bytes_max,
            head: [0; HEAD_BYTES_MAX],
            head_len: 0,
            frame: None,
            message: None,
            control: Vec::new(),
            utf8: Utf8::default(),
            is_closed: false,
        }
    }

    /// The next event in `bytes[*at..]`, whose payload is unmasked where it lies; `None` when more must come first.
    /// Moves `at` on. After a close nothing more comes.
    pub fn next<'a>(
        &'a mut self,
        bytes: &'a mut [u8],
        at: &mut usize,
    ) -> Result<Option<Event<'a>>, Violation> {
        loop {
            if self.is_closed {
                *at = bytes.len();
                return Ok(None);
            }
            let Some(frame) = self.frame else {
                if !self.read_head(bytes, at)? {
                    return Ok(None);
                }
                continue;
            };
            let here = (bytes.len() - *at).min(usize::try_from(frame.left).unwrap_or(usize::MAX));
            if here == 0 && frame.left > 0 {
                return Ok(None);
            }
            let start = *at;
            *at += here;
            let end = start + here;
            if let Some(mask) = frame.mask {
                unmask(&mut bytes[start..end], mask, frame.turn);
            }
            let left = frame.left - here as u64;
            self.frame = (left > 0).then_some(Frame { left, turn: (frame.turn + here) % 4, ..frame });
            if frame.opcode >= CLOSE {
                self.control.extend_from_slice(&bytes[start..end]);
                if left > 0 {
                    return Ok(None);
                }
                return self.control_event(frame.opcode).map(Some);
            }
            let is_last = left == 0 && frame.is_last;
            let (kind, so_far) = self.message.expect("a data frame belongs to a message");
            self.message = (!is_last).then_some((kind, so_far + here as u64));
            if kind == Kind::Text && !self.utf8.go_on(&bytes[start..end], is_last) {
                return Err(Violation { code: code::NOT_UTF8, what: "text is not UTF-8" });
            }
            if here > 0 || is_last {
                return Ok(Some(Event::Data { kind, bytes: &bytes[start..end], is_last }));
            }
        }
    }

    /// Nothing of a frame or a message is pending.
    pub fn is_at_rest(&self) -> bool {
        self.head_len == 0 && self.frame.is_none() && self.message.is_none()
    }

    /// Collects the head; true once there is a frame.
    fn read_head(&mut self, bytes: &[u8], at: &mut usize) -> Result<bool, Violation> {
        loop {
            let wanted = self.head_wanted();
            let here = (wanted - self.head_len).min(bytes.len() - *at);
            self.head[self.head_len..self.head_len + here].copy_from_slice(&bytes[*at..*at + here]);
            self.head_len += here;
            *at += here;
            if self.head_len < wanted {
                return Ok(false);
            }
            if self.head_len == self.head_wanted() && self.head_len >= 2 {
                self.check_start()?;
                break;
            }
        }
        self.head_len = 0;
        let frame = self.frame_of_head()?;
        self.begin(frame)?;
        self.frame = Some(frame);
        Ok(true)
    }

    /// Bytes that the head has, as far as is known.
    fn head_wanted(&self) -> usize {
        if self.head_len < 2 {
            return 2;
        }
        let length = match self.head[1] & 0x7f {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        2 + length + if self.head[1] & 0x80 == 0 { 0 } else { 4 }
    }

    fn check_start(&self) -> Result<(), Violation> {
        let (first, second) = (self.head[0], self.head[1]);
        if first & 0x70 != 0 {
            return Err(violation("a reserved bit is set"));
        }
        if (second & 0x80 != 0) != (self.from == From::Client) {
            return Err(violation("the mask is missing, or one too many"));
        }
        Ok(())
    }

    fn frame_of_head(&self) -> Result<Frame, Violation> {
        let (first, second) = (self.head[0], self.head[1]);
        let short = u64::from(second & 0x7f);
        let (left, rest) = match short {
            126 => (u64::from(u16::from_be_bytes([self.head[2], self.head[3]])), 4),
            127 => (u64::from_be_bytes(self.head[2..10].try_into().expect("eight bytes")), 10),
            _ => (short, 2),
        };
        if (short == 126 && left < 126) || (short == 127 && left <= 0xffff) || left >> 63 != 0 {
            return Err(violation("a length is not in its only form"));
        }
        let mask = (second & 0x80 != 0).then(|| self.head[rest..rest + 4].try_into().expect("four bytes"));
        Ok(Frame { opcode: first & 0x0f, is_last: first & 0x80 != 0, left, mask, turn: 0 })
    }

    /// Checks a frame against those before it.
    fn begin(&mut self, frame: Frame) -> Result<(), Violation> {
        let kind = match (frame.opcode, self.message) {
            (CLOSE | PING | PONG, _) => {
                self.control.clear();
                return match frame.is_last && frame.left <= CONTROL_BYTES_MAX as u64 {
                    true => Ok(()),
                    false => Err(violation("a control frame is in parts or too long")),
                };
            }
            (CONTINUATION, Some((kind, _))) => kind,
            (CONTINUATION, None) => return Err(violation("a continuation of nothing")),
            (TEXT | BINARY, Some(_)) => return Err(violation("a message within a message")),
            (TEXT, None) => Kind::Text,
            (BINARY, None) => Kind::Binary,
            _ => return Err(violation("a reserved opcode")),
        };
        let so_far = self.message.map_or(0, |(_, so_far)| so_far);
        if so_far.saturating_add(frame.left) > self.message_bytes_max {
            return Err(Violation { code: code::TOO_BIG, what: "a message is too long" });
        }
        if self.message.is_none() {
            self.utf8 = Utf8::default();
        }
        self.message = Some((kind, so_far));
        Ok(())
    }

    fn control_event(&mut self, opcode: u8) -> Result<Event<'_>, Violation> {
        match opcode {
            PING => Ok(Event::Ping(&self.control)),
            PONG => Ok(Event::Pong),
            _ => {
                self.is_closed = true;
                let (code, reason) = read_close(&self.control)?;
                Ok(Event::Close { code, reason })
            }
        }
    }
}

fn read_close(payload: &[u8]) -> Result<(Option<u16>, &str), Violation> {
    let Some((code, reason)) = payload.split_first_chunk::<2>() else {
        return if payload.is_empty() { Ok((None, "")) } else { Err(violation("half a close code")) };
    };
    let code = u16::from_be_bytes(*code);
    if !matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999) {
        return Err(violation("a close code that nobody may send"));
    }
    let reason = std::str::from_utf8(reason)
        .map_err(|_| Violation { code: code::NOT_UTF8, what: "a reason is not UTF-8" })?;
    Ok((Some(code), reason))
}

/// Takes the mask off, or puts it on: `turn` bytes of the payload went before.
pub fn unmask(payload: &mut [u8], mask: [u8; 4], turn: usize) {
    let mask = |turn: usize| -> [u8; 8] { std::array::from_fn(|i| mask[(turn + i) % 4]) };
    // SAFETY: any eight bytes are a number. Whole words, so that this is quick also where the compiler works for size.
    let (head, words, tail) = unsafe { payload.align_to_mut::<u64>() };
    for (byte, mask) in head.iter_mut().zip(mask(turn)) {
        *byte ^= mask;
    }
    let mask = mask(turn + head.len());
    let whole = u64::from_ne_bytes(mask);
    for word in words {
        *word ^= whole;
    }
    for (byte, mask) in tail.iter_mut().zip(mask) {
        *byte ^= mask;
    }
}

/// UTF-8 that comes in pieces.
#[derive(Debug, Default)]
struct Utf8 {
    /// The start of a letter whose end has not come.
    pending: [u8; 4],
    len: usize,
}

impl Utf8 {
    /// Whether all so far can be UTF-8, and is whole if this is the last piece.
    fn go_on(&mut self, mut piece: &[u8], is_last: bool) -> bool {
        while self.len > 0 && !piece.is_empty() {
            self.pending[self.len] = piece[0];
            self.len += 1;
            piece = &piece[1..];
            match std::str::from_utf8(&self.pending[..self.len]) {
                Ok(_) => self.len = 0,
                Err(error) if error.error_len().is_some() => return false,
                Err(_) => {}
            }
        }
        if let Err(error) = std::str::from_utf8(piece) {
            let rest = &piece[error.valid_up_to()..];
            if error.error_len().is_some() {
                return false;
            }
            self.pending[..rest.len()].copy_from_slice(rest);
            self.len = rest.len();
        }
        !is_last || self.len == 0
    }
}

/// The head of a frame that is a whole message, or of a control frame.
#[derive(Debug, Clone, Copy)]
pub struct Head {
    bytes: [u8; HEAD_BYTES_MAX],
    len: usize,
}

impl Head {
    /// Of a binary message of `len` bytes.
    pub fn binary(len: usize, mask: Option<[u8; 4]>) -> Self {
        Self::new(BINARY, len, mask)
    }

    /// Of a text message of `len` bytes.
    pub fn text(len: usize, mask: Option<[u8; 4]>) -> Self {
        Self::new(TEXT, len, mask)
    }

    fn new(opcode: u8, len: usize, mask: Option<[u8; 4]>) -> Self {
        let mut bytes = [0; HEAD_BYTES_MAX];
        bytes[0] = 0x80 | opcode;
        let mut at = 2;
        match len {
            0..=125 => bytes[1] = len as u8,
            126..=0xffff => {
                bytes[1] = 126;
                bytes[2..4].copy_from_slice(&(len as u16).to_be_bytes());
                at = 4;
            }
            _ => {
                bytes[1] = 127;
                bytes[2..10].copy_from_slice(&(len as u64).to_be_bytes());
                at = 10;
            }
        }
        if let Some(mask) = mask {
            bytes[1] |= 0x80;
            bytes[at..at + 4].copy_from_slice(&mask);
            at += 4;
        }
        Self { bytes, len: at }
    }

    /// The bytes of the head.
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// A control frame to send.
#[derive(Debug, Clone, Copy)]
pub enum Control<'a> {
    /// Asks for a pong.
    Ping,
    /// Answers a ping with its bytes.
    Pong(&'a [u8]),
    /// The last word; a reason over 123 bytes is cut.
    Close { code: Option<u16>, reason: &'a str },
}

/// Appends a control frame, masked if a client sends it.
pub fn put_control(out: &mut Vec<u8>, control: Control<'_>, mask: Option<[u8; 4]>) {
    let mut payload = Vec::new();
    let opcode = match control {
        Control::Ping => PING,
        Control::Pong(bytes) => {
            payload.extend_from_slice(&bytes[..bytes.len().min(CONTROL_BYTES_MAX)]);
            PONG
        }
        Control::Close { code, reason } => {
            if let Some(code) = code {
                let mut end = reason.len().min(CONTROL_BYTES_MAX - 2);
                while !reason.is_char_boundary(end) {
                    end -= 1;
                }
                payload.extend_from_slice(&code.to_be_bytes());
                payload.extend_from_slice(&reason.as_bytes()[..end]);
            }
            CLOSE
        }
    };
    out.extend_from_slice(Head::new(opcode, payload.len(), mask).as_slice());
    if let Some(mask) = mask {
        unmask(&mut payload, mask, 0);
    }
    out.extend_from_slice(&payload);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What comes of `bytes` when they come in pieces of `step`.
    fn decode(bytes: &[u8], step: usize, from: From) -> Result<Vec<String>, Violation> {
        let mut decoder = Decoder::new(from, 1000);
        let mut told: Vec<String> = Vec::new();
        let mut message = Vec::new();
        for piece in bytes.chunks(step) {
            let (mut piece, mut at) = (piece.to_vec(), 0);
            loop {
                match decoder.next(&mut piece, &mut at)? {
                    None => break,
                    Some(Event::Data { kind, bytes, is_last }) => {
                        message.extend_from_slice(bytes);
                        if is_last {
                            told.push(format!("{kind:?} {}", String::from_utf8_lossy(&message)));
                            message.clear();
                        }
                    }
                    Some(other) => told.push(format!("{other:?}")),
                }
            }
            assert_eq!(at, piece.len());
        }
        Ok(told)
    }

    #[test]
    fn examples_of_the_specification_are_read_in_pieces_of_any_size() {
        // RFC 6455, section 5.7.
        let masked = [0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58];
        let parts = [0x01, 0x03, 0x48, 0x65, 0x6c, 0x89, 0x01, 0x21, 0x80, 0x02, 0x6c, 0x6f];
        for step in 1..13 {
            assert_eq!(decode(&masked, step, From::Client).unwrap(), ["Text Hello"]);
            assert_eq!(decode(&parts, step, From::Server).unwrap(), ["Ping([33])", "Text Hello"]);
        }
    }

    #[test]
    fn what_is_written_reads_back_with_and_without_a_mask() {
        for len in [0, 1, 125, 126, 900] {
            for mask in [None, Some([1, 2, 3, 250])] {
                let mut payload = vec![b'x'; len];
                let mut bytes = Head::binary(len, mask).as_slice().to_vec();
                if let Some(mask) = mask {
                    unmask(&mut payload, mask, 0);
                }
                bytes.extend(payload);
                put_control(&mut bytes, Control::Close { code: Some(4000), reason: "bye" }, mask);
                let from = if mask.is_some() { From::Client } else { From::Server };
                let told = decode(&bytes, 7, from).unwrap();
                assert_eq!(told[0], format!("Binary {}", "x".repeat(len)));
                assert_eq!(told[1], "Close { code: Some(4000), reason: \"bye\" }");
            }
        }
    }

    #[test]
    fn frames_against_the_rules_are_told_with_their_code() {
        for (bytes, code) in [
            (&[0xc1, 0x00][..], code::PROTOCOL),
            (&[0x83, 0x00], code::PROTOCOL),
            (&[0x8b, 0x00], code::PROTOCOL),
            (&[0x09, 0x00], code::PROTOCOL),
            (&[0x89, 0x7e, 0, 126], code::PROTOCOL),
            (&[0x80, 0x00], code::PROTOCOL),
            (&[0x01, 0x00, 0x01, 0x00], code::PROTOCOL),
            (&[0x82, 0x7e, 0, 5], code::PROTOCOL),
            (&[0x82, 0x7f, 0x80, 0, 0, 0, 0, 0, 0, 0], code::PROTOCOL),
            (&[0x82, 0x80, 0, 0, 0, 0], code::PROTOCOL),
            (&[0x82, 0x7e, 0x04, 0x00], code::TOO_BIG),
            (&[0x81, 0x01, 0xff], code::NOT_UTF8),
            (&[0x81, 0x01, 0xc3], code::NOT_UTF8),
            (&[0x88, 0x01, 0x03], code::PROTOCOL),
            (&[0x88, 0x02, 0x03, 0xed], code::PROTOCOL),
            (&[0x88, 0x03, 0x03, 0xe8, 0xff], code::NOT_UTF8),
        ] {
            for step in [1, 20] {
                assert_eq!(decode(bytes, step, From::Server).unwrap_err().code, code, "{bytes:x?}");
            }
        }
        assert!(decode(&[0x82, 0x00], 2, From::Client).is_err(), "no mask");
    }

    #[test]
    fn letter_may_be_cut_anywhere() {
        let text = "κόσμε🌳";
        for cut in 0..text.len() {
            let (a, b) = text.as_bytes().split_at(cut);
            let mut bytes = vec![0x01, a.len() as u8];
            bytes.extend_from_slice(a);
            bytes.extend([0x80, b.len() as u8]);
            bytes.extend_from_slice(b);
            assert_eq!(decode(&bytes, 100, From::Server).unwrap(), [format!("Text {text}")]);
        }
    }

    #[test]
    fn random_bytes_do_not_panic() {
        let mut dice = crate::wire::noise::tests::Dice(3);
        for _ in 0..2000 {
            let len = dice.roll(200);
            let bytes = dice.bytes(len);
            let _ = decode(&bytes, 1 + dice.roll(50), From::Client);
            let _ = decode(&bytes, 1 + dice.roll(50), From::Server);
        }
    }
}

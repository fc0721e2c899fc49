//! Requests and replies. One stream is one request: its head, its body where it has one, then the reply's head and
//! body. A head is a u32 length (little-endian) and that many bytes, the first of which is the tag.
//!
//! Everything is about the authenticated peer's own chunks, or, after a recovery handshake, the recovering owner's.
//!
//! Promise: a head that parses writes back the same bytes; lists and texts have limits; every wait ends.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use smol::io::{AsyncRead, AsyncWrite, AsyncWriteExt};

use super::session::{Session, SessionError, Stream};
use super::{flush, read_full, within, write_full};
use crate::bounty::{Heard, STATEMENT_BYTES_MAX};
use crate::buffers;
use crate::card::CARD_BYTES_MAX;
use crate::chat::{self, Receipt, Run};
use crate::codec::{BadBytes, Reader, Writer};
use crate::friendship::Friendship;
use crate::grant::{GRANT_BYTES_MAX, LIST_BYTES_MAX, PROOF_BYTES_MAX, TICKET_BYTES_MAX};
use crate::id::{BodyHash, ChunkName};
use crate::keys::Secret;
use crate::proof::{Challenge, LEAVES_MAX, Nonce};
use crate::world::Timer;

/// The protocol that this version speaks.
pub const PROTOCOL: u16 = 1;
/// A sealed chunk or catalog segment, in bytes.
pub const CHUNK_SEALED_MAX: usize = 4 * 1024 * 1024 + 64;
/// Chunk names in one message.
pub const NAMES_MAX: usize = 1024;
/// Body of one `Put`, in bytes.
pub const PUT_BYTES_MAX: u64 = 64 << 20;
/// Entries in one reply to `Inventory`.
pub const INVENTORY_ENTRIES_MAX: usize = 4096;
/// One catalog head, in bytes.
pub const CATALOG_HEAD_BYTES_MAX: usize = 1 << 20;
/// All catalog heads of one reply, in bytes.
pub const CATALOG_HEADS_BYTES_MAX: usize = 8 << 20;
/// Catalog heads in one reply, and tips in a `Hello`.
pub const CATALOG_HEADS_MAX: usize = 256;
/// Head of a request, in bytes.
pub const REQUEST_HEAD_BYTES_MAX: usize = 64 * 1024;
/// Head of a reply, in bytes.
pub const REPLY_HEAD_BYTES_MAX: usize = 256 * 1024;
/// Sums of one `Digest`.
pub const DIGEST_SUMS: usize = 256;
/// Stands for no first byte.
const DIGEST_ALL: u16 = 0x100;
/// Bytes without meaning in one direction of a `Measure`.
pub const MEASURE_BYTES_MAX: u32 = 4 << 20;
const BLANK_BYTES: usize = 8 * 1024;
/// Chunks of which one `Audit` wants proofs.
pub const AUDIT_NAMES_MAX: usize = 256;
/// From one answer of an audit to the next: a chunk is read and hashed on a slow card, among others' work.
pub const AUDIT_TIME_MAX: Duration = Duration::from_secs(60);
/// Grants that one request offers.
pub const GRANTS_MAX: usize = 64;
/// Their bytes together.
pub const GRANTS_BYTES_MAX: usize = 4 << 20;
/// Chunks that one request asks for by a ticket.
pub const TICKET_CHUNKS_MAX: usize = 32;
/// What a cell tells a friend of its models, in bytes.
pub const BEAT_BYTES_MAX: usize = 16 * 1024;
/// A question to a friend's models, in bytes.
pub const QUESTION_BYTES_MAX: usize = 1 << 20;
/// One frame of the answer, in bytes.
pub const FRAME_BYTES_MAX: usize = 2 << 20;
/// A text for people, in bytes.
pub const TEXT_BYTES_MAX: usize = 512;
/// A version's name, in bytes.
pub const VERSION_BYTES_MAX: usize = 64;

/// Without a byte for so long, a stream is given up.
pub const PROGRESS_TIME_MAX: Duration = Duration::from_secs(30);
/// How long a peer may take to store what it was sent: 64 MiB on a slow card.
pub const STORE_TIME_MAX: Duration = Duration::from_secs(180);
/// A head, once begun, is whole within this.
pub const HEAD_TIME_MAX: Duration = Duration::from_secs(60);
/// A model may think so long before its next word.
pub const ANSWER_TIME_MAX: Duration = Duration::from_secs(1800);
/// A body that comes, or is taken, slower than this many bytes a second is given up.
pub const BODY_BYTES_PER_SECOND_MIN: u64 = 4 * 1024;

macro_rules! byte_enum {
    ($(#[$doc:meta])* $name:ident { $($(#[$item_doc:meta])* $item:ident = $value:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $name {
            $($(#[$item_doc])* $item,)+
            /// Of a later version.
            Other(u8),
        }

        impl $name {
            /// The byte on the wire.
            pub fn to_byte(self) -> u8 {
                match self {
                    $(Self::$item => $value,)+
                    Self::Other(byte) => byte,
                }
            }

            /// What the byte means.
            pub fn from_byte(byte: u8) -> Self {
                match byte {
                    $($value => Self::$item,)+
                    other => Self::Other(other),
                }
            }
        }
    };
}

byte_enum! {
    /// What a `Put` carries.
    Class {
        /// Chunks of files: they count against the quota.
        Chunk = 0,
        /// Segments of the owner's catalog.
        Segment = 1,
    }
}

byte_enum! {
    /// What became of an entry of a `Put`.
    PutStatus {
        /// It is durably kept.
        Stored = 0,
        /// It was kept already.
        Already = 1,
        /// The sender's quota is used up.
        OverQuota = 2,
        /// The disk is at its reserve.
        DiskFull = 3,
        /// The bytes do not hash to the name.
        WrongBytes = 4,
        /// This peer keeps nothing for the sender, or the disk failed.
        Refused = 5,
    }
}

byte_enum! {
    /// What became of a name of a `Get`.
    GetStatus {
        /// Its bytes follow.
        Found = 0,
        /// Not held for this owner.
        Missing = 1,
        /// Held, but damaged.
        Damaged = 2,
    }
}

byte_enum! {
    /// What became of a name of an `Audit`.
    AuditStatus {
        /// The proof follows.
        Proof = 0,
        /// Not held for the asking cell.
        Missing = 1,
        /// Held, but damaged.
        Damaged = 2,
        /// Not now: enough was proved for the moment.
        Busy = 3,
    }
}

byte_enum! {
    /// What became of a grant that was offered.
    GrantStatus {
        /// It is durably kept.
        Taken = 0,
        /// It, or a newer one of that file, was known already.
        Known = 1,
        /// It does not hold, or is taken back already.
        Refused = 2,
        /// There is no room for it now.
        Full = 3,
    }
}

byte_enum! {
    /// Why a peer takes its leave.
    Farewell {
        /// Its user has removed the other cell.
        Removed = 0,
        /// It does not know the other cell.
        Unknown = 1,
        /// It will be back in a moment.
        Restarting = 2,
    }
}

byte_enum! {
    /// What kind of refusal an `Error` reply is.
    ErrorCode {
        /// The request is of a later version.
        Unsupported = 1,
        /// The request makes no sense.
        Malformed = 2,
        /// Too much at once: try again later.
        Busy = 3,
        /// Not by this peer, or not in this kind of session.
        NotAllowed = 4,
        /// Something failed at the peer.
        Failed = 5,
    }
}

/// The first request of each session, and its reply: where both sides stand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// `PROTOCOL` of the sender.
    pub protocol: u16,
    /// Random id of the sender's index of what it holds; a new one voids all sequence numbers.
    pub epoch: u64,
    /// Newest catalog heads of the receiver's that the sender holds; at most 256.
    pub tips: Vec<BodyHash>,
    /// Newest sequence number in the sender's inventory for the receiver.
    pub holdings_seq: u64,
    /// Space of the receiver's chunks at the sender, and of the sender's disk.
    pub usage: Usage,
    /// The sender's clock, Unix seconds: for comparison, never for order.
    pub unix_time: u64,
    /// The sender's card, or nothing if it has not changed since the handshake.
    pub card: Vec<u8>,
    /// Version of the program, for people; at most 64 bytes.
    pub version: String,
}

/// Space in bytes that a peer gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Taken by the asking cell.
    pub used: u64,
    /// At most for the asking cell; 0: no limit but the disk's reserve.
    pub quota: u64,
    /// Free on the disk above its reserve.
    pub free: u64,
}

/// One line of an inventory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Holding {
    /// Number of the change.
    pub seq: u64,
    /// The chunk.
    pub name: ChunkName,
    /// Sealed bytes.
    pub len: u32,
    /// Held since this change; otherwise gone since.
    pub is_held: bool,
}

/// What a cell asks of another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Where do we stand?
    Hello(Hello),
    /// Which of these do you hold?
    Have { names: Vec<ChunkName> },
    /// Send these.
    Get { names: Vec<ChunkName> },
    /// Keep these; their bytes follow in this order, without anything between.
    Put { class: Class, entries: Vec<(ChunkName, u32)> },
    /// These are no longer needed.
    Release { names: Vec<ChunkName> },
    /// These are needed after all.
    Restore { names: Vec<ChunkName> },
    /// What changed in what you hold, after `since` in `epoch`? At most `limit` entries.
    Inventory { epoch: u64, since: u64, limit: u32 },
    /// Send all catalog heads.
    Heads,
    /// Keep this catalog head; its `len` bytes follow.
    PutHead { len: u32 },
    /// Are you there?
    Ping,
    /// Our card has changed.
    Card { bytes: Vec<u8> },
    /// We leave.
    Goodbye { reason: Farewell },
    /// Whoever proves that it knows this secret may read our chunks and heads: it is us, recovering.
    RecoverySecret { secret: Secret },
    /// `up` bytes without meaning follow; answer with `down` of them. At most 4 MiB each way.
    Measure { up: u32, down: u32 },
    /// From where do you see us?
    Observe,
    /// Prove that you hold these, each in its way; at most 256.
    Audit { nonce: Nonce, asks: Vec<(ChunkName, Challenge)> },
    /// What do you hold, in 256 sums: by the first byte of the names, or of those with this first byte by their second?
    Digest { first: Option<u8> },
    /// What do you hold whose names begin with these two bytes (big-endian)?
    Bucket { bucket: u16 },
    /// Take these grants, from a friend: their bytes follow in this order. At most 64, and 4 MiB.
    Grants { lens: Vec<u32> },
    /// Our newest list of revocations; its `len` bytes follow.
    Revocations { len: u32 },
    /// Which list of our revocations do you hold?
    TakenBack,
    /// Send these chunks of the ticket's creator: name, sealed bytes and proof of each; at most 32.
    GetByTicket { ticket: Vec<u8>, chunks: Vec<(ChunkName, u32, Vec<u8>)> },
    /// What we wish of each other, as we know it.
    Friendship(Friendship),
    /// What is said to a friend: `len` bytes of messages follow, in the form of `chat::batch_bytes`.
    Messages(BatchHead),
    /// How far we are with your messages; how far are you with ours?
    Receipts(Receipts),
    /// What a friend may use of our models, in the form of `ai::friend::Beat`.
    Beat { bytes: Vec<u8> },
    /// Answer this with your models: `len` bytes of a question follow.
    Question { len: u32 },
    /// What we count of what we store for each other.
    Settle(Settlement),
}

/// How far a cell is with counting, and what it has signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settlement {
    /// What it counts.
    pub heard: Heard,
    /// The next statement is wanted in the answer; otherwise the newest one is only shown.
    pub wants: bool,
    /// The newest statement that both have signed, as far as it knows; or nothing.
    pub newest: Vec<u8>,
    /// The next one, with its signature alone; or nothing.
    pub proposal: Vec<u8>,
}

impl Settlement {
    fn write(&self, to: &mut Writer) {
        self.heard.write(to);
        to.u8(self.wants.into()).long(&self.newest).long(&self.proposal);
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, BadBytes> {
        Ok(Self {
            heard: Heard::read(from)?,
            wants: read_bool(from)?,
            newest: read_bytes(from, STATEMENT_BYTES_MAX)?,
            proposal: read_bytes(from, STATEMENT_BYTES_MAX)?,
        })
    }
}

/// What goes before messages of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchHead {
    /// The start of the receiver's that it told last.
    pub start: [u8; 16],
    /// Of which run.
    pub run: Run,
    /// Between this number and the first message there is nothing any more.
    pub base: u64,
    /// Bytes of the messages; at most 1 MiB.
    pub len: u32,
}

/// How far a cell is with a friend's messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receipts {
    /// Which start of it says so.
    pub start: [u8; 16],
    /// All runs that it knows, or the newest 64.
    pub receipts: Vec<Receipt>,
}

impl Receipts {
    fn write(&self, to: &mut Writer) {
        Receipt::write_all(&self.receipts, to.raw(&self.start));
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, BadBytes> {
        Ok(Self { start: from.array()?, receipts: Receipt::read_all(from)? })
    }
}

/// What it answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// To `Hello`: the same of the other side.
    Hello(Hello),
    /// To `Have`, one for each name.
    Have { held: Vec<bool> },
    /// To `Get` and `GetByTicket`: so many entries follow, in order: status u8, length u32, bytes.
    Get { count: u32 },
    /// To `Put`: one status for each entry, and the space after it.
    Put { statuses: Vec<PutStatus>, usage: Usage },
    /// To `Release`: so many were held.
    Release { count: u32 },
    /// To `Restore`, one for each name: it is held again.
    Restore { held: Vec<bool> },
    /// To `Inventory`: changes in order; with `more`, ask again after the last. Another epoch than the asked one
    /// means that it begins from nothing.
    Inventory { epoch: u64, entries: Vec<Holding>, more: bool },
    /// To `Heads`: lengths of the heads that follow.
    Heads { lens: Vec<u32> },
    /// To `PutHead`.
    PutHead(HeadOutcome),
    /// To `Ping`.
    Pong,
    /// To `Card`, `Goodbye`, `RecoverySecret` and `Beat`.
    Done,
    /// To `Measure`: `down` bytes without meaning follow.
    Measure { down: u32 },
    /// To `Observe`: the IP address this connection comes from, or nothing if it comes through a relay.
    Observe { ip: String },
    /// To `Audit`: so many entries follow, in order: status u8, length u32, proof.
    Audit { count: u32 },
    /// To `Digest`: state of the inventory, and 256 sums.
    Digest { epoch: u64, seq: u64, sums: Vec<u64> },
    /// To `Bucket`: state of the inventory, names and sealed bytes; at most 4,096.
    Bucket { epoch: u64, seq: u64, entries: Vec<(ChunkName, u32)> },
    /// To `Grants`, one for each.
    Grants { statuses: Vec<GrantStatus> },
    /// To `Revocations`: number of the newest list of the asking cell that is held now.
    Revocations { number: u64 },
    /// To `TakenBack`: the list follows, of so many bytes; 0: none was ever seen.
    TakenBack { len: u32 },
    /// To `Friendship`: the same of the other side, after it has heard.
    Friendship(Friendship),
    /// To `Messages`: the run is kept durably up to this number; `None`: not by the start that was named, so ask for the
    /// receipts of the one that is.
    Messages(Option<u64>),
    /// To `Receipts`: the same of the other side.
    Receipts(Receipts),
    /// To `Question`: frames of the answer follow, each u8 kind, u32 length, bytes.
    Answering,
    /// To `Settle`: the same of the other side.
    Settle(Settlement),
    /// To any request that is not carried out.
    Error(Refusal),
}

/// What became of a catalog head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HeadOutcome {
    /// It is durably kept.
    Stored,
    /// These segments must come first; at most 1,024 of them are named.
    Missing(Vec<ChunkName>),
    /// It is not kept, for this reason.
    Refused(String),
}

/// Why a request is not carried out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// For programs.
    pub code: ErrorCode,
    /// What happened, for people; at most 512 bytes.
    pub text: String,
    /// What to do, for people, or nothing; at most 512 bytes.
    pub hint: String,
}

impl Refusal {
    /// A refusal with texts cut to their limits.
    pub fn new(code: ErrorCode, text: &str, hint: &str) -> Self {
        Self { code, text: tidy(text, TEXT_BYTES_MAX), hint: tidy(hint, TEXT_BYTES_MAX) }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)?;
        if self.hint.is_empty() { Ok(()) } else { write!(f, "; {}", self.hint) }
    }
}

/// `text` without control characters and at most `max` bytes long.
fn tidy(text: &str, max: usize) -> String {
    let mut tidy = String::new();
    for c in text.chars().map(|c| if c.is_control() { ' ' } else { c }) {
        if tidy.len() + c.len_utf8() > max {
            break;
        }
        tidy.push(c);
    }
    tidy
}

/// Why there is no answer.
#[derive(Debug)]
pub enum AskError {
    /// No stream could be opened.
    Session(SessionError),
    /// The stream broke or stood still.
    Stream(io::Error),
    /// What came makes no sense.
    Malformed(&'static str),
    /// What came is longer than it may be.
    TooLong(u64),
    /// A request of a later version, by its tag: answer `Unsupported`.
    Unsupported(u8),
    /// The reply fits another request.
    OutOfTurn,
    /// The peer refused.
    Refused(Refusal),
}

impl AskError {
    /// Whether the same request may well be answered later.
    pub fn is_temporary(&self) -> bool {
        match self {
            Self::Session(_) | Self::Stream(_) => true,
            Self::Refused(refusal) => matches!(refusal.code, ErrorCode::Busy | ErrorCode::Failed),
            _ => false,
        }
    }
}

impl fmt::Display for AskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Session(error) => error.fmt(f),
            Self::Stream(error) if error.kind() == io::ErrorKind::TimedOut => {
                f.write_str("the peer stopped answering")
            }
            Self::Stream(error) => write!(f, "the request broke off: {error}"),
            Self::Malformed(what) => write!(f, "the peer sent malformed bytes: {what}"),
            Self::TooLong(bytes) => write!(f, "the peer sent {bytes} bytes, more than allowed"),
            Self::Unsupported(tag) => write!(f, "the request {tag} is of a later version"),
            Self::OutOfTurn => f.write_str("the peer answered another request"),
            Self::Refused(refusal) => write!(f, "the peer refused: {refusal}"),
        }
    }
}

impl std::error::Error for AskError {}

impl From<SessionError> for AskError {
    fn from(error: SessionError) -> Self {
        Self::Session(error)
    }
}

impl From<io::Error> for AskError {
    fn from(error: io::Error) -> Self {
        Self::Stream(error)
    }
}

impl From<BadBytes> for AskError {
    fn from(error: BadBytes) -> Self {
        Self::Malformed(error.0)
    }
}

// ---- Binary form ----

fn write_names(to: &mut Writer, names: &[ChunkName]) {
    assert!(names.len() <= NAMES_MAX, "a message names at most 1,024 chunks");
    to.u32(names.len() as u32);
    names.iter().for_each(|name| {
        to.raw(&name.0);
    });
}

fn count(from: &mut Reader<'_>, bytes_each: usize, max: usize) -> Result<usize, BadBytes> {
    let count = from.count(bytes_each)?;
    if count > max { Err(BadBytes("a list is too long")) } else { Ok(count) }
}

fn read_names(from: &mut Reader<'_>) -> Result<Vec<ChunkName>, BadBytes> {
    let count = count(from, ChunkName::LEN, NAMES_MAX)?;
    (0..count).map(|_| Ok(ChunkName(from.array()?))).collect()
}

fn write_flags(to: &mut Writer, flags: &[bool]) {
    assert!(flags.len() <= NAMES_MAX, "a message names at most 1,024 chunks");
    to.u32(flags.len() as u32);
    for eight in flags.chunks(8) {
        to.u8(eight.iter().enumerate().fold(0, |byte, (bit, flag)| byte | u8::from(*flag) << bit));
    }
}

fn read_flags(from: &mut Reader<'_>) -> Result<Vec<bool>, BadBytes> {
    let count = from.u32()? as usize;
    if count > NAMES_MAX {
        return Err(BadBytes("a list is too long"));
    }
    let bytes = from.raw(count.div_ceil(8))?;
    let flag = |at: usize| bytes[at / 8] >> (at % 8) & 1 == 1;
    if (count..bytes.len() * 8).any(flag) {
        return Err(BadBytes("more flags than names"));
    }
    Ok((0..count).map(flag).collect())
}

fn read_bool(from: &mut Reader<'_>) -> Result<bool, BadBytes> {
    match from.u8()? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(BadBytes("neither yes nor no")),
    }
}

fn read_text(from: &mut Reader<'_>, max: usize) -> Result<String, BadBytes> {
    let bytes = from.long()?;
    let text = std::str::from_utf8(bytes).map_err(|_| BadBytes("text is not UTF-8"))?;
    if bytes.len() > max || text.chars().any(char::is_control) {
        return Err(BadBytes("text is too long or has control characters"));
    }
    Ok(text.to_owned())
}

fn read_bytes(from: &mut Reader<'_>, max: usize) -> Result<Vec<u8>, BadBytes> {
    let bytes = from.long()?;
    if bytes.len() > max { Err(BadBytes("a field is too long")) } else { Ok(bytes.to_vec()) }
}

fn read_asks(from: &mut Reader<'_>) -> Result<Vec<(ChunkName, Challenge)>, BadBytes> {
    let count = count(from, ChunkName::LEN + 5, AUDIT_NAMES_MAX)?;
    let ask = |_| {
        let (name, kind, index) = (ChunkName(from.array()?), from.u8()?, from.u32()?);
        match (kind, index) {
            (0, 0) => Ok((name, Challenge::Whole)),
            (1, index) if (index as usize) < LEAVES_MAX => Ok((name, Challenge::Leaf(index))),
            _ => Err(BadBytes("an unknown challenge")),
        }
    };
    (0..count).map(ask).collect()
}

impl Usage {
    fn write(&self, to: &mut Writer) {
        to.u64(self.used).u64(self.quota).u64(self.free);
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, BadBytes> {
        Ok(Self { used: from.u64()?, quota: from.u64()?, free: from.u64()? })
    }
}

impl Hello {
    fn write(&self, to: &mut Writer) {
        assert!(self.tips.len() <= CATALOG_HEADS_MAX, "a hello has at most 256 tips");
        to.u16(self.protocol).u64(self.epoch).u32(self.tips.len() as u32);
        self.tips.iter().for_each(|tip| {
            to.raw(&tip.0);
        });
        to.u64(self.holdings_seq);
        self.usage.write(to);
        to.u64(self.unix_time).long(&self.card).long(self.version.as_bytes());
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, BadBytes> {
        let protocol = from.u16()?;
        let epoch = from.u64()?;
        let tips = count(from, BodyHash::LEN, CATALOG_HEADS_MAX)?;
        let tips = (0..tips).map(|_| Ok(BodyHash(from.array()?))).collect::<Result<_, BadBytes>>()?;
        Ok(Self {
            protocol,
            epoch,
            tips,
            holdings_seq: from.u64()?,
            usage: Usage::read(from)?,
            unix_time: from.u64()?,
            card: read_bytes(from, CARD_BYTES_MAX)?,
            version: read_text(from, VERSION_BYTES_MAX)?,
        })
    }
}

impl Request {
    /// The head's bytes, tag first.
    ///
    /// # Panics
    /// If a list is longer than its limit.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut to = Writer::new();
        match self {
            Self::Hello(hello) => hello.write(to.u8(1)),
            Self::Have { names } => write_names(to.u8(2), names),
            Self::Get { names } => write_names(to.u8(3), names),
            Self::Put { class, entries } => {
                assert!(entries.len() <= NAMES_MAX, "a message names at most 1,024 chunks");
                to.u8(4).u8(class.to_byte()).u32(entries.len() as u32);
                for (name, len) in entries {
                    to.raw(&name.0).u32(*len);
                }
            }
            Self::Release { names } => write_names(to.u8(5), names),
            Self::Restore { names } => write_names(to.u8(6), names),
            Self::Inventory { epoch, since, limit } => {
                to.u8(7).u64(*epoch).u64(*since).u32(*limit);
            }
            Self::Heads => {
                to.u8(8);
            }
            Self::PutHead { len } => {
                to.u8(9).u32(*len);
            }
            Self::Ping => {
                to.u8(10);
            }
            Self::Card { bytes } => {
                to.u8(11).long(bytes);
            }
            Self::Goodbye { reason } => {
                to.u8(12).u8(reason.to_byte());
            }
            Self::RecoverySecret { secret } => {
                to.u8(13).raw(&secret.0);
            }
            Self::Measure { up, down } => {
                to.u8(14).u32(*up).u32(*down);
            }
            Self::Observe => {
                to.u8(15);
            }
            Self::Audit { nonce, asks } => {
                assert!(asks.len() <= AUDIT_NAMES_MAX, "an audit names at most 256 chunks");
                to.u8(16).raw(nonce).u32(asks.len() as u32);
                for (name, challenge) in asks {
                    let (kind, index) = match challenge {
                        Challenge::Whole => (0, 0),
                        Challenge::Leaf(index) => (1, *index),
                    };
                    to.raw(&name.0).u8(kind).u32(index);
                }
            }
            Self::Digest { first } => {
                to.u8(17).u16(first.map_or(DIGEST_ALL, u16::from));
            }
            Self::Bucket { bucket } => {
                to.u8(18).u16(*bucket);
            }
            Self::Grants { lens } => {
                assert!(lens.len() <= GRANTS_MAX, "a message offers at most 64 grants");
                to.u8(19).u32(lens.len() as u32);
                lens.iter().for_each(|len| {
                    to.u32(*len);
                });
            }
            Self::Revocations { len } => {
                to.u8(20).u32(*len);
            }
            Self::TakenBack => {
                to.u8(21);
            }
            Self::GetByTicket { ticket, chunks } => {
                assert!(chunks.len() <= TICKET_CHUNKS_MAX, "a ticket is shown for at most 32 chunks at once");
                to.u8(22).long(ticket).u32(chunks.len() as u32);
                for (name, len, proof) in chunks {
                    to.raw(&name.0).u32(*len).long(proof);
                }
            }
            Self::Friendship(friendship) => friendship.write(to.u8(25)),
            Self::Messages(BatchHead { start, run, base, len }) => {
                run.write(to.u8(26).raw(start));
                to.u64(*base).u32(*len);
            }
            Self::Receipts(receipts) => receipts.write(to.u8(27)),
            Self::Beat { bytes } => {
                to.u8(31).long(bytes);
            }
            Self::Question { len } => {
                to.u8(32).u32(*len);
            }
            Self::Settle(settlement) => settlement.write(to.u8(28)),
        }
        to.finish()
    }

    /// A head from a peer.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, AskError> {
        let mut from = Reader::new(bytes);
        let request = match from.u8()? {
            1 => Self::Hello(Hello::read(&mut from)?),
            2 => Self::Have { names: read_names(&mut from)? },
            3 => Self::Get { names: read_names(&mut from)? },
            4 => Self::read_put(&mut from)?,
            5 => Self::Release { names: read_names(&mut from)? },
            6 => Self::Restore { names: read_names(&mut from)? },
            7 => Self::Inventory { epoch: from.u64()?, since: from.u64()?, limit: from.u32()? },
            8 => Self::Heads,
            9 => {
                let len = from.u32()?;
                if len as usize > CATALOG_HEAD_BYTES_MAX {
                    return Err(AskError::TooLong(len.into()));
                }
                Self::PutHead { len }
            }
            10 => Self::Ping,
            11 => Self::Card { bytes: read_bytes(&mut from, CARD_BYTES_MAX)? },
            12 => Self::Goodbye { reason: Farewell::from_byte(from.u8()?) },
            13 => Self::RecoverySecret { secret: Secret(from.array()?) },
            14 => {
                let (up, down) = (from.u32()?, from.u32()?);
                if up.max(down) > MEASURE_BYTES_MAX {
                    return Err(AskError::TooLong(up.max(down).into()));
                }
                Self::Measure { up, down }
            }
            15 => Self::Observe,
            16 => Self::Audit { nonce: from.array()?, asks: read_asks(&mut from)? },
            17 => Self::Digest {
                first: match from.u16()? {
                    DIGEST_ALL => None,
                    first => Some(u8::try_from(first).map_err(|_| BadBytes("a byte of a name"))?),
                },
            },
            18 => Self::Bucket { bucket: from.u16()? },
            19 => Self::read_grants(&mut from)?,
            20 => {
                let len = from.u32()?;
                if len as usize > LIST_BYTES_MAX {
                    return Err(AskError::TooLong(len.into()));
                }
                Self::Revocations { len }
            }
            21 => Self::TakenBack,
            22 => {
                let ticket = read_bytes(&mut from, TICKET_BYTES_MAX)?;
                let count = count(&mut from, ChunkName::LEN + 8, TICKET_CHUNKS_MAX)?;
                let mut chunks = Vec::with_capacity(count);
                for _ in 0..count {
                    let (name, len) = (ChunkName(from.array()?), from.u32()?);
                    chunks.push((name, len, read_bytes(&mut from, PROOF_BYTES_MAX)?));
                }
                Self::GetByTicket { ticket, chunks }
            }
            25 => Self::Friendship(Friendship::read_told(&mut from)?),
            26 => Self::read_batch_head(&mut from)?,
            27 => Self::Receipts(Receipts::read(&mut from)?),
            31 => Self::Beat { bytes: read_bytes(&mut from, BEAT_BYTES_MAX)? },
            32 => {
                let len = from.u32()?;
                if len as usize > QUESTION_BYTES_MAX {
                    return Err(AskError::TooLong(len.into()));
                }
                Self::Question { len }
            }
            28 => Self::Settle(Settlement::read(&mut from)?),
            tag => return Err(AskError::Unsupported(tag)),
        };
        from.end()?;
        Ok(request)
    }

    fn read_grants(from: &mut Reader<'_>) -> Result<Self, AskError> {
        let count = count(from, 4, GRANTS_MAX)?;
        let lens = (0..count).map(|_| from.u32()).collect::<Result<Vec<_>, _>>()?;
        let total: u64 = lens.iter().map(|len| u64::from(*len)).sum();
        let is_long = lens.iter().any(|len| *len as usize > GRANT_BYTES_MAX);
        if is_long || total > GRANTS_BYTES_MAX as u64 {
            return Err(AskError::TooLong(total));
        }
        Ok(Self::Grants { lens })
    }

    fn read_batch_head(from: &mut Reader<'_>) -> Result<Self, AskError> {
        let (start, run, base) = (from.array()?, Run::read(from)?, chat::read_base(from)?);
        let len = from.u32()?;
        if len as usize > chat::BATCH_BYTES_MAX {
            return Err(AskError::TooLong(len.into()));
        }
        Ok(Self::Messages(BatchHead { start, run, base, len }))
    }

    fn read_put(from: &mut Reader<'_>) -> Result<Self, AskError> {
        let class = Class::from_byte(from.u8()?);
        let count = count(from, ChunkName::LEN + 4, NAMES_MAX)?;
        let mut entries = Vec::with_capacity(count);
        let mut total = 0;
        for _ in 0..count {
            let (name, len) = (ChunkName(from.array()?), from.u32()?);
            if len as usize > CHUNK_SEALED_MAX {
                return Err(AskError::TooLong(len.into()));
            }
            total += u64::from(len);
            entries.push((name, len));
        }
        if total > PUT_BYTES_MAX {
            return Err(AskError::TooLong(total));
        }
        Ok(Self::Put { class, entries })
    }
}

impl Reply {
    /// The head's bytes, tag first.
    ///
    /// # Panics
    /// If a list is longer than its limit.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut to = Writer::new();
        match self {
            Self::Hello(hello) => hello.write(to.u8(1)),
            Self::Have { held } => write_flags(to.u8(2), held),
            Self::Get { count } => {
                to.u8(3).u32(*count);
            }
            Self::Put { statuses, usage } => {
                assert!(statuses.len() <= NAMES_MAX, "a message names at most 1,024 chunks");
                to.u8(4).u32(statuses.len() as u32);
                statuses.iter().for_each(|status| {
                    to.u8(status.to_byte());
                });
                usage.write(&mut to);
            }
            Self::Release { count } => {
                to.u8(5).u32(*count);
            }
            Self::Restore { held } => write_flags(to.u8(6), held),
            Self::Inventory { epoch, entries, more } => {
                assert!(entries.len() <= INVENTORY_ENTRIES_MAX, "an inventory comes in pages of 4,096");
                to.u8(7).u64(*epoch).u8((*more).into()).u32(entries.len() as u32);
                for entry in entries {
                    to.u64(entry.seq).raw(&entry.name.0).u32(entry.len).u8(entry.is_held.into());
                }
            }
            Self::Heads { lens } => {
                assert!(lens.len() <= CATALOG_HEADS_MAX, "a reply has at most 256 heads");
                to.u8(8).u32(lens.len() as u32);
                lens.iter().for_each(|len| {
                    to.u32(*len);
                });
            }
            Self::PutHead(HeadOutcome::Stored) => {
                to.u8(9).u8(0);
            }
            Self::PutHead(HeadOutcome::Missing(names)) => write_names(to.u8(9).u8(1), names),
            Self::PutHead(HeadOutcome::Refused(reason)) => {
                to.u8(9).u8(2).long(tidy(reason, TEXT_BYTES_MAX).as_bytes());
            }
            Self::Pong => {
                to.u8(10);
            }
            Self::Done => {
                to.u8(11);
            }
            Self::Measure { down } => {
                to.u8(14).u32(*down);
            }
            Self::Observe { ip } => {
                to.u8(15).long(tidy(ip, TEXT_BYTES_MAX).as_bytes());
            }
            Self::Audit { count } => {
                to.u8(16).u32(*count);
            }
            Self::Digest { epoch, seq, sums } => {
                assert!(sums.len() == DIGEST_SUMS, "a digest has 256 sums");
                to.u8(17).u64(*epoch).u64(*seq);
                sums.iter().for_each(|sum| {
                    to.u64(*sum);
                });
            }
            Self::Bucket { epoch, seq, entries } => {
                assert!(entries.len() <= INVENTORY_ENTRIES_MAX, "a bucket has at most 4,096 names");
                to.u8(18).u64(*epoch).u64(*seq).u32(entries.len() as u32);
                entries.iter().for_each(|(name, len)| {
                    to.raw(&name.0).u32(*len);
                });
            }
            Self::Grants { statuses } => {
                assert!(statuses.len() <= GRANTS_MAX, "a message offers at most 64 grants");
                to.u8(19).u32(statuses.len() as u32);
                statuses.iter().for_each(|status| {
                    to.u8(status.to_byte());
                });
            }
            Self::Revocations { number } => {
                to.u8(20).u64(*number);
            }
            Self::TakenBack { len } => {
                to.u8(21).u32(*len);
            }
            Self::Friendship(friendship) => friendship.write(to.u8(25)),
            Self::Messages(None) => {
                to.u8(26).u8(0);
            }
            Self::Messages(Some(stored)) => {
                to.u8(26).u8(1).u64(*stored);
            }
            Self::Receipts(receipts) => receipts.write(to.u8(27)),
            Self::Answering => {
                to.u8(32);
            }
            Self::Settle(settlement) => settlement.write(to.u8(28)),
            Self::Error(Refusal { code, text, hint }) => {
                to.u8(255).u8(code.to_byte()).long(text.as_bytes()).long(hint.as_bytes());
            }
        }
        to.finish()
    }

    /// A head from a peer.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, AskError> {
        let mut from = Reader::new(bytes);
        let reply = match from.u8()? {
            1 => Self::Hello(Hello::read(&mut from)?),
            2 => Self::Have { held: read_flags(&mut from)? },
            3 => Self::Get { count: from.u32()? },
            4 => {
                let count = count(&mut from, 1, NAMES_MAX)?;
                let statuses = from.raw(count)?.iter().map(|byte| PutStatus::from_byte(*byte)).collect();
                Self::Put { statuses, usage: Usage::read(&mut from)? }
            }
            5 => Self::Release { count: from.u32()? },
            6 => Self::Restore { held: read_flags(&mut from)? },
            7 => Self::read_inventory(&mut from)?,
            8 => Self::read_heads(&mut from)?,
            9 => Self::PutHead(match from.u8()? {
                0 => HeadOutcome::Stored,
                1 => HeadOutcome::Missing(read_names(&mut from)?),
                2 => HeadOutcome::Refused(read_text(&mut from, TEXT_BYTES_MAX)?),
                _ => return Err(AskError::Malformed("an unknown outcome")),
            }),
            10 => Self::Pong,
            11 => Self::Done,
            14 => Self::Measure { down: from.u32()? },
            15 => Self::Observe { ip: read_text(&mut from, TEXT_BYTES_MAX)? },
            16 => Self::Audit { count: from.u32()? },
            17 => Self::Digest {
                epoch: from.u64()?,
                seq: from.u64()?,
                sums: (0..DIGEST_SUMS).map(|_| from.u64()).collect::<Result<_, _>>()?,
            },
            18 => {
                let (epoch, seq) = (from.u64()?, from.u64()?);
                let count = count(&mut from, ChunkName::LEN + 4, INVENTORY_ENTRIES_MAX)?;
                let entry = |_| Ok((ChunkName(from.array()?), from.u32()?));
                Self::Bucket { epoch, seq, entries: (0..count).map(entry).collect::<Result<_, BadBytes>>()? }
            }
            19 => {
                let count = count(&mut from, 1, GRANTS_MAX)?;
                let statuses = from.raw(count)?.iter().map(|byte| GrantStatus::from_byte(*byte)).collect();
                Self::Grants { statuses }
            }
            20 => Self::Revocations { number: from.u64()? },
            21 => {
                let len = from.u32()?;
                if len as usize > LIST_BYTES_MAX {
                    return Err(AskError::TooLong(len.into()));
                }
                Self::TakenBack { len }
            }
            25 => Self::Friendship(Friendship::read_told(&mut from)?),
            26 => Self::Messages(if read_bool(&mut from)? { Some(from.u64()?) } else { None }),
            27 => Self::Receipts(Receipts::read(&mut from)?),
            32 => Self::Answering,
            28 => Self::Settle(Settlement::read(&mut from)?),
            255 => Self::Error(Refusal {
                code: ErrorCode::from_byte(from.u8()?),
                text: read_text(&mut from, TEXT_BYTES_MAX)?,
                hint: read_text(&mut from, TEXT_BYTES_MAX)?,
            }),
            _ => return Err(AskError::Malformed("an unknown reply")),
        };
        from.end()?;
        Ok(reply)
    }

    fn read_inventory(from: &mut Reader<'_>) -> Result<Self, AskError> {
        let (epoch, more) = (from.u64()?, read_bool(from)?);
        let count = count(from, 8 + ChunkName::LEN + 4 + 1, INVENTORY_ENTRIES_MAX)?;
        let mut entries = Vec::with_capacity(count);
        for _ in 0..count {
            let (seq, name) = (from.u64()?, ChunkName(from.array()?));
            entries.push(Holding { seq, name, len: from.u32()?, is_held: read_bool(from)? });
        }
        Ok(Self::Inventory { epoch, entries, more })
    }

    fn read_heads(from: &mut Reader<'_>) -> Result<Self, AskError> {
        let count = count(from, 4, CATALOG_HEADS_MAX)?;
        let lens = (0..count).map(|_| from.u32()).collect::<Result<Vec<_>, _>>()?;
        let total: u64 = lens.iter().map(|len| u64::from(*len)).sum();
        let is_long = lens.iter().any(|len| *len as usize > CATALOG_HEAD_BYTES_MAX);
        if is_long || total > CATALOG_HEADS_BYTES_MAX as u64 {
            return Err(AskError::TooLong(total));
        }
        Ok(Self::Heads { lens })
    }
}

// ---- Both sides of a stream ----

/// Writes a head and sends it.
pub async fn write_head<S: AsyncWrite + Unpin>(stream: &mut S, head: &[u8]) -> io::Result<()> {
    let mut framed = Vec::with_capacity(4 + head.len());
    framed.extend_from_slice(&(head.len() as u32).to_le_bytes());
    framed.extend_from_slice(head);
    write_full(stream, &framed, PROGRESS_TIME_MAX).await?;
    flush(stream, PROGRESS_TIME_MAX).await
}

/// Reads a head of 1 to `max` bytes that begins within `wait` and is whole within 60 s more.
pub async fn read_head<S>(stream: &mut S, max: usize, wait: Duration) -> Result<Vec<u8>, AskError>
where
    S: AsyncRead + Unpin,
{
    let mut first = [0];
    read_full(stream, &mut first, wait).await?;
    read_head_after(stream, &first, max).await
}

/// The head whose first bytes (at most 4) have come already.
async fn read_head_after<S>(stream: &mut S, first: &[u8], max: usize) -> Result<Vec<u8>, AskError>
where
    S: AsyncRead + Unpin,
{
    let work = async {
        let mut len = [0; 4];
        len[..first.len()].copy_from_slice(first);
        read_full(stream, &mut len[first.len()..], PROGRESS_TIME_MAX).await?;
        let len = u32::from_le_bytes(len) as usize;
        if len == 0 || len > max {
            return Err(AskError::TooLong(len as u64));
        }
        let mut head = vec![0; len];
        read_full(stream, &mut head, PROGRESS_TIME_MAX).await?;
        Ok(head)
    };
    within(HEAD_TIME_MAX, work).await.unwrap_or(Err(AskError::Stream(io::ErrorKind::TimedOut.into())))
}

/// Reads `len` bytes of a body into `buf`, replacing what was there. The caller has checked `len` and holds the
/// permit for it.
pub async fn read_body<S: AsyncRead + Unpin>(
    stream: &mut S,
    len: usize,
    buf: &mut Vec<u8>,
) -> io::Result<()> {
    if buf.capacity() < len {
        *buf = buffers::take(len);
    }
    // What a reused buffer holds need not be wiped first.
    buf.truncate(len);
    buf.resize(len, 0);
    let work = read_full(stream, buf, PROGRESS_TIME_MAX);
    within(body_time_max(len), work).await.unwrap_or(Err(io::ErrorKind::TimedOut.into()))
}

// ---- The answering side ----

/// The request on a stream that the peer opened. `Unsupported` and `Malformed` deserve an error reply (`refuse`).
pub async fn read_request<S: AsyncRead + Unpin>(stream: &mut S) -> Result<Request, AskError> {
    let head = read_head(stream, REQUEST_HEAD_BYTES_MAX, PROGRESS_TIME_MAX).await?;
    Request::from_bytes(&head)
}

/// Sends a reply's head; its body, if it has one, follows.
pub async fn write_reply<S: AsyncWrite + Unpin>(stream: &mut S, reply: &Reply) -> io::Result<()> {
    write_head(stream, &reply.to_bytes()).await
}

/// One entry after a `Reply::Audit`; `proof` only with `AuditStatus::Proof`.
pub async fn write_proof<S: AsyncWrite + Unpin>(
    stream: &mut S,
    status: AuditStatus,
    proof: &[u8],
) -> io::Result<()> {
    write_entry(stream, status.to_byte(), proof).await?;
    // The verifier waits for each by itself.
    flush(stream, PROGRESS_TIME_MAX).await
}

/// One entry after a `Reply::Get`; `bytes` only where found.
pub async fn write_got<S: AsyncWrite + Unpin>(
    stream: &mut S,
    status: GetStatus,
    bytes: &[u8],
) -> io::Result<()> {
    write_entry(stream, status.to_byte(), bytes).await
}

async fn write_entry<S: AsyncWrite + Unpin>(stream: &mut S, status: u8, bytes: &[u8]) -> io::Result<()> {
    let mut head = Writer::new();
    head.u8(status).u32(bytes.len() as u32);
    let work = async {
        write_full(stream, head.as_slice(), PROGRESS_TIME_MAX).await?;
        write_full(stream, bytes, PROGRESS_TIME_MAX).await
    };
    // Whoever takes a byte now and then would hold a place of all who are given something.
    within(body_time_max(bytes.len()), work).await.unwrap_or(Err(io::ErrorKind::TimedOut.into()))
}

/// A body of so many bytes comes, or is taken, within this.
fn body_time_max(len: usize) -> Duration {
    PROGRESS_TIME_MAX + Duration::from_secs(len as u64 / BODY_BYTES_PER_SECOND_MIN)
}

/// Ends our side of an answered stream in order.
pub async fn finish<S: AsyncWrite + Unpin>(stream: &mut S) -> io::Result<()> {
    within(PROGRESS_TIME_MAX, stream.close()).await.unwrap_or(Err(io::ErrorKind::TimedOut.into()))
}

/// The reply to a request that cannot be carried out because of `error`, where one is due.
pub fn refuse(error: &AskError) -> Option<Reply> {
    let (code, hint) = match error {
        AskError::Unsupported(_) => (ErrorCode::Unsupported, "update that cell"),
        AskError::Malformed(_) | AskError::TooLong(_) => (ErrorCode::Malformed, ""),
        _ => return None,
    };
    Some(Reply::Error(Refusal::new(code, &error.to_string(), hint)))
}

// ---- The asking side ----

async fn begin(session: &Session, request: &Request) -> Result<Stream, AskError> {
    let mut stream = within(PROGRESS_TIME_MAX, session.open())
        .await
        .ok_or_else(|| AskError::Stream(io::ErrorKind::TimedOut.into()))??;
    write_head(&mut stream, &request.to_bytes()).await?;
    Ok(stream)
}

async fn read_reply<S: AsyncRead + Unpin>(stream: &mut S, wait: Duration) -> Result<Reply, AskError> {
    parse_reply(&read_head(stream, REPLY_HEAD_BYTES_MAX, wait).await?)
}

fn parse_reply(head: &[u8]) -> Result<Reply, AskError> {
    match Reply::from_bytes(head)? {
        Reply::Error(refusal) => Err(AskError::Refused(refusal)),
        reply => Ok(reply),
    }
}

/// Asks what has no body either way; an error reply comes as `AskError::Refused`. That the reply fits the request,
/// in kind and in number of names, is checked.
pub async fn ask(session: &Session, request: &Request) -> Result<Reply, AskError> {
    let mut stream = begin(session, request).await?;
    let reply = read_reply(&mut stream, PROGRESS_TIME_MAX).await?;
    if fits(request, &reply) { Ok(reply) } else { Err(AskError::OutOfTurn) }
}

fn fits(request: &Request, reply: &Reply) -> bool {
    match (request, reply) {
        (Request::Hello(_), Reply::Hello(_))
        | (Request::Ping, Reply::Pong)
        | (Request::Observe, Reply::Observe { .. })
        | (Request::Friendship(_), Reply::Friendship(_))
        | (Request::Receipts(_), Reply::Receipts(_))
        | (Request::Settle(_), Reply::Settle(_))
        | (Request::Digest { .. }, Reply::Digest { .. }) => true,
        (Request::Bucket { bucket }, Reply::Bucket { entries, .. }) => {
            entries.iter().all(|(name, _)| name.0[..2] == bucket.to_be_bytes())
        }
        (Request::Have { names }, Reply::Have { held }) => names.len() == held.len(),
        (Request::Restore { names }, Reply::Restore { held }) => names.len() == held.len(),
        (Request::Release { names }, Reply::Release { count }) => *count as usize <= names.len(),
        (Request::Inventory { limit, .. }, Reply::Inventory { entries, .. }) => {
            entries.len() <= *limit as usize
        }
        (
            Request::Card { .. }
            | Request::Goodbye { .. }
            | Request::RecoverySecret { .. }
            | Request::Beat { .. },
            Reply::Done,
        ) => true,
        _ => false,
    }
}

/// Asks for chunks; they come one by one.
///
/// # Panics
/// If there are more than 1,024 names.
pub async fn get(session: &Session, names: Vec<ChunkName>) -> Result<Getting, AskError> {
    let request = Request::Get { names };
    let mut stream = begin(session, &request).await?;
    let Request::Get { names } = request else { unreachable!("it was made above") };
    match read_reply(&mut stream, PROGRESS_TIME_MAX).await? {
        Reply::Get { count } if count as usize == names.len() => Ok(Getting { stream, names, next: 0 }),
        _ => Err(AskError::OutOfTurn),
    }
}

/// Asks for chunks of a ticket's creator: name, sealed bytes and proof of each. They come one by one.
///
/// # Panics
/// If there are more than 32.
pub async fn get_by_ticket(
    session: &Session,
    ticket: Vec<u8>,
    chunks: Vec<(ChunkName, u32, Vec<u8>)>,
) -> Result<Getting, AskError> {
    let names: Vec<ChunkName> = chunks.iter().map(|(name, ..)| *name).collect();
    let mut stream = begin(session, &Request::GetByTicket { ticket, chunks }).await?;
    match read_reply(&mut stream, PROGRESS_TIME_MAX).await? {
        Reply::Get { count } if count as usize == names.len() => Ok(Getting { stream, names, next: 0 }),
        _ => Err(AskError::OutOfTurn),
    }
}

/// Offers grants; says what became of each.
///
/// # Panics
/// If there are more than 64.
pub async fn offer_grants(session: &Session, grants: &[Vec<u8>]) -> Result<Vec<GrantStatus>, AskError> {
    let lens = grants.iter().map(|grant| grant.len() as u32).collect();
    let mut stream = begin(session, &Request::Grants { lens }).await?;
    for grant in grants {
        write_full(&mut stream, grant, PROGRESS_TIME_MAX).await?;
    }
    flush(&mut stream, PROGRESS_TIME_MAX).await?;
    match read_reply(&mut stream, STORE_TIME_MAX).await? {
        Reply::Grants { statuses } if statuses.len() == grants.len() => Ok(statuses),
        _ => Err(AskError::OutOfTurn),
    }
}

/// Gives a peer our list of revocations; the number of the list that it holds now.
pub async fn put_revocations(session: &Session, list: &[u8]) -> Result<u64, AskError> {
    let mut stream = begin(session, &Request::Revocations { len: list.len() as u32 }).await?;
    write_full(&mut stream, list, PROGRESS_TIME_MAX).await?;
    flush(&mut stream, PROGRESS_TIME_MAX).await?;
    match read_reply(&mut stream, PROGRESS_TIME_MAX).await? {
        Reply::Revocations { number } => Ok(number),
        _ => Err(AskError::OutOfTurn),
    }
}

/// The list of our revocations that a peer holds; no bytes if it never saw one.
pub async fn taken_back(session: &Session) -> Result<Vec<u8>, AskError> {
    let mut stream = begin(session, &Request::TakenBack).await?;
    let Reply::TakenBack { len } = read_reply(&mut stream, PROGRESS_TIME_MAX).await? else {
        return Err(AskError::OutOfTurn);
    };
    let mut list = Vec::new();
    read_body(&mut stream, len as usize, &mut list).await?;
    Ok(list)
}

/// The other side of `taken_back`.
pub async fn answer_taken_back(stream: &mut Stream, list: &[u8]) -> Result<(), AskError> {
    write_reply(stream, &Reply::TakenBack { len: list.len() as u32 }).await?;
    write_full(stream, list, PROGRESS_TIME_MAX).await?;
    Ok(finish(stream).await?)
}

/// Chunks under way; dropping it stops them.
pub struct Getting {
    stream: Stream,
    names: Vec<ChunkName>,
    next: usize,
}

impl Getting {
    /// The next chunk in the order asked: its bytes, where found, replace those in `buf` (at most 4 MiB and 64
    /// bytes). Whether they hash to the name is for the caller to check. `None` after the last one.
    pub async fn next(&mut self, buf: &mut Vec<u8>) -> Result<Option<(ChunkName, GetStatus)>, AskError> {
        let Some(name) = self.names.get(self.next).copied() else { return Ok(None) };
        let mut head = [0; 5];
        read_full(&mut self.stream, &mut head, PROGRESS_TIME_MAX).await?;
        let status = GetStatus::from_byte(head[0]);
        let len = u32::from_le_bytes(head[1..].try_into().expect("four of five bytes")) as usize;
        let len_max = if status == GetStatus::Found { CHUNK_SEALED_MAX } else { 0 };
        if len > len_max {
            return Err(AskError::TooLong(len as u64));
        }
        read_body(&mut self.stream, len, buf).await?;
        self.next += 1;
        Ok(Some((name, status)))
    }
}

/// Asks for proofs; they come one by one.
///
/// # Panics
/// If there are more than 256.
pub async fn audit(
    session: &Session,
    nonce: Nonce,
    asks: Vec<(ChunkName, Challenge)>,
) -> Result<Auditing, AskError> {
    let request = Request::Audit { nonce, asks };
    let mut stream = begin(session, &request).await?;
    let Request::Audit { asks, .. } = request else { unreachable!("it was made above") };
    match read_reply(&mut stream, AUDIT_TIME_MAX).await? {
        Reply::Audit { count } if count as usize == asks.len() => Ok(Auditing { stream, asks, next: 0 }),
        _ => Err(AskError::OutOfTurn),
    }
}

/// Proofs under way; dropping it stops them.
pub struct Auditing {
    stream: Stream,
    asks: Vec<(ChunkName, Challenge)>,
    next: usize,
}

impl Auditing {
    /// The next answer in the order asked, with the proof's bytes where there is one. `None` after the last one.
    pub async fn next(&mut self) -> Result<Option<(AuditStatus, Vec<u8>)>, AskError> {
        let Some((_, challenge)) = self.asks.get(self.next) else { return Ok(None) };
        let mut head = [0; 5];
        read_full(&mut self.stream, &mut head, AUDIT_TIME_MAX).await?;
        let status = AuditStatus::from_byte(head[0]);
        let len = u32::from_le_bytes(head[1..].try_into().expect("four of five bytes")) as usize;
        let len_max = if status == AuditStatus::Proof { challenge.proof_bytes_max() } else { 0 };
        if len > len_max {
            return Err(AskError::TooLong(len as u64));
        }
        let mut proof = Vec::new();
        read_body(&mut self.stream, len, &mut proof).await?;
        self.next += 1;
        Ok(Some((status, proof)))
    }
}

/// Offers chunks to keep, each with its sealed length; their bytes follow by `Putting::send`, in this order.
///
/// # Panics
/// If there are more than 1,024 entries or 64 MiB.
pub async fn put(
    session: &Session,
    class: Class,
    entries: Vec<(ChunkName, u32)>,
) -> Result<Putting, AskError> {
    let total: u64 = entries.iter().map(|(_, len)| u64::from(*len)).sum();
    assert!(total <= PUT_BYTES_MAX, "a put carries at most 64 MiB");
    let lens = entries.iter().map(|(_, len)| *len).collect();
    let stream = begin(session, &Request::Put { class, entries }).await?;
    Ok(Putting { stream, lens, sent: 0, early: Vec::new() })
}

/// Chunks on their way to a peer; dropping it stops them.
pub struct Putting {
    stream: Stream,
    lens: Vec<u32>,
    sent: usize,
    /// First bytes of a reply that came before all was sent.
    early: Vec<u8>,
}

impl Putting {
    /// Sends the next chunk. `false`: the peer has answered already, for instance that its disk is full; send no
    /// more and call `finish`.
    ///
    /// # Panics
    /// If the length is not the offered one, or all were sent.
    pub async fn send(&mut self, sealed: &[u8]) -> Result<bool, AskError> {
        assert_eq!(Some(sealed.len()), self.lens.get(self.sent).map(|len| *len as usize), "as offered");
        let mut rest = sealed;
        while !rest.is_empty() && self.early.is_empty() {
            match self.write_or_hear(rest).await? {
                Some(n) => rest = &rest[n..],
                None => return Ok(false),
            }
        }
        self.sent += 1;
        Ok(self.early.is_empty())
    }

    /// How many bytes were taken, or `None` when the peer answers instead.
    async fn write_or_hear(&mut self, bytes: &[u8]) -> io::Result<Option<usize>> {
        let mut timer = None;
        let (stream, early) = (&mut self.stream, &mut self.early);
        std::future::poll_fn(|cx| {
            let written = Pin::new(&mut *stream).poll_write(cx, bytes);
            if let Poll::Ready(Ok(n @ 1..)) = written {
                return Poll::Ready(Ok(Some(n)));
            }
            // Only a peer that has answered lets us wait, or ends the stream, before all was sent.
            let mut first = [0; 4];
            match Pin::new(&mut *stream).poll_read(cx, &mut first) {
                Poll::Ready(Ok(n @ 1..)) => {
                    early.extend_from_slice(&first[..n]);
                    return Poll::Ready(Ok(None));
                }
                Poll::Ready(Ok(_)) => return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {}
            }
            match written {
                Poll::Ready(Ok(_)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {}
            }
            let timer = timer.get_or_insert_with(|| Timer::after(PROGRESS_TIME_MAX));
            std::future::Future::poll(Pin::new(timer), cx).map(|_| Err(io::ErrorKind::TimedOut.into()))
        })
        .await
    }

    /// What became of each offered chunk, and the space after it.
    pub async fn finish(mut self) -> Result<(Vec<PutStatus>, Usage), AskError> {
        flush(&mut self.stream, PROGRESS_TIME_MAX).await?;
        if self.early.is_empty() {
            let mut first = [0];
            read_full(&mut self.stream, &mut first, STORE_TIME_MAX).await?;
            self.early.extend_from_slice(&first);
        }
        let head = read_head_after(&mut self.stream, &self.early, REPLY_HEAD_BYTES_MAX).await?;
        match parse_reply(&head)? {
            Reply::Put { statuses, usage } if statuses.len() == self.lens.len() => Ok((statuses, usage)),
            _ => Err(AskError::OutOfTurn),
        }
    }
}

/// Sends `up` and takes `down` bytes without meaning, at most 4 MiB each, to see how long that takes.
pub async fn measure(session: &Session, up: u32, down: u32) -> Result<(), AskError> {
    let mut stream = begin(session, &Request::Measure { up, down }).await?;
    write_blank(&mut stream, up).await?;
    match read_reply(&mut stream, PROGRESS_TIME_MAX).await? {
        Reply::Measure { down: coming } if coming == down => Ok(read_blank(&mut stream, down).await?),
        _ => Err(AskError::OutOfTurn),
    }
}

/// The other side of `measure`.
pub async fn answer_measure(stream: &mut Stream, up: u32, down: u32) -> Result<(), AskError> {
    read_blank(stream, up).await?;
    write_reply(stream, &Reply::Measure { down }).await?;
    write_blank(stream, down).await?;
    Ok(finish(stream).await?)
}

async fn write_blank(stream: &mut Stream, count: u32) -> io::Result<()> {
    let blank = [0; BLANK_BYTES];
    let mut rest = count as usize;
    while rest > 0 {
        let n = rest.min(blank.len());
        write_full(stream, &blank[..n], PROGRESS_TIME_MAX).await?;
        rest -= n;
    }
    flush(stream, PROGRESS_TIME_MAX).await
}

async fn read_blank(stream: &mut Stream, count: u32) -> io::Result<()> {
    let mut blank = [0; BLANK_BYTES];
    let mut rest = count as usize;
    while rest > 0 {
        let n = rest.min(blank.len());
        read_full(stream, &mut blank[..n], PROGRESS_TIME_MAX).await?;
        rest -= n;
    }
    Ok(())
}

/// All catalog heads of ours that the peer holds: at most 256, and 8 MiB.
pub async fn heads(session: &Session) -> Result<Vec<Vec<u8>>, AskError> {
    let mut stream = begin(session, &Request::Heads).await?;
    let Reply::Heads { lens } = read_reply(&mut stream, PROGRESS_TIME_MAX).await? else {
        return Err(AskError::OutOfTurn);
    };
    let mut heads = Vec::with_capacity(lens.len());
    for len in lens {
        let mut head = Vec::new();
        read_body(&mut stream, len as usize, &mut head).await?;
        heads.push(head);
    }
    Ok(heads)
}

/// Gives the peer a catalog head to keep.
///
/// # Panics
/// If it is longer than 1 MiB.
pub async fn put_head(session: &Session, head: &[u8]) -> Result<HeadOutcome, AskError> {
    assert!(head.len() <= CATALOG_HEAD_BYTES_MAX, "a catalog head has at most 1 MiB");
    let mut stream = begin(session, &Request::PutHead { len: head.len() as u32 }).await?;
    write_full(&mut stream, head, PROGRESS_TIME_MAX).await?;
    flush(&mut stream, PROGRESS_TIME_MAX).await?;
    match read_reply(&mut stream, STORE_TIME_MAX).await? {
        Reply::PutHead(outcome) => Ok(outcome),
        _ => Err(AskError::OutOfTurn),
    }
}

/// Says something to a friend, of which `head` tells; gives up to where it is kept, see `Reply::Messages`. A batch that is
/// given up half-way may have come all the same.
pub async fn say(session: &Session, head: BatchHead, body: &[u8]) -> Result<Option<u64>, AskError> {
    let mut stream = begin(session, &Request::Messages(head)).await?;
    write_full(&mut stream, body, PROGRESS_TIME_MAX).await?;
    flush(&mut stream, PROGRESS_TIME_MAX).await?;
    match read_reply(&mut stream, PROGRESS_TIME_MAX).await? {
        Reply::Messages(stored) => Ok(stored),
        _ => Err(AskError::OutOfTurn),
    }
}

/// An answer of a friend's models under way; dropping it stops it there.
pub struct Answering {
    stream: Stream,
}

/// Asks a friend's models. The wait for its word that it answers has no limit but the session's: whoever waits looks beside
/// whether the friend is there.
pub async fn question(session: &Session, question: &[u8]) -> Result<Answering, AskError> {
    let mut stream = begin(session, &Request::Question { len: question.len() as u32 }).await?;
    write_full(&mut stream, question, PROGRESS_TIME_MAX).await?;
    flush(&mut stream, PROGRESS_TIME_MAX).await?;
    match read_reply(&mut stream, ANSWER_TIME_MAX).await? {
        Reply::Answering => Ok(Answering { stream }),
        _ => Err(AskError::OutOfTurn),
    }
}

impl Answering {
    /// The next frame: its kind and what is in it.
    pub async fn next(&mut self, bytes_max: impl Fn(u8) -> usize) -> Result<(u8, Vec<u8>), AskError> {
        let mut head = [0; 5];
        read_full(&mut self.stream, &mut head, ANSWER_TIME_MAX).await?;
        let (kind, len) = (head[0], u32::from_le_bytes([head[1], head[2], head[3], head[4]]) as usize);
        if len > bytes_max(kind).min(FRAME_BYTES_MAX) {
            return Err(AskError::TooLong(len as u64));
        }
        let mut bytes = vec![0; len];
        read_full(&mut self.stream, &mut bytes, PROGRESS_TIME_MAX).await?;
        Ok((kind, bytes))
    }
}

/// Sends one frame of an answer, at once.
pub async fn write_frame<S: AsyncWrite + Unpin>(stream: &mut S, kind: u8, bytes: &[u8]) -> io::Result<()> {
    let mut frame = Vec::with_capacity(5 + bytes.len());
    frame.push(kind);
    frame.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
    frame.extend_from_slice(bytes);
    write_full(stream, &frame, PROGRESS_TIME_MAX).await?;
    flush(stream, PROGRESS_TIME_MAX).await
}

/// Waits until the peer that asked has gone away: it says nothing more after its question.
pub async fn asker_gone<S: AsyncRead + Unpin>(stream: &mut S) {
    let mut byte = [0];
    // A byte that should not be there is as good as an end.
    let _ = std::future::poll_fn(|cx| Pin::new(&mut *stream).poll_read(cx, &mut byte)).await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::memory;
    use crate::wire::noise::tests::Dice;
    use crate::wire::session::Limits;
    use crate::wire::session::tests::with_sessions;

    fn name(n: u8) -> ChunkName {
        ChunkName([n; 32])
    }

    fn hello() -> Hello {
        Hello {
            protocol: PROTOCOL,
            epoch: 5,
            tips: vec![BodyHash([1; 32]), BodyHash([2; 32])],
            holdings_seq: 4711,
            usage: Usage { used: 1, quota: 2, free: 3 },
            unix_time: 1_800_000_000,
            card: b"card".to_vec(),
            version: "0.1.0".into(),
        }
    }

    fn run() -> Run {
        Run { life: 2, id: [3; 16] }
    }

    fn receipts(count: u8) -> Receipts {
        let receipt = |n| Receipt { run: Run { life: 1, id: [n + 1; 16] }, stored: 9, read: 8 };
        Receipts { start: [5; 16], receipts: (0..count).map(receipt).collect() }
    }

    fn settlement(len: usize) -> Settlement {
        let heard = Heard { life: 1, measured: 2, claimed: 3, disagrees: true, ..Heard::default() };
        Settlement { heard, wants: len == 0, newest: vec![7; len], proposal: vec![8; len] }
    }

    /// Every field of the head of a batch has its own error.
    #[test]
    fn heads_of_batches_with_a_wrong_field_are_refused() {
        let head = BatchHead { start: [1; 16], run: run(), base: 7, len: 99 };
        let read = |head| Request::from_bytes(&Request::Messages(head).to_bytes());
        let why = |head| match read(head) {
            Err(AskError::Malformed(why)) => why,
            other => panic!("{other:?}"),
        };
        assert!(read(head).is_ok());
        assert_eq!(why(BatchHead { run: Run { life: 0, ..run() }, ..head }), "life of a run of messages");
        assert_eq!(why(BatchHead { run: Run { id: [0; 16], ..run() }, ..head }), "id of a run of messages");
        assert_eq!(why(BatchHead { base: 1 << 63, ..head }), "base of a batch");
        let len = (1 << 20) + 1;
        assert!(
            matches!(read(BatchHead { len, ..head }), Err(AskError::TooLong(told)) if told == u64::from(len))
        );
    }

    fn requests() -> Vec<Request> {
        let names = vec![name(1), name(2), name(3)];
        vec![
            Request::Hello(hello()),
            Request::Have { names: names.clone() },
            Request::Get { names: names.clone() },
            Request::Put { class: Class::Segment, entries: vec![(name(1), 7), (name(2), 9)] },
            Request::Release { names: names.clone() },
            Request::Restore { names },
            Request::Inventory { epoch: 5, since: 6, limit: 7 },
            Request::Digest { first: None },
            Request::Digest { first: Some(255) },
            Request::Bucket { bucket: 0xabcd },
            Request::Heads,
            Request::PutHead { len: 100 },
            Request::Ping,
            Request::Card { bytes: b"card".to_vec() },
            Request::Goodbye { reason: Farewell::Restarting },
            Request::RecoverySecret { secret: Secret([9; 32]) },
            Request::Grants { lens: vec![1, GRANT_BYTES_MAX as u32] },
            Request::Revocations { len: LIST_BYTES_MAX as u32 },
            Request::TakenBack,
            Request::GetByTicket {
                ticket: b"ticket".to_vec(),
                chunks: vec![(name(1), 7, vec![1; PROOF_BYTES_MAX]), (name(2), u32::MAX, vec![])],
            },
            Request::Friendship(Friendship::UNNUMBERED),
            Request::Messages(BatchHead { start: [1; 16], run: run(), base: 7, len: 99 }),
            Request::Receipts(receipts(3)),
            Request::Beat { bytes: b"beat".to_vec() },
            Request::Question { len: QUESTION_BYTES_MAX as u32 },
            Request::Settle(settlement(0)),
            Request::Audit {
                nonce: [7; 32],
                asks: vec![(name(1), Challenge::Whole), (name(2), Challenge::Leaf(64))],
            },
        ]
    }

    fn replies() -> Vec<Reply> {
        let entry = Holding { seq: 4711, name: name(4), len: 100, is_held: true };
        vec![
            Reply::Hello(hello()),
            Reply::Have { held: vec![true, false, true, true, false, false, true, true, true] },
            Reply::Grants { statuses: vec![GrantStatus::Taken, GrantStatus::Full, GrantStatus::Other(9)] },
            Reply::Revocations { number: 7 },
            Reply::TakenBack { len: LIST_BYTES_MAX as u32 },
            Reply::Friendship(Friendship::UNNUMBERED),
            Reply::Messages(None),
            Reply::Messages(Some(7)),
            Reply::Receipts(receipts(2)),
            Reply::Answering,
            Reply::Settle(settlement(STATEMENT_BYTES_MAX)),
            Reply::Get { count: 3 },
            Reply::Put { statuses: vec![PutStatus::Stored, PutStatus::Other(99)], usage: Usage::default() },
            Reply::Release { count: 2 },
            Reply::Restore { held: vec![false] },
            Reply::Inventory { epoch: 5, entries: vec![entry, entry], more: true },
            Reply::Digest { epoch: 5, seq: 6, sums: (0..256).collect() },
            Reply::Bucket { epoch: 5, seq: 6, entries: vec![(entry.name, 7)] },
            Reply::Heads { lens: vec![1, 2, 3] },
            Reply::PutHead(HeadOutcome::Stored),
            Reply::PutHead(HeadOutcome::Missing(vec![name(1)])),
            Reply::PutHead(HeadOutcome::Refused("an older life".into())),
            Reply::Pong,
            Reply::Done,
            Reply::Audit { count: 2 },
            Reply::Error(Refusal::new(ErrorCode::Busy, "too\nmuch", "wait")),
        ]
    }

    #[test]
    fn every_message_reads_back_and_none_has_two_forms() {
        let mut heads: Vec<Vec<u8>> = Vec::new();
        for request in requests() {
            let bytes = request.to_bytes();
            assert_eq!(Request::from_bytes(&bytes).unwrap(), request);
            assert!((0..bytes.len()).all(|at| Request::from_bytes(&bytes[..at]).is_err()));
            heads.push(bytes);
        }
        for reply in replies() {
            let bytes = reply.to_bytes();
            assert_eq!(Reply::from_bytes(&bytes).unwrap(), reply);
            assert!((0..bytes.len()).all(|at| Reply::from_bytes(&bytes[..at]).is_err()));
            heads.push(bytes);
        }
        let same = |bytes: &[u8]| {
            if let Ok(request) = Request::from_bytes(bytes) {
                assert_eq!(request.to_bytes(), bytes, "{request:?}");
            }
            if let Ok(reply) = Reply::from_bytes(bytes) {
                assert_eq!(reply.to_bytes(), bytes, "{reply:?}");
            }
        };
        for head in &heads {
            for at in 0..head.len() {
                same(&head[..at]);
                for change in [1, 0x80, 0xff] {
                    let mut changed = head.clone();
                    changed[at] ^= change;
                    same(&changed);
                }
            }
            assert!(Request::from_bytes(&[&head[..], &[0]].concat()).is_err());
            assert!(Reply::from_bytes(&[&head[..], &[0]].concat()).is_err());
        }
        for seed in 0..50_000 {
            let mut dice = Dice(seed);
            let len = dice.roll(120);
            let mut bytes = dice.bytes(len);
            if let Some(tag) = bytes.first_mut() {
                *tag = dice.roll(17) as u8;
            }
            same(&bytes);
        }
    }

    #[test]
    fn largest_messages_fit_their_heads() {
        let names = vec![name(1); NAMES_MAX];
        let entries = vec![(name(1), 1); NAMES_MAX];
        let mut hello = hello();
        hello.tips = vec![BodyHash([1; 32]); CATALOG_HEADS_MAX];
        hello.card = vec![0; CARD_BYTES_MAX];
        let audit =
            Request::Audit { nonce: [0; 32], asks: vec![(name(1), Challenge::Whole); AUDIT_NAMES_MAX] };
        for request in [
            Request::Have { names },
            Request::Put { class: Class::Chunk, entries },
            Request::Hello(hello),
            audit,
        ] {
            assert!(request.to_bytes().len() <= REQUEST_HEAD_BYTES_MAX);
        }
        let entry = Holding { seq: 1, name: name(1), len: 1, is_held: false };
        let entries = vec![entry; INVENTORY_ENTRIES_MAX];
        let reply = Reply::Inventory { epoch: 1, entries, more: false };
        assert!(reply.to_bytes().len() <= REPLY_HEAD_BYTES_MAX);
    }

    #[test]
    fn over_long_lists_and_bodies_are_refused() {
        let put = |entries: &[(ChunkName, u32)]| {
            Request::from_bytes(&Request::Put { class: Class::Chunk, entries: entries.to_vec() }.to_bytes())
        };
        let most = CHUNK_SEALED_MAX as u32;
        assert!(put(&[(name(1), most)]).is_ok());
        assert!(matches!(put(&[(name(1), most + 1)]), Err(AskError::TooLong(_))));
        assert!(matches!(put(&vec![(name(1), most); 17]), Err(AskError::TooLong(_))));
        let mut long = Writer::new();
        long.u8(2).u32(NAMES_MAX as u32 + 1).raw(&vec![0; 32 * (NAMES_MAX + 1)]);
        assert!(Request::from_bytes(long.as_slice()).is_err());
        assert!(matches!(
            Request::from_bytes(&Request::PutHead { len: (1 << 20) + 1 }.to_bytes()),
            Err(AskError::TooLong(_))
        ));
        assert!(Reply::from_bytes(&Reply::Heads { lens: vec![1 << 20; 9] }.to_bytes()).is_err());
        assert!(matches!(Request::from_bytes(&[77, 1, 2]), Err(AskError::Unsupported(77))));
    }

    #[test]
    fn huge_or_empty_heads_are_refused_before_they_come() {
        smol::block_on(async {
            for len in [0u32, REQUEST_HEAD_BYTES_MAX as u32 + 1, u32::MAX] {
                let (mut a, mut b, _link) = memory::link(100);
                write_full(&mut a, &len.to_le_bytes(), PROGRESS_TIME_MAX).await.unwrap();
                assert!(matches!(read_request(&mut b).await, Err(AskError::TooLong(_))));
            }
        });
    }

    /// A peer that holds chunk 1 whole and chunk 2 damaged, and takes no more than three chunks.
    async fn serve(session: Session, chunk: Vec<u8>) {
        while let Some(mut stream) = session.accept().await {
            let reply = match read_request(&mut stream).await {
                Ok(Request::Ping) => Reply::Pong,
                Ok(Request::Have { names }) => {
                    Reply::Have { held: names.iter().map(|n| n.0[0] == 1).collect() }
                }
                Ok(Request::Get { names }) => {
                    write_reply(&mut stream, &Reply::Get { count: names.len() as u32 }).await.unwrap();
                    for name in names {
                        let (status, bytes) = match name.0[0] {
                            1 => (GetStatus::Found, &chunk[..]),
                            2 => (GetStatus::Damaged, &[][..]),
                            _ => (GetStatus::Missing, &[][..]),
                        };
                        write_got(&mut stream, status, bytes).await.unwrap();
                    }
                    finish(&mut stream).await.unwrap();
                    continue;
                }
                Ok(Request::Put { entries, .. }) => {
                    let mut buf = Vec::new();
                    let mut statuses = vec![PutStatus::DiskFull; entries.len()];
                    for (i, (_, len)) in entries.iter().enumerate().take(3) {
                        read_body(&mut stream, *len as usize, &mut buf).await.unwrap();
                        assert_eq!(buf, chunk);
                        statuses[i] = PutStatus::Stored;
                    }
                    Reply::Put { statuses, usage: Usage { used: 1, quota: 2, free: 3 } }
                }
                Ok(Request::Heads) => {
                    write_reply(&mut stream, &Reply::Heads { lens: vec![4, 5] }).await.unwrap();
                    write_full(&mut stream, b"headheads", PROGRESS_TIME_MAX).await.unwrap();
                    finish(&mut stream).await.unwrap();
                    continue;
                }
                Ok(Request::PutHead { len }) => {
                    let mut head = Vec::new();
                    read_body(&mut stream, len as usize, &mut head).await.unwrap();
                    Reply::PutHead(HeadOutcome::Missing(vec![name(head[0])]))
                }
                Ok(_) => Reply::Error(Refusal::new(ErrorCode::NotAllowed, "not here", "")),
                Err(error) => refuse(&error).unwrap(),
            };
            write_reply(&mut stream, &reply).await.unwrap();
            finish(&mut stream).await.unwrap();
        }
    }

    #[test]
    fn requests_are_answered_over_a_session() {
        let chunk = Dice(1).bytes(CHUNK_SEALED_MAX);
        with_sessions(Limits::default(), |executor, a, b, _link| async move {
            executor.spawn(serve(b, chunk.clone())).detach();
            assert_eq!(ask(&a, &Request::Ping).await.unwrap(), Reply::Pong);
            let have = Request::Have { names: vec![name(1), name(9)] };
            assert_eq!(ask(&a, &have).await.unwrap(), Reply::Have { held: vec![true, false] });
            match ask(&a, &Request::Goodbye { reason: Farewell::Removed }).await {
                Err(AskError::Refused(refusal)) => assert_eq!(refusal.code, ErrorCode::NotAllowed),
                other => panic!("{other:?}"),
            }

            let mut getting = get(&a, vec![name(1), name(2), name(3), name(1)]).await.unwrap();
            let mut buf = vec![1, 2, 3];
            for (n, status) in [
                (1, GetStatus::Found),
                (2, GetStatus::Damaged),
                (3, GetStatus::Missing),
                (1, GetStatus::Found),
            ] {
                assert_eq!(getting.next(&mut buf).await.unwrap(), Some((name(n), status)));
                assert_eq!(buf == chunk, status == GetStatus::Found);
            }
            assert_eq!(getting.next(&mut buf).await.unwrap(), None);

            assert_eq!(heads(&a).await.unwrap(), [b"head".to_vec(), b"heads".to_vec()]);
            let outcome = put_head(&a, &[7; 5000]).await.unwrap();
            assert_eq!(outcome, HeadOutcome::Missing(vec![name(7)]));
        });
    }

    #[test]
    fn put_stops_when_the_peer_has_answered() {
        let chunk = Dice(1).bytes(1 << 20);
        with_sessions(Limits::default(), |executor, a, b, _link| async move {
            executor.spawn(serve(b, chunk.clone())).detach();
            for (count, stored) in [(3, 3), (30, 3)] {
                let entries = vec![(name(1), chunk.len() as u32); count];
                let mut putting = put(&a, Class::Chunk, entries).await.unwrap();
                let mut sent = 0;
                while sent < count && putting.send(&chunk).await.unwrap() {
                    sent += 1;
                }
                assert!(sent == count || sent < 10, "{sent}");
                let (statuses, usage) = putting.finish().await.unwrap();
                assert_eq!(statuses.iter().filter(|s| **s == PutStatus::Stored).count(), stored);
                assert_eq!((statuses.len(), usage.free), (count, 3));
            }
        });
    }

    #[test]
    fn request_of_a_later_version_is_answered_with_unsupported() {
        with_sessions(Limits::default(), |executor, a, b, _link| async move {
            executor.spawn(serve(b, vec![])).detach();
            let mut stream = a.open().await.unwrap();
            write_head(&mut stream, &[200, 1, 2, 3]).await.unwrap();
            match read_reply(&mut stream, PROGRESS_TIME_MAX).await {
                Err(AskError::Refused(refusal)) => assert_eq!(refusal.code, ErrorCode::Unsupported),
                other => panic!("{other:?}"),
            }
        });
    }

    #[test]
    fn reply_to_another_request_is_refused() {
        with_sessions(Limits::default(), |executor, a, b, _link| async move {
            let answer = async move {
                let mut stream = b.accept().await.unwrap();
                read_request(&mut stream).await.unwrap();
                write_reply(&mut stream, &Reply::Have { held: vec![true; 5] }).await.unwrap();
                finish(&mut stream).await.unwrap();
            };
            executor.spawn(answer).detach();
            let have = Request::Have { names: vec![name(1)] };
            assert!(matches!(ask(&a, &have).await, Err(AskError::OutOfTurn)));
        });
    }
}

//! Requests and replies. One stream is one request: its head, its body where it has one, then the reply's head and
//! body. A head is a u32 length (little-endian) and that many bytes, the first of which is the tag.
//!
//! Everything is about the authenticated peer's own chunks, or, after a recovery handshake, the recovering owner's.
//!
//! Promise: a head that parses writes back the same bytes; lists and texts have limits; every wait ends.

mod ask;
mod binary;
mod stream;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::time::Duration;

pub use ask::{
    Answering, Auditing, Getting, Putting, answer_measure, answer_taken_back, ask, asker_gone, audit, get,
    get_by_ticket, heads, measure, offer_grants, put, put_head, put_revocations, question, say, taken_back,
    write_frame,
};
pub use stream::{
    finish, read_body, read_head, read_request, refuse, write_got, write_head, write_proof, write_reply,
};

use super::session::SessionError;
use crate::bounty::Heard;
use crate::chat::{Receipt, Run};
use crate::codec::BadBytes;
use crate::friendship::Friendship;
use crate::id::{BodyHash, ChunkName};
use crate::keys::Secret;
use crate::proof::{Challenge, Nonce};

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
/// Bytes without meaning in one direction of a `Measure`.
pub const MEASURE_BYTES_MAX: u32 = 4 << 20;
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

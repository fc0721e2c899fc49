//! Chat between friends: what is sent next, what of a batch is new, what the friend has of it.
//!
//! Messages of one direction are numbered within a *run*: life and a random id, new at each start of the sender. So a
//! sender that goes back to an old backup, or is recovered, never gives a number twice, and a receiver that goes back
//! says what it has and gets the rest again. Runs are sent one after the other, and within one a batch says up to where
//! the receiver must be level (`base`): what comes too late, twice or too early is told by numbers alone. Before the first
//! batch both sides tell how far they are, and each batch names the start of the receiver's that was told: a receiver that
//! was started since is asked once more, since it may be an older one.
//!
//! This file decides; `sqlite.rs` keeps. Knows nothing of connections.
//!
//! Promise: what is kept arrives in the order in which it was said, and is shown once.

mod sqlite;
#[cfg(test)]
mod tests;

use std::fmt;
use std::time::Duration;

use crate::codec::{BadBytes, Reader, Writer};

pub use sqlite::{Draft, Found, Item, Outgoing, Page, Side, Talk, Talks, Took};

/// A message's text, in bytes of UTF-8.
pub const TEXT_BYTES_MAX: usize = 64 * 1024;
/// Grants attached to one message.
pub const ATTACHMENTS_MAX: usize = 16;
/// Messages of one batch.
pub const BATCH_MESSAGES_MAX: usize = 256;
/// A batch's bytes, as far as they are taken.
pub const BATCH_BYTES_MAX: usize = 1 << 20;
/// A batch that is sent takes no further message beyond this: it fits the window of a stream, so a refusal is heard.
const BATCH_BYTES_FULL: usize = 128 * 1024;
/// Messages that wait for one friend.
pub const QUEUE_MESSAGES_MAX: u64 = 20_000;
/// And their bytes, each counted as `cost`.
pub const QUEUE_BYTES_MAX: u64 = 64 << 20;
/// History with one friend, both directions, each message counted as `cost`.
pub const HISTORY_BYTES_MAX: u64 = 1 << 30;
/// Receipts told at once: those of the newest runs.
pub const RECEIPTS_MAX: usize = 64;
/// Runs of one friend's beyond which those are forgotten of which no message is kept, the oldest first.
pub const EMPTY_RUNS_MAX: u64 = 4096;
/// Runs of one friend's altogether: a friend that speaks after each of ten starts a day needs eighteen years for them.
pub const RUNS_MAX: u64 = 65_536;
/// What a message counts beside its text.
const MESSAGE_COST: u64 = 256;
/// Bytes, as `cost`, that are taken of one friend in `FLOOD_TIME`.
const FLOOD_BYTES_MAX: u64 = 256 << 20;
/// Times that a friend may go back to an older state in `FLOOD_TIME`.
const BACKS_MAX: u64 = 16;
const FLOOD_TIME: Duration = Duration::from_secs(3600);
/// SQLite's numbers are signed.
const NUMBER_MAX: u64 = i64::MAX as u64;
/// The last second of the year 9999.
const AT_MAX: u64 = 253_402_300_799;
/// Bytes of a message beside its text and attachments.
const MESSAGE_HEAD_BYTES: usize = 8 + 8 + 4 + 1;
/// A mark by which a sender tells that it says the same again, in bytes.
pub const KEY_BYTES_MAX: usize = 64;

/// What messages of one direction are numbered within.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Run {
    /// The sender's life, from 1.
    pub life: u32,
    /// Random; not zero.
    pub id: [u8; 16],
}

impl Run {
    /// The bytes on the wire; 20.
    pub fn write(&self, to: &mut Writer) {
        to.u32(self.life).raw(&self.id);
    }

    /// What `write` wrote.
    pub fn read(from: &mut Reader<'_>) -> Result<Self, BadBytes> {
        let run = Self { life: from.u32()?, id: from.array()? };
        if run.life == 0 {
            return Err(BadBytes("life of a run of messages"));
        }
        if run.id == [0; 16] {
            return Err(BadBytes("id of a run of messages"));
        }
        Ok(run)
    }
}

/// One message as it travels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Within its run, from 1.
    pub number: u64,
    /// When it was said, by the sender's clock. Unix seconds.
    pub at: u64,
    /// At most 64 KiB; empty only with attachments.
    pub text: String,
    /// Ids of grants; at most 16, none twice.
    pub attachments: Vec<[u8; 16]>,
}

impl Message {
    /// What it counts against limits.
    pub fn cost(&self) -> u64 {
        cost(&self.text, &self.attachments)
    }

    fn wire_bytes(&self) -> usize {
        MESSAGE_HEAD_BYTES + self.text.len() + 16 * self.attachments.len()
    }

    fn write(&self, to: &mut Writer) {
        to.u64(self.number).u64(self.at).long(self.text.as_bytes()).u8(self.attachments.len() as u8);
        self.attachments.iter().for_each(|id| {
            to.raw(id);
        });
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, BadBytes> {
        let (number, at, bytes) = (from.u64()?, from.u64()?, from.long()?);
        if number > NUMBER_MAX {
            return Err(BadBytes("number of a message"));
        }
        if at > AT_MAX {
            return Err(BadBytes("time of a message"));
        }
        if bytes.len() > TEXT_BYTES_MAX {
            return Err(BadBytes("the text of a message is too long"));
        }
        let text = std::str::from_utf8(bytes).map_err(|_| BadBytes("the text of a message is not UTF-8"))?;
        let count = from.u8()? as usize;
        if count > ATTACHMENTS_MAX {
            return Err(BadBytes("a message has too many attachments"));
        }
        let attachments = (0..count).map(|_| from.array()).collect::<Result<Vec<[u8; 16]>, _>>()?;
        if has_twins(&attachments) {
            return Err(BadBytes("a message has an attachment twice"));
        }
        if text.is_empty() && attachments.is_empty() {
            return Err(BadBytes("a message says nothing"));
        }
        Ok(Self { number, at, text: text.to_owned(), attachments })
    }
}

fn cost(text: &str, attachments: &[[u8; 16]]) -> u64 {
    MESSAGE_COST + text.len() as u64 + 16 * attachments.len() as u64
}

fn has_twins(ids: &[[u8; 16]]) -> bool {
    ids.iter().enumerate().any(|(at, id)| ids[..at].contains(id))
}

/// The body of a batch: a count u32, then messages in the order of their numbers.
///
/// # Panics
/// If there is none, or there are more than 256.
pub fn batch_bytes(messages: &[Message]) -> Vec<u8> {
    assert!((1..=BATCH_MESSAGES_MAX).contains(&messages.len()), "a batch has 1 to 256 messages");
    let mut to = Writer::new();
    to.u32(messages.len() as u32);
    messages.iter().for_each(|message| message.write(&mut to));
    to.finish()
}

/// What `batch_bytes` wrote; all numbers are beyond `base`, and grow.
pub fn read_batch(base: u64, bytes: &[u8]) -> Result<Vec<Message>, BadBytes> {
    let mut from = Reader::new(bytes);
    let count = from.count(MESSAGE_HEAD_BYTES)?;
    if count == 0 {
        return Err(BadBytes("a batch without a message"));
    }
    if count > BATCH_MESSAGES_MAX {
        return Err(BadBytes("a batch of too many messages"));
    }
    let mut messages: Vec<Message> = Vec::with_capacity(count);
    for _ in 0..count {
        let message = Message::read(&mut from)?;
        if message.number <= messages.last().map_or(base, |last| last.number) {
            return Err(BadBytes("numbers of messages do not grow"));
        }
        messages.push(message);
    }
    from.end()?;
    Ok(messages)
}

/// How far a receiver is with a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Receipt {
    /// Of the other side's messages.
    pub run: Run,
    /// Kept durably up to this number.
    pub stored: u64,
    /// Seen by its user up to this number; not beyond `stored`.
    pub read: u64,
}

impl Receipt {
    /// A list of them: a count u32, then run, stored u64, read u64 each.
    ///
    /// # Panics
    /// If there are more than 64.
    pub fn write_all(receipts: &[Self], to: &mut Writer) {
        assert!(receipts.len() <= RECEIPTS_MAX, "at most 64 runs are told of");
        to.u32(receipts.len() as u32);
        for receipt in receipts {
            receipt.run.write(to);
            to.u64(receipt.stored).u64(receipt.read);
        }
    }

    /// What `write_all` wrote.
    pub fn read_all(from: &mut Reader<'_>) -> Result<Vec<Self>, BadBytes> {
        let count = from.count(20 + 16)?;
        if count > RECEIPTS_MAX {
            return Err(BadBytes("too many receipts"));
        }
        let mut receipts: Vec<Self> = Vec::with_capacity(count);
        for _ in 0..count {
            let receipt = Self { run: Run::read(from)?, stored: from.u64()?, read: from.u64()? };
            if receipt.stored > NUMBER_MAX {
                return Err(BadBytes("number of a receipt"));
            }
            if receipt.read > receipt.stored {
                return Err(BadBytes("more is read than is there"));
            }
            if receipts.iter().any(|known| known.run == receipt.run) {
                return Err(BadBytes("two receipts of one run"));
            }
            receipts.push(receipt);
        }
        Ok(receipts)
    }
}

/// The base of a batch, checked.
pub fn read_base(from: &mut Reader<'_>) -> Result<u64, BadBytes> {
    let base = from.u64()?;
    if base > NUMBER_MAX { Err(BadBytes("base of a batch")) } else { Ok(base) }
}

/// What a receiver that keeps a run up to `stored` takes of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Take {
    /// Nothing: something before it has not come.
    Gap,
    /// Those from this place on; behind the last one where all were here already.
    From(usize),
}

/// See `Take`; `numbers` grow and are beyond `base`.
pub fn take(stored: u64, base: u64, numbers: impl IntoIterator<Item = u64>) -> Take {
    if base > stored {
        return Take::Gap;
    }
    Take::From(numbers.into_iter().take_while(|number| *number <= stored).count())
}

/// How far a run of our own messages is, as the sender knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sent {
    /// The newest number given.
    pub last: u64,
    /// Nothing up to this number needs to be sent.
    pub stored: u64,
    /// The friend has read up to this number.
    pub read: u64,
}

impl Sent {
    /// The friend tells how far it is. What it keeps counts, not what it once kept: it may have gone back to a backup.
    /// Without `may_go_back` only news is heard.
    pub fn hear(&mut self, stored: u64, read: u64, may_go_back: bool) {
        let stored = stored.min(self.last);
        if stored > self.stored || may_go_back {
            self.stored = stored;
        }
        // Who has read something has read it, whatever became of it since.
        self.read = self.read.max(read.min(self.last));
    }
}

/// Messages as they are gathered for one batch.
#[derive(Debug, Default)]
pub struct Filling {
    count: usize,
    bytes: usize,
}

impl Filling {
    /// Whether one more goes along.
    pub fn takes(&mut self, message: &Message) -> bool {
        let takes = self.count < BATCH_MESSAGES_MAX && self.bytes < BATCH_BYTES_FULL;
        if takes {
            self.count += 1;
            self.bytes += message.wire_bytes();
        }
        takes
    }
}

/// Why something cannot be said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SayError {
    /// There is neither text nor attachment.
    Empty,
    /// The text has so many bytes.
    TooLong(usize),
    /// So many grants are attached.
    TooManyAttachments(usize),
    /// One is attached twice.
    Twice,
    /// The mark of what is said is too long.
    Key,
    /// So much waits for the friend already.
    QueueFull { messages: u64 },
    /// The history with the friend is as long as it may be.
    HistoryFull,
}

impl fmt::Display for SayError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("there is nothing to say"),
            Self::TooLong(bytes) => {
                write!(f, "the message has {bytes} bytes, and at most {TEXT_BYTES_MAX} go; share a file instead")
            }
            Self::TooManyAttachments(count) => {
                write!(f, "the message has {count} attachments, and at most {ATTACHMENTS_MAX} go")
            }
            Self::Twice => f.write_str("something is attached twice"),
            Self::Key => write!(f, "the key of a message has at most {KEY_BYTES_MAX} bytes"),
            Self::QueueFull { messages } => write!(
                f,
                "{messages} messages wait for this friend already; nothing more is taken until some have arrived"
            ),
            Self::HistoryFull => f.write_str(
                "the history with this friend is as long as it may be; delete some of it with `grove chat FRIEND --delete`",
            ),
        }
    }
}

impl std::error::Error for SayError {}

/// Whether a message can be said at all.
pub fn check(text: &str, attachments: &[[u8; 16]]) -> Result<(), SayError> {
    if text.is_empty() && attachments.is_empty() {
        return Err(SayError::Empty);
    }
    if text.len() > TEXT_BYTES_MAX {
        return Err(SayError::TooLong(text.len()));
    }
    if attachments.len() > ATTACHMENTS_MAX {
        return Err(SayError::TooManyAttachments(attachments.len()));
    }
    if has_twins(attachments) { Err(SayError::Twice) } else { Ok(()) }
}

/// Messages and their bytes, as `cost`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Amount {
    /// How many.
    pub messages: u64,
    /// How much.
    pub bytes: u64,
}

/// Whether `more` may wait beside what waits (`queued`), in a history of `history` bytes.
pub fn may_queue(queued: Amount, history: u64, more: Amount) -> Result<(), SayError> {
    if queued.messages + more.messages > QUEUE_MESSAGES_MAX || queued.bytes + more.bytes > QUEUE_BYTES_MAX {
        return Err(SayError::QueueFull { messages: queued.messages });
    }
    if history + more.bytes > HISTORY_BYTES_MAX { Err(SayError::HistoryFull) } else { Ok(()) }
}

/// What a friend may do within an hour.
#[derive(Debug, Clone, Copy, Default)]
pub struct Allowance {
    since: Duration,
    spent: u64,
}

impl Allowance {
    fn spend(&mut self, amount: u64, max: u64, now: Duration) -> bool {
        if now.saturating_sub(self.since) > FLOOD_TIME {
            *self = Self { since: now, spent: 0 };
        }
        let may = self.spent.saturating_add(amount) <= max;
        self.spent += if may { amount } else { 0 };
        may
    }

    /// Whether it may send a batch of `len` bytes at steady time `now`.
    pub fn takes_batch(&mut self, len: u64, now: Duration) -> bool {
        self.spend(len + MESSAGE_COST, FLOOD_BYTES_MAX, now)
    }

    /// Whether it may have sent again what it kept once.
    pub fn goes_back(&mut self, now: Duration) -> bool {
        self.spend(1, BACKS_MAX, now)
    }
}

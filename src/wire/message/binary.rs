//! The bytes of heads.

use super::{
    AUDIT_NAMES_MAX, AskError, BEAT_BYTES_MAX, BatchHead, CATALOG_HEAD_BYTES_MAX, CATALOG_HEADS_BYTES_MAX,
    CATALOG_HEADS_MAX, CHUNK_SEALED_MAX, Class, DIGEST_SUMS, ErrorCode, Farewell, GRANTS_BYTES_MAX,
    GRANTS_MAX, GrantStatus, HeadOutcome, Hello, Holding, INVENTORY_ENTRIES_MAX, MEASURE_BYTES_MAX,
    NAMES_MAX, PUT_BYTES_MAX, PutStatus, QUESTION_BYTES_MAX, Receipts, Refusal, Reply, Request, Settlement,
    TEXT_BYTES_MAX, TICKET_CHUNKS_MAX, Usage, VERSION_BYTES_MAX, tidy,
};
use crate::bounty::{Heard, STATEMENT_BYTES_MAX};
use crate::card::CARD_BYTES_MAX;
use crate::chat::{self, Receipt, Run};
use crate::codec::{BadBytes, Reader, Writer};
use crate::friendship::Friendship;
use crate::grant::{GRANT_BYTES_MAX, LIST_BYTES_MAX, PROOF_BYTES_MAX, TICKET_BYTES_MAX};
use crate::id::{BodyHash, ChunkName};
use crate::keys::Secret;
use crate::proof::{Challenge, LEAVES_MAX};

/// Stands for no first byte.
const DIGEST_ALL: u16 = 0x100;

fn write_names(to: &mut Writer, names: &[ChunkName]) {
    assert!(names.len() <= NAMES_MAX, "a message names at most 1,024 chunks");
    to.u32(names.len() as u32);
    names.iter().for_each(|name| {
        to.raw(&name.0);
    });
}

pub(super) fn count(from: &mut Reader<'_>, bytes_each: usize, max: usize) -> Result<usize, BadBytes> {
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

pub(super) fn read_bool(from: &mut Reader<'_>) -> Result<bool, BadBytes> {
    match from.u8()? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(BadBytes("neither yes nor no")),
    }
}

pub(super) fn read_text(from: &mut Reader<'_>, max: usize) -> Result<String, BadBytes> {
    let bytes = from.long()?;
    let text = std::str::from_utf8(bytes).map_err(|_| BadBytes("text is not UTF-8"))?;
    if bytes.len() > max || text.chars().any(char::is_control) {
        return Err(BadBytes("text is too long or has control characters"));
    }
    Ok(text.to_owned())
}

pub(super) fn read_bytes(from: &mut Reader<'_>, max: usize) -> Result<Vec<u8>, BadBytes> {
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

impl Receipts {
    fn write(&self, to: &mut Writer) {
        Receipt::write_all(&self.receipts, to.raw(&self.start));
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, BadBytes> {
        Ok(Self { start: from.array()?, receipts: Receipt::read_all(from)? })
    }
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

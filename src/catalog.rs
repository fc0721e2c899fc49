//! What must survive the board: a log of records in sealed segments under a small signed head.
//!
//! Knows nothing of disks, peers or SQLite: records and segments come in as bytes, decisions go out as values.
//! A record has a key; of two records with one key the higher sequence number counts, so the order of segments does
//! not. An empty record *forgets* its key. `docs/format.md` gives the bytes.

use std::fmt;
use std::ops::Range;

use crate::codec::{BadBytes, Reader, Writer};
use crate::id::{BodyHash, CellId, ChunkName, FileId};
use crate::keys::{Identity, MasterKey, random, sha256, verify};
use crate::manifest::{Extension, read_extensions, write_extensions};
use crate::seal::{self, NotOpened, SEALED_BYTES_MAX, padded_len};

const HEAD_LABEL: &str = "grove head v1";
const SEGMENT_LABEL: &str = "grove segment v1";
/// Bytes of a segment with its random prefix and tag.
pub const SEGMENT_BYTES_MAX: usize = SEALED_BYTES_MAX;
/// Bytes of records in one segment; the rest is header, prefix and tag.
const SEGMENT_RECORDS_MAX: usize = SEGMENT_BYTES_MAX - 32 - 16 - 64;
/// Bytes of a record's body.
pub const RECORD_BYTES_MAX: usize = 1024 * 1024;
/// Segments of a head: 64 GiB of catalog.
const SEGMENTS_MAX: usize = 16_384;
/// Parents of a head: forks merged at once.
const PARENTS_MAX: usize = 64;
/// Bytes of a signed head.
pub const HEAD_BYTES_MAX: usize = 1024 * 1024;

/// What a record is about; its number is the first byte of the record's key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum RecordKind {
    /// A version: file id, version, first 8 bytes of the manifest hash → signed manifest.
    File = 1,
    /// A file whose bytes are not on this device: file id → why.
    RemoteOnly = 2,
    /// A peer: cell id → card, role, quota, label.
    Peer = 3,
    /// A grant I made.
    Grant = 4,
    /// A grant I received.
    ReceivedGrant = 5,
    /// A revocation of mine.
    Revocation = 6,
    /// An invite that was used: invite id.
    UsedInvite = 7,
    /// A setting of config.json: name → JSON.
    Setting = 8,
    /// Merkle root of a chunk that is only with peers: chunk name → root.
    AuditRoot = 9,
    /// Newest statement with a peer.
    StatementHead = 10,
    /// A chat message.
    Chat = 11,
    /// A run of the program that published: its random id → version u8 = 1, u64 number of its first record.
    Run = 12,
    /// A folder's own number of copies: its file id → version u8 = 1, copies u8.
    Copies = 13,
}

/// The key of a file version's record.
pub fn version_key(file: FileId, version: u64, hash: BodyHash) -> Vec<u8> {
    let mut key = Vec::with_capacity(33);
    key.push(RecordKind::File as u8);
    key.extend_from_slice(&file.0);
    key.extend_from_slice(&version.to_be_bytes());
    key.extend_from_slice(&hash.0[..8]);
    key
}

/// What all version records of a file begin with, in the order of versions.
pub fn version_key_prefix(file: FileId) -> Vec<u8> {
    [&[RecordKind::File as u8][..], &file.0].concat()
}

/// A record's key from its kind and name.
pub fn record_key(kind: RecordKind, name: &[u8]) -> Vec<u8> {
    assert!(name.len() < 255, "names of records are short");
    [&[kind as u8][..], name].concat()
}

/// One entry of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Higher is newer, within and over lives.
    pub seq: u64,
    /// Kind and name, up to 255 bytes.
    pub key: Vec<u8>,
    /// Empty: the key is forgotten.
    pub body: Vec<u8>,
}

/// Gathers records into the plaintext of one segment.
#[derive(Debug)]
pub struct SegmentWriter {
    plain: Writer,
}

impl Default for SegmentWriter {
    fn default() -> Self {
        let mut plain = Writer::with_label(SEGMENT_LABEL);
        plain.u8(0);
        Self { plain }
    }
}

impl SegmentWriter {
    /// Whether a record of this size still fits.
    pub fn has_room(&self, key: &[u8], body: &[u8]) -> bool {
        self.plain.len() + 1 + 8 + 1 + key.len() + 4 + body.len() < SEGMENT_RECORDS_MAX
    }

    /// Nothing in it yet.
    pub fn is_empty(&self) -> bool {
        self.plain.len() == Self::default().plain.len()
    }

    /// Adds a record; ask `has_room` first.
    pub fn add(&mut self, seq: u64, key: &[u8], body: &[u8]) {
        self.plain.u8(1).u64(seq).short(key).long(body);
    }

    /// Seals the segment under a key of its own.
    pub fn seal(self, master: &MasterKey) -> (ChunkName, Vec<u8>) {
        let mut plain = self.plain.finish();
        plain.resize(padded_len(plain.len()).clamp(plain.len(), SEGMENT_RECORDS_MAX.max(plain.len())), 0);
        let random: [u8; 32] = random();
        let sealed = seal::seal_part(&master.segment_key(&random), SEGMENT_LABEL, &plain);
        let mut bytes = Vec::with_capacity(32 + sealed.len());
        bytes.extend_from_slice(&random);
        bytes.extend_from_slice(&sealed);
        (ChunkName(sha256(&bytes)), bytes)
    }
}

/// Why a segment or head is not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CatalogError {
    /// Not the bytes of a segment or head.
    Bytes(BadBytes),
    /// Does not open under this master key.
    Sealed(NotOpened),
    /// Not signed by the owner it names.
    Signature,
}

impl fmt::Display for CatalogError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes(why) => write!(f, "catalog: {why}"),
            Self::Sealed(why) => write!(f, "catalog: {why}"),
            Self::Signature => f.write_str("catalog head not signed by its owner"),
        }
    }
}

impl std::error::Error for CatalogError {}

impl From<BadBytes> for CatalogError {
    fn from(why: BadBytes) -> Self {
        Self::Bytes(why)
    }
}

/// Opens a segment's plaintext.
pub fn open_segment(bytes: &[u8], master: &MasterKey) -> Result<Vec<u8>, CatalogError> {
    let Some((random, sealed)) = bytes.split_first_chunk::<32>() else {
        return Err(BadBytes("a segment is longer").into());
    };
    if bytes.len() > SEGMENT_BYTES_MAX {
        return Err(BadBytes("a segment is shorter").into());
    }
    seal::open_part(&master.segment_key(random), SEGMENT_LABEL, sealed).map_err(CatalogError::Sealed)
}

/// Calls `see` with each record of an opened segment.
pub fn read_segment<E: From<CatalogError>>(
    plain: &[u8],
    mut see: impl FnMut(u64, &[u8], &[u8]) -> Result<(), E>,
) -> Result<(), E> {
    let read = |reader: &mut Reader<'_>| -> Result<(), BadBytes> {
        reader.label(SEGMENT_LABEL)?;
        if reader.u8()? != 0 { Err(BadBytes("version of a segment")) } else { Ok(()) }
    };
    let mut reader = Reader::new(plain);
    read(&mut reader).map_err(|why| E::from(why.into()))?;
    while !reader.is_empty() {
        match next_record(&mut reader).map_err(|why| E::from(why.into()))? {
            Some((seq, key, body)) => see(seq, key, body)?,
            None => break,
        }
    }
    Ok(())
}

type RawRecord<'a> = (u64, &'a [u8], &'a [u8]);

fn next_record<'a>(reader: &mut Reader<'a>) -> Result<Option<RawRecord<'a>>, BadBytes> {
    match reader.u8()? {
        1 => {
            let seq = reader.u64()?;
            let key = reader.short()?;
            let body = reader.long()?;
            if key.is_empty() || body.len() > RECORD_BYTES_MAX {
                return Err(BadBytes("a record without key or out of size"));
            }
            Ok(Some((seq, key, body)))
        }
        0 if reader.rest().iter().all(|byte| *byte == 0) => Ok(None),
        _ => Err(BadBytes("unknown mark in a segment")),
    }
}

/// One published state of a catalog.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// Whose catalog.
    pub owner: CellId,
    /// Recovery and merging begin a new one. From 1 up.
    pub life: u32,
    /// From 1 up, over all lives.
    pub seq: u64,
    /// Random for each start of the cell: two machines with one state folder differ here.
    pub run: [u8; 16],
    /// Heads that this one contains.
    pub parents: Vec<BodyHash>,
    /// Segments with their sealed lengths, oldest first.
    pub segments: Vec<(ChunkName, u32)>,
    /// From later versions of Grove, ignorable.
    pub extensions: Vec<Extension>,
}

impl Head {
    /// Body and signature.
    pub fn sign(&self, identity: &Identity) -> (BodyHash, Vec<u8>) {
        let mut body = Writer::with_label(HEAD_LABEL);
        body.raw(&self.owner.0).u32(self.life).u64(self.seq).raw(&self.run);
        body.u32(self.parents.len() as u32);
        for parent in &self.parents {
            body.raw(&parent.0);
        }
        body.u32(self.segments.len() as u32);
        for (name, len) in &self.segments {
            body.raw(&name.0).u32(*len);
        }
        write_extensions(&self.extensions, &mut body);
        let hash = BodyHash(sha256(body.as_slice()));
        let signature = identity.sign(body.as_slice());
        body.raw(&signature);
        (hash, body.finish())
    }

    /// Reads and verifies a head. Gives its hash beside it.
    pub fn open(bytes: &[u8]) -> Result<(BodyHash, Self), CatalogError> {
        if bytes.len() < 64 || bytes.len() > HEAD_BYTES_MAX {
            return Err(BadBytes("length of a head").into());
        }
        let (body, signature) = bytes.split_at(bytes.len() - 64);
        let head = Self::read(body)?;
        let signature = signature.try_into().expect("split off 64 bytes");
        if !verify(&head.owner, body, signature) {
            return Err(CatalogError::Signature);
        }
        Ok((BodyHash(sha256(body)), head))
    }

    fn read(body: &[u8]) -> Result<Self, BadBytes> {
        let mut reader = Reader::new(body);
        reader.label(HEAD_LABEL)?;
        let owner = CellId(reader.array()?);
        let life = reader.u32()?;
        let seq = reader.u64()?;
        let run = reader.array()?;
        let count = reader.count(32)?;
        if count > PARENTS_MAX {
            return Err(BadBytes("too many parents"));
        }
        let parents = (0..count).map(|_| reader.array().map(BodyHash)).collect::<Result<Vec<_>, _>>()?;
        let count = reader.count(36)?;
        if count > SEGMENTS_MAX {
            return Err(BadBytes("too many segments"));
        }
        let mut segments = Vec::with_capacity(count);
        for _ in 0..count {
            let name = ChunkName(reader.array()?);
            let len = reader.u32()?;
            if len as usize > SEGMENT_BYTES_MAX {
                return Err(BadBytes("length of a segment"));
            }
            segments.push((name, len));
        }
        let extensions = read_extensions(&mut reader)?;
        reader.end()?;
        if life == 0 || seq == 0 {
            return Err(BadBytes("lives and sequences begin at 1"));
        }
        Ok(Self { owner, life, seq, run, parents, segments, extensions })
    }
}

/// What to do about a head of mine that a peer shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// I wrote it, or have merged it already.
    Known,
    /// Somebody else wrote it as me: take it in and go on in a new life.
    MergeInNewLife,
    /// It is of an older life that I had not seen when I began this one: take it in.
    Merge,
    /// A newer life is running: I am the old one, and must stop writing.
    Retire,
}

/// Judges a foreign head of mine. `known` tells whether I wrote it or have merged it.
pub fn judge(own_life: u32, foreign: &Head, known: bool) -> Verdict {
    if known {
        return Verdict::Known;
    }
    match foreign.life.cmp(&own_life) {
        std::cmp::Ordering::Less => Verdict::Merge,
        std::cmp::Ordering::Equal => Verdict::MergeInNewLife,
        std::cmp::Ordering::Greater => Verdict::Retire,
    }
}

/// Runs of segments are merged when this many of one size class stand together.
const RUNS_PER_CLASS: usize = 8;

/// A run of segments made by one publication or merge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// Bytes of its segments.
    pub bytes: u64,
}

/// Which runs, oldest first, to merge into one; `None` when there is nothing to gain.
///
/// `live_bytes` estimates what a catalog without dead records would take. Each record is written again once per size
/// class (factor 8), so a million small publications cost a handful of times their bytes.
pub fn plan_merge(runs: &[Run], live_bytes: u64) -> Option<Range<usize>> {
    let total: u64 = runs.iter().map(|run| run.bytes).sum();
    if runs.len() > 1 && total > 2 * live_bytes + 64 * 1024 {
        return Some(0..runs.len());
    }
    let class = |run: &Run| run.bytes.max(1).ilog2() / 3;
    let mut start = runs.len();
    while start > 0 {
        let end = start;
        let top = class(&runs[end - 1]);
        // Smaller runs that stand before larger ones are carried along with them.
        while start > 0 && class(&runs[start - 1]) <= top {
            start -= 1;
        }
        if end - start >= RUNS_PER_CLASS {
            return Some(start..runs.len());
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn master() -> MasterKey {
        MasterKey::from_bytes([3; 32])
    }

    fn head() -> Head {
        Head {
            owner: master().identity(0, 0).id(),
            life: 1,
            seq: 7,
            run: [4; 16],
            parents: vec![BodyHash([1; 32])],
            segments: vec![(ChunkName([2; 32]), 100), (ChunkName([3; 32]), 200)],
            extensions: vec![],
        }
    }

    #[test]
    fn segment_opens_as_it_was_written_and_for_its_owner_only() {
        let mut writer = SegmentWriter::default();
        writer.add(5, b"\x08name", b"value");
        writer.add(6, b"\x08gone", b"");
        let (name, bytes) = writer.seal(&master());
        assert_eq!(name, ChunkName(sha256(&bytes)));
        let mut seen = Vec::new();
        let plain = open_segment(&bytes, &master()).unwrap();
        read_segment(&plain, |seq, key, body| -> Result<(), CatalogError> {
            seen.push((seq, key.to_vec(), body.to_vec()));
            Ok(())
        })
        .unwrap();
        assert_eq!(seen, [(5, b"\x08name".to_vec(), b"value".to_vec()), (6, b"\x08gone".to_vec(), vec![])]);
        assert!(open_segment(&bytes, &MasterKey::from_bytes([4; 32])).is_err());
        assert!(open_segment(&bytes[..20], &master()).is_err());
    }

    #[test]
    fn full_segment_keeps_within_its_size() {
        let mut writer = SegmentWriter::default();
        let body = vec![1; 1000];
        while writer.has_room(b"\x01key", &body) {
            writer.add(1, b"\x01key", &body);
        }
        let (_, bytes) = writer.seal(&master());
        assert!(bytes.len() <= SEGMENT_BYTES_MAX && bytes.len() > SEGMENT_BYTES_MAX - 2000);
    }

    #[test]
    fn head_reads_back_and_every_flipped_byte_is_refused() {
        let (hash, bytes) = head().sign(&master().identity(0, 0));
        assert_eq!(Head::open(&bytes), Ok((hash, head())));
        for at in 0..bytes.len() {
            let mut bytes = bytes.clone();
            bytes[at] ^= 0x10;
            assert!(Head::open(&bytes).is_err(), "byte {at}");
        }
    }

    #[test]
    fn foreign_heads_are_judged_by_life() {
        let at = |life| Head { life, ..head() };
        assert_eq!(judge(2, &at(2), true), Verdict::Known);
        assert_eq!(judge(2, &at(2), false), Verdict::MergeInNewLife);
        assert_eq!(judge(2, &at(1), false), Verdict::Merge);
        assert_eq!(judge(2, &at(3), false), Verdict::Retire);
    }

    #[test]
    fn runs_stay_few_and_records_are_rewritten_seldom() {
        let mut runs: Vec<Run> = Vec::new();
        let mut written = 0;
        for _ in 0..20_000u64 {
            runs.push(Run { bytes: 1000 });
            written += 1000;
            let live: u64 = runs.iter().map(|run| run.bytes).sum();
            while let Some(range) = plan_merge(&runs, live) {
                let bytes = runs[range.clone()].iter().map(|run| run.bytes).sum();
                written += bytes;
                runs.splice(range, [Run { bytes }]);
            }
            assert!(runs.len() <= 64, "{}", runs.len());
        }
        assert!(written < 20_000 * 1000 * 8, "{written}");
    }

    #[test]
    fn dead_records_are_dropped_in_time() {
        let runs = [Run { bytes: 10_000_000 }, Run { bytes: 10_000 }];
        assert_eq!(plan_merge(&runs, 9_000_000), None);
        assert_eq!(plan_merge(&runs, 3_000_000), Some(0..2));
    }
}

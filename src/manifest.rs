//! A version of a file, symlink or folder: what it is, and the chunks it is made of.
//!
//! What is signed is a canonical binary body; its SHA-256 is the manifest's hash. Two parts of it are sealed under keys
//! of their own: the *content part* (chunk keys or a link's target) under the file key, so that a grant can pass it on,
//! and the *owner part* (name, parent, note) under the master key. Up to 1,024 entries stand inline; longer lists lie in
//! list chunks of 4,096 entries each, so a manifest stays small whatever the file. `docs/format.md` gives the bytes.

use std::fmt;

use crate::codec::{BadBytes, Reader, Writer};
use crate::id::{BodyHash, CellId, ChunkName, FileId};
use crate::keys::{FileKey, Identity, MasterKey, Secret, random, sha256, verify};
use crate::seal::{self, CHUNK_BYTES, NotOpened};

const LABEL: &str = "grove manifest v1";
const CONTENT_LABEL: &str = "grove content part v1";
const OWNER_LABEL: &str = "grove owner part v1";
const LIST_LABEL: &str = "grove list v1";
/// Entries that stand in a manifest itself, chunks and holes or list chunks.
pub const ENTRIES_INLINE_MAX: usize = 1024;
/// Entries of one list chunk.
pub const ENTRIES_PER_LIST: usize = 4096;
/// Bytes of a file or folder name (Linux's NAME_MAX).
pub const NAME_BYTES_MAX: usize = 255;
/// Bytes of a symlink's target (Linux's PATH_MAX).
pub const TARGET_BYTES_MAX: usize = 4096;
/// Bytes of an owner's note.
pub const NOTE_BYTES_MAX: usize = 4096;
/// Bytes of a whole signed manifest.
pub const MANIFEST_BYTES_MAX: usize = 256 * 1024;

/// What a manifest describes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// A regular file.
    File = 0,
    /// A symbolic link: kept as a link, never followed.
    Symlink = 1,
    /// A folder, for its mode and mtime and as the parent of others.
    Folder = 2,
}

impl Kind {
    /// The kind with this number.
    pub fn from_u8(value: u8) -> Option<Self> {
        [Self::File, Self::Symlink, Self::Folder].into_iter().find(|kind| *kind as u8 == value)
    }
}

/// A moment of a file system: seconds since 1970 (may be negative) and nanoseconds (0 to 999,999,999).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct FileTime {
    /// Seconds.
    pub s: i64,
    /// Nanoseconds.
    pub ns: u32,
}

/// One stretch of a file, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// `len` bytes (1 to 4 MiB) in a chunk.
    Chunk { name: ChunkName, key: Secret, encoding: u8, len: u32 },
    /// `len` bytes that were never written.
    Hole { len: u64 },
    /// `entries` entries for `len` bytes, in a list chunk.
    List { name: ChunkName, key: Secret, entries: u32, len: u64 },
}

impl Entry {
    /// Bytes of the file that this stretch covers.
    pub fn len(&self) -> u64 {
        match self {
            Self::Chunk { len, .. } => u64::from(*len),
            Self::Hole { len } | Self::List { len, .. } => *len,
        }
    }

    /// Never: an entry covers at least one byte.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The chunk this entry needs, if any.
    pub fn chunk(&self) -> Option<ChunkName> {
        match self {
            Self::Chunk { name, .. } | Self::List { name, .. } => Some(*name),
            Self::Hole { .. } => None,
        }
    }

    fn key(&self) -> Option<&Secret> {
        match self {
            Self::Chunk { key, .. } | Self::List { key, .. } => Some(key),
            Self::Hole { .. } => None,
        }
    }

    fn write(&self, writer: &mut Writer) {
        match self {
            Self::Chunk { name, encoding, len, .. } => {
                writer.u8(0).raw(&name.0).u8(*encoding).u32(*len);
            }
            Self::Hole { len } => {
                writer.u8(1).u64(*len);
            }
            Self::List { name, entries, len, .. } => {
                writer.u8(2).raw(&name.0).u32(*entries).u64(*len);
            }
        }
    }

    /// Reads an entry whose key is not known yet: it is all zeros.
    fn read(reader: &mut Reader<'_>) -> Result<Self, BadBytes> {
        let entry = match reader.u8()? {
            0 => Self::Chunk {
                name: ChunkName(reader.array()?),
                key: Secret([0; 32]),
                encoding: reader.u8()?,
                len: reader.u32()?,
            },
            1 => Self::Hole { len: reader.u64()? },
            2 => Self::List {
                name: ChunkName(reader.array()?),
                key: Secret([0; 32]),
                entries: reader.u32()?,
                len: reader.u64()?,
            },
            _ => return Err(BadBytes("unknown kind of entry")),
        };
        let fits = match &entry {
            Self::Chunk { len, .. } => (1..=CHUNK_BYTES as u32).contains(len),
            Self::Hole { len } => *len > 0,
            Self::List { entries, len, .. } => (1..=ENTRIES_PER_LIST as u32).contains(entries) && *len > 0,
        };
        if fits { Ok(entry) } else { Err(BadBytes("length of an entry out of range")) }
    }

    fn set_key(&mut self, new: [u8; 32]) {
        if let Self::Chunk { key, .. } | Self::List { key, .. } = self {
            *key = Secret(new);
        }
    }
}

/// The plaintext of a list chunk.
pub fn write_list(entries: &[Entry]) -> Vec<u8> {
    assert!(entries.len() <= ENTRIES_PER_LIST, "a list chunk has a fixed number of entries");
    let mut writer = Writer::with_label(LIST_LABEL);
    writer.u32(entries.len() as u32);
    for entry in entries {
        entry.write(&mut writer);
        if let Some(key) = entry.key() {
            writer.raw(&key.0);
        }
    }
    writer.finish()
}

/// The entries of an opened list chunk (zero-padded). Lists do not nest.
pub fn read_list(bytes: &[u8]) -> Result<Vec<Entry>, BadBytes> {
    let mut reader = Reader::new(bytes);
    reader.label(LIST_LABEL)?;
    let count = reader.count(9)?;
    if count > ENTRIES_PER_LIST {
        return Err(BadBytes("too many entries in a list"));
    }
    let mut entries = Vec::with_capacity(count);
    let mut covered = 0u64;
    for _ in 0..count {
        let mut entry = Entry::read(&mut reader)?;
        // Whoever adds them up finds the next ones behind the ones before.
        covered = covered.checked_add(entry.len()).ok_or(BadBytes("entries of a list are too long"))?;
        if matches!(entry, Entry::List { .. }) {
            return Err(BadBytes("a list within a list"));
        }
        if entry.key().is_some() {
            entry.set_key(reader.array()?);
        }
        entries.push(entry);
    }
    if reader.rest().iter().any(|byte| *byte != 0) {
        return Err(BadBytes("goes on after the end"));
    }
    Ok(entries)
}

/// Something a later version of Grove may add.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extension {
    /// What it is.
    pub tag: u16,
    /// Whoever does not know it must not use the record.
    pub must_understand: bool,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// Writes extensions, each with its tag, flag and length.
pub fn write_extensions(extensions: &[Extension], writer: &mut Writer) {
    writer.u8(u8::try_from(extensions.len()).expect("few extensions"));
    for extension in extensions {
        writer.u16(extension.tag).u8(u8::from(extension.must_understand)).long(&extension.bytes);
    }
}

/// Reads extensions; this version knows none, so one that must be understood is refused.
pub fn read_extensions(reader: &mut Reader<'_>) -> Result<Vec<Extension>, BadBytes> {
    let mut extensions = Vec::new();
    for _ in 0..reader.u8()? {
        let tag = reader.u16()?;
        let must_understand = match reader.u8()? {
            0 => false,
            1 => return Err(BadBytes("made by a newer Grove, which this one must be updated to read")),
            _ => return Err(BadBytes("flag of an extension")),
        };
        extensions.push(Extension { tag, must_understand, bytes: reader.long()?.to_vec() });
    }
    Ok(extensions)
}

/// What only the owner reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnerPart {
    /// The folder it lies in.
    pub parent: FileId,
    /// Its name there: 1 to 255 bytes, no `/`, no NUL, not `.` or `..`; UTF-8 or not.
    pub name: Vec<u8>,
    /// A note of the owner.
    pub note: String,
}

/// A version, with everything its owner knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// Who made it.
    pub owner: CellId,
    /// Random, the same over all versions.
    pub file: FileId,
    /// From 1 up.
    pub version: u64,
    /// The owner's life in which it was made.
    pub life: u32,
    /// The version deletes the file.
    pub tombstone: bool,
    /// File, symlink or folder.
    pub kind: Kind,
    /// Hash of the version before.
    pub previous: Option<BodyHash>,
    /// Which tree: 0 is GroveHome.
    pub root: u32,
    /// Bytes of the file.
    pub size: u64,
    /// Modified.
    pub mtime: FileTime,
    /// Permission bits (0 to 0o7777).
    pub mode: u32,
    /// The same for all hard links of one file.
    pub link_group: Option<[u8; 16]>,
    /// From which the file key is made.
    pub salt: [u8; 16],
    /// Epoch of the chunks' keys.
    pub epoch: u32,
    /// The stretches of a file in order, inline or in lists.
    pub entries: Vec<Entry>,
    /// A symlink's target.
    pub target: Vec<u8>,
    /// Name, parent, note.
    pub owner_part: OwnerPart,
    /// From later versions of Grove, ignorable.
    pub extensions: Vec<Extension>,
}

/// A manifest's signed bytes and their hash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedManifest {
    /// Body and signature.
    pub bytes: Vec<u8>,
    /// SHA-256 of the body.
    pub hash: BodyHash,
}

/// Why a manifest is not accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ManifestError {
    /// Not the bytes of a manifest.
    Bytes(BadBytes),
    /// Not signed by the owner it names.
    Signature,
    /// A sealed part does not open.
    Sealed(NotOpened),
    /// The file key is not the one committed to.
    Commitment,
}

impl fmt::Display for ManifestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes(why) => write!(f, "no manifest: {why}"),
            Self::Signature => f.write_str("manifest not signed by its owner"),
            Self::Sealed(why) => write!(f, "manifest: {why}"),
            Self::Commitment => f.write_str("manifest commits to another file key"),
        }
    }
}

impl std::error::Error for ManifestError {}

impl From<BadBytes> for ManifestError {
    fn from(why: BadBytes) -> Self {
        Self::Bytes(why)
    }
}

impl From<NotOpened> for ManifestError {
    fn from(why: NotOpened) -> Self {
        Self::Sealed(why)
    }
}

const TOMBSTONE: u8 = 1;
const HAS_PREVIOUS: u8 = 2;
const HAS_LINK_GROUP: u8 = 4;

/// Whether `name` can be the name of one thing in a folder.
pub fn is_name(name: &[u8]) -> bool {
    (1..=NAME_BYTES_MAX).contains(&name.len())
        && !name.iter().any(|byte| matches!(byte, b'/' | 0))
        && name != b"."
        && name != b".."
}

impl Manifest {
    /// Seals the private parts under fresh randomness and signs the whole.
    pub fn sign(&self, identity: &Identity, master: &MasterKey) -> SignedManifest {
        debug_assert_eq!(self.owner, identity.id());
        assert!(self.entries.len() <= ENTRIES_INLINE_MAX && self.owner_part.note.len() <= NOTE_BYTES_MAX);
        let random: [u8; 32] = random();
        let file_key = master.file_key(&self.salt);
        let content = self.content();
        let content = if content.is_empty() {
            content
        } else {
            seal::seal_part(&file_key.content_part_key(&random), CONTENT_LABEL, &content)
        };
        let mut owner_part = Writer::new();
        owner_part
            .raw(&self.owner_part.parent.0)
            .short(&self.owner_part.name)
            .long(self.owner_part.note.as_bytes());
        let owner_part = seal::seal_part(&master.owner_part_key(&random), OWNER_LABEL, owner_part.as_slice());

        let mut body = Writer::with_label(LABEL);
        body.raw(&self.owner.0).raw(&self.file.0).u64(self.version).u32(self.life);
        let flags = u8::from(self.tombstone) * TOMBSTONE
            + u8::from(self.previous.is_some()) * HAS_PREVIOUS
            + u8::from(self.link_group.is_some()) * HAS_LINK_GROUP;
        body.u8(flags).u8(self.kind as u8);
        if let Some(previous) = &self.previous {
            body.raw(&previous.0);
        }
        body.u32(self.root).u64(self.size).i64(self.mtime.s).u32(self.mtime.ns).u32(self.mode);
        if let Some(group) = &self.link_group {
            body.raw(group);
        }
        body.raw(&self.salt).raw(&file_key.commitment()).u32(self.epoch);
        body.u32(self.entries.len() as u32);
        for entry in &self.entries {
            entry.write(&mut body);
        }
        body.raw(&random).long(&content).long(&owner_part);
        write_extensions(&self.extensions, &mut body);
        let hash = BodyHash(sha256(body.as_slice()));
        let signature = identity.sign(body.as_slice());
        body.raw(&signature);
        SignedManifest { bytes: body.finish(), hash }
    }

    /// Keys of the entries that have one, or a symlink's target.
    fn content(&self) -> Vec<u8> {
        match self.kind {
            Kind::Symlink => self.target.clone(),
            _ => self.entries.iter().filter_map(Entry::key).flat_map(|key| key.0).collect(),
        }
    }

    /// Opens an own manifest. `check` the signature where the bytes come from a peer or a stranger's disk.
    pub fn open(bytes: &[u8], master: &MasterKey, check: Check) -> Result<Self, ManifestError> {
        let parsed = Parsed::read(bytes)?;
        if check == Check::Signature && !parsed.is_signed() {
            return Err(ManifestError::Signature);
        }
        let file_key = master.file_key(&parsed.salt);
        let owner_part =
            seal::open_part(&master.owner_part_key(&parsed.random), OWNER_LABEL, parsed.owner_part)?;
        let mut reader = Reader::new(&owner_part);
        let owner_part = OwnerPart {
            parent: FileId(reader.array()?),
            name: reader.short()?.to_vec(),
            note: String::from_utf8(reader.long()?.to_vec()).map_err(|_| BadBytes("a note is UTF-8"))?,
        };
        reader.end()?;
        if !is_name(&owner_part.name) {
            return Err(BadBytes("no name of a file").into());
        }
        parsed.finish(&file_key, owner_part)
    }

    /// Chunks that the manifest itself names: data chunks and list chunks.
    pub fn chunks(&self) -> impl Iterator<Item = ChunkName> + '_ {
        self.entries.iter().filter_map(Entry::chunk)
    }
}

/// What a recipient of a grant reads of a manifest: all but the owner's part, and signed by the owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SharedManifest {
    /// SHA-256 of the body.
    pub hash: BodyHash,
    /// Who signed it.
    pub owner: CellId,
    /// The file's id.
    pub file: FileId,
    /// From 1 up.
    pub version: u64,
    /// The version deletes the file.
    pub tombstone: bool,
    /// File, symlink or folder.
    pub kind: Kind,
    /// Bytes of the file.
    pub size: u64,
    /// Modified.
    pub mtime: FileTime,
    /// Permission bits.
    pub mode: u32,
    /// To the file key.
    pub commitment: [u8; 32],
    /// The stretches of the file with their keys.
    pub entries: Vec<Entry>,
}

/// Whether a signature is verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Check {
    /// It is.
    Signature,
    /// It was, when the bytes came into the own database.
    Trusted,
}

/// What anyone can read of a manifest, without keys.
pub struct Parsed<'a> {
    body: &'a [u8],
    signature: [u8; 64],
    owner: CellId,
    /// The file's id.
    pub file: FileId,
    /// From 1 up.
    pub version: u64,
    life: u32,
    /// The version deletes the file.
    pub tombstone: bool,
    kind: Kind,
    previous: Option<BodyHash>,
    root: u32,
    size: u64,
    mtime: FileTime,
    mode: u32,
    link_group: Option<[u8; 16]>,
    salt: [u8; 16],
    commitment: [u8; 32],
    epoch: u32,
    entries: Vec<Entry>,
    random: [u8; 32],
    content: &'a [u8],
    owner_part: &'a [u8],
    extensions: Vec<Extension>,
}

impl<'a> Parsed<'a> {
    /// Reads body and signature; the signature is not verified yet.
    pub fn read(bytes: &'a [u8]) -> Result<Self, BadBytes> {
        if bytes.len() > MANIFEST_BYTES_MAX || bytes.len() < 64 {
            return Err(BadBytes("length of a manifest"));
        }
        let (body, signature) = bytes.split_at(bytes.len() - 64);
        let mut reader = Reader::new(body);
        reader.label(LABEL)?;
        let owner = CellId(reader.array()?);
        let file = FileId(reader.array()?);
        let version = reader.u64()?;
        let life = reader.u32()?;
        let flags = reader.u8()?;
        if flags >= 8 {
            return Err(BadBytes("flags of a manifest"));
        }
        let kind = Kind::from_u8(reader.u8()?).ok_or(BadBytes("kind of a manifest"))?;
        let previous = if flags & HAS_PREVIOUS != 0 { Some(BodyHash(reader.array()?)) } else { None };
        let root = reader.u32()?;
        let size = reader.u64()?;
        let mtime = FileTime { s: reader.i64()?, ns: reader.u32()? };
        let mode = reader.u32()?;
        if mtime.ns >= 1_000_000_000 || mode > 0o7777 {
            return Err(BadBytes("time or mode out of range"));
        }
        let link_group = if flags & HAS_LINK_GROUP != 0 { Some(reader.array()?) } else { None };
        let salt = reader.array()?;
        let commitment = reader.array()?;
        let epoch = reader.u32()?;
        let count = reader.count(9)?;
        if count > ENTRIES_INLINE_MAX || (count > 0 && (kind != Kind::File || flags & TOMBSTONE != 0)) {
            return Err(BadBytes("number of entries"));
        }
        let entries = (0..count).map(|_| Entry::read(&mut reader)).collect::<Result<Vec<_>, _>>()?;
        let covered = entries.iter().try_fold(0u64, |sum, entry| sum.checked_add(entry.len()));
        let expected = if kind == Kind::File && flags & TOMBSTONE == 0 { size } else { 0 };
        if covered != Some(expected) {
            return Err(BadBytes("entries do not add up to the size"));
        }
        let random = reader.array()?;
        let content = reader.long()?;
        let owner_part = reader.long()?;
        let extensions = read_extensions(&mut reader)?;
        reader.end()?;
        Ok(Self {
            body,
            signature: signature.try_into().expect("split off 64 bytes"),
            owner,
            file,
            version,
            life,
            tombstone: flags & TOMBSTONE != 0,
            kind,
            previous,
            root,
            size,
            mtime,
            mode,
            link_group,
            salt,
            commitment,
            epoch,
            entries,
            random,
            content,
            owner_part,
            extensions,
        })
    }

    /// Whether the owner it names signed it.
    pub fn is_signed(&self) -> bool {
        verify(&self.owner, self.body, &self.signature)
    }

    /// SHA-256 of the body.
    pub fn hash(&self) -> BodyHash {
        BodyHash(sha256(self.body))
    }

    /// Chunks it names; no key is needed for that.
    pub fn chunks(&self) -> impl Iterator<Item = ChunkName> + '_ {
        self.entries.iter().filter_map(Entry::chunk)
    }

    /// Whether some of its chunks stand in list chunks.
    pub fn has_lists(&self) -> bool {
        self.entries.iter().any(|entry| matches!(entry, Entry::List { .. }))
    }

    /// What whoever has the file key reads of it. Fails unless the owner it names signed it.
    pub fn open_shared(mut self, file_key: &FileKey) -> Result<SharedManifest, ManifestError> {
        if !self.is_signed() {
            return Err(ManifestError::Signature);
        }
        let hash = self.hash();
        self.open_content(file_key)?;
        Ok(SharedManifest {
            hash,
            owner: self.owner,
            file: self.file,
            version: self.version,
            tombstone: self.tombstone,
            kind: self.kind,
            size: self.size,
            mtime: self.mtime,
            mode: self.mode,
            commitment: self.commitment,
            entries: self.entries,
        })
    }

    /// Opens the content part with the file key: the entries get their keys, and a symlink's target is given back.
    fn open_content(&mut self, file_key: &FileKey) -> Result<Vec<u8>, ManifestError> {
        if file_key.commitment() != self.commitment {
            return Err(ManifestError::Commitment);
        }
        let content = if self.content.is_empty() {
            Vec::new()
        } else {
            seal::open_part(&file_key.content_part_key(&self.random), CONTENT_LABEL, self.content)?
        };
        if self.kind == Kind::Symlink {
            if content.len() > TARGET_BYTES_MAX {
                return Err(BadBytes("target of a link").into());
            }
            return Ok(content);
        }
        let mut reader = Reader::new(&content);
        for entry in &mut self.entries {
            if entry.key().is_some() {
                entry.set_key(reader.array()?);
            }
        }
        reader.end()?;
        Ok(Vec::new())
    }

    fn finish(mut self, file_key: &FileKey, owner_part: OwnerPart) -> Result<Manifest, ManifestError> {
        let target = self.open_content(file_key)?;
        Ok(Manifest {
            owner: self.owner,
            file: self.file,
            version: self.version,
            life: self.life,
            tombstone: self.tombstone,
            kind: self.kind,
            previous: self.previous,
            root: self.root,
            size: self.size,
            mtime: self.mtime,
            mode: self.mode,
            link_group: self.link_group,
            salt: self.salt,
            epoch: self.epoch,
            entries: self.entries,
            target,
            owner_part,
            extensions: self.extensions,
        })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A friend's list whose bytes wrapped around would have a later chunk lie before an earlier one.
    #[test]
    fn a_list_that_is_longer_than_any_file_is_refused() {
        let hole = |len: u64| Entry::Hole { len };
        assert!(read_list(&write_list(&[hole(u64::MAX - 7), hole(7)])).is_ok());
        assert!(read_list(&write_list(&[hole(u64::MAX - 7), hole(8)])).is_err());
        assert!(read_list(&write_list(&[hole(1 << 63), hole(1 << 63), hole(5)])).is_err());
    }

    pub(crate) fn master() -> MasterKey {
        MasterKey::from_bytes([3; 32])
    }

    pub(crate) fn sample() -> Manifest {
        Manifest {
            owner: master().identity(0, 0).id(),
            file: FileId([5; 16]),
            version: 2,
            life: 1,
            tombstone: false,
            kind: Kind::File,
            previous: Some(BodyHash([8; 32])),
            root: 0,
            size: 70_000 + 4096,
            mtime: FileTime { s: -5, ns: 999_999_999 },
            mode: 0o4644,
            link_group: Some([9; 16]),
            salt: [6; 16],
            epoch: 0,
            entries: vec![
                Entry::Chunk { name: ChunkName([1; 32]), key: Secret([2; 32]), encoding: 0, len: 70_000 },
                Entry::Hole { len: 4096 },
            ],
            target: Vec::new(),
            owner_part: OwnerPart { parent: FileId::ROOT, name: b"caf\xe9.txt".to_vec(), note: "x".into() },
            extensions: vec![Extension { tag: 9, must_understand: false, bytes: vec![1] }],
        }
    }

    #[test]
    fn manifest_opens_as_it_was_signed() {
        let signed = sample().sign(&master().identity(0, 0), &master());
        assert_eq!(Manifest::open(&signed.bytes, &master(), Check::Signature), Ok(sample()));
        let parsed = Parsed::read(&signed.bytes).unwrap();
        assert_eq!(parsed.hash(), signed.hash);
        assert_eq!(parsed.chunks().collect::<Vec<_>>(), [ChunkName([1; 32])]);
    }

    #[test]
    fn symlink_keeps_its_target() {
        let link =
            Manifest { kind: Kind::Symlink, entries: vec![], target: b"../x\xff".to_vec(), ..sample() };
        let signed = link.sign(&master().identity(0, 0), &master());
        assert_eq!(Manifest::open(&signed.bytes, &master(), Check::Signature), Ok(link));
    }

    #[test]
    fn every_flipped_byte_is_refused() {
        let signed = sample().sign(&master().identity(0, 0), &master());
        for at in 0..signed.bytes.len() {
            let mut bytes = signed.bytes.clone();
            bytes[at] ^= 0x40;
            assert!(Manifest::open(&bytes, &master(), Check::Signature).is_err(), "byte {at}");
        }
    }

    #[test]
    fn nothing_private_stands_in_the_clear() {
        let signed = sample().sign(&master().identity(0, 0), &master());
        assert!(!signed.bytes.windows(3).any(|three| three == b"caf"));
        assert!(!signed.bytes.windows(32).any(|key| key == [2; 32]));
    }

    #[test]
    fn unknown_extension_that_must_be_understood_is_refused() {
        let mut manifest = sample();
        manifest.extensions[0].must_understand = true;
        let signed = manifest.sign(&master().identity(0, 0), &master());
        assert!(matches!(
            Manifest::open(&signed.bytes, &master(), Check::Signature),
            Err(ManifestError::Bytes(_))
        ));
    }

    #[test]
    fn list_reads_back_and_does_not_nest() {
        let entries = sample().entries;
        let mut bytes = write_list(&entries);
        bytes.resize(bytes.len() + 100, 0);
        assert_eq!(read_list(&bytes), Ok(entries));
        let nested =
            write_list(&[Entry::List { name: ChunkName([1; 32]), key: Secret([2; 32]), entries: 1, len: 1 }]);
        assert!(read_list(&nested).is_err());
    }

    #[test]
    fn names_that_are_paths_are_no_names() {
        for bad in [&b""[..], b".", b"..", b"a/b", b"a\0", &[b'x'; 256]] {
            assert!(!is_name(bad));
        }
        assert!(is_name(&[b'x'; 255]) && is_name(b"\xff\xfe") && is_name(b"..."));
    }
}

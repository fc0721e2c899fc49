//! Sealed chunks by name. Knows nothing of keys, manifests, peers or the index that says what lies where.
//!
//! Promise: what `commit` reported survives a power cut, and bytes handed out by `get` hash to the name
//! asked for, or the answer is an error that says this copy is lost.
//!
//! Everything here blocks: callers run it on the blocking pool and share a store through `Arc`.

mod disk;
mod memory;
mod pack;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::id::{BadId, ChunkName, hex, unhex};

pub use disk::{DiskStore, is_made};
pub use memory::MemoryStore;

/// Chunks shorter than this may lie in packs; longer ones always have a file of their own.
pub const SMALL_BYTES: usize = 128 << 10;
/// So many small chunks in one commit go into a pack; fewer are not worth one.
pub const PACK_BATCH_MIN: usize = 32;
/// One call of `rewrite` copies about so many bytes at most.
pub const REWRITE_BYTES: u64 = 4 << 20;
/// One call of `rewrite` copies so many chunks at most.
pub const REWRITE_CHUNKS: usize = 4096;

/// A pack: random, below 2^63 so that it fits a signed column.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PackId(pub u64);

impl fmt::Display for PackId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0.to_be_bytes()))
    }
}

impl FromStr for PackId {
    type Err = BadId;

    fn from_str(text: &str) -> Result<Self, BadId> {
        let bytes = unhex(text).and_then(|bytes| bytes.try_into().ok()).ok_or(BadId)?;
        Ok(Self(u64::from_be_bytes(bytes)))
    }
}

/// Where a chunk lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Place {
    /// In a file of its own.
    Loose,
    /// In a pack; `offset` is that of the first sealed byte in the pack's file.
    Pack { pack: PackId, offset: u64 },
}

/// A chunk that lies here. `len` is in sealed bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    pub name: ChunkName,
    pub place: Place,
    pub len: u32,
}

impl Held {
    fn moved_to(&self, to: Place) -> Moved {
        Moved { name: self.name, from: self.place, to, len: self.len }
    }
}

/// A pack and its size. `bytes` counts the file, dead entries and heads included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PackInfo {
    pub id: PackId,
    pub bytes: u64,
    /// New chunks may still be appended. Once false, never true again until the next start.
    pub is_open: bool,
}

/// The disk below the store, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FreeSpace {
    /// Size of the file system.
    pub total: u64,
    /// What this process may still write there.
    pub free: u64,
    /// How much of `free` new data never gets.
    pub reserve: u64,
}

/// A live chunk that `rewrite` has copied: the index now should say `to`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moved {
    pub name: ChunkName,
    pub from: Place,
    pub to: Place,
    pub len: u32,
}

/// What one call of `rewrite` did.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Rewritten {
    /// Durable in their new places, in the order they came.
    pub moved: Vec<Moved>,
    /// Gone or damaged where they were said to be; not copied.
    pub damaged: Vec<Held>,
    /// The iterator had nothing more to give.
    pub is_done: bool,
}

/// Sizes a store keeps to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoreLimits {
    /// Free space never used, in percent of the file system; 0 to 100.
    pub reserve_percent: u8,
    /// Free space never used, at least so many bytes.
    pub reserve_bytes_min: u64,
    /// Damaged chunks kept for a look; the oldest go first.
    pub quarantine_bytes_max: u64,
    /// A pack is closed before it grows beyond this; at most 64 MiB.
    pub pack_bytes_max: u64,
}

impl Default for StoreLimits {
    fn default() -> Self {
        Self {
            reserve_percent: 5,
            reserve_bytes_min: 256 << 20,
            quarantine_bytes_max: 64 << 20,
            pack_bytes_max: pack::PACK_BYTES_MAX,
        }
    }
}

/// A chunk on its way in: not durable and not visible. Dropped without a commit it leaves nothing behind.
#[derive(Debug)]
pub struct Staged {
    name: ChunkName,
    len: u32,
    body: Body,
    /// The store's count of failed syncs, or of power cuts, when this was staged.
    epoch: u64,
}

#[derive(Debug)]
enum Body {
    Memory(Vec<u8>),
    File(disk::TempFile),
}

impl Staged {
    /// The name given at `stage`.
    pub fn name(&self) -> ChunkName {
        self.name
    }

    /// Sealed bytes.
    pub fn sealed_len(&self) -> u32 {
        self.len
    }

    fn is_small(&self) -> bool {
        (self.len as usize) < SMALL_BYTES
    }
}

/// Keeps sealed chunks by name.
///
/// All calls may come from several threads at once. Two copies of one chunk are harmless; which copy
/// counts is for the caller's index to say.
pub trait ChunkStore: Send + Sync {
    /// Takes in the sealed bytes of a chunk. The caller has hashed them already: `name` is believed.
    ///
    /// Small chunks stay in memory until `commit`, larger ones are on their way to the disk when this returns.
    fn stage(&self, name: ChunkName, sealed: &[u8]) -> Result<Staged, StoreError>;

    /// Like `stage`, and may use half of the reserve: for the catalog, without which nothing could be freed either.
    fn stage_urgent(&self, name: ChunkName, sealed: &[u8]) -> Result<Staged, StoreError>;

    /// Makes chunks durable with few syncs, and says where each lies, in order.
    ///
    /// After an error nothing may be relied on, and every chunk of the batch has to be staged again;
    /// some may be there already, which is harmless.
    fn commit(&self, staged: Vec<Staged>) -> Result<Vec<Place>, StoreError>;

    /// The `len` bytes at `place`, unverified: for holders that pass them on to someone who verifies.
    fn read(&self, name: ChunkName, place: Place, len: u32) -> Result<Vec<u8>, StoreError>;

    /// The `len` bytes at `place`, proved by their SHA-256 to be the chunk `name`.
    fn get(&self, name: ChunkName, place: Place, len: u32) -> Result<Vec<u8>, StoreError> {
        let bytes = self.read(name, place, len)?;
        if crate::keys::sha256(&bytes) == name.0 {
            return Ok(bytes);
        }
        Err(StoreError::Corrupt { name, path: self.path_of(name, place) })
    }

    /// Whether something of this name and length is at `place`. Its bytes are not looked at.
    fn contains(&self, name: ChunkName, place: Place, len: u32) -> bool;

    /// Deletes a loose chunk; absent ones are fine, and a full disk is no obstacle.
    ///
    /// In a pack nothing happens: the caller counts dead bytes, and `rewrite` brings the space back.
    /// A power cut may undo a removal.
    fn remove(&self, name: ChunkName, place: Place) -> Result<(), StoreError>;

    /// Puts the damaged bytes at `place` aside for a look, as far as there is room.
    ///
    /// A loose chunk leaves its place unless it proves sound after all; a packed one is copied.
    fn quarantine(&self, name: ChunkName, place: Place, len: u32) -> Result<(), StoreError>;

    /// Shows every chunk that lies here, loose ones first, without looking at contents and in flat memory.
    ///
    /// A chunk may come more than once, in several places. Ends early with the error that `see` returns.
    fn scan(&self, see: &mut See<'_>) -> Result<(), StoreError>;

    /// Shows every chunk of one pack, live or dead, in the order they lie.
    fn scan_pack(&self, pack: PackId, see: &mut See<'_>) -> Result<(), StoreError>;

    /// All packs, by id.
    fn packs(&self) -> Result<Vec<PackInfo>, StoreError>;

    /// Closes a pack: nothing is appended to it any more until the next start.
    ///
    /// First step of rewriting a pack; list its live chunks only after this.
    fn retire_pack(&self, pack: PackId) -> Result<(), StoreError>;

    /// Copies the next live chunks into the open pack, verified, durably, and in bounded memory; they may
    /// come from closed packs or be loose ones grown cold. Call it until `is_done`.
    ///
    /// After each call the caller updates its index, durably, and only then calls `remove` or `remove_pack`.
    /// Chunks too long for a pack stay where they are and are not in the answer. It may use half of the
    /// reserve: on a full disk this is what gives space back.
    fn rewrite(&self, live: &mut dyn Iterator<Item = Held>) -> Result<Rewritten, StoreError>;

    /// Deletes a pack with everything in it; an absent one is fine, an open one is refused.
    fn remove_pack(&self, pack: PackId) -> Result<(), StoreError>;

    /// How full the disk is.
    fn free(&self) -> Result<FreeSpace, StoreError>;

    /// The file that `place` means, for messages.
    fn path_of(&self, name: ChunkName, place: Place) -> PathBuf;
}

/// Reads the next live chunks for a rewrite: those that are sound, and in `done` those that are not.
fn gather(
    store: &dyn ChunkStore,
    live: &mut dyn Iterator<Item = Held>,
    done: &mut Rewritten,
    refuse_open: &dyn Fn(PackId) -> Result<(), StoreError>,
) -> Result<Vec<(Held, Vec<u8>)>, StoreError> {
    let mut sound = Vec::new();
    let mut bytes = 0;
    while bytes < REWRITE_BYTES && sound.len() + done.damaged.len() < REWRITE_CHUNKS {
        let Some(held) = live.next() else {
            done.is_done = true;
            break;
        };
        if held.len as usize >= SMALL_BYTES {
            continue;
        }
        if let Place::Pack { pack, .. } = held.place {
            refuse_open(pack)?;
        }
        match store.get(held.name, held.place, held.len) {
            Ok(sealed) => {
                bytes += u64::from(held.len);
                sound.push((held, sealed));
            }
            Err(error) if error.is_loss() => done.damaged.push(held),
            Err(error) => return Err(error),
        }
    }
    Ok(sound)
}

/// Takes what a scan finds.
pub type See<'a> = dyn FnMut(Held) -> Result<(), StoreError> + 'a;

/// What went wrong with a chunk or its place.
#[derive(Debug)]
pub enum StoreError {
    /// Nothing is there.
    Missing { name: ChunkName, path: PathBuf },
    /// Something of another length is there, or ends too early.
    WrongLength { name: ChunkName, path: PathBuf, expected: u64, found: u64 },
    /// The bytes there do not hash to the name.
    Corrupt { name: ChunkName, path: PathBuf },
    /// The disk is full, or would be down to its reserve. All in bytes.
    Full { path: PathBuf, free: u64, needed: u64, reserve: u64 },
    /// The pack is still being written to.
    PackOpen { pack: PackId, path: PathBuf },
    /// The folder of chunks is not the one that was opened: all of it is away, and nothing of it counts as lost.
    Away { path: PathBuf },
    /// The system refused; `doing` fits after "while".
    Io { doing: &'static str, path: PathBuf, error: io::Error },
}

impl StoreError {
    /// The same call may work later: space or file handles may be free again, or the disk be back, by then.
    pub fn is_temporary(&self) -> bool {
        use io::ErrorKind::{Interrupted, OutOfMemory, ResourceBusy, WouldBlock};
        match self {
            Self::Full { .. } | Self::PackOpen { .. } | Self::Away { .. } => true,
            Self::Io { error, .. } => {
                let handles = [libc::EMFILE, libc::ENFILE].map(Some);
                matches!(error.kind(), Interrupted | OutOfMemory | ResourceBusy | WouldBlock)
                    || handles.contains(&error.raw_os_error())
            }
            Self::Missing { .. } | Self::WrongLength { .. } | Self::Corrupt { .. } => false,
        }
    }

    /// This copy is gone, damaged or unreadable: only another copy helps.
    pub fn is_loss(&self) -> bool {
        match self {
            Self::Missing { .. } | Self::WrongLength { .. } | Self::Corrupt { .. } => true,
            Self::Io { error, .. } => error.raw_os_error() == Some(libc::EIO),
            Self::Full { .. } | Self::PackOpen { .. } | Self::Away { .. } => false,
        }
    }

    fn io(doing: &'static str, path: &Path, error: impl Into<io::Error>) -> Self {
        Self::Io { doing, path: path.to_path_buf(), error: error.into() }
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing { name, path } => {
                write!(f, "chunk {name} is not in {}; run `grove verify` to fetch a copy", path.display())
            }
            Self::WrongLength { name, path, expected, found } => write!(
                f,
                "chunk {name} in {} has {found} bytes instead of {expected}; run `grove verify` to fetch a good copy",
                path.display()
            ),
            Self::Corrupt { name, path } => write!(
                f,
                "chunk {name} in {} is damaged; run `grove verify` to fetch a good copy",
                path.display()
            ),
            Self::Full { path, free, needed, reserve } => write!(
                f,
                "no room for {needed} more bytes in {}: {free} bytes are free and {reserve} stay in reserve; \
                 delete something on that disk or lower the reserve in config.json",
                path.display()
            ),
            Self::PackOpen { pack, path } => write!(
                f,
                "pack {pack} in {} is still written to; retire it before rewriting or removing it",
                path.display()
            ),
            Self::Away { path } => write!(
                f,
                "the folder of chunks, {}, is not there any more, or is another; {}",
                path.display(),
                away_remedy(path)
            ),
            Self::Io { doing, path, error } => write!(
                f,
                "{error} while {doing} {}; check the disk and the permissions of its folder",
                path.display()
            ),
        }
    }
}

/// What a person does about a folder of chunks that is away.
pub fn away_remedy(dir: &Path) -> String {
    let packs = disk::packs_of(dir);
    format!(
        "connect its disk, or put the folder back, and start the cell again: nothing counts as lost until then. If it is gone for \
         good, stop the cell, run `mkdir -p {}`, start it, and run `grove verify`: what peers have is fetched from them",
        packs.display()
    )
}

impl std::error::Error for StoreError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io { error, .. } => Some(error),
            _ => None,
        }
    }
}

#[cfg(test)]
pub(crate) mod promises;

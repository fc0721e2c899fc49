//! A cell's card, signed: who it is and where it can be reached. And the invite that brings two cells together.
//!
//! Promise: what parses is within its limits, verified, and writes back the same bytes.

use std::fmt;
use std::ops::Deref;
use std::str::FromStr;

use crate::codec::{BadBytes, Reader, Writer};
use crate::id::CellId;
use crate::keys::{self, Identity, Secret};

/// Whole card, in bytes.
pub const CARD_BYTES_MAX: usize = 8 * 1024;
/// A cell's name, in bytes of UTF-8; at least one.
pub const NAME_BYTES_MAX: usize = 64;
/// Addresses in a card.
pub const ADDRESSES_MAX: usize = 16;
/// Relays in a card.
pub const RELAYS_MAX: usize = 8;
/// One address or relay, in bytes.
pub const ADDRESS_BYTES_MAX: usize = 255;
/// Extensions in a card.
pub const EXTENSIONS_MAX: usize = 16;
/// Bytes of one extension.
pub const EXTENSION_BYTES_MAX: usize = 2048;

const CARD_LABEL: &str = "grove card v1";
const SUCCESSOR_LABEL: &str = "grove successor v1";
const INVITE_LABEL: &str = "grove invite v1";
const INVITE_PREFIX: &str = "grove:";
const INVITE_VERSION: u8 = 1;
const INVITE_BYTES_MAX: usize = 4096;

/// What a card says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CardBody {
    /// The cell's Ed25519 key.
    pub id: CellId,
    /// Its X25519 key for Noise.
    pub x25519: [u8; 32],
    /// What its owner calls it: 1 to 64 bytes without control characters.
    pub name: String,
    /// Where it listens: `host:port` each, at most 16, best first.
    pub addresses: Vec<String>,
    /// Relays it waits at: URLs, at most 8.
    pub relays: Vec<String>,
    /// Of two cards of one cell the higher sequence holds.
    pub sequence: u64,
    /// The identity that takes over from this one.
    pub successor: Option<Successor>,
    /// Fields of later versions.
    pub extensions: Vec<Extension>,
}

/// The identity that takes over, which has agreed to by its own signature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Successor {
    id: CellId,
    signature: [u8; 64],
}

impl Successor {
    /// `next` takes over from `old`.
    pub fn sign(next: &Identity, old: &CellId) -> Self {
        Self { id: next.id(), signature: next.sign(&Self::body(old)) }
    }

    /// The key that takes over.
    pub fn id(&self) -> CellId {
        self.id
    }

    fn body(old: &CellId) -> Vec<u8> {
        let mut body = Writer::with_label(SUCCESSOR_LABEL);
        body.raw(&old.0);
        body.finish()
    }
}

/// A field that this version does not know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extension {
    /// What it is.
    pub tag: u16,
    /// Whoever does not know the tag must refuse the card.
    pub must_understand: bool,
    /// At most 2,048 bytes.
    pub bytes: Vec<u8>,
}

/// A body with its cell's signature, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Card {
    body: CardBody,
    signature: [u8; 64],
}

impl Deref for Card {
    type Target = CardBody;

    fn deref(&self) -> &CardBody {
        &self.body
    }
}

/// Why a card is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CardError {
    /// Not a card, or over a limit.
    Malformed(&'static str),
    /// The key of the card is one that anybody can sign for.
    WeakKey,
    /// The signature of the cell, or of its successor, does not fit.
    BadSignature,
    /// It has an extension that must be understood and is not: the peer is newer.
    TooNew(u16),
}

impl fmt::Display for CardError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed(what) => write!(f, "malformed card: {what}"),
            Self::WeakKey => f.write_str("the card's key is not a sound one"),
            Self::BadSignature => f.write_str("the card's signature is wrong"),
            Self::TooNew(tag) => {
                write!(f, "the card needs a newer version of grove (extension {tag}); update this cell")
            }
        }
    }
}

impl std::error::Error for CardError {}

impl From<BadBytes> for CardError {
    fn from(error: BadBytes) -> Self {
        Self::Malformed(error.0)
    }
}

impl Card {
    /// Signs `body`; fails if it is over a limit or its keys are not `identity`'s.
    pub fn sign(identity: &Identity, body: CardBody) -> Result<Self, CardError> {
        body.check()?;
        if body.id != identity.id() || body.x25519 != *identity.x_public() {
            return Err(CardError::Malformed("the keys are another cell's"));
        }
        let signed = body.to_signed_bytes();
        if signed.len() + 64 > CARD_BYTES_MAX {
            return Err(CardError::Malformed("longer than a card may be"));
        }
        Ok(Self { signature: identity.sign(&signed), body })
    }

    /// The form that travels and is kept.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = self.body.to_signed_bytes();
        bytes.extend_from_slice(&self.signature);
        bytes
    }

    /// A card from anywhere: checks limits, keys and signatures.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, CardError> {
        if bytes.len() > CARD_BYTES_MAX {
            return Err(CardError::Malformed("longer than a card may be"));
        }
        let (signed, signature) = bytes.split_last_chunk::<64>().ok_or(CardError::Malformed("ends early"))?;
        let body = CardBody::read(signed)?;
        body.check()?;
        if !keys::is_sound(&body.id) {
            return Err(CardError::WeakKey);
        }
        if !keys::verify(&body.id, signed, signature) {
            return Err(CardError::BadSignature);
        }
        if let Some(next) = &body.successor {
            let agreed = Successor::body(&body.id);
            if !keys::is_sound(&next.id) || !keys::verify(&next.id, &agreed, &next.signature) {
                return Err(CardError::BadSignature);
            }
        }
        match body.extensions.iter().find(|extension| extension.must_understand) {
            Some(extension) => Err(CardError::TooNew(extension.tag)),
            None => Ok(Self { body, signature: *signature }),
        }
    }
}

impl CardBody {
    /// Every limit that is not a matter of keys.
    fn check(&self) -> Result<(), CardError> {
        if self.name.is_empty() || self.name.len() > NAME_BYTES_MAX {
            return Err(CardError::Malformed("a name has 1 to 64 bytes"));
        }
        if self.name.chars().any(char::is_control) {
            return Err(CardError::Malformed("a name has no control characters"));
        }
        if self.addresses.len() > ADDRESSES_MAX {
            return Err(CardError::Malformed("too many addresses"));
        }
        if self.relays.len() > RELAYS_MAX {
            return Err(CardError::Malformed("too many relays"));
        }
        if !self.addresses.iter().all(|address| is_address(address)) {
            return Err(CardError::Malformed("an address is host:port"));
        }
        if !self.relays.iter().all(|relay| is_graphic(relay)) {
            return Err(CardError::Malformed("a relay is a URL of at most 255 letters"));
        }
        if self.extensions.len() > EXTENSIONS_MAX {
            return Err(CardError::Malformed("too many extensions"));
        }
        if self.extensions.iter().any(|extension| extension.bytes.len() > EXTENSION_BYTES_MAX) {
            return Err(CardError::Malformed("an extension is too long"));
        }
        Ok(())
    }

    fn to_signed_bytes(&self) -> Vec<u8> {
        let mut to = Writer::with_label(CARD_LABEL);
        to.raw(&self.id.0).raw(&self.x25519).u64(self.sequence).short(self.name.as_bytes());
        write_texts(&mut to, &self.addresses);
        write_texts(&mut to, &self.relays);
        match &self.successor {
            None => to.u8(0),
            Some(next) => to.u8(1).raw(&next.id.0).raw(&next.signature),
        };
        to.u8(self.extensions.len() as u8);
        for extension in &self.extensions {
            to.u16(extension.tag).u8(extension.must_understand.into()).long(&extension.bytes);
        }
        to.finish()
    }

    fn read(bytes: &[u8]) -> Result<Self, BadBytes> {
        let mut from = Reader::new(bytes);
        from.label(CARD_LABEL)?;
        let id = CellId(from.array()?);
        let x25519 = from.array()?;
        let sequence = from.u64()?;
        let name = text(from.short()?, "a name is not UTF-8")?;
        let addresses = read_addresses(&mut from)?;
        let relays = read_relays(&mut from, RELAYS_MAX)?;
        let successor = match from.u8()? {
            0 => None,
            1 => Some(Successor { id: CellId(from.array()?), signature: from.array()? }),
            _ => return Err(BadBytes("neither with nor without a successor")),
        };
        let count = usize::from(from.u8()?);
        if count > EXTENSIONS_MAX {
            return Err(BadBytes("too many extensions"));
        }
        let mut extensions = Vec::with_capacity(count);
        for _ in 0..count {
            let tag = from.u16()?;
            let must_understand = match from.u8()? {
                0 => false,
                1 => true,
                _ => return Err(BadBytes("neither ignorable nor not")),
            };
            extensions.push(Extension { tag, must_understand, bytes: from.long()?.to_vec() });
        }
        from.end()?;
        Ok(Self { id, x25519, name, addresses, relays, sequence, successor, extensions })
    }
}

fn write_texts(to: &mut Writer, texts: &[String]) {
    to.u8(texts.len() as u8);
    for text in texts {
        to.short(text.as_bytes());
    }
}

fn read_addresses(from: &mut Reader<'_>) -> Result<Vec<String>, BadBytes> {
    read_texts(from, ADDRESSES_MAX, "too many addresses", "an address is not UTF-8")
}

fn read_relays(from: &mut Reader<'_>, max: usize) -> Result<Vec<String>, BadBytes> {
    read_texts(from, max, "too many relays", "a relay is not UTF-8")
}

fn read_texts(
    from: &mut Reader<'_>,
    max: usize,
    too_many: &'static str,
    no_text: &'static str,
) -> Result<Vec<String>, BadBytes> {
    let count = usize::from(from.u8()?);
    if count > max {
        return Err(BadBytes(too_many));
    }
    (0..count).map(|_| text(from.short()?, no_text)).collect()
}

fn text(bytes: &[u8], no_text: &'static str) -> Result<String, BadBytes> {
    String::from_utf8(bytes.to_vec()).map_err(|_| BadBytes(no_text))
}

/// Printable ASCII without spaces, 1 to 255 letters: it goes to resolvers, terminals and pages.
fn is_graphic(text: &str) -> bool {
    (1..=ADDRESS_BYTES_MAX).contains(&text.len()) && text.bytes().all(|c| c.is_ascii_graphic())
}

/// Whether `text` is `host:port`: a name, an IPv4 address or an IPv6 address in brackets; port 1 to 65535.
pub fn is_address(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else { return false };
    let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let host_is_sound = match bracketed {
        Some(host) => host.parse::<std::net::Ipv6Addr>().is_ok(),
        None => !host.is_empty() && !host.contains([':', '[', ']', '/', '@']),
    };
    let port_is_sound = port.bytes().all(|c| c.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|p| p > 0);
    is_graphic(text) && host_is_sound && port_is_sound
}

/// A cell by way of a relay, as `ID@URL`: 64 hexadecimal digits, and a `ws://` or `wss://` URL.
pub fn relayed(text: &str) -> Option<(CellId, &str)> {
    let (id, url) = text.split_once('@')?;
    let is_url = (url.starts_with("ws://") || url.starts_with("wss://")) && is_graphic(url);
    Some((id.parse().ok().filter(|_| is_url)?, url))
}

/// Whether `text` says where a cell is: `host:port`, or `ID@URL` through a relay.
pub fn is_place(text: &str) -> bool {
    is_address(text) || relayed(text).is_some()
}

/// What an invited cell becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Keeps chunks and has chunks kept.
    Peer,
    /// Besides, shares files and chats.
    Friend,
}

/// A first contact, carried by people: a `grove:…` text or a QR code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invite {
    /// The inviter.
    pub inviter: CellId,
    /// The inviter's X25519 key.
    pub x25519: [u8; 32],
    /// Which of the inviter's invites this is; travels in clear.
    pub invite_id: [u8; 16],
    /// What proves that the bearer was invited; serves once.
    pub secret: Secret,
    /// What the bearer becomes.
    pub role: Role,
    /// Unix time in seconds after which the inviter refuses it.
    pub expires: u64,
    /// Where the inviter listens; at most 16.
    pub addresses: Vec<String>,
    /// A relay where the inviter waits.
    pub relay: Option<String>,
}

/// What is wrong with the text of an invite.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InviteError {
    /// It does not begin with `grove:`.
    NotAnInvite,
    /// Its letter at this place, from 1, is none that an invite has.
    Letter { place: usize, letter: char },
    /// So many letters of so many are there.
    CutShort { letters: usize, of: usize },
    /// So many letters too many.
    TooLong { extra: usize },
    /// The checksum does not fit: a letter was changed.
    Damaged,
    /// Made by a newer grove.
    TooNew(u8),
    /// The checksum fits, but the contents are impossible.
    Malformed(&'static str),
}

impl fmt::Display for InviteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAnInvite => f.write_str("an invite begins with \"grove:\"; copy it whole"),
            Self::Letter { place, letter } => {
                write!(f, "letter {place} of the invite, {letter:?}, cannot stand in one; copy it again")
            }
            Self::CutShort { letters, of } => {
                write!(f, "the invite is cut short: {letters} of {of} letters are there; copy it whole")
            }
            Self::TooLong { extra } => {
                write!(f, "the invite has {extra} letters too many at its end; copy it alone")
            }
            Self::Damaged => f.write_str("a letter of the invite was changed on its way; copy it again"),
            Self::TooNew(version) => write!(
                f,
                "the invite is of version {version}, made by a newer grove; update this cell and try again"
            ),
            Self::Malformed(what) => write!(f, "the invite makes no sense ({what}); ask for a new one"),
        }
    }
}

impl std::error::Error for InviteError {}

impl From<BadBytes> for InviteError {
    fn from(error: BadBytes) -> Self {
        Self::Malformed(error.0)
    }
}

impl Invite {
    /// Whether the inviter refuses it at this Unix time in seconds.
    pub fn is_expired(&self, now: u64) -> bool {
        now > self.expires
    }

    fn body(&self) -> Vec<u8> {
        let mut to = Writer::new();
        to.raw(&self.inviter.0).raw(&self.x25519).raw(&self.invite_id).raw(&self.secret.0);
        to.u8(match self.role {
            Role::Peer => 0,
            Role::Friend => 1,
        });
        to.u64(self.expires);
        write_texts(&mut to, &self.addresses);
        write_texts(&mut to, self.relay.as_slice());
        to.finish()
    }

    fn read(bytes: &[u8]) -> Result<Self, InviteError> {
        let mut from = Reader::new(bytes);
        let inviter = CellId(from.array()?);
        let x25519 = from.array()?;
        let invite_id = from.array()?;
        let secret = Secret(from.array()?);
        let role = match from.u8()? {
            0 => Role::Peer,
            1 => Role::Friend,
            _ => return Err(InviteError::Malformed("an unknown role")),
        };
        let expires = from.u64()?;
        let addresses = read_addresses(&mut from)?;
        let relay = read_relays(&mut from, 1)?.pop();
        from.end()?;
        if !keys::is_sound(&inviter) {
            return Err(InviteError::Malformed("its key is not a sound one"));
        }
        if !addresses.iter().all(|address| is_address(address)) || !relay.iter().all(|url| is_graphic(url)) {
            return Err(InviteError::Malformed("an address is not one"));
        }
        Ok(Self { inviter, x25519, invite_id, secret, role, expires, addresses, relay })
    }
}

fn checksum(bytes: &[u8]) -> [u8; 4] {
    let mut labelled = Writer::with_label(INVITE_LABEL);
    labelled.raw(bytes);
    *keys::sha256(labelled.as_slice()).first_chunk().expect("a hash has 32 bytes")
}

/// `grove:` and base32 (RFC 4648, lower case) of version u8, length u16, body, checksum: letters that survive
/// mail, chat and reading aloud, and a small QR code in upper case.
impl fmt::Display for Invite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let body = self.body();
        let mut bytes = Writer::new();
        bytes.u8(INVITE_VERSION).u16(body.len() as u16).raw(&body);
        let checksum = checksum(bytes.as_slice());
        bytes.raw(&checksum);
        write!(f, "{INVITE_PREFIX}{}", base32(bytes.as_slice()))
    }
}

/// Any case, and with spaces and line breaks that a mail program put in.
impl FromStr for Invite {
    type Err = InviteError;

    fn from_str(text: &str) -> Result<Self, InviteError> {
        let text = text.trim();
        let letters = match text.get(..INVITE_PREFIX.len()) {
            Some(prefix) if prefix.eq_ignore_ascii_case(INVITE_PREFIX) => &text[INVITE_PREFIX.len()..],
            _ => return Err(InviteError::NotAnInvite),
        };
        let (bytes, letters, is_whole) = unbase32(letters)?;
        let Some(head) = bytes.first_chunk::<3>() else {
            return Err(InviteError::CutShort { letters, of: base32_letters(3 + 4) });
        };
        let version = head[0];
        if version != INVITE_VERSION {
            return Err(InviteError::TooNew(version));
        }
        let body_len = usize::from(u16::from_le_bytes([head[1], head[2]]));
        if body_len > INVITE_BYTES_MAX {
            return Err(InviteError::Damaged);
        }
        let of = base32_letters(3 + body_len + 4);
        if letters < of {
            return Err(InviteError::CutShort { letters, of });
        }
        if letters > of {
            return Err(InviteError::TooLong { extra: letters - of });
        }
        let (checked, sum) = bytes.split_last_chunk::<4>().ok_or(InviteError::Damaged)?;
        if !is_whole || checksum(checked) != *sum {
            return Err(InviteError::Damaged);
        }
        Self::read(&checked[3..])
    }
}

const BASE32: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";

fn base32_letters(bytes: usize) -> usize {
    (bytes * 8).div_ceil(5)
}

fn base32(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(base32_letters(bytes.len()));
    let (mut bits, mut held) = (0u32, 0);
    for byte in bytes {
        bits = bits << 8 | u32::from(*byte);
        held += 8;
        while held >= 5 {
            held -= 5;
            text.push(BASE32[(bits >> held & 31) as usize] as char);
        }
    }
    if held > 0 {
        text.push(BASE32[(bits << (5 - held) & 31) as usize] as char);
    }
    text
}

/// The bytes, and how many letters they took. White space is passed over; spare bits must be zero, or one invite
/// would have several texts.
/// The bytes, the number of letters, and whether nothing is left over: of a text that was cut there is.
fn unbase32(text: &str) -> Result<(Vec<u8>, usize, bool), InviteError> {
    let mut bytes = Vec::new();
    let (mut bits, mut held, mut letters) = (0u32, 0, 0);
    for letter in text.chars().filter(|letter| !letter.is_whitespace()) {
        letters += 1;
        let value = match letter.to_ascii_lowercase() {
            c @ 'a'..='z' => c as u32 - 'a' as u32,
            c @ '2'..='7' => c as u32 - '2' as u32 + 26,
            _ => return Err(InviteError::Letter { place: letters, letter }),
        };
        if letters > base32_letters(3 + INVITE_BYTES_MAX + 4) {
            return Err(InviteError::TooLong { extra: 1 });
        }
        bits = bits << 5 | value;
        held += 5;
        if held >= 8 {
            held -= 8;
            bytes.push((bits >> held) as u8);
        }
    }
    Ok((bytes, letters, bits & ((1 << held) - 1) == 0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::MasterKey;

    fn identity(seed: u8) -> Identity {
        MasterKey::from_bytes([seed; 32]).identity(0, 0)
    }

    fn body(identity: &Identity) -> CardBody {
        CardBody {
            id: identity.id(),
            x25519: *identity.x_public(),
            name: "attic-pi ☘".into(),
            addresses: vec!["192.168.1.7:5679".into(), "[fe80::1]:5679".into(), "attic.example:1".into()],
            relays: vec!["ws://relay.example:5680/".into()],
            sequence: 7,
            successor: Some(Successor::sign(&self::identity(9), &identity.id())),
            extensions: vec![Extension { tag: 3, must_understand: false, bytes: b"later".to_vec() }],
        }
    }

    fn invite() -> Invite {
        Invite {
            inviter: identity(1).id(),
            x25519: *identity(1).x_public(),
            invite_id: [5; 16],
            secret: Secret([6; 32]),
            role: Role::Friend,
            expires: 1_800_000_000,
            addresses: vec!["192.168.1.7:5679".into()],
            relay: Some("wss://relay.example/".into()),
        }
    }

    #[test]
    fn card_writes_back_the_same_bytes() {
        let card = Card::sign(&identity(1), body(&identity(1))).unwrap();
        let bytes = card.to_bytes();
        let read = Card::from_bytes(&bytes).unwrap();
        assert_eq!(read, card);
        assert_eq!(read.to_bytes(), bytes);
        assert_eq!(read.name, "attic-pi ☘");
    }

    #[test]
    fn card_with_any_byte_changed_cut_or_added_is_refused() {
        let bytes = Card::sign(&identity(1), body(&identity(1))).unwrap().to_bytes();
        for at in 0..bytes.len() {
            for bit in [1, 0x80] {
                let mut changed = bytes.clone();
                changed[at] ^= bit;
                assert!(Card::from_bytes(&changed).is_err(), "byte {at}");
            }
            assert!(Card::from_bytes(&bytes[..at]).is_err());
        }
        assert!(Card::from_bytes(&[&bytes[..], &[0]].concat()).is_err());
        assert!(Card::from_bytes(&vec![0; CARD_BYTES_MAX + 1]).is_err());
    }

    /// One field, changed; and why the card is refused then.
    type Corruptor = (&'static str, fn(&mut CardBody));

    /// Every field in turn, as a peer may sign it: refused with an error of its own, and not signed here either.
    #[test]
    fn card_with_a_field_over_its_limits_is_refused_with_its_own_error() {
        let cell = identity(1);
        let corruptors: [Corruptor; 15] = [
            ("a name has 1 to 64 bytes", |body| body.name = String::new()),
            ("a name has 1 to 64 bytes", |body| body.name = "a".repeat(65)),
            ("a name has no control characters", |body| body.name = "bell\u{7}".into()),
            ("a name has no control characters", |body| body.name = "c1\u{9b}31m".into()),
            ("too many addresses", |body| body.addresses = vec!["a:1".into(); 17]),
            ("an address is host:port", |body| body.addresses = vec!["no port".into()]),
            ("an address is host:port", |body| body.addresses = vec!["fe80::1:5679".into()]),
            ("an address is host:port", |body| body.addresses = vec!["a:0".into()]),
            ("an address is host:port", |body| body.addresses = vec!["a:+1".into()]),
            ("an address is host:port", |body| body.addresses = vec!["\u{1b}[2J:1".into()]),
            ("too many relays", |body| body.relays = vec!["r".into(); 9]),
            ("a relay is a URL of at most 255 letters", |body| body.relays = vec!["two words".into()]),
            ("a relay is a URL of at most 255 letters", |body| body.relays = vec!["ws://\u{202e}".into()]),
            ("too many extensions", |body| body.extensions = vec![body.extensions[0].clone(); 17]),
            ("an extension is too long", |body| body.extensions[0].bytes = vec![0; 2049]),
        ];
        for (why, corrupt) in corruptors {
            let mut body = body(&cell);
            corrupt(&mut body);
            assert_eq!(Card::sign(&cell, body.clone()), Err(CardError::Malformed(why)));
            let signed = body.to_signed_bytes();
            let bytes = [&signed[..], &cell.sign(&signed)].concat();
            assert_eq!(Card::from_bytes(&bytes), Err(CardError::Malformed(why)), "{body:?}");
        }
        let long = CardBody {
            extensions: vec![Extension { bytes: vec![0; 2048], ..body(&cell).extensions[0].clone() }; 4],
            ..body(&cell)
        };
        let signed = long.to_signed_bytes();
        let bytes = [&signed[..], &cell.sign(&signed)].concat();
        let why = Err(CardError::Malformed("longer than a card may be"));
        assert_eq!((Card::from_bytes(&bytes), Card::sign(&cell, long)), (why.clone(), why));
        let other = CardBody { x25519: [7; 32], ..body(&cell) };
        assert_eq!(Card::sign(&cell, other), Err(CardError::Malformed("the keys are another cell's")));
    }

    /// Every field in turn, changed on its way or signed with bytes that no writer of ours makes.
    #[test]
    fn card_with_a_field_changed_on_its_way_is_refused_with_its_own_error() {
        let cell = identity(1);
        let good = body(&cell);
        let find = |what: &[u8]| {
            let bytes = good.to_signed_bytes();
            bytes.windows(what.len()).position(|some| some == what).unwrap()
        };
        let label = CARD_LABEL.len() + 1;
        let next = good.successor.clone().unwrap();
        let tag = find(b"later") - 7;
        let forged = CardError::BadSignature;
        let of = |why| CardError::Malformed(why);
        // Where a byte is changed and to what; the error if it is changed on its way, and if the cell itself signs it.
        let cases: Vec<(&str, usize, u8, CardError, Option<CardError>)> = vec![
            ("label", 3, b'X', of("another format's label"), Some(of("another format's label"))),
            ("x25519", label + 32, good.x25519[0] ^ 1, forged.clone(), None),
            ("sequence", label + 64, 8, forged.clone(), None),
            ("name", find(b"attic-pi"), b'A', forged.clone(), None),
            ("name", find(b"attic-pi"), 0xff, of("a name is not UTF-8"), Some(of("a name is not UTF-8"))),
            ("address", find(b"192.168"), b'2', forged.clone(), None),
            (
                "address",
                find(b"192.168"),
                0xff,
                of("an address is not UTF-8"),
                Some(of("an address is not UTF-8")),
            ),
            ("relay", find(b"ws://"), b'W', forged.clone(), None),
            ("relay", find(b"ws://"), 0xff, of("a relay is not UTF-8"), Some(of("a relay is not UTF-8"))),
            (
                "successor or none",
                find(&next.id.0) - 1,
                2,
                of("neither with nor without a successor"),
                Some(of("neither with nor without a successor")),
            ),
            ("successor", find(&next.id.0), next.id.0[0] ^ 1, forged.clone(), Some(forged.clone())),
            (
                "its consent",
                find(&next.signature),
                next.signature[0] ^ 1,
                forged.clone(),
                Some(forged.clone()),
            ),
            ("tag", tag, 4, forged.clone(), None),
            ("flag", tag + 2, 1, forged.clone(), Some(CardError::TooNew(3))),
            ("flag", tag + 2, 2, of("neither ignorable nor not"), Some(of("neither ignorable nor not"))),
            ("extension", tag + 7, b'L', forged.clone(), None),
        ];
        for (field, at, byte, on_its_way, by_itself) in cases {
            let mut signed = good.to_signed_bytes();
            let signature = cell.sign(&signed);
            signed[at] = byte;
            let bytes = [&signed[..], &signature].concat();
            assert_eq!(Card::from_bytes(&bytes), Err(on_its_way), "{field}");
            let bytes = [&signed[..], &cell.sign(&signed)].concat();
            assert_eq!(Card::from_bytes(&bytes).err(), by_itself, "{field}");
        }
        let signed = good.to_signed_bytes();
        let mut bytes = [&signed[..], &cell.sign(&signed)].concat();
        *bytes.last_mut().unwrap() ^= 1;
        assert_eq!(Card::from_bytes(&bytes), Err(forged), "signature");
        for (key, why) in [(identity(2).id().0, CardError::BadSignature), ([0; 32], CardError::WeakKey)] {
            let mut other = good.to_signed_bytes();
            other[label..label + 32].copy_from_slice(&key);
            let bytes = [&other[..], &cell.sign(&other)].concat();
            assert_eq!(Card::from_bytes(&bytes), Err(why));
        }
    }

    #[test]
    fn extension_that_must_be_understood_is_refused() {
        let mut newer = body(&identity(1));
        newer.extensions[0].must_understand = true;
        let bytes = Card::sign(&identity(1), newer).unwrap().to_bytes();
        assert_eq!(Card::from_bytes(&bytes), Err(CardError::TooNew(3)));
    }

    #[test]
    fn successor_must_have_agreed() {
        let mut forced = body(&identity(1));
        forced.successor = Some(Successor::sign(&identity(9), &identity(2).id()));
        let bytes = Card::sign(&identity(1), forced).unwrap().to_bytes();
        assert_eq!(Card::from_bytes(&bytes), Err(CardError::BadSignature));
    }

    #[test]
    fn invite_reads_back_however_it_was_pasted() {
        let text = invite().to_string();
        assert!(text.len() < 420, "{}", text.len());
        assert_eq!(text.parse(), Ok(invite()));
        assert_eq!(text.to_uppercase().parse(), Ok(invite()));
        let wrapped: Vec<&str> =
            text.as_bytes().chunks(60).map(|c| std::str::from_utf8(c).unwrap()).collect();
        assert_eq!(format!("  {}\n", wrapped.join("\r\n  ")).parse(), Ok(invite()));
    }

    #[test]
    fn broken_invite_says_what_is_wrong() {
        let text = invite().to_string();
        let error = |text: &str| text.parse::<Invite>().unwrap_err();
        assert_eq!(error("hello"), InviteError::NotAnInvite);
        assert_eq!(error(&text[1..]), InviteError::NotAnInvite);
        assert_eq!(error(&text.replacen(':', ":1", 1)), InviteError::Letter { place: 1, letter: '1' });
        let of = text.len() - INVITE_PREFIX.len();
        for cut in 0..of {
            match error(&text[..INVITE_PREFIX.len() + cut]) {
                InviteError::CutShort { letters, .. } => assert_eq!(letters, cut),
                other => panic!("{cut}: {other:?}"),
            }
        }
        assert_eq!(error(&format!("{text}aaa")), InviteError::TooLong { extra: 3 });
        for at in INVITE_PREFIX.len()..text.len() {
            let mut changed = text.clone().into_bytes();
            changed[at] = if changed[at] == b'a' { b'b' } else { b'a' };
            assert!(String::from_utf8(changed).unwrap().parse::<Invite>().is_err(), "letter {at}");
        }
    }

    #[test]
    fn invite_expires_after_its_last_second() {
        assert!(!invite().is_expired(1_800_000_000));
        assert!(invite().is_expired(1_800_000_001));
        assert!(!format!("{:?}", invite()).contains("06, 06"), "the secret stays out of logs");
    }
}

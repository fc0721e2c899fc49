//! What a holder sees of a grant: who may read the chunks under a root, and until when. It names nothing.

use crate::codec::{BadBytes, Reader, Writer};
use crate::id::CellId;
use crate::keys::{self, Identity, sha256};
use crate::manifest::{Extension, read_extensions, write_extensions};

use super::GrantError;
use super::tree::Hash;

/// Bytes of a whole ticket.
pub const TICKET_BYTES_MAX: usize = 4096;
/// The right to read the chunks under the root; other bits are reserved and refused.
pub const READ: u8 = 1;

const LABEL: &str = "grove ticket v1";

/// What a ticket says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TicketBody {
    /// Whose chunks they are; signs.
    pub creator: CellId,
    /// Who may read them.
    pub recipient: CellId,
    /// Random, for each ticket.
    pub id: [u8; 16],
    /// Root of the chunk tree.
    pub root: Hash,
    /// `READ`.
    pub rights: u8,
    /// By which a revocation list names it, from 1 up: the creator's life in the upper 32 bits, a count within that life
    /// in the lower. Tickets that are revoked together (of one recipient of one shared folder) have one number.
    pub number: u64,
    /// Made at this Unix time in seconds.
    pub granted: u64,
    /// The last Unix second in which it serves; 0: for good.
    pub expires: u64,
    /// From later versions of Grove, ignorable.
    pub extensions: Vec<Extension>,
}

/// A ticket with its creator's signature, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ticket {
    body: TicketBody,
    bytes: Vec<u8>,
}

impl std::ops::Deref for Ticket {
    type Target = TicketBody;

    fn deref(&self) -> &TicketBody {
        &self.body
    }
}

impl Ticket {
    /// Signs `body`, whose creator is `identity`.
    pub fn sign(identity: &Identity, body: TicketBody) -> Result<Self, GrantError> {
        body.check()?;
        if body.creator != identity.id() {
            return Err(GrantError::Mismatch("the creator is another cell"));
        }
        let bytes = sign(identity, body.to_bytes());
        if bytes.len() > TICKET_BYTES_MAX {
            return Err(GrantError::TooLong("ticket"));
        }
        Ok(Self { body, bytes })
    }

    /// A ticket from anywhere: checks limits, keys and signature.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, GrantError> {
        let signed = split_signed(bytes, TICKET_BYTES_MAX, "ticket")?;
        let body = TicketBody::read(signed.body)?;
        body.check()?;
        signed.check(&body.creator)?;
        Ok(Self { body, bytes: bytes.to_vec() })
    }

    /// Body and signature, as they travel.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// SHA-256 of the body.
    pub fn hash(&self) -> [u8; 32] {
        sha256(&self.bytes[..self.bytes.len() - 64])
    }
}

impl TicketBody {
    /// Every limit that is not a matter of signatures.
    fn check(&self) -> Result<(), GrantError> {
        if !keys::is_sound(&self.creator) || !keys::is_sound(&self.recipient) {
            return Err(GrantError::WeakKey);
        }
        if self.rights != READ {
            return Err(GrantError::Rights(self.rights));
        }
        if self.number == 0 {
            return Err(GrantError::Malformed("a revocation number is 1 or more"));
        }
        if self.expires != 0 && self.expires < self.granted {
            return Err(GrantError::Malformed("a ticket that expires before it is granted"));
        }
        Ok(())
    }

    fn to_bytes(&self) -> Writer {
        let mut to = Writer::with_label(LABEL);
        to.raw(&self.creator.0).raw(&self.recipient.0).raw(&self.id).raw(&self.root).u8(self.rights);
        to.u64(self.number).u64(self.granted).u64(self.expires);
        write_extensions(&self.extensions, &mut to);
        to
    }

    fn read(bytes: &[u8]) -> Result<Self, GrantError> {
        let mut from = Reader::new(bytes);
        read_label(&mut from, LABEL)?;
        let body = Self {
            creator: CellId(from.array()?),
            recipient: CellId(from.array()?),
            id: from.array()?,
            root: from.array()?,
            rights: from.u8()?,
            number: from.u64()?,
            granted: from.u64()?,
            expires: from.u64()?,
            extensions: read_extensions(&mut from)?,
        };
        from.end()?;
        Ok(body)
    }
}

/// A body and what should be its signature.
pub(super) struct Signed<'a> {
    pub body: &'a [u8],
    signature: [u8; 64],
}

impl Signed<'_> {
    /// Fails unless `signer` has signed it, with a key that not everybody can sign for.
    pub fn check(&self, signer: &CellId) -> Result<(), GrantError> {
        if !keys::is_sound(signer) {
            return Err(GrantError::WeakKey);
        }
        match keys::verify(signer, self.body, &self.signature) {
            true => Ok(()),
            false => Err(GrantError::BadSignature),
        }
    }
}

pub(super) fn sign(identity: &Identity, mut body: Writer) -> Vec<u8> {
    let signature = identity.sign(body.as_slice());
    body.raw(&signature);
    body.finish()
}

/// Takes the signature off bytes of a format that has at most `bytes_max`.
pub(super) fn split_signed<'a>(
    bytes: &'a [u8],
    bytes_max: usize,
    what: &'static str,
) -> Result<Signed<'a>, GrantError> {
    if bytes.len() > bytes_max {
        return Err(GrantError::TooLong(what));
    }
    let (body, signature) = bytes.split_last_chunk::<64>().ok_or(BadBytes("ends early"))?;
    Ok(Signed { body, signature: *signature })
}

/// Takes a label off: another version of the format is told from other bytes.
pub(super) fn read_label(from: &mut Reader<'_>, label: &'static str) -> Result<(), GrantError> {
    let found = from.short()?;
    let format = label.trim_end_matches(|c: char| c.is_ascii_digit());
    match found.strip_prefix(format.as_bytes()) {
        _ if found == label.as_bytes() => Ok(()),
        Some(version) if !version.is_empty() && version.iter().all(u8::is_ascii_digit) => {
            Err(GrantError::UnknownVersion)
        }
        _ => Err(GrantError::Malformed("another format's label")),
    }
}

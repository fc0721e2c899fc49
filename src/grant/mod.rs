//! Who may read what of whom, and until when: the formats of sharing. Knows nothing of sockets, disks or clocks.
//!
//! A grant has two parts. The *ticket* is for holders of chunks: it says who may read the chunks under a root, and names
//! nothing. The *private part* is for the recipient alone: name, size, key, and the manifest. A *list of revocations*
//! takes tickets back. `docs/format.md` gives the bytes.
//!
//! Promise: what parses was signed by the creator it names, and what opens was sealed by that creator for this cell.

use std::fmt;

use crate::card::CardError;
use crate::codec::BadBytes;
use crate::manifest::ManifestError;

mod name;
mod private;
mod record;
mod revoke;
#[cfg(test)]
mod tests;
mod ticket;
mod tree;

pub use name::{NameError, granted_name, numbered_names, offered_name, safe_name, with_mark};
pub(crate) use private::seal as seal_unchecked;
pub use private::{
    FOLDERS_MAX, GRANT_BYTES_MAX, HOLDERS_MAX, Holder, MEDIA_BYTES_MAX, Opened, PRIVATE_BYTES_MAX, Party,
    Private, Share, THUMBNAIL_BYTES_MAX, make, open, ticket_of,
};
pub use record::{
    GrantMade, GrantReceived, ShareMade, revocations_from_bytes, revocations_key, revocations_to_bytes,
};
pub use revoke::{
    LIST_BYTES_MAX, Presented, RANGES_MAX, Range, Ranges, Revocations, RevocationsBody, allows, allows_chunk,
};
pub use ticket::{READ, TICKET_BYTES_MAX, Ticket, TicketBody};
pub use tree::{Hash, ListSum, PROOF_BYTES_MAX, Place, is_member, prove, root};

/// Why a grant, a ticket or a list of revocations is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GrantError {
    /// Not the bytes of this format, or over a limit of it.
    Malformed(&'static str),
    /// Longer than such a thing may be.
    TooLong(&'static str),
    /// Made by another version of Grove.
    UnknownVersion,
    /// A key that anybody can sign for, or that makes no secret.
    WeakKey,
    /// Not signed by the creator it names.
    BadSignature,
    /// Rights that this version does not know.
    Rights(u8),
    /// For another cell.
    WrongRecipient,
    /// Its time is over.
    Expired,
    /// Taken back.
    Revoked,
    /// The list of revocations is older than one that was seen.
    OlderList { number: u64, seen: u64 },
    /// The list of revocations is another creator's.
    ForeignList,
    /// The chunk, or the manifest's chunks, do not lie under the ticket's root.
    RootMismatch,
    /// A sealed part does not open: damaged, for another cell, or of another ticket.
    NotOpened,
    /// Comes from, or was sealed by, another cell than its creator.
    NotFromCreator,
    /// The file key is not the one committed to.
    Commitment,
    /// A name that is refused.
    Name(NameError),
    /// A holder's card is refused.
    Card(CardError),
    /// The manifest is refused.
    Manifest(ManifestError),
    /// Two parts that say different things.
    Mismatch(&'static str),
}

impl fmt::Display for GrantError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed(what) => write!(f, "malformed grant: {what}"),
            Self::TooLong(what) => write!(f, "too long: {what}"),
            Self::UnknownVersion => f.write_str("a grant of another version of grove; update this cell"),
            Self::WeakKey => f.write_str("a key of the grant is not a sound one"),
            Self::BadSignature => f.write_str("not signed by the creator it names"),
            Self::Rights(rights) => write!(f, "rights {rights} are not known; update this cell"),
            Self::WrongRecipient => f.write_str("the grant is for another cell"),
            Self::Expired => f.write_str("the grant has expired; ask for a new one"),
            Self::Revoked => f.write_str("the grant was taken back"),
            Self::OlderList { number, seen } => {
                write!(f, "list of revocations {number} is older than {seen}, which was seen already")
            }
            Self::ForeignList => f.write_str("the list of revocations is another cell's"),
            Self::RootMismatch => f.write_str("chunks that the ticket does not cover"),
            Self::NotOpened => f.write_str("the grant does not open: damaged, or sealed for another cell"),
            Self::NotFromCreator => f.write_str("the grant does not come from its creator"),
            Self::Commitment => f.write_str("the grant commits to another file key"),
            Self::Name(why) => write!(f, "the grant has {why}"),
            Self::Card(why) => write!(f, "card of a holder: {why}"),
            Self::Manifest(why) => write!(f, "{why}"),
            Self::Mismatch(what) => write!(f, "parts of the grant do not belong together: {what}"),
        }
    }
}

impl std::error::Error for GrantError {}

impl From<BadBytes> for GrantError {
    fn from(why: BadBytes) -> Self {
        Self::Malformed(why.0)
    }
}

impl From<CardError> for GrantError {
    fn from(why: CardError) -> Self {
        Self::Card(why)
    }
}

impl From<ManifestError> for GrantError {
    fn from(why: ManifestError) -> Self {
        Self::Manifest(why)
    }
}

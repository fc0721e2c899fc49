//! What the catalog keeps of sharing (kinds 4, 5 and 6 of its records), so that it survives the board.

use crate::catalog::{RecordKind, record_key};
use crate::codec::{BadBytes, Reader, Writer};
use crate::id::{BodyHash, CellId, FileId};

use super::GrantError;
use super::private::GRANT_BYTES_MAX;
use super::revoke::Revocations;
use super::ticket::Ticket;

const VERSION: u8 = 1;
/// A record of kind 4 that tells of a share, not of one grant.
const SHARE_VERSION: u8 = 2;

/// A grant that this cell made. The private part can be made again from the file's manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GrantMade {
    /// As it was given.
    pub ticket: Ticket,
    /// Which file.
    pub file: FileId,
    /// Which version.
    pub version: u64,
    /// Of that version.
    pub manifest: BodyHash,
    /// The shared folder through which it was given.
    pub share: Option<[u8; 16]>,
}

/// A grant that this cell received, sealed to it as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GrantReceived {
    /// When it came, Unix seconds.
    pub received: u64,
    /// New files and versions of its share are wanted by themselves.
    pub is_kept: bool,
    /// As it came; `grant::open` reads it.
    pub grant: Vec<u8>,
}

/// That a file or folder is shared with a cell: what grants are made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShareMade {
    /// Random.
    pub id: [u8; 16],
    /// With whom.
    pub recipient: CellId,
    /// The file or folder.
    pub file: FileId,
    /// All files in it are granted.
    pub is_folder: bool,
    /// Since this Unix time in seconds.
    pub since: u64,
    /// The last Unix second in which it holds; 0: for good.
    pub until: u64,
}

impl ShareMade {
    /// Kind 4 and the share's id.
    pub fn key(&self) -> Vec<u8> {
        record_key(RecordKind::Grant, &self.id)
    }

    /// The record's body.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut to = Writer::new();
        to.u8(SHARE_VERSION).raw(&self.recipient.0).raw(&self.file.0).u8(self.is_folder.into());
        to.u64(self.since).u64(self.until);
        to.finish()
    }

    /// Reads the body of a record under this key; a grant's record is `UnknownVersion`.
    pub fn from_bytes(key: &[u8], bytes: &[u8]) -> Result<Self, GrantError> {
        let mut from = Reader::new(bytes);
        if from.u8()? != SHARE_VERSION {
            return Err(GrantError::UnknownVersion);
        }
        let id = key.get(1..).and_then(|id| id.try_into().ok()).ok_or(BadBytes("key of a share"))?;
        let share = Self {
            id,
            recipient: CellId(from.array()?),
            file: FileId(from.array()?),
            is_folder: read_flag(&mut from)?,
            since: from.u64()?,
            until: from.u64()?,
        };
        from.end()?;
        Ok(share)
    }
}

impl GrantMade {
    /// Kind 4 and the ticket's id.
    pub fn key(&self) -> Vec<u8> {
        record_key(RecordKind::Grant, &self.ticket.id)
    }

    /// The record's body.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut to = Writer::new();
        to.u8(VERSION).long(self.ticket.as_bytes()).raw(&self.file.0).u64(self.version).raw(&self.manifest.0);
        match &self.share {
            None => to.u8(0),
            Some(share) => to.u8(1).raw(share),
        };
        to.finish()
    }

    /// Reads the body of a record; the ticket is verified.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, GrantError> {
        let mut from = Reader::new(bytes);
        read_version(&mut from)?;
        let made = Self {
            ticket: Ticket::from_bytes(from.long()?)?,
            file: FileId(from.array()?),
            version: from.u64()?,
            manifest: BodyHash(from.array()?),
            share: if read_flag(&mut from)? { Some(from.array()?) } else { None },
        };
        from.end()?;
        Ok(made)
    }
}

impl GrantReceived {
    /// Kind 5, the creator's id and the ticket's: two creators may draw the same id, by accident or not.
    pub fn key(ticket: &Ticket) -> Vec<u8> {
        record_key(RecordKind::ReceivedGrant, &[&ticket.creator.0[..], &ticket.id].concat())
    }

    /// The record's body.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut to = Writer::new();
        to.u8(VERSION).u64(self.received).u8(self.is_kept.into()).long(&self.grant);
        to.finish()
    }

    /// Reads the body of a record; the grant is not opened yet.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, GrantError> {
        let mut from = Reader::new(bytes);
        read_version(&mut from)?;
        let received =
            Self { received: from.u64()?, is_kept: read_flag(&mut from)?, grant: from.long()?.to_vec() };
        from.end()?;
        if received.grant.len() > GRANT_BYTES_MAX {
            return Err(GrantError::TooLong("grant"));
        }
        Ok(received)
    }
}

/// Kind 6 and the creator's id: the newest list of this cell's own, and of each creator whose lists it has seen.
pub fn revocations_key(creator: &CellId) -> Vec<u8> {
    record_key(RecordKind::Revocation, &creator.0)
}

/// The record's body.
pub fn revocations_to_bytes(list: &Revocations) -> Vec<u8> {
    [&[VERSION], list.as_bytes()].concat()
}

/// Reads the body of a record; the list is verified.
pub fn revocations_from_bytes(bytes: &[u8]) -> Result<Revocations, GrantError> {
    let mut from = Reader::new(bytes);
    read_version(&mut from)?;
    Revocations::from_bytes(from.rest())
}

fn read_version(from: &mut Reader<'_>) -> Result<(), GrantError> {
    if from.u8()? == VERSION { Ok(()) } else { Err(GrantError::UnknownVersion) }
}

fn read_flag(from: &mut Reader<'_>) -> Result<bool, BadBytes> {
    match from.u8()? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(BadBytes("a flag is 0 or 1")),
    }
}

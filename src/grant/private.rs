//! What a recipient sees of a grant: the file's name, size and key, where its chunks are, and its signed manifest.
//!
//! The private part is one message of Noise_X_25519_ChaChaPoly_SHA256 (Noise spec rev 34, section 7.4) from the creator's
//! static key to the recipient's, with the ticket's hash in the prologue: nobody else opens it, nobody else can have
//! made it, and it fits no other ticket. The manifest is too long for it and lies beside, under a key from the file key.

use snow::HandshakeState;

use crate::card::{CARD_BYTES_MAX, Card};
use crate::codec::{BadBytes, Reader, Writer};
use crate::id::{BodyHash, CellId, FileId};
use crate::keys::{FileKey, Identity, Secret, random};
use crate::manifest::{
    ENTRIES_INLINE_MAX, Extension, Kind, MANIFEST_BYTES_MAX, Parsed, SharedManifest, read_extensions,
    write_extensions,
};
use crate::seal::{open_part, seal_part};
use crate::wire::noise::Resolver;

use super::GrantError;
use super::name::granted_name;
use super::ticket::{TICKET_BYTES_MAX, Ticket, read_label};
use super::tree::{ListSum, root};

/// Bytes of a whole grant.
pub const GRANT_BYTES_MAX: usize = 384 * 1024;
/// Bytes of a private part before sealing: what one Noise message carries.
pub const PRIVATE_BYTES_MAX: usize = NOISE_MESSAGE_MAX - NOISE_X_ADDS;
/// Bytes of a thumbnail.
pub const THUMBNAIL_BYTES_MAX: usize = 16 * 1024;
/// Cells that are said to hold the chunks.
pub const HOLDERS_MAX: usize = 16;
/// Folders between a share's top and the file.
pub const FOLDERS_MAX: usize = 64;
/// Bytes of a media type.
pub const MEDIA_BYTES_MAX: usize = 100;

const LABEL: &str = "grove grant v1";
const PRIVATE_LABEL: &str = "grove grant private v1";
const MANIFEST_LABEL: &str = "grove grant manifest v1";
const PATTERN: &str = "Noise_X_25519_ChaChaPoly_SHA256";
const NOISE_MESSAGE_MAX: usize = 65_535;
/// The ephemeral key, the sealed static key, and the tag of the payload.
const NOISE_X_ADDS: usize = 32 + 48 + 16;

/// A cell said to hold the chunks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Which.
    pub id: CellId,
    /// Where it is reached; `None` if the recipient is thought to know.
    pub card: Option<Card>,
}

/// Where a file lies in a shared folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Share {
    /// Random, the same for all files of the share.
    pub id: [u8; 16],
    /// Names of the folders from the share's top down; empty at the top.
    pub folders: Vec<String>,
}

/// What only the recipient reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Private {
    /// Of the manifest that travels along.
    pub manifest: BodyHash,
    /// The file's id, the same over all versions.
    pub file: FileId,
    /// From 1 up.
    pub version: u64,
    /// The file's name: one that `granted_name` takes. Use `safe_name` of it for a local file.
    pub name: String,
    /// A file; others are reserved.
    pub kind: Kind,
    /// Media type such as `image/jpeg`, for showing; may be empty.
    pub media: String,
    /// Bytes of the file.
    pub size: u64,
    /// Opens the manifest's chunk keys.
    pub file_key: Secret,
    /// To the file key.
    pub commitment: [u8; 32],
    /// Who has the chunks, best first; at most 16.
    pub holders: Vec<Holder>,
    /// A small picture; may be empty.
    pub thumbnail: Vec<u8>,
    /// The shared folder the file comes from.
    pub share: Option<Share>,
    /// From later versions of Grove, ignorable.
    pub extensions: Vec<Extension>,
}

/// The keys of the other side, as its card gives them.
#[derive(Debug, Clone, Copy)]
pub struct Party<'a> {
    /// Ed25519.
    pub id: &'a CellId,
    /// X25519.
    pub x25519: &'a [u8; 32],
}

/// A grant that its recipient has opened and found sound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opened {
    /// What holders are shown.
    pub ticket: Ticket,
    /// Name, size, key, holders.
    pub private: Private,
    /// Chunks with their keys.
    pub manifest: SharedManifest,
    /// The sums of the manifest's list chunks, for proofs.
    pub lists: Vec<ListSum>,
}

/// Makes a grant for `recipient`. Refuses whatever `open` would refuse.
///
/// `manifest` is the file's signed manifest, `lists` the sums of its list chunks in order.
pub fn make(
    me: &Identity,
    recipient: Party<'_>,
    ticket: &Ticket,
    private: &Private,
    manifest: &[u8],
    lists: &[ListSum],
) -> Result<Vec<u8>, GrantError> {
    if ticket.creator != me.id() {
        return Err(GrantError::NotFromCreator);
    }
    if ticket.recipient != *recipient.id {
        return Err(GrantError::WrongRecipient);
    }
    check(ticket, private, manifest, lists)?;
    seal(
        me,
        recipient.x25519,
        ticket,
        &private.to_bytes(),
        &FileKey(private.file_key.clone()),
        manifest,
        lists,
    )
}

/// Seals a grant without looking at what it says.
pub(crate) fn seal(
    me: &Identity,
    recipient_x25519: &[u8; 32],
    ticket: &Ticket,
    private: &[u8],
    file_key: &FileKey,
    manifest: &[u8],
    lists: &[ListSum],
) -> Result<Vec<u8>, GrantError> {
    if private.len() > PRIVATE_BYTES_MAX {
        return Err(GrantError::TooLong("private part"));
    }
    let mut noise = noise(me, Some(recipient_x25519), ticket).map_err(|_| GrantError::WeakKey)?;
    let mut message = vec![0; private.len() + NOISE_X_ADDS];
    // With a sound message length only a key exchange can fail: the recipient's key is of small order.
    let len = noise.write_message(private, &mut message).map_err(|_| GrantError::WeakKey)?;
    message.truncate(len);
    let random: [u8; 32] = random();
    let mut along = Writer::new();
    along.long(manifest).u32(lists.len() as u32);
    lists.iter().for_each(|sum| sum.write(&mut along));
    let along = seal_part(&file_key.grant_manifest_key(&random), MANIFEST_LABEL, along.as_slice());
    let mut grant = Writer::with_label(LABEL);
    grant.long(ticket.as_bytes()).long(&message).raw(&random).long(&along);
    Ok(grant.finish())
}

/// Opens a grant that came from `creator`, as `me`, and checks all there is to check but time and revocation.
pub fn open(bytes: &[u8], me: &Identity, creator: Party<'_>) -> Result<Opened, GrantError> {
    let parts = Parts::read(bytes)?;
    let ticket = Ticket::from_bytes(parts.ticket)?;
    if ticket.creator != *creator.id {
        return Err(GrantError::NotFromCreator);
    }
    if ticket.recipient != me.id() {
        return Err(GrantError::WrongRecipient);
    }
    let mut noise = noise(me, None, &ticket).map_err(|_| GrantError::NotOpened)?;
    let mut private = vec![0; parts.message.len()];
    let len = noise.read_message(parts.message, &mut private).map_err(|_| GrantError::NotOpened)?;
    if noise.get_remote_static() != Some(&creator.x25519[..]) {
        return Err(GrantError::NotFromCreator);
    }
    let read = Private::read(&private[..len]);
    zeroize::Zeroize::zeroize(&mut private);
    let private = read?;
    let file_key = FileKey(private.file_key.clone());
    if file_key.commitment() != private.commitment {
        return Err(GrantError::Commitment);
    }
    let key = file_key.grant_manifest_key(&parts.random);
    let along = open_part(&key, MANIFEST_LABEL, parts.along).map_err(|_| GrantError::NotOpened)?;
    let mut from = Reader::new(&along);
    let manifest = from.long()?;
    let count = from.count(ListSum::BYTES)?;
    if manifest.len() > MANIFEST_BYTES_MAX || count > ENTRIES_INLINE_MAX {
        return Err(GrantError::TooLong("manifest of a grant"));
    }
    let lists = (0..count).map(|_| ListSum::read(&mut from)).collect::<Result<Vec<_>, _>>()?;
    from.end()?;
    let manifest = check(&ticket, &private, manifest, &lists)?;
    Ok(Opened { ticket, private, manifest, lists })
}

/// The ticket of a grant, verified; its private part stays closed.
pub fn ticket_of(bytes: &[u8]) -> Result<Ticket, GrantError> {
    Ticket::from_bytes(Parts::read(bytes)?.ticket)
}

fn noise(me: &Identity, remote: Option<&[u8; 32]>, ticket: &Ticket) -> Result<HandshakeState, snow::Error> {
    let mut prologue = Writer::with_label(PRIVATE_LABEL);
    prologue.raw(&ticket.hash());
    let params = PATTERN.parse().expect("the pattern is one of Noise's");
    let builder = snow::Builder::with_resolver(params, Box::new(Resolver))
        .prologue(prologue.as_slice())?
        .local_private_key(&me.x_secret().0)?;
    match remote {
        Some(remote) => builder.remote_public_key(remote)?.build_initiator(),
        None => builder.build_responder(),
    }
}

/// The parts of a grant, none of them opened.
struct Parts<'a> {
    ticket: &'a [u8],
    message: &'a [u8],
    random: [u8; 32],
    along: &'a [u8],
}

impl<'a> Parts<'a> {
    fn read(bytes: &'a [u8]) -> Result<Self, GrantError> {
        if bytes.len() > GRANT_BYTES_MAX {
            return Err(GrantError::TooLong("grant"));
        }
        let mut from = Reader::new(bytes);
        read_label(&mut from, LABEL)?;
        let parts =
            Self { ticket: from.long()?, message: from.long()?, random: from.array()?, along: from.long()? };
        from.end()?;
        if parts.ticket.len() > TICKET_BYTES_MAX || parts.message.len() > NOISE_MESSAGE_MAX {
            return Err(GrantError::TooLong("part of a grant"));
        }
        Ok(parts)
    }
}

/// Whether ticket, private part and manifest belong together; gives the opened manifest.
fn check(
    ticket: &Ticket,
    private: &Private,
    manifest: &[u8],
    lists: &[ListSum],
) -> Result<SharedManifest, GrantError> {
    private.check()?;
    let parsed = Parsed::read(manifest).map_err(|why| GrantError::Manifest(why.into()))?;
    let manifest = parsed.open_shared(&FileKey(private.file_key.clone()))?;
    let same = |is_same: bool, what| if is_same { Ok(()) } else { Err(GrantError::Mismatch(what)) };
    same(manifest.owner == ticket.creator, "the manifest is another cell's")?;
    same(manifest.hash == private.manifest, "another manifest than the private part names")?;
    same(manifest.file == private.file, "the file's id")?;
    same(manifest.version == private.version, "the version")?;
    same(manifest.kind == private.kind && !manifest.tombstone, "the kind")?;
    same(manifest.size == private.size, "the size")?;
    match root(&manifest.entries, lists)? == ticket.root {
        true => Ok(manifest),
        false => Err(GrantError::RootMismatch),
    }
}

impl Private {
    /// Every limit that can be checked without the manifest.
    fn check(&self) -> Result<(), GrantError> {
        granted_name(self.name.as_bytes()).map_err(GrantError::Name)?;
        if self.kind != Kind::File {
            return Err(GrantError::Malformed("only files are granted"));
        }
        if !self.media.bytes().all(|c| c.is_ascii_graphic()) || self.media.len() > MEDIA_BYTES_MAX {
            return Err(GrantError::Malformed("a media type is short and printable"));
        }
        if FileKey(self.file_key.clone()).commitment() != self.commitment {
            return Err(GrantError::Commitment);
        }
        if self.holders.len() > HOLDERS_MAX || self.thumbnail.len() > THUMBNAIL_BYTES_MAX {
            return Err(GrantError::TooLong("holders or thumbnail"));
        }
        if self.holders.iter().any(|holder| holder.card.as_ref().is_some_and(|card| card.id != holder.id)) {
            return Err(GrantError::Mismatch("the card of a holder"));
        }
        let folders = self.share.as_ref().map_or(&[][..], |share| &share.folders);
        if folders.len() > FOLDERS_MAX {
            return Err(GrantError::TooLong("path in a share"));
        }
        folders.iter().try_for_each(|name| granted_name(name.as_bytes()).map(drop)).map_err(GrantError::Name)
    }

    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut to = Writer::with_label(PRIVATE_LABEL);
        to.raw(&self.manifest.0).raw(&self.file.0).u64(self.version).short(self.name.as_bytes());
        to.u8(self.kind as u8).short(self.media.as_bytes()).u64(self.size);
        to.raw(&self.file_key.0).raw(&self.commitment);
        to.u8(self.holders.len() as u8);
        for holder in &self.holders {
            to.raw(&holder.id.0).long(&holder.card.as_ref().map_or_else(Vec::new, Card::to_bytes));
        }
        to.long(&self.thumbnail);
        match &self.share {
            None => {
                to.u8(0);
            }
            Some(share) => {
                to.u8(1).raw(&share.id).u8(share.folders.len() as u8);
                share.folders.iter().for_each(|name| {
                    to.short(name.as_bytes());
                });
            }
        }
        write_extensions(&self.extensions, &mut to);
        to.finish()
    }

    fn read(bytes: &[u8]) -> Result<Self, GrantError> {
        let mut from = Reader::new(bytes);
        read_label(&mut from, PRIVATE_LABEL)?;
        let private = Self {
            manifest: BodyHash(from.array()?),
            file: FileId(from.array()?),
            version: from.u64()?,
            name: granted_name(from.short()?).map_err(GrantError::Name)?.to_owned(),
            kind: Kind::from_u8(from.u8()?).ok_or(BadBytes("kind of a grant"))?,
            media: String::from_utf8(from.short()?.to_vec()).map_err(|_| BadBytes("media type"))?,
            size: from.u64()?,
            file_key: Secret(from.array()?),
            commitment: from.array()?,
            holders: read_holders(&mut from)?,
            thumbnail: from.long()?.to_vec(),
            share: read_share(&mut from)?,
            extensions: read_extensions(&mut from)?,
        };
        from.end()?;
        private.check()?;
        Ok(private)
    }
}

fn read_holders(from: &mut Reader<'_>) -> Result<Vec<Holder>, GrantError> {
    let count = usize::from(from.u8()?);
    if count > HOLDERS_MAX {
        return Err(GrantError::TooLong("holders or thumbnail"));
    }
    let mut holders = Vec::with_capacity(count);
    for _ in 0..count {
        let id = CellId(from.array()?);
        let card = match from.long()? {
            [] => None,
            card if card.len() > CARD_BYTES_MAX => return Err(GrantError::TooLong("card of a holder")),
            card => Some(Card::from_bytes(card)?),
        };
        holders.push(Holder { id, card });
    }
    Ok(holders)
}

fn read_share(from: &mut Reader<'_>) -> Result<Option<Share>, GrantError> {
    match from.u8()? {
        0 => return Ok(None),
        1 => {}
        _ => return Err(GrantError::Malformed("neither with nor without a share")),
    }
    let id = from.array()?;
    let count = usize::from(from.u8()?);
    if count > FOLDERS_MAX {
        return Err(GrantError::TooLong("path in a share"));
    }
    let mut folders = Vec::with_capacity(count);
    for _ in 0..count {
        folders.push(granted_name(from.short()?).map_err(GrantError::Name)?.to_owned());
    }
    Ok(Some(Share { id, folders }))
}

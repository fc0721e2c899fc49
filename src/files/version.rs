//! New versions: from what is known and what was found to a signed manifest, a record and a node.

use super::unix::Stat;
use crate::catalog::{RecordKind, record_key, version_key};
use crate::copies;
use crate::id::{BodyHash, FileId};
use crate::keys::random;
use crate::manifest::{Check, Entry, FileTime, Kind, Manifest, OwnerPart, SignedManifest};
use crate::placement::{BinRow, DbError, Device, Node, NodeId, NodeState, Tables};
use crate::vault::{Vault, VaultError};

/// A node and its newest manifest, or nothing for what is new.
#[derive(Debug, Default)]
pub struct Known {
    /// Its row.
    pub node: Option<Node>,
    /// Its newest version.
    pub manifest: Option<Manifest>,
    hash: Option<BodyHash>,
    /// A salt that somebody knows who must not read later versions.
    burnt: Option<Vec<u8>>,
    /// Under which its next version is sealed, at least.
    epoch: u32,
}

impl Known {
    /// Reads a node's newest manifest.
    pub fn load(vault: &Vault, t: &Tables<'_>, node: Option<Node>) -> Result<Self, VaultError> {
        let Some(node) = node else { return Ok(Self::default()) };
        // GroveHome itself has no record before it is first seen.
        let Some(bytes) = t.record_at(node.seq)?.filter(|bytes| !bytes.is_empty()) else {
            return Ok(Self { node: Some(node), manifest: None, hash: None, burnt: None, epoch: 0 });
        };
        let manifest = Manifest::open(&bytes, &vault.master, Check::Trusted)?;
        let hash = hash_of(&bytes);
        let burnt = t.meta(&burnt_key(node.file))?;
        // A file goes on under the epoch of its newest version: going back would make the old chunks again.
        let asked = t.meta_u64(&epoch_key(node.file))?.unwrap_or(0) as u32;
        let epoch = manifest.epoch.max(asked);
        Ok(Self { node: Some(node), manifest: Some(manifest), hash: Some(hash), burnt, epoch })
    }

    /// The epoch under which the next version's chunks are sealed.
    pub fn epoch(&self, vault: &Vault) -> u32 {
        self.epoch.max(vault.sealer.epoch())
    }

    /// The salt of the next version: that of the newest, unless it was given away and taken back since. What was taken back in
    /// an earlier life is not known by its salt any more.
    fn next_salt(&self, life: u32) -> [u8; 16] {
        match &self.manifest {
            Some(newest) if newest.life == life && self.burnt.as_deref() != Some(&newest.salt[..]) => {
                newest.salt
            }
            _ => random(),
        }
    }

    /// Whether a version of this content is its newest in other seals: `mtime` and `size` as before, the epoch not.
    pub fn is_resealed_by(&self, epoch: u32, stat: &Stat) -> bool {
        self.manifest.as_ref().is_some_and(|newest| {
            newest.epoch < epoch && newest.size == stat.size && newest.mtime == stat.mtime
        })
    }

    /// Its newest version goes: nothing but its seals was its own.
    pub fn forget_newest(&self, t: &Tables<'_>) -> Result<(), DbError> {
        let (Some(newest), Some(hash)) = (&self.manifest, self.hash) else { return Ok(()) };
        t.forget_record(&version_key(newest.file, newest.version, hash))
    }

    /// The file's id, random for what is new.
    fn file(&self) -> FileId {
        self.node.as_ref().map_or_else(|| FileId(random()), |node| node.file)
    }
}

fn burnt_key(file: FileId) -> String {
    format!("burnt:{file}")
}

fn epoch_key(file: FileId) -> String {
    format!("epoch:{file}")
}

/// The next version of a file is sealed under an epoch that its newest is not: all its chunks get other keys and names.
pub fn next_epoch(t: &Tables<'_>, file: FileId, newest: &Manifest) -> Result<(), DbError> {
    t.set_meta_u64(&epoch_key(file), u64::from(newest.epoch) + 1)
}

/// A grant of a file was taken back: its later versions get another salt than this one, and so another file key.
pub fn burn_salt(t: &Tables<'_>, file: FileId, salt: &[u8; 16]) -> Result<(), DbError> {
    t.set_meta(&burnt_key(file), salt)
}

/// Hash of a signed manifest's body.
pub fn hash_of(signed: &[u8]) -> BodyHash {
    BodyHash(crate::keys::sha256(&signed[..signed.len() - 64]))
}

/// What a file is made of.
#[derive(Debug, Clone, Default)]
pub struct Content {
    /// Stretches in order.
    pub entries: Vec<Entry>,
    /// A link's target.
    pub target: Vec<u8>,
    /// Bytes.
    pub size: u64,
    /// Epoch under which its chunks and lists are sealed.
    pub epoch: u32,
}

/// A signed version that is not recorded yet.
#[derive(Debug)]
pub struct NewVersion {
    /// File id.
    pub file: FileId,
    /// Number.
    pub version: u64,
    /// Signed manifest.
    pub signed: SignedManifest,
    kind: Kind,
    size: u64,
    mtime: FileTime,
    mode: u32,
    /// Under which its chunks are sealed.
    pub epoch: u32,
}

/// How a version's file was seen here.
#[derive(Debug)]
pub struct Seen<'a> {
    /// Folder.
    pub parent: NodeId,
    /// Name.
    pub name: &'a [u8],
    /// As the file system describes it; `None`: it is not here.
    pub stat: Option<&'a Stat>,
    /// File system.
    pub device: Device,
    /// Whether its bytes are here.
    pub state: NodeState,
}

impl NewVersion {
    /// The next version of a folder.
    pub fn folder(
        vault: &Vault,
        known: &Known,
        t: &Tables<'_>,
        parent: NodeId,
        name: &[u8],
        stat: &Stat,
    ) -> Result<Self, VaultError> {
        // GroveHome lies in no folder: it names itself.
        let parent = if parent.0 == 0 { FileId::ROOT } else { file_of(t, parent)? };
        Ok(Self::sign(vault, known, parent, name, Kind::Folder, stat, Content::default()))
    }

    /// The next version of a file, link or folder: `parent` and `name` say where, `stat` how, `content` what.
    pub fn sign(
        vault: &Vault,
        known: &Known,
        parent: FileId,
        name: &[u8],
        kind: Kind,
        stat: &Stat,
        content: Content,
    ) -> Self {
        // The inode's own name is told to nobody: the group's name is derived from it.
        let link_group = (kind == Kind::File && stat.links > 1).then(|| {
            let inode = [stat.dev.to_le_bytes(), stat.ino.to_le_bytes(), stat.btime.to_le_bytes()].concat();
            vault.master.link_group(&inode)
        });
        let manifest = Manifest {
            owner: vault.id(),
            file: known.file(),
            version: known.node.as_ref().map_or(0, |node| node.version) + 1,
            life: vault.life(),
            tombstone: false,
            kind,
            previous: known.hash,
            root: 0,
            size: content.size,
            mtime: stat.mtime,
            mode: stat.mode,
            link_group,
            salt: known.next_salt(vault.life()),
            epoch: content.epoch,
            entries: content.entries,
            target: content.target,
            owner_part: OwnerPart {
                parent,
                name: name.to_vec(),
                note: known
                    .manifest
                    .as_ref()
                    .map(|manifest| manifest.owner_part.note.clone())
                    .unwrap_or_default(),
            },
            extensions: Vec::new(),
        };
        Self::from_manifest(vault, &manifest)
    }

    /// Signs a manifest that is made already.
    pub fn from_manifest(vault: &Vault, manifest: &Manifest) -> Self {
        Self {
            file: manifest.file,
            version: manifest.version,
            signed: manifest.sign(&vault.identity, &vault.master),
            kind: manifest.kind,
            size: manifest.size,
            mtime: manifest.mtime,
            mode: manifest.mode,
            epoch: manifest.epoch,
        }
    }

    /// The next version of `known` with the content and metadata of `old`, where `known` is now.
    pub fn again(vault: &Vault, known: &Known, old: &Manifest, parent: FileId, name: &[u8]) -> Self {
        let mut manifest = old.clone();
        manifest.owner = vault.id();
        manifest.version = known.node.as_ref().map_or(old.version, |node| node.version.max(old.version)) + 1;
        manifest.life = vault.life();
        manifest.previous = known.hash;
        manifest.owner_part.parent = parent;
        manifest.owner_part.name = name.to_vec();
        // Not that of the old version: it may have been given away and taken back since.
        manifest.salt = known.next_salt(vault.life());
        Self::from_manifest(vault, &manifest)
    }
}

/// The file id of a folder's node.
pub fn file_of(t: &Tables<'_>, folder: NodeId) -> Result<FileId, VaultError> {
    match t.node(folder)? {
        Some(node) => Ok(node.file),
        None => Err(VaultError::Record(
            "a folder went away while it was looked into; it is looked at again".into(),
        )),
    }
}

/// Takes over what the file system says.
pub fn set_seen(node: &mut Node, stat: &Stat, device: Device) {
    node.size = if node.kind == Kind::Folder { 0 } else { stat.size };
    node.mtime = stat.mtime;
    node.mode = stat.mode;
    node.ctime = stat.ctime;
    node.ino = stat.ino;
    node.btime = stat.btime;
    node.dev = device;
    node.state = NodeState::Present;
}

/// Writes a version's record and node. Chunks it names must have been put under the same hold of `Vault::placing`.
pub fn record(
    vault: &Vault,
    t: &Tables<'_>,
    known: Known,
    new: NewVersion,
    seen: Seen<'_>,
) -> Result<NodeId, VaultError> {
    let key = version_key(new.file, new.version, new.signed.hash);
    let seq = t.add_record(&key, &new.signed.bytes)?;
    let at = (seen.parent, new.kind, new.version);
    copies::note_version(vault, t, known.node.as_ref(), at, &new.signed.bytes)?;
    let now = vault.now();
    let mut node = match known.node {
        Some(node) => {
            if new.kind == Kind::Folder {
                // Of folders only the newest version is kept.
                forget_other_versions(t, node.file, seq)?;
            }
            node
        }
        None => Node {
            id: NodeId(0),
            parent: seen.parent,
            name: Vec::new(),
            kind: new.kind,
            file: new.file,
            seq,
            version: new.version,
            state: seen.state,
            size: 0,
            mtime: FileTime::default(),
            mode: 0,
            ctime: 0,
            ino: 0,
            btime: 0,
            dev: seen.device,
            first_at: now,
            last_at: now,
        },
    };
    node.parent = seen.parent;
    node.name = seen.name.to_vec();
    node.kind = new.kind;
    node.seq = seq;
    node.version = new.version;
    node.last_at = now;
    match seen.stat {
        Some(stat) => set_seen(&mut node, stat, seen.device),
        None => {
            node.state = seen.state;
            node.size = new.size;
            node.mtime = new.mtime;
            node.mode = new.mode;
            (node.ctime, node.ino, node.btime) = (0, 0, 0);
        }
    }
    if node.id.0 == 0 {
        return Ok(t.add_node(&node)?);
    }
    if node.state == NodeState::Present {
        forget_remote_only(t, node.file)?;
    }
    t.set_node(&node)?;
    Ok(node.id)
}

fn forget_other_versions(t: &Tables<'_>, file: FileId, seq: u64) -> Result<(), DbError> {
    for (other, key) in t.records_with_prefix(&crate::catalog::version_key_prefix(file), usize::MAX >> 1)? {
        if other != seq {
            t.forget_record(&key)?;
        }
    }
    Ok(())
}

/// Notes in the catalog that a file's bytes are not here on purpose.
pub fn note_remote_only(t: &Tables<'_>, file: FileId) -> Result<(), DbError> {
    t.put_record(&record_key(RecordKind::RemoteOnly, &file.0), &[1]).map(drop)
}

/// Its bytes are here again.
pub fn forget_remote_only(t: &Tables<'_>, file: FileId) -> Result<(), DbError> {
    t.forget_record(&record_key(RecordKind::RemoteOnly, &file.0))
}

/// Records that a file, link or empty folder is deleted: a tombstone in the catalog, a place in the Recycle Bin.
pub fn delete(vault: &Vault, t: &Tables<'_>, node: Node) -> Result<(), VaultError> {
    let (id, file, kind) = (node.id, node.file, node.kind);
    let known = Known::load(vault, t, Some(node))?;
    t.delete_node(id)?;
    forget_remote_only(t, file)?;
    let Some(manifest) = &known.manifest else { return Ok(()) };
    let mut tombstone = manifest.clone();
    tombstone.tombstone = true;
    tombstone.version += 1;
    tombstone.life = vault.life();
    tombstone.previous = known.hash;
    tombstone.size = 0;
    tombstone.entries.clear();
    tombstone.target.clear();
    let new = NewVersion::from_manifest(vault, &tombstone);
    let seq = t.add_record(&version_key(file, new.version, new.signed.hash), &new.signed.bytes)?;
    if kind == Kind::Folder {
        // Its last version stays, for the place of what is restored from the bin.
        let last = known.node.as_ref().map_or(0, |node| node.seq);
        for (other, key) in
            t.records_with_prefix(&crate::catalog::version_key_prefix(file), usize::MAX >> 1)?
        {
            if other != seq && other != last {
                t.forget_record(&key)?;
            }
        }
    }
    t.put_bin(&BinRow {
        file,
        seq,
        at: vault.now(),
        parent: manifest.owner_part.parent,
        name: manifest.owner_part.name.clone(),
    })?;
    Ok(())
}

//! Files of simulated cells: versions made of a few small chunks, with no file behind them.

use std::collections::BTreeMap;

use crate::catalog::{version_key, version_key_prefix};
use crate::files::brake;
use crate::files::import::claim_row;
use crate::files::unix::Stat;
use crate::files::version::{self, Content, Known, NewVersion, Seen};
use crate::id::{BodyHash, ChunkName, FileId};
use crate::keys::{MasterKey, sha256};
use crate::manifest::{Check, Entry, FileTime, Kind, Manifest};
use crate::placement::{Device, NodeId, NodeState, Own};
use crate::seal::{ENCODING_RAW, padded_len};
use crate::vault::{Vault, VaultError};

/// A version that a cell has kept.
#[derive(Debug, Clone)]
pub(crate) struct Kept {
    pub(crate) file: FileId,
    pub(super) version: u64,
    pub(super) hash: BodyHash,
    pub(crate) chunks: Vec<ChunkName>,
    /// Of the bytes of all chunks.
    pub(super) content: [u8; 32],
}

impl Kept {
    pub(super) fn key(&self) -> Vec<u8> {
        version_key(self.file, self.version, self.hash)
    }
}

fn stat(size: u64) -> Stat {
    Stat {
        kind: Some(Kind::File),
        size,
        mtime: FileTime::default(),
        ctime: 1,
        ino: 1,
        btime: 0,
        mode: 0o600,
        links: 1,
        dev: 1,
        stored: size,
    }
}

/// Keeps a new version of the file `name` with these contents, as an import does: chunks first, then record and node.
pub(super) fn keep(vault: &Vault, name: &[u8], plains: &[Vec<u8>]) -> Result<Kept, VaultError> {
    keep_in(vault, NodeId::ROOT, name, plains)
}

/// The same in a folder.
pub(crate) fn keep_in(
    vault: &Vault,
    folder: NodeId,
    name: &[u8],
    plains: &[Vec<u8>],
) -> Result<Kept, VaultError> {
    let mut entries = Vec::new();
    let mut sealed = Vec::new();
    for plain in plains {
        let mut padded = plain.clone();
        padded.resize(padded_len(plain.len()), 0);
        let chunk = vault.sealer.seal(padded);
        let len = plain.len() as u32;
        entries.push(Entry::Chunk { name: chunk.name, key: chunk.key, encoding: ENCODING_RAW, len });
        sealed.push((chunk.name, chunk.bytes));
    }
    let size = plains.iter().map(|plain| plain.len() as u64).sum();
    let chunks: Vec<ChunkName> = sealed.iter().map(|(name, _)| *name).collect();
    let _placing = vault.placing();
    let mut staged = Vec::new();
    for (name, bytes) in &sealed {
        let is_here = vault.db.read(|t| t.chunk(name))?.is_some_and(|row| row.place.is_some());
        if !is_here {
            staged.push(vault.store.stage(*name, bytes)?);
        }
    }
    let fresh: Vec<(ChunkName, u32)> = staged.iter().map(|s| (s.name(), s.sealed_len())).collect();
    let places = vault.store.commit(staged)?;
    vault.db.change(|t| -> Result<Kept, VaultError> {
        for ((name, len), place) in fresh.iter().zip(&places) {
            t.put_chunk(name, *len, place, Own::No)?;
        }
        for name in &chunks {
            let row = t.chunk(name)?.ok_or_else(|| VaultError::Record("a chunk without a row".into()))?;
            claim_row(vault, t, row.id, Own::Data)?;
        }
        let known = Known::load(vault, t, t.child(folder, name)?)?;
        let content = Content { entries, size, ..Content::default() };
        let stat = stat(size);
        let parent = version::file_of(t, folder)?;
        let new = NewVersion::sign(vault, &known, parent, name, Kind::File, &stat, content);
        let (file, version, hash) = (new.file, new.version, new.signed.hash);
        let seen =
            Seen { parent: folder, name, stat: Some(&stat), device: Device(0), state: NodeState::Present };
        version::record(vault, t, known, new, seen)?;
        Ok(Kept { file, version, hash, chunks: chunks.clone(), content: sha256(&plains.concat()) })
    })
}

/// The folder of this name, made where there is none.
pub(crate) fn folder(vault: &Vault, name: &[u8]) -> Result<NodeId, VaultError> {
    folder_in(vault, NodeId::ROOT, name)
}

/// The same in another folder.
pub(super) fn folder_in(vault: &Vault, above: NodeId, name: &[u8]) -> Result<NodeId, VaultError> {
    vault.db.change(|t| {
        if let Some(node) = t.child(above, name)? {
            return Ok(node.id);
        }
        let stat = Stat { kind: Some(Kind::Folder), mode: 0o700, ..stat(0) };
        let known = Known::default();
        let new = NewVersion::folder(vault, &known, t, above, name, &stat)?;
        let state = NodeState::Present;
        let seen = Seen { parent: above, name, stat: Some(&stat), device: Device(0), state };
        version::record(vault, t, known, new, seen)
    })
}

/// Moves a file to another folder; its new version.
pub(super) fn move_to(
    vault: &Vault,
    from: NodeId,
    to: NodeId,
    name: &[u8],
) -> Result<Option<u64>, VaultError> {
    vault.db.change(|t| {
        let Some(node) = t.child(from, name)? else { return Ok(None) };
        let known = Known::load(vault, t, Some(node))?;
        let Some(manifest) = known.manifest.clone() else { return Ok(None) };
        let stat = stat(manifest.size);
        let new = NewVersion::again(vault, &known, &manifest, version::file_of(t, to)?, name);
        let number = new.version;
        let seen = Seen { parent: to, name, stat: Some(&stat), device: Device(0), state: NodeState::Present };
        version::record(vault, t, known, new, seen)?;
        Ok(Some(number))
    })
}

/// Deletes a file of a folder; whether there was one.
pub(super) fn delete_in(vault: &Vault, folder: NodeId, name: &[u8]) -> Result<bool, VaultError> {
    vault.db.change(|t| {
        let Some(node) = t.child(folder, name)? else { return Ok(false) };
        brake::count_deletion(vault, t, &node)?;
        version::delete(vault, t, node)?;
        Ok(true)
    })
}

/// Makes an old version the newest again; `None` where there is no such file or version any more.
pub(super) fn restore(vault: &Vault, name: &[u8], old: &Kept) -> Result<Option<Kept>, VaultError> {
    let _placing = vault.placing();
    vault.db.change(|t| {
        let Some(node) = t.child(NodeId::ROOT, name)?.filter(|node| node.file == old.file) else {
            return Ok(None);
        };
        let body = t.record(&old.key())?.filter(|body| !body.is_empty());
        let Some(body) = body.filter(|_| node.version != old.version) else { return Ok(None) };
        let manifest = Manifest::open(&body, &vault.master, Check::Trusted)?;
        for name in &old.chunks {
            match t.chunk(name)? {
                Some(row) if row.place.is_some() || !t.copies_of(row.id)?.is_empty() => {
                    claim_row(vault, t, row.id, Own::Data)?;
                }
                _ => return Ok(None),
            }
        }
        let known = Known::load(vault, t, Some(node))?;
        let new = NewVersion::again(vault, &known, &manifest, FileId::ROOT, name);
        let kept = Kept { version: new.version, hash: new.signed.hash, ..old.clone() };
        let seen =
            Seen { parent: NodeId::ROOT, name, stat: None, device: Device(0), state: NodeState::Awaiting };
        version::record(vault, t, known, new, seen)?;
        Ok(Some(kept))
    })
}

/// Deletes a file; whether there was one.
pub(super) fn delete(vault: &Vault, name: &[u8]) -> Result<bool, VaultError> {
    delete_in(vault, NodeId::ROOT, name)
}

/// Whether the mass-delete brake is on.
pub(super) fn is_braked(vault: &Vault) -> Result<bool, VaultError> {
    Ok(vault.db.read(brake::load)?.is_on())
}

/// A person says that what pulled the brake was meant.
pub(super) fn confirm(vault: &Vault) -> Result<(), VaultError> {
    vault.db.change_durably(|t| {
        let mut brake = brake::load(t)?;
        brake.confirm();
        Ok(brake::save(t, &brake)?)
    })
}

/// Reads a version back from the local store by its record, as a restore does, and compares. The error says what is wrong.
pub(super) fn check(vault: &Vault, kept: &Kept) -> Result<(), String> {
    // After a merge of two catalogs it may be the newest version under another number, and thinned as what it was.
    let body = vault.db.read(|t| match t.record(&kept.key())?.filter(|body| !body.is_empty()) {
        Some(body) => Ok(Some(body)),
        None => t.node_of(kept.file)?.map_or(Ok(None), |node| t.record_at(node.seq)),
    });
    let body = body.map_err(|why: crate::placement::DbError| why.to_string())?;
    let Some(body) = body.filter(|body| body.len() > 64) else {
        return Err(format!("version {} of file {} is not in the catalog", kept.version, kept.file.short()));
    };
    let manifest = Manifest::open(&body, &vault.master, Check::Signature).map_err(|why| why.to_string())?;
    let mut bytes = Vec::new();
    for entry in &manifest.entries {
        let Entry::Chunk { name, key, encoding, len } = entry else { return Err("a strange entry".into()) };
        let sealed = vault.local_chunk(name).map_err(|why| why.to_string())?;
        let Some(sealed) = sealed else { return Err(format!("chunk {} is not here", name.short())) };
        let opened = vault.sealer_of(manifest.epoch).open(key, *encoding, sealed);
        let opened = opened.map_err(|why| format!("chunk {}: {why}", name.short()))?;
        bytes.extend_from_slice(&opened[..*len as usize]);
    }
    if sha256(&bytes) == kept.content {
        Ok(())
    } else {
        Err(format!("version {} of file {} has other bytes", kept.version, kept.file.short()))
    }
}

/// Whether the newest version of the file, by these records of a catalog, is this one under a higher number (see `check`).
pub(super) fn is_newest_of(records: &BTreeMap<Vec<u8>, Vec<u8>>, kept: &Kept, master: &MasterKey) -> bool {
    let prefix = version_key_prefix(kept.file);
    let of_file = records.range(prefix.clone()..).take_while(|(key, _)| key.starts_with(&prefix));
    let newest = of_file.last().and_then(|(_, body)| Manifest::open(body, master, Check::Signature).ok());
    newest.is_some_and(|newest| {
        newest.version >= kept.version && newest.chunks().eq(kept.chunks.iter().copied())
    })
}

/// Chunks of versions that should be here or be fetched, and are not here.
pub(super) fn absent(vault: &Vault) -> Result<Vec<ChunkName>, VaultError> {
    use crate::placement::{ChunkId, DbError};
    vault
        .db
        .read(|t| -> Result<Vec<ChunkName>, DbError> {
            let (mut names, mut after) = (Vec::new(), ChunkId(0));
            loop {
                let page = t.chunks_after(after, 1000)?;
                let Some(last) = page.last() else { return Ok(names) };
                after = last.id;
                for row in page {
                    if row.place.is_none() && matches!(t.own(row.id)?, Own::Data | Own::List) {
                        names.push(row.name);
                    }
                }
            }
        })
        .map_err(VaultError::from)
}

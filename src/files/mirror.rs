//! `manifests/`: a readable JSON file for the newest version of each file. Written behind, without a sync each; the
//! catalog is the truth, and what differs from it is made again.

use std::fs;
use std::path::PathBuf;

use crate::catalog::{RecordKind, version_key_prefix};
use crate::files::unix::to_wire;
use crate::id::hex;
use crate::manifest::{Check, Entry, Kind, Manifest, NAME_BYTES_MAX};
use crate::placement::DbError;
use crate::vault::{Vault, VaultError};

/// Records brought over in one step.
const STEP: usize = 500;
const META: &str = "mirrored";

/// File name of a manifest in `manifests/`: name, first digits of the file id, `.json`.
fn file_name(manifest: &Manifest) -> String {
    let mut name = to_wire(&manifest.owner_part.name).replace('/', "%2F");
    if name.starts_with('.') {
        name.replace_range(..1, "%2E");
    }
    let room = NAME_BYTES_MAX - ".json".len() - 1 - 16;
    while name.len() > room {
        name.pop();
    }
    format!("{name}.{}.json", hex(&manifest.file.0[..4]))
}

/// The readable form of a signed manifest.
fn to_json(manifest: &Manifest, signed: &[u8]) -> String {
    let text = |value: &str| miniserde::json::to_string(&value.to_owned());
    let kind = match manifest.kind {
        Kind::File => "file",
        Kind::Symlink => "symlink",
        Kind::Folder => "folder",
    };
    let mut json = String::with_capacity(1024 + manifest.entries.len() * 110);
    json.push_str(&format!(
        "{{\n  \"format\": 1,\n  \"name\": {},\n  \"parent\": \"{}\",\n  \"note\": {},\n  \"kind\": \"{kind}\",\n  \"file\": \"{}\",\n  \
         \"version\": {},\n  \"life\": {},\n  \"size\": {},\n  \"mtime_s\": {},\n  \"mtime_ns\": {},\n  \"mode\": \"{:04o}\",\n  \"owner\": \"{}\",\n  \
         \"previous\": {},\n",
        text(&to_wire(&manifest.owner_part.name)),
        manifest.owner_part.parent,
        text(&manifest.owner_part.note),
        manifest.file,
        manifest.version,
        manifest.life,
        manifest.size,
        manifest.mtime.s,
        manifest.mtime.ns,
        manifest.mode,
        manifest.owner,
        manifest.previous.map_or("null".into(), |hash| format!("\"{hash}\"")),
    ));
    if manifest.kind == Kind::Symlink {
        json.push_str(&format!("  \"target\": {},\n", text(&to_wire(&manifest.target))));
    }
    json.push_str("  \"chunks\": [");
    for (n, entry) in manifest.entries.iter().enumerate() {
        json.push_str(if n == 0 { "\n" } else { ",\n" });
        json.push_str(&match entry {
            Entry::Chunk { name, len, encoding, .. } => {
                format!("    {{\"name\": \"{name}\", \"len\": {len}, \"encoding\": {encoding}}}")
            }
            Entry::Hole { len } => format!("    {{\"hole\": {len}}}"),
            Entry::List { name, entries, len, .. } => {
                format!("    {{\"list\": \"{name}\", \"entries\": {entries}, \"len\": {len}}}")
            }
        });
    }
    json.push_str(&format!("],\n  \"signed\": \"{}\"\n}}\n", hex(signed)));
    json
}

/// How many records are not mirrored yet.
pub fn behind(vault: &Vault) -> Result<u64, DbError> {
    vault.db.read(|t| Ok(t.top_seq().saturating_sub(t.meta_u64(META)?.unwrap_or(0))))
}

/// Brings over some records that are not mirrored yet. `false` when there are none left.
pub fn catch_up(vault: &Vault) -> Result<bool, VaultError> {
    let folder = vault.dir.join("manifests");
    let mut some: Vec<(u64, Vec<u8>, Vec<u8>)> = Vec::new();
    let from = vault.db.read(|t| t.meta_u64(META))?.unwrap_or(0);
    let mut last = from;
    vault.db.read(|t| {
        t.records_after(from, |seq, key, body| -> Result<bool, VaultError> {
            last = seq;
            if key[0] == RecordKind::File as u8 {
                some.push((seq, key.to_vec(), body.to_vec()));
            }
            Ok(some.len() < STEP)
        })
    })?;
    if last == from {
        return Ok(false);
    }
    for (seq, key, body) in some {
        if body.len() <= 64 {
            continue;
        }
        let manifest = Manifest::open(&body, &vault.master, Check::Trusted)?;
        let path = folder.join(file_name(&manifest));
        if manifest.version > 1 {
            remove_renamed(vault, &key, &path)?;
        }
        let is_newest = vault.db.read(|t| t.node_of(manifest.file))?.is_some_and(|node| node.seq == seq);
        if manifest.tombstone {
            let _ = fs::remove_file(&path);
        } else if is_newest {
            // A mirror: if it cannot be written, nothing is lost, and the next version tries again.
            if let Err(why) = fs::write(&path, to_json(&manifest, &body)) {
                log::debug!("{}: {why}", path.display());
            }
        }
    }
    vault.db.change(|t| t.set_meta_u64(META, last))?;
    Ok(true)
}

/// The version before may have had another name.
fn remove_renamed(vault: &Vault, key: &[u8], path: &PathBuf) -> Result<(), VaultError> {
    let file = crate::id::FileId::from_slice(&key[1..17]).ok_or(DbError::Row("key of a record"))?;
    let bodies = vault.db.read(|t| -> Result<Vec<Vec<u8>>, DbError> {
        let records = t.records_with_prefix(&version_key_prefix(file), 10_000)?;
        let at = records.iter().position(|(_, other)| other == key).unwrap_or(0);
        let before = records[..at].last().map(|(seq, _)| *seq);
        Ok(before.map(|seq| t.record_at(seq)).transpose()?.flatten().into_iter().collect())
    })?;
    for body in bodies.iter().filter(|body| body.len() > 64) {
        let old = vault.dir.join("manifests").join(file_name(&Manifest::open(
            body,
            &vault.master,
            Check::Trusted,
        )?));
        if old != *path {
            let _ = fs::remove_file(old);
        }
    }
    Ok(())
}

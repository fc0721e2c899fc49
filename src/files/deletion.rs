//! Absence is not deletion: what is missing is judged here, after everything else was looked at.
//!
//! Promise: a file counts as deleted only if this cell, in this life, recorded it as present on the very file system that
//! its folder is on now, and GroveHome's mark is there. Anything else is a disk that is not mounted, a file freed here
//! on purpose, or one not yet restored.

use std::io;

use super::brake;
use super::marker;
use super::unix::{Folder, show};
use super::version;
use crate::manifest::Kind;
use crate::placement::{DbError, Device, Node, NodeId, NodeState, Tables};
use crate::vault::{Alert, Vault, VaultError};

/// Children judged in one transaction.
const PAGE: usize = 500;

/// Whether a node that is not on disk is deleted.
pub fn is_deletion(node: &Node, folder_is_on: Device) -> bool {
    node.state == NodeState::Present && node.dev == folder_is_on
}

/// Judges what is missing in a folder. Gives the number of deletions recorded.
pub fn judge_folder(vault: &Vault, folder: NodeId) -> Result<u64, VaultError> {
    let root = Folder::open_root(&vault.home)
        .map_err(VaultError::io(format!("cannot open GroveHome {}", vault.home.display())))?;
    marker::check(vault, &root)?;
    let Some(path) = vault.db.read(|t| t.path(folder))? else { return Ok(0) };
    // A folder that is gone itself is judged where it was.
    let Ok(open) = root.walk(&path) else { return Ok(0) };
    let fsid = open.file_system().map_err(VaultError::io("cannot tell the file system of GroveHome"))?;
    let device = vault.db.change(|t| t.device(&fsid))?;
    let mut deleted = 0;
    let mut after = Vec::new();
    loop {
        let page = vault.db.read(|t| t.children(folder, &after, PAGE))?;
        let Some(last) = page.last() else { break };
        after.clone_from(&last.name);
        let mut missing = Vec::new();
        for node in page {
            if node.state != NodeState::Present {
                continue;
            }
            match open.stat_if_there(&node.name) {
                Ok(None) => missing.push(node),
                Ok(Some(stat)) if stat.kind == Some(node.kind) => {}
                // Something of another kind has the name now; whoever records that replaces this.
                Ok(Some(_)) => {}
                Err(why) if why.kind() == io::ErrorKind::NotFound => missing.push(node),
                Err(why) => log::warn!("cannot look at {}: {why}", show(&path)),
            }
        }
        let (gone, elsewhere): (Vec<_>, Vec<_>) =
            missing.into_iter().partition(|node| is_deletion(node, device));
        if let Some(node) = elsewhere.first() {
            vault.raise(
                "unmounted",
                Alert {
                    text: format!(
                        "{} was on another disk, which is not mounted; nothing is taken as deleted",
                        show(std::slice::from_ref(&node.name))
                    ),
                    remedy: "mount the disk; or delete the files with `grove rm` if they should go".into(),
                },
            );
        }
        for node in gone {
            deleted += vault.db.change(|t| -> Result<u64, VaultError> {
                // Looked at again under the database's lock: a move may have been recorded since.
                let is_there =
                    t.node(node.id)?.is_some_and(|now| now.parent == folder && now.name == node.name);
                if is_there { delete_tree(vault, t, node) } else { Ok(0) }
            })?;
        }
    }
    Ok(deleted)
}

/// Deletes a node and, of a folder, all that was present in it. What is remote-only or awaited keeps its folder.
pub fn delete_tree(vault: &Vault, t: &Tables<'_>, node: Node) -> Result<u64, VaultError> {
    let mut deleted = 0;
    if node.kind == Kind::Folder {
        let mut after = Vec::new();
        let mut remains = false;
        loop {
            let page = t.children(node.id, &after, PAGE)?;
            let Some(last) = page.last() else { break };
            after.clone_from(&last.name);
            for child in page {
                if child.kind == Kind::Folder || is_deletion(&child, node.dev) {
                    let id = child.id;
                    deleted += delete_tree(vault, t, child)?;
                    remains |= t.node(id)?.is_some();
                } else {
                    remains = true;
                }
            }
        }
        if remains {
            set_remote_only(t, node)?;
            return Ok(deleted);
        }
    }
    brake::count_deletion(vault, t, &node)?;
    version::delete(vault, t, node)?;
    Ok(deleted + 1)
}

/// A folder of which only what is not here is left, or a file that was freed.
pub fn set_remote_only(t: &Tables<'_>, mut node: Node) -> Result<(), DbError> {
    node.state = NodeState::RemoteOnly;
    version::note_remote_only(t, node.file)?;
    t.set_node(&node)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::FileId;
    use crate::manifest::FileTime;

    fn node(state: NodeState, dev: i64) -> Node {
        Node {
            id: NodeId(2),
            parent: NodeId::ROOT,
            name: b"a".to_vec(),
            kind: Kind::File,
            file: FileId([1; 16]),
            seq: 1,
            version: 1,
            state,
            size: 1,
            mtime: FileTime::default(),
            mode: 0o644,
            ctime: 1,
            ino: 1,
            btime: 1,
            dev: Device(dev),
            first_at: 0,
            last_at: 0,
        }
    }

    #[test]
    fn only_what_was_seen_on_this_very_device_is_deleted_by_being_absent() {
        assert!(is_deletion(&node(NodeState::Present, 1), Device(1)));
        assert!(!is_deletion(&node(NodeState::Present, 2), Device(1)));
        assert!(!is_deletion(&node(NodeState::RemoteOnly, 1), Device(1)));
        assert!(!is_deletion(&node(NodeState::Awaiting, 1), Device(1)));
    }
}

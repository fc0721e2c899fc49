//! Files that go with what is said: shared with the friend first, and named in the message by their file ids.

use std::rc::Rc;
use std::sync::Arc;

use super::Sync;
use super::share::{node_named, refused};
use crate::chat::{ATTACHMENTS_MAX, Item};
use crate::files::unix::to_wire;
use crate::id::{CellId, FileId};
use crate::manifest::Kind;
use crate::placement::DbError;
use crate::pool::unblock;
use crate::vault::VaultError;

/// Attachments of one page of messages that are looked up; the others are shown by their ids.
const LOOKED_UP_MAX: usize = 256;

/// A file that a message names, as it is known here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attached {
    /// File id, as in the message.
    pub id: [u8; 16],
    /// Name; of our own files the path in GroveHome. Empty where it is not known.
    pub name: String,
    /// Bytes; 0 where it is not known.
    pub size: u64,
    /// Media type, or empty.
    pub media: String,
    /// Of our own: `shared`, or `gone` where it is taken back or deleted. Of a friend's: `verified`, `available` or
    /// `remote` as in the Feed, or `gone` where there is no grant for it (not yet, or no more).
    pub state: &'static str,
}

impl Attached {
    fn unknown(id: [u8; 16]) -> Self {
        Self { id, name: String::new(), size: 0, media: String::new(), state: "gone" }
    }
}

impl Sync {
    /// Shares files of GroveHome with a friend for good, so that a message may name them; gives their ids, in order.
    pub async fn attach_files(
        self: &Rc<Self>,
        peer: &CellId,
        paths: Vec<Vec<u8>>,
    ) -> Result<Vec<[u8; 16]>, VaultError> {
        if paths.len() > ATTACHMENTS_MAX {
            return Err(refused(format!("a message takes at most {ATTACHMENTS_MAX} files")));
        }
        // All are looked at before any is shared.
        let (vault, asked) = (Arc::clone(&self.vault), paths.clone());
        let files = unblock(move || {
            vault.db.read(|t| {
                let file = |path: &Vec<u8>| -> Result<FileId, VaultError> {
                    let node = node_named(t, path)?;
                    match node.kind {
                        Kind::File => Ok(node.file),
                        Kind::Folder => Err(refused("a folder cannot be attached; `grove share` shares it")),
                        Kind::Symlink => Err(refused("this is a link; attach the file that it leads to")),
                    }
                };
                asked.iter().map(file).collect::<Result<Vec<_>, VaultError>>()
            })
        })
        .await?;
        for (path, file) in paths.into_iter().zip(&files) {
            if !self.is_granted(peer, *file).await? {
                self.share(path, &[*peer], 0).await?;
            }
        }
        Ok(files.iter().map(|file| file.0).collect())
    }

    /// Refuses ids that name no file which is shared with the friend: it could not open them.
    pub async fn check_attached(&self, peer: &CellId, ids: &[[u8; 16]]) -> Result<(), VaultError> {
        for id in ids {
            if !self.is_granted(peer, FileId(*id)).await? {
                let id = FileId(*id);
                return Err(refused(format!(
                    "{id} is no file that is shared with this friend; share it first"
                )));
            }
        }
        Ok(())
    }

    async fn is_granted(&self, peer: &CellId, file: FileId) -> Result<bool, DbError> {
        let (books, peer) = (Arc::clone(&self.books), *peer);
        unblock(move || books.is_granted(&peer, file)).await
    }

    /// What is known of the files that these messages name: of each message as many, in their order.
    pub async fn attached(self: &Rc<Self>, items: &[&Item]) -> Vec<Vec<Attached>> {
        let (mut all, mut left) = (Vec::with_capacity(items.len()), LOOKED_UP_MAX);
        for item in items {
            let mut some = Vec::with_capacity(item.attachments.len());
            for id in &item.attachments {
                let found = match (left, item.is_ours) {
                    (0, _) => None,
                    (_, true) => self.own_attached(&item.peer, *id).await.unwrap_or_default(),
                    (_, false) => self.their_attached(&item.peer, *id).await.unwrap_or_default(),
                };
                left = left.saturating_sub(1);
                some.push(found.unwrap_or_else(|| Attached::unknown(*id)));
            }
            all.push(some);
        }
        all
    }

    async fn own_attached(&self, peer: &CellId, id: [u8; 16]) -> Result<Option<Attached>, VaultError> {
        let (vault, books, peer) = (Arc::clone(&self.vault), Arc::clone(&self.books), *peer);
        unblock(move || {
            let found = vault.db.read(|t| -> Result<_, DbError> {
                let Some(node) = t.node_of(FileId(id))? else { return Ok(None) };
                Ok(t.path(node.id)?.map(|path| (path, node.size)))
            })?;
            let Some((path, size)) = found else { return Ok(None) };
            let state = if books.is_granted(&peer, FileId(id))? { "shared" } else { "gone" };
            let name = to_wire(&path.join(&b'/'));
            Ok(Some(Attached { id, name, size, media: String::new(), state }))
        })
        .await
    }

    async fn their_attached(
        self: &Rc<Self>,
        peer: &CellId,
        id: [u8; 16],
    ) -> Result<Option<Attached>, VaultError> {
        let (books, creator) = (Arc::clone(&self.books), *peer);
        let Some(row) = unblock(move || books.received_of(&creator, FileId(id))).await? else {
            return Ok(None);
        };
        let (entry, _) = self.open_received(row).await?;
        Ok(Some(Attached {
            id,
            name: entry.name,
            size: entry.row.size,
            media: entry.media,
            state: entry.state,
        }))
    }
}

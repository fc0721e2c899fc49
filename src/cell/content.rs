//! The bytes of files: as they lie on the disk where they are as they were kept, otherwise from chunks, here or on peers.

use std::io;
use std::rc::Rc;
use std::sync::Arc;

use smol::channel::Sender;

use super::Cell;
use super::files::{find_versions, manifest_at};
use super::range::{self, Asked};
use crate::dashboard::api::{ApiRequest, ApiResponse, Body, FileMark, FilePart};
use crate::files::import::open_sealed_list;
use crate::files::unix::{Folder, stat_open};
use crate::id::{BodyHash, ChunkName, FileId, hex};
use crate::keys::Secret;
use crate::manifest::{Entry, Kind, Manifest};
use crate::placement::{Node, NodeState};
use crate::pool;
use crate::seal::ENCODING_RAW;
use crate::vault::{Vault, VaultError};

/// Bytes of one piece of a stream.
const PIECE_BYTES: usize = 256 * 1024;
/// Chunks that are asked of peers together, after the first.
const AHEAD: usize = 4;
/// Files read chunk by chunk at once: each has a chunk in memory.
pub(super) const CHUNK_STREAMS_MAX: usize = 8;

/// The pieces of an answer.
pub(super) type Pieces = Sender<io::Result<Vec<u8>>>;

/// One version of a file.
#[derive(Debug, Clone)]
pub(super) struct Picked {
    /// Its manifest.
    pub manifest: Manifest,
    /// Its hash.
    pub hash: BodyHash,
    /// The node, if this is its newest version.
    pub node: Option<Node>,
}

impl Picked {
    /// A tag that no other content has.
    fn tag(&self) -> String {
        format!("\"{}\"", hex(&self.hash.0[..16]))
    }

    /// Bytes.
    pub(super) fn size(&self) -> u64 {
        match self.manifest.kind {
            Kind::Symlink => self.manifest.target.len() as u64,
            _ => self.manifest.size,
        }
    }
}

/// Why there is no such content.
#[derive(Debug)]
pub(super) enum NoContent {
    /// There is no such file or version.
    Missing(String),
    /// Anything else.
    Other(VaultError),
}

impl From<VaultError> for NoContent {
    fn from(why: VaultError) -> Self {
        match why {
            VaultError::Refused(why) => Self::Missing(why),
            why => Self::Other(why),
        }
    }
}

impl NoContent {
    fn answer(&self) -> ApiResponse {
        match self {
            Self::Missing(why) => ApiResponse::error(404, "not_found", why, ""),
            Self::Other(why) => super::api::failure(why),
        }
    }
}

/// A version of a file: of the number given, or the newest that is not a deletion.
pub(super) fn pick(
    vault: &Vault,
    path: Option<&[u8]>,
    id: Option<FileId>,
    version: Option<u64>,
) -> Result<Picked, VaultError> {
    vault.db.read(|t| {
        let (_, node, seqs) = find_versions(t, path, id)?;
        for seq in seqs {
            let Some((manifest, hash)) = manifest_at(vault, t, seq)? else { continue };
            let fits = match version {
                Some(version) => manifest.version == version,
                None => node.as_ref().map_or(!manifest.tombstone, |node| node.seq == seq),
            };
            if fits && manifest.tombstone {
                return Err(VaultError::Refused(format!(
                    "version {} is the deletion of the file; choose another",
                    manifest.version
                )));
            }
            if fits {
                let node = node.filter(|node| node.seq == seq);
                return Ok(Picked { manifest, hash, node });
            }
        }
        Err(VaultError::Refused("there is no such version; `grove versions` lists them".into()))
    })
}

/// The file as it lies in GroveHome, if it is there just as it was kept.
pub(super) fn open_plain(vault: &Vault, picked: &Picked) -> Option<(std::fs::File, FileMark)> {
    let node = picked.node.as_ref()?;
    if node.kind != Kind::File || node.state != NodeState::Present || node.ctime == 0 {
        return None;
    }
    let path = vault.db.read(|t| t.path(node.id)).ok()??;
    let (name, above) = path.split_last()?;
    let file = Folder::open_root(&vault.home).ok()?.walk(above).ok()?.open_file(name).ok()?;
    let mark = FileMark::of(&file).ok()?;
    let stat = stat_open(&file).ok()?;
    let is_as_kept = stat.kind == Some(Kind::File)
        && stat.size == node.size
        && stat.mtime == node.mtime
        && stat.ctime == node.ctime
        && stat.ino == node.ino;
    is_as_kept.then_some((file, mark))
}

/// A channel that is closed already, for answers to `HEAD`.
fn nothing(length: u64) -> ApiResponse {
    let (_, receiver) = smol::channel::bounded(1);
    ApiResponse::stream(Some(length), receiver)
}

impl Cell {
    /// Answers with a file, or a part of it.
    pub(super) async fn content(self: &Rc<Self>, request: &ApiRequest) -> ApiResponse {
        let path = super::api::wire_param(request, "path");
        let id = super::api::id_param(request);
        if path.is_none() && id.is_none() {
            return super::api::needs("path");
        }
        let version = super::api::number_param(request, "version");
        let is_inline = super::api::number_param(request, "inline") == Some(1);
        let vault = Arc::clone(&self.vault);
        let is_direct = request.is_direct;
        let picked = pool::unblock(move || -> Result<_, NoContent> {
            let picked = pick(&vault, path.as_deref(), id, version)?;
            let plain = if is_direct { open_plain(&vault, &picked) } else { None };
            Ok((picked, plain))
        })
        .await;
        let (picked, plain) = match picked {
            Ok(picked) => picked,
            Err(why) => return why.answer(),
        };
        if picked.manifest.kind == Kind::Folder {
            return ApiResponse::error(409, "refused", "this is a folder; name a file in it", "");
        }
        let (size, tag) = (picked.size(), picked.tag());
        let asked = range::asked(request, size, &tag);
        if let Some(answer) = range::bare(asked, size, &tag) {
            return answer;
        }
        let (offset, len) = if let Asked::Part(offset, len) = asked { (offset, len) } else { (0, size) };
        let name = picked.manifest.owner_part.name.clone();
        let mut response = match plain {
            _ if request.is_head => nothing(len),
            Some((file, mark)) => {
                let mut response = ApiResponse::ok();
                let part = FilePart { file: Arc::new(file), offset, length: len, mark };
                response.body = Body::File(Box::new(part));
                response
            }
            None => self.stream_part(picked.manifest, offset, len),
        };
        response.content_type = range::safe_type(&name).to_owned();
        let response = range::dress(response, asked, size, &tag);
        response.with_header("Content-Disposition", &range::disposition(&name, is_inline))
    }

    /// A part of a version, chunk by chunk.
    fn stream_part(self: &Rc<Self>, manifest: Manifest, offset: u64, len: u64) -> ApiResponse {
        let (sender, receiver) = smol::channel::bounded(1);
        let cell = Rc::clone(self);
        pool::spawn(&self.executor, async move {
            let send = async {
                let _turn = cell.chunk_streams.acquire().await;
                cell.send_part(&manifest, offset, len, &sender).await
            };
            let gone = async {
                sender.closed().await;
                Ok(())
            };
            if let Err(why) = smol::future::or(send, gone).await {
                log::warn!("a file could not be read to its end: {why}");
                let _ = sender.send(Err(io::Error::other(why.to_string()))).await;
            }
        })
        .detach();
        ApiResponse::stream(Some(len), receiver)
    }

    /// Sends a part of a version, beginning at the chunk in which it begins. An end of the other side is no error.
    pub(super) async fn send_part(
        &self,
        manifest: &Manifest,
        offset: u64,
        len: u64,
        sender: &Pieces,
    ) -> Result<(), VaultError> {
        let end = offset.saturating_add(len);
        if manifest.kind == Kind::Symlink {
            let target = &manifest.target;
            let part = offset.min(target.len() as u64) as usize..end.min(target.len() as u64) as usize;
            let _ = sender.send(Ok(target[part].to_vec())).await;
            return Ok(());
        }
        let mut part = Part { offset, end, at: 0, is_first: true, waiting: Vec::new(), is_full: false };
        for entry in &manifest.entries {
            if part.at >= end {
                break;
            }
            if part.at + entry.len() <= offset {
                part.at += entry.len();
                continue;
            }
            match entry {
                Entry::List { name, .. } => {
                    if !self.send_waiting(manifest.epoch, &mut part, sender).await? {
                        return Ok(());
                    }
                    let sealed =
                        self.sealed_chunk(*name, &mut part.is_full).await?.ok_or_else(not_reached)?;
                    let (vault, epoch, list) = (Arc::clone(&self.vault), manifest.epoch, entry.clone());
                    let inner = pool::unblock(move || open_sealed_list(&vault, epoch, &list, sealed)).await?;
                    for entry in inner {
                        if !self.send_entry(manifest.epoch, entry, &mut part, sender).await? {
                            return Ok(());
                        }
                    }
                }
                entry => {
                    if !self.send_entry(manifest.epoch, entry.clone(), &mut part, sender).await? {
                        return Ok(());
                    }
                }
            }
        }
        self.send_waiting(manifest.epoch, &mut part, sender).await?;
        Ok(())
    }

    /// `false`: nobody listens any more.
    async fn send_entry(
        &self,
        epoch: u32,
        entry: Entry,
        part: &mut Part,
        sender: &Pieces,
    ) -> Result<bool, VaultError> {
        let (begins, len) = (part.at, entry.len());
        part.at += len;
        if begins + len <= part.offset || begins >= part.end {
            return Ok(true);
        }
        part.waiting.push((begins, entry));
        // The first chunk alone, so that the answer begins soon.
        if part.is_first || part.waiting.len() >= AHEAD {
            part.is_first = false;
            return self.send_waiting(epoch, part, sender).await;
        }
        Ok(true)
    }

    async fn send_waiting(&self, epoch: u32, part: &mut Part, sender: &Pieces) -> Result<bool, VaultError> {
        let names: Vec<ChunkName> = part.waiting.iter().filter_map(|(_, entry)| entry.chunk()).collect();
        if names.is_empty() && part.waiting.is_empty() {
            return Ok(true);
        }
        if !part.is_full {
            part.is_full = self.fetch_absent(names).await?.is_full;
        }
        for (begins, entry) in std::mem::take(&mut part.waiting) {
            let from = part.offset.saturating_sub(begins);
            let to = entry.len().min(part.end - begins);
            match entry {
                Entry::Chunk { name, key, len, .. } => {
                    let bytes = self.clear_chunk(epoch, name, key, len, &mut part.is_full).await?;
                    for piece in bytes[from as usize..to as usize].chunks(PIECE_BYTES) {
                        if sender.send(Ok(piece.to_vec())).await.is_err() {
                            return Ok(false);
                        }
                    }
                }
                Entry::Hole { .. } => {
                    let mut left = to - from;
                    while left > 0 {
                        let piece = left.min(PIECE_BYTES as u64);
                        if sender.send(Ok(vec![0; piece as usize])).await.is_err() {
                            return Ok(false);
                        }
                        left -= piece;
                    }
                }
                Entry::List { .. } => {}
            }
        }
        Ok(true)
    }

    /// The bytes of a chunk, from here or from a peer.
    async fn clear_chunk(
        &self,
        epoch: u32,
        name: ChunkName,
        key: Secret,
        len: u32,
        is_full: &mut bool,
    ) -> Result<Vec<u8>, VaultError> {
        let sealed = self.sealed_chunk(name, is_full).await?.ok_or_else(not_reached)?;
        let vault = Arc::clone(&self.vault);
        let permit = self.permits.acquire_arc().await;
        pool::unblock(move || {
            let _permit = permit;
            let opened = vault.sealer_of(epoch).open(&key, ENCODING_RAW, sealed);
            let mut bytes = opened.map_err(|why| VaultError::Record(why.to_string()))?;
            bytes.truncate(len as usize);
            match bytes.len() == len as usize {
                true => Ok(bytes),
                false => Err(VaultError::Record("a chunk is shorter than its manifest says".into())),
            }
        })
        .await
    }

    /// A chunk as it is sealed, from here or from a peer; `None`: nobody reachable has it. Whether it is lost here shows only
    /// when it is read, so that one is asked for after the first try. What this disk has no room for is read all the same, as
    /// it comes: then `is_full` is set, and nothing more is fetched to be kept.
    async fn sealed_chunk(&self, name: ChunkName, is_full: &mut bool) -> Result<Option<Vec<u8>>, VaultError> {
        for _ in 0..2 {
            if !*is_full {
                *is_full = self.fetch_absent(vec![name]).await?.is_full;
            }
            let vault = Arc::clone(&self.vault);
            let permit = self.permits.acquire_arc().await;
            let read = move || {
                let _permit = permit;
                vault.local_chunk(&name)
            };
            if let Some(sealed) = pool::unblock(read).await? {
                return Ok(Some(sealed));
            }
            if *is_full {
                return self.fetch_aside(name).await;
            }
        }
        Ok(None)
    }
}

fn not_reached() -> VaultError {
    VaultError::Refused("no cell that is reachable now has all of its bytes".into())
}

/// How far the sending of a part is.
struct Part {
    offset: u64,
    end: u64,
    /// Where the next entry begins in the file.
    at: u64,
    is_first: bool,
    /// Entries, and where they begin, that are fetched together.
    waiting: Vec<(u64, Entry)>,
    /// This disk has no room for what comes.
    is_full: bool,
}

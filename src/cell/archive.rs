//! A folder as one file: a zip archive that is made while it is sent.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::rc::Rc;
use std::sync::Arc;

use super::Cell;
use super::content::{Picked, Pieces, open_plain, pick};
use super::range::disposition;
use crate::dashboard::api::{ApiRequest, ApiResponse, FileMark};
use crate::files::zip::{Entry, Writer};
use crate::id::hex;
use crate::keys::random;
use crate::manifest::Kind;
use crate::placement::{Node, NodeId};
use crate::pool;
use crate::vault::{Vault, VaultError};

/// Bytes of one piece.
const PIECE_BYTES: u64 = 256 * 1024;
/// Names of a folder looked at together.
const NAMES_PER_LOOK: usize = 256;
/// Folders within folders.
const DEPTH_MAX: usize = 512;

/// The lines of the directory at the end, on the disk: there may be a million.
struct Directory {
    file: Arc<File>,
    bytes: u64,
}

impl Directory {
    fn new(vault: &Vault) -> io::Result<Self> {
        // The name ends so that a start removes what a crash leaves.
        let path = vault.dir.join(format!("archive-{}.tmp", hex(&random::<8>())));
        let file =
            std::fs::OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
        std::fs::remove_file(&path)?;
        Ok(Self { file: Arc::new(file), bytes: 0 })
    }
}

/// Nobody listens any more, or it failed.
enum Stop {
    Gone,
    Failed(VaultError),
}

impl From<VaultError> for Stop {
    fn from(why: VaultError) -> Self {
        Self::Failed(why)
    }
}

impl From<io::Error> for Stop {
    fn from(why: io::Error) -> Self {
        Self::Failed(VaultError::Io { doing: "cannot make the archive".into(), why })
    }
}

async fn send(sender: &Pieces, bytes: Vec<u8>) -> Result<(), Stop> {
    sender.send(Ok(bytes)).await.map_err(|_| Stop::Gone)
}

impl Cell {
    /// Answers with a folder as a zip archive.
    pub(super) async fn archive(self: &Rc<Self>, request: &ApiRequest) -> ApiResponse {
        let path = super::api::wire_param(request, "path").unwrap_or_default();
        let vault = Arc::clone(&self.vault);
        let top = pool::unblock(move || {
            let node = vault.db.read(|t| super::files::node_at(t, &path))?;
            let directory =
                Directory::new(&vault).map_err(VaultError::io("cannot make a file for the archive"))?;
            Ok::<_, VaultError>((node, directory))
        })
        .await;
        let (top, directory) = match top {
            Ok(found) => found,
            Err(VaultError::Refused(why)) => return ApiResponse::error(404, "not_found", &why, ""),
            Err(why) => return super::api::failure(&why),
        };
        if top.kind != Kind::Folder {
            return ApiResponse::error(409, "refused", "this is a file; it can be had as it is", "");
        }
        let name = if top.id == NodeId::ROOT { self.name.clone().into_bytes() } else { top.name.clone() };
        let (sender, receiver) = smol::channel::bounded(1);
        if !request.is_head {
            let cell = Rc::clone(self);
            let sending = async move {
                let work = async {
                    let _turn = cell.chunk_streams.acquire().await;
                    cell.send_archive(top, directory, &sender).await
                };
                let gone = async {
                    sender.closed().await;
                    Err(Stop::Gone)
                };
                if let Err(Stop::Failed(why)) = smol::future::or(work, gone).await {
                    log::warn!("an archive could not be made to its end: {why}");
                    let _ = sender.send(Err(io::Error::other(why.to_string()))).await;
                }
            };
            pool::spawn(&self.executor, sending).detach();
        }
        let mut response = ApiResponse::stream(None, receiver);
        response.content_type = "application/zip".into();
        response.with_header("Content-Disposition", &disposition(&[&name[..], b".zip"].concat(), false))
    }

    async fn send_archive(&self, top: Node, mut directory: Directory, sender: &Pieces) -> Result<(), Stop> {
        let mut writer = Writer::default();
        let first = if top.id == NodeId::ROOT { self.name.clone() } else { text_of(&top.name) };
        // Folders on the way down: what they are called in the archive, and the last name that was sent of them.
        let mut stack = vec![(top.id, first + "/", Vec::new())];
        self.send_plain(&mut writer, &mut directory, &top, stack[0].1.clone(), Vec::new(), sender).await?;
        while let Some((folder, path, after)) = stack.last_mut() {
            let (vault, at, from) = (Arc::clone(&self.vault), *folder, after.clone());
            let nodes = pool::unblock(move || vault.db.read(|t| t.children(at, &from, NAMES_PER_LOOK))).await;
            let nodes = nodes.map_err(VaultError::from)?;
            let prefix = path.clone();
            let is_last = nodes.len() < NAMES_PER_LOOK;
            let mut inner = None;
            for node in nodes {
                after.clone_from(&node.name);
                if node.id == NodeId::ROOT {
                    continue;
                }
                let name = format!("{prefix}{}", text_of(&node.name));
                match node.kind {
                    Kind::Folder => {
                        let name = name + "/";
                        self.send_plain(&mut writer, &mut directory, &node, name.clone(), Vec::new(), sender)
                            .await?;
                        inner = Some((node.id, name, Vec::new()));
                        break;
                    }
                    Kind::Symlink | Kind::File => {
                        self.send_file(&mut writer, &mut directory, node, name, sender).await?;
                    }
                }
            }
            match inner {
                Some(inner) if stack.len() < DEPTH_MAX => stack.push(inner),
                Some(_) => {
                    return Err(VaultError::Refused("folders lie too deep in each other".into()).into());
                }
                None if is_last => drop(stack.pop()),
                None => {}
            }
        }
        let mut offset = 0;
        while offset < directory.bytes {
            let (file, len) = (Arc::clone(&directory.file), (directory.bytes - offset).min(PIECE_BYTES));
            let piece = pool::unblock(move || {
                let mut piece = vec![0; len as usize];
                file.read_exact_at(&mut piece, offset).map(|()| piece)
            })
            .await?;
            offset += len;
            send(sender, piece).await?;
        }
        send(sender, writer.finish()).await
    }

    /// An entry of which all bytes are here already.
    async fn send_plain(
        &self,
        writer: &mut Writer,
        directory: &mut Directory,
        node: &Node,
        path: String,
        bytes: Vec<u8>,
        sender: &Pieces,
    ) -> Result<(), Stop> {
        send(sender, writer.begin(entry_of(node, path))).await?;
        if !bytes.is_empty() {
            let mut crc = writer.crc();
            crc.add(&bytes);
            writer.bytes(crc, bytes.len() as u64);
            send(sender, bytes).await?;
        }
        end(writer, directory, sender).await
    }

    async fn send_file(
        &self,
        writer: &mut Writer,
        directory: &mut Directory,
        node: Node,
        path: String,
        sender: &Pieces,
    ) -> Result<(), Stop> {
        let (vault, file) = (Arc::clone(&self.vault), node.file);
        let picked = pool::unblock(move || -> Result<_, VaultError> {
            let picked = pick(&vault, None, Some(file), None)?;
            let plain = open_plain(&vault, &picked);
            Ok((picked, plain))
        })
        .await;
        let (picked, plain): (Picked, Option<(File, FileMark)>) = match picked {
            Ok(found) => found,
            // Deleted since the folder was looked at.
            Err(VaultError::Refused(_)) => return Ok(()),
            Err(why) => return Err(why.into()),
        };
        if node.kind == Kind::Symlink {
            return self.send_plain(writer, directory, &node, path, picked.manifest.target, sender).await;
        }
        send(sender, writer.begin(entry_of(&node, path))).await?;
        let size = picked.manifest.size;
        match plain {
            Some((file, mark)) => {
                let (file, mut offset) = (Arc::new(file), 0);
                while offset < size {
                    let (file, mut crc, len) =
                        (Arc::clone(&file), writer.crc(), (size - offset).min(PIECE_BYTES));
                    let (piece, crc) = pool::unblock(move || {
                        let mut piece = vec![0; len as usize];
                        file.read_exact_at(&mut piece, offset)?;
                        if FileMark::of(&file)? != mark {
                            return Err(io::Error::other("a file was changed while it was sent"));
                        }
                        crc.add(&piece);
                        Ok((piece, crc))
                    })
                    .await?;
                    offset += len;
                    writer.bytes(crc, len);
                    send(sender, piece).await?;
                }
            }
            None => {
                let (inner, pieces) = smol::channel::bounded::<io::Result<Vec<u8>>>(1);
                let making = async {
                    let made = self.send_part(&picked.manifest, 0, size, &inner).await;
                    inner.close();
                    made.map_err(Stop::from)
                };
                let passing = async {
                    let mut passed = 0;
                    while let Ok(piece) = pieces.recv().await {
                        let (piece, mut crc) = (piece?, writer.crc());
                        let (piece, crc) = pool::unblock(move || {
                            crc.add(&piece);
                            (piece, crc)
                        })
                        .await;
                        passed += piece.len() as u64;
                        writer.bytes(crc, piece.len() as u64);
                        if let Err(why) = send(sender, piece).await {
                            pieces.close();
                            return Err(why);
                        }
                    }
                    Ok(passed)
                };
                let (made, passed) = smol::future::zip(making, passing).await;
                made?;
                if passed? != size {
                    return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
                }
            }
        }
        end(writer, directory, sender).await
    }
}

async fn end(writer: &mut Writer, directory: &mut Directory, sender: &Pieces) -> Result<(), Stop> {
    let (tail, line) = writer.end();
    let (file, at) = (Arc::clone(&directory.file), directory.bytes);
    directory.bytes += line.len() as u64;
    pool::unblock(move || file.write_all_at(&line, at)).await?;
    send(sender, tail).await
}

fn entry_of(node: &Node, path: String) -> Entry {
    let kind = match node.kind {
        Kind::File => 0o100_000,
        Kind::Symlink => 0o120_000,
        Kind::Folder => 0o040_000,
    };
    Entry { path, mode: kind | node.mode, mtime: node.mtime }
}

/// A name in an archive: UTF-8, and nothing that leads elsewhere.
fn text_of(name: &[u8]) -> String {
    String::from_utf8_lossy(name).replace(['/', '\\'], "_")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::unix::from_wire;

    #[test]
    fn names_lead_nowhere_else() {
        assert_eq!(text_of(b"..\\..\\x"), ".._.._x");
        assert_eq!(text_of(b"caf\xe9"), "caf\u{fffd}");
        assert_eq!(text_of(&from_wire("a%2Fb")), "a_b");
    }
}

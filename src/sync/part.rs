//! A granted file on its way to this disk: what has come, durably, and the end, when it gets its name.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::received::{GRANTS_FOLDER, ReceivedRow};
use crate::codec::Writer;
use crate::grant::Opened;
use crate::id::hex;
use crate::keys::sha256;
use crate::vault::{VaultError, lock};

/// Chunks after which what has come is made durable, so that it need not come again.
const NOTE_EVERY: usize = 4;

/// A file on its way.
pub(super) struct Part {
    file: File,
    path: PathBuf,
    journal: File,
    journal_path: PathBuf,
    done: Mutex<Vec<u64>>,
    unnoted: Mutex<Vec<u32>>,
}

fn doing(what: &str, path: &Path) -> impl FnOnce(io::Error) -> VaultError {
    VaultError::io(format!("cannot {what} {}", path.display()))
}

impl Part {
    /// Goes on where a fetch of this version to this place broke off, or begins.
    ///
    /// `dir` is the state folder.
    pub(super) fn open(dir: &Path, row: &ReceivedRow, path: PathBuf) -> Result<Self, VaultError> {
        let folder = dir.join(GRANTS_FOLDER);
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder);
        made.map_err(doing("make", &folder))?;
        let mut key = Writer::with_label("grove part v1");
        key.raw(&row.creator.0).raw(&row.ticket).u64(row.version).long(path.as_os_str().as_encoded_bytes());
        let key = sha256(key.as_slice());
        let journal_path = folder.join(format!("{}.part", hex(&key[..16])));
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits() as i32)
            .open(&path)
            .map_err(doing("write", &path))?;
        let meta = file.metadata().map_err(doing("write", &path))?;
        let mut head = key.to_vec();
        head.extend_from_slice(&meta.dev().to_le_bytes());
        head.extend_from_slice(&meta.ino().to_le_bytes());
        let mut known = Vec::new();
        if let Ok(mut journal) = File::open(&journal_path) {
            journal.read_to_end(&mut known).map_err(doing("read", &journal_path))?;
        }
        let goes_on = known.starts_with(&head) && meta.len() == row.size;
        if !goes_on {
            known.clone_from(&head);
            file.set_len(0).and_then(|()| file.set_len(row.size)).map_err(doing("write", &path))?;
            let mut journal = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&journal_path)
                .map_err(doing("write", &journal_path))?;
            journal.write_all(&head).map_err(doing("write", &journal_path))?;
        }
        let journal =
            OpenOptions::new().append(true).open(&journal_path).map_err(doing("write", &journal_path))?;
        let mut done = Vec::new();
        for ordinal in known[head.len()..].chunks_exact(4) {
            set_bit(&mut done, u32::from_le_bytes(ordinal.try_into().expect("4 bytes")).into());
        }
        Ok(Self { file, path, journal, journal_path, done: Mutex::new(done), unnoted: Mutex::default() })
    }

    pub(super) fn has(&self, ordinal: u64) -> bool {
        let done = lock(&self.done);
        done.get(ordinal as usize / 64).is_some_and(|word| word >> (ordinal % 64) & 1 == 1)
    }

    /// Writes a chunk's bytes. Now and then what came is made durable and noted.
    pub(super) fn put(&self, (ordinal, offset): (u64, u64), bytes: &[u8]) -> Result<(), VaultError> {
        self.file.write_all_at(bytes, offset).map_err(doing("write", &self.path))?;
        set_bit(&mut lock(&self.done), ordinal);
        let is_due = {
            let mut unnoted = lock(&self.unnoted);
            unnoted.push(ordinal as u32);
            unnoted.len() >= NOTE_EVERY
        };
        if is_due { self.note() } else { Ok(()) }
    }

    pub(super) fn note(&self) -> Result<(), VaultError> {
        let ordinals = std::mem::take(&mut *lock(&self.unnoted));
        if ordinals.is_empty() {
            return Ok(());
        }
        // The bytes first: what is noted is never fetched again.
        self.file.sync_data().map_err(doing("write", &self.path))?;
        let bytes: Vec<u8> = ordinals.iter().flat_map(|ordinal| ordinal.to_le_bytes()).collect();
        (&self.journal).write_all(&bytes).map_err(doing("write", &self.journal_path))
    }

    /// All is there: gives the file its time, mode and one of these names, the first that is free.
    pub(super) fn finish(&self, opened: &Opened, names: &[PathBuf]) -> Result<PathBuf, VaultError> {
        let wrong = || doing("write", &self.path);
        // What the sharer may do with the file is not what others may do with the copy.
        let mode = opened.manifest.mode & 0o755 & !0o022 | 0o600;
        self.file.set_permissions(fs::Permissions::from_mode(mode)).map_err(wrong())?;
        let mtime = opened.manifest.mtime;
        let time = rustix::fs::Timespec { tv_sec: mtime.s, tv_nsec: mtime.ns.into() };
        let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
        rustix::fs::futimens(&self.file, &times).map_err(|why| wrong()(why.into()))?;
        self.file.sync_all().map_err(wrong())?;
        for name in names {
            match renameat_with(CWD, &self.path, CWD, name, RenameFlags::NOREPLACE) {
                Ok(()) => {
                    if let Some(folder) = name.parent() {
                        File::open(folder)
                            .and_then(|folder| folder.sync_all())
                            .map_err(doing("write", folder))?;
                    }
                    let _ = fs::remove_file(&self.journal_path);
                    return Ok(name.clone());
                }
                Err(rustix::io::Errno::EXIST) => {}
                Err(why) => return Err(doing("write", name)(why.into())),
            }
        }
        let name = names.first().map_or_else(String::new, |name| name.display().to_string());
        Err(VaultError::Refused(format!("{name} is there already; choose another name with --to")))
    }
}

fn set_bit(bits: &mut Vec<u64>, at: u64) {
    let word = at as usize / 64;
    if word >= bits.len() {
        bits.resize(word + 1, 0);
    }
    bits[word] |= 1 << (at % 64);
}

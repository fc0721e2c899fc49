//! The small files of a state folder that sync and publishing rely on (`catalog.head`, `owners.log`, `heads/`,
//! `peer_speeds.json`): in the real folder, or in memory for simulations.
//!
//! Promise: what `write_whole`, `write_pieces` and `append_synced` have written is there after a power cut once they return,
//! and before that either as it was or, for an append, in part. Removals and cuts may be undone by one.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use crate::order;
use crate::vault::lock;
use crate::world::{Dice, Fuse};

/// Gives the pieces of a file one after the other into an empty buffer; `false` when there are no more.
pub type Pieces<'a> = dyn FnMut(&mut Vec<u8>) -> io::Result<bool> + 'a;

/// Files by names relative to the state folder, at most one folder deep.
pub trait StateFiles: Send + Sync + fmt::Debug {
    /// The bytes of a file from `from` on, at most `len`; fewer at its end. `None`: there is no such file.
    fn read_part(&self, name: &str, from: u64, len: usize) -> io::Result<Option<Vec<u8>>>;
    /// How long a file is.
    fn len(&self, name: &str) -> io::Result<Option<u64>>;
    /// Puts a file in place whole or not at all.
    fn write_pieces(&self, name: &str, pieces: &mut Pieces<'_>) -> io::Result<()>;
    /// Adds to the end of a file, which is made if there is none.
    fn append_synced(&self, name: &str, bytes: &[u8]) -> io::Result<()>;
    /// Cuts a file to `len` bytes.
    fn truncate(&self, name: &str, len: u64) -> io::Result<()>;
    /// The files in a folder, sorted; none where there is no such folder.
    fn list(&self, folder: &str) -> io::Result<Vec<String>>;
    /// Removes a file, if it is there.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// A whole file.
    fn read(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        self.read_part(name, 0, usize::MAX)
    }

    /// Puts `bytes` in place whole or not at all.
    fn write_whole(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let mut is_done = false;
        self.write_pieces(name, &mut |piece| {
            piece.extend_from_slice(bytes);
            Ok(!std::mem::replace(&mut is_done, true))
        })
    }
}

/// A real folder.
#[derive(Debug)]
pub struct Folder {
    dir: PathBuf,
}

impl Folder {
    /// The files below `dir`.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }
}

fn if_there<T>(outcome: io::Result<T>) -> io::Result<Option<T>> {
    match outcome {
        Ok(found) => Ok(Some(found)),
        Err(why) if why.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(why) => Err(why),
    }
}

impl StateFiles for Folder {
    fn read_part(&self, name: &str, from: u64, len: usize) -> io::Result<Option<Vec<u8>>> {
        let Some(mut file) = if_there(File::open(self.dir.join(name)))? else { return Ok(None) };
        file.seek(SeekFrom::Start(from))?;
        let mut bytes = Vec::new();
        file.take(len as u64).read_to_end(&mut bytes)?;
        Ok(Some(bytes))
    }

    fn len(&self, name: &str) -> io::Result<Option<u64>> {
        Ok(if_there(fs::metadata(self.dir.join(name)))?.map(|found| found.len()))
    }

    fn write_pieces(&self, name: &str, pieces: &mut Pieces<'_>) -> io::Result<()> {
        let path = self.dir.join(name);
        let folder = path.parent().expect("a file lies in a folder");
        fs::create_dir_all(folder)?;
        let mut temp = path.as_os_str().to_owned();
        temp.push(format!(".{}.tmp", crate::id::hex(&crate::keys::random::<4>())));
        let temp = PathBuf::from(temp);
        let written = (|| {
            let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temp)?;
            let mut file = io::BufWriter::new(file);
            let mut piece = Vec::new();
            while pieces(&mut piece)? {
                file.write_all(&piece)?;
                piece.clear();
            }
            file.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
            fs::rename(&temp, &path)
        })();
        if written.is_err() {
            let _ = fs::remove_file(&temp);
        }
        written?;
        // The rename itself lives in the folder, so the folder needs its own sync.
        File::open(folder)?.sync_all()
    }

    fn append_synced(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let path = self.dir.join(name);
        let mut file = OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
        file.write_all(bytes)?;
        file.sync_data()
    }

    fn truncate(&self, name: &str, len: u64) -> io::Result<()> {
        OpenOptions::new().write(true).open(self.dir.join(name))?.set_len(len)
    }

    fn list(&self, folder: &str) -> io::Result<Vec<String>> {
        let Some(entries) = if_there(fs::read_dir(self.dir.join(folder)))? else { return Ok(Vec::new()) };
        let name = |entry: io::Result<fs::DirEntry>| Some(entry.ok()?.file_name().to_str()?.to_owned());
        let mut names: Vec<String> = entries.filter_map(name).collect();
        order::sort(&mut names);
        Ok(names)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        if_there(fs::remove_file(self.dir.join(name))).map(drop)
    }
}

/// Files in memory, which lose at a power cut what they may lose.
#[derive(Debug, Default)]
pub struct MemoryFiles {
    state: Mutex<State>,
    fuse: Arc<Fuse>,
}

#[derive(Debug, Default, Clone)]
struct State {
    files: BTreeMap<String, Vec<u8>>,
    /// What a power cut may bring back, or put in place after all: whole files as they were or would have been.
    unsure: Vec<(String, Option<Vec<u8>>)>,
    is_full: bool,
}

impl MemoryFiles {
    /// No files; `fuse` counts what is written.
    pub fn new(fuse: Arc<Fuse>) -> Self {
        Self { state: Mutex::default(), fuse }
    }

    /// What is there now, as a copy of its own that counts on `fuse`.
    pub fn copied(&self, fuse: Arc<Fuse>) -> Self {
        let mut state = lock(&self.state).clone();
        state.unsure.clear();
        Self { state: Mutex::new(state), fuse }
    }

    /// From now on nothing more can be written, or again.
    pub fn set_full(&self, is_full: bool) {
        lock(&self.state).is_full = is_full;
    }

    /// The power fails: of what was under way or not synced some is lost.
    pub fn lose_unsynced(&self, dice: &mut Dice) {
        let mut state = lock(&self.state);
        for (name, bytes) in std::mem::take(&mut state.unsure).into_iter().rev() {
            if dice.percent(50) {
                match bytes {
                    Some(bytes) => state.files.insert(name, bytes),
                    None => state.files.remove(&name),
                };
            }
        }
    }

    fn write(&self, name: &str, work: impl FnOnce(Option<Vec<u8>>) -> Option<Vec<u8>>, is_synced: bool) {
        let mut state = lock(&self.state);
        let before = state.files.get(name).cloned();
        let after = work(before.clone());
        // The process may end while it is under way: then either may be there.
        state.unsure.push((name.to_owned(), after.clone()));
        drop(state);
        self.fuse.step();
        let mut state = lock(&self.state);
        state.unsure.pop();
        match after {
            Some(bytes) => state.files.insert(name.to_owned(), bytes),
            None => state.files.remove(name),
        };
        if is_synced {
            state.unsure.retain(|(other, _)| other != name);
        } else {
            state.unsure.push((name.to_owned(), before));
        }
        drop(state);
        self.fuse.step();
    }

    fn refuse_if_full(&self) -> io::Result<()> {
        if lock(&self.state).is_full { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }
}

impl StateFiles for MemoryFiles {
    fn read_part(&self, name: &str, from: u64, len: usize) -> io::Result<Option<Vec<u8>>> {
        let part = |bytes: &Vec<u8>| {
            let from = usize::try_from(from).unwrap_or(usize::MAX).min(bytes.len());
            bytes[from..from + len.min(bytes.len() - from)].to_vec()
        };
        Ok(lock(&self.state).files.get(name).map(part))
    }

    fn len(&self, name: &str) -> io::Result<Option<u64>> {
        Ok(lock(&self.state).files.get(name).map(|bytes| bytes.len() as u64))
    }

    fn write_pieces(&self, name: &str, pieces: &mut Pieces<'_>) -> io::Result<()> {
        self.refuse_if_full()?;
        let (mut bytes, mut piece) = (Vec::new(), Vec::new());
        while pieces(&mut piece)? {
            bytes.append(&mut piece);
        }
        self.write(name, |_| Some(bytes), true);
        Ok(())
    }

    fn append_synced(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.refuse_if_full()?;
        // Half of it may be there when it is cut short.
        let half = bytes.len() / 2;
        let add = |more: &[u8]| {
            let more = more.to_vec();
            self.write(name, |before| Some([before.unwrap_or_default(), more].concat()), true);
        };
        add(&bytes[..half]);
        add(&bytes[half..]);
        Ok(())
    }

    fn truncate(&self, name: &str, len: u64) -> io::Result<()> {
        let cut = |before: Option<Vec<u8>>| {
            let mut bytes = before.unwrap_or_default();
            bytes.truncate(len as usize);
            Some(bytes)
        };
        self.write(name, cut, false);
        Ok(())
    }

    fn list(&self, folder: &str) -> io::Result<Vec<String>> {
        let prefix = format!("{folder}/");
        let state = lock(&self.state);
        Ok(state.files.keys().filter_map(|name| Some(name.strip_prefix(&prefix)?.to_owned())).collect())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.write(name, |_| None, false);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keeps_files(files: &dyn StateFiles) {
        assert_eq!((files.read("a").unwrap(), files.len("a").unwrap()), (None, None));
        assert!(files.list("heads").unwrap().is_empty());
        files.write_whole("a", b"one").unwrap();
        files.write_whole("a", b"two!").unwrap();
        assert_eq!((files.read("a").unwrap().unwrap(), files.len("a").unwrap()), (b"two!".to_vec(), Some(4)));
        files.append_synced("log", b"abc").unwrap();
        files.append_synced("log", b"def").unwrap();
        assert_eq!(files.read_part("log", 2, 2).unwrap().unwrap(), b"cd");
        assert_eq!(files.read_part("log", 9, 2).unwrap().unwrap(), b"");
        files.truncate("log", 4).unwrap();
        assert_eq!(files.read("log").unwrap().unwrap(), b"abcd");
        files.write_whole("heads/2", b"x").unwrap();
        files.write_whole("heads/1", b"").unwrap();
        assert_eq!(files.list("heads").unwrap(), ["1", "2"]);
        files.remove("heads/2").unwrap();
        files.remove("heads/2").unwrap();
        assert_eq!(files.list("heads").unwrap(), ["1"]);
    }

    #[test]
    fn folder_and_memory_keep_files() {
        let dir =
            std::env::temp_dir().join(format!("grove-files-{}", crate::id::hex(&crate::keys::random::<8>())));
        fs::create_dir_all(&dir).unwrap();
        keeps_files(&Folder::new(&dir));
        fs::remove_dir_all(&dir).unwrap();
        keeps_files(&MemoryFiles::default());
    }

    #[test]
    fn power_cut_takes_nothing_that_was_synced() {
        let files = MemoryFiles::default();
        files.write_whole("a", b"whole").unwrap();
        files.append_synced("log", b"entry").unwrap();
        for seed in 0..20 {
            files.lose_unsynced(&mut Dice::new(seed, "test"));
            assert_eq!(files.read("a").unwrap().unwrap(), b"whole");
            assert_eq!(files.read("log").unwrap().unwrap(), b"entry");
        }
    }
}

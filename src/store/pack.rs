//! Packs: many small chunks in one append-only file that describes itself.
//!
//! Format, version 1. Numbers are little-endian. The file is `packs/<id>.pack`, the id as 16 lower-case
//! hexadecimal digits (most significant first), and at most 64 MiB long. It begins with a head of 32 bytes:
//!
//! ```text
//! at  bytes
//!  0      1  13, the length of the label
//!  1     13  label "grove/v1/pack"
//! 14      2  zero
//! 16      8  id, u64
//! 24      8  check: the first 8 bytes of SHA-256(bytes 0 to 23)
//! ```
//!
//! Then come entries without gaps, each a head of 48 bytes and the sealed bytes of one chunk:
//!
//! ```text
//! at  bytes
//!  0      3  mark "gpk"
//!  3      1  "B" on the first entry of an append, "E" on the others
//!  4      4  len, u32: sealed bytes, fewer than 131,072
//!  8     32  name: SHA-256 of the sealed bytes
//! 40      8  check: the first 8 bytes of SHA-256(id, u64 | offset of this head in the file, u64 | bytes 0 to 39)
//! 48    len  sealed bytes
//! ```
//!
//! The check ties a head to its pack and place, so sealed bytes that look like an entry are never taken for
//! one: whoever made them could not know the random id. Where no sound head is, or its entry would end
//! beyond the file, a reader goes on at the next mark whose check holds, byte by byte.
//!
//! An append is durable before the next one starts. So after a power cut only entries from the last "B" on
//! can be torn, and only these are hashed before the pack is written to again.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::PackId;
use crate::codec::{Reader, Writer};
use crate::id::ChunkName;
use crate::keys::{random, sha256};

/// No pack grows beyond this.
pub(super) const PACK_BYTES_MAX: u64 = 64 << 20;
/// Bytes of a pack's head.
pub(super) const HEAD_BYTES: u64 = 32;
/// Bytes of an entry's head.
pub(super) const ENTRY_HEAD_BYTES: u64 = 48;

const LABEL: &str = "grove/v1/pack";
const MARK: &[u8; 3] = b"gpk";
/// Linux takes so many pieces in one write.
const PIECES_MAX: usize = 1024;
/// Read at once while entries follow each other: many heads of tiny chunks, little waste on longer ones.
const WINDOW_BYTES: usize = 4 << 10;
/// Read at once while looking for a mark.
const SEARCH_BYTES: usize = 64 << 10;

/// The file name of a pack.
pub(super) fn file_name(pack: PackId) -> String {
    format!("{pack}.pack")
}

/// The pack that has this file name.
pub(super) fn id_of(file_name: &str) -> Option<PackId> {
    let id = file_name.strip_suffix(".pack")?.parse().ok()?;
    (self::file_name(id) == file_name).then_some(id)
}

fn head(pack: PackId) -> [u8; HEAD_BYTES as usize] {
    let mut writer = Writer::with_label(LABEL);
    writer.u16(0).u64(pack.0);
    let check = sha256(writer.as_slice());
    writer.raw(&check[..8]);
    writer.finish().try_into().expect("the fields of a head make 32 bytes")
}

fn entry_check(pack: PackId, at: u64, fields: &[u8]) -> [u8; 8] {
    let mut writer = Writer::new();
    writer.u64(pack.0).u64(at).raw(fields);
    let hash = sha256(writer.as_slice());
    hash[..8].try_into().expect("a hash is longer than 8 bytes")
}

fn entry_head(pack: PackId, at: u64, is_first: bool, name: ChunkName, len: u32) -> [u8; 48] {
    let mut writer = Writer::new();
    writer.raw(MARK).u8(if is_first { b'B' } else { b'E' }).u32(len).raw(&name.0);
    let check = entry_check(pack, at, writer.as_slice());
    writer.raw(&check);
    writer.finish().try_into().expect("the fields of an entry's head make 48 bytes")
}

/// An entry whose head is sound and whose bytes are all there, whatever they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    /// Offset of the head.
    pub at: u64,
    /// Whether an append began here.
    pub is_first: bool,
    pub name: ChunkName,
    pub len: u32,
}

impl Entry {
    /// Reads the head of an entry that begins at `at`.
    fn parse(pack: PackId, at: u64, bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader::new(bytes);
        let fields = reader.raw(40).ok()?;
        let check = reader.raw(8).ok()?;
        let mut fields_reader = Reader::new(fields);
        let is_mark = fields_reader.raw(3).ok()? == MARK;
        let is_first = match fields_reader.u8().ok()? {
            b'B' => true,
            b'E' => false,
            _ => return None,
        };
        let len = fields_reader.u32().ok()?;
        let name = ChunkName(fields_reader.array().ok()?);
        if !is_mark || len as usize >= super::SMALL_BYTES || check != entry_check(pack, at, fields) {
            return None;
        }
        Some(Self { at, is_first, name, len })
    }

    /// Offset of the first sealed byte.
    pub fn offset(&self) -> u64 {
        self.at + ENTRY_HEAD_BYTES
    }

    /// Offset behind the last sealed byte.
    pub fn end(&self) -> u64 {
        self.offset() + u64::from(self.len)
    }
}

/// Whether the head before `offset` says that `len` bytes of the chunk `name` follow.
pub(super) fn holds(file: &File, pack: PackId, offset: u64, name: ChunkName, len: u32) -> io::Result<bool> {
    let Some(at) = offset.checked_sub(ENTRY_HEAD_BYTES) else {
        return Ok(false);
    };
    let mut bytes = [0; ENTRY_HEAD_BYTES as usize];
    file.read_exact_at(&mut bytes, at)?;
    let entry = Entry::parse(pack, at, &bytes);
    Ok(entry.is_some_and(|entry| entry.name == name && entry.len == len))
}

/// The entries of a pack in order, over gaps that are none.
pub(super) struct Walk<'a> {
    file: &'a File,
    pack: PackId,
    /// Nothing behind this offset is looked at.
    end: u64,
    at: u64,
    /// Bytes passed over because they are no entries.
    pub gap_bytes: u64,
    window: Vec<u8>,
    window_at: u64,
}

impl<'a> Walk<'a> {
    /// From the offset `at` to `end`.
    pub fn new(file: &'a File, pack: PackId, at: u64, end: u64) -> Self {
        Self { file, pack, end, at, gap_bytes: 0, window: Vec::new(), window_at: 0 }
    }

    /// The next entry.
    pub fn next(&mut self) -> io::Result<Option<Entry>> {
        while self.at < self.end {
            if self.load(self.at, ENTRY_HEAD_BYTES, WINDOW_BYTES)? {
                let from = (self.at - self.window_at) as usize;
                let entry = Entry::parse(self.pack, self.at, &self.window[from..]);
                if let Some(entry) = entry.filter(|entry| entry.end() <= self.end) {
                    self.at = entry.end();
                    return Ok(Some(entry));
                }
            }
            let mark = self.find_mark(self.at + 1)?;
            self.gap_bytes += mark - self.at;
            self.at = mark;
        }
        Ok(None)
    }

    /// The offset of the next mark from `at` on, or the end.
    fn find_mark(&mut self, mut at: u64) -> io::Result<u64> {
        while self.load(at, MARK.len() as u64, SEARCH_BYTES)? {
            let from = (at - self.window_at) as usize;
            let found = self.window[from..].windows(MARK.len()).position(|three| three == MARK);
            match found {
                Some(skipped) => return Ok(at + skipped as u64),
                // A mark may straddle the end of the window.
                None => at = self.window_at + (self.window.len() - MARK.len() + 1) as u64,
            }
        }
        Ok(self.end)
    }

    /// Has at least `need` bytes from `at` on in the window; false if the pack ends before.
    fn load(&mut self, at: u64, need: u64, want: usize) -> io::Result<bool> {
        if at + need > self.end {
            return Ok(false);
        }
        if at < self.window_at || at + need > self.window_at + self.window.len() as u64 {
            let len = (self.end - at).min(want as u64);
            self.window.resize(len as usize, 0);
            self.window_at = at;
            if let Err(error) = self.file.read_exact_at(&mut self.window, at) {
                self.window.clear();
                return Err(error);
            }
        }
        Ok(true)
    }
}

/// What a pack that may have been cut off looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tail {
    /// Nothing behind this offset is of use; 0 if not even the head is whole.
    pub keep: u64,
    /// Everything up to `keep` is as it was written, so the pack may grow.
    pub is_sound: bool,
}

/// Looks where the last append of a pack of `len` bytes ends, and whether it is whole.
pub(super) fn check_tail(file: &File, pack: PackId, len: u64) -> io::Result<Tail> {
    if len < HEAD_BYTES {
        return Ok(Tail { keep: 0, is_sound: false });
    }
    let mut found = [0; HEAD_BYTES as usize];
    file.read_exact_at(&mut found, 0)?;
    if found != head(pack) {
        // Perhaps another version's: not ours to cut.
        return Ok(Tail { keep: len, is_sound: false });
    }
    let mut last_append = HEAD_BYTES;
    let mut walk = Walk::new(file, pack, HEAD_BYTES, len);
    let mut committed_gaps = 0;
    while let Some(entry) = walk.next()? {
        if entry.is_first {
            last_append = entry.at;
            committed_gaps = walk.gap_bytes;
        }
    }
    let mut tail = Tail { keep: last_append, is_sound: committed_gaps == 0 };
    let mut walk = Walk::new(file, pack, last_append, len);
    let mut sealed = Vec::new();
    while let Some(entry) = walk.next()? {
        sealed.resize(entry.len as usize, 0);
        file.read_exact_at(&mut sealed, entry.offset())?;
        if sha256(&sealed) == entry.name.0 {
            tail.is_sound &= tail.keep == entry.at;
            tail.keep = entry.end();
        }
    }
    Ok(tail)
}

/// The one writer of a pack.
#[derive(Debug)]
pub(super) struct PackWriter {
    pub id: PackId,
    pub path: PathBuf,
    file: File,
    /// Bytes that are durable; 0 before the first append.
    pub committed: u64,
    /// A failure left the file in a state that only a new look can tell.
    pub is_broken: bool,
}

impl PackWriter {
    /// A new pack in the folder `dir`. Its name is durable once the folder is synced.
    pub fn create(dir: &Path) -> io::Result<Self> {
        let id = PackId(u64::from_le_bytes(random()) >> 1);
        let path = dir.join(file_name(id));
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
        Ok(Self { id, path, file, committed: 0, is_broken: false })
    }

    /// Goes on with a pack that `check_tail` found sound.
    pub fn resume(id: PackId, path: PathBuf, file: File, committed: u64) -> Self {
        Self { id, path, file, committed, is_broken: false }
    }

    /// How many chunks from the front of `lens` fit in below `pack_bytes_max`.
    pub fn fitting(&self, lens: impl Iterator<Item = usize>, pack_bytes_max: u64) -> usize {
        let mut end = self.committed.max(HEAD_BYTES);
        lens.take_while(|len| {
            end += ENTRY_HEAD_BYTES + *len as u64;
            end <= pack_bytes_max
        })
        .count()
    }

    /// Appends chunks in one write and one sync, and says at which offset each lies. They must fit.
    ///
    /// After an error the file is as long as before.
    pub fn append(&mut self, chunks: &[(ChunkName, &[u8])]) -> io::Result<Vec<u64>> {
        if chunks.is_empty() {
            return Ok(Vec::new());
        }
        let start = self.committed.max(HEAD_BYTES);
        let mut end = start;
        let mut heads = Vec::with_capacity(chunks.len());
        let mut offsets = Vec::with_capacity(chunks.len());
        for (name, sealed) in chunks {
            let len = u32::try_from(sealed.len()).expect("only small chunks are packed");
            heads.push(entry_head(self.id, end, end == start, *name, len));
            offsets.push(end + ENTRY_HEAD_BYTES);
            end += ENTRY_HEAD_BYTES + u64::from(len);
        }
        let pack_head = head(self.id);
        let mut pieces = Vec::with_capacity(chunks.len() * 2 + 1);
        if self.committed == 0 {
            pieces.push(IoSlice::new(&pack_head));
        }
        for (head, (_, sealed)) in heads.iter().zip(chunks) {
            pieces.extend([IoSlice::new(head), IoSlice::new(sealed)]);
        }
        let written = write_all_at(&self.file, &mut pieces, self.committed);
        // After a failed sync the kernel may call pages clean that never reached the disk.
        self.is_broken = written.is_ok();
        let done = written.and_then(|()| self.file.sync_data());
        match done {
            Ok(()) => {
                self.is_broken = false;
                self.committed = end;
                Ok(offsets)
            }
            Err(error) => {
                self.is_broken |= self.file.set_len(self.committed).is_err();
                Err(error)
            }
        }
    }
}

fn write_all_at(file: &File, mut pieces: &mut [IoSlice<'_>], mut at: u64) -> io::Result<()> {
    while !pieces.is_empty() {
        match rustix::io::pwritev(file, &pieces[..pieces.len().min(PIECES_MAX)], at) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => {
                at += written as u64;
                IoSlice::advance_slices(&mut pieces, written);
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_packs_read_back() {
        let id = PackId(0x00ab_cdef_0123_4567);
        assert_eq!(file_name(id), "00abcdef01234567.pack");
        assert_eq!(id_of("00abcdef01234567.pack"), Some(id));
        for other in ["00ABCDEF01234567.pack", "abcdef01234567.pack", "00abcdef01234567", ".pack"] {
            assert_eq!(id_of(other), None);
        }
    }

    /// The bytes of a pack, so that a change of the format is seen here.
    #[test]
    fn heads_have_their_written_form() {
        let pack = PackId(0x0102_0304_0506_0708);
        let found = head(pack);
        assert_eq!(&found[..24], b"\x0dgrove/v1/pack\0\0\x08\x07\x06\x05\x04\x03\x02\x01");
        assert_eq!(found[24..], sha256(&found[..24])[..8]);
        let found = entry_head(pack, 32, true, ChunkName([9; 32]), 0x0001_0203);
        assert_eq!(&found[..8], b"gpkB\x03\x02\x01\0");
        assert_eq!(found[8..40], [9; 32]);
        let checked = [&found_id(pack)[..], &32u64.to_le_bytes(), &found[..40]].concat();
        assert_eq!(found[40..], sha256(&checked)[..8]);
    }

    fn found_id(pack: PackId) -> [u8; 8] {
        pack.0.to_le_bytes()
    }

    #[test]
    fn head_of_an_entry_holds_only_where_and_as_it_was_written() {
        let pack = PackId(7);
        let good = entry_head(pack, 80, false, ChunkName([1; 32]), 5);
        assert!(Entry::parse(pack, 80, &good).is_some());
        assert!(Entry::parse(pack, 81, &good).is_none());
        assert!(Entry::parse(PackId(8), 80, &good).is_none());
        assert!(Entry::parse(pack, 80, &good[..47]).is_none());
        for bit in 0..48 * 8 {
            let mut bad = good;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Entry::parse(pack, 80, &bad).is_none(), "bit {bit}");
        }
        let long = entry_head(pack, 80, false, ChunkName([1; 32]), 128 << 10);
        assert!(Entry::parse(pack, 80, &long).is_none());
    }
}

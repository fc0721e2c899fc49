//! Folders and files by descriptor: no step follows a symlink, so nothing leads out of GroveHome.
//!
//! Names are bytes. A path of 4,000 bytes and more is walked name by name, so PATH_MAX is no limit.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, RenameFlags, StatxFlags, Timespec, Timestamps, UTIME_OMIT,
};

use crate::id::hex;
use crate::keys::random;
use crate::manifest::{FileTime, Kind};

/// Names that begin so are files on their way into place, ours alone.
pub const TEMP_PREFIX: &[u8] = b".grove-tmp-";

/// Names that begin so are uploads that are not whole yet.
pub const UPLOAD_PREFIX: &[u8] = b".grove-tmp-upload-";
/// Folder below the state folder with a note for each of them, named by what follows `UPLOAD_PREFIX`.
pub const UPLOADS_FOLDER: &str = "uploads";

/// What the file system says of one name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stat {
    /// `None`: a socket, pipe or device, which is not kept.
    pub kind: Option<Kind>,
    /// Bytes.
    pub size: u64,
    /// Modified.
    pub mtime: FileTime,
    /// Changed, ns since 1970.
    pub ctime: i64,
    /// Inode.
    pub ino: u64,
    /// Born, ns since 1970; 0 where the file system does not tell.
    pub btime: i64,
    /// Permission bits.
    pub mode: u32,
    /// Names of the file.
    pub links: u32,
    /// The kernel's number of the file system; may differ after a restart.
    pub dev: u64,
    /// Bytes on disk: fewer than `size` in a file with holes.
    pub stored: u64,
}

impl Stat {
    /// Whether content and inode are as they were: the test for a file read while it was written.
    pub fn is_same_content(&self, other: &Self) -> bool {
        self.size == other.size
            && self.mtime == other.mtime
            && self.ctime == other.ctime
            && self.ino == other.ino
    }

    fn from_statx(x: &rustix::fs::Statx) -> Self {
        let kind = match FileType::from_raw_mode(x.stx_mode.into()) {
            FileType::RegularFile => Some(Kind::File),
            FileType::Symlink => Some(Kind::Symlink),
            FileType::Directory => Some(Kind::Folder),
            _ => None,
        };
        let ns = |time: &rustix::fs::StatxTimestamp| {
            time.tv_sec.saturating_mul(1_000_000_000).saturating_add(i64::from(time.tv_nsec))
        };
        let has_btime = x.stx_mask & StatxFlags::BTIME.bits() != 0;
        Self {
            kind,
            size: x.stx_size,
            mtime: FileTime { s: x.stx_mtime.tv_sec, ns: x.stx_mtime.tv_nsec },
            ctime: ns(&x.stx_ctime),
            ino: x.stx_ino,
            btime: if has_btime { ns(&x.stx_btime) } else { 0 },
            mode: u32::from(x.stx_mode) & 0o7777,
            links: x.stx_nlink,
            dev: u64::from(x.stx_dev_major) << 32 | u64::from(x.stx_dev_minor),
            stored: x.stx_blocks * 512,
        }
    }
}

fn statx_flags() -> StatxFlags {
    StatxFlags::BASIC_STATS | StatxFlags::BTIME
}

/// What the file system says of an open file.
pub fn stat_open(fd: impl AsFd) -> io::Result<Stat> {
    Ok(Stat::from_statx(&rustix::fs::statx(fd, c"", AtFlags::EMPTY_PATH, statx_flags())?))
}

/// An open folder.
#[derive(Debug)]
pub struct Folder {
    fd: OwnedFd,
}

impl Folder {
    /// Opens the folder at a path of the user's choice; here links are followed.
    pub fn open_root(path: &Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self { fd: rustix::fs::openat(CWD, path, flags, Mode::empty())? })
    }

    /// Opens a folder in this one; a link there is refused.
    pub fn open(&self, name: &[u8]) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(Self { fd: rustix::fs::openat(&self.fd, name, flags, Mode::empty())? })
    }

    /// Another descriptor of the same folder.
    pub fn again(&self) -> io::Result<Self> {
        Ok(Self { fd: self.fd.try_clone()? })
    }

    /// Opens the folder some names down.
    pub fn walk(&self, names: &[Vec<u8>]) -> io::Result<Self> {
        let mut at = self.again()?;
        for name in names {
            at = at.open(name)?;
        }
        Ok(at)
    }

    /// Opens the folder some names down, and makes what is missing of it.
    pub fn walk_or_create(&self, names: &[Vec<u8>]) -> io::Result<Self> {
        let mut at = self.again()?;
        for name in names {
            at = match at.open(name) {
                Err(why) if why.kind() == io::ErrorKind::NotFound => {
                    at.create_folder(name)?;
                    at.open(name)?
                }
                other => other?,
            };
        }
        Ok(at)
    }

    /// Makes a folder, or finds it made.
    pub fn create_folder(&self, name: &[u8]) -> io::Result<()> {
        match rustix::fs::mkdirat(&self.fd, name, Mode::from(0o755)) {
            Err(rustix::io::Errno::EXIST) => Ok(()),
            other => Ok(other?),
        }
    }

    /// What the file system says of this folder.
    pub fn stat_self(&self) -> io::Result<Stat> {
        stat_open(&self.fd)
    }

    /// What the file system says of a name; a link is not followed.
    pub fn stat(&self, name: &[u8]) -> io::Result<Stat> {
        Ok(Stat::from_statx(&rustix::fs::statx(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW, statx_flags())?))
    }

    /// Like `stat`, and `None` for a name that is not there.
    pub fn stat_if_there(&self, name: &[u8]) -> io::Result<Option<Stat>> {
        match self.stat(name) {
            Ok(stat) => Ok(Some(stat)),
            Err(why) if why.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(why) => Err(why),
        }
    }

    /// An id of the file system that outlives restarts where the file system has one.
    pub fn file_system(&self) -> io::Result<Vec<u8>> {
        let fsid = rustix::fs::fstatvfs(&self.fd)?.f_fsid;
        if fsid != 0 {
            return Ok([&b"fsid"[..], &fsid.to_le_bytes()].concat());
        }
        Ok([&b"dev"[..], &self.stat_self()?.dev.to_le_bytes()].concat())
    }

    /// The names in the folder, one after another, in no order.
    pub fn names(&self) -> io::Result<Names> {
        Ok(Names { dir: Dir::read_from(&self.fd)? })
    }

    /// Opens a file to read; a link is refused and a pipe does not block.
    pub fn open_file(&self, name: &[u8]) -> io::Result<File> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        Ok(File::from(rustix::fs::openat(&self.fd, name, flags, Mode::empty())?))
    }

    /// Where a link points.
    pub fn read_link(&self, name: &[u8]) -> io::Result<Vec<u8>> {
        Ok(rustix::fs::readlinkat(&self.fd, name, Vec::new())?.into_bytes())
    }

    /// Removes a file or link; gone already is fine.
    pub fn remove_file(&self, name: &[u8]) -> io::Result<()> {
        match rustix::fs::unlinkat(&self.fd, name, AtFlags::empty()) {
            Err(rustix::io::Errno::NOENT) => Ok(()),
            other => Ok(other?),
        }
    }

    /// Removes an empty folder; gone already is fine.
    pub fn remove_folder(&self, name: &[u8]) -> io::Result<()> {
        match rustix::fs::unlinkat(&self.fd, name, AtFlags::REMOVEDIR) {
            Err(rustix::io::Errno::NOENT) => Ok(()),
            other => Ok(other?),
        }
    }

    /// Renames within the folder; `replace` or fail with `AlreadyExists`.
    pub fn rename(&self, from: &[u8], to: &[u8], replace: bool) -> io::Result<()> {
        self.rename_into(from, self, to, replace)
    }

    /// Renames into another folder of the file system; `replace` or fail with `AlreadyExists`.
    pub fn rename_into(&self, from: &[u8], folder: &Folder, to: &[u8], replace: bool) -> io::Result<()> {
        if replace {
            return Ok(rustix::fs::renameat(&self.fd, from, &folder.fd, to)?);
        }
        match rustix::fs::renameat_with(&self.fd, from, &folder.fd, to, RenameFlags::NOREPLACE) {
            // Some file systems know no flags: then a look before has to do.
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => {
                if folder.stat_if_there(to)?.is_some() {
                    return Err(io::ErrorKind::AlreadyExists.into());
                }
                Ok(rustix::fs::renameat(&self.fd, from, &folder.fd, to)?)
            }
            other => Ok(other?),
        }
    }

    /// Gives a file another name in this folder.
    pub fn link(&self, from_folder: &Folder, from: &[u8], to: &[u8]) -> io::Result<()> {
        Ok(rustix::fs::linkat(&from_folder.fd, from, &self.fd, to, AtFlags::empty())?)
    }

    /// Makes a link.
    pub fn create_link(&self, target: &[u8], name: &[u8]) -> io::Result<()> {
        Ok(rustix::fs::symlinkat(target, &self.fd, name)?)
    }

    /// Sets a name's permission bits. Not for links: they have none.
    pub fn set_mode(&self, name: &[u8], mode: u32) -> io::Result<()> {
        Ok(rustix::fs::chmodat(&self.fd, name, Mode::from_raw_mode(mode), AtFlags::empty())?)
    }

    /// Sets when a name was modified; a link's own time, not its target's.
    pub fn set_mtime(&self, name: &[u8], mtime: FileTime) -> io::Result<()> {
        Ok(rustix::fs::utimensat(&self.fd, name, &timestamps(mtime), AtFlags::SYMLINK_NOFOLLOW)?)
    }

    /// Sets this folder's own mode and time.
    pub fn set_self(&self, mode: u32, mtime: FileTime) -> io::Result<()> {
        rustix::fs::fchmod(&self.fd, Mode::from_raw_mode(mode))?;
        Ok(rustix::fs::futimens(&self.fd, &timestamps(mtime))?)
    }

    /// Creates a file under a name of ours, to be written and put in place.
    pub fn create_temp(&self) -> io::Result<Temp> {
        let flags = OFlags::RDWR | OFlags::CLOEXEC;
        let mode = Mode::from(0o600);
        // A file without a name: nothing is left of it if we die before it is whole.
        match rustix::fs::openat(&self.fd, c".", flags | OFlags::TMPFILE, mode) {
            Ok(fd) => Ok(Temp { file: File::from(fd), named: None }),
            Err(_) => {
                let name = temp_name();
                let fd =
                    rustix::fs::openat(&self.fd, &name[..], flags | OFlags::CREATE | OFlags::EXCL, mode)?;
                Ok(Temp { file: File::from(fd), named: Some((self.again()?, name)) })
            }
        }
    }

    /// Makes names durable.
    pub fn sync(&self) -> io::Result<()> {
        Ok(rustix::fs::fsync(&self.fd)?)
    }

    /// Makes all of the file system durable.
    pub fn sync_file_system(&self) -> io::Result<()> {
        Ok(rustix::fs::syncfs(&self.fd)?)
    }

    /// The descriptor, for inotify through /proc.
    pub fn fd(&self) -> &OwnedFd {
        &self.fd
    }
}

fn temp_name() -> Vec<u8> {
    [TEMP_PREFIX, hex(&random::<8>()).as_bytes()].concat()
}

fn timestamps(mtime: FileTime) -> Timestamps {
    Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec: mtime.s, tv_nsec: i64::from(mtime.ns) as _ },
    }
}

/// The names in a folder.
pub struct Names {
    dir: Dir,
}

impl Iterator for Names {
    type Item = io::Result<Vec<u8>>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            match self.dir.next()? {
                Ok(entry) => {
                    let name = entry.file_name().to_bytes();
                    if name != b"." && name != b".." {
                        return Some(Ok(name.to_vec()));
                    }
                }
                Err(why) => return Some(Err(why.into())),
            }
        }
    }
}

/// A file being written; dropped before it is put in place, it leaves nothing.
#[derive(Debug)]
pub struct Temp {
    file: File,
    /// Its folder and the name it has meanwhile, where the file system cannot keep a file without one.
    named: Option<(Folder, Vec<u8>)>,
}

impl Temp {
    /// The file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Sets permission bits and time; do it after the last write.
    pub fn set(&self, mode: u32, mtime: FileTime) -> io::Result<()> {
        rustix::fs::fchmod(&self.file, Mode::from_raw_mode(mode))?;
        Ok(rustix::fs::futimens(&self.file, &timestamps(mtime))?)
    }

    /// Puts the file in place in `folder`, in which it was made; `replace` what is there or fail with `AlreadyExists`.
    /// Durability is the caller's.
    pub fn put(mut self, folder: &Folder, name: &[u8], replace: bool) -> io::Result<()> {
        if let Some((_, temp)) = &self.named {
            folder.rename(temp, name, replace)?;
            self.named = None;
            return Ok(());
        }
        let proc_path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&self.file));
        let link =
            |to: &[u8]| rustix::fs::linkat(CWD, proc_path.as_str(), &folder.fd, to, AtFlags::SYMLINK_FOLLOW);
        if !replace {
            return Ok(link(name)?);
        }
        let temp = temp_name();
        link(&temp)?;
        folder.rename(&temp, name, true).inspect_err(|_| {
            let _ = folder.remove_file(&temp);
        })
    }
}

impl Drop for Temp {
    fn drop(&mut self) {
        if let Some((folder, name)) = &self.named {
            let _ = folder.remove_file(name);
        }
    }
}

/// A path as names; `None` if it has `..`, or is absolute.
pub fn names_of(path: &Path) -> Option<Vec<Vec<u8>>> {
    path.components()
        .filter(|part| !matches!(part, std::path::Component::CurDir))
        .map(|part| match part {
            std::path::Component::Normal(name) => Some(name.as_bytes().to_vec()),
            _ => None,
        })
        .collect()
}

/// Names as text for people and logs: what is not UTF-8 is shown as such, controls are made visible.
pub fn show(names: &[Vec<u8>]) -> String {
    names.iter().map(|name| show_name(name)).collect::<Vec<_>>().join("/")
}

/// A name as text for people.
pub fn show_name(name: &[u8]) -> String {
    String::from_utf8_lossy(name).chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// Bytes of a path as text that gives them back: what is not UTF-8, controls and `%` itself are written as `%XX`.
pub fn to_wire(bytes: &[u8]) -> String {
    use std::fmt::Write;
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            if c.is_control() || c == '%' {
                let mut buffer = [0; 4];
                for byte in c.encode_utf8(&mut buffer).bytes() {
                    let _ = write!(text, "%{byte:02X}");
                }
            } else {
                text.push(c);
            }
        }
        for byte in chunk.invalid() {
            let _ = write!(text, "%{byte:02X}");
        }
    }
    text
}

/// The bytes that `to_wire` wrote; a `%` without two hexadecimal digits stands for itself.
pub fn from_wire(text: &str) -> Vec<u8> {
    let text = text.as_bytes();
    let mut bytes = Vec::with_capacity(text.len());
    let mut at = 0;
    while at < text.len() {
        let digits = text.get(at + 1..at + 3).and_then(|two| std::str::from_utf8(two).ok());
        match digits.filter(|_| text[at] == b'%').and_then(crate::id::unhex) {
            Some(byte) => {
                bytes.extend(byte);
                at += 3;
            }
            None => {
                bytes.push(text[at]);
                at += 1;
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_bytes_come_back_from_their_text() {
        for bytes in [&b"caf\xe9/x"[..], "héllo%41\n".as_bytes(), b"%", b"\xff\xfe\0", b""] {
            assert_eq!(from_wire(&to_wire(bytes)), bytes);
        }
        assert_eq!(to_wire(b"a%\xff\n"), "a%25%FF%0A");
    }
}

//! Keeping what friends share: its files and their new versions come by themselves to `Shared/FRIEND/` in GroveHome.
//!
//! They are plaintext only: not imported, and no copy of anything. What a new version replaces, and what was taken back or
//! deleted by the friend, lies in `Shared/.grove/bin/` for 30 days.
//!
//! Each step is noted before it is done, and what broke off is brought to its end when the shelf is opened next (`settle`).
//!
//! Promise: a file that was changed here is never replaced or removed, only set aside as `name (mine)`, and is this cell's
//! own then; nothing outside `Shared/` is touched.

use std::cell::Cell;
use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::{Arc, MutexGuard};
use std::time::Duration;

use futures_util::future::join_all;

use super::books::Books;
use super::driver::Sync;
use super::kept::KeptFile;
use super::received::ReceivedRow;
use crate::files::kept::{OWN, SHARED, set_kept};
use crate::files::marker;
use crate::files::unix::{Folder, Stat};
use crate::grant::{Hash, numbered_names, safe_name, with_mark};
use crate::id::{CellId, FileId, hex};
use crate::keys::sha256;
use crate::manifest::Kind;
use crate::pool::unblock;
use crate::vault::{Vault, VaultError, lock};
use crate::wire::within;
use crate::world::Timer;

/// What is kept is looked through this often, if nothing has come meanwhile.
const EVERY: Duration = Duration::from_secs(300);
/// And while something could not be fetched.
const AGAIN: Duration = Duration::from_secs(30);
/// More may follow what has just come.
const PAUSE: Duration = Duration::from_secs(1);
/// Files fetched at once.
const AT_ONCE: usize = 4;
/// Files of a friend who is here that do not come, one after the other, before the rest of theirs waits: a few that nobody
/// can give keep no others away.
const MISSED_MAX: usize = 16;
/// Grants looked at together.
const PAGE: usize = 500;
/// A file changed by somebody is let alone until it was quiet for so long. s.
const QUIET_S: i64 = 5;
/// The bin keeps what lies in it for so long. Observed seconds.
const BIN_S: u64 = 30 * 86_400;
/// Names tried where one is taken.
const NAMES_TRIED: usize = 100;
/// Endings of files that are not whole yet.
const PART: &[u8] = b".part";
/// Of a kept file that is being taken away: no grant has it.
const NO_VERSION: u64 = 0;
/// One file of a friend comes within this, or the others have their turn first.
const FETCH_TIME_MAX: Duration = Duration::from_secs(6 * 3600);

/// A share that is kept from now on, or no more.
#[derive(Debug, Clone)]
pub struct KeptShare {
    /// Whose.
    pub from: String,
    /// Folder below GroveHome into which its files come.
    pub folder: String,
    /// Files of it that lie here.
    pub here: Vec<Vec<Vec<u8>>>,
}

/// A kept file on this disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum OnDisk {
    Gone,
    AsPut,
    /// By somebody here; `is_quiet`: not just now.
    Changed {
        is_quiet: bool,
    },
}

/// What is to be done with one file of a share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Leave,
    /// Somebody is at work on it.
    Wait,
    /// Only its name is new.
    Move,
    /// Fetch it, and put it in the place of what is here.
    Fetch,
    /// It is not shared any more.
    Remove,
    /// Nor is it here.
    Forget,
}

/// `known` is what was put here, `granted` what is shared now: version and root. `is_elsewhere`: it belongs in another folder
/// now.
fn judge(
    known: Option<(u64, Hash)>,
    granted: Option<(u64, Hash)>,
    on_disk: OnDisk,
    is_elsewhere: bool,
) -> Verdict {
    let is_busy = on_disk == OnDisk::Changed { is_quiet: false };
    match (known, granted) {
        (Some(_), _) if is_busy => Verdict::Wait,
        (None, None) => Verdict::Leave,
        (None, Some(_)) => Verdict::Fetch,
        (Some(_), None) if on_disk == OnDisk::Gone => Verdict::Forget,
        (Some(_), None) => Verdict::Remove,
        (Some((had, root)), Some((version, newer))) => match on_disk {
            OnDisk::AsPut if had == version && is_elsewhere => Verdict::Move,
            // What was deleted here stays away until there is something new.
            OnDisk::Gone | OnDisk::AsPut if had == version => Verdict::Leave,
            OnDisk::AsPut if root == newer => Verdict::Move,
            _ => Verdict::Fetch,
        },
    }
}

/// What was put here, for `judge`. A friend that went back to an older disk may give the number of a version once more, to
/// other bytes.
fn had(known: &KeptFile, version: u64, root: Hash) -> (u64, Hash) {
    let is_other = known.version == version && known.root != root;
    (if is_other { NO_VERSION } else { known.version }, known.root)
}

fn names_of(path: &[u8]) -> Vec<Vec<u8>> {
    path.split(|c| *c == b'/').map(<[u8]>::to_vec).collect()
}

/// GroveHome's part that is friends'. One works at it at a time.
struct Shelf<'a> {
    vault: &'a Vault,
    books: &'a Books,
    home: Folder,
    _alone: MutexGuard<'a, ()>,
}

fn doing(what: &str, path: &[Vec<u8>]) -> impl FnOnce(std::io::Error) -> VaultError {
    VaultError::io(format!("cannot {what} {}", crate::files::unix::show(path)))
}

impl<'a> Shelf<'a> {
    /// Fails where GroveHome is not there: an unplugged disk is no deletion.
    fn open(vault: &'a Vault, books: &'a Books) -> Result<Self, VaultError> {
        let home = Folder::open_root(&vault.home).map_err(VaultError::io("cannot open GroveHome"))?;
        marker::check(vault, &home)?;
        let shelf = Self { vault, books, home, _alone: lock(&books.shelf) };
        shelf.settle()?;
        Ok(shelf)
    }

    /// Brings to an end what broke off.
    fn settle(&self) -> Result<(), VaultError> {
        tell_freed(self.vault, self.books)?;
        for (creator, file, source) in self.books.kept_moves(PAGE)? {
            let outcome = match self.books.kept_file(&creator, file)? {
                Some(known) => self.arrive(&known, &source),
                // It is kept no more: what has not set out is nobody's.
                None => self.leave(&creator, file, &source),
            };
            if let Err(why) = outcome {
                log::warn!("a file in Shared/ does not come to its place: {why}");
            }
        }
        Ok(())
    }

    /// Whether there is room for what is still to come of files of so many bytes, all that are under way, of which one lies
    /// partly at `begun`. The reserve is for nobody, and least of all for others' files.
    fn check_room(&self, bytes: u64, begun: &[Vec<u8>]) -> Result<(), VaultError> {
        // What has come takes no more; its holes have not come.
        let bytes = bytes.saturating_sub(self.stat(begun)?.map_or(0, |stat| stat.stored));
        let disk = rustix::fs::fstatvfs(self.home.fd())
            .map_err(|why| VaultError::io("cannot ask for free space in GroveHome")(why.into()))?;
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        match free >= self.vault.store.free()?.reserve.saturating_add(bytes) {
            true => Ok(()),
            false => Err(VaultError::Refused("GroveHome's disk has no room for it".into())),
        }
    }

    fn stat(&self, path: &[Vec<u8>]) -> Result<Option<Stat>, VaultError> {
        let Some((name, folder)) = path.split_last() else { return Ok(None) };
        let found = self.home.walk(folder).and_then(|folder| folder.stat_if_there(name));
        match found {
            Ok(found) => Ok(found),
            Err(why) if why.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(why) => Err(doing("look at", path)(why)),
        }
    }

    fn look(&self, known: &KeptFile) -> Result<OnDisk, VaultError> {
        let Some(stat) = self.stat(&names_of(&known.path))? else { return Ok(OnDisk::Gone) };
        if stat.kind == Some(Kind::File) && stat.size == known.size && stat.mtime == known.mtime {
            return Ok(OnDisk::AsPut);
        }
        let age = self.vault.clock.wall() - stat.ctime / 1_000_000_000;
        // A change from the future is settled too: the clock may be wrong.
        Ok(OnDisk::Changed { is_quiet: !(0..QUIET_S).contains(&age) })
    }

    fn mark(&self, path: &[Vec<u8>], is_kept: bool) -> Result<(), VaultError> {
        Ok(self.vault.db.change_durably(|t| set_kept(t, path, is_kept))?)
    }

    /// A folder that is there for good when this returns.
    fn folder(&self, names: &[Vec<u8>]) -> Result<Folder, VaultError> {
        match self.home.walk(names) {
            Err(why) if why.kind() == std::io::ErrorKind::NotFound => {}
            found => return found.map_err(doing("open", names)),
        }
        let made = self.home.walk_or_create(names).and_then(|made| {
            (0..names.len()).try_for_each(|depth| self.home.walk(&names[..depth])?.sync())?;
            Ok(made)
        });
        made.map_err(doing("make", names))
    }

    /// Where something on its way, or in the bin, lies.
    fn own_folder(&self, names: &[&[u8]]) -> Vec<Vec<u8>> {
        [SHARED, OWN].iter().chain(names).map(|name| name.to_vec()).collect()
    }

    /// The first of these names in a folder that nobody has.
    fn free_name(
        &self,
        folder: &Folder,
        path: &[Vec<u8>],
        names: impl Iterator<Item = String>,
    ) -> Result<Vec<u8>, VaultError> {
        for name in names {
            let mut whole = path.to_vec();
            whole.push(name.clone().into_bytes());
            let is_taken = folder.stat_if_there(name.as_bytes()).map_err(doing("look at", &whole))?.is_some();
            if !is_taken && !self.books.is_path_kept(&whole.join(&b'/'))? {
                return Ok(name.into_bytes());
            }
        }
        Err(VaultError::Refused(format!("no name is free in {}", crate::files::unix::show(path))))
    }

    /// Renames to the first of these names that is free in a folder, durably. Gives the name.
    fn put(
        &self,
        from: (&Folder, &[u8]),
        path: &[Vec<u8>],
        names: impl Iterator<Item = String>,
        before: impl FnOnce(&[Vec<u8>]) -> Result<(), VaultError>,
    ) -> Result<Vec<Vec<u8>>, VaultError> {
        let folder = self.folder(path)?;
        let name = self.free_name(&folder, path, names)?;
        let mut whole = path.to_vec();
        whole.push(name.clone());
        before(&whole)?;
        let moved = from.0.rename_into(from.1, &folder, &name, false);
        moved.and_then(|()| folder.sync()).and_then(|()| from.0.sync()).map_err(doing("write", &whole))?;
        Ok(whole)
    }

    /// Takes what lies at a kept file's place away from there: into the bin as it was put, aside if it was changed.
    fn clear(&self, known: &KeptFile, on_disk: OnDisk) -> Result<(), VaultError> {
        let path = names_of(&known.path);
        if let (Some((name, above)), true) = (path.split_last(), on_disk != OnDisk::Gone) {
            let from = self.home.walk(above).map_err(doing("open", above))?;
            let shown = String::from_utf8_lossy(name).into_owned();
            // No version of it is here from now on: what is gone after a break was not deleted by somebody here.
            self.books.put_kept_file(&KeptFile { version: NO_VERSION, ..known.clone() })?;
            self.books.step();
            if on_disk == OnDisk::AsPut {
                let friend = path.get(1).map_or(&b""[..], |name| name);
                let bin = self.own_folder(&[b"bin", friend]);
                let now = self.vault.expiry_now();
                self.put((&from, name), &bin, numbered_names(&shown, NAMES_TRIED), |at| {
                    Ok(self.books.put_kept_bin(&at.join(&b'/'), now)?)
                })?;
            } else {
                // It is this cell's own from now on, and is found by the watch or the next scan.
                let mine = numbered_names(&with_mark(&shown, "mine"), NAMES_TRIED);
                let at = self.put((&from, name), above, mine, |at| self.mark(at, false))?;
                log::info!("{} was changed here and is set aside", crate::files::unix::show(&at));
            }
            self.books.step();
        }
        // The row goes last: what is marked has one.
        self.mark(&path, false)?;
        self.books.step();
        Ok(self.books.drop_kept_file(known)?)
    }

    /// Takes away what is not shared any more, and folders that are empty then.
    fn remove(&self, known: &KeptFile, on_disk: OnDisk) -> Result<(), VaultError> {
        self.clear(known, on_disk)?;
        self.tidy(&names_of(&known.path));
        Ok(())
    }

    /// Removes folders that are empty since a friend's file is no more at this place.
    fn tidy(&self, path: &[Vec<u8>]) {
        for depth in (2..path.len()).rev() {
            let (name, above) = path[..depth].split_last().expect("there are two");
            let removed = self.home.walk(above).and_then(|folder| folder.remove_folder(name));
            if removed.is_err() {
                break;
            }
        }
    }

    /// Puts what lies at `source` at the place that a grant asks for.
    fn shelve(
        &self,
        row: &ReceivedRow,
        root: Hash,
        wanted: &[Vec<u8>],
        source: &[Vec<u8>],
    ) -> Result<(), VaultError> {
        let Some((name, above)) = wanted.split_last() else { return Ok(()) };
        let stat = self
            .stat(source)?
            .ok_or_else(|| VaultError::Refused(format!("{} went away", crate::files::unix::show(source))))?;
        let kept = KeptFile {
            creator: row.creator,
            file: row.file,
            version: row.version,
            root,
            wanted: wanted.join(&b'/'),
            path: self.free_path(above, name)?.join(&b'/'),
            size: stat.size,
            mtime: stat.mtime,
        };
        let source = source.join(&b'/');
        self.books.begin_kept_move(&kept, &source)?;
        self.books.step();
        self.arrive(&kept, &source)
    }

    /// A path in a folder that nobody has, by this name or a similar one.
    fn free_path(&self, above: &[Vec<u8>], name: &[u8]) -> Result<Vec<Vec<u8>>, VaultError> {
        let names = numbered_names(&String::from_utf8_lossy(name), NAMES_TRIED);
        let name = self.free_name(&self.folder(above)?, above, names)?;
        Ok([above, &[name]].concat())
    }

    /// Brings a file that set out from `source` to its path, wherever it is by now.
    fn arrive(&self, known: &KeptFile, source: &[u8]) -> Result<(), VaultError> {
        let mut path = names_of(&known.path);
        let from = names_of(source);
        if self.stat(&from)?.is_some() {
            if self.stat(&path)?.is_some() {
                // Somebody here has put something there since it broke off: that is this cell's own.
                self.mark(&path, false)?;
                let wanted = names_of(&known.wanted);
                let Some((name, above)) = wanted.split_last() else { return Ok(()) };
                path = self.free_path(above, name)?;
                self.books.begin_kept_move(&KeptFile { path: path.join(&b'/'), ..known.clone() }, source)?;
            }
            let (Some((old, old_above)), Some((name, above))) = (from.split_last(), path.split_last()) else {
                return Ok(());
            };
            // Known as a friend's before it is there, so that no scan takes it for this cell's own.
            self.mark(&path, true)?;
            self.books.step();
            let (folder, to) =
                (self.home.walk(old_above).map_err(doing("open", old_above))?, self.folder(above)?);
            let moved = folder.rename_into(old, &to, name, false);
            moved.and_then(|()| to.sync()).and_then(|()| folder.sync()).map_err(doing("write", &path))?;
        } else if self.stat(&path)?.is_none() {
            // Somebody took it away: it comes again.
            self.mark(&path, false)?;
            self.books.step();
            self.books.drop_kept_file(known)?;
        }
        self.books.step();
        self.leave(&known.creator, known.file, source)
    }

    /// What set out from `source` is not there any more, or is nobody's.
    fn leave(&self, creator: &CellId, file: FileId, source: &[u8]) -> Result<(), VaultError> {
        let from = names_of(source);
        if from.get(1).is_none_or(|name| name != OWN) {
            self.mark(&from, false)?;
            self.books.step();
            self.tidy(&from);
        }
        self.books.step();
        Ok(self.books.end_kept_move(creator, file)?)
    }

    /// Puts what was fetched as `name` in its place, and what is there out of its way.
    fn place(&self, row: &ReceivedRow, root: Hash, wanted: &[Vec<u8>], name: &str) -> Result<(), VaultError> {
        // As it is now: while it was fetched, the share may have been let go and kept once more.
        if let Some(known) = self.books.kept_file(&row.creator, row.file)? {
            let on_disk = self.look(&known)?;
            if on_disk == (OnDisk::Changed { is_quiet: false }) {
                return Err(VaultError::Refused("the file is being changed here".into()));
            }
            self.clear(&known, on_disk)?;
            self.books.step();
        }
        self.shelve(row, root, wanted, &self.own_folder(&[b"incoming", name.as_bytes()]))
    }

    /// A new version has the same content: it moves to where it is to be now.
    fn move_on(
        &self,
        known: &KeptFile,
        row: &ReceivedRow,
        root: Hash,
        wanted: &[Vec<u8>],
    ) -> Result<(), VaultError> {
        if known.wanted == wanted.join(&b'/') {
            let kept = KeptFile { version: row.version, root, ..known.clone() };
            return Ok(self.books.put_kept_file(&kept)?);
        }
        self.shelve(row, root, wanted, &names_of(&known.path))
    }

    /// Removes what was fetched whole and is not on its way to a place, and what was begun and is not wanted any more. Nothing
    /// is fetched meanwhile.
    fn tidy_incoming(&self) -> Result<(), VaultError> {
        let incoming = self.own_folder(&[b"incoming"]);
        let folder = match self.home.walk(&incoming) {
            Err(why) if why.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            found => found.map_err(doing("open", &incoming))?,
        };
        let names = folder.names().map_err(doing("read", &incoming))?;
        let mut left: HashSet<Vec<u8>> =
            names.take(PAGE).collect::<Result<_, _>>().map_err(doing("read", &incoming))?;
        for (.., source) in self.books.kept_moves(PAGE)? {
            left.remove(names_of(&source).last().map_or(&[][..], |name| name));
        }
        let mut after = 0;
        while left.iter().any(|name| name.ends_with(PART)) {
            let rows = self.books.received_kept(after, PAGE)?;
            let Some(last) = rows.last() else { break };
            after = last.n;
            for row in &rows {
                left.remove(&[incoming_name(row).as_bytes(), PART].concat());
            }
        }
        left.iter().try_for_each(|name| folder.remove_file(name)).map_err(doing("tidy", &incoming))
    }

    /// Lets go of what has lain in the bin for 30 days.
    fn empty_bin(&self) -> Result<(), VaultError> {
        let until = self.vault.expiry_now().saturating_sub(BIN_S);
        for path in self.books.kept_bin_before(until, PAGE)? {
            let names = names_of(&path);
            if let Some((name, above)) = names.split_last() {
                match self.home.walk(above).and_then(|folder| folder.remove_file(name)) {
                    Err(why) if why.kind() != std::io::ErrorKind::NotFound => {
                        return Err(doing("remove", &names)(why));
                    }
                    _ => {}
                }
            }
            self.books.drop_kept_bin(&path)?;
        }
        Ok(())
    }
}

/// What a file of a grant is called on its way here.
fn incoming_name(row: &ReceivedRow) -> String {
    hex(&sha256(&[&row.creator.0[..], &row.ticket, &row.version.to_le_bytes()].concat())[..16])
}

/// Bytes that are on their way as long as this lives.
struct Coming<'a>(&'a Cell<u64>, u64);

impl<'a> Coming<'a> {
    fn new(all: &'a Cell<u64>, bytes: u64) -> Self {
        // Sizes are what others say.
        let bytes = bytes.min(u64::MAX - all.get());
        all.set(all.get() + bytes);
        Self(all, bytes)
    }
}

impl Drop for Coming<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - self.1);
    }
}

/// One file that is to be fetched.
struct Due {
    row: ReceivedRow,
}

impl Sync {
    /// Something came or went that may be kept.
    pub(super) fn wake_keeping(&self) {
        let _ = self.keep_wake.0.try_send(());
    }

    /// Keeps the share that a file of the Feed came through (or that file), or keeps it no more: what is here stays then,
    /// and is this cell's own.
    pub async fn keep_share(self: &Rc<Self>, id: &str, is_kept: bool) -> Result<KeptShare, VaultError> {
        let (entry, _) = self.find_granted(id).await?;
        let row = entry.row;
        let from = self.name_of(&row.creator);
        let label = safe_name(from.as_bytes()).unwrap_or_else(|_| row.creator.short());
        let (books, vault) = (Arc::clone(&self.books), Arc::clone(&self.vault));
        let (folder, here) = unblock(move || -> Result<_, VaultError> {
            let _alone = lock(&books.shelf);
            let folder = books.kept_folder(&row.creator, &label)?;
            let here = books.set_kept(&vault, &row.creator, &row.kept_id(), is_kept)?;
            tell_freed(&vault, &books)?;
            Ok((folder, here.iter().map(|path| names_of(path)).collect()))
        })
        .await?;
        self.wake_keeping();
        self.publish_later();
        Ok(KeptShare { from, folder: format!("Shared/{folder}"), here })
    }

    /// Brings what is kept level with what is shared, for ever.
    pub(super) async fn keep_kept(self: Rc<Self>) {
        loop {
            let is_level = match self.keep_once().await {
                Ok(is_level) => is_level,
                Err(why) => {
                    log::warn!("what friends share is not kept now: {why}");
                    false
                }
            };
            let wait = if is_level { EVERY } else { AGAIN };
            within(wait, self.keep_wake.1.recv()).await;
            Timer::after(PAUSE).await;
            while self.keep_wake.1.try_recv().is_ok() {}
        }
    }

    /// Looks through all that is kept. `false`: something is left to be fetched.
    async fn keep_once(self: &Rc<Self>) -> Result<bool, VaultError> {
        let (books, vault) = (Arc::clone(&self.books), Arc::clone(&self.vault));
        let is_any = unblock(move || -> Result<bool, VaultError> {
            let is_any = !books.kept_files(None, 1)?.is_empty()
                || !books.received_kept(0, 1)?.is_empty()
                || !books.kept_bin_before(u64::MAX >> 1, 1)?.is_empty();
            if is_any {
                Shelf::open(&vault, &books)?;
            }
            Ok(is_any)
        });
        if !is_any.await? {
            return Ok(true);
        }
        let mut is_level = self.drop_unshared().await?;
        let mut after = 0;
        // Files of each friend that did not come, one after the other: after some the rest of theirs waits.
        let mut missed: HashMap<CellId, usize> = HashMap::new();
        loop {
            let (books, vault) = (Arc::clone(&self.books), Arc::clone(&self.vault));
            let page = unblock(move || look_through(&vault, &books, after)).await?;
            let Some(page) = page else { return Ok(is_level) };
            after = page.last;
            is_level &= !page.is_any_busy;
            let mut due = page.due.into_iter();
            loop {
                let may_come = |due: &Due| {
                    let most = if self.link(&due.row.creator).is_some() { MISSED_MAX } else { 1 };
                    missed.get(&due.row.creator).is_none_or(|missed| *missed < most)
                };
                let some: Vec<Due> = due.by_ref().filter(may_come).take(AT_ONCE).collect();
                if some.is_empty() {
                    break;
                }
                let fetches = some.into_iter().map(|due| async move {
                    let creator = due.row.creator;
                    (creator, within(FETCH_TIME_MAX, self.keep_one(due)).await)
                });
                for (creator, outcome) in join_all(fetches).await {
                    match outcome {
                        Some(Ok(())) => drop(missed.remove(&creator)),
                        Some(Err(why)) => {
                            log::info!("a file of {} does not come now: {why}", self.name_of(&creator));
                            *missed.entry(creator).or_default() += 1;
                            is_level = false;
                        }
                        None => is_level = false,
                    }
                }
            }
        }
    }

    /// Takes away what is kept no more, and what has lain in the bin for long.
    async fn drop_unshared(&self) -> Result<bool, VaultError> {
        let (books, vault) = (Arc::clone(&self.books), Arc::clone(&self.vault));
        unblock(move || {
            let shelf = Shelf::open(&vault, &books)?;
            let (mut after, mut is_level) = (None, true);
            loop {
                let page = books.kept_files(after, PAGE)?;
                let Some(last) = page.last() else { break };
                after = Some((last.creator, last.file));
                for known in &page {
                    let is_shared =
                        books.received_of(&known.creator, known.file)?.is_some_and(|row| row.is_kept);
                    if is_shared {
                        continue;
                    }
                    let on_disk = shelf.look(known)?;
                    match judge(Some((known.version, known.root)), None, on_disk, false) {
                        Verdict::Wait => is_level = false,
                        _ => shelf.remove(known, on_disk)?,
                    }
                }
            }
            shelf.empty_bin()?;
            shelf.tidy_incoming()?;
            books.tidy_kept_anew()?;
            Ok(is_level)
        })
        .await
    }

    /// Fetches one file and puts it in its place.
    async fn keep_one(self: &Rc<Self>, due: Due) -> Result<(), VaultError> {
        let Due { row } = due;
        let (entry, opened) = self.open_received(row.clone()).await?;
        let name = incoming_name(&row);
        let (books, vault, staged) = (Arc::clone(&self.books), Arc::clone(&self.vault), name.clone());
        // Of several at once each would find the room that is there for one.
        let coming = Coming::new(&self.keeping_bytes, row.size);
        let bytes = self.keeping_bytes.get();
        let place = unblock(move || -> Result<PathBuf, VaultError> {
            let shelf = Shelf::open(&vault, &books)?;
            let incoming = shelf.own_folder(&[b"incoming"]);
            shelf.check_room(bytes, &[&incoming[..], &[[staged.as_bytes(), PART].concat()]].concat())?;
            // From before a break, whole but not put in its place.
            shelf.folder(&incoming)?.remove_file(staged.as_bytes()).map_err(doing("remove", &incoming))?;
            let path = incoming.into_iter().fold(vault.home.clone(), |at, name| {
                at.join(<std::ffi::OsString as std::os::unix::ffi::OsStringExt>::from_vec(name))
            });
            Ok(path.join(staged))
        })
        .await?;
        let temp = place.with_extension("part");
        let wanted_names = (entry.folders.clone(), entry.name.clone());
        let root = opened.ticket.root;
        self.fetch_granted(&entry, opened, vec![place], temp, &|_| {}).await?;
        drop(coming);
        let label = safe_name(entry.from.as_bytes()).unwrap_or_else(|_| row.creator.short());
        let (books, vault) = (Arc::clone(&self.books), Arc::clone(&self.vault));
        unblock(move || {
            let shelf = Shelf::open(&vault, &books)?;
            // It may have been taken back meanwhile, or not be wanted any more.
            let is_wanted = books.received_of(&row.creator, row.file)?.is_some_and(|now| now.is_kept);
            if !is_wanted {
                let incoming = shelf.folder(&shelf.own_folder(&[b"incoming"]))?;
                return incoming.remove_file(name.as_bytes()).map_err(VaultError::io("cannot remove a file"));
            }
            let wanted = wanted(&books, &row.creator, &label, &wanted_names)?;
            shelf.place(&row, root, &wanted, &name)
        })
        .await
    }
}

/// Where a file belongs: its friend's folder, its folders in the share, its name.
fn wanted(
    books: &Books,
    creator: &CellId,
    label: &str,
    (folders, name): &(Vec<String>, String),
) -> Result<Vec<Vec<u8>>, VaultError> {
    let friend = books.kept_folder(creator, label)?;
    let names =
        [friend.as_str()].into_iter().chain(folders.iter().map(String::as_str)).chain([name.as_str()]);
    Ok(std::iter::once(SHARED.to_vec()).chain(names.map(|name| name.as_bytes().to_vec())).collect())
}

/// Files of shares that are kept no more are this cell's own, for the walk, too.
fn tell_freed(vault: &Vault, books: &Books) -> Result<(), VaultError> {
    loop {
        let paths = books.kept_freed(PAGE)?;
        if paths.is_empty() {
            return Ok(());
        }
        for path in paths {
            if !books.is_path_kept(&path)? {
                vault.db.change_durably(|t| set_kept(t, &names_of(&path), false))?;
                books.step();
            }
            books.drop_kept_freed(&path)?;
        }
    }
}

/// Kept grants that were looked through.
struct Looked {
    due: Vec<Due>,
    /// The number of the last.
    last: u64,
    is_any_busy: bool,
}

/// Looks through a page of kept grants behind number `after`, and does what needs no fetching; `None`: there are no more.
fn look_through(vault: &Vault, books: &Books, after: u64) -> Result<Option<Looked>, VaultError> {
    let shelf = Shelf::open(vault, books)?;
    let rows = books.received_kept(after, PAGE)?;
    let Some(last) = rows.last().map(|row| row.n) else { return Ok(None) };
    let mut looked = Looked { due: Vec::new(), last, is_any_busy: false };
    for row in rows {
        let known = books.kept_file(&row.creator, row.file)?;
        let on_disk = known.as_ref().map_or(Ok(OnDisk::Gone), |known| shelf.look(known))?;
        let is_anew = known.is_some() && books.is_kept_anew(&row.creator, row.file)?;
        let root = match &known {
            // What was granted once is not looked into again.
            Some(known) if known.version == row.version && !is_anew => known.root,
            _ => crate::grant::ticket_of(&row.grant).map(|ticket| ticket.root).unwrap_or_default(),
        };
        let had = known.as_ref().map(|known| had(known, row.version, root));
        let place = if is_anew { place_of(vault, books, &row)? } else { None };
        let is_elsewhere = match (&known, &place) {
            (Some(known), Some(place)) => known.wanted != place.join(&b'/'),
            _ => false,
        };
        let verdict = judge(had, Some((row.version, root)), on_disk, is_elsewhere);
        let (creator, file) = (row.creator, row.file);
        match (verdict, &known) {
            (Verdict::Wait, _) => looked.is_any_busy = true,
            (Verdict::Move, Some(known)) => {
                let place = if place.is_some() { place } else { place_of(vault, books, &row)? };
                match place {
                    Some(wanted) => shelf.move_on(known, &row, root, &wanted)?,
                    None => looked.due.push(Due { row }),
                }
            }
            (Verdict::Fetch | Verdict::Move, _) => looked.due.push(Due { row }),
            (Verdict::Leave | Verdict::Remove | Verdict::Forget, _) => {}
        }
        if is_anew && matches!(verdict, Verdict::Move | Verdict::Leave) {
            books.drop_kept_anew(&creator, file)?;
        }
    }
    Ok(Some(looked))
}

/// Where a received grant wants its file; `None` where it does not open any more.
fn place_of(vault: &Vault, books: &Books, row: &ReceivedRow) -> Result<Option<Vec<Vec<u8>>>, VaultError> {
    let Some(peer) = books.peer(&row.creator)? else { return Ok(None) };
    let party = crate::grant::Party { id: &peer.id, x25519: &peer.x25519 };
    let Ok(opened) = crate::grant::open(&row.grant, &vault.identity, party) else { return Ok(None) };
    let safe = |name: &str| safe_name(name.as_bytes()).unwrap_or_else(|_| "_".into());
    let folders = opened.private.share.iter().flat_map(|share| &share.folders).map(|name| safe(name));
    let label = safe_name(peer.name.as_bytes()).unwrap_or_else(|_| row.creator.short());
    let names = (folders.collect(), safe(&opened.private.name));
    wanted(books, &row.creator, &label, &names).map(Some)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::super::received::insert_received;
    use super::super::tests::Cell as TestCell;
    use super::*;
    use crate::files::kept;

    const OLD: Option<(u64, Hash)> = Some((1, [1; 32]));
    const NEW: Option<(u64, Hash)> = Some((2, [2; 32]));
    const EDITED: OnDisk = OnDisk::Changed { is_quiet: true };
    const BUSY: OnDisk = OnDisk::Changed { is_quiet: false };

    #[test]
    fn new_files_and_versions_come() {
        assert_eq!(judge(None, OLD, OnDisk::Gone, false), Verdict::Fetch);
        assert_eq!(judge(OLD, NEW, OnDisk::AsPut, false), Verdict::Fetch);
        assert_eq!(judge(OLD, OLD, OnDisk::AsPut, false), Verdict::Leave);
        assert_eq!(judge(OLD, Some((2, [1; 32])), OnDisk::AsPut, false), Verdict::Move);
    }

    #[test]
    fn a_file_follows_its_folder_when_it_is_as_it_was_put() {
        assert_eq!(judge(OLD, OLD, OnDisk::AsPut, true), Verdict::Move);
        assert_eq!(judge(OLD, NEW, OnDisk::AsPut, true), Verdict::Fetch);
        assert_eq!(judge(OLD, OLD, OnDisk::Gone, true), Verdict::Leave, "deleted here");
        assert_eq!(judge(OLD, OLD, EDITED, true), Verdict::Fetch);
        assert_eq!(judge(OLD, OLD, BUSY, true), Verdict::Wait);
    }

    #[test]
    fn what_was_deleted_here_comes_back_with_a_new_version_only() {
        assert_eq!(judge(OLD, OLD, OnDisk::Gone, false), Verdict::Leave);
        assert_eq!(judge(OLD, NEW, OnDisk::Gone, false), Verdict::Fetch);
        assert_eq!(judge(OLD, None, OnDisk::Gone, false), Verdict::Forget);
    }

    #[test]
    fn what_was_changed_here_makes_way_when_it_is_quiet() {
        assert_eq!(judge(OLD, OLD, EDITED, false), Verdict::Fetch);
        assert_eq!(judge(OLD, NEW, EDITED, false), Verdict::Fetch);
        assert_eq!(judge(OLD, Some((2, [1; 32])), EDITED, false), Verdict::Fetch);
        assert_eq!(judge(OLD, None, EDITED, false), Verdict::Remove);
        for granted in [None, OLD, NEW] {
            assert_eq!(judge(OLD, granted, BUSY, false), Verdict::Wait);
        }
    }

    /// A cell that keeps the file of a friend, and what is granted of it now.
    struct Keeping {
        cell: TestCell,
        row: ReceivedRow,
        content: &'static str,
        wanted: &'static str,
    }

    impl Keeping {
        fn new() -> Self {
            let cell = TestCell::new(1);
            marker::create(&cell.vault, false).unwrap();
            let row = ReceivedRow {
                n: 1,
                creator: CellId([3; 32]),
                file: FileId([4; 16]),
                ticket: [5; 16],
                number: 1,
                version: 1,
                share: Some([6; 16]),
                size: 3,
                expires: 0,
                received: 1,
                is_verified: false,
                is_kept: true,
                grant: Vec::new(),
            };
            let mut keeping = Self { cell, row, content: "one", wanted: "Shared/ann/notes/a.txt" };
            keeping.grant(1, "one", keeping.wanted);
            keeping
        }

        /// The same with its file put in place.
        fn begun() -> Self {
            let keeping = Self::new();
            keeping.level();
            keeping
        }

        fn grant(&mut self, version: u64, content: &'static str, wanted: &'static str) {
            (self.row.version, self.content, self.wanted) = (version, content, wanted);
            self.row.ticket = [version as u8; 16];
            let _ = self
                .cell
                .books
                .run("INSERT OR IGNORE INTO kept_shares VALUES (?1, ?2)", (self.row.creator.0, [6; 16]));
            insert_received(&lock(&self.cell.books.conn), &self.row, false, true).unwrap();
        }

        fn at(&self, path: &str) -> PathBuf {
            self.cell.vault.home.join(path)
        }

        /// What `keep_once` does with one file, but that its bytes need no fetching.
        fn level(&self) {
            let books = &*self.cell.books;
            let shelf = Shelf::open(&self.cell.vault, books).unwrap();
            shelf.tidy_incoming().unwrap();
            let (creator, file) = (self.row.creator, self.row.file);
            let row = books.received_of(&creator, file).unwrap().filter(|row| row.is_kept);
            let granted = row.as_ref().map(|row| (row.version, sha256(self.content.as_bytes())));
            let known = books.kept_file(&creator, file).unwrap();
            let on_disk = known.as_ref().map_or(OnDisk::Gone, |known| shelf.look(known).unwrap());
            let had = known.as_ref().map(|known| match granted {
                Some((version, root)) => had(known, version, root),
                None => (known.version, known.root),
            });
            let is_elsewhere = known.as_ref().is_some_and(|known| known.wanted != self.wanted.as_bytes());
            let wanted = names_of(self.wanted.as_bytes());
            let verdict = judge(had, granted, on_disk, is_elsewhere);
            match (verdict, &known, granted) {
                (Verdict::Move, Some(known), Some((_, root))) => {
                    shelf.move_on(known, &self.row, root, &wanted).unwrap();
                }
                (Verdict::Fetch, _, Some((_, root))) => {
                    let name = incoming_name(&self.row);
                    shelf.folder(&shelf.own_folder(&[b"incoming"])).unwrap();
                    fs::write(self.at("Shared/.grove/incoming").join(&name), self.content).unwrap();
                    shelf.place(&self.row, root, &wanted, &name).unwrap();
                }
                (Verdict::Remove | Verdict::Forget, Some(known), _) => shelf.remove(known, on_disk).unwrap(),
                (Verdict::Leave, ..) => {}
                other => panic!("{other:?}"),
            }
        }

        /// Files below a folder, with what is in them, and those of them that the walk takes for a friend's.
        fn files(&self, below: &str) -> Vec<(String, String, bool)> {
            let mut files = Vec::new();
            let mut folders = vec![below.to_owned()];
            while let Some(folder) = folders.pop() {
                for entry in fs::read_dir(self.at(&folder)).into_iter().flatten().flatten() {
                    let path = format!("{folder}/{}", entry.file_name().to_str().unwrap());
                    if entry.path().is_dir() {
                        folders.push(path);
                    } else {
                        let content = fs::read_to_string(entry.path()).unwrap();
                        files.push((path.clone(), content, self.is_marked(&path)));
                    }
                }
            }
            files.sort();
            files
        }

        fn is_marked(&self, path: &str) -> bool {
            self.cell.vault.db.read(|t| kept::is_kept(t, &names_of(path.as_bytes()))).unwrap()
        }

        fn known(&self) -> Option<(String, u64)> {
            let known = self.cell.books.kept_file(&self.row.creator, self.row.file).unwrap()?;
            Some((String::from_utf8(known.path).unwrap(), known.version))
        }

        /// What is marked is there and has a row, and nothing is under way.
        fn check(&self, what: &str) {
            let known = self.known();
            for path in [
                "Shared/ann/notes/a.txt",
                "Shared/ann/notes/a (2).txt",
                "Shared/ann/notes/a (mine).txt",
                "Shared/ann/more/b.txt",
                "Shared/ann/more/b (2).txt",
            ] {
                let is_known = known.as_ref().is_some_and(|(at, _)| at == path);
                assert_eq!(self.is_marked(path), is_known, "{what}: {path}");
            }
            assert!(self.cell.books.kept_moves(1).unwrap().is_empty(), "{what}");
            assert!(self.cell.books.kept_freed(1).unwrap().is_empty(), "{what}");
            assert!(self.files("Shared/.grove/incoming").is_empty(), "{what}");
        }
    }

    /// Does something anew for each of its steps, ends the process there, and brings all level at the next start. Gives how
    /// many steps there are.
    fn broken_off(
        begin: impl Fn() -> Keeping,
        work: impl Fn(&Keeping),
        check: impl Fn(&Keeping, &str),
    ) -> u64 {
        for steps in 0.. {
            let keeping = begin();
            keeping.cell.books.fuse.set(Some(steps));
            let ended = catch_unwind(AssertUnwindSafe(|| work(&keeping)));
            keeping.cell.books.fuse.set(None);
            for _ in 0..2 {
                keeping.level();
                let what = format!("ended at step {steps}");
                keeping.check(&what);
                check(&keeping, &what);
            }
            if ended.is_ok() {
                return steps;
            }
        }
        unreachable!("something ends");
    }

    fn in_shared(files: &[(&str, &str, bool)]) -> Vec<(String, String, bool)> {
        files
            .iter()
            .map(|(path, text, kept)| (format!("Shared/ann/{path}"), (*text).to_owned(), *kept))
            .collect()
    }

    #[test]
    fn a_file_comes_once_wherever_the_process_ends() {
        let steps = broken_off(Keeping::new, Keeping::level, |keeping, what| {
            assert_eq!(keeping.files("Shared/ann"), in_shared(&[("notes/a.txt", "one", true)]), "{what}");
            assert_eq!(keeping.known(), Some(("Shared/ann/notes/a.txt".into(), 1)), "{what}");
        });
        assert!(steps >= 4, "{steps}");
    }

    #[test]
    fn a_new_version_takes_the_place_of_the_old_wherever_the_process_ends() {
        let begin = || {
            let mut keeping = Keeping::begun();
            keeping.grant(2, "two", keeping.wanted);
            keeping
        };
        let steps = broken_off(begin, Keeping::level, |keeping, what| {
            assert_eq!(keeping.files("Shared/ann"), in_shared(&[("notes/a.txt", "two", true)]), "{what}");
            assert_eq!(keeping.known(), Some(("Shared/ann/notes/a.txt".into(), 2)), "{what}");
            let bin = keeping.files("Shared/.grove/bin");
            assert_eq!(bin, [("Shared/.grove/bin/ann/a.txt".into(), "one".into(), false)], "{what}");
        });
        assert!(steps >= 8, "{steps}");
    }

    #[test]
    fn other_bytes_under_the_same_version_come_too() {
        let mut keeping = Keeping::begun();
        keeping.grant(1, "other", keeping.wanted);
        keeping.level();
        keeping.check("the version was given once more");
        assert_eq!(keeping.files("Shared/ann"), in_shared(&[("notes/a.txt", "other", true)]));
    }

    #[test]
    fn a_file_moves_to_its_new_name_wherever_the_process_ends() {
        for version in [1, 2] {
            let begin = || {
                let mut keeping = Keeping::begun();
                keeping.grant(version, "one", "Shared/ann/more/b.txt");
                keeping
            };
            let steps = broken_off(begin, Keeping::level, |keeping, what| {
                assert_eq!(keeping.files("Shared/ann"), in_shared(&[("more/b.txt", "one", true)]), "{what}");
                assert_eq!(keeping.known(), Some(("Shared/ann/more/b.txt".into(), version)), "{what}");
                assert!(keeping.files("Shared/.grove/bin").is_empty(), "{what}");
                assert!(!keeping.at("Shared/ann/notes").exists(), "{what}");
            });
            assert!(steps >= 5, "{steps}");
        }
    }

    #[test]
    fn what_was_changed_here_is_set_aside_once_wherever_the_process_ends() {
        for version in [1, 2] {
            let begin = || {
                let mut keeping = Keeping::begun();
                fs::write(keeping.at(keeping.wanted), "changed here").unwrap();
                keeping.grant(version, if version == 1 { "one" } else { "two" }, keeping.wanted);
                keeping
            };
            broken_off(begin, Keeping::level, |keeping, what| {
                let mine = ("notes/a (mine).txt", "changed here", false);
                let wanted = in_shared(&[mine, ("notes/a.txt", keeping.content, true)]);
                assert_eq!(keeping.files("Shared/ann"), wanted, "{what}");
                assert!(keeping.files("Shared/.grove/bin").is_empty(), "{what}");
            });
        }
    }

    #[test]
    fn what_is_taken_back_goes_to_the_bin_wherever_the_process_ends() {
        let begin = || {
            let keeping = Keeping::begun();
            keeping.cell.books.drop_received(&keeping.cell.vault, &keeping.row.creator, None).unwrap();
            keeping
        };
        let steps = broken_off(begin, Keeping::level, |keeping, what| {
            assert!(keeping.files("Shared/ann").is_empty() && keeping.known().is_none(), "{what}");
            let bin = keeping.files("Shared/.grove/bin");
            assert_eq!(bin, [("Shared/.grove/bin/ann/a.txt".into(), "one".into(), false)], "{what}");
        });
        assert!(steps >= 3, "{steps}");
    }

    #[test]
    fn what_is_kept_no_more_stays_and_is_this_cells_own_wherever_the_process_ends() {
        let let_go = |keeping: &Keeping| {
            let (vault, books) = (&*keeping.cell.vault, &*keeping.cell.books);
            let here = books.set_kept(vault, &keeping.row.creator, &[6; 16], false).unwrap();
            assert_eq!(here, [b"Shared/ann/notes/a.txt"]);
            tell_freed(vault, books).unwrap();
        };
        let steps = broken_off(Keeping::begun, let_go, |keeping, what| {
            assert_eq!(keeping.files("Shared/ann"), in_shared(&[("notes/a.txt", "one", false)]), "{what}");
            assert!(keeping.known().is_none(), "{what}");
            assert!(keeping.files("Shared/.grove/bin").is_empty(), "{what}");
        });
        assert!(steps >= 2, "{steps}");
    }

    #[test]
    fn a_place_that_was_taken_while_the_cell_was_off_stays_its_owners() {
        // Of a file that sets out from where it was fetched, and of one that moves.
        for is_new in [true, false] {
            let mut keeping = if is_new { Keeping::new() } else { Keeping::begun() };
            keeping.grant(2, "one", "Shared/ann/more/b.txt");
            keeping.cell.books.fuse.set(Some(0));
            assert!(catch_unwind(AssertUnwindSafe(|| keeping.level())).is_err());
            keeping.cell.books.fuse.set(None);
            fs::create_dir_all(keeping.at("Shared/ann/more")).unwrap();
            fs::write(keeping.at("Shared/ann/more/b.txt"), "mine").unwrap();
            keeping.level();
            keeping.check("a place was taken");
            let wanted = in_shared(&[("more/b (2).txt", "one", true), ("more/b.txt", "mine", false)]);
            assert_eq!(keeping.files("Shared/ann"), wanted);
        }
    }

    #[test]
    fn room_is_for_all_that_is_under_way_and_not_twice_for_what_has_come() {
        let all = Cell::new(0);
        let first = Coming::new(&all, 7);
        let second = Coming::new(&all, u64::MAX);
        assert_eq!(all.get(), u64::MAX);
        drop(first);
        assert_eq!(all.get(), u64::MAX - 7);
        drop(second);
        assert_eq!(all.get(), 0);
        let keeping = Keeping::begun();
        let shelf = Shelf::open(&keeping.cell.vault, &keeping.cell.books).unwrap();
        let begun = names_of(b"Shared/.grove/incoming/begun");
        assert!(shelf.check_room(u64::MAX, &begun).is_err());
        let part = fs::File::create(keeping.at("Shared/.grove/incoming/begun")).unwrap();
        // A hole has not come.
        part.set_len(1 << 40).unwrap();
        assert!(shelf.check_room(u64::MAX, &begun).is_err());
        assert!(shelf.check_room(1, &begun).is_ok());
    }

    #[test]
    fn what_was_begun_and_is_not_wanted_any_more_does_not_stay_on_its_way() {
        let mut keeping = Keeping::begun();
        let incoming = keeping.at("Shared/.grove/incoming");
        let part = |keeping: &Keeping| incoming.join(format!("{}.part", incoming_name(&keeping.row)));
        fs::write(part(&keeping), "half").unwrap();
        let old = part(&keeping);
        keeping.grant(2, "two", keeping.wanted);
        let new = part(&keeping);
        fs::write(&new, "half").unwrap();
        let shelf = Shelf::open(&keeping.cell.vault, &keeping.cell.books).unwrap();
        shelf.tidy_incoming().unwrap();
        assert!(!old.exists() && new.exists());
    }
}

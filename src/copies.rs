//! How many copies the files of a folder want: a folder may have a number of its own, which holds for all in it down to the
//! next folder that has one. Files elsewhere want as many as the cell's setting says.
//!
//! A number is a record of the catalog, named by the folder's file id: it stays with a folder that is renamed or moved, and
//! comes back with the phrase. What follows from it is kept in each chunk's row (`want`), where plans are made from: the
//! highest number of all files and versions that the chunk is part of.
//!
//! Why a chunk never wants less than one of its files for long enough to lose a copy by it:
//!
//! 1. Whoever records a version raises what its chunks want, in the same transaction.
//! 2. What cannot be told by that alone (a number was set, a folder or file moved to where another number holds, a version was
//!    dropped, a catalog was merged) asks for a *count*. While one is asked for, nothing is let go (`is_settled`).
//! 3. A count walks all records, as marking does (`gc`). It lowers only chunks that it saw named, that were there when it
//!    began, and that nobody has raised since; and nothing at all if a list could not be read, which could name anything.

use std::collections::{BTreeMap, HashMap};

use crate::catalog::{RecordKind, record_key};
use crate::config::{COPIES_MAX, RECORDS_PER_CHANGE};
use crate::gc;
use crate::id::{ChunkName, FileId};
use crate::manifest::{Kind, Parsed};
use crate::order;
use crate::placement::planner;
use crate::placement::{ChunkId, DbError, Extra, Node, NodeId, Tables, Want};
use crate::publish;
use crate::vault::{Alert, Marks, Vault, VaultError};

/// Folders with a number of their own, at most.
pub const FOLDERS_MAX: usize = 1000;
/// Folders above a file that are looked at, at most; as many as a path can have.
const DEPTH_MAX: usize = 4096;
/// Folders whose number is remembered while records are walked.
const REMEMBERED_MAX: usize = 10_000;
/// A count that was not whole is made again after this, and later if it is again something that cannot be read. s.
const AGAIN_S: u64 = 600;
const AGAIN_S_MAX: u64 = 86_400;
/// A person is told of what could not be read for so long. s.
const TOLD_AFTER_S: u64 = 3600;

/// How often a count was asked for, the number at which the last whole one began, and the cell's setting at that time.
const ASKED: &str = "copies:asked";
const COUNTED: &str = "copies:counted";
const COUNTED_FOR: &str = "copies:counted_for";

/// The copies in all that a want stands for, where the cell's setting is `usual`.
pub fn in_all(want: Want, usual: u64) -> u64 {
    want.map_or(usual, u64::from)
}

/// The copies on peers that a want stands for, of what lies here.
pub fn on_peers(want: Want, usual: u64) -> u64 {
    planner::on_peers(in_all(want, usual), Extra::No, true)
}

/// The higher of two wants. Of two that are the same now, the one that goes with the cell's setting.
pub fn higher(a: Want, b: Want, usual: u64) -> Want {
    match in_all(a, usual).cmp(&in_all(b, usual)) {
        std::cmp::Ordering::Greater => a,
        std::cmp::Ordering::Less => b,
        std::cmp::Ordering::Equal => a.and(b),
    }
}

/// What a chunk wants after a count: `named` is the highest number of those that name it (`None`: nobody does, or a file that is
/// still being read), `is_raised` whether it was raised while the count went on, `is_whole` whether all records could be read.
fn counted(now: Want, named: Option<Want>, is_raised: bool, is_whole: bool, usual: u64) -> Want {
    match named {
        None => now,
        Some(named) if is_whole && !is_raised => named,
        Some(named) => higher(now, named, usual),
    }
}

/// The number in a record, if this version understands it.
fn read(body: &[u8]) -> Want {
    match body[..] {
        [1, copies, ..] if (1..=COPIES_MAX).contains(&u64::from(copies)) => Some(copies),
        _ => None,
    }
}

/// The nearest folder with a number of its own, from `folder` up, and its number; `of` gives the numbers.
fn said_by(
    t: &Tables<'_>,
    folder: NodeId,
    of: impl Fn(FileId) -> Result<Want, DbError>,
) -> Result<Option<(NodeId, u8)>, DbError> {
    let mut at = folder;
    for _ in 0..DEPTH_MAX {
        let Some(node) = t.node(at)?.filter(|_| at != NodeId::ROOT) else { break };
        if let Some(copies) = of(node.file)? {
            return Ok(Some((at, copies)));
        }
        at = node.parent;
    }
    Ok(None)
}

/// A folder's own number, looked up alone: a version that is recorded needs those above it and no others.
fn number_of(t: &Tables<'_>, folder: FileId) -> Result<Want, DbError> {
    Ok(t.record(&record_key(RecordKind::Copies, &folder.0))?.and_then(|body| read(&body)))
}

/// What files directly in a folder want.
fn in_folder(t: &Tables<'_>, folder: NodeId) -> Result<Want, DbError> {
    Ok(said_by(t, folder, |folder| number_of(t, folder))?.map(|(_, copies)| copies))
}

/// Folders and their own numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Numbers(BTreeMap<FileId, u8>);

impl Numbers {
    /// Reads them.
    pub fn load(t: &Tables<'_>) -> Result<Self, DbError> {
        let mut numbers = Self::default();
        if !t.has_numbers()? {
            return Ok(numbers);
        }
        for (seq, key) in t.records_with_prefix(&[RecordKind::Copies as u8], 2 * FOLDERS_MAX)? {
            let (Some(folder), Some(body)) = (FileId::from_slice(&key[1..]), t.record_at(seq)?) else {
                continue;
            };
            numbers.0.extend(read(&body).map(|copies| (folder, copies)));
        }
        Ok(numbers)
    }

    /// No folder has one.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// A folder's own number.
    pub fn of(&self, folder: FileId) -> Want {
        self.0.get(&folder).copied()
    }

    /// All of them, by folder.
    pub fn all(&self) -> impl Iterator<Item = (FileId, u8)> + '_ {
        self.0.iter().map(|(folder, copies)| (*folder, *copies))
    }

    /// What files directly in a folder want, and the folder that says so.
    pub fn said_by(&self, t: &Tables<'_>, folder: NodeId) -> Result<Option<(NodeId, u8)>, DbError> {
        if self.is_empty() { Ok(None) } else { said_by(t, folder, |folder| Ok(self.of(folder))) }
    }

    /// What files directly in a folder want.
    pub fn in_folder(&self, t: &Tables<'_>, folder: NodeId) -> Result<Want, DbError> {
        Ok(self.said_by(t, folder)?.map(|(_, copies)| copies))
    }

    /// What a node wants: a folder what the files in it do.
    pub fn at(&self, t: &Tables<'_>, node: &Node) -> Result<Want, DbError> {
        self.in_folder(t, if node.kind == Kind::Folder { node.id } else { node.parent })
    }

    /// What a file wants, also one in the Recycle Bin: as where it was deleted, as long as that folder or its record is there.
    fn of_file(&self, t: &Tables<'_>, file: FileId) -> Result<Want, DbError> {
        let mut at = file;
        for _ in 0..DEPTH_MAX {
            if let Some(node) = t.node_of(at)? {
                return self.at(t, &node);
            }
            let Some(row) = t.bin(at)? else { return Ok(None) };
            at = row.parent;
            if let Some(copies) = self.of(at) {
                return Ok(Some(copies));
            }
        }
        Ok(None)
    }
}

// ---- What records a version says ----

/// Asks for a count, if any folder has a number.
pub fn ask(t: &Tables<'_>) -> Result<(), DbError> {
    if t.has_numbers()? { ask_for(t) } else { Ok(()) }
}

fn ask_for(t: &Tables<'_>) -> Result<(), DbError> {
    t.note_wanted();
    t.set_meta_u64(ASKED, t.meta_u64(ASKED)?.unwrap_or(0) + 1)
}

/// A chunk is mine from now on, and no version names it yet: what does so says what it wants.
pub fn begin(t: &Tables<'_>, chunk: ChunkId) -> Result<(), DbError> {
    if t.has_numbers()? { t.set_want(chunk, Some(0)) } else { Ok(()) }
}

fn raise(
    vault: &Vault,
    t: &Tables<'_>,
    names: impl Iterator<Item = ChunkName>,
    to: Want,
) -> Result<(), DbError> {
    let usual = vault.config.copies;
    for name in names {
        let Some(row) = t.chunk(&name)? else { continue };
        vault.note_raised(row.id);
        let now = t.want(row.id)?;
        let want = higher(now, to, usual);
        if want != now {
            t.set_want(row.id, want)?;
        }
    }
    Ok(())
}

/// Chunks of a file that is still being read want what the others in its folder do.
pub fn raise_in(
    vault: &Vault,
    t: &Tables<'_>,
    folder: NodeId,
    names: impl Iterator<Item = ChunkName>,
) -> Result<(), DbError> {
    if !t.has_numbers()? {
        return Ok(());
    }
    let want = in_folder(t, folder)?;
    raise(vault, t, names, want)
}

/// A version is being recorded: its node as it was, the folder it is in from now on, and the signed manifest.
pub fn note_version(
    vault: &Vault,
    t: &Tables<'_>,
    before: Option<&Node>,
    (folder, kind, version): (NodeId, Kind, u64),
    signed: &[u8],
) -> Result<(), VaultError> {
    if !t.has_numbers()? {
        return Ok(());
    }
    let now = in_folder(t, folder)?;
    let is_moved = match before {
        Some(node) if kind == Kind::Folder && number_of(t, node.file)?.is_some() => false,
        Some(node) => node.parent != folder && in_folder(t, node.parent)? != now,
        // Out of the bin, perhaps to another place.
        None => version > 1,
    };
    let mut has_lists = false;
    if kind == Kind::File {
        let parsed = Parsed::read(signed)?;
        has_lists = parsed.has_lists();
        raise(vault, t, parsed.chunks(), now)?;
    }
    // What is in lists was raised as it was read, by the number that held then.
    if is_moved || has_lists {
        ask(t)?;
    }
    Ok(())
}

// ---- Setting numbers ----

/// Gives a folder a number of its own, or takes it back (`None`). To be published and counted.
pub fn set(vault: &Vault, folder: &Node, copies: Want) -> Result<(), VaultError> {
    if folder.id == NodeId::ROOT {
        return Err(VaultError::Refused(
            "that is all of GroveHome: its number of copies is the setting \"copies\"".into(),
        ));
    }
    if folder.kind != Kind::Folder {
        return Err(VaultError::Refused(
            "a number of copies belongs to a folder; name the one that it is in".into(),
        ));
    }
    let key = record_key(RecordKind::Copies, &folder.file.0);
    vault.db.change_durably(|t| -> Result<(), VaultError> {
        let numbers = Numbers::load(t)?;
        match copies {
            Some(copies) if numbers.of(folder.file) != Some(copies) => {
                if numbers.of(folder.file).is_none() && numbers.0.len() >= FOLDERS_MAX {
                    let why = format!("{FOLDERS_MAX} folders have a number of their own, and more cannot");
                    return Err(VaultError::Refused(why));
                }
                t.put_record(&key, &[1, copies])?;
            }
            Some(_) => return Ok(()),
            None => t.forget_record(&key)?,
        }
        // Not by `ask`: the first record may be of this very transaction.
        Ok(ask_for(t)?)
    })
}

/// Forgets the numbers of folders that are gone for good, and asks for a count: what named a chunk may be gone, and with it the
/// highest number that it wanted.
pub fn tidy(vault: &Vault) -> Result<(), DbError> {
    if !vault.db.read(|t| t.has_numbers())? {
        return Ok(());
    }
    vault.db.change(|t| -> Result<(), DbError> {
        ask(t)?;
        // The folder may be one that has not got its place in the tree yet.
        if publish::is_unplaced(t)? {
            return Ok(());
        }
        for (folder, _) in Numbers::load(t)?.all() {
            if t.node_of(folder)?.is_none() && t.bin(folder)?.is_none() {
                t.forget_record(&record_key(RecordKind::Copies, &folder.0))?;
            }
        }
        Ok(())
    })
}

// ---- Counting ----

/// Whether what chunks want is what their files do: only then is anything let go.
fn is_settled(vault: &Vault, t: &Tables<'_>) -> Result<bool, DbError> {
    // Whatever was counted, it was counted without some files, or as if they were in no folder.
    if publish::is_unplaced(t)? {
        return Ok(false);
    }
    if !t.has_numbers()? && t.wants()?.len() == 1 {
        return Ok(true);
    }
    Ok(t.meta_u64(ASKED)? == t.meta_u64(COUNTED)? && t.meta_u64(COUNTED_FOR)? == Some(vault.config.copies))
}

/// Whether what chunks want is known to be what their files do.
pub fn is_counted(vault: &Vault) -> Result<bool, DbError> {
    vault.db.read(|t| is_settled(vault, t))
}

/// Counts if that was asked for, and tells whether anything may be let go now. A count that met a large file being read is made
/// again after a while, and one that could not read everything more and more seldom; a person is told if that lasts.
pub fn settle(vault: &Vault) -> Result<bool, VaultError> {
    // Somebody counts, and others need not wait for it on a thread of the pool.
    let Some(mut counting) = vault.try_counting() else { return Ok(false) };
    let (is_settled_now, is_unplaced) =
        vault.db.read(|t| Ok::<_, DbError>((is_settled(vault, t)?, publish::is_unplaced(t)?)))?;
    // Whoever places what came in asks for a count at the end.
    if is_settled_now || is_unplaced {
        return Ok(is_settled_now);
    }
    let now = vault.now();
    if counting.asked == vault.db.read(|t| t.meta_u64(ASKED))? && now < counting.again_at {
        return Ok(false);
    }
    // What is asked for while it goes on is another count.
    let (asked, unread) = count(vault)?;
    counting.note(asked, unread.is_some(), now);
    match unread {
        Some(why) if counting.is_long_in_vain(now) => vault.raise("copies-uncounted", uncounted_alert(&why)),
        Some(why) => log::info!("how many copies are wanted is not counted in full: {why}"),
        None => vault.clear("copies-uncounted"),
    }
    Ok(vault.db.read(|t| is_settled(vault, t))?)
}

fn uncounted_alert(why: &str) -> Alert {
    Alert {
        text: format!(
            "how many copies some files want cannot be counted, for a part of the catalog cannot be read ({why}); until it can, no \
             copy is let go, however many there are"
        ),
        remedy: "switch on the peers that hold copies, so that what is missing comes back; `grove verify --deep` names what is damaged \
                 here"
            .into(),
    }
}

/// When a count is made again that was not whole.
#[derive(Debug, Default)]
pub struct Counting {
    /// How often it had been asked for when the last count began.
    asked: Option<u64>,
    /// Counts in a row that could not read everything, and the observed second of the first.
    in_vain: u32,
    vain_since: u64,
    /// Observed second.
    again_at: u64,
}

impl Counting {
    /// A count ended that began at `now`.
    fn note(&mut self, asked: Option<u64>, is_in_vain: bool, now: u64) {
        if !is_in_vain {
            self.in_vain = 0;
        } else if self.in_vain == 0 {
            (self.in_vain, self.vain_since) = (1, now);
        } else {
            self.in_vain = self.in_vain.saturating_add(1);
        }
        self.asked = asked;
        self.again_at = now + (AGAIN_S << self.in_vain.saturating_sub(1).min(16)).min(AGAIN_S_MAX);
    }

    /// Nothing could be counted in full for so long that a person should know.
    fn is_long_in_vain(&self, now: u64) -> bool {
        self.in_vain > 1 && now >= self.vain_since + TOLD_AFTER_S
    }
}

/// Counts; gives how often it had been asked for, and why something could not be read.
fn count(vault: &Vault) -> Result<(Option<u64>, Option<String>), VaultError> {
    let (numbers, asked, until) = {
        let _placing = vault.placing();
        *vault.raised() = Some(Marks::default());
        vault.db.read(|t| -> Result<_, DbError> {
            Ok((Numbers::load(t)?, t.meta_u64(ASKED)?, t.chunk_id_max()?))
        })?
    };
    let had_large = vault.has_large_imports();
    let outcome = named(vault, &numbers).and_then(|(named, unread)| {
        let is_whole = unread.is_none();
        write(vault, &numbers, &named, is_whole, until)?;
        if is_whole && !had_large && !vault.has_large_imports() {
            vault.db.change(|t| -> Result<(), DbError> {
                match asked {
                    Some(asked) => t.set_meta_u64(COUNTED, asked)?,
                    None => t.forget_meta(COUNTED)?,
                }
                t.set_meta_u64(COUNTED_FOR, vault.config.copies)
            })?;
        }
        Ok(unread)
    });
    *vault.raised() = None;
    outcome.map(|unread| (asked, unread))
}

/// Chunks by what files that name them want, the highest first.
type NamedBy = Vec<(Want, Marks)>;

/// Which chunks are named by files that want so much, and why some of it could not be read, if so.
fn named(vault: &Vault, numbers: &Numbers) -> Result<(NamedBy, Option<String>), VaultError> {
    let mut named: BTreeMap<Want, Marks> = BTreeMap::new();
    let mut remembered: HashMap<FileId, Want> = HashMap::new();
    let mut unread = None;
    gc::each_version(vault, &mut |key, body| {
        let Some(file) = key.get(1..17).and_then(FileId::from_slice) else { return Ok(()) };
        if remembered.len() >= REMEMBERED_MAX {
            remembered.clear();
        }
        let want = match remembered.get(&file) {
            Some(want) => *want,
            None => *remembered.entry(file).or_insert(vault.db.read(|t| numbers.of_file(t, file))?),
        };
        let marks = named.entry(want).or_default();
        let seen = gc::names_of(vault, body, &mut |named| {
            vault.db.read(|t| -> Result<(), DbError> {
                for (name, _) in named {
                    t.chunk(&name)?.iter().for_each(|row| marks.set(row.id));
                }
                Ok(())
            })?;
            Ok(())
        });
        if let Err(why) = seen {
            unread.get_or_insert(why.to_string());
        }
        Ok(())
    })?;
    // The highest first.
    let mut named: Vec<(Want, Marks)> = named.into_iter().collect();
    let usual = vault.config.copies;
    order::sort_by_key(&mut named, |(want, _)| (std::cmp::Reverse(in_all(*want, usual)), want.is_some()));
    Ok((named, unread))
}

/// Writes what was counted. Where no folder has a number, nothing wants another than the cell's.
fn write(
    vault: &Vault,
    numbers: &Numbers,
    named: &[(Want, Marks)],
    is_whole: bool,
    until: ChunkId,
) -> Result<(), VaultError> {
    let usual = vault.config.copies;
    let of = |chunk: ChunkId| {
        let highest = named.iter().find(|(_, marks)| marks.has(chunk)).map(|(want, _)| *want);
        if numbers.is_empty() { Some(None) } else { highest }
    };
    let mut after = ChunkId(0);
    loop {
        let page = vault.db.read(|t| t.wants_after(after, until, RECORDS_PER_CHANGE))?;
        let Some((last, _)) = page.last() else { return Ok(()) };
        after = *last;
        let other: Vec<ChunkId> = page
            .iter()
            .filter(|(id, now)| of(*id).is_some_and(|want| want != *now))
            .map(|(id, _)| *id)
            .collect();
        if other.is_empty() {
            continue;
        }
        vault.db.change(|t| -> Result<(), DbError> {
            for id in other {
                let now = t.want(id)?;
                let want = counted(now, of(id), vault.is_raised(id), is_whole, usual);
                if want != now && t.own(id)? != crate::placement::Own::No {
                    t.set_want(id, want)?;
                }
            }
            Ok(())
        })?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::FileTime;
    use crate::placement::{BinRow, Db, Device, NodeState};

    fn folder(number: u8) -> FileId {
        FileId([number; 16])
    }

    fn add(t: &Tables<'_>, parent: NodeId, number: u8, kind: Kind) -> Node {
        let mut node = Node {
            id: NodeId(0),
            parent,
            name: vec![b'a' + number],
            kind,
            file: folder(number),
            seq: 0,
            version: 1,
            state: NodeState::Present,
            size: 0,
            mtime: FileTime::default(),
            mode: 0,
            ctime: 0,
            ino: 0,
            btime: 0,
            dev: Device(0),
            first_at: 0,
            last_at: 0,
        };
        node.id = t.add_node(&node).unwrap();
        node
    }

    #[test]
    fn a_file_wants_what_the_nearest_folder_above_it_says() {
        let db = Db::in_memory().unwrap();
        db.change(|t| -> Result<(), DbError> {
            let top = add(t, NodeId::ROOT, 1, Kind::Folder);
            let inner = add(t, top.id, 2, Kind::Folder);
            let file = add(t, inner.id, 3, Kind::File);
            let beside = add(t, NodeId::ROOT, 4, Kind::File);
            let number =
                |of: &Node, body: &[u8]| t.put_record(&record_key(RecordKind::Copies, &of.file.0), body);
            let wants = |node: &Node| -> Result<Want, DbError> {
                let numbers = Numbers::load(t)?;
                let want = numbers.at(t, node)?;
                assert_eq!((numbers.of_file(t, node.file)?, in_folder(t, node.parent)?), (want, want));
                Ok(want)
            };
            number(&top, &[1, 3])?;
            assert_eq!((wants(&file)?, wants(&beside)?), (Some(3), None));
            number(&inner, &[1, 1])?;
            assert_eq!(wants(&file)?, Some(1));
            assert_eq!(Numbers::load(t)?.at(t, &inner)?, Some(1));
            // What this version does not understand counts for nothing, and so does what was taken back.
            for body in [&[1, 21][..], &[1, 0], &[2, 5], &[1], &[]] {
                number(&inner, body)?;
                assert_eq!(wants(&file)?, Some(3), "{body:?}");
            }
            // In the Recycle Bin it wants what it did where it was.
            t.delete_node(file.id)?;
            let (parent, name) = (inner.file, file.name.clone());
            t.put_bin(&BinRow { file: file.file, seq: 9, at: 0, parent, name })?;
            let numbers = Numbers::load(t)?;
            assert_eq!(numbers.of_file(t, file.file)?, Some(3));
            t.delete_node(inner.id)?;
            let (parent, name) = (top.file, inner.name.clone());
            t.put_bin(&BinRow { file: inner.file, seq: 9, at: 0, parent, name })?;
            t.delete_node(top.id)?;
            assert_eq!((numbers.of_file(t, file.file)?, numbers.of_file(t, folder(9))?), (Some(3), None));
            Ok(())
        })
        .unwrap();
    }

    #[test]
    fn a_chunk_of_several_files_wants_the_highest_of_their_numbers() {
        assert_eq!(higher(Some(1), Some(3), 2), Some(3));
        assert_eq!(higher(Some(1), None, 2), None);
        assert_eq!(higher(None, Some(3), 2), Some(3));
        // What goes with the setting goes on doing so.
        assert_eq!(higher(Some(2), None, 2), None);
        assert_eq!(higher(None, Some(2), 2), None);
        // What no version names yet wants less than anything.
        assert_eq!((higher(Some(0), Some(1), 2), higher(None, Some(0), 2)), (Some(1), None));
        assert_eq!((on_peers(Some(0), 2), on_peers(Some(1), 2), on_peers(None, 2)), (0, 0, 1));
        // Whatever the order.
        let all = [None, Some(0), Some(1), Some(2), Some(3), Some(20)];
        for usual in 1..5 {
            for a in all {
                for b in all {
                    let most = higher(a, b, usual);
                    assert_eq!(most, higher(b, a, usual));
                    assert_eq!(in_all(most, usual), in_all(a, usual).max(in_all(b, usual)));
                    for c in all {
                        let (left, right) = (higher(most, c, usual), higher(a, higher(b, c, usual), usual));
                        assert_eq!(left, right, "{a:?} {b:?} {c:?} {usual}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_count_in_vain_is_made_again_more_and_more_seldom_and_told_after_an_hour() {
        let mut counting = Counting::default();
        let (mut now, mut waits) = (1000, Vec::new());
        let began = now;
        for _ in 0..10 {
            counting.note(Some(7), true, now);
            assert_eq!(counting.is_long_in_vain(now), now >= began + 3600, "{now}");
            waits.push(counting.again_at - now);
            now = counting.again_at;
        }
        assert_eq!(waits[..4], [600, 1200, 2400, 4800]);
        assert_eq!(waits[9], 86_400);
        // One that only met a file being read is made again soon, and once all can be read nothing is told.
        counting.note(Some(8), false, now);
        assert_eq!(counting.again_at, now + 600);
        counting.note(Some(8), true, now + 600);
        assert!(!counting.is_long_in_vain(now + 600));
    }

    #[test]
    fn a_count_lowers_only_what_it_knows_all_of() {
        assert_eq!(counted(Some(3), Some(Some(1)), false, true, 2), Some(1));
        assert_eq!(counted(Some(3), Some(Some(1)), true, true, 2), Some(3), "raised meanwhile");
        assert_eq!(counted(Some(3), Some(Some(1)), false, false, 2), Some(3), "a list could not be read");
        assert_eq!(counted(Some(3), None, false, true, 2), Some(3), "nobody names it: a file being read may");
        assert_eq!(counted(Some(1), Some(None), false, false, 2), None, "raising is always right");
        assert_eq!(counted(Some(0), Some(Some(1)), true, false, 2), Some(1));
    }
}

//! Grants in books.db: what is shared with whom, what was granted and whether it has arrived, what was received, and the
//! lists of revocations that were seen. What must survive the board is in the catalog as well (kinds 4 to 6).
//!
//! Promise: what was taken back is on the own list, durably, before anything else forgets it; and of each creator's
//! lists the newest that was ever seen is known.

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::books::{Books, KeyAndBody, wrong};
use super::received::{ReceivedRow, insert_received, mirror};
use crate::catalog::RecordKind;
use crate::grant::{
    GrantMade, GrantReceived, RANGES_MAX, Range, Ranges, Revocations, RevocationsBody, ShareMade, Ticket,
    open as open_grant, revocations_from_bytes, revocations_key, revocations_to_bytes,
};
use crate::id::{CellId, FileId};
use crate::keys::sha256;
use crate::order;
use crate::placement::DbError;
use crate::vault::{Vault, VaultError, lock};

/// Made at each opening where they are not there yet.
pub(super) const TABLES: &str = "
CREATE TABLE IF NOT EXISTS shares (
    id BLOB PRIMARY KEY,
    peer BLOB NOT NULL,
    file BLOB NOT NULL,                  -- a file's id, or a folder's
    folder INTEGER NOT NULL,
    since INTEGER NOT NULL,              -- Unix time
    until INTEGER NOT NULL,              -- Unix time; 0: for good
    UNIQUE (peer, file)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS grants_made (
    share BLOB NOT NULL,
    file BLOB NOT NULL,
    version INTEGER NOT NULL,
    number INTEGER NOT NULL,             -- by which it is taken back: the same over versions
    ticket BLOB,                         -- the last that was made; NULL: none yet
    holders INTEGER NOT NULL DEFAULT 0,  -- whom the recipient was told: how many, and above 8 bits a sum of their ids and places
    state INTEGER NOT NULL DEFAULT 0,    -- 0 waits, 1 has arrived, 2 was refused
    PRIMARY KEY (share, file)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS grants_paths (
    share BLOB NOT NULL,
    file BLOB NOT NULL,
    folders INTEGER NOT NULL,            -- a sum of the names of the folders between the shared one and the file
    PRIMARY KEY (share, file)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS grants_waiting ON grants_made (share, file) WHERE state = 0;
CREATE INDEX IF NOT EXISTS grants_numbers ON grants_made (number);
CREATE TABLE IF NOT EXISTS taken_back (
    file BLOB NOT NULL,                  -- it was taken back, and its later versions are still to get other keys
    record BLOB NOT NULL,                -- key of a record that the catalog is still to forget; empty: none
    PRIMARY KEY (file, record)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS grants_received (
    n INTEGER PRIMARY KEY AUTOINCREMENT,
    creator BLOB NOT NULL,
    file BLOB NOT NULL,
    ticket BLOB NOT NULL,                -- its id
    number INTEGER NOT NULL,
    version INTEGER NOT NULL,
    share BLOB,
    size INTEGER NOT NULL,
    expires INTEGER NOT NULL,            -- Unix time; 0: never
    received INTEGER NOT NULL,           -- Unix time
    kept INTEGER NOT NULL DEFAULT 0,
    verified INTEGER NOT NULL DEFAULT 0, -- this version was fetched whole, each chunk checked
    grant_bytes BLOB NOT NULL,
    UNIQUE (creator, file)
);
CREATE TABLE IF NOT EXISTS revocations (
    creator BLOB PRIMARY KEY,
    seen INTEGER NOT NULL,               -- the highest number ever seen
    list BLOB NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS kept_shares (
    creator BLOB NOT NULL,
    id BLOB NOT NULL,                    -- of a shared folder, or of a file
    PRIMARY KEY (creator, id)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS kept_folders (
    creator BLOB PRIMARY KEY,
    name TEXT NOT NULL UNIQUE            -- below Shared/
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS kept_files (
    creator BLOB NOT NULL,
    file BLOB NOT NULL,
    version INTEGER NOT NULL,
    root BLOB NOT NULL,                  -- of its ticket
    wanted BLOB NOT NULL,                -- path below GroveHome that it asks for
    path BLOB NOT NULL UNIQUE,           -- and the one that it has
    size INTEGER NOT NULL,
    mtime_s INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL,
    PRIMARY KEY (creator, file)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS kept_anew (
    creator BLOB NOT NULL,
    file BLOB NOT NULL,                  -- of a kept file that was granted once more: it may belong in another folder now
    PRIMARY KEY (creator, file)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS kept_moves (
    creator BLOB NOT NULL,
    file BLOB NOT NULL,                  -- of a kept file that may not have come to its path yet
    source BLOB NOT NULL,                -- path below GroveHome that it comes from
    PRIMARY KEY (creator, file)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS kept_freed (
    path BLOB PRIMARY KEY                -- of a file that is this cell's own now; the walk is still to be told
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS kept_bin (
    path BLOB PRIMARY KEY,               -- below GroveHome
    since INTEGER NOT NULL               -- observed time
) WITHOUT ROWID;";

/// Rows that one change looks at.
const SLICE: usize = 1000;
/// So many ranges are left free when a list has become too long.
const RANGES_SPARE: usize = 256;

/// A file or folder that is shared with a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShareRow {
    /// Random.
    pub id: [u8; 16],
    /// With whom.
    pub peer: CellId,
    /// What.
    pub file: FileId,
    /// All files in it are granted.
    pub is_folder: bool,
    /// Unix seconds.
    pub since: u64,
    /// The last Unix second in which it holds; 0: for good.
    pub until: u64,
}

/// How a grant stands with its recipient.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrival {
    /// It waits to be given.
    Waiting = 0,
    /// The recipient has it.
    Arrived = 1,
    /// The recipient refused it.
    Refused = 2,
}

/// A file that is granted through a share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GrantRow {
    /// Through which share.
    pub share: [u8; 16],
    /// Which file.
    pub file: FileId,
    /// Which version.
    pub version: u64,
    /// By which it is taken back.
    pub number: u64,
    /// The ticket, once made.
    pub ticket: Option<Vec<u8>>,
    /// Holders that the recipient was told of, see [`told_of`].
    pub holders: u64,
    /// Whether it has arrived.
    pub arrival: Arrival,
}

/// A file that is to be granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct WantedGrant {
    pub(super) file: FileId,
    pub(super) version: u64,
    /// Where it lies in the shared folder, see [`deeper`].
    pub(super) folders: i64,
}

/// Folders between a shared one (0) and what lies in it, as one number: those above, and the next one's name.
pub(super) fn deeper(above: i64, name: &[u8]) -> i64 {
    let hash = sha256(&[&above.to_le_bytes()[..], name].concat());
    i64::from_le_bytes(std::array::from_fn(|n| hash[n]))
}

/// Holders as one number: how many in the lowest 8 bits, and above them which and where they can be reached, whatever their
/// order.
pub(super) fn told_of(holders: &[(CellId, u64)]) -> u64 {
    let mut all: Vec<&(CellId, u64)> = holders.iter().collect();
    order::sort(&mut all);
    let bytes: Vec<u8> =
        all.iter().flat_map(|(id, place)| [&id.0[..], &place.to_le_bytes()].concat()).collect();
    let hash = sha256(&bytes);
    let sum = u64::from_le_bytes(std::array::from_fn(|n| hash[n]));
    // The highest bit stays free: SQLite's numbers have a sign.
    (sum & (u64::MAX >> 9)) << 8 | holders.len().min(255) as u64
}

const SHARE_COLUMNS: &str = "id, peer, file, folder, since, until";
const GRANT_COLUMNS: &str = "share, file, version, number, ticket, holders, state";
fn share_row(row: &Row<'_>) -> rusqlite::Result<ShareRow> {
    Ok(ShareRow {
        id: row.get(0)?,
        peer: CellId(row.get(1)?),
        file: FileId(row.get(2)?),
        is_folder: row.get(3)?,
        since: row.get::<_, i64>(4)? as u64,
        until: row.get::<_, i64>(5)? as u64,
    })
}

fn grant_row(row: &Row<'_>) -> rusqlite::Result<GrantRow> {
    Ok(GrantRow {
        share: row.get(0)?,
        file: FileId(row.get(1)?),
        version: row.get::<_, i64>(2)? as u64,
        number: row.get::<_, i64>(3)? as u64,
        ticket: row.get(4)?,
        holders: row.get::<_, i64>(5)? as u64,
        arrival: match row.get::<_, i64>(6)? {
            0 => Arrival::Waiting,
            1 => Arrival::Arrived,
            _ => Arrival::Refused,
        },
    })
}

impl ShareRow {
    fn to_record(&self) -> ShareMade {
        ShareMade {
            id: self.id,
            recipient: self.peer,
            file: self.file,
            is_folder: self.is_folder,
            since: self.since,
            until: self.until,
        }
    }
}

/// The next number for a ticket or list in this life: life in the upper half, a count in the lower.
fn next_number(conn: &Connection, life: u32) -> rusqlite::Result<u64> {
    let last = conn
        .query_row("SELECT value FROM meta WHERE key = 'grant_number'", [], |row| row.get::<_, i64>(0))
        .optional()?
        .unwrap_or(0) as u64;
    let next = number_after(last, life);
    conn.execute("INSERT OR REPLACE INTO meta VALUES ('grant_number', ?1)", [next as i64])?;
    Ok(next)
}

fn number_after(last: u64, life: u32) -> u64 {
    (last + 1).max(u64::from(life) << 32 | 1)
}

/// Makes fewer ranges of too many: what lies in the smallest gaps is taken back too. Gives the ranges added.
fn shorten(ranges: &mut Ranges, most: usize) -> Vec<Range> {
    let slice = ranges.as_slice();
    if slice.len() <= most {
        return Vec::new();
    }
    let mut gaps: Vec<Range> =
        slice.windows(2).map(|pair| Range { first: pair[0].last + 1, last: pair[1].first - 1 }).collect();
    order::sort_by_key(&mut gaps, |gap| gap.last - gap.first);
    gaps.truncate(slice.len() - most);
    gaps.iter().for_each(|gap| ranges.add_range(*gap));
    gaps
}

impl Books {
    // Shares.

    /// All shares.
    pub fn shares(&self) -> Result<Vec<ShareRow>, DbError> {
        self.list(&format!("SELECT {SHARE_COLUMNS} FROM shares ORDER BY since, id"), [], share_row)
    }

    /// Begins to share; if that is shared with the peer already, it holds until then from now on. Durable, in the
    /// catalog too.
    pub(super) fn put_share(&self, vault: &Vault, share: &ShareRow) -> Result<ShareRow, VaultError> {
        let known = format!("SELECT {SHARE_COLUMNS} FROM shares WHERE peer = ?1 AND file = ?2");
        let known = self
            .list(&known, params![share.peer.0, share.file.0], share_row)?
            .pop()
            .filter(|known| known.is_folder == share.is_folder);
        let kept = match known {
            Some(known) => ShareRow { until: share.until, ..known },
            None => share.clone(),
        };
        self.run(
            &format!("INSERT OR REPLACE INTO shares ({SHARE_COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6)"),
            params![kept.id, kept.peer.0, kept.file.0, kept.is_folder, kept.since as i64, kept.until as i64],
        )?;
        // Tickets say until when: those that say otherwise are made anew.
        self.run("UPDATE grants_made SET state = 0 WHERE share = ?1", params![kept.id])?;
        let record = kept.to_record();
        vault.db.change_durably(|t| t.put_record(&record.key(), &record.to_bytes()))?;
        Ok(kept)
    }

    // Grants made.

    /// Granted files of a share, behind `after`.
    pub(super) fn grants_of(
        &self,
        share: &[u8; 16],
        after: Option<FileId>,
        limit: usize,
    ) -> Result<Vec<GrantRow>, DbError> {
        self.list(
            &format!("SELECT {GRANT_COLUMNS} FROM grants_made WHERE share = ?1 AND file > ?2 ORDER BY file LIMIT ?3"),
            params![share, after.map_or_else(Vec::new, |file| file.0.to_vec()), limit as i64],
            grant_row,
        )
    }

    /// How many files of a share are granted, and how many of them have arrived.
    pub fn grant_counts(&self, share: &[u8; 16]) -> Result<(u64, u64), DbError> {
        let counts = "SELECT count(*), coalesce(sum(state = 1), 0) FROM grants_made WHERE share = ?1";
        let read = |row: &Row<'_>| Ok((row.get::<_, i64>(0)? as u64, row.get::<_, i64>(1)? as u64));
        Ok(self.list(counts, [share], read)?.pop().unwrap_or_default())
    }

    /// A file is granted to a peer, through whichever share.
    pub(super) fn is_granted(&self, peer: &CellId, file: FileId) -> Result<bool, DbError> {
        let found = "SELECT 1 FROM shares JOIN grants_made ON grants_made.share = shares.id
                     WHERE shares.peer = ?1 AND grants_made.file = ?2 LIMIT 1";
        Ok(!self.list(found, params![peer.0, file.0], |_| Ok(()))?.is_empty())
    }

    /// These files in these versions and places are to be granted through a share; what is granted already stays. How many are
    /// new. While the brake is on, files that are granted stay in the version and place that they are granted in.
    pub(super) fn want_grants(
        &self,
        life: u32,
        share: &[u8; 16],
        wanted: &[WantedGrant],
        is_braked: bool,
    ) -> Result<usize, DbError> {
        let conn = lock(&self.conn);
        let work = || -> rusqlite::Result<usize> {
            let change = conn.unchecked_transaction()?;
            let mut count = 0;
            for WantedGrant { file, version, folders } in wanted {
                let known: Option<(i64, Option<i64>)> = change
                    .prepare_cached(
                        "SELECT version, folders FROM grants_made LEFT JOIN grants_paths USING (share, file)
                         WHERE share = ?1 AND file = ?2",
                    )?
                    .query_row(params![share, file.0], |row| Ok((row.get(0)?, row.get(1)?)))
                    .optional()?;
                let is_there = known.is_some_and(|(_, there)| there == Some(*folders));
                match known {
                    Some((known, _)) if known as u64 == *version && is_there => continue,
                    // Where it was is not known: an earlier version of the program granted it, or another life.
                    Some((known, None)) if known as u64 == *version => {}
                    Some(_) if is_braked => continue,
                    Some(_) => {
                        change
                            .prepare_cached(
                                "UPDATE grants_made SET version = ?3, state = 0 WHERE share = ?1 AND file = ?2",
                            )?
                            .execute(params![share, file.0, *version as i64])?;
                        count += 1;
                    }
                    None => {
                        let number = next_number(&change, life)?;
                        change
                            .prepare_cached(
                                "INSERT INTO grants_made (share, file, version, number) VALUES (?1, ?2, ?3, ?4)",
                            )?
                            .execute(params![share, file.0, *version as i64, number as i64])?;
                        count += 1;
                    }
                }
                if !is_there {
                    change
                        .prepare_cached("INSERT OR REPLACE INTO grants_paths VALUES (?1, ?2, ?3)")?
                        .execute(params![share, file.0, folders])?;
                }
            }
            change.commit()?;
            Ok(count)
        };
        work().map_err(wrong)
    }

    /// Grants that wait for a peer.
    pub(super) fn waiting_grants(
        &self,
        peer: &CellId,
        limit: usize,
    ) -> Result<Vec<(ShareRow, GrantRow)>, DbError> {
        let mut found = Vec::new();
        for share in self.shares()?.into_iter().filter(|share| share.peer == *peer) {
            let sql = format!(
                "SELECT {GRANT_COLUMNS} FROM grants_made WHERE share = ?1 AND state = 0 ORDER BY file LIMIT ?2"
            );
            let rows = self.list(&sql, params![share.id, (limit - found.len()) as i64], grant_row)?;
            found.extend(rows.into_iter().map(|row| (share.clone(), row)));
            if found.len() >= limit {
                break;
            }
        }
        Ok(found)
    }

    /// Grants that have arrived and named fewer than `wanted` holders (`true`), or so many and more: `limit` of them behind
    /// the first `from`.
    pub(super) fn told_grants(
        &self,
        peer: &CellId,
        (is_short, wanted): (bool, u64),
        (from, limit): (usize, usize),
    ) -> Result<Vec<GrantRow>, DbError> {
        self.list(
            "SELECT share, file, version, number, NULL, holders, state FROM grants_made
             WHERE state = 1 AND ((holders & 255) < ?2) = ?5 AND share IN (SELECT id FROM shares WHERE peer = ?1)
             ORDER BY share, file LIMIT ?3 OFFSET ?4",
            params![peer.0, wanted as i64, limit as i64, from as i64, is_short],
            grant_row,
        )
    }

    /// Tickets were made; in the catalog, too.
    pub(super) fn set_tickets(
        &self,
        vault: &Vault,
        made: &[(GrantRow, GrantMade)],
    ) -> Result<(), VaultError> {
        let conn = lock(&self.conn);
        let work = || -> rusqlite::Result<Vec<Vec<u8>>> {
            let change = conn.unchecked_transaction()?;
            for (row, made) in made {
                change
                    .prepare_cached(
                        "UPDATE grants_made SET ticket = ?4 WHERE share = ?1 AND file = ?2 AND version = ?3",
                    )?
                    .execute(params![row.share, row.file.0, row.version as i64, made.ticket.as_bytes()])?;
            }
            change.commit()?;
            Ok(Vec::new())
        };
        work().map_err(wrong)?;
        drop(conn);
        // Durably, before anybody is given them: what the catalog does not know cannot be taken back after a recovery.
        vault.db.change_durably(|t| -> Result<(), DbError> {
            for (row, made) in made {
                // The ticket of the version before.
                let old = row.ticket.as_ref().and_then(|bytes| Ticket::from_bytes(bytes).ok());
                if let Some(old) = old.filter(|old| old.id != made.ticket.id) {
                    t.forget_record(&ticket_key(&old))?;
                }
                t.put_record(&made.key(), &made.to_bytes())?;
            }
            Ok(())
        })?;
        Ok(())
    }

    /// How grants stand with their recipient; `holders` that it was told of.
    pub(super) fn note_arrivals(&self, rows: &[(GrantRow, u64, Arrival)]) -> Result<(), DbError> {
        let conn = lock(&self.conn);
        let work = || -> rusqlite::Result<()> {
            let change = conn.unchecked_transaction()?;
            for (row, holders, arrival) in rows {
                change
                    .prepare_cached(
                        "UPDATE grants_made SET state = ?4, holders = ?5 WHERE share = ?1 AND file = ?2 AND version = ?3",
                    )?
                    .execute(params![
                        row.share,
                        row.file.0,
                        row.version as i64,
                        *arrival as i64,
                        *holders as i64
                    ])?;
            }
            change.commit()
        };
        work().map_err(wrong)
    }

    // Taking back.

    /// Takes back what `files` of a share grant, or all of it with the share: on the own list, durably, with a note of what
    /// follows from it, see [`Self::taken_back`]. Gives the number of files.
    pub(super) fn take_back(
        &self,
        vault: &Vault,
        share: &ShareRow,
        files: Option<&[FileId]>,
    ) -> Result<u64, VaultError> {
        let mut rows = Vec::new();
        match files {
            Some(files) => {
                let sql = format!("SELECT {GRANT_COLUMNS} FROM grants_made WHERE share = ?1 AND file = ?2");
                for file in files {
                    rows.extend(self.list(&sql, params![share.id, file.0], grant_row)?);
                }
            }
            None => {
                let mut after = None;
                loop {
                    let page = self.grants_of(&share.id, after, SLICE)?;
                    let Some(last) = page.last() else { break };
                    after = Some(last.file);
                    rows.extend(page);
                }
            }
        }
        let mut ranges = self.own_list(vault)?.map(|list| list.revoked.clone()).unwrap_or_default();
        rows.iter().for_each(|row| ranges.add(row.number));
        self.step();
        self.change_list(vault, ranges, |change| {
            let note = |file: FileId, record: &[u8]| {
                change
                    .prepare_cached("INSERT OR IGNORE INTO taken_back VALUES (?1, ?2)")?
                    .execute(params![file.0, record])
            };
            for row in &rows {
                let ticket = row.ticket.as_deref().and_then(|bytes| Ticket::from_bytes(bytes).ok());
                note(row.file, &ticket.map_or_else(Vec::new, |ticket| ticket_key(&ticket)))?;
                // What another share grants of the same file is offered once more: the recipient forgets it with this one.
                change
                    .prepare_cached(
                        "UPDATE grants_made SET state = 0 WHERE file = ?2 AND share != ?1
                         AND share IN (SELECT id FROM shares WHERE peer = ?3)",
                    )?
                    .execute(params![share.id, row.file.0, share.peer.0])?;
                for forget in ["grants_made", "grants_paths"] {
                    change
                        .prepare_cached(&format!("DELETE FROM {forget} WHERE share = ?1 AND file = ?2"))?
                        .execute(params![share.id, row.file.0])?;
                }
            }
            if files.is_none() {
                change.execute("DELETE FROM shares WHERE id = ?1", [share.id])?;
                note(share.file, &share.to_record().key())?;
            }
            Ok(())
        })?;
        self.step();
        Ok(rows.len() as u64)
    }

    /// Files that were taken back and whose later versions are still to get other keys, with the key of a record that the
    /// catalog is still to forget (empty: none).
    pub(super) fn taken_back(&self, limit: usize) -> Result<Vec<(FileId, Vec<u8>)>, DbError> {
        let read = |row: &Row<'_>| Ok((FileId(row.get(0)?), row.get(1)?));
        self.list("SELECT file, record FROM taken_back LIMIT ?1", [limit as i64], read)
    }

    /// All of that was done for these.
    pub(super) fn drop_taken_back(&self, done: &[(FileId, Vec<u8>)]) -> Result<(), DbError> {
        let conn = lock(&self.conn);
        let work = || -> rusqlite::Result<()> {
            let change = conn.unchecked_transaction()?;
            for (file, record) in done {
                change
                    .prepare_cached("DELETE FROM taken_back WHERE file = ?1 AND record = ?2")?
                    .execute(params![file.0, record])?;
            }
            change.commit()
        };
        work().map_err(wrong)
    }

    /// Puts into the catalog what it may lack since a break: the own list, and each share.
    pub(super) fn record_shares(&self, vault: &Vault) -> Result<(), VaultError> {
        let list = self.own_list(vault)?;
        let shares: Vec<ShareMade> = self.shares()?.iter().map(ShareRow::to_record).collect();
        let lacking = vault.db.read(|t| -> Result<Vec<KeyAndBody>, DbError> {
            let mut lacking = Vec::new();
            if let Some(list) = list {
                let key = revocations_key(&list.creator);
                let known = t.record(&key)?.and_then(|body| revocations_from_bytes(&body).ok());
                if known.is_none_or(|known| known.number < list.number) {
                    lacking.push((key, revocations_to_bytes(&list)));
                }
            }
            for share in &shares {
                let (body, known) = (share.to_bytes(), t.record(&share.key())?);
                let is_forgotten = known.as_ref().is_some_and(Vec::is_empty);
                if !is_forgotten && known.as_ref() != Some(&body) {
                    lacking.push((share.key(), body));
                }
            }
            Ok(lacking)
        })?;
        if lacking.is_empty() {
            return Ok(());
        }
        Ok(vault.db.change_durably(|t| {
            lacking.iter().try_for_each(|(key, body)| t.put_record(key, body).map(drop))
        })?)
    }

    /// Shares that the catalog has forgotten: they were taken back, by a later state of this cell than its books.
    pub(super) fn forgotten_shares(&self, vault: &Vault) -> Result<Vec<ShareRow>, DbError> {
        let mut forgotten = self.shares()?;
        vault.db.read(|t| -> Result<(), DbError> {
            let mut is_forgotten = Vec::with_capacity(forgotten.len());
            for share in &forgotten {
                is_forgotten.push(t.record(&share.to_record().key())?.is_some_and(|body| body.is_empty()));
            }
            let mut is_forgotten = is_forgotten.into_iter();
            forgotten.retain(|_| is_forgotten.next() == Some(true));
            Ok(())
        })?;
        Ok(forgotten)
    }

    /// Cells with whom something is shared, or of whom something was received or is kept.
    pub(super) fn sharing_cells(&self) -> Result<Vec<CellId>, DbError> {
        let mut cells = Vec::new();
        // One search for each cell, however many rows it has.
        for (table, column) in
            [("shares", "peer"), ("grants_received", "creator"), ("kept_shares", "creator")]
        {
            let next = format!("SELECT {column} FROM {table} WHERE {column} > ?1 ORDER BY {column} LIMIT 1");
            let mut after = Vec::new();
            while let Some(cell) = self.list(&next, [&after], |row| Ok(CellId(row.get(0)?)))?.pop() {
                after = cell.0.to_vec();
                if !cells.contains(&cell) {
                    cells.push(cell);
                }
            }
        }
        Ok(cells)
    }

    /// Signs a new own list of these ranges and keeps it together with `also`.
    fn change_list(
        &self,
        vault: &Vault,
        mut ranges: Ranges,
        also: impl FnOnce(&Connection) -> rusqlite::Result<()>,
    ) -> Result<Revocations, VaultError> {
        let conn = lock(&self.conn);
        let filled = match ranges.as_slice().len() {
            0..=RANGES_MAX => Vec::new(),
            _ => shorten(&mut ranges, RANGES_MAX - RANGES_SPARE),
        };
        let change = conn.unchecked_transaction().map_err(wrong)?;
        let number = next_number(&change, vault.life()).map_err(wrong)?;
        let body = RevocationsBody { creator: vault.id(), number, revoked: ranges, extensions: Vec::new() };
        let list = Revocations::sign(&vault.identity, body).map_err(refused)?;
        let work = || -> rusqlite::Result<()> {
            also(&change)?;
            for gap in &filled {
                // Granted anew under other numbers.
                let rows: Vec<(Vec<u8>, Vec<u8>)> = change
                    .prepare("SELECT share, file FROM grants_made WHERE number BETWEEN ?1 AND ?2")?
                    .query_map([gap.first as i64, gap.last as i64], |row| Ok((row.get(0)?, row.get(1)?)))?
                    .collect::<rusqlite::Result<_>>()?;
                for (share, file) in rows {
                    let number = next_number(&change, vault.life())?;
                    change.execute(
                        "UPDATE grants_made SET number = ?3, state = 0 WHERE share = ?1 AND file = ?2",
                        params![share, file, number as i64],
                    )?;
                }
            }
            put_list(&change, &list)
        };
        work().map_err(wrong)?;
        change.commit().map_err(wrong)?;
        Ok(list)
    }

    /// The own list, if anything was ever taken back.
    pub(super) fn own_list(&self, vault: &Vault) -> Result<Option<Revocations>, DbError> {
        self.list_of(&vault.id()).map(|(_, list)| list)
    }

    /// Number of the newest list of a creator that was ever seen (0: none), and that list.
    pub(super) fn list_of(&self, creator: &CellId) -> Result<(u64, Option<Revocations>), DbError> {
        let read = |row: &Row<'_>| Ok((row.get::<_, i64>(0)? as u64, row.get::<_, Vec<u8>>(1)?));
        let found = self.list("SELECT seen, list FROM revocations WHERE creator = ?1", [creator.0], read)?;
        Ok(match found.into_iter().next() {
            None => (0, None),
            Some((seen, bytes)) => (seen, Revocations::from_bytes(&bytes).ok()),
        })
    }

    /// Takes in what a peer says that this cell took back in another life, or before its disk was an old one.
    pub(super) fn hear_own_list(&self, vault: &Vault, heard: &Revocations) -> Result<bool, VaultError> {
        let own = self.own_list(vault)?;
        let known = own.as_ref().map(|list| list.revoked.clone()).unwrap_or_default();
        let mut all = known.clone();
        all.add_all(&heard.revoked);
        let is_beyond = own.as_ref().is_none_or(|own| own.number < heard.number);
        if all == known && !is_beyond {
            return Ok(false);
        }
        // Numbers go on beyond what was heard.
        let last = heard.number.max(all.as_slice().last().map_or(0, |range| range.last));
        let list = self.change_list_after(vault, all, last)?;
        vault.db.change_durably(|t| {
            t.put_record(&revocations_key(&list.creator), &revocations_to_bytes(&list)).map(drop)
        })?;
        Ok(true)
    }

    fn change_list_after(&self, vault: &Vault, all: Ranges, last: u64) -> Result<Revocations, VaultError> {
        self.raise_number(last)?;
        self.change_list(vault, all, |_| Ok(()))
    }

    /// Numbers from now on are beyond this one.
    fn raise_number(&self, last: u64) -> Result<(), DbError> {
        self.run("INSERT OR IGNORE INTO meta VALUES ('grant_number', 0)", [])?;
        self.run(
            "UPDATE meta SET value = max(value, ?1) WHERE key = 'grant_number'",
            [last.min(i64::MAX as u64 - 1) as i64],
        )
        .map(drop)
    }

    // Recovery.

    /// Brings back shares, grants and lists from the catalog; what is here already stays.
    pub(super) fn restore_shares(&self, vault: &Vault) -> Result<(), VaultError> {
        for_each_record(vault, RecordKind::Revocation, |_, body| {
            let Ok(list) = revocations_from_bytes(body) else { return Ok(()) };
            let (seen, _) = self.list_of(&list.creator)?;
            if list.number > seen {
                put_list(&lock(&self.conn), &list).map_err(wrong)?;
                if list.creator == vault.id() {
                    self.raise_number(list.number)?;
                }
            }
            Ok(())
        })?;
        for_each_record(vault, RecordKind::Grant, |key, body| {
            if let Ok(share) = ShareMade::from_bytes(key, body) {
                self.run(
                    &format!(
                        "INSERT OR IGNORE INTO shares ({SHARE_COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6)"
                    ),
                    params![
                        share.id,
                        share.recipient.0,
                        share.file.0,
                        share.is_folder,
                        share.since as i64,
                        share.until as i64
                    ],
                )?;
            }
            Ok(())
        })?;
        let shares = self.shares()?;
        for_each_record(vault, RecordKind::Grant, |_, body| {
            let Ok(made) = GrantMade::from_bytes(body) else { return Ok(()) };
            let is_its = |share: &&ShareRow| match made.share {
                Some(id) => share.id == id,
                None => !share.is_folder && share.peer == made.ticket.recipient && share.file == made.file,
            };
            let Some(share) = shares.iter().find(is_its) else { return Ok(()) };
            self.raise_number(made.ticket.number)?;
            self.run(
                "INSERT OR IGNORE INTO grants_made (share, file, version, number, ticket) VALUES (?1, ?2, ?3, ?4, ?5)",
                params![
                    share.id,
                    made.file.0,
                    made.version as i64,
                    made.ticket.number as i64,
                    made.ticket.as_bytes()
                ],
            )?;
            Ok(())
        })?;
        for_each_record(vault, RecordKind::ReceivedGrant, |key, body| {
            let Ok(kept) = GrantReceived::from_bytes(body) else { return Ok(()) };
            let Some(creator) = key.get(1..33).and_then(CellId::from_slice) else { return Ok(()) };
            let Some(peer) = self.peer(&creator)? else { return Ok(()) };
            let party = crate::grant::Party { id: &peer.id, x25519: &peer.x25519 };
            let Ok(opened) = open_grant(&kept.grant, &vault.identity, party) else { return Ok(()) };
            let (_, list) = self.list_of(&creator)?;
            if list.is_some_and(|list| list.revoked.contains(opened.ticket.number)) {
                return Ok(());
            }
            let row = ReceivedRow::of(&opened, kept.received, kept.grant);
            if kept.is_kept {
                self.run(
                    "INSERT OR IGNORE INTO kept_shares VALUES (?1, ?2)",
                    params![row.creator.0, row.kept_id()],
                )?;
            }
            insert_received(&lock(&self.conn), &row, false, kept.is_kept).map_err(wrong)?;
            mirror(vault, &[(row.creator, row.ticket, row.grant)]);
            Ok(())
        })
    }
}

fn for_each_record(
    vault: &Vault,
    kind: RecordKind,
    mut each: impl FnMut(&[u8], &[u8]) -> Result<(), VaultError>,
) -> Result<(), VaultError> {
    let mut after = vec![kind as u8];
    loop {
        let page = vault.db.read(|t| t.records_from(&after, SLICE))?;
        let Some((_, last)) = page.last() else { return Ok(()) };
        after.clone_from(last);
        let is_over = page.iter().any(|(_, key)| key.first() != Some(&(kind as u8)));
        for (seq, key) in page.into_iter().filter(|(_, key)| key.first() == Some(&(kind as u8))) {
            let body = vault.db.read(|t| t.record_at(seq))?.filter(|body| !body.is_empty());
            if let Some(body) = body {
                each(&key, &body)?;
            }
        }
        if is_over {
            return Ok(());
        }
    }
}

fn ticket_key(ticket: &Ticket) -> Vec<u8> {
    crate::catalog::record_key(RecordKind::Grant, &ticket.id)
}

fn refused(why: crate::grant::GrantError) -> VaultError {
    VaultError::Refused(why.to_string())
}

pub(super) fn put_list(conn: &Connection, list: &Revocations) -> rusqlite::Result<()> {
    conn.execute(
        "INSERT INTO revocations VALUES (?1, ?2, ?3)
         ON CONFLICT (creator) DO UPDATE SET list = ?3, seen = ?2",
        params![list.creator.0, list.number as i64, list.as_bytes()],
    )
    .map(drop)
}

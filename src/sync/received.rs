//! Grants of friends in books.db, and the lists of revocations that others gave.

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::books::{Books, wrong};
use super::shares::put_list;
use crate::catalog::RecordKind;
use crate::changes::Part;
use crate::grant::{GrantReceived, Ranges, Revocations, revocations_key, revocations_to_bytes};
use crate::id::{CellId, FileId};
use crate::placement::DbError;
use crate::vault::{Vault, VaultError, lock};

/// Folder of received grants as they came, and of what is fetched by them; in the state folder.
pub(super) const GRANTS_FOLDER: &str = "grants";
/// Grants kept of one friend.
const RECEIVED_MAX: u64 = 100_000;
/// And their bytes.
const RECEIVED_BYTES_MAX: u64 = 128 << 20;
/// Rows that one change looks at.
const SLICE: usize = 1000;

/// A grant of a friend's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReceivedRow {
    /// Grows with each that comes.
    pub n: u64,
    /// Whose file.
    pub creator: CellId,
    /// Which file.
    pub file: FileId,
    /// The ticket's id.
    pub ticket: [u8; 16],
    /// By which it is taken back.
    pub number: u64,
    /// Which version.
    pub version: u64,
    /// The shared folder it came through.
    pub share: Option<[u8; 16]>,
    /// Bytes.
    pub size: u64,
    /// The last Unix second in which it serves; 0: for good.
    pub expires: u64,
    /// Unix seconds.
    pub received: u64,
    /// This version was fetched whole.
    pub is_verified: bool,
    /// Its versions come to `Shared/` by themselves.
    pub is_kept: bool,
    /// As it came.
    pub grant: Vec<u8>,
}

impl ReceivedRow {
    /// By which it is kept: the shared folder it came through, or the file.
    pub fn kept_id(&self) -> [u8; 16] {
        self.share.unwrap_or(self.file.0)
    }
}

fn is_same_root(one: &ReceivedRow, other: &ReceivedRow) -> bool {
    let root = |row: &ReceivedRow| crate::grant::ticket_of(&row.grant).map(|ticket| ticket.root).ok();
    root(one).is_some_and(|first| root(other) == Some(first))
}

/// What became of a grant that came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reception {
    /// It is kept.
    Taken,
    /// A newer version is known.
    Known,
    /// Too many of this friend are kept.
    Full,
}

/// How many grants of a friend, and bytes of them, are kept when one more comes, in the place of one of so many bytes if it is
/// known; `None`: there is no room. What is no longer than the one before always has room.
fn with_one_more((count, bytes): (u64, u64), before: Option<u64>, len: u64) -> Option<(u64, u64)> {
    let after = bytes.saturating_sub(before.unwrap_or(0)) + len;
    let is_full = before.is_none() && count >= RECEIVED_MAX;
    let is_over = after > RECEIVED_BYTES_MAX && after > bytes;
    (!is_full && !is_over).then_some((count + u64::from(before.is_none()), after))
}

pub(super) const RECEIVED_COLUMNS: &str =
    "n, creator, file, ticket, number, version, share, size, expires, received, verified, kept, grant_bytes";

pub(super) fn received_row(row: &Row<'_>) -> rusqlite::Result<ReceivedRow> {
    Ok(ReceivedRow {
        n: row.get::<_, i64>(0)? as u64,
        creator: CellId(row.get(1)?),
        file: FileId(row.get(2)?),
        ticket: row.get(3)?,
        number: row.get::<_, i64>(4)? as u64,
        version: row.get::<_, i64>(5)? as u64,
        share: row.get(6)?,
        size: row.get::<_, i64>(7)? as u64,
        expires: row.get::<_, i64>(8)? as u64,
        received: row.get::<_, i64>(9)? as u64,
        is_verified: row.get(10)?,
        is_kept: row.get(11)?,
        grant: row.get(12)?,
    })
}

impl Books {
    /// Takes up a creator's list, if it is newer than what was seen: durably, in the catalog too, and drops what it takes
    /// back. Gives the number of the list that is held now.
    pub(super) fn take_list(
        &self,
        vault: &Vault,
        creator: &CellId,
        list: &Revocations,
    ) -> Result<u64, VaultError> {
        let (seen, known) = self.list_of(creator)?;
        if list.follows(creator, seen).is_err() || (list.number == seen && known.is_some()) {
            return if list.creator == *creator {
                Ok(seen)
            } else {
                Err(VaultError::Refused("the list is another cell's".into()))
            };
        }
        vault.db.change_durably(|t| {
            t.put_record(&revocations_key(creator), &revocations_to_bytes(list)).map(drop)
        })?;
        // The list counts as taken last: whoever ends in the middle is given it again, and does all of it again.
        self.drop_received(vault, creator, Some(&list.revoked))?;
        put_list(&lock(&self.conn), list).map_err(wrong)?;
        // What came meanwhile was held against the list before.
        self.drop_received(vault, creator, Some(&list.revoked))?;
        vault.changes.note(Part::Feed);
        Ok(list.number)
    }

    /// Forgets grants of a creator: all, or those that were taken back.
    pub(super) fn drop_received(
        &self,
        vault: &Vault,
        creator: &CellId,
        revoked: Option<&Ranges>,
    ) -> Result<u64, VaultError> {
        let mut after = 0i64;
        let mut count = 0;
        loop {
            let read = |row: &Row<'_>| {
                Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)? as u64, row.get::<_, [u8; 16]>(2)?))
            };
            let page = self.list(
                "SELECT n, number, ticket FROM grants_received WHERE creator = ?1 AND n > ?2 ORDER BY n LIMIT ?3",
                params![creator.0, after, SLICE as i64],
                read,
            )?;
            let Some((last, ..)) = page.last() else { return Ok(count) };
            after = *last;
            let gone: Vec<_> =
                page.iter().filter(|(_, number, _)| revoked.is_none_or(|r| r.contains(*number))).collect();
            for (n, ..) in &gone {
                self.run("DELETE FROM grants_received WHERE n = ?1", [n])?;
            }
            vault.db.change(|t| {
                gone.iter().try_for_each(|(_, _, ticket)| t.forget_record(&received_key(creator, ticket)))
            })?;
            gone.iter().for_each(|(_, _, ticket)| unmirror(vault, creator, ticket));
            count += gone.len() as u64;
        }
    }

    /// Forgets grants whose time was over at this Unix time.
    pub(super) fn drop_expired(&self, vault: &Vault, now: u64) -> Result<(), VaultError> {
        let over = format!(
            "SELECT {RECEIVED_COLUMNS} FROM grants_received WHERE expires > 0 AND expires < ?1 LIMIT ?2"
        );
        let page = self.list(&over, params![now as i64, SLICE as i64], received_row)?;
        for row in &page {
            self.run("DELETE FROM grants_received WHERE n = ?1", [row.n as i64])?;
        }
        vault.db.change(|t| {
            page.iter().try_for_each(|row| t.forget_record(&received_key(&row.creator, &row.ticket)))
        })?;
        page.iter().for_each(|row| unmirror(vault, &row.creator, &row.ticket));
        Ok(())
    }

    /// Keeps grants that were opened and found sound; durable when this returns, in the catalog too.
    pub(super) fn receive(
        &self,
        vault: &Vault,
        rows: Vec<ReceivedRow>,
    ) -> Result<Vec<Reception>, VaultError> {
        let Some(creator) = rows.first().map(|row| row.creator) else { return Ok(Vec::new()) };
        let read = |row: &Row<'_>| Ok((row.get::<_, i64>(0)? as u64, row.get::<_, i64>(1)? as u64));
        let mut kept = self
            .list(
                "SELECT count(*), coalesce(sum(length(grant_bytes)), 0) FROM grants_received WHERE creator = ?1",
                [creator.0],
                read,
            )?
            .pop()
            .unwrap_or_default();
        let conn = lock(&self.conn);
        let mut records: Vec<(Vec<u8>, Option<Vec<u8>>)> = Vec::new();
        let mut gone = Vec::new();
        let mut work = || -> rusqlite::Result<Vec<Reception>> {
            let change = conn.unchecked_transaction()?;
            let mut outcome = Vec::with_capacity(rows.len());
            for row in &rows {
                let known = change
                    .prepare_cached(&format!(
                        "SELECT {RECEIVED_COLUMNS} FROM grants_received WHERE creator = ?1 AND file = ?2"
                    ))?
                    .query_row(params![row.creator.0, row.file.0], received_row)
                    .optional()?;
                if known.as_ref().is_some_and(|known| known.version > row.version || known.grant == row.grant)
                {
                    outcome.push(Reception::Known);
                    continue;
                }
                let before = known.as_ref().map(|known| known.grant.len() as u64);
                let Some(after) = with_one_more(kept, before, row.grant.len() as u64) else {
                    outcome.push(Reception::Full);
                    continue;
                };
                kept = after;
                // A friend may give one number to other bytes.
                let is_verified = known.as_ref().is_some_and(|known| {
                    known.version == row.version && known.is_verified && is_same_root(known, row)
                });
                // The same once more tells of other holders: it is no news, and stays where it stands in the Feed.
                let is_same =
                    |known: &&ReceivedRow| known.version == row.version && known.ticket == row.ticket;
                let (n, received) = known
                    .as_ref()
                    .filter(is_same)
                    .map_or((row.n, row.received), |known| (known.n, known.received));
                let row = &ReceivedRow { n, received, ..row.clone() };
                if let Some(known) = known.filter(|known| known.ticket != row.ticket) {
                    records.push((received_key(&row.creator, &known.ticket), None));
                    gone.push(known.ticket);
                }
                let is_kept = change
                    .prepare_cached("SELECT 1 FROM kept_shares WHERE creator = ?1 AND id = ?2")?
                    .exists(params![row.creator.0, row.kept_id()])?;
                insert_received(&change, row, is_verified, is_kept)?;
                if is_kept {
                    change
                        .prepare_cached("INSERT OR IGNORE INTO kept_anew VALUES (?1, ?2)")?
                        .execute(params![row.creator.0, row.file.0])?;
                }
                let record = GrantReceived { received: row.received, is_kept, grant: row.grant.clone() };
                records.push((received_key(&row.creator, &row.ticket), Some(record.to_bytes())));
                outcome.push(Reception::Taken);
            }
            change.commit()?;
            Ok(outcome)
        };
        let outcome = work().map_err(wrong)?;
        drop(conn);
        gone.iter().for_each(|ticket| unmirror(vault, &creator, ticket));
        vault.db.change_durably(|t| {
            records.iter().try_for_each(|(key, body)| match body {
                Some(body) => t.put_record(key, body).map(drop),
                None => t.forget_record(key),
            })
        })?;
        vault.changes.note(Part::Feed);
        Ok(outcome)
    }

    /// Received grants before `before` (newest first).
    pub fn received(&self, before: u64, limit: usize) -> Result<Vec<ReceivedRow>, DbError> {
        self.list(
            &format!("SELECT {RECEIVED_COLUMNS} FROM grants_received WHERE n < ?1 ORDER BY n DESC LIMIT ?2"),
            params![before.min(i64::MAX as u64) as i64, limit as i64],
            received_row,
        )
    }

    /// Received grants whose file id begins with these hexadecimal digits, at most `limit`. Two friends may give one id to
    /// their files, by accident or not: the id of whoever granted it goes on behind the file's.
    pub fn received_like(&self, digits: &str, limit: usize) -> Result<Vec<ReceivedRow>, DbError> {
        let digits: String = digits.chars().filter(char::is_ascii_hexdigit).collect();
        self.list(
            &format!(
                "SELECT {RECEIVED_COLUMNS} FROM grants_received WHERE hex(file) || hex(creator) LIKE ?1 || '%' LIMIT ?2"
            ),
            params![digits, limit as i64],
            received_row,
        )
    }

    /// A version was fetched whole, each chunk checked.
    pub(super) fn note_verified(&self, row: &ReceivedRow) -> Result<(), DbError> {
        self.run(
            "UPDATE grants_received SET verified = 1 WHERE creator = ?1 AND file = ?2 AND version = ?3",
            params![row.creator.0, row.file.0, row.version as i64],
        )
        .map(drop)
    }
}

impl ReceivedRow {
    /// A grant that came and was opened.
    pub(super) fn of(opened: &crate::grant::Opened, received: u64, grant: Vec<u8>) -> Self {
        Self {
            n: 0,
            creator: opened.ticket.creator,
            file: opened.private.file,
            ticket: opened.ticket.id,
            number: opened.ticket.number,
            version: opened.private.version,
            share: opened.private.share.as_ref().map(|share| share.id),
            size: opened.private.size,
            expires: opened.ticket.expires,
            received,
            is_verified: false,
            is_kept: false,
            grant,
        }
    }
}

pub(super) fn received_key(creator: &CellId, ticket: &[u8; 16]) -> Vec<u8> {
    crate::catalog::record_key(RecordKind::ReceivedGrant, &[&creator.0[..], ticket].concat())
}

fn mirror_name(creator: &CellId, ticket: &[u8; 16]) -> String {
    format!("{GRANTS_FOLDER}/{creator}-{}.grant", crate::id::hex(ticket))
}

/// Puts grants that came into `grants/` as well, as they came: for other programs, and for people.
pub(super) fn mirror(vault: &Vault, grants: &[(CellId, [u8; 16], Vec<u8>)]) {
    for (creator, ticket, bytes) in grants {
        if let Err(why) = vault.files.write_whole(&mirror_name(creator, ticket), bytes) {
            log::warn!("a grant cannot be written to {GRANTS_FOLDER}/: {why}");
            return;
        }
    }
}

fn unmirror(vault: &Vault, creator: &CellId, ticket: &[u8; 16]) {
    let _ = vault.files.remove(&mirror_name(creator, ticket));
}

pub(super) fn insert_received(
    conn: &Connection,
    row: &ReceivedRow,
    is_verified: bool,
    is_kept: bool,
) -> rusqlite::Result<()> {
    conn.prepare_cached(
        "INSERT OR REPLACE INTO grants_received
         (n, creator, file, ticket, number, version, share, size, expires, received, verified, kept, grant_bytes)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)",
    )?
    .execute(params![
        // A new one is given its number here.
        (row.n > 0).then_some(row.n as i64),
        row.creator.0,
        row.file.0,
        row.ticket,
        row.number as i64,
        row.version as i64,
        row.share,
        row.size as i64,
        row.expires as i64,
        row.received as i64,
        is_verified,
        is_kept,
        row.grant
    ])
    .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grants_of_a_friend_have_bounds_whether_they_are_new_or_newer() {
        let most = RECEIVED_BYTES_MAX;
        assert_eq!(with_one_more((0, 0), None, 300), Some((1, 300)));
        assert_eq!(with_one_more((1, 300), Some(300), 500), Some((1, 500)));
        assert_eq!(with_one_more((9, most - 300), None, 301), None);
        assert_eq!(
            with_one_more((9, most - 300), Some(300), 601),
            None,
            "one that grows counts like a new one"
        );
        assert_eq!(with_one_more((9, most - 300), Some(300), 600), Some((9, most)));
        assert_eq!(
            with_one_more((9, most + 900), Some(300), 300),
            Some((9, most + 900)),
            "kept before there was a bound"
        );
        assert_eq!(with_one_more((RECEIVED_MAX, 300), None, 1), None);
        assert_eq!(with_one_more((RECEIVED_MAX, 300), Some(3), 4), Some((RECEIVED_MAX, 301)));
    }
}

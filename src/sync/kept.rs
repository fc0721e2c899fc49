//! What is kept of friends' shares, in books.db: which shares, where their files lie, and what waits in the bin.
//!
//! Only which shares are kept is in the catalog as well (a mark on each received grant): the files come again.

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::books::{Books, wrong};
use super::received::{RECEIVED_COLUMNS, ReceivedRow, received_key, received_row};
use crate::grant::{GrantReceived, Hash, numbered_names};
use crate::id::{CellId, FileId};
use crate::manifest::FileTime;
use crate::placement::DbError;
use crate::vault::{Vault, VaultError, lock};

/// Rows that one change looks at.
const SLICE: usize = 1000;
/// Shares and single files that are kept.
const KEPT_MAX: i64 = 4096;
/// Names tried for a friend's folder.
const NAMES_TRIED: usize = 100;

/// A friend's file as it was put below `Shared/`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct KeptFile {
    pub(super) creator: CellId,
    pub(super) file: FileId,
    pub(super) version: u64,
    /// Of the ticket: the same root is the same content.
    pub(super) root: Hash,
    /// Path below GroveHome that it should have, and the one that it has; names joined by `/`.
    pub(super) wanted: Vec<u8>,
    pub(super) path: Vec<u8>,
    pub(super) size: u64,
    pub(super) mtime: FileTime,
}

const COLUMNS: &str = "creator, file, version, root, wanted, path, size, mtime_s, mtime_ns";

fn kept_row(row: &Row<'_>) -> rusqlite::Result<KeptFile> {
    Ok(KeptFile {
        creator: CellId(row.get(0)?),
        file: FileId(row.get(1)?),
        version: row.get::<_, i64>(2)? as u64,
        root: row.get(3)?,
        wanted: row.get(4)?,
        path: row.get(5)?,
        size: row.get::<_, i64>(6)? as u64,
        mtime: FileTime { s: row.get(7)?, ns: row.get(8)? },
    })
}

fn put_kept(conn: &Connection, kept: &KeptFile) -> rusqlite::Result<()> {
    conn.prepare_cached(&format!(
        "INSERT OR REPLACE INTO kept_files ({COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)"
    ))?
    .execute(params![
        kept.creator.0,
        kept.file.0,
        kept.version as i64,
        kept.root,
        kept.wanted,
        kept.path,
        kept.size as i64,
        kept.mtime.s,
        kept.mtime.ns
    ])
    .map(drop)
}

impl Books {
    /// From now on the files of a share come by themselves, or do not; in the catalog, too. Those that lie here when they come
    /// no more are this cell's own: gives their paths, which wait in [`Self::kept_freed`].
    pub(super) fn set_kept(
        &self,
        vault: &Vault,
        creator: &CellId,
        id: &[u8; 16],
        is_kept: bool,
    ) -> Result<Vec<Vec<u8>>, VaultError> {
        if is_kept {
            let count = self.list("SELECT count(*) FROM kept_shares", [], |row| row.get::<_, i64>(0))?;
            if count.first().is_some_and(|count| *count >= KEPT_MAX) {
                return Err(VaultError::Refused("too many shares are kept already".into()));
            }
        }
        let freed = self.change_kept(creator, id, is_kept).map_err(wrong)?;
        self.step();
        let sql = format!(
            "SELECT {RECEIVED_COLUMNS} FROM grants_received WHERE creator = ?1 AND coalesce(share, file) = ?2
             AND n > ?3 ORDER BY n LIMIT ?4"
        );
        let mut after = 0;
        loop {
            let page = self.list(&sql, params![creator.0, id, after, SLICE as i64], received_row)?;
            let Some(last) = page.last() else { break };
            after = last.n as i64;
            vault.db.change(|t| {
                page.iter().try_for_each(|row| {
                    let kept = GrantReceived { received: row.received, is_kept, grant: row.grant.clone() };
                    t.put_record(&received_key(&row.creator, &row.ticket), &kept.to_bytes()).map(drop)
                })
            })?;
        }
        Ok(freed)
    }

    /// All of it or nothing: a share that is kept no more while its files still are would be taken for one that was taken back.
    fn change_kept(&self, creator: &CellId, id: &[u8; 16], is_kept: bool) -> rusqlite::Result<Vec<Vec<u8>>> {
        let conn = lock(&self.conn);
        let change = conn.unchecked_transaction()?;
        let of = params![creator.0, id];
        let of_share = "creator = ?1 AND coalesce(share, file) = ?2";
        let mut freed = Vec::new();
        if is_kept {
            change.execute("INSERT OR IGNORE INTO kept_shares VALUES (?1, ?2)", of)?;
        } else {
            let theirs =
                format!("creator = ?1 AND file IN (SELECT file FROM grants_received WHERE {of_share})");
            change.execute("DELETE FROM kept_shares WHERE creator = ?1 AND id = ?2", of)?;
            freed = change
                .prepare(&format!("SELECT path FROM kept_files WHERE {theirs} ORDER BY file"))?
                .query_map(of, |row| row.get(0))?
                .collect::<rusqlite::Result<Vec<_>>>()?;
            change.execute(
                &format!("INSERT OR IGNORE INTO kept_freed SELECT path FROM kept_files WHERE {theirs}"),
                of,
            )?;
            change.execute(&format!("DELETE FROM kept_files WHERE {theirs}"), of)?;
        }
        change.execute(
            &format!("UPDATE grants_received SET kept = ?3 WHERE {of_share}"),
            params![creator.0, id, is_kept],
        )?;
        change.commit()?;
        Ok(freed)
    }

    /// Paths of files that are this cell's own now, of which the walk is still to be told.
    pub(super) fn kept_freed(&self, limit: usize) -> Result<Vec<Vec<u8>>, DbError> {
        self.list("SELECT path FROM kept_freed LIMIT ?1", [limit as i64], |row| row.get(0))
    }

    /// The walk was told.
    pub(super) fn drop_kept_freed(&self, path: &[u8]) -> Result<(), DbError> {
        self.run("DELETE FROM kept_freed WHERE path = ?1", [path]).map(drop)
    }

    /// A friend's file sets out from `source` for its path: durable before anything of it is done.
    pub(super) fn begin_kept_move(&self, kept: &KeptFile, source: &[u8]) -> Result<(), DbError> {
        let conn = lock(&self.conn);
        let work = || -> rusqlite::Result<()> {
            let change = conn.unchecked_transaction()?;
            put_kept(&change, kept)?;
            change
                .prepare_cached("INSERT OR REPLACE INTO kept_moves VALUES (?1, ?2, ?3)")?
                .execute(params![kept.creator.0, kept.file.0, source])?;
            change.commit()
        };
        work().map_err(wrong)
    }

    /// Files that set out and may not have come to their paths, with where they come from.
    pub(super) fn kept_moves(&self, limit: usize) -> Result<Vec<(CellId, FileId, Vec<u8>)>, DbError> {
        let read = |row: &Row<'_>| Ok((CellId(row.get(0)?), FileId(row.get(1)?), row.get(2)?));
        self.list("SELECT creator, file, source FROM kept_moves LIMIT ?1", [limit as i64], read)
    }

    /// It is where it is to be, or will never be.
    pub(super) fn end_kept_move(&self, creator: &CellId, file: FileId) -> Result<(), DbError> {
        self.run("DELETE FROM kept_moves WHERE creator = ?1 AND file = ?2", params![creator.0, file.0])
            .map(drop)
    }

    /// Nothing of a cell is kept any more.
    pub(super) fn unkeep_all(&self, creator: &CellId) -> Result<(), DbError> {
        self.run("DELETE FROM kept_shares WHERE creator = ?1", [creator.0]).map(drop)
    }

    /// Grants whose files are kept, behind number `after`.
    pub(super) fn received_kept(&self, after: u64, limit: usize) -> Result<Vec<ReceivedRow>, DbError> {
        self.list(
            &format!(
                "SELECT {RECEIVED_COLUMNS} FROM grants_received WHERE kept = 1 AND n > ?1 ORDER BY n LIMIT ?2"
            ),
            params![after as i64, limit as i64],
            received_row,
        )
    }

    /// A grant that was received, by its file.
    pub(super) fn received_of(&self, creator: &CellId, file: FileId) -> Result<Option<ReceivedRow>, DbError> {
        let sql = format!("SELECT {RECEIVED_COLUMNS} FROM grants_received WHERE creator = ?1 AND file = ?2");
        Ok(self.list(&sql, params![creator.0, file.0], received_row)?.pop())
    }

    /// Where a friend's file lies.
    pub(super) fn kept_file(&self, creator: &CellId, file: FileId) -> Result<Option<KeptFile>, DbError> {
        let sql = format!("SELECT {COLUMNS} FROM kept_files WHERE creator = ?1 AND file = ?2");
        Ok(self.list(&sql, params![creator.0, file.0], kept_row)?.pop())
    }

    /// Whether a kept file was granted once more since it was looked at.
    pub(super) fn is_kept_anew(&self, creator: &CellId, file: FileId) -> Result<bool, DbError> {
        let sql = "SELECT 1 FROM kept_anew WHERE creator = ?1 AND file = ?2";
        Ok(!self.list(sql, params![creator.0, file.0], |_| Ok(()))?.is_empty())
    }

    /// It was looked at.
    pub(super) fn drop_kept_anew(&self, creator: &CellId, file: FileId) -> Result<(), DbError> {
        self.run("DELETE FROM kept_anew WHERE creator = ?1 AND file = ?2", params![creator.0, file.0])
            .map(drop)
    }

    /// Nobody looks at files any more that are shared or kept no more.
    pub(super) fn tidy_kept_anew(&self) -> Result<(), DbError> {
        self.run(
            "DELETE FROM kept_anew WHERE NOT EXISTS (SELECT 1 FROM grants_received AS r
             WHERE r.creator = kept_anew.creator AND r.file = kept_anew.file AND r.kept = 1)",
            [],
        )
        .map(drop)
    }

    /// All of them, behind one.
    pub(super) fn kept_files(
        &self,
        after: Option<(CellId, FileId)>,
        limit: usize,
    ) -> Result<Vec<KeptFile>, DbError> {
        let (creator, file) = match after {
            Some((creator, file)) => (creator.0.to_vec(), file.0.to_vec()),
            None => (Vec::new(), Vec::new()),
        };
        self.list(
            &format!(
                "SELECT {COLUMNS} FROM kept_files WHERE (creator, file) > (?1, ?2) ORDER BY creator, file LIMIT ?3"
            ),
            params![creator, file, limit as i64],
            kept_row,
        )
    }

    /// Whether some friend's file has this path.
    pub(super) fn is_path_kept(&self, path: &[u8]) -> Result<bool, DbError> {
        Ok(!self.list("SELECT 1 FROM kept_files WHERE path = ?1", [path], |_| Ok(()))?.is_empty())
    }

    /// What is known of a friend's file.
    pub(super) fn put_kept_file(&self, kept: &KeptFile) -> Result<(), DbError> {
        put_kept(&lock(&self.conn), kept).map_err(wrong)
    }

    /// A friend's file is none any more.
    pub(super) fn drop_kept_file(&self, kept: &KeptFile) -> Result<(), DbError> {
        self.run(
            "DELETE FROM kept_files WHERE creator = ?1 AND file = ?2",
            params![kept.creator.0, kept.file.0],
        )
        .map(drop)
    }

    /// The name of a friend's folder: once given it stays. `label` is what it is called, harmless as a name.
    pub(super) fn kept_folder(&self, creator: &CellId, label: &str) -> Result<String, DbError> {
        let conn = lock(&self.conn);
        let work = || -> rusqlite::Result<String> {
            let known = conn
                .query_row("SELECT name FROM kept_folders WHERE creator = ?1", [creator.0], |row| row.get(0))
                .optional()?;
            if let Some(known) = known {
                return Ok(known);
            }
            // The last is nobody else's.
            let last = format!("{} ({creator})", label.chars().take(40).collect::<String>());
            for name in numbered_names(label, NAMES_TRIED).chain([last]) {
                let added = conn.execute(
                    "INSERT OR IGNORE INTO kept_folders VALUES (?1, ?2)",
                    params![creator.0, name],
                )?;
                if added > 0 {
                    return Ok(name);
                }
            }
            Err(rusqlite::Error::QueryReturnedNoRows)
        };
        work().map_err(wrong)
    }

    /// What lies at `path` from now on goes in 30 days.
    pub(super) fn put_kept_bin(&self, path: &[u8], now: u64) -> Result<(), DbError> {
        self.run("INSERT OR REPLACE INTO kept_bin VALUES (?1, ?2)", params![path, now as i64]).map(drop)
    }

    /// What has lain in the bin since before `until`, observed time.
    pub(super) fn kept_bin_before(&self, until: u64, limit: usize) -> Result<Vec<Vec<u8>>, DbError> {
        self.list(
            "SELECT path FROM kept_bin WHERE since < ?1 LIMIT ?2",
            params![until as i64, limit as i64],
            |row| row.get(0),
        )
    }

    /// It is gone.
    pub(super) fn drop_kept_bin(&self, path: &[u8]) -> Result<(), DbError> {
        self.run("DELETE FROM kept_bin WHERE path = ?1", [path]).map(drop)
    }
}

//! Catalog, chunks, copies and what is held for peers: one method for each question or change.

use std::cell::Cell;

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::DbError;
use super::planner::{FREED_COPIES_MIN, at_most_on_peers, on_peers};
use crate::id::{BodyHash, CellId, ChunkName};
use crate::keys::random;
use crate::store::{PackId, Place};

/// A row of `chunks`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct ChunkId(pub i64);

/// A row of `cells`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CellNumber(pub i64);

/// A chunk that is known here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkRow {
    /// Its row.
    pub id: ChunkId,
    /// Its name.
    pub name: ChunkName,
    /// Sealed bytes.
    pub len: u32,
    /// Where it lies; `None`: not here.
    pub place: Option<Place>,
}

/// Whether a chunk is mine, and as what.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Own {
    /// Not mine, or not wanted any more.
    No = 0,
    /// Part of a file of mine.
    Data = 1,
    /// A list of chunks of a large file of mine.
    List = 2,
    /// A segment of my catalog.
    Segment = 3,
}

/// Whether a chunk should have a copy more on peers than the factor asks beside the one here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extra {
    /// No.
    No = 0,
    /// Yes: its file is to be freed here.
    Wanted = 1,
    /// Yes, and it should not lie here: its file is freed.
    Freed = 2,
}

/// Sums over the chunks of my files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct OwnTotals {
    /// How many there are, wherever they lie.
    pub chunks: u64,
    /// Sealed bytes of them.
    pub bytes: u64,
    /// Those that have fewer copies on peers than they should (`planner::on_peers`).
    pub short: u64,
    /// Those that lie here, and nowhere else because their folders say so.
    pub alone: u64,
}

/// Copies that a chunk's files want by the numbers of their folders; `None`: as many as the cell's setting says.
pub type Want = Option<u8>;

/// How a copy of a chunk of mine stands with a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CopyState {
    /// Stored, as far as is known.
    Stored = 0,
    /// Not wanted any more; the peer is to be told.
    ToRelease = 1,
    /// Stored with a peer that has been away too long to be counted on.
    Away = 2,
    /// A proof was asked for in vain. It still counts.
    Suspect = 3,
}

/// A copy of a chunk of mine with a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Copy {
    /// Of which chunk.
    pub chunk: ChunkId,
    /// With whom.
    pub cell: CellNumber,
    /// How it stands.
    pub state: CopyState,
    /// Observed day of the last proof, counted from 1; 0: never.
    pub proven: u64,
}

/// How often a proof of a copy was asked for in vain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unanswered {
    /// Of which chunk.
    pub chunk: ChunkId,
    /// Times.
    pub tries: u64,
    /// Observed second of the first time.
    pub since: u64,
    /// Observed second from which on it is asked again.
    pub next: u64,
}

fn read_unanswered(row: &Row<'_>) -> rusqlite::Result<Unanswered> {
    let number = |at| row.get::<_, i64>(at).map(|number| number as u64);
    Ok(Unanswered { chunk: ChunkId(row.get(0)?), tries: number(1)?, since: number(2)?, next: number(3)? })
}

fn read_copy(row: &Row<'_>) -> rusqlite::Result<Copy> {
    Ok(Copy {
        chunk: ChunkId(row.get(0)?),
        cell: CellNumber(row.get(1)?),
        state: match row.get(2)? {
            1 => CopyState::ToRelease,
            2 => CopyState::Away,
            3 => CopyState::Suspect,
            _ => CopyState::Stored,
        },
        proven: row.get::<_, i64>(3)? as u64,
    })
}

/// What a held chunk is for its owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HoldClass {
    /// Part of a file: counts against the quota.
    Chunk = 0,
    /// Part of the catalog: does not, up to a limit of its own.
    Segment = 1,
}

/// What became of a held chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HoldState {
    /// Held.
    Held = 0,
    /// Released by its owner, not yet deleted.
    Trash = 1,
    /// Deleted or lost; the row tells the owner so.
    Gone = 2,
}

/// One line of an inventory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InventoryRow {
    /// Number of the change.
    pub seq: u64,
    /// Chunk.
    pub name: ChunkName,
    /// Sealed bytes.
    pub len: u32,
    /// Held, or not any more.
    pub held: bool,
}

/// Sums of what is held for one owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct HeldTotals {
    /// Chunks of files.
    pub chunks: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Bytes of catalog segments.
    pub segment_bytes: u64,
}

/// A chunk's row, its owner's, its name, who the owner is, and what it is to him.
pub type Claim = (ChunkId, CellNumber, ChunkName, CellId, HoldClass);

/// A peer's catalog head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredHead {
    /// Hash of its body.
    pub hash: BodyHash,
    /// Life and sequence.
    pub life: u32,
    /// Sequence.
    pub seq: u64,
    /// No other stored head contains it.
    pub tip: bool,
    /// Observed seconds at which it came.
    pub at: u64,
    /// Body and signature.
    pub body: Vec<u8>,
}

/// A record's key and body.
pub type KeyAndBody = (Vec<u8>, Vec<u8>);

/// The tables within a transaction.
pub struct Tables<'a> {
    pub(super) conn: &'a Connection,
    next_seq: Cell<u64>,
    /// What should be where may have changed.
    moved: Cell<bool>,
    /// Whether folders have numbers of copies of their own, once it was looked up.
    has_numbers: Cell<Option<bool>>,
}

fn place_columns(place: Option<&Place>) -> (i64, Option<i64>, Option<i64>) {
    match place {
        None => (0, None, None),
        Some(Place::Loose) => (1, None, None),
        Some(Place::Pack { pack, offset }) => (2, Some(pack.0 as i64), Some(*offset as i64)),
    }
}

fn read_place(row: &Row<'_>, at: usize) -> rusqlite::Result<Option<Place>> {
    Ok(match row.get::<_, i64>(at)? {
        1 => Some(Place::Loose),
        2 => Some(Place::Pack {
            pack: PackId(row.get::<_, i64>(at + 1)? as u64),
            offset: row.get::<_, i64>(at + 2)? as u64,
        }),
        _ => None,
    })
}

fn chunk_row(row: &Row<'_>) -> rusqlite::Result<ChunkRow> {
    Ok(ChunkRow {
        id: ChunkId(row.get(0)?),
        name: ChunkName(row.get(1)?),
        len: row.get(2)?,
        place: read_place(row, 3)?,
    })
}

const CHUNK_COLUMNS: &str = "id, name, len, place, pack, off";

impl<'a> Tables<'a> {
    pub(super) fn new(conn: &'a Connection, next_seq: u64) -> Self {
        Self { conn, next_seq: Cell::new(next_seq), moved: Cell::new(false), has_numbers: Cell::new(None) }
    }

    pub(super) fn has_moved(&self) -> bool {
        self.moved.get()
    }

    pub(super) fn next_seq(&self) -> u64 {
        self.next_seq.get()
    }

    pub(super) fn run(&self, sql: &str, params: impl rusqlite::Params) -> Result<usize, DbError> {
        Ok(self.conn.prepare_cached(sql)?.execute(params)?)
    }

    pub(super) fn one<T>(
        &self,
        sql: &str,
        params: impl rusqlite::Params,
        read: impl FnOnce(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Option<T>, DbError> {
        Ok(self.conn.prepare_cached(sql)?.query_row(params, read).optional()?)
    }

    pub(super) fn list<T>(
        &self,
        sql: &str,
        params: impl rusqlite::Params,
        read: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>, DbError> {
        let mut statement = self.conn.prepare_cached(sql)?;
        let rows = statement.query_map(params, read)?;
        Ok(rows.collect::<rusqlite::Result<Vec<T>>>()?)
    }

    pub(super) fn number(&self, sql: &str, params: impl rusqlite::Params) -> Result<u64, DbError> {
        Ok(self.one(sql, params, |row| row.get::<_, Option<i64>>(0))?.flatten().unwrap_or(0) as u64)
    }

    // Meta.

    /// A value kept by name.
    pub fn meta(&self, key: &str) -> Result<Option<Vec<u8>>, DbError> {
        self.one("SELECT value FROM meta WHERE key = ?1", [key], |row| row.get(0))
    }

    /// Keeps a value by name.
    pub fn set_meta(&self, key: &str, value: &[u8]) -> Result<(), DbError> {
        self.run("INSERT OR REPLACE INTO meta VALUES (?1, ?2)", params![key, value]).map(drop)
    }

    /// A number kept by name.
    pub fn meta_u64(&self, key: &str) -> Result<Option<u64>, DbError> {
        let Some(bytes) = self.meta(key)? else { return Ok(None) };
        Ok(Some(u64::from_le_bytes(bytes.try_into().map_err(|_| DbError::Row("number in meta"))?)))
    }

    /// Keeps a number by name.
    pub fn set_meta_u64(&self, key: &str, value: u64) -> Result<(), DbError> {
        self.set_meta(key, &value.to_le_bytes())
    }

    /// Forgets what was kept by name.
    pub fn forget_meta(&self, key: &str) -> Result<(), DbError> {
        self.run("DELETE FROM meta WHERE key = ?1", [key]).map(drop)
    }

    // Catalog.

    pub(super) fn highest_seq(&self) -> Result<u64, DbError> {
        self.number("SELECT max(seq) FROM catalog", [])
    }

    /// Puts a record under the next sequence number; what had its key before is gone.
    pub fn put_record(&self, key: &[u8], body: &[u8]) -> Result<u64, DbError> {
        let seq = self.next_seq.get();
        self.next_seq.set(seq + 1);
        self.put_record_at(seq, key, body)?;
        Ok(seq)
    }

    /// Puts a record that was published under `seq`, unless a newer one with its key is here. Tells whether it was put.
    pub fn adopt_record(&self, seq: u64, key: &[u8], body: &[u8]) -> Result<bool, DbError> {
        if self.record_seq(key)?.is_some_and(|own| own >= seq) {
            return Ok(false);
        }
        self.next_seq.set(self.next_seq.get().max(seq + 1));
        // The number may be taken where two forks counted on from one head.
        let taken = self.number("SELECT count(*) FROM catalog WHERE seq = ?1", [seq as i64])? > 0;
        if taken {
            self.put_record(key, body)?;
        } else {
            self.put_record_at(seq, key, body)?;
        }
        Ok(true)
    }

    fn put_record_at(&self, seq: u64, key: &[u8], body: &[u8]) -> Result<(), DbError> {
        check_size(body)?;
        self.run("DELETE FROM catalog WHERE key = ?1", [key])?;
        self.run("INSERT INTO catalog (seq, key, body) VALUES (?1, ?2, ?3)", params![seq as i64, key, body])?;
        Ok(())
    }

    /// Puts a record whose key is known to be new.
    pub fn add_record(&self, key: &[u8], body: &[u8]) -> Result<u64, DbError> {
        check_size(body)?;
        let seq = self.next_seq.get();
        self.next_seq.set(seq + 1);
        self.run("INSERT INTO catalog (seq, key, body) VALUES (?1, ?2, ?3)", params![seq as i64, key, body])?;
        Ok(seq)
    }

    // The records of a head that is being merged: of each key the newest.

    /// What was superseded, deleted or put into the trash after `since` becomes younger by `by_s`: time that is credited for a
    /// stop passed before it, whenever the credit comes. Observed seconds.
    pub fn make_younger(&self, since: u64, by_s: u64) -> Result<(), DbError> {
        for (table, which) in [("superseded", ""), ("bin", ""), ("holds", "state = 1 AND ")] {
            self.run(
                &format!("UPDATE {table} SET at = at + ?2 WHERE {which}at > ?1"),
                params![since as i64, by_s as i64],
            )?;
        }
        Ok(())
    }

    /// Empties the table of foreign records.
    pub fn clear_foreign(&self) -> Result<(), DbError> {
        self.run("DELETE FROM foreign_records", []).map(drop)
    }

    /// Takes in a foreign record, if it is the newest of its key so far.
    pub fn put_foreign(&self, seq: u64, key: &[u8], body: &[u8]) -> Result<(), DbError> {
        self.run(
            "INSERT INTO foreign_records (key, seq, body) VALUES (?1, ?2, ?3)
             ON CONFLICT (key) DO UPDATE SET seq = ?2, body = ?3 WHERE seq < ?2",
            params![key, seq as i64, body],
        )
        .map(drop)
    }

    /// Up to `limit` foreign records with keys over `after`, by key.
    pub fn foreign_after(&self, after: &[u8], limit: usize) -> Result<Vec<KeyAndBody>, DbError> {
        self.list(
            "SELECT key, body FROM foreign_records WHERE key > ?1 ORDER BY key LIMIT ?2",
            params![after, limit as i64],
            |row| Ok((row.get(0)?, row.get(1)?)),
        )
    }

    /// Whether there is a foreign record with this key.
    pub fn has_foreign(&self, key: &[u8]) -> Result<bool, DbError> {
        Ok(self.number("SELECT count(*) FROM foreign_records WHERE key = ?1", [key])? > 0)
    }

    /// Forgets a record, in a way that reaches every copy of the catalog.
    pub fn forget_record(&self, key: &[u8]) -> Result<(), DbError> {
        // An empty record even for one that is not published yet: an older one of its key may be.
        match self.record(key)? {
            Some(body) if !body.is_empty() => self.put_record(key, &[]).map(drop),
            _ => Ok(()),
        }
    }

    /// The number under which a key's record stands.
    pub fn record_seq(&self, key: &[u8]) -> Result<Option<u64>, DbError> {
        self.one("SELECT seq FROM catalog WHERE key = ?1", [key], |row| {
            row.get::<_, i64>(0).map(|seq| seq as u64)
        })
    }

    /// The body under a number.
    pub fn record_at(&self, seq: u64) -> Result<Option<Vec<u8>>, DbError> {
        self.one("SELECT body FROM catalog WHERE seq = ?1", [seq as i64], |row| row.get(0))
    }

    /// The body under a key; empty when forgotten.
    pub fn record(&self, key: &[u8]) -> Result<Option<Vec<u8>>, DbError> {
        self.one("SELECT body FROM catalog WHERE key = ?1", [key], |row| row.get(0))
    }

    /// Calls `see(seq, key, body)` for records over `after`, by number, until it says stop (`false`).
    pub fn records_after<E: From<DbError>>(
        &self,
        after: u64,
        mut see: impl FnMut(u64, &[u8], &[u8]) -> Result<bool, E>,
    ) -> Result<(), E> {
        let sql = "SELECT seq, key, body FROM catalog WHERE seq > ?1 ORDER BY seq";
        let mut statement = self.conn.prepare_cached(sql).map_err(DbError::from)?;
        let mut rows = statement.query([after as i64]).map_err(DbError::from)?;
        while let Some(row) = rows.next().map_err(DbError::from)? {
            let get = || -> rusqlite::Result<(i64, &[u8], &[u8])> {
                Ok((row.get(0)?, row.get_ref(1)?.as_blob()?, row.get_ref(2)?.as_blob()?))
            };
            let (seq, key, body) = get().map_err(DbError::from)?;
            if !see(seq as u64, key, body)? {
                break;
            }
        }
        Ok(())
    }

    /// Numbers and keys of records whose key begins with `prefix`, in the order of keys, without those that are forgotten. At most
    /// `limit`.
    pub fn records_with_prefix(&self, prefix: &[u8], limit: usize) -> Result<Vec<(u64, Vec<u8>)>, DbError> {
        let mut end = prefix.to_vec();
        end.extend_from_slice(&[0xff; 40]);
        self.list(
            "SELECT seq, key FROM catalog WHERE key >= ?1 AND key <= ?2 AND length(body) > 0 ORDER BY key LIMIT ?3",
            params![prefix, end, limit as i64],
            |row| Ok((row.get::<_, i64>(0)? as u64, row.get(1)?)),
        )
    }

    /// Up to `limit` records with keys over `after`, by key: number and key.
    pub fn records_from(&self, after: &[u8], limit: usize) -> Result<Vec<(u64, Vec<u8>)>, DbError> {
        self.list(
            "SELECT seq, key FROM catalog WHERE key > ?1 ORDER BY key LIMIT ?2",
            params![after, limit as i64],
            |row| Ok((row.get::<_, i64>(0)? as u64, row.get(1)?)),
        )
    }

    /// The highest sequence number given out.
    pub fn top_seq(&self) -> u64 {
        self.next_seq.get() - 1
    }

    /// Bytes of the records over `after` up to `to`.
    pub fn bytes_between(&self, after: u64, to: u64) -> Result<u64, DbError> {
        self.number(
            "SELECT sum(length(body) + length(key) + 14) FROM catalog WHERE seq > ?1 AND seq <= ?2",
            params![after as i64, to as i64],
        )
    }

    /// Bytes of all records that are not forgotten, by the last count and what came since.
    pub fn live_bytes(&self) -> Result<u64, DbError> {
        let (counted_at, counted) =
            (self.meta_u64("live_at")?.unwrap_or(0), self.meta_u64("live")?.unwrap_or(0));
        let top = self.top_seq();
        // What was counted may have died since: count anew when the log has grown by a quarter.
        let rows = self.number(
            "SELECT count(*) FROM (SELECT 1 FROM catalog WHERE seq > ?1 LIMIT 20000)",
            [counted_at as i64],
        )?;
        if counted == 0 || rows >= 20_000 {
            let live = self.catalog_bytes()?;
            self.set_meta_u64("live_at", top)?;
            self.set_meta_u64("live", live)?;
            return Ok(live);
        }
        Ok(counted + self.bytes_between(counted_at, top)?)
    }

    /// Drops forgotten records for good, once no segment can hold what they forgot.
    pub fn drop_forgotten(&self, up_to: u64) -> Result<usize, DbError> {
        self.run("DELETE FROM catalog WHERE seq <= ?1 AND length(body) = 0", [up_to as i64])
    }

    /// Bytes of all records, roughly what the segments of a compact catalog take.
    pub fn catalog_bytes(&self) -> Result<u64, DbError> {
        self.number("SELECT sum(length(body) + length(key) + 14) FROM catalog", [])
    }

    /// Since when a version is known to be superseded; from `now` on, if this is the first look.
    pub fn superseded_at(&self, seq: u64, now: u64) -> Result<u64, DbError> {
        self.run("INSERT OR IGNORE INTO superseded VALUES (?1, ?2)", [seq as i64, now as i64])?;
        self.number("SELECT at FROM superseded WHERE seq = ?1", [seq as i64])
    }

    /// The version is gone.
    pub fn forget_superseded(&self, seq: u64) -> Result<(), DbError> {
        self.run("DELETE FROM superseded WHERE seq = ?1", [seq as i64]).map(drop)
    }

    /// Segments of the newest head, oldest first: run, name, length.
    pub fn segments(&self) -> Result<Vec<(u64, ChunkName, u32)>, DbError> {
        self.list("SELECT run, name, len FROM segments ORDER BY ord", [], |row| {
            Ok((row.get::<_, i64>(0)? as u64, ChunkName(row.get(1)?), row.get(2)?))
        })
    }

    /// Sets the segments of the newest head.
    pub fn set_segments(&self, segments: &[(u64, ChunkName, u32)]) -> Result<(), DbError> {
        self.run("DELETE FROM segments", [])?;
        for (run, name, len) in segments {
            self.run(
                "INSERT INTO segments (run, name, len) VALUES (?1, ?2, ?3)",
                params![*run as i64, name.0, len],
            )?;
        }
        Ok(())
    }

    /// Notes a head of mine as written or merged.
    pub fn note_head(&self, hash: &BodyHash, life: u32, seq: u64) -> Result<(), DbError> {
        self.run("INSERT OR IGNORE INTO heads VALUES (?1, ?2, ?3)", params![hash.0, life, seq as i64])
            .map(drop)
    }

    /// Whether a head of mine was written or merged here.
    pub fn knows_head(&self, hash: &BodyHash) -> Result<bool, DbError> {
        Ok(self.number("SELECT count(*) FROM heads WHERE hash = ?1", [hash.0])? > 0)
    }

    // Chunks.

    /// A chunk by name.
    pub fn chunk(&self, name: &ChunkName) -> Result<Option<ChunkRow>, DbError> {
        self.one(&format!("SELECT {CHUNK_COLUMNS} FROM chunks WHERE name = ?1"), [name.0], chunk_row)
    }

    /// A chunk by row.
    pub fn chunk_by_id(&self, id: ChunkId) -> Result<Option<ChunkRow>, DbError> {
        self.one(&format!("SELECT {CHUNK_COLUMNS} FROM chunks WHERE id = ?1"), [id.0], chunk_row)
    }

    /// Up to `limit` chunks with rows over `after`, by row.
    pub fn chunks_after(&self, after: ChunkId, limit: usize) -> Result<Vec<ChunkRow>, DbError> {
        self.list(
            &format!("SELECT {CHUNK_COLUMNS} FROM chunks WHERE id > ?1 ORDER BY id LIMIT ?2"),
            params![after.0, limit as i64],
            chunk_row,
        )
    }

    /// Up to `limit` chunks over row `after` that files here need, that do not lie here, and of which peers have fewer than
    /// wanted, which is `copies` where nothing else is said, and two at least: those of freed files have as many.
    pub fn absent_own_after(
        &self,
        after: ChunkId,
        copies: u64,
        limit: usize,
    ) -> Result<Vec<ChunkRow>, DbError> {
        self.list(
            &format!(
                "SELECT {CHUNK_COLUMNS} FROM chunks
                 WHERE id > ?1 AND own IN (1, 2) AND place = 0 AND ncopies < max(coalesce(want, ?2), ?4) AND extra < 2
                 ORDER BY id LIMIT ?3"
            ),
            params![after.0, copies as i64, limit as i64, FREED_COPIES_MIN as i64],
            chunk_row,
        )
    }

    /// Up to `limit` chunks over row `after`, up to row `until`, that lie loose and have fewer than `bytes`.
    pub fn loose_after(
        &self,
        after: ChunkId,
        until: ChunkId,
        bytes: usize,
        limit: usize,
    ) -> Result<Vec<ChunkRow>, DbError> {
        self.list(
            &format!(
                "SELECT {CHUNK_COLUMNS} FROM chunks
                 WHERE id > ?1 AND id <= ?2 AND place = 1 AND len < ?3 ORDER BY id LIMIT ?4"
            ),
            params![after.0, until.0, bytes as i64, limit as i64],
            chunk_row,
        )
    }

    /// The highest row.
    pub fn chunk_id_max(&self) -> Result<ChunkId, DbError> {
        Ok(ChunkId(self.number("SELECT max(id) FROM chunks", [])? as i64))
    }

    /// Records where a chunk lies, new or known. `own` raises its class, never lowers it.
    pub fn put_chunk(&self, name: &ChunkName, len: u32, place: &Place, own: Own) -> Result<ChunkId, DbError> {
        self.moved.set(true);
        let (kind, pack, off) = place_columns(Some(place));
        let sql = "INSERT INTO chunks (name, len, place, pack, off, own) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
                   ON CONFLICT (name) DO UPDATE SET len = ?2, place = ?3, pack = ?4, off = ?5, own = max(own, ?6)
                   RETURNING id";
        let id = self.one(sql, params![name.0, len, kind, pack, off, own as i64], |row| row.get(0))?;
        id.map(ChunkId).ok_or(DbError::Row("chunk"))
    }

    /// Records that a chunk exists somewhere, without saying where it lies.
    pub fn know_chunk(&self, name: &ChunkName, len: u32, own: Own) -> Result<ChunkId, DbError> {
        self.moved.set(true);
        let sql = "INSERT INTO chunks (name, len, place, own) VALUES (?1, ?2, 0, ?3)
                   ON CONFLICT (name) DO UPDATE SET own = max(own, ?3) RETURNING id";
        let id = self.one(sql, params![name.0, len, own as i64], |row| row.get(0))?;
        id.map(ChunkId).ok_or(DbError::Row("chunk"))
    }

    /// Whether and as what a chunk is mine.
    pub fn own(&self, id: ChunkId) -> Result<Own, DbError> {
        let own = self.number("SELECT own FROM chunks WHERE id = ?1", [id.0])?;
        Ok(match own {
            1 => Own::Data,
            2 => Own::List,
            3 => Own::Segment,
            _ => Own::No,
        })
    }

    /// Sets whether a chunk is mine. What is not wants nothing.
    pub fn set_own(&self, id: ChunkId, own: Own) -> Result<(), DbError> {
        self.moved.set(true);
        let sql = "UPDATE chunks SET own = ?2, want = CASE ?2 WHEN 0 THEN NULL ELSE want END WHERE id = ?1";
        self.run(sql, params![id.0, own as i64]).map(drop)
    }

    // Copies wanted.

    /// Whether folders have numbers of copies of their own.
    pub fn has_numbers(&self) -> Result<bool, DbError> {
        if self.has_numbers.get().is_none() {
            let kind = crate::catalog::RecordKind::Copies as u8;
            let sql =
                "SELECT EXISTS (SELECT 1 FROM catalog WHERE key >= ?1 AND key < ?2 AND length(body) > 0)";
            self.has_numbers.set(Some(self.number(sql, params![[kind], [kind + 1]])? > 0));
        }
        Ok(self.has_numbers.get().unwrap_or(false))
    }

    /// What is wanted may have changed: plans are made anew.
    pub fn note_wanted(&self) {
        self.moved.set(true);
    }

    /// The wants that chunks of my files have: always `None`, and what else there is.
    pub fn wants(&self) -> Result<Vec<Want>, DbError> {
        let mut wants = vec![None];
        let mut after = -1;
        let sql = "SELECT want FROM chunks INDEXED BY chunks_short WHERE own IN (1, 2) AND want > ?1 ORDER BY want LIMIT 1";
        while let Some(want) = self.one(sql, [after], |row| row.get::<_, u8>(0))? {
            wants.push(Some(want));
            after = i64::from(want);
        }
        Ok(wants)
    }

    /// Copies that a chunk's files want.
    pub fn want(&self, id: ChunkId) -> Result<Want, DbError> {
        Ok(self.one("SELECT want FROM chunks WHERE id = ?1", [id.0], |row| row.get(0))?.flatten())
    }

    /// Sets the copies that a chunk's files want.
    pub fn set_want(&self, id: ChunkId, want: Want) -> Result<(), DbError> {
        self.moved.set(true);
        self.run("UPDATE chunks SET want = ?2 WHERE id = ?1", params![id.0, want]).map(drop)
    }

    /// Up to `limit` chunks of my files over row `after`, up to row `until`, by row, and what they want.
    pub fn wants_after(
        &self,
        after: ChunkId,
        until: ChunkId,
        limit: usize,
    ) -> Result<Vec<(ChunkId, Want)>, DbError> {
        self.list(
            "SELECT id, want FROM chunks WHERE id > ?1 AND id <= ?2 AND own IN (1, 2) ORDER BY id LIMIT ?3",
            params![after.0, until.0, limit as i64],
            |row| Ok((ChunkId(row.get(0)?), row.get(1)?)),
        )
    }

    /// Up to `limit` chunks of my files over row `after` that want `want`, have `have` copies on peers, are here, and are not
    /// yet with `cell`.
    pub fn chunks_short(
        &self,
        cell: CellNumber,
        want: Want,
        have: u64,
        after: ChunkId,
        limit: usize,
    ) -> Result<Vec<ChunkRow>, DbError> {
        self.list(
            &format!(
                "SELECT {CHUNK_COLUMNS} FROM chunks WHERE own IN (1, 2) AND want IS ?5 AND ncopies = ?2 AND id > ?3 AND place > 0
                   AND NOT EXISTS (SELECT 1 FROM copies WHERE chunk = chunks.id AND copies.cell = ?1)
                 ORDER BY id LIMIT ?4"
            ),
            params![cell.0, have as i64, after.0, limit as i64, want],
            chunk_row,
        )
    }

    /// Up to `limit` rows over `after` of chunks of my files that want `want` and have `have` copies on peers; only those that
    /// want one more than others, if `only_extra`.
    pub fn short_ids(
        &self,
        want: Want,
        have: u64,
        only_extra: bool,
        after: ChunkId,
        limit: usize,
    ) -> Result<Vec<ChunkId>, DbError> {
        let sql = match only_extra {
            true => {
                "SELECT id FROM chunks INDEXED BY chunks_extra
                 WHERE extra > 0 AND own IN (1, 2) AND want IS ?4 AND ncopies = ?1 AND id > ?2 ORDER BY id LIMIT ?3"
            }
            false => {
                "SELECT id FROM chunks INDEXED BY chunks_short
                 WHERE own IN (1, 2) AND want IS ?4 AND ncopies = ?1 AND id > ?2 ORDER BY id LIMIT ?3"
            }
        };
        self.list(sql, params![have as i64, after.0, limit as i64, want], |row| row.get(0).map(ChunkId))
    }

    /// Up to `limit` chunks over row `after` that want `want`, which is `wanted` copies in all, and whose files are freed here, or to
    /// be: peers have fewer than they then should, they are here, and are not yet with `cell`.
    pub fn extra_short(
        &self,
        cell: CellNumber,
        want: Want,
        wanted: u64,
        after: ChunkId,
        limit: usize,
    ) -> Result<Vec<ChunkRow>, DbError> {
        self.list(
            &format!(
                "SELECT {CHUNK_COLUMNS} FROM chunks INDEXED BY chunks_extra
                 WHERE extra > 0 AND ncopies < ?2 AND id > ?3 AND place > 0
                   AND own IN (1, 2) AND want IS ?5
                   AND NOT EXISTS (SELECT 1 FROM copies WHERE chunk = chunks.id AND copies.cell = ?1)
                 ORDER BY id LIMIT ?4"
            ),
            params![cell.0, on_peers(wanted, Extra::Wanted, true) as i64, after.0, limit as i64, want],
            chunk_row,
        )
    }

    /// Up to `limit` chunks of freed files over row `after` that want `want`, which is `wanted` copies in all, and do not lie here, and
    /// of which peers have a copy but fewer than they should: one must come here first to be copied on.
    pub fn absent_short(
        &self,
        want: Want,
        wanted: u64,
        after: ChunkId,
        limit: usize,
    ) -> Result<Vec<ChunkRow>, DbError> {
        self.list(
            &format!(
                "SELECT {CHUNK_COLUMNS} FROM chunks INDEXED BY chunks_extra
                 WHERE extra > 0 AND place = 0 AND own IN (1, 2) AND want IS ?4
                   AND ncopies > 0 AND ncopies < ?1 AND id > ?2 ORDER BY id LIMIT ?3"
            ),
            params![on_peers(wanted, Extra::Freed, false) as i64, after.0, limit as i64, want],
            chunk_row,
        )
    }

    /// Up to `limit` chunks over row `after` that want `want`, which is `wanted` copies in all, and are here only because they were
    /// copied on: their files are freed, and peers have as many copies as they should.
    pub fn passed_on(
        &self,
        want: Want,
        wanted: u64,
        after: ChunkId,
        limit: usize,
    ) -> Result<Vec<ChunkRow>, DbError> {
        self.list(
            &format!(
                "SELECT {CHUNK_COLUMNS} FROM chunks INDEXED BY chunks_extra
                 WHERE extra > 0 AND extra = 2 AND place > 0 AND want IS ?4 AND ncopies >= ?1
                   AND id > ?2 ORDER BY id LIMIT ?3"
            ),
            params![on_peers(wanted, Extra::Freed, true) as i64, after.0, limit as i64, want],
            chunk_row,
        )
    }

    /// Up to `limit` chunks of my files over row `after` that want `want`, which is `wanted` copies in all, and that peers have more
    /// copies of than they may.
    pub fn chunks_over(
        &self,
        want: Want,
        wanted: u64,
        after: ChunkId,
        limit: usize,
    ) -> Result<Vec<ChunkRow>, DbError> {
        self.list(
            &format!(
                "SELECT {CHUNK_COLUMNS} FROM chunks
                 WHERE own IN (1, 2) AND want IS ?4 AND ncopies > ?1
                   AND ncopies > CASE WHEN extra > 0 THEN ?6 WHEN place = 0 THEN ?5 ELSE ?1 END AND id > ?2
                 ORDER BY id LIMIT ?3"
            ),
            params![
                // The fewest of the three first: the index finds what has more.
                on_peers(wanted, Extra::No, true) as i64,
                after.0,
                limit as i64,
                want,
                at_most_on_peers(wanted, Extra::No, false) as i64,
                on_peers(wanted, Extra::Freed, false) as i64,
            ],
            chunk_row,
        )
    }

    /// Whether a chunk should have a copy more on peers than the factor asks beside the one here.
    pub fn want_extra(&self, id: ChunkId, wanted: Extra) -> Result<(), DbError> {
        self.moved.set(true);
        self.run("UPDATE chunks SET extra = ?2 WHERE id = ?1", params![id.0, wanted as i64]).map(drop)
    }

    /// Whether a chunk should have a copy more on peers.
    pub fn extra(&self, id: ChunkId) -> Result<Extra, DbError> {
        Ok(match self.number("SELECT extra FROM chunks WHERE id = ?1", [id.0])? {
            0 => Extra::No,
            1 => Extra::Wanted,
            _ => Extra::Freed,
        })
    }

    /// Sums over the chunks of my files, which want `usual` copies in all where their folders say nothing else.
    pub fn own_totals(&self, usual: u64) -> Result<OwnTotals, DbError> {
        // `on_peers` in SQL: one look at each row, whatever it wants. A test holds the two together.
        let sql = "SELECT count(*), coalesce(sum(len), 0),
                     count(*) FILTER (WHERE ncopies < CASE WHEN extra > 0 THEN max(wanted, ?2)
                                                           WHEN place > 0 THEN wanted - 1
                                                           ELSE max(wanted - 1, 1) END),
                     count(*) FILTER (WHERE want = 1 AND place > 0 AND extra = 0)
                   FROM (SELECT len, ncopies, extra, place, want, coalesce(want, ?1) AS wanted FROM chunks WHERE own IN (1, 2))";
        let totals = self.one(sql, params![usual as i64, FREED_COPIES_MIN as i64], |row| {
            let number = |at| row.get::<_, i64>(at).map(|number| number as u64);
            Ok(OwnTotals { chunks: number(0)?, bytes: number(1)?, short: number(2)?, alone: number(3)? })
        })?;
        Ok(totals.unwrap_or_default())
    }

    /// `OwnTotals::short` by itself: only what has few copies, and what is freed or to be, is looked at.
    pub fn own_short(&self, usual: u64) -> Result<u64, DbError> {
        let mut short = 0;
        for want in self.wants()? {
            let wanted = want.map_or(usual, u64::from);
            let usually = on_peers(wanted, Extra::No, true) as i64;
            let sql = "SELECT count(*) FROM chunks WHERE own IN (1, 2) AND want IS ?1 AND ncopies < ?2";
            short += self.number(sql, params![want, usually])?;
            let sql = "SELECT count(*) FROM chunks INDEXED BY chunks_extra
                       WHERE extra > 0 AND own IN (1, 2) AND want IS ?1 AND ncopies >= ?2 AND ncopies < ?3";
            let freed = on_peers(wanted, Extra::Freed, false) as i64;
            short += self.number(sql, params![want, usually, freed])?;
            let absent = on_peers(wanted, Extra::No, false) as i64;
            if absent > usually {
                let sql = "SELECT count(*) FROM chunks
                           WHERE own IN (1, 2) AND want IS ?1 AND ncopies >= ?2 AND ncopies < ?3 AND place = 0 AND extra = 0";
                short += self.number(sql, params![want, usually, absent])?;
            }
        }
        Ok(short)
    }

    /// Records a new place, or absence.
    pub fn move_chunk(&self, id: ChunkId, place: Option<&Place>) -> Result<(), DbError> {
        self.moved.set(true);
        let (kind, pack, off) = place_columns(place);
        self.run(
            "UPDATE chunks SET place = ?2, pack = ?3, off = ?4 WHERE id = ?1",
            params![id.0, kind, pack, off],
        )
        .map(drop)
    }

    /// Forgets a chunk that is not here, that nobody owns here and no peer holds for me.
    pub fn delete_chunk(&self, id: ChunkId) -> Result<(), DbError> {
        if self.run("DELETE FROM chunks WHERE id = ?1 AND place = 0", [id.0])? > 0 {
            // Its number may be given to another chunk.
            self.run("DELETE FROM roots WHERE chunk = ?1", [id.0])?;
        }
        Ok(())
    }

    /// Keeps the root of a chunk of mine, for proofs of its leaves when it is not here.
    pub fn set_root(&self, id: ChunkId, root: &[u8; 32]) -> Result<(), DbError> {
        self.run("INSERT OR REPLACE INTO roots VALUES (?1, ?2)", params![id.0, root]).map(drop)
    }

    /// The root of a chunk of mine, if it was made.
    pub fn root(&self, id: ChunkId) -> Result<Option<[u8; 32]>, DbError> {
        self.one("SELECT root FROM roots WHERE chunk = ?1", [id.0], |row| row.get(0))
    }

    /// Up to `limit` chunks over row `after`, up to row `until`, that lie here, by row.
    pub fn chunks_here(
        &self,
        after: ChunkId,
        until: ChunkId,
        limit: usize,
    ) -> Result<Vec<ChunkRow>, DbError> {
        self.list(
            &format!(
                "SELECT {CHUNK_COLUMNS} FROM chunks WHERE id > ?1 AND id <= ?2 AND place > 0 ORDER BY id LIMIT ?3"
            ),
            params![after.0, until.0, limit as i64],
            chunk_row,
        )
    }

    /// Bytes of chunks of my files that lie here.
    pub fn own_bytes_here(&self) -> Result<u64, DbError> {
        self.number("SELECT coalesce(sum(len), 0) FROM chunks WHERE own IN (1, 2) AND place > 0", [])
    }

    /// Number and bytes of chunks that lie here.
    pub fn chunk_totals(&self) -> Result<(u64, u64), DbError> {
        let sql = "SELECT count(*), coalesce(sum(len), 0) FROM chunks WHERE place > 0";
        let totals =
            self.one(sql, [], |row| Ok((row.get::<_, i64>(0)? as u64, row.get::<_, i64>(1)? as u64)))?;
        Ok(totals.unwrap_or_default())
    }

    /// Live bytes of each pack.
    pub fn pack_bytes(&self) -> Result<Vec<(PackId, u64)>, DbError> {
        self.list("SELECT pack, sum(len) FROM chunks WHERE pack IS NOT NULL GROUP BY pack", [], |row| {
            Ok((PackId(row.get::<_, i64>(0)? as u64), row.get::<_, i64>(1)? as u64))
        })
    }

    /// Chunks in a pack, by offset.
    pub fn chunks_in_pack(&self, pack: PackId) -> Result<Vec<ChunkRow>, DbError> {
        self.list(
            &format!("SELECT {CHUNK_COLUMNS} FROM chunks WHERE pack = ?1 ORDER BY off"),
            [pack.0 as i64],
            chunk_row,
        )
    }

    // Other cells.

    /// The number of a cell, new or known.
    pub fn cell(&self, id: &CellId) -> Result<CellNumber, DbError> {
        self.run("INSERT OR IGNORE INTO cells (key) VALUES (?1)", [id.0])?;
        let number = self.one("SELECT id FROM cells WHERE key = ?1", [id.0], |row| row.get(0))?;
        number.map(CellNumber).ok_or(DbError::Row("cell"))
    }

    /// The cell with a number.
    pub fn cell_id(&self, number: CellNumber) -> Result<Option<CellId>, DbError> {
        self.one("SELECT key FROM cells WHERE id = ?1", [number.0], |row| row.get(0).map(CellId))
    }

    // Copies of my chunks.

    /// Notes that a peer stores a chunk of mine. What was proven of it before stays.
    pub fn put_copy(&self, chunk: ChunkId, cell: CellNumber) -> Result<(), DbError> {
        self.run(
            "INSERT INTO copies VALUES (?1, ?2, 0, 0) ON CONFLICT (chunk, cell) DO UPDATE SET state = 0",
            params![chunk.0, cell.0],
        )?;
        self.count_copies(chunk)
    }

    /// A copy was proven on observed day `day` (from 1). One that is to be released or away stays so.
    pub fn prove_copy(&self, chunk: ChunkId, cell: CellNumber, day: u64) -> Result<(), DbError> {
        self.run(
            "UPDATE copies SET proven = ?3, state = CASE state WHEN 3 THEN 0 ELSE state END WHERE chunk = ?1 AND cell = ?2",
            params![chunk.0, cell.0, day as i64],
        )?;
        self.forget_unanswered(chunk, cell)
    }

    /// A proof of a copy was asked for in vain: it still counts, and is asked about again soon.
    pub fn suspect_copy(&self, chunk: ChunkId, cell: CellNumber) -> Result<(), DbError> {
        self.run(
            "UPDATE copies SET state = 3 WHERE chunk = ?1 AND cell = ?2 AND state = 0",
            params![chunk.0, cell.0],
        )
        .map(drop)
    }

    /// A copy is no more.
    pub fn drop_copy(&self, chunk: ChunkId, cell: CellNumber) -> Result<(), DbError> {
        self.run("DELETE FROM copies WHERE chunk = ?1 AND cell = ?2", params![chunk.0, cell.0])?;
        self.forget_unanswered(chunk, cell)?;
        self.count_copies(chunk)
    }

    /// Up to `limit` copies with a peer over chunk `after`, up to chunk `until`, by chunk.
    pub fn copies_between(
        &self,
        cell: CellNumber,
        after: ChunkId,
        until: ChunkId,
        limit: usize,
    ) -> Result<Vec<Copy>, DbError> {
        self.list(
            "SELECT chunk, cell, state, proven FROM copies
             WHERE cell = ?1 AND chunk > ?2 AND chunk <= ?3 ORDER BY chunk LIMIT ?4",
            params![cell.0, after.0, until.0, limit as i64],
            read_copy,
        )
    }

    /// How often a proof of a copy was asked for in vain.
    pub fn unanswered(&self, chunk: ChunkId, cell: CellNumber) -> Result<Option<Unanswered>, DbError> {
        self.one(
            "SELECT chunk, tries, since, next FROM unanswered WHERE cell = ?1 AND chunk = ?2",
            params![cell.0, chunk.0],
            read_unanswered,
        )
    }

    /// Up to `limit` copies with a peer of which a proof is to be asked again at observed second `now`.
    pub fn unanswered_due(
        &self,
        cell: CellNumber,
        now: u64,
        limit: usize,
    ) -> Result<Vec<Unanswered>, DbError> {
        self.list(
            "SELECT chunk, tries, since, next FROM unanswered WHERE cell = ?1 AND next <= ?2
             ORDER BY next, chunk LIMIT ?3",
            params![cell.0, now as i64, limit as i64],
            read_unanswered,
        )
    }

    /// Notes that a proof of a copy was asked for in vain.
    pub fn set_unanswered(&self, cell: CellNumber, tries: &Unanswered) -> Result<(), DbError> {
        self.run(
            "INSERT OR REPLACE INTO unanswered VALUES (?1, ?2, ?3, ?4, ?5)",
            params![cell.0, tries.chunk.0, tries.tries as i64, tries.since as i64, tries.next as i64],
        )
        .map(drop)
    }

    /// A proof of a copy came, or the copy is no more.
    pub fn forget_unanswered(&self, chunk: ChunkId, cell: CellNumber) -> Result<(), DbError> {
        self.run("DELETE FROM unanswered WHERE cell = ?1 AND chunk = ?2", params![cell.0, chunk.0]).map(drop)
    }

    /// Up to `limit` copies with a peer over chunk `after`, by chunk; a way to go through them all in bounded steps.
    pub fn copies_page(&self, cell: CellNumber, after: ChunkId, limit: usize) -> Result<Vec<Copy>, DbError> {
        self.list(
            "SELECT chunk, cell, state, proven FROM copies WHERE cell = ?1 AND chunk > ?2 ORDER BY chunk LIMIT ?3",
            params![cell.0, after.0, limit as i64],
            read_copy,
        )
    }

    /// Up to `limit` copies with a peer over chunk `after` that were never proven, by chunk.
    pub fn copies_unproven(
        &self,
        cell: CellNumber,
        after: ChunkId,
        limit: usize,
    ) -> Result<Vec<Copy>, DbError> {
        self.list(
            "SELECT chunk, cell, state, proven FROM copies INDEXED BY copies_unproven
             WHERE cell = ?1 AND chunk > ?2 AND proven = 0 ORDER BY chunk LIMIT ?3",
            params![cell.0, after.0, limit as i64],
            read_copy,
        )
    }

    /// Up to `limit` copies with a peer of which proofs were asked for in vain, over chunk `after`, by chunk.
    pub fn copies_suspect(
        &self,
        cell: CellNumber,
        after: ChunkId,
        limit: usize,
    ) -> Result<Vec<Copy>, DbError> {
        self.list(
            "SELECT chunk, cell, state, proven FROM copies INDEXED BY copies_suspect
             WHERE cell = ?1 AND chunk > ?2 AND state = 3 ORDER BY chunk LIMIT ?3",
            params![cell.0, after.0, limit as i64],
            read_copy,
        )
    }

    /// The peer of these copies is away, or back: they do not count, or count again. Those to be released stay so.
    pub fn set_copies_away(
        &self,
        cell: CellNumber,
        chunks: &[ChunkId],
        is_away: bool,
    ) -> Result<(), DbError> {
        let sql = if is_away {
            "UPDATE copies SET state = 2 WHERE chunk = ?1 AND cell = ?2 AND state IN (0, 3)"
        } else {
            "UPDATE copies SET state = 0 WHERE chunk = ?1 AND cell = ?2 AND state = 2"
        };
        for chunk in chunks {
            if self.run(sql, params![chunk.0, cell.0])? > 0 {
                self.count_copies(*chunk)?;
            }
        }
        Ok(())
    }

    /// Marks a copy for release: it does not count any more.
    pub fn release_copy(&self, chunk: ChunkId, cell: CellNumber) -> Result<(), DbError> {
        self.run("UPDATE copies SET state = 1 WHERE chunk = ?1 AND cell = ?2", params![chunk.0, cell.0])?;
        self.count_copies(chunk)
    }

    /// Marks the copies of a dead chunk for release.
    pub fn release_copies(&self, chunk: ChunkId) -> Result<(), DbError> {
        self.run("UPDATE copies SET state = 1 WHERE chunk = ?1", [chunk.0])?;
        self.count_copies(chunk)
    }

    /// The chunk is wanted again.
    pub fn unrelease_copies(&self, chunk: ChunkId) -> Result<(), DbError> {
        self.run("UPDATE copies SET state = 0 WHERE chunk = ?1 AND state = 1", [chunk.0])?;
        self.count_copies(chunk)
    }

    fn count_copies(&self, chunk: ChunkId) -> Result<(), DbError> {
        self.moved.set(true);
        self.run(
            "UPDATE chunks SET ncopies = (SELECT count(*) FROM copies WHERE chunk = ?1 AND state IN (0, 3)) WHERE id = ?1",
            [chunk.0],
        )
        .map(drop)
    }

    /// Who stores a chunk of mine, as far as it counts: not those that are away or should release it.
    pub fn copies_of(&self, chunk: ChunkId) -> Result<Vec<CellNumber>, DbError> {
        self.list("SELECT cell FROM copies WHERE chunk = ?1 AND state IN (0, 3)", [chunk.0], |row| {
            row.get(0).map(CellNumber)
        })
    }

    /// All copies of a chunk, whatever their state, by cell.
    pub fn all_copies_of(&self, chunk: ChunkId) -> Result<Vec<Copy>, DbError> {
        self.list(
            "SELECT chunk, cell, state, proven FROM copies WHERE chunk = ?1 ORDER BY cell",
            [chunk.0],
            read_copy,
        )
    }

    /// A copy with this peer, whatever its state.
    pub fn copy(&self, chunk: ChunkId, cell: CellNumber) -> Result<Option<Copy>, DbError> {
        self.one(
            "SELECT chunk, cell, state, proven FROM copies WHERE chunk = ?1 AND cell = ?2",
            params![chunk.0, cell.0],
            read_copy,
        )
    }

    /// Whether any copy of a chunk is noted, also one to be released.
    pub fn has_copies(&self, chunk: ChunkId) -> Result<bool, DbError> {
        Ok(self.number("SELECT count(*) FROM copies WHERE chunk = ?1", [chunk.0])? > 0)
    }

    /// Up to `limit` chunks that a peer should release.
    pub fn copies_to_release(&self, cell: CellNumber, limit: usize) -> Result<Vec<ChunkRow>, DbError> {
        self.list(
            &format!(
                "SELECT {CHUNK_COLUMNS} FROM chunks WHERE id IN
                   (SELECT chunk FROM copies INDEXED BY copies_release WHERE cell = ?1 AND state = 1 LIMIT ?2)"
            ),
            params![cell.0, limit as i64],
            chunk_row,
        )
    }

    /// Chunks and bytes of mine with a peer.
    pub fn copy_totals(&self, cell: CellNumber) -> Result<(u64, u64), DbError> {
        let sql = "SELECT count(*), coalesce(sum(len), 0) FROM copies JOIN chunks ON chunks.id = chunk
                   WHERE cell = ?1 AND state <> 1";
        let totals =
            self.one(sql, [cell.0], |row| Ok((row.get::<_, i64>(0)? as u64, row.get::<_, i64>(1)? as u64)))?;
        Ok(totals.unwrap_or_default())
    }

    /// Of copies with a peer that count now: bytes proven at least once, and bytes never proven. And which database this is,
    /// with the byte-seconds between the last proof and the loss of all copies that it was found to have lost.
    pub fn bounty_sums(&self, cell: CellNumber) -> Result<(u64, u64, u64, u128), DbError> {
        let sql = "SELECT sum(len) FILTER (WHERE proven > 0), sum(len) FILTER (WHERE proven = 0)
                   FROM copies JOIN chunks ON chunks.id = chunk WHERE cell = ?1 AND state = 0";
        let sums = self.one(sql, [cell.0], |row| {
            let number = |at| Ok::<_, rusqlite::Error>(row.get::<_, Option<i64>>(at)?.unwrap_or(0) as u64);
            Ok((number(0)?, number(1)?))
        })?;
        let (proven, unproven) = sums.unwrap_or_default();
        let (id, lost) = self.forfeited(cell)?;
        Ok((proven, unproven, id, lost))
    }

    fn forfeited(&self, cell: CellNumber) -> Result<(u64, u128), DbError> {
        let bytes = self.meta(&format!("forfeited:{}", cell.0))?.unwrap_or_default();
        let (Some(id), Some(lost)) = (bytes.first_chunk::<8>(), bytes.last_chunk::<16>()) else {
            return Ok((0, 0));
        };
        Ok((u64::from_le_bytes(*id), u128::from_le_bytes(*lost)))
    }

    /// Copies with a peer were found to be lost: so many byte-seconds since their last proofs count for nothing.
    pub fn add_forfeited(&self, cell: CellNumber, byte_seconds: u128) -> Result<(), DbError> {
        let (id, lost) = self.forfeited(cell)?;
        // Whoever has seen another number in here has seen another database.
        let id = if id == 0 { u64::from_le_bytes(random()) | 1 } else { id };
        let lost = lost.saturating_add(byte_seconds);
        let bytes = [&id.to_le_bytes()[..], &lost.to_le_bytes()].concat();
        self.set_meta(&format!("forfeited:{}", cell.0), &bytes)
    }

    /// Whether a list of chunks of mine is not here: chunks that only it names cannot be told from strange ones.
    pub fn is_any_list_absent(&self) -> Result<bool, DbError> {
        Ok(self
            .number("SELECT count(*) FROM (SELECT 1 FROM chunks WHERE own = 2 AND place = 0 LIMIT 1)", [])?
            > 0)
    }

    // Chunks held for peers.

    /// Up to `limit` claims over `after`, by chunk and owner: row, chunk, owner, class. Those that are gone are not among
    /// them.
    pub fn claims_after(&self, after: (ChunkId, CellNumber), limit: usize) -> Result<Vec<Claim>, DbError> {
        self.list(
            "SELECT holds.chunk, holds.owner, chunks.name, cells.key, holds.class FROM holds
             JOIN chunks ON chunks.id = holds.chunk JOIN cells ON cells.id = holds.owner
             WHERE (holds.chunk, holds.owner) > (?1, ?2) AND holds.state < 2
             ORDER BY holds.chunk, holds.owner LIMIT ?3",
            params![after.0.0, after.1.0, limit as i64],
            |row| {
                Ok((
                    ChunkId(row.get(0)?),
                    CellNumber(row.get(1)?),
                    ChunkName(row.get(2)?),
                    CellId(row.get(3)?),
                    hold_class(row.get(4)?),
                ))
            },
        )
    }

    /// Number of claims of all owners that are not gone.
    pub fn claim_count(&self) -> Result<u64, DbError> {
        self.number("SELECT count(*) FROM holds WHERE state < 2", [])
    }

    /// Up to `limit` chunks held for an owner.
    pub fn held_for(&self, owner: CellNumber, limit: usize) -> Result<Vec<(ChunkId, HoldClass)>, DbError> {
        self.list(
            "SELECT chunk, class FROM holds WHERE owner = ?1 AND state = 0 LIMIT ?2",
            params![owner.0, limit as i64],
            |row| Ok((ChunkId(row.get(0)?), hold_class(row.get(1)?))),
        )
    }

    /// My newest inventory number for an owner.
    pub fn holds_seq(&self, owner: CellNumber) -> Result<u64, DbError> {
        self.number("SELECT max(seq) FROM holds WHERE owner = ?1", [owner.0])
    }

    /// Notes that a chunk is held for `owner` (or in its trash, or gone), under the next inventory number.
    pub fn put_hold(
        &self,
        chunk: ChunkId,
        owner: CellNumber,
        class: HoldClass,
        state: HoldState,
        at: u64,
    ) -> Result<(), DbError> {
        let seq = self.holds_seq(owner)? + 1;
        self.run(
            "INSERT OR REPLACE INTO holds VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            params![chunk.0, owner.0, seq as i64, class as i64, state as i64, at as i64],
        )
        .map(drop)
    }

    /// Up to `limit` claims that their owners released at observed second `until` or before: chunk, owner, class.
    pub fn trash(&self, until: u64, limit: usize) -> Result<Vec<(ChunkId, CellNumber, HoldClass)>, DbError> {
        self.list(
            "SELECT chunk, owner, class FROM holds WHERE state = 1 AND at <= ?1 LIMIT ?2",
            params![until as i64, limit as i64],
            |row| Ok((ChunkId(row.get(0)?), CellNumber(row.get(1)?), hold_class(row.get(2)?))),
        )
    }

    /// How a chunk is held for `owner`.
    pub fn hold(&self, chunk: ChunkId, owner: CellNumber) -> Result<Option<(HoldClass, HoldState)>, DbError> {
        self.one(
            "SELECT class, state FROM holds WHERE chunk = ?1 AND owner = ?2",
            params![chunk.0, owner.0],
            |row| Ok((hold_class(row.get(0)?), hold_state(row.get(1)?))),
        )
    }

    /// Whether anybody's claim keeps a chunk here.
    pub fn is_held(&self, chunk: ChunkId) -> Result<bool, DbError> {
        Ok(self.number("SELECT count(*) FROM holds WHERE chunk = ?1 AND state < 2", [chunk.0])? > 0)
    }

    /// Whether a row of `holds` names the chunk at all.
    pub fn has_holds(&self, chunk: ChunkId) -> Result<bool, DbError> {
        Ok(self.number("SELECT count(*) FROM holds WHERE chunk = ?1", [chunk.0])? > 0)
    }

    /// Owners of a chunk held here.
    pub fn owners_of(&self, chunk: ChunkId) -> Result<Vec<(CellNumber, HoldClass)>, DbError> {
        self.list("SELECT owner, class FROM holds WHERE chunk = ?1 AND state = 0", [chunk.0], |row| {
            Ok((CellNumber(row.get(0)?), hold_class(row.get(1)?)))
        })
    }

    /// Up to `limit` changes of an owner's inventory over `since`.
    pub fn inventory(
        &self,
        owner: CellNumber,
        since: u64,
        limit: usize,
    ) -> Result<Vec<InventoryRow>, DbError> {
        self.list(
            "SELECT holds.seq, chunks.name, chunks.len, holds.state = 0 AND chunks.place > 0 FROM holds
             JOIN chunks ON chunks.id = holds.chunk
             WHERE holds.owner = ?1 AND holds.seq > ?2 AND holds.class = 0 ORDER BY holds.seq LIMIT ?3",
            params![owner.0, since as i64, limit as i64],
            |row| {
                Ok(InventoryRow {
                    seq: row.get::<_, i64>(0)? as u64,
                    name: ChunkName(row.get(1)?),
                    len: row.get(2)?,
                    held: row.get(3)?,
                })
            },
        )
    }

    /// Up to `limit` chunks held for an owner whose names begin with `prefix` (one or two bytes) and lie over `after`, by
    /// name: name and sealed bytes. Only chunks of files that lie here and are not in the trash.
    pub fn held_names(
        &self,
        owner: CellNumber,
        prefix: &[u8],
        after: Option<&ChunkName>,
        limit: usize,
    ) -> Result<Vec<(ChunkName, u32)>, DbError> {
        let (from, to) = range_of(prefix, after);
        self.list(
            "SELECT name, len FROM chunks CROSS JOIN holds ON holds.chunk = chunks.id AND holds.owner = ?1
             WHERE name > ?2 AND name <= ?3 AND place > 0 AND class = 0 AND state = 0 ORDER BY name LIMIT ?4",
            params![owner.0, from, to, limit as i64],
            |row| Ok((ChunkName(row.get(0)?), row.get(1)?)),
        )
    }

    /// Up to `limit` chunks held for an owner over row `after`, by row: row and name. As `held_names`, of all names; faster where
    /// all are wanted. Not by the index of owners, which would sort all of them for each page.
    pub fn held_after(
        &self,
        owner: CellNumber,
        after: ChunkId,
        limit: usize,
    ) -> Result<Vec<(ChunkId, ChunkName)>, DbError> {
        self.list(
            "SELECT chunk, name FROM holds CROSS JOIN chunks ON chunks.id = holds.chunk
             WHERE holds.chunk > ?2 AND +owner = ?1 AND class = 0 AND state = 0 AND place > 0 ORDER BY holds.chunk LIMIT ?3",
            params![owner.0, after.0, limit as i64],
            |row| Ok((ChunkId(row.get(0)?), ChunkName(row.get(1)?))),
        )
    }

    /// The same of the copies that a peer should have, those to be released among them.
    pub fn copied_after(
        &self,
        cell: CellNumber,
        after: ChunkId,
        limit: usize,
    ) -> Result<Vec<(ChunkId, ChunkName)>, DbError> {
        self.list(
            "SELECT chunk, name FROM copies CROSS JOIN chunks ON chunks.id = copies.chunk
             WHERE copies.chunk > ?2 AND cell = ?1 ORDER BY copies.chunk LIMIT ?3",
            params![cell.0, after.0, limit as i64],
            |row| Ok((ChunkId(row.get(0)?), ChunkName(row.get(1)?))),
        )
    }

    /// As `held_names`, of the copies that a peer should have, those to be released among them.
    pub fn copied_names(
        &self,
        cell: CellNumber,
        prefix: &[u8],
        after: Option<&ChunkName>,
        limit: usize,
    ) -> Result<Vec<(ChunkName, u32)>, DbError> {
        let (from, to) = range_of(prefix, after);
        self.list(
            "SELECT name, len FROM chunks CROSS JOIN copies ON copies.chunk = chunks.id AND copies.cell = ?1
             WHERE name > ?2 AND name <= ?3 ORDER BY name LIMIT ?4",
            params![cell.0, from, to, limit as i64],
            |row| Ok((ChunkName(row.get(0)?), row.get(1)?)),
        )
    }

    /// Sums of what is held for an owner, trash not counted.
    pub fn held_totals(&self, owner: CellNumber) -> Result<HeldTotals, DbError> {
        let sql = "SELECT count(*) FILTER (WHERE class = 0), sum(len) FILTER (WHERE class = 0),
                          sum(len) FILTER (WHERE class = 1)
                   FROM holds JOIN chunks ON chunks.id = chunk WHERE owner = ?1 AND state = 0";
        let totals = self.one(sql, [owner.0], |row| {
            let number = |at| Ok::<_, rusqlite::Error>(row.get::<_, Option<i64>>(at)?.unwrap_or(0) as u64);
            Ok(HeldTotals { chunks: number(0)?, bytes: number(1)?, segment_bytes: number(2)? })
        })?;
        Ok(totals.unwrap_or_default())
    }

    /// Up to `limit` claims in the trash since before `before` (observed seconds).
    pub fn trash_before(
        &self,
        before: u64,
        limit: usize,
    ) -> Result<Vec<(ChunkId, CellNumber, HoldClass)>, DbError> {
        self.list(
            "SELECT chunk, owner, class FROM holds WHERE state = 1 AND at < ?1 LIMIT ?2",
            params![before as i64, limit as i64],
            |row| Ok((ChunkId(row.get(0)?), CellNumber(row.get(1)?), hold_class(row.get(2)?))),
        )
    }

    /// Segments held for `owner` that came before `before`, to be compared with its heads.
    pub fn held_segments(
        &self,
        owner: CellNumber,
        before: u64,
    ) -> Result<Vec<(ChunkId, ChunkName)>, DbError> {
        self.list(
            "SELECT chunks.id, chunks.name FROM holds JOIN chunks ON chunks.id = chunk
             WHERE owner = ?1 AND class = 1 AND state = 0 AND at < ?2",
            params![owner.0, before as i64],
            |row| Ok((ChunkId(row.get(0)?), ChunkName(row.get(1)?))),
        )
    }

    // Heads of peers.

    /// Heads of an owner, newest first.
    pub fn peer_heads(&self, owner: CellNumber) -> Result<Vec<StoredHead>, DbError> {
        self.list(
            "SELECT hash, life, seq, tip, at, body FROM peer_heads WHERE owner = ?1 ORDER BY life DESC, seq DESC",
            [owner.0],
            |row| {
                Ok(StoredHead {
                    hash: BodyHash(row.get(0)?),
                    life: row.get(1)?,
                    seq: row.get::<_, i64>(2)? as u64,
                    tip: row.get(3)?,
                    at: row.get::<_, i64>(4)? as u64,
                    body: row.get(5)?,
                })
            },
        )
    }

    /// Keeps a head of a peer.
    pub fn put_peer_head(&self, owner: CellNumber, head: &StoredHead) -> Result<(), DbError> {
        self.run(
            "INSERT OR REPLACE INTO peer_heads VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
            params![head.hash.0, owner.0, head.life, head.seq as i64, head.tip, head.at as i64, head.body],
        )
        .map(drop)
    }

    /// Drops a head of a peer.
    pub fn drop_peer_head(&self, hash: &BodyHash) -> Result<(), DbError> {
        self.run("DELETE FROM peer_heads WHERE hash = ?1", [hash.0]).map(drop)
    }

    /// Owners of whom heads are kept.
    pub fn head_owners(&self) -> Result<Vec<CellNumber>, DbError> {
        self.list("SELECT DISTINCT owner FROM peer_heads", [], |row| row.get(0).map(CellNumber))
    }
}

/// Names over `from` up to `to`: those that begin with `prefix`, and lie over `after`.
fn range_of(prefix: &[u8], after: Option<&ChunkName>) -> (Vec<u8>, [u8; 32]) {
    let mut to = [0xff; 32];
    to[..prefix.len()].copy_from_slice(prefix);
    // A prefix itself is shorter than all names that begin with it, and so comes before them.
    (after.map_or_else(|| prefix.to_vec(), |name| name.0.to_vec()), to)
}

/// A record that no reader would take must not be written.
fn check_size(body: &[u8]) -> Result<(), DbError> {
    if body.len() > crate::catalog::RECORD_BYTES_MAX {
        Err(DbError::Row("record: it is over 1 MiB"))
    } else {
        Ok(())
    }
}

fn hold_class(value: i64) -> HoldClass {
    if value == 1 { HoldClass::Segment } else { HoldClass::Chunk }
}

fn hold_state(value: i64) -> HoldState {
    match value {
        0 => HoldState::Held,
        1 => HoldState::Trash,
        _ => HoldState::Gone,
    }
}

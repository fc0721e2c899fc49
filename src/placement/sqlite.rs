//! placement.db itself: opening, transactions, durability.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, TransactionBehavior};

use super::{DbError, Tables};

const SCHEMA: &str = include_str!("schema.sql");
const FORMAT: i64 = 3;
/// From format 1: copies carry the day of their last proof, not the second of their arrival.
const FROM_1: &str = "
    ALTER TABLE copies RENAME COLUMN at TO proven;
    UPDATE copies SET proven = 0;
    CREATE INDEX copies_release ON copies (cell, chunk) WHERE state = 1;
    CREATE INDEX copies_unproven ON copies (cell, chunk) WHERE proven = 0;
    CREATE INDEX copies_suspect ON copies (cell, chunk) WHERE state = 3;
    CREATE INDEX holds_trash ON holds (chunk) WHERE state = 1;
    CREATE TABLE IF NOT EXISTS unanswered (
        cell INTEGER NOT NULL, chunk INTEGER NOT NULL, tries INTEGER NOT NULL, since INTEGER NOT NULL, next INTEGER NOT NULL,
        PRIMARY KEY (cell, chunk)
    ) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS roots (chunk INTEGER PRIMARY KEY, root BLOB NOT NULL);";
/// From format 2: a chunk can want another number of copies than the cell's setting says.
const FROM_2: &str = "
    ALTER TABLE chunks ADD COLUMN want INTEGER;
    DROP INDEX chunks_short;
    CREATE INDEX chunks_short ON chunks (want, ncopies) WHERE own IN (1, 2);";
/// Page cache, KiB. More costs memory, less costs reads of the index of chunk names.
const CACHE_KIB: i64 = 4096;
/// Uses between two looks by which nothing is going on: a clock is noted, a round finds nothing to do.
const QUIET_USES: u64 = 100;
/// Prepared statements kept.
const STATEMENTS: usize = 96;

struct Inner {
    conn: Connection,
    next_seq: u64,
    generation: u64,
    /// Reads and changes so far.
    uses: u64,
}

/// The database. One connection, used under a lock on the blocking pool, never on the executor.
pub struct Db {
    inner: Mutex<Inner>,
    path: PathBuf,
    watch: Option<Arc<dyn Watch>>,
}

/// Sees a database change, for simulations.
pub trait Watch: Send + Sync {
    /// A change begins, or has ended: the process may end here, by unwinding.
    fn step(&self);
    /// A change was committed, perhaps durably; `image` gives the whole database as it is now.
    fn committed(&self, is_durable: bool, image: &dyn Fn() -> Vec<u8>);
}

/// A page of a database in memory. Bytes; small ones make small images.
const MEMORY_PAGE_BYTES: usize = 1024;

/// A database in memory that is what `conn` is now: what a start after this moment would find.
pub fn copy_in_memory(conn: &Connection) -> rusqlite::Result<Connection> {
    let image = conn.serialize("main")?.to_vec();
    let mut copy = Connection::open_in_memory()?;
    copy.deserialize_read_exact("main", image.as_slice(), image.len(), false)?;
    Ok(copy)
}

impl Db {
    /// Opens the database at `path`, or creates it. The flag tells whether it is new.
    pub fn open(path: &Path) -> Result<(Self, bool), DbError> {
        let conn = Connection::open(path)?;
        Self::with_connection(conn, path)
    }

    /// A database in memory, for tests and simulations.
    pub fn in_memory() -> Result<Self, DbError> {
        Ok(Self::with_connection(Connection::open_in_memory()?, Path::new(":memory:"))?.0)
    }

    /// A database in memory that goes on from an image, or is new; `watch` sees what becomes of it.
    pub fn from_image(image: Option<&[u8]>, watch: Arc<dyn Watch>) -> Result<(Self, bool), DbError> {
        let mut conn = Connection::open_in_memory()?;
        conn.execute_batch(&format!("PRAGMA page_size = {MEMORY_PAGE_BYTES}"))?;
        if let Some(image) = image {
            conn.deserialize_read_exact("main", image, image.len(), false)?;
        }
        let (mut db, is_new) = Self::with_connection(conn, Path::new(":memory:"))?;
        db.watch = Some(watch);
        Ok((db, is_new))
    }

    /// The whole database as it is now.
    pub fn image(&self) -> Result<Vec<u8>, DbError> {
        Ok(self.lock().conn.serialize("main")?.to_vec())
    }

    fn with_connection(conn: Connection, path: &Path) -> Result<(Self, bool), DbError> {
        conn.set_prepared_statement_cache_capacity(STATEMENTS);
        conn.execute_batch(&format!(
            "PRAGMA locking_mode = EXCLUSIVE; PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; PRAGMA mmap_size = 0;
             PRAGMA cache_size = -{CACHE_KIB}; PRAGMA temp_store = MEMORY; PRAGMA journal_size_limit = 8388608;
             PRAGMA wal_autocheckpoint = 1000; PRAGMA busy_timeout = 5000; PRAGMA foreign_keys = OFF;"
        ))?;
        // Or a statement is planned anew each time it is given other values that a partial index might depend on.
        conn.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
        let version: i64 = conn.query_row("PRAGMA user_version", [], |row| row.get(0))?;
        let is_new = version == 0;
        if is_new {
            conn.execute_batch(&format!("BEGIN; {SCHEMA} PRAGMA user_version = {FORMAT}; COMMIT;"))?;
        } else if version == 1 || version == 2 {
            let first = if version == 1 { FROM_1 } else { "" };
            conn.execute_batch(&format!("BEGIN; {first} {FROM_2} PRAGMA user_version = {FORMAT}; COMMIT;"))?;
        } else if version != FORMAT {
            return Err(DbError::Foreign { path: path.to_owned(), version });
        }
        let next_seq = {
            let tables = Tables::new(&conn, 0);
            tables.highest_seq()?.max(tables.meta_u64("published")?.unwrap_or(0)) + 1
        };
        Ok((
            Self {
                inner: Mutex::new(Inner { conn, next_seq, generation: 0, uses: 0 }),
                path: path.to_owned(),
                watch: None,
            },
            is_new,
        ))
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic in a transaction rolled it back; the connection is sound.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `read` without a transaction.
    pub fn read<T, E: From<DbError>>(&self, read: impl FnOnce(&Tables<'_>) -> Result<T, E>) -> Result<T, E> {
        let mut inner = self.lock();
        inner.uses += 1;
        read(&Tables::new(&inner.conn, inner.next_seq))
    }

    /// Runs `change` as one transaction: all of it, or on an error nothing. Survives the end of the process; a power
    /// cut may take the last ones, which the files on disk repair.
    pub fn change<T, E: From<DbError>>(
        &self,
        change: impl FnOnce(&Tables<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        self.transact(false, change)
    }

    /// Like `change`, and the outcome survives a power cut as soon as this returns.
    pub fn change_durably<T, E: From<DbError>>(
        &self,
        change: impl FnOnce(&Tables<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        self.transact(true, change)
    }

    /// Grows whenever chunks, copies or what is wanted of them change: who has planned for one generation need not plan again.
    pub fn generation(&self) -> u64 {
        self.lock().generation
    }

    /// Gives the cache of pages back if the database was hardly used since it counted `before` uses; gives the count now.
    pub fn rest(&self, before: u64) -> Result<u64, DbError> {
        let inner = self.lock();
        if inner.uses - before < QUIET_USES {
            inner.conn.execute_batch("PRAGMA shrink_memory")?;
        }
        Ok(inner.uses)
    }

    fn pragma(&self, text: &str) -> Result<(), DbError> {
        Ok(self.lock().conn.execute_batch(text)?)
    }

    fn transact<T, E: From<DbError>>(
        &self,
        durable: bool,
        change: impl FnOnce(&Tables<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        let mut change = Some(change);
        let mut outcome = None;
        let done = self.transact_any(durable, &mut |tables| {
            let change = change.take().expect("a change is made once");
            outcome.insert(change(tables)).is_ok()
        });
        done.map_err(E::from)?;
        outcome.expect("a change was made")
    }

    /// The same for a change that says whether it is to last: not made anew for each of a hundred changes.
    fn transact_any(
        &self,
        durable: bool,
        change: &mut dyn FnMut(&Tables<'_>) -> bool,
    ) -> Result<(), DbError> {
        if let Some(watch) = &self.watch {
            watch.step();
        }
        let mut inner = self.lock();
        let changes = inner.conn.total_changes();
        let sync = |conn: &Connection, level| conn.execute_batch(&format!("PRAGMA synchronous = {level}"));
        if durable {
            sync(&inner.conn, "FULL")?;
        }
        let lasts = Self::transact_locked(&mut inner, change);
        if durable {
            sync(&inner.conn, "NORMAL")?;
        }
        if let (Some(watch), Ok(true)) = (&self.watch, &lasts) {
            if durable || inner.conn.total_changes() > changes {
                let image = || inner.conn.serialize("main").map(|image| image.to_vec()).unwrap_or_default();
                watch.committed(durable, &image);
            }
            drop(inner);
            watch.step();
        }
        lasts.map(|_| ())
    }

    fn transact_locked(
        inner: &mut Inner,
        change: &mut dyn FnMut(&Tables<'_>) -> bool,
    ) -> Result<bool, DbError> {
        inner.uses += 1;
        let next_seq = inner.next_seq;
        let (next_seq, has_moved) = {
            let tx = inner.conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let tables = Tables::new(&tx, next_seq);
            if !change(&tables) {
                return Ok(false);
            }
            let moved = (tables.next_seq(), tables.has_moved());
            tx.commit().map_err(|why| DbError::Sqlite { doing: "saving a change", why })?;
            moved
        };
        inner.next_seq = next_seq;
        inner.generation += u64::from(has_moved);
        Ok(true)
    }

    /// Moves the log into the database file, as far as readers allow.
    pub fn checkpoint(&self) -> Result<(), DbError> {
        self.pragma("PRAGMA wal_checkpoint(PASSIVE)")
    }

    /// SQLite's own check of the whole file; `ok` or what is wrong.
    pub fn integrity(&self) -> Result<String, DbError> {
        Ok(self.lock().conn.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0))?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{ChunkName, FileId};
    use crate::placement::{BinRow, ChunkId, Extra, Own, Tables, Want, planner};
    use crate::store::Place;

    #[test]
    fn the_last_copy_and_two_of_what_is_freed_are_never_too_many() {
        let db = Db::in_memory().unwrap();
        db.change(|t| -> Result<(), DbError> {
            let (one, other) = (t.cell(&crate::id::CellId([1; 32]))?, t.cell(&crate::id::CellId([2; 32]))?);
            let chunk = |n: u8| t.know_chunk(&ChunkName([n; 32]), 100, Own::Data);
            let (absent, freed, here) = (chunk(1)?, chunk(2)?, chunk(3)?);
            t.put_chunk(&ChunkName([3; 32]), 100, &Place::Loose, Own::Data)?;
            t.want_extra(freed, crate::placement::Extra::Freed)?;
            for id in [absent, freed, here] {
                t.put_copy(id, one)?;
            }
            t.put_copy(freed, other)?;
            // All of it wants one copy in all, so none on peers.
            let over = t.chunks_over(None, 1, ChunkId(0), 10)?;
            assert_eq!(over.iter().map(|row| row.id).collect::<Vec<_>>(), [here]);
            t.put_copy(absent, other)?;
            assert_eq!(t.chunks_over(None, 1, ChunkId(0), 10)?.len(), 2);
            // Where two are wanted, both of its copies stay until it is here.
            assert_eq!(t.chunks_over(None, 2, ChunkId(0), 10)?.len(), 0);
            t.put_chunk(&ChunkName([1; 32]), 100, &Place::Loose, Own::Data)?;
            assert_eq!(t.chunks_over(None, 2, ChunkId(0), 10)?.len(), 1);
            t.move_chunk(absent, None)?;
            // What should lie here and does not is wanted back, also when its only copy is as many as are wanted.
            t.drop_copy(absent, other)?;
            let back = t.absent_own_after(ChunkId(0), 1, 10)?;
            assert_eq!(back.iter().map(|row| row.id).collect::<Vec<_>>(), [absent]);
            // Of what is freed the second copy is made again, and until then it stays here if it came here for that.
            let short = |t: &Tables<'_>| t.absent_short(None, 1, ChunkId(0), 10).map(|rows| rows.len());
            assert_eq!(short(t)?, 0);
            t.drop_copy(freed, other)?;
            assert_eq!(short(t)?, 1);
            t.move_chunk(freed, Some(&Place::Loose))?;
            assert_eq!(t.extra_short(other, None, 1, ChunkId(0), 10)?.len(), 1);
            assert_eq!(t.extra_short(one, None, 1, ChunkId(0), 10)?.len(), 0, "it has one");
            assert!(t.passed_on(None, 1, ChunkId(0), 10)?.is_empty());
            t.put_copy(freed, other)?;
            assert!(t.extra_short(other, None, 1, ChunkId(0), 10)?.is_empty());
            assert_eq!(t.passed_on(None, 1, ChunkId(0), 10)?.len(), 1);
            Ok(())
        })
        .unwrap();
    }

    #[test]
    fn the_sums_call_short_what_the_planner_does() {
        let wants = [None, Some(0), Some(1), Some(2), Some(3)];
        let extras = [Extra::No, Extra::Wanted, Extra::Freed];
        let mut rows = Vec::new();
        for want in wants {
            for extra in extras {
                for (is_here, have) in (0..4).flat_map(|have| [(true, have), (false, have)]) {
                    rows.push((want, extra, is_here, have));
                }
            }
        }
        let db = Db::in_memory().unwrap();
        db.change(|t| -> Result<(), DbError> {
            for (at, (want, extra, is_here, have)) in rows.iter().enumerate() {
                let name = ChunkName([at as u8; 32]);
                let id = match is_here {
                    true => t.put_chunk(&name, 100, &Place::Loose, Own::Data)?,
                    false => t.know_chunk(&name, 100, Own::Data)?,
                };
                t.set_want(id, *want)?;
                t.want_extra(id, *extra)?;
                for cell in 0..*have as u8 {
                    t.put_copy(id, t.cell(&crate::id::CellId([cell; 32]))?)?;
                }
            }
            for usual in 0..5 {
                let is_short = |(want, extra, is_here, have): &&(Want, Extra, bool, u64)| {
                    *have < planner::on_peers(want.map_or(usual, u64::from), *extra, *is_here)
                };
                let short = rows.iter().filter(is_short).count() as u64;
                let totals = t.own_totals(usual)?;
                assert_eq!((totals.short, t.own_short(usual)?), (short, short), "of {usual} copies");
                assert_eq!((totals.chunks, totals.bytes), (rows.len() as u64, 100 * rows.len() as u64));
                // Of what is freed, or is still to come, nothing lies on this cell only.
                assert_eq!(totals.alone, 4);
            }
            Ok(())
        })
        .unwrap();
    }

    #[test]
    fn the_recycle_bin_comes_newest_first_in_pages_that_overlap_nowhere() {
        let db = Db::in_memory().unwrap();
        db.change(|t| -> Result<(), DbError> {
            for n in 0..5 {
                let file = FileId([n; 16]);
                // Two of a second are told apart by which came later.
                let (seq, at) = (u64::from(n), u64::from(n / 2));
                t.put_bin(&BinRow { file, seq, at, parent: FileId::ROOT, name: vec![b'a' + n] })?;
            }
            let page = |offset, limit| -> Result<Vec<u64>, DbError> {
                Ok(t.bin_newest(offset, limit)?.iter().map(|row| row.seq).collect())
            };
            assert_eq!([page(0, 2)?, page(2, 2)?, page(4, 2)?, page(6, 2)?].concat(), [4, 3, 2, 1, 0]);
            Ok(())
        })
        .unwrap();
    }

    #[test]
    fn what_is_forgotten_is_no_record_of_a_file_any_more() {
        let db = Db::in_memory().unwrap();
        db.change(|t| -> Result<(), DbError> {
            for version in 1..=3 {
                t.put_record(&[1, 5, version], &[version])?;
            }
            t.forget_record(&[1, 5, 2])?;
            let keys: Vec<Vec<u8>> =
                t.records_with_prefix(&[1, 5], 10)?.into_iter().map(|(_, key)| key).collect();
            // It would else take the place of one that is kept when versions are thinned.
            assert_eq!(keys, [[1, 5, 1], [1, 5, 3]]);
            assert_eq!(
                t.record(&[1, 5, 2])?,
                Some(Vec::new()),
                "every copy of the catalog still hears of it"
            );
            Ok(())
        })
        .unwrap();
    }

    #[test]
    fn a_database_of_format_2_is_opened_and_its_chunks_want_what_the_setting_says() {
        let path =
            std::env::temp_dir().join(format!("grove-db-{}", crate::id::hex(&crate::keys::random::<8>())));
        let old = Connection::open(&path).unwrap();
        old.execute_batch(SCHEMA).unwrap();
        old.execute_batch(
            "DROP INDEX chunks_short; ALTER TABLE chunks DROP COLUMN want;
             CREATE INDEX chunks_short ON chunks (ncopies) WHERE own IN (1, 2);
             INSERT INTO chunks (name, len, place, own) VALUES (zeroblob(32), 200, 1, 1);
             PRAGMA user_version = 2;",
        )
        .unwrap();
        drop(old);
        let (db, is_new) = Db::open(&path).unwrap();
        assert!(!is_new);
        db.change(|t| -> Result<(), DbError> {
            assert_eq!((t.own_short(2)?, t.wants()?), (1, vec![None]));
            let other = t.put_chunk(&ChunkName([1; 32]), 9, &Place::Loose, Own::Data)?;
            t.set_want(other, Some(1))?;
            assert_eq!((t.own_short(2)?, t.own_short(1)?, t.wants()?), (1, 0, vec![None, Some(1)]));
            t.set_want(other, Some(3))?;
            assert_eq!((t.own_short(2)?, t.own_short(1)?), (2, 1));
            assert_eq!(t.short_ids(Some(3), 0, false, ChunkId(0), 9)?, [other]);
            // What is not mine any more wants nothing.
            t.set_own(other, Own::No)?;
            assert_eq!((t.want(other)?, t.wants()?), (None, vec![None]));
            Ok(())
        })
        .unwrap();
        drop(db);
        let (_, is_new) = Db::open(&path).unwrap();
        assert!(!is_new);
        for ending in ["", "-wal", "-shm"] {
            let mut path = path.clone().into_os_string();
            path.push(ending);
            let _ = std::fs::remove_file(path);
        }
    }
}

//! chat.db: what was said, both ways, and how far each side is. A file of its own: history grows without the peers' books
//! growing, it may be lost or thrown away without a peer being lost, and what is deleted is overwritten.
//!
//! Every call is one transaction, durable when it returns. All calls block.

use std::path::Path;
use std::sync::Mutex;

use rusqlite::{Connection, OptionalExtension, Row, Transaction, params};

use super::{
    AT_MAX, Amount, BATCH_MESSAGES_MAX, EMPTY_RUNS_MAX, Filling, HISTORY_BYTES_MAX, KEY_BYTES_MAX, Message,
    QUEUE_MESSAGES_MAX, RECEIPTS_MAX, RUNS_MAX, Receipt, Run, SayError, Sent, Take, check, cost, may_queue,
    take,
};
use crate::id::CellId;
use crate::keys::random;
use crate::order;
use crate::placement::{DbError, copy_in_memory};
use crate::vault::lock;

const FORMAT: i64 = 1;
const SCHEMA: &str = "
CREATE TABLE talks (
    peer BLOB PRIMARY KEY,
    name TEXT NOT NULL,                  -- what it was called last
    bytes INTEGER NOT NULL               -- of all messages, as they count
) WITHOUT ROWID;
CREATE TABLE runs (
    id INTEGER PRIMARY KEY AUTOINCREMENT, -- in the order in which they were begun, or met
    peer BLOB NOT NULL,
    is_ours INTEGER NOT NULL,
    life INTEGER NOT NULL,
    run BLOB NOT NULL,
    last INTEGER NOT NULL,               -- ours: newest number given; theirs: newest kept
    stored INTEGER NOT NULL,             -- ours: nothing up to here needs to be sent; theirs: as last
    read INTEGER NOT NULL,               -- seen by whoever it is for
    UNIQUE (peer, is_ours, life, run)
);
CREATE TABLE messages (
    id INTEGER PRIMARY KEY AUTOINCREMENT, -- the order in which they are shown
    peer BLOB NOT NULL,
    run INTEGER NOT NULL,
    is_ours INTEGER NOT NULL,
    number INTEGER NOT NULL,
    size INTEGER NOT NULL,               -- as it counts
    at INTEGER NOT NULL,                 -- by the clock of whoever said it
    arrived INTEGER NOT NULL,            -- by ours
    key TEXT,                            -- by which it is known when it is said again
    attachments BLOB NOT NULL,
    text TEXT NOT NULL
);
CREATE INDEX messages_of_peer ON messages (peer);
CREATE INDEX messages_by_number ON messages (run, number, size);
CREATE UNIQUE INDEX messages_by_key ON messages (peer, key) WHERE key IS NOT NULL;";

/// Rows that one search looks at before it gives what it has.
const SCAN_ROWS: usize = 4096;
/// And their bytes.
const SCAN_BYTES: usize = 8 << 20;
/// Rows of one page, or found by one search, are read until they have so many bytes of text. In JSON they are up to six
/// times as many.
const PAGE_BYTES: usize = 1 << 20;
/// Letters of the newest message that the list of conversations shows.
const PREVIEW_LETTERS: usize = 256;
/// Unread messages of one conversation are counted up to here.
const UNREAD_MAX: u64 = 100_000;
/// Free pages that are given back to the disk at once.
const PAGES_AT_ONCE: u32 = 1024;
/// Messages that one transaction deletes.
const DELETED_AT_ONCE: u64 = 2000;

const ITEM_COLUMNS: &str =
    "m.id, m.peer, m.is_ours, m.at, m.arrived, m.attachments, m.text, m.number, r.stored, r.read";

/// Something to say.
#[derive(Debug, Clone)]
pub struct Draft {
    /// At most 64 KiB.
    pub text: String,
    /// Ids of grants.
    pub attachments: Vec<[u8; 16]>,
}

/// A message as it is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// Here; grows with each message.
    pub id: u64,
    /// With whom.
    pub peer: CellId,
    /// Said here; otherwise there.
    pub is_ours: bool,
    /// Unix seconds by the clock of whoever said it.
    pub at: u64,
    /// Unix seconds by ours: when it was said or came.
    pub arrived: u64,
    /// Ids of grants.
    pub attachments: Vec<[u8; 16]>,
    /// As it was said: it may hold anything.
    pub text: String,
    /// Whoever it is for has it.
    pub is_delivered: bool,
    /// And has seen it.
    pub is_read: bool,
}

/// Which part of a history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The newest before this id.
    Before(u64),
    /// The oldest after this id.
    After(u64),
}

/// Part of a history, oldest first.
#[derive(Debug, Clone, Default)]
pub struct Page {
    /// The messages.
    pub items: Vec<Item>,
    /// There are more in the direction asked.
    pub more: bool,
}

/// What a search found so far, newest first.
#[derive(Debug, Clone, Default)]
pub struct Found {
    /// The messages.
    pub items: Vec<Item>,
    /// Goes on before this id; `None`: all was looked at.
    pub next: Option<u64>,
}

/// A conversation.
#[derive(Debug, Clone)]
pub struct Talk {
    /// With whom.
    pub peer: CellId,
    /// What it was called last.
    pub name: String,
    /// Messages that have not been seen here; beyond 100,000 they are not counted.
    pub unread: u64,
    /// Messages that wait for the friend.
    pub queued: u64,
    /// The newest message; of its text the first 256 letters.
    pub last: Option<Item>,
}

/// A batch to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outgoing {
    /// Of which run.
    pub run: Run,
    /// Between this number and the first message, and between the messages, there is nothing any more.
    pub base: u64,
    /// At least one.
    pub messages: Vec<Message>,
}

/// What became of a batch that came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Took {
    /// The run is kept up to `stored`; so many were new.
    Level { stored: u64, new: usize },
    /// The history is as long as it may be; nothing was taken.
    Full,
}

/// The file. Each opening begins a run of its own.
#[derive(Debug)]
pub struct Talks {
    conn: Mutex<Connection>,
    run: [u8; 16],
}

fn wrong(why: rusqlite::Error) -> DbError {
    DbError::Sqlite { doing: "using chat.db", why }
}

fn number(row: &Row<'_>, at: usize) -> rusqlite::Result<u64> {
    let number: i64 = row.get(at)?;
    u64::try_from(number).map_err(|_| rusqlite::Error::IntegralValueOutOfRange(at, number))
}

fn only_number(row: &Row<'_>) -> rusqlite::Result<u64> {
    number(row, 0)
}

/// SQLite's numbers are signed; none of ours is beyond them.
fn int(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn ids_of(bytes: &[u8]) -> Vec<[u8; 16]> {
    bytes.chunks_exact(16).map(|id| id.try_into().expect("16 bytes")).collect()
}

fn item(row: &Row<'_>) -> rusqlite::Result<Item> {
    let is_ours: bool = row.get(2)?;
    let (own, stored, read) = (number(row, 7)?, number(row, 8)?, number(row, 9)?);
    Ok(Item {
        id: number(row, 0)?,
        peer: CellId(row.get(1)?),
        is_ours,
        at: number(row, 3)?,
        arrived: number(row, 4)?,
        attachments: ids_of(&row.get::<_, Vec<u8>>(5)?),
        text: row.get(6)?,
        is_delivered: own <= stored || own <= read,
        is_read: own <= read,
    })
}

/// How far one of our runs is.
fn sent(t: &Transaction<'_>, peer: &CellId, run: &Run) -> rusqlite::Result<Option<(i64, Sent)>> {
    let sql =
        "SELECT id, last, stored, read FROM runs WHERE peer = ?1 AND is_ours = 1 AND life = ?2 AND run = ?3";
    t.prepare_cached(sql)?
        .query_row(params![peer.0, run.life, run.id], |row| {
            Ok((row.get(0)?, Sent { last: number(row, 1)?, stored: number(row, 2)?, read: number(row, 3)? }))
        })
        .optional()
}

fn put_sent(t: &Transaction<'_>, id: i64, sent: &Sent) -> rusqlite::Result<()> {
    t.prepare_cached("UPDATE runs SET stored = ?2, read = ?3 WHERE id = ?1")?
        .execute(params![id, int(sent.stored), int(sent.read)])
        .map(drop)
}

/// The row of a run, which is made where there is none; with what is kept of it.
fn run_row(t: &Transaction<'_>, peer: &CellId, is_ours: bool, run: &Run) -> rusqlite::Result<(i64, u64)> {
    let sql = "SELECT id, last FROM runs WHERE peer = ?1 AND is_ours = ?2 AND life = ?3 AND run = ?4";
    let key = params![peer.0, is_ours, run.life, run.id];
    let found = t.prepare_cached(sql)?.query_row(key, |row| Ok((row.get(0)?, number(row, 1)?))).optional()?;
    if let Some(found) = found {
        return Ok(found);
    }
    t.prepare_cached(
        "INSERT INTO runs (peer, is_ours, life, run, last, stored, read) VALUES (?1, ?2, ?3, ?4, 0, 0, 0)",
    )?
    .execute(key)?;
    Ok((t.last_insert_rowid(), 0))
}

fn add_bytes(t: &Transaction<'_>, peer: &CellId, name: &str, bytes: u64) -> rusqlite::Result<()> {
    t.prepare_cached(
        "INSERT INTO talks VALUES (?1, ?2, ?3)
         ON CONFLICT (peer) DO UPDATE SET name = ?2, bytes = bytes + ?3",
    )?
    .execute(params![peer.0, name, int(bytes)])
    .map(drop)
}

fn history_bytes(t: &Transaction<'_>, peer: &CellId) -> rusqlite::Result<u64> {
    let bytes = t
        .prepare_cached("SELECT bytes FROM talks WHERE peer = ?1")?
        .query_row([peer.0], only_number)
        .optional()?;
    Ok(bytes.unwrap_or(0))
}

/// What waits for a friend; beyond the limit it is not counted.
fn queued(t: &Transaction<'_>, peer: &CellId) -> rusqlite::Result<Amount> {
    let sql = "SELECT count(*), coalesce(sum(size), 0) FROM (
                   SELECT m.size FROM runs r JOIN messages m ON m.run = r.id AND m.number > r.stored
                   WHERE r.peer = ?1 AND r.is_ours = 1 AND r.stored < r.last LIMIT ?2)";
    t.prepare_cached(sql)?.query_row(params![peer.0, int(QUEUE_MESSAGES_MAX + 1)], |row| {
        Ok(Amount { messages: number(row, 0)?, bytes: number(row, 1)? })
    })
}

/// A new message of a run.
struct New<'a> {
    run: i64,
    is_ours: bool,
    message: &'a Message,
    arrived: u64,
    key: Option<&'a str>,
}

fn insert(t: &Transaction<'_>, peer: &CellId, new: &New<'_>) -> rusqlite::Result<u64> {
    let message = new.message;
    t.prepare_cached(
        "INSERT INTO messages (peer, run, is_ours, number, size, at, arrived, key, attachments, text)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
    )?
    .execute(params![
        peer.0,
        new.run,
        new.is_ours,
        int(message.number),
        int(message.cost()),
        int(message.at),
        int(new.arrived),
        new.key,
        message.attachments.concat(),
        message.text,
    ])?;
    Ok(t.last_insert_rowid() as u64)
}

impl Talks {
    /// Opens chat.db at `path`, or creates it.
    pub fn open(path: &Path) -> Result<Self, DbError> {
        Self::with(Connection::open(path).map_err(wrong)?, path)
    }

    /// One in memory, for tests.
    pub fn in_memory() -> Result<Self, DbError> {
        Self::with(Connection::open_in_memory().map_err(wrong)?, Path::new(":memory:"))
    }

    /// What a start after this moment finds, in memory: the same that a backup of it holds.
    pub fn copied(&self) -> Result<Self, DbError> {
        let copy = copy_in_memory(&lock(&self.conn)).map_err(wrong)?;
        Self::with(copy, Path::new(":memory:"))
    }

    fn with(conn: Connection, path: &Path) -> Result<Self, DbError> {
        let prepare = || {
            conn.execute_batch(
                "PRAGMA auto_vacuum = INCREMENTAL; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;
                 PRAGMA cache_size = -256;
                 PRAGMA journal_size_limit = 1048576; PRAGMA busy_timeout = 5000; PRAGMA secure_delete = ON;",
            )?;
            conn.set_prepared_statement_cache_capacity(32);
            conn.query_row("PRAGMA user_version", [], |row| row.get::<_, i64>(0))
        };
        match prepare().map_err(wrong)? {
            0 => conn
                .execute_batch(&format!("BEGIN; {SCHEMA} PRAGMA user_version = {FORMAT}; COMMIT;"))
                .map_err(wrong)?,
            FORMAT => {}
            version => return Err(DbError::Foreign { path: path.to_owned(), version }),
        }
        // Nobody needs to be told of a run of ours of which nothing is left.
        conn.execute(
            "DELETE FROM runs WHERE is_ours = 1 AND NOT EXISTS (SELECT 1 FROM messages WHERE run = runs.id)",
            [],
        )
        .map_err(wrong)?;
        Ok(Self { conn: Mutex::new(conn), run: random() })
    }

    fn change<T>(&self, work: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>) -> Result<T, DbError> {
        let mut conn = lock(&self.conn);
        let run = || {
            let t = conn.transaction()?;
            let outcome = work(&t)?;
            t.commit()?;
            Ok(outcome)
        };
        run().map_err(wrong)
    }

    /// Which start this is: random, and the run of what is said from now on.
    pub fn start(&self) -> [u8; 16] {
        self.run
    }

    // Saying.

    /// Keeps what is said to a friend, all or nothing; gives its ids. With a `key` under which something was said before,
    /// nothing is kept and the id of that is given.
    pub fn say(
        &self,
        peer: &CellId,
        name: &str,
        life: u32,
        at: u64,
        drafts: &[Draft],
        key: Option<&str>,
    ) -> Result<Result<Vec<u64>, SayError>, DbError> {
        let at = at.min(AT_MAX);
        let mut more = Amount::default();
        for draft in drafts {
            if let Err(why) = check(&draft.text, &draft.attachments) {
                return Ok(Err(why));
            }
            more.messages += 1;
            more.bytes += cost(&draft.text, &draft.attachments);
        }
        if more.messages == 0 {
            return Ok(Err(SayError::Empty));
        }
        if key.is_some_and(|key| key.is_empty() || key.len() > KEY_BYTES_MAX) {
            return Ok(Err(SayError::Key));
        }
        self.change(|t| {
            let sql = "SELECT id FROM messages WHERE peer = ?1 AND key = ?2";
            if let Some(key) = key {
                let known = t.prepare_cached(sql)?.query_row(params![peer.0, key], only_number);
                if let Some(id) = known.optional()? {
                    return Ok(Ok(vec![id]));
                }
            }
            if let Err(why) = may_queue(queued(t, peer)?, history_bytes(t, peer)?, more) {
                return Ok(Err(why));
            }
            let (run, mut number) = run_row(t, peer, true, &Run { life, id: self.run })?;
            let mut ids = Vec::with_capacity(drafts.len());
            for draft in drafts {
                number += 1;
                let (text, attachments) = (draft.text.clone(), draft.attachments.clone());
                let message = Message { number, at, text, attachments };
                let key = key.filter(|_| ids.is_empty());
                ids.push(insert(t, peer, &New { run, is_ours: true, message: &message, arrived: at, key })?);
            }
            t.prepare_cached("UPDATE runs SET last = ?2 WHERE id = ?1")?
                .execute(params![run, int(number)])?;
            add_bytes(t, peer, name, more.bytes)?;
            Ok(Ok(ids))
        })
    }

    /// What the friend is to be sent next.
    pub fn next(&self, peer: &CellId) -> Result<Option<Outgoing>, DbError> {
        self.change(|t| {
            loop {
                let sql = "SELECT id, life, run, stored FROM runs
                           WHERE peer = ?1 AND is_ours = 1 AND stored < last ORDER BY id LIMIT 1";
                let found = t.prepare_cached(sql)?.query_row([peer.0], |row| {
                    let run = Run { life: row.get(1)?, id: row.get(2)? };
                    Ok((row.get::<_, i64>(0)?, run, number(row, 3)?))
                });
                let Some((id, run, stored)) = found.optional()? else { return Ok(None) };
                let mut messages = Vec::new();
                let mut filling = Filling::default();
                let sql = "SELECT number, at, text, attachments FROM messages
                           WHERE run = ?1 AND number > ?2 ORDER BY number LIMIT ?3";
                let mut sql = t.prepare_cached(sql)?;
                let mut rows = sql.query(params![id, int(stored), BATCH_MESSAGES_MAX as i64])?;
                while let Some(row) = rows.next()? {
                    let attachments = ids_of(&row.get::<_, Vec<u8>>(3)?);
                    let message = Message {
                        number: number(row, 0)?,
                        at: number(row, 1)?,
                        text: row.get(2)?,
                        attachments,
                    };
                    if !filling.takes(&message) {
                        break;
                    }
                    messages.push(message);
                }
                let Some(first) = messages.first().map(|message| message.number) else {
                    // What waited has been deleted.
                    t.prepare_cached("UPDATE runs SET stored = last WHERE id = ?1")?.execute([id])?;
                    continue;
                };
                let sql = "SELECT coalesce(max(number), 0) FROM messages WHERE run = ?1 AND number < ?2";
                let base = t.prepare_cached(sql)?.query_row(params![id, int(first)], only_number)?;
                return Ok(Some(Outgoing { run, base, messages }));
            }
        })
    }

    /// The friend keeps a run of ours up to `stored`, as it answers a batch. Gives whether it has come further.
    pub fn heard(&self, peer: &CellId, run: &Run, stored: u64) -> Result<bool, DbError> {
        self.change(|t| {
            let Some((id, before)) = sent(t, peer, run)? else { return Ok(false) };
            let mut now = before;
            now.hear(stored, 0, false);
            if now != before {
                put_sent(t, id, &now)?;
            }
            Ok(now.stored > before.stored)
        })
    }

    /// The friend tells how far it is with our runs: all of them that it knows, or the newest 64. What it should have and
    /// does not know of is sent again if `may_go_back`; of 64 runs that are told, the oldest stands for those before it.
    /// Gives whether anything changed.
    pub fn heard_all(&self, peer: &CellId, receipts: &[Receipt], may_go_back: bool) -> Result<bool, DbError> {
        self.change(|t| {
            let mut known = Vec::with_capacity(receipts.len());
            let mut is_changed = false;
            for receipt in receipts {
                let Some((id, before)) = sent(t, peer, &receipt.run)? else { continue };
                known.push(id);
                let mut now = before;
                now.hear(receipt.stored, receipt.read, may_go_back);
                if now != before {
                    put_sent(t, id, &now)?;
                    is_changed = true;
                }
            }
            if may_go_back {
                let is_all = receipts.len() < RECEIPTS_MAX;
                let oldest = if is_all { 0 } else { known.iter().copied().min().unwrap_or(i64::MAX) };
                let sql = "SELECT id FROM runs WHERE peer = ?1 AND is_ours = 1 AND stored > 0 AND id > ?2";
                let ids: Vec<i64> = t
                    .prepare_cached(sql)?
                    .query_map(params![peer.0, oldest], |row| row.get(0))?
                    .collect::<rusqlite::Result<_>>()?;
                for id in ids.into_iter().filter(|id| !known.contains(id)) {
                    t.prepare_cached("UPDATE runs SET stored = 0 WHERE id = ?1")?.execute([id])?;
                    is_changed = true;
                }
            }
            Ok(is_changed)
        })
    }

    // Hearing.

    /// Takes in a batch of a friend's, as `read_batch` has checked it.
    pub fn take(
        &self,
        peer: &CellId,
        name: &str,
        run: &Run,
        base: u64,
        messages: &[Message],
        arrived: u64,
    ) -> Result<Took, DbError> {
        self.change(|t| {
            let sql = "SELECT last FROM runs WHERE peer = ?1 AND is_ours = 0 AND life = ?2 AND run = ?3";
            let key = params![peer.0, run.life, run.id];
            let stored = t.prepare_cached(sql)?.query_row(key, only_number).optional()?.unwrap_or(0);
            let new = match take(stored, base, messages.iter().map(|message| message.number)) {
                Take::Gap => &[],
                Take::From(at) => &messages[at..],
            };
            let Some(last) = new.last().map(|message| message.number) else {
                return Ok(Took::Level { stored, new: 0 });
            };
            let bytes = new.iter().map(Message::cost).sum();
            if history_bytes(t, peer)?.saturating_add(bytes) > HISTORY_BYTES_MAX {
                return Ok(Took::Full);
            }
            if stored == 0 && !has_room_for_run(t, peer)? {
                return Ok(Took::Full);
            }
            let (id, _) = run_row(t, peer, false, run)?;
            for message in new {
                insert(t, peer, &New { run: id, is_ours: false, message, arrived, key: None })?;
            }
            t.prepare_cached("UPDATE runs SET last = ?2, stored = ?2 WHERE id = ?1")?
                .execute(params![id, int(last)])?;
            add_bytes(t, peer, name, bytes)?;
            Ok(Took::Level { stored: last, new: new.len() })
        })
    }

    /// How far we are with the newest runs of a friend's.
    pub fn receipts(&self, peer: &CellId) -> Result<Vec<Receipt>, DbError> {
        self.change(|t| {
            let sql = "SELECT life, run, stored, read FROM runs
                       WHERE peer = ?1 AND is_ours = 0 ORDER BY id DESC LIMIT ?2";
            t.prepare_cached(sql)?
                .query_map(params![peer.0, RECEIPTS_MAX as i64], |row| {
                    let run = Run { life: row.get(0)?, id: row.get(1)? };
                    Ok(Receipt { run, stored: number(row, 2)?, read: number(row, 3)? })
                })?
                .collect()
        })
    }

    /// All up to the message `upto` has been seen here. Gives whether that is news. Looks at no more than becomes read:
    /// within a run, ids grow as numbers do.
    pub fn mark_read(&self, peer: &CellId, upto: u64) -> Result<bool, DbError> {
        self.change(|t| {
            let first = |column: &str, condition: &str| {
                format!(
                    "(SELECT {column} FROM messages m WHERE m.run = runs.id AND m.number > runs.read {condition}
                      ORDER BY m.number LIMIT 1)"
                )
            };
            let sql = format!(
                "UPDATE runs SET read = coalesce({}, stored)
                 WHERE peer = ?1 AND is_ours = 0 AND read < stored AND {} <= ?2",
                first("m.number - 1", "AND m.id > ?2"),
                first("m.id", ""),
            );
            Ok(t.prepare_cached(&sql)?.execute(params![peer.0, int(upto)])? > 0)
        })
    }

    // Looking.

    /// All conversations, the one with the newest message first.
    pub fn list(&self) -> Result<Vec<Talk>, DbError> {
        self.change(|t| {
            let peers: Vec<(CellId, String)> = t
                .prepare_cached("SELECT peer, name FROM talks")?
                .query_map([], |row| Ok((CellId(row.get(0)?), row.get(1)?)))?
                .collect::<rusqlite::Result<_>>()?;
            let mut talks = Vec::with_capacity(peers.len());
            for (peer, name) in peers {
                let sql = "SELECT count(*) FROM (
                               SELECT 1 FROM runs r JOIN messages m ON m.run = r.id AND m.number > r.read
                               WHERE r.peer = ?1 AND r.is_ours = 0 AND r.read < r.stored LIMIT ?2)";
                let unread =
                    t.prepare_cached(sql)?.query_row(params![peer.0, int(UNREAD_MAX)], only_number)?;
                let queued = queued(t, &peer)?.messages;
                let sql = format!(
                    "SELECT {ITEM_COLUMNS} FROM messages m JOIN runs r ON r.id = m.run
                     WHERE m.peer = ?1 ORDER BY m.id DESC LIMIT 1"
                );
                let mut last = t.prepare_cached(&sql)?.query_row([peer.0], item).optional()?;
                if let Some(last) = &mut last {
                    let end =
                        last.text.char_indices().nth(PREVIEW_LETTERS).map_or(last.text.len(), |(at, _)| at);
                    last.text.truncate(end);
                    last.text.shrink_to_fit();
                }
                talks.push(Talk { peer, name, unread, queued, last });
            }
            order::sort_by_key(&mut talks, |talk| {
                std::cmp::Reverse(talk.last.as_ref().map_or(0, |last| last.id))
            });
            Ok(talks)
        })
    }

    /// Part of the history with a friend, at most `limit` messages.
    pub fn page(&self, peer: &CellId, side: Side, limit: usize) -> Result<Page, DbError> {
        let (at, condition) = match side {
            Side::Before(id) => (id, "m.id < ?2 ORDER BY m.id DESC"),
            Side::After(id) => (id, "m.id > ?2 ORDER BY m.id"),
        };
        let sql = format!(
            "SELECT {ITEM_COLUMNS} FROM messages m JOIN runs r ON r.id = m.run
             WHERE m.peer = ?1 AND {condition} LIMIT ?3"
        );
        self.change(|t| {
            let mut page = Page::default();
            let mut bytes = 0;
            let mut sql = t.prepare_cached(&sql)?;
            let mut rows = sql.query(params![peer.0, int(at), limit as i64 + 1])?;
            while let Some(row) = rows.next()? {
                if page.items.len() == limit || bytes > PAGE_BYTES {
                    page.more = true;
                    break;
                }
                let item = item(row)?;
                bytes += item.text.len();
                page.items.push(item);
            }
            if matches!(side, Side::Before(_)) {
                page.items.reverse();
            }
            Ok(page)
        })
    }

    /// The newest of our messages to a friend that it has, and the newest that it has seen; 0: none.
    pub fn marks(&self, peer: &CellId) -> Result<(u64, u64), DbError> {
        self.change(|t| {
            let newest = |column: &str| -> rusqlite::Result<u64> {
                let sql = format!(
                    "SELECT coalesce(max((
                         SELECT m.id FROM messages m WHERE m.run = r.id AND m.number <= max(r.read, r.{column})
                         ORDER BY m.number DESC LIMIT 1)), 0)
                     FROM runs r WHERE r.peer = ?1 AND r.is_ours = 1"
                );
                t.prepare_cached(&sql)?.query_row([peer.0], only_number)
            };
            Ok((newest("stored")?, newest("read")?))
        })
    }

    /// Messages before the id `before` that hold all of `words`, whatever their case; with one friend or with all. Looks at
    /// so much at once and no more: where `next` is given, the search goes on there.
    pub fn search(
        &self,
        words: &[String],
        peer: Option<&CellId>,
        before: u64,
        limit: usize,
    ) -> Result<Found, DbError> {
        let words: Vec<String> = words.iter().map(|word| word.to_lowercase()).collect();
        let condition = if peer.is_some() { "m.peer = ?3 AND" } else { "?3 IS NULL AND" };
        let sql = format!(
            "SELECT {ITEM_COLUMNS} FROM messages m JOIN runs r ON r.id = m.run
             WHERE {condition} m.id < ?1 ORDER BY m.id DESC LIMIT ?2"
        );
        self.change(|t| {
            let mut found = Found::default();
            let (mut count, mut bytes, mut found_bytes) = (0, 0, 0);
            let mut sql = t.prepare_cached(&sql)?;
            let mut rows = sql.query(params![int(before), SCAN_ROWS as i64, peer.map(|peer| peer.0)])?;
            while let Some(row) = rows.next()? {
                let item = item(row)?;
                (count, bytes) = (count + 1, bytes + item.text.len());
                let id = item.id;
                let text = item.text.to_lowercase();
                if words.iter().all(|word| text.contains(word.as_str())) {
                    found_bytes += item.text.len();
                    found.items.push(item);
                }
                let is_enough = found.items.len() == limit || found_bytes > PAGE_BYTES;
                if count == SCAN_ROWS || bytes > SCAN_BYTES || is_enough {
                    found.next = Some(id);
                    break;
                }
            }
            Ok(found)
        })
    }

    // Deleting. What was said before stays known by its number, so it does not come again.

    /// Deletes one message here; `false` if there is none.
    pub fn delete(&self, peer: &CellId, id: u64) -> Result<bool, DbError> {
        self.change(|t| {
            let sql = "SELECT size FROM messages WHERE id = ?1 AND peer = ?2";
            let size = t.prepare_cached(sql)?.query_row(params![int(id), peer.0], only_number).optional()?;
            let Some(size) = size else { return Ok(false) };
            t.prepare_cached("DELETE FROM messages WHERE id = ?1")?.execute([int(id)])?;
            t.prepare_cached("UPDATE talks SET bytes = bytes - ?2 WHERE peer = ?1")?
                .execute(params![peer.0, int(size)])?;
            Ok(true)
        })
    }

    /// Deletes a part of the conversation with a friend, up to the message `upto`; gives how many went. Again until 0.
    pub fn delete_some(&self, peer: &CellId, upto: u64) -> Result<u64, DbError> {
        self.change(|t| {
            let sql = "SELECT count(*), coalesce(sum(size), 0), coalesce(max(id), 0) FROM
                       (SELECT id, size FROM messages WHERE peer = ?1 AND id <= ?2 ORDER BY id LIMIT ?3)";
            let (count, bytes, last): (u64, u64, i64) = t
                .prepare_cached(sql)?
                .query_row(params![peer.0, int(upto), int(DELETED_AT_ONCE)], |row| {
                    Ok((number(row, 0)?, number(row, 1)?, row.get(2)?))
                })?;
            t.prepare_cached("DELETE FROM messages WHERE peer = ?1 AND id <= ?2")?
                .execute(params![peer.0, last])?;
            t.prepare_cached("UPDATE talks SET bytes = bytes - ?2 WHERE peer = ?1")?
                .execute(params![peer.0, int(bytes)])?;
            let sql = "SELECT EXISTS (SELECT 1 FROM messages WHERE peer = ?1)";
            if !t.prepare_cached(sql)?.query_row([peer.0], |row| row.get::<_, bool>(0))? {
                t.prepare_cached("DELETE FROM talks WHERE peer = ?1")?.execute([peer.0])?;
            }
            Ok(count)
        })
    }

    /// Leaves nothing of what was deleted on the disk, and gives its space back.
    pub fn wipe(&self) -> Result<(), DbError> {
        let step = || -> rusqlite::Result<bool> {
            let conn = lock(&self.conn);
            let free: u32 = conn.query_row("PRAGMA freelist_count", [], |row| row.get(0))?;
            // One page a row.
            let mut sql = conn.prepare(&format!("PRAGMA incremental_vacuum({PAGES_AT_ONCE})"))?;
            let mut rows = sql.query([])?;
            while rows.next()?.is_some() {}
            Ok(free > PAGES_AT_ONCE)
        };
        // Others have their turn between the steps.
        while step().map_err(wrong)? {}
        // What was written before is in the log until its beginning is used again.
        lock(&self.conn).query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).map_err(wrong)
    }
}

#[cfg(test)]
impl Talks {
    pub(super) fn run_count(&self, peer: &CellId) -> u64 {
        let sql = "SELECT count(*) FROM runs WHERE peer = ?1 AND is_ours = 0";
        self.change(|t| t.query_row(sql, [peer.0], only_number)).unwrap()
    }

    /// As if so many runs of a friend's had come, one message each.
    pub(super) fn pretend_runs(&self, peer: &CellId, count: u64, id: impl Fn(u64) -> [u8; 16]) {
        let made = self.change(|t| {
            for n in 0..count {
                let (run, _) = run_row(t, peer, false, &Run { life: 1, id: id(n) })?;
                t.prepare_cached("UPDATE runs SET last = 1, stored = 1 WHERE id = ?1")?.execute([run])?;
                let message = Message { number: 1, at: 1, text: "x".into(), attachments: vec![] };
                insert(t, peer, &New { run, is_ours: false, message: &message, arrived: 1, key: None })?;
            }
            Ok(())
        });
        made.unwrap();
    }
}

/// Whether one more run of a friend's is taken. Those of which nothing is kept are remembered in a bounded number.
fn has_room_for_run(t: &Transaction<'_>, peer: &CellId) -> rusqlite::Result<bool> {
    let sql = "SELECT count(*) FROM runs WHERE peer = ?1 AND is_ours = 0";
    let count = t.prepare_cached(sql)?.query_row([peer.0], only_number)?;
    if count < EMPTY_RUNS_MAX {
        return Ok(true);
    }
    let gone = t
        .prepare_cached(
            "DELETE FROM runs WHERE id IN (
                 SELECT id FROM runs r WHERE peer = ?1 AND is_ours = 0
                     AND NOT EXISTS (SELECT 1 FROM messages WHERE run = r.id)
                 ORDER BY id LIMIT ?2)",
        )?
        .execute(params![peer.0, int(count - EMPTY_RUNS_MAX + 1)])?;
    Ok(count - (gone as u64) < RUNS_MAX)
}

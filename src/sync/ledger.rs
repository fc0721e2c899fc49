//! Bounty in books.db: what is counted with each peer, the newest statement, and the accounts that follow from statements.
//!
//! Double entry: a posting puts what we stored for a peer on one side and what it stored for us on the other, and the
//! difference is what it owes us. The three sum to zero in each row, and the days of a peer sum to its account; SQLite itself
//! refuses a change after which that is not so. Days older than 400 are rolled up to 30 days, and those older than 4,000 to
//! 360, so a peer takes some 600 rows in a lifetime.
//!
//! Promise: a statement, its postings and what is counted change together or not at all.

use rusqlite::{OptionalExtension, Row, params};

use super::books::{Books, wrong};
use crate::bounty::{Cause, Counts, FIGURE_MAX, Heard, Side, Statement, Taken, judge};
use crate::catalog::{RecordKind, record_key};
use crate::codec::{Reader, Writer};
use crate::id::CellId;
use crate::placement::DbError;
use crate::vault::{Vault, VaultError, lock};

/// Made at each opening where they are not there yet.
pub(super) const BOUNTY_TABLES: &str = "
CREATE TABLE IF NOT EXISTS bounty_peers (
    peer BLOB PRIMARY KEY,
    statement BLOB,                      -- the newest that both have signed
    proposed INTEGER NOT NULL DEFAULT 0, -- the highest number that this cell ever signed
    counts BLOB NOT NULL,                -- what is counted, and up to when
    heard BLOB                           -- what the peer told last, and when
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS bounty_accounts (
    peer BLOB PRIMARY KEY,
    earned INTEGER NOT NULL CHECK (earned <= 0),   -- byte-hours stored for it
    spent INTEGER NOT NULL CHECK (spent >= 0),     -- byte-hours it stored for us
    owed INTEGER NOT NULL,                         -- what it owes us
    CHECK (earned + spent + owed = 0)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS bounty_days (
    peer BLOB NOT NULL,
    day INTEGER NOT NULL,                -- Unix day in which the period ended; rolled up: the first of several
    earned INTEGER NOT NULL CHECK (earned >= 0),
    spent INTEGER NOT NULL CHECK (spent >= 0),
    PRIMARY KEY (peer, day)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS bounty_evidence (
    peer BLOB NOT NULL,
    seq INTEGER NOT NULL,
    one BLOB NOT NULL,                   -- two statements of this number
    other BLOB NOT NULL,
    found INTEGER NOT NULL,              -- Unix time
    seen INTEGER NOT NULL DEFAULT 0,     -- the user goes on with the peer
    PRIMARY KEY (peer, seq)
) WITHOUT ROWID;
CREATE VIEW IF NOT EXISTS bounty_postings (peer, day, earned, spent) AS
    SELECT peer, day, earned, spent FROM bounty_days;
CREATE TRIGGER IF NOT EXISTS bounty_post INSTEAD OF INSERT ON bounty_postings BEGIN
    INSERT INTO bounty_accounts VALUES (NEW.peer, -NEW.earned, NEW.spent, NEW.earned - NEW.spent)
        ON CONFLICT (peer) DO UPDATE SET
            earned = earned + excluded.earned, spent = spent + excluded.spent, owed = owed + excluded.owed;
    INSERT INTO bounty_days VALUES (NEW.peer, NEW.day, NEW.earned, NEW.spent)
        ON CONFLICT (peer, day) DO UPDATE SET
            earned = earned + excluded.earned, spent = spent + excluded.spent;
    SELECT RAISE(ABORT, 'the books of the bounty do not balance') WHERE EXISTS (
        SELECT 1 FROM bounty_accounts WHERE peer = NEW.peer AND (
            earned + (SELECT sum(earned) FROM bounty_days WHERE peer = NEW.peer) <> 0
            OR spent <> (SELECT sum(spent) FROM bounty_days WHERE peer = NEW.peer)));
END;";

/// Days that are kept one by one.
const DAYS_SINGLE: u64 = 400;
/// Days that are kept in thirties after that.
const DAYS_MONTHLY: u64 = 4000;
/// Forks of one peer that are kept.
const EVIDENCE_MAX: i64 = 16;

/// What was told by a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct HeardAt {
    /// Unix seconds here.
    pub(crate) at: u64,
    pub(crate) heard: Heard,
    /// It counted too little then, probably for this reason.
    pub(crate) short: Option<Cause>,
}

/// All that is known of the account with one peer, but for its days.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct PeerBook {
    pub(crate) counts: Counts,
    pub(crate) newest: Option<Statement>,
    pub(crate) proposed: u64,
    pub(crate) heard: Option<HeardAt>,
    /// It has signed two statements of one number, and the user has not said that this is well.
    pub(crate) is_forked: bool,
}

/// An account, in byte-hours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Balance {
    pub(super) earned: u64,
    pub(super) spent: u64,
}

/// Two statements of one number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Evidence {
    pub(super) seq: u64,
    pub(super) one: Vec<u8>,
    pub(super) other: Vec<u8>,
    pub(super) found: u64,
}

/// A day and what was posted on it, in byte-hours.
pub(super) type DayRow = (u64, u64, u64);

fn heard_bytes(heard: &HeardAt) -> Vec<u8> {
    let mut to = Writer::new();
    heard.heard.write(to.u64(heard.at).u8(heard.short.map_or(0, Cause::to_byte)));
    to.finish()
}

fn read_heard(bytes: &[u8]) -> Option<HeardAt> {
    let mut from = Reader::new(bytes);
    let (at, short) = (from.u64().ok()?, Cause::from_byte(from.u8().ok()?));
    let heard = Heard::read(&mut from).ok()?;
    from.end().ok()?;
    Some(HeardAt { at, heard, short })
}

fn book_row(row: &Row<'_>) -> rusqlite::Result<(CellId, PeerBook)> {
    let statement: Option<Vec<u8>> = row.get(1)?;
    let heard: Option<Vec<u8>> = row.get(4)?;
    let counts: Vec<u8> = row.get(3)?;
    Ok((
        CellId(row.get(0)?),
        PeerBook {
            newest: statement.and_then(|bytes| Statement::whole_from_bytes(&bytes).ok()),
            proposed: row.get::<_, i64>(2)? as u64,
            // What cannot be read begins anew, from what both have signed.
            counts: Counts::from_bytes(&counts).unwrap_or_default(),
            heard: heard.and_then(|bytes| read_heard(&bytes)),
            is_forked: row.get(5)?,
        },
    ))
}

const BOOK_COLUMNS: &str = "peer, statement, proposed, counts, heard,
    EXISTS (SELECT 1 FROM bounty_evidence e WHERE e.peer = p.peer AND seen = 0)";

fn unsigned(number: i64) -> u64 {
    number.unsigned_abs()
}

impl Books {
    /// What is counted with all peers.
    pub(super) fn bounty_books(&self) -> Result<Vec<(CellId, PeerBook)>, DbError> {
        self.list(&format!("SELECT {BOOK_COLUMNS} FROM bounty_peers p"), [], book_row)
    }

    /// What is counted with one of them.
    pub(crate) fn bounty_book(&self, peer: &CellId) -> Result<PeerBook, DbError> {
        let sql = format!("SELECT {BOOK_COLUMNS} FROM bounty_peers p WHERE peer = ?1");
        let found = lock(&self.conn).query_row(&sql, [peer.0], book_row).optional().map_err(wrong)?;
        Ok(found.map(|(_, book)| book).unwrap_or_default())
    }

    /// Keeps what is counted and was heard: durable when this returns.
    pub(crate) fn save_counts(&self, peer: &CellId, book: &PeerBook) -> Result<(), DbError> {
        self.step();
        self.run(
            "INSERT INTO bounty_peers (peer, counts, heard) VALUES (?1, ?2, ?3)
             ON CONFLICT (peer) DO UPDATE SET counts = excluded.counts, heard = excluded.heard",
            params![peer.0, book.counts.to_bytes(), book.heard.as_ref().map(heard_bytes)],
        )?;
        self.step();
        Ok(())
    }

    /// This number is used: durable before anybody sees what is signed under it.
    pub(crate) fn note_proposed(&self, peer: &CellId, seq: u64) -> Result<(), DbError> {
        self.step();
        self.run(
            "INSERT INTO bounty_peers (peer, counts, proposed) VALUES (?1, x'', ?2)
             ON CONFLICT (peer) DO UPDATE SET proposed = max(proposed, excluded.proposed)",
            params![peer.0, seq.min(i64::MAX as u64) as i64],
        )?;
        self.step();
        Ok(())
    }

    /// A statement that both have signed holds from now on: its figures are posted, and what is counted goes on from them.
    /// Durable when this returns. `side` is this cell's.
    pub(crate) fn take_statement(
        &self,
        peer: &CellId,
        side: Side,
        statement: &Statement,
        book: &mut PeerBook,
    ) -> Result<(), DbError> {
        assert!(statement.is_whole(), "only what both have signed is posted");
        let (by_us, by_them) = (statement.stored_by(side), statement.stored_by(side.other()));
        let mut counts = book.counts;
        counts.agree(by_them, by_us);
        let day = statement.until / 86_400;
        let mut conn = lock(&self.conn);
        self.step();
        let change = conn.transaction().map_err(wrong)?;
        let before = change
            .query_row("SELECT -earned, spent FROM bounty_accounts WHERE peer = ?1", [peer.0], |row| {
                Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?))
            })
            .optional()
            .map_err(wrong)?
            .unwrap_or_default();
        let earned = by_us.saturating_sub(unsigned(before.0));
        let spent = by_them.saturating_sub(unsigned(before.1));
        self.step();
        change
            .execute(
                "INSERT INTO bounty_postings VALUES (?1, ?2, ?3, ?4)",
                params![peer.0, day as i64, earned as i64, spent as i64],
            )
            .map_err(wrong)?;
        self.step();
        change
            .execute(
                "INSERT INTO bounty_peers (peer, counts, statement, proposed) VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT (peer) DO UPDATE SET counts = excluded.counts, statement = excluded.statement,
                     proposed = max(proposed, excluded.proposed)",
                params![
                    peer.0,
                    counts.to_bytes(),
                    statement.to_bytes(),
                    statement.seq.min(i64::MAX as u64) as i64
                ],
            )
            .map_err(wrong)?;
        self.step();
        for (older_than, span) in [(DAYS_SINGLE, 30), (DAYS_MONTHLY, 360)] {
            let until = day.saturating_sub(older_than) as i64;
            change
                .execute(
                    "INSERT INTO bounty_days
                     SELECT peer, day - day % ?2, sum(earned), sum(spent) FROM bounty_days
                     WHERE peer = ?3 AND day < ?1 AND day % ?2 <> 0 GROUP BY day - day % ?2
                     ON CONFLICT (peer, day) DO UPDATE SET
                         earned = earned + excluded.earned, spent = spent + excluded.spent",
                    params![until, span, peer.0],
                )
                .map_err(wrong)?;
            self.step();
            change
                .execute(
                    "DELETE FROM bounty_days WHERE peer = ?3 AND day < ?1 AND day % ?2 <> 0",
                    params![until, span, peer.0],
                )
                .map_err(wrong)?;
        }
        self.step();
        change.commit().map_err(wrong)?;
        self.step();
        (book.counts, book.newest) = (counts, Some(statement.clone()));
        book.proposed = book.proposed.max(statement.seq);
        Ok(())
    }

    /// Keeps two statements of one number.
    pub(super) fn keep_evidence(&self, peer: &CellId, found: &Evidence) -> Result<(), DbError> {
        self.run(
            "INSERT OR IGNORE INTO bounty_evidence SELECT ?1, ?2, ?3, ?4, ?5, 0
             WHERE (SELECT count(*) FROM bounty_evidence WHERE peer = ?1) < ?6",
            params![
                peer.0,
                found.seq.min(i64::MAX as u64) as i64,
                found.one,
                found.other,
                found.found as i64,
                EVIDENCE_MAX
            ],
        )
        .map(drop)
    }

    /// The user goes on with a peer that has signed two statements of one number. They are kept.
    pub(super) fn pass_over_evidence(&self, peer: &CellId) -> Result<(), DbError> {
        self.run("UPDATE bounty_evidence SET seen = 1 WHERE peer = ?1", [peer.0]).map(drop)
    }

    /// Statements of one number with a peer.
    pub(super) fn evidence(&self, peer: &CellId) -> Result<Vec<Evidence>, DbError> {
        self.list(
            "SELECT seq, one, other, found FROM bounty_evidence WHERE peer = ?1 ORDER BY seq",
            [peer.0],
            |row| {
                Ok(Evidence {
                    seq: unsigned(row.get(0)?),
                    one: row.get(1)?,
                    other: row.get(2)?,
                    found: unsigned(row.get(3)?),
                })
            },
        )
    }

    /// All accounts.
    pub(super) fn balances(&self) -> Result<Vec<(CellId, Balance)>, DbError> {
        self.list("SELECT peer, -earned, spent FROM bounty_accounts", [], |row| {
            let balance = Balance { earned: unsigned(row.get(1)?), spent: unsigned(row.get(2)?) };
            Ok((CellId(row.get(0)?), balance))
        })
    }

    /// What was posted, by days: with one peer, or with all of them together.
    pub(super) fn bounty_days(&self, peer: Option<&CellId>) -> Result<Vec<DayRow>, DbError> {
        // Halves are summed: each peer may say that it owes as much as one number holds, and SQLite gives no sum at all where
        // that is more.
        self.list(
            "SELECT day, sum(earned >> 32), sum(earned & 4294967295), sum(spent >> 32), sum(spent & 4294967295)
             FROM bounty_days WHERE ?1 IS NULL OR peer = ?1 GROUP BY day ORDER BY day",
            [peer.map(|peer| peer.0)],
            |row| {
                let figure = |at: usize| -> rusqlite::Result<u64> {
                    let (high, low) = (unsigned(row.get(at)?), unsigned(row.get(at + 1)?));
                    let sum = (u128::from(high) << 32) + u128::from(low);
                    Ok(sum.min(FIGURE_MAX.into()) as u64)
                };
                Ok((unsigned(row.get(0)?), figure(1)?, figure(3)?))
            },
        )
    }

    /// What does not balance, in words: nothing, unless books.db was changed by hand or is damaged.
    pub(crate) fn bounty_faults(&self) -> Result<Vec<String>, DbError> {
        let mut faults = self.list(
            "SELECT hex(peer), earned + spent + owed,
                 -earned - coalesce((SELECT sum(earned) FROM bounty_days d WHERE d.peer = a.peer), 0),
                 spent - coalesce((SELECT sum(spent) FROM bounty_days d WHERE d.peer = a.peer), 0)
             FROM bounty_accounts a",
            [],
            |row| {
                let differences: [i64; 3] = [row.get(1)?, row.get(2)?, row.get(3)?];
                let peer: String = row.get(0)?;
                Ok((differences != [0; 3])
                    .then(|| format!("the account with {} is off by {differences:?} byte-hours", &peer[..8])))
            },
        )?;
        let balances = self.balances()?;
        for (peer, book) in self.bounty_books()? {
            let Some(newest) = &book.newest else { continue };
            let Some(them) = newest.side(&peer) else { continue };
            let balance =
                balances.iter().find(|(id, _)| *id == peer).map(|(_, balance)| *balance).unwrap_or_default();
            if balance.earned < newest.stored_by(them.other()) || balance.spent < newest.stored_by(them) {
                faults
                    .push(Some(format!("the account with {} is behind what both have signed", peer.short())));
            }
        }
        Ok(faults.into_iter().flatten().collect())
    }

    /// The newest statements come back from the catalog; what is newer here stays.
    pub(super) fn restore_statements(&self, vault: &Vault, max: usize) -> Result<(), VaultError> {
        let records = vault.db.read(|t| -> Result<_, DbError> {
            let mut found = Vec::new();
            for (seq, key) in t.records_with_prefix(&[RecordKind::StatementHead as u8], max)? {
                found.extend(t.record_at(seq)?.filter(|body| !body.is_empty()).map(|body| (key, body)));
            }
            Ok(found)
        })?;
        let us = vault.id();
        for (key, body) in records {
            let Some(peer) = key.get(1..).and_then(CellId::from_slice) else { continue };
            let mut book = self.bounty_book(&peer)?;
            let taken = Statement::whole_from_bytes(&body).map_err(|why| why.to_string()).and_then(|given| {
                let taken = judge(&us, &peer, book.newest.as_ref(), &given);
                taken.map(|taken| (taken, given)).map_err(|why| why.to_string())
            });
            match taken {
                Ok((Taken::Newer, given)) => {
                    self.take_statement(&peer, Side::of(&us, &peer), &given, &mut book)?
                }
                Ok((Taken::Known, _)) => {}
                Err(why) => log::warn!("a statement with {} cannot be brought back: {why}", peer.short()),
            }
        }
        Ok(())
    }

    /// Puts the newest statement with a peer into the catalog.
    pub(super) fn statement_record(
        vault: &Vault,
        peer: &CellId,
        statement: &Statement,
    ) -> Result<(), DbError> {
        let key = record_key(RecordKind::StatementHead, &peer.0);
        vault.db.change(|t| t.put_record(&key, &statement.to_bytes())).map(drop)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;
    use crate::bounty::{Seen, StatementBody, Sums};
    use crate::keys::{Identity, MasterKey};

    pub(in super::super) fn two() -> [Identity; 2] {
        let mut two = [1, 2].map(|seed| MasterKey::from_bytes([seed; 32]).identity(0, 0));
        two.sort_by_key(|identity| identity.id());
        two
    }

    pub(in super::super) fn whole(before: Option<&Statement>, day: u64, stored: [u64; 2]) -> Statement {
        let [low, high] = two();
        let body = StatementBody {
            cells: [low.id(), high.id()],
            seq: before.map_or(1, |before| before.seq + 1),
            previous: before.map_or([0; 32], Statement::hash),
            lives: [1, 1],
            from: before.map_or(0, |before| before.until),
            until: day * 86_400,
            stored,
            extensions: vec![],
        };
        Statement::sign(&high, body).unwrap().signed_by(&low).unwrap()
    }

    fn high() -> CellId {
        two()[1].id()
    }

    #[test]
    fn postings_sum_to_zero_and_sqlite_refuses_what_does_not() {
        let books = Books::in_memory().unwrap();
        let mut book = PeerBook::default();
        let first = whole(None, 20_000, [500, 700]);
        books.take_statement(&high(), Side::Low, &first, &mut book).unwrap();
        let second = whole(Some(&first), 20_001, [600, 700]);
        books.take_statement(&high(), Side::Low, &second, &mut book).unwrap();
        assert_eq!(books.balances().unwrap(), [(high(), Balance { earned: 600, spent: 700 })]);
        assert_eq!(books.bounty_days(Some(&high())).unwrap(), [(20_000, 500, 700), (20_001, 100, 0)]);
        assert_eq!(books.bounty_days(None).unwrap().len(), 2);
        assert_eq!(books.bounty_book(&high()).unwrap(), book);
        assert_eq!(books.bounty_faults().unwrap(), [""; 0]);
        for sql in [
            "UPDATE bounty_accounts SET owed = owed + 1",
            "UPDATE bounty_accounts SET earned = earned - 5",
            "UPDATE bounty_accounts SET spent = -1",
            "UPDATE bounty_days SET spent = -1",
        ] {
            assert!(books.run(sql, []).is_err(), "{sql}");
        }
        // Changed by hand in a way that each row bears: found, and no posting goes on from it.
        books.run("UPDATE bounty_days SET earned = earned + 7 WHERE day = 20000", []).unwrap();
        assert_eq!(books.bounty_faults().unwrap().len(), 1);
        let third = whole(Some(&second), 20_002, [601, 700]);
        assert!(books.take_statement(&high(), Side::Low, &third, &mut book).is_err());
        assert_eq!(book.newest, Some(second));
    }

    #[test]
    fn the_same_statement_twice_and_an_older_one_post_nothing() {
        let books = Books::in_memory().unwrap();
        let mut book = PeerBook::default();
        let first = whole(None, 20_000, [500, 700]);
        let second = whole(Some(&first), 20_001, [900, 701]);
        for statement in [&first, &second, &second, &first] {
            books.take_statement(&high(), Side::Low, statement, &mut book).unwrap();
        }
        assert_eq!(books.balances().unwrap()[0].1, Balance { earned: 900, spent: 701 });
        assert_eq!(books.bounty_faults().unwrap(), [""; 0]);
    }

    /// The process ends at each step in turn: what was counted before is counted once.
    #[test]
    fn a_crash_at_any_step_posts_all_or_nothing_and_nothing_twice() {
        let first = whole(None, 20_000, [500, 700]);
        let second = whole(Some(&first), 20_001, [600, 900]);
        let mut crashes = 0;
        for step in 0.. {
            let books = Books::in_memory().unwrap();
            let mut book = PeerBook::default();
            books.take_statement(&high(), Side::Low, &first, &mut book).unwrap();
            let seen = |now| Seen { now, since: 0, sums: Sums { proven_bytes: 10, ..Sums::default() } };
            book.counts.take(&seen(1000));
            books.save_counts(&high(), &book).unwrap();
            books.fuse.set(Some(step));
            let worked = catch_unwind(AssertUnwindSafe(|| {
                let mut book = books.bounty_book(&high()).unwrap();
                book.counts.take(&seen(1000 + 36_000));
                books.save_counts(&high(), &book).unwrap();
                books.note_proposed(&high(), 2).unwrap();
                books.take_statement(&high(), Side::Low, &second, &mut book).unwrap();
            }));
            books.fuse.set(None);
            assert_eq!(books.bounty_faults().unwrap(), [""; 0], "step {step}");
            let found = books.bounty_book(&high()).unwrap();
            let balance = books.balances().unwrap()[0].1;
            let is_posted = found.newest.as_ref() == Some(&second);
            let wanted = if is_posted { (600, 900) } else { (500, 700) };
            assert_eq!((balance.earned, balance.spent), wanted, "step {step}");
            assert!(worked.is_err() || is_posted);
            crashes += u32::from(worked.is_err());
            // It starts again and does the same.
            let mut book = found;
            book.counts.take(&seen(1000 + 36_000));
            books.take_statement(&high(), Side::Low, &second, &mut book).unwrap();
            assert_eq!(book.counts.measured(), 900, "step {step}: 700 were signed, and 100 counted since");
            assert_eq!(books.balances().unwrap()[0].1, Balance { earned: 600, spent: 900 });
            if worked.is_ok() {
                break;
            }
        }
        assert!(crashes >= 10, "{crashes}");
    }

    #[test]
    fn ten_years_of_days_stay_some_hundred_rows_and_sum_to_the_account() {
        let books = Books::in_memory().unwrap();
        let mut book = PeerBook::default();
        let mut before: Option<Statement> = None;
        for day in 0..3650 {
            let next = whole(before.as_ref(), 20_000 + day, [day * 7, day * 3]);
            books.take_statement(&high(), Side::Low, &next, &mut book).unwrap();
            before = Some(next);
        }
        let days = books.bounty_days(Some(&high())).unwrap();
        assert!(days.len() < 520, "{}", days.len());
        assert_eq!(days.iter().map(|day| day.1).sum::<u64>(), 3649 * 7);
        assert_eq!(days.last(), Some(&(20_000 + 3649, 7, 3)));
        assert_eq!(books.bounty_faults().unwrap(), [""; 0]);
    }

    #[test]
    fn days_of_several_peers_are_summed_however_much_they_say_that_they_owe() {
        let books = Books::in_memory().unwrap();
        for (n, peer) in [high(), CellId([7; 32]), CellId([8; 32])].iter().enumerate() {
            let spent = 5 + n as u64;
            let statement = whole(None, 20_000, [FIGURE_MAX, spent]);
            books.take_statement(peer, Side::Low, &statement, &mut PeerBook::default()).unwrap();
        }
        assert_eq!(books.bounty_days(None).unwrap(), [(20_000, FIGURE_MAX, 18)]);
        assert_eq!(books.bounty_days(Some(&high())).unwrap(), [(20_000, FIGURE_MAX, 5)]);
    }

    #[test]
    fn evidence_is_kept_bounded_and_passed_over_only_by_the_user() {
        let books = Books::in_memory().unwrap();
        let mut book = PeerBook::default();
        let first = whole(None, 20_000, [500, 700]);
        books.take_statement(&high(), Side::Low, &first, &mut book).unwrap();
        for seq in 1..40 {
            let found = Evidence { seq, one: first.to_bytes(), other: vec![1], found: 9 };
            books.keep_evidence(&high(), &found).unwrap();
            books.keep_evidence(&high(), &found).unwrap();
        }
        assert!(books.bounty_book(&high()).unwrap().is_forked);
        assert_eq!(books.evidence(&high()).unwrap().len(), 16);
        books.pass_over_evidence(&high()).unwrap();
        assert!(!books.bounty_book(&high()).unwrap().is_forked);
        assert_eq!(books.evidence(&high()).unwrap().len(), 16);
    }
}

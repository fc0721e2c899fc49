//! books.db: who the peers are, and which invites are out. What must survive the board is in the catalog as well.
//!
//! **Peer record** (`RecordKind::Peer`, key: the peer's 32-byte id): version u8 = 1, card (u32 length, bytes), role u8
//! (0 peer, 1 friend), favorite u8, quota u8 (0 default, 1 followed by bytes u64), label (u8 length, UTF-8). Once a wish of
//! either side has a number it is version 2, which ends with both wishes, this cell's first: friend u8, number u64, floor
//! u64 each. All numbers little-endian, as everywhere. **Used invite** (`RecordKind::UsedInvite`, key: the invite's 16-byte id): version
//! u8 = 1, the 32-byte id of the cell that used it, Unix time u64.

use std::path::Path;
use std::sync::Mutex;

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::ledger::BOUNTY_TABLES;
use super::shares::TABLES;
use crate::card::{Card, CardBody, NAME_BYTES_MAX, Role};
use crate::catalog::{RecordKind, record_key};
use crate::codec::{BadBytes, Reader, Writer};
use crate::friendship::Friendship;
use crate::id::CellId;
use crate::keys::Secret;
use crate::placement::{DbError, copy_in_memory};
use crate::vault::{Vault, VaultError, lock};

const FORMAT: i64 = 4;
const SCHEMA: &str = "
CREATE TABLE meta (key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE peers (
    id BLOB PRIMARY KEY,
    x25519 BLOB NOT NULL,
    name TEXT NOT NULL,
    favorite INTEGER NOT NULL,
    quota_bytes INTEGER,                 -- NULL: the default
    card BLOB NOT NULL,
    recovery_secret BLOB,                -- theirs: whoever proves it may read what is kept for them
    added_at INTEGER NOT NULL,           -- Unix time
    last_seen INTEGER,                   -- Unix time
    address TEXT NOT NULL,               -- where it answered last
    removed_at INTEGER,                  -- observed seconds; its chunks are kept for a while
    friendship BLOB NOT NULL             -- both wishes, as in the catalog's record
) WITHOUT ROWID;
CREATE TABLE invites (
    id BLOB PRIMARY KEY,
    secret BLOB NOT NULL,
    role INTEGER NOT NULL,
    expires INTEGER NOT NULL,            -- Unix time
    state INTEGER NOT NULL,              -- 0 open, 1 used, 2 revoked
    used_by BLOB
) WITHOUT ROWID;";

/// From format 1, whose peers had a role (0 peer, 1 friend) and no wishes with numbers.
const FROM_1: &str = "
ALTER TABLE peers ADD COLUMN friendship BLOB NOT NULL DEFAULT x'';
UPDATE peers SET friendship = CASE role WHEN 1 THEN ?1 ELSE ?2 END;
ALTER TABLE peers DROP COLUMN role;";

/// Peers that are known at once, at most.
pub const PEERS_MAX: usize = 1024;
/// Invites kept, whatever their state; the oldest closed ones go.
pub const INVITES_MAX: usize = 1024;

pub(super) type KeyAndBody = (Vec<u8>, Vec<u8>);

/// A peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerRow {
    /// Who.
    pub id: CellId,
    /// Its pinned key.
    pub x25519: [u8; 32],
    /// What it is called here: what it calls itself, unless the user has chosen another label.
    pub name: String,
    /// What both wish of each other.
    pub friendship: Friendship,
    /// Gets chunks first.
    pub is_favorite: bool,
    /// Bytes it may store here; `None`: the default of config.json.
    pub quota_bytes: Option<u64>,
    /// Its card, as bytes.
    pub card: Vec<u8>,
    /// Who proves to know it is this peer, recovering.
    pub recovery_secret: Option<Secret>,
    /// Unix seconds.
    pub added_at: i64,
    /// Unix seconds.
    pub last_seen: Option<i64>,
    /// Where it answered last; may be empty.
    pub address: String,
    /// Observed seconds at which it was removed: no peer any more, its chunks are still kept.
    pub removed_at: Option<u64>,
}

impl PeerRow {
    /// A new peer from its card.
    pub fn new(card: &Card, now: i64) -> Self {
        Self {
            id: card.id,
            x25519: card.x25519,
            name: card.name.clone(),
            friendship: Friendship::default(),
            is_favorite: false,
            quota_bytes: None,
            card: card.to_bytes(),
            recovery_secret: None,
            added_at: now,
            last_seen: Some(now),
            address: String::new(),
            removed_at: None,
        }
    }

    /// The same peer, met again with a newer card: what was settled with it stays.
    pub fn again(self, known: &Self) -> Self {
        let name = if known.is_labelled() { known.name.clone() } else { self.name };
        Self {
            name,
            friendship: known.friendship,
            is_favorite: known.is_favorite,
            quota_bytes: known.quota_bytes,
            recovery_secret: known.recovery_secret.clone(),
            ..self
        }
    }

    /// What it calls itself.
    pub fn own_name(&self) -> String {
        Card::from_bytes(&self.card).map_or_else(|_| self.name.clone(), |card| card.name.clone())
    }

    /// Whether the user calls it otherwise than it calls itself.
    pub fn is_labelled(&self) -> bool {
        self.name != self.own_name()
    }

    /// A newer card of its, whose name it goes by unless it has a label.
    pub fn take_card(&mut self, card: &Card) {
        if !self.is_labelled() {
            self.name.clone_from(&card.name);
        }
        self.card = card.to_bytes();
    }

    /// What it is to us.
    pub fn role(&self) -> Role {
        if self.friendship.are_friends() { Role::Friend } else { Role::Peer }
    }

    /// Its record in the catalog.
    pub fn to_record(&self) -> Vec<u8> {
        let mut to = Writer::new();
        let version = if is_unnumbered(&self.friendship) { 1 } else { 2 };
        to.u8(version).long(&self.card).u8(role_byte(self.role())).u8(self.is_favorite.into());
        match self.quota_bytes {
            None => to.u8(0),
            Some(bytes) => to.u8(1).u64(bytes),
        };
        to.short(self.name.as_bytes());
        if version == 2 {
            self.friendship.write(&mut to);
        }
        to.finish()
    }

    /// A peer from its record in the catalog.
    pub fn from_record(body: &[u8], now: i64) -> Result<Self, BadBytes> {
        let mut from = Reader::new(body);
        let version = from.u8()?;
        if !matches!(version, 1 | 2) {
            return Err(BadBytes("version of a peer's record"));
        }
        let card = Card::from_bytes(from.long()?).map_err(|_| BadBytes("card in a peer's record"))?;
        let role = role_of(from.u8()?).ok_or(BadBytes("role in a peer's record"))?;
        let flag = |byte| match byte {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(BadBytes("flag in a peer's record")),
        };
        let is_favorite = flag(from.u8()?)?;
        let quota_bytes = if flag(from.u8()?)? { Some(from.u64()?) } else { None };
        let name = String::from_utf8(from.short()?.to_vec()).map_err(|_| BadBytes("label of a peer"))?;
        let friendship = match (version, role) {
            (1, Role::Peer) => Friendship::default(),
            (1, Role::Friend) => Friendship::UNNUMBERED,
            _ => Friendship::read(&mut from)?,
        };
        from.end()?;
        let peer =
            Self { is_favorite, quota_bytes, name, friendship, last_seen: None, ..Self::new(&card, now) };
        if peer.role() != role || (version == 2) == is_unnumbered(&friendship) {
            return Err(BadBytes("a peer's record contradicts itself"));
        }
        Ok(peer)
    }

    /// Where a cell without anything but its phrase finds this peer: addresses, and its relays as `ID@URL`.
    pub fn places(&self) -> Vec<String> {
        let relays = Card::from_bytes(&self.card).map(|card| card.relays.clone()).unwrap_or_default();
        let mut places = self.addresses();
        places.extend(relays.iter().map(|url| format!("{}@{url}", self.id)));
        places
    }

    /// Addresses to dial, best first.
    pub fn addresses(&self) -> Vec<String> {
        let mut addresses = Vec::new();
        if !self.address.is_empty() {
            addresses.push(self.address.clone());
        }
        if let Ok(card) = Card::from_bytes(&self.card) {
            for address in &card.addresses {
                if !addresses.contains(address) {
                    addresses.push(address.clone());
                }
            }
        }
        addresses
    }
}

/// Whether a record of version 1 tells all of it.
fn is_unnumbered(friendship: &Friendship) -> bool {
    [Friendship::default(), Friendship::UNNUMBERED].contains(friendship)
}

/// Whether a peer can be called so here: the same rule as for the name on a card.
pub fn is_label(text: &str) -> bool {
    !text.is_empty() && text.len() <= NAME_BYTES_MAX && !text.chars().any(char::is_control)
}

fn friendship_bytes(friendship: &Friendship) -> Vec<u8> {
    let mut to = Writer::new();
    friendship.write(&mut to);
    to.finish()
}

fn role_byte(role: Role) -> u8 {
    match role {
        Role::Peer => 0,
        Role::Friend => 1,
    }
}

fn role_of(byte: u8) -> Option<Role> {
    match byte {
        0 => Some(Role::Peer),
        1 => Some(Role::Friend),
        _ => None,
    }
}

/// Whether an invite still serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InviteState {
    /// Its bearer is let in.
    Open,
    /// It was used.
    Used,
    /// It was taken back.
    Revoked,
    /// Its time is over.
    Expired,
}

impl InviteState {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Used => "used",
            Self::Revoked => "revoked",
            Self::Expired => "expired",
        }
    }
}

/// An invite of this cell's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InviteRow {
    /// Which.
    pub id: [u8; 16],
    /// What its bearer proves.
    pub secret: Secret,
    /// What its bearer becomes.
    pub role: Role,
    /// Unix seconds.
    pub expires: u64,
    /// Used or revoked; expiry is not noted here, see `state_at`.
    pub state: InviteState,
    /// Who used it.
    pub used_by: Option<CellId>,
}

impl InviteRow {
    /// Whether it serves at this Unix time.
    pub fn state_at(&self, wall: i64) -> InviteState {
        match self.state {
            InviteState::Open if wall.max(0) as u64 > self.expires => InviteState::Expired,
            state => state,
        }
    }
}

/// books.db. One connection under a lock, used on the blocking pool.
pub struct Books {
    pub(super) conn: Mutex<Connection>,
    /// Held by whoever works at what is kept of friends' shares.
    pub(super) shelf: Mutex<()>,
    /// Ends the process at a step of the bounty or of sharing, in tests.
    #[cfg(test)]
    pub(super) fuse: crate::world::Fuse,
}

pub(super) fn wrong(why: rusqlite::Error) -> DbError {
    DbError::Sqlite { doing: "using books.db", why }
}

const PEER_COLUMNS: &str = "id, x25519, name, friendship, favorite, quota_bytes, card, recovery_secret, added_at, last_seen, address, removed_at";

fn peer_row(row: &Row<'_>) -> rusqlite::Result<PeerRow> {
    Ok(PeerRow {
        id: CellId(row.get(0)?),
        x25519: row.get(1)?,
        name: row.get(2)?,
        friendship: Friendship::read(&mut Reader::new(&row.get::<_, Vec<u8>>(3)?)).unwrap_or_default(),
        is_favorite: row.get(4)?,
        quota_bytes: row.get::<_, Option<i64>>(5)?.map(|bytes| bytes as u64),
        card: row.get(6)?,
        recovery_secret: row.get::<_, Option<[u8; 32]>>(7)?.map(Secret),
        added_at: row.get(8)?,
        last_seen: row.get(9)?,
        address: row.get(10)?,
        removed_at: row.get::<_, Option<i64>>(11)?.map(|at| at as u64),
    })
}

fn invite_row(row: &Row<'_>) -> rusqlite::Result<InviteRow> {
    Ok(InviteRow {
        id: row.get(0)?,
        secret: Secret(row.get(1)?),
        role: role_of(row.get(2)?).unwrap_or(Role::Peer),
        expires: row.get::<_, i64>(3)? as u64,
        state: match row.get::<_, i64>(4)? {
            0 => InviteState::Open,
            1 => InviteState::Used,
            _ => InviteState::Revoked,
        },
        used_by: row.get::<_, Option<[u8; 32]>>(5)?.map(CellId),
    })
}

/// Brings books of format 1 to this one, whole or not at all.
fn from_1(conn: &Connection) -> rusqlite::Result<()> {
    let change = conn.unchecked_transaction()?;
    let wishes = [Friendship::UNNUMBERED, Friendship::default()].map(|wishes| friendship_bytes(&wishes));
    for step in FROM_1.split_inclusive(';') {
        match step.contains("?1") {
            true => change.execute(step, params![wishes[0], wishes[1]])?,
            false => change.execute(step, [])?,
        };
    }
    change.pragma_update(None, "user_version", FORMAT)?;
    change.commit()
}

impl Books {
    /// Opens books.db at `path`, or creates it.
    pub fn open(path: &Path) -> Result<Self, DbError> {
        Self::with(Connection::open(path).map_err(wrong)?, path)
    }

    /// Books in memory, for tests and simulations.
    pub fn in_memory() -> Result<Self, DbError> {
        Self::with(Connection::open_in_memory().map_err(wrong)?, Path::new(":memory:"))
    }

    /// The same books once more in memory, as they are now.
    pub fn copied(&self) -> Result<Self, DbError> {
        let copy = copy_in_memory(&lock(&self.conn)).map_err(wrong)?;
        Self::with(copy, Path::new(":memory:"))
    }

    fn with(conn: Connection, path: &Path) -> Result<Self, DbError> {
        let prepare = || {
            conn.execute_batch(
                "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA cache_size = -256;
                 PRAGMA journal_size_limit = 1048576; PRAGMA busy_timeout = 5000;",
            )?;
            conn.query_row("PRAGMA user_version", [], |row| row.get::<_, i64>(0))
        };
        match prepare().map_err(wrong)? {
            0 => conn
                .execute_batch(&format!("BEGIN; {SCHEMA} PRAGMA user_version = {FORMAT}; COMMIT;"))
                .map_err(wrong)?,
            1 => from_1(&conn).map_err(wrong)?,
            // Formats 3 and 4 have more tables, which are made below.
            2 | 3 | FORMAT => {}
            version => return Err(DbError::Foreign { path: path.to_owned(), version }),
        }
        conn.execute_batch(&format!(
            "BEGIN; {TABLES} {BOUNTY_TABLES} PRAGMA user_version = {FORMAT}; COMMIT;"
        ))
        .map_err(wrong)?;
        Ok(Self {
            conn: Mutex::new(conn),
            shelf: Mutex::default(),
            #[cfg(test)]
            fuse: crate::world::Fuse::default(),
        })
    }

    /// One more step after which the process may end.
    pub(super) fn step(&self) {
        #[cfg(test)]
        self.fuse.step();
    }

    pub(super) fn run(&self, sql: &str, params: impl rusqlite::Params) -> Result<usize, DbError> {
        lock(&self.conn).prepare_cached(sql).and_then(|mut sql| sql.execute(params)).map_err(wrong)
    }

    pub(super) fn list<T>(
        &self,
        sql: &str,
        params: impl rusqlite::Params,
        read: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>, DbError> {
        let conn = lock(&self.conn);
        let mut statement = conn.prepare_cached(sql).map_err(wrong)?;
        let rows = statement.query_map(params, read).map_err(wrong)?;
        rows.collect::<rusqlite::Result<Vec<T>>>().map_err(wrong)
    }

    // Peers.

    /// All peers, also removed ones whose chunks are still kept.
    pub fn peers(&self) -> Result<Vec<PeerRow>, DbError> {
        self.list(&format!("SELECT {PEER_COLUMNS} FROM peers ORDER BY added_at, id"), [], peer_row)
    }

    /// One of them.
    pub fn peer(&self, id: &CellId) -> Result<Option<PeerRow>, DbError> {
        let sql = format!("SELECT {PEER_COLUMNS} FROM peers WHERE id = ?1");
        lock(&self.conn).query_row(&sql, [id.0], peer_row).optional().map_err(wrong)
    }

    fn put_row(&self, peer: &PeerRow) -> Result<(), DbError> {
        self.run(
            &format!(
                "INSERT OR REPLACE INTO peers ({PEER_COLUMNS}) \
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)"
            ),
            params![
                peer.id.0,
                peer.x25519,
                peer.name,
                friendship_bytes(&peer.friendship),
                peer.is_favorite,
                peer.quota_bytes.map(|bytes| bytes as i64),
                peer.card,
                peer.recovery_secret.as_ref().map(|secret| secret.0),
                peer.added_at,
                peer.last_seen,
                peer.address,
                peer.removed_at.map(|at| at as i64),
            ],
        )
        .map(drop)
    }

    /// Keeps a peer, here and in the catalog: durable when this returns.
    pub fn save_peer(&self, vault: &Vault, peer: &PeerRow) -> Result<(), VaultError> {
        self.put_row(peer)?;
        let key = record_key(RecordKind::Peer, &peer.id.0);
        vault.db.change_durably(|t| -> Result<(), DbError> {
            if peer.removed_at.is_some() {
                return t.forget_record(&key);
            }
            let body = peer.to_record();
            if t.record(&key)?.as_ref() != Some(&body) {
                t.put_record(&key, &body)?;
            }
            Ok(())
        })?;
        Ok(())
    }

    /// Forgets a removed peer for good.
    pub fn forget_peer(&self, id: &CellId) -> Result<(), DbError> {
        self.run("DELETE FROM peers WHERE id = ?1", [id.0]).map(drop)
    }

    /// Notes when and where a peer answered; not in the catalog.
    pub fn note_seen(&self, id: &CellId, at: i64, address: Option<&str>) -> Result<(), DbError> {
        self.run(
            "UPDATE peers SET last_seen = ?2, address = coalesce(?3, address) WHERE id = ?1",
            params![id.0, at, address],
        )
        .map(drop)
    }

    /// Keeps what a peer will prove when it recovers.
    pub fn set_recovery_secret(&self, id: &CellId, secret: &Secret) -> Result<(), DbError> {
        self.run("UPDATE peers SET recovery_secret = ?2 WHERE id = ?1", params![id.0, secret.0]).map(drop)
    }

    // Invites.

    /// All invites, newest expiry first.
    pub fn invites(&self) -> Result<Vec<InviteRow>, DbError> {
        self.list(
            "SELECT id, secret, role, expires, state, used_by FROM invites ORDER BY expires DESC, id",
            [],
            invite_row,
        )
    }

    /// Keeps a new invite.
    pub fn add_invite(&self, invite: &InviteRow) -> Result<(), DbError> {
        self.run(
            "INSERT OR REPLACE INTO invites VALUES (?1, ?2, ?3, ?4, 0, NULL)",
            params![invite.id, invite.secret.0, role_byte(invite.role), invite.expires as i64],
        )?;
        self.run(
            "DELETE FROM invites WHERE state > 0 AND id IN
               (SELECT id FROM invites ORDER BY expires DESC LIMIT -1 OFFSET ?1)",
            [INVITES_MAX as i64],
        )
        .map(drop)
    }

    /// Marks an open invite as used; `false` if it no longer serves. Durable when this returns, in the catalog too.
    pub fn use_invite(&self, vault: &Vault, id: &[u8; 16], by: &CellId) -> Result<bool, VaultError> {
        let wall = vault.clock.wall();
        let used = self.run(
            "UPDATE invites SET state = 1, used_by = ?2 WHERE id = ?1 AND state = 0 AND expires >= ?3",
            params![id, by.0, wall],
        )?;
        if used == 0 {
            return Ok(false);
        }
        let mut body = Writer::new();
        body.u8(1).raw(&by.0).u64(wall.max(0) as u64);
        let key = record_key(RecordKind::UsedInvite, id);
        vault.db.change_durably(|t| t.put_record(&key, &body.finish()))?;
        Ok(true)
    }

    /// Takes an open invite back; `false` if there is no open one of this id.
    pub fn revoke_invite(&self, id: &[u8; 16]) -> Result<bool, DbError> {
        Ok(self.run("UPDATE invites SET state = 2 WHERE id = ?1 AND state = 0", [id])? > 0)
    }

    // The own card.

    /// This cell's card with these contents: the kept one, or a newer one where they have changed.
    pub fn own_card(&self, vault: &Vault, mut body: CardBody) -> Result<Card, VaultError> {
        let kept = lock(&self.conn)
            .query_row("SELECT value FROM meta WHERE key = 'card'", [], |row| row.get::<_, Vec<u8>>(0))
            .optional()
            .map_err(wrong)?
            .and_then(|bytes| Card::from_bytes(&bytes).ok());
        // After a recovery the old card's sequence is not known: Unix time is beyond it.
        body.sequence = vault.clock.wall().max(1) as u64;
        if let Some(kept) = kept {
            body.sequence = kept.sequence;
            if *kept == body {
                return Ok(kept);
            }
            body.sequence = kept.sequence.saturating_add(1).max(vault.clock.wall().max(1) as u64);
        }
        let card = Card::sign(&vault.identity, body)
            .map_err(|why| VaultError::Refused(format!("this cell's own card: {why}; see peer.addresses")))?;
        self.run("INSERT OR REPLACE INTO meta VALUES ('card', ?1)", [card.to_bytes()])?;
        Ok(card)
    }

    /// The number of this start for LAN beacons: higher than that of any start before, as far as the books or a clock know.
    pub fn next_run(&self, vault: &Vault) -> Result<u32, VaultError> {
        let kept = lock(&self.conn)
            .query_row("SELECT value FROM meta WHERE key = 'run'", [], |row| row.get::<_, u32>(0))
            .optional()
            .map_err(wrong)?;
        // Books that are new after a recovery know no earlier start: Unix time is beyond it.
        let run =
            u32::try_from(vault.clock.wall()).unwrap_or(0).max(kept.map_or(1, |run| run.saturating_add(1)));
        self.run("INSERT OR REPLACE INTO meta VALUES ('run', ?1)", [run])?;
        Ok(run)
    }

    // Recovery.

    /// Brings back peers and used invites from the catalog; what is here already stays. Gives the number of peers.
    pub fn restore(&self, vault: &Vault) -> Result<usize, VaultError> {
        let wall = vault.clock.wall();
        let (peers, invites) = vault.db.read(|t| -> Result<_, VaultError> {
            let bodies = |kind: RecordKind, max: usize| -> Result<Vec<KeyAndBody>, VaultError> {
                let mut found = Vec::new();
                for (seq, key) in t.records_with_prefix(&[kind as u8], max)? {
                    found.extend(t.record_at(seq)?.filter(|body| !body.is_empty()).map(|body| (key, body)));
                }
                Ok(found)
            };
            Ok((bodies(RecordKind::Peer, PEERS_MAX)?, bodies(RecordKind::UsedInvite, INVITES_MAX)?))
        })?;
        let mut count = 0;
        for (_, body) in peers {
            let peer = match PeerRow::from_record(&body, wall) {
                Ok(peer) if peer.id != vault.id() => peer,
                Ok(_) => continue,
                Err(why) => {
                    log::warn!("a peer cannot be brought back: {why}");
                    continue;
                }
            };
            count += 1;
            if self.peer(&peer.id)?.is_none_or(|known| known.removed_at.is_some()) {
                self.put_row(&peer)?;
            }
        }
        for (key, body) in invites {
            let (Ok(id), Some(by)) = (<[u8; 16]>::try_from(&key[1..]), body.get(1..33)) else { continue };
            self.run(
                "INSERT OR IGNORE INTO invites VALUES (?1, zeroblob(32), 0, 0, 1, ?2)",
                params![id, by],
            )?;
        }
        self.restore_shares(vault)?;
        self.restore_statements(vault, PEERS_MAX)?;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::MasterKey;

    #[test]
    fn peer_records_read_back_and_have_one_form() {
        let identity = MasterKey::from_bytes([5; 32]).identity(0, 0);
        let body = CardBody {
            id: identity.id(),
            x25519: *identity.x_public(),
            name: "attic".into(),
            addresses: vec!["10.0.0.1:5679".into()],
            relays: vec![],
            sequence: 3,
            successor: None,
            extensions: vec![],
        };
        let card = Card::sign(&identity, body).unwrap();
        let mut asked = Friendship::default();
        asked.decide(true, 1_800_000_000);
        for (quota_bytes, friendship) in
            [(None, Friendship::default()), (Some(0), Friendship::UNNUMBERED), (Some(u64::MAX), asked)]
        {
            let mut peer = PeerRow::new(&card, 77);
            (peer.quota_bytes, peer.is_favorite, peer.last_seen) = (quota_bytes, true, None);
            peer.friendship = friendship;
            let bytes = peer.to_record();
            assert_eq!(PeerRow::from_record(&bytes, 77), Ok(peer));
            for at in 0..bytes.len() {
                assert!(PeerRow::from_record(&bytes[..at], 77).is_err());
                let mut changed = bytes.clone();
                changed[at] ^= 0x40;
                if let Ok(peer) = PeerRow::from_record(&changed, 77) {
                    assert_eq!(peer.to_record(), changed);
                }
            }
        }
    }

    #[test]
    fn books_of_the_first_format_keep_their_peers_and_friends() {
        let dir =
            std::env::temp_dir().join(format!("grove-books-{}", crate::id::hex(&crate::keys::random::<8>())));
        std::fs::create_dir(&dir).unwrap();
        let path = dir.join("books.db");
        let old = Connection::open(&path).unwrap();
        old.execute_batch(
            "CREATE TABLE meta (key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
             CREATE TABLE peers (
                 id BLOB PRIMARY KEY, x25519 BLOB NOT NULL, name TEXT NOT NULL, role INTEGER NOT NULL,
                 favorite INTEGER NOT NULL, quota_bytes INTEGER, card BLOB NOT NULL, recovery_secret BLOB,
                 added_at INTEGER NOT NULL, last_seen INTEGER, address TEXT NOT NULL, removed_at INTEGER
             ) WITHOUT ROWID;
             CREATE TABLE invites (
                 id BLOB PRIMARY KEY, secret BLOB NOT NULL, role INTEGER NOT NULL, expires INTEGER NOT NULL,
                 state INTEGER NOT NULL, used_by BLOB
             ) WITHOUT ROWID;
             PRAGMA user_version = 1;",
        )
        .unwrap();
        for (n, role) in [(1u8, 0), (2, 1)] {
            old.execute(
                "INSERT INTO peers VALUES (?1, ?1, 'bob', ?2, 1, 7, x'00', NULL, ?3, NULL, 'a:1', NULL)",
                params![[n; 32], role, n],
            )
            .unwrap();
        }
        drop(old);
        for _ in 0..2 {
            let peers = Books::open(&path).unwrap().peers().unwrap();
            let roles: Vec<Role> = peers.iter().map(PeerRow::role).collect();
            assert_eq!(roles, [Role::Peer, Role::Friend]);
            assert_eq!((peers[1].friendship, peers[1].quota_bytes), (Friendship::UNNUMBERED, Some(7)));
            assert_eq!((peers[1].address.as_str(), peers[1].is_favorite), ("a:1", true));
        }
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn books_of_the_third_format_keep_their_peers_and_begin_to_count() {
        let dir =
            std::env::temp_dir().join(format!("grove-books-{}", crate::id::hex(&crate::keys::random::<8>())));
        std::fs::create_dir(&dir).unwrap();
        let path = dir.join("books.db");
        let old = Connection::open(&path).unwrap();
        old.execute_batch(&format!("{SCHEMA} {TABLES} PRAGMA user_version = 3;")).unwrap();
        old.execute(
            "INSERT INTO peers VALUES (?1, ?1, 'bob', 1, 7, x'00', NULL, 5, NULL, 'a:1', NULL, ?2)",
            params![[3u8; 32], friendship_bytes(&Friendship::UNNUMBERED)],
        )
        .unwrap();
        drop(old);
        for _ in 0..2 {
            let books = Books::open(&path).unwrap();
            assert_eq!(books.peers().unwrap()[0].name, "bob");
            assert!(books.bounty_books().unwrap().is_empty() && books.bounty_faults().unwrap().is_empty());
            let version: i64 =
                lock(&books.conn).query_row("PRAGMA user_version", [], |row| row.get(0)).unwrap();
            assert_eq!(version, FORMAT);
        }
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn a_label_stays_whatever_a_newer_card_says() {
        let identity = MasterKey::from_bytes([5; 32]).identity(0, 0);
        let card = |name: &str| {
            let body = CardBody {
                id: identity.id(),
                x25519: *identity.x_public(),
                name: name.into(),
                addresses: vec![],
                relays: vec![],
                sequence: 3,
                successor: None,
                extensions: vec![],
            };
            Card::sign(&identity, body).unwrap()
        };
        let mut peer = PeerRow::new(&card("attic"), 77);
        peer.take_card(&card("cellar"));
        assert_eq!((peer.name.as_str(), peer.is_labelled()), ("cellar", false));
        peer.name = "bob's".into();
        peer.take_card(&card("roof"));
        assert_eq!((peer.name.as_str(), peer.own_name().as_str()), ("bob's", "roof"));
        assert_eq!(PeerRow::new(&card("shed"), 78).again(&peer).name, "bob's");
    }
}

//! Answering peers: what is kept for each owner, scoped to the owner that has proved itself.
//!
//! `owners.log` says whose each held chunk is, in case placement.db is lost: entries of 72 bytes, owner (32), chunk name
//! (32), what happened u8 (0 held, 1 released), class u8 (0 chunk, 1 segment), 6 zero bytes. Of two entries for one
//! owner and name the later counts. It is written anew when it is over four times as long as what it says.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::digest::{self, Side};
use super::driver::Sync;
use super::{HeadFacts, heads_to_keep, tips};
use crate::buffers;
use crate::card::Card;
use crate::catalog::Head;
use crate::config::{PEER_CATALOG_BYTES_MAX, STRAY_SEGMENTS_S};
use crate::id::{CellId, ChunkName};
use crate::keys::random;
use crate::order;
use crate::placement::{
    CellNumber, ChunkId, DbError, HeldTotals, HoldClass, HoldState, Own, StoredHead, Tables,
};
use crate::pool::{Job, unblock};
use crate::sha256;
use crate::state_files::StateFiles;
use crate::store::{Staged, StoreError};
use crate::vault::{Vault, VaultError, lock, lost_segments_key};
use crate::wire::message::{
    self, AskError, Class, ErrorCode, Farewell, GetStatus, HeadOutcome, Hello, Holding,
    INVENTORY_ENTRIES_MAX, NAMES_MAX, PROTOCOL, PutStatus, Refusal, Reply, Request, Usage, VERSION_BYTES_MAX,
};
use crate::wire::session::{Session, Stream};
use crate::wire::within;

/// Chunks that one pool job reads or takes in, in bytes; one that is longer is read alone, and taken in as one of two.
pub(super) const GROUP_BYTES: usize = 1 << 20;
/// And their number.
pub(super) const GROUP_CHUNKS: usize = 64;
/// Whoever asks for the sums of all is told to ask again if they take longer: well below what a stream waits for a byte.
const DIGEST_TIME: Duration = Duration::from_secs(8);
/// For so long sums count as what is held now.
const DIGEST_AGE_MAX: Duration = Duration::from_secs(1800);
/// Staged small chunks wait in memory up to this.
const SMALL_BYTES_MAX: usize = 4 << 20;

/// Its name.
pub const OWNERS_LOG: &str = "owners.log";
const HEADS_FOLDER: &str = "heads";
const ENTRY_BYTES: usize = 72;
const LOG_ENTRIES_MIN: u64 = 4096;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Op {
    Held = 0,
    Released = 1,
}

/// Whose each held chunk is.
struct OwnersLog {
    files: Arc<dyn StateFiles>,
    entries: u64,
}

impl OwnersLog {
    fn open(files: Arc<dyn StateFiles>) -> io::Result<Self> {
        let len = files.len(OWNERS_LOG)?.unwrap_or(0);
        let entries = len / ENTRY_BYTES as u64;
        if len % ENTRY_BYTES as u64 != 0 {
            // The last write was cut short by a power cut; nothing relied on it yet.
            files.truncate(OWNERS_LOG, entries * ENTRY_BYTES as u64)?;
        }
        Ok(Self { files, entries })
    }

    fn append(&mut self, owner: &CellId, op: Op, names: &[(ChunkName, HoldClass)]) -> io::Result<()> {
        if names.is_empty() {
            return Ok(());
        }
        let mut bytes = Vec::with_capacity(names.len() * ENTRY_BYTES);
        names.iter().for_each(|(name, class)| entry(&mut bytes, owner, name, op, *class));
        let before = self.entries * ENTRY_BYTES as u64;
        let written = self.files.append_synced(OWNERS_LOG, &bytes);
        if written.is_err() {
            // Half an entry must not shift those that follow.
            let _ = self.files.truncate(OWNERS_LOG, before);
            return written;
        }
        self.entries += names.len() as u64;
        Ok(())
    }

    fn rewrite(&mut self, vault: &Vault) -> Result<(), VaultError> {
        let mut after = (ChunkId(0), CellNumber(0));
        let mut entries = 0;
        let mut pieces = |piece: &mut Vec<u8>| {
            let page = vault.db.read(|t| t.claims_after(after, 2000)).map_err(io::Error::other)?;
            let Some(last) = page.last() else { return Ok(false) };
            after = (last.0, last.1);
            entries += page.len() as u64;
            page.iter().for_each(|(_, _, name, owner, class)| entry(piece, owner, name, Op::Held, *class));
            Ok(true)
        };
        self.files
            .write_pieces(OWNERS_LOG, &mut pieces)
            .map_err(VaultError::io("cannot write owners.log"))?;
        self.entries = entries;
        Ok(())
    }
}

fn entry(to: &mut Vec<u8>, owner: &CellId, name: &ChunkName, op: Op, class: HoldClass) {
    to.extend_from_slice(&owner.0);
    to.extend_from_slice(&name.0);
    to.extend_from_slice(&[op as u8, class as u8, 0, 0, 0, 0, 0, 0]);
}

#[derive(Debug, Clone, Copy, Default)]
struct Account {
    totals: HeldTotals,
    /// `Vault::losses` when they were counted.
    losses: u64,
    /// On their way in.
    reserved: u64,
    reserved_segments: u64,
}

/// What one chunk that came in turned out to be.
enum Taken {
    Staged(Staged),
    Status(PutStatus),
    /// A chunk of this cell's own: whoever brings it has it from here, or from a holder of ours.
    Reflected,
}

/// Keeps what is kept for others. Everything here blocks, and runs on the pool.
pub(super) struct Keeper {
    vault: Arc<Vault>,
    log: Mutex<OwnersLog>,
    accounts: Mutex<HashMap<CellId, Account>>,
    epoch: u64,
}

/// Room for a chunk that is on its way in.
struct Reservation {
    keeper: Arc<Keeper>,
    owner: CellId,
    class: HoldClass,
    bytes: u64,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if let Some(account) = lock(&self.keeper.accounts).get_mut(&self.owner) {
            let reserved = match self.class {
                HoldClass::Chunk => &mut account.reserved,
                HoldClass::Segment => &mut account.reserved_segments,
            };
            // The owner may have been parted with, and come back, since.
            *reserved = reserved.saturating_sub(self.bytes);
        }
    }
}

impl Keeper {
    pub(super) fn vault(&self) -> &Vault {
        &self.vault
    }

    pub(super) fn open(vault: Arc<Vault>) -> Result<Self, VaultError> {
        let log =
            OwnersLog::open(Arc::clone(&vault.files)).map_err(VaultError::io("cannot open owners.log"))?;
        let epoch = match vault.db.read(|t| t.meta_u64("epoch"))? {
            Some(epoch) => epoch,
            None => {
                // 0 means: nothing known yet.
                let epoch = u64::from_le_bytes(random()) | 1;
                vault.db.change_durably(|t| t.set_meta_u64("epoch", epoch))?;
                epoch
            }
        };
        Ok(Self { vault, log: Mutex::new(log), accounts: Mutex::default(), epoch })
    }

    fn account(&self, owner: &CellId) -> Result<Account, VaultError> {
        let is_counted = |account: &Account| account.losses == self.vault.losses();
        if let Some(account) = lock(&self.accounts).get(owner).copied().filter(is_counted) {
            return Ok(account);
        }
        // Placing is what changes claims, so they stand still while they are counted.
        let _placing = self.vault.placing();
        let losses = self.vault.losses();
        let totals = self.vault.db.change(|t| {
            let cell = t.cell(owner)?;
            t.held_totals(cell)
        })?;
        let mut accounts = lock(&self.accounts);
        let account = accounts.entry(*owner).or_default();
        // What is on its way in stays as it is.
        (account.totals, account.losses) = (totals, losses);
        Ok(*account)
    }

    fn adjust(&self, owner: &CellId, change: impl FnOnce(&mut HeldTotals)) {
        if let Some(account) = lock(&self.accounts).get_mut(owner) {
            change(&mut account.totals);
        }
    }

    /// What is kept for an owner.
    pub(super) fn totals(&self, owner: &CellId) -> Result<HeldTotals, VaultError> {
        Ok(self.account(owner)?.totals)
    }

    fn usage(&self, owner: &CellId, quota: u64) -> Result<Usage, VaultError> {
        let used = self.account(owner)?.totals.bytes;
        // Where the disk is away nothing is taken; what is kept there is not lost, and all else is answered.
        let free = self.vault.space().map_or(0, |space| space.free.saturating_sub(space.reserve));
        Ok(Usage { used, quota, free })
    }

    /// Room for `len` bytes, or the reason why there is none.
    fn reserve(
        self: &Arc<Self>,
        owner: &CellId,
        class: HoldClass,
        len: u32,
        quota: u64,
    ) -> Result<Reservation, PutStatus> {
        let bytes = u64::from(len);
        let mut accounts = lock(&self.accounts);
        let account = accounts.get_mut(owner).ok_or(PutStatus::Refused)?;
        match class {
            HoldClass::Chunk => {
                if quota > 0 && account.totals.bytes + account.reserved + bytes > quota {
                    return Err(PutStatus::OverQuota);
                }
                account.reserved += bytes;
            }
            HoldClass::Segment => {
                if account.totals.segment_bytes + account.reserved_segments + bytes > PEER_CATALOG_BYTES_MAX {
                    return Err(PutStatus::OverQuota);
                }
                account.reserved_segments += bytes;
            }
        }
        Ok(Reservation { keeper: Arc::clone(self), owner: *owner, class, bytes })
    }

    pub(super) fn hello(&self, owner: &CellId, quota: u64) -> Result<Hello, VaultError> {
        let usage = self.usage(owner, quota)?;
        let (tips, holdings_seq) = self.vault.db.change(|t| -> Result<_, DbError> {
            let cell = t.cell(owner)?;
            // A head of which a part was lost is not said to be held: its owner gives what is missing then.
            let is_whole = t.meta_u64(&lost_segments_key(cell.0))?.is_none_or(|lost| lost == 0);
            let heads = if is_whole { t.peer_heads(cell)? } else { Vec::new() };
            let tips = heads.iter().filter(|head| head.tip).map(|head| head.hash).collect::<Vec<_>>();
            Ok((tips, t.holds_seq(cell)?))
        })?;
        let mut version = env!("CARGO_PKG_VERSION").to_owned();
        version.truncate(VERSION_BYTES_MAX);
        Ok(Hello {
            protocol: PROTOCOL,
            epoch: self.epoch,
            tips: tips.into_iter().take(message::CATALOG_HEADS_MAX).collect(),
            holdings_seq,
            usage,
            unix_time: self.vault.clock.wall().max(0) as u64,
            card: Vec::new(),
            version,
        })
    }

    fn have(&self, owner: &CellId, names: &[ChunkName]) -> Result<Vec<bool>, VaultError> {
        self.vault.db.change(|t| {
            let cell = t.cell(owner)?;
            names.iter().map(|name| Ok(held(t, cell, name)?.is_some())).collect()
        })
    }

    /// The next chunks of `names` that make one group.
    fn read(&self, owner: &CellId, names: &[ChunkName]) -> Result<Vec<(GetStatus, Vec<u8>)>, VaultError> {
        let mut group = Vec::new();
        let mut total = 0;
        for name in names.iter().take(GROUP_CHUNKS) {
            let found = self.vault.db.change(|t| -> Result<_, DbError> {
                let cell = t.cell(owner)?;
                // What is in the trash is still here, and a recovering owner may want it.
                let Some(row) = t.chunk(name)?.filter(|row| row.place.is_some()) else { return Ok(None) };
                let state = t.hold(row.id, cell)?.map(|(_, state)| state);
                // Our own chunks are nobody else's, whatever was noted before we knew them: a peer that was asked for
                // proofs could have its bytes from us.
                let is_foreign = t.own(row.id)? == Own::No;
                let is_held = matches!(state, Some(HoldState::Held | HoldState::Trash));
                Ok((is_foreign && is_held).then_some(row.len))
            })?;
            let Some(len) = found else {
                group.push((GetStatus::Missing, Vec::new()));
                continue;
            };
            if total > 0 && total + len as usize > GROUP_BYTES {
                break;
            }
            match self.vault.local_chunk(name)? {
                Some(bytes) => {
                    total += bytes.len();
                    group.push((GetStatus::Found, bytes));
                }
                None => group.push((GetStatus::Damaged, Vec::new())),
            }
        }
        Ok(group)
    }

    /// Looks at chunks that came in.
    fn take(&self, class: HoldClass, group: Vec<(usize, ChunkName, Vec<u8>)>) -> Vec<(usize, Taken)> {
        let hashes = sha256::each(&group.iter().map(|(_, _, bytes)| bytes.as_slice()).collect::<Vec<_>>());
        let take = |((at, name, bytes), hash): ((usize, ChunkName, Vec<u8>), [u8; 32])| {
            if hash != name.0 {
                return (at, Taken::Status(PutStatus::WrongBytes));
            }
            // Said only to those who have the bytes: names alone tell nothing.
            match self.is_own(&name) {
                Ok(false) => {}
                Ok(true) => return (at, Taken::Reflected),
                Err(why) => {
                    log::warn!("{why}");
                    return (at, Taken::Status(PutStatus::Refused));
                }
            }
            let staged = match class {
                HoldClass::Chunk => self.vault.store.stage(name, &bytes),
                HoldClass::Segment => self.vault.store.stage_urgent(name, &bytes),
            };
            buffers::give(bytes);
            (at, staged.map_or_else(|why| Taken::Status(status_of(&why)), Taken::Staged))
        };
        group.into_iter().zip(hashes).map(take).collect()
    }

    /// Whether a chunk is this cell's own: nobody else can make one of its name.
    fn is_own(&self, name: &ChunkName) -> Result<bool, DbError> {
        self.vault.db.read(|t| match t.chunk(name)? {
            Some(row) => Ok(t.own(row.id)? != Own::No),
            None => Ok(false),
        })
    }

    /// Makes what was taken in durable, and says what became of each.
    fn commit(
        &self,
        owner: &CellId,
        class: HoldClass,
        staged: Vec<(usize, Staged)>,
    ) -> Vec<(usize, PutStatus)> {
        let places: Vec<usize> = staged.iter().map(|(at, _)| *at).collect();
        match self.try_commit(owner, class, staged) {
            Ok(done) => done,
            Err(why) => {
                log::warn!("chunks of {} cannot be kept: {why}", owner.short());
                let status = if why.is_full() { PutStatus::DiskFull } else { PutStatus::Refused };
                places.into_iter().map(|at| (at, status)).collect()
            }
        }
    }

    fn try_commit(
        &self,
        owner: &CellId,
        class: HoldClass,
        staged: Vec<(usize, Staged)>,
    ) -> Result<Vec<(usize, PutStatus)>, VaultError> {
        let vault = &*self.vault;
        let _placing = vault.placing();
        let mut seen = HashSet::new();
        // (entry, name, length, where it lies already)
        let mut known = Vec::with_capacity(staged.len());
        let mut fresh = Vec::new();
        vault.db.read(|t| -> Result<(), DbError> {
            for (at, staged) in staged {
                let (name, len) = (staged.name(), staged.sealed_len());
                let place = t.chunk(&name)?.and_then(|row| row.place);
                known.push((at, name, len));
                if place.is_none() && seen.insert(name) {
                    fresh.push(staged);
                }
            }
            Ok(())
        })?;
        let new: Vec<(ChunkName, u32)> = fresh.iter().map(|s| (s.name(), s.sealed_len())).collect();
        let places = vault.store.commit(fresh)?;
        let logged: Vec<(ChunkName, HoldClass)> = known.iter().map(|(_, name, _)| (*name, class)).collect();
        {
            let mut log = lock(&self.log);
            log.append(owner, Op::Held, &logged).map_err(VaultError::io("cannot write owners.log"))?;
        }
        let (done, gained, segments_gained, chunks_gained) =
            vault.db.change_durably(|t| -> Result<_, VaultError> {
                let cell = t.cell(owner)?;
                for ((name, len), place) in new.iter().zip(&places) {
                    let id = t.put_chunk(name, *len, place, Own::No)?;
                    vault.mark(&[id]);
                }
                let now = vault.now();
                let mut done = Vec::with_capacity(known.len());
                let (mut bytes, mut segment_bytes, mut chunks) = (0i64, 0i64, 0i64);
                for (at, name, len) in &known {
                    let row = t.chunk(name)?.ok_or(DbError::Row("chunk"))?;
                    vault.mark(&[row.id]);
                    let before = t.hold(row.id, cell)?.filter(|(_, state)| *state == HoldState::Held);
                    // What was held and had been lost from the disk is told as held again.
                    if before.map(|(class, _)| class) == Some(class) && !seen.contains(name) {
                        done.push((*at, PutStatus::Already));
                        continue;
                    }
                    let mut count = |class: HoldClass, sign: i64| match class {
                        HoldClass::Chunk => (bytes, chunks) = (bytes + sign * i64::from(*len), chunks + sign),
                        HoldClass::Segment => segment_bytes += sign * i64::from(*len),
                    };
                    if let Some((class, _)) = before {
                        count(class, -1);
                    }
                    count(class, 1);
                    t.put_hold(row.id, cell, class, HoldState::Held, now)?;
                    done.push((*at, PutStatus::Stored));
                }
                Ok((done, bytes, segment_bytes, chunks))
            })?;
        self.adjust(owner, |totals| {
            totals.bytes = totals.bytes.saturating_add_signed(gained);
            totals.segment_bytes = totals.segment_bytes.saturating_add_signed(segments_gained);
            totals.chunks = totals.chunks.saturating_add_signed(chunks_gained);
        });
        self.tidy_log()?;
        Ok(done)
    }

    fn tidy_log(&self) -> Result<(), VaultError> {
        let mut log = lock(&self.log);
        if log.entries < LOG_ENTRIES_MIN {
            return Ok(());
        }
        let live = self.vault.db.read(|t| t.claim_count())?;
        if log.entries > 4 * live + LOG_ENTRIES_MIN { log.rewrite(&self.vault) } else { Ok(()) }
    }

    fn release(&self, owner: &CellId, names: &[ChunkName]) -> Result<u32, VaultError> {
        let _placing = self.vault.placing();
        let now = self.vault.now();
        let released = self.vault.db.change_durably(|t| -> Result<_, DbError> {
            let cell = t.cell(owner)?;
            let mut released = Vec::new();
            for name in names {
                if let Some((id, class, len)) = held(t, cell, name)? {
                    t.put_hold(id, cell, class, HoldState::Trash, now)?;
                    released.push((*name, class, len));
                }
            }
            Ok(released)
        })?;
        self.adjust(owner, |totals| {
            for (_, class, len) in &released {
                subtract(totals, *class, *len);
            }
        });
        let logged: Vec<_> = released.iter().map(|(name, class, _)| (*name, *class)).collect();
        let mut log = lock(&self.log);
        log.append(owner, Op::Released, &logged).map_err(VaultError::io("cannot write owners.log"))?;
        Ok(released.len() as u32)
    }

    /// Takes out of the trash what there is room for: otherwise whoever puts, releases and puts again would end up with as
    /// much as it likes.
    fn restore(
        self: &Arc<Self>,
        owner: &CellId,
        names: &[ChunkName],
        quota: u64,
    ) -> Result<Vec<bool>, VaultError> {
        self.account(owner)?;
        let _placing = self.vault.placing();
        // Mostly nothing of it is in the trash, and then nothing is to be written.
        let states = self.vault.db.change(|t| -> Result<Vec<_>, DbError> {
            let cell = t.cell(owner)?;
            let state = |name: &ChunkName| match t.chunk(name)?.filter(|row| row.place.is_some()) {
                Some(row) => Ok(t.hold(row.id, cell)?.map(|(_, state)| state)),
                None => Ok(None),
            };
            names.iter().map(state).collect()
        })?;
        if !states.contains(&Some(HoldState::Trash)) {
            return Ok(states.into_iter().map(|state| state == Some(HoldState::Held)).collect());
        }
        let now = self.vault.now();
        let (flags, restored, reserved) = self.vault.db.change_durably(|t| -> Result<_, DbError> {
            let cell = t.cell(owner)?;
            let (mut flags, mut restored, mut reserved) = (Vec::new(), Vec::new(), Vec::new());
            for name in names {
                let row = t.chunk(name)?.filter(|row| row.place.is_some());
                let hold = match &row {
                    Some(row) => t.hold(row.id, cell)?,
                    None => None,
                };
                let mut is_held = matches!(hold, Some((_, HoldState::Held)));
                if let (Some(row), Some((class, HoldState::Trash))) = (row, hold) {
                    if let Ok(room) = self.reserve(owner, class, row.len, quota) {
                        t.put_hold(row.id, cell, class, HoldState::Held, now)?;
                        self.vault.mark(&[row.id]);
                        restored.push((*name, class, row.len));
                        reserved.push(room);
                        is_held = true;
                    }
                }
                flags.push(is_held);
            }
            Ok((flags, restored, reserved))
        })?;
        self.adjust(owner, |totals| {
            for (_, class, len) in &restored {
                match class {
                    HoldClass::Chunk => {
                        totals.bytes += u64::from(*len);
                        totals.chunks += 1;
                    }
                    HoldClass::Segment => totals.segment_bytes += u64::from(*len),
                }
            }
        });
        drop(reserved);
        let logged: Vec<_> = restored.iter().map(|(name, class, _)| (*name, *class)).collect();
        let mut log = lock(&self.log);
        log.append(owner, Op::Held, &logged).map_err(VaultError::io("cannot write owners.log"))?;
        Ok(flags)
    }

    fn inventory(&self, owner: &CellId, epoch: u64, since: u64, limit: u32) -> Result<Reply, VaultError> {
        let since = if epoch == self.epoch { since.min(i64::MAX as u64) } else { 0 };
        let limit = (limit as usize).clamp(1, INVENTORY_ENTRIES_MAX);
        let rows = self.vault.db.change(|t| {
            let cell = t.cell(owner)?;
            t.inventory(cell, since, limit + 1)
        })?;
        let more = rows.len() > limit;
        let entry = |row: crate::placement::InventoryRow| Holding {
            seq: row.seq,
            name: row.name,
            len: row.len,
            is_held: row.held,
        };
        Ok(Reply::Inventory {
            epoch: self.epoch,
            entries: rows.into_iter().take(limit).map(entry).collect(),
            more,
        })
    }

    fn digest(&self, owner: &CellId, first: Option<u8>) -> Result<Reply, VaultError> {
        let (cell, seq) = self.inventory_state(owner)?;
        let sums = digest::sums(&self.vault, Side::Held(cell), first)?;
        Ok(Reply::Digest { epoch: self.epoch, seq, sums })
    }

    fn bucket(&self, owner: &CellId, bucket: u16) -> Result<Reply, VaultError> {
        let (cell, seq) = self.inventory_state(owner)?;
        let entries = digest::bucket(&self.vault, Side::Held(cell), bucket)?;
        Ok(Reply::Bucket { epoch: self.epoch, seq, entries })
    }

    fn inventory_state(&self, owner: &CellId) -> Result<(CellNumber, u64), VaultError> {
        self.vault.db.change(|t| {
            let cell = t.cell(owner)?;
            Ok((cell, t.holds_seq(cell)?))
        })
    }

    fn heads(&self, owner: &CellId) -> Result<Vec<Vec<u8>>, VaultError> {
        let heads = self.vault.db.change(|t| {
            let cell = t.cell(owner)?;
            t.peer_heads(cell)
        })?;
        let mut total = 0;
        let fits = |head: &StoredHead| {
            total += head.body.len();
            total <= message::CATALOG_HEADS_BYTES_MAX
        };
        Ok(heads
            .into_iter()
            .take(message::CATALOG_HEADS_MAX)
            .filter(|head| head.body.len() <= message::CATALOG_HEAD_BYTES_MAX)
            .take_while(fits)
            .map(|head| head.body)
            .collect())
    }

    fn put_head(&self, owner: &CellId, bytes: Vec<u8>) -> Result<HeadOutcome, VaultError> {
        let (hash, head) = match Head::open(&bytes) {
            Ok((_, head)) if head.owner != *owner => {
                return Ok(HeadOutcome::Refused("the head is another cell's".into()));
            }
            Ok(opened) => opened,
            Err(why) => return Ok(HeadOutcome::Refused(why.to_string())),
        };
        let _placing = self.vault.placing();
        let (now, expiry_now) = (self.vault.now(), self.vault.expiry_now());
        let (outcome, gone) = self.vault.db.change_durably(|t| -> Result<_, VaultError> {
            let cell = t.cell(owner)?;
            let mut missing = Vec::new();
            for (name, _) in &head.segments {
                if missing.len() < NAMES_MAX && held(t, cell, name)?.is_none() {
                    missing.push(*name);
                }
            }
            if !missing.is_empty() {
                return Ok((HeadOutcome::Missing(missing), Vec::new()));
            }
            let mut stored = t.peer_heads(cell)?;
            if !stored.iter().any(|known| known.hash == hash) {
                stored.push(StoredHead {
                    hash,
                    life: head.life,
                    seq: head.seq,
                    tip: true,
                    at: now,
                    body: bytes,
                });
            }
            // All its segments are here, so nothing that counts is lacking.
            if t.meta_u64(&lost_segments_key(cell.0))?.is_some() {
                t.set_meta_u64(&lost_segments_key(cell.0), 0)?;
            }
            Ok((HeadOutcome::Stored, keep_heads(t, cell, stored, expiry_now)?))
        })?;
        if matches!(outcome, HeadOutcome::Stored) {
            mirror_heads(&self.vault, owner)?;
        }
        self.adjust(owner, |totals| {
            for len in gone {
                subtract(totals, HoldClass::Segment, len);
            }
        });
        Ok(outcome)
    }

    /// Chunks of an owner that was removed long ago go to the trash.
    pub(super) fn give_up(&self, owner: &CellId) -> Result<(), VaultError> {
        loop {
            let _placing = self.vault.placing();
            let now = self.vault.now();
            let count = self.vault.db.change(|t| -> Result<usize, DbError> {
                let cell = t.cell(owner)?;
                let page = t.held_for(cell, 1000)?;
                for (chunk, class) in &page {
                    t.put_hold(*chunk, cell, *class, HoldState::Trash, now)?;
                }
                for head in if page.is_empty() { t.peer_heads(cell)? } else { Vec::new() } {
                    t.drop_peer_head(&head.hash)?;
                }
                Ok(page.len())
            })?;
            if count == 0 {
                lock(&self.accounts).remove(owner);
                // None is left of them in the database, so their files go.
                return mirror_heads(&self.vault, owner);
            }
        }
    }
}

/// Puts an owner's heads into `heads/` too: they must outlive placement.db, or the owner could not come back.
fn mirror_heads(vault: &Vault, owner: &CellId) -> Result<(), VaultError> {
    let failed = || VaultError::io("cannot keep a peer's catalog head");
    let stored = vault.db.change(|t| -> Result<_, DbError> {
        let cell = t.cell(owner)?;
        t.peer_heads(cell)
    })?;
    // The whole id: a short one could be chosen to match another owner's, and its heads would go as this one's.
    let prefix = owner.to_string();
    let there: HashSet<String> = vault.files.list(HEADS_FOLDER).map_err(failed())?.into_iter().collect();
    let mut kept = HashSet::new();
    for head in stored {
        let name = format!("{prefix}-{}", head.hash);
        if !there.contains(&name) {
            vault.files.write_whole(&format!("{HEADS_FOLDER}/{name}"), &head.body).map_err(failed())?;
        }
        kept.insert(name);
    }
    let mut gone: Vec<&String> =
        there.iter().filter(|name| name.starts_with(&prefix) && !kept.contains(*name)).collect();
    order::sort(&mut gone);
    for name in gone {
        let _ = vault.files.remove(&format!("{HEADS_FOLDER}/{name}"));
    }
    Ok(())
}

/// Takes the heads of peers from `heads/` into a placement.db that is made anew.
pub fn adopt_heads(vault: &Vault) -> Result<(), VaultError> {
    let now = vault.now();
    let mut of_owner: BTreeMap<CellId, Vec<StoredHead>> = BTreeMap::new();
    for name in vault.files.list(HEADS_FOLDER).unwrap_or_default() {
        let Ok(Some(body)) = vault.files.read(&format!("{HEADS_FOLDER}/{name}")) else { continue };
        let Ok((hash, head)) = Head::open(&body) else {
            log::warn!("heads/{name} is no catalog head and not used");
            continue;
        };
        let stored = StoredHead { hash, life: head.life, seq: head.seq, tip: true, at: now, body };
        of_owner.entry(head.owner).or_default().push(stored);
    }
    for (owner, mut adopted) in of_owner {
        vault.db.change(|t| -> Result<(), VaultError> {
            let cell = t.cell(&owner)?;
            days_apart(&mut adopted, now);
            adopted.extend(t.peer_heads(cell)?);
            keep_heads(t, cell, adopted, now).map(drop)
        })?;
    }
    Ok(())
}

/// Heads whose time is not known any more were kept because each was the first of its day: they go on as such, the oldest as
/// of today, so that it is the first to make room.
fn days_apart(heads: &mut [StoredHead], now: u64) {
    order::sort_by_key(heads, |head| (head.life, head.seq));
    for (day, head) in heads.iter_mut().enumerate() {
        head.at = now + day as u64 * super::DAY_S;
    }
}

/// Keeps the heads that should be kept; gives the lengths of segments that are let go with the others.
fn keep_heads(
    t: &Tables<'_>,
    cell: CellNumber,
    stored: Vec<StoredHead>,
    now: u64,
) -> Result<Vec<u32>, VaultError> {
    let mut facts = Vec::with_capacity(stored.len());
    let mut segments = HashMap::new();
    for head in &stored {
        let (hash, opened) = Head::open(&head.body)?;
        facts.push(HeadFacts::new(hash, &opened, head.at, head.body.len()));
        segments.insert(hash, opened.segments);
    }
    let (tips, kept) = (tips(&facts), heads_to_keep(&facts, now));
    for mut head in stored {
        if !kept.contains(&head.hash) {
            t.drop_peer_head(&head.hash)?;
            continue;
        }
        head.tip = tips.contains(&head.hash);
        t.put_peer_head(cell, &head)?;
    }
    let named: HashSet<ChunkName> = kept
        .iter()
        .filter_map(|hash| segments.get(hash))
        .flat_map(|segments| segments.iter().map(|(name, _)| *name))
        .collect();
    let mut gone = Vec::new();
    for (chunk, name) in t.held_segments(cell, now.saturating_sub(STRAY_SEGMENTS_S))? {
        if !named.contains(&name) {
            gone.extend(t.chunk_by_id(chunk)?.map(|row| row.len));
            t.put_hold(chunk, cell, HoldClass::Segment, HoldState::Gone, now)?;
        }
    }
    Ok(gone)
}

fn subtract(totals: &mut HeldTotals, class: HoldClass, len: u32) {
    match class {
        HoldClass::Chunk => {
            totals.bytes = totals.bytes.saturating_sub(len.into());
            totals.chunks = totals.chunks.saturating_sub(1);
        }
        HoldClass::Segment => totals.segment_bytes = totals.segment_bytes.saturating_sub(len.into()),
    }
}

/// How a chunk is held for an owner, if it is and lies here.
fn held(
    t: &Tables<'_>,
    cell: CellNumber,
    name: &ChunkName,
) -> Result<Option<(ChunkId, HoldClass, u32)>, DbError> {
    let Some(row) = t.chunk(name)?.filter(|row| row.place.is_some()) else { return Ok(None) };
    Ok(match t.hold(row.id, cell)? {
        Some((class, HoldState::Held)) => Some((row.id, class, row.len)),
        _ => None,
    })
}

fn status_of(why: &StoreError) -> PutStatus {
    if matches!(why, StoreError::Full { .. }) {
        return PutStatus::DiskFull;
    }
    log::warn!("{why}");
    PutStatus::Refused
}

/// Whom a session speaks for, and what it may do.
#[derive(Debug, Clone, Copy)]
pub(super) struct Caller {
    pub(super) owner: CellId,
    /// Reads what is kept for `owner`, and nothing else.
    pub(super) is_recovering: bool,
    /// Has shown nothing but that it knows this cell's key: reads by tickets, and nothing else.
    pub(super) is_bearer: bool,
    /// Where it is seen, unless it comes through a relay or recovers.
    pub(super) ip: Option<IpAddr>,
}

/// Answers all requests of a session until it ends.
pub(super) async fn serve(sync: Rc<Sync>, session: Session, caller: Caller) {
    while let Some(mut stream) = session.accept().await {
        let sync_inner = Rc::clone(&sync);
        let session = session.clone();
        let work = async move {
            if let Err(why) = answer(&sync_inner, &session, caller, &mut stream).await {
                match why {
                    AskError::Session(_) | AskError::Stream(_) => {
                        log::debug!("{}: {why}", caller.owner.short())
                    }
                    _ => sync_inner.refusals.note(format_args!("{}: {why}", caller.owner.short())),
                }
            }
        };
        sync.spawn(work).detach();
    }
}

pub(super) type Answered = Result<(), AskError>;

pub(super) async fn reply(stream: &mut Stream, reply: &Reply) -> Answered {
    message::write_reply(stream, reply).await?;
    Ok(message::finish(stream).await?)
}

pub(super) fn failed(why: &VaultError) -> Reply {
    log::warn!("a peer's request failed: {why}");
    Reply::Error(Refusal::new(ErrorCode::Failed, "something failed at this cell", "try again later"))
}

/// The digest of all that is held for an owner. Where that takes long it goes on by itself, and is here when it is asked for
/// again; `None`: it is not done yet.
async fn digest_of_all(sync: &Rc<Sync>, owner: CellId) -> Option<Result<Reply, VaultError>> {
    let keeper = Arc::clone(&sync.keeper);
    let state = unblock(move || keeper.inventory_state(&owner)).await;
    let newest = match state {
        Ok((_, newest)) => newest,
        Err(why) => return Some(Err(why)),
    };
    let known = sync.digests.borrow().get(&owner).cloned();
    match known {
        Some(None) => return None,
        Some(Some((at, known))) => {
            // Not for long: rows are what is to be compared, not what they once were.
            let is_fresh = sync.vault.clock.steady().saturating_sub(at) < DIGEST_AGE_MAX;
            if is_fresh && matches!(known, Reply::Digest { seq, .. } if seq == newest) {
                return Some(Ok(known));
            }
        }
        _ => {}
    }
    sync.digests.borrow_mut().insert(owner, None);
    let (tell, told) = smol::channel::bounded(1);
    let (keeper, to) = (Arc::clone(&sync.keeper), Rc::clone(sync));
    let work = async move {
        let summed = unblock(move || keeper.digest(&owner, None)).await;
        match &summed {
            Ok(summed) => {
                let now = to.vault.clock.steady();
                to.digests.borrow_mut().insert(owner, Some((now, summed.clone())));
            }
            Err(_) => drop(to.digests.borrow_mut().remove(&owner)),
        }
        let _ = tell.try_send(summed);
    };
    sync.spawn(work).detach();
    within(DIGEST_TIME, told.recv()).await?.ok()
}

fn may_sum(sync: &Sync, owner: &CellId, request: &Request) -> bool {
    let parts = if matches!(request, Request::Digest { first: None }) { 256 } else { 1 };
    sync.link(owner).is_some_and(|link| link.may_sum(parts, sync.vault.clock.steady()))
}

fn may_card(sync: &Sync, owner: &CellId) -> bool {
    sync.link(owner).is_some_and(|link| link.may_card(sync.vault.clock.steady()))
}

/// The body of the request is not read: whoever has so many under way waits for none of their answers.
pub(super) fn too_much_at_once() -> Reply {
    Reply::Error(Refusal::new(ErrorCode::Busy, "too much is sent at once", "try again later"))
}

async fn answer(sync: &Rc<Sync>, session: &Session, caller: Caller, stream: &mut Stream) -> Answered {
    let request = match message::read_request(stream).await {
        Ok(request) => request,
        Err(why) => {
            if let Some(refusal) = message::refuse(&why) {
                reply(stream, &refusal).await?;
            }
            return Err(why);
        }
    };
    let owner = caller.owner;
    let may = match &request {
        Request::GetByTicket { .. } => !caller.is_recovering,
        Request::Ping => true,
        _ if caller.is_bearer => false,
        Request::Heads | Request::Get { .. } | Request::Have { .. } | Request::Inventory { .. } => true,
        _ => !caller.is_recovering && sync.gate.peer(&owner).is_some(),
    };
    if !may {
        sync.refusals.note(format_args!("{}: a request that it may not make", owner.short()));
        let text = "only reading is allowed in this session";
        return reply(stream, &Reply::Error(Refusal::new(ErrorCode::NotAllowed, text, ""))).await;
    }
    let keeper = Arc::clone(&sync.keeper);
    let quota = sync.quota(&owner);
    let answered = match request {
        Request::Get { names } => return answer_get(sync, owner, names, stream).await,
        Request::Audit { nonce, asks } => {
            return super::prove::answer_audit(sync, owner, nonce, asks, stream).await;
        }
        Request::Put { class, entries } => return answer_put(sync, owner, class, entries, stream).await,
        Request::Heads => return answer_heads(keeper, owner, stream).await,
        Request::PutHead { len } => {
            let Some(_place) = sync.link(&owner).and_then(|link| link.body()) else {
                return reply(stream, &too_much_at_once()).await;
            };
            let mut bytes = Vec::new();
            message::read_body(stream, len as usize, &mut bytes).await?;
            unblock(move || keeper.put_head(&owner, bytes)).await.map(Reply::PutHead)
        }
        Request::Hello(_) => unblock(move || keeper.hello(&owner, quota)).await.map(Reply::Hello),
        Request::Have { names } => {
            unblock(move || keeper.have(&owner, &names)).await.map(|held| Reply::Have { held })
        }
        Request::Release { names } => {
            unblock(move || keeper.release(&owner, &names)).await.map(|count| Reply::Release { count })
        }
        Request::Restore { names } => {
            unblock(move || keeper.restore(&owner, &names, quota)).await.map(|held| Reply::Restore { held })
        }
        Request::Inventory { epoch, since, limit } => {
            unblock(move || keeper.inventory(&owner, epoch, since, limit)).await
        }
        Request::Digest { .. } | Request::Bucket { .. } if !may_sum(sync, &owner, &request) => {
            let refusal = Refusal::new(ErrorCode::Busy, "enough was compared for this hour", "");
            return reply(stream, &Reply::Error(refusal)).await;
        }
        Request::Digest { first: None } => match digest_of_all(sync, owner).await {
            Some(answered) => answered,
            None => {
                let refusal =
                    Refusal::new(ErrorCode::Busy, "what is held is still being summed up", "ask again");
                return reply(stream, &Reply::Error(refusal)).await;
            }
        },
        Request::Digest { first } => unblock(move || keeper.digest(&owner, first)).await,
        Request::Bucket { bucket } => unblock(move || keeper.bucket(&owner, bucket)).await,
        Request::Ping => Ok(Reply::Pong),
        Request::Observe => Ok(Reply::Observe { ip: caller.ip.map(|ip| ip.to_string()).unwrap_or_default() }),
        Request::Measure { up, down } => {
            if !sync.may_measure(&owner, u64::from(up) + u64::from(down)) {
                let refusal = Refusal::new(ErrorCode::Busy, "enough was measured for this hour", "");
                return reply(stream, &Reply::Error(refusal)).await;
            }
            return message::answer_measure(stream, up, down).await;
        }
        Request::Card { .. } if !may_card(sync, &owner) => {
            let refusal = Refusal::new(ErrorCode::Busy, "enough cards came for this hour", "");
            return reply(stream, &Reply::Error(refusal)).await;
        }
        Request::Card { bytes } => match take_card(sync, &owner, &bytes).await {
            Ok(()) => Ok(Reply::Done),
            Err(why) => {
                let refusal = Refusal::new(ErrorCode::Malformed, &why.to_string(), "");
                return reply(stream, &Reply::Error(refusal)).await;
            }
        },
        Request::RecoverySecret { secret } => {
            sync.gate.keep_secret(&owner, &secret).await.map(|()| Reply::Done)
        }
        Request::Grants { lens } => return sync.answer_grants(owner, lens, stream).await,
        Request::Revocations { len } => return sync.answer_revocations(owner, len, stream).await,
        Request::TakenBack => return sync.answer_taken_back(owner, stream).await,
        Request::GetByTicket { ticket, chunks } => {
            return sync.answer_ticket(owner, ticket, chunks, stream).await;
        }
        Request::Friendship(told) => match sync.answer_wish(&owner, &told).await {
            Ok(Some(now)) => Ok(Reply::Friendship(now)),
            Ok(None) => {
                let refusal = Refusal::new(ErrorCode::Busy, "enough was wished for this hour", "");
                return reply(stream, &Reply::Error(refusal)).await;
            }
            Err(why) => Err(why),
        },
        Request::Settle(told) => match sync.answer_settle(&owner, told).await {
            Ok(Some(answer)) => Ok(Reply::Settle(answer)),
            Ok(None) => {
                let refusal = Refusal::new(ErrorCode::Busy, "enough was settled for this hour", "");
                return reply(stream, &Reply::Error(refusal)).await;
            }
            Err(why) => Err(why),
        },
        Request::Messages(head) => return sync.answer_messages(owner, head, stream).await,
        Request::Receipts(told) => Ok(sync.answer_receipts(owner, told).await),
        Request::Beat { bytes } => return sync.answer_beat(owner, &bytes, stream).await,
        Request::Question { len } => return sync.answer_question(owner, len, stream).await,
        Request::Goodbye { reason } => {
            reply(stream, &Reply::Done).await?;
            if reason == Farewell::Removed {
                sync.was_removed_by(&owner).await;
            }
            session.close();
            return Ok(());
        }
    };
    reply(stream, &answered.unwrap_or_else(|why| failed(&why))).await
}

/// Takes a newer card of a peer.
pub(super) async fn take_card(sync: &Rc<Sync>, owner: &CellId, bytes: &[u8]) -> Result<(), VaultError> {
    let card = Card::from_bytes(bytes).map_err(|why| VaultError::Refused(why.to_string()))?;
    let Some(peer) = sync.gate.peer(owner) else { return Ok(()) };
    if card.id != peer.id || card.x25519 != peer.x25519 {
        return Err(VaultError::Refused("the card is another cell's".into()));
    }
    let changed = sync.gate.change(owner, |peer| {
        let is_newer = Card::from_bytes(&peer.card).map_or(true, |known| card.sequence > known.sequence);
        is_newer.then(|| {
            peer.take_card(&card);
            peer.clone()
        })
    });
    if let Some(Some(peer)) = changed.await? {
        sync.name_routes(&peer);
        sync.wake_dialer(owner);
        // Friends find what it holds there, too.
        sync.offer_all();
    }
    Ok(())
}

async fn answer_heads(keeper: Arc<Keeper>, owner: CellId, stream: &mut Stream) -> Answered {
    match unblock(move || keeper.heads(&owner)).await {
        Ok(heads) => {
            let lens = heads.iter().map(|head| head.len() as u32).collect();
            message::write_reply(stream, &Reply::Heads { lens }).await?;
            for head in &heads {
                crate::wire::write_full(stream, head, message::PROGRESS_TIME_MAX).await?;
            }
            Ok(message::finish(stream).await?)
        }
        Err(why) => reply(stream, &failed(&why)).await,
    }
}

async fn answer_get(sync: &Rc<Sync>, owner: CellId, names: Vec<ChunkName>, stream: &mut Stream) -> Answered {
    let _place = sync.permits.giving.take(owner).await;
    let names = Arc::new(names);
    let read = |from: usize| {
        let (keeper, names) = (Arc::clone(&sync.keeper), Arc::clone(&names));
        unblock(move || keeper.read(&owner, &names[from..]))
    };
    message::write_reply(stream, &Reply::Get { count: names.len() as u32 }).await?;
    let mut at = 0;
    let mut next: Option<Job<_>> = (!names.is_empty()).then(|| read(0));
    while let Some(task) = next.take() {
        let group = match task.await {
            Ok(group) if !group.is_empty() => group,
            Ok(_) => return Ok(()),
            // The head of the reply is out: a stream that breaks off says it.
            Err(why) => {
                log::warn!("a peer's request failed: {why}");
                return Ok(());
            }
        };
        at += group.len();
        next = (at < names.len()).then(|| read(at));
        for (status, bytes) in group {
            message::write_got(stream, status, &bytes).await?;
            buffers::give(bytes);
        }
    }
    Ok(message::finish(stream).await?)
}

type TakeJob = Job<Vec<(usize, Taken)>>;

/// One `Put` while it comes in.
struct Intake {
    keeper: Arc<Keeper>,
    owner: CellId,
    class: HoldClass,
    statuses: Vec<PutStatus>,
    group: Vec<(usize, ChunkName, Vec<u8>)>,
    group_bytes: usize,
    taking: Option<TakeJob>,
    staged: Vec<(usize, Staged)>,
    small_bytes: usize,
    reservations: HashMap<usize, Reservation>,
    /// Chunks of ours that came back to us.
    reflected: usize,
    /// Nothing more can be taken, for this reason.
    stop: Option<PutStatus>,
}

impl Intake {
    /// Hands the gathered chunks to the pool, while the next ones are read.
    async fn turn(&mut self) {
        self.settle().await;
        if !self.group.is_empty() {
            let (keeper, class, group) =
                (Arc::clone(&self.keeper), self.class, std::mem::take(&mut self.group));
            self.group_bytes = 0;
            self.taking = Some(unblock(move || keeper.take(class, group)));
        }
    }

    async fn settle(&mut self) {
        let Some(task) = self.taking.take() else { return };
        for (at, taken) in task.await {
            match taken {
                Taken::Staged(staged) => {
                    let len = staged.sealed_len() as usize;
                    self.small_bytes += if len < crate::store::SMALL_BYTES { len } else { 0 };
                    self.staged.push((at, staged));
                }
                Taken::Reflected => {
                    self.statuses[at] = PutStatus::Refused;
                    self.reflected += 1;
                }
                Taken::Status(status) => {
                    self.statuses[at] = status;
                    if matches!(status, PutStatus::DiskFull | PutStatus::Refused) {
                        self.stop = Some(status);
                    }
                }
            }
        }
        if self.small_bytes >= SMALL_BYTES_MAX {
            self.commit().await;
        }
    }

    async fn commit(&mut self) {
        let staged = std::mem::take(&mut self.staged);
        self.small_bytes = 0;
        if !staged.is_empty() {
            let (keeper, owner, class) = (Arc::clone(&self.keeper), self.owner, self.class);
            for (at, status) in unblock(move || keeper.commit(&owner, class, staged)).await {
                self.statuses[at] = status;
                // It counts among what is held from here on.
                self.reservations.remove(&at);
                if matches!(status, PutStatus::DiskFull | PutStatus::Refused) {
                    self.stop = Some(status);
                }
            }
        }
    }

    async fn finish(&mut self) {
        self.turn().await;
        self.settle().await;
        self.commit().await;
        self.reservations.clear();
    }
}

async fn answer_put(
    sync: &Rc<Sync>,
    owner: CellId,
    class: Class,
    entries: Vec<(ChunkName, u32)>,
    stream: &mut Stream,
) -> Answered {
    let _place = sync.permits.taking.take(owner).await;
    let class = match class {
        Class::Chunk => HoldClass::Chunk,
        Class::Segment => HoldClass::Segment,
        Class::Other(_) => {
            let refusal =
                Refusal::new(ErrorCode::Unsupported, "an unknown class of chunks", "update that cell");
            return reply(stream, &Reply::Error(refusal)).await;
        }
    };
    let keeper = Arc::clone(&sync.keeper);
    let quota = sync.quota(&owner);
    let account = Arc::clone(&keeper);
    if let Err(why) = unblock(move || account.account(&owner)).await {
        return reply(stream, &failed(&why)).await;
    }
    let mut intake = Intake {
        keeper,
        owner,
        class,
        statuses: vec![PutStatus::Refused; entries.len()],
        group: Vec::new(),
        group_bytes: 0,
        taking: None,
        staged: Vec::new(),
        small_bytes: 0,
        reservations: HashMap::new(),
        reflected: 0,
        stop: None,
    };
    let mut broken = None;
    let mut at = 0;
    while at < entries.len() && intake.stop.is_none() {
        let (name, len) = entries[at];
        match intake.keeper.reserve(&owner, class, len, quota) {
            Ok(reservation) => drop(intake.reservations.insert(at, reservation)),
            Err(status) => {
                intake.stop = Some(status);
                break;
            }
        }
        if intake.group_bytes >= GROUP_BYTES {
            // One waits for its partner, and no third is read before the two at work are done.
            intake.settle().await;
        }
        let mut bytes = Vec::new();
        if let Err(why) = message::read_body(stream, len as usize, &mut bytes).await {
            broken = Some(why);
            break;
        }
        intake.group.push((at, name, bytes));
        intake.group_bytes += len as usize;
        at += 1;
        let is_paired = intake.group.len() % 2 == 0;
        if (is_paired && intake.group_bytes >= GROUP_BYTES) || intake.group.len() >= GROUP_CHUNKS {
            intake.turn().await;
        }
    }
    // What was whole before a break is kept: the sender will hear of it in the inventory.
    intake.finish().await;
    if let Some(why) = broken {
        return Err(why.into());
    }
    if let Some(status) = intake.stop {
        for rest in &mut intake.statuses[at..] {
            *rest = status;
        }
    }
    if intake.reflected > 0 {
        let (who, count) = (owner.short(), intake.reflected);
        sync.refusals.note(format_args!("{who}: {count} chunks refused: they are this cell's own"));
    }
    for (status, what) in [
        (PutStatus::WrongBytes, "bytes that do not hash to their name"),
        (PutStatus::OverQuota, "more than its quota"),
        (PutStatus::DiskFull, "more than the disk takes"),
    ] {
        let count = intake.statuses.iter().filter(|found| **found == status).count();
        if count > 0 {
            sync.refusals.note(format_args!("{}: {count} chunks refused: {what}", owner.short()));
        }
    }
    let (keeper, statuses) = (Arc::clone(&intake.keeper), std::mem::take(&mut intake.statuses));
    match unblock(move || keeper.usage(&owner, quota)).await {
        Ok(usage) => reply(stream, &Reply::Put { statuses, usage }).await,
        Err(why) => reply(stream, &failed(&why)).await,
    }
}

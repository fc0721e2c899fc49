//! What every pool job needs of an open cell: keys, database, chunk store, time, and the one lock over chunk places.
//!
//! **Chunks are placed and removed only under `Vault::placing`.** A job that stores a chunk holds it from putting the
//! file to committing the row; garbage collection holds it while it takes a slice of rows and files away. So a chunk
//! that is found present under the lock is there until the lock is let go, and a commit that names it under the same
//! lock keeps it: see `gc`.

use std::borrow::Cow;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

pub use crate::alerts::Alert;
use crate::alerts::{AlertBook, News, Raised};
use crate::changes::{Changes, Part};
use crate::clock::{Clock, Doubt, Evidence, ObservedTime, PeerTimes};
use crate::config::Config;
use crate::damage::Damage;
use crate::id::{CellId, ChunkName};
use crate::keys::{Identity, MasterKey};
use crate::placement::{ChunkId, Db, DbError, HoldClass, HoldState, Own, Tables};
use crate::seal::Sealer;
use crate::state_files::{Folder, StateFiles};
use crate::store::{ChunkStore, FreeSpace, StoreError, away_remedy};

/// Until this observed second the clock was sure; what is stamped later waits for the credit of a stop.
const SURE_KEY: &str = "time_sure_at";
/// The time is made durable this often where something durable goes by it. s.
const ANCHOR_S: u64 = 600;
/// Credits of less than this are not taken off anybody's age. s.
const CREDIT_SHIFTS_S: u64 = 3600;

/// Locks, and does not mind that another holder panicked: what it guards is changed in whole steps.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Chunks by row, one bit each: what garbage collection has found in use, or what was read lately.
#[derive(Debug, Default, Clone)]
pub struct Marks {
    bits: Vec<u64>,
}

impl Marks {
    /// Marks a row.
    pub fn set(&mut self, chunk: ChunkId) {
        let at = chunk.0 as usize / 64;
        if at >= self.bits.len() {
            self.bits.resize(at + 1, 0);
        }
        self.bits[at] |= 1 << (chunk.0 % 64);
    }

    /// Keeps only what is marked in `others`, too.
    pub fn keep_common(&mut self, others: &Self) {
        let other = |at: usize| others.bits.get(at).copied().unwrap_or(0);
        self.bits.iter_mut().enumerate().for_each(|(at, word)| *word &= other(at));
    }

    /// Takes in what is marked in `others`.
    pub fn add(&mut self, others: &Self) {
        self.bits.resize(self.bits.len().max(others.bits.len()), 0);
        self.bits.iter_mut().zip(&others.bits).for_each(|(word, other)| *word |= other);
    }

    /// How many are marked.
    pub fn count(&self) -> u64 {
        self.bits.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    /// Whether a row is marked.
    pub fn has(&self, chunk: ChunkId) -> bool {
        self.bits.get(chunk.0 as usize / 64).is_some_and(|word| word >> (chunk.0 % 64) & 1 == 1)
    }
}

/// Chunks whose bytes were read and found sound lately: in this span of time, and in the one before.
#[derive(Debug, Default)]
struct ReadLately {
    marks: [Marks; 2],
    /// Observed second at which the span began.
    since: u64,
}

/// An open cell, as its pool jobs see it.
pub struct Vault {
    /// `~/.grove`.
    pub dir: PathBuf,
    /// `~/GroveHome`.
    pub home: PathBuf,
    /// Small files in `dir`.
    pub files: Arc<dyn StateFiles>,
    /// placement.db.
    pub db: Db,
    /// Sealed chunks.
    pub store: Arc<dyn ChunkStore>,
    /// The key of everything.
    pub master: MasterKey,
    /// Who this cell is.
    pub identity: Identity,
    /// Seals and opens chunks of the present epoch.
    pub sealer: Sealer,
    /// Where time comes from.
    pub clock: Arc<dyn Clock>,
    /// Settings.
    pub config: Config,
    /// Tells whoever shows the cell what has changed.
    pub changes: Arc<Changes>,
    /// Random for each start.
    pub run: [u8; 16],
    time: Mutex<ObservedTime>,
    peer_times: Mutex<PeerTimes>,
    life: AtomicU32,
    retired: AtomicBool,
    placing: Mutex<()>,
    publishing: Mutex<()>,
    merging: Mutex<()>,
    marks: Mutex<Option<Marks>>,
    raised: Mutex<Option<Marks>>,
    counting: Mutex<crate::copies::Counting>,
    large_imports: Arc<LargeImports>,
    tree_size: Mutex<TreeSize>,
    alerts: Mutex<AlertBook>,
    /// Wakes whoever tells of alerts.
    alert_news: (smol::channel::Sender<()>, smol::channel::Receiver<()>),
    read_lately: Mutex<ReadLately>,
    damage: Mutex<Damage>,
    /// Claims of peers that ended because their bytes were found damaged, since the start.
    losses: AtomicU64,
    /// Credited for a stop and not yet taken off the age of what was stamped since. Seconds.
    credit_s: AtomicU64,
    /// When the time was made durable last. Observed seconds; 0: not since the start.
    anchored_at: AtomicU64,
}

impl fmt::Debug for Vault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Vault({})", self.dir.display())
    }
}

/// A count that is good for some more uses.
#[derive(Debug, Default)]
struct TreeSize {
    files: u64,
    bytes: u64,
    uses: u64,
}

/// Large files that are being read, or wait for their version to be recorded.
#[derive(Debug, Default)]
struct LargeImports {
    running: AtomicUsize,
    /// Since the start.
    ended: AtomicU64,
}

/// See `Vault::begin_large_import`.
#[derive(Debug)]
pub struct LargeImport(Arc<LargeImports>);

impl Drop for LargeImport {
    fn drop(&mut self) {
        // In this order: whoever finds none running finds that this one has ended.
        self.0.ended.fetch_add(1, Ordering::AcqRel);
        self.0.running.fetch_sub(1, Ordering::AcqRel);
    }
}

/// The parts a vault is made of.
pub struct VaultParts {
    /// `~/.grove`.
    pub dir: PathBuf,
    /// `~/GroveHome`.
    pub home: PathBuf,
    /// placement.db.
    pub db: Db,
    /// Sealed chunks.
    pub store: Arc<dyn ChunkStore>,
    /// The key of everything.
    pub master: MasterKey,
    /// Where time comes from.
    pub clock: Arc<dyn Clock>,
    /// Settings.
    pub config: Config,
}

impl Vault {
    /// Puts the parts together and goes on with the life and time that the database knows.
    pub fn new(parts: VaultParts) -> Result<Self, DbError> {
        let files = Arc::new(Folder::new(&parts.dir));
        Self::with_files(parts, files)
    }

    /// One of a person that lies in memory, for tests: always the same master key and the same begin of time.
    #[cfg(test)]
    pub(crate) fn in_memory(store: Arc<dyn ChunkStore>, config: Config) -> Self {
        let parts = VaultParts {
            dir: "memory".into(),
            home: "memory".into(),
            db: Db::in_memory().expect("there is memory"),
            store,
            master: MasterKey::from_bytes([7; 32]),
            clock: Arc::new(crate::clock::ManualClock::at(1_800_000_000)),
            config,
        };
        let files = crate::state_files::MemoryFiles::new(Arc::default());
        Self::with_files(parts, Arc::new(files)).expect("it is empty")
    }

    /// Like `new`, with small files that need not lie in the folder.
    pub fn with_files(parts: VaultParts, files: Arc<dyn StateFiles>) -> Result<Self, DbError> {
        let VaultParts { dir, home, db, store, master, clock, config } = parts;
        let (life, retired, saved, known_alerts) = db.read(|t| -> Result<_, DbError> {
            let saved = match (t.meta_u64("observed")?, t.meta_u64("wall")?) {
                (Some(observed), Some(wall)) => Some((observed, wall as i64)),
                _ => None,
            };
            let alerts = t.meta("alerts")?.and_then(|text| String::from_utf8(text).ok()).unwrap_or_default();
            Ok((t.meta_u64("life")?.unwrap_or(1) as u32, t.meta_u64("retired")?.is_some(), saved, alerts))
        })?;
        let time = ObservedTime::resume(saved, &*clock);
        let now = time.now(&*clock);
        let vault = Self {
            identity: master.identity(0, 0),
            sealer: Sealer::new(&master, 0),
            changes: Arc::default(),
            run: crate::keys::random(),
            dir,
            files,
            home,
            db,
            store,
            master,
            clock,
            config,
            time: Mutex::new(time),
            peer_times: Mutex::default(),
            life: AtomicU32::new(life),
            retired: AtomicBool::new(retired),
            placing: Mutex::new(()),
            publishing: Mutex::new(()),
            merging: Mutex::new(()),
            marks: Mutex::new(None),
            raised: Mutex::new(None),
            counting: Mutex::default(),
            large_imports: Arc::default(),
            tree_size: Mutex::default(),
            alerts: Mutex::new(AlertBook::load(&known_alerts, now)),
            alert_news: smol::channel::bounded(1),
            read_lately: Mutex::default(),
            damage: Mutex::default(),
            losses: AtomicU64::new(0),
            credit_s: AtomicU64::new(0),
            anchored_at: AtomicU64::new(0),
        };
        vault.look_at_clock();
        if retired {
            vault.raise_retired();
        }
        Ok(vault)
    }

    /// This cell's id.
    pub fn id(&self) -> CellId {
        self.identity.id()
    }

    /// Opens chunks of a manifest's epoch.
    pub fn sealer_of(&self, epoch: u32) -> Cow<'_, Sealer> {
        if epoch == self.sealer.epoch() {
            Cow::Borrowed(&self.sealer)
        } else {
            Cow::Owned(Sealer::new(&self.master, epoch))
        }
    }

    /// The life in which it writes.
    pub fn life(&self) -> u32 {
        self.life.load(Ordering::Acquire)
    }

    /// Goes on in another life; the database has it already.
    pub fn set_life(&self, life: u32) {
        self.life.store(life, Ordering::Release);
    }

    /// A newer life of this cell runs elsewhere: this one must not write.
    pub fn is_retired(&self) -> bool {
        self.retired.load(Ordering::Acquire)
    }

    /// Stops writing for good.
    pub fn retire(&self) -> Result<(), DbError> {
        self.db.change_durably(|t| t.set_meta_u64("retired", 1))?;
        self.retired.store(true, Ordering::Release);
        self.raise_retired();
        Ok(())
    }

    fn raise_retired(&self) {
        self.raise("retired", Alert {
            text: "a newer life of this cell runs on another machine; this one has stopped publishing, and files that it had not \
                   yet given to peers are on its disk only"
                .into(),
            remedy: "use the newer one; bring what it lacks there from this GroveHome, or from versions by `grove restore --all --to \
                     FOLDER` here. If this machine should go on instead, run `grove recover` here with the phrase"
                .into(),
        });
    }

    /// Observed seconds.
    pub fn now(&self) -> u64 {
        lock(&self.time).now(&*self.clock)
    }

    /// Observed day, counted from 1.
    pub fn today(&self) -> u64 {
        self.now() / 86_400 + 1
    }

    /// Observed seconds for what expires: they stand still while the clock is doubted.
    pub fn expiry_now(&self) -> u64 {
        lock(&self.time).expiry_now(&*self.clock)
    }

    /// The clock is doubted, so nothing expires.
    pub fn is_expiry_frozen(&self) -> bool {
        lock(&self.time).is_doubted()
    }

    /// What a peer says of the time.
    pub fn hear_time(&self, peer: &CellId, unix_s: u64) {
        lock(&self.peer_times).hear(peer.0, unix_s, self.clock.steady());
        self.look_at_clock();
    }

    /// Credits time switched off when sure of the clock, says so when it is doubted, and saves how far observed time is.
    pub fn save_time(&self) -> Result<(), DbError> {
        self.write_time(false)
    }

    /// Saves the time, and with it all that was changed before, so that a loss of power does not take it, unless that was done
    /// within the last ten minutes.
    pub fn anchor_time(&self) -> Result<(), DbError> {
        let now = self.now();
        let last = self.anchored_at.load(Ordering::Relaxed);
        if last > 0 && (last..last.saturating_add(ANCHOR_S)).contains(&now) {
            return Ok(());
        }
        self.write_time(true)?;
        self.anchored_at.store(now.max(1), Ordering::Relaxed);
        Ok(())
    }

    fn write_time(&self, is_durable: bool) -> Result<(), DbError> {
        let is_sure = self.look_at_clock();
        // Taken whole, and given back where the database cannot be written.
        let credit_s = self.credit_s.swap(0, Ordering::Relaxed);
        let (observed, wall) = lock(&self.time).save(&*self.clock);
        let alerts = {
            let mut alerts = lock(&self.alerts);
            alerts.settle(observed);
            alerts.take_changed()
        };
        let write = |t: &Tables<'_>| {
            if let Some(text) = &alerts {
                t.set_meta("alerts", text.as_bytes())?;
            }
            if credit_s >= CREDIT_SHIFTS_S {
                t.make_younger(t.meta_u64(SURE_KEY)?.unwrap_or(0), credit_s)?;
            }
            if is_sure {
                t.set_meta_u64(SURE_KEY, observed)?;
            }
            t.set_meta_u64("observed", observed)?;
            t.set_meta_u64("wall", wall as u64)
        };
        let written = if is_durable { self.db.change_durably(write) } else { self.db.change(write) };
        written.inspect_err(|_| {
            lock(&self.alerts).note_unsaved();
            self.credit_s.fetch_add(credit_s, Ordering::Relaxed);
        })
    }

    /// A person says that the clock is right.
    pub fn accept_clock(&self) -> Result<(), DbError> {
        if self.is_expiry_frozen() {
            lock(&self.time).accept(&*self.clock);
        }
        self.save_time()
    }

    /// Whether there is evidence for the time now.
    fn look_at_clock(&self) -> bool {
        let evidence = if self.clock.is_synchronized() {
            Evidence::Ntp
        } else {
            lock(&self.peer_times).agreed(self.clock.steady()).map_or(Evidence::Nothing, Evidence::Peers)
        };
        let doubt = {
            let mut time = lock(&self.time);
            let before = time.now(&*self.clock);
            let doubt = time.look(&*self.clock, evidence);
            let credit_s = time.now(&*self.clock).saturating_sub(before);
            self.credit_s.fetch_add(credit_s, Ordering::Relaxed);
            doubt
        };
        match doubt {
            Some(doubt) => self.raise("clock", clock_alert(doubt)),
            None => self.clear("clock"),
        }
        evidence != Evidence::Nothing && doubt.is_none()
    }

    /// The lock over chunk places; see the module text.
    pub fn placing(&self) -> MutexGuard<'_, ()> {
        lock(&self.placing)
    }

    /// One publication at a time.
    pub fn publishing(&self) -> MutexGuard<'_, ()> {
        lock(&self.publishing)
    }

    /// One takes in records of another catalog at a time. Taken before `publishing` and `placing`.
    pub fn merging(&self) -> MutexGuard<'_, ()> {
        lock(&self.merging)
    }

    /// Marks of a running garbage collection, if one runs.
    pub fn marks(&self) -> MutexGuard<'_, Option<Marks>> {
        lock(&self.marks)
    }

    /// Tells a running garbage collection that these chunks are in use from now on.
    pub fn mark(&self, chunks: &[ChunkId]) {
        if let Some(marks) = self.marks().as_mut() {
            chunks.iter().for_each(|chunk| marks.set(*chunk));
        }
    }

    /// Chunks that came to want more while a count of copies wanted goes on (`copies`), if one does.
    pub fn raised(&self) -> MutexGuard<'_, Option<Marks>> {
        lock(&self.raised)
    }

    /// Tells a count of copies wanted that a chunk wants more, or as much as before.
    pub fn note_raised(&self, chunk: ChunkId) {
        if let Some(marks) = self.raised().as_mut() {
            marks.set(chunk);
        }
    }

    /// Whether a chunk came to want more while the count goes on.
    pub fn is_raised(&self, chunk: ChunkId) -> bool {
        self.raised().as_ref().is_none_or(|marks| marks.has(chunk))
    }

    /// One count of copies wanted at a time.
    pub fn try_counting(&self) -> Option<MutexGuard<'_, crate::copies::Counting>> {
        match self.counting.try_lock() {
            Ok(guard) => Some(guard),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// Files and bytes of the tree, less one file of `bytes` that is being deleted. Counted anew now and then: counting
    /// takes as long as the tree is large.
    pub fn tree_size(&self, t: &Tables<'_>, is_deletion: bool, bytes: u64) -> Result<(u64, u64), DbError> {
        let mut size = lock(&self.tree_size);
        if size.uses == 0 {
            (size.files, size.bytes) = t.tree_size()?;
            size.uses = (size.files / 8).clamp(1, 1000);
        }
        size.uses -= 1;
        if is_deletion {
            size.files = size.files.saturating_sub(1);
            size.bytes = size.bytes.saturating_sub(bytes);
        }
        Ok((size.files, size.bytes))
    }

    /// A large file is being read, or its version is to be recorded, until this is dropped: its chunks are here before a version
    /// names them, so nothing is collected meanwhile.
    pub fn begin_large_import(&self) -> LargeImport {
        self.large_imports.running.fetch_add(1, Ordering::AcqRel);
        LargeImport(Arc::clone(&self.large_imports))
    }

    /// Whether a large file is being read, or its version is to be recorded.
    pub fn has_large_imports(&self) -> bool {
        self.large_imports.running.load(Ordering::Acquire) > 0
    }

    /// How many large files were read since the start, and their versions recorded or given up.
    pub fn large_imports_ended(&self) -> u64 {
        self.large_imports.ended.load(Ordering::Acquire)
    }

    /// Raises or renews an alert; `code` names it for good.
    pub fn raise(&self, code: &'static str, alert: Alert) {
        let (now, wall) = (self.now(), self.clock.wall());
        let news = lock(&self.alerts).raise(code, alert.clone(), now, wall);
        match news {
            News::None => {}
            News::New => {
                log::warn!("{}; {}", alert.text, alert.remedy);
                self.tell_alerts();
            }
            News::Changed => {
                log::info!("{}; {}", alert.text, alert.remedy);
                self.changes.note(Part::Alerts);
            }
        }
    }

    /// The condition is over.
    pub fn clear(&self, code: &str) {
        let (was_known, was_raised) = {
            let mut alerts = lock(&self.alerts);
            (alerts.is_remembered(code), alerts.clear(code))
        };
        if was_raised {
            log::info!("no longer: {code}");
        }
        if was_raised || was_known {
            self.tell_alerts();
        }
    }

    /// Room on the disk with the chunks; `None` where it cannot be had, as when the disk is away. That is said by an alert.
    pub fn space(&self) -> Option<FreeSpace> {
        match self.store.free() {
            Ok(space) => {
                self.clear("chunks");
                Some(space)
            }
            Err(why) => {
                self.raise("chunks", chunks_alert(&why));
                None
            }
        }
    }

    /// What a person should know of now, the gravest first.
    pub fn alerts(&self) -> Vec<Raised> {
        lock(&self.alerts).list()
    }

    /// Whether an alert held before the restart, and it is not known yet whether it still does.
    pub fn is_alert_remembered(&self, code: &str) -> bool {
        lock(&self.alerts).is_remembered(code)
    }

    /// Hears when alerts may have changed.
    pub fn alert_news(&self) -> smol::channel::Receiver<()> {
        self.alert_news.1.clone()
    }

    fn tell_alerts(&self) {
        // One that waits already is enough.
        let _ = self.alert_news.0.try_send(());
        self.changes.note(Part::Alerts);
    }

    /// A chunk of mine or of a peer from the local store, verified; `None` if it is not here. One that is damaged is put
    /// into quarantine and counts as not here.
    pub fn local_chunk(&self, name: &ChunkName) -> Result<Option<Vec<u8>>, VaultError> {
        loop {
            let Some(row) = self.db.read(|t| t.chunk(name))? else { return Ok(None) };
            let Some(place) = row.place else { return Ok(None) };
            match self.store.get(*name, place, row.len) {
                Ok(bytes) => {
                    lock(&self.read_lately).marks[0].set(row.id);
                    return Ok(Some(bytes));
                }
                Err(why) if why.is_loss() => {
                    if self.give_up(row.id, name, place, row.len)? {
                        log::warn!("{why}");
                        return Ok(None);
                    }
                    // It has moved into a pack, or from one into another, since the row was read.
                }
                Err(why) => return Err(why.into()),
            }
        }
    }

    /// Of these chunks those that do not lie here.
    pub fn absent(&self, names: Vec<ChunkName>) -> Result<Vec<ChunkName>, DbError> {
        self.db.read(|t| {
            let mut absent = Vec::new();
            for name in names {
                if t.chunk(&name)?.is_none_or(|row| row.place.is_none()) {
                    absent.push(name);
                }
            }
            Ok(absent)
        })
    }

    /// Whether a chunk's bytes were read and found sound within `span_s` observed seconds, or up to twice that.
    pub fn was_read_lately(&self, chunk: ChunkId, span_s: u64) -> bool {
        let now = self.now();
        let mut read = lock(&self.read_lately);
        if now >= read.since.saturating_add(2 * span_s) {
            read.marks = Default::default();
            read.since = now;
        } else if now >= read.since + span_s {
            let last = std::mem::take(&mut read.marks[0]);
            read.marks[1] = last;
            read.since = now;
        }
        read.marks.iter().any(|marks| marks.has(chunk))
    }

    /// Puts a damaged chunk aside; `false` if it has another place by now.
    fn give_up(
        &self,
        id: ChunkId,
        name: &ChunkName,
        place: crate::store::Place,
        len: u32,
    ) -> Result<bool, VaultError> {
        let _placing = self.placing();
        // Durable: after a power cut nobody may take it for being here.
        let lost = self.db.change_durably(|t| -> Result<_, DbError> {
            let is_there = t.chunk_by_id(id)?.is_some_and(|row| row.place == Some(place));
            if is_there { self.record_loss(t, id).map(Some) } else { Ok(None) }
        })?;
        let Some(loss) = lost else { return Ok(false) };
        if let Err(why) = self.store.quarantine(*name, place, len) {
            log::warn!("{why}");
        }
        self.tell_loss(*name, loss);
        Ok(true)
    }

    /// Records that a chunk's bytes here are no good: it is not here any more, and each owner it is kept for learns so by
    /// a new line of his inventory, or, of a part of his catalog, because his newest head is not said to be held whole.
    /// The caller holds `placing`, and tells the loss when the change is durable.
    pub fn record_loss(&self, t: &Tables<'_>, id: ChunkId) -> Result<Loss, DbError> {
        t.move_chunk(id, None)?;
        let owners = t.owners_of(id)?;
        for (owner, class) in &owners {
            t.put_hold(id, *owner, *class, HoldState::Gone, self.now())?;
            if *class == HoldClass::Segment {
                t.set_meta_u64(&lost_segments_key(owner.0), 1)?;
            }
        }
        Ok(Loss { is_own: t.own(id)? != Own::No, claims: owners.len() as u64 })
    }

    /// A recorded loss is durable: alerts say so.
    pub fn tell_loss(&self, name: ChunkName, loss: Loss) {
        self.losses.fetch_add(loss.claims, Ordering::AcqRel);
        let now = self.now();
        let alerts = {
            let mut damage = lock(&self.damage);
            damage.note(name, loss.is_own, loss.claims > 0, now);
            damage.alerts(now)
        };
        self.show_damage(alerts);
    }

    /// How many claims of peers have ended by damage since the start; sums of them are to be made anew when it grows.
    pub fn losses(&self) -> u64 {
        self.losses.load(Ordering::Acquire)
    }

    /// How many chunks were found damaged since the start.
    pub fn damage_count(&self) -> u64 {
        lock(&self.damage).count()
    }

    /// Chunks of ours that were found damaged and wait for a good copy.
    pub fn damaged(&self) -> Vec<ChunkName> {
        lock(&self.damage).waiting()
    }

    /// Good copies of these lie here again; all that should, if `is_all`. Also forgets what is long over.
    pub fn note_healed(&self, names: &[ChunkName], is_all: bool) {
        let now = self.now();
        let alerts = {
            let mut damage = lock(&self.damage);
            damage.heal(names, now);
            if is_all {
                damage.heal_all(now);
            }
            damage.alerts(now)
        };
        self.show_damage(alerts);
    }

    fn show_damage(&self, alerts: crate::damage::Alerts) {
        for (code, alert) in alerts {
            match alert {
                Some(alert) => self.raise(code, alert),
                None => self.clear(code),
            }
        }
    }
}

/// What was lost with a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Loss {
    /// It is a chunk of ours.
    is_own: bool,
    /// So many peers' claims ended.
    claims: u64,
}

/// Under which name it is kept that a part of the catalog of the owner with this number was lost here.
pub fn lost_segments_key(owner: i64) -> String {
    format!("lost-segments:{owner}")
}

fn chunks_alert(why: &StoreError) -> Alert {
    match why {
        StoreError::Away { path } => Alert {
            text: format!(
                "the folder of chunks, {}, is not there any more, or is another: nothing new is kept, and nothing of what lies \
                 there can be given back",
                path.display()
            ),
            remedy: away_remedy(path),
        },
        why => Alert {
            text: format!("nothing is known of the disk with the chunks: {why}"),
            remedy: "look at the health of the disk".into(),
        },
    }
}

fn clock_alert(doubt: Doubt) -> Alert {
    let days = |s: i64| match s / 86_400 {
        1 => "a day".to_owned(),
        days => format!("{days} days"),
    };
    let (text, remedy) = match doubt {
        Doubt::Ahead(s) => (
            format!("the clock of this machine seems to be ahead by {}; nothing expires by it", days(s)),
            "set the clock; if it is right, say `grove confirm`",
        ),
        Doubt::Behind(s) => (
            format!("the clock of this machine seems to be behind by {}; nothing expires by it", days(s)),
            "set the clock; if it is right, say `grove confirm`",
        ),
        Doubt::TooLong(s) => (
            format!("{} have passed since this cell last ran; nothing expires by it", days(s)),
            "if that is so, say `grove confirm`; else set the clock",
        ),
    };
    Alert { text, remedy: remedy.into() }
}

/// GroveHome is not there, or is not this cell's.
pub fn home_alert(why: &impl fmt::Display) -> Alert {
    Alert { text: why.to_string(), remedy: "mount the disk; the cell goes on by itself".into() }
}

/// What stops a job on the vault.
#[derive(Debug)]
pub enum VaultError {
    /// placement.db.
    Db(DbError),
    /// The chunk store.
    Store(StoreError),
    /// A file or folder.
    Io { doing: String, why: io::Error },
    /// A record that should be sound is not.
    Record(String),
    /// GroveHome is not there, or the folder in its place is not it.
    Home(String),
    /// What was asked for is not there, or cannot be done; the text says what to do.
    Refused(String),
}

impl VaultError {
    /// For the failure to do something with a file or folder.
    pub fn io(doing: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let doing = doing.into();
        move |why| Self::Io { doing, why }
    }

    /// The disk is full: free some space, and it goes on.
    pub fn is_full(&self) -> bool {
        match self {
            Self::Db(why) => why.is_full(),
            Self::Store(why) => matches!(why, StoreError::Full { .. }),
            Self::Io { why, .. } => {
                matches!(why.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
            }
            _ => false,
        }
    }
}

impl fmt::Display for VaultError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Db(why) => why.fmt(f),
            Self::Store(why) => why.fmt(f),
            Self::Io { doing, why } => write!(f, "{doing}: {why}"),
            Self::Record(why) | Self::Home(why) => f.write_str(why),
            Self::Refused(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for VaultError {}

impl From<DbError> for VaultError {
    fn from(why: DbError) -> Self {
        Self::Db(why)
    }
}

impl From<StoreError> for VaultError {
    fn from(why: StoreError) -> Self {
        Self::Store(why)
    }
}

impl From<crate::manifest::ManifestError> for VaultError {
    fn from(why: crate::manifest::ManifestError) -> Self {
        Self::Record(why.to_string())
    }
}

impl From<crate::catalog::CatalogError> for VaultError {
    fn from(why: crate::catalog::CatalogError) -> Self {
        Self::Record(why.to_string())
    }
}

impl From<crate::codec::BadBytes> for VaultError {
    fn from(why: crate::codec::BadBytes) -> Self {
        Self::Record(why.to_string())
    }
}

/// Puts `bytes` at `path` whole or not at all, even if power fails half-way. Mode 0600.
pub fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut temp = path.as_os_str().to_owned();
    temp.push(format!(".{}.tmp", crate::id::hex(&crate::keys::random::<4>())));
    let temp = PathBuf::from(temp);
    let written = (|| {
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temp)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temp, path)
    })();
    if written.is_err() {
        let _ = fs::remove_file(&temp);
    }
    written?;
    // The rename itself lives in the folder, so the folder needs its own sync.
    File::open(path.parent().expect("a file lies in a folder"))?.sync_all()
}

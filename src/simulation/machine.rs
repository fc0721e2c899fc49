//! One machine of a simulation: what its disk holds, and the cell that runs on it while it is switched on.

use std::fmt;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use smol::LocalExecutor;

use crate::cell::open::{Found, finish, judge, rebuild};
use crate::clock::{Clock, ManualClock};
use crate::config::Config;
use crate::keys::MasterKey;
use crate::placement::{Db, Watch};
use crate::state_files::{MemoryFiles, StateFiles};
use crate::store::{ChunkStore, MemoryStore};
use crate::sync::{Books, Sync};
use crate::vault::{Vault, VaultError, VaultParts, lock};
use crate::world::{Blown, Dice, Fuse};

/// Wall time at which simulations begin: 2027-01-15. Unix seconds.
pub(super) const BEGIN_S: i64 = 1_800_000_000;
/// Images of states after the last durable one that a power cut may leave.
const LATER_MAX: usize = 3;

/// Images of placement.db that may be found after the end of a process or a power cut.
#[derive(Debug)]
pub(super) struct Images {
    state: Mutex<ImagesState>,
    fuse: Arc<Fuse>,
}

#[derive(Debug, Clone)]
struct ImagesState {
    dice: Dice,
    durable: Option<Vec<u8>>,
    later: Vec<Vec<u8>>,
    /// All commits are kept, in `later` the last: the process may end with nobody left to ask for it.
    is_opening: bool,
}

impl Images {
    fn new(dice: Dice, fuse: Arc<Fuse>) -> Self {
        let state = ImagesState { dice, durable: None, later: Vec::new(), is_opening: false };
        Self { state: Mutex::new(state), fuse }
    }

    /// The process has ended; `last` is what was committed last, if that is known.
    fn settle(&self, last: Option<Vec<u8>>, is_power_cut: bool) {
        let mut state = lock(&self.state);
        let mut later = std::mem::take(&mut state.later);
        later.extend(last);
        let found = match is_power_cut {
            true => {
                let at = state.dice.below(later.len() as u64 + 1) as usize;
                if at < later.len() { Some(later.swap_remove(at)) } else { None }
            }
            false => later.pop(),
        };
        state.durable = found.or(state.durable.take());
    }
}

impl Watch for Images {
    fn step(&self) {
        self.fuse.step();
    }

    fn committed(&self, is_durable: bool, image: &dyn Fn() -> Vec<u8>) {
        let mut state = lock(&self.state);
        if is_durable || state.durable.is_none() {
            state.durable = Some(image());
            state.later.clear();
        } else if state.is_opening || state.dice.percent(12) {
            if state.later.len() == LATER_MAX {
                let at = state.dice.below(LATER_MAX as u64) as usize;
                state.later.remove(at);
            }
            state.later.push(image());
        }
    }
}

/// What is on a disk.
pub(super) struct Disk {
    pub(super) store: Arc<MemoryStore>,
    pub(super) files: Arc<MemoryFiles>,
    pub(super) books: Arc<Books>,
    images: Arc<Images>,
    pub(super) fuse: Arc<Fuse>,
}

impl Disk {
    fn new(dice: Dice) -> Self {
        let fuse = Arc::new(Fuse::default());
        Self {
            store: Arc::new(MemoryStore::with_fuse(Arc::clone(&fuse))),
            files: Arc::new(MemoryFiles::new(Arc::clone(&fuse))),
            books: Arc::new(Books::in_memory().expect("books in memory open")),
            images: Arc::new(Images::new(dice, Arc::clone(&fuse))),
            fuse,
        }
    }

    /// The whole disk once more.
    fn copied(&self) -> Self {
        let fuse = Arc::new(Fuse::default());
        let state = lock(&self.images.state).clone();
        Self {
            store: Arc::new(self.store.copied(Arc::clone(&fuse))),
            files: Arc::new(self.files.copied(Arc::clone(&fuse))),
            books: Arc::new(self.books.copied().expect("books in memory are copied")),
            images: Arc::new(Images { state: Mutex::new(state), fuse: Arc::clone(&fuse) }),
            fuse,
        }
    }
}

/// A cell that is switched on.
pub(super) struct Running {
    pub(super) executor: Rc<LocalExecutor<'static>>,
    pub(super) vault: Arc<Vault>,
    pub(super) sync: Rc<Sync>,
    clock: Arc<ManualClock>,
}

/// Why a cell does not start.
#[derive(Debug)]
pub(super) enum StartError {
    /// It ended while it opened its state.
    Crashed,
    /// It says why.
    Why(String),
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Crashed => f.write_str("it crashed"),
            Self::Why(why) => f.write_str(why),
        }
    }
}

/// A machine: its disk, its clock's faults, and the cell on it.
pub(super) struct Machine {
    pub(super) name: String,
    pub(super) seed: u64,
    pub(super) master: MasterKey,
    pub(super) config: Config,
    pub(super) disk: Disk,
    /// An old copy of the whole disk, and when it was made.
    pub(super) backup: Option<(Duration, Disk)>,
    pub(super) running: Option<Running>,
    /// The wall clock is wrong by so much. s.
    pub(super) skew_s: i64,
    pub(super) has_ntp: bool,
    /// It is gone for ever, and its disk with it.
    pub(super) is_gone: bool,
    /// It ends after so many turns of its tasks.
    pub(super) ticks_left: Option<u64>,
    /// When it is switched on again.
    pub(super) back_at: Option<Duration>,
    disks: u64,
}

/// Runs code of a cell; `None` where its process ended in it.
pub(super) fn alive<T>(work: impl FnOnce() -> T) -> Option<T> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(done) => Some(done),
        Err(why) if why.is::<Blown>() => None,
        // Not a simulated fault but one of ours.
        Err(why) => resume_unwind(why),
    }
}

impl Machine {
    pub(super) fn new(seed: u64, number: usize) -> Self {
        let mut dice = Dice::new(seed, &format!("machine {number}"));
        let mut key = [0; 32];
        dice.fill(&mut key);
        let mut config = Config::default();
        (config.name, config.jobs) = (format!("cell{number}"), 2);
        Self {
            name: format!("cell{number}"),
            seed: dice.below(u64::MAX),
            master: MasterKey::from_bytes(key),
            config,
            disk: Disk::new(dice),
            backup: None,
            running: None,
            skew_s: 0,
            has_ntp: true,
            is_gone: false,
            ticks_left: None,
            back_at: None,
            disks: 1,
        }
    }

    /// Puts in a new, empty disk.
    pub(super) fn replace_disk(&mut self) {
        assert!(self.running.is_none(), "a disk is replaced while the machine is off");
        self.disks += 1;
        self.disk = Disk::new(Dice::new(self.seed, &format!("disk {}", self.disks)));
    }

    /// Remembers the disk as it is now.
    pub(super) fn back_up(&mut self, now: Duration) {
        assert!(self.running.is_none(), "a disk is copied while the machine is off");
        self.backup = Some((now, self.disk.copied()));
    }

    /// Ends the process after so many operations on its disk.
    pub(super) fn blow_after(&self, operations: Option<u64>) {
        self.disk.fuse.set(operations);
    }

    /// Its process has come to its end, though nobody has seen it yet.
    pub(super) fn is_blown(&self) -> bool {
        self.disk.fuse.is_blown()
    }

    fn wall(&self, now: Duration) -> i64 {
        BEGIN_S + now.as_secs() as i64 + self.skew_s
    }

    /// Sets the clock as it is to be shown.
    pub(super) fn turn_clock(&mut self, now: Duration, skew_s: i64, has_ntp: bool) {
        (self.skew_s, self.has_ntp) = (skew_s, has_ntp);
        if let Some(running) = &self.running {
            running.clock.set_wall(self.wall(now), has_ntp);
        }
    }

    /// Time passes.
    pub(super) fn pass(&self, time: Duration) {
        if let Some(running) = &self.running {
            running.clock.pass(time);
        }
    }

    fn clock(&self, now: Duration) -> Arc<ManualClock> {
        let clock = Arc::new(ManualClock::at(self.wall(now)));
        clock.set_wall(self.wall(now), self.has_ntp);
        clock
    }

    /// Opens what is on the disk, as a real cell does.
    fn open(&self, clock: &Arc<ManualClock>) -> Result<Arc<Vault>, VaultError> {
        let disk = &self.disk;
        let image = lock(&disk.images.state).durable.clone();
        let watch = || Arc::clone(&disk.images) as Arc<dyn Watch>;
        let (db, is_stale) = match judge(Db::from_image(image.as_deref(), watch()), &*disk.files)? {
            Found::Current(db) => (db, false),
            Found::Empty(db) => (db, true),
            Found::Aside(_) => (Db::from_image(None, watch())?.0, true),
        };
        // What an open has made is there for good before anything relies on it.
        watch().committed(image.is_none(), &|| db.image().unwrap_or_default());
        let parts = VaultParts {
            dir: "memory".into(),
            home: "memory".into(),
            db,
            store: Arc::clone(&disk.store) as Arc<dyn ChunkStore>,
            master: self.master.clone(),
            clock: Arc::clone(clock) as Arc<dyn Clock>,
            config: self.config.clone(),
        };
        let vault = Vault::with_files(parts, Arc::clone(&disk.files) as Arc<dyn StateFiles>)?;
        if is_stale {
            rebuild(&vault).map_err(|why| VaultError::Refused(why.to_string()))?;
        } else {
            finish(&vault);
        }
        Ok(Arc::new(vault))
    }

    /// Switches the cell on. `prepare` works on the open state before anything else does.
    pub(super) fn start(
        &mut self,
        now: Duration,
        prepare: impl FnOnce(&Arc<Vault>, &Arc<Books>) -> Result<(), String>,
    ) -> Result<(), StartError> {
        assert!(self.running.is_none() && !self.is_gone, "a machine is started once");
        lock(&self.disk.images.state).is_opening = true;
        let clock = self.clock(now);
        let opened = alive(|| {
            let vault = self.open(&clock).map_err(|why| why.to_string())?;
            prepare(&vault, &self.disk.books)?;
            Ok::<_, String>(vault)
        });
        let vault = match opened {
            Some(Ok(vault)) => vault,
            Some(Err(why)) => {
                self.end(None, false);
                return Err(StartError::Why(why));
            }
            None => {
                self.end(None, false);
                return Err(StartError::Crashed);
            }
        };
        let executor = Rc::new(LocalExecutor::new());
        let listen = SocketAddr::from(([127, 0, 0, 1], 5679));
        let made = alive(|| {
            let (on, vault, books) = (Rc::clone(&executor), Arc::clone(&vault), Arc::clone(&self.disk.books));
            let task = executor.spawn(async move { Sync::assemble(&on, vault, books, listen).await });
            while !task.is_finished() && executor.try_tick() {}
            smol::block_on(smol::future::poll_once(task))
        });
        match made.filter(|_| !self.is_blown()) {
            Some(Some(Ok(sync))) => {
                lock(&self.disk.images.state).is_opening = false;
                self.running = Some(Running { executor, vault, sync, clock });
                Ok(())
            }
            Some(why) => {
                let text = match why {
                    Some(Err(why)) => why.to_string(),
                    _ => "it does not come to an end with starting".into(),
                };
                self.end(None, false);
                Err(StartError::Why(text))
            }
            None => {
                self.end(None, false);
                Err(StartError::Crashed)
            }
        }
    }

    fn end(&mut self, last: Option<Vec<u8>>, is_power_cut: bool) {
        self.disk.fuse.set(None);
        self.ticks_left = None;
        lock(&self.disk.images.state).is_opening = false;
        self.disk.images.settle(last, is_power_cut);
    }

    /// The process ends at once; with a power cut what was not made durable may be lost.
    pub(super) fn kill(&mut self, is_power_cut: bool, dice: &mut Dice) {
        let Some(Running { executor, vault, sync, .. }) = self.running.take() else { return };
        self.disk.fuse.set(None);
        let last = vault.db.image().ok();
        let left = Arc::downgrade(&vault);
        drop((sync, vault));
        // With it go all its tasks, and with them everything they hold.
        drop(executor);
        assert!(left.upgrade().is_none(), "a cell that has ended is gone as a whole");
        self.end(last, is_power_cut);
        if is_power_cut {
            self.disk.store.lose_unsynced();
            self.disk.files.lose_unsynced(dice);
        }
    }
}

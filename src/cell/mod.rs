//! An open cell: opens everything, starts one task per duty, stops them in order.

mod again;
mod ai;
mod api;
mod archive;
mod bounty;
mod browse;
mod chat;
mod checks;
mod content;
mod copies;
mod drill;
mod events;
pub mod files;
mod history;
mod hook;
pub mod jobs;
pub mod json;
pub mod keeper;
mod metrics;
pub mod open;
mod openai;
mod peers;
pub mod placement;
mod range;
mod run;
pub(crate) mod scrub;
mod settings;
mod share;
mod uploads;
mod watching;

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use smol::LocalExecutor;
use smol::lock::Semaphore;

use crate::changes::Part;
use crate::files::restore::{Lacking, Restorer};
use crate::files::watch::WatchList;
use crate::gc;
use crate::id::ChunkName;
use crate::order;
use crate::placement::{ChunkId, DbError};
use crate::pool;
use crate::sums::Sums;
use crate::sync::{Got, Sync};
use crate::vault::{Vault, VaultError};
pub use again::take_place;
use jobs::Jobs;
use keeper::Keeper;
pub use open::{CellError, CellSummary, Options, Paths, create};
pub(crate) use open::{LOCK_TRIES, LOCK_WAIT};
pub use run::{Local, RecoverProgress, RecoverSummary, recover, run};
pub(crate) use run::{raise_file_limit, stop_signal};

/// Slices of cold chunks that are gathered into packs in one round of tidying.
const GATHER_SLICES: usize = 16;
/// The rest of the cell has its turn between them.
const GATHER_PAUSE: Duration = Duration::from_millis(100);

/// The program's version.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// An open cell on its executor.
pub struct Cell {
    vault: Arc<Vault>,
    name: String,
    executor: Rc<LocalExecutor<'static>>,
    permits: Arc<Semaphore>,
    threads: usize,
    keeper: Rc<Keeper>,
    jobs: Rc<Jobs>,
    /// One restore into GroveHome at a time: two would put the same file side by side.
    restoring: smol::lock::Mutex<()>,
    sync: RefCell<Option<Rc<Sync>>>,
    /// Language models, while it runs.
    ai: RefCell<Option<Rc<crate::ai::service::Service>>>,
    /// The relay that it is for others, if it is one.
    hub: RefCell<std::rc::Weak<crate::relay::Hub>>,
    metric_sums: metrics::Sums,
    status_sums: Sums<(), api::StatusSums>,
    /// One restore drill at a time, and what the last came to.
    drilling: smol::lock::Mutex<()>,
    drilled: RefCell<Option<drill::Report>>,
    /// Pages that watch changes.
    event_streams: std::cell::Cell<usize>,
    /// Turns to read files chunk by chunk for others than restores.
    chunk_streams: Semaphore,
    uploads: uploads::Uploads,
    /// There are no files, and the phrase is not known to be kept.
    fresh: Arc<std::sync::atomic::AtomicBool>,
    /// It runs until it is stopped, and may be started anew.
    is_service: std::cell::Cell<bool>,
    history: history::History,
    /// One change of config.json at a time.
    setting: smol::lock::Mutex<()>,
    /// Wakes whoever starts it anew.
    again: (smol::channel::Sender<()>, smol::channel::Receiver<()>),
}

impl Cell {
    fn new(
        vault: Arc<Vault>,
        executor: Rc<LocalExecutor<'static>>,
        watch: Option<Arc<WatchList>>,
    ) -> Rc<Self> {
        let threads = vault.config.jobs();
        let permits = Arc::new(Semaphore::new(threads));
        let keeper = Keeper::new(Arc::clone(&vault), Arc::clone(&permits), threads, watch);
        let name = open::cell_name(&vault.config);
        let changes = Arc::clone(&vault.changes);
        Rc::new(Self {
            vault,
            name,
            executor,
            permits,
            threads,
            keeper,
            jobs: Rc::new(Jobs::new(changes)),
            restoring: smol::lock::Mutex::new(()),
            sync: RefCell::new(None),
            ai: RefCell::default(),
            hub: RefCell::default(),
            metric_sums: metrics::Sums::default(),
            status_sums: Sums::default(),
            drilling: smol::lock::Mutex::new(()),
            drilled: RefCell::default(),
            event_streams: std::cell::Cell::new(0),
            chunk_streams: Semaphore::new(content::CHUNK_STREAMS_MAX),
            uploads: uploads::Uploads::default(),
            fresh: Arc::default(),
            is_service: std::cell::Cell::new(false),
            history: history::History::default(),
            setting: smol::lock::Mutex::new(()),
            again: smol::channel::bounded(1),
        })
    }

    fn restorer(self: &Rc<Self>) -> Restorer {
        let fetch = Rc::new(peers::FromPeers(Rc::clone(self)));
        Restorer::new(Arc::clone(&self.vault), Arc::clone(&self.permits), self.threads, fetch)
    }

    /// Looks whether anything was done with the cell.
    async fn look_whether_fresh(&self) -> Result<(), VaultError> {
        let vault = Arc::clone(&self.vault);
        let look = move || vault.db.read(|t| Ok((t.meta_u64("phrase_kept")?, t.node_totals()?)));
        let (kept, totals): (Option<u64>, crate::placement::NodeTotals) =
            pool::unblock(look).await.map_err(|why: crate::placement::DbError| VaultError::from(why))?;
        self.fresh.store(kept.is_none() && totals.files == 0, std::sync::atomic::Ordering::Relaxed);
        Ok(())
    }

    /// Something was published: peers should have it, and the mirror follows.
    fn after_change(self: &Rc<Self>) {
        self.vault.changes.note(Part::Files);
        self.vault.changes.note(Part::Status);
        if self.fresh.load(std::sync::atomic::Ordering::Relaxed) {
            let cell = Rc::clone(self);
            let looking = async move {
                let _ = cell.look_whether_fresh().await;
            };
            pool::spawn(&self.executor, looking).detach();
        }
        if self.vault.alerts().iter().any(|raised| raised.code == "brake") {
            // What was deleted may have been put back by hand.
            let cell = Rc::clone(self);
            let looking = async move {
                if let Err(why) = cell.release_brake().await {
                    log::warn!("whether what was deleted is back cannot be told: {why}");
                }
            };
            pool::spawn(&self.executor, looking).detach();
        }
        if let Some(sync) = self.sync.borrow().as_ref() {
            sync.poke();
        }
        let keeper = Rc::clone(&self.keeper);
        if self.sync.borrow().is_some() {
            pool::spawn(&self.executor, async move { keeper.mirror().await }).detach();
        }
    }

    /// Gets chunks from peers; gives those that could not be had.
    async fn fetch(&self, names: Vec<ChunkName>) -> Lacking {
        let sync = self.sync.borrow().clone();
        match sync {
            Some(sync) if !names.is_empty() => {
                let fetched = sync.fetch(names).await;
                Lacking { names: fetched.missing, is_full: fetched.is_full }
            }
            _ => Lacking { names, is_full: false },
        }
    }

    async fn fetch_absent(&self, names: Vec<ChunkName>) -> Result<Lacking, VaultError> {
        let vault = Arc::clone(&self.vault);
        let absent: Vec<ChunkName> = pool::unblock(move || vault.absent(names)).await?;
        if absent.is_empty() { Ok(Lacking::default()) } else { Ok(self.fetch(absent).await) }
    }

    /// The sealed bytes of a chunk of ours, from whoever is connected and gives them, into memory alone.
    async fn fetch_aside(&self, name: ChunkName) -> Result<Option<Vec<u8>>, VaultError> {
        let Some(sync) = self.sync.borrow().clone() else { return Ok(None) };
        let vault = Arc::clone(&self.vault);
        let known = pool::unblock(move || {
            vault.db.read(|t| -> Result<_, DbError> {
                let Some(row) = t.chunk(&name)? else { return Ok(None) };
                let holders = t.copies_of(row.id)?;
                Ok(Some((row, holders)))
            })
        })
        .await?;
        let Some((row, holders)) = known else { return Ok(None) };
        let mut cells = sync.reached();
        // First those that are known to have it.
        order::sort_by_key(&mut cells, |cell| !holders.contains(cell));
        for cell in cells {
            if let Got::Bytes(sealed) = sync.fetch_aside(cell, row.id, name, row.len).await {
                return Ok(Some(sealed));
            }
        }
        Ok(None)
    }

    /// Chunks of files here that should lie here and do not. At most 100,000.
    async fn absent_chunks(&self) -> Result<Vec<ChunkName>, VaultError> {
        let vault = Arc::clone(&self.vault);
        pool::unblock(move || {
            let mut absent = Vec::new();
            let mut after = ChunkId(0);
            loop {
                let page = vault.db.read(|t| t.absent_own_after(after, vault.config.copies, 1000))?;
                let Some(last) = page.last() else { return Ok(absent) };
                after = last.id;
                absent.extend(page.into_iter().map(|row| row.name));
                if absent.len() >= 100_000 {
                    return Ok(absent);
                }
            }
        })
        .await
    }

    /// Thinning, the end of the bin, the budget, and then garbage collection.
    async fn tidy(&self) -> Result<gc::Collected, VaultError> {
        let vault = Arc::clone(&self.vault);
        let collected = pool::unblock(move || gc::tidy(&vault)).await?;
        if collected.chunks > 0 {
            log::info!("{} chunks that nothing needed are gone", collected.chunks);
        }
        self.gather_cold().await?;
        Ok(collected)
    }

    /// Gathers small chunks that have grown cold into packs: a little at a time, so that nobody waits for it.
    async fn gather_cold(&self) -> Result<(), VaultError> {
        let mut gathered = 0;
        for _ in 0..GATHER_SLICES {
            let vault = Arc::clone(&self.vault);
            let slice = pool::unblock(move || gc::gather_cold(&vault)).await?;
            gathered += slice;
            if slice == 0 {
                break;
            }
            smol::Timer::after(GATHER_PAUSE).await;
        }
        if gathered > 0 {
            log::info!("{gathered} small chunks that were long unchanged lie in packs now");
        }
        Ok(())
    }
}

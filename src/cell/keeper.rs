//! Keeps GroveHome: scans, watches, imports, deletes and publishes. One pass at a time.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use smol::lock::Semaphore;

use crate::config::{COMMIT_BYTES, COMMIT_SMALL_BYTES, PUBLISH_S};
use crate::files::import::{self, Committed, LargeImporter, Outcome, Prepared};
use crate::files::unix::Stat;
use crate::files::walk::{Candidate, Found, Problem, Walk};
use crate::files::watch::{Settling, WatchList};
use crate::files::{deletion, mirror};
use crate::order;
use crate::placement::NodeId;
use crate::pool::{self, Job};
use crate::publish;
use crate::vault::{Alert, Vault, VaultError, home_alert};

/// Files of one commit.
const COMMIT_FILES: usize = 2000;
/// Rounds of looking again at files that are being written, before a one-time import gives up on them.
const PATIENCE: usize = 20;
/// Problems listed by name.
const PROBLEMS_MAX: usize = 1000;

/// What a pass did.
#[derive(Debug, Clone, Default)]
pub struct Kept {
    /// Files and links with a new version.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Names that were as known.
    pub unchanged: u64,
    /// Folders recorded.
    pub folders: u64,
    /// Deletions recorded.
    pub deleted: u64,
    /// What could not be kept.
    pub problems: Vec<Problem>,
    /// Look again at these, after so many ms.
    later: Vec<(Candidate, u64)>,
}

/// Bytes and files done, for whoever watches.
#[derive(Debug, Default)]
pub struct Progress {
    /// Names looked at.
    pub looked_at: Cell<u64>,
    /// Files kept.
    pub files: Cell<u64>,
    /// Bytes read.
    pub bytes: Cell<u64>,
}

impl Progress {
    fn add(cell: &Cell<u64>, n: u64) {
        cell.set(cell.get() + n);
    }
}

/// Which part of GroveHome to look through.
#[derive(Debug, Clone)]
pub enum Scope {
    /// All.
    Whole,
    /// These names, and these folders with all in them.
    Some(Vec<(NodeId, Vec<u8>)>, Vec<(NodeId, bool)>),
}

/// Keeps GroveHome.
pub struct Keeper {
    vault: Arc<Vault>,
    permits: Arc<Semaphore>,
    jobs: usize,
    pass: smol::lock::Mutex<()>,
    watch: Option<Arc<WatchList>>,
    settling: RefCell<Settling>,
    wake: (smol::channel::Sender<()>, smol::channel::Receiver<()>),
    /// A whole scan is running, and when the last ended (steady time).
    pub scanning: Cell<bool>,
    /// See `scanning`.
    pub scanned_at: Cell<Option<Duration>>,
}

struct Pass<'a> {
    keeper: &'a Keeper,
    force: bool,
    progress: &'a Progress,
    kept: Kept,
    preparing: VecDeque<Job<Vec<Result<Outcome, VaultError>>>>,
    ready: Vec<Prepared>,
    ready_bytes: (usize, usize),
    seen: Vec<(Candidate, Stat)>,
    committing: Option<Job<Result<Committed, VaultError>>>,
    published: Duration,
}

impl Keeper {
    /// A keeper; with `watch` it follows changes as they come.
    pub fn new(
        vault: Arc<Vault>,
        permits: Arc<Semaphore>,
        jobs: usize,
        watch: Option<Arc<WatchList>>,
    ) -> Rc<Self> {
        let settling = Settling::new(
            Duration::from_millis(vault.config.settle_closed_ms),
            Duration::from_millis(vault.config.settle_open_ms),
        );
        Rc::new(Self {
            vault,
            permits,
            jobs,
            pass: smol::lock::Mutex::new(()),
            watch,
            settling: RefCell::new(settling),
            wake: smol::channel::bounded(1),
            scanning: Cell::new(false),
            scanned_at: Cell::new(None),
        })
    }

    /// Looks through a part of GroveHome, keeps what is new, judges what is missing, and publishes. With `patient`, files
    /// that are being written are waited for; else they come again by themselves.
    pub async fn keep(
        &self,
        scope: Scope,
        force: bool,
        patient: bool,
        progress: &Progress,
    ) -> Result<Kept, VaultError> {
        let _one = self.pass.lock().await;
        let is_whole = matches!(scope, Scope::Whole);
        self.scanning.set(is_whole || self.scanning.get());
        let outcome = self.keep_locked(scope, force, patient, progress).await;
        if is_whole {
            self.scanning.set(false);
            self.scanned_at.set(Some(self.vault.clock.steady()));
        }
        match &outcome {
            Ok(_) => ["import", "home"].into_iter().for_each(|code| self.vault.clear(code)),
            Err(why @ VaultError::Home(_)) => self.vault.raise("home", home_alert(why)),
            Err(why) => {
                let remedy = if why.is_full() {
                    "free some space: delete files, or lower versions.budget_percent; the cell goes on by itself"
                } else {
                    "run `grove doctor`; the next scan tries again"
                };
                self.vault.raise(
                    "import",
                    Alert { text: format!("new files are not kept: {why}"), remedy: remedy.into() },
                );
            }
        }
        outcome
    }

    async fn keep_locked(
        &self,
        scope: Scope,
        force: bool,
        patient: bool,
        progress: &Progress,
    ) -> Result<Kept, VaultError> {
        let mut all = Kept::default();
        let mut scope = scope;
        let mut suspects = Vec::new();
        for round in 0..PATIENCE {
            let mut pass = Pass {
                keeper: self,
                force,
                progress,
                kept: Kept::default(),
                preparing: VecDeque::new(),
                ready: Vec::new(),
                ready_bytes: (0, 0),
                seen: Vec::new(),
                committing: None,
                published: self.vault.clock.steady(),
            };
            let outcome = pass.run(scope, &mut suspects).await;
            // What was read is kept even if the walk could not go on.
            let flushed = pass.flush().await;
            let kept = std::mem::take(&mut pass.kept);
            drop(pass);
            all.files += kept.files;
            all.bytes += kept.bytes;
            all.folders += kept.folders;
            if round == 0 {
                all.unchanged = kept.unchanged;
            }
            all.problems.extend(kept.problems);
            all.problems.truncate(PROBLEMS_MAX);
            outcome?;
            flushed?;
            if kept.later.is_empty() {
                break;
            }
            if !patient {
                self.look_again(kept.later);
                break;
            }
            if round + 1 == PATIENCE {
                all.problems.extend(kept.later.iter().map(|(candidate, _)| Problem {
                    path: candidate.show(),
                    why: "it is being written all the time; it is kept when it is quiet".into(),
                }));
                break;
            }
            let wait = kept.later.iter().map(|(_, ms)| *ms).max().unwrap_or(0).min(2000);
            smol::Timer::after(Duration::from_millis(wait.max(5))).await;
            let names = kept.later.into_iter().map(|(c, _)| (c.at.node, c.name)).collect();
            scope = Scope::Some(names, Vec::new());
        }
        order::sort(&mut suspects);
        suspects.dedup();
        for folder in suspects {
            let vault = Arc::clone(&self.vault);
            all.deleted += pool::unblock(move || deletion::judge_folder(&vault, folder)).await?;
        }
        self.publish().await?;
        Ok(all)
    }

    fn look_again(&self, later: Vec<(Candidate, u64)>) {
        let now = self.vault.clock.steady();
        for (candidate, ms) in later {
            let due = now + Duration::from_millis(ms.max(5));
            self.settling.borrow_mut().put(candidate.at.node, candidate.name, due);
        }
        let _ = self.wake.0.try_send(());
    }

    /// Waits for the running pass and holds the next one off: for changes that first the database and then the disk sees.
    pub async fn hold(&self) -> smol::lock::MutexGuard<'_, ()> {
        self.pass.lock().await
    }

    /// Publishes what is pending, and brings the mirror up to date behind it.
    pub async fn publish(&self) -> Result<bool, VaultError> {
        let vault = Arc::clone(&self.vault);
        pool::unblock(move || publish::publish(&vault)).await
    }

    /// Brings `manifests/` up to date.
    pub async fn mirror(&self) {
        loop {
            let vault = Arc::clone(&self.vault);
            match pool::unblock(move || mirror::catch_up(&vault)).await {
                Ok(true) => {}
                Ok(false) => break,
                Err(why) => {
                    log::debug!("manifests/: {why}");
                    break;
                }
            }
        }
    }

    /// Listens to the kernel for ever and notes what changes.
    pub async fn listen(self: Rc<Self>) {
        let Some(watch) = self.watch.clone() else { return };
        loop {
            match watch.next().await {
                Ok(events) => {
                    let now = self.vault.clock.steady();
                    let mut settling = self.settling.borrow_mut();
                    for event in events {
                        settling.see(event, now);
                    }
                    drop(settling);
                    let _ = self.wake.0.try_send(());
                }
                Err(why) => {
                    log::error!("the watch on GroveHome ended: {why}; scans go on");
                    return;
                }
            }
        }
    }

    /// Keeps what has settled, for ever; calls `kept` after each pass that published something.
    pub async fn follow(self: Rc<Self>, kept: impl Fn()) {
        loop {
            let due = self.settling.borrow().next_due();
            let wait = match due {
                Some(due) => due.saturating_sub(self.vault.clock.steady()),
                None => Duration::from_secs(3600),
            };
            smol::future::or(
                async {
                    smol::Timer::after(wait).await;
                },
                async {
                    let _ = self.wake.1.recv().await;
                },
            )
            .await;
            let settled = self.settling.borrow_mut().take(self.vault.clock.steady());
            let scope = if settled.everything {
                Scope::Whole
            } else if settled.names.is_empty() {
                continue;
            } else {
                Scope::Some(settled.names, Vec::new())
            };
            match self.keep(scope.clone(), false, false, &Progress::default()).await {
                Ok(done) => {
                    for problem in &done.problems {
                        log::warn!("{} is not kept: {}", problem.path, problem.why);
                    }
                    kept();
                    self.mirror().await;
                }
                Err(why) => {
                    // What could not be kept is not forgotten: it is looked at again.
                    log::error!("{why}");
                    let due = self.vault.clock.steady() + Duration::from_secs(10);
                    if let Scope::Some(names, _) = scope {
                        let mut settling = self.settling.borrow_mut();
                        names.into_iter().for_each(|(node, name)| settling.put(node, name, due));
                    }
                }
            }
        }
    }

    /// Folders watched, and whether the kernel gives no more watches.
    pub fn watched(&self) -> (usize, bool) {
        self.watch.as_ref().map_or((0, false), |watch| (watch.len(), watch.is_full()))
    }
}

impl Pass<'_> {
    async fn run(&mut self, scope: Scope, suspects: &mut Vec<NodeId>) -> Result<(), VaultError> {
        let (vault, watch) = (Arc::clone(&self.keeper.vault), self.keeper.watch.clone());
        let mut walk = pool::unblock(move || match scope {
            Scope::Whole => Walk::whole(vault, watch),
            Scope::Some(names, folders) => Walk::some(vault, watch, names, folders),
        })
        .await?;
        let importer = LargeImporter::new(
            Arc::clone(&self.keeper.vault),
            Arc::clone(&self.keeper.permits),
            self.keeper.jobs,
        );
        let mut step = begin_step(walk);
        let mut had_large = false;
        loop {
            let (back, found) = step.await;
            walk = back;
            let found: Found = found?;
            let is_done = found.is_done;
            let next = if is_done {
                suspects.extend(walk.suspects());
                None
            } else {
                Some(begin_step(walk))
            };
            self.kept.problems.extend(found.problems);
            self.kept.problems.truncate(PROBLEMS_MAX);
            self.kept.folders += found.folders;
            Progress::add(&self.progress.looked_at, found.looked_at);
            self.kept.unchanged +=
                found.looked_at.saturating_sub(found.candidates.len() as u64 + found.folders);
            let (small, large): (Vec<_>, Vec<_>) = found.candidates.into_iter().partition(import::is_small);
            if had_large && !small.is_empty() {
                // What large files needed does not lie beside what small ones do.
                crate::buffers::clear();
            }
            had_large = !large.is_empty();
            for job in import::into_jobs(small) {
                self.prepare(job).await?;
            }
            for candidate in large {
                let outcome = importer
                    .prepare(candidate, self.force, &|n| Progress::add(&self.progress.bytes, n))
                    .await?;
                self.take(outcome)?;
                self.commit_if_due(false).await?;
            }
            match next {
                Some(next) => step = next,
                None => return Ok(()),
            }
        }
    }

    async fn prepare(&mut self, small: Vec<Candidate>) -> Result<(), VaultError> {
        // Some may be done before the oldest is.
        while self.preparing.len() >= 2 * self.keeper.jobs {
            self.collect_one().await?;
        }
        let permit = self.keeper.permits.acquire_arc().await;
        let (vault, force) = (Arc::clone(&self.keeper.vault), self.force);
        // Runs at once, whether or not it is waited for.
        self.preparing.push_back(pool::unblock(move || {
            let _permit = permit;
            import::prepare_small(&vault, small, force)
        }));
        Ok(())
    }

    async fn collect_one(&mut self) -> Result<(), VaultError> {
        let Some(oldest) = self.preparing.pop_front() else { return Ok(()) };
        for outcome in oldest.await {
            self.take(outcome?)?;
        }
        self.commit_if_due(false).await
    }

    fn take(&mut self, outcome: Outcome) -> Result<(), VaultError> {
        match outcome {
            Outcome::Ready(prepared) => {
                let (small, all) = prepared.waiting();
                self.ready_bytes = (self.ready_bytes.0 + small, self.ready_bytes.1 + all);
                if small > 0 {
                    Progress::add(&self.progress.bytes, small as u64);
                }
                self.ready.push(*prepared);
            }
            Outcome::SameContent(candidate, stat) => self.seen.push((*candidate, *stat)),
            Outcome::Gone => {}
            Outcome::Later(candidate, ms) => self.kept.later.push((*candidate, ms)),
            Outcome::Problem(problem) => {
                if self.kept.problems.len() < PROBLEMS_MAX {
                    self.kept.problems.push(problem);
                }
            }
        }
        Ok(())
    }

    async fn commit_if_due(&mut self, all: bool) -> Result<(), VaultError> {
        // While one commit lasts there is time to make ready for two.
        let is_busy = self.committing.as_ref().is_some_and(|commit| !commit.is_finished());
        let most = if is_busy { 2 } else { 1 };
        let is_due = self.ready_bytes.0 >= most * COMMIT_SMALL_BYTES
            || self.ready_bytes.1 >= most * COMMIT_BYTES
            || self.ready.len() >= most * COMMIT_FILES;
        if self.seen.len() >= COMMIT_FILES || (all && !self.seen.is_empty()) {
            let (vault, seen) = (Arc::clone(&self.keeper.vault), std::mem::take(&mut self.seen));
            pool::unblock(move || import::note_seen(&vault, seen)).await?;
        }
        let is_rest = all && !self.ready.is_empty();
        if !is_due && !is_rest {
            return Ok(());
        }
        self.await_commit().await?;
        let ready = std::mem::take(&mut self.ready);
        self.ready_bytes = (0, 0);
        let vault = Arc::clone(&self.keeper.vault);
        self.committing = Some(pool::unblock(move || import::commit(&vault, ready)));
        Ok(())
    }

    async fn await_commit(&mut self) -> Result<(), VaultError> {
        let Some(committing) = self.committing.take() else { return Ok(()) };
        let done = committing.await?;
        self.kept.files += done.files;
        self.kept.bytes += done.bytes;
        Progress::add(&self.progress.files, done.files);
        self.kept.later.extend(done.again.into_iter().map(|candidate| (candidate, 0)));
        let now = self.keeper.vault.clock.steady();
        if now.saturating_sub(self.published) > Duration::from_secs(PUBLISH_S) {
            self.published = now;
            self.keeper.publish().await?;
        }
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), VaultError> {
        while !self.preparing.is_empty() {
            self.collect_one().await?;
        }
        self.commit_if_due(true).await?;
        self.await_commit().await
    }
}

fn begin_step(mut walk: Walk) -> Job<(Walk, Result<Found, VaultError>)> {
    pool::unblock(move || {
        let found = walk.step();
        (walk, found)
    })
}

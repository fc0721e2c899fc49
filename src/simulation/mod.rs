//! Many cells in one thread, in virtual time, with links and disks in memory and faults from a seed.
//!
//! What runs in it is the real code: rounds, answers to peers, planning, healing, publishing and merging catalogs, garbage
//! collection, and what opens a state folder. What stands in for the machine: `world` (time, dice, threads), `MemoryStore`,
//! `MemoryFiles` and images of placement.db (disks, which crash and lose power at any operation), and `session::pair` (links,
//! which are cut, stalled and lose requests).
//!
//! The world knows everything: after each fault it knows on which disks sound bytes lie. It never takes the last sound copy
//! of what is needed, so any loss that it finds is the program's doing.
//!
//! Promise: the same seed gives the same run, to the byte.

pub mod bounty;
pub(crate) mod files;
mod machine;
pub mod numbers;
pub mod refusals;
pub mod rules;
pub mod sharing;
mod story;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest, Sha256};

use crate::config::Config;
use crate::id::ChunkName;
use crate::keys::random;
use crate::placement::{CopyState, DbError, Own, Tables};
use crate::pool::unblock;
use crate::publish;
use crate::routes::{Kind, Speed};
use crate::sync::{Others, Wired, bring_back};
use crate::vault::{Vault, VaultError};
use crate::wire::session::{self, Limits, Wire};
use crate::world::{Dice, Guard, Sabotage};
use files::Kept;
use machine::{Machine, StartError, alive};

pub use story::{Changes, Outcome, Scale, year, year_of_change};

/// Turns of tasks after which a world that does not come to rest is taken for one that never will.
const TICKS_MAX: u64 = 400_000;
thread_local! {
    /// What a task of a cell panicked with: an executor keeps it for whoever awaits the task.
    static PANIC: std::cell::RefCell<Option<String>> = const { std::cell::RefCell::new(None) };
}

/// Sees to it that a panic in a task is heard of.
fn hear_panics() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if crate::world::is_simulated() {
                PANIC.with(|panic| *panic.borrow_mut() = Some(info.to_string()));
            }
            before(info);
        }));
    });
}

/// Lines of the log that a failure shows.
const LINES_SHOWN: usize = 60;
/// An hour.
pub const HOUR: Duration = Duration::from_secs(3600);
/// A day.
pub const DAY: Duration = Duration::from_secs(86_400);
/// Damage is found within this time, by the world's reckoning of a day.
const FOUND: Duration = Duration::from_secs(31 * 86_400);
/// What is superseded or deleted is looked for this long; the program keeps it for 30 days.
const KEPT: Duration = Duration::from_secs(28 * 86_400);

/// A rule that did not hold, in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broken(pub String);

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

type Checked<T = ()> = Result<T, Broken>;

/// A version that must not be lost.
#[derive(Debug, Clone)]
struct Expected {
    kept: Kept,
    name: Vec<u8>,
    /// When it stopped being the newest.
    over_at: Option<Duration>,
}

/// A chunk that has rotted.
#[derive(Debug, Clone, Copy)]
struct Rotten {
    at: Duration,
    /// The cell's own observed seconds, once it was on.
    observed: Option<u64>,
    /// How long the cell has run since, and when that was last looked at.
    ran: Duration,
    seen: Duration,
}

/// A recovery asks the one peer that is whole.
struct Nobody;

impl Others for Nobody {
    async fn fetch(
        &self,
        _: &Arc<Vault>,
        _: &crate::card::Card,
        names: Vec<ChunkName>,
        _: crate::placement::Own,
    ) -> Vec<ChunkName> {
        names
    }
}

/// The world.
pub struct Sim {
    guard: Guard,
    dice: Dice,
    machines: Vec<Machine>,
    /// Who is whose peer; the smaller number first.
    friends: BTreeSet<(usize, usize)>,
    wires: BTreeMap<(usize, usize), Wire>,
    /// Pairs between which nothing passes.
    apart: BTreeSet<(usize, usize)>,
    expected: Vec<Vec<Expected>>,
    /// When chunks rotted, and on whose disk.
    rotten: BTreeMap<(usize, ChunkName), Rotten>,
    /// The disk was so full that old versions had to go.
    was_full: Vec<bool>,
    /// Whose brake is on, as it said itself: nothing old goes until a person confirms.
    braked: BTreeSet<usize>,
    /// Percent of requests that fail on new wires.
    loss: u64,
    hash: Sha256,
    lines: VecDeque<String>,
    is_loud: bool,
    files_made: u64,
}

/// Prints what cells log, with the number of the cell.
struct Loud;

thread_local! {
    static CELL: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

impl log::Log for Loud {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        if record.target().starts_with("grove") {
            eprintln!("    cell {} {}: {}", CELL.get(), record.level(), record.args());
        }
    }

    fn flush(&self) {}
}

fn pair(a: usize, b: usize) -> (usize, usize) {
    (a.min(b), a.max(b))
}

impl Sim {
    /// A world of so many machines, all on, nobody a peer of anybody.
    pub fn new(seed: u64, cells: usize) -> Self {
        Self::with(seed, cells, |_, _| {})
    }

    /// A world of machines with these settings.
    pub fn with(seed: u64, cells: usize, mut settings: impl FnMut(usize, &mut Config)) -> Self {
        hear_panics();
        let guard = Guard::begin(seed);
        if std::env::var("GROVE_SIM_LOG").is_ok_and(|value| value == "2") && log::set_logger(&Loud).is_ok() {
            log::set_max_level(log::LevelFilter::Debug);
        }
        let mut sim = Self {
            guard,
            dice: Dice::new(seed, "world"),
            machines: (0..cells).map(|number| Machine::new(seed, number)).collect(),
            friends: BTreeSet::new(),
            wires: BTreeMap::new(),
            apart: BTreeSet::new(),
            expected: vec![Vec::new(); cells],
            rotten: BTreeMap::new(),
            was_full: vec![false; cells],
            braked: BTreeSet::new(),
            loss: 0,
            hash: Sha256::new(),
            lines: VecDeque::new(),
            is_loud: std::env::var_os("GROVE_SIM_LOG").is_some(),
            files_made: 0,
        };
        for (at, machine) in sim.machines.iter_mut().enumerate() {
            settings(at, &mut machine.config);
        }
        for at in 0..cells {
            sim.start(at).expect("a new cell starts");
        }
        sim
    }

    /// Breaks a rule of the program on purpose.
    pub fn sabotage(&mut self, what: Sabotage) {
        self.guard.sabotage(Some(what));
    }

    /// The number of machines.
    pub fn len(&self) -> usize {
        self.machines.len()
    }

    /// There are always some.
    pub fn is_empty(&self) -> bool {
        self.machines.is_empty()
    }

    /// Virtual time.
    pub fn now(&self) -> Duration {
        self.guard.now()
    }

    /// A hash over all that has happened so far.
    pub fn fingerprint(&self) -> [u8; 32] {
        self.hash.clone().finalize().into()
    }

    /// The last lines of the log.
    pub fn log(&self) -> String {
        self.lines.iter().map(String::as_str).collect::<Vec<_>>().join("\n")
    }

    fn note(&mut self, text: fmt::Arguments<'_>) {
        let now = self.now();
        let (day, s) = (now.as_secs() / 86_400, now.as_secs() % 86_400);
        let line = format!("day {day} {:02}:{:02}:{:02} {text}", s / 3600, s / 60 % 60, s % 60);
        self.hash.update(line.as_bytes());
        if self.is_loud {
            eprintln!("{line}");
        }
        if self.lines.len() == LINES_SHOWN {
            self.lines.pop_front();
        }
        self.lines.push_back(line);
    }

    fn broken<T>(&self, text: fmt::Arguments<'_>) -> Checked<T> {
        Err(Broken(text.to_string()))
    }

    fn is_on(&self, at: usize) -> bool {
        self.machines[at].running.is_some()
    }

    fn vault(&self, at: usize) -> Option<Arc<Vault>> {
        self.machines[at].running.as_ref().map(|running| Arc::clone(&running.vault))
    }

    /// What stands in a cell's database, if it is on. That the sim looks is no step of the cell.
    fn look<T>(&self, at: usize, see: impl FnOnce(&Tables<'_>) -> Result<T, DbError>) -> Option<T> {
        let vault = self.vault(at)?;
        self.machines[at].disk.fuse.aside(|| vault.db.change(see)).ok()
    }

    // ---- Running ----

    fn spawn(&self, at: usize, work: impl Future<Output = ()> + 'static) {
        if let Some(running) = &self.machines[at].running {
            running.executor.spawn(work).detach();
        }
    }

    /// Lets all cells do what they can do without time passing.
    fn settle(&mut self) -> Checked {
        let cells = self.machines.len() as u64;
        let mut ticks = 0;
        loop {
            let first = self.dice.below(cells) as usize;
            let mut is_any = false;
            for step in 0..self.machines.len() {
                let at = (first + step) % self.machines.len();
                CELL.set(at);
                for _ in 0..1 + self.dice.below(4) {
                    let Some(running) = &self.machines[at].running else { break };
                    let executor = Rc::clone(&running.executor);
                    let ticked = alive(|| executor.try_tick());
                    drop(executor);
                    let is_blown = self.machines[at].is_blown();
                    let is_due = is_blown
                        || match &mut self.machines[at].ticks_left {
                            Some(0) => true,
                            Some(left) => {
                                *left -= u64::from(ticked == Some(true));
                                false
                            }
                            None => false,
                        };
                    match ticked {
                        Some(true) if !is_due => is_any = true,
                        Some(false) if !is_due => break,
                        _ => self.crash(at),
                    }
                    ticks += 1;
                }
            }
            if let Some(panic) = PANIC.with(|panic| panic.borrow_mut().take()) {
                return self.broken(format_args!("a task panicked: {panic}"));
            }
            if !is_any {
                return Ok(());
            }
            if ticks > TICKS_MAX {
                return self.broken(format_args!("the cells never come to rest"));
            }
        }
    }

    /// Lets time pass, and everything happen that is due meanwhile.
    pub fn pass(&mut self, time: Duration) -> Checked {
        let until = self.now() + time;
        loop {
            self.settle()?;
            let now = self.now();
            let timer = self.guard.next_timer().unwrap_or(until);
            let back = self.machines.iter().filter_map(|machine| machine.back_at).min().unwrap_or(until);
            let next = timer.min(back).clamp(now, until);
            self.machines.iter().for_each(|machine| machine.pass(next - now));
            self.guard.pass_to(next);
            for at in 0..self.machines.len() {
                if self.machines[at].back_at.is_some_and(|back| back <= next) {
                    self.switch_on(at)?;
                }
            }
            if next == until && timer >= until && back >= until {
                return self.settle();
            }
        }
    }

    fn switch_on(&mut self, at: usize) -> Checked {
        self.machines[at].back_at = None;
        if self.is_on(at) || self.machines[at].is_gone {
            return Ok(());
        }
        match self.start(at) {
            Ok(()) => Ok(()),
            Err(StartError::Crashed) => {
                self.note(format_args!("{} crashes while it starts", self.machines[at].name.clone()));
                self.machines[at].back_at = Some(self.now() + HOUR);
                Ok(())
            }
            Err(StartError::Why(why)) => {
                self.broken(format_args!("{} does not start: {why}", self.machines[at].name))
            }
        }
    }

    fn start(&mut self, at: usize) -> Result<(), StartError> {
        let now = self.now();
        self.machines[at].start(now, |_, _| Ok(()))?;
        self.note(format_args!("{at} is on"));
        Ok(())
    }

    /// A process ends where it stands; sometimes the power fails with it.
    fn crash(&mut self, at: usize) {
        let is_power_cut = self.dice.percent(50);
        self.stop(at, is_power_cut);
        let pause = Duration::from_secs(1 + self.dice.below(7200));
        self.machines[at].back_at = Some(self.now() + pause);
        self.note(format_args!("{at} crashes, power cut: {is_power_cut}"));
    }

    fn stop(&mut self, at: usize, is_power_cut: bool) {
        let wires: Vec<(usize, usize)> =
            self.wires.keys().filter(|(a, b)| *a == at || *b == at).copied().collect();
        for key in wires {
            if let Some(wire) = self.wires.remove(&key) {
                wire.cut();
            }
        }
        self.machines[at].kill(is_power_cut, &mut self.dice);
    }

    /// Switches a cell off in order.
    fn switch_off(&mut self, at: usize) -> Checked {
        let Some(running) = &self.machines[at].running else { return Ok(()) };
        let (sync, vault) = (Rc::clone(&running.sync), Arc::clone(&running.vault));
        self.spawn(at, async move {
            sync.stop().await;
            let saved = unblock(move || vault.save_time()).await;
            drop(saved);
        });
        self.settle()?;
        self.stop(at, false);
        self.note(format_args!("{at} is switched off"));
        Ok(())
    }

    // ---- The network ----

    fn may_meet(&self, a: usize, b: usize) -> bool {
        self.is_on(a) && self.is_on(b) && !self.apart.contains(&pair(a, b))
    }

    /// Connects everybody who can be and is not.
    fn connect_all(&mut self) {
        self.wires.retain(|_, wire| wire.is_whole());
        let wanted: Vec<(usize, usize)> = self
            .friends
            .iter()
            .filter(|(a, b)| self.may_meet(*a, *b) && !self.wires.contains_key(&(*a, *b)))
            .copied()
            .collect();
        for (a, b) in wanted {
            self.connect(a, b);
        }
    }

    fn connect(&mut self, a: usize, b: usize) {
        let (ours, theirs, wire) = session::pair(&Limits::default());
        if self.loss > 0 {
            let mut seed = [0; 8];
            self.dice.fill(&mut seed);
            wire.lose(self.loss, Dice::new(u64::from_le_bytes(seed), "loss"));
        }
        let is_first = self.dice.percent(50);
        // Each pair has its own speed, which does not change.
        let speed = 1_000_000 * (1 + (a as u64 * 7 + b as u64 * 3) % 5);
        let speed = Speed { rtt_us: 20_000, up_bytes_per_s: speed, down_bytes_per_s: speed };
        for (own, other, driven, is_ours) in [(a, b, ours, is_first), (b, a, theirs, !is_first)] {
            let (Some(here), Some(there)) = (&self.machines[own].running, &self.machines[other].running)
            else {
                continue;
            };
            let (sync, card) = (Rc::clone(&here.sync), there.sync.card());
            let wired = Wired { driven, kind: Kind::Wan, speed, is_ours };
            self.spawn(own, async move {
                if !sync.attach_in_memory(&card, wired).await {
                    log::info!("no peer any more");
                }
            });
        }
        self.wires.insert((a, b), wire);
    }

    /// Cuts two machines off from each other, or joins them again.
    fn part(&mut self, a: usize, b: usize, is_apart: bool) {
        if is_apart {
            self.apart.insert(pair(a, b));
            if let Some(wire) = self.wires.remove(&pair(a, b)) {
                wire.cut();
            }
        } else {
            self.apart.remove(&pair(a, b));
        }
    }

    /// Bytes that have passed on all wires that are whole.
    fn passed(&self) -> u64 {
        self.wires.values().map(Wire::passed).sum()
    }

    /// Pairs of peers that are connected.
    fn pairs(&self) -> usize {
        self.wires.len()
    }

    /// Makes two cells peers of each other.
    pub fn befriend(&mut self, a: usize, b: usize) -> Checked {
        self.befriend_all(vec![(a, b)])
    }

    /// Makes all these pairs peers of each other, at once.
    fn befriend_all(&mut self, pairs: Vec<(usize, usize)>) -> Checked {
        for (a, b) in pairs {
            self.introduce(a, b);
        }
        self.settle()?;
        self.connect_all();
        self.settle()
    }

    /// Who came back from a catalog that is older than a friendship does not know that peer, and what only that one has does not come
    /// back by itself: its person invites it again.
    fn invite_the_forgotten(&mut self) -> Checked {
        let pairs: Vec<(usize, usize)> =
            self.friends.iter().flat_map(|(a, b)| [(*a, *b), (*b, *a)]).collect();
        for (own, other) in pairs {
            let (Some(here), Some(there)) = (&self.machines[own].running, &self.machines[other].running)
            else {
                continue;
            };
            let (sync, card) = (Rc::clone(&here.sync), there.sync.card());
            let id = self.machines[other].master.identity(0, 0).id();
            if sync.proofs().iter().any(|view| view.id == id) {
                continue;
            }
            self.note(format_args!("{own} has forgotten {other}, and invites it again"));
            self.spawn(own, async move {
                if let Err(why) = sync.befriend(&card).await {
                    log::warn!("{why}");
                }
            });
        }
        self.settle()
    }

    fn introduce(&mut self, a: usize, b: usize) {
        for (own, other) in [(a, b), (b, a)] {
            let (Some(here), Some(there)) = (&self.machines[own].running, &self.machines[other].running)
            else {
                return;
            };
            let (sync, card) = (Rc::clone(&here.sync), there.sync.card());
            self.spawn(own, async move {
                if let Err(why) = sync.befriend(&card).await {
                    log::warn!("{why}");
                }
            });
        }
        self.friends.insert(pair(a, b));
        self.note(format_args!("{a} and {b} are peers"));
    }

    // ---- What cells do by themselves ----

    /// Every cell looks around who is here: before and after anything that changes it.
    fn look_around(&mut self) -> Checked {
        for at in 0..self.machines.len() {
            if let Some(running) = &self.machines[at].running {
                let sync = Rc::clone(&running.sync);
                self.spawn(at, async move { sync.watch_peers().await });
            }
        }
        self.settle()
    }

    /// One turn of rounds of all cells.
    pub fn turn(&mut self) -> Checked {
        self.connect_all();
        self.look_around()?;
        for at in 0..self.machines.len() {
            if let Some(running) = &self.machines[at].running {
                let sync = Rc::clone(&running.sync);
                self.spawn(at, async move { sync.keep_turn().await });
            }
        }
        self.pass(Duration::from_secs(20))
    }

    /// Several turns, so far apart as the interval of rounds is.
    pub fn turns(&mut self, count: usize) -> Checked {
        for _ in 0..count {
            self.turn()?;
            self.pass(Duration::from_secs(280))?;
        }
        Ok(())
    }

    fn job(&self, at: usize, work: impl FnOnce(&Vault) -> Result<(), VaultError> + Send + 'static) {
        let Some(vault) = self.vault(at) else { return };
        self.spawn(at, async move {
            if let Err(why) = unblock(move || work(&vault)).await {
                log::info!("{why}");
            }
        });
    }

    /// A cell reads what is due to be read, and mends what it has found damaged.
    fn scrub(&mut self, at: usize) -> Checked {
        self.job(at, crate::cell::scrub::scrub_now);
        self.settle()?;
        self.mend(at)
    }

    fn mend(&mut self, at: usize) -> Checked {
        let Some(running) = &self.machines[at].running else { return Ok(()) };
        let (sync, vault) = (Rc::clone(&running.sync), Arc::clone(&running.vault));
        if vault.damaged().is_empty() {
            return Ok(());
        }
        self.spawn(at, async move {
            let wanted = vault.damaged();
            drop(sync.fetch(wanted.clone()).await);
            let noted = unblock(move || -> Result<(), VaultError> {
                let absent: BTreeSet<ChunkName> = vault.absent(wanted.clone())?.into_iter().collect();
                let healed: Vec<ChunkName> =
                    wanted.into_iter().filter(|name| !absent.contains(name)).collect();
                vault.note_healed(&healed, false);
                Ok(())
            });
            if let Err(why) = noted.await {
                log::info!("{why}");
            }
        });
        self.settle()
    }

    /// A cell tidies up, as it does every few hours.
    fn tidy(&mut self, at: usize) -> Checked {
        self.job(at, |vault| {
            vault.save_time()?;
            crate::gc::tidy(vault)?;
            crate::gc::gather_cold(vault).map(drop)
        });
        self.settle()?;
        // As often a cell asks for all that should lie here and does not.
        self.fetch_absent(at);
        self.settle()
    }

    // ---- What people do ----

    /// Does something with a cell's files and publishes it; what came of it, if the cell was on and said yes.
    fn ask<T: Send + 'static>(
        &mut self,
        at: usize,
        work: impl FnOnce(&Vault) -> Result<T, VaultError> + Send + 'static,
    ) -> Checked<Option<T>> {
        let Some(running) = &self.machines[at].running else { return Ok(None) };
        let (vault, sync) = (Arc::clone(&running.vault), Rc::clone(&running.sync));
        let outcome = Rc::new(std::cell::RefCell::new(None));
        let told = Rc::clone(&outcome);
        self.spawn(at, async move {
            let done = unblock(move || -> Result<T, VaultError> {
                if vault.is_retired() {
                    return Err(VaultError::Refused("retired".into()));
                }
                let done = work(&vault)?;
                publish::publish(&vault)?;
                Ok(done)
            });
            match done.await {
                Ok(done) => {
                    *told.borrow_mut() = Some(done);
                    sync.poke();
                }
                Err(why) => log::info!("{why}"),
            }
        });
        self.settle()?;
        Ok(outcome.take())
    }

    /// A person writes a file, new or changed.
    pub fn write(&mut self, at: usize, name: &[u8]) -> Checked {
        let plains: Vec<Vec<u8>> = (0..1 + self.dice.below(4))
            .map(|_| {
                let mut plain = vec![0; 50 + self.dice.below(900) as usize];
                self.dice.fill(&mut plain);
                plain
            })
            .collect();
        self.files_made += 1;
        let (asked, was_on) = (name.to_vec(), self.is_on(at));
        let kept = self.ask(at, move |vault| files::keep(vault, &asked, &plains))?;
        if let Some(kept) = kept {
            self.note(format_args!("{at} keeps {} version {}", String::from_utf8_lossy(name), kept.version));
            self.expect(at, name, kept);
        } else if was_on {
            self.end_of(at, name);
        }
        Ok(())
    }

    /// What is the newest version of this file is so no longer; perhaps: whoever was not told that a change was made cannot
    /// tell that it was not.
    fn end_of(&mut self, at: usize, name: &[u8]) {
        let now = self.now();
        for one in self.expected[at].iter_mut().filter(|one| one.name == name && one.over_at.is_none()) {
            one.over_at = Some(now);
        }
    }

    fn expect(&mut self, at: usize, name: &[u8], kept: Kept) {
        self.end_of(at, name);
        self.expected[at].push(Expected { kept, name: name.to_vec(), over_at: None });
    }

    /// A person deletes a file.
    fn delete(&mut self, at: usize, name: &[u8]) -> Checked {
        let (asked, was_on) = (name.to_vec(), self.is_on(at));
        let is_deleted = self.ask(at, move |vault| files::delete(vault, &asked))?;
        if was_on && is_deleted != Some(false) {
            self.end_of(at, name);
            self.note(format_args!("{at} deletes {}", String::from_utf8_lossy(name)));
        }
        Ok(())
    }

    /// A person deletes all files of a cell within a moment; whether the cell said yes. Over twenty, and the brake must be on.
    fn delete_all(&mut self, at: usize) -> Checked<bool> {
        let living = self.expected[at].iter().filter(|one| one.over_at.is_none());
        let names: BTreeSet<Vec<u8>> = living.map(|one| one.name.clone()).collect();
        let was_on = self.is_on(at);
        let asked = names.clone();
        let deleted = self.ask(at, move |vault| {
            let mut deleted = 0;
            for name in asked {
                deleted += u64::from(files::delete(vault, &name)?);
            }
            Ok((deleted, files::is_braked(vault)?))
        })?;
        if !was_on {
            return Ok(false);
        }
        // A part may have been deleted before it crashed.
        names.iter().for_each(|name| self.end_of(at, name));
        let Some((deleted, is_braked)) = deleted else { return Ok(false) };
        self.note(format_args!("{at} deletes all its {deleted} files, brake: {is_braked}"));
        if deleted > crate::config::BRAKE_FILES_FREE && !is_braked {
            return self
                .broken(format_args!("{at} deleted {deleted} files at once, and its brake is not on"));
        }
        if is_braked {
            self.braked.insert(at);
        }
        Ok(is_braked)
    }

    /// A person says that it was meant.
    fn confirm(&mut self, at: usize) -> Checked {
        if self.ask(at, files::confirm)?.is_some() {
            self.braked.remove(&at);
            self.note(format_args!("{at} confirms what was deleted"));
        }
        Ok(())
    }

    /// A brake stays on until somebody confirms, whatever happens to the machine.
    fn check_brakes(&self) -> Checked {
        for at in self.braked.iter().copied() {
            let Some(vault) = self.vault(at) else { continue };
            match files::is_braked(&vault) {
                Ok(true) => {}
                Ok(false) => return self.broken(format_args!("the brake of {at} went off by itself")),
                Err(why) => return self.broken(format_args!("the brake of {at} cannot be read: {why}")),
            }
        }
        Ok(())
    }

    /// A person removes a peer, which hears of it if it is connected.
    fn remove_peer(&mut self, at: usize, other: usize) -> Checked {
        let Some(running) = &self.machines[at].running else { return Ok(()) };
        let (sync, id) = (Rc::clone(&running.sync), self.machines[other].master.identity(0, 0).id());
        let outcome = Rc::new(std::cell::RefCell::new(None));
        let told = Rc::clone(&outcome);
        self.spawn(at, async move {
            let removed = sync.remove_peer(&id).await;
            *told.borrow_mut() = Some(removed.map(drop).map_err(|why| why.to_string()));
        });
        self.pass(Duration::from_secs(60))?;
        match outcome.take() {
            Some(Ok(())) => {}
            Some(Err(why)) => return self.broken(format_args!("{at} cannot remove {other}: {why}")),
            None => return self.broken(format_args!("{at} is not done with removing {other} in a minute")),
        }
        self.friends.remove(&pair(at, other));
        if let Some(wire) = self.wires.remove(&pair(at, other)) {
            wire.cut();
        }
        self.note(format_args!("{at} removes its peer {other}"));
        self.settle()
    }

    /// A person makes an older version the newest again.
    fn restore(&mut self, at: usize) -> Checked {
        let old: Vec<&Expected> = self.expected[at].iter().filter(|one| one.over_at.is_some()).collect();
        if old.is_empty() {
            return Ok(());
        }
        let old = old[self.dice.below(old.len() as u64) as usize].clone();
        let (asked, name) = (old.kept.clone(), old.name.clone());
        let was_on = self.is_on(at);
        let restored = self.ask(at, move |vault| files::restore(vault, &name, &asked))?;
        if was_on && restored.is_none() {
            self.end_of(at, &old.name);
        } else if let Some(Some(kept)) = restored {
            self.note(format_args!("{at} restores version {} as {}", old.kept.version, kept.version));
            self.expect(at, &old.name, kept);
        }
        Ok(())
    }

    // ---- What the world knows ----

    /// Versions that must be there now.
    fn needed(&mut self, at: usize) -> Vec<Expected> {
        let now = self.now();
        let (was_full, is_braked) = (self.was_full[at], self.braked.contains(&at));
        let is_kept = |over: Duration| (is_braked || over + KEPT > now) && !was_full;
        self.expected[at].retain(|one| one.over_at.is_none_or(is_kept));
        self.expected[at].clone()
    }

    fn needed_chunks(&mut self, at: usize) -> BTreeSet<ChunkName> {
        self.needed(at).iter().flat_map(|one| one.kept.chunks.iter().copied()).collect()
    }

    /// Machines on whose disks sound bytes of a chunk lie.
    fn sound_at(&self, name: ChunkName) -> Vec<usize> {
        (0..self.machines.len())
            .filter(|at| !self.machines[*at].is_gone && self.machines[*at].disk.store.has_sound(name))
            .collect()
    }

    /// Those of them that run, know where the bytes lie, and keep them for somebody. What was let go counts as no copy, though
    /// its bytes are there until the next collection, or until their pack is rewritten.
    fn kept_at(&self, name: ChunkName) -> impl Iterator<Item = usize> + '_ {
        self.sound_at(name).into_iter().filter(move |at| {
            let is_kept = self.vault(*at).map(|vault| {
                vault.db.read(|t| match t.chunk(&name)?.filter(|row| row.place.is_some()) {
                    Some(row) => Ok(t.own(row.id)? != Own::No || t.is_held(row.id)?),
                    None => Ok::<_, DbError>(false),
                })
            });
            is_kept.is_some_and(|kept| kept.unwrap_or(false))
        })
    }

    /// Whether an owner counts on a copy with this holder: it neither takes it back nor has given it up. Who is off cannot say.
    fn counts_on(&self, owner: usize, name: ChunkName, holder: usize) -> bool {
        let id = self.machines[holder].master.identity(0, 0).id();
        if !self.is_on(owner) {
            return true;
        }
        let copy = self.look(owner, |t| {
            let Some(row) = t.chunk(&name)? else { return Ok(None) };
            t.copy(row.id, t.cell(&id)?)
        });
        copy.flatten().is_some_and(|copy| matches!(copy.state, CopyState::Stored | CopyState::Suspect))
    }

    /// Whether an owner gets back what lies there: it is the owner's own or a peer's. Who was removed keeps chunks for a while,
    /// and they count for nothing.
    fn reaches(&self, owner: usize, holder: usize) -> bool {
        owner == holder || self.friends.contains(&pair(owner, holder))
    }

    /// What everybody knows of an owner's chunk, for a person who looks for a mistake.
    fn describe(&self, owner: usize, name: ChunkName) -> String {
        let mut text = format!("sound at {:?}, rotten {:?};", self.sound_at(name), {
            let rotten = self.rotten.iter().filter(|((_, other), _)| *other == name);
            rotten.map(|((at, _), rotten)| (*at, rotten.at.as_secs() / 86_400)).collect::<Vec<_>>()
        });
        let id = self.machines[owner].master.identity(0, 0).id();
        for at in 0..self.machines.len() {
            let known = self.look(at, |t| {
                let Some(row) = t.chunk(&name)? else { return Ok(None) };
                let mut copies = Vec::new();
                for copy in t.all_copies_of(row.id)? {
                    let id = t.cell_id(copy.cell)?;
                    let who = self.machines.iter().position(|one| Some(one.master.identity(0, 0).id()) == id);
                    copies.push((who, copy.state));
                }
                let cell = t.cell(&id)?;
                Ok(Some(format!(
                    " {at}: place {:?} own {:?} copies {copies:?} held {:?};",
                    row.place,
                    t.own(row.id)?,
                    t.hold(row.id, cell)?
                )))
            });
            text.push_str(&known.flatten().unwrap_or_default());
        }
        text
    }

    /// A copy of a chunk rotted so lately that nobody need have found it.
    fn may_be_rotten(&self, name: ChunkName) -> bool {
        let now = self.now();
        self.rotten.iter().any(|((at, other), rotted)| {
            *other == name && rotted.at + FOUND > now && !self.machines[*at].disk.store.has_sound(name)
        })
    }

    /// A part of an owner's catalog rotted at a peer so lately that nobody need have found it.
    fn may_catalog_be_rotten(&self, owner: usize) -> bool {
        let Some(vault) = self.vault(owner) else { return false };
        let segments = vault.db.read(|t| t.segments()).unwrap_or_default();
        segments.iter().any(|(_, name, _)| self.may_be_rotten(*name))
    }

    /// Whether a machine is on and keeps all of what the phrase of another leads to.
    fn can_help(&self, helper: usize, at: usize) -> bool {
        let Some(running) = &self.machines[helper].running else { return false };
        let master = &self.machines[at].master;
        // One whose copy of the newest catalog has rotted is no help: a person tries the next.
        let is_whole = |head: &crate::placement::StoredHead| {
            let opened = crate::catalog::Head::open(&head.body);
            let is_kept = |name: ChunkName| self.kept_at(name).any(|holder| holder == helper);
            opened.is_ok_and(|(_, head)| head.segments.iter().all(|(name, _)| is_kept(*name)))
        };
        let heads = self.look(helper, |t| {
            let cell = t.cell(&master.identity(0, 0).id())?;
            t.peer_heads(cell)
        });
        helper != at
            && self.reaches(at, helper)
            && running.sync.knows_phrase(&master.recovery_secret())
            && heads.is_some_and(|heads| {
                let newest = heads.iter().filter(|head| head.tip).max_by_key(|head| (head.life, head.seq));
                newest.is_some_and(is_whole)
            })
    }

    /// Damages a chunk on a disk.
    fn rot(&mut self, at: usize, name: ChunkName) {
        let now = self.now();
        let is_cut = self.dice.percent(30);
        let store = &self.machines[at].disk.store;
        if if is_cut { store.truncate(name) } else { store.flip_byte(name) } {
            let observed = self.vault(at).map(|vault| vault.now());
            self.rotten.insert((at, name), Rotten { at: now, observed, ran: Duration::ZERO, seen: now });
            self.note(format_args!("chunk {} rots at {at}", name.short()));
        }
    }

    /// Damage on the disk of an honest cell was found when the cell has run for 30 days since (and one step of a story more).
    pub fn check_damage_is_found(&mut self) -> Checked {
        const RUN_S: u64 = 33 * 86_400;
        let mut rotten = std::mem::take(&mut self.rotten);
        let mut missed = None;
        let now = self.now();
        rotten.retain(|(at, name), rotten| {
            let passed = now.saturating_sub(std::mem::replace(&mut rotten.seen, now));
            let Some(vault) = self.vault(*at) else { return true };
            rotten.ran += passed;
            let row = vault.db.read(|t| t.chunk(name)).ok().flatten();
            let is_said_here = row.is_some_and(|row| row.place.is_some());
            if !is_said_here || self.machines[*at].disk.store.has_sound(*name) {
                return false;
            }
            let since = *rotten.observed.get_or_insert_with(|| vault.now());
            // What it has observed may leap: when a clock is put right, and by the time for which it was off.
            if rotten.ran > Duration::from_secs(RUN_S) && vault.now() > since + RUN_S {
                missed = Some(format!(
                    "chunk {} has been rotten at {at} since day {} and was not found",
                    name.short(),
                    rotten.at.as_secs() / 86_400
                ));
            }
            true
        });
        self.rotten = rotten;
        match missed {
            Some(text) => self.broken(format_args!("{text}")),
            None => Ok(()),
        }
    }

    /// No needed chunk is nowhere.
    pub fn check_nothing_is_lost(&mut self) -> Checked {
        for at in 0..self.machines.len() {
            for name in self.needed_chunks(at) {
                if !self.sound_at(name).into_iter().any(|holder| self.reaches(at, holder)) {
                    let known = self.describe(at, name);
                    let text = format!(
                        "chunk {} of {at} is nowhere, though no fault took the last copy: {known}",
                        name.short()
                    );
                    return self.broken(format_args!("{text}"));
                }
            }
        }
        Ok(())
    }

    /// Whether all that is needed lies somewhere even without this machine's disk (as it is now).
    fn can_spare(&mut self, at: usize) -> bool {
        for owner in (0..self.machines.len()).filter(|owner| *owner != at) {
            for name in self.needed_chunks(owner) {
                if self.kept_at(name).all(|holder| holder == at || !self.reaches(owner, holder)) {
                    return false;
                }
            }
            // After an old backup a peer may be the only one that knows of a version.
            let Some(vault) = self.vault(owner) else { continue };
            let knows = |one: &Expected| {
                vault
                    .db
                    .read(|t| t.record(&one.kept.key()))
                    .is_ok_and(|body| body.is_some_and(|b| !b.is_empty()))
            };
            if !self.needed(owner).iter().all(knows) {
                return false;
            }
        }
        true
    }

    /// Of an owner's needed versions those that come back from peers alone: some head there names their record, and each chunk
    /// is there.
    fn safe_without(&mut self, at: usize) -> Vec<Expected> {
        let id = self.machines[at].master.identity(0, 0).id();
        let mut records: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
        for peer in 0..self.machines.len() {
            if peer == at || self.machines[peer].is_gone || !self.friends.contains(&pair(at, peer)) {
                continue;
            }
            let Some(vault) = self.vault(peer) else { continue };
            let heads = self.look(peer, |t| {
                let cell = t.cell(&id)?;
                t.peer_heads(cell)
            });
            for head in heads.unwrap_or_default().into_iter().filter(|head| head.tip) {
                let Ok((_, head)) = crate::catalog::Head::open(&head.body) else { continue };
                // One that has a part too few is no use: nobody knows what that part said of the others.
                let mut named = Vec::new();
                let is_whole = head.segments.iter().all(|(segment, _)| {
                    let Ok(Some(bytes)) = vault.local_chunk(segment) else { return false };
                    let Ok(plain) = crate::catalog::open_segment(&bytes, &self.machines[at].master) else {
                        return false;
                    };
                    let read = |_, key: &[u8], body: &[u8]| -> Result<(), crate::catalog::CatalogError> {
                        if !body.is_empty() {
                            named.push((key.to_vec(), body.to_vec()));
                        }
                        Ok(())
                    };
                    crate::catalog::read_segment(&plain, read).is_ok()
                });
                if is_whole {
                    records.extend(named);
                }
            }
        }
        let mut safe = self.needed(at);
        let master = &self.machines[at].master;
        safe.retain(|one| {
            records.contains_key(&one.kept.key()) || files::is_newest_of(&records, &one.kept, master)
        });
        let is_there =
            |name: &ChunkName| self.kept_at(*name).any(|peer| peer != at && self.reaches(at, peer));
        safe.retain(|one| one.kept.chunks.iter().all(is_there));
        safe
    }

    /// A version of an owner's, and who keeps each of its chunks, for a person who looks into a run.
    fn where_kept(&self, owner: usize, one: &Expected) -> String {
        let mut text = format!("{} version {}", String::from_utf8_lossy(&one.name), one.kept.version);
        for name in &one.kept.chunks {
            let holders: Vec<usize> = self.kept_at(*name).collect();
            let counted = holders.iter().filter(|at| self.counts_on(owner, *name, **at)).count();
            text.push_str(&format!(", chunk {} at {holders:?}, {counted} counted", name.short()));
        }
        text
    }

    /// Every chunk of every needed version of every cell that is on has the copies that it should have, on disks.
    pub fn check_copies(&mut self) -> Checked {
        for at in 0..self.machines.len() {
            let wanted = self.machines[at].config.copies as usize;
            let friends = (0..self.machines.len())
                .filter(|other| {
                    *other != at && !self.machines[*other].is_gone && self.friends.contains(&pair(at, *other))
                })
                .count();
            if !self.is_on(at) || friends + 1 < wanted {
                continue;
            }
            for name in self.needed_chunks(at) {
                let copies =
                    self.sound_at(name).into_iter().filter(|holder| self.reaches(at, *holder)).count();
                if copies < wanted && !self.may_be_rotten(name) {
                    let known = self.describe(at, name);
                    let text = format!(
                        "chunk {} of {at} has {copies} copies, and {wanted} are wanted: {known}",
                        name.short()
                    );
                    return self.broken(format_args!("{text}"));
                }
            }
        }
        Ok(())
    }

    // ---- Loss and recovery ----

    /// A machine's disk is gone. It comes back from the phrase on a new one, by the help of `helper`. What was only on the old
    /// disk is not looked for any more.
    fn lose_and_recover(&mut self, at: usize, helper: usize) -> Checked {
        let safe = self.safe_without(at);
        self.note(format_args!("{at} loses its disk; {} versions are safe with peers", safe.len()));
        self.expected[at] = safe;
        self.braked.remove(&at);
        self.stop(at, true);
        self.rotten.retain(|(other, _), _| *other != at);
        self.machines[at].replace_disk();
        self.recover(at, helper)
    }

    /// Brings a cell with an empty disk back from the phrase.
    fn recover(&mut self, at: usize, helper: usize) -> Checked {
        let Some(peer) = &self.machines[helper].running else {
            self.machines[at].back_at = None;
            return self.broken(format_args!("{helper} is off and cannot help {at}"));
        };
        let (ours, theirs, wire) = session::pair(&Limits::default());
        let secret = self.machines[at].master.recovery_secret();
        if !peer.sync.recover_in_memory(&secret, theirs) {
            return self.broken(format_args!("{helper} does not know the phrase of {at}"));
        }
        let card = peer.sync.card();
        let now = self.now();
        let started = self.machines[at].start(now, |_, _| Ok(()));
        if let Err(why) = started {
            return self.broken(format_args!("{at} does not start with an empty disk: {why}"));
        }
        let (session, _) = ours;
        let vault = self.vault(at).expect("it was started");
        let books = Arc::clone(&self.machines[at].disk.books);
        let outcome = Rc::new(std::cell::RefCell::new(None));
        let told = Rc::clone(&outcome);
        self.spawn(at, async move {
            let Ok(card) = crate::card::Card::from_bytes(&card) else { return };
            let brought = bring_back(&vault, &books, &session, card, "127.0.0.1:1".into(), &Nobody).await;
            *told.borrow_mut() = Some(brought.map_err(|why| why.to_string()));
        });
        self.settle()?;
        wire.cut();
        self.settle()?;
        let text = match outcome.take() {
            Some(Ok(report)) => {
                format!("{at} is back from {helper}: life {}, {} files", report.life, report.files)
            }
            Some(Err(why)) => {
                return self.broken(format_args!("{at} does not come back from {helper}: {why}"));
            }
            None => return self.broken(format_args!("{at} does not come back from {helper} in time")),
        };
        self.note(format_args!("{text}"));
        // As after a recovery: the cell starts anew, with its peers.
        self.stop(at, false);
        self.switch_on(at)
    }

    /// A cell fetches what is not here of its files, from whoever has it.
    fn refill(&mut self, at: usize) -> Checked {
        self.fetch_absent(at);
        self.pass(Duration::from_secs(60))
    }

    fn fetch_absent(&self, at: usize) {
        let Some(running) = &self.machines[at].running else { return };
        let (sync, vault) = (Rc::clone(&running.sync), Arc::clone(&running.vault));
        self.spawn(at, async move {
            let names = unblock(move || files::absent(&vault)).await.unwrap_or_default();
            if !names.is_empty() {
                drop(sync.fetch(names).await);
            }
        });
    }

    /// Everything needed of a cell can be read there, to the byte.
    fn check_readable(&mut self, at: usize) -> Checked {
        let Some(vault) = self.vault(at) else { return Ok(()) };
        let needed = self.needed(at);
        // Reading finds what has rotted lately, and then it is mended.
        if needed.iter().any(|one| files::check(&vault, &one.kept).is_err()) {
            self.turns(2)?;
            self.mend(at)?;
            self.refill(at)?;
        }
        for one in needed {
            if let Err(why) = files::check(&vault, &one.kept) {
                let name = String::from_utf8_lossy(&one.name).into_owned();
                let chunks: Vec<String> =
                    one.kept.chunks.iter().map(|chunk| self.describe(at, *chunk)).collect();
                return self.broken(format_args!(
                    "{at} cannot read {name} version {}: {why}; {}",
                    one.kept.version,
                    chunks.join("; ")
                ));
            }
        }
        Ok(())
    }

    /// The state of all disks goes into the fingerprint.
    fn note_states(&mut self) {
        for at in 0..self.machines.len() {
            let names = self.machines[at].disk.store.names();
            names.iter().for_each(|name| self.hash.update(name.0));
            if let Some(vault) = self.vault(at) {
                self.hash.update(vault.db.image().unwrap_or_default());
            }
        }
        let dice: [u8; 8] = random();
        self.hash.update(dice);
    }
}

impl Drop for Sim {
    fn drop(&mut self) {
        for at in 0..self.machines.len() {
            // After a failure its tasks may be in any state; they go without a word.
            self.stop(at, false);
        }
    }
}

//! Where time, chance and threads come from: the machine, or a simulation in this thread.
//!
//! A simulation runs many cells in one thread, in virtual time, with dice from a seed, so that the same seed gives the same
//! run. It is in force while a `Guard` lives in the thread, and code outside `simulation` never makes one. Everything here is
//! what the code under simulation needs for that, and outside one it is the machine's own: a branch on a thread's flag.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use crate::id::CellId;

thread_local! {
    static IS_SIMULATED: Cell<bool> = const { Cell::new(false) };
    static SABOTAGE: Cell<Option<Sabotage>> = const { Cell::new(None) };
    static FORGER: Cell<Option<CellId>> = const { Cell::new(None) };
    static WORLD: RefCell<Option<World>> = const { RefCell::new(None) };
}

/// A rule broken on purpose, to show that a simulation finds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sabotage {
    /// Copies with a peer that is away for good are never made again elsewhere.
    HealsNothing,
    /// Garbage collection takes chunks that only a peer's claim is on.
    CollectsClaims,
    /// Holders serve what was taken back.
    ServesTakenBack,
    /// What is moved out of a shared folder stays granted.
    GrantsWhatMovedOut,
    /// What was counted for a copy since its last proof stays counted when the copy is found lost.
    PaysForWhatIsLost,
    /// A copy that was never proven counts as if it were.
    PaysWithoutProof,
    /// However much is deleted at once, nothing is held back.
    NeverBrakes,
    /// Whatever a peer gives as a proof is taken for one.
    BelievesProofs,
}

struct World {
    dice: Dice,
    began: Instant,
    now: Duration,
    timers: BTreeMap<(Duration, u64), Waker>,
    timers_made: u64,
}

/// Bytes that look random and follow from a seed: SHA-256 of it and a counter.
#[derive(Debug, Clone)]
pub struct Dice {
    seed: [u8; 32],
    block: [u8; 32],
    blocks: u64,
    used: usize,
}

impl Dice {
    /// Dice of one seed for one purpose.
    pub fn new(seed: u64, purpose: &str) -> Self {
        let seed = Sha256::new().chain_update(seed.to_le_bytes()).chain_update(purpose).finalize().into();
        Self { seed, block: [0; 32], blocks: 0, used: 32 }
    }

    /// Fills `bytes`.
    pub fn fill(&mut self, bytes: &mut [u8]) {
        for byte in bytes {
            if self.used == self.block.len() {
                let next = Sha256::new().chain_update(self.seed).chain_update(self.blocks.to_le_bytes());
                (self.block, self.used) = (next.finalize().into(), 0);
                self.blocks += 1;
            }
            *byte = self.block[self.used];
            self.used += 1;
        }
    }

    /// A number below `end`, which is not 0.
    pub fn below(&mut self, end: u64) -> u64 {
        let mut bytes = [0; 8];
        self.fill(&mut bytes);
        u64::from_le_bytes(bytes) % end
    }

    /// Whether something happens that does so `percent` times in a hundred.
    pub fn percent(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

/// Ends a simulated process at the n-th operation on its disk, by unwinding with `Blown`.
#[derive(Debug)]
pub struct Fuse {
    left: AtomicU64,
    is_blown: AtomicBool,
}

/// What a fuse unwinds with.
#[derive(Debug)]
pub struct Blown;

impl Default for Fuse {
    fn default() -> Self {
        Self { left: AtomicU64::new(u64::MAX), is_blown: AtomicBool::new(false) }
    }
}

impl Fuse {
    /// Blows at the operation after `operations` more; `None`: never.
    pub fn set(&self, operations: Option<u64>) {
        self.left.store(operations.unwrap_or(u64::MAX), Ordering::Relaxed);
        self.is_blown.store(false, Ordering::Relaxed);
    }

    /// Whether it has blown since it was set: an executor may keep what unwinds for whoever awaits the task.
    pub fn is_blown(&self) -> bool {
        self.is_blown.load(Ordering::Relaxed)
    }

    /// Does what is no part of the simulated cell, such as looking at what it has.
    pub fn aside<T>(&self, work: impl FnOnce() -> T) -> T {
        let left = self.left.swap(u64::MAX, Ordering::Relaxed);
        let done = work();
        self.left.store(left, Ordering::Relaxed);
        done
    }

    /// An operation happens.
    pub fn step(&self) {
        match self.left.load(Ordering::Relaxed) {
            u64::MAX => {}
            0 => {
                self.set(None);
                self.is_blown.store(true, Ordering::Relaxed);
                std::panic::resume_unwind(Box::new(Blown));
            }
            left => self.left.store(left - 1, Ordering::Relaxed),
        }
    }
}

/// A simulation is in force in this thread while this lives.
#[derive(Debug)]
pub struct Guard {
    /// Not to be sent to another thread.
    _thread: PhantomData<*const ()>,
}

impl Guard {
    /// Begins a simulation.
    ///
    /// # Panics
    /// If one is in force in this thread.
    pub fn begin(seed: u64) -> Self {
        assert!(!IS_SIMULATED.replace(true), "one simulation at a time in a thread");
        let world = World {
            dice: Dice::new(seed, "cells"),
            began: Instant::now(),
            now: Duration::ZERO,
            timers: BTreeMap::new(),
            timers_made: 0,
        };
        WORLD.with(|cell| *cell.borrow_mut() = Some(world));
        Self { _thread: PhantomData }
    }

    /// Breaks a rule from now on.
    pub fn sabotage(&self, what: Option<Sabotage>) {
        SABOTAGE.set(what);
    }

    /// This cell gives false proofs of what it has lost, from now on.
    pub fn forge(&self, cell: Option<CellId>) {
        FORGER.set(cell);
    }

    /// Virtual time since the beginning.
    pub fn now(&self) -> Duration {
        with(|world| world.now).unwrap_or_default()
    }

    /// When the next timer is due.
    pub fn next_timer(&self) -> Option<Duration> {
        with(|world| world.timers.keys().next().map(|(due, _)| *due)).flatten()
    }

    /// Lets time pass up to `then`, and wakes who has waited for it.
    pub fn pass_to(&self, then: Duration) {
        let due = with(|world| {
            world.now = world.now.max(then);
            let later = world.timers.split_off(&(world.now + Duration::from_nanos(1), 0));
            std::mem::replace(&mut world.timers, later)
        });
        due.into_iter().flatten().for_each(|(_, waker)| waker.wake());
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        IS_SIMULATED.set(false);
        SABOTAGE.set(None);
        FORGER.set(None);
        // Wakers may drop what looks in here.
        let world = WORLD.with(|cell| cell.borrow_mut().take());
        drop(world);
    }
}

fn with<T>(work: impl FnOnce(&mut World) -> T) -> Option<T> {
    WORLD.with(|cell| cell.borrow_mut().as_mut().map(work))
}

/// Whether a simulation is in force in this thread.
#[inline]
pub fn is_simulated() -> bool {
    IS_SIMULATED.get()
}

/// Whether a simulation has broken this rule.
#[inline]
pub fn is_sabotaged(what: Sabotage) -> bool {
    is_simulated() && SABOTAGE.get() == Some(what)
}

/// Whether a simulation has this cell give false proofs.
#[inline]
pub fn is_forger(cell: &CellId) -> bool {
    is_simulated() && FORGER.get() == Some(*cell)
}

/// Random bytes from the simulation's dice; `false` without one.
pub(crate) fn roll(bytes: &mut [u8]) -> bool {
    is_simulated() && with(|world| world.dice.fill(bytes)).is_some()
}

/// The steady clock.
pub fn instant() -> Instant {
    match is_simulated() {
        true => with(|world| world.began + world.now).unwrap_or_else(Instant::now),
        false => Instant::now(),
    }
}

/// How long ago something was.
pub fn since(then: Instant) -> Duration {
    instant().saturating_duration_since(then)
}

/// Is ready when a time has come.
#[derive(Debug)]
pub struct Timer {
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Machine(smol::Timer),
    Virtual { due: Duration, number: u64 },
}

impl Timer {
    /// Waits so long.
    pub fn after(pause: Duration) -> Self {
        let virtually = with(|world| {
            world.timers_made += 1;
            Kind::Virtual { due: world.now + pause, number: world.timers_made }
        });
        Self { kind: virtually.unwrap_or_else(|| Kind::Machine(smol::Timer::after(pause))) }
    }

    /// Waits until then.
    pub fn at(then: Instant) -> Self {
        match is_simulated() {
            true => Self::after(then.saturating_duration_since(instant())),
            false => Self { kind: Kind::Machine(smol::Timer::at(then)) },
        }
    }
}

impl Future for Timer {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.kind {
            Kind::Machine(timer) => Pin::new(timer).poll(cx).map(drop),
            Kind::Virtual { due, number } => {
                let is_over = with(|world| {
                    let is_over = world.now >= *due;
                    if !is_over {
                        world.timers.insert((*due, *number), cx.waker().clone());
                    }
                    is_over
                });
                // Without the simulation it began in nobody would wake it.
                if is_over.unwrap_or(true) { Poll::Ready(()) } else { Poll::Pending }
            }
        }
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        if let Kind::Virtual { due, number } = self.kind {
            let waker = with(|world| world.timers.remove(&(due, number)));
            drop(waker);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn same_seed_gives_same_dice_and_time_passes_when_told() {
        let rolls = |seed| {
            let guard = Guard::begin(seed);
            let dice = crate::keys::random::<40>();
            let mut timer = Timer::after(Duration::from_secs(5));
            let mut poll = || Pin::new(&mut timer).poll(&mut Context::from_waker(Waker::noop())).is_ready();
            assert!(!poll());
            assert_eq!(guard.next_timer(), Some(Duration::from_secs(5)));
            let before = instant();
            guard.pass_to(Duration::from_secs(5));
            assert!(poll());
            assert_eq!((since(before), guard.next_timer()), (Duration::from_secs(5), None));
            dice
        };
        assert_eq!(rolls(1), rolls(1));
        assert_ne!(rolls(1), rolls(2));
        assert!(!is_simulated());
    }
}

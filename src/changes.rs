//! What has changed in the cell, told to whoever shows it. Knows nothing of what the parts are about.
//!
//! Promise: noting a change never waits, and a listener that sleeps costs the same however much changes.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use smol::channel::{Receiver, Sender};

use crate::world::Timer;

/// A part of what a person sees of a cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Numbers of the whole: disk, copies, drill.
    Status,
    /// Files, folders, versions, the bin, uploads.
    Files,
    /// Peers, invites, routes.
    Peers,
    /// Conversations.
    Chat,
    /// What is shared, both ways.
    Feed,
    /// Long work.
    Jobs,
    /// Alerts.
    Alerts,
    /// Language models.
    Ai,
    /// Accounts between cells.
    Bounty,
}

impl Part {
    /// Every part, in the order in which they are told.
    pub const ALL: [Self; 9] = [
        Self::Status,
        Self::Files,
        Self::Peers,
        Self::Chat,
        Self::Feed,
        Self::Jobs,
        Self::Alerts,
        Self::Ai,
        Self::Bounty,
    ];

    /// A word for programs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Status => "status",
            Self::Files => "files",
            Self::Peers => "peers",
            Self::Chat => "chat",
            Self::Feed => "feed",
            Self::Jobs => "jobs",
            Self::Alerts => "alerts",
            Self::Ai => "ai",
            Self::Bounty => "bounty",
        }
    }

    fn bit(self) -> u32 {
        1 << self as u32
    }
}

/// Counts changes, and wakes listeners. Shared between threads.
#[derive(Debug, Default)]
pub struct Changes {
    count: AtomicU64,
    listeners: Mutex<Vec<Arc<Waiting>>>,
}

#[derive(Debug)]
struct Waiting {
    parts: AtomicU32,
    wake: Sender<()>,
}

impl Changes {
    /// This part has changed.
    pub fn note(&self, part: Part) {
        self.count.fetch_add(1, Ordering::Relaxed);
        for waiting in &*self.listeners.lock().unwrap_or_else(PoisonError::into_inner) {
            waiting.parts.fetch_or(part.bit(), Ordering::AcqRel);
            let _ = waiting.wake.try_send(());
        }
    }

    /// Notes it after this time, for whoever shows what will be known only then.
    pub async fn note_after(self: Arc<Self>, part: Part, pause: Duration) {
        Timer::after(pause).await;
        self.note(part);
    }

    /// How many changes there were since the start.
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// Hears of changes from now on.
    pub fn listen(self: &Arc<Self>) -> Listener {
        let (wake, woken) = smol::channel::bounded(1);
        let waiting = Arc::new(Waiting { parts: AtomicU32::new(0), wake });
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&waiting));
        Listener { changes: Arc::clone(self), waiting, woken }
    }
}

/// Hears of changes until it is dropped.
#[derive(Debug)]
pub struct Listener {
    changes: Arc<Changes>,
    waiting: Arc<Waiting>,
    woken: Receiver<()>,
}

impl Listener {
    /// Waits for a change; gives all parts that have changed since the last call, at least one.
    pub async fn next(&self) -> Vec<Part> {
        loop {
            let parts = self.waiting.parts.swap(0, Ordering::AcqRel);
            if parts != 0 {
                return Part::ALL.into_iter().filter(|part| parts & part.bit() != 0).collect();
            }
            // It never closes while this lives.
            let _ = self.woken.recv().await;
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let mut listeners = self.changes.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        listeners.retain(|known| !Arc::ptr_eq(known, &self.waiting));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_gathered_until_they_are_heard() {
        let changes = Arc::new(Changes::default());
        changes.note(Part::Chat);
        let listener = changes.listen();
        for part in [Part::Jobs, Part::Files, Part::Jobs] {
            changes.note(part);
        }
        assert_eq!(smol::block_on(listener.next()), [Part::Files, Part::Jobs]);
        assert!(smol::block_on(smol::future::poll_once(listener.next())).is_none());
        changes.note(Part::Bounty);
        assert_eq!(smol::block_on(listener.next()), [Part::Bounty]);
        assert_eq!(changes.count(), 5);
    }

    #[test]
    fn listeners_that_are_gone_are_forgotten() {
        let changes = Arc::new(Changes::default());
        let listeners: Vec<Listener> = (0..3).map(|_| changes.listen()).collect();
        assert_eq!(changes.listeners.lock().unwrap().len(), 3);
        drop(listeners);
        assert!(changes.listeners.lock().unwrap().is_empty());
    }

    #[test]
    fn words_are_all_different() {
        let words: std::collections::BTreeSet<_> = Part::ALL.iter().map(|part| part.as_str()).collect();
        assert_eq!(words.len(), Part::ALL.len());
    }
}

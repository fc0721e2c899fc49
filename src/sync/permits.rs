//! Data streams at once: of all sessions together, and of one peer.

use std::cell::RefCell;
use std::sync::Arc;

use smol::lock::{Semaphore, SemaphoreGuardArc};

use crate::id::CellId;

/// Batches that one peer sends at once.
const TAKING_OF_ONE: usize = 2;

/// Data streams at once, of all sessions together. A stream holds its place from before its request to its end, on both
/// sides: so whoever waits for bytes waits for somebody who has his place, and nobody waits in a circle.
pub(super) struct Permits {
    pub(super) giving: Shared,
    /// Giving by ticket: whoever reads slowly there, and may be anybody, holds up no peer that asks for its own.
    pub(super) lending: Shared,
    pub(super) taking: Shared,
    pub(super) pushing: Semaphore,
    pub(super) pulling: Semaphore,
    /// Answering audits: one at a time.
    pub(super) proving: Semaphore,
    /// Reading what a proof is compared with. Whoever holds it waits for nobody.
    pub(super) checking: Semaphore,
}

impl Permits {
    /// For so many chunk jobs at once on this machine.
    pub(super) fn new(jobs: usize) -> Self {
        let jobs = jobs.max(1);
        // What one peer may read at once is what all may with the jobs that there are: a restore has one peer, often.
        let half_more = |count: usize| Shared::new(count, count + count.div_ceil(2));
        Self {
            giving: half_more(jobs),
            lending: half_more(jobs.div_ceil(2)),
            taking: Shared::new(jobs.min(TAKING_OF_ONE), jobs),
            pushing: Semaphore::new(jobs),
            pulling: Semaphore::new(jobs),
            proving: Semaphore::new(1),
            checking: Semaphore::new(1),
        }
    }
}

/// Places of all peers together, of which one never has all: however slowly its bytes come or are taken, others have their turn.
pub(super) struct Shared {
    all: Arc<Semaphore>,
    of_one: usize,
    /// Of those who have or want a place.
    ones: RefCell<Vec<(CellId, Arc<Semaphore>)>>,
}

/// A place, until this is dropped.
pub(super) struct Place {
    _of_all: SemaphoreGuardArc,
    _own: SemaphoreGuardArc,
}

impl Shared {
    /// So many places for one peer, and in all as many as `all` says, or one more than that.
    fn new(of_one: usize, all: usize) -> Self {
        let all = Arc::new(Semaphore::new(all.max(of_one + 1)));
        Self { all, of_one, ones: RefCell::default() }
    }

    /// A place for a stream of this peer.
    pub(super) async fn take(&self, peer: CellId) -> Place {
        let own = {
            let mut ones = self.ones.borrow_mut();
            ones.retain(|(_, one)| Arc::strong_count(one) > 1);
            let known = ones.iter().find(|(id, _)| *id == peer).map(|(_, one)| Arc::clone(one));
            known.unwrap_or_else(|| {
                let own = Arc::new(Semaphore::new(self.of_one));
                ones.push((peer, Arc::clone(&own)));
                own
            })
        };
        // First of its own: of those who wait for one of all none has too many.
        let own = own.acquire_arc().await;
        Place { _of_all: self.all.acquire_arc().await, _own: own }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn one_peer_never_has_all_places_and_another_has_its_turn_at_once() {
        for jobs in [0, 1, 2, 3, 4, 64] {
            let permits = Permits::new(jobs);
            for shared in [&permits.giving, &permits.lending, &permits.taking] {
                let [greedy, honest] = [1, 2].map(|n| CellId([n; 32]));
                let mut held: Vec<Place> =
                    std::iter::from_fn(|| shared.take(greedy).now_or_never()).take(1000).collect();
                assert_eq!(held.len(), shared.of_one, "{jobs}");
                let mut waiting: Vec<_> = (0..100).map(|_| Box::pin(shared.take(greedy))).collect();
                assert!(waiting.iter_mut().all(|place| place.now_or_never().is_none()));
                let place = shared.take(honest).now_or_never().expect("a place is left for others");
                drop(place);
                // What it gives back it may have again.
                held.pop();
                assert!(waiting[0].as_mut().now_or_never().is_some());
                // Of those who neither have nor want one nothing is kept.
                drop((held, waiting));
                drop(shared.take(honest).now_or_never().unwrap());
                assert_eq!(shared.ones.borrow().len(), 1);
            }
        }
    }
}

//! Work that blocks, and turns. In a simulation the work is done where it is asked for, in its one thread.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use smol::Task;
use smol::lock::{Semaphore, SemaphoreGuard};

use crate::world;

/// Does `work` on the pool of threads for work that blocks (`smol::unblock`). A job whose handle is dropped is not begun, or
/// runs to its end unseen.
pub fn unblock<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Job<T> {
    if !world::is_simulated() {
        return Job(Kind::Pool(smol::unblock(work)));
    }
    // What else is due may come before its outcome is looked at, as it may with a pool.
    let mut dice = [0];
    world::roll(&mut dice);
    Job(Kind::Done { outcome: Some(work()), turns: dice[0] % 3 })
}

/// Work under way.
#[derive(Debug)]
pub struct Job<T>(Kind<T>);

#[derive(Debug)]
enum Kind<T> {
    Pool(Task<T>),
    Done { outcome: Option<T>, turns: u8 },
}

impl<T> Job<T> {
    /// Lets it run to its end unseen.
    pub fn detach(self) {
        if let Kind::Pool(task) = self.0 {
            task.detach();
        }
    }
}

// The outcome is never pinned.
impl<T> Unpin for Job<T> {}

impl<T> Future for Job<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        match &mut self.0 {
            Kind::Pool(task) => Pin::new(task).poll(cx),
            Kind::Done { turns, .. } if *turns > 0 => {
                *turns -= 1;
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Kind::Done { outcome, .. } => Poll::Ready(outcome.take().expect("a job is awaited once")),
        }
    }
}

/// One at a time. `smol::lock::Mutex` looks at the machine's clock to decide who is next; this does not.
#[derive(Debug)]
pub struct Turns(Semaphore);

impl Default for Turns {
    fn default() -> Self {
        Self(Semaphore::new(1))
    }
}

impl Turns {
    /// Waits for its turn, which ends when what this gives is dropped.
    pub async fn lock(&self) -> SemaphoreGuard<'_> {
        self.0.acquire().await
    }

    /// Its turn, if nobody else has it.
    pub fn try_lock(&self) -> Option<SemaphoreGuard<'_>> {
        self.0.try_acquire()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_is_done_on_another_thread_and_in_a_simulation_on_this_one() {
        let here = std::thread::current().id();
        let other = smol::block_on(unblock(|| std::thread::current().id()));
        assert_ne!(here, other);
        let _simulated = world::Guard::begin(1);
        assert_eq!(smol::block_on(unblock(|| std::thread::current().id())), here);
    }
}

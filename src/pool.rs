//! Work that blocks, and turns. In a simulation the work is done where it is asked for, in its one thread.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use smol::channel::{self, Receiver, Sender};
use smol::{LocalExecutor, Task};

use crate::world;

/// Does `work` on the pool of threads for work that blocks (`smol::unblock`). A job whose handle is dropped is not begun, or
/// runs to its end unseen.
pub fn unblock<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Job<T> {
    if !world::is_simulated() {
        return Job(Kind::Pool(on_pool(Box::new(move || Box::new(work())))));
    }
    // What else is due may come before its outcome is looked at, as it may with a pool.
    let mut dice = [0];
    world::roll(&mut dice);
    Job(Kind::Done { outcome: Some(work()), turns: dice[0] % 3 })
}

/// What a job gives, whatever it is.
type Outcome = Box<dyn Any + Send>;

/// The one kind of job that the pool knows: a task's code is long, and is not made anew for each kind of work.
fn on_pool(work: Box<dyn FnOnce() -> Outcome + Send>) -> Task<Outcome> {
    smol::unblock(work)
}

/// Has `executor` do `work`. As with jobs, the long code of a task is made for each `T` and not for each kind of work.
pub fn spawn<'a, T: 'a>(executor: &LocalExecutor<'a>, work: impl Future<Output = T> + 'a) -> Task<T> {
    let work: Pin<Box<dyn Future<Output = T> + 'a>> = Box::pin(work);
    executor.spawn(work)
}

/// Work under way.
#[derive(Debug)]
pub struct Job<T>(Kind<T>);

#[derive(Debug)]
enum Kind<T> {
    Pool(Task<Outcome>),
    Done { outcome: Option<T>, turns: u8 },
}

impl<T> Job<T> {
    /// Whether its outcome is there: awaiting it then waits for nothing.
    pub fn is_finished(&self) -> bool {
        match &self.0 {
            Kind::Pool(task) => task.is_finished(),
            Kind::Done { .. } => true,
        }
    }

    /// Lets it run to its end unseen.
    pub fn detach(self) {
        if let Kind::Pool(task) = self.0 {
            task.detach();
        }
    }
}

// The outcome is never pinned.
impl<T> Unpin for Job<T> {}

impl<T: 'static> Future for Job<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        match &mut self.0 {
            Kind::Pool(task) => Pin::new(task)
                .poll(cx)
                .map(|outcome| *outcome.downcast().expect("a job gives what its work gave")),
            Kind::Done { turns, .. } if *turns > 0 => {
                *turns -= 1;
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Kind::Done { outcome, .. } => Poll::Ready(outcome.take().expect("a job is awaited once")),
        }
    }
}

/// One at a time, in the order of asking. `smol::lock::Mutex` looks at the machine's clock to decide who is next; this does
/// not, and nobody who comes later is served before one who waits.
#[derive(Debug, Default)]
pub struct Turns {
    is_taken: Cell<bool>,
    waiting: RefCell<VecDeque<Sender<()>>>,
}

/// A turn, until it is dropped.
#[derive(Debug)]
pub struct Turn<'a> {
    turns: &'a Turns,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut waiting = self.turns.waiting.borrow_mut();
        // Whoever has given up waiting is passed over.
        while let Some(next) = waiting.pop_front() {
            if next.try_send(()).is_ok() {
                return;
            }
        }
        self.turns.is_taken.set(false);
    }
}

/// A place in the queue. One that is dropped after its turn has come passes it on.
struct Place<'a> {
    turns: &'a Turns,
    called: Receiver<()>,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if self.called.try_recv().is_ok() {
            drop(Turn { turns: self.turns });
        }
    }
}

impl Turns {
    /// Waits for its turn, which ends when what this gives is dropped.
    pub async fn lock(&self) -> Turn<'_> {
        if let Some(turn) = self.try_lock() {
            return turn;
        }
        let (call, called) = channel::bounded(1);
        self.waiting.borrow_mut().push_back(call);
        let place = Place { turns: self, called };
        // The sender stays in the queue until it calls.
        let _ = place.called.recv().await;
        Turn { turns: self }
    }

    /// Its turn, if nobody else has it.
    pub fn try_lock(&self) -> Option<Turn<'_>> {
        (!self.is_taken.replace(true)).then(|| Turn { turns: self })
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

    #[test]
    fn turns_come_in_the_order_of_asking_and_those_who_give_up_are_passed_over() {
        let turns = Turns::default();
        let first = turns.try_lock().unwrap();
        let poll = |work: &mut Pin<Box<dyn Future<Output = Turn<'_>> + '_>>| {
            work.as_mut().poll(&mut Context::from_waker(std::task::Waker::noop())).is_ready()
        };
        let mut waiting: Vec<Pin<Box<dyn Future<Output = Turn<'_>> + '_>>> =
            (0..4).map(|_| Box::pin(turns.lock()) as Pin<Box<dyn Future<Output = Turn<'_>> + '_>>).collect();
        assert!(waiting.iter_mut().all(|one| !poll(one)));
        drop(waiting.remove(0));
        drop(first);
        assert!(turns.try_lock().is_none(), "it was handed on");
        // The next one's turn has come, and it goes away without taking it.
        drop(waiting.remove(0));
        let Poll::Ready(turn) = waiting[0].as_mut().poll(&mut Context::from_waker(std::task::Waker::noop()))
        else {
            panic!("it is the third one's turn")
        };
        assert!(!poll(&mut waiting[1]));
        drop(turn);
        assert!(poll(&mut waiting[1]));
        drop(waiting);
        assert!(turns.try_lock().is_some());
    }
}

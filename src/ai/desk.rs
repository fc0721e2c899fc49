//! Whom there is to ask, what is known of each, and who is asked next.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use futures_util::future::LocalBoxFuture;
use smol::channel::Sender;

use super::form::{Ask, Failure, Part, Wanted};
use super::router::{self, Affinity, Facts, Mean, Need};

/// Who did not answer is put behind the others for so long at first.
const DOWN_MIN: Duration = Duration::from_secs(1);
/// And at most.
const DOWN_MAX: Duration = Duration::from_secs(15);
/// Tokens of an answer, where none was counted yet.
const ANSWER_GUESS: f64 = 200.0;
/// Longer answers are not planned for.
const ANSWER_PLANNED_MAX: u32 = 2048;

/// An answer of one backend, part by part. Dropping it tells the backend to stop.
pub trait Source {
    /// The next part; `None` at a proper end. An end that was not announced is a failure.
    fn next(&mut self) -> LocalBoxFuture<'_, Result<Option<Part>, Failure>>;
}

/// How a backend takes the beginning of an answer that it is to go on with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resumes {
    /// It may repeat the beginning, and goes on.
    Repeating,
    /// It goes on.
    Silently,
    /// Not at all.
    Never,
}

/// What a backend can do about a request.
#[derive(Debug, Clone)]
pub struct Offer {
    /// Its name for the model.
    pub model: String,
    /// What is to be known for the choice.
    pub facts: Facts,
}

/// Somebody who may answer.
pub trait Backend {
    /// Told apart by this, over changes of the list.
    fn id(&self) -> u64;
    /// In words.
    fn label(&self) -> String;
    /// Name of the cell that it is at.
    fn cell(&self) -> String;
    /// Whether a name, or the beginning of an id, means that cell.
    fn is_at(&self, cell: &str) -> bool;
    /// It is this cell's own: nothing leaves for a friend.
    fn is_own(&self) -> bool;
    /// What happened with it so far.
    fn load(&self) -> &Load;
    /// What it can do about a request; `None`: nothing, now.
    fn offer(&self, ask: &Ask) -> Option<Offer>;
    /// See `Resumes`.
    fn resumes(&self) -> Resumes;
    /// Asks it. `written` is the answer so far and its tokens.
    fn start(
        self: Rc<Self>,
        ask: Rc<Ask>,
        model: String,
        written: Option<(String, u32)>,
    ) -> LocalBoxFuture<'static, Result<Box<dyn Source>, Failure>>;
    /// Whether it gives a sign of life.
    fn check(self: Rc<Self>) -> LocalBoxFuture<'static, bool>;
}

/// What happened with a backend so far.
#[derive(Debug, Default)]
pub struct Load {
    /// Answers that were assigned and are not over.
    pub in_flight: Cell<u32>,
    /// Of them, those for friends: they are told to make room.
    guests: RefCell<Vec<(u64, Sender<()>)>>,
    guests_made: Cell<u64>,
    /// Speeds. Tokens a second.
    pub prefill: Cell<Mean>,
    /// See `prefill`.
    pub decode: Cell<Mean>,
    late: Cell<Option<f64>>,
    down_until: Cell<Option<Instant>>,
    failures_in_row: Cell<u32>,
    seen_at: Cell<Option<Instant>>,
    /// Answers that were whole.
    pub answers: Cell<u64>,
    /// Their tokens.
    pub tokens: Cell<u64>,
    /// Times it failed.
    pub failures: Cell<u64>,
    /// The last failure in words; empty once it answers.
    pub error: RefCell<String>,
}

impl Load {
    /// Of how many times the expected time its answers took.
    pub fn late(&self) -> f64 {
        self.late.get().unwrap_or(1.0)
    }

    /// It took so long where so long was expected. s.
    pub fn note_time(&self, expected_s: f64, taken_s: f64) {
        self.late.set(Some(router::late_after(self.late(), expected_s, taken_s)));
    }

    /// It did not answer lately.
    pub fn is_down(&self, now: Instant) -> bool {
        self.down_until.get().is_some_and(|until| now < until)
    }

    /// It failed.
    pub fn note_failure(&self, why: &str, now: Instant) {
        self.failures.set(self.failures.get() + 1);
        self.set_down(why, now);
    }

    /// It is not there.
    pub fn set_down(&self, why: &str, now: Instant) {
        let failures = self.failures_in_row.get();
        self.failures_in_row.set(failures.saturating_add(1));
        let pause = DOWN_MIN.saturating_mul(1 << failures.min(6)).min(DOWN_MAX);
        self.down_until.set(Some(now + pause));
        why.clone_into(&mut self.error.borrow_mut());
    }

    /// It is there.
    pub fn note_life(&self, now: Instant) {
        self.failures_in_row.set(0);
        self.down_until.set(None);
        self.seen_at.set(Some(now));
        self.error.borrow_mut().clear();
    }

    /// It tells that it is there, which is no proof that it answers.
    pub fn note_seen(&self, now: Instant) {
        self.seen_at.set(Some(now));
    }

    /// It gave a sign of life within this time.
    pub fn was_seen(&self, now: Instant, within: Duration) -> bool {
        self.seen_at.get().is_some_and(|at| now.saturating_duration_since(at) < within)
    }

    /// The friend's answer that came last makes room.
    fn evict(&self) {
        if let Some((_, tell)) = self.guests.borrow_mut().pop() {
            let _ = tell.try_send(());
        }
    }
}

/// A place at a backend, from the moment it is assigned.
pub struct Place {
    backend: Rc<dyn Backend>,
    guest: Option<u64>,
}

impl Place {
    /// Takes a place; `guest` is how a friend's answer is told to make room.
    pub fn take(backend: &Rc<dyn Backend>, slots: u32, guest: Option<Sender<()>>) -> Self {
        let load = backend.load();
        let guest = match guest {
            Some(tell) => {
                let number = load.guests_made.get() + 1;
                load.guests_made.set(number);
                load.guests.borrow_mut().push((number, tell));
                Some(number)
            }
            None => {
                if load.in_flight.get() >= slots.max(1) {
                    load.evict();
                }
                None
            }
        };
        load.in_flight.set(load.in_flight.get() + 1);
        Self { backend: Rc::clone(backend), guest }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let load = self.backend.load();
        load.in_flight.set(load.in_flight.get().saturating_sub(1));
        if let Some(number) = self.guest {
            load.guests.borrow_mut().retain(|(guest, _)| *guest != number);
        }
    }
}

/// Who was chosen, and what was expected.
pub struct Choice {
    /// Who.
    pub backend: Rc<dyn Backend>,
    /// With which model.
    pub model: String,
    /// What was known.
    pub facts: Facts,
    /// What was needed.
    pub need: Need,
}

/// Counts since the start.
#[derive(Debug, Default)]
pub struct Counts {
    /// Questions that were asked.
    pub asked: Cell<u64>,
    /// Times the next backend was asked before there was a first token.
    pub failovers: Cell<u64>,
    /// Times an answer that broke off was gone on with.
    pub resumes: Cell<u64>,
    /// Answers that could not be had, or not to their end.
    pub failed: Cell<u64>,
    /// Questions whose asker went away.
    pub cancelled: Cell<u64>,
}

/// All who may answer.
#[derive(Default)]
pub struct Desk {
    backends: RefCell<Vec<Rc<dyn Backend>>>,
    affinity: RefCell<Affinity>,
    answer_tokens: Cell<Mean>,
    /// Counts since the start.
    pub counts: Counts,
}

impl Desk {
    /// All there are.
    pub fn backends(&self) -> Vec<Rc<dyn Backend>> {
        self.backends.borrow().clone()
    }

    /// There is one more.
    pub fn add(&self, backend: Rc<dyn Backend>) {
        self.remove(backend.id());
        self.backends.borrow_mut().push(backend);
    }

    /// One is gone.
    pub fn remove(&self, id: u64) {
        self.backends.borrow_mut().retain(|backend| backend.id() != id);
    }

    fn may(backend: &Rc<dyn Backend>, ask: &Ask) -> bool {
        if ask.only_here && !backend.is_own() {
            return false;
        }
        ask.cell.as_ref().is_none_or(|cell| backend.is_at(cell))
    }

    /// Whether anybody could be asked, if all were well.
    pub fn has_any(&self, ask: &Ask) -> bool {
        self.backends.borrow().iter().any(|backend| Self::may(backend, ask))
    }

    /// Who is asked next, if anybody is left. `goes_on`: an answer is to be continued. `is_guest`: for a friend, who takes
    /// only what is free.
    pub fn choose(&self, ask: &Ask, tried: &[u64], goes_on: bool, is_guest: bool) -> Option<Choice> {
        let now = crate::world::instant();
        let cached = self.affinity.borrow().find(&ask.marks);
        let mut found: Vec<(Rc<dyn Backend>, Offer)> = Vec::new();
        for backend in self.backends.borrow().iter() {
            let can_go_on = !goes_on || backend.resumes() != Resumes::Never;
            if tried.contains(&backend.id()) || !can_go_on || !Self::may(backend, ask) {
                continue;
            }
            let Some(mut offer) = backend.offer(ask) else { continue };
            let load = backend.load();
            offer.facts.is_down |= load.is_down(now);
            offer.facts.late = load.late();
            offer.facts.has_cache = cached.is_some_and(|(id, _)| id == backend.id());
            if is_guest && (offer.facts.busy >= offer.facts.slots.max(1) || offer.facts.is_down) {
                continue;
            }
            found.push((Rc::clone(backend), offer));
        }
        let answer = self.answer_tokens.get().get().unwrap_or(ANSWER_GUESS) as u32;
        let known = cached.map_or(0, |(_, count)| {
            // Messages of one conversation are of a kind.
            let part = count as u64 * u64::from(ask.prompt_tokens) / ask.marks.len().max(1) as u64;
            u32::try_from(part).unwrap_or(u32::MAX)
        });
        let need = Need {
            prompt: ask.prompt_tokens,
            known,
            answer: ask.answer_max.unwrap_or(u32::MAX).min(answer.clamp(1, ANSWER_PLANNED_MAX)),
            any_model: !matches!(ask.wanted, Wanted::Named(_)),
        };
        let facts: Vec<Facts> = found.iter().map(|(_, offer)| offer.facts).collect();
        let first = *router::order(&facts, &need).first()?;
        let (backend, offer) = found.swap_remove(first);
        Some(Choice { backend, model: offer.model, facts: offer.facts, need })
    }

    /// A whole answer came from this backend.
    pub(super) fn note_answer(&self, ask: &Ask, backend: &Rc<dyn Backend>, tokens: u32) {
        self.affinity.borrow_mut().note(&ask.marks, backend.id());
        let mut mean = self.answer_tokens.get();
        mean.add(f64::from(tokens.max(1)));
        self.answer_tokens.set(mean);
        let load = backend.load();
        load.answers.set(load.answers.get() + 1);
        load.tokens.set(load.tokens.get() + u64::from(tokens));
    }
}

//! One answer, from whoever gives it: the next backend where one fails before its first token, once more where one breaks off
//! in the middle, and an error rather than an end that looks whole.

use std::cell::Cell;
use std::future::Future;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::Poll;
use std::time::{Duration, Instant};

use smol::channel::{Receiver, Sender};

use super::desk::{Backend, Choice, Desk, Place, Resumes, Source};
use super::form::{ApiError, Ask, Failure, Name, Part, Timings, Usage, Wanted};
use super::resume::Strip;
use super::router;
use crate::wire::within;
use crate::world::{Timer, instant};

/// After so much silence a sign of life is asked for beside.
const QUIET: Duration = Duration::from_millis(600);
/// And again, while it lives.
const QUIET_AGAIN: Duration = Duration::from_secs(1);
/// A sign of life comes within this.
const CHECK_MAX: Duration = Duration::from_millis(1000);
/// What it said meanwhile arrives within this.
const GRACE: Duration = Duration::from_millis(50);
/// Whoever gives none is waited for so long where nobody else could answer.
const DEAD_MAX: Duration = Duration::from_secs(30);
/// Where all have failed they are asked once more, within this.
const HOPE_MAX: Duration = Duration::from_secs(6);
/// Between two rounds.
const HOPE_PAUSE: Duration = Duration::from_millis(150);
/// Somebody seen so lately may be back in a moment.
const SEEN_LATELY: Duration = Duration::from_secs(60);
/// What comes behind the end is waited for so long in all.
const TAIL_MAX: Duration = Duration::from_millis(500);
/// Text that is kept so that an answer can be gone on with. Bytes.
const WRITTEN_MAX: usize = 1 << 20;
/// A longer answer is broken off. Bytes.
const ANSWER_BYTES_MAX: u64 = 64 << 20;
/// Parts in a row in which nothing is said.
const EMPTY_MAX: u32 = 10_000;
/// A friend who gives signs of life and says nothing is borne with for so long where somebody else could answer, and for so
/// many times the time that was expected.
const WORDLESS_MIN: Duration = Duration::from_secs(12);
const WORDLESS_TIMES: f64 = 10.0;
/// In no case longer.
const WORDLESS_MAX: Duration = Duration::from_secs(1800);
/// A friend for whom the client did not wait, for so long and so many times the time that was expected, counts as failed.
const UNHEARD_MIN: Duration = Duration::from_secs(2);
const UNHEARD_TIMES: f64 = 3.0;
/// Speeds of shorter answers tell nothing. Tokens.
const MEASURED_MIN: u32 = 8;
/// Unless they took so long.
const MEASURED_LONG_S: f64 = 0.5;
/// Of shorter prompts neither.
const PROMPT_MEASURED_MIN: u32 = 64;

/// What comes next of an answer.
#[derive(Debug)]
pub enum Event {
    /// A part of it.
    Part(Part),
    /// It is whole.
    End,
}

/// Who answers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Answerer {
    /// The cell's name.
    pub cell: String,
    /// The backend, in words.
    pub backend: String,
    /// It is this cell's own.
    pub is_own: bool,
}

struct Running {
    choice: Choice,
    source: Box<dyn Source>,
    strip: Strip,
    timings: Timings,
    began: Instant,
    first: Option<Instant>,
    last: Instant,
    /// How long it was listened to since it last said something. While a client does not read nobody listens.
    unspoken: Duration,
    /// So long it may say nothing, where somebody else could answer.
    patience: Duration,
    empties: u32,
    tokens: u32,
    _place: Place,
}

impl Running {
    /// Tokens a second, as they came.
    fn counted(&self) -> Option<f64> {
        let wrote = self.last.duration_since(self.first?).as_secs_f64();
        let tells = self.tokens >= MEASURED_MIN || (self.tokens >= 2 && wrote >= MEASURED_LONG_S);
        (tells && wrote > 0.0).then(|| f64::from(self.tokens - 1) / wrote)
    }

    /// The client has gone before the end: what was seen of whoever kept it waiting is noted.
    fn note_unheard(&self, now: Instant) {
        let backend = &self.choice.backend;
        if backend.is_own() {
            return;
        }
        let load = backend.load();
        let expected = self.expected_s(self.tokens.max(1));
        if self.first.is_none() {
            return note_no_word(backend, expected, self.began, now);
        }
        // How long a client takes to read what is there is no matter of the backend: to the last word only.
        let taken = self.last.duration_since(self.began).as_secs_f64();
        if let Some(rate) = self.counted() {
            let mut decode = load.decode.get();
            decode.add(rate);
            load.decode.set(decode);
        }
        if taken > expected {
            load.note_time(expected, taken);
        }
    }

    /// When an answer of so many tokens was expected to be there.
    fn expected_s(&self, tokens: u32) -> f64 {
        router::finish_s(&self.choice.facts, &router::Need { answer: tokens, ..self.choice.need })
    }
}

/// The client has gone before there was a first word of a friend.
fn note_no_word(friend: &Rc<dyn Backend>, expected_s: f64, began: Instant, now: Instant) {
    let waited = now.saturating_duration_since(began);
    if waited > UNHEARD_MIN && waited.as_secs_f64() > UNHEARD_TIMES * expected_s {
        friend.load().note_failure("no word of it came in the time that was waited", now);
    }
}

/// How long whoever was chosen may be silent while it gives signs of life. Servers of this cell's own are no liars.
fn patience(choice: &Choice) -> Duration {
    if choice.backend.is_own() {
        return Duration::MAX;
    }
    let expected = router::finish_s(&choice.facts, &choice.need) * WORDLESS_TIMES;
    let expected = if expected.is_finite() { expected.clamp(0.0, WORDLESS_MAX.as_secs_f64()) } else { 0.0 };
    Duration::from_secs_f64(expected).max(WORDLESS_MIN)
}

/// An answer on its way. Dropping it stops whoever works on it.
pub struct Answer {
    desk: Rc<Desk>,
    ask: Rc<Ask>,
    name: Name,
    answerer: Answerer,
    /// A friend is asked and has not said that it answers: when it was expected to be done, and since when.
    starting: Option<(Rc<dyn Backend>, f64, Instant)>,
    running: Option<Running>,
    tried: Vec<u64>,
    written: String,
    /// Written by another cell before, and not to be told again.
    given: Option<(String, u32)>,
    tokens: u32,
    bytes: u64,
    can_resume: bool,
    resumes: u32,
    has_begun: bool,
    finished: Option<Instant>,
    is_over: bool,
    /// Friends who say that the request is wrong.
    contradicted: Vec<Rc<dyn Backend>>,
    usage: Option<Usage>,
    failure: Option<Failure>,
    asked_at: Instant,
    hope_from: Instant,
    /// Somebody has the question, and has not failed before the first word of an answer.
    is_given: Rc<Cell<bool>>,
    /// For a friend: told to make room.
    guest: Option<(Sender<()>, Receiver<()>)>,
}

impl Answer {
    /// An answer for this cell's own user.
    pub fn new(desk: &Rc<Desk>, ask: Ask, wall: i64) -> Self {
        let prefix = if ask.kind == super::form::Kind::Chat { "chatcmpl" } else { "cmpl" };
        let id = format!("{prefix}-{}", crate::id::hex(&crate::keys::random::<12>()));
        desk.counts.asked.set(desk.counts.asked.get() + 1);
        let now = instant();
        Self {
            desk: Rc::clone(desk),
            can_resume: ask.can_resume,
            ask: Rc::new(ask),
            name: Name { id, created: wall, model: String::new() },
            answerer: Answerer::default(),
            starting: None,
            running: None,
            tried: Vec::new(),
            written: String::new(),
            given: None,
            tokens: 0,
            bytes: 0,
            resumes: 0,
            has_begun: false,
            finished: None,
            is_over: false,
            contradicted: Vec::new(),
            usage: None,
            failure: None,
            asked_at: now,
            hope_from: now,
            is_given: Rc::default(),
            guest: None,
        }
    }

    /// An answer for a friend, whose cell may have the beginning of it already: it takes only what is free, and makes room.
    pub fn for_friend(desk: &Rc<Desk>, ask: Ask, given: Option<(String, u32)>, wall: i64) -> Self {
        let mut answer = Self::new(desk, ask, wall);
        answer.guest = Some(smol::channel::bounded(1));
        answer.given = given;
        answer
    }

    /// What it is called.
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// Who answers, once somebody does.
    pub fn answerer(&self) -> &Answerer {
        &self.answerer
    }

    /// What was asked.
    pub fn ask(&self) -> &Ask {
        &self.ask
    }

    /// Tokens so far, as counted or told.
    pub fn usage(&self) -> Usage {
        let told = self.usage.unwrap_or_default();
        let prompt = if told.prompt > 1 { told.prompt } else { self.ask.prompt_tokens };
        let is_told = told.answer > 0 && self.resumes == 0;
        Usage { prompt, answer: if is_told { told.answer } else { self.tokens } }
    }

    /// Whether somebody has the question, and has not failed before the first word of an answer: also once this is dropped.
    pub fn is_given(&self) -> Rc<Cell<bool>> {
        Rc::clone(&self.is_given)
    }

    /// Tokens that have come.
    pub fn tokens(&self) -> u32 {
        self.tokens
    }

    /// Since it was asked for.
    pub fn age(&self) -> Duration {
        crate::world::since(self.asked_at)
    }

    /// The answer so far, as it is to be gone on with.
    fn so_far(&self) -> Option<(String, u32)> {
        let (mut text, mut tokens) = self.given.clone().unwrap_or_default();
        text.push_str(&self.written);
        tokens = tokens.saturating_add(self.tokens);
        (self.given.is_some() || self.tokens > 0).then_some((text, tokens))
    }

    /// What comes next; after the end or an error there is nothing more.
    pub async fn next(&mut self) -> Result<Event, ApiError> {
        let outcome = self.try_next().await;
        if outcome.is_err() && !self.is_over {
            self.is_over = true;
            self.running = None;
            let failed = &self.desk.counts.failed;
            failed.set(failed.get() + 1);
        }
        outcome
    }

    async fn try_next(&mut self) -> Result<Event, ApiError> {
        while !self.is_over {
            if self.running.is_none() {
                self.begin().await?;
            }
            let outcome = self.listen().await;
            match outcome {
                Ok(Some(part)) => match self.take(part) {
                    Ok(Some(part)) => return Ok(Event::Part(part)),
                    Ok(None) => {}
                    Err(failure) => self.give_up(failure)?,
                },
                Ok(None) | Err(_) if self.finished.is_some() => self.finish(),
                Ok(None) => self.give_up(Failure::Broken("it ended without an end".into()))?,
                Err(failure) => self.give_up(failure)?,
            }
        }
        Ok(Event::End)
    }

    /// Waits for the next part of whoever answers now.
    async fn listen(&mut self) -> Result<Option<Part>, Failure> {
        let Self { running, desk, ask, tried, guest, can_resume, has_begun, finished, .. } = self;
        let running = running.as_mut().expect("somebody answers");
        let backend = Rc::clone(&running.choice.backend);
        if let Some(at) = *finished {
            let left = TAIL_MAX.saturating_sub(crate::world::since(at));
            if left.is_zero() {
                return Ok(None);
            }
            return within(left, running.source.next()).await.unwrap_or(Ok(None));
        }
        let is_guest = guest.is_some();
        let (goes_on, may) = (*has_begun, !*has_begun || *can_resume);
        let has_other = || may && desk.choose(ask, tried, goes_on, is_guest).is_some();
        let evicted = guest.as_ref().map(|(_, told)| told.clone());
        let (from, unspoken, patience) = (instant(), running.unspoken, running.patience);
        let is_wordless = || unspoken + crate::world::since(from) > patience;
        // Whoever sends without saying anything is never silent.
        if is_wordless() && has_other() {
            return Err(wordless());
        }
        let source = &mut running.source;
        let work = async {
            match evicted {
                None => source.next().await,
                Some(told) => {
                    smol::future::or(source.next(), async {
                        let _ = told.recv().await;
                        Err(Failure::Busy("its own user needs it now".into()))
                    })
                    .await
                }
            }
        };
        let heard = patiently(work, || Rc::clone(&backend).check(), has_other, is_wordless).await;
        running.unspoken = unspoken + crate::world::since(from);
        heard?
    }

    /// Finds somebody who answers.
    async fn begin(&mut self) -> Result<(), ApiError> {
        loop {
            let so_far = self.so_far();
            let is_guest = self.guest.is_some();
            let Some(choice) = self.desk.choose(&self.ask, &self.tried, so_far.is_some(), is_guest) else {
                let now = instant();
                let was_seen = |id: &u64| {
                    let backends = self.desk.backends();
                    backends.iter().any(|b| b.id() == *id && b.load().was_seen(now, SEEN_LATELY))
                };
                let is_passing = matches!(self.failure, Some(Failure::Broken(_) | Failure::Busy(_)));
                let has_hope = is_passing
                    && !is_guest
                    && now.saturating_duration_since(self.hope_from) < HOPE_MAX
                    && self.tried.iter().any(was_seen);
                if !has_hope {
                    return Err(self.verdict());
                }
                Timer::after(HOPE_PAUSE).await;
                self.tried.clear();
                continue;
            };
            let backend = Rc::clone(&choice.backend);
            self.tried.push(backend.id());
            let tell = self.guest.as_ref().map(|(tell, _)| tell.clone());
            let place = Place::take(&backend, choice.facts.slots, tell);
            let began = instant();
            let strip = match (&so_far, backend.resumes()) {
                (Some((text, tokens)), Resumes::Repeating) => Strip::new(self.ask.echo(text), *tokens),
                _ => Strip::default(),
            };
            // Many answer nothing at all before they have read it.
            self.is_given.set(true);
            let (desk, ask, tried) = (&self.desk, &self.ask, &self.tried);
            let has_other = || desk.choose(ask, tried, so_far.is_some(), is_guest).is_some();
            let start = Rc::clone(&backend).start(Rc::clone(ask), choice.model.clone(), so_far.clone());
            let patience = patience(&choice);
            let is_wordless = || crate::world::since(began) > patience;
            self.starting = (!backend.is_own())
                .then(|| (Rc::clone(&backend), router::finish_s(&choice.facts, &choice.need), began));
            let started = patiently(start, || Rc::clone(&backend).check(), has_other, is_wordless).await;
            self.starting = None;
            match started.and_then(|outcome| outcome) {
                Ok(source) => {
                    if self.name.model.is_empty() {
                        self.name.model.clone_from(&choice.model);
                    }
                    self.answerer =
                        Answerer { cell: backend.cell(), backend: backend.label(), is_own: backend.is_own() };
                    self.running = Some(Running {
                        choice,
                        source,
                        strip,
                        timings: Timings::default(),
                        began,
                        first: None,
                        last: began,
                        unspoken: Duration::ZERO,
                        patience,
                        empties: 0,
                        tokens: 0,
                        _place: place,
                    });
                    return Ok(());
                }
                Err(failure) => {
                    drop(place);
                    self.note_failure(&backend, failure)?;
                }
            }
        }
    }

    fn note_failure(&mut self, backend: &Rc<dyn Backend>, failure: Failure) -> Result<(), ApiError> {
        self.is_given.set(false);
        let counts = &self.desk.counts;
        match &failure {
            Failure::Refused(error) if backend.is_own() => return Err(error.clone()),
            // That is what it says: another may find nothing wrong with it.
            Failure::Refused(_) => self.contradicted.push(Rc::clone(backend)),
            Failure::Broken(why) => {
                log::info!("{} does not answer: {why}", backend.label());
                backend.load().note_failure(why, instant());
            }
            Failure::Busy(_) | Failure::TooLong(_) | Failure::Lacking(_) => {}
        }
        counts.failovers.set(counts.failovers.get() + 1);
        // What says most stays: a prompt that is too long is no matter of luck.
        let says_less = matches!(
            (&self.failure, &failure),
            (Some(Failure::TooLong(_)), _)
                | (Some(Failure::Refused(_)), Failure::Busy(_) | Failure::Lacking(_))
                | (Some(Failure::Broken(_)), Failure::Busy(_) | Failure::Lacking(_) | Failure::Refused(_))
        );
        if !says_less {
            self.failure = Some(failure);
        }
        Ok(())
    }

    /// Whoever answered fails.
    fn give_up(&mut self, failure: Failure) -> Result<(), ApiError> {
        let running = self.running.take().expect("somebody answered");
        let backend = Rc::clone(&running.choice.backend);
        drop(running);
        if !self.has_begun {
            return self.note_failure(&backend, failure);
        }
        if let Failure::Broken(why) = &failure {
            backend.load().note_failure(why, instant());
        }
        let broke_off = |why: &str| {
            ApiError::new(502, "server_error", "broke_off", format!("the answer broke off: {why}; ask again"))
        };
        if !self.can_resume || self.resumes > 0 {
            return Err(broke_off(failure.text()));
        }
        log::info!("{} broke off an answer: {}; another goes on with it", backend.label(), failure.text());
        self.resumes += 1;
        let counts = &self.desk.counts;
        counts.resumes.set(counts.resumes.get() + 1);
        self.tried = vec![backend.id()];
        self.hope_from = instant();
        self.failure = Some(match failure {
            Failure::Broken(_) | Failure::Busy(_) => failure,
            other => Failure::Broken(other.text().to_owned()),
        });
        Ok(())
    }

    /// Why nobody answers.
    fn verdict(&self) -> ApiError {
        if self.has_begun {
            let why = self.failure.as_ref().map_or("nobody goes on with it", Failure::text);
            return ApiError::new(
                502,
                "server_error",
                "broke_off",
                format!("the answer broke off and nobody else could go on with it: {why}; ask again"),
            );
        }
        match &self.failure {
            Some(Failure::TooLong(error) | Failure::Lacking(error) | Failure::Refused(error)) => {
                error.clone()
            }
            Some(Failure::Busy(why)) => {
                ApiError::new(503, "server_error", "busy", format!("all who could answer are busy: {why}"))
            }
            Some(Failure::Broken(why)) => ApiError::unavailable(format!(
                "nobody answers: {why}; see Settings, or `grove ai --backends`"
            )),
            None if self.guest.is_some() => {
                ApiError::new(503, "server_error", "busy", "nothing is free here now")
            }
            None if !self.desk.has_any(&self.ask) => match &self.ask.cell {
                Some(cell) => ApiError::new(
                    404,
                    "invalid_request_error",
                    "cell_not_found",
                    format!("no cell called {cell} offers a model now"),
                ),
                None => ApiError::unavailable(
                    "no model is known here; name a model server with `grove ai --add-backend URL`, or put a .gguf \
                     file into the folder models of the state folder",
                ),
            },
            None => match &self.ask.wanted {
                Wanted::Named(model) => ApiError::new(
                    404,
                    "invalid_request_error",
                    "model_not_found",
                    format!("no model called {model} is there now; GET /v1/models lists those that are"),
                ),
                _ => ApiError::unavailable("no model of this kind is there now"),
            },
        }
    }

    /// Takes a part in; what of it is for the client.
    fn take(&mut self, mut part: Part) -> Result<Option<Part>, Failure> {
        let running = self.running.as_mut().expect("somebody answers");
        running.last = instant();
        if let Some(usage) = part.usage {
            self.usage = Some(usage);
        }
        if part.timings.decode.is_some() {
            running.timings = part.timings;
        }
        if self.finished.is_some() {
            // Behind the end there is nothing more to say.
            return Ok(None);
        }
        let text = running.strip.take(&part.text);
        if text != part.text {
            part.set_text(self.ask.kind, text);
        }
        self.finished = part.finish.is_some().then_some(running.last);
        if part.is_empty() {
            running.empties += 1;
            let is_noise = running.empties > EMPTY_MAX;
            return if is_noise { Err(wordless()) } else { Ok(None) };
        }
        running.empties = 0;
        running.unspoken = Duration::ZERO;
        if !part.text.is_empty() || part.is_rich || part.whole.is_some() {
            running.first.get_or_insert(running.last);
            running.tokens += 1;
            self.tokens = self.tokens.saturating_add(1);
        }
        self.bytes += part.text.len().max(part.choices().len()) as u64;
        let asked = self.ask.answer_max.filter(|_| self.ask.can_resume && !running.choice.backend.is_own());
        // A token may come in more than one part where tools are called.
        let is_more = asked.is_some_and(|max| self.tokens > max.saturating_mul(2).saturating_add(16));
        if self.bytes > ANSWER_BYTES_MAX || is_more {
            self.can_resume = false;
            return Err(Failure::Broken("it does not end".into()));
        }
        self.can_resume &= !part.is_rich;
        if self.can_resume {
            self.written.push_str(&part.text);
            if self.written.len() > WRITTEN_MAX {
                self.can_resume = false;
                self.written = String::new();
            }
        }
        self.has_begun = true;
        Ok(Some(part))
    }

    /// The answer is whole: what it tells of the backend is noted.
    fn finish(&mut self) {
        self.is_over = true;
        let Some(running) = self.running.take() else { return };
        let counted = running.counted();
        let expected = running.expected_s(running.tokens);
        let Running { choice, timings, began, first, last, tokens, .. } = running;
        let load = choice.backend.load();
        load.note_life(instant());
        let read = first.unwrap_or(last).duration_since(began).as_secs_f64();
        let is_own = choice.backend.is_own();
        let mut decode = load.decode.get();
        // What a friend's cell tells is not believed.
        let told = timings.decode.filter(|_| is_own && tokens >= MEASURED_MIN);
        if let Some(rate) = told.or(counted) {
            decode.add(rate);
            load.decode.set(decode);
        }
        let mut prefill = load.prefill.get();
        let prompt = choice.need.prompt;
        let is_fresh = !choice.facts.has_cache && choice.facts.busy < choice.facts.slots.max(1);
        let counted = (is_fresh && read > 0.0).then(|| f64::from(prompt) / read);
        if prompt >= PROMPT_MEASURED_MIN {
            if let Some(rate) = timings.prefill.filter(|_| is_own).or(counted) {
                prefill.add(rate);
                load.prefill.set(prefill);
            }
        }
        load.note_time(expected, last.duration_since(began).as_secs_f64());
        self.desk.note_answer(&self.ask, &choice.backend, self.tokens);
        for liar in self.contradicted.drain(..) {
            liar.load().note_failure("it refused what another one answered", instant());
        }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        if !self.is_over {
            let now = instant();
            if let Some((friend, expected_s, began)) = &self.starting {
                note_no_word(friend, *expected_s, *began, now);
            }
            if let Some(running) = self.running.as_ref().filter(|_| self.finished.is_none()) {
                running.note_unheard(now);
            }
            let cancelled = &self.desk.counts.cancelled;
            cancelled.set(cancelled.get() + 1);
        }
    }
}

/// It is there, and that is all.
fn wordless() -> Failure {
    Failure::Broken("it gives signs of life, and says nothing".into())
}

/// What `work` gives. While it is silent a sign of life is asked for beside; whoever gives none, or is wordless for too long,
/// is given up where somebody else could answer, and waited for where nobody could.
async fn patiently<T, C>(
    work: impl Future<Output = T>,
    check: impl Fn() -> C,
    has_other: impl Fn() -> bool,
    is_wordless: impl Fn() -> bool,
) -> Result<T, Failure>
where
    C: Future<Output = bool>,
{
    let mut work = pin!(work);
    let mut dead_since: Option<Instant> = None;
    let mut wait = QUIET;
    loop {
        let mut timer = None;
        let spoke = std::future::poll_fn(|cx| {
            if let Poll::Ready(done) = work.as_mut().poll(cx) {
                return Poll::Ready(Some(done));
            }
            let timer = timer.get_or_insert_with(|| Timer::after(wait));
            Pin::new(timer).poll(cx).map(|_| None)
        });
        if let Some(done) = spoke.await {
            return Ok(done);
        }
        let checked = within(CHECK_MAX, check());
        let lives = smol::future::or(async { Err(work.as_mut().await) }, async { Ok(checked.await) }).await;
        match lives {
            Err(done) => return Ok(done),
            Ok(Some(true)) if is_wordless() && has_other() => return Err(wordless()),
            Ok(Some(true)) => (dead_since, wait) = (None, QUIET_AGAIN),
            Ok(_) => {
                // What was on its way while it was asked still counts.
                if let Some(done) = within(GRACE, work.as_mut()).await {
                    return Ok(done);
                }
                let since = *dead_since.get_or_insert_with(instant);
                if has_other() || crate::world::since(since) > DEAD_MAX {
                    return Err(Failure::Broken("it gives no sign of life".into()));
                }
                wait = QUIET;
            }
        }
    }
}

#[cfg(test)]
mod tests;

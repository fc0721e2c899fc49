//! One answer, from whoever gives it: the next backend where one fails before its first token, once more where one breaks off
//! in the middle, and an error rather than an end that looks whole.

use std::future::Future;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::Poll;
use std::time::{Duration, Instant};

use smol::channel::{Receiver, Sender};

use super::desk::{Choice, Desk, Place, Resumes, Source};
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
/// What comes behind the end is waited for so long.
const TAIL_MAX: Duration = Duration::from_millis(500);
/// Text that is kept so that an answer can be gone on with. Bytes.
const WRITTEN_MAX: usize = 1 << 20;
/// A longer answer is broken off. Bytes.
const ANSWER_BYTES_MAX: u64 = 64 << 20;
/// Speeds of shorter answers tell nothing. Tokens.
const MEASURED_MIN: u32 = 8;
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
    tokens: u32,
    _place: Place,
}

/// An answer on its way. Dropping it stops whoever works on it.
pub struct Answer {
    desk: Rc<Desk>,
    ask: Rc<Ask>,
    name: Name,
    answerer: Answerer,
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
    is_finished: bool,
    is_over: bool,
    usage: Option<Usage>,
    failure: Option<Failure>,
    asked_at: Instant,
    hope_from: Instant,
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
            running: None,
            tried: Vec::new(),
            written: String::new(),
            given: None,
            tokens: 0,
            bytes: 0,
            resumes: 0,
            has_begun: false,
            is_finished: false,
            is_over: false,
            usage: None,
            failure: None,
            asked_at: now,
            hope_from: now,
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
                Ok(Some(part)) => {
                    if let Some(part) = self.take(part)? {
                        return Ok(Event::Part(part));
                    }
                }
                Ok(None) if self.is_finished => self.finish(),
                Err(_) if self.is_finished => self.finish(),
                Ok(None) => self.give_up(Failure::Broken("it ended without an end".into()))?,
                Err(failure) => self.give_up(failure)?,
            }
        }
        Ok(Event::End)
    }

    /// Waits for the next part of whoever answers now.
    async fn listen(&mut self) -> Result<Option<Part>, Failure> {
        let Self { running, desk, ask, tried, guest, can_resume, has_begun, is_finished, .. } = self;
        let running = running.as_mut().expect("somebody answers");
        let backend = Rc::clone(&running.choice.backend);
        if *is_finished {
            return within(TAIL_MAX, running.source.next()).await.unwrap_or(Ok(None));
        }
        let is_guest = guest.is_some();
        let (goes_on, may) = (*has_begun, !*has_begun || *can_resume);
        let has_other = || may && desk.choose(ask, tried, goes_on, is_guest).is_some();
        let evicted = guest.as_ref().map(|(_, told)| told.clone());
        let work = async {
            match evicted {
                None => running.source.next().await,
                Some(told) => {
                    smol::future::or(running.source.next(), async {
                        let _ = told.recv().await;
                        Err(Failure::Busy("its own user needs it now".into()))
                    })
                    .await
                }
            }
        };
        patiently(work, || Rc::clone(&backend).check(), has_other).await?
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
            let (desk, ask, tried) = (&self.desk, &self.ask, &self.tried);
            let has_other = || desk.choose(ask, tried, so_far.is_some(), is_guest).is_some();
            let start = Rc::clone(&backend).start(Rc::clone(ask), choice.model.clone(), so_far.clone());
            let started = patiently(start, || Rc::clone(&backend).check(), has_other).await;
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

    fn note_failure(
        &mut self,
        backend: &Rc<dyn super::desk::Backend>,
        failure: Failure,
    ) -> Result<(), ApiError> {
        let counts = &self.desk.counts;
        match &failure {
            Failure::Refused(error) => return Err(error.clone()),
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
                | (Some(Failure::Broken(_)), Failure::Busy(_) | Failure::Lacking(_))
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
    fn take(&mut self, mut part: Part) -> Result<Option<Part>, ApiError> {
        let running = self.running.as_mut().expect("somebody answers");
        running.last = instant();
        if let Some(usage) = part.usage {
            self.usage = Some(usage);
        }
        if part.timings.decode.is_some() {
            running.timings = part.timings;
        }
        if self.is_finished {
            // Behind the end there is nothing more to say.
            return Ok(None);
        }
        let text = running.strip.take(&part.text);
        if text != part.text {
            part.set_text(self.ask.kind, text);
        }
        self.is_finished = part.finish.is_some();
        if part.is_empty() {
            return Ok(None);
        }
        if !part.text.is_empty() || part.is_rich || part.whole.is_some() {
            running.first.get_or_insert(running.last);
            running.tokens += 1;
            self.tokens = self.tokens.saturating_add(1);
        }
        self.bytes += part.text.len().max(part.choices().len()) as u64;
        if self.bytes > ANSWER_BYTES_MAX {
            return Err(ApiError::new(502, "server_error", "too_long", "the answer does not end"));
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
        let Running { choice, timings, began, first, last, tokens, .. } = running;
        let load = choice.backend.load();
        load.note_life(instant());
        let first = first.unwrap_or(last);
        let (wrote, read) =
            (last.duration_since(first).as_secs_f64(), first.duration_since(began).as_secs_f64());
        let is_own = choice.backend.is_own();
        let mut decode = load.decode.get();
        let counted = (tokens >= MEASURED_MIN && wrote > 0.0).then(|| f64::from(tokens - 1) / wrote);
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
        let need = router::Need { answer: tokens, ..choice.need };
        load.note_time(router::finish_s(&choice.facts, &need), last.duration_since(began).as_secs_f64());
        self.desk.note_answer(&self.ask, &choice.backend, self.tokens);
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        if !self.is_over {
            let cancelled = &self.desk.counts.cancelled;
            cancelled.set(cancelled.get() + 1);
        }
    }
}

/// What `work` gives. While it is silent a sign of life is asked for beside; whoever gives none is given up where somebody
/// else could answer, and waited for where nobody could.
async fn patiently<T, C>(
    work: impl Future<Output = T>,
    check: impl Fn() -> C,
    has_other: impl Fn() -> bool,
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

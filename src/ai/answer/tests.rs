use std::cell::{Cell, RefCell};
use std::rc::Rc;

use futures_util::future::{FutureExt, LocalBoxFuture};

use super::*;
use crate::ai::desk::{Load, Offer};
use crate::ai::form::Kind;
use crate::ai::router::Facts;
use crate::ai::service::{Parts, Service};
use crate::world::Dice;

/// What a backend of a test does when it is asked next.
#[derive(Debug, Clone)]
enum Act {
    Refuse,
    Fail(Failure),
    /// Writes so many numbers of the count, then breaks off.
    Break(usize),
    /// The same, with an end that was not announced.
    Cut(usize),
    /// Writes all to the end.
    Whole,
    /// Says nothing for ever.
    Hang,
    /// Says things behind the end.
    Babble,
    /// Does so for ever.
    Endless,
    /// Sends for ever, and says nothing.
    Empty,
    /// Says more and more.
    More,
}

/// Counts to 30, going on with what it is given.
struct Counter {
    id: u64,
    acts: RefCell<Vec<Act>>,
    resumes: Resumes,
    speed: f64,
    load: Load,
    lives: Cell<bool>,
    asked: Cell<u32>,
    is_own: bool,
}

impl Counter {
    fn new(id: u64, resumes: Resumes, acts: &[Act]) -> Rc<Self> {
        Rc::new(Self {
            id,
            acts: RefCell::new(acts.to_vec()),
            resumes,
            speed: 100.0 / id as f64,
            load: Load::default(),
            lives: Cell::new(true),
            asked: Cell::new(0),
            is_own: true,
        })
    }
}

struct Pieces {
    parts: std::collections::VecDeque<Result<Option<Part>, Failure>>,
    hangs: bool,
    /// Comes again and again behind them.
    endless: Option<Part>,
}

impl Source for Pieces {
    fn next(&mut self) -> LocalBoxFuture<'_, Result<Option<Part>, Failure>> {
        async {
            match self.parts.pop_front() {
                Some(part) => part,
                None if self.endless.is_some() => {
                    Timer::after(Duration::from_micros(10)).await;
                    Ok(self.endless.clone())
                }
                None if self.hangs => std::future::pending().await,
                None => Ok(None),
            }
        }
        .boxed_local()
    }
}

fn chunk(text: &str, finish: Option<&str>) -> Part {
    let text = crate::ai::json::quoted(text);
    let finish = finish.map_or("null".to_owned(), crate::ai::json::quoted);
    let event = format!(
        "{{\"choices\":[{{\"index\":0,\"delta\":{{\"content\":{text}}},\"finish_reason\":{finish}}}]}}"
    );
    Part::from_openai(Kind::Chat, &event).unwrap().unwrap()
}

const LAST: usize = 30;

impl Backend for Counter {
    fn id(&self) -> u64 {
        self.id
    }
    fn label(&self) -> String {
        format!("counter {}", self.id)
    }
    fn cell(&self) -> String {
        "here".into()
    }
    fn is_at(&self, cell: &str) -> bool {
        cell == "here"
    }
    fn is_own(&self) -> bool {
        self.is_own
    }
    fn load(&self) -> &Load {
        &self.load
    }
    fn offer(&self, ask: &Ask) -> Option<Offer> {
        let facts = Facts {
            slots: 1,
            busy: self.load.in_flight.get(),
            load_s: 0.0,
            prefill_tps: None,
            decode_tps: Some(self.speed),
            round_trip_s: 0.0,
            context: 0,
            params: None,
            late: 1.0,
            is_down: false,
            has_cache: false,
        };
        ask.wanted.fits("m", None).then(|| Offer { model: "m".into(), facts })
    }
    fn resumes(&self) -> Resumes {
        self.resumes
    }
    fn start(
        self: Rc<Self>,
        _: Rc<Ask>,
        _: String,
        written: Option<(String, u32)>,
    ) -> LocalBoxFuture<'static, Result<Box<dyn Source>, Failure>> {
        async move {
            self.asked.set(self.asked.get() + 1);
            let act = if self.acts.borrow().len() > 1 {
                self.acts.borrow_mut().remove(0)
            } else {
                self.acts.borrow()[0].clone()
            };
            let (from, echo) = match &written {
                None => (1, String::new()),
                Some((text, _)) => (text.split_whitespace().count() + 1, text.clone()),
            };
            let mut parts = std::collections::VecDeque::new();
            let mut hangs = false;
            let mut endless = None;
            if self.resumes == Resumes::Repeating && !echo.is_empty() {
                parts.push_back(Ok(Some(chunk(&echo, None))));
            }
            let numbers = |to: usize| (from..=to.min(LAST)).map(|n| Ok(Some(chunk(&format!(" {n}"), None))));
            match act {
                Act::Refuse => return Err(Failure::Broken("nothing listens there".into())),
                Act::Fail(failure) => return Err(failure),
                Act::Break(count) => {
                    parts.extend(numbers(from + count - 1));
                    parts.push_back(Err(Failure::Broken("reset".into())));
                }
                Act::Cut(count) => parts.extend(numbers(from + count - 1)),
                Act::Whole => {
                    parts.extend(numbers(LAST));
                    parts.push_back(Ok(Some(chunk("", Some("stop")))));
                }
                Act::Hang => hangs = true,
                Act::Babble => {
                    parts.extend(numbers(LAST));
                    parts.push_back(Ok(Some(chunk("", Some("stop")))));
                    parts.push_back(Ok(Some(chunk(" and more", None))));
                    parts.push_back(Err(Failure::Broken("noise".into())));
                }
                Act::Endless => {
                    parts.extend(numbers(LAST));
                    parts.push_back(Ok(Some(chunk("", Some("stop")))));
                    endless = Some(chunk(" and more", None));
                }
                Act::Empty => endless = Some(chunk("", None)),
                Act::More => {
                    parts.extend(numbers(LAST));
                    endless = Some(chunk(" and more", None));
                }
            }
            Ok(Box::new(Pieces { parts, hangs, endless }) as Box<dyn Source>)
        }
        .boxed_local()
    }
    fn check(self: Rc<Self>) -> LocalBoxFuture<'static, bool> {
        let lives = self.lives.get();
        async move { lives }.boxed_local()
    }
}

fn desk(counters: &[Rc<Counter>]) -> Rc<Desk> {
    let desk = Rc::new(Desk::default());
    counters.iter().for_each(|counter| desk.add(Rc::clone(counter) as Rc<dyn Backend>));
    desk
}

fn ask(body: &str) -> Ask {
    Ask::read(Kind::Chat, body.as_bytes()).unwrap()
}

const COUNT: &str = r#"{"model":"m","messages":[{"role":"user","content":"count"}]}"#;

fn hear(mut answer: Answer) -> (String, Result<(), ApiError>) {
    smol::block_on(async {
        let mut text = String::new();
        loop {
            match answer.next().await {
                Ok(Event::Part(part)) => text.push_str(&part.text),
                Ok(Event::End) => return (text, Ok(())),
                Err(why) => return (text, Err(why)),
            }
        }
    })
}

fn counted() -> String {
    (1..=LAST).map(|n| format!(" {n}")).collect()
}

use Resumes::{Never, Repeating, Silently};

#[test]
fn who_fails_before_the_first_token_is_passed_over_in_silence() {
    for act in [Act::Refuse, Act::Break(0), Act::Cut(0), Act::Fail(Failure::Busy("full".into()))] {
        let (first, second) = (Counter::new(1, Never, &[act]), Counter::new(2, Never, &[Act::Whole]));
        let desk = desk(&[Rc::clone(&first), Rc::clone(&second)]);
        let (text, end) = hear(Answer::new(&desk, ask(COUNT), 0));
        assert_eq!((text, end), (counted(), Ok(())));
        assert_eq!((first.asked.get(), desk.counts.failovers.get(), desk.counts.resumes.get()), (1, 1, 0));
        assert_eq!((first.load.in_flight.get(), second.load.in_flight.get()), (0, 0));
    }
}

#[test]
fn an_answer_that_breaks_off_is_gone_on_with_once_and_is_exact() {
    for seed in 0..300 {
        let mut dice = Dice::new(seed, "answer");
        let count = dice.below(LAST as u64 - 1) as usize + 2;
        let act = if dice.percent(50) { Act::Break(count) } else { Act::Cut(count) };
        let resumes = if dice.percent(50) { Repeating } else { Silently };
        let first = Counter::new(1, Repeating, &[act]);
        let second = Counter::new(2, resumes, &[Act::Whole]);
        let desk = desk(&[first, second]);
        let answer = Answer::new(&desk, ask(COUNT), 0);
        assert_eq!(hear(answer), (counted(), Ok(())), "seed {seed}");
        assert_eq!(desk.counts.resumes.get(), 1);
    }
}

#[test]
fn what_cannot_be_gone_on_with_ends_with_an_error() {
    let cases = [
        // Nobody else.
        vec![Counter::new(1, Never, &[Act::Break(5)])],
        // The other one cannot.
        vec![
            Counter::new(1, Repeating, &[Act::Break(5), Act::Refuse]),
            Counter::new(2, Never, &[Act::Whole]),
        ],
        // It breaks off a second time.
        vec![Counter::new(1, Repeating, &[Act::Break(5)]), Counter::new(2, Repeating, &[Act::Break(5)])],
    ];
    for counters in cases {
        let desk = desk(&counters);
        let (text, end) = hear(Answer::new(&desk, ask(COUNT), 0));
        assert!(text.starts_with(" 1 2 3 4 5") && counted().starts_with(&text), "{text}");
        assert_eq!(end.unwrap_err().code, "broke_off");
        assert_eq!(desk.counts.failed.get(), 1);
    }
}

#[test]
fn the_same_backend_may_go_on_if_it_is_back() {
    let only = Counter::new(1, Repeating, &[Act::Break(7), Act::Refuse, Act::Whole]);
    only.load.note_life(instant());
    let desk = desk(&[Rc::clone(&only)]);
    assert_eq!(hear(Answer::new(&desk, ask(COUNT), 0)), (counted(), Ok(())));
    assert_eq!(only.asked.get(), 3);
}

#[test]
fn nothing_is_said_behind_the_end() {
    let desk = desk(&[Counter::new(1, Repeating, &[Act::Babble])]);
    assert_eq!(hear(Answer::new(&desk, ask(COUNT), 0)), (counted(), Ok(())));
}

#[test]
fn what_is_sent_without_end_ends() {
    // Behind the end of the answer, it is whole; it is waited for a moment only.
    let desk = desk(&[Counter::new(1, Repeating, &[Act::Endless])]);
    assert_eq!(hear(Answer::new(&desk, ask(COUNT), 0)), (counted(), Ok(())));
    // Without a word, another one answers.
    let desk = self::desk(&[Counter::new(1, Never, &[Act::Empty]), Counter::new(2, Never, &[Act::Whole])]);
    assert_eq!(hear(Answer::new(&desk, ask(COUNT), 0)), (counted(), Ok(())));
    // A friend says more than was asked for.
    let desk = self::desk(&[friend(1, Act::More), Counter::new(2, Repeating, &[Act::Whole])]);
    let body = r#"{"messages":[{"role":"user","content":"count"}],"max_tokens":20}"#;
    let (text, end) = hear(Answer::new(&desk, ask(body), 0));
    assert!(text.starts_with(&counted()) && text.len() < 400, "{text}");
    assert_eq!(end.unwrap_err().code, "broke_off");
}

fn friend(id: u64, act: Act) -> Rc<Counter> {
    Rc::new(Counter { is_own: false, ..Rc::into_inner(Counter::new(id, Never, &[act])).unwrap() })
}

#[test]
fn a_friend_who_finds_fault_with_a_request_is_not_the_last_to_be_asked() {
    let refused = || Act::Fail(Failure::Refused(ApiError::bad("no")));
    let first = friend(1, refused());
    let desk = desk(&[Rc::clone(&first), Counter::new(2, Never, &[Act::Whole])]);
    assert_eq!(hear(Answer::new(&desk, ask(COUNT), 0)), (counted(), Ok(())));
    assert!(first.load.is_down(instant()), "it was contradicted");
    // Where nobody else is, that is what is said.
    let (first, second) = (friend(1, refused()), friend(2, Act::Fail(Failure::Busy("b".into()))));
    let desk = self::desk(&[Rc::clone(&first), second]);
    assert_eq!(hear(Answer::new(&desk, ask(COUNT), 0)).1.unwrap_err().message, "no");
    assert!(!first.load.is_down(instant()));
}

#[test]
fn what_was_seen_of_a_friend_counts_though_the_client_has_gone() {
    let slow = friend(1, Act::Empty);
    let desk = desk(&[Rc::clone(&slow)]);
    let choice = desk.choose(&ask(COUNT), &[], false, false).unwrap();
    let began = instant().checked_sub(Duration::from_secs(9)).unwrap();
    let place = Place::take(&choice.backend, 1, None);
    let mut running = Running {
        patience: patience(&choice),
        choice,
        source: Box::new(Pieces { parts: Default::default(), hangs: true, endless: None }),
        strip: Strip::default(),
        timings: Timings::default(),
        began,
        first: Some(began),
        last: began + Duration::from_secs(6),
        unspoken: Duration::ZERO,
        empties: 0,
        tokens: 4,
        _place: place,
    };
    assert!(running.patience >= WORDLESS_MIN, "a friend is borne with for a while");
    running.note_unheard(instant());
    assert_eq!(slow.load.decode.get().get(), Some(0.5));
    assert!(slow.load.late() > 2.0 && !slow.load.is_down(instant()));
    running.first = None;
    running.note_unheard(instant());
    assert!(slow.load.is_down(instant()), "it had not said a word");
}

#[test]
fn wrong_requests_are_not_passed_around() {
    let refused = Failure::Refused(ApiError::bad("no"));
    let (first, second) =
        (Counter::new(1, Never, &[Act::Fail(refused)]), Counter::new(2, Never, &[Act::Whole]));
    let desk = desk(&[first, Rc::clone(&second)]);
    let (_, end) = hear(Answer::new(&desk, ask(COUNT), 0));
    assert_eq!((end.unwrap_err().message.as_str(), second.asked.get()), ("no", 0));
}

#[test]
fn a_prompt_that_is_too_long_for_all_says_so() {
    let long =
        Failure::TooLong(ApiError::new(400, "invalid_request_error", "context_length_exceeded", "long"));
    let counters = [
        Counter::new(1, Never, &[Act::Fail(long)]),
        Counter::new(2, Never, &[Act::Fail(Failure::Busy("b".into()))]),
    ];
    let (_, end) = hear(Answer::new(&desk(&counters), ask(COUNT), 0));
    assert_eq!(end.unwrap_err().code, "context_length_exceeded");
}

#[test]
fn who_is_not_there_is_told_apart() {
    let code = |desk: &Rc<Desk>, body: &str| {
        let end = hear(Answer::new(desk, ask(body), 0)).1.unwrap_err();
        (end.status, end.code)
    };
    let none = desk(&[]);
    assert_eq!(code(&none, COUNT), (503, "no_backend".into()));
    let one = desk(&[Counter::new(1, Never, &[Act::Whole])]);
    assert_eq!(code(&one, r#"{"model":"x","messages":[{"role":"user"}]}"#), (404, "model_not_found".into()));
    assert_eq!(
        code(&one, r#"{"model":"m","grove":{"cell":"y"},"messages":[{"role":"user"}]}"#),
        (404, "cell_not_found".into())
    );
}

#[test]
fn silence_without_a_sign_of_life_is_given_up_within_two_seconds() {
    let (first, second) = (Counter::new(1, Never, &[Act::Hang]), Counter::new(2, Never, &[Act::Whole]));
    first.lives.set(false);
    let desk = desk(&[Rc::clone(&first), second]);
    let answer = Answer::new(&desk, ask(COUNT), 0);
    assert_eq!(hear(answer).0, counted());
    assert!(first.load.is_down(instant()));
}

#[test]
fn what_stays_here_never_goes_to_a_friend() {
    let friend = friend(1, Act::Whole);
    let desk = desk(&[Rc::clone(&friend)]);
    let body = r#"{"messages":[{"role":"user","content":"q"}],"grove":{"only_here":true}}"#;
    assert_eq!(hear(Answer::new(&desk, ask(body), 0)).1.unwrap_err().status, 503);
    assert_eq!(friend.asked.get(), 0);
    assert_eq!(hear(Answer::new(&desk, ask(COUNT), 0)).0, counted());
}

#[test]
fn a_friends_answer_takes_only_what_is_free_and_makes_room() {
    let counter = Counter::new(1, Never, &[Act::Hang]);
    let desk = desk(&[Rc::clone(&counter)]);
    smol::block_on(async {
        let executor = smol::LocalExecutor::new();
        let mut guest = Answer::for_friend(&desk, ask(COUNT), None, 0);
        let hearing = executor.spawn(async move { guest.next().await.unwrap_err() });
        executor
            .run(async {
                smol::future::yield_now().await;
                while counter.load.in_flight.get() == 0 {
                    smol::future::yield_now().await;
                }
                let mut late = Answer::for_friend(&desk, ask(COUNT), None, 0);
                assert_eq!(late.next().await.unwrap_err().code, "busy");
                let mut own = Answer::new(&desk, ask(COUNT), 0);
                let own = executor.spawn(async move { own.next().await });
                assert_eq!(hearing.await.code, "busy");
                assert_eq!(counter.load.in_flight.get(), 1);
                drop(own);
            })
            .await;
    });
}

#[test]
fn a_friend_that_leaves_before_the_first_word_has_used_what_it_asked() {
    let friend = crate::id::CellId([7; 32]);
    let (asked, prompt) = (ask(COUNT).to_peer("m", None), u64::from(ask(COUNT).prompt_tokens));
    assert!(prompt > 0);
    let busy = || Act::Fail(Failure::Busy("full".into()));
    // Whoever has the question when the friend leaves, or has answered it, has read it; who has failed has not.
    for (act, is_over, used) in [
        (Act::Hang, false, prompt),
        (busy(), true, 0),
        (Act::Break(0), true, 0),
        (Act::Break(2), true, prompt + 2),
    ] {
        let mut book = crate::ai::book::Book::default();
        book.offers.insert(friend, crate::ai::book::OfferRow { is_on: true, ..Default::default() });
        let service = Service::new(Parts {
            dir: std::env::temp_dir(),
            name: "ann".into(),
            urls: Vec::new(),
            is_managed: false,
            idle: Duration::ZERO,
            context: 0,
            book,
            wall: Box::new(|| 1_800_000_000),
        });
        service.desk.add(Counter::new(1, Never, &[act]) as Rc<dyn Backend>);
        let (give, _frames) = smol::channel::bounded(100);
        let answer = |question: &str| {
            service.answer_friend(friend, question.as_bytes().to_vec(), give.clone()).ok().unwrap()
        };
        // One that nobody has looked at costs nothing.
        drop(answer(&asked));
        assert_eq!(service.used_today(&friend), 0);
        let mut work = answer(&asked);
        assert_eq!(work.as_mut().now_or_never().is_some(), is_over);
        assert_eq!(service.guests(), u32::from(!is_over));
        drop(work);
        assert_eq!((service.used_today(&friend), service.guests()), (used, 0));
    }
}

#[test]
fn a_conversation_goes_back_to_whom_it_was_with() {
    let (first, second) = (Counter::new(1, Never, &[Act::Whole]), Counter::new(2, Never, &[Act::Whole]));
    let desk = desk(&[Rc::clone(&first), Rc::clone(&second)]);
    let body = r#"{"messages":[{"role":"user","content":"a"}],"grove":{"cell":"here"}}"#;
    desk.note_answer(&ask(body), &(Rc::clone(&second) as Rc<dyn Backend>), 1);
    // The first is twice as fast, and not by more than half where the second need not read.
    second.load.decode.set(Default::default());
    let body = r#"{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"},{"role":"user","content":"c"}]}"#;
    let choice = desk.choose(&ask(body), &[], false, false).unwrap();
    assert!(choice.facts.has_cache || choice.backend.id() == 1);
}

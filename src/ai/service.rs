//! All of a cell's models together: who there is, looked after every few seconds; what the user said of them; what friends are
//! told and what they may ask.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};

use futures_util::future::{FutureExt, LocalBoxFuture, join_all};
use smol::channel::Sender;

use super::answer::{Answer, Event};
use super::book::{BOOK, Book, OfferRow};
use super::desk::{Backend, Desk};
use super::form::{ApiError, Ask, Wanted};
use super::friend::{Beat, Frame, Friend, OfferedModel, Peers};
use super::http::Url;
use super::managed::{Managed, Settings};
use super::server::{MODELS_MAX, Server};
use crate::clock;
use crate::id::CellId;
use crate::order;
use crate::pool;
use crate::vault::write_whole;
use crate::wire::within;
use crate::world::instant;

/// Servers are looked at this often while somebody asks.
const LOOK_BUSY: Duration = Duration::from_secs(3);
/// And while nobody does.
const LOOK_QUIET: Duration = Duration::from_secs(20);
/// All of a server is looked at anew this often.
const LOOK_ANEW: Duration = Duration::from_secs(30);
/// Somebody asks, if there was a question within this.
const BUSY_FOR: Duration = Duration::from_secs(60);
/// Beats while somebody asked within ten minutes, and else. s.
const BEAT_BUSY_S: u8 = 4;
const BEAT_QUIET_S: u8 = 20;
const BEAT_BUSY_FOR: Duration = Duration::from_secs(600);
/// A question for which nobody is known waits so long for a look around.
const LOOK_FIRST_MAX: Duration = Duration::from_millis(2500);
/// Such looks are not taken more often.
const LOOK_FIRST_EVERY: Duration = Duration::from_secs(2);
/// Friends of whom beats are remembered.
const FRIENDS_MAX: usize = 256;

/// Where a machine's day is: its number since 1970 and the hour, by this machine's clock and place.
fn local_day(unix: i64) -> (u64, u8) {
    let Some(parts) = clock::local_time(unix) else { return (0, 0) };
    #[allow(clippy::unnecessary_cast, reason = "32 bits where a C long has no more")]
    let local = unix + parts.tm_gmtoff as i64;
    ((local.max(0) / 86_400) as u64, parts.tm_hour.clamp(0, 23) as u8)
}

/// A model, and which cells have it.
#[derive(Debug, Clone, PartialEq)]
pub struct Known {
    /// Its name.
    pub name: String,
    /// Names of cells.
    pub cells: Vec<String>,
    /// Tokens of prompt and answer together, the most of any; 0: not known.
    pub context: u32,
}

/// A backend, for people.
#[derive(Debug, Clone, Default)]
pub struct BackendView {
    /// Stays the same.
    pub id: String,
    /// In words.
    pub name: String,
    /// `llama.cpp`, `ollama`, `openai`, `managed` or `friend`.
    pub kind: &'static str,
    /// The cell that it is at.
    pub cell: String,
    /// Its URL, where it has one.
    pub url: String,
    /// The URL stands in config.json.
    pub is_set: bool,
    /// `ready`, `busy`, `loading`, `asleep` or `down`.
    pub state: &'static str,
    /// What it has.
    pub models: Vec<String>,
    /// Tokens; 0: not known.
    pub context: u32,
    /// Answers at once.
    pub slots: u32,
    /// Answers that wait there.
    pub queue: u32,
    /// Answers under way there.
    pub busy: u32,
    /// As measured.
    pub decode_tps: Option<f64>,
    /// As measured.
    pub prefill_tps: Option<f64>,
    /// Answers, tokens and failures since the start.
    pub answers: u64,
    /// See `answers`.
    pub tokens: u64,
    /// See `answers`.
    pub failures: u64,
    /// The last failure; empty if it answers.
    pub last_error: String,
}

/// A cell's models.
pub struct Service {
    /// Who answers what.
    pub desk: Rc<Desk>,
    dir: PathBuf,
    /// This cell's name.
    pub name: String,
    set_urls: Vec<String>,
    book: RefCell<Book>,
    is_dirty: Cell<bool>,
    saving: smol::lock::Mutex<()>,
    servers: RefCell<Vec<Rc<Server>>>,
    managed: Option<Rc<Managed>>,
    friends: RefCell<BTreeMap<CellId, Rc<Friend>>>,
    peers: RefCell<Option<Rc<dyn Peers>>>,
    guests: RefCell<BTreeMap<CellId, u32>>,
    told: RefCell<BTreeMap<CellId, (Instant, Beat)>>,
    used_at: Cell<Option<Instant>>,
    looked_at: Cell<Option<Instant>>,
    wall: Box<dyn Fn() -> i64>,
}

/// What a service is made of.
pub struct Parts {
    /// The state folder.
    pub dir: PathBuf,
    /// This cell's name.
    pub name: String,
    /// URLs of config.json.
    pub urls: Vec<String>,
    /// Models in `models/` are run.
    pub is_managed: bool,
    /// See `Settings::idle`.
    pub idle: Duration,
    /// See `Settings::context`.
    pub context: u64,
    /// What the user said.
    pub book: Book,
    /// Unix time.
    pub wall: Box<dyn Fn() -> i64>,
}

impl Service {
    /// Puts the parts together; nobody is looked at yet.
    pub fn new(parts: Parts) -> Rc<Self> {
        let managed = parts.is_managed.then(|| {
            Rc::new(Managed::new(Settings {
                models: parts.dir.join("models"),
                log: parts.dir.join("run").join("llama-server.log"),
                context: parts.context,
                idle: parts.idle,
                cell: parts.name.clone(),
            }))
        });
        let service = Rc::new(Self {
            desk: Rc::new(Desk::default()),
            dir: parts.dir,
            name: parts.name,
            set_urls: parts.urls.iter().filter_map(|url| Some(Url::parse(url).ok()?.to_string())).collect(),
            book: RefCell::new(parts.book),
            is_dirty: Cell::new(false),
            saving: smol::lock::Mutex::new(()),
            servers: RefCell::default(),
            managed,
            friends: RefCell::default(),
            peers: RefCell::default(),
            guests: RefCell::default(),
            told: RefCell::default(),
            used_at: Cell::default(),
            looked_at: Cell::default(),
            wall: parts.wall,
        });
        service.arrange();
        service
    }

    /// Friends can be asked from now on.
    pub fn set_peers(&self, peers: Rc<dyn Peers>) {
        *self.peers.borrow_mut() = Some(peers);
    }

    /// Brings servers level with what the user said.
    fn arrange(&self) {
        let mut wanted: Vec<(String, Option<String>)> =
            self.set_urls.iter().map(|url| (url.clone(), None)).collect();
        for row in &self.book.borrow().servers {
            wanted.retain(|(url, _)| *url != row.url);
            wanted.push((row.url.clone(), row.key.clone()));
        }
        let mut servers = Vec::new();
        for (text, key) in wanted {
            let Ok(url) = Url::parse(&text) else { continue };
            let known =
                self.servers.borrow().iter().find(|server| server.is_same(&url, key.as_deref())).cloned();
            let server = known.unwrap_or_else(|| {
                let server = Rc::new(Server::new(url, key, text.clone(), &self.name));
                self.desk.add(Rc::clone(&server) as Rc<dyn Backend>);
                server
            });
            servers.push(server);
        }
        let before = self.servers.replace(servers);
        for server in before {
            if !self.servers.borrow().iter().any(|now| now.id() == server.id()) {
                self.desk.remove(server.id());
            }
        }
        if let Some(managed) = &self.managed {
            self.desk.add(Rc::clone(managed) as Rc<dyn Backend>);
        }
    }

    // ---- Looking after them ----

    /// Looks after backends, until dropped.
    pub async fn keep(self: Rc<Self>) {
        loop {
            self.look_around(LOOK_ANEW).await;
            self.save().await;
            let is_busy =
                self.is_used(BUSY_FOR) || self.desk.backends().iter().any(|b| b.load().in_flight.get() > 0);
            let is_down = self.servers.borrow().iter().any(|server| server.load().is_down(instant()));
            let pause = match (is_busy, is_down) {
                (true, true) => LOOK_BUSY / 3,
                (true, false) => LOOK_BUSY,
                (false, _) => LOOK_QUIET,
            };
            // A question wakes whoever sleeps.
            let began = instant();
            while crate::world::since(began) < pause && !(pause == LOOK_QUIET && self.is_used(LOOK_BUSY)) {
                smol::Timer::after(pause.min(Duration::from_secs(1))).await;
            }
        }
    }

    async fn look_around(&self, anew_after: Duration) {
        self.looked_at.set(Some(instant()));
        let servers = self.servers.borrow().clone();
        let looks = servers.iter().map(|server| server.follow(anew_after));
        let managed = async {
            if let Some(managed) = &self.managed {
                managed.follow().await;
            }
        };
        smol::future::zip(join_all(looks), managed).await;
    }

    /// Looks at the server at this URL now.
    pub async fn look_at(&self, url: &str) {
        let server = self.servers.borrow().iter().find(|server| server.url.to_string() == url).cloned();
        if let Some(server) = server {
            server.look().await;
        }
    }

    fn is_used(&self, within: Duration) -> bool {
        self.used_at.get().is_some_and(|at| crate::world::since(at) < within)
    }

    /// What the user said is written, if something is new.
    pub async fn save(&self) {
        if !self.is_dirty.get() {
            return;
        }
        let _one = self.saving.lock().await;
        self.is_dirty.set(false);
        let (path, text) = (self.dir.join(BOOK), self.book.borrow().to_text());
        if let Err(why) = pool::unblock(move || write_whole(&path, text.as_bytes())).await {
            log::warn!("{BOOK} cannot be written: {why}");
            self.is_dirty.set(true);
        }
    }

    /// Ends what was started.
    pub async fn stop(&self) {
        self.save().await;
        if let Some(managed) = &self.managed {
            managed.stop().await;
        }
    }

    // ---- What the user says ----

    /// Reads what the user said.
    pub fn book(&self) -> std::cell::Ref<'_, Book> {
        self.book.borrow()
    }

    /// Changes what the user said; kept when this returns.
    pub async fn change<T>(&self, change: impl FnOnce(&mut Book) -> T) -> T {
        let outcome = change(&mut self.book.borrow_mut());
        self.is_dirty.set(true);
        self.arrange();
        self.save().await;
        outcome
    }

    /// Whether a key of the API of this hash is good; its use is noted.
    pub fn admits(&self, hash: &[u8; 32]) -> bool {
        let is_good = self.book.borrow().has_key(hash);
        if is_good {
            let now = (self.wall)();
            let mut book = self.book.borrow_mut();
            let key = book.keys.iter_mut().find(|key| key.hash == *hash);
            // To the minute is enough, and spares writes.
            if let Some(key) = key.filter(|key| now - key.used >= 60) {
                key.used = now;
                self.is_dirty.set(true);
            }
        }
        is_good
    }

    // ---- Asking ----

    /// An answer to a question of this cell's own user.
    pub async fn ask(&self, ask: Ask) -> Answer {
        let is_first = !self.is_used(BUSY_FOR);
        self.used_at.set(Some(instant()));
        let knows = self.desk.choose(&ask, &[], false, false).is_some();
        let looked = self.looked_at.get().is_some_and(|at| crate::world::since(at) < LOOK_FIRST_EVERY);
        if !knows && (is_first || !looked) {
            within(LOOK_FIRST_MAX, self.look_around(Duration::ZERO)).await;
        }
        Answer::new(&self.desk, ask, (self.wall)())
    }

    /// Every model that can be asked for now, and where it is.
    pub fn models(&self) -> Vec<Known> {
        let mut known: Vec<Known> = Vec::new();
        let mut add = |name: &str, cell: &str, context: u32| {
            if let Some(model) = known.iter_mut().find(|model| model.name == name) {
                model.context = model.context.max(context);
                if !model.cells.iter().any(|other| other == cell) {
                    model.cells.push(cell.to_owned());
                }
            } else {
                known.push(Known { name: name.to_owned(), cells: vec![cell.to_owned()], context });
            }
        };
        for view in self.views() {
            if view.state != "down" {
                view.models.iter().for_each(|model| add(model, &view.cell, view.context));
            }
        }
        order::sort_by(&mut known, |a, b| a.name.cmp(&b.name));
        known
    }

    /// Something of models is set up.
    pub fn is_configured(&self) -> bool {
        !self.servers.borrow().is_empty()
            || self.managed.as_ref().is_some_and(|managed| managed.is_there())
            || self
                .friends
                .borrow()
                .values()
                .any(|friend| friend.beat().is_some_and(|b| !b.models.is_empty()))
    }

    /// All backends, for people.
    pub fn views(&self) -> Vec<BackendView> {
        let now = instant();
        let rates = |view: &mut BackendView, load: &super::desk::Load| {
            view.decode_tps = load.decode.get().get();
            view.prefill_tps = load.prefill.get().get();
            (view.answers, view.tokens, view.failures) =
                (load.answers.get(), load.tokens.get(), load.failures.get());
            view.last_error.clone_from(&load.error.borrow());
        };
        let mut views = Vec::new();
        for server in self.servers.borrow().iter() {
            let looked = server.looked();
            let busy = server.busy();
            let mut view = BackendView {
                id: format!("{:016x}", server.id()),
                name: server.label(),
                kind: server.program().map_or("unknown", |program| program.word()),
                cell: self.name.clone(),
                url: server.url.to_string(),
                is_set: self.set_urls.contains(&server.url.to_string()),
                slots: server.slots(),
                busy,
                queue: busy.saturating_sub(server.slots()),
                ..BackendView::default()
            };
            rates(&mut view, server.load());
            view.state = match &looked {
                _ if server.load().is_down(now) => "down",
                None => "down",
                Some(looked) if looked.is_loading => "loading",
                Some(_) if busy >= server.slots() => "busy",
                Some(_) => "ready",
            };
            for model in looked.into_iter().flat_map(|looked| looked.models) {
                view.context = view.context.max(model.context);
                view.models.push(model.name);
            }
            views.push(view);
        }
        if let Some(managed) = self.managed.as_ref().filter(|managed| managed.is_there()) {
            let (models, state) = managed.state();
            let busy = managed.load().in_flight.get();
            let mut view = BackendView {
                id: "managed".into(),
                name: managed.label(),
                kind: "managed",
                cell: self.name.clone(),
                state: if state == "ready" && busy > 0 { "busy" } else { state },
                models,
                slots: 1,
                busy,
                queue: busy.saturating_sub(1),
                ..BackendView::default()
            };
            rates(&mut view, managed.load());
            views.push(view);
        }
        for friend in self.friends.borrow().values() {
            let beat = friend.beat().unwrap_or_default();
            if beat.models.is_empty() && friend.load().answers.get() == 0 {
                continue;
            }
            let (slots, busy) = (u32::from(beat.slots), u32::from(beat.busy));
            let mut view = BackendView {
                id: friend.peer.to_string(),
                name: friend.label(),
                kind: "friend",
                cell: friend.label(),
                state: match () {
                    () if beat.models.is_empty() || friend.load().is_down(now) => "down",
                    () if busy >= slots => "busy",
                    () => "ready",
                },
                models: beat.models.iter().map(|model| model.name.clone()).collect(),
                context: beat.models.iter().map(|model| model.context).max().unwrap_or(0),
                slots,
                busy,
                queue: busy.saturating_sub(slots),
                ..BackendView::default()
            };
            rates(&mut view, friend.load());
            views.push(view);
        }
        views
    }

    // ---- Friends ----

    /// A friend tells what it offers.
    pub fn hear(&self, from: CellId, bytes: &[u8]) -> Result<(), &'static str> {
        let beat = Beat::from_bytes(bytes).map_err(|why| why.0)?;
        let Some(peers) = self.peers.borrow().clone() else { return Ok(()) };
        let known = self.friends.borrow().get(&from).cloned();
        let friend = match known {
            Some(friend) => friend,
            None if beat.models.is_empty() => return Ok(()),
            None if self.friends.borrow().len() >= FRIENDS_MAX => {
                return Err("too many friends offer models");
            }
            None => {
                let friend = Rc::new(Friend::new(from, peers));
                self.friends.borrow_mut().insert(from, Rc::clone(&friend));
                self.desk.add(Rc::clone(&friend) as Rc<dyn Backend>);
                friend
            }
        };
        friend.hear(beat);
        Ok(())
    }

    /// What a friend may use now, and the offer behind it.
    fn open_offer(&self, peer: &CellId) -> Option<(OfferRow, u64)> {
        let (day, hour) = local_day((self.wall)());
        let book = self.book.borrow();
        let offer = book.offers.get(peer).filter(|offer| offer.is_open(hour))?;
        Some((offer.clone(), offer.left(book.used(peer, day))))
    }

    /// What a friend is told now.
    pub fn beat_for(&self, peer: &CellId) -> Beat {
        let Some((offer, tokens_left)) = self.open_offer(peer) else { return Beat::nothing() };
        let mut beat = Beat {
            every_s: if self.is_used(BEAT_BUSY_FOR) { BEAT_BUSY_S } else { BEAT_QUIET_S },
            concurrent: offer.concurrent.min(255) as u8,
            tokens_left,
            ..Beat::default()
        };
        let centi = |rate: Option<f64>| rate.map_or(0, |rate| (rate * 100.0).min(f64::from(u32::MAX)) as u32);
        let now = instant();
        let mut add = |model: OfferedModel| {
            if !offer.has(&model.name) || beat.models.len() >= MODELS_MAX {
                return false;
            }
            match beat.models.iter_mut().find(|known| known.name == model.name) {
                Some(known) if known.decode_centi < model.decode_centi => *known = model,
                Some(_) => {}
                None => beat.models.push(model),
            }
            true
        };
        let (mut slots, mut busy) = (0, 0);
        for server in self.servers.borrow().iter() {
            let Some(looked) = server.looked().filter(|_| !server.load().is_down(now)) else { continue };
            let mut is_offered = false;
            for model in looked.models {
                is_offered |= add(OfferedModel {
                    params_m: model.params.map_or(0, |params| (params * 1000.0).min(4e9) as u32),
                    context: model.context,
                    decode_centi: centi(server.load().decode.get().get()),
                    prefill_centi: centi(server.load().prefill.get().get()),
                    load_s: if model.is_warm { 0 } else { 10 },
                    name: model.name,
                });
            }
            if is_offered {
                slots += server.slots();
                busy += server.busy();
            }
        }
        if let Some(managed) = self.managed.as_ref().filter(|managed| managed.is_there()) {
            let (models, _) = managed.state();
            let mut is_offered = false;
            for name in models {
                let ask = Ask::named(&name);
                let Some(told) = managed.offer(&ask) else { continue };
                is_offered |= add(OfferedModel {
                    name,
                    params_m: told.facts.params.map_or(0, |params| (params * 1000.0).min(4e9) as u32),
                    context: told.facts.context,
                    decode_centi: centi(told.facts.decode_tps),
                    prefill_centi: centi(told.facts.prefill_tps),
                    load_s: told.facts.load_s.clamp(0.0, 3600.0).ceil() as u16,
                });
            }
            if is_offered {
                slots += 1;
                busy += managed.load().in_flight.get();
            }
        }
        beat.slots = slots.min(1024) as u16;
        beat.busy = busy.min(65_535) as u16;
        beat
    }

    /// Friends who must hear a beat now, and what they hear.
    pub fn beats_due(&self) -> Vec<(CellId, Beat)> {
        let Some(peers) = self.peers.borrow().clone() else { return Vec::new() };
        let mut friends: Vec<CellId> = self.book.borrow().offers.keys().copied().collect();
        friends.extend(self.told.borrow().keys().copied());
        order::sort(&mut friends);
        friends.dedup();
        let mut due = Vec::new();
        for peer in friends {
            if !peers.is_reached(&peer) {
                self.told.borrow_mut().remove(&peer);
                continue;
            }
            let beat = self.beat_for(&peer);
            let is_due = match self.told.borrow().get(&peer) {
                // It may still believe what was offered before this cell's last start, or before they were parted.
                None => true,
                Some((_, before)) if beat.models.is_empty() => !before.models.is_empty(),
                Some((at, before)) => {
                    let is_old = crate::world::since(*at) >= Duration::from_secs(u64::from(before.every_s));
                    is_old
                        || (&before.models, before.busy, before.concurrent)
                            != (&beat.models, beat.busy, beat.concurrent)
                }
            };
            if is_due {
                due.push((peer, beat));
            }
        }
        due
    }

    /// A friend has heard a beat, or has not.
    pub fn note_told(&self, peer: CellId, beat: Beat, has_heard: bool) {
        let mut told = self.told.borrow_mut();
        if has_heard {
            told.insert(peer, (instant(), beat));
        } else {
            told.remove(&peer);
        }
    }

    /// A friend asks. The error is why it is not answered at all.
    pub fn answer_friend(
        self: &Rc<Self>,
        from: CellId,
        question: Vec<u8>,
        frames: Sender<(u8, Vec<u8>)>,
    ) -> Result<LocalBoxFuture<'static, ()>, String> {
        let (offer, left) = self.open_offer(&from).ok_or("no models are offered now")?;
        let under_way = self.guests.borrow().get(&from).copied().unwrap_or(0);
        if under_way >= offer.concurrent {
            return Err("as many answers as may be are under way already".into());
        }
        let text = String::from_utf8(question).map_err(|_| "the question is not UTF-8")?;
        let (ask, given) = Ask::from_peer(&text).map_err(|why| why.message)?;
        match &ask.wanted {
            Wanted::Named(model) if offer.has(model) => {}
            _ => return Err("this model is not offered".into()),
        }
        if left < u64::from(ask.prompt_tokens) {
            return Err("the tokens of this day are used up".into());
        }
        let prompt = u64::from(ask.prompt_tokens);
        self.used_at.set(Some(instant()));
        let mut answer = Answer::for_friend(&self.desk, ask, given, (self.wall)());
        let guest = Guest::enter(self, from, prompt, answer.is_given());
        let work = async move {
            let mut guest = guest;
            loop {
                let (frame, bytes, is_over) = match answer.next().await {
                    Ok(Event::Part(part)) => {
                        let frame = if part.whole.is_some() { Frame::Whole } else { Frame::Part };
                        (frame, part.to_peer(), false)
                    }
                    Ok(Event::End) => (Frame::End, String::new(), true),
                    Err(why) => (Frame::Error, error_frame(&why), true),
                };
                guest.tokens = guest.prompt + u64::from(answer.usage().answer.max(answer.tokens()));
                let is_spent = guest.tokens > left && !is_over;
                let (frame, bytes) = if is_spent || bytes.len() > frame.bytes_max() {
                    let why =
                        ApiError::new(429, "server_error", "budget", "the tokens of this day are used up");
                    (Frame::Error, error_frame(&why))
                } else {
                    (frame, bytes)
                };
                if frames.send((frame as u8, bytes.into_bytes())).await.is_err() || is_over || is_spent {
                    return;
                }
            }
        };
        Ok(work.boxed_local())
    }
}

/// An error as a frame: its status beside it.
fn error_frame(why: &ApiError) -> String {
    let text = why.to_text();
    format!("{{\"status\":{},{}", why.status, text.strip_prefix('{').unwrap_or("}"))
}

/// A friend's answer under way: counted while it lasts, and what it used is noted.
struct Guest {
    service: Rc<Service>,
    peer: CellId,
    prompt: u64,
    tokens: u64,
    /// Somebody has the question: whoever leaves before the first word has had it read all the same.
    is_given: Rc<Cell<bool>>,
}

impl Guest {
    fn enter(service: &Rc<Service>, peer: CellId, prompt: u64, is_given: Rc<Cell<bool>>) -> Self {
        *service.guests.borrow_mut().entry(peer).or_default() += 1;
        Self { service: Rc::clone(service), peer, prompt, tokens: 0, is_given }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if let Some(count) = self.service.guests.borrow_mut().get_mut(&self.peer) {
            *count = count.saturating_sub(1);
        }
        if self.tokens > self.prompt || self.is_given.get() {
            let (day, _) = local_day((self.service.wall)());
            let used = self.tokens.max(self.prompt);
            self.service.book.borrow_mut().note_used(self.peer, day, used);
            self.service.is_dirty.set(true);
        }
    }
}

impl Service {
    /// Answers under way for friends.
    pub fn guests(&self) -> u32 {
        self.guests.borrow().values().sum()
    }

    /// Tokens that a friend has used today.
    pub fn used_today(&self, peer: &CellId) -> u64 {
        let (day, _) = local_day((self.wall)());
        self.book.borrow().used(peer, day)
    }
}

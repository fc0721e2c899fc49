//! The API about models below `/api/v1/ai`, and how friends' models hang on the peers. OpenAI's form is in `openai.rs`.

use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{FutureExt, LocalBoxFuture};
use smol::Timer;
use smol::channel::Sender;

use super::Cell;
use super::json::{Fields, Obj, list, text};
use super::metrics::Text;
use crate::ai::book::{Book, OfferRow};
use crate::ai::form::Failure;
use crate::ai::friend::{Frame, Frames, Peers};
use crate::ai::http::Url;
use crate::ai::service::{BackendView, Parts, Service};
use crate::ai::{server, talks};
use crate::changes::Part as Change;
use crate::dashboard::api::{ApiRequest, ApiResponse, Method};
use crate::id::CellId;
use crate::pool;
use crate::sync::{AiAnswered, Models, Sync};
use crate::wire::message::{Answering, AskError};

/// Beats are looked at this often.
const BEAT_LOOK: Duration = Duration::from_secs(1);
/// Writes a metric of one backend, under these labels.
type Teller<'a> = dyn FnMut(&[(&str, &str)], &BackendView) + 'a;

fn refused(message: &str) -> ApiResponse {
    ApiResponse::error(400, "bad_request", message, "")
}

fn number_or_null(number: Option<f64>) -> String {
    number.map_or("null".into(), |number| format!("{:.2}", number))
}

fn backend_json(view: &BackendView) -> String {
    Obj::new()
        .str("id", &view.id)
        .str("name", &view.name)
        .str("kind", view.kind)
        .str("cell", &view.cell)
        .str("url", &view.url)
        .bool("in_config", view.is_set)
        .str("state", view.state)
        .raw("models", list(view.models.iter().map(|model| text(model))))
        .num("context", view.context)
        .num("slots", view.slots)
        .num("busy", view.busy)
        .num("queue", view.queue)
        .raw("decode_tps", number_or_null(view.decode_tps))
        .raw("prefill_tps", number_or_null(view.prefill_tps))
        .num("answers", view.answers)
        .num("tokens", view.tokens)
        .num("failures", view.failures)
        .str("last_error", &view.last_error)
        .end()
}

impl Cell {
    /// Opens what the user said of models; nobody is looked at yet.
    pub(super) async fn open_ai(self: &Rc<Self>) {
        let path = self.vault.dir.join(crate::ai::book::BOOK);
        let book = match pool::unblock(move || Book::load(&path)).await {
            Ok(book) => book,
            Err(why) => {
                log::error!("{}: {why}", crate::ai::book::BOOK);
                return;
            }
        };
        let (config, clock) = (&self.vault.config, Arc::clone(&self.vault.clock));
        let service = Service::new(Parts {
            dir: self.vault.dir.clone(),
            name: self.name.clone(),
            urls: config.ai_backends.clone(),
            is_managed: config.ai_managed,
            idle: Duration::from_secs(config.ai_idle_s),
            context: config.ai_context,
            book,
            wall: Box::new(move || clock.wall()),
        });
        if let Some(sync) = self.synced() {
            let hung = Rc::new(Hung { sync: Rc::downgrade(&sync) });
            service.set_peers(hung);
            sync.set_models(Rc::new(Asked { service: Rc::clone(&service), cell: Rc::downgrade(self) }));
        }
        *self.ai.borrow_mut() = Some(service);
    }

    /// Looks after models, and tells friends of them, until dropped.
    pub(super) async fn keep_ai(self: Rc<Self>) {
        let Some(service) = self.ai() else { return };
        let looking = Rc::clone(&service).keep();
        let telling = async {
            let mut before = String::new();
            loop {
                Timer::after(BEAT_LOOK).await;
                for (peer, beat) in service.beats_due() {
                    let Some(sync) = self.synced() else { break };
                    let has_heard = sync.send_beat(&peer, beat.to_bytes()).await;
                    service.note_told(peer, beat, has_heard);
                }
                let now: String = service
                    .views()
                    .iter()
                    .map(|view| format!("{}{}{:?}", view.id, view.state, view.models))
                    .collect();
                if now != before {
                    before = now;
                    self.vault.changes.note(Change::Ai);
                }
            }
        };
        smol::future::zip(looking, telling).await;
    }

    pub(super) fn ai(&self) -> Option<Rc<Service>> {
        self.ai.borrow().clone()
    }

    pub(super) async fn stop_ai(&self) {
        if let Some(service) = self.ai() {
            service.stop().await;
        }
    }

    /// Answers `/api/v1/ai…`; `rest` is what follows.
    pub(super) async fn answer_about_ai(
        self: &Rc<Self>,
        request: &ApiRequest,
        rest: &[&str],
        fields: &Fields,
    ) -> ApiResponse {
        let Some(service) = self.ai() else {
            let hint = "start it with `grove run`; if it runs, its log says what is wrong with ai.json";
            return ApiResponse::error(409, "not_running", "this needs the running cell", hint);
        };
        let response = match (request.method, rest) {
            (Method::Get, []) => return self.about_ai(&service),
            (_, ["conversations", ..]) => return self.answer_about_talks(request, rest).await,
            (Method::Post, ["test"]) => return test(fields).await,
            (Method::Post, ["backends"]) => change_backends(&service, &request.body).await,
            (Method::Post, ["offer"]) => self.change_offer(&service, fields).await,
            (Method::Post, ["keys"]) => {
                let now = self.vault.clock.wall();
                let name = fields.str("name").unwrap_or_default().to_owned();
                match service.change(|book| book.make_key(&name, now)).await {
                    Ok((id, key)) => {
                        ApiResponse::json_text(200, Obj::new().str("id", &id).str("key", &key).end())
                    }
                    Err(why) => refused(why),
                }
            }
            (Method::Post, ["keys", "revoke"]) => {
                let id = fields.str("id").unwrap_or_default().to_owned();
                if service.change(|book| book.revoke_key(&id)).await {
                    ApiResponse::ok()
                } else {
                    ApiResponse::error(404, "not_found", "there is no such key", "")
                }
            }
            _ => ApiResponse::error(404, "not_found", "there is nothing at this path", ""),
        };
        if response.status < 300 {
            self.vault.changes.note(Change::Ai);
        }
        response
    }

    fn about_ai(&self, service: &Service) -> ApiResponse {
        let models = service.models().into_iter().map(|model| {
            Obj::new().str("id", &model.name).raw("on", list(model.cells.iter().map(|cell| text(cell)))).end()
        });
        let views = service.views();
        let book = service.book();
        let sync = self.synced();
        let offers = book.offers.iter().map(|(peer, offer)| {
            let name = sync.as_ref().map_or_else(|| peer.short(), |sync| sync.peer_name(peer));
            Obj::new()
                .str("id", &peer.to_string())
                .str("name", &name)
                .bool("friend", sync.as_ref().is_some_and(|sync| sync.is_friend(peer)))
                .bool("on", offer.is_on)
                .raw("models", list(offer.models.iter().map(|model| text(model))))
                .num("tokens_per_day", offer.tokens_per_day)
                .num("used_today", service.used_today(peer))
                .num("from_hour", offer.from_hour)
                .num("to_hour", offer.to_hour)
                .num("concurrent", offer.concurrent)
                .end()
        });
        let keys = book.keys.iter().map(|key| {
            Obj::new()
                .str("id", &key.id)
                .str("name", &key.name)
                .num("created_unix", key.created)
                .raw("used_unix", if key.used > 0 { key.used.to_string() } else { "null".into() })
                .end()
        });
        let answer = Obj::new()
            .bool("configured", service.is_configured())
            .str("cell", &self.name)
            .raw("backends", list(views.iter().map(backend_json)))
            .raw("models", list(models))
            .raw("offers", list(offers))
            .raw("keys", list(keys))
            .str("models_folder", &self.vault.dir.join("models").display().to_string());
        ApiResponse::json_text(200, answer.end())
    }

    async fn change_offer(&self, service: &Service, fields: &Fields) -> ApiResponse {
        let Some(sync) = self.synced() else { return refused("this needs the running cell") };
        let named = fields.str("peer").unwrap_or_default();
        let peer = match sync.find_peer(named) {
            Ok(peer) => peer,
            Err(why) => return ApiResponse::error(404, "not_found", &why.to_string(), ""),
        };
        let is_on = fields.bool("on");
        if is_on && !sync.is_friend(&peer) {
            let hint = format!("`grove peer friend {named}` asks for friendship");
            return ApiResponse::error(409, "refused", "models are offered to friends only", &hint);
        }
        let before = service.book().offers.get(&peer).cloned().unwrap_or_default();
        let small = |key: &str, old: u8| fields.num(key).map_or(old, |n| n.min(255) as u8);
        let offer = OfferRow {
            is_on,
            models: fields.strs("models").unwrap_or(before.models),
            tokens_per_day: fields.num("tokens_per_day").unwrap_or(before.tokens_per_day),
            from_hour: small("from_hour", before.from_hour),
            to_hour: small("to_hour", before.to_hour),
            concurrent: fields.num("concurrent").map_or(before.concurrent, |n| n.min(1000) as u32),
        };
        match service.change(|book| book.set_offer(peer, offer)).await {
            Ok(()) => ApiResponse::ok(),
            Err(why) => refused(why),
        }
    }

    async fn answer_about_talks(&self, request: &ApiRequest, rest: &[&str]) -> ApiResponse {
        let dir = self.vault.dir.clone();
        let failed = |why: io::Error| {
            ApiResponse::error(500, "failed", &format!("the conversation cannot be kept or read: {why}"), "")
        };
        let none = || ApiResponse::error(404, "not_found", "there is no such conversation", "");
        match (request.method, rest) {
            (Method::Get, ["conversations"]) => match pool::unblock(move || talks::list(&dir)).await {
                Ok(heads) => {
                    let heads = heads.iter().map(|head| {
                        Obj::new()
                            .str("id", &head.id)
                            .str("title", &head.title)
                            .num("changed_unix", head.changed)
                            .end()
                    });
                    ApiResponse::json_text(200, Obj::new().raw("conversations", list(heads)).end())
                }
                Err(why) => failed(why),
            },
            (Method::Get, ["conversations", id]) => {
                let id = (*id).to_owned();
                match pool::unblock(move || talks::load(&dir, &id)).await {
                    Ok(Some(talk)) => ApiResponse::json_text(200, talk),
                    Ok(None) => none(),
                    Err(why) => failed(why),
                }
            }
            (Method::Post, ["conversations"]) => {
                let (body, now) = (request.body.clone(), self.vault.clock.wall());
                let Ok(body) = String::from_utf8(body) else { return refused("the body is not UTF-8") };
                match pool::unblock(move || talks::save(&dir, &body, now)).await {
                    Ok(Ok(id)) => ApiResponse::json_text(200, Obj::new().str("id", &id).end()),
                    Ok(Err(why)) => refused(why),
                    Err(why) => failed(why),
                }
            }
            (Method::Post, ["conversations", id, "delete"]) => {
                let id = (*id).to_owned();
                match pool::unblock(move || talks::delete(&dir, &id)).await {
                    Ok(true) => ApiResponse::ok(),
                    Ok(false) => none(),
                    Err(why) => failed(why),
                }
            }
            _ => ApiResponse::error(404, "not_found", "there is nothing at this path", ""),
        }
    }

    pub(super) fn ai_metrics(&self, to: &mut Text) {
        let Some(service) = self.ai().filter(|service| service.is_configured()) else { return };
        let counts = &service.desk.counts;
        to.counter("grove_ai_questions_total", "Questions to models.", &[], counts.asked.get());
        let help = "Times that the next model server was asked before there was a first token.";
        to.counter("grove_ai_failovers_total", help, &[], counts.failovers.get());
        let help = "Answers that broke off and were gone on with elsewhere.";
        to.counter("grove_ai_resumes_total", help, &[], counts.resumes.get());
        let help = "Answers that could not be had, or not to their end.";
        to.counter("grove_ai_failed_total", help, &[], counts.failed.get());
        let help = "Questions whose asker went away.";
        to.counter("grove_ai_cancelled_total", help, &[], counts.cancelled.get());
        to.gauge("grove_ai_guests", "Answers under way for friends.", &[], service.guests());
        let views = service.views();
        let each = |tell: &mut Teller<'_>| {
            for view in &views {
                tell(
                    &[("backend", view.name.as_str()), ("kind", view.kind), ("cell", view.cell.as_str())],
                    view,
                );
            }
        };
        each(&mut |labels, view| {
            let is_up = u8::from(view.state != "down");
            to.gauge("grove_ai_backend_up", "The model server can be asked.", labels, is_up);
        });
        each(&mut |labels, view| {
            to.gauge("grove_ai_busy", "Answers under way or waiting there.", labels, view.busy);
        });
        each(&mut |labels, view| {
            to.gauge("grove_ai_queue", "Answers that wait there.", labels, view.queue);
        });
        each(&mut |labels, view| {
            if let Some(rate) = view.decode_tps {
                to.gauge("grove_ai_decode_tokens_per_second", "Speed of writing.", labels, rate);
            }
        });
        each(&mut |labels, view| {
            if let Some(rate) = view.prefill_tps {
                to.gauge("grove_ai_prefill_tokens_per_second", "Speed of reading.", labels, rate);
            }
        });
        each(&mut |labels, view| {
            to.counter("grove_ai_answers_total", "Whole answers.", labels, view.answers);
        });
        each(&mut |labels, view| {
            to.counter("grove_ai_tokens_total", "Tokens of whole answers.", labels, view.tokens);
        });
        each(&mut |labels, view| {
            to.counter("grove_ai_failures_total", "Times it failed.", labels, view.failures);
        });
        let sync = self.synced();
        for (peer, tokens) in &service.book().used_ever {
            let name = sync.as_ref().map_or_else(|| peer.short(), |sync| sync.peer_name(peer));
            let (name, id) = (name, peer.short());
            let labels = [("peer", name.as_str()), ("id", id.as_str())];
            to.counter(
                "grove_ai_friend_tokens_total",
                "Tokens that a friend has used here.",
                &labels,
                tokens,
            );
        }
    }
}

async fn test(fields: &Fields) -> ApiResponse {
    let url = match Url::parse(fields.str("url").unwrap_or_default()) {
        Ok(url) => url,
        Err(why) => return refused(why),
    };
    let key = fields.str("key").filter(|key| !key.is_empty());
    let began = std::time::Instant::now();
    let looked = server::look(&url, key).await;
    let ms = began.elapsed().as_millis();
    let answer = match looked {
        Ok(looked) => Obj::new()
            .bool("ok", true)
            .str("kind", looked.program.word())
            .raw("models", list(looked.models.iter().map(|model| text(&model.name))))
            .num("slots", looked.slots)
            .num("ms", ms)
            .str("error", ""),
        Err(why) => {
            Obj::new().bool("ok", false).str("kind", "").raw("models", "[]").num("ms", ms).str("error", &why)
        }
    };
    ApiResponse::json_text(200, answer.end())
}

async fn change_backends(service: &Service, body: &[u8]) -> ApiResponse {
    let object = std::str::from_utf8(body).ok().and_then(|text| crate::ai::json::read_object(text).ok());
    let Some(object) = object else { return refused("the body is not a JSON object") };
    if let Some(add) = crate::ai::json::part(&object, "add") {
        let url = match Url::parse(crate::ai::json::text(add, "url").unwrap_or_default()) {
            Ok(url) => url.to_string(),
            Err(why) => return refused(why),
        };
        let key = crate::ai::json::text(add, "key").map(str::to_owned);
        return match service.change(|book| book.add_server(&url, key.as_deref())).await {
            Ok(()) => {
                service.look_at(&url).await;
                ApiResponse::ok()
            }
            Err(why) => refused(why),
        };
    }
    let Some(remove) = crate::ai::json::text(&object, "remove") else {
        return refused("say \"add\" or \"remove\"");
    };
    let url = Url::parse(remove).map_or_else(|_| remove.to_owned(), |url| url.to_string());
    let was_there = service
        .change(|book| {
            let before = book.servers.len();
            book.servers.retain(|row| row.url != url);
            book.servers.len() < before
        })
        .await;
    if was_there {
        return ApiResponse::ok();
    }
    if service.views().iter().any(|view| view.is_set && view.url == url) {
        let hint = "take it out of \"ai.backends\" there and start the cell anew";
        return ApiResponse::error(403, "only_in_file", "this one stands in config.json", hint);
    }
    ApiResponse::error(404, "not_found", "there is no such model server", "")
}

/// How friends' models hang on the peers.
struct Hung {
    sync: std::rc::Weak<Sync>,
}

impl Hung {
    fn with<T>(&self, ask: impl FnOnce(&Rc<Sync>) -> T) -> Option<T> {
        self.sync.upgrade().map(|sync| ask(&sync))
    }
}

impl Peers for Hung {
    fn name(&self, peer: &CellId) -> String {
        self.with(|sync| sync.peer_name(peer)).unwrap_or_else(|| peer.short())
    }

    fn is_reached(&self, peer: &CellId) -> bool {
        self.with(|sync| sync.is_friend_reached(peer)).unwrap_or(false)
    }

    fn round_trip_s(&self, peer: &CellId) -> f64 {
        self.with(|sync| sync.round_trip_s(peer)).unwrap_or(1.0)
    }

    fn ping(&self, peer: CellId) -> LocalBoxFuture<'static, bool> {
        let sync = self.sync.upgrade();
        async move {
            match sync {
                Some(sync) => sync.ping_friend(&peer).await,
                None => false,
            }
        }
        .boxed_local()
    }

    fn ask(
        &self,
        peer: CellId,
        question: Vec<u8>,
    ) -> LocalBoxFuture<'static, Result<Box<dyn Frames>, Failure>> {
        let sync = self.sync.upgrade();
        async move {
            let sync = sync.ok_or_else(|| Failure::Broken("the cell is stopping".into()))?;
            match sync.ask_friend(&peer, &question).await {
                Ok(answering) => Ok(Box::new(Coming(answering)) as Box<dyn Frames>),
                Err(AskError::Refused(why)) => Err(Failure::Busy(why.text)),
                Err(why) => Err(Failure::Broken(why.to_string())),
            }
        }
        .boxed_local()
    }
}

/// Frames of a friend's answer.
struct Coming(Answering);

impl Frames for Coming {
    fn next(&mut self) -> LocalBoxFuture<'_, Result<(u8, Vec<u8>), String>> {
        async {
            let bytes_max = |kind| Frame::from_byte(kind).map_or(0, Frame::bytes_max);
            self.0.next(bytes_max).await.map_err(|why| why.to_string())
        }
        .boxed_local()
    }
}

/// What friends ask of this cell.
struct Asked {
    service: Rc<Service>,
    cell: std::rc::Weak<Cell>,
}

impl Models for Asked {
    fn hear(&self, from: CellId, beat: &[u8]) -> Result<(), &'static str> {
        self.service.hear(from, beat)
    }

    fn answer(
        &self,
        from: CellId,
        question: Vec<u8>,
        frames: Sender<AiAnswered>,
    ) -> Result<LocalBoxFuture<'static, ()>, String> {
        if self.cell.strong_count() == 0 {
            return Err("the cell is stopping".into());
        }
        self.service.answer_friend(from, question, frames)
    }
}

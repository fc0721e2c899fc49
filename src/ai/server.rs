//! Model servers that the user has named: what they are, what they have, and their answers. llama.cpp's and Ollama's are known
//! by themselves; others of OpenAI's form are used as far as that form goes.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::{Duration, Instant};

use futures_util::future::{FutureExt, LocalBoxFuture};
use miniserde::json::{Object, Value};

use super::desk::{Backend, Load, Offer, Resumes, Source};
use super::form::{Ask, Failure, Kind, MODEL_BYTES_MAX, Part};
use super::http::{self, Body, HttpError, Response, Url};
use super::json;
use super::lines::{Cutter, Form};
use super::router::Facts;
use crate::keys::sha256;
use crate::wire::within;
use crate::world::instant;

/// A question about a server itself is answered within this.
const LOOK_TIME_MAX: Duration = Duration::from_secs(4);
/// An answer to such a question, in bytes.
const LOOK_BYTES_MAX: usize = 4 << 20;
/// An error, in bytes.
const ERROR_BYTES_MAX: usize = 64 * 1024;
/// An answer that comes whole, in bytes.
const WHOLE_BYTES_MAX: usize = 8 << 20;
/// Models of one server.
pub const MODELS_MAX: usize = 64;
/// What is busy was looked at so lately.
const BUSY_FRESH: Duration = Duration::from_secs(6);
/// Loading a model that is not in Ollama's memory, where it was not measured. s.
const OLLAMA_LOAD_S: f64 = 10.0;

/// Which program a server is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    /// llama.cpp's own server.
    LlamaCpp,
    /// Ollama.
    Ollama,
    /// Another one of OpenAI's form.
    OpenAi,
}

impl Program {
    /// The word for it.
    pub fn word(self) -> &'static str {
        match self {
            Self::LlamaCpp => "llama.cpp",
            Self::Ollama => "ollama",
            Self::OpenAi => "openai",
        }
    }
}

/// A model that a server has.
#[derive(Debug, Clone, PartialEq)]
pub struct Model {
    /// Its name there.
    pub name: String,
    /// Thousand million parameters, if known.
    pub params: Option<f64>,
    /// Tokens of prompt and answer together; 0: not known.
    pub context: u32,
    /// It is in memory.
    pub is_warm: bool,
}

/// What a look at a server told.
#[derive(Debug, Clone)]
pub struct Looked {
    /// What it is.
    pub program: Program,
    /// What it has.
    pub models: Vec<Model>,
    /// Answers at once; 0: not known.
    pub slots: u32,
    /// It is there and loads its model.
    pub is_loading: bool,
}

fn words(why: HttpError) -> String {
    why.to_string()
}

/// Asks a server about itself.
async fn look_up(url: &Url, key: Option<&str>, path: &str) -> Result<(u16, String, String), String> {
    let asked = async {
        let response = http::ask(url, key, "GET", path, None).await.map_err(words)?;
        let (status, server) = (response.status, response.server.clone());
        let text = response.text(LOOK_BYTES_MAX).await.map_err(words)?;
        Ok((status, server, text))
    };
    within(LOOK_TIME_MAX, asked).await.unwrap_or_else(|| Err("it does not answer in time".into()))
}

fn refused(status: u16) -> Option<String> {
    [401, 403].contains(&status).then(|| "it wants a key, or another one".to_owned())
}

/// Finds out what a server is and has. The error is for people.
pub async fn look(url: &Url, key: Option<&str>) -> Result<Looked, String> {
    let (status, _, text) = look_up(url, key, "/api/version").await?;
    let version = json::read_object(&text).ok().filter(|_| status == 200);
    if version.is_some_and(|version| json::text(&version, "version").is_some()) {
        return look_at_ollama(url, key).await;
    }
    let (status, server, text) = look_up(url, key, "/props").await?;
    let props = json::read_object(&text).unwrap_or_default();
    let is_loading = status == 503;
    if (status == 200 && props.contains_key("total_slots")) || (is_loading && props.contains_key("error")) {
        let mut looked = Looked { program: Program::LlamaCpp, models: Vec::new(), slots: 1, is_loading };
        if is_loading {
            return Ok(looked);
        }
        looked.slots = json::number(&props, "total_slots").map_or(1, |n| n.clamp(1, 1024) as u32);
        let settings = json::part(&props, "default_generation_settings");
        let context = settings.and_then(|settings| json::number(settings, "n_ctx")).unwrap_or(0);
        looked.models = look_at_models(url, key, u32::try_from(context).unwrap_or(0)).await?;
        return Ok(looked);
    }
    if let Some(why) = refused(status).filter(|_| server == "llama.cpp") {
        return Err(why);
    }
    let models = look_at_models(url, key, 0).await?;
    Ok(Looked { program: Program::OpenAi, models, slots: 0, is_loading: false })
}

fn is_name(name: &str) -> bool {
    !name.is_empty() && name.len() <= MODEL_BYTES_MAX && !name.chars().any(char::is_control)
}

async fn look_at_models(url: &Url, key: Option<&str>, context: u32) -> Result<Vec<Model>, String> {
    let (status, _, text) = look_up(url, key, "/v1/models").await?;
    if let Some(why) = refused(status) {
        return Err(why);
    }
    let object = json::read_object(&text).ok().filter(|_| status == 200);
    let object = object.ok_or("nothing there is known as a model server")?;
    let items = json::items(&object, "data").ok_or("nothing there is known as a model server")?;
    let model = |item: &Value| {
        let Value::Object(item) = item else { return None };
        let name = json::text(item, "id").filter(|name| is_name(name))?.to_owned();
        let meta = json::part(item, "meta");
        let params = meta.and_then(|meta| json::float(meta, "n_params")).filter(|n| *n > 0.0);
        let context = match context {
            0 => meta.and_then(|meta| json::number(meta, "n_ctx_train")).unwrap_or(0) as u32,
            context => context,
        };
        Some(Model { name, params: params.map(|n| n / 1e9), context, is_warm: true })
    };
    Ok(items.iter().filter_map(model).take(MODELS_MAX).collect())
}

/// `8.0B` and `770M` as thousand millions.
fn parameter_size(text: &str) -> Option<f64> {
    let text = text.trim();
    let units = [("T", 1e3), ("B", 1.0), ("M", 1e-3), ("K", 1e-6)];
    let (number, factor) =
        units.iter().find_map(|(unit, factor)| Some((text.strip_suffix(unit)?, factor)))?;
    number.trim().parse::<f64>().ok().map(|n| n * factor).filter(|n| n.is_finite() && *n > 0.0)
}

async fn look_at_ollama(url: &Url, key: Option<&str>) -> Result<Looked, String> {
    let (status, _, text) = look_up(url, key, "/api/tags").await?;
    if let Some(why) = refused(status) {
        return Err(why);
    }
    let tags = json::read_object(&text).map_err(|why| format!("its list of models is odd: {why}"))?;
    let warm = match look_up(url, key, "/api/ps").await {
        Ok((200, _, text)) => json::read_object(&text).unwrap_or_default(),
        _ => Object::default(),
    };
    let warm: Vec<(String, u32)> = json::items(&warm, "models").map_or(Vec::new(), |items| {
        let one = |item: &Value| {
            let Value::Object(item) = item else { return None };
            let context = json::number(item, "context_length").unwrap_or(0);
            Some((json::text(item, "name")?.to_owned(), u32::try_from(context).unwrap_or(0)))
        };
        items.iter().filter_map(one).collect()
    });
    let items = json::items(&tags, "models").ok_or("its list of models is odd")?;
    let model = |item: &Value| {
        let Value::Object(item) = item else { return None };
        let name = json::text(item, "name").or(json::text(item, "model")).filter(|name| is_name(name))?;
        let details = json::part(item, "details");
        let size = details.and_then(|details| json::text(details, "parameter_size"));
        let loaded = warm.iter().find(|(loaded, _)| loaded == name);
        Some(Model {
            name: name.to_owned(),
            params: size.and_then(parameter_size),
            // What is asked for is loaded; the model's own bound is not told here.
            context: 0,
            is_warm: loaded.is_some(),
        })
    };
    let models = items.iter().filter_map(model).take(MODELS_MAX).collect();
    Ok(Looked { program: Program::Ollama, models, slots: 1, is_loading: false })
}

/// A model server.
pub struct Server {
    id: u64,
    /// Where it is.
    pub url: Url,
    key: Option<String>,
    label: String,
    cell: String,
    looked: RefCell<Option<Looked>>,
    looked_at: Cell<Option<Instant>>,
    /// Answers that others had under way there, when that was looked at.
    busy: Cell<Option<(Instant, u32)>>,
    load: Load,
}

impl Server {
    /// One at `url`; `cell` is the name of this cell.
    pub fn new(url: Url, key: Option<String>, label: String, cell: &str) -> Self {
        let hash = sha256(format!("server {url}").as_bytes());
        Self {
            id: u64::from_le_bytes(hash[..8].try_into().expect("8 bytes")),
            url,
            key,
            label,
            cell: cell.to_owned(),
            looked: RefCell::default(),
            looked_at: Cell::default(),
            busy: Cell::default(),
            load: Load::default(),
        }
    }

    /// Whether it is the one at this URL under this key.
    pub fn is_same(&self, url: &Url, key: Option<&str>) -> bool {
        self.url == *url && self.key() == key
    }

    fn key(&self) -> Option<&str> {
        self.key.as_deref()
    }

    /// What the last look told, if it is there.
    pub fn looked(&self) -> Option<Looked> {
        self.looked.borrow().clone()
    }

    /// Looks what it is and has, and notes whether it is there.
    pub async fn look(&self) {
        let outcome = look(&self.url, self.key()).await;
        let now = instant();
        self.looked_at.set(Some(now));
        match outcome {
            Ok(looked) => {
                *self.looked.borrow_mut() = Some(looked);
                self.load.note_life(now);
            }
            Err(why) => self.load.set_down(&why, now),
        }
    }

    /// It has stopped: nothing is known of it any more.
    pub fn forget(&self) {
        *self.looked.borrow_mut() = None;
        self.busy.set(None);
    }

    /// Looks how busy it is; all of it is looked at anew every so often, and where it was not there.
    pub async fn follow(&self, anew_after: Duration) {
        let now = instant();
        let is_old = self.looked_at.get().is_none_or(|at| now.duration_since(at) >= anew_after);
        let is_loading = self.looked.borrow().as_ref().is_none_or(|looked| looked.is_loading);
        if is_old || is_loading || self.load.is_down(now) {
            self.look().await;
        }
        let program = self.looked.borrow().as_ref().map(|looked| looked.program);
        if program != Some(Program::LlamaCpp) {
            return;
        }
        if let Ok((200, _, text)) = look_up(&self.url, self.key(), "/slots").await {
            if let Ok(Value::Array(slots)) = miniserde::json::from_str::<Value>(&text) {
                let is_busy =
                    |slot: &&Value| matches!(slot, Value::Object(slot) if json::is(slot, "is_processing"));
                let busy = slots.iter().filter(is_busy).count() as u32;
                self.busy.set(Some((instant(), busy.saturating_sub(self.load.in_flight.get()))));
            }
        }
    }

    /// Answers under way there: those that were assigned, and those of others who use it.
    pub fn busy(&self) -> u32 {
        let assigned = self.load.in_flight.get();
        match self.busy.get() {
            Some((at, busy)) if instant().duration_since(at) < BUSY_FRESH => busy + assigned,
            _ => assigned,
        }
    }

    /// What happened with it.
    pub fn load(&self) -> &Load {
        &self.load
    }

    /// Answers at once.
    pub fn slots(&self) -> u32 {
        self.looked.borrow().as_ref().map_or(1, |looked| looked.slots.max(1))
    }

    /// What it is.
    pub fn program(&self) -> Option<Program> {
        self.looked.borrow().as_ref().map(|looked| looked.program)
    }

    /// What is to be known of it for one of its models.
    pub fn facts(&self, model: &Model, program: Program) -> Facts {
        let load = match (program, model.is_warm) {
            (Program::Ollama, false) => OLLAMA_LOAD_S,
            _ => 0.0,
        };
        Facts {
            slots: self.slots(),
            busy: self.busy(),
            load_s: load,
            prefill_tps: self.load.prefill.get().get(),
            decode_tps: self.load.decode.get().get(),
            round_trip_s: if self.url.is_loopback() { 0.0005 } else { 0.003 },
            context: model.context,
            params: model.params,
            late: 1.0,
            is_down: false,
            has_cache: false,
        }
    }

    /// A sign of life: it answers, and where it tells what its slots do, at least one of them works.
    pub async fn lives(&self) -> bool {
        let path = match self.program() {
            Some(Program::LlamaCpp) => "/slots",
            Some(Program::Ollama) => "/api/version",
            _ => "/v1/models",
        };
        let Ok(response) = http::ask(&self.url, self.key(), "GET", path, None).await else { return false };
        if path != "/slots" || response.status != 200 {
            // Whatever it answers, it answers.
            return true;
        }
        match response.text(LOOK_BYTES_MAX).await {
            Ok(text) => !text.contains("\"is_processing\"") || text.contains("\"is_processing\":true"),
            Err(_) => false,
        }
    }

    /// Asks it.
    pub async fn ask(
        &self,
        ask: &Ask,
        model: &str,
        written: Option<(String, u32)>,
    ) -> Result<Box<dyn Source>, Failure> {
        let program = self.program().unwrap_or(Program::OpenAi);
        let written = written.as_ref().map(|(text, tokens)| (text.as_str(), *tokens));
        let is_native = program == Program::Ollama && ask.kind == Kind::Chat && !ask.is_whole;
        let (path, body) = if is_native {
            let found = self.looked().and_then(|looked| looked.models.into_iter().find(|m| m.name == model));
            ("/api/chat", ask.to_ollama(model, found.map_or(0, |model| model.context), written))
        } else {
            (ask.kind.path(), ask.to_openai(model, written))
        };
        let response = http::ask(&self.url, self.key(), "POST", path, Some(body.as_bytes())).await;
        let response = response.map_err(|why| Failure::Broken(why.to_string()))?;
        if response.status != 200 {
            return Err(read_failure(response).await);
        }
        self.load.note_life(instant());
        if ask.is_whole {
            return Ok(Box::new(Whole(ask.kind, Some(response))));
        }
        let form = if is_native { Form::Lines } else { Form::Events };
        Ok(Box::new(Streamed {
            kind: ask.kind,
            form,
            body: response.body,
            cutter: Cutter::new(form),
            events: VecDeque::new(),
            is_over: false,
        }))
    }
}

async fn read_failure(response: Response) -> Failure {
    let status = response.status;
    match response.text(ERROR_BYTES_MAX).await {
        Ok(text) => Failure::from_answer(status, &text),
        Err(_) => Failure::from_answer(status, ""),
    }
}

impl Backend for Server {
    fn id(&self) -> u64 {
        self.id
    }

    fn label(&self) -> String {
        self.label.clone()
    }

    fn cell(&self) -> String {
        self.cell.clone()
    }

    fn is_at(&self, cell: &str) -> bool {
        cell == self.cell
    }

    fn is_own(&self) -> bool {
        true
    }

    fn load(&self) -> &Load {
        &self.load
    }

    fn offer(&self, ask: &Ask) -> Option<Offer> {
        let looked = self.looked.borrow();
        let looked = looked.as_ref()?;
        let fitting = looked.models.iter().filter(|model| ask.wanted.fits(&model.name, model.params));
        // What is in memory answers at once; else the largest.
        let rank = |model: &&Model| (model.is_warm, (model.params.unwrap_or(1.0) * 1000.0) as u64);
        let model = fitting.max_by_key(rank)?;
        Some(Offer { model: model.name.clone(), facts: self.facts(model, looked.program) })
    }

    fn resumes(&self) -> Resumes {
        match self.program() {
            Some(Program::LlamaCpp) => Resumes::Repeating,
            Some(Program::Ollama) => Resumes::Silently,
            _ => Resumes::Never,
        }
    }

    fn start(
        self: Rc<Self>,
        ask: Rc<Ask>,
        model: String,
        written: Option<(String, u32)>,
    ) -> LocalBoxFuture<'static, Result<Box<dyn Source>, Failure>> {
        async move { self.ask(&ask, &model, written).await }.boxed_local()
    }

    fn check(self: Rc<Self>) -> LocalBoxFuture<'static, bool> {
        async move { self.lives().await }.boxed_local()
    }
}

/// An answer that comes in events.
struct Streamed {
    kind: Kind,
    form: Form,
    body: Body,
    cutter: Cutter,
    events: VecDeque<String>,
    is_over: bool,
}

impl Streamed {
    async fn read(&mut self) -> Result<Option<Part>, Failure> {
        loop {
            if self.is_over {
                return Ok(None);
            }
            if let Some(event) = self.events.pop_front() {
                return self.part(&event);
            }
            let piece = self.body.piece().await.map_err(|why| Failure::Broken(why.to_string()))?;
            let Some(mut bytes) = piece else {
                return Err(Failure::Broken("the connection ended before the answer did".into()));
            };
            while !bytes.is_empty() {
                match self.cutter.next(&mut bytes) {
                    Ok(Some(event)) => self.events.push_back(event),
                    Ok(None) => {}
                    // What came before it counts.
                    Err(why) if self.events.is_empty() => return Err(Failure::Broken(why.0.into())),
                    Err(_) => break,
                }
            }
        }
    }

    fn part(&mut self, event: &str) -> Result<Option<Part>, Failure> {
        if self.form == Form::Lines {
            let part = Part::from_ollama(event)?;
            self.is_over = part.finish.is_some();
            return Ok(Some(part));
        }
        let part = Part::from_openai(self.kind, event)?;
        self.is_over = part.is_none();
        Ok(part)
    }
}

impl Source for Streamed {
    fn next(&mut self) -> LocalBoxFuture<'_, Result<Option<Part>, Failure>> {
        self.read().boxed_local()
    }
}

/// An answer that comes in one piece.
struct Whole(Kind, Option<Response>);

impl Source for Whole {
    fn next(&mut self) -> LocalBoxFuture<'_, Result<Option<Part>, Failure>> {
        async {
            let Some(response) = self.1.take() else { return Ok(None) };
            let text =
                response.text(WHOLE_BYTES_MAX).await.map_err(|why| Failure::Broken(why.to_string()))?;
            Part::whole(self.0, text).map(Some)
        }
        .boxed_local()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_of_models_are_read() {
        assert_eq!(parameter_size("8.0B"), Some(8.0));
        assert_eq!(parameter_size("770M"), Some(0.77));
        for odd in ["", "B", "x8B", "8.0", "nanB", "-1B", "é"] {
            assert_eq!(parameter_size(odd), None, "{odd}");
        }
    }
}

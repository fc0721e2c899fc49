//! The forms of requests and answers: OpenAI's, which clients, llama.cpp and friends speak, and Ollama's own.
//!
//! Knows nothing of sockets and of who answers. What a client sends and what is not ours to change passes as text.

use miniserde::json::{Array, Object, Value};

use super::json::{self, Members, quoted};
use crate::keys::sha256;

/// Names of models, in bytes.
pub const MODEL_BYTES_MAX: usize = 128;
/// Messages of one request.
const MESSAGES_MAX: usize = 2048;
/// Tokens that a message costs beside its text.
const MESSAGE_TOKENS: u32 = 6;
/// Ollama's own context where nothing else is asked for. Tokens.
const OLLAMA_CONTEXT: u32 = 4096;

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `/v1/chat/completions`.
    Chat,
    /// `/v1/completions`.
    Completion,
    /// `/v1/embeddings`.
    Embeddings,
}

impl Kind {
    /// Its path at a server of OpenAI's form.
    pub fn path(self) -> &'static str {
        match self {
            Self::Chat => "/v1/chat/completions",
            Self::Completion => "/v1/completions",
            Self::Embeddings => "/v1/embeddings",
        }
    }

    /// The word for it on the wire between cells.
    pub fn word(self) -> &'static str {
        match self {
            Self::Chat => "chat",
            Self::Completion => "completion",
            Self::Embeddings => "embeddings",
        }
    }

    /// What the word means.
    pub fn from_word(word: &str) -> Option<Self> {
        [Self::Chat, Self::Completion, Self::Embeddings].into_iter().find(|kind| kind.word() == word)
    }
}

/// An error as OpenAI's clients expect it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiError {
    /// HTTP status.
    pub status: u16,
    /// `invalid_request_error` and the like.
    pub kind: String,
    /// A word for programs; empty for none.
    pub code: String,
    /// What happened and what to do.
    pub message: String,
    /// More members, as JSON.
    pub more: Vec<(String, String)>,
}

impl ApiError {
    /// An error of these parts.
    pub fn new(status: u16, kind: &str, code: &str, message: impl Into<String>) -> Self {
        Self { status, kind: kind.into(), code: code.into(), message: message.into(), more: Vec::new() }
    }

    /// The request makes no sense.
    pub fn bad(message: impl Into<String>) -> Self {
        Self::new(400, "invalid_request_error", "", message)
    }

    /// There is nobody who could answer now.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(503, "server_error", "no_backend", message)
    }

    /// `{"error":{…}}`.
    pub fn to_text(&self) -> String {
        let mut error = Members::default();
        error.set("message", &quoted(&self.message));
        error.set("type", &quoted(&self.kind));
        error.set("param", "null");
        error.set("code", &if self.code.is_empty() { "null".to_owned() } else { quoted(&self.code) });
        for (key, value) in &self.more {
            error.set(key, value);
        }
        format!("{{\"error\":{}}}", error.to_text())
    }
}

/// Why a backend gives no answer, or no more of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// It cannot be reached, broke off, or sent what makes no sense: another one may do better.
    Broken(String),
    /// It takes no more now.
    Busy(String),
    /// Its context is too small.
    TooLong(ApiError),
    /// It does not have the model, or does not do this.
    Lacking(ApiError),
    /// The request itself is wrong: nobody would answer it.
    Refused(ApiError),
}

impl Failure {
    /// What a backend's answer of this status means.
    pub fn from_answer(status: u16, text: &str) -> Self {
        let object = json::read_object(text).unwrap_or_default();
        let (message, kind, code) = error_words(&object);
        let message =
            cut(if message.is_empty() { "the model server gave no reason" } else { &message }, 1000);
        let is_context = kind == "exceed_context_size_error"
            || code == "context_length_exceeded"
            || message.contains("context size")
            || message.contains("context length");
        if status == 400 && is_context {
            let mut error = ApiError::new(400, "invalid_request_error", "context_length_exceeded", message);
            if let Some(part) = json::part(&object, "error") {
                for key in ["n_prompt_tokens", "n_ctx"] {
                    error.more.extend(json::number(part, key).map(|n| (key.to_owned(), n.to_string())));
                }
            }
            return Self::TooLong(error);
        }
        match status {
            400 | 413 | 415 | 422 => {
                Self::Refused(ApiError::new(status, "invalid_request_error", &code, message))
            }
            401 | 403 => Self::Broken(format!("it wants another key: {message}")),
            404 | 405 | 501 => {
                let is_told = status != 404 || code == "not_supported";
                let code = if is_told { "not_supported" } else { "model_not_found" };
                Self::Lacking(ApiError::new(404, "invalid_request_error", code, message))
            }
            429 | 503 => Self::Busy(message),
            _ => Self::Broken(format!("it answered with status {status}: {message}")),
        }
    }

    /// In words.
    pub fn text(&self) -> &str {
        match self {
            Self::Broken(text) | Self::Busy(text) => text,
            Self::TooLong(error) | Self::Lacking(error) | Self::Refused(error) => &error.message,
        }
    }
}

/// Message, type and code of an error, in OpenAI's form or Ollama's.
fn error_words(object: &Object) -> (String, String, String) {
    if let Some(text) = json::text(object, "error") {
        return (text.to_owned(), String::new(), String::new());
    }
    let Some(error) = json::part(object, "error") else { return Default::default() };
    let word = |key| json::text(error, key).unwrap_or_default().to_owned();
    (word("message"), word("type"), word("code"))
}

/// The beginning of a text without control characters.
pub fn cut(text: &str, max: usize) -> String {
    let mut short = String::new();
    for c in text.chars().map(|c| if c.is_control() { ' ' } else { c }) {
        if short.len() + c.len_utf8() > max {
            break;
        }
        short.push(c);
    }
    short
}

/// Which models will do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// Any; larger ones are worth waiting for.
    Best,
    /// Of at most 4, from 4 to 20, from 20 thousand million parameters.
    Small,
    /// See `Small`.
    Medium,
    /// See `Small`.
    Large,
    /// The one of this name.
    Named(String),
}

impl Wanted {
    /// What the field `model` means.
    pub fn read(model: &str) -> Self {
        match model {
            "" | "auto" | "best" | "grove" => Self::Best,
            "small" => Self::Small,
            "medium" => Self::Medium,
            "large" => Self::Large,
            name => Self::Named(name.to_owned()),
        }
    }

    /// Whether a model of this name and so many thousand million parameters will do.
    pub fn fits(&self, name: &str, params: Option<f64>) -> bool {
        let params = params.unwrap_or(1.0);
        match self {
            Self::Best => true,
            Self::Small => params < 4.0,
            Self::Medium => (4.0..20.0).contains(&params),
            Self::Large => params >= 20.0,
            Self::Named(wanted) => same_model(wanted, name),
        }
    }
}

/// Whether two names mean one model: Ollama's `x` is `x:latest`.
pub fn same_model(a: &str, b: &str) -> bool {
    a.strip_suffix(":latest").unwrap_or(a) == b.strip_suffix(":latest").unwrap_or(b)
}

/// A request that was read.
#[derive(Debug, Clone)]
pub struct Ask {
    /// What is asked for.
    pub kind: Kind,
    /// Which model.
    pub wanted: Wanted,
    /// The client wants the answer as it comes.
    pub streams: bool,
    /// It wants to know the tokens at the end of a stream.
    pub wants_usage: bool,
    /// The prompt must not leave this cell.
    pub only_here: bool,
    /// The cell that is to answer, by name or beginning of its id.
    pub cell: Option<String>,
    /// Tokens of the prompt, by estimate.
    pub prompt_tokens: u32,
    /// Tokens of the answer, at most.
    pub answer_max: Option<u32>,
    /// An answer that broke off can be continued.
    pub can_resume: bool,
    /// The answer comes in one piece and cannot be put together from parts.
    pub is_whole: bool,
    /// The client's own beginning of the answer.
    pub prefill: String,
    /// Hashes of the conversation up to each message.
    pub marks: Vec<u64>,
    members: Members,
    messages: Vec<Object>,
}

/// A conversation as text, for estimates: the texts in a message.
fn message_text(message: &Object) -> String {
    match message.get("content") {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(parts)) => {
            let text = |part: &Value| match part {
                Value::Object(part) => json::text(part, "text").map(str::to_owned),
                _ => None,
            };
            parts.iter().filter_map(text).collect::<Vec<_>>().join("\n")
        }
        _ => String::new(),
    }
}

fn tokens(text: &str) -> u32 {
    // Four bytes a token, and not fewer than words.
    let words = text.split_ascii_whitespace().count();
    u32::try_from((text.len() / 4).max(words)).unwrap_or(u32::MAX / 4)
}

fn positive(object: &Object, key: &str) -> Option<u32> {
    json::number(object, key).map(|n| u32::try_from(n).unwrap_or(u32::MAX)).filter(|n| *n > 0)
}

impl Ask {
    /// Reads the body of a request.
    pub fn read(kind: Kind, body: &[u8]) -> Result<Self, ApiError> {
        let text = std::str::from_utf8(body).map_err(|_| ApiError::bad("the body is not UTF-8"))?;
        let (mut members, object) =
            json::read(text).map_err(|why| ApiError::bad(format!("the body cannot be read: {why}")))?;
        let model = match object.get("model") {
            None | Some(Value::Null) => "",
            Some(Value::String(model)) if model.len() <= MODEL_BYTES_MAX => model,
            Some(_) => return Err(ApiError::bad("'model' must be a text of at most 128 bytes")),
        };
        let grove = json::part(&object, "grove");
        let messages = if kind == Kind::Chat { read_messages(&object)? } else { Vec::new() };
        let mut prompt_tokens = 0u32;
        let mut marks = Vec::with_capacity(messages.len());
        let mut state = [0; 32];
        for message in &messages {
            let text = message_text(message);
            prompt_tokens = prompt_tokens.saturating_add(tokens(&text)).saturating_add(MESSAGE_TOKENS);
            let role = json::text(message, "role").unwrap_or_default();
            state = sha256(&[&state[..], role.as_bytes(), b"\0", text.as_bytes()].concat());
            marks.push(u64::from_le_bytes(state[..8].try_into().expect("8 bytes")));
        }
        let wanted_texts = match kind {
            Kind::Chat => None,
            Kind::Completion => Some("prompt"),
            Kind::Embeddings => Some("input"),
        };
        if let Some(key) = wanted_texts {
            match object.get(key) {
                Some(Value::String(text)) => prompt_tokens = tokens(text),
                Some(Value::Array(items)) if !items.is_empty() => {
                    let length = members.get(key).map_or(0, str::len);
                    prompt_tokens = u32::try_from(length / 4).unwrap_or(u32::MAX / 4);
                }
                _ => return Err(ApiError::bad(format!("'{key}' is required"))),
            }
        }
        let last = messages.last().filter(|last| json::text(last, "role") == Some("assistant"));
        let prefill = last.map(message_text).unwrap_or_default();
        let streams = json::is(&object, "stream") && kind != Kind::Embeddings;
        let has_several = json::number(&object, "n").is_some_and(|n| n > 1)
            || matches!(object.get("logprobs"), Some(Value::Bool(true) | Value::Number(_)))
            || json::is(&object, "echo")
            || (kind == Kind::Completion && !matches!(object.get("prompt"), Some(Value::String(_))));
        let answer_max =
            ["max_completion_tokens", "max_tokens"].iter().find_map(|key| positive(&object, key));
        let options = json::part(&object, "stream_options");
        let ask = Self {
            kind,
            wanted: Wanted::read(model),
            streams,
            wants_usage: options.is_some_and(|options| json::is(options, "include_usage")),
            only_here: grove.is_some_and(|grove| json::is(grove, "only_here")),
            cell: grove
                .and_then(|grove| json::text(grove, "cell"))
                .filter(|cell| !cell.is_empty())
                .map(str::to_owned),
            prompt_tokens,
            answer_max,
            can_resume: !has_several && kind != Kind::Embeddings,
            is_whole: kind == Kind::Embeddings || (has_several && !streams),
            prefill,
            marks,
            members: {
                for key in ["model", "stream", "stream_options", "grove"] {
                    members.remove(key);
                }
                members
            },
            messages,
        };
        Ok(ask)
    }

    /// A question to one model, to learn what it offers.
    pub fn named(model: &str) -> Self {
        let body = format!("{{\"model\":{},\"messages\":[{{\"role\":\"user\"}}]}}", quoted(model));
        Self::read(Kind::Chat, body.as_bytes()).expect("it is a request")
    }

    /// The request for a server of OpenAI's form. `written` is what the answer consists of so far, in so many tokens.
    pub fn to_openai(&self, model: &str, written: Option<(&str, u32)>) -> String {
        let mut members = self.members.clone();
        members.set("model", &quoted(model));
        if self.kind != Kind::Embeddings && !self.is_whole {
            members.set("stream", "true");
            members.set("stream_options", "{\"include_usage\":true}");
        }
        let Some((written, tokens)) = written else { return members.to_text() };
        if self.kind == Kind::Chat {
            members.set("messages", &self.messages_with(written));
        } else {
            let prompt =
                members.get("prompt").and_then(|text| miniserde::json::from_str::<String>(text).ok());
            members.set("prompt", &quoted(&(prompt.unwrap_or_default() + written)));
        }
        for key in ["max_completion_tokens", "max_tokens"] {
            if let Some(max) = members.get(key).and_then(|text| text.parse::<u32>().ok()) {
                members.set(key, &max.saturating_sub(tokens).max(1).to_string());
            }
        }
        members.to_text()
    }

    /// The messages, as text, with an answer that is to be gone on with.
    fn messages_with(&self, written: &str) -> String {
        let text = self.members.get("messages").unwrap_or("[]").trim_end();
        let whole = if self.prefill.is_empty() || written.starts_with(&self.prefill) {
            written.to_owned()
        } else {
            format!("{}{written}", self.prefill)
        };
        let message = format!("{{\"role\":\"assistant\",\"content\":{}}}", quoted(&whole));
        if self.prefill.is_empty() {
            let open = text.strip_suffix(']').unwrap_or(text).trim_end();
            return format!("{open},{message}]");
        }
        let mut messages: Vec<String> = self.messages.iter().map(miniserde::json::to_string).collect();
        messages.pop();
        messages.push(message);
        format!("[{}]", messages.join(","))
    }

    /// What the continuation of an answer may repeat: all that stands in the last message.
    pub fn echo(&self, written: &str) -> String {
        if self.kind != Kind::Chat {
            return String::new();
        }
        if self.prefill.is_empty() || written.starts_with(&self.prefill) {
            written.to_owned()
        } else {
            format!("{}{written}", self.prefill)
        }
    }

    /// The request for Ollama's `/api/chat`; `context` is the model's, 0 if not known.
    pub fn to_ollama(&self, model: &str, context: u32, written: Option<(&str, u32)>) -> String {
        let mut messages: Vec<String> = self.messages.iter().map(ollama_message).collect();
        if let Some((written, _)) = written {
            if !self.prefill.is_empty() {
                messages.pop();
            }
            let message = format!("{{\"role\":\"assistant\",\"content\":{}}}", quoted(&self.echo(written)));
            messages.push(message);
        }
        let mut asked = Members::default();
        asked.set("model", &quoted(model));
        asked.set("messages", &format!("[{}]", messages.join(",")));
        asked.set("stream", "true");
        let mut options = Members::default();
        for key in [
            "temperature",
            "top_p",
            "top_k",
            "min_p",
            "seed",
            "stop",
            "frequency_penalty",
            "presence_penalty",
        ] {
            if let Some(value) = self.members.get(key).filter(|value| *value != "null") {
                options.set(key, value);
            }
        }
        let left =
            self.answer_max.map(|max| max.saturating_sub(written.map_or(0, |(_, tokens)| tokens)).max(1));
        if let Some(max) = left {
            options.set("num_predict", &max.to_string());
        }
        // Ollama cuts a longer prompt without a word.
        let needed = (self.prompt_tokens.saturating_mul(4) / 3).saturating_add(left.unwrap_or(1024));
        if needed > OLLAMA_CONTEXT {
            let wanted = needed.checked_next_power_of_two().unwrap_or(needed);
            let wanted = if context > 0 { wanted.min(context) } else { wanted };
            options.set("num_ctx", &wanted.to_string());
        }
        asked.set("options", &options.to_text());
        if let Some(tools) = self.members.get("tools") {
            asked.set("tools", tools);
        }
        let format = self.members.get("response_format").and_then(|text| json::read(text).ok());
        if let Some((format, object)) = format {
            match json::text(&object, "type") {
                Some("json_object") => asked.set("format", "\"json\""),
                Some("json_schema") => {
                    let schema = format.get("json_schema").and_then(|text| json::read(text).ok());
                    if let Some(schema) = schema.as_ref().and_then(|(schema, _)| schema.get("schema")) {
                        asked.set("format", schema);
                    }
                }
                _ => {}
            }
        }
        asked.to_text()
    }

    /// The request as one cell sends it to another.
    pub fn to_peer(&self, model: &str, written: Option<(&str, u32)>) -> String {
        let mut sent = Members::default();
        sent.set("kind", &quoted(self.kind.word()));
        let mut body = self.members.clone();
        body.set("model", &quoted(model));
        if self.kind != Kind::Embeddings && !self.is_whole {
            body.set("stream", "true");
        }
        sent.set("body", &body.to_text());
        if let Some((written, tokens)) = written {
            sent.set("written", &quoted(written));
            sent.set("written_tokens", &tokens.to_string());
        }
        sent.to_text()
    }

    /// Reads what another cell sent, and what the answer consists of already.
    pub fn from_peer(text: &str) -> Result<(Self, Option<(String, u32)>), ApiError> {
        let (members, object) = json::read(text).map_err(ApiError::bad)?;
        let kind = json::text(&object, "kind").and_then(Kind::from_word);
        let kind = kind.ok_or_else(|| ApiError::bad("this kind of question is not known here"))?;
        let body = members.get("body").ok_or_else(|| ApiError::bad("there is no question"))?;
        let mut ask = Self::read(kind, body.as_bytes())?;
        // One hop at most, and who answers is decided here.
        (ask.only_here, ask.cell) = (true, None);
        let written = json::text(&object, "written").filter(|_| ask.can_resume).map(|written| {
            let tokens = json::number(&object, "written_tokens").unwrap_or(0);
            (written.to_owned(), u32::try_from(tokens).unwrap_or(u32::MAX))
        });
        Ok((ask, written))
    }
}

fn read_messages(object: &Object) -> Result<Vec<Object>, ApiError> {
    let items = json::items(object, "messages").ok_or_else(|| ApiError::bad("'messages' is required"))?;
    if items.is_empty() {
        return Err(ApiError::bad("'messages' must have at least one message"));
    }
    if items.len() > MESSAGES_MAX {
        return Err(ApiError::bad("'messages' has more than 2048 messages"));
    }
    let message = |item: &Value| match item {
        Value::Object(message) if json::text(message, "role").is_some() => Ok(message.clone()),
        _ => Err(ApiError::bad("each of 'messages' must be an object with a 'role'")),
    };
    items.iter().map(message).collect()
}

fn ollama_message(message: &Object) -> String {
    let mut told = Members::default();
    told.set("role", &quoted(json::text(message, "role").unwrap_or("user")));
    told.set("content", &quoted(&message_text(message)));
    let images: Vec<String> = json::items(message, "content").map_or(Vec::new(), |parts| {
        let image = |part: &Value| {
            let Value::Object(part) = part else { return None };
            let url = json::text(json::part(part, "image_url")?, "url")?;
            Some(quoted(url.split_once(";base64,")?.1))
        };
        parts.iter().filter_map(image).collect()
    });
    if !images.is_empty() {
        told.set("images", &format!("[{}]", images.join(",")));
    }
    let calls: Vec<String> = json::items(message, "tool_calls").map_or(Vec::new(), |calls| {
        let call = |call: &Value| {
            let Value::Object(call) = call else { return None };
            let function = json::part(call, "function")?;
            let name = quoted(json::text(function, "name")?);
            // Ollama wants an object where OpenAI has its text.
            let arguments = json::text(function, "arguments").unwrap_or("{}");
            let arguments = if json::read_object(arguments).is_ok() { arguments } else { "{}" };
            Some(format!("{{\"function\":{{\"name\":{name},\"arguments\":{arguments}}}}}"))
        };
        calls.iter().filter_map(call).collect()
    });
    if !calls.is_empty() {
        told.set("tool_calls", &format!("[{}]", calls.join(",")));
    }
    told.to_text()
}

/// Tokens of a request and its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Of the prompt.
    pub prompt: u32,
    /// Of the answer.
    pub answer: u32,
}

/// How fast a backend says it was. Tokens a second.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Timings {
    /// Reading the prompt.
    pub prefill: Option<f64>,
    /// Writing the answer.
    pub decode: Option<f64>,
}

/// A part of an answer as it came: one chunk of OpenAI's form.
#[derive(Debug, Clone, Default)]
pub struct Part {
    members: Members,
    /// What is said in it.
    pub text: String,
    /// There is more in it than text: calls of tools, thoughts, probabilities.
    pub is_rich: bool,
    /// Why the answer ends here.
    pub finish: Option<String>,
    /// Tokens in all.
    pub usage: Option<Usage>,
    /// Speeds.
    pub timings: Timings,
    /// It is the whole answer, in one piece.
    pub whole: Option<String>,
}

fn usage_of(object: &Object) -> Option<Usage> {
    let usage = json::part(object, "usage")?;
    let tokens = |key| json::number(usage, key).map_or(0, |n| u32::try_from(n).unwrap_or(u32::MAX));
    Some(Usage { prompt: tokens("prompt_tokens"), answer: tokens("completion_tokens") })
}

impl Part {
    /// Reads one event of a server of OpenAI's form; `None` at `[DONE]`.
    pub fn from_openai(kind: Kind, event: &str) -> Result<Option<Self>, Failure> {
        if event.trim() == "[DONE]" {
            return Ok(None);
        }
        let broken = |why: &str| Failure::Broken(format!("it sent an event that is not understood: {why}"));
        let (members, object) = json::read(event).map_err(broken)?;
        if object.contains_key("error") {
            let (message, ..) = error_words(&object);
            return Err(Failure::Broken(format!("it broke off: {}", cut(&message, 500))));
        }
        let mut part = Self { members, usage: usage_of(&object), ..Self::default() };
        if let Some(timings) = json::part(&object, "timings") {
            let rate = |key| json::float(timings, key).filter(|rate| *rate > 0.0);
            part.timings =
                Timings { prefill: rate("prompt_per_second"), decode: rate("predicted_per_second") };
        }
        let choices = match object.get("choices") {
            Some(Value::Array(choices)) => choices,
            None if part.usage.is_some() => return Ok(Some(part)),
            _ => return Err(broken("it has no choices")),
        };
        let is_choice = |choice: &Value| match choice {
            Value::Object(choice) => {
                matches!(choice.get("delta"), None | Some(Value::Object(_) | Value::Null))
                    && matches!(choice.get("finish_reason"), None | Some(Value::String(_) | Value::Null))
            }
            _ => false,
        };
        if !choices.iter().all(is_choice) {
            return Err(broken("a choice makes no sense"));
        }
        part.look_at(kind, choices);
        Ok(Some(part))
    }

    fn look_at(&mut self, kind: Kind, choices: &Array) {
        self.is_rich |= choices.len() > 1;
        let Some(Value::Object(choice)) = choices.iter().next() else { return };
        self.is_rich |= matches!(choice.get("logprobs"), Some(Value::Object(_)));
        self.is_rich |= json::number(choice, "index").is_some_and(|index| index > 0);
        self.finish = json::text(choice, "finish_reason").map(str::to_owned);
        if kind == Kind::Completion {
            self.text = json::text(choice, "text").unwrap_or_default().to_owned();
            return;
        }
        let Some(delta) = json::part(choice, "delta") else { return };
        self.text = json::text(delta, "content").unwrap_or_default().to_owned();
        let is_plain = |(key, value): (&String, &Value)| {
            matches!(key.as_str(), "content" | "role") || matches!(value, Value::Null)
        };
        self.is_rich |= !delta.iter().all(is_plain);
    }

    /// Reads one line of Ollama's `/api/chat`. The part at the end says so by `finish`.
    pub fn from_ollama(line: &str) -> Result<Self, Failure> {
        let broken = |why: &str| Failure::Broken(format!("it sent a line that is not understood: {why}"));
        let (members, object) = json::read(line).map_err(broken)?;
        if let Some(error) = json::text(&object, "error") {
            return Err(Failure::Broken(format!("it broke off: {}", cut(error, 500))));
        }
        let message = json::part(&object, "message");
        if message.is_none() && !json::is(&object, "done") {
            return Err(broken("it has no message"));
        }
        let text = message.and_then(|message| json::text(message, "content")).unwrap_or_default();
        let mut delta = Members::default();
        if !text.is_empty() {
            delta.set("content", &quoted(text));
        }
        let thought =
            message.and_then(|message| json::text(message, "thinking")).filter(|text| !text.is_empty());
        if let Some(thought) = thought {
            delta.set("reasoning_content", &quoted(thought));
        }
        let calls = members
            .get("message")
            .and_then(|text| json::read(text).ok())
            .and_then(|(message, _)| message.get("tool_calls").and_then(ollama_calls));
        let has_calls = calls.is_some();
        if let Some(calls) = calls {
            delta.set("tool_calls", &calls);
        }
        let is_done = json::is(&object, "done");
        let finish = is_done.then(|| match json::text(&object, "done_reason") {
            Some("length") => "length".to_owned(),
            _ if has_calls => "tool_calls".to_owned(),
            _ => "stop".to_owned(),
        });
        let count = |key| json::number(&object, key).map_or(0, |n| u32::try_from(n).unwrap_or(u32::MAX));
        let rate = |tokens: &str, ns: &str| {
            let (tokens, ns) = (json::float(&object, tokens)?, json::float(&object, ns)?);
            (tokens > 1.0 && ns > 0.0).then_some(tokens * 1e9 / ns)
        };
        let mut part = Self {
            text: text.to_owned(),
            is_rich: thought.is_some() || has_calls,
            usage: is_done.then(|| Usage { prompt: count("prompt_eval_count"), answer: count("eval_count") }),
            timings: Timings {
                prefill: rate("prompt_eval_count", "prompt_eval_duration"),
                decode: rate("eval_count", "eval_duration"),
            },
            finish,
            ..Self::default()
        };
        part.set_choices(&delta.to_text());
        Ok(part)
    }

    /// A part that is the whole answer.
    pub fn whole(kind: Kind, text: String) -> Result<Self, Failure> {
        let broken = |why: &str| Failure::Broken(format!("its answer is not understood: {why}"));
        let (members, object) = json::read(&text).map_err(broken)?;
        if object.contains_key("error") {
            let (message, ..) = error_words(&object);
            return Err(Failure::Broken(cut(&message, 500)));
        }
        let key = if kind == Kind::Embeddings { "data" } else { "choices" };
        if json::items(&object, key).is_none_or(|items| items.is_empty()) {
            return Err(broken("there is nothing in it"));
        }
        Ok(Self {
            members,
            usage: usage_of(&object),
            whole: Some(text),
            finish: Some("stop".into()),
            ..Self::default()
        })
    }

    fn set_choices(&mut self, delta: &str) {
        let finish = self.finish.as_ref().map_or("null".to_owned(), |finish| quoted(finish));
        let choices = format!("[{{\"index\":0,\"delta\":{delta},\"finish_reason\":{finish}}}]");
        self.members.set("choices", &choices);
    }

    /// Puts other text in place of what is said in it.
    pub fn set_text(&mut self, kind: Kind, text: String) {
        let content = quoted(&text);
        self.text = text;
        if kind == Kind::Completion {
            let finish = self.finish.as_ref().map_or("null".to_owned(), |finish| quoted(finish));
            let choice = format!("[{{\"index\":0,\"text\":{content},\"finish_reason\":{finish}}}]");
            self.members.set("choices", &choice);
        } else {
            self.set_choices(&format!("{{\"content\":{content}}}"));
        }
    }

    /// Nothing in it is for the client.
    pub fn is_empty(&self) -> bool {
        self.text.is_empty() && !self.is_rich && self.finish.is_none()
    }

    /// The JSON of `choices`; an empty list if there are none.
    pub fn choices(&self) -> &str {
        self.members.get("choices").unwrap_or("[]")
    }

    /// The chunk as one cell sends it to another.
    pub fn to_peer(&self) -> String {
        if let Some(whole) = &self.whole {
            return whole.clone();
        }
        let mut sent = Members::default();
        sent.set("choices", self.choices());
        if let Some(usage) = self.usage {
            sent.set("usage", &usage_text(&usage));
        }
        if let Some(timings) = self.members.get("timings") {
            sent.set("timings", timings);
        }
        sent.to_text()
    }

    /// The chunk for a client, under the answer's own name.
    pub fn to_client(&self, kind: Kind, name: &Name, grove: Option<&str>) -> String {
        let mut sent = self.members.clone();
        let object = if kind == Kind::Chat { "\"chat.completion.chunk\"" } else { "\"text_completion\"" };
        name.put(&mut sent, object);
        // Nor is who answers for whoever answers to say.
        for key in ["usage", "grove"] {
            sent.remove(key);
        }
        if let Some(grove) = grove {
            sent.set("grove", grove);
        }
        sent.to_text()
    }

    /// The whole answer for a client.
    pub fn to_whole(&self, kind: Kind, name: &Name, grove: &str) -> String {
        let mut sent = self.members.clone();
        if kind != Kind::Embeddings {
            let object = if kind == Kind::Chat { "\"chat.completion\"" } else { "\"text_completion\"" };
            name.put(&mut sent, object);
        }
        sent.set("grove", grove);
        sent.to_text()
    }
}

/// `tool_calls` of Ollama's in OpenAI's form.
fn ollama_calls(text: &str) -> Option<String> {
    let Ok(Value::Array(calls)) = miniserde::json::from_str::<Value>(text) else { return None };
    let call = |(at, call): (usize, &Value)| {
        let Value::Object(call) = call else { return None };
        let function = json::part(call, "function")?;
        let name = quoted(json::text(function, "name")?);
        let arguments = match function.get("arguments") {
            Some(Value::String(text)) => quoted(text),
            Some(value) => quoted(&miniserde::json::to_string(value)),
            None => "\"{}\"".to_owned(),
        };
        let id = format!("call_{}", crate::id::hex(&crate::keys::random::<8>()));
        Some(format!(
            "{{\"index\":{at},\"id\":\"{id}\",\"type\":\"function\",\"function\":{{\"name\":{name},\"arguments\":{arguments}}}}}"
        ))
    };
    let calls: Vec<String> = calls.iter().enumerate().filter_map(call).collect();
    (!calls.is_empty()).then(|| format!("[{}]", calls.join(",")))
}

/// `{"prompt_tokens":…}`.
pub fn usage_text(usage: &Usage) -> String {
    let total = usage.prompt.saturating_add(usage.answer);
    format!(
        "{{\"prompt_tokens\":{},\"completion_tokens\":{},\"total_tokens\":{total}}}",
        usage.prompt, usage.answer
    )
}

/// What an answer is called in all its parts.
#[derive(Debug, Clone)]
pub struct Name {
    /// `chatcmpl-…`.
    pub id: String,
    /// Unix time.
    pub created: i64,
    /// The model that answers.
    pub model: String,
}

impl Name {
    fn put(&self, members: &mut Members, object: &str) {
        members.set("id", &quoted(&self.id));
        members.set("object", object);
        members.set("created", &self.created.to_string());
        members.set("model", &quoted(&self.model));
    }

    /// The chunk at the beginning of a stream.
    pub fn role_chunk(&self, grove: &str) -> String {
        let mut sent = Members::default();
        self.put(&mut sent, "\"chat.completion.chunk\"");
        let delta =
            "[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"finish_reason\":null}]";
        sent.set("choices", delta);
        sent.set("grove", grove);
        sent.to_text()
    }

    /// The chunk at the end of a stream that tells the tokens.
    pub fn usage_chunk(&self, kind: Kind, usage: &Usage) -> String {
        let mut sent = Members::default();
        let object = if kind == Kind::Chat { "\"chat.completion.chunk\"" } else { "\"text_completion\"" };
        self.put(&mut sent, object);
        sent.set("choices", "[]");
        sent.set("usage", &usage_text(usage));
        sent.to_text()
    }
}

/// Puts the whole answer together from its parts, for a client that does not want a stream.
#[derive(Debug, Default)]
pub struct Gathered {
    text: String,
    thought: String,
    calls: Vec<(String, String, String)>,
    finish: Option<String>,
    whole: Option<Part>,
    more: Option<String>,
}

impl Gathered {
    /// Bytes that have come.
    pub fn bytes(&self) -> usize {
        self.text.len()
            + self.thought.len()
            + self.calls.iter().map(|(_, name, arguments)| name.len() + arguments.len() + 64).sum::<usize>()
    }

    /// Takes in the next part.
    pub fn add(&mut self, part: Part) {
        if part.whole.is_some() {
            self.whole = Some(part);
            return;
        }
        self.text.push_str(&part.text);
        if let Some(timings) = part.members.get("timings") {
            self.more = Some(timings.to_owned());
        }
        if part.finish.is_some() {
            self.finish.clone_from(&part.finish);
        }
        if !part.is_rich {
            return;
        }
        let Ok(Value::Array(choices)) = miniserde::json::from_str::<Value>(part.choices()) else { return };
        let Some(Value::Object(choice)) = choices.iter().next() else { return };
        let Some(delta) = json::part(choice, "delta") else { return };
        let thought = json::text(delta, "reasoning_content").or(json::text(delta, "reasoning"));
        self.thought.push_str(thought.unwrap_or_default());
        for call in json::items(delta, "tool_calls").into_iter().flatten() {
            let Value::Object(call) = call else { continue };
            let at = json::number(call, "index").unwrap_or(self.calls.len() as u64) as usize;
            if at >= 128 {
                continue;
            }
            if self.calls.len() <= at {
                self.calls.resize(at + 1, Default::default());
            }
            let (id, name, arguments) = &mut self.calls[at];
            if let Some(told) = json::text(call, "id") {
                told.clone_into(id);
            }
            if let Some(function) = json::part(call, "function") {
                name.push_str(json::text(function, "name").unwrap_or_default());
                arguments.push_str(json::text(function, "arguments").unwrap_or_default());
            }
        }
    }

    /// The answer's text.
    pub fn to_text(&self, kind: Kind, name: &Name, usage: &Usage, grove: &str) -> String {
        if let Some(whole) = &self.whole {
            return whole.to_whole(kind, name, grove);
        }
        let finish = quoted(self.finish.as_deref().unwrap_or("stop"));
        let mut answer = Members::default();
        if kind == Kind::Completion {
            name.put(&mut answer, "\"text_completion\"");
            let text = quoted(&self.text);
            let choice =
                format!("[{{\"index\":0,\"text\":{text},\"logprobs\":null,\"finish_reason\":{finish}}}]");
            answer.set("choices", &choice);
        } else {
            name.put(&mut answer, "\"chat.completion\"");
            let mut message = Members::default();
            message.set("role", "\"assistant\"");
            let has_text = !self.text.is_empty() || self.calls.is_empty();
            message.set("content", &if has_text { quoted(&self.text) } else { "null".to_owned() });
            if !self.thought.is_empty() {
                message.set("reasoning_content", &quoted(&self.thought));
            }
            if !self.calls.is_empty() {
                let call = |(id, name, arguments): &(String, String, String)| {
                    format!(
                        "{{\"id\":{},\"type\":\"function\",\"function\":{{\"name\":{},\"arguments\":{}}}}}",
                        quoted(id),
                        quoted(name),
                        quoted(arguments)
                    )
                };
                let calls: Vec<String> = self.calls.iter().map(call).collect();
                message.set("tool_calls", &format!("[{}]", calls.join(",")));
            }
            let message = message.to_text();
            let choice = format!(
                "[{{\"index\":0,\"message\":{message},\"logprobs\":null,\"finish_reason\":{finish}}}]"
            );
            answer.set("choices", &choice);
        }
        answer.set("usage", &usage_text(usage));
        if let Some(timings) = &self.more {
            answer.set("timings", timings);
        }
        answer.set("grove", grove);
        answer.to_text()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chat(body: &str) -> Ask {
        Ask::read(Kind::Chat, body.as_bytes()).unwrap()
    }

    #[test]
    fn what_is_not_ours_passes_as_it_was_sent() {
        let ask = chat(
            r#"{"model":"m","tools":[{"z":1,"a":2}],"stream":true,"temperature":0.50,"grove":{"only_here":true},
               "messages":[{"role":"user","content":"hi"}],"max_tokens":9,"stream_options":{"include_usage":true}}"#,
        );
        assert!(ask.streams && ask.wants_usage && ask.only_here && ask.can_resume);
        assert_eq!(ask.answer_max, Some(9));
        assert_eq!(
            ask.to_openai("x", None),
            r#"{"tools":[{"z":1,"a":2}],"temperature":0.50,"messages":[{"role":"user","content":"hi"}],"max_tokens":9,"model":"x","stream":true,"stream_options":{"include_usage":true}}"#
        );
        let again = ask.to_openai("x", Some((" 1 2", 2)));
        assert!(
            again.contains(r#"[{"role":"user","content":"hi"},{"role":"assistant","content":" 1 2"}]"#),
            "{again}"
        );
        assert!(again.contains(r#""max_tokens":7"#), "{again}");
        assert_eq!(ask.echo(" 1 2"), " 1 2");
    }

    #[test]
    fn a_clients_own_beginning_is_gone_on_with() {
        let ask = chat(r#"{"messages":[{"role":"user","content":"q"},{"role":"assistant","content":"So"}]}"#);
        assert_eq!(ask.prefill, "So");
        for (written, whole) in [("So it is", "So it is"), (" it is", "So it is")] {
            assert_eq!(ask.echo(written), whole);
            let again = ask.to_openai("x", Some((written, 2)));
            assert!(
                again.contains(r#"{"content":"So it is","role":"assistant"}"#)
                    || again.contains(r#"{"role":"assistant","content":"So it is"}"#),
                "{again}"
            );
            assert_eq!(again.matches("assistant").count(), 1);
        }
    }

    #[test]
    fn requests_that_make_no_sense_say_why() {
        let why = |kind, body: &str| Ask::read(kind, body.as_bytes()).unwrap_err();
        assert!(why(Kind::Chat, "{").message.contains("not JSON"));
        assert_eq!(why(Kind::Chat, "{}").message, "'messages' is required");
        assert_eq!(why(Kind::Chat, r#"{"messages":[]}"#).status, 400);
        assert!(why(Kind::Chat, r#"{"messages":[1]}"#).message.contains("role"));
        assert!(why(Kind::Chat, r#"{"model":7,"messages":[{"role":"user"}]}"#).message.contains("model"));
        assert_eq!(why(Kind::Completion, "{}").message, "'prompt' is required");
        assert_eq!(why(Kind::Embeddings, "{}").message, "'input' is required");
        let text = ApiError::bad("x\"y").to_text();
        assert_eq!(
            text,
            r#"{"error":{"message":"x\"y","type":"invalid_request_error","param":null,"code":null}}"#
        );
    }

    #[test]
    fn errors_of_servers_are_told_apart() {
        let context = r#"{"error":{"code":400,"message":"too big","type":"exceed_context_size_error","n_prompt_tokens":900,"n_ctx":512}}"#;
        let Failure::TooLong(error) = Failure::from_answer(400, context) else { panic!() };
        assert!(
            error
                .to_text()
                .contains("\"code\":\"context_length_exceeded\",\"n_prompt_tokens\":900,\"n_ctx\":512")
        );
        assert!(matches!(Failure::from_answer(400, r#"{"error":{"message":"m"}}"#), Failure::Refused(_)));
        assert!(matches!(
            Failure::from_answer(404, r#"{"error":"model 'x' not found"}"#),
            Failure::Lacking(_)
        ));
        assert!(matches!(Failure::from_answer(503, ""), Failure::Busy(_)));
        assert!(matches!(Failure::from_answer(500, "<html>"), Failure::Broken(_)));
        assert!(matches!(Failure::from_answer(401, "{}"), Failure::Broken(_)));
    }

    #[test]
    fn chunks_of_llama_cpp_are_read() {
        let part = |text: &str| Part::from_openai(Kind::Chat, text).unwrap().unwrap();
        let first = part(
            r#"{"choices":[{"index":0,"delta":{"role":"assistant","content":null},"finish_reason":null}]}"#,
        );
        assert!(first.is_empty());
        let text = part(
            r#"{"choices":[{"index":0,"delta":{"content":" 1"},"finish_reason":null}],"id":"z","model":"y"}"#,
        );
        assert!(text.text == " 1" && !text.is_rich);
        let end = part(
            r#"{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}],"timings":{"prompt_per_second":10.5,"predicted_per_second":99}}"#,
        );
        assert_eq!((end.finish.as_deref(), end.timings.decode), (Some("stop"), Some(99.0)));
        let usage =
            part(r#"{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4,"total_tokens":7}}"#);
        assert_eq!(usage.usage, Some(Usage { prompt: 3, answer: 4 }));
        assert!(part(r#"{"choices":[{"delta":{"tool_calls":[{"index":0}]}}]}"#).is_rich);
        assert!(Part::from_openai(Kind::Chat, "[DONE]").unwrap().is_none());
        let odd =
            [r#"{"choices":[7]}"#, r#"{"choices":[{"delta":"x"}]}"#, r#"{"choices":[{"finish_reason":1}]}"#];
        for bad in ["{", "[]", "{}", r#"{"error":{"message":"x"}}"#, r#"{"choices":3}"#].iter().chain(&odd) {
            assert!(matches!(Part::from_openai(Kind::Chat, bad), Err(Failure::Broken(_))), "{bad}");
        }
        let name = Name { id: "chatcmpl-1".into(), created: 7, model: "m".into() };
        let sent = text.to_client(Kind::Chat, &name, None);
        assert!(
            sent.contains(r#""id":"chatcmpl-1""#)
                && sent.contains(r#""model":"m""#)
                && sent.contains("\" 1\""),
            "{sent}"
        );
    }

    #[test]
    fn lines_of_ollama_become_chunks() {
        let line = r#"{"model":"m","message":{"role":"assistant","content":" a"},"done":false}"#;
        let part = Part::from_ollama(line).unwrap();
        assert_eq!(part.choices(), r#"[{"index":0,"delta":{"content":" a"},"finish_reason":null}]"#);
        let end = r#"{"done":true,"done_reason":"length","eval_count":50,"eval_duration":1000000000,"prompt_eval_count":9}"#;
        let part = Part::from_ollama(end).unwrap();
        assert_eq!((part.finish.as_deref(), part.timings.decode), (Some("length"), Some(50.0)));
        assert_eq!(part.usage, Some(Usage { prompt: 9, answer: 50 }));
        assert!(Part::from_ollama(r#"{"error":"gone"}"#).is_err());
        assert!(Part::from_ollama("{}").is_err());
        let call = r#"{"message":{"content":"","tool_calls":[{"function":{"name":"f","arguments":{"b":1}}}]},"done":true}"#;
        let part = Part::from_ollama(call).unwrap();
        assert!(part.is_rich && part.finish.as_deref() == Some("tool_calls"));
        assert!(part.choices().contains(r#""arguments":"{\"b\":1}""#), "{}", part.choices());
    }

    #[test]
    fn ollama_is_asked_in_its_own_form_and_for_enough_context() {
        let ask = chat(
            r#"{"messages":[{"role":"user","content":[{"type":"text","text":"look"},{"type":"image_url","image_url":{"url":"data:image/png;base64,AAA"}}]}],
               "temperature":0,"max_tokens":5,"response_format":{"type":"json_schema","json_schema":{"schema":{"z":1,"a":2}}}}"#,
        );
        let asked = ask.to_ollama("m", 0, Some(("x", 2)));
        assert!(asked.contains(r#""images":["AAA"]"#) && asked.contains(r#""num_predict":3"#), "{asked}");
        assert!(asked.contains(r#""format":{"z":1,"a":2}"#) && !asked.contains("num_ctx"), "{asked}");
        let long = format!(r#"{{"messages":[{{"role":"user","content":"{}"}}]}}"#, "word ".repeat(9000));
        assert!(chat(&long).to_ollama("m", 0, None).contains("\"num_ctx\":16384"));
        assert!(chat(&long).to_ollama("m", 8192, None).contains("\"num_ctx\":8192"));
        let endless = r#"{"messages":[{"role":"user","content":"x"}],"max_tokens":4294967295}"#;
        assert!(chat(endless).to_ollama("m", 8192, None).contains("\"num_ctx\":8192"));
    }

    #[test]
    fn a_whole_answer_is_put_together_from_its_parts() {
        let mut gathered = Gathered::default();
        for delta in [
            r#"{"reasoning_content":"hm"}"#,
            r#"{"content":"a"}"#,
            r#"{"content":"b","tool_calls":[{"index":0,"id":"c1","function":{"name":"f","arguments":"{\"x"}}]}"#,
            r#"{"tool_calls":[{"index":0,"function":{"arguments":"\":1}"}}]}"#,
        ] {
            let event = format!("{{\"choices\":[{{\"index\":0,\"delta\":{delta},\"finish_reason\":null}}]}}");
            gathered.add(Part::from_openai(Kind::Chat, &event).unwrap().unwrap());
        }
        let name = Name { id: "i".into(), created: 1, model: "m".into() };
        let text = gathered.to_text(Kind::Chat, &name, &Usage { prompt: 1, answer: 2 }, "{}");
        assert!(text.contains(r#""content":"ab","reasoning_content":"hm""#), "{text}");
        assert!(text.contains(r#""function":{"name":"f","arguments":"{\"x\":1}"}"#), "{text}");
        assert!(json::read(&text).is_ok());
    }

    #[test]
    fn a_question_between_cells_reads_back_and_goes_no_further() {
        let ask = chat(
            r#"{"model":"m","messages":[{"role":"user","content":"q"}],"grove":{"cell":"pc"},"seed":1}"#,
        );
        let (back, written) = Ask::from_peer(&ask.to_peer("m", Some((" 1", 1)))).unwrap();
        assert_eq!(written, Some((" 1".to_owned(), 1)));
        assert!(back.only_here && back.cell.is_none() && back.streams);
        assert_eq!(back.marks, ask.marks);
        assert_eq!(back.to_openai("m", None), ask.to_openai("m", None));
        assert!(Ask::from_peer("{}").is_err() && Ask::from_peer(r#"{"kind":"x","body":{}}"#).is_err());
    }

    #[test]
    fn names_and_classes_of_models() {
        assert!(same_model("llama3", "llama3:latest") && !same_model("llama3", "llama3:8b"));
        assert!(Wanted::read("").fits("x", None) && Wanted::read("best").fits("x", Some(70.0)));
        assert!(Wanted::read("small").fits("x", Some(0.5)) && !Wanted::read("small").fits("x", Some(8.0)));
        assert!(Wanted::read("medium").fits("x", Some(8.0)) && Wanted::read("large").fits("x", Some(70.0)));
        assert!(!Wanted::read("y").fits("x", None));
    }
}

//! The API about models in OpenAI's form, below `/v1`.

use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use smol::Timer;
use smol::channel::Sender;

use super::Cell;
use super::json::{Obj, list, text};
use crate::ai::answer::{Answer, Answerer, Event};
use crate::ai::form::{ApiError, Ask, Gathered, Kind, Usage};
use crate::ai::service::Service;
use crate::dashboard::api::{ApiRequest, ApiResponse, Body, Method, percent_encode};
use crate::pool;
use crate::wire::within;

/// Pieces of a stream that wait for the client; each has at most 256 KiB.
const PIECES_MAX: usize = 16;
/// Headers go out after so long even if nobody has answered yet.
const HEADERS_AFTER: Duration = Duration::from_secs(10);
/// A word of no meaning each so often, so that nobody on the way takes the stream for dead.
const WORD_EVERY: Duration = Duration::from_secs(15);
/// An answer that is gathered, in bytes.
const GATHERED_MAX: usize = 8 << 20;
/// The header that says which cell answered.
const CELL_HEADER: &str = "x-grove-cell";

/// Errors of `/v1` are in OpenAI's form.
fn openai_error(why: &ApiError) -> ApiResponse {
    let response = ApiResponse::json_text(why.status, why.to_text());
    if why.status == 503 { response.with_header("Retry-After", "2") } else { response }
}

/// A name as a header can have it.
fn header_text(name: &str) -> String {
    let is_plain = |c: char| c.is_ascii_graphic() || c == ' ';
    if name.chars().all(is_plain) { name.to_owned() } else { percent_encode(name.as_bytes()) }
}

fn grove_json(who: &Answerer) -> String {
    Obj::new().str("cell", &who.cell).str("backend", &who.backend).end()
}

fn event(data: &str) -> io::Result<Vec<u8>> {
    Ok(format!("data: {data}\n\n").into_bytes())
}

/// What follows of the answer; `Err`: the client is gone.
async fn next_or_gone(
    answer: &mut Answer,
    client: &Sender<io::Result<Vec<u8>>>,
) -> Result<Result<Event, ApiError>, ()> {
    let mut next = pin!(answer.next());
    loop {
        let gone = async {
            client.closed().await;
            Some(Err(()))
        };
        let quiet = async {
            Timer::after(WORD_EVERY).await;
            None
        };
        let heard = async { Some(Ok(next.as_mut().await)) };
        match smol::future::or(heard, smol::future::or(gone, quiet)).await {
            Some(outcome) => return outcome,
            None => client.send(Ok(b": still at work\n\n".to_vec())).await.map_err(drop)?,
        }
    }
}

/// Writes an answer as it comes; tells once who answers, or why nobody does.
async fn stream_out(
    mut answer: Answer,
    told: Sender<Result<Answerer, ApiError>>,
    client: Sender<io::Result<Vec<u8>>>,
) {
    let (kind, wants_usage) = (answer.ask().kind, answer.ask().wants_usage);
    let mut is_first = true;
    loop {
        let Ok(outcome) = next_or_gone(&mut answer, &client).await else { return };
        let pieces: Vec<String> = match outcome {
            Ok(Event::Part(part)) => {
                let mut pieces = Vec::new();
                let mut grove = None;
                if std::mem::take(&mut is_first) {
                    let _ = told.try_send(Ok(answer.answerer().clone()));
                    grove = Some(grove_json(answer.answerer()));
                    if kind == Kind::Chat {
                        pieces.push(answer.name().role_chunk(grove.as_deref().unwrap_or("{}")));
                        grove = None;
                    }
                }
                pieces.push(part.to_client(kind, answer.name(), grove.as_deref()));
                pieces
            }
            Ok(Event::End) => {
                let mut pieces = Vec::new();
                if wants_usage {
                    pieces.push(answer.name().usage_chunk(kind, &answer.usage()));
                }
                pieces.push("[DONE]".to_owned());
                pieces
            }
            Err(why) => {
                // Before the first part the answer is an error of its own, if its headers have not gone yet.
                if is_first && told.try_send(Err(why.clone())).is_ok() && !told.is_closed() {
                    return;
                }
                let _ = client.send(event(why.to_text().as_str())).await;
                return;
            }
        };
        let is_over = pieces.last().is_some_and(|piece| piece == "[DONE]");
        let mut bytes = Vec::new();
        for piece in pieces {
            bytes.extend_from_slice(b"data: ");
            bytes.extend_from_slice(piece.as_bytes());
            bytes.extend_from_slice(b"\n\n");
        }
        if client.send(Ok(bytes)).await.is_err() || is_over {
            return;
        }
    }
}

impl Cell {
    /// Answers `/v1…`, in OpenAI's form; `rest` is what follows.
    pub(super) async fn answer_openai(self: &Rc<Self>, request: &ApiRequest, rest: &[&str]) -> ApiResponse {
        let Some(service) = self.ai() else {
            let why = "ai.json is damaged, or the cell does not run; see its log";
            return openai_error(&ApiError::unavailable(why));
        };
        let kind = match (request.method, rest) {
            (Method::Get, ["models"]) => return models(&service),
            (Method::Get, ["models", id]) => return model(&service, id),
            // Names with a slash in them need not be escaped.
            (_, ["models", id @ ..]) if request.method == Method::Get => {
                return model(&service, &id.join("/"));
            }
            (Method::Post, ["chat", "completions"]) => Kind::Chat,
            (Method::Post, ["completions"]) => Kind::Completion,
            (Method::Post, ["embeddings"]) => Kind::Embeddings,
            _ => {
                let why = "there is nothing at this path; there are /v1/models, /v1/chat/completions, \
                           /v1/completions and /v1/embeddings";
                return openai_error(&ApiError::new(404, "invalid_request_error", "not_found", why));
            }
        };
        let ask = match Ask::read(kind, &request.body) {
            Ok(ask) => ask,
            Err(why) => return openai_error(&why),
        };
        let streams = ask.streams;
        let answer = service.ask(ask).await;
        if streams { self.streamed(answer).await } else { gathered(answer).await }
    }

    async fn streamed(self: &Rc<Self>, answer: Answer) -> ApiResponse {
        let (tell, told) = smol::channel::bounded(1);
        let (client, pieces) = smol::channel::bounded(PIECES_MAX);
        // Dropped with this, if the client goes away before there is anything.
        let work = pool::spawn(&self.executor, stream_out(answer, tell, client));
        let who = match within(HEADERS_AFTER, told.recv()).await {
            Some(Ok(Err(why))) => return openai_error(&why),
            Some(Ok(Ok(who))) => Some(who),
            Some(Err(_)) => return openai_error(&ApiError::unavailable("the cell is stopping")),
            None => None,
        };
        drop(told);
        work.detach();
        let response = ApiResponse {
            status: 200,
            content_type: "text/event-stream".into(),
            headers: vec![
                ("X-Accel-Buffering".into(), "no".into()),
                ("Cache-Control".into(), "no-cache".into()),
            ],
            body: Body::Stream { length: None, receiver: pieces },
        };
        match who {
            Some(who) => response.with_header(CELL_HEADER, &header_text(&who.cell)),
            None => response,
        }
    }
}

async fn gathered(mut answer: Answer) -> ApiResponse {
    let kind = answer.ask().kind;
    let mut parts = Gathered::default();
    loop {
        match answer.next().await {
            Ok(Event::Part(part)) => parts.add(part),
            Ok(Event::End) => break,
            Err(why) => return openai_error(&why),
        }
        if parts.bytes() > GATHERED_MAX {
            let why = "the answer is longer than can be given in one piece; ask for a stream";
            return openai_error(&ApiError::new(502, "server_error", "too_long", why));
        }
    }
    let who = answer.answerer().clone();
    let usage: Usage = answer.usage();
    let text = parts.to_text(kind, answer.name(), &usage, &grove_json(&who));
    ApiResponse::json_text(200, text).with_header(CELL_HEADER, &header_text(&who.cell))
}

fn model_json(known: &crate::ai::service::Known) -> String {
    let context = if known.context > 0 { known.context.to_string() } else { "null".into() };
    let grove =
        Obj::new().raw("on", list(known.cells.iter().map(|cell| text(cell)))).raw("context", context).end();
    Obj::new()
        .str("id", &known.name)
        .str("object", "model")
        .num("created", 0)
        .str("owned_by", &known.cells.join(", "))
        .raw("grove", grove)
        .end()
}

fn models(service: &Service) -> ApiResponse {
    let mut known: Vec<String> = service.models().iter().map(model_json).collect();
    if !known.is_empty() {
        let best = Obj::new()
            .str("id", "auto")
            .str("object", "model")
            .num("created", 0)
            .str("owned_by", "grove")
            .end();
        known.insert(0, best);
    }
    ApiResponse::json_text(200, Obj::new().str("object", "list").raw("data", list(known)).end())
}

fn model(service: &Service, id: &str) -> ApiResponse {
    match service.models().iter().find(|known| crate::ai::form::same_model(&known.name, id)) {
        Some(known) => ApiResponse::json_text(200, model_json(known)),
        None => openai_error(&ApiError::new(
            404,
            "invalid_request_error",
            "model_not_found",
            format!("no model called {} is there now", crate::ai::form::cut(id, 128)),
        )),
    }
}

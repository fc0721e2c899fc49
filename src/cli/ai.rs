//! Questions to language models, and what the user says of them: `ai`.

use std::io::Read;
use std::time::Instant;

use argh::FromArgs;
use miniserde::json::{Number, Value};

use super::ask::{Answer, CliError, Holder, Method, Remote, holder, need_cell, object, object_of, texts};
use super::client::{Client, Response};
use super::{Context, Word, show, terminal};
use crate::ai::json::{self, quoted};
use crate::ai::lines::{Cutter, Form};

/// What is piped in, in bytes.
const PIPED_MAX: u64 = 512 * 1024;
/// What is read of an answer at once.
const PIECE_BYTES: usize = 8 * 1024;

/// ask a language model
#[derive(FromArgs, Debug, PartialEq)]
#[argh(
    subcommand,
    name = "ai",
    help_triggers("-h", "--help"),
    note = "With a question: its answer, and that is all; what is piped in goes behind the question. Without one, at a terminal: a conversation, until Ctrl-D. The best model that is there answers, unless --model or --cell name one."
)]
pub struct Ai {
    /// the question
    #[argh(positional, arg_name = "question")]
    words: Vec<Word>,
    /// the model: a name, or auto, small, medium, large
    #[argh(option, arg_name = "model")]
    model: Option<Word>,
    /// the cell that is to answer: a friend's name, or this one's
    #[argh(option, arg_name = "cell")]
    cell: Option<Word>,
    /// this cell only: the question goes to no friend
    #[argh(switch)]
    here: bool,
    /// list model servers, models and what is offered to friends
    #[argh(switch)]
    backends: bool,
    /// use the model server at this address (llama.cpp, Ollama or one like OpenAI's)
    #[argh(option, arg_name = "url")]
    add_backend: Option<Word>,
    /// the key that it wants
    #[argh(option, arg_name = "key")]
    key: Option<Word>,
    /// use a model server no more
    #[argh(option, arg_name = "url")]
    remove_backend: Option<Word>,
    /// offer this cell's models to a friend
    #[argh(option, arg_name = "friend")]
    offer: Option<Word>,
    /// with --offer: end it
    #[argh(switch)]
    off: bool,
    /// with --offer: only these models, with commas between them
    #[argh(option, arg_name = "models")]
    models: Option<Word>,
    /// with --offer: tokens a day, 0 for no limit (default 100000)
    #[argh(option, arg_name = "number")]
    tokens: Option<u64>,
    /// with --offer: hours of the day, for example 22-6 (default the whole day)
    #[argh(option, arg_name = "from-to")]
    hours: Option<Word>,
    /// with --offer: answers at once, 1 to 8 (default 1)
    #[argh(option, arg_name = "number")]
    concurrent: Option<u64>,
    /// make a key for programs that speak OpenAI's API, under this name
    #[argh(option, arg_name = "name")]
    new_key: Option<Word>,
    /// list keys
    #[argh(switch)]
    keys: bool,
    /// end the key of this id
    #[argh(option, arg_name = "id")]
    revoke_key: Option<Word>,
    /// print the JSON of the API
    #[argh(switch)]
    json: bool,
}

fn string(text: &str) -> Value {
    Value::String(text.to_owned())
}

fn number(number: u64) -> Value {
    Value::Number(Number::U64(number))
}

fn optional(word: Option<&Word>) -> Result<Option<&str>, CliError> {
    word.map(Word::text).transpose()
}

impl Ai {
    pub(super) fn run(self, context: &mut Context<'_>) -> Result<(), CliError> {
        let wishes = [
            self.backends,
            self.add_backend.is_some(),
            self.remove_backend.is_some(),
            self.offer.is_some(),
            self.new_key.is_some(),
            self.keys,
            self.revoke_key.is_some(),
            !self.words.is_empty(),
        ];
        if wishes.iter().filter(|wish| **wish).count() > 1 {
            return Err(CliError::Usage(
                "one thing at a time: a question, or one of the options that change or list".into(),
            ));
        }
        let with_offer = self.off
            || self.models.is_some()
            || self.tokens.is_some()
            || self.hours.is_some()
            || self.concurrent.is_some();
        if with_offer && self.offer.is_none() {
            return Err(CliError::Usage(
                "--off, --models, --tokens, --hours and --concurrent belong to --offer".into(),
            ));
        }
        if self.key.is_some() && self.add_backend.is_none() {
            return Err(CliError::Usage("--key belongs to --add-backend".into()));
        }
        if self.backends || self.keys {
            return list(context, self.keys, self.json);
        }
        if let Some(url) = optional(self.add_backend.as_ref())? {
            return add(context, url, optional(self.key.as_ref())?, self.json);
        }
        if let Some(url) = optional(self.remove_backend.as_ref())? {
            let body = object([("remove", string(url))]);
            let answer = context.running_cell()?.ask(Method::Post, "/ai/backends", &[], Some(body))?;
            return self.said(context, &answer, "It is not used any more.");
        }
        if let Some(name) = optional(self.new_key.as_ref())? {
            let body = object([("name", string(name))]);
            let answer = context.running_cell()?.ask(Method::Post, "/ai/keys", &[], Some(body))?;
            if self.json {
                writeln!(context.out, "{}", answer.text)?;
            } else {
                writeln!(context.out, "{}", answer.fields.text("key"))?;
                writeln!(context.err, "This is the only time it is shown. It is good below /v1 only.")?;
            }
            return Ok(());
        }
        if let Some(id) = optional(self.revoke_key.as_ref())? {
            let body = object([("id", string(id))]);
            let answer = context.running_cell()?.ask(Method::Post, "/ai/keys/revoke", &[], Some(body))?;
            return self.said(context, &answer, "The key is good for nothing any more.");
        }
        if let Some(friend) = optional(self.offer.as_ref())? {
            return self.offer_to(context, friend);
        }
        self.ask(context)
    }

    fn offer_to(&self, context: &mut Context<'_>, friend: &str) -> Result<(), CliError> {
        let mut fields = vec![("peer", string(friend)), ("on", Value::Bool(!self.off))];
        if let Some(models) = optional(self.models.as_ref())? {
            let models = models.split(',').map(str::trim).filter(|model| !model.is_empty());
            fields.push(("models", texts(models.map(str::to_owned))));
        }
        if let Some(hours) = optional(self.hours.as_ref())? {
            let wrong = || CliError::Usage("--hours is of the form 22-6".to_owned());
            let (from, to) = hours.split_once('-').ok_or_else(wrong)?;
            let hour = |text: &str| text.trim().parse::<u64>().map_err(|_| wrong());
            fields.extend([("from_hour", number(hour(from)?)), ("to_hour", number(hour(to)?))]);
        }
        fields.extend(self.tokens.map(|tokens| ("tokens_per_day", number(tokens))));
        fields.extend(self.concurrent.map(|count| ("concurrent", number(count))));
        let answer = context.running_cell()?.ask(Method::Post, "/ai/offer", &[], Some(object_of(fields)))?;
        let friend = show::text(friend);
        let words = match self.off {
            true => format!("{friend} may use no models of this cell any more."),
            false => format!("{friend} may use models of this cell; your own questions go first."),
        };
        self.said(context, &answer, &words)
    }

    /// Says what was done, in words or as the API says it.
    fn said(&self, context: &mut Context<'_>, answer: &Answer, words: &str) -> Result<(), CliError> {
        writeln!(context.out, "{}", if self.json { &answer.text } else { words })?;
        Ok(())
    }

    fn ask(&self, context: &mut Context<'_>) -> Result<(), CliError> {
        let words: Vec<&str> = self.words.iter().map(Word::text).collect::<Result<_, _>>()?;
        let mut question = words.join(" ");
        let asking = Asking {
            model: optional(self.model.as_ref())?.unwrap_or("auto").to_owned(),
            cell: optional(self.cell.as_ref())?.map(str::to_owned),
            here: self.here,
            json: self.json,
        };
        need_cell(&context.paths)?;
        let client = match holder(&context.paths.dir)? {
            Holder::Cell(port) => Remote::open(&context.paths.dir, port)?.client(),
            Holder::Nobody => {
                return Err(CliError::new("the cell is not running", "start it with `grove run`"));
            }
        };
        if !context.terminals.input {
            let mut piped = String::new();
            let read = (&mut *context.input).take(PIPED_MAX + 1).read_to_string(&mut piped);
            read.map_err(|_| CliError::new("what is piped in is not UTF-8", ""))?;
            if piped.len() as u64 > PIPED_MAX {
                return Err(CliError::new(
                    "what is piped in is longer than 512 KiB",
                    "ask about a part of it",
                ));
            }
            match (question.is_empty(), piped.trim().is_empty()) {
                (true, true) => return Err(CliError::Usage("say what to ask".into())),
                (true, false) => question = piped,
                (false, false) => question = format!("{question}\n\n{piped}"),
                (false, true) => {}
            }
        }
        if !question.is_empty() {
            asking.one(context, &client, &[message("user", &question)])?;
            return Ok(());
        }
        converse(context, &client, &asking)
    }
}

fn message(role: &str, text: &str) -> String {
    format!("{{\"role\":{},\"content\":{}}}", quoted(role), quoted(text))
}

/// Line by line, until the end of the input.
fn converse(context: &mut Context<'_>, client: &Client, asking: &Asking) -> Result<(), CliError> {
    writeln!(context.err, "Ctrl-D ends the conversation; nothing of it is kept.")?;
    let mut messages = Vec::new();
    loop {
        write!(context.err, "> ")?;
        context.err.flush()?;
        let mut line = String::new();
        if context.input.read_line(&mut line)? == 0 {
            writeln!(context.err)?;
            return Ok(());
        }
        if line.trim().is_empty() {
            continue;
        }
        messages.push(message("user", line.trim_end()));
        match asking.one(context, client, &messages) {
            Ok(answer) => messages.push(message("assistant", &answer)),
            Err(CliError::Failed { message, hint }) => {
                messages.pop();
                writeln!(
                    context.err,
                    "{}{}{}",
                    show::text(&message),
                    if hint.is_empty() { "" } else { "; " },
                    show::text(&hint)
                )?;
            }
            Err(other) => return Err(other),
        }
    }
}

struct Asking {
    model: String,
    cell: Option<String>,
    here: bool,
    json: bool,
}

impl Asking {
    /// Asks and prints the answer as it comes; gives it.
    fn one(
        &self,
        context: &mut Context<'_>,
        client: &Client,
        messages: &[String],
    ) -> Result<String, CliError> {
        let cell = self.cell.as_ref().map_or(String::new(), |cell| format!(",\"cell\":{}", quoted(cell)));
        let body = format!(
            "{{\"model\":{},\"messages\":[{}],\"stream\":{},\"stream_options\":{{\"include_usage\":true}},\"grove\":{{\"only_here\":{}{cell}}}}}",
            quoted(&self.model),
            messages.join(","),
            !self.json,
            self.here
        );
        let response = client.request("POST", "/v1/chat/completions", Some(body.as_bytes()))?;
        if response.status != 200 {
            return Err(refusal(response));
        }
        if self.json {
            let text = response.text()?;
            writeln!(context.out, "{text}")?;
            return Ok(String::new());
        }
        print(context, response)
    }
}

/// Why a question was not answered, from an error in OpenAI's form or the cell's own.
fn refusal(response: Response) -> CliError {
    let status = response.status;
    let text =
        response.bytes(64 * 1024).ok().and_then(|bytes| String::from_utf8(bytes).ok()).unwrap_or_default();
    let object = json::read_object(&text).unwrap_or_default();
    let error = json::part(&object, "error");
    let message = error.and_then(|error| json::text(error, "message")).unwrap_or("the cell gave no reason");
    let hint = match error.and_then(|error| json::text(error, "hint")).unwrap_or_default() {
        // OpenAI's form has no place for what to do.
        "" if [404, 503].contains(&status) => {
            "`grove ai --backends` lists what is there; `grove ai --add-backend URL` names a model server"
        }
        hint => hint,
    };
    CliError::new(format!("no answer ({status}): {message}"), hint)
}

/// Prints a stream as it comes; gives its text.
fn print(context: &mut Context<'_>, response: Response) -> Result<String, CliError> {
    let mut body = response.body;
    let mut cutter = Cutter::new(Form::Events);
    let mut piece = vec![0; PIECE_BYTES];
    let (mut answer, mut who) = (String::new(), None);
    let (mut first, mut tokens) = (None, 0u64);
    let broke_off = |why: &str| CliError::new(format!("the answer broke off: {why}"), "ask again");
    loop {
        let read = body.read(&mut piece).map_err(|why| broke_off(&why.to_string()))?;
        if read == 0 {
            return Err(broke_off("it has no end"));
        }
        let mut bytes = &piece[..read];
        while !bytes.is_empty() {
            let Some(event) = cutter.next(&mut bytes).map_err(|why| broke_off(why.0))? else { continue };
            if event == "[DONE]" {
                if !answer.ends_with('\n') {
                    writeln!(context.out)?;
                }
                context.out.flush()?;
                if context.terminals.err {
                    tell_who(context, who.as_deref(), first, tokens)?;
                }
                return Ok(answer);
            }
            let object = json::read_object(&event).map_err(broke_off)?;
            if let Some(error) = json::part(&object, "error") {
                context.out.flush()?;
                return Err(CliError::new(
                    json::text(error, "message").unwrap_or("the answer broke off").to_owned(),
                    "",
                ));
            }
            if let Some(grove) = json::part(&object, "grove") {
                let word = |key| json::text(grove, key).unwrap_or_default().to_owned();
                let (cell, backend) = (word("cell"), word("backend"));
                who = Some(if cell == backend { cell } else { format!("{cell}, {backend}") });
            }
            if let Some(told) =
                json::part(&object, "usage").and_then(|usage| json::number(usage, "completion_tokens"))
            {
                tokens = told;
            }
            let Some(Value::Object(choice)) =
                json::items(&object, "choices").and_then(|items| items.iter().next())
            else {
                continue;
            };
            let text = json::part(choice, "delta")
                .and_then(|delta| json::text(delta, "content"))
                .unwrap_or_default();
            if !text.is_empty() {
                first.get_or_insert_with(Instant::now);
                answer.push_str(text);
                write!(context.out, "{}", show::text(text))?;
            }
        }
        context.out.flush()?;
    }
}

fn tell_who(
    context: &mut Context<'_>,
    who: Option<&str>,
    first: Option<Instant>,
    tokens: u64,
) -> Result<(), CliError> {
    let seconds = first.map_or(0.0, |first| first.elapsed().as_secs_f64());
    let speed = if seconds > 0.2 && tokens > 1 {
        format!(", {:.0} tokens/s", tokens as f64 / seconds)
    } else {
        String::new()
    };
    let columns = terminal::columns().max(20);
    let line: String = format!("— {}{speed}", show::text(who.unwrap_or("?")).replace('\n', " "))
        .chars()
        .take(columns)
        .collect();
    writeln!(context.err, "{line}")?;
    Ok(())
}

fn add(context: &mut Context<'_>, url: &str, key: Option<&str>, json: bool) -> Result<(), CliError> {
    let mut cell = context.running_cell()?;
    let fields = || {
        let key = key.map_or(String::new(), |key| format!(",\"key\":{}", quoted(key)));
        format!("{{\"url\":{}{key}}}", quoted(url))
    };
    let tested = cell.ask(Method::Post, "/ai/test", &[], Some(fields()))?;
    cell.ask(Method::Post, "/ai/backends", &[], Some(format!("{{\"add\":{}}}", fields())))?;
    if json {
        writeln!(context.out, "{}", tested.text)?;
    } else if tested.fields.is("ok") {
        let models = tested.fields.texts("models").join(", ");
        let kind = tested.fields.text("kind");
        writeln!(context.out, "It is used from now on: {} with {}.", show::text(kind), show::text(&models))?;
    } else {
        let why = show::text(tested.fields.text("error"));
        writeln!(context.out, "It is used as soon as it answers; now: {why}.")?;
    }
    Ok(())
}

fn list(context: &mut Context<'_>, keys: bool, json: bool) -> Result<(), CliError> {
    let mut answer = context.running_cell()?.ask(Method::Get, "/ai", &[], None)?;
    if json {
        writeln!(context.out, "{}", answer.text)?;
        return Ok(());
    }
    let row =
        |words: &[&str]| words.iter().map(|word| show::text(word).replace('\n', " ")).collect::<Vec<_>>();
    if keys {
        let mut rows = vec![row(&["KEY", "NAME", "MADE", "USED"])];
        for key in answer.fields.list("keys") {
            let time = |field| key.signed(field).map_or("-".to_owned(), show::time);
            rows.push(row(&[key.text("id"), key.text("name"), &time("created_unix"), &time("used_unix")]));
        }
        context.out.write_all(show::table(&rows, &[]).as_bytes())?;
        return Ok(());
    }
    let backends = answer.fields.list("backends");
    if backends.is_empty() {
        writeln!(
            context.out,
            "No model server is known. `grove ai --add-backend http://HOST:PORT` names one; or put a .gguf file into"
        )?;
        writeln!(
            context.out,
            "{} and install llama.cpp's llama-server.",
            show::text(answer.fields.text("models_folder"))
        )?;
    } else {
        let mut rows = vec![row(&["BACKEND", "KIND", "STATE", "BUSY", "TOKENS/S", "MODELS"])];
        for backend in &backends {
            let speed = backend.signed("decode_tps").map_or("-".to_owned(), |speed| speed.to_string());
            let busy = format!("{}/{}", backend.number("busy"), backend.number("slots"));
            let models = backend.texts("models").join(", ");
            let state = match backend.text("last_error") {
                "" => backend.text("state").to_owned(),
                why => format!("{} ({why})", backend.text("state")),
            };
            rows.push(row(&[backend.text("name"), backend.text("kind"), &state, &busy, &speed, &models]));
        }
        context.out.write_all(show::table(&rows, &[3, 4]).as_bytes())?;
    }
    let offers = answer.fields.list("offers");
    if !offers.is_empty() {
        writeln!(context.out)?;
        let mut rows = vec![row(&["OFFERED TO", "", "TOKENS TODAY", "HOURS", "AT ONCE", "MODELS"])];
        for offer in &offers {
            let limit = match offer.number("tokens_per_day") {
                0 => "no limit".to_owned(),
                limit => show::count(limit),
            };
            let (from, to) = (offer.number("from_hour"), offer.number("to_hour"));
            let hours = if from == to { "all".to_owned() } else { format!("{from}-{to}") };
            let models = offer.texts("models").join(", ");
            rows.push(row(&[
                offer.text("name"),
                if offer.is("on") { "on" } else { "off" },
                &format!("{} of {limit}", show::count(offer.number("used_today"))),
                &hours,
                &offer.number("concurrent").to_string(),
                if models.is_empty() { "all" } else { &models },
            ]));
        }
        context.out.write_all(show::table(&rows, &[]).as_bytes())?;
    }
    Ok(())
}

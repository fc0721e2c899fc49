//! Talking with friends: `chat`.

use std::collections::BTreeSet;
use std::io::{BufReader, Read, Write};
use std::path::PathBuf;
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::thread;
use std::time::{Duration, Instant};

use argh::FromArgs;
use miniserde::json::{Number, Value};

use super::ask::{
    Answer, Cell, CliError, Fields, Holder, Method, Remote, holder, number_or_null, object, object_of,
    texts as list_of_texts,
};
use super::files::wire_name;
use super::job::{Line, Progress};
use super::{Context, Word, show, terminal};
use crate::chat::TEXT_BYTES_MAX;
use crate::files::unix::from_wire;

/// Messages that a conversation begins with.
const HISTORY: u64 = 20;
/// Unread messages that a conversation begins with, at most.
const UNREAD_SHOWN_MAX: u64 = 500;
/// Messages asked for at once.
const PAGE: u64 = 100;
/// Narrower terminals are taken for ones of so many columns.
const COLUMNS_MIN: usize = 24;
/// What stands before the further lines of a message.
const MARGIN: &str = "    | ";
/// Pages of a search without a match after which it says where it is.
const SEARCH_PAGES_MAX: usize = 100_000;
/// How long one request waits for news. ms.
const WAIT_MS: u64 = 20_000;
/// A cell that does not answer is asked again after this.
const AGAIN: Duration = Duration::from_secs(1);
/// What comes from the terminal and from the cell waits here.
const EVENTS_MAX: usize = 16;

/// talk with a friend
#[derive(FromArgs, Debug, PartialEq)]
#[argh(
    subcommand,
    name = "chat",
    help_triggers("-h", "--help"),
    note = "Without a friend: all conversations. With a friend alone: a conversation, line by line, until Ctrl-D. With a text, or with one piped in: that is said, and that is all."
)]
pub struct Chat {
    /// the friend's name, or the beginning of its id, and what to say
    #[argh(positional, arg_name = "friend and text")]
    words: Vec<Word>,
    /// find messages that hold all of these words
    #[argh(option, arg_name = "words")]
    search: Option<Word>,
    /// print the newest so many messages
    #[argh(option, arg_name = "number")]
    history: Option<u64>,
    /// delete the message of this number here, or `all` of the conversation
    #[argh(option, arg_name = "number")]
    delete: Option<Word>,
    /// share this file of GroveHome with the friend, and send it along (may be given 16 times)
    #[argh(option, arg_name = "file")]
    attach: Vec<Word>,
    /// print the JSON of the API
    #[argh(switch)]
    json: bool,
}

fn number(number: u64) -> Value {
    Value::Number(Number::U64(number))
}

fn string(text: &str) -> Value {
    Value::String(text.to_owned())
}

impl Chat {
    pub(super) fn run(self, context: &mut Context<'_>) -> Result<(), CliError> {
        let (friend, text) = match self.words.split_first() {
            Some((friend, text)) => (Some(friend.text()?.to_owned()), text),
            None => (None, &[][..]),
        };
        let wishes = [self.search.is_some(), self.history.is_some(), self.delete.is_some(), !text.is_empty()];
        if wishes.iter().filter(|wish| **wish).count() > 1 {
            return Err(CliError::Usage("a text, --search, --history or --delete: one of them".to_owned()));
        }
        if !self.attach.is_empty() && wishes[..3].contains(&true) {
            return Err(CliError::Usage("--attach goes with a text".to_owned()));
        }
        if let Some(words) = &self.search {
            let words = words.text()?.to_owned();
            return search(context, friend.as_deref(), &words, self.json);
        }
        let Some(friend) = friend else {
            if wishes.contains(&true) || !self.attach.is_empty() {
                return Err(CliError::Usage("say with whom, for example `grove chat bob`".to_owned()));
            }
            return list(context, self.json);
        };
        if let Some(which) = &self.delete {
            return delete(context, &friend, which.text()?, self.json);
        }
        if let Some(count) = self.history {
            return history(context, &friend, count, self.json);
        }
        let attach =
            self.attach.iter().map(|file| wire_name(context, file)).collect::<Result<Vec<_>, _>>()?;
        if !text.is_empty() || !attach.is_empty() {
            let words: Vec<&str> = text.iter().map(Word::text).collect::<Result<_, _>>()?;
            return say(context, &friend, &words.join(" "), attach, self.json);
        }
        match (context.terminals.input, self.json) {
            (false, _) => {
                let text = piped(context)?;
                say(context, &friend, &text, Vec::new(), self.json)
            }
            (true, true) => history(context, &friend, HISTORY, true),
            (true, false) => converse(context, &friend),
        }
    }
}

/// What is piped in, without the end of its last line.
fn piped(context: &mut Context<'_>) -> Result<String, CliError> {
    let mut bytes = Vec::new();
    let most = TEXT_BYTES_MAX as u64 + 2;
    (&mut *context.input).take(most).read_to_end(&mut bytes).map_err(CliError::io("reading the input"))?;
    // Before it is looked at as text: what was cut off may be half a letter.
    if bytes.len() > TEXT_BYTES_MAX + 1 {
        return Err(CliError::new("a message has at most 64 KiB", "share a file instead"));
    }
    let mut text =
        String::from_utf8(bytes).map_err(|_| CliError::new("what is piped in is not UTF-8", ""))?;
    if text.ends_with('\n') {
        text.pop();
    }
    if text.len() > TEXT_BYTES_MAX {
        return Err(CliError::new("a message has at most 64 KiB", "share a file instead"));
    }
    Ok(text)
}

fn list(context: &mut Context<'_>, json: bool) -> Result<(), CliError> {
    let mut answer = context.cell()?.ask(Method::Get, "/chat", &[], None)?;
    if json {
        writeln!(context.out, "{}", answer.text)?;
        return Ok(());
    }
    let mut talks = answer.fields.list("conversations");
    if talks.is_empty() {
        writeln!(context.out, "Nothing was said yet. `grove chat FRIEND TEXT` says something.")?;
        return Ok(());
    }
    let mut rows = vec![["WITH", "UNREAD", "WAITING", "LAST", ""].map(str::to_owned).to_vec()];
    for talk in &mut talks {
        let last = talk.part("last");
        let when =
            last.as_ref().and_then(|last| last.signed("arrived_unix")).map_or("-".to_owned(), show::time);
        let text = last.map_or(String::new(), |last| begin(last.text("text")));
        rows.push(vec![
            one_line(talk.text("name")),
            show::count(talk.number("unread")),
            show::count(talk.number("queued")),
            when,
            text,
        ]);
    }
    context.out.write_all(show::table(&rows, &[1, 2]).as_bytes())?;
    Ok(())
}

fn one_line(text: &str) -> String {
    show::text(text).replace('\n', " ")
}

/// The beginning of a text, in one line.
fn begin(text: &str) -> String {
    let begin: String = text.chars().take(48).collect();
    let dots = if begin.len() < text.len() { "…" } else { "" };
    format!("{}{dots}", one_line(&begin))
}

/// A message as it is shown in so many columns. Lines after its first are set off, so that a text cannot look like another
/// message.
fn shown(item: &mut Fields, name: &str, columns: usize) -> String {
    let is_ours = item.is("ours");
    let who = if is_ours { "you".to_owned() } else { one_line(name) };
    let when = item.signed("arrived_unix").map_or("-".to_owned(), show::time);
    let state = if is_ours { format!("  ({})", item.text("state")) } else { String::new() };
    let text = show::text(item.text("text"));
    let files = item.list("files");
    let known: String = files.iter().map(|file| attached(file, is_ours)).collect();
    let attached = match files.is_empty() {
        false => known,
        true => item
            .texts("attachments")
            .iter()
            .map(|id| format!("\n    + attached: {}", show::text(id)))
            .collect(),
    };
    let told = folded(&format!("#{} {when} {who}: {text}{state}", item.number("id")), columns);
    format!("{told}{attached}\n")
}

/// A file that goes with a message: its name, and how to get it.
fn attached(file: &Fields, is_ours: bool) -> String {
    let id = show::text(file.text("id"));
    let name = match is_ours {
        true => show::name(&from_wire(file.text("name"))),
        false => one_line(file.text("name")),
    };
    let size = show::bytes(file.number("size"));
    match (file.text("name").is_empty(), is_ours, file.text("state")) {
        (true, true, _) => format!("\n    + attached: {id} (deleted since)"),
        (true, false, _) => format!("\n    + attached: {id} (not in the Feed: not yet, or no more)"),
        (false, true, "gone") => format!("\n    + attached: {name} ({size}, no longer shared)"),
        (false, true, _) => format!("\n    + attached: {name} ({size})"),
        (false, false, _) => {
            format!("\n    + attached: {name} ({size}): grove fetch {}", id.get(..12).unwrap_or(&id))
        }
    }
}

/// Breaks lines where the terminal would, and sets off what follows: otherwise blanks could move a part of a text to where
/// another message begins. A letter beyond ASCII is taken for as wide as letters get.
fn folded(text: &str, columns: usize) -> String {
    let mut lines = String::with_capacity(text.len());
    let mut column = 0;
    for c in text.chars() {
        let wide = if c.is_ascii() { 1 } else { 2 };
        if c == '\n' || column + wide > columns {
            lines.push('\n');
            lines.push_str(MARGIN);
            column = MARGIN.len();
        }
        if c != '\n' {
            lines.push(c);
            column += wide;
        }
    }
    lines
}

/// Columns that messages are broken at: none where nobody sits.
fn columns(context: &Context<'_>) -> usize {
    if context.terminals.out { terminal::columns().max(COLUMNS_MIN) } else { usize::MAX }
}

fn search(context: &mut Context<'_>, friend: Option<&str>, words: &str, json: bool) -> Result<(), CliError> {
    let mut cell = context.cell()?;
    let (names, columns) = (names(&mut *cell)?, columns(context));
    let (mut before, mut count) = (None, 0u64);
    for _ in 0..SEARCH_PAGES_MAX {
        let mut query = vec![("words", words.as_bytes().to_vec()), ("limit", PAGE.to_string().into_bytes())];
        query.extend(friend.map(|friend| ("peer", friend.as_bytes().to_vec())));
        query.extend(before.map(|before: u64| ("before", before.to_string().into_bytes())));
        let mut answer = cell.ask(Method::Get, "/chat/search", &query, None)?;
        let mut items = answer.fields.list("messages");
        count += items.len() as u64;
        if json {
            // One object a page: whoever reads them reads lines.
            if !items.is_empty() {
                writeln!(context.out, "{}", answer.text)?;
            }
        } else {
            for item in &mut items {
                let name = names.iter().find(|(id, _)| id == item.text("peer"));
                let name = name.map_or(item.text("peer").get(..16).unwrap_or("?"), |(_, name)| name.as_str());
                let name = name.to_owned();
                let with = if item.is("ours") { format!("[{}] ", one_line(&name)) } else { String::new() };
                write!(
                    context.out,
                    "{with}{}",
                    shown(item, &name, columns.saturating_sub(with.chars().count()))
                )?;
            }
        }
        before = answer.fields.some("next");
        if before.is_none() {
            break;
        }
    }
    if count == 0 && !json {
        writeln!(context.out, "No message holds all of these words.")?;
    }
    Ok(())
}

/// Ids and names of all conversations.
fn names(cell: &mut dyn Cell) -> Result<Vec<(String, String)>, CliError> {
    let mut answer = cell.ask(Method::Get, "/chat", &[], None)?;
    let talks = answer.fields.list("conversations");
    Ok(talks.iter().map(|talk| (talk.text("id").to_owned(), talk.text("name").to_owned())).collect())
}

fn delete(context: &mut Context<'_>, friend: &str, which: &str, json: bool) -> Result<(), CliError> {
    let which = match which.trim_start_matches('#') {
        "all" => ("all", Value::Bool(true)),
        id => {
            let wrong = || CliError::Usage("--delete takes the number of a message, or all".to_owned());
            ("id", number(id.parse().map_err(|_| wrong())?))
        }
    };
    let mut cell = context.running_cell()?;
    if which.0 == "all" && context.terminals.input {
        let question = format!("Delete the whole conversation with {} here?", one_line(friend));
        if !terminal::ask_yes(&question, context.input, context.err)? {
            return Err(CliError::new("nothing was deleted", ""));
        }
    }
    let (mut deleted, mut upto) = (0, None);
    let mut line = Line::new(context.terminals.err);
    // Of very many each request deletes a part.
    let answer = loop {
        let wish = [("peer", string(friend)), which.clone(), ("upto", number_or_null(upto))];
        let answer = cell.ask(Method::Post, "/chat/delete", &[], Some(object(wish)))?;
        deleted += answer.fields.number("deleted");
        if !answer.fields.is("more") {
            break answer;
        }
        upto = Some(answer.fields.number("upto"));
        let progress = Progress {
            text: "deleting".to_owned(),
            done: deleted,
            unit: "messages".to_owned(),
            ..Progress::default()
        };
        line.show(context, &progress, Instant::now());
    };
    line.clear(context);
    if json && upto.is_some() {
        writeln!(context.out, "{{\"deleted\":{deleted}}}")?;
    } else if json {
        writeln!(context.out, "{}", answer.text)?;
    } else {
        let count = show::of(deleted, "message", "messages");
        writeln!(context.out, "{count} deleted here; what has arrived at the friend stays there.")?;
    }
    Ok(())
}

/// Part of a conversation: messages before or after one, or the newest.
fn page(
    cell: &mut dyn Cell,
    friend: &str,
    side: Option<(&'static str, u64)>,
    limit: u64,
) -> Result<Answer, CliError> {
    let mut query = vec![("peer", friend.as_bytes().to_vec()), ("limit", limit.to_string().into_bytes())];
    query.extend(side.map(|(side, id)| (side, id.to_string().into_bytes())));
    cell.ask(Method::Get, "/chat/messages", &query, None)
}

/// The newest message that was not seen before.
fn newest_new(items: &[Fields]) -> Option<u64> {
    items.iter().filter(|item| item.text("state") == "new").map(|item| item.number("id")).max()
}

fn mark_read(cell: &mut dyn Cell, friend: &str, newest: Option<u64>) -> Result<(), CliError> {
    if let Some(upto) = newest.filter(|_| cell.is_running()) {
        let body = object([("peer", string(friend)), ("upto", number(upto))]);
        cell.ask(Method::Post, "/chat/read", &[], Some(body))?;
    }
    Ok(())
}

/// Messages of a conversation that have not been seen.
fn unread(cell: &mut dyn Cell, id: &str) -> Result<u64, CliError> {
    let mut answer = cell.ask(Method::Get, "/chat", &[], None)?;
    let talks = answer.fields.list("conversations");
    Ok(talks.iter().find(|talk| talk.text("id") == id).map_or(0, |talk| talk.number("unread")))
}

/// Unread messages that stand before those which are shown are told of, not passed over.
fn tell_unshown(err: &mut dyn Write, name: &str, unread: u64, items: &[Fields]) -> std::io::Result<()> {
    let shown = items.iter().filter(|item| item.text("state") == "new").count() as u64;
    if unread > shown {
        let count = show::of(unread - shown, "unread message stands", "unread messages stand");
        let name = one_line(name);
        writeln!(err, "{count} before these; `grove chat {name} --history {unread}` prints them too.")?;
    }
    Ok(())
}

fn history(context: &mut Context<'_>, friend: &str, count: u64, json: bool) -> Result<(), CliError> {
    let mut cell = context.cell()?;
    let mut answer = page(&mut *cell, friend, None, if json { count } else { count.clamp(1, PAGE) })?;
    let mut items = answer.fields.list("messages");
    if json {
        writeln!(context.out, "{}", answer.text)?;
        return mark_read(&mut *cell, friend, newest_new(&items));
    }
    let (name, columns) = (answer.fields.text("name").to_owned(), columns(context));
    let id = |item: Option<&Fields>| item.map_or(0, |item| item.number("id"));
    let (mut oldest, newest) = (id(items.first()), id(items.last()));
    let mut left = count.saturating_sub(items.len() as u64);
    if left > 0 && answer.fields.is("more") {
        // Looked for from the newest on, printed from the oldest on, and never held together.
        while left > 0 {
            let mut answer = page(&mut *cell, friend, Some(("before", oldest)), left.min(PAGE))?;
            let items = answer.fields.list("messages");
            left -= left.min(items.len() as u64);
            oldest = items.first().map_or(oldest, |item| item.number("id"));
            if items.is_empty() || !answer.fields.is("more") {
                break;
            }
        }
        let (mut after, mut new) = (oldest.saturating_sub(1), None);
        while after < newest {
            let mut items = page(&mut *cell, friend, Some(("after", after)), PAGE)?.fields.list("messages");
            let Some(last) = items.last() else { break };
            after = last.number("id");
            for item in items.iter_mut().filter(|item| item.number("id") <= newest) {
                context.out.write_all(shown(item, &name, columns).as_bytes())?;
            }
            new = new.max(newest_new(&items));
        }
        context.out.flush()?;
        return mark_read(&mut *cell, friend, new);
    }
    let new = newest_new(&items);
    if new.is_some() {
        let unread = unread(&mut *cell, answer.fields.text("id"))?;
        tell_unshown(context.err, &name, unread, &items)?;
    }
    for item in &mut items {
        context.out.write_all(shown(item, &name, columns).as_bytes())?;
    }
    context.out.flush()?;
    mark_read(&mut *cell, friend, new)
}

fn send(cell: &mut dyn Cell, friend: &str, text: &str, attach: Vec<String>) -> Result<Answer, CliError> {
    let mut body = vec![("peer", string(friend)), ("text", string(text))];
    if !attach.is_empty() {
        body.push(("attach", list_of_texts(attach)));
    }
    cell.ask(Method::Post, "/chat/send", &[], Some(object_of(body)))
}

fn say(
    context: &mut Context<'_>,
    friend: &str,
    text: &str,
    attach: Vec<String>,
    json: bool,
) -> Result<(), CliError> {
    let mut cell = context.running_cell()?;
    let answer = send(&mut *cell, friend, text, attach)?;
    if json {
        writeln!(context.out, "{}", answer.text)?;
    } else {
        writeln!(context.out, "{}", said(&answer.fields, friend))?;
    }
    Ok(())
}

fn said(fields: &Fields, friend: &str) -> String {
    let name = one_line(friend);
    match fields.is("online") {
        true => format!("Sent to {name}."),
        false => format!("Kept for {name}, who is not connected now."),
    }
}

/// What happens in a conversation.
enum Event {
    /// A line was typed.
    Line(String),
    /// Nothing more is typed.
    End,
    /// The cell tells how the conversation stands.
    News(Answer),
    /// The cell does not answer for now.
    Silent,
    /// The terminal cannot be read.
    Broken(CliError),
}

/// What stands on the screen.
struct Screen {
    friend: String,
    name: String,
    columns: usize,
    /// The newest message that is shown.
    last: u64,
    /// Messages that were typed here, and so stand there already.
    typed: BTreeSet<u64>,
    /// The newest of them, and how far it is told to be: 1 delivered, 2 read.
    own: u64,
    told: u8,
    is_silent: bool,
}

impl Screen {
    /// What is new, as text.
    fn news(&mut self, items: &mut [Fields], delivered: u64, read: u64) -> String {
        let mut text = String::new();
        self.is_silent = false;
        for item in items {
            let id = item.number("id");
            if id <= self.last {
                continue;
            }
            self.last = id;
            if !self.typed.remove(&id) {
                text.push_str(&shown(item, &self.name, self.columns));
            }
        }
        let mark = if self.own == 0 {
            0
        } else if read >= self.own {
            2
        } else {
            u8::from(delivered >= self.own)
        };
        if mark > self.told {
            self.told = mark;
            text.push_str(if mark == 2 { "  (read)\n" } else { "  (delivered)\n" });
        }
        text
    }

    /// What was typed is said.
    fn say(&mut self, cell: &mut dyn Cell, line: &str) -> Result<String, CliError> {
        let answer = send(cell, &self.friend, line, Vec::new())?;
        let id = match answer.fields.0.get("ids") {
            Some(Value::Array(ids)) => ids.iter().next_back().and_then(|id| match id {
                Value::Number(Number::U64(id)) => Some(*id),
                Value::Number(Number::I64(id)) => u64::try_from(*id).ok(),
                _ => None,
            }),
            _ => None,
        };
        if let Some(id) = id {
            (self.own, self.told) = (id, 0);
            if id > self.last {
                self.typed.insert(id);
            }
        }
        Ok(match answer.fields.is("online") {
            true => "  (sent)\n".to_owned(),
            false => format!("  (sent; {} is not connected now and gets it later)\n", one_line(&self.name)),
        })
    }

    /// Goes on until nothing more is typed.
    fn run(
        &mut self,
        cell: &mut dyn Cell,
        events: &Receiver<Event>,
        out: &mut dyn Write,
    ) -> Result<(), CliError> {
        while let Ok(event) = events.recv() {
            let text = match event {
                Event::Line(line) if line.trim().is_empty() => String::new(),
                Event::Line(line) => match self.say(cell, &line) {
                    Ok(text) => text,
                    Err(CliError::Failed { message, .. }) => {
                        format!("  (not sent: {})\n", show::text(&message))
                    }
                    Err(why) => return Err(why),
                },
                Event::News(mut answer) => {
                    let (delivered, read) = (answer.fields.number("delivered"), answer.fields.number("read"));
                    let mut items = answer.fields.list("messages");
                    let text = self.news(&mut items, delivered, read);
                    // Shown first, then told to the friend as seen.
                    out.write_all(text.as_bytes())?;
                    out.flush()?;
                    let _ = mark_read(cell, &self.friend, newest_new(&items));
                    String::new()
                }
                Event::Silent if self.is_silent => String::new(),
                Event::Silent => {
                    self.is_silent = true;
                    "  (this cell does not answer; it is asked again)\n".to_owned()
                }
                Event::Broken(why) => return Err(why),
                Event::End => return Ok(()),
            };
            out.write_all(text.as_bytes())?;
            out.flush()?;
        }
        Ok(())
    }
}

/// The running cell of a folder, whatever port it has by now.
fn remote(dir: &std::path::Path) -> Result<Remote, CliError> {
    match holder(dir)? {
        Holder::Cell(port) => Remote::open(dir, port),
        Holder::Nobody => Err(CliError::new("the cell is not running", "start it with `grove run`")),
    }
}

/// Tells whatever happens in a conversation after the message `last`, until nobody listens.
fn follow(dir: &std::path::Path, friend: &str, mut last: u64, mut change: u64, events: &SyncSender<Event>) {
    let mut cell = None;
    loop {
        let query = [
            ("peer", friend.as_bytes().to_vec()),
            ("after", last.to_string().into_bytes()),
            ("limit", PAGE.to_string().into_bytes()),
            ("change", change.to_string().into_bytes()),
            ("wait_ms", WAIT_MS.to_string().into_bytes()),
        ];
        let asked = match &mut cell {
            Some(cell) => Ok(cell),
            none => remote(dir).map(|remote| none.insert(remote)),
        };
        let asked = asked.and_then(|cell: &mut Remote| cell.ask(Method::Get, "/chat/messages", &query, None));
        let event = match asked {
            Ok(answer) => {
                let (newest, is_more) = newest(&answer);
                last = last.max(newest);
                // With more to come nothing is waited for.
                change = if is_more { u64::MAX } else { answer.fields.number("change") };
                Event::News(answer)
            }
            Err(_) => {
                cell = None;
                thread::sleep(AGAIN);
                Event::Silent
            }
        };
        if events.send(event).is_err() {
            return;
        }
    }
}

/// The newest message of an answer, and whether more follow.
fn newest(answer: &Answer) -> (u64, bool) {
    let newest = match answer.fields.0.get("messages") {
        Some(Value::Array(items)) => items.iter().next_back().and_then(|item| match item {
            Value::Object(item) => match item.get("id") {
                Some(Value::Number(Number::U64(id))) => Some(*id),
                Some(Value::Number(Number::I64(id))) => u64::try_from(*id).ok(),
                _ => None,
            },
            _ => None,
        }),
        _ => None,
    };
    (newest.unwrap_or(0), answer.fields.is("more"))
}

/// Lines of the terminal, until its end.
fn listen(events: &SyncSender<Event>) {
    let mut input = BufReader::new(std::io::stdin());
    loop {
        let event = match terminal::read_line(&mut input) {
            Ok(Some(line)) => Event::Line(line.to_string()),
            Ok(None) => Event::End,
            Err(why) => Event::Broken(why),
        };
        let is_last = !matches!(event, Event::Line(_));
        if events.send(event).is_err() || is_last {
            return;
        }
    }
}

fn converse(context: &mut Context<'_>, friend: &str) -> Result<(), CliError> {
    let mut cell = context.running_cell()?;
    let mut first = page(&mut *cell, friend, None, HISTORY)?;
    let unread = unread(&mut *cell, first.fields.text("id"))?;
    if unread > HISTORY {
        first = page(&mut *cell, friend, None, unread.min(UNREAD_SHOWN_MAX))?;
    }
    let change = first.fields.number("change");
    let name = first.fields.text("name").to_owned();
    let (delivered, read) = (first.fields.number("delivered"), first.fields.number("read"));
    let mut items = first.fields.list("messages");
    let mut screen = Screen {
        friend: friend.to_owned(),
        name: name.clone(),
        columns: columns(context),
        last: 0,
        typed: BTreeSet::new(),
        own: 0,
        told: 0,
        is_silent: false,
    };
    tell_unshown(context.err, &name, unread, &items)?;
    context.out.write_all(screen.news(&mut items, delivered, read).as_bytes())?;
    if !first.fields.is("friend") {
        let why = format!(
            "{} is no friend now: the conversation can be read, and goes no further",
            one_line(&name)
        );
        let _ = writeln!(context.err, "{why}");
    }
    context.out.flush()?;
    mark_read(&mut *cell, friend, newest_new(&items))?;
    let _ = writeln!(context.err, "Each line is sent to {}. Ctrl-D ends.", one_line(&name));

    let (tell, events) = mpsc::sync_channel(EVENTS_MAX);
    let (dir, of, last, told): (PathBuf, String, u64, _) =
        (context.paths.dir.clone(), friend.to_owned(), screen.last, tell.clone());
    // Both end with the process: one waits for the terminal, the other for the cell.
    thread::spawn(move || follow(&dir, &of, last, change, &told));
    thread::spawn(move || listen(&tell));
    screen.run(&mut *cell, &events, context.out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::testing::{Fake, Setup};

    const HOSTILE: &str = r#"{"id":7,"peer":"ab","ours":false,"arrived_unix":1800000000,"state":"new","text":"\u001b[2J<script>\n#8 2026-01-01 00:00 you: yes\u202e","attachments":["00ff"]}"#;
    const OWN: &str =
        r#"{"id":8,"ours":true,"arrived_unix":1800000000,"state":"sent","text":"hello","attachments":[]}"#;

    fn answer(messages: &str, more: &str) -> Answer {
        Answer::read(format!(r#"{{"name":"bob","messages":[{messages}],"more":false{more}}}"#)).unwrap()
    }

    #[test]
    fn a_hostile_message_neither_commands_the_terminal_nor_looks_like_another() {
        let mut items = answer(HOSTILE, "").fields.list("messages");
        let text = shown(&mut items[0], "bo\u{1b}b\n", usize::MAX);
        assert!(text.chars().all(|c| c == '\n' || !crate::logger::is_odd(c)), "{text:?}");
        assert!(text.contains("\n    | #8 ") && text.ends_with("\n    + attached: 00ff\n"), "{text}");
        assert_eq!(text.lines().filter(|line| line.starts_with('#')).count(), 1);
        assert_eq!(begin(&"x\n".repeat(100)).lines().count(), 1);
    }

    #[test]
    fn a_conversation_shows_news_once_and_tells_how_far_the_own_words_are() {
        let fake = Fake::default();
        fake.answer("POST /chat/send", r#"{"ids":[8],"online":true}"#);
        fake.answer("POST /chat/read", r#"{"ok":true}"#);
        let mut screen = Screen {
            friend: "bob".into(),
            name: "bob".into(),
            columns: usize::MAX,
            last: 6,
            typed: BTreeSet::new(),
            own: 0,
            told: 0,
            is_silent: false,
        };
        let (tell, events) = mpsc::sync_channel(100);
        tell.send(Event::Line("  ".into())).unwrap();
        tell.send(Event::Line("hello".into())).unwrap();
        for more in ["", "", r#","delivered":8"#, r#","delivered":8,"read":8"#, r#","delivered":8,"read":8"#]
        {
            tell.send(Event::News(answer(&format!("{HOSTILE},{OWN}"), more))).unwrap();
        }
        tell.send(Event::Silent).unwrap();
        tell.send(Event::Silent).unwrap();
        tell.send(Event::End).unwrap();
        let mut out = Vec::new();
        screen.run(&mut fake.clone(), &events, &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert_eq!(text.matches("(sent)").count(), 1, "{text}");
        assert_eq!(text.matches("#7 ").count(), 1, "{text}");
        assert_eq!(text.matches("#8 ").count(), 1, "only within the hostile one: {text}");
        assert_eq!((text.matches("(delivered)").count(), text.matches("(read)").count()), (1, 1), "{text}");
        assert_eq!(text.matches("does not answer").count(), 1, "{text}");
    }

    #[test]
    fn words_that_make_no_sense_together_are_refused() {
        let setup = Setup::new();
        for line in
            ["chat bob hello --history 3", "chat --history 3", "chat --delete 3", "chat bob --delete x"]
        {
            assert_eq!(setup.grove(line, "").code, 2, "{line}");
        }
    }

    #[test]
    fn conversations_are_a_table_and_a_history_is_printed_oldest_first() {
        let setup = Setup::new();
        setup.fake.answer("GET /chat", r#"{"conversations":[]}"#);
        assert!(setup.grove("chat", "").out.contains("Nothing was said yet"));
        let talk = format!(
            r#"{{"conversations":[{{"name":"b\u001bob","id":"ab","unread":1200,"queued":3,"last":{HOSTILE}}}]}}"#
        );
        setup.fake.answer("GET /chat", &talk);
        let told = setup.grove("chat", "");
        assert_eq!((told.code, told.out.lines().count()), (0, 2), "{told:?}");
        assert!(told.out.contains("1,200") && !told.out.contains('\u{1b}'), "{told:?}");

        let page =
            |items: &str, more: bool| format!(r#"{{"name":"bob","messages":[{items}],"more":{more}}}"#);
        let newest = page(&format!("{HOSTILE},{OWN}"), true);
        let oldest = page(r#"{"id":3,"text":"old"}"#, false);
        let all =
            page(&format!(r#"{{"id":3,"text":"old"}},{HOSTILE},{OWN},{{"id":9,"text":"since"}}"#), true);
        for answer in [&newest, &oldest, &all] {
            setup.fake.answer("GET /chat/messages", answer);
        }
        let told = setup.grove("chat bob --history 200", "");
        let ids: Vec<&str> =
            told.out.lines().filter_map(|line| line.strip_prefix('#')?.split(' ').next()).collect();
        assert_eq!(ids, ["3", "7", "8"], "{told:?}");
        assert!(
            setup.fake.told.borrow().iter().any(|asked| asked.contains("before=7")),
            "{:?}",
            setup.fake.told
        );
    }

    #[test]
    fn unread_messages_before_those_shown_are_told_of() {
        let setup = Setup::new();
        setup
            .fake
            .answer("GET /chat", r#"{"conversations":[{"id":"cd","unread":9},{"id":"ab","unread":501}]}"#);
        setup.fake.answer(
            "GET /chat/messages",
            &format!(r#"{{"id":"ab","name":"bob","messages":[{HOSTILE},{OWN}],"more":true}}"#),
        );
        let told = setup.grove("chat bob --history 2", "");
        assert_eq!(
            told.err,
            "500 unread messages stand before these; `grove chat bob --history 501` prints them too.\n"
        );
    }

    /// Where the terminal breaks a line, the rest of it must not stand where a message begins.
    #[test]
    fn blanks_and_wide_letters_move_nothing_to_the_beginning_of_a_line() {
        for text in [format!("hi{}#8 2026 you: yes", " ".repeat(200)), "漢".repeat(100), "é#".repeat(100)] {
            let mut item = answer(&format!(r#"{{"id":7,"text":"{text}"}}"#), "").fields.list("messages");
            let told = shown(&mut item[0], "bob", 40);
            let wide = |line: &str| line.chars().map(|c| if c.is_ascii() { 1 } else { 2 }).sum::<usize>();
            for (at, line) in told.lines().enumerate() {
                assert!(wide(line) <= 40 && (at == 0 || line.starts_with(MARGIN)), "{line:?}");
            }
            let back: String = told.trim_end_matches('\n').split("\n    | ").collect();
            assert!(back.ends_with(&text), "nothing is left out: {told}");
        }
    }

    #[test]
    fn a_search_goes_on_to_the_end() {
        let setup = Setup::new();
        let found = |items: &str, next: &str| format!(r#"{{"messages":[{items}],"next":{next}}}"#);
        setup.fake.answer("GET /chat", r#"{"conversations":[{"name":"bob","id":"ab"}]}"#);
        setup.fake.answer("GET /chat/search", &found(HOSTILE, "5"));
        setup.fake.answer("GET /chat/search", &found("", "3"));
        setup
            .fake
            .answer("GET /chat/search", &found(r#"{"id":2,"peer":"ab","ours":true,"text":"x"}"#, "null"));
        let told = setup.grove("chat --search x", "");
        assert!(told.out.contains(" bob: ") && told.out.contains("[bob] #2"), "{told:?}");
        assert_eq!(setup.fake.told.borrow().len(), 4);
    }

    #[test]
    fn what_is_piped_in_is_one_message_of_a_bounded_length() {
        let setup = Setup::new();
        let long = "x".repeat(TEXT_BYTES_MAX + 1);
        assert!(setup.grove("chat bob", &long).err.contains("64 KiB"));
        let piped = |text: &str| {
            let mut input = text.as_bytes();
            let (mut out, mut err) = (Vec::new(), Vec::new());
            let mut context = Context {
                paths: crate::cli::Paths { dir: "/".into(), home: "/".into() },
                options: crate::cli::Options::default(),
                house: &setup.fake,
                cwd: "/".into(),
                input: &mut input,
                out: &mut out,
                err: &mut err,
                terminals: crate::cli::Terminals::default(),
            };
            super::piped(&mut context).unwrap()
        };
        assert_eq!(piped("a\nb\n"), "a\nb");
        assert_eq!(piped(&format!("{}\n", &long[1..])).len(), TEXT_BYTES_MAX);
    }
}

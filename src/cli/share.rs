//! Sharing with friends: `share`, `unshare`, `feed`, `fetch`.

use std::os::unix::ffi::OsStrExt;

use argh::FromArgs;
use miniserde::json::Value;

use super::ask::{Cell, CliError, Fields, Method, number_or_null, object, texts};
use super::files::wire_name;
use super::{Context, Word, job, show, terminal};
use crate::files::unix::{from_wire, to_wire};

/// share a file or folder with friends: they see it in their Feed and may fetch it
#[derive(FromArgs, Debug, PartialEq)]
#[argh(
    subcommand,
    name = "share",
    help_triggers("-h", "--help"),
    note = "Later versions reach them too. Of a folder all files are shared, also those that come into it later.\n`grove unshare` takes it back."
)]
pub struct Share {
    /// file or folder, as `grove ls` names it
    #[argh(positional)]
    name: Word,
    /// friends: names, or beginnings of ids
    #[argh(positional)]
    peers: Vec<Word>,
    /// for how long, for example 12h or 7d (default: until it is taken back)
    #[argh(option, arg_name = "time", from_str_fn(read_duration))]
    until: Option<u64>,
    /// print the JSON of the API
    #[argh(switch)]
    json: bool,
}

fn read_duration(text: &str) -> Result<u64, String> {
    show::read_duration(text)
}

/// The names of friends; `usage` is what to say where there are none.
fn named(peers: &[Word], usage: &str) -> Result<Value, CliError> {
    if peers.is_empty() {
        return Err(CliError::Usage(usage.to_owned()));
    }
    let names = peers.iter().map(|peer| Ok(peer.text()?.to_owned())).collect::<Result<Vec<_>, CliError>>()?;
    Ok(texts(names))
}

/// One line of text, harmless to a terminal.
fn tidy(text: &str) -> String {
    show::text(text).replace('\n', " ")
}

impl Share {
    pub(super) fn run(self, context: &mut Context<'_>) -> Result<(), CliError> {
        let name = wire_name(context, &self.name)?;
        let peers = named(&self.peers, "say with whom: `grove share NAME FRIEND…`")?;
        let mut cell = context.running_cell()?;
        let body = object([
            ("path", Value::String(name.clone())),
            ("peers", peers),
            ("for_s", number_or_null(self.until)),
        ]);
        let mut answer = cell.ask(Method::Post, "/share", &[], Some(body))?;
        if self.json {
            writeln!(context.out, "{}", answer.text)?;
            return Ok(());
        }
        for peer in answer.fields.list("peers") {
            let (files, arrived) = (peer.number("files"), peer.number("arrived"));
            let rest = match files.saturating_sub(arrived) {
                0 => String::new(),
                rest => {
                    let rest = show::of(rest, "file follows", "files follow");
                    format!("; {rest} when the two are next connected")
                }
            };
            let shown = show::name(&from_wire(&name));
            let files = show::of(files, "file", "files");
            writeln!(context.out, "{shown} is shared with {} ({files}){rest}.", tidy(peer.text("name")))?;
        }
        Ok(())
    }
}

/// take back what is shared with friends
#[derive(FromArgs, Debug, PartialEq)]
#[argh(
    subcommand,
    name = "unshare",
    help_triggers("-h", "--help"),
    note = "What was fetched already stays with them."
)]
pub struct Unshare {
    /// file or folder, and then friends; with --all only friends
    #[argh(positional, arg_name = "name")]
    words: Vec<Word>,
    /// everything that is shared with them
    #[argh(switch)]
    all: bool,
    /// seal all of it anew as well: holders then have nothing left that the old keys open
    #[argh(switch)]
    reseal: bool,
    /// do not ask what --reseal may cost
    #[argh(switch)]
    yes: bool,
    /// print the JSON of the API
    #[argh(switch)]
    json: bool,
}

impl Unshare {
    pub(super) fn run(self, context: &mut Context<'_>) -> Result<(), CliError> {
        let usage = match self.all {
            true => "say from whom: `grove unshare --all FRIEND…`",
            false => "say what, and from whom: `grove unshare NAME FRIEND…`",
        };
        let (name, peers) = match (self.all, self.words.split_first()) {
            (true, _) => (None, &self.words[..]),
            (false, Some((name, peers))) => (Some(wire_name(context, name)?), peers),
            (false, None) => return Err(CliError::Usage(usage.to_owned())),
        };
        if self.reseal && name.is_none() {
            return Err(CliError::Usage("--reseal needs the name of a file or folder".to_owned()));
        }
        let body = object([
            ("path", name.clone().map_or(Value::Null, Value::String)),
            ("all", Value::Bool(self.all)),
            ("peers", named(peers, usage)?),
        ]);
        let mut cell = context.running_cell()?;
        if let Some(name) = name.as_ref().filter(|_| self.reseal && !self.yes && !context.terminals.input) {
            // Where nobody can be asked, nothing is done by halves.
            let text = cost_of_resealing(&mut *cell, name)?;
            return Err(CliError::new(
                format!("nothing is taken back yet: {text}"),
                "say --yes to do both, or leave out --reseal",
            ));
        }
        let mut answer = cell.ask(Method::Post, "/unshare", &[], Some(body))?;
        if self.json {
            writeln!(context.out, "{}", answer.text)?;
            return match name.filter(|_| self.reseal) {
                Some(name) => reseal(context, &mut *cell, name, self.yes, true),
                None => Ok(()),
            };
        }
        // A line for each friend, however many shares there were.
        let mut sums: Vec<(String, u64)> = Vec::new();
        for peer in answer.fields.list("peers") {
            let (name, files) = (tidy(peer.text("name")), peer.number("files"));
            match sums.iter_mut().find(|(known, _)| *known == name) {
                Some((_, sum)) => *sum += files,
                None => sums.push((name, files)),
            }
        }
        for (name, files) in sums {
            writeln!(context.out, "no longer shared with {name}: {}", show::of(files, "file", "files"))?;
        }
        let waiting = answer.fields.texts("waiting");
        if !waiting.is_empty() {
            let names = tidy(&waiting.join(", "));
            writeln!(
                context.out,
                "these hear of it when they are next connected, and may serve it until then: {names}"
            )?;
        }
        writeln!(context.out, "{}", tidy(answer.fields.text("stays")))?;
        match name.filter(|_| self.reseal) {
            Some(name) => reseal(context, &mut *cell, name, self.yes, false),
            None => Ok(()),
        }
    }
}

fn reseal_body(name: &str, is_confirmed: bool) -> String {
    object([("path", Value::String(name.to_owned())), ("confirm", Value::Bool(is_confirmed))])
}

/// What sealing anew costs, in words.
fn cost_of_resealing(cell: &mut dyn Cell, name: &str) -> Result<String, CliError> {
    let cost = cell.ask(Method::Post, "/reseal", &[], Some(reseal_body(name, false)))?.fields;
    let (files, bytes, sent) = (cost.number("files"), cost.number("bytes"), cost.number("send_bytes"));
    Ok(format!(
        "sealing anew reads and writes {} of {} here, and sends {} to peers; what was fetched already stays readable",
        show::bytes(bytes),
        show::of(files, "file", "files"),
        show::bytes(sent)
    ))
}

/// Says what sealing anew costs, asks, and does it.
fn reseal(
    context: &mut Context<'_>,
    cell: &mut dyn Cell,
    name: String,
    is_sure: bool,
    is_json: bool,
) -> Result<(), CliError> {
    let text = cost_of_resealing(cell, &name)?;
    if !is_sure && !terminal::ask_yes(&format!("{text}. Go on?"), context.input, context.out)? {
        return Ok(());
    }
    let outcome = job::run(context, cell, "/reseal", reseal_body(&name, true))?;
    if is_json {
        writeln!(context.out, "{}", outcome.text)?;
        return Ok(());
    }
    let done = show::of(outcome.result.number("resealed"), "file is", "files are");
    writeln!(context.out, "{text}.")?;
    writeln!(context.out, "{done} sealed anew.")?;
    let absent = outcome.result.number("absent");
    if absent > 0 {
        let absent = show::of(absent, "file is", "files are");
        writeln!(
            context.out,
            "{absent} not on this disk: bring them back with `grove restore`, and say it again."
        )?;
    }
    Ok(())
}

/// list what friends have shared with this cell, and what it shares
#[derive(FromArgs, Debug, PartialEq)]
#[argh(
    subcommand,
    name = "feed",
    help_triggers("-h", "--help"),
    note = "remote: nobody who has it is connected now; available: it can be fetched; verified: it was fetched, each piece checked.\nEach file has one owner, who alone makes new versions: there are no conflicts."
)]
pub struct Feed {
    #[argh(subcommand)]
    keep: Option<FeedWord>,
    /// print the JSON of the API, a line for what came and one for what is shared
    #[argh(switch)]
    json: bool,
}

#[derive(FromArgs, Debug, PartialEq)]
#[argh(subcommand)]
enum FeedWord {
    Keep(Keep),
}

/// keep a share: its files and their new versions come to Shared/FRIEND in GroveHome by themselves
#[derive(FromArgs, Debug, PartialEq)]
#[argh(
    subcommand,
    name = "keep",
    help_triggers("-h", "--help"),
    note = "They are the friend's: not backed up from here, and taken from here when they are deleted there or\nshared no more (which of the two is not told), after 30 days in Shared/.grove/bin. What you change is set aside as \"NAME (mine)\" and is yours."
)]
struct Keep {
    /// a file's id, or its beginning, as `grove feed` tells it; of a shared folder any file
    #[argh(positional)]
    id: Word,
    /// keep it no more; what is here stays, and is yours
    #[argh(switch)]
    off: bool,
    /// print the JSON of the API
    #[argh(switch)]
    json: bool,
}

impl Keep {
    fn run(self, context: &mut Context<'_>) -> Result<(), CliError> {
        let body =
            object([("id", Value::String(self.id.text()?.to_owned())), ("off", Value::Bool(self.off))]);
        let mut cell = context.running_cell()?;
        let answer = cell.ask(Method::Post, "/feed/keep", &[], Some(body))?;
        if self.json {
            writeln!(context.out, "{}", answer.text)?;
            return Ok(());
        }
        let folder = show::name(&from_wire(answer.fields.text("folder")));
        let from = tidy(answer.fields.text("from"));
        match self.off {
            false => {
                writeln!(context.out, "what {from} shares of it comes to {folder}/ by itself from now on")?
            }
            true => {
                let number = answer.fields.number("own");
                let own = show::of(number, "file", "files");
                let stay = if number == 1 { "stays and is" } else { "stay and are" };
                writeln!(context.out, "no longer kept; {own} in {folder}/ {stay} yours")?;
            }
        }
        Ok(())
    }
}

impl Feed {
    pub(super) fn run(self, context: &mut Context<'_>) -> Result<(), CliError> {
        if let Some(FeedWord::Keep(keep)) = self.keep {
            return keep.run(context);
        }
        let mut cell = context.running_cell()?;
        self.with(context, &mut *cell)
    }

    fn with(&self, context: &mut Context<'_>, cell: &mut dyn Cell) -> Result<(), CliError> {
        let mut before: Option<u64> = None;
        let mut count = 0;
        loop {
            let query: Vec<(&str, Vec<u8>)> =
                before.iter().map(|before| ("before", before.to_string().into_bytes())).collect();
            let mut answer = cell.ask(Method::Get, "/feed", &query, None)?;
            let entries = answer.fields.list("entries");
            if self.json {
                writeln!(context.out, "{}", answer.text)?;
            } else {
                context.out.write_all(feed_rows(&entries, count == 0).as_bytes())?;
            }
            count += entries.len();
            match answer.fields.some("next") {
                // Each page begins below the last: it ends, whatever the cell says.
                Some(next) if before.is_none_or(|before| next < before) => before = Some(next),
                _ => break,
            }
        }
        let mut answer = cell.ask(Method::Get, "/shares", &[], None)?;
        if self.json {
            writeln!(context.out, "{}", answer.text)?;
            return Ok(());
        }
        if count == 0 {
            writeln!(context.out, "Nothing is shared with this cell.")?;
        }
        let shares = answer.fields.list("shares");
        if !shares.is_empty() {
            writeln!(context.out, "\nshared by this cell:")?;
            context.out.write_all(share_rows(&shares).as_bytes())?;
        }
        Ok(())
    }
}

fn feed_rows(entries: &[Fields], with_head: bool) -> String {
    let mut rows = vec![["ID", "FROM", "SIZE", "VERSION", "STATE", "NAME"].map(str::to_owned).to_vec()];
    rows.extend(entries.iter().map(|entry| {
        let mut path = entry.texts("folders");
        path.push(entry.text("name").to_owned());
        vec![
            tidy(entry.text("id").get(..16).unwrap_or(entry.text("id"))),
            tidy(entry.text("from")),
            show::bytes(entry.number("size")),
            entry.number("version").to_string(),
            tidy(entry.text("state")),
            tidy(&path.join("/")),
        ]
    }));
    if rows.len() == 1 {
        return String::new();
    }
    let table = show::table(&rows, &[2, 3]);
    match with_head {
        true => table,
        false => table.split_once('\n').map_or(String::new(), |(_, rest)| rest.to_owned()),
    }
}

fn share_rows(shares: &[Fields]) -> String {
    let mut rows = vec![["WITH", "FILES", "THERE", "UNTIL", "NAME"].map(str::to_owned).to_vec()];
    rows.extend(shares.iter().map(|share| {
        let name = match share.text("path") {
            "" => tidy(share.text("id")),
            path => show::name(&from_wire(path)),
        };
        let until = match share.signed("until_s") {
            None | Some(0) => "no end".to_owned(),
            Some(until) => show::time(until),
        };
        let mark = if share.is("folder") { "/" } else { "" };
        vec![
            tidy(share.text("with")),
            share.number("files").to_string(),
            share.number("arrived").to_string(),
            until,
            format!("{name}{mark}"),
        ]
    }));
    show::table(&rows, &[1, 2])
}

/// fetch a file of the Feed, from the friend or from whoever else holds it
#[derive(FromArgs, Debug, PartialEq)]
#[argh(
    subcommand,
    name = "fetch",
    help_triggers("-h", "--help"),
    note = "What broke off goes on when it is started again. A file that exists is not replaced."
)]
pub struct Fetch {
    /// the file's id, or its beginning, as `grove feed` tells it
    #[argh(positional)]
    id: Word,
    /// file to write, or folder to write into (default: this folder)
    #[argh(option, arg_name = "file")]
    to: Option<Word>,
    /// keep it in GroveHome from now on, as a file of one's own; --to then names a folder there
    #[argh(switch)]
    add: bool,
    /// print the JSON of the API
    #[argh(switch)]
    json: bool,
}

impl Fetch {
    pub(super) fn run(self, context: &mut Context<'_>) -> Result<(), CliError> {
        let id = self.id.text()?.to_owned();
        let to = match (&self.to, self.add) {
            (Some(folder), true) => Value::String(wire_name(context, folder)?),
            (None, true) => Value::Null,
            (Some(file), false) => {
                let mut path = file.path(&context.cwd).as_os_str().as_bytes().to_vec();
                if file.0.ends_with(b"/") && !path.ends_with(b"/") {
                    path.push(b'/');
                }
                Value::String(to_wire(&path))
            }
            (None, false) => {
                let mut path = context.cwd.as_os_str().as_bytes().to_vec();
                path.push(b'/');
                Value::String(to_wire(&path))
            }
        };
        let mut cell = context.running_cell()?;
        let body = object([("id", Value::String(id)), ("to", to), ("add", Value::Bool(self.add))]);
        let outcome = job::run(context, &mut *cell, "/feed/fetch", body)?;
        if self.json {
            writeln!(context.out, "{}", outcome.text)?;
            return Ok(());
        }
        let fetched = outcome.result;
        let from = match fetched.texts("from").join(", ") {
            from if from.is_empty() => String::new(),
            from => format!(" from {}", tidy(&from)),
        };
        let path = show::name(&from_wire(fetched.text("path")));
        writeln!(context.out, "fetched {path} ({}){from}", show::bytes(fetched.number("bytes")))?;
        Ok(())
    }
}

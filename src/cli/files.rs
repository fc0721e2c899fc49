//! Files in, and looking at them: `add`, `ls`, `versions`, `get`, `rm`, `bin`.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use argh::FromArgs;
use miniserde::json::{self, Number, Object, Value};

use super::ask::{Answer, Cell, CliError, Fields, Method, object, object_of, texts};
use super::{Context, Word, job, show, terminal};
use crate::files::unix::{from_wire, to_wire};

/// Entries asked for at once.
const PAGE: &str = "1000";
/// Pages of a list, at most: a cell that never ends its list is left.
const PAGES_MAX: usize = 100_000;

/// A path in GroveHome as the API takes it. `name` is one below GroveHome, or an absolute path into it; one that
/// begins with `./` or `../` begins where the user is, which must be in GroveHome, too.
pub(super) fn wire_path(context: &Context<'_>, name: &Word) -> Result<String, CliError> {
    let given = Path::new(std::ffi::OsStr::from_bytes(&name.0));
    let home = &context.paths.home;
    let shown = show::name(&name.0);
    let is_from_here = matches!(given.components().next(), Some(Component::CurDir | Component::ParentDir));
    let below = if given.is_absolute() || is_from_here {
        let whole = plain(&context.cwd.join(given));
        let roots = [Some(plain(home)), fs::canonicalize(home).ok()];
        let found = roots.iter().flatten().find_map(|root| whole.strip_prefix(root).ok());
        found.map(Path::to_path_buf).ok_or_else(|| {
            let hint = "name it as `grove ls` does, or by a path into that folder";
            CliError::new(format!("{shown} is not in {}", home.display()), hint)
        })?
    } else {
        given.to_path_buf()
    };
    if below.components().any(|part| matches!(part, Component::ParentDir)) {
        return Err(CliError::new(format!("{shown} leads out of {}", home.display()), ""));
    }
    let names: Vec<&[u8]> = below
        .components()
        .filter_map(|part| if let Component::Normal(name) = part { Some(name.as_bytes()) } else { None })
        .collect();
    Ok(to_wire(&names.join(&b'/')))
}

/// The path without `.` and `..`, by its words alone.
fn plain(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir => {
                plain.pop();
            }
            part => plain.push(part),
        }
    }
    plain
}

/// A path in GroveHome that is not GroveHome itself.
pub(super) fn wire_name(context: &Context<'_>, name: &Word) -> Result<String, CliError> {
    match wire_path(context, name)? {
        path if path.is_empty() => Err(CliError::Usage("name a file or a folder".to_owned())),
        path => Ok(path),
    }
}

/// A word that a shell takes as one.
pub(super) fn shell_word(wire: &str) -> String {
    let shown = show::name(&from_wire(wire));
    let is_plain = |c: char| c.is_alphanumeric() || "/._-+,:@%=".contains(c);
    match shown.starts_with("$'")
        || (!shown.is_empty() && !shown.starts_with('-') && shown.chars().all(is_plain))
    {
        true => shown,
        false => format!("'{}'", shown.replace('\'', "'\\''")),
    }
}

/// All entries of a list that comes in pages; `more` follows the entry whose `key` is told by `after`.
pub(super) fn pages(
    cell: &mut dyn Cell,
    path: &str,
    query: &[(&str, Vec<u8>)],
    key: &str,
    mut take: impl FnMut(Answer, bool) -> Result<Option<String>, CliError>,
) -> Result<(), CliError> {
    let mut after: Option<String> = None;
    for page in 0..PAGES_MAX {
        let mut query = query.to_vec();
        query.push(("limit", PAGE.into()));
        if let Some(after) = &after {
            query.push(("after", after.clone().into_bytes()));
        }
        let answer = cell.ask(Method::Get, path, &query, None)?;
        let is_more = answer.fields.is("more");
        let last = take(answer, page == 0)?;
        if !is_more {
            return Ok(());
        }
        if last.is_none() || last == after {
            break;
        }
        after = last;
    }
    Err(CliError::new(
        format!("the cell's list does not go on after the last {key}"),
        "see what the running cell logs",
    ))
}

/// Prints all pages as one JSON object of `entries`.
fn print_json_pages(
    context: &mut Context<'_>,
    cell: &mut dyn Cell,
    path: &str,
    query: &[(&str, Vec<u8>)],
    key: &str,
) -> Result<(), CliError> {
    let out = &mut *context.out;
    let mut is_first_entry = true;
    write!(out, "{{\"entries\":[")?;
    pages(cell, path, query, key, |answer, _| {
        let mut last = None;
        let Some(Value::Array(entries)) = answer.fields.0.get("entries") else { return Ok(None) };
        for entry in entries {
            let comma = if is_first_entry { "" } else { "," };
            is_first_entry = false;
            write!(out, "{comma}{}", json::to_string(entry))?;
            if let Value::Object(object) = entry {
                last = Some(key_of(object, key));
            }
        }
        Ok(last)
    })?;
    writeln!(out, "],\"more\":false}}")?;
    Ok(())
}

fn key_of(object: &Object, key: &str) -> String {
    match object.get(key) {
        Some(Value::String(text)) => text.clone(),
        _ => String::new(),
    }
}

/// keep files and folders: those outside GroveHome are copied into it
#[derive(FromArgs, Debug, PartialEq)]
#[argh(subcommand, name = "add", help_triggers("-h", "--help"))]
pub struct Add {
    /// files and folders
    #[argh(positional, arg_name = "path")]
    paths: Vec<Word>,
    /// folder of GroveHome that they go to (default: GroveHome itself)
    #[argh(option, arg_name = "folder")]
    to: Option<Word>,
    /// print the JSON of the API
    #[argh(switch)]
    json: bool,
}

impl Add {
    pub(super) fn run(self, context: &mut Context<'_>) -> Result<(), CliError> {
        if self.paths.is_empty() {
            return Err(CliError::Usage("say what to add: `grove add PATH…`".to_owned()));
        }
        let to = match &self.to {
            Some(to) => wire_path(context, to)?,
            None => String::new(),
        };
        let paths = self.paths.iter().map(|path| to_wire(path.path(&context.cwd).as_os_str().as_bytes()));
        let body = object([("paths", texts(paths)), ("to", Value::String(to))]);
        let mut cell = context.cell()?;
        let mut outcome = job::run(context, &mut *cell, "/add", body)?;
        let problems = outcome.result.list("problems");
        if self.json {
            writeln!(context.out, "{}", outcome.text)?;
        } else {
            let result = &outcome.result;
            let files = show::of(result.number("files"), "file", "files");
            write!(context.out, "kept {files} ({})", show::bytes(result.number("bytes")))?;
            if result.number("folders") > 0 {
                write!(context.out, ", {}", show::of(result.number("folders"), "folder", "folders"))?;
            }
            writeln!(context.out, ", {} unchanged", show::count(result.number("unchanged")))?;
        }
        context.out.flush()?;
        job::tell_problems(context, &problems)
    }
}

/// list a folder of GroveHome
#[derive(FromArgs, Debug, PartialEq)]
#[argh(
    subcommand,
    name = "ls",
    help_triggers("-h", "--help"),
    note = "Before the name stand mode, copies, size and time. `~` marks what is with peers but not on this machine, `?` \
            what a recovery has not brought back yet."
)]
pub struct Ls {
    /// folder (default: GroveHome itself)
    #[argh(positional, arg_name = "folder")]
    folder: Option<Word>,
    /// print the JSON of the API
    #[argh(switch)]
    json: bool,
}

impl Ls {
    pub(super) fn run(self, context: &mut Context<'_>) -> Result<(), CliError> {
        let folder = match &self.folder {
            Some(folder) => wire_path(context, folder)?,
            None => String::new(),
        };
        let mut cell = context.cell()?;
        let query = [("folder", folder.into_bytes())];
        if self.json {
            return print_json_pages(context, &mut *cell, "/files", &query, "name");
        }
        let (out, mut awaits) = (&mut *context.out, (false, false));
        pages(&mut *cell, "/files", &query, "name", |mut answer, _| {
            let entries = answer.fields.list("entries");
            let rows: Vec<Vec<String>> = entries.iter().map(|entry| row(entry, &mut awaits)).collect();
            out.write_all(show::table(&rows, &[1, 2]).as_bytes())?;
            Ok(entries.last().map(|entry| entry.text("name").to_owned()))
        })?;
        if context.terminals.out {
            for (is_there, mark) in
                [(awaits.0, "~ with peers, not on this machine"), (awaits.1, "? not brought back yet")]
            {
                if is_there {
                    writeln!(context.out, "{mark}")?;
                }
            }
        }
        Ok(())
    }
}

fn row(entry: &Fields, awaits: &mut (bool, bool)) -> Vec<String> {
    let kind = entry.text("kind");
    let mark = match entry.text("state") {
        "remote-only" => {
            awaits.0 = true;
            "~"
        }
        "awaiting" => {
            awaits.1 = true;
            "?"
        }
        _ => " ",
    };
    let copies = entry
        .some("copies")
        .filter(|_| kind != "folder")
        .map_or("-".to_owned(), |copies| format!("{copies}x"));
    let size = if kind == "folder" { "-".to_owned() } else { show::bytes(entry.number("size")) };
    let time = entry.signed("mtime_s").map_or("-".to_owned(), show::time);
    let slash = if kind == "folder" { "/" } else { "" };
    let name = show::name(&from_wire(entry.text("name")));
    vec![show::mode(kind, entry.number("mode")), copies, size, format!("{time} {mark} {name}{slash}")]
}

/// list the kept versions of a file, the newest first
#[derive(FromArgs, Debug, PartialEq)]
#[argh(subcommand, name = "versions", help_triggers("-h", "--help"))]
pub struct Versions {
    /// file or folder, as `grove ls` names it
    #[argh(positional)]
    name: Option<Word>,
    /// a file by its id, as `grove bin` shows it
    #[argh(option, arg_name = "id")]
    id: Option<Word>,
    /// print the JSON of the API
    #[argh(switch)]
    json: bool,
}

impl Versions {
    pub(super) fn run(self, context: &mut Context<'_>) -> Result<(), CliError> {
        let query = match (&self.name, &self.id) {
            (Some(name), None) => [("path", wire_name(context, name)?.into_bytes())],
            (None, Some(id)) => [("id", id.0.clone())],
            _ => return Err(CliError::Usage("name one file, or give its --id".to_owned())),
        };
        let mut cell = context.cell()?;
        let mut answer = cell.ask(Method::Get, "/versions", &query, None)?;
        if self.json {
            writeln!(context.out, "{}", answer.text)?;
            return Ok(());
        }
        let versions = answer.fields.list("versions");
        let has_lives = versions.iter().any(|version| version.number("life") != versions[0].number("life"));
        let rows: Vec<Vec<String>> = versions
            .iter()
            .map(|version| {
                let mut marks = Vec::new();
                if version.is("current") {
                    marks.push("current".to_owned());
                }
                if version.is("tombstone") {
                    marks.push("deleted".to_owned());
                }
                if has_lives {
                    marks.push(format!("life {}", version.number("life")));
                }
                let size = match version.is("tombstone") {
                    true => "-".to_owned(),
                    false => show::bytes(version.number("size")),
                };
                let time = version.signed("mtime_s").map_or("-".to_owned(), show::time);
                vec![version.number("version").to_string(), time, size, marks.join(", ")]
            })
            .collect();
        context.out.write_all(show::table(&rows, &[0, 2]).as_bytes())?;
        Ok(())
    }
}

/// get the content of a file, now or in an earlier version
#[derive(FromArgs, Debug, PartialEq)]
#[argh(
    subcommand,
    name = "get",
    help_triggers("-h", "--help"),
    note = "Without -o the content goes to the pipe or file that the output goes to. A file that exists is not replaced."
)]
pub struct Get {
    /// file, as `grove ls` names it
    #[argh(positional)]
    pub(super) name: Word,
    /// file to write, or folder to write into; - for the output
    #[argh(option, short = 'o', arg_name = "file")]
    out: Option<Word>,
    /// which version, as `grove versions` numbers them (default: the newest)
    #[argh(option, arg_name = "number")]
    version: Option<u64>,
}

impl Get {
    pub(super) fn run(self, context: &mut Context<'_>) -> Result<(), CliError> {
        let name = wire_name(context, &self.name)?;
        let mut query = vec![("path", name.clone().into_bytes())];
        if let Some(version) = self.version {
            query.push(("version", version.to_string().into_bytes()));
        }
        let out = self.out.as_ref().filter(|out| out.0 != b"-");
        let Some(out) = out else {
            if self.out.is_none() && context.terminals.out {
                let hint = "write it to a file with -o FILE, or to the terminal with -o -";
                return Err(CliError::new("the content of a file could upset the terminal", hint));
            }
            let mut cell = context.cell()?;
            cell.stream("/content", &query, context.out)?;
            return Ok(());
        };
        let mut path = out.path(&context.cwd);
        if out.0.ends_with(b"/") || path.is_dir() {
            let name = from_wire(&name);
            let base = name.rsplit(|c| *c == b'/').next().unwrap_or(&name).to_vec();
            path.push(std::ffi::OsStr::from_bytes(&base));
        }
        if fs::symlink_metadata(&path).is_ok() {
            return Err(exists(&path));
        }
        let mut cell = context.cell()?;
        let bytes = write_new(&path, |file| cell.stream("/content", &query, file))?;
        if context.terminals.err {
            let _ =
                writeln!(context.err, "{}: {}", show::name(path.as_os_str().as_bytes()), show::bytes(bytes));
        }
        Ok(())
    }
}

fn exists(path: &Path) -> CliError {
    CliError::new(
        format!("{} exists already", show::name(path.as_os_str().as_bytes())),
        "choose another name with -o",
    )
}

/// Makes a file that is whole or not there.
fn write_new(
    path: &Path,
    write: impl FnOnce(&mut dyn Write) -> Result<u64, CliError>,
) -> Result<u64, CliError> {
    let doing = || CliError::io(format!("writing {}", show::name(path.as_os_str().as_bytes())));
    // A name of its own, short, since that of the file may be as long as a name can be.
    let temp = path.with_file_name(format!(".grove-get-{}", crate::id::hex(&crate::keys::random::<8>())));
    let mut file = OpenOptions::new().write(true).create_new(true).open(&temp).map_err(doing())?;
    let written = write(&mut file).and_then(|bytes| {
        file.sync_all().map_err(doing())?;
        put(&temp, path).map_err(|why| match why.kind() {
            io::ErrorKind::AlreadyExists => exists(path),
            _ => doing()(why),
        })?;
        Ok(bytes)
    });
    if written.is_err() {
        let _ = fs::remove_file(&temp);
    }
    written
}

/// Renames, and never replaces.
fn put(from: &Path, to: &Path) -> io::Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // Not every file system can.
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) if fs::symlink_metadata(to).is_err() => {
            fs::rename(from, to)
        }
        done => Ok(done?),
    }
}

/// move files and folders to the Recycle Bin, on all cells
#[derive(FromArgs, Debug, PartialEq)]
#[argh(subcommand, name = "rm", help_triggers("-h", "--help"))]
pub struct Rm {
    /// files and folders, as `grove ls` names them
    #[argh(positional, arg_name = "name")]
    names: Vec<Word>,
    /// only free this machine's space: peers keep the files, and `grove restore` brings them back
    #[argh(switch)]
    local: bool,
    /// do not ask before most of all files go: it is meant
    #[argh(switch)]
    yes: bool,
    /// print the JSON of the API, a line for each name
    #[argh(switch)]
    json: bool,
}

impl Rm {
    pub(super) fn run(self, context: &mut Context<'_>) -> Result<(), CliError> {
        if self.names.is_empty() {
            return Err(CliError::Usage("say what to remove: `grove rm NAME…`".to_owned()));
        }
        let paths: Vec<String> =
            self.names.iter().map(|name| wire_name(context, name)).collect::<Result<_, _>>()?;
        let mut cell = context.cell()?;
        // What was confirmed and has not gone yet: no more than that goes.
        let mut left = None;
        if !self.local && (self.yes || context.terminals.input) {
            let told = Weighed::of(&mut *cell, &paths)?;
            if told.pulls_brake {
                if !self.yes && !terminal::ask_yes(&told.question(), context.input, context.err)? {
                    writeln!(context.err, "nothing was removed")?;
                    return Err(CliError::Told);
                }
                left = Some((told.files, told.bytes));
            }
        }
        for path in paths {
            let mut body = vec![("path", Value::String(path.clone())), ("local", Value::Bool(self.local))];
            if let Some((files, bytes)) = left {
                body.push(("confirmed", Value::Bool(true)));
                body.push(("files", Value::Number(Number::U64(files))));
                body.push(("bytes", Value::Number(Number::U64(bytes))));
            }
            let body = object_of(body);
            let answer = cell.ask(Method::Post, "/rm", &[], Some(body))?;
            if let Some((files, bytes)) = &mut left {
                *files = files.saturating_sub(answer.fields.number("files"));
                *bytes = bytes.saturating_sub(answer.fields.number("bytes"));
            }
            if self.json {
                writeln!(context.out, "{}", answer.text)?;
                continue;
            }
            let files = show::of(answer.fields.number("files"), "file", "files");
            let amount = format!("{files}, {}", show::bytes(answer.fields.number("bytes")));
            let (shown, word) = (show::name(&from_wire(&path)), shell_word(&path));
            match self.local {
                true => writeln!(context.out, "freed {shown} here ({amount}); peers keep it")?,
                false => writeln!(context.out, "moved {shown} to the Recycle Bin ({amount})")?,
            }
            writeln!(context.out, "to bring it back: grove restore {word}")?;
            context.out.flush()?;
        }
        Ok(())
    }
}

/// What would be removed.
struct Weighed {
    files: u64,
    bytes: u64,
    all_files: u64,
    pulls_brake: bool,
}

impl Weighed {
    fn of(cell: &mut dyn Cell, paths: &[String]) -> Result<Self, CliError> {
        let mut sum = Self { files: 0, bytes: 0, all_files: 0, pulls_brake: false };
        for some in paths.chunks(1000) {
            let names = some.iter().map(|path| Value::String(path.clone())).collect();
            let body = object([
                ("paths", Value::Array(names)),
                ("files", Value::Number(Number::U64(sum.files))),
                ("bytes", Value::Number(Number::U64(sum.bytes))),
            ]);
            let told = cell.ask(Method::Post, "/weigh", &[], Some(body))?.fields;
            sum = Self {
                files: told.number("files"),
                bytes: told.number("bytes"),
                all_files: told.number("all_files"),
                pulls_brake: told.is("pulls_brake"),
            };
        }
        Ok(sum)
    }

    /// What to ask before so many files go that the brake would be pulled.
    fn question(&self) -> String {
        let files = show::of(self.files, "file", "files");
        format!("This removes {files} of {}, {}. Go on?", self.all_files, show::bytes(self.bytes))
    }
}

/// list the Recycle Bin
#[derive(FromArgs, Debug, PartialEq)]
#[argh(
    subcommand,
    name = "bin",
    help_triggers("-h", "--help"),
    note = "`grove restore NAME` brings a file back; `grove restore --id ID` tells apart files of one name."
)]
pub struct Bin {
    /// print the JSON of the API
    #[argh(switch)]
    json: bool,
}

impl Bin {
    pub(super) fn run(self, context: &mut Context<'_>) -> Result<(), CliError> {
        let mut cell = context.cell()?;
        if self.json {
            return print_json_pages(context, &mut *cell, "/bin", &[], "id");
        }
        let (out, mut is_empty) = (&mut *context.out, true);
        pages(&mut *cell, "/bin", &[], "id", |mut answer, _| {
            let entries = answer.fields.list("entries");
            is_empty &= entries.is_empty();
            let rows: Vec<Vec<String>> = entries
                .iter()
                .map(|entry| {
                    let (folder, name) = (from_wire(entry.text("folder")), from_wire(entry.text("name")));
                    let path = if folder.is_empty() { name } else { [folder, name].join(&b'/') };
                    let ago = format!("{} ago", show::duration(entry.number("deleted_s_ago")));
                    vec![
                        show::text(entry.text("id")),
                        ago,
                        show::bytes(entry.number("size")),
                        show::name(&path),
                    ]
                })
                .collect();
            out.write_all(show::table(&rows, &[1, 2]).as_bytes())?;
            Ok(entries.last().map(|entry| entry.text("id").to_owned()))
        })?;
        if is_empty {
            writeln!(context.out, "The Recycle Bin is empty.")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::testing::Setup;

    const DONE: &str = r#"{"id":1,"state":"done","result":{"files":12345,"bytes":1288490189,"unchanged":3,"folders":0,"problems":[]}}"#;

    #[test]
    fn add_sends_whole_paths_and_sums_up() {
        let setup = Setup::new();
        setup.fake.answer("POST /add", r#"{"job":1}"#);
        setup.fake.answer(
            "GET /jobs/1",
            r#"{"id":1,"state":"running","text":"x","done":1,"total":2,"unit":"files"}"#,
        );
        setup.fake.answer("GET /jobs/1", DONE);
        let told = setup.grove_bytes(&[b"add", b"rel/na\xefve", b"/abs%", b"--to", b"Pictures"], "");
        assert_eq!((told.code, told.err.as_str()), (0, ""), "{told:?}");
        assert_eq!(told.out, "kept 12,345 files (1.2 GiB), 3 unchanged\n");
        let cwd = setup.dir.path().display();
        assert_eq!(
            setup.fake.told.borrow()[0],
            format!(r#"POST /add {{"paths":["{cwd}/rel/na%EFve","/abs%25"],"to":"Pictures"}}"#)
        );
        assert_eq!(setup.fake.told.borrow()[1], "GET /jobs/1 wait_ms=500");
    }

    #[test]
    fn add_names_every_problem_and_fails() {
        let setup = Setup::new();
        setup.fake.answer("POST /add", r#"{"job":1}"#);
        let result = r#"{"files":1,"bytes":2,"unchanged":0,"problems":[{"path":"a/b%0A","why":"permission denied"},{"path":"c","why":"gone"}]}"#;
        setup.fake.answer("GET /jobs/1", &format!(r#"{{"state":"done","result":{result}}}"#));
        let told = setup.grove("add a", "");
        assert_eq!(told.code, 1);
        assert_eq!(told.err, "grove: $'a/b\\n': permission denied\ngrove: c: gone\n");
        assert_eq!(told.out, "kept 1 file (2 B), 0 unchanged\n");
    }

    #[test]
    fn failed_job_says_why() {
        let setup = Setup::new();
        setup.fake.answer("POST /add", r#"{"job":1}"#);
        setup.fake.answer(
            "GET /jobs/1",
            r#"{"state":"failed","error":{"code":"full","message":"The disk is full.","hint":"Free some."}}"#,
        );
        let told = setup.grove("add a", "");
        assert_eq!((told.code, told.err.as_str()), (1, "grove: The disk is full.\nFree some.\n"));
    }

    #[test]
    fn ls_goes_through_all_pages() {
        let setup = Setup::new();
        let entry = |name: &str, kind: &str, state: &str| {
            format!(
                r#"{{"name":"{name}","kind":"{kind}","size":1536,"mtime_s":0,"mode":420,"state":"{state}","copies":2}}"#
            )
        };
        let page = |entries: &[String], more: bool| {
            format!(r#"{{"entries":[{}],"more":{more}}}"#, entries.join(","))
        };
        let first = page(&[entry("a%1B[2J", "file", "present"), entry("b", "folder", "present")], true);
        let second = page(&[entry("c", "symlink", "remote-only")], false);
        for _ in 0..2 {
            setup.fake.answer("GET /files", &first);
            setup.fake.answer("GET /files", &second);
        }
        let told = setup.grove("ls some/./folder/", "");
        assert_eq!(told.code, 0, "{told:?}");
        let lines: Vec<&str> = told.out.lines().collect();
        assert!(
            lines[0].starts_with("-rw-r--r--  2x  1.5 KiB  19") && lines[0].ends_with(" $'a\\x1b[2J'"),
            "{}",
            told.out
        );
        assert!(
            lines[1].starts_with("drw-r--r--   -        -  ") && lines[1].ends_with(" b/"),
            "{}",
            told.out
        );
        assert!(lines[2].starts_with("lrw-r--r--  2x") && lines[2].ends_with(" ~ c"), "{}", told.out);
        assert_eq!(setup.fake.told.borrow()[0], "GET /files folder=some/folder limit=1000");
        assert_eq!(setup.fake.told.borrow()[1], "GET /files folder=some/folder limit=1000 after=b");
        let json = setup.grove("ls --json", "").out;
        let mut answer = Answer::read(json).unwrap();
        assert_eq!(answer.fields.list("entries").len(), 3);
    }

    #[test]
    fn list_that_never_ends_is_left() {
        let setup = Setup::new();
        for _ in 0..3 {
            setup.fake.answer("GET /files", r#"{"entries":[{"name":"a","kind":"file"}],"more":true}"#);
        }
        assert_eq!(setup.grove("ls", "").code, 1);
    }

    #[test]
    fn names_are_found_in_home() {
        let setup = Setup::new();
        let home = setup.dir.path().join("home");
        fs::create_dir(home.join("Pictures")).unwrap();
        for _ in 0..4 {
            setup.fake.answer("GET /versions", r#"{"versions":[]}"#);
        }
        for name in ["Pictures/cat.jpg", "Pictures//./cat.jpg", "./home/x/../Pictures/cat.jpg"] {
            assert_eq!(setup.grove(&format!("versions {name}"), "").code, 0, "{name}");
            assert_eq!(setup.fake.told.borrow().last().unwrap(), "GET /versions path=Pictures/cat.jpg");
        }
        let absolute = home.join("Pictures/cat.jpg");
        assert_eq!(setup.grove(&format!("versions {}", absolute.display()), "").code, 0);
        for (name, code) in [("/etc/passwd", 1), ("a/../../b", 1), ("./x", 1), (".", 1), ("/", 1)] {
            assert_eq!(setup.grove(&format!("versions {name}"), "").code, code, "{name}");
        }
        assert_eq!(setup.grove("versions", "").code, 2);
    }

    #[test]
    fn versions_are_a_table() {
        let setup = Setup::new();
        setup.fake.answer(
            "GET /versions",
            r#"{"versions":[{"version":3,"life":2,"size":0,"mtime_s":0,"tombstone":true,"current":true},{"version":2,"life":1,"size":2048,"mtime_s":0}]}"#,
        );
        let told = setup.grove("versions a", "");
        let lines: Vec<&str> = told.out.lines().collect();
        assert!(lines[0].starts_with("3  ") && lines[0].ends_with("-  current, deleted, life 2"), "{told:?}");
        assert!(lines[1].ends_with("2.0 KiB  life 1"), "{told:?}");
    }

    #[test]
    fn get_writes_whole_files_and_replaces_none() {
        let setup = Setup::new();
        setup.fake.bytes.borrow_mut().extend([
            Some(b"content".to_vec()),
            None,
            Some(b"content".to_vec()),
            Some(b"\x1b".to_vec()),
        ]);
        assert_eq!(setup.grove("get d/a -o out --version 3", "").code, 0);
        let out = setup.dir.path().join("out");
        assert_eq!(fs::read(&out).unwrap(), b"content");
        assert_eq!(setup.fake.told.borrow()[0], "STREAM /content path=d/a version=3");
        let told = setup.grove("get d/a -o out", "");
        assert!(told.code == 1 && told.err.contains("exists already"), "{told:?}");
        // Breaks off: no file, and no part of one.
        assert_eq!(setup.grove("get d/a -o other", "").code, 1);
        assert_eq!(setup.grove("get d/name -o .", "").code, 0);
        let mut names: Vec<_> =
            fs::read_dir(setup.dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["home", "name", "out", "state"]);
        assert_eq!(setup.grove("get d/a", "").out, "\x1b");
    }

    #[test]
    fn get_spares_the_terminal() {
        let mut setup = Setup::new();
        setup.terminals.out = true;
        let told = setup.grove("get a", "");
        assert!(told.code == 1 && told.err.contains("-o -"), "{told:?}");
        setup.fake.bytes.borrow_mut().push_back(Some(b"text".to_vec()));
        assert_eq!(setup.grove("get a -o -", "").out, "text");
    }

    #[test]
    fn rm_says_how_to_undo() {
        let setup = Setup::new();
        setup.fake.answer("POST /rm", r#"{"files":3,"bytes":1024}"#);
        setup.fake.answer("POST /rm", r#"{"files":1,"bytes":0}"#);
        let told = setup.grove_bytes(&[b"rm", b"it's here/", b"b\xff"], "");
        assert_eq!(told.code, 0, "{told:?}");
        let lines: Vec<&str> = told.out.lines().collect();
        assert_eq!(lines[0], "moved it's here to the Recycle Bin (3 files, 1.0 KiB)");
        assert_eq!(lines[1], "to bring it back: grove restore 'it'\\''s here'");
        assert_eq!(lines[3], "to bring it back: grove restore $'b\\xff'");
        assert_eq!(setup.fake.told.borrow()[0], r#"POST /rm {"local":false,"path":"it's here"}"#);
        assert_eq!(setup.grove("rm", "").code, 2);
        assert_eq!(setup.grove("rm ..", "").code, 1);
    }

    #[test]
    fn rm_asks_once_before_most_files_go() {
        let mut setup = Setup::new();
        let many = r#"{"files":260,"bytes":2048,"all_files":300,"pulls_brake":true}"#;
        // Nobody sits there: the brake will ask.
        setup.fake.answer("POST /rm", r#"{"files":260,"bytes":2048}"#);
        assert_eq!(setup.grove("rm a", "").code, 0);
        setup.terminals.input = true;
        let few = r#"{"files":1,"bytes":8,"all_files":300,"pulls_brake":false}"#;
        [many, many, few, many].into_iter().for_each(|told| setup.fake.answer("POST /weigh", told));
        let told = setup.grove("rm a b", "n\n");
        assert!(
            told.code == 1 && told.err.contains("This removes 260 files of 300, 2.0 KiB. Go on? [y/N]"),
            "{told:?}"
        );
        assert_eq!(setup.grove("rm a", "y\n").code, 0);
        assert_eq!(setup.grove("rm a", "").code, 0);
        assert_eq!(setup.grove("rm --yes a", "").code, 0);
        assert_eq!(
            *setup.fake.told.borrow(),
            [
                r#"POST /rm {"local":false,"path":"a"}"#,
                r#"POST /weigh {"bytes":0,"files":0,"paths":["a","b"]}"#,
                r#"POST /weigh {"bytes":0,"files":0,"paths":["a"]}"#,
                r#"POST /rm {"bytes":2048,"confirmed":true,"files":260,"local":false,"path":"a"}"#,
                r#"POST /weigh {"bytes":0,"files":0,"paths":["a"]}"#,
                r#"POST /rm {"local":false,"path":"a"}"#,
                r#"POST /weigh {"bytes":0,"files":0,"paths":["a"]}"#,
                r#"POST /rm {"bytes":2048,"confirmed":true,"files":260,"local":false,"path":"a"}"#,
            ]
        );
    }

    #[test]
    fn rm_takes_no_more_than_was_confirmed_for_all_names_together() {
        let mut setup = Setup::new();
        setup.terminals.input = true;
        setup.fake.answer("POST /weigh", r#"{"files":260,"bytes":2048,"all_files":300,"pulls_brake":true}"#);
        setup.fake.answer("POST /rm", r#"{"files":200,"bytes":1000}"#);
        setup.fake.answer("POST /rm", r#"{"files":60,"bytes":1048}"#);
        assert_eq!(setup.grove("rm a b", "y\n").code, 0);
        assert_eq!(
            setup.fake.told.borrow()[1..],
            [
                r#"POST /rm {"bytes":2048,"confirmed":true,"files":260,"local":false,"path":"a"}"#,
                r#"POST /rm {"bytes":1048,"confirmed":true,"files":60,"local":false,"path":"b"}"#,
            ]
        );
    }

    #[test]
    fn bin_is_listed() {
        let setup = Setup::new();
        setup.fake.answer("GET /bin", r#"{"entries":[],"more":false}"#);
        assert_eq!(setup.grove("bin", "").out, "The Recycle Bin is empty.\n");
        setup.fake.answer("GET /bin", r#"{"entries":[{"id":"ab12","name":"n","folder":"f","deleted_s_ago":3600,"size":5}],"more":false}"#);
        assert_eq!(setup.grove("bin", "").out, "ab12  1 h ago  5 B  f/n\n");
    }
}

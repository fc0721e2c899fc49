//! Back from the store: `restore`, `verify`, `confirm`.

use std::os::unix::ffi::OsStrExt;

use argh::FromArgs;
use miniserde::json::{Number, Value};

use super::ask::{Cell, CliError, Fields, Method, number_or_null, object, text_or_null};
use super::files::wire_name;
use super::{Context, Word, job, show, terminal};
use crate::files::unix::{from_wire, to_wire};

/// Paths that are printed; the rest is counted.
const PATHS_SHOWN_MAX: usize = 1000;

/// bring back files: deleted ones, earlier versions, or everything
#[derive(FromArgs, Debug, PartialEq)]
#[argh(
    subcommand,
    name = "restore",
    help_triggers("-h", "--help"),
    note = "A file that was changed since is not replaced: what is restored comes to lie beside it."
)]
pub struct Restore {
    /// file or folder, as `grove ls` or `grove bin` names it
    #[argh(positional)]
    name: Option<Word>,
    /// everything
    #[argh(switch)]
    all: bool,
    /// a file by its id, as `grove bin` shows it
    #[argh(option, arg_name = "id")]
    id: Option<Word>,
    /// which version of the file (default: the newest)
    #[argh(option, arg_name = "number")]
    version: Option<u64>,
    /// folder to restore into, instead of where it was
    #[argh(option, arg_name = "folder")]
    to: Option<Word>,
    /// print the JSON of the API
    #[argh(switch)]
    json: bool,
}

impl Restore {
    pub(super) fn run(self, context: &mut Context<'_>) -> Result<(), CliError> {
        let (path, id) = match (&self.name, &self.id, self.all) {
            (Some(name), None, false) => (Some(wire_name(context, name)?), None),
            (None, Some(id), false) => (None, Some(id.text()?.to_owned())),
            (None, None, true) if self.version.is_none() => (None, None),
            _ => {
                let why = "say what to restore: one name, or --id, or --all (which takes no --version)";
                return Err(CliError::Usage(why.to_owned()));
            }
        };
        let to = self.to.as_ref().map(|to| to_wire(to.path(&context.cwd).as_os_str().as_bytes()));
        let body = object([
            ("path", text_or_null(path)),
            ("id", text_or_null(id)),
            ("version", number_or_null(self.version)),
            ("to", text_or_null(to)),
        ]);
        let mut cell = context.cell()?;
        let mut outcome = job::run(context, &mut *cell, "/restore", body)?;
        let missing = outcome.result.list("missing");
        if self.json {
            writeln!(context.out, "{}", outcome.text)?;
        } else {
            let result = &outcome.result;
            let beside = result.texts("set_aside");
            let sum = ["files", "folders", "unchanged"].map(|key| result.number(key)).iter().sum::<u64>();
            if sum == 0 && beside.is_empty() && missing.is_empty() {
                writeln!(context.out, "nothing to restore: all of it is there")?;
                return Ok(());
            }
            let files = show::of(result.number("files"), "file", "files");
            write!(context.out, "restored {files} ({})", show::bytes(result.number("bytes")))?;
            if result.number("folders") > 0 {
                write!(context.out, ", {}", show::of(result.number("folders"), "folder", "folders"))?;
            }
            writeln!(context.out, ", {} there already", show::count(result.number("unchanged")))?;
            if !beside.is_empty() {
                writeln!(context.out, "beside newer files, which were left as they are:")?;
                write_paths(context, &beside)?;
            }
        }
        context.out.flush()?;
        job::tell_problems(context, &missing)
    }
}

fn write_paths(context: &mut Context<'_>, paths: &[String]) -> Result<(), CliError> {
    for path in paths.iter().take(PATHS_SHOWN_MAX) {
        writeln!(context.out, "  {}", show::name(&from_wire(path)))?;
    }
    if paths.len() > PATHS_SHOWN_MAX {
        writeln!(context.out, "  and {} more", show::count((paths.len() - PATHS_SHOWN_MAX) as u64))?;
    }
    Ok(())
}

/// check what this cell holds, and mend what is damaged
#[derive(FromArgs, Debug, PartialEq)]
#[argh(subcommand, name = "verify", help_triggers("-h", "--help"))]
pub struct Verify {
    /// read every chunk and compare it with its name, instead of looking whether it is there
    #[argh(switch)]
    deep: bool,
    /// ask every connected peer to prove now that it holds what it should, instead of looking here
    #[argh(switch)]
    peers: bool,
    /// print the JSON of the API
    #[argh(switch)]
    json: bool,
}

impl Verify {
    pub(super) fn run(self, context: &mut Context<'_>) -> Result<(), CliError> {
        if self.peers && self.deep {
            return Err(CliError::Usage("--deep looks here, --peers elsewhere: one of them".to_owned()));
        }
        if self.peers {
            let mut cell = context.running_cell()?;
            return self.ask_peers(context, &mut *cell);
        }
        let mut cell = context.cell()?;
        let outcome = job::run(context, &mut *cell, "/verify", object([("deep", Value::Bool(self.deep))]))?;
        let result = &outcome.result;
        let (damaged, repaired, missing) =
            (result.number("damaged"), result.number("repaired"), result.number("missing"));
        let files = result.texts("files");
        let is_sound = missing == 0 && damaged <= repaired && (files.is_empty() || damaged > 0);
        if self.json {
            writeln!(context.out, "{}", outcome.text)?;
            return if is_sound { Ok(()) } else { Err(CliError::Told) };
        }
        let chunks = show::of(result.number("chunks"), "chunk", "chunks");
        writeln!(context.out, "checked {chunks} ({})", show::bytes(result.number("bytes")))?;
        if damaged == 0 && missing == 0 {
            writeln!(context.out, "all are sound")?;
        } else {
            let count = show::count;
            writeln!(
                context.out,
                "{} damaged, {} mended, {} missing",
                count(damaged),
                count(repaired),
                count(missing)
            )?;
        }
        if !files.is_empty() {
            writeln!(context.out, "files that need them:")?;
            write_paths(context, &files)?;
        }
        context.out.flush()?;
        if is_sound {
            return Ok(());
        }
        let hint = "start the cell and its peers, and run `grove sync --wait`: it fetches good copies from whoever has them";
        Err(CliError::new("not everything is sound", hint))
    }

    fn ask_peers(&self, context: &mut Context<'_>, cell: &mut dyn Cell) -> Result<(), CliError> {
        let mut outcome = job::run(context, cell, "/verify", object([("peers", Value::Bool(true))]))?;
        let peers = outcome.result.list("peers");
        let lost = |peer: &Fields| {
            ["missing", "damaged", "false", "given_up"].map(|key| peer.number(key)).iter().sum::<u64>()
        };
        if self.json {
            writeln!(context.out, "{}", outcome.text)?;
        } else if peers.is_empty() {
            writeln!(context.out, "No peers yet. `grove invite` brings one in.")?;
        } else {
            for peer in &peers {
                write_proofs(context, peer)?;
            }
        }
        context.out.flush()?;
        if peers.iter().any(|peer| lost(peer) > 0) {
            let hint = "they are copied again by themselves; `grove sync --wait` says when that is done";
            return Err(CliError::new("not every copy is there", hint));
        }
        if !peers.is_empty() && !peers.iter().any(|peer| peer.is("reached")) {
            return Err(CliError::new(
                "no peer was reached",
                "are they on, and can they be reached from here?",
            ));
        }
        Ok(())
    }
}

/// What one peer has proven, on one line.
fn write_proofs(context: &mut Context<'_>, peer: &Fields) -> Result<(), CliError> {
    let name = show::text(peer.text("name")).replace('\n', " ");
    if !peer.is("reached") {
        writeln!(context.out, "{name}: not reached")?;
        return Ok(());
    }
    write!(context.out, "{name}: has proven {}", show::of(peer.number("proven"), "copy", "copies"))?;
    for (key, what) in [
        ("missing", "missing"),
        ("damaged", "damaged there"),
        ("false", "falsely claimed"),
        ("given_up", "given up"),
        ("unanswered", "not answered for yet"),
    ] {
        let count = peer.number(key);
        if count > 0 {
            write!(context.out, ", {} {what}", show::count(count))?;
        }
    }
    writeln!(context.out, "{}", if peer.is("suspended") { "; it gets nothing new for a day" } else { "" })?;
    Ok(())
}

/// say that many deletions or changes at once were meant
#[derive(FromArgs, Debug, PartialEq)]
#[argh(
    subcommand,
    name = "confirm",
    help_triggers("-h", "--help"),
    note = "When most files are deleted or rewritten within a day, Grove keeps all versions until you have looked. \
            `grove confirm` lets it go on; `grove restore` brings back what was not meant."
)]
pub struct Confirm {
    /// do not ask: it is meant
    #[argh(switch)]
    yes: bool,
    /// print the JSON of the API
    #[argh(switch)]
    json: bool,
}

impl Confirm {
    pub(super) fn run(self, context: &mut Context<'_>) -> Result<(), CliError> {
        let mut cell = context.cell()?;
        let lost = cell.ask(Method::Get, "/status", &[], None)?.fields.part("brake");
        let files = lost.as_ref().map_or(0, |lost| lost.number("files"));
        if let Some(lost) = lost.filter(|_| !self.json) {
            let (were, size) = (show::of(files, "file was", "files were"), show::bytes(lost.number("bytes")));
            writeln!(context.err, "{were} deleted or rewritten ({size}).")?;
            let is_asked = context.terminals.input && !self.yes;
            if is_asked && !terminal::ask_yes("Was that meant?", context.input, context.err)? {
                writeln!(context.err, "nothing was confirmed; `grove restore` brings files back")?;
                return Err(CliError::Told);
            }
        }
        // What comes after this number was told is not meant by it.
        let body = object([("files", Value::Number(Number::U64(files)))]);
        let answer = cell.ask(Method::Post, "/confirm", &[], Some(body))?;
        match (self.json, answer.fields.is("was_on")) {
            (true, _) => writeln!(context.out, "{}", answer.text)?,
            (false, true) => writeln!(
                context.out,
                "Confirmed: the changes were meant, and old versions are thinned out again as usual."
            )?,
            (false, false) => writeln!(context.out, "There is nothing to confirm.")?,
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use crate::cli::testing::Setup;

    fn done(setup: &Setup, path: &str, result: &str) {
        setup.fake.answer(&format!("POST {path}"), r#"{"job":9}"#);
        setup.fake.answer("GET /jobs/9", &format!(r#"{{"state":"done","result":{result}}}"#));
    }

    #[test]
    fn restore_says_what_lies_beside_and_what_is_missing() {
        let setup = Setup::new();
        done(
            &setup,
            "/restore",
            r#"{"files":2,"bytes":10,"unchanged":1,"set_aside":["a (restored)"],"missing":[]}"#,
        );
        let told = setup.grove("restore --all", "");
        assert_eq!(told.code, 0, "{told:?}");
        assert_eq!(
            told.out,
            "restored 2 files (10 B), 1 there already\nbeside newer files, which were left as they are:\n  a (restored)\n"
        );
        assert_eq!(
            setup.fake.told.borrow()[0],
            r#"POST /restore {"id":null,"path":null,"to":null,"version":null}"#
        );
        done(
            &setup,
            "/restore",
            r#"{"files":0,"missing":[{"path":"a","why":"bob has it and is not reached"}]}"#,
        );
        let told = setup.grove("restore a --version 2 --to out", "");
        assert_eq!((told.code, told.err.as_str()), (1, "grove: a: bob has it and is not reached\n"));
        let sent = setup.fake.told.borrow()[2].clone();
        let to = setup.dir.path().join("out");
        assert_eq!(
            sent,
            format!(r#"POST /restore {{"id":null,"path":"a","to":"{}","version":2}}"#, to.display())
        );
        for line in ["restore", "restore a --id b", "restore --all --version 3", "restore a --all"] {
            assert_eq!(setup.grove(line, "").code, 2, "{line}");
        }
    }

    #[test]
    fn verify_of_peers_says_what_each_has_proven_and_fails_while_copies_are_lost() {
        let setup = Setup::new();
        let verify = || super::Verify { deep: false, peers: true, json: false };
        let peer = |rest: &str| {
            format!(
                r#"{{"peers":[{{"name":"attic","reached":true,"proven":53,{rest}"unanswered":0,"suspended":false}}]}}"#
            )
        };
        done(&setup, "/verify", &peer(""));
        let told = setup.with(|context, cell| verify().ask_peers(context, cell));
        assert_eq!((told.code, told.out.as_str()), (0, "attic: has proven 53 copies\n"), "{told:?}");
        done(&setup, "/verify", &peer(r#""damaged":2,"#));
        let told = setup.with(|context, cell| verify().ask_peers(context, cell));
        assert_eq!(told.code, 1, "{told:?}");
        assert_eq!(told.out, "attic: has proven 53 copies, 2 damaged there\n");
        done(&setup, "/verify", r#"{"peers":[{"name":"attic","reached":false}]}"#);
        let told = setup.with(|context, cell| verify().ask_peers(context, cell));
        assert_eq!((told.code, told.out.as_str()), (1, "attic: not reached\n"));
    }

    #[test]
    fn verify_fails_while_something_is_not_sound() {
        let setup = Setup::new();
        for (result, code) in [
            (r#"{"chunks":5,"bytes":9,"damaged":0,"repaired":0,"missing":0,"files":[]}"#, 0),
            (r#"{"chunks":5,"bytes":9,"damaged":2,"repaired":2,"missing":0,"files":["a"]}"#, 0),
            (r#"{"chunks":5,"bytes":9,"damaged":2,"repaired":1,"missing":0,"files":["a"]}"#, 1),
            (r#"{"chunks":5,"bytes":9,"damaged":0,"repaired":0,"missing":1,"files":["a"]}"#, 1),
        ] {
            for line in ["verify --deep", "verify --json"] {
                done(&setup, "/verify", result);
                assert_eq!(setup.grove(line, "").code, code, "{result}");
            }
        }
    }

    #[test]
    fn confirm_says_whether_there_was_something() {
        let setup = Setup::new();
        setup.fake.answer("POST /confirm", r#"{"was_on":true}"#);
        setup.fake.answer("POST /confirm", r#"{"was_on":false}"#);
        setup.fake.answer("GET /status", r#"{"brake":{"files":260,"bytes":2048}}"#);
        setup.fake.answer("GET /status", r#"{"brake":null}"#);
        assert!(setup.grove("confirm", "").out.starts_with("Confirmed"));
        assert!(setup.grove("confirm", "").out.starts_with("There is nothing"));
    }

    #[test]
    fn confirm_asks_on_a_terminal_and_means_no_more_than_it_told() {
        let mut setup = Setup::new();
        setup.terminals.input = true;
        for _ in 0..4 {
            setup.fake.answer("GET /status", r#"{"brake":{"files":260,"bytes":2048}}"#);
        }
        setup.fake.answer("GET /status", r#"{"brake":null}"#);
        setup.fake.answer("POST /confirm", r#"{"was_on":true}"#);
        let told = setup.grove("confirm", "n\n");
        let asked = "260 files were deleted or rewritten (2.0 KiB).\nWas that meant? [y/N]";
        assert!(told.code == 1 && told.err.contains(asked), "{told:?}");
        for (words, said) in
            [("confirm", "y\n"), ("confirm --yes", ""), ("confirm --json", ""), ("confirm", "")]
        {
            assert_eq!(setup.grove(words, said).code, 0);
        }
        let told = setup.fake.told.borrow();
        let posts: Vec<&String> = told.iter().filter(|told| told.starts_with("POST")).collect();
        let (some, none) = (r#"POST /confirm {"files":260}"#, r#"POST /confirm {"files":0}"#);
        assert_eq!(posts, [some, some, some, none]);
    }
}

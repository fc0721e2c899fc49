//! How the cell is: `status`, `doctor`.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use argh::FromArgs;
use miniserde::json::Value;

use super::ask::{CliError, Fields, Holder, Method, holder, lives_in, object, object_value};
use super::{Context, peers, show};
use crate::config::Config;

/// is everything safe, and what needs attention
#[derive(FromArgs, Debug, PartialEq)]
#[argh(subcommand, name = "status", help_triggers("-h", "--help"))]
pub struct Status {
    /// print the JSON of the API
    #[argh(switch)]
    json: bool,
}

impl Status {
    pub(super) fn run(self, context: &mut Context<'_>) -> Result<(), CliError> {
        let mut cell = context.cell()?;
        let mut answer = cell.ask(Method::Get, "/status", &[], None)?;
        match self.json {
            true => writeln!(context.out, "{}", answer.text)?,
            false => write!(context.out, "{}", overview(&mut answer.fields, cell.is_running()))?,
        }
        Ok(())
    }
}

/// The status in words, what matters most first.
fn overview(status: &mut Fields, is_running: bool) -> String {
    let mut lines = Vec::new();
    let part = |status: &mut Fields, key| status.part(key).unwrap_or(Fields(Default::default()));
    let files = part(status, "files");
    let copies = part(status, "copies");
    let (alerts, peers) = (status.list("alerts"), status.list("peers"));

    let all = format!(
        "{} ({})",
        show::of(files.number("count"), "file", "files"),
        show::bytes(files.number("bytes"))
    );
    let (every, are, have, their) = match files.number("count") {
        1 => ("The", "is", "has", "its"),
        _ => ("All", "are", "have", "their"),
    };
    let (short, waiting) = (copies.number("short"), files.number("waiting"));
    lines.push(match () {
        () if files.number("count") == 0 && waiting == 0 => {
            "Nothing is kept yet: put files into GroveHome.".to_owned()
        }
        () if peers.is_empty() => {
            format!("Not safe yet: {all} {are} on this cell only. `grove invite` brings in a second one.")
        }
        () if short > 0 => {
            let wanted = match copies.is("varied") {
                true => "copies".to_owned(),
                false => show::of(copies.number("wanted"), "copy", "copies"),
            };
            // Copies are counted by pieces.
            let pieces = show::of(short, "piece lacks some of its", "pieces lack some of their");
            format!("Not everything is safe yet: of {all}, {pieces} {wanted}.")
        }
        () if waiting > 0 => {
            format!(
                "Not everything is safe yet: {} to be kept still.",
                show::of(waiting, "file is", "files are")
            )
        }
        () if !alerts.is_empty() => {
            format!("{every} {all} {have} {their} copies, but something needs attention.")
        }
        () if copies.number("alone") > 0 => format!("{every} {all} {have} the copies that you want."),
        () => format!("Everything is safe: {all} {have} {their} copies."),
    });
    if copies.number("alone") > 0 {
        let pieces = show::of(copies.number("alone"), "piece is", "pieces are");
        lines.push(format!(
            "! {pieces} kept on this cell only, as their folders say: a broken disk takes them. `grove copies` names the folders."
        ));
    }
    for alert in &alerts {
        let mark = match alert.text("level") {
            "urgent" => "!!",
            "info" => "-",
            _ => "!",
        };
        let since = match alert.number("since_s") {
            0..60 => String::new(),
            seconds => format!(" (for {})", show::duration(seconds)),
        };
        lines.push(format!("{mark} {}{since}", show::text(alert.text("text"))));
        if !alert.text("remedy").is_empty() {
            lines.push(format!("  {}", show::text(alert.text("remedy"))));
        }
    }
    lines.push(String::new());

    let id = status.text("id").get(..16).unwrap_or(status.text("id")).to_owned();
    let running = match is_running {
        true => format!("runs for {}", show::duration(status.number("uptime_s"))),
        false => "is not running (start it with `grove run`)".to_owned(),
    };
    let name = show::text(status.text("name"));
    lines.push(format!("Cell {name} ({}), life {}, {running}.", show::text(&id), status.number("life")));
    lines.push(format!("Keeps {}.", show::text(status.text("home"))));
    let amount = |part: &Fields| {
        format!(
            "{} ({})",
            show::of(part.number("count"), "chunk", "chunks"),
            show::bytes(part.number("bytes"))
        )
    };
    let (chunks, held) = (part(status, "chunks"), part(status, "held"));
    lines.push(format!("Holds {} of its own and {} for peers.", amount(&chunks), amount(&held)));
    let disk = part(status, "disk");
    if disk.number("total") > 0 {
        let [free, total, reserve] = ["free", "total", "reserve"].map(|key| show::bytes(disk.number(key)));
        lines.push(format!("Disk: {free} of {total} free, {reserve} of them held back."));
    }
    if let Some(drill) = status.part("drill") {
        lines.push(drill_line(&drill));
    }
    if let Some(job) = status.part("job") {
        lines.push(format!("At work: {}.", show::text(job.text("text"))));
    }
    if part(status, "scan").is("running") {
        lines.push("Looking through GroveHome for changes.".to_owned());
    }
    let mut text = lines.join("\n") + "\n";
    if !peers.is_empty() {
        text.push('\n');
        text.push_str(&peers::rows(&peers, is_running));
    }
    text
}

fn drill_line(drill: &Fields) -> String {
    let what = format!(
        "Restore drill {} ago: {} ({}) of {} came back from {}",
        show::duration(drill.number("age_s")),
        show::of(drill.number("chunks"), "chunk", "chunks"),
        show::bytes(drill.number("bytes")),
        show::of(drill.number("files"), "file", "files"),
        show::text(&drill.texts("peers").join(", ")).replace('\n', " "),
    );
    if drill.is("ok") {
        format!("{what}, all as they were kept.")
    } else {
        format!("{what}; others did not.")
    }
}

/// try now whether peers could give everything back: a random sample comes from them alone, into memory, and is compared
#[derive(FromArgs, Debug, PartialEq)]
#[argh(
    subcommand,
    name = "drill",
    help_triggers("-h", "--help"),
    note = "At most 32 chunks and 64 MiB of different files are asked for. Nothing is written to the disk. A cell does this by \
            itself every week (drill.days)."
)]
pub struct Drill {
    /// print the JSON of the API
    #[argh(switch)]
    json: bool,
}

impl Drill {
    pub(super) fn run(self, context: &mut Context<'_>) -> Result<(), CliError> {
        let mut cell = context.running_cell()?;
        self.with(context, &mut *cell)
    }

    fn with(&self, context: &mut Context<'_>, cell: &mut dyn super::ask::Cell) -> Result<(), CliError> {
        let mut outcome = super::job::run(context, cell, "/drill", "{}".to_owned())?;
        let drill = &mut outcome.result;
        let failures = drill.list("failures");
        if self.json {
            writeln!(context.out, "{}", outcome.text)?;
            return if failures.is_empty() { Ok(()) } else { Err(CliError::Told) };
        }
        let tidy = |text: &str| show::text(text).replace('\n', " ");
        writeln!(
            context.out,
            "{} ({}) of {} came back from {}; {} compared with what lies here",
            show::of(drill.number("chunks"), "chunk", "chunks"),
            show::bytes(drill.number("bytes")),
            show::of(drill.number("files"), "file", "files"),
            tidy(&drill.texts("peers").join(", ")),
            show::of(drill.number("compared"), "was", "were"),
        )?;
        let unreached = drill.texts("unreached");
        if !unreached.is_empty() {
            writeln!(context.out, "not reached now, so not tried: {}", tidy(&unreached.join(", ")))?;
        }
        if failures.is_empty() {
            writeln!(context.out, "all are as they were kept")?;
            return Ok(());
        }
        for failure in &failures {
            let path = show::name(&crate::files::unix::from_wire(failure.text("path")));
            writeln!(
                context.out,
                "{path} from {}: {}",
                tidy(failure.text("peer")),
                tidy(failure.text("why"))
            )?;
        }
        context.out.flush()?;
        let hint = "bad copies were dropped and are made anew: run `grove sync --wait`, `grove verify --deep`, and `grove drill` again";
        let count = failures.len() as u64;
        Err(CliError::new(format!("{} did not come back", show::of(count, "chunk", "chunks")), hint))
    }
}

/// check that everything a cell needs is in order
#[derive(FromArgs, Debug, PartialEq)]
#[argh(subcommand, name = "doctor", help_triggers("-h", "--help"))]
pub struct Doctor {
    /// print the checks as JSON
    #[argh(switch)]
    json: bool,
    /// take the folder at --home for this cell's own although its marker is gone or another's
    #[argh(switch)]
    adopt_home: bool,
}

/// One line of the doctor.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Check {
    name: String,
    state: String,
    text: String,
    remedy: String,
}

impl Check {
    fn new(name: &str, state: &str, text: impl Into<String>, remedy: &str) -> Self {
        Self { name: name.into(), state: state.into(), text: text.into(), remedy: remedy.into() }
    }
}

impl Doctor {
    pub(super) fn run(self, context: &mut Context<'_>) -> Result<(), CliError> {
        if self.adopt_home {
            let mut cell = context.cell()?;
            let answer = cell.ask(Method::Post, "/doctor/adopt-home", &[], Some("{}".to_owned()))?;
            match self.json {
                true => writeln!(context.out, "{}", answer.text)?,
                false => writeln!(context.out, "{} is this cell's own now.", context.paths.home.display())?,
            }
            return Ok(());
        }
        let mut checks = outside(context);
        if lives_in(&context.paths.dir) {
            match context.cell().and_then(|mut cell| cell.ask(Method::Get, "/doctor", &[], None)) {
                Ok(mut answer) => {
                    let told = answer.fields.list("checks");
                    let told = told.iter().map(|check| {
                        let [name, state, text, remedy] =
                            ["name", "state", "text", "remedy"].map(|key| check.text(key));
                        Check::new(name, state, text, remedy)
                    });
                    // What both have looked at and found in order is told once.
                    let is_new = |check: &Check| {
                        check.state != "ok" || checks.iter().all(|seen| seen.name != check.name)
                    };
                    let told: Vec<Check> = told.filter(is_new).collect();
                    checks.extend(told);
                }
                // A cell that cannot be opened is what the doctor is for.
                Err(CliError::Failed { message, hint }) => {
                    checks.push(Check::new("open", "fail", message, &hint))
                }
                Err(error) => return Err(error),
            }
        }
        let has_failed = checks.iter().any(|check| check.state == "fail");
        match self.json {
            true => writeln!(context.out, "{}", to_json(&checks))?,
            false => write!(context.out, "{}", to_text(&checks))?,
        }
        if has_failed { Err(CliError::Told) } else { Ok(()) }
    }
}

/// What can be seen without opening the cell.
fn outside(context: &Context<'_>) -> Vec<Check> {
    let dir = &context.paths.dir;
    if !lives_in(dir) {
        let text = format!("no cell lives in {}", dir.display());
        return vec![Check::new(
            "cell",
            "fail",
            text,
            "make one with `grove init`, or name its folder with --dir",
        )];
    }
    let mut checks = vec![Check::new("cell", "ok", format!("a cell lives in {}", dir.display()), "")];
    for (path, mode) in [(dir.clone(), 0o700), (dir.join(".key"), 0o600), (dir.join("peer_secret"), 0o600)] {
        let Ok(found) = fs::metadata(&path) else { continue };
        if found.permissions().mode() & 0o077 != 0 {
            let text = format!("others on this machine may read {}", path.display());
            checks.push(Check::new("secrets", "fail", text, &format!("chmod {mode:o} {}", path.display())));
        }
    }
    if checks.len() == 1 {
        checks.push(Check::new("secrets", "ok", "only this user can read the secrets", ""));
    }
    checks.push(match Config::load(&dir.join("config.json")) {
        Ok(Ok(config)) if config.unknown.is_empty() => {
            Check::new("settings", "ok", "config.json makes sense", "")
        }
        Ok(Ok(config)) => {
            let text = format!(
                "config.json has settings that this version does not know: {}",
                config.unknown.join(", ")
            );
            Check::new("settings", "warn", text, "look for a slip of the pen")
        }
        Ok(Err(why)) => Check::new("settings", "fail", why.to_string(), ""),
        Err(why) => Check::new("settings", "fail", format!("config.json cannot be read: {why}"), ""),
    });
    checks.push(match holder(dir) {
        Ok(Holder::Cell(port)) => {
            Check::new("running", "ok", format!("the cell runs, its dashboard on port {port}"), "")
        }
        Ok(Holder::Nobody) => {
            Check::new("running", "warn", "the cell is not running", "start it with `grove run`")
        }
        Err(_) => Check::new(
            "running",
            "warn",
            "another command is at work with the cell",
            "try again when it is done",
        ),
    });
    checks
}

fn to_text(checks: &[Check]) -> String {
    let width = checks.iter().map(|check| show::width(&check.name)).max().unwrap_or(0);
    let mut text = String::new();
    for check in checks {
        let line = format!("{:<4}  {:width$}  {}", check.state, check.name, check.text);
        text.push_str(&format!("{}\n", show::text(&line).replace('\n', " ")));
        if check.state != "ok" && !check.remedy.is_empty() {
            text.push_str(&format!(
                "{:6}{:width$}  {}\n",
                "",
                "",
                show::text(&check.remedy).replace('\n', " ")
            ));
        }
    }
    text
}

fn to_json(checks: &[Check]) -> String {
    let checks = checks.iter().map(|check| {
        let fields = [
            ("name", &check.name),
            ("state", &check.state),
            ("text", &check.text),
            ("remedy", &check.remedy),
        ];
        object_value(fields.map(|(key, text)| (key, Value::String(text.clone()))).into())
    });
    object([("checks", Value::Array(checks.collect()))])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::testing::{Fake, Setup, grove};

    fn status(peers: &str, short: u64, waiting: u64, alerts: &str) -> String {
        format!(
            r#"{{"name":"ann","id":"{}","life":1,"home":"/h","alerts":[{alerts}],"files":{{"count":345,"bytes":1073741824,"waiting":{waiting}}},"chunks":{{"count":1,"bytes":5}},"held":{{"count":0,"bytes":0}},"disk":{{"total":100,"free":50,"reserve":5}},"peers":[{peers}],"copies":{{"wanted":2,"full":0,"short":{short}}},"job":null,"scan":{{"running":false}}}}"#,
            "ab".repeat(32)
        )
    }

    #[test]
    fn what_folders_keep_on_this_cell_only_is_not_called_safe() {
        let bob = r#"{"name":"bob","id":"cd","role":"peer","online":true,"last_seen_s":5}"#;
        let text = status(bob, 0, 0, "").replace(r#""short":0"#, r#""short":0,"varied":true,"alone":3"#);
        let setup = Setup::new();
        setup.fake.answer("GET /status", &text);
        let told = setup.grove("status", "");
        assert!(told.out.starts_with(
            "All 345 files (1.0 GiB) have the copies that you want.\n! 3 pieces are kept on this cell only"
        ));
    }

    #[test]
    fn status_says_first_whether_everything_is_safe() {
        let bob = r#"{"name":"bob","id":"cd","role":"peer","online":true,"last_seen_s":5}"#;
        let alert = r#"{"code":"c","text":"The disk is nearly full.","remedy":"Free some space."}"#;
        for (text, first) in [
            (status(bob, 0, 0, ""), "Everything is safe: 345 files (1.0 GiB) have their copies."),
            (
                status("", 0, 0, ""),
                "Not safe yet: 345 files (1.0 GiB) are on this cell only. `grove invite` brings in a second one.",
            ),
            (
                status(bob, 12, 0, ""),
                "Not everything is safe yet: of 345 files (1.0 GiB), 12 pieces lack some of their 2 copies.",
            ),
            (status(bob, 0, 1, ""), "Not everything is safe yet: 1 file is to be kept still."),
            (
                status(bob, 0, 0, alert),
                "All 345 files (1.0 GiB) have their copies, but something needs attention.",
            ),
        ] {
            let setup = Setup::new();
            setup.fake.answer("GET /status", &text);
            setup.fake.answer("GET /status", &text);
            let told = setup.grove("status", "");
            assert_eq!(told.out.lines().next().unwrap(), first);
            assert!(!told.out.contains("on this cell only, as"), "{told:?}");
            assert!(told.out.contains("Cell ann (abababababababab), life 1, is not running"), "{told:?}");
            assert_eq!(
                told.out.contains("! The disk is nearly full.\n  Free some space.\n"),
                text.contains("nearly")
            );
            assert_eq!(setup.grove("status --json", "").out, format!("{text}\n"));
        }
        // A first file is one.
        for (text, first) in [
            (status(bob, 0, 0, ""), "Everything is safe: 1 file (1.0 GiB) has its copies."),
            (
                status(bob, 1, 0, ""),
                "Not everything is safe yet: of 1 file (1.0 GiB), 1 piece lacks some of its 2 copies.",
            ),
            (status(bob, 0, 0, alert), "The 1 file (1.0 GiB) has its copies, but something needs attention."),
            (
                status("", 0, 0, ""),
                "Not safe yet: 1 file (1.0 GiB) is on this cell only. `grove invite` brings in a second one.",
            ),
        ] {
            let setup = Setup::new();
            setup.fake.answer("GET /status", &text.replace(r#""count":345"#, r#""count":1"#));
            assert_eq!(setup.grove("status", "").out.lines().next().unwrap(), first);
        }
        // A cell of another version may say less.
        let setup = Setup::new();
        setup.fake.answer("GET /status", "{}");
        assert_eq!(setup.grove("status", "").code, 0);
    }

    #[test]
    fn alerts_show_how_grave_they_are_and_since_when_and_drills_what_came_back() {
        let setup = Setup::new();
        let alert =
            r#"{"code":"disk-full","level":"urgent","text":"It is full.","remedy":"","since_s":7200}"#;
        let drill =
            r#""drill":{"ok":true,"age_s":60,"chunks":3,"bytes":2048,"files":2,"peers":["bob"]},"job":null"#;
        let text = status("", 0, 0, alert).replace(r#""job":null"#, drill);
        setup.fake.answer("GET /status", &text);
        let told = setup.grove("status", "");
        assert!(told.out.contains("\n!! It is full. (for 2 h)\n"), "{told:?}");
        let line = "Restore drill 1 min ago: 3 chunks (2.0 KiB) of 2 files came back from bob, all as they were kept.\n";
        assert!(told.out.contains(line), "{told:?}");
    }

    #[test]
    fn a_drill_fails_where_something_did_not_come_back() {
        let setup = Setup::new();
        setup.fake.answer("POST /drill", r#"{"job":9}"#);
        let failure = r#"{"path":"a.txt","peer":"bob","why":"it is damaged there"}"#;
        for (failures, code) in [("", 0), (failure, 1)] {
            let result = format!(
                r#"{{"state":"done","result":{{"chunks":1,"bytes":1,"files":1,"compared":1,"peers":["bob"],"unreached":["cy"],"failures":[{failures}]}}}}"#
            );
            setup.fake.answer("GET /jobs/9", &result);
            let told = setup.with(|context, cell| Drill { json: false }.with(context, cell));
            assert_eq!(told.code, code, "{told:?}");
            assert!(told.out.contains("not reached now, so not tried: cy\n"), "{told:?}");
            assert_eq!(told.out.contains("a.txt from bob: it is damaged there\n"), code == 1, "{told:?}");
        }
    }

    #[test]
    fn doctor_works_without_a_cell_that_opens() {
        let told = grove(&Fake::default(), "doctor", "");
        assert!(told.code == 1 && told.out.starts_with("fail  cell"), "{told:?}");
        let setup = Setup::new();
        let told = setup.grove("doctor", "");
        assert!(told.code == 1 && told.out.contains("fail  open"), "{told:?}");
        let checks = r#"{"checks":[{"name":"watch","state":"warn","text":"few watches","remedy":"raise them"},{"name":"disk","state":"ok","text":"fine","remedy":"none"}]}"#;
        setup.fake.answer("GET /doctor", checks);
        let told = setup.grove("doctor", "");
        assert_eq!(told.code, 0, "{told:?}");
        assert!(
            told.out
                .contains("warn  watch     few watches\n                raise them\nok    disk      fine\n"),
            "{}",
            told.out
        );
    }

    #[test]
    fn doctor_sees_open_secrets_and_odd_settings() {
        let setup = Setup::new();
        setup.fake.answer("GET /doctor", r#"{"checks":[]}"#);
        setup.fake.answer("GET /doctor", r#"{"checks":[]}"#);
        let state = setup.dir.path().join("state");
        fs::write(state.join("config.json"), r#"{"copeis": 3}"#).unwrap();
        let told = setup.grove("doctor --json", "");
        assert!(told.code == 0 && told.out.contains("copeis"), "{told:?}");
        fs::set_permissions(state.join(".key"), fs::Permissions::from_mode(0o644)).unwrap();
        let told = setup.grove("doctor", "");
        assert!(told.code == 1 && told.out.contains("chmod 600"), "{told:?}");
    }
}

//! Where copies are, in words: `placement`.

use argh::FromArgs;
use miniserde::json::{Number, Value};

use super::ask::{Cell, CliError, Fields, Method};
use super::files::wire_path;
use super::{Context, Word, show};
use crate::files::unix::from_wire;
use crate::order;
use crate::placement::explain::Stuck;

/// Files told of where not all are asked for.
const SHOWN: usize = 20;
/// Names in one line of the summary.
const NAMES: usize = 5;
/// Risks, the worst first.
const RISKS: [&str; 6] = ["gone", "only_away", "alone", "short", "doubt", "fine"];

/// show where the copies of your files are, what is planned, and what is at risk
#[derive(FromArgs, Debug, PartialEq)]
#[argh(
    subcommand,
    name = "placement",
    help_triggers("-h", "--help"),
    note = "Begins with a summary and the files that are worst off. A copy with a peer is sealed: it can be counted, proven and \
            given back there, but not read."
)]
pub struct Placement {
    /// a file or folder in GroveHome; without it all files
    #[argh(positional)]
    name: Option<Word>,
    /// tell of every file
    #[argh(switch)]
    all: bool,
    /// print the JSON of the API, a line for each page
    #[argh(switch)]
    json: bool,
}

impl Placement {
    pub(super) fn run(self, context: &mut Context<'_>) -> Result<(), CliError> {
        let path = match &self.name {
            Some(name) => wire_path(context, name)?,
            None => String::new(),
        };
        let mut cell = context.cell()?;
        self.with(context, &mut *cell, &path)
    }

    /// `path` as the API takes it; empty for all files.
    fn with(&self, context: &mut Context<'_>, cell: &mut dyn Cell, path: &str) -> Result<(), CliError> {
        if self.json {
            return each_page(cell, path, false, &mut |text, _| {
                writeln!(context.out, "{text}")?;
                Ok(true)
            });
        }
        let mut seen = Seen::default();
        each_page(cell, path, true, &mut |_, page| {
            seen.take(page);
            Ok(true)
        })?;
        if seen.files == 1 && !path.is_empty() {
            return each_page(cell, path, false, &mut |_, mut page| {
                for file in page.list("files") {
                    let lines = in_full(file, &seen.peers);
                    context.out.write_all(lines.as_bytes())?;
                }
                Ok(true)
            });
        }
        context.out.write_all(seen.summary().as_bytes())?;
        let mut shown = 0;
        let limit = if self.all { usize::MAX } else { SHOWN };
        for file in std::mem::take(&mut seen.worst).into_iter().take(if self.all { 0 } else { SHOWN }) {
            shown += 1;
            context.out.write_all(in_short(file, &seen.peers).as_bytes())?;
        }
        let is_risky_told = !self.all;
        each_page(cell, path, false, &mut |_, mut page| {
            for file in page.list("files") {
                if shown >= limit {
                    return Ok(false);
                }
                if !is_risky_told || file.text("risk") == "fine" {
                    shown += 1;
                    context.out.write_all(in_short(file, &seen.peers).as_bytes())?;
                }
            }
            Ok(shown < limit)
        })?;
        let left = seen.files.saturating_sub(shown as u64);
        if left > 0 {
            writeln!(
                context.out,
                "and {} more; `grove placement NAME` tells of a file or folder, `--all` of every file",
                show::of(left, "file", "files")
            )?;
        }
        Ok(())
    }
}

/// Asks page by page, until there are no more or `see` says so.
fn each_page(
    cell: &mut dyn Cell,
    path: &str,
    only_risky: bool,
    see: &mut dyn FnMut(&str, Fields) -> Result<bool, CliError>,
) -> Result<(), CliError> {
    let mut after = Vec::new();
    loop {
        let risky = if only_risky { b"1".to_vec() } else { b"0".to_vec() };
        let query = [
            ("path", path.as_bytes().to_vec()),
            ("after", after),
            ("limit", b"500".to_vec()),
            ("risky", risky),
        ];
        let answer = cell.ask(Method::Get, "/placement", &query, None)?;
        let next = answer.fields.text("next").to_owned();
        if !see(&answer.text, answer.fields)? || next.is_empty() {
            return Ok(());
        }
        after = next.into_bytes();
    }
}

/// What all pages say together.
#[derive(Default)]
struct Seen {
    peers: Vec<Fields>,
    wanted: u64,
    /// Folders with a number of copies of their own, in words.
    folders: Vec<String>,
    is_running: bool,
    may_release: bool,
    files: u64,
    bytes: u64,
    /// Files and bytes by risk, in the order of `RISKS`.
    by_risk: [(u64, u64); 6],
    names: [Vec<String>; 6],
    worst: Vec<Fields>,
}

fn rank(risk: &str) -> usize {
    RISKS.iter().position(|known| *known == risk).unwrap_or(RISKS.len() - 1)
}

impl Seen {
    fn take(&mut self, mut page: Fields) {
        self.wanted = page.number("copies_wanted");
        self.is_running = page.is("running");
        self.may_release = page.is("may_release");
        self.peers = page.list("peers");
        self.folders.extend(page.list("folders").iter().map(number_words));
        let files = page.list("files");
        if let Some(mut sums) = page.part("sums") {
            self.files += sums.number("files");
            self.bytes += sums.number("bytes");
            let risks = sums.part("by_risk");
            for (known, (files, bytes)) in RISKS.iter().zip(&mut self.by_risk) {
                let Some(Value::Object(sum)) = risks.as_ref().and_then(|risks| risks.0.get(*known)) else {
                    continue;
                };
                let number = |key: &str| match sum.get(key) {
                    Some(Value::Number(Number::U64(number))) => *number,
                    _ => 0,
                };
                *files += number("files");
                *bytes += number("bytes");
            }
        }
        for file in &files {
            let names = &mut self.names[rank(file.text("risk"))];
            if names.len() < NAMES {
                names.push(name_of(file));
            }
        }
        self.worst.extend(files);
        order::sort_by_key(&mut self.worst, |file| rank(file.text("risk")));
        self.worst.truncate(SHOWN);
    }

    fn summary(&self) -> String {
        if self.files == 0 {
            return "No files are kept here yet.\n".to_owned();
        }
        let copies = match self.folders.is_empty() {
            true => show::of(self.wanted, "copy", "copies"),
            false => "copies".to_owned(),
        };
        let all = format!("{} ({})", show::of(self.files, "file", "files"), show::bytes(self.bytes));
        let short: u64 = self.by_risk[..4].iter().map(|(files, _)| files).sum();
        let mut text = match short {
            0 if self.files == 1 => format!("The 1 file ({}) has its {copies}.\n", show::bytes(self.bytes)),
            0 => format!("All {all} have their {copies}.\n"),
            _ => match self.files - short {
                1 => format!("1 of {all} has its {copies}.\n"),
                safe => format!("{} of {all} have their {copies}.\n", show::count(safe)),
            },
        };
        let says = [
            ("is not known to be anywhere in full", "are not known to be anywhere in full"),
            (
                "lies only with peers that have been silent too long",
                "lie only with peers that have been silent too long",
            ),
            if self.peers.is_empty()
                || self.worst.iter().all(|file| file.number("here") > 0 || file.text("risk") != "alone")
            {
                ("has only the copy here", "have only the copy here")
            } else {
                ("has one copy only", "have one copy only")
            },
            ("has fewer copies than wanted", "have fewer copies than wanted"),
            (
                "has its copies, but leans on a peer that is not connected or slow to prove",
                "have their copies, but lean on a peer that is not connected or slow to prove",
            ),
        ];
        for (((files, _), names), (one, many)) in self.by_risk.iter().zip(&self.names).zip(says) {
            if *files == 0 {
                continue;
            }
            let more = if *files > names.len() as u64 { ", …" } else { "" };
            text.push_str(&format!(
                "! {} {}: {}{more}\n",
                show::of(*files, "file", "files"),
                if *files == 1 { one } else { many },
                names.join(", ")
            ));
        }
        if !self.folders.is_empty() {
            let usual = show::of(self.wanted, "is", "are");
            let mut named = self.folders.clone();
            named.truncate(NAMES);
            let more = if self.folders.len() > NAMES { "; …" } else { "" };
            text.push_str(&format!(
                "{usual} wanted, but by a number of their own (`grove copies`): {}{more}\n",
                named.join("; ")
            ));
        }
        if !self.is_running {
            text.push_str(
                "This cell is not running, so nothing is planned and no peer is reached: `grove run`.\n",
            );
        }
        if !self.may_release && self.is_running {
            text.push_str("Copies too many stay for now: the brake is on, or not all peers were heard since a recovery.\n");
        }
        if self.peers.is_empty() {
            text.push_str("There is no other cell yet: `grove invite` brings one in.\n");
        } else {
            text.push('\n');
            self.peers
                .iter()
                .for_each(|peer| text.push_str(&format!("{}\n", peer_line(peer, self.is_running))));
        }
        text.push('\n');
        text
    }
}

fn name_of(file: &Fields) -> String {
    show::name(&from_wire(file.text("path")))
}

/// A folder and its own number of copies.
fn number_words(folder: &Fields) -> String {
    match folder.number("copies") {
        1 => format!("{} 1, on this cell only", name_of(folder)),
        copies => format!("{} {}", name_of(folder), show::count(copies)),
    }
}

fn tidy(text: &str) -> String {
    show::text(text).replace('\n', " ")
}

fn place_words(peer: &Fields) -> &'static str {
    match peer.text("place") {
        "here" => "in this network",
        "elsewhere" => "at another place",
        _ => "its place is not known",
    }
}

/// How a peer stands, in words; empty for one that is simply here.
pub(super) fn standing(peer: &Fields) -> String {
    let time = |key: &str| show::duration(peer.number(key));
    let seen = match peer.some("last_seen_s") {
        Some(seconds) => format!("last heard {} ago", show::duration(seconds)),
        None => "never heard".to_owned(),
    };
    match peer.text("state") {
        "here" if peer.is("suspended") => {
            "connected, but gets nothing new for a day: it gave false proofs or lost much".to_owned()
        }
        "here" if peer.is("full") => {
            "connected, but takes no more: its disk or our quota there is full".to_owned()
        }
        "here" => "connected".to_owned(),
        "settling" => format!(
            "connected again after a long silence; if it stays for {} more, copies too many are let go",
            time("settle_left_s")
        ),
        "away" => {
            format!("not counted on, silent for {}; what it holds is copied elsewhere", time("silent_s"))
        }
        "silent" if peer.number("silent_s") == 0 => format!("not connected, {seen}"),
        "silent" => {
            let left = peer.number("grace_s").saturating_sub(peer.number("silent_s"));
            format!(
                "not connected, {seen}; silent for {}, and if it stays so for {} more, what it holds is copied elsewhere",
                time("silent_s"),
                show::duration(left)
            )
        }
        _ => String::new(),
    }
}

fn peer_line(peer: &Fields, is_running: bool) -> String {
    let favorite = if peer.is("favorite") { ", favorite" } else { "" };
    let uptime = match peer.some("uptime_per_mille") {
        Some(part) => {
            let watched = show::duration(peer.number("watched_s"));
            format!(", here {}.{} % of {watched}", part / 10, part % 10)
        }
        None => String::new(),
    };
    let place = if is_running { format!(", {}", place_words(peer)) } else { String::new() };
    format!("{}{favorite}{place}{uptime}: {}", tidy(peer.text("name")), standing(peer))
}

fn days_ago(days: u64) -> String {
    match days {
        0 => "today".to_owned(),
        1 => "yesterday".to_owned(),
        days => format!("{} days ago", show::count(days)),
    }
}

/// `2 copies, last proven yesterday by attic-pi`.
fn copies_words(file: &Fields, holders: &[Fields]) -> String {
    let (copies, chunks, here) = (file.number("copies"), file.number("chunks"), file.number("here"));
    if chunks == 0 {
        return "empty; its name and times are in the catalog, which every peer keeps".to_owned();
    }
    let count = show::of(copies, "copy", "copies");
    let proven = holders
        .iter()
        .filter(|held| {
            held.number("chunks") == chunks && held.number("unproven") == 0 && held.number("away") == 0
        })
        .filter_map(|held| Some((held.some("proven_days_ago")?, held.text("peer"))))
        .min();
    match (copies, proven) {
        (0, _) => "no cell that counts is known to have all of it".to_owned(),
        (1, _) if here == chunks => match file.number("wanted") {
            0 | 1 => "1 copy, here, and no more are wanted".to_owned(),
            _ => "1 copy, only here".to_owned(),
        },
        (_, Some((days, peer))) => format!("{count}, last proven {} by {}", days_ago(days), tidy(peer)),
        (_, None) => format!("{count}, not all proven yet"),
    }
}

fn part_words(chunks: u64, of: u64) -> String {
    if chunks >= of {
        String::new()
    } else {
        format!(" of {} of its {} chunks", show::count(chunks), show::count(of))
    }
}

fn why_words(why: &str) -> &'static str {
    match why {
        "favorite" => "it is a favorite",
        "elsewhere" => "it is at a place where no copy is yet",
        "credit" => "the balance with it allows it",
        "fast" => "it is the fastest that could take it",
        "room" => "it has the most room",
        "equal" => "it comes first of those that are as good",
        _ => "it is the only one that can take it now",
    }
}

/// What is planned for a file and what endangers it, a line each.
fn notes(file: &mut Fields, holders: &[Fields], peers: &[Fields], is_full: bool) -> Vec<String> {
    let mut lines = Vec::new();
    let (chunks, wanted) = (file.number("chunks"), file.number("wanted"));
    let peer = |name: &str| peers.iter().find(|peer| peer.text("name") == name);
    for held in holders {
        let name = tidy(held.text("peer"));
        let state = peer(held.text("peer")).map_or("gone", |peer| peer.text("state"));
        if held.number("away") > 0 {
            lines.push(format!("{name} has a copy, but has been silent too long, so it is not counted"));
        } else if state == "silent" && held.number("chunks") > 0 {
            let silence = peer(held.text("peer")).filter(|_| is_full).map(standing);
            let silence = silence.unwrap_or_else(|| "not connected now".to_owned());
            lines.push(format!("{name} has a copy and is {silence}"));
        }
        if held.number("suspect") > 0 {
            let part = part_words(held.number("suspect"), chunks);
            lines.push(format!(
                "{name} has been asked for a proof of its copy{part} in vain; it is asked again"
            ));
        }
        if held.number("leaving") > 0 {
            lines.push(format!("{name} is told to let its copy go, which is not needed any more"));
        }
    }
    for then in file.list("if_silent") {
        lines.push(format!("if that lasts too long, {} gets a copy instead", tidy(then.text("peer"))));
    }
    for plan in file.list("planned") {
        let (name, part) = (tidy(plan.text("peer")), part_words(plan.number("chunks"), chunks));
        lines.push(match plan.is("sending") {
            true => format!("a copy{part} is being sent to {name} now"),
            false => format!("planned: {name} gets a copy{part} next, for {}", why_words(plan.text("why"))),
        });
    }
    for stuck in file.list("stuck") {
        let why = Stuck::ALL.iter().find(|known| known.as_str() == stuck.text("why"));
        let (why, remedy) = why.map_or(("it is not known why", ""), |why| why.words());
        let part = part_words(stuck.number("chunks"), chunks);
        let remedy = if remedy.is_empty() { String::new() } else { format!(": {remedy}") };
        lines.push(format!("no copy{part} is planned, for {why}{remedy}"));
    }
    let (too_many, settles) = (file.list("too_many"), file.number("settles_s"));
    for extra in too_many {
        let when = match settles {
            0 => "soon".to_owned(),
            seconds => format!("in {}, if the peer that came back stays", show::duration(seconds)),
        };
        lines.push(format!(
            "one copy more than the {} wanted: that with {} goes {when}",
            show::count(wanted),
            tidy(extra.text("peer"))
        ));
    }
    lines
}

fn head(file: &Fields) -> String {
    let kind =
        if file.text("kind") == "symlink" { "link".to_owned() } else { show::bytes(file.number("size")) };
    format!("{} ({kind})", name_of(file))
}

/// A file in one line, and what is not as it should be in more.
fn in_short(mut file: Fields, peers: &[Fields]) -> String {
    let holders = file.list("holders");
    let mut text = format!("{}: {}\n", head(&file), copies_words(&file, &holders));
    for note in notes(&mut file, &holders, peers, false) {
        text.push_str(&format!("    {note}\n"));
    }
    text
}

/// By whose number that is, if not by the cell's.
fn said_words(file: &mut Fields) -> String {
    let Some(said) = file.part("said_by") else { return String::new() };
    let (folder, copies) = (name_of(&said), said.number("copies"));
    match file.number("wanted") {
        wanted if wanted == copies => format!(", by the number of the folder {folder}"),
        2 if copies < 2 && file.is("freed") => {
            format!(", as it was freed here, though the folder {folder} says {}", show::count(copies))
        }
        _ => format!(
            ", though the folder {folder} says {}: other files have the same bytes, or a change is still being worked in",
            show::count(copies)
        ),
    }
}

/// All there is to say of one file.
fn in_full(mut file: Fields, peers: &[Fields]) -> String {
    let holders = file.list("holders");
    let (chunks, here) = (file.number("chunks"), file.number("here"));
    let mut text = format!(
        "{}, version {}, {}\n{}",
        head(&file),
        file.number("version"),
        show::of(chunks, "chunk", "chunks"),
        capital(&copies_words(&file, &holders))
    );
    if chunks > 0 {
        let as_wanted = match file.number("short") {
            0 => format!("; {} wanted", show::of(file.number("wanted"), "is", "are")),
            _ => format!("; {} wanted, so some are missing", show::of(file.number("wanted"), "is", "are")),
        };
        text.push_str(&as_wanted);
        text.push_str(&said_words(&mut file));
    }
    text.push_str(".\n");
    if here > 0 {
        text.push_str(&format!("  here: a copy{}\n", part_words(here, chunks)));
    } else if file.is("freed") {
        text.push_str(
            "  here: nothing, as it was freed; peers keep one copy more for that, and two at least\n",
        );
    }
    for held in &holders {
        if held.number("chunks") == 0 {
            continue;
        }
        let known = peers.iter().find(|peer| peer.text("name") == held.text("peer"));
        let place = known.map_or(String::new(), |peer| {
            format!(" ({}{})", place_words(peer), if peer.is("favorite") { ", favorite" } else { "" })
        });
        let part = part_words(held.number("chunks"), chunks);
        let proof = match (held.some("proven_days_ago"), held.number("unproven")) {
            (Some(days), 0) => format!("proven {}", days_ago(days)),
            (None, _) => "not proven yet".to_owned(),
            (Some(_), some) => format!("{} not proven yet", show::of(some, "chunk", "chunks")),
        };
        text.push_str(&format!("  {}{place}: a copy{part}, {proof}\n", tidy(held.text("peer"))));
    }
    for note in notes(&mut file, &holders, peers, true) {
        text.push_str(&format!("  {note}\n"));
    }
    text
}

fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or(String::new(), |first| first.to_uppercase().chain(letters).collect())
}

#[cfg(test)]
mod tests {
    use crate::cli::testing::Setup;

    const PEERS: &str = r#"[
        {"name":"attic-pi","favorite":true,"place":"elsewhere","state":"here","uptime_per_mille":995,"watched_s":864000,"last_seen_s":0,"silent_s":0,"grace_s":3600},
        {"name":"bob","favorite":false,"place":"here","state":"silent","uptime_per_mille":null,"last_seen_s":7500,"silent_s":7200,"grace_s":86400}]"#;

    fn file(path: &str, risk: &str, rest: &str) -> String {
        format!(
            r#"{{"path":"{path}","kind":"file","size":2048,"version":3,"risk":"{risk}","wanted":2,"chunks":1,{rest}}}"#
        )
    }

    fn page(files: &[String], sums: &str) -> String {
        format!(
            r#"{{"copies_wanted":2,"running":true,"may_release":true,"peers":{PEERS},"sums":{sums},"files":[{}],"next":null}}"#,
            files.join(",")
        )
    }

    fn fine() -> String {
        file(
            "a.txt",
            "fine",
            r#""copies":2,"here":1,"short":0,"holders":[{"peer":"attic-pi","chunks":1,"unproven":0,"away":0,"proven_days_ago":1}]"#,
        )
    }

    fn alone() -> String {
        file(
            "b.txt",
            "alone",
            r#""copies":1,"here":1,"short":1,"holders":[],"planned":[{"peer":"attic-pi","chunks":1,"bytes":9,"sending":false,"why":"favorite"}]"#,
        )
    }

    #[test]
    fn the_worst_comes_first_in_plain_words() {
        let setup = Setup::new();
        let sums = r#"{"files":2,"bytes":4096,"by_risk":{"alone":{"files":1,"bytes":2048},"fine":{"files":1,"bytes":2048}}}"#;
        setup.fake.answer("GET /placement", &page(&[alone()], sums));
        setup.fake.answer("GET /placement", &page(&[fine(), alone()], sums));
        let told = setup.grove("placement", "");
        assert_eq!(
            told.out,
            "1 of 2 files (4.0 KiB) has its 2 copies.\n\
             ! 1 file has only the copy here: b.txt\n\
             \n\
             attic-pi, favorite, at another place, here 99.5 % of 10 d: connected\n\
             bob, in this network: not connected, last heard 2 h 5 min ago; silent for 2 h, and if it stays so for 22 h more, \
             what it holds is copied elsewhere\n\
             \n\
             b.txt (2.0 KiB): 1 copy, only here\n    \
             planned: attic-pi gets a copy next, for it is a favorite\n\
             a.txt (2.0 KiB): 2 copies, last proven yesterday by attic-pi\n"
        );
    }

    #[test]
    fn a_file_is_named_as_other_commands_name_it() {
        let setup = Setup::new();
        for name in ["a/b.txt", "a/b.txt/", "./home/a/b.txt"] {
            setup.fake.answer("GET /placement", &page(&[], r#"{"files":0,"bytes":0,"by_risk":{}}"#));
            assert_eq!(setup.grove(&format!("placement --json {name}"), "").code, 0, "{name}");
        }
        let asked = setup.fake.told.borrow().clone();
        assert!(asked.len() == 3 && asked.iter().all(|asked| asked.contains(" path=a/b.txt ")), "{asked:?}");
        let told = setup.grove("placement ./elsewhere", "");
        assert!(told.code == 1 && told.err.contains("is not in"), "{told:?}");
    }

    #[test]
    fn one_file_is_told_in_full() {
        let setup = Setup::new();
        let sums = r#"{"files":1,"bytes":2048,"by_risk":{"doubt":{"files":1,"bytes":2048}}}"#;
        let file = file(
            "c.txt",
            "doubt",
            r#""copies":2,"here":1,"short":0,"holders":[{"peer":"bob","chunks":1,"unproven":1,"away":0,"suspect":1,"proven_days_ago":null}],"if_silent":[{"peer":"attic-pi","chunks":1}]"#,
        );
        setup.fake.answer("GET /placement", &page(std::slice::from_ref(&file), sums));
        setup.fake.answer("GET /placement", &page(&[file], sums));
        let told = setup.grove("placement c.txt", "");
        let expected = [
            "c.txt (2.0 KiB), version 3, 1 chunk",
            "2 copies, not all proven yet; 2 are wanted.",
            "  here: a copy",
            "  bob (in this network): a copy, not proven yet",
            "  bob has a copy and is not connected, last heard 2 h 5 min ago; silent for 2 h, and if it stays so for 22 h more, what \
             it holds is copied elsewhere",
            "  bob has been asked for a proof of its copy in vain; it is asked again",
            "  if that lasts too long, attic-pi gets a copy instead",
        ];
        assert_eq!(told.out.lines().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn pages_are_asked_for_to_the_end_and_long_lists_are_cut() {
        let setup = Setup::new();
        let sums = r#"{"files":30,"bytes":0,"by_risk":{"fine":{"files":30,"bytes":0}}}"#;
        let files: Vec<String> = (0..30).map(|_| fine()).collect();
        let first = page(&[], sums).replace(r#""next":null"#, r#""next":"a/z""#);
        setup.fake.answer("GET /placement", &first);
        setup.fake.answer("GET /placement", &page(&[], sums));
        setup.fake.answer("GET /placement", &page(&files, sums));
        let told = setup.grove("placement", "");
        assert!(told.out.starts_with("All 60 files (0 B) have their 2 copies.\n"), "{told:?}");
        assert!(told.out.contains("\nand 40 files more; "), "{told:?}");
        assert!(setup.fake.told.borrow()[1].contains(" after=a/z "), "{:?}", setup.fake.told);
        setup.fake.answer("GET /placement", &first);
        setup.fake.answer("GET /placement", &page(&[], sums));
        let told = setup.grove("placement --json", "");
        assert_eq!(told.out.matches("copies_wanted").count(), 2, "{told:?}");
    }
}

//! Credit with peers: `bounty`.

use argh::FromArgs;
use miniserde::json::Value;

use super::ask::{Cell, CliError, Fields, Method, object};
use super::{Context, show};

/// show what you and your peers have stored for each other, proven and signed by both
#[derive(FromArgs, Debug, PartialEq)]
#[argh(
    subcommand,
    name = "bounty",
    help_triggers("-h", "--help"),
    note = "A leaf is 1 GiB stored for one day and proven. docs/bounty.md has the rules."
)]
pub struct Bounty {
    /// print what was posted with each peer, day by day, as CSV in byte-hours
    #[argh(switch)]
    csv: bool,
    /// print the JSON of the API
    #[argh(switch)]
    json: bool,
    /// take this peer's figure where the two of you do not agree, and go on with it
    #[argh(option, arg_name = "peer")]
    accept: Option<String>,
}

fn tidy(text: &str) -> String {
    show::text(text).replace('\n', " ")
}

/// `1.250`: leaves from thousandths of them.
fn leaves(thousandths: i64) -> String {
    let sign = if thousandths < 0 { "-" } else { "" };
    let size = thousandths.unsigned_abs();
    format!("{sign}{}.{:03}", show::count(size / 1000), size % 1000)
}

fn byte_hours(figure: u64) -> String {
    leaves(crate::bounty::milli_leaves(i64::try_from(figure).unwrap_or(i64::MAX)))
}

/// A field of a CSV file (RFC 4180); one that a spreadsheet would take for a formula has an apostrophe before it.
fn field(text: &str) -> String {
    let text = tidy(text);
    let is_formula = text.starts_with(['=', '+', '-', '@', '\t']);
    let text = if is_formula { format!("'{text}") } else { text };
    if text.contains([',', '"', '\n']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text }
}

fn cause_words(cause: &str) -> &'static str {
    match cause {
        "proofs" => "copies were not proven, or were found lost",
        "older_books" => "its books are older than what it has signed; they may come from a backup",
        "clock" => "the clocks of the two cells differ",
        "missing_periods" => "the two have not settled for long",
        "two_statements" => "it has signed two statements of one number; both are kept",
        _ => "nothing explains it",
    }
}

impl Bounty {
    pub(super) fn run(self, context: &mut Context<'_>) -> Result<(), CliError> {
        let mut cell = context.running_cell()?;
        self.with(context, &mut *cell)
    }

    fn with(&self, context: &mut Context<'_>, cell: &mut dyn Cell) -> Result<(), CliError> {
        if let Some(peer) = &self.accept {
            let body = object([("peer", Value::String(peer.clone()))]);
            let answer = cell.ask(Method::Post, "/bounty/accept", &[], Some(body))?;
            match self.json {
                true => writeln!(context.out, "{}", answer.text)?,
                false => {
                    writeln!(context.out, "The figure of {} is taken; growth is free again.", tidy(peer))?
                }
            }
            return Ok(());
        }
        let mut answer = cell.ask(Method::Get, "/bounty", &[], None)?;
        if self.json {
            writeln!(context.out, "{}", answer.text)?;
            return Ok(());
        }
        let total = answer.fields.part("total");
        let advice = answer.fields.texts("advice");
        let peers = answer.fields.list("peers");
        if self.csv {
            return csv(context, cell, &peers);
        }
        if peers.is_empty() {
            writeln!(context.out, "No peers yet. `grove invite` brings one in.")?;
            return Ok(());
        }
        let mut notes = Vec::new();
        let head = [
            "PEER",
            "EARNED",
            "SPENT",
            "BALANCE",
            "PROOFS",
            "FAILED",
            "STORES HERE",
            "MAY STORE",
            "STATE",
            "SIGNED",
        ];
        let mut rows = vec![head.map(str::to_owned).to_vec()];
        for mut peer in peers {
            let name = tidy(peer.text("name"));
            let quota = peer.part("quota");
            let statement = peer.part("statement");
            let allowed = quota.as_ref().and_then(|quota| quota.some("allowed_bytes"));
            let used = quota.as_ref().map_or(0, |quota| quota.number("used_bytes"));
            rows.push(vec![
                name.clone(),
                leaves(peer.signed("earned_mleaf").unwrap_or(0)),
                leaves(peer.signed("spent_mleaf").unwrap_or(0)),
                leaves(peer.signed("balance_mleaf").unwrap_or(0)),
                show::count(peer.number("proofs_passed")),
                show::count(peer.number("proofs_failed")),
                show::bytes(used),
                allowed.map_or("the disk".into(), show::bytes),
                tidy(peer.text("state")),
                statement.map_or("never".into(), |statement| {
                    show::time(i64::try_from(statement.number("until_unix")).unwrap_or(0))
                }),
            ]);
            note_dispute(&mut notes, &name, &mut peer);
            let unsigned = peer.number("unsigned_byte_hours") + peer.number("waiting_byte_hours");
            if crate::bounty::milli_leaves(i64::try_from(unsigned).unwrap_or(0)) > 0 {
                notes.push(format!(
                    "{name} has stored {} leaves more for you, not signed yet",
                    byte_hours(unsigned)
                ));
            }
        }
        if let Some(total) = total {
            let sum = |key: &str| leaves(total.signed(key).unwrap_or(0));
            rows.push(vec!["all".into(), sum("earned_mleaf"), sum("spent_mleaf"), sum("balance_mleaf")]);
        }
        context.out.write_all(show::table(&rows, &[1, 2, 3, 4, 5, 6, 7]).as_bytes())?;
        writeln!(
            context.out,
            "in leaves: 1 GiB stored for one day and proven; earned: by you for the peer; spent: by it for you"
        )?;
        for line in notes.iter().chain(&advice) {
            writeln!(context.out, "- {}", tidy(line))?;
        }
        Ok(())
    }
}

fn note_dispute(notes: &mut Vec<String>, name: &str, peer: &mut Fields) {
    let Some(dispute) = peer.part("dispute") else { return };
    let (ours, theirs) =
        (byte_hours(dispute.number("ours_byte_hours")), byte_hours(dispute.number("theirs_byte_hours")));
    let cause = cause_words(dispute.text("cause"));
    notes.push(match dispute.is("our_storage") {
        true => format!(
            "{name} counts {theirs} leaves of storage by you, and you count {ours}: {cause}. It can store nothing more here until you agree; \
             `grove bounty --accept {name}` takes its figure"
        ),
        false => format!(
            "{name} says that it has stored {theirs} leaves for you, and you have counted {ours}: {cause}. It takes nothing more of yours until \
             you agree"
        ),
    });
}

fn csv(context: &mut Context<'_>, cell: &mut dyn Cell, peers: &[Fields]) -> Result<(), CliError> {
    writeln!(context.out, "date,peer,id,earned_byte_hours,spent_byte_hours")?;
    for peer in peers {
        let id = peer.text("id").to_owned();
        let query = [("peer", id.clone().into_bytes())];
        let answer = cell.ask(Method::Get, "/bounty/history", &query, None)?;
        for [day, earned, spent] in answer.fields.triples("byte_hours") {
            let name = field(peer.text("name"));
            writeln!(context.out, "{},{name},{},{earned},{spent}", date(day), field(&id))?;
        }
    }
    Ok(())
}

/// `2027-01-15` of a Unix day, by Howard Hinnant's days-to-civil.
fn date(day: u64) -> String {
    let z = i64::try_from(day).unwrap_or(0) + 719_468;
    let era = z.div_euclid(146_097);
    let doe = z.rem_euclid(146_097);
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let month = (5 * doy + 2) / 153;
    let (day, month) = (doy - (153 * month + 2) / 5 + 1, if month < 10 { month + 3 } else { month - 9 });
    let year = yoe + era * 400 + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::testing::Setup;

    const ANSWER: &str = r#"{"total":{"earned_mleaf":1500,"spent_mleaf":2750,"balance_mleaf":-1250},"peers":[
        {"id":"abab","name":"bob\u001b[2J","earned_mleaf":1500,"spent_mleaf":2750,"balance_mleaf":-1250,"unsigned_byte_hours":25769803776,
         "proofs_passed":12345,"proofs_failed":2,"quota":{"used_bytes":1024,"allowed_bytes":2048,"why":"x"},"state":"disputed",
         "dispute":{"ours_byte_hours":25769803776,"theirs_byte_hours":12884901888,"cause":"clock","our_storage":true},
         "statement":{"seq":3,"until_unix":1800000000,"signed_by_both":true}},
        {"id":"cdcd","name":"=cy","earned_mleaf":0,"spent_mleaf":0,"balance_mleaf":0,"quota":{"used_bytes":0,"allowed_bytes":null},"state":"ok",
         "dispute":null,"statement":null}],"advice":["add a peer"]}"#;

    fn bounty() -> Bounty {
        Bounty { csv: false, json: false, accept: None }
    }

    #[test]
    fn accounts_are_a_table_with_both_figures_of_a_disagreement_and_advice() {
        let setup = Setup::new();
        setup.fake.answer("GET /bounty", ANSWER);
        let told = setup.with(|context, cell| bounty().with(context, cell));
        let lines: Vec<&str> = told.out.lines().collect();
        assert!(
            lines[1].contains("1.500") && lines[1].contains("-1.250") && lines[1].contains("12,345"),
            "{told:?}"
        );
        assert!(lines[2].contains("the disk") && lines[2].ends_with("never"));
        assert!(lines[3].starts_with("all") && lines[3].contains("2.750"));
        assert!(told.out.contains("counts 0.500 leaves of storage by you, and you count 1.000: the clocks"));
        assert!(told.out.contains("1.000 leaves more for you, not signed yet"));
        assert!(told.out.contains("- add a peer\n") && !told.out.contains('\u{1b}'), "{told:?}");
    }

    #[test]
    fn a_figure_is_taken_in_words_or_as_json() {
        let setup = Setup::new();
        setup.fake.answer("POST /bounty/accept", r#"{"ok":true}"#);
        for (json, out) in
            [(false, "The figure of bob is taken; growth is free again.\n"), (true, "{\"ok\":true}\n")]
        {
            let accept = Bounty { accept: Some("bob".into()), json, ..bounty() };
            assert_eq!(setup.with(|context, cell| accept.with(context, cell)).out, out);
        }
        assert_eq!(setup.fake.told.borrow()[0], r#"POST /bounty/accept {"peer":"bob"}"#);
    }

    #[test]
    fn history_is_csv_that_no_spreadsheet_runs() {
        let setup = Setup::new();
        setup.fake.answer("GET /bounty", ANSWER);
        setup.fake.answer("GET /bounty/history", r#"{"days":[],"byte_hours":[[20833,5,6],[20834,7,8]]}"#);
        setup.fake.answer("GET /bounty/history", r#"{"days":[],"byte_hours":[[20833,1,2]]}"#);
        let told = setup.with(|context, cell| Bounty { csv: true, ..bounty() }.with(context, cell));
        let lines: Vec<&str> = told.out.lines().collect();
        assert_eq!(lines[0], "date,peer,id,earned_byte_hours,spent_byte_hours");
        assert!(lines[1].starts_with("2027-01-15,bob") && lines[1].ends_with(",abab,5,6"), "{told:?}");
        assert_eq!(lines[3], "2027-01-15,'=cy,cdcd,1,2");
        assert_eq!(
            (date(0), date(19_782), date(11_016)),
            ("1970-01-01".into(), "2024-02-29".into(), "2000-02-29".into())
        );
    }
}

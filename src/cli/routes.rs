//! Ways to peers: `routes`.

use argh::FromArgs;

use super::ask::{Cell, CliError, Fields, Method};
use super::{Context, job, show};

/// show the ways to each peer, and which is in use
#[derive(FromArgs, Debug, PartialEq)]
#[argh(subcommand, name = "routes", help_triggers("-h", "--help"))]
pub struct Routes {
    /// measure all of them first, by real transfers
    #[argh(switch)]
    bench: bool,
    /// print the JSON of the API
    #[argh(switch)]
    json: bool,
}

impl Routes {
    pub(super) fn run(self, context: &mut Context<'_>) -> Result<(), CliError> {
        let mut cell = context.running_cell()?;
        self.with(context, &mut *cell)
    }

    fn with(&self, context: &mut Context<'_>, cell: &mut dyn Cell) -> Result<(), CliError> {
        let (text, mut fields) = match self.bench {
            true => {
                let outcome = job::run(context, cell, "/routes/bench", super::ask::object([]))?;
                (outcome.text, outcome.result)
            }
            false => {
                let answer = cell.ask(Method::Get, "/routes", &[], None)?;
                (answer.text, answer.fields)
            }
        };
        if self.json {
            writeln!(context.out, "{text}")?;
            return Ok(());
        }
        let tidy = |text: &str| show::text(text).replace('\n', " ");
        let addresses = fields.texts("own_addresses");
        writeln!(context.out, "this cell is reached at: {}", tidy(&addresses.join(", ")))?;
        for relay in fields.list("relays") {
            let state = if relay.is("connected") { "connected" } else { relay.text("why") };
            writeln!(context.out, "relay {}: {}", tidy(relay.text("url")), tidy(state))?;
        }
        let peers = fields.list("peers");
        if peers.is_empty() {
            writeln!(context.out, "No peers yet. `grove invite` brings one in.")?;
        }
        for mut peer in peers {
            let id = peer.text("id");
            writeln!(context.out, "{} ({})", tidy(peer.text("name")), tidy(id.get(..16).unwrap_or(id)))?;
            context.out.write_all(table(&peer.list("routes")).as_bytes())?;
        }
        Ok(())
    }
}

fn table(routes: &[Fields]) -> String {
    let head = ["  ", "ADDRESS", "KIND", "ROUND TRIP", "UP", "DOWN", "ANSWERED", "WHY"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    rows.extend(routes.iter().map(|route| {
        let rate = |key| route.some(key).map_or("-".into(), |rate| format!("{}/s", show::bytes(rate)));
        let rtt = route.some("rtt_us").map_or("-".into(), |us| format!("{}.{} ms", us / 1000, us / 100 % 10));
        let answered = match route.some("last_success_s") {
            Some(0) => "now".into(),
            Some(seconds) => format!("{} ago", show::duration(seconds)),
            None => "never".into(),
        };
        let why = match route.text("last_error") {
            "" => route.text("why").to_owned(),
            error => format!("{}: {error}", route.text("why")),
        };
        let tidy = |text: &str| show::text(text).replace('\n', " ");
        vec![
            if route.is("in_use") { " *" } else { "  " }.to_owned(),
            tidy(route.text("address")),
            tidy(route.text("kind")),
            rtt,
            rate("up_bytes_per_s"),
            rate("down_bytes_per_s"),
            answered,
            tidy(&why),
        ]
    }));
    show::table(&rows, &[3, 4, 5])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::testing::Setup;

    #[test]
    fn routes_are_a_table_with_the_one_in_use_marked() {
        let setup = Setup::new();
        setup.fake.answer(
            "GET /routes",
            r#"{"own_addresses":["10.0.0.7:5679"],"relays":[{"url":"ws://r:1/relay","connected":false,"why":"it is tried"}],
            "peers":[{"name":"bob","id":"abababababababababab","routes":[
            {"address":"10.0.0.1:5679","kind":"lan","in_use":true,"incoming":false,"rtt_us":1250,"up_bytes_per_s":1048576,"down_bytes_per_s":2097152,"last_success_s":0,"last_error":"","why":"in use: the fastest that answers"},
            {"address":"wss://r\u001b[2J.example","kind":"relay","in_use":false,"incoming":false,"rtt_us":null,"up_bytes_per_s":null,"down_bytes_per_s":null,"last_success_s":null,"last_error":"refused","why":"it did not answer"}]}]}"#,
        );
        let told = setup.with(|context, cell| Routes { bench: false, json: false }.with(context, cell));
        let lines: Vec<&str> = told.out.lines().collect();
        assert_eq!(lines[0], "this cell is reached at: 10.0.0.7:5679");
        assert_eq!(lines[1], "relay ws://r:1/relay: it is tried");
        assert_eq!(lines[2], "bob (abababababababab)");
        assert!(lines[4].contains(" *  10.0.0.1:5679") && lines[4].contains("1.2 ms"), "{told:?}");
        assert!(lines[5].ends_with("it did not answer: refused") && !told.out.contains('\u{1b}'), "{told:?}");
    }
}

//! Other cells: `peers`, `invite`, `join`, `peer`, `sync`.

use argh::FromArgs;
use miniserde::json::{Number, Value};

use super::ask::{Cell, CliError, Fields, Method, object};
use super::{Context, Word, job, show};

/// An invite holds this long unless something else is said. s.
const INVITE_EXPIRES_S: u64 = 7 * 86_400;

fn number(number: u64) -> Value {
    Value::Number(Number::U64(number))
}

/// list the cells this one knows
#[derive(FromArgs, Debug, PartialEq)]
#[argh(
    subcommand,
    name = "peers",
    help_triggers("-h", "--help"),
    note = "QUOTA is what a peer may store here: as you said with `grove peer quota`, up to the reserve of the disk, or by the rules \
            of the bounty (`grove bounty` has the figure). A * marks favorites."
)]
pub struct Peers {
    /// print the JSON of the API
    #[argh(switch)]
    json: bool,
}

impl Peers {
    pub(super) fn run(self, context: &mut Context<'_>) -> Result<(), CliError> {
        let mut cell = context.cell()?;
        let mut answer = cell.ask(Method::Get, "/peers", &[], None)?;
        if self.json {
            writeln!(context.out, "{}", answer.text)?;
            return Ok(());
        }
        let mut peers = answer.fields.list("peers");
        if peers.is_empty() {
            writeln!(context.out, "No peers yet. `grove invite` brings one in.")?;
            return Ok(());
        }
        context.out.write_all(rows(&peers, cell.is_running()).as_bytes())?;
        context.out.write_all(habits(peers.iter_mut()).as_bytes())?;
        for peer in &peers {
            let name = show::text(peer.text("name"));
            match peer.text("friendship") {
                "wanted" => writeln!(
                    context.out,
                    "{name} wants to be a friend: `grove peer friend` accepts, `grove peer unfriend` declines"
                )?,
                "asked" => writeln!(context.out, "{name} is asked for friendship")?,
                _ => {}
            }
        }
        for peer in peers.iter().filter(|peer| !peer.text("error").is_empty()) {
            writeln!(context.out, "{}: {}", show::text(peer.text("name")), show::text(peer.text("error")))?;
        }
        Ok(())
    }
}

/// How dependable peers are: a second table, empty where the cell does not tell.
fn habits<'a>(peers: impl Iterator<Item = &'a mut Fields>) -> String {
    let head = ["NAME", "PLACE", "HERE", "WAITED FOR", "PROVEN", "MISSING", "FALSE", "STATE"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for peer in peers.filter(|peer| !peer.text("state").is_empty()) {
        let proofs = peer.part("proofs");
        let proofs = |keys: &[&str]| {
            let sum = |proofs: &Fields| keys.iter().map(|key| proofs.number(key)).sum();
            proofs.as_ref().map_or("-".to_owned(), |proofs| show::count(sum(proofs)))
        };
        let uptime = peer.some("uptime_per_mille");
        rows.push(vec![
            show::text(peer.text("name")).replace('\n', " "),
            match peer.text("place") {
                "here" => "this network",
                "elsewhere" => "elsewhere",
                _ => "not known",
            }
            .to_owned(),
            uptime.map_or("-".to_owned(), |part| {
                let watched = show::duration(peer.number("watched_s"));
                format!("{}.{} % of {watched}", part / 10, part % 10)
            }),
            show::duration(peer.number("grace_s")),
            proofs(&["proven"]),
            proofs(&["missing", "damaged", "silent"]),
            proofs(&["false"]),
            super::placement::standing(peer),
        ]);
    }
    if rows.len() == 1 { String::new() } else { format!("\n{}", show::table(&rows, &[2, 4, 5, 6])) }
}

/// Peers as a table with a head.
pub(super) fn rows(peers: &[Fields], is_running: bool) -> String {
    let head = ["NAME", "ID", "ROLE", "SEEN", "HOLDS FOR US", "WE HOLD", "QUOTA", "ADDRESS"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    rows.extend(peers.iter().map(|peer| {
        let seen = match (peer.is("online") && is_running, peer.some("last_seen_s")) {
            (true, _) => "now".to_owned(),
            (false, Some(seconds)) => format!("{} ago", show::duration(seconds)),
            (false, None) => "never".to_owned(),
        };
        let quota = match peer.some("quota_bytes") {
            Some(0) if peer.is("quota_by_rules") => "by bounty".to_owned(),
            Some(0) => "to reserve".to_owned(),
            Some(bytes) => show::bytes(bytes),
            None => "-".to_owned(),
        };
        let address = match (peer.text("address"), peer.texts("addresses").first()) {
            ("", Some(address)) => address.clone(),
            (address, _) => address.to_owned(),
        };
        let star = if peer.is("favorite") { "*" } else { "" };
        vec![
            show::text(peer.text("name")).replace('\n', " "),
            show::text(peer.text("id").get(..16).unwrap_or(peer.text("id"))),
            format!("{}{star}", show::text(peer.text("role"))),
            seen,
            show::bytes(peer.number("held_for_us_bytes")),
            show::bytes(peer.number("held_for_them_bytes")),
            quota,
            show::text(&address),
        ]
    }));
    show::table(&rows, &[4, 5, 6])
}

/// make an invite that brings in one other cell
#[derive(FromArgs, Debug, PartialEq)]
#[argh(
    subcommand,
    name = "invite",
    help_triggers("-h", "--help"),
    note = "The invite is printed as one word beginning with `grove:`. It serves once; on the other cell: grove join INVITE"
)]
pub struct Invite {
    /// invite a friend, who may besides share files and chat, instead of a peer that only holds chunks
    #[argh(switch)]
    friend: bool,
    /// how long it holds, for example 12h or 7d (default 7d)
    #[argh(option, arg_name = "time", default = "INVITE_EXPIRES_S", from_str_fn(read_duration))]
    expires: u64,
    /// list the invites made so far
    #[argh(switch)]
    list: bool,
    /// make an invite void
    #[argh(option, arg_name = "id")]
    revoke: Option<Word>,
    /// print the JSON of the API
    #[argh(switch)]
    json: bool,
}

fn read_duration(text: &str) -> Result<u64, String> {
    show::read_duration(text)
}

impl Invite {
    pub(super) fn run(self, context: &mut Context<'_>) -> Result<(), CliError> {
        if self.list && self.revoke.is_some() {
            return Err(CliError::Usage("--list or --revoke, one of them".to_owned()));
        }
        let mut cell = context.running_cell()?;
        self.with(context, &mut *cell)
    }

    fn with(&self, context: &mut Context<'_>, cell: &mut dyn Cell) -> Result<(), CliError> {
        let mut answer = if self.list {
            cell.ask(Method::Get, "/invites", &[], None)?
        } else if let Some(id) = &self.revoke {
            let body = object([("id", Value::String(id.text()?.to_owned()))]);
            cell.ask(Method::Post, "/invites/revoke", &[], Some(body))?
        } else {
            let role = if self.friend { "friend" } else { "peer" };
            let body =
                object([("role", Value::String(role.to_owned())), ("expires_s", number(self.expires))]);
            cell.ask(Method::Post, "/invites", &[], Some(body))?
        };
        if self.json {
            writeln!(context.out, "{}", answer.text)?;
        } else if self.list {
            let mut rows =
                vec![["ID", "ROLE", "STATE", "HOLDS UNTIL", "USED BY"].map(str::to_owned).to_vec()];
            rows.extend(answer.fields.list("invites").iter().map(|invite| {
                let until = invite.signed("expires_s").map_or("-".to_owned(), show::time);
                let text = |key| show::text(invite.text(key)).replace('\n', " ");
                vec![text("id"), text("role"), text("state"), until, text("used_by")]
            }));
            context.out.write_all(show::table(&rows, &[]).as_bytes())?;
        } else if self.revoke.is_some() {
            writeln!(context.out, "The invite is void.")?;
        } else {
            let addresses = answer.fields.texts("addresses");
            writeln!(context.out, "{}", show::text(answer.fields.text("token")))?;
            context.out.flush()?;
            let err = &mut *context.err;
            let _ = writeln!(
                err,
                "On the other cell: grove join INVITE. It serves once, for {}.",
                show::duration(self.expires)
            );
            let _ = match addresses.is_empty() {
                true => writeln!(err, "It names no address of this cell: set peer.addresses in config.json."),
                false => {
                    writeln!(err, "The other cell must reach one of: {}", show::text(&addresses.join(", ")))
                }
            };
        }
        Ok(())
    }
}

/// take up an invite of another cell
#[derive(FromArgs, Debug, PartialEq)]
#[argh(subcommand, name = "join", help_triggers("-h", "--help"))]
pub struct Join {
    /// the invite: one word that begins with grove:
    #[argh(positional, arg_name = "invite")]
    token: Word,
    /// print the JSON of the API
    #[argh(switch)]
    json: bool,
}

impl Join {
    pub(super) fn run(self, context: &mut Context<'_>) -> Result<(), CliError> {
        let token = self.token.text()?.trim().to_owned();
        let mut cell = context.running_cell()?;
        let body = object([("token", Value::String(token))]);
        let answer = cell.ask(Method::Post, "/join", &[], Some(body))?;
        match self.json {
            true => writeln!(context.out, "{}", answer.text)?,
            false => writeln!(context.out, "{} is a peer now.", whom(&answer.fields))?,
        }
        Ok(())
    }
}

fn whom(fields: &Fields) -> String {
    let id = fields.text("id");
    show::text(&format!("{} ({})", fields.text("name"), id.get(..16).unwrap_or(id)))
}

/// change how this cell gets on with a peer
#[derive(FromArgs, Debug, PartialEq)]
#[argh(
    subcommand,
    name = "peer",
    help_triggers("-h", "--help"),
    note = "A peer is named by its name or by the beginning of its id."
)]
pub struct Peer {
    #[argh(subcommand)]
    command: PeerCommand,
}

#[derive(FromArgs, Debug, PartialEq)]
#[argh(subcommand)]
enum PeerCommand {
    Remove(PeerRemove),
    Quota(PeerQuota),
    Favorite(PeerFavorite),
    Friend(PeerFriend),
    Unfriend(PeerUnfriend),
    Name(PeerName),
}

/// end the acquaintance: neither holds chunks for the other any more
#[derive(FromArgs, Debug, PartialEq)]
#[argh(subcommand, name = "remove", help_triggers("-h", "--help"))]
struct PeerRemove {
    /// name, or beginning of the id
    #[argh(positional)]
    peer: Word,
    /// print the JSON of the API
    #[argh(switch)]
    json: bool,
}

/// how much a peer may store here
#[derive(FromArgs, Debug, PartialEq)]
#[argh(subcommand, name = "quota", help_triggers("-h", "--help"))]
struct PeerQuota {
    /// name, or beginning of the id
    #[argh(positional)]
    peer: Word,
    /// for example 500M, 10G or 1.5T; 0 for as much as the reserve of the disk leaves
    #[argh(positional, from_str_fn(read_bytes))]
    size: u64,
    /// print the JSON of the API
    #[argh(switch)]
    json: bool,
}

fn read_bytes(text: &str) -> Result<u64, String> {
    show::read_bytes(text)
}

/// prefer a peer when copies are placed
#[derive(FromArgs, Debug, PartialEq)]
#[argh(subcommand, name = "favorite", help_triggers("-h", "--help"))]
struct PeerFavorite {
    /// name, or beginning of the id
    #[argh(positional)]
    peer: Word,
    /// no longer
    #[argh(switch)]
    off: bool,
    /// print the JSON of the API
    #[argh(switch)]
    json: bool,
}

/// ask a peer for friendship, or accept its request
#[derive(FromArgs, Debug, PartialEq)]
#[argh(subcommand, name = "friend", help_triggers("-h", "--help"))]
struct PeerFriend {
    /// name, or beginning of the id
    #[argh(positional)]
    peer: Word,
    /// print the JSON of the API
    #[argh(switch)]
    json: bool,
}

/// end a friendship, decline a request or take one back; it stays a peer
#[derive(FromArgs, Debug, PartialEq)]
#[argh(subcommand, name = "unfriend", help_triggers("-h", "--help"))]
struct PeerUnfriend {
    /// name, or beginning of the id
    #[argh(positional)]
    peer: Word,
    /// print the JSON of the API
    #[argh(switch)]
    json: bool,
}

/// call a peer by a name of your own, here and nowhere else
#[derive(FromArgs, Debug, PartialEq)]
#[argh(subcommand, name = "name", help_triggers("-h", "--help"))]
struct PeerName {
    /// name, or beginning of the id
    #[argh(positional)]
    peer: Word,
    /// what to call it; empty for what it calls itself
    #[argh(positional)]
    label: Word,
    /// print the JSON of the API
    #[argh(switch)]
    json: bool,
}

/// How a peer stands after `grove peer friend` and `unfriend`.
fn standing_words(name: &str, answer: &Fields) -> String {
    let later = if answer.is("told") { "" } else { "; it hears of it when it is next connected" };
    match answer.text("friendship") {
        "friends" => format!("{name} is a friend now{later}."),
        "asked" => format!("{name} is asked for friendship{later}."),
        "wanted" => format!("{name} wants to be a friend{later}."),
        _ => format!("{name} is a peer and no friend{later}."),
    }
}

impl Peer {
    pub(super) fn run(self, context: &mut Context<'_>) -> Result<(), CliError> {
        let named = |peer: &Word| Ok::<_, CliError>(Value::String(peer.text()?.to_owned()));
        let (path, body, said, json) = match &self.command {
            PeerCommand::Remove(command) => {
                let said = format!("{} is no peer any more.", show::name(&command.peer.0));
                ("/peers/remove", object([("peer", named(&command.peer)?)]), said, command.json)
            }
            PeerCommand::Quota(command) => {
                let name = show::name(&command.peer.0);
                let said = match command.size {
                    0 => format!("{name} may store here what the reserve of the disk leaves."),
                    bytes => format!("{name} may store {} here.", show::bytes(bytes)),
                };
                let body = object([("peer", named(&command.peer)?), ("bytes", number(command.size))]);
                ("/peers/quota", body, said, command.json)
            }
            PeerCommand::Favorite(command) => {
                let not = if command.off { "no " } else { "a " };
                let said = format!("{} is {not}favorite now.", show::name(&command.peer.0));
                let body = object([("peer", named(&command.peer)?), ("on", Value::Bool(!command.off))]);
                ("/peers/favorite", body, said, command.json)
            }
            PeerCommand::Friend(PeerFriend { peer, json }) => {
                ("/peers/friend", object([("peer", named(peer)?)]), String::new(), *json)
            }
            PeerCommand::Unfriend(PeerUnfriend { peer, json }) => {
                ("/peers/unfriend", object([("peer", named(peer)?)]), String::new(), *json)
            }
            PeerCommand::Name(command) => {
                let said = match command.label.text()? {
                    "" => format!("{} goes by the name it gives itself.", show::name(&command.peer.0)),
                    label => format!("{} is called {} here.", show::name(&command.peer.0), show::text(label)),
                };
                let body = object([("peer", named(&command.peer)?), ("name", named(&command.label)?)]);
                ("/peers/name", body, said, command.json)
            }
        };
        let mut cell = context.cell()?;
        let answer = cell.ask(Method::Post, path, &[], Some(body))?;
        let said = match &self.command {
            PeerCommand::Friend(PeerFriend { peer, .. })
            | PeerCommand::Unfriend(PeerUnfriend { peer, .. }) => {
                standing_words(&show::name(&peer.0), &answer.fields)
            }
            _ => said,
        };
        match json {
            true => writeln!(context.out, "{}", answer.text)?,
            false => writeln!(context.out, "{said}")?,
        }
        Ok(())
    }
}

/// bring this cell and its peers level now
#[derive(FromArgs, Debug, PartialEq)]
#[argh(subcommand, name = "sync", help_triggers("-h", "--help"))]
pub struct Sync {
    /// return only when every chunk has the copies it should have
    #[argh(switch)]
    wait: bool,
    /// print the JSON of the API
    #[argh(switch)]
    json: bool,
}

impl Sync {
    pub(super) fn run(self, context: &mut Context<'_>) -> Result<(), CliError> {
        let mut cell = context.running_cell()?;
        self.with(context, &mut *cell)
    }

    fn with(&self, context: &mut Context<'_>, cell: &mut dyn Cell) -> Result<(), CliError> {
        let mut outcome = job::run(context, cell, "/sync", object([("wait", Value::Bool(self.wait))]))?;
        let peers = outcome.result.list("peers");
        let waiting = outcome.result.number("waiting_chunks");
        if self.json {
            writeln!(context.out, "{}", outcome.text)?;
        } else {
            for peer in &peers {
                let name = show::text(peer.text("name")).replace('\n', " ");
                match peer.is("reached") {
                    true => {
                        let part = |kind: &str| {
                            let chunks = show::of(peer.number(&format!("{kind}_chunks")), "chunk", "chunks");
                            format!("{chunks} ({})", show::bytes(peer.number(&format!("{kind}_bytes"))))
                        };
                        write!(context.out, "{name}: sent {}, got {}", part("pushed"), part("pulled"))?;
                        match peer.text("why") {
                            "" => writeln!(context.out)?,
                            why => writeln!(context.out, "; {}", show::text(why))?,
                        }
                    }
                    false => writeln!(context.out, "{name}: not reached: {}", show::text(peer.text("why")))?,
                }
            }
            if peers.is_empty() {
                writeln!(context.out, "No peers yet. `grove invite` brings one in.")?;
            } else if waiting > 0 {
                writeln!(context.out, "{}", still_wait(waiting))?;
            } else {
                writeln!(context.out, "every chunk has its copies")?;
            }
        }
        context.out.flush()?;
        if self.wait && waiting > 0 {
            let hint = "`grove peers` and `grove status` say what is in the way";
            return Err(CliError::new(still_wait(waiting), hint));
        }
        match !peers.is_empty() && !peers.iter().any(|peer| peer.is("reached")) {
            true => {
                Err(CliError::new("no peer was reached", "are they on, and can they be reached from here?"))
            }
            false => Ok(()),
        }
    }
}

fn still_wait(chunks: u64) -> String {
    show::of(chunks, "chunk still waits for its copies", "chunks still wait for their copies")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::testing::Setup;

    #[test]
    fn peers_are_a_table() {
        let setup = Setup::new();
        setup.fake.answer("GET /peers", r#"{"peers":[]}"#);
        assert!(setup.grove("peers", "").out.contains("grove invite"));
        setup.fake.answer(
            "GET /peers",
            r#"{"peers":[{"name":"b\u001b[2Job","id":"abababababababababab","role":"peer","online":true,"address":"","last_seen_s":null,"held_for_us_bytes":2048,"quota_bytes":0,"favorite":true,"addresses":["10.0.0.1:5679"],"error":"timed out"},
            {"name":"cy","id":"cdcdcdcdcdcdcdcdcdcd","role":"peer","quota_bytes":0,"quota_by_rules":true}]}"#,
        );
        let told = setup.grove("peers", "");
        let lines: Vec<&str> = told.out.lines().collect();
        assert!(lines[2].ends_with(" by bounty"), "{told:?}");
        assert!(
            lines[1].contains("abababababababab  peer*  never")
                && lines[1].ends_with("to reserve  10.0.0.1:5679"),
            "{told:?}"
        );
        assert!(lines[3].ends_with(": timed out") && !told.out.contains('\u{1b}'), "{told:?}");
    }

    #[test]
    fn what_needs_peers_needs_a_running_cell() {
        let setup = Setup::new();
        for line in ["invite", "join grove:x", "sync --wait"] {
            let told = setup.grove(line, "");
            assert_eq!(told.code, 1);
            assert_eq!(told.err, "grove: the cell is not running\nstart it with `grove run`\n");
        }
        assert_eq!(setup.grove("invite --expires never", "").code, 2);
        assert_eq!(setup.grove("invite --list --revoke x", "").code, 2);
    }

    #[test]
    fn invite_prints_the_token_alone() {
        let setup = Setup::new();
        setup.fake.answer("POST /invites", r#"{"id":"1","token":"grove:ABC","addresses":["a:1"]}"#);
        let invite = Invite { friend: true, expires: 60, list: false, revoke: None, json: false };
        let told = setup.with(|context, cell| invite.with(context, cell));
        assert_eq!((told.code, told.out.as_str()), (0, "grove:ABC\n"));
        assert!(told.err.contains("1 min") && told.err.contains("a:1"), "{told:?}");
        assert_eq!(setup.fake.told.borrow()[0], r#"POST /invites {"expires_s":60,"role":"friend"}"#);
    }

    #[test]
    fn peers_are_changed() {
        let setup = Setup::new();
        for path in ["remove", "quota", "favorite", "name"] {
            setup.fake.answer(&format!("POST /peers/{path}"), "{}");
        }
        setup.fake.answer("POST /peers/friend", r#"{"friendship":"asked","told":false}"#);
        setup.fake.answer("POST /peers/unfriend", r#"{"friendship":"none","told":true}"#);
        assert_eq!(setup.grove("peer remove bob", "").code, 0);
        assert!(setup.grove("peer quota bob 10G", "").out.contains("10 GiB"));
        assert_eq!(setup.grove("peer favorite bob --off", "").code, 0);
        let told = setup.grove("peer friend bob", "").out;
        assert_eq!(told, "bob is asked for friendship; it hears of it when it is next connected.\n");
        assert_eq!(setup.grove("peer unfriend bob", "").out, "bob is a peer and no friend.\n");
        assert_eq!(setup.grove("peer name bob robert", "").out, "bob is called robert here.\n");
        assert_eq!(
            *setup.fake.told.borrow(),
            [
                r#"POST /peers/remove {"peer":"bob"}"#,
                r#"POST /peers/quota {"bytes":10737418240,"peer":"bob"}"#,
                r#"POST /peers/favorite {"on":false,"peer":"bob"}"#,
                r#"POST /peers/friend {"peer":"bob"}"#,
                r#"POST /peers/unfriend {"peer":"bob"}"#,
                r#"POST /peers/name {"name":"robert","peer":"bob"}"#,
            ]
        );
    }

    #[test]
    fn sync_fails_while_chunks_wait_or_nobody_is_reached() {
        let setup = Setup::new();
        let bob = r#"{"name":"bob","reached":true,"pushed_chunks":1,"pushed_bytes":1024,"pulled_chunks":0,"pulled_bytes":0,"why":""}"#;
        let cy = r#"{"name":"cy","reached":false,"why":"refused"}"#;
        for (peers, waiting, wait, code) in [
            (format!("{bob},{cy}"), 0, true, 0),
            (bob.to_owned(), 5, true, 1),
            (bob.to_owned(), 5, false, 0),
            (cy.to_owned(), 0, false, 1),
            (String::new(), 0, false, 0),
        ] {
            setup.fake.answer("POST /sync", r#"{"job":4}"#);
            let result = format!(r#"{{"peers":[{peers}],"waiting_chunks":{waiting}}}"#);
            setup.fake.answer("GET /jobs/4", &format!(r#"{{"state":"done","result":{result}}}"#));
            let told = setup.with(|context, cell| Sync { wait, json: false }.with(context, cell));
            assert_eq!(told.code, code, "{told:?}");
            if peers.contains(bob) {
                assert!(
                    told.out.starts_with("bob: sent 1 chunk (1.0 KiB), got 0 chunks (0 B)\n"),
                    "{told:?}"
                );
            }
        }
    }
}

//! What a person would change of config.json: in words, with its limits, and written whole.

use std::net::TcpListener;
use std::rc::Rc;
use std::sync::Arc;

use miniserde::json::{self, Value};

use super::Cell;
use super::json::{Obj, list, text};
use crate::config::{Config, ConfigError};
use crate::dashboard::api::ApiResponse;
use crate::logger;
use crate::pool;
use crate::vault::{VaultError, write_whole};

/// How a setting is shown and who may change it.
#[derive(Debug, Clone, Copy)]
struct Row {
    key: &'static str,
    group: &'static str,
    /// What it is counted in; empty: nothing.
    unit: &'static str,
    /// Smallest and largest number.
    range: Option<(u64, u64)>,
    /// What it may be, where it is one of a few.
    choices: &'static [&'static str],
    /// It can be changed over the network. Programs to run, and what could shut its owner out, cannot.
    is_editable: bool,
    text: &'static str,
}

const fn row(key: &'static str, group: &'static str, unit: &'static str, text: &'static str) -> Row {
    Row { key, group, unit, range: None, choices: &[], is_editable: true, text }
}

const fn number(
    key: &'static str,
    group: &'static str,
    unit: &'static str,
    range: (u64, u64),
    text: &'static str,
) -> Row {
    Row { key, group, unit, range: Some(range), choices: &[], is_editable: true, text }
}

const fn in_file(key: &'static str, group: &'static str, text: &'static str) -> Row {
    Row { key, group, unit: "", range: None, choices: &[], is_editable: false, text }
}

/// The longest time and the largest size that make sense.
const YEAR_S: u64 = 365 * 86_400;
const BYTES: u64 = 1 << 50;

/// Every setting, in the order in which they are shown.
const TABLE: &[Row] = &[
    row("name", "Cell", "", "The name of this cell, as others see it. Empty: the name of the machine."),
    number("copies", "Safety", "copies", (1, 20), "How many cells hold each file, this one among them."),
    number(
        "versions.full_days",
        "Safety",
        "days",
        (0, 36_500),
        "All versions of a file are kept this long; after that they are thinned out.",
    ),
    number("versions.budget_percent", "Safety", "%", (0, 90), "Old versions may take this part of the disk."),
    number("bin.days", "Safety", "days", (0, 36_500), "Deleted files can be brought back this long."),
    number(
        "drill.days",
        "Safety",
        "days",
        (0, 365),
        "A few files are restored from peers alone and compared, this often. 0: only when you ask for it.",
    ),
    number(
        "scrub.days",
        "Safety",
        "days",
        (0, 3650),
        "Everything stored here is read and checked once in this time. 0: never.",
    ),
    number(
        "heal.grace_s",
        "Safety",
        "s",
        (0, YEAR_S),
        "A silent peer is waited for this long before its copies are made elsewhere. 0: by its habits, from 1 to 72 hours.",
    ),
    number(
        "heal.settle_s",
        "Safety",
        "s",
        (0, YEAR_S),
        "A peer that comes back must stay this long before it counts again.",
    ),
    number("disk.reserve_percent", "Disk", "%", (0, 90), "This part of the disk always stays free."),
    number("disk.reserve_bytes_min", "Disk", "bytes", (0, BYTES), "At least this much always stays free."),
    number(
        "quota.default_bytes",
        "Disk",
        "bytes",
        (0, BYTES),
        "How much a peer may store here, unless you said otherwise. 0: by the rules that follow.",
    ),
    number(
        "bounty.base_bytes",
        "Disk",
        "bytes",
        (0, BYTES),
        "How much any peer may store here, whatever it stores for you.",
    ),
    number(
        "bounty.ratio_percent",
        "Disk",
        "%",
        (0, 10_000),
        "How much more a peer may store here, of what it stores for you and has proven.",
    ),
    number(
        "bounty.friend_bytes",
        "Disk",
        "bytes",
        (0, BYTES),
        "How much a friend or favorite may store here. 0: as much as there is room for.",
    ),
    number(
        "bounty.vetting_bytes",
        "Disk",
        "bytes",
        (0, BYTES),
        "How much a new peer may store here until its first proofs.",
    ),
    number(
        "scrub.bytes_per_s",
        "Disk",
        "bytes/s",
        (65_536, BYTES),
        "How fast the disk is read to check what is stored.",
    ),
    number(
        "limit.up_bytes_per_s",
        "Network",
        "bytes/s",
        (0, BYTES),
        "Upload to all peers together. 0: no limit; otherwise at least 32768.",
    ),
    number(
        "limit.down_bytes_per_s",
        "Network",
        "bytes/s",
        (0, BYTES),
        "Download from all peers together. 0: no limit; otherwise at least 32768.",
    ),
    number(
        "limit.peer_up_bytes_per_s",
        "Network",
        "bytes/s",
        (0, BYTES),
        "Upload to each peer. 0: no limit; otherwise at least 32768.",
    ),
    number(
        "limit.peer_down_bytes_per_s",
        "Network",
        "bytes/s",
        (0, BYTES),
        "Download from each peer. 0: no limit; otherwise at least 32768.",
    ),
    row("limit.lan", "Network", "", "The limits hold for peers in the same network, too."),
    row("lan.discovery", "Network", "", "Find peers in the same network by beacons (UDP port 5680)."),
    row("portmap", "Network", "", "Ask the router to let peers in (PCP, NAT-PMP)."),
    row(
        "peer.addresses",
        "Network",
        "",
        "Further addresses (host:port) under which peers may reach this cell.",
    ),
    number("peer.port", "Network", "", (0, 65_535), "The port on which peers reach this cell."),
    number(
        "sync.every_s",
        "Network",
        "s",
        (1, 86_400),
        "Peers are compared with this often, when nothing changes.",
    ),
    number(
        "routes.measure_hours",
        "Network",
        "hours",
        (0, 8760),
        "All ways to each peer are measured this often. 0: only when you ask for it.",
    ),
    row("relay.urls", "Relays", "", "Relays at which this cell can be called (wss://…), at most 8."),
    row(
        "relay.pins",
        "Relays",
        "",
        "SHA-256 of certificates of relays that are trusted whoever vouches for them.",
    ),
    row("relay.serve", "Relays", "", "This cell is a relay for others."),
    row("relay.allow", "Relays", "", "Whom it serves as a relay: cell ids, peers, or all."),
    number(
        "relay.clients_max",
        "Relays",
        "cells",
        (0, 1_000_000),
        "Cells that may wait at this relay at once.",
    ),
    number(
        "relay.circuits_max",
        "Relays",
        "circuits",
        (1, 64),
        "Circuits of one cell through this relay at once.",
    ),
    number(
        "relay.bytes_per_s",
        "Relays",
        "bytes/s",
        (0, BYTES),
        "What this relay takes from one cell. 0: as fast as it comes.",
    ),
    number(
        "relay.connects_per_minute",
        "Relays",
        "",
        (1, 1_000_000),
        "Connections to this relay from one address in a minute.",
    ),
    number("http.port", "Dashboard", "", (0, 65_535), "The port of this dashboard."),
    row("dashboard.hosts", "Dashboard", "", "Further names under which this dashboard may be opened."),
    number("scan.hours", "Advanced", "hours", (1, 720), "GroveHome is looked through as a whole this often."),
    number(
        "settle.closed_ms",
        "Advanced",
        "ms",
        (0, 3_600_000),
        "A file that was closed counts as finished after this.",
    ),
    number(
        "settle.open_ms",
        "Advanced",
        "ms",
        (0, 3_600_000),
        "A file that is still open counts as finished after this much quiet.",
    ),
    number(
        "jobs",
        "Advanced",
        "jobs",
        (0, 64),
        "Chunks worked on at once. 0: as many as the machine has cores, up to 4.",
    ),
    row("ai.backends", "AI", "", "Model servers, besides those named on the tab AI. http://host:port each."),
    row(
        "ai.managed",
        "AI",
        "",
        "A .gguf file in the folder models is run by llama-server, when it is asked for.",
    ),
    number(
        "ai.idle_s",
        "AI",
        "s",
        (10, 86_400),
        "That model leaves the memory after this long without a question.",
    ),
    number(
        "ai.context",
        "AI",
        "tokens",
        (256, 1_048_576),
        "How many tokens question and answer may have together there.",
    ),
    Row {
        choices: &["error", "warn", "info", "debug", "trace"],
        ..row("log.level", "Advanced", "", "How much is written to the log.")
    },
    in_file("http.listen", "Dashboard", "The address that this dashboard listens on."),
    in_file("peer.listen", "Network", "The address on which peers are listened for."),
    in_file("alerts.command", "Advanced", "A program that is run when an alert begins or ends."),
];

/// Changes at once, without a new start.
const AT_ONCE: &[&str] = &["log.level"];

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::Array(_) => "list",
        _ => "text",
    }
}

fn row_of(key: &str) -> Option<Row> {
    TABLE.iter().find(|row| row.key == key).copied()
}

/// A setting that has no words yet is only in the file.
fn row_or_plain(key: &'static str) -> Row {
    row_of(key).unwrap_or_else(|| in_file(key, "Advanced", ""))
}

/// All settings: as the file has them, as they are by default, and as the running cell has them.
fn all_json(file: &Config, running: &Config) -> String {
    let (values, defaults, now) = (file.values_now(), Config::default().values_now(), running.values_now());
    let of = |all: &[(&'static str, Value)], key: &str| {
        all.iter()
            .find(|(known, _)| *known == key)
            .map_or("null".to_owned(), |(_, value)| json::to_string(value))
    };
    let mut keys: Vec<&'static str> = TABLE.iter().map(|row| row.key).collect();
    keys.extend(Config::KEYS.iter().filter(|key| row_of(key).is_none()));
    let items = keys.into_iter().map(|key| {
        let row = row_or_plain(key);
        let (value, running) = (of(&values, key), of(&now, key));
        let kind = values.iter().find(|(known, _)| *known == key).map_or("text", |(_, value)| kind(value));
        let mut item = Obj::new()
            .str("key", key)
            .bool("pending", value != running && !AT_ONCE.contains(&key))
            .raw("value", value)
            .raw("default", of(&defaults, key))
            .str("type", kind)
            .str("group", row.group)
            .str("unit", row.unit)
            .str("text", row.text)
            .bool("editable", row.is_editable)
            .bool("restart", !AT_ONCE.contains(&key));
        if let Some((min, max)) = row.range {
            item = item.num("min", min).num("max", max);
        }
        if !row.choices.is_empty() {
            item = item.raw("choices", list(row.choices.iter().map(|choice| text(choice))));
        }
        item.end()
    });
    Obj::new().raw("settings", list(items)).end()
}

/// Why settings are not changed.
#[derive(Debug)]
enum NotSet {
    Body,
    Unknown(String),
    OnlyInFile(String),
    Wrong(ConfigError),
    Port(u64, String),
    File(VaultError),
}

impl NotSet {
    fn answer(&self) -> ApiResponse {
        match self {
            Self::Body => {
                ApiResponse::error(400, "bad_request", "the body is not a JSON object of settings", "")
            }
            Self::Unknown(key) => {
                ApiResponse::error(400, "unknown_setting", &format!("there is no setting \"{key}\""), "")
            }
            Self::OnlyInFile(key) => ApiResponse::error(
                403,
                "only_in_file",
                &format!("\"{key}\" can be changed in config.json only"),
                "edit the file on the cell itself, and start the cell anew",
            ),
            Self::Wrong(why) => {
                let text = why.to_string();
                let text = text.strip_prefix("config.json: ").unwrap_or(&text);
                ApiResponse::error(400, "bad_setting", text, "")
            }
            Self::Port(port, why) => ApiResponse::error(
                409,
                "port_taken",
                &format!("port {port} cannot be listened on: {why}"),
                "choose another",
            ),
            Self::File(why) => super::api::failure(why),
        }
    }
}

/// The file with these changes, checked as it is at every start.
fn changed(file: &Config, body: &[u8]) -> Result<(Config, Vec<String>), NotSet> {
    let body = std::str::from_utf8(body).map_err(|_| NotSet::Body)?;
    let Ok(Value::Object(asked)) = json::from_str::<Value>(body) else { return Err(NotSet::Body) };
    let mut config = file.clone();
    let mut keys = Vec::new();
    for (key, value) in &asked {
        if !Config::KEYS.contains(&key.as_str()) {
            return Err(NotSet::Unknown(key.clone()));
        }
        if !row_of(key).is_some_and(|row| row.is_editable) {
            return Err(NotSet::OnlyInFile(key.clone()));
        }
        config.set(key, value).map_err(NotSet::Wrong)?;
        keys.push(key.clone());
    }
    // What was written is what will be read.
    let again = Config::parse(&config.to_text()).map_err(NotSet::Wrong)?;
    Ok((again, keys))
}

impl Cell {
    fn config_path(&self) -> std::path::PathBuf {
        self.vault.dir.join("config.json")
    }

    pub(super) async fn settings(&self) -> ApiResponse {
        let (path, vault) = (self.config_path(), Arc::clone(&self.vault));
        let read = pool::unblock(move || {
            let file = Config::load(&path).map_err(VaultError::io("cannot read config.json"))?;
            let file = file.map_err(|why| VaultError::Refused(why.to_string()))?;
            Ok(all_json(&file, &vault.config))
        });
        super::api::json(read.await)
    }

    /// Writes settings into config.json. No two requests at once.
    pub(super) async fn change_settings(self: &Rc<Self>, body: Vec<u8>) -> ApiResponse {
        let _one = self.setting.lock().await;
        let (path, vault) = (self.config_path(), Arc::clone(&self.vault));
        let written = pool::unblock(move || -> Result<_, NotSet> {
            let read = Config::load(&path);
            let file = read.map_err(VaultError::io("cannot read config.json")).map_err(NotSet::File)?;
            let file = file.map_err(NotSet::Wrong)?;
            let (config, keys) = changed(&file, &body)?;
            let running = &vault.config;
            for (port, before, now) in [
                (config.http_port, file.http_port, running.http_port),
                (config.peer_port, file.peer_port, running.peer_port),
            ] {
                if port != before && port != now && port != 0 {
                    TcpListener::bind(("0.0.0.0", port as u16))
                        .map_err(|why| NotSet::Port(port, why.to_string()))?;
                }
            }
            write_whole(&path, config.to_text().as_bytes())
                .map_err(VaultError::io("cannot write config.json"))
                .map_err(NotSet::File)?;
            Ok((config, keys))
        });
        match written.await {
            Ok((config, keys)) => {
                if keys.iter().any(|key| key == "log.level") {
                    logger::start(config.log_level.parse().unwrap_or(log::LevelFilter::Info));
                }
                let restart = keys.iter().any(|key| !AT_ONCE.contains(&key.as_str()));
                let answer = Obj::new()
                    .raw("changed", list(keys.iter().map(|key| text(key))))
                    .bool("restart", restart);
                ApiResponse::json_text(200, answer.end())
            }
            Err(why) => why.answer(),
        }
    }
}

/// The lines of the log after a number.
pub(super) fn logs_json(after: u64) -> String {
    let lines = logger::recent_after(after);
    let last = lines.last().map_or(after, |line| line.n);
    let items = lines.iter().map(|line| {
        Obj::new()
            .num("n", line.n)
            .num("unix_ms", line.unix_ms)
            .str("level", &line.level.as_str().to_lowercase())
            .str("text", &line.text)
            .end()
    });
    Obj::new().raw("lines", list(items)).num("last", last).end()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_setting_has_words_and_stands_once() {
        let mut keys: Vec<&str> = TABLE.iter().map(|row| row.key).collect();
        for key in Config::KEYS {
            assert!(keys.contains(key), "{key} has no words for people");
        }
        keys.sort_unstable();
        let before = keys.len();
        keys.dedup();
        assert_eq!(keys.len(), before);
        for row in TABLE {
            assert!(Config::KEYS.contains(&row.key), "{} is no setting", row.key);
            assert!(row.text.ends_with(['.', ')']) && !row.group.is_empty(), "{}", row.key);
        }
    }

    #[test]
    fn ends_of_every_range_are_taken_by_the_reader_of_the_file() {
        for row in TABLE.iter().filter(|row| row.is_editable) {
            let Some((min, max)) = row.range else { continue };
            for value in [min, max] {
                let body = format!("{{\"{}\":{value}}}", row.key);
                let (config, _) = changed(&Config::default(), body.as_bytes())
                    .unwrap_or_else(|why| panic!("{} = {value}: {why:?}", row.key));
                assert!(config.to_text().contains(&format!("\"{}\": {value}", row.key)));
            }
        }
    }

    #[test]
    fn what_runs_programs_or_shuts_out_is_only_in_the_file() {
        let refused = |body: &str| changed(&Config::default(), body.as_bytes()).unwrap_err().answer().status;
        for key in ["alerts.command", "http.listen", "peer.listen"] {
            assert_eq!(refused(&format!("{{\"{key}\":\"x\"}}")), 403, "{key}");
        }
        for bad in [
            "",
            "[]",
            "{\"nothing\":1}",
            "{\"copies\":0}",
            "{\"copies\":\"2\"}",
            "{\"copies\":-1}",
            "{\"copies\":1.5}",
            "{\"log.level\":\"loud\"}",
            "{\"relay.urls\":[1]}",
            "{\"copies\":3,\"name\":7}",
        ] {
            assert_eq!(refused(bad), 400, "{bad}");
        }
    }

    #[test]
    fn what_others_wrote_into_the_file_stays() {
        let file = Config::parse("{\"copies\":3,\"alerts.command\":[\"mail\"],\"future\":[1]}").unwrap();
        let (config, keys) = changed(&file, b"{\"bin.days\":7}").unwrap();
        assert_eq!((config.copies, config.bin_days, keys), (3, 7, vec!["bin.days".to_owned()]));
        let text = config.to_text();
        assert!(
            text.contains("\"alerts.command\": [\"mail\"]") && text.contains("\"future\": [1]"),
            "{text}"
        );
        let json = all_json(&config, &file);
        assert!(json.contains(
            "{\"key\":\"bin.days\",\"pending\":true,\"value\":7,\"default\":30,\"type\":\"number\""
        ));
    }
}

//! config.json: every setting with its default, and every limit of the program, with their units.
//!
//! The file is one flat JSON object. Keys that this version does not know are reported and kept.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use miniserde::json::{self, Number, Value};

use crate::card::RELAYS_MAX;
use crate::id::{CellId, unhex};

// Limits that are not settings.

/// Copies of a file in all, at most.
pub const COPIES_MAX: u64 = 20;
/// Chunk jobs at once, at most; also bounded by the cores.
pub const JOBS_MAX: usize = 4;
/// Threads of the blocking pool beyond chunk jobs, so that SQLite is never starved.
pub const POOL_EXTRA: usize = 2;
/// Files up to this size are read whole, many in one job. Bytes.
pub const SMALL_FILE_BYTES: u64 = 512 * 1024;
/// Bytes of small files in one job.
pub const JOB_BYTES: u64 = 1024 * 1024;
/// Files in one job.
pub const JOB_FILES: usize = 256;
/// Names looked at between two looks at anything else.
pub const WALK_NAMES: usize = 4096;
/// Bytes of sealed chunks made durable together.
pub const COMMIT_BYTES: usize = 64 * 1024 * 1024;
/// Bytes of small sealed chunks in memory before they are made durable.
pub const COMMIT_SMALL_BYTES: usize = 3 * 1024 * 1024;
/// Tries to read a file that changes while it is read, before it waits for quiet.
pub const READ_TRIES: u32 = 3;
/// A file changed more recently than this may change again unseen, within one tick of the file system's clock. ms.
pub const CLOCK_TICK_MS: u64 = 20;
/// Publication while a long import runs. s.
pub const PUBLISH_S: u64 = 30;
/// Records held by one transaction of a merge or a recovery.
pub const RECORDS_PER_CHANGE: usize = 2000;
/// Time to stop in. ms.
pub const STOP_MS: u64 = 1500;
/// Versions of one file within its first hour are all kept; after it one in this time. s.
pub const VERSION_SPACING_S: u64 = 300;
/// See `VERSION_SPACING_S`.
pub const VERSION_FREE_S: u64 = 3600;
/// Trash of released chunks. s.
pub const TRASH_S: u64 = 14 * 86_400;
/// A chunk that came longer ago than this has grown cold. s.
pub const COLD_S: u64 = 7 * 86_400;
/// Daily heads of peers are kept this long. s.
pub const HEADS_S: u64 = 30 * 86_400;
/// Segments that no head of their owner names yet are kept this long. s.
pub const STRAY_SEGMENTS_S: u64 = 86_400;
/// Catalog of one peer, outside its quota. Bytes.
pub const PEER_CATALOG_BYTES_MAX: u64 = 1024 * 1024 * 1024;
/// Chunks of nobody known are kept this long after placement.db was made anew. s.
pub const UNKNOWN_CHUNKS_S: u64 = 90 * 86_400;
/// The brake counts what happened in this time. s.
pub const BRAKE_WINDOW_S: u64 = 86_400;
/// The brake lets this many files go whatever their share.
pub const BRAKE_FILES_FREE: u64 = 20;

macro_rules! settings {
    ($($(#[$doc:meta])* $key:literal $field:ident: $type:ty = $default:expr;)*) => {
        /// Every setting.
        #[derive(Debug, Clone, PartialEq)]
        pub struct Config {
            $($(#[$doc])* pub $field: $type,)*
            /// Keys of the file that this version does not know, as they stood there.
            pub unknown: Vec<String>,
            raw: BTreeMap<String, String>,
        }

        impl Default for Config {
            fn default() -> Self {
                Self { $($field: $default,)* unknown: Vec::new(), raw: BTreeMap::new() }
            }
        }

        impl Config {
            /// All keys, in the order of this file.
            pub const KEYS: &'static [&'static str] = &[$($key),*];

            fn take(&mut self, key: &str, value: &Value) -> Result<bool, ConfigError> {
                match key {
                    $($key => self.$field = Setting::read(value)
                        .ok_or_else(|| ConfigError::Value { key: key.into(), wanted: <$type as Setting>::WANTED })?,)*
                    _ => return Ok(false),
                }
                Ok(true)
            }

            fn values(&self) -> Vec<(&'static str, Value)> {
                vec![$(($key, self.$field.write()),)*]
            }
        }
    };
}

settings! {
    /// The cell's name, for people. Empty: the host's name.
    "name" name: String = String::new();
    /// Address the dashboard listens on.
    "http.listen" http_listen: String = "0.0.0.0".into();
    /// Port of the dashboard and API.
    "http.port" http_port: u64 = 5678;
    /// Address peers are listened for on.
    "peer.listen" peer_listen: String = "0.0.0.0".into();
    /// Port peers are listened for on.
    "peer.port" peer_port: u64 = 5679;
    /// Further addresses (host:port) under which peers may reach this cell.
    "peer.addresses" peer_addresses: Vec<String> = Vec::new();
    /// Names beside its own under which the dashboard may be opened.
    "dashboard.hosts" dashboard_hosts: Vec<String> = Vec::new();
    /// Copies of each chunk, this cell's own among them. 1 to 20.
    "copies" copies: u64 = 2;
    /// Bytes a peer may store here, where nothing else was said to it; 0: by the rules of the bounty, which follow.
    "quota.default_bytes" quota_bytes: u64 = 0;
    /// Bytes that any peer may store here, whatever it stores for this cell.
    "bounty.base_bytes" bounty_base_bytes: u64 = 256 << 30;
    /// What it stores for this cell, and has proven, adds to that so many hundredths of it.
    "bounty.ratio_percent" bounty_ratio_percent: u64 = 100;
    /// Bytes that a friend or favorite may store here; 0: up to the reserve.
    "bounty.friend_bytes" bounty_friend_bytes: u64 = 0;
    /// Bytes that a new peer may store here until its first proofs.
    "bounty.vetting_bytes" bounty_vetting_bytes: u64 = 8 << 30;
    /// Part of the disk that is never used. Percent.
    "disk.reserve_percent" reserve_percent: u64 = 5;
    /// At least so much is never used. Bytes.
    "disk.reserve_bytes_min" reserve_bytes_min: u64 = 256 * 1024 * 1024;
    /// Versions are kept in full this long. Days.
    "versions.full_days" versions_full_days: u64 = 30;
    /// Part of the disk that superseded versions may take. Percent.
    "versions.budget_percent" versions_budget_percent: u64 = 20;
    /// Deleted files can be restored this long. Days.
    "bin.days" bin_days: u64 = 30;
    /// Whole scans of GroveHome, beside the watch. Hours.
    "scan.hours" scan_hours: u64 = 6;
    /// A file that was closed or moved in counts as settled after this. ms.
    "settle.closed_ms" settle_closed_ms: u64 = 200;
    /// A file that is still open counts as settled after this much quiet. ms.
    "settle.open_ms" settle_open_ms: u64 = 2000;
    /// Rounds with peers, when nothing changes. s.
    "sync.every_s" sync_every_s: u64 = 300;
    /// A silent peer is waited for so long before what it holds is copied elsewhere. s; 0: by its habits, twice its usual
    /// absence, from 1 to 72 hours.
    "heal.grace_s" heal_grace_s: u64 = 0;
    /// A peer that comes back after that must stay so long before the copies made meanwhile are let go. s.
    "heal.settle_s" heal_settle_s: u64 = 86_400;
    /// Peers in the same network are found by beacons (UDP, port 5680).
    "lan.discovery" lan_discovery: bool = true;
    /// The router is asked to let peers in (PCP, NAT-PMP).
    "portmap" portmap: bool = true;
    /// Upload, all peers together. Bytes a second; 0: no limit.
    "limit.up_bytes_per_s" limit_up: u64 = 0;
    /// Download, all peers together. Bytes a second; 0: no limit.
    "limit.down_bytes_per_s" limit_down: u64 = 0;
    /// Upload to each peer. Bytes a second; 0: no limit.
    "limit.peer_up_bytes_per_s" limit_peer_up: u64 = 0;
    /// Download from each peer. Bytes a second; 0: no limit.
    "limit.peer_down_bytes_per_s" limit_peer_down: u64 = 0;
    /// The limits hold for peers in the local network, too.
    "limit.lan" limit_lan: bool = false;
    /// All routes to each peer are measured this often, by real transfers of at most 16 MiB a route. Hours; 0: only by
    /// `grove routes --bench`.
    "routes.measure_hours" routes_measure_hours: u64 = 6;
    /// Relays that this cell waits at: `ws://…` or `wss://…`, at most 8.
    "relay.urls" relay_urls: Vec<String> = Vec::new();
    /// SHA-256 of TLS certificates of relays that are accepted whoever vouches for them, in hexadecimal.
    "relay.pins" relay_pins: Vec<String> = Vec::new();
    /// Whether this cell is a relay for others, at `/relay` on the dashboard's port.
    "relay.serve" relay_serve: bool = false;
    /// Whom it serves as a relay: cell ids, `peers` for all that it knows, `all` for anybody.
    "relay.allow" relay_allow: Vec<String> = vec!["peers".into()];
    /// Cells that may wait at this relay at once.
    "relay.clients_max" relay_clients_max: u64 = 256;
    /// Circuits of one cell through this relay at once. 1 to 64.
    "relay.circuits_max" relay_circuits_max: u64 = 32;
    /// Bytes a second that this relay takes from one cell; 0: as fast as they come.
    "relay.bytes_per_s" relay_bytes_per_s: u64 = 0;
    /// Connects to this relay from one address in a minute.
    "relay.connects_per_minute" relay_connects_per_minute: u64 = 60;
    /// A program and its words that is run when an alert begins and when it is over: the alert is on its input as JSON, and in
    /// `GROVE_ALERT_…`. Without a shell, for 30 s at most. Only config.json can name it.
    "alerts.command" alerts_command: Vec<String> = Vec::new();
    /// A sample of files is restored from peers alone, and compared, this often. Days; 0: only by `grove drill`.
    "drill.days" drill_days: u64 = 7;
    /// Every chunk that lies here is read and compared with its name once in this time. Days; 0: never by itself.
    "scrub.days" scrub_days: u64 = 30;
    /// How fast it is read for that, at most. Bytes a second.
    "scrub.bytes_per_s" scrub_bytes_per_s: u64 = 4 * 1024 * 1024;
    /// Model servers besides those named in the dashboard: `http://host:port` each.
    "ai.backends" ai_backends: Vec<String> = Vec::new();
    /// A `.gguf` in the folder `models` is run by a `llama-server` of this machine, when it is asked for.
    "ai.managed" ai_managed: bool = true;
    /// That model leaves the memory after so long without a question. s.
    "ai.idle_s" ai_idle_s: u64 = 600;
    /// Tokens of question and answer together that it takes.
    "ai.context" ai_context: u64 = 4096;
    /// Chunk jobs at once; 0: as many as cores, up to 4.
    "jobs" jobs: u64 = 0;
    /// error, warn, info, debug or trace.
    "log.level" log_level: String = "info".into();
}

/// A type that a setting can have.
trait Setting: Sized {
    const WANTED: &'static str;
    fn read(value: &Value) -> Option<Self>;
    fn write(&self) -> Value;
}

impl Setting for String {
    const WANTED: &'static str = "a text";
    fn read(value: &Value) -> Option<Self> {
        if let Value::String(text) = value { Some(text.clone()) } else { None }
    }
    fn write(&self) -> Value {
        Value::String(self.clone())
    }
}

impl Setting for u64 {
    const WANTED: &'static str = "a whole number, 0 or more";
    fn read(value: &Value) -> Option<Self> {
        match value {
            Value::Number(Number::U64(number)) => Some(*number),
            Value::Number(Number::I64(number)) => u64::try_from(*number).ok(),
            _ => None,
        }
    }
    fn write(&self) -> Value {
        Value::Number(Number::U64(*self))
    }
}

impl Setting for bool {
    const WANTED: &'static str = "true or false";
    fn read(value: &Value) -> Option<Self> {
        if let Value::Bool(value) = value { Some(*value) } else { None }
    }
    fn write(&self) -> Value {
        Value::Bool(*self)
    }
}

impl Setting for Vec<String> {
    const WANTED: &'static str = "a list of texts";
    fn read(value: &Value) -> Option<Self> {
        if let Value::Array(items) = value { items.iter().map(String::read).collect() } else { None }
    }
    fn write(&self) -> Value {
        Value::Array(self.iter().map(Setting::write).collect())
    }
}

/// What is wrong with config.json.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConfigError {
    /// Not JSON, or no object.
    Json,
    /// A setting has a value of another type.
    Value { key: String, wanted: &'static str },
    /// A setting has a value that makes no sense.
    Range { key: &'static str, wanted: &'static str },
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Json => {
                f.write_str("config.json is not a JSON object; correct it, or move it away for the defaults")
            }
            Self::Value { key, wanted } => write!(f, "config.json: \"{key}\" must be {wanted}"),
            Self::Range { key, wanted } => write!(f, "config.json: \"{key}\" must be {wanted}"),
        }
    }
}

impl std::error::Error for ConfigError {}

/// Peers give up a body that comes slower than 4 KiB a second, and several share a line.
const LIMIT_BYTES_PER_S_MIN: u64 = 32 * 1024;
const LIMIT_WANTED: &str = "0 for no limit, or at least 32768";

fn is_limit(bytes_per_s: u64) -> bool {
    bytes_per_s == 0 || bytes_per_s >= LIMIT_BYTES_PER_S_MIN
}

/// Empty, or a program with its words.
fn is_command(words: &[String]) -> bool {
    let is_named = words.first().is_none_or(|program| !program.is_empty());
    is_named && words.len() <= 64 && words.iter().all(|word| !word.contains('\0'))
}

/// Settings of this machine alone, which no catalog brings. Whether and how it is a relay is its own affair; at which
/// relays the cell waits is the cell's.
fn is_of_machine(key: &str) -> bool {
    const THIS_MACHINE: &[&str] = &[
        "http.listen",
        "http.port",
        "peer.listen",
        "peer.port",
        "peer.addresses",
        "alerts.command",
        "ai.backends",
        "ai.managed",
        "ai.idle_s",
        "ai.context",
        "jobs",
        "log.level",
    ];
    let is_relay_of_its_own = key.starts_with("relay.") && !["relay.urls", "relay.pins"].contains(&key);
    THIS_MACHINE.contains(&key) || is_relay_of_its_own
}

impl Config {
    /// Reads the text of config.json.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let Ok(Value::Object(object)) = json::from_str::<Value>(text) else { return Err(ConfigError::Json) };
        let mut config = Self::default();
        for (key, value) in &object {
            config.raw.insert(key.clone(), json::to_string(value));
            if !config.take(key, value)? {
                config.unknown.push(key.clone());
            }
        }
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), ConfigError> {
        let rules = [
            ("copies", (1..=COPIES_MAX).contains(&self.copies), "from 1 to 20"),
            ("http.port", self.http_port <= 65_535, "a port, 0 to 65535"),
            ("peer.port", self.peer_port <= 65_535, "a port, 0 to 65535"),
            ("disk.reserve_percent", self.reserve_percent <= 90, "from 0 to 90"),
            ("versions.budget_percent", self.versions_budget_percent <= 90, "from 0 to 90"),
            ("bounty.ratio_percent", self.bounty_ratio_percent <= 10_000, "at most 10000"),
            ("sync.every_s", (1..=86_400).contains(&self.sync_every_s), "from 1 to 86400"),
            ("heal.grace_s", self.heal_grace_s <= 365 * 86_400, "at most 31536000"),
            ("heal.settle_s", self.heal_settle_s <= 365 * 86_400, "at most 31536000"),
            (
                "alerts.command",
                is_command(&self.alerts_command),
                "a list of a program and its words, at most 64",
            ),
            ("drill.days", self.drill_days <= 365, "at most 365"),
            ("scan.hours", (1..=720).contains(&self.scan_hours), "from 1 to 720"),
            ("scrub.days", self.scrub_days <= 3650, "from 0 to 3650"),
            ("scrub.bytes_per_s", self.scrub_bytes_per_s >= 64 * 1024, "at least 65536"),
            ("name", self.name.len() <= 64, "at most 64 bytes long"),
            ("routes.measure_hours", self.routes_measure_hours <= 8760, "from 0 to 8760"),
            ("limit.up_bytes_per_s", is_limit(self.limit_up), LIMIT_WANTED),
            ("limit.down_bytes_per_s", is_limit(self.limit_down), LIMIT_WANTED),
            ("limit.peer_up_bytes_per_s", is_limit(self.limit_peer_up), LIMIT_WANTED),
            ("limit.peer_down_bytes_per_s", is_limit(self.limit_peer_down), LIMIT_WANTED),
            (
                "relay.urls",
                self.relay_urls.len() <= RELAYS_MAX && self.relay_urls.iter().all(|url| url.contains("://")),
                "a list of at most 8 URLs such as \"wss://relay.example/relay\"",
            ),
            (
                "relay.pins",
                self.relay_pins.iter().all(|pin| unhex(pin).is_some_and(|pin| pin.len() == 32)),
                "a list of SHA-256 hashes of 64 hexadecimal digits",
            ),
            (
                "relay.allow",
                self.relay_allow
                    .iter()
                    .all(|who| who == "peers" || who == "all" || who.parse::<CellId>().is_ok()),
                "a list of cell ids, \"peers\" or \"all\"",
            ),
            ("relay.circuits_max", (1..=64).contains(&self.relay_circuits_max), "from 1 to 64"),
            ("relay.clients_max", self.relay_clients_max <= 1_000_000, "at most 1000000"),
            ("relay.connects_per_minute", self.relay_connects_per_minute >= 1, "1 or more"),
            (
                "ai.backends",
                self.ai_backends.len() <= 64
                    && self.ai_backends.iter().all(|url| crate::ai::http::Url::parse(url).is_ok()),
                "a list of at most 64 URLs such as \"http://pc.local:8080\"",
            ),
            ("ai.idle_s", (10..=86_400).contains(&self.ai_idle_s), "from 10 to 86400"),
            ("ai.context", (256..=1_048_576).contains(&self.ai_context), "from 256 to 1048576"),
            (
                "log.level",
                self.log_level.parse::<log::LevelFilter>().is_ok(),
                "error, warn, info, debug or trace",
            ),
        ];
        match rules.into_iter().find(|(_, fits, _)| !fits) {
            Some((key, _, wanted)) => Err(ConfigError::Range { key, wanted }),
            None => Ok(()),
        }
    }

    /// Sets one setting to a value, checked as when the file is read.
    pub fn set(&mut self, key: &str, value: &Value) -> Result<(), ConfigError> {
        let before = self.clone();
        let outcome = self.take(key, value).and_then(|_| self.check());
        if outcome.is_err() {
            *self = before;
        }
        outcome
    }

    /// Every setting and its value.
    pub fn values_now(&self) -> Vec<(&'static str, Value)> {
        self.values()
    }

    /// The text of config.json: every setting, one to a line, and after them the keys that are not known.
    pub fn to_text(&self) -> String {
        let mut lines: Vec<String> = self
            .values()
            .iter()
            .map(|(key, value)| {
                format!("  {}: {}", json::to_string(&(*key).to_string()), json::to_string(value))
            })
            .collect();
        for key in &self.unknown {
            lines.push(format!("  {}: {}", json::to_string(key), self.raw[key]));
        }
        format!("{{\n{}\n}}\n", lines.join(",\n"))
    }

    /// Every setting as (key, JSON text), for the catalog.
    pub fn records(&self) -> Vec<(&'static str, String)> {
        self.values().iter().map(|(key, value)| (*key, json::to_string(value))).collect()
    }

    /// Takes over from `other` what is of this machine alone.
    pub fn keep_machine(&mut self, other: &Self) {
        let own: Vec<(&str, Value)> =
            other.values().into_iter().filter(|(key, _)| is_of_machine(key)).collect();
        for (key, value) in own {
            // It was read as this type before.
            let _ = self.take(key, &value);
        }
    }

    /// Takes a setting from the catalog; keys of this machine alone and keys not known are left.
    pub fn adopt(&mut self, key: &str, text: &str) {
        if is_of_machine(key) {
            return;
        }
        let Ok(value) = json::from_str::<Value>(text) else { return };
        let before = self.clone();
        if !self.take(key, &value).unwrap_or(false) || self.check().is_err() {
            *self = before;
        }
    }

    /// Reads the file; a missing one gives the defaults.
    pub fn load(path: &Path) -> std::io::Result<Result<Self, ConfigError>> {
        match std::fs::read_to_string(path) {
            Ok(text) => Ok(Self::parse(&text)),
            Err(why) if why.kind() == std::io::ErrorKind::NotFound => Ok(Ok(Self::default())),
            Err(why) => Err(why),
        }
    }

    /// Chunk jobs at once on this machine.
    pub fn jobs(&self) -> usize {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        match self.jobs {
            0 => cores.min(JOBS_MAX),
            jobs => (jobs as usize).min(64),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_read_back_and_unknown_keys_are_kept() {
        let config =
            Config::parse(r#"{"copies": 3, "name": "attic", "future.thing": [1, {"a": null}]}"#).unwrap();
        assert_eq!((config.copies, config.name.as_str()), (3, "attic"));
        assert_eq!(config.unknown, ["future.thing"]);
        let again = Config::parse(&config.to_text()).unwrap();
        assert_eq!(again.unknown, ["future.thing"]);
        assert_eq!(again.copies, 3);
        assert!(config.to_text().contains(r#""future.thing": [1,{"a":null}]"#));
    }

    #[test]
    fn every_setting_is_documented_with_its_default() {
        let page = include_str!("../docs/settings.md");
        let rows: Vec<&str> = page.lines().filter(|line| line.starts_with("| `")).collect();
        assert_eq!(rows.len(), Config::KEYS.len());
        for (key, default) in Config::default().records() {
            let row = rows.iter().find(|row| row.starts_with(&format!("| `{key}` ")));
            let row = row.unwrap_or_else(|| panic!("{key} is not in docs/settings.md"));
            assert!(row.contains(&format!("| `{default}` |")), "{default}: {row}");
            assert_eq!(row.contains('⌂'), is_of_machine(key), "{row}");
        }
    }

    #[test]
    fn wrong_values_are_named() {
        assert_eq!(Config::parse("[]"), Err(ConfigError::Json));
        assert!(
            matches!(Config::parse(r#"{"copies": "two"}"#), Err(ConfigError::Value { key, .. }) if key == "copies")
        );
        assert!(matches!(Config::parse(r#"{"copies": 0}"#), Err(ConfigError::Range { key: "copies", .. })));
        assert!(matches!(Config::parse(r#"{"copies": -1}"#), Err(ConfigError::Value { .. })));
    }

    #[test]
    fn catalog_brings_settings_but_not_those_of_another_machine() {
        let mut config = Config::default();
        config.adopt("copies", "4");
        config.adopt("http.port", "80");
        config.adopt("alerts.command", "[\"rm\"]");
        assert!(config.alerts_command.is_empty());
        config.adopt("copies", "\"x\"");
        config.adopt("scan.hours", "0");
        assert_eq!((config.copies, config.http_port, config.scan_hours), (4, 5678, 6));
    }
}

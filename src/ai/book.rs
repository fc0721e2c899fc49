//! `ai.json`: what the user has said about models on this cell: servers and their keys, what friends may use, keys of the API
//! (as hashes only), and how much friends have used today. Mode 0600, written whole.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use miniserde::json::{Object, Value};

use super::form::MODEL_BYTES_MAX;
use super::json::{self, Members, quoted};
use crate::id::{CellId, hex, unhex};
use crate::keys::{random, sha256};
use crate::order;

/// The file's name in the state folder.
pub const BOOK: &str = "ai.json";
/// Servers, keys, offers: so many of each.
const ENTRIES_MAX: usize = 64;
/// The file, in bytes.
const BOOK_BYTES_MAX: u64 = 1 << 20;
/// A key's name, in bytes.
const NAME_BYTES_MAX: usize = 64;
/// Answers at once for one friend: each is a stream of the connection, which has 16.
pub const CONCURRENT_MAX: u32 = 8;
/// What keys of the API begin with.
const KEY_BEGINS: &str = "grove-";

/// A model server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerRow {
    /// Where it is.
    pub url: String,
    /// Its key, or nothing.
    pub key: Option<String>,
}

/// A key of the API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyRow {
    /// 16 hexadecimal digits.
    pub id: String,
    /// For people.
    pub name: String,
    /// SHA-256 of the key.
    pub hash: [u8; 32],
    /// Unix time.
    pub created: i64,
    /// Unix time; 0: never.
    pub used: i64,
}

/// What a friend may use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OfferRow {
    /// Anything at all.
    pub is_on: bool,
    /// These models; all if there are none.
    pub models: Vec<String>,
    /// Tokens a day, of questions and answers together; 0: no limit.
    pub tokens_per_day: u64,
    /// From this hour of this machine's day on.
    pub from_hour: u8,
    /// Up to this one; the same: the whole day.
    pub to_hour: u8,
    /// Answers at once. 1 to 8.
    pub concurrent: u32,
}

impl Default for OfferRow {
    fn default() -> Self {
        Self {
            is_on: false,
            models: Vec::new(),
            tokens_per_day: 100_000,
            from_hour: 0,
            to_hour: 0,
            concurrent: 1,
        }
    }
}

impl OfferRow {
    /// Whether anything is offered at this hour.
    pub fn is_open(&self, hour: u8) -> bool {
        let is_in = match (self.from_hour, self.to_hour) {
            (from, to) if from == to => true,
            (from, to) if from < to => (from..to).contains(&hour),
            (from, to) => hour >= from || hour < to,
        };
        self.is_on && is_in
    }

    /// Whether it is offered with this model.
    pub fn has(&self, model: &str) -> bool {
        self.models.is_empty() || self.models.iter().any(|offered| super::form::same_model(offered, model))
    }

    /// Tokens that are left of a day in which so many were used.
    pub fn left(&self, used: u64) -> u64 {
        if self.tokens_per_day == 0 { u64::MAX } else { self.tokens_per_day.saturating_sub(used) }
    }
}

/// All of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Book {
    /// Model servers, beside those of config.json.
    pub servers: Vec<ServerRow>,
    /// Keys of the API.
    pub keys: Vec<KeyRow>,
    /// What friends may use.
    pub offers: BTreeMap<CellId, OfferRow>,
    /// Tokens that friends used, and on which day (days since 1970 by this machine's clock).
    used: BTreeMap<CellId, (u64, u64)>,
    /// Tokens that friends used in all.
    pub used_ever: BTreeMap<CellId, u64>,
}

impl Book {
    /// Reads the file; one that is not there has nothing in it.
    pub fn load(path: &Path) -> io::Result<Self> {
        let text = match std::fs::metadata(path) {
            Ok(meta) if meta.len() > BOOK_BYTES_MAX => {
                return Err(io::Error::other("it is too long; move it away to begin anew"));
            }
            Ok(_) => std::fs::read_to_string(path)?,
            Err(why) if why.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(why) => return Err(why),
        };
        Self::read(&text).ok_or_else(|| io::Error::other("it is damaged; move it away to begin anew"))
    }

    fn read(text: &str) -> Option<Self> {
        let object = json::read_object(text).ok()?;
        let mut book = Self::default();
        for row in objects(&object, "servers") {
            let url = json::text(row, "url")?.to_owned();
            book.servers.push(ServerRow { url, key: json::text(row, "key").map(str::to_owned) });
        }
        for row in objects(&object, "keys") {
            book.keys.push(KeyRow {
                id: json::text(row, "id")?.to_owned(),
                name: json::text(row, "name")?.to_owned(),
                hash: unhex(json::text(row, "hash")?)?.try_into().ok()?,
                created: json::number(row, "created")? as i64,
                used: json::number(row, "used")? as i64,
            });
        }
        for row in objects(&object, "friends") {
            let peer: CellId = json::text(row, "id")?.parse().ok()?;
            let number = |key| json::number(row, key);
            if let Some(offer) = json::part(row, "offer") {
                let number = |key| json::number(offer, key);
                let offer = OfferRow {
                    is_on: json::is(offer, "on"),
                    models: json::texts(offer, "models"),
                    tokens_per_day: number("tokens_per_day")?,
                    from_hour: number("from_hour")?.min(23) as u8,
                    to_hour: number("to_hour")?.min(24) as u8,
                    concurrent: number("concurrent")?.clamp(1, u64::from(CONCURRENT_MAX)) as u32,
                };
                book.offers.insert(peer, offer);
            }
            book.used.insert(peer, (number("day").unwrap_or(0), number("used").unwrap_or(0)));
            book.used_ever.insert(peer, number("used_ever").unwrap_or(0));
        }
        Some(book)
    }

    /// The file's text.
    pub fn to_text(&self) -> String {
        let servers = self.servers.iter().map(|row| {
            let mut object = Members::default();
            object.set("url", &quoted(&row.url));
            if let Some(key) = &row.key {
                object.set("key", &quoted(key));
            }
            object.to_text()
        });
        let keys = self.keys.iter().map(|row| {
            format!(
                "{{\"id\":{},\"name\":{},\"hash\":\"{}\",\"created\":{},\"used\":{}}}",
                quoted(&row.id),
                quoted(&row.name),
                hex(&row.hash),
                row.created.max(0),
                row.used.max(0)
            )
        });
        let mut friends: Vec<CellId> = self.offers.keys().chain(self.used.keys()).copied().collect();
        order::sort(&mut friends);
        friends.dedup();
        let friends = friends.iter().map(|peer| {
            let mut object = Members::default();
            object.set("id", &quoted(&peer.to_string()));
            if let Some(offer) = self.offers.get(peer) {
                let models: Vec<String> = offer.models.iter().map(|model| quoted(model)).collect();
                let text = format!(
                    "{{\"on\":{},\"models\":[{}],\"tokens_per_day\":{},\"from_hour\":{},\"to_hour\":{},\"concurrent\":{}}}",
                    offer.is_on,
                    models.join(","),
                    offer.tokens_per_day,
                    offer.from_hour,
                    offer.to_hour,
                    offer.concurrent
                );
                object.set("offer", &text);
            }
            let (day, used) = self.used.get(peer).copied().unwrap_or_default();
            object.set("day", &day.to_string());
            object.set("used", &used.to_string());
            object.set("used_ever", &self.used_ever.get(peer).copied().unwrap_or(0).to_string());
            object.to_text()
        });
        format!(
            "{{\n \"servers\": [{}],\n \"keys\": [{}],\n \"friends\": [{}]\n}}\n",
            servers.collect::<Vec<_>>().join(", "),
            keys.collect::<Vec<_>>().join(", "),
            friends.collect::<Vec<_>>().join(",\n  ")
        )
    }

    /// A new key: its row, and the key itself, which is told once and kept nowhere.
    pub fn make_key(&mut self, name: &str, now: i64) -> Result<(String, String), &'static str> {
        if name.is_empty() || name.len() > NAME_BYTES_MAX || name.chars().any(char::is_control) {
            return Err("a key has a name of 1 to 64 bytes");
        }
        if self.keys.len() >= ENTRIES_MAX {
            return Err("there are 64 keys already; revoke one");
        }
        let key = format!("{KEY_BEGINS}{}", hex(&random::<32>()));
        let id = hex(&random::<8>());
        let row = KeyRow {
            id: id.clone(),
            name: name.to_owned(),
            hash: sha256(key.as_bytes()),
            created: now,
            used: 0,
        };
        self.keys.push(row);
        Ok((id, key))
    }

    /// A key ends; `false`: there is none of this id.
    pub fn revoke_key(&mut self, id: &str) -> bool {
        let before = self.keys.len();
        self.keys.retain(|key| key.id != id);
        self.keys.len() < before
    }

    /// Whether a key of this hash is good.
    pub fn has_key(&self, hash: &[u8; 32]) -> bool {
        use subtle::ConstantTimeEq;
        self.keys.iter().fold(false, |found, key| found | bool::from(key.hash.ct_eq(hash)))
    }

    /// A server is used from now on, under this key if there is one.
    pub fn add_server(&mut self, url: &str, key: Option<&str>) -> Result<(), &'static str> {
        let is_key = |key: &str| key.len() <= 512 && key.bytes().all(|byte| byte.is_ascii_graphic());
        if key.is_some_and(|key| !is_key(key)) {
            return Err("a key has no blanks and at most 512 letters");
        }
        self.servers.retain(|row| row.url != url);
        if self.servers.len() >= ENTRIES_MAX {
            return Err("there are 64 model servers already");
        }
        let key = key.filter(|key| !key.is_empty()).map(str::to_owned);
        self.servers.push(ServerRow { url: url.to_owned(), key });
        Ok(())
    }

    /// What is offered to a friend from now on.
    pub fn set_offer(&mut self, peer: CellId, offer: OfferRow) -> Result<(), &'static str> {
        let is_name = |model: &String| !model.is_empty() && model.len() <= MODEL_BYTES_MAX;
        if offer.models.len() > ENTRIES_MAX || !offer.models.iter().all(is_name) {
            return Err("at most 64 models, each of at most 128 bytes");
        }
        if offer.from_hour > 23 || offer.to_hour > 24 {
            return Err("hours are from 0 to 23, and up to 24");
        }
        if !(1..=CONCURRENT_MAX).contains(&offer.concurrent) {
            return Err("from 1 to 8 answers at once");
        }
        if !self.offers.contains_key(&peer) && self.offers.len() >= 4 * ENTRIES_MAX {
            return Err("256 friends have offers already");
        }
        self.offers.insert(peer, offer);
        Ok(())
    }

    /// Tokens that a friend has used on this day.
    pub fn used(&self, peer: &CellId, day: u64) -> u64 {
        self.used.get(peer).filter(|(then, _)| *then == day).map_or(0, |(_, used)| *used)
    }

    /// A friend has used some.
    pub fn note_used(&mut self, peer: CellId, day: u64, tokens: u64) {
        let used = self.used(&peer, day).saturating_add(tokens);
        self.used.insert(peer, (day, used));
        let ever = self.used_ever.entry(peer).or_default();
        *ever = ever.saturating_add(tokens);
    }
}

fn objects<'a>(object: &'a Object, key: &str) -> Vec<&'a Object> {
    let one = |item: &'a Value| if let Value::Object(object) = item { Some(object) } else { None };
    json::items(object, key).map_or(Vec::new(), |items| items.iter().filter_map(one).take(512).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_reads_back_and_keys_are_hashes_only() {
        let mut book = Book::default();
        book.add_server("http://pc:8080", Some("s3cret")).unwrap();
        book.add_server("http://pc:11434", None).unwrap();
        let (id, key) = book.make_key("lap\"top", 7).unwrap();
        let peer = CellId([3; 32]);
        let offer = OfferRow {
            is_on: true,
            models: vec!["m".into()],
            from_hour: 22,
            to_hour: 6,
            ..OfferRow::default()
        };
        book.set_offer(peer, offer).unwrap();
        book.note_used(peer, 20_000, 500);
        book.note_used(CellId([4; 32]), 20_000, 1);
        let again = Book::read(&book.to_text()).unwrap();
        assert_eq!(again.to_text(), book.to_text());
        assert_eq!(
            (again.offers, again.keys.len(), again.servers),
            (book.offers.clone(), 1, book.servers.clone())
        );
        assert!(!book.to_text().contains(&key));
        assert!(book.has_key(&sha256(key.as_bytes())) && !book.has_key(&sha256(b"other")));
        assert!(book.revoke_key(&id) && !book.revoke_key(&id) && !book.has_key(&sha256(key.as_bytes())));
        assert!(Book::read("{\"keys\":[{}]}").is_none() && Book::read("[").is_none());
    }

    #[test]
    fn hours_may_go_over_midnight_and_a_day_has_its_budget() {
        let offer = |from_hour, to_hour| OfferRow { is_on: true, from_hour, to_hour, ..OfferRow::default() };
        assert!(offer(0, 0).is_open(5) && offer(8, 18).is_open(8) && !offer(8, 18).is_open(18));
        assert!(offer(22, 6).is_open(23) && offer(22, 6).is_open(5) && !offer(22, 6).is_open(6));
        assert!(!OfferRow::default().is_open(5));
        let mut book = Book::default();
        let peer = CellId([1; 32]);
        book.note_used(peer, 10, 99_999);
        assert_eq!(OfferRow::default().left(book.used(&peer, 10)), 1);
        assert_eq!(book.used(&peer, 11), 0);
        book.note_used(peer, 11, 5);
        assert_eq!((book.used(&peer, 11), book.used_ever[&peer]), (5, 100_004));
    }

    #[test]
    fn offers_that_make_no_sense_are_refused() {
        let mut book = Book::default();
        let peer = CellId([1; 32]);
        for offer in [
            OfferRow { concurrent: 0, ..OfferRow::default() },
            OfferRow { concurrent: 9, ..OfferRow::default() },
            OfferRow { from_hour: 24, ..OfferRow::default() },
            OfferRow { models: vec![String::new()], ..OfferRow::default() },
        ] {
            assert!(book.set_offer(peer, offer).is_err());
        }
        assert!(book.make_key("", 0).is_err() && book.add_server("u", Some("a b")).is_err());
    }
}

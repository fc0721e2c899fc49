//! What a person should know of now: one list, with what to do about each thing and since when. And which changes of it are
//! worth telling a program outside (`alerts.command`).
//!
//! Plain structs that take time as an argument; the vault holds the list, the cell runs the program.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use miniserde::{Deserialize, Serialize, json};

use crate::order;

/// A condition that was raised before a restart and was not raised again within this is over. Observed seconds.
const REMEMBERED_S: u64 = 86_400;
/// Changes of one alert that are told within `SPAN`, at most: one that flaps does not flood.
const PER_CODE: usize = 4;
/// Changes of all alerts that are told within `SPAN`, at most.
const IN_ALL: usize = 30;
const SPAN: Duration = Duration::from_secs(3600);
/// Letters of a text or remedy that a program is told, at most.
const TOLD_LETTERS: usize = 2000;

/// A condition that a person should know of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alert {
    /// What happened, in plain words.
    pub text: String,
    /// What to do about it.
    pub remedy: String,
}

/// How grave a condition is, the gravest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Files or copies are in danger, or nothing is kept any more: act now.
    Urgent,
    /// Something is not as it should be, and may become urgent.
    Warn,
    /// Good to know.
    Info,
}

impl Level {
    /// A word for programs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Urgent => "urgent",
            Self::Warn => "warn",
            Self::Info => "info",
        }
    }

    /// How grave the condition with this code is.
    pub fn of(code: &str) -> Self {
        match code {
            "chunks" | "disk-full" | "home" | "unmounted" | "retired" | "damaged" | "brake"
            | "drill-failed" | "import" => Self::Urgent,
            "healed" | "watches" | "drill-overdue" | "owner-silent" | "friend-request" | "older" => {
                Self::Info
            }
            _ => Self::Warn,
        }
    }
}

/// A condition that holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Raised {
    /// Names it for good.
    pub code: String,
    /// How grave it is.
    pub level: Level,
    /// What and what to do.
    pub alert: Alert,
    /// Observed second at which it began.
    pub since: u64,
    /// Unix second at which it began, by the clock of then.
    pub since_wall: i64,
}

/// What `raise` has found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum News {
    /// The condition is new.
    New,
    /// Its words are others.
    Changed,
    /// Nothing.
    None,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Since {
    observed: u64,
    wall: i64,
}

/// The list, as it survives a restart.
#[derive(Serialize, Deserialize)]
struct Line {
    code: String,
    since: u64,
    since_wall: i64,
}

/// All conditions that hold.
#[derive(Debug, Default)]
pub struct AlertBook {
    raised: BTreeMap<String, (Alert, Since)>,
    /// Raised before the restart, and not heard of since.
    remembered: BTreeMap<String, Since>,
    loaded_at: u64,
    is_changed: bool,
}

impl AlertBook {
    /// Raises or renews a condition at observed second `now`, Unix second `wall`.
    pub fn raise(&mut self, code: &str, alert: Alert, now: u64, wall: i64) -> News {
        if let Some((known, _)) = self.raised.get_mut(code) {
            if *known == alert {
                return News::None;
            }
            *known = alert;
            return News::Changed;
        }
        let before = self.remembered.remove(code);
        self.is_changed |= before.is_none();
        let since = before.unwrap_or(Since { observed: now, wall });
        self.raised.insert(code.to_owned(), (alert, since));
        News::New
    }

    /// The condition is over; whether it was raised.
    pub fn clear(&mut self, code: &str) -> bool {
        let was_remembered = self.remembered.remove(code).is_some();
        let was_raised = self.raised.remove(code).is_some();
        self.is_changed |= was_raised || was_remembered;
        was_raised
    }

    /// What holds, the gravest first and of those the oldest.
    pub fn list(&self) -> Vec<Raised> {
        let raised = |(code, (alert, since)): (&String, &(Alert, Since))| Raised {
            code: code.clone(),
            level: Level::of(code),
            alert: alert.clone(),
            since: since.observed,
            since_wall: since.wall,
        };
        let mut list: Vec<Raised> = self.raised.iter().map(raised).collect();
        order::sort_by(&mut list, |a, b| (a.level, a.since, &a.code).cmp(&(b.level, b.since, &b.code)));
        list
    }

    /// Whether a condition held before the restart, and it is not known yet whether it still does.
    pub fn is_remembered(&self, code: &str) -> bool {
        self.remembered.contains_key(code)
    }

    /// Forgets at `now` what was raised before a restart long ago and never since.
    pub fn settle(&mut self, now: u64) {
        if now >= self.loaded_at.saturating_add(REMEMBERED_S) && !self.remembered.is_empty() {
            self.remembered.clear();
            self.is_changed = true;
        }
    }

    /// The list as text, if it has changed since this was asked last.
    pub fn take_changed(&mut self) -> Option<String> {
        if !std::mem::take(&mut self.is_changed) {
            return None;
        }
        let line = |(code, since): (&String, &Since)| Line {
            code: code.clone(),
            since: since.observed,
            since_wall: since.wall,
        };
        let raised = self.raised.iter().map(|(code, (_, since))| (code, since));
        Some(json::to_string(&raised.chain(&self.remembered).map(line).collect::<Vec<Line>>()))
    }

    /// What `take_changed` gave was not saved.
    pub fn note_unsaved(&mut self) {
        self.is_changed = true;
    }

    /// Goes on at `now` with what `take_changed` gave before a restart; what cannot be read is forgotten.
    pub fn load(text: &str, now: u64) -> Self {
        let lines: Vec<Line> = json::from_str(text).unwrap_or_default();
        let since = |line: &Line| Since { observed: line.since.min(now), wall: line.since_wall };
        let remembered = order::map(lines.into_iter().map(|line| (line.code.clone(), since(&line))));
        Self { remembered, loaded_at: now, ..Self::default() }
    }
}

/// A change that a program is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// It began, or it is over.
    pub is_raised: bool,
    /// What; of one that is over, as it was told.
    pub alert: Raised,
}

#[derive(Serialize, Deserialize)]
struct ToldLine {
    code: String,
    text: String,
    remedy: String,
    since: u64,
    since_wall: i64,
}

/// What a program outside was told, and what it is to be told next.
#[derive(Debug, Default)]
pub struct Telling {
    /// Told as raised, and not yet as over.
    told: BTreeMap<String, Raised>,
    lately: BTreeMap<String, VecDeque<Duration>>,
    all_lately: VecDeque<Duration>,
}

fn is_free(lately: &mut VecDeque<Duration>, now: Duration, most: usize) -> bool {
    while lately.front().is_some_and(|at| now.saturating_sub(*at) >= SPAN) {
        lately.pop_front();
    }
    lately.len() < most
}

impl Telling {
    /// The next change to tell at `now`, steady; `holds` are the conditions that hold, and `is_open` tells of which it is
    /// not known. What is over again before it could be told is never told.
    pub fn next(&mut self, now: Duration, holds: &[Raised], is_open: impl Fn(&str) -> bool) -> Option<Event> {
        if !is_free(&mut self.all_lately, now, IN_ALL) {
            return None;
        }
        let over = self
            .told
            .values()
            .find(|told| !is_open(&told.code) && holds.iter().all(|raised| raised.code != told.code));
        let new = holds.iter().filter(|raised| !self.told.contains_key(&raised.code));
        let changes: Vec<Event> = new
            .map(|raised| Event { is_raised: true, alert: raised.clone() })
            .chain(over.map(|told| Event { is_raised: false, alert: told.clone() }))
            .collect();
        let event = changes.into_iter().find(|event| {
            let lately = self.lately.entry(event.alert.code.clone()).or_default();
            is_free(lately, now, PER_CODE)
        })?;
        let code = event.alert.code.clone();
        self.lately.entry(code.clone()).or_default().push_back(now);
        self.all_lately.push_back(now);
        match event.is_raised {
            true => self.told.insert(code, event.alert.clone()),
            false => self.told.remove(&code),
        };
        Some(event)
    }

    /// What was told, for after a restart.
    pub fn to_text(&self) -> String {
        let line = |raised: &Raised| ToldLine {
            code: raised.code.clone(),
            text: raised.alert.text.clone(),
            remedy: raised.alert.remedy.clone(),
            since: raised.since,
            since_wall: raised.since_wall,
        };
        json::to_string(&self.told.values().map(line).collect::<Vec<ToldLine>>())
    }

    /// Goes on with what `to_text` gave.
    pub fn load(text: &str) -> Self {
        let lines: Vec<ToldLine> = json::from_str(text).unwrap_or_default();
        let told = lines.into_iter().map(|line| {
            let raised = Raised {
                level: Level::of(&line.code),
                alert: Alert { text: line.text, remedy: line.remedy },
                since: line.since,
                since_wall: line.since_wall,
                code: line.code,
            };
            (raised.code.clone(), raised)
        });
        Self { told: order::map(told), ..Self::default() }
    }
}

impl Event {
    /// `raised` or `cleared`.
    pub fn state(&self) -> &'static str {
        if self.is_raised { "raised" } else { "cleared" }
    }

    /// The words as a program may be given them: without odd letters, and of bounded length.
    pub fn words(&self) -> (String, String) {
        let clean = |text: &str| {
            let letters = text.chars().map(|c| if crate::logger::is_odd(c) { ' ' } else { c });
            letters.take(TOLD_LETTERS).collect::<String>()
        };
        (clean(&self.alert.alert.text), clean(&self.alert.alert.remedy))
    }
}

/// How long a silence is, roughly, so that words about it do not change every minute.
pub fn rough_time(seconds: u64) -> String {
    match seconds {
        0..3600 => "less than an hour".to_owned(),
        3600..7200 => "over an hour".to_owned(),
        7200..172_800 => format!("over {} hours", seconds / 3600),
        _ => format!("over {} days", seconds / 86_400),
    }
}

/// What is to be said of a peer that has been silent for `silent_s`, is waited for `grace_s` in all, and is not counted on
/// any more if `is_away`.
pub fn silence_words(name: &str, silent_s: u64, grace_s: u64, is_away: bool) -> String {
    let since = rough_time(silent_s);
    if is_away {
        return format!("{name} has been silent for {since}; what it held is copied to other peers");
    }
    let left = match grace_s.saturating_sub(silent_s) {
        0..3600 => "within an hour".to_owned(),
        3600..7200 => "in an hour".to_owned(),
        left => format!("in {} hours", left / 3600),
    };
    format!("{name} has been silent for {since}; if it stays so, what it holds is copied elsewhere {left}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn alert(text: &str) -> Alert {
        Alert { text: text.into(), remedy: "do".into() }
    }

    fn minutes(minutes: u64) -> Duration {
        Duration::from_secs(minutes * 60)
    }

    fn next(telling: &mut Telling, at: u64, book: &AlertBook) -> Option<(bool, String)> {
        let event = telling.next(minutes(at), &book.list(), |code| book.is_remembered(code))?;
        Some((event.is_raised, event.alert.code))
    }

    #[test]
    fn the_gravest_comes_first_and_of_those_the_oldest() {
        let mut book = AlertBook::default();
        book.raise("healed", alert("a"), 1, 1);
        book.raise("phrase", alert("b"), 3, 3);
        book.raise("clock", alert("c"), 2, 2);
        book.raise("disk-full", alert("d"), 9, 9);
        let codes: Vec<String> = book.list().into_iter().map(|raised| raised.code).collect();
        assert_eq!(codes, ["disk-full", "clock", "phrase", "healed"]);
    }

    #[test]
    fn since_when_survives_a_restart_and_ends_with_the_condition() {
        let mut book = AlertBook::default();
        assert_eq!(book.raise("clock", alert("a"), 100, 7), News::New);
        assert_eq!(book.raise("clock", alert("a"), 200, 8), News::None);
        assert_eq!(book.raise("clock", alert("b"), 300, 9), News::Changed);
        let text = book.take_changed().unwrap();
        assert_eq!(book.take_changed(), None);
        let mut book = AlertBook::load(&text, 400);
        assert!(book.list().is_empty() && book.is_remembered("clock"));
        book.raise("clock", alert("a"), 500, 10);
        assert_eq!((book.list()[0].since, book.list()[0].since_wall), (100, 7));
        assert!(book.clear("clock") && !book.clear("clock"));
        book.raise("clock", alert("a"), 600, 11);
        assert_eq!(book.list()[0].since, 600);
        // What never comes back is over after a day.
        let mut book = AlertBook::load(&text, 400);
        book.settle(400 + REMEMBERED_S - 1);
        assert!(book.is_remembered("clock"));
        book.settle(400 + REMEMBERED_S);
        assert!(!book.is_remembered("clock") && book.take_changed().is_some());
        assert!(AlertBook::load("no json", 1).list().is_empty());
    }

    #[test]
    fn a_program_is_told_once_when_it_begins_and_once_when_it_is_over() {
        let (mut book, mut telling) = (AlertBook::default(), Telling::default());
        book.raise("clock", alert("a"), 1, 1);
        assert_eq!(next(&mut telling, 0, &book), Some((true, "clock".into())));
        book.raise("clock", alert("other words"), 1, 1);
        assert_eq!(next(&mut telling, 0, &book), None);
        // After a restart it is not told again, and not as over while that is not known.
        let text = book.take_changed().unwrap();
        let (mut book, mut telling) = (AlertBook::load(&text, 2), Telling::load(&telling.to_text()));
        assert_eq!(next(&mut telling, 1, &book), None);
        book.raise("clock", alert("a"), 3, 3);
        assert_eq!(next(&mut telling, 2, &book), None);
        book.clear("clock");
        assert_eq!(next(&mut telling, 3, &book), Some((false, "clock".into())));
        assert_eq!(next(&mut telling, 3, &book), None);
    }

    #[test]
    fn one_that_flaps_does_not_flood() {
        let (mut book, mut telling) = (AlertBook::default(), Telling::default());
        let mut told = 0;
        for minute in 0..60 {
            if minute % 2 == 0 {
                book.raise("peer-silent", alert("a"), minute, 0);
            } else {
                book.clear("peer-silent");
            }
            told += u64::from(next(&mut telling, minute, &book).is_some());
        }
        assert_eq!(told, PER_CODE as u64);
        // Others are told meanwhile, and it itself in the next hour.
        book.raise("clock", alert("a"), 1, 1);
        assert_eq!(next(&mut telling, 59, &book), Some((true, "clock".into())));
        book.raise("peer-silent", alert("a"), 1, 1);
        assert_eq!(next(&mut telling, 61, &book), Some((true, "peer-silent".into())));
    }

    #[test]
    fn a_silence_says_since_when_and_what_comes_next() {
        assert_eq!(
            silence_words("bob", 3700, 7 * 3600, false),
            "bob has been silent for over an hour; if it stays so, what it holds is copied elsewhere in 5 hours"
        );
        assert!(silence_words("bob", 200_000, 1, true).contains("over 2 days; what it held is copied"));
    }
}

//! How dependable each peer is: when it was here, how long it usually stays away, and from when on its copies are not
//! counted on any more. Knows nothing of sockets and databases; `heal` acts on it.
//!
//! Silence counts only while another peer is connected: a cell whose own line is down learns nothing of its peers.

use std::collections::BTreeMap;

use miniserde::{Deserialize, Serialize, json};

use crate::id::CellId;
use crate::order;

const HOUR_S: u64 = 3600;
const DAY_S: u64 = 86_400;
/// The shortest and the longest time for which a silent peer is waited for. s.
pub const GRACE_S: std::ops::RangeInclusive<u64> = HOUR_S..=72 * HOUR_S;
/// For which a peer is waited whose habits are not known. s.
pub const GRACE_UNKNOWN_S: u64 = 24 * HOUR_S;
/// A peer's habits are known after so long. s.
const KNOWN_AFTER_S: u64 = 3 * DAY_S;
/// Absences that are older say nothing of today's habits. s.
const HABITS_S: u64 = 14 * DAY_S;
/// An absence that is shorter is a restart. s.
const ABSENCE_MIN_S: u64 = 60;
/// Absences remembered of one peer.
const ABSENCES_MAX: usize = 128;
/// Days of which it is remembered how long a peer was here.
const DAYS_MAX: usize = 30;
/// A person is told of a silence after this. s.
pub const SILENCE_S: u64 = HOUR_S;

/// One time away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Absence {
    /// Observed second at which it ended.
    pub ended_at: u64,
    /// How long it was. s.
    pub seconds: u64,
}

/// How long a peer was here on one observed day.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Day {
    /// Observed day.
    pub day: u64,
    /// s.
    pub here: u64,
    /// Seconds of that day in which this could be told.
    pub watched: u64,
}

/// What is known of one peer. Times are observed seconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// When it was first looked at.
    pub since: u64,
    /// When it was last here; `None`: never.
    pub last_here: Option<u64>,
    /// Seconds of the present silence, as far as they count; 0: it is here.
    pub silent: u64,
    /// Since when it is here again after its copies were not counted on; `None`: they were all along, or still are not.
    pub back_at: Option<u64>,
    /// Times away, the last at the end.
    pub absences: Vec<Absence>,
    /// Days, the last at the end.
    pub days: Vec<Day>,
}

impl Health {
    fn new(now: u64) -> Self {
        Self { since: now, last_here: None, silent: 0, back_at: None, absences: Vec::new(), days: Vec::new() }
    }

    /// `seconds` have passed until `now`.
    fn pass(&mut self, now: u64, seconds: u64, is_here: bool, is_witnessed: bool) {
        if is_here {
            if self.silent >= ABSENCE_MIN_S {
                self.absences.push(Absence { ended_at: now, seconds: self.silent });
            }
            self.silent = 0;
            self.last_here = Some(now);
        } else if is_witnessed {
            self.silent += seconds;
        }
        self.absences.retain(|absence| absence.ended_at + HABITS_S >= now);
        let excess = self.absences.len().saturating_sub(ABSENCES_MAX);
        self.absences.drain(..excess);
        if seconds > 0 && (is_here || is_witnessed) {
            let day = now / DAY_S + 1;
            if self.days.last().is_none_or(|last| last.day != day) {
                self.days.push(Day { day, here: 0, watched: 0 });
                let excess = self.days.len().saturating_sub(DAYS_MAX);
                self.days.drain(..excess);
            }
            let last = self.days.last_mut().expect("pushed above");
            last.watched += seconds;
            last.here += if is_here { seconds } else { 0 };
        }
    }

    /// How long a silence of this peer is waited out, at observed second `now`: twice its usual absence of the last 14 days,
    /// from 1 to 72 hours; 24 hours while its habits are not known. Usual is what nine of ten absences do not exceed.
    pub fn grace(&self, now: u64) -> u64 {
        if now < self.since + KNOWN_AFTER_S {
            return GRACE_UNKNOWN_S;
        }
        let mut lengths: Vec<u64> = self.absences.iter().map(|absence| absence.seconds).collect();
        order::sort(&mut lengths);
        let usual = match lengths.len() {
            0 => 0,
            count => lengths[(count * 9).div_ceil(10) - 1],
        };
        usual.saturating_mul(2).clamp(*GRACE_S.start(), *GRACE_S.end())
    }

    /// For how long of the last 30 days it could be told whether it was here. s.
    pub fn watched(&self) -> u64 {
        self.days.iter().map(|day| day.watched).sum()
    }

    /// Part of the watched time of the last 30 days in which it was here. Thousandths; `None`: never watched.
    pub fn uptime(&self) -> Option<u64> {
        let (here, watched) = self
            .days
            .iter()
            .fold((0u64, 0u64), |(here, watched), day| (here + day.here, watched + day.watched));
        (here * 1000).checked_div(watched)
    }
}

/// What is known of all peers.
#[derive(Debug, Default)]
pub struct HealthBook {
    peers: BTreeMap<CellId, Health>,
    is_changed: bool,
}

#[derive(Serialize, Deserialize)]
struct Line {
    id: String,
    health: Health,
}

impl HealthBook {
    /// `seconds` have passed until observed second `now`; `here` are the peers that are connected, `all` all of them.
    pub fn pass(&mut self, now: u64, seconds: u64, all: &[CellId], here: &[CellId]) {
        self.peers.retain(|id, _| all.contains(id));
        for id in all {
            let is_here = here.contains(id);
            let is_witnessed = here.iter().any(|other| other != id);
            let health = self.peers.entry(*id).or_insert_with(|| Health::new(now));
            health.pass(now, seconds, is_here, is_witnessed);
        }
        self.is_changed |= !all.is_empty();
    }

    /// What is known of a peer.
    pub fn of(&self, id: &CellId) -> Option<&Health> {
        self.peers.get(id)
    }

    /// The copies of a peer count again from `now` on.
    pub fn note_back(&mut self, id: &CellId, now: u64) {
        if let Some(health) = self.peers.get_mut(id) {
            health.back_at = Some(now);
            self.is_changed = true;
        }
    }

    /// A peer is none any more.
    pub fn forget(&mut self, id: &CellId) {
        self.is_changed |= self.peers.remove(id).is_some();
    }

    /// Whether anything is new since the last time this was asked.
    pub fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.is_changed)
    }

    /// The text of peer_health.json.
    pub fn to_json(&self) -> String {
        let lines: Vec<Line> = self
            .peers
            .iter()
            .map(|(id, health)| Line { id: id.to_string(), health: health.clone() })
            .collect();
        json::to_string(&lines)
    }

    /// Reads peer_health.json; what cannot be read is forgotten. A silence goes on where it was.
    pub fn from_json(text: &str) -> Self {
        let lines: Vec<Line> = json::from_str(text).unwrap_or_default();
        let peers =
            order::map(lines.into_iter().filter_map(|line| Some((line.id.parse().ok()?, line.health))));
        Self { peers, is_changed: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: CellId = CellId([1; 32]);
    const B: CellId = CellId([2; 32]);

    /// Lets hours pass; `here(hour)` tells whether A is here, B always is.
    fn live(book: &mut HealthBook, hours: std::ops::Range<u64>, here: impl Fn(u64) -> bool) {
        for hour in hours {
            for minute in 0..60 {
                let now = hour * HOUR_S + minute * 60;
                let connected: &[CellId] = if here(hour) { &[A, B] } else { &[B] };
                book.pass(now, 60, &[A, B], connected);
            }
        }
    }

    fn grace_h(book: &HealthBook, hour: u64) -> u64 {
        book.of(&A).unwrap().grace(hour * HOUR_S) / HOUR_S
    }

    #[test]
    fn a_stranger_is_waited_for_a_day_and_a_steady_peer_for_an_hour() {
        let mut book = HealthBook::default();
        live(&mut book, 0..48, |_| true);
        assert_eq!(grace_h(&book, 48), 24);
        live(&mut book, 48..80, |_| true);
        assert_eq!(grace_h(&book, 80), 1);
        assert_eq!(book.of(&A).unwrap().uptime(), Some(1000));
    }

    #[test]
    fn a_laptop_that_sleeps_at_night_is_waited_for_twice_a_night() {
        let mut book = HealthBook::default();
        live(&mut book, 0..14 * 24, |hour| hour % 24 < 15);
        assert_eq!(grace_h(&book, 14 * 24), 18);
        assert_eq!(book.of(&A).unwrap().uptime(), Some(625));
    }

    #[test]
    fn one_long_journey_is_no_habit_and_nobody_is_waited_for_more_than_three_days() {
        let mut book = HealthBook::default();
        live(&mut book, 0..24 * 24, |hour| hour % 24 < 16 && !(240..300).contains(&hour));
        assert_eq!(grace_h(&book, 24 * 24), 16);
        live(&mut book, 24 * 24..60 * 24, |hour| hour % 168 < 100);
        assert_eq!(grace_h(&book, 60 * 24), 72);
    }

    #[test]
    fn silence_counts_while_somebody_else_is_here_and_not_while_the_own_line_is_down() {
        let mut book = HealthBook::default();
        book.pass(0, 0, &[A, B], &[A, B]);
        book.pass(7200, 7200, &[A, B], &[]);
        assert_eq!(book.of(&A).unwrap().silent, 0);
        book.pass(10_800, 3600, &[A, B], &[B]);
        assert_eq!((book.of(&A).unwrap().silent, book.of(&B).unwrap().silent), (3600, 0));
        book.pass(10_860, 60, &[A, B], &[A, B]);
        assert_eq!(book.of(&A).unwrap().absences, [Absence { ended_at: 10_860, seconds: 3600 }]);
    }

    #[test]
    fn a_restart_of_a_peer_is_no_absence() {
        let mut book = HealthBook::default();
        for minute in 0..100 {
            let here: &[CellId] = if minute % 10 == 0 { &[B] } else { &[A, B] };
            book.pass(minute * 30, 30, &[A, B], here);
        }
        assert_eq!(book.of(&A).unwrap().absences, []);
    }

    #[test]
    fn what_is_known_survives_a_restart_and_is_bounded() {
        let mut book = HealthBook::default();
        live(&mut book, 0..100 * 24, |hour| hour % 2 == 0);
        let health = book.of(&A).unwrap();
        assert!(health.absences.len() <= ABSENCES_MAX && health.days.len() <= DAYS_MAX);
        let again = HealthBook::from_json(&book.to_json());
        assert_eq!(again.of(&A), book.of(&A));
        assert!(HealthBook::from_json("{nonsense").of(&A).is_none());
        book.pass(0, 0, &[B], &[]);
        assert!(book.of(&A).is_none(), "a removed peer is forgotten");
    }
}

//! What was found damaged on this disk since the start, and what became of it, in words for people.

use std::collections::BTreeSet;

use crate::id::ChunkName;
use crate::vault::Alert;

/// Names of chunks that wait for a good copy, at most; the others are found by `Cell::absent_chunks`.
const WAITING_MAX: usize = 10_000;
/// What was healed is told this long. Observed seconds.
const TOLD_S: u64 = 7 * 86_400;

/// Alerts about damage, by code; `None`: no longer.
pub type Alerts = [(&'static str, Option<Alert>); 3];

/// Damage since the start.
#[derive(Debug, Default)]
pub struct Damage {
    /// Chunks of ours that wait for a good copy.
    waiting: BTreeSet<ChunkName>,
    /// How many were found, of ours and of peers.
    own: u64,
    held: u64,
    healed: u64,
    /// Observed second of the last one.
    at: u64,
}

fn chunks(count: u64) -> String {
    if count == 1 { "1 chunk was".into() } else { format!("{count} chunks were") }
}

impl Damage {
    /// A chunk was found damaged: ours, or kept for peers, or both.
    pub fn note(&mut self, name: ChunkName, is_own: bool, is_held: bool, now: u64) {
        self.own += u64::from(is_own);
        self.held += u64::from(is_held);
        self.at = now;
        if is_own && self.waiting.len() < WAITING_MAX {
            self.waiting.insert(name);
        }
    }

    /// Good copies of these lie here again.
    pub fn heal(&mut self, names: &[ChunkName], now: u64) {
        for name in names {
            if self.waiting.remove(name) {
                self.healed += 1;
                self.at = now;
            }
        }
    }

    /// Everything that should lie here does.
    pub fn heal_all(&mut self, now: u64) {
        let names: Vec<ChunkName> = self.waiting.iter().copied().collect();
        self.heal(&names, now);
    }

    /// Chunks of ours that wait for a good copy.
    pub fn waiting(&self) -> Vec<ChunkName> {
        self.waiting.iter().copied().collect()
    }

    /// How many chunks were found damaged: grows with each.
    pub fn count(&self) -> u64 {
        self.own + self.held
    }

    /// What a person should know of it at `now`. What is long over is forgotten.
    pub fn alerts(&mut self, now: u64) -> Alerts {
        if self.waiting.is_empty() && self.at + TOLD_S < now {
            *self = Self::default();
        }
        let disk = "look at the health of the disk";
        let damaged = self.waiting.first().map(|first| Alert {
            text: format!("{} damaged on this disk (the first: {})", chunks(self.waiting.len() as u64), first.short()),
            remedy: format!(
                "good copies are fetched from peers by themselves: switch on those that are not reached, or run `grove verify`; {disk}"
            ),
        });
        let healed = (self.healed > 0).then(|| Alert {
            text: format!(
                "{} damaged on this disk and healed: good copies came from peers, or from your files",
                chunks(self.healed)
            ),
            remedy: format!("{disk}; `grove verify --deep` reads all of it"),
        });
        let held = (self.held > 0).then(|| Alert {
            text: format!("{} damaged on this disk that are kept for peers", chunks(self.held)),
            remedy: format!("their owners are told and give them again by themselves; {disk}"),
        });
        [("damaged", damaged), ("healed", healed), ("damaged-held", held)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(damage: &mut Damage, now: u64) -> Vec<String> {
        let told = |(code, alert): (&str, Option<Alert>)| Some(format!("{code}: {}", alert?.text));
        damage.alerts(now).into_iter().filter_map(told).collect()
    }

    #[test]
    fn damage_is_told_then_that_it_healed_and_after_a_week_no_more() {
        let mut damage = Damage::default();
        assert!(texts(&mut damage, 0).is_empty());
        let (a, b) = (ChunkName([1; 32]), ChunkName([2; 32]));
        damage.note(a, true, false, 100);
        damage.note(b, true, true, 100);
        assert_eq!(damage.waiting(), [a, b]);
        let told = texts(&mut damage, 100);
        assert_eq!(told.len(), 2);
        assert!(told[0].starts_with("damaged: 2 chunks were damaged"), "{told:?}");
        assert!(told[1].starts_with("damaged-held: 1 chunk was"), "{told:?}");
        damage.heal(&[a, ChunkName([9; 32])], 200);
        assert!(texts(&mut damage, 200).iter().any(|text| text.starts_with("healed: 1 chunk was damaged")));
        damage.heal_all(300);
        let told = texts(&mut damage, 300 + TOLD_S);
        assert!(told[0].starts_with("healed: 2 chunks") && told.len() == 2, "{told:?}");
        assert!(texts(&mut damage, 301 + TOLD_S).is_empty());
    }
}

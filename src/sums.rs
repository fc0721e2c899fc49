//! Figures that are dear to add up, such as the bytes of all chunks: what took long is not done again at once.

use std::cell::RefCell;
use std::time::Duration;

/// Figures that took less are added up each time.
const CHEAP: Duration = Duration::from_millis(20);
/// Others stand for so many times as long as they took: whoever asks all the time costs 5 % of a core at most.
const STANDS: u32 = 20;
/// No figure stands for longer.
const STANDS_MAX: Duration = Duration::from_secs(60);

/// Figures of one kind, and what they were added up for.
#[derive(Debug)]
pub struct Sums<K, T>(RefCell<Option<Known<K, T>>>);

#[derive(Debug)]
struct Known<K, T> {
    key: K,
    value: T,
    until: Duration,
    /// Changes there had been when they were added up.
    count: u64,
    /// It was said that they are not the newest.
    is_told: bool,
}

impl<K, T> Default for Sums<K, T> {
    fn default() -> Self {
        Self(RefCell::new(None))
    }
}

impl<K: PartialEq, T: Clone> Sums<K, T> {
    /// The figures for `key`, if they still stand at `now`. `count` counts changes: where there were some since they were added
    /// up, it is said once after what time the newest can be had.
    pub fn get(&self, key: &K, now: Duration, count: u64) -> Option<(T, Option<Duration>)> {
        let mut known = self.0.borrow_mut();
        let known = known.as_mut().filter(|known| known.key == *key && now < known.until)?;
        let later = (known.count != count && !known.is_told).then(|| known.until - now);
        known.is_told |= later.is_some();
        Some((known.value.clone(), later))
    }

    /// Takes figures that were begun to be added up at `began`, when there had been `count` changes, and were known at `now`.
    pub fn put(&self, key: K, value: T, (began, count): (Duration, u64), now: Duration) {
        let took = now.saturating_sub(began);
        let stands = if took < CHEAP { Duration::ZERO } else { (took * STANDS).min(STANDS_MAX) };
        *self.0.borrow_mut() = Some(Known { key, value, until: now + stands, count, is_told: false });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_cheap_is_added_up_each_time_and_what_is_dear_stands_for_a_while() {
        let ms = Duration::from_millis;
        let sums = Sums::default();
        let get = |key, at| sums.get(&key, ms(at), 0).map(|(value, _)| value);
        assert_eq!(get(1, 0), None);
        sums.put(1, "cheap", (ms(0), 0), ms(19));
        assert_eq!(get(1, 19), None);
        sums.put(1, "dear", (ms(100), 0), ms(150));
        assert_eq!((get(1, 1149), get(1, 1150)), (Some("dear"), None));
        assert_eq!(get(2, 200), None, "of something else nothing is known");
        sums.put(1, "very dear", (ms(0), 0), ms(100_000));
        assert_eq!((get(1, 159_999), get(1, 160_000)), (Some("very dear"), None));
    }

    #[test]
    fn who_gets_figures_from_before_a_change_is_told_once_when_to_ask_again() {
        let ms = Duration::from_millis;
        let sums = Sums::default();
        sums.put(1, "before", (ms(100), 7), ms(150));
        assert_eq!(sums.get(&1, ms(200), 7), Some(("before", None)), "nothing has changed");
        assert_eq!(sums.get(&1, ms(250), 8), Some(("before", Some(ms(900)))));
        assert_eq!(sums.get(&1, ms(300), 9), Some(("before", None)), "it was said");
        sums.put(1, "after", (ms(1150), 9), ms(1200));
        assert_eq!(sums.get(&1, ms(1300), 10), Some(("after", Some(ms(900)))));
    }
}

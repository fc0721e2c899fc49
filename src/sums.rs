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
}

impl<K, T> Default for Sums<K, T> {
    fn default() -> Self {
        Self(RefCell::new(None))
    }
}

impl<K: PartialEq, T: Clone> Sums<K, T> {
    /// The figures for `key`, if they still stand at `now`.
    pub fn get(&self, key: &K, now: Duration) -> Option<T> {
        let known = self.0.borrow();
        known.as_ref().filter(|known| known.key == *key && now < known.until).map(|known| known.value.clone())
    }

    /// Takes figures that were begun to be added up at `began` and were known at `now`.
    pub fn put(&self, key: K, value: T, began: Duration, now: Duration) {
        let took = now.saturating_sub(began);
        let stands = if took < CHEAP { Duration::ZERO } else { (took * STANDS).min(STANDS_MAX) };
        *self.0.borrow_mut() = Some(Known { key, value, until: now + stands });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_cheap_is_added_up_each_time_and_what_is_dear_stands_for_a_while() {
        let ms = Duration::from_millis;
        let sums = Sums::default();
        assert_eq!(sums.get(&1, ms(0)), None);
        sums.put(1, "cheap", ms(0), ms(19));
        assert_eq!(sums.get(&1, ms(19)), None);
        sums.put(1, "dear", ms(100), ms(150));
        assert_eq!((sums.get(&1, ms(1149)), sums.get(&1, ms(1150))), (Some("dear"), None));
        assert_eq!(sums.get(&2, ms(200)), None, "of something else nothing is known");
        sums.put(1, "very dear", ms(0), ms(100_000));
        assert_eq!((sums.get(&1, ms(159_999)), sums.get(&1, ms(160_000))), (Some("very dear"), None));
    }
}

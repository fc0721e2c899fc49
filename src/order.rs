//! Sorting lists that are short or seldom sorted: the standard library's sort is 4 KB of code for each type and order, this
//! is 200 bytes. It sorts places, by one sort for all types, and then moves the items.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

/// Sorts as `slice::sort` does: equal items stay as they stood.
pub fn sort<T: Ord>(items: &mut [T]) {
    sort_by(items, T::cmp);
}

/// Sorts by a key of each item, as `slice::sort_by_key` does.
pub fn sort_by_key<T, K: Ord>(items: &mut [T], key: impl Fn(&T) -> K) {
    sort_by(items, |a, b| key(a).cmp(&key(b)));
}

/// Sorts as `slice::sort_by` does.
pub fn sort_by<T>(items: &mut [T], compare: impl Fn(&T, &T) -> Ordering) {
    let mut places = sorted_places(items.len(), &|a, b| compare(&items[a], &items[b]));
    // What belongs at each place comes from another; following them goes around in circles.
    for start in 0..places.len() {
        let mut at = start;
        loop {
            let from = std::mem::replace(&mut places[at], at);
            if from == start {
                break;
            }
            items.swap(at, from);
            at = from;
        }
    }
}

/// Items by their keys, as `collect` gathers them: the last of equal keys stays. `collect` would sort them first.
pub fn map<K: Ord, V>(items: impl IntoIterator<Item = (K, V)>) -> BTreeMap<K, V> {
    let mut map = BTreeMap::new();
    for (key, value) in items {
        map.insert(key, value);
    }
    map
}

/// Items without repetition, as `collect` gathers them.
pub fn set<T: Ord>(items: impl IntoIterator<Item = T>) -> BTreeSet<T> {
    let mut set = BTreeSet::new();
    set.extend(items);
    set
}

/// The places of `count` items, in the order in which the items belong.
fn sorted_places(count: usize, compare: &dyn Fn(usize, usize) -> Ordering) -> Vec<usize> {
    let mut places: Vec<usize> = (0..count).collect();
    places.sort_by(|a, b| compare(*a, *b));
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_sorted_as_the_standard_library_sorts_them() {
        let mut seed = 1_u64;
        for count in (0..40).chain([100, 1_000]) {
            let mut items = Vec::new();
            for place in 0..count {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                // Few keys: many items are equal by them, and must stay as they stood.
                items.push(((seed >> 33) % 17, place.to_string()));
            }
            let (mut sorted, mut by_key, mut reversed) = (items.clone(), items.clone(), items.clone());
            sort(&mut sorted);
            sort_by_key(&mut by_key, |item| item.0);
            sort_by(&mut reversed, |a, b| b.0.cmp(&a.0));
            let mut expected = items.clone();
            expected.sort();
            assert_eq!(sorted, expected);
            expected.clone_from(&items);
            expected.sort_by_key(|item| item.0);
            assert_eq!(by_key, expected);
            expected.clone_from(&items);
            expected.sort_by_key(|item| std::cmp::Reverse(item.0));
            assert_eq!(reversed, expected);
        }
    }
}

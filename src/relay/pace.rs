//! How fast, and when again. Decides only: time and chance come in.

use std::time::{Duration, Instant};

use crate::wire::handshake::{Bucket, Rate};

/// A connection that stayed up so long was a good one: what went wrong before it is forgotten.
const GOOD_AFTER: Duration = Duration::from_secs(60);
/// The least and the longest wait after a failure.
const RETRY_MIN: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(300);
/// The least wait of a client whose place another has taken, doubled each time up to an hour.
pub const REPLACED_MIN: Duration = Duration::from_secs(60);
const REPLACED_MAX: Duration = Duration::from_secs(3600);
/// A relay that wants the client back sooner or later than this is not believed.
const RESTART_SPAN_MAX: Duration = Duration::from_secs(300);

/// Bytes per second, by what may be read now. The burst is what comes in half a second, but one read at least.
#[derive(Debug)]
pub struct ByteRate {
    rate: Rate,
    bucket: Bucket,
}

impl ByteRate {
    /// `bytes_per_s` of 1 and more; `read_bytes` is the largest single read.
    pub fn new(bytes_per_s: u64, read_bytes: usize, now: Instant) -> Self {
        let per_second = bytes_per_s.max(1) as f64;
        let rate = Rate { burst: (per_second / 2.0).max(read_bytes as f64), per_second };
        Self { rate, bucket: Bucket::new(rate, now) }
    }

    /// Bytes that may be read now, or how long to wait until there are some.
    pub fn allowance(&mut self, now: Instant) -> Result<usize, Duration> {
        self.bucket.fill(self.rate, now);
        // A few bytes at a time would cost more than they carry.
        let least = self.rate.burst.min(self.rate.per_second / 20.0).clamp(1.0, 4096.0);
        if self.bucket.tokens >= least {
            return Ok(self.bucket.tokens as usize);
        }
        Err(Duration::from_secs_f64((least - self.bucket.tokens) / self.rate.per_second)
            .max(Duration::from_millis(1)))
    }

    /// So many were read, at most the allowance.
    pub fn took(&mut self, bytes: usize) {
        self.bucket.tokens -= bytes as f64;
    }
}

/// Why a client is without its relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gone {
    /// No connection, or it broke.
    Failed,
    /// The relay does not want this client.
    Refused,
    /// Another connection has taken the place of this one.
    Replaced,
    /// The relay starts again, and wants its clients back spread over this time.
    Restart(Duration),
}

/// When to connect again.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Backoff {
    failures: u32,
    replaced: u32,
}

impl Backoff {
    /// A connection has ended, or did not come about, after it was up for `stayed`; `chance` is any number. Gives the
    /// time to wait.
    pub fn after(&mut self, gone: Gone, stayed: Duration, chance: u64) -> Duration {
        if stayed >= GOOD_AFTER {
            self.failures = 0;
        }
        // Two machines with one key replace each other in turn, each time after the least wait of the other.
        if stayed >= REPLACED_MAX {
            self.replaced = 0;
        }
        match gone {
            Gone::Failed => {
                let most = RETRY_MIN.saturating_mul(2 << self.failures.min(10)).min(RETRY_MAX);
                self.failures = self.failures.saturating_add(1);
                RETRY_MIN + part(most - RETRY_MIN, chance)
            }
            Gone::Refused => {
                self.failures = self.failures.saturating_add(1);
                RETRY_MAX / 2 + part(RETRY_MAX / 2, chance)
            }
            Gone::Replaced => {
                let least = REPLACED_MIN.saturating_mul(1 << self.replaced.min(6)).min(REPLACED_MAX);
                self.replaced = self.replaced.saturating_add(1);
                least + part(least / 2, chance)
            }
            Gone::Restart(span) => {
                let wait = part(span.min(RESTART_SPAN_MAX), chance);
                // A relay that is hardly up and starts anew again and again is not run after.
                if stayed >= GOOD_AFTER { wait } else { wait.max(self.after(Gone::Failed, stayed, chance)) }
            }
        }
    }
}

/// An even part of `whole`.
fn part(whole: Duration, chance: u64) -> Duration {
    Duration::from_millis(chance % (whole.as_millis() as u64 + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    #[test]
    fn bytes_keep_to_the_rate_over_time() {
        let mut now = Instant::now();
        let start = now;
        let mut rate = ByteRate::new(1_000_000, 65_536, now);
        let mut read = 0;
        while now < start + 10 * S {
            match rate.allowance(now) {
                Ok(bytes) => {
                    let bytes = bytes.min(65_536);
                    rate.took(bytes);
                    read += bytes;
                }
                Err(wait) => now += wait,
            }
        }
        // The burst, and ten seconds.
        assert!((10_000_000..=10_600_000).contains(&read), "{read}");
    }

    #[test]
    fn slow_rate_still_lets_whole_reads_pass() {
        let now = Instant::now();
        let mut rate = ByteRate::new(100, 65_536, now);
        assert_eq!(rate.allowance(now), Ok(65_536));
        rate.took(65_536);
        assert_eq!(rate.allowance(now), Err(Duration::from_millis(50)));
        assert!(rate.allowance(now + S).is_ok());
    }

    #[test]
    fn failures_wait_longer_each_time_but_not_over_five_minutes() {
        let mut backoff = Backoff::default();
        let waits: Vec<u64> =
            (0..12).map(|_| backoff.after(Gone::Failed, Duration::ZERO, 999).as_millis() as u64).collect();
        assert_eq!(waits[0], 1999);
        for chance in [0, 1, 77_777, u64::MAX] {
            let wait = backoff.after(Gone::Failed, Duration::ZERO, chance);
            assert!((S..=300 * S).contains(&wait), "{wait:?}");
        }
        assert_eq!(backoff.after(Gone::Failed, Duration::ZERO, 298_999), 299_999 * S / 1000);
        // After a good connection it begins anew.
        assert!(backoff.after(Gone::Failed, 61 * S, 298_999) <= 2 * S);
    }

    #[test]
    fn replaced_client_waits_a_minute_at_least_and_longer_each_time() {
        let mut backoff = Backoff::default();
        let mut before = Duration::ZERO;
        for _ in 0..7 {
            let wait = backoff.after(Gone::Replaced, 90 * S, 0);
            assert!(wait >= 60 * S && wait > before && wait <= 3600 * S, "{wait:?}");
            before = wait;
        }
        assert_eq!(backoff.after(Gone::Replaced, 90 * S, 0), 3600 * S);
        assert_eq!(backoff.after(Gone::Replaced, 3600 * S, 0), 60 * S);
    }

    #[test]
    fn restart_brings_clients_back_within_the_span() {
        let mut dice = crate::wire::noise::tests::Dice(1);
        let mut counts = [0; 10];
        for _ in 0..2000 {
            let chance = dice.roll(usize::MAX) as u64;
            let wait = Backoff::default().after(Gone::Restart(30 * S), Duration::ZERO, chance);
            assert!(wait <= 30 * S);
            counts[(wait.as_millis() as usize / 3001).min(9)] += 1;
        }
        assert!(counts.iter().all(|count| (120..280).contains(count)), "{counts:?}");
        assert!(Backoff::default().after(Gone::Restart(u32::MAX * S), S, u64::MAX) <= 300 * S);
    }

    #[test]
    fn relay_that_starts_anew_again_and_again_is_asked_more_and_more_seldom() {
        let mut backoff = Backoff::default();
        let waits: Vec<Duration> =
            (0..10).map(|_| backoff.after(Gone::Restart(Duration::ZERO), Duration::ZERO, 299_000)).collect();
        assert!(waits[0] >= S && waits[9] > 60 * S, "{waits:?}");
        // After a good connection its word counts again.
        assert_eq!(backoff.after(Gone::Restart(Duration::ZERO), 61 * S, 77), Duration::ZERO);
    }
}

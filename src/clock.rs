//! Time: a clock that tests can turn, and observed time, which no wrong clock can move.

use std::sync::Mutex;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Where time comes from.
pub trait Clock: Send + Sync {
    /// Seconds since 1970 as the machine believes; may jump.
    fn wall(&self) -> i64;
    /// Time since some start; never jumps, stands still while the machine is off.
    fn steady(&self) -> Duration;
    /// Whether the machine's time is kept by NTP.
    fn is_synchronized(&self) -> bool;
}

/// The machine's clock.
#[derive(Debug)]
pub struct SystemClock {
    start: Instant,
}

impl Default for SystemClock {
    fn default() -> Self {
        Self { start: Instant::now() }
    }
}

impl Clock for SystemClock {
    fn wall(&self) -> i64 {
        match SystemTime::now().duration_since(UNIX_EPOCH) {
            Ok(since) => since.as_secs() as i64,
            Err(before) => -(before.duration().as_secs() as i64),
        }
    }

    fn steady(&self) -> Duration {
        self.start.elapsed()
    }

    fn is_synchronized(&self) -> bool {
        // SAFETY: adjtimex with modes 0 only reads, into a struct that is ours and zeroed.
        unsafe {
            let mut timex: libc::timex = std::mem::zeroed();
            timex.modes = 0;
            let state = libc::adjtimex(&mut timex);
            state >= 0 && state != libc::TIME_ERROR && timex.status & libc::STA_UNSYNC == 0
        }
    }
}

/// A clock that moves when told, for tests and simulations.
#[derive(Debug, Default)]
pub struct ManualClock {
    now: Mutex<(i64, Duration, bool)>,
}

impl ManualClock {
    /// Begins at this wall time.
    pub fn at(wall: i64) -> Self {
        Self { now: Mutex::new((wall, Duration::ZERO, true)) }
    }

    fn with<T>(&self, f: impl FnOnce(&mut (i64, Duration, bool)) -> T) -> T {
        f(&mut self.now.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    /// Lets time pass.
    pub fn pass(&self, time: Duration) {
        self.with(|now| {
            now.0 += time.as_secs() as i64;
            now.1 += time;
        });
    }

    /// Turns the wall clock without time passing.
    pub fn set_wall(&self, wall: i64, synchronized: bool) {
        self.with(|now| (now.0, now.2) = (wall, synchronized));
    }
}

impl Clock for ManualClock {
    fn wall(&self) -> i64 {
        self.with(|now| now.0)
    }

    fn steady(&self) -> Duration {
        self.with(|now| now.1)
    }

    fn is_synchronized(&self) -> bool {
        self.with(|now| now.2)
    }
}

/// Time that was seen to pass: a persisted count of uptime, credited for time switched off only on good evidence.
///
/// Retention and expiry run on it, so a clock that is wrong by years deletes nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObservedTime {
    base_s: u64,
    steady_at_base: Duration,
    wall_at_stop: i64,
    credited: bool,
}

/// Without evidence for more, no single stop counts for longer. s.
const CREDIT_MAX_S: i64 = 400 * 86_400;

impl ObservedTime {
    /// Goes on from what was saved: observed seconds, and the wall time at which that was.
    pub fn resume(saved: Option<(u64, i64)>, clock: &dyn Clock) -> Self {
        let (base_s, wall_at_stop) = saved.unwrap_or((0, clock.wall()));
        Self { base_s, steady_at_base: clock.steady(), wall_at_stop, credited: saved.is_none() }
    }

    /// Observed seconds now.
    pub fn now(&self, clock: &dyn Clock) -> u64 {
        self.base_s + clock.steady().saturating_sub(self.steady_at_base).as_secs()
    }

    /// Credits the time the machine was off, once, if `is_sure` of the wall clock (NTP, or two peers that agree with
    /// it). Gives the seconds of a gap that is too large to believe and so was not credited.
    pub fn credit(&mut self, clock: &dyn Clock, is_sure: bool) -> Result<(), i64> {
        if self.credited || !is_sure {
            return Ok(());
        }
        self.credited = true;
        let up = clock.steady().saturating_sub(self.steady_at_base).as_secs() as i64;
        let off = clock.wall() - up - self.wall_at_stop;
        if off > CREDIT_MAX_S {
            return Err(off);
        }
        self.base_s += off.max(0) as u64;
        Ok(())
    }

    /// What to save now and then, and at the stop.
    pub fn save(&self, clock: &dyn Clock) -> (u64, i64) {
        (self.now(clock), clock.wall())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u64 = 3600;

    #[test]
    fn turned_clock_moves_no_observed_time() {
        let clock = ManualClock::at(1_800_000_000);
        let time = ObservedTime::resume(None, &clock);
        clock.pass(Duration::from_secs(HOUR));
        clock.set_wall(2_145_000_000, false);
        assert_eq!(time.now(&clock), HOUR);
        clock.set_wall(0, false);
        clock.pass(Duration::from_secs(HOUR));
        assert_eq!(time.now(&clock), 2 * HOUR);
    }

    #[test]
    fn time_off_counts_when_sure_and_only_once() {
        let clock = ManualClock::at(1_800_000_000);
        let mut time = ObservedTime::resume(Some((500, 1_800_000_000 - 7200)), &clock);
        assert_eq!(time.credit(&clock, false), Ok(()));
        assert_eq!(time.now(&clock), 500);
        assert_eq!(time.credit(&clock, true), Ok(()));
        assert_eq!(time.credit(&clock, true), Ok(()));
        assert_eq!(time.now(&clock), 7700);
    }

    #[test]
    fn clock_from_the_past_or_far_future_credits_nothing() {
        let clock = ManualClock::at(0);
        let mut time = ObservedTime::resume(Some((500, 1_800_000_000)), &clock);
        assert_eq!(time.credit(&clock, true), Ok(()));
        assert_eq!(time.now(&clock), 500);
        let clock = ManualClock::at(2_145_000_000);
        let mut time = ObservedTime::resume(Some((500, 1_800_000_000)), &clock);
        assert!(time.credit(&clock, true).is_err());
        assert_eq!(time.now(&clock), 500);
    }
}

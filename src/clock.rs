//! Time: a clock that tests can turn, and observed time, which no wrong clock can move.

use std::mem::MaybeUninit;
use std::sync::Mutex;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::order;

/// Made by systemd-timesyncd (its manual page) when it has set the clock since the start of the machine.
const TIMESYNC_FILE: &str = "/run/systemd/timesync/synchronized";

/// Where time comes from.
pub trait Clock: Send + Sync {
    /// Seconds since 1970 as the machine believes; may jump.
    fn wall(&self) -> i64;
    /// Time since some start; never jumps, stands still while the machine is off.
    fn steady(&self) -> Duration;
    /// Whether the machine's time is kept by NTP.
    fn is_synchronized(&self) -> bool;
    /// How long somebody waits who looks again when so much time has passed by this clock.
    fn pause(&self, time: Duration) -> Duration {
        time
    }
}

/// Where time passes faster, whoever looks again and again waits at least so long.
const PAUSE_MIN: Duration = Duration::from_secs(1);

/// Time passes faster for a cell with this in its environment, for tests: `BEGIN:RATE`, from that Unix second on so many
/// times (1 to 1,000,000). Only what is counted in hours and days notices, and who looks at that (`pause`): other waits of the
/// program stay what they are.
const FAST_ENV: &str = "GROVE_TEST_CLOCK";

/// See `FAST_ENV`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Fast {
    begin: i64,
    rate: u32,
}

impl Fast {
    fn read(text: &str) -> Option<Self> {
        let (begin, rate) = text.split_once(':')?;
        let fast = Self { begin: begin.parse().ok()?, rate: rate.parse().ok()? };
        (1..=1_000_000).contains(&fast.rate).then_some(fast)
    }

    fn wall(self, since_epoch: Duration) -> i64 {
        let begin = Duration::from_secs(self.begin.max(0) as u64);
        let passed = since_epoch.saturating_sub(begin).saturating_mul(self.rate);
        (begin.min(since_epoch) + passed).as_secs() as i64
    }
}

/// The machine's clock.
#[derive(Debug)]
pub struct SystemClock {
    start: Instant,
    fast: Option<Fast>,
}

impl Default for SystemClock {
    fn default() -> Self {
        let fast = std::env::var(FAST_ENV).ok().and_then(|text| Fast::read(&text));
        if fast.is_some() {
            log::warn!("time passes faster here, for a test: {FAST_ENV} is set");
        }
        Self { start: Instant::now(), fast }
    }
}

impl Clock for SystemClock {
    fn wall(&self) -> i64 {
        match SystemTime::now().duration_since(UNIX_EPOCH) {
            Ok(since) => self.fast.map_or(since.as_secs() as i64, |fast| fast.wall(since)),
            Err(before) => -(before.duration().as_secs() as i64),
        }
    }

    fn steady(&self) -> Duration {
        self.start.elapsed().saturating_mul(self.fast.map_or(1, |fast| fast.rate))
    }

    fn pause(&self, time: Duration) -> Duration {
        self.fast.map_or(time, |fast| (time / fast.rate).max(PAUSE_MIN.min(time)))
    }

    fn is_synchronized(&self) -> bool {
        // SAFETY: adjtimex with modes 0 only reads, into a struct that is ours and zeroed.
        let (state, status) = unsafe {
            let mut timex: libc::timex = std::mem::zeroed();
            timex.modes = 0;
            (libc::adjtimex(&mut timex), timex.status)
        };
        match state {
            // A sandbox that forbids to set the clock forbids this, too. There systemd-timesyncd says it by a file.
            ..0 => std::path::Path::new(TIMESYNC_FILE).exists(),
            state => state != libc::TIME_ERROR && status & libc::STA_UNSYNC == 0,
        }
    }
}

/// Date and time of day of `unix`, seconds since 1970, where this machine is; `None` for a year beyond an `i32`.
/// Where the C library counts 32 bits of seconds, it is right until 2038.
pub fn local_time(unix: i64) -> Option<libc::tm> {
    let mut parts = MaybeUninit::<libc::tm>::uninit();
    let unix = unix as _;
    // SAFETY: std knows no time zones. Both pointers are to live memory of the right type, and `parts` is read only if
    // localtime_r says that it filled it.
    unsafe {
        let is_filled = !libc::localtime_r(&unix, parts.as_mut_ptr()).is_null();
        is_filled.then(|| parts.assume_init())
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
            // Parts of seconds add up: time that passes in small steps passes on the wall, too.
            let before = now.1.as_secs();
            now.1 += time;
            now.0 += (now.1.as_secs() - before) as i64;
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

/// NTP is believed about one stop for no longer. s.
const NTP_CREDIT_MAX_S: i64 = 400 * 86_400;
/// Two peers are believed about one stop for no longer. s.
const PEERS_CREDIT_MAX_S: i64 = 30 * 86_400;
/// A clock that is wrong by more than this, backwards or in the eyes of two peers, is doubted. s.
const DOUBT_S: i64 = 86_400;
/// Clocks of peers that differ by no more agree. s.
const AGREE_S: i64 = 300;
/// What a peer said of the time counts for so long.
const HEARD_MAX: Duration = Duration::from_secs(3600);
/// Peers whose time is remembered.
const HEARD_PEERS_MAX: usize = 64;
/// 2023-11-14. A clock before this was never set.
const SET_AFTER: i64 = 1_700_000_000;

/// What is known of the true time, beside this machine's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Evidence {
    /// Nothing: the clock may be wrong by any amount.
    Nothing,
    /// NTP keeps the clock: it is right.
    Ntp,
    /// Two peers agree that it is this time now, in seconds since 1970.
    Peers(i64),
}

/// Why nothing expires for now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Doubt {
    /// The clock is ahead of what can be by so many seconds, and nobody vouches for it.
    Ahead(i64),
    /// The clock is behind a time that was seen before, by so many seconds.
    Behind(i64),
    /// By all evidence so many seconds passed while the cell was off: more than is believed at once.
    TooLong(i64),
}

/// What peers say of the time, when they say hello.
#[derive(Debug, Clone, Default)]
pub struct PeerTimes {
    /// What one said, and our steady time then; the last heard at the end.
    heard: Vec<([u8; 32], i64, Duration)>,
}

impl PeerTimes {
    /// A peer that has proved who it is says that it is `unix_s`. One that has no idea is not listened to.
    pub fn hear(&mut self, peer: [u8; 32], unix_s: u64, steady: Duration) {
        self.heard.retain(|(other, ..)| *other != peer);
        let Ok(unix_s) = i64::try_from(unix_s) else { return };
        if unix_s < SET_AFTER {
            return;
        }
        if self.heard.len() >= HEARD_PEERS_MAX {
            self.heard.remove(0);
        }
        self.heard.push((peer, unix_s, steady));
    }

    /// The time now on which two peers agree. Where several pairs do, the earliest: then nothing expires too soon.
    pub fn agreed(&self, steady: Duration) -> Option<i64> {
        let now = |(_, unix_s, at): &(_, i64, Duration)| {
            let since = steady.checked_sub(*at).filter(|since| *since <= HEARD_MAX)?;
            unix_s.checked_add(since.as_secs() as i64)
        };
        let mut times: Vec<i64> = self.heard.iter().filter_map(now).collect();
        order::sort(&mut times);
        times.windows(2).find(|pair| pair[1] - pair[0] <= AGREE_S).map(|pair| pair[0])
    }
}

/// Time that was seen to pass: a persisted count of uptime, credited for time switched off only on good evidence.
///
/// Retention and expiry run on it, so a clock that is wrong by years deletes nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObservedTime {
    base_s: u64,
    steady_at_base: Duration,
    /// Wall time at the base, as far as is known.
    wall_at_base: i64,
    /// The wall time at the base was saved by an earlier run, or seen by this one.
    is_based: bool,
    /// Switched off or asleep for so long, on good evidence.
    credited_s: i64,
    /// What the wall time should be, less uptime since the base.
    believed: i64,
    doubt: Option<Doubt>,
}

impl ObservedTime {
    /// Goes on from what was saved: observed seconds, and the wall time at which that was.
    pub fn resume(saved: Option<(u64, i64)>, clock: &dyn Clock) -> Self {
        let (base_s, wall_at_base) = saved.unwrap_or((0, clock.wall()));
        Self {
            base_s,
            steady_at_base: clock.steady(),
            wall_at_base,
            is_based: saved.is_some_and(|(_, wall)| wall >= SET_AFTER),
            credited_s: 0,
            believed: wall_at_base,
            doubt: None,
        }
    }

    fn up(&self, clock: &dyn Clock) -> Duration {
        clock.steady().saturating_sub(self.steady_at_base)
    }

    /// Observed seconds now.
    pub fn now(&self, clock: &dyn Clock) -> u64 {
        self.base_s + self.credited_s as u64 + self.up(clock).as_secs()
    }

    /// Observed seconds for what expires: they stand still while there is doubt.
    pub fn expiry_now(&self, clock: &dyn Clock) -> u64 {
        if self.doubt.is_some() { self.base_s } else { self.now(clock) }
    }

    /// Whether there is doubt.
    pub fn is_doubted(&self) -> bool {
        self.doubt.is_some()
    }

    /// Looks at the clock: credits time switched off if there is evidence for it, and says if there is doubt.
    ///
    /// Two peers who agree and lie can make 30 days of one stop out of none, and no more; where this cell's own clock
    /// went on and says that it was less, it is less.
    pub fn look(&mut self, clock: &dyn Clock, evidence: Evidence) -> Option<Doubt> {
        let (wall, up) = (clock.wall(), self.up(clock).as_secs() as i64);
        let (sure, max) = match evidence {
            Evidence::Nothing => (None, 0),
            Evidence::Ntp => (Some(wall), NTP_CREDIT_MAX_S),
            Evidence::Peers(time) => (Some(time), PEERS_CREDIT_MAX_S),
        };
        if !self.is_based {
            self.is_based = sure.is_some() || wall >= SET_AFTER;
            self.wall_at_base = sure.unwrap_or(wall) - up;
        }
        if let Some(time) = sure {
            let off = time - up - self.wall_at_base;
            self.believed = time - up;
            if off > max {
                self.doubt = Some(Doubt::TooLong(off));
                return self.doubt;
            }
            self.credited_s = self.credited_s.max(self.own_limit(evidence, wall - up, off));
        }
        let expected = match sure {
            Some(time) => time,
            None => self.wall_at_base + self.credited_s + up,
        };
        let (ahead, ahead_max) = match evidence {
            Evidence::Nothing => (wall - expected, NTP_CREDIT_MAX_S),
            _ => (wall - expected, DOUBT_S),
        };
        let doubt = match ahead {
            ahead if ahead > ahead_max => Some(Doubt::Ahead(ahead)),
            ahead if ahead < -DOUBT_S => Some(Doubt::Behind(-ahead)),
            _ => None,
        };
        if sure.is_none() {
            // A doubtful clock is not what the next start measures by.
            self.believed = if doubt.is_some() { expected - up } else { wall - up };
        }
        // Time that is known goes on, whatever the clock shows.
        self.doubt = doubt.filter(|_| sure.is_none());
        doubt
    }

    /// The credit that peers' word is good for: no more than this cell's own clock shows, if that went on.
    fn own_limit(&self, evidence: Evidence, wall_less_up: i64, off: i64) -> i64 {
        let own = wall_less_up - self.wall_at_base;
        match evidence {
            Evidence::Peers(_) if own > AGREE_S => off.min(own),
            _ => off,
        }
    }

    /// A person says that the clock is right: it is taken as it is, without crediting anything.
    pub fn accept(&mut self, clock: &dyn Clock) {
        let up = self.up(clock).as_secs() as i64;
        self.wall_at_base = clock.wall() - up - self.credited_s;
        self.believed = clock.wall() - up;
        self.is_based = true;
        self.doubt = None;
    }

    /// What to save now and then, and at the stop.
    pub fn save(&self, clock: &dyn Clock) -> (u64, i64) {
        (self.now(clock), self.believed + self.up(clock).as_secs() as i64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_can_make_time_pass_faster_from_a_second_on() {
        let fast = Fast::read("1000:3600").unwrap();
        let wall = |ms| fast.wall(Duration::from_millis(ms));
        assert_eq!((wall(900_000), wall(1_000_000), wall(1_002_500)), (900, 1000, 1000 + 9000));
        for odd in ["", "1000", "1000:0", "1000:1000001", "x:1", "1000:-1"] {
            assert_eq!(Fast::read(odd), None, "{odd}");
        }
    }

    const HOUR: u64 = 3600;
    const DAY: i64 = 86_400;
    const NOW: i64 = 1_800_000_000;
    const Y2038: i64 = 2_147_483_647;

    /// Saved `off_s` seconds before the clock's time, at 500 observed seconds.
    fn after(off_s: i64) -> (ManualClock, ObservedTime) {
        let clock = ManualClock::at(NOW);
        let time = ObservedTime::resume(Some((500, NOW - off_s)), &clock);
        (clock, time)
    }

    #[test]
    fn turned_clock_moves_no_observed_time_and_is_doubted() {
        let clock = ManualClock::at(NOW);
        let mut time = ObservedTime::resume(None, &clock);
        assert_eq!(time.look(&clock, Evidence::Nothing), None);
        clock.pass(Duration::from_secs(HOUR));
        clock.set_wall(Y2038, false);
        assert_eq!(time.now(&clock), HOUR);
        assert!(matches!(time.look(&clock, Evidence::Nothing), Some(Doubt::Ahead(_))));
        clock.set_wall(0, false);
        clock.pass(Duration::from_secs(HOUR));
        assert_eq!(time.now(&clock), 2 * HOUR);
        assert!(matches!(time.look(&clock, Evidence::Nothing), Some(Doubt::Behind(_))));
        assert_eq!(time.expiry_now(&clock), 0, "nothing expires meanwhile");
        // The next start measures by what should be.
        assert_eq!(time.save(&clock), (2 * HOUR, NOW + 2 * HOUR as i64));
        clock.set_wall(NOW + 2 * HOUR as i64, false);
        assert_eq!(time.look(&clock, Evidence::Nothing), None);
        assert_eq!(time.expiry_now(&clock), 2 * HOUR);
    }

    #[test]
    fn time_off_counts_when_ntp_is_sure_and_only_once() {
        let (clock, mut time) = after(7200);
        assert_eq!(time.look(&clock, Evidence::Nothing), None);
        assert_eq!(time.now(&clock), 500);
        for _ in 0..2 {
            assert_eq!(time.look(&clock, Evidence::Ntp), None);
            assert_eq!(time.now(&clock), 7700);
        }
        assert_eq!(time.save(&clock), (7700, NOW));
    }

    #[test]
    fn time_asleep_counts_too() {
        let (clock, mut time) = after(0);
        clock.pass(Duration::from_secs(100));
        time.look(&clock, Evidence::Ntp);
        // The steady clock stands still while the machine sleeps.
        clock.set_wall(NOW + 100 + 5000, true);
        time.look(&clock, Evidence::Ntp);
        assert_eq!(time.now(&clock), 5600);
    }

    #[test]
    fn clock_from_the_past_credits_nothing_and_one_from_the_far_future_freezes() {
        let clock = ManualClock::at(0);
        let mut time = ObservedTime::resume(Some((500, NOW)), &clock);
        assert_eq!(time.look(&clock, Evidence::Ntp), None);
        assert_eq!(time.now(&clock), 500);
        let clock = ManualClock::at(Y2038);
        let mut time = ObservedTime::resume(Some((500, NOW)), &clock);
        assert!(matches!(time.look(&clock, Evidence::Ntp), Some(Doubt::TooLong(_))));
        clock.pass(Duration::from_secs(HOUR));
        assert_eq!((time.now(&clock), time.expiry_now(&clock)), (500 + HOUR, 500));
        // It was so: the next start goes on from there.
        assert_eq!(time.save(&clock).1, Y2038 + HOUR as i64);
    }

    #[test]
    fn two_peers_that_agree_credit_time_off_and_one_does_not() {
        let mut peers = PeerTimes::default();
        peers.hear([1; 32], NOW as u64, Duration::ZERO);
        assert_eq!(peers.agreed(Duration::ZERO), None);
        peers.hear([1; 32], NOW as u64 + 10, Duration::from_secs(10));
        assert_eq!(peers.agreed(Duration::from_secs(10)), None, "one peer twice is one");
        peers.hear([2; 32], NOW as u64 + 100, Duration::from_secs(10));
        assert_eq!(peers.agreed(Duration::from_secs(20)), Some(NOW + 20));
        assert_eq!(peers.agreed(Duration::from_secs(4000)), None, "that was long ago");

        // A board without a clock of its own: its time stood still while it was off.
        let clock = ManualClock::at(NOW);
        let mut time = ObservedTime::resume(Some((500, NOW)), &clock);
        time.look(&clock, Evidence::Peers(NOW + 7200));
        assert_eq!((time.now(&clock), time.expiry_now(&clock)), (7700, 7700));
        assert_eq!(time.save(&clock), (7700, NOW + 7200));
    }

    #[test]
    fn peers_without_a_clock_are_not_listened_to() {
        let mut peers = PeerTimes::default();
        for (peer, time) in [0, 1, u64::MAX, u64::MAX - 1, i64::MAX as u64].into_iter().enumerate() {
            peers.hear([peer as u8; 32], time, Duration::ZERO);
        }
        assert_eq!(peers.agreed(Duration::from_secs(1)), None);
    }

    #[test]
    fn of_several_pairs_of_peers_the_earliest_counts() {
        let mut peers = PeerTimes::default();
        let later = NOW + 20 * DAY;
        for (peer, time) in [later, NOW + 5, later + 1, NOW - 90 * DAY, NOW].into_iter().enumerate() {
            peers.hear([peer as u8; 32], time as u64, Duration::ZERO);
        }
        assert_eq!(peers.agreed(Duration::ZERO), Some(NOW));
    }

    #[test]
    fn lying_peers_credit_no_more_than_the_own_clock_shows() {
        let (clock, mut time) = after(7200);
        let doubt = time.look(&clock, Evidence::Peers(NOW + 20 * DAY));
        assert_eq!(time.now(&clock), 7700);
        assert!(matches!(doubt, Some(Doubt::Behind(_))), "and it is said: {doubt:?}");
    }

    #[test]
    fn lying_peers_make_no_more_than_30_days_of_a_stop() {
        let clock = ManualClock::at(NOW);
        let mut time = ObservedTime::resume(Some((500, NOW)), &clock);
        for days in [29, 31, 365, 10_000] {
            time.look(&clock, Evidence::Peers(NOW + days * DAY));
            assert!(time.now(&clock) <= 500 + 30 * DAY as u64);
        }
        assert!(matches!(time.look(&clock, Evidence::Peers(NOW + 31 * DAY)), Some(Doubt::TooLong(_))));
        assert_eq!(time.expiry_now(&clock), 500);
    }

    #[test]
    fn new_cell_on_a_board_without_clock_takes_the_first_time_it_is_told() {
        let clock = ManualClock::at(0);
        let mut time = ObservedTime::resume(None, &clock);
        assert_eq!(time.look(&clock, Evidence::Nothing), None);
        clock.pass(Duration::from_secs(60));
        clock.set_wall(NOW, true);
        assert_eq!(time.look(&clock, Evidence::Ntp), None);
        assert_eq!(time.now(&clock), 60);
    }

    #[test]
    fn time_saved_by_a_clock_that_was_never_set_is_no_base() {
        let clock = ManualClock::at(NOW);
        let mut time = ObservedTime::resume(Some((500, 40)), &clock);
        assert_eq!(time.look(&clock, Evidence::Ntp), None);
        assert_eq!(time.now(&clock), 500);
    }

    #[test]
    fn person_may_say_that_the_clock_is_right() {
        let clock = ManualClock::at(NOW + 1000 * DAY);
        let mut time = ObservedTime::resume(Some((500, NOW)), &clock);
        assert!(time.look(&clock, Evidence::Nothing).is_some());
        time.accept(&clock);
        assert_eq!(time.look(&clock, Evidence::Nothing), None);
        assert_eq!((time.now(&clock), time.save(&clock).1), (500, NOW + 1000 * DAY));
    }
}

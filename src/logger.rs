//! Log lines on stderr, and the last of them in memory.
//!
//! Promise: a message, whoever's bytes it carries, is one line and cannot command a terminal.

use std::collections::VecDeque;
use std::io::Write;
use std::os::fd::AsFd;
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use log::{Level, LevelFilter, Log, Metadata, Record};

/// Lines kept in memory.
const RECENT_MAX: usize = 500;
/// Longest line, in bytes; the rest is cut.
const LINE_BYTES_MAX: usize = 2000;

/// A line that was logged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// Its number since the start, from 1.
    pub n: u64,
    /// Unix time. ms.
    pub unix_ms: u64,
    /// How grave it is.
    pub level: Level,
    /// What was said, on one line.
    pub text: String,
}

#[derive(Default)]
struct Recent {
    lines: VecDeque<Line>,
    last: u64,
}

struct Logger {
    recent: Mutex<Recent>,
    is_journal: Mutex<bool>,
}

static LOGGER: Logger =
    Logger { recent: Mutex::new(Recent { lines: VecDeque::new(), last: 0 }), is_journal: Mutex::new(false) };

/// Starts to log lines of this level and graver ones to stderr; called again, changes the level.
pub fn start(level: LevelFilter) {
    let stream = std::env::var("JOURNAL_STREAM").ok();
    *LOGGER.is_journal.lock().unwrap_or_else(PoisonError::into_inner) =
        stream.is_some_and(|stream| is_journal(&stream, std::io::stderr()));
    // It fails only if there is a logger already, which is this one.
    let _ = log::set_logger(&LOGGER);
    log::set_max_level(level);
}

/// Of the last 500 lines those of a number over `n`, the oldest first.
pub fn recent_after(n: u64) -> Vec<Line> {
    let recent = LOGGER.recent.lock().unwrap_or_else(PoisonError::into_inner);
    recent.lines.iter().filter(|line| line.n > n).cloned().collect()
}

/// Whether `stream`, `device:inode` as systemd gives it, is this descriptor.
fn is_journal(stream: &str, fd: impl AsFd) -> bool {
    let Ok(stat) = rustix::fs::fstat(fd) else { return false };
    stream == format!("{}:{}", stat.st_dev, stat.st_ino)
}

fn line(seconds: u64, level: Level, message: &str) -> String {
    let mut text = format!("{} {level} ", time_utc(seconds));
    for c in message.chars() {
        if text.len() >= LINE_BYTES_MAX {
            text.push('…');
            break;
        }
        match c {
            '\n' => text.push_str(" | "),
            c if is_odd(c) => text.push('\u{fffd}'),
            c => text.push(c),
        }
    }
    text
}

/// `2026-11-23T21:10:11Z`; `seconds` since 1970.
pub fn time_utc(seconds: u64) -> String {
    let days = (seconds / 86_400) as i64;
    // Days to a date of the Gregorian calendar (Howard Hinnant, "chrono-compatible low-level date algorithms").
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + i64::from(month <= 2);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// Whether a terminal would do something else than show it.
pub fn is_odd(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
            | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{61c}' | '\u{e0000}'..='\u{e007f}')
}

/// What journald takes for the level (sd-daemon(3)).
fn mark(level: Level) -> &'static str {
    match level {
        Level::Error => "<3>",
        Level::Warn => "<4>",
        Level::Info => "<6>",
        Level::Debug | Level::Trace => "<7>",
    }
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // Crates below speak of their own matters: what Grove does not repeat is for whoever debugs it.
        let is_own = metadata.target().split("::").next() == Some("grove");
        metadata.level() <= log::max_level()
            && (is_own || log::max_level() >= LevelFilter::Debug || metadata.level() == Level::Error)
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let line = line(now.as_secs(), record.level(), &record.args().to_string());
        let is_journal = *self.is_journal.lock().unwrap_or_else(PoisonError::into_inner);
        let mark = if is_journal { mark(record.level()) } else { "" };
        // One write, so that lines of two threads do not mix. Nobody can be told that it failed.
        let _ = std::io::stderr().write_all(format!("{mark}{line}\n").as_bytes());
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        if recent.lines.len() == RECENT_MAX {
            recent.lines.pop_front();
        }
        recent.last += 1;
        let n = recent.last;
        // Behind the time and the level.
        let text = line.splitn(3, ' ').nth(2).unwrap_or_default().to_owned();
        recent.lines.push_back(Line { n, unix_ms: now.as_millis() as u64, level: record.level(), text });
    }

    fn flush(&self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn message_is_one_harmless_line() {
        let text = line(1_795_468_211, Level::Warn, "peer \"\x1b[31mbob\" said\nno\u{202e}");
        assert_eq!(text, "2026-11-23T21:10:11Z WARN peer \"\u{fffd}[31mbob\" said | no\u{fffd}");
        assert!(line(0, Level::Info, &"é".repeat(5000)).len() < LINE_BYTES_MAX + 10);
    }

    #[test]
    fn dates_are_right() {
        assert_eq!(time_utc(0), "1970-01-01T00:00:00Z");
        assert_eq!(time_utc(951_827_696), "2000-02-29T12:34:56Z");
        assert_eq!(time_utc(1_795_468_211), "2026-11-23T21:10:11Z");
        assert_eq!(time_utc(4_102_444_800), "2100-01-01T00:00:00Z");
    }

    #[test]
    fn journal_is_known_by_its_stream() {
        let file = std::fs::File::open("/dev/null").unwrap();
        let stat = rustix::fs::fstat(&file).unwrap();
        assert!(is_journal(&format!("{}:{}", stat.st_dev, stat.st_ino), &file));
        assert!(!is_journal("1:2", &file));
        assert!(!is_journal("", &file));
        assert_eq!((mark(Level::Error), mark(Level::Warn), mark(Level::Trace)), ("<3>", "<4>", "<7>"));
    }

    #[test]
    fn the_last_lines_are_kept() {
        log::set_max_level(LevelFilter::Error);
        let log = |level, target| {
            LOGGER.log(
                &Record::builder().level(level).target(target).args(format_args!("kept {target}")).build(),
            );
        };
        log(Level::Error, "grove::sync");
        log(Level::Info, "grove::sync");
        // Other tests log too: what is asked for is that both are there, in order, within the limit.
        let lines = recent_after(0);
        assert!(lines.len() <= RECENT_MAX && lines.windows(2).all(|two| two[0].n + 1 == two[1].n));
        let kept = lines.iter().find(|line| line.text == "kept grove::sync").unwrap();
        assert_eq!(kept.level, Level::Error);
        assert!(recent_after(kept.n).iter().all(|line| line.n > kept.n));
    }
}

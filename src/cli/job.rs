//! Long work: started, watched, shown on a terminal as one line, and stopped by Ctrl-C.

use std::time::{Duration, Instant};

use super::ask::{Answer, Cell, CliError, Fields, Method};
use super::{Context, show, terminal};

/// How long a cell may keep the answer about a job that has not changed. ms.
const WAIT_MS: u64 = 500;
/// How long a stopped job may take to wind up.
const STOP_WAIT: Duration = Duration::from_secs(30);
/// The line is not written more often.
const LINE_EVERY: Duration = Duration::from_millis(100);
/// Rates are those of the last while. s.
const RATE_WINDOW_S: f64 = 10.0;

/// What a job came to.
#[derive(Debug)]
pub struct Outcome {
    /// Its result.
    pub result: Fields,
    /// The whole answer, for `--json`.
    pub text: String,
}

/// Starts a job and waits for its end.
pub fn run(
    context: &mut Context<'_>,
    cell: &mut dyn Cell,
    path: &str,
    body: String,
) -> Result<Outcome, CliError> {
    terminal::note_interrupts();
    let started = cell.ask(Method::Post, path, &[], Some(body))?;
    let Some(job) = started.fields.some("job") else {
        return Err(CliError::new("the cell's answer names no job", "see what the running cell logs"));
    };
    let path = format!("/jobs/{job}");
    let mut line = Line::new(context.terminals.err);
    let mut stopped: Option<Instant> = None;
    loop {
        let wait = [("wait_ms", WAIT_MS.to_string().into_bytes())];
        let Answer { text, mut fields } = match cell.ask(Method::Get, &path, &wait, None) {
            Ok(answer) => answer,
            Err(error) => {
                line.clear(context);
                return Err(error);
            }
        };
        match fields.text("state") {
            "done" => {
                line.clear(context);
                let Some(result) = fields.part("result") else {
                    return Ok(Outcome { result: Fields(Default::default()), text });
                };
                return Ok(Outcome { result, text });
            }
            "failed" => {
                line.clear(context);
                if stopped.is_some() {
                    return Err(CliError::new(
                        "stopped; what was done so far stays done",
                        "start it again to go on",
                    ));
                }
                let error = fields.part("error");
                let part = |key| error.as_ref().map_or(String::new(), |error| error.text(key).to_owned());
                return Err(match part("message") {
                    message if message.is_empty() => {
                        CliError::new("the cell could not do it", "see what it logs")
                    }
                    message => CliError::new(message, part("hint")),
                });
            }
            _ => {}
        }
        match stopped {
            None if terminal::is_interrupted() => {
                stopped = Some(Instant::now());
                cell.ask(Method::Post, &format!("{path}/cancel"), &[], Some("{}".to_owned()))?;
            }
            Some(since) if since.elapsed() > STOP_WAIT => {
                line.clear(context);
                return Err(CliError::new(
                    "the cell was told to stop but is still at it",
                    "see `grove status`",
                ));
            }
            _ => line.show(context, &Progress::of(&fields), Instant::now()),
        }
    }
}

/// Names what could not be done, one line each; an error if there is any.
pub fn tell_problems(context: &mut Context<'_>, problems: &[Fields]) -> Result<(), CliError> {
    for problem in problems {
        let path = show::name(&crate::files::unix::from_wire(problem.text("path")));
        let _ = writeln!(context.err, "grove: {path}: {}", show::text(problem.text("why")));
    }
    if problems.is_empty() { Ok(()) } else { Err(CliError::Told) }
}

/// How far something is.
#[derive(Debug, Clone, Default)]
pub struct Progress {
    /// What is being done.
    pub text: String,
    /// How far.
    pub done: u64,
    /// Of how much; 0 if not known.
    pub total: u64,
    /// What is counted: `bytes`, `files` or `chunks`.
    pub unit: String,
}

impl Progress {
    fn of(fields: &Fields) -> Self {
        Self {
            text: fields.text("text").to_owned(),
            done: fields.number("done"),
            total: fields.number("total"),
            unit: fields.text("unit").to_owned(),
        }
    }
}

/// One line of a terminal that is written over and over.
#[derive(Debug)]
pub struct Line {
    is_on: bool,
    is_dirty: bool,
    written: Option<Instant>,
    /// When and how far: what the rate is counted from, at least.
    marks: Vec<(Instant, u64)>,
}

impl Line {
    /// A line that is written only if `is_on`: if stderr is a terminal.
    pub fn new(is_on: bool) -> Self {
        Self { is_on, is_dirty: false, written: None, marks: Vec::new() }
    }

    /// Shows how far it is.
    pub fn show(&mut self, context: &mut Context<'_>, progress: &Progress, now: Instant) {
        if !self.is_on || self.written.is_some_and(|at| now.duration_since(at) < LINE_EVERY) {
            return;
        }
        self.written = Some(now);
        let rate = self.rate(progress.done, now);
        let text = line(progress, rate, terminal::columns());
        let _ = write!(context.err, "\r\x1b[K{text}").and_then(|()| context.err.flush());
        self.is_dirty = true;
    }

    /// Makes room for what is said next.
    pub fn clear(&mut self, context: &mut Context<'_>) {
        if self.is_dirty {
            let _ = write!(context.err, "\r\x1b[K").and_then(|()| context.err.flush());
            self.is_dirty = false;
        }
    }

    /// Units a second over the last while; 0 if not known.
    fn rate(&mut self, done: u64, now: Instant) -> f64 {
        // Another stage begins to count anew.
        if self.marks.last().is_some_and(|(_, before)| *before > done) {
            self.marks.clear();
        }
        self.marks.push((now, done));
        let age = |at: &Instant| now.duration_since(*at).as_secs_f64();
        let keep_from = self.marks.iter().rposition(|(at, _)| age(at) >= RATE_WINDOW_S).unwrap_or(0);
        self.marks.drain(..keep_from);
        match &self.marks[0] {
            (at, before) if age(at) >= 0.5 => (done - before) as f64 / age(at),
            _ => 0.0,
        }
    }
}

/// `keeping Pictures: 1.2 GiB of 3.0 GiB (40 %), 85 MiB/s, 21 s left`, cut to the width of the terminal.
fn line(progress: &Progress, rate: f64, columns: usize) -> String {
    let amount = |number: u64| match progress.unit.as_str() {
        "bytes" => show::bytes(number),
        unit => format!("{} {unit}", show::count(number)),
    };
    let mut text = show::text(&progress.text).replace('\n', " ");
    if progress.done > 0 || progress.total > 0 {
        if !text.is_empty() {
            text.push_str(": ");
        }
        text.push_str(&amount(progress.done));
        if progress.total > 0 {
            let percent = (u128::from(progress.done) * 100 / u128::from(progress.total)).min(100);
            text.push_str(&format!(" of {} ({percent} %)", amount(progress.total)));
        }
        if rate > 0.0 {
            text.push_str(&format!(", {}/s", amount(rate as u64)));
        }
        let left = progress.total.saturating_sub(progress.done);
        if rate >= 1.0 && left > 0 {
            text.push_str(&format!(", {} left", show::duration((left as f64 / rate).ceil() as u64)));
        }
    }
    // A line as wide as the terminal would wrap, and could not be written over.
    let room = columns.saturating_sub(1);
    if show::width(&text) > room {
        text = text.chars().take(room.saturating_sub(1)).chain(['…']).collect();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn progress(text: &str, done: u64, total: u64, unit: &str) -> Progress {
        Progress { text: text.into(), done, total, unit: unit.into() }
    }

    #[test]
    fn line_says_how_far_how_fast_and_how_long() {
        let keeping = progress("keeping a\x1bb", 1 << 30, 3 << 30, "bytes");
        let rate = f64::from(100 << 20);
        assert_eq!(
            line(&keeping, rate, 100),
            "keeping a\u{fffd}b: 1.0 GiB of 3.0 GiB (33 %), 100 MiB/s, 21 s left"
        );
        assert_eq!(line(&keeping, rate, 20), "keeping a\u{fffd}b: 1.0 G…");
        assert_eq!(line(&keeping, rate, 0), "…");
        assert_eq!(line(&progress("looking", 0, 0, ""), 0.0, 80), "looking");
        assert_eq!(line(&progress("", 1234, 0, "files"), 10.0, 80), "1,234 files, 10 files/s");
        assert_eq!(
            line(&progress("x", 9, 3, "chunks"), 0.1, 80),
            "x: 9 chunks of 3 chunks (100 %), 0 chunks/s"
        );
    }

    #[test]
    fn rate_is_that_of_the_last_while() {
        let mut shown = Line::new(true);
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(shown.rate(0, at(0)), 0.0);
        for second in 1..=30 {
            shown.rate(second * 10, at(second));
        }
        assert_eq!(shown.rate(310, at(31)), 10.0);
        assert!(shown.marks.len() < 15);
        assert_eq!(shown.rate(5, at(32)), 0.0, "a new stage");
        assert_eq!(shown.rate(25, at(34)), 10.0);
    }
}

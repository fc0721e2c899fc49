//! The terminal: who sits there, what he types, and Ctrl-C.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::termios::{self, LocalModes, OptionalActions};
use zeroize::Zeroizing;

use super::ask::CliError;

/// Longest text that is read from a person or a pipe. Bytes.
const TEXT_BYTES_MAX: u64 = 64 * 1024;

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

extern "C" fn on_interrupt(_signal: libc::c_int) {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

/// From now on the first Ctrl-C is noted, for `is_interrupted`; the second ends the process as usual.
pub fn note_interrupts() {
    // SAFETY: neither std nor rustix sets handlers. The handler only stores an atomic, which a handler may; the
    // structure is all zeros but for what is set, which is a valid one.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_interrupt as extern "C" fn(libc::c_int) as libc::sighandler_t;
        action.sa_flags = libc::SA_RESETHAND | libc::SA_RESTART;
        libc::sigaction(libc::SIGINT, &action, std::ptr::null_mut());
    }
}

/// Whether Ctrl-C was pressed.
pub fn is_interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// Columns of the terminal at stderr; 80 if it does not say.
pub fn columns() -> usize {
    match termios::tcgetwinsize(io::stderr()) {
        Ok(size) if size.ws_col > 0 => size.ws_col.into(),
        _ => 80,
    }
}

/// A line without its end; `None` at the end of the input.
pub fn read_line(input: &mut dyn BufRead) -> Result<Option<Zeroizing<String>>, CliError> {
    // With room for all of it, so that growing leaves no copies.
    let mut line = Zeroizing::new(String::with_capacity(4096));
    let read = input.take(TEXT_BYTES_MAX).read_line(&mut line).map_err(CliError::io("reading the input"))?;
    if line.ends_with('\n') {
        line.pop();
        if line.ends_with('\r') {
            line.pop();
        }
    }
    Ok((read > 0).then_some(line))
}

/// All of the input, at most 64 KiB.
pub fn read_all(input: &mut dyn Read) -> Result<Zeroizing<String>, CliError> {
    let mut text = Zeroizing::new(String::with_capacity(4096));
    input.take(TEXT_BYTES_MAX).read_to_string(&mut text).map_err(CliError::io("reading the input"))?;
    Ok(text)
}

/// Asks a question that is answered with y or n; anything else, and no answer, is a no.
pub fn ask_yes(question: &str, input: &mut dyn BufRead, out: &mut dyn Write) -> Result<bool, CliError> {
    write!(out, "{question} [y/N] ")?;
    out.flush()?;
    let answer = read_line(input)?.unwrap_or_default();
    Ok(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}

/// Turns the terminal's echo on again when dropped.
struct Silence(termios::Termios);

impl Drop for Silence {
    fn drop(&mut self) {
        let _ = termios::tcsetattr(io::stdin(), OptionalActions::Flush, &self.0);
    }
}

/// Reads a line from the terminal at stdin without showing it.
pub fn read_hidden(prompt: &str) -> Result<Zeroizing<String>, CliError> {
    let doing = || CliError::io("reading the password from the terminal");
    let before = termios::tcgetattr(io::stdin()).map_err(|why| doing()(why.into()))?;
    let mut hidden = before.clone();
    hidden.local_modes.remove(LocalModes::ECHO);
    hidden.local_modes.insert(LocalModes::ECHONL);
    // Ctrl-C would leave the terminal without echo: it becomes a letter instead, which is looked for below.
    hidden.local_modes.remove(LocalModes::ISIG);
    termios::tcsetattr(io::stdin(), OptionalActions::Flush, &hidden).map_err(|why| doing()(why.into()))?;
    let _silence = Silence(before);
    let mut err = io::stderr();
    write!(err, "{prompt}").and_then(|()| err.flush())?;
    let line = read_line(&mut BufReader::with_capacity(4096, io::stdin()))?.unwrap_or_default();
    if line.contains('\u{3}') {
        return Err(CliError::new("stopped; nothing was changed", ""));
    }
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_without_their_ends() {
        let mut input: &[u8] = b"one\r\ntwo\n\nlast";
        let mut lines = Vec::new();
        while let Some(line) = read_line(&mut input).unwrap() {
            lines.push(line.to_string());
        }
        assert_eq!(lines, ["one", "two", "", "last"]);
        assert!(read_line(&mut &b"\xff\n"[..]).is_err());
    }

    #[test]
    fn only_yes_is_a_yes() {
        for (typed, yes) in
            [("y\n", true), ("YES\r\n", true), ("n\n", false), ("\n", false), ("", false), ("yo\n", false)]
        {
            let mut out = Vec::new();
            assert_eq!(ask_yes("Sure?", &mut typed.as_bytes(), &mut out).unwrap(), yes, "{typed:?}");
            assert_eq!(out, b"Sure? [y/N] ");
        }
    }
}

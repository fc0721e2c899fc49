//! Streams of answers cut into events: server-sent events of OpenAI's form, and lines of JSON of Ollama's.
//!
//! Promise: whatever comes, no more than one event is held, and a stream that says nothing for a MiB is an error.

use std::fmt;

/// One event, in bytes.
pub const EVENT_BYTES_MAX: usize = 512 * 1024;
/// Bytes without an event (comments, white space) after which a stream is given up.
const IDLE_BYTES_MAX: usize = 1024 * 1024;

/// Why a stream is no stream of events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadStream(pub &'static str);

impl fmt::Display for BadStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

/// How events stand in the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// `data: …` lines, an empty line ends the event.
    Events,
    /// Each line is one.
    Lines,
}

/// Cuts bytes into events as they come.
#[derive(Debug)]
pub struct Cutter {
    form: Form,
    line: Vec<u8>,
    data: Option<Vec<u8>>,
    idle: usize,
}

impl Cutter {
    /// Nothing has come yet.
    pub fn new(form: Form) -> Self {
        Self { form, line: Vec::new(), data: None, idle: 0 }
    }

    /// Takes from the front of `bytes` up to the end of the next event; the event's text, if there is a whole one.
    pub fn next(&mut self, bytes: &mut &[u8]) -> Result<Option<String>, BadStream> {
        while !bytes.is_empty() {
            let end = bytes.iter().position(|byte| *byte == b'\n');
            let (piece, rest) = bytes.split_at(end.map_or(bytes.len(), |end| end + 1));
            *bytes = rest;
            self.idle += piece.len();
            let held = self.line.len() + piece.len() + self.data.as_ref().map_or(0, Vec::len);
            if held > EVENT_BYTES_MAX {
                return Err(BadStream("an event is too long"));
            }
            if self.idle > IDLE_BYTES_MAX {
                return Err(BadStream("a mebibyte came without an event"));
            }
            self.line.extend_from_slice(piece);
            if end.is_none() {
                break;
            }
            let line = std::mem::take(&mut self.line);
            let line = line.strip_suffix(b"\n").unwrap_or(&line);
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            if let Some(event) = self.take_line(line) {
                self.idle = 0;
                return String::from_utf8(event).map(Some).map_err(|_| BadStream("an event is not UTF-8"));
            }
        }
        Ok(None)
    }

    fn take_line(&mut self, line: &[u8]) -> Option<Vec<u8>> {
        if self.form == Form::Lines {
            let line = line.trim_ascii();
            return (!line.is_empty()).then(|| line.to_vec());
        }
        if line.is_empty() {
            return self.data.take();
        }
        if let Some(data) = line.strip_prefix(b"data:") {
            let data = data.strip_prefix(b" ").unwrap_or(data);
            match &mut self.data {
                Some(before) => {
                    before.push(b'\n');
                    before.extend_from_slice(data);
                }
                None => self.data = Some(data.to_vec()),
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(form: Form, text: &[u8], piece: usize) -> Result<Vec<String>, BadStream> {
        let mut cutter = Cutter::new(form);
        let mut events = Vec::new();
        for mut bytes in text.chunks(piece) {
            while let Some(event) = cutter.next(&mut bytes)? {
                events.push(event);
            }
        }
        Ok(events)
    }

    #[test]
    fn events_are_the_same_however_they_arrive() {
        let text = ": hello\r\ndata: {\"a\":1}\r\n\r\nevent: x\nid: 7\ndata:two\ndata: lines\n\n\n\ndata: [DONE]\n\n";
        for piece in 1..text.len() {
            let events = cut(Form::Events, text.as_bytes(), piece).unwrap();
            assert_eq!(events, ["{\"a\":1}", "two\nlines", "[DONE]"], "{piece}");
        }
        for piece in 1..20 {
            assert_eq!(cut(Form::Lines, b"{}\n\n  {\"a\":1} \r\nx", piece).unwrap(), ["{}", "{\"a\":1}"]);
        }
    }

    #[test]
    fn endless_lines_and_white_space_are_given_up_and_nothing_is_held() {
        for form in [Form::Events, Form::Lines] {
            for filler in [&b"data: xxxxxxxx"[..], b" ", b"\n", b": c\n", b"data: x\n"] {
                let mut cutter = Cutter::new(form);
                let mut outcome = Ok(None);
                let piece = filler.repeat(4096 / filler.len());
                for _ in 0..10 * 1024 * 1024 / piece.len() {
                    let mut bytes = &piece[..];
                    while !bytes.is_empty() && outcome.is_ok() {
                        outcome = cutter.next(&mut bytes);
                    }
                    assert!(cutter.line.capacity() <= 2 * EVENT_BYTES_MAX);
                }
                let is_events = form == Form::Lines && filler.ends_with(b"\n") && filler.len() > 1;
                assert_eq!(outcome.is_err(), !is_events, "{form:?} {filler:?}");
            }
        }
        assert_eq!(cut(Form::Lines, b"\xff\n", 9), Err(BadStream("an event is not UTF-8")));
    }
}

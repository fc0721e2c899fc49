//! What a browser asks of a running cell, over the wire.

mod common;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use common::{Cell, TempDir, wait_for};

/// A running cell of its own folder.
fn running(temp: &TempDir, name: &str, settings: &[(&str, &str)]) -> Cell {
    let mut cell = Cell::at(temp.path(), name);
    cell.init(name, settings);
    cell.run();
    cell
}

fn secret(cell: &Cell) -> String {
    fs::read_to_string(cell.dir.join("peer_secret")).unwrap().trim().to_owned()
}

fn connect(cell: &Cell) -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", cell.port())).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    stream
}

/// An answer that was read to its end.
#[derive(Debug)]
struct Answer {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (key, value) = line.split_once(": ")?;
            key.eq_ignore_ascii_case(name).then_some(value)
        })
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// One request by the owner, with these further headers.
fn ask(cell: &Cell, line: &str, headers: &str, body: &[u8]) -> Answer {
    raw(cell, line, &format!("Authorization: Bearer {}\r\n{headers}", secret(cell)), body)
}

fn raw(cell: &Cell, line: &str, headers: &str, body: &[u8]) -> Answer {
    let mut stream = connect(cell);
    let length = if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
    let host = if headers.contains("Host:") { "" } else { "Host: localhost\r\n" };
    let head = format!("{line} HTTP/1.1\r\n{host}Connection: close\r\n{headers}{length}\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    let _ = stream.write_all(body);
    let mut bytes = Vec::new();
    let _ = stream.read_to_end(&mut bytes);
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n").expect("there is a head");
    let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
    let status = head[9..12].parse().unwrap();
    Answer { status, head, body: bytes.split_off(end + 4) }
}

/// Opens the stream of changes; lines come out of it.
fn events(cell: &Cell) -> BufReader<TcpStream> {
    let mut stream = connect(cell);
    let head = format!(
        "GET /api/v1/events HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {}\r\n\r\n",
        secret(cell)
    );
    stream.write_all(head.as_bytes()).unwrap();
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    while line != "\r\n" {
        line.clear();
        reader.read_line(&mut line).unwrap();
        if line.starts_with("HTTP/1.1") {
            assert!(line.starts_with("HTTP/1.1 200"), "{line}");
        }
    }
    reader
}

/// Reads lines until one has all of these words.
fn event_with(events: &mut BufReader<TcpStream>, words: &[&str]) {
    let mut line = String::new();
    while !words.iter().all(|word| line.contains(word)) {
        line.clear();
        assert!(events.read_line(&mut line).unwrap() > 0, "the stream ended before {words:?}");
    }
}

#[test]
fn changes_are_told_as_they_happen_and_watchers_are_bounded() {
    let temp = TempDir::new("dash-events");
    let cell = running(&temp, "ann", &[("settle.closed_ms", "60")]);
    let mut watching = events(&cell);
    fs::write(cell.home.join("new.txt"), "new").unwrap();
    event_with(&mut watching, &["data:", "\"files\"", "\"status\""]);
    cell.post("/collect", "{}");
    event_with(&mut watching, &["data:", "\"jobs\""]);

    let more: Vec<_> = (1..16).map(|_| events(&cell)).collect();
    let full = ask(&cell, "GET /api/v1/events", "", b"");
    assert_eq!(full.status, 503, "{}", full.text());
    assert!(full.text().contains("too_many_streams"));
    assert_eq!(raw(&cell, "GET /api/v1/events", "", b"").status, 401);
    // A place is free as soon as one is gone.
    drop(more);
    wait_for("a place is free", || (ask_head(&cell) == 200).then_some(()));
}

/// The status of another stream of changes, which is closed at once.
fn ask_head(cell: &Cell) -> u16 {
    let mut stream = connect(cell);
    let head = format!(
        "GET /api/v1/events HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {}\r\n\r\n",
        secret(cell)
    );
    stream.write_all(head.as_bytes()).unwrap();
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).unwrap();
    line[9..12].parse().unwrap()
}

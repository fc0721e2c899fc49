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

/// One that will start itself anew, and must find its port free.
fn running_at_a_port(temp: &TempDir, name: &str) -> Cell {
    let mut cell = Cell::at(temp.path(), name);
    cell.http_port = common::free_port();
    cell.init(name, &[]);
    cell.run();
    cell
}

fn secret(cell: &Cell) -> String {
    fs::read_to_string(cell.dir.join("peer_secret")).unwrap().trim().to_owned()
}

fn connect(cell: &Cell) -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", cell.port())).unwrap();
    stream.set_read_timeout(Some(common::DEADLINE)).unwrap();
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

/// Reads lines of data until all of these words were told, together or one after the other.
fn told_of(events: &mut BufReader<TcpStream>, words: &[&str]) {
    let mut left = words.to_vec();
    while !left.is_empty() {
        let mut line = String::new();
        assert!(events.read_line(&mut line).unwrap() > 0, "the stream ended before {left:?}");
        left.retain(|word| !(line.starts_with("data:") && line.contains(word)));
    }
}

#[test]
fn changes_are_told_as_they_happen_and_watchers_are_bounded() {
    let temp = TempDir::new("dash-events");
    let cell = running(&temp, "ann", &[("settle.closed_ms", "60")]);
    let mut watching = events(&cell);
    fs::write(cell.home.join("new.txt"), "new").unwrap();
    told_of(&mut watching, &["\"files\"", "\"status\""]);
    cell.post("/collect", "{}");
    told_of(&mut watching, &["\"jobs\""]);

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

fn json(answer: &Answer) -> miniserde::json::Object {
    common::object(&answer.text())
}

fn names(answer: &Answer) -> Vec<String> {
    common::items(&json(answer), "entries").iter().map(|entry| field(entry, "name")).collect()
}

fn field(value: &miniserde::json::Value, key: &str) -> String {
    let miniserde::json::Value::Object(object) = value else { panic!("no object") };
    common::text(object, key)
}

fn code(answer: &Answer) -> String {
    common::text(&json(answer), "error.code")
}

#[test]
fn folders_are_listed_in_every_order_and_names_are_found() {
    let temp = TempDir::new("dash-files");
    let cell = running(&temp, "ann", &[]);
    for (name, len) in [("b.txt", 3), ("A.md", 5), ("c.jpg", 1), ("noending", 4), (".hidden", 2)] {
        fs::write(cell.home.join(name), vec![b'x'; len]).unwrap();
    }
    fs::create_dir_all(cell.home.join("Folder/inner")).unwrap();
    fs::write(cell.home.join("Folder/inner/B-deep \u{c4}.txt"), "deep").unwrap();
    common::set_mtime(&cell.home.join("b.txt"), 1000, 0);
    common::set_mtime(&cell.home.join("A.md"), 2000, 5_000_000);
    cell.job_done("/add", &format!("{{\"paths\":[{:?}]}}", cell.home.to_str().unwrap()));

    let list = |query: &str| ask(&cell, &format!("GET /api/v1/files?{query}"), "", b"");
    let all = list("sort=name");
    assert_eq!(names(&all), ["Folder", ".hidden", "A.md", "b.txt", "c.jpg", "noending"]);
    assert_eq!(common::number(&json(&all), "total"), 6);
    assert_eq!(
        names(&list("sort=size&order=down")),
        ["Folder", "A.md", "noending", "b.txt", ".hidden", "c.jpg"]
    );
    assert_eq!(names(&list("sort=kind")), ["Folder", ".hidden", "noending", "c.jpg", "A.md", "b.txt"]);
    assert_eq!(names(&list("sort=modified&limit=3")), ["Folder", "b.txt", "A.md"]);
    let part = list("sort=name&offset=4&limit=1");
    assert_eq!(names(&part), ["c.jpg"]);
    assert!(part.text().contains("\"more\":true") && part.text().contains("\"offset\":4"));
    assert!(all.text().contains("\"modified_unix_ms\":2000005") && all.text().contains("\"state\":\"here\""));
    assert!(all.text().contains("\"copies\":{\"have\":1,\"want\":2}"), "{}", all.text());
    for bad in ["sort=colour", "sort=name&order=sideways"] {
        assert_eq!(list(bad).status, 400, "{bad}");
    }
    // The form for pages by name is as it was.
    assert!(list("limit=2").text().contains("\"state\":\"present\""));

    let search = |q: &str| ask(&cell, &format!("GET /api/v1/search?q={q}"), "", b"");
    assert_eq!(names(&search("b%20TXT")), ["b.txt", "B-deep \u{c4}.txt"]);
    assert_eq!(names(&search("%C3%A4")), ["B-deep \u{c4}.txt"]);
    assert!(search("deep").text().contains("\"path\":\"Folder/inner/B-deep \u{c4}.txt\""));
    let first = search("b&limit=1");
    assert!(names(&first) == ["b.txt"] && first.text().contains("\"more\":true"));
    assert_eq!(names(&search("b&limit=1&offset=1")).len(), 1);
    assert_eq!(search("").status, 400);

    let file = ask(&cell, "GET /api/v1/file?path=A.md", "", b"");
    let text = file.text();
    assert_eq!(common::items(&json(&file), "versions").len(), 1);
    assert!(text.contains("\"shared_with\":[]") && text.contains("\"path\":\"A.md\""), "{text}");
    assert_eq!(ask(&cell, "GET /api/v1/file?path=nothing", "", b"").status, 404);
}

#[test]
fn folders_are_made_and_things_are_moved_without_loss() {
    let temp = TempDir::new("dash-move");
    let cell = running(&temp, "ann", &[("settle.closed_ms", "60")]);
    let post = |path: &str, body: &str| {
        ask(&cell, &format!("POST /api/v1/{path}"), "Content-Type: application/json\r\n", body.as_bytes())
    };
    fs::write(cell.home.join("a.txt"), "alpha").unwrap();
    fs::write(cell.home.join("b.txt"), "beta").unwrap();
    cell.job_done("/add", &format!("{{\"paths\":[{:?}]}}", cell.home.to_str().unwrap()));
    assert_eq!(post("folders", r#"{"path":"new/inner"}"#).status, 200);
    assert!(cell.home.join("new/inner").is_dir());
    assert_eq!(code(&post("folders", r#"{"path":"new/inner"}"#)), "exists");
    for bad in ["../x", "/etc/x", "a//b", ".", "a/..", "", "x/.grove-tmp-1"] {
        let answer = post("folders", &format!("{{\"path\":{bad:?}}}"));
        assert_eq!((answer.status, code(&answer)), (400, "bad_name".into()), "{bad}");
        let answer = post("move", &format!("{{\"from\":\"a.txt\",\"to\":{bad:?}}}"));
        assert_eq!(answer.status, 400, "{bad}");
    }
    assert_eq!(code(&post("folders", r#"{"path":"x.tmp"}"#)), "not_kept");

    let id = |path: &str| {
        common::text(&json(&ask(&cell, &format!("GET /api/v1/file?path={path}"), "", b"")), "id")
    };
    let before = id("a.txt");
    assert_eq!(post("move", r#"{"from":"a.txt","to":"new/inner/A.txt"}"#).status, 200);
    assert_eq!(id("new/inner/A.txt"), before);
    assert_eq!(fs::read(cell.home.join("new/inner/A.txt")).unwrap(), b"alpha");
    assert!(!cell.home.join("a.txt").exists());
    // Nothing is ever overwritten.
    assert_eq!(code(&post("move", r#"{"from":"b.txt","to":"new/inner/A.txt"}"#)), "exists");
    fs::write(cell.home.join("unseen.txt"), "not kept yet").unwrap();
    let answer = post("move", r#"{"from":"b.txt","to":"unseen.txt"}"#);
    assert_eq!((answer.status, code(&answer)), (409, "exists".into()));
    assert_eq!(fs::read(cell.home.join("unseen.txt")).unwrap(), b"not kept yet");
    // A folder goes with all that is in it, and not into itself.
    assert_eq!(post("move", r#"{"from":"new","to":"new/inner/new"}"#).status, 400);
    assert_eq!(post("move", r#"{"from":"new","to":"old"}"#).status, 200);
    assert_eq!(id("old/inner/A.txt"), before);
    assert_eq!(post("move", r#"{"from":"nothing","to":"x"}"#).status, 404);
    // The next look finds nothing new, and nothing gone.
    let added = cell.job_done("/add", &format!("{{\"paths\":[{:?}]}}", cell.home.to_str().unwrap()));
    assert_eq!(common::number(&added, "deleted"), 0, "{}", common::json_text(&added));
    assert_eq!(id("old/inner/A.txt"), before);
    let versions = ask(&cell, "GET /api/v1/versions?path=old/inner/A.txt", "", b"").text();
    assert_eq!(versions.matches("\"version\":").count(), 2, "{versions}");
}

#[test]
fn uploads_go_on_after_every_break_and_are_put_in_place_whole() {
    let temp = TempDir::new("dash-upload");
    let mut cell = running(&temp, "ann", &[("settle.closed_ms", "60")]);
    let bytes: Vec<u8> = (0..2_500_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let post = |cell: &Cell, path: &str, body: &str| {
        ask(cell, &format!("POST /api/v1/uploads{path}"), "", body.as_bytes())
    };
    let put = |cell: &Cell, id: &str, offset: usize, part: &[u8]| {
        ask(cell, &format!("PUT /api/v1/uploads/{id}?offset={offset}"), "", part)
    };
    let begin = |cell: &Cell, path: &str, size: usize, more: &str| {
        let body = format!("{{\"path\":{path:?},\"size\":{size},\"modified_unix_ms\":1234567890123{more}}}");
        post(cell, "", &body)
    };
    let begun = begin(&cell, "photos/big.bin", bytes.len(), "");
    let id = common::text(&json(&begun), "id");
    let answer = put(&cell, &id, 0, &bytes[..1_000_000]);
    assert_eq!(answer.text(), "{\"offset\":1000000}");
    // The wrong place, too much, and what nobody began.
    let answer = put(&cell, &id, 5, &bytes[..10]);
    assert_eq!((answer.status, code(&answer)), (409, "wrong_offset".into()));
    assert!(answer.text().contains("\"offset\":1000000"));
    let long = begin(&cell, "long.bin", 5, "");
    let long = common::text(&json(&long), "id");
    let answer = put(&cell, &long, 0, b"123456");
    assert_eq!((answer.status, code(&answer)), (409, "too_long".into()));
    assert_eq!(put(&cell, &"0".repeat(32), 0, b"1").status, 404);
    assert_eq!(put(&cell, "..%2F..", 0, b"1").status, 404);
    assert_eq!(code(&post(&cell, &format!("/{id}/finish"), "")), "wrong_offset");
    for bad in ["../x", "/etc/x", "a/../../x", "", "a//b"] {
        assert_eq!(begin(&cell, bad, 1, "").status, 400, "{bad}");
    }
    let answer = begin(&cell, "huge.bin", 1 << 45, "");
    assert_eq!((answer.status, code(&answer)), (507, "disk_full".into()));
    // Killed: what had come is there.
    cell.kill();
    cell.run();
    let list = ask(&cell, "GET /api/v1/uploads", "", b"");
    assert!(list.text().contains("\"offset\":1000000"), "{}", list.text());
    assert_eq!(post(&cell, &format!("/{long}/cancel"), "").status, 200);
    let mut at = 1_000_000;
    for part in bytes[at..].chunks(1 << 20) {
        assert_eq!(put(&cell, &id, at, part).status, 200);
        at += part.len();
    }
    assert_eq!(post(&cell, &format!("/{id}/finish"), "").status, 200);
    let place = cell.home.join("photos/big.bin");
    assert!(fs::read(&place).unwrap() == bytes);
    use std::os::unix::fs::MetadataExt;
    let meta = fs::metadata(&place).unwrap();
    assert_eq!((meta.mtime(), meta.mtime_nsec(), meta.mode() & 0o777), (1_234_567_890, 123_000_000, 0o644));
    assert!(ask(&cell, "GET /api/v1/uploads", "", b"").text().contains("\"uploads\":[]"));
    wait_for("it is kept", || {
        (ask(&cell, "GET /api/v1/file?path=photos/big.bin", "", b"").status == 200).then_some(())
    });
    // Not over what is there, unless that is asked for; then what was there stays as a version.
    assert_eq!(code(&begin(&cell, "photos/big.bin", 3, "")), "exists");
    let id = common::text(&json(&begin(&cell, "photos/big.bin", 3, ",\"replace\":true")), "id");
    put(&cell, &id, 0, b"new");
    assert_eq!(post(&cell, &format!("/{id}/finish"), "").status, 200);
    assert_eq!(fs::read(&place).unwrap(), b"new");
    // Whoever did not hear that asks again, and nothing comes of it.
    let again = post(&cell, &format!("/{id}/finish"), "");
    assert_eq!((again.status, common::text(&json(&again), "path")), (200, "photos/big.bin".into()));
    wait_for("both versions are kept", || {
        let versions = ask(&cell, "GET /api/v1/versions?path=photos/big.bin", "", b"").text();
        (versions.matches("\"version\":").count() == 2).then_some(())
    });
    // What cannot be kept is told as that, with why, until it is.
    let told = |what: &str| {
        let list = ask(&cell, "GET /api/v1/uploads", "", b"").text();
        (list.contains("\"keeping\":[]") && list.contains(what)).then_some(list)
    };
    wait_for("nothing waits", || told("\"unkept\":[]"));
    let (chunks, aside) = (cell.dir.join("chunks"), cell.dir.join("chunks-aside"));
    let id = common::text(&json(&begin(&cell, "photos/later.bin", 2_000_000, "")), "id");
    for (n, part) in bytes[..2_000_000].chunks(1 << 20).enumerate() {
        assert_eq!(put(&cell, &id, n << 20, part).status, 200);
    }
    fs::rename(&chunks, &aside).unwrap();
    assert_eq!(post(&cell, &format!("/{id}/finish"), "").status, 200);
    let list = wait_for("it is told as not kept", || told("\"path\":\"photos/later.bin\""));
    assert!(list.contains(&id) && list.contains("\"why\":\"") && list.contains("tries again"), "{list}");
    assert_eq!(ask(&cell, "GET /api/v1/file?path=photos/later.bin", "", b"").status, 404);
    if chunks.exists() {
        fs::remove_dir_all(&chunks).unwrap();
    }
    fs::rename(&aside, &chunks).unwrap();
    assert_eq!(post(&cell, &format!("/{id}/finish"), "").status, 200);
    wait_for("it is kept", || told("\"unkept\":[]"));
    assert_eq!(ask(&cell, "GET /api/v1/file?path=photos/later.bin", "", b"").status, 200);
    cell.no_temps();
}

#[test]
fn content_comes_in_ranges_and_shows_nothing_that_runs() {
    let temp = TempDir::new("dash-content");
    let cell = running(&temp, "ann", &[("settle.closed_ms", "60")]);
    // Two chunks and a bit, so that ranges begin in the middle of one.
    let bytes: Vec<u8> = (0..9_000_001u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 11) as u8).collect();
    let add = || drop(cell.job_done("/add", &format!("{{\"paths\":[{:?}]}}", cell.home.to_str().unwrap())));
    fs::write(cell.home.join("film.mp4"), &bytes).unwrap();
    fs::write(cell.home.join("page.html"), "<script>alert(1)</script>").unwrap();
    fs::write(cell.home.join("caf\u{e9} \"x\".txt"), "text").unwrap();
    fs::write(cell.home.join("doc.pdf"), "%PDF").unwrap();
    fs::write(cell.home.join("empty"), "").unwrap();
    add();
    let get =
        |path: &str, headers: &str| ask(&cell, &format!("GET /api/v1/content?path={path}"), headers, b"");
    let whole = get("film.mp4", "");
    assert!(whole.status == 200 && whole.body == bytes);
    assert_eq!(whole.header("content-type"), Some("video/mp4"));
    assert_eq!(whole.header("accept-ranges"), Some("bytes"));
    assert!(whole.header("content-disposition").unwrap().starts_with("attachment"));
    let tag = whole.header("etag").unwrap().to_owned();

    let check = |path: &str, first: usize, last: usize| {
        let part = get(path, &format!("Range: bytes={first}-{last}\r\n"));
        assert_eq!(part.status, 206);
        let range = format!("bytes {first}-{last}/{}", bytes.len());
        assert_eq!(part.header("content-range"), Some(range.as_str()));
        assert!(part.body == bytes[first..=last], "{path} {first}-{last}");
    };
    for path in ["film.mp4", "film.mp4&version=1"] {
        for (first, last) in [(0, 0), (4_194_303, 4_194_304), (5_000_000, 8_999_999), (9_000_000, 9_000_000)]
        {
            check(path, first, last);
        }
    }
    let refused = get("film.mp4", "Range: bytes=9000001-\r\n");
    assert_eq!((refused.status, refused.header("content-range")), (416, Some("bytes */9000001")));
    assert_eq!(get("empty", "Range: bytes=0-\r\n").status, 416);
    assert_eq!(get("empty", "").body, b"");
    assert_eq!(get("film.mp4", &format!("If-None-Match: {tag}\r\n")).status, 304);
    let same = get("film.mp4", &format!("Range: bytes=1-2\r\nIf-Range: {tag}\r\n"));
    assert_eq!((same.status, same.body.len()), (206, 2));
    let other = get("film.mp4", "Range: bytes=1-2\r\nIf-Range: \"other\"\r\n");
    assert_eq!((other.status, other.body.len()), (200, bytes.len()));
    let head = ask(&cell, "HEAD /api/v1/content?path=film.mp4", "Range: bytes=0-9\r\n", b"");
    assert_eq!((head.status, head.header("content-length"), head.body.len()), (206, Some("10"), 0));

    let page = get("page.html&inline=1", "");
    assert_eq!(page.header("content-type"), Some("text/plain; charset=utf-8"));
    assert!(page.header("content-security-policy").unwrap().contains("sandbox"));
    assert_eq!(page.header("x-content-type-options"), Some("nosniff"));
    let named = get("caf%C3%A9%20%22x%22.txt&inline=1", "");
    let wanted = "inline; filename=\"caf_ _x_.txt\"; filename*=UTF-8''caf%C3%A9%20%22x%22.txt";
    assert_eq!(named.header("content-disposition"), Some(wanted));
    let pdf = get("doc.pdf&inline=1", "");
    assert!(
        pdf.header("content-security-policy").unwrap().contains("frame-ancestors 'self'"),
        "{}",
        pdf.head
    );

    // A file that was changed since: the newest version is what was kept, chunk by chunk, not what lies there now.
    let kept = fs::metadata(cell.home.join("film.mp4")).unwrap().len();
    assert_eq!(kept, bytes.len() as u64);
    assert_eq!(get("nothing", "").status, 404);
    assert_eq!(get("film.mp4&version=99", "").status, 404);
    assert_eq!(ask(&cell, "GET /api/v1/content", "", b"").status, 400);
    assert_eq!(raw(&cell, "GET /api/v1/content?path=film.mp4", "", b"").status, 401);
}

/// The bytes of a chunked body.
fn unchunk(mut body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let end = body.windows(2).position(|two| two == b"\r\n").expect("a chunk has a size");
        let size = usize::from_str_radix(std::str::from_utf8(&body[..end]).unwrap(), 16).unwrap();
        if size == 0 {
            return bytes;
        }
        bytes.extend_from_slice(&body[end + 2..end + 2 + size]);
        body = &body[end + 4 + size..];
    }
}

#[test]
fn folders_come_as_archives_that_unzip_takes() {
    let temp = TempDir::new("dash-zip");
    let cell = running(&temp, "ann", &[]);
    let bytes: Vec<u8> = (0..5_000_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 9) as u8).collect();
    fs::create_dir_all(cell.home.join("album/inner/empty")).unwrap();
    fs::write(cell.home.join("album/big.bin"), &bytes).unwrap();
    fs::write(cell.home.join("album/inner/caf\u{e9}.txt"), "text").unwrap();
    std::os::unix::fs::symlink("big.bin", cell.home.join("album/link")).unwrap();
    common::set_mtime(&cell.home.join("album/big.bin"), 1_700_000_000, 0);
    for n in 0..600 {
        fs::write(cell.home.join(format!("album/inner/{n:03}")), format!("{n}")).unwrap();
    }
    cell.job_done("/add", &format!("{{\"paths\":[{:?}]}}", cell.home.to_str().unwrap()));
    let answer = ask(&cell, "GET /api/v1/archive?path=album", "", b"");
    assert_eq!((answer.status, answer.header("content-type")), (200, Some("application/zip")));
    assert!(answer.header("content-disposition").unwrap().contains("filename=\"album.zip\""));
    let zip = unchunk(&answer.body);
    // Read back by the directory at its end.
    let u32_at = |at: usize| u32::from_le_bytes(zip[at..at + 4].try_into().unwrap()) as usize;
    let u16_at = |at: usize| usize::from(u16::from_le_bytes(zip[at..at + 2].try_into().unwrap()));
    let end = zip.len() - 22;
    assert_eq!(u32_at(end), 0x0605_4b50);
    let (mut at, mut names) = (u32_at(end + 16), Vec::new());
    for _ in 0..u16_at(end + 10) {
        assert_eq!(u32_at(at), 0x0201_4b50);
        names.push(String::from_utf8(zip[at + 46..at + 46 + u16_at(at + 28)].to_vec()).unwrap());
        at += 46 + u16_at(at + 28) + u16_at(at + 30);
    }
    assert_eq!(names.len(), 606);
    for name in [
        "album/",
        "album/big.bin",
        "album/link",
        "album/inner/",
        "album/inner/caf\u{e9}.txt",
        "album/inner/599",
    ] {
        assert!(names.iter().any(|known| known == name), "{name}");
    }
    // And by a program that others wrote, where there is one.
    let file = temp.path().join("a.zip");
    fs::write(&file, &zip).unwrap();
    let script = "import sys,zipfile\nz=zipfile.ZipFile(sys.argv[1])\nassert z.testzip() is None\nz.extractall(sys.argv[2])";
    let python = std::process::Command::new("python3")
        .args(["-c", script])
        .arg(&file)
        .arg(temp.path().join("out"))
        .status();
    if let Ok(status) = python {
        assert!(status.success());
        assert!(fs::read(temp.path().join("out/album/big.bin")).unwrap() == bytes);
        assert_eq!(fs::read(temp.path().join("out/album/inner/caf\u{e9}.txt")).unwrap(), b"text");
    }
    assert_eq!(ask(&cell, "GET /api/v1/archive?path=nothing", "", b"").status, 404);
    assert_eq!(ask(&cell, "GET /api/v1/archive?path=album/big.bin", "", b"").status, 409);
    assert_eq!(raw(&cell, "GET /api/v1/archive?path=album", "", b"").status, 401);
}

#[test]
fn relay_is_reached_through_tls_at_the_door() {
    let temp = TempDir::new("dash-relay");
    let hub = running(&temp, "hub", &[("relay.serve", "true"), ("relay.allow", "[\"all\"]")]);
    let certificate = grove::keys::sha256(&fs::read(hub.dir.join("tls.crt")).unwrap());
    let url = format!("wss://127.0.0.1:{}/relay#cert:{}", hub.port(), grove::id::hex(&certificate));
    let cell = running(&temp, "ann", &[("relay.urls", &format!("[{url:?}]"))]);
    wait_for("the cell is at the relay", || {
        common::json_text(&cell.get("/routes")).contains("\"connected\":true").then_some(())
    });
}

fn post(cell: &Cell, path: &str, headers: &str, body: &str) -> Answer {
    raw(cell, &format!("POST /api/v1/{path}"), headers, body.as_bytes())
}

/// The cookie of a new session.
fn cookie_of(answer: &Answer) -> String {
    assert_eq!(answer.status, 200, "{}", answer.text());
    let set = answer.header("set-cookie").expect("a session was opened");
    format!("Cookie: {}\r\n", set.split(';').next().unwrap())
}

/// A cell with a password, and a session.
fn signed_in(cell: &Cell) -> String {
    let said = cell.log_text();
    let code = said.lines().find_map(|line| line.split_once("use the code ")).expect("the code is printed").1;
    let body = format!("{{\"code\":{code:?},\"password\":\"a long password\"}}");
    cookie_of(&post(cell, "setup", "User-Agent: Test/1\r\n", &body))
}

#[test]
fn sessions_survive_a_new_start_and_are_revoked() {
    let temp = TempDir::new("dash-sessions");
    let mut cell = running(&temp, "ann", &[]);
    let printed = cell.log_text();
    let certificate = grove::keys::sha256(&fs::read(cell.dir.join("tls.crt")).unwrap());
    let session = json(&raw(&cell, "GET /api/v1/session", "", b""));
    let fingerprint = common::text(&session, "fingerprint");
    assert_eq!(fingerprint.replace(' ', "").to_lowercase(), grove::id::hex(&certificate));
    assert!(printed.contains(&fingerprint), "it stands beside the code");
    let first = signed_in(&cell);
    let told = raw(&cell, "GET /api/v1/session", &first, b"").text();
    for word in
        ["\"signed_in\":true", "\"fresh\":true", "\"secure\":true", "\"totp\":false", "\"set_up\":true"]
    {
        assert!(told.contains(word), "{told}");
    }
    assert!(
        raw(&cell, "GET /api/v1/session", "", b"").text().contains("\"fresh\":false"),
        "strangers hear nothing"
    );
    let second = cookie_of(&post(&cell, "login", "", "{\"password\":\"a long password\"}"));
    let old = format!("grove_{}=", cell.port());
    cell.kill();
    cell.run();
    // Tests have another port each time, by which the cookie goes.
    let new = format!("grove_{}=", cell.port());
    let (first, second) = (first.replace(&old, &new), second.replace(&old, &new));
    let list = raw(&cell, "GET /api/v1/sessions", &first, b"");
    assert_eq!(common::items(&json(&list), "sessions").len(), 2);
    assert!(
        list.text().contains("\"agent\":\"Test/1\"") && list.text().matches("\"current\":true").count() == 1
    );
    assert_eq!(raw(&cell, "GET /api/v1/sessions", "", b"").status, 401);
    assert_eq!(post(&cell, "sessions/revoke", &first, "{}").status, 400);
    assert_eq!(post(&cell, "sessions/revoke", &first, "{\"id\":\"0011223344556677\"}").status, 404);
    assert_eq!(post(&cell, "sessions/revoke", "", "{\"others\":true}").status, 401);
    let foreign = format!("{first}Origin: http://evil.example\r\n");
    assert_eq!(post(&cell, "sessions/revoke", &foreign, "{\"others\":true}").status, 403);
    assert_eq!(post(&cell, "sessions/revoke", &first, "{\"others\":true}").status, 200);
    assert_eq!(raw(&cell, "GET /api/v1/status", &second, b"").status, 401);
    assert_eq!(raw(&cell, "GET /api/v1/status", &first, b"").status, 200);
    // What changes something is asked for by POST only.
    for path in ["logout", "login", "password", "sessions/revoke", "totp/begin", "restart", "phrase"] {
        let status = raw(&cell, &format!("GET /api/v1/{path}"), &first, b"").status;
        assert!([404, 405].contains(&status), "{path}: {status}");
    }
    // The second factor: begun, confirmed by a wrong code, and not on.
    let begun = post(&cell, "totp/begin", &first, "");
    assert!(begun.text().contains("otpauth://totp/Grove:ann?secret="), "{}", begun.text());
    assert_eq!(code(&post(&cell, "totp/confirm", &first, "{\"code\":\"000000\"}")), "wrong_totp");
    assert_eq!(code(&post(&cell, "totp/remove", &first, "{\"password\":\"a long password\"}")), "no_totp");
    cell.cli(["password", "--no-totp"]);
}

#[test]
fn cell_starts_itself_anew_with_its_ports_and_sessions() {
    let temp = TempDir::new("dash-again");
    let cell = running_at_a_port(&temp, "ann");
    fs::write(cell.home.join("a.txt"), "a").unwrap();
    let cookie = signed_in(&cell);
    let (port, pid) = (cell.port(), cell.pid());
    let (peer_port, lock) = (cell.peer_port, fs::read_to_string(cell.dir.join("lock")).unwrap());
    assert!(lock.contains(&format!("\"peer_port\":{peer_port}")));
    // The stream of changes ends, so that pages know.
    let mut watching = events(&cell);
    assert_eq!(post(&cell, "restart", "", "{}").status, 401);
    assert_eq!(post(&cell, "restart", &cookie, "{}").status, 200);
    let mut rest = Vec::new();
    let _ = watching.read_to_end(&mut rest);
    let starts = || cell.log_text().matches("ann is up").count();
    // Before that the one that ends may answer still.
    wait_for("it says so", || (starts() >= 2).then_some(()));
    wait_for("it is there again", || {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
        let head =
            format!("GET /api/v1/status HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{cookie}\r\n");
        stream.write_all(head.as_bytes()).ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        // The one that ends may still have answered.
        let is_anew = cell.log_text().matches("ann is up").count() > 1;
        (is_anew && text.starts_with("HTTP/1.1 200")).then_some(())
    });
    assert_eq!((cell.pid(), starts()), (pid, 2), "{}", cell.log_text());
}

#[test]
fn phrase_is_shown_in_private_only_and_kept_by_those_who_read_it() {
    let temp = TempDir::new("dash-phrase");
    let cell = running(&temp, "ann", &[]);
    let cookie = signed_in(&cell);
    let shown = post(&cell, "phrase", &cookie, "{}");
    let words: Vec<String> = common::items(&json(&shown), "words")
        .iter()
        .map(|word| if let miniserde::json::Value::String(word) = word { word.clone() } else { panic!() })
        .collect();
    assert_eq!(words.len(), 24);
    let kept = |words: &str| post(&cell, "phrase/kept", &cookie, &format!("{{\"words\":{words}}}"));
    let right =
        format!("{{\"3\":{:?},\"11\":{:?},\"19\":\" {} \"}}", words[2], words[10], words[18].to_uppercase());
    for wrong in [
        "{}".to_owned(),
        "3".to_owned(),
        format!("{{\"3\":{:?}}}", words[2]),
        right.replace("\"19\"", "\"20\""),
        right.replace("\"19\"", "\"0\""),
        right.replace("\"19\"", "\"25\""),
    ] {
        assert_eq!(kept(&wrong).status, 403, "{wrong}");
    }
    assert_eq!(post(&cell, "phrase/kept", &cookie, "").status, 403);
    assert_eq!(kept(&right).status, 200);
    assert!(cell.alert("phrase").is_none());
    // From another machine, over plain HTTP: only to who was warned.
    let Some(own) = own_address() else { return };
    let from_afar = |body: &str| {
        let mut stream = TcpStream::connect((own, cell.port())).unwrap();
        let head = format!(
            "POST /api/v1/phrase HTTP/1.1\r\nHost: {own}\r\nConnection: close\r\n{cookie}Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(head.as_bytes()).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    };
    let told = from_afar("{}");
    assert!(
        told.starts_with("HTTP/1.1 403") && told.contains("\"plain\"") && !told.contains(&words[5]),
        "{told}"
    );
    assert!(from_afar("{\"plain\":true}").starts_with("HTTP/1.1 200"));
}

/// An address of this machine by which it is not taken for itself.
fn own_address() -> Option<std::net::IpAddr> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("192.0.2.1:9").ok()?;
    socket.local_addr().ok().map(|address| address.ip()).filter(|ip| !ip.is_loopback())
}

#[test]
fn empty_cell_becomes_the_one_of_a_phrase() {
    let temp = TempDir::new("dash-recover");
    let mut lost = running(&temp, "attic", &[("settle.closed_ms", "60")]);
    let friend = running(&temp, "bea", &[]);
    lost.invite(&friend);
    fs::write(lost.home.join("precious.txt"), "precious").unwrap();
    lost.job_done("/add", &format!("{{\"paths\":[{:?}]}}", lost.home.to_str().unwrap()));
    wait_for("the copy is there", || {
        let status = lost.get("/status");
        (common::number(&status, "copies.short") == 0 && common::number(&status, "copies.full") > 0)
            .then_some(())
    });
    let phrase = lost.phrase();
    let id = common::text(&lost.get("/status"), "id");
    lost.cli(["sync", "--wait"]);
    lost.stop();

    let new = running_at_a_port(&temp, "new");
    let cookie = signed_in(&new);
    let peer = friend.address();
    let ask_for = |phrase: &str, peer: &str| {
        post(&new, "recover", &cookie, &format!("{{\"phrase\":{phrase:?},\"peer\":{peer:?}}}"))
    };
    assert_eq!(code(&ask_for("one two three", &peer)), "bad_phrase");
    for bad in ["", "--help", "a\u{e9}:1"] {
        assert_eq!(code(&ask_for(&phrase, bad)), "bad_address", "{bad}");
    }
    // A peer that is not there costs nothing.
    let job = common::number(&json(&ask_for(&phrase, "127.0.0.1:1")), "job");
    let failed = wait_for("it fails", || {
        let job = raw(&new, &format!("GET /api/v1/jobs/{job}"), &cookie, b"").text();
        (!job.contains("\"running\"")).then_some(job)
    });
    assert!(failed.contains("\"failed\""), "{failed}");
    assert_eq!(ask_for(&phrase, &peer).status, 202);
    wait_for("it is the cell of the phrase", || {
        let mut stream = TcpStream::connect(("127.0.0.1", new.port())).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
        let head =
            format!("GET /api/v1/status HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{cookie}\r\n");
        stream.write_all(head.as_bytes()).ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        (text.contains(&id) && text.contains("\"name\":\"attic\"")).then_some(())
    });
    wait_for("its files come back", || {
        fs::read(new.home.join("precious.txt")).ok().filter(|bytes| bytes == b"precious").map(drop)
    });
    // A cell with something of its own becomes no other.
    assert_eq!(code(&ask_for(&phrase, &peer)), "not_empty");
}

#[test]
fn settings_are_changed_in_words_and_kept_in_the_file() {
    let temp = TempDir::new("dash-settings");
    let mut cell = running(&temp, "ann", &[]);
    let list = ask(&cell, "GET /api/v1/settings", "", b"");
    let text = list.text();
    assert!(text.contains("\"key\":\"copies\",\"pending\":false,\"value\":2"), "{text}");
    assert!(text.contains("\"choices\":[\"error\""), "{text}");
    let set = |body: &str| ask(&cell, "POST /api/v1/settings", "", body.as_bytes());
    assert_eq!(code(&set("{\"alerts.command\":[\"sh\"]}")), "only_in_file");
    assert_eq!(code(&set("{\"copies\":99}")), "bad_setting");
    assert_eq!(code(&set("{\"copies\":3,\"http.listen\":\"::1\"}")), "only_in_file");
    let taken = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    assert_eq!(code(&set(&format!("{{\"http.port\":{port}}}"))), "port_taken");
    let set = set("{\"copies\":3,\"name\":\"attic\"}");
    assert!(set.status == 200 && set.text().contains("\"restart\":true"), "{}", set.text());
    let text = ask(&cell, "GET /api/v1/settings", "", b"").text();
    assert!(text.contains("\"key\":\"copies\",\"pending\":true,\"value\":3"), "{text}");
    cell.stop();
    cell.run();
    assert_eq!(common::text(&cell.get("/status"), "name"), "attic");
    assert_eq!(common::number(&cell.get("/status"), "copies.wanted"), 3);
}

#[test]
fn log_and_history_are_bounded_pages_and_the_api_describes_itself() {
    let temp = TempDir::new("dash-logs");
    let cell = running(&temp, "ann", &[("log.level", "\"debug\"")]);
    let logs = ask(&cell, "GET /api/v1/logs", "", b"");
    let last = common::number(&json(&logs), "last");
    assert!(last > 0 && logs.text().contains("recovery phrase"), "{}", logs.text());
    let after = ask(&cell, &format!("GET /api/v1/logs?after={last}"), "", b"");
    assert!(!after.text().contains("recovery phrase"), "{}", after.text());
    let points = wait_for("there is a point", || {
        let history = json(&ask(&cell, "GET /api/v1/history", "", b""));
        let points = common::items(&history, "points").len();
        (points > 0).then_some(points)
    });
    assert_eq!(points, 1);
    assert_eq!(ask(&cell, "GET /api/v1/peers/health", "", b"").text(), "{\"peers\":[]}");
    let described = ask(&cell, "GET /api/openapi.json", "", b"");
    assert_eq!(common::text(&json(&described), "openapi"), "3.1.0");
    for (line, status) in [
        ("GET /api/openapi.json", 401),
        ("GET /api/v1/logs", 401),
        ("GET /api/v1/settings", 401),
        ("GET /api/v1/history", 401),
        ("POST /api/v1/uploads", 401),
        ("PUT /api/v1/uploads/00?offset=0", 401),
        ("POST /api/v1/move", 401),
        ("GET /metrics", 401),
        ("GET /healthz", 200),
        ("GET /api/v1/session", 200),
        ("GET /", 200),
    ] {
        assert_eq!(raw(&cell, line, "", b"").status, status, "{line}");
    }
    let wrong = ask(&cell, "DELETE /api/v1/invites", "", b"");
    assert_eq!((wrong.status, wrong.header("allow")), (405, Some("GET, HEAD, POST")));
    assert_eq!(ask(&cell, "GET /api/v1/nothing", "", b"").status, 404);
    // By another name, or from a page of another site, nothing is done, on the direct way neither.
    for line in ["POST /api/v1/uploads", "POST /api/v1/settings", "POST /api/v1/restart"] {
        assert_eq!(ask(&cell, line, "Host: evil.example\r\n", b"{}").status, 421, "{line}");
        assert_eq!(ask(&cell, line, "Origin: http://evil.example\r\n", b"{}").status, 403, "{line}");
    }
    assert_eq!(ask(&cell, "GET /api/v1/events", "Host: evil.example\r\n", b"").status, 421);
}

#[test]
fn files_that_are_only_on_peers_are_read_from_where_a_range_begins() {
    let temp = TempDir::new("dash-away");
    let ann = running(&temp, "ann", &[("copies", "1"), ("settle.closed_ms", "60")]);
    let bea = running(&temp, "bea", &[("copies", "1")]);
    ann.invite(&bea);
    let bytes: Vec<u8> = (0..21_000_003u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 12) as u8).collect();
    fs::write(ann.home.join("film.mp4"), &bytes).unwrap();
    ann.job_done("/add", &format!("{{\"paths\":[{:?}]}}", ann.home.to_str().unwrap()));
    // Asked for once, a copy is made on the peer; then the file is freed here.
    wait_for("the film is freed", || {
        ann.cli(["sync", "--wait"]);
        ann.try_post("/rm", "{\"path\":\"film.mp4\",\"local\":true}").is_ok().then_some(())
    });
    assert!(!ann.home.join("film.mp4").exists());
    // Counted are the film's, which are large: the catalog goes on changing a little.
    let large = || common::loose_chunks(&ann).len();
    let before = large();
    let last = ask(&ann, "GET /api/v1/content?path=film.mp4", "Range: bytes=20999999-\r\n", b"");
    assert_eq!((last.status, last.header("content-range")), (206, Some("bytes 20999999-21000002/21000003")));
    assert!(last.body == bytes[20_999_999..]);
    let fetched = large().saturating_sub(before);
    assert!(fetched <= 1, "{fetched} chunks were fetched for four bytes");
    let part = ask(&ann, "GET /api/v1/content?path=film.mp4", "Range: bytes=4194300-12582920\r\n", b"");
    assert!(part.status == 206 && part.body == bytes[4_194_300..=12_582_920]);
    assert!(ask(&ann, "GET /api/v1/content?path=film.mp4", "", b"").body == bytes);
    // It is moved without being here, and stays the same file.
    let body = r#"{"from":"film.mp4","to":"moved.mp4"}"#;
    assert_eq!(ask(&ann, "POST /api/v1/move", "", body.as_bytes()).status, 200);
    assert!(ask(&ann, "GET /api/v1/files?sort=name", "", b"").text().contains("\"state\":\"away\""));
    assert!(ask(&ann, "GET /api/v1/content?path=moved.mp4", "Range: bytes=0-9\r\n", b"").body == bytes[..10]);
    let zip = unchunk(&ask(&ann, "GET /api/v1/archive", "", b"").body);
    assert!(zip.len() > bytes.len() && zip.ends_with(&[0, 0]));
}

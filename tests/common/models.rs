//! Models for tests: llama.cpp's own server with a model made here whose answers are known token by token, cells that ask it, and
//! what they hear.
//!
//! The server is PyPI's `xllamacpp`; a Python with it (and `gguf`, `numpy`) is named by `GROVE_AI_PYTHON`. Without one these
//! tests are skipped by name, and with CI set they must run.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use miniserde::json::{self, Value};

use super::{Cell, TempDir, free_port, is_ci, items, number, object, text, wait_for};

// ---- The model server ----

pub fn python() -> Option<PathBuf> {
    static FOUND: OnceLock<Option<PathBuf>> = OnceLock::new();
    FOUND
        .get_or_init(|| {
            let named = std::env::var_os("GROVE_AI_PYTHON").map(PathBuf::from);
            let python = named.unwrap_or_else(|| "python3".into());
            let has = Command::new(&python)
                .args(["-c", "import xllamacpp, gguf, numpy"])
                .stderr(Stdio::null())
                .status();
            has.is_ok_and(|status| status.success()).then_some(python)
        })
        .clone()
}

/// The Python with a model server, or word that the test is skipped.
pub fn needs(test: &str) -> Option<PathBuf> {
    let python = python();
    if python.is_none() {
        assert!(!is_ci(), "the tests of models need Python with xllamacpp, gguf and numpy: GROVE_AI_PYTHON");
        println!(
            "skipped: {test} (it needs Python with xllamacpp, gguf and numpy; GROVE_AI_PYTHON names it)"
        );
    }
    python
}

pub fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/ai").join(name)
}

/// A model of so much work a token, made once for all tests of this process. "count" is answered by " 1 2 3 … 999".
pub fn model(work: u32) -> PathBuf {
    static MADE: Mutex<Vec<u32>> = Mutex::new(Vec::new());
    let mut made = MADE.lock().unwrap();
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let path = folder.join(format!("count-{work}.gguf"));
    if !made.contains(&work) {
        if !path.exists() {
            let beside = folder.join(format!("count-{work}.{}.part", std::process::id()));
            let mut making = Command::new(python().unwrap());
            making.arg(script("mkgguf.py")).arg(&beside).arg(work.to_string());
            let made = making.stdout(Stdio::null()).status().unwrap();
            assert!(made.success(), "the model is made");
            std::fs::rename(&beside, &path).unwrap();
        }
        made.push(work);
    }
    path
}

/// About 30 to 60 tokens a second on one core.
pub const SLOW: u32 = 262_144;
/// About 500.
pub const MIDDLING: u32 = 24_576;
/// Thousands.
pub const FAST: u32 = 128;

pub struct Llama {
    pub child: Child,
    pub port: u16,
    pub model: PathBuf,
    pub name: String,
    pub slots: u32,
    pub key: Option<String>,
}

impl Llama {
    pub fn start(work: u32, name: &str, slots: u32) -> Self {
        Self::on(free_port(), model(work), name, slots, None)
    }

    /// One that makes numbers of texts, and nothing else.
    pub fn embedding(work: u32, name: &str) -> Self {
        Self::with(free_port(), model(work), name, 1, None, &["--embedding"])
    }

    pub fn on(port: u16, model: PathBuf, name: &str, slots: u32, key: Option<&str>) -> Self {
        Self::with(port, model, name, slots, key, &[])
    }

    fn with(port: u16, model: PathBuf, name: &str, slots: u32, key: Option<&str>, options: &[&str]) -> Self {
        let mut command = Command::new(python().unwrap());
        command.arg(script("llama_server.py")).arg("-m").arg(&model);
        command.args(["--port", &port.to_string(), "--alias", name, "-np", &slots.to_string()]);
        command
            .args(["-c", &(slots * 4096).to_string()])
            .args(options)
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        if let Some(key) = key {
            command.env("LLAMA_API_KEY", key);
        }
        let child = command.spawn().unwrap();
        let llama = Self { child, port, model, name: name.into(), slots, key: key.map(str::to_owned) };
        wait_for("the model server is there", || (get(port, "/health").ok()?.0 == 200).then_some(()));
        llama
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub fn again(&mut self) {
        let key = self.key.clone();
        *self = Self::on(self.port, self.model.clone(), &self.name.clone(), self.slots, key.as_deref());
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub fn busy_slots(&self) -> usize {
        let slots = get(self.port, "/slots").map(|(_, text)| text).unwrap_or_default();
        slots.matches("\"is_processing\":true").count()
    }
}

impl Drop for Llama {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn get(port: u16, path: &str) -> std::io::Result<(u16, String)> {
    exchange(port, &format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"))
}

pub fn post(port: u16, path: &str, body: &str) -> (u16, String) {
    let head =
        format!("POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n");
    exchange(port, &format!("{head}Content-Length: {}\r\n\r\n{body}", body.len())).unwrap()
}

fn exchange(port: u16, request: &str) -> std::io::Result<(u16, String)> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(super::DEADLINE))?;
    stream.write_all(request.as_bytes())?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let status = text.split(' ').nth(1).and_then(|word| word.parse().ok()).unwrap_or(0);
    Ok((status, text.split_once("\r\n\r\n").map_or(String::new(), |(_, body)| body.to_owned())))
}
// ---- Asking a cell ----

pub fn counted(last: usize) -> String {
    (1..=last).map(|n| format!(" {n}")).collect()
}

pub fn count_body(last: usize, more: &str) -> String {
    format!(
        r#"{{"model":"auto","messages":[{{"role":"user","content":"count"}}],"stream":true,"max_tokens":{last},"temperature":0{more}}}"#
    )
}

/// What came of a stream.
#[derive(Debug, Default, Clone)]
pub struct Heard {
    pub status: u16,
    pub text: String,
    pub ids: Vec<String>,
    pub finish: String,
    pub is_done: bool,
    pub error: String,
    pub cell: String,
    pub backend: String,
    /// Until the first text, and the longest time between two.
    pub first: Duration,
    pub gap: Duration,
    pub usage: u64,
    pub raw: String,
}

/// Asks and reads all; `look` is told of each piece of text and may end it by `false`.
pub fn ask_until(cell: &Cell, path: &str, body: &str, mut look: impl FnMut(&str) -> bool) -> Heard {
    let began = Instant::now();
    let mut heard = Heard::default();
    let response = match cell.client().request("POST", path, Some(body.as_bytes())) {
        Ok(response) => response,
        Err(why) => {
            heard.error = why.to_string();
            return heard;
        }
    };
    heard.status = response.status;
    let mut reader = BufReader::with_capacity(64, response.body);
    if heard.status != 200 || !response.content_type.starts_with("text/event-stream") {
        let read = reader.read_to_string(&mut heard.raw);
        heard.error = read.map_or_else(|why| why.to_string(), |_| String::new());
        return heard;
    }
    let mut last = None::<Instant>;
    loop {
        let mut line = String::new();
        match reader.read_line(&mut line) {
            Ok(0) => return heard,
            Ok(_) => {}
            Err(why) => {
                heard.error = why.to_string();
                return heard;
            }
        }
        let Some(data) = line.trim_end().strip_prefix("data: ") else { continue };
        if data == "[DONE]" {
            heard.is_done = true;
            continue;
        }
        let event = object(data);
        if event.contains_key("error") {
            heard.error = text(&event, "error.message");
            continue;
        }
        let id = text(&event, "id");
        if !heard.ids.contains(&id) {
            heard.ids.push(id);
        }
        if event.contains_key("grove") {
            (heard.cell, heard.backend) = (text(&event, "grove.cell"), text(&event, "grove.backend"));
        }
        heard.usage = heard.usage.max(number(&event, "usage.completion_tokens"));
        let Some(Value::Object(choice)) = items(&event, "choices").first() else { continue };
        let finish = text(choice, "finish_reason");
        if !finish.is_empty() {
            heard.finish = finish;
        }
        let content = text(choice, "delta.content") + &text(choice, "text");
        if !content.is_empty() {
            match last {
                None => heard.first = began.elapsed(),
                Some(last) => heard.gap = heard.gap.max(last.elapsed()),
            }
            last = Some(Instant::now());
            heard.text.push_str(&content);
            if !look(&content) {
                return heard;
            }
        }
    }
}

pub fn ask(cell: &Cell, body: &str) -> Heard {
    ask_until(cell, "/v1/chat/completions", body, |_| true)
}

pub fn is_whole(heard: &Heard, last: usize) {
    assert_eq!(heard.status, 200, "{heard:?}");
    assert_eq!(heard.text, counted(last), "{}", heard.error);
    assert!(heard.is_done && heard.error.is_empty() && heard.ids.len() == 1, "{heard:?}");
}

pub fn cell(at: &TempDir, name: &str, urls: &[String]) -> Cell {
    let mut cell = Cell::at(at.path(), name);
    let urls = json::to_string(&urls.to_vec());
    cell.init(name, &[("ai.backends", &urls)]);
    cell.run();
    cell
}

pub fn wait_backends(cell: &Cell, count: usize) {
    wait_for("the model servers are known", || {
        let told = cell.get("/ai");
        let ready = items(&told, "backends").iter().filter(|backend| match backend {
            Value::Object(backend) => ["ready", "busy"].contains(&text(backend, "state").as_str()),
            _ => false,
        });
        (ready.count() >= count).then_some(())
    });
}

pub fn metric(cell: &Cell, name: &str) -> u64 {
    let text = cell.client().request("GET", "/metrics", None).unwrap().text().unwrap();
    let line = text.lines().find(|line| line.split([' ', '{']).next() == Some(name));
    line.and_then(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).unwrap_or(0.0) as u64
}

/// Two cells that are friends; `b` offers its models to `a`.
pub fn befriend(a: &Cell, b: &Cell, offers: bool) {
    let token = text(&b.post("/invites", r#"{"role":"friend"}"#), "token");
    let said = a.cli(["join", &token]).ok();
    assert!(said.status.success());
    wait_for("they are friends", || {
        let peers = b.get("/peers");
        let is_friend = |peer: &Value| match peer {
            Value::Object(peer) => {
                text(peer, "friendship") == "friends"
                    && text(peer, "name") == a_name(a)
                    && peer.get("online").is_some_and(|v| matches!(v, Value::Bool(true)))
            }
            _ => false,
        };
        items(&peers, "peers").iter().any(is_friend).then_some(())
    });
    if offers {
        b.cli(["ai", "--offer", &a_name(a), "--concurrent", "8", "--tokens", "0"]).ok();
    }
}

pub fn a_name(cell: &Cell) -> String {
    text(&cell.get("/status"), "name")
}

// ---- A server by hand ----

/// Sends what a test says to whoever asks for an answer, and llama.cpp's words about itself to whoever asks for those.
pub fn hostile(answer: impl Fn(&mut TcpStream, &str) + Send + Sync + 'static) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let answer = Arc::new(answer);
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { continue };
            let answer = Arc::clone(&answer);
            thread::spawn(move || {
                let mut request = [0; 65_536];
                let read = stream.read(&mut request).unwrap_or(0);
                let request = String::from_utf8_lossy(&request[..read]).into_owned();
                let told = match request.split(' ').nth(1).unwrap_or_default() {
                    "/props" => r#"{"total_slots":4,"default_generation_settings":{"n_ctx":4096}}"#,
                    "/v1/models" => r#"{"data":[{"id":"grove-tiny","meta":{"n_params":1000000}}]}"#,
                    "/slots" => "[]",
                    "/health" => r#"{"status":"ok"}"#,
                    "/v1/chat/completions" => return answer(&mut stream, &request),
                    _ => "",
                };
                let status = if told.is_empty() { "404 Not Found" } else { "200 OK" };
                let _ = stream.write_all(
                    format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{told}", told.len()).as_bytes(),
                );
            });
        }
    });
    port
}

pub fn rss_kib(cell: &Cell) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", cell.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").trim().parse().unwrap()
}

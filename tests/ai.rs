//! A cell's models at one address: real cells, llama.cpp's own server with a model made here whose answers are known token by
//! token, and faults between them.
//!
//! The server is PyPI's `xllamacpp`; a Python with it (and `gguf`, `numpy`) is named by `GROVE_AI_PYTHON`. Without one these
//! tests are skipped by name, and with CI set they must run.

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use common::{Cell, TempDir, free_port, is_ci, items, number, object, text, wait_for};
use miniserde::json::{self, Value};

// ---- The model server ----

fn python() -> Option<PathBuf> {
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
fn needs(test: &str) -> Option<PathBuf> {
    let python = python();
    if python.is_none() {
        assert!(!is_ci(), "the tests of models need Python with xllamacpp, gguf and numpy: GROVE_AI_PYTHON");
        println!(
            "skipped: {test} (it needs Python with xllamacpp, gguf and numpy; GROVE_AI_PYTHON names it)"
        );
    }
    python
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/ai").join(name)
}

/// A model of so much work a token, made once for all tests of this process. "count" is answered by " 1 2 3 … 999".
fn model(work: u32) -> PathBuf {
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
const SLOW: u32 = 262_144;
/// About 500.
const MIDDLING: u32 = 24_576;
/// Thousands.
const FAST: u32 = 128;

struct Llama {
    child: Child,
    port: u16,
    model: PathBuf,
    name: String,
    slots: u32,
    key: Option<String>,
}

impl Llama {
    fn start(work: u32, name: &str, slots: u32) -> Self {
        Self::on(free_port(), model(work), name, slots, None)
    }

    fn on(port: u16, model: PathBuf, name: &str, slots: u32, key: Option<&str>) -> Self {
        let mut command = Command::new(python().unwrap());
        command.arg(script("llama_server.py")).arg("-m").arg(&model);
        command.args(["--port", &port.to_string(), "--alias", name, "-np", &slots.to_string()]);
        command.args(["-c", &(slots * 4096).to_string()]).stdout(Stdio::null()).stderr(Stdio::null());
        if let Some(key) = key {
            command.env("LLAMA_API_KEY", key);
        }
        let child = command.spawn().unwrap();
        let llama = Self { child, port, model, name: name.into(), slots, key: key.map(str::to_owned) };
        wait_for("the model server is there", || (get(port, "/health").ok()?.0 == 200).then_some(()));
        llama
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn again(&mut self) {
        let key = self.key.clone();
        *self = Self::on(self.port, self.model.clone(), &self.name.clone(), self.slots, key.as_deref());
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    fn busy_slots(&self) -> usize {
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

fn get(port: u16, path: &str) -> std::io::Result<(u16, String)> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes())?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let status = text.split(' ').nth(1).and_then(|word| word.parse().ok()).unwrap_or(0);
    Ok((status, text.split_once("\r\n\r\n").map_or(String::new(), |(_, body)| body.to_owned())))
}

// ---- Faults ----

/// What a fault does with connections.
const PASS: u8 = 0;
/// New ones are reset at once.
const RESET: u8 = 1;
/// Nothing passes any more, and nothing is closed.
const HOLE: u8 = 2;
/// An answer that is due to be cut stands still instead, for ever.
const STALL: u8 = 3;

/// Stands before a server, and breaks answers off when it is told to.
struct Fault {
    port: u16,
    mode: Arc<AtomicU8>,
    /// An answer is reset behind so many pieces of text, as long as cuts are left.
    cut_after: Arc<AtomicU64>,
    cuts_left: Arc<AtomicUsize>,
    is_over: Arc<AtomicBool>,
}

impl Fault {
    fn before(port: u16) -> Self {
        Self::sharing(port, &Arc::default())
    }

    /// Cuts are counted together with those of others.
    fn sharing(port: u16, cuts_left: &Arc<AtomicUsize>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let fault = Self {
            port: listener.local_addr().unwrap().port(),
            mode: Arc::new(AtomicU8::new(PASS)),
            cut_after: Arc::new(AtomicU64::new(1)),
            cuts_left: Arc::clone(cuts_left),
            is_over: Arc::default(),
        };
        let (mode, cut_after, cuts_left, is_over) =
            (fault.mode.clone(), fault.cut_after.clone(), fault.cuts_left.clone(), fault.is_over.clone());
        thread::spawn(move || {
            for client in listener.incoming() {
                if is_over.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(client) = client else { continue };
                if mode.load(Ordering::SeqCst) == RESET {
                    reset(&client);
                    continue;
                }
                let (mode, cut_after, cuts_left) = (mode.clone(), cut_after.clone(), cuts_left.clone());
                thread::spawn(move || pass(client, port, &mode, &cut_after, &cuts_left));
            }
        });
        fault
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    fn set(&self, mode: u8) {
        self.mode.store(mode, Ordering::SeqCst);
    }
}

impl Drop for Fault {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

fn reset(stream: &TcpStream) {
    let _ = rustix::net::sockopt::set_socket_linger(stream, Some(Duration::ZERO));
}

fn pass(client: TcpStream, port: u16, mode: &Arc<AtomicU8>, cut_after: &AtomicU64, cuts_left: &AtomicUsize) {
    let Ok(server) = TcpStream::connect(("127.0.0.1", port)) else { return reset(&client) };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (mut up_from, mut up_to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
    let up_mode = Arc::clone(mode);
    thread::spawn(move || {
        let mut piece = [0; 8192];
        loop {
            let read = up_from.read(&mut piece).unwrap_or(0);
            while up_mode.load(Ordering::SeqCst) == HOLE {
                thread::sleep(Duration::from_millis(10));
            }
            if read == 0 || up_to.write_all(&piece[..read]).is_err() {
                let _ = up_to.shutdown(Shutdown::Both);
                return;
            }
        }
    });
    let (mut from, mut to) = (server.try_clone().unwrap(), client.try_clone().unwrap());
    let (mut piece, mut seen, mut has_ended) = ([0; 8192], 0u64, false);
    loop {
        let read = from.read(&mut piece).unwrap_or(0);
        while mode.load(Ordering::SeqCst) == HOLE {
            thread::sleep(Duration::from_millis(10));
        }
        if read == 0 || to.write_all(&piece[..read]).is_err() {
            let _ = to.shutdown(Shutdown::Both);
            return;
        }
        let text = String::from_utf8_lossy(&piece[..read]);
        seen += text.matches("\"content\":\" ").count() as u64;
        // One that has ended cannot be cut any more.
        has_ended |= text.contains("\"finish_reason\":\"") || text.contains("[DONE]");
        let is_due = !has_ended && seen > 0 && seen >= cut_after.load(Ordering::SeqCst);
        let one_less = |left: usize| left.checked_sub(1);
        if is_due && cuts_left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_less).is_ok() {
            let _ = server.shutdown(Shutdown::Both);
            if mode.load(Ordering::SeqCst) == STALL {
                thread::sleep(Duration::from_secs(60));
            }
            // The last to hold it closes it: with a reset.
            reset(&client);
            let _ = client.shutdown(Shutdown::Both);
            return;
        }
    }
}

// ---- Asking a cell ----

fn counted(last: usize) -> String {
    (1..=last).map(|n| format!(" {n}")).collect()
}

fn count_body(last: usize, more: &str) -> String {
    format!(
        r#"{{"model":"auto","messages":[{{"role":"user","content":"count"}}],"stream":true,"max_tokens":{last},"temperature":0{more}}}"#
    )
}

/// What came of a stream.
#[derive(Debug, Default, Clone)]
struct Heard {
    status: u16,
    text: String,
    ids: Vec<String>,
    finish: String,
    is_done: bool,
    error: String,
    cell: String,
    backend: String,
    /// Until the first text, and the longest time between two.
    first: Duration,
    gap: Duration,
    usage: u64,
    raw: String,
}

/// Asks and reads all; `look` is told of each piece of text and may end it by `false`.
fn ask_until(cell: &Cell, path: &str, body: &str, mut look: impl FnMut(&str) -> bool) -> Heard {
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

fn ask(cell: &Cell, body: &str) -> Heard {
    ask_until(cell, "/v1/chat/completions", body, |_| true)
}

fn is_whole(heard: &Heard, last: usize) {
    assert_eq!(heard.status, 200, "{heard:?}");
    assert_eq!(heard.text, counted(last), "{}", heard.error);
    assert!(heard.is_done && heard.error.is_empty() && heard.ids.len() == 1, "{heard:?}");
}

fn cell(at: &TempDir, name: &str, urls: &[String]) -> Cell {
    let mut cell = Cell::at(at.path(), name);
    let urls = json::to_string(&urls.to_vec());
    cell.init(name, &[("ai.backends", &urls)]);
    cell.run();
    cell
}

fn wait_backends(cell: &Cell, count: usize) {
    wait_for("the model servers are known", || {
        let told = cell.get("/ai");
        let ready = items(&told, "backends").iter().filter(|backend| match backend {
            Value::Object(backend) => ["ready", "busy"].contains(&text(backend, "state").as_str()),
            _ => false,
        });
        (ready.count() >= count).then_some(())
    });
}

fn metric(cell: &Cell, name: &str) -> u64 {
    let text = cell.client().request("GET", "/metrics", None).unwrap().text().unwrap();
    let line = text.lines().find(|line| line.split([' ', '{']).next() == Some(name));
    line.and_then(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).unwrap_or(0.0) as u64
}

/// Two cells that are friends; `b` offers its models to `a`.
fn befriend(a: &Cell, b: &Cell, offers: bool) {
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

fn a_name(cell: &Cell) -> String {
    text(&cell.get("/status"), "name")
}

// ---- Tests ----

#[test]
fn answers_stream_whole_and_errors_are_those_that_clients_expect() {
    let Some(_) = needs("answers_stream_whole_and_errors_are_those_that_clients_expect") else { return };
    let llama = Llama::start(FAST, "grove-tiny", 2);
    let at = TempDir::new("ai");
    let cell = cell(&at, "ann", &[llama.url()]);
    wait_backends(&cell, 1);

    let heard = ask(&cell, &count_body(999, r#","stream_options":{"include_usage":true}"#));
    is_whole(&heard, 999);
    assert_eq!((heard.finish.as_str(), heard.cell.as_str(), heard.usage), ("length", "ann", 999));
    let heard = ask(&cell, r#"{"messages":[{"role":"user","content":"hi"}],"stream":true,"temperature":0}"#);
    assert_eq!(
        (heard.text.as_str(), heard.finish.as_str()),
        (" Hello from the tiny Grove test model .", "stop")
    );

    // In one piece.
    let whole = count_body(5, "").replace("\"stream\":true", "\"stream\":false");
    let told = object(&ask(&cell, &whole).raw);
    let Some(Value::Object(choice)) = items(&told, "choices").first() else { panic!() };
    assert_eq!(text(choice, "message.content"), " 1 2 3 4 5");
    assert_eq!((number(&told, "usage.completion_tokens"), text(&told, "model").as_str()), (5, "grove-tiny"));
    assert_eq!(text(&told, "grove.cell"), "ann");
    let completion = ask_until(
        &cell,
        "/v1/completions",
        r#"{"model":"grove-tiny","prompt":" 1 2 3","max_tokens":4,"stream":true,"temperature":0}"#,
        |_| true,
    );
    assert_eq!((completion.text.as_str(), completion.is_done), (" 4 5 6 7", true));

    // Errors.
    let error = |path: &str, body: &str| {
        let heard = ask_until(&cell, path, body, |_| true);
        let told = object(&heard.raw);
        assert!(!text(&told, "error.message").is_empty(), "{heard:?}");
        (heard.status, text(&told, "error.type"), text(&told, "error.code"))
    };
    let chat = "/v1/chat/completions";
    let invalid = "invalid_request_error".to_owned();
    assert_eq!(error(chat, "{"), (400, invalid.clone(), String::new()));
    assert_eq!(error(chat, "{}"), (400, invalid.clone(), String::new()));
    let unknown = count_body(5, "").replace("auto", "gpt-9");
    assert_eq!(error(chat, &unknown), (404, invalid.clone(), "model_not_found".into()));
    let long =
        format!(r#"{{"messages":[{{"role":"user","content":"{}"}}],"stream":true}}"#, "count ".repeat(9000));
    assert_eq!(error(chat, &long), (400, invalid.clone(), "context_length_exceeded".into()));
    assert_eq!(error("/v1/nothing", "{}").0, 404);

    // Models, keys, and the command line.
    let models = object(&cell.client().get_json("/v1/models").unwrap());
    let ids: Vec<String> = items(&models, "data")
        .iter()
        .map(|item| if let Value::Object(item) = item { text(item, "id") } else { String::new() })
        .collect();
    assert_eq!(ids, ["auto", "grove-tiny"]);
    let key = cell.cli(["ai", "--new-key", "laptop"]).ok().out.trim().to_owned();
    let stored = std::fs::read_to_string(cell.dir.join("ai.json")).unwrap();
    assert!(!stored.contains(&key) && stored.contains("laptop"));
    let mode = std::fs::metadata(cell.dir.join("ai.json")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let port = cell.port();
    let with = |key: &str| {
        let client = grove::cli::client::Client::new(port, key);
        let asked = client.request("GET", "/v1/models", None).unwrap().status;
        (asked, client.request("GET", "/api/v1/status", None).unwrap().status)
    };
    assert_eq!((with(&key), with("grove-wrong")), ((200, 401), (401, 401)));
    let id = text(&object(&json::to_string(&items(&cell.get("/ai"), "keys")[0])), "id");
    cell.cli(["ai", "--revoke-key", &id]).ok();
    assert_eq!(with(&key).0, 401);
    assert_eq!(cell.cli(["ai", "say", "something"]).ok().out, " Hello from the tiny Grove test model .\n");
    assert!(cell.cli(["ai", "--backends"]).ok().out.contains("grove-tiny"));
}

#[test]
fn a_hundred_kills_in_mid_answer_give_the_exact_text() {
    let Some(_) = needs("a_hundred_kills_in_mid_answer_give_the_exact_text") else { return };
    let (one, two) = (Llama::start(FAST, "grove-tiny", 2), Llama::start(FAST, "grove-tiny", 2));
    let cuts = Arc::new(AtomicUsize::new(0));
    let (before_one, before_two) = (Fault::sharing(one.port, &cuts), Fault::sharing(two.port, &cuts));
    let at = TempDir::new("ai-kills");
    let cell = cell(&at, "ann", &[before_one.url(), before_two.url()]);
    wait_backends(&cell, 2);
    let mut gaps = Vec::new();
    for round in 0..100u64 {
        // Whoever is asked breaks off, once.
        for fault in [&before_one, &before_two] {
            fault.cut_after.store(1 + round * 7 % 190, Ordering::SeqCst);
        }
        cuts.store(1, Ordering::SeqCst);
        let heard = ask(&cell, &count_body(300, ""));
        is_whole(&heard, 300);
        assert_eq!(cuts.load(Ordering::SeqCst), 0, "it was cut");
        gaps.push(heard.gap);
    }
    gaps.sort();
    println!("gap: median {:?}, largest {:?}", gaps[50], gaps[99]);
    // A reset can overtake the first text: then it is asked anew, and nothing is to be gone on with.
    let (resumes, failovers) =
        (metric(&cell, "grove_ai_resumes_total"), metric(&cell, "grove_ai_failovers_total"));
    assert!(resumes >= 90 && resumes + failovers >= 100, "{resumes} and {failovers}");
}

#[test]
fn a_real_kill_in_mid_answer_is_survived() {
    let Some(_) = needs("a_real_kill_in_mid_answer_is_survived") else { return };
    let (mut one, two) = (Llama::start(MIDDLING, "grove-tiny", 1), Llama::start(MIDDLING, "grove-tiny", 1));
    let at = TempDir::new("ai-kill");
    let cell = cell(&at, "ann", &[one.url(), two.url()]);
    wait_backends(&cell, 2);
    let mut killed = false;
    let heard = ask_until(&cell, "/v1/chat/completions", &count_body(200, ""), |text| {
        if text == " 40" {
            killed = one.busy_slots() > 0;
            if killed {
                one.kill();
            }
        }
        true
    });
    assert!(killed, "the first of two equal ones is asked");
    is_whole(&heard, 200);
    assert_eq!(metric(&cell, "grove_ai_resumes_total"), 1);
}

#[test]
fn a_truncated_answer_never_looks_whole() {
    let Some(_) = needs("a_truncated_answer_never_looks_whole") else { return };
    let llama = Llama::start(FAST, "grove-tiny", 1);
    let fault = Fault::before(llama.port);
    let at = TempDir::new("ai-cut");
    let cell = cell(&at, "ann", &[fault.url()]);
    wait_backends(&cell, 1);
    // Each try is cut: the answer is gone on with once, and then it ends with an error.
    fault.cut_after.store(5, Ordering::SeqCst);
    fault.cuts_left.store(usize::MAX, Ordering::SeqCst);
    let heard = ask(&cell, &count_body(300, ""));
    assert!(!heard.is_done && heard.finish.is_empty() && !heard.error.is_empty(), "{heard:?}");
    assert!(counted(300).starts_with(&heard.text) && heard.text.len() > 5);
    // And one that nobody can go on with, since its chances are asked for.
    let heard = ask(&cell, &count_body(300, r#","logprobs":true"#));
    assert!(!heard.is_done && !heard.error.is_empty(), "{heard:?}");
}

#[test]
fn no_question_is_lost_while_a_backend_is_killed_and_restarted() {
    let Some(_) = needs("no_question_is_lost_while_a_backend_is_killed_and_restarted") else { return };
    let (mut one, two) = (Llama::start(FAST, "grove-tiny", 2), Llama::start(FAST, "grove-tiny", 2));
    let at = TempDir::new("ai-thousand");
    let cell = cell(&at, "ann", &[one.url(), two.url()]);
    wait_backends(&cell, 2);
    let (done, is_over) = (AtomicUsize::new(0), AtomicBool::new(false));
    let (done, is_over, asked) = (&done, &is_over, &cell);
    let wrong: Vec<Heard> = thread::scope(|scope| {
        let workers: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(move || {
                    let mut wrong = Vec::new();
                    while done.fetch_add(1, Ordering::SeqCst) < 1000 {
                        let heard = ask(asked, &count_body(20, ""));
                        if heard.text != counted(20) || !heard.is_done {
                            wrong.push(heard);
                        }
                    }
                    wrong
                })
            })
            .collect();
        let killer = scope.spawn(move || {
            let mut kills = 0;
            while !is_over.load(Ordering::SeqCst) && done.load(Ordering::SeqCst) < 950 {
                one.kill();
                kills += 1;
                one.again();
                thread::sleep(Duration::from_millis(300));
            }
            kills
        });
        let wrong = workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect();
        is_over.store(true, Ordering::SeqCst);
        println!("killed {} times", killer.join().unwrap());
        wrong
    });
    assert!(wrong.is_empty(), "{} of 1000: {:?}", wrong.len(), wrong.first());
}

#[test]
fn a_client_that_goes_away_frees_the_slot() {
    let Some(_) = needs("a_client_that_goes_away_frees_the_slot") else { return };
    let llama = Llama::start(SLOW, "grove-tiny", 1);
    let at = TempDir::new("ai-cancel");
    let (a, b) = (cell(&at, "ann", &[]), cell(&at, "bob", &[llama.url()]));
    wait_backends(&b, 1);
    befriend(&a, &b, true);
    wait_backends(&a, 1);
    for asked in [&b, &a] {
        let heard = ask_until(asked, "/v1/chat/completions", &count_body(900, ""), |text| text != " 3");
        assert_eq!((heard.text.as_str(), heard.cell.as_str()), (" 1 2 3", "bob"));
        let began = Instant::now();
        wait_for("the slot is free", || (llama.busy_slots() == 0).then_some(()));
        println!("free after {:?}", began.elapsed());
    }
}

#[test]
fn a_friends_model_answers_within_its_offer_and_nothing_is_kept() {
    let Some(_) = needs("a_friends_model_answers_within_its_offer_and_nothing_is_kept") else { return };
    let llama = Llama::start(FAST, "grove-tiny", 2);
    let at = TempDir::new("ai-friends");
    let (a, b) = (cell(&at, "ann", &[]), cell(&at, "bob", &[llama.url()]));
    wait_backends(&b, 1);
    assert_eq!(ask(&a, &count_body(5, "")).status, 503);
    befriend(&a, &b, false);
    // Offered is nothing until it is said.
    assert_eq!(ask(&a, &count_body(5, "")).status, 503);
    b.cli(["ai", "--offer", "ann", "--models", "grove-tiny", "--tokens", "400", "--concurrent", "1"]).ok();
    wait_backends(&a, 1);

    let heard = ask(&a, &count_body(300, r#","stream_options":{"include_usage":true}"#));
    is_whole(&heard, 300);
    assert_eq!((heard.cell.as_str(), heard.usage), ("bob", 300));
    // The day's tokens end in the middle: an error, and no end that looks whole.
    let heard = ask(&a, &count_body(300, ""));
    assert!(!heard.is_done && !heard.error.is_empty() && counted(300).starts_with(&heard.text), "{heard:?}");
    wait_for("the budget is told", || (ask(&a, &count_body(5, "")).status == 503).then_some(()));
    let used = object(&json::to_string(&items(&b.get("/ai"), "offers")[0]));
    assert!((400..=520).contains(&number(&used, "used_today")), "{}", json::to_string(&used));

    // Here only, and by name.
    b.cli(["ai", "--offer", "ann", "--tokens", "0"]).ok();
    wait_for("it answers again", || (ask(&a, &count_body(5, "")).status == 200).then_some(()));
    assert_eq!(ask(&a, &count_body(5, r#","grove":{"only_here":true}"#)).status, 503);
    assert_eq!(ask(&a, &count_body(5, r#","grove":{"cell":"bob"}"#)).cell, "bob");
    assert_eq!(ask(&a, &count_body(5, r#","grove":{"cell":"ann"}"#)).status, 503);
    assert_eq!(ask(&a, &count_body(5, r#","grove":{"cell":"zoe"}"#)).status, 404);
    assert_eq!(a.cli(["ai", "--cell", "bob", "hi"]).ok().out, " Hello from the tiny Grove test model .\n");

    // Another model is not offered, and the end of the offer is told.
    b.cli(["ai", "--offer", "ann", "--models", "other"]).ok();
    wait_for("nothing is offered", || (ask(&a, &count_body(5, "")).status == 503).then_some(()));
    b.cli(["ai", "--offer", "ann", "--models", "grove-tiny"]).ok();
    wait_for("it is offered", || (ask(&a, &count_body(5, "")).status == 200).then_some(()));
    b.cli(["ai", "--offer", "ann", "--off"]).ok();
    wait_for("the offer has ended", || (ask(&a, &count_body(5, "")).status == 503).then_some(()));

    // Nothing of it lies at the friend's cell.
    let secret = "xyzzy-plugh-4711";
    b.cli(["ai", "--offer", "ann"]).ok();
    let body = format!(r#"{{"messages":[{{"role":"user","content":"{secret}"}}],"stream":true}}"#);
    wait_for("it is offered", || (ask(&a, &body).status == 200).then_some(()));
    for folder in [&b.dir, &b.home] {
        let found = Command::new("grep").args(["-r", "-l", "-a", secret]).arg(folder).output().unwrap();
        assert!(found.stdout.is_empty(), "{}", String::from_utf8_lossy(&found.stdout));
    }
    assert!(!b.log().contains(secret));
}

#[test]
fn three_cells_go_on_with_each_others_answers_and_one_hop_is_all() {
    let Some(_) = needs("three_cells_go_on_with_each_others_answers_and_one_hop_is_all") else { return };
    let (one, two) = (Llama::start(MIDDLING, "grove-tiny", 1), Llama::start(MIDDLING, "grove-tiny", 1));
    let at = TempDir::new("ai-three");
    let (a, mut b, c) =
        (cell(&at, "ann", &[]), cell(&at, "bob", &[one.url()]), cell(&at, "cy", &[two.url()]));
    wait_backends(&b, 1);
    wait_backends(&c, 1);
    befriend(&a, &b, true);
    befriend(&a, &c, true);
    wait_backends(&a, 2);
    let mut who = String::new();
    let mut c = c;
    let heard = ask_until(&a, "/v1/chat/completions", &count_body(300, ""), |text| {
        if text == " 50" {
            // Whoever writes is switched off.
            who = if one.busy_slots() > 0 { "bob" } else { "cy" }.to_owned();
            if who == "bob" { b.kill() } else { c.kill() }
        }
        true
    });
    is_whole(&heard, 300);
    assert_eq!(heard.cell, who);
    assert_eq!(metric(&a, "grove_ai_resumes_total"), 1);
    // Ann offers what she has: a server that she is given now, and not her friends'.
    let other = if who == "bob" { &c } else { &b };
    let own = Llama::start(MIDDLING, "ann-tiny", 1);
    a.post("/ai/backends", &format!(r#"{{"add":{{"url":"{}"}}}}"#, own.url()));
    a.cli(["ai", "--offer", &a_name(other)]).ok();
    let told = wait_for("her own model is told", || {
        let told = other.get("/ai");
        json::to_string(&told).contains("ann-tiny").then_some(told)
    });
    let friends: Vec<String> = items(&told, "backends")
        .iter()
        .filter(|backend| matches!(backend, Value::Object(backend) if text(backend, "kind") == "friend"))
        .map(json::to_string)
        .collect();
    assert!(friends.len() == 1 && !friends[0].contains("grove-tiny"), "{friends:?}");
}

#[test]
fn a_server_that_has_gone_silent_is_given_up_within_two_seconds() {
    let Some(_) = needs("a_server_that_has_gone_silent_is_given_up_within_two_seconds") else { return };
    let (one, two) = (Llama::start(FAST, "grove-tiny", 1), Llama::start(FAST, "grove-tiny", 1));
    let fault = Fault::before(one.port);
    let at = TempDir::new("ai-hole");
    let cell = cell(&at, "ann", &[fault.url(), two.url()]);
    wait_backends(&cell, 2);
    is_whole(&ask(&cell, &count_body(20, "")), 20);
    fault.set(HOLE);
    let began = Instant::now();
    for _ in 0..3 {
        is_whole(&ask(&cell, &count_body(20, "")), 20);
    }
    println!("three answers after {:?}", began.elapsed());
    fault.set(PASS);
}

#[test]
fn an_answer_that_stands_still_is_gone_on_with() {
    let Some(_) = needs("an_answer_that_stands_still_is_gone_on_with") else { return };
    let (one, two) = (Llama::start(FAST, "grove-tiny", 1), Llama::start(FAST, "grove-tiny", 1));
    let cuts = Arc::new(AtomicUsize::new(0));
    let faults = [Fault::sharing(one.port, &cuts), Fault::sharing(two.port, &cuts)];
    let at = TempDir::new("ai-stall");
    let cell = cell(&at, "ann", &[faults[0].url(), faults[1].url()]);
    wait_backends(&cell, 2);
    faults.iter().for_each(|fault| {
        fault.set(STALL);
        fault.cut_after.store(20, Ordering::SeqCst);
    });
    cuts.store(1, Ordering::SeqCst);
    // The server itself is well, and works on nothing.
    let heard = ask(&cell, &count_body(300, ""));
    is_whole(&heard, 300);
    println!("gap {:?}", heard.gap);
    assert_eq!(metric(&cell, "grove_ai_resumes_total"), 1);
}

/// A friend's machine goes to sleep: before the first token another answers, in the middle of an answer another goes on.
#[test]
fn a_friend_whose_machine_falls_asleep_is_given_up() {
    let Some(_) = needs("a_friend_whose_machine_falls_asleep_is_given_up") else { return };
    let (fast, slow) = (Llama::start(MIDDLING, "grove-tiny", 1), Llama::start(SLOW, "grove-tiny", 1));
    let at = TempDir::new("ai-asleep");
    let (a, b) = (cell(&at, "ann", &[slow.url()]), cell(&at, "bob", &[fast.url()]));
    wait_backends(&b, 1);
    befriend(&a, &b, true);
    wait_backends(&a, 2);
    // Each is measured once.
    for name in ["ann", "bob"] {
        is_whole(&ask(&a, &count_body(20, &format!(r#","grove":{{"cell":"{name}"}}"#))), 20);
    }
    assert_eq!(ask(&a, &count_body(60, "")).cell, "bob");
    let signal = |signal| {
        let pid = rustix::process::Pid::from_raw(b.pid() as i32).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    };
    let heard = ask_until(&a, "/v1/chat/completions", &count_body(80, ""), |text| {
        if text == " 30" {
            signal(rustix::process::Signal::STOP);
        }
        true
    });
    is_whole(&heard, 80);
    println!("in the middle: gap {:?}", heard.gap);
    signal(rustix::process::Signal::CONT);
    wait_for("it is back", || {
        (ask(&a, &count_body(5, r#","grove":{"cell":"bob"}"#)).status == 200).then_some(())
    });
    signal(rustix::process::Signal::STOP);
    let heard = ask(&a, &count_body(10, ""));
    is_whole(&heard, 10);
    println!("before the first token: {:?}, by {}", heard.first, heard.cell);
    signal(rustix::process::Signal::CONT);
}

#[test]
fn a_managed_server_is_started_by_the_first_question_and_again_after_a_crash() {
    let Some(python) = needs("a_managed_server_is_started_by_the_first_question_and_again_after_a_crash")
    else {
        return;
    };
    let at = TempDir::new("ai-managed");
    let bin = at.path().join("bin");
    std::fs::create_dir(&bin).unwrap();
    let program = bin.join("llama-server");
    let which = Command::new(&python).args(["-c", "import sys; print(sys.executable)"]).output().unwrap();
    let which = String::from_utf8(which.stdout).unwrap();
    let shell = format!("#!/bin/sh\nexec {} {} \"$@\"\n", which.trim(), script("llama_server.py").display());
    std::fs::write(&program, shell).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut cell = Cell::at(at.path(), "ann");
    cell.init("ann", &[("ai.idle_s", "10")]);
    std::fs::create_dir_all(cell.dir.join("models")).unwrap();
    std::fs::copy(model(FAST), cell.dir.join("models/count.gguf")).unwrap();
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    cell.env.push(("PATH".into(), path));
    cell.run();
    let state = |cell: &Cell| {
        let told = cell.get("/ai");
        let Some(Value::Object(backend)) = items(&told, "backends").first() else { return String::new() };
        text(backend, "state")
    };
    assert_eq!(state(&cell), "asleep");
    is_whole(&ask(&cell, &count_body(30, "")), 30);
    assert_eq!(state(&cell), "ready");
    let marker = cell.dir.join("models/count.gguf").display().to_string();
    let child = || {
        let mut pids = std::fs::read_dir("/proc")
            .unwrap()
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        pids.find(|pid| {
            std::fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.contains(&marker))
        })
    };
    let pid = child().expect("the child runs");
    let environ = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap();
    assert!(!environ.contains("api-key"));
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(pid).unwrap(),
        rustix::process::Signal::KILL,
    )
    .unwrap();
    is_whole(&ask(&cell, &count_body(30, "")), 30);
    assert_ne!(child().expect("the child runs again"), pid);
    wait_for("it is stopped when idle", || (state(&cell) == "asleep" && child().is_none()).then_some(()));
    is_whole(&ask(&cell, &count_body(30, "")), 30);
    cell.stop();
    assert!(child().is_none(), "it ends with the cell");
}

#[test]
fn a_server_that_wants_a_key_gets_it_and_conversations_stay_here() {
    let Some(_) = needs("a_server_that_wants_a_key_gets_it_and_conversations_stay_here") else { return };
    let llama = Llama::on(free_port(), model(FAST), "grove-tiny", 1, Some("s3cret"));
    let at = TempDir::new("ai-key");
    let mut cell = cell(&at, "ann", &[]);
    let test = |key: &str| cell.post("/ai/test", &format!(r#"{{"url":"{}","key":"{key}"}}"#, llama.url()));
    assert!(matches!(test("s3cret").get("ok"), Some(Value::Bool(true))));
    assert_eq!(text(&test("s3cret"), "kind"), "llama.cpp");
    assert!(text(&test("wrong"), "error").contains("key"), "{}", json::to_string(&test("wrong")));
    cell.cli(["ai", "--add-backend", &llama.url(), "--key", "s3cret"]).ok();
    is_whole(&ask(&cell, &count_body(9, "")), 9);
    assert!(!json::to_string(&cell.get("/ai")).contains("s3cret"));

    let talk = r#"{"title":"t","model":"auto","only_here":true,"messages":[{"role":"user","content":"q"},{"role":"assistant","content":"a","cell":"ann"}]}"#;
    let id = text(&cell.post("/ai/conversations", talk), "id");
    cell.stop();
    cell.run();
    let told = cell.get("/ai/conversations");
    assert_eq!(items(&told, "conversations").len(), 1);
    assert_eq!(items(&cell.get(&format!("/ai/conversations/{id}")), "messages").len(), 2);
    cell.post(&format!("/ai/conversations/{id}/delete"), "{}");
    assert_eq!(items(&cell.get("/ai/conversations"), "conversations").len(), 0);
    // The server, too, was kept.
    wait_backends(&cell, 1);
    is_whole(&ask(&cell, &count_body(9, "")), 9);
    cell.cli(["ai", "--remove-backend", &llama.url()]).ok();
    assert_eq!(ask(&cell, &count_body(9, "")).status, 503);
}

#[test]
fn the_official_client_streams_exact_tokens_and_knows_the_errors() {
    let name = "the_official_client_streams_exact_tokens_and_knows_the_errors";
    let Some(python) = needs(name) else { return };
    let has_client = Command::new(&python).args(["-c", "import openai"]).stderr(Stdio::null()).status();
    if !has_client.is_ok_and(|status| status.success()) {
        assert!(!is_ci(), "this needs Python's package openai");
        println!("skipped: {name} (it needs Python's package openai)");
        return;
    }
    let llama = Llama::start(FAST, "grove-tiny", 2);
    let at = TempDir::new("ai-openai");
    let cell = cell(&at, "ann", &[llama.url()]);
    wait_backends(&cell, 1);
    let key = cell.cli(["ai", "--new-key", "client"]).ok().out.trim().to_owned();
    let base = format!("http://127.0.0.1:{}/v1", cell.port());
    let said = Command::new(&python).arg(script("openai_client.py")).args([&base, &key]).output().unwrap();
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
}

/// Ollama's protocol, by an emulator in front of llama.cpp's server: it is not Ollama.
#[test]
fn ollamas_protocol_is_spoken() {
    let Some(python) = needs("ollamas_protocol_is_spoken") else { return };
    let proxy = python.with_file_name("ollama-proxy");
    if !proxy.exists() {
        assert!(!is_ci(), "this needs Python's package ollama-proxy-plus");
        println!("skipped: ollamas_protocol_is_spoken (it needs Python's package ollama-proxy-plus)");
        return;
    }
    let llama = Llama::start(FAST, "grove-tiny", 2);
    let port = free_port();
    let mut emulator = Command::new(&proxy);
    emulator.args(["--host", "127.0.0.1", "--port", &port.to_string()]);
    emulator
        .env("PROVIDERS_GROVE_API_KEY", "EMPTY")
        .env("PROVIDERS_GROVE_BASE_URL", format!("{}/v1", llama.url()));
    emulator.env("EXTRA_MODELS", "grove/grove-tiny").stdout(Stdio::null()).stderr(Stdio::null());
    let at = TempDir::new("ai-ollama");
    emulator.current_dir(at.path()).env("HOME", at.path());
    struct Ended(Child);
    impl Drop for Ended {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
    let _emulator = Ended(emulator.spawn().unwrap());
    wait_for("the emulator is there", || (get(port, "/api/version").ok()?.0 == 200).then_some(()));
    let cell = cell(&at, "ann", &[format!("http://127.0.0.1:{port}")]);
    wait_backends(&cell, 1);
    let told = cell.get("/ai");
    let Some(Value::Object(backend)) = items(&told, "backends").first() else { panic!() };
    assert_eq!(text(backend, "kind"), "ollama");
    let body = count_body(50, "").replace("auto", "grove/grove-tiny");
    let heard = ask(&cell, &body);
    assert_eq!((heard.text.as_str(), heard.is_done), (counted(50).as_str(), true), "{heard:?}");
    assert!(heard.finish == "stop" || heard.finish == "length");
}

/// Sends what a test says to whoever asks for an answer, and llama.cpp's words about itself to whoever asks for those.
fn hostile(answer: impl Fn(&mut TcpStream) + Send + Sync + 'static) -> u16 {
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
                    "/v1/chat/completions" => return answer(&mut stream),
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

fn rss_kib(cell: &Cell) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", cell.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").trim().parse().unwrap()
}

#[test]
fn a_hostile_server_is_one_clean_error_and_memory_stays_flat() {
    let at = TempDir::new("ai-hostile");
    let head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n";
    let chunk = |text: &str| {
        format!(
            "data: {{\"id\":\"x\",\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\"{text}\"}},\"finish_reason\":null}}]}}\n\n"
        )
    };
    let (good, turn) = (chunk(" 1"), Arc::new(AtomicUsize::new(0)));
    let which = Arc::clone(&turn);
    let port = hostile(move |stream| {
        let _ = stream.write_all(head);
        let _ = stream.write_all(good.as_bytes());
        let flood = |stream: &mut TcpStream, piece: &[u8]| {
            let piece = piece.repeat(65_536 / piece.len());
            for _ in 0..(20 << 20) / piece.len() {
                if stream.write_all(&piece).is_err() {
                    return;
                }
            }
        };
        match which.load(Ordering::SeqCst) {
            0 => flood(stream, b" "),
            1 => flood(stream, b"\n"),
            2 => flood(stream, b"data: x"),
            3 => flood(stream, b": comment\n"),
            4 => drop(stream.write_all(b"data: {\"choices\":\n\n")),
            5 => drop(stream.write_all(format!("data: {}\n\n", "[".repeat(100_000)).as_bytes())),
            6 => drop(stream.write_all(b"data: [DONE]\n\n")),
            7 => drop(stream.write_all(b"data: \xff\xfe\n\n")),
            _ => drop(stream.write_all(b"data: {\"error\":{\"message\":\"out of luck\"}}\n\n")),
        }
    });
    let url = [format!("http://127.0.0.1:{port}")];
    let (a, b) = (cell(&at, "ann", &[]), cell(&at, "bob", &url));
    wait_backends(&b, 1);
    befriend(&a, &b, true);
    wait_backends(&a, 1);
    let before = (rss_kib(&a), rss_kib(&b));
    for case in 0..9 {
        turn.store(case, Ordering::SeqCst);
        for asked in [&b, &a] {
            wait_for("it is asked again", || {
                let heard = ask(asked, &count_body(20, ""));
                if heard.status == 503 {
                    return None;
                }
                assert!(
                    heard.text.starts_with(" 1") && !heard.is_done && !heard.error.is_empty(),
                    "{case}: {heard:?}"
                );
                assert!(heard.error.len() < 600 && heard.finish.is_empty(), "{case}: {heard:?}");
                Some(())
            });
        }
    }
    let grown = (rss_kib(&a).saturating_sub(before.0), rss_kib(&b).saturating_sub(before.1));
    println!("memory has grown by {grown:?} KiB");
    assert!(grown.0 < 8192 && grown.1 < 8192, "{grown:?}");
}

#[test]
fn many_streams_cost_little_and_the_faster_one_answers() {
    // One writes ten times as fast as the other.
    let writes = |pause: u64| {
        hostile(move |stream| {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n");
            for n in 1..=20 {
                let finish = if n == 20 { "\"stop\"" } else { "null" };
                let event = format!(
                    "data: {{\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\" {n}\"}},\"finish_reason\":{finish}}}]}}\n\n"
                );
                if stream.write_all(event.as_bytes()).is_err() {
                    return;
                }
                thread::sleep(Duration::from_millis(pause));
            }
            let _ = stream.write_all(b"data: [DONE]\n\n");
        })
    };
    let at = TempDir::new("ai-fast");
    let urls = [format!("http://127.0.0.1:{}", writes(50)), format!("http://127.0.0.1:{}", writes(5))];
    let cell = cell(&at, "ann", &urls);
    wait_backends(&cell, 2);
    let answered = |url: &str| {
        let told = cell.get("/ai");
        let found = items(&told, "backends").iter().find_map(|backend| match backend {
            Value::Object(backend) if text(backend, "url") == url => Some(number(backend, "answers")),
            _ => None,
        });
        found.unwrap()
    };
    for _ in 0..60 {
        is_whole(&Heard { finish: String::new(), ..ask(&cell, &count_body(20, "")) }, 20);
    }
    let (of_slow, of_fast) = (answered(&urls[0]), answered(&urls[1]));
    println!("the slow one answered {of_slow}, the fast one {of_fast}");
    assert!(of_fast * 10 >= (of_slow + of_fast) * 9);
    const STREAMS: u64 = 50;
    let before = rss_kib(&cell);
    let most = AtomicU64::new(0);
    thread::scope(|scope| {
        for _ in 0..STREAMS {
            scope.spawn(|| {
                let heard = ask_until(&cell, "/v1/chat/completions", &count_body(20, ""), |_| {
                    most.fetch_max(rss_kib(&cell), Ordering::SeqCst);
                    true
                });
                assert_eq!(heard.text, counted(20), "{heard:?}");
            });
        }
    });
    let each = most.load(Ordering::SeqCst).saturating_sub(before) / STREAMS;
    println!("{each} KiB a stream");
    assert!(each <= 100, "{each} KiB a stream");
}

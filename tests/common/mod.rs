//! Cells for tests: the built program in temporary folders, run, asked, stopped and killed; and trees compared.
//!
//! Nothing sleeps for luck here: a state is waited for, with a deadline.
#![allow(dead_code, reason = "each test program uses its own part")]

pub mod proxy;

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::Read;
use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use grove::cli::client::{Client, ClientError};
use grove::keys::{random, sha256};
use miniserde::json::{self, Number, Object, Value};

pub mod false_friend;
pub mod feed;
pub mod fleet;
pub mod models;
pub mod net;
pub mod relayed;
pub mod wire;

/// How long anything may take before a test gives up: much longer than it takes on a machine that does nothing else, and
/// on one with several times the work that it can do.
pub const DEADLINE: Duration = Duration::from_secs(300);

/// The program under test.
pub const GROVE: &str = env!("CARGO_BIN_EXE_grove");

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// What may be skipped elsewhere must run where this is set.
pub fn is_ci() -> bool {
    std::env::var_os("CI").is_some_and(|value| value == "true")
}

// Folders

/// A folder that is removed when dropped, whatever the modes in it.
pub struct TempDir(PathBuf);

impl TempDir {
    pub fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("grove-{name}-{}", grove::id::hex(&random::<4>())));
        fs::create_dir(&path).unwrap();
        Self(path.canonicalize().unwrap())
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        if std::env::var_os("GROVE_TEST_KEEP").is_some() {
            eprintln!("kept: {}", self.0.display());
            return;
        }
        remove_tree(&self.0);
    }
}

/// Removes a tree, folders without write permission and all.
pub fn remove_tree(path: &Path) {
    if fs::remove_dir_all(path).is_ok() {
        return;
    }
    open_up(path);
    let _ = fs::remove_dir_all(path);
}

fn open_up(path: &Path) {
    let _ = fs::set_permissions(path, fs::Permissions::from_mode(0o700));
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            open_up(&entry.path());
        }
    }
}

// Chance, the same in each run with the same seed

/// SplitMix64.
pub struct Chance(pub u64);

impl Chance {
    /// From `GROVE_TEST_SEED`, else from the kernel; the seed is printed, so that a failure can be run again.
    pub fn seeded(what: &str) -> Self {
        let seed = std::env::var("GROVE_TEST_SEED").ok().and_then(|text| text.parse().ok());
        let seed = seed.unwrap_or_else(|| u64::from_le_bytes(random()));
        eprintln!("{what}: GROVE_TEST_SEED={seed}");
        Self(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }

    /// Less than `len`, or 0.
    pub fn index(&mut self, len: usize) -> usize {
        self.below(len as u64) as usize
    }

    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(len + 8);
        while bytes.len() < len {
            bytes.extend_from_slice(&self.next().to_le_bytes());
        }
        bytes.truncate(len);
        bytes
    }
}

// Waiting

/// Asks until there is an answer; panics with `what` at the deadline.
pub fn wait_for<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + DEADLINE;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < end, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Asks until a count is as high as wanted: it may take any time, as long as it grows within the deadline again and again.
pub fn wait_count(what: &str, wanted: u64, mut count: impl FnMut() -> u64) {
    let mut before = count();
    while before < wanted {
        before = wait_for(&format!("{what}: more than {before} of {wanted}"), || {
            let now = count();
            assert!(now >= before, "{what}: {before} were there, and now {now}");
            (now > before).then_some(now)
        });
    }
}

// JSON

pub fn object(text: &str) -> Object {
    match json::from_str(text) {
        Ok(Value::Object(object)) => object,
        _ => panic!("no JSON object: {text}"),
    }
}

/// A number at `a.b.c`; 0 where there is none.
pub fn number(object: &Object, path: &str) -> u64 {
    match at(object, path) {
        Some(Value::Number(Number::U64(number))) => *number,
        Some(Value::Number(Number::I64(number))) => u64::try_from(*number).unwrap_or(0),
        _ => 0,
    }
}

/// A text at `a.b.c`; empty where there is none.
pub fn text(object: &Object, path: &str) -> String {
    match at(object, path) {
        Some(Value::String(text)) => text.clone(),
        _ => String::new(),
    }
}

pub fn items<'a>(object: &'a Object, path: &str) -> &'a [Value] {
    match at(object, path) {
        Some(Value::Array(items)) => items,
        _ => &[],
    }
}

fn at<'a>(object: &'a Object, path: &str) -> Option<&'a Value> {
    match path.split_once('.') {
        None => object.get(path),
        Some((first, rest)) => match object.get(first) {
            Some(Value::Object(inner)) => at(inner, rest),
            _ => None,
        },
    }
}

// Cells

/// What a command printed, and how it ended.
#[derive(Debug)]
pub struct Said {
    pub status: ExitStatus,
    pub out: String,
    pub err: String,
}

impl Said {
    pub fn ok(self) -> Self {
        assert!(self.status.success(), "{:?}: {}{}", self.status, self.out, self.err);
        self
    }
}

/// A port that is free now, that the kernel does not give to others by itself, and that no other test of this machine is
/// given as long as this process lives: whoever is to listen on it may do so late, and again after a stop.
pub fn free_port() -> u16 {
    static TAKEN: Mutex<Vec<UnixDatagram>> = Mutex::new(Vec::new());
    static NEXT: AtomicU32 = AtomicU32::new(0);
    static START: OnceLock<u32> = OnceLock::new();
    let start = *START.get_or_init(|| u32::from_le_bytes(random()) % 12_000);
    for _ in 0..12_000 {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = 20_000 + ((start + step) % 12_000) as u16;
        // A name of the kernel's that one process can have, and that goes with it.
        let name = SocketAddr::from_abstract_name(format!("grove test port {port}")).unwrap();
        let Ok(name) = UnixDatagram::bind_addr(&name) else { continue };
        if TcpListener::bind(("0.0.0.0", port)).is_ok() {
            TAKEN.lock().unwrap().push(name);
            return port;
        }
    }
    panic!("no free port");
}

/// A cell in two folders of its own. Stopped with -9 when dropped.
pub struct Cell {
    pub dir: PathBuf,
    pub home: PathBuf,
    /// The peer port stays the same from run to run, so that peers find the cell again.
    pub peer_port: u16,
    /// Of the dashboard; 0: whichever the kernel gives. Who closes such a one for a moment may find it given to another.
    pub http_port: u16,
    /// The program, and the user it runs as.
    pub program: PathBuf,
    pub uid: Option<u32>,
    /// What the running cell has in its environment besides.
    pub env: Vec<(String, String)>,
    /// The network namespace it lives in, if not the test's own.
    pub host: Option<net::Host>,
    run: Option<(Child, u16)>,
    log: PathBuf,
}

impl Cell {
    /// Folders `name/state` and `name/home` below `at`; nothing is made there yet.
    pub fn at(at: &Path, name: &str) -> Self {
        fs::create_dir_all(at.join(name)).unwrap();
        Self::with(at.join(name).join("state"), at.join(name).join("home"), at.join(format!("{name}.log")))
    }

    pub fn with(dir: PathBuf, home: PathBuf, log: PathBuf) -> Self {
        let program = PathBuf::from(GROVE);
        Self {
            dir,
            home,
            peer_port: free_port(),
            http_port: 0,
            program,
            uid: None,
            env: Vec::new(),
            host: None,
            run: None,
            log,
        }
    }

    /// Makes the cell, with these settings besides the defaults of tests.
    pub fn init(&self, name: &str, settings: &[(&str, &str)]) {
        self.cli(["init", "--name", name]).ok();
        self.set(settings);
    }

    /// Writes settings (JSON texts) into config.json. The cell must not run.
    pub fn set(&self, settings: &[(&str, &str)]) {
        // A disk that is nearly full is no matter of most tests.
        self.change(&[("disk.reserve_percent", "0"), ("disk.reserve_bytes_min", "1048576")]);
        self.keep_to_itself();
        self.change(settings);
    }

    /// A cell in no network of the test's own says nothing to the neighbours and the router of this machine; what is
    /// recovered of it neither.
    pub fn keep_to_itself(&self) {
        if self.host.is_none() {
            self.change(&[("lan.discovery", "false"), ("portmap", "false")]);
        }
    }

    /// Like `set`, and nothing else.
    pub fn change(&self, settings: &[(&str, &str)]) {
        let path = self.dir.join("config.json");
        let mut config = object(&fs::read_to_string(&path).unwrap_or_else(|_| "{}".into()));
        for (key, value) in settings {
            config.insert((*key).to_owned(), json::from_str(value).unwrap());
        }
        fs::write(&path, json::to_string(&config)).unwrap();
    }

    /// `grove` with this cell's folders and ports.
    pub fn command<W: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = W>) -> Command {
        let mut command = match &self.host {
            None => Command::new(&self.program),
            Some(host) => host.command(&self.program),
        };
        command.arg("--dir").arg(&self.dir).arg("--home").arg(&self.home);
        command.args(["--port", &self.http_port.to_string(), "--peer-port", &self.peer_port.to_string()]);
        command.args(words).stdin(Stdio::null()).env_remove("GROVE_DIR").env_remove("GROVE_HOME");
        command.env("HOME", self.dir.parent().unwrap()).current_dir(self.dir.parent().unwrap());
        if let Some(uid) = self.uid {
            command.uid(uid).gid(uid);
        }
        command
    }

    /// Does a command to its end.
    pub fn cli<W: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = W>) -> Said {
        let mut command = self.command(words);
        let output = command.output().unwrap();
        Said {
            status: output.status,
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Starts the cell and waits until it answers.
    pub fn run(&mut self) {
        assert!(self.run.is_none(), "the cell runs already");
        let log = fs::OpenOptions::new().create(true).append(true).open(&self.log).unwrap();
        let mut command = self.command(["run"]);
        command.envs(self.env.iter().map(|(key, value)| (key, value)));
        let child = command.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        let pid = u64::from(child.id());
        self.run = Some((child, 0));
        let port = wait_for("the cell starts", || {
            let (child, _) = self.run.as_mut().unwrap();
            if let Some(status) = child.try_wait().unwrap() {
                panic!("the cell ended by itself ({status}): {}", self.log_text());
            }
            // The text of an earlier run may still stand there.
            let text = fs::read_to_string(self.dir.join("lock")).ok()?;
            let Ok(Value::Object(lock)) = json::from_str(text.trim()) else { return None };
            (number(&lock, "pid") == pid).then(|| number(&lock, "http_port") as u16).filter(|port| *port > 0)
        });
        self.run.as_mut().unwrap().1 = port;
        wait_for("the cell answers", || self.try_get("/status").ok());
    }

    pub fn is_up(&mut self) -> bool {
        self.run.as_mut().is_some_and(|(child, _)| child.try_wait().unwrap().is_none())
    }

    /// The port of the dashboard, while it runs.
    pub fn port(&self) -> u16 {
        self.run.as_ref().expect("it runs").1
    }

    pub fn pid(&self) -> u32 {
        self.run.as_ref().expect("the cell runs").0.id()
    }

    /// `kill -9`, and waits for the end.
    pub fn kill(&mut self) {
        if let Some((mut child, _)) = self.run.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// SIGTERM; the cell must end by itself, well. Gives the time that took, without that in which it wanted to go on and
    /// others had the processor.
    pub fn stop(&mut self) -> Duration {
        self.stop_by(rustix::process::Signal::TERM)
    }

    pub fn stop_by(&mut self, signal: rustix::process::Signal) -> Duration {
        let (mut child, _) = self.run.take().expect("the cell runs");
        let (began, before) = (Instant::now(), held_up(child.id()));
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, signal).unwrap();
        let mut waited = Duration::ZERO;
        let status = wait_for("the cell stops", || {
            for (thread, time) in held_up(child.id()) {
                let before = before.get(&thread).copied().unwrap_or_default();
                waited = waited.max(time.saturating_sub(before));
            }
            child.try_wait().unwrap()
        });
        assert!(status.success(), "{status}: {}", self.log_text());
        began.elapsed().saturating_sub(waited)
    }

    /// Does something that takes several steps while the cell stands still, if it runs: it sees them as if they were one.
    pub fn at_once<T>(&self, work: impl FnOnce() -> T) -> T {
        let Some((child, _)) = &self.run else { return work() };
        let pid = rustix::process::Pid::from_child(child);
        rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
        // The signal is on its way to some of its threads for a while.
        wait_for("the cell stands still", || {
            let threads = fs::read_dir(format!("/proc/{}/task", child.id())).unwrap().flatten();
            let stands = |thread: fs::DirEntry| {
                let stat = fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
                // Behind the name, which may hold anything. One that has ended has none.
                stat.rsplit(") ")
                    .next()
                    .is_none_or(|rest| rest.is_empty() || rest.starts_with(['T', 'Z', 'X']))
            };
            threads.into_iter().all(stands).then_some(())
        });
        let done = work();
        rustix::process::kill_process(pid, rustix::process::Signal::CONT).unwrap();
        done
    }

    /// All that it has said, in all its runs.
    pub fn log(&self) -> String {
        let mut bytes = Vec::new();
        if let Ok(mut file) = fs::File::open(&self.log) {
            let _ = file.read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The end of it.
    pub fn log_text(&self) -> String {
        let text = self.log();
        // What a test has removed itself is no news.
        let is_news =
            |line: &&str| !line.contains(" is not in /") && !line.contains("was damaged on this disk");
        let end: Vec<&str> = text.lines().filter(is_news).rev().take(30).collect();
        end.into_iter().rev().collect::<Vec<_>>().join(
            "
",
        )
    }

    pub fn client(&self) -> Client {
        let secret = fs::read_to_string(self.dir.join("peer_secret")).unwrap();
        Client::new(self.run.as_ref().expect("the cell runs").1, &secret)
    }

    /// Asks the running cell, from inside the namespace it lives in.
    pub fn ask<T: Send>(&self, question: impl FnOnce(&Client) -> T + Send) -> T {
        let client = self.client();
        match &self.host {
            None => question(&client),
            Some(host) => host.inside(|| question(&client)),
        }
    }

    pub fn try_get(&self, path: &str) -> Result<Object, ClientError> {
        self.ask(|client| client.get_json(&format!("/api/v1{path}"))).map(|text| object(&text))
    }

    pub fn get(&self, path: &str) -> Object {
        self.try_get(path).unwrap_or_else(|why| panic!("GET {path}: {why}\n{}", self.log_text()))
    }

    pub fn try_post(&self, path: &str, body: &str) -> Result<Object, ClientError> {
        self.ask(|client| client.post_json(&format!("/api/v1{path}"), body)).map(|text| object(&text))
    }

    pub fn post(&self, path: &str, body: &str) -> Object {
        self.try_post(path, body).unwrap_or_else(|why| panic!("POST {path}: {why}\n{}", self.log_text()))
    }

    /// A job from its start to its end, done or failed.
    pub fn job(&self, path: &str, body: &str) -> Object {
        let id = number(&self.post(path, body), "job");
        wait_for("a job", || {
            let job = self.get(&format!("/jobs/{id}?wait_ms=1000"));
            (text(&job, "state") != "running").then_some(job)
        })
    }

    pub fn job_done(&self, path: &str, body: &str) -> Object {
        let job = self.job(path, body);
        assert_eq!(text(&job, "state"), "done", "{path}: {}\n{}", json::to_string(&job), self.log_text());
        job
    }

    /// The text of the alert with this code, if it is raised.
    pub fn alert(&self, code: &str) -> Option<String> {
        let status = self.get("/status");
        let alerts = items(&status, "alerts").iter().filter_map(|alert| match alert {
            Value::Object(alert) => Some(alert),
            _ => None,
        });
        alerts.into_iter().find(|alert| text(alert, "code") == code).map(|alert| text(alert, "text"))
    }

    /// The bytes of the newest version of a file, from the chunks, not from GroveHome.
    pub fn content(&self, wire_path: &str) -> Result<Vec<u8>, ClientError> {
        let path = grove::cli::client::percent_encode(wire_path.as_bytes());
        self.ask(|client| {
            let answer = client.request("GET", &format!("/api/v1/content?path={path}"), None)?;
            answer.into_ok()?.bytes(1 << 30)
        })
    }

    /// The 24 words.
    pub fn phrase(&self) -> String {
        let said = self.cli(["phrase", "--json"]).ok();
        let phrase = text(&object(&said.out), "phrase");
        assert_eq!(phrase.split_whitespace().count(), 24);
        phrase
    }

    /// Brings `other` in as a peer; both run.
    pub fn invite(&self, other: &Cell) {
        let token = self.cli(["invite"]).ok().out.trim().to_owned();
        other.cli(["join", &token]).ok();
    }

    /// Where its peers find it on this machine.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.peer_port)
    }

    /// Panics unless every chunk is there and sound. Works whether the cell runs or not.
    pub fn verify_deep(&self) {
        let said = self.cli(["verify", "--deep", "--json"]).ok();
        let report = object(&said.out);
        let result = if report.contains_key("result") { object_at(&report, "result") } else { report };
        for what in ["damaged", "missing"] {
            let count = number(&result, what).max(items(&result, what).len() as u64);
            assert_eq!(count, 0, "{what}: {}", said.out);
        }
    }

    /// Waits until nothing that was on its way is left: in the store, in GroveHome, in the state folder.
    pub fn no_temps(&self) {
        let end = Instant::now() + DEADLINE;
        loop {
            let left = self.temps();
            if left.is_empty() {
                return;
            }
            assert!(Instant::now() < end, "left over: {left:?}\n{}", self.log_text());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Files on their way, or left over.
    pub fn temps(&self) -> Vec<PathBuf> {
        let mut left = names_in(&self.dir.join("chunks/tmp"));
        left.extend(
            names_in(&self.dir).into_iter().filter(|path| path.as_os_str().as_bytes().ends_with(b".tmp")),
        );
        walk(&self.home, &mut |path| {
            if path.file_name().is_some_and(|name| name.as_bytes().starts_with(b".grove-tmp-")) {
                left.push(path.to_owned());
            }
        });
        left
    }
}

/// How long each thread of a process has waited for a processor so far; none where the kernel does not tell.
fn held_up(pid: u32) -> BTreeMap<OsString, Duration> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let time = |thread: fs::DirEntry| {
        let text = fs::read_to_string(thread.path().join("schedstat")).ok()?;
        Some((thread.file_name(), Duration::from_nanos(text.split(' ').nth(1)?.parse().ok()?)))
    };
    threads.filter_map(time).collect()
}

impl Drop for Cell {
    fn drop(&mut self) {
        if let Some((mut child, _)) = self.run.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn object_at(object: &Object, key: &str) -> Object {
    match json::to_string(&object[key]) {
        text if text.starts_with('{') => self::object(&text),
        text => panic!("{key} is {text}"),
    }
}

fn names_in(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

/// All paths below a folder, folders first. What goes away meanwhile is left out.
pub fn walk(folder: &Path, see: &mut dyn FnMut(&Path)) {
    for path in names_in(folder) {
        see(&path);
        if path.symlink_metadata().is_ok_and(|meta| meta.is_dir()) {
            walk(&path, see);
        }
    }
}

// Trees

/// What must come back of a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    pub kind: &'static str,
    pub mode: u32,
    pub mtime: (i64, i64),
    pub len: u64,
    /// Hash of a file's bytes, or the target of a link.
    pub body: Vec<u8>,
}

/// Everything in a folder by its path below it; the cell's own marker at the top is left out, and what goes away meanwhile.
pub fn inventory(folder: &Path) -> BTreeMap<OsString, Item> {
    let mut items = BTreeMap::new();
    walk(folder, &mut |path| {
        let below = path.strip_prefix(folder).unwrap();
        if below == Path::new(".grove-home") {
            return;
        }
        let look = || -> std::io::Result<_> {
            let meta = path.symlink_metadata()?;
            let (kind, body) = match meta.file_type() {
                kind if kind.is_dir() => ("folder", Vec::new()),
                kind if kind.is_symlink() => ("link", fs::read_link(path)?.into_os_string().into_vec()),
                kind if kind.is_file() => ("file", sha256(&fs::read(path)?).to_vec()),
                _ => ("other", Vec::new()),
            };
            Ok((meta, kind, body))
        };
        let (meta, kind, body) = match look() {
            Ok(seen) => seen,
            Err(why) if why.kind() == std::io::ErrorKind::NotFound => return,
            Err(why) => panic!("{}: {why}", path.display()),
        };
        let is_link = kind == "link";
        items.insert(
            below.as_os_str().to_owned(),
            Item {
                kind,
                mode: if is_link { 0 } else { meta.mode() & 0o7777 },
                mtime: (meta.mtime(), meta.mtime_nsec()),
                len: if kind == "folder" { 0 } else { meta.len() },
                body,
            },
        );
    });
    items
}

/// The first differences of two trees, in words; empty if there are none.
pub fn differences(a: &BTreeMap<OsString, Item>, b: &BTreeMap<OsString, Item>) -> Vec<String> {
    let mut found = Vec::new();
    let short = |path: &OsString| {
        let text = format!("{path:?}");
        if text.chars().count() > 120 {
            format!("{}…", text.chars().take(120).collect::<String>())
        } else {
            text
        }
    };
    for (path, item) in a {
        match b.get(path) {
            None => found.push(format!("gone: {}", short(path))),
            Some(other) if other != item => {
                let mut what = Vec::new();
                if (item.kind, item.len) != (other.kind, other.len) {
                    what.push(format!("{} of {} now {} of {}", item.kind, item.len, other.kind, other.len));
                } else if item.body != other.body {
                    what.push("bytes".into());
                }
                if item.mode != other.mode {
                    what.push(format!("mode {:o} now {:o}", item.mode, other.mode));
                }
                if item.mtime != other.mtime {
                    what.push(format!("mtime {:?} now {:?}", item.mtime, other.mtime));
                }
                found.push(format!("{}: {}", short(path), what.join(", ")));
            }
            Some(_) => {}
        }
    }
    found.extend(b.keys().filter(|path| !a.contains_key(*path)).map(|path| format!("new: {}", short(path))));
    found.truncate(20);
    found
}

pub fn assert_same(a: &BTreeMap<OsString, Item>, b: &BTreeMap<OsString, Item>) {
    let found = differences(a, b);
    assert!(found.is_empty(), "the trees differ:\n{}", found.join("\n"));
}

/// Sets the mtime of a path, never of what a link points to.
pub fn set_mtime(path: &Path, s: i64, ns: i64) {
    use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};
    let time = Timespec { tv_sec: s, tv_nsec: ns };
    let times = Timestamps { last_access: time, last_modification: time };
    utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

/// Files of chunks that have one of their own: those of over 128 KiB.
pub fn loose_chunks(cell: &Cell) -> Vec<PathBuf> {
    let mut found = Vec::new();
    walk(&cell.dir.join("chunks"), &mut |path: &Path| {
        let is_chunk = path.file_name().is_some_and(|name| name.len() >= 60);
        if is_chunk && fs::metadata(path).is_ok_and(|meta| meta.len() > 128 << 10) {
            found.push(path.to_owned());
        }
    });
    found.sort();
    found
}

/// The one head of a peer that a cell keeps; its newest file in `heads/`.
pub fn kept_heads(cell: &Cell) -> Vec<PathBuf> {
    names_in(&cell.dir.join("heads"))
}

/// An answer as text, for what is said when a test fails.
pub fn json_text(object: &Object) -> String {
    json::to_string(object)
}

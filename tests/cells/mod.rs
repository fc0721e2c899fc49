//! Whole cells in temporary folders, run by the program that was built, for tests of what a person sees.
#![allow(dead_code)]

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use grove::cli::client::Client;
use miniserde::json::{self, Number, Object, Value};

/// The longest that any state is waited for.
pub const DEADLINE: Duration = Duration::from_secs(40);

/// A folder that is gone at the end.
pub struct Temp(pub PathBuf);

impl Temp {
    pub fn new(name: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("grove-test-{name}-{}-{number}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Temp {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Waits until `is_so`, or fails with `what`.
pub fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !is_so() {
        assert!(Instant::now() < end, "waited too long: {what}");
        std::thread::sleep(Duration::from_millis(40));
    }
}

/// What a command said.
#[derive(Debug)]
pub struct Told {
    pub code: i32,
    pub out: Vec<u8>,
    pub err: String,
}

impl Told {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.out).into_owned()
    }
}

impl From<Output> for Told {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            out: output.stdout,
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// A cell on two folders, which runs or rests.
pub struct Cell {
    pub dir: PathBuf,
    pub home: PathBuf,
    pub peer_port: u16,
    child: Option<Child>,
}

impl Cell {
    /// A cell made anew below `temp`; `settings` are lines of config.json.
    pub fn new(temp: &Temp, name: &str, settings: &[(&str, u64)]) -> Self {
        let cell = Self::at(temp.0.join(name).join("state"), temp.0.join(name).join("home"));
        cell.ok(&["init", "--name", name]);
        cell.set(&[("disk.reserve_percent", 0), ("disk.reserve_bytes_min", 0)]);
        cell.set(settings);
        cell
    }

    /// Folders of a cell that is not made, or made already.
    pub fn at(dir: PathBuf, home: PathBuf) -> Self {
        Self { dir, home, peer_port: 0, child: None }
    }

    /// Changes settings of a cell at rest.
    pub fn set(&self, settings: &[(&str, u64)]) {
        let path = self.dir.join("config.json");
        let mut text = fs::read_to_string(&path).unwrap();
        for (key, value) in settings {
            let from = text.find(&format!("\"{key}\":")).expect("a setting");
            let to = from + text[from..].find(['\n', ',']).unwrap();
            text.replace_range(from..to, &format!("\"{key}\": {value}"));
        }
        fs::write(&path, text).unwrap();
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_grove"));
        command.arg("--dir").arg(&self.dir).arg("--home").arg(&self.home);
        command.args(["--port", "0", "--peer-port", &self.peer_port.to_string()]);
        command.args(words).stdin(Stdio::null());
        command
    }

    /// Runs a command.
    pub fn grove(&self, words: &[&str]) -> Told {
        self.command(words).output().unwrap().into()
    }

    /// Runs a command that must succeed; gives what it printed.
    pub fn ok(&self, words: &[&str]) -> String {
        let told = self.grove(words);
        assert_eq!(told.code, 0, "grove {words:?}: {}{}\n{}", told.text(), told.err, self.log_end());
        told.text()
    }

    /// Runs a command that must succeed; gives the JSON that it printed.
    pub fn json(&self, words: &[&str]) -> Object {
        let mut words = words.to_vec();
        words.push("--json");
        object(&self.ok(&words))
    }

    pub fn log(&self) -> String {
        let bytes = fs::read(self.dir.with_extension("log")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn log_end(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }

    /// Starts the cell and waits until it answers and its first scan is over.
    pub fn start(&mut self) {
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.dir.with_extension("log"))
            .expect("a log");
        let child = self.command(&["run"]).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        let pid = u64::from(child.id());
        self.child = Some(child);
        until("the cell answers", || {
            let ended = self.child.as_mut().unwrap().try_wait().unwrap();
            assert!(ended.is_none(), "grove run ended: {}", self.log_end());
            self.ports().is_some_and(|(owner, http, _)| owner == pid && http != 0)
        });
        self.peer_port = self.ports().unwrap().2;
        until("the first scan", || {
            let status = self.status();
            !matches!(inner(&status, "scan").get("last_s"), None | Some(Value::Null))
                || self.alert("home").is_some()
        });
    }

    pub fn ports(&self) -> Option<(u64, u16, u16)> {
        let Ok(Value::Object(lock)) = json::from_str(&fs::read_to_string(self.dir.join("lock")).ok()?) else {
            return None;
        };
        Some((number(&lock, "pid"), number(&lock, "http_port") as u16, number(&lock, "peer_port") as u16))
    }

    pub fn client(&self) -> Client {
        let secret = fs::read_to_string(self.dir.join("peer_secret")).unwrap();
        Client::new(self.ports().unwrap().1, secret.trim())
    }

    pub fn get(&self, path: &str) -> Object {
        object(&self.client().get_json(&format!("/api/v1{path}")).unwrap())
    }

    pub fn status(&self) -> Object {
        self.get("/status")
    }

    /// Text of the alert with this code, if it is raised.
    pub fn alert(&self, code: &str) -> Option<String> {
        let status = self.status();
        list(&status, "alerts").into_iter().find(|a| text(a, "code") == code).map(|a| text(&a, "text"))
    }

    /// Stops as a machine that loses power would, but for the disk.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Stops in order.
    pub fn stop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let end = Instant::now() + Duration::from_secs(10);
        while child.try_wait().unwrap().is_none() {
            assert!(Instant::now() < end, "the cell does not stop: {}", self.log_end());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        let path = self.home.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    pub fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.home.join(name)).unwrap_or_else(|why| panic!("{name}: {why}"))
    }

    pub fn has(&self, name: &str) -> bool {
        fs::symlink_metadata(self.home.join(name)).is_ok()
    }

    /// Entries of a folder, by name.
    pub fn ls(&self, folder: &str) -> Vec<Object> {
        let words: &[&str] = if folder.is_empty() { &["ls"] } else { &["ls", folder] };
        list(&self.json(words), "entries")
    }

    pub fn entry(&self, folder: &str, name: &str) -> Option<Object> {
        self.ls(folder).into_iter().find(|entry| text(entry, "name") == name)
    }

    pub fn state(&self, folder: &str, name: &str) -> String {
        self.entry(folder, name).map_or("none".into(), |entry| text(&entry, "state"))
    }

    pub fn versions(&self, path: &str) -> Vec<Object> {
        list(&self.json(&["versions", path]), "versions")
    }

    /// Content of a file, or of a version of it.
    pub fn content(&self, path: &str, version: Option<u64>) -> Vec<u8> {
        let version = version.map(|v| v.to_string());
        let mut words = vec!["get", path, "-o", "-"];
        if let Some(version) = &version {
            words.extend(["--version", version]);
        }
        let told = self.grove(&words);
        assert_eq!(told.code, 0, "get {path}: {}", told.err);
        told.out
    }

    /// Content of every kept version, oldest first.
    pub fn history(&self, path: &str) -> Vec<Vec<u8>> {
        let mut versions: Vec<u64> = self
            .versions(path)
            .iter()
            .filter(|v| !matches!(v.get("tombstone"), Some(Value::Bool(true))))
            .map(|v| number(v, "version"))
            .collect();
        versions.sort_unstable();
        versions.into_iter().map(|v| self.content(path, Some(v))).collect()
    }

    /// Looks through all of GroveHome now.
    pub fn scan(&self) {
        self.ok(&["add", self.home.to_str().unwrap()]);
    }

    pub fn bin(&self) -> Vec<Object> {
        list(&self.json(&["bin"]), "entries")
    }

    pub fn phrase(&self) -> String {
        let told = object(&self.client().post_json("/api/v1/phrase", "{}").unwrap());
        text(&told, "phrase")
    }

    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.peer_port)
    }

    /// Makes `other` a peer.
    pub fn befriend(&self, other: &Self) {
        let invite = text(&self.json(&["invite"]), "token");
        other.ok(&["join", &invite]);
    }
}

impl Drop for Cell {
    fn drop(&mut self) {
        self.kill();
    }
}

pub fn object(text: &str) -> Object {
    match json::from_str(text) {
        Ok(Value::Object(object)) => object,
        _ => panic!("no JSON object: {text}"),
    }
}

pub fn text(object: &Object, key: &str) -> String {
    match object.get(key) {
        Some(Value::String(text)) => text.clone(),
        other => panic!("{key} is {other:?}"),
    }
}

pub fn number(object: &Object, key: &str) -> u64 {
    match object.get(key) {
        Some(Value::Number(Number::U64(number))) => *number,
        Some(Value::Number(Number::I64(number))) => *number as u64,
        other => panic!("{key} is {other:?}"),
    }
}

pub fn inner(object: &Object, key: &str) -> Object {
    match object.get(key) {
        Some(Value::Object(inner)) => inner.clone(),
        other => panic!("{key} is {other:?}"),
    }
}

pub fn list(object: &Object, key: &str) -> Vec<Object> {
    let Some(Value::Array(items)) = object.get(key) else { panic!("no list {key}") };
    items.iter().filter_map(|item| if let Value::Object(o) = item { Some(o.clone()) } else { None }).collect()
}

/// Copies a folder with all in it: as another machine that is a clone of this one.
pub fn copy_tree(from: &Path, to: &Path) {
    let done = Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap();
    assert!(done.success());
}

/// Bytes that no two callers share and that do not compress.
pub fn noise(len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    fs::File::open("/dev/urandom").unwrap().read_exact(&mut bytes).unwrap();
    bytes
}

//! Cells as a person sees them: commands and what they print, files by name.
#![allow(dead_code)]

#[path = "../common/mod.rs"]
pub mod common;

use std::fs;
use std::io::Read;
use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use miniserde::json::{Number, Object, Value};

pub use common::object;

/// A folder that is gone at the end.
pub struct Temp(pub PathBuf, #[allow(dead_code, reason = "it removes the folder")] common::TempDir);

impl Temp {
    pub fn new(name: &str) -> Self {
        let temp = common::TempDir::new(name);
        Self(temp.path().to_owned(), temp)
    }
}

/// Waits until `is_so`, or fails with `what`.
pub fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    common::wait_for(what, || is_so().then_some(()));
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
pub struct Cell(common::Cell);

impl Deref for Cell {
    type Target = common::Cell;

    fn deref(&self) -> &common::Cell {
        &self.0
    }
}

impl DerefMut for Cell {
    fn deref_mut(&mut self) -> &mut common::Cell {
        &mut self.0
    }
}

impl Cell {
    /// A cell made anew below `temp`, with these settings.
    pub fn new(temp: &Temp, name: &str, settings: &[(&str, u64)]) -> Self {
        let cell = Self::at(temp.0.join(name).join("state"), temp.0.join(name).join("home"));
        cell.ok(&["init", "--name", name]);
        cell.set(&[("disk.reserve_percent", 0), ("disk.reserve_bytes_min", 0)]);
        cell.keep_to_itself();
        cell.set(settings);
        cell
    }

    /// Folders of a cell that is not made, or made already.
    pub fn at(dir: PathBuf, home: PathBuf) -> Self {
        fs::create_dir_all(dir.parent().unwrap()).unwrap();
        let log = dir.with_extension("log");
        Self(common::Cell::with(dir, home, log))
    }

    /// Changes settings of a cell at rest.
    pub fn set(&self, settings: &[(&str, u64)]) {
        let texts: Vec<(&str, String)> =
            settings.iter().map(|(key, value)| (*key, value.to_string())).collect();
        let pairs: Vec<(&str, &str)> = texts.iter().map(|(key, value)| (*key, value.as_str())).collect();
        self.0.change(&pairs);
    }

    /// Runs a command.
    pub fn grove(&self, words: &[&str]) -> Told {
        self.0.command(words).output().unwrap().into()
    }

    /// Runs a command that must succeed; gives what it printed.
    pub fn ok(&self, words: &[&str]) -> String {
        let told = self.grove(words);
        assert_eq!(told.code, 0, "grove {words:?}: {}{}\n{}", told.text(), told.err, self.log_text());
        told.text()
    }

    /// Runs a command that must succeed; gives the JSON that it printed.
    pub fn json(&self, words: &[&str]) -> Object {
        let mut words = words.to_vec();
        words.push("--json");
        object(&self.ok(&words))
    }

    /// Starts the cell and waits until it answers and its first scan is over.
    pub fn start(&mut self) {
        self.0.run();
        until("the first scan", || {
            let status = self.status();
            !matches!(inner(&status, "scan").get("last_s"), None | Some(Value::Null))
                || self.alert("home").is_some()
        });
    }

    pub fn status(&self) -> Object {
        self.get("/status")
    }

    /// Stops in order, if it runs.
    pub fn stop(&mut self) {
        if self.0.is_up() {
            self.0.stop();
        }
    }

    /// Writes a file in place. The cell never sees it empty, as it is for a moment, or for longer on a busy machine: whether
    /// that becomes a version would be chance.
    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        let path = self.home.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        self.at_once(|| fs::write(path, bytes).unwrap());
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

    /// Makes `other` a peer.
    pub fn befriend(&self, other: &Self) {
        let invite = text(&self.json(&["invite"]), "token");
        other.ok(&["join", &invite]);
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

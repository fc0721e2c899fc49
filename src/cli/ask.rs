//! Asking a cell: the one that runs, over HTTP, or the one that this process opens.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use std::thread;

use miniserde::json::{self, Array, Number, Object, Value};
use rustix::fs::FlockOperation;

use super::client::{Client, ClientError, percent_encode};
use super::{Context, Paths};
use crate::cell::{LOCK_TRIES, LOCK_WAIT};
pub use crate::dashboard::api::Method;

/// What every path of the API begins with.
const ROOT: &str = "/api/v1";
/// Bytes read of the files `lock` and `peer_secret`.
const SMALL_FILE_BYTES_MAX: u64 = 4096;
/// Bytes of one piece of a file's content.
const PIECE_BYTES: usize = 256 * 1024;

/// Why a command did not do what it was asked for.
#[derive(Debug)]
pub enum CliError {
    /// The words of the command make no sense. Exit code 2.
    Usage(String),
    /// It did not work. Exit code 1.
    Failed {
        /// What happened.
        message: String,
        /// What to do about it; may be empty.
        hint: String,
    },
    /// It did not work, and what is wrong was told already. Exit code 1.
    Told,
}

impl CliError {
    /// A failure and what to do about it.
    pub fn new(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Failed { message: message.into(), hint: hint.into() }
    }

    /// A failure while doing something to a file or a terminal.
    pub fn io(doing: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let doing = doing.into();
        move |why| Self::new(format!("{doing}: {why}"), "")
    }
}

impl From<ClientError> for CliError {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::Refused { message, hint, .. } => Self::Failed { message, hint },
            ClientError::NotRunning { port } => Self::new(
                format!("no cell answers on port {port} of this machine"),
                "start it with `grove run`",
            ),
            other => Self::new(other.to_string(), "see what the running cell logs"),
        }
    }
}

/// What a command writes itself: only its own output can fail this way.
impl From<io::Error> for CliError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            // Whoever read it has what he wanted: `grove ls | head`.
            io::ErrorKind::BrokenPipe => Self::Told,
            _ => Self::new(format!("writing the answer: {error}"), ""),
        }
    }
}

/// A JSON answer: its text as it came, and what it says.
#[derive(Debug)]
pub struct Answer {
    /// The text, for `--json`.
    pub text: String,
    /// What it says.
    pub fields: Fields,
}

impl Answer {
    /// Reads the text of an answer.
    pub fn read(text: String) -> Result<Self, CliError> {
        match json::from_str(&text) {
            Ok(Value::Object(object)) => Ok(Self { fields: Fields(object), text }),
            _ => Err(CliError::new("the cell's answer is no JSON object", "see what the running cell logs")),
        }
    }
}

/// A JSON object that need not have what is asked for: cells of other versions answer, too.
#[derive(Debug)]
pub struct Fields(pub Object);

impl Fields {
    /// A text; empty if there is none.
    pub fn text(&self, key: &str) -> &str {
        match self.0.get(key) {
            Some(Value::String(text)) => text,
            _ => "",
        }
    }

    /// A number; `None` if there is none.
    pub fn signed(&self, key: &str) -> Option<i64> {
        match self.0.get(key) {
            Some(Value::Number(Number::U64(number))) => i64::try_from(*number).ok(),
            Some(Value::Number(Number::I64(number))) => Some(*number),
            Some(Value::Number(Number::F64(number))) => Some(*number as i64),
            _ => None,
        }
    }

    /// A number, 0 or more; `None` if there is none.
    pub fn some(&self, key: &str) -> Option<u64> {
        match self.0.get(key) {
            Some(Value::Number(Number::U64(number))) => Some(*number),
            Some(Value::Number(Number::I64(number))) => u64::try_from(*number).ok(),
            _ => None,
        }
    }

    /// A number; 0 if there is none.
    pub fn number(&self, key: &str) -> u64 {
        self.some(key).unwrap_or(0)
    }

    /// Whether it says so.
    pub fn is(&self, key: &str) -> bool {
        matches!(self.0.get(key), Some(Value::Bool(true)))
    }

    /// The objects of a list; empty if there is none.
    pub fn list(&mut self, key: &str) -> Vec<Fields> {
        match self.0.remove(key) {
            Some(Value::Array(items)) => {
                let object =
                    |item| if let Value::Object(object) = item { Some(Fields(object)) } else { None };
                items.into_iter().filter_map(object).collect()
            }
            _ => Vec::new(),
        }
    }

    /// The texts of a list.
    pub fn texts(&self, key: &str) -> Vec<String> {
        let text = |item: &Value| if let Value::String(text) = item { Some(text.clone()) } else { None };
        match self.0.get(key) {
            Some(Value::Array(items)) => items.iter().filter_map(text).collect(),
            _ => Vec::new(),
        }
    }

    /// A list of lists of three numbers; what is none of these is left out.
    pub fn triples(&self, key: &str) -> Vec<[u64; 3]> {
        let number = |value: &Value| match value {
            Value::Number(Number::U64(number)) => Some(*number),
            Value::Number(Number::I64(number)) => u64::try_from(*number).ok(),
            _ => None,
        };
        let triple = |item: &Value| {
            let Value::Array(item) = item else { return None };
            <[u64; 3]>::try_from(item.iter().filter_map(number).collect::<Vec<u64>>()).ok()
        };
        match self.0.get(key) {
            Some(Value::Array(items)) => items.iter().filter_map(triple).collect(),
            _ => Vec::new(),
        }
    }

    /// A part of it; `None` if there is none.
    pub fn part(&mut self, key: &str) -> Option<Fields> {
        match self.0.remove(key) {
            Some(Value::Object(object)) => Some(Fields(object)),
            _ => None,
        }
    }
}

/// The JSON object of these fields.
pub fn object<const N: usize>(fields: [(&str, Value); N]) -> String {
    object_of(fields.into())
}

/// The same of a list.
pub fn object_of(fields: Vec<(&str, Value)>) -> String {
    json::to_string(&object_value(fields))
}

/// The same as a value.
pub fn object_value(fields: Vec<(&str, Value)>) -> Value {
    let mut object = Object::new();
    for (key, value) in fields {
        object.insert(key.to_owned(), value);
    }
    Value::Object(object)
}

/// A JSON text, or null.
pub fn text_or_null(text: Option<String>) -> Value {
    text.map_or(Value::Null, Value::String)
}

/// A JSON number, or null.
pub fn number_or_null(number: Option<u64>) -> Value {
    number.map_or(Value::Null, |number| Value::Number(Number::U64(number)))
}

/// A JSON list of texts.
pub fn texts(texts: impl IntoIterator<Item = String>) -> Value {
    Value::Array(texts.into_iter().map(Value::String).collect::<Array>())
}

/// A cell that can be asked. Paths are those of the API without `/api/v1`.
pub trait Cell {
    /// Asks and waits for the answer; a refusal is an error.
    fn ask(
        &mut self,
        method: Method,
        path: &str,
        query: &[(&str, Vec<u8>)],
        body: Option<String>,
    ) -> Result<Answer, CliError>;

    /// Gets raw bytes and writes them as they come; gives their number. Ends early only with an error.
    fn stream(&mut self, path: &str, query: &[(&str, Vec<u8>)], out: &mut dyn Write)
    -> Result<u64, CliError>;

    /// Whether a process of its own runs it.
    fn is_running(&self) -> bool;
}

/// `/api/v1/files?folder=a%20b`.
pub fn target(path: &str, query: &[(&str, Vec<u8>)]) -> String {
    let mut target = format!("{ROOT}{path}");
    for (at, (key, value)) in query.iter().enumerate() {
        target.push(if at == 0 { '?' } else { '&' });
        target.push_str(key);
        target.push('=');
        target.push_str(&percent_encode(value));
    }
    target
}

/// The cell that runs in another process.
#[derive(Debug)]
pub struct Remote(Client);

impl Remote {
    /// The cell that listens on `port`; its secret lies in `dir`.
    pub fn open(dir: &Path, port: u16) -> Result<Self, CliError> {
        let path = dir.join("peer_secret");
        let secret = read_small(&path).map_err(|why| {
            CliError::new(
                format!("reading the cell's secret {}: {why}", path.display()),
                "run this as the user who runs the cell",
            )
        })?;
        Ok(Self(Client::new(port, &secret)))
    }

    /// What asks it, for paths that are not below `/api/v1`.
    pub fn client(self) -> Client {
        self.0
    }
}

impl Cell for Remote {
    fn ask(
        &mut self,
        method: Method,
        path: &str,
        query: &[(&str, Vec<u8>)],
        body: Option<String>,
    ) -> Result<Answer, CliError> {
        let word = match method {
            Method::Get => "GET",
            Method::Post => "POST",
            Method::Put => "PUT",
            Method::Patch => "PATCH",
            Method::Delete => "DELETE",
        };
        let body = body.as_ref().map(String::as_bytes);
        Answer::read(self.0.request(word, &target(path, query), body)?.into_ok()?.text()?)
    }

    fn stream(
        &mut self,
        path: &str,
        query: &[(&str, Vec<u8>)],
        out: &mut dyn Write,
    ) -> Result<u64, CliError> {
        let mut body = self.0.request("GET", &target(path, query), None)?.into_ok()?.body;
        let mut piece = vec![0; PIECE_BYTES];
        let mut total = 0;
        loop {
            let length = match io::Read::read(&mut body, &mut piece) {
                Ok(0) => return Ok(total),
                Ok(length) => length,
                Err(why) if why.kind() == io::ErrorKind::Interrupted => continue,
                Err(why) => {
                    let hint = "what came so far is not the whole file; see what the running cell logs";
                    return Err(CliError::new(format!("the cell broke off: {why}"), hint));
                }
            };
            out.write_all(&piece[..length])?;
            total += length as u64;
        }
    }

    fn is_running(&self) -> bool {
        true
    }
}

fn read_small(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    io::Read::read_to_string(&mut io::Read::take(File::open(path)?, SMALL_FILE_BYTES_MAX), &mut text)?;
    Ok(text)
}

/// Who has a cell's state folder.
#[derive(Debug, PartialEq, Eq)]
pub enum Holder {
    /// Nobody: this process may open it.
    Nobody,
    /// A cell that answers on this port.
    Cell(u16),
}

/// Which process holds the cell, as far as its lock tells.
pub(super) fn holder_pid(dir: &Path) -> Option<u64> {
    Answer::read(read_small(&dir.join("lock")).ok()?).ok()?.fields.some("pid")
}

/// Finds out who has the state folder. Waits a few seconds for a command that has it for a moment.
pub fn holder(dir: &Path) -> Result<Holder, CliError> {
    let path = dir.join("lock");
    let mut pid = None;
    for attempt in 0..LOCK_TRIES {
        if attempt > 0 {
            thread::sleep(LOCK_WAIT);
        }
        let lock = match File::open(&path) {
            Ok(lock) => lock,
            Err(why) if why.kind() == io::ErrorKind::NotFound => return Ok(Holder::Nobody),
            Err(why) => return Err(CliError::io(format!("opening {}", path.display()))(why)),
        };
        // Shared, so that two commands that look at once do not take each other for a cell.
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockShared) {
            Ok(()) => return Ok(Holder::Nobody),
            Err(rustix::io::Errno::WOULDBLOCK) => {}
            Err(why) => return Err(CliError::io(format!("locking {}", path.display()))(why.into())),
        }
        // The holder may be about to write who it is.
        let fields =
            read_small(&path).ok().and_then(|text| Answer::read(text).ok()).map(|answer| answer.fields);
        if let Some(fields) = fields {
            pid = fields.some("pid");
            match u16::try_from(fields.number("http_port")) {
                Ok(port) if port > 0 => return Ok(Holder::Cell(port)),
                _ => {}
            }
        }
    }
    let who = pid.map_or_else(|| "another process".to_owned(), |pid| format!("process {pid}"));
    Err(CliError::new(
        format!("{who} is at work in {}", dir.display()),
        "it is no running cell that could be asked; try again when it is done",
    ))
}

/// Whether a cell lives in this folder.
pub fn lives_in(dir: &Path) -> bool {
    fs::symlink_metadata(dir.join(".key")).is_ok()
}

pub(super) fn need_cell(paths: &Paths) -> Result<(), CliError> {
    if lives_in(&paths.dir) {
        return Ok(());
    }
    Err(CliError::new(
        format!("no cell lives in {}", paths.dir.display()),
        "make one with `grove init`, bring one back with `grove recover`, or name its folder with --dir",
    ))
}

/// An error if a recovery was begun here and has no catalog yet: until then the cell would look empty.
pub(super) fn need_catalog(paths: &Paths) -> Result<(), CliError> {
    // "catalog" is what it still needs; with "files" the cell can be used.
    if !fs::read_to_string(paths.dir.join("recovering")).is_ok_and(|note| note.trim() == "catalog") {
        return Ok(());
    }
    Err(CliError::new(
        format!("a recovery was begun in {} and has not reached a peer yet", paths.dir.display()),
        "go on with `grove recover --peer HOST:PORT`, or remove that folder to begin anew",
    ))
}

impl Context<'_> {
    /// The running cell, or else the one that this process opens.
    pub fn cell(&self) -> Result<Box<dyn Cell>, CliError> {
        need_cell(&self.paths)?;
        match holder(&self.paths.dir)? {
            Holder::Cell(port) => Ok(Box::new(Remote::open(&self.paths.dir, port)?)),
            Holder::Nobody => {
                need_catalog(&self.paths)?;
                self.house.open(&self.paths, &self.options)
            }
        }
    }

    /// The running cell; an error if none runs.
    pub fn running_cell(&self) -> Result<Box<dyn Cell>, CliError> {
        need_cell(&self.paths)?;
        match holder(&self.paths.dir)? {
            Holder::Cell(port) => Ok(Box::new(Remote::open(&self.paths.dir, port)?)),
            Holder::Nobody => Err(CliError::new("the cell is not running", "start it with `grove run`")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::testing::TempDir;
    use std::io::{BufRead, BufReader, Read};
    use std::net::TcpListener;

    #[test]
    fn targets_are_encoded() {
        assert_eq!(target("/confirm", &[]), "/api/v1/confirm");
        let query = [("folder", b"a b/%C3&\xff".to_vec()), ("limit", b"10".to_vec())];
        assert_eq!(target("/files", &query), "/api/v1/files?folder=a%20b%2F%25C3%26%FF&limit=10");
    }

    #[test]
    fn answers_need_not_have_everything() {
        let mut answer = Answer::read(
            r#"{"a":"x","n":7,"i":-7,"b":true,"l":[{"k":1},3],"t":["u",4],"o":{"p":2}}"#.to_owned(),
        )
        .unwrap();
        let fields = &mut answer.fields;
        assert_eq!((fields.text("a"), fields.text("n"), fields.text("zz")), ("x", "", ""));
        assert_eq!((fields.some("n"), fields.signed("i"), fields.some("i")), (Some(7), Some(-7), None));
        assert!(fields.is("b") && !fields.is("a") && !fields.is("zz"));
        assert_eq!(fields.list("l").len(), 1);
        assert_eq!(fields.texts("t"), ["u"]);
        assert_eq!(fields.part("o").unwrap().number("p"), 2);
        assert!(fields.part("o").is_none());
        assert!(Answer::read("[]".into()).is_err() && Answer::read(String::new()).is_err());
    }

    #[test]
    fn lock_tells_who_has_the_folder() {
        let dir = TempDir::new();
        assert_eq!(holder(dir.path()).unwrap(), Holder::Nobody);
        let path = dir.path().join("lock");
        fs::write(&path, r#"{"pid":1,"http_port":4000,"peer_port":4001}"#).unwrap();
        assert_eq!(holder(dir.path()).unwrap(), Holder::Nobody, "a lock of a cell that died");
        let file = File::open(&path).unwrap();
        rustix::fs::flock(&file, FlockOperation::LockExclusive).unwrap();
        assert_eq!(holder(dir.path()).unwrap(), Holder::Cell(4000));
        fs::write(&path, r#"{"pid":77,"http_port":0,"peer_port":0}"#).unwrap();
        let error = holder(dir.path()).unwrap_err();
        assert!(matches!(error, CliError::Failed { message, .. } if message.contains("process 77")));
    }

    #[test]
    fn remote_speaks_to_a_server() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = thread::spawn(move || {
            let answers =
                [r#"{"job":3}"#, "bytes of a file", r#"{"error":{"code":"c","message":"No.","hint":"Do."}}"#];
            let mut heads = Vec::new();
            for (at, answer) in answers.into_iter().enumerate() {
                let (stream, _) = listener.accept().unwrap();
                let mut stream = BufReader::new(stream);
                let (mut head, mut length) = (String::new(), 0);
                loop {
                    let mut line = String::new();
                    stream.read_line(&mut line).unwrap();
                    if let Some(bytes) = line.strip_prefix("Content-Length: ") {
                        length = bytes.trim().parse().unwrap();
                    }
                    if line == "\r\n" {
                        break;
                    }
                    head.push_str(&line);
                }
                let mut body = vec![0; length];
                stream.read_exact(&mut body).unwrap();
                heads.push(format!("{head}{}", String::from_utf8(body).unwrap()));
                let status = [202, 200, 409][at];
                let answer =
                    format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\n\r\n{answer}", answer.len());
                stream.get_mut().write_all(answer.as_bytes()).unwrap();
            }
            heads
        });
        let dir = TempDir::new();
        assert!(Remote::open(dir.path(), port).is_err());
        fs::write(dir.path().join("peer_secret"), "open-sesame\n").unwrap();
        let mut cell = Remote::open(dir.path(), port).unwrap();
        let answer = cell.ask(Method::Post, "/add", &[], Some("{}".into())).unwrap();
        assert_eq!(answer.fields.number("job"), 3);
        let mut out = Vec::new();
        assert_eq!(cell.stream("/content", &[("path", b"\xff".to_vec())], &mut out).unwrap(), 15);
        assert_eq!(out, b"bytes of a file");
        let error = cell.ask(Method::Get, "/status", &[], None).unwrap_err();
        assert!(matches!(error, CliError::Failed { message, hint } if message == "No." && hint == "Do."));
        let heads = server.join().unwrap();
        assert!(heads[0].starts_with("POST /api/v1/add HTTP/1.1\r\n") && heads[0].ends_with("{}"));
        assert!(heads[1].starts_with("GET /api/v1/content?path=%FF HTTP/1.1\r\n"));
        assert!(heads.iter().all(|head| head.contains("Bearer open-sesame\r\n")));
    }
}

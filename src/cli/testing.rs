//! A cell that answers what it was told to, and the command line around it.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::ffi::OsString;
use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::ask::{Answer, Cell, CliError, Method};
use super::*;

/// A folder that is removed when dropped.
pub struct TempDir(PathBuf);

impl TempDir {
    pub fn new() -> Self {
        let name = format!("grove-cli-{}", crate::id::hex(&crate::keys::random::<8>()));
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).unwrap();
        Self(path.canonicalize().unwrap())
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Answers in their order; writes down what it was asked.
#[derive(Default, Clone)]
pub struct Fake {
    answers: Rc<RefCell<BTreeMap<String, VecDeque<String>>>>,
    pub bytes: Rc<RefCell<VecDeque<Option<Vec<u8>>>>>,
    pub told: Rc<RefCell<Vec<String>>>,
}

impl Fake {
    /// The next answer to `GET /path`; the last one is given again and again to POSTs.
    pub fn answer(&self, asked: &str, text: &str) {
        self.answers.borrow_mut().entry(asked.to_owned()).or_default().push_back(text.to_owned());
    }
}

fn query_text(query: &[(&str, Vec<u8>)]) -> String {
    query.iter().map(|(key, value)| format!(" {key}={}", String::from_utf8_lossy(value))).collect()
}

impl Cell for Fake {
    fn ask(
        &mut self,
        method: Method,
        path: &str,
        query: &[(&str, Vec<u8>)],
        body: Option<String>,
    ) -> Result<Answer, CliError> {
        let asked = format!("{} {path}", if method == Method::Get { "GET" } else { "POST" });
        let body = body.map_or(String::new(), |body| format!(" {body}"));
        self.told.borrow_mut().push(format!("{asked}{}{body}", query_text(query)));
        let mut answers = self.answers.borrow_mut();
        let queue = answers.get_mut(&asked);
        let text = queue.and_then(|queue| match method == Method::Post && queue.len() == 1 {
            true => queue.front().cloned(),
            false => queue.pop_front(),
        });
        Answer::read(text.ok_or_else(|| CliError::new(format!("no answer to {asked}"), ""))?)
    }

    fn stream(
        &mut self,
        path: &str,
        query: &[(&str, Vec<u8>)],
        out: &mut dyn Write,
    ) -> Result<u64, CliError> {
        self.told.borrow_mut().push(format!("STREAM {path}{}", query_text(query)));
        out.write_all(b"")?;
        match self.bytes.borrow_mut().pop_front().flatten() {
            Some(bytes) => {
                out.write_all(&bytes)?;
                Ok(bytes.len() as u64)
            }
            None => {
                out.write_all(b"a part")?;
                Err(CliError::new("the cell broke off", ""))
            }
        }
    }

    fn is_running(&self) -> bool {
        false
    }
}

impl House for Fake {
    fn open(&self, _: &Paths, _: &Options) -> Result<Box<dyn Cell>, CliError> {
        Ok(Box::new(self.clone()))
    }

    fn create(&self, _: &Paths, name: Option<&str>, phrase: Option<&str>) -> Result<Made, CliError> {
        self.told.borrow_mut().push(format!("create {name:?} {phrase:?}"));
        Ok(Made { name: name.unwrap_or("host").into(), id: "ab".repeat(32) })
    }

    fn run(&self, _: &Paths, options: &Options) -> Result<(), CliError> {
        self.told.borrow_mut().push(format!("run {options:?}"));
        Ok(())
    }

    fn recover(
        &self,
        _: &Paths,
        _: &Options,
        wish: RecoverWish<'_>,
        progress: &mut dyn FnMut(&RecoverProgress),
    ) -> Result<Recovered, CliError> {
        progress(&RecoverProgress { text: "asking".into(), ..RecoverProgress::default() });
        let line = format!("recover {} {} {}", wish.phrase, wish.addresses.join(","), wish.with_files);
        self.told.borrow_mut().push(line);
        Ok(Recovered {
            name: "ann".into(),
            id: "ab".repeat(32),
            life: 2,
            files_known: 7,
            files: 5,
            peers: vec!["bob".into(), "cy".into()],
            peers_missing: vec!["cy".into()],
            ..Recovered::default()
        })
    }
}

/// What a command said.
#[derive(Debug)]
pub struct Told {
    pub code: u8,
    pub out: String,
    pub err: String,
}

/// A folder with a cell in it that `fake` answers for.
pub struct Setup {
    pub dir: TempDir,
    pub fake: Fake,
    pub terminals: Terminals,
}

impl Setup {
    pub fn new() -> Self {
        let dir = TempDir::new();
        let state = dir.path().join("state");
        fs::create_dir(&state).unwrap();
        fs::create_dir(dir.path().join("home")).unwrap();
        fs::set_permissions(&state, fs::Permissions::from_mode(0o700)).unwrap();
        fs::write(state.join(".key"), [0; 32]).unwrap();
        fs::set_permissions(state.join(".key"), fs::Permissions::from_mode(0o600)).unwrap();
        Self { dir, fake: Fake::default(), terminals: Terminals::default() }
    }

    pub fn grove(&self, line: &str, input: &str) -> Told {
        let words: Vec<&[u8]> = line.split_whitespace().map(str::as_bytes).collect();
        self.grove_bytes(&words, input)
    }

    pub fn grove_bytes(&self, words: &[&[u8]], input: &str) -> Told {
        let words = words.iter().map(|word| OsString::from_vec(word.to_vec())).collect();
        grove_in(&self.fake, self.dir.path(), self.terminals, words, input)
    }

    /// What `work` says when the cell runs.
    pub fn with(&self, work: impl FnOnce(&mut Context<'_>, &mut dyn Cell) -> Result<(), CliError>) -> Told {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let mut context = Context {
            paths: Paths { dir: self.dir.path().join("state"), home: self.dir.path().join("home") },
            options: Options::default(),
            house: &self.fake,
            cwd: self.dir.path().to_owned(),
            input: &mut &b""[..],
            out: &mut out,
            err: &mut err,
            terminals: self.terminals,
        };
        let done = work(&mut context, &mut self.fake.clone());
        let code = done.map_or_else(|error| tell(&error, &[], &mut err), |()| 0);
        told(code, out, err)
    }
}

/// What the command says where no cell lives.
pub fn grove(fake: &Fake, line: &str, input: &str) -> Told {
    let dir = TempDir::new();
    let words = line.split_whitespace().map(OsString::from).collect();
    grove_in(fake, dir.path(), Terminals::default(), words, input)
}

fn grove_in(fake: &Fake, dir: &Path, terminals: Terminals, words: Vec<OsString>, input: &str) -> Told {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let streams = Streams { input: &mut input.as_bytes(), out: &mut out, err: &mut err, terminals };
    let env = |name: &str| match name {
        "GROVE_DIR" => Some(dir.join("state").into()),
        "GROVE_HOME" => Some(dir.join("home").into()),
        _ => None,
    };
    let code = run(words, fake, dir.to_owned(), &env, streams);
    told(code, out, err)
}

fn told(code: u8, out: Vec<u8>, err: Vec<u8>) -> Told {
    let text = |bytes| String::from_utf8(bytes).expect("what is said is UTF-8");
    Told { code, out: text(out), err: text(err) }
}

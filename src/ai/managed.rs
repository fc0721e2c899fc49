//! This cell's own model: a `llama-server` child for the .gguf files in `models/`, started with the first question and stopped
//! when idle. Its crash is one line in the log and another try.

use std::cell::{Cell, RefCell};
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::time::{Duration, Instant};

use futures_util::future::{FutureExt, LocalBoxFuture};

use super::desk::{Backend, Load, Offer, Resumes, Source};
use super::form::{ApiError, Ask, Failure, MODEL_BYTES_MAX};
use super::http::Url;
use super::router::Facts;
use super::server::{MODELS_MAX, Model, Server};
use crate::keys::random;
use crate::order;
use crate::pool;
use crate::world::{Timer, instant};

/// The program.
const PROGRAM: &str = "llama-server";
/// It is asked whether it is ready this often.
const READY_PAUSE: Duration = Duration::from_millis(50);
/// A model is in memory within this.
const START_TIME_MAX: Duration = Duration::from_secs(300);
/// After SIGTERM it ends within this.
const END_TIME_MAX: Duration = Duration::from_secs(3);
/// Bytes a second that a card gives, for the first guess of how long loading takes.
const LOAD_BYTES_PER_S: f64 = 60e6;
/// A model needs its file's bytes, a tenth more, and so many.
const MEMORY_BESIDE: u64 = 192 << 20;
/// What the child says is kept up to this. Bytes.
const LOG_BYTES_MAX: u64 = 1 << 20;
/// A parameter's bytes in the usual quantisations.
const BYTES_PER_PARAMETER: f64 = 0.6;

/// How the child is run.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The folder of models.
    pub models: PathBuf,
    /// Where what it says goes.
    pub log: PathBuf,
    /// Tokens of prompt and answer together.
    pub context: u64,
    /// It is stopped after so long without a question.
    pub idle: Duration,
    /// This cell's name.
    pub cell: String,
}

/// A model file.
#[derive(Debug, Clone, PartialEq)]
struct GgufFile {
    model: Model,
    path: PathBuf,
    bytes: u64,
}

struct Running {
    child: Child,
    model: String,
    server: Rc<Server>,
}

/// Models in `models/`, run by a child.
pub struct Managed {
    settings: Settings,
    found: RefCell<(Option<PathBuf>, Vec<GgufFile>)>,
    running: RefCell<Option<Running>>,
    is_starting: Cell<bool>,
    starting: smol::lock::Mutex<()>,
    used_at: Cell<Instant>,
    load_s: Cell<Option<f64>>,
    load: Load,
}

/// The program on the PATH, and the models that lie in the folder.
fn find(models: &Path) -> (Option<PathBuf>, Vec<GgufFile>) {
    let is_program = |path: &PathBuf| {
        std::fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
    };
    let path = std::env::var_os("PATH").unwrap_or_default();
    let program = std::env::split_paths(&path)
        .filter(|folder| folder.is_absolute())
        .map(|folder| folder.join(PROGRAM))
        .find(is_program);
    let mut files: Vec<GgufFile> = Vec::new();
    for entry in std::fs::read_dir(models).into_iter().flatten().flatten() {
        let path = entry.path();
        let is_gguf = path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("gguf"));
        let name = path.file_stem().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
        let is_name =
            !name.is_empty() && name.len() <= MODEL_BYTES_MAX && !name.chars().any(char::is_control);
        // Of a model in several files the first is named.
        let is_rest = name.contains("-of-") && !name.contains("-00001-of-");
        let Ok(meta) = std::fs::metadata(&path) else { continue };
        if is_gguf && is_name && !is_rest && meta.is_file() && files.len() < MODELS_MAX {
            let params = Some(meta.len() as f64 / BYTES_PER_PARAMETER / 1e9);
            let model = Model { name, params, context: 0, is_warm: false };
            files.push(GgufFile { model, path, bytes: meta.len() });
        }
    }
    order::sort_by(&mut files, |a, b| a.model.name.cmp(&b.model.name));
    (program, files)
}

/// Memory that can be had without swapping, in bytes; `None`: not known.
fn memory_available() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

/// Why there is not enough memory for a model of so many bytes.
fn lacks_memory(bytes: u64, available: Option<u64>) -> Option<String> {
    let needed = bytes + bytes / 10 + MEMORY_BESIDE;
    let available = available.filter(|available| *available < needed)?;
    let mib = |bytes: u64| bytes >> 20;
    Some(format!("it needs about {} MiB of memory and {} MiB are free", mib(needed), mib(available)))
}

impl Managed {
    /// Looks for program and models.
    pub fn new(settings: Settings) -> Self {
        let found = find(&settings.models);
        Self {
            settings,
            found: RefCell::new(found),
            running: RefCell::default(),
            is_starting: Cell::new(false),
            starting: smol::lock::Mutex::new(()),
            used_at: Cell::new(instant()),
            load_s: Cell::new(None),
            load: Load::default(),
        }
    }

    /// The program is there, and at least one model.
    pub fn is_there(&self) -> bool {
        let found = self.found.borrow();
        found.0.is_some() && !found.1.is_empty()
    }

    /// Models, and whether one of them runs or is being started.
    pub fn state(&self) -> (Vec<String>, &'static str) {
        let models = self.found.borrow().1.iter().map(|file| file.model.name.clone()).collect();
        let state = match (self.is_starting.get(), self.running.borrow().is_some()) {
            (true, _) => "loading",
            (false, true) => "ready",
            (false, false) => "asleep",
        };
        (models, state)
    }

    /// The server of the model that runs.
    pub fn server(&self) -> Option<Rc<Server>> {
        self.running.borrow().as_ref().map(|running| Rc::clone(&running.server))
    }

    /// One turn of looking after it: files that came or went, a child that ended, one that nobody asks.
    pub async fn follow(&self) {
        let models = self.settings.models.clone();
        let found = pool::unblock(move || find(&models)).await;
        *self.found.borrow_mut() = found;
        self.note_end();
        let is_idle =
            self.load.in_flight.get() == 0 && crate::world::since(self.used_at.get()) > self.settings.idle;
        if is_idle && !self.is_starting.get() && self.running.borrow().is_some() {
            log::info!("the model is not asked for any more and leaves the memory");
            self.stop().await;
        }
        if let Some(server) = self.server() {
            server.follow(Duration::from_secs(60)).await;
        }
        let log = self.settings.log.clone();
        pool::unblock(move || {
            if std::fs::metadata(&log).is_ok_and(|meta| meta.len() > LOG_BYTES_MAX) {
                let _ = OpenOptions::new().write(true).open(&log).and_then(|file| file.set_len(0));
            }
        })
        .await;
    }

    /// Notes whether the child has ended by itself.
    fn note_end(&self) -> bool {
        let mut running = self.running.borrow_mut();
        let Some(one) = running.as_mut() else { return false };
        match one.child.try_wait() {
            Ok(None) => false,
            ended => {
                let how = ended.map_or_else(
                    |why| why.to_string(),
                    |status| status.map_or(String::new(), |s| s.to_string()),
                );
                log::warn!(
                    "{PROGRAM} has ended by itself ({how}); it is started again with the next question"
                );
                *running = None;
                true
            }
        }
    }

    /// Ends the child.
    pub async fn stop(&self) {
        let Some(mut running) = self.running.borrow_mut().take() else { return };
        if let Some(pid) = rustix::process::Pid::from_raw(running.child.id() as i32) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let end = instant() + END_TIME_MAX;
        while matches!(running.child.try_wait(), Ok(None)) {
            if instant() > end {
                let _ = running.child.kill();
                let _ = running.child.wait();
                return;
            }
            Timer::after(Duration::from_millis(20)).await;
        }
    }

    /// The last line that the child has said.
    fn last_words(&self) -> String {
        let read = || -> std::io::Result<String> {
            let mut file = File::open(&self.settings.log)?;
            let len = file.metadata()?.len();
            file.seek(SeekFrom::Start(len.saturating_sub(4096)))?;
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes)?;
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        let text = read().unwrap_or_default();
        let is_telling = |line: &&str| {
            let lower = line.to_ascii_lowercase();
            lower.contains("error") || lower.contains("fail") || lower.contains("unable")
        };
        let line = text.lines().rev().find(is_telling).or(text.lines().next_back()).unwrap_or_default();
        super::form::cut(line.trim(), 200)
    }

    /// Has this model run and gives its server.
    async fn ensure(&self, model: &str) -> Result<Rc<Server>, Failure> {
        let _one = self.starting.lock().await;
        self.note_end();
        let server = {
            let running = self.running.borrow();
            running
                .as_ref()
                .filter(|running| running.model == model)
                .map(|running| Rc::clone(&running.server))
        };
        if let Some(server) = server {
            return Ok(server);
        }
        self.stop().await;
        let (program, file) = {
            let found = self.found.borrow();
            let file = found.1.iter().find(|file| file.model.name == model).cloned();
            (found.0.clone(), file)
        };
        let (Some(program), Some(file)) = (program, file) else {
            let why =
                format!("the model {model} does not lie in {} any more", self.settings.models.display());
            return Err(Failure::Lacking(ApiError::new(
                404,
                "invalid_request_error",
                "model_not_found",
                why,
            )));
        };
        if let Some(why) = lacks_memory(file.bytes, memory_available()) {
            return Err(Failure::Busy(format!("the model {model} is not started: {why}")));
        }
        self.is_starting.set(true);
        let started = self.run(&program, &file).await;
        self.is_starting.set(false);
        started.map_err(|why| Failure::Broken(format!("{PROGRAM} cannot run {model}: {why}")))
    }

    async fn run(&self, program: &Path, file: &GgufFile) -> Result<Rc<Server>, String> {
        let began = instant();
        let (child, server) = self.spawn(program, file)?;
        let model = file.model.name.clone();
        *self.running.borrow_mut() = Some(Running { child, model, server: Rc::clone(&server) });
        loop {
            server.look().await;
            if server.looked().is_some_and(|looked| !looked.is_loading) {
                break;
            }
            if self.note_end() {
                return Err(format!("it ended: {}", self.last_words()));
            }
            if crate::world::since(began) > START_TIME_MAX {
                self.stop().await;
                return Err("it did not get ready in five minutes".into());
            }
            Timer::after(READY_PAUSE).await;
        }
        let took = crate::world::since(began);
        self.load_s.set(Some(took.as_secs_f64()));
        log::info!("the model {} is in memory after {} ms", file.model.name, took.as_millis());
        Ok(server)
    }

    fn spawn(&self, program: &Path, file: &GgufFile) -> Result<(Child, Rc<Server>), String> {
        let port = std::net::TcpListener::bind("127.0.0.1:0")
            .and_then(|listener| listener.local_addr())
            .map_err(|why| format!("no port is free: {why}"))?
            .port();
        let open = || OpenOptions::new().create(true).append(true).mode(0o600).open(&self.settings.log);
        let out = open().and_then(|file| file.set_len(0).map(|()| file));
        let out = out.map_err(|why| format!("its log cannot be written: {why}"))?;
        let err = out.try_clone().map_err(|why| why.to_string())?;
        // Others on this machine do not get in.
        let key = crate::id::hex(&random::<16>());
        let mut command = Command::new(program);
        command
            .arg("-m")
            .arg(&file.path)
            .args(["--host", "127.0.0.1", "--port", &port.to_string()])
            .args(["--alias", &file.model.name, "-c", &self.settings.context.to_string(), "-np", "1"])
            .env("LLAMA_API_KEY", &key)
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            .process_group(0);
        // SAFETY: prctl only sets a flag of the new process: it ends with this one.
        unsafe {
            command.pre_exec(|| {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                Ok(())
            });
        }
        let child = command.spawn().map_err(|why| why.to_string())?;
        let url = Url::parse(&format!("http://127.0.0.1:{port}")).expect("it is a URL");
        let label = format!("{PROGRAM} ({})", file.model.name);
        Ok((child, Rc::new(Server::new(url, Some(key), label, &self.settings.cell))))
    }

    fn cold_s(&self, file: &GgufFile) -> f64 {
        self.load_s.get().unwrap_or(1.0 + file.bytes as f64 / LOAD_BYTES_PER_S)
    }
}

impl Drop for Managed {
    fn drop(&mut self) {
        if let Some(mut running) = self.running.borrow_mut().take() {
            let _ = running.child.kill();
            let _ = running.child.wait();
        }
    }
}

impl Backend for Managed {
    fn id(&self) -> u64 {
        1
    }

    fn label(&self) -> String {
        "this cell's own model".into()
    }

    fn cell(&self) -> String {
        self.settings.cell.clone()
    }

    fn is_at(&self, cell: &str) -> bool {
        cell == self.settings.cell
    }

    fn is_own(&self) -> bool {
        true
    }

    fn load(&self) -> &Load {
        &self.load
    }

    fn offer(&self, ask: &Ask) -> Option<Offer> {
        let found = self.found.borrow();
        found.0.as_ref()?;
        let running = self.running.borrow();
        let warm = running.as_ref().map(|running| running.model.as_str());
        let is_used = self.load.in_flight.get() > 0;
        let fitting = found.1.iter().filter(|file| ask.wanted.fits(&file.model.name, file.model.params));
        // Another model would throw out the one that is writing; who asks for it by name is told to wait.
        let is_named = matches!(ask.wanted, super::form::Wanted::Named(_));
        let fitting =
            fitting.filter(|file| is_named || !is_used || warm.is_none_or(|warm| warm == file.model.name));
        let rank = |file: &&GgufFile| (Some(file.model.name.as_str()) == warm, file.bytes);
        let file = fitting.max_by_key(rank)?;
        let is_warm = Some(file.model.name.as_str()) == warm && !self.is_starting.get();
        let facts = Facts {
            slots: 1,
            busy: self.load.in_flight.get(),
            load_s: if is_warm { 0.0 } else { self.cold_s(file) },
            prefill_tps: self.load.prefill.get().get(),
            decode_tps: self.load.decode.get().get(),
            round_trip_s: 0.0005,
            context: u32::try_from(self.settings.context).unwrap_or(0),
            params: file.model.params,
            late: 1.0,
            is_down: false,
            has_cache: false,
        };
        Some(Offer { model: file.model.name.clone(), facts })
    }

    fn resumes(&self) -> Resumes {
        Resumes::Repeating
    }

    fn start(
        self: Rc<Self>,
        ask: Rc<Ask>,
        model: String,
        written: Option<(String, u32)>,
    ) -> LocalBoxFuture<'static, Result<Box<dyn Source>, Failure>> {
        async move {
            self.used_at.set(instant());
            let is_other = self.running.borrow().as_ref().is_some_and(|running| running.model != model);
            // This question is counted already.
            if is_other && self.load.in_flight.get() > 1 {
                return Err(Failure::Busy("another model is at work here".into()));
            }
            let server = self.ensure(&model).await?;
            self.load.note_life(instant());
            match server.ask(&ask, &model, written.clone()).await {
                Err(Failure::Broken(_)) => {
                    // It may have crashed while nobody looked: once more.
                    Timer::after(READY_PAUSE).await;
                    self.ensure(&model).await?.ask(&ask, &model, written).await
                }
                outcome => outcome,
            }
        }
        .boxed_local()
    }

    fn check(self: Rc<Self>) -> LocalBoxFuture<'static, bool> {
        async move {
            self.used_at.set(instant());
            if self.is_starting.get() {
                return true;
            }
            match self.server() {
                Some(server) => server.lives().await,
                None => false,
            }
        }
        .boxed_local()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_looked_at_before() {
        assert_eq!(lacks_memory(4 << 30, None), None);
        assert_eq!(lacks_memory(4 << 30, Some(8 << 30)), None);
        let why = lacks_memory(4 << 30, Some(4 << 30)).unwrap();
        assert_eq!(why, "it needs about 4697 MiB of memory and 4096 MiB are free");
        assert!(memory_available().is_some_and(|bytes| bytes > 0));
    }

    #[test]
    fn models_are_found_by_their_ending_and_parts_are_one() {
        let dir = crate::cli::testing::TempDir::new();
        for name in ["a.gguf", "b.GGUF", "c.bin", "d-00001-of-00002.gguf", "d-00002-of-00002.gguf"] {
            std::fs::write(dir.path().join(name), b"x").unwrap();
        }
        std::fs::create_dir(dir.path().join("e.gguf")).unwrap();
        let names: Vec<String> = find(dir.path()).1.into_iter().map(|file| file.model.name).collect();
        assert_eq!(names, ["a", "b", "d-00001-of-00002"]);
        assert!(find(&dir.path().join("none")).1.is_empty());
    }
}

//! A cell from start to stop: as a service, for one command, and as it comes back from a phrase.

use std::ffi::OsString;
use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use smol::LocalExecutor;
use smol::stream::StreamExt;

use super::again::Again;
use super::keeper::{Progress, Scope};
use super::open::{CellError, Lock, Options, Paths, open_home, open_vault};
use super::{Cell, files};
use crate::config::{POOL_EXTRA, STOP_MS};
use crate::dashboard::api::{ApiRequest, ApiResponse, Call};
use crate::dashboard::{BODY_BYTES_MAX, Dashboard};
use crate::files::brake;
use crate::files::restore::{Restored, Target};
use crate::files::watch::WatchList;
use crate::id::CellId;
use crate::placement::NodeId;
use crate::pool;
use crate::relay::{self, Hub};
use crate::service::Service;
use crate::vault::{Alert, Vault, VaultError, home_alert};

/// Observed time is saved this often.
const SAVE_TIME: Duration = Duration::from_secs(60);
/// Freed memory is given back this often.
const TRIM: Duration = Duration::from_secs(10);
/// Thinning and garbage collection.
const TIDY: Duration = Duration::from_secs(6 * 3600);
/// The first of them, after the start.
const TIDY_FIRST: Duration = Duration::from_secs(120);
/// Records that one command brings over to `manifests/` itself.
const MIRROR_AT_ONCE: u64 = 500;
/// The service manager is told how it goes this often, where it asks for no more.
const TELL_SERVICE: Duration = Duration::from_secs(30);
/// It is looked so often whether the set-up code is still good, as long as it is.
const SETUP_LOOK: Duration = Duration::from_secs(2);
/// Files that await bytes are tried again.
const RESTORE_AGAIN: Duration = Duration::from_secs(30);

/// Requests that are answered on the executor: their answers last, or are large.
const DIRECT: &[&str] = &[
    "/api/v1/events",
    "/api/v1/content",
    "/api/v1/feed/content",
    "/api/v1/archive",
    "/api/v1/uploads",
    "/v1/",
];
/// When this cell stops, those that wait at it as a relay should come back within this.
const RELAY_RESTART_SPAN: Duration = Duration::from_secs(30);

/// Threads of the pool: set before its first use, or it may grow to 500.
fn size_pool(vault_jobs: usize) {
    let threads = (vault_jobs + POOL_EXTRA).to_string();
    // SAFETY: called at start, before any other thread runs.
    unsafe { std::env::set_var("BLOCKING_MAX_THREADS", threads) };
    // Buffers of whole chunks are kept by `buffers`, each in a mapping of its own: in the heap of whichever thread made them
    // they would leave holes that nobody fits into. What is not used any more is given back when the cell is quiet.
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt only sets numbers.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 1 << 20);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 2 << 20);
        libc::mallopt(libc::M_ARENA_MAX, 2);
    }
    raise_file_limit();
}

/// As many descriptors as this process may have, up to 65,536.
pub(crate) fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let wanted = limit.maximum.map_or(65_536, |max| max.min(65_536));
    if limit.current.is_some_and(|current| current < wanted) {
        let _ = setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum: limit.maximum });
    }
}

fn prepare(paths: &Paths, options: &Options) -> Result<(Lock, Arc<Vault>), CellError> {
    let jobs = crate::config::Config::load(&paths.dir.join("config.json"))
        .ok()
        .and_then(Result::ok)
        .unwrap_or_default()
        .jobs();
    size_pool(jobs);
    if !paths.dir.join(".key").exists() {
        return Err(CellError::None(paths.dir.clone()));
    }
    let lock = Lock::take(&paths.dir)?;
    let vault = open_vault(paths, options)?;
    Ok((lock, Arc::new(vault)))
}

/// A database that was made again knows no mark yet; the one in GroveHome is believed then.
fn adopts_mark(vault: &Vault) -> Result<bool, CellError> {
    Ok(vault.db.read(|t| t.meta_u64("rebuilt_at"))?.is_some())
}

fn secret(dir: &Path) -> Result<String, CellError> {
    let path = dir.join("peer_secret");
    let text = files::read_note(&path);
    let text = text.trim();
    if text.len() < 32 {
        return Err(CellError::Other(format!(
            "{} is damaged; remove it and run `grove doctor`",
            path.display()
        )));
    }
    Ok(text.to_owned())
}

fn address(listen: &str, port: u64, what: &str) -> Result<SocketAddr, CellError> {
    let ip: IpAddr = listen.parse().map_err(|_| {
        CellError::Other(format!("config.json: \"{what}\" must be an IP address such as 0.0.0.0"))
    })?;
    Ok(SocketAddr::new(ip, port as u16))
}

/// Runs a cell until SIGTERM or SIGINT.
pub fn run(paths: &Paths, options: &Options) -> Result<(), CellError> {
    super::again::take_place(&paths.dir)?;
    let options = &super::again::ports_of_before(options);
    let (lock, vault) = prepare(paths, options)?;
    let adopt = adopts_mark(&vault)?;
    if let Err(why) = open_home(&vault, adopt) {
        // The cell stays up without its GroveHome: peers' chunks are served, and nothing is taken as deleted.
        vault.raise("home", home_alert(&why));
    }
    let executor = Rc::new(LocalExecutor::new());
    let ended = smol::block_on(executor.run(serve(Rc::clone(&executor), &lock, vault, true, None)))?;
    drop(executor);
    match ended {
        Some(again) => {
            drop(lock);
            Err(super::again::execute(again.http_port, again.peer_port))
        }
        None => Ok(()),
    }
}

/// What a running cell is stopped by: SIGTERM or SIGINT.
pub(crate) async fn stop_signal() {
    use async_signal::{Signal, Signals};
    match Signals::new([Signal::Term, Signal::Int]) {
        Ok(mut signals) => {
            if let Some(Ok(signal)) = signals.next().await {
                log::info!("stopping ({signal:?})");
            }
        }
        Err(why) => {
            log::error!("signals cannot be awaited: {why}");
            std::future::pending::<()>().await;
        }
    }
}

/// Something to do with a serving cell, after which it stops.
type Work<'a> = dyn FnMut(Rc<Cell>) -> Pin<Box<dyn Future<Output = ()>>> + 'a;

/// Serves until a signal, or until `work` says that it is done. Tells whether the cell is to be started anew.
async fn serve(
    executor: Rc<LocalExecutor<'static>>,
    lock: &Lock,
    vault: Arc<Vault>,
    says_address: bool,
    work: Option<&mut Work<'_>>,
) -> Result<Option<Again>, CellError> {
    let watch = WatchList::new().map(Arc::new);
    if let Err(why) = &watch {
        log::warn!("GroveHome is not watched, only scanned: {why}");
    }
    let cell = Cell::new(Arc::clone(&vault), Rc::clone(&executor), watch.ok());
    on_pool(&vault, super::peers::record_settings).await?;
    cell.load_drill().await?;
    cell.look_whether_fresh().await?;
    let config = &vault.config;
    let dashboard = crate::dashboard::Config {
        listen: vec![address(&config.http_listen, config.http_port, "http.listen")?],
        opened: crate::service::sockets().into_iter().map(Arc::new).collect(),
        socket_dir: vault.dir.join("run"),
        secret: secret(&vault.dir)?,
        auth_file: vault.dir.join("dashboard_auth"),
        name: cell.name.clone(),
        hosts: config.dashboard_hosts.clone(),
        body_bytes_max: BODY_BYTES_MAX,
        tls_dir: Some(vault.dir.clone()),
        fresh: Arc::clone(&cell.fresh),
        addresses: crate::routes::interfaces::list().into_iter().map(|interface| interface.ip).collect(),
    };
    let (dashboard, calls) = Dashboard::start(&executor, dashboard).map_err(|why| {
        CellError::Other(format!("the dashboard cannot listen on port {}: {why}", config.http_port))
    })?;
    let listen = address(&config.peer_listen, config.peer_port, "peer.listen")?;
    cell.start_sync(listen).await.map_err(|why| {
        CellError::Other(format!("peers cannot be listened for on port {}: {why}", config.peer_port))
    })?;
    cell.open_ai().await;
    lock.tell(dashboard.port(), cell.peer_port())
        .map_err(|why| CellError::Other(format!("cannot write the lock: {why}")))?;
    let asked = Rc::clone(&cell);
    dashboard.serve_direct(DIRECT, move |request| {
        let cell = Rc::clone(&asked);
        Box::pin(async move { cell.answer(request).await })
    });
    let asked = Rc::clone(&cell);
    dashboard.admit_keys(move |hash| asked.ai().is_some_and(|service| service.admits(hash)));
    let hub = serve_relay(&cell, &dashboard)?;
    if says_address {
        let name = cell.name.replace(crate::logger::is_odd, "\u{fffd}");
        let mut text = format!("{name} is up: http://127.0.0.1:{}/\n", dashboard.port());
        if let Some(code) = dashboard.setup_code() {
            text += &format!("To set the dashboard's password there, use the code {code}\n");
            if let Some(fingerprint) = dashboard.fingerprint() {
                text += "Over https:// the certificate is the cell's own; compare its SHA-256 fingerprint:\n";
                text += &format!("{fingerprint}\n");
            }
        }
        // Whoever reads it may be gone, as in `grove run | head`: the cell runs all the same.
        let mut out = std::io::stdout();
        let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
        note_setup_code(dashboard.setup_code());
    }
    // A cell that lives for one command is nobody's service.
    let service = Rc::new(if says_address { Service::from_env() } else { Service::default() });
    service.ready(&how_it_goes(&cell));
    let tasks = vec![
        pool::spawn(&executor, tell_service(Rc::clone(&cell), Rc::clone(&service))),
        pool::spawn(&executor, answer_calls(Rc::clone(&cell), calls)),
        pool::spawn(&executor, Rc::clone(&cell.keeper).listen()),
        pool::spawn(&executor, {
            let after = Rc::clone(&cell);
            Rc::clone(&cell.keeper).follow(move || after.after_change())
        }),
        pool::spawn(&executor, scan(Rc::clone(&cell))),
        pool::spawn(&executor, save_time(Rc::clone(&cell))),
        pool::spawn(&executor, trim(Arc::clone(&vault))),
        pool::spawn(&executor, tidy(Rc::clone(&cell))),
        pool::spawn(&executor, super::drill::keep(Rc::clone(&cell))),
        pool::spawn(&executor, super::watching::watch(Rc::clone(&cell))),
        pool::spawn(&executor, super::hook::tell_alerts(Rc::clone(&cell))),
        pool::spawn(&executor, super::history::keep(Rc::clone(&cell))),
        pool::spawn(&executor, Rc::clone(&cell).keep_ai()),
        pool::spawn(&executor, super::scrub::scrub(Rc::clone(&cell))),
        pool::spawn(&executor, super::scrub::mend(Rc::clone(&cell))),
    ];
    cell.is_service.set(says_address);
    let asked_again = async {
        cell.asked_again().await;
        true
    };
    let stopped = async {
        match work {
            Some(work) => smol::future::or(stop_signal(), work(Rc::clone(&cell))).await,
            None => stop_signal().await,
        }
        false
    };
    let noted = async {
        if says_address {
            void_setup_code(&dashboard).await;
        }
        smol::future::pending().await
    };
    let ended = smol::future::or(smol::future::or(stopped, asked_again), noted);
    let again = ended.await.then(|| Again::of(&cell, dashboard.port()));
    match again {
        // For the service manager it goes on.
        Some(_) => service.status("starting anew"),
        None => service.stopping(),
    }
    // In order: nobody asks any more, then nobody works, then what is known is saved.
    let stopping = async {
        if let Some(hub) = hub {
            hub.stop(RELAY_RESTART_SPAN).await;
        }
        dashboard.stop().await;
        for task in tasks {
            task.cancel().await;
        }
        cell.stop_ai().await;
        cell.stop_sync().await;
    };
    smol::future::or(stopping, async {
        smol::Timer::after(Duration::from_millis(STOP_MS)).await;
    })
    .await;
    let _ = on_pool(&vault, |vault| {
        vault.save_time()?;
        vault.db.checkpoint()
    })
    .await;
    Ok(again)
}

/// Puts the code for the first visit into the file that `GROVE_SETUP_FILE` names, for those who see no terminal; an empty
/// file when there is none. A code is good until the cell stops, so whoever makes the file's folder removes it then.
fn note_setup_code(code: Option<String>) {
    let Some(path) = setup_file() else { return };
    let text = code.map_or(String::new(), |code| code + "\n");
    if let Err(why) = crate::vault::write_whole(Path::new(&path), text.as_bytes()) {
        log::warn!("the set-up code cannot be written to {}: {why}", Path::new(&path).display());
    }
}

fn setup_file() -> Option<OsString> {
    std::env::var_os("GROVE_SETUP_FILE").filter(|path| !path.is_empty())
}

/// Empties that file when the code is good no more: there is a password, or it was guessed at too often.
async fn void_setup_code(dashboard: &Dashboard) {
    if setup_file().is_none() || dashboard.setup_code().is_none() {
        return;
    }
    while dashboard.setup_code().is_some() {
        smol::Timer::after(SETUP_LOOK).await;
    }
    pool::unblock(|| note_setup_code(None)).await;
}

/// One line for `systemctl status`.
fn how_it_goes(cell: &Cell) -> String {
    let peers = cell.synced().map_or(0, |sync| sync.reached().len());
    let peers = if peers == 1 { "1 peer".to_owned() } else { format!("{peers} peers") };
    match cell.vault.alerts().len() {
        0 => format!("{peers} connected"),
        1 => format!("{peers} connected; one thing needs attention (grove status)"),
        some => format!("{peers} connected; {some} things need attention (grove status)"),
    }
}

/// Feeds the watchdog, from the thread that must not get stuck, and says how it goes.
async fn tell_service(cell: Rc<Cell>, service: Rc<Service>) {
    let every = service.alive_every().unwrap_or(TELL_SERVICE);
    let mut told = String::new();
    loop {
        service.alive();
        let now = how_it_goes(&cell);
        if now != told {
            service.status(&now);
            told = now;
        }
        smol::Timer::after(every).await;
    }
}

/// Makes this cell a relay for others, if its settings say so.
fn serve_relay(cell: &Rc<Cell>, dashboard: &Dashboard) -> Result<Option<Rc<Hub>>, CellError> {
    let config = &cell.vault.config;
    if !config.relay_serve {
        return Ok(None);
    }
    let identity = relay::own_identity(&cell.vault.dir.join("relay.key"))
        .map_err(|why| CellError::Other(format!("cannot use relay.key: {why}")))?;
    let limits = relay::hub::Limits {
        clients: config.relay_clients_max as usize,
        circuits: config.relay_circuits_max as usize,
        bytes_per_s: config.relay_bytes_per_s,
        connects_per_minute: config.relay_connects_per_minute,
        ..relay::hub::Limits::default()
    };
    let asked = Rc::downgrade(cell);
    let admits = move |id: &CellId| asked.upgrade().is_some_and(|cell| cell.serves_as_relay(id));
    let hub = Hub::new(Rc::clone(&cell.executor), identity, Rc::new(admits), limits);
    *cell.hub.borrow_mut() = Rc::downgrade(&hub);
    let taking = Rc::clone(&hub);
    dashboard.serve_relay(move |asked| taking.take(asked.stream, &asked.key, asked.ahead, asked.from));
    log::info!("this cell is a relay: ws://HOST:{}/relay#{}", dashboard.port(), hub.id());
    Ok(Some(hub))
}

/// Work on the database and the disk, away from the thread that serves.
async fn on_pool<T: Send + 'static, E: Send + 'static>(
    vault: &Arc<Vault>,
    work: impl FnOnce(&Vault) -> Result<T, E> + Send + 'static,
) -> Result<T, E> {
    let vault = Arc::clone(vault);
    pool::unblock(move || work(&vault)).await
}

async fn answer_calls(cell: Rc<Cell>, calls: smol::channel::Receiver<Call>) {
    while let Ok(Call { request, reply }) = calls.recv().await {
        let asked = Rc::clone(&cell);
        pool::spawn(&cell.executor, async move { reply.send(asked.answer(request).await) }).detach();
    }
}

/// Files wait for their bytes: for cells that have them, or for room on this disk.
const AWAITING: [&str; 2] = ["awaiting", "awaiting-room"];

/// A scan at the start and every few hours; then what awaits its bytes is brought back.
async fn scan(cell: Rc<Cell>) {
    let every = Duration::from_secs(cell.vault.config.scan_hours * 3600);
    let mut next = Instant::now();
    remind_of_phrase(&cell).await;
    loop {
        if Instant::now() >= next {
            next = Instant::now() + every;
            match cell.keeper.keep(Scope::Whole, false, false, &Progress::default()).await {
                Ok(kept) => {
                    for problem in &kept.problems {
                        log::warn!("{} is not kept: {}", problem.path, problem.why);
                    }
                    if kept.files + kept.deleted > 0 {
                        log::info!("scan: {} files kept, {} deleted", kept.files, kept.deleted);
                    }
                    cell.after_change();
                }
                Err(why) => {
                    log::error!("{why}");
                    // GroveHome may come back any minute.
                    next = Instant::now() + Duration::from_secs(60).min(every);
                }
            }
            say_of_watches(&cell);
        }
        match cell.bring_back(&|_, _| {}).await {
            Ok(restored) if restored.files > 0 => {
                log::info!(
                    "{} files came back, {} are still missing",
                    restored.files,
                    restored.missing_count
                );
            }
            Ok(_) => {}
            Err(why) => log::debug!("files wait: {why}"),
        }
        let wait = next.saturating_duration_since(Instant::now()).min(RESTORE_AGAIN);
        smol::Timer::after(wait.max(Duration::from_secs(1))).await;
    }
}

fn say_of_watches(cell: &Cell) {
    if cell.keeper.watched().1 {
        cell.vault.raise(
            "watches",
            Alert {
                text: "the kernel gives no more watches; some folders of GroveHome are only scanned".into(),
                remedy: "raise fs.inotify.max_user_watches; `grove doctor` says how".into(),
            },
        );
    } else {
        cell.vault.clear("watches");
    }
}

async fn remind_of_phrase(cell: &Rc<Cell>) {
    let vault = Arc::clone(&cell.vault);
    let state = pool::unblock(move || {
        vault.db.read(|t| -> Result<_, VaultError> { Ok((t.meta_u64("phrase_kept")?, brake::load(t)?)) })
    })
    .await;
    if let Ok((kept, brake)) = state {
        if kept.is_none() {
            cell.vault.raise("phrase", Alert {
                text: "the recovery phrase is not known to be written down: without it a dead disk is the end of all files".into(),
                remedy: "run `grove phrase`".into(),
            });
        }
        if brake.is_on() {
            brake::raise(&cell.vault, &brake);
        }
    }
}

async fn save_time(cell: Rc<Cell>) {
    loop {
        let vault = Arc::clone(&cell.vault);
        if let Err(why) = pool::unblock(move || vault.save_time()).await {
            log::warn!("{why}");
        }
        smol::Timer::after(SAVE_TIME).await;
    }
}

/// Gives memory back that was freed, so that a quiet cell is small again.
async fn trim(vault: Arc<Vault>) {
    let mut uses = 0;
    loop {
        smol::Timer::after(TRIM).await;
        crate::buffers::clear();
        let asked = Arc::clone(&vault);
        match pool::unblock(move || asked.db.rest(uses)).await {
            Ok(now) => uses = now,
            Err(why) => log::debug!("{why}"),
        }
        #[cfg(target_env = "gnu")]
        // SAFETY: malloc_trim only gives unused pages back.
        pool::unblock(|| unsafe { libc::malloc_trim(0) }).await;
    }
}

async fn tidy(cell: Rc<Cell>) {
    smol::Timer::after(TIDY_FIRST).await;
    loop {
        if let Err(why) = cell.tidy().await {
            log::warn!("tidying waits: {why}");
        }
        if let Err(why) = cell.drop_old_uploads().await {
            log::warn!("old uploads stay: {why}");
        }
        smol::Timer::after(TIDY).await;
    }
}

impl Cell {
    /// Brings back what awaits its bytes, as far as its holders are reached.
    async fn bring_back(self: &Rc<Self>, told: &dyn Fn(u64, u64)) -> Result<Restored, VaultError> {
        let _one = self.restoring.lock().await;
        let vault = Arc::clone(&self.vault);
        let totals = pool::unblock(move || vault.db.read(|t| t.node_totals())).await?;
        if totals.awaiting == 0 {
            AWAITING.into_iter().for_each(|code| self.vault.clear(code));
            return Ok(Restored::default());
        }
        let restored = self.restorer().run(&Target::Home, NodeId::ROOT, told).await?;
        if restored.missing_count > 0 {
            let waits = match restored.missing_count {
                1 => "1 file waits for its bytes".to_owned(),
                files => format!("{files} files wait for their bytes"),
            };
            let [by_peers, by_room] = AWAITING;
            let (code, other, alert) = if restored.is_full {
                let alert = Alert {
                    text: format!("{waits}: this disk has no room for more"),
                    remedy: "free some space, or use a larger disk; what waits comes by itself".into(),
                };
                (by_room, by_peers, alert)
            } else {
                let silent = self.silent_peers().await.join(", ");
                let whom =
                    if silent.is_empty() { String::new() } else { format!("; not reached now: {silent}") };
                let remedy = "switch the missing peers on; what waits comes by itself";
                (by_peers, by_room, Alert { text: format!("{waits}{whom}"), remedy: remedy.into() })
            };
            self.vault.clear(other);
            self.vault.raise(code, alert);
        } else {
            AWAITING.into_iter().for_each(|code| self.vault.clear(code));
        }
        Ok(restored)
    }
}

/// A cell for one command, while no other process runs it.
pub struct Local {
    cell: Rc<Cell>,
    executor: Rc<LocalExecutor<'static>>,
    _lock: Lock,
}

impl Local {
    /// Opens the state folder; GroveHome is made if there is none.
    pub fn open(paths: &Paths, options: &Options) -> Result<Self, CellError> {
        let (lock, vault) = prepare(paths, options)?;
        let adopt = adopts_mark(&vault)?;
        if let Err(why) = open_home(&vault, adopt) {
            log::warn!("{why}");
        }
        let executor = Rc::new(LocalExecutor::new());
        let cell = Cell::new(vault, Rc::clone(&executor), None);
        Ok(Self { cell, executor, _lock: lock })
    }

    /// Answers one request; jobs go on during the next calls.
    pub fn call(&mut self, request: ApiRequest) -> ApiResponse {
        smol::block_on(self.executor.run(self.cell.answer(request)))
    }

    /// The next piece of an answer that is a stream, while the cell goes on; `None` at its end.
    pub fn receive(
        &mut self,
        pieces: &smol::channel::Receiver<std::io::Result<Vec<u8>>>,
    ) -> Option<std::io::Result<Vec<u8>>> {
        smol::block_on(self.executor.run(pieces.recv())).ok()
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        // A few manifests are mirrored at once; many are left to the running cell, which has time between its work.
        if crate::files::mirror::behind(&self.cell.vault).is_ok_and(|records| records <= MIRROR_AT_ONCE) {
            let cell = Rc::clone(&self.cell);
            smol::block_on(self.executor.run(async move { cell.keeper.mirror().await }));
        }
        let _ = self.cell.vault.save_time();
        let _ = self.cell.vault.db.checkpoint();
    }
}

/// How far a recovery is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RecoverProgress {
    /// What is being done, in words.
    pub text: String,
    /// Files and bytes that came back so far.
    pub files: u64,
    /// See `files`.
    pub bytes: u64,
    /// Files and bytes in all; 0: not known yet.
    pub files_total: u64,
    /// See `files_total`.
    pub bytes_total: u64,
}

/// What a recovery brought back.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RecoverSummary {
    /// The cell's name.
    pub name: String,
    /// Its id, 64 hexadecimal digits.
    pub id: String,
    /// The life it goes on in.
    pub life: u32,
    /// Files in the catalog, and their bytes.
    pub files: u64,
    /// See `files`.
    pub bytes: u64,
    /// Files and folders that are not back yet.
    pub waiting: u64,
    /// Bytes of them.
    pub waiting_bytes: u64,
    /// Peers in the catalog.
    pub peers: Vec<String>,
    /// Of them, those not reached.
    pub silent: Vec<String>,
    /// What is not back, and why.
    pub problems: Vec<crate::files::walk::Problem>,
}

/// Brings a cell back on an empty machine: identity and catalog from a peer, then, if `with_files`, the files as their
/// holders are reached. May be run again after any interruption, then without the phrase.
pub fn recover(
    paths: &Paths,
    options: &Options,
    phrase: Option<&str>,
    addresses: &[String],
    with_files: bool,
    progress: &mut dyn FnMut(&RecoverProgress),
) -> Result<RecoverSummary, CellError> {
    let begun = paths.dir.join("recovering");
    if paths.dir.join(".key").exists() && !begun.exists() {
        return Err(CellError::Exists(paths.dir.clone()));
    }
    if !paths.dir.join(".key").exists() {
        let Some(phrase) = phrase else {
            return Err(CellError::Other("give the recovery phrase: the 24 words of the card".into()));
        };
        // Checked before anything is written.
        crate::keys::MasterKey::from_phrase(phrase).map_err(|why| CellError::Other(why.to_string()))?;
        std::fs::create_dir_all(&paths.dir)
            .and_then(|()| crate::vault::write_whole(&begun, b"catalog\n"))
            .map_err(|why| CellError::Other(format!("cannot write {}: {why}", begun.display())))?;
        super::create(paths, None, Some(phrase))?;
    }
    let needs_catalog = files::read_note(&begun).trim() != "files";
    if needs_catalog {
        // What an interrupted try left of the database is of no use.
        for name in [
            "placement.db",
            "placement.db-wal",
            "placement.db-shm",
            "books.db",
            "books.db-wal",
            "books.db-shm",
            "catalog.head",
        ] {
            let _ = std::fs::remove_file(paths.dir.join(name));
        }
    }
    let (lock, vault) = prepare(paths, options)?;
    if needs_catalog {
        super::open::adopt_store(&vault)?;
    }
    let executor = Rc::new(LocalExecutor::new());
    smol::block_on(executor.run(async {
        let mut told =
            RecoverProgress { text: "asking for the catalog".into(), ..RecoverProgress::default() };
        progress(&told);
        let mut vault = vault;
        if needs_catalog {
            super::peers::recover_catalog(&vault, addresses).await?;
            let (paths, options, begun) = (paths.clone(), *options, begun.clone());
            let work = move || -> Result<Vault, CellError> {
                super::peers::adopt_settings(&vault)?;
                open_home(&vault, true)?;
                crate::vault::write_whole(&begun, b"files\n")
                    .map_err(|why| CellError::Other(format!("cannot write {}: {why}", begun.display())))?;
                // Opened again: settings came back with the catalog.
                drop(vault);
                open_vault(&paths, &options)
            };
            vault = Arc::new(pool::unblock(work).await?);
        }
        let totals = on_pool(&vault, |vault| vault.db.read(|t| t.node_totals())).await?;
        (told.files_total, told.bytes_total) = (totals.awaiting, totals.awaiting_bytes);
        told.text = "bringing files back".into();
        progress(&told);
        let summary = Rc::new(std::cell::RefCell::new(RecoverSummary {
            name: super::open::cell_name(&vault.config),
            id: vault.id().to_string(),
            life: vault.life(),
            files: totals.files,
            bytes: totals.bytes,
            waiting: totals.awaiting,
            ..RecoverSummary::default()
        }));
        if with_files {
            let shared = Rc::new(std::cell::RefCell::new(told));
            let (result, written) = (Rc::clone(&summary), Rc::clone(&shared));
            let mut work = |cell: Rc<Cell>| -> Pin<Box<dyn Future<Output = ()>>> {
                let (result, written) = (Rc::clone(&result), Rc::clone(&written));
                Box::pin(async move { bring_all_back(cell, result, written).await })
            };
            let serving = serve(Rc::clone(&executor), &lock, Arc::clone(&vault), false, Some(&mut work));
            let telling = async {
                loop {
                    smol::Timer::after(Duration::from_millis(200)).await;
                    progress(&shared.borrow());
                }
            };
            smol::future::or(serving, telling).await?;
        }
        let left = on_pool(&vault, |vault| vault.db.read(|t| t.node_totals())).await?;
        let waiting = left.awaiting;
        (summary.borrow_mut().waiting, summary.borrow_mut().waiting_bytes) = (waiting, left.awaiting_bytes);
        if waiting == 0 || !with_files {
            let _ = std::fs::remove_file(&begun);
        }
        let done = summary.borrow().clone();
        Ok(done)
    }))
}

/// Brings back files until all are here, or nothing more comes.
async fn bring_all_back(
    cell: Rc<Cell>,
    summary: Rc<std::cell::RefCell<RecoverSummary>>,
    told: Rc<std::cell::RefCell<RecoverProgress>>,
) {
    cell.wait_for_peers(Duration::from_secs(10)).await;
    let mut fruitless = 0;
    let mut before = u64::MAX;
    while fruitless < 3 {
        let outcome = cell
            .bring_back(&|files, bytes| {
                let mut told = told.borrow_mut();
                (told.files, told.bytes) = (files, bytes);
            })
            .await;
        match outcome {
            Ok(restored) if restored.missing_count == 0 => {
                summary.borrow_mut().problems.clear();
                break;
            }
            Ok(restored) => {
                summary.borrow_mut().problems.clone_from(&restored.missing);
                fruitless = if restored.missing_count < before { 0 } else { fruitless + 1 };
                before = restored.missing_count;
            }
            Err(why) => {
                log::error!("{why}");
                fruitless += 1;
            }
        }
        cell.wait_for_peers(Duration::from_secs(5)).await;
        smol::Timer::after(Duration::from_secs(1)).await;
    }
    let silent = cell.silent_peers().await;
    let peers = cell.peer_addresses().await.unwrap_or_default();
    let mut summary = summary.borrow_mut();
    summary.silent = silent;
    summary.peers = peers.into_iter().map(|(name, _)| name).collect();
}

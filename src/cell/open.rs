//! Opening a state folder: keys, lock, database against `catalog.head`, store. Making a new one.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::FlockOperation;

use super::files;
use crate::clock::SystemClock;
use crate::config::{Config, ConfigError};
use crate::files::marker;
use crate::id::{CellId, ChunkName, hex};
use crate::keys::MasterKey;
use crate::placement::{Db, DbError, HoldClass, HoldState, Own};
use crate::publish;
use crate::state_files::{Folder, StateFiles};
use crate::store::{self, ChunkStore, DiskStore, Held, StoreLimits};
use crate::sync::OWNERS_LOG;
use crate::vault::{Vault, VaultError, VaultParts, write_whole};

/// Where a cell lives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paths {
    /// State folder, `~/.grove`.
    pub dir: PathBuf,
    /// GroveHome.
    pub home: PathBuf,
}

/// What the command line says beside config.json.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Options {
    /// Port of the dashboard; 0: any.
    pub http_port: Option<u16>,
    /// Port for peers; 0: any.
    pub peer_port: Option<u16>,
}

/// Why a cell does not open. The text says what to do.
#[derive(Debug)]
pub enum CellError {
    /// Another process has the folder; 0: it did not say which.
    Locked { pid: u32 },
    /// There is no cell in the folder.
    None(PathBuf),
    /// There is one already.
    Exists(PathBuf),
    /// Anything else, in words.
    Other(String),
}

impl fmt::Display for CellError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Locked { pid: 0 } => {
                f.write_str("another process is at work on this cell; try again when it is done")
            }
            Self::Locked { pid } => {
                write!(
                    f,
                    "process {pid} runs this cell already; stop it first, or give another folder with --dir"
                )
            }
            Self::None(dir) => write!(
                f,
                "there is no cell in {}; make one with `grove init`, or bring yours back with `grove recover`",
                dir.display()
            ),
            Self::Exists(dir) => write!(f, "a cell lives in {} already; nothing was changed", dir.display()),
            Self::Other(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for CellError {}

impl From<VaultError> for CellError {
    fn from(why: VaultError) -> Self {
        Self::Other(why.to_string())
    }
}

impl From<DbError> for CellError {
    fn from(why: DbError) -> Self {
        Self::Other(why.to_string())
    }
}

impl From<ConfigError> for CellError {
    fn from(why: ConfigError) -> Self {
        Self::Other(why.to_string())
    }
}

fn other(doing: &str, path: &Path) -> impl FnOnce(io::Error) -> CellError {
    let text = format!("{doing} {}", path.display());
    move |why| CellError::Other(format!("{text}: {why}"))
}

/// Tries to take the lock, or to find out who has it, while a command holds it for a moment.
pub(crate) const LOCK_TRIES: u32 = 50;
/// Between two of them.
pub(crate) const LOCK_WAIT: Duration = Duration::from_millis(100);

/// The lock on a state folder, held while this lives.
#[derive(Debug)]
pub struct Lock {
    file: File,
}

impl Lock {
    /// Takes the lock, or says who has it. Waits a few seconds for a command that has it for a moment.
    pub fn take(dir: &Path) -> Result<Self, CellError> {
        let path = dir.join("lock");
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(other("cannot open", &path))?;
        let mut pid = 0;
        for attempt in 0..LOCK_TRIES {
            if attempt > 0 {
                std::thread::sleep(LOCK_WAIT);
            }
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {
                    let lock = Self { file };
                    lock.tell(0, 0).map_err(other("cannot write", &path))?;
                    return Ok(lock);
                }
                Err(rustix::io::Errno::AGAIN) => {
                    let text = files::read_note(&path);
                    let mut numbers = text.split(|c: char| !c.is_ascii_digit()).flat_map(str::parse::<u32>);
                    pid = numbers.next().unwrap_or(0);
                    // A cell that serves does not end by itself.
                    if numbers.next().is_some_and(|port| port > 0) {
                        break;
                    }
                }
                Err(why) => return Err(other("cannot lock", &path)(why.into())),
            }
        }
        Err(CellError::Locked { pid })
    }

    /// Tells other commands of this user where the cell is to be asked.
    pub fn tell(&self, http_port: u16, peer_port: u16) -> io::Result<()> {
        let text = format!(
            "{{\"pid\":{},\"http_port\":{http_port},\"peer_port\":{peer_port}}}\n",
            std::process::id()
        );
        self.file.set_len(0)?;
        std::os::unix::fs::FileExt::write_all_at(&self.file, text.as_bytes(), 0)
    }
}

impl Drop for Lock {
    /// Who takes it next has it for a moment before it says so: until then the old words would name a cell that is gone.
    fn drop(&mut self) {
        let _ = self.file.set_len(0);
    }
}

/// A cell that was made or opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CellSummary {
    /// Its id.
    pub id: CellId,
    /// Its name.
    pub name: String,
}

fn make_folder(path: &Path) -> Result<(), CellError> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(other("cannot make", path))?;
    Ok(())
}

/// Makes the state folder of a new cell, with a fresh key or the one of a phrase. GroveHome is made when it opens.
pub fn create(paths: &Paths, name: Option<&str>, phrase: Option<&str>) -> Result<CellSummary, CellError> {
    let master = match phrase {
        Some(phrase) => MasterKey::from_phrase(phrase).map_err(|why| CellError::Other(why.to_string()))?,
        None => MasterKey::generate(),
    };
    let dir = &paths.dir;
    make_folder(dir)?;
    fs::set_permissions(dir, fs::Permissions::from_mode(0o700)).map_err(other("cannot protect", dir))?;
    let _lock = Lock::take(dir)?;
    if dir.join(".key").exists() {
        return Err(CellError::Exists(dir.clone()));
    }
    // Keys of the cell alone are what an interrupted try left: nothing was kept with them.
    if ["placement.db", "catalog.head", "chunks"].iter().any(|name| dir.join(name).exists()) {
        return Err(CellError::Other(format!(
            "{} has the state of a cell but no .key; give back the key, or move the folder away and run `grove recover`",
            dir.display()
        )));
    }
    let mut config = Config::default();
    if let Some(name) = name {
        config.name = name.to_owned();
        config = Config::parse(&config.to_text())?;
    }
    let identity = master.identity(0, 0);
    let write = |name: &str, bytes: &[u8]| {
        let path = dir.join(name);
        write_whole(&path, bytes).map_err(other("cannot write", &path))
    };
    write("config.json", config.to_text().as_bytes())?;
    write("node.key", hex(&identity.seed().0).as_bytes())?;
    write("node.pub", identity.id().to_string().as_bytes())?;
    write("node_x25519.key", hex(&identity.x_secret().0).as_bytes())?;
    write("node_x25519.pub", hex(identity.x_public()).as_bytes())?;
    write("peer_secret", hex(&crate::keys::random::<32>()).as_bytes())?;
    // Last: with it the cell exists.
    write(".key", hex(master.as_bytes()).as_bytes())?;
    Ok(CellSummary { id: identity.id(), name: cell_name(&config) })
}

/// The cell's name: from config.json, or the host's.
pub fn cell_name(config: &Config) -> String {
    if !config.name.is_empty() {
        return config.name.clone();
    }
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let short: String = host.split('.').next().unwrap_or("grove").chars().take(40).collect();
    if short.is_empty() { "grove".into() } else { short }
}

/// Reads the key of the cell in a folder.
pub fn read_key(dir: &Path) -> Result<MasterKey, CellError> {
    let path = dir.join(".key");
    let text = match fs::read_to_string(&path) {
        Ok(text) => zeroize::Zeroizing::new(text),
        Err(why) if why.kind() == io::ErrorKind::NotFound => return Err(CellError::None(dir.to_owned())),
        Err(why) => return Err(other("cannot read", &path)(why)),
    };
    let bytes = crate::id::unhex(text.trim()).and_then(|bytes| bytes.try_into().ok());
    let Some(bytes) = bytes else {
        return Err(CellError::Other(format!(
            "{} is damaged; write the recovery phrase's cell anew with `grove recover`",
            path.display()
        )));
    };
    let master = MasterKey::from_bytes(bytes);
    let node = dir.join("node.key");
    let expected = hex(&master.identity(0, 0).seed().0);
    match fs::read_to_string(&node) {
        Ok(text) if text.trim() == expected => Ok(master),
        Ok(_) => Err(CellError::Other(format!(
            "{} does not follow from .key: one of them is of another cell. If .key is right, remove node.key and start again",
            node.display()
        ))),
        Err(why) if why.kind() == io::ErrorKind::NotFound => {
            write_whole(&node, expected.as_bytes()).map_err(other("cannot write", &node))?;
            Ok(master)
        }
        Err(why) => Err(other("cannot read", &node)(why)),
    }
}

/// Opens a state folder whose lock is held.
pub fn open_vault(paths: &Paths, options: &Options) -> Result<Vault, CellError> {
    let dir = &paths.dir;
    let master = read_key(dir)?;
    let config_path = dir.join("config.json");
    let mut config = Config::load(&config_path).map_err(other("cannot read", &config_path))??;
    for key in &config.unknown {
        log::warn!("config.json: \"{key}\" is not known to this version of Grove, and left alone");
    }
    if let Some(port) = options.http_port {
        config.http_port = u64::from(port);
    }
    if let Some(port) = options.peer_port {
        config.peer_port = u64::from(port);
    }
    for name in ["manifests", "grants", "invites", "models"] {
        make_folder(&dir.join(name))?;
    }
    remove_temps(dir);
    let limits = StoreLimits {
        reserve_percent: config.reserve_percent as u8,
        reserve_bytes_min: config.reserve_bytes_min,
        ..StoreLimits::default()
    };
    let (db, is_stale) = open_db(dir)?;
    let chunks = dir.join("chunks");
    // Made anew, the folder would be empty: all that should lie there would count as lost, and where only its disk is not
    // mounted, what comes in would lie below the mount.
    let missing = if store::is_made(&chunks) { 0 } else { db.read(|t| t.chunk_totals())?.0 };
    if missing > 0 {
        return Err(CellError::Other(format!(
            "the folder of chunks, {}, is not there or is empty, and {missing} chunks should be in it; {}",
            chunks.display(),
            store::away_remedy(&chunks)
        )));
    }
    let store = DiskStore::open(&chunks, limits).map_err(|why| CellError::Other(why.to_string()))?;
    let store: Arc<dyn ChunkStore> = Arc::new(store);
    let vault = Vault::new(VaultParts {
        dir: dir.clone(),
        home: paths.home.clone(),
        db,
        store,
        master,
        clock: Arc::new(SystemClock::default()),
        config,
    })?;
    if is_stale {
        rebuild(&vault)?;
    } else {
        finish(&vault);
    }
    Ok(vault)
}

/// Leftovers of files that were being put in place when power failed.
fn remove_temps(dir: &Path) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        if entry.file_name().to_string_lossy().ends_with(".tmp") {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Whether no catalog and nothing of peers was ever kept here.
fn is_unused(files: &dyn StateFiles) -> bool {
    let is_there = |name| files.len(name).ok().flatten().is_some();
    !is_there(publish::HEAD_FILE) && !is_there(OWNERS_LOG)
}

/// What to do with a placement.db that was opened.
pub(crate) enum Found {
    /// It is as new as the catalog.
    Current(Db),
    /// It is empty, and the catalog is not: it is filled again.
    Empty(Db),
    /// It is put aside, for this reason.
    Aside(String),
}

/// Judges an opened placement.db (with the word whether it is new) by `catalog.head`.
pub(crate) fn judge(opened: Result<(Db, bool), DbError>, files: &dyn StateFiles) -> Result<Found, DbError> {
    let head = publish::read_head_file(files);
    if let Err(why) = &head {
        log::error!("catalog.head: {why}");
    }
    let head = head.ok().flatten();
    match opened {
        Ok((db, true)) if is_unused(files) => Ok(Found::Current(db)),
        Ok((db, true)) => {
            log::warn!("placement.db is new, and the catalog is not: it is made again from the catalog");
            Ok(Found::Empty(db))
        }
        Ok((db, false)) => {
            let current = db.read(publish::current_head)?;
            let is_current = match (&current, &head) {
                (_, None) => true,
                (None, Some(_)) => false,
                (Some((hash, seq, _)), Some((file_hash, file_head, _))) => {
                    *seq > file_head.seq || (*seq == file_head.seq && hash == file_hash)
                }
            };
            Ok(if is_current { Found::Current(db) } else { Found::Aside("it is an old copy".into()) })
        }
        Err(why) if why.is_damaged() => Ok(Found::Aside(why.to_string())),
        Err(why) => Err(why),
    }
}

/// Opens placement.db; `true` if it had to be made anew because it was lost, damaged, or an old copy.
fn open_db(dir: &Path) -> Result<(Db, bool), CellError> {
    let path = dir.join("placement.db");
    let why = match judge(Db::open(&path), &Folder::new(dir))? {
        Found::Current(db) => return Ok((db, false)),
        Found::Empty(db) => return Ok((db, true)),
        Found::Aside(why) => why,
    };
    let aside = dir.join(format!("placement.db.set-aside-{}", hex(&crate::keys::random::<4>())));
    log::warn!(
        "placement.db is not used: {why}. It is kept as {} and made again from the catalog",
        aside.display()
    );
    for suffix in ["", "-wal", "-shm"] {
        let from = dir.join(format!("placement.db{suffix}"));
        let to = PathBuf::from(format!("{}{suffix}", aside.display()));
        match fs::rename(&from, &to) {
            Err(why) if why.kind() != io::ErrorKind::NotFound => {
                return Err(other("cannot set aside", &from)(why));
            }
            _ => {}
        }
    }
    Ok((Db::open(&path)?.0, true))
}

/// Goes on with what the last run broke off. What cannot be done now is tried again, and keeps nobody from starting.
pub(crate) fn finish(vault: &Vault) {
    if let Err(why) = publish::place_rest(vault) {
        log::error!("files that the catalog names have not all got their places: {why}; it is tried again");
    }
}

/// Fills an empty placement.db: chunks by a scan, whose they are by owners.log, files by the catalog.
pub(crate) fn rebuild(vault: &Vault) -> Result<(), CellError> {
    adopt_store(vault)?;
    let Some((hash, head, bytes)) = publish::read_head_file(&*vault.files)? else { return Ok(()) };
    if head.owner != vault.id() {
        return Err(CellError::Other(
            "catalog.head is of another cell than .key; one of them must go".into(),
        ));
    }
    publish::adopt_segments(vault, &head, |name| local_segment(vault, name))?;
    publish::adopt_head(vault, &hash, &head, &bytes, head.life)?;
    let files = publish::tree_from_catalog(vault)?;
    log::info!("placement.db was made again: {files} files, folders and links");
    Ok(())
}

fn local_segment(vault: &Vault, name: &ChunkName) -> Result<Vec<u8>, VaultError> {
    vault.local_chunk(name)?.ok_or_else(|| {
        VaultError::Refused(format!(
            "segment {} of the catalog is not in chunks/; bring the cell back from a peer: move {} away and run `grove recover`",
            name.short(),
            vault.dir.display()
        ))
    })
}

/// Notes every chunk that lies in the store, and whose it is.
pub fn adopt_store(vault: &Vault) -> Result<(), CellError> {
    let mut batch: Vec<Held> = Vec::new();
    let flush = |batch: &mut Vec<Held>| {
        vault.db.change(|t| -> Result<(), DbError> {
            for held in batch.drain(..) {
                t.put_chunk(&held.name, held.len, &held.place, Own::No)?;
            }
            Ok(())
        })
    };
    let mut failed = None;
    vault
        .store
        .scan(&mut |held| {
            batch.push(held);
            if batch.len() >= 2000 && failed.is_none() {
                failed = flush(&mut batch).err();
            }
            Ok(())
        })
        .map_err(|why| CellError::Other(why.to_string()))?;
    if let Some(why) = failed {
        return Err(why.into());
    }
    flush(&mut batch)?;
    let now = vault.now();
    vault.db.change(|t| t.set_meta_u64("rebuilt_at", now))?;
    adopt_owners(vault)?;
    Ok(crate::sync::adopt_heads(vault)?)
}

/// `owners.log`: owner, chunk, what happened (0 held, 1 released), class; see `sync::serve`.
fn adopt_owners(vault: &Vault) -> Result<(), CellError> {
    const LINE_BYTES: usize = 72;
    let mut from = 0;
    loop {
        let read = vault.files.read_part(OWNERS_LOG, from, 2000 * LINE_BYTES);
        let lines = read.map_err(VaultError::io("cannot read owners.log"))?.unwrap_or_default();
        from += lines.len() as u64;
        let is_over = lines.len() < 2000 * LINE_BYTES;
        vault.db.change(|t| -> Result<(), DbError> {
            for line in lines.chunks_exact(LINE_BYTES) {
                let (Some(owner), Some(name)) =
                    (CellId::from_slice(&line[..32]), ChunkName::from_slice(&line[32..64]))
                else {
                    continue;
                };
                let Some(row) = t.chunk(&name)? else { continue };
                let owner = t.cell(&owner)?;
                let class = if line[65] == 1 { HoldClass::Segment } else { HoldClass::Chunk };
                let state = match line[64] {
                    0 => HoldState::Held,
                    _ => HoldState::Trash,
                };
                t.put_hold(row.id, owner, class, state, vault.now())?;
            }
            Ok(())
        })?;
        if is_over {
            return Ok(());
        }
    }
}

/// Makes GroveHome where there is none, and marks it.
pub fn open_home(vault: &Vault, adopt: bool) -> Result<(), CellError> {
    Ok(marker::create(vault, adopt)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_that_was_let_go_names_nobody() {
        let dir = std::env::temp_dir().join(format!("grove-lock-{}", std::process::id()));
        fs::create_dir(&dir).unwrap();
        let lock = Lock::take(&dir).unwrap();
        lock.tell(5678, 5679).unwrap();
        let text = || fs::read_to_string(dir.join("lock")).unwrap();
        assert!(text().contains("5678"));
        assert!(matches!(Lock::take(&dir), Err(CellError::Locked { pid }) if pid == std::process::id()));
        drop(lock);
        assert_eq!(text(), "");
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_lock_that_a_command_has_for_a_moment_is_waited_for() {
        let dir = std::env::temp_dir().join(format!("grove-lock-waits-{}", std::process::id()));
        fs::create_dir(&dir).unwrap();
        let (lock, (begun, begins)) = (Lock::take(&dir).unwrap(), std::sync::mpsc::channel());
        // Not even its number is there yet.
        lock.file.set_len(0).unwrap();
        std::thread::scope(|scope| {
            let taken = scope.spawn(|| {
                begun.send(()).unwrap();
                Lock::take(&dir).map(drop)
            });
            begins.recv().unwrap();
            drop(lock);
            taken.join().unwrap().unwrap();
        });
        fs::remove_dir_all(&dir).unwrap();
    }
}

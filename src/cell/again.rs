//! A cell that starts itself anew: as it is, or as the one that a recovery phrase is of.
//!
//! The program is executed again in the same process, so that whoever started it, a terminal or a service manager, keeps
//! what it holds. A recovery is made beside the state folder by the program itself; it takes the folder's place at the next
//! start, step by step, so that a break at any point is gone on with.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use smol::future::FutureExt;
use smol::io::{AsyncReadExt, AsyncWriteExt};
use zeroize::Zeroizing;

use super::json::{Fields, Obj};
use super::open::{CellError, Options};
use super::{Cell, files};
use crate::config::Config;
use crate::dashboard::api::ApiResponse;
use crate::id::hex;
use crate::keys::{MasterKey, random};
use crate::order;
use crate::pool;
use crate::vault::{VaultError, write_whole};

/// Ports that were any, for the next start, as `HTTP,PEER`.
const PORTS_ENV: &str = "GROVE_AGAIN_PORTS";
/// The answer to who asked for it goes out first.
const PAUSE: Duration = Duration::from_millis(100);
/// Where a recovery is made.
const MADE: &str = "recovered";
/// Says that it takes the folder's place, how far that is, and where what was there goes.
const SWAP: &str = "swap";
const ASIDE: &str = "before-recovery-";
/// A peer that is asked for the catalog may take so long.
const RECOVERY_WAIT: Duration = Duration::from_secs(15 * 60);
/// Of what a failed recovery says, the end.
const SAID_BYTES_MAX: usize = 4096;

/// Stays where it is when a recovered cell takes the place of an empty one.
fn stays(name: &[u8], aside: &str) -> bool {
    let own = [&b"lock"[..], SWAP.as_bytes(), MADE.as_bytes(), aside.as_bytes(), b"run", b"uploads"];
    own.contains(&name) || name.starts_with(b"dashboard_") || name.starts_with(b"tls.")
}

/// Ports of the run before, where the command line asks for any.
pub(super) fn ports_of_before(options: &Options) -> Options {
    let told = std::env::var(PORTS_ENV).unwrap_or_default();
    let mut ports = told.split(',').map(|port| port.parse::<u16>().ok().filter(|port| *port > 0));
    let (http, peer) = (ports.next().flatten(), ports.next().flatten());
    let known =
        |asked: Option<u16>, before: Option<u16>| if asked == Some(0) { before.or(asked) } else { asked };
    Options { http_port: known(options.http_port, http), peer_port: known(options.peer_port, peer) }
}

/// Executes the program again, with the words of this run. Gives back only an error.
pub(super) fn execute(http_port: u16, peer_port: u16) -> CellError {
    let path = fs::read_link("/proc/self/exe").unwrap_or_default();
    // After an upgrade the new program lies where the old one did.
    let path = match path.as_os_str().as_bytes().strip_suffix(b" (deleted)") {
        Some(path) => PathBuf::from(std::ffi::OsStr::from_bytes(path)),
        None => path,
    };
    let path = if path.exists() { path } else { PathBuf::from("/proc/self/exe") };
    crate::service::keep_sockets();
    let mut words = std::env::args_os();
    let name: OsString = words.next().unwrap_or_else(|| "grove".into());
    let why = std::process::Command::new(&path)
        .arg0(name)
        .args(words)
        .env(PORTS_ENV, format!("{http_port},{peer_port}"))
        .exec();
    CellError::Other(format!("{} cannot be started again: {why}", path.display()))
}

/// Goes on with a recovered cell that takes the place of the one in this folder, if one does.
pub fn take_place(dir: &Path) -> Result<(), CellError> {
    let wrong = |why: io::Error| CellError::Other(format!("the recovered cell cannot take its place: {why}"));
    let note = dir.join(SWAP);
    if !note.exists() {
        return Ok(());
    }
    let text = files::read_note(&note);
    let mut words = text.split_whitespace();
    let (Some(step), Some(aside)) = (words.next(), words.next().filter(|name| name.starts_with(ASIDE)))
    else {
        return Err(CellError::Other(format!("{} is damaged; remove it", note.display())));
    };
    let (made, old) = (dir.join(MADE), dir.join(aside));
    let sync = |folder: &Path| fs::File::open(folder).and_then(|folder| folder.sync_all());
    let names = |folder: &Path| -> io::Result<Vec<OsString>> {
        fs::read_dir(folder)?.map(|entry| entry.map(|entry| entry.file_name())).collect()
    };
    if step == "out" {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&old).map_err(wrong)?;
        for name in names(dir).map_err(wrong)?.into_iter().filter(|name| !stays(name.as_bytes(), aside)) {
            fs::rename(dir.join(&name), old.join(&name)).map_err(wrong)?;
        }
        sync(&old).and_then(|()| sync(dir)).map_err(wrong)?;
        write_whole(&note, format!("in {aside}\n").as_bytes()).map_err(wrong)?;
    }
    if made.exists() {
        let mut inside = names(&made).map_err(wrong)?;
        inside.retain(|name| !stays(name.as_bytes(), aside));
        // With its key the cell is there: last.
        order::sort_by_key(&mut inside, |name| name == ".key");
        for name in inside {
            fs::rename(made.join(&name), dir.join(&name)).map_err(wrong)?;
        }
        sync(dir).map_err(wrong)?;
        fs::remove_dir_all(&made).map_err(wrong)?;
    }
    fs::remove_file(&note).map_err(wrong)?;
    sync(dir).map_err(wrong)?;
    log::info!("the recovered cell is in its place; what was there before is in {}", old.display());
    Ok(())
}

impl Cell {
    /// Stops the cell in order and starts it anew.
    pub(super) fn restart(self: &Rc<Self>) -> ApiResponse {
        if !self.is_service.get() {
            let why = "this cell runs for one command only";
            return ApiResponse::error(409, "not_running", why, "start it with `grove run`");
        }
        self.restart_soon();
        ApiResponse::ok()
    }

    fn restart_soon(self: &Rc<Self>) {
        let cell = Rc::clone(self);
        let soon = async move {
            smol::Timer::after(PAUSE).await;
            let _ = cell.again.0.try_send(());
        };
        pool::spawn(&self.executor, soon).detach();
    }

    /// Waits until somebody asks for a new start.
    pub(super) async fn asked_again(&self) {
        let _ = self.again.1.recv().await;
    }

    /// Becomes the cell that a phrase is of, as far as a peer knows it. Only a cell with nothing of its own does.
    pub(super) async fn recover(self: &Rc<Self>, fields: &Fields) -> ApiResponse {
        let (Some(phrase), Some(peer)) = (fields.str("phrase"), fields.str("peer")) else {
            return super::api::needs(if fields.str("phrase").is_none() { "phrase" } else { "peer" });
        };
        if let Err(why) = MasterKey::from_phrase(phrase) {
            return ApiResponse::error(
                400,
                "bad_phrase",
                &why.to_string(),
                "compare it with the recovery card",
            );
        }
        let peers: Vec<String> = peer
            .split(|c: char| c.is_whitespace() || c == ',')
            .filter(|peer| !peer.is_empty())
            .map(str::to_owned)
            .collect();
        let is_place = |peer: &String| {
            peer.len() <= 255 && peer.bytes().all(|c| c.is_ascii_graphic()) && !peer.starts_with('-')
        };
        if peers.is_empty() || peers.len() > 16 || !peers.iter().all(is_place) {
            let hint = "write host:port, for example 192.168.1.20:5679";
            return ApiResponse::error(400, "bad_address", "this is no address of a peer", hint);
        }
        let knows_nobody = self.peer_views().await.is_ok_and(|peers| peers.is_empty());
        let is_empty = self.fresh.load(std::sync::atomic::Ordering::Relaxed) && knows_nobody;
        if !is_empty || !self.is_service.get() {
            let why = "this cell has files or peers of its own, or its phrase is kept";
            let hint = "recover into another folder: `grove --dir FOLDER recover`";
            return ApiResponse::error(409, "not_empty", why, hint);
        }
        let (cell, phrase) = (Rc::clone(self), Zeroizing::new(phrase.to_owned()));
        self.jobs.start(&self.executor, "recover", |job| async move {
            job.say(format!("asking {} for the catalog", peers.join(", ")));
            let (dir, home) = (cell.vault.dir.clone(), cell.vault.home.clone());
            let made = dir.join(MADE);
            let emptied = made.clone();
            pool::unblock(move || match fs::remove_dir_all(&emptied) {
                Err(why) if why.kind() != io::ErrorKind::NotFound => Err(why),
                _ => Ok(()),
            })
            .await
            .map_err(VaultError::io("cannot make room for the recovery"))?;
            run_recovery(&made, &home, &peers, &phrase).await?;
            let current = cell.vault.config.clone();
            pool::unblock(move || -> Result<(), VaultError> {
                let wrong = VaultError::io("the recovered cell cannot be put in place");
                let path = made.join("config.json");
                let mut config = Config::load(&path)
                    .map_err(VaultError::io("cannot read the recovered settings"))?
                    .map_err(|why| VaultError::Refused(why.to_string()))?;
                config.keep_machine(&current);
                write_whole(&path, config.to_text().as_bytes())
                    .and_then(|()| {
                        let aside = format!("{ASIDE}{}", hex(&random::<4>()));
                        write_whole(&dir.join(SWAP), format!("out {aside}\n").as_bytes())
                    })
                    .map_err(wrong)
            })
            .await?;
            job.say("starting anew as the recovered cell");
            cell.restart_soon();
            Ok(Obj::new().bool("restarts", true).end())
        })
    }
}

/// `grove recover` for the folder `made`; the phrase goes in by its input.
async fn run_recovery(made: &Path, home: &Path, peers: &[String], phrase: &str) -> Result<(), VaultError> {
    use smol::process::{Command, Stdio};
    let doing = || VaultError::io("the recovery cannot be run");
    let mut command = Command::new("/proc/self/exe");
    command.arg("--dir").arg(made).arg("--home").arg(home).args([
        "--port",
        "0",
        "--peer-port",
        "0",
        "recover",
    ]);
    for peer in peers {
        command.arg("--peer").arg(peer);
    }
    command.arg("--no-files").env_remove(PORTS_ENV).env_remove("NOTIFY_SOCKET").env_remove("LISTEN_FDS");
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().map_err(doing())?;
    if let Some(mut input) = child.stdin.take() {
        let line = Zeroizing::new(format!("{phrase}\n"));
        input.write_all(line.as_bytes()).await.map_err(doing())?;
        input.close().await.map_err(doing())?;
    }
    let mut said = Vec::new();
    let mut error = child.stderr.take();
    let work = async {
        if let Some(error) = &mut error {
            let mut piece = [0; 1024];
            while let Ok(length @ 1..) = error.read(&mut piece).await {
                said.extend_from_slice(&piece[..length]);
                let over = said.len().saturating_sub(SAID_BYTES_MAX);
                said.drain(..over);
            }
        }
        child.status().await
    };
    let late = async {
        smol::Timer::after(RECOVERY_WAIT).await;
        Err(io::ErrorKind::TimedOut.into())
    };
    let status = work.or(late).await.map_err(doing())?;
    if status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&said);
    let lines: Vec<&str> = said.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let why = lines.last().map_or("the recovery failed", |line| line.strip_prefix("grove: ").unwrap_or(line));
    Err(VaultError::Refused(why.to_owned()))
}

/// Shared by whoever starts a cell: whether it is started anew, and with which ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Again {
    /// Ports to be had again; 0: as the settings say.
    pub http_port: u16,
    /// See `http_port`.
    pub peer_port: u16,
}

impl Again {
    /// Of a running cell.
    pub(super) fn of(cell: &Cell, http_port: u16) -> Self {
        let config = &Arc::clone(&cell.vault).config;
        Self {
            http_port: if config.http_port == 0 { http_port } else { 0 },
            peer_port: if config.peer_port == 0 { cell.peer_port() } else { 0 },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All paths below a folder with what is in the files.
    fn all(folder: &Path) -> Vec<(PathBuf, String)> {
        let mut found = Vec::new();
        for entry in fs::read_dir(folder).unwrap().flatten() {
            let path = entry.path();
            if path.is_dir() {
                found.extend(all(&path));
            } else {
                found.push((path.clone(), fs::read_to_string(&path).unwrap()));
            }
        }
        found.sort();
        found
    }

    fn before(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("grove-again-{name}-{}", hex(&random::<8>())));
        for (path, text) in [
            (".key", "old key"),
            ("placement.db", "old db"),
            ("chunks/ab/1", "old chunk"),
            ("dashboard_auth", "hash"),
            ("tls.key", "tls"),
            ("recovered/.key", "new key"),
            ("recovered/placement.db", "new db"),
            ("recovered/lock", "theirs"),
            ("swap", "out before-recovery-1\n"),
        ] {
            let path = dir.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        dir
    }

    #[test]
    fn recovered_cell_takes_the_place_whatever_breaks() {
        let whole = before("whole");
        take_place(&whole).unwrap();
        let wanted: Vec<_> = all(&whole)
            .into_iter()
            .map(|(path, text)| (path.strip_prefix(&whole).unwrap().to_owned(), text))
            .collect();
        let texts: Vec<(&str, &str)> =
            wanted.iter().map(|(path, text)| (path.to_str().unwrap(), text.as_str())).collect();
        assert_eq!(
            texts,
            [
                (".key", "new key"),
                ("before-recovery-1/.key", "old key"),
                ("before-recovery-1/chunks/ab/1", "old chunk"),
                ("before-recovery-1/placement.db", "old db"),
                ("dashboard_auth", "hash"),
                ("placement.db", "new db"),
                ("tls.key", "tls"),
            ]
        );
        take_place(&whole).unwrap();
        // Broken off after each rename there is.
        for renames in 0..5 {
            let dir = before("broken");
            let aside = dir.join("before-recovery-1");
            fs::create_dir_all(&aside).unwrap();
            let steps = [
                (".key", true),
                ("chunks", true),
                ("placement.db", true),
                ("placement.db", false),
                (".key", false),
            ];
            for (n, (name, is_out)) in steps.into_iter().take(renames).enumerate() {
                if n == 3 {
                    fs::write(dir.join("swap"), "in before-recovery-1\n").unwrap();
                }
                match is_out {
                    true => fs::rename(dir.join(name), aside.join(name)).unwrap(),
                    false => fs::rename(dir.join("recovered").join(name), dir.join(name)).unwrap(),
                }
            }
            take_place(&dir).unwrap();
            let found: Vec<_> = all(&dir)
                .into_iter()
                .map(|(path, text)| (path.strip_prefix(&dir).unwrap().to_owned(), text))
                .collect();
            assert_eq!(found, wanted, "after {renames} renames");
            fs::remove_dir_all(&dir).unwrap();
        }
        fs::remove_dir_all(&whole).unwrap();
    }

    #[test]
    fn damaged_note_moves_nothing() {
        let dir = before("damaged");
        for text in ["", "out", "out ../../etc", "out .key"] {
            fs::write(dir.join("swap"), text).unwrap();
            assert!(take_place(&dir).is_err(), "{text}");
            assert_eq!(fs::read_to_string(dir.join(".key")).unwrap(), "old key");
        }
        fs::remove_dir_all(&dir).unwrap();
    }
}

//! Pages and JSON for a browser, and the same JSON for the command line. Knows nothing of files, chunks or peers:
//! what it does not answer itself it asks of the cell, over a bounded channel.
//!
//! ```text
//! stranger --TCP--> door.rs + head.rs --Unix socket--> http.rs (tiny_http) --channel--> cell
//!                   executor, all limits               threads, pages, auth.rs
//! ```
//!
//! Promise: nothing that a stranger sends reaches tiny_http as it came, and nothing but pages, `/healthz` and the
//! entrance answers somebody who proved nothing.

pub mod api;
pub mod auth;
mod direct;
mod door;
mod head;
mod http;
pub mod openapi;
mod pages;
#[cfg(feature = "wss")]
mod tls;
mod totp;

use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::time::{Duration, Instant};

use smol::channel::Receiver;
use smol::future::FutureExt;
use smol::{Async, LocalExecutor, Task, Timer};

use crate::dashboard::api::{ApiRequest, Call};
use crate::dashboard::auth::Auth;
pub use crate::dashboard::direct::Answering;
use crate::dashboard::door::Shared;
pub use crate::dashboard::door::Upgrade;
use crate::dashboard::head::Hosts;
use crate::dashboard::http::{Context, Handlers};
use crate::pool;

/// Requests that wait for the cell; more are answered 503.
const CALLS_MAX: usize = 8;
/// Default for `Config::body_bytes_max`.
pub const BODY_BYTES_MAX: usize = 1024 * 1024;
/// When stopping, how long answers that have begun may take.
const STOP_ANSWERS: Duration = Duration::from_millis(500);
/// When stopping, how long the handlers' socket may take to close.
const STOP_HANDLERS: Duration = Duration::from_millis(400);
/// How often it is looked whether sessions were used.
const KEEP_SESSIONS: Duration = Duration::from_secs(60);
/// Longest path of a Unix socket, with room for the closing zero.
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// What the dashboard is told.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where to listen. `[::]` takes IPv4 too. With port 0 the first address gets any port, the others the same.
    pub listen: Vec<SocketAddr>,
    /// Further sockets that listen already: the service manager's.
    pub opened: Vec<Arc<TcpListener>>,
    /// Folder for the handlers' socket; made, and made 0700, if need be.
    pub socket_dir: PathBuf,
    /// The cell's own secret, as in the file `peer_secret`; at least 32 characters.
    pub secret: String,
    /// The file `dashboard_auth`.
    pub auth_file: PathBuf,
    /// The cell's name, shown before signing in.
    pub name: String,
    /// Names by which the cell may be called, beside its addresses, `localhost` and `HOSTNAME.local`.
    pub hosts: Vec<String>,
    /// Most bytes of the body of a request, see `BODY_BYTES_MAX`.
    pub body_bytes_max: usize,
    /// Where the certificate of TLS and its key are kept; `None`: no TLS.
    pub tls_dir: Option<PathBuf>,
    /// Addresses of this machine, for a certificate that is made.
    pub addresses: Vec<IpAddr>,
    /// Nothing was done with the cell yet: told to the first visitor.
    pub fresh: Arc<AtomicBool>,
}

/// The running dashboard. Dropped, it stops; `stop` lets answers that have begun come to their end.
pub struct Dashboard {
    addresses: Vec<SocketAddr>,
    auth: Arc<Auth>,
    shared: Rc<Shared>,
    accepting: Vec<Task<()>>,
    serving: Task<()>,
    handlers: Handlers,
    fingerprint: Option<[u8; 32]>,
    _folder: Option<File>,
}

impl Dashboard {
    /// Opens the port and starts the handlers; the cell answers what comes out of the receiver.
    ///
    /// The door runs on `executor`. Blocks for as long as a few files take. Fails if an address is in use, the
    /// folder cannot be made, or `dashboard_auth` is damaged; the error says which.
    pub fn start(executor: &LocalExecutor<'static>, config: Config) -> io::Result<(Self, Receiver<Call>)> {
        let mut listeners = bind_all(&config.listen)?;
        for opened in &config.opened {
            listeners.push(opened.try_clone()?);
        }
        let addresses = listeners.iter().map(TcpListener::local_addr).collect::<io::Result<Vec<_>>>()?;
        let port = addresses.first().map_or(0, SocketAddr::port);
        let auth = Arc::new(Auth::open(&config.auth_file, &config.secret, &format!("grove_{port}"))?);
        let (socket, folder) = socket_path(&config.socket_dir)?;
        let (calls, asked) = smol::channel::bounded(CALLS_MAX);
        #[cfg(feature = "wss")]
        let tls = match &config.tls_dir {
            Some(folder) => open_tls(folder, &config),
            None => None,
        };
        #[cfg(feature = "wss")]
        let fingerprint = tls.as_ref().map(|tls| tls.fingerprint);
        #[cfg(not(feature = "wss"))]
        let fingerprint = None;
        let context = Context {
            auth: Arc::clone(&auth),
            calls,
            name: config.name,
            fingerprint,
            fresh: Arc::clone(&config.fresh),
            body_bytes_max: config.body_bytes_max,
            running: AtomicUsize::new(0),
            streaming: AtomicUsize::new(0),
        };
        let handlers = Handlers::start(&socket, context)?;

        let hosts = Hosts::new(&hostname(), &config.hosts);
        let shared = Shared::new(socket, hosts, Arc::clone(&auth), config.body_bytes_max as u64);
        #[cfg(feature = "wss")]
        let shared = Shared { tls: tls.map(|tls| tls.acceptor), ..shared };
        let shared = Rc::new(shared);
        let connections = Rc::new(LocalExecutor::new());
        let mut accepting = Vec::new();
        for listener in listeners {
            let (shared, connections) = (Rc::clone(&shared), Rc::clone(&connections));
            accepting.push(pool::spawn(executor, door::accept(Async::new(listener)?, shared, connections)));
        }
        accepting.push(pool::spawn(executor, keep_sessions(Arc::clone(&auth))));
        let serving = pool::spawn(executor, async move { connections.run(std::future::pending()).await });
        let dashboard =
            Self { addresses, auth, shared, accepting, serving, handlers, fingerprint, _folder: folder };
        Ok((dashboard, asked))
    }

    /// Where it listens.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// The port of the first address.
    pub fn port(&self) -> u16 {
        self.addresses.first().map_or(0, SocketAddr::port)
    }

    /// The code for the first visit, to be printed at start; `None` once there is a password.
    pub fn setup_code(&self) -> Option<String> {
        self.auth.setup_code()
    }

    /// SHA-256 of the certificate; `None` where TLS is not spoken.
    pub fn fingerprint(&self) -> Option<String> {
        self.fingerprint.as_ref().map(fingerprint_text)
    }

    /// From now on, connections that ask for a WebSocket at `/relay` are handed to `take`, which answers them.
    pub fn serve_relay(&self, take: impl Fn(Upgrade) + 'static) {
        *self.shared.relay.borrow_mut() = Some(Rc::new(take));
    }

    /// From now on, requests whose paths begin so are answered by `handler` on the executor, from the door: their
    /// answers may last, and go out piece by piece as they come. A prefix takes itself and all below it; one that ends
    /// with a slash only what is below. Only who is signed in, or has the cell's secret, gets to the handler; below
    /// `/v1/` API keys do, too. The answer is dropped as soon as the client is gone: `Sender::send` fails then, and
    /// `Sender::closed` wakes.
    pub fn serve_direct(
        &self,
        prefixes: &[&'static str],
        handler: impl Fn(ApiRequest) -> Answering + 'static,
    ) {
        let handler: direct::Handler = Rc::new(handler);
        for prefix in prefixes {
            self.shared.direct.borrow_mut().add(prefix, Rc::clone(&handler));
        }
    }

    /// From now on, `is_key` tells by its SHA-256 whether a bearer token is an API key. Must not wait.
    pub fn admit_keys(&self, is_key: impl Fn(&[u8; 32]) -> bool + 'static) {
        *self.shared.keys.borrow_mut() = Some(Rc::new(is_key));
    }

    /// Stops within a second: no new connections, answers that have begun get half of it.
    pub async fn stop(self) {
        self.shared.closing.set(true);
        for task in self.accepting {
            task.cancel().await;
        }
        let deadline = Instant::now() + STOP_ANSWERS;
        while self.shared.active.get() > 0 && Instant::now() < deadline {
            Timer::after(Duration::from_millis(5)).await;
        }
        self.serving.cancel().await;
        self.handlers.signal();
        let ended = self.handlers.ended();
        let gone = async {
            let _ = ended.recv().await;
        };
        let late = async {
            Timer::after(STOP_HANDLERS).await;
        };
        gone.or(late).await;
    }
}

fn bind_all(addresses: &[SocketAddr]) -> io::Result<Vec<TcpListener>> {
    let mut listeners: Vec<TcpListener> = Vec::new();
    let takes_both = addresses.iter().any(|address| address.is_ipv6() && address.ip().is_unspecified());
    for address in addresses {
        if takes_both && address.is_ipv4() && address.ip().is_unspecified() {
            continue;
        }
        let mut address = *address;
        if let (0, Some(first)) = (address.port(), listeners.first()) {
            address.set_port(first.local_addr()?.port());
        }
        let listener = door::bind(address).map_err(|error| {
            let hint = match error.kind() {
                io::ErrorKind::AddrInUse => "; is another cell running? Choose another port in config.json",
                _ => "",
            };
            io::Error::new(error.kind(), format!("cannot listen on {address}: {error}{hint}"))
        })?;
        listeners.push(listener);
    }
    Ok(listeners)
}

/// A path for the socket in `folder` that a Unix socket can have, and what keeps that path alive.
fn socket_path(folder: &Path) -> io::Result<(PathBuf, Option<File>)> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    fs::set_permissions(folder, Permissions::from_mode(0o700))?;
    let socket = folder.join("dashboard.sock");
    if socket.as_os_str().len() <= SOCKET_PATH_BYTES_MAX {
        return Ok((socket, None));
    }
    let folder = File::open(folder)?;
    let socket = PathBuf::from(format!("/proc/self/fd/{}/dashboard.sock", folder.as_raw_fd()));
    Ok((socket, Some(folder)))
}

/// Notes now and then when sessions were last used.
async fn keep_sessions(auth: Arc<Auth>) {
    loop {
        Timer::after(KEEP_SESSIONS).await;
        if auth.needs_saving() {
            let auth = Arc::clone(&auth);
            pool::unblock(move || auth.save(Instant::now())).await;
        }
    }
}

/// A fingerprint as people compare it: groups of four hexadecimal digits.
pub(crate) fn fingerprint_text(fingerprint: &[u8; 32]) -> String {
    let digits = crate::id::hex(fingerprint).to_uppercase();
    let groups: Vec<&str> = (0..digits.len() / 4).map(|n| &digits[4 * n..4 * n + 4]).collect();
    groups.join(" ")
}

/// Key and certificate; without them the dashboard is there all the same.
#[cfg(feature = "wss")]
fn open_tls(folder: &Path, config: &Config) -> Option<tls::Tls> {
    let host = hostname();
    let mut names = vec!["localhost".to_owned(), host.clone()];
    names.extend(host.split('.').next().map(|first| format!("{first}.local")));
    names.extend(config.hosts.iter().cloned());
    let mut addresses =
        vec![IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), IpAddr::V6(std::net::Ipv6Addr::LOCALHOST)];
    addresses.extend(config.addresses.iter().filter(|address| !address.is_loopback()));
    let now =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |now| now.as_secs());
    match tls::Tls::open(folder, &config.name, &names, &addresses, now) {
        Ok(tls) => Some(tls),
        Err(why) => {
            log::error!("the dashboard speaks no TLS: {why}");
            None
        }
    }
}

fn hostname() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests;

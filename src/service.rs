//! The machine's service manager: what it is told (sd_notify(3)) and what it hands over (sd_listen_fds(3)). Knows nothing
//! of cells.
//!
//! Promise: without a service manager nothing happens, and nothing here ever waits.

use std::ffi::OsStr;
use std::io;
use std::net::TcpListener;
use std::os::fd::{FromRawFd, RawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// The first descriptor that is handed over.
const FDS_START: RawFd = 3;
/// More sockets than this are nobody's meaning.
const FDS_MAX: RawFd = 16;
/// Longest line about how it goes, in bytes; the rest is cut.
const STATUS_BYTES_MAX: usize = 200;

/// The service manager, if there is one that wants to be told.
#[derive(Debug, Default)]
pub struct Service {
    socket: Option<UnixDatagram>,
    watchdog: Option<Duration>,
}

impl Service {
    /// As this process's environment says.
    pub fn from_env() -> Self {
        let text = |name| std::env::var(name).ok();
        let socket = std::env::var_os("NOTIFY_SOCKET").and_then(|name| match connect(&name) {
            Ok(socket) => Some(socket),
            Err(why) => {
                log::warn!("the service manager cannot be told anything: {why}");
                None
            }
        });
        let watchdog = watchdog(text("WATCHDOG_USEC"), text("WATCHDOG_PID"), std::process::id());
        Self { watchdog: watchdog.filter(|_| socket.is_some()), socket }
    }

    /// It serves from now on. `status` is for people.
    pub fn ready(&self, status: &str) {
        self.send(&format!("READY=1\nSTATUS={}", line(status)));
    }

    /// How it goes, for people.
    pub fn status(&self, status: &str) {
        self.send(&format!("STATUS={}", line(status)));
    }

    /// It is about to end, as it should.
    pub fn stopping(&self) {
        self.send("STOPPING=1\nSTATUS=stopping");
    }

    /// How often `alive` must be said, or the service is taken for stuck and started anew. `None`: nobody asks.
    ///
    /// Twice as often as the manager's limit.
    pub fn alive_every(&self) -> Option<Duration> {
        self.watchdog
    }

    /// It is not stuck. To be said by the thread that would be.
    pub fn alive(&self) {
        self.send("WATCHDOG=1");
    }

    fn send(&self, message: &str) {
        let Some(socket) = &self.socket else { return };
        // A manager that does not listen now hears the next; waiting for it would stop the cell.
        if let Err(why) = socket.send(message.as_bytes()) {
            log::debug!("the service manager was not told: {why}");
        }
    }
}

/// `name` is a path, or a name in the abstract space after `@`.
fn connect(name: &OsStr) -> io::Result<UnixDatagram> {
    let address = match name.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(Path::new(name))?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    socket.connect_addr(&address)?;
    Ok(socket)
}

/// Half of the manager's limit, if it is meant for this process.
fn watchdog(usec: Option<String>, pid: Option<String>, own: u32) -> Option<Duration> {
    if pid.is_some_and(|pid| pid.parse() != Ok(own)) {
        return None;
    }
    let usec: u64 = usec?.parse().ok()?;
    (usec > 0).then(|| Duration::from_micros(usec / 2).max(Duration::from_millis(1)))
}

/// One line: what follows a line's end would be read as another message.
fn line(status: &str) -> String {
    let mut end = status.len().min(STATUS_BYTES_MAX);
    while !status.is_char_boundary(end) {
        end -= 1;
    }
    status[..end].chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// How many descriptors were handed over to this process.
fn handed_over(fds: Option<String>, pid: Option<String>, own: u32) -> RawFd {
    let is_meant = pid.is_some_and(|pid| pid.parse() == Ok(own));
    match fds.and_then(|fds| fds.parse().ok()) {
        Some(count @ 1..=FDS_MAX) if is_meant => count,
        _ => 0,
    }
}

/// Listening sockets that the service manager opened, for example on ports that this user may not open. The first call
/// gives them, later ones none.
pub fn sockets() -> Vec<TcpListener> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    if TAKEN.swap(true, Ordering::Relaxed) {
        return Vec::new();
    }
    let text = |name| std::env::var(name).ok();
    let count = handed_over(text("LISTEN_FDS"), text("LISTEN_PID"), std::process::id());
    (FDS_START..FDS_START + count).filter_map(listener).collect()
}

/// The program is about to be executed again in this process: what the service manager handed over is to be there again.
pub fn keep_sockets() {
    let text = |name| std::env::var(name).ok();
    let count = handed_over(text("LISTEN_FDS"), text("LISTEN_PID"), std::process::id());
    for fd in FDS_START..FDS_START + count {
        // SAFETY: only flags of a number are set; what is not open is an error that changes nothing.
        unsafe { libc::fcntl(fd, libc::F_SETFD, 0) };
    }
}

fn listener(fd: RawFd) -> Option<TcpListener> {
    // SAFETY: the manager handed this descriptor over, and it stays open under its number for as long as the process
    // lives: who starts the program anew needs it.
    let given = std::mem::ManuallyDrop::new(unsafe { TcpListener::from_raw_fd(fd) });
    let _ = rustix::io::fcntl_setfd(&*given, rustix::io::FdFlags::CLOEXEC);
    let listener = given.try_clone().ok()?;
    let is_listening = rustix::net::sockopt::socket_acceptconn(&listener).unwrap_or(false);
    match listener.local_addr() {
        Ok(_) if is_listening => {
            // Both descriptors close where the cell starts programs, which must not hold its port.
            Some(listener)
        }
        _ => {
            log::warn!("descriptor {fd} of the service manager is no listening TCP socket");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::hex;
    use crate::keys::random;

    fn some(text: &str) -> Option<String> {
        Some(text.to_owned())
    }

    fn told(socket: &UnixDatagram) -> String {
        let mut bytes = [0; 4096];
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let len = socket.recv(&mut bytes).unwrap();
        String::from_utf8(bytes[..len].to_vec()).unwrap()
    }

    #[test]
    fn manager_is_told_at_a_path_and_at_an_abstract_name() {
        let name = format!("grove-test-{}", hex(&random::<8>()));
        let path = std::env::temp_dir().join(&name);
        let abstract_name = SocketAddr::from_abstract_name(name.as_bytes()).unwrap();
        let sockets = [UnixDatagram::bind(&path).unwrap(), UnixDatagram::bind_addr(&abstract_name).unwrap()];
        let names = [path.clone().into_os_string(), format!("@{name}").into()];
        for (socket, name) in sockets.iter().zip(names) {
            let service = Service { socket: Some(connect(&name).unwrap()), watchdog: None };
            service.ready("serves on\nport 5678");
            assert_eq!(told(socket), "READY=1\nSTATUS=serves on port 5678");
            service.alive();
            assert_eq!(told(socket), "WATCHDOG=1");
            service.status("2 peers");
            assert_eq!(told(socket), "STATUS=2 peers");
            service.stopping();
            assert_eq!(told(socket), "STOPPING=1\nSTATUS=stopping");
        }
        std::fs::remove_file(path).unwrap();
        assert!(connect(OsStr::new("/nowhere/at/all")).is_err());
        // Nobody there: nothing happens.
        Service::default().ready("");
    }

    #[test]
    fn manager_that_does_not_read_is_not_waited_for() {
        let name = format!("grove-test-{}", hex(&random::<8>()));
        let _deaf = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        let socket = connect(OsStr::new(&format!("@{name}"))).unwrap();
        let service = Service { socket: Some(socket), watchdog: None };
        (0..10_000).for_each(|_| service.alive());
    }

    #[test]
    fn alive_is_said_twice_as_often_as_asked_for() {
        let ms = Duration::from_millis;
        assert_eq!(watchdog(some("30000000"), some("7"), 7), Some(ms(15_000)));
        assert_eq!(watchdog(some("30000000"), None, 7), Some(ms(15_000)));
        assert_eq!(watchdog(some("30000000"), some("8"), 7), None, "meant for another process");
        assert_eq!(watchdog(some("1"), None, 7), Some(ms(1)), "never without a pause");
        for odd in ["0", "-1", "", "x", "99999999999999999999"] {
            assert_eq!(watchdog(some(odd), None, 7), None);
        }
        assert_eq!(watchdog(None, None, 7), None);
    }

    #[test]
    fn a_status_is_one_short_line() {
        assert_eq!(line("a\nREADY=1\u{7}"), "a READY=1 ");
        assert!(line(&"é".repeat(500)).len() <= STATUS_BYTES_MAX);
    }

    #[test]
    fn sockets_of_another_process_are_not_taken() {
        assert_eq!(handed_over(some("2"), some("7"), 7), 2);
        for (fds, pid) in [("2", "8"), ("0", "7"), ("-1", "7"), ("17", "7"), ("x", "7"), ("2", "")] {
            assert_eq!(handed_over(some(fds), some(pid), 7), 0);
        }
        assert_eq!(handed_over(some("2"), None, 7), 0);
        assert_eq!(handed_over(None, some("7"), 7), 0);
    }
}

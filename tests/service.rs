//! The cell as a service: what the service manager is told, the sockets it hands over, and the note with the set-up code.

mod common;

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use common::*;

/// A service manager's ear.
struct Manager {
    socket: UnixDatagram,
    path: std::path::PathBuf,
}

impl Manager {
    fn at(folder: &Path) -> Self {
        let path = folder.join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        Self { socket, path }
    }

    fn hear(&self) -> String {
        let mut bytes = [0; 4096];
        let len = self.socket.recv(&mut bytes).expect("the service says nothing");
        String::from_utf8(bytes[..len].to_vec()).unwrap()
    }

    /// Hears until a message begins like this.
    fn hear_of(&self, start: &str) -> String {
        loop {
            let message = self.hear();
            if message.starts_with(start) {
                return message;
            }
        }
    }
}

/// Ends with the test.
struct Ends(Child);

impl Drop for Ends {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn stop(child: &mut Child) {
    rustix::process::kill_process(rustix::process::Pid::from_child(child), rustix::process::Signal::TERM)
        .unwrap();
    assert!(wait_for("the service stops", || child.try_wait().unwrap()).success());
}

#[test]
fn manager_hears_when_it_serves_that_it_lives_and_when_it_stops() {
    let folder = TempDir::new("service");
    let manager = Manager::at(folder.path());
    let note = folder.path().join("setup-code");
    let mut cell = Cell::at(folder.path(), "ann");
    cell.init("ann", &[]);
    cell.env = [("NOTIFY_SOCKET", &manager.path), ("GROVE_SETUP_FILE", &note)]
        .map(|(name, path)| (name.to_owned(), path.to_str().unwrap().to_owned()))
        .into();
    // 0.2 s: what follows must come more often.
    cell.env.push(("WATCHDOG_USEC".into(), "200000".into()));
    cell.run();
    let ready = manager.hear_of("READY=1");
    assert!(ready.contains("\nSTATUS=0 peers connected"), "{ready}");
    for _ in 0..3 {
        manager.hear_of("WATCHDOG=1");
    }
    let code = fs::read_to_string(&note).unwrap();
    assert!(cell.log().contains(&format!("use the code {}", code.trim())), "{code}");
    assert_eq!(fs::metadata(&note).unwrap().permissions().mode() & 0o777, 0o600);
    cell.stop();
    manager.hear_of("STOPPING=1");
}

#[test]
fn note_of_the_setup_code_is_emptied_when_there_is_a_password() {
    let folder = TempDir::new("service");
    let note = folder.path().join("setup-code");
    let mut cell = Cell::at(folder.path(), "ann");
    cell.init("ann", &[]);
    cell.env = vec![("GROVE_SETUP_FILE".into(), note.to_str().unwrap().into())];
    let noted = || fs::read_to_string(&note).unwrap_or_default();
    cell.run();
    wait_for("the code is noted", || (!noted().is_empty()).then_some(()));
    let set = cell.command(["password"]).stdin(Stdio::piped()).stdout(Stdio::null()).spawn();
    let mut set = set.unwrap();
    set.stdin.take().unwrap().write_all(b"a long password\n").unwrap();
    assert!(set.wait().unwrap().success());
    wait_for("the code is gone", || noted().is_empty().then_some(()));
    cell.stop();
    fs::write(&note, "of before").unwrap();
    cell.run();
    wait_for("what was noted before is gone", || noted().is_empty().then_some(()));
}

#[test]
fn manager_of_a_stuck_cell_hears_nothing_more() {
    let folder = TempDir::new("service");
    let manager = Manager::at(folder.path());
    let mut cell = Cell::at(folder.path(), "ann");
    cell.init("ann", &[]);
    cell.env.push(("NOTIFY_SOCKET".into(), manager.path.to_str().unwrap().into()));
    cell.env.push(("WATCHDOG_USEC".into(), "200000".into()));
    cell.run();
    manager.hear_of("WATCHDOG=1");
    let pid = rustix::process::Pid::from_raw(cell.pid() as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
    // What was said before it got stuck is heard, then silence.
    manager.socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    let mut bytes = [0; 4096];
    while manager.socket.recv(&mut bytes).is_ok() {}
    rustix::process::kill_process(pid, rustix::process::Signal::CONT).unwrap();
    manager.socket.set_read_timeout(Some(DEADLINE)).unwrap();
    manager.hear_of("WATCHDOG=1");
}

#[test]
fn dashboard_answers_on_sockets_that_were_handed_over_and_on_its_own() {
    let folder = TempDir::new("service");
    let cell = Cell::at(folder.path(), "ann");
    cell.init("ann", &[]);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    // The shell gives its number to the program it becomes.
    let mut command = Command::new("sh");
    command.args(["-c", "LISTEN_PID=$$ exec \"$@\"", "sh"]).arg(&cell.program);
    command.arg("--dir").arg(&cell.dir).arg("--home").arg(&cell.home).args([
        "--port",
        &free_port().to_string(),
        "--peer-port",
        &free_port().to_string(),
        "run",
    ]);
    command.env("LISTEN_FDS", "1").stdin(Stdio::null()).stdout(Stdio::piped());
    let fd = listener.as_raw_fd();
    // SAFETY: dup2 may be called between fork and exec.
    unsafe {
        command.pre_exec(move || match keep_as_third(fd) {
            true => Ok(()),
            false => Err(std::io::Error::last_os_error()),
        });
    }
    let mut child = Ends(command.spawn().unwrap());
    drop(listener);
    let mut answer = String::new();
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    write!(stream, "GET /healthz HTTP/1.1\r\nHost: localhost:{port}\r\nConnection: close\r\n\r\n").unwrap();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    // Its own port is another.
    // It answers a moment before it says where.
    let lock = cell.dir.join("lock");
    let own = wait_for("it tells its port", || {
        let text = fs::read_to_string(&lock).unwrap();
        text.ends_with('\n').then(|| number(&object(&text), "http_port") as u16).filter(|port| *port > 0)
    });
    assert_ne!(own, port);
    assert!(TcpStream::connect(("127.0.0.1", own)).is_ok());
    // Started anew it has both again, and the same number; whoever connects meanwhile waits in the kernel.
    let secret = fs::read_to_string(cell.dir.join("peer_secret")).unwrap();
    let ask = |port: u16, line: &str| -> std::io::Result<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(DEADLINE))?;
        let secret = secret.trim();
        write!(
            stream,
            "{line} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {secret}\r\nConnection: close\r\n\r\n"
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    // Each start goes by a number of its own; that nobody answers lasts for a moment only.
    let run = |port| {
        let answer = ask(port, "GET /api/v1/uploads").ok().filter(|text| text.starts_with("HTTP/1.1 200"))?;
        Some(text(&object(answer.split_once("\r\n\r\n")?.1), "run"))
    };
    let first = run(own).unwrap();
    assert!(!first.is_empty() && run(port).as_ref() == Some(&first));
    assert!(ask(port, "POST /api/v1/restart").unwrap().starts_with("HTTP/1.1 200"));
    wait_for("both ports answer again", || {
        let is_anew = |port| run(port).is_some_and(|run| run != first);
        (is_anew(port) && is_anew(own)).then_some(())
    });
    assert!(child.0.try_wait().unwrap().is_none(), "it is the same process");
    stop(&mut child.0);
}

fn keep_as_third(fd: i32) -> bool {
    // SAFETY: both change descriptors of this process alone, which is a fork that becomes another program next. A copy is
    // kept by that program; a descriptor that is there already must be told to.
    unsafe { if fd == 3 { libc::fcntl(3, libc::F_SETFD, 0) == 0 } else { libc::dup2(fd, 3) == 3 } }
}

#[test]
fn relay_tells_its_manager_too() {
    let folder = TempDir::new("service");
    let manager = Manager::at(folder.path());
    let mut command = Command::new(GROVE);
    command.arg("--dir").arg(folder.path().join("relay")).args(["relay", "--listen", "127.0.0.1:0"]);
    command.env("NOTIFY_SOCKET", &manager.path).env("WATCHDOG_USEC", "200000");
    let mut child = Ends(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    assert!(manager.hear_of("READY=1").contains("STATUS=serves at 127.0.0.1:"));
    manager.hear_of("WATCHDOG=1");
    stop(&mut child.0);
    manager.hear_of("STOPPING=1");
}

//! Network namespaces for tests: made, joined, entered, and removed with whatever runs in them.
#![allow(dead_code, reason = "each test program uses its own part")]

use std::fs::File;
use std::process::{Child, Command, Output, Stdio};
use std::thread::{self, JoinHandle};

use rustix::fd::AsFd;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Namespaces of one test; dropping it removes them.
pub struct Net {
    prefix: String,
    names: Vec<String>,
}

impl Net {
    /// Namespaces of these names with loopback up. `None`, and a word of it, where this machine cannot make any; where CI
    /// is set that is a failure.
    pub fn new(test: &str, names: &[&str]) -> Option<Self> {
        let mut net = Self { prefix: format!("grove-{}-{test}", std::process::id()), names: Vec::new() };
        for name in names {
            let made = Command::new("ip").args(["netns", "add", &net.full(name)]).output();
            match made {
                Ok(output) if output.status.success() => net.names.push((*name).into()),
                failed => {
                    skip(test, &format!("no network namespaces here: {failed:?}"));
                    return None;
                }
            }
            net.run(name, "ip link set lo up");
        }
        Some(net)
    }

    fn full(&self, name: &str) -> String {
        format!("{}-{name}", self.prefix)
    }

    fn command(&self, name: &str, program: &str, args: &[&str]) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.full(name), program]).args(args);
        command
    }

    /// Runs a line of shell in a namespace; it must succeed.
    pub fn run(&self, name: &str, line: &str) -> Output {
        let output = self.command(name, "sh", &["-c", line]).output().unwrap();
        assert!(output.status.success(), "{name}: {line}: {}", String::from_utf8_lossy(&output.stderr));
        output
    }

    /// Whether a line of shell succeeds in a namespace.
    pub fn succeeds(&self, name: &str, line: &str) -> bool {
        self.command(name, "sh", &["-c", line]).output().unwrap().status.success()
    }

    /// Starts a program in a namespace.
    pub fn start(&self, name: &str, program: &str, args: &[&str]) -> Running {
        let mut command = self.command(name, program, args);
        if std::env::var_os("GROVE_TEST_VERBOSE").is_none() {
            command.stdout(Stdio::null()).stderr(Stdio::null());
        }
        Running(command.spawn().unwrap())
    }

    /// A cable between two namespaces.
    pub fn join(&self, name: &str, device: &str, other: &str, other_device: &str) {
        let other = self.full(other);
        self.run(name, &format!("ip link add {device} type veth peer name {other_device} netns {other}"));
    }

    /// Runs `work` in a thread inside a namespace.
    pub fn enter<T: Send + 'static>(
        &self,
        name: &str,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> JoinHandle<T> {
        let path = format!("/var/run/netns/{}", self.full(name));
        thread::spawn(move || {
            let namespace = File::open(path).unwrap();
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            work()
        })
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for name in &self.names {
            let _ = Command::new("ip").args(["netns", "delete", &self.full(name)]).output();
        }
    }
}

/// A program that is killed with the test.
pub struct Running(Child);

impl Running {
    /// Kills it now, as a power cut would.
    pub fn kill(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Says that a test is skipped and why; where CI is set, nothing is.
pub fn skip(test: &str, why: &str) {
    assert!(std::env::var_os("CI").is_none(), "{test}: {why}");
    eprintln!("{test} SKIPPED: {why}");
}

//! `grove relay` on a host of its own, and two cells that nobody can dial.

use std::net::Ipv4Addr;

use super::net::{Beside, Home, Host, Internet, Net, Quality, Wire, cell_on};
use super::{Cell, GROVE, TempDir, json_text, wait_for};

pub const RELAY_PORT: u16 = 5680;
/// What a cell says of a relay that it can be called through.
const AT_RELAY: &str = "\"connected\":true";

/// A relay with a public address.
pub struct Relay {
    pub host: Host,
    pub address: Ipv4Addr,
    /// What it listens on; behind a recorder another port than its clients know.
    port: u16,
    folder: std::path::PathBuf,
    pub program: Beside,
    _line: Option<Wire>,
}

impl Relay {
    /// `line`: how it is reached, if not as fast as this machine can.
    pub fn start(net: &Net, internet: &Internet, temp: &TempDir, port: u16, line: Option<Quality>) -> Self {
        let host = net.host("relay");
        let (address, line) = match line {
            None => (internet.attach(&host, "eth0"), None),
            Some(quality) => {
                let (address, wire) = internet.attach_by_wire(&host, "eth0", quality);
                (address, Some(wire))
            }
        };
        Self::on(host, address, temp, "relay", port, line)
    }

    /// One more beside others.
    pub fn named(net: &Net, internet: &Internet, temp: &TempDir, name: &str, port: u16) -> Self {
        let host = net.host(name);
        let address = internet.attach(&host, "eth0");
        Self::on(host, address, temp, name, port, None)
    }

    fn on(host: Host, address: Ipv4Addr, temp: &TempDir, name: &str, port: u16, line: Option<Wire>) -> Self {
        let folder = temp.path().join(name);
        std::fs::create_dir_all(&folder).unwrap();
        let program = run(&host, port, &folder);
        Self { host, address, port, folder, program, _line: line }
    }

    /// The URL for `relay.urls`.
    pub fn url(&self) -> String {
        format!("ws://{}:{RELAY_PORT}", self.address)
    }

    /// The setting that names it.
    pub fn setting(&self) -> String {
        format!("[\"{}\"]", self.url())
    }

    pub fn kill(&mut self) {
        self.program.kill();
    }

    pub fn restart(&mut self) {
        self.program = run(&self.host, self.port, &self.folder);
    }
}

/// Starts it and waits until it takes connections.
fn run(host: &Host, port: u16, folder: &std::path::Path) -> Beside {
    let listen = format!("0.0.0.0:{port}");
    let mut program = Beside::start(host, &[GROVE, "relay", "--listen", &listen], &folder.join("log"));
    program.answers(host, port);
    program
}

/// Two cells in homes of their own, both on the relay, and peers.
pub struct Hidden {
    pub left: Home,
    pub right: Home,
    pub at_a: Ipv4Addr,
    pub a: Cell,
    pub b: Cell,
}

impl Hidden {
    pub fn new(net: &Net, internet: &Internet, relay: &Relay, temp: &TempDir, names: [&str; 2]) -> Self {
        let (left, right) = (net.home(internet, "left"), net.home(internet, "right"));
        let (host_a, at_a) = left.host(net, "a");
        let (host_b, _) = right.host(net, "b");
        // The address says where A will be once its router lets anybody in.
        let public = format!("[\"{}:5679\"]", left.public);
        let relays = relay.setting();
        let settings_a = [("relay.urls", relays.as_str()), ("peer.addresses", public.as_str())];
        let mut a = cell_on(&host_a, temp.path(), names[0], &settings_a);
        let mut b = cell_on(&host_b, temp.path(), names[1], &settings_a[..1]);
        a.run();
        b.run();
        for cell in [&a, &b] {
            wait_for("the cell is at the relay", || {
                json_text(&cell.get("/routes")).contains(AT_RELAY).then_some(())
            });
        }
        a.invite(&b);
        super::fleet::wait_online(&[&a, &b]);
        Self { left, right, at_a, a, b }
    }
}

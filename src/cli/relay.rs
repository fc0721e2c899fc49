//! A relay of its own: `relay`.

use std::collections::HashSet;
use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use argh::FromArgs;
use smol::{Async, LocalExecutor};

use super::ask::CliError;
use super::{Context, Word};
use crate::cell::{raise_file_limit, stop_signal};
use crate::id::CellId;
use crate::logger;
use crate::pool;
use crate::relay::hub::{CIRCUITS_MAX, Limits};
use crate::relay::{self, Hub, listener};
use crate::service::Service;

/// Where a relay listens unless something else is said.
const LISTEN: &str = "[::]:5680";
/// Largest list of allowed cells. Bytes.
const LIST_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// Clients come back within this after a stop, unless something else is said. s.
const SMEAR_S: u64 = 30;

/// run a relay, where cells that cannot reach each other meet; it needs no cell
#[derive(FromArgs, Debug, PartialEq)]
#[argh(
    subcommand,
    name = "relay",
    help_triggers("-h", "--help"),
    note = "The relay sees who talks to whom, how much and when, and nothing else. Its key is kept in relay.key in \
            the state folder (--dir). Cells wait at it when its URL is in `relay.urls` of their config.json. For \
            wss:// put an ordinary TLS proxy in front. /healthz and /metrics answer on the same port."
)]
pub struct Relay {
    /// where to listen (default [::]:5680)
    #[argh(option, arg_name = "address")]
    listen: Option<Word>,
    /// serve only these cells: an id of 64 hexadecimal digits, or a file with one id a line; may be given several
    /// times. Without it anybody is served
    #[argh(option, arg_name = "id or file")]
    allow: Vec<Word>,
    /// most cells at once (default 4096)
    #[argh(option, arg_name = "number")]
    clients: Option<usize>,
    /// most circuits of one cell at once, 1 to 64 (default 32)
    #[argh(option, arg_name = "number")]
    circuits: Option<usize>,
    /// most bytes a second taken from one cell (default: as fast as they come)
    #[argh(option, arg_name = "bytes")]
    rate: Option<u64>,
    /// most connects a minute from one address (default 60); from this machine as many as come
    #[argh(option, arg_name = "number")]
    connects: Option<u64>,
    /// seconds over which clients come back after a stop (default 30)
    #[argh(option, arg_name = "seconds", default = "SMEAR_S")]
    smear: u64,
}

impl Relay {
    pub(super) fn run(self, context: &mut Context<'_>) -> Result<(), CliError> {
        let listen = match &self.listen {
            Some(word) => word.text()?,
            None => LISTEN,
        };
        let listen: SocketAddr = listen.parse().map_err(|_| {
            CliError::Usage(format!("{listen} is no address and port such as 0.0.0.0:5680 or [::]:5680"))
        })?;
        let limits = self.limits()?;
        let allowed = self.allowed(context)?;
        logger::start(log::LevelFilter::Info);
        raise_file_limit();
        fs::create_dir_all(&context.paths.dir).map_err(CliError::io("making the state folder"))?;
        let key = context.paths.dir.join("relay.key");
        let identity =
            relay::own_identity(&key).map_err(CliError::io(format!("reading {}", key.display())))?;
        let listener = listener::bind(listen).map_err(CliError::io(format!("listening on {listen}")))?;
        let address = listener.local_addr().map_err(CliError::io("listening"))?;
        writeln!(context.out, "The relay is up: {}", url(address, &identity.id()))?;
        context.out.flush()?;
        if address.ip().is_unspecified() {
            let _ = writeln!(context.err, "HOST is the name or address of this machine, as cells reach it.");
        }
        if allowed.is_none() {
            log::info!("this relay serves anybody; --allow names whom it serves alone");
        }
        let admits = move |id: &CellId| allowed.as_ref().is_none_or(|allowed| allowed.contains(id));
        let executor = Rc::new(LocalExecutor::new());
        let hub = Hub::new(Rc::clone(&executor), identity, Rc::new(admits), limits);
        let smear = Duration::from_secs(self.smear);
        let listener = Async::new(listener).map_err(CliError::io("listening"))?;
        smol::block_on(executor.run(async {
            let accepting =
                pool::spawn(&executor, listener::accept(listener, Rc::clone(&hub), Rc::clone(&executor)));
            let service = Service::from_env();
            service.ready(&format!("serves at {address}"));
            smol::future::or(stop_signal(), feed_watchdog(&service)).await;
            service.stopping();
            accepting.cancel().await;
            hub.stop(smear).await;
        }));
        Ok(())
    }

    fn limits(&self) -> Result<Limits, CliError> {
        let defaults = Limits::default();
        let circuits = self.circuits.unwrap_or(defaults.circuits);
        if !(1..=CIRCUITS_MAX).contains(&circuits) {
            return Err(CliError::Usage(format!("--circuits takes 1 to {CIRCUITS_MAX}")));
        }
        Ok(Limits {
            clients: self.clients.unwrap_or(defaults.clients),
            circuits,
            bytes_per_s: self.rate.unwrap_or(defaults.bytes_per_s),
            connects_per_minute: self.connects.unwrap_or(defaults.connects_per_minute),
            ..defaults
        })
    }

    /// Who is served; `None` for anybody.
    fn allowed(&self, context: &Context<'_>) -> Result<Option<HashSet<CellId>>, CliError> {
        if self.allow.is_empty() {
            return Ok(None);
        }
        let mut allowed = HashSet::new();
        for word in &self.allow {
            match word.text().ok().and_then(|text| text.parse().ok()) {
                Some(id) => drop(allowed.insert(id)),
                None => read_list(&word.path(&context.cwd), &mut allowed)?,
            }
        }
        Ok(Some(allowed))
    }
}

/// Under which URL cells wait at it; one that listens at every address of the machine is to be named by its host.
fn url(address: SocketAddr, id: &CellId) -> String {
    match address.ip().is_unspecified() {
        true => format!("ws://HOST:{}/relay#{id}", address.port()),
        false => format!("ws://{address}/relay#{id}"),
    }
}

/// Says to the service manager that this thread is not stuck; never ends.
async fn feed_watchdog(service: &Service) {
    let Some(every) = service.alive_every() else { return std::future::pending().await };
    loop {
        service.alive();
        smol::Timer::after(every).await;
    }
}

/// Adds the ids in a file: one a line, with what follows `#` for people.
fn read_list(path: &PathBuf, allowed: &mut HashSet<CellId>) -> Result<(), CliError> {
    let doing = || format!("reading {}", path.display());
    let meta = fs::metadata(path).map_err(CliError::io(doing()))?;
    if meta.len() > LIST_BYTES_MAX {
        return Err(CliError::new(format!("{} is too long for a list of ids", path.display()), ""));
    }
    let text = fs::read_to_string(path).map_err(CliError::io(doing()))?;
    for (number, line) in text.lines().enumerate() {
        let id = line.split('#').next().unwrap_or_default().trim();
        if id.is_empty() {
            continue;
        }
        let id = id.parse().map_err(|_| {
            let message = format!("line {} of {} is no id", number + 1, path.display());
            CliError::new(message, "an id has 64 hexadecimal digits; see `grove peers --json`")
        })?;
        allowed.insert(id);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::testing::{Fake, grove};

    #[test]
    fn a_url_names_a_host_that_cells_can_reach() {
        let id: CellId = "ab".repeat(32).parse().unwrap();
        for (address, told) in [
            ("[::]:5680", "ws://HOST:5680/relay#ab"),
            ("0.0.0.0:80", "ws://HOST:80/relay#ab"),
            ("[fd00::1]:5680", "ws://[fd00::1]:5680/relay#ab"),
            ("192.168.1.20:5680", "ws://192.168.1.20:5680/relay#ab"),
        ] {
            let url = url(address.parse().unwrap(), &id);
            assert!(url.starts_with(told), "{url}");
            // What is put in the place of HOST makes a URL that cells take.
            let url: relay::url::Url = url.replace("HOST", "relay.example").parse().unwrap();
            assert_eq!(url.hub, Some(id));
        }
    }

    #[test]
    fn words_that_make_no_sense_are_refused_before_anything_is_opened() {
        let fake = Fake::default();
        for (line, code) in [
            ("relay --listen nowhere", 2),
            ("relay --listen 5680", 2),
            ("relay --circuits 0", 2),
            ("relay --circuits 65", 2),
            ("relay --allow no-such-file", 1),
        ] {
            let told = grove(&fake, line, "");
            assert_eq!((told.code, told.out.as_str()), (code, ""), "{line}: {told:?}");
            assert!(told.err.starts_with("grove: "), "{told:?}");
        }
    }
}

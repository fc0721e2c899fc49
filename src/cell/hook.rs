//! `alerts.command`: a program of the user's own that is told when an alert begins and when it is over, so that mail or
//! push can be attached. Named in config.json only; run without a shell, one at a time, for a bounded time.

use std::io::{self, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::Cell;
use super::json::Obj;
use crate::alerts::{Event, Telling};
use crate::pool;
use crate::vault::{Vault, VaultError};

/// A program that takes longer is ended.
const TIME_MAX: Duration = Duration::from_secs(30);
/// It is looked at this often.
const LOOK: Duration = Duration::from_millis(50);
/// Of its output, so many bytes go to the log.
const OUTPUT_MAX: usize = 4096;
/// What could not be told, for too much was told lately, is tried again after this.
const AGAIN: Duration = Duration::from_secs(60);
const TOLD_KEY: &str = "alerts_told";

/// What a program is given: its words, the environment besides, and its standard input.
struct Call {
    words: Vec<String>,
    env: Vec<(&'static str, String)>,
    input: String,
}

impl Call {
    fn new(command: &[String], cell: &str, event: &Event) -> Self {
        let (text, remedy) = event.words();
        let (code, level) = (event.alert.code.clone(), event.alert.level.as_str());
        let since = event.alert.since_wall;
        let input = Obj::new()
            .str("cell", cell)
            .str("code", &code)
            .str("state", event.state())
            .str("level", level)
            .str("text", &text)
            .str("remedy", &remedy)
            .num("since_unix", since)
            .end();
        let env = vec![
            ("GROVE_ALERT_CELL", cell.chars().filter(|c| *c != '\0').collect()),
            ("GROVE_ALERT_CODE", code),
            ("GROVE_ALERT_STATE", event.state().to_owned()),
            ("GROVE_ALERT_LEVEL", level.to_owned()),
            ("GROVE_ALERT_TEXT", text),
            ("GROVE_ALERT_REMEDY", remedy),
            ("GROVE_ALERT_SINCE", since.to_string()),
        ];
        Self { words: command.to_vec(), env, input: input + "\n" }
    }

    /// Runs it to its end, or for `time_max`. Gives its output, and what went wrong.
    fn run(self, time_max: Duration) -> (String, Result<(), String>) {
        let Some((program, words)) = self.words.split_first() else { return (String::new(), Ok(())) };
        let spawned = Command::new(program)
            .args(words)
            .envs(self.env)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // A group of its own, so that what it starts ends with it.
            .process_group(0)
            .spawn();
        let mut child = match spawned {
            Ok(child) => child,
            Err(why) => return (String::new(), Err(format!("it cannot be started: {why}"))),
        };
        let mut output = Vec::new();
        let outcome = watch(&mut child, self.input.as_bytes(), &mut output, time_max);
        (String::from_utf8_lossy(&output).into_owned(), outcome)
    }
}

fn kill(child: &mut Child) {
    if let Some(pid) = rustix::process::Pid::from_raw(child.id() as i32) {
        let _ = rustix::process::kill_process_group(pid, rustix::process::Signal::KILL);
    }
    let _ = child.wait();
}

/// Reads what is there now; `false` at the end.
fn read_some(from: &mut impl Read, output: &mut Vec<u8>) -> bool {
    let mut piece = [0; 1024];
    loop {
        match from.read(&mut piece) {
            Ok(0) => return false,
            Ok(len) => {
                let room = OUTPUT_MAX.saturating_sub(output.len());
                output.extend_from_slice(&piece[..len.min(room)]);
            }
            Err(why) => return why.kind() == io::ErrorKind::WouldBlock,
        }
    }
}

fn watch(
    child: &mut Child,
    mut input: &[u8],
    output: &mut Vec<u8>,
    time_max: Duration,
) -> Result<(), String> {
    let (mut stdin, out, err) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let (Some(mut out), Some(mut err)) = (out, err) else { return Err("it has no streams".into()) };
    let quick = [rustix::io::ioctl_fionbio(&out, true), rustix::io::ioctl_fionbio(&err, true)];
    if let Some(stdin) = &stdin {
        let _ = rustix::io::ioctl_fionbio(stdin, true);
    }
    if let Some(why) = quick.into_iter().find_map(Result::err) {
        kill(child);
        return Err(why.to_string());
    }
    let end = Instant::now() + time_max;
    loop {
        if let Some(pipe) = &mut stdin {
            match pipe.write(input) {
                Ok(len) => input = &input[len..],
                Err(why) if why.kind() == io::ErrorKind::WouldBlock => {}
                // It does not want to know.
                Err(_) => input = &[],
            }
            if input.is_empty() {
                stdin = None;
            }
        }
        read_some(&mut out, output);
        read_some(&mut err, output);
        match child.try_wait() {
            Ok(Some(status)) => {
                read_some(&mut out, output);
                read_some(&mut err, output);
                return if status.success() { Ok(()) } else { Err(format!("it ended with {status}")) };
            }
            Ok(None) if Instant::now() >= end => {
                kill(child);
                return Err(format!("it was ended after {} s", time_max.as_secs()));
            }
            Ok(None) => thread::sleep(LOOK),
            Err(why) => {
                kill(child);
                return Err(why.to_string());
            }
        }
    }
}

/// Runs a program in a thread of its own: the pool's few have better to do than to wait. Gives what `Call::run` gives.
async fn run(call: Call) -> (String, Result<(), String>) {
    let (sender, receiver) = smol::channel::bounded(1);
    let spawned = thread::Builder::new().name("alert".into()).spawn(move || {
        let _ = sender.try_send(call.run(TIME_MAX));
    });
    match spawned {
        Ok(_) => receiver.recv().await.unwrap_or_else(|_| (String::new(), Err("its thread ended".into()))),
        Err(why) => (String::new(), Err(why.to_string())),
    }
}

fn log(program: &str, output: &str, outcome: Result<(), String>) {
    for line in output.lines() {
        log::info!("alerts.command: {}", line.replace(crate::logger::is_odd, " "));
    }
    if let Err(why) = outcome {
        log::warn!("alerts.command {program}: {why}");
    }
}

async fn on_pool<T: Send + 'static>(
    vault: &Arc<Vault>,
    work: impl FnOnce(&Vault) -> Result<T, VaultError> + Send + 'static,
) -> Result<T, VaultError> {
    let vault = Arc::clone(vault);
    pool::unblock(move || work(&vault)).await
}

/// Tells the program of `alerts.command`, if there is one, of every change.
pub(super) async fn tell_alerts(cell: Rc<Cell>) {
    let command = cell.vault.config.alerts_command.clone();
    if command.is_empty() {
        return;
    }
    let known = on_pool(&cell.vault, |vault| Ok(vault.db.read(|t| t.meta(TOLD_KEY))?)).await;
    let text = known.ok().flatten().and_then(|text| String::from_utf8(text).ok()).unwrap_or_default();
    let mut telling = Telling::load(&text);
    let news = cell.vault.alert_news();
    loop {
        let vault = &cell.vault;
        let event =
            telling.next(vault.clock.steady(), &vault.alerts(), |code| vault.is_alert_remembered(code));
        let Some(event) = event else {
            let heard = async { news.recv().await.is_ok() };
            let waited = async {
                smol::Timer::after(AGAIN).await;
                true
            };
            if !smol::future::or(heard, waited).await {
                return;
            }
            continue;
        };
        // A stop in between tells it once more after the start: better twice than never.
        let (output, outcome) = run(Call::new(&command, &cell.name, &event)).await;
        let told = telling.to_text();
        let saved =
            on_pool(vault, move |vault| Ok(vault.db.change(|t| t.set_meta(TOLD_KEY, told.as_bytes()))?));
        if let Err(why) = saved.await {
            log::warn!("{why}");
        }
        log(&command[0], &output, outcome);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::alerts::{Alert, Level, Raised};

    fn event() -> Event {
        let alert = Alert { text: "a \"disk\"\0\n".into(), remedy: "look".into() };
        Event {
            is_raised: true,
            alert: Raised { code: "disk-low".into(), level: Level::Warn, alert, since: 1, since_wall: 7 },
        }
    }

    fn shell(script: &str, time_max: Duration) -> (String, Result<(), String>) {
        let command = ["sh", "-c", script].map(str::to_owned);
        Call::new(&command, "ann", &event()).run(time_max)
    }

    #[test]
    fn a_program_gets_the_alert_on_its_input_and_in_its_environment() {
        let (said, outcome) = shell("cat; echo $GROVE_ALERT_CODE $GROVE_ALERT_STATE >&2", TIME_MAX);
        assert_eq!(outcome, Ok(()));
        let line = said.lines().next().unwrap();
        assert_eq!(
            line,
            r#"{"cell":"ann","code":"disk-low","state":"raised","level":"warn","text":"a \"disk\"  ","remedy":"look","since_unix":7}"#
        );
        assert!(said.ends_with("disk-low raised\n"), "{said}");
    }

    #[test]
    fn a_program_that_fails_hangs_or_floods_does_no_harm() {
        assert!(shell("exit 3", TIME_MAX).1.unwrap_err().contains("3"));
        let begun = Instant::now();
        let (_, outcome) = shell("sleep 1000 & sleep 1000", Duration::from_millis(200));
        assert!(outcome.unwrap_err().contains("ended after"));
        assert!(begun.elapsed() < Duration::from_secs(100));
        let (said, outcome) = shell("exec 0<&-; head -c 100000 /dev/zero", TIME_MAX);
        assert_eq!((said.len(), outcome), (OUTPUT_MAX, Ok(())));
        let missing = Call::new(&["/nowhere/at all".into()], "ann", &event()).run(TIME_MAX);
        assert!(missing.1.unwrap_err().contains("cannot be started"));
    }
}

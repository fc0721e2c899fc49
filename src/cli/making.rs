//! Cells begin, run and come back: `init`, `run`, `recover`.

use std::fs;
use std::time::Instant;

use argh::FromArgs;
use zeroize::Zeroizing;

use super::ask::{CliError, Holder, holder, lives_in};
use super::job::{Line, Progress};
use super::{Context, RecoverWish, Word, show, terminal};
use crate::card::is_place;
use crate::files::unix::from_wire;
use crate::keys::MasterKey;
use crate::{logger, recovery_card};

/// Times a person may type the phrase.
const PHRASE_TRIES: u32 = 5;
/// Longest file with a phrase. Bytes.
const PHRASE_FILE_BYTES_MAX: u64 = 64 * 1024;
/// Problems that are named; the rest is counted.
const PROBLEMS_SHOWN_MAX: usize = 1000;

/// make a cell here
#[derive(FromArgs, Debug, PartialEq)]
#[argh(subcommand, name = "init", help_triggers("-h", "--help"))]
pub struct Init {
    /// what the cell is called (default: this machine's name)
    #[argh(option, arg_name = "name")]
    name: Option<Word>,
    /// bring back the cell that a recovery phrase is of, without its files; the phrase is asked for or piped in
    #[argh(switch)]
    from_phrase: bool,
}

impl Init {
    pub(super) fn run(self, context: &mut Context<'_>) -> Result<(), CliError> {
        refuse_second(context)?;
        let name = self.name.as_ref().map(Word::text).transpose()?;
        let phrase = match self.from_phrase {
            true => Some(ask_phrase(context)?.0),
            false => None,
        };
        let made =
            context.house.create(&context.paths, name, phrase.as_ref().map(|phrase| phrase.as_str()))?;
        let id = made.id.get(..16).unwrap_or(&made.id);
        writeln!(
            context.out,
            "The cell {} ({id}) lives in {}.",
            show::text(&made.name),
            context.paths.dir.display()
        )?;
        writeln!(context.out, "It keeps what is in {}.", context.paths.home.display())?;
        writeln!(context.out)?;
        writeln!(context.out, "Next:")?;
        writeln!(
            context.out,
            "  grove phrase    prints the recovery card: write it down, keep it away from this machine"
        )?;
        writeln!(context.out, "  grove run       starts the cell")?;
        writeln!(
            context.out,
            "  grove invite    while it runs: brings in a second cell, which holds copies of your files"
        )?;
        Ok(())
    }
}

fn refuse_second(context: &Context<'_>) -> Result<(), CliError> {
    if !lives_in(&context.paths.dir) {
        return Ok(());
    }
    Err(CliError::new(
        format!("a cell lives in {} already", context.paths.dir.display()),
        "use it, or name another folder with --dir",
    ))
}

/// run the cell until Ctrl-C or SIGTERM
#[derive(FromArgs, Debug, PartialEq)]
#[argh(
    subcommand,
    name = "run",
    help_triggers("-h", "--help"),
    note = "As a service it tells systemd when it serves and how it goes, and feeds its watchdog (Type=notify, \
            WatchdogSec=); sockets that systemd opened are served as the dashboard's. While there is no password, the \
            set-up code is also put into the file that GROVE_SETUP_FILE names."
)]
pub struct Run {
    /// make a cell first if there is none here
    #[argh(switch)]
    init: bool,
}

impl Run {
    pub(super) fn run(self, context: &mut Context<'_>) -> Result<(), CliError> {
        // A recovery that was put in place half-way leaves no key for a moment.
        if let Holder::Nobody = holder(&context.paths.dir)? {
            crate::cell::take_place(&context.paths.dir)?;
        }
        if self.init && !lives_in(&context.paths.dir) {
            let made = context.house.create(&context.paths, None, None)?;
            writeln!(
                context.out,
                "Made the cell {} in {}.",
                show::text(&made.name),
                context.paths.dir.display()
            )?;
            context.out.flush()?;
        }
        super::ask::need_cell(&context.paths)?;
        if let Holder::Cell(port) = holder(&context.paths.dir)? {
            let who = super::ask::holder_pid(&context.paths.dir)
                .map_or(String::new(), |pid| format!(", as process {pid}"));
            let message = format!("the cell in {} runs already{who}", context.paths.dir.display());
            return Err(CliError::new(message, format!("its dashboard is http://localhost:{port}/")));
        }
        super::ask::need_catalog(&context.paths)?;
        context.house.run(&context.paths, &context.options)
    }
}

/// bring back a cell and its files on an empty machine, from the recovery phrase and the address of a peer
#[derive(FromArgs, Debug, PartialEq)]
#[argh(
    subcommand,
    name = "recover",
    help_triggers("-h", "--help"),
    note = "The 24 words are asked for, or come from a pipe or --phrase-file. A whole recovery card does as well: \
            its addresses are used. Any spacing, any case, and the first four letters of a word will do. A recovery \
            that was cut off goes on when started again."
)]
pub struct Recover {
    /// where a peer listens, for example 192.168.1.20:5679; may be given several times
    #[argh(option, arg_name = "address")]
    peer: Vec<Word>,
    /// read the phrase, or the recovery card, from this file
    #[argh(option, arg_name = "file")]
    phrase_file: Option<Word>,
    /// bring back the cell and what it knows, but no files yet
    #[argh(switch)]
    no_files: bool,
}

impl Recover {
    pub(super) fn run(self, context: &mut Context<'_>) -> Result<(), CliError> {
        // A recovery that was cut off leaves a cell behind: whether it may go on there is the cell's to say.
        if let Holder::Cell(_) = holder(&context.paths.dir)? {
            let message = format!("a cell runs in {}", context.paths.dir.display());
            return Err(CliError::new(message, "stop it first, or name another folder with --dir"));
        }
        let mut addresses = Vec::new();
        for peer in &self.peer {
            let text = peer.text()?;
            if !is_place(text) {
                let why = format!("\"{text}\" is no address; write host:port, for example 192.168.1.20:5679");
                return Err(CliError::Usage(why));
            }
            addresses.push(text.to_owned());
        }
        let (phrase, more) = match &self.phrase_file {
            Some(file) => phrase_from_file(context, file)?,
            None => ask_phrase(context)?,
        };
        for address in more {
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
        if addresses.is_empty() {
            return Err(CliError::Usage(
                "say where a peer is: --peer host:port, as on the recovery card".to_owned(),
            ));
        }

        logger::start(log::LevelFilter::Warn);
        let mut line = Line::new(context.terminals.err);
        let (house, paths, options) = (context.house, context.paths.clone(), context.options.clone());
        let wish = RecoverWish { phrase: &phrase, addresses: &addresses, with_files: !self.no_files };
        let recovered = house.recover(&paths, &options, wish, &mut |progress| {
            let progress = Progress {
                text: progress.text.clone(),
                done: progress.done,
                total: progress.total,
                unit: progress.unit.clone(),
            };
            line.show(context, &progress, Instant::now());
        });
        line.clear(context);
        let recovered = recovered?;

        let id = recovered.id.get(..16).unwrap_or(&recovered.id);
        let out = &mut *context.out;
        writeln!(
            out,
            "The cell {} ({id}) is back, in its life {}.",
            show::text(&recovered.name),
            recovered.life
        )?;
        let known = show::of(recovered.files_known, "file", "files");
        match self.no_files {
            true => writeln!(out, "It knows {known}; `grove restore --all` brings them back.")?,
            false => {
                let (files, bytes) = (show::count(recovered.files), show::bytes(recovered.bytes));
                writeln!(out, "{files} of {known} are back ({bytes}), in {}.", paths.home.display())?;
                if recovered.files < recovered.files_known {
                    writeln!(out, "The rest comes while the cell runs, as its holders are reached.")?;
                }
            }
        }
        if !recovered.peers.is_empty() {
            writeln!(out, "Peers: {}.", names(&recovered.peers))?;
        }
        if !recovered.peers_missing.is_empty() {
            writeln!(out, "Not reached yet: {}.", names(&recovered.peers_missing))?;
        }
        writeln!(out, "Start it with `grove run`.")?;
        out.flush()?;
        for (path, why) in recovered.problems.iter().take(PROBLEMS_SHOWN_MAX) {
            let path = show::name(&from_wire(path));
            let _ = writeln!(context.err, "grove: {path}: {}", show::text(why));
        }
        match recovered.problems.len() {
            0 => Ok(()),
            more if more > PROBLEMS_SHOWN_MAX => {
                let more = show::count((more - PROBLEMS_SHOWN_MAX) as u64);
                Err(CliError::new(format!("{more} files more could not be brought back"), ""))
            }
            _ => Err(CliError::Told),
        }
    }
}

fn names(names: &[String]) -> String {
    names.iter().map(|name| show::text(name)).collect::<Vec<_>>().join(", ")
}

type PhraseAndAddresses = (Zeroizing<String>, Vec<String>);

fn phrase_from_file(context: &Context<'_>, file: &Word) -> Result<PhraseAndAddresses, CliError> {
    let path = file.path(&context.cwd);
    let doing = || format!("reading {}", path.display());
    let mut file = fs::File::open(&path).map_err(CliError::io(doing()))?;
    if file.metadata().map_err(CliError::io(doing()))?.len() > PHRASE_FILE_BYTES_MAX {
        return Err(CliError::new(format!("{} is too long for a recovery card", path.display()), ""));
    }
    check(&terminal::read_all(&mut file)?)
}

fn check(text: &str) -> Result<PhraseAndAddresses, CliError> {
    let (phrase, addresses) = recovery_card::read(text);
    match MasterKey::from_phrase(&phrase) {
        Ok(key) => Ok((key.phrase(), addresses)),
        Err(why) => {
            Err(CliError::new(why.to_string(), "the phrase stands on the recovery card (`grove phrase`)"))
        }
    }
}

/// Asks a person, or reads what is piped in. The phrase that comes back is a sound one.
fn ask_phrase(context: &mut Context<'_>) -> Result<PhraseAndAddresses, CliError> {
    if !context.terminals.input {
        return check(&terminal::read_all(&mut context.input)?);
    }
    for attempt in 1..=PHRASE_TRIES {
        writeln!(context.err, "Type the 24 words, or paste the recovery card, and then an empty line:")?;
        // With room for all of it, so that growing leaves no copies.
        let mut text = Zeroizing::new(String::with_capacity(8192));
        let mut is_whole = false;
        while let Some(line) = terminal::read_line(context.input)? {
            // Cards have empty lines in them: one ends the phrase when there are words enough, or none at all follow.
            if line.trim().is_empty() && (is_whole || text.split_whitespace().count() >= 24) {
                break;
            }
            if line.trim().is_empty() && attempt_is_over(&text) {
                break;
            }
            if text.len() + line.len() < 8000 {
                text.push_str(&line);
                text.push('\n');
            }
            is_whole = MasterKey::from_phrase(&recovery_card::read(&text).0).is_ok();
        }
        match check(&text) {
            Ok(found) => return Ok(found),
            Err(error) if attempt == PHRASE_TRIES || text.trim().is_empty() => return Err(error),
            Err(CliError::Failed { message, .. }) => writeln!(context.err, "{message}\n")?,
            Err(error) => return Err(error),
        }
    }
    unreachable!("the last try returns")
}

/// Whether an empty line after `text` ends what was typed although it is too short: it is no beginning of a card.
fn attempt_is_over(text: &str) -> bool {
    !text.lines().any(|line| {
        line.to_ascii_lowercase().contains("grove") || line.to_ascii_lowercase().starts_with("cell:")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::testing::{Fake, Setup, grove};

    fn words() -> String {
        MasterKey::from_bytes([9; 32]).phrase().to_string()
    }

    #[test]
    fn second_cell_in_a_folder_is_refused() {
        let setup = Setup::new();
        let told = setup.grove("init --name ann", "");
        assert_eq!(told.code, 1);
        assert!(told.err.contains("lives in") && told.err.contains("already"), "{told:?}");
    }

    #[test]
    fn a_recovery_without_its_catalog_is_no_empty_cell() {
        let setup = Setup::new();
        let note = setup.dir.path().join("state/recovering");
        fs::write(&note, "catalog\n").unwrap();
        for line in ["status", "ls", "run", "run --init"] {
            let told = setup.grove(line, "");
            assert!(told.code == 1 && told.err.contains("grove recover --peer"), "{line}: {told:?}");
        }
        assert!(setup.fake.told.borrow().is_empty());
        assert!(setup.grove("doctor", "").out.contains("fail  open      a recovery was begun"));
        // It goes on, and once the files are under way the cell can be used.
        assert_eq!(setup.grove("recover --peer a:1", &words()).code, 0);
        fs::write(&note, "files\n").unwrap();
        assert_eq!(setup.grove("run", "").code, 0);
    }

    #[test]
    fn init_says_what_is_next() {
        let fake = Fake::default();
        let told = grove(&fake, "init --name ann", "");
        assert_eq!(told.code, 0, "{told:?}");
        assert!(told.out.contains("The cell ann") && told.out.contains("grove phrase"), "{told:?}");
        assert_eq!(fake.told.borrow().last().unwrap(), "create Some(\"ann\") None");
        let told = grove(&fake, "init --from-phrase", &words().to_uppercase());
        assert_eq!(told.code, 0, "{told:?}");
        assert_eq!(*fake.told.borrow().last().unwrap(), format!("create None Some({:?})", words()));
        let told = grove(&fake, "init --from-phrase", &words().replacen(' ', " abandn ", 1));
        assert_eq!(told.code, 1);
        assert!(told.err.contains("\"abandn\"") && told.err.contains("abandon"), "{told:?}");
    }

    #[test]
    fn run_makes_a_cell_only_where_there_is_none_and_only_when_told() {
        let fake = Fake::default();
        assert_eq!(grove(&fake, "run", "").code, 1);
        assert!(fake.told.borrow().iter().all(|told| !told.starts_with("create")));
        let told = grove(&fake, "run --init", "");
        assert!(told.out.contains("Made the cell"), "{told:?}");
        assert_eq!(fake.told.borrow().first().unwrap(), "create None None");

        let setup = Setup::new();
        let told = setup.grove("run --init", "");
        assert!(!told.out.contains("Made"), "{told:?}");
    }

    #[test]
    fn recover_takes_words_and_addresses_from_wherever_they_are() {
        let fake = Fake::default();
        let told = grove(&fake, "recover --peer a.b:1 --peer [::1]:2", &words());
        assert_eq!(told.code, 0, "{told:?}");
        assert!(
            told.out.contains("5 of 7 files are back") && told.out.contains("Not reached yet: cy"),
            "{told:?}"
        );
        assert_eq!(*fake.told.borrow().last().unwrap(), format!("recover {} a.b:1,[::1]:2 true", words()));

        let card = format!("phrase: {}\npeer: 10.0.0.1:5679\n", words());
        let told = grove(&fake, "recover --no-files --peer a.b:1", &card);
        assert_eq!(told.code, 0, "{told:?}");
        assert_eq!(
            *fake.told.borrow().last().unwrap(),
            format!("recover {} a.b:1,10.0.0.1:5679 false", words())
        );

        assert_eq!(grove(&fake, "recover", &words()).code, 2);
        assert_eq!(grove(&fake, "recover --peer bob", &words()).code, 2);
        assert_eq!(grove(&fake, "recover --peer a:1", "one two three").code, 1);
        assert_eq!(grove(&fake, "recover --peer a:1 --phrase-file /nowhere/at/all", "").code, 1);
    }
}

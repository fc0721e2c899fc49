//! The command line: words in, what they ask for, and the answer in words. Knows nothing of how a cell works inside.
//!
//! Promise: exit code 0 means that what was asked for is done, 1 that it is not, 2 that the words made no sense.

mod ai;
pub mod ask;
mod bounty;
mod chat;
pub mod client;
mod copies;
mod files;
pub mod inside;
mod job;
mod making;
mod peers;
mod phrase;
mod placement;
mod relay;
mod restore;
mod routes;
mod share;
pub mod show;
mod state;
pub mod terminal;
#[cfg(test)]
pub(crate) mod testing;

use std::ffi::OsString;
use std::fmt;
use std::io::{BufRead, IsTerminal, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use argh::{EarlyExit, FromArgValue, FromArgs};

use crate::files::unix::{from_wire, to_wire};
use ask::{Cell, CliError};

/// The folders of a cell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paths {
    /// The state: `~/.grove`.
    pub dir: PathBuf,
    /// What is kept: `~/GroveHome`.
    pub home: PathBuf,
}

/// What was said on the command line and goes before the settings.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    /// Port of the dashboard and API; 0 for any that is free.
    pub http_port: Option<u16>,
    /// Port for peers; 0 for any that is free.
    pub peer_port: Option<u16>,
}

/// A cell that was made.
#[derive(Debug, Clone)]
pub struct Made {
    /// Its name.
    pub name: String,
    /// Its id, 64 hexadecimal digits.
    pub id: String,
}

/// What to bring back.
#[derive(Debug, Clone, Copy)]
pub struct RecoverWish<'a> {
    /// The 24 words, checked.
    pub phrase: &'a str,
    /// Where peers may be: `host:port` each, at least one.
    pub addresses: &'a [String],
    /// Files too, not only the cell and what it knows of them.
    pub with_files: bool,
}

/// How far a recovery is.
#[derive(Debug, Clone, Default)]
pub struct RecoverProgress {
    /// What is being done.
    pub text: String,
    /// How far.
    pub done: u64,
    /// Of how much; 0 if not known.
    pub total: u64,
    /// What is counted: `bytes`, `files` or `chunks`.
    pub unit: String,
}

/// What a recovery brought back.
#[derive(Debug, Clone, Default)]
pub struct Recovered {
    /// The cell's name.
    pub name: String,
    /// Its id, 64 hexadecimal digits.
    pub id: String,
    /// Its life from now on.
    pub life: u64,
    /// Files that the cell knows of.
    pub files_known: u64,
    /// Files that are back.
    pub files: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Peers that the cell knows, by name.
    pub peers: Vec<String>,
    /// Those of them that could not be reached.
    pub peers_missing: Vec<String>,
    /// What is not back and why, as wire paths.
    pub problems: Vec<(String, String)>,
}

/// What the command line needs of cells in this process.
pub trait House {
    /// Opens the cell in these folders, alone, without peers or dashboard.
    fn open(&self, paths: &Paths, options: &Options) -> Result<Box<dyn Cell>, CliError>;
    /// Makes a cell; from a phrase, the one that the phrase is of, without its files.
    fn create(&self, paths: &Paths, name: Option<&str>, phrase: Option<&str>) -> Result<Made, CliError>;
    /// Runs the cell until SIGTERM or SIGINT.
    fn run(&self, paths: &Paths, options: &Options) -> Result<(), CliError>;
    /// Brings a cell back from its peers.
    fn recover(
        &self,
        paths: &Paths,
        options: &Options,
        wish: RecoverWish<'_>,
        progress: &mut dyn FnMut(&RecoverProgress),
    ) -> Result<Recovered, CliError>;
}

/// Which of the standard streams are terminals.
#[derive(Debug, Clone, Copy, Default)]
pub struct Terminals {
    /// A person types.
    pub input: bool,
    /// A person reads the answer.
    pub out: bool,
    /// A person reads progress and problems.
    pub err: bool,
}

/// What a command works with.
pub struct Context<'a> {
    /// The cell's folders.
    pub paths: Paths,
    /// Said on the command line.
    pub options: Options,
    /// Cells in this process.
    pub house: &'a dyn House,
    /// Where paths that are not absolute begin.
    pub cwd: PathBuf,
    /// What is typed or piped in.
    pub input: &'a mut dyn BufRead,
    /// The answer.
    pub out: &'a mut dyn Write,
    /// Progress and problems.
    pub err: &'a mut dyn Write,
    /// Which of them are terminals.
    pub terminals: Terminals,
}

impl fmt::Debug for Context<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Context({})", self.paths.dir.display())
    }
}

/// A word of the command line, bytes and all. It reaches argh as a wire path, since argh takes UTF-8 only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Word(pub Vec<u8>);

impl FromArgValue for Word {
    fn from_arg_value(value: &str) -> Result<Self, String> {
        Ok(Self(from_wire(value)))
    }
}

impl Word {
    /// The word as text; an error if it is not UTF-8.
    pub fn text(&self) -> Result<&str, CliError> {
        std::str::from_utf8(&self.0)
            .map_err(|_| CliError::Usage(format!("{} is not UTF-8", show::name(&self.0))))
    }

    /// The word as a path; one that is not absolute begins in `cwd`.
    pub fn path(&self, cwd: &Path) -> PathBuf {
        cwd.join(Path::new(std::ffi::OsStr::from_bytes(&self.0)))
    }
}

/// Grove keeps your files on several small computers of your own and of people you trust; each holds the others' files
/// sealed.
#[derive(FromArgs, Debug, PartialEq)]
#[argh(
    help_triggers("-h", "--help"),
    name = "grove",
    note = "Global options stand before the command. `grove COMMAND --help` tells more about a command.",
    error_code(0, "done"),
    error_code(1, "failed"),
    error_code(2, "wrong usage")
)]
struct Args {
    /// state folder of the cell (default $GROVE_DIR or ~/.grove)
    #[argh(option, arg_name = "folder")]
    dir: Option<Word>,
    /// folder that is kept (default $GROVE_HOME or ~/GroveHome)
    #[argh(option, arg_name = "folder")]
    home: Option<Word>,
    /// port of dashboard and API instead of the one in config.json
    #[argh(option, arg_name = "port")]
    port: Option<u16>,
    /// port for peers instead of the one in config.json
    #[argh(option, arg_name = "port")]
    peer_port: Option<u16>,
    /// print the version
    #[argh(switch)]
    version: bool,
    #[argh(subcommand)]
    command: Option<Command>,
}

#[derive(FromArgs, Debug, PartialEq)]
#[argh(subcommand)]
enum Command {
    Init(making::Init),
    Run(making::Run),
    Status(state::Status),
    Doctor(state::Doctor),
    Drill(state::Drill),
    Phrase(phrase::Phrase),
    Password(phrase::Password),
    Add(files::Add),
    Ls(files::Ls),
    Versions(files::Versions),
    Get(files::Get),
    Rm(files::Rm),
    Bin(files::Bin),
    Restore(restore::Restore),
    Verify(restore::Verify),
    Confirm(restore::Confirm),
    Peers(peers::Peers),
    Invite(peers::Invite),
    Join(peers::Join),
    Peer(peers::Peer),
    Sync(peers::Sync),
    Chat(chat::Chat),
    Ai(ai::Ai),
    Placement(placement::Placement),
    Copies(copies::Copies),
    Routes(routes::Routes),
    Share(share::Share),
    Unshare(share::Unshare),
    Feed(share::Feed),
    Fetch(share::Fetch),
    Recover(making::Recover),
    Bounty(bounty::Bounty),
    Relay(relay::Relay),
}

impl Command {
    fn run(self, context: &mut Context<'_>) -> Result<(), CliError> {
        match self {
            Self::Init(command) => command.run(context),
            Self::Run(command) => command.run(context),
            Self::Status(command) => command.run(context),
            Self::Doctor(command) => command.run(context),
            Self::Drill(command) => command.run(context),
            Self::Phrase(command) => command.run(context),
            Self::Password(command) => command.run(context),
            Self::Add(command) => command.run(context),
            Self::Ls(command) => command.run(context),
            Self::Versions(command) => command.run(context),
            Self::Get(command) => command.run(context),
            Self::Rm(command) => command.run(context),
            Self::Bin(command) => command.run(context),
            Self::Restore(command) => command.run(context),
            Self::Verify(command) => command.run(context),
            Self::Confirm(command) => command.run(context),
            Self::Peers(command) => command.run(context),
            Self::Placement(command) => command.run(context),
            Self::Copies(command) => command.run(context),
            Self::Routes(command) => command.run(context),
            Self::Share(command) => command.run(context),
            Self::Unshare(command) => command.run(context),
            Self::Feed(command) => command.run(context),
            Self::Fetch(command) => command.run(context),
            Self::Invite(command) => command.run(context),
            Self::Join(command) => command.run(context),
            Self::Peer(command) => command.run(context),
            Self::Sync(command) => command.run(context),
            Self::Chat(command) => command.run(context),
            Self::Ai(command) => command.run(context),
            Self::Recover(command) => command.run(context),
            Self::Bounty(command) => command.run(context),
            Self::Relay(command) => command.run(context),
        }
    }
}

/// Does what the words of this process ask for; gives the exit code.
pub fn main(house: &dyn House) -> u8 {
    let words: Vec<OsString> = std::env::args_os().skip(1).collect();
    let cwd = std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/"));
    let (stdin, stdout, stderr) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
    let terminals =
        Terminals { input: stdin.is_terminal(), out: stdout.is_terminal(), err: stderr.is_terminal() };
    let mut out = std::io::BufWriter::new(stdout);
    // Not locked: the logger of a cell in this process writes there, too.
    let mut err = stderr;
    let mut input = std::io::BufReader::new(stdin);
    let streams = Streams { input: &mut input, out: &mut out, err: &mut err, terminals };
    run(words, house, cwd, &|name| std::env::var_os(name), streams)
}

/// The standard streams of `run`.
pub struct Streams<'a> {
    /// What is typed or piped in.
    pub input: &'a mut dyn BufRead,
    /// The answer.
    pub out: &'a mut dyn Write,
    /// Progress and problems.
    pub err: &'a mut dyn Write,
    /// Which of them are terminals.
    pub terminals: Terminals,
}

impl fmt::Debug for Streams<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Streams({:?})", self.terminals)
    }
}

/// Does what `words` (without the program's name) ask for; gives the exit code.
pub fn run(
    words: Vec<OsString>,
    house: &dyn House,
    cwd: PathBuf,
    env: &dyn Fn(&str) -> Option<OsString>,
    streams: Streams<'_>,
) -> u8 {
    let Streams { input, out, err, terminals } = streams;
    let words = arrange(words.into_iter().map(OsString::into_vec).collect());
    let args = match parse(&words) {
        Ok(args) => args,
        Err(EarlyExit { output, status: Ok(()) }) => {
            return u8::from(writeln!(out, "{}", output.trim_end()).and_then(|()| out.flush()).is_err());
        }
        Err(EarlyExit { output, status: Err(()) }) => {
            // argh sets off lists by line breaks and blanks.
            let output: Vec<&str> = output.split_whitespace().collect();
            return tell(&CliError::Usage(output.join(" ")), &words, err);
        }
    };
    if args.version {
        let written = writeln!(out, "grove {}", env!("CARGO_PKG_VERSION")).and_then(|()| out.flush());
        return u8::from(written.is_err());
    }
    let done = begin(args, house, cwd, env, Streams { input, out: &mut *out, err: &mut *err, terminals });
    let done = done.and_then(|()| Ok(out.flush()?));
    match done {
        Ok(()) => 0,
        Err(error) => {
            // What was said before the failure comes before it, too.
            let _ = out.flush();
            tell(&error, &words, err)
        }
    }
}

fn begin(
    args: Args,
    house: &dyn House,
    cwd: PathBuf,
    env: &dyn Fn(&str) -> Option<OsString>,
    streams: Streams<'_>,
) -> Result<(), CliError> {
    let Some(command) = args.command else {
        return Err(CliError::Usage("say what to do, for example `grove status`".to_owned()));
    };
    let folder = |word: &Option<Word>, variable: &str, name: &str| {
        let set = |variable| env(variable).filter(|value| !value.is_empty());
        match (word, set(variable), set("HOME")) {
            (Some(word), _, _) => Ok(word.path(&cwd)),
            (None, Some(folder), _) => Ok(cwd.join(folder)),
            (None, None, Some(home)) => Ok(Path::new(&home).join(name)),
            _ => Err(CliError::Usage(format!(
                "neither ${variable} nor $HOME is set: name the folders by --dir and --home"
            ))),
        }
    };
    let dir = folder(&args.dir, "GROVE_DIR", ".grove")?;
    let home = folder(&args.home, "GROVE_HOME", "GroveHome")?;
    let Streams { input, out, err, terminals } = streams;
    let mut context = Context {
        paths: Paths { dir, home },
        options: Options { http_port: args.port, peer_port: args.peer_port },
        house,
        cwd,
        input,
        out,
        err,
        terminals,
    };
    command.run(&mut context)
}

/// Where the words that make sense are told: those of the command, if there is one and it is not about what stands before it.
fn usage_hint(words: &[Vec<u8>], message: &str) -> String {
    let mut at = 0;
    while let Some(word) = words.get(at).filter(|word| word.starts_with(b"-")) {
        at += if WITH_VALUE.contains(&word.as_slice()) { 2 } else { 1 };
    }
    if ["--dir", "--home", "--port", "--peer-port"].iter().any(|option| message.contains(option)) {
        at = words.len();
    }
    let command = words.get(at..).unwrap_or_default();
    // The longest beginning that is a command.
    for len in [2, 1] {
        let Some(command) = command.get(..len) else { continue };
        let asked = [command, &[b"--help".to_vec()]].concat();
        if command.iter().all(|word| word.is_ascii())
            && matches!(parse(&asked), Err(EarlyExit { status: Ok(()), output }) if output.contains(&usage_of(command)))
        {
            return format!("`{} --help` tells how it is used", usage_of(command));
        }
    }
    "`grove --help` lists commands and options".to_owned()
}

/// `grove peer quota`.
fn usage_of(command: &[Vec<u8>]) -> String {
    let words: Vec<_> = command.iter().map(|word| String::from_utf8_lossy(word)).collect();
    format!("grove {}", words.join(" "))
}

/// Says what is wrong, and where to look if the words made no sense; gives the exit code.
fn tell(error: &CliError, words: &[Vec<u8>], err: &mut dyn Write) -> u8 {
    match error {
        CliError::Usage(message) => {
            let _ = writeln!(err, "grove: {}\n{}", show::text(message), usage_hint(words, message));
            2
        }
        CliError::Failed { message, hint } => {
            let _ = writeln!(err, "grove: {}", show::text(message.trim_end()));
            if !hint.is_empty() {
                let _ = writeln!(err, "{}", show::text(hint.trim_end()));
            }
            1
        }
        CliError::Told => 1,
    }
}

fn parse(words: &[Vec<u8>]) -> Result<Args, EarlyExit> {
    let words: Vec<String> = words.iter().map(|word| to_wire(word)).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    Args::from_args(&["grove"], &words)
}

/// Options before the command that have a value.
const WITH_VALUE: [&[u8]; 4] = [b"--dir", b"--home", b"--port", b"--peer-port"];

/// Words as argh takes them: `--dir=x` as two words, `help add` and `--help add` as `add --help`, `-V` as `--version`.
fn arrange(words: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    let mut arranged = Vec::with_capacity(words.len());
    let mut words = words.into_iter();
    // Behind `--` everything is a name.
    for word in words.by_ref() {
        if word == b"--" {
            arranged.push(word);
            break;
        }
        let is_name = |c: &u8| c.is_ascii_lowercase() || *c == b'-';
        match word.iter().position(|c| *c == b'=') {
            Some(at) if at > 2 && word.starts_with(b"--") && word[..at].iter().all(is_name) => {
                arranged.push(word[..at].to_vec());
                arranged.push(word[at + 1..].to_vec());
            }
            _ => arranged.push(word),
        }
    }
    arranged.extend(words);

    let mut at = 0;
    let mut wants_help = false;
    while at < arranged.len() {
        match arranged[at].as_slice() {
            option if WITH_VALUE.contains(&option) => at += 2,
            b"-V" => {
                arranged[at] = b"--version".to_vec();
                at += 1;
            }
            b"-h" | b"--help" | b"help" => {
                wants_help = true;
                arranged.remove(at);
            }
            option if option.starts_with(b"-") => at += 1,
            _ => break,
        }
    }
    if wants_help {
        // Only commands with commands of their own look further than the next word.
        let end = match arranged.get(at).map(Vec::as_slice) {
            Some(b"peer" | b"feed") => (at + 2).min(arranged.len()),
            _ => (at + 1).min(arranged.len()),
        };
        arranged.truncate(end);
        arranged.push(b"--help".to_vec());
    }
    arranged
}

#[cfg(test)]
mod tests {
    use super::testing::{Fake, grove};
    use super::*;

    fn words(line: &str) -> Vec<Vec<u8>> {
        line.split(' ').map(|word| word.as_bytes().to_vec()).collect()
    }

    fn joined(line: &str) -> String {
        let arranged: Vec<String> =
            arrange(words(line)).iter().map(|word| String::from_utf8_lossy(word).into_owned()).collect();
        arranged.join(" ")
    }

    #[test]
    fn words_are_arranged() {
        assert_eq!(joined("--dir=/a=b ls --json"), "--dir /a=b ls --json");
        assert_eq!(joined("get -- --a=b"), "get -- --a=b");
        assert_eq!(joined("add a=b"), "add a=b");
        assert_eq!(joined("help"), "--help");
        assert_eq!(joined("--dir help --help add x"), "--dir help add --help");
        assert_eq!(joined("help peer quota"), "peer quota --help");
        assert_eq!(joined("help feed keep 3f9a"), "feed keep --help");
        assert_eq!(joined("get help"), "get help");
        assert_eq!(joined("-V"), "--version");
    }

    #[test]
    fn options_are_read() {
        let args = parse(&arrange(words(
            "--dir /d --home /h --port 1 --peer-port 65535 get a/b -o out --version 3",
        )))
        .unwrap();
        assert_eq!((args.port, args.peer_port, args.version), (Some(1), Some(65535), false));
        assert_eq!(args.dir, Some(Word(b"/d".to_vec())));
        assert!(matches!(args.command, Some(Command::Get(_))));
        let odd = [b"get".to_vec(), b"100%41 na\xefve\n".to_vec()];
        let Some(Command::Get(get)) = parse(&odd).unwrap().command else { panic!("not get") };
        assert_eq!(get.name.0, b"100%41 na\xefve\n");
    }

    #[test]
    fn exit_codes_are_kept() {
        let fake = Fake::default();
        for (line, code) in [
            ("--help", 0),
            ("help ls", 0),
            ("peer --help", 0),
            ("--version", 0),
            ("nonsense", 2),
            ("--port 70000 status", 2),
            ("get", 2),
            ("ls --nonsense", 2),
            ("restore", 2),
            ("restore a --all", 2),
            ("peer quota bob lots", 2),
            // No cell lives there.
            ("ls", 1),
            ("sync", 1),
        ] {
            let told = grove(&fake, line, "");
            assert_eq!(told.code, code, "{line}: {told:?}");
            assert_eq!(told.err.is_empty(), code == 0, "{line}: {told:?}");
            assert_eq!(told.err.starts_with("grove: "), code != 0, "{line}: {told:?}");
            assert_eq!(told.out.is_empty(), code != 0, "{line}: {told:?}");
        }
        assert_eq!(grove(&fake, "", "").code, 2);
        assert!(grove(&fake, "--version", "").out.starts_with("grove 0."));
    }

    #[test]
    fn wrong_words_are_told_on_one_line_and_where_the_right_ones_are() {
        let fake = Fake::default();
        for (line, why, hint) in [
            ("nonsense", "Unrecognized argument: nonsense", "`grove --help` lists commands and options"),
            ("--dir ls nonsense", "Unrecognized argument: nonsense", "`grove --help` lists"),
            ("get", "Required positional arguments not provided: name", "`grove get --help` tells"),
            ("--port 70000 status", "'--port' with value '70000'", "`grove --help` lists"),
            ("--port 1 peer quota bob lots", "\"lots\" is no size", "`grove peer quota --help` tells"),
            ("peer", "must be present: help remove quota", "`grove peer --help` tells"),
            ("restore", "say what to restore", "`grove restore --help` tells"),
            ("feed keep", "not provided: id", "`grove feed keep --help` tells"),
            ("chat a b --search c", "one of them", "`grove chat --help` tells"),
            ("", "say what to do", "`grove --help` lists"),
        ] {
            let told = grove(&fake, line, "");
            let lines: Vec<&str> = told.err.lines().collect();
            assert!(told.code == 2 && lines.len() == 2, "{line}: {told:?}");
            assert!(lines[0].starts_with("grove: ") && lines[0].contains(why), "{line}: {told:?}");
            assert!(lines[1].starts_with(hint), "{line}: {told:?}");
        }
    }

    #[test]
    fn every_command_explains_itself() {
        let help = grove(&Fake::default(), "--help", "").out;
        let (_, list) = help.split_once("\nCommands:\n").unwrap();
        let (list, _) = list.split_once("\n\n").unwrap();
        let commands: Vec<&str> = list
            .lines()
            .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
            .map(|line| line.split_whitespace().next().unwrap())
            .collect();
        let promised = "init run status doctor drill phrase password add ls versions get rm bin restore verify confirm peers invite join \
             peer sync chat ai placement copies routes share unshare feed fetch recover bounty relay";
        assert_eq!(commands, promised.split_whitespace().collect::<Vec<_>>());
        for command in commands.into_iter().chain(
            "peer remove/peer quota/peer favorite/peer friend/peer unfriend/peer name/feed keep".split('/'),
        ) {
            let own = grove(&Fake::default(), &format!("{command} --help"), "");
            assert_eq!(own.code, 0);
            assert!(own.out.starts_with(&format!("Usage: grove {command}")), "{}", own.out);
        }
    }

    #[test]
    fn folders_come_from_options_variables_and_home() {
        let fake = Fake::default();
        let told = grove(&fake, "--dir rel status", "");
        assert!(told.err.contains("/rel"), "{told:?}");
        let mut err = Vec::new();
        let streams = Streams {
            input: &mut &b""[..],
            out: &mut Vec::new(),
            err: &mut err,
            terminals: Terminals::default(),
        };
        let env = |name: &str| (name == "HOME").then(|| OsString::from("/nowhere/ann"));
        assert_eq!(run(vec!["status".into()], &fake, "/".into(), &env, streams), 1);
        assert!(String::from_utf8(err).unwrap().contains("/nowhere/ann/.grove"));
    }
}

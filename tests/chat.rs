//! Chat between two cells of the built program: in order and once over kills, friends only, harmless whatever is said, and
//! line by line in a terminal.

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::os::fd::{FromRawFd, OwnedFd};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use common::fleet::{peer_of, wait_offline, wait_online};
use common::{Cell, Chance, TempDir, items, number, object, text, wait_count, wait_for};
use grove::cli::client::percent_encode;
use miniserde::json::{self, Object, Value};

/// All that is said to a friend who is away.
const MESSAGES: u64 = 10_000;
/// Of them, so many by one request.
const AT_ONCE: u64 = 50;
/// Kills while they are said, and while they arrive.
const KILLS: usize = 6;

fn started(folder: &TempDir, name: &str) -> Cell {
    let mut cell = Cell::at(folder.path(), name);
    cell.init(name, &[]);
    cell.run();
    cell
}

fn friends(folder: &TempDir) -> (Cell, Cell) {
    let (ann, bob) = (started(folder, "ann"), started(folder, "bob"));
    let token = ann.cli(["invite", "--friend"]).ok().out.trim().to_owned();
    bob.cli(["join", &token]).ok();
    wait_online(&[&ann, &bob]);
    (ann, bob)
}

fn objects(object: &Object, key: &str) -> Vec<Object> {
    let inner = |value: &Value| {
        if let Value::Object(inner) = value { Some(common::object(&json::to_string(inner))) } else { None }
    };
    items(object, key).iter().filter_map(inner).collect()
}

/// The only conversation of a cell.
fn talk(cell: &Cell) -> Option<Object> {
    objects(&cell.get("/chat"), "conversations").pop()
}

/// All messages of a conversation, oldest first.
fn history(cell: &Cell, with: &str) -> Vec<Object> {
    let mut all: Vec<Object> = Vec::new();
    loop {
        let after = all.last().map_or(0, |last| number(last, "id"));
        let page = cell.get(&format!("/chat/messages?peer={with}&after={after}&limit=500"));
        let some = objects(&page, "messages");
        if some.is_empty() {
            return all;
        }
        all.extend(some);
    }
}

fn texts(cell: &Cell, with: &str) -> Vec<String> {
    history(cell, with).iter().map(|message| text(message, "text")).collect()
}

fn wait_texts(cell: &Cell, with: &str, wanted: &[&str]) {
    wait_for(&format!("{wanted:?} are there"), || (texts(cell, with) == wanted).then_some(()));
}

/// Waits for what is told of the chat's file.
fn wait_alert(cell: &Cell, what: &str) {
    wait_for(what, || cell.alert("chat").filter(|told| told.contains(what)));
}

fn say(cell: &Cell, to: &str, said: &str) -> Object {
    let quoted = json::to_string(&said.to_owned());
    cell.post("/chat/send", &format!(r#"{{"peer":"{to}","text":{quoted}}}"#))
}

/// The text of message `n`: of various lengths, so that they do not come all at once.
fn nth(n: u64) -> String {
    format!("message {n} {}", "x".repeat(200 + (n * 37 % 1500) as usize))
}

/// Says message after message until one is not answered; gives the number of the first that is not known to be kept.
fn say_all(cell: &Cell, mut from: u64) -> u64 {
    while from < MESSAGES {
        let texts: Vec<String> = (from..from + AT_ONCE).map(nth).collect();
        let body = format!(r#"{{"peer":"bob","key":"batch {from}","texts":{}}}"#, json::to_string(&texts));
        if cell.try_post("/chat/send", &body).is_err() {
            break;
        }
        from += AT_ONCE;
    }
    from
}

fn kill_hard(pid: u32) {
    let pid = rustix::process::Pid::from_raw(pid as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

#[test]
fn ten_thousand_messages_for_an_absent_friend_arrive_once_and_in_order_over_kills_of_both() {
    let mut chance = Chance::seeded("chat");
    let folder = TempDir::new("chat");
    let (mut ann, mut bob) = friends(&folder);
    bob.stop();

    let (mut from, mut kills) = (0, 0);
    while from < MESSAGES {
        if kills == KILLS {
            from = say_all(&ann, from);
            continue;
        }
        let delay = Duration::from_micros(chance.below(600_000));
        let (cell, pid) = (&ann, ann.pid());
        let next = thread::scope(|scope| {
            let saying = scope.spawn(move || say_all(cell, from));
            thread::sleep(delay);
            kill_hard(pid);
            saying.join().unwrap()
        });
        from = next;
        kills += 1;
        ann.kill();
        ann.run();
    }
    let waiting = talk(&ann).expect("a conversation");
    assert_eq!((number(&waiting, "queued"), number(&waiting, "unread")), (MESSAGES, 0));

    bob.run();
    let unread = |bob: &Cell| talk(bob).map_or(0, |talk| number(&talk, "unread"));
    let (mut midway, mut seen) = (0, 0);
    for round in 0..KILLS {
        // A part of what is left has come: then one of the two is killed. All may have come before the last kill.
        let wanted = (seen + chance.below((MESSAGES - seen) / 3).max(1)).min(MESSAGES);
        wait_count("a part has come", wanted, || {
            seen = unread(&bob);
            seen
        });
        midway += usize::from(seen < MESSAGES);
        let killed = if round % 2 == 0 { &mut bob } else { &mut ann };
        killed.kill();
        killed.run();
        let kept = unread(&bob);
        assert!(kept >= seen, "{seen} were there before the kill, {kept} after it");
        seen = kept;
    }
    wait_count("all have come", MESSAGES, || unread(&bob));
    wait_for("all are known to have come", || (number(&talk(&ann)?, "queued") == 0).then_some(()));
    let heard = history(&bob, "ann");
    assert_eq!(heard.len() as u64, MESSAGES);
    for (n, message) in heard.iter().enumerate() {
        assert!(text(message, "text") == nth(n as u64), "message {n} is {}", text(message, "text"));
    }
    eprintln!("{kills} kills while they were said, {midway} of {KILLS} while they came");
    // How many depends on the machine; the first is that of a third, at most.
    assert!(midway > 0);

    // Seen: the friend hears of it.
    let last = number(heard.last().unwrap(), "id");
    bob.post("/chat/read", &format!(r#"{{"peer":"ann","upto":{last}}}"#));
    wait_for("they are seen", || {
        let page = ann.get("/chat/messages?peer=bob&limit=1");
        (number(&page, "read") == MESSAGES && number(&page, "delivered") == MESSAGES).then_some(())
    });
    assert_eq!(unread(&bob), 0);
}

#[test]
fn only_friends_talk_and_what_was_said_stays_readable() {
    let folder = TempDir::new("chat");
    let (ann, mut bob) = (started(&folder, "ann"), started(&folder, "bob"));
    ann.invite(&bob);
    wait_online(&[&ann, &bob]);
    let said = ann.cli(["chat", "bob", "hello"]);
    assert!(!said.status.success() && said.err.contains("no friend"), "{said:?}");

    ann.cli(["peer", "friend", "bob"]).ok();
    bob.cli(["peer", "friend", "ann"]).ok();
    wait_for("they are friends", || (text(&peer_of(&ann), "role") == "friend").then_some(()));
    assert_eq!(ann.cli(["chat", "bob", "hello", "bob"]).ok().out, "Sent to bob.\n");
    wait_texts(&bob, "ann", &["hello bob"]);
    bob.stop();
    wait_offline(&ann);
    assert!(ann.cli(["chat", "bob", "late"]).ok().out.starts_with("Kept for bob"));
    // History is there without a running cell.
    assert!(bob.cli(["chat", "ann", "--history", "5"]).ok().out.contains("ann: hello bob"));
    ann.cli(["peer", "unfriend", "bob"]).ok();
    bob.run();
    wait_for("both know", || (text(&peer_of(&bob), "role") == "peer").then_some(()));
    wait_online(&[&ann, &bob]);
    assert!(!bob.cli(["chat", "ann", "hello"]).status.success());
    assert_eq!(texts(&bob, "ann"), ["hello bob"]);

    // What waited goes on as soon as they are friends again.
    bob.cli(["peer", "friend", "ann"]).ok();
    ann.cli(["peer", "friend", "bob"]).ok();
    wait_texts(&bob, "ann", &["hello bob", "late"]);
    // One message and a whole conversation are deleted, here only.
    let first = number(&history(&bob, "ann")[0], "id").to_string();
    bob.cli(["chat", "ann", "--delete", &first]).ok();
    assert_eq!(texts(&bob, "ann"), ["late"]);
    assert!(!bob.cli(["chat", "ann", "--delete", &first]).status.success());
    bob.cli(["chat", "ann", "--delete", "all"]).ok();
    assert!(talk(&bob).is_none());
    assert_eq!(texts(&ann, "bob"), ["hello bob", "late"]);
    bob.kill();
    bob.run();
    wait_online(&[&ann, &bob]);
    say(&ann, "bob", "new");
    wait_texts(&bob, "ann", &["new"]);
}

#[test]
fn a_friend_that_goes_back_to_a_backup_gets_the_rest_again() {
    let folder = TempDir::new("chat");
    let (mut ann, mut bob) = friends(&folder);
    let backup = folder.path().join("backup.db");
    for n in 1..=3 {
        say(&ann, "bob", &n.to_string());
    }
    wait_texts(&bob, "ann", &["1", "2", "3"]);
    bob.stop();
    fs::copy(bob.dir.join("chat.db"), &backup).unwrap();
    bob.run();
    ann.stop();
    ann.run();
    for n in 4..=6 {
        say(&ann, "bob", &n.to_string());
    }
    wait_texts(&bob, "ann", &["1", "2", "3", "4", "5", "6"]);
    bob.stop();
    let go_back = |cell: &Cell, to: Option<&Path>| {
        for name in ["chat.db", "chat.db-wal", "chat.db-shm"] {
            let _ = fs::remove_file(cell.dir.join(name));
        }
        if let Some(to) = to {
            fs::copy(to, cell.dir.join("chat.db")).unwrap();
        }
    };
    go_back(&bob, Some(&backup));
    bob.run();
    wait_texts(&bob, "ann", &["1", "2", "3", "4", "5", "6"]);
    // And what it lost altogether comes back too; a damaged file is put aside.
    bob.stop();
    go_back(&bob, None);
    fs::write(
        bob.dir.join("chat.db"),
        "this is no database, and it is long enough to be taken for one".repeat(100),
    )
    .unwrap();
    bob.run();
    wait_alert(&bob, "set-aside");
    wait_texts(&bob, "ann", &["1", "2", "3", "4", "5", "6"]);
    // The sender goes back: what it says from then on is new all the same.
    ann.stop();
    go_back(&ann, None);
    ann.run();
    say(&ann, "bob", "7");
    wait_texts(&bob, "ann", &["1", "2", "3", "4", "5", "6", "7"]);
}

/// The state folder as it is, somewhere else; the cell does not run.
fn copy_folder(from: &Path, to: &Path) {
    let _ = fs::remove_dir_all(to);
    let copied = Command::new("cp").arg("-a").arg(from).arg(to).output().unwrap();
    assert!(copied.status.success(), "{copied:?}");
}

/// Everything, not chat.db alone, goes back to an older state, first on one side, then on the other: what was said since by
/// the friend comes again, and what is said from then on is neither taken for old nor kept back.
#[test]
fn an_old_backup_of_a_whole_folder_hides_no_message_on_either_side() {
    let folder = TempDir::new("chat");
    let (mut ann, mut bob) = friends(&folder);
    say(&ann, "bob", "a1");
    say(&bob, "ann", "b1");
    wait_texts_in_any_order(&ann, "bob", &["a1", "b1"]);
    wait_texts_in_any_order(&bob, "ann", &["a1", "b1"]);
    for round in 0..2 {
        let (back, other) = if round == 0 { (&mut bob, &mut ann) } else { (&mut ann, &mut bob) };
        let (own, theirs) = if round == 0 { ("b", "a") } else { ("a", "b") };
        let name = |letter: &str| if letter == "a" { "ann" } else { "bob" };
        let (to, from) = (name(theirs), name(own));
        let backup = folder.path().join("backup");
        back.stop();
        copy_folder(&back.dir, &backup);
        back.run();
        wait_online(&[back, other]);
        let (own_before, before) = (texts(back, to), texts(other, from));
        // Both say something that the backup does not know, in this start of theirs and in a later one.
        for start in 0..2 {
            say(back, to, &format!("{own} lost {round} {start}"));
            say(other, from, &format!("{theirs} kept {round} {start}"));
            wait_for("both have both", || {
                let more = 2 * (start + 1);
                let has_more = |cell: &Cell, with: &str, before: &[String]| {
                    texts(cell, with).len() == before.len() + more
                };
                (has_more(other, from, &before) && has_more(back, to, &own_before)).then_some(())
            });
            other.stop();
            other.run();
            wait_online(&[back, other]);
        }
        back.stop();
        fs::remove_dir_all(&back.dir).unwrap();
        copy_folder(&backup, &back.dir);
        back.run();
        say(back, to, &format!("{own} new {round}"));
        say(other, from, &format!("{theirs} new {round}"));
        let kept: Vec<String> = (0..2).map(|start| format!("{theirs} kept {round} {start}")).collect();
        let lost: Vec<String> = (0..2).map(|start| format!("{own} lost {round} {start}")).collect();
        let new = [own, theirs].map(|letter| format!("{letter} new {round}"));
        // What it said itself since the backup is gone with the folder; the friend still has it.
        wait_texts_in_any_order(back, to, &[&own_before[..], &kept, &new].concat());
        wait_texts_in_any_order(other, from, &[&before[..], &lost, &kept, &new].concat());
        // In the order in which each was said.
        let order = |cell: &Cell, with: &str, of: &[String]| -> Vec<String> {
            texts(cell, with).into_iter().filter(|text| of.contains(text)).collect()
        };
        let theirs_all = [&kept[..], &new[1..]].concat();
        assert_eq!(order(back, to, &theirs_all), theirs_all);
        let own_all = [&lost[..], &new[..1]].concat();
        assert_eq!(order(other, from, &own_all), own_all);
        // Nothing comes twice later on.
        for cell in [&mut *back, &mut *other] {
            cell.stop();
            cell.run();
        }
        wait_online(&[back, other]);
        say(back, to, &format!("{own} last {round}"));
        wait_for("it came", || (texts(other, from).last()? == &format!("{own} last {round}")).then_some(()));
        for (cell, with) in [(&*back, to), (&*other, from)] {
            let all = texts(cell, with);
            let some: BTreeSet<&String> = all.iter().collect();
            assert_eq!(some.len(), all.len(), "{all:?}");
        }
    }
}

fn wait_texts_in_any_order<T: AsRef<str>>(cell: &Cell, with: &str, wanted: &[T]) {
    let wanted: BTreeSet<&str> = wanted.iter().map(AsRef::as_ref).collect();
    wait_for(&format!("{wanted:?} are there"), || {
        let all = texts(cell, with);
        (all.len() == wanted.len() && all.iter().all(|text| wanted.contains(text.as_str()))).then_some(())
    });
}

/// A page that cannot be read: said at once, and the next start begins anew with what the friend still has.
#[test]
fn damage_within_the_history_is_told_and_put_aside_by_the_next_start() {
    let folder = TempDir::new("chat");
    let (ann, mut bob) = friends(&folder);
    let said: Vec<String> = (0..500).map(nth).collect();
    for some in said.chunks(100) {
        ann.post("/chat/send", &format!(r#"{{"peer":"bob","texts":{}}}"#, json::to_string(&some.to_vec())));
    }
    wait_for("all are there", || (texts(&bob, "ann") == said).then_some(()));
    bob.stop();
    let path = bob.dir.join("chat.db");
    let mut bytes = fs::read(&path).unwrap();
    let at =
        bytes.windows(12).position(|some| some == b"message 250 ").expect("it stands there") / 4096 * 4096;
    bytes[at..at + 4096].fill(0xff);
    fs::write(&path, bytes).unwrap();
    bob.run();
    assert!(bob.alert("chat").is_none(), "what is damaged is not seen before it is read");
    assert!(!bob.cli(["chat", "ann", "--history", "400"]).status.success());
    wait_alert(&bob, "damaged");
    bob.stop();
    bob.run();
    wait_alert(&bob, "set-aside");
    wait_for("all are there again", || (texts(&bob, "ann") == said).then_some(()));
    bob.stop();
    bob.run();
    assert!(bob.alert("chat").is_none());
    assert_eq!(texts(&bob, "ann"), said);
}

fn is_harmless(printed: &str) -> bool {
    printed.chars().all(|c| c == '\n' || !grove::logger::is_odd(c))
}

#[test]
fn hostile_texts_are_kept_as_they_are_and_shown_harmlessly() {
    let folder = TempDir::new("chat");
    let (ann, bob) = friends(&folder);
    let mut long = "é<b>".repeat(64 * 1024 / 5);
    long.push_str(&"z".repeat(64 * 1024 - long.len()));
    let hostile = [
        "<script>alert('x')</script>\"'&amp;",
        "\u{1b}[2J\u{1b}]0;owned\u{7}\u{9b}31m\u{8}\u{8}\r",
        "\u{202e}gpj.exe\u{2066}\u{200f}\u{feff}",
        "line\n#9 2026-01-01 00:00 you: I owe you everything",
        "\0\u{7f}\u{85}\u{e0041}",
        "../../.ssh/authorized_keys $(reboot) `reboot` ; rm -rf ~",
        &long,
    ];
    for said in hostile {
        say(&ann, "bob", said);
    }
    wait_for("all are there", || (history(&bob, "ann").len() == hostile.len()).then_some(()));
    assert_eq!(texts(&bob, "ann"), hostile);
    for words in [
        vec!["chat"],
        vec!["chat", "--json"],
        vec!["chat", "ann", "--history", "50"],
        vec!["chat", "ann", "--history", "50", "--json"],
        vec!["chat", "--search", "e"],
        vec!["chat", "--search", "e", "--json"],
    ] {
        let said = bob.cli(&words).ok();
        assert!(is_harmless(&said.out) && is_harmless(&said.err), "{words:?}: {said:?}");
    }
    let shown = bob.cli(["chat", "ann", "--history", "50"]).ok().out;
    assert!(shown.contains("\n    | #9 ") && shown.contains("<script>"));
    assert_eq!(shown.lines().filter(|line| line.starts_with('#')).count(), hostile.len());
    let found = object(&bob.cli(["chat", "ann", "--search", "OWE You", "--json"]).ok().out);
    assert_eq!(objects(&found, "messages").iter().map(|m| text(m, "text")).collect::<Vec<_>>(), [hostile[3]]);

    // One byte too many, by the API and by a pipe.
    let much = percent_encode(format!("{long}z").as_bytes()).len();
    assert!(much > 64 * 1024);
    let body = format!(r#"{{"peer":"bob","text":{}}}"#, json::to_string(&format!("{long}z")));
    assert!(ann.try_post("/chat/send", &body).unwrap_err().to_string().contains("65537 bytes"));
    for (piped, is_taken) in [(format!("{long}z\n"), false), ("by a pipe\nin two lines\n".to_owned(), true)] {
        let mut command = ann.command(["chat", "bob"]);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        // Whoever refuses need not read all of it.
        let _ = child.stdin.take().unwrap().write_all(piped.as_bytes());
        assert_eq!(child.wait().unwrap().success(), is_taken);
    }
    wait_for("it came", || (texts(&bob, "ann").last()? == "by a pipe\nin two lines").then_some(()));
    for bad in
        [r#""text":7"#, r#""text":"""#, r#""texts":[]"#, r#""attachments":["xyz"]"#, r#""texts":["a",""]"#]
    {
        assert!(ann.try_post("/chat/send", &format!(r#"{{"peer":"bob",{bad}}}"#)).is_err(), "{bad}");
    }
}

/// A file goes with a message: the friend sees its name, and fetches it.
#[test]
fn a_file_that_goes_with_a_message_is_shared_named_and_fetched() {
    let folder = TempDir::new("chat");
    let (ann, bob) = friends(&folder);
    fs::create_dir_all(ann.home.join("trips")).unwrap();
    fs::write(ann.home.join("trips/map.txt"), "left at the oak").unwrap();
    ann.cli(["add", ann.home.join("trips").to_str().unwrap()]).ok();
    // What is not shared, not there, or no file is refused, and nothing is said.
    let nothing = "0123456789abcdef0123456789abcdef";
    let refused = ann.try_post("/chat/send", &format!(r#"{{"peer":"bob","attachments":["{nothing}"]}}"#));
    assert!(refused.unwrap_err().to_string().contains("no file that is shared with this friend"));
    let told = ann.cli(["chat", "bob", "look", "--attach", "trips"]);
    assert!(!told.status.success() && told.err.contains("a folder cannot be attached"), "{}", told.err);
    let told = ann.cli(["chat", "bob", "look", "--attach", "trips/none.txt"]);
    assert!(!told.status.success() && told.err.contains("there is no"), "{}", told.err);
    assert!(texts(&ann, "bob").is_empty(), "nothing was said");

    ann.cli(["chat", "bob", "look", "--attach", "trips/map.txt"]).ok();
    // Once more: it is shared already, and need not be shared again.
    ann.cli(["chat", "bob", "--attach", "trips/map.txt"]).ok();
    let shown = wait_for("it is named", || {
        let shown = bob.cli(["chat", "ann", "--history", "2"]).ok().out;
        (shown.matches("+ attached: map.txt (15 B): grove fetch ").count() == 2).then_some(shown)
    });
    assert!(ann.cli(["chat", "bob", "--history", "2"]).ok().out.contains("+ attached: trips/map.txt (15 B)"));
    assert_eq!(objects(&ann.get("/shares"), "shares").len(), 1);
    let id = shown.rsplit("grove fetch ").next().unwrap().trim().to_owned();
    let out = folder.path().join("got.txt");
    bob.cli(["fetch", &id, "--to", out.to_str().unwrap()]).ok();
    assert_eq!(fs::read(out).unwrap(), b"left at the oak");

    // Taken back, it is said to be so on both sides.
    ann.cli(["unshare", "trips/map.txt", "bob"]).ok();
    assert!(ann.cli(["chat", "bob", "--history", "1"]).ok().out.contains("no longer shared"));
    wait_for("it is gone", || {
        bob.cli(["chat", "ann", "--history", "1"]).ok().out.contains("not in the Feed").then_some(())
    });
}

/// A name is chosen by its owner, and stands in every answer.
#[test]
fn a_friend_with_a_hostile_name_is_shown_harmlessly_everywhere() {
    let folder = TempDir::new("chat");
    let ann = started(&folder, "ann");
    let mut bob = Cell::at(folder.path(), "bob");
    let name = "\u{202e}<script>x()</script>../../.ssh\u{200b}\u{e0041}$(id)";
    // Control characters never leave the cell itself.
    bob.init(&format!("\u{7}\u{9b}31m{name}"), &[]);
    let name = &format!("31m{name}");
    bob.run();
    let token = ann.cli(["invite", "--friend"]).ok().out.trim().to_owned();
    bob.cli(["join", &token]).ok();
    wait_online(&[&ann, &bob]);
    let id = text(&peer_of(&ann), "id");
    assert_eq!(text(&peer_of(&ann), "name"), *name, "all else is kept as it is");
    let said = ann.cli(["chat", &id[..16], "hello"]).ok();
    assert!(is_harmless(&said.out) && is_harmless(&said.err), "{said:?}");
    say(&bob, "ann", "\u{1b}]52;c;b3duZWQ=\u{7}hello");
    wait_for("it came", || (texts(&ann, &id).len() == 2).then_some(()));
    for words in [
        vec!["chat"],
        vec!["chat", "--search", "hello"],
        vec!["chat", &id[..8], "--history", "9"],
        vec!["chat", &id[..8], "--delete", "999"],
        vec!["chat", name.as_str(), "--history", "9"],
        vec!["peers"],
        vec!["routes"],
        vec!["bounty"],
        vec!["status"],
        vec!["placement"],
        vec!["peer", "unfriend", &id[..8]],
        vec!["chat", &id[..8], "no"],
        vec!["peer", "friend", &id[..8]],
    ] {
        let json: Vec<&str> = words.iter().copied().chain(["--json"]).collect();
        for words in [&words, &json] {
            let said = ann.cli(words);
            assert!(is_harmless(&said.out) && is_harmless(&said.err), "{words:?}: {said:?}");
        }
    }
    assert!(is_harmless(&ann.log_text()), "{}", ann.log_text());
    assert!(is_harmless(&bob.log_text()), "{}", bob.log_text());
}

/// A terminal: its own end, and the end that a program takes for a person.
fn terminal() -> (fs::File, OwnedFd) {
    let (mut own, mut other) = (0, 0);
    // SAFETY: both numbers live longer than the call; name, modes and size may be null.
    let done = unsafe {
        libc::openpty(&mut own, &mut other, std::ptr::null_mut(), std::ptr::null_mut(), std::ptr::null_mut())
    };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
    // SAFETY: both were just opened, and nobody else has them.
    unsafe { (fs::File::from_raw_fd(own), OwnedFd::from_raw_fd(other)) }
}

#[test]
fn a_conversation_goes_line_by_line_in_a_terminal() {
    let folder = TempDir::new("chat");
    let (ann, mut bob) = friends(&folder);
    say(&bob, "ann", "are you there?");
    wait_texts(&ann, "bob", &["are you there?"]);
    let (mut typing, person) = terminal();
    let mut command = ann.command(["chat", "bob"]);
    let mut child = command.stdin(person).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    drop(command);
    let screen = Arc::new(Mutex::new(String::new()));
    let (mut out, written) = (child.stdout.take().unwrap(), Arc::clone(&screen));
    let reading = thread::spawn(move || {
        let mut piece = [0; 4096];
        while let Ok(count @ 1..) = out.read(&mut piece) {
            written.lock().unwrap().push_str(&String::from_utf8_lossy(&piece[..count]));
        }
    });
    let shows = |what: &str| {
        wait_for(&format!("{what} on the screen"), || screen.lock().unwrap().contains(what).then_some(()));
    };
    shows("bob: are you there?");
    wait_for("bob knows that it was seen", || {
        (number(&bob.get("/chat/messages?peer=ann&limit=1"), "read") > 0).then_some(())
    });
    typing.write_all(b"yes\n").unwrap();
    shows("(sent)");
    shows("(delivered)");
    wait_texts(&bob, "ann", &["are you there?", "yes"]);
    bob.cli(["chat", "ann", "--history", "5"]).ok();
    shows("(read)");
    say(&bob, "ann", "good");
    shows("bob: good");
    bob.stop();
    wait_offline(&ann);
    typing.write_all(b"\nand later\n").unwrap();
    shows("gets it later");
    bob.run();
    wait_texts(&bob, "ann", &["are you there?", "yes", "good", "and later"]);
    // Ctrl-D.
    typing.write_all(&[4]).unwrap();
    let status = wait_for("it ends", || child.try_wait().unwrap());
    assert!(status.success());
    reading.join().unwrap();
    let screen = screen.lock().unwrap();
    assert_eq!(screen.matches("yes").count(), 0, "what was typed stands there already: {screen}");
}

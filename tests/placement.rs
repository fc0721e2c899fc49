//! What a cell says of its copies: where they are before a peer joins, after, and when one dies; alerts and the program that
//! is told of them; restore drills; metrics. Three cells as processes on loopback.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use common::fleet::{copied, kept, plant, wait_offline, wait_online};
use common::{Cell, Chance, TempDir, items, number, object, text, wait_for, walk};
use miniserde::json::{self, Object, Value};

/// Rounds every second, and peers that are given up soon.
const SETTINGS: [(&str, &str); 3] = [("sync.every_s", "1"), ("heal.grace_s", "2"), ("heal.settle_s", "3600")];

fn started(at: &Path, name: &str, settings: &[(&str, &str)]) -> Cell {
    let mut cell = Cell::at(at, name);
    cell.init(name, &SETTINGS);
    cell.change(settings);
    cell.run();
    cell
}

fn said(cell: &Cell, words: &[&str]) -> String {
    cell.cli(words).ok().out
}

fn first(object: &Object, list: &str) -> Object {
    match items(object, list).first() {
        Some(Value::Object(first)) => object_again(first),
        _ => Object::new(),
    }
}

fn object_again(part: &Object) -> Object {
    object(&json::to_string(part))
}

/// Metrics by name and labels; panics where the text is not as Prometheus wants it.
fn metrics(cell: &Cell) -> BTreeMap<String, f64> {
    let body = cell.ask(|client| {
        let answer = client.request("GET", "/metrics", None).and_then(|answer| answer.into_ok());
        answer.and_then(|answer| answer.text()).unwrap()
    });
    let (mut values, mut kinds) = (BTreeMap::new(), BTreeMap::new());
    let mut last = String::new();
    for line in body.lines() {
        if let Some(rest) = line.strip_prefix("# ") {
            let words: Vec<&str> = rest.splitn(3, ' ').collect();
            assert!(words.len() == 3 && ["HELP", "TYPE"].contains(&words[0]), "{line}");
            if words[0] == "TYPE" {
                assert!(["gauge", "counter"].contains(&words[2]), "{line}");
                assert!(kinds.insert(words[1].to_owned(), words[2].to_owned()).is_none(), "twice: {line}");
                last = words[1].to_owned();
            }
            continue;
        }
        let (name, value) = line.rsplit_once(' ').unwrap();
        let family = name.split('{').next().unwrap();
        assert_eq!(family, last, "families stand together: {line}");
        assert!(family.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{line}");
        assert_eq!(kinds[family] == "counter", family.ends_with("_total"), "{line}");
        let labels = name.strip_prefix(family).unwrap();
        assert!(labels.is_empty() || (labels.starts_with('{') && labels.ends_with("\"}")), "{line}");
        assert!(values.insert(name.to_owned(), value.parse().unwrap()).is_none(), "twice: {line}");
    }
    assert!(body.ends_with('\n'));
    values
}

#[test]
fn placement_is_told_before_a_peer_joins_after_and_when_one_dies() {
    let temp = TempDir::new("placement");
    let mut chance = Chance::seeded("placement");
    let ann = started(temp.path(), "ann", &[("copies", "2")]);
    plant(&ann.home, "photos/cat.jpg", &chance.bytes(5 << 20));
    plant(&ann.home, "notes.txt", b"three words here");
    plant(&ann.home, "empty", b"");
    kept(&ann, 3);
    let told = said(&ann, &["placement"]);
    assert!(told.contains("1 of 3 files"), "{told}");
    assert!(told.contains("! 2 files have only the copy here: notes.txt, photos/cat.jpg\n"), "{told}");
    assert!(told.contains("no copy is planned, for there is no peer yet"), "{told}");

    let mut attic = started(temp.path(), "attic", &[]);
    ann.invite(&attic);
    copied(&ann, 3);
    // Of all of them proofs are asked for now: by itself it asks for some, and a while later for those that came after.
    ann.job_done("/verify", r#"{"peers":true}"#);
    wait_for("copies are proven", || {
        let is_proven = |path: &str| {
            let page = ann.get(&format!("/placement?path={path}"));
            let holder = first(&first(&page, "files"), "holders");
            number(&holder, "unproven") == 0 && text(&holder, "peer") == "attic"
        };
        ["notes.txt", "photos%2Fcat.jpg"].into_iter().all(is_proven).then_some(())
    });
    let told = said(&ann, &["placement"]);
    assert!(told.starts_with("All 3 files (5.0 MiB) have their 2 copies.\n"), "{told}");
    assert!(told.contains("photos/cat.jpg (5.0 MiB): 2 copies, last proven today by attic\n"), "{told}");
    let told = said(&ann, &["placement", "photos/cat.jpg"]);
    assert!(told.contains("2 copies, last proven today by attic; 2 are wanted."), "{told}");
    assert!(told.contains("attic (in this network): a copy, proven today"), "{told}");

    // Pages are as small as asked for, and together say the same.
    let (mut after, mut names) = (String::new(), Vec::new());
    loop {
        let page = ann.get(&format!("/placement?limit=1&after={}", after.replace('/', "%2F")));
        assert_eq!(number(&page, "sums.files"), items(&page, "files").len() as u64);
        names.extend((!items(&page, "files").is_empty()).then(|| text(&first(&page, "files"), "path")));
        after = text(&page, "next");
        if after.is_empty() {
            break;
        }
    }
    assert_eq!(names, ["empty", "notes.txt", "photos/cat.jpg"]);

    // A second peer is here when the first dies, so that it is known to be silent: its copies are made anew.
    let bob = started(temp.path(), "bob", &[]);
    ann.invite(&bob);
    attic.kill();
    wait_for("the dead one's copies are with the other", || {
        let page = ann.get("/placement?path=photos/cat.jpg");
        let file = first(&page, "files");
        let has = |name: &str, key: &str| {
            items(&file, "holders").iter().any(|held| match held {
                Value::Object(held) => text(held, "peer") == name && number(held, key) > 0,
                _ => false,
            })
        };
        (has("attic", "away") && has("bob", "chunks") && text(&file, "risk") == "fine").then_some(())
    });
    let told = said(&ann, &["placement", "photos/cat.jpg"]);
    assert!(told.contains("attic has a copy, but has been silent too long, so it is not counted"), "{told}");
    assert!(told.contains("bob (in this network): a copy"), "{told}");
    let told = said(&ann, &["peers"]);
    assert!(told.contains("not counted on, silent for"), "{told}");
    let values = metrics(&ann);
    assert_eq!(values["grove_up"], 1.0);
    assert_eq!((values["grove_peers{state=\"here\"}"], values["grove_peers{state=\"away\"}"]), (1.0, 1.0));
    assert_eq!(values["grove_files"], 3.0);
    assert!(values["grove_moved_bytes_total{direction=\"pushed\"}"] > 5e6);
}

#[test]
fn a_program_is_told_when_an_alert_begins_and_when_it_is_over() {
    let temp = TempDir::new("alerts");
    let script = temp.path().join("tell");
    let out = temp.path().join("told");
    fs::write(
        &script,
        format!(
            "#!/bin/sh\necho \"$GROVE_ALERT_STATE $1 $(cat)\" >> {}\necho heard of $GROVE_ALERT_CODE\n",
            out.display()
        ),
    )
    .unwrap();
    fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let command = format!("[\"{}\", \"a word; not a command\"]", script.display());
    let mut ann = started(temp.path(), "ann", &[("alerts.command", &command)]);
    let lines = || -> Vec<String> {
        fs::read_to_string(&out).unwrap_or_default().lines().map(str::to_owned).collect()
    };
    wait_for("the program is told of the phrase", || {
        lines().iter().any(|line| line.contains("\"code\":\"phrase\"")).then_some(())
    });
    wait_for("that is written down", || ann.log().contains("alerts.command: heard of phrase").then_some(()));
    let told = lines();
    let line = told.iter().find(|line| line.contains("\"code\":\"phrase\"")).unwrap();
    let (head, alert) = line.split_at(line.find('{').unwrap());
    assert_eq!(head, "raised a word; not a command ");
    let alert = object(alert);
    assert_eq!((text(&alert, "cell"), text(&alert, "level")), ("ann".into(), "warn".into()));
    assert!(text(&alert, "remedy").contains("grove phrase"));
    // After a restart it holds still, and is not told again.
    let status = ann.get("/status");
    let since = |status: &Object| number(&first(status, "alerts"), "since_unix");
    assert!(since(&status) > 1_000_000);
    ann.stop();
    ann.run();
    wait_for("it is raised again", || ann.alert("phrase"));
    assert_eq!(since(&ann.get("/status")), since(&status));
    ann.post("/phrase/kept", "{}");
    wait_for("the program is told that it is over", || {
        lines().iter().any(|line| line.starts_with("cleared")).then_some(())
    });
    assert_eq!(lines().iter().filter(|line| line.contains("\"code\":\"phrase\"")).count(), 2);
    assert!(!metrics(&ann).keys().any(|name| name.starts_with("grove_alert{code=\"phrase\"")));
}

#[test]
fn a_drill_compares_what_peers_give_and_finds_what_they_lost() {
    let temp = TempDir::new("drill");
    let mut chance = Chance::seeded("drill");
    let mut ann = started(temp.path(), "ann", &[]);
    let refused = ann.cli(["drill"]);
    assert!(!refused.status.success() && refused.err.contains("no peer has copies"), "{refused:?}");
    for n in 0..6 {
        plant(&ann.home, &format!("file {n}"), &chance.bytes(300_000));
    }
    kept(&ann, 6);
    let mut bob = started(temp.path(), "bob", &[]);
    ann.invite(&bob);
    copied(&ann, 6);
    let store = || {
        let mut names = Vec::new();
        walk(&ann.dir.join("chunks"), &mut |path| names.push(path.to_owned()));
        names
    };
    let before = store();
    let told = said(&ann, &["drill"]);
    assert!(told.contains("6 chunks") && told.contains("of 6 files came back from bob"), "{told}");
    assert!(told.contains("6 were compared with what lies here\nall are as they were kept\n"), "{told}");
    assert_eq!(store(), before, "nothing was stored");
    assert!(said(&ann, &["status"]).contains("all as they were kept."));
    assert_eq!(metrics(&ann)["grove_drill_ok"], 1.0);

    // Not reached is not failed. All is proven before, so that bob is not asked for proofs again when he comes back: they would
    // find what the drill is to find.
    ann.job_done("/verify", r#"{"peers":true}"#);
    bob.stop();
    wait_offline(&ann);
    let refused = ann.cli(["drill"]);
    assert!(!refused.status.success() && refused.err.contains("is reached now"), "{refused:?}");
    assert_eq!(metrics(&ann)["grove_drill_ok"], 1.0);

    // Half of each chunk file of ann's with bob is turned over: the drill finds it, and the copies are made anew.
    let mut count = 0;
    walk(&bob.dir.join("chunks"), &mut |path| {
        if path.metadata().unwrap().len() > 300_000 {
            let mut bytes = fs::read(path).unwrap();
            bytes[150_000] ^= 1;
            fs::write(path, bytes).unwrap();
            count += 1;
        }
    });
    assert!(count > 0, "bob has chunks of the files");
    bob.run();
    wait_online(&[&ann, &bob]);
    let failed = ann.cli(["drill"]);
    assert_eq!(failed.status.code(), Some(1), "{failed:?}");
    assert!(failed.out.contains("from bob: it is damaged there"), "{failed:?}");
    let alert = ann.alert("drill-failed").unwrap();
    assert!(alert.contains("did not come back as they were kept"), "{alert}");
    assert_eq!(metrics(&ann)["grove_drill_ok"], 0.0);
    // Known after a restart, too.
    ann.stop();
    ann.run();
    wait_for("the alert is raised again", || ann.alert("drill-failed"));
    wait_for("a drill succeeds once the copies are made anew", || {
        copied(&ann, 6);
        ann.cli(["drill"]).status.success().then_some(())
    });
    assert_eq!(ann.alert("drill-failed"), None);
}

/// Copies of a file, those wanted, and with how many peers it is or was.
fn copies_of(cell: &Cell, path: &str) -> (u64, u64, usize) {
    let file = first(&cell.get(&format!("/placement?path={}", path.replace('/', "%2F"))), "files");
    (number(&file, "copies"), number(&file, "wanted"), items(&file, "holders").len())
}

fn wait_copies(cell: &Cell, path: &str, copies: u64) {
    let wanted = (copies, copies, copies as usize - 1);
    wait_for(&format!("{path} has {copies} copies"), || (copies_of(cell, path) == wanted).then_some(()));
}

#[test]
fn a_folder_has_as_many_copies_as_its_own_number_says() {
    let temp = TempDir::new("copies");
    let mut chance = Chance::seeded("copies");
    let mut ann = started(temp.path(), "ann", &[("copies", "2")]);
    let (attic, bob) = (started(temp.path(), "attic", &[]), started(temp.path(), "bob", &[]));
    let (film, shared) = (chance.bytes(5 << 20), chance.bytes(300_000));
    plant(&ann.home, "films/film", &film);
    plant(&ann.home, "films/old/shared", &shared);
    plant(&ann.home, "rest/shared-too", &shared);
    plant(&ann.home, "rest/notes", b"three words here");
    ann.invite(&attic);
    ann.invite(&bob);
    // Of two alike, who is measured faster or has proven more is given a chunk, or keeps it: two of one file could lie with two.
    said(&ann, &["peer", "favorite", "attic"]);
    copied(&ann, 4);
    assert!(said(&ann, &["copies"]).contains("No folder has a number of its own"));

    // Three copies among three cells, for the folder and what is in it.
    let told = said(&ann, &["copies", "films", "3"]);
    assert!(told.starts_with("films: 3 copies, its own number.\nMissing copies are made now."), "{told}");
    wait_copies(&ann, "films/film", 3);
    wait_copies(&ann, "films/old/shared", 3);
    wait_copies(&ann, "rest/notes", 2);
    let told = said(&ann, &["placement", "films/film"]);
    assert!(told.contains("; 3 are wanted, by the number of the folder films."), "{told}");
    let told = said(&ann, &["placement"]);
    assert!(
        told.contains("All 4 files") && told.contains("of their own (`grove copies`): films 3\n"),
        "{told}"
    );
    assert_eq!(said(&ann, &["copies", "films/old"]), "films/old: 3 copies, as films says.\n");

    // On this cell only; what another file has, too, stays as that wants it.
    let told = said(&ann, &["copies", "films", "1"]);
    assert!(told.contains("That is on this cell only: if its disk dies, these files are gone."), "{told}");
    wait_copies(&ann, "films/film", 1);
    wait_copies(&ann, "films/old/shared", 2);
    wait_copies(&ann, "rest/shared-too", 2);
    let refused = ann.cli(["rm", "--local", "films/film"]);
    assert!(!refused.status.success() && refused.err.contains("kept on this cell only"), "{refused:?}");

    // The holders' trash gives it back: its bytes are not sent again.
    let pushed = metrics(&ann)["grove_moved_bytes_total{direction=\"pushed\"}"];
    said(&ann, &["copies", "films", "2"]);
    wait_copies(&ann, "films/film", 2);
    let more = metrics(&ann)["grove_moved_bytes_total{direction=\"pushed\"}"] - pushed;
    assert!(more < 100_000.0, "{more}: no more than news of the catalog");

    // What is moved goes by the number of where it is, whoever moves it; and back.
    said(&ann, &["copies", "films/old", "3"]);
    ann.post("/move", r#"{"from":"films/film","to":"films/old/film"}"#);
    wait_copies(&ann, "films/old/film", 3);
    fs::rename(ann.home.join("films/old/film"), ann.home.join("rest/film")).unwrap();
    wait_for("the move is seen", || ann.try_get("/versions?path=rest%2Ffilm").ok());
    wait_copies(&ann, "rest/film", 2);
    // A folder takes its own number along, and files in it that have none by themselves follow.
    said(&ann, &["copies", "rest", "1"]);
    wait_copies(&ann, "rest/notes", 1);
    fs::rename(ann.home.join("rest"), ann.home.join("films/rest")).unwrap();
    wait_for("the move is seen", || ann.try_get("/versions?path=films%2Frest%2Fnotes").ok());
    assert!(said(&ann, &["copies", "films/rest/notes"]).contains("1 copy, as films/rest says"));
    said(&ann, &["copies", "films/rest", "default"]);
    wait_copies(&ann, "films/rest/notes", 2);
    for (words, why) in [
        (["copies", "films/rest/notes", "2"], "belongs to a folder"),
        (["copies", "nowhere", "2"], "there is no nowhere in GroveHome"),
    ] {
        let refused = ann.cli(words);
        assert!(!refused.status.success() && refused.err.contains(why), "{refused:?}");
    }

    // After a start, and with nothing but the phrase, the numbers are the same.
    ann.stop();
    ann.run();
    let numbers = said(&ann, &["copies"]);
    assert!(numbers.contains("films") && numbers.contains("films/old"), "{numbers}");
    wait_copies(&ann, "films/old/shared", 3);
    let phrase = ann.phrase();
    ann.kill();
    let note = temp.path().join("phrase");
    fs::write(&note, phrase).unwrap();
    let mut again = Cell::at(temp.path(), "ann again");
    let peer = attic.address();
    again.cli(["recover", "--peer", &peer, "--phrase-file", note.to_str().unwrap()]).ok();
    assert_eq!(said(&again, &["copies"]), numbers);
    again.keep_to_itself();
    again.run();
    wait_copies(&again, "films/old/shared", 3);
    wait_copies(&again, "films/rest/notes", 2);
}

//! A cell's models at one address: real cells, llama.cpp's own server with a model made here whose answers are known token by
//! token, and faults between them.

mod common;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use common::models::{
    FAST, Heard, Llama, MIDDLING, SLOW, a_name, ask, ask_until, befriend, cell, count_body, counted, get,
    hostile, is_whole, metric, model, needs, post, rss_kib, script, wait_backends,
};
use common::{Cell, TempDir, free_port, is_ci, items, number, object, text, wait_for};
use miniserde::json::{self, Object, Value};

// ---- Faults ----

/// What a fault does with connections.
const PASS: u8 = 0;
/// New ones are reset at once.
const RESET: u8 = 1;
/// Nothing passes any more, and nothing is closed.
const HOLE: u8 = 2;
/// An answer that is due to be cut stands still instead, for ever.
const STALL: u8 = 3;

/// Stands before a server, and breaks answers off when it is told to.
struct Fault {
    port: u16,
    mode: Arc<AtomicU8>,
    /// An answer is reset behind so many pieces of text, as long as cuts are left.
    cut_after: Arc<AtomicU64>,
    cuts_left: Arc<AtomicUsize>,
    is_over: Arc<AtomicBool>,
}

impl Fault {
    fn before(port: u16) -> Self {
        Self::sharing(port, &Arc::default())
    }

    /// Cuts are counted together with those of others.
    fn sharing(port: u16, cuts_left: &Arc<AtomicUsize>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let fault = Self {
            port: listener.local_addr().unwrap().port(),
            mode: Arc::new(AtomicU8::new(PASS)),
            cut_after: Arc::new(AtomicU64::new(1)),
            cuts_left: Arc::clone(cuts_left),
            is_over: Arc::default(),
        };
        let (mode, cut_after, cuts_left, is_over) =
            (fault.mode.clone(), fault.cut_after.clone(), fault.cuts_left.clone(), fault.is_over.clone());
        thread::spawn(move || {
            for client in listener.incoming() {
                if is_over.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(client) = client else { continue };
                if mode.load(Ordering::SeqCst) == RESET {
                    reset(&client);
                    continue;
                }
                let (mode, cut_after, cuts_left) = (mode.clone(), cut_after.clone(), cuts_left.clone());
                thread::spawn(move || pass(client, port, &mode, &cut_after, &cuts_left));
            }
        });
        fault
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    fn set(&self, mode: u8) {
        self.mode.store(mode, Ordering::SeqCst);
    }
}

impl Drop for Fault {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

fn reset(stream: &TcpStream) {
    let _ = rustix::net::sockopt::set_socket_linger(stream, Some(Duration::ZERO));
}

fn pass(client: TcpStream, port: u16, mode: &Arc<AtomicU8>, cut_after: &AtomicU64, cuts_left: &AtomicUsize) {
    let Ok(server) = TcpStream::connect(("127.0.0.1", port)) else { return reset(&client) };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (mut up_from, mut up_to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
    let up_mode = Arc::clone(mode);
    thread::spawn(move || {
        let mut piece = [0; 8192];
        loop {
            let read = up_from.read(&mut piece).unwrap_or(0);
            while up_mode.load(Ordering::SeqCst) == HOLE {
                thread::sleep(Duration::from_millis(10));
            }
            if read == 0 || up_to.write_all(&piece[..read]).is_err() {
                let _ = up_to.shutdown(Shutdown::Both);
                return;
            }
        }
    });
    let (mut from, mut to) = (server.try_clone().unwrap(), client.try_clone().unwrap());
    let (mut piece, mut seen, mut has_ended) = ([0; 8192], 0u64, false);
    loop {
        let read = from.read(&mut piece).unwrap_or(0);
        while mode.load(Ordering::SeqCst) == HOLE {
            thread::sleep(Duration::from_millis(10));
        }
        if read == 0 || to.write_all(&piece[..read]).is_err() {
            let _ = to.shutdown(Shutdown::Both);
            return;
        }
        let text = String::from_utf8_lossy(&piece[..read]);
        seen += text.matches("\"content\":\" ").count() as u64;
        // One that has ended cannot be cut any more.
        has_ended |= text.contains("\"finish_reason\":\"") || text.contains("[DONE]");
        let is_due = !has_ended && seen > 0 && seen >= cut_after.load(Ordering::SeqCst);
        let one_less = |left: usize| left.checked_sub(1);
        if is_due && cuts_left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_less).is_ok() {
            let _ = server.shutdown(Shutdown::Both);
            if mode.load(Ordering::SeqCst) == STALL {
                thread::sleep(Duration::from_secs(60));
            }
            // A reset would overtake what has not been read.
            wait_read(&client);
            // The last to hold it closes it: with a reset.
            reset(&client);
            let _ = client.shutdown(Shutdown::Both);
            return;
        }
    }
}

/// Waits until whoever is at the other end of a connection of this machine has read all that was written to it.
fn wait_read(stream: &TcpStream) {
    let (Ok(other), Ok(own)) = (stream.peer_addr(), stream.local_addr()) else { return };
    let (other, own) = (format!(":{:04X}", other.port()), format!(":{:04X}", own.port()));
    wait_for("what was said is read", || {
        let all = std::fs::read_to_string("/proc/net/tcp").unwrap();
        // Number, own address, that of the other end, state, bytes to be sent and to be read.
        let end = |line: &&str| {
            let mut words = line.split_whitespace().skip(1);
            words.next().is_some_and(|it| it.ends_with(&other))
                && words.next().is_some_and(|it| it.ends_with(&own))
        };
        let queues = all.lines().find(end).and_then(|line| line.split_whitespace().nth(4));
        queues.is_none_or(|queues| queues.ends_with(":00000000")).then_some(())
    });
}

// ---- Tests ----

#[test]
fn answers_stream_whole_and_errors_are_those_that_clients_expect() {
    let Some(_) = needs("answers_stream_whole_and_errors_are_those_that_clients_expect") else { return };
    let llama = Llama::start(FAST, "grove-tiny", 2);
    let at = TempDir::new("ai");
    let cell = cell(&at, "ann", &[llama.url()]);
    wait_backends(&cell, 1);

    let heard = ask(&cell, &count_body(999, r#","stream_options":{"include_usage":true}"#));
    is_whole(&heard, 999);
    assert_eq!((heard.finish.as_str(), heard.cell.as_str(), heard.usage), ("length", "ann", 999));
    let heard = ask(&cell, r#"{"messages":[{"role":"user","content":"hi"}],"stream":true,"temperature":0}"#);
    assert_eq!(
        (heard.text.as_str(), heard.finish.as_str()),
        (" Hello from the tiny Grove test model .", "stop")
    );

    // In one piece.
    let whole = count_body(5, "").replace("\"stream\":true", "\"stream\":false");
    let told = object(&ask(&cell, &whole).raw);
    let Some(Value::Object(choice)) = items(&told, "choices").first() else { panic!() };
    assert_eq!(text(choice, "message.content"), " 1 2 3 4 5");
    assert_eq!((number(&told, "usage.completion_tokens"), text(&told, "model").as_str()), (5, "grove-tiny"));
    assert_eq!(text(&told, "grove.cell"), "ann");
    let completion = ask_until(
        &cell,
        "/v1/completions",
        r#"{"model":"grove-tiny","prompt":" 1 2 3","max_tokens":4,"stream":true,"temperature":0}"#,
        |_| true,
    );
    assert_eq!((completion.text.as_str(), completion.is_done), (" 4 5 6 7", true));

    // Errors.
    let error = |path: &str, body: &str| {
        let heard = ask_until(&cell, path, body, |_| true);
        let told = object(&heard.raw);
        assert!(!text(&told, "error.message").is_empty(), "{heard:?}");
        (heard.status, text(&told, "error.type"), text(&told, "error.code"))
    };
    let chat = "/v1/chat/completions";
    let invalid = "invalid_request_error".to_owned();
    assert_eq!(error(chat, "{"), (400, invalid.clone(), String::new()));
    assert_eq!(error(chat, "{}"), (400, invalid.clone(), String::new()));
    let unknown = count_body(5, "").replace("auto", "gpt-9");
    assert_eq!(error(chat, &unknown), (404, invalid.clone(), "model_not_found".into()));
    let long =
        format!(r#"{{"messages":[{{"role":"user","content":"{}"}}],"stream":true}}"#, "count ".repeat(9000));
    assert_eq!(error(chat, &long), (400, invalid.clone(), "context_length_exceeded".into()));
    assert_eq!(error("/v1/nothing", "{}").0, 404);

    // Models, keys, and the command line.
    let models = object(&cell.client().get_json("/v1/models").unwrap());
    let ids: Vec<String> = items(&models, "data")
        .iter()
        .map(|item| if let Value::Object(item) = item { text(item, "id") } else { String::new() })
        .collect();
    assert_eq!(ids, ["auto", "grove-tiny"]);
    let key = cell.cli(["ai", "--new-key", "laptop"]).ok().out.trim().to_owned();
    let stored = std::fs::read_to_string(cell.dir.join("ai.json")).unwrap();
    assert!(!stored.contains(&key) && stored.contains("laptop"));
    let mode = std::fs::metadata(cell.dir.join("ai.json")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let port = cell.port();
    let with = |key: &str| {
        let client = grove::cli::client::Client::new(port, key);
        let asked = client.request("GET", "/v1/models", None).unwrap().status;
        (asked, client.request("GET", "/api/v1/status", None).unwrap().status)
    };
    assert_eq!((with(&key), with("grove-wrong")), ((200, 401), (401, 401)));
    let id = text(&object(&json::to_string(&items(&cell.get("/ai"), "keys")[0])), "id");
    cell.cli(["ai", "--revoke-key", &id]).ok();
    assert_eq!(with(&key).0, 401);
    assert_eq!(cell.cli(["ai", "say", "something"]).ok().out, " Hello from the tiny Grove test model .\n");
    assert!(cell.cli(["ai", "--backends"]).ok().out.contains("grove-tiny"));
}

#[test]
fn a_hundred_kills_in_mid_answer_give_the_exact_text() {
    let Some(_) = needs("a_hundred_kills_in_mid_answer_give_the_exact_text") else { return };
    let (one, two) = (Llama::start(FAST, "grove-tiny", 2), Llama::start(FAST, "grove-tiny", 2));
    let cuts = Arc::new(AtomicUsize::new(0));
    let (before_one, before_two) = (Fault::sharing(one.port, &cuts), Fault::sharing(two.port, &cuts));
    let at = TempDir::new("ai-kills");
    let cell = cell(&at, "ann", &[before_one.url(), before_two.url()]);
    wait_backends(&cell, 2);
    let mut gaps = Vec::new();
    for round in 0..100u64 {
        // Whoever is asked breaks off, once.
        for fault in [&before_one, &before_two] {
            fault.cut_after.store(1 + round * 7 % 190, Ordering::SeqCst);
        }
        cuts.store(1, Ordering::SeqCst);
        let heard = ask(&cell, &count_body(300, ""));
        is_whole(&heard, 300);
        assert_eq!(cuts.load(Ordering::SeqCst), 0, "it was cut");
        gaps.push(heard.gap);
    }
    gaps.sort();
    println!("gap: median {:?}, largest {:?}", gaps[50], gaps[99]);
    // A reset can overtake the first text: then it is asked anew, and nothing is to be gone on with.
    let (resumes, failovers) =
        (metric(&cell, "grove_ai_resumes_total"), metric(&cell, "grove_ai_failovers_total"));
    assert!(resumes >= 90 && resumes + failovers >= 100, "{resumes} and {failovers}");
}

#[test]
fn a_real_kill_in_mid_answer_is_survived() {
    let Some(_) = needs("a_real_kill_in_mid_answer_is_survived") else { return };
    // Slow ones: the answer is not written to its end before the kill, however late that comes.
    let (mut one, two) = (Llama::start(SLOW, "grove-tiny", 1), Llama::start(SLOW, "grove-tiny", 1));
    let at = TempDir::new("ai-kill");
    let cell = cell(&at, "ann", &[one.url(), two.url()]);
    wait_backends(&cell, 2);
    let mut killed = false;
    let heard = ask_until(&cell, "/v1/chat/completions", &count_body(200, ""), |text| {
        if text == " 40" {
            killed = one.busy_slots() > 0;
            if killed {
                one.kill();
            }
        }
        true
    });
    assert!(killed, "the first of two equal ones is asked");
    is_whole(&heard, 200);
    assert_eq!(metric(&cell, "grove_ai_resumes_total"), 1);
}

#[test]
fn a_truncated_answer_never_looks_whole() {
    let Some(_) = needs("a_truncated_answer_never_looks_whole") else { return };
    let llama = Llama::start(FAST, "grove-tiny", 1);
    let fault = Fault::before(llama.port);
    let at = TempDir::new("ai-cut");
    let cell = cell(&at, "ann", &[fault.url()]);
    wait_backends(&cell, 1);
    // Each try is cut: the answer is gone on with once, and then it ends with an error.
    fault.cut_after.store(5, Ordering::SeqCst);
    fault.cuts_left.store(usize::MAX, Ordering::SeqCst);
    let heard = ask(&cell, &count_body(300, ""));
    assert!(!heard.is_done && heard.finish.is_empty() && !heard.error.is_empty(), "{heard:?}");
    assert!(counted(300).starts_with(&heard.text) && heard.text.len() > 5);
    // And one that nobody can go on with, since its chances are asked for.
    let heard = ask(&cell, &count_body(300, r#","logprobs":true"#));
    assert!(!heard.is_done && !heard.error.is_empty(), "{heard:?}");
}

#[test]
fn no_question_is_lost_while_a_backend_is_killed_and_restarted() {
    let Some(_) = needs("no_question_is_lost_while_a_backend_is_killed_and_restarted") else { return };
    let (mut one, two) = (Llama::start(FAST, "grove-tiny", 2), Llama::start(FAST, "grove-tiny", 2));
    let at = TempDir::new("ai-thousand");
    let cell = cell(&at, "ann", &[one.url(), two.url()]);
    wait_backends(&cell, 2);
    let (done, is_over) = (AtomicUsize::new(0), AtomicBool::new(false));
    let (done, is_over, asked) = (&done, &is_over, &cell);
    let wrong: Vec<Heard> = thread::scope(|scope| {
        let workers: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(move || {
                    let mut wrong = Vec::new();
                    while done.fetch_add(1, Ordering::SeqCst) < 1000 {
                        let heard = ask(asked, &count_body(20, ""));
                        if heard.text != counted(20) || !heard.is_done {
                            wrong.push(heard);
                        }
                    }
                    wrong
                })
            })
            .collect();
        let killer = scope.spawn(move || {
            let mut kills = 0;
            while !is_over.load(Ordering::SeqCst) && done.load(Ordering::SeqCst) < 950 {
                one.kill();
                kills += 1;
                one.again();
                thread::sleep(Duration::from_millis(300));
            }
            kills
        });
        let wrong = workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect();
        is_over.store(true, Ordering::SeqCst);
        println!("killed {} times", killer.join().unwrap());
        wrong
    });
    assert!(wrong.is_empty(), "{} of 1000: {:?}", wrong.len(), wrong.first());
}

#[test]
fn a_client_that_goes_away_frees_the_slot() {
    let Some(_) = needs("a_client_that_goes_away_frees_the_slot") else { return };
    let llama = Llama::start(SLOW, "grove-tiny", 1);
    let at = TempDir::new("ai-cancel");
    let (a, b) = (cell(&at, "ann", &[]), cell(&at, "bob", &[llama.url()]));
    wait_backends(&b, 1);
    befriend(&a, &b, true);
    wait_backends(&a, 1);
    for asked in [&b, &a] {
        let heard = ask_until(asked, "/v1/chat/completions", &count_body(900, ""), |text| text != " 3");
        assert_eq!((heard.text.as_str(), heard.cell.as_str()), (" 1 2 3", "bob"));
        let began = Instant::now();
        wait_for("the slot is free", || (llama.busy_slots() == 0).then_some(()));
        println!("free after {:?}", began.elapsed());
    }
}

#[test]
fn a_friends_model_answers_within_its_offer_and_nothing_is_kept() {
    let Some(_) = needs("a_friends_model_answers_within_its_offer_and_nothing_is_kept") else { return };
    let llama = Llama::start(FAST, "grove-tiny", 2);
    let at = TempDir::new("ai-friends");
    let (a, b) = (cell(&at, "ann", &[]), cell(&at, "bob", &[llama.url()]));
    wait_backends(&b, 1);
    assert_eq!(ask(&a, &count_body(5, "")).status, 503);
    befriend(&a, &b, false);
    // Offered is nothing until it is said.
    assert_eq!(ask(&a, &count_body(5, "")).status, 503);
    b.cli(["ai", "--offer", "ann", "--models", "grove-tiny", "--tokens", "400", "--concurrent", "1"]).ok();
    wait_backends(&a, 1);

    let heard = ask(&a, &count_body(300, r#","stream_options":{"include_usage":true}"#));
    is_whole(&heard, 300);
    assert_eq!((heard.cell.as_str(), heard.usage), ("bob", 300));
    // The day's tokens end in the middle: an error, and no end that looks whole.
    let heard = ask(&a, &count_body(300, ""));
    assert!(!heard.is_done && !heard.error.is_empty() && counted(300).starts_with(&heard.text), "{heard:?}");
    wait_for("the budget is told", || (ask(&a, &count_body(5, "")).status == 503).then_some(()));
    let used = object(&json::to_string(&items(&b.get("/ai"), "offers")[0]));
    assert!((400..=520).contains(&number(&used, "used_today")), "{}", json::to_string(&used));

    // Here only, and by name.
    b.cli(["ai", "--offer", "ann", "--tokens", "0"]).ok();
    wait_for("it answers again", || (ask(&a, &count_body(5, "")).status == 200).then_some(()));
    assert_eq!(ask(&a, &count_body(5, r#","grove":{"only_here":true}"#)).status, 503);
    assert_eq!(ask(&a, &count_body(5, r#","grove":{"cell":"bob"}"#)).cell, "bob");
    assert_eq!(ask(&a, &count_body(5, r#","grove":{"cell":"ann"}"#)).status, 503);
    assert_eq!(ask(&a, &count_body(5, r#","grove":{"cell":"zoe"}"#)).status, 404);
    assert_eq!(a.cli(["ai", "--cell", "bob", "hi"]).ok().out, " Hello from the tiny Grove test model .\n");

    // Another model is not offered, and the end of the offer is told.
    b.cli(["ai", "--offer", "ann", "--models", "other"]).ok();
    wait_for("nothing is offered", || (ask(&a, &count_body(5, "")).status == 503).then_some(()));
    b.cli(["ai", "--offer", "ann", "--models", "grove-tiny"]).ok();
    wait_for("it is offered", || (ask(&a, &count_body(5, "")).status == 200).then_some(()));
    b.cli(["ai", "--offer", "ann", "--off"]).ok();
    wait_for("the offer has ended", || (ask(&a, &count_body(5, "")).status == 503).then_some(()));

    // Nothing of it lies at the friend's cell.
    let secret = "xyzzy-plugh-4711";
    b.cli(["ai", "--offer", "ann"]).ok();
    let body = format!(r#"{{"messages":[{{"role":"user","content":"{secret}"}}],"stream":true}}"#);
    wait_for("it is offered", || (ask(&a, &body).status == 200).then_some(()));
    for folder in [&b.dir, &b.home] {
        let found = Command::new("grep").args(["-r", "-l", "-a", secret]).arg(folder).output().unwrap();
        assert!(found.stdout.is_empty(), "{}", String::from_utf8_lossy(&found.stdout));
    }
    assert!(!b.log().contains(secret));
}

#[test]
fn three_cells_go_on_with_each_others_answers_and_one_hop_is_all() {
    let Some(_) = needs("three_cells_go_on_with_each_others_answers_and_one_hop_is_all") else { return };
    // Slow ones: whoever writes has not come to the end when it is switched off.
    let (one, two) = (Llama::start(SLOW, "grove-tiny", 1), Llama::start(SLOW, "grove-tiny", 1));
    let at = TempDir::new("ai-three");
    let (a, mut b, c) =
        (cell(&at, "ann", &[]), cell(&at, "bob", &[one.url()]), cell(&at, "cy", &[two.url()]));
    wait_backends(&b, 1);
    wait_backends(&c, 1);
    befriend(&a, &b, true);
    befriend(&a, &c, true);
    wait_backends(&a, 2);
    let mut who = String::new();
    let mut c = c;
    let heard = ask_until(&a, "/v1/chat/completions", &count_body(200, ""), |text| {
        if text == " 40" {
            // Whoever writes is switched off.
            who = if one.busy_slots() > 0 { "bob" } else { "cy" }.to_owned();
            if who == "bob" { b.kill() } else { c.kill() }
        }
        true
    });
    is_whole(&heard, 200);
    assert_eq!(heard.cell, who);
    assert_eq!(metric(&a, "grove_ai_resumes_total"), 1);
    // Ann offers what she has: a server that she is given now, and not her friends'.
    let other = if who == "bob" { &c } else { &b };
    let own = Llama::start(MIDDLING, "ann-tiny", 1);
    a.post("/ai/backends", &format!(r#"{{"add":{{"url":"{}"}}}}"#, own.url()));
    a.cli(["ai", "--offer", &a_name(other)]).ok();
    let told = wait_for("her own model is told", || {
        let told = other.get("/ai");
        json::to_string(&told).contains("ann-tiny").then_some(told)
    });
    let friends: Vec<String> = items(&told, "backends")
        .iter()
        .filter(|backend| matches!(backend, Value::Object(backend) if text(backend, "kind") == "friend"))
        .map(json::to_string)
        .collect();
    assert!(friends.len() == 1 && !friends[0].contains("grove-tiny"), "{friends:?}");
}

#[test]
fn a_server_that_has_gone_silent_is_given_up_within_two_seconds() {
    let Some(_) = needs("a_server_that_has_gone_silent_is_given_up_within_two_seconds") else { return };
    let (one, two) = (Llama::start(FAST, "grove-tiny", 1), Llama::start(FAST, "grove-tiny", 1));
    let fault = Fault::before(one.port);
    let at = TempDir::new("ai-hole");
    let cell = cell(&at, "ann", &[fault.url(), two.url()]);
    wait_backends(&cell, 2);
    is_whole(&ask(&cell, &count_body(20, "")), 20);
    fault.set(HOLE);
    let began = Instant::now();
    for _ in 0..3 {
        is_whole(&ask(&cell, &count_body(20, "")), 20);
    }
    println!("three answers after {:?}", began.elapsed());
    fault.set(PASS);
}

#[test]
fn an_answer_that_stands_still_is_gone_on_with() {
    let Some(_) = needs("an_answer_that_stands_still_is_gone_on_with") else { return };
    let (one, two) = (Llama::start(FAST, "grove-tiny", 1), Llama::start(FAST, "grove-tiny", 1));
    let cuts = Arc::new(AtomicUsize::new(0));
    let faults = [Fault::sharing(one.port, &cuts), Fault::sharing(two.port, &cuts)];
    let at = TempDir::new("ai-stall");
    let cell = cell(&at, "ann", &[faults[0].url(), faults[1].url()]);
    wait_backends(&cell, 2);
    faults.iter().for_each(|fault| {
        fault.set(STALL);
        fault.cut_after.store(20, Ordering::SeqCst);
    });
    cuts.store(1, Ordering::SeqCst);
    // The server itself is well, and works on nothing.
    let heard = ask(&cell, &count_body(300, ""));
    is_whole(&heard, 300);
    println!("gap {:?}", heard.gap);
    assert_eq!(metric(&cell, "grove_ai_resumes_total"), 1);
}

/// A friend's machine goes to sleep: before the first token another answers, in the middle of an answer another goes on.
#[test]
fn a_friend_whose_machine_falls_asleep_is_given_up() {
    let Some(_) = needs("a_friend_whose_machine_falls_asleep_is_given_up") else { return };
    let (fast, slow) = (Llama::start(MIDDLING, "grove-tiny", 1), Llama::start(SLOW, "grove-tiny", 1));
    let at = TempDir::new("ai-asleep");
    let (a, b) = (cell(&at, "ann", &[slow.url()]), cell(&at, "bob", &[fast.url()]));
    wait_backends(&b, 1);
    befriend(&a, &b, true);
    wait_backends(&a, 2);
    // Each is measured once.
    for name in ["ann", "bob"] {
        is_whole(&ask(&a, &count_body(20, &format!(r#","grove":{{"cell":"{name}"}}"#))), 20);
    }
    assert_eq!(ask(&a, &count_body(60, "")).cell, "bob");
    let signal = |signal| {
        let pid = rustix::process::Pid::from_raw(b.pid() as i32).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    };
    let heard = ask_until(&a, "/v1/chat/completions", &count_body(80, ""), |text| {
        if text == " 30" {
            signal(rustix::process::Signal::STOP);
        }
        true
    });
    is_whole(&heard, 80);
    println!("in the middle: gap {:?}", heard.gap);
    signal(rustix::process::Signal::CONT);
    wait_for("it is back", || {
        (ask(&a, &count_body(5, r#","grove":{"cell":"bob"}"#)).status == 200).then_some(())
    });
    signal(rustix::process::Signal::STOP);
    let heard = ask(&a, &count_body(10, ""));
    is_whole(&heard, 10);
    println!("before the first token: {:?}, by {}", heard.first, heard.cell);
    signal(rustix::process::Signal::CONT);
}

#[test]
fn a_managed_server_is_started_by_the_first_question_and_again_after_a_crash() {
    let Some(python) = needs("a_managed_server_is_started_by_the_first_question_and_again_after_a_crash")
    else {
        return;
    };
    let at = TempDir::new("ai-managed");
    let bin = at.path().join("bin");
    std::fs::create_dir(&bin).unwrap();
    let program = bin.join("llama-server");
    let which = Command::new(&python).args(["-c", "import sys; print(sys.executable)"]).output().unwrap();
    let which = String::from_utf8(which.stdout).unwrap();
    let shell = format!("#!/bin/sh\nexec {} {} \"$@\"\n", which.trim(), script("llama_server.py").display());
    std::fs::write(&program, shell).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut cell = Cell::at(at.path(), "ann");
    cell.init("ann", &[("ai.idle_s", "10")]);
    std::fs::create_dir_all(cell.dir.join("models")).unwrap();
    std::fs::copy(model(FAST), cell.dir.join("models/count.gguf")).unwrap();
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    cell.env.push(("PATH".into(), path));
    cell.run();
    let state = |cell: &Cell| {
        let told = cell.get("/ai");
        let Some(Value::Object(backend)) = items(&told, "backends").first() else { return String::new() };
        text(backend, "state")
    };
    assert_eq!(state(&cell), "asleep");
    is_whole(&ask(&cell, &count_body(30, "")), 30);
    assert_eq!(state(&cell), "ready");
    let marker = cell.dir.join("models/count.gguf").display().to_string();
    let child = || {
        let mut pids = std::fs::read_dir("/proc")
            .unwrap()
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        pids.find(|pid| {
            std::fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.contains(&marker))
        })
    };
    let pid = child().expect("the child runs");
    let environ = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap();
    assert!(!environ.contains("api-key"));
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(pid).unwrap(),
        rustix::process::Signal::KILL,
    )
    .unwrap();
    is_whole(&ask(&cell, &count_body(30, "")), 30);
    assert_ne!(child().expect("the child runs again"), pid);
    wait_for("it is stopped when idle", || (state(&cell) == "asleep" && child().is_none()).then_some(()));
    is_whole(&ask(&cell, &count_body(30, "")), 30);
    cell.stop();
    assert!(child().is_none(), "it ends with the cell");
}

#[test]
fn a_server_that_wants_a_key_gets_it_and_conversations_stay_here() {
    let Some(_) = needs("a_server_that_wants_a_key_gets_it_and_conversations_stay_here") else { return };
    let llama = Llama::on(free_port(), model(FAST), "grove-tiny", 1, Some("s3cret"));
    let at = TempDir::new("ai-key");
    let mut cell = cell(&at, "ann", &[]);
    let test = |key: &str| cell.post("/ai/test", &format!(r#"{{"url":"{}","key":"{key}"}}"#, llama.url()));
    assert!(matches!(test("s3cret").get("ok"), Some(Value::Bool(true))));
    assert_eq!(text(&test("s3cret"), "kind"), "llama.cpp");
    assert!(text(&test("wrong"), "error").contains("key"), "{}", json::to_string(&test("wrong")));
    cell.cli(["ai", "--add-backend", &llama.url(), "--key", "s3cret"]).ok();
    is_whole(&ask(&cell, &count_body(9, "")), 9);
    assert!(!json::to_string(&cell.get("/ai")).contains("s3cret"));

    let talk = r#"{"title":"t","model":"auto","only_here":true,"messages":[{"role":"user","content":"q"},{"role":"assistant","content":"a","cell":"ann"}]}"#;
    let id = text(&cell.post("/ai/conversations", talk), "id");
    cell.stop();
    cell.run();
    let told = cell.get("/ai/conversations");
    assert_eq!(items(&told, "conversations").len(), 1);
    assert_eq!(items(&cell.get(&format!("/ai/conversations/{id}")), "messages").len(), 2);
    cell.post(&format!("/ai/conversations/{id}/delete"), "{}");
    assert_eq!(items(&cell.get("/ai/conversations"), "conversations").len(), 0);
    // The server, too, was kept.
    wait_backends(&cell, 1);
    is_whole(&ask(&cell, &count_body(9, "")), 9);
    cell.cli(["ai", "--remove-backend", &llama.url()]).ok();
    assert_eq!(ask(&cell, &count_body(9, "")).status, 503);
}

/// A cell with llama.cpp's server, and one whose answers are all cut: what clients are tried on.
fn clients(test: &str, has: impl FnOnce(&Path) -> bool, what: &str, run: impl FnOnce(&Path, [&str; 4])) {
    let Some(python) = needs(test) else { return };
    if !has(&python) {
        assert!(!is_ci(), "this needs {what}");
        println!("skipped: {test} (it needs {what})");
        return;
    }
    let llama = Llama::start(FAST, "grove-tiny", 2);
    let fault = Fault::before(llama.port);
    fault.cut_after.store(5, Ordering::SeqCst);
    fault.cuts_left.store(usize::MAX, Ordering::SeqCst);
    let at = TempDir::new("ai-clients");
    let (a, b) = (cell(&at, "ann", &[llama.url()]), cell(&at, "bob", &[fault.url()]));
    let base = |cell: &Cell| {
        wait_backends(cell, 1);
        let key = cell.cli(["ai", "--new-key", "client"]).ok().out.trim().to_owned();
        (format!("http://127.0.0.1:{}/v1", cell.port()), key)
    };
    let ((base, key), (broken_base, broken_key)) = (base(&a), base(&b));
    run(&python, [&base, &key, &broken_base, &broken_key]);
    // Whatever a client gave up, nobody works on it. llm closes nothing before its end, and by then all has been said.
    assert!(test.starts_with("llm") || metric(&a, "grove_ai_cancelled_total") >= 1);
    wait_for("the slots are free", || (llama.busy_slots() == 0).then_some(()));
}

fn runs(command: &mut Command) {
    let said = command.output().unwrap();
    let (out, why) = (String::from_utf8_lossy(&said.stdout), String::from_utf8_lossy(&said.stderr));
    assert!(said.status.success() && out.trim() == "ok", "{out}{why}");
}

/// The Python has this package.
fn has_module(python: &Path, name: &str) -> bool {
    let asked = Command::new(python).args(["-c", &format!("import {name}")]).stderr(Stdio::null()).status();
    asked.is_ok_and(|status| status.success())
}

/// Node.js is there, and the packages of `tests/ai/package-lock.json` are.
fn has_node() -> bool {
    let has_package = script("node_modules/openai").exists() && script("node_modules/ai").exists();
    has_package && Command::new("node").arg("--version").stdout(Stdio::null()).status().is_ok()
}

const NODE: &str = "Node.js and what tests/ai/package-lock.json names: npm ci --prefix tests/ai";

#[test]
fn openais_client_for_python_streams_exact_tokens_and_knows_the_errors() {
    let name = "openais_client_for_python_streams_exact_tokens_and_knows_the_errors";
    let has = |python: &Path| has_module(python, "openai");
    clients(name, has, "Python's package openai", |python, args| {
        runs(Command::new(python).arg(script("openai_client.py")).args(args));
    });
}

#[test]
fn llm_streams_exact_tokens_and_knows_the_errors() {
    let name = "llm_streams_exact_tokens_and_knows_the_errors";
    let folder = TempDir::new("ai-llm");
    clients(
        name,
        |python| has_module(python, "llm"),
        "Python's package llm",
        |python, args| {
            runs(Command::new(python).arg(script("llm_client.py")).args(args).arg(folder.path()));
        },
    );
}

#[test]
fn openais_client_for_javascript_streams_exact_tokens_and_knows_the_errors() {
    let name = "openais_client_for_javascript_streams_exact_tokens_and_knows_the_errors";
    clients(
        name,
        |_| has_node(),
        NODE,
        |_, args| {
            runs(Command::new("node").arg(script("openai_client.mjs")).args(args));
        },
    );
}

#[test]
fn the_ai_sdk_streams_exact_tokens_and_knows_the_errors() {
    let name = "the_ai_sdk_streams_exact_tokens_and_knows_the_errors";
    clients(
        name,
        |_| has_node(),
        NODE,
        |_, args| {
            runs(Command::new("node").arg(script("ai_sdk_client.mjs")).args(args));
        },
    );
}

/// Numbers for texts where a server makes them, here and at a friend's; a clean error where none does.
#[test]
fn embeddings_are_those_of_the_server_that_makes_them() {
    let Some(_) = needs("embeddings_are_those_of_the_server_that_makes_them") else { return };
    let (chats, embeds) = (Llama::start(FAST, "grove-tiny", 1), Llama::embedding(FAST, "grove-embed"));
    let at = TempDir::new("ai-embed");
    let (a, b) = (cell(&at, "ann", &[]), cell(&at, "bob", &[chats.url(), embeds.url()]));
    wait_backends(&b, 2);
    let body = |model: &str| format!(r#"{{"model":"{model}","input":["count","hello there","count"]}}"#);
    let direct = post(embeds.port, "/v1/embeddings", &body("grove-embed"));
    let wanted = vectors(&object(&direct.1));
    assert!(direct.0 == 200 && wanted.len() == 3 && wanted[0] == wanted[2] && wanted[0] != wanted[1]);
    let ask_for = |cell: &Cell, body: &str| {
        let heard = ask_until(cell, "/v1/embeddings", body, |_| true);
        (heard.status, object(&heard.raw))
    };
    // "auto" finds the server that can, whoever is asked first.
    for model in ["grove-embed", "auto"] {
        let (status, told) = ask_for(&b, &body(model));
        assert_eq!(status, 200, "{}", json::to_string(&told));
        assert_eq!((vectors(&told), text(&told, "grove.cell")), (wanted.clone(), "bob".into()));
    }
    is_whole(&ask(&b, &count_body(9, "")), 9);
    let (status, told) = ask_for(&b, &body("grove-tiny"));
    assert_eq!((status, text(&told, "error.code")), (404, "not_supported".into()));
    assert!(text(&told, "error.message").contains("embedding"), "{}", json::to_string(&told));
    assert_eq!(ask_for(&b, r#"{"model":"grove-embed"}"#).0, 400);

    befriend(&a, &b, true);
    wait_backends(&a, 1);
    let (status, told) = ask_for(&a, &body("grove-embed"));
    assert_eq!((status, vectors(&told), text(&told, "grove.cell")), (200, wanted, "bob".into()));
    let (status, told) = ask_for(&a, &body("grove-tiny"));
    assert_eq!((status, text(&told, "error.code")), (404, "not_supported".into()));
    is_whole(&ask(&a, &count_body(9, "")), 9);
}

fn vectors(told: &Object) -> Vec<String> {
    let vector = |item: &Value| match item {
        Value::Object(item) => json::to_string(&item["embedding"]),
        _ => String::new(),
    };
    items(told, "data").iter().map(vector).collect()
}

/// An offer for two hours of the day: used in them, not before and not after, while both cells run.
#[test]
fn an_offer_holds_in_its_hours_only() {
    let Some(_) = needs("an_offer_holds_in_its_hours_only") else { return };
    const RATE: u64 = 600;
    const HOUR_S: u64 = 3600;
    let llama = Llama::start(FAST, "grove-tiny", 2);
    let at = TempDir::new("ai-hours");
    let (a, mut b) = (cell(&at, "ann", &[]), cell(&at, "bob", &[llama.url()]));
    wait_backends(&b, 1);
    befriend(&a, &b, true);
    wait_backends(&a, 1);
    b.cli(["ai", "--offer", "ann", "--hours", "13-15", "--tokens", "0"]).ok();
    b.stop();
    // Nine o'clock on some day; an hour is six seconds. So long before the hours that a slow start is not late.
    let since_epoch = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
    let now = since_epoch() as u64;
    let start = (now / (24 * HOUR_S) + 2) * 24 * HOUR_S + 9 * HOUR_S;
    let begin = (now * RATE - start) / (RATE - 1);
    let hour = || {
        let wall = begin as f64 + (since_epoch() - begin as f64) * RATE as f64;
        (wall / HOUR_S as f64) as u64 % 24
    };
    b.env = vec![("GROVE_TEST_CLOCK".into(), format!("{begin}:{RATE}")), ("TZ".into(), "UTC0".into())];
    b.run();
    let mut seen = Vec::new();
    wait_for("the hours come and go", || {
        let before = hour();
        let heard = ask(&a, &count_body(3, ""));
        let after = hour();
        // Where it turns meanwhile, either is right.
        if before == after {
            let answers = heard.status == 200;
            let is_open = (13..15).contains(&before);
            assert!(!answers || is_open, "answered at {before}");
            if answers {
                is_whole(&heard, 3);
            } else {
                assert!([503, 404].contains(&heard.status), "{heard:?}");
            }
            if seen.last() != Some(&(is_open, answers)) {
                seen.push((is_open, answers));
            }
        }
        (seen.contains(&(true, true)) && seen.last() == Some(&(false, false))).then_some(())
    });
    println!("{seen:?}");
    assert_eq!(seen.first(), Some(&(false, false)), "it began before");
}

/// A server behind TLS whose certificate nobody vouches for: not believed, unless its hash stands behind the address.
#[test]
fn a_server_behind_tls_is_believed_by_its_certificate() {
    let name = "a_server_behind_tls_is_believed_by_its_certificate";
    let Some(python) = needs(name) else { return };
    let at = TempDir::new("ai-tls");
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"])
        .args(["-days", "2", "-subj", "/CN=model.test", "-keyout", "key.pem", "-out", "cert.pem"])
        .current_dir(at.path())
        .stderr(Stdio::null())
        .status();
    if !made.is_ok_and(|status| status.success()) {
        assert!(!is_ci(), "this needs openssl");
        println!("skipped: {name} (it needs openssl)");
        return;
    }
    let mut tell = Command::new("openssl");
    tell.args(["x509", "-in", "cert.pem", "-outform", "DER"]).current_dir(at.path());
    let hash = grove::id::hex(&grove::keys::sha256(&tell.output().unwrap().stdout));
    let llama = Llama::on(free_port(), model(FAST), "grove-tiny", 1, Some("s3cret"));
    let port = free_port();
    let mut proxy = Command::new(&python);
    proxy.arg(script("tls_proxy.py")).args([&port.to_string(), &llama.port.to_string()]).arg(at.path());
    let _proxy = Ended(proxy.spawn().unwrap());
    wait_for("the proxy listens", || TcpStream::connect(("127.0.0.1", port)).ok());
    let cell = cell(&at, "ann", &[]);
    let plain = format!("https://127.0.0.1:{port}");
    let pinned = format!("{plain}#cert:{hash}");
    let error =
        |url: &str| text(&cell.post("/ai/test", &format!(r#"{{"url":"{url}","key":"s3cret"}}"#)), "error");
    // What is said is enough to go on: the hash to be compared.
    let why = error(&plain);
    assert!(why.contains("vouches") && why.contains(&format!("#cert:{hash}")), "{why}");
    let why = error(&format!("{plain}#cert:{}", "00".repeat(32)));
    assert!(why.contains("certificate") && !why.contains(&hash), "{why}");
    assert_eq!(error(&pinned), "");
    cell.cli(["ai", "--add-backend", &pinned, "--key", "s3cret"]).ok();
    wait_backends(&cell, 1);
    is_whole(&ask(&cell, &count_body(300, "")), 300);
    // Going away is heard through TLS, too.
    let heard = ask_until(&cell, "/v1/chat/completions", &count_body(999, ""), |text| text != " 20");
    assert_eq!(heard.text, counted(20));
    wait_for("it was given up", || (metric(&cell, "grove_ai_cancelled_total") == 1).then_some(()));
    is_whole(&ask(&cell, &count_body(9, "")), 9);
    cell.cli(["ai", "--remove-backend", &pinned]).ok();
    assert_eq!(ask(&cell, &count_body(9, "")).status, 503);
}

/// A program that ends with this.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Ollama's protocol, by an emulator in front of llama.cpp's server: it is not Ollama.
#[test]
fn ollamas_protocol_is_spoken() {
    let Some(python) = needs("ollamas_protocol_is_spoken") else { return };
    let proxy = python.with_file_name("ollama-proxy");
    if !proxy.exists() {
        assert!(!is_ci(), "this needs Python's package ollama-proxy-plus");
        println!("skipped: ollamas_protocol_is_spoken (it needs Python's package ollama-proxy-plus)");
        return;
    }
    let llama = Llama::start(FAST, "grove-tiny", 2);
    let port = free_port();
    let mut emulator = Command::new(&proxy);
    emulator.args(["--host", "127.0.0.1", "--port", &port.to_string()]);
    emulator
        .env("PROVIDERS_GROVE_API_KEY", "EMPTY")
        .env("PROVIDERS_GROVE_BASE_URL", format!("{}/v1", llama.url()));
    emulator.env("EXTRA_MODELS", "grove/grove-tiny").stdout(Stdio::null()).stderr(Stdio::null());
    let at = TempDir::new("ai-ollama");
    emulator.current_dir(at.path()).env("HOME", at.path());
    let _emulator = Ended(emulator.spawn().unwrap());
    wait_for("the emulator is there", || (get(port, "/api/version").ok()?.0 == 200).then_some(()));
    let cell = cell(&at, "ann", &[format!("http://127.0.0.1:{port}")]);
    wait_backends(&cell, 1);
    let told = cell.get("/ai");
    let Some(Value::Object(backend)) = items(&told, "backends").first() else { panic!() };
    assert_eq!(text(backend, "kind"), "ollama");
    let body = count_body(50, "").replace("auto", "grove/grove-tiny");
    let heard = ask(&cell, &body);
    assert_eq!((heard.text.as_str(), heard.is_done), (counted(50).as_str(), true), "{heard:?}");
    assert!(heard.finish == "stop" || heard.finish == "length");
}

#[test]
fn a_hostile_server_is_one_clean_error_and_memory_stays_flat() {
    let at = TempDir::new("ai-hostile");
    let head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n";
    let chunk = |text: &str| {
        format!(
            "data: {{\"id\":\"x\",\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\"{text}\"}},\"finish_reason\":null}}]}}\n\n"
        )
    };
    let (good, turn) = (chunk(" 1"), Arc::new(AtomicUsize::new(0)));
    let which = Arc::clone(&turn);
    let port = hostile(move |stream, _| {
        let _ = stream.write_all(head);
        let _ = stream.write_all(good.as_bytes());
        let flood = |stream: &mut TcpStream, piece: &[u8]| {
            let piece = piece.repeat(65_536 / piece.len());
            for _ in 0..(20 << 20) / piece.len() {
                if stream.write_all(&piece).is_err() {
                    return;
                }
            }
        };
        match which.load(Ordering::SeqCst) {
            0 => flood(stream, b" "),
            1 => flood(stream, b"\n"),
            2 => flood(stream, b"data: x"),
            3 => flood(stream, b": comment\n"),
            4 => drop(stream.write_all(b"data: {\"choices\":\n\n")),
            5 => drop(stream.write_all(format!("data: {}\n\n", "[".repeat(100_000)).as_bytes())),
            6 => drop(stream.write_all(b"data: [DONE]\n\n")),
            7 => drop(stream.write_all(b"data: \xff\xfe\n\n")),
            _ => drop(stream.write_all(b"data: {\"error\":{\"message\":\"out of luck\"}}\n\n")),
        }
    });
    let url = [format!("http://127.0.0.1:{port}")];
    let (a, b) = (cell(&at, "ann", &[]), cell(&at, "bob", &url));
    wait_backends(&b, 1);
    befriend(&a, &b, true);
    wait_backends(&a, 1);
    let before = (rss_kib(&a), rss_kib(&b));
    for case in 0..9 {
        turn.store(case, Ordering::SeqCst);
        for asked in [&b, &a] {
            wait_for("it is asked again", || {
                let heard = ask(asked, &count_body(20, ""));
                if heard.status == 503 {
                    return None;
                }
                assert!(
                    heard.text.starts_with(" 1") && !heard.is_done && !heard.error.is_empty(),
                    "{case}: {heard:?}"
                );
                assert!(heard.error.len() < 600 && heard.finish.is_empty(), "{case}: {heard:?}");
                Some(())
            });
        }
    }
    let grown = (rss_kib(&a).saturating_sub(before.0), rss_kib(&b).saturating_sub(before.1));
    println!("memory has grown by {grown:?} KiB");
    assert!(grown.0 < 8192 && grown.1 < 8192, "{grown:?}");
}

#[test]
fn many_streams_cost_little_and_the_faster_one_answers() {
    // One writes ten times as fast as the other.
    let writes = |pause: u64| {
        hostile(move |stream, _| {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n");
            for n in 1..=20 {
                let finish = if n == 20 { "\"stop\"" } else { "null" };
                let event = format!(
                    "data: {{\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\" {n}\"}},\"finish_reason\":{finish}}}]}}\n\n"
                );
                if stream.write_all(event.as_bytes()).is_err() {
                    return;
                }
                thread::sleep(Duration::from_millis(pause));
            }
            let _ = stream.write_all(b"data: [DONE]\n\n");
        })
    };
    let at = TempDir::new("ai-fast");
    let urls = [format!("http://127.0.0.1:{}", writes(50)), format!("http://127.0.0.1:{}", writes(5))];
    let cell = cell(&at, "ann", &urls);
    wait_backends(&cell, 2);
    let answered = |url: &str| {
        let told = cell.get("/ai");
        let found = items(&told, "backends").iter().find_map(|backend| match backend {
            Value::Object(backend) if text(backend, "url") == url => Some(number(backend, "answers")),
            _ => None,
        });
        found.unwrap()
    };
    for _ in 0..60 {
        is_whole(&Heard { finish: String::new(), ..ask(&cell, &count_body(20, "")) }, 20);
    }
    let (of_slow, of_fast) = (answered(&urls[0]), answered(&urls[1]));
    println!("the slow one answered {of_slow}, the fast one {of_fast}");
    assert!(of_fast * 10 >= (of_slow + of_fast) * 9);
    const STREAMS: u64 = 50;
    let before = rss_kib(&cell);
    let most = AtomicU64::new(0);
    thread::scope(|scope| {
        for _ in 0..STREAMS {
            scope.spawn(|| {
                let heard = ask_until(&cell, "/v1/chat/completions", &count_body(20, ""), |_| {
                    most.fetch_max(rss_kib(&cell), Ordering::SeqCst);
                    true
                });
                assert_eq!(heard.text, counted(20), "{heard:?}");
            });
        }
    });
    let each = most.load(Ordering::SeqCst).saturating_sub(before) / STREAMS;
    println!("{each} KiB a stream");
    assert!(each <= 100, "{each} KiB a stream");
}

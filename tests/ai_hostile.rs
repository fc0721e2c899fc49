//! A friend who offers models and means no good: played by hand over the real session, against a cell that runs.

mod common;

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::false_friend::{Rogue, Step, boast, chunk, end, part};
use common::models::{
    Heard, a_name, ask, ask_until, cell, count_body, counted, hostile, metric, rss_kib, wait_backends,
};
use common::{Cell, Chance, TempDir, items, object, text, wait_for};
use grove::ai::friend::{Beat, OfferedModel};
use grove::wire::message::{self, AskError, ErrorCode, Refusal, Reply, Request};
use miniserde::json::Value;

const NONE: Duration = Duration::ZERO;

/// A question that names its case.
fn body(case: &str, last: usize, streams: bool) -> String {
    let body = count_body(last, "").replace("\"count\"", &format!("\"[{case}]\""));
    if streams { body } else { body.replace("\"stream\":true", "\"stream\":false") }
}

/// Answers well for a while, and then does that.
fn after_a_word(steps: impl IntoIterator<Item = Step>) -> Vec<Step> {
    [Step::Answering, part(" 1")].into_iter().chain(steps).collect()
}

fn again(step: Step, count: usize) -> Step {
    Step::Again(Box::new(step), count, NONE)
}

/// All that breaks an answer off when something has been said.
fn odd_frames() -> Vec<(&'static str, Vec<Step>)> {
    let frame = |kind: u8, bytes: &[u8]| Step::Frame(kind, bytes.to_vec());
    let head = |kind: u8, len: u32| Step::Raw([&[kind][..], &len.to_le_bytes()].concat());
    let choice = |text: &str| frame(1, format!("{{\"choices\":[{text}]}}").as_bytes());
    let [finish, over] = end();
    vec![
        ("kind 9", vec![frame(9, b""), finish.clone(), over.clone()]),
        ("kind 0", vec![frame(0, b""), finish.clone(), over.clone()]),
        ("a part that is too long", vec![head(1, 256 * 1024 + 1), again(frame(1, b" "), 100)]),
        ("an endless part", vec![head(1, u32::MAX), again(Step::Raw(vec![b' '; 65_536]), 400)]),
        ("an endless whole", vec![head(2, (2 << 20) + 1), again(Step::Raw(vec![b' '; 65_536]), 400)]),
        ("an end with something in it", vec![head(3, 1), Step::Raw(vec![0])]),
        ("an error that is too long", vec![frame(4, &[b' '; 16 * 1024 + 1])]),
        ("whitespace", vec![again(frame(1, &[b' '; 256 * 1024]), 40)]),
        ("whitespace in lines", vec![again(frame(1, &[b'\n'; 256 * 1024]), 40)]),
        ("no UTF-8", vec![frame(1, b"{\"choices\":[{\"index\":0,\"delta\":{\"content\":\"\xff\"}}]}")]),
        ("deep", vec![frame(1, format!("{{\"choices\":{}", "[".repeat(100_000)).as_bytes())]),
        ("cut JSON", vec![frame(1, b"{\"choices\":[{")]),
        ("no JSON", vec![frame(1, b"data: {}")]),
        ("done", vec![frame(1, b"[DONE]")]),
        ("nothing", vec![frame(1, b"")]),
        ("a list", vec![frame(1, b"[]")]),
        ("no choices", vec![frame(1, b"{\"choices\":{}}")]),
        ("choices that are none", vec![choice("1,\"x\"")]),
        ("a delta that is none", vec![choice("{\"index\":0,\"delta\":\"x\"}")]),
        ("a second choice that is none", vec![choice("{\"index\":0,\"delta\":{\"content\":\"x\"}},7")]),
        ("a reason that is none", vec![choice("{\"index\":0,\"delta\":{},\"finish_reason\":{\"x\":[]}}")]),
        (
            "a whole",
            vec![frame(2, b"{\"choices\":[{\"index\":0,\"message\":{\"content\":\"x\"}}]}"), over.clone()],
        ),
        ("an event with an error", vec![frame(1, b"{\"error\":{\"message\":\"out\\nof luck\"}}")]),
        ("an error", vec![frame(4, b"{\"status\":200,\"error\":{\"message\":\"a\\u0000b\"}}")]),
        ("an error that is none", vec![frame(4, &[b'{'; 16 * 1024])]),
        ("a refusal", vec![frame(4, b"{\"status\":400,\"error\":{\"message\":\"x\",\"code\":7}}")]),
        ("an end that was not announced", vec![over.clone()]),
        ("an end of the stream", vec![]),
        ("a reset", vec![Step::Reset]),
        ("half a head", vec![Step::Raw(vec![1, 9])]),
        ("half a part", vec![head(1, 200), Step::Raw(vec![b'{'; 100]), Step::Reset]),
        ("empty parts without end", vec![again(choice(""), 30_000), Step::Hang]),
        ("more than was asked for", vec![again(part(" 2"), 30_000), Step::Hang]),
    ]
}

/// One clean error: short, in one line, and no end that looks whole.
fn is_clean_error(case: &str, heard: &Heard) {
    if heard.status == 200 {
        assert!(!heard.is_done && heard.finish.is_empty() && heard.ids.len() == 1, "{case}: {heard:?}");
        assert!(heard.text.starts_with(" 1") && heard.text.len() < 1000, "{case}: {heard:?}");
        assert!((10..600).contains(&heard.error.len()), "{case}: {heard:?}");
        assert!(!heard.error.contains(char::is_control), "{case}: {heard:?}");
    } else {
        let told = object(&heard.raw);
        let message = text(&told, "error.message");
        assert!((400..=503).contains(&heard.status), "{case}: {heard:?}");
        assert!(
            (5..1100).contains(&message.len()) && !message.contains(char::is_control),
            "{case}: {heard:?}"
        );
    }
}

/// The most memory that a cell has, while something is done.
fn peak_kib(cell: &Cell, work: impl FnOnce()) -> u64 {
    let (most, is_over) = (AtomicU64::new(0), AtomicBool::new(false));
    let (most, is_over) = (&most, &is_over);
    thread::scope(|scope| {
        scope.spawn(move || {
            while !is_over.load(Ordering::SeqCst) {
                most.fetch_max(rss_kib(cell), Ordering::SeqCst);
                thread::sleep(Duration::from_millis(5));
            }
        });
        work();
        is_over.store(true, Ordering::SeqCst);
    });
    most.load(Ordering::SeqCst)
}

/// Does all of these, six at a time: of one friend no more than eight answers are asked for.
fn at_once<T: Sync>(all: &[T], each: impl Fn(&T) + Sync) {
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                while let Some(one) = all.get(next.fetch_add(1, Ordering::SeqCst)) {
                    each(one);
                }
            });
        }
    });
}

#[test]
fn whatever_a_friend_sends_is_one_clean_error_and_memory_stays_flat() {
    let at = TempDir::new("ai-rogue");
    let mut a = cell(&at, "ann", &[]);
    let rogue = Rogue::befriends(&a, "mallory");
    wait_backends(&a, 1);
    let before = rss_kib(&a);
    let mut cases: Vec<(String, bool)> = Vec::new();
    for (name, steps) in odd_frames() {
        rogue.plays(&format!("[{name}]"), after_a_word(steps));
        cases.push((name.to_owned(), true));
        cases.push((name.to_owned(), false));
    }
    // Before there was a word.
    let early = [
        ("another reply", vec![Step::Reply(Reply::Pong)]),
        ("no reply", vec![Step::Head(vec![0xee; 200_000])]),
        ("an endless reply", vec![Step::Raw(vec![0xff; 1 << 20])]),
        ("a word of refusal", vec![Step::Reply(Reply::Error(Refusal::new(ErrorCode::Busy, "no", "")))]),
        ("no part", vec![Step::Answering, Step::Frame(1, b"{".to_vec())]),
        ("no answer", vec![Step::Answering, Step::Frame(3, Vec::new())]),
        ("a reset at once", vec![Step::Reset]),
        ("its own error", vec![Step::Answering, Step::Frame(4, b"{\"status\":999}".to_vec())]),
    ];
    for (name, steps) in early {
        rogue.plays(&format!("[{name}]"), steps);
        cases.push((name.to_owned(), cases.len() % 2 == 0));
    }
    // The last to be asked last: they take their time, and then all of them at once.
    cases.reverse();
    let grown = peak_kib(&a, || {
        at_once(&cases, |(name, streams)| {
            let heard = ask(&a, &body(name, 20, *streams));
            is_clean_error(name, &heard);
            assert!(rogue.asked(&format!("[{name}]")) > 0, "{name}: {heard:?}");
        });
    }) - before;
    println!("{} cases, memory has grown by {grown} KiB", cases.len());
    assert!(grown < 24 << 10, "{grown} KiB");
    assert!(a.is_up());

    // It ends the session in the middle, and comes back.
    rogue.plays("[leaves]", after_a_word([Step::Leave]));
    let sessions = rogue.sessions();
    is_clean_error("leaves", &ask(&a, &body("leaves", 20, true)));
    rogue.ready(sessions + 1);
    rogue.plays("[well]", [Step::Answering, part(" 1"), part(" 2")].into_iter().chain(end()));
    let heard = wait_for("it is asked again", || {
        let heard = ask(&a, &body("well", 20, true));
        (heard.status == 200).then_some(heard)
    });
    assert_eq!((heard.text.as_str(), heard.is_done, heard.cell.as_str()), (" 1 2", true, "mallory"));
}

#[test]
fn wrong_names_and_tokens_behind_the_end_change_nothing() {
    let at = TempDir::new("ai-names");
    let a = cell(&at, "ann", &[]);
    let rogue = Rogue::befriends(&a, "mallory");
    wait_backends(&a, 1);
    let named = |n: usize, choice: &str| {
        let text = format!(
            "{{\"id\":\"theirs-{n}\",\"object\":\"x\",\"created\":-{n},\"model\":\"gpt-{n}\",\"grove\":{{\"cell\":\"ann\",\"backend\":\"b\"}},\
             \"usage\":{{\"completion_tokens\":{},\"prompt_tokens\":-1}},\"choices\":[{choice}],\"choices\":[{choice}]}}",
            u64::MAX
        );
        Step::Frame(1, text.into_bytes())
    };
    let said = |n: usize| {
        named(n, &format!("{{\"index\":0,\"delta\":{{\"content\":\" {n}\"}},\"finish_reason\":null}}"))
    };
    let stop = named(9, "{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}");
    // Behind the end it goes on, slowly and for ever.
    let babble = Step::Again(Box::new(said(7)), 10_000, Duration::from_millis(20));
    let steps = [Step::Answering, said(1), said(2), said(3), stop, babble, Step::Frame(3, Vec::new())];
    rogue.plays("[names]", steps);
    let began = Instant::now();
    let heard = ask(&a, &body("names", 20, true));
    println!("done after {:?}", began.elapsed());
    assert_eq!((heard.text.as_str(), heard.is_done, heard.error.as_str()), (" 1 2 3", true, ""), "{heard:?}");
    assert_eq!((heard.ids.len(), heard.cell.as_str()), (1, "mallory"));
    assert!(heard.ids[0].starts_with("chatcmpl-"));
    let whole = object(&ask(&a, &body("names", 20, false)).raw);
    assert_eq!((text(&whole, "model"), text(&whole, "grove.cell")), ("grove-tiny".into(), "mallory".into()));
    let Some(Value::Object(choice)) = items(&whole, "choices").first() else { panic!() };
    assert_eq!(text(choice, "message.content"), " 1 2 3");

    // Lists of numbers that are none.
    let whole = |text: &str| vec![Step::Frame(2, text.as_bytes().to_vec()), Step::Frame(3, Vec::new())];
    let parts = vec![Step::Frame(1, chunk("x", Some("stop"))), Step::Frame(3, Vec::new())];
    let cases = [
        (200, whole("{\"data\":[{\"index\":0,\"embedding\":[0.5]}]}")),
        (503, whole("{}")),
        (503, whole("{\"data\":[]}")),
        (503, whole("{\"data\":7}")),
        (503, whole("{\"error\":{\"message\":\"x\"}}")),
        (503, parts),
    ];
    let cases: Vec<(usize, u16, Vec<Step>)> =
        cases.into_iter().enumerate().map(|(n, (status, steps))| (n, status, steps)).collect();
    at_once(&cases, |(n, status, steps)| {
        rogue.plays(&format!("[embed {n}]"), [Step::Answering].into_iter().chain(steps.clone()));
        let body = format!(r#"{{"model":"grove-tiny","input":"[embed {n}]"}}"#);
        let heard = ask_until(&a, "/v1/embeddings", &body, |_| true);
        assert_eq!(heard.status, *status, "{n}: {heard:?}");
    });
}

/// A server of ann's own that writes a number each 40 ms, going on where another broke off; and who asks it to linger is
/// answered without end.
fn own_server() -> u16 {
    hostile(|stream, request| {
        let last = if request.contains("linger") { usize::MAX } else { 9 };
        let said = request.split("\"assistant\",\"content\":\"").nth(1).unwrap_or_default();
        let from = said.split('"').next().unwrap_or_default().split_whitespace().count();
        let head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n";
        if std::io::Write::write_all(stream, head).is_err() {
            return;
        }
        for n in from + 1..=last {
            let finish = (n == 9 && last == 9).then_some("stop");
            let event = [b"data: ", &chunk(&format!(" {n}"), finish)[..], b"\n\n"].concat();
            if std::io::Write::write_all(stream, &event).is_err() {
                return;
            }
            thread::sleep(Duration::from_millis(40));
        }
        let _ = std::io::Write::write_all(stream, b"data: [DONE]\n\n");
    })
}

#[test]
fn a_friend_who_lies_or_says_nothing_is_passed_over_and_not_asked_next() {
    let at = TempDir::new("ai-liar");
    let a = cell(&at, "ann", &[format!("http://127.0.0.1:{}", own_server())]);
    wait_backends(&a, 1);
    // Measured once: 25 tokens a second.
    assert_eq!(ask(&a, &body("own", 9, true)).text, counted(9));
    let rogue = Rogue::befriends(&a, "mallory");
    wait_backends(&a, 2);
    rogue.plays("[mute]", [Step::Hang]);
    rogue.plays("[asleep]", [Step::Answering, Step::Hang]);
    rogue.plays("[stalls]", after_a_word([part(" 2"), Step::Raw(vec![1, 9, 0, 0, 0, b'{']), Step::Hang]));
    let empty = Step::Frame(1, b"{\"choices\":[]}".to_vec());
    rogue.plays("[noise]", [Step::Answering, Step::Again(Box::new(empty), 300, Duration::from_millis(200))]);
    let is_asked_first = |case: &str, answers: bool| {
        let heard = ask(&a, &body(case, 9, true));
        assert_eq!(rogue.asked(&format!("[{case}]")), 1, "it boasts most, so it is asked first: {case}");
        assert_eq!((heard.text.as_str(), heard.is_done), (counted(9).as_str(), true), "{case}: {heard:?}");
        assert_eq!(heard.cell == "mallory", answers, "{case}");
    };
    let began = Instant::now();
    thread::scope(|scope| {
        for (case, answers) in [("mute", false), ("asleep", false), ("stalls", true), ("noise", false)] {
            scope.spawn(move || is_asked_first(case, answers));
        }
    });
    println!("given up after {:?}", began.elapsed());
    assert_eq!(ask(&a, &body("next", 9, true)).cell, "ann");
    assert_eq!(rogue.asked("[next]"), 0, "what failed a moment ago is not asked first");

    // Another one finds fault with what is asked, and ann's server finds none.
    drop(rogue);
    let rogue = Rogue::befriends(&a, "trudy");
    wait_backends(&a, 2);
    let fault = b"{\"status\":400,\"error\":{\"message\":\"this is no question\"}}";
    rogue.plays("[fault]", [Step::Answering, Step::Frame(4, fault.to_vec())]);
    wait_for("it is asked again", || {
        let heard = ask(&a, &body("fault", 9, true));
        assert_eq!((heard.text.as_str(), heard.cell.as_str()), (counted(9).as_str(), "ann"), "{heard:?}");
        (rogue.asked("[fault]") > 0).then_some(())
    });
    assert_eq!(ask(&a, &body("then", 9, true)).cell, "ann");
    assert_eq!(rogue.asked("[then]"), 0, "who was contradicted is not asked first");
    let only = body("fault", 9, true).replace("\"stream\"", "\"grove\":{\"cell\":\"trudy\"},\"stream\"");
    let heard = ask(&a, &only);
    assert_eq!(
        (heard.status, text(&object(&heard.raw), "error.message").as_str()),
        (400, "this is no question")
    );

    // The third writes three words a second where it claims two thousand: who goes away has learnt that, too.
    drop(rogue);
    let rogue = Rogue::befriends(&a, "eve");
    wait_backends(&a, 2);
    let slow = Step::Again(Box::new(part(" 1")), 100, Duration::from_millis(300));
    rogue.plays("[slow]", [Step::Answering, slow]);
    let mut said = 0;
    wait_for("it is asked again", || {
        let heard = ask_until(&a, "/v1/chat/completions", &body("slow", 9, true), |_| {
            said += 1;
            said % 3 != 0
        });
        said = 0;
        (heard.cell == "eve").then_some(())
    });
    let asked = rogue.asked("[slow]");
    for _ in 0..5 {
        assert_eq!(ask(&a, &body("slow", 9, true)).cell, "ann");
    }
    assert_eq!(rogue.asked("[slow]"), asked);
    assert!(metric(&a, "grove_ai_resumes_total") >= 1);
}

#[test]
fn hostile_beats_and_questions_are_refused_and_the_cell_goes_on() {
    let at = TempDir::new("ai-beats");
    let mut a = cell(&at, "ann", &[format!("http://127.0.0.1:{}", own_server())]);
    wait_backends(&a, 1);
    let rogue = Rogue::befriends(&a, "mallory");
    wait_backends(&a, 2);
    let before = rss_kib(&a);
    let began = Instant::now();
    let mut chance = Chance::seeded("beats");
    let good = boast(2000).to_bytes();
    let mut beats: Vec<Vec<u8>> = (0..200).map(|n| chance.bytes(n * 40)).collect();
    beats.extend((0..good.len()).map(|at| good[..at].to_vec()));
    beats.push([&good[..], &[0]].concat());
    beats.push(vec![1; 16 * 1024]);
    beats.push(vec![0; 60 * 1024]);
    for n in 0..200 {
        let mut changed = good.clone();
        let at = chance.below(good.len() as u64) as usize;
        changed[at] ^= 1 << (n % 8);
        beats.push(changed);
    }
    let (taken, refused) = rogue.with(move |session| async move {
        let (mut taken, mut refused) = (0, 0);
        for bytes in beats {
            match message::ask(&session, &Request::Beat { bytes }).await {
                Ok(reply) => {
                    assert_eq!(reply, Reply::Done);
                    taken += 1;
                }
                Err(AskError::Refused(why)) => {
                    assert_eq!(why.code, ErrorCode::Malformed);
                    refused += 1;
                }
                Err(why) => panic!("{why}"),
            }
        }
        (taken, refused)
    });
    println!("{taken} beats were taken, {refused} refused; {:?}", began.elapsed());
    assert!(taken > 10 && refused > 200);

    // As many models as there may be, others each time.
    let flood = (0..300u32).map(|round| {
        let model = |n: u32| OfferedModel {
            name: format!("{:0>128}", round * 64 + n),
            ..boast(2000).models[0].clone()
        };
        Beat { models: (0..64).map(model).collect(), ..boast(2000) }.to_bytes()
    });
    let flood: Vec<Vec<u8>> = flood.collect();
    rogue.with(move |session| async move {
        for bytes in flood {
            assert_eq!(message::ask(&session, &Request::Beat { bytes }).await.unwrap(), Reply::Done);
        }
    });
    let models = object(&a.client().get_json("/v1/models").unwrap());
    assert_eq!(items(&models, "data").len(), 66, "auto, her own, and the last 64 of the friend's");

    println!("a flood of beats: {:?}", began.elapsed());
    // Questions: without an offer, then with one, and none of them is a question.
    let questions = |count: usize, seed: u64| {
        let mut chance = Chance(seed);
        let mut all: Vec<Vec<u8>> = (0..count).map(|n| chance.bytes(n * 500)).collect();
        all.push(b"{\"kind\":\"chat\",\"body\":{}}".to_vec());
        all.push(
            b"{\"kind\":\"chat\",\"body\":{\"model\":\"other\",\"messages\":[{\"role\":\"user\"}]}}".to_vec(),
        );
        all.push(b"{\"kind\":\"x\",\"body\":{\"messages\":[{\"role\":\"user\"}]}}".to_vec());
        all.push(format!("{{\"kind\":\"chat\",\"body\":{}", "[".repeat(500_000)).into_bytes());
        all.push(vec![b' '; 1 << 20]);
        all
    };
    let refused = |all: Vec<Vec<u8>>| {
        rogue.with(move |session| async move {
            let count = all.len();
            for question in all {
                match message::question(&session, &question).await {
                    Err(AskError::Refused(why)) => assert!(!why.text.is_empty()),
                    Err(why) => panic!("{why}"),
                    Ok(_) => panic!("{}", String::from_utf8_lossy(&question)),
                }
            }
            count
        })
    };
    assert_eq!(refused(questions(50, 1)), 55);
    a.cli(["ai", "--offer", "mallory", "--models", "grove-tiny", "--concurrent", "1"]).ok();
    assert_eq!(refused(questions(50, 2)), 55);
    println!("odd questions: {:?}", began.elapsed());
    // One that is, and a second one beside it; who breaks it off has no place any more. Its answer is not over before that.
    let question = b"{\"kind\":\"chat\",\"body\":{\"model\":\"grove-tiny\",\"messages\":[{\"role\":\"user\",\"content\":\"linger\"}]}}";
    rogue.with(move |session| async move {
        for _ in 0..20 {
            let mut answering = loop {
                // The place is free again a moment after the last one was broken off.
                if let Ok(answering) = message::question(&session, question).await {
                    break answering;
                }
                smol::Timer::after(Duration::from_millis(5)).await;
            };
            let beside = message::question(&session, question).await;
            assert!(matches!(beside, Err(AskError::Refused(_))));
            assert_eq!(answering.next(|_| 1 << 20).await.unwrap().0, 1);
        }
    });
    let grown = rss_kib(&a).saturating_sub(before);
    println!("memory has grown by {grown} KiB; {:?}", began.elapsed());
    assert!(grown < 16 << 10, "{grown} KiB");
    assert!(a.is_up());
    let own = body("own", 9, true)
        .replace("\"stream\"", &format!("\"grove\":{{\"cell\":\"{}\"}},\"stream\"", a_name(&a)));
    wait_for("her own server answers her", || (ask(&a, &own).text == counted(9)).then_some(()));
}

/// A friend who floods, and a client that does not read: what waits between them is bounded.
#[test]
fn a_client_that_does_not_read_holds_a_flood_up() {
    let at = TempDir::new("ai-flood");
    let a = cell(&at, "ann", &[]);
    let rogue = Rogue::befriends(&a, "mallory");
    wait_backends(&a, 1);
    let large = part(&"x".repeat(200_000));
    rogue.plays("[flood]", [Step::Answering, again(large, 1000), Step::Hang]);
    let before = rss_kib(&a);
    let body = body("flood", 1_000_000, true);
    let port = a.port();
    let secret = std::fs::read_to_string(a.dir.join("peer_secret")).unwrap();
    let streams: Vec<_> = (0..4)
        .map(|_| {
            let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
            let head = format!(
                "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {secret}\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            );
            std::io::Write::write_all(&mut stream, head.as_bytes()).unwrap();
            stream
        })
        .collect();
    wait_for("all are asked", || (rogue.asked("[flood]") == 4).then_some(()));
    // Until nothing more moves.
    let mut last = (0, Instant::now());
    let grown = wait_for("the flood stands still", || {
        let grown = rss_kib(&a).saturating_sub(before);
        if grown > last.0 {
            last = (grown, Instant::now());
        }
        (last.1.elapsed() > Duration::from_secs(1)).then_some(last.0)
    });
    println!("four streams that nobody reads: {grown} KiB");
    assert!(grown < 32 << 10, "{grown} KiB");
    drop(streams);
    wait_for("they are over", || (metric(&a, "grove_ai_cancelled_total") == 4).then_some(()));
}

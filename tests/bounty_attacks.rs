//! Attacks on the bounty of running cells, by a peer that the test plays over the real socket: chunks of others copied and
//! released, audits handed on, statements corrupted, replayed, reordered, backdated, forked or signed by the wrong key, a
//! second life with older books. Each is refused or kept as evidence, as the command and the API show it; none is counted,
//! and the cell stays up. For the cells that settle a day lasts a second.

mod common;
#[path = "common/rogue.rs"]
mod rogue;

use std::collections::VecDeque;
use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use common::fleet::plant;
use common::*;
use grove::bounty::{FIGURE_MAX, Heard, Side, Statement, StatementBody, propose};
use grove::id::ChunkName;
use grove::keys::{Identity, MasterKey, random};
use grove::manifest::Extension;
use grove::proof::Challenge;
use grove::wire::message::{
    AskError, AuditStatus, Class, ErrorCode, GetStatus, PutStatus, Reply, Request, Settlement,
};
use miniserde::json::{Number, Object, Value};
use rogue::{NAME, Proves, Rogue, chunk};

/// A day a second.
const RATE: u64 = 86_400;
/// By so much the rogue says that it owes more than is claimed, so that its figure is not too low meanwhile. Byte-hours.
const AHEAD: u64 = 10_000_000_000;
/// A day and more. s.
const DAYS: u64 = 40 * 86_400;

/// What a cell says of its account with a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Account {
    earned: u64,
    spent: u64,
    seq: u64,
    forks: Vec<u64>,
    state: String,
    cause: String,
    used_bytes: u64,
}

impl Account {
    /// What statements have made of it.
    fn signed(&self) -> (u64, u64, u64) {
        (self.earned, self.spent, self.seq)
    }
}

fn row(told: &Object, name: &str) -> Option<Object> {
    items(told, "peers").iter().find_map(|peer| match peer {
        Value::Object(peer) if text(peer, "name") == name => Some(object(&json_text(peer))),
        _ => None,
    })
}

fn read(told: &Object, name: &str) -> Account {
    let peer = row(told, name).unwrap_or_else(|| panic!("no {name} in {}", json_text(told)));
    let forks = items(&peer, "forks").iter().map(|fork| match fork {
        Value::Number(Number::U64(seq)) => *seq,
        other => panic!("{other:?}"),
    });
    Account {
        earned: number(&peer, "earned_byte_hours"),
        spent: number(&peer, "spent_byte_hours"),
        seq: number(&peer, "statement.seq"),
        forks: forks.collect(),
        state: text(&peer, "state"),
        cause: text(&peer, "dispute.cause"),
        used_bytes: number(&peer, "quota.used_bytes"),
    }
}

fn account(cell: &Cell, name: &str) -> Account {
    read(&cell.get("/bounty"), name)
}

fn field(cell: &Cell, name: &str, path: &str) -> u64 {
    number(&row(&cell.get("/bounty"), name).unwrap(), path)
}

/// A running cell with a few files, and with time that passes faster if `is_fast`.
fn started(temp: &Path, name: &str, chance: &mut Chance, is_fast: bool) -> Cell {
    let mut cell = Cell::at(temp, name);
    let every = if is_fast { "1" } else { "3600" };
    cell.init(
        name,
        &[("sync.every_s", every), ("drill.days", "0"), ("routes.measure_hours", "0"), ("copies", "2")],
    );
    if is_fast {
        let begin = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        cell.env = vec![("GROVE_TEST_CLOCK".into(), format!("{begin}:{RATE}"))];
    }
    for n in 0..4 {
        plant(&cell.home, &format!("{name} {n}"), &chance.bytes(150_000));
    }
    cell.run();
    cell
}

fn chunks(chance: &mut Chance, count: usize) -> Vec<(ChunkName, Vec<u8>)> {
    (0..count).map(|_| chunk(chance.bytes(40_000))).collect()
}

/// Sealed chunks as they lie on a cell's disk.
fn sealed(cell: &Cell) -> Vec<(ChunkName, Vec<u8>)> {
    let found: Vec<_> = loose_chunks(cell).iter().map(|path| chunk(fs::read(path).unwrap())).collect();
    assert!(!found.is_empty());
    found
}

/// Waits until the rogue has proven what it stores for the cell, and time counts.
fn wait_counted(cell: &Cell) {
    wait_for("proven storage counts", || (field(cell, NAME, "unsigned_byte_hours") > 0).then_some(()));
}

/// Waits until what the rogue has answered before is taken in, or not.
fn wait_exchanged(cell: &Cell, rogue: &Rogue) {
    let calls = rogue.shelf().told.len();
    wait_for("two more exchanges", || {
        cell.job("/sync", r#"{"wait":true}"#);
        (rogue.shelf().told.len() > calls + 1).then_some(())
    });
}

/// After all that was tried: the cell is up, the command and the API say the same, and the books balance over a restart.
fn assert_well(cell: &mut Cell, expected: &Account) {
    assert!(cell.is_up(), "{}", cell.log_text());
    let said = object(&cell.cli(["bounty", "--json"]).ok().out);
    assert_eq!(read(&said, NAME), *expected);
    assert!(cell.cli(["bounty"]).ok().out.contains(NAME));
    cell.stop();
    cell.run();
    let after = account(cell, NAME);
    assert_eq!((after.signed(), &after.forks), (expected.signed(), &expected.forks));
    assert_eq!(cell.alert("bounty-books"), None);
    assert!(!cell.log().contains("panicked"), "{}", cell.log_text());
}

// Statements

/// The rogue's side of the account: what it says, and what both have signed.
struct Ledger {
    /// What it says that it owes, in byte-hours.
    owed: u64,
    life: u32,
    newest: Option<Statement>,
}

impl Ledger {
    fn new() -> Self {
        Self { owed: 0, life: 1, newest: None }
    }

    fn bytes(&self) -> Vec<u8> {
        self.newest.as_ref().map(Statement::to_bytes).unwrap_or_default()
    }

    fn newest(&self) -> &Statement {
        self.newest.as_ref().expect("something is signed")
    }

    fn heard(&self) -> Heard {
        let unix_s = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        Heard { life: self.life, measured: self.owed, unix_s, ..Heard::default() }
    }

    /// Shows `newest` to a cell that answers; `wants` its next proposal.
    fn shows(&self, newest: &[u8], wants: bool) -> Settlement {
        Settlement { heard: self.heard(), wants, newest: newest.to_vec(), proposal: vec![] }
    }

    /// Has the next proposal of a cell with the larger id.
    fn proposal(&mut self, rogue: &Rogue) -> Statement {
        let told = rogue.settle(&self.shows(&self.bytes(), false));
        self.owed = self.owed.max(told.heard.claimed + AHEAD);
        let answer = rogue.settle(&self.shows(&self.bytes(), true));
        Statement::from_bytes(&answer.proposal).expect("a proposal")
    }

    /// Signs what the cell proposes, and shows it.
    fn settle(&mut self, rogue: &Rogue) {
        let whole = self.proposal(rogue).signed_by(&rogue.identity).unwrap();
        rogue.settle(&self.shows(&whole.to_bytes(), false));
        self.newest = Some(whole);
    }
}

/// Each field of a statement changed, but for the two cells: what is left can be signed as it stands.
fn changed(good: &StatementBody) -> Vec<(&'static str, StatementBody)> {
    let with = |change: &dyn Fn(&mut StatementBody)| {
        let mut body = good.clone();
        change(&mut body);
        body
    };
    let extension = Extension { tag: 900, must_understand: false, bytes: vec![1, 2, 3] };
    vec![
        ("the next number", with(&|body| body.seq += 1)),
        ("a far number", with(&|body| body.seq = u64::MAX)),
        ("an earlier number", with(&|body| body.seq -= 1)),
        ("another before it", with(&|body| body.previous = [9; 32])),
        ("none before it", with(&|body| body.previous = [0; 32])),
        ("a later life of the first", with(&|body| body.lives[0] += 1)),
        ("a later life of the second", with(&|body| body.lives[1] += 1)),
        ("it begins earlier", with(&|body| body.from = body.from.saturating_sub(DAYS))),
        ("it ends earlier", with(&|body| body.until = body.from)),
        ("it ends later", with(&|body| body.until += DAYS)),
        ("the first has stored more", with(&|body| body.stored[0] = FIGURE_MAX)),
        ("the first has stored less", with(&|body| body.stored[0] -= 1)),
        ("the second has stored more", with(&|body| body.stored[1] = FIGURE_MAX)),
        ("the second has stored less", with(&|body| body.stored[1] -= 1)),
        ("it says more", with(&|body| body.extensions.push(extension.clone()))),
    ]
}

/// The bytes that are signed.
fn body_bytes(body: &StatementBody, by: &Identity) -> Vec<u8> {
    let mut bytes = Statement::sign(by, body.clone()).unwrap().to_bytes();
    bytes.truncate(bytes.len() - 65);
    bytes
}

/// A statement as bytes: who is said to have signed it, and their signatures.
fn with_signatures(body: &[u8], signers: u8, signatures: &[[u8; 64]]) -> Vec<u8> {
    [body, &[signers], signatures.concat().as_slice()].concat()
}

fn last_signature(bytes: &[u8]) -> [u8; 64] {
    bytes[bytes.len() - 64..].try_into().unwrap()
}

fn stranger() -> Identity {
    MasterKey::from_bytes(random()).identity(0, 0)
}

/// Statements of the rogue with a stranger, signed well by both.
fn of_others(by: &Identity, like: &StatementBody) -> Vec<u8> {
    let other = stranger();
    let mut pair = [by, &other];
    pair.sort_by_key(|identity| identity.id());
    let body = StatementBody {
        cells: [pair[0].id(), pair[1].id()],
        seq: like.seq + 9,
        stored: [FIGURE_MAX, FIGURE_MAX],
        ..like.clone()
    };
    Statement::sign(pair[0], body).unwrap().signed_by(pair[1]).unwrap().to_bytes()
}

#[test]
fn what_a_peer_with_the_smaller_id_shows_is_never_counted_unless_both_have_signed_it() {
    let temp = TempDir::new("bounty-low");
    let mut chance = Chance::seeded("bounty attacks, low");
    let mut cell = started(temp.path(), "bob", &mut chance, true);
    let rogue = Rogue::join(&cell, Side::Low);
    assert_eq!(rogue.put(Class::Chunk, chunks(&mut chance, 8)), [PutStatus::Stored; 8]);
    wait_counted(&cell);
    let mut ledger = Ledger::new();
    ledger.settle(&rogue);
    let first = ledger.newest().clone();
    ledger.settle(&rogue);
    let newest = ledger.newest().clone();
    let before = account(&cell, NAME);
    assert_eq!(before.signed(), (newest.stored[1], newest.stored[0], newest.seq));
    assert!(before.earned > 0 && before.spent > 0 && before.state == "ok", "{before:?}");

    let good = newest.to_bytes();
    let mut tried = 0;
    let mut shown = |what: &str, bytes: &[u8]| {
        rogue.settle(&ledger.shows(bytes, false));
        assert_eq!(account(&cell, NAME), before, "{what}");
        tried += 1;
    };
    // Of others, cut, each field changed under signatures that are not both of the two, and bytes changed.
    shown("of others", &of_others(&rogue.identity, newest.body()));
    for len in [1, 100, good.len() - 64, good.len() - 1] {
        shown("cut short", &good[..len]);
    }
    let theirs = last_signature(&good);
    let other = stranger();
    for (what, body) in changed(newest.body()) {
        let bytes = body_bytes(&body, &rogue.identity);
        let own = rogue.identity.sign(&bytes);
        shown(&format!("{what}, by it alone"), &with_signatures(&bytes, 1, &[own]));
        shown(&format!("{what}, by it twice"), &with_signatures(&bytes, 3, &[own, own]));
        shown(&format!("{what}, by a stranger"), &with_signatures(&bytes, 3, &[own, other.sign(&bytes)]));
        shown(&format!("{what}, by what was signed before"), &with_signatures(&bytes, 3, &[own, theirs]));
        shown(&format!("{what}, in the other's place"), &with_signatures(&bytes, 2, &[own]));
    }
    for at in (0..good.len()).step_by(5) {
        let mut bytes = good.clone();
        bytes[at] ^= 1 << (at % 8);
        shown(&format!("byte {at}"), &bytes);
    }
    // Replayed.
    for _ in 0..3 {
        shown("the one before", &first.to_bytes());
        shown("the newest", &good);
    }
    // A proposal to the one that proposes itself.
    let mut told = ledger.shows(&good, false);
    told.proposal = with_signatures(&body_bytes(newest.body(), &rogue.identity), 1, &[[7; 64]]);
    rogue.settle(&told);
    // What is no request at all is refused by name.
    let too_large = Heard { measured: FIGURE_MAX + 1, ..ledger.heard() };
    let too_long = Settlement { newest: vec![7; 1025], ..ledger.shows(&[], false) };
    for told in [Settlement { heard: too_large, ..ledger.shows(&[], false) }, too_long] {
        let refused = rogue.ask(Request::Settle(told));
        assert!(
            matches!(&refused, Err(AskError::Refused(why)) if why.code == ErrorCode::Malformed),
            "{refused:?}"
        );
    }
    // What it claims to have stored itself is shown beside what was counted, and no more.
    let claims = Heard { claimed: FIGURE_MAX, disagrees: true, ..ledger.heard() };
    rogue.settle(&Settlement { heard: claims, ..ledger.shows(&good, false) });
    let now = account(&cell, NAME);
    assert_eq!((now.signed(), now.state.as_str(), now.cause.as_str()), (before.signed(), "ok", "unknown"));
    assert_eq!(field(&cell, NAME, "dispute.theirs_byte_hours"), FIGURE_MAX);
    // Its clock says what it likes.
    for unix_s in [0, u64::MAX] {
        let heard = Heard { unix_s, ..ledger.heard() };
        rogue.settle(&Settlement { heard, ..ledger.shows(&good, false) });
    }
    assert_eq!(account(&cell, NAME), before);
    eprintln!("{tried} statements shown");
    assert!(tried > 130);

    // Numbers are never used twice, whatever is asked for, and over a crash.
    let mut offered: Vec<Statement> = (0..3).map(|_| ledger.proposal(&rogue)).collect();
    cell.kill();
    cell.run();
    assert_eq!(account(&cell, NAME).signed(), before.signed());
    let rogue = rogue.again(&cell);
    offered.push(ledger.proposal(&rogue));
    let seqs: Vec<u64> = offered.iter().map(|statement| statement.seq).collect();
    assert!(seqs[0] > newest.seq && seqs.windows(2).all(|pair| pair[0] < pair[1]), "{seqs:?}");
    // Signed late and out of order, they are the cell's own word: the highest number holds, and nothing is posted twice.
    let whole: Vec<Vec<u8>> =
        offered.iter().map(|half| half.clone().signed_by(&rogue.identity).unwrap().to_bytes()).collect();
    for (at, seq) in [(1, seqs[1]), (0, seqs[1]), (3, seqs[3]), (2, seqs[3]), (3, seqs[3])] {
        rogue.settle(&ledger.shows(&whole[at], false));
        let now = account(&cell, NAME);
        assert_eq!((now.seq, now.forks.len()), (seq, 0), "{now:?}");
    }
    ledger.newest = Some(Statement::whole_from_bytes(&whole[3]).unwrap());
    let newest = ledger.newest().clone();
    assert_eq!(account(&cell, NAME).signed(), (newest.stored[1], newest.stored[0], newest.seq));

    // A second life whose books are older, and owes less.
    let before = account(&cell, NAME);
    for life in [1, 2] {
        let heard = Heard { life, measured: newest.stored[1] / 2, ..ledger.heard() };
        for shown in [vec![], first.to_bytes()] {
            let answer = rogue.settle(&Settlement { heard, wants: true, newest: shown, proposal: vec![] });
            assert_eq!((answer.newest, answer.proposal.len()), (newest.to_bytes(), 0));
            assert!(answer.heard.disagrees);
        }
    }
    let now = account(&cell, NAME);
    assert_eq!(
        (now.signed(), now.state.as_str(), now.cause.as_str()),
        (before.signed(), "disputed", "older_books")
    );
    assert!(cell.alert("bounty-dispute").unwrap().contains("older"));
    let said = cell.cli(["bounty"]).ok().out;
    assert!(said.contains("disputed") && said.contains("its books are older"), "{said}");
    assert_eq!(rogue.put(Class::Chunk, chunks(&mut chance, 1)), [PutStatus::OverQuota]);
    assert_eq!(account(&cell, NAME).used_bytes, before.used_bytes, "what it has stays");
    // It goes on from what it has signed, and all is well.
    ledger.life = 2;
    ledger.settle(&rogue);
    assert_eq!(rogue.put(Class::Chunk, chunks(&mut chance, 1)), [PutStatus::Stored]);
    let after = account(&cell, NAME);
    assert_eq!(
        (after.state.as_str(), after.seq, cell.alert("bounty-dispute")),
        ("ok", ledger.newest().seq, None)
    );
    assert!(after.earned >= before.earned && after.spent >= before.spent);
    let log = cell.log();
    for why in ["of other cells", "no statement: ", "has not signed"] {
        assert!(log.contains(why), "{why}: {}", cell.log_text());
    }
    drop(rogue);
    assert_well(&mut cell, &after);
}

// The other way round: the cell asks, and the rogue proposes.

/// A wrong answer: what it is called, and how it is made.
type Wrong = (String, Box<dyn Fn(&Settlement, &Ledger) -> Option<Settlement> + Send>);

/// How the rogue answers: by what is on the list, then well.
struct Script {
    identity: Identity,
    ledger: Ledger,
    wrong: VecDeque<Wrong>,
    /// Proposes nothing where nothing is left of the list.
    is_silent: bool,
    /// After which wrong answers the cell had another newest statement than before.
    taken: Vec<String>,
    last: String,
}

impl Script {
    /// The right proposal for what the cell has told.
    fn body(
        told: &Settlement,
        ledger: &Ledger,
        us: &Identity,
        cell: grove::id::CellId,
    ) -> Option<StatementBody> {
        let owed = ledger.owed.max(told.heard.claimed + AHEAD);
        let newest = ledger.newest.as_ref();
        let lives = [ledger.life, told.heard.life];
        propose([cell, us.id()], newest, 0, lives, [owed, told.heard.measured], told.heard.unix_s)
    }

    fn answer(&mut self, told: &Settlement, cell: grove::id::CellId) -> Option<Settlement> {
        if told.newest != self.ledger.bytes() {
            if !self.last.is_empty() {
                self.taken.push(self.last.clone());
            }
            self.ledger.newest = Statement::whole_from_bytes(&told.newest).ok();
        }
        self.last = String::new();
        self.ledger.owed = self.ledger.owed.max(told.heard.claimed);
        if let Some((what, make)) = self.wrong.pop_front() {
            self.last = what;
            return make(told, &self.ledger);
        }
        let mut answer = self.ledger.shows(&self.ledger.bytes(), false);
        if let (true, false, Some(body)) =
            (told.wants, self.is_silent, Self::body(told, &self.ledger, &self.identity, cell))
        {
            self.ledger.owed = body.stored[0];
            answer.heard.measured = self.ledger.owed;
            answer.proposal = Statement::sign(&self.identity, body).unwrap().to_bytes();
        }
        Some(answer)
    }
}

/// An answer whose proposal is the right one, changed.
fn proposes(
    what: &str,
    identity: &Identity,
    cell: grove::id::CellId,
    change: impl Fn(&mut StatementBody) + Send + 'static,
) -> Wrong {
    let by = identity.clone();
    proposes_bytes(what, identity, cell, move |_, mut body| {
        change(&mut body);
        Statement::sign(&by, body).unwrap().to_bytes()
    })
}

fn proposes_bytes(
    what: &str,
    identity: &Identity,
    cell: grove::id::CellId,
    make: impl Fn(&Ledger, StatementBody) -> Vec<u8> + Send + 'static,
) -> Wrong {
    let by = identity.clone();
    let answer = move |told: &Settlement, ledger: &Ledger| {
        let body = Script::body(told, ledger, &by, cell).expect("time passes, so there is something to sign");
        let mut answer = ledger.shows(&ledger.bytes(), false);
        answer.heard.measured = body.stored[0];
        answer.proposal = make(ledger, body);
        Some(answer)
    };
    (what.to_owned(), Box::new(answer))
}

fn shows(what: &str, make: impl Fn(&Ledger) -> Vec<u8> + Send + 'static) -> Wrong {
    (what.to_owned(), Box::new(move |_, ledger| Some(ledger.shows(&make(ledger), false))))
}

#[test]
fn what_a_peer_with_the_larger_id_proposes_is_refused_or_kept_as_evidence() {
    let temp = TempDir::new("bounty-high");
    let mut chance = Chance::seeded("bounty attacks, high");
    let mut cell = started(temp.path(), "ann", &mut chance, true);
    let rogue = Rogue::join(&cell, Side::High);
    let (identity, ann) = (rogue.identity.clone(), rogue.peer);
    let script = Arc::new(Mutex::new(Script {
        identity: identity.clone(),
        // So that there is an older one.
        ledger: Ledger { life: 2, ..Ledger::new() },
        wrong: VecDeque::new(),
        is_silent: false,
        taken: Vec::new(),
        last: String::new(),
    }));
    let answers = Arc::clone(&script);
    rogue.shelf().settles = Box::new(move |told| answers.lock().unwrap().answer(told, ann));
    assert_eq!(rogue.put(Class::Chunk, chunks(&mut chance, 8)), [PutStatus::Stored; 8]);
    wait_counted(&cell);
    wait_for("two statements", || {
        cell.job("/sync", r#"{"wait":true}"#);
        let now = account(&cell, NAME);
        (now.seq >= 2 && now.earned > 0 && now.spent > 0).then_some(())
    });
    // From here on nothing right is proposed.
    script.lock().unwrap().is_silent = true;
    wait_exchanged(&cell, &rogue);
    let before = account(&cell, NAME);
    let newest = script.lock().unwrap().ledger.newest().clone();
    assert_eq!(before.signed(), (newest.stored[0], newest.stored[1], newest.seq));
    assert_eq!((before.state.as_str(), before.forks.len()), ("ok", 0));

    let by = |what: &str, change: fn(&mut StatementBody)| proposes(what, &identity, ann, change);
    let mut wrong: Vec<Wrong> = vec![
        by("replayed", |body| body.seq -= 2),
        by("reordered", |body| body.previous = [9; 32]),
        by("no previous", |body| body.previous = [0; 32]),
        by("backdated", |body| body.from -= 86_400),
        by("backdated whole", |body| (body.from, body.until) = (body.from - 2 * 86_400, body.from - 86_400)),
        by("a gap", |body| body.from += 1),
        by("ahead", |body| body.until += DAYS),
        by("an older life of its own", |body| body.lives[1] -= 1),
        by("another life of the cell", |body| body.lives[0] += 1),
        by("the cell has stored nothing", |body| body.stored[0] = 0),
        by("the cell owes more than it counts", |body| body.stored[1] = FIGURE_MAX),
        by("the cell owes nothing", |body| body.stored[1] = 0),
    ];
    let other = stranger();
    let (one, two, three) = (other.clone(), other.clone(), other);
    let own = identity.clone();
    wrong.push(proposes_bytes("by a stranger", &identity, ann, move |_, body| {
        let bytes = body_bytes(&body, &own);
        with_signatures(&bytes, 2, &[one.sign(&bytes)])
    }));
    let own = identity.clone();
    wrong.push(proposes_bytes("in the cell's name", &identity, ann, move |_, body| {
        let bytes = body_bytes(&body, &own);
        with_signatures(&bytes, 1, &[own.sign(&bytes)])
    }));
    let own = identity.clone();
    wrong.push(proposes_bytes("in both names", &identity, ann, move |_, body| {
        let bytes = body_bytes(&body, &own);
        with_signatures(&bytes, 3, &[two.sign(&bytes), own.sign(&bytes)])
    }));
    let own = identity.clone();
    wrong.push(proposes_bytes("signed by nobody", &identity, ann, move |_, body| {
        with_signatures(&body_bytes(&body, &own), 0, &[])
    }));
    let own = identity.clone();
    wrong.push(proposes_bytes("of others", &identity, ann, move |_, body| of_others(&own, &body)));
    wrong.push(proposes_bytes("of others, half", &identity, ann, move |_, body| {
        let mut cells = [three.id(), body.cells[0]];
        cells.sort();
        Statement::sign(&three, StatementBody { cells, ..body }).unwrap().to_bytes()
    }));
    for at in (0..330).step_by(29) {
        let own = identity.clone();
        wrong.push(proposes_bytes(&format!("byte {at}"), &identity, ann, move |_, body| {
            let mut bytes = Statement::sign(&own, body).unwrap().to_bytes();
            let len = bytes.len();
            bytes[at % len] ^= 0x10;
            bytes
        }));
    }
    for (what, body) in changed(newest.body()) {
        // A higher number that only one has signed, and the cell's own signature of other figures.
        let own = identity.clone();
        wrong.push(shows(&format!("shown: {what}"), move |ledger| {
            let bytes = body_bytes(&body, &own);
            let good = ledger.bytes();
            let theirs: [u8; 64] = good[good.len() - 128..good.len() - 64].try_into().unwrap();
            with_signatures(&bytes, 3, &[theirs, own.sign(&bytes)])
        }));
    }
    wrong.push(shows("shown: half signed", {
        let own = identity.clone();
        move |ledger| Statement::sign(&own, ledger.newest().body().clone()).unwrap().to_bytes()
    }));
    wrong.push(shows("shown: too long", |_| vec![7; 1025]));
    wrong.push(shows("shown: noise", |_| vec![7; 300]));
    wrong.push(("another reply".into(), Box::new(|_, _| None)));
    let count = wrong.len();
    script.lock().unwrap().wrong = wrong.into();
    wait_count("wrong answers are given", count as u64, || {
        assert_eq!(account(&cell, NAME), before, "after {:?}", script.lock().unwrap().last);
        // An hour later it is asked again, as soon as there is a round.
        cell.job("/sync", r#"{"wait":true}"#);
        (count - script.lock().unwrap().wrong.len()) as u64
    });
    wait_exchanged(&cell, &rogue);
    eprintln!("{count} wrong answers given");
    assert_eq!(script.lock().unwrap().taken, [""; 0]);
    assert_eq!(account(&cell, NAME), before);
    let log = cell.log();
    for why in ["number was used before", "does not follow the newest", "a time that is settled already"] {
        assert!(log.contains(why), "{why}: {}", cell.log_text());
    }

    // Two statements of one number: both are kept and shown, and growth is frozen.
    let seq = newest.seq;
    let fork = move |body: &mut StatementBody| (body.seq, body.stored) = (seq, [FIGURE_MAX, 0]);
    script.lock().unwrap().wrong.push_back(proposes("a fork", &identity, ann, fork));
    wait_for("the fork is seen", || {
        cell.job("/sync", r#"{"wait":true}"#);
        (account(&cell, NAME).state == "disputed").then_some(())
    });
    let forked = account(&cell, NAME);
    assert_eq!(
        (forked.signed(), &forked.forks, forked.cause.as_str()),
        (before.signed(), &vec![seq], "two_statements")
    );
    assert!(cell.alert("bounty-dispute").unwrap().contains("two statements"));
    assert!(
        cell.cli(["bounty"]).ok().out.contains("it has signed two statements of one number; both are kept")
    );
    assert_eq!(rogue.put(Class::Chunk, chunks(&mut chance, 1)), [PutStatus::OverQuota]);
    assert_eq!(account(&cell, NAME).used_bytes, before.used_bytes, "what it has stays");
    // It stays so over a crash.
    cell.kill();
    cell.run();
    let rogue = rogue.again(&cell);
    wait_exchanged(&cell, &rogue);
    let again = account(&cell, NAME);
    assert_eq!(
        (again.signed(), &again.forks, again.state.as_str()),
        (before.signed(), &vec![seq], "disputed")
    );
    // Until the cell's user passes over it; the evidence is kept all the same.
    let said = cell.cli(["bounty", "--accept", NAME]).ok().out;
    assert!(said.contains("is taken"), "{said}");
    wait_for("growth is free again", || (account(&cell, NAME).state == "ok").then_some(()));
    let accepted = account(&cell, NAME);
    assert_eq!((accepted.signed(), &accepted.forks), (before.signed(), &vec![seq]));
    assert_eq!(rogue.put(Class::Chunk, chunks(&mut chance, 1)), [PutStatus::Stored]);

    // What is right is signed in the end, and posted once.
    script.lock().unwrap().is_silent = false;
    wait_for("the next statement", || {
        cell.job("/sync", r#"{"wait":true}"#);
        (account(&cell, NAME).seq > seq).then_some(())
    });
    script.lock().unwrap().is_silent = true;
    wait_exchanged(&cell, &rogue);
    let after = account(&cell, NAME);
    let newest = script.lock().unwrap().ledger.newest().clone();
    assert_eq!(after.signed(), (newest.stored[0], newest.stored[1], newest.seq));
    drop(rogue);
    assert_well(&mut cell, &after);
}

// Chunks and proofs

#[test]
fn proofs_that_another_cell_gives_are_found_to_be_false_and_count_for_nothing() {
    let temp = TempDir::new("bounty-audits");
    let mut chance = Chance::seeded("bounty attacks, audits");
    let mut bob = started(temp.path(), "bob", &mut chance, true);
    let carl = started(temp.path(), "carl", &mut chance, false);
    // What Bob gives to the rogue lies with Carl, in the rogue's name; and Bob's proofs are asked of Carl.
    let identity = MasterKey::from_bytes(random()).identity(0, 0);
    fleet::kept(&bob, 4);
    fleet::kept(&carl, 4);
    let at_carl = Arc::new(Rogue::join_as(&carl, &identity, Proves::Itself));
    let at_bob = Rogue::join_as(&bob, &identity, Proves::By(Arc::clone(&at_carl)));
    wait_for("false proofs are found", || (field(&bob, NAME, "proofs_failed") > 0).then_some(()));
    wait_for("it is suspended", || (account(&bob, NAME).state == "suspended").then_some(()));
    let handed_on = at_bob.shelf().proofs_handed_on;
    assert!(handed_on > 0, "Carl has proven them, to the rogue");
    assert!(field(&carl, NAME, "quota.used_bytes") > 0, "and bills them to it");
    let alert = bob.alert("peer-false").unwrap();
    assert!(alert.contains("rogue gave a false proof"), "{alert}");
    let told = object(&bob.cli(["peers", "--json"]).ok().out);
    let proofs = row(&told, NAME).unwrap();
    assert!(number(&proofs, "proofs.false") > 0, "{}", json_text(&proofs));
    let told = row(&bob.get("/bounty"), NAME).unwrap();
    for figure in ["proofs_passed", "spent_byte_hours", "unsigned_byte_hours"] {
        assert_eq!(number(&told, figure), 0, "{figure}: {}", json_text(&told));
    }
    assert_eq!(at_bob.put(Class::Chunk, chunks(&mut chance, 1)), [PutStatus::OverQuota]);

    // Bob himself proves nothing of his own to it, gives nothing of his own, and takes nothing of his own back.
    let own = sealed(&bob);
    let asks = own.iter().map(|(name, _)| (*name, Challenge::Whole)).collect();
    for (status, proof) in at_bob.audit(random(), asks) {
        assert_eq!((status, proof.len()), (AuditStatus::Missing, 0));
    }
    let names: Vec<ChunkName> = own.iter().map(|(name, _)| *name).collect();
    assert!(at_bob.get(names.clone()).iter().all(|status| *status == GetStatus::Missing));
    // Nor does Carl prove to it what he keeps for others: he keeps it for the rogue alone, by this name.
    let asks = sealed(&carl)
        .iter()
        .filter(|(name, _)| !names.contains(name))
        .map(|(name, _)| (*name, Challenge::Leaf(0)))
        .collect();
    assert!(at_carl.audit(random(), asks).iter().all(|(status, _)| *status == AuditStatus::Missing));
    // A day later it may be asked again, by what it has: it has nothing, and nothing counts.
    assert_eq!(account(&bob, NAME).signed(), (0, 0, 0));
    drop(at_bob);
    let expected = account(&bob, NAME);
    assert_well(&mut bob, &expected);
}

#[test]
fn copies_of_anothers_chunks_are_billed_once_to_each_and_releasing_them_takes_nothing_from_anybody() {
    let temp = TempDir::new("bounty-copies");
    let mut chance = Chance::seeded("bounty attacks, copies");
    let ann = started(temp.path(), "ann", &mut chance, false);
    let mut bob = started(temp.path(), "bob", &mut chance, false);
    fleet::kept(&ann, 4);
    fleet::kept(&bob, 4);
    let (anns, bobs) = (sealed(&ann).remove(0), sealed(&bob).remove(0));
    ann.invite(&bob);
    fleet::copied(&ann, 4);
    let rogue = Rogue::join(&bob, Side::Low);
    let (name, len) = (anns.0, anns.1.len() as u64);
    let used = |of: &str| account(&bob, of).used_bytes;
    let of_ann = used("ann");
    assert!(of_ann >= len);

    // By its name alone it has nothing of it: neither the bytes, nor a proof, nor a release, nor a place.
    assert_eq!(rogue.get(vec![name]), [GetStatus::Missing]);
    assert_eq!(rogue.audit(random(), vec![(name, Challenge::Whole)])[0].0, AuditStatus::Missing);
    let names = || vec![name];
    assert_eq!(rogue.ask(Request::Release { names: names() }).unwrap(), Reply::Release { count: 0 });
    assert_eq!(rogue.ask(Request::Restore { names: names() }).unwrap(), Reply::Restore { held: vec![false] });
    assert_eq!((used(NAME), used("ann")), (0, of_ann));
    // With its bytes it is billed to the rogue too: once, however often it comes, and in whatever class.
    let statuses = rogue.put(Class::Chunk, vec![anns.clone(); 3]);
    assert_eq!(statuses[0], PutStatus::Stored);
    assert_eq!(rogue.put(Class::Chunk, vec![anns.clone()]), [PutStatus::Already]);
    assert_eq!((used(NAME), used("ann")), (len, of_ann));
    let told = object(&bob.cli(["peers", "--json"]).ok().out);
    let held = |who: &str| number(&row(&told, who).unwrap(), "held_for_them_bytes");
    assert_eq!((held(NAME), held("ann")), (len, of_ann));
    // It is released, twice over, and Ann's is there as before.
    for count in [1, 0] {
        assert_eq!(rogue.ask(Request::Release { names: names() }).unwrap(), Reply::Release { count });
        assert_eq!((used(NAME), used("ann")), (0, of_ann));
    }
    let proven = ann.cli(["verify", "--peers"]).ok().out;
    assert!(proven.contains("has proven ") && !proven.contains("missing"), "{proven}");
    assert_eq!(field(&ann, "bob", "proofs_failed"), 0);
    // Bob's own chunks, that he once gave to somebody, he does not take in for others.
    assert_eq!(rogue.put(Class::Chunk, vec![bobs]), [PutStatus::Refused]);
    assert!(bob.log().contains("they are this cell's own"));

    // What it has released comes back only within its allowance: otherwise trash would be storage for nothing.
    bob.cli(["peer", "quota", NAME, "100000"]).ok();
    let (one, two) = (chunks(&mut chance, 2), chunks(&mut chance, 2));
    let ones: Vec<ChunkName> = one.iter().map(|(name, _)| *name).collect();
    assert_eq!(rogue.put(Class::Chunk, one), [PutStatus::Stored; 2]);
    assert_eq!(rogue.ask(Request::Release { names: ones.clone() }).unwrap(), Reply::Release { count: 2 });
    assert_eq!(rogue.put(Class::Chunk, two.clone()), [PutStatus::Stored; 2]);
    let restored = rogue.ask(Request::Restore { names: ones.clone() }).unwrap();
    assert_eq!(restored, Reply::Restore { held: vec![false, false] });
    assert_eq!(used(NAME), 80_000);
    let twos = two.iter().map(|(name, _)| *name).collect();
    assert_eq!(rogue.ask(Request::Release { names: twos }).unwrap(), Reply::Release { count: 2 });
    let restored = rogue.ask(Request::Restore { names: ones }).unwrap();
    assert_eq!(restored, Reply::Restore { held: vec![true, true] });
    assert_eq!(used(NAME), 80_000);
    bob.verify_deep();
    ann.verify_deep();
    drop(rogue);
    let expected = account(&bob, NAME);
    assert_well(&mut bob, &expected);
}

// Sums and losses

#[test]
fn what_peers_say_that_they_owe_breaks_no_sum() {
    let temp = TempDir::new("bounty-sums");
    let mut chance = Chance::seeded("bounty attacks, sums");
    let mut cell = started(temp.path(), "bob", &mut chance, true);
    for label in ["one", "another"] {
        let rogue = Rogue::join(&cell, Side::Low);
        let mut ledger = Ledger { owed: FIGURE_MAX, ..Ledger::new() };
        ledger.settle(&rogue);
        assert_eq!(ledger.newest().stored[1], FIGURE_MAX);
        cell.cli(["peer", "name", &rogue.identity.id().to_string(), label]).ok();
    }
    let told = object(&cell.cli(["bounty", "--json"]).ok().out);
    assert_eq!(number(&told, "total.earned_byte_hours"), FIGURE_MAX);
    let days = cell.get("/bounty/history");
    assert!(!items(&days, "byte_hours").is_empty(), "{}", json_text(&days));
    let csv = cell.cli(["bounty", "--csv"]).ok().out;
    assert_eq!(csv.matches(&FIGURE_MAX.to_string()).count(), 2, "{csv}");
    cell.cli(["bounty"]).ok();
    assert!(cell.is_up(), "{}", cell.log_text());
}

/// A database of a cell that is off, or a file of its, is lost.
fn lose(cell: &Cell, name: &str) {
    fs::remove_file(cell.dir.join(name)).unwrap();
    for suffix in ["-wal", "-shm"] {
        let _ = fs::remove_file(cell.dir.join(format!("{name}{suffix}")));
    }
}

/// Without books and catalog a cell has what its peers show it, and only what it has signed itself.
#[test]
fn a_cell_that_has_lost_its_books_is_told_nothing_that_it_has_not_signed() {
    let temp = TempDir::new("bounty-lost");
    let mut chance = Chance::seeded("bounty attacks, lost books");
    let mut cell = started(temp.path(), "bob", &mut chance, true);
    let rogue = Rogue::join(&cell, Side::Low);
    let identity = rogue.identity.clone();
    rogue.put(Class::Chunk, chunks(&mut chance, 8));
    wait_counted(&cell);
    let mut ledger = Ledger::new();
    ledger.settle(&rogue);
    let first = ledger.newest().clone();
    ledger.settle(&rogue);
    let newest = ledger.newest().clone();
    // The books alone: peers and statements come from the catalog, so that an older one counts for nothing.
    cell.stop();
    lose(&cell, "books.db");
    cell.run();
    let before = account(&cell, NAME);
    assert_eq!(before.signed(), (newest.stored[1], newest.stored[0], newest.seq));
    let rogue = rogue.again(&cell);
    let answer = rogue.settle(&ledger.shows(&first.to_bytes(), false));
    assert_eq!(answer.newest, newest.to_bytes());
    assert_eq!(account(&cell, NAME).signed(), before.signed());
    drop(rogue);

    // All of it.
    cell.stop();
    lose(&cell, "books.db");
    lose(&cell, "placement.db");
    lose(&cell, "catalog.head");
    cell.run();
    assert!(row(&cell.get("/bounty"), NAME).is_none(), "nobody is known");
    let refused = cell.cli(["bounty", "--accept", NAME]);
    assert!(!refused.status.success() && refused.err.contains("grove peers"), "{}", refused.err);

    let rogue = Rogue::join_as(&cell, &identity, Proves::Itself);
    let accept = |why: &str| {
        let said = cell.cli(["bounty", "--accept", NAME]);
        assert!(!said.status.success() && said.err.contains(why), "{} {}", said.out, said.err);
    };
    accept("there is nothing to take");
    let shown = |bytes: &[u8]| {
        let heard = Heard { measured: newest.stored[1], ..ledger.heard() };
        rogue.settle(&Settlement { heard, ..ledger.shows(bytes, false) });
        account(&cell, NAME)
    };
    // Nothing that the cell has not signed.
    let nothing = shown(&[]);
    assert_eq!((nothing.signed(), nothing.forks.len()), ((0, 0, 0), 0));
    for (what, body) in changed(newest.body()) {
        let bytes = body_bytes(&body, &identity);
        let own = identity.sign(&bytes);
        let theirs = last_signature(&newest.to_bytes());
        assert_eq!(shown(&with_signatures(&bytes, 3, &[own, theirs])).signed(), (0, 0, 0), "{what}");
        assert_eq!(shown(&with_signatures(&bytes, 1, &[own])).signed(), (0, 0, 0), "{what}");
    }
    // An older one that it has signed holds until the newest is shown, and never again after that.
    for (statement, holds) in [(&first, &first), (&newest, &newest), (&first, &newest)] {
        let now = shown(&statement.to_bytes());
        assert_eq!(now.signed(), (holds.stored[1], holds.stored[0], holds.seq));
    }
    // Nor can its user be talked into taking less than was signed.
    accept("there is nothing to take");
    ledger.owed = newest.stored[1] / 2;
    let before = account(&cell, NAME);
    rogue.settle(&ledger.shows(&first.to_bytes(), false));
    accept("less than it has signed itself");
    assert_eq!(account(&cell, NAME).signed(), before.signed());
    assert_eq!(account(&cell, NAME).cause, "older_books");
    ledger.owed = newest.stored[1] + AHEAD;
    rogue.settle(&ledger.shows(&newest.to_bytes(), false));
    let expected = account(&cell, NAME);
    assert_eq!(expected.signed(), (newest.stored[1], newest.stored[0], newest.seq));
    assert_ne!(expected.state, "disputed");
    drop(rogue);
    assert_well(&mut cell, &expected);
}

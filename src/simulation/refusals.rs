//! What a running cell refuses of grants, tickets and lists of revocations, one attack after the other: by dishonest peers,
//! over sessions in memory. `grant/tests.rs` changes the formats field by field; here the whole cell stands behind them.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use smol::io::AsyncReadExt;

use super::rules::{ask, rogue};
use super::{Broken, Checked, Sim, files};
use crate::files::version::hash_of;
use crate::grant::{
    self, Holder, Opened, Party, Place, Private, READ, Ranges, Revocations, RevocationsBody, Share, Ticket,
    TicketBody, seal_unchecked,
};
use crate::id::{CellId, ChunkName, unhex};
use crate::keys::{FileKey, Identity, random};
use crate::manifest::{Check, Kind, Manifest};
use crate::seal::{TAG_BYTES, padded_len};
use crate::vault::VaultError;
use crate::wire::message::{self, AskError, GrantStatus, Request};
use crate::wire::session::{self, Limits, Session};
use crate::world::Timer;

/// A chunk as one asks for it by ticket: its name, its sealed bytes, and the proof that the ticket covers it.
type Wanted = (ChunkName, u32, Vec<u8>);

const ANN: usize = 0;
const BOB: usize = 1;
const EVE: usize = 2;
const CID: usize = 3;
/// A point of order 1: anybody can sign for it.
const WEAK: &str = "0100000000000000000000000000000000000000000000000000000000000000";

/// A grant that is being made up.
struct Draft {
    ticket: TicketBody,
    private: Private,
    manifest: Vec<u8>,
    /// Who seals it, and for whom.
    by: Identity,
    to: Identity,
}

impl Draft {
    fn bytes(&self) -> Vec<u8> {
        let signer = if self.ticket.creator == self.by.id() { &self.by } else { &self.to };
        let ticket = match Ticket::sign(signer, self.ticket.clone()) {
            Ok(ticket) => ticket,
            // Not even its maker can sign it: somebody else's signature stands below it.
            Err(_) => return Vec::new(),
        };
        self.sealed(&ticket, &self.private.to_bytes())
    }

    fn sealed(&self, ticket: &Ticket, private: &[u8]) -> Vec<u8> {
        let key = FileKey(self.private.file_key.clone());
        seal_unchecked(&self.by, self.to.x_public(), ticket, private, &key, &self.manifest, &[])
            .expect("a sound key seals")
    }
}

struct World {
    sim: Sim,
}

impl World {
    /// Ann keeps a file; bob is her friend, eve and cid are peers of both.
    fn new(seed: u64) -> Checked<Self> {
        let mut sim = Sim::with(seed, 4, |_, config| config.copies = 4);
        for a in 0..4 {
            for b in 0..a {
                sim.befriend(a, b)?;
            }
        }
        sim.turns(2)?;
        let mut world = Self { sim };
        world.friends(ANN, BOB)?;
        world.sim.write(ANN, b"photo.jpg")?;
        world.sim.turns(3)?;
        Ok(world)
    }

    fn friends(&mut self, a: usize, b: usize) -> Checked {
        for (own, other) in [(a, b), (b, a)] {
            let (sync, id) = (self.sync(own)?, self.identity(other).id());
            ask(&mut self.sim, own, async move { drop(sync.set_friend(&id, true).await) })?;
        }
        self.sim.turn()
    }

    fn sync(&self, at: usize) -> Checked<Rc<crate::sync::Sync>> {
        match &self.sim.machines[at].running {
            Some(running) => Ok(Rc::clone(&running.sync)),
            None => self.sim.broken(format_args!("{at} is off")),
        }
    }

    fn identity(&self, at: usize) -> Identity {
        self.sim.machines[at].master.identity(0, 0)
    }

    /// A grant of the photo by ann for `to`, as she would make it.
    fn draft(&mut self, to: usize) -> Checked<Draft> {
        let (master, me) = (self.sim.machines[ANN].master.clone(), self.identity(ANN));
        let recipient = self.identity(to);
        let Some(vault) = self.sim.vault(ANN) else { return self.sim.broken(format_args!("ann is off")) };
        let made = vault.db.read(|t| -> Result<(Manifest, Vec<u8>), VaultError> {
            let node = t.node_at(&[b"photo.jpg".to_vec()])?.expect("it was written");
            let bytes = t.record_at(node.seq)?.expect("its record is there");
            Ok((Manifest::open(&bytes, &master, Check::Signature)?, bytes))
        });
        let (manifest, signed) = made.map_err(|why| Broken(why.to_string()))?;
        let root = grant::root(&manifest.entries, &[]).map_err(|why| Broken(why.to_string()))?;
        let key = master.file_key(&manifest.salt);
        let now = self.sync(ANN)?.unix_now();
        Ok(Draft {
            ticket: TicketBody {
                creator: me.id(),
                recipient: recipient.id(),
                id: random(),
                root,
                rights: READ,
                number: 1 << 32 | 77,
                granted: now,
                expires: 0,
                extensions: Vec::new(),
            },
            private: Private {
                manifest: hash_of(&signed),
                file: manifest.file,
                version: manifest.version,
                name: "photo.jpg".into(),
                kind: Kind::File,
                media: "image/jpeg".into(),
                size: manifest.size,
                file_key: key.0.clone(),
                commitment: key.commitment(),
                holders: vec![Holder { id: self.identity(CID).id(), card: None }],
                thumbnail: Vec::new(),
                share: None,
                extensions: Vec::new(),
            },
            manifest: signed,
            by: me,
            to: recipient,
        })
    }

    fn feed_len(&self, at: usize) -> Checked<usize> {
        let rows = self.sync(at)?.books().received(u64::MAX, 1000);
        Ok(rows.map_err(|why| Broken(why.to_string()))?.len())
    }

    fn offer(&mut self, session: &Session, to: usize, grant: Vec<u8>) -> Checked<Answer> {
        let session = session.clone();
        ask(&mut self.sim, to, async move {
            match message::offer_grants(&session, &[grant]).await {
                Ok(statuses) => Answer::Status(statuses[0]),
                Err(AskError::Refused(why)) => Answer::Refused(why.to_string()),
                Err(why) => Answer::Broke(why.to_string()),
            }
        })
    }

    /// A session of somebody who shows tickets at `holder`.
    fn bearer(&mut self, holder: usize, id: CellId) -> Checked<Session> {
        let (ours, theirs, _) = session::pair(&Limits::default());
        self.sync(holder)?.bear_in_memory(id, theirs);
        let (session, driver) = ours;
        self.sim.spawn(holder, async move {
            driver.await;
        });
        self.sim.settle()?;
        Ok(session)
    }

    fn show(
        &mut self,
        session: &Session,
        holder: usize,
        ticket: &[u8],
        chunks: &[Wanted],
    ) -> Checked<String> {
        let (session, ticket, chunks) = (session.clone(), ticket.to_vec(), chunks.to_vec());
        ask(&mut self.sim, holder, async move {
            match message::get_by_ticket(&session, ticket, chunks).await {
                Err(AskError::Refused(why)) => why.to_string(),
                Err(why) => why.to_string(),
                Ok(mut getting) => {
                    let (mut count, mut bytes) = (0, Vec::new());
                    while let Ok(Some((_, status))) = getting.next(&mut bytes).await {
                        count += usize::from(status == message::GetStatus::Found);
                    }
                    format!("served {count}")
                }
            }
        })
    }

    /// Ann makes the photo so large that no wire holds a chunk of it.
    fn enlarge(&mut self) -> Checked {
        let plains: Vec<Vec<u8>> = (0..4u8).map(|n| vec![n; 100_000]).collect();
        self.sim.ask(ANN, move |vault| files::keep(vault, b"photo.jpg", &plains))?;
        self.sim.turns(3)
    }

    /// Begins to read chunks over a slow line, one each so often; how many have come so far.
    fn read_slowly(
        &mut self,
        session: &Session,
        holder: usize,
        (ticket, chunks): (&[u8], &[Wanted]),
        pause: Duration,
    ) -> Rc<Cell<usize>> {
        let (session, ticket, chunks) = (session.clone(), ticket.to_vec(), chunks.to_vec());
        let count = Rc::new(Cell::new(0));
        let told = Rc::clone(&count);
        self.sim.spawn(holder, async move {
            let Ok(mut getting) = message::get_by_ticket(&session, ticket, chunks).await else { return };
            let mut bytes = Vec::new();
            while let Ok(Some((_, message::GetStatus::Found))) = getting.next(&mut bytes).await {
                told.set(told.get() + 1);
                Timer::after(pause).await;
            }
        });
        count
    }

    /// Ann takes a ticket back, and the holder hears of it.
    fn take_back(&mut self, number: u64) -> Checked {
        let ann = self.identity(ANN);
        let mut revoked = Ranges::default();
        revoked.add(number);
        let body = RevocationsBody { creator: ann.id(), number: 1 << 40, revoked, extensions: Vec::new() };
        let list = Revocations::sign(&ann, body).expect("it is short").as_bytes().to_vec();
        let from_ann = rogue(&mut self.sim, ANN, CID)?;
        let held =
            ask(&mut self.sim, CID, async move { message::put_revocations(&from_ann, &list).await.ok() })?;
        self.expect("the list is taken", held == Some(1 << 40), &held)
    }

    fn expect(&self, about: &str, is_so: bool, found: &dyn std::fmt::Debug) -> Checked {
        if is_so { Ok(()) } else { self.sim.broken(format_args!("{about}: {found:?}")) }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Answer {
    Status(GrantStatus),
    Refused(String),
    Broke(String),
}

const REFUSED: Answer = Answer::Status(GrantStatus::Refused);

/// Grants that do not hold leave no trace in the Feed.
pub fn grants(seed: u64) -> Result<(), Broken> {
    let mut world = World::new(seed)?;
    let good = world.draft(BOB)?;
    let for_cid = world.draft(CID)?.bytes();
    let now = world.sync(BOB)?.unix_now();
    let eve = world.identity(EVE);
    let refusing = |draft: &Draft, change: &dyn Fn(&mut Draft)| {
        let mut draft = Draft {
            ticket: draft.ticket.clone(),
            private: draft.private.clone(),
            manifest: draft.manifest.clone(),
            by: draft.by.clone(),
            to: draft.to.clone(),
        };
        change(&mut draft);
        draft.bytes()
    };
    let mut attacks: Vec<(String, Vec<u8>)> = vec![
        ("for another recipient".into(), for_cid),
        (
            "expired".into(),
            refusing(&good, &|draft| {
                (draft.ticket.granted, draft.ticket.expires) = (now - 100, now - 1);
            }),
        ),
        ("of another root".into(), refusing(&good, &|draft| draft.ticket.root[0] ^= 1)),
        ("of another manifest".into(), refusing(&good, &|draft| draft.private.manifest.0[0] ^= 1)),
        ("of another file".into(), refusing(&good, &|draft| draft.private.file.0[0] ^= 1)),
        ("of another version".into(), refusing(&good, &|draft| draft.private.version += 1)),
        ("of another size".into(), refusing(&good, &|draft| draft.private.size += 1)),
        ("of a folder".into(), refusing(&good, &|draft| draft.private.kind = Kind::Folder)),
        ("of another key".into(), refusing(&good, &|draft| draft.private.commitment[0] ^= 1)),
        ("sealed by another cell".into(), refusing(&good, &|draft| draft.by = eve.clone())),
        ("without bytes".into(), Vec::new()),
        ("cut short".into(), good.bytes()[..200].to_vec()),
    ];
    for name in ["../../.ssh/authorized_keys", "/etc/passwd", "photo.jpg\0.exe", "..", ".", "", "a/b"] {
        attacks.push((format!("named {name:?}"), refusing(&good, &|draft| draft.private.name = name.into())));
        let in_folder = refusing(&good, &|draft| {
            draft.private.share = Some(Share { id: [7; 16], folders: vec![name.into()] });
        });
        attacks.push((format!("in the folder {name:?}"), in_folder));
    }
    let weak: [u8; 32] = unhex(WEAK).expect("hexadecimal").try_into().expect("32 bytes");
    let sound = good.bytes();
    for (about, at) in [("creator", 16), ("recipient", 48)] {
        // Behind the grant's label and the ticket's length.
        let mut bytes = sound.clone();
        let begins =
            bytes.windows(32).position(|part| part == good.by.id().0).expect("the creator stands in it");
        bytes[begins + at - 16..begins + at + 16].copy_from_slice(&weak);
        attacks.push((format!("with a weak key as {about}"), bytes));
    }

    let session = rogue(&mut world.sim, ANN, BOB)?;
    for (about, bytes) in attacks {
        let answer = world.offer(&session, BOB, bytes)?;
        world.expect(&format!("a grant {about}"), answer == REFUSED, &answer)?;
        let len = world.feed_len(BOB)?;
        world.expect(&format!("after a grant {about} the Feed is empty"), len == 0, &len)?;
    }
    // 10 MB are not even read.
    let long = {
        let session = session.clone();
        ask(&mut world.sim, BOB, async move {
            message::ask(&session, &Request::Grants { lens: vec![10_000_000] })
                .await
                .map_err(|why| why.to_string())
        })?
    };
    world.expect("a grant of 10 MB", long.is_err(), &long)?;

    let session = rogue_again(&mut world, ANN, BOB)?;
    let answer = world.offer(&session, BOB, sound.clone())?;
    world.expect("a sound grant", answer == Answer::Status(GrantStatus::Taken), &answer)?;
    let answer = world.offer(&session, BOB, sound.clone())?;
    world.expect("a sound grant once more", answer == Answer::Status(GrantStatus::Known), &answer)?;

    // Taken back, it does not come again; nor does an older list, or one of somebody else's.
    let list = |by: &Identity, number: u64, revoked: &[u64]| {
        let mut ranges = Ranges::default();
        revoked.iter().for_each(|n| ranges.add(*n));
        let body = RevocationsBody { creator: by.id(), number, revoked: ranges, extensions: Vec::new() };
        Revocations::sign(by, body).expect("it is short").as_bytes().to_vec()
    };
    let ann = good.by.clone();
    for (about, bytes, expected) in [
        ("a list", list(&ann, 1 << 33, &[good.ticket.number]), Some(1 << 33)),
        ("an older list", list(&ann, (1 << 33) - 1, &[]), Some(1 << 33)),
        ("a list of another's", list(&eve, 1 << 34, &[]), None),
        ("a list that is none", vec![1; 100], None),
    ] {
        let session = session.clone();
        let held =
            ask(&mut world.sim, BOB, async move { message::put_revocations(&session, &bytes).await.ok() })?;
        world.expect(about, held == expected, &held)?;
    }
    let len = world.feed_len(BOB)?;
    world.expect("what was taken back is gone", len == 0, &len)?;
    let answer = world.offer(&session, BOB, sound.clone())?;
    world.expect("a grant that was taken back", answer == REFUSED, &answer)?;

    // Replayed by eve: while she is no friend, and as one.
    let session = rogue(&mut world.sim, EVE, BOB)?;
    let answer = world.offer(&session, BOB, sound.clone())?;
    let is_refused = matches!(&answer, Answer::Refused(why) if why.contains("only friends share"));
    world.expect("a grant from one who is no friend", is_refused, &answer)?;
    world.sim.switch_on(EVE)?;
    world.sim.turn()?;
    world.friends(EVE, BOB)?;
    let session = rogue(&mut world.sim, EVE, BOB)?;
    let answer = world.offer(&session, BOB, sound)?;
    world.expect("a grant that a friend replays", answer == REFUSED, &answer)?;
    let len = world.feed_len(BOB)?;
    world.expect("nothing of it is in the Feed", len == 0, &len)
}

/// A new session in the name of a cell that is off by now.
fn rogue_again(world: &mut World, from: usize, to: usize) -> Checked<Session> {
    world.sim.switch_on(from)?;
    world.sim.turn()?;
    rogue(&mut world.sim, from, to)
}

fn chunks_of(opened: &Opened) -> Vec<Wanted> {
    let entries = &opened.manifest.entries;
    let asked = |at: usize| {
        let len = padded_len(entries[at].len() as usize) + TAG_BYTES;
        Some((entries[at].chunk()?, len as u32, grant::prove(entries, &opened.lists, Place::Entry(at))?))
    };
    (0..entries.len()).filter_map(asked).collect()
}

/// A holder serves a bearer what the ticket proves, and has a word for each reason not to.
pub fn tickets(seed: u64) -> Result<(), Broken> {
    let mut world = World::new(seed)?;
    let mut draft = world.draft(BOB)?;
    let now = world.sync(CID)?.unix_now();
    draft.ticket.expires = now + 7200;
    let (ann, bob, eve) = (world.identity(ANN), world.identity(BOB), world.identity(EVE));
    let party = Party { id: &ann.id(), x25519: ann.x_public() };
    let opened = grant::open(&draft.bytes(), &bob, party).map_err(|why| Broken(why.to_string()))?;
    let (ticket, chunks) = (opened.ticket.as_bytes().to_vec(), chunks_of(&opened));
    let served = format!("served {}", chunks.len());

    let session = world.bearer(CID, bob.id())?;
    let said = world.show(&session, CID, &ticket, &chunks)?;
    world.expect("the recipient is served", said == served, &said)?;

    // A bearer may do nothing else.
    let names: Vec<ChunkName> = chunks.iter().map(|(name, ..)| *name).collect();
    for request in [
        Request::Heads,
        Request::Have { names: names.clone() },
        Request::Restore { names: names.clone() },
        Request::Release { names: names.clone() },
        Request::TakenBack,
        Request::Inventory { epoch: 0, since: 0, limit: 10 },
    ] {
        let session = session.clone();
        let shown = format!("{request:?}").chars().take(20).collect::<String>();
        let said = ask(&mut world.sim, CID, async move {
            message::ask(&session, &request).await.map_err(|why| why.to_string())
        })?;
        world.expect(&format!("a bearer asks {shown}"), said.is_err(), &said)?;
    }

    // Each part of it changed in turn.
    let signed = ticket.len() - 64;
    let mut changed: Vec<(&str, Vec<u8>, &str)> = Vec::new();
    for (about, at) in
        [("id", 80), ("root", 96), ("number", 129), ("granted", 137), ("expires", 145), ("signature", signed)]
    {
        let mut bytes = ticket.clone();
        bytes[at] ^= 1;
        changed.push((about, bytes, "not signed by the creator it names"));
    }
    let mut put = |about, at: usize, with: &[u8], why| {
        let mut bytes = ticket.clone();
        bytes[at..at + with.len()].copy_from_slice(with);
        changed.push((about, bytes, why));
    };
    put("label", 3, b"x", "another format's label");
    put("version", 15, b"9", "another version of grove");
    put("rights", 128, &[3], "rights 3 are not known");
    put("weak creator", 16, &unhex(WEAK).expect("hexadecimal"), "not a sound one");
    put("weak recipient", 48, &unhex(WEAK).expect("hexadecimal"), "not a sound one");
    changed.push(("end", ticket[..ticket.len() - 1].to_vec(), "malformed grant"));
    changed.push(("nothing", Vec::new(), "malformed grant"));
    for (about, bytes, why) in changed {
        let said = world.show(&session, CID, &bytes, &chunks)?;
        world.expect(&format!("a ticket with another {about}"), said.contains(why), &said)?;
    }
    let sign = |by: &Identity, change: &dyn Fn(&mut TicketBody)| {
        let mut body = draft.ticket.clone();
        change(&mut body);
        Ticket::sign(by, body).expect("it can be signed").as_bytes().to_vec()
    };
    let stranger = Identity::clone(&crate::keys::MasterKey::from_bytes([9; 32]).identity(0, 0));
    let not_covered = "chunks that the ticket does not cover";
    let mut other_len = chunks.clone();
    other_len[0].1 += 1;
    let mut other_name = chunks.clone();
    other_name[0].0.0[0] ^= 1;
    let mut other_proof = chunks.clone();
    let proof = &mut other_proof[0].2;
    match proof.last_mut() {
        Some(byte) => *byte ^= 1,
        None => proof.push(0),
    }
    for (about, bytes, asked, why) in [
        (
            "of somebody unknown",
            sign(&stranger, &|body| body.creator = stranger.id()),
            &chunks,
            "does not come from its creator",
        ),
        ("of eve for her chunks", sign(&eve, &|body| body.creator = eve.id()), &chunks, "served 0"),
        ("for another cell", sign(&ann, &|body| body.recipient = eve.id()), &chunks, "for another cell"),
        ("that is over", sign(&ann, &|body| (body.granted, body.expires) = (1, now - 1)), &chunks, "expired"),
        ("of another root", sign(&ann, &|body| body.root[0] ^= 1), &chunks, not_covered),
        ("with another length", ticket.clone(), &other_len, not_covered),
        ("with another chunk", ticket.clone(), &other_name, not_covered),
        ("with another proof", ticket.clone(), &other_proof, ""),
    ] {
        let said = world.show(&session, CID, &bytes, asked)?;
        world.expect(&format!("a ticket {about}"), said.contains(why) && said != served, &said)?;
    }

    // Shown by another; and after it is over, or was taken back.
    let thief = world.bearer(CID, eve.id())?;
    let said = world.show(&thief, CID, &ticket, &chunks)?;
    world.expect("a stolen ticket", said.contains("for another cell"), &said)?;
    let said = world.show(&session, CID, &ticket, &chunks)?;
    world.expect("the recipient is still served", said == served, &said)?;
    world.take_back(draft.ticket.number)?;
    let said = world.show(&session, CID, &ticket, &chunks)?;
    world.expect("a ticket that was taken back", said.contains("taken back"), &said)?;
    let again = sign(&ann, &|body| body.number += 1);
    let said = world.show(&session, CID, &again, &chunks)?;
    world.expect("a ticket of another number", said == served, &said)?;
    world.sim.pass(Duration::from_secs(7200 + 60))?;
    let session = world.bearer(CID, bob.id())?;
    let said = world.show(&session, CID, &again, &chunks)?;
    world.expect("a ticket whose time is over", said.contains("expired"), &said)?;

    // Whoever shows nothing that holds is let go.
    let idle = world.bearer(CID, eve.id())?;
    world.sim.pass(Duration::from_secs(60))?;
    let is_alive = idle.is_alive();
    world.expect("a bearer who shows nothing is let go", !is_alive, &is_alive)
}

/// Who reads by ticket over a slow line is not taken for idle; what is taken back meanwhile is served no further.
pub fn slow_bearer(seed: u64) -> Result<(), Broken> {
    let mut world = World::new(seed)?;
    world.enlarge()?;
    let draft = world.draft(BOB)?;
    let (ann, bob) = (world.identity(ANN), world.identity(BOB));
    let party = Party { id: &ann.id(), x25519: ann.x_public() };
    let opened = grant::open(&draft.bytes(), &bob, party).map_err(|why| Broken(why.to_string()))?;
    let once = chunks_of(&opened);
    let (ticket, chunks) = (opened.ticket.as_bytes().to_vec(), [&once[..], &once[..]].concat());

    let pause = Duration::from_secs(25);
    let session = world.bearer(CID, bob.id())?;
    let count = world.read_slowly(&session, CID, (&ticket, &chunks), pause);
    world.sim.pass(pause * 9)?;
    world.expect("all has come in the end", count.get() == chunks.len(), &count)?;

    let session = world.bearer(CID, bob.id())?;
    let count = world.read_slowly(&session, CID, (&ticket, &chunks), pause);
    world.sim.pass(pause * 2)?;
    world.take_back(draft.ticket.number)?;
    let before = count.get();
    world.sim.pass(pause * 9)?;
    // One is on its way already.
    world.expect("hardly more has come", (before..=before + 1).contains(&count.get()), &(before, &count))
}

/// Who takes a byte now and then holds no place for ever: others are served.
pub fn trickling_bearer(seed: u64) -> Result<(), Broken> {
    let mut world = World::new(seed)?;
    world.enlarge()?;
    let ann = world.identity(ANN);
    let party = Party { id: &ann.id(), x25519: ann.x_public() };
    let mut granted = Vec::new();
    for to in [EVE, BOB] {
        let (draft, recipient) = (world.draft(to)?, world.identity(to));
        let opened = grant::open(&draft.bytes(), &recipient, party).map_err(|why| Broken(why.to_string()))?;
        granted.push((recipient.id(), opened.ticket.as_bytes().to_vec(), chunks_of(&opened)));
    }
    let [(eve, its_ticket, its_chunks), (bob, ticket, chunks)] = &granted[..] else { unreachable!("two") };

    let session = world.bearer(CID, *eve)?;
    let request = Request::GetByTicket { ticket: its_ticket.clone(), chunks: its_chunks.clone() };
    world.sim.spawn(CID, async move {
        let Ok(mut stream) = session.open().await else { return };
        let asked = message::write_head(&mut stream, &request.to_bytes()).await;
        while asked.is_ok() && matches!(stream.read(&mut [0]).await, Ok(1)) {
            Timer::after(Duration::from_secs(20)).await;
        }
    });
    world.sim.pass(Duration::from_secs(40))?;
    let session = world.bearer(CID, *bob)?;
    let count = world.read_slowly(&session, CID, (ticket, chunks), Duration::ZERO);
    world.sim.pass(Duration::from_secs(60))?;
    world.expect("another one is served", count.get() == chunks.len(), &count)
}

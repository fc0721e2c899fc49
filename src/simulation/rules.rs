//! One rule each, in a fleet made for it.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use super::story::Outcome;
use super::{Checked, DAY, HOUR, Sim};
use crate::config::Config;
use crate::id::ChunkName;
use crate::placement::{CopyState, HoldState};
use crate::proof::Challenge;
use crate::routes::{Kind, Speed};
use crate::sync::Wired;
use crate::wire::message::{self, AuditStatus, Class, GetStatus, PutStatus, Request};
use crate::wire::session::{self, Limits, Session};
use crate::world::Sabotage;

/// What `dropping` says of a peer that was not found out.
pub const NOT_NOTICED: &str = "nobody has noticed in 30 days";

/// A fleet in which everybody is everybody's peer.
fn fleet(seed: u64, cells: usize, settings: impl FnMut(usize, &mut Config)) -> Checked<Sim> {
    let mut sim = Sim::with(seed, cells, settings);
    for a in 0..cells {
        for b in 0..a {
            sim.befriend(a, b)?;
        }
    }
    Ok(sim)
}

pub(super) fn run(
    seed: u64,
    cells: usize,
    settings: impl FnMut(usize, &mut Config),
    rule: impl FnOnce(&mut Sim) -> Checked,
) -> Outcome {
    let mut sim = match fleet(seed, cells, settings) {
        Ok(sim) => sim,
        Err(broken) => return Outcome::of(Sim::new(seed, 1), Some(broken)),
    };
    let broken = rule(&mut sim).err();
    Outcome::of(sim, broken)
}

/// Chunks of an owner that a holder's disk has.
fn held_by(sim: &mut Sim, owner: usize, holder: usize) -> Vec<ChunkName> {
    let needed = sim.needed_chunks(owner);
    needed.into_iter().filter(|name| sim.sound_at(*name).contains(&holder)).collect()
}

fn least_copies(sim: &Sim, names: &[ChunkName]) -> usize {
    names.iter().map(|name| sim.sound_at(*name).len()).min().unwrap_or(usize::MAX)
}

/// When a peer stays away for good, what it held begins to be copied elsewhere within two rounds after the grace, and all of
/// it is a few rounds later.
pub fn healing(seed: u64, sabotage: Option<Sabotage>) -> Outcome {
    let mut dice = crate::world::Dice::new(seed, "healing");
    let cells = 4 + dice.below(3) as usize;
    let grace = HOUR * (1 + dice.below(5) as u32);
    let copies = 2 + dice.below(2);
    run(
        seed,
        cells,
        |_, config| (config.heal_grace_s, config.copies) = (grace.as_secs(), copies),
        |sim| {
            if let Some(what) = sabotage {
                sim.sabotage(what);
            }
            for number in 0..12 {
                sim.write(0, format!("file {number}").as_bytes())?;
            }
            sim.turns(4)?;
            let held: Vec<Vec<ChunkName>> = (0..sim.len()).map(|at| held_by(sim, 0, at)).collect();
            let lost = (1..sim.len()).max_by_key(|at| held[*at].len()).expect("there are peers");
            let names = held[lost].clone();
            if names.is_empty() {
                return sim.broken(format_args!("nothing was copied to anybody"));
            }
            sim.look_around()?;
            let died = sim.now();
            sim.stop(lost, true);
            sim.machines[lost].is_gone = true;
            sim.note(format_args!("{lost} is gone for ever, with {} chunks", names.len()));
            let interval = Duration::from_secs(300);
            while sim.now() < died + grace {
                sim.turns(1)?;
                let has_begun = least_copies(sim, &names) >= copies as usize;
                if has_begun && sim.now() + interval < died + grace {
                    return sim.broken(format_args!("healing began before the grace was over"));
                }
            }
            sim.turns(2)?;
            let healed = names.iter().filter(|name| sim.sound_at(**name).len() >= copies as usize).count();
            if healed == 0 {
                return sim.broken(format_args!("no healing within two rounds after the grace"));
            }
            sim.turns(3)?;
            if least_copies(sim, &names) < copies as usize {
                return sim.broken(format_args!("healing has not come to its end, though there is space"));
            }
            Ok(())
        },
    )
}

/// Copies too many are there for no longer than the settling time after a peer's return.
pub fn settling(seed: u64) -> Outcome {
    let mut dice = crate::world::Dice::new(seed, "settling");
    let cells = 3 + dice.below(4) as usize;
    let settle = HOUR * (6 + dice.below(30) as u32);
    let away = HOUR * (4 + dice.below(100) as u32);
    run(
        seed,
        cells,
        |_, config| (config.heal_grace_s, config.heal_settle_s) = (2 * 3600, settle.as_secs()),
        |sim| {
            for number in 0..10 {
                sim.write(0, format!("file {number}").as_bytes())?;
            }
            sim.turns(4)?;
            // For how long a chunk has had a copy too many.
            let mut over: BTreeMap<ChunkName, Duration> = BTreeMap::new();
            let mut was_over = false;
            for turn in 0..3 {
                let held: Vec<usize> = (0..cells).map(|at| held_by(sim, 0, at).len()).collect();
                let at = (1..cells).max_by_key(|at| held[*at]).expect("there are peers");
                sim.note(format_args!("absence {turn}: {at} with {} chunks", held[at]));
                sim.look_around()?;
                sim.switch_off(at)?;
                sim.pass(HOUR / 2)?;
                let until = sim.now() + away;
                while sim.now() < until {
                    sim.turn()?;
                    sim.pass(HOUR)?;
                }
                sim.look_around()?;
                sim.switch_on(at)?;
                let until = sim.now() + settle + HOUR * 6;
                while sim.now() < until {
                    sim.turn()?;
                    sim.pass(HOUR)?;
                    let now = sim.now();
                    for name in sim.needed_chunks(0) {
                        if held_for(sim, 0, name).len() > 1 {
                            was_over = true;
                            let since = *over.entry(name).or_insert(now);
                            if now > since + settle + HOUR * 5 {
                                let known = sim.describe(0, name);
                                return sim.broken(format_args!("chunk {} has had a copy too many for {} hours, and settling takes {}: {known}", name.short(), (now - since).as_secs() / 3600, settle.as_secs() / 3600));
                            }
                        } else {
                            over.remove(&name);
                        }
                    }
                }
                if !over.is_empty() {
                    return sim.broken(format_args!("copies too many are left"));
                }
            }
            if cells > 2 && !was_over {
                return sim.broken(format_args!("nothing was ever copied elsewhere"));
            }
            sim.check_copies()
        },
    )
}

/// Peers that are on and hold a chunk for its owner.
pub(super) fn held_for(sim: &Sim, owner: usize, name: ChunkName) -> Vec<usize> {
    let id = sim.machines[owner].master.identity(0, 0).id();
    let holds = |at: &usize| {
        let hold = sim.look(*at, |t| {
            let cell = t.cell(&id)?;
            match t.chunk(&name)? {
                Some(row) => t.hold(row.id, cell),
                None => Ok(None),
            }
        });
        matches!(hold, Some(Some((_, HoldState::Held))))
    };
    (0..sim.len()).filter(|at| *at != owner).filter(holds).collect()
}

/// What a quiet round costs in a large fleet, for each peer of each cell: bytes, and CPU in microseconds.
#[derive(Debug, Clone, Copy)]
pub struct Quiet {
    /// Of requests and replies, both ways together, for a pair of peers and turn.
    pub bytes: u64,
    /// Of both cells of a pair, for a turn; the simulation's own work is part of it.
    pub cpu_us: u64,
}

/// A fleet of so many cells, each with six peers somewhere in it: all copies are made, and then a turn in which nothing has
/// changed is measured.
pub fn large_fleet(seed: u64, cells: usize) -> (Outcome, Option<Quiet>) {
    let mut sim = Sim::new(seed, cells);
    let mut quiet = None;
    let broken = large_fleet_in(&mut sim, &mut quiet).err();
    (Outcome::of(sim, broken), quiet)
}

fn large_fleet_in(sim: &mut Sim, quiet: &mut Option<Quiet>) -> Checked {
    const QUIET_TURNS: u64 = 5;
    let cells = sim.len();
    sim.befriend_all((0..cells).flat_map(|at| [1, 7, 41].map(|step| (at, (at + step) % cells))).collect())?;
    for number in 0..cells * 2 {
        sim.write(number % cells, format!("file {number}").as_bytes())?;
    }
    sim.turns(4)?;
    sim.check_copies()?;
    // A day later all sums over names have been compared, and first proofs been asked for.
    sim.pass(DAY)?;
    sim.turns(6)?;
    let (bytes, cpu) = (sim.passed(), cpu_us());
    sim.turns(QUIET_TURNS as usize)?;
    let pairs = sim.pairs() as u64;
    *quiet = Some(Quiet {
        bytes: (sim.passed() - bytes) / pairs / QUIET_TURNS,
        cpu_us: (cpu_us() - cpu) / pairs / QUIET_TURNS,
    });
    sim.check_nothing_is_lost()
}

/// CPU that this thread has used. us.
fn cpu_us() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    time.tv_sec as u64 * 1_000_000 + time.tv_nsec as u64 / 1000
}

/// Every damage on an honest cell's disk is found within 30 days.
pub fn damage(seed: u64) -> Outcome {
    let mut dice = crate::world::Dice::new(seed, "damage");
    run(
        seed,
        3,
        |_, _| {},
        |sim| {
            for number in 0..15 {
                sim.write(number % 3, format!("file {number}").as_bytes())?;
            }
            sim.turns(4)?;
            for _ in 0..10 {
                let at = dice.below(3) as usize;
                let names = sim.machines[at].disk.store.names();
                let name = names[dice.below(names.len() as u64) as usize];
                if sim.sound_at(name).iter().any(|holder| *holder != at) {
                    sim.rot(at, name);
                }
            }
            let until = sim.now() + DAY * 34;
            while sim.now() < until {
                sim.turn()?;
                for at in 0..3 {
                    sim.scrub(at)?;
                }
                sim.pass(HOUR * 12)?;
            }
            sim.check_damage_is_found()?;
            if let Some(((at, name), _)) = sim.rotten.iter().next() {
                return sim.broken(format_args!("chunk {} was not found rotten at {at}", name.short()));
            }
            sim.check_copies()?;
            sim.check_nothing_is_lost()
        },
    )
}

/// A peer that has dropped one chunk of a hundred and says nothing is found out within 30 days.
pub fn dropping(seed: u64) -> Outcome {
    let mut dice = crate::world::Dice::new(seed, "dropping");
    run(
        seed,
        2,
        |_, _| {},
        |sim| {
            for number in 0..80 {
                sim.write(0, format!("file {number}").as_bytes())?;
            }
            sim.turns(3)?;
            // It has proved all of them once, and then drops some.
            for _ in 0..4 {
                sim.pass(DAY / 2)?;
                sim.turn()?;
            }
            let held = held_by(sim, 0, 1);
            let count = (held.len() / 100).max(1);
            for _ in 0..count {
                let name = held[dice.below(held.len() as u64) as usize];
                sim.machines[1].disk.store.lose(name);
                sim.note(format_args!("1 drops chunk {} of {}", name.short(), held.len()));
            }
            let until = sim.now() + DAY * 30;
            while sim.now() < until {
                sim.turn()?;
                let proofs = sim.machines[0].running.as_ref().map(|running| running.sync.proofs());
                if proofs.unwrap_or_default().iter().any(|proof| proof.proved.lost() > 0) {
                    return Ok(());
                }
                sim.pass(HOUR * 6)?;
            }
            sim.broken(format_args!("{NOT_NOTICED}"))
        },
    )
}

/// A peer that has dropped what it holds for another and makes proofs up is found out within 30 days, and gets nothing new then.
pub fn forging(seed: u64, sabotage: Option<Sabotage>) -> Outcome {
    run(
        seed,
        2,
        |_, _| {},
        |sim| {
            if let Some(what) = sabotage {
                sim.sabotage(what);
            }
            for number in 0..20 {
                sim.write(0, format!("file {number}").as_bytes())?;
            }
            sim.turns(3)?;
            let held = held_by(sim, 0, 1);
            let forger = sim.machines[1].master.identity(0, 0).id();
            for name in &held {
                sim.machines[1].disk.store.lose(*name);
            }
            sim.guard.forge(Some(forger));
            sim.note(format_args!("1 drops all {} chunks, and makes proofs up", held.len()));
            let until = sim.now() + DAY * 30;
            while sim.now() < until {
                sim.turn()?;
                let proofs = sim.machines[0].running.as_ref().map(|running| running.sync.proofs());
                if proofs.unwrap_or_default().iter().any(|proof| proof.proved.wrong > 0 && proof.is_suspended)
                {
                    return Ok(());
                }
                sim.pass(HOUR * 6)?;
            }
            sim.broken(format_args!("1 has made proofs up for 30 days and was not found out"))
        },
    )
}

/// Whatever happens to lines and machines, a correct peer is never said to have lost or forged anything, and in the end its
/// copies count.
pub fn correct_peer(seed: u64) -> Outcome {
    let mut dice = crate::world::Dice::new(seed, "correct");
    run(
        seed,
        3,
        |_, _| {},
        |sim| {
            for number in 0..20 {
                sim.write(number % 3, format!("file {number}").as_bytes())?;
            }
            sim.turns(3)?;
            for _ in 0..45 {
                let at = dice.below(3) as usize;
                let now = sim.now();
                match dice.below(6) {
                    0 => {
                        sim.look_around()?;
                        sim.switch_off(at)?;
                        sim.machines[at].back_at = Some(now + HOUR * dice.below(120) as u32);
                    }
                    1 => sim.machines[at].ticks_left = Some(dice.below(500)),
                    2 if sim.is_on(at) => sim.machines[at].blow_after(Some(dice.below(80))),
                    3 => {
                        sim.loss = dice.below(40);
                        sim.wires.values().for_each(session::Wire::cut);
                    }
                    4 => {
                        sim.connect_all();
                        for wire in sim.wires.values() {
                            wire.cut_after(dice.below(30_000));
                        }
                    }
                    _ => {}
                }
                for _ in 0..3 {
                    sim.turn()?;
                    sim.pass(HOUR * 5)?;
                }
                sim.turn()?;
                check_no_blame(sim)?;
                sim.pass(DAY / 2)?;
            }
            sim.loss = 0;
            sim.wires.values().for_each(session::Wire::cut);
            for at in 0..3 {
                sim.machines[at].ticks_left = None;
                sim.machines[at].blow_after(None);
                sim.switch_on(at)?;
            }
            for _ in 0..8 {
                sim.turns(2)?;
                sim.pass(HOUR * 8)?;
            }
            check_no_blame(sim)?;
            for owner in 0..3 {
                check_counted(sim, owner)?;
            }
            sim.check_copies()
        },
    )
}

fn check_no_blame(sim: &Sim) -> Checked {
    for at in 0..sim.len() {
        let Some(running) = &sim.machines[at].running else { continue };
        for proof in running.sync.proofs() {
            let proved = &proof.proved;
            if proved.missing + proved.damaged + proved.wrong > 0 {
                return sim.broken(format_args!("{at} says that {} has lost chunks: {proved:?}", proof.name));
            }
        }
    }
    Ok(())
}

fn check_counted(sim: &mut Sim, owner: usize) -> Checked {
    let Some(vault) = sim.vault(owner) else { return Ok(()) };
    for name in sim.needed_chunks(owner) {
        let copies = vault.db.read(|t| -> Result<_, crate::placement::DbError> {
            match t.chunk(&name)? {
                Some(row) => t.all_copies_of(row.id),
                None => Ok(Vec::new()),
            }
        });
        let is_counted = copies.unwrap_or_default().iter().any(|copy| copy.state == CopyState::Stored);
        if !is_counted {
            let known = sim.describe(owner, name);
            return sim.broken(format_args!("no copy of chunk {} counts: {known}", name.short()));
        }
    }
    Ok(())
}

// ---- Somebody who does as he likes ----

/// A session with `to` in which whoever `from` is may ask what he likes; `from` must be off.
pub(super) fn rogue(sim: &mut Sim, from: usize, to: usize) -> Checked<Session> {
    let card = match &sim.machines[from].running {
        Some(running) => running.sync.card(),
        None => return sim.broken(format_args!("{from} is off")),
    };
    sim.stop(from, false);
    let (ours, theirs, _) = session::pair(&Limits::default());
    let Some(running) = &sim.machines[to].running else {
        return sim.broken(format_args!("{to} is off"));
    };
    let sync = Rc::clone(&running.sync);
    let speed = Speed { rtt_us: 20_000, up_bytes_per_s: 1_000_000, down_bytes_per_s: 1_000_000 };
    let wired = Wired { driven: theirs, kind: Kind::Wan, speed, is_ours: false };
    sim.spawn(to, async move {
        if !sync.attach_in_memory(&card, wired).await {
            log::info!("no peer");
        }
    });
    // Its own tasks are not there to answer what is asked of it.
    sim.settle()?;
    Ok(ours.0)
}

/// Asks in the name of the rogue; the work is done by the tasks of `to`, and by nobody else.
pub(super) fn ask<T: 'static>(
    sim: &mut Sim,
    to: usize,
    work: impl Future<Output = T> + 'static,
) -> Checked<T> {
    let outcome = Rc::new(std::cell::RefCell::new(None));
    let told = Rc::clone(&outcome);
    sim.spawn(to, async move { *told.borrow_mut() = Some(work.await) });
    sim.settle()?;
    match outcome.take() {
        Some(done) => Ok(done),
        None => sim.broken(format_args!("no answer")),
    }
}

/// All that a peer can ask of names, as words: names themselves left out.
async fn everything(session: Session, names: Vec<ChunkName>) -> Vec<String> {
    let mut words = Vec::new();
    for request in [
        Request::Have { names: names.clone() },
        Request::Restore { names: names.clone() },
        Request::Release { names: names.clone() },
    ] {
        words.push(match message::ask(&session, &request).await {
            Ok(reply) => format!("{reply:?}"),
            Err(why) => format!("{why}"),
        });
    }
    match message::get(&session, names.clone()).await {
        Ok(mut getting) => loop {
            let mut bytes = Vec::new();
            match getting.next(&mut bytes).await {
                Ok(Some((_, status))) => words.push(format!("{status:?} {}", bytes.len())),
                Ok(None) => break,
                Err(why) => {
                    words.push(why.to_string());
                    break;
                }
            }
        },
        Err(why) => words.push(why.to_string()),
    }
    for challenge in [Challenge::Whole, Challenge::Leaf(0)] {
        words.push(format!("{:?}", audit(&session, &names, challenge).await));
    }
    words
}

async fn audit(session: &Session, names: &[ChunkName], challenge: Challenge) -> Vec<AuditStatus> {
    let asks: Vec<(ChunkName, Challenge)> = names.iter().map(|name| (*name, challenge)).collect();
    let Ok(mut auditing) = message::audit(session, crate::keys::random(), asks).await else {
        return Vec::new();
    };
    let mut statuses = Vec::new();
    while let Ok(Some((status, _))) = auditing.next().await {
        statuses.push(status);
    }
    statuses
}

/// Whoever is not the owner learns from no request whether a cell has a chunk, kept for another or its own.
pub fn strangers(seed: u64) -> Outcome {
    run(
        seed,
        4,
        |_, config| config.copies = 3,
        |sim| {
            for number in 0..10 {
                sim.write(number % 2, format!("file {number}").as_bytes())?;
            }
            sim.turns(4)?;
            // Kept at 1 for 0, and 1's own.
            let mut names = held_by(sim, 0, 1);
            let own: Vec<ChunkName> = sim.needed_chunks(1).into_iter().collect();
            if names.is_empty() || own.is_empty() {
                return sim.broken(format_args!("there is nothing to be learnt"));
            }
            names.extend(own);
            // What the rogue itself has stored there is his to know.
            let strange: Vec<ChunkName> = names.iter().map(|_| ChunkName(crate::keys::random())).collect();
            let session = rogue(sim, 3, 1)?;
            let about_theirs = ask(sim, 1, everything(session.clone(), names.clone()))?;
            let about_nothing = ask(sim, 1, everything(session.clone(), strange))?;
            if about_theirs != about_nothing {
                return sim
                    .broken(format_args!("the answers tell: {about_theirs:?} instead of {about_nothing:?}"));
            }
            // Nor by storing the same bytes: they are stored as if they were new.
            let bytes = sim.machines[1].disk.store.bytes_of(names[0]).expect("it is there");
            let entries = vec![(names[0], bytes.len() as u32)];
            let statuses = ask(sim, 1, async move {
                let mut putting = message::put(&session, Class::Chunk, entries).await.ok()?;
                putting.send(&bytes).await.ok()?;
                Some(putting.finish().await.ok()?.0)
            })?;
            if statuses != Some(vec![PutStatus::Stored]) {
                return sim
                    .broken(format_args!("storing a chunk that is there tells that it is: {statuses:?}"));
            }
            sim.check_nothing_is_lost()
        },
    )
}

/// A peer that has nothing and passes audits on, to another holder or to the owner itself, gets no proof from them.
pub fn passing_on(seed: u64) -> Outcome {
    run(
        seed,
        3,
        |_, config| config.copies = 3,
        |sim| {
            for number in 0..8 {
                sim.write(0, format!("file {number}").as_bytes())?;
            }
            sim.turns(4)?;
            let names = held_by(sim, 0, 1);
            let names_len = names.len();
            let cheat = 2;
            for other in [1, 0] {
                if !sim.is_on(cheat) {
                    sim.switch_on(cheat)?;
                }
                let session = rogue(sim, cheat, other)?;
                for challenge in [Challenge::Whole, Challenge::Leaf(0)] {
                    let (session, names) = (session.clone(), names.clone());
                    let answers = ask(sim, other, async move { audit(&session, &names, challenge).await })?;
                    if answers.len() != names_len || answers.contains(&AuditStatus::Proof) {
                        return sim.broken(format_args!("{other} proves for the cheat: {answers:?}"));
                    }
                }
                // Nor does it get the bytes, with which it could.
                let names = names.clone();
                let got = ask(sim, other, async move {
                    let mut getting = message::get(&session, names).await.ok()?;
                    let mut bytes = Vec::new();
                    getting.next(&mut bytes).await.ok()?.map(|(_, status)| status)
                })?;
                if got == Some(GetStatus::Found) {
                    return sim.broken(format_args!("{other} gives the cheat the bytes"));
                }
            }
            Ok(())
        },
    )
}

/// Times that an exchange of figures may break off at the end of the story.
const AGAIN_MAX: usize = 6;

/// Whatever happens to lines and machines, honest cells never dispute, their books always balance, nothing is counted for more
/// time than has passed, and once all is calm both sides of each pair say the same, to the byte-hour. One of them goes back to
/// an old copy of its whole disk on the way.
pub fn accounts(seed: u64) -> Outcome {
    let mut dice = crate::world::Dice::new(seed, "accounts");
    run(
        seed,
        3,
        |_, config| config.copies = 3,
        |sim| {
            for number in 0..12 {
                sim.write(number % 3, format!("file {number}").as_bytes())?;
            }
            sim.turns(3)?;
            let (old, mut has_gone_back) = (dice.below(3) as usize, false);
            let began = sim.now();
            while sim.now() < began + DAY * 14 {
                let at = dice.below(3) as usize;
                match dice.below(12) {
                    0 => sim.switch_off(at)?,
                    1 => sim.crash(at),
                    2 => sim.machines[at].blow_after(Some(1 + dice.below(400))),
                    3 => sim.loss = if sim.loss == 0 { 1 + dice.below(15) } else { 0 },
                    4 => sim.write(at, format!("more {}", dice.below(1 << 40)).as_bytes())?,
                    _ => {}
                }
                for _ in 0..4 {
                    sim.turn()?;
                    sim.pass(HOUR)?;
                }
                for at in 0..3 {
                    sim.switch_on(at)?;
                    sim.machines[at].blow_after(None);
                }
                check_accounts(sim, false)?;
                if sim.machines[old].backup.is_none() && sim.now() > began + DAY * 3 {
                    sim.switch_off(old)?;
                    let now = sim.now();
                    sim.machines[old].back_up(now);
                    sim.switch_on(old)?;
                }
                if !has_gone_back && sim.now() > began + DAY * 8 {
                    has_gone_back = true;
                    sim.switch_off(old)?;
                    if let Some((_, disk)) = sim.machines[old].backup.take() {
                        sim.machines[old].disk = disk;
                        sim.note(format_args!("{old} goes back to its backup"));
                    }
                    sim.switch_on(old)?;
                }
            }
            sim.loss = 0;
            for _ in 0..3 {
                sim.turns(2)?;
                for _ in 0..13 {
                    sim.turn()?;
                    sim.pass(HOUR * 2)?;
                }
            }
            // An exchange that broke off in the last turn is taken up again in the next.
            let mut outcome = check_accounts(sim, true);
            for _ in 0..AGAIN_MAX {
                if outcome.is_ok() {
                    break;
                }
                sim.pass(HOUR)?;
                sim.turns(2)?;
                outcome = check_accounts(sim, true);
            }
            outcome
        },
    )
}

fn check_accounts(sim: &mut Sim, is_calm: bool) -> Checked {
    let mut told = BTreeMap::new();
    for at in 0..sim.len() {
        let faults = sim.machines[at].disk.books.bounty_faults().unwrap_or_else(|why| vec![why.to_string()]);
        if !faults.is_empty() {
            return sim.broken(format_args!("the books of {at}: {faults:?}"));
        }
        let Some(running) = &sim.machines[at].running else { continue };
        let sync = Rc::clone(&running.sync);
        let views = ask(sim, at, async move { sync.bounty().await })?;
        match views {
            Ok(views) => drop(told.insert(at, views)),
            Err(why) => return sim.broken(format_args!("{at} cannot tell its accounts: {why}")),
        }
    }
    let ids: Vec<crate::id::CellId> =
        (0..sim.len()).map(|at| sim.machines[at].master.identity(0, 0).id()).collect();
    for (at, views) in &told {
        for view in views {
            let other = ids.iter().position(|id| *id == view.id).unwrap_or(usize::MAX);
            // What a cell that went back has forgotten is told as older books, until it has taken them up.
            if is_calm && (view.dispute.is_some() || view.state != "ok") {
                return sim.broken(format_args!("{at} and {other} are honest: {view:?}"));
            }
            // No more than all that was ever stored, for all the time that has passed.
            let bytes: u64 = sim.machines[other].disk.store.names().len() as u64 * (4 << 20);
            let most = bytes.saturating_mul(sim.now().as_secs() / 3600 + 1);
            if view.spent + view.unsigned > most {
                return sim.broken(format_args!("{at} has counted more than there was: {view:?}, {most}"));
            }
            let Some(theirs) =
                told.get(&other).and_then(|views| views.iter().find(|view| view.id == ids[*at]))
            else {
                continue;
            };
            let is_level =
                (view.earned, view.spent, view.statement) == (theirs.spent, theirs.earned, theirs.statement);
            if is_calm && (!is_level || view.statement.is_none()) {
                return sim.broken(format_args!("{at} says {view:?}, and {other} {theirs:?}"));
            }
        }
    }
    Ok(())
}

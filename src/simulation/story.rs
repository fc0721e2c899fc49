//! A year in the life of a fleet, from a seed: people write and delete, machines sleep, crash, lose power, fill up and rot,
//! links break, clocks are wrong, and now and then a disk is gone for ever. In years of change also the fleet itself: cells join
//! later, peers are removed and come again, somebody deletes everything at once, and a peer forges proofs of what it has dropped.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::{Broken, Checked, DAY, Expected, HOUR, Rotten, Sim, pair};
use crate::id::ChunkName;
use crate::world::Sabotage;

/// How much of it.
#[derive(Debug, Clone, Copy)]
pub struct Scale {
    /// Virtual days.
    pub days: u64,
    /// Cells at most; most fleets have few.
    pub cells_max: u64,
    /// A rule that is broken on purpose.
    pub sabotage: Option<Sabotage>,
}

/// How a year went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// Hash over all that has happened.
    pub fingerprint: [u8; 32],
    /// The rule that did not hold.
    pub broken: Option<Broken>,
    /// The last lines of the log.
    pub log: String,
    /// Cells in the fleet.
    pub cells: usize,
    /// Versions written.
    pub versions: u64,
    /// What changed in the fleet.
    pub changes: Changes,
}

/// How often what happened in a year of change.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Changes {
    /// Cells that came later.
    pub joined: u64,
    /// Peers that were removed.
    pub parted: u64,
    /// Brakes that came on, as everything was deleted.
    pub braked: u64,
    /// Brakes that somebody took off.
    pub confirmed: u64,
    /// Peers that gave false proofs.
    pub forged: u64,
    /// Of these, those that were found out.
    pub found_out: u64,
}

impl Outcome {
    /// What came of a world that has ended.
    pub(super) fn of(mut sim: Sim, broken: Option<Broken>) -> Self {
        sim.note_states();
        Self {
            fingerprint: sim.fingerprint(),
            broken,
            log: sim.log(),
            cells: sim.len(),
            versions: sim.files_made,
            changes: Changes::default(),
        }
    }
}

/// Files that somebody deletes at once: more than the brake lets pass.
const MANY_FILES: u64 = 24;
/// Nothing is let go for 90 days after a recovery while a peer was not heard: so long apart nobody is.
const MET: Duration = Duration::from_secs(60 * 86_400);
/// Pairs that are looked at until two are found that can part.
const PARTING_PAIRS: usize = 8;
/// A forger with whom its owner was connected for so long is found out.
const FORGED: Duration = Duration::from_secs(31 * 86_400);

/// Lives through one year. The same seed and scale give the same outcome.
pub fn year(seed: u64, scale: Scale) -> Outcome {
    live(seed, scale, false)
}

/// Lives through one year in which the fleet changes, too.
pub fn year_of_change(seed: u64, scale: Scale) -> Outcome {
    live(seed, scale, true)
}

fn live(seed: u64, scale: Scale, has_changes: bool) -> Outcome {
    let mut dice = crate::world::Dice::new(seed, "fleet");
    let most = scale.cells_max.max(2);
    let cells = match dice.below(100) {
        0..70 => 2 + dice.below(3),
        70..95 => 4 + dice.below(4),
        _ => 6 + dice.below(most),
    };
    let mut cells = cells.min(most) as usize;
    if has_changes {
        cells = cells.max(4);
    }
    let mut sim = Sim::with(seed, cells, |_, config| {
        if cells > 3 && dice.percent(25) {
            config.copies = 3;
        }
    });
    if let Some(what) = scale.sabotage {
        sim.sabotage(what);
    }
    // A large fleet lives for a shorter time: its days cost more.
    let days = (scale.days * 5 / (cells as u64).max(5)).max(20);
    let late = if has_changes { (cells - cells / 3..cells).collect() } else { Vec::new() };
    let (files, hurt_at, tight) = (0, Duration::ZERO, Vec::new());
    let changes = Changes::default();
    let recovered = BTreeMap::new();
    let mut story =
        Story { sim, files, hurt_at, recovered, days, tight, has_changes, late, forger: None, changes };
    let broken = story.live().err();
    Outcome { changes: story.changes, ..Outcome::of(story.sim, broken) }
}

struct Story {
    sim: Sim,
    files: u64,
    /// When something was last destroyed: what was lost then must heal before the next.
    hurt_at: Duration,
    /// When cells recovered last, or went back to a backup.
    recovered: BTreeMap<usize, Duration>,
    days: u64,
    /// Whose disks are full.
    tight: Vec<usize>,
    /// The fleet changes.
    has_changes: bool,
    /// Who has no peer yet.
    late: Vec<usize>,
    forger: Option<Forger>,
    changes: Changes,
}

/// Somebody who dropped chunks of an owner and gives false proofs of them.
struct Forger {
    at: usize,
    owner: usize,
    names: BTreeSet<ChunkName>,
    /// Since when nothing has kept the owner from asking it.
    since: Duration,
    /// False proofs that the owner had seen before.
    wrong: u64,
}

impl Story {
    fn live(&mut self) -> Checked {
        self.meet()?;
        for _ in 0..3 {
            self.write_some()?;
        }
        self.sim.turns(2)?;
        while self.sim.now() < DAY * self.days as u32 {
            self.day()?;
        }
        self.calm()?;
        self.lose_each()
    }

    /// Everybody gets some peers: a ring, and a few more.
    fn meet(&mut self) -> Checked {
        let cells = self.sim.len() - self.late.len();
        for at in 0..cells {
            self.sim.befriend(at, (at + 1) % cells)?;
            if cells > 3 && self.sim.dice.percent(70) {
                let other = self.sim.dice.below(cells as u64) as usize;
                if other != at {
                    self.sim.befriend(at, other)?;
                }
            }
        }
        Ok(())
    }

    fn someone(&mut self) -> usize {
        self.sim.dice.below(self.sim.len() as u64) as usize
    }

    fn write_some(&mut self) -> Checked {
        for _ in 0..1 + self.sim.dice.below(3) {
            let at = self.someone();
            let number = if self.files > 0 && self.sim.dice.percent(50) {
                self.sim.dice.below(self.files)
            } else {
                self.files += 1;
                self.files - 1
            };
            self.sim.write(at, format!("file {number}").as_bytes())?;
        }
        Ok(())
    }

    fn day(&mut self) -> Checked {
        let begun = self.sim.now();
        self.sim.look_around()?;
        if self.sim.dice.percent(40) {
            self.people()?;
        }
        if self.sim.dice.percent(35) {
            self.fault()?;
        }
        if self.has_changes {
            if self.sim.dice.percent(15) {
                self.change()?;
            }
            self.look_at_forger()?;
            self.sim.check_brakes()?;
        }
        let turns = if self.sim.dice.percent(30) { 3 } else { 1 };
        self.sim.turns(turns)?;
        for at in 0..self.sim.len() {
            if self.sim.dice.percent(30) {
                self.sim.tidy(at)?;
            }
        }
        for at in 0..self.sim.len() {
            self.sim.scrub(at)?;
        }
        self.begin_anew()?;
        self.meet_in_time();
        if self.sim.dice.percent(20) {
            self.sim.check_nothing_is_lost()?;
            self.sim.check_damage_is_found()?;
        }
        // The rest of the day, or of some more.
        let days = if self.sim.dice.percent(40) { 1 } else { 1 + self.sim.dice.below(4) as u32 };
        let until = begun + DAY * days;
        while self.sim.now() + HOUR < until {
            self.sim.look_around()?;
            let left = until - self.sim.now();
            self.sim.pass(left.min(DAY))?;
            self.sim.turn()?;
        }
        Ok(())
    }

    fn people(&mut self) -> Checked {
        match self.sim.dice.below(10) {
            0..7 => self.write_some(),
            7 if self.files > 0 => {
                let (at, number) = (self.someone(), self.sim.dice.below(self.files));
                self.sim.delete(at, format!("file {number}").as_bytes())
            }
            8 => {
                let at = self.someone();
                self.sim.restore(at)
            }
            _ => Ok(()),
        }
    }

    /// The fleet is not what it was.
    fn change(&mut self) -> Checked {
        let braked = self.sim.braked.iter().next().copied();
        if let Some(at) = braked.filter(|_| self.sim.dice.percent(40)) {
            self.changes.confirmed += 1;
            return self.sim.confirm(at);
        }
        match self.sim.dice.below(5) {
            0 => self.join(),
            1 => self.meet_again(),
            2 => self.part_for_good(),
            3 => self.delete_everything(),
            _ => self.forge(),
        }
    }

    fn is_here(&self, at: usize) -> bool {
        self.sim.is_on(at) && !self.sim.machines[at].is_gone
    }

    /// A cell that had no peer gets two.
    fn join(&mut self) -> Checked {
        let Some(late) = self.late.iter().copied().find(|late| self.is_here(*late)) else { return Ok(()) };
        let others: Vec<usize> =
            (0..self.sim.len()).filter(|other| !self.late.contains(other) && self.is_here(*other)).collect();
        if others.is_empty() {
            return Ok(());
        }
        self.late.retain(|other| *other != late);
        self.changes.joined += 1;
        let first = self.sim.dice.below(others.len() as u64) as usize;
        self.sim.befriend(late, others[first])?;
        if others.len() == 1 {
            return Ok(());
        }
        let step = 1 + self.sim.dice.below(others.len() as u64 - 1) as usize;
        self.sim.befriend(late, others[(first + step) % others.len()])
    }

    /// Two that are no peers, or no more, become peers.
    fn meet_again(&mut self) -> Checked {
        let (a, b) = (self.someone(), self.someone());
        let is_new = a != b && !self.sim.friends.contains(&pair(a, b));
        let may_be = [a, b].iter().all(|at| self.is_here(*at) && !self.late.contains(at));
        if is_new && may_be { self.sim.befriend(a, b) } else { Ok(()) }
    }

    /// Somebody removes a peer. Both have others, and nothing that is needed lies with the other alone.
    fn part_for_good(&mut self) -> Checked {
        if !self.has_healed() || !self.tight.is_empty() {
            return Ok(());
        }
        let pairs: Vec<(usize, usize)> = self.sim.friends.iter().copied().collect();
        let first = self.sim.dice.below(pairs.len() as u64) as usize;
        let turned = self.sim.dice.percent(50);
        // In most fleets few can part: some are tried.
        let mut tried = (0..pairs.len().min(PARTING_PAIRS)).map(|n| pairs[(first + n) % pairs.len()]);
        let Some((a, b)) = tried.find(|(a, b)| self.may_part(*a, *b)) else { return Ok(()) };
        let (a, b) = if turned { (b, a) } else { (a, b) };
        for at in [a, b] {
            self.sim.machines[at].ticks_left = None;
            self.sim.machines[at].blow_after(None);
        }
        self.hurt_at = self.sim.now();
        self.changes.parted += 1;
        self.sim.remove_peer(a, b)
    }

    /// Whether both have enough without each other.
    fn may_part(&mut self, a: usize, b: usize) -> bool {
        if !self.is_here(a) || !self.is_here(b) {
            return false;
        }
        for (owner, other) in [(a, b), (b, a)] {
            let left = (0..self.sim.len())
                .filter(|third| *third != other && *third != owner)
                .filter(|third| self.sim.reaches(owner, *third) && !self.sim.machines[*third].is_gone)
                .count() as u64;
            if left < 2 || left + 1 < self.sim.machines[owner].config.copies {
                return false;
            }
            for name in self.sim.needed_chunks(owner) {
                let is_left = |holder: usize| holder != other && self.sim.reaches(owner, holder);
                if !self.sim.kept_at(name).any(is_left) {
                    return false;
                }
            }
        }
        self.sim.can_spare(a) && self.sim.can_spare(b)
    }

    /// A program gone wild, or a person: all files are deleted at once. Weeks later somebody confirms it.
    fn delete_everything(&mut self) -> Checked {
        if !self.sim.braked.is_empty() {
            return Ok(());
        }
        let at = self.someone();
        if !self.is_here(at) || self.tight.contains(&at) {
            return Ok(());
        }
        for number in 0..MANY_FILES {
            self.sim.write(at, format!("many {number}").as_bytes())?;
        }
        self.sim.turns(1)?;
        self.changes.braked += u64::from(self.sim.delete_all(at)?);
        Ok(())
    }

    /// A peer drops what it holds for somebody, and gives false proofs of it from now on.
    fn forge(&mut self) -> Checked {
        let at = self.someone();
        if self.forger.is_some() || !self.is_here(at) || !self.has_healed() {
            return Ok(());
        }
        let owners: Vec<usize> = (0..self.sim.len())
            .filter(|owner| *owner != at && self.sim.reaches(*owner, at) && self.is_here(*owner))
            .collect();
        if owners.is_empty() {
            return Ok(());
        }
        let owner = owners[self.sim.dice.below(owners.len() as u64) as usize];
        let mut names = BTreeSet::new();
        for name in self.sim.needed_chunks(owner) {
            let holders: Vec<usize> = self.sim.kept_at(name).collect();
            let others = holders.iter().filter(|holder| **holder != at && self.sim.reaches(owner, **holder));
            if holders.contains(&at)
                && others.count() > 0
                && self.sim.counts_on(owner, name, at)
                && self.sim.dice.percent(50)
            {
                names.insert(name);
            }
        }
        if names.is_empty() {
            return Ok(());
        }
        let now = self.sim.now();
        let observed = self.sim.vault(at).map(|vault| vault.now());
        for name in &names {
            self.sim.machines[at].disk.store.lose(*name);
            self.sim.rotten.insert((at, *name), Rotten { at: now, observed, ran: Duration::ZERO, seen: now });
        }
        self.hurt_at = now;
        self.sim.note(format_args!("{at} drops {} chunks of {owner} and forges proofs", names.len()));
        self.sim.guard.forge(Some(self.sim.machines[at].master.identity(0, 0).id()));
        let wrong = self.false_proofs(owner, at);
        self.changes.forged += 1;
        self.forger = Some(Forger { at, owner, names, since: now, wrong });
        Ok(())
    }

    /// False proofs that an owner has seen of a peer.
    fn false_proofs(&self, owner: usize, peer: usize) -> u64 {
        let id = self.sim.machines[peer].master.identity(0, 0).id();
        let proofs = self.sim.machines[owner].running.as_ref().map(|running| running.sync.proofs());
        proofs.unwrap_or_default().iter().find(|view| view.id == id).map_or(0, |view| view.proved.wrong)
    }

    /// Whether a forger was found out, or does not forge any more.
    fn look_at_forger(&mut self) -> Checked {
        let Some(Forger { at, owner, since, wrong, .. }) = self.forger else { return Ok(()) };
        let needed = self.sim.needed_chunks(owner);
        let store = &self.sim.machines[at].disk.store;
        let is_forged = self.forger.as_ref().is_some_and(|one| {
            let is_missed = |name: &ChunkName| needed.contains(name) && !store.has_sound(*name);
            one.names.iter().any(|name| is_missed(name) && self.sim.counts_on(owner, *name, at))
        });
        let is_over = !is_forged || self.sim.machines[at].is_gone || self.sim.machines[owner].is_gone;
        let is_found = self.false_proofs(owner, at) > wrong;
        if is_found || is_over || !self.sim.reaches(owner, at) {
            self.sim.note(format_args!("{at} forges no more, found out: {is_found}"));
            self.changes.found_out += u64::from(is_found);
            self.sim.guard.forge(None);
            self.forger = None;
            return Ok(());
        }
        let now = self.sim.now();
        if !self.sim.may_meet(at, owner) || self.sim.loss > 0 {
            // Its tries begin anew.
            self.forger.iter_mut().for_each(|one| one.since = now);
            return Ok(());
        }
        if now > since + FORGED {
            return self.sim.broken(format_args!(
                "{at} has forged proofs for {owner} since day {} and was not found out",
                since.as_secs() / 86_400
            ));
        }
        Ok(())
    }

    fn fault(&mut self) -> Checked {
        let at = self.someone();
        let now = self.sim.now();
        match self.sim.dice.below(20) {
            0..4 => {
                let ticks = self.sim.dice.below(400);
                self.sim.machines[at].ticks_left = Some(ticks);
                self.sim.note(format_args!("{at} will crash after {ticks} ticks"));
                self.write_some()?;
            }
            4..8 => {
                let operations = self.sim.dice.below(60);
                if self.sim.is_on(at) {
                    self.sim.machines[at].blow_after(Some(operations));
                    self.sim.note(format_args!("{at} will crash after {operations} operations"));
                }
                self.write_some()?;
            }
            8..10 => {
                // Off for hours, or for weeks.
                let hours = if self.sim.dice.percent(70) {
                    1 + self.sim.dice.below(20)
                } else {
                    self.sim.dice.below(24 * 25)
                };
                self.sim.switch_off(at)?;
                if !self.sim.machines[at].is_gone {
                    self.sim.machines[at].back_at = Some(now + HOUR * hours as u32);
                }
            }
            10..12 => {
                let other = self.someone();
                if other != at {
                    let is_apart = !self.sim.apart.contains(&pair(at, other));
                    self.sim.part(at, other, is_apart);
                    self.sim.note(format_args!("{at} and {other} apart: {is_apart}"));
                }
            }
            12 => {
                // A connection breaks in the middle of something.
                self.sim.connect_all();
                let keys: Vec<_> = self.sim.wires.keys().copied().collect();
                if !keys.is_empty() {
                    let key = keys[self.sim.dice.below(keys.len() as u64) as usize];
                    let bytes = self.sim.dice.below(20_000);
                    self.sim.wires[&key].cut_after(bytes);
                    self.sim.note(format_args!("the wire {key:?} breaks after {bytes} bytes"));
                }
                self.write_some()?;
            }
            13 => {
                self.sim.loss = if self.sim.loss == 0 { 1 + self.sim.dice.below(20) } else { 0 };
                let loss = self.sim.loss;
                self.sim.note(format_args!("{loss} % of requests fail"));
                for wire in std::mem::take(&mut self.sim.wires).into_values() {
                    wire.cut();
                }
            }
            14 => {
                self.sim.connect_all();
                let keys: Vec<_> = self.sim.wires.keys().copied().collect();
                if !keys.is_empty() {
                    let key = keys[self.sim.dice.below(keys.len() as u64) as usize];
                    self.sim.wires[&key].stall(true);
                    self.sim.note(format_args!("the wire {key:?} stalls"));
                    self.write_some()?;
                    self.sim.turn()?;
                    if let Some(wire) = self.sim.wires.remove(&key) {
                        wire.cut();
                    }
                }
            }
            15 => self.rot(at)?,
            16 => {
                let skew_s = match self.sim.dice.below(3) {
                    0 => 0,
                    1 => self.sim.dice.below(400 * 86_400) as i64 - 200 * 86_400,
                    _ => self.sim.dice.below(7200) as i64 - 3600,
                };
                let has_ntp = skew_s.abs() < 3600 && self.sim.dice.percent(70);
                self.sim.machines[at].turn_clock(now, skew_s, has_ntp);
                self.sim.note(format_args!("the clock of {at} is off by {skew_s} s, NTP: {has_ntp}"));
            }
            17 => self.back_up_or_restore(at)?,
            18 => self.fill(at),
            _ if self.sim.dice.percent(40) => self.leave(at)?,
            _ => self.disaster(at)?,
        }
        Ok(())
    }

    /// A chunk rots on a disk, if it is not the last sound one.
    fn rot(&mut self, at: usize) -> Checked {
        let names = self.sim.machines[at].disk.store.names();
        if names.is_empty() || self.sim.machines[at].is_gone {
            return Ok(());
        }
        let name = names[self.sim.dice.below(names.len() as u64) as usize];
        let owners: Vec<usize> =
            (0..self.sim.len()).filter(|owner| self.sim.needed_chunks(*owner).contains(&name)).collect();
        let is_spared = |holder: usize| owners.iter().all(|owner| self.sim.reaches(*owner, holder));
        if self.sim.kept_at(name).any(|holder| holder != at && is_spared(holder)) {
            self.sim.rot(at, name);
        }
        Ok(())
    }

    /// The whole disk goes back to an old copy; or one is made.
    fn back_up_or_restore(&mut self, at: usize) -> Checked {
        let now = self.sim.now();
        if self.sim.machines[at].is_gone || !self.has_healed() {
            return Ok(());
        }
        self.sim.switch_off(at)?;
        match self.sim.machines[at].backup.take() {
            Some((made, disk)) => {
                let has_room_to_lose = self.sim.can_spare(at) && self.all_on_but(at);
                if has_room_to_lose {
                    let safe = self.sim.safe_without(at);
                    self.sim.expected[at].retain(|one| {
                        let is_old = one.kept.chunks.iter().all(|name| disk.store.has_sound(*name));
                        (is_old
                            && one.over_at.is_none_or(|over| over > made)
                            && safe.iter().any(|other| other.kept.hash == one.kept.hash))
                            || safe.iter().any(|other| other.kept.hash == one.kept.hash)
                    });
                    self.sim.machines[at].disk = disk;
                    self.sim.braked.remove(&at);
                    self.sim.rotten.retain(|(other, _), _| *other != at);
                    self.hurt_at = now;
                    self.recovered.insert(at, now);
                    self.sim.note(format_args!(
                        "{at} goes back to its backup of day {}",
                        made.as_secs() / 86_400
                    ));
                }
            }
            None => self.sim.machines[at].back_up(now),
        }
        self.sim.switch_on(at)
    }

    fn all_on_but(&self, at: usize) -> bool {
        (0..self.sim.len())
            .all(|other| other == at || self.sim.machines[other].is_gone || self.sim.is_on(other))
    }

    fn has_healed(&self) -> bool {
        self.sim.now() > self.hurt_at + DAY * 8
    }

    /// A disk is gone; its owner recovers from the phrase.
    fn disaster(&mut self, at: usize) -> Checked {
        let can = self.has_healed() && self.all_on_but(at) && !self.sim.machines[at].is_gone;
        if !can || !self.sim.can_spare(at) {
            return Ok(());
        }
        if self.sim.safe_without(at).is_empty() {
            return Ok(());
        }
        self.recover_by_somebody(at)
    }

    /// Recovers with the first peer that can help, if there is one.
    fn recover_by_somebody(&mut self, at: usize) -> Checked {
        let helper = (0..self.sim.len()).find(|other| self.sim.can_help(*other, at));
        let Some(helper) = helper else { return Ok(()) };
        self.hurt_at = self.sim.now();
        self.recovered.insert(at, self.hurt_at);
        self.sim.machines[helper].ticks_left = None;
        self.sim.machines[helper].blow_after(None);
        self.sim.lose_and_recover(at, helper)?;
        self.sim.turns(2)?;
        self.sim.refill(at)
    }

    /// Who has recovered, or has an old disk, waits so long for peers that may know of newer versions, and not for ever: until then they have met.
    fn meet_in_time(&mut self) {
        let now = self.sim.now();
        let is_late = |at: &usize| self.recovered.get(at).is_some_and(|then| now > *then + MET);
        let late: Vec<(usize, usize)> =
            self.sim.apart.iter().copied().filter(|(a, b)| is_late(a) || is_late(b)).collect();
        for (a, b) in late {
            self.sim.part(a, b, false);
            self.sim.note(format_args!("{a} and {b} meet again"));
        }
    }

    /// Where a backup of an older life woke up, it stops writing and says so; its owner does as told, and recovers.
    fn begin_anew(&mut self) -> Checked {
        self.sim.invite_the_forgotten()?;
        for at in 0..self.sim.len() {
            let is_retired = self.sim.vault(at).is_some_and(|vault| vault.is_retired());
            if is_retired && self.all_on_but(at) && self.sim.can_spare(at) {
                self.recover_by_somebody(at)?;
            }
        }
        Ok(())
    }

    /// A disk is full, or has room again.
    fn fill(&mut self, at: usize) {
        let store = &self.sim.machines[at].disk.store;
        let is_tight = self.tight.contains(&at);
        if is_tight {
            store.set_capacity(u64::MAX);
            self.tight.retain(|other| *other != at);
        } else {
            let room = self.sim.dice.below(4000);
            store.set_capacity(store.used() + room);
            self.tight.push(at);
            self.sim.was_full[at] = true;
        }
        self.sim.note(format_args!("the disk of {at} is full: {}", !is_tight));
    }

    /// A machine goes for ever, and nobody is told.
    fn leave(&mut self, at: usize) -> Checked {
        let living = (0..self.sim.len()).filter(|other| !self.sim.machines[*other].is_gone).count();
        let has_others = |friend: usize| {
            let others = (0..self.sim.len()).filter(|other| {
                *other != at
                    && *other != friend
                    && !self.sim.machines[*other].is_gone
                    && self.sim.friends.contains(&pair(friend, *other))
            });
            others.count() as u64 + 1 >= self.sim.machines[friend].config.copies
        };
        let friends_may_spare = (0..self.sim.len())
            .filter(|friend| self.sim.friends.contains(&pair(at, *friend)))
            .all(has_others);
        let can = living > 2
            && self.has_healed()
            && self.all_on_but(at)
            && friends_may_spare
            && self.tight.is_empty();
        if !can || self.sim.machines[at].is_gone || !self.sim.can_spare(at) {
            return Ok(());
        }
        self.hurt_at = self.sim.now();
        self.sim.stop(at, true);
        self.sim.machines[at].is_gone = true;
        self.sim.machines[at].back_at = None;
        self.sim.braked.remove(&at);
        self.late.retain(|other| *other != at);
        self.sim.expected[at].clear();
        self.sim.rotten.retain(|(other, _), _| *other != at);
        self.sim.note(format_args!("{at} is gone for ever"));
        Ok(())
    }

    /// All faults end, and everything has time to come to rest.
    fn calm(&mut self) -> Checked {
        self.sim.note(format_args!("all is calm"));
        self.sim.loss = 0;
        self.sim.apart.clear();
        self.sim.guard.forge(None);
        self.forger = None;
        for wire in std::mem::take(&mut self.sim.wires).into_values() {
            wire.cut();
        }
        let now = self.sim.now();
        for at in 0..self.sim.len() {
            self.sim.machines[at].ticks_left = None;
            self.sim.machines[at].blow_after(None);
            self.sim.machines[at].turn_clock(now, 0, true);
            self.sim.machines[at].disk.store.set_capacity(u64::MAX);
            self.sim.switch_on(at)?;
        }
        while !self.late.is_empty() {
            let before = self.late.len();
            self.join()?;
            if self.late.len() == before {
                return self.sim.broken(format_args!("nobody is there whom {:?} could join", self.late));
            }
        }
        for day in 0..6 {
            self.sim.turns(2)?;
            self.begin_anew()?;
            for at in 0..self.sim.len() {
                self.sim.refill(at)?;
                self.sim.mend(at)?;
                if day == 3 {
                    self.sim.tidy(at)?;
                }
            }
            self.sim.pass(DAY / 2)?;
            self.sim.turn()?;
            self.sim.pass(DAY / 2)?;
        }
        self.sim.check_nothing_is_lost()?;
        for at in 0..self.sim.len() {
            self.sim.check_readable(at)?;
        }
        self.sim.check_copies()
    }

    /// Each cell loses its disk in turn, and everything comes back from the phrase and the peers.
    fn lose_each(&mut self) -> Checked {
        for at in 0..self.sim.len() {
            if self.sim.machines[at].is_gone {
                continue;
            }
            let friends: Vec<usize> =
                (0..self.sim.len()).filter(|other| self.sim.can_help(*other, at)).collect();
            if friends.is_empty() {
                if self.sim.may_catalog_be_rotten(at) {
                    continue;
                }
                return self.sim.broken(format_args!("no peer of {at} could help it after a calm week"));
            }
            let helper = friends[self.sim.dice.below(friends.len() as u64) as usize];
            let (needed, safe) = (self.sim.needed(at), self.sim.safe_without(at));
            let may_lack = self.sim.needed_chunks(at).into_iter().any(|name| self.sim.may_be_rotten(name))
                || self.sim.may_catalog_be_rotten(at);
            if safe.len() < needed.len() && !may_lack {
                let is_safe = |one: &Expected| safe.iter().any(|other| other.kept.hash == one.kept.hash);
                let lacking: Vec<String> = (needed.iter().filter(|one| !is_safe(one)))
                    .map(|one| self.sim.where_kept(at, one))
                    .collect();
                let (before, safe) = (needed.len(), safe.len());
                return self.sim.broken(format_args!(
                    "only {safe} of {before} versions of {at} are safe with peers after a calm week; not {lacking:?}"
                ));
            }
            self.sim.lose_and_recover(at, helper)?;
            self.sim.turns(3)?;
            self.sim.refill(at)?;
            self.sim.check_readable(at)?;
            for _ in 0..3 {
                self.sim.pass(DAY)?;
                self.sim.turns(2)?;
            }
        }
        self.sim.check_nothing_is_lost()
    }
}

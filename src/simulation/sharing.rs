//! People who share, take back, edit, move, delete, make friends, end friendships and go away, from a seed; beside it a plain
//! model of who may read what.
//!
//! Two rules. Nobody is ever granted what the model forbids, and what was taken back no holder serves that has heard of it:
//! each reader keeps all tickets and keys that it ever got, and tries them. And once all have met, everybody reads what the
//! model allows, to the byte, from holders too while the sharer is off.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use super::story::Outcome;
use super::{Checked, HOUR, Sim, files};
use crate::grant::{self, Opened, Party};
use crate::id::{CellId, FileId};
use crate::keys::{FileKey, sha256};
use crate::manifest::Parsed;
use crate::placement::NodeId;
use crate::sync::Sync;
use crate::vault::VaultError;
use crate::wire::message::{self, AskError, ErrorCode};
use crate::wire::session::{self, Limits};
use crate::world::{Dice, Sabotage};

/// Steps of one story.
const STEPS: u64 = 40;
/// Grants that a reader is looked at for.
const FEED_MAX: usize = 1000;
/// Names of files and folders that one cell uses.
const NAMES: u64 = 6;
const FOLDERS: u64 = 2;

/// What a person sees of a file.
#[derive(Debug, Clone)]
struct Known {
    file: FileId,
    version: u64,
    content: [u8; 32],
    folder: Option<u64>,
}

/// What is shared: a file by id, or a folder by number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum What {
    File(FileId),
    Folder(u64),
}

/// Something that a reader got, and never throws away.
struct Ticket {
    owner: usize,
    reader: usize,
    opened: Opened,
}

struct Story {
    sim: Sim,
    /// Files by owner and name.
    files: BTreeMap<(usize, u64), Known>,
    friends: BTreeSet<(usize, usize)>,
    /// Owner, what, with whom; until when, in virtual time.
    shares: BTreeMap<(usize, What, usize), Option<Duration>>,
    /// Versions that a reader was ever allowed to read, with their owner.
    may: BTreeSet<(usize, usize, FileId, u64)>,
    /// Versions that may have the key of the version before: they are nothing but a move, or were written by one who had not
    /// heard yet that a friendship was over.
    unaware: BTreeSet<(FileId, u64)>,
    tickets: Vec<Ticket>,
    got: BTreeSet<(usize, CellId, [u8; 16], u64)>,
    off: BTreeSet<usize>,
}

/// One story.
pub fn story(seed: u64, sabotage: Option<Sabotage>) -> Outcome {
    let mut dice = Dice::new(seed, "sharing");
    let cells = 3 + dice.below(3) as usize;
    let mut sim = Sim::with(seed, cells, |_, config| config.copies = 2 + dice.below(2));
    if let Some(what) = sabotage {
        sim.sabotage(what);
    }
    let mut story = Story {
        sim,
        files: BTreeMap::new(),
        friends: BTreeSet::new(),
        shares: BTreeMap::new(),
        may: BTreeSet::new(),
        unaware: BTreeSet::new(),
        tickets: Vec::new(),
        got: BTreeSet::new(),
        off: BTreeSet::new(),
    };
    let broken = story.live().err();
    Outcome::of(story.sim, broken)
}

fn pair(a: usize, b: usize) -> (usize, usize) {
    (a.min(b), a.max(b))
}

fn file_name(number: u64) -> Vec<u8> {
    format!("file {number}").into_bytes()
}

fn folder_name(number: u64) -> Vec<u8> {
    format!("folder {number}").into_bytes()
}

fn path(folder: Option<u64>, name: u64) -> Vec<u8> {
    match folder {
        Some(folder) => [&folder_name(folder)[..], b"/", &file_name(name)].concat(),
        None => file_name(name),
    }
}

impl Story {
    fn live(&mut self) -> Checked {
        let cells = self.sim.len();
        for a in 0..cells {
            for b in 0..a {
                self.sim.befriend(a, b)?;
            }
        }
        for _ in 0..cells * 2 {
            let (a, b) = (self.someone(), self.someone());
            self.make_friends(a, b)?;
        }
        for _ in 0..cells * 3 {
            let at = self.someone();
            self.write(at)?;
        }
        for step in 0..STEPS {
            self.step()?;
            self.note_allowed();
            if self.dice(3) == 0 {
                self.sim.turn()?;
            }
            self.collect()?;
            if step % 16 == 15 {
                self.meet_and_check()?;
            }
        }
        self.meet_and_check()
    }

    fn dice(&mut self, end: u64) -> u64 {
        self.sim.dice.below(end)
    }

    fn someone(&mut self) -> usize {
        let cells = self.sim.len() as u64;
        self.dice(cells) as usize
    }

    fn id(&self, at: usize) -> CellId {
        self.sim.machines[at].master.identity(0, 0).id()
    }

    fn sync(&self, at: usize) -> Option<Rc<Sync>> {
        self.sim.machines[at].running.as_ref().map(|running| Rc::clone(&running.sync))
    }

    /// What a cell that is on answers.
    fn ask<T: 'static, F: Future<Output = T> + 'static>(
        &mut self,
        at: usize,
        work: impl FnOnce(Rc<Sync>) -> F,
    ) -> Checked<Option<T>> {
        let Some(sync) = self.sync(at) else { return Ok(None) };
        let outcome = Rc::new(RefCell::new(None));
        let told = Rc::clone(&outcome);
        let work = work(sync);
        self.sim.spawn(at, async move { *told.borrow_mut() = Some(work.await) });
        self.sim.settle()?;
        for _ in 0..10 {
            if outcome.borrow().is_some() {
                break;
            }
            self.sim.pass(Duration::from_secs(10))?;
        }
        let done = outcome.take();
        match done {
            Some(done) => Ok(Some(done)),
            None => self.sim.broken(format_args!("{at} gives no answer")),
        }
    }

    fn step(&mut self) -> Checked {
        let (a, b) = (self.someone(), self.someone());
        match self.dice(100) {
            0..20 => self.write(a),
            20..27 => self.move_file(a),
            27..32 => self.delete(a),
            32..60 => self.share(a, b),
            60..75 => self.unshare(a),
            75..80 => self.end_friendship(a, b),
            80..86 => self.make_friends(a, b),
            86..91 => self.go_away(a),
            91..95 => self.come_back(a),
            95..98 => {
                let is_apart = self.dice(2) == 0;
                if a != b {
                    self.sim.part(a, b, is_apart);
                }
                Ok(())
            }
            _ => {
                let hours = self.dice(8) as u32;
                self.sim.pass(HOUR * hours)
            }
        }
    }

    // ---- What people do ----

    fn write(&mut self, at: usize) -> Checked {
        let name = self.dice(NAMES);
        let known = self.files.get(&(at, name)).cloned();
        let folder = match &known {
            Some(known) => known.folder,
            None if self.dice(2) == 0 => Some(self.dice(FOLDERS)),
            None => None,
        };
        let mut plains = Vec::new();
        for _ in 0..1 + self.dice(3) {
            let mut plain = vec![0; 50 + self.dice(400) as usize];
            self.sim.dice.fill(&mut plain);
            plains.push(plain);
        }
        self.sim.files_made += 1;
        let is_unaware = self.has_not_heard(at);
        let kept = self.sim.ask(at, move |vault| {
            let folder = folder.map_or(Ok(NodeId::ROOT), |n| files::folder(vault, &folder_name(n)))?;
            files::keep_in(vault, folder, &file_name(name), &plains)
        })?;
        if let Some(kept) = kept {
            self.sim.note(format_args!("{at} writes file {name} version {}", kept.version));
            let known = Known { file: kept.file, version: kept.version, content: kept.content, folder };
            if is_unaware {
                self.unaware.insert((known.file, known.version));
            }
            self.files.insert((at, name), known);
        }
        Ok(())
    }

    /// Whether a cell takes somebody for a friend who is none any more.
    fn has_not_heard(&self, at: usize) -> bool {
        let Some(sync) = self.sync(at) else { return false };
        (0..self.sim.len())
            .any(|other| sync.is_friend(&self.id(other)) && !self.friends.contains(&pair(at, other)))
    }

    fn some_file(&mut self, at: usize) -> Option<(u64, Known)> {
        let files: Vec<_> = self
            .files
            .iter()
            .filter(|((owner, _), _)| *owner == at)
            .map(|((_, n), k)| (*n, k.clone()))
            .collect();
        if files.is_empty() {
            return None;
        }
        let at = self.dice(files.len() as u64) as usize;
        files.into_iter().nth(at)
    }

    fn move_file(&mut self, at: usize) -> Checked {
        let Some((name, known)) = self.some_file(at) else { return Ok(()) };
        let to = if self.dice(3) == 0 { None } else { Some(self.dice(FOLDERS)) };
        if to == known.folder {
            return Ok(());
        }
        let from = known.folder;
        let moved = self.sim.ask(at, move |vault| {
            let folder =
                |n: Option<u64>| n.map_or(Ok(NodeId::ROOT), |n| files::folder(vault, &folder_name(n)));
            files::move_to(vault, folder(from)?, folder(to)?, &file_name(name))
        })?;
        if let Some(Some(version)) = moved {
            self.sim.note(format_args!("{at} moves file {name} from {from:?} to {to:?}"));
            self.unaware.insert((known.file, version));
            self.files.insert((at, name), Known { version, folder: to, ..known });
        }
        Ok(())
    }

    fn delete(&mut self, at: usize) -> Checked {
        let Some((name, known)) = self.some_file(at) else { return Ok(()) };
        let from = known.folder;
        let gone = self.sim.ask(at, move |vault| {
            let folder = from.map_or(Ok(NodeId::ROOT), |n| files::folder(vault, &folder_name(n)))?;
            files::delete_in(vault, folder, &file_name(name))
        })?;
        if gone == Some(true) {
            self.sim.note(format_args!("{at} deletes file {name}"));
            self.files.remove(&(at, name));
            self.shares.retain(|(owner, what, _), _| *owner != at || *what != What::File(known.file));
        }
        Ok(())
    }

    fn share(&mut self, at: usize, with: usize) -> Checked {
        if !self.friends.contains(&pair(at, with)) {
            return self.fail_to_share(at, with);
        }
        let (what, named) = match self.dice(2) {
            0 => {
                let folder = self.dice(FOLDERS);
                (What::Folder(folder), folder_name(folder))
            }
            _ => match self.some_file(at) {
                Some((name, known)) => (What::File(known.file), path(known.folder, name)),
                None => return Ok(()),
            },
        };
        let until = (self.dice(8) == 0).then(|| HOUR * (1 + self.dice(72) as u32));
        let (id, now) = (self.id(with), self.sim.now());
        let shown = String::from_utf8_lossy(&named).into_owned();
        let shared = self.ask(at, move |sync| async move {
            let until = until.map_or(0, |until| sync.unix_now() + until.as_secs());
            sync.share(named, &[id], until).await
        })?;
        match shared {
            Some(Ok(_)) => {
                self.sim.note(format_args!("{at} shares {shown} with {with}, until {until:?}"));
                self.shares.insert((at, what, with), until.map(|until| now + until));
            }
            // A folder that nobody has made yet.
            Some(Err(VaultError::Refused(_))) | None => {}
            Some(Err(why)) => return self.sim.broken(format_args!("{at} cannot share: {why}")),
        }
        Ok(())
    }

    /// Who is no friend is shared with in vain.
    fn fail_to_share(&mut self, at: usize, with: usize) -> Checked {
        let Some((name, known)) = self.some_file(at) else { return Ok(()) };
        let (id, named) = (self.id(with), path(known.folder, name));
        // As long as it has not heard of it, a cell may take somebody for a friend who is none any more.
        let is_sure = self.sync(at).is_some_and(|sync| !sync.is_friend(&id));
        if !is_sure {
            return Ok(());
        }
        let shared = self.ask(at, move |sync| async move { sync.share(named, &[id], 0).await })?;
        match shared {
            Some(Ok(_)) => self.sim.broken(format_args!("{at} shares with {with}, who is no friend")),
            _ => Ok(()),
        }
    }

    fn unshare(&mut self, at: usize) -> Checked {
        let mine: Vec<(usize, What, usize)> =
            self.shares.keys().filter(|(owner, ..)| *owner == at).copied().collect();
        if mine.is_empty() {
            return Ok(());
        }
        let (_, what, with) = mine[self.dice(mine.len() as u64) as usize];
        let named = match what {
            What::Folder(folder) => folder_name(folder),
            // By its id, as where the file is gone.
            What::File(file) => file.to_string().into_bytes(),
        };
        let id = self.id(with);
        let is_over = self.shares[&(at, what, with)].is_some_and(|until| until <= self.sim.now() + HOUR);
        let unshared = self.ask(at, move |sync| async move { sync.unshare(Some(named), &[id]).await })?;
        match unshared {
            Some(Ok((_, told))) => {
                self.sim.note(format_args!("{at} takes {what:?} back from {with}; {:?} know", told.told));
                self.shares.remove(&(at, what, with));
                self.collect()?;
                // What was deleted or moved a moment ago is taken back in the next round.
                let of_share: BTreeSet<FileId> = match what {
                    What::File(file) => BTreeSet::from([file]),
                    What::Folder(_) => {
                        let mine = self.files.iter().filter(|((owner, _), _)| *owner == at);
                        let inside = mine.filter(|(_, known)| known.folder.map(What::Folder) == Some(what));
                        inside.map(|(_, known)| known.file).collect()
                    }
                };
                let has_heard = |name: &str| told.told.iter().any(|known| known == name);
                self.try_in_vain(at, with, |file| of_share.contains(file), has_heard)
            }
            Some(Err(_)) if is_over => Ok(()),
            Some(Err(why)) => self.sim.broken(format_args!("{at} cannot take back: {why}")),
            None => Ok(()),
        }
    }

    fn end_friendship(&mut self, a: usize, b: usize) -> Checked {
        let id = self.id(b);
        if !self.friends.contains(&pair(a, b)) {
            return Ok(());
        }
        if self.ask(a, move |sync| async move { sync.set_friend(&id, false).await })?.is_some() {
            self.sim.note(format_args!("{a} ends the friendship with {b}"));
            self.friends.remove(&pair(a, b));
            self.shares.retain(|(owner, _, with), _| pair(*owner, *with) != pair(a, b));
        }
        Ok(())
    }

    /// Both are here and have heard of all that was before.
    fn make_friends(&mut self, a: usize, b: usize) -> Checked {
        if a == b || !self.sim.may_meet(a, b) || self.friends.contains(&pair(a, b)) {
            return Ok(());
        }
        self.sim.turn()?;
        for (own, other) in [(a, b), (b, a)] {
            let id = self.id(other);
            self.ask(own, move |sync| async move { sync.set_friend(&id, true).await })?;
        }
        self.sim.turn()?;
        let (id_a, id_b) = (self.id(a), self.id(b));
        let is_friend = |at: usize, other: &CellId| self.sync(at).is_some_and(|sync| sync.is_friend(other));
        match (is_friend(a, &id_b), is_friend(b, &id_a)) {
            (true, true) => {
                self.sim.note(format_args!("{a} and {b} are friends"));
                self.friends.insert(pair(a, b));
                Ok(())
            }
            views => self.sim.broken(format_args!("{a} and {b} both want to be friends: {views:?}")),
        }
    }

    fn go_away(&mut self, at: usize) -> Checked {
        if self.off.len() + 2 >= self.sim.len() || !self.off.insert(at) {
            return Ok(());
        }
        if self.dice(3) == 0 {
            let is_power_cut = self.dice(2) == 0;
            self.sim.note(format_args!("{at} stops at once, power cut: {is_power_cut}"));
            self.sim.stop(at, is_power_cut);
            return Ok(());
        }
        self.sim.switch_off(at)
    }

    fn come_back(&mut self, at: usize) -> Checked {
        if self.off.remove(&at) { self.sim.switch_on(at) } else { Ok(()) }
    }

    // ---- The model ----

    /// Who may read what now: reader, owner, file and what is known of it.
    fn allowed(&self) -> Vec<(usize, usize, Known)> {
        let now = self.sim.now();
        let mut allowed = Vec::new();
        for ((owner, _), known) in &self.files {
            for reader in (0..self.sim.len()).filter(|reader| reader != owner) {
                let whats = [Some(What::File(known.file)), known.folder.map(What::Folder)];
                let is_shared = whats.into_iter().flatten().any(|what| {
                    let until = self.shares.get(&(*owner, what, reader));
                    until.is_some_and(|until| until.is_none_or(|until| until > now))
                });
                if is_shared && self.friends.contains(&pair(*owner, reader)) {
                    allowed.push((reader, *owner, known.clone()));
                }
            }
        }
        allowed
    }

    fn note_allowed(&mut self) {
        for (reader, owner, known) in self.allowed() {
            self.may.insert((reader, owner, known.file, known.version));
        }
    }

    /// Each reader keeps what it got; nobody got what he may not have.
    fn collect(&mut self) -> Checked {
        for reader in 0..self.sim.len() {
            let Some(sync) = self.sync(reader) else { continue };
            let rows =
                sync.books().received(u64::MAX, FEED_MAX).map_err(|why| super::Broken(why.to_string()))?;
            for row in rows {
                if !self.got.insert((reader, row.creator, row.ticket, row.version)) {
                    continue;
                }
                let Some(owner) = (0..self.sim.len()).find(|at| self.id(*at) == row.creator) else {
                    return self.sim.broken(format_args!("{reader} was granted something by a stranger"));
                };
                if !self.may.contains(&(reader, owner, row.file, row.version)) {
                    return self.sim.broken(format_args!(
                        "{reader} was granted version {} of {} by {owner}, and may not read it",
                        row.version,
                        row.file.short()
                    ));
                }
                let (me, by) = (
                    self.sim.machines[reader].master.identity(0, 0),
                    self.sim.machines[owner].master.identity(0, 0),
                );
                let party = Party { id: &by.id(), x25519: by.x_public() };
                match grant::open(&row.grant, &me, party) {
                    Ok(opened) => self.tickets.push(Ticket { owner, reader, opened }),
                    Err(why) => return self.sim.broken(format_args!("{reader} keeps a bad grant: {why}")),
                }
            }
        }
        Ok(())
    }

    // ---- What must hold ----

    /// All are here, and meet; and what they may read is what they read.
    fn meet_and_check(&mut self) -> Checked {
        self.sim.apart.clear();
        for at in std::mem::take(&mut self.off) {
            self.sim.switch_on(at)?;
        }
        // Nothing ends while it is looked at.
        while let Some(until) = self.ends_soon() {
            let now = self.sim.now();
            self.sim.pass(until + HOUR - now)?;
            self.note_allowed();
        }
        self.sim.turns(4)?;
        self.note_allowed();
        self.collect()?;
        self.check_feeds()?;
        self.check_reading()?;
        self.check_taken_back()?;
        self.check_keys()?;
        self.check_without_sharer()
    }

    fn ends_soon(&self) -> Option<Duration> {
        let now = self.sim.now();
        self.shares.values().flatten().copied().find(|until| *until + HOUR / 2 > now && *until < now + HOUR)
    }

    /// In the Feeds is what the model allows, in the newest version, and nothing else.
    fn check_feeds(&mut self) -> Checked {
        let allowed = self.allowed();
        for reader in 0..self.sim.len() {
            let Some(sync) = self.sync(reader) else { continue };
            let rows =
                sync.books().received(u64::MAX, FEED_MAX).map_err(|why| super::Broken(why.to_string()))?;
            let seen: BTreeSet<(CellId, FileId, u64)> =
                rows.iter().map(|row| (row.creator, row.file, row.version)).collect();
            let of_reader = allowed.iter().filter(|(who, ..)| *who == reader);
            let wanted: BTreeSet<(CellId, FileId, u64)> =
                of_reader.map(|(_, owner, known)| (self.id(*owner), known.file, known.version)).collect();
            if seen != wanted {
                let show = |some: Vec<&(CellId, FileId, u64)>| -> Vec<String> {
                    some.iter()
                        .map(|(by, file, v)| format!("{} of {} v{v}", file.short(), by.short()))
                        .collect()
                };
                let (lacks, over) =
                    (show(wanted.difference(&seen).collect()), show(seen.difference(&wanted).collect()));
                return self
                    .sim
                    .broken(format_args!("the Feed of {reader} lacks {lacks:?} and has {over:?} too much"));
            }
        }
        Ok(())
    }

    fn read(&mut self, reader: usize, owner: usize, known: &Known) -> Checked<Result<[u8; 32], String>> {
        let (creator, file) = (self.id(owner), known.file.to_string());
        let got = self.ask(reader, move |sync| async move {
            let (entry, opened) = sync.find_granted(&file).await.map_err(|why| why.to_string())?;
            if entry.row.creator != creator {
                return Err("another's file has this id".to_owned());
            }
            let (sender, receiver) = smol::channel::unbounded();
            let size = opened.manifest.size;
            sync.read_granted(opened, 0, size, &sender).await.map_err(|why| why.to_string())?;
            drop(sender);
            let mut bytes = Vec::new();
            while let Ok(some) = receiver.try_recv() {
                bytes.extend(some.map_err(|why| why.to_string())?);
            }
            Ok(sha256(&bytes))
        })?;
        Ok(got.unwrap_or_else(|| Err("it is off".into())))
    }

    fn check_reading(&mut self) -> Checked {
        for (reader, owner, known) in self.allowed() {
            let read = self.read(reader, owner, &known)?;
            if read != Ok(known.content) {
                let read = read.map(|_| "other bytes");
                return self.sim.broken(format_args!(
                    "{reader} may read version {} of {} of {owner}: {read:?}",
                    known.version,
                    known.file.short()
                ));
            }
        }
        Ok(())
    }

    /// With one sharer off, what it shares is read from others.
    fn check_without_sharer(&mut self) -> Checked {
        let allowed = self.allowed();
        if allowed.is_empty() {
            return Ok(());
        }
        let (_, off, _) = allowed[self.dice(allowed.len() as u64) as usize].clone();
        self.sim.switch_off(off)?;
        for (reader, owner, known) in allowed.into_iter().filter(|(_, owner, _)| *owner == off) {
            let read = self.read(reader, owner, &known)?;
            if read != Ok(known.content) {
                let read = read.map(|_| "other bytes");
                return self.sim.broken(format_args!(
                    "{owner} is off, and {reader} cannot read version {} of {}: {read:?}",
                    known.version,
                    known.file.short()
                ));
            }
        }
        self.sim.switch_on(off)
    }

    /// Everybody who has heard of it refuses what was taken back, from the reader and from whoever shows another's ticket.
    fn check_taken_back(&mut self) -> Checked {
        for owner in 0..self.sim.len() {
            for reader in (0..self.sim.len()).filter(|reader| *reader != owner) {
                self.try_in_vain(owner, reader, |_| true, |_| true)?;
            }
        }
        let Some(ticket) = self.tickets.last() else { return Ok(()) };
        let (reader, owner) = (ticket.reader, ticket.owner);
        let thief = (0..self.sim.len()).find(|at| *at != reader && *at != owner);
        let Some(thief) = thief else { return Ok(()) };
        let at = self.tickets.len() - 1;
        for holder in (0..self.sim.len()).filter(|holder| *holder != thief) {
            if !self.is_refused(at, thief, holder)? {
                return self
                    .sim
                    .broken(format_args!("{holder} serves {thief}, who shows the ticket of {reader}"));
            }
        }
        Ok(())
    }

    /// Shows all tickets for what `reader` may not read of `owner` any more to those who should have heard of it.
    fn try_in_vain(
        &mut self,
        owner: usize,
        reader: usize,
        concerns: impl Fn(&FileId) -> bool,
        has_heard: impl Fn(&str) -> bool,
    ) -> Checked {
        let may: BTreeSet<FileId> = self
            .allowed()
            .into_iter()
            .filter(|(who, by, _)| *who == reader && *by == owner)
            .map(|(.., known)| known.file)
            .collect();
        for at in 0..self.tickets.len() {
            let ticket = &self.tickets[at];
            let is_over = ticket.owner == owner
                && ticket.reader == reader
                && concerns(&ticket.opened.private.file)
                && !may.contains(&ticket.opened.private.file);
            if !is_over {
                continue;
            }
            for holder in (0..self.sim.len()).filter(|holder| *holder != reader) {
                // The owner knows what it has taken back, whoever else does.
                let knows = holder == owner || has_heard(&self.sim.machines[holder].name);
                if knows && self.sim.is_on(holder) && !self.is_refused(at, reader, holder)? {
                    return self.sim.broken(format_args!(
                        "{holder} serves {reader} what {owner} has taken back: version {} of {}",
                        self.tickets[at].opened.private.version,
                        self.tickets[at].opened.private.file.short()
                    ));
                }
            }
        }
        Ok(())
    }

    /// Whether a holder refuses a ticket that `caller` shows, without being a peer of it.
    fn is_refused(&mut self, ticket: usize, caller: usize, holder: usize) -> Checked<bool> {
        let opened = &self.tickets[ticket].opened;
        let entries = &opened.manifest.entries;
        let chunks: Vec<_> = entries
            .iter()
            .enumerate()
            .filter_map(|(at, entry)| {
                let name = entry.chunk()?;
                let len = crate::seal::padded_len(entry.len() as usize) + crate::seal::TAG_BYTES;
                let proof = grant::prove(entries, &opened.lists, grant::Place::Entry(at))?;
                Some((name, len as u32, proof))
            })
            .collect();
        let bytes = opened.ticket.as_bytes().to_vec();
        let Some(sync) = self.sync(holder) else { return Ok(true) };
        let (ours, theirs, wire) = session::pair(&Limits::default());
        sync.bear_in_memory(self.id(caller), theirs);
        let (session, driver) = ours;
        self.sim.spawn(holder, async move {
            driver.await;
        });
        let answer = self.ask(holder, move |_| async move {
            match message::get_by_ticket(&session, bytes, chunks).await {
                Ok(_) => None,
                Err(AskError::Refused(why)) => Some(why.code),
                Err(_) => Some(ErrorCode::Failed),
            }
        })?;
        wire.cut();
        self.sim.settle()?;
        match answer.flatten() {
            Some(ErrorCode::NotAllowed) => Ok(true),
            None => Ok(false),
            Some(other) => self.sim.broken(format_args!("{holder} has no word for a ticket: {other:?}")),
        }
    }

    /// No key that a reader got opens a version that it may not read.
    fn check_keys(&mut self) -> Checked {
        for at in 0..self.tickets.len() {
            let ticket = &self.tickets[at];
            let (reader, owner, file) = (ticket.reader, ticket.owner, ticket.opened.private.file);
            let Some(known) = self
                .files
                .iter()
                .find(|((by, _), known)| *by == owner && known.file == file)
                .map(|(_, k)| k.clone())
            else {
                continue;
            };
            // A file is taken back when it has been moved out of a shared folder: that version was signed by then.
            let is_unaware = self.unaware.contains(&(file, known.version));
            if is_unaware || self.may.contains(&(reader, owner, file, known.version)) {
                continue;
            }
            let key = FileKey(ticket.opened.private.file_key.clone());
            let Some(vault) = self.sim.vault(owner) else { continue };
            let opens = vault.db.read(|t| -> Result<bool, VaultError> {
                let Some(node) = t.node_of(file)? else { return Ok(false) };
                let Some(body) = t.record_at(node.seq)? else { return Ok(false) };
                Ok(Parsed::read(&body)?.open_shared(&key).is_ok())
            });
            if opens.is_ok_and(|opens| opens) {
                return self.sim.broken(format_args!(
                    "a key that {reader} had opens version {} of {} of {owner}, which it may not read",
                    known.version,
                    file.short()
                ));
            }
        }
        Ok(())
    }
}

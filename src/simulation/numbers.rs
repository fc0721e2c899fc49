//! Folders with numbers of copies of their own: whatever is set, written, moved and deleted, each chunk comes to have the
//! highest number of all files that it is part of, no more and no less. What that is, the rule reckons by itself.

use std::collections::{BTreeMap, BTreeSet};

use super::story::Outcome;
use super::{Checked, HOUR, Sim, files, rules};
use crate::copies;
use crate::id::ChunkName;
use crate::placement::NodeId;
use crate::vault::{Vault, VaultError};

/// Contents that files are made of: few, so that files share them.
const CONTENTS: u64 = 9;
const FOLDERS: usize = 5;
/// Half hours after which all must be as it should.
const PATIENCE: usize = 4;

struct FileNow {
    folder: Option<usize>,
    is_deleted: bool,
    /// Of all its versions.
    chunks: BTreeSet<ChunkName>,
}

#[derive(Default)]
struct Reckoning {
    files: Vec<FileNow>,
    /// The folder that each is in; `None`: GroveHome.
    above: [Option<usize>; FOLDERS],
    numbers: [Option<u8>; FOLDERS],
}

impl Reckoning {
    fn wanted_in(&self, folder: Option<usize>, usual: u64) -> u64 {
        let mut at = folder;
        while let Some(folder) = at {
            if let Some(number) = self.numbers[folder] {
                return number.into();
            }
            at = self.above[folder];
        }
        usual
    }

    fn wanted(&self, usual: u64) -> BTreeMap<ChunkName, u64> {
        let mut wanted = BTreeMap::new();
        for file in &self.files {
            let number = self.wanted_in(file.folder, usual);
            for chunk in &file.chunks {
                let most = wanted.entry(*chunk).or_insert(0);
                *most = number.max(*most);
            }
        }
        wanted
    }

    fn is_within(&self, folder: usize, inside: usize) -> bool {
        let mut at = Some(folder);
        while let Some(folder) = at {
            if folder == inside {
                return true;
            }
            at = self.above[folder];
        }
        false
    }
}

fn folder_name(folder: usize) -> Vec<u8> {
    format!("folder {folder}").into_bytes()
}

fn file_name(file: usize) -> Vec<u8> {
    format!("file {file}").into_bytes()
}

/// The node of a folder, found by the names of those that it is in.
fn node_of(vault: &Vault, way: &[usize]) -> Result<NodeId, VaultError> {
    way.iter().try_fold(NodeId::ROOT, |above, folder| files::folder_in(vault, above, &folder_name(*folder)))
}

/// Everybody is everybody's peer; one cell's folders have numbers.
pub fn numbers(seed: u64) -> Outcome {
    let mut dice = crate::world::Dice::new(seed, "numbers");
    let cells = 3 + dice.below(3) as usize;
    let usual = 1 + dice.below(3);
    let rule = |sim: &mut Sim| -> Checked {
        let mut now = Reckoning::default();
        now.above[3] = Some(0);
        now.above[4] = Some(3);
        for _ in 0..12 {
            for _ in 0..1 + sim.dice.below(4) {
                act(sim, &mut now)?;
            }
            if sim.dice.percent(15) {
                // What was asked for is done after a crash, too, and after a loss of power: `ask` has published it.
                let is_power_cut = sim.dice.percent(50);
                sim.stop(0, is_power_cut);
                sim.pass(HOUR / 4)?;
                sim.switch_on(0)?;
            }
            if sim.dice.percent(20) {
                sim.tidy(0)?;
            }
            // A peer that is not heard of yet after a start takes its time.
            let mut wrong = None;
            for _ in 0..PATIENCE {
                sim.turns(6)?;
                wrong = wrong_chunk(sim, &now, usual, cells);
                if wrong.is_none() {
                    break;
                }
            }
            if let Some(wrong) = wrong {
                return sim.broken(format_args!("{wrong}"));
            }
        }
        Ok(())
    };
    rules::run(seed, cells, |_, config| config.copies = usual, rule)
}

/// A chunk that is not with as many peers as it should be, in words.
fn wrong_chunk(sim: &Sim, now: &Reckoning, usual: u64, cells: usize) -> Option<String> {
    // Who finds that this cell counts too little of what it has stored takes nothing more: it may lack a chunk, and nobody else.
    let takes_more = |at: &usize| {
        !sim.vault(*at)
            .is_some_and(|vault| vault.alerts().iter().any(|raised| raised.code == "bounty-dispute"))
    };
    now.wanted(usual).into_iter().find_map(|(name, wanted)| {
        let on_peers = (wanted.saturating_sub(1) as usize).min(cells - 1);
        let holders = rules::held_for(sim, 0, name);
        let held = holders.len();
        let is_short = held < on_peers && (1..cells).any(|at| !holders.contains(&at) && takes_more(&at));
        let known = sim.describe(0, name);
        let want = sim.vault(0).map(|vault| {
            let want = vault.db.read(|t| t.chunk(&name)?.map_or(Ok(None), |row| t.want(row.id)));
            (want.unwrap_or_default(), copies::is_counted(&vault).unwrap_or_default())
        });
        let name = name.short();
        (held > on_peers || is_short).then(|| {
            format!(
                "chunk {name} is with {held} peers, and should be with {on_peers}; it wants {want:?}: {known}"
            )
        })
    })
}

fn way_to(now: &Reckoning, folder: Option<usize>) -> Vec<usize> {
    let (mut way, mut at) = (Vec::new(), folder);
    while let Some(folder) = at {
        way.insert(0, folder);
        at = now.above[folder];
    }
    way
}

fn some_folder(sim: &mut Sim) -> Option<usize> {
    let folder = sim.dice.below(FOLDERS as u64 + 1) as usize;
    (folder < FOLDERS).then_some(folder)
}

fn some_file(sim: &mut Sim, now: &Reckoning) -> Option<usize> {
    let living: Vec<usize> = (0..now.files.len()).filter(|file| !now.files[*file].is_deleted).collect();
    if living.is_empty() { None } else { Some(living[sim.dice.below(living.len() as u64) as usize]) }
}

fn act(sim: &mut Sim, now: &mut Reckoning) -> Checked {
    match sim.dice.below(10) {
        0..4 => write(sim, now),
        4..7 => {
            let folder = sim.dice.below(FOLDERS as u64) as usize;
            let number = sim.dice.below(5) as u8;
            let number = (number > 0).then_some(number);
            let way = way_to(now, Some(folder));
            let set = sim.ask(0, move |vault| {
                let id = node_of(vault, &way)?;
                let node = vault.db.read(|t| t.node(id))?.expect("it was just looked up");
                copies::set(vault, &node, number)
            })?;
            if set.is_some() {
                sim.note(format_args!("folder {folder} wants {number:?}"));
                now.numbers[folder] = number;
            }
            Ok(())
        }
        7 => {
            let Some(file) = some_file(sim, now) else { return Ok(()) };
            let to = some_folder(sim);
            let (from_way, to_way) = (way_to(now, now.files[file].folder), way_to(now, to));
            if from_way == to_way {
                return Ok(());
            }
            let moved = sim.ask(0, move |vault| {
                let (from, to) = (node_of(vault, &from_way)?, node_of(vault, &to_way)?);
                files::move_to(vault, from, to, &file_name(file))
            })?;
            if let Some(Some(_)) = moved {
                sim.note(format_args!("file {file} moves to {to:?}"));
                now.files[file].folder = to;
            }
            Ok(())
        }
        8 => move_folder(sim, now),
        _ => {
            let Some(file) = some_file(sim, now) else { return Ok(()) };
            let way = way_to(now, now.files[file].folder);
            let gone = sim.ask(0, move |vault| {
                let folder = node_of(vault, &way)?;
                files::delete_in(vault, folder, &file_name(file))
            })?;
            if gone == Some(true) {
                sim.note(format_args!("file {file} is deleted"));
                now.files[file].is_deleted = true;
            }
            Ok(())
        }
    }
}

fn write(sim: &mut Sim, now: &mut Reckoning) -> Checked {
    let known = if sim.dice.percent(30) { some_file(sim, now) } else { None };
    let file = known.unwrap_or(now.files.len());
    let folder = known.map_or_else(|| some_folder(sim), |file| now.files[file].folder);
    let contents = (0..1 + sim.dice.below(3)).map(|_| vec![sim.dice.below(CONTENTS) as u8; 200]);
    let (plains, way) = (contents.collect::<Vec<_>>(), way_to(now, folder));
    let kept = sim.ask(0, move |vault| {
        let folder = node_of(vault, &way)?;
        files::keep_in(vault, folder, &file_name(file), &plains)
    })?;
    if let Some(kept) = kept {
        sim.files_made += 1;
        sim.note(format_args!("file {file} in {folder:?}, version {}", kept.version));
        if known.is_none() {
            now.files.push(FileNow { folder, is_deleted: false, chunks: BTreeSet::new() });
        }
        now.files[file].chunks.extend(kept.chunks);
    }
    Ok(())
}

fn move_folder(sim: &mut Sim, now: &mut Reckoning) -> Checked {
    let (folder, to) = (sim.dice.below(FOLDERS as u64) as usize, some_folder(sim));
    let is_inside = to.is_some_and(|to| now.is_within(to, folder));
    if is_inside || to == now.above[folder] {
        return Ok(());
    }
    let (way, from_way, to_way) =
        (way_to(now, Some(folder)), way_to(now, now.above[folder]), way_to(now, to));
    let moved = sim.ask(0, move |vault| {
        node_of(vault, &way)?;
        let (from, to) = (node_of(vault, &from_way)?, node_of(vault, &to_way)?);
        files::move_to(vault, from, to, &folder_name(folder))
    })?;
    if let Some(Some(_)) = moved {
        sim.note(format_args!("folder {folder} moves to {to:?}"));
        now.above[folder] = to;
    }
    Ok(())
}

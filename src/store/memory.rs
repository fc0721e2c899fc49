//! The store in memory, for simulations and tests: the same promises, and faults on demand.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{
    Body, ChunkStore, FreeSpace, Held, PACK_BATCH_MIN, PackId, PackInfo, Place, Rewritten, See, Staged,
    StoreError, gather, pack,
};
use crate::id::ChunkName;
use crate::keys::{random, sha256};
use crate::world::Fuse;

/// Sealed chunks in memory.
#[derive(Debug)]
pub struct MemoryStore {
    state: Mutex<State>,
    fuse: Arc<Fuse>,
}

#[derive(Debug, Clone)]
struct State {
    capacity: u64,
    loose: BTreeMap<ChunkName, Vec<u8>>,
    packs: BTreeMap<PackId, Pack>,
    open: Option<PackId>,
    quarantine: BTreeMap<ChunkName, Vec<u8>>,
    /// Loose chunks removed since the last commit: a power cut brings them back.
    removed: Vec<(ChunkName, Vec<u8>)>,
    /// Chunks of a commit that has not ended: a power cut takes them.
    committing: Vec<(ChunkName, Place)>,
    power_cuts: u64,
}

#[derive(Debug, Clone)]
struct Pack {
    bytes: u64,
    /// By the offset of the first sealed byte.
    chunks: BTreeMap<u64, (ChunkName, Vec<u8>)>,
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryStore {
    /// An empty store without a limit.
    pub fn new() -> Self {
        Self::with_fuse(Arc::default())
    }

    /// An empty store whose changes count on `fuse`.
    pub fn with_fuse(fuse: Arc<Fuse>) -> Self {
        let state = State {
            capacity: u64::MAX,
            loose: BTreeMap::new(),
            packs: BTreeMap::new(),
            open: None,
            quarantine: BTreeMap::new(),
            removed: Vec::new(),
            committing: Vec::new(),
            power_cuts: 0,
        };
        Self { state: Mutex::new(state), fuse }
    }

    /// What is there now, as a copy of its own whose changes count on `fuse`.
    pub fn copied(&self, fuse: Arc<Fuse>) -> Self {
        Self { state: Mutex::new(self.state().clone()), fuse }
    }

    /// The bytes of a chunk, sound or not.
    pub fn bytes_of(&self, name: ChunkName) -> Option<Vec<u8>> {
        let state = self.state();
        let packed = state.packs.values().flat_map(|pack| pack.chunks.values());
        let packed = packed.filter(|(found, _)| *found == name).map(|(_, bytes)| bytes).next();
        state.loose.get(&name).or(packed).cloned()
    }

    /// Bytes that are taken.
    pub fn used(&self) -> u64 {
        self.state().used()
    }

    /// Names of all that is there, sound or not, sorted.
    pub fn names(&self) -> Vec<ChunkName> {
        let state = self.state();
        let packed = state.packs.values().flat_map(|pack| pack.chunks.values()).map(|(name, _)| *name);
        let mut names: Vec<ChunkName> = state.loose.keys().copied().chain(packed).collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// Whether sound bytes of a chunk are there.
    pub fn has_sound(&self, name: ChunkName) -> bool {
        let state = self.state();
        let packed = state.packs.values().flat_map(|pack| pack.chunks.values());
        let packed = packed.filter(|(found, _)| *found == name).map(|(_, bytes)| bytes);
        packed.chain(state.loose.get(&name)).any(|bytes| sha256(bytes) == name.0)
    }

    /// Cuts every copy of a chunk to half; false if there is none.
    pub fn truncate(&self, name: ChunkName) -> bool {
        self.damage(name, |bytes| bytes.truncate(bytes.len() / 2))
    }

    /// A chunk is no longer there, though nobody was told; false if it was not.
    pub fn lose(&self, name: ChunkName) -> bool {
        let state = &mut *self.state();
        let before = state.packs.values().map(|pack| pack.chunks.len()).sum::<usize>() + state.loose.len();
        state.loose.remove(&name);
        state.packs.values_mut().for_each(|pack| pack.chunks.retain(|_, (found, _)| *found != name));
        before > state.packs.values().map(|pack| pack.chunks.len()).sum::<usize>() + state.loose.len()
    }

    /// From now on the store is full when it holds so many bytes.
    pub fn set_capacity(&self, bytes: u64) {
        self.state().capacity = bytes;
    }

    /// The power fails: what was staged can no longer be committed, and removals may be undone.
    pub fn lose_unsynced(&self) {
        let mut state = self.state();
        for (name, place) in std::mem::take(&mut state.committing) {
            match place {
                Place::Loose => drop(state.loose.remove(&name)),
                Place::Pack { pack, offset } => {
                    if let Some(pack) = state.packs.get_mut(&pack) {
                        pack.chunks.remove(&offset);
                    }
                }
            }
        }
        let removed = std::mem::take(&mut state.removed);
        for (name, bytes) in removed {
            state.loose.entry(name).or_insert(bytes);
        }
        state.power_cuts += 1;
    }

    /// Damages every copy of a chunk by one bit; false if there is none.
    pub fn flip_byte(&self, name: ChunkName) -> bool {
        self.damage(name, |bytes| bytes.first_mut().into_iter().for_each(|byte| *byte ^= 1))
    }

    fn damage(&self, name: ChunkName, work: impl Fn(&mut Vec<u8>)) -> bool {
        let state = &mut *self.state();
        let packed = state.packs.values_mut().flat_map(|pack| pack.chunks.values_mut());
        let packed = packed.filter(|(found, _)| *found == name).map(|(_, bytes)| bytes);
        packed.chain(state.loose.get_mut(&name)).map(work).count() > 0
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn used(&self) -> u64 {
        let loose: u64 = self.loose.values().map(|bytes| bytes.len() as u64).sum();
        loose + self.packs.values().map(|pack| pack.bytes).sum::<u64>()
    }

    fn spend(&self, needed: u64) -> Result<(), StoreError> {
        if self.capacity == u64::MAX {
            return Ok(());
        }
        let free = self.capacity.saturating_sub(self.used());
        if needed <= free {
            return Ok(());
        }
        Err(StoreError::Full { path: "memory".into(), free, needed, reserve: 0 })
    }

    fn find(&self, name: ChunkName, place: Place) -> Option<&Vec<u8>> {
        match place {
            Place::Loose => self.loose.get(&name),
            Place::Pack { pack, offset } => {
                self.packs.get(&pack)?.chunks.get(&offset).map(|(_, bytes)| bytes)
            }
        }
    }

    fn append(&mut self, name: ChunkName, sealed: Vec<u8>) -> Place {
        let needed = pack::ENTRY_HEAD_BYTES + sealed.len() as u64;
        let room = |pack: &Pack| pack.bytes + needed <= pack::PACK_BYTES_MAX;
        let open = self.open.filter(|id| self.packs.get(id).is_some_and(room));
        let id = open.unwrap_or_else(|| PackId(u64::from_le_bytes(random()) >> 1));
        self.open = Some(id);
        let empty = Pack { bytes: pack::HEAD_BYTES, chunks: BTreeMap::new() };
        let pack = self.packs.entry(id).or_insert(empty);
        let offset = pack.bytes + pack::ENTRY_HEAD_BYTES;
        pack.bytes += needed;
        pack.chunks.insert(offset, (name, sealed));
        Place::Pack { pack: id, offset }
    }
}

impl ChunkStore for MemoryStore {
    fn stage(&self, name: ChunkName, sealed: &[u8]) -> Result<Staged, StoreError> {
        let len = u32::try_from(sealed.len()).expect("a chunk has a few MiB");
        let state = self.state();
        state.spend(u64::from(len))?;
        Ok(Staged { name, len, body: Body::Memory(sealed.to_vec()), epoch: state.power_cuts })
    }

    fn stage_urgent(&self, name: ChunkName, sealed: &[u8]) -> Result<Staged, StoreError> {
        self.stage(name, sealed)
    }

    fn commit(&self, staged: Vec<Staged>) -> Result<Vec<Place>, StoreError> {
        let mut state = self.state();
        if staged.iter().any(|staged| staged.epoch != state.power_cuts) {
            let lost = io::Error::other("the power failed");
            return Err(StoreError::io("writing to", Path::new("memory"), lost));
        }
        state.spend(staged.iter().map(|staged| u64::from(staged.len)).sum())?;
        let is_bulk = staged.iter().filter(|staged| staged.is_small()).count() >= PACK_BATCH_MIN;
        let mut packed: HashMap<ChunkName, Place> = HashMap::new();
        let mut places = Vec::with_capacity(staged.len());
        for staged in staged {
            let (name, goes_in_pack) = (staged.name, is_bulk && staged.is_small());
            let Body::Memory(bytes) = staged.body else {
                panic!("a chunk is committed to the store that staged it");
            };
            self.fuse.step();
            places.push(if goes_in_pack {
                match packed.get(&name) {
                    Some(place) => *place,
                    None => {
                        let place = state.append(name, bytes);
                        state.committing.push((name, place));
                        packed.insert(name, place);
                        place
                    }
                }
            } else {
                if state.loose.insert(name, bytes).is_none() {
                    state.committing.push((name, Place::Loose));
                }
                Place::Loose
            });
        }
        self.fuse.step();
        state.removed.clear();
        state.committing.clear();
        Ok(places)
    }

    fn read(&self, name: ChunkName, place: Place, len: u32) -> Result<Vec<u8>, StoreError> {
        let state = self.state();
        let path = self.path_of(name, place);
        match state.find(name, place) {
            None => Err(StoreError::Missing { name, path }),
            Some(bytes) if bytes.len() != len as usize => {
                let found = bytes.len() as u64;
                Err(StoreError::WrongLength { name, path, expected: u64::from(len), found })
            }
            Some(bytes) => Ok(bytes.clone()),
        }
    }

    fn contains(&self, name: ChunkName, place: Place, len: u32) -> bool {
        let state = self.state();
        let is_named = match place {
            Place::Loose => true,
            Place::Pack { pack, offset } => {
                let found = state.packs.get(&pack).and_then(|pack| pack.chunks.get(&offset));
                found.is_some_and(|(found, _)| *found == name)
            }
        };
        is_named && state.find(name, place).is_some_and(|bytes| bytes.len() == len as usize)
    }

    fn remove(&self, name: ChunkName, place: Place) -> Result<(), StoreError> {
        self.fuse.step();
        let mut state = self.state();
        if place == Place::Loose {
            let removed = state.loose.remove(&name);
            state.removed.extend(removed.map(|bytes| (name, bytes)));
        }
        Ok(())
    }

    fn quarantine(&self, name: ChunkName, place: Place, len: u32) -> Result<(), StoreError> {
        self.fuse.step();
        let mut state = self.state();
        let Some(bytes) = state.find(name, place).cloned() else { return Ok(()) };
        if bytes.len() == len as usize && sha256(&bytes) == name.0 {
            return Ok(());
        }
        if place == Place::Loose {
            state.loose.remove(&name);
        }
        state.quarantine.insert(name, bytes);
        Ok(())
    }

    fn scan(&self, see: &mut See<'_>) -> Result<(), StoreError> {
        // `see` may ask the store something.
        let loose: Vec<Held> = {
            let state = self.state();
            let held = |(name, bytes): (&ChunkName, &Vec<u8>)| Held {
                name: *name,
                place: Place::Loose,
                len: bytes.len() as u32,
            };
            state.loose.iter().map(held).collect()
        };
        loose.into_iter().try_for_each(&mut *see)?;
        let packs: Vec<PackId> = self.state().packs.keys().copied().collect();
        packs.into_iter().try_for_each(|pack| self.scan_pack(pack, see))
    }

    fn scan_pack(&self, pack: PackId, see: &mut See<'_>) -> Result<(), StoreError> {
        let held: Vec<Held> = {
            let state = self.state();
            let Some(found) = state.packs.get(&pack) else {
                let missing = io::Error::from(io::ErrorKind::NotFound);
                return Err(StoreError::io("opening", Path::new("memory"), missing));
            };
            let held = |(offset, (name, bytes)): (&u64, &(ChunkName, Vec<u8>))| Held {
                name: *name,
                place: Place::Pack { pack, offset: *offset },
                len: bytes.len() as u32,
            };
            found.chunks.iter().map(held).collect()
        };
        held.into_iter().try_for_each(see)
    }

    fn packs(&self) -> Result<Vec<PackInfo>, StoreError> {
        let state = self.state();
        let info = |(id, pack): (&PackId, &Pack)| PackInfo {
            id: *id,
            bytes: pack.bytes,
            is_open: state.open == Some(*id),
        };
        Ok(state.packs.iter().map(info).collect())
    }

    fn retire_pack(&self, pack: PackId) -> Result<(), StoreError> {
        let mut state = self.state();
        state.open = state.open.filter(|open| *open != pack);
        Ok(())
    }

    fn rewrite(&self, live: &mut dyn Iterator<Item = Held>) -> Result<Rewritten, StoreError> {
        let refuse_open = |pack| match self.state().open {
            Some(open) if open == pack => Err(StoreError::PackOpen { pack, path: "memory".into() }),
            _ => Ok(()),
        };
        let mut done = Rewritten::default();
        let copies = gather(self, live, &mut done, &refuse_open)?;
        self.fuse.step();
        let mut state = self.state();
        state.spend(copies.iter().map(|(held, _)| u64::from(held.len)).sum())?;
        let moved = |(held, sealed): (Held, _)| held.moved_to(state.append(held.name, sealed));
        done.moved = copies.into_iter().map(moved).collect();
        Ok(done)
    }

    fn remove_pack(&self, pack: PackId) -> Result<(), StoreError> {
        self.fuse.step();
        let mut state = self.state();
        if state.open == Some(pack) {
            return Err(StoreError::PackOpen { pack, path: "memory".into() });
        }
        state.packs.remove(&pack);
        Ok(())
    }

    fn free(&self) -> Result<FreeSpace, StoreError> {
        let state = self.state();
        let free = state.capacity.saturating_sub(state.used());
        Ok(FreeSpace { total: state.capacity, free, reserve: 0 })
    }

    fn path_of(&self, name: ChunkName, place: Place) -> PathBuf {
        match place {
            Place::Loose => format!("memory/{name}").into(),
            Place::Pack { pack, .. } => format!("memory/{}", pack::file_name(pack)).into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::promises::{chunk, keep, keeps_its_promises, small_chunks};
    use super::*;

    #[test]
    fn memory_keeps_the_promises_of_a_store() {
        keeps_its_promises(&MemoryStore::new());
    }

    #[test]
    fn flipped_byte_is_corrupt() {
        let store = MemoryStore::new();
        let loose = keep(&store, &[chunk(1, 100)]).unwrap();
        let packed = keep(&store, &small_chunks(2, 40)).unwrap();
        for held in [loose[0], packed[7]] {
            assert!(store.flip_byte(held.name));
            assert!(matches!(store.get(held.name, held.place, held.len), Err(StoreError::Corrupt { .. })));
        }
        assert!(!store.flip_byte(ChunkName([0; 32])));
    }

    #[test]
    fn power_cut_loses_what_was_staged_and_keeps_what_was_committed() {
        let store = MemoryStore::new();
        let held = keep(&store, &[chunk(1, 100), chunk(2, 100)]).unwrap();
        let (name, bytes) = chunk(3, 100);
        let staged = store.stage(name, &bytes).unwrap();
        store.remove(held[0].name, held[0].place).unwrap();
        store.lose_unsynced();
        assert!(store.commit(vec![staged]).is_err());
        assert!(!store.contains(name, Place::Loose, 100));
        for held in held {
            store.get(held.name, held.place, held.len).unwrap();
        }
    }

    #[test]
    fn full_store_refuses_and_takes_again_after_a_removal() {
        let store = MemoryStore::new();
        store.set_capacity(250);
        let held = keep(&store, &[chunk(1, 100), chunk(2, 100)]).unwrap();
        let error = keep(&store, &[chunk(3, 100)]).unwrap_err();
        assert!(matches!(error, StoreError::Full { free: 50, needed: 100, .. }) && error.is_temporary());
        store.remove(held[0].name, held[0].place).unwrap();
        keep(&store, &[chunk(3, 100)]).unwrap();
    }
}

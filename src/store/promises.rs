//! What every store promises, as one suite for all of them.

use std::collections::BTreeMap;

use super::{ChunkStore, Held, PACK_BATCH_MIN, PackId, Place, SMALL_BYTES, StoreError};
use crate::id::ChunkName;
use crate::keys::sha256;

/// A chunk of `len` bytes that differ for each `seed`.
pub(crate) fn chunk(seed: u64, len: usize) -> (ChunkName, Vec<u8>) {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = std::iter::repeat_with(move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    });
    let bytes: Vec<u8> = next.flat_map(u64::to_le_bytes).take(len).collect();
    (ChunkName(sha256(&bytes)), bytes)
}

/// Stages and commits chunks; says where they lie.
pub(crate) fn keep(store: &dyn ChunkStore, chunks: &[(ChunkName, Vec<u8>)]) -> Result<Vec<Held>, StoreError> {
    let staged = chunks.iter().map(|(name, bytes)| store.stage(*name, bytes)).collect::<Result<_, _>>()?;
    let places = store.commit(staged)?;
    assert_eq!(places.len(), chunks.len());
    let held = |((name, bytes), place): (&(ChunkName, Vec<u8>), _)| Held {
        name: *name,
        place,
        len: bytes.len() as u32,
    };
    Ok(chunks.iter().zip(places).map(held).collect())
}

/// `count` small chunks of different lengths, the shortest empty.
pub(crate) fn small_chunks(seed: u64, count: usize) -> Vec<(ChunkName, Vec<u8>)> {
    (0..count).map(|i| chunk(seed + i as u64, if i == 0 { 0 } else { 40 + i * 7 })).collect()
}

/// Everything a scan shows.
pub(crate) fn scanned(store: &dyn ChunkStore) -> Vec<Held> {
    let mut all = Vec::new();
    store
        .scan(&mut |held| {
            all.push(held);
            Ok(())
        })
        .unwrap();
    all
}

fn pack_of(held: &Held) -> PackId {
    match held.place {
        Place::Pack { pack, .. } => pack,
        Place::Loose => panic!("{held:?} is loose"),
    }
}

/// The suite. `store` is empty and has room for some 20 MB.
pub(crate) fn keeps_its_promises(store: &dyn ChunkStore) {
    gives_back_what_was_kept(store);
    packs_only_small_chunks_in_bulk(store);
    tells_losses_apart(store);
    forgets_what_is_removed_or_dropped(store);
    scan_shows_everything_and_stops_when_told(store);
    rewrites_packs(store);
    takes_chunks_from_many_threads(store);
    let free = store.free().unwrap();
    assert!(free.free <= free.total);
}

fn gives_back_what_was_kept(store: &dyn ChunkStore) {
    assert_eq!(store.commit(Vec::new()).unwrap(), []);
    for count in [1, 3, 6] {
        let chunks: Vec<_> = (0..count).map(|i| chunk(1000 + i, 300_000 + i as usize)).collect();
        // Twice: a chunk that is there already is harmless.
        for _ in 0..2 {
            for (held, (name, bytes)) in keep(store, &chunks).unwrap().iter().zip(&chunks) {
                assert_eq!(held.place, Place::Loose);
                assert!(store.contains(*name, held.place, held.len));
                assert!(!store.contains(*name, held.place, held.len + 1));
                assert_eq!(&store.get(*name, held.place, held.len).unwrap(), bytes);
                assert_eq!(&store.read(*name, held.place, held.len).unwrap(), bytes);
            }
        }
    }
}

fn packs_only_small_chunks_in_bulk(store: &dyn ChunkStore) {
    let few = small_chunks(2000, PACK_BATCH_MIN - 1);
    assert!(keep(store, &few).unwrap().iter().all(|held| held.place == Place::Loose));

    let mut many = small_chunks(2100, PACK_BATCH_MIN);
    many.insert(5, chunk(2200, SMALL_BYTES));
    many.push(chunk(2201, SMALL_BYTES - 1));
    many.push(many[3].clone());
    let held = keep(store, &many).unwrap();
    for (held, (name, bytes)) in held.iter().zip(&many) {
        assert_eq!(held.place == Place::Loose, bytes.len() == SMALL_BYTES);
        assert!(store.contains(*name, held.place, held.len));
        assert!(!store.contains(ChunkName([7; 32]), held.place, held.len) || held.place == Place::Loose);
        assert_eq!(&store.get(*name, held.place, held.len).unwrap(), bytes);
    }
    assert_eq!(held.last().unwrap().place, held[3].place, "one batch packs a chunk once");
}

fn tells_losses_apart(store: &dyn ChunkStore) {
    let (name, _) = chunk(3000, 10);
    let nowhere = Place::Pack { pack: PackId(1), offset: 80 };
    for place in [Place::Loose, nowhere] {
        let error = store.get(name, place, 10).unwrap_err();
        assert!(matches!(error, StoreError::Missing { .. }) && error.is_loss() && !error.is_temporary());
        assert!(!store.contains(name, place, 10));
        store.quarantine(name, place, 10).unwrap();
    }
    let held = keep(store, &[chunk(3001, 100)]).unwrap()[0];
    let error = store.read(held.name, held.place, u32::MAX).unwrap_err();
    assert!(matches!(error, StoreError::WrongLength { found: 100, .. }) && error.is_loss());

    // A chunk under a wrong name is found out, and put aside.
    let (_, other) = chunk(3002, 100);
    let held = keep(store, &[(name, other.clone())]).unwrap()[0];
    assert_eq!(store.read(name, held.place, 100).unwrap(), other);
    let error = store.get(name, held.place, 100).unwrap_err();
    assert!(matches!(error, StoreError::Corrupt { .. }) && error.is_loss());
    store.quarantine(name, held.place, 100).unwrap();
    assert!(!store.contains(name, held.place, 100));

    // A sound one is not.
    let held = keep(store, &[chunk(3003, 100)]).unwrap()[0];
    store.quarantine(held.name, held.place, held.len).unwrap();
    assert!(store.contains(held.name, held.place, held.len));
}

fn forgets_what_is_removed_or_dropped(store: &dyn ChunkStore) {
    let held = keep(store, &[chunk(4000, 200_000)]).unwrap()[0];
    for _ in 0..2 {
        store.remove(held.name, held.place).unwrap();
        assert!(!store.contains(held.name, held.place, held.len));
    }
    for len in [10, 200_000] {
        let (name, bytes) = chunk(4001, len);
        drop(store.stage(name, &bytes).unwrap());
        assert!(!store.contains(name, Place::Loose, len as u32));
    }
    let packed = keep(store, &small_chunks(4100, 40)).unwrap();
    store.remove(packed[1].name, packed[1].place).unwrap();
    store.get(packed[1].name, packed[1].place, packed[1].len).unwrap();
}

fn scan_shows_everything_and_stops_when_told(store: &dyn ChunkStore) {
    let mut chunks = small_chunks(5000, 50);
    chunks.push(chunk(5100, 150_000));
    let held = keep(store, &chunks).unwrap();
    let all = scanned(store);
    for held in &held {
        assert_eq!(all.iter().filter(|found| *found == held).count(), 1, "{held:?}");
    }
    let first_packed = all.iter().position(|held| held.place != Place::Loose).unwrap();
    assert!(all[first_packed..].iter().all(|held| held.place != Place::Loose));

    let mut seen = 0;
    let error = store.scan(&mut |_| {
        seen += 1;
        Err(StoreError::Full { path: "here".into(), free: 1, needed: 2, reserve: 3 })
    });
    assert!(matches!(error, Err(StoreError::Full { needed: 2, .. })));
    assert_eq!(seen, 1);
}

fn rewrites_packs(store: &dyn ChunkStore) {
    let packed = keep(store, &small_chunks(6000, 100)).unwrap();
    let old = pack_of(&packed[0]);
    assert!(packed.iter().all(|held| pack_of(held) == old));
    let info = |id| store.packs().unwrap().into_iter().find(|info| info.id == id);
    assert!(info(old).unwrap().is_open);
    assert!(matches!(store.remove_pack(old), Err(StoreError::PackOpen { .. })));
    assert!(matches!(store.rewrite(&mut packed.iter().copied()), Err(StoreError::PackOpen { .. })));

    store.retire_pack(old).unwrap();
    assert!(!info(old).unwrap().is_open);
    let mut shown = Vec::new();
    store
        .scan_pack(old, &mut |held| {
            shown.push(held);
            Ok(())
        })
        .unwrap();
    let from = shown.len() - packed.len();
    assert_eq!(shown[from..], packed);

    // Every second one, one that never was, a cold loose one, and one too long for a pack.
    let mut live: Vec<Held> = packed.iter().copied().step_by(2).collect();
    let missing = Held { name: ChunkName([9; 32]), place: Place::Loose, len: 9 };
    let cold = keep(store, &[chunk(6200, 500), chunk(6201, SMALL_BYTES)]).unwrap();
    live.extend([missing, cold[0], cold[1]]);
    let done = store.rewrite(&mut live.iter().copied()).unwrap();
    assert!(done.is_done);
    assert_eq!(done.damaged, [missing]);
    assert_eq!(done.moved.len(), 51);
    store.remove_pack(old).unwrap();
    store.remove_pack(old).unwrap();
    assert_eq!(info(old), None);
    for moved in &done.moved {
        assert!(matches!(moved.to, Place::Pack { pack, .. } if pack != old));
        store.get(moved.name, moved.to, moved.len).unwrap();
    }
    assert!(matches!(
        store.get(packed[0].name, packed[0].place, packed[0].len),
        Err(StoreError::Missing { .. })
    ));

    // Bounded: more than one call's worth takes more calls, and nothing is left out.
    let chunks: Vec<_> = (0..50).map(|i| chunk(6300 + i, SMALL_BYTES - 1)).collect();
    let held = keep(store, &chunks).unwrap();
    for held in &held {
        store.retire_pack(pack_of(held)).unwrap();
    }
    let mut live = held.iter().copied();
    let (mut calls, mut moved) = (0, Vec::new());
    loop {
        let done = store.rewrite(&mut live).unwrap();
        calls += 1;
        moved.extend(done.moved);
        if done.is_done {
            break;
        }
    }
    assert!(calls >= 2);
    assert_eq!(moved.iter().map(|moved| moved.name).collect::<Vec<_>>(), chunks_names(&chunks));
}

fn chunks_names(chunks: &[(ChunkName, Vec<u8>)]) -> Vec<ChunkName> {
    chunks.iter().map(|(name, _)| *name).collect()
}

fn takes_chunks_from_many_threads(store: &dyn ChunkStore) {
    let all = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|thread| {
                scope.spawn(move || {
                    let mut all = Vec::new();
                    for round in 0..5 {
                        let mut chunks = small_chunks(7000 + thread * 1000 + round * 100, 60);
                        chunks.extend((0..round).map(|i| chunk(20_000 + i, 140_000)));
                        all.extend(keep(store, &chunks).unwrap());
                    }
                    all
                })
            })
            .collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect::<Vec<Held>>()
    });
    let mut places = BTreeMap::new();
    for held in all {
        store.get(held.name, held.place, held.len).unwrap();
        if let Place::Pack { pack, offset } = held.place {
            assert_eq!(places.insert((pack, offset), held.name), None, "two chunks in one place");
        }
    }
}

//! Comparing what a peer holds of mine with what is noted here, by sums over names: once a day, and where the inventory's
//! numbers do not tell (another epoch, an older number). A difference costs its bucket, not the whole inventory.
//!
//! Names are hashes, so a sum over a part of each tells sets apart. It is no proof against a peer that lies: audits are.

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use super::driver::Sync;
use super::link::Link;
use super::round::{RoundError, all_heard, may_release, with_vault};
use crate::id::{CellId, ChunkName};
use crate::order;
use crate::placement::{CellNumber, ChunkId, DbError, Tables};
use crate::publish;
use crate::vault::Vault;
use crate::wire::message::{AskError, DIGEST_SUMS, NAMES_MAX, Reply, Request};

/// Names read at once.
const PAGE: usize = 4096;
/// More buckets that differ are compared by the whole inventory.
const BUCKETS_MAX: usize = 512;
const DAY_S: u64 = 86_400;
/// What a peer holds and is not mine is released when it was found so for this long: another machine with a copy of this
/// cell may have put it there, and its catalog may come. s.
const STRAY_S: u64 = 7 * DAY_S;
/// Such chunks that are remembered of one peer.
const STRAYS_MAX: usize = 4096;

/// Whose chunks, or copies with whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    /// Held here for this owner.
    Held(CellNumber),
    /// Of mine, with this peer.
    Copied(CellNumber),
}

fn page(
    t: &Tables<'_>,
    side: Side,
    prefix: &[u8],
    after: Option<&ChunkName>,
) -> Result<Vec<(ChunkName, u32)>, DbError> {
    match side {
        Side::Held(owner) => t.held_names(owner, prefix, after, PAGE),
        Side::Copied(cell) => t.copied_names(cell, prefix, after, PAGE),
    }
}

fn weight(name: &ChunkName) -> u64 {
    u64::from_le_bytes(name.0[8..16].try_into().expect("8 bytes"))
}

/// Sums over all names, by their first two bytes (big-endian). The database is free in between.
fn all_sums(vault: &Vault, side: Side) -> Result<Vec<u64>, DbError> {
    let mut sums = vec![0u64; DIGEST_SUMS * DIGEST_SUMS];
    let mut after = ChunkId(0);
    loop {
        let names = vault.db.read(|t| match side {
            Side::Held(owner) => t.held_after(owner, after, PAGE),
            Side::Copied(cell) => t.copied_after(cell, after, PAGE),
        })?;
        let Some((last, _)) = names.last() else { return Ok(sums) };
        after = *last;
        for (_, name) in &names {
            let at = usize::from(u16::from_be_bytes([name.0[0], name.0[1]]));
            sums[at] = sums[at].wrapping_add(weight(name));
        }
    }
}

/// Those of `all` by the first byte alone.
fn by_first(all: &[u64]) -> Vec<u64> {
    all.chunks(DIGEST_SUMS).map(|some| some.iter().fold(0u64, |sum, next| sum.wrapping_add(*next))).collect()
}

/// Sums over all names by their first byte, or over those with a first byte by their second.
pub(super) fn sums(vault: &Vault, side: Side, first: Option<u8>) -> Result<Vec<u64>, DbError> {
    let Some(first) = first else { return Ok(by_first(&all_sums(vault, side)?)) };
    let mut sums = vec![0u64; DIGEST_SUMS];
    let mut after: Option<ChunkName> = None;
    loop {
        let names = vault.db.read(|t| page(t, side, &[first], after.as_ref()))?;
        for (name, _) in &names {
            let at = usize::from(name.0[1]);
            sums[at] = sums[at].wrapping_add(weight(name));
        }
        match names.last() {
            Some((last, _)) if names.len() == PAGE => after = Some(*last),
            _ => return Ok(sums),
        }
    }
}

/// All names that begin with the two bytes of `bucket`, at most 4,096.
pub(super) fn bucket(vault: &Vault, side: Side, bucket: u16) -> Result<Vec<(ChunkName, u32)>, DbError> {
    vault.db.read(|t| page(t, side, &bucket.to_be_bytes(), None))
}

fn checked_key(peer: &CellId) -> String {
    format!("checked:{peer}")
}

/// Whether the daily comparison with a peer is due.
pub(super) async fn is_due(vault: &Arc<Vault>, peer: CellId) -> Result<bool, DbError> {
    with_vault(vault, move |vault| {
        let at = vault.db.read(|t| t.meta_u64(&checked_key(&peer)))?;
        Ok(at.is_none_or(|at| vault.now() >= at + DAY_S))
    })
    .await
}

/// What a comparison ended with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Compared {
    /// What is noted here is what the peer holds, as of this number of its inventory; differences were mended.
    Same { epoch: u64, seq: u64 },
    /// There are too many differences to go through: take the whole inventory.
    TooMany,
    /// It changed meanwhile, or the peer does not know this request.
    Unsure,
}

async fn ask_sums(link: &Link, first: Option<u8>) -> Result<Option<(u64, u64, Vec<u64>)>, AskError> {
    match link.ask(&Request::Digest { first }).await {
        Ok(Reply::Digest { epoch, seq, sums }) => Ok(Some((epoch, seq, sums))),
        // A peer of an earlier version, or one that does as it likes: its inventory is taken as before.
        Ok(_) | Err(AskError::Refused(_) | AskError::OutOfTurn) => Ok(None),
        Err(why) => Err(why),
    }
}

/// Compares all, and mends what differs: copies that the peer does not have are dropped, those not noted are noted, and
/// what it holds that is not mine any more it is told to release.
pub(super) async fn compare(sync: &Rc<Sync>, link: &Link) -> Result<Compared, RoundError> {
    let (vault, cell, peer) = (&sync.vault, link.cell, link.peer);
    let side = Side::Copied(cell);
    let Some((epoch, seq, theirs)) = ask_sums(link, None).await? else { return Ok(Compared::Unsure) };
    let all = with_vault(vault, move |vault| all_sums(vault, side)).await?;
    let differing = |ours: &[u64], theirs: &[u64]| -> Vec<u8> {
        (0..=255u8).filter(|at| ours[usize::from(*at)] != theirs[usize::from(*at)]).collect()
    };
    let mut buckets: Vec<u16> = Vec::new();
    for first in differing(&by_first(&all), &theirs) {
        let Some((now_epoch, now_seq, theirs)) = ask_sums(link, Some(first)).await? else {
            return Ok(Compared::Unsure);
        };
        if (now_epoch, now_seq) != (epoch, seq) {
            return Ok(Compared::Unsure);
        }
        let ours = with_vault(vault, move |vault| sums(vault, side, Some(first))).await?;
        buckets
            .extend(differing(&ours, &theirs).into_iter().map(|second| u16::from_be_bytes([first, second])));
        if buckets.len() > BUCKETS_MAX {
            return Ok(Compared::TooMany);
        }
    }
    let mut strays = Vec::new();
    for at in buckets {
        let Reply::Bucket { epoch: now_epoch, seq: now_seq, entries } =
            link.ask(&Request::Bucket { bucket: at }).await?
        else {
            return Err(AskError::OutOfTurn.into());
        };
        if (now_epoch, now_seq) != (epoch, seq) {
            return Ok(Compared::Unsure);
        }
        strays.extend(with_vault(vault, move |vault| mend(vault, cell, at, entries)).await?);
    }
    if may_release(sync).await? {
        let peers: Vec<CellId> = sync.gate.peers().iter().map(|peer| peer.id).collect();
        let old = with_vault(vault, move |vault| old_strays(vault, &peer, &strays, &peers)).await?;
        for names in old.chunks(NAMES_MAX) {
            link.ask(&Request::Release { names: names.to_vec() }).await?;
        }
    }
    with_vault(vault, move |vault| {
        let now = vault.now();
        vault.db.change(|t| t.set_meta_u64(&checked_key(&peer), now))
    })
    .await?;
    Ok(Compared::Same { epoch, seq })
}

/// Makes what is noted of a bucket what the peer holds of it. Gives names that are not mine any more.
fn mend(
    vault: &Vault,
    cell: CellNumber,
    at: u16,
    theirs: Vec<(ChunkName, u32)>,
) -> Result<Vec<ChunkName>, DbError> {
    let ours = bucket(vault, Side::Copied(cell), at)?;
    let mut theirs: HashMap<ChunkName, u32> = theirs.into_iter().collect();
    vault.db.change(|t| {
        for (name, _) in ours {
            if theirs.remove(&name).is_none() {
                if let Some(row) = t.chunk(&name)? {
                    log::info!("chunk {} is not with a peer that should have it", name.short());
                    t.drop_copy(row.id, cell)?;
                }
            }
        }
        // Part of a large file whose list is not back yet cannot be told from what is not mine, nor can what a catalog names that is
        // still being taken in.
        let knows_all = !t.is_any_list_absent()? && !publish::is_unplaced(t)?;
        let mut strays = Vec::new();
        let mut left: Vec<ChunkName> = theirs.into_keys().collect();
        order::sort(&mut left);
        for name in left {
            match t.chunk(&name)? {
                Some(row) if t.own(row.id)? != crate::placement::Own::No => t.put_copy(row.id, cell)?,
                _ if knows_all => strays.push(name),
                _ => {}
            }
        }
        Ok(strays)
    })
}

/// Remembers what is not mine, and gives what was found so long enough ago, and by now of every peer: a disk that is an old copy
/// knows nothing of what came after it until it meets somebody who does.
fn old_strays(
    vault: &Vault,
    peer: &CellId,
    strays: &[ChunkName],
    peers: &[CellId],
) -> Result<Vec<ChunkName>, DbError> {
    let key = format!("strays:{peer}");
    let (now, sure_now) = (vault.now(), vault.expiry_now());
    vault.db.change(|t| {
        let known: HashMap<ChunkName, u64> = t
            .meta(&key)?
            .unwrap_or_default()
            .chunks_exact(40)
            .map(|line| {
                let (name, at) = line.split_at(32);
                let at = u64::from_le_bytes(at.try_into().expect("8 bytes"));
                (ChunkName(name.try_into().expect("32 bytes")), at)
            })
            .collect();
        let (mut old, mut kept) = (Vec::new(), Vec::new());
        for name in strays.iter().take(STRAYS_MAX) {
            let since = known.get(name).copied().unwrap_or(now);
            if now >= since + STRAY_S && all_heard(t, peers, since, sure_now)? {
                old.push(*name);
            } else {
                kept.extend_from_slice(&name.0);
                kept.extend_from_slice(&since.to_le_bytes());
            }
        }
        t.set_meta(&key, &kept)?;
        Ok(old)
    })
}

//! Reading what lies here before it is needed, at low priority, and mending what is found damaged.
//!
//! Chunks of ours are fetched from peers; of those kept for peers the owners learn, and give them again (see `Vault`).

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use smol::Timer;

use super::Cell;
use crate::buffers;
use crate::cycle::Cycle;
use crate::id::ChunkName;
use crate::order;
use crate::placement::{ChunkId, ChunkRow, DbError};
use crate::pool;
use crate::vault::{Vault, VaultError};

/// The walk stands in placement.db under this name.
pub(super) const CYCLE_KEY: &str = "scrub";
/// The first look, after the start.
const FIRST: Duration = Duration::from_secs(60);
/// Between two looks at what is due.
const EVERY: Duration = Duration::from_secs(30);
/// While the cell works for its user.
const WORK_PAUSE: Duration = Duration::from_secs(5);
/// Read in one go, unless one chunk alone is longer. Bytes.
const SLICE_BYTES: u64 = 1 << 20;
/// And so many chunks.
const SLICE_CHUNKS: usize = 256;
/// The walk is saved after so many bytes: what is read again after a power cut.
const SAVE_BYTES: u64 = 256 << 20;
/// What is found damaged is looked after this soon, and again while it waits for a peer.
const MEND_EVERY: Duration = Duration::from_secs(5);
const MEND_AGAIN: Duration = Duration::from_secs(300);
/// Everything that should lie here is looked for this often, beside what is known to be damaged.
const MEND_ALL: Duration = Duration::from_secs(6 * 3600);

/// A walk takes two thirds of the time in which all must be read, and what was read anyway within the last sixth to third
/// is passed over: so nothing is ever longer unread than it may be.
fn walk_s(days: u64) -> u64 {
    days * 86_400 * 2 / 3
}

fn lately_s(days: u64) -> u64 {
    days * 86_400 / 6
}

/// How long to rest after reading so many bytes.
fn rest(bytes: u64, bytes_per_s: u64) -> Duration {
    Duration::from_millis(bytes.saturating_mul(1000) / bytes_per_s.max(1))
}

/// The next chunks to read, and where the walk is after them.
struct Slice {
    rows: Vec<ChunkRow>,
    cycle: Cycle,
}

/// What is due now; `None`: nothing.
fn due(vault: &Vault, saved: Cycle, days: u64) -> Result<Option<Slice>, DbError> {
    let now = vault.now();
    vault.db.read(|t| {
        let highest = t.chunk_id_max()?.0;
        let mut cycle = saved.at(highest, now, walk_s(days));
        let target = cycle.target(highest, now, walk_s(days));
        if cycle.cursor >= target {
            return Ok((cycle != saved).then_some(Slice { rows: Vec::new(), cycle }));
        }
        let page = t.chunks_here(ChunkId(cycle.cursor), ChunkId(target), SLICE_CHUNKS)?;
        let is_end = page.len() < SLICE_CHUNKS;
        let (mut rows, mut bytes) = (Vec::new(), 0);
        for row in page {
            if bytes > 0 && bytes + u64::from(row.len) > SLICE_BYTES {
                return Ok(Some(Slice { rows, cycle }));
            }
            cycle.cursor = row.id.0;
            if !vault.was_read_lately(row.id, lately_s(days)) {
                bytes += u64::from(row.len);
                rows.push(row);
            }
        }
        if is_end {
            cycle.cursor = target;
        }
        Ok(Some(Slice { rows, cycle }))
    })
}

/// Reads a slice; what is damaged is put aside, and whoever it is of learns. Gives the bytes read.
fn read(vault: &Vault, rows: &[ChunkRow]) -> u64 {
    let mut bytes = 0;
    for row in rows {
        bytes += u64::from(row.len);
        match vault.local_chunk(&row.name) {
            Ok(Some(sealed)) => buffers::give(sealed),
            Ok(None) => {}
            // The disk may answer again; the next walk comes by.
            Err(why) => log::warn!("a chunk cannot be read: {why}"),
        }
    }
    bytes
}

fn saved(vault: &Vault) -> Result<Cycle, DbError> {
    Ok(Cycle::from_bytes(&vault.db.read(|t| t.meta(CYCLE_KEY))?.unwrap_or_default()))
}

fn save(vault: &Vault, cycle: Cycle) -> Result<(), DbError> {
    vault.db.change(|t| t.set_meta(CYCLE_KEY, &cycle.to_bytes()))
}

/// Reads all that is due now and says how far it came: for simulations, in which nobody is kept waiting.
pub(crate) fn scrub_now(vault: &Vault) -> Result<(), VaultError> {
    let mut cycle = saved(vault)?;
    while let Some(slice) = due(vault, cycle, vault.config.scrub_days)? {
        read(vault, &slice.rows);
        cycle = slice.cycle;
        save(vault, cycle)?;
    }
    Ok(())
}

/// Reads every chunk once in `scrub.days`.
pub(super) async fn scrub(cell: Rc<Cell>) {
    let days = cell.vault.config.scrub_days;
    if days == 0 {
        return;
    }
    Timer::after(FIRST).await;
    loop {
        if let Err(why) = scrub_due(&cell, days).await {
            log::warn!("chunks are not read for now: {why}");
        }
        Timer::after(EVERY).await;
    }
}

/// Reads what is due now.
async fn scrub_due(cell: &Rc<Cell>, days: u64) -> Result<(), VaultError> {
    let vault = Arc::clone(&cell.vault);
    let mut cycle = pool::unblock(move || saved(&vault)).await?;
    let mut unsaved = 0;
    loop {
        let Some(permit) = idle_permit(cell) else {
            Timer::after(WORK_PAUSE).await;
            continue;
        };
        let vault = Arc::clone(&cell.vault);
        let work = move || -> Result<_, VaultError> {
            let _permit = permit;
            let Some(slice) = due(&vault, cycle, days)? else { return Ok(None) };
            let bytes = read(&vault, &slice.rows);
            let is_saved = unsaved + bytes >= SAVE_BYTES || slice.rows.is_empty();
            if is_saved {
                save(&vault, slice.cycle)?;
            }
            Ok(Some((slice.cycle, bytes, if is_saved { 0 } else { unsaved + bytes })))
        };
        let Some((next, bytes, left)) = pool::unblock(work).await? else {
            if unsaved > 0 {
                let vault = Arc::clone(&cell.vault);
                pool::unblock(move || save(&vault, cycle)).await?;
            }
            return Ok(());
        };
        (cycle, unsaved) = (next, left);
        Timer::after(rest(bytes, cell.vault.config.scrub_bytes_per_s)).await;
    }
}

/// A permit of the cell, if nobody works for its user now: then all of them are there.
fn idle_permit(cell: &Cell) -> Option<smol::lock::SemaphoreGuardArc> {
    let mut permits: Vec<_> = (0..cell.threads).map(|_| cell.permits.try_acquire_arc()).collect();
    permits.pop()?.filter(|_| permits.iter().all(Option::is_some))
}

/// Mends what was found damaged, as soon as it is found and as peers are reached.
pub(super) async fn mend(cell: Rc<Cell>) {
    let clock = Arc::clone(&cell.vault.clock);
    let (mut known, mut tried_at, mut all_at) = (0, Duration::ZERO, clock.steady());
    loop {
        Timer::after(MEND_EVERY).await;
        let (found, now) = (cell.vault.damage_count(), clock.steady());
        let waits = !cell.vault.damaged().is_empty();
        let is_new = found != known && waits;
        let is_again = waits && now >= tried_at + MEND_AGAIN;
        let is_all = now >= all_at + MEND_ALL;
        if is_all {
            all_at = now;
            cell.vault.note_healed(&[], false);
        }
        if !(is_new || is_again || is_all) {
            continue;
        }
        (known, tried_at) = (found, now);
        if let Err(why) = cell.mend_some(is_all).await {
            log::warn!("damaged chunks wait: {why}");
        }
    }
}

impl Cell {
    /// Fetches chunks of ours that were found damaged; all that should lie here and do not, if `all` and no file awaits its
    /// bytes (then they come with it).
    async fn mend_some(&self, all: bool) -> Result<(), VaultError> {
        let mut wanted = self.vault.damaged();
        if all {
            let vault = Arc::clone(&self.vault);
            let awaiting = pool::unblock(move || vault.db.read(|t| t.node_totals())).await?.awaiting;
            if awaiting == 0 {
                wanted.extend(self.absent_chunks().await?);
                order::sort(&mut wanted);
                wanted.dedup();
            }
        }
        self.mend_chunks(wanted).await.map(drop)
    }

    /// Fetches chunks that should lie here; says what is healed, and gives what could not be had.
    pub(super) async fn mend_chunks(&self, wanted: Vec<ChunkName>) -> Result<Vec<ChunkName>, VaultError> {
        if wanted.is_empty() {
            return Ok(wanted);
        }
        let missing = self.fetch(wanted.clone()).await.names;
        let vault = Arc::clone(&self.vault);
        pool::unblock(move || -> Result<(), VaultError> {
            let absent: std::collections::HashSet<ChunkName> =
                vault.absent(wanted.clone())?.into_iter().collect();
            let healed: Vec<ChunkName> = wanted.into_iter().filter(|name| !absent.contains(name)).collect();
            vault.note_healed(&healed, false);
            Ok(())
        })
        .await?;
        Ok(missing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reading_leaves_nothing_unread_for_longer_than_its_days() {
        for days in [1, 2, 30, 365] {
            assert!(walk_s(days) + 2 * lately_s(days) <= days * 86_400);
        }
        assert_eq!(rest(4 << 20, 4 << 20), Duration::from_secs(1));
        assert_eq!(rest(u64::MAX, 0), Duration::from_millis(u64::MAX));
    }
}

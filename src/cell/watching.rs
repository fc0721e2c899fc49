//! Conditions that show only over time, looked at again and again: copies that stay missing, a disk that fills, peers whose
//! owners have not been heard of for a year.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::Cell;
use super::placement::{Page, Sums, Wish, page};
use crate::copies;
use crate::placement::explain::{Fleet, Risk, Stuck};
use crate::placement::planner;
use crate::placement::{ChunkId, DbError, Extra};
use crate::pool;
use crate::vault::{Alert, Marks, Vault, VaultError};

/// The disk and the peers are looked at this often.
const LOOK: Duration = Duration::from_secs(60);
/// Copies that are missing, this often. s.
const COUNT_S: u64 = 300;
/// What is missing for so long is told. s.
const MISSING_S: u64 = 3600;
/// And how many files that are is counted anew after this. s.
const FILES_S: u64 = 3600;
/// An owner is asked about after so long a silence. s.
const OWNER_SILENT_S: u64 = 365 * 86_400;
/// With so much left above its reserve no disk is nearly full, however large it is. Bytes.
const LOW_BYTES_MAX: u64 = 16 << 30;
/// Rows read at once.
const ROWS: usize = 5000;

/// Which chunks have been short of copies all along for a while.
#[derive(Debug, Default)]
pub(super) struct Shortage {
    /// Short at every look for at least `MISSING_S`.
    long: Marks,
    /// Short at every look since `young_since`.
    young: Marks,
    young_since: Option<u64>,
}

impl Shortage {
    /// At observed second `now` these are short. `was_known`: before a restart some had been for long.
    fn look(&mut self, short: &Marks, now: u64, was_known: bool) -> u64 {
        self.long.keep_common(short);
        self.young.keep_common(short);
        match self.young_since {
            None => {
                self.young = short.clone();
                self.young_since = Some(now);
                if was_known {
                    self.long = short.clone();
                }
            }
            Some(since) if now >= since + MISSING_S => {
                self.long.add(&self.young);
                self.young = short.clone();
                self.young_since = Some(now);
            }
            Some(_) => {}
        }
        self.long.count()
    }
}

/// Chunks with fewer copies than wanted; the database is free in between.
fn short_now(vault: &Vault) -> Result<Marks, DbError> {
    let mut marks = Marks::default();
    for want in vault.db.read(|t| t.wants())? {
        let wanted = copies::in_all(want, vault.config.copies);
        let on_peers = |extra| planner::on_peers(wanted, extra, true);
        for have in 0..on_peers(Extra::Freed) {
            let mut after = ChunkId(0);
            loop {
                let only_extra = have >= on_peers(Extra::No);
                let page = vault.db.read(|t| t.short_ids(want, have, only_extra, after, ROWS))?;
                let Some(last) = page.last() else { break };
                after = *last;
                page.iter().for_each(|id| marks.set(*id));
            }
        }
    }
    Ok(marks)
}

/// Files that lack copies, and the reason that most of them have.
fn short_files(vault: &Vault, fleet: &Fleet) -> Result<(Sums, Option<Stuck>), VaultError> {
    let mut wish = Wish { limit: 1000, only_risky: true, ..Wish::default() };
    let mut sums = Sums::default();
    let mut reasons = std::collections::BTreeMap::<Stuck, u64>::new();
    loop {
        let Page { told, sums: some, next, .. } = page(vault, fleet, &wish)?;
        sums.absorb(&some);
        for why in told.iter().flat_map(|told| told.tally.stuck.keys()) {
            *reasons.entry(*why).or_default() += 1;
        }
        let Some(next) = next else { break };
        wish.after = Some(next.join(&b'/'));
    }
    Ok((sums, reasons.into_iter().max_by_key(|(_, files)| *files).map(|(why, _)| why)))
}

fn shortage_alert(sums: &Sums, why: Option<Stuck>, chunks: u64) -> Alert {
    let (mut files, mut bytes) = (0, 0);
    for (_, (some, more)) in sums.by_risk.iter().filter(|(risk, _)| risk.is_short()) {
        files += some;
        bytes += more;
    }
    let alone = [Risk::Gone, Risk::OnlyAway, Risk::Alone]
        .iter()
        .filter_map(|risk| sums.by_risk.get(risk))
        .map(|(files, _)| files)
        .sum::<u64>();
    let what = match files {
        0 if chunks == 1 => "1 chunk of an old version or a deleted file has".to_owned(),
        0 => format!("{chunks} chunks of old versions and deleted files have"),
        1 => format!("1 file ({} MiB) has", bytes >> 20),
        files => format!("{files} files ({} MiB) have", bytes >> 20),
    };
    let worse = match alone {
        0 => String::new(),
        alone => format!(", {alone} of them one copy or none"),
    };
    let (why, remedy) = why.map_or(("copies are on their way", ""), Stuck::words);
    Alert {
        text: format!("{what} had fewer copies than wanted for over an hour{worse}: {why}"),
        remedy: match remedy {
            "" => "`grove placement` shows how far it is".to_owned(),
            remedy => format!("{remedy}; `grove placement` names the files"),
        },
    }
}

/// What is to be said of a disk with so much free: the code and the words. Nearly full is one that has less above its reserve than
/// the reserve has, and less than [`LOW_BYTES_MAX`].
fn disk_alert(free: u64, reserve: u64) -> Option<(&'static str, Alert)> {
    let remedy =
        "free some space, add a larger disk, or lower what peers may store here (`grove peer quota`)";
    if free <= reserve {
        return Some((
            "disk-full",
            Alert {
                text: format!(
                    "the disk is full up to its reserve ({} MiB free): new files are not kept, and peers' chunks are refused",
                    free >> 20
                ),
                remedy: remedy.into(),
            },
        ));
    }
    (free < reserve.saturating_add(reserve.min(LOW_BYTES_MAX))).then(|| {
        let text = format!(
            "the disk is nearly full: {} MiB until new files are not kept any more",
            (free - reserve) >> 20
        );
        ("disk-low", Alert { text, remedy: remedy.into() })
    })
}

/// Looks at all of it while the cell runs.
pub(super) async fn watch(cell: Rc<Cell>) {
    let mut shortage = Shortage::default();
    let (mut count_at, mut files_at) = (0, 0);
    let mut is_told = false;
    loop {
        let now = cell.vault.now();
        if let Err(why) = look_at_disk(&cell).await {
            log::warn!("{why}");
        }
        if let Err(why) = look_at_owners(&cell).await {
            log::warn!("{why}");
        }
        if now >= count_at {
            count_at = now + COUNT_S;
            match look_at_copies(&cell, &mut shortage, is_told && now < files_at).await {
                Ok(Some(is_counted)) => {
                    if is_counted {
                        files_at = now + FILES_S;
                    }
                    is_told = true;
                }
                Ok(None) => is_told = false,
                Err(why) => log::warn!("{why}"),
            }
        }
        smol::Timer::after(cell.vault.clock.pause(LOOK)).await;
    }
}

async fn look_at_disk(cell: &Rc<Cell>) -> Result<(), VaultError> {
    let vault = Arc::clone(&cell.vault);
    let Some(space) = pool::unblock(move || vault.space()).await else { return Ok(()) };
    let told = disk_alert(space.free, space.reserve);
    for code in ["disk-full", "disk-low"] {
        match &told {
            Some((now, alert)) if *now == code => cell.vault.raise(now, alert.clone()),
            _ => cell.vault.clear(code),
        }
    }
    Ok(())
}

/// Counts what is missing. `None`: nothing for long; else whether files were counted, which they are not if `is_fresh`.
async fn look_at_copies(
    cell: &Rc<Cell>,
    shortage: &mut Shortage,
    is_fresh: bool,
) -> Result<Option<bool>, VaultError> {
    let vault = Arc::clone(&cell.vault);
    let short = pool::unblock(move || short_now(&vault)).await?;
    let was_known = cell.vault.is_alert_remembered("copies");
    let chunks = shortage.look(&short, cell.vault.now(), was_known);
    if chunks == 0 {
        cell.vault.clear("copies");
        return Ok(None);
    }
    if !is_fresh {
        let fleet = cell.fleet().await?;
        let vault = Arc::clone(&cell.vault);
        let (sums, why) = pool::unblock(move || short_files(&vault, &fleet)).await?;
        cell.vault.raise("copies", shortage_alert(&sums, why, chunks));
    }
    Ok(Some(!is_fresh))
}

async fn look_at_owners(cell: &Rc<Cell>) -> Result<(), VaultError> {
    let is_long = |seen: Option<u64>| seen.is_some_and(|seconds| seconds >= OWNER_SILENT_S);
    if !cell.fleet().await?.peers.iter().any(|peer| is_long(peer.seen_s)) {
        cell.vault.clear("owner-silent");
        return Ok(());
    }
    let silent: Vec<String> = cell
        .peer_views()
        .await?
        .into_iter()
        .filter(|peer| is_long(peer.last_seen_s) && peer.held_for_them_bytes > 0)
        .map(|peer| format!("{} ({} MiB kept here)", peer.name, peer.held_for_them_bytes >> 20))
        .collect();
    if silent.is_empty() {
        cell.vault.clear("owner-silent");
    } else {
        cell.vault.raise("owner-silent", Alert {
            text: format!("nothing has been heard for over a year of {}", silent.join(", ")),
            remedy: "its chunks stay here until you say otherwise: ask its owner, and if they are not needed any more, run \
                     `grove peer remove NAME`"
                .into(),
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marks(rows: &[i64]) -> Marks {
        let mut marks = Marks::default();
        rows.iter().for_each(|row| marks.set(ChunkId(*row)));
        marks
    }

    #[test]
    fn only_what_is_short_for_an_hour_without_a_break_is_told() {
        let mut shortage = Shortage::default();
        assert_eq!(shortage.look(&marks(&[1, 2, 3]), 0, false), 0);
        assert_eq!(shortage.look(&marks(&[1, 3, 99]), 1800, false), 0);
        // 2 was copied in between, 99 is young, 2 is short again.
        assert_eq!(shortage.look(&marks(&[1, 2, 3, 99]), 3600, false), 2);
        assert_eq!(shortage.look(&marks(&[3, 99]), 3900, false), 1);
        assert_eq!(shortage.look(&marks(&[99]), 7200, false), 1);
        assert_eq!(shortage.look(&marks(&[]), 7500, false), 0);
    }

    #[test]
    fn after_a_restart_what_was_told_before_is_told_at_once() {
        assert_eq!(Shortage::default().look(&marks(&[1]), 0, true), 1);
    }

    #[test]
    fn a_large_disk_is_nearly_full_when_little_is_left_not_when_a_small_part_is() {
        let (reserve, low) = (200 << 30, LOW_BYTES_MAX);
        let code = |free| disk_alert(free, reserve).map(|(code, _)| code);
        assert_eq!(
            [2 * reserve, reserve + low, reserve + low - 1, reserve].map(code),
            [None, None, Some("disk-low"), Some("disk-full")]
        );
    }

    #[test]
    fn a_disk_is_told_at_twice_the_reserve_and_at_the_reserve() {
        let code = |free| disk_alert(free, 100).map(|(code, _)| code);
        assert_eq!(
            [200, 199, 101, 100, 0].map(code),
            [None, Some("disk-low"), Some("disk-low"), Some("disk-full"), Some("disk-full")]
        );
        assert_eq!(disk_alert(0, 0).map(|(code, _)| code), Some("disk-full"));
    }

    #[test]
    fn a_shortage_says_how_much_and_why() {
        let mut sums = Sums::default();
        sums.by_risk.insert(Risk::Alone, (2, 3 << 20));
        sums.by_risk.insert(Risk::Short, (1, 1 << 20));
        sums.by_risk.insert(Risk::Fine, (100, 1 << 30));
        let alert = shortage_alert(&sums, Some(Stuck::NoRoom), 9);
        assert_eq!(
            alert.text,
            "3 files (4 MiB) have had fewer copies than wanted for over an hour, 2 of them one copy or none: no peer that is \
             connected has room"
        );
    }
}

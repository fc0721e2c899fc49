//! The mass-delete brake: when over half of the files or bytes would be deleted or rewritten within a day, nothing is
//! thrown away for good until a person says so.
//!
//! Tombstones and new versions go on being recorded; thinning, the clocks of the Recycle Bin and releases stop, over
//! restarts too. `grove confirm` decides, unless all that was deleted is back. Whoever is told the number and confirms it
//! before he removes files has decided already: such a deletion is not counted.

use crate::codec::{BadBytes, Reader, Writer};
use crate::config::{BRAKE_FILES_FREE, BRAKE_WINDOW_S};
use crate::manifest::{Kind, Manifest};
use crate::placement::{DbError, Node, Tables};
use crate::vault::{Alert, Vault, VaultError};
use crate::world::{Sabotage, is_sabotaged};

const META: &str = "brake";
const BUCKETS: u64 = 24;
/// What is rewritten is few where it is less than one part of so many.
const FEW_PART: u64 = 10;
const BUCKET_S: u64 = BRAKE_WINDOW_S / BUCKETS;

/// What was lost to deletion or rewriting in one stretch of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Bucket {
    /// Number of the stretch since the start of observed time.
    at: u64,
    files: u64,
    bytes: u64,
    deleted_files: u64,
    deleted_bytes: u64,
}

/// Counts what goes within a day, and pulls when it is too much. Pure: time and totals come in.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Brake {
    buckets: Vec<Bucket>,
    is_on: bool,
    /// It came on under a version that forgot what was lost more than a day ago.
    is_cut: bool,
}

impl Bucket {
    /// Both together, since the first began.
    fn and(self, other: &Bucket) -> Bucket {
        Bucket {
            at: self.at,
            files: self.files + other.files,
            bytes: self.bytes + other.bytes,
            deleted_files: self.deleted_files + other.deleted_files,
            deleted_bytes: self.deleted_bytes + other.deleted_bytes,
        }
    }
}

/// Files and bytes that are lost, of so many.
fn is_too_much(lost: (u64, u64), all: (u64, u64)) -> bool {
    lost.0 > BRAKE_FILES_FREE && (lost.0.saturating_mul(2) > all.0 || lost.1.saturating_mul(2) > all.1)
}

/// One file that is deleted or rewritten.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Loss {
    /// Bytes of the version that is superseded.
    pub bytes: u64,
    /// The file itself goes, and is no longer among the totals.
    pub is_deletion: bool,
}

impl Brake {
    /// Whether everything is kept until a person decides.
    pub fn is_on(&self) -> bool {
        self.is_on
    }

    /// Counts a loss at observed time `now`, given the files and bytes that are left. Tells whether the brake is pulled
    /// by it.
    pub fn count(&mut self, loss: Loss, now: u64, left_files: u64, left_bytes: u64) -> bool {
        let at = now / BUCKET_S;
        self.forget_before(at);
        if self.buckets.last().is_none_or(|bucket| bucket.at != at) {
            self.buckets.push(Bucket { at, ..Bucket::default() });
        }
        let bucket = self.buckets.last_mut().expect("pushed above");
        bucket.files += 1;
        bucket.bytes += loss.bytes;
        if loss.is_deletion {
            bucket.deleted_files += 1;
            bucket.deleted_bytes += loss.bytes;
        }
        let sum = self.sum();
        let too_much = is_too_much(
            (sum.files, sum.bytes),
            (left_files + sum.deleted_files, left_bytes + sum.deleted_bytes),
        );
        let too_much = too_much && !is_sabotaged(Sabotage::NeverBrakes);
        let pulled = too_much && !self.is_on;
        self.is_on |= too_much;
        pulled
    }

    /// Whether so many files and bytes more, deleted now, would pull it; given the files and bytes that there are.
    pub fn would_pull(&self, more: (u64, u64), now: u64, there: (u64, u64)) -> bool {
        let mut lost = self.clone();
        lost.forget_before(now / BUCKET_S);
        let sum = lost.sum();
        let all = (there.0 + sum.deleted_files, there.1 + sum.deleted_bytes);
        !self.is_on && is_too_much((sum.files.saturating_add(more.0), sum.bytes.saturating_add(more.1)), all)
    }

    /// From when on, in observed seconds, it counts what was lost, while it is on.
    pub fn on_since(&self) -> Option<u64> {
        let first = self.buckets.first().filter(|_| !self.is_cut);
        self.is_on.then(|| first.map_or(0, |bucket| bucket.at * BUCKET_S))
    }

    /// Lets go by itself where what was deleted is back but for `missing` files, and what was rewritten is no more than people
    /// save in a day, and both together would not have pulled it. Given the files and bytes that are there. Tells whether it
    /// did.
    pub fn release(&mut self, missing: u64, now: u64, there_files: u64, there_bytes: u64) -> bool {
        let sum = self.sum();
        let (files, bytes) =
            (sum.files.saturating_sub(sum.deleted_files), sum.bytes.saturating_sub(sum.deleted_bytes));
        let is_rewritten =
            files > BRAKE_FILES_FREE && (files * FEW_PART > there_files || bytes * FEW_PART > there_bytes);
        // The sizes of what is missing are not asked for: at most all that was deleted.
        let lost = (files.saturating_add(missing), bytes + if missing > 0 { sum.deleted_bytes } else { 0 });
        let all = (there_files.saturating_add(missing), there_bytes + lost.1 - bytes);
        if !self.is_on || missing > BRAKE_FILES_FREE || is_rewritten || is_too_much(lost, all) {
            return false;
        }
        (self.is_on, self.is_cut) = (false, false);
        self.buckets = vec![Bucket {
            at: now / BUCKET_S,
            files: files + missing,
            bytes,
            deleted_files: missing,
            deleted_bytes: 0,
        }];
        true
    }

    fn sum(&self) -> Bucket {
        self.buckets.iter().fold(Bucket::default(), |sum, b| sum.and(b))
    }

    /// What is older than a day counts no more; while it is on, everything does.
    fn forget_before(&mut self, at: u64) {
        if !self.is_on {
            self.buckets.retain(|bucket| bucket.at + BUCKETS > at);
        }
        while self.buckets.len() > 2 * BUCKETS as usize {
            let first = self.buckets.remove(0);
            self.buckets[0] = first.and(&self.buckets[0]);
        }
    }

    /// Files and bytes lost within the last day.
    pub fn lost(&self) -> (u64, u64) {
        self.buckets
            .iter()
            .fold((0, 0), |(files, bytes), bucket| (files + bucket.files, bytes + bucket.bytes))
    }

    /// A person has looked, and it was meant.
    pub fn confirm(&mut self) {
        *self = Self::default();
    }

    /// For `read`.
    pub fn write(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        // 1: as versions wrote it that forgot.
        let state = match (self.is_on, self.is_cut) {
            (false, _) => 0,
            (true, true) => 1,
            (true, false) => 2,
        };
        writer.u8(state).u32(self.buckets.len() as u32);
        for b in &self.buckets {
            writer.u64(b.at).u64(b.files).u64(b.bytes).u64(b.deleted_files).u64(b.deleted_bytes);
        }
        writer.finish()
    }

    /// What `write` wrote.
    pub fn read(bytes: &[u8]) -> Result<Self, BadBytes> {
        let mut reader = Reader::new(bytes);
        let state = reader.u8()?;
        let count = reader.count(40)?;
        let mut buckets = Vec::with_capacity(count);
        for _ in 0..count {
            buckets.push(Bucket {
                at: reader.u64()?,
                files: reader.u64()?,
                bytes: reader.u64()?,
                deleted_files: reader.u64()?,
                deleted_bytes: reader.u64()?,
            });
        }
        reader.end()?;
        Ok(Self { buckets, is_on: state != 0, is_cut: state == 1 })
    }
}

/// The brake as it stands.
pub fn load(t: &Tables<'_>) -> Result<Brake, DbError> {
    let Some(bytes) = t.meta(META)? else { return Ok(Brake::default()) };
    Brake::read(&bytes).map_err(|_| DbError::Row("state of the brake"))
}

/// Keeps the brake as it stands.
pub fn save(t: &Tables<'_>, brake: &Brake) -> Result<(), DbError> {
    t.set_meta(META, &brake.write())
}

/// Counts a deletion.
pub fn count_deletion(vault: &Vault, t: &Tables<'_>, node: &Node) -> Result<(), VaultError> {
    if node.kind == Kind::Folder {
        return Ok(());
    }
    count(vault, t, node, Loss { bytes: node.size, is_deletion: true })
}

/// A person was told how many files go, and meant it: no loss, only fewer files.
pub fn pass_deletion(vault: &Vault, t: &Tables<'_>, node: &Node) -> Result<(), VaultError> {
    if node.kind != Kind::Folder {
        vault.tree_size(t, true, node.size)?;
    }
    Ok(())
}

/// Counts a rewrite, where a version with other content supersedes one.
pub fn count_rewrite(
    vault: &Vault,
    t: &Tables<'_>,
    node: Option<&Node>,
    old: Option<&Manifest>,
    has_new_bytes: bool,
) -> Result<(), VaultError> {
    match (node, old) {
        (Some(node), Some(old)) if has_new_bytes && old.size > 0 => {
            count(vault, t, node, Loss { bytes: old.size, is_deletion: false })
        }
        _ => Ok(()),
    }
}

fn count(vault: &Vault, t: &Tables<'_>, node: &Node, loss: Loss) -> Result<(), VaultError> {
    let now = vault.now();
    // A file that is saved ten times a day is one file.
    if !loss.is_deletion && !t.touch_node(node.id, now, BRAKE_WINDOW_S)? {
        return Ok(());
    }
    let (files, bytes) = vault.tree_size(t, loss.is_deletion, loss.bytes)?;
    let mut brake = load(t)?;
    let pulled = brake.count(loss, now, files, bytes);
    save(t, &brake)?;
    if pulled {
        raise(vault, &brake);
    }
    Ok(())
}

/// Says that the brake is on.
pub fn raise(vault: &Vault, brake: &Brake) {
    let (files, _) = brake.lost();
    vault.raise("brake", Alert {
        text: format!("{files} files were deleted or rewritten within a day; every old version is kept until you decide"),
        remedy: "run `grove confirm` if you meant it; if not, bring files back with `grove restore NAME` and look for the \
                 program that changed them; this ends by itself when all that was deleted is back"
            .into(),
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    const DELETED: Loss = Loss { bytes: 100, is_deletion: true };
    const REWRITTEN: Loss = Loss { bytes: 100, is_deletion: false };

    #[test]
    fn deleting_over_half_pulls_the_brake_once() {
        let mut brake = Brake::default();
        let mut left = 100;
        for n in 1..=60 {
            left -= 1;
            let pulled = brake.count(DELETED, 1000, left, left * 100);
            assert_eq!(pulled, n == 51, "{n}");
        }
        assert!(brake.is_on());
        brake.confirm();
        assert!(!brake.is_on());
    }

    #[test]
    fn rewriting_every_file_one_by_one_over_an_hour_pulls_it() {
        let mut brake = Brake::default();
        let pulled_at = (0..100).find(|n| brake.count(REWRITTEN, 50_000 + n * 36, 100, 10_000));
        assert_eq!(pulled_at, Some(50));
    }

    #[test]
    fn few_files_and_a_slow_change_do_not() {
        let mut brake = Brake::default();
        assert!((0..20).all(|n| !brake.count(DELETED, 0, 19 - n, 0)));
        let mut brake = Brake::default();
        assert!((0..90).all(|n| !brake.count(REWRITTEN, n * BRAKE_WINDOW_S / 40, 100, 10_000)));
    }

    #[test]
    fn half_of_the_bytes_in_few_files_counts_too() {
        let mut brake = Brake::default();
        let large = Loss { bytes: 1_000_000, is_deletion: false };
        let pulled_at = (1..=30).find(|_| brake.count(large, 0, 10_000, 40_000_000));
        assert_eq!(pulled_at, Some(21));
    }

    #[test]
    fn it_lets_go_when_what_was_deleted_is_back_and_not_before() {
        let mut brake = Brake::default();
        (1..=60).for_each(|n| {
            brake.count(DELETED, 90_000, 100 - n, (100 - n) * 100);
        });
        assert_eq!(brake.on_since(), Some(90_000 / BUCKET_S * BUCKET_S));
        assert!(!brake.release(21, 90_100, 79, 7_900));
        assert!(brake.is_on());
        assert!(brake.release(0, 90_100, 100, 10_000));
        assert_eq!((brake.is_on(), brake.lost(), brake.on_since()), (false, (0, 0), None));
        assert!(!brake.release(0, 90_200, 100, 10_000), "it is off");
        // Some were saved meanwhile.
        (0..25).for_each(|_| {
            brake.count(REWRITTEN, 90_150, 1000, 100_000);
        });
        (1..=600).for_each(|n| {
            brake.count(DELETED, 90_150, 1000 - n, (1000 - n) * 100);
        });
        assert!(!brake.release(0, 90_160, 200, 1_000_000) && !brake.release(0, 90_160, 1000, 10_000));
        assert!(brake.release(0, 90_160, 1000, 100_000));
        brake.confirm();
        // It counts from the beginning again.
        let pulled_at = (1..=60).find(|n| brake.count(DELETED, 90_200, 100 - n, (100 - n) * 100));
        assert_eq!(pulled_at, Some(51));
    }

    #[test]
    fn a_few_deleted_and_a_few_rewritten_that_are_most_of_all_hold_it() {
        let mut brake = Brake::default();
        (1..=15).for_each(|n| {
            brake.count(REWRITTEN, 90_000, 50, 5_000);
            brake.count(DELETED, 90_000, 50 - n, (50 - n) * 100);
        });
        assert!(brake.is_on());
        // Neither alone is much, and nobody did anything about it.
        assert!(!brake.release(15, 90_100, 35, 3_500));
        assert!(!brake.release(6, 90_100, 44, 4_400));
        assert!(brake.release(5, 90_100, 45, 4_500));
        assert_eq!(brake.lost().0, 20);
    }

    #[test]
    fn what_was_rewritten_does_not_come_back_by_undeleting() {
        let mut brake = Brake::default();
        (0..60).for_each(|_| {
            brake.count(REWRITTEN, 90_000, 100, 10_000);
        });
        // Days later: while it is on nothing is forgotten, however long.
        for day in 1..400 {
            brake.count(DELETED, 90_000 + day * BRAKE_WINDOW_S / 3, 99, 9_900);
            assert!(!brake.release(0, 90_000 + day * BRAKE_WINDOW_S / 3, 100, 10_000), "{day}");
        }
        assert!(brake.write().len() < 4096);
        assert_eq!(brake.lost().0, 60 + 399);
        assert_eq!(brake.on_since(), Some(90_000 / BUCKET_S * BUCKET_S));
        brake.confirm();
        assert!(!brake.is_on());
    }

    #[test]
    fn it_tells_before_whether_it_would_be_pulled() {
        let mut brake = Brake::default();
        assert!(brake.would_pull((51, 0), 1000, (100, 10_000)));
        assert!(!brake.would_pull((50, 5_000), 1000, (100, 10_000)));
        assert!(brake.would_pull((21, 5_001), 1000, (100, 10_000)));
        assert!(!brake.would_pull((20, 10_000), 1000, (20, 10_000)), "few files");
        (1..=30).for_each(|n| {
            brake.count(DELETED, 1000, 100 - n, (100 - n) * 100);
        });
        assert!(brake.would_pull((21, 2_100), 1000, (70, 7_000)));
        assert!(!brake.would_pull((20, 2_000), 1000, (70, 7_000)));
        assert!(!brake.would_pull((21, 2_100), 1000 + 2 * BRAKE_WINDOW_S, (70, 7_000)));
        (1..=30).for_each(|n| {
            brake.count(DELETED, 1000, 70 - n, (70 - n) * 100);
        });
        assert!(!brake.would_pull((40, 4_000), 1000, (40, 4_000)), "it is on");
    }

    #[test]
    fn state_reads_back() {
        let mut brake = Brake::default();
        brake.count(DELETED, 99_999, 10, 10);
        assert_eq!(Brake::read(&brake.write()), Ok(brake));
        assert!(Brake::read(&[1, 0xff, 0xff, 0xff, 0xff]).is_err());
        // On, from a version that forgot what was lost more than a day ago: nobody knows since when.
        let mut on = Brake::default();
        for _ in 0..40 {
            on.count(DELETED, 99_999, 10, 10);
        }
        assert_eq!((on.is_on(), on.on_since()), (true, Some(99_999 / BUCKET_S * BUCKET_S)));
        let mut bytes = on.write();
        bytes[0] = 1;
        let older = Brake::read(&bytes).unwrap();
        assert_eq!((older.is_on(), older.on_since()), (true, Some(0)));
        assert_eq!(Brake::read(&older.write()), Ok(older));
    }
}

//! The restore drill: every few days a random sample of versions is fetched from peers alone, into memory, opened with the
//! keys of its manifests, and compared with what lies here. It says whether the day the disk dies would end well.
//!
//! Promise: nothing that a drill fetches is stored, and a peer that is not reached is never called a failure.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Seek, SeekFrom};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use miniserde::{Deserialize, Serialize, json};

use super::Cell;
use super::jobs::JobHandle;
use super::json::{Obj, list, text};
use super::metrics::Text;
use crate::catalog::RecordKind;
use crate::dashboard::api::ApiResponse;
use crate::files::unix::{Folder, to_wire};
use crate::id::ChunkName;
use crate::keys::{Secret, random};
use crate::manifest::{Check, Entry, Kind, Manifest, read_list};
use crate::order;
use crate::placement::{CellNumber, ChunkId, DbError, Node, NodeState};
use crate::pool;
use crate::seal::ENCODING_RAW;
use crate::sync::{Got, Sync};
use crate::vault::{Alert, Vault, VaultError};

/// Chunks of one drill, at most.
const CHUNKS_MAX: usize = 32;
/// Their sealed bytes, at most.
const BYTES_MAX: u64 = 64 << 20;
/// Chunks of one version, at most.
const PER_VERSION: usize = 4;
/// Places in the catalog that are tried for versions.
const TRIES: usize = 200;
/// Records looked at from each of them.
const RECORDS: usize = 64;
/// The first look after a start, and the time between two.
const LOOK: Duration = Duration::from_secs(600);
const DAY_S: u64 = 86_400;
const KEY: &str = "drill";
/// Observed second since which there are copies to drill with.
const SINCE_KEY: &str = "drill_since";

/// What did not come back as it was kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Failure {
    /// Path, as far as it is known.
    path: String,
    /// From whom.
    peer: String,
    why: String,
}

/// What the last drill came to.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct Report {
    /// Observed and Unix second.
    at: u64,
    at_wall: i64,
    versions: u64,
    chunks: u64,
    bytes: u64,
    /// Chunks that were also compared with a file or sealed chunk here.
    compared: u64,
    /// Who gave something.
    peers: Vec<String>,
    /// Who holds some of it and was not reached.
    unreached: Vec<String>,
    failures: Vec<Failure>,
}

impl Report {
    fn to_json(&self, now: u64) -> String {
        let failures = self
            .failures
            .iter()
            .map(|f| Obj::new().str("path", &f.path).str("peer", &f.peer).str("why", &f.why).end());
        Obj::new()
            .bool("ok", self.failures.is_empty())
            .num("age_s", now.saturating_sub(self.at))
            .num("at_unix", self.at_wall)
            .num("files", self.versions)
            .num("chunks", self.chunks)
            .num("bytes", self.bytes)
            .num("compared", self.compared)
            .raw("peers", list(self.peers.iter().map(|name| text(name))))
            .raw("unreached", list(self.unreached.iter().map(|name| text(name))))
            .raw("failures", list(failures))
            .end()
    }

    fn alert(&self) -> Option<Alert> {
        let first = self.failures.first()?;
        let more = match self.failures.len() - 1 {
            0 => String::new(),
            more => format!(", and {more} more"),
        };
        Some(Alert {
            text: format!(
                "a restore drill failed: {} of {} chunks did not come back as they were kept ({} from {}: {}{more})",
                self.failures.len(),
                self.chunks + self.failures.len() as u64,
                first.path,
                first.peer,
                first.why
            ),
            remedy: "bad copies were dropped and are made anew: run `grove sync --wait`, `grove verify --deep`, and `grove drill` \
                     again; if the same peer fails again, look at its disk or remove it with `grove peer remove`"
                .into(),
        })
    }
}

/// Whether a drill is due at `now`, and whether it is overdue: a whole period has passed since it was due.
fn is_due(last: Option<u64>, since: u64, days: u64, now: u64) -> (bool, bool) {
    if days == 0 {
        return (false, false);
    }
    let period = days * DAY_S;
    let due = last.map_or(since, |last| last + period);
    (now >= due, now >= due + period)
}

/// A chunk of the sample.
#[derive(Debug, Clone)]
struct Sample {
    chunk: ChunkId,
    name: ChunkName,
    sealed_len: u32,
    holders: Vec<CellNumber>,
    epoch: u32,
    key: Secret,
    /// Where its bytes begin in the file, and how many they are; `None`: a list of chunks.
    range: Option<(u64, u32)>,
    version: Arc<Version>,
}

/// A version of the sample.
#[derive(Debug)]
struct Version {
    path: String,
    names: Vec<Vec<u8>>,
    /// The newest version, lying in GroveHome.
    node: Option<Node>,
}

fn below(end: u64) -> u64 {
    u64::from_le_bytes(random()) % end.max(1)
}

/// A random version of a file that has bytes.
fn pick_version(vault: &Vault, seen: &mut BTreeSet<u64>) -> Result<Option<(u64, Manifest)>, VaultError> {
    let found = vault.db.read(|t| -> Result<_, DbError> {
        let from = below(t.top_seq());
        let (mut looked, mut found) = (0, None);
        t.records_after(from, |seq, key, body| -> Result<bool, DbError> {
            looked += 1;
            if key.first() == Some(&(RecordKind::File as u8)) && body.len() > 64 && !seen.contains(&seq) {
                found = Some((seq, body.to_vec()));
            }
            Ok(found.is_none() && looked < RECORDS)
        })?;
        Ok(found)
    })?;
    let Some((seq, bytes)) = found else { return Ok(None) };
    seen.insert(seq);
    let manifest = Manifest::open(&bytes, &vault.master, Check::Trusted)?;
    let has_bytes = manifest.kind == Kind::File && !manifest.tombstone && manifest.size > 0;
    Ok(has_bytes.then_some((seq, manifest)))
}

/// Some entries of a version with the place of each in the file; a list that lies here is looked into.
fn pick_entries(vault: &Vault, manifest: &Manifest) -> Result<Vec<(u64, Entry)>, VaultError> {
    let mut at = 0;
    let mut all: Vec<(u64, &Entry)> = Vec::new();
    for entry in &manifest.entries {
        if entry.chunk().is_some() {
            all.push((at, entry));
        }
        at += entry.len();
    }
    let mut picked = Vec::new();
    while picked.len() < PER_VERSION && !all.is_empty() {
        let (start, entry) = all.swap_remove(below(all.len() as u64) as usize);
        picked.push((start, entry.clone()));
        let Entry::List { name, key, .. } = entry else { continue };
        let Some(sealed) = vault.local_chunk(name)? else { continue };
        let plain = vault.sealer_of(manifest.epoch).open(key, ENCODING_RAW, sealed);
        let inner = read_list(&plain.map_err(|why| VaultError::Record(why.to_string()))?)?;
        let nth = below(inner.len() as u64) as usize;
        let before: u64 = inner.iter().take(nth).map(Entry::len).sum();
        picked
            .extend(inner.into_iter().nth(nth).filter(|e| e.chunk().is_some()).map(|e| (start + before, e)));
    }
    Ok(picked)
}

/// A random sample of versions; only chunks of which peers have copies.
fn pick(vault: &Vault) -> Result<Vec<Sample>, VaultError> {
    let mut samples = Vec::new();
    let (mut seen, mut names) = (BTreeSet::new(), BTreeSet::new());
    let mut bytes = 0;
    for _ in 0..TRIES {
        if samples.len() >= CHUNKS_MAX {
            break;
        }
        let Some((seq, manifest)) = pick_version(vault, &mut seen)? else { continue };
        let version = Arc::new(version_of(vault, seq, &manifest)?);
        for (start, entry) in pick_entries(vault, &manifest)? {
            let (name, key, range) = match entry {
                Entry::Chunk { name, key, len, .. } => (name, key, Some((start, len))),
                Entry::List { name, key, .. } => (name, key, None),
                Entry::Hole { .. } => continue,
            };
            let known = vault.db.read(|t| -> Result<_, DbError> {
                let Some(row) = t.chunk(&name)? else { return Ok(None) };
                Ok(Some((t.copies_of(row.id)?, row)))
            })?;
            let Some((holders, row)) = known.filter(|(holders, _)| !holders.is_empty()) else { continue };
            let fits = samples.len() < CHUNKS_MAX && bytes + u64::from(row.len) <= BYTES_MAX;
            if fits && names.insert(name) {
                bytes += u64::from(row.len);
                let (epoch, version) = (manifest.epoch, Arc::clone(&version));
                let (chunk, sealed_len) = (row.id, row.len);
                samples.push(Sample { chunk, name, sealed_len, holders, epoch, key, range, version });
            }
        }
    }
    Ok(samples)
}

fn version_of(vault: &Vault, seq: u64, manifest: &Manifest) -> Result<Version, VaultError> {
    let (node, path) = vault.db.read(|t| -> Result<_, DbError> {
        let node = t.node_of(manifest.file)?;
        let path = match &node {
            Some(node) => t.path(node.id)?,
            None => None,
        };
        Ok((node, path))
    })?;
    let is_current = |node: &Node| node.seq == seq && node.state == NodeState::Present;
    let named = path.clone().unwrap_or_else(|| vec![manifest.owner_part.name.clone()]);
    Ok(Version {
        path: to_wire(&named.join(&b'/')),
        names: path.unwrap_or_default(),
        node: node.filter(is_current),
    })
}

/// The bytes of a stretch of a file in GroveHome; `None` if it is not as it was kept.
fn file_bytes(vault: &Vault, node: &Node, names: &[Vec<u8>], start: u64, len: u32) -> Option<Vec<u8>> {
    let (name, folders) = names.split_last()?;
    let folder = Folder::open_root(&vault.home).ok()?.walk(folders).ok()?;
    let is_as_kept =
        || {
            folder.stat_if_there(name).ok().flatten().is_some_and(|stat| {
                stat.size == node.size && stat.mtime == node.mtime && stat.ino == node.ino
            })
        };
    if !is_as_kept() {
        return None;
    }
    let mut file = folder.open_file(name).ok()?;
    let mut bytes = vec![0; len as usize];
    file.seek(SeekFrom::Start(start)).ok()?;
    file.read_exact(&mut bytes).ok()?;
    is_as_kept().then_some(bytes)
}

/// Opens what came and compares it. Whether it was compared with anything here; `Err`: what is wrong.
fn examine(vault: &Vault, sample: &Sample, sealed: Vec<u8>) -> Result<bool, String> {
    let local = vault.local_chunk(&sample.name).map_err(|why| why.to_string())?;
    if local.as_ref().is_some_and(|local| *local != sealed) {
        return Err("its sealed bytes are not those that lie here".into());
    }
    let opened = vault.sealer_of(sample.epoch).open(&sample.key, ENCODING_RAW, sealed);
    let plain = opened.map_err(|why| format!("it cannot be opened: {why}"))?;
    let Some((start, len)) = sample.range else {
        read_list(&plain).map_err(|why| format!("it is no list of chunks: {why}"))?;
        return Ok(local.is_some());
    };
    let Some(plain) = plain.get(..len as usize) else { return Err("it is shorter than it should be".into()) };
    let version = &sample.version;
    let node = version.node.as_ref();
    let file = node.and_then(|node| file_bytes(vault, node, &version.names, start, len));
    match &file {
        Some(file) if file != plain => Err(
            "it is not what the file in GroveHome holds, though that has not changed: the file may be damaged".into(),
        ),
        _ => Ok(local.is_some() || file.is_some()),
    }
}

impl Cell {
    /// `POST /api/v1/drill`: one now.
    pub(super) fn drill(self: &Rc<Self>) -> ApiResponse {
        let cell = Rc::clone(self);
        self.jobs.start(&self.executor, "drill", |job| async move {
            job.say("restoring a sample from peers");
            let report = cell.run_drill(Some(&job)).await?;
            Ok(report.to_json(cell.vault.now()))
        })
    }

    async fn run_drill(self: &Rc<Self>, job: Option<&JobHandle>) -> Result<Report, VaultError> {
        let Some(_alone) = self.drilling.try_lock() else {
            return Err(VaultError::Refused("a restore drill is under way already".into()));
        };
        let Some(sync) = self.synced() else {
            return Err(VaultError::Refused("this needs the running cell: start it with `grove run`".into()));
        };
        let vault = Arc::clone(&self.vault);
        let samples = pool::unblock(move || pick(&vault)).await?;
        if samples.is_empty() {
            return Err(VaultError::Refused(
                "no peer has copies of files yet, so there is nothing to try".into(),
            ));
        }
        let names = self.peer_names(&sync).await?;
        let report = self.drill_with(&sync, samples, &names, job).await?;
        let kept = json::to_string(&report);
        let vault = Arc::clone(&self.vault);
        pool::unblock(move || vault.db.change_durably(|t| t.set_meta(KEY, kept.as_bytes()))).await?;
        *self.drilled.borrow_mut() = Some(report.clone());
        self.tell_drill();
        log::info!(
            "restore drill: {} chunks of {} files came from peers, {} failed",
            report.chunks,
            report.versions,
            report.failures.len()
        );
        Ok(report)
    }

    async fn peer_names(&self, sync: &Rc<Sync>) -> Result<BTreeMap<CellNumber, String>, VaultError> {
        Ok(order::map(sync.fleet().await?.peers.into_iter().map(|peer| (peer.cell, peer.name))))
    }

    async fn drill_with(
        self: &Rc<Self>,
        sync: &Rc<Sync>,
        samples: Vec<Sample>,
        names: &BTreeMap<CellNumber, String>,
        job: Option<&JobHandle>,
    ) -> Result<Report, VaultError> {
        let mut report =
            Report { at: self.vault.now(), at_wall: self.vault.clock.wall(), ..Default::default() };
        let name = |cell: &CellNumber| names.get(cell).cloned().unwrap_or_else(|| "a former peer".into());
        let (mut asked, mut unreached) = (BTreeMap::<CellNumber, u64>::new(), BTreeSet::new());
        let (mut peers, mut versions) = (BTreeSet::new(), BTreeSet::new());
        let total = samples.len() as u64;
        for (done, sample) in samples.into_iter().enumerate() {
            if let Some(job) = job {
                job.progress(done as u64, total, "chunks");
            }
            let reached = sync.reached();
            let (mut holders, away): (Vec<CellNumber>, Vec<CellNumber>) =
                sample.holders.iter().partition(|cell| reached.contains(cell));
            unreached.extend(away.iter().map(name));
            // Whoever was asked least comes first; if he does not answer, the next is asked.
            order::sort_by_key(&mut holders, |cell| asked.get(cell).copied().unwrap_or(0));
            for cell in holders {
                *asked.entry(cell).or_default() += 1;
                let got = sync.fetch_aside(cell, sample.chunk, sample.name, sample.sealed_len).await;
                let outcome = match got {
                    Got::Nothing => {
                        unreached.insert(name(&cell));
                        continue;
                    }
                    Got::Missing => Err("it does not have it any more".to_owned()),
                    Got::Damaged => Err("it is damaged there".to_owned()),
                    Got::Wrong => Err("it gave other bytes".to_owned()),
                    Got::Bytes(sealed) => {
                        peers.insert(name(&cell));
                        self.examine(&sample, sealed).await
                    }
                };
                match outcome {
                    Ok(is_compared) => {
                        report.chunks += 1;
                        report.bytes += u64::from(sample.sealed_len);
                        report.compared += u64::from(is_compared);
                        versions.insert(Arc::as_ptr(&sample.version));
                    }
                    Err(why) => {
                        let path = sample.version.path.clone();
                        report.failures.push(Failure { path, peer: name(&cell), why });
                    }
                }
                break;
            }
        }
        if report.chunks == 0 && report.failures.is_empty() {
            return Err(VaultError::Refused(format!(
                "no peer that has copies is reached now, so nothing was tried: {}",
                unreached.into_iter().collect::<Vec<_>>().join(", ")
            )));
        }
        report.versions = versions.len() as u64;
        report.peers = peers.into_iter().collect();
        report.unreached = unreached.into_iter().collect();
        Ok(report)
    }

    async fn examine(&self, sample: &Sample, sealed: Vec<u8>) -> Result<bool, String> {
        let (vault, permit) = (Arc::clone(&self.vault), self.permits.acquire_arc().await);
        let sample = sample.clone();
        pool::unblock(move || {
            let _permit = permit;
            examine(&vault, &sample, sealed)
        })
        .await
    }

    fn tell_drill(&self) {
        match self.drilled.borrow().as_ref().and_then(Report::alert) {
            Some(alert) => self.vault.raise("drill-failed", alert),
            None => self.vault.clear("drill-failed"),
        }
    }

    /// What the last drill came to, as JSON; null if there was none.
    pub(super) fn drill_json(&self) -> String {
        self.drilled.borrow().as_ref().map_or("null".into(), |report| report.to_json(self.vault.now()))
    }

    pub(super) fn drill_metrics(&self, text: &mut Text) {
        let drilled = self.drilled.borrow();
        let Some(report) = &*drilled else { return };
        let age = self.vault.now().saturating_sub(report.at);
        let is_ok = u8::from(report.failures.is_empty());
        text.gauge("grove_drill_ok", "The last restore drill brought everything back as it was.", &[], is_ok);
        text.gauge("grove_drill_age_seconds", "Seconds since the last restore drill.", &[], age);
        text.gauge(
            "grove_drill_chunks",
            "Chunks that came back in the last restore drill.",
            &[],
            report.chunks,
        );
        let failed = report.failures.len();
        text.gauge("grove_drill_failures", "Chunks that did not, and should have.", &[], failed);
    }

    /// Reads what the last drill came to.
    pub(super) async fn load_drill(&self) -> Result<(), VaultError> {
        let vault = Arc::clone(&self.vault);
        let kept = pool::unblock(move || vault.db.read(|t| t.meta(KEY))).await?;
        let report = kept.and_then(|bytes| json::from_str(std::str::from_utf8(&bytes).ok()?).ok());
        *self.drilled.borrow_mut() = report;
        Ok(())
    }
}

/// A drill whenever one is due.
pub(super) async fn keep(cell: Rc<Cell>) {
    cell.tell_drill();
    loop {
        smol::Timer::after(cell.vault.clock.pause(LOOK)).await;
        if let Err(why) = look(&cell).await {
            log::warn!("{why}");
        }
    }
}

async fn look(cell: &Rc<Cell>) -> Result<(), VaultError> {
    let days = cell.vault.config.drill_days;
    let now = cell.vault.now();
    let has_copies = cell.peer_views().await?.iter().any(|peer| peer.held_for_us_chunks > 0);
    let vault = Arc::clone(&cell.vault);
    let since = pool::unblock(move || -> Result<Option<u64>, DbError> {
        vault.db.change(|t| match t.meta_u64(SINCE_KEY)? {
            Some(since) => Ok(Some(since)),
            None if has_copies => t.set_meta_u64(SINCE_KEY, now).map(|()| Some(now)),
            None => Ok(None),
        })
    })
    .await?;
    let Some(since) = since.filter(|_| has_copies) else {
        cell.vault.clear("drill-overdue");
        return Ok(());
    };
    let last = cell.drilled.borrow().as_ref().map(|report| report.at);
    let (due, _) = is_due(last, since, days, now);
    if due {
        if let Err(why) = cell.run_drill(None).await {
            log::info!("the restore drill waits: {why}");
        }
    }
    let last = cell.drilled.borrow().as_ref().map(|report| report.at);
    if is_due(last, since, days, now).1 {
        let silent = cell.silent_peers().await.join(", ");
        let whom = if silent.is_empty() { String::new() } else { format!("; not reached now: {silent}") };
        let days = match now.saturating_sub(last.unwrap_or(since)) / DAY_S {
            1 => "a day".to_owned(),
            days => format!("{days} days"),
        };
        cell.vault.raise(
            "drill-overdue",
            Alert {
                text: format!("for {days} no restore from peers could be tried{whom}"),
                remedy: "switch on the peers that hold your files, and run `grove drill`".into(),
            },
        );
    } else {
        cell.vault.clear("drill-overdue");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drill_is_due_at_once_then_every_period_and_overdue_after_another() {
        let day = DAY_S;
        assert_eq!(is_due(None, 100, 7, 99), (false, false));
        assert_eq!(is_due(None, 100, 7, 100), (true, false));
        assert_eq!(is_due(None, 100, 7, 100 + 7 * day), (true, true));
        assert_eq!(is_due(Some(50), 0, 7, 49 + 7 * day), (false, false));
        assert_eq!(is_due(Some(50), 0, 7, 50 + 7 * day), (true, false));
        assert_eq!(is_due(Some(50), 0, 7, 50 + 14 * day), (true, true));
        assert_eq!(is_due(None, 0, 0, 1 << 40), (false, false));
    }

    #[test]
    fn a_failed_drill_says_what_from_whom_and_what_to_do_also_after_a_restart() {
        let failure = Failure { path: "a".into(), peer: "bob".into(), why: "it gave other bytes".into() };
        let report = Report { chunks: 3, failures: vec![failure.clone(), failure], ..Default::default() };
        let again: Report = json::from_str(&json::to_string(&report)).unwrap();
        assert_eq!(again, report);
        let alert = again.alert().unwrap();
        assert_eq!(
            alert.text,
            "a restore drill failed: 2 of 5 chunks did not come back as they were kept (a from bob: it gave other bytes, and 1 more)"
        );
        assert!(alert.remedy.contains("grove drill"));
        assert_eq!(<Report as Default>::default().alert(), None);
    }
}

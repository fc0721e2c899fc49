//! What tests of several cells do again and again: plant trees, wait for copies, look at routes, ask without pause.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use miniserde::json::{self, Object, Value};

use super::{Cell, Chance, DEADLINE, number, object, text, wait_for, walk};
use grove::cli::client::percent_encode;

/// Some folders with small files in them, 30 in all, of up to 40,000 bytes each.
pub fn plant_small(home: &Path, chance: &mut Chance) {
    for folder in 0..3 {
        let folder = home.join(format!("folder {folder}"));
        fs::create_dir_all(&folder).unwrap();
        for file in 0..10 {
            let len = chance.below(40_000) as usize;
            fs::write(folder.join(format!("file {file}")), chance.bytes(len)).unwrap();
        }
    }
}

/// Writes a file elsewhere first, so that it is whole when the cell sees it.
pub fn plant(home: &Path, name: &str, bytes: &[u8]) {
    let beside = home.with_extension("planted");
    fs::write(&beside, bytes).unwrap();
    if let Some(folder) = home.join(name).parent() {
        fs::create_dir_all(folder).unwrap();
    }
    fs::rename(&beside, home.join(name)).unwrap();
}

/// Waits until a cell keeps so many files.
pub fn kept(cell: &Cell, files: u64) {
    wait_for("all files are kept", || (number(&cell.get("/status"), "files.count") >= files).then_some(()));
}

/// Waits until a cell keeps so many files and a peer has copies of all of them.
pub fn copied(cell: &Cell, files: u64) {
    kept(cell, files);
    copied_within(cell, DEADLINE);
}

/// Waits until nothing waits for a peer.
pub fn copied_within(cell: &Cell, limit: Duration) {
    let end = Instant::now() + limit;
    loop {
        let id = number(&cell.post("/sync", r#"{"wait":true}"#), "job");
        let job = loop {
            let job = cell.get(&format!("/jobs/{id}?wait_ms=1000"));
            if text(&job, "state") != "running" || Instant::now() > end {
                break job;
            }
        };
        if text(&job, "state") == "done" && number(&job, "result.waiting_chunks") == 0 {
            return;
        }
        assert!(Instant::now() < end, "not copied: {}\n{}", json::to_string(&job), cell.log_text());
    }
}

/// The only peer of a cell.
pub fn peer_of(cell: &Cell) -> Object {
    let peers = cell.get("/peers");
    let Some(Value::Array(peers)) = peers.get("peers") else { panic!("no peers") };
    assert_eq!(peers.len(), 1, "one peer");
    object(&json::to_string(&peers[0]))
}

pub fn online(cell: &Cell) -> bool {
    matches!(peer_of(cell).get("online"), Some(Value::Bool(true)))
}

pub fn wait_online(cells: &[&Cell]) {
    wait_for("all are online", || cells.iter().all(|cell| online(cell)).then_some(()));
}

/// Waits until a cell knows that its only peer is off: what it says of it from then on does not depend on how soon that was.
pub fn wait_offline(cell: &Cell) {
    wait_for("the peer is known to be off", || (!online(cell)).then_some(()));
}

/// One way to a peer, as `grove routes --json` tells it.
#[derive(Debug, Clone)]
pub struct Route {
    pub address: String,
    pub kind: String,
    pub round_trip_us: u64,
    pub up_bytes_per_s: u64,
    pub down_bytes_per_s: u64,
    pub is_in_use: bool,
    pub last_error: String,
}

/// Every route of a cell to its only peer.
pub fn routes(cell: &Cell) -> Vec<Route> {
    routes_after(cell, &["routes", "--json"])
}

/// The same after measuring all of them.
pub fn bench(cell: &Cell) -> Vec<Route> {
    routes_after(cell, &["routes", "--bench", "--json"])
}

fn routes_after(cell: &Cell, words: &[&str]) -> Vec<Route> {
    let said = cell.cli(words).ok();
    let mut answer = object(&said.out);
    // After measuring it is the result of a job.
    if let Some(Value::Object(result)) = answer.remove("result") {
        answer = result;
    }
    let Some(Value::Array(peers)) = answer.get("peers") else { panic!("no peers: {}", said.out) };
    assert_eq!(peers.len(), 1, "one peer: {}", said.out);
    let peer = object(&json::to_string(&peers[0]));
    let Some(Value::Array(routes)) = peer.get("routes") else { panic!("no routes: {}", said.out) };
    routes
        .iter()
        .map(|route| {
            let route = object(&json::to_string(route));
            Route {
                address: text(&route, "address"),
                kind: text(&route, "kind"),
                round_trip_us: number(&route, "rtt_us"),
                up_bytes_per_s: number(&route, "up_bytes_per_s"),
                down_bytes_per_s: number(&route, "down_bytes_per_s"),
                is_in_use: matches!(route.get("in_use"), Some(Value::Bool(true))),
                last_error: text(&route, "last_error"),
            }
        })
        .collect()
}

/// The route that is in use, if there is one.
pub fn route_in_use(cell: &Cell) -> Option<Route> {
    routes(cell).into_iter().find(|route| route.is_in_use)
}

/// Waits until a route is in use of which `is_right` holds; gives it and the time that took.
pub fn wait_route(
    cell: &Cell,
    what: &str,
    limit: Duration,
    is_right: impl Fn(&Route) -> bool,
) -> (Route, Duration) {
    let began = Instant::now();
    loop {
        if let Some(route) = route_in_use(cell).filter(&is_right) {
            return (route, began.elapsed());
        }
        assert!(began.elapsed() < limit, "{what}: {:?}\n{}", routes(cell), cell.log_text());
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Small files of a cell whose chunks are no more on its disk, so that reading one asks its only peer.
pub struct Remote {
    names: Vec<String>,
    contents: Vec<Vec<u8>>,
}

/// Bytes of the first such files: like a message of a chat. Those of each later call are longer, so that their chunks
/// have a length that no other has.
const REMOTE_BYTES: usize = 3001;
const REMOTE_MORE_BYTES: usize = 1500;
/// Fewer than the store puts in a pack, so that each chunk is a file of its own.
const REMOTE_BATCH: usize = 16;

impl Remote {
    /// Writes `count` small files, waits until the peer has them, and removes their chunks here.
    pub fn plant(cell: &Cell, count: usize, chance: &mut Chance) -> Self {
        static CALLS: AtomicUsize = AtomicUsize::new(0);
        let len = REMOTE_BYTES + REMOTE_MORE_BYTES * CALLS.fetch_add(1, Ordering::Relaxed);
        let before = number(&cell.get("/status"), "files.count");
        let names: Vec<String> = (0..count).map(|n| format!("asked/{n}")).collect();
        let contents: Vec<Vec<u8>> = names.iter().map(|_| chance.bytes(len)).collect();
        fs::create_dir_all(cell.home.join("asked")).unwrap();
        let mut planted = before;
        for batch in names.iter().zip(&contents).collect::<Vec<_>>().chunks(REMOTE_BATCH) {
            for (name, content) in batch {
                fs::write(cell.home.join(name), content).unwrap();
            }
            planted += batch.len() as u64;
            kept(cell, planted);
        }
        copied(cell, planted);
        let mut loose: BTreeMap<u64, Vec<PathBuf>> = BTreeMap::new();
        walk(&cell.dir.join("chunks"), &mut |path| {
            let is_chunk = path.file_name().is_some_and(|name| name.len() == 64);
            if let (true, Ok(meta)) = (is_chunk, path.metadata()) {
                loose.entry(meta.len()).or_default().push(path.to_owned());
            }
        });
        // Sealing adds an eighth at most. A few may have got into a pack after all; those are read here.
        let of_ours = |bytes: &u64| (len as u64..(len + len / 8 + 64) as u64).contains(bytes);
        let lost: Vec<PathBuf> =
            loose.into_iter().filter(|(bytes, _)| of_ours(bytes)).flat_map(|(_, paths)| paths).collect();
        assert!((count * 2 / 3..=count + 5).contains(&lost.len()), "{} loose chunks of {count}", lost.len());
        for path in lost {
            fs::remove_file(path).unwrap();
        }
        Self { names, contents }
    }
}

/// Everything a cell keeps is sound once what was removed by `Remote` is fetched again.
pub fn sound_after_repair(cell: &Cell) {
    cell.cli(["verify", "--deep"]).ok();
    cell.verify_deep();
}

/// One request: when it began, after how long it was answered, and what was wrong.
#[derive(Debug, Clone)]
pub struct Asked {
    pub at: Instant,
    pub took: Duration,
    pub why: Option<String>,
}

/// Reads remote files one after the other, each of them once, until it is told to stop.
pub struct Asker {
    is_over: Arc<AtomicBool>,
    thread: JoinHandle<Vec<Asked>>,
}

impl Asker {
    /// Asks at once when answered, but at most once in `every`.
    pub fn start(cell: &Cell, remote: Remote, every: Duration) -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        let (over, client, host) = (Arc::clone(&is_over), cell.client(), cell.host.clone());
        let work = move || {
            let mut all = Vec::new();
            for (name, content) in remote.names.iter().zip(&remote.contents) {
                if over.load(Ordering::Relaxed) {
                    return all;
                }
                let at = Instant::now();
                let path = format!("/api/v1/content?path={}", percent_encode(name.as_bytes()));
                let answer = client.request("GET", &path, None);
                let bytes = answer.and_then(|answer| answer.into_ok()?.bytes(1 << 20));
                let why = match bytes {
                    Ok(bytes) if bytes == *content => None,
                    Ok(_) => Some(format!("{name}: other bytes")),
                    Err(why) => Some(format!("{name}: {why}")),
                };
                all.push(Asked { at, took: at.elapsed(), why });
                std::thread::sleep(every.saturating_sub(at.elapsed()));
            }
            assert!(over.load(Ordering::Relaxed), "too few files to ask for");
            all
        };
        let thread = std::thread::spawn(move || match host {
            None => work(),
            Some(host) => host.inside(work),
        });
        Self { is_over, thread }
    }

    /// Ends; every request must have been answered, and there must be some. Gives the longest time.
    pub fn finish(self) -> Duration {
        self.is_over.store(true, Ordering::Relaxed);
        let all = self.thread.join().unwrap();
        let failed: Vec<&String> = all.iter().filter_map(|asked| asked.why.as_ref()).collect();
        let longest = all.iter().map(|asked| asked.took).max().expect("something was asked");
        eprintln!("{} requests, the longest took {longest:?}", all.len());
        assert!(failed.is_empty(), "{} of {} requests failed: {failed:?}", failed.len(), all.len());
        longest
    }
}

//! Watches GroveHome by inotify, and decides when what changed has settled.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Mutex;
use std::time::Duration;

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use smol::Async;

use super::unix::Folder;
use crate::placement::NodeId;
use crate::vault::lock;

/// Names that wait to settle before a whole scan is cheaper than following each.
const DIRTY_MAX: usize = 20_000;

/// What the kernel told of one name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A name was written to, or made, and may be written to further.
    Touched(NodeId, Vec<u8>),
    /// A name was closed after writing, moved in or out, or removed: it will not change by itself.
    Settled(NodeId, Vec<u8>),
    /// A folder came: all in it has to be looked at.
    Folder(NodeId, Vec<u8>),
    /// The kernel lost count: look through everything.
    Lost,
}

/// Watched folders. Adding one is cheap and may come from any thread.
#[derive(Debug)]
pub struct WatchList {
    inotify: OwnedFd,
    folders: Mutex<Watched>,
}

#[derive(Debug, Default)]
struct Watched {
    nodes: HashMap<i32, NodeId>,
    /// The kernel gives no more watches.
    is_full: bool,
}

const WANTED: WatchFlags = WatchFlags::CLOSE_WRITE
    .union(WatchFlags::MODIFY)
    .union(WatchFlags::ATTRIB)
    .union(WatchFlags::CREATE)
    .union(WatchFlags::DELETE)
    .union(WatchFlags::MOVED_FROM)
    .union(WatchFlags::MOVED_TO)
    .union(WatchFlags::ONLYDIR);

impl WatchList {
    /// No folder watched yet. Fails where the kernel has no inotify to give.
    pub fn new() -> io::Result<Self> {
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        Ok(Self { inotify, folders: Mutex::default() })
    }

    /// Watches a folder; one that is watched already keeps its watch.
    pub fn add(&self, folder: &Folder, node: NodeId) {
        use std::os::fd::AsRawFd;
        if lock(&self.folders).is_full {
            return;
        }
        let path = format!("/proc/self/fd/{}", folder.fd().as_raw_fd());
        match inotify::add_watch(&self.inotify, path, WANTED) {
            Ok(watch) => {
                lock(&self.folders).nodes.insert(watch, node);
            }
            Err(rustix::io::Errno::NOSPC | rustix::io::Errno::NOMEM) => {
                lock(&self.folders).is_full = true;
            }
            Err(why) => log::debug!("a folder cannot be watched: {why}"),
        }
    }

    /// Whether some folders are not watched because the kernel gives no more watches.
    pub fn is_full(&self) -> bool {
        lock(&self.folders).is_full
    }

    /// Folders watched.
    pub fn len(&self) -> usize {
        lock(&self.folders).nodes.len()
    }

    /// No folder is watched.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Waits until the kernel has something to tell, and gives it.
    pub async fn next(&self) -> io::Result<Vec<Event>> {
        let readable = Async::new(self.inotify.as_fd())?;
        readable.readable().await?;
        drop(readable);
        Ok(self.drain())
    }

    fn drain(&self) -> Vec<Event> {
        let mut buffer = [std::mem::MaybeUninit::uninit(); 16 * 1024];
        let mut reader = inotify::Reader::new(&self.inotify, &mut buffer);
        let mut events = Vec::new();
        // An error is the end of what there is to read.
        while let Ok(event) = reader.next() {
            let flags = event.events();
            if flags.contains(ReadFlags::QUEUE_OVERFLOW) {
                events.push(Event::Lost);
                continue;
            }
            if flags.contains(ReadFlags::IGNORED) {
                lock(&self.folders).nodes.remove(&event.wd());
                continue;
            }
            let Some(node) = lock(&self.folders).nodes.get(&event.wd()).copied() else { continue };
            let Some(name) = event.file_name() else { continue };
            let name = name.to_bytes().to_vec();
            let came = flags.intersects(ReadFlags::CREATE | ReadFlags::MOVED_TO);
            events.push(if flags.contains(ReadFlags::ISDIR) && came {
                Event::Folder(node, name)
            } else if flags.intersects(
                ReadFlags::CLOSE_WRITE | ReadFlags::MOVED_TO | ReadFlags::MOVED_FROM | ReadFlags::DELETE,
            ) {
                Event::Settled(node, name)
            } else {
                Event::Touched(node, name)
            });
            if events.len() >= 4096 {
                break;
            }
        }
        events
    }
}

/// Waits for names to settle. Pure: time comes in.
#[derive(Debug)]
pub struct Settling {
    closed: Duration,
    open: Duration,
    due: BTreeMap<(NodeId, Vec<u8>), Duration>,
    everything: Option<Duration>,
}

/// What has settled.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Settled {
    /// Look at these names.
    pub names: Vec<(NodeId, Vec<u8>)>,
    /// Look through everything.
    pub everything: bool,
}

impl Settling {
    /// A closed file settles after `closed`, an open one after `open` without a write.
    pub fn new(closed: Duration, open: Duration) -> Self {
        Self { closed, open, due: BTreeMap::new(), everything: None }
    }

    /// Takes in what the kernel told at `now`.
    pub fn see(&mut self, event: Event, now: Duration) {
        match event {
            Event::Touched(node, name) => self.put(node, name, now + self.open),
            Event::Settled(node, name) | Event::Folder(node, name) => self.put(node, name, now + self.closed),
            Event::Lost => self.everything = Some(now + self.open),
        }
    }

    /// Looks at a name again at `due`: it was still being written.
    pub fn put(&mut self, node: NodeId, name: Vec<u8>, due: Duration) {
        if self.due.len() >= DIRTY_MAX {
            self.due.clear();
            self.everything = Some(due);
        }
        if self.everything.is_none() {
            self.due.insert((node, name), due);
        }
    }

    /// When something settles next.
    pub fn next_due(&self) -> Option<Duration> {
        self.due.values().min().copied().into_iter().chain(self.everything).min()
    }

    /// Takes what has settled by `now`. What settles within another `closed` goes along, so that both ends of a move are
    /// looked at together.
    pub fn take(&mut self, now: Duration) -> Settled {
        if self.everything.is_some_and(|due| due <= now) {
            self.everything = None;
            self.due.clear();
            return Settled { names: vec![], everything: true };
        }
        if self.next_due().is_none_or(|due| due > now) {
            return Settled::default();
        }
        let until = now + self.closed;
        let names: Vec<_> =
            self.due.iter().filter(|(_, due)| **due <= until).map(|(name, _)| name.clone()).collect();
        for name in &names {
            self.due.remove(name);
        }
        Settled { names, everything: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLOSED: Duration = Duration::from_millis(200);
    const OPEN: Duration = Duration::from_millis(2000);

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn closed_file_settles_soon_and_open_one_after_quiet() {
        let mut settling = Settling::new(CLOSED, OPEN);
        let name = |n: &[u8]| (NodeId(1), n.to_vec());
        settling.see(Event::Settled(NodeId(1), b"a".to_vec()), ms(0));
        settling.see(Event::Touched(NodeId(1), b"b".to_vec()), ms(0));
        settling.see(Event::Touched(NodeId(1), b"b".to_vec()), ms(1500));
        assert_eq!(settling.take(ms(199)), Settled::default());
        assert_eq!(settling.take(ms(200)).names, [name(b"a")]);
        assert_eq!(settling.take(ms(3000)), Settled::default());
        assert_eq!(settling.next_due(), Some(ms(3500)));
        assert_eq!(settling.take(ms(3500)).names, [name(b"b")]);
        assert_eq!(settling.next_due(), None);
    }

    #[test]
    fn both_ends_of_a_move_are_taken_together() {
        let mut settling = Settling::new(CLOSED, OPEN);
        settling.see(Event::Settled(NodeId(1), b"a".to_vec()), ms(0));
        settling.see(Event::Settled(NodeId(2), b"b".to_vec()), ms(150));
        assert_eq!(settling.take(ms(200)).names.len(), 2);
    }

    #[test]
    fn too_much_at_once_becomes_one_scan() {
        let mut settling = Settling::new(CLOSED, OPEN);
        for n in 0..=DIRTY_MAX {
            settling.see(Event::Settled(NodeId(1), n.to_string().into_bytes()), ms(0));
        }
        assert!(settling.take(ms(200)).everything);
        assert_eq!(settling.next_due(), None);
    }
}

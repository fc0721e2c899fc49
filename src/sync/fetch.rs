//! Reading what a friend granted: chunks by ticket from the sharer and from whoever else holds them, several at once, opened
//! and checked one by one, into a file or as a stream.
//!
//! Promise: memory does not grow with the file; what was fetched before a break is not fetched again; a file stands under
//! its name only when every chunk of it was opened with its key.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::connect::Bearing;
use super::driver::Sync;
use super::link::{For, Link};
use super::part::Part;
use super::received::ReceivedRow;
use crate::card::Card;
use crate::grant::{self, ListSum, Opened, Party, Place, safe_name};
use crate::id::{CellId, ChunkName};
use crate::keys::{Secret, sha256};
use crate::manifest::{Entry, read_list};
use crate::pool::unblock;
use crate::seal::{ENCODING_RAW, TAG_BYTES, open_chunk, padded_len};
use crate::vault::VaultError;
use crate::wire::message::{self, AskError, GetStatus};
use crate::wire::session::Session;
use crate::wire::within;
use crate::world;
use futures_util::future::join_all;

/// Chunks that one request asks for.
const BATCH: usize = 4;
/// Requests under way at once, over all holders.
const WORKERS_MAX: usize = 4;
/// Requests under way at once to one holder.
const WORKERS_EACH: usize = 2;
/// Holders that are asked.
const SOURCES_MAX: usize = 16;
/// Connections with one holder that may break in one fetch.
const BREAKS_MAX: u32 = 4;
/// A holder that is no peer is dialled anew so often in one fetch.
const REDIALS_MAX: u32 = 1;
/// A holder that is no peer is dialled within this.
const DIAL_TIME_MAX: Duration = Duration::from_secs(10);

/// A granted file, for people. All texts are harmless to show and to write.
#[derive(Debug, Clone)]
pub struct FeedEntry {
    /// Its row.
    pub row: ReceivedRow,
    /// Who shared it, by name.
    pub from: String,
    /// The file's name.
    pub name: String,
    /// Folders from the share's top down.
    pub folders: Vec<String>,
    /// Media type, or empty.
    pub media: String,
    /// Holders that the sharer told.
    pub holders: usize,
    /// `verified`, `available` or `remote`.
    pub state: &'static str,
}

/// What a fetch brought.
#[derive(Debug, Clone)]
pub struct FetchedFile {
    /// Where it is.
    pub path: PathBuf,
    /// Bytes of the file.
    pub bytes: u64,
    /// Of them those that came now, not before a break.
    pub came: u64,
    /// Who gave, by name.
    pub from: Vec<String>,
}

/// A chunk of a granted file.
#[derive(Debug, Clone)]
struct Piece {
    /// Its place among all chunks of the file.
    ordinal: u64,
    /// Of the manifest's entries, or of the list's.
    at: usize,
    offset: u64,
    name: ChunkName,
    key: Secret,
    encoding: u8,
    len: u32,
}

impl Piece {
    fn sealed_len(&self) -> u32 {
        (padded_len(self.len as usize) + TAG_BYTES) as u32
    }
}

/// Some chunks that lie behind each other: those that the manifest names itself, or those of one list.
struct Stage {
    pieces: Vec<Piece>,
    /// The place of the list among the manifest's entries, and what it names.
    list: Option<(usize, Vec<Entry>)>,
}

/// Walks through a manifest's entries, a stage at a time.
#[derive(Debug, Default)]
struct Walk {
    next: usize,
    offset: u64,
    ordinal: u64,
}

/// What comes next in a manifest.
enum Step {
    Stage(Stage),
    /// The list at this place among the entries has to be had first.
    List(usize),
    End,
}

impl Walk {
    fn step(&mut self, entries: &[Entry]) -> Step {
        let mut pieces = Vec::new();
        while let Some(entry) = entries.get(self.next) {
            if matches!(entry, Entry::List { .. }) {
                if pieces.is_empty() {
                    self.next += 1;
                    return Step::List(self.next - 1);
                }
                break;
            }
            pieces.extend(self.piece(entry, self.next));
            self.next += 1;
        }
        if pieces.is_empty() { Step::End } else { Step::Stage(Stage { pieces, list: None }) }
    }

    fn listed(&mut self, list: usize, entries: Vec<Entry>) -> Stage {
        let pieces = entries.iter().enumerate().filter_map(|(at, entry)| self.piece(entry, at)).collect();
        Stage { pieces, list: Some((list, entries)) }
    }

    fn piece(&mut self, entry: &Entry, at: usize) -> Option<Piece> {
        let offset = self.offset;
        self.offset += entry.len();
        let Entry::Chunk { name, key, encoding, len } = entry else { return None };
        self.ordinal += 1;
        Some(Piece {
            ordinal: self.ordinal - 1,
            at,
            offset,
            name: *name,
            key: key.clone(),
            encoding: *encoding,
            len: *len,
        })
    }
}

/// Somebody who is asked.
struct Source {
    id: CellId,
    name: String,
    via: Via,
    breaks: Cell<u32>,
    /// How often it was dialled anew.
    redials: Cell<u32>,
    /// Why it is asked no more.
    why: RefCell<String>,
    gave: Cell<u64>,
}

enum Via {
    Link(Rc<Link>),
    /// A holder that is no peer, by its card, and the session with it.
    Bearing(Box<Card>, RefCell<Rc<Bearing>>),
}

impl Source {
    async fn session(&self, sync: &Rc<Sync>) -> Result<Session, AskError> {
        match &self.via {
            Via::Link(link) => Ok(link.line(For::Chunks).await?.session.clone()),
            Via::Bearing(card, bearing) => {
                let known = bearing.borrow().session.clone();
                if known.is_alive() {
                    return Ok(known);
                }
                if self.redials.get() >= REDIALS_MAX {
                    return Err(AskError::Stream(io::Error::other("the connection broke")));
                }
                self.redials.set(self.redials.get() + 1);
                let dialled = within(DIAL_TIME_MAX, sync.bearing(card)).await;
                let broken = |why: &str| AskError::Stream(io::Error::other(why.to_owned()));
                let dialled = dialled.ok_or_else(|| broken("it cannot be reached any more"))?;
                let dialled = dialled.map_err(|why| broken(&why.to_string()))?;
                let session = dialled.session.clone();
                bearing.replace(dialled);
                Ok(session)
            }
        }
    }

    /// A request broke that began after so many redials. A session may have been kept that is none any more without having
    /// been told: nobody gets it again.
    fn note_break(&self, redials: u32) {
        self.breaks.set(self.breaks.get() + 1);
        if let (Via::Bearing(_, bearing), true) = (&self.via, self.redials.get() == redials) {
            bearing.borrow().session.close();
        }
    }

    /// Whether it is worth asking again.
    fn may_go_on(&self) -> bool {
        match &self.via {
            Via::Link(link) => link.is_alive(),
            Via::Bearing(_, bearing) => {
                bearing.borrow().session.is_alive() || self.redials.get() < REDIALS_MAX
            }
        }
    }
}

/// What is wanted of one stage, and who was asked for it in vain: a bit for each source.
type Wanted = RefCell<VecDeque<(Piece, u32)>>;

/// Opens a chunk that came for a ticket: the bytes of the file in it.
fn open_piece(piece: &Piece, sealed: Vec<u8>) -> Result<Vec<u8>, &'static str> {
    if sealed.len() != piece.sealed_len() as usize || sha256(&sealed) != piece.name.0 {
        return Err("other bytes than those of the chunk");
    }
    if piece.encoding != ENCODING_RAW {
        return Err("an encoding of a later version");
    }
    let mut bytes =
        open_chunk(&piece.key, piece.encoding, sealed).map_err(|_| "a chunk that does not open")?;
    if bytes[piece.len as usize..].iter().any(|byte| *byte != 0) {
        return Err("a chunk that goes on behind its end");
    }
    bytes.truncate(piece.len as usize);
    Ok(bytes)
}

impl Sync {
    // ---- The Feed ----

    /// What friends have shared, newest first, before number `before`; and the number before which it goes on, if it does.
    pub async fn feed(
        self: &Rc<Self>,
        before: u64,
        limit: usize,
    ) -> Result<(Vec<FeedEntry>, Option<u64>), VaultError> {
        let (books, vault) = (Arc::clone(&self.books), Arc::clone(&self.vault));
        let (rows, peers, now) = (books, self.gate.peers(), self.unix_now());
        let (opened, next) = unblock(move || -> Result<(Vec<(ReceivedRow, Opened)>, _), VaultError> {
            let rows = rows.received(before, limit)?;
            let next = rows.last().map(|row| row.n).filter(|_| rows.len() >= limit);
            let rows = rows.into_iter().filter(|row| row.expires == 0 || row.expires >= now);
            let open = |row: ReceivedRow| {
                let peer = peers.iter().find(|peer| peer.id == row.creator)?;
                let party = Party { id: &peer.id, x25519: &peer.x25519 };
                let opened = grant::open(&row.grant, &vault.identity, party).ok()?;
                Some((row, opened))
            };
            Ok((rows.filter_map(open).collect(), next))
        })
        .await?;
        Ok((opened.into_iter().map(|(row, opened)| self.feed_entry(row, &opened)).collect(), next))
    }

    fn feed_entry(&self, row: ReceivedRow, opened: &Opened) -> FeedEntry {
        let private = &opened.private;
        let safe = |name: &str| safe_name(name.as_bytes()).unwrap_or_else(|_| "_".into());
        let is_near = |id: &CellId| *id == self.vault.id() || self.link(id).is_some();
        let state = match () {
            () if row.is_verified => "verified",
            () if is_near(&row.creator) || private.holders.iter().any(|holder| is_near(&holder.id)) => {
                "available"
            }
            () => "remote",
        };
        FeedEntry {
            from: self.name_of(&row.creator),
            name: safe(&private.name),
            folders: private.share.iter().flat_map(|share| &share.folders).map(|name| safe(name)).collect(),
            media: private.media.clone(),
            holders: private.holders.len(),
            state,
            row,
        }
    }

    /// The granted file whose id begins so.
    pub async fn find_granted(self: &Rc<Self>, id: &str) -> Result<(FeedEntry, Opened), VaultError> {
        let refused = |why: String| Err(VaultError::Refused(why));
        if id.len() < 4 || !id.bytes().all(|c| c.is_ascii_hexdigit()) {
            return refused(
                "name a file of the Feed by the beginning of its id, 4 letters at least; see `grove feed`"
                    .into(),
            );
        }
        let (books, text) = (Arc::clone(&self.books), id.to_owned());
        let mut rows = unblock(move || books.received_like(&text, 2)).await?;
        let row = match (rows.pop(), rows.pop()) {
            (None, _) => {
                return refused(format!("there is no {id} in the Feed; `grove feed` lists what is there"));
            }
            (Some(_), Some(_)) => return refused(format!("{id} means several files; give more of the id")),
            (Some(row), None) => row,
        };
        self.open_received(row).await
    }

    /// Opens a grant that was received.
    pub(super) async fn open_received(
        self: &Rc<Self>,
        row: ReceivedRow,
    ) -> Result<(FeedEntry, Opened), VaultError> {
        let refused = |why: String| Err(VaultError::Refused(why));
        let Some(peer) = self.gate.peer(&row.creator) else {
            return refused("whoever shared it is no peer any more".into());
        };
        let vault = Arc::clone(&self.vault);
        let grant_bytes = row.grant.clone();
        let opened = unblock(move || {
            grant::open(&grant_bytes, &vault.identity, Party { id: &peer.id, x25519: &peer.x25519 })
        });
        let opened = opened.await.map_err(|why| VaultError::Refused(why.to_string()))?;
        if row.expires != 0 && row.expires < self.unix_now() {
            return refused(grant::GrantError::Expired.to_string());
        }
        Ok((self.feed_entry(row, &opened), opened))
    }

    // ---- Fetching ----

    /// Fetches a granted file to the first of `names` that is free, all in one folder; `temp` is where it lies until then.
    /// `told` hears of bytes that are there.
    pub async fn fetch_granted(
        self: &Rc<Self>,
        entry: &FeedEntry,
        opened: Opened,
        names: Vec<PathBuf>,
        temp: PathBuf,
        told: &dyn Fn(u64),
    ) -> Result<FetchedFile, VaultError> {
        if names.iter().all(|name| name.symlink_metadata().is_ok()) {
            let name = names.first().map_or_else(String::new, |name| name.display().to_string());
            return Err(VaultError::Refused(format!(
                "{name} is there already; choose another name with --to"
            )));
        }
        if let Some(folder) = temp.parent().filter(|folder| !folder.is_dir()) {
            return Err(VaultError::Refused(format!(
                "there is no folder {}; make it first, or choose another place with --to",
                folder.display()
            )));
        }
        let (vault, row) = (Arc::clone(&self.vault), entry.row.clone());
        let part = Arc::new(unblock(move || Part::open(&vault.dir, &row, temp)).await?);
        let opened = Arc::new(opened);
        let reader = Reader::new(self, Arc::clone(&opened));
        let (came, there) = (Cell::new(0), Cell::new(0));
        let mut walk = Walk::default();
        loop {
            let mut stage = match walk.step(&opened.manifest.entries) {
                Step::End => break,
                Step::Stage(stage) => stage,
                Step::List(at) => walk.listed(at, reader.list(at).await?),
            };
            let all = std::mem::take(&mut stage.pieces);
            let (had, wanted): (Vec<Piece>, Vec<Piece>) =
                all.into_iter().partition(|piece| part.has(piece.ordinal));
            there.set(there.get() + had.iter().map(|piece| u64::from(piece.len)).sum::<u64>());
            told(there.get());
            let outcome = reader
                .run(&stage, wanted, |piece, bytes| {
                    let len = u64::from(piece.len);
                    let part = Arc::clone(&part);
                    let (came, there) = (&came, &there);
                    async move {
                        unblock(move || part.put((piece.ordinal, piece.offset), &bytes)).await?;
                        came.set(came.get() + len);
                        there.set(there.get() + len);
                        told(there.get());
                        Ok(())
                    }
                })
                .await;
            // Whatever broke off: what has come is not fetched again.
            let noted = Arc::clone(&part);
            unblock(move || noted.note()).await?;
            outcome?;
        }
        let (finished, granted) = (Arc::clone(&part), Arc::clone(&opened));
        let path = unblock(move || finished.finish(&granted, &names)).await?;
        let (books, row) = (Arc::clone(&self.books), entry.row.clone());
        unblock(move || books.note_verified(&row)).await?;
        Ok(FetchedFile { path, bytes: entry.row.size, came: came.get(), from: reader.givers() })
    }

    /// Sends `len` bytes of a granted file from `offset` on, without fetching the rest of it.
    pub async fn read_granted(
        self: &Rc<Self>,
        opened: Opened,
        offset: u64,
        len: u64,
        sender: &smol::channel::Sender<io::Result<Vec<u8>>>,
    ) -> Result<(), VaultError> {
        let opened = Arc::new(opened);
        let reader = Reader::new(self, Arc::clone(&opened));
        let end = offset.saturating_add(len).min(opened.manifest.size);
        // What is sent so far ends here; holes are what lies between chunks.
        let mut at = offset.min(end);
        let mut walk = Walk::default();
        while at < end {
            let mut stage = match walk.step(&opened.manifest.entries) {
                Step::End => break,
                Step::Stage(stage) => stage,
                Step::List(place) => {
                    let Some(Entry::List { len, .. }) = opened.manifest.entries.get(place) else { break };
                    if walk.offset + len <= at {
                        walk.offset += len;
                        continue;
                    }
                    walk.listed(place, reader.list(place).await?)
                }
            };
            let pieces = std::mem::take(&mut stage.pieces);
            for piece in pieces.into_iter().filter(|piece| piece.offset + u64::from(piece.len) > offset) {
                if piece.offset >= end {
                    break;
                }
                if !send_zeros(sender, at, piece.offset).await {
                    return Ok(());
                }
                at = at.max(piece.offset);
                let got: RefCell<Vec<u8>> = RefCell::default();
                reader
                    .run(&stage, vec![piece.clone()], |_, bytes| {
                        *got.borrow_mut() = bytes;
                        std::future::ready(Ok(()))
                    })
                    .await?;
                let mut bytes = got.into_inner();
                bytes.truncate((end - piece.offset).min(piece.len.into()) as usize);
                bytes.drain(..(at - piece.offset) as usize);
                at += bytes.len() as u64;
                if sender.send(Ok(bytes)).await.is_err() {
                    return Ok(());
                }
            }
        }
        send_zeros(sender, at, end).await;
        Ok(())
    }
}

/// `false`: nobody listens any more.
async fn send_zeros(sender: &smol::channel::Sender<io::Result<Vec<u8>>>, from: u64, to: u64) -> bool {
    let mut rest = to.saturating_sub(from);
    while rest > 0 {
        let some = rest.min(1 << 20);
        if sender.send(Ok(vec![0; some as usize])).await.is_err() {
            return false;
        }
        rest -= some;
    }
    true
}

/// Gets chunks of one granted file from whoever has them.
struct Reader {
    sync: Rc<Sync>,
    opened: Arc<Opened>,
    sources: RefCell<Vec<Rc<Source>>>,
    has_looked: Cell<bool>,
}

impl Reader {
    fn new(sync: &Rc<Sync>, opened: Arc<Opened>) -> Self {
        let reader =
            Self { sync: Rc::clone(sync), opened, sources: RefCell::default(), has_looked: Cell::new(false) };
        for id in reader.ids() {
            if let Some(link) = sync.link(&id) {
                reader.add(id, sync.name_of(&id), Via::Link(link));
            }
        }
        reader
    }

    /// Who may have the chunks, the sharer first.
    fn ids(&self) -> Vec<CellId> {
        let mut ids = vec![self.opened.ticket.creator];
        for holder in &self.opened.private.holders {
            if !ids.contains(&holder.id) {
                ids.push(holder.id);
            }
        }
        ids.truncate(SOURCES_MAX);
        ids
    }

    fn add(&self, id: CellId, name: String, via: Via) {
        let source = Source {
            id,
            name,
            via,
            breaks: Cell::new(0),
            redials: Cell::new(0),
            why: RefCell::default(),
            gave: Cell::new(0),
        };
        self.sources.borrow_mut().push(Rc::new(source));
    }

    fn givers(&self) -> Vec<String> {
        let sources = self.sources.borrow();
        sources.iter().filter(|source| source.gave.get() > 0).map(|source| source.name.clone()).collect()
    }

    /// Looks further, once: peers of this cell whom the sharer did not name (chunks move, and a grant tells who had them
    /// then), and those that it named and that are to be dialled. A ticket tells nothing to whoever has no chunk of it.
    async fn look_further(&self) {
        if self.has_looked.replace(true) {
            return;
        }
        for link in self.sync.links() {
            let is_new = self.sources.borrow().iter().all(|source| source.id != link.peer);
            if is_new && link.is_alive() && self.sources.borrow().len() < SOURCES_MAX {
                self.add(link.peer, self.sync.name_of(&link.peer), Via::Link(link));
            }
        }
        // In a simulation there is nobody to dial: peers are connected, or they are not.
        if world::is_simulated() {
            return;
        }
        let known: Vec<CellId> = self.sources.borrow().iter().map(|source| source.id).collect();
        let others = self.ids().into_iter().filter(|id| !known.contains(id) && *id != self.sync.vault.id());
        let cards = others.filter_map(|id| {
            let told = self.opened.private.holders.iter().find(|holder| holder.id == id);
            let of_peer = || Card::from_bytes(&self.sync.gate.peer(&id)?.card).ok();
            of_peer().or_else(|| told?.card.clone())
        });
        let dials = cards.map(|card| async move {
            match within(DIAL_TIME_MAX, self.sync.bearing(&card)).await {
                Some(Ok(bearing)) => Some((card, bearing)),
                _ => None,
            }
        });
        for (card, bearing) in join_all(dials).await.into_iter().flatten() {
            let name = match self.sync.gate.peer(&card.id) {
                Some(peer) => peer.name,
                None => card.id.short(),
            };
            self.add(card.id, name, Via::Bearing(Box::new(card), RefCell::new(bearing)));
        }
    }

    /// A list chunk's entries.
    async fn list(&self, at: usize) -> Result<Vec<Entry>, VaultError> {
        let entries = &self.opened.manifest.entries;
        let bad = |why: &str| VaultError::Record(format!("the granted file's list is {why}"));
        let Some(Entry::List { name, key, entries: count, len }) = entries.get(at) else {
            return Err(bad("not there"));
        };
        let before = entries[..at].iter().filter(|entry| matches!(entry, Entry::List { .. })).count();
        let sum: ListSum = *self.opened.lists.get(before).ok_or_else(|| bad("without its sum"))?;
        // A list is sealed like a chunk: all its bytes count, padding too.
        let padded = sum.sealed_len.checked_sub(TAG_BYTES as u32).ok_or_else(|| bad("too short"))?;
        let piece = Piece {
            ordinal: 0,
            at,
            offset: 0,
            name: *name,
            key: key.clone(),
            encoding: ENCODING_RAW,
            len: padded,
        };
        let got: RefCell<Vec<u8>> = RefCell::default();
        let stage = Stage { pieces: Vec::new(), list: None };
        self.run(&stage, vec![piece], |_, bytes| {
            *got.borrow_mut() = bytes;
            std::future::ready(Ok(()))
        })
        .await?;
        let list = read_list(&got.into_inner())?;
        let is_as_said = list.len() == *count as usize
            && list.iter().map(Entry::len).sum::<u64>() == *len
            && ListSum::of(&list, sum.sealed_len) == sum;
        if is_as_said { Ok(list) } else { Err(bad("not as its manifest says")) }
    }

    /// Gets chunks of a stage; each is given to `each` once, opened and checked.
    async fn run<F: Future<Output = Result<(), VaultError>>>(
        &self,
        stage: &Stage,
        pieces: Vec<Piece>,
        each: impl Fn(Piece, Vec<u8>) -> F,
    ) -> Result<(), VaultError> {
        let wanted: Wanted = RefCell::default();
        for piece in pieces {
            // This cell may itself hold it for the sharer.
            match self.local(&piece).await {
                Some(bytes) => each(piece, bytes).await?,
                None => wanted.borrow_mut().push_back((piece, 0)),
            }
        }
        let failed: RefCell<Option<VaultError>> = RefCell::default();
        for turn in 0..2 {
            if wanted.borrow().is_empty() {
                return Ok(());
            }
            if turn == 1 || self.sources.borrow().is_empty() {
                self.look_further().await;
            }
            let sources = self.sources.borrow().clone();
            let mut workers = Vec::new();
            for n in 0..WORKERS_EACH {
                for (at, source) in sources.iter().enumerate() {
                    if workers.len() < WORKERS_MAX.max(sources.len()) || n == 0 {
                        workers.push(self.work(at, source, stage, &wanted, &failed, &each));
                    }
                }
            }
            join_all(workers).await;
            if let Some(why) = failed.borrow_mut().take() {
                return Err(why);
            }
        }
        let rest = wanted.borrow().len();
        if rest == 0 {
            return Ok(());
        }
        let whys: Vec<String> = self
            .sources
            .borrow()
            .iter()
            .filter(|source| !source.why.borrow().is_empty())
            .map(|source| format!("{}: {}", source.name, source.why.borrow()))
            .collect();
        let why = match whys.is_empty() {
            true => "nobody who has the file is reachable now".to_owned(),
            false => whys.join("; "),
        };
        Err(VaultError::Refused(format!("the file could not be fetched: {why}")))
    }

    /// The bytes of a chunk that lies here: of what this cell keeps for the sharer. It may be any part of the file; the
    /// sharer tells of holders as of when it granted, and of those that have most.
    async fn local(&self, piece: &Piece) -> Option<Vec<u8>> {
        let (vault, piece) = (Arc::clone(&self.sync.vault), piece.clone());
        unblock(move || {
            let sealed = vault.local_chunk(&piece.name).ok()??;
            open_piece(&piece, sealed).ok()
        })
        .await
    }

    /// Asks one source until it has nothing more that is wanted.
    async fn work<F: Future<Output = Result<(), VaultError>>>(
        &self,
        at: usize,
        source: &Source,
        stage: &Stage,
        wanted: &Wanted,
        failed: &RefCell<Option<VaultError>>,
        each: &impl Fn(Piece, Vec<u8>) -> F,
    ) {
        let bit = 1u32 << at.min(31);
        loop {
            if failed.borrow().is_some() || source.breaks.get() > BREAKS_MAX {
                return;
            }
            let mut batch: VecDeque<(Piece, u32)> = {
                let mut wanted = wanted.borrow_mut();
                let (mine, rest): (Vec<_>, Vec<_>) =
                    wanted.drain(..).partition(|(_, tried)| tried & bit == 0);
                let mut mine: VecDeque<_> = mine.into();
                let later = mine.split_off(mine.len().min(BATCH));
                wanted.extend(later.into_iter().chain(rest));
                mine
            };
            if batch.is_empty() {
                return;
            }
            let redials = source.redials.get();
            let outcome = self.ask(source, stage, &mut batch, wanted, bit, each).await;
            // What is left was not answered.
            let is_refused = matches!(outcome, Err(Trouble::Ask(AskError::Refused(_))));
            wanted.borrow_mut().extend(batch.into_iter().map(|(piece, tried)| match is_refused {
                true => (piece, tried | bit),
                false => (piece, tried),
            }));
            match outcome {
                Ok(()) => {}
                Err(Trouble::Here(why)) => {
                    *failed.borrow_mut() = Some(why);
                    return;
                }
                Err(Trouble::Ask(why)) => {
                    *source.why.borrow_mut() = why.to_string();
                    if is_refused {
                        return;
                    }
                    source.note_break(redials);
                    if !source.may_go_on() {
                        return;
                    }
                }
            }
        }
    }

    async fn ask<F: Future<Output = Result<(), VaultError>>>(
        &self,
        source: &Source,
        stage: &Stage,
        batch: &mut VecDeque<(Piece, u32)>,
        wanted: &Wanted,
        bit: u32,
        each: &impl Fn(Piece, Vec<u8>) -> F,
    ) -> Result<(), Trouble> {
        let chunks = self.proofs(stage, batch).await?;
        let _permit = self.sync.permits.pulling.acquire().await;
        let session = source.session(&self.sync).await?;
        let ticket = self.opened.ticket.as_bytes().to_vec();
        let mut getting = message::get_by_ticket(&session, ticket, chunks).await?;
        let mut sealed = Vec::new();
        while let Some((_, status)) = getting.next(&mut sealed).await? {
            let Some((piece, tried)) = batch.pop_front() else { break };
            let opened = match status {
                GetStatus::Found => {
                    let (bytes, piece) = (std::mem::take(&mut sealed), piece.clone());
                    unblock(move || open_piece(&piece, bytes)).await
                }
                GetStatus::Damaged => Err("it found a chunk damaged"),
                _ => Err("it does not have all of it"),
            };
            match opened {
                Ok(bytes) => {
                    source.gave.set(source.gave.get() + 1);
                    each(piece, bytes).await.map_err(Trouble::Here)?;
                }
                Err(why) => {
                    log::debug!("{}: {why}", source.name);
                    why.clone_into(&mut source.why.borrow_mut());
                    wanted.borrow_mut().push_back((piece, tried | bit));
                }
            }
        }
        Ok(())
    }

    /// What is asked for, with proofs that the ticket covers it.
    async fn proofs(
        &self,
        stage: &Stage,
        batch: &VecDeque<(Piece, u32)>,
    ) -> Result<Vec<(ChunkName, u32, Vec<u8>)>, Trouble> {
        let asked: Vec<(usize, ChunkName, u32)> =
            batch.iter().map(|(piece, _)| (piece.at, piece.name, piece.sealed_len())).collect();
        let (opened, list) = (Arc::clone(&self.opened), stage.list.clone());
        unblock(move || {
            let entries = &opened.manifest.entries;
            let prove = |(at, name, len): (usize, ChunkName, u32)| {
                let place = match &list {
                    None => Place::Entry(at),
                    Some((list, of_list)) => Place::InList { list: *list, entries: of_list, at },
                };
                let proof = grant::prove(entries, &opened.lists, place)?;
                Some((name, len, proof))
            };
            asked.into_iter().map(prove).collect::<Option<Vec<_>>>()
        })
        .await
        .ok_or_else(|| Trouble::Here(VaultError::Record("a chunk of the grant cannot be proved".into())))
    }
}

/// Why a request brought nothing.
enum Trouble {
    Ask(AskError),
    Here(VaultError),
}

impl From<AskError> for Trouble {
    fn from(why: AskError) -> Self {
        Self::Ask(why)
    }
}

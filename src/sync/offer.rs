//! Telling friends what they are granted, and holders what was taken back.

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::books::{Books, PeerRow};
use super::driver::Sync;
use super::link::{For, Link};
use super::places::{self, Pass};
use super::share::{Told, refused};
use super::shares::{Arrival, GrantRow, ShareRow, told_of};
use crate::card::Card;
use crate::files::import::EntryCursor;
use crate::grant::{
    self, FOLDERS_MAX, GrantError, GrantMade, HOLDERS_MAX, Holder, ListSum, Party, Private, READ,
    Revocations, Share, Ticket, TicketBody, offered_name,
};
use crate::id::{CellId, ChunkName, FileId};
use crate::keys::random;
use crate::manifest::{Check, Entry, Kind, Manifest, read_list};
use crate::order;
use crate::placement::{CellNumber, DbError, Node, NodeId, Tables};
use crate::pool::unblock;
use crate::seal::ENCODING_RAW;
use crate::vault::{Vault, VaultError};
use crate::wire::message::{self, AskError, ErrorCode, GRANTS_BYTES_MAX, GRANTS_MAX, GrantStatus, Refusal};
use crate::wire::within;

/// Chunks of a file by which its holders are told: all of a file of 1 GiB.
const HOLDERS_BY_CHUNKS: usize = 256;
/// Arrived grants that are looked at for new holders in one round.
const UNHELD_MAX: usize = 500;
/// Of those that named enough, so many are looked at in one round, and after a pause the next: some 5 hours for 100,000.
const TOLD_MAX: usize = 100;
const TOLD_PAUSE: Duration = Duration::from_secs(20);
/// Whoever shares or takes back waits this long for a peer that is connected; others hear of it later.
pub(super) const TELL_TIME_MAX: Duration = Duration::from_secs(5);

impl Sync {
    /// What a round has to say about sharing.
    pub(super) async fn share_round(self: &Rc<Self>, link: &Rc<Link>) -> Result<(), AskError> {
        self.reconcile().await;
        match self.tell_taken_back(link).await {
            Ok(()) => self.offer(link).await,
            // One of an earlier version: all else goes on.
            Err(AskError::Refused(why)) if why.code == ErrorCode::Unsupported => Ok(()),
            Err(why) => Err(why),
        }
    }

    /// Gives a holder the newest list of revocations; in a new life, or since it was last connected, after having taken in
    /// the one that it holds.
    pub(super) async fn tell_taken_back(self: &Rc<Self>, link: &Rc<Link>) -> Result<(), AskError> {
        let _alone = link.telling.lock().await;
        let failed = |why: VaultError| {
            log::warn!("{why}");
            AskError::Refused(Refusal::new(ErrorCode::Failed, "the list of revocations is not readable", ""))
        };
        for _ in 0..3 {
            if !link.has_heard_list.get() {
                let held = message::taken_back(&link.line(For::Small).await?.session).await?;
                if let Ok(list) = Revocations::from_bytes(&held) {
                    if list.creator == self.vault.id() {
                        let (books, vault) = (Arc::clone(&self.books), Arc::clone(&self.vault));
                        let is_new = unblock(move || books.hear_own_list(&vault, &list)).await;
                        if is_new.map_err(failed)? {
                            self.poke_others(&link.peer);
                            self.publish_later();
                        }
                    }
                }
                link.has_heard_list.set(true);
            }
            let (books, vault) = (Arc::clone(&self.books), Arc::clone(&self.vault));
            let own = unblock(move || books.own_list(&vault)).await.map_err(|why| failed(why.into()))?;
            let Some(own) = own.filter(|own| link.told_list.get() != own.number) else { return Ok(()) };
            let session = link.line(For::Small).await?.session.clone();
            let held = message::put_revocations(&session, own.as_bytes()).await?;
            if held <= own.number {
                link.told_list.set(own.number);
                return Ok(());
            }
            // It knows a newer one than this cell: another machine of the same key, or an old disk, wrote here.
            link.has_heard_list.set(false);
        }
        Ok(())
    }

    /// Tells everybody who is connected what was taken back.
    pub(super) async fn tell_all_taken_back(self: &Rc<Self>) -> Told {
        let peers = self.gate.peers();
        let tells = peers.iter().map(|peer| async move {
            let Some(link) = self.link(&peer.id) else { return (peer.name.clone(), false) };
            let told = within(TELL_TIME_MAX, self.tell_taken_back(&link)).await;
            (peer.name.clone(), matches!(told, Some(Ok(()))))
        });
        let mut told = Told::default();
        for (name, has_heard) in futures_util::future::join_all(tells).await {
            if has_heard { told.told.push(name) } else { told.waiting.push(name) }
        }
        told
    }

    /// Offers a friend the grants that wait for it.
    pub(super) async fn offer(self: &Rc<Self>, link: &Rc<Link>) -> Result<(), AskError> {
        let _alone = link.offering.lock().await;
        link.has_offerer.set(false);
        if !self.is_friend(&link.peer) {
            return Ok(());
        }
        self.note_new_holders(link).await;
        let mut has_made = false;
        let outcome = loop {
            match self.offer_some(link).await {
                Ok(0) => break Ok(()),
                Ok(_) => has_made = true,
                Err(AskError::Refused(why)) => {
                    log::info!("{} takes no grants now: {why}", self.name_of(&link.peer));
                    break Ok(());
                }
                Err(why) => break Err(why),
            }
        };
        if has_made {
            self.publish_later();
        }
        outcome
    }

    /// One request's worth of grants; how many rows are settled.
    async fn offer_some(self: &Rc<Self>, link: &Rc<Link>) -> Result<usize, AskError> {
        let Some(peer) = self.gate.peer(&link.peer) else { return Ok(0) };
        let peers = self.gate.peers();
        let places = self.places(&peers);
        let (books, vault, now) = (Arc::clone(&self.books), Arc::clone(&self.vault), self.unix_now());
        let made = unblock(move || make_grants(&vault, &books, &peer, (&peers, &places), now)).await;
        let (grants, rows) = made.map_err(|why| {
            log::warn!("grants cannot be made: {why}");
            AskError::Refused(Refusal::new(ErrorCode::Failed, "grants cannot be made here", ""))
        })?;
        let mut settled: Vec<(GrantRow, u64, Arrival)> = Vec::new();
        let mut is_full = false;
        if !grants.is_empty() {
            let session = link.line(For::Chunks).await?.session.clone();
            let statuses = message::offer_grants(&session, &grants).await?;
            let mut statuses = statuses.into_iter();
            for (row, holders, is_made) in rows {
                let arrival = match is_made.then(|| statuses.next()).flatten() {
                    Some(GrantStatus::Taken | GrantStatus::Known) => Arrival::Arrived,
                    Some(GrantStatus::Full) => {
                        is_full = true;
                        continue;
                    }
                    _ => Arrival::Refused,
                };
                settled.push((row, holders, arrival));
            }
        } else {
            settled.extend(rows.into_iter().map(|(row, holders, _)| (row, holders, Arrival::Refused)));
        }
        let refused = settled.iter().filter(|(_, _, arrival)| *arrival == Arrival::Refused).count();
        if refused > 0 {
            log::warn!("{refused} grants for {} do not hold", self.name_of(&link.peer));
        }
        let (books, count) = (Arc::clone(&self.books), settled.len());
        if let Err(why) = unblock(move || books.note_arrivals(&settled)).await {
            log::warn!("{why}");
            return Ok(0);
        }
        if is_full {
            log::warn!("{} has no room for more grants", self.name_of(&link.peer));
            return Ok(0);
        }
        Ok(count)
    }

    /// Where holders can be reached, as friends are told it now.
    fn places(&self, peers: &[PeerRow]) -> places::Told {
        self.places.borrow_mut().look(peers, self.vault.clock.steady())
    }

    /// What has come to other holders since a friend heard of it, or whose holders are elsewhere now, is offered once more: what
    /// had few of them with each change, and what had enough, of which healing may have moved copies, some at a time.
    async fn note_new_holders(&self, link: &Rc<Link>) {
        let Some(recipient) = self.gate.peer(&link.peer) else { return };
        let peers = self.gate.peers();
        let places = self.places(&peers);
        let state = (self.vault.db.generation(), places.sum());
        let (mut short, mut told) = (link.short_pass.get(), link.told_pass.get());
        let now = self.vault.clock.steady();
        let is_due = link.told_at.get().is_none_or(|at| now.saturating_sub(at) >= TOLD_PAUSE);
        let short_from = short.go_on(state);
        let told_from = if is_due { told.go_on(state) } else { None };
        if short_from.is_none() && told_from.is_none() {
            return;
        }
        if told_from.is_some() {
            link.told_at.set(Some(now));
        }
        let wanted = self.vault.config.copies.saturating_sub(1).max(1);
        let (books, vault) = (Arc::clone(&self.books), Arc::clone(&self.vault));
        let work = move || -> Result<(Pass, Pass), VaultError> {
            let mut rows = Vec::new();
            for (from, is_short, pass, most) in
                [(short_from, true, &mut short, UNHELD_MAX), (told_from, false, &mut told, TOLD_MAX)]
            {
                let Some(from) = from else { continue };
                let page = books.told_grants(&recipient.id, (is_short, wanted), (from, most))?;
                pass.went(page.len(), most);
                rows.extend(page);
            }
            let mut again = Vec::new();
            for row in rows {
                let Some((_, manifest, _)) = vault.db.read(|t| newest(&vault, t, row.file))? else {
                    continue;
                };
                let holders = holders_of(&vault, &manifest, &recipient, &peers)?;
                let now = told_holders(&holders, &places);
                // That nobody has it now is nothing to find it by.
                if !holders.is_empty() && now != row.holders {
                    again.push((row, now, Arrival::Waiting));
                }
            }
            books.note_arrivals(&again)?;
            Ok((short, told))
        };
        match unblock(work).await {
            Ok((short, told)) => {
                link.short_pass.set(short);
                link.told_pass.set(told);
            }
            Err(why) => log::warn!("{why}"),
        }
    }

    /// Offers to every friend who is connected: chunks of what they were granted have come to more holders.
    pub(super) fn offer_all(self: &Rc<Self>) {
        for link in self.links().into_iter().filter(|link| link.is_alive() && self.is_friend(&link.peer)) {
            if link.has_offerer.replace(true) {
                continue;
            }
            let sync = Rc::clone(self);
            self.spawn(async move {
                if let Err(why) = sync.offer(&link).await {
                    log::debug!("offering to {}: {why}", sync.name_of(&link.peer));
                }
            })
            .detach();
        }
    }
}

/// A file's node, newest manifest and that as signed.
fn newest(
    vault: &Vault,
    t: &Tables<'_>,
    file: FileId,
) -> Result<Option<(Node, Manifest, Vec<u8>)>, VaultError> {
    let Some(node) = t.node_of(file)?.filter(|node| node.kind == Kind::File) else { return Ok(None) };
    let Some(bytes) = t.record_at(node.seq)?.filter(|bytes| bytes.len() > 64) else { return Ok(None) };
    let manifest = Manifest::open(&bytes, &vault.master, Check::Trusted)?;
    Ok(Some((node, manifest, bytes)))
}

/// Whether the item at `at` of `count` is one of about `most` that lie all over them: each where there are no more.
fn is_picked(at: usize, count: usize, most: usize) -> bool {
    at % count.div_ceil(most).max(1) == 0
}

/// Chunks by which a file's holders are told, from all over it: its parts may lie at different ones. Pool work, which opens
/// lists; not while the database is read.
fn telling_chunks(vault: &Vault, manifest: &Manifest) -> Vec<ChunkName> {
    let entries = |entry: &Entry| if let Entry::List { entries, .. } = entry { *entries as usize } else { 1 };
    let count: usize = manifest.entries.iter().map(entries).sum();
    let lists = manifest.entries.iter().filter(|entry| matches!(entry, Entry::List { .. }));
    let mut names: Vec<ChunkName> = lists.filter_map(Entry::chunk).collect();
    let all = EntryCursor::new(vault, manifest).enumerate();
    // A list that is not here ends it: what is known by then tells enough.
    let picked =
        all.filter(|(at, _)| is_picked(*at, count, HOLDERS_BY_CHUNKS)).map_while(|(_, entry)| entry.ok());
    names.extend(picked.filter_map(|entry| entry.chunk()));
    names
}

/// Who is counted on for these chunks, those with most of them first.
fn holder_cells(t: &Tables<'_>, names: &[ChunkName]) -> Result<Vec<CellNumber>, DbError> {
    let mut counts: HashMap<CellNumber, usize> = HashMap::new();
    for name in names {
        if let Some(row) = t.chunk(name)? {
            t.copies_of(row.id)?.into_iter().for_each(|cell| *counts.entry(cell).or_default() += 1);
        }
    }
    let mut cells: Vec<(CellNumber, usize)> = counts.into_iter().collect();
    order::sort_by_key(&mut cells, |(cell, count)| (std::cmp::Reverse(*count), *cell));
    Ok(cells.into_iter().map(|(cell, _)| cell).take(HOLDERS_MAX).collect())
}

/// A row and what its recipient is told: of which holders, and whether a grant of it was made.
type Offered = (GrantRow, u64, bool);

/// Makes grants that wait for a peer, as many as one request carries; with their rows, and those of which none can be made.
fn make_grants(
    vault: &Vault,
    books: &Books,
    peer: &PeerRow,
    peers: (&[PeerRow], &places::Told),
    now: u64,
) -> Result<(Vec<Vec<u8>>, Vec<Offered>), VaultError> {
    let (mut grants, mut rows, mut records) = (Vec::new(), Vec::new(), Vec::new());
    let mut bytes = 0;
    for (share, row) in books.waiting_grants(&peer.id, GRANTS_MAX)? {
        if bytes + grant::GRANT_BYTES_MAX > GRANTS_BYTES_MAX {
            break;
        }
        match make_grant(vault, &share, &row, peer, peers, now) {
            Ok(Some((made, holders, grant))) => {
                bytes += grant.len();
                grants.push(grant);
                records.push((row.clone(), made));
                rows.push((row, holders, true));
            }
            // Gone or changed meanwhile: it is looked at again with the next change.
            Ok(None) => rows.push((row, 0, false)),
            Err(why) => {
                log::warn!("a file cannot be shared: {why}");
                rows.push((row, 0, false));
            }
        }
    }
    books.set_tickets(vault, &records)?;
    Ok((grants, rows))
}

/// The grant of one file: its record, which holders it names, its bytes.
fn make_grant(
    vault: &Vault,
    share: &ShareRow,
    row: &GrantRow,
    peer: &PeerRow,
    (peers, places): (&[PeerRow], &places::Told),
    now: u64,
) -> Result<Option<(GrantMade, u64, Vec<u8>)>, VaultError> {
    let wrong = |why: GrantError| refused(why.to_string());
    let Some((node, manifest, signed)) = vault.db.read(|t| newest(vault, t, row.file))? else {
        return Ok(None);
    };
    if manifest.version != row.version {
        return Ok(None);
    }
    let lists = list_sums(vault, &manifest)?;
    let root = grant::root(&manifest.entries, &lists).map_err(wrong)?;
    let folders = match share.is_folder {
        true => match vault.db.read(|t| folders_between(t, &node, share.file))? {
            Some(folders) => folders,
            None => return Ok(None),
        },
        false => Vec::new(),
    };
    let known = row.ticket.as_deref().and_then(|bytes| Ticket::from_bytes(bytes).ok());
    let still =
        |ticket: &Ticket| ticket.root == root && ticket.expires == share.until && ticket.number == row.number;
    let ticket = match known.filter(still) {
        Some(ticket) => ticket,
        None => Ticket::sign(
            &vault.identity,
            TicketBody {
                creator: vault.id(),
                recipient: peer.id,
                id: random(),
                root,
                rights: READ,
                number: row.number,
                // A share that is about to end, on a clock that has gone on meanwhile.
                granted: if share.until == 0 { now } else { now.min(share.until) },
                expires: share.until,
                extensions: Vec::new(),
            },
        )
        .map_err(wrong)?,
    };
    let holders = holders_of(vault, &manifest, peer, peers)?;
    let told = told_holders(&holders, places);
    let file_key = vault.master.file_key(&manifest.salt);
    let name = offered_name(&manifest.owner_part.name);
    let mut private = Private {
        manifest: crate::files::version::hash_of(&signed),
        file: manifest.file,
        version: manifest.version,
        media: media_of(&name).to_owned(),
        name,
        kind: Kind::File,
        size: manifest.size,
        commitment: file_key.commitment(),
        file_key: file_key.0.clone(),
        holders,
        thumbnail: Vec::new(),
        share: share.is_folder.then_some(Share { id: share.id, folders }),
        extensions: Vec::new(),
    };
    let party = Party { id: &peer.id, x25519: &peer.x25519 };
    let bytes = loop {
        match grant::make(&vault.identity, party, &ticket, &private, &signed, &lists) {
            Err(GrantError::TooLong("private part")) => {
                // Ids cost little: whoever knows the holder needs no card.
                let Some(last) = private.holders.iter_mut().rev().find(|holder| holder.card.is_some()) else {
                    return Err(refused("the private part of a grant is too long"));
                };
                last.card = None;
            }
            made => break made.map_err(wrong)?,
        }
    };
    let made = GrantMade {
        ticket,
        file: manifest.file,
        version: manifest.version,
        manifest: private.manifest,
        share: share.is_folder.then_some(share.id),
    };
    Ok(Some((made, told, bytes)))
}

/// What a recipient is told of holders, as one number. Of whom no card is given, no place counts.
fn told_holders(holders: &[Holder], places: &places::Told) -> u64 {
    let place = |holder: &Holder| holder.card.as_ref().map_or(0, |card| places.of(&card.id));
    told_of(&holders.iter().map(|holder| (holder.id, place(holder))).collect::<Vec<_>>())
}

/// Peers that hold a file's chunks, without its recipient; with their cards.
fn holders_of(
    vault: &Vault,
    manifest: &Manifest,
    recipient: &PeerRow,
    peers: &[PeerRow],
) -> Result<Vec<Holder>, VaultError> {
    let names = telling_chunks(vault, manifest);
    let ids = vault.db.read(|t| -> Result<Vec<CellId>, DbError> {
        let cells = holder_cells(t, &names)?;
        let ids = cells.into_iter().map(|cell| t.cell_id(cell)).collect::<Result<Vec<_>, _>>()?;
        Ok(ids.into_iter().flatten().collect())
    })?;
    let holder = |id: CellId| {
        let peer = peers.iter().find(|peer| peer.id == id)?;
        Some(Holder { id, card: Card::from_bytes(&peer.card).ok() })
    };
    // The recipient itself may hold chunks: it need not be told where it lives, but that is worth knowing too.
    Ok(ids
        .into_iter()
        .filter_map(|id| match id == recipient.id {
            true => Some(Holder { id, card: None }),
            false => holder(id),
        })
        .collect())
}

/// The sums of a manifest's lists, which are opened for it one after the other.
fn list_sums(vault: &Vault, manifest: &Manifest) -> Result<Vec<ListSum>, VaultError> {
    let mut sums = Vec::new();
    for entry in &manifest.entries {
        let Entry::List { name, key, .. } = entry else { continue };
        let Some(sealed) = vault.local_chunk(name)? else {
            return Err(refused("a list of a large file is not here yet"));
        };
        let len = sealed.len() as u32;
        let opened = vault.sealer_of(manifest.epoch).open(key, ENCODING_RAW, sealed);
        let entries = read_list(&opened.map_err(|why| VaultError::Record(why.to_string()))?)?;
        sums.push(ListSum::of(&entries, len));
    }
    Ok(sums)
}

/// Names of the folders between a shared folder and a file in it; `None`: it is not in it, or too deep.
fn folders_between(t: &Tables<'_>, node: &Node, folder: FileId) -> Result<Option<Vec<String>>, DbError> {
    let mut names = Vec::new();
    let mut at = node.parent;
    loop {
        let Some(parent) = t.node(at)? else { return Ok(None) };
        if parent.file == folder {
            names.reverse();
            return Ok(Some(names));
        }
        if names.len() >= FOLDERS_MAX || parent.id == NodeId::ROOT {
            return Ok(None);
        }
        names.push(offered_name(&parent.name));
        at = parent.parent;
    }
}

/// A media type by a name's ending, for showing only.
fn media_of(name: &str) -> &'static str {
    let ending = name.rsplit_once('.').map(|(_, ending)| ending.to_ascii_lowercase()).unwrap_or_default();
    match ending.as_str() {
        "jpg" | "jpeg" => "image/jpeg",
        "png" => "image/png",
        "gif" => "image/gif",
        "webp" => "image/webp",
        "svg" => "image/svg+xml",
        "mp4" => "video/mp4",
        "mkv" => "video/x-matroska",
        "mp3" => "audio/mpeg",
        "ogg" => "audio/ogg",
        "flac" => "audio/flac",
        "pdf" => "application/pdf",
        "txt" | "md" => "text/plain",
        "html" => "text/html",
        "zip" => "application/zip",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn which_holders_were_told_and_where_is_one_number_whatever_their_order() {
        let id = |n: u8| (CellId([n; 32]), 0);
        let told = told_of(&[id(1), id(2)]);
        assert_eq!((told, told & 255), (told_of(&[id(2), id(1)]), 2));
        for others in [&[][..], &[id(1)], &[id(1), id(3)], &[id(1), id(2), id(3)], &[id(1), (id(2).0, 7)]] {
            assert_ne!(told, told_of(others));
        }
        assert!(i64::try_from(told_of(&[id(255); HOLDERS_MAX])).is_ok(), "SQLite keeps it as it is");
    }

    #[test]
    fn chunks_that_tell_of_holders_lie_all_over_a_file() {
        let picked = |count: usize| (0..count).filter(|at| is_picked(*at, count, 256)).collect::<Vec<_>>();
        assert!(picked(0).is_empty());
        assert_eq!(picked(1), [0]);
        assert_eq!(picked(256).len(), 256, "all of them, as long as they are few");
        for count in [257, 1000, 4096, 1 << 18] {
            let some = picked(count);
            assert!((128..=256).contains(&some.len()), "{} of {count}", some.len());
            assert!(some.last().unwrap() + count.div_ceil(256) >= count, "to its end");
        }
    }
}

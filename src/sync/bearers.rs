//! Answers about sharing: to friends who grant, to creators who take back, and to whoever shows a ticket.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::books::{Books, PeerRow};
use super::driver::Sync;
use super::received::{ReceivedRow, Reception, mirror};
use super::serve::{Answered, Keeper, reply};
use super::share::refused;
use crate::buffers;
use crate::grant::{self, GrantError, Party, Presented, Revocations, Ticket, allows, allows_chunk};
use crate::id::{CellId, ChunkName};
use crate::placement::{DbError, HoldState, Own};
use crate::pool::unblock;
use crate::vault::{Vault, VaultError};
use crate::wire::message::{self, ErrorCode, GRANTS_BYTES_MAX, GetStatus, GrantStatus, Refusal, Reply};
use crate::wire::session::Stream;
use crate::world::{Sabotage, Timer, is_sabotaged};

/// While a chunk is on its way to a bearer, that counts as a sign of life this often.
const NOTED_EVERY: Duration = Duration::from_secs(10);

impl Sync {
    /// A friend offers grants.
    pub(super) async fn answer_grants(
        self: &Rc<Self>,
        owner: CellId,
        lens: Vec<u32>,
        stream: &mut Stream,
    ) -> Answered {
        // One for each MiB that there may be.
        let places = (0..GRANTS_BYTES_MAX.div_ceil(1 << 20)).map(|_| self.link(&owner)?.body());
        let Some(_places) = places.collect::<Option<Vec<_>>>() else {
            return reply(stream, &super::serve::too_much_at_once()).await;
        };
        let mut grants = Vec::with_capacity(lens.len());
        for len in lens {
            let mut bytes = Vec::new();
            message::read_body(stream, len as usize, &mut bytes).await?;
            grants.push(bytes);
        }
        let bytes = grants.iter().map(|grant| grant.len() as u64).sum();
        if !self.link(&owner).is_some_and(|link| link.may_offer(bytes, self.vault.clock.steady())) {
            let refusal = Refusal::new(ErrorCode::Busy, "enough was granted for this hour", "");
            return reply(stream, &Reply::Error(refusal)).await;
        }
        let Some(peer) = self.gate.peer(&owner).filter(|peer| peer.friendship.are_friends()) else {
            self.refusals.note(format_args!("{}: grants from one who is no friend", owner.short()));
            let refusal = Refusal::new(ErrorCode::NotAllowed, "only friends share", "");
            return reply(stream, &Reply::Error(refusal)).await;
        };
        let (books, vault, now) = (Arc::clone(&self.books), Arc::clone(&self.vault), self.unix_now());
        let received = self.vault.clock.wall().max(0) as u64;
        let taken = unblock(move || take_grants(&vault, &books, &peer, grants, (now, received))).await;
        match taken {
            Ok((statuses, whys, taken)) => {
                if let Some(why) = whys.first() {
                    let count = whys.len();
                    self.refusals.note(format_args!("{}: {count} grants refused: {why}", owner.short()));
                }
                if !taken.is_empty() {
                    self.publish_later();
                    self.wake_keeping();
                }
                reply(stream, &Reply::Grants { statuses }).await?;
                let vault = Arc::clone(&self.vault);
                unblock(move || mirror(&vault, &taken)).await;
                Ok(())
            }
            Err(why) => reply(stream, &super::serve::failed(&why)).await,
        }
    }

    /// A creator tells what it has taken back.
    pub(super) async fn answer_revocations(
        self: &Rc<Self>,
        owner: CellId,
        len: u32,
        stream: &mut Stream,
    ) -> Answered {
        let Some(_place) = self.link(&owner).and_then(|link| link.body()) else {
            return reply(stream, &super::serve::too_much_at_once()).await;
        };
        let mut bytes = Vec::new();
        message::read_body(stream, len as usize, &mut bytes).await?;
        if !self.link(&owner).is_some_and(|link| link.may_list(self.vault.clock.steady())) {
            let refusal = Refusal::new(ErrorCode::Busy, "enough was taken back for this hour", "");
            return reply(stream, &Reply::Error(refusal)).await;
        }
        let (books, vault) = (Arc::clone(&self.books), Arc::clone(&self.vault));
        let taken = unblock(move || -> Result<u64, VaultError> {
            let list = Revocations::from_bytes(&bytes).map_err(|why| refused(why.to_string()))?;
            books.take_list(&vault, &owner, &list)
        });
        match taken.await {
            Ok(number) => {
                self.publish_later();
                self.wake_keeping();
                reply(stream, &Reply::Revocations { number }).await
            }
            Err(VaultError::Refused(why)) => {
                self.refusals.note(format_args!("{}: {why}", owner.short()));
                reply(stream, &Reply::Error(Refusal::new(ErrorCode::Malformed, &why, ""))).await
            }
            Err(why) => reply(stream, &super::serve::failed(&why)).await,
        }
    }

    /// A creator asks what it has taken back, as far as is known here.
    pub(super) async fn answer_taken_back(&self, owner: CellId, stream: &mut Stream) -> Answered {
        let books = Arc::clone(&self.books);
        match unblock(move || books.list_of(&owner)).await {
            Ok((_, list)) => {
                message::answer_taken_back(stream, list.as_ref().map_or(&[], |list| list.as_bytes())).await
            }
            Err(why) => reply(stream, &super::serve::failed(&why.into())).await,
        }
    }

    /// Somebody shows a ticket and wants chunks of its creator.
    pub(super) async fn answer_ticket(
        self: &Rc<Self>,
        caller: CellId,
        ticket: Vec<u8>,
        chunks: Vec<(ChunkName, u32, Vec<u8>)>,
        stream: &mut Stream,
    ) -> Answered {
        let (books, now) = (Arc::clone(&self.books), self.unix_now());
        let own_id = self.vault.id();
        // Whom this cell knows as an owner: others, anybody could make up.
        let mut owners: Vec<CellId> = self.gate.rows().into_iter().map(|row| row.id).collect();
        owners.push(own_id);
        let checked = unblock(move || -> Result<_, VaultError> {
            let ticket =
                Ticket::from_bytes(&ticket).and_then(|ticket| match owners.contains(&ticket.creator) {
                    true => Ok(ticket),
                    false => Err(GrantError::NotFromCreator),
                });
            let (seen, list) = match &ticket {
                Ok(ticket) => list_shown(&books, &ticket.creator)?,
                Err(_) => (0, None),
            };
            let verdict = ticket.and_then(|ticket| {
                let presented =
                    Presented { ticket: &ticket, caller: &caller, list: list.as_ref(), seen, now };
                allows(presented)?;
                for (name, len, proof) in &chunks {
                    allows_chunk(presented, name, *len, proof)?;
                }
                Ok(ticket)
            });
            Ok(verdict.map(|ticket| (ticket, chunks)))
        });
        let (ticket, chunks) = match checked.await {
            Ok(Ok(checked)) => checked,
            Ok(Err(why)) => {
                self.refusals.note(format_args!("{}: ticket refused: {why}", caller.short()));
                let refusal = Refusal::new(ErrorCode::NotAllowed, &why.to_string(), hint(&why));
                return reply(stream, &Reply::Error(refusal)).await;
            }
            Err(why) => return reply(stream, &super::serve::failed(&why)).await,
        };
        self.note_bearer(&caller);
        let _place = self.permits.lending.take(caller).await;
        let (creator, ticket) = (ticket.creator, Arc::new(ticket));
        message::write_reply(stream, &Reply::Get { count: chunks.len() as u32 }).await?;
        for (name, len, _) in chunks {
            let (keeper, books, shown) =
                (Arc::clone(&self.keeper), Arc::clone(&self.books), Arc::clone(&ticket));
            let now = self.unix_now();
            let read = unblock(move || -> Result<_, VaultError> {
                // What is taken back while it is read, or waits for its turn, is served no further.
                if !still_holds(&books, &shown, &caller, now)? {
                    return Ok((GetStatus::Missing, Vec::new()));
                }
                keeper.read_granted(&creator, creator == own_id, &name, len)
            });
            let (status, bytes) = read.await.unwrap_or_else(|why| {
                log::warn!("a chunk for a ticket cannot be read: {why}");
                (GetStatus::Damaged, Vec::new())
            });
            self.lend(&caller, stream, (status, &bytes)).await?;
            buffers::give(bytes);
        }
        Ok(message::finish(stream).await?)
    }

    /// Writes one chunk to a bearer. A slow line is no idleness: how slow it may be is bounded where it is written.
    async fn lend(
        &self,
        caller: &CellId,
        stream: &mut Stream,
        (status, bytes): (GetStatus, &[u8]),
    ) -> std::io::Result<()> {
        let noting = async {
            loop {
                self.note_bearer(caller);
                Timer::after(NOTED_EVERY).await;
            }
        };
        smol::future::or(message::write_got(stream, status, bytes), noting).await
    }
}

/// The creator's list by which tickets are judged, and the number of the newest that was seen.
fn list_shown(books: &Books, creator: &CellId) -> Result<(u64, Option<Revocations>), VaultError> {
    if is_sabotaged(Sabotage::ServesTakenBack) { Ok((0, None)) } else { Ok(books.list_of(creator)?) }
}

/// Whether a ticket that held when it was shown still does.
fn still_holds(books: &Books, ticket: &Ticket, caller: &CellId, now: u64) -> Result<bool, VaultError> {
    let (seen, list) = list_shown(books, &ticket.creator)?;
    Ok(allows(Presented { ticket, caller, list: list.as_ref(), seen, now }).is_ok())
}

fn hint(why: &GrantError) -> &'static str {
    match why {
        GrantError::Revoked | GrantError::Expired => "ask the owner to share it again",
        _ => "",
    }
}

impl Keeper {
    /// A chunk of a ticket's creator, if it is held for him (or is this cell's own) and has this length.
    fn read_granted(
        &self,
        creator: &CellId,
        is_mine: bool,
        name: &ChunkName,
        len: u32,
    ) -> Result<(GetStatus, Vec<u8>), VaultError> {
        let vault = self.vault();
        let is_here = vault.db.change(|t| -> Result<bool, DbError> {
            let Some(row) = t.chunk(name)?.filter(|row| row.place.is_some() && row.len == len) else {
                return Ok(false);
            };
            if is_mine {
                return Ok(t.own(row.id)? != Own::No);
            }
            let cell = t.cell(creator)?;
            let state = t.hold(row.id, cell)?.map(|(_, state)| state);
            Ok(matches!(state, Some(HoldState::Held | HoldState::Trash)) && t.own(row.id)? == Own::No)
        })?;
        if !is_here {
            return Ok((GetStatus::Missing, Vec::new()));
        }
        Ok(match vault.local_chunk(name)? {
            Some(bytes) => (GetStatus::Found, bytes),
            None => (GetStatus::Damaged, Vec::new()),
        })
    }
}

/// What became of grants that came, why some were refused, and those that were taken.
type TakenGrants = (Vec<GrantStatus>, Vec<GrantError>, Vec<(CellId, [u8; 16], Vec<u8>)>);

/// Opens grants that a friend offers and keeps those that hold.
fn take_grants(
    vault: &Vault,
    books: &Books,
    peer: &PeerRow,
    grants: Vec<Vec<u8>>,
    (now, received): (u64, u64),
) -> Result<TakenGrants, VaultError> {
    let (_, list) = books.list_of(&peer.id)?;
    let party = Party { id: &peer.id, x25519: &peer.x25519 };
    let (mut rows, mut statuses, mut whys) = (Vec::new(), Vec::with_capacity(grants.len()), Vec::new());
    for bytes in grants {
        let opened = grant::open(&bytes, &vault.identity, party).and_then(|opened| {
            if list.as_ref().is_some_and(|list| list.revoked.contains(opened.ticket.number)) {
                return Err(GrantError::Revoked);
            }
            if opened.ticket.expires != 0 && opened.ticket.expires < now {
                return Err(GrantError::Expired);
            }
            Ok(opened)
        });
        match opened {
            Ok(opened) => {
                statuses.push(None);
                rows.push(ReceivedRow::of(&opened, received, bytes));
            }
            Err(why) => {
                statuses.push(Some(GrantStatus::Refused));
                whys.push(why);
            }
        }
    }
    let offered: Vec<_> = rows.iter().map(|row| (row.creator, row.ticket, row.grant.clone())).collect();
    let received = books.receive(vault, rows)?;
    let is_taken = received.iter().map(|reception| *reception == Reception::Taken);
    let taken =
        offered.into_iter().zip(is_taken).filter(|(_, is_taken)| *is_taken).map(|(row, _)| row).collect();
    let mut outcome = received.into_iter();
    let status = |known: Option<GrantStatus>| {
        known.unwrap_or_else(|| match outcome.next() {
            Some(Reception::Taken) => GrantStatus::Taken,
            Some(Reception::Known) => GrantStatus::Known,
            Some(Reception::Full) | None => GrantStatus::Full,
        })
    };
    Ok((statuses.into_iter().map(status).collect(), whys, taken))
}

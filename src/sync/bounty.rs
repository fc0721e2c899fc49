//! Bounty between cells: counting in each round, one exchange of figures and statements a day, and what a peer may store for
//! it. What follows from figures is decided in `crate::bounty`; `ledger` keeps the books.
//!
//! The cell with the smaller id asks, the other one answers with a proposal, and the first signs it and shows it. Each of the
//! two messages may be lost, come twice or late: the next exchange begins with the newest statement that each side has.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use super::books::{Books, PEERS_MAX};
use super::driver::Sync;
use super::ledger::{Balance, DayRow, Evidence, HeardAt, PeerBook};
use super::link::Link;
use super::round::RoundError;
use super::serve::Keeper;
use crate::bounty::{
    Allowed, Cause, Facts, Heard, Refused, Seen, Side, Statement, Sums, Taken, Verdict, Why, advice, allowed,
    check_proposal, compare, has_credit, judge, propose,
};
use crate::changes::Part;
use crate::id::CellId;
use crate::order;
use crate::placement::{CellNumber, DbError};
use crate::pool::{Turns, unblock};
use crate::vault::{Alert, Vault, VaultError};
use crate::wire::message::{AskError, ErrorCode, Reply, Request, Settlement};

/// It is counted this often. s.
const COUNT_EVERY_S: u64 = 900;
/// Figures are exchanged this often. s.
const SETTLE_EVERY_S: u64 = 86_400;
/// And again after so long where something was in the way. s.
const SETTLE_AGAIN_S: u64 = 3600;
/// On a new connection, if the last time is so long ago: the other side may have gone back to older books. s.
const SETTLE_ANEW_S: u64 = 600;
/// Messages of one exchange: both may have to take up the other's newest statement first.
const MESSAGES_MAX: usize = 4;

/// The accounts with all peers, as they are in books.db or newer.
#[derive(Default)]
pub(super) struct Ledgers {
    books: RefCell<BTreeMap<CellId, PeerBook>>,
    /// One counts or settles at a time.
    turns: Turns,
    /// When figures were exchanged last, and are next, by peer. Observed seconds; nothing: at once.
    times: RefCell<BTreeMap<CellId, (u64, u64)>>,
}

impl Ledgers {
    fn of(&self, peer: &CellId) -> PeerBook {
        self.books.borrow().get(peer).cloned().unwrap_or_default()
    }

    fn put(&self, peer: CellId, book: PeerBook) {
        self.books.borrow_mut().insert(peer, book);
    }
}

/// Two figures for what one cell has stored for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dispute {
    /// What this cell counts. Byte-hours.
    pub ours: u64,
    /// What the peer counts. Byte-hours.
    pub theirs: u64,
    /// Why they probably differ, in one word.
    pub cause: &'static str,
    /// This cell stores for the peer and finds that it counts too little; otherwise it is the other way round.
    pub is_our_storage: bool,
}

/// This cell's space with a peer, as the peer says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QuotaThere {
    /// Bytes stored there.
    pub used_bytes: u64,
    /// Bytes allowed there; 0: up to the reserve of its disk.
    pub allowed_bytes: u64,
}

/// The account with a peer, for people. Figures in byte-hours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BountyView {
    /// Its name.
    pub name: String,
    /// Who it is.
    pub id: CellId,
    /// What we have stored for it, as both have signed.
    pub earned: u64,
    /// What it has stored for us, as both have signed.
    pub spent: u64,
    /// Of what it has stored for us, what is proven and not signed yet.
    pub unsigned: u64,
    /// What waits for its first proof.
    pub waiting: u64,
    /// What was taken back because copies were lost.
    pub forfeited: u64,
    /// Proofs that it gave.
    pub proofs_passed: u64,
    /// And that it could not give.
    pub proofs_failed: u64,
    /// Bytes that it stores here.
    pub used_bytes: u64,
    /// And may store here.
    pub allowed: Allowed,
    /// Our bytes with it, if it was here since the start.
    pub there: Option<QuotaThere>,
    /// `ok`, `vetting`, `suspended` or `disputed`.
    pub state: &'static str,
    /// Where the two do not agree.
    pub dispute: Option<Dispute>,
    /// Number and end (Unix seconds) of the newest statement.
    pub statement: Option<(u64, u64)>,
    /// Numbers under which it has signed two statements.
    pub forks: Vec<u64>,
}

struct Counting {
    vault: Arc<Vault>,
    books: Arc<Books>,
    keeper: Arc<Keeper>,
    peer: CellId,
    cell: CellNumber,
    /// Since when the two are connected. Observed seconds.
    since: u64,
}

impl Counting {
    /// Counts on to this moment. Blocks.
    fn count(&self, book: &mut PeerBook) -> Result<(), VaultError> {
        // Up to when it was counted is durable in the books: were the time itself lost with the power, nothing would be counted
        // until it has come so far again, and the holder would find that it is short.
        self.vault.anchor_time()?;
        let cell = self.cell;
        let (proven_bytes, unproven_bytes, lost_id, lost) = self.vault.db.read(|t| t.bounty_sums(cell))?;
        let held_bytes = self.keeper.totals(&self.peer)?.bytes;
        let sums = Sums { proven_bytes, unproven_bytes, held_bytes, lost_id, lost };
        book.counts.take(&Seen { now: self.vault.now(), since: self.since, sums });
        Ok(())
    }
}

/// What came of one message of a peer's.
#[derive(Debug, Default)]
struct Outcome {
    /// The books have a newer statement.
    is_newer: bool,
    /// Why something of it was not taken.
    refused: Option<String>,
}

/// What a cell is to the account with a peer.
struct Party {
    counting: Counting,
    us: CellId,
    side: Side,
    life: u32,
    wall: u64,
}

impl Party {
    fn settlement(&self, book: &PeerBook, wants: bool, proposal: Option<&Statement>) -> Settlement {
        Settlement {
            wants,
            heard: Heard {
                life: self.life,
                measured: book.counts.measured(),
                waiting: book.counts.waiting(),
                forfeited: book.counts.forfeited(),
                debt: book.counts.debt(),
                claimed: book.counts.claim.low(),
                unix_s: self.wall,
                disagrees: book.heard.is_some_and(|heard| heard.short.is_some()) || book.is_forked,
            },
            newest: book.newest.as_ref().map(Statement::to_bytes).unwrap_or_default(),
            proposal: proposal.map(Statement::to_bytes).unwrap_or_default(),
        }
    }

    fn take(&self, book: &mut PeerBook, statement: &Statement) -> Result<(), VaultError> {
        let Counting { vault, books, peer, .. } = &self.counting;
        books.take_statement(peer, self.side, statement, book)?;
        Books::statement_record(vault, peer, statement)?;
        Ok(())
    }

    fn keep_fork(&self, book: &mut PeerBook, other: &Statement) -> Result<(), VaultError> {
        let Some(newest) = &book.newest else { return Ok(()) };
        let found =
            Evidence { seq: other.seq, one: newest.to_bytes(), other: other.to_bytes(), found: self.wall };
        let Counting { books, peer, .. } = &self.counting;
        books.keep_evidence(peer, &found)?;
        book.is_forked = books.bounty_book(peer)?.is_forked;
        Ok(())
    }

    /// Takes in what a peer tells: its newest statement, and its figures. Blocks.
    fn hear(&self, book: &mut PeerBook, told: &Settlement) -> Result<Outcome, VaultError> {
        let mut outcome = Outcome::default();
        if !told.newest.is_empty() {
            match Statement::whole_from_bytes(&told.newest) {
                Err(why) => outcome.refused = Some(why.to_string()),
                Ok(given) => match judge(&self.us, &self.counting.peer, book.newest.as_ref(), &given) {
                    Ok(Taken::Known) => {}
                    Ok(Taken::Newer) => {
                        self.take(book, &given)?;
                        outcome.is_newer = true;
                    }
                    Err(why) => {
                        if why == Refused::Forked {
                            self.keep_fork(book, &given)?;
                        }
                        outcome.refused = Some(why.to_string());
                    }
                },
            }
        }
        let newest = book.newest.clone();
        let signed = newest.as_ref().map(|newest| (newest.body(), self.side));
        let now = self.counting.vault.now();
        let verdict =
            compare(&mut book.counts.claim, told.heard.measured, &told.heard, signed, now, self.wall);
        let short = if let Verdict::Short(cause) = verdict { Some(cause) } else { None };
        book.heard = Some(HeardAt { at: self.wall, heard: told.heard, short });
        Ok(outcome)
    }

    /// The next statement, if there is anything new to sign: this cell has the larger id. Blocks.
    fn propose(&self, book: &mut PeerBook) -> Result<Option<Statement>, VaultError> {
        let Some(HeardAt { heard, short: None, .. }) = book.heard else { return Ok(None) };
        if book.is_forked {
            return Ok(None);
        }
        let Counting { vault, books, peer, .. } = &self.counting;
        let lives = [self.life, heard.life];
        let measured = [book.counts.measured(), heard.measured];
        let cells = [*peer, self.us];
        let Some(body) = propose(cells, book.newest.as_ref(), book.proposed, lives, measured, self.wall)
        else {
            return Ok(None);
        };
        books.note_proposed(peer, body.seq)?;
        book.proposed = body.seq;
        match Statement::sign(&vault.identity, body) {
            Ok(statement) => Ok(Some(statement)),
            Err(why) => Err(VaultError::Refused(why.to_string())),
        }
    }

    /// Countersigns what the other one proposes, if it is right: this cell has the smaller id. Blocks.
    fn countersign(&self, book: &mut PeerBook, bytes: &[u8]) -> Result<Outcome, VaultError> {
        let refused = |why: String| Ok(Outcome { is_newer: false, refused: Some(why) });
        let given = match Statement::from_bytes(bytes) {
            Ok(given) => given,
            Err(why) => return refused(why.to_string()),
        };
        if given.side(&self.counting.peer) != Some(Side::High) {
            return refused(Refused::Foreign.to_string());
        }
        let newest = book.newest.as_ref();
        let heard = book.heard.map(|heard| heard.heard).unwrap_or_default();
        let signed = newest.map(|newest| (newest.body(), self.side));
        let now = self.counting.vault.now();
        let figure = given.stored_by(Side::Low);
        let mut claim = book.counts.claim;
        let verdict = compare(&mut claim, figure, &heard, signed, now, self.wall);
        let measured = book.counts.measured();
        if let Err(why) = check_proposal(&self.us, newest, &given, self.life, measured, verdict, self.wall) {
            if why == Refused::Forked {
                self.keep_fork(book, &given)?;
            }
            return refused(why.to_string());
        }
        let whole = given
            .signed_by(&self.counting.vault.identity)
            .map_err(|why| VaultError::Refused(why.to_string()))?;
        self.take(book, &whole)?;
        Ok(Outcome { is_newer: true, refused: None })
    }
}

impl Sync {
    /// Reads the accounts with all peers.
    pub(super) async fn load_bounty(&self) -> Result<(), VaultError> {
        let books = Arc::clone(&self.books);
        let (found, faults) =
            unblock(move || Ok::<_, DbError>((books.bounty_books()?, books.bounty_faults()?))).await?;
        if !faults.is_empty() {
            self.vault.raise("bounty-books", Alert {
                text: format!("the accounts of the bounty do not balance: {}", faults.join("; ")),
                remedy: "books.db was changed by hand, or the disk is failing: look at it, and put books.db back from a backup".into(),
            });
        }
        *self.ledgers.books.borrow_mut() = order::map(found.into_iter().take(2 * PEERS_MAX));
        self.tell_disputes();
        Ok(())
    }

    fn party(&self, link: &Link) -> Party {
        let us = self.vault.id();
        Party {
            us,
            side: Side::of(&us, &link.peer),
            life: self.vault.life(),
            wall: self.vault.clock.wall().max(0) as u64,
            counting: Counting {
                vault: Arc::clone(&self.vault),
                books: Arc::clone(&self.books),
                keeper: Arc::clone(&self.keeper),
                peer: link.peer,
                cell: link.cell,
                since: link.connected_at.get(),
            },
        }
    }

    /// What is due with one peer: a step of a round.
    pub(super) async fn bounty_round(self: &Rc<Self>, link: &Rc<Link>) -> Result<(), RoundError> {
        let now = self.vault.now();
        let counted_at = self.ledgers.of(&link.peer).counts.at();
        let is_asking = Side::of(&self.vault.id(), &link.peer) == Side::Low;
        let times = self.ledgers.times.borrow().get(&link.peer).copied();
        let is_time = |(last_at, next_at): (u64, u64)| {
            let is_anew = !link.has_told_figures.get() && now >= last_at + SETTLE_ANEW_S;
            // Observed time may be behind what it was, with another database.
            is_anew || now >= next_at || next_at > now + SETTLE_EVERY_S
        };
        let is_due = is_asking && !link.is_deaf_to_figures.get() && times.is_none_or(is_time);
        if !is_due && now >= counted_at && now < counted_at + COUNT_EVERY_S {
            return Ok(());
        }
        if is_due { self.settle(link).await } else { self.count(link).await }
    }

    async fn count(&self, link: &Link) -> Result<(), RoundError> {
        let _alone = self.ledgers.turns.lock().await;
        let (party, mut book) = (self.party(link), self.ledgers.of(&link.peer));
        let book = unblock(move || -> Result<PeerBook, VaultError> {
            party.counting.count(&mut book)?;
            party.counting.books.save_counts(&party.counting.peer, &book)?;
            Ok(book)
        })
        .await?;
        self.ledgers.put(link.peer, book);
        Ok(())
    }

    /// Exchanges figures with a peer, and signs them.
    async fn settle(self: &Rc<Self>, link: &Rc<Link>) -> Result<(), RoundError> {
        // Figures change with every second: one statement is enough, and then it is only shown.
        let (mut is_settled, mut has_signed) = (true, false);
        for _ in 0..MESSAGES_MAX {
            let told = {
                let _alone = self.ledgers.turns.lock().await;
                let (party, mut book) = (self.party(link), self.ledgers.of(&link.peer));
                let (told, book) = unblock(move || -> Result<_, VaultError> {
                    party.counting.count(&mut book)?;
                    party.counting.books.save_counts(&party.counting.peer, &book)?;
                    Ok((party.settlement(&book, !has_signed, None), book))
                })
                .await?;
                self.ledgers.put(link.peer, book);
                told
            };
            let answer = match link.ask(&Request::Settle(told)).await {
                Ok(Reply::Settle(answer)) => answer,
                // Whatever it is, it must not keep the rest of the round from being done.
                Ok(_) | Err(AskError::OutOfTurn | AskError::Malformed(_) | AskError::TooLong(_)) => {
                    self.refusals.note(format_args!("{}: no answer about figures", link.peer.short()));
                    is_settled = false;
                    break;
                }
                // One of an earlier version, or one that has heard enough for now: all else goes on.
                Err(AskError::Refused(why)) => {
                    log::debug!("{} does not settle now: {why}", self.name_of(&link.peer));
                    link.is_deaf_to_figures.set(why.code == ErrorCode::Unsupported);
                    is_settled = false;
                    break;
                }
                Err(why) => return Err(why.into()),
            };
            let _alone = self.ledgers.turns.lock().await;
            let (party, mut book) = (self.party(link), self.ledgers.of(&link.peer));
            let (outcome, signed, book) = unblock(move || -> Result<_, VaultError> {
                let mut outcome = party.hear(&mut book, &answer)?;
                let mut has_signed = has_signed;
                if !answer.proposal.is_empty() && !has_signed {
                    let signed = party.countersign(&mut book, &answer.proposal)?;
                    has_signed = signed.is_newer;
                    outcome.is_newer |= signed.is_newer;
                    outcome.refused = outcome.refused.or(signed.refused);
                }
                party.counting.books.save_counts(&party.counting.peer, &book)?;
                Ok((outcome, has_signed, book))
            })
            .await?;
            self.ledgers.put(link.peer, book);
            let was_shown = has_signed;
            has_signed = signed;
            if let Some(why) = &outcome.refused {
                self.refusals.note(format_args!("{}: {why}", link.peer.short()));
                is_settled = false;
            }
            if was_shown || !outcome.is_newer {
                break;
            }
        }
        let pause = if is_settled { SETTLE_EVERY_S } else { SETTLE_AGAIN_S };
        let now = self.vault.now();
        self.ledgers.times.borrow_mut().insert(link.peer, (now, now + pause));
        link.has_told_figures.set(true);
        self.tell_disputes();
        Ok(())
    }

    /// A peer tells its figures: ours, and the next statement if there is one; `None`: it has told them too often.
    pub(super) async fn answer_settle(
        self: &Rc<Self>,
        owner: &CellId,
        told: Settlement,
    ) -> Result<Option<Settlement>, VaultError> {
        let Some(link) = self.link(owner) else { return Ok(None) };
        if !link.may_settle(self.vault.clock.steady()) {
            return Ok(None);
        }
        let _alone = self.ledgers.turns.lock().await;
        let (party, mut book) = (self.party(&link), self.ledgers.of(owner));
        let (answer, refused, book) = unblock(move || -> Result<_, VaultError> {
            party.counting.count(&mut book)?;
            let outcome = party.hear(&mut book, &told)?;
            // What the other one has just shown is new here; and only one of the two proposes.
            let is_wanted = told.wants && party.side == Side::High;
            let proposal = if is_wanted { party.propose(&mut book)? } else { None };
            party.counting.books.save_counts(&party.counting.peer, &book)?;
            Ok((party.settlement(&book, false, proposal.as_ref()), outcome.refused, book))
        })
        .await?;
        self.ledgers.put(*owner, book);
        if let Some(why) = refused {
            self.refusals.note(format_args!("{}: {why}", owner.short()));
        }
        self.tell_disputes();
        Ok(Some(answer))
    }

    // ---- What follows ----

    fn facts(&self, peer: &super::PeerRow) -> Facts {
        let config = &self.vault.config;
        let books = self.ledgers.books.borrow();
        let book = books.get(&peer.id);
        let sums = book.map(|book| *book.counts.sums()).unwrap_or_default();
        let (has_proven, is_suspended) = self.proves(&peer.id);
        Facts {
            said_bytes: peer.quota_bytes,
            default_bytes: config.quota_bytes,
            base_bytes: config.bounty_base_bytes,
            ratio_percent: config.bounty_ratio_percent,
            friend_bytes: config.bounty_friend_bytes,
            vetting_bytes: config.bounty_vetting_bytes,
            is_friend: peer.friendship.are_friends(),
            is_favorite: peer.is_favorite,
            stored_bytes: sums.proven_bytes,
            has_proven,
            is_suspended,
            is_disputed: book
                .is_some_and(|book| book.is_forked || book.heard.is_some_and(|heard| heard.short.is_some())),
            used_bytes: sums.held_bytes,
        }
    }

    /// Bytes that a peer may store here; 0: up to the reserve.
    pub(super) fn quota(&self, id: &CellId) -> u64 {
        // Of a peer that was removed, what is here is given back, and nothing comes.
        let Some(peer) = self.gate.peer(id) else { return self.vault.config.quota_bytes };
        allowed(&self.facts(&peer)).bytes.map_or(0, |bytes| bytes.max(1))
    }

    /// Whether the balance with a peer allows to store more there.
    pub(super) fn has_credit(&self, link: &Link) -> bool {
        let Some(peer) = self.gate.peer(&link.peer) else { return false };
        let facts = self.facts(&peer);
        let there = link.usage.get().map_or(0, |usage| usage.used);
        has_credit(&facts, there, facts.used_bytes)
    }

    /// Tells of peers with whom figures differ, and that figures are new.
    fn tell_disputes(&self) {
        self.vault.changes.note(Part::Bounty);
        let books = self.ledgers.books.borrow();
        let told: Vec<String> = self
            .gate
            .peers()
            .iter()
            .filter_map(|peer| {
                let book = books.get(&peer.id)?;
                if book.is_forked {
                    return Some(format!("{} has signed two statements of one number", peer.name));
                }
                let heard = book.heard?;
                let cause = heard.short?;
                Some(format!(
                    "{} counts {} of storage by this cell, and this cell counts {} ({cause})",
                    peer.name,
                    leaves(heard.heard.measured),
                    leaves(book.counts.claim.low()),
                ))
            })
            .collect();
        if told.is_empty() {
            self.vault.clear("bounty-dispute");
            return;
        }
        self.vault.raise("bounty-dispute", Alert {
            text: told.join("; "),
            remedy: "what is stored stays, but the peer can store nothing more here until the figures agree. See `grove bounty`; if the \
                     peer is right, `grove bounty --accept PEER` takes its figure"
                .into(),
        });
    }

    /// This cell's user takes a peer's figure for what this cell has stored for it, and goes on with it.
    pub async fn accept_figure(&self, id: &CellId) -> Result<(), VaultError> {
        if self.gate.peer(id).is_none() {
            return Err(VaultError::Refused("there is no such peer; see `grove peers`".into()));
        }
        let _alone = self.ledgers.turns.lock().await;
        let (books, peer, mut book) = (Arc::clone(&self.books), *id, self.ledgers.of(id));
        let short = book.heard.and_then(|heard| heard.short);
        let (figure, debt) = book.heard.map_or((0, 0), |heard| (heard.heard.measured, heard.heard.debt));
        let newest = book.newest.as_ref();
        let signed = newest.map_or(0, |newest| newest.stored_by(Side::of(&self.vault.id(), id)));
        let name = self.name_of(id);
        if !book.is_forked && short.is_none() {
            return Err(VaultError::Refused(format!(
                "there is nothing to take: this cell has nothing against what {name} counts. See `grove bounty`"
            )));
        }
        if !book.is_forked && figure < signed {
            // It would be found to be too low again the next time, for no figure goes back.
            return Err(VaultError::Refused(format!(
                "{name} counts less than it has signed itself, so its figure cannot be taken: its signature holds. The two of you agree again \
                 once it goes on from the newest statement, which it is shown whenever figures are exchanged"
            )));
        }
        let book = unblock(move || -> Result<PeerBook, VaultError> {
            book.counts.give_in(figure.max(signed), debt);
            if let Some(heard) = &mut book.heard {
                heard.short = None;
            }
            books.pass_over_evidence(&peer)?;
            books.save_counts(&peer, &book)?;
            book.is_forked = false;
            Ok(book)
        })
        .await?;
        self.ledgers.put(*id, book);
        self.ledgers.times.borrow_mut().remove(id);
        self.tell_disputes();
        if let Some(link) = self.link(id) {
            link.nudge();
        }
        Ok(())
    }

    /// The accounts with all peers, in the order in which they came.
    pub async fn bounty(&self) -> Result<Vec<BountyView>, VaultError> {
        let peers = self.gate.peers();
        let ids: Vec<CellId> = peers.iter().map(|peer| peer.id).collect();
        let (books, keeper) = (Arc::clone(&self.books), Arc::clone(&self.keeper));
        let rows = unblock(move || -> Result<Vec<_>, VaultError> {
            let balances = order::map(books.balances()?);
            ids.iter()
                .map(|id| {
                    let balance = balances.get(id).copied().unwrap_or_default();
                    let forks = books.evidence(id)?.into_iter().map(|found| found.seq).collect::<Vec<_>>();
                    Ok((balance, forks, keeper.totals(id)?.bytes))
                })
                .collect()
        })
        .await?;
        let proofs = self.proofs();
        let view = |(peer, (balance, forks, used_bytes)): (super::PeerRow, (Balance, Vec<u64>, u64))| {
            let book = self.ledgers.of(&peer.id);
            let facts = Facts { used_bytes, ..self.facts(&peer) };
            let proved = proofs.iter().find(|view| view.id == peer.id).map(|view| view.proved);
            let proved = proved.unwrap_or_default();
            let usage = self.links.borrow().get(&peer.id).and_then(|link| link.usage.get());
            let allowed = allowed(&facts);
            BountyView {
                earned: balance.earned,
                spent: balance.spent,
                unsigned: book.counts.measured().saturating_sub(balance.spent),
                waiting: book.counts.waiting(),
                forfeited: book.counts.forfeited(),
                proofs_passed: proved.proven,
                proofs_failed: proved.lost(),
                used_bytes,
                allowed,
                there: usage.map(|usage| QuotaThere { used_bytes: usage.used, allowed_bytes: usage.quota }),
                state: match allowed.why {
                    Why::Disputed => "disputed",
                    Why::Suspended => "suspended",
                    Why::Vetting => "vetting",
                    _ => "ok",
                },
                dispute: dispute(&book),
                statement: book.newest.as_ref().map(|newest| (newest.seq, newest.until)),
                forks,
                id: peer.id,
                name: peer.name,
            }
        };
        Ok(peers.into_iter().zip(rows).map(view).collect())
    }

    /// What the user can do where this cell's own credit runs out.
    pub fn bounty_advice(&self, views: &[BountyView]) -> Vec<String> {
        let mut told: Vec<String> = views
            .iter()
            .filter_map(|view| {
                let there = view.there?;
                advice(&view.name, there.used_bytes, there.allowed_bytes)
            })
            .collect();
        told.extend(views.iter().filter(|view| view.state == "suspended").map(|view| {
            format!(
                "{} has failed proofs and stores nothing more here until it passes one; what was lost is copied again",
                view.name
            )
        }));
        told
    }

    /// What was posted, by days, in byte-hours: with one peer, or with all.
    pub async fn bounty_days(&self, peer: Option<CellId>) -> Result<Vec<DayRow>, VaultError> {
        let books = Arc::clone(&self.books);
        Ok(unblock(move || books.bounty_days(peer.as_ref())).await?)
    }
}

fn leaves(byte_hours: u64) -> String {
    let thousandths = crate::bounty::milli_leaves(byte_hours.min(i64::MAX as u64) as i64);
    format!("{}.{:03} leaves", thousandths / 1000, thousandths % 1000)
}

fn dispute(book: &PeerBook) -> Option<Dispute> {
    let heard = book.heard?;
    if book.is_forked {
        let (ours, theirs) = (book.counts.claim.low(), heard.heard.measured);
        return Some(Dispute { ours, theirs, cause: "two_statements", is_our_storage: true });
    }
    if let Some(cause) = heard.short {
        let (ours, theirs) = (book.counts.claim.low(), heard.heard.measured);
        return Some(Dispute { ours, theirs, cause: cause.as_str(), is_our_storage: true });
    }
    heard.heard.disagrees.then(|| Dispute {
        ours: book.counts.measured(),
        theirs: heard.heard.claimed,
        cause: if book.counts.forfeited() > 0 { Cause::Proofs } else { Cause::Unknown }.as_str(),
        is_our_storage: false,
    })
}

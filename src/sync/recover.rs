//! The way back: from a phrase and any peer's address to head, catalog, tree and books. The bytes of files follow later,
//! by `Sync::fetch`, while the cell is in use.
//!
//! Steps are durable one by one, and nothing is published before all are done: after a kill the caller begins anew with
//! an empty placement.db. Segments that are in the store already are not fetched again. What the peer lacks or has damaged
//! of the catalog is asked of the peers that the rest of the catalog names.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use smol::lock::Semaphore;

use super::books::{Books, PEERS_MAX, PeerRow};
use super::round::{RoundError, local, pull};
use super::{HeadFacts, tips};
use crate::card::{Card, relayed};
use crate::catalog::{CatalogError, Head, RecordKind, open_segment, read_segment};
use crate::id::{BodyHash, CellId, ChunkName};
use crate::order;
use crate::placement::{DbError, Own};
use crate::pool::unblock;
use crate::publish;
use crate::relay::Url;
use crate::relay::client::{Options, connect};
use crate::relay::url::BadUrl;
use crate::vault::{Vault, VaultError};
use crate::wire::handshake::{Approach, Established, HandshakeError, initiate};
use crate::wire::message::{self, AskError};
use crate::wire::session::{self, Limits, Session, SessionError};
use crate::wire::tcp::{self, DialError, STAGGER};
use crate::wire::{BoxStream, Transport, race};

/// Settings brought back, at most.
const SETTINGS_MAX: usize = 1024;

/// What came back.
#[derive(Debug, Clone)]
pub struct RecoverReport {
    /// Name of the peer that gave it.
    pub from: String,
    /// Where it answered.
    pub address: String,
    /// Life and sequence of the newest head that was found.
    pub head: (u32, u64),
    /// The life that begins.
    pub life: u32,
    /// Records of the catalog.
    pub records: u64,
    /// Files, folders and links in the tree.
    pub files: u64,
    /// Heads of other lives that were merged.
    pub merged: u64,
    /// Heads of other lives that lack a part where they are kept, and were left out.
    pub broken: u64,
    /// Peers in the books.
    pub peers: u64,
    /// Settings as (key, JSON text), to be adopted into config.json.
    pub settings: Vec<(String, String)>,
}

/// Why nothing came back.
#[derive(Debug)]
pub enum RecoverError {
    /// Nobody answered at the address.
    Unreachable(DialError),
    /// A cell answered with silence: it keeps nothing under this phrase.
    Silence(DialError),
    /// It knows the phrase and has no catalog.
    NoHeads { from: String },
    /// It has a catalog, but not all of it.
    Incomplete { from: String, missing: usize, why: String },
    /// The conversation broke off.
    Ask(AskError),
    /// This disk has no room for the catalog.
    Full(VaultError),
    /// Something failed here.
    Vault(VaultError),
}

impl fmt::Display for RecoverError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable(why) => write!(f, "the peer cannot be reached: {why}"),
            Self::Silence(why) => write!(
                f,
                "a cell answered and said nothing: the phrase is another one's, or that cell keeps nothing for you ({why})"
            ),
            Self::NoHeads { from } => {
                write!(
                    f,
                    "{from} knows this phrase and has no catalog of it yet; try the address of another peer"
                )
            }
            Self::Incomplete { from, missing, why } => write!(
                f,
                "{from} could not give {missing} parts of the catalog ({why}); try again, or the address of another peer"
            ),
            Self::Ask(why) => write!(f, "{why}; run it again, it goes on where it was"),
            Self::Full(why) => write!(f, "{why}; free some space and run it again, it goes on where it was"),
            Self::Vault(why) => why.fmt(f),
        }
    }
}

impl std::error::Error for RecoverError {}

impl From<AskError> for RecoverError {
    fn from(why: AskError) -> Self {
        Self::Ask(why)
    }
}

impl From<VaultError> for RecoverError {
    fn from(why: VaultError) -> Self {
        Self::Vault(why)
    }
}

/// A peer that lets the owner of this phrase read.
struct Reached {
    address: String,
    established: Established<BoxStream>,
    /// Keeps the connection to a relay moving, and ends with it.
    carrier: Pin<Box<dyn Future<Output = ()>>>,
}

async fn reach(vault: &Vault, address: &str) -> Result<Reached, (String, HandshakeError)> {
    let approach = Approach::Recovery { secret: vault.master.recovery_secret() };
    let failed = |why: HandshakeError| (address.to_owned(), why);
    let unreachable = |why: String| failed(HandshakeError::Unreachable(std::io::Error::other(why)));
    let Some((id, url)) = relayed(address) else {
        let greet = |stream| {
            let stream: BoxStream = Box::new(stream);
            initiate(stream, Transport::Tcp, &vault.identity, &[], &approach)
        };
        let dialled = tcp::dial(&[address.to_owned()], greet).await;
        let (at, established) = dialled.map_err(|mut why| {
            failed(why.attempts.pop().map_or(HandshakeError::TimedOut, |(_, error)| error))
        })?;
        let carrier = Box::pin(std::future::pending());
        return Ok(Reached { address: at.to_string(), established, carrier });
    };
    let url: Url = url.parse().map_err(|why: BadUrl| unreachable(why.to_string()))?;
    let connected = connect(&url, &vault.identity, &Options::of(&vault.config)).await;
    let (client, driver) = connected.map_err(|why| unreachable(why.to_string()))?;
    let mut carrier: Pin<Box<dyn Future<Output = ()>>> = Box::pin(async {
        driver.await;
    });
    let greeting = async {
        let circuit = client.open(&id).await.map_err(|why| unreachable(why.to_string()))?;
        let stream: BoxStream = Box::new(circuit);
        initiate(stream, Transport::Relay, &vault.identity, &[], &approach).await.map_err(failed)
    };
    let established = smol::future::or(greeting, async {
        carrier.as_mut().await;
        Err(unreachable("the connection to the relay broke".into()))
    });
    let established = established.await?;
    Ok(Reached { address: String::new(), established, carrier })
}

/// Brings the catalog, the tree and the books back from the peer at one of `addresses` (`host:port`, or `ID@URL` of a relay), into an empty placement.db.
pub async fn fetch_catalog(
    vault: &Arc<Vault>,
    books: &Arc<Books>,
    addresses: &[String],
) -> Result<RecoverReport, RecoverError> {
    let attempts = addresses.iter().map(|address| reach(vault, address));
    let Reached { address, established, carrier } = race(attempts, STAGGER).await.map_err(|attempts| {
        let why = DialError { attempts };
        let is_silence =
            matches!(why.best(), Some((_, HandshakeError::Silent(_) | HandshakeError::NotLetIn(_))));
        if is_silence { RecoverError::Silence(why) } else { RecoverError::Unreachable(why) }
    })?;
    let card = established.peer.clone().ok_or_else(|| VaultError::Refused("the peer sent no card".into()))?;
    let (session, driver) = session::start(established.stream, true, &Limits::default());
    let work = bring_back(vault, books, &session, card, address, &Network);
    let broken = async {
        let why = smol::future::or(driver, async {
            carrier.await;
            SessionError::Closed
        });
        Err(RecoverError::Ask(AskError::Session(why.await)))
    };
    let outcome = smol::future::or(work, broken).await;
    session.close();
    outcome
}

/// The way to peers other than the one that a recovery began with.
pub(crate) trait Others {
    /// Brings chunks into the store from the cell of a card; returns what it did not give.
    async fn fetch(&self, vault: &Arc<Vault>, card: &Card, names: Vec<ChunkName>, own: Own)
    -> Vec<ChunkName>;
}

struct Network;

impl Others for Network {
    async fn fetch(
        &self,
        vault: &Arc<Vault>,
        card: &Card,
        names: Vec<ChunkName>,
        own: Own,
    ) -> Vec<ChunkName> {
        let relays = card.relays.iter().map(|url| format!("{}@{url}", card.id));
        let addresses: Vec<String> = card.addresses.iter().cloned().chain(relays).collect();
        let attempts = addresses.iter().map(|address| reach(vault, address));
        let Ok(Reached { established, carrier, .. }) = race(attempts, STAGGER).await else { return names };
        let (session, driver) = session::start(established.stream, true, &Limits::default());
        let asked = names.clone();
        let pulled = async { pull(vault, &session, names, own, &Semaphore::new(2)).await.missing };
        let missing = smol::future::or(pulled, async {
            smol::future::or(carrier, async {
                driver.await;
            })
            .await;
            asked
        });
        let missing = missing.await;
        session.close();
        missing
    }
}

/// The other peers that are named by what is here of a catalog.
fn named_peers(vault: &Vault, head: &Head, but: &[CellId]) -> Vec<Card> {
    // The newest word on each; nothing for one that was removed.
    let mut peers: BTreeMap<Vec<u8>, (u64, Option<Card>)> = BTreeMap::new();
    for (name, _) in &head.segments {
        let Ok(bytes) = local(vault, name) else { continue };
        let Ok(plain) = open_segment(&bytes, &vault.master) else { continue };
        let read = read_segment(&plain, |seq, key, body| -> Result<(), CatalogError> {
            let is_newer = peers.get(key).is_none_or(|(known, _)| *known < seq);
            if key.first() == Some(&(RecordKind::Peer as u8)) && is_newer && peers.len() < PEERS_MAX {
                let row = PeerRow::from_record(body, 0).ok();
                peers.insert(key.to_vec(), (seq, row.and_then(|row| Card::from_bytes(&row.card).ok())));
            }
            Ok(())
        });
        if let Err(why) = read {
            log::warn!("{why}");
        }
    }
    let cards = peers.into_values().filter_map(|(_, card)| card);
    cards.filter(|card| !but.contains(&card.id)).collect()
}

pub(crate) async fn bring_back(
    vault: &Arc<Vault>,
    books: &Arc<Books>,
    session: &Session,
    card: Card,
    address: String,
    others: &impl Others,
) -> Result<RecoverReport, RecoverError> {
    let (from, keeper) = (card.name.clone(), card.clone());
    let heads = newest_first(vault, message::heads(session).await?);
    let life = heads.iter().map(|(_, head, _)| head.life).max().map(|life| life.saturating_add(1));
    let mut heads = heads.into_iter();
    let (Some((hash, head, bytes)), Some(life)) = (heads.next(), life) else {
        return Err(RecoverError::NoHeads { from });
    };
    fetch_segments(vault, session, &head, Own::Segment, &keeper, others).await?;
    let found = (head.life, head.seq);
    let job = Arc::clone(vault);
    let (records, files) = unblock(move || -> Result<_, VaultError> {
        let records = publish::adopt_segments(&job, &head, |name| local(&job, name))?;
        job.db.change(|t| {
            t.set_meta_u64("recovered_at", job.now())?;
            // Who typed it in has it.
            t.set_meta_u64("phrase_kept", 1)
        })?;
        publish::adopt_head(&job, &hash, &head, &bytes, life)?;
        Ok((records, publish::tree_from_catalog(&job)?))
    })
    .await?;
    // Peers first: a merge publishes, and what it publishes should not lack them.
    let (job, kept, place) = (Arc::clone(vault), Arc::clone(books), address.clone());
    let peers = unblock(move || -> Result<u64, VaultError> {
        kept.restore(&job)?;
        if kept.peer(&card.id)?.is_none_or(|peer| peer.removed_at.is_some()) {
            kept.save_peer(&job, &PeerRow::new(&card, job.clock.wall()))?;
        }
        kept.note_seen(&card.id, job.clock.wall(), Some(&place))?;
        Ok(kept.peers()?.iter().filter(|peer| peer.removed_at.is_none()).count() as u64)
    })
    .await?;
    let (mut merged, mut broken) = (0, 0);
    for (other, head, _) in heads {
        let (job, known) = (Arc::clone(vault), other);
        if unblock(move || job.db.read(|t| t.knows_head(&known))).await.map_err(VaultError::from)? {
            continue;
        }
        match fetch_segments(vault, session, &head, Own::No, &keeper, others).await {
            Ok(()) => {}
            // The newest is here. What this one alone knew comes when a peer is met that has all of it.
            Err(why @ (RecoverError::Incomplete { .. } | RecoverError::Full(_))) => {
                log::warn!("a catalog of life {} is left out: {why}", head.life);
                broken += 1;
                continue;
            }
            Err(why) => return Err(why),
        }
        let job = Arc::clone(vault);
        unblock(move || publish::merge_head(&job, &other, &head, |name| local(&job, name), false)).await?;
        merged += 1;
    }
    let job = Arc::clone(vault);
    let settings = unblock(move || -> Result<_, VaultError> {
        // The new life must be seen by an old one that wakes up, so it publishes even if nothing else changed.
        if !publish::publish(&job)? {
            publish::publish_with_parents(&job, &[hash])?;
        }
        settings(&job)
    })
    .await?;
    Ok(RecoverReport { from, address, head: found, life, records, files, merged, broken, peers, settings })
}

/// The heads of this owner that no other one contains, newest first; what is not a head of ours is left out.
fn newest_first(vault: &Vault, all: Vec<Vec<u8>>) -> Vec<(BodyHash, Head, Vec<u8>)> {
    let mut heads = Vec::new();
    for bytes in all {
        match Head::open(&bytes) {
            Ok((hash, head)) if head.owner == vault.id() => heads.push((hash, head, bytes)),
            Ok(_) => log::warn!("the peer sent the catalog head of another cell"),
            Err(why) => log::warn!("{why}"),
        }
    }
    let facts: Vec<HeadFacts> =
        heads.iter().map(|(hash, head, bytes)| HeadFacts::new(*hash, head, 0, bytes.len())).collect();
    let tips = tips(&facts);
    heads.retain(|(hash, ..)| tips.contains(hash));
    order::sort_by_key(&mut heads, |(_, head, _)| std::cmp::Reverse((head.life, head.seq)));
    heads
}

/// Brings the segments of a head here; what its keeper lacks, from others.
async fn fetch_segments(
    vault: &Arc<Vault>,
    session: &Session,
    head: &Head,
    own: Own,
    keeper: &Card,
    others: &impl Others,
) -> Result<(), RecoverError> {
    let names = head.segments.iter().map(|(name, _)| *name).collect();
    let pulled = pull(vault, session, names, own, &Semaphore::new(2)).await;
    let mut missing = pulled.missing;
    if missing.is_empty() {
        return Ok(());
    }
    let why = match pulled.error {
        // It is no peer's fault, and another's copy needs as much room.
        Some(RoundError::Vault(why)) if why.is_full() => return Err(RecoverError::Full(why)),
        Some(why) => why.to_string(),
        None => "neither it nor the peers that the rest names has them sound".into(),
    };
    let (job, known, but) = (Arc::clone(vault), head.clone(), [keeper.id, vault.id()]);
    for card in unblock(move || named_peers(&job, &known, &but)).await {
        log::info!("{} lacks {} parts of the catalog; {} is asked", keeper.name, missing.len(), card.name);
        missing = others.fetch(vault, &card, missing, own).await;
        if missing.is_empty() {
            return Ok(());
        }
    }
    Err(RecoverError::Incomplete { from: keeper.name.clone(), missing: missing.len(), why })
}

fn settings(vault: &Vault) -> Result<Vec<(String, String)>, VaultError> {
    Ok(vault.db.read(|t| -> Result<_, DbError> {
        let mut settings = Vec::new();
        for (seq, key) in t.records_with_prefix(&[RecordKind::Setting as u8], SETTINGS_MAX)? {
            let body = t.record_at(seq)?.filter(|body| !body.is_empty());
            let texts = body.map(|body| (String::from_utf8(key[1..].to_vec()), String::from_utf8(body)));
            if let Some((Ok(key), Ok(value))) = texts {
                settings.push((key, value));
            }
        }
        Ok(settings)
    })?)
}

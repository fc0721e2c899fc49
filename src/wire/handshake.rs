//! Who is there: the handshakes by which two cells prove themselves before a word is said.
//!
//! On the wire, the initiator first: a byte for the kind of handshake (an invite adds its 16-byte id), then the
//! three messages of Noise, each after its u16 length (big-endian), then one message of the stream from the
//! responder, which lets the initiator in. The payloads of messages 2 and 3 are the cells' cards.
//!
//! Promise: before message 2 the responder writes nothing to anybody who does not know its key, or a secret of its.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::time::{Duration, Instant};

use smol::io::{AsyncReadExt, AsyncWriteExt};
use snow::HandshakeState;

use super::noise::{NoiseStream, Resolver};
use super::{ByteStream, Transport, within};
use crate::card::{CARD_BYTES_MAX, Card, CardError, Invite};
use crate::codec::Writer;
use crate::id::CellId;
use crate::keys::{Identity, Secret};

/// A whole handshake takes no longer.
pub const HANDSHAKE_TIME_MAX: Duration = Duration::from_secs(10);
/// Owners whose recovery secrets are tried on one first message.
pub const RECOVERY_SECRETS_MAX: usize = 1024;

/// A key, a tag and room for what later versions may add: a stranger makes us hold no more.
const FIRST_MESSAGE_MAX: usize = 256;
/// Two keys, two tags and a card.
const MESSAGE_MAX: usize = CARD_BYTES_MAX + 128;
const WELCOME: u8 = 1;
const PROLOGUE_LABEL: &str = "grove/1";

const BYTE_KNOWN: u8 = 1;
const BYTE_INVITE: u8 = 2;
const BYTE_RECOVERY: u8 = 3;
const BYTE_TICKET: u8 = 4;

/// By what right a connection was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Both cells had each other's keys.
    Known,
    /// The initiator had the invite of this id.
    Invite([u8; 16]),
    /// The initiator had an owner's recovery secret.
    Recovery,
    /// The initiator had the responder's key, and says that it has a ticket.
    Ticket,
}

/// How an initiator proves itself, and whom it expects.
#[derive(Debug, Clone)]
pub enum Approach {
    /// To a cell whose keys are pinned.
    Known { id: CellId, x25519: [u8; 32] },
    /// To the inviter, for the first time.
    Invite { inviter: CellId, x25519: [u8; 32], invite_id: [u8; 16], secret: Secret },
    /// To any cell that keeps this owner's data.
    Recovery { secret: Secret },
    /// To a cell that is said to hold chunks of a grant.
    Ticket { id: CellId, x25519: [u8; 32] },
}

impl From<&Invite> for Approach {
    fn from(invite: &Invite) -> Self {
        Self::Invite {
            inviter: invite.inviter,
            x25519: invite.x25519,
            invite_id: invite.invite_id,
            secret: invite.secret.clone(),
        }
    }
}

impl Approach {
    fn kind(&self) -> Kind {
        match self {
            Self::Known { .. } => Kind::Known,
            Self::Invite { invite_id, .. } => Kind::Invite(*invite_id),
            Self::Recovery { .. } => Kind::Recovery,
            Self::Ticket { .. } => Kind::Ticket,
        }
    }

    /// Id and key of the responder, where they are known.
    fn expected(&self) -> Option<(&CellId, &[u8; 32])> {
        match self {
            Self::Known { id, x25519 }
            | Self::Ticket { id, x25519 }
            | Self::Invite { inviter: id, x25519, .. } => Some((id, x25519)),
            Self::Recovery { .. } => None,
        }
    }

    /// Whom it is to, where that is known.
    pub fn target(&self) -> Option<CellId> {
        self.expected().map(|(id, _)| *id)
    }

    fn secret(&self) -> Option<&Secret> {
        match self {
            Self::Known { .. } | Self::Ticket { .. } => None,
            Self::Invite { secret, .. } | Self::Recovery { secret } => Some(secret),
        }
    }
}

/// Whether a peer is let in, once that is durable.
pub type Admission<'a> = Pin<Box<dyn Future<Output = bool> + 'a>>;

/// What the responder knows, and whom it lets in. All answers but the last come at once, from memory.
pub trait Gate {
    /// This cell's keys.
    fn identity(&self) -> &Identity;
    /// This cell's card, as bytes.
    fn own_card(&self) -> Vec<u8>;
    /// Whether these are the pinned keys of a peer.
    fn is_known(&self, id: &CellId, x25519: &[u8; 32]) -> bool;
    /// The secret of an invite that is neither used nor revoked nor expired.
    fn invite_secret(&self, invite_id: &[u8; 16]) -> Option<Secret>;
    /// Recovery secrets of all owners whose data this cell keeps; those after the first 1,024 are not tried.
    fn recovery_secrets(&self) -> Vec<(CellId, Secret)>;
    /// The last word, just before the peer hears that it is in: here an invite is used up, once and durably.
    fn admit<'a>(&'a self, _kind: Kind, _peer: Option<&'a Card>) -> Admission<'a> {
        Box::pin(std::future::ready(true))
    }
}

/// A connection whose ends have proved themselves.
pub struct Established<S> {
    /// By what right.
    pub kind: Kind,
    /// The verified card of the other cell; `None` only for a responder whose initiator recovers without one.
    pub peer: Option<Card>,
    /// Whose data may be read: the peer's own id, or the owner whose recovery secret served. `None` for an initiator
    /// that recovers: it is its own.
    pub owner: Option<CellId>,
    /// What follows.
    pub stream: NoiseStream<S>,
}

impl<S> fmt::Debug for Established<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let peer = self.peer.as_ref().map(|card| card.id);
        write!(f, "Established({:?}, {peer:?}, owner {:?})", self.kind, self.owner)
    }
}

/// Why there is no connection.
#[derive(Debug)]
pub enum HandshakeError {
    /// There was no way to the address, or nobody listens there.
    Unreachable(io::Error),
    /// No answer in time.
    TimedOut,
    /// The connection broke.
    Broken(io::Error),
    /// The responder closed before message 2: it is another one, or does not know us by this kind.
    Silent(Kind),
    /// The responder took all messages, and then closed.
    NotLetIn(Kind),
    /// What the other side sent is no message of this handshake.
    Malformed,
    /// Its card does not hold.
    Card(CardError),
    /// Another cell than the expected one.
    WrongCell { expected: CellId, found: CellId },
    /// The card belongs to another key than the one that proved itself.
    KeyMismatch,
    /// A stranger, as the responder sees it: unknown cell, invite or secret.
    Stranger,
}

impl fmt::Display for HandshakeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                f.write_str("nothing listens there (connection refused); check the port, and that the cell runs")
            }
            Self::Unreachable(error) => write!(f, "no way there: {error}"),
            Self::TimedOut => f.write_str(
                "no answer in time; a firewall may drop the connection, or another program or cell has this address",
            ),
            Self::Broken(error) => write!(f, "the connection broke: {error}"),
            Self::Silent(Kind::Known) => f.write_str(
                "it closed without a word; another cell or program has this address, or its keys have changed",
            ),
            Self::Silent(Kind::Invite(_)) | Self::NotLetIn(Kind::Invite(_)) => f.write_str(
                "it refused the invite: used, revoked or expired, or for another cell; ask for a new one",
            ),
            Self::Silent(Kind::Recovery) | Self::NotLetIn(Kind::Recovery) => {
                f.write_str("it keeps nothing under this recovery phrase; try the address of another peer")
            }
            Self::Silent(Kind::Ticket) | Self::NotLetIn(Kind::Ticket) => {
                f.write_str("it takes no ticket now; another cell or program may have this address")
            }
            Self::NotLetIn(Kind::Known) => {
                f.write_str("it does not know this cell: removed there, or never paired; ask for an invite")
            }
            Self::Malformed => f.write_str("what answered is no cell of this version"),
            Self::Card(error) => error.fmt(f),
            Self::WrongCell { expected, found } => {
                write!(f, "cell {} answered, not {}", found.short(), expected.short())
            }
            Self::KeyMismatch => f.write_str("its card is another cell's"),
            Self::Stranger => f.write_str("a stranger: unknown cell, invite or secret"),
        }
    }
}

impl std::error::Error for HandshakeError {}

impl From<io::Error> for HandshakeError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::InvalidData => Self::Malformed,
            _ => Self::Broken(error),
        }
    }
}

impl From<snow::Error> for HandshakeError {
    fn from(_: snow::Error) -> Self {
        Self::Malformed
    }
}

impl From<CardError> for HandshakeError {
    fn from(error: CardError) -> Self {
        Self::Card(error)
    }
}

/// Proves `identity` to whoever is at the other end of `stream`, and checks that it is the expected one.
/// `card` is our own; recovery may do without one (no bytes).
pub async fn initiate<S: ByteStream>(
    stream: S,
    transport: Transport,
    identity: &Identity,
    card: &[u8],
    approach: &Approach,
) -> Result<Established<S>, HandshakeError> {
    let work = initiate_unhurried(stream, transport, identity, card, approach);
    within(HANDSHAKE_TIME_MAX, work).await.unwrap_or(Err(HandshakeError::TimedOut))
}

async fn initiate_unhurried<S: ByteStream>(
    mut stream: S,
    transport: Transport,
    identity: &Identity,
    card: &[u8],
    approach: &Approach,
) -> Result<Established<S>, HandshakeError> {
    let kind = approach.kind();
    let expected = approach.expected();
    let opening = Opening { kind, transport, responder: expected.map(|(id, _)| id) };
    let mut noise = opening.handshake(identity, expected.map(|(_, key)| key), approach.secret(), true)?;
    let mut message = vec![0; MESSAGE_MAX];
    let mut payload = vec![0; MESSAGE_MAX];

    let mut first = opening.clear_bytes();
    let len = noise.write_message(&[], &mut message)?;
    append_message(&mut first, &message[..len]);
    // A responder that closes at once may make the write itself fail.
    stream.write_all(&first).await.map_err(|error| silence_or(error, HandshakeError::Silent(kind)))?;
    stream.flush().await.map_err(|error| silence_or(error, HandshakeError::Silent(kind)))?;

    let len = read_message(&mut stream, &mut message, MESSAGE_MAX)
        .await
        .map_err(|error| silence_or(error, HandshakeError::Silent(kind)))?;
    let len = noise.read_message(&message[..len], &mut payload)?;
    let peer = check_card(&payload[..len], &noise)?;
    if let Some((id, _)) = expected {
        if peer.id != *id {
            return Err(HandshakeError::WrongCell { expected: *id, found: peer.id });
        }
    }

    let len = noise.write_message(card, &mut message)?;
    let mut third = Vec::with_capacity(2 + len);
    append_message(&mut third, &message[..len]);
    stream.write_all(&third).await?;
    stream.flush().await?;

    let mut stream = NoiseStream::new(stream, noise.dangerously_get_raw_split(), true);
    let mut welcome = [0];
    let let_in = stream.read_exact(&mut welcome).await;
    let_in.map_err(|error| silence_or(error, HandshakeError::NotLetIn(kind)))?;
    if welcome[0] != WELCOME {
        return Err(HandshakeError::Malformed);
    }
    let owner = (kind != Kind::Recovery).then_some(peer.id);
    Ok(Established { kind, peer: Some(peer), owner, stream })
}

/// Answers whoever is at the other end of `stream`, if `gate` knows them; on any error the caller drops everything
/// and writes nothing.
pub async fn respond<S: ByteStream, G: Gate + ?Sized>(
    stream: S,
    transport: Transport,
    gate: &G,
) -> Result<Established<S>, HandshakeError> {
    let work = respond_unhurried(stream, transport, gate);
    within(HANDSHAKE_TIME_MAX, work).await.unwrap_or(Err(HandshakeError::TimedOut))
}

async fn respond_unhurried<S: ByteStream, G: Gate + ?Sized>(
    mut stream: S,
    transport: Transport,
    gate: &G,
) -> Result<Established<S>, HandshakeError> {
    let kind = read_kind(&mut stream).await?;
    let mut first = [0; FIRST_MESSAGE_MAX];
    let len = read_message(&mut stream, &mut first, FIRST_MESSAGE_MAX).await?;
    let (mut noise, recovering) = open_first(kind, transport, gate, &first[..len])?;

    let mut message = vec![0; MESSAGE_MAX];
    let mut payload = vec![0; MESSAGE_MAX];
    let len = noise.write_message(&gate.own_card(), &mut message)?;
    let mut second = Vec::with_capacity(2 + len);
    append_message(&mut second, &message[..len]);
    stream.write_all(&second).await?;
    stream.flush().await?;

    let len = read_message(&mut stream, &mut message, MESSAGE_MAX).await?;
    let len = noise.read_message(&message[..len], &mut payload)?;
    let peer = match kind {
        Kind::Recovery if len == 0 => None,
        _ => Some(check_card(&payload[..len], &noise)?),
    };
    let is_known = match (kind, &peer) {
        (Kind::Known, Some(peer)) => gate.is_known(&peer.id, &peer.x25519),
        (Kind::Known, None) => false,
        (Kind::Ticket, None) => false,
        // What it may read is told by the ticket that it presents.
        (Kind::Ticket, Some(_)) | (Kind::Invite(_) | Kind::Recovery, _) => true,
    };
    if !is_known || !gate.admit(kind, peer.as_ref()).await {
        return Err(HandshakeError::Stranger);
    }
    let mut stream = NoiseStream::new(stream, noise.dangerously_get_raw_split(), false);
    stream.write_all(&[WELCOME]).await?;
    stream.flush().await?;
    let owner = recovering.or(peer.as_ref().map(|card| card.id));
    Ok(Established { kind, peer, owner, stream })
}

async fn read_kind<S: ByteStream>(stream: &mut S) -> Result<Kind, HandshakeError> {
    let mut byte = [0];
    stream.read_exact(&mut byte).await?;
    match byte[0] {
        BYTE_KNOWN => Ok(Kind::Known),
        BYTE_INVITE => {
            let mut invite_id = [0; 16];
            stream.read_exact(&mut invite_id).await?;
            Ok(Kind::Invite(invite_id))
        }
        BYTE_RECOVERY => Ok(Kind::Recovery),
        BYTE_TICKET => Ok(Kind::Ticket),
        _ => Err(HandshakeError::Malformed),
    }
}

/// The state after the first message; for recovery also the owner whose secret opened it.
fn open_first<G: Gate + ?Sized>(
    kind: Kind,
    transport: Transport,
    gate: &G,
    first: &[u8],
) -> Result<(HandshakeState, Option<CellId>), HandshakeError> {
    let own_id = gate.identity().id();
    let open = |secret: Option<&Secret>| -> Result<HandshakeState, HandshakeError> {
        let responder = (kind != Kind::Recovery).then_some(&own_id);
        let opening = Opening { kind, transport, responder };
        let mut noise = opening.handshake(gate.identity(), None, secret, false)?;
        noise.read_message(first, &mut [0; FIRST_MESSAGE_MAX])?;
        Ok(noise)
    };
    match kind {
        Kind::Known | Kind::Ticket => Ok((open(None)?, None)),
        Kind::Invite(invite_id) => {
            let secret = gate.invite_secret(&invite_id).ok_or(HandshakeError::Stranger)?;
            Ok((open(Some(&secret))?, None))
        }
        Kind::Recovery => gate
            .recovery_secrets()
            .iter()
            .take(RECOVERY_SECRETS_MAX)
            .find_map(|(owner, secret)| Some((open(Some(secret)).ok()?, Some(*owner))))
            .ok_or(HandshakeError::Stranger),
    }
}

/// All that is said in clear, and so is part of what is signed.
struct Opening<'a> {
    kind: Kind,
    transport: Transport,
    responder: Option<&'a CellId>,
}

impl Opening<'_> {
    fn clear_bytes(&self) -> Vec<u8> {
        match &self.kind {
            Kind::Known => vec![BYTE_KNOWN],
            Kind::Invite(invite_id) => [&[BYTE_INVITE], &invite_id[..]].concat(),
            Kind::Recovery => vec![BYTE_RECOVERY],
            Kind::Ticket => vec![BYTE_TICKET],
        }
    }

    fn prologue(&self) -> Vec<u8> {
        let mut prologue = Writer::with_label(PROLOGUE_LABEL);
        prologue.u8(match self.transport {
            Transport::Tcp => 0,
            Transport::Relay => 1,
        });
        prologue.raw(&self.responder.map_or([0; 32], |id| id.0)).raw(&self.clear_bytes());
        prologue.finish()
    }

    fn handshake(
        &self,
        identity: &Identity,
        remote: Option<&[u8; 32]>,
        secret: Option<&Secret>,
        is_initiator: bool,
    ) -> Result<HandshakeState, HandshakeError> {
        let (pattern, psk_place) = match self.kind {
            Kind::Known | Kind::Ticket => ("Noise_XK_25519_ChaChaPoly_SHA256", 0),
            Kind::Invite(_) => ("Noise_XKpsk3_25519_ChaChaPoly_SHA256", 3),
            Kind::Recovery => ("Noise_XXpsk0_25519_ChaChaPoly_SHA256", 0),
        };
        let params = pattern.parse().expect("the pattern is one of Noise's");
        let prologue = self.prologue();
        let mut builder = snow::Builder::with_resolver(params, Box::new(Resolver))
            .prologue(&prologue)?
            .local_private_key(&identity.x_secret().0)?;
        if let Some(remote) = remote {
            builder = builder.remote_public_key(remote)?;
        }
        if let Some(secret) = secret {
            builder = builder.psk(psk_place, &secret.0)?;
        }
        Ok(if is_initiator { builder.build_initiator()? } else { builder.build_responder()? })
    }
}

/// The card in a payload, which must be that of the key that has proved itself.
fn check_card(payload: &[u8], noise: &HandshakeState) -> Result<Card, HandshakeError> {
    let card = Card::from_bytes(payload)?;
    if noise.get_remote_static() != Some(&card.x25519[..]) {
        return Err(HandshakeError::KeyMismatch);
    }
    Ok(card)
}

fn append_message(to: &mut Vec<u8>, message: &[u8]) {
    let len = u16::try_from(message.len()).expect("a handshake message fits its length");
    to.extend_from_slice(&len.to_be_bytes());
    to.extend_from_slice(message);
}

async fn read_message<S: ByteStream>(stream: &mut S, buf: &mut [u8], max: usize) -> io::Result<usize> {
    let mut len = [0; 2];
    stream.read_exact(&mut len).await?;
    let len = usize::from(u16::from_be_bytes(len));
    if len > max {
        return Err(io::ErrorKind::InvalidData.into());
    }
    stream.read_exact(&mut buf[..len]).await?;
    Ok(len)
}

/// A responder that closes says nothing, by a close or a reset; other errors are the connection's own.
fn silence_or(error: io::Error, silence: HandshakeError) -> HandshakeError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => silence,
        _ => error.into(),
    }
}

/// Handshakes of one address: so many at once, then so many a second.
const PER_IP: Rate = Rate { burst: 20.0, per_second: 2.0 };
/// Handshakes of all addresses together.
const OVERALL: Rate = Rate { burst: 100.0, per_second: 20.0 };
/// Addresses remembered.
const IPS_MAX: usize = 4096;
/// The memory is searched for old addresses at most this often.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// So many at once, then so many a second.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rate {
    pub(crate) burst: f64,
    pub(crate) per_second: f64,
}

/// What may be taken now, under a `Rate`.
#[derive(Debug)]
pub(crate) struct Bucket {
    pub(crate) tokens: f64,
    at: Instant,
}

impl Bucket {
    /// A full one.
    pub(crate) fn new(rate: Rate, now: Instant) -> Self {
        Self { tokens: rate.burst, at: now }
    }

    pub(crate) fn fill(&mut self, rate: Rate, now: Instant) {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.tokens = (self.tokens + passed * rate.per_second).min(rate.burst);
        self.at = now.max(self.at);
    }
}

/// Says who may begin a handshake, before any key is touched. An IPv6 network of 64 bits counts as one address.
pub struct HandshakeLimiter {
    rate_per_ip: Rate,
    rate_overall: Rate,
    overall: Bucket,
    per_ip: HashMap<IpAddr, Bucket>,
    swept: Instant,
}

impl HandshakeLimiter {
    /// Full buckets.
    pub fn new(now: Instant) -> Self {
        Self::with_rates(PER_IP, OVERALL, now)
    }

    /// Full buckets of other sizes.
    pub(crate) fn with_rates(rate_per_ip: Rate, rate_overall: Rate, now: Instant) -> Self {
        let overall = Bucket::new(rate_overall, now);
        Self { rate_per_ip, rate_overall, overall, per_ip: HashMap::new(), swept: now }
    }

    /// Whether a handshake from `ip` may begin; it counts if so.
    pub fn allow(&mut self, ip: IpAddr, now: Instant) -> bool {
        self.overall.fill(self.rate_overall, now);
        if self.overall.tokens < 1.0 {
            return false;
        }
        self.forget_old(now);
        let ip = network(ip);
        // With the memory full of busy addresses a new one is bounded by all together only.
        if self.per_ip.len() < IPS_MAX || self.per_ip.contains_key(&ip) {
            let bucket = self.per_ip.entry(ip).or_insert(Bucket::new(self.rate_per_ip, now));
            bucket.fill(self.rate_per_ip, now);
            if bucket.tokens < 1.0 {
                return false;
            }
            bucket.tokens -= 1.0;
        }
        self.overall.tokens -= 1.0;
        true
    }

    fn forget_old(&mut self, now: Instant) {
        if self.per_ip.len() < IPS_MAX || now.saturating_duration_since(self.swept) < SWEEP_EVERY {
            return;
        }
        self.swept = now;
        let rate = self.rate_per_ip;
        self.per_ip.retain(|_, bucket| {
            bucket.fill(rate, now);
            bucket.tokens < rate.burst
        });
    }
}

fn network(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(ip) => {
            let mut segments = ip.segments();
            segments[4..].fill(0);
            IpAddr::V6(segments.into())
        }
        ip => ip,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::card::{CardBody, Role};
    use crate::keys::MasterKey;
    use crate::wire::memory::{self, End};
    use crate::wire::noise::tests::Dice;

    /// A cell that is all gate.
    pub(crate) struct Cell {
        pub(crate) master: MasterKey,
        pub(crate) identity: Identity,
        pub(crate) peers: Vec<CellId>,
        pub(crate) invites: Vec<Invite>,
        pub(crate) owners: Vec<(CellId, Secret)>,
        pub(crate) admits: bool,
    }

    impl Cell {
        pub(crate) fn new(seed: u8) -> Self {
            let master = MasterKey::from_bytes([seed; 32]);
            let identity = master.identity(0, 0);
            Self { master, identity, peers: vec![], invites: vec![], owners: vec![], admits: true }
        }

        pub(crate) fn card(&self) -> Vec<u8> {
            let body = CardBody {
                id: self.identity.id(),
                x25519: *self.identity.x_public(),
                name: "test".into(),
                addresses: vec![],
                relays: vec![],
                sequence: 1,
                successor: None,
                extensions: vec![],
            };
            Card::sign(&self.identity, body).unwrap().to_bytes()
        }

        pub(crate) fn known(&self) -> Approach {
            Approach::Known { id: self.identity.id(), x25519: *self.identity.x_public() }
        }

        fn invite(&self) -> Invite {
            Invite {
                inviter: self.identity.id(),
                x25519: *self.identity.x_public(),
                invite_id: [7; 16],
                secret: Secret([8; 32]),
                role: Role::Peer,
                expires: 0,
                addresses: vec![],
                relay: None,
            }
        }
    }

    impl Gate for Cell {
        fn identity(&self) -> &Identity {
            &self.identity
        }

        fn own_card(&self) -> Vec<u8> {
            self.card()
        }

        fn is_known(&self, id: &CellId, _: &[u8; 32]) -> bool {
            self.peers.contains(id)
        }

        fn invite_secret(&self, invite_id: &[u8; 16]) -> Option<Secret> {
            self.invites.iter().find(|i| i.invite_id == *invite_id).map(|i| i.secret.clone())
        }

        fn recovery_secrets(&self) -> Vec<(CellId, Secret)> {
            self.owners.clone()
        }

        fn admit<'a>(&'a self, _: Kind, _: Option<&'a Card>) -> Admission<'a> {
            Box::pin(std::future::ready(self.admits))
        }
    }

    type Outcome = Result<Established<End>, HandshakeError>;

    /// Both outcomes, and how many bytes the responder wrote.
    fn shake(from: &Cell, approach: &Approach, to: &Cell) -> (Outcome, Outcome, u64) {
        shake_with(from, &from.card(), approach, to)
    }

    fn shake_with(from: &Cell, card: &[u8], approach: &Approach, to: &Cell) -> (Outcome, Outcome, u64) {
        let (a, b, link) = memory::link(1 << 16);
        let initiate = initiate(a, Transport::Tcp, &from.identity, card, approach);
        let respond = respond(b, Transport::Tcp, to);
        let (a, b) = smol::block_on(smol::future::zip(initiate, respond));
        (a, b, link.written().1)
    }

    fn talk(a: Outcome, b: Outcome) {
        let (mut a, mut b) = (a.unwrap().stream, b.unwrap().stream);
        smol::block_on(async {
            let mut got = [0; 4];
            a.write_all(b"ping").await.unwrap();
            a.flush().await.unwrap();
            b.read_exact(&mut got).await.unwrap();
            assert_eq!(&got, b"ping");
            b.write_all(b"pong").await.unwrap();
            b.flush().await.unwrap();
            a.read_exact(&mut got).await.unwrap();
            assert_eq!(&got, b"pong");
        });
    }

    fn text(outcome: Outcome) -> String {
        outcome.unwrap_err().to_string()
    }

    #[test]
    fn known_cells_meet() {
        let (ann, mut bob) = (Cell::new(1), Cell::new(2));
        bob.peers.push(ann.identity.id());
        let (a, b, _) = shake(&ann, &bob.known(), &bob);
        let (at_a, at_b) = (a.as_ref().unwrap(), b.as_ref().unwrap());
        assert_eq!(at_a.peer.as_ref().unwrap().id, bob.identity.id());
        assert_eq!(at_b.peer.as_ref().unwrap().id, ann.identity.id());
        assert_eq!((at_b.owner, at_b.kind), (Some(ann.identity.id()), Kind::Known));
        talk(a, b);
    }

    #[test]
    fn unknown_cell_learns_only_that_it_is_not_let_in() {
        let (ann, bob) = (Cell::new(1), Cell::new(2));
        let (a, b, _) = shake(&ann, &bob.known(), &bob);
        assert!(text(a).contains("does not know this cell"));
        assert!(matches!(b, Err(HandshakeError::Stranger)));
    }

    #[test]
    fn who_does_not_know_the_key_gets_silence() {
        let (ann, mut bob, cid) = (Cell::new(1), Cell::new(2), Cell::new(3));
        bob.peers.push(ann.identity.id());
        let (a, b, written) = shake(&ann, &cid.known(), &bob);
        assert_eq!(written, 0);
        assert!(text(a).contains("closed without a word"));
        assert!(b.is_err());
        // The right key under another id: the prologue differs.
        let approach = Approach::Known { id: cid.identity.id(), x25519: *bob.identity.x_public() };
        assert_eq!(shake(&ann, &approach, &bob).2, 0);
    }

    #[test]
    fn invite_joins_once_admitted() {
        let (ann, mut bob) = (Cell::new(1), Cell::new(2));
        let invite = bob.invite();
        bob.invites.push(invite.clone());
        let (a, b, _) = shake(&ann, &Approach::from(&invite), &bob);
        assert_eq!(b.as_ref().unwrap().kind, Kind::Invite([7; 16]));
        assert_eq!(b.as_ref().unwrap().peer.as_ref().unwrap().id, ann.identity.id());
        talk(a, b);
        bob.admits = false;
        let (a, b, _) = shake(&ann, &Approach::from(&invite), &bob);
        assert!(text(a).contains("refused the invite"));
        assert!(b.is_err());
    }

    #[test]
    fn invite_that_is_unknown_gets_silence_and_one_with_a_wrong_secret_no_entry() {
        let (ann, mut bob) = (Cell::new(1), Cell::new(2));
        let mut invite = bob.invite();
        let (a, b, written) = shake(&ann, &Approach::from(&invite), &bob);
        assert_eq!(written, 0);
        assert!(text(a).contains("refused the invite"));
        assert!(matches!(b, Err(HandshakeError::Stranger)));
        bob.invites.push(invite.clone());
        invite.secret = Secret([9; 32]);
        let (a, b, _) = shake(&ann, &Approach::from(&invite), &bob);
        assert!(text(a).contains("refused the invite"));
        assert!(b.is_err());
    }

    #[test]
    fn owner_recovers_with_its_phrase_alone() {
        let (ann, mut bob, cid) = (Cell::new(1), Cell::new(2), Cell::new(3));
        for owner in [&cid, &ann] {
            bob.owners.push((owner.identity.id(), owner.master.recovery_secret()));
        }
        let approach = Approach::Recovery { secret: ann.master.recovery_secret() };
        let (a, b, _) = shake(&ann, &approach, &bob);
        assert_eq!(a.as_ref().unwrap().peer.as_ref().unwrap().id, bob.identity.id());
        let at_b = b.as_ref().unwrap();
        assert_eq!((at_b.kind, at_b.owner), (Kind::Recovery, Some(ann.identity.id())));
        assert_eq!(at_b.peer.as_ref().unwrap().id, ann.identity.id());
        talk(a, b);
        let (a, b, _) = shake_with(&ann, &[], &approach, &bob);
        assert!(b.as_ref().unwrap().peer.is_none());
        talk(a, b);
    }

    #[test]
    fn unknown_recovery_secret_gets_silence() {
        let (ann, mut bob, cid) = (Cell::new(1), Cell::new(2), Cell::new(3));
        bob.owners.push((cid.identity.id(), cid.master.recovery_secret()));
        let approach = Approach::Recovery { secret: ann.master.recovery_secret() };
        let (a, b, written) = shake(&ann, &approach, &bob);
        assert_eq!(written, 0);
        assert!(text(a).contains("recovery phrase"));
        assert!(matches!(b, Err(HandshakeError::Stranger)));
    }

    #[test]
    fn card_of_another_cell_is_refused_by_both_sides() {
        struct Liar(Cell, Vec<u8>);
        impl Gate for Liar {
            fn identity(&self) -> &Identity {
                self.0.identity()
            }
            fn own_card(&self) -> Vec<u8> {
                self.1.clone()
            }
            fn is_known(&self, _: &CellId, _: &[u8; 32]) -> bool {
                true
            }
            fn invite_secret(&self, _: &[u8; 16]) -> Option<Secret> {
                None
            }
            fn recovery_secrets(&self) -> Vec<(CellId, Secret)> {
                vec![]
            }
        }
        let (ann, mut bob, cid) = (Cell::new(1), Cell::new(2), Cell::new(3));
        bob.peers = vec![ann.identity.id(), cid.identity.id()];
        let (_, b, _) = shake_with(&ann, &cid.card(), &bob.known(), &bob);
        assert!(matches!(b, Err(HandshakeError::KeyMismatch)));
        let (_, b, _) = shake_with(&ann, &[], &bob.known(), &bob);
        assert!(matches!(b, Err(HandshakeError::Card(_))));

        let liar = Liar(bob, cid.card());
        let (a, b, link) = memory::link(1 << 16);
        let (card, approach) = (ann.card(), liar.0.known());
        let initiate = initiate(a, Transport::Tcp, &ann.identity, &card, &approach);
        let respond = respond(b, Transport::Tcp, &liar);
        let (a, b) = smol::block_on(smol::future::zip(initiate, respond));
        assert!(matches!(a, Err(HandshakeError::KeyMismatch)));
        assert!(b.is_err() && link.written().0 < 100, "our card stays with us");
    }

    #[test]
    fn transport_is_part_of_what_is_proved() {
        let (ann, mut bob) = (Cell::new(1), Cell::new(2));
        bob.peers.push(ann.identity.id());
        let (a, b, link) = memory::link(1 << 16);
        let (card, approach) = (ann.card(), bob.known());
        let initiate = initiate(a, Transport::Relay, &ann.identity, &card, &approach);
        let respond = respond(b, Transport::Tcp, &bob);
        let (a, b) = smol::block_on(smol::future::zip(initiate, respond));
        assert!(a.is_err() && b.is_err() && link.written().1 == 0);
    }

    /// What the initiator writes before it hears anything.
    fn first_flight(from: &Cell, approach: &Approach) -> Vec<u8> {
        let (a, mut b, _link) = memory::link(1 << 16);
        let card = from.card();
        let initiate = initiate(a, Transport::Tcp, &from.identity, &card, approach);
        let mut bytes = vec![0; 1 << 10];
        let n = smol::block_on(smol::future::or(async { b.read(&mut bytes).await.unwrap() }, async {
            initiate.await.unwrap();
            unreachable!("nobody answers")
        }));
        bytes.truncate(n);
        bytes
    }

    #[test]
    fn garbage_before_the_handshake_gets_silence() {
        let (ann, mut bob) = (Cell::new(1), Cell::new(2));
        bob.peers.push(ann.identity.id());
        bob.invites.push(bob.invite());
        bob.owners.push((ann.identity.id(), ann.master.recovery_secret()));
        let recovery = Approach::Recovery { secret: ann.master.recovery_secret() };
        let flights: Vec<_> = [bob.known(), Approach::from(&bob.invite()), recovery]
            .iter()
            .map(|approach| first_flight(&ann, approach))
            .collect();
        let silent = |bytes: &[u8]| {
            let (mut a, b, link) = memory::link(1 << 17);
            smol::block_on(async {
                a.write_all(bytes).await.unwrap();
                a.close().await.unwrap();
                assert!(respond(b, Transport::Tcp, &bob).await.is_err());
            });
            assert_eq!(link.written().1, 0);
        };
        for flight in &flights {
            for at in 0..flight.len() {
                let mut changed = flight.clone();
                changed[at] ^= 1;
                silent(&changed);
                silent(&flight[..at]);
            }
        }
        for seed in 0..2000 {
            let mut dice = Dice(seed);
            let len = dice.roll(400);
            let mut bytes = dice.bytes(len);
            if let Some(first) = bytes.first_mut() {
                *first = dice.roll(6) as u8;
            }
            silent(&bytes);
        }
        // A huge length is refused before its bytes are awaited.
        let (mut a, b, _link) = memory::link(1 << 17);
        smol::block_on(async {
            a.write_all(&[BYTE_KNOWN, 0xff, 0xff]).await.unwrap();
            assert!(matches!(respond(b, Transport::Tcp, &bob).await, Err(HandshakeError::Malformed)));
        });
    }

    #[test]
    fn garbage_during_the_handshake_ends_it_on_both_sides() {
        let (ann, mut bob) = (Cell::new(1), Cell::new(2));
        bob.peers.push(ann.identity.id());
        let (card, approach) = (ann.card(), bob.known());
        for seed in 0..300 {
            let mut dice = Dice(seed);
            let len = dice.roll(9000);
            let mut bytes = dice.bytes(len);
            if seed % 2 == 0 && len > 2 {
                let rest = (len - 2) as u16;
                bytes[..2].copy_from_slice(&rest.to_be_bytes());
            }
            // An answer to the initiator, and a third message to the responder.
            let (a, mut b, _link) = memory::link(1 << 17);
            smol::block_on(async {
                b.write_all(&bytes).await.unwrap();
                b.close().await.unwrap();
                initiate(a, Transport::Tcp, &ann.identity, &card, &approach).await.unwrap_err();
            });
            let (mut a, b, _link) = memory::link(1 << 17);
            smol::block_on(async {
                a.write_all(&first_flight(&ann, &approach)).await.unwrap();
                a.write_all(&bytes).await.unwrap();
                a.close().await.unwrap();
                respond(b, Transport::Tcp, &bob).await.unwrap_err();
            });
        }
    }

    #[test]
    fn limiter_bounds_each_address_and_all_together() {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let mut limiter = HandshakeLimiter::new(start);
        let one: IpAddr = "192.0.2.1".parse().unwrap();
        let allowed = (0..50).filter(|_| limiter.allow(one, start)).count();
        assert_eq!(allowed, 20);
        assert!(!limiter.allow("::ffff:192.0.2.1".parse().unwrap(), start), "the same address");
        assert!(limiter.allow("192.0.2.2".parse().unwrap(), start));
        assert!(limiter.allow(one, at(600)) && !limiter.allow(one, at(600)));
        // One network of IPv6.
        let allowed =
            (0..50).filter(|i| limiter.allow(format!("2001:db8::{i}").parse().unwrap(), at(700))).count();
        assert_eq!(allowed, 20);
        let mut allowed = 0;
        for i in 0..100_000u32 {
            allowed += usize::from(limiter.allow(IpAddr::V4(i.into()), at(1000 + u64::from(i) / 100)));
        }
        assert!((50..=100).contains(&allowed), "{allowed}");
        assert!(limiter.per_ip.len() <= IPS_MAX);
        // A clock that goes back does no harm.
        limiter.allow(one, start);
    }
}

//! Joins yamux streams of clients to circuits. Decides only: bytes and time in, bytes and names of those to wake out.
//!
//! The hub is the server of each client's yamux connection. A caller opens a stream, and its first 33 bytes say whom
//! it wants; the hub opens a stream to that client with the caller's id in their place, and from then on forwards
//! bytes. Credit passes through: a sender may send what the receiver has room for, and not more than the hub is ready
//! to hold until the receiver's socket takes it.
//!
//! Promise: no byte of a circuit is dropped while both its ends live, a receiver that takes nothing stalls its own
//! circuits only, and what a client makes the hub hold is bounded by `Limits`.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use crate::id::CellId;

/// What a stream may send before it gets any credit (yamux specification).
pub const WINDOW_BYTES_MIN: u64 = 256 * 1024;
/// What the hub is ready to hold of one direction of a circuit, as long as the receiver has few of them.
pub const WINDOW_BYTES_MAX: u64 = 1024 * 1024;
/// What the hub is ready to hold for one receiver, beyond what yamux grants each circuit at least.
pub const WINDOWS_PER_CLIENT_BYTES: u64 = 2 * 1024 * 1024;
/// Credit is given in steps of this, unless the sender waits for it.
const CREDIT_STEP_BYTES: u64 = 64 * 1024;
/// Of one circuit, before it is another's turn; who is alone has no turns.
const TURN_BYTES: usize = 16 * 1024;
/// Answers and resets that wait for a client's socket; over this, nothing is read from it, and nobody is joined to it.
const CONTROL_BYTES_MAX: usize = 64 * 1024;
/// The head of a circuit must have come after this.
pub const HEAD_TIME_MAX: Duration = Duration::from_secs(10);
/// A circuit is closed when a receiver takes nothing of what waits for so long.
pub const STALL_TIME_MAX: Duration = Duration::from_secs(60);
/// A queue that is empty keeps at most this for the next bytes, until the client is quiet.
const QUEUE_KEPT_BYTES: usize = 256 * 1024;

/// The first byte of a circuit's head.
pub const VERSION: u8 = 1;
/// Version and id, both ways.
pub const CIRCUIT_HEAD_BYTES: usize = 1 + CellId::LEN;

/// The first byte that comes back on a circuit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Status {
    /// The other cell has taken it.
    Joined = 0,
    /// No such cell is connected to this relay.
    NotHere = 1,
    /// The hub or the other cell does not want it.
    Refused = 2,
    /// A limit is reached; later it may work.
    Busy = 3,
}

impl Status {
    /// Of the byte on the wire; bytes of later versions are refusals.
    pub fn of(byte: u8) -> Self {
        match byte {
            0 => Self::Joined,
            1 => Self::NotHere,
            3 => Self::Busy,
            _ => Self::Refused,
        }
    }
}

/// What the switch allows.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Circuits of one client, opened by it or to it.
    pub circuits: usize,
    /// Bytes held for all clients together; over this no circuit is joined, and over twice as much one whose receiver does
    /// not take what comes is reset.
    pub held_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { circuits: 32, held_bytes: 128 << 20 }
    }
}

/// A client, from `enter` to `leave`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Port(usize);

/// A client breaks the rules of yamux and must go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Violation(pub &'static str);

/// What a client's bytes came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Went {
    /// On.
    On,
    /// The client has said its last word (go away).
    Away,
}

/// Sums since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Payload that came in on circuits.
    pub bytes: u64,
    /// Circuits joined.
    pub joined: u64,
    /// Circuits to clients that were not there.
    pub not_here: u64,
    /// Circuits against a rule.
    pub refused: u64,
    /// Circuits over a limit.
    pub busy: u64,
    /// Circuits closed because a receiver took nothing.
    pub stalled: u64,
}

// yamux frames (specification: hashicorp/yamux, spec.md).

const FRAME_HEAD_BYTES: usize = 12;
const DATA: u8 = 0;
const WINDOW_UPDATE: u8 = 1;
const PING: u8 = 2;
const GO_AWAY: u8 = 3;
const SYN: u16 = 1;
const ACK: u16 = 2;
const FIN: u16 = 4;
const RST: u16 = 8;

fn frame_head(kind: u8, flags: u16, stream: u32, length: u32) -> [u8; FRAME_HEAD_BYTES] {
    let mut head = [0; FRAME_HEAD_BYTES];
    head[1] = kind;
    head[2..4].copy_from_slice(&flags.to_be_bytes());
    head[4..8].copy_from_slice(&stream.to_be_bytes());
    head[8..12].copy_from_slice(&length.to_be_bytes());
    head
}

/// Things by number, the numbers used again.
#[derive(Debug)]
struct Slots<T> {
    items: Vec<Option<T>>,
    free: Vec<usize>,
}

impl<T> Default for Slots<T> {
    fn default() -> Self {
        Self { items: Vec::new(), free: Vec::new() }
    }
}

impl<T> Slots<T> {
    fn put(&mut self, item: T) -> usize {
        match self.free.pop() {
            Some(at) => {
                self.items[at] = Some(item);
                at
            }
            None => {
                self.items.push(Some(item));
                self.items.len() - 1
            }
        }
    }

    fn take(&mut self, at: usize) -> Option<T> {
        let item = self.items.get_mut(at)?.take()?;
        self.free.push(at);
        Some(item)
    }

    fn get(&mut self, at: usize) -> Option<&mut T> {
        self.items.get_mut(at)?.as_mut()
    }

    fn len(&self) -> usize {
        self.items.len() - self.free.len()
    }

    fn keys(&self) -> impl Iterator<Item = usize> + '_ {
        self.items.iter().enumerate().filter(|(_, item)| item.is_some()).map(|(at, _)| at)
    }
}

/// A frame of a client of which the head is in.
#[derive(Debug, Clone, Copy)]
struct Incoming {
    stream: u32,
    left: u32,
    ends: bool,
}

#[derive(Debug)]
struct Client {
    id: CellId,
    /// Which end of which circuit each of its streams is.
    streams: HashMap<u32, (usize, usize)>,
    next_stream: u32,
    head: [u8; FRAME_HEAD_BYTES],
    head_len: usize,
    incoming: Option<Incoming>,
    /// Frames that carry no circuit's bytes and wait for the socket.
    control: Vec<u8>,
    /// Ends of circuits that have something for this client.
    ready: VecDeque<(usize, usize)>,
    is_woken: bool,
}

/// One of the two ends of a circuit: what goes to a client, and what has come from it.
#[derive(Debug)]
struct End {
    port: usize,
    stream: u32,
    /// Flags for the next frame to this client.
    flags: u16,
    is_ready: bool,
    /// Waits for this client's socket.
    queue: VecDeque<u8>,
    /// Bytes that went to this client, and how many it allows.
    sent: u64,
    allowed: u64,
    /// Bytes that came from this client, and how many it was allowed.
    received: u64,
    granted: u64,
    /// It has said that it sends no more.
    has_ended: bool,
    /// It has been told that no more comes.
    is_told_end: bool,
    /// When it last took something or allowed more, or was owed nothing.
    moved_at: Instant,
}

impl End {
    fn new(port: usize, stream: u32, flags: u16, now: Instant) -> Self {
        Self {
            port,
            stream,
            flags,
            is_ready: false,
            queue: VecDeque::new(),
            sent: 0,
            allowed: WINDOW_BYTES_MIN,
            received: 0,
            granted: WINDOW_BYTES_MIN,
            has_ended: false,
            is_told_end: false,
            moved_at: now,
        }
    }
}

/// Caller and target; before the target is known, the head as far as it has come.
#[derive(Debug)]
struct Circuit {
    caller: End,
    target: Option<End>,
    head: Vec<u8>,
    opened_at: Instant,
}

const CALLER: usize = 0;
const TARGET: usize = 1;

impl Circuit {
    fn ends(&mut self, side: usize) -> Option<(&mut End, &mut End)> {
        let target = self.target.as_mut()?;
        Some(if side == CALLER { (&mut self.caller, target) } else { (target, &mut self.caller) })
    }

    fn end(&mut self, side: usize) -> Option<&mut End> {
        if side == CALLER { Some(&mut self.caller) } else { self.target.as_mut() }
    }
}

/// All clients and their circuits.
#[derive(Debug)]
pub struct Switch {
    limits: Limits,
    clients: Slots<Client>,
    circuits: Slots<Circuit>,
    by_id: HashMap<CellId, usize>,
    held: usize,
    woken: Vec<Port>,
    totals: Totals,
}

impl Switch {
    /// Nobody is connected.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            clients: Slots::default(),
            circuits: Slots::default(),
            by_id: HashMap::new(),
            held: 0,
            woken: Vec::new(),
            totals: Totals::default(),
        }
    }

    /// A client that has proved its id. One that was here under the same id is given back: it must `leave`, and gets
    /// no new circuits from now on.
    pub fn enter(&mut self, id: CellId) -> (Port, Option<Port>) {
        let client = Client {
            id,
            streams: HashMap::new(),
            next_stream: 2,
            head: [0; FRAME_HEAD_BYTES],
            head_len: 0,
            incoming: None,
            control: Vec::new(),
            ready: VecDeque::new(),
            is_woken: false,
        };
        let port = self.clients.put(client);
        (Port(port), self.by_id.insert(id, port).map(Port))
    }

    /// Whether a client of this id is here.
    pub fn has(&self, id: &CellId) -> bool {
        self.by_id.contains_key(id)
    }

    /// A client is gone; the other ends of its circuits are reset.
    pub fn leave(&mut self, port: Port) {
        let Some(client) = self.clients.get(port.0) else { return };
        let circuits: Vec<(usize, usize)> = client.streams.values().copied().collect();
        for (circuit, side) in circuits {
            self.drop_circuit(circuit, Some(side));
        }
        let client = self.clients.take(port.0).expect("it is there");
        if self.by_id.get(&client.id) == Some(&port.0) {
            self.by_id.remove(&client.id);
        }
    }

    /// Clients that are connected.
    pub fn clients(&self) -> usize {
        self.clients.len()
    }

    /// Circuits, those included whose head has not come.
    pub fn circuits(&self) -> usize {
        self.circuits.len()
    }

    /// Bytes that wait for the sockets of receivers.
    pub fn held_bytes(&self) -> usize {
        self.held
    }

    /// Sums since the start.
    pub fn totals(&self) -> Totals {
        self.totals
    }

    /// Who has something to send since it was last asked; each is named once until `fill` finds nothing for it.
    pub fn take_woken(&mut self, into: &mut Vec<Port>) {
        into.append(&mut self.woken);
    }

    /// Nothing should be read from this client: it does not take the answers to what it sent.
    pub fn is_clogged(&mut self, port: Port) -> bool {
        self.clients.get(port.0).is_some_and(|client| client.control.len() > CONTROL_BYTES_MAX)
    }

    /// Bytes of a client's yamux connection, in pieces of any size.
    pub fn on_bytes(&mut self, port: Port, mut bytes: &[u8], now: Instant) -> Result<Went, Violation> {
        while !bytes.is_empty() {
            let client = self.clients.get(port.0).expect("a client speaks only while it is here");
            if let Some(incoming) = client.incoming.as_mut() {
                let here = (incoming.left as usize).min(bytes.len());
                incoming.left -= here as u32;
                let Incoming { stream, left, ends } = *incoming;
                if left == 0 {
                    client.incoming = None;
                }
                self.on_data(port.0, stream, &bytes[..here], now);
                if left == 0 && ends {
                    self.on_end(port.0, stream);
                }
                bytes = &bytes[here..];
                continue;
            }
            let here = (FRAME_HEAD_BYTES - client.head_len).min(bytes.len());
            client.head[client.head_len..client.head_len + here].copy_from_slice(&bytes[..here]);
            client.head_len += here;
            bytes = &bytes[here..];
            if client.head_len == FRAME_HEAD_BYTES {
                client.head_len = 0;
                let head = client.head;
                if self.on_head(port.0, head, now)? == Went::Away {
                    return Ok(Went::Away);
                }
            }
        }
        Ok(Went::On)
    }

    fn on_head(
        &mut self,
        port: usize,
        head: [u8; FRAME_HEAD_BYTES],
        now: Instant,
    ) -> Result<Went, Violation> {
        let flags = u16::from_be_bytes([head[2], head[3]]);
        let stream = u32::from_be_bytes(head[4..8].try_into().expect("four bytes"));
        let length = u32::from_be_bytes(head[8..12].try_into().expect("four bytes"));
        if head[0] != 0 {
            return Err(Violation("another version of yamux"));
        }
        match head[1] {
            PING if flags & ACK == 0 => self.control(port, frame_head(PING, ACK, 0, length)),
            PING => {}
            GO_AWAY => return Ok(Went::Away),
            DATA | WINDOW_UPDATE => self.on_stream_head(port, head[1], flags, (stream, length), now)?,
            _ => return Err(Violation("a frame of an unknown kind")),
        }
        Ok(Went::On)
    }

    fn on_stream_head(
        &mut self,
        port: usize,
        kind: u8,
        flags: u16,
        (stream, length): (u32, u32),
        now: Instant,
    ) -> Result<(), Violation> {
        if flags & SYN != 0 {
            self.open(port, stream, now)?;
        }
        // Frames may still be under way to a circuit that is no more.
        if let Some(place) = self.clients.get(port).expect("it speaks").streams.get(&stream).copied() {
            self.on_frame_of(place, kind, flags, length, now)?;
        }
        if kind == DATA && length > 0 {
            let client = self.clients.get(port).expect("it speaks");
            client.incoming = Some(Incoming { stream, left: length, ends: flags & FIN != 0 });
        } else if flags & FIN != 0 {
            self.on_end(port, stream);
        }
        Ok(())
    }

    /// The head of a frame for an end of a circuit.
    fn on_frame_of(
        &mut self,
        (circuit, side): (usize, usize),
        kind: u8,
        flags: u16,
        length: u32,
        now: Instant,
    ) -> Result<(), Violation> {
        if flags & RST != 0 {
            self.drop_circuit(circuit, Some(side));
            return Ok(());
        }
        let end =
            self.circuits.get(circuit).and_then(|circuit| circuit.end(side)).expect("streams have ends");
        if kind == WINDOW_UPDATE {
            end.allowed =
                end.allowed.checked_add(u64::from(length)).ok_or(Violation("credit without end"))?;
            end.moved_at = now;
            self.give_credit(circuit, 1 - side);
        } else {
            // Looked at before it counts: until the client is gone, what it may send is still reckoned with.
            if u64::from(length) > end.granted - end.received {
                return Err(Violation("more bytes than credit"));
            }
            end.received += u64::from(length);
            if end.has_ended && length > 0 {
                return Err(Violation("bytes after the end of a stream"));
            }
        }
        Ok(())
    }

    /// A client opens a stream.
    fn open(&mut self, port: usize, stream: u32, now: Instant) -> Result<(), Violation> {
        let max = self.limits.circuits;
        let client = self.clients.get(port).expect("it speaks");
        if stream % 2 == 0 || client.streams.contains_key(&stream) {
            return Err(Violation("a stream of an impossible number"));
        }
        if client.streams.len() >= max {
            self.totals.busy += 1;
            self.answer(port, stream, Status::Busy);
            return Ok(());
        }
        let caller = End::new(port, stream, ACK, now);
        let circuit = self.circuits.put(Circuit { caller, target: None, head: Vec::new(), opened_at: now });
        self.clients.get(port).expect("it speaks").streams.insert(stream, (circuit, CALLER));
        Ok(())
    }

    /// Answers a stream that becomes no circuit.
    fn answer(&mut self, port: usize, stream: u32, status: Status) {
        self.control(port, frame_head(DATA, ACK | FIN, stream, 1));
        if let Some(client) = self.clients.get(port) {
            client.control.push(status as u8);
        }
    }

    fn control(&mut self, port: usize, frame: [u8; FRAME_HEAD_BYTES]) {
        if let Some(client) = self.clients.get(port) {
            client.control.extend_from_slice(&frame);
            self.wake(port);
        }
    }

    fn wake(&mut self, port: usize) {
        if let Some(client) = self.clients.get(port) {
            if !client.is_woken {
                client.is_woken = true;
                self.woken.push(Port(port));
            }
        }
    }

    fn on_data(&mut self, port: usize, stream: u32, mut bytes: &[u8], now: Instant) {
        let client = self.clients.get(port).expect("it speaks");
        let Some((circuit, side)) = client.streams.get(&stream).copied() else { return };
        let joined = self.circuits.get(circuit).expect("streams have circuits");
        if joined.target.is_none() {
            let missing = CIRCUIT_HEAD_BYTES - joined.head.len();
            let (head, rest) = bytes.split_at(missing.min(bytes.len()));
            joined.head.extend_from_slice(head);
            bytes = rest;
            if joined.head.len() < CIRCUIT_HEAD_BYTES {
                return;
            }
            if let Err(status) = self.join(circuit, now) {
                self.refuse(circuit, status);
                return;
            }
        }
        if bytes.is_empty() {
            return;
        }
        let joined = self.circuits.get(circuit).expect("it is joined");
        let (_, to) = joined.ends(side).expect("it is joined");
        if to.queue.is_empty() {
            to.moved_at = now;
        }
        to.queue.extend(bytes);
        let waiting = to.queue.len();
        self.held += bytes.len();
        self.totals.bytes += bytes.len() as u64;
        // Circuits that were joined while there was room may all fill at once.
        if self.held > self.limits.held_bytes.saturating_mul(2) && waiting > TURN_BYTES {
            self.totals.stalled += 1;
            self.drop_circuit(circuit, None);
            return;
        }
        self.make_ready(circuit, 1 - side);
    }

    /// The head of a circuit has come: opens the stream to its target.
    fn join(&mut self, circuit: usize, now: Instant) -> Result<(), Status> {
        let opening = self.circuits.get(circuit).expect("it is being opened");
        let caller = opening.caller.port;
        let is_known = opening.head[0] == VERSION;
        let target = CellId::from_slice(&opening.head[1..]).expect("the rest of a head is an id");
        opening.head = Vec::new();
        let caller_id = self.clients.get(caller).expect("it speaks").id;
        if !is_known || target == caller_id {
            self.totals.refused += 1;
            return Err(Status::Refused);
        }
        let Some(port) = self.by_id.get(&target).copied() else {
            self.totals.not_here += 1;
            return Err(Status::NotHere);
        };
        let is_full = self.held > self.limits.held_bytes;
        let client = self.clients.get(port).expect("ids lead to clients");
        if is_full
            || client.streams.len() >= self.limits.circuits
            || client.control.len() > CONTROL_BYTES_MAX
            || client.next_stream > u32::MAX - 2
        {
            self.totals.busy += 1;
            return Err(Status::Busy);
        }
        let stream = client.next_stream;
        client.next_stream += 2;
        client.streams.insert(stream, (circuit, TARGET));
        let mut end = End::new(port, stream, SYN, now);
        end.queue.push_back(VERSION);
        end.queue.extend(caller_id.as_bytes());
        self.held += CIRCUIT_HEAD_BYTES;
        let joined = self.circuits.get(circuit).expect("it is being opened");
        // What the caller allowed while it was opened holds for the target; both heads have the same length.
        joined.target = Some(end);
        self.totals.joined += 1;
        self.make_ready(circuit, TARGET);
        self.give_credit(circuit, TARGET);
        Ok(())
    }

    /// Answers a caller whose circuit is not joined, and forgets it.
    fn refuse(&mut self, circuit: usize, status: Status) {
        let Some(refused) = self.circuits.take(circuit) else { return };
        let End { port, stream, .. } = refused.caller;
        if let Some(client) = self.clients.get(port) {
            client.streams.remove(&stream);
        }
        self.answer(port, stream, status);
    }

    /// An end has sent its last byte.
    fn on_end(&mut self, port: usize, stream: u32) {
        let client = self.clients.get(port).expect("it speaks");
        let Some((circuit, side)) = client.streams.get(&stream).copied() else { return };
        let ending = self.circuits.get(circuit).expect("streams have circuits");
        let end = ending.end(side).expect("streams have ends");
        end.has_ended = true;
        if ending.target.is_none() {
            // Nothing more can come, and it has not said whom it wants.
            self.drop_circuit(circuit, None);
        } else {
            self.make_ready(circuit, 1 - side);
        }
    }

    /// Lists an end of a circuit as having something for its client.
    fn make_ready(&mut self, circuit: usize, side: usize) {
        let Some(end) = self.circuits.get(circuit).and_then(|circuit| circuit.end(side)) else { return };
        let port = end.port;
        if !end.is_ready {
            end.is_ready = true;
            self.clients.get(port).expect("ends have clients").ready.push_back((circuit, side));
        }
        self.wake(port);
    }

    /// Looks whether the sender at `side` may be given credit.
    fn give_credit(&mut self, circuit: usize, side: usize) {
        if self.credit_due(circuit, side) > 0 {
            self.make_ready(circuit, side);
        }
    }

    /// Credit that the sender at `side` should get now.
    fn credit_due(&mut self, circuit: usize, side: usize) -> u64 {
        let Some((from, to)) = self.circuits.get(circuit).and_then(|circuit| circuit.ends(side)) else {
            return 0;
        };
        if from.has_ended {
            return 0;
        }
        let (allowed, sent, granted, received) = (to.allowed, to.sent, from.granted, from.received);
        let to_port = to.port;
        let circuits = self.clients.get(to_port).map_or(1, |client| client.streams.len().max(1)) as u64;
        let window = (WINDOWS_PER_CLIENT_BYTES / circuits).clamp(WINDOW_BYTES_MIN, WINDOW_BYTES_MAX);
        let due = allowed.min(sent + window).saturating_sub(granted);
        let is_waited_for = granted - received < CREDIT_STEP_BYTES;
        if due >= CREDIT_STEP_BYTES || is_waited_for { due.min(u64::from(u32::MAX)) } else { 0 }
    }

    /// Ends a circuit at once, with a reset to both ends but the one that knows.
    fn drop_circuit(&mut self, circuit: usize, knows: Option<usize>) {
        let Some(mut gone) = self.circuits.take(circuit) else { return };
        for side in [CALLER, TARGET] {
            let Some(end) = gone.end(side) else { continue };
            self.held -= end.queue.len();
            let (port, stream, is_unheard) = (end.port, end.stream, end.flags & SYN != 0);
            let Some(client) = self.clients.get(port) else { continue };
            client.streams.remove(&stream);
            if end.is_ready {
                client.ready.retain(|place| *place != (circuit, side));
            }
            if knows != Some(side) && !is_unheard {
                self.control(port, frame_head(DATA, RST, stream, 0));
            }
        }
    }

    /// Appends what there is for a client to `out`, as yamux frames, until `out` has at most `bytes_max` bytes.
    ///
    /// The caller must send all of it.
    pub fn fill(&mut self, port: Port, out: &mut Vec<u8>, bytes_max: usize, now: Instant) {
        let Some(client) = self.clients.get(port.0) else { return };
        client.is_woken = false;
        let control = client.control.len().min(bytes_max.saturating_sub(out.len()));
        out.extend_from_slice(&client.control[..control]);
        // Frames may be cut: the rest comes first the next time.
        client.control.drain(..control);
        if client.control.is_empty() {
            client.control = Vec::new();
        } else {
            return;
        }
        // Credit and data of one circuit are two frames.
        while out.len() + 2 * FRAME_HEAD_BYTES < bytes_max {
            let client = self.clients.get(port.0).expect("it was here");
            let Some((circuit, side)) = client.ready.pop_front() else { return };
            let is_alone = client.ready.is_empty();
            self.fill_from((circuit, side), is_alone, out, bytes_max, now);
        }
    }

    /// One turn of one circuit.
    fn fill_from(
        &mut self,
        (circuit, side): (usize, usize),
        is_alone: bool,
        out: &mut Vec<u8>,
        bytes_max: usize,
        now: Instant,
    ) {
        let due = self.credit_due(circuit, side);
        let Some(joined) = self.circuits.get(circuit) else { return };
        let Some((end, other)) = joined.ends(side) else { return };
        end.is_ready = false;
        if due > 0 {
            end.granted += due;
            out.extend_from_slice(&frame_head(WINDOW_UPDATE, end.flags, end.stream, due as u32));
            end.flags = 0;
        }
        let turn = if is_alone { usize::MAX } else { TURN_BYTES };
        let room = bytes_max.saturating_sub(out.len() + FRAME_HEAD_BYTES).min(turn);
        let here = end.queue.len().min(room);
        let ends = other.has_ended && here == end.queue.len() && !end.is_told_end;
        if here > 0 || ends {
            let flags = end.flags | if ends { FIN } else { 0 };
            out.extend_from_slice(&frame_head(DATA, flags, end.stream, here as u32));
            let (a, b) = end.queue.as_slices();
            let first = here.min(a.len());
            out.extend_from_slice(&a[..first]);
            out.extend_from_slice(&b[..here - first]);
            end.queue.drain(..here);
            end.flags = 0;
            end.sent += here as u64;
            end.moved_at = now;
            end.is_told_end |= ends;
            self.held -= here;
        }
        if end.queue.is_empty() && end.queue.capacity() > QUEUE_KEPT_BYTES {
            end.queue = VecDeque::new();
        }
        let has_more = !end.queue.is_empty() || (other.has_ended && !end.is_told_end);
        if end.is_told_end && other.is_told_end {
            self.forget(circuit);
            return;
        }
        if has_more {
            self.make_ready(circuit, side);
        }
        if here > 0 {
            self.give_credit(circuit, 1 - side);
        }
    }

    /// Both ends were told the end: nothing of the circuit is left.
    fn forget(&mut self, circuit: usize) {
        let Some(mut done) = self.circuits.take(circuit) else { return };
        for side in [CALLER, TARGET] {
            let Some(end) = done.end(side) else { continue };
            let (port, stream, is_ready) = (end.port, end.stream, end.is_ready);
            let Some(client) = self.clients.get(port) else { continue };
            client.streams.remove(&stream);
            if is_ready {
                client.ready.retain(|place| *place != (circuit, side));
            }
        }
    }

    /// Closes circuits that stand still and gives back memory of quiet ones; to be called about every second.
    pub fn tick(&mut self, now: Instant) {
        let keys: Vec<usize> = self.circuits.keys().collect();
        for key in keys {
            let Some(circuit) = self.circuits.get(key) else { continue };
            if circuit.target.is_none() {
                if now.saturating_duration_since(circuit.opened_at) > HEAD_TIME_MAX {
                    self.totals.refused += 1;
                    self.refuse(key, Status::Refused);
                }
                continue;
            }
            let is_stalled = [CALLER, TARGET].into_iter().any(|side| {
                let (from, to) = circuit.ends(side).expect("it is joined");
                let owes = !to.queue.is_empty() || (from.received == from.granted && !from.has_ended);
                if !owes {
                    to.moved_at = now;
                    if to.queue.capacity() > 0 {
                        to.queue = VecDeque::new();
                    }
                }
                now.saturating_duration_since(to.moved_at) > STALL_TIME_MAX
            });
            if is_stalled {
                self.totals.stalled += 1;
                self.drop_circuit(key, None);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::noise::tests::Dice;

    const ANN: CellId = CellId([1; 32]);
    const BOB: CellId = CellId([2; 32]);
    const S: Duration = Duration::from_secs(1);

    /// What a client was sent: kind, flags, stream, length, body.
    type Sent = (u8, u16, u32, u32, Vec<u8>);

    struct World {
        switch: Switch,
        now: Instant,
        ann: Port,
        bob: Port,
    }

    impl World {
        fn new() -> Self {
            Self::with(Limits::default())
        }

        fn with(limits: Limits) -> Self {
            let mut switch = Switch::new(limits);
            let (ann, bob) = (switch.enter(ANN).0, switch.enter(BOB).0);
            Self { switch, now: Instant::now(), ann, bob }
        }

        fn say(&mut self, port: Port, kind: u8, flags: u16, stream: u32, length: u32, body: &[u8]) {
            self.try_say(port, kind, flags, stream, length, body).unwrap();
        }

        fn try_say(
            &mut self,
            port: Port,
            kind: u8,
            flags: u16,
            stream: u32,
            length: u32,
            body: &[u8],
        ) -> Result<Went, Violation> {
            let bytes = [&frame_head(kind, flags, stream, length)[..], body].concat();
            self.switch.on_bytes(port, &bytes, self.now)
        }

        fn data(&mut self, port: Port, stream: u32, body: &[u8]) {
            self.say(port, DATA, 0, stream, body.len() as u32, body);
        }

        /// A caller's head; what comes back on this stream is for the caller.
        fn call(&mut self, port: Port, stream: u32, to: CellId) {
            let head = [&[VERSION][..], to.as_bytes()].concat();
            self.say(port, DATA, SYN, stream, 33, &head);
        }

        /// Everything that waits for a client.
        fn sent(&mut self, port: Port) -> Vec<Sent> {
            let mut out = Vec::new();
            loop {
                let before = out.len();
                self.switch.fill(port, &mut out, before + 65_535, self.now);
                if out.len() == before {
                    break;
                }
            }
            let mut sent = Vec::new();
            let mut rest = &out[..];
            while !rest.is_empty() {
                let number = |at: usize| u32::from_be_bytes(rest[at..at + 4].try_into().unwrap());
                let (stream, length) = (number(4), number(8));
                let body = if rest[1] == DATA { length as usize } else { 0 };
                let flags = u16::from_be_bytes([rest[2], rest[3]]);
                sent.push((rest[1], flags, stream, length, rest[12..12 + body].to_vec()));
                rest = &rest[12 + body..];
            }
            sent
        }

        /// Ann's stream 1 to Bob's stream 2.
        fn joined(limits: Limits) -> Self {
            let mut world = Self::with(limits);
            world.call(world.ann, 1, BOB);
            let head = [&[VERSION][..], ANN.as_bytes()].concat();
            assert_eq!(world.sent(world.bob), [(DATA, SYN, 2, 33, head)]);
            world.say(world.bob, DATA, ACK, 2, 1, &[0]);
            assert_eq!(world.sent(world.ann), [(DATA, ACK, 1, 1, vec![0])]);
            world
        }
    }

    #[test]
    fn bytes_pass_in_order_both_ways_and_half_an_end_passes_alone() {
        let mut world = World::joined(Limits::default());
        world.data(world.ann, 1, b"one ");
        world.say(world.ann, DATA, FIN, 1, 3, b"two");
        assert_eq!(world.sent(world.bob), [(DATA, FIN, 2, 7, b"one two".to_vec())]);
        world.data(world.bob, 2, b"still here");
        assert_eq!(world.sent(world.ann), [(DATA, 0, 1, 10, b"still here".to_vec())]);
        world.say(world.bob, WINDOW_UPDATE, FIN, 2, 0, &[]);
        assert_eq!(world.sent(world.ann), [(DATA, FIN, 1, 0, vec![])]);
        assert_eq!((world.switch.circuits(), world.switch.held_bytes()), (0, 0));
        // What is still under way to it is passed over.
        world.data(world.bob, 2, b"late");
        world.say(world.ann, WINDOW_UPDATE, 0, 1, 5, &[]);
    }

    #[test]
    fn head_and_frames_may_come_in_any_pieces() {
        let mut world = World::new();
        let head = [&[VERSION][..], BOB.as_bytes(), b"more"].concat();
        let bytes = [&frame_head(DATA, SYN | FIN, 1, 37)[..], &head].concat();
        for piece in bytes.chunks(5) {
            world.switch.on_bytes(world.ann, piece, world.now).unwrap();
        }
        let sent = world.sent(world.bob);
        assert_eq!((sent.len(), sent[0].1, &sent[0].4[33..]), (1, SYN | FIN, &b"more"[..]));
    }

    #[test]
    fn caller_is_told_why_not() {
        let mut world = World::with(Limits { circuits: 1, ..Limits::default() });
        world.call(world.ann, 1, CellId([9; 32]));
        world.call(world.ann, 3, ANN);
        world.say(world.ann, DATA, SYN, 5, 33, &[&[9][..], BOB.as_bytes()].concat());
        world.call(world.ann, 7, BOB);
        world.call(world.ann, 9, BOB);
        let told: Vec<_> = world.sent(world.ann).into_iter().map(|sent| (sent.1, sent.2, sent.4)).collect();
        let word = |stream, status: Status| (ACK | FIN, stream, vec![status as u8]);
        let expected = [
            word(1, Status::NotHere),
            word(3, Status::Refused),
            word(5, Status::Refused),
            word(9, Status::Busy),
        ];
        assert_eq!(told, expected);
        let totals = world.switch.totals();
        assert_eq!((totals.joined, totals.not_here, totals.refused, totals.busy), (1, 1, 2, 1));
    }

    #[test]
    fn credit_passes_through_but_not_beyond_what_the_hub_holds() {
        let mut world = World::joined(Limits::default());
        // Bob has read, and gives 100,000 more.
        world.say(world.bob, WINDOW_UPDATE, 0, 2, 100_000, &[]);
        assert_eq!(world.sent(world.ann), [(WINDOW_UPDATE, 0, 1, 100_000, vec![])]);
        // Without end: the hub's own limit holds until Bob's socket takes something.
        world.say(world.bob, WINDOW_UPDATE, 0, 2, 1 << 30, &[]);
        let credit = WINDOW_BYTES_MAX + 33 - WINDOW_BYTES_MIN - 100_000;
        assert_eq!(world.sent(world.ann), [(WINDOW_UPDATE, 0, 1, credit as u32, vec![])]);
        let body = vec![7; (WINDOW_BYTES_MAX) as usize];
        world.data(world.ann, 1, &body);
        assert_eq!(world.switch.held_bytes() as u64, WINDOW_BYTES_MAX);
        assert_eq!(world.sent(world.ann), []);
        let taken: usize = world.sent(world.bob).iter().map(|sent| sent.4.len()).sum();
        assert_eq!(taken as u64, WINDOW_BYTES_MAX);
        let sent = world.sent(world.ann);
        assert_eq!(sent.iter().map(|sent| u64::from(sent.3)).sum::<u64>(), WINDOW_BYTES_MAX);
        // More than was given is against the rules.
        let more = vec![7; WINDOW_BYTES_MAX as usize + 1];
        assert!(world.try_say(world.ann, DATA, 0, 1, more.len() as u32, &more).is_err());
    }

    #[test]
    fn client_that_sends_more_than_its_credit_is_still_reckoned_with_until_it_is_gone() {
        let mut world = World::joined(Limits::default());
        assert!(world.try_say(world.ann, DATA, 0, 1, u32::MAX, &[]).is_err());
        // Her task says its farewell meanwhile; Bob goes on.
        world.say(world.bob, WINDOW_UPDATE, 0, 2, 1 << 20, &[]);
        world.data(world.bob, 2, b"more");
        world.switch.leave(world.ann);
        assert_eq!((world.switch.circuits(), world.switch.held_bytes()), (0, 0));
    }

    #[test]
    fn circuits_that_fill_all_at_once_are_reset_before_the_hub_holds_much_more_than_it_should() {
        let limits = Limits { held_bytes: 100_000, ..Limits::default() };
        let mut world = World::joined(limits);
        for stream in [3, 5, 7] {
            world.call(world.ann, stream, BOB);
        }
        // Bob's socket takes nothing.
        for stream in [1, 3, 5] {
            world.data(world.ann, stream, &[7; 60_000]);
        }
        assert_eq!((world.switch.circuits(), world.switch.totals().stalled), (4, 0));
        world.data(world.ann, 7, &[7; 60_000]);
        assert_eq!((world.switch.circuits(), world.switch.totals().stalled), (3, 1));
        assert_eq!(world.sent(world.ann), [(DATA, RST, 7, 0, vec![])]);
        // One whose receiver takes what comes goes on.
        world.data(world.bob, 2, &[9; 10_000]);
        assert_eq!(world.switch.circuits(), 3);
        assert!(world.switch.held_bytes() <= 200_000);
    }

    #[test]
    fn full_receiver_stalls_nobody_else_and_is_cut_off_in_the_end() {
        let mut world = World::joined(Limits::default());
        let cal = world.switch.enter(CellId([3; 32])).0;
        // Bob's socket takes nothing.
        world.data(world.ann, 1, &[5; 100_000]);
        world.call(world.ann, 3, CellId([3; 32]));
        world.data(world.ann, 3, b"for Cal");
        let sent = world.sent(cal);
        assert_eq!(&sent[0].4[33..], b"for Cal");
        world.now += STALL_TIME_MAX / 2;
        world.switch.tick(world.now);
        assert_eq!(world.switch.circuits(), 2);
        world.now += STALL_TIME_MAX / 2 + S;
        world.switch.tick(world.now);
        assert_eq!(world.sent(world.ann), [(DATA, RST, 1, 0, vec![])]);
        assert_eq!((world.switch.circuits(), world.switch.totals().stalled), (1, 1));
        assert_eq!(world.switch.held_bytes(), 0);
        assert_eq!(world.sent(world.bob), [(DATA, RST, 2, 0, vec![])]);
    }

    #[test]
    fn reader_that_gives_no_credit_is_cut_off_and_a_quiet_circuit_is_not() {
        let mut world = World::joined(Limits::default());
        for _ in 0..100 {
            world.now += 60 * S;
            world.switch.tick(world.now);
        }
        assert_eq!(world.switch.circuits(), 1, "quiet");
        world.data(world.ann, 1, &vec![0; WINDOW_BYTES_MIN as usize - 33]);
        world.sent(world.bob);
        world.now += STALL_TIME_MAX + S;
        world.switch.tick(world.now);
        assert_eq!(world.switch.circuits(), 0);
    }

    #[test]
    fn short_message_waits_for_one_turn_of_a_busy_circuit() {
        let mut world = World::joined(Limits::default());
        world.call(world.ann, 3, BOB);
        world.sent(world.bob);
        world.data(world.ann, 1, &[1; 200_000]);
        world.data(world.ann, 3, b"short");
        let sent = world.sent(world.bob);
        let at = sent.iter().position(|sent| sent.2 == 4).unwrap();
        assert!(sent[..at].iter().map(|sent| sent.4.len()).sum::<usize>() <= TURN_BYTES);
    }

    #[test]
    fn what_is_sent_at_once_is_no_longer_than_asked() {
        for bytes_max in 25..80 {
            let mut world = World::joined(Limits::default());
            world.call(world.ann, 3, BOB);
            world.data(world.ann, 1, &[1; 500]);
            world.say(world.ann, DATA, FIN, 3, 3, b"end");
            world.say(world.ann, WINDOW_UPDATE, FIN, 1, 100_000, &[]);
            let (mut total, mut out) = (0, Vec::new());
            loop {
                out.clear();
                world.switch.fill(world.bob, &mut out, bytes_max, world.now);
                assert!(out.len() <= bytes_max, "{} of {bytes_max}", out.len());
                total += out.len();
                if out.is_empty() {
                    break;
                }
            }
            assert!(total > 500 + 36);
        }
    }

    #[test]
    fn reset_and_departure_reach_the_other_end() {
        let mut world = World::joined(Limits::default());
        world.say(world.ann, WINDOW_UPDATE, RST, 1, 0, &[]);
        assert_eq!(world.sent(world.bob), [(DATA, RST, 2, 0, vec![])]);
        world.call(world.ann, 3, BOB);
        // Bob has not heard of this one: he hears nothing at all.
        world.say(world.ann, DATA, RST, 3, 0, &[]);
        assert_eq!(world.sent(world.bob), []);
        world.call(world.ann, 5, BOB);
        world.sent(world.bob);
        world.switch.leave(world.bob);
        assert_eq!(world.sent(world.ann), [(DATA, RST, 5, 0, vec![])]);
        assert_eq!((world.switch.circuits(), world.switch.held_bytes()), (0, 0));
        world.call(world.ann, 7, BOB);
        assert_eq!(world.sent(world.ann)[0].4, [Status::NotHere as u8]);
    }

    #[test]
    fn head_that_does_not_come_is_not_waited_for() {
        let mut world = World::new();
        world.say(world.ann, DATA, SYN, 1, 10, &[VERSION; 10]);
        world.now += HEAD_TIME_MAX + S;
        world.switch.tick(world.now);
        assert_eq!(world.sent(world.ann), [(DATA, ACK | FIN, 1, 1, vec![Status::Refused as u8])]);
        // And one that ends before it has come.
        world.say(world.ann, DATA, SYN | FIN, 3, 2, &[VERSION; 2]);
        assert_eq!(world.sent(world.ann), [(DATA, RST, 3, 0, vec![])]);
        assert_eq!(world.switch.circuits(), 0);
    }

    #[test]
    fn client_that_takes_no_answers_is_not_read_from_and_not_called() {
        let mut world = World::new();
        let mut number = 1;
        while !world.switch.is_clogged(world.bob) {
            world.say(world.bob, PING, SYN, 0, number, &[]);
            number += 1;
        }
        assert!(number < 10_000);
        world.call(world.ann, 1, BOB);
        assert_eq!(world.sent(world.ann)[0].4, [Status::Busy as u8]);
        world.sent(world.bob);
        assert!(!world.switch.is_clogged(world.bob));
    }

    #[test]
    fn frames_against_the_rules_are_told() {
        for (kind, flags, stream) in [(DATA, SYN, 2), (DATA, SYN, 0), (7, 0, 1)] {
            assert!(World::new().try_say(World::new().ann, kind, flags, stream, 0, &[]).is_err());
        }
        let mut world = World::joined(Limits::default());
        assert!(world.try_say(world.ann, DATA, SYN, 1, 0, &[]).is_err(), "the same stream again");
        world.say(world.ann, DATA, FIN, 1, 0, &[]);
        assert!(world.try_say(world.ann, DATA, 0, 1, 1, &[0]).is_err(), "more after the end");
        let mut world = World::new();
        assert_eq!(world.try_say(world.ann, GO_AWAY, 0, 0, 0, &[]), Ok(Went::Away));
    }

    #[test]
    fn newest_of_one_id_is_called() {
        let mut world = World::new();
        let (new, old) = world.switch.enter(BOB);
        assert_eq!(old, Some(world.bob));
        world.switch.leave(world.bob);
        world.call(world.ann, 1, BOB);
        assert_eq!(world.sent(new)[0].1, SYN);
        assert_eq!(world.switch.clients(), 2);
    }

    #[test]
    fn random_frames_leave_nothing_behind() {
        for seed in 0..200 {
            let mut dice = Dice(seed);
            let mut world = World::new();
            for _ in 0..300 {
                let port = if dice.roll(2) == 0 { world.ann } else { world.bob };
                let (kind, flags) = (dice.roll(3) as u8, dice.roll(16) as u16);
                let (stream, length) = (dice.roll(8) as u32, dice.roll(100) as u32);
                let other = if port == world.ann { BOB } else { ANN };
                let head = [&[VERSION][..], other.as_bytes(), &dice.bytes(67)].concat();
                let body = if kind == DATA { &head[..length as usize] } else { &[] };
                let _ = world.try_say(port, kind, flags, stream, length, body);
                if dice.roll(3) == 0 {
                    world.sent(port);
                }
                world.now += S * dice.roll(5) as u32;
                world.switch.tick(world.now);
            }
            world.switch.leave(world.ann);
            world.switch.leave(world.bob);
            let switch = &world.switch;
            assert_eq!((switch.circuits(), switch.held_bytes(), switch.clients()), (0, 0, 0), "seed {seed}");
        }
    }
}

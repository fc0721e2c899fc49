//! The asking side.

use std::io;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use smol::io::{AsyncRead, AsyncWrite};

use super::stream::{finish, read_body, read_head, read_head_after, write_head, write_reply};
use super::{
    ANSWER_TIME_MAX, AUDIT_TIME_MAX, AskError, AuditStatus, BatchHead, CATALOG_HEAD_BYTES_MAX,
    CHUNK_SEALED_MAX, Class, FRAME_BYTES_MAX, GetStatus, GrantStatus, HeadOutcome, PROGRESS_TIME_MAX,
    PUT_BYTES_MAX, PutStatus, REPLY_HEAD_BYTES_MAX, Reply, Request, STORE_TIME_MAX, Usage,
};
use crate::id::ChunkName;
use crate::proof::{Challenge, Nonce};
use crate::wire::session::{Session, Stream};
use crate::wire::{flush, read_full, within, write_full};
use crate::world::Timer;

/// Written and read at once in a `Measure`.
const BLANK_BYTES: usize = 8 * 1024;

async fn begin(session: &Session, request: &Request) -> Result<Stream, AskError> {
    let mut stream = within(PROGRESS_TIME_MAX, session.open())
        .await
        .ok_or_else(|| AskError::Stream(io::ErrorKind::TimedOut.into()))??;
    write_head(&mut stream, &request.to_bytes()).await?;
    Ok(stream)
}

pub(super) async fn read_reply<S: AsyncRead + Unpin>(
    stream: &mut S,
    wait: Duration,
) -> Result<Reply, AskError> {
    parse_reply(&read_head(stream, REPLY_HEAD_BYTES_MAX, wait).await?)
}

fn parse_reply(head: &[u8]) -> Result<Reply, AskError> {
    match Reply::from_bytes(head)? {
        Reply::Error(refusal) => Err(AskError::Refused(refusal)),
        reply => Ok(reply),
    }
}

/// Asks what has no body either way; an error reply comes as `AskError::Refused`. That the reply fits the request,
/// in kind and in number of names, is checked.
pub async fn ask(session: &Session, request: &Request) -> Result<Reply, AskError> {
    let mut stream = begin(session, request).await?;
    let reply = read_reply(&mut stream, PROGRESS_TIME_MAX).await?;
    if fits(request, &reply) { Ok(reply) } else { Err(AskError::OutOfTurn) }
}

fn fits(request: &Request, reply: &Reply) -> bool {
    match (request, reply) {
        (Request::Hello(_), Reply::Hello(_))
        | (Request::Ping, Reply::Pong)
        | (Request::Observe, Reply::Observe { .. })
        | (Request::Friendship(_), Reply::Friendship(_))
        | (Request::Receipts(_), Reply::Receipts(_))
        | (Request::Settle(_), Reply::Settle(_))
        | (Request::Digest { .. }, Reply::Digest { .. }) => true,
        (Request::Bucket { bucket }, Reply::Bucket { entries, .. }) => {
            entries.iter().all(|(name, _)| name.0[..2] == bucket.to_be_bytes())
        }
        (Request::Have { names }, Reply::Have { held }) => names.len() == held.len(),
        (Request::Restore { names }, Reply::Restore { held }) => names.len() == held.len(),
        (Request::Release { names }, Reply::Release { count }) => *count as usize <= names.len(),
        (Request::Inventory { limit, .. }, Reply::Inventory { entries, .. }) => {
            entries.len() <= *limit as usize
        }
        (
            Request::Card { .. }
            | Request::Goodbye { .. }
            | Request::RecoverySecret { .. }
            | Request::Beat { .. },
            Reply::Done,
        ) => true,
        _ => false,
    }
}

/// Asks for chunks; they come one by one.
///
/// # Panics
/// If there are more than 1,024 names.
pub async fn get(session: &Session, names: Vec<ChunkName>) -> Result<Getting, AskError> {
    let request = Request::Get { names };
    let mut stream = begin(session, &request).await?;
    let Request::Get { names } = request else { unreachable!("it was made above") };
    match read_reply(&mut stream, PROGRESS_TIME_MAX).await? {
        Reply::Get { count } if count as usize == names.len() => Ok(Getting { stream, names, next: 0 }),
        _ => Err(AskError::OutOfTurn),
    }
}

/// Asks for chunks of a ticket's creator: name, sealed bytes and proof of each. They come one by one.
///
/// # Panics
/// If there are more than 32.
pub async fn get_by_ticket(
    session: &Session,
    ticket: Vec<u8>,
    chunks: Vec<(ChunkName, u32, Vec<u8>)>,
) -> Result<Getting, AskError> {
    let names: Vec<ChunkName> = chunks.iter().map(|(name, ..)| *name).collect();
    let mut stream = begin(session, &Request::GetByTicket { ticket, chunks }).await?;
    match read_reply(&mut stream, PROGRESS_TIME_MAX).await? {
        Reply::Get { count } if count as usize == names.len() => Ok(Getting { stream, names, next: 0 }),
        _ => Err(AskError::OutOfTurn),
    }
}

/// Offers grants; says what became of each.
///
/// # Panics
/// If there are more than 64.
pub async fn offer_grants(session: &Session, grants: &[Vec<u8>]) -> Result<Vec<GrantStatus>, AskError> {
    let lens = grants.iter().map(|grant| grant.len() as u32).collect();
    let mut stream = begin(session, &Request::Grants { lens }).await?;
    for grant in grants {
        write_full(&mut stream, grant, PROGRESS_TIME_MAX).await?;
    }
    flush(&mut stream, PROGRESS_TIME_MAX).await?;
    match read_reply(&mut stream, STORE_TIME_MAX).await? {
        Reply::Grants { statuses } if statuses.len() == grants.len() => Ok(statuses),
        _ => Err(AskError::OutOfTurn),
    }
}

/// Gives a peer our list of revocations; the number of the list that it holds now.
pub async fn put_revocations(session: &Session, list: &[u8]) -> Result<u64, AskError> {
    let mut stream = begin(session, &Request::Revocations { len: list.len() as u32 }).await?;
    write_full(&mut stream, list, PROGRESS_TIME_MAX).await?;
    flush(&mut stream, PROGRESS_TIME_MAX).await?;
    match read_reply(&mut stream, PROGRESS_TIME_MAX).await? {
        Reply::Revocations { number } => Ok(number),
        _ => Err(AskError::OutOfTurn),
    }
}

/// The list of our revocations that a peer holds; no bytes if it never saw one.
pub async fn taken_back(session: &Session) -> Result<Vec<u8>, AskError> {
    let mut stream = begin(session, &Request::TakenBack).await?;
    let Reply::TakenBack { len } = read_reply(&mut stream, PROGRESS_TIME_MAX).await? else {
        return Err(AskError::OutOfTurn);
    };
    let mut list = Vec::new();
    read_body(&mut stream, len as usize, &mut list).await?;
    Ok(list)
}

/// The other side of `taken_back`.
pub async fn answer_taken_back(stream: &mut Stream, list: &[u8]) -> Result<(), AskError> {
    write_reply(stream, &Reply::TakenBack { len: list.len() as u32 }).await?;
    write_full(stream, list, PROGRESS_TIME_MAX).await?;
    Ok(finish(stream).await?)
}

/// Chunks under way; dropping it stops them.
pub struct Getting {
    stream: Stream,
    names: Vec<ChunkName>,
    next: usize,
}

impl Getting {
    /// The next chunk in the order asked: its bytes, where found, replace those in `buf` (at most 4 MiB and 64
    /// bytes). Whether they hash to the name is for the caller to check. `None` after the last one.
    pub async fn next(&mut self, buf: &mut Vec<u8>) -> Result<Option<(ChunkName, GetStatus)>, AskError> {
        let Some(name) = self.names.get(self.next).copied() else { return Ok(None) };
        let mut head = [0; 5];
        read_full(&mut self.stream, &mut head, PROGRESS_TIME_MAX).await?;
        let status = GetStatus::from_byte(head[0]);
        let len = u32::from_le_bytes(head[1..].try_into().expect("four of five bytes")) as usize;
        let len_max = if status == GetStatus::Found { CHUNK_SEALED_MAX } else { 0 };
        if len > len_max {
            return Err(AskError::TooLong(len as u64));
        }
        read_body(&mut self.stream, len, buf).await?;
        self.next += 1;
        Ok(Some((name, status)))
    }
}

/// Asks for proofs; they come one by one.
///
/// # Panics
/// If there are more than 256.
pub async fn audit(
    session: &Session,
    nonce: Nonce,
    asks: Vec<(ChunkName, Challenge)>,
) -> Result<Auditing, AskError> {
    let request = Request::Audit { nonce, asks };
    let mut stream = begin(session, &request).await?;
    let Request::Audit { asks, .. } = request else { unreachable!("it was made above") };
    match read_reply(&mut stream, AUDIT_TIME_MAX).await? {
        Reply::Audit { count } if count as usize == asks.len() => Ok(Auditing { stream, asks, next: 0 }),
        _ => Err(AskError::OutOfTurn),
    }
}

/// Proofs under way; dropping it stops them.
pub struct Auditing {
    stream: Stream,
    asks: Vec<(ChunkName, Challenge)>,
    next: usize,
}

impl Auditing {
    /// The next answer in the order asked, with the proof's bytes where there is one. `None` after the last one.
    pub async fn next(&mut self) -> Result<Option<(AuditStatus, Vec<u8>)>, AskError> {
        let Some((_, challenge)) = self.asks.get(self.next) else { return Ok(None) };
        let mut head = [0; 5];
        read_full(&mut self.stream, &mut head, AUDIT_TIME_MAX).await?;
        let status = AuditStatus::from_byte(head[0]);
        let len = u32::from_le_bytes(head[1..].try_into().expect("four of five bytes")) as usize;
        let len_max = if status == AuditStatus::Proof { challenge.proof_bytes_max() } else { 0 };
        if len > len_max {
            return Err(AskError::TooLong(len as u64));
        }
        let mut proof = Vec::new();
        read_body(&mut self.stream, len, &mut proof).await?;
        self.next += 1;
        Ok(Some((status, proof)))
    }
}

/// Offers chunks to keep, each with its sealed length; their bytes follow by `Putting::send`, in this order.
///
/// # Panics
/// If there are more than 1,024 entries or 64 MiB.
pub async fn put(
    session: &Session,
    class: Class,
    entries: Vec<(ChunkName, u32)>,
) -> Result<Putting, AskError> {
    let total: u64 = entries.iter().map(|(_, len)| u64::from(*len)).sum();
    assert!(total <= PUT_BYTES_MAX, "a put carries at most 64 MiB");
    let lens = entries.iter().map(|(_, len)| *len).collect();
    let stream = begin(session, &Request::Put { class, entries }).await?;
    Ok(Putting { stream, lens, sent: 0, early: Vec::new() })
}

/// Chunks on their way to a peer; dropping it stops them.
pub struct Putting {
    stream: Stream,
    lens: Vec<u32>,
    sent: usize,
    /// First bytes of a reply that came before all was sent.
    early: Vec<u8>,
}

impl Putting {
    /// Sends the next chunk. `false`: the peer has answered already, for instance that its disk is full; send no
    /// more and call `finish`.
    ///
    /// # Panics
    /// If the length is not the offered one, or all were sent.
    pub async fn send(&mut self, sealed: &[u8]) -> Result<bool, AskError> {
        assert_eq!(Some(sealed.len()), self.lens.get(self.sent).map(|len| *len as usize), "as offered");
        let mut rest = sealed;
        while !rest.is_empty() && self.early.is_empty() {
            match self.write_or_hear(rest).await? {
                Some(n) => rest = &rest[n..],
                None => return Ok(false),
            }
        }
        self.sent += 1;
        Ok(self.early.is_empty())
    }

    /// How many bytes were taken, or `None` when the peer answers instead.
    async fn write_or_hear(&mut self, bytes: &[u8]) -> io::Result<Option<usize>> {
        let mut timer = None;
        let (stream, early) = (&mut self.stream, &mut self.early);
        std::future::poll_fn(|cx| {
            let written = Pin::new(&mut *stream).poll_write(cx, bytes);
            if let Poll::Ready(Ok(n @ 1..)) = written {
                return Poll::Ready(Ok(Some(n)));
            }
            // Only a peer that has answered lets us wait, or ends the stream, before all was sent.
            let mut first = [0; 4];
            match Pin::new(&mut *stream).poll_read(cx, &mut first) {
                Poll::Ready(Ok(n @ 1..)) => {
                    early.extend_from_slice(&first[..n]);
                    return Poll::Ready(Ok(None));
                }
                Poll::Ready(Ok(_)) => return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {}
            }
            match written {
                Poll::Ready(Ok(_)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {}
            }
            let timer = timer.get_or_insert_with(|| Timer::after(PROGRESS_TIME_MAX));
            std::future::Future::poll(Pin::new(timer), cx).map(|_| Err(io::ErrorKind::TimedOut.into()))
        })
        .await
    }

    /// What became of each offered chunk, and the space after it.
    pub async fn finish(mut self) -> Result<(Vec<PutStatus>, Usage), AskError> {
        flush(&mut self.stream, PROGRESS_TIME_MAX).await?;
        if self.early.is_empty() {
            let mut first = [0];
            read_full(&mut self.stream, &mut first, STORE_TIME_MAX).await?;
            self.early.extend_from_slice(&first);
        }
        let head = read_head_after(&mut self.stream, &self.early, REPLY_HEAD_BYTES_MAX).await?;
        match parse_reply(&head)? {
            Reply::Put { statuses, usage } if statuses.len() == self.lens.len() => Ok((statuses, usage)),
            _ => Err(AskError::OutOfTurn),
        }
    }
}

/// Sends `up` and takes `down` bytes without meaning, at most 4 MiB each, to see how long that takes.
pub async fn measure(session: &Session, up: u32, down: u32) -> Result<(), AskError> {
    let mut stream = begin(session, &Request::Measure { up, down }).await?;
    write_blank(&mut stream, up).await?;
    match read_reply(&mut stream, PROGRESS_TIME_MAX).await? {
        Reply::Measure { down: coming } if coming == down => Ok(read_blank(&mut stream, down).await?),
        _ => Err(AskError::OutOfTurn),
    }
}

/// The other side of `measure`.
pub async fn answer_measure(stream: &mut Stream, up: u32, down: u32) -> Result<(), AskError> {
    read_blank(stream, up).await?;
    write_reply(stream, &Reply::Measure { down }).await?;
    write_blank(stream, down).await?;
    Ok(finish(stream).await?)
}

async fn write_blank(stream: &mut Stream, count: u32) -> io::Result<()> {
    let blank = [0; BLANK_BYTES];
    let mut rest = count as usize;
    while rest > 0 {
        let n = rest.min(blank.len());
        write_full(stream, &blank[..n], PROGRESS_TIME_MAX).await?;
        rest -= n;
    }
    flush(stream, PROGRESS_TIME_MAX).await
}

async fn read_blank(stream: &mut Stream, count: u32) -> io::Result<()> {
    let mut blank = [0; BLANK_BYTES];
    let mut rest = count as usize;
    while rest > 0 {
        let n = rest.min(blank.len());
        read_full(stream, &mut blank[..n], PROGRESS_TIME_MAX).await?;
        rest -= n;
    }
    Ok(())
}

/// All catalog heads of ours that the peer holds: at most 256, and 8 MiB.
pub async fn heads(session: &Session) -> Result<Vec<Vec<u8>>, AskError> {
    let mut stream = begin(session, &Request::Heads).await?;
    let Reply::Heads { lens } = read_reply(&mut stream, PROGRESS_TIME_MAX).await? else {
        return Err(AskError::OutOfTurn);
    };
    let mut heads = Vec::with_capacity(lens.len());
    for len in lens {
        let mut head = Vec::new();
        read_body(&mut stream, len as usize, &mut head).await?;
        heads.push(head);
    }
    Ok(heads)
}

/// Gives the peer a catalog head to keep.
///
/// # Panics
/// If it is longer than 1 MiB.
pub async fn put_head(session: &Session, head: &[u8]) -> Result<HeadOutcome, AskError> {
    assert!(head.len() <= CATALOG_HEAD_BYTES_MAX, "a catalog head has at most 1 MiB");
    let mut stream = begin(session, &Request::PutHead { len: head.len() as u32 }).await?;
    write_full(&mut stream, head, PROGRESS_TIME_MAX).await?;
    flush(&mut stream, PROGRESS_TIME_MAX).await?;
    match read_reply(&mut stream, STORE_TIME_MAX).await? {
        Reply::PutHead(outcome) => Ok(outcome),
        _ => Err(AskError::OutOfTurn),
    }
}

/// Says something to a friend, of which `head` tells; gives up to where it is kept, see `Reply::Messages`. A batch that is
/// given up half-way may have come all the same.
pub async fn say(session: &Session, head: BatchHead, body: &[u8]) -> Result<Option<u64>, AskError> {
    let mut stream = begin(session, &Request::Messages(head)).await?;
    write_full(&mut stream, body, PROGRESS_TIME_MAX).await?;
    flush(&mut stream, PROGRESS_TIME_MAX).await?;
    match read_reply(&mut stream, PROGRESS_TIME_MAX).await? {
        Reply::Messages(stored) => Ok(stored),
        _ => Err(AskError::OutOfTurn),
    }
}

/// An answer of a friend's models under way; dropping it stops it there.
pub struct Answering {
    stream: Stream,
}

/// Asks a friend's models. The wait for its word that it answers has no limit but the session's: whoever waits looks beside
/// whether the friend is there.
pub async fn question(session: &Session, question: &[u8]) -> Result<Answering, AskError> {
    let mut stream = begin(session, &Request::Question { len: question.len() as u32 }).await?;
    write_full(&mut stream, question, PROGRESS_TIME_MAX).await?;
    flush(&mut stream, PROGRESS_TIME_MAX).await?;
    match read_reply(&mut stream, ANSWER_TIME_MAX).await? {
        Reply::Answering => Ok(Answering { stream }),
        _ => Err(AskError::OutOfTurn),
    }
}

impl Answering {
    /// The next frame: its kind and what is in it.
    pub async fn next(&mut self, bytes_max: impl Fn(u8) -> usize) -> Result<(u8, Vec<u8>), AskError> {
        let mut head = [0; 5];
        read_full(&mut self.stream, &mut head, ANSWER_TIME_MAX).await?;
        let (kind, len) = (head[0], u32::from_le_bytes([head[1], head[2], head[3], head[4]]) as usize);
        if len > bytes_max(kind).min(FRAME_BYTES_MAX) {
            return Err(AskError::TooLong(len as u64));
        }
        let mut bytes = vec![0; len];
        read_full(&mut self.stream, &mut bytes, PROGRESS_TIME_MAX).await?;
        Ok((kind, bytes))
    }
}

/// Sends one frame of an answer, at once.
pub async fn write_frame<S: AsyncWrite + Unpin>(stream: &mut S, kind: u8, bytes: &[u8]) -> io::Result<()> {
    let mut frame = Vec::with_capacity(5 + bytes.len());
    frame.push(kind);
    frame.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
    frame.extend_from_slice(bytes);
    write_full(stream, &frame, PROGRESS_TIME_MAX).await?;
    flush(stream, PROGRESS_TIME_MAX).await
}

/// Waits until the peer that asked has gone away: it says nothing more after its question.
pub async fn asker_gone<S: AsyncRead + Unpin>(stream: &mut S) {
    let mut byte = [0];
    // A byte that should not be there is as good as an end.
    let _ = std::future::poll_fn(|cx| Pin::new(&mut *stream).poll_read(cx, &mut byte)).await;
}

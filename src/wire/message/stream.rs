//! Heads and bodies on a stream, and what the answering side writes.

use std::io;
use std::time::Duration;

use smol::io::{AsyncRead, AsyncWrite, AsyncWriteExt};

use super::{
    AskError, AuditStatus, BODY_BYTES_PER_SECOND_MIN, ErrorCode, GetStatus, HEAD_TIME_MAX, PROGRESS_TIME_MAX,
    REQUEST_HEAD_BYTES_MAX, Refusal, Reply, Request,
};
use crate::buffers;
use crate::codec::Writer;
use crate::wire::{flush, read_full, within, write_full};

/// Writes a head and sends it.
pub async fn write_head<S: AsyncWrite + Unpin>(stream: &mut S, head: &[u8]) -> io::Result<()> {
    let mut framed = Vec::with_capacity(4 + head.len());
    framed.extend_from_slice(&(head.len() as u32).to_le_bytes());
    framed.extend_from_slice(head);
    write_full(stream, &framed, PROGRESS_TIME_MAX).await?;
    flush(stream, PROGRESS_TIME_MAX).await
}

/// Reads a head of 1 to `max` bytes that begins within `wait` and is whole within 60 s more.
pub async fn read_head<S>(stream: &mut S, max: usize, wait: Duration) -> Result<Vec<u8>, AskError>
where
    S: AsyncRead + Unpin,
{
    let mut first = [0];
    read_full(stream, &mut first, wait).await?;
    read_head_after(stream, &first, max).await
}

/// The head whose first bytes (at most 4) have come already.
pub(super) async fn read_head_after<S>(stream: &mut S, first: &[u8], max: usize) -> Result<Vec<u8>, AskError>
where
    S: AsyncRead + Unpin,
{
    let work = async {
        let mut len = [0; 4];
        len[..first.len()].copy_from_slice(first);
        read_full(stream, &mut len[first.len()..], PROGRESS_TIME_MAX).await?;
        let len = u32::from_le_bytes(len) as usize;
        if len == 0 || len > max {
            return Err(AskError::TooLong(len as u64));
        }
        let mut head = vec![0; len];
        read_full(stream, &mut head, PROGRESS_TIME_MAX).await?;
        Ok(head)
    };
    within(HEAD_TIME_MAX, work).await.unwrap_or(Err(AskError::Stream(io::ErrorKind::TimedOut.into())))
}

/// Reads `len` bytes of a body into `buf`, replacing what was there. The caller has checked `len` and holds the
/// permit for it.
pub async fn read_body<S: AsyncRead + Unpin>(
    stream: &mut S,
    len: usize,
    buf: &mut Vec<u8>,
) -> io::Result<()> {
    if buf.capacity() < len {
        *buf = buffers::take(len);
    }
    // What a reused buffer holds need not be wiped first.
    buf.truncate(len);
    buf.resize(len, 0);
    let work = read_full(stream, buf, PROGRESS_TIME_MAX);
    within(body_time_max(len), work).await.unwrap_or(Err(io::ErrorKind::TimedOut.into()))
}

/// The request on a stream that the peer opened. `Unsupported` and `Malformed` deserve an error reply (`refuse`).
pub async fn read_request<S: AsyncRead + Unpin>(stream: &mut S) -> Result<Request, AskError> {
    let head = read_head(stream, REQUEST_HEAD_BYTES_MAX, PROGRESS_TIME_MAX).await?;
    Request::from_bytes(&head)
}

/// Sends a reply's head; its body, if it has one, follows.
pub async fn write_reply<S: AsyncWrite + Unpin>(stream: &mut S, reply: &Reply) -> io::Result<()> {
    write_head(stream, &reply.to_bytes()).await
}

/// One entry after a `Reply::Audit`; `proof` only with `AuditStatus::Proof`.
pub async fn write_proof<S: AsyncWrite + Unpin>(
    stream: &mut S,
    status: AuditStatus,
    proof: &[u8],
) -> io::Result<()> {
    write_entry(stream, status.to_byte(), proof).await?;
    // The verifier waits for each by itself.
    flush(stream, PROGRESS_TIME_MAX).await
}

/// One entry after a `Reply::Get`; `bytes` only where found.
pub async fn write_got<S: AsyncWrite + Unpin>(
    stream: &mut S,
    status: GetStatus,
    bytes: &[u8],
) -> io::Result<()> {
    write_entry(stream, status.to_byte(), bytes).await
}

pub(super) async fn write_entry<S: AsyncWrite + Unpin>(
    stream: &mut S,
    status: u8,
    bytes: &[u8],
) -> io::Result<()> {
    let mut head = Writer::new();
    head.u8(status).u32(bytes.len() as u32);
    let work = async {
        write_full(stream, head.as_slice(), PROGRESS_TIME_MAX).await?;
        write_full(stream, bytes, PROGRESS_TIME_MAX).await
    };
    // Whoever takes a byte now and then would hold a place of all who are given something.
    within(body_time_max(bytes.len()), work).await.unwrap_or(Err(io::ErrorKind::TimedOut.into()))
}

/// A body of so many bytes comes, or is taken, within this.
pub(super) fn body_time_max(len: usize) -> Duration {
    PROGRESS_TIME_MAX + Duration::from_secs(len as u64 / BODY_BYTES_PER_SECOND_MIN)
}

/// Ends our side of an answered stream in order.
pub async fn finish<S: AsyncWrite + Unpin>(stream: &mut S) -> io::Result<()> {
    within(PROGRESS_TIME_MAX, stream.close()).await.unwrap_or(Err(io::ErrorKind::TimedOut.into()))
}

/// The reply to a request that cannot be carried out because of `error`, where one is due.
pub fn refuse(error: &AskError) -> Option<Reply> {
    let (code, hint) = match error {
        AskError::Unsupported(_) => (ErrorCode::Unsupported, "update that cell"),
        AskError::Malformed(_) | AskError::TooLong(_) => (ErrorCode::Malformed, ""),
        _ => return None,
    };
    Some(Reply::Error(Refusal::new(code, &error.to_string(), hint)))
}

//! Answers that go out from the door, on the executor: streams that last, and files as fast as the disk gives them.
//!
//! Promise: a client that is gone is noticed while its answer is made, one that takes nothing is let go, and an answer
//! that was broken off never looks whole. A stream that is silent on our side is not cut.

use std::future::Future;
use std::io;
use std::net::TcpStream;
use std::os::unix::fs::FileExt;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use smol::channel::Receiver;
use smol::future::FutureExt;
use smol::io::{AsyncReadExt, AsyncWriteExt};

use super::api::{ApiRequest, ApiResponse, Body, FileMark, FilePart};
use super::door::{Failure, WRITE_WAIT, within};
use super::head::{HEAD_BYTES_MAX, Head};
use super::http::{is_framing, is_plain_header};
use crate::pool;
use crate::wire::Accepted;

/// Answers of this kind at once.
pub(crate) const DIRECT_MAX: usize = 64;
/// What a client must take within `WRITE_WAIT`.
const SLICE_BYTES: usize = 64 * 1024;
/// Bytes of a file that one job on the pool hands to the socket.
const FILE_TURN_BYTES: u64 = 4 * 1024 * 1024;
/// Bytes of a file that are read at once for TLS.
const FILE_PIECE_BYTES: u64 = 256 * 1024;
/// A connection on which nothing moves is asked whether it is still there after so long.
const PROBE_AFTER: Duration = Duration::from_secs(60);

/// An answer that comes later.
pub type Answering = Pin<Box<dyn Future<Output = ApiResponse>>>;
/// Answers requests.
pub(crate) type Handler = Rc<dyn Fn(ApiRequest) -> Answering>;

/// Which requests are answered from the door, by the beginnings of their paths.
#[derive(Default)]
pub(crate) struct Table(Vec<(&'static str, Handler)>);

impl Table {
    /// `prefix` ends with a slash and takes all below it; or it does not, and takes itself and all below it.
    pub(crate) fn add(&mut self, prefix: &'static str, handler: Handler) {
        self.0.push((prefix, handler));
    }

    /// Who answers at this path.
    pub(crate) fn find(&self, path: &str) -> Option<Handler> {
        self.0.iter().find(|(prefix, _)| is_below(prefix, path)).map(|(_, handler)| Rc::clone(handler))
    }
}

fn is_below(prefix: &str, path: &str) -> bool {
    match path.strip_prefix(prefix) {
        Some(rest) => prefix.ends_with('/') || rest.is_empty() || rest.starts_with('/'),
        None => false,
    }
}

/// What `work` gives; an error as soon as the client is gone. What the client sends meanwhile is put into `ahead`.
pub(crate) async fn while_there<T>(
    client: &mut Accepted,
    ahead: &mut Vec<u8>,
    work: impl Future<Output = T>,
) -> io::Result<T> {
    let gone = async {
        let mut piece = [0; 1024];
        loop {
            if ahead.len() >= HEAD_BYTES_MAX {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "too much was sent ahead"));
            }
            match client.read(&mut piece).await? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                length => ahead.extend_from_slice(&piece[..length]),
            }
        }
    };
    async { Ok(work.await) }.or(gone).await
}

/// Has the kernel ask a silent client whether it is still there.
pub(crate) fn probe(client: &Accepted) {
    use rustix::net::sockopt;
    let tcp = client.tcp();
    let _ = sockopt::set_socket_keepalive(tcp, true);
    let _ = sockopt::set_tcp_keepidle(tcp, PROBE_AFTER);
    let _ = sockopt::set_tcp_keepintvl(tcp, PROBE_AFTER / 4);
    let _ = sockopt::set_tcp_keepcnt(tcp, 4);
}

/// Writes `bytes`, at least `SLICE_BYTES` of them in each `WRITE_WAIT`.
async fn put(client: &mut Accepted, bytes: &[u8]) -> io::Result<()> {
    for slice in bytes.chunks(SLICE_BYTES) {
        within(WRITE_WAIT, client.write_all(slice)).await?;
    }
    Ok(())
}

async fn flush(client: &mut Accepted) -> io::Result<()> {
    within(WRITE_WAIT, client.flush()).await
}

/// The head of an answer, without the empty line at its end.
fn head_of(response: &ApiResponse, common: &str) -> String {
    let status = if (200..600).contains(&response.status) { response.status } else { 500 };
    let reason = tiny_http::StatusCode(status).default_reason_phrase();
    let mut head = format!("HTTP/1.1 {status} {reason}\r\n");
    let has = |name: &str| response.headers.iter().any(|(known, _)| known.eq_ignore_ascii_case(name));
    let mut put = |name: &str, value: &str| {
        if is_plain_header(name, value) {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
    };
    if status != 304 {
        put("Content-Type", &response.content_type);
    }
    for (name, value) in response.headers.iter().filter(|(name, _)| !is_framing(name)) {
        put(name, value);
    }
    let is_shown = response.content_type == "application/pdf"
        && response.headers.iter().any(|(name, value)| {
            name.eq_ignore_ascii_case("Content-Disposition") && value.starts_with("inline")
        });
    // A PDF is shown by the browser's own viewer, in a frame of our page.
    let policy = if is_shown {
        "X-Frame-Options: SAMEORIGIN\r\nContent-Security-Policy: default-src 'none'; object-src 'self'; \
         frame-ancestors 'self'\r\n"
    } else {
        "X-Frame-Options: DENY\r\nContent-Security-Policy: default-src 'none'; frame-ancestors 'none'; sandbox\r\n"
    };
    head.push_str(common);
    head.push_str(policy);
    if !has("Cache-Control") {
        head.push_str("Cache-Control: no-store\r\n");
    }
    head
}

/// Writes the answer. True if another request may follow.
pub(crate) async fn write(
    client: &mut Accepted,
    ahead: &mut Vec<u8>,
    request: &Head,
    response: ApiResponse,
    keep_alive: bool,
    common: &str,
) -> Result<bool, Failure> {
    let mut head = head_of(&response, common);
    let is_bare = [204, 304].contains(&response.status);
    let length = match &response.body {
        Body::Bytes(bytes) => Some(bytes.len() as u64),
        Body::Stream { length, .. } => *length,
        Body::File(part) => Some(part.length),
    };
    let chunks = length.is_none() && !request.is_old && !is_bare;
    let keep_alive = keep_alive && (chunks || length.is_some() || is_bare);
    match length {
        _ if is_bare => {}
        Some(length) => head.push_str(&format!("Content-Length: {length}\r\n")),
        None if chunks => head.push_str("Transfer-Encoding: chunked\r\n"),
        None => {}
    }
    head.push_str(if keep_alive { "\r\n" } else { "Connection: close\r\n\r\n" });
    put(client, head.as_bytes()).await?;
    if request.method == "HEAD" || is_bare {
        flush(client).await?;
        return Ok(keep_alive);
    }
    match response.body {
        Body::Bytes(bytes) => put(client, &bytes).await?,
        Body::Stream { length, receiver } => {
            // Headers go out at once: whoever waits knows that it was heard.
            flush(client).await?;
            write_stream(client, ahead, length, chunks, &receiver).await?;
        }
        Body::File(part) => {
            flush(client).await?;
            write_file(client, *part).await?;
        }
    }
    flush(client).await?;
    Ok(keep_alive)
}

async fn write_stream(
    client: &mut Accepted,
    ahead: &mut Vec<u8>,
    mut left: Option<u64>,
    chunks: bool,
    pieces: &Receiver<io::Result<Vec<u8>>>,
) -> io::Result<()> {
    let mut out = Vec::new();
    while let Ok(piece) = while_there(client, ahead, pieces.recv()).await? {
        let piece = piece?;
        if piece.is_empty() {
            continue;
        }
        if let Some(left) = &mut left {
            *left = left.checked_sub(piece.len() as u64).ok_or(io::ErrorKind::InvalidData)?;
        }
        if !chunks {
            put(client, &piece).await?;
        } else if piece.len() <= SLICE_BYTES {
            out.clear();
            out.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
            out.extend_from_slice(&piece);
            out.extend_from_slice(b"\r\n");
            put(client, &out).await?;
        } else {
            put(client, format!("{:x}\r\n", piece.len()).as_bytes()).await?;
            put(client, &piece).await?;
            put(client, b"\r\n").await?;
        }
        if pieces.is_empty() {
            flush(client).await?;
        }
    }
    match left {
        Some(0) => Ok(()),
        Some(_) => Err(io::ErrorKind::UnexpectedEof.into()),
        None if chunks => put(client, b"0\r\n\r\n").await,
        None => Ok(()),
    }
}

/// Sends a part of a file: in the kernel where nothing lies between, read and written for TLS.
async fn write_file(client: &mut Accepted, part: FilePart) -> io::Result<()> {
    if let Accepted::Plain(stream) = client {
        let socket = Arc::new(stream.get_ref().try_clone()?);
        let (mut offset, end) = (part.offset, part.offset + part.length);
        while offset < end {
            within(WRITE_WAIT, stream.writable()).await?;
            let (part, socket) = (part.clone(), Arc::clone(&socket));
            offset = pool::unblock(move || send_some(&part, offset, end, &socket)).await?;
        }
        return Ok(());
    }
    let (mut offset, end) = (part.offset, part.offset + part.length);
    while offset < end {
        let part = part.clone();
        let piece = pool::unblock(move || -> io::Result<Vec<u8>> {
            let mut piece = vec![0; (end - offset).min(FILE_PIECE_BYTES) as usize];
            part.file.read_exact_at(&mut piece, offset)?;
            is_unchanged(&part).map(|()| piece)
        })
        .await?;
        offset += piece.len() as u64;
        put(client, &piece).await?;
    }
    Ok(())
}

/// Hands bytes to the socket until it takes no more; gives the offset of what is left.
fn send_some(part: &FilePart, mut offset: u64, end: u64, socket: &TcpStream) -> io::Result<u64> {
    let turn_end = end.min(offset + FILE_TURN_BYTES);
    while offset < turn_end {
        // The last byte goes only if all before it were of one state of the file.
        is_unchanged(part)?;
        let length = (turn_end - offset) as usize;
        match rustix::fs::sendfile(socket, &*part.file, Some(&mut offset), length) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::AGAIN) => break,
            Err(why) => return Err(why.into()),
        }
    }
    Ok(offset)
}

fn is_unchanged(part: &FilePart) -> io::Result<()> {
    if FileMark::of(&part.file)? == part.mark {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, "the file was changed while it was sent"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_found_by_whole_segments() {
        assert!(is_below("/v1/", "/v1/models") && !is_below("/v1/", "/v1"));
        assert!(is_below("/api/v1/content", "/api/v1/content"));
        assert!(is_below("/api/v1/content", "/api/v1/content/x"));
        assert!(!is_below("/api/v1/content", "/api/v1/contents"));
    }

    #[test]
    fn head_cannot_be_split_and_has_every_security_header() {
        let response = ApiResponse::ok()
            .with_header("X-Fine", "yes")
            .with_header("X-Bad", "a\r\nSet-Cookie: b")
            .with_header("Content-Length", "7");
        let head = head_of(&response, "Referrer-Policy: no-referrer\r\n");
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n") && head.contains("X-Fine: yes\r\n"));
        for bad in ["Set-Cookie", "Content-Length"] {
            assert!(!head.contains(bad), "{bad}");
        }
        for header in ["default-src 'none'", "X-Frame-Options: DENY", "no-store", "no-referrer"] {
            assert!(head.contains(header), "{header}");
        }
        assert!(head.ends_with("\r\n") && !head.contains("\r\n\r\n"));
    }
}

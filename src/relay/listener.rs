//! A port of the relay's own, for `grove relay`: `/relay`, `/healthz` and `/metrics`, and nothing else.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::rc::Rc;
use std::time::{Duration, Instant};

use smol::io::AsyncWriteExt;
use smol::{Async, LocalExecutor, Timer};

use super::PATH;
use super::hub::{Hub, WaitingRoom};
use super::websocket::{HEADERS_MAX, key_of};
use crate::pool;
use crate::wire::handshake::{Bucket, Rate};
use crate::wire::{read_some, within};

/// Most bytes of the head of a request.
const HEAD_BYTES_MAX: usize = 8 * 1024;
/// A head must be whole after this.
const HEAD_TIME_MAX: Duration = Duration::from_secs(5);
/// An answer must be taken within this.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(5);
/// Connections whose heads are not whole.
const HEADS_MAX: usize = 512;
/// Pause after a failed accept: mostly there are no descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Connections accepted at once and a second; more wait in the kernel, so that those who are let in have time to log in
/// before others push them out.
const ACCEPTS: Rate = Rate { burst: 200.0, per_second: 1000.0 };
/// Waiting connections in the kernel.
const BACKLOG: i32 = 1024;

/// Listens at `address`; `[::]` takes IPv4, too, and becomes `0.0.0.0` where there is no IPv6.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let listener = match (bind_at(address), address) {
        (Err(_), SocketAddr::V6(v6)) if v6.ip().is_unspecified() => {
            bind_at((std::net::Ipv4Addr::UNSPECIFIED, v6.port()).into())?
        }
        (bound, _) => bound?,
    };
    listener.set_nonblocking(true)?;
    Ok(listener)
}

fn bind_at(address: SocketAddr) -> io::Result<TcpListener> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, listen, socket_with, sockopt};
    let family = if address.is_ipv6() { AddressFamily::INET6 } else { AddressFamily::INET };
    let socket = socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    if address.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, !address.ip().is_unspecified())?;
    }
    sockopt::set_socket_reuseaddr(&socket, true)?;
    bind(&socket, &address)?;
    listen(&socket, BACKLOG)?;
    Ok(TcpListener::from(socket))
}

/// Takes connections until dropped.
pub async fn accept(listener: Async<TcpListener>, hub: Rc<Hub>, executor: Rc<LocalExecutor<'static>>) {
    let room = WaitingRoom::new(HEADS_MAX);
    let mut pace = Bucket::new(ACCEPTS, Instant::now());
    loop {
        pace.fill(ACCEPTS, Instant::now());
        if pace.tokens < 1.0 {
            Timer::after(Duration::from_secs_f64(1.0 / ACCEPTS.per_second)).await;
            continue;
        }
        pace.tokens -= 1.0;
        match listener.accept().await {
            Ok((stream, from)) => {
                let (guest, hub) = (room.enter(), Rc::clone(&hub));
                let work = async move {
                    let answered = within(HEAD_TIME_MAX + ANSWER_TIME_MAX, answer(stream, from.ip(), &hub));
                    smol::future::or(async { drop(answered.await) }, guest.pushed_out()).await;
                };
                pool::spawn(&executor, work).detach();
            }
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                log::warn!("a connection could not be accepted: {error}");
                Timer::after(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// What a request asks for.
enum Asked {
    Relay { key: String, from: Option<IpAddr> },
    Health,
    Metrics,
    Nothing(u16, &'static str),
}

/// Reads the one request of a connection and answers it, or hands the connection to the hub.
async fn answer(mut stream: Async<TcpStream>, from: IpAddr, hub: &Rc<Hub>) -> io::Result<()> {
    let _ = stream.get_ref().set_nodelay(true);
    let mut bytes = vec![0; 1024];
    let mut len = 0;
    let asked = loop {
        if len == bytes.len() {
            if len >= HEAD_BYTES_MAX {
                break Asked::Nothing(431, "Request Header Fields Too Large");
            }
            bytes.resize(HEAD_BYTES_MAX, 0);
        }
        match read_some(&mut stream, &mut bytes[len..], HEAD_TIME_MAX).await? {
            0 => return Ok(()),
            n => len += n,
        }
        if let Some((head, asked)) = read_head(&bytes[..len]) {
            bytes.truncate(len);
            bytes.drain(..head);
            break asked;
        }
    };
    let (status, kind, body) = match asked {
        Asked::Relay { key, from: forwarded } => {
            // Only a proxy on this machine is believed about who stands behind it.
            let from = forwarded.filter(|_| from.to_canonical().is_loopback()).unwrap_or(from);
            hub.take(stream.into(), &key, bytes, from);
            return Ok(());
        }
        Asked::Health => ("200 OK".to_owned(), "text/plain", "ok\n".to_owned()),
        Asked::Metrics => ("200 OK".to_owned(), "text/plain; version=0.0.4", hub.metrics()),
        Asked::Nothing(status, text) => (format!("{status} {text}"), "text/plain", format!("{text}\n")),
    };
    let text = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\
         X-Content-Type-Options: nosniff\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(text.as_bytes()).await?;
    let _ = stream.get_ref().shutdown(std::net::Shutdown::Write);
    // Until the client has closed, too: what it still sends must not turn the answer into a reset.
    let _ = read_some(&mut stream, &mut [0; 1024], Duration::from_secs(1)).await;
    Ok(())
}

/// What a whole head asks for, and its length.
fn read_head(bytes: &[u8]) -> Option<(usize, Asked)> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    let head = match request.parse(bytes) {
        Ok(httparse::Status::Partial) => return None,
        Ok(httparse::Status::Complete(head)) => head,
        Err(_) => return Some((bytes.len(), Asked::Nothing(400, "Bad Request"))),
    };
    let path = request.path.unwrap_or_default().split('?').next().unwrap_or_default();
    let asked = match (request.method.unwrap_or_default(), path) {
        (_, PATH) => match key_of(&request) {
            Some(key) => Asked::Relay { key: key.to_owned(), from: forwarded(request.headers) },
            None => Asked::Nothing(426, "Upgrade Required"),
        },
        ("GET", "/healthz") => Asked::Health,
        ("GET", "/metrics") => Asked::Metrics,
        _ => Asked::Nothing(404, "Not Found"),
    };
    Some((head, asked))
}

/// The last address of `X-Forwarded-For`: the one that the proxy itself has seen.
fn forwarded(headers: &[httparse::Header<'_>]) -> Option<IpAddr> {
    let header = headers.iter().rev().find(|header| header.name.eq_ignore_ascii_case("X-Forwarded-For"))?;
    std::str::from_utf8(header.value).ok()?.rsplit(',').next()?.trim().parse().ok()
}

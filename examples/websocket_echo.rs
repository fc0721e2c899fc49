//! Sends back every message, text and binary: the relay's WebSocket frames for a test suite to try.
//!
//! `websocket_echo ADDRESS`; prints "ready" and the address.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};

use grove::relay::frame::{Control, Decoder, Event, From, Head, Kind, code, put_control};
use grove::relay::websocket::{HEADERS_MAX, key_of, switching};

/// The largest messages of the Autobahn cases have 16 MiB.
const MESSAGE_BYTES_MAX: u64 = 16 << 20;

fn shake_hands(stream: &mut TcpStream) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    let mut piece = [0; 4096];
    while bytes.len() < 64 * 1024 {
        let n = stream.read(&mut piece)?;
        if n == 0 {
            return Ok(None);
        }
        bytes.extend_from_slice(&piece[..n]);
        let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut request = httparse::Request::new(&mut headers);
        if let httparse::Status::Complete(head) = request.parse(&bytes).map_err(io::Error::other)? {
            let Some(key) = key_of(&request) else { return Ok(None) };
            stream.write_all(switching(key).as_bytes())?;
            return Ok(Some(bytes.split_off(head)));
        }
    }
    Ok(None)
}

fn serve(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let Some(mut raw) = shake_hands(&mut stream)? else { return Ok(()) };
    let mut decoder = Decoder::new(From::Client, MESSAGE_BYTES_MAX);
    let mut message = Vec::new();
    let mut out = Vec::new();
    loop {
        let mut at = 0;
        let last_word = loop {
            match decoder.next(&mut raw, &mut at) {
                Ok(None) => break None,
                Ok(Some(Event::Data { kind, bytes, is_last })) => {
                    message.extend_from_slice(bytes);
                    if is_last {
                        let head = match kind {
                            Kind::Text => Head::text(message.len(), None),
                            Kind::Binary => Head::binary(message.len(), None),
                        };
                        out.extend_from_slice(head.as_slice());
                        out.append(&mut message);
                    }
                }
                Ok(Some(Event::Ping(bytes))) => put_control(&mut out, Control::Pong(bytes), None),
                Ok(Some(Event::Pong)) => {}
                Ok(Some(Event::Close { code, .. })) => break Some(code),
                Err(violation) => break Some(Some(violation.code)),
            }
        };
        if let Some(code) = last_word {
            put_control(&mut out, Control::Close { code: code.or(Some(code::NORMAL)), reason: "" }, None);
            stream.write_all(&out)?;
            stream.shutdown(std::net::Shutdown::Write)?;
            io::copy(&mut stream.take(1 << 20), &mut io::sink())?;
            return Ok(());
        }
        stream.write_all(&out)?;
        out.clear();
        raw.resize(64 * 1024, 0);
        let n = stream.read(&mut raw)?;
        if n == 0 {
            return Ok(());
        }
        raw.truncate(n);
    }
}

fn main() -> io::Result<()> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:0".to_owned());
    let listener = TcpListener::bind(address)?;
    println!("ready {}", listener.local_addr()?);
    for stream in listener.incoming() {
        let stream = stream?;
        std::thread::spawn(move || serve(stream));
    }
    Ok(())
}

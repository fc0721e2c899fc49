//! Carrying bytes for others: cells that cannot reach each other meet at a relay. Knows nothing of what it carries.
//!
//! ```text
//! cell --Noise in a circuit--> hub <--Noise in a circuit-- cell
//!      circuit = stream of yamux, in binary messages of a WebSocket, over TCP or TLS
//!
//! frame.rs   WebSocket frames           switch.rs  streams joined to circuits     pace.rs  rates and waits
//! hub.rs     the sockets of clients     listener.rs  a port of the relay's own
//! client.rs  a cell at a relay          websocket.rs a byte stream of messages    tls.rs   wss
//! ```
//!
//! Promise: a relay sees who talks to whom, how much and when, and nothing else; no client can make it hold more than
//! named limits, and no circuit's receiver holds up another's.

pub mod client;
pub mod frame;
pub mod hub;
pub mod listener;
mod login;
pub mod pace;
pub mod switch;
#[cfg(feature = "wss")]
pub(crate) mod tls;
pub mod url;
pub mod websocket;

pub use client::{Circuit, CircuitError, Client, ConnectError, End, Keeper};
pub use hub::Hub;
#[cfg(feature = "wss")]
pub(crate) use tls::over_tls;
#[cfg(all(test, feature = "wss"))]
pub(crate) use tls::pinned as tls_pinned;
pub use url::Url;

use std::io;
use std::path::Path;
use std::time::Duration;

use crate::id::{hex, unhex};
use crate::keys::{Identity, MasterKey, random};
use crate::vault::write_whole;

/// Where a relay is asked for, unless its URL says otherwise.
pub const PATH: &str = "/relay";
/// Most bytes of a WebSocket message, both ways: what its short length can say.
pub const MESSAGE_BYTES_MAX: usize = 65_535;
/// From the connection to the end of the login.
pub const LOGIN_TIME_MAX: Duration = Duration::from_secs(8);
/// A side that has heard nothing for so long sends a ping.
pub const PING_AFTER: Duration = Duration::from_secs(25);
/// A side that has heard nothing for so long gives the connection up.
pub const DEAD_AFTER: Duration = Duration::from_secs(60);

/// The key by which a relay proves itself, made if there is none: 32 random bytes in hexadecimal, from which its
/// Ed25519 key follows as a cell's does from its master key.
pub fn own_identity(path: &Path) -> io::Result<Identity> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let text = hex(&random::<32>());
            write_whole(path, text.as_bytes())?;
            text
        }
        Err(error) => return Err(error),
    };
    let bytes = unhex(text.trim()).and_then(|bytes| bytes.try_into().ok());
    let bytes = bytes.ok_or_else(|| {
        let what = "it does not hold a key; with another one clients that pin this relay refuse it";
        io::Error::new(io::ErrorKind::InvalidData, what)
    })?;
    Ok(MasterKey::from_bytes(bytes).identity(0, 0))
}

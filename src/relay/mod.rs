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
mod tls;
pub mod url;
pub mod websocket;

pub use client::{Circuit, CircuitError, Client, ConnectError, End, Keeper};
pub use hub::Hub;
pub use url::Url;

use std::time::Duration;

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

//! Grove: a personal network of small computers that keep each other's files.
//!
//! `ARCHITECTURE.md` is the map. Imports point right or down:
//!
//! ```text
//! main > cli > cell > dashboard relay sync                     duties
//!                   > files store placement wire               services
//!                   > catalog grant manifest seal keys id config nouns
//! ```

pub mod ai;
pub mod alerts;
pub mod bounty;
pub mod buffers;
pub mod card;
pub mod catalog;
pub mod cell;
pub mod changes;
pub mod chat;
pub mod cli;
pub mod clock;
pub mod codec;
pub mod config;
pub mod copies;
pub mod cycle;
pub mod damage;
pub mod dashboard;
pub mod files;
pub mod friendship;
pub mod gc;
pub mod grant;
pub mod id;
pub mod keys;
pub mod logger;
pub mod manifest;
mod order;
pub mod placement;
pub mod pool;
pub mod proof;
pub mod publish;
pub mod recovery_card;
pub mod relay;
pub mod routes;
pub mod seal;
pub mod service;
pub mod sha256;
#[doc(hidden)]
pub mod simulation;
pub mod state_files;
pub mod store;
pub mod sums;
pub mod sync;
pub mod vault;
pub mod wire;
pub mod world;
#[cfg(test)]
mod wycheproof;

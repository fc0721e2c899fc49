//! Grove: a personal network of small computers that keep each other's files.
//!
//! `ARCHITECTURE.md` is the map. Imports point right or down:
//!
//! ```text
//! main > cli > cell > dashboard sync                           duties
//!                   > files store placement wire               services
//!                   > catalog manifest seal keys id config     nouns
//! ```

/// The command line: asks the running cell, prints.
pub mod cli {
    pub mod client;
}
pub mod codec;
pub mod dashboard;
pub mod id;
pub mod keys;

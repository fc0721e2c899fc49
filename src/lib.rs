//! Grove: a personal network of small computers that keep each other's files.
//!
//! `ARCHITECTURE.md` is the map. Imports point right or down:
//!
//! ```text
//! main > cli > cell > dashboard sync                           duties
//!                   > files store placement wire               services
//!                   > catalog manifest seal keys id config     nouns
//! ```

pub mod card;
pub mod codec;
pub mod id;
pub mod keys;
pub mod wire;

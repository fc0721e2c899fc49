//! GroveHome in and out: finds what changed, keeps it as versions, brings it back. Knows nothing of peers.
//!
//! Promise: a version is recorded only with bytes that stood in the file at one moment, and only after its chunks are
//! durable; nothing is taken as deleted because it cannot be seen.

pub mod brake;
pub mod deletion;
pub mod ignore;
pub mod import;
pub mod kept;
pub mod marker;
pub mod mirror;
pub mod restore;
pub mod unix;
pub mod version;
pub mod walk;
pub mod watch;
pub mod zip;

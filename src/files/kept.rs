//! Files in GroveHome that are a friend's: what is kept of a share below `Shared/`. They are not imported, and count as no
//! copy of anything. Each is known by its path, so that whatever else somebody puts there is kept like any other file.

use crate::id::hex;
use crate::keys::sha256;
use crate::placement::{DbError, Tables};

/// Below it each friend has a folder.
pub const SHARED: &[u8] = b"Shared";
/// In it, what is on its way here and what was taken away lately.
pub const OWN: &[u8] = b".grove";

fn key(path: &[Vec<u8>]) -> String {
    format!("kept:{}", hex(&sha256(&path.join(&b'/'))[..16]))
}

/// Whether a file may be a friend's: a look at the path, before one into the database.
pub fn may_be_kept(path: &[Vec<u8>]) -> bool {
    path.len() > 2 && path[0] == SHARED
}

/// Whether the file at this path below GroveHome is a friend's.
pub fn is_kept(t: &Tables<'_>, path: &[Vec<u8>]) -> Result<bool, DbError> {
    Ok(may_be_kept(path) && t.meta(&key(path))?.is_some())
}

/// From now on the file at this path is a friend's, or is not.
pub fn set_kept(t: &Tables<'_>, path: &[Vec<u8>], is_kept: bool) -> Result<(), DbError> {
    if is_kept { t.set_meta(&key(path), b"") } else { t.forget_meta(&key(path)) }
}

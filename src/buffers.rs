//! Buffers of whole chunks, used again: to map and wipe 4 MiB anew for each chunk costs more than to copy them.
//!
//! A buffer that is not given back is only freed, so nobody must.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Shorter ones are not kept.
const BYTES_MIN: usize = 1 << 20;
/// Buffers kept at most, 4 MiB each: as many as a transfer and an import have in hand. They are taken before new ones are
/// made; what lies here while small files are imported counts among the 64 MiB that a cell may use.
const KEPT_MAX: usize = 4;

/// What sealing a chunk where it lies adds to it.
const TAG_BYTES: usize = 16;

static KEPT: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());

fn kept() -> MutexGuard<'static, Vec<Vec<u8>>> {
    KEPT.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A buffer of `len` bytes, with whatever was in it.
pub fn take(len: usize) -> Vec<u8> {
    if len < BYTES_MIN {
        return vec![0; len];
    }
    let found = {
        let mut kept = kept();
        let fit = kept.iter().position(|bytes| bytes.len() >= len);
        // Where none is long enough, one makes place for the new one: those in hand and those kept are never more together
        // than were in hand at once.
        let short = fit.is_none().then(|| kept.pop());
        let found = fit.map(|at| kept.swap_remove(at));
        drop(kept);
        drop(short);
        found
    };
    let Some(mut bytes) = found else {
        let mut bytes = Vec::with_capacity(len + TAG_BYTES);
        bytes.resize(len, 0);
        return bytes;
    };
    bytes.truncate(len);
    bytes
}

/// Keeps a buffer for the next who needs one.
pub fn give(mut bytes: Vec<u8>) {
    if bytes.capacity() < BYTES_MIN {
        return;
    }
    // What was cut off is wiped again, which is all but nothing: chunks are of one length.
    bytes.resize(bytes.capacity(), 0);
    let mut kept = kept();
    if kept.len() < KEPT_MAX {
        kept.push(bytes);
    }
}

/// Frees what is kept.
pub fn clear() {
    kept().clear();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_have_the_length_asked_for() {
        for len in [0, 1, BYTES_MIN - 1, BYTES_MIN, 3 * BYTES_MIN, BYTES_MIN + 7] {
            let bytes = take(len);
            assert_eq!(bytes.len(), len);
            give(bytes);
        }
        for _ in 0..2 * KEPT_MAX {
            give(vec![1; 2 * BYTES_MIN]);
        }
        assert!(kept().len() <= KEPT_MAX);
        clear();
    }
}

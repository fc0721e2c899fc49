#![no_main]
//! See `fuzz/Cargo.toml`.

#[path = "../feeds.rs"]
mod feeds;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Some((which, bytes)) = bytes.split_first() else { return };
    let (_, feed) = feeds::FEEDS[usize::from(*which) % feeds::FEEDS.len()];
    feed(bytes);
});

//! The dashboard's own files, in the program: everything below `www/`.

use std::sync::OnceLock;

use crate::id::hex;
use crate::keys::sha256;

/// A file of the dashboard.
#[derive(Debug)]
pub(crate) struct Page {
    path: &'static str,
    content_type: &'static str,
    bytes: &'static [u8],
    /// Packed by gzip, where that is shorter.
    packed: Option<&'static [u8]>,
}

include!(concat!(env!("OUT_DIR"), "/pages.rs"));

/// The page at exactly this path.
pub(crate) fn page(path: &str) -> Option<&'static Page> {
    PAGES.iter().find(|page| page.path == path)
}

/// Paths of all pages.
#[cfg(test)]
pub(crate) fn paths() -> impl Iterator<Item = &'static str> {
    PAGES.iter().map(|page| page.path)
}

/// One tag for all pages, as they change together.
fn tag() -> &'static str {
    static TAG: OnceLock<String> = OnceLock::new();
    TAG.get_or_init(|| {
        let all: Vec<u8> = PAGES.iter().flat_map(|page| sha256(page.bytes)).collect();
        hex(&sha256(&all)[..8])
    })
}

/// Whether a client takes gzip, by its `Accept-Encoding`.
fn takes_gzip(accepted: &str) -> bool {
    accepted.split(',').any(|one| {
        let mut words = one.split(';').map(str::trim);
        let is_gzip = words.next().is_some_and(|word| word.eq_ignore_ascii_case("gzip"));
        let is_refused = words.any(|word| {
            let weight = word.strip_prefix("q=").or_else(|| word.strip_prefix("Q="));
            weight.is_some_and(|weight| weight.trim().bytes().all(|c| c == b'0' || c == b'.'))
        });
        is_gzip && !is_refused
    })
}

impl Page {
    /// Status, headers of its own, and body, for a client that takes these encodings and has these tags.
    pub(crate) fn answer(&self, accepted: &str, known: &str) -> (u16, String, &'static [u8]) {
        let packed = self.packed.filter(|_| takes_gzip(accepted));
        let tag = format!("\"{}{}\"", tag(), if packed.is_some() { "-gzip" } else { "" });
        let is_known = known.split(',').any(|one| one.trim().trim_start_matches("W/") == tag);
        let mut head = format!("ETag: {tag}\r\nCache-Control: no-cache\r\nVary: Accept-Encoding\r\n");
        if is_known {
            return (304, head, &[]);
        }
        head.push_str(&format!("Content-Type: {}\r\n", self.content_type));
        if packed.is_some() {
            head.push_str("Content-Encoding: gzip\r\n");
        }
        (200, head, packed.unwrap_or(self.bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_found_by_their_exact_path() {
        assert!(page("/").is_some() && page("/app.js").is_some());
        for path in ["", "/index.html", "/App.js", "/app.js/", "//app.js", "/../style.css", "/healthz"] {
            assert!(page(path).is_none(), "{path}");
        }
        assert!(paths().all(|path| path.starts_with('/') && !path.contains("..")));
    }

    #[test]
    fn packed_only_for_those_who_take_it_and_never_sent_twice() {
        for (accepted, takes) in [
            ("gzip", true),
            ("deflate, GZIP;q=0.5, br", true),
            ("gzip;q=0", false),
            ("gzip;q=0.000", false),
            ("", false),
            ("br", false),
            ("xgzip", false),
        ] {
            assert_eq!(takes_gzip(accepted), takes, "{accepted}");
        }
        let page = page("/").unwrap();
        let (status, head, bytes) = page.answer("gzip", "");
        assert!(status == 200 && head.contains("Content-Encoding: gzip") && bytes.starts_with(&[0x1f, 0x8b]));
        let tag = head.lines().find_map(|line| line.strip_prefix("ETag: ")).unwrap();
        assert_eq!(page.answer("gzip", tag).0, 304);
        let (status, head, bytes) = page.answer("", tag);
        assert!(status == 200 && !head.contains("gzip\r\n") && bytes == page.bytes);
    }

    #[test]
    fn what_a_first_visit_loads_is_small() {
        let packed: usize = PAGES.iter().map(|page| page.packed.unwrap_or(page.bytes).len()).sum();
        assert!(packed <= 400 * 1024, "{packed} bytes in all");
    }
}

//! The dashboard's own files, in the program: everything below `www/`.

use std::borrow::Cow;
use std::sync::OnceLock;

use crate::id::hex;
use crate::keys::sha256;

/// A file of the dashboard.
#[derive(Debug)]
pub(crate) struct Page {
    path: &'static str,
    content_type: &'static str,
    /// Packed by gzip, where that is shorter.
    bytes: &'static [u8],
    is_packed: bool,
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
    pub(crate) fn answer(&self, accepted: &str, known: &str) -> (u16, String, Cow<'static, [u8]>) {
        let is_packed = self.is_packed && takes_gzip(accepted);
        let tag = format!("\"{}{}\"", tag(), if is_packed { "-gzip" } else { "" });
        let is_known = known.split(',').any(|one| one.trim().trim_start_matches("W/") == tag);
        let mut head = format!("ETag: {tag}\r\nCache-Control: no-cache\r\nVary: Accept-Encoding\r\n");
        if is_known {
            return (304, head, Cow::Borrowed(&[]));
        }
        head.push_str(&format!("Content-Type: {}\r\n", self.content_type));
        if is_packed {
            head.push_str("Content-Encoding: gzip\r\n");
        }
        (200, head, if is_packed { Cow::Borrowed(self.bytes) } else { self.plain() })
    }

    /// The page as it lies below `www/`: unpacked for the few clients that do not take gzip.
    fn plain(&self) -> Cow<'static, [u8]> {
        if !self.is_packed {
            return Cow::Borrowed(self.bytes);
        }
        // build.rs packed it: ten bytes before the stream, a checksum and the length behind it.
        let (stream, trailer) = self.bytes[10..].split_at(self.bytes.len() - 18);
        let length = u32::from_le_bytes(trailer[4..].try_into().expect("four bytes")) as usize;
        let mut plain = vec![0; length];
        let unpacked = miniz_oxide::inflate::decompress_slice_iter_to_slice(
            &mut plain,
            [stream].into_iter(),
            false,
            true,
        );
        assert_eq!(unpacked, Ok(length), "{} was packed at build time", self.path);
        Cow::Owned(plain)
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
        assert!(
            status == 200 && !head.contains("gzip\r\n") && *bytes == *include_bytes!("../../www/index.html")
        );
    }

    #[test]
    fn every_page_is_the_file_below_www_for_those_who_do_not_take_gzip() {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("www");
        for page in PAGES {
            let name = if page.path == "/" { "index.html" } else { &page.path[1..] };
            let (status, head, bytes) = page.answer("", "");
            assert!(status == 200 && !head.contains("Content-Encoding"), "{name}");
            assert_eq!(*bytes, *std::fs::read(root.join(name)).unwrap(), "{name}");
        }
        assert!(PAGES.iter().any(|page| page.is_packed) && PAGES.iter().any(|page| !page.is_packed));
    }

    #[test]
    fn what_a_first_visit_loads_is_small() {
        let packed: usize = PAGES.iter().map(|page| page.bytes.len()).sum();
        assert!(packed <= 400 * 1024, "{packed} bytes in all");
    }
}

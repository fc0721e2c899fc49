//! Parts of a file over HTTP: ranges, tags, types and names (RFC 9110, 6266, 8187). Pure.

use crate::dashboard::api::{ApiRequest, ApiResponse};

/// What a request wants of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asked {
    /// All of it.
    Whole,
    /// So many bytes from an offset.
    Part(u64, u64),
    /// Bytes that are not there.
    Nothing,
    /// It has what it would get.
    Same,
}

/// `bytes=5-9`, `bytes=5-` and `bytes=-5` of so many bytes. What is no range, and several at once, ask for all.
pub(super) fn read_range(range: &str, size: u64) -> Asked {
    let Some((first, last)) = range.strip_prefix("bytes=").and_then(|range| range.split_once('-')) else {
        return Asked::Whole;
    };
    // Longer numbers are beyond any file.
    let number = |digits: &str| -> Option<u64> {
        let is_number = !digits.is_empty() && digits.bytes().all(|c| c.is_ascii_digit());
        is_number.then(|| digits.parse().unwrap_or(u64::MAX))
    };
    let (first, last) = (first.trim(), last.trim());
    match (first, number(first), last, number(last)) {
        ("", _, _, Some(0)) => Asked::Nothing,
        ("", _, _, Some(_)) if size == 0 => Asked::Nothing,
        ("", _, _, Some(len)) => Asked::Part(size - len.min(size), len.min(size)),
        (_, Some(first), "", _) if first < size => Asked::Part(first, size - first),
        (_, Some(first), _, Some(last)) if first <= last && first < size => {
            Asked::Part(first, last.min(size - 1) - first + 1)
        }
        (_, Some(_), "", _) => Asked::Nothing,
        (_, Some(first), _, Some(last)) if first <= last => Asked::Nothing,
        _ => Asked::Whole,
    }
}

/// Whether a list of tags, as in `If-None-Match`, has this one.
pub(super) fn has_tag(tags: &str, tag: &str) -> bool {
    tags.split(',').any(|one| {
        let one = one.trim();
        one == "*" || one.strip_prefix("W/").unwrap_or(one) == tag
    })
}

/// What a request wants of a file of so many bytes with this tag.
pub(super) fn asked(request: &ApiRequest, size: u64, tag: &str) -> Asked {
    if request.if_none_match.as_deref().is_some_and(|tags| has_tag(tags, tag)) {
        return Asked::Same;
    }
    // A part of another version would be sewn to what the client has of this one.
    let is_of_this = request.if_range.as_deref().is_none_or(|known| known.trim() == tag);
    match &request.range {
        Some(range) if is_of_this => read_range(range, size),
        _ => Asked::Whole,
    }
}

/// Status and headers of an answer with a part of a file, or with all of it. The body is the caller's.
pub(super) fn dress(mut response: ApiResponse, asked: Asked, size: u64, tag: &str) -> ApiResponse {
    if let Asked::Part(offset, len) = asked {
        response.status = 206;
        response = response
            .with_header("Content-Range", &format!("bytes {offset}-{}/{size}", offset + len.max(1) - 1));
    }
    response
        .with_header("Accept-Ranges", "bytes")
        .with_header("ETag", tag)
        // Kept by the browser, and asked for anew each time: no other may see what it was.
        .with_header("Cache-Control", "private, no-cache")
}

/// The answer where no bytes are sent.
pub(super) fn bare(asked: Asked, size: u64, tag: &str) -> Option<ApiResponse> {
    match asked {
        Asked::Nothing => Some(
            ApiResponse::error(416, "range", "there are no such bytes in the file", "")
                .with_header("Content-Range", &format!("bytes */{size}")),
        ),
        Asked::Same => {
            let mut response = ApiResponse::json_text(304, String::new());
            response.headers.push(("ETag".into(), tag.to_owned()));
            Some(response.with_header("Cache-Control", "private, no-cache"))
        }
        Asked::Whole | Asked::Part(..) => None,
    }
}

/// Types that a browser may show: nothing that runs. By the ending of the name, in small letters.
const SHOWN: &[(&str, &str)] = &[
    ("aac", "audio/aac"),
    ("avif", "image/avif"),
    ("bmp", "image/bmp"),
    ("flac", "audio/flac"),
    ("gif", "image/gif"),
    ("heic", "image/heic"),
    ("ico", "image/x-icon"),
    ("jpeg", "image/jpeg"),
    ("jpg", "image/jpeg"),
    ("m4a", "audio/mp4"),
    ("m4v", "video/mp4"),
    ("mkv", "video/x-matroska"),
    ("mov", "video/quicktime"),
    ("mp3", "audio/mpeg"),
    ("mp4", "video/mp4"),
    ("oga", "audio/ogg"),
    ("ogg", "audio/ogg"),
    ("ogv", "video/ogg"),
    ("opus", "audio/ogg"),
    ("pdf", "application/pdf"),
    ("png", "image/png"),
    ("wav", "audio/wav"),
    ("webm", "video/webm"),
    ("webp", "image/webp"),
];

/// Endings of what is shown as plain text, whatever it is for others.
const TEXTS: &[&str] = &[
    "asc", "bat", "bib", "c", "cfg", "conf", "cpp", "css", "csv", "diff", "env", "go", "h", "hpp", "htm",
    "html", "ini", "java", "js", "json", "jsonl", "kt", "log", "lua", "md", "mjs", "org", "patch", "php",
    "pl", "py", "rb", "rs", "rst", "sh", "sql", "srt", "svg", "swift", "tex", "toml", "ts", "tsv", "txt",
    "vtt", "xhtml", "xml", "yaml", "yml",
];

/// The type under which a file of this name may be shown. Nothing that could run is called what it is.
pub(super) fn safe_type(name: &[u8]) -> &'static str {
    let Some(dot) = name.iter().rposition(|byte| *byte == b'.') else { return "application/octet-stream" };
    let ending = String::from_utf8_lossy(&name[dot + 1..]).to_ascii_lowercase();
    if let Some((_, shown)) = SHOWN.iter().find(|(known, _)| *known == ending) {
        return shown;
    }
    if TEXTS.contains(&ending.as_str()) { "text/plain; charset=utf-8" } else { "application/octet-stream" }
}

/// `Content-Disposition` for a file of this name: in ASCII for old clients, and as it is.
pub(super) fn disposition(name: &[u8], is_inline: bool) -> String {
    let name = String::from_utf8_lossy(name);
    let plain: String = name
        .chars()
        .map(|c| if c.is_ascii_graphic() && !"\"\\%;/".contains(c) || c == ' ' { c } else { '_' })
        .collect();
    let mut whole = String::new();
    for byte in name.bytes() {
        // attr-char of RFC 8187.
        if byte.is_ascii_alphanumeric() || b"!#$&+-.^_`|~".contains(&byte) {
            whole.push(char::from(byte));
        } else {
            whole.push_str(&format!("%{byte:02X}"));
        }
    }
    let kind = if is_inline { "inline" } else { "attachment" };
    format!("{kind}; filename=\"{plain}\"; filename*=UTF-8''{whole}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_those_of_http() {
        for (range, read) in [
            ("bytes=0-9", Asked::Part(0, 10)),
            ("bytes=90-", Asked::Part(90, 10)),
            ("bytes=90-1000", Asked::Part(90, 10)),
            ("bytes=-10", Asked::Part(90, 10)),
            ("bytes=-1000", Asked::Part(0, 100)),
            ("bytes=0-99999999999999999999999999", Asked::Part(0, 100)),
            ("bytes=100-", Asked::Nothing),
            ("bytes=100-200", Asked::Nothing),
            ("bytes=99999999999999999999999999-", Asked::Nothing),
            ("bytes=-0", Asked::Nothing),
            // Not ranges: they ask for all.
            ("bytes=9-8", Asked::Whole),
            ("bytes=a-b", Asked::Whole),
            ("bytes=+1-2", Asked::Whole),
            ("bytes=-", Asked::Whole),
            ("bytes=1", Asked::Whole),
            ("bytes=0-1,5-6", Asked::Whole),
            ("items=0-9", Asked::Whole),
            ("", Asked::Whole),
        ] {
            assert_eq!(read_range(range, 100), read, "{range}");
        }
        assert_eq!(read_range("bytes=0-", 0), Asked::Nothing);
        assert_eq!(read_range("bytes=-5", 0), Asked::Nothing);
    }

    #[test]
    fn parts_are_sent_only_of_the_version_that_the_client_has() {
        let request = |if_range: Option<&str>, if_none_match: Option<&str>| ApiRequest {
            range: Some("bytes=1-2".into()),
            if_range: if_range.map(str::to_owned),
            if_none_match: if_none_match.map(str::to_owned),
            ..ApiRequest::default()
        };
        assert_eq!(asked(&request(None, None), 9, "\"a\""), Asked::Part(1, 2));
        assert_eq!(asked(&request(Some("\"a\""), None), 9, "\"a\""), Asked::Part(1, 2));
        for other in ["\"b\"", "W/\"a\"", "Mon, 01 Jan 2024 00:00:00 GMT"] {
            assert_eq!(asked(&request(Some(other), None), 9, "\"a\""), Asked::Whole);
        }
        for known in ["\"a\"", "\"x\", \"a\"", "W/\"a\"", "*"] {
            assert_eq!(asked(&request(None, Some(known)), 9, "\"a\""), Asked::Same);
        }
        assert_eq!(asked(&request(None, Some("\"b\"")), 9, "\"a\""), Asked::Part(1, 2));
    }

    #[test]
    fn nothing_that_runs_is_shown_as_what_it_is() {
        for name in ["a.html", "a.SVG", "a.xhtml", "a.js", "a.xml", "a.htm", "a.mjs"] {
            assert_eq!(safe_type(name.as_bytes()), "text/plain; charset=utf-8", "{name}");
        }
        for name in ["a", "a.exe", "a.swf", "html", ".", "a.", "a.\u{131}"] {
            assert_eq!(safe_type(name.as_bytes()), "application/octet-stream", "{name}");
        }
        assert_eq!(safe_type(b"x.y.JPG"), "image/jpeg");
        assert!(SHOWN.iter().all(|(_, kind)| !kind.contains("svg") && !kind.contains("html")));
    }

    #[test]
    fn names_cannot_leave_their_header() {
        let hostile = "a\"; filename=\"b.exe\r\nSet-Cookie: x\u{202e}\u{e9}%41.txt";
        let header = disposition(hostile.as_bytes(), false);
        assert!(header.bytes().all(|c| c.is_ascii_graphic() || c == b' '), "{header}");
        assert_eq!(header.matches('"').count(), 2);
        assert!(
            header.starts_with("attachment; filename=\"a__ filename=_b.exe__Set-Cookie: x__"),
            "{header}"
        );
        assert!(header.ends_with("%E2%80%AE%C3%A9%2541.txt"), "{header}");
        assert_eq!(disposition(b"a b.txt", true), "inline; filename=\"a b.txt\"; filename*=UTF-8''a%20b.txt");
    }
}

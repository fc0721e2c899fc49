//! Names of files that come from others.
//!
//! Two rules. What is no name at all, or could be a path, is *refused*, and the grant with it: nobody's mistake makes
//! such a name. What is a name on the sharer's machine but misleads or cannot be written on another is *changed* into a
//! harmless one, since `a:b.txt` is nobody's attack.
//!
//! Promise: a safe name is one part of a path on Linux, macOS and Windows, and shows as it is written.

use std::fmt;

use crate::manifest::{NAME_BYTES_MAX, is_name};

/// Why a name is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NameError {
    /// No bytes.
    Empty,
    /// More than 255 bytes.
    TooLong,
    /// `/`, NUL, `.` or `..`: a path.
    Path,
    /// Not UTF-8.
    NotUtf8,
}

impl fmt::Display for NameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Empty => "a name without letters",
            Self::TooLong => "a name of more than 255 bytes",
            Self::Path => "a name that is a path",
            Self::NotUtf8 => "a name that is not UTF-8",
        })
    }
}

impl std::error::Error for NameError {}

/// The name as a grant may carry it, unchanged.
pub fn granted_name(name: &[u8]) -> Result<&str, NameError> {
    if name.is_empty() {
        return Err(NameError::Empty);
    }
    if name.len() > NAME_BYTES_MAX {
        return Err(NameError::TooLong);
    }
    if !is_name(name) {
        return Err(NameError::Path);
    }
    std::str::from_utf8(name).map_err(|_| NameError::NotUtf8)
}

/// The name under which a sharer offers a file of its own: bytes that are not UTF-8 become `\u{fffd}`.
pub fn offered_name(name: &[u8]) -> String {
    cut(&String::from_utf8_lossy(name), NAME_BYTES_MAX).to_owned()
}

/// The name under which a granted file is written and shown here. Twice gives what once gives.
pub fn safe_name(name: &[u8]) -> Result<String, NameError> {
    let mut safe: String =
        granted_name(name)?.chars().map(|c| if is_harmless(c) { c } else { '_' }).collect();
    // Windows drops dots and spaces at the end; people do not see spaces.
    let trimmed =
        safe.trim_matches(char::is_whitespace).trim_end_matches(|c: char| c == '.' || c.is_whitespace());
    safe = trimmed.to_owned();
    if safe.is_empty() || is_device(&safe) || is_groves_own(&safe) {
        safe.insert(0, '_');
    }
    Ok(cut(&safe, NAME_BYTES_MAX).trim_end_matches(|c: char| c == '.' || c.is_whitespace()).to_owned())
}

/// `photo.jpg`, `photo (2).jpg`, `photo (3).jpg`, …: for a place where a name may be taken.
pub fn numbered_names(name: &str, count: usize) -> impl Iterator<Item = String> + use<> {
    let name = name.to_owned();
    let more = {
        let name = name.clone();
        (2..=count).map(move |n| with_mark(&name, &n.to_string()))
    };
    std::iter::once(name).chain(more)
}

/// `photo (MARK).jpg`; what is before the mark is cut so that it stays a name.
pub fn with_mark(name: &str, mark: &str) -> String {
    let (stem, ending) = match name.rfind('.') {
        // What is so long is no ending.
        Some(at) if at > 0 && name.len() - at <= 32 => name.split_at(at),
        _ => (name, ""),
    };
    let room = NAME_BYTES_MAX.saturating_sub(ending.len() + mark.len() + 3);
    format!("{} ({mark}){ending}", cut(stem, room))
}

/// Whether a letter shows as itself, in order, and can stand in a name anywhere.
fn is_harmless(c: char) -> bool {
    let turns_or_hides = matches!(c,
        '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
        | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}');
    !c.is_control() && !turns_or_hides && !matches!(c, '/' | '\\' | ':' | '<' | '>' | '"' | '|' | '?' | '*')
}

/// Names that Windows keeps for devices, whatever follows the first dot.
fn is_device(name: &str) -> bool {
    let stem = name.split('.').next().unwrap_or_default().trim_end().to_ascii_uppercase();
    let numbered = |device: &str| {
        let digit = stem.strip_prefix(device).map(|rest| rest.chars().collect::<Vec<_>>());
        digit.is_some_and(|rest| matches!(rest[..], ['0'..='9' | '¹' | '²' | '³']))
    };
    matches!(&stem[..], "CON" | "PRN" | "AUX" | "NUL" | "CONIN$" | "CONOUT$")
        || numbered("COM")
        || numbered("LPT")
}

/// Names by which Grove itself is told something (`.groveignore`, `.grove-home`, what it writes for a moment).
fn is_groves_own(name: &str) -> bool {
    name.get(..6).is_some_and(|start| start.eq_ignore_ascii_case(".grove"))
}

fn cut(text: &str, bytes_max: usize) -> &str {
    let end = (0..=bytes_max.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_name_is_refused() {
        for (name, why) in [
            (&b""[..], NameError::Empty),
            (b".", NameError::Path),
            (b"..", NameError::Path),
            (b"../../.ssh/authorized_keys", NameError::Path),
            (b"/etc/passwd", NameError::Path),
            (b"a/b", NameError::Path),
            (b"photo.jpg\0.exe", NameError::Path),
            (b"caf\xe9.txt", NameError::NotUtf8),
            // An overlong `/`.
            (b"..\xc0\xaf..", NameError::NotUtf8),
            (&[b'x'; 256], NameError::TooLong),
            (&vec![b'x'; 10_000_000], NameError::TooLong),
        ] {
            assert_eq!(
                safe_name(name),
                Err(why),
                "{:?}",
                String::from_utf8_lossy(&name[..name.len().min(40)])
            );
        }
    }

    #[test]
    fn what_misleads_or_cannot_be_written_elsewhere_is_changed() {
        for (name, safe) in [
            ("photo\u{202e}gpj.exe", "photo_gpj.exe"),
            ("\u{2066}a\u{2069}", "_a_"),
            ("zero\u{200b}width", "zero_width"),
            ("..\\..\\autoexec.bat", ".._.._autoexec.bat"),
            ("C:\\x", "C__x"),
            ("file.txt:stream", "file.txt_stream"),
            ("bell\u{7}\u{1b}[2J", "bell__[2J"),
            ("new\nline", "new_line"),
            ("CON", "_CON"),
            ("nul.txt", "_nul.txt"),
            ("Com1.tar.gz", "_Com1.tar.gz"),
            ("lpt³", "_lpt³"),
            ("CON .txt", "_CON .txt"),
            ("  spaced  ", "spaced"),
            ("dots...", "dots"),
            ("...", "_"),
            (" ", "_"),
            (". .", "_"),
            (".groveignore", "_.groveignore"),
            (".GROVE-home", "_.GROVE-home"),
            ("<>|?*\"", "______"),
        ] {
            assert_eq!(safe_name(name.as_bytes()).as_deref(), Ok(safe), "{name:?}");
        }
    }

    #[test]
    fn plain_names_stay_as_they_are() {
        for name in [
            "photo.jpg",
            ".bashrc",
            "a b.txt",
            "été ☘.md",
            "שלום.txt",
            "common.txt",
            "COM10",
            &"x".repeat(255),
        ] {
            assert_eq!(safe_name(name.as_bytes()).as_deref(), Ok(name));
        }
    }

    #[test]
    fn safe_name_is_a_name_within_its_limit_and_safe_again() {
        let long = format!("{}é", "x".repeat(253));
        let device = format!("con.{}", "x".repeat(251));
        let dots = format!("con.{}.y", "x".repeat(249));
        for name in [&long, &device, &dots, "\u{202e}", "nul. ", "_ .", "aux.\u{a0}"] {
            let safe = safe_name(name.as_bytes()).unwrap();
            assert!(is_name(safe.as_bytes()), "{name:?} {safe:?}");
            assert_eq!(safe_name(safe.as_bytes()), Ok(safe));
        }
    }

    #[test]
    fn own_name_that_is_not_utf8_is_offered_readable_and_within_its_limit() {
        assert_eq!(offered_name(b"caf\xe9.txt"), "caf\u{fffd}.txt");
        let offered = offered_name(&[0xff; 255]);
        assert!(granted_name(offered.as_bytes()).is_ok() && offered.len() == 255);
    }

    #[test]
    fn a_taken_name_gets_a_number_before_its_ending_and_stays_a_name() {
        let names: Vec<String> = numbered_names("a.b.txt", 3).collect();
        assert_eq!(names, ["a.b.txt", "a.b (2).txt", "a.b (3).txt"]);
        assert_eq!(numbered_names(".bashrc", 2).last().unwrap(), ".bashrc (2)");
        assert_eq!(with_mark("notes", "mine"), "notes (mine)");
        let long = format!("{}.txt", "é".repeat(125));
        assert!(numbered_names(&long, 100).all(|name| name.len() <= NAME_BYTES_MAX));
    }
}

//! Numbers, times and names as people read them. Touches nothing but the time zone.

use crate::clock;
use crate::logger::is_odd;

/// `12,345`.
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `1 file`, `2 files`; `things` is the plural, an s or `ies` longer.
pub fn of(number: u64, thing: &str, things: &str) -> String {
    format!("{} {}", count(number), if number == 1 { thing } else { things })
}

/// `1.2 GiB`: three digits at most, cut, never rounded up, so that nothing looks larger than it is.
pub fn bytes(number: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if number < 1024 {
        return format!("{number} B");
    }
    let step = (number.ilog2() / 10) as usize;
    let tenths = (u128::from(number) * 10) >> (10 * step);
    let unit = UNITS[step - 1];
    if tenths < 100 {
        format!("{}.{} {unit}", tenths / 10, tenths % 10)
    } else {
        format!("{} {unit}", tenths / 10)
    }
}

/// `5 s`, `3 min 20 s`, `2 h 5 min`, `4 d 3 h`.
pub fn duration(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    let pair = |first: u64, unit: &str, second: u64, small: &str| match second {
        0 => format!("{first} {unit}"),
        _ => format!("{first} {unit} {second} {small}"),
    };
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => pair(minutes, "min", seconds % 60, "s"),
        3600..86_400 => pair(hours, "h", minutes, "min"),
        _ => pair(days, "d", hours, "h"),
    }
}

/// `2026-11-23 21:10` in the time zone of this machine; `seconds` since 1970, UTC.
pub fn time(seconds: i64) -> String {
    let Some(parts) = clock::local_time(seconds) else { return "-".to_owned() };
    let year = i64::from(parts.tm_year) + 1900;
    format!("{year:04}-{:02}-{:02} {:02}:{:02}", parts.tm_mon + 1, parts.tm_mday, parts.tm_hour, parts.tm_min)
}

/// `drwxr-xr-x`; `kind` is `file`, `folder` or `symlink`.
pub fn mode(kind: &str, mode: u64) -> String {
    let mut text = String::from(match kind {
        "folder" => "d",
        "symlink" => "l",
        _ => "-",
    });
    for at in (0..9).rev() {
        let letter = ['x', 'w', 'r'][at % 3];
        text.push(if mode >> at & 1 == 1 { letter } else { '-' });
    }
    text
}

/// A name as a person sees it and a shell takes it: as it is if it is plain, else as `$'…'` with its odd bytes as
/// `\x1b`. Odd is what is not UTF-8, what moves the cursor, and what turns or hides text.
pub fn name(bytes: &[u8]) -> String {
    if std::str::from_utf8(bytes).is_ok_and(|text| !text.chars().any(is_odd)) {
        return String::from_utf8_lossy(bytes).into_owned();
    }
    let mut text = String::from("$'");
    let escape = |text: &mut String, bytes: &[u8]| {
        for byte in bytes {
            text.push_str(&format!("\\x{byte:02x}"));
        }
    };
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\'' | '\\' => text.extend(['\\', c]),
                '\n' => text.push_str("\\n"),
                '\t' => text.push_str("\\t"),
                c if is_odd(c) => escape(&mut text, c.encode_utf8(&mut [0; 4]).as_bytes()),
                c => text.push(c),
            }
        }
        escape(&mut text, chunk.invalid());
    }
    text.push('\'');
    text
}

/// Text from elsewhere for a terminal: odd letters show as `\u{fffd}`, lines stay.
pub fn text(text: &str) -> String {
    text.chars().map(|c| if is_odd(c) && c != '\n' { '\u{fffd}' } else { c }).collect()
}

/// Columns of `text`, as far as that can be told without tables: its letters.
pub fn width(text: &str) -> usize {
    text.chars().count()
}

/// Rows as columns two spaces apart; numbers (columns in `right`) flush right. The last column is not padded.
pub fn table(rows: &[Vec<String>], right: &[usize]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns)
        .map(|at| rows.iter().filter_map(|row| row.get(at)).map(|cell| width(cell)).max().unwrap_or(0))
        .collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (at, cell) in row.iter().enumerate() {
            let gap = " ".repeat(widths[at] - width(cell));
            match right.contains(&at) {
                true => line.push_str(&format!("{gap}{cell}")),
                false => line.push_str(&format!("{cell}{gap}")),
            }
            line.push_str("  ");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Reads `7d`, `12h`, `30m`, `90s`, and `90` as seconds.
pub fn read_duration(text: &str) -> Result<u64, String> {
    let (digits, unit) = text.split_at(
        text.len()
            - text.chars().next_back().map_or(0, |c| match c {
                'a'..='z' => 1,
                _ => 0,
            }),
    );
    let factor = match unit {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        "w" => 7 * 86_400,
        _ => return Err(format!("\"{text}\" is no time; write 90s, 30m, 12h or 7d")),
    };
    let number = digits.parse::<u64>().ok().and_then(|number| number.checked_mul(factor));
    number.ok_or_else(|| format!("\"{text}\" is no time; write 90s, 30m, 12h or 7d"))
}

/// Reads `10G`, `1.5 TiB`, `500MB` and `123`: units are powers of 1024.
pub fn read_bytes(text: &str) -> Result<u64, String> {
    let wrong = || format!("\"{text}\" is no size; write for example 500M, 10G or 1.5T");
    let text_trimmed = text.trim();
    let end = text_trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text_trimmed.len());
    let (number, unit) = text_trimmed.split_at(end);
    let shift = match unit.trim().to_ascii_uppercase().trim_end_matches("IB").trim_end_matches('B') {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        "P" => 50,
        _ => return Err(wrong()),
    };
    let (whole, part) = number.split_once('.').unwrap_or((number, ""));
    if number.is_empty() || part.len() > 6 || part.contains('.') {
        return Err(wrong());
    }
    let whole: u128 = format!("0{whole}").parse().map_err(|_| wrong())?;
    let part: u128 = format!("{part:0<6}").parse().map_err(|_| wrong())?;
    let millionths = whole.checked_mul(1_000_000).and_then(|whole| (whole + part).checked_mul(1 << shift));
    millionths.and_then(|bytes| u64::try_from(bytes / 1_000_000).ok()).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        assert_eq!(
            [0, 999, 1000, 12_345, 1_234_567].map(count),
            ["0", "999", "1,000", "12,345", "1,234,567"]
        );
        assert_eq!(of(1, "file", "files"), "1 file");
        assert_eq!(of(2000, "file", "files"), "2,000 files");
        let cases = [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (10_239, "9.9 KiB"),
            (10_240, "10 KiB"),
            (1024 * 1024 - 1, "1023 KiB"),
            (1 << 30, "1.0 GiB"),
            (1_288_490_189, "1.2 GiB"),
            (u64::MAX, "15 EiB"),
        ];
        for (number, text) in cases {
            assert_eq!(bytes(number), text);
        }
    }

    #[test]
    fn durations_read_well() {
        let cases = [
            (0, "0 s"),
            (59, "59 s"),
            (60, "1 min"),
            (200, "3 min 20 s"),
            (3600, "1 h"),
            (7500, "2 h 5 min"),
        ];
        for (seconds, text) in cases {
            assert_eq!(duration(seconds), text);
        }
        assert_eq!(duration(4 * 86_400 + 3 * 3600 + 5), "4 d 3 h");
    }

    #[test]
    fn dates_are_right() {
        assert_eq!(time(1_795_468_211).len(), "2026-11-23 21:10".len());
        // Times of files may be anything.
        for seconds in [i64::MIN, -1, i64::MAX] {
            assert!(!time(seconds).is_empty());
        }
    }

    #[test]
    fn modes_look_like_those_of_ls() {
        assert_eq!(mode("file", 0o100_644), "-rw-r--r--");
        assert_eq!(mode("folder", 0o755), "drwxr-xr-x");
        assert_eq!(mode("symlink", 0o777), "lrwxrwxrwx");
    }

    #[test]
    fn names_cannot_command_a_terminal() {
        assert_eq!(name(b"two words & more.txt"), "two words & more.txt");
        assert_eq!(name("Grüße".as_bytes()), "Grüße");
        assert_eq!(name(b"a\x1b[2Jb"), "$'a\\x1b[2Jb'");
        assert_eq!(name(b"na\xefve's\n"), "$'na\\xefve\\'s\\n'");
        assert_eq!(name("gpj\u{202e}.exe".as_bytes()), "$'gpj\\xe2\\x80\\xae.exe'");
        assert_eq!(text("a\x1b[31m\nb\u{202e}"), "a\u{fffd}[31m\nb\u{fffd}");
    }

    #[test]
    fn tables_line_up() {
        let rows = [vec!["a".into(), "1".into(), "x".into()], vec!["bcd".into(), "200".into(), "y".into()]];
        assert_eq!(table(&rows, &[1]), "a      1  x\nbcd  200  y\n");
    }

    #[test]
    fn sizes_and_times_are_read() {
        let sizes = [
            ("0", 0),
            ("123", 123),
            ("10G", 10 << 30),
            ("1.5 TiB", 3 << 39),
            ("500MB", 500 << 20),
            (".5k", 512),
        ];
        for (text, number) in sizes {
            assert_eq!(read_bytes(text), Ok(number), "{text}");
        }
        for bad in ["", "G", "-1", "1x", "1.2.3", "1e9", "99999999999999P", "ten"] {
            assert!(read_bytes(bad).is_err(), "{bad}");
        }
        let times =
            [("90", 90), ("90s", 90), ("30m", 1800), ("12h", 43_200), ("7d", 604_800), ("2w", 1_209_600)];
        for (text, number) in times {
            assert_eq!(read_duration(text), Ok(number), "{text}");
        }
        for bad in ["", "d", "7y", "-7d", "1.5d", "7 d ", "é", "99999999999999999999d"] {
            assert!(read_duration(bad).is_err(), "{bad}");
        }
    }
}

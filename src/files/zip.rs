//! Zip archives as they are written: nothing is compressed, sizes may be any (zip64), names are UTF-8. Pure.
//!
//! What an entry's bytes hash to is known only behind them, so it stands there, and in the directory at the end.

use crate::manifest::FileTime;

/// A size or offset that stands elsewhere.
const ELSEWHERE: u32 = u32::MAX;
/// Made by version 4.5 on Unix.
const MADE_BY: u16 = 3 << 8 | 45;
const NEEDS: u16 = 45;
/// Hash and sizes stand behind the bytes; names are UTF-8.
const FLAGS: u16 = 1 << 3 | 1 << 11;
/// Days of 1980-01-01 since 1970.
const DOS_EPOCH_S: i64 = 315_532_800;
/// 2107-12-31T23:59:58Z.
const DOS_END_S: i64 = 4_354_819_198;

/// Something in an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its path; a folder's ends with a slash.
    pub path: String,
    /// Type and permission bits, as in `st_mode`.
    pub mode: u32,
    /// Modified.
    pub mtime: FileTime,
}

/// CRC-32 as in zip, gzip and Ethernet, over what comes piece by piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Crc(u32);

const fn tables() -> [[u32; 256]; 8] {
    let mut tables = [[0; 256]; 8];
    let mut n = 0;
    while n < 256 {
        let mut crc = n as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 };
            bit += 1;
        }
        tables[0][n] = crc;
        n += 1;
    }
    let mut n = 0;
    while n < 256 {
        let mut k = 1;
        while k < 8 {
            let before = tables[k - 1][n];
            tables[k][n] = before >> 8 ^ tables[0][(before & 255) as usize];
            k += 1;
        }
        n += 1;
    }
    tables
}

static TABLES: [[u32; 256]; 8] = tables();

impl Default for Crc {
    fn default() -> Self {
        Self(u32::MAX)
    }
}

impl Crc {
    /// Takes in more bytes.
    pub fn add(&mut self, bytes: &[u8]) {
        let mut crc = self.0;
        let mut eights = bytes.chunks_exact(8);
        for eight in &mut eights {
            let low = crc ^ u32::from_le_bytes([eight[0], eight[1], eight[2], eight[3]]);
            let byte = |word: u32, n: u32| (word >> (8 * n) & 255) as usize;
            crc = TABLES[7][byte(low, 0)]
                ^ TABLES[6][byte(low, 1)]
                ^ TABLES[5][byte(low, 2)]
                ^ TABLES[4][byte(low, 3)]
                ^ TABLES[3][usize::from(eight[4])]
                ^ TABLES[2][usize::from(eight[5])]
                ^ TABLES[1][usize::from(eight[6])]
                ^ TABLES[0][usize::from(eight[7])];
        }
        for byte in eights.remainder() {
            crc = crc >> 8 ^ TABLES[0][((crc ^ u32::from(*byte)) & 255) as usize];
        }
        self.0 = crc;
    }

    /// Of all that came.
    pub fn end(self) -> u32 {
        !self.0
    }
}

/// Date and time as MS-DOS has them, in UTC.
fn dos_time(seconds: i64) -> (u16, u16) {
    let seconds = seconds.clamp(DOS_EPOCH_S, DOS_END_S) as u64;
    let text = crate::logger::time_utc(seconds);
    let number = |range: std::ops::Range<usize>| text[range].parse::<u16>().unwrap_or(0);
    let date = (number(0..4) - 1980) << 9 | number(5..7) << 5 | number(8..10);
    let time = number(11..13) << 11 | number(14..16) << 5 | (number(17..19) / 2);
    (date, time)
}

fn put16(to: &mut Vec<u8>, n: u16) {
    to.extend_from_slice(&n.to_le_bytes());
}

fn put32(to: &mut Vec<u8>, n: u32) {
    to.extend_from_slice(&n.to_le_bytes());
}

fn put64(to: &mut Vec<u8>, n: u64) {
    to.extend_from_slice(&n.to_le_bytes());
}

/// The time since 1970, for whom the MS-DOS time is too coarse; none where it does not fit.
fn put_time(extra: &mut Vec<u8>, mtime: FileTime) {
    if let Ok(seconds) = i32::try_from(mtime.s) {
        put16(extra, 0x5455);
        put16(extra, 5);
        extra.push(1);
        put32(extra, seconds as u32);
    }
}

fn name_bytes(path: &str) -> &[u8] {
    // Longer than any path of GroveHome.
    let mut end = path.len().min(usize::from(u16::MAX));
    while !path.is_char_boundary(end) {
        end -= 1;
    }
    &path.as_bytes()[..end]
}

/// An archive on its way: what it gives is to be sent in order.
#[derive(Debug, Default)]
pub struct Writer {
    offset: u64,
    entries: u64,
    directory_bytes: u64,
    begun: Option<(Entry, u64, Crc, u64)>,
}

impl Writer {
    /// The head of an entry; its bytes follow.
    pub fn begin(&mut self, entry: Entry) -> Vec<u8> {
        let name = name_bytes(&entry.path);
        let (date, time) = dos_time(entry.mtime.s);
        let mut extra = Vec::new();
        // Says that the sizes behind the bytes have eight bytes each.
        put16(&mut extra, 1);
        put16(&mut extra, 16);
        put64(&mut extra, 0);
        put64(&mut extra, 0);
        put_time(&mut extra, entry.mtime);
        let mut head = Vec::with_capacity(30 + name.len() + extra.len());
        put32(&mut head, 0x0403_4b50);
        put16(&mut head, NEEDS);
        put16(&mut head, FLAGS);
        put16(&mut head, 0);
        put16(&mut head, time);
        put16(&mut head, date);
        put32(&mut head, 0);
        put32(&mut head, ELSEWHERE);
        put32(&mut head, ELSEWHERE);
        put16(&mut head, name.len() as u16);
        put16(&mut head, extra.len() as u16);
        head.extend_from_slice(name);
        head.extend_from_slice(&extra);
        let begins = self.offset;
        self.offset += head.len() as u64;
        self.begun = Some((entry, begins, Crc::default(), 0));
        head
    }

    /// Takes note of bytes of the entry that were sent as they are: their hash so far, and how many there were.
    pub fn bytes(&mut self, crc: Crc, len: u64) {
        if let Some((_, _, known, size)) = &mut self.begun {
            *known = crc;
            *size += len;
            self.offset += len;
        }
    }

    /// The hash of the entry so far, to be gone on with.
    pub fn crc(&self) -> Crc {
        self.begun.as_ref().map_or_else(Crc::default, |(_, _, crc, _)| *crc)
    }

    /// What stands behind an entry's bytes, and its line of the directory, to be kept for the end.
    pub fn end(&mut self) -> (Vec<u8>, Vec<u8>) {
        let Some((entry, begins, crc, size)) = self.begun.take() else { return (Vec::new(), Vec::new()) };
        let mut tail = Vec::with_capacity(24);
        put32(&mut tail, 0x0807_4b50);
        put32(&mut tail, crc.end());
        put64(&mut tail, size);
        put64(&mut tail, size);
        self.offset += tail.len() as u64;
        let name = name_bytes(&entry.path);
        let (date, time) = dos_time(entry.mtime.s);
        let mut extra = Vec::new();
        put16(&mut extra, 1);
        put16(&mut extra, 24);
        put64(&mut extra, size);
        put64(&mut extra, size);
        put64(&mut extra, begins);
        put_time(&mut extra, entry.mtime);
        let mut line = Vec::with_capacity(46 + name.len() + extra.len());
        put32(&mut line, 0x0201_4b50);
        put16(&mut line, MADE_BY);
        put16(&mut line, NEEDS);
        put16(&mut line, FLAGS);
        put16(&mut line, 0);
        put16(&mut line, time);
        put16(&mut line, date);
        put32(&mut line, crc.end());
        put32(&mut line, ELSEWHERE);
        put32(&mut line, ELSEWHERE);
        put16(&mut line, name.len() as u16);
        put16(&mut line, extra.len() as u16);
        put16(&mut line, 0);
        put16(&mut line, 0);
        put16(&mut line, 0);
        // The MS-DOS bit for folders, too.
        put32(&mut line, entry.mode << 16 | u32::from(entry.path.ends_with('/')) << 4);
        put32(&mut line, ELSEWHERE);
        line.extend_from_slice(name);
        line.extend_from_slice(&extra);
        self.entries += 1;
        self.directory_bytes += line.len() as u64;
        (tail, line)
    }

    /// What follows the directory, which is all lines in their order.
    pub fn finish(self) -> Vec<u8> {
        let (begins, ends) = (self.offset, self.offset + self.directory_bytes);
        let mut end = Vec::with_capacity(98);
        put32(&mut end, 0x0606_4b50);
        put64(&mut end, 44);
        put16(&mut end, MADE_BY);
        put16(&mut end, NEEDS);
        put32(&mut end, 0);
        put32(&mut end, 0);
        put64(&mut end, self.entries);
        put64(&mut end, self.entries);
        put64(&mut end, self.directory_bytes);
        put64(&mut end, begins);
        put32(&mut end, 0x0706_4b50);
        put32(&mut end, 0);
        put64(&mut end, ends);
        put32(&mut end, 1);
        put32(&mut end, 0x0605_4b50);
        put16(&mut end, 0);
        put16(&mut end, 0);
        let count = u16::try_from(self.entries).unwrap_or(u16::MAX);
        put16(&mut end, count);
        put16(&mut end, count);
        put32(&mut end, u32::try_from(self.directory_bytes).unwrap_or(ELSEWHERE));
        put32(&mut end, u32::try_from(begins).unwrap_or(ELSEWHERE));
        put16(&mut end, 0);
        end
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hash_is_that_of_zip() {
        let mut crc = Crc::default();
        crc.add(b"1234");
        crc.add(b"56789");
        assert_eq!(crc.end(), 0xcbf4_3926);
        assert_eq!(Crc::default().end(), 0);
        let bytes: Vec<u8> = (0..1000u32).map(|n| (n * 7) as u8).collect();
        let mut whole = Crc::default();
        whole.add(&bytes);
        let mut pieces = Crc::default();
        bytes.chunks(13).for_each(|piece| pieces.add(piece));
        assert_eq!(whole, pieces);
    }

    #[test]
    fn dates_are_those_of_ms_dos() {
        assert_eq!(dos_time(0), (1 << 5 | 1, 0));
        // 2026-11-23T21:10:11Z
        assert_eq!(dos_time(1_795_468_211), (46 << 9 | 11 << 5 | 23, 21 << 11 | 10 << 5 | 5));
        assert_eq!(dos_time(i64::MAX), (127 << 9 | 12 << 5 | 31, 23 << 11 | 59 << 5 | 29));
    }

    #[test]
    fn sizes_and_places_add_up() {
        let mut writer = Writer::default();
        let mut all = Vec::new();
        let mut directory = Vec::new();
        for (path, bytes) in [("a/", &b""[..]), ("a/h\u{e9}.txt", b"hello"), ("a/empty", b"")] {
            let mtime = FileTime { s: 1_795_468_211, ns: 0 };
            all.extend(writer.begin(Entry { path: path.into(), mode: 0o100_644, mtime }));
            let mut crc = writer.crc();
            crc.add(bytes);
            all.extend_from_slice(bytes);
            writer.bytes(crc, bytes.len() as u64);
            let (tail, line) = writer.end();
            all.extend(tail);
            directory.extend(line);
        }
        let begins = all.len() as u64;
        all.extend(&directory);
        let end = writer.finish();
        assert_eq!(end.len(), 98);
        assert_eq!(u64::from_le_bytes(end[48..56].try_into().unwrap()), begins);
        assert_eq!(u64::from_le_bytes(end[40..48].try_into().unwrap()), directory.len() as u64);
        assert_eq!(u64::from_le_bytes(end[32..40].try_into().unwrap()), 3);
        // Each line points at a head with its name.
        assert_eq!(&all[..4], b"PK\x03\x04");
        assert_eq!(&all[begins as usize..begins as usize + 4], b"PK\x01\x02");
    }
}

//! The one binary form of everything that is signed or sent: little-endian numbers and length-prefixed bytes.
//!
//! Promise: a reader never panics and never allocates more than the bytes it was given.

use std::fmt;

/// The bytes end early, hold an impossible value, or go on after the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadBytes(pub &'static str);

impl fmt::Display for BadBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "malformed bytes: {}", self.0)
    }
}

impl std::error::Error for BadBytes {}

/// Appends values to a buffer.
#[derive(Debug, Default, Clone)]
pub struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    /// An empty buffer.
    pub fn new() -> Self {
        Self::default()
    }

    /// A buffer that begins with a domain label of its own length byte, so that no two formats share bytes.
    pub fn with_label(label: &str) -> Self {
        let mut writer = Self::new();
        writer.short(label.as_bytes());
        writer
    }

    /// One byte.
    pub fn u8(&mut self, value: u8) -> &mut Self {
        self.bytes.push(value);
        self
    }

    /// Two bytes.
    pub fn u16(&mut self, value: u16) -> &mut Self {
        self.raw(&value.to_le_bytes())
    }

    /// Four bytes.
    pub fn u32(&mut self, value: u32) -> &mut Self {
        self.raw(&value.to_le_bytes())
    }

    /// Eight bytes.
    pub fn u64(&mut self, value: u64) -> &mut Self {
        self.raw(&value.to_le_bytes())
    }

    /// Eight bytes, two's complement.
    pub fn i64(&mut self, value: i64) -> &mut Self {
        self.raw(&value.to_le_bytes())
    }

    /// The bytes alone: the reader must know their number.
    pub fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.bytes.extend_from_slice(bytes);
        self
    }

    /// A length byte and up to 255 bytes.
    pub fn short(&mut self, bytes: &[u8]) -> &mut Self {
        let len = u8::try_from(bytes.len()).expect("short fields are bounded by their writers");
        self.u8(len).raw(bytes)
    }

    /// A four-byte length and the bytes.
    pub fn long(&mut self, bytes: &[u8]) -> &mut Self {
        let len = u32::try_from(bytes.len()).expect("fields are bounded by their writers");
        self.u32(len).raw(bytes)
    }

    /// Bytes written so far.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Nothing written yet.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The bytes so far.
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes
    }

    /// The buffer.
    pub fn finish(self) -> Vec<u8> {
        self.bytes
    }
}

/// Takes values off the front of a slice.
#[derive(Debug, Clone, Copy)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Reads from the start of `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// Fails unless the next field is this domain label.
    pub fn label(&mut self, label: &'static str) -> Result<(), BadBytes> {
        if self.short()? == label.as_bytes() { Ok(()) } else { Err(BadBytes("another format's label")) }
    }

    /// The next `n` bytes.
    pub fn raw(&mut self, n: usize) -> Result<&'a [u8], BadBytes> {
        if n > self.rest.len() {
            return Err(BadBytes("ends early"));
        }
        let (taken, rest) = self.rest.split_at(n);
        self.rest = rest;
        Ok(taken)
    }

    /// The next `N` bytes as an array.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], BadBytes> {
        Ok(self.raw(N)?.try_into().expect("raw gives the number asked for"))
    }

    /// One byte.
    pub fn u8(&mut self) -> Result<u8, BadBytes> {
        Ok(self.raw(1)?[0])
    }

    /// Two bytes.
    pub fn u16(&mut self) -> Result<u16, BadBytes> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    /// Four bytes.
    pub fn u32(&mut self) -> Result<u32, BadBytes> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    /// Eight bytes.
    pub fn u64(&mut self) -> Result<u64, BadBytes> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// Eight bytes, two's complement.
    pub fn i64(&mut self) -> Result<i64, BadBytes> {
        Ok(i64::from_le_bytes(self.array()?))
    }

    /// A length byte and its bytes.
    pub fn short(&mut self) -> Result<&'a [u8], BadBytes> {
        let len = self.u8()?;
        self.raw(usize::from(len))
    }

    /// A four-byte length and its bytes.
    pub fn long(&mut self) -> Result<&'a [u8], BadBytes> {
        let len = self.u32()?;
        self.raw(len as usize)
    }

    /// A count of items of at least `bytes_each` bytes: refused where the rest cannot hold them.
    pub fn count(&mut self, bytes_each: usize) -> Result<usize, BadBytes> {
        let count = self.u32()? as usize;
        if count.checked_mul(bytes_each).is_none_or(|bytes| bytes > self.rest.len()) {
            return Err(BadBytes("more items than bytes"));
        }
        Ok(count)
    }

    /// What is left.
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// Nothing is left.
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// Fails if anything is left: one value, one form.
    pub fn end(self) -> Result<(), BadBytes> {
        if self.rest.is_empty() { Ok(()) } else { Err(BadBytes("goes on after the end")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_reads_back() {
        let mut writer = Writer::with_label("grove test");
        writer.u8(7).u16(8).u32(9).u64(10).i64(-11).short(b"ab").long(b"cde");
        let bytes = writer.finish();
        let mut reader = Reader::new(&bytes);
        reader.label("grove test").unwrap();
        assert_eq!(reader.u8(), Ok(7));
        assert_eq!(reader.u16(), Ok(8));
        assert_eq!(reader.u32(), Ok(9));
        assert_eq!(reader.u64(), Ok(10));
        assert_eq!(reader.i64(), Ok(-11));
        assert_eq!(reader.short(), Ok(&b"ab"[..]));
        assert_eq!(reader.long(), Ok(&b"cde"[..]));
        reader.end().unwrap();
    }

    #[test]
    fn huge_lengths_are_refused_before_anything_is_allocated() {
        let bytes = [0xff; 8];
        assert!(Reader::new(&bytes).long().is_err());
        assert!(Reader::new(&bytes).count(1).is_err());
        assert!(Reader::new(&bytes).count(usize::MAX).is_err());
    }
}

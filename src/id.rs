//! Names of things: chunks, cells and files. Bytes, text form, nothing else.

use std::fmt;
use std::str::FromStr;

/// Lower-case hexadecimal of `bytes`.
pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        text.push(DIGITS[usize::from(byte >> 4)] as char);
        text.push(DIGITS[usize::from(byte & 15)] as char);
    }
    text
}

/// Bytes of a hexadecimal text of either case; `None` for odd lengths and other letters.
pub fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |c: u8| (c as char).to_digit(16).map(|d| d as u8);
    let text = text.as_bytes();
    if text.len() % 2 != 0 {
        return None;
    }
    text.chunks_exact(2).map(|pair| Some(digit(pair[0])? << 4 | digit(pair[1])?)).collect()
}

/// The text was not the hexadecimal form of an id of the expected length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadId;

impl fmt::Display for BadId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not an id in hexadecimal form")
    }
}

impl std::error::Error for BadId {}

macro_rules! id_type {
    ($(#[$doc:meta])* $name:ident, $len:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; $len]);

        impl $name {
            /// Length in bytes.
            pub const LEN: usize = $len;

            /// The id in `bytes`; `None` if their number is not `LEN`.
            pub fn from_slice(bytes: &[u8]) -> Option<Self> {
                Some(Self(bytes.try_into().ok()?))
            }

            /// The bytes of the id.
            pub fn as_bytes(&self) -> &[u8; $len] {
                &self.0
            }

            /// The first 8 hexadecimal digits, for people.
            pub fn short(&self) -> String {
                hex(&self.0[..4])
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&hex(&self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.short())
            }
        }

        impl FromStr for $name {
            type Err = BadId;

            fn from_str(text: &str) -> Result<Self, BadId> {
                unhex(text).and_then(|bytes| Self::from_slice(&bytes)).ok_or(BadId)
            }
        }
    };
}

id_type! {
    /// SHA-256 of a chunk's sealed bytes.
    ChunkName, 32
}
id_type! {
    /// A cell's Ed25519 public key.
    CellId, 32
}
id_type! {
    /// Random name of a file, symlink or folder; the same over all its versions. All zeros: GroveHome itself.
    FileId, 16
}
id_type! {
    /// SHA-256 of a manifest's or a head's canonical body.
    BodyHash, 32
}

impl FileId {
    /// GroveHome itself.
    pub const ROOT: Self = Self([0; 16]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_form_reads_back() {
        let id = FileId([0xa1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 0xff]);
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!(id.to_string().to_uppercase().parse(), Ok(id));
        assert_eq!(id.short(), "a1020304");
    }

    #[test]
    fn wrong_lengths_and_letters_are_refused() {
        assert_eq!("a1".parse::<FileId>(), Err(BadId));
        assert_eq!("zz".repeat(16).parse::<FileId>(), Err(BadId));
        assert_eq!("aé".repeat(16).parse::<FileId>(), Err(BadId));
        assert_eq!("a".repeat(31).parse::<FileId>(), Err(BadId));
    }
}

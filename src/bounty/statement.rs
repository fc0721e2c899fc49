//! What two cells sign of what they store for each other. docs/format.md, section 15, has the bytes; vectors:
//! `statement.json`.

use std::fmt;

use crate::codec::{BadBytes, Reader, Writer};
use crate::id::CellId;
use crate::keys::{Identity, is_sound, sha256, verify};
use crate::manifest::{Extension, read_extensions, write_extensions};

const LABEL: &str = "grove statement v1";
/// Bytes of a statement with its signatures.
pub const STATEMENT_BYTES_MAX: usize = 1024;
/// The highest figure: what SQLite keeps in one number. Byte-hours: 10 TiB for 95 years.
pub const FIGURE_MAX: u64 = i64::MAX as u64;

/// SHA-256 of a statement's body: signatures do not count.
pub type StatementHash = [u8; 32];

/// Which of the two cells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The one with the smaller id.
    Low,
    /// The other.
    High,
}

impl Side {
    /// Which of the two `us` is.
    pub fn of(us: &CellId, them: &CellId) -> Self {
        if us.0 < them.0 { Self::Low } else { Self::High }
    }

    /// The other one.
    pub fn other(self) -> Self {
        match self {
            Self::Low => Self::High,
            Self::High => Self::Low,
        }
    }

    fn at(self) -> usize {
        match self {
            Self::Low => 0,
            Self::High => 1,
        }
    }
}

/// Why bytes are no statement of two cells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StatementError {
    /// Not the bytes of one.
    Malformed(&'static str),
    /// A version that this one does not know.
    UnknownVersion,
    /// A signature that should be there is not, or was not made by that cell for these bytes.
    Signature(Side),
}

impl fmt::Display for StatementError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whose = |side: &Side| if *side == Side::Low { "smaller" } else { "larger" };
        match self {
            Self::Malformed(what) => write!(f, "no statement: {what}"),
            Self::UnknownVersion => f.write_str("a statement of a newer Grove; update this cell"),
            Self::Signature(side) => {
                write!(f, "a statement that the cell with the {} id has not signed", whose(side))
            }
        }
    }
}

impl std::error::Error for StatementError {}

impl From<BadBytes> for StatementError {
    fn from(why: BadBytes) -> Self {
        Self::Malformed(why.0)
    }
}

/// What a statement says. Of what there is one of each side, the cell's with the smaller id stands first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatementBody {
    /// The two cells; the first has the smaller id.
    pub cells: [CellId; 2],
    /// Of two statements of one pair the higher holds; 1 or more. Numbers may be left out.
    pub seq: u64,
    /// The statement before it that both have signed; zeros: there is none.
    pub previous: StatementHash,
    /// The lives of the cells.
    pub lives: [u32; 2],
    /// Where the period begins: the end of the one before. Unix seconds; 0 for the first.
    pub from: u64,
    /// Where it ends. Unix seconds.
    pub until: u64,
    /// What each cell has stored for the other since they know each other, as the other counts it. Byte-hours.
    pub stored: [u64; 2],
    /// From later versions of Grove, ignorable.
    pub extensions: Vec<Extension>,
}

impl StatementBody {
    /// What a side has stored for the other. Byte-hours.
    pub fn stored_by(&self, side: Side) -> u64 {
        self.stored[side.at()]
    }

    /// The life of a side.
    pub fn life_of(&self, side: Side) -> u32 {
        self.lives[side.at()]
    }

    /// Which of the two a cell is, if it is one of them.
    pub fn side(&self, cell: &CellId) -> Option<Side> {
        match cell {
            cell if *cell == self.cells[0] => Some(Side::Low),
            cell if *cell == self.cells[1] => Some(Side::High),
            _ => None,
        }
    }

    fn check(&self) -> Result<(), StatementError> {
        let rules = [
            (self.cells[0].0 < self.cells[1].0, "the cells are not in order"),
            (self.cells.iter().all(is_sound), "a key that anybody can sign for"),
            (self.seq >= 1, "statements are counted from 1"),
            (self.lives.iter().all(|life| *life >= 1), "lives are counted from 1"),
            (self.from <= self.until, "the period ends before it begins"),
            (self.stored.iter().all(|figure| *figure <= FIGURE_MAX), "a figure is too large"),
            (self.extensions.len() <= 16, "too many extensions"),
        ];
        match rules.into_iter().find(|(holds, _)| !holds) {
            Some((_, what)) => Err(StatementError::Malformed(what)),
            None => Ok(()),
        }
    }

    fn to_bytes(&self) -> Vec<u8> {
        let mut to = Writer::with_label(LABEL);
        to.raw(&self.cells[0].0).raw(&self.cells[1].0).u64(self.seq).raw(&self.previous);
        to.u32(self.lives[0]).u32(self.lives[1]).u64(self.from).u64(self.until);
        to.u64(self.stored[0]).u64(self.stored[1]);
        write_extensions(&self.extensions, &mut to);
        to.finish()
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, StatementError> {
        let label = from.short()?;
        if label != LABEL.as_bytes() {
            let is_newer = label.starts_with(b"grove statement v");
            return Err(match is_newer {
                true => StatementError::UnknownVersion,
                false => StatementError::Malformed("another format's label"),
            });
        }
        Ok(Self {
            cells: [CellId(from.array()?), CellId(from.array()?)],
            seq: from.u64()?,
            previous: from.array()?,
            lives: [from.u32()?, from.u32()?],
            from: from.u64()?,
            until: from.u64()?,
            stored: [from.u64()?, from.u64()?],
            extensions: read_extensions(from)?,
        })
    }
}

/// A statement with the signatures that it has; those are checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statement {
    body: StatementBody,
    body_bytes: Vec<u8>,
    signatures: [Option<[u8; 64]>; 2],
}

impl std::ops::Deref for Statement {
    type Target = StatementBody;

    fn deref(&self) -> &StatementBody {
        &self.body
    }
}

impl Statement {
    /// Signs as the first of the two.
    pub fn sign(identity: &Identity, body: StatementBody) -> Result<Self, StatementError> {
        body.check()?;
        let body_bytes = body.to_bytes();
        Self { body, body_bytes, signatures: [None, None] }.signed_by(identity)
    }

    /// The same, with this cell's signature too.
    pub fn signed_by(mut self, identity: &Identity) -> Result<Self, StatementError> {
        let side = self.body.side(&identity.id()).ok_or(StatementError::Malformed("it is of other cells"))?;
        self.signatures[side.at()] = Some(identity.sign(&self.body_bytes));
        if self.to_bytes().len() > STATEMENT_BYTES_MAX {
            return Err(StatementError::Malformed("it is too long"));
        }
        Ok(self)
    }

    /// A statement from anywhere: checks limits and all signatures that it has. At least one must be there.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, StatementError> {
        if bytes.len() > STATEMENT_BYTES_MAX {
            return Err(StatementError::Malformed("it is too long"));
        }
        let mut from = Reader::new(bytes);
        let body = StatementBody::read(&mut from)?;
        body.check()?;
        let body_bytes = body.to_bytes();
        let signers = from.u8()?;
        if !(1..=3).contains(&signers) {
            return Err(StatementError::Malformed("nobody has signed it"));
        }
        let mut signatures = [None, None];
        for side in [Side::Low, Side::High] {
            if signers >> side.at() & 1 == 1 {
                let signature: [u8; 64] = from.array()?;
                if !verify(&body.cells[side.at()], &body_bytes, &signature) {
                    return Err(StatementError::Signature(side));
                }
                signatures[side.at()] = Some(signature);
            }
        }
        from.end()?;
        Ok(Self { body, body_bytes, signatures })
    }

    /// One that both have signed.
    pub fn whole_from_bytes(bytes: &[u8]) -> Result<Self, StatementError> {
        let statement = Self::from_bytes(bytes)?;
        match [Side::Low, Side::High].into_iter().find(|side| !statement.is_signed_by(*side)) {
            Some(side) => Err(StatementError::Signature(side)),
            None => Ok(statement),
        }
    }

    /// Whether a side has signed it.
    pub fn is_signed_by(&self, side: Side) -> bool {
        self.signatures[side.at()].is_some()
    }

    /// Both have signed it.
    pub fn is_whole(&self) -> bool {
        self.signatures.iter().all(Option::is_some)
    }

    /// What it says.
    pub fn body(&self) -> &StatementBody {
        &self.body
    }

    /// By which the next one names it.
    pub fn hash(&self) -> StatementHash {
        sha256(&self.body_bytes)
    }

    /// As it travels and is kept: body, who has signed u8 (1 the smaller id, 2 the larger, 3 both), their signatures.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut to = Writer::new();
        let signers = u8::from(self.signatures[0].is_some()) | u8::from(self.signatures[1].is_some()) << 1;
        to.raw(&self.body_bytes).u8(signers);
        for signature in self.signatures.iter().flatten() {
            to.raw(signature);
        }
        to.finish()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::keys::MasterKey;

    pub(in super::super) fn two() -> [Identity; 2] {
        let mut two = [1, 2].map(|seed| MasterKey::from_bytes([seed; 32]).identity(0, 0));
        two.sort_by_key(|identity| identity.id());
        two
    }

    pub(in super::super) fn body(seq: u64) -> StatementBody {
        let two = two();
        StatementBody {
            cells: [two[0].id(), two[1].id()],
            seq,
            previous: [0; 32],
            lives: [1, 1],
            from: 0,
            until: 1_800_000_000,
            stored: [500, 700],
            extensions: vec![],
        }
    }

    #[test]
    fn statements_read_back_with_one_signature_or_both() {
        let [low, high] = two();
        let half = Statement::sign(&high, body(1)).unwrap();
        assert!(!half.is_whole() && half.is_signed_by(Side::High));
        assert_eq!(Statement::from_bytes(&half.to_bytes()), Ok(half.clone()));
        assert_eq!(Statement::whole_from_bytes(&half.to_bytes()), Err(StatementError::Signature(Side::Low)));
        let whole = half.clone().signed_by(&low).unwrap();
        assert_eq!(Statement::whole_from_bytes(&whole.to_bytes()), Ok(whole.clone()));
        assert_eq!(whole.hash(), half.hash());
        let other = MasterKey::from_bytes([9; 32]).identity(0, 0);
        assert!(half.signed_by(&other).is_err());
    }

    /// Every byte in turn, and every length.
    #[test]
    fn no_byte_of_a_statement_can_be_changed_or_left_out() {
        let [low, high] = two();
        let bytes = Statement::sign(&high, body(3)).unwrap().signed_by(&low).unwrap().to_bytes();
        for at in 0..bytes.len() {
            assert!(Statement::from_bytes(&bytes[..at]).is_err(), "cut at {at}");
            for bit in [0, 6] {
                let mut changed = bytes.clone();
                changed[at] ^= 1 << bit;
                assert!(Statement::whole_from_bytes(&changed).is_err(), "byte {at}");
            }
        }
        assert!(Statement::from_bytes(&[&bytes[..], &[0]].concat()).is_err());
    }

    /// Every field in turn, signed as it stands.
    #[test]
    fn what_makes_no_sense_is_not_signed_and_not_read() {
        let [low, high] = two();
        let good = body(1);
        let swapped = [good.cells[1], good.cells[0]];
        let wrong: [(&str, StatementBody); 7] = [
            ("the cells are not in order", StatementBody { cells: swapped, ..good.clone() }),
            ("the cells are not in order", StatementBody { cells: [low.id(), low.id()], ..good.clone() }),
            (
                "a key that anybody can sign for",
                StatementBody { cells: [CellId([0; 32]), high.id()], ..good.clone() },
            ),
            ("statements are counted from 1", StatementBody { seq: 0, ..good.clone() }),
            ("lives are counted from 1", StatementBody { lives: [1, 0], ..good.clone() }),
            ("the period ends before it begins", StatementBody { from: good.until + 1, ..good.clone() }),
            ("a figure is too large", StatementBody { stored: [FIGURE_MAX + 1, 0], ..good.clone() }),
        ];
        for (why, body) in wrong {
            let why = Err(StatementError::Malformed(why));
            assert_eq!(Statement::sign(&high, body.clone()), why);
            let bytes = body.to_bytes();
            let signed = [&bytes[..], &[2], &high.sign(&bytes)].concat();
            assert_eq!(Statement::from_bytes(&signed), why);
        }
        let bytes = good.to_bytes();
        let unsigned = [&bytes[..], &[0]].concat();
        assert_eq!(Statement::from_bytes(&unsigned), Err(StatementError::Malformed("nobody has signed it")));
        let by_the_wrong_one = [&bytes[..], &[2], &low.sign(&bytes)].concat();
        assert_eq!(Statement::from_bytes(&by_the_wrong_one), Err(StatementError::Signature(Side::High)));
        let mut newer = bytes.clone();
        newer[18] = b'2';
        assert_eq!(Statement::from_bytes(&newer), Err(StatementError::UnknownVersion));
    }
}

//! What a creator takes back, and what a holder makes of it.
//!
//! One list for each creator, numbered; the highest number holds. It names revocation numbers in ranges, so that one
//! line takes back one ticket, a recipient's whole share, or all that was ever granted.

use crate::codec::{BadBytes, Reader, Writer};
use crate::id::{CellId, ChunkName};
use crate::keys::Identity;
use crate::manifest::{Extension, read_extensions, write_extensions};

use super::GrantError;
use super::ticket::{READ, Ticket, read_label, sign, split_signed};
use super::tree::is_member;

/// Ranges of a list. Whoever has more makes fewer by taking back what lies between, and grants that anew.
pub const RANGES_MAX: usize = 4096;
/// Bytes of a whole list.
pub const LIST_BYTES_MAX: usize = 80 * 1024;

const LABEL: &str = "grove revocations v1";

/// Revocation numbers from the first to the last, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// 1 or more.
    pub first: u64,
    /// Not below the first.
    pub last: u64,
}

/// Ascending ranges with a gap between each two: one form for one set of numbers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ranges(Vec<Range>);

impl Ranges {
    /// Takes `number` (1 or more) back.
    pub fn add(&mut self, number: u64) {
        self.add_range(Range { first: number, last: number });
    }

    /// Takes all numbers of `range` back.
    pub fn add_range(&mut self, range: Range) {
        assert!((1..=range.last).contains(&range.first), "numbers begin at 1");
        let from = self.0.partition_point(|other| other.last.saturating_add(1) < range.first);
        let to = self.0.partition_point(|other| other.first <= range.last.saturating_add(1));
        let touched = &self.0[from..to];
        let first = touched.first().map_or(range.first, |other| other.first.min(range.first));
        let last = touched.last().map_or(range.last, |other| other.last.max(range.last));
        self.0.splice(from..to, [Range { first, last }]);
    }

    /// Takes back what `other` does: a creator who begins a new life takes in the lists that its peers hold.
    pub fn add_all(&mut self, other: &Self) {
        other.0.iter().for_each(|range| self.add_range(*range));
    }

    /// Whether `number` is taken back.
    pub fn contains(&self, number: u64) -> bool {
        let at = self.0.partition_point(|range| range.last < number);
        self.0.get(at).is_some_and(|range| range.first <= number)
    }

    /// The ranges.
    pub fn as_slice(&self) -> &[Range] {
        &self.0
    }

    fn write(&self, to: &mut Writer) {
        to.u32(self.0.len() as u32);
        for range in &self.0 {
            to.u64(range.first).u64(range.last);
        }
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, BadBytes> {
        let count = from.count(16)?;
        if count > RANGES_MAX {
            return Err(BadBytes("too many ranges"));
        }
        let mut ranges: Vec<Range> = Vec::with_capacity(count);
        for _ in 0..count {
            let range = Range { first: from.u64()?, last: from.u64()? };
            // The first has a gap of one to 0, which is no number.
            let least = ranges.last().map_or(Some(1), |before| before.last.checked_add(2));
            if range.last < range.first || least.is_none_or(|least| range.first < least) {
                return Err(BadBytes("ranges ascend, with gaps"));
            }
            ranges.push(range);
        }
        Ok(Self(ranges))
    }
}

/// What a list says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RevocationsBody {
    /// Whose tickets they are; signs.
    pub creator: CellId,
    /// Of two lists of one creator the higher holds. From 1 up, made like a ticket's: life and count.
    pub number: u64,
    /// What is taken back.
    pub revoked: Ranges,
    /// From later versions of Grove, ignorable.
    pub extensions: Vec<Extension>,
}

/// A list with its creator's signature, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revocations {
    body: RevocationsBody,
    bytes: Vec<u8>,
}

impl std::ops::Deref for Revocations {
    type Target = RevocationsBody;

    fn deref(&self) -> &RevocationsBody {
        &self.body
    }
}

impl Revocations {
    /// Signs `body`, whose creator is `identity`.
    pub fn sign(identity: &Identity, body: RevocationsBody) -> Result<Self, GrantError> {
        if body.creator != identity.id() {
            return Err(GrantError::Mismatch("the creator is another cell"));
        }
        if body.number == 0 {
            return Err(GrantError::Malformed("a list's number is 1 or more"));
        }
        if body.revoked.0.len() > RANGES_MAX {
            return Err(GrantError::TooLong("list of revocations"));
        }
        let mut to = Writer::with_label(LABEL);
        to.raw(&body.creator.0).u64(body.number);
        body.revoked.write(&mut to);
        write_extensions(&body.extensions, &mut to);
        let bytes = sign(identity, to);
        if bytes.len() > LIST_BYTES_MAX {
            return Err(GrantError::TooLong("list of revocations"));
        }
        Ok(Self { body, bytes })
    }

    /// A list from anywhere: checks limits, keys and signature.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, GrantError> {
        let signed = split_signed(bytes, LIST_BYTES_MAX, "list of revocations")?;
        let mut from = Reader::new(signed.body);
        read_label(&mut from, LABEL)?;
        let body = RevocationsBody {
            creator: CellId(from.array()?),
            number: from.u64()?,
            revoked: Ranges::read(&mut from)?,
            extensions: read_extensions(&mut from)?,
        };
        from.end()?;
        if body.number == 0 {
            return Err(GrantError::Malformed("a list's number is 1 or more"));
        }
        signed.check(&body.creator)?;
        Ok(Self { body, bytes: bytes.to_vec() })
    }

    /// Whether a holder takes this list of `creator`'s up, the newest seen so far having the number `seen` (0: none).
    /// The same list again is no news and no fault.
    pub fn follows(&self, creator: &CellId, seen: u64) -> Result<(), GrantError> {
        if self.creator != *creator {
            return Err(GrantError::ForeignList);
        }
        if self.number < seen {
            return Err(GrantError::OlderList { number: self.number, seen });
        }
        Ok(())
    }

    /// Body and signature, as they travel.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// What a holder knows when somebody presents a ticket.
#[derive(Debug, Clone, Copy)]
pub struct Presented<'a> {
    /// The ticket; parsing it has checked its signature.
    pub ticket: &'a Ticket,
    /// The key that the caller has proved in the handshake.
    pub caller: &'a CellId,
    /// The creator's list, if any was ever seen.
    pub list: Option<&'a Revocations>,
    /// Number of the newest list of that creator that was ever seen; 0: none.
    pub seen: u64,
    /// Unix time in seconds.
    pub now: u64,
}

/// Whether a holder serves the ticket's chunks to this caller.
pub fn allows(presented: Presented<'_>) -> Result<(), GrantError> {
    let Presented { ticket, caller, list, seen, now } = presented;
    if ticket.recipient != *caller {
        return Err(GrantError::WrongRecipient);
    }
    if ticket.rights & READ == 0 {
        return Err(GrantError::Rights(ticket.rights));
    }
    match list {
        Some(list) => list.follows(&ticket.creator, seen)?,
        None if seen > 0 => return Err(GrantError::OlderList { number: 0, seen }),
        None => {}
    }
    if list.is_some_and(|list| list.revoked.contains(ticket.number)) {
        return Err(GrantError::Revoked);
    }
    if ticket.expires != 0 && now > ticket.expires {
        return Err(GrantError::Expired);
    }
    Ok(())
}

/// Whether a holder serves this chunk of the ticket's creator, of so many sealed bytes, to this caller.
pub fn allows_chunk(
    presented: Presented<'_>,
    name: &ChunkName,
    sealed_len: u32,
    proof: &[u8],
) -> Result<(), GrantError> {
    allows(presented)?;
    match is_member(&presented.ticket.root, proof, name, sealed_len) {
        true => Ok(()),
        false => Err(GrantError::RootMismatch),
    }
}

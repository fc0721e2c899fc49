//! Credit for storage that was proven: what is counted, what two cells sign of it, and what a peer may store for it. Knows
//! nothing of sockets, databases or clocks: bytes and times come in, decisions go out.
//!
//! Of each pair of cells the *owner* of chunks counts what the other one stores for it, by its own proofs; the *holder*
//! counts what it keeps, and compares. Both figures of a pair, one each way, stand in one cumulative statement that both sign.
//!
//! Promise: a byte-hour is counted once; a figure never goes back; what one side alone says is never taken for both's word.

mod count;
mod quota;
mod settle;
mod statement;

pub use count::{Claim, Counts, Seen, Sums};
pub use quota::{Allowed, Facts, Why, advice, allowed, has_credit};
pub use settle::{Cause, Heard, Refused, Taken, Verdict, check_proposal, compare, judge, propose};
pub use statement::{
    FIGURE_MAX, STATEMENT_BYTES_MAX, Side, Statement, StatementBody, StatementError, StatementHash,
};

/// Bytes stored for an hour, in one leaf: 1 GiB stored for one day and proven.
pub const LEAF_BYTE_HOURS: u64 = (1 << 30) * 24;
/// Seconds of an hour.
pub const HOUR_S: u64 = 3600;

/// Thousandths of a leaf, rounded to the nearest.
pub fn milli_leaves(byte_hours: i64) -> i64 {
    let leaf = i128::from(LEAF_BYTE_HOURS);
    let scaled = i128::from(byte_hours) * 1000;
    let half = if scaled < 0 { -leaf / 2 } else { leaf / 2 };
    i64::try_from((scaled + half) / leaf).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leaf_is_one_gibibyte_for_one_day() {
        assert_eq!(milli_leaves(LEAF_BYTE_HOURS as i64), 1000);
        assert_eq!(milli_leaves(-(LEAF_BYTE_HOURS as i64) * 3 / 2), -1500);
        assert_eq!((milli_leaves(0), milli_leaves(12_884_901), milli_leaves(12_884_902)), (0, 0, 1));
        assert!(milli_leaves(i64::MAX) > 357_000_000_000);
    }
}
